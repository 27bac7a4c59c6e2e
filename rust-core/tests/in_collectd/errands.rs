//! A central server whose rules recover other hosts: metrics come by the plugin network, commands go over MQTT.

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use collectd_live_tests::{eventually, own_address, Daemon, Variant};

use crate::support::{Broker, SOON};
use crate::{can_run, listening, prefix};

/// Each test has an address of its own.
fn address() -> SocketAddrV4 {
    static PORT: AtomicU16 = AtomicU16::new(27_000);
    own_address(PORT.fetch_add(1, Ordering::Relaxed))
}

/// A host with a service, which is a directory and well as long as that is empty, and a central server.
struct Pair {
    web1: Daemon,
    central: Daemon,
    broker: Broker,
    fault: PathBuf,
    /// Where the keys are.
    keys: tempfile::TempDir,
}

impl Pair {
    /// Commands go to `commands/%h`, or to a topic without the host's name.
    #[track_caller]
    fn start(topic: &str, scope: &[&str]) -> Self {
        let broker = Broker::start();
        let address = address();
        let (ip, port) = (address.ip(), address.port());
        let builder = Daemon::builder(Variant::Patched)
            .interval("0.1")
            .option("Hostname \"web1\"")
            .load_plugin("network")
            .plugin_block("network", &format!("Server \"{ip}\" \"{port}\""))
            .available("filecount")
            .available("monitor");
        let service = builder.path("service");
        fs::create_dir(&service).expect("a directory");
        let web1 = builder.start();
        let builder = Daemon::builder(Variant::Patched)
            .interval("0.1")
            .load_plugin("network")
            .plugin_block("network", &format!("Listen \"{ip}\" \"{port}\""))
            .available("monitor");
        let rules = builder.path("rules");
        fs::create_dir(&rules).expect("a directory");
        fs::write(
            rules.join("files.lua"),
            "return { broken = {
               match = { plugin = 'filecount', type = 'files', foreign = true },
               handler = function(m)
                 if m.values[1] > 0 then
                   return { host = m.host, service = 'files', command = 'remove', verify = '20s' }
                 end
               end } }",
        )
        .expect("a file");
        let pair = Self {
            fault: service.join("fault"),
            web1,
            central: builder.start(),
            broker,
            keys: tempfile::tempdir().expect("a directory"),
        };
        pair.make_keys(scope);

        let directory = service.display();
        let key = |name: &str| pair.keys.path().join(name).display().to_string();
        let address = pair.broker.address();
        let common = format!(
            "Host \"{address}\"\nCommandTopic \"{topic}\"\nCommandResultTopic \"results/%h\"\n\
             ReconnectInterval 0.1\nLogLevel \"info\"\n"
        );
        let block = format!(
            "{common}TrustFile \"{}\"\nHostKey \"{}\"\n<Service \"files\">\n\
             Command \"remove\" \"rm {directory}/fault && echo removed\"\n</Service>\n",
            key("trust.json"),
            key("web1")
        );
        pair.web1.load("monitor", &[("config", &block)]).expect_ok();
        listening(&pair.web1, 1);
        let block = format!("<Directory \"{directory}\">\nInstance \"fake\"\n</Directory>\n");
        pair.web1
            .load("filecount", &[("config", &block), ("interval", "0.1")])
            .expect_ok();
        let block = format!(
            "{common}LocalMonitorConfigDir \"{}\"\nRuleKey \"{}\"\nRuleHostKeys \"{}\"\n",
            rules.display(),
            key("central"),
            key("hosts")
        );
        pair.central
            .load("monitor", &[("config", &block)])
            .expect_ok();
        pair.central.wait_for_log("rules are in force");
        pair.central.wait_for_value_of("filecount");
        pair
    }

    /// The central server's key, which web1 trusts within a scope, and that of web1.
    fn make_keys(&self, scope: &[&str]) {
        let key = |arguments: &[&str]| {
            let output = Command::new(prefix().join("bin/collectd-live"))
                .arg("key")
                .args(arguments)
                .current_dir(self.keys.path())
                .output()
                .expect("collectd-live is installed");
            assert!(output.status.success(), "{output:?}");
            output.stdout
        };
        let write = |name: &str, text: Vec<u8>| {
            fs::write(self.keys.path().join(name), text).expect("a file");
        };
        let central = key(&["generate", "central", "--name", "central"]);
        write("central.pub", central);
        write("hosts", key(&["generate", "web1", "--name", "web1"]));
        let trust = [
            "trust",
            "trust.json",
            "central.pub",
            "--kind",
            "command",
            "--target",
            "host:*",
        ];
        key(&[&trust, scope].concat());
    }

    fn break_down(&self) {
        fs::write(&self.fault, "").expect("a file");
    }

    /// Waits until the central server has sent so many notifications about a host.
    #[track_caller]
    fn notified(&self, severity: &str, host: &str, text: &str, times: usize) {
        let start = format!("Notification: severity = {severity}, host = {host}, ");
        eventually(&format!("{severity} {host} {text}"), SOON, || {
            let log = self.central.log();
            let lines = log.lines().filter(|line| line.contains(&start));
            (lines.filter(|line| line.contains(text)).count() >= times).then_some(())
        });
    }
}

#[test]
fn a_rule_has_another_host_recover_and_sees_that_it_has() {
    if !can_run("a_rule_has_another_host_recover_and_sees_that_it_has") {
        return;
    }
    let pair = Pair::start("commands/%h", &["--allow", "files/*"]);
    for fault in 1..=2 {
        pair.break_down();
        pair.notified("OKAY", "web1", r#""message":"removed"#, fault);
        pair.notified("OKAY", "testhost", "recovered", fault);
        assert!(!pair.fault.exists());
    }
    pair.central.stop_and(|log| {
        assert_eq!(log.matches(r#""message":"removed"#).count(), 2, "{log}");
        assert!(!log.contains("not run"), "{log}");
    });
    pair.web1.stop();
}

#[test]
fn a_host_does_what_the_central_server_may_and_no_more() {
    if !can_run("a_host_does_what_the_central_server_may_and_no_more") {
        return;
    }
    let pair = Pair::start("commands/%h", &["--allow", "web/*"]);
    pair.break_down();
    // The host's own words come back, and the rule gives up.
    pair.notified("FAILURE", "web1", r#""code":"#, 1);
    pair.notified("FAILURE", "testhost", "nothing is done until", 1);
    assert!(pair.fault.exists());
    let log = pair.web1.log();
    assert!(
        log.contains("service=\"files\" command=\"remove\""),
        "{log}"
    );
}

#[test]
fn other_hosts_are_out_of_reach_without_their_topics() {
    if !can_run("other_hosts_are_out_of_reach_without_their_topics") {
        return;
    }
    let pair = Pair::start("commands", &["--allow", "files/*"]);
    pair.central
        .wait_for_log("RuleKey is of no use: this monitor cannot send commands to other hosts");
    pair.break_down();
    pair.central.wait_for_log("its CommandTopic holds no %h");
    pair.notified("FAILURE", "testhost", "nothing is done until", 1);
    assert!(pair.fault.exists());
}
