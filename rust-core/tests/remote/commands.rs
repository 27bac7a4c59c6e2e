//! Commands, from the message to the result.

use crate::support::{
    broker_is_installed, is_gone, process, rubbish, Broker, Sender, SOON, WRONG_TYPES,
};
use crate::{block, write_config, Running};
use collectd_live_tests::eventually;
use rustix::process::{kill_process, kill_process_group, Signal};
use std::fs;
use std::rc::Rc;

#[test]
fn a_command_is_run_and_answered() {
    if !broker_is_installed("a_command_is_run_and_answered") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("3126260400", "hello", "exec");
    let result = sender.result("3126260400");
    assert_eq!(result["message"], "Hello World!");
    assert_eq!(result["code"], 0);
    assert_eq!(result["state"], "finished");
    assert_eq!(result["host"], "node1");
    let timestamp = result["timestamp"].as_str().unwrap();
    assert!(
        timestamp.ends_with('Z') && timestamp.len() == 20,
        "{timestamp}"
    );
}

#[test]
fn the_code_is_the_exit_status_as_a_shell_gives_it() {
    if !broker_is_installed("the_code_is_the_exit_status_as_a_shell_gives_it") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    for (task, command, code) in [
        ("1", "three", 3),
        ("2", "missing", 127),
        ("3", "killed", 128 + 9),
        ("4", "argv", 127),
    ] {
        sender.command(task, "exit", command);
        assert_eq!(
            sender.code_and_message(task),
            (code, String::new()),
            "{command}"
        );
    }
}

#[test]
fn a_task_id_comes_back_as_it_went() {
    if !broker_is_installed("a_task_id_comes_back_as_it_went") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    for task in [
        "4294967296",
        "123456789012345678901234567890",
        "1.50",
        "\"a \\u00e9\"",
        "-0",
    ] {
        sender.command(task, "hello", "exec");
        assert_eq!(sender.code_and_message(task).0, 0, "{task}");
    }
}

#[test]
fn what_is_refused_is_told_with_its_code() {
    if !broker_is_installed("what_is_refused_is_told_with_its_code") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "nosuch", "exec");
    assert_eq!(sender.code_and_message("1").0, 0x1002);
    sender.command("2", "hello", "nosuch");
    assert_eq!(sender.code_and_message("2").0, 0x1003);
    sender.publish("commands", r#"{"task_id":3,"config":"LoadPlugin cpu"}"#);
    assert_eq!(sender.code_and_message("3").0, 0x1000);
    sender.publish("commands", r#"{"task_id":4,"service":"hello"}"#);
    assert_eq!(sender.code_and_message("4").0, 0x3000);
    sender.publish_retained(
        "commands",
        r#"{"task_id":5,"service":"hello","command":"exec"}"#,
    );
    // A message is only marked as retained for those who subscribe later.
    assert_eq!(sender.code_and_message("5").0, 0);
    drop(monitor);
    let late = Sender::listen(&broker, "results");
    let _monitor = Running::start(&broker).listening();
    assert_eq!(late.code_and_message("5").0, 0x3005);
}

#[test]
fn results_go_to_every_subscriber_and_are_not_retained() {
    if !broker_is_installed("results_go_to_every_subscriber_and_are_not_retained") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let [sender, watcher] = [(); 2].map(|()| Sender::listen(&broker, "results"));
    sender.command("1", "hello", "exec");
    let result = sender.result("1");
    assert_eq!(watcher.result("1"), result);
    let late = Sender::listen(&broker, "results");
    sender.command("2", "hello", "exec");
    late.result("2");
    assert_eq!(late.received().len(), 1, "{:?}", late.received());
}

#[test]
fn without_a_result_topic_commands_run_and_no_results_are_sent() {
    if !broker_is_installed("without_a_result_topic_commands_run_and_no_results_are_sent") {
        return;
    }
    let broker = Broker::start();
    let without = || {
        let mut block = block(&broker);
        block.children.retain(|o| !o.is("CommandResultTopic"));
        block
    };
    let sender = Sender::listen(&broker, "#");
    let monitor = Running::with(without()).listening();
    let dir = Rc::clone(&monitor.dir);
    sender.command("1", "count", "up");
    assert_eq!(monitor.file("count"), "up\n");
    sender.command("2", "count", "no such command");
    monitor.logged("no result is sent", 2);
    drop(monitor);
    // Nor does the next one think that somebody waits for them.
    let monitor = Running::in_dir(without(), &dir).listening();
    sender.command("3", "hello", "exec");
    monitor.logged("no result is sent", 1);
    assert_eq!(monitor.daemon.count("no result is sent"), 1);
    eventually("the commands themselves", SOON, || {
        (sender.received().len() >= 3).then_some(())
    });
    let results: usize = ["1", "2", "3"]
        .map(|task| sender.results(task).len())
        .iter()
        .sum();
    assert_eq!(results, 3, "{:?}", sender.received());
}

#[test]
fn without_services_nothing_can_be_run() {
    if !broker_is_installed("without_services_nothing_can_be_run") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    fs::write(monitor.dir.path().join("config.json"), "{}").unwrap();
    sender.command("1", "hello", "exec");
    assert_eq!(sender.code_and_message("1").0, 0x1001);
}

#[test]
fn an_edit_of_the_services_takes_effect_and_a_broken_one_does_not() {
    if !broker_is_installed("an_edit_of_the_services_takes_effect_and_a_broken_one_does_not") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    write_config(
        monitor.dir.path(),
        r#"{ "new": { "commands": { "exec": "echo new" } } }"#,
    );
    sender.command("1", "new", "exec");
    assert_eq!(sender.code_and_message("1"), (0, "new".to_owned()));
    write_config(monitor.dir.path(), r#"{ "newer": "#);
    sender.command("2", "new", "exec");
    assert_eq!(sender.code_and_message("2"), (0, "new".to_owned()));
    assert_eq!(
        monitor
            .daemon
            .count("the services are those of the last good version"),
        1
    );
}

#[test]
fn commands_overlap_and_an_id_is_taken_while_its_task_runs() {
    if !broker_is_installed("commands_overlap_and_an_id_is_taken_while_its_task_runs") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "slow", "two");
    sender.command("1", "hello", "exec");
    sender.command("2", "hello", "exec");
    assert_eq!(sender.code_and_message("1").0, 0x1100);
    assert_eq!(sender.code_and_message("2").0, 0);
    let all = eventually("the slow command's result", SOON, || {
        Some(sender.received()).filter(|all| all.len() == 3)
    });
    assert!(all[2].contains("\"message\":\"two\""), "{all:?}");
}

#[test]
fn a_task_runs_once_however_often_it_comes() {
    if !broker_is_installed("a_task_runs_once_however_often_it_comes") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    let dir = Rc::clone(&monitor.dir);
    let message = sender.command("1", "count", "up");
    let first = sender.result("1");
    assert_eq!(
        (&first["message"], &first["code"]),
        (&"counted".into(), &0.into())
    );
    for round in 2..=4 {
        sender.publish("commands", message.as_str());
        let all = eventually("the recorded result", SOON, || {
            Some(sender.results("1")).filter(|all| all.len() == round)
        });
        assert_eq!(all[round - 1], first);
    }
    // Another monitor knows it as well.
    drop(monitor);
    let monitor = Running::in_dir(block(&broker), &dir).listening();
    sender.publish("commands", message.as_str());
    let all = eventually("the recorded result", SOON, || {
        Some(sender.results("1")).filter(|all| all.len() == 5)
    });
    assert_eq!(all[4], first);
    assert_eq!(monitor.file("count"), "up\n");
    // The same id with another time is another task.
    let later = message.replace("Z\"", ".5Z\"");
    sender.publish("commands", later);
    eventually("it runs", SOON, || {
        (monitor.file("count") == "up\nup\n").then_some(())
    });
}

#[test]
fn what_is_too_old_or_too_long_is_refused_by_name() {
    if !broker_is_installed("what_is_too_old_or_too_long_is_refused_by_name") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    let send = |task: &str, rest: &str| {
        let text = format!(r#"{{"task_id":{task},"service":"count","command":"up",{rest}}}"#);
        sender.publish("commands", text);
        sender.code_and_message(task).0
    };
    assert_eq!(send("1", r#""timestamp":"2020-11-26T00:41:19Z""#), 0x3008);
    assert_eq!(send("2", r#""timestamp":"2120-11-26T00:41:19Z""#), 0x3009);
    assert_eq!(send("3", r#""timestamp":"just now""#), 0x300a);
    assert_eq!(
        send("4", &format!(r#""x":"{}""#, "x".repeat(2 << 20))),
        0x300b
    );
    assert!(!monitor.dir.path().join("count").exists());
    drop(monitor);

    let block = block(&broker)
        .with("RequireTimestamp", true)
        .with("MaxAge", 0.0);
    let monitor = Running::with(block).listening();
    assert_eq!(send("5", r#""x":0"#), 0x300a);
    assert_eq!(send("6", r#""timestamp":"2020-11-26T00:41:19Z""#), 0);
    drop(monitor);
}

#[test]
fn standard_error_is_a_field_of_its_own() {
    if !broker_is_installed("standard_error_is_a_field_of_its_own") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "talk", "both");
    let result = sender.result("1");
    assert_eq!(
        (&result["message"], &result["stderr"], &result["code"]),
        (&"out".into(), &"error".into(), &2.into())
    );
    sender.command("2", "hello", "exec");
    assert_eq!(sender.result("2").get("stderr"), None);
}

#[test]
fn actions_of_a_service_take_turns_unless_they_may_share() {
    if !broker_is_installed("actions_of_a_service_take_turns_unless_they_may_share") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    for task in 1..=5 {
        sender.command(&task.to_string(), "turns", "take");
    }
    for task in 1..=5 {
        assert_eq!(sender.code_and_message(&task.to_string()).0, 0);
    }
    assert_eq!(monitor.file("turns"), "begin\nend\n".repeat(5));
    // Each of these waits for the other.
    sender.command("6", "turns", "share");
    sender.command("7", "turns", "share");
    assert_eq!(sender.code_and_message("6").0, 0);
    assert_eq!(sender.code_and_message("7").0, 0);
}

#[test]
fn a_hundred_at_once_are_all_run() {
    if !broker_is_installed("a_hundred_at_once_are_all_run") {
        return;
    }
    for qos in [0.0, 1.0, 2.0] {
        let broker = Broker::start();
        let monitor = Running::with(block(&broker).with("QoS", qos)).listening();
        let sender = Sender::listen(&broker, "results");
        // mosquitto 2.0.11 loses track of a client that has more than 20 of QoS 2 under way.
        let others: Vec<_> = (0..6).map(|_| Sender::listen(&broker, "none")).collect();
        for task in 0..100 {
            others[task % others.len()].command(&task.to_string(), "count", "up");
        }
        for task in 0..100 {
            assert_eq!(sender.code_and_message(&task.to_string()).0, 0);
        }
        assert_eq!(monitor.file("count"), "up\n".repeat(100));
    }
}

#[test]
fn a_command_that_cools_down_is_refused() {
    if !broker_is_installed("a_command_that_cools_down_is_refused") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "turns", "once");
    assert_eq!(sender.code_and_message("1").0, 0);
    sender.command("2", "turns", "once");
    let (code, why) = sender.code_and_message("2");
    assert_eq!(code, 0x3007);
    assert!(why.contains("may run again in"), "{why}");
}

#[test]
fn parameters_reach_the_command_as_words_and_wrong_ones_are_refused() {
    if !broker_is_installed("parameters_reach_the_command_as_words_and_wrong_ones_are_refused") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    let send = |task: &str, parameters: &str| {
        let text = format!(
            r#"{{"task_id":{task},"service":"choose","command":"words","parameters":{parameters}}}"#
        );
        sender.publish("commands", text);
        sender.code_and_message(task)
    };
    let evil = format!(
        "x; touch {0}/evil $(touch {0}/evil) 'y",
        monitor.dir.path().display()
    );
    let parameters = serde_json::json!({ "what": evil, "count": -4 }).to_string();
    assert_eq!(
        send("1", &parameters),
        (0, format!("<{evil}><-{evil}-><-4>"))
    );
    assert!(!monitor.dir.path().join("evil").exists());
    for (task, parameters, why) in [
        ("2", "{}", "The parameter \"what\" is missing."),
        (
            "3",
            r#"{"what":"-r"}"#,
            "The parameter \"what\" does not match its pattern.",
        ),
        (
            "4",
            r#"{"what":"x","extra":1}"#,
            "The command has no parameter \"extra\".",
        ),
    ] {
        assert_eq!(send(task, parameters), (0x3006, why.to_owned()));
    }
    // One that declares none takes none.
    sender.publish(
        "commands",
        r#"{"task_id":5,"service":"hello","command":"exec","parameters":{"a":1}}"#,
    );
    assert_eq!(sender.code_and_message("5").0, 0x3006);
}

#[test]
fn a_hung_command_is_ended_with_its_group_and_answered() {
    if !broker_is_installed("a_hung_command_is_ended_with_its_group_and_answered") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "hung", "forever");
    let result = sender.result("1");
    assert_eq!(
        (&result["code"], &result["state"]),
        (&0x3001.into(), &"timed-out".into())
    );
    assert_eq!(
        result["message"],
        "begun\n[ended after 0.5 s, because it took too long]"
    );
    assert!(is_gone(&monitor.file("pid")));
    assert!(is_gone(&monitor.file("child")));
}

#[test]
fn output_is_capped() {
    if !broker_is_installed("output_is_capped") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "much", "zeros");
    let (code, message) = sender.code_and_message("1");
    assert_eq!(code, 0);
    let (output, mark) = message.split_at(65_536);
    assert!(output.bytes().all(|byte| byte == b'x'));
    assert_eq!(mark, "\n[truncated: 10000000 bytes in all]");
    sender.command("2", "much", "small");
    assert_eq!(
        sender.code_and_message("2").1,
        "aé\n[truncated: 5 bytes in all]"
    );
}

#[test]
fn a_command_sees_a_clean_environment_and_no_descriptors() {
    if !broker_is_installed("a_command_sees_a_clean_environment_and_no_descriptors") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "environment", "show");
    let (_, message) = sender.code_and_message("1");
    let words: Vec<_> = message.split_whitespace().collect();
    // cargo sets dozens of variables of its own.
    assert!(
        !words.iter().any(|word| word.starts_with("CARGO")),
        "{words:?}"
    );
    // The three standard ones, and that of the directory that is listed.
    assert_eq!(words[words.len() - 4..], ["0", "1", "2", "3"]);
    assert!(
        !words[words.len() - 5].starts_with(|c: char| c.is_ascii_digit()),
        "{words:?}"
    );
}

#[test]
fn rubbish_changes_nothing() {
    if !broker_is_installed("rubbish_changes_nothing") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    let rubbish = rubbish();
    let count = rubbish.len();
    for payload in rubbish {
        sender.publish("commands", payload);
    }
    monitor.logged("a message is not understood", count);
    sender.command("7", "hello", "exec");
    assert_eq!(sender.code_and_message("7"), (0, "Hello World!".to_owned()));
    assert_eq!(sender.received().len(), 1, "{:?}", sender.received());
    assert_eq!(monitor.daemon.count("connected to the broker"), 1);
    assert_eq!(monitor.daemon.count("is lost"), 0);
}

#[test]
fn wrong_types_are_told_where_the_id_can_be_read() {
    if !broker_is_installed("wrong_types_are_told_where_the_id_can_be_read") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    for (index, rest) in WRONG_TYPES.into_iter().enumerate() {
        let task = index.to_string();
        sender.publish("commands", format!(r#"{{"task_id":{task},{rest}}}"#));
        assert_eq!(sender.code_and_message(&task).0, 0x3000, "{rest}");
    }
}

#[test]
fn when_the_helper_dies_the_command_is_answered_and_the_next_one_runs() {
    if !broker_is_installed("when_the_helper_dies_the_command_is_answered_and_the_next_one_runs") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "slow", "hour");
    let shell = process(&monitor.file("pid"));
    let stat = fs::read_to_string(format!("/proc/{shell}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let helper = process(fields.split_whitespace().nth(1).unwrap());
    let name = fs::read_to_string(format!("/proc/{helper}/comm")).unwrap();
    assert_eq!(name, "collectd-live-r\n");
    kill_process(helper, Signal::KILL).unwrap();
    let result = sender.result("1");
    assert_eq!(
        (&result["code"], &result["state"]),
        (&0x3002.into(), &"interrupted".into())
    );
    sender.command("2", "hello", "exec");
    assert_eq!(sender.code_and_message("2").0, 0);
    // Nobody watches it any more but this test.
    kill_process_group(shell, Signal::KILL).unwrap();
    eventually("the command is gone", SOON, || {
        is_gone(&shell.to_string()).then_some(())
    });
}

#[test]
fn stopping_ends_what_runs_and_tells_so() {
    if !broker_is_installed("stopping_ends_what_runs_and_tells_so") {
        return;
    }
    let broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "slow", "hour");
    let shell = monitor.file("pid");
    monitor.monitor.shutdown();
    assert!(is_gone(&shell));
    assert_eq!(sender.code_and_message("1").0, 0x3002);
}
