//! The monitor comes, goes, and leaves nothing behind.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use collectd_live_tests::{eventually, patience, Daemon, Variant};

use crate::support::{is_gone, Broker, Sender, SOON};
use crate::{block, can_run, daemon, listening, prefix, send, written};

fn entries(pid: u32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{what}"))
        .expect("a process")
        .count()
}

fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("a line");
    let number = line.split_whitespace().next().expect("a number");
    number.parse().expect("a number")
}

#[test]
fn commands_end_with_their_own_status_though_exec_reaps_every_child() {
    if !can_run("commands_end_with_their_own_status_though_exec_reaps_every_child") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let block = block(&broker, &daemon.path("."));
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    let info = daemon.assert_state("monitor", "READY");
    assert_eq!(info.field("unloadable"), "yes");
    listening(&daemon, 1);
    let output = send(&broker, "hello", "exec");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("\"message\":\"Hello World!\""), "{stdout}");

    let sender = Sender::listen(&broker, "results");
    for round in 0..20 {
        for (command, code) in [("three", 3), ("missing", 127), ("killed", 137)] {
            let task = format!("\"{command} {round}\"");
            sender.command(&task, "exit", command);
            assert_eq!(sender.code_and_message(&task).0, code, "{command}");
        }
    }
    daemon.unload("monitor").expect_ok();
    assert!(daemon.plugin("monitor").is_none());
    daemon.wait_for_value_of("uptime");
    daemon.stop();
}

#[test]
fn a_wrong_configuration_is_refused_and_can_be_mended() {
    if !can_run("a_wrong_configuration_is_refused_and_can_be_mended") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    daemon
        .load("monitor", &[("config", "Hots \"x\"\nQoS 3")])
        .expect_refused(&["Hots: is not a setting"]);
    let info = daemon.assert_state("monitor", "FAILED");
    assert!(info.field("error").contains("Hots"), "{info:?}");
    assert!(daemon.log().contains("QoS: must be 0, 1 or 2, not 3"));

    let good = block(&broker, &daemon.path("."));
    let missing = format!("{good}HelperPath \"/nonexistent/helper\"\n");
    daemon
        .load("monitor", &[("config", &missing)])
        .expect_refused(&["/nonexistent/helper"]);
    daemon.load("monitor", &[("config", &good)]).expect_ok();
    listening(&daemon, 1);
    assert_eq!(send(&broker, "hello", "exec").status.code(), Some(0));

    // A configuration that does not work leaves the one that does in force.
    daemon
        .reload("monitor", &[("config", &missing)])
        .expect_refused(&["/nonexistent/helper"]);
    daemon.assert_state("monitor", "READY");
    listening(&daemon, 2);
    assert_eq!(send(&broker, "hello", "exec").status.code(), Some(0));
    daemon.stop();
}

#[test]
fn a_command_ends_with_the_daemon() {
    if !can_run("a_command_ends_with_the_daemon") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let file = daemon.path("slow");
    let block = block(&broker, &daemon.path("."));
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    listening(&daemon, 1);
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "slow", "hour");
    let shell = written(&file);
    let started = Instant::now();
    daemon.stop();
    assert!(started.elapsed() < patience(Duration::from_secs(10)));
    assert!(is_gone(&shell));
    assert_eq!(sender.code_and_message("1").0, 0x3002);
}

#[test]
fn nothing_of_the_helper_or_its_commands_outlives_a_killed_daemon() {
    if !can_run("nothing_of_the_helper_or_its_commands_outlives_a_killed_daemon") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let file = daemon.path("slow");
    let block = block(&broker, &daemon.path("."));
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    listening(&daemon, 1);
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "slow", "hour");
    let shell = written(&file);
    // Dropping a daemon kills it.
    drop(daemon);
    eventually("the command is gone", SOON, || {
        is_gone(&shell).then_some(())
    });
}

#[test]
fn it_comes_and_goes_a_hundred_times_and_leaves_nothing_behind() {
    const ROUNDS: usize = 100;
    const WARM: usize = 50;
    if !can_run("it_comes_and_goes_a_hundred_times_and_leaves_nothing_behind") {
        return;
    }
    let broker = Broker::start();
    // Without exec, whose threads and pipes come and go.
    let daemon = Daemon::builder(Variant::Patched)
        .load_plugin("uptime")
        .available("monitor")
        .start();
    let sender = Sender::listen(&broker, "results");
    daemon.wait_for_value_of("uptime");
    let (mut threads, mut descriptors, mut warm) = (0, 0, 0);
    for round in 0..ROUNDS {
        let block = format!(
            "Host \"{}\"\nCommandTopic \"commands/{round}\"\nCommandResultTopic \"results\"\n\
             CleanSession true\n<Service \"s\">\nCommand \"c\" \"echo {round}\"\n</Service>\n\
             LogLevel \"{}\"\n",
            broker.address(),
            if round % 2 == 0 { "info" } else { "debug" }
        );
        daemon.load("monitor", &[("config", &block)]).expect_ok();
        listening(&daemon, round + 1);
        let command = format!(r#"{{"task_id":{round},"service":"s","command":"c"}}"#);
        sender.publish(&format!("commands/{round}"), command);
        let result = sender.code_and_message(&round.to_string());
        assert_eq!(result, (0, round.to_string()));
        daemon.unload("monitor").expect_ok();
        if round == 0 {
            // The lifecycle thread is there from the first operation on.
            threads = entries(daemon.pid(), "task");
            descriptors = (0..10)
                .map(|_| entries(daemon.pid(), "fd"))
                .min()
                .expect("ten numbers");
        }
        eventually("every thread is gone", SOON, || {
            (entries(daemon.pid(), "task") == threads).then_some(())
        });
        // A reader may have its file open just now.
        eventually("every descriptor is closed", SOON, || {
            (entries(daemon.pid(), "fd") == descriptors).then_some(())
        });
        if round == WARM {
            warm = memory(daemon.pid());
        }
    }
    let grown = memory(daemon.pid()).saturating_sub(warm);
    assert!(
        grown < 512,
        "{grown} KiB more after {ROUNDS} rounds than after {WARM}"
    );
    daemon.stop();
}

#[test]
fn only_module_register_is_visible() {
    if !can_run("only_module_register_is_visible") {
        return;
    }
    let output = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(prefix().join("lib/collectd/monitor.so"))
        .output()
        .expect("binutils are installed, as collectd was built with them");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let names: Vec<_> = stdout
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    assert_eq!(names, ["module_register"]);
}
