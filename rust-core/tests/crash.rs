//! The daemon is killed at each boundary there is, and started again: no task runs twice, every task has a
//! result in the end, and its state has a name.

#[path = "support/mod.rs"]
mod support;

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use collectd_live::boundary::{Boundary, ALL, VARIABLE};
use collectd_live::daemon::Daemon;
use collectd_live::fake::FakeDaemon;
use collectd_live::monitor::Monitor;
use collectd_live::settings::{Block, Value};
use collectd_live_tests::{eventually, skip};
use rustix::process::Signal;
use support::{broker_is_installed, Broker, Sender, SOON};

/// What the host is told by its environment.
const DIR: &str = "COLLECTD_LIVE_TEST_DIR";
const BROKER: &str = "COLLECTD_LIVE_TEST_BROKER";
const QOS: &str = "COLLECTD_LIVE_TEST_QOS";
const PROTOCOL: &str = "COLLECTD_LIVE_TEST_PROTOCOL";

/// Not a test by itself: the other tests run it as a process of its own, which they can kill.
#[test]
#[ignore = "the other tests run it"]
fn host() {
    let dir = PathBuf::from(env::var_os(DIR).expect("the other tests set it"));
    let set = |name| env::var(name).expect("the other tests set it");
    let qos: f64 = set(QOS).parse().expect("a number");
    let path = |name: &str| dir.join(name).to_str().expect("UTF-8").to_owned();
    let block = Block::option("Plugin", [Value::from("monitor")])
        .with("Host", set(BROKER).as_str())
        .with("CommandTopic", "commands")
        .with("CommandResultTopic", "results")
        .with("StatusTopic", "status/%h")
        .with("ReconnectInterval", 0.1)
        .with("LogLevel", "debug")
        .with("QoS", qos)
        .with("Protocol", set(PROTOCOL).as_str())
        .with("StateDir", path("state").as_str())
        .with("MonitorConfigPath", path("config.json").as_str());
    let daemon = Arc::new(FakeDaemon::new("node1"));
    let monitor = Monitor::new(
        Arc::clone(&daemon) as Arc<dyn Daemon>,
        env!("CARGO_BIN_EXE_collectd-live-runner").into(),
    );
    monitor.configure(&block).expect("the block is right");
    monitor.init().expect("it starts");
    // Until whoever started this closes its end.
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .expect("a pipe");
    monitor.shutdown();
    for (level, line) in daemon.lines() {
        eprintln!("{level:?}: {line}");
    }
}

/// A site whose daemon is a process of its own.
struct Site {
    broker: Broker,
    sender: Sender,
    dir: tempfile::TempDir,
    protocol: &'static str,
    qos: u8,
    /// What the daemon is started with: nothing, or a program that runs it.
    prefix: Vec<String>,
}

struct Host {
    child: Child,
}

impl Site {
    fn new(qos: u8) -> Self {
        Self::with_protocol("3.1.1", qos)
    }

    fn with_protocol(protocol: &'static str, qos: u8) -> Self {
        let broker = Broker::start();
        let sender = Sender::listen(&broker, "results");
        let dir = tempfile::tempdir().expect("a directory");
        let services = r#"{ "Services": { "s": { "commands": {
            "run": "echo run >> DIR/runs; echo done",
            "fill": "echo run >> DIR/runs; head -c 60000 /dev/zero | tr '\\0' x" } } } }"#;
        let services = services.replace("DIR", dir.path().to_str().expect("UTF-8"));
        fs::write(dir.path().join("config.json"), services).expect("a file");
        Self {
            broker,
            sender,
            dir,
            protocol,
            qos,
            prefix: Vec::new(),
        }
    }

    /// Starts the daemon, and waits until it listens.
    fn start(&self, die_at: Option<Boundary>) -> Host {
        let subscribed = || {
            let log = self.broker.log();
            log.matches("Sending SUBACK to collectd-monitor-node1")
                .count()
        };
        let before = subscribed();
        let program = env::current_exe().expect("this test");
        let mut words = self.prefix.clone();
        words.push(program.to_str().expect("UTF-8").to_owned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["host", "--exact", "--ignored", "--nocapture"])
            .env(DIR, self.dir.path())
            .env(BROKER, self.broker.address())
            .env(QOS, self.qos.to_string())
            .env(PROTOCOL, self.protocol)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        if let Some(boundary) = die_at {
            command.env(VARIABLE, format!("{boundary:?}"));
        }
        let host = Host {
            child: command.spawn().expect("the host can be started"),
        };
        eventually("the host listens", SOON, || {
            (subscribed() > before).then_some(())
        });
        host
    }

    /// How often commands ran.
    fn runs(&self) -> usize {
        let runs = fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default();
        runs.lines().count()
    }
}

impl Host {
    /// Waits until it was killed.
    #[track_caller]
    fn dies(&mut self, why: &str) {
        let status = eventually(&format!("the daemon dies: {why}"), SOON, || {
            self.child.try_wait().expect("a child")
        });
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{why}");
    }

    fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its standard input closes, so it ends by itself unless something is wrong.
        drop(self.child.stdin.take());
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("the host ends", SOON, || {
                self.child.try_wait().expect("a child")
            })
        }));
        if ended.is_err() {
            self.kill();
        }
    }
}

/// How a task must have ended whose daemon died at a boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It ran once, and its result is known. The broker still had it, or the journal.
    Finished,
    /// It did not run, and never will.
    NotRun,
    /// It may have run, and is not run again.
    Interrupted,
}

/// A boundary without a line here does not compile.
fn fate(boundary: Boundary) -> Fate {
    match boundary {
        Boundary::BeforeAccepted => Fate::Finished,
        Boundary::AfterAccepted
        | Boundary::BeforeAcknowledged
        | Boundary::BeforeStarted
        | Boundary::AfterStarted
        | Boundary::BeforeRun => Fate::NotRun,
        Boundary::AfterRun
        | Boundary::BeforeFork
        | Boundary::AfterExec
        | Boundary::BeforeWait
        | Boundary::AfterWait
        | Boundary::BeforeFinished => Fate::Interrupted,
        Boundary::AfterFinished
        | Boundary::BeforeDelivered
        | Boundary::AfterDelivered
        | Boundary::BeforeCompacted
        | Boundary::AfterCompacted => Fate::Finished,
    }
}

fn dies_and_comes_back(boundary: Boundary, protocol: &'static str, qos: u8) {
    let what = format!("{boundary:?} with MQTT {protocol} at QoS {qos}");
    let site = Site::with_protocol(protocol, qos);
    let mut host = site.start(Some(boundary));
    let message = site.sender.command("1", "s", "run");
    host.dies(&what);
    let _host = site.start(None);
    let first = site.sender.result("1");
    let (code, runs) = (first["code"].as_u64().expect("a number"), site.runs());
    match fate(boundary) {
        Fate::Finished => assert_eq!((code, runs), (0, 1), "{what}: {first}"),
        Fate::NotRun => assert_eq!((code, runs), (0x3002, 0), "{what}: {first}"),
        Fate::Interrupted => {
            assert_eq!(code, 0x3002, "{what}: {first}");
            assert_eq!(first["state"], "interrupted", "{what}");
            assert!(runs <= 1, "{what}: {runs} times");
        }
    }
    // Whoever sends it again gets the same answer, and it is not run.
    let known = site.sender.results("1").len();
    site.sender.publish("commands", message);
    let all = eventually("the recorded result", SOON, || {
        Some(site.sender.results("1")).filter(|all| all.len() > known)
    });
    assert_eq!(all.last(), Some(&first), "{what}");
    site.sender.command("2", "s", "run");
    assert_eq!(site.sender.code_and_message("2").0, 0, "{what}");
    let expected = if fate(boundary) == Fate::NotRun {
        1
    } else {
        runs + 1
    };
    assert_eq!(site.runs(), expected, "{what}");
}

fn is_of_compaction(boundary: Boundary) -> bool {
    matches!(
        boundary,
        Boundary::BeforeCompacted | Boundary::AfterCompacted
    )
}

#[test]
fn a_daemon_that_dies_at_any_boundary_runs_nothing_twice_and_loses_no_result() {
    if !broker_is_installed(
        "a_daemon_that_dies_at_any_boundary_runs_nothing_twice_and_loses_no_result",
    ) {
        return;
    }
    for (protocol, qos) in [("3.1.1", 1), ("3.1.1", 2), ("5", 1), ("5", 2)] {
        for boundary in ALL.iter().filter(|boundary| !is_of_compaction(**boundary)) {
            dies_and_comes_back(*boundary, protocol, qos);
        }
    }
}

#[test]
fn a_daemon_that_dies_while_the_journal_changes_halves_loses_nothing() {
    if !broker_is_installed("a_daemon_that_dies_while_the_journal_changes_halves_loses_nothing") {
        return;
    }
    for boundary in ALL.iter().filter(|boundary| is_of_compaction(**boundary)) {
        let site = Site::new(2);
        let mut host = site.start(Some(*boundary));
        let mut sent = Vec::new();
        // Each takes about 60 KB of 4 MB.
        for task in 1..=100 {
            if host.child.try_wait().expect("a child").is_some() {
                break;
            }
            let task = task.to_string();
            sent.push(site.sender.command(&task, "s", "fill"));
            eventually("the result, or the end of the daemon", SOON, || {
                let dead = host.child.try_wait().expect("a child").is_some();
                (dead || !site.sender.results(&task).is_empty()).then_some(())
            });
        }
        host.dies(&format!("{boundary:?}"));
        assert!(sent.len() > 50, "{} tasks fill the journal", sent.len());
        let _host = site.start(None);
        for task in 1..=sent.len() {
            let (code, message) = site.sender.code_and_message(&task.to_string());
            assert!(
                (code == 0 && message.len() == 60_000) || code == 0x3002,
                "task {task}: {code}"
            );
        }
        let runs = site.runs();
        assert!(runs <= sent.len(), "{runs} runs of {}", sent.len());
        // Not one of them is run again.
        for (index, message) in sent.iter().enumerate() {
            let task = (index + 1).to_string();
            let known = site.sender.results(&task).len();
            site.sender.publish("commands", message.as_str());
            eventually("an answer to the duplicate", SOON, || {
                (site.sender.results(&task).len() > known).then_some(())
            });
        }
        site.sender.command("\"last\"", "s", "run");
        assert_eq!(site.sender.code_and_message("\"last\"").0, 0);
        assert_eq!(site.runs(), runs + 1);
    }
}

#[test]
fn the_broker_says_that_a_daemon_has_died() {
    if !broker_is_installed("the_broker_says_that_a_daemon_has_died") {
        return;
    }
    let site = Site::new(1);
    let watcher = Sender::listen(&site.broker, "status/node1");
    let mut host = site.start(None);
    eventually("the daemon is online", SOON, || {
        (watcher.received().len() == 1).then_some(())
    });
    host.kill();
    let all = eventually("the daemon is offline", SOON, || {
        Some(watcher.received()).filter(|all| all.len() == 2)
    });
    let expected = r#"{"state":"offline","host":"node1","reason":"lost"}"#;
    assert_eq!(all[1], expected);
}

/// Mounts an image of a small filesystem in a namespace of its own, which lives as long as this process.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new(dir: &Path) -> Option<Self> {
        let script = "set -e; mkdir state; truncate -s 12M image; mkfs.ext4 -q -m 0 image; \
                      mount -o loop image state || mount -t tmpfs -o size=9M none state; \
                      echo ready; exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut ready = [0; 6];
        match holder.stdout.as_mut()?.read_exact(&mut ready) {
            Ok(()) => Some(Self { holder }),
            Err(_) => {
                holder.wait().expect("a child");
                None
            }
        }
    }

    fn prefix(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        // The tests may have another root than the namespace.
        ["nsenter", "--mount", "--root", "--target", &pid]
            .map(str::to_owned)
            .to_vec()
    }

    /// Runs a line of shell in it.
    fn run(&self, dir: &Path, line: &str) -> String {
        let prefix = self.prefix();
        let output = Command::new(&prefix[0])
            .args(&prefix[1..])
            .args(["sh", "-c", line])
            .current_dir("/")
            .env("DIR", dir)
            .output()
            .expect("nsenter is part of Debian");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().expect("a child");
    }
}

#[test]
fn on_a_full_filesystem_a_command_runs_and_runs_once() {
    let name = "on_a_full_filesystem_a_command_runs_and_runs_once";
    if !broker_is_installed(name) {
        return;
    }
    let mut site = Site::new(2);
    let Some(namespace) = Namespace::new(site.dir.path()) else {
        skip(name, "the right to mount a filesystem in a namespace");
        return;
    };
    site.prefix = namespace.prefix();
    let host = site.start(None);
    site.sender.command("1", "s", "run");
    assert_eq!(site.sender.code_and_message("1").0, 0);
    let dir = site.dir.path().to_owned();
    // Until nothing is left that was only reserved.
    let full = "for size in 65536 1024 1024 512; do \
                dd if=/dev/zero bs=$size >> $DIR/state/fill; sync; done; echo x > $DIR/state/more || echo full";
    assert_eq!(namespace.run(&dir, full), "full\n");
    let message = site.sender.command("2", "s", "run");
    assert_eq!(site.sender.code_and_message("2").0, 0);
    // So many that the journal changes halves.
    for task in 3..=100 {
        site.sender.command(&task.to_string(), "s", "fill");
        assert_eq!(site.sender.code_and_message(&task.to_string()).0, 0);
    }
    drop(host);
    let mut host = site.start(None);
    host.kill();
    let _host = site.start(None);
    site.sender.publish("commands", message);
    eventually("an answer to the duplicate", SOON, || {
        (site.sender.results("2").len() == 2).then_some(())
    });
    site.sender.command("101", "s", "run");
    assert_eq!(site.sender.code_and_message("101").0, 0);
    assert_eq!(site.runs(), 101);
}
