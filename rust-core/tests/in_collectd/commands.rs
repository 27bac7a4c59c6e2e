//! Commands that go wrong, and what a command sees of the daemon.

use std::fs;

use collectd_live_tests::{eventually, Daemon, Variant};
use rustix::process::{kill_process, kill_process_group, Signal};

use crate::support::{is_gone, process, rubbish, Broker, Sender, SOON, WRONG_TYPES};
use crate::{block, can_run, daemon, listening, monitor_threads, written, Site};

/// The services of these tests. The kernel shows a command what it was given.
const SERVICES: &str = r#"{
    "hello": { "commands": { "exec": "echo Hello World!" } },
    "slow": { "commands": { "hour": "echo $PPID > DIR/helper; echo $$ > DIR/slow; sleep 3600" } },
    "hung": { "commands": { "forever": { "argv": ["/bin/sh", "DIR/hung.sh"], "timeout": 0.5 } } },
    "much": { "commands": {
        "megabytes": "head -c 10000000 /dev/zero | tr '\\0' x",
        "small": { "argv": ["/usr/bin/printf", "aéé"], "max_output": 4 } } },
    "self": { "commands": {
        "status": { "argv": ["/bin/cat", "/proc/self/status"] },
        "descriptors": { "argv": ["/bin/ls", "/proc/self/fd"] },
        "files": "readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2 /proc/$$/cwd" } }
}"#;

#[test]
fn rubbish_changes_nothing() {
    if !can_run("rubbish_changes_nothing") {
        return;
    }
    let site = Site::start(SERVICES);
    let threads = monitor_threads(&site.daemon);
    let rubbish = rubbish();
    let count = rubbish.len();
    for payload in rubbish {
        site.sender.publish("commands", payload);
    }
    eventually("all of it is seen", SOON, || {
        let log = site.daemon.log();
        (log.matches("a message is not understood").count() == count).then_some(())
    });
    site.works("\"after rubbish\"");
    // None of it was answered.
    assert_eq!(site.sender.received().len(), 1);

    for (index, rest) in WRONG_TYPES.into_iter().enumerate() {
        let task = index.to_string();
        let message = format!(r#"{{"task_id":{task},{rest}}}"#);
        site.sender.publish("commands", message);
        assert_eq!(site.sender.code_and_message(&task).0, 0x3000, "{rest}");
    }
    site.works("\"after wrong types\"");

    assert_eq!(monitor_threads(&site.daemon), threads);
    let log = site.broker.log();
    let connected = log.matches(" as collectd-monitor-testhost ").count();
    assert_eq!(connected, 1, "{log}");
    let log = site.daemon.stop();
    assert_eq!(log.matches("is lost").count(), 0, "{log}");
}

#[test]
fn what_is_refused_is_told_with_its_code() {
    if !can_run("what_is_refused_is_told_with_its_code") {
        return;
    }
    let site = Site::start(SERVICES);
    let sender = &site.sender;
    for (task, service, command, code) in [
        ("1", "nosuch", "exec", 0x1002),
        ("2", "", "exec", 0x1002),
        ("3", "hello", "nosuch", 0x1003),
        // The name of a command is no pattern, and no command line.
        ("4", "hello", "*", 0x1003),
        ("5", "hello", "exec; exit 9", 0x1003),
    ] {
        sender.command(task, service, command);
        assert_eq!(sender.code_and_message(task).0, code, "{service} {command}");
    }
    sender.publish("commands", r#"{"task_id":6,"config":"LoadPlugin cpu"}"#);
    assert_eq!(sender.code_and_message("6").0, 0x1000);
    sender.command("7", "slow", "hour");
    sender.command("7", "hello", "exec");
    assert_eq!(sender.code_and_message("7").0, 0x1100);
    site.works("8");
    site.daemon.stop();
}

#[test]
fn without_services_nothing_can_be_run() {
    if !can_run("without_services_nothing_can_be_run") {
        return;
    }
    let broker = Broker::start();
    let daemon = daemon().start();
    let block = block(&broker, &daemon.path("."));
    let (block, _) = block.split_once("<Service").expect("a block with services");
    daemon.load("monitor", &[("config", block)]).expect_ok();
    listening(&daemon, 1);
    let sender = Sender::listen(&broker, "results");
    sender.command("1", "hello", "exec");
    assert_eq!(sender.code_and_message("1").0, 0x1001);
    daemon.assert_state("monitor", "READY");
    daemon.stop();
}

#[test]
fn a_hung_command_is_killed_with_its_group_while_others_run() {
    if !can_run("a_hung_command_is_killed_with_its_group_while_others_run") {
        return;
    }
    let site = Site::start(SERVICES);
    let pids = site.daemon.path("pids");
    // The shell, its child and its grandchild, all of which ignore TERM.
    let script = format!(
        "trap '' TERM\n\
         echo begun\n\
         sh -c 'sleep 3600 & echo $$ $! >> {0}; wait' &\n\
         echo $$ $! >> {0}\n\
         wait\n",
        pids.display()
    );
    fs::write(site.daemon.path("hung.sh"), script).expect("a file");
    site.sender.command("1", "hung", "forever");
    let pids = eventually("the shell and its descendants run", SOON, || {
        let text = fs::read_to_string(&pids).unwrap_or_default();
        let pids: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        (text.lines().count() == 2 && text.ends_with('\n')).then_some(pids)
    });
    assert_eq!(pids.len(), 4, "{pids:?}");
    site.works("2");
    let result = site.sender.result("1");
    assert_eq!(
        (&result["code"], &result["state"]),
        (&0x3001.into(), &"timed-out".into())
    );
    assert_eq!(
        result["message"],
        "begun\n[ended after 0.5 s, because it took too long]"
    );
    for pid in &pids {
        assert!(is_gone(pid), "{pid} of {pids:?} is still there");
    }
    site.works("3");
    let received = site.sender.received();
    assert_eq!(received.len(), 3, "{received:?}");
    // The other command did not wait for the end of the hung one.
    assert!(received[0].starts_with("{\"task_id\":2,"), "{received:?}");
    site.daemon.stop();
}

#[test]
fn output_is_capped_and_marked() {
    if !can_run("output_is_capped_and_marked") {
        return;
    }
    let site = Site::start(SERVICES);
    site.sender.command("1", "much", "megabytes");
    let (code, message) = site.sender.code_and_message("1");
    assert_eq!(code, 0);
    let (output, mark) = message.split_at(65_536);
    assert!(output.bytes().all(|byte| byte == b'x'));
    assert_eq!(mark, "\n[truncated: 10000000 bytes in all]");
    site.sender.command("2", "much", "small");
    let expected = (0, "aé\n[truncated: 5 bytes in all]".to_owned());
    assert_eq!(site.sender.code_and_message("2"), expected);
    site.works("3");
    site.daemon.stop();
}

/// A line of a process's status.
#[track_caller]
fn status_line<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        Some(rest.trim())
    });
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// A set of signals, of which the first bit is signal 1. Two of them belong to libc, which lets nobody touch
/// them: they are as whoever started the tests left them.
#[track_caller]
fn signals(status: &str, name: &str) -> u64 {
    const OF_LIBC: u64 = (1 << (32 - 1)) | (1 << (33 - 1));
    let set = u64::from_str_radix(status_line(status, name), 16).expect("a number");
    set & !OF_LIBC
}

/// Checks that a command has nothing of the daemon. Its task ids start with `task`.
#[track_caller]
fn assert_clean(site: &Site, task: &str) {
    let run = |command: &str| {
        let task = format!("\"{task} {command}\"");
        site.sender.command(&task, "self", command);
        let (code, message) = site.sender.code_and_message(&task);
        assert_eq!(code, 0, "{message}");
        message
    };
    let status = run("status");
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(signals(&status, set), 0, "{set} in {status}");
    }
    assert_eq!(status_line(&status, "Umask"), "0022");
    // The last one is of the directory that ls lists.
    assert_eq!(run("descriptors"), "0\n1\n2\n3");
    let files = run("files");
    let files: Vec<_> = files.lines().collect();
    assert_eq!(files.len(), 4, "{files:?}");
    assert_eq!([files[0], files[3]], ["/dev/null", "/"]);
    assert!(files[1].starts_with("pipe:"), "{files:?}");
    assert!(files[2].starts_with("pipe:"), "{files:?}");
    assert_ne!(files[1], files[2]);
}

#[test]
fn a_command_has_no_signals_and_descriptors_of_the_daemon() {
    if !can_run("a_command_has_no_signals_and_descriptors_of_the_daemon") {
        return;
    }
    // Without exec, which catches the signal of its children. The daemon ignores it, and has this to pass on:
    let builder = Daemon::builder(Variant::Patched)
        .load_plugin("uptime")
        .available("monitor");
    let site = Site::with(builder, SERVICES);
    let path = format!("/proc/{}/status", site.daemon.pid());
    let status = fs::read_to_string(path).expect("a process");
    for signal in [Signal::PIPE, Signal::CHILD] {
        let bit = 1 << (signal.as_raw() - 1);
        assert_ne!(signals(&status, "SigIgn") & bit, 0, "{signal:?}: {status}");
    }
    assert_clean(&site, "first");

    // The helper's successor is started by a thread that blocks signals.
    site.sender.command("1", "slow", "hour");
    let shell = process(&written(&site.daemon.path("slow")));
    let helper = process(&written(&site.daemon.path("helper")));
    let name = fs::read_to_string(format!("/proc/{helper}/comm")).expect("a process");
    assert_eq!(name, "collectd-live-r\n");
    kill_process(helper, Signal::KILL).expect("a process");
    let result = site.sender.result("1");
    assert_eq!(
        (&result["code"], &result["state"]),
        (&0x3002.into(), &"interrupted".into())
    );
    // Nobody watches it any more but this test.
    kill_process_group(shell, Signal::KILL).expect("a process group");
    eventually("the command is gone", SOON, || {
        is_gone(&shell.to_string()).then_some(())
    });
    assert_clean(&site, "second");
    site.works("2");
    site.daemon.stop();
}
