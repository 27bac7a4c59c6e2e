//! `collectd-live send-command`, as one would run it.

use crate::support::{broker_is_installed, Broker, Sender, SOON};
use crate::Running;
use collectd_live_tests::eventually;
use std::fs;
use std::process::{Command, Output};

fn send(broker: &Broker, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_collectd-live"))
        .arg("send-command")
        .args(["-h", &broker.address(), "-t", "commands"])
        .args(arguments)
        .output()
        .expect("the program can be run")
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn it_prints_what_it_sends_and_the_result() {
    if !broker_is_installed("it_prints_what_it_sends_and_the_result") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let output = send(&broker, &["-r", "results", "hello", "exec"]);
    assert_eq!(status(&output), 0, "{output:?}");
    let stdout = text(&output.stdout);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{stdout}");
    let sent: serde_json::Value =
        serde_json::from_str(lines[0].strip_prefix("Send command: ").unwrap()).unwrap();
    let received: serde_json::Value =
        serde_json::from_str(lines[1].strip_prefix("Received a result: ").unwrap()).unwrap();
    assert_eq!(sent["task_id"], received["task_id"]);
    assert_eq!(
        (&sent["service"], &sent["command"]),
        (&"hello".into(), &"exec".into())
    );
    assert_eq!(received["message"], "Hello World!");
}

#[test]
fn it_prints_one_line_of_json_if_asked_to() {
    if !broker_is_installed("it_prints_one_line_of_json_if_asked_to") {
        return;
    }
    let broker = Broker::start();
    let _monitor = Running::start(&broker).listening();
    let arguments = [
        "-r",
        "results",
        "--json",
        "--parameter",
        "what=a\u{9b}b",
        "choose",
        "words",
    ];
    let output = send(&broker, &arguments);
    assert_eq!(status(&output), 0, "{output:?}");
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(!stdout.trim_end().contains(char::is_control), "{stdout:?}");
    let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(result["message"], "<a\u{9b}b><-a\u{9b}b-><3>");
    let output = send(
        &broker,
        &[
            "-r",
            "results",
            "--json",
            "--parameter",
            "what=x",
            "--parameter",
            "count=true",
            "choose",
            "words",
        ],
    );
    assert_eq!(status(&output), 3, "{output:?}");
}

#[test]
fn its_password_may_stand_in_a_file() {
    if !broker_is_installed("its_password_may_stand_in_a_file") {
        return;
    }
    let broker = Broker::with_user("u", "hunter2", |dir| {
        fs::write(dir.join("password"), "hunter2\n").expect("a file");
        fs::write(dir.join("wrong"), "hunter3\n").expect("a file");
    });
    for (file, expected) in [("password", 0), ("wrong", 5), ("missing", 2)] {
        let path = broker.dir().join(file);
        let path = path.to_str().unwrap();
        let output = send(
            &broker,
            &["-u", "u", "--password-file", path, "hello", "exec"],
        );
        assert_eq!(status(&output), expected, "{file}: {output:?}");
        assert!(!text(&output.stderr).contains("hunter"), "{output:?}");
    }
}

#[test]
fn its_status_tells_how_it_ended() {
    if !broker_is_installed("its_status_tells_how_it_ended") {
        return;
    }
    let mut broker = Broker::start();
    let monitor = Running::start(&broker).listening();
    for (arguments, expected) in [
        (&["-r", "results", "hello", "exec"][..], 0),
        (&["-r", "results", "-q", "0", "hello", "exec"], 0),
        (&["-r", "results", "-q", "1", "hello", "exec"], 0),
        (&["hello", "exec"], 0),
        (&["-q", "0", "hello", "exec"], 0),
        (&["-r", "results", "exit", "three"], 1),
        (&["-r", "results", "hello"], 2),
        (&["-r", "results", "-q", "3", "hello", "exec"], 2),
        (&["-r", "results/#/x", "hello", "exec"], 2),
        (&["-r", "results", "nosuch", "exec"], 3),
        (&["-r", "results", "hung", "forever"], 3),
    ] {
        let output = send(&broker, arguments);
        assert_eq!(status(&output), expected, "{arguments:?}: {output:?}");
    }
    drop(monitor);
    let output = send(
        &broker,
        &["-r", "results", "--timeout", "0.5", "hello", "exec"],
    );
    assert_eq!(status(&output), 4, "{output:?}");
    broker.kill();
    let output = send(&broker, &["-r", "results", "hello", "exec"]);
    assert_eq!(status(&output), 5, "{output:?}");
    assert!(
        text(&output.stderr).starts_with("collectd-live: "),
        "{output:?}"
    );
}

#[test]
fn results_of_other_tasks_are_passed_over() {
    if !broker_is_installed("results_of_other_tasks_are_passed_over") {
        return;
    }
    let broker = Broker::start();
    // This one stands in for the monitor.
    let monitor = Sender::listen(&broker, "commands");
    std::thread::scope(|scope| {
        let output = scope.spawn(|| send(&broker, &["-r", "results", "s", "c"]));
        let sent = eventually("the command", SOON, || monitor.received().first().cloned());
        let sent: serde_json::Value = serde_json::from_str(&sent).unwrap();
        for payload in [
            "42",
            "not JSON",
            "{}",
            r#"{"task_id":1,"message":"x","code":0}"#,
        ] {
            monitor.publish("results", payload);
        }
        let other = format!(
            r#"{{"task_id":"{}","message":"x","code":0}}"#,
            sent["task_id"]
        );
        monitor.publish("results", other);
        let own = format!(
            r#"{{"task_id":{},"message":"own","code":7}}"#,
            sent["task_id"]
        );
        monitor.publish("results", own);
        let output = output.join().unwrap();
        assert_eq!(status(&output), 1);
        let stdout = text(&output.stdout);
        assert_eq!(stdout.matches("Received").count(), 1, "{stdout}");
        assert!(stdout.contains("own"), "{stdout}");
    });
}

#[test]
fn the_help_names_every_status() {
    let output = Command::new(env!("CARGO_BIN_EXE_collectd-live"))
        .args(["send-command", "--help"])
        .output()
        .expect("the program can be run");
    assert_eq!(status(&output), 0);
    let stdout = text(&output.stdout);
    for line in [
        "  0  ",
        "  1  ",
        "  2  ",
        "  3  ",
        "  4  ",
        "  5  ",
        "-h, --host",
    ] {
        assert!(stdout.contains(line), "{line:?} in {stdout}");
    }
}

#[test]
fn the_helper_says_what_it_is_to_whoever_runs_it_by_hand() {
    let output = Command::new(crate::HELPER)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the program can be run");
    assert_eq!(status(&output), 2);
    assert!(
        text(&output.stderr).contains("plugin monitor"),
        "{output:?}"
    );
}
