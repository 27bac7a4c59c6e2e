//! The connection: not there yet, there, lost, and refused.

use std::fs;

use collectd_live_tests::{eventually, Daemon};

use crate::support::{Broker, SOON};
use crate::{block, can_run, daemon, listening, send, send_command, write_config};

/// What every secret of these tests begins with.
const SECRET: &str = "swordfish";

/// Checks that no secret is where users look.
#[track_caller]
fn assert_no_secret(daemon: &Daemon) {
    let lines = daemon.ctl("LISTPLUGINS").expect_ok().lines;
    assert!(!lines.concat().contains(SECRET), "{lines:?}");
    for file in ["log", "stdout", "stderr"] {
        let text = fs::read_to_string(daemon.path(file)).expect("a file of the daemon");
        assert!(!text.contains(SECRET), "in the daemon's {file}: {text}");
    }
}

#[test]
fn it_starts_with_the_daemon_and_finds_the_broker_whenever_it_comes() {
    if !can_run("it_starts_with_the_daemon_and_finds_the_broker_whenever_it_comes") {
        return;
    }
    let mut broker = Broker::prepared("allow_anonymous true\n", |_| {});
    let builder = daemon().load_plugin("monitor");
    let block = block(&broker, &builder.path(".")).replace("\"info\"", "\"debug\"");
    let block = format!("{block}User \"u\"\nPassword \"swordfish\"\n");
    let daemon = builder.plugin_block("monitor", &block).start();
    daemon.wait_for_log("cannot connect to the broker");
    daemon.assert_state("monitor", "READY");
    daemon.wait_for_value_of("uptime");
    for times in 1..=3 {
        broker.start_again();
        listening(&daemon, times);
        assert_eq!(send(&broker, "hello", "exec").status.code(), Some(0));
        daemon.wait_for_value_of("uptime");
        broker.kill();
        eventually("the broker is missed", SOON, || {
            (daemon.log().matches("is lost").count() >= times).then_some(())
        });
        daemon.wait_for_value_of("uptime");
    }
    assert_no_secret(&daemon);
    daemon.stop();
}

#[test]
fn it_is_loaded_and_unloaded_though_there_is_no_broker() {
    if !can_run("it_is_loaded_and_unloaded_though_there_is_no_broker") {
        return;
    }
    let broker = Broker::prepared("allow_anonymous true\n", |_| {});
    let daemon = daemon().start();
    let block = block(&broker, &daemon.path("."));
    for round in 1..=2 {
        daemon.load("monitor", &[("config", &block)]).expect_ok();
        eventually("the broker is missed", SOON, || {
            let log = daemon.log();
            (log.matches("cannot connect to the broker").count() == round).then_some(())
        });
        daemon.unload("monitor").expect_ok();
        assert!(daemon.plugin("monitor").is_none());
    }
    daemon.wait_for_value_of("uptime");
    daemon.stop();
}

#[test]
fn a_wrong_password_is_named_once_and_no_secret_is_shown() {
    if !can_run("a_wrong_password_is_named_once_and_no_secret_is_shown") {
        return;
    }
    let broker = Broker::with_user("monitor", "swordfish-right", |_| {});
    let daemon = daemon().start();
    let block = block(&broker, &daemon.path(".")).replace("\"info\"", "\"debug\"");
    let refused = |times: usize| {
        const NAMED: &str = "trying again: not authorized";
        eventually("the broker refuses it again and again", SOON, || {
            let log = daemon.log();
            let since = log.split(NAMED).nth(times)?;
            (since.matches("still cannot connect").count() >= 3).then_some(())
        });
        let log = daemon.log();
        assert_eq!(log.matches(NAMED).count(), times, "{log}");
    };
    let answers = [
        // In the block.
        {
            let block = format!(
                "{block}User \"monitor\"\nPassword \"swordfish-block\"\n\
                 <Service \"quiet\">\nCommand \"exec\" \": swordfish-line\"\n</Service>\n"
            );
            let answer = daemon.load("monitor", &[("config", &block)]).expect_ok();
            refused(1);
            answer.text
        },
        // In the file, which wins.
        {
            let file = r#"{ "Password": "swordfish-file" }"#;
            let file = write_config(&daemon, file);
            let block = format!(
                "{block}User \"monitor\"\nPassword \"swordfish-right\"\n\
                 MonitorConfigPath \"{file}\"\n"
            );
            let answer = daemon.reload("monitor", &[("config", &block)]).expect_ok();
            refused(2);
            answer.text
        },
        {
            let file = r#"{
                "User": "monitor", "Password": "swordfish-right",
                "Services": { "hello": { "commands": { "exec": "echo ${#swordfish_line}" } } }
            }"#;
            let file = write_config(&daemon, file);
            let block = format!(
                "{block}User \"other\"\nPassword \"swordfish-block\"\n\
                 MonitorConfigPath \"{file}\"\n"
            );
            let answer = daemon.reload("monitor", &[("config", &block)]).expect_ok();
            listening(&daemon, 1);
            answer.text
        },
    ];
    assert!(!answers.concat().contains(SECRET), "{answers:?}");

    let send = |password: &str| {
        send_command(&broker, "hello", "exec")
            .args(["-t", "commands", "-r", "results", "-u", "monitor"])
            .args(["--timeout", "30"])
            .env("COLLECTD_LIVE_PASSWORD", password)
            .output()
            .expect("collectd-live is installed")
    };
    let output = send("swordfish-right");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = send("swordfish-wrong");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("not authorized"), "{stderr}");
    assert!(!stderr.contains(SECRET), "{stderr}");
    assert_no_secret(&daemon);

    // Mistakes next to a secret, and mistakes in one.
    daemon.unload("monitor").expect_ok();
    for (file, parts) in [
        (
            "{ \"Password\": \"swordfish-file\" \"User\": 1 }",
            "1:32: expected",
        ),
        ("{ \"Password\": \"swordfish\\q\" }", "1:26: invalid escape"),
        ("{ \"Password\": [\"swordfish-file\"] }", "1:15: Password"),
        ("\"swordfish-file\"", "must be an object"),
    ] {
        let file = write_config(&daemon, file);
        let wrong = format!("{block}MonitorConfigPath \"{file}\"\n");
        let reply = daemon.load("monitor", &[("config", &wrong)]);
        let reason = reply.expect_refused(&["config.json", parts]);
        assert!(!reason.contains(SECRET), "{reason}");
    }
    for (option, parts) in [
        ("Password \"swordfish-block\" \"more\"", "takes one value"),
        ("Passwort \"swordfish-block\"", "Passwort: is not a setting"),
        ("Password \"swordfish-block\"", "of no use without a User"),
    ] {
        let wrong = format!("{block}{option}\n");
        let reply = daemon.load("monitor", &[("config", &wrong)]);
        let reason = reply.expect_refused(&[parts]);
        assert!(!reason.contains(SECRET), "{reason}");
    }
    daemon.assert_state("monitor", "FAILED");
    assert_no_secret(&daemon);
    daemon.stop();
}
