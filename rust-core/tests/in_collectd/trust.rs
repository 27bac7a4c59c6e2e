//! Who may command a host, in a real daemon: signed messages, a hold, and the policy for the control socket.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use collectd_live_tests::{
    eventually, may_change_user, skip, Builder, Collectdctl, Daemon, Variant,
};
use serde_json::{json, Value};

use crate::support::{Broker, SOON};
use crate::{can_run, listening, prefix};

/// A group that every Debian has, and one that nobody in these tests is in.
const DAEMON: u32 = 1;
const NOGROUP: u32 = 65534;
/// What must be in no line of the audit log.
const SECRETS: [&str; 3] = ["xyzzy", "plugh", "frotz"];
/// Members of the control group may change two plugins, and nothing else.
const POLICY: &str = r#"{ "group": { "plugins": ["memory", "cpu"] }, "message": "nothing" }"#;

/// A host with a trust file and an audit log.
struct Host {
    daemon: Daemon,
    broker: Broker,
}

fn builder() -> Builder {
    Daemon::builder(Variant::Patched)
        .open_to_all_users()
        .plugin_block("unixsock", "ControlGroup \"daemon\"")
        .load_plugin("memory")
        .load_plugin("uptime")
        .available("exec")
        .available("monitor")
}

impl Host {
    #[track_caller]
    fn start() -> Self {
        let host = Self {
            broker: Broker::start(),
            daemon: builder().start(),
        };
        host.run(&["key", "generate", &host.path("alice"), "--name", "alice"]);
        let public = host.run(&["key", "show", &host.path("alice")]);
        fs::write(host.path("alice.pub"), public).expect("a file");
        let mut trust = vec!["key".to_owned(), "trust".to_owned()];
        trust.extend([host.path("trust.json"), host.path("alice.pub")]);
        for scope in [
            "--kind=command",
            "--kind=parameters",
            "--kind=hold",
            "--allow=*/*",
            "--target=host:*",
        ] {
            trust.push(scope.to_owned());
        }
        let trust: Vec<&str> = trust.iter().map(String::as_str).collect();
        host.run(&trust);
        host.set_policy(POLICY);
        let words = r#"{ "argv": ["echo", "{word}"], "parameters": { "word": { "type": "string", "pattern": ".*" } } }"#;
        let note = format!("echo ran >> {}", host.path("ran"));
        let config = format!(
            r#"{{ "Services": {{ "say": {{ "commands": {{ "word": {words}, "note": "{note}" }} }} }} }}"#
        );
        fs::write(host.path("config.json"), config).expect("a file");
        host
    }

    fn path(&self, name: &str) -> String {
        self.daemon.path(name).to_str().expect("UTF-8").to_owned()
    }

    fn set_policy(&self, policy: &str) {
        let path = PathBuf::from(self.path("trust.json"));
        let text = fs::read(&path).expect("a file");
        let mut file: Value = serde_json::from_slice(&text).expect("JSON");
        file["policy"] = serde_json::from_str(policy).expect("JSON");
        fs::write(path, file.to_string()).expect("a file");
    }

    fn block(&self) -> String {
        let path = |name: &str| self.path(name);
        format!(
            "Host \"{}\"\nUser \"u\"\nPassword \"xyzzy\"\nCommandTopic \"commands\"\n\
             CommandResultTopic \"results\"\nReconnectInterval 0.1\nLogLevel \"info\"\n\
             MonitorConfigPath \"{}\"\nTrustFile \"{}\"\nAuditLog \"{}\"\nAuditSyslog false\n",
            self.broker.address(),
            path("config.json"),
            path("trust.json"),
            path("audit")
        )
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let (status, text) = self.try_run(arguments);
        assert_eq!(status, 0, "{arguments:?}: {text}");
        text
    }

    fn try_run(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(prefix().join("bin/collectd-live"))
            .args(arguments)
            .output()
            .expect("collectd-live is installed");
        let text = [output.stdout, output.stderr].concat();
        let status = output.status.code().expect("it was not killed");
        (status, String::from_utf8(text).expect("UTF-8"))
    }

    /// Talks to the host by the broker, signed or not.
    fn send(&self, signed: bool, arguments: &[&str]) -> (i32, String) {
        let (address, alice) = (self.broker.address(), self.path("alice"));
        let mut all = arguments.to_vec();
        all.extend(["-h", &address, "-t", "commands", "-r", "results"]);
        if signed {
            all.extend(["--key", &alice, "--for", "host:testhost"]);
        }
        self.try_run(&all)
    }

    fn say(&self, signed: bool) -> (i32, String) {
        self.send(
            signed,
            &["send-command", "say", "word", "--parameter", "word=plugh"],
        )
    }

    fn as_member(&self, arguments: &[&str]) -> Collectdctl {
        self.daemon.collectdctl_as(NOGROUP, &[DAEMON], arguments)
    }

    fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("audit")).unwrap_or_default();
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        text.lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    /// What the log says of plugins: by whom, the verb, the plugin and whether it was allowed.
    fn changes(&self) -> Vec<String> {
        self.audit()
            .iter()
            .filter(|line| line["kind"] == "plugins")
            .map(|line| {
                let text = |key: &str| line[key].as_str().expect(key).to_owned();
                let by = line["by"].to_string();
                format!(
                    "{by} {} {} {}",
                    text("command"),
                    text("plugin"),
                    text("decision")
                )
            })
            .collect()
    }

    #[track_caller]
    fn is_held(&self, held: bool) {
        let expected = if held { 1.0 } else { 0.0 };
        eventually("the value tells whether there is a hold", SOON, || {
            (self.daemon.getval("monitor-trust/bool-held") == Some(expected)).then_some(())
        });
    }
}

#[track_caller]
fn assert_done(result: &Collectdctl) {
    assert_eq!(result.code, Some(0), "{result:?}");
}

#[track_caller]
fn assert_denied(result: &Collectdctl, why: &str) {
    assert_ne!(result.code, Some(0), "{result:?}");
    assert!(result.stderr.contains("Permission denied"), "{result:?}");
    assert!(result.stderr.contains(why), "{result:?}");
}

#[test]
fn what_is_signed_runs_and_a_hold_shows() {
    if !can_run("what_is_signed_runs_and_a_hold_shows") {
        return;
    }
    let host = Host::start();
    host.daemon
        .load("monitor", &[("config", &host.block())])
        .expect_ok();
    listening(&host.daemon, 1);
    let (status, text) = host.say(false);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("is not signed"), "{text}");
    let (status, text) = host.say(true);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("\"message\":\"plugh\""), "{text}");
    host.is_held(false);
    let (status, text) = host.send(true, &["hold", "--reason", "maintenance"]);
    assert_eq!(status, 0, "{text}");
    host.is_held(true);
    let (status, text) = host.say(true);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("maintenance"), "{text}");
    // The hold outlives the monitor.
    host.daemon
        .reload("monitor", &[("config", &host.block())])
        .expect_ok();
    listening(&host.daemon, 2);
    host.is_held(true);
    let (status, text) = host.send(true, &["release"]);
    assert_eq!(status, 0, "{text}");
    host.is_held(false);
    let (status, text) = host.say(true);
    assert_eq!(status, 0, "{text}");
    host.daemon.unload("monitor").expect_ok();
    let mode = fs::metadata(host.path("audit"))
        .expect("a file")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let lines: Vec<_> = host
        .audit()
        .iter()
        .filter(|line| line["kind"] != "plugins")
        .map(|line| {
            let code = line["code"].as_u64().unwrap_or_default();
            (
                line["by"].clone(),
                line["kind"].clone(),
                line["decision"].clone(),
                code,
            )
        })
        .collect();
    let alice = json!({ "key": "alice" });
    let expected = [
        (json!("unsigned"), "command", "refused", 0x3100),
        (alice.clone(), "command", "allowed", 0),
        (alice.clone(), "hold", "allowed", 0),
        (alice.clone(), "command", "refused", 0x310b),
        (alice.clone(), "release", "allowed", 0),
        (alice, "command", "allowed", 0),
    ];
    let expected =
        expected.map(|(by, kind, decision, code)| (by, json!(kind), json!(decision), code));
    assert_eq!(lines, expected);
    // Loading it was decided before it was there.
    assert_eq!(
        host.changes(),
        [
            r#"{"uid":0} reload monitor allowed"#,
            r#"{"uid":0} unload monitor allowed"#
        ]
        .map(|line| line.replace(
            "\"uid\":0",
            &format!("\"uid\":{}", rustix::process::geteuid().as_raw())
        ))
    );
    host.daemon.stop();
}

#[test]
fn the_policy_holds_on_the_control_socket_while_the_monitor_is_there() {
    const NAME: &str = "the_policy_holds_on_the_control_socket_while_the_monitor_is_there";
    if !can_run(NAME) {
        return;
    }
    if !may_change_user() {
        skip(NAME, "root, to become another user");
        return;
    }
    let host = Host::start();
    let daemon = &host.daemon;
    // Before there is a monitor the daemon's own rule holds.
    assert_done(&host.as_member(&["reloadplugin", "uptime"]));
    let block = host.block();
    daemon.load("monitor", &[("config", &block)]).expect_ok();

    assert_done(&host.as_member(&["reloadplugin", "memory"]));
    for (arguments, why) in [
        (
            &["reloadplugin", "uptime"][..],
            "does not allow this plugin",
        ),
        (&["loadplugin", "exec"], "does not name the plugin exec"),
        (&["loadplugin", "cpu"], "does not have this plugin"),
        (
            &["reloadplugin", "memory", "config=ValuesAbsolute frotz"],
            "to give a configuration",
        ),
        (
            &["reloadplugin", "memory", "onfailure=shutdown"],
            "no option but `timeout'",
        ),
        (&["unloadplugin", "monitor"], "decides what they may do"),
    ] {
        assert_denied(&host.as_member(arguments), why);
    }
    assert_denied(
        &daemon.collectdctl_as_nobody(&["unloadplugin", "memory"]),
        "not user ID 65534",
    );
    // Root may.
    let exec = "Exec \"nobody\" \"/bin/true\" \"frotz\"";
    daemon.load("exec", &[("config", exec)]).expect_ok();

    // An edit of the trust file is in force at once; a mistake in it stops everybody but root.
    host.set_policy(r#"{ "group": { "plugins": ["uptime"], "configuration": true } }"#);
    assert_done(&host.as_member(&["reloadplugin", "uptime", "interval=1"]));
    assert_denied(&host.as_member(&["reloadplugin", "memory"]), "not allow");
    let good = fs::read(host.path("trust.json")).expect("a file");
    fs::write(host.path("trust.json"), "{ \"grue\"").expect("a file");
    assert_denied(&host.as_member(&["reloadplugin", "uptime"]), "cannot tell");
    daemon.unload("exec").expect_ok();
    fs::write(host.path("trust.json"), &good).expect("a file");
    assert_done(&host.as_member(&["reloadplugin", "uptime"]));
    // So does one that others could have written.
    let mode = |mode| {
        fs::set_permissions(
            Path::new(&host.path("trust.json")),
            Permissions::from_mode(mode),
        )
    };
    mode(0o666).expect("ours");
    assert_denied(&host.as_member(&["reloadplugin", "uptime"]), "cannot tell");
    mode(0o644).expect("ours");

    let own = r#"{"uid":0}"#;
    let member = r#"{"uid":65534}"#;
    let all = |lines: &[(&str, &str)]| -> Vec<String> {
        lines
            .iter()
            .map(|(by, rest)| format!("{by} {rest}"))
            .collect()
    };
    daemon.unload("monitor").expect_ok();
    assert_eq!(
        host.changes(),
        all(&[
            (member, "reload memory allowed"),
            (member, "reload uptime refused"),
            (member, "load exec refused"),
            (member, "load cpu refused"),
            (member, "reload memory refused"),
            (member, "reload memory refused"),
            (member, "unload monitor refused"),
            (member, "unload memory refused"),
            (own, "load exec allowed"),
            (member, "reload uptime allowed"),
            (member, "reload memory refused"),
            (member, "reload uptime refused"),
            (own, "unload exec allowed"),
            (member, "reload uptime allowed"),
            (member, "reload uptime refused"),
            (own, "unload monitor allowed"),
        ])
    );
    for line in host.audit() {
        let read = line["configurations"].as_array().map_or(0, |list| {
            assert!(list
                .iter()
                .all(|hash| hash.as_str().expect("text").len() == 64));
            list.len()
        });
        // What is refused before it is read has no hash, and what is unloaded has no configuration.
        let expected = line["decision"] == "allowed" && line["command"] != "unload";
        assert!(read == 1 || !expected, "{line}");
        assert_eq!(
            line["decision"] == "refused",
            line["reason"].is_string(),
            "{line}"
        );
    }

    // It is gone, and with it what it decided. When it comes again, so does that.
    assert_done(&host.as_member(&["reloadplugin", "memory"]));
    daemon.load("monitor", &[("config", &block)]).expect_ok();
    assert_denied(&host.as_member(&["reloadplugin", "memory"]), "not allow");
    daemon
        .reload("monitor", &[("config", "Hots \"xyzzy\"")])
        .expect_refused(&["the old configuration is in force again"]);
    assert_denied(&host.as_member(&["reloadplugin", "memory"]), "not allow");
    assert_done(&host.as_member(&["reloadplugin", "uptime"]));
    daemon.unload("monitor").expect_ok();
    // One that could not be started stops everybody but root.
    daemon
        .load("monitor", &[("config", "Hots \"xyzzy\"")])
        .expect_refused(&["FAILED"]);
    assert_denied(
        &host.as_member(&["reloadplugin", "uptime"]),
        "plugin \"monitor\", which decides, is FAILED",
    );
    daemon.reload("memory", &[]).expect_ok();
    host.daemon.stop();
}

#[test]
fn who_may_only_look_cannot_fill_the_audit_log() {
    const NAME: &str = "who_may_only_look_cannot_fill_the_audit_log";
    const BURST: usize = 1000;
    const ATTEMPTS: usize = 1500;
    if !can_run(NAME) {
        return;
    }
    if !may_change_user() {
        skip(NAME, "root, to become another user");
        return;
    }
    let host = Host::start();
    host.daemon
        .load("monitor", &[("config", &host.block())])
        .expect_ok();
    let refused = host.daemon.ask_as_nobody("UNLOADPLUGIN memory", ATTEMPTS);
    assert_eq!(refused.matches("-1 Permission denied").count(), ATTEMPTS);
    eventually("the value tells of lines that are missing", SOON, || {
        let lost = host.daemon.getval("monitor-trust/errors-audit_lost");
        lost.is_some().then_some(())
    });
    host.daemon.unload("monitor").expect_ok();
    let audit = host.audit();
    let (last, others) = audit.split_last().expect("lines");
    assert_eq!(last["by"]["uid"], 0);
    let missing = last["not_logged_before"].as_u64().expect("a number");
    let missing = usize::try_from(missing).expect("not so many");
    assert_eq!(others.len() + missing, ATTEMPTS, "{last}");
    assert!(others.len() >= BURST && missing > 0, "{last}");
    host.daemon.stop();
}

#[test]
fn what_rules_do_with_plugins_is_decided_and_written_down_too() {
    if !can_run("what_rules_do_with_plugins_is_decided_and_written_down_too") {
        return;
    }
    let host = Host::start();
    host.set_policy(r#"{ "local": { "plugins": ["memory", "monitor"] } }"#);
    fs::create_dir(host.path("rules")).expect("a directory");
    let rule = |plugin: &str| {
        format!(
            "{plugin} = {{ match = {{ plugin = 'uptime' }}, handler = function(t)\n\
             if not collectd.state.{plugin} then collectd.state.{plugin} = true\n\
             return {{ reload_plugin = '{plugin}' }} end end }},\n"
        )
    };
    let rules = format!("return {{ {} {} }}\n", rule("memory"), rule("uptime"));
    fs::write(host.path("rules/rules.lua"), rules).expect("a file");
    let block = format!(
        "{}LocalMonitorConfigDir \"{}\"\n",
        host.block(),
        host.path("rules")
    );
    host.daemon
        .load("monitor", &[("config", &block)])
        .expect_ok();
    let by = r#"{"plugin":"monitor"}"#;
    for line in ["reload memory allowed", "reload uptime refused"] {
        let line = format!("{by} {line}");
        eventually(&line, SOON, || host.changes().contains(&line).then_some(()));
    }
    let generation = |name: &str| {
        host.daemon
            .assert_state(name, "READY")
            .field("generation")
            .to_owned()
    };
    assert_eq!(generation("uptime"), "1");
    host.daemon.unload("monitor").expect_ok();
    assert_eq!(generation("memory"), "2");
    host.daemon.stop();
}

#[test]
fn another_user_can_neither_read_nor_write_what_decides_and_what_is_kept() {
    const NAME: &str = "another_user_can_neither_read_nor_write_what_decides_and_what_is_kept";
    if !can_run(NAME) {
        return;
    }
    if !may_change_user() {
        skip(NAME, "root, to become another user");
        return;
    }
    let host = Host::start();
    fs::create_dir(host.path("rules")).expect("a directory");
    fs::write(host.path("rules/good.lua"), "return {}\n").expect("a file");
    let block = format!(
        "{}LocalMonitorConfigDir \"{}\"\n",
        host.block(),
        host.path("rules")
    );
    host.daemon
        .load("monitor", &[("config", &block)])
        .expect_ok();
    listening(&host.daemon, 1);
    let (status, text) = host.say(true);
    assert_eq!(status, 0, "{text}");
    eventually("the audit log has a line", SOON, || {
        (!host.audit().is_empty()).then_some(())
    });

    let mode = |name: &str| {
        let file = fs::metadata(host.path(name)).expect(name);
        file.permissions().mode() & 0o777
    };
    for (name, expected) in [
        ("alice", 0o600),
        ("audit", 0o600),
        ("monitor", 0o700),
        ("monitor/journal", 0o600),
    ] {
        assert_eq!(mode(name), expected, "{name}");
    }
    let nobody = NOGROUP.to_string();
    let as_nobody = |script: &str, name: &str| {
        let output = Command::new("setpriv")
            .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
            .args(["--", "sh", "-c", script, "sh", &host.path(name)])
            .current_dir("/")
            .output()
            .expect("setpriv");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    // It can get as far as these files.
    assert!(as_nobody("cat \"$1\"", "trust.json").0);
    for (name, secret) in [
        ("alice", true),
        ("audit", true),
        ("monitor/journal", true),
        ("trust.json", false),
        ("config.json", false),
        ("rules/good.lua", false),
        ("rules/new.lua", false),
    ] {
        for script in ["cat \"$1\"", "echo >> \"$1\"", "mv \"$1\" \"$1.gone\""] {
            if !secret && script.starts_with("cat") {
                continue;
            }
            let (done, text) = as_nobody(script, name);
            assert!(!done, "{script} {name}");
            let denied = text.contains("Permission denied") || text.contains("No such file");
            assert!(denied, "{script} {name}: {text}");
        }
    }

    // What it has written otherwise does not count.
    let give = |name: &str, uid| {
        std::os::unix::fs::chown(host.path(name), Some(uid), None).expect("we are root");
    };
    fs::write(host.path("rules/new.lua.new"), "return {}\n").expect("a file");
    give("rules/new.lua.new", NOGROUP);
    fs::rename(host.path("rules/new.lua.new"), host.path("rules/new.lua")).expect("a file");
    host.daemon
        .wait_for_log("rules/new.lua: belongs to the user 65534");
    fs::rename(host.path("audit"), host.path("audit.1")).expect("a file");
    fs::write(host.path("audit"), "").expect("a file");
    give("audit", NOGROUP);
    host.daemon.reload("memory", &[]).expect_ok();
    host.daemon.wait_for_log("audit: belongs to the user 65534");
    assert_eq!(fs::read(host.path("audit")).expect("a file"), b"");
    give("audit", 0);
    host.daemon.reload("memory", &[]).expect_ok();
    host.daemon.wait_for_log("is written again");
    host.daemon.unload("monitor").expect_ok();
    assert!(!host.changes().is_empty());
    // A journal of somebody else is not used, and then nothing that is signed runs.
    give("monitor/journal", NOGROUP);
    host.daemon
        .load("monitor", &[("config", &block)])
        .expect_ok();
    listening(&host.daemon, 2);
    host.daemon
        .wait_for_log("journal: belongs to the user 65534");
    let (status, text) = host.say(true);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("12554"), "{text}");
    host.daemon.stop();
}

#[test]
fn a_hold_stops_what_rules_do_too() {
    if !can_run("a_hold_stops_what_rules_do_too") {
        return;
    }
    let host = Host::start();
    fs::create_dir(host.path("rules")).expect("a directory");
    let rules = "return nil, function(n)\n\
                 if n.message == 'run' then return { service = 'say', command = 'note' } end\n\
                 if n.message == 'reload' then return { reload_plugin = 'memory' } end end\n";
    fs::write(host.path("rules/rules.lua"), rules).expect("a file");
    let block = format!(
        "{}LocalMonitorConfigDir \"{}\"\n",
        host.block(),
        host.path("rules")
    );
    host.daemon
        .load("monitor", &[("config", &block)])
        .expect_ok();
    listening(&host.daemon, 1);
    host.daemon.wait_for_log("rules are in force");
    let refused = |by: Value| {
        let lines = host.audit();
        let lines = lines.iter().filter(|line| line["by"] == by);
        lines.filter(|line| line["decision"] == "refused").count()
    };
    let ran = || fs::read_to_string(host.path("ran")).map_or(0, |text| text.lines().count());
    let tell = |message: &str| {
        let line = format!("PUTNOTIF severity=failure time=1500000000 plugin=x message={message}");
        host.daemon.ctl(&line).expect_ok();
    };
    let generation = || {
        let memory = host.daemon.assert_state("memory", "READY");
        memory.field("generation").to_owned()
    };
    tell("run");
    eventually("the rule runs its command", SOON, || {
        (ran() == 1).then_some(())
    });
    let (status, text) = host.send(true, &["hold"]);
    assert_eq!(status, 0, "{text}");
    // A rule is not asked again before it knows what became of the last time.
    for (message, by) in [
        ("run", json!("rule")),
        ("reload", json!({ "plugin": "monitor" })),
    ] {
        eventually(&format!("{message} is refused"), SOON, || {
            tell(message);
            (refused(by.clone()) > 0).then_some(())
        });
    }
    let why = "recovery is on hold for host:testhost until";
    host.daemon.wait_for_log(why);
    assert_eq!((ran(), generation()), (1, "1".to_owned()));
    let (status, text) = host.send(true, &["release"]);
    assert_eq!(status, 0, "{text}");
    eventually("the rule reloads the plugin", SOON, || {
        tell("reload");
        (generation() != "1").then_some(())
    });
    host.daemon.unload("monitor").expect_ok();
    host.daemon.stop();
}
