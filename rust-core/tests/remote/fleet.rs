//! `collectd-live` with many hosts: twenty monitors in one process, each with a name and files of its own.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use collectd_live::settings::Block;
use collectd_live_tests::eventually;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use serde_json::Value;

use crate::support::{broker_is_installed, Broker, Sender, SOON};
use crate::{block, Running};

/// The program, with the topics that all hosts here have.
fn program(broker: &Broker, subcommand: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_collectd-live"));
    program.args([subcommand, "-h", &broker.address()]);
    if subcommand != "list" {
        program.args(["-t", "commands/%h", "-r", "results/%h"]);
    }
    program
}

fn run(program: &mut Command, arguments: &[&str]) -> (i32, String, String) {
    told(
        &program
            .args(arguments)
            .output()
            .expect("the program can be run"),
    )
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let status = output.status.code().expect("it was not killed");
    (status, text(&output.stdout), text(&output.stderr))
}

fn of_host(broker: &Broker) -> Block {
    let mut block = block(broker);
    block
        .children
        .retain(|option| !option.key.ends_with("Topic"));
    block
        .with("CommandTopic", "commands/%h")
        .with("CommandResultTopic", "results/%h")
        .with("StatusTopic", "status/%h")
}

fn host(broker: &Broker, name: &str) -> Running {
    let dir = Rc::new(tempfile::tempdir().expect("a directory"));
    Running::named(name, of_host(broker), &dir)
}

/// Hosts by the names host0, host1 and so on, all of them listening.
fn hosts(broker: &Broker, count: usize) -> (Vec<Running>, Vec<String>) {
    let names: Vec<_> = (0..count).map(|number| format!("host{number}")).collect();
    let hosts: Vec<_> = names.iter().map(|name| host(broker, name)).collect();
    let hosts = hosts.into_iter().map(Running::listening).collect();
    (hosts, names)
}

/// Makes the command `check` of the service `host` fail there.
fn break_down(host: &Running) {
    fs::write(host.dir.path().join("broken"), "").expect("a file");
}

/// Whether the command `check` was run there.
fn has_run(host: &Running) -> bool {
    host.dir.path().join("ran").exists()
}

/// The rows of a table by host: outcome, code and the rest.
fn row<'a>(table: &'a str, host: &str) -> Vec<&'a str> {
    let row = table
        .lines()
        .find(|line| line.split_whitespace().next() == Some(host));
    let row = row.unwrap_or_else(|| panic!("{host} in {table}"));
    row.split_whitespace().skip(1).collect()
}

#[test]
fn every_host_gets_the_command_and_has_a_line() {
    if !broker_is_installed("every_host_gets_the_command_and_has_a_line") {
        return;
    }
    let broker = Broker::start();
    let (_hosts, names) = hosts(&broker, 20);
    let mut list = tempfile::NamedTempFile::new().expect("a file");
    writeln!(list, "# the second half\n{}", names[10..].join("\n")).expect("a file");
    let file = list.path().to_str().expect("UTF-8");
    let mut arguments = vec!["hello", "exec", "--hosts-file", file];
    arguments.extend(names[..12].iter().map(String::as_str));

    let (status, stdout, stderr) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 0, "{stdout}{stderr}");
    for name in &names {
        let row = row(&stdout, name);
        assert_eq!((row[0], row[1]), ("succeeded", "0"), "{stdout}");
        assert_eq!(row[3..].join(" "), "Hello World!", "{stdout}");
    }
    // Those that are named twice are one host.
    assert!(stdout.ends_with("20 hosts: 20 succeeded\n"), "{stdout}");
    // There is no terminal to draw a bar on.
    assert_eq!(stderr, "");

    arguments.push("--json");
    let (status, stdout, _) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 0, "{stdout}");
    let lines: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let found: BTreeSet<_> = lines
        .iter()
        .map(|line| line["host"].as_str().unwrap())
        .collect();
    assert_eq!(found, names.iter().map(String::as_str).collect());
    assert_eq!(lines.len(), 20);
    for line in &lines {
        assert_eq!(line["outcome"], "succeeded");
        assert_eq!(line["result"]["host"], line["host"]);
        assert_eq!(line["result"]["message"], "Hello World!");
        assert!(line["seconds"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_canary_that_fails_spares_the_others() {
    if !broker_is_installed("a_canary_that_fails_spares_the_others") {
        return;
    }
    let broker = Broker::start();
    let (hosts, names) = hosts(&broker, 4);
    break_down(&hosts[0]);
    let mut arguments = vec!["host", "check"];
    arguments.extend(names.iter().map(String::as_str));
    let (status, stdout, stderr) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 6, "{stdout}");
    assert!(stderr.contains("a host that goes first"), "{stderr}");
    assert_eq!(row(&stdout, "host0")[..2], ["failed", "1"]);
    assert_eq!(row(&stdout, "host3"), ["not-sent"]);
    assert!(has_run(&hosts[0]));
    assert!(!hosts[1..].iter().any(has_run));

    // One that succeeds lets the others go; their failures are below the limit.
    arguments.extend(["--max-failures", "1"]);
    arguments[2..4].swap(0, 1);
    let (status, stdout, _) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 1, "{stdout}");
    assert!(
        stdout.ends_with("4 hosts: 3 succeeded, 1 failed\n"),
        "{stdout}"
    );
    assert!(hosts.iter().all(has_run));
}

#[test]
fn too_many_failures_stop_the_run() {
    if !broker_is_installed("too_many_failures_stop_the_run") {
        return;
    }
    let broker = Broker::start();
    let (hosts, names) = hosts(&broker, 8);
    hosts[1..].iter().for_each(break_down);
    let mut arguments = vec![
        "host",
        "check",
        "--parallel",
        "1",
        "--max-failures",
        "25%",
        "--json",
    ];
    arguments.extend(names.iter().map(String::as_str));
    let (status, stdout, stderr) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 6, "{stdout}");
    assert!(stderr.contains("too many hosts"), "{stderr}");
    // Two of eight may fail; the third failure is the last.
    let ran: Vec<_> = hosts.iter().map(has_run).collect();
    let expected = [true, true, true, true, false, false, false, false];
    assert_eq!(ran, expected, "{stdout}");
    assert_eq!(stdout.lines().count(), 8, "{stdout}");
    assert_eq!(stdout.matches("not-sent").count(), 4, "{stdout}");
}

#[test]
fn the_rate_is_kept() {
    if !broker_is_installed("the_rate_is_kept") {
        return;
    }
    let broker = Broker::start();
    let (_hosts, names) = hosts(&broker, 5);
    let mut arguments = vec!["hello", "exec", "--canary", "0", "--rate", "5"];
    arguments.extend(names.iter().map(String::as_str));
    let begin = Instant::now();
    let (status, stdout, _) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 0, "{stdout}");
    assert!(begin.elapsed() >= Duration::from_millis(800));
}

#[test]
fn hosts_that_do_not_answer_are_named() {
    if !broker_is_installed("hosts_that_do_not_answer_are_named") {
        return;
    }
    let broker = Broker::start();
    let (_hosts, _) = hosts(&broker, 2);
    let arguments = [
        "hello",
        "exec",
        "host0",
        "nobody",
        "host1",
        "--timeout",
        "2",
        "--canary",
        "0",
        "--max-failures",
        "100%",
    ];
    let (status, stdout, _) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 4, "{stdout}");
    assert_eq!(row(&stdout, "nobody"), ["no-answer"]);
    assert_eq!(row(&stdout, "host1")[0], "succeeded");

    // What a monitor refuses is worse than what fails, and better than no answer.
    let arguments = ["nosuch", "exec", "host0", "host1", "--canary", "0"];
    let (status, stdout, _) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 3, "{stdout}");
    assert_eq!(row(&stdout, "host0")[..2], ["refused", "0x1002"]);
}

#[test]
fn hosts_are_discovered_by_their_status() {
    if !broker_is_installed("hosts_are_discovered_by_their_status") {
        return;
    }
    let broker = Broker::start();
    let (hosts, _) = hosts(&broker, 3);
    drop(host(&broker, "gone").listening());
    let sender = Sender::listen(&broker, "nothing");
    sender.publish_retained(
        "status/dead",
        r#"{"state":"offline","host":"dead","reason":"lost"}"#,
    );
    sender.publish_retained("status/odd", "\u{1b}[2J");

    let listed = eventually("every status is there", SOON, || {
        let (status, stdout, stderr) = run(&mut program(&broker, "list"), &[]);
        assert_eq!(status, 0, "{stderr}");
        (stdout.lines().count() == 7 && stdout.matches("online").count() == 3).then_some(stdout)
    });
    assert_eq!(row(&listed, "gone")[0], "offline");
    assert_eq!(row(&listed, "gone").last(), Some(&"stopped"));
    assert_eq!(row(&listed, "dead"), ["offline", "lost"]);
    assert_eq!(row(&listed, "odd"), ["unknown"]);
    let online = row(&listed, "host0");
    assert_eq!(
        (online[0], online[3]),
        ("online", env!("CARGO_PKG_VERSION"))
    );

    let (_, stdout, _) = run(&mut program(&broker, "list"), &["--json"]);
    assert!(!stdout.contains('\u{1b}'), "{stdout:?}");
    let lines = stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let host0 = lines
        .into_iter()
        .find(|line| line["host"] == "host0")
        .unwrap();
    assert_eq!(
        (&host0["state"], &host0["status"]["host"]),
        (&"online".into(), &"host0".into())
    );
    assert!(host0["age"].as_u64().unwrap() < 600, "{host0}");

    let arguments = ["hello", "exec", "--discover", "status/%h"];
    let (status, stdout, _) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(status, 0, "{stdout}");
    assert!(stdout.ends_with("3 hosts: 3 succeeded\n"), "{stdout}");
    drop(hosts);

    let (status, _, stderr) = run(&mut program(&broker, "list"), &["-t", "elsewhere/%h"]);
    assert_eq!(
        (status, stderr.as_str()),
        (4, "collectd-live: no host has left its status\n")
    );
    let arguments = ["hello", "exec", "--discover", "elsewhere/%h"];
    let (status, _, stderr) = run(&mut program(&broker, "send-command"), &arguments);
    assert_eq!(
        (status, stderr.as_str()),
        (4, "collectd-live: there are no hosts\n")
    );
}

#[test]
fn ctrl_c_answers_with_what_is_known() {
    if !broker_is_installed("ctrl_c_answers_with_what_is_known") {
        return;
    }
    let broker = Broker::start();
    let (hosts, _) = hosts(&broker, 2);
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut program = program(&broker, "send-command");
        program.args(["slow", "hour", "host0", "host1"]);
        let child = program
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be run");
        // The canary has the command, and it will not end.
        let path = hosts[0].dir.path().join("pid");
        hosts[0].file("pid");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("a child");
        let (status, stdout, stderr) = told(&child.wait_with_output().expect("a child"));
        assert_eq!(status, 130, "{stdout}");
        assert_eq!(stderr, "collectd-live: interrupted\n");
        assert_eq!(row(&stdout, "host0"), ["unknown"]);
        assert_eq!(row(&stdout, "host1"), ["not-sent"]);
        assert!(
            stdout.ends_with("2 hosts: 1 unknown, 1 not-sent\n"),
            "{stdout}"
        );
        let runs = fs::read_to_string(&path).expect("a file");
        rustix::process::kill_process(
            crate::support::process(&runs),
            rustix::process::Signal::KILL,
        )
        .expect("the command runs");
        fs::remove_file(&path).expect("a file");
    }
}

#[test]
fn a_broker_that_is_lost_ends_the_run_with_what_is_known() {
    if !broker_is_installed("a_broker_that_is_lost_ends_the_run_with_what_is_known") {
        return;
    }
    let mut broker = Broker::start();
    let (hosts, _) = hosts(&broker, 3);
    let mut program = program(&broker, "send-command");
    program.args(["host", "stay", "host0", "host1", "host2", "--parallel", "1"]);
    fs::write(hosts[0].dir.path().join("go"), "").expect("a file");
    let child = program
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be run");
    hosts[1].file("stays");
    broker.kill();
    let (status, stdout, stderr) = told(&child.wait_with_output().expect("a child"));
    fs::write(hosts[1].dir.path().join("go"), "").expect("a file");
    assert_eq!(status, 5, "{stdout}");
    assert!(
        stderr.starts_with("collectd-live: the connection is lost: "),
        "{stderr}"
    );
    assert_eq!(row(&stdout, "host0")[0], "succeeded");
    assert_eq!(row(&stdout, "host1"), ["unknown"]);
    assert_eq!(row(&stdout, "host2"), ["not-sent"]);
}

#[test]
fn hosts_answer_a_ping_and_run_nothing() {
    if !broker_is_installed("hosts_answer_a_ping_and_run_nothing") {
        return;
    }
    let broker = Broker::start();
    let (hosts, _) = hosts(&broker, 2);
    let (status, stdout, _) = run(
        &mut program(&broker, "ping"),
        &["host0", "host1", "-c", "2", "--interval", "0.1"],
    );
    assert_eq!(status, 0, "{stdout}");
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{stdout}");
    let version = concat!(" ms, collectd-live ", env!("CARGO_PKG_VERSION"));
    for line in &lines[..4] {
        assert!(
            line.starts_with("host") && line.ends_with(version),
            "{line}"
        );
    }
    assert!(
        lines[4].starts_with("4 asked, 4 answered; minimum "),
        "{stdout}"
    );
    assert_eq!(hosts[0].daemon.count("started"), 0);
    assert_eq!(hosts[0].daemon.count("refused"), 0);

    let arguments = ["host0", "nobody", "--timeout", "1", "--json"];
    let (status, stdout, _) = run(&mut program(&broker, "ping"), &arguments);
    assert_eq!(status, 4, "{stdout}");
    let lines: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2, "{stdout}");
    assert_eq!(
        (&lines[0]["host"], &lines[0]["answered"]),
        (&"host0".into(), &true.into())
    );
    assert!(lines[0]["milliseconds"].as_f64().unwrap() > 0.0);
    assert_eq!(lines[1]["answered"], false);
}

/// Answers for many hosts as lua-collectd-monitor does: a number, and no name.
fn original(broker: &Broker, code: u32) -> (Client, thread::JoinHandle<Vec<String>>) {
    let mut options = MqttOptions::new(format!("original-{code}"), "127.0.0.1", broker.port());
    options.set_inflight(1000);
    let (client, mut connection) = Client::new(options, 10_000);
    client
        .subscribe("commands/#", QoS::AtLeastOnce)
        .expect("room");
    let answers = client.clone();
    let (ready, listens) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        let mut commands = Vec::new();
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Packet::SubAck(_))) => ready.send(()).expect("somebody waits"),
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let text = String::from_utf8(publish.payload.to_vec()).expect("UTF-8");
                    let sent: Value = serde_json::from_str(&text).expect("JSON");
                    let answer = format!(
                        r#"{{"task_id":{},"timestamp":"2020-11-26T00:41:19Z","message":"m","code":{code}}}"#,
                        sent["task_id"]
                    );
                    let topic = publish.topic.replace("commands", "results");
                    answers
                        .publish(topic, QoS::AtLeastOnce, false, answer)
                        .expect("room");
                    commands.push(text);
                }
                Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) | Err(_) => break,
                Ok(_) => {}
            }
        }
        commands
    });
    listens.recv_timeout(SOON).expect("it listens");
    (client, thread)
}

#[test]
fn the_original_answers_a_ping_too() {
    if !broker_is_installed("the_original_answers_a_ping_too") {
        return;
    }
    let broker = Broker::start();
    let (client, thread) = original(&broker, 0x1002);
    let (status, stdout, _) = run(&mut program(&broker, "ping"), &["old"]);
    client.disconnect().expect("it is connected");
    let commands = thread.join().expect("it ended well");
    assert_eq!(status, 0, "{stdout}");
    assert!(
        stdout.contains("a monitor that does not know ping"),
        "{stdout}"
    );
    // It looks up a service that it cannot have, whatever its configuration.
    let sent: Value = serde_json::from_str(&commands[0]).expect("JSON");
    assert_eq!(
        (&sent["service"], &sent["command"]),
        (&"".into(), &"ping".into())
    );
}

#[test]
fn a_thousand_hosts_share_one_connection() {
    if !broker_is_installed("a_thousand_hosts_share_one_connection") {
        return;
    }
    let broker =
        Broker::with("allow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\n");
    let (client, thread) = original(&broker, 0);
    let sender = Sender::listen(&broker, "nothing");
    for number in 0..1000 {
        sender.publish_retained(&format!("status/host{number}"), r#"{"state":"online"}"#);
    }
    eventually("every status is there", SOON, || {
        let (_, stdout, _) = run(&mut program(&broker, "list"), &["--json"]);
        (stdout.lines().count() == 1000).then_some(())
    });
    let before = broker.log().matches("New client connected").count();
    let arguments = [
        "hello",
        "exec",
        "--discover",
        "status/%h",
        "--parallel",
        "1000",
        "--qos",
        "1",
    ];
    let (status, stdout, _) = run(&mut program(&broker, "send-command"), &arguments);
    let connections = broker.log().matches("New client connected").count() - before;
    client.disconnect().expect("it is connected");
    let commands = thread.join().expect("it ended well");
    assert_eq!(status, 0, "{stdout}");
    assert!(stdout.ends_with("1000 hosts: 1000 succeeded\n"), "{stdout}");
    assert_eq!(commands.len(), 1000);
    // One for discovery, one for the commands.
    assert_eq!(connections, 2);
}

#[test]
fn arguments_that_do_not_go_together_are_refused() {
    let broker = ["-h", "127.0.0.1:1"];
    for (arguments, why) in [
        (&["s", "c", "-t", "a/%h"][..], "none is given"),
        (&["s", "c", "-t", "a", "-r", "b/%h"], "none is given"),
        (&["s", "c", "h1", "-t", "a"], "must hold %h"),
        (
            &["s", "c", "h/1", "-t", "a/%h"],
            "cannot be the name of a host",
        ),
        (
            &["s", "c", "--hosts-file", "/nonexistent", "-t", "a/%h"],
            "/nonexistent: No such file",
        ),
        (
            &["s", "c", "--discover", "status", "-t", "a/%h"],
            "must hold %h",
        ),
        (
            &["s", "c", "h", "-t", "a/%h", "--parallel", "0"],
            "--parallel",
        ),
        (&["s", "c", "h", "-t", "a/%h", "--rate", "0"], "--rate"),
        (
            &["s", "c", "h", "-t", "a/%h", "--max-failures", "101%"],
            "--max-failures",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_collectd-live"))
            .arg("send-command")
            .args(broker)
            .args(arguments)
            .output()
            .expect("the program can be run");
        let (status, _, stderr) = told(&output);
        assert_eq!(status, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(why), "{arguments:?}: {stderr}");
    }
}
