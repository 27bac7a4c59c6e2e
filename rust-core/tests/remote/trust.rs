//! Signed messages through a real broker, from the program that makes the keys to the command that runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;

use collectd_live_tests::eventually;

use crate::support::{broker_is_installed, Broker, Sender, SOON};
use crate::{block, Running};

const PROGRAM: &str = env!("CARGO_BIN_EXE_collectd-live");

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .expect("the program can be run")
}

#[track_caller]
fn key(arguments: &[&str]) -> String {
    let mut all = vec!["key"];
    all.extend(arguments);
    let output = run(PROGRAM, &all);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The files of a site: an operator's key, one of the host, and what the host trusts.
struct Site {
    dir: Rc<tempfile::TempDir>,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            dir: Rc::new(tempfile::tempdir().expect("a directory")),
        };
        key(&["generate", &site.path("alice"), "--name", "alice"]);
        let public = key(&["generate", &site.path("host"), "--name", "node1"]);
        fs::write(site.path("hosts"), format!("# hosts\n{public}")).expect("a file");
        fs::write(site.path("alice.pub"), key(&["show", &site.path("alice")])).expect("a file");
        site
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.dir.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    fn trust(&self, scope: &[&str]) {
        let (file, public) = (self.path("trust.json"), self.path("alice.pub"));
        let mut arguments = vec!["trust", &file, &public];
        arguments.extend(scope);
        key(&arguments);
    }

    fn monitor(&self, broker: &Broker) -> Running {
        let block = block(broker)
            .with("TrustFile", self.path("trust.json").as_str())
            .with("StatusTopic", "status")
            .with("HostKey", self.path("host").as_str())
            .with("AuditLog", self.path("audit").as_str());
        Running::in_dir(block, &self.dir).listening()
    }

    fn send(&self, broker: &Broker, arguments: &[&str]) -> (i32, String) {
        let address = broker.address();
        let mut all = vec![
            arguments[0],
            "-h",
            &address,
            "-t",
            "commands",
            "-r",
            "results",
        ];
        all.extend(&arguments[1..]);
        let output = run(PROGRAM, &all);
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().expect("it was not killed"),
            String::from_utf8(text).expect("UTF-8"),
        )
    }

    fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path("audit")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }
}

const WIDE: [&str; 8] = [
    "--kind", "command", "--kind", "hold", "--allow", "*/*", "--target", "host:*",
];

#[test]
fn a_signed_command_runs_once_and_its_result_can_be_believed() {
    if !broker_is_installed("a_signed_command_runs_once_and_its_result_can_be_believed") {
        return;
    }
    let broker = Broker::start();
    let site = Site::new();
    site.trust(&WIDE);
    // Mallory sees everything, and can publish anything.
    let mallory = Sender::listen(&broker, "#");
    let monitor = site.monitor(&broker);
    let (alice, hosts) = (site.path("alice"), site.path("hosts"));
    let signed = [
        "--key",
        &alice,
        "--for",
        "host:node1",
        "--host-keys",
        &hosts,
    ];
    let count = |more: &[&str]| {
        let mut all = vec!["send-command", "count", "up"];
        all.extend(more);
        site.send(&broker, &all)
    };
    let (status, text) = count(&signed);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("counted"), "{text}");
    let (status, text) = count(&[]);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("is not signed"), "{text}");
    // Without a result that the host has signed, there is none.
    let (status, text) = count(&["--host-keys", &hosts, "--timeout", "2"]);
    assert_eq!(status, 3, "{text}");
    let other = site.path("alice.pub");
    let (status, text) = count(&[
        "--key",
        &alice,
        "--for",
        "host:node1",
        "--host-keys",
        &other,
        "--timeout",
        "2",
    ]);
    assert_eq!(status, 4, "{text}");
    assert!(
        text.contains("not signed by a key that is trusted"),
        "{text}"
    );

    // What was sent is sent again, and in pieces.
    let envelopes = eventually("mallory has seen both envelopes", SOON, || {
        let all = mallory.received();
        let found: Vec<_> = all
            .into_iter()
            .filter(|text| text.starts_with("ey"))
            .collect();
        (found.len() == 2).then_some(found)
    });
    let ran = |name: &str| {
        let text = fs::read_to_string(site.path(name)).unwrap_or_default();
        text.lines().count()
    };
    assert_eq!(ran("count"), 2);
    for envelope in &envelopes {
        mallory.publish("commands", envelope.as_str());
        mallory.publish("commands", &envelope[..envelope.len() - 1]);
        mallory.publish("commands", format!("{envelope}="));
        mallory.publish("commands", envelope.replacen("ey", "fy", 1));
    }
    let (status, text) = count(&signed);
    assert_eq!(status, 0, "{text}");
    assert_eq!(ran("count"), 3);

    // Held, and released.
    let (status, text) = site.send(
        &broker,
        &[
            "hold",
            "--key",
            &alice,
            "--for",
            "host:node1",
            "--reason",
            "we move",
        ],
    );
    assert_eq!(status, 0, "{text}");
    let (status, text) = count(&signed);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("we move"), "{text}");
    eventually("the status tells of the hold", SOON, || {
        let all = mallory.received();
        let held = |text: &String| text.contains("\"hold\":{\"target\":\"host:node1\"");
        all.iter().any(held).then_some(())
    });
    let (status, text) = site.send(
        &broker,
        &["release", "--key", &alice, "--for", "host:node1"],
    );
    assert_eq!(status, 0, "{text}");
    let (status, text) = count(&signed);
    assert_eq!(status, 0, "{text}");

    // Revoked.
    key(&["revoke", &site.path("trust.json"), "alice"]);
    let (status, text) = count(&signed);
    assert_eq!(status, 3, "{text}");
    assert_eq!(ran("count"), 4);
    drop(monitor);
    let audit = site.audit();
    let codes: Vec<_> = audit
        .iter()
        .filter(|line| line["decision"] == "refused")
        .map(|line| line["code"].as_u64().expect("a number"))
        .collect();
    for code in [0x3100, 0x3101, 0x310b, 0x3102] {
        assert!(codes.contains(&code), "{code:x}: {audit:?}");
    }
    let allowed = audit.iter().filter(|line| line["decision"] == "allowed");
    assert_eq!(allowed.filter(|line| line["service"] == "count").count(), 4);
    assert!(
        audit.iter().any(|line| line["decision"] == "repeated"),
        "{audit:?}"
    );
    let text = fs::read_to_string(site.path("audit")).expect("a file");
    assert!(!text.contains("counted"), "{text}");
}

#[test]
fn with_signatures_not_required_messages_are_those_of_before() {
    if !broker_is_installed("with_signatures_not_required_messages_are_those_of_before") {
        return;
    }
    let broker = Broker::start();
    let site = Site::new();
    site.trust(&WIDE);
    let block = block(&broker)
        .with("TrustFile", site.path("trust.json").as_str())
        .with("AuditLog", site.path("audit").as_str())
        .with("RequireSignature", false);
    let monitor = Running::in_dir(block, &site.dir).listening();
    let (status, text) = site.send(&broker, &["send-command", "hello", "exec"]);
    assert_eq!(status, 0, "{text}");
    let alice = site.path("alice");
    let signed = [
        "send-command",
        "hello",
        "exec",
        "--key",
        &alice,
        "--for",
        "host:node1",
    ];
    let (status, text) = site.send(&broker, &signed);
    assert_eq!(status, 0, "{text}");
    drop(monitor);
    let audit = site.audit();
    let reason = audit[0]["reason"].as_str().expect("a string");
    assert!(
        reason.contains("messages without a signature are acted upon"),
        "{reason}"
    );
    assert_eq!(audit[1]["by"], "unsigned");
    assert_eq!(audit[2]["by"]["key"], "alice");
}

#[test]
fn another_user_can_neither_read_a_key_nor_change_who_is_trusted() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        collectd_live_tests::skip(
            "another_user_can_neither_read_a_key_nor_change_who_is_trusted",
            "root",
        );
        return;
    }
    let site = Site::new();
    site.trust(&WIDE);
    let dir = site.dir.path();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("ours");
    // Where cargo builds, others may not look.
    let program = dir.join("collectd-live");
    fs::copy(PROGRAM, &program).expect("a file");
    let as_nobody = |arguments: &[&str]| {
        let output = Command::new(&program)
            .args(arguments)
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .output()
            .expect("the program can be run");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        (output.status.code().expect("it was not killed"), text)
    };
    let (trust, alice, public) = (
        site.path("trust.json"),
        site.path("alice"),
        site.path("alice.pub"),
    );
    let before = fs::read(&trust).expect("a file");
    let (status, text) = as_nobody(&["key", "show", &alice]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("Permission denied"), "{text}");
    let attempts: [&[&str]; 3] = [
        &["key", "trust", &trust, &public],
        &["key", "revoke", &trust, "alice"],
        &["key", "generate", &site.path("new")],
    ];
    for attempt in attempts {
        let (status, text) = as_nobody(attempt);
        assert_eq!(status, 2, "{attempt:?}: {text}");
    }
    assert_eq!(fs::read(&trust).expect("a file"), before);
    // A key that everybody can read is not used, not even by its owner.
    fs::set_permissions(Path::new(&alice), fs::Permissions::from_mode(0o644)).expect("ours");
    let output = run(
        PROGRAM,
        &[
            "send-command",
            "-t",
            "c",
            "--key",
            &alice,
            "--for",
            "all",
            "web",
            "restart",
        ],
    );
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("can be read by others") && text.contains("chmod g-r,o-r"),
        "{text}"
    );
}
