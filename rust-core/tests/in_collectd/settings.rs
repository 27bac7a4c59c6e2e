//! The settings, from the block and from the JSON file.

use std::fs;

use collectd_live_tests::eventually;

use crate::support::{Broker, Sender, SOON};
use crate::{block, can_run, daemon, listening, monitor_threads, write_config};

#[test]
fn the_file_wins_over_the_block() {
    if !can_run("the_file_wins_over_the_block") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let json = format!(
        r#"{{
            "Host": "{}", "CommandTopic": "of/%h/file", "CommandResultTopic": "results/%h",
            "Services": {{ "hello": {{ "Commands": {{ "exec": "echo from the file" }} }} }}
        }}"#,
        broker.address()
    );
    let file = write_config(&daemon, &json);
    // Nobody listens on port 1 of this address.
    let block = block(&broker, &daemon.path(".")).replace(&broker.address(), "127.0.0.1:1");
    let block = format!("{block}MonitorConfigPath \"{file}\"\n");
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    listening(&daemon, 1);
    let sender = Sender::listen(&broker, "results/testhost");
    let command = r#"{"task_id":1,"service":"hello","command":"exec"}"#;
    sender.publish("commands", command);
    sender.publish("of/testhost/file", command.replace('1', "2"));
    let result = sender.result("2");
    assert_eq!(result["message"], "from the file");
    assert_eq!(result["host"], "testhost");
    assert_eq!(sender.received().len(), 1, "{:?}", sender.received());
    let log = daemon.stop();
    assert!(!log.contains("cannot connect"), "{log}");
}

#[test]
fn an_edit_of_the_services_takes_effect_and_a_broken_one_does_not() {
    if !can_run("an_edit_of_the_services_takes_effect_and_a_broken_one_does_not") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let file = write_config(&daemon, "{}");
    let block = block(&broker, &daemon.path("."));
    let block = format!("{block}MonitorConfigPath \"{file}\"\n");
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    listening(&daemon, 1);
    let sender = Sender::listen(&broker, "results");
    let expect = |task: &str, message: &str| {
        sender.command(task, "hello", "exec");
        assert_eq!(sender.code_and_message(task), (0, message.to_owned()));
    };
    // The file names no services, so these are the block's.
    expect("1", "Hello World!");
    let services = r#"{ "Services": { "hello": { "commands": { "exec": "echo new" } } } }"#;
    write_config(&daemon, services);
    expect("2", "new");
    write_config(&daemon, "{\n  \"Services\": }");
    expect("3", "new");
    daemon.wait_for_log("config.json:2:15");
    daemon.stop();
}

#[test]
fn a_json_error_is_named_with_line_and_column() {
    if !can_run("a_json_error_is_named_with_line_and_column") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let file = write_config(&daemon, "{\n  \"QoS\": 1\n  \"Secure\": false\n}\n");
    let block = block(&broker, &daemon.path("."));
    let block = format!("{block}MonitorConfigPath \"{file}\"\n");
    let place = format!("{file}:3:3: ");
    daemon
        .load("monitor", &[("config", &block)])
        .expect_refused(&[&place]);
    assert!(daemon.log().contains(&place));
    let info = daemon.assert_state("monitor", "FAILED");
    assert!(info.field("error").contains(&place), "{info:?}");
    daemon.stop();
}

#[test]
fn all_mistakes_are_named_at_once() {
    if !can_run("all_mistakes_are_named_at_once") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let json = "{\n \"Qos\": 1,\n \"QoS\": 7\n}\n";
    let file = write_config(&daemon, json);
    let block = format!(
        "{}MonitorConfigPath \"{file}\"\nSecure \"maybe\"\nHots \"x\"\n",
        block(&broker, &daemon.path("."))
    );
    let mistakes = [
        "<Plugin monitor>: Secure: must be a boolean".to_owned(),
        "<Plugin monitor>: Hots: is not a setting".to_owned(),
        format!("{file}:2:9: Qos: is not a setting (but QoS is)"),
        format!("{file}:3:9: QoS: must be 0, 1 or 2, not 7"),
    ];
    let parts: Vec<_> = mistakes.iter().map(String::as_str).collect();
    let reply = daemon.load("monitor", &[("config", &block)]);
    let log = daemon.log();
    for part in &parts {
        let line = format!("[error] monitor plugin: {part}");
        assert_eq!(log.matches(&line).count(), 1, "{line:?} in {log}");
    }
    reply.expect_refused(&parts);
    daemon.assert_state("monitor", "FAILED");
    // Before init there is nothing of the monitor but its settings.
    assert_eq!(monitor_threads(&daemon), [""; 0]);
    daemon.stop();
}

#[test]
fn its_lines_go_where_the_settings_say() {
    if !can_run("its_lines_go_where_the_settings_say") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let block = block(&broker, &daemon.path("."));
    let block = format!("{block}LogDevice \"stdout\"\n");
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    let sender = Sender::listen(&broker, "results");
    eventually("the monitor listens", SOON, || {
        let stdout = fs::read_to_string(daemon.path("stdout")).expect("a file of the daemon");
        stdout
            .contains("monitor plugin: info: listening for commands")
            .then_some(())
    });
    sender.command("1", "hello", "exec");
    assert_eq!(sender.code_and_message("1").0, 0);
    let log = daemon.stop();
    assert!(!log.contains("listening for commands"), "{log}");
}
