//! The monitor is started and stopped many times in one process, as when its plugin is unloaded and loaded
//! again. A test program of its own, so that nothing else adds threads or descriptors.

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::sync::Arc;

use collectd_live::daemon::Daemon;
use collectd_live::fake::FakeDaemon;
use collectd_live::monitor::Monitor;
use collectd_live::settings::{Block, Value};
use collectd_live_tests::eventually;
use support::{broker_is_installed, Broker, Sender, SOON};

const ROUNDS: usize = 100;
/// By then caches are filled.
const WARM: usize = 40;

fn entries(directory: &str) -> usize {
    fs::read_dir(directory).expect("a directory").count()
}

fn children() -> String {
    let task = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let own = format!("/proc/{}/task", std::process::id());
    let of_all: Vec<String> = fs::read_dir(own)
        .expect("a directory")
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .collect();
    format!("{task}{}", of_all.concat())
}

/// Memory that is in use, in KiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("a file");
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .expect("a line");
    let number = line.split_whitespace().nth(1).expect("a number");
    number.parse().expect("a number")
}

#[test]
fn a_hundred_monitors_leave_nothing_behind() {
    if !broker_is_installed("a_hundred_monitors_leave_nothing_behind") {
        return;
    }
    let broker = Broker::start();
    let sender = Sender::listen(&broker, "results");
    let (threads, descriptors, before) = (
        entries("/proc/self/task"),
        entries("/proc/self/fd"),
        children(),
    );
    let mut warm = 0;
    for round in 0..ROUNDS {
        let daemon = Arc::new(FakeDaemon::new("node1"));
        let monitor = Monitor::new(
            Arc::clone(&daemon) as Arc<dyn Daemon>,
            env!("CARGO_BIN_EXE_collectd-live-runner").into(),
        );
        let mut service = Block::option("Service", [Value::from("hello")]);
        let line = format!("echo {round}");
        service.children.push(Block::option(
            "Command",
            [Value::from("exec"), Value::from(line.as_str())],
        ));
        // Each has another configuration: its topic, its command, its way of logging.
        let block = Block::option("Plugin", [Value::from("monitor")])
            .with("Host", broker.address().as_str())
            .with("CommandTopic", format!("commands/{round}").as_str())
            .with("CommandResultTopic", "results")
            .with("CleanSession", true)
            .with("LogLevel", if round % 2 == 0 { "info" } else { "debug" })
            .with_block(service);
        monitor.configure(&block).expect("the block is right");
        monitor.init().expect("it starts");
        eventually("it listens", SOON, || {
            (daemon.count("listening for commands") == 1).then_some(())
        });
        let command = format!(r#"{{"task_id":{round},"service":"hello","command":"exec"}}"#);
        sender.publish(&format!("commands/{round}"), command);
        let result = sender.code_and_message(&round.to_string());
        assert_eq!(result, (0, round.to_string()));
        monitor.shutdown();
        drop(monitor);

        // A thread that was joined may be listed a moment longer.
        eventually("every thread is gone", SOON, || {
            (entries("/proc/self/task") == threads).then_some(())
        });
        assert_eq!(entries("/proc/self/fd"), descriptors, "in round {round}");
        assert_eq!(children(), before, "in round {round}");
        assert_eq!(Arc::strong_count(&daemon), 1, "in round {round}");
        if round == WARM {
            warm = resident();
        }
    }
    let grown = resident().saturating_sub(warm);
    assert!(
        grown < 512,
        "{grown} KiB more after {ROUNDS} rounds than after {WARM}"
    );
}
