//! `collectd-live send-command`, as it is installed.

use crate::support::Broker;
use crate::{block, can_run, daemon, listening, send, send_command};

#[test]
fn its_status_tells_how_the_command_ended() {
    if !can_run("its_status_tells_how_the_command_ended") {
        return;
    }
    let mut broker = Broker::start();
    let daemon = daemon().start();
    let block = block(&broker, &daemon.path("."));
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    listening(&daemon, 1);
    for (service, command, status) in [
        ("hello", "exec", 0),
        ("exit", "three", 1),
        ("exit", "killed", 1),
        ("nosuch", "exec", 3),
        ("hello", "nosuch", 3),
    ] {
        let output = send(&broker, service, command);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{service} {command}: {output:?}"
        );
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(stdout.matches("Send command: {").count(), 1, "{stdout}");
        assert_eq!(
            stdout.matches("Received a result: {").count(),
            1,
            "{stdout}"
        );
    }

    // Another host's topic, where nobody listens.
    let output = send_command(&broker, "hello", "exec")
        .args(["-t", "commands/elsewhere", "-r", "results/elsewhere"])
        .args(["--timeout", "1"])
        .output()
        .expect("collectd-live is installed");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("Received"));

    // The monitor is not there any more, and the broker keeps the command for it.
    daemon.unload("monitor").expect_ok();
    let output = send_command(&broker, "hello", "exec")
        .args(["-t", "commands", "-r", "results", "--timeout", "1"])
        .output()
        .expect("collectd-live is installed");
    assert_eq!(output.status.code(), Some(4), "{output:?}");

    broker.kill();
    let output = send(&broker, "hello", "exec");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("collectd-live: "));
    daemon.stop();
}
