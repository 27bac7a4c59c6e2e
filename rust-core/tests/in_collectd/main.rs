//! The plugin `monitor` in a real collectd, with a real broker.

#[path = "../support/mod.rs"]
mod support;

mod cli;
mod commands;
mod connection;
mod errands;
mod lifecycle;
mod load;
mod migrate;
mod panics;
mod recovery;
mod rules;
mod settings;
mod syslog;
mod trust;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use collectd_live_tests::{build_dir, eventually, skip, Builder, Daemon, Variant};
use support::{broker_is_installed, Broker, Sender, SOON};

/// Where ci/build installs things.
fn prefix() -> PathBuf {
    build_dir().join("prefix")
}

/// Whether what these tests need is there. A build of collectd need not have the plugin.
fn can_run(test: &str) -> bool {
    if !prefix().join("lib/collectd/monitor.so").is_file() {
        skip(test, "a collectd that was configured --with-collectd-live");
        return false;
    }
    broker_is_installed(test)
}

/// A daemon whose plugin exec runs a program ten times a second and takes every child's status.
fn daemon() -> Builder {
    Daemon::builder(Variant::Patched)
        .load_plugin("exec")
        .plugin_block("exec", "Exec \"nobody\" \"/bin/true\"")
        .load_plugin("uptime")
        .available("monitor")
}

/// The block for this broker, with the services that most tests use.
fn block(broker: &Broker, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "Host \"{}\"\nCommandTopic \"commands\"\nCommandResultTopic \"results\"\n\
         ReconnectInterval 0.1\nLogLevel \"info\"\n\
         <Service \"hello\">\nCommand \"exec\" \"echo Hello World!\"\n</Service>\n\
         <Service \"exit\">\nCommand \"three\" \"exit 3\"\nCommand \"missing\" \"/nonexistent\"\n\
         Command \"killed\" \"kill -9 $$\"\n</Service>\n\
         <Service \"slow\">\nCommand \"hour\" \"echo $$ > {dir}/slow; sleep 3600\"\n</Service>\n",
        broker.address()
    )
}

/// The installed `collectd-live send-command`, to this broker.
fn send_command(broker: &Broker, service: &str, command: &str) -> Command {
    let mut program = Command::new(prefix().join("bin/collectd-live"));
    program.args(["send-command", service, command, "-h", &broker.address()]);
    program
}

/// Sends a command, and waits for its result.
fn send(broker: &Broker, service: &str, command: &str) -> Output {
    send_command(broker, service, command)
        .args(["-t", "commands", "-r", "results", "--timeout", "30"])
        .output()
        .expect("collectd-live is installed")
}

#[track_caller]
fn listening(daemon: &Daemon, times: usize) {
    eventually("the monitor listens", SOON, || {
        let log = daemon.log();
        (log.matches("listening for commands").count() >= times).then_some(())
    });
}

/// The names of the threads that the monitor has in the daemon, in order.
fn monitor_threads(daemon: &Daemon) -> Vec<String> {
    let mut threads = daemon.status().threads;
    threads.retain(|name| name.starts_with("monitor-"));
    threads.sort();
    threads
}

/// A file that a command writes, when its last line is whole.
#[track_caller]
fn written(path: &Path) -> String {
    eventually(&format!("the file {}", path.display()), SOON, || {
        fs::read_to_string(path)
            .ok()
            .filter(|text| text.ends_with('\n'))
    })
}

/// A daemon that loaded the monitor while it ran, with services from a JSON file.
struct Site {
    daemon: Daemon,
    sender: Sender,
    broker: Broker,
}

impl Site {
    /// A site with the daemon of most tests.
    #[track_caller]
    fn start(services: &str) -> Self {
        Self::with(daemon(), services)
    }

    /// Starts everything, and waits until the monitor listens. `DIR` in the services stands for the
    /// daemon's directory.
    #[track_caller]
    fn with(builder: Builder, services: &str) -> Self {
        Self::at(Broker::start(), builder, services)
    }

    /// The same with this broker.
    #[track_caller]
    fn at(broker: Broker, builder: Builder, services: &str) -> Self {
        let daemon = builder.start();
        let dir = daemon.path(".");
        let services = services.replace("DIR", dir.to_str().expect("UTF-8"));
        let config = write_config(&daemon, &format!("{{ \"Services\": {services} }}"));
        let block = format!("{}MonitorConfigPath \"{config}\"\n", block(&broker, &dir));
        daemon.load("monitor", &[("config", &block)]).expect_ok();
        listening(&daemon, 1);
        Self {
            sender: Sender::listen(&broker, "results"),
            daemon,
            broker,
        }
    }

    /// Checks that a command works and the daemon's own work goes on.
    #[track_caller]
    fn works(&self, task: &str) {
        self.sender.command(task, "hello", "exec");
        let expected = (0, "Hello World!".to_owned());
        assert_eq!(self.sender.code_and_message(task), expected);
        self.daemon.assert_state("monitor", "READY");
        self.daemon.wait_for_value_of("uptime");
    }
}

/// Writes the JSON file that a block may name, and returns its path.
fn write_config(daemon: &Daemon, json: &str) -> String {
    let path = daemon.path("config.json");
    // An editor replaces a file at once, too.
    let new = daemon.path("config.json.new");
    fs::write(&new, json).expect("a file");
    fs::rename(new, &path).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}
