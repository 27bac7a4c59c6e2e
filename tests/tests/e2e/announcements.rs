//! Changes of state are lines in the log and notifications.

use std::fs;
use std::time::Duration;

use collectd_live_tests::{eventually, Daemon, Variant};

/// How long a step may take that needs nothing but the daemon.
const SOON: Duration = Duration::from_secs(20);

/// What is told of a plugin, in order: in the log, and in notifications, which
/// the plugin logfile logs, with their severity.
fn told(log: &str, plugin: &str) -> (Vec<String>, Vec<(String, String)>) {
    let mut lines = Vec::new();
    let mut notifications = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Notification: severity = ") {
            let severity = rest.split(',').next().unwrap_or_default();
            let sender = format!("plugin = collectd, type = lifecycle, type_instance = {plugin},");
            if let (true, Some((_, message))) =
                (rest.contains(&sender), rest.split_once("message = "))
            {
                notifications.push((severity.to_owned(), message.to_owned()));
            }
        } else if let Some((_, message)) = line.split_once("lifecycle: ") {
            if message.starts_with(&format!("Plugin \"{plugin}\"")) {
                lines.push(message.to_owned());
            }
        }
    }
    (lines, notifications)
}

/// Checks that what was told of a plugin since the log had `before` bytes is
/// this, in the log and in notifications, each once. `F` at the beginning stands
/// for a failure; a message may go on after the text.
#[track_caller]
fn assert_told(daemon: &Daemon, before: usize, plugin: &str, expected: &[&str]) {
    let since = || told(&daemon.log()[before..], plugin);
    eventually("the notifications", SOON, || {
        (since().1.len() >= expected.len()).then_some(())
    });
    let (lines, notifications) = since();
    let matches = |message: &str, expected: &str| {
        let text = expected.trim_start_matches("F ");
        let text = text.strip_prefix("is ").map_or_else(
            || format!("Plugin \"{plugin}\"{text}"),
            |state| format!("Plugin \"{plugin}\" is {state}"),
        );
        message.starts_with(&text)
    };
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    assert_eq!(notifications.len(), expected.len(), "{notifications:#?}");
    for (i, expected) in expected.iter().enumerate() {
        assert!(matches(&lines[i], expected), "{expected}: {lines:#?}");
        let (severity, message) = &notifications[i];
        assert!(matches(message, expected), "{expected}: {notifications:#?}");
        let failure = expected.starts_with("F ");
        assert_eq!(
            severity,
            if failure { "FAILURE" } else { "OKAY" },
            "{message}"
        );
    }
}

/// Proves that each change of state of an operation that succeeds is told once,
/// in the log and in a notification, and that the last one is its outcome.
#[test]
fn each_change_of_state_is_told_once() {
    let daemon = Daemon::builder(Variant::Asan)
        .load_plugin("memory")
        .available("badconfig")
        .start();
    let start = daemon.log().len();
    daemon
        .load("badconfig", &[("config", "Number 1")])
        .expect_ok();
    assert_told(
        &daemon,
        start,
        "badconfig",
        &[
            "is LOADING.",
            "is CONFIGURING.",
            "is INITIALIZING.",
            "is loaded and READY.",
        ],
    );

    let start = daemon.log().len();
    daemon
        .reload("badconfig", &[("config", "Number 2")])
        .expect_ok();
    assert_told(
        &daemon,
        start,
        "badconfig",
        &[
            "is DRAINING.",
            "is unloaded.",
            "is LOADING.",
            "is CONFIGURING.",
            "is INITIALIZING.",
            "is loaded with its new configuration and READY.",
        ],
    );

    let start = daemon.log().len();
    daemon.unload("badconfig").expect_ok();
    assert_told(
        &daemon,
        start,
        "badconfig",
        &["is DRAINING.", "is unloaded."],
    );
    let log = daemon.stop();
    let (lines, notifications) = told(&log, "memory");
    assert!(
        lines.is_empty() && notifications.is_empty(),
        "start-up is told: {lines:?} {notifications:?}"
    );
}

/// Proves the same of operations that fail in the middle.
#[test]
fn each_change_of_state_on_the_way_back_is_told_once() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("badconfig")
        .start();
    let start = daemon.log().len();
    daemon
        .load("badconfig", &[("config", "Refuse true")])
        .expect_refused(&[]);
    assert_told(
        &daemon,
        start,
        "badconfig",
        &["is LOADING.", "is CONFIGURING.", "F is loaded but FAILED"],
    );

    let start = daemon.log().len();
    daemon
        .load("badconfig", &[("config", "Number 1")])
        .expect_ok();
    assert_told(
        &daemon,
        start,
        "badconfig",
        &[
            "is DRAINING.",
            "is unloaded.",
            "is LOADING.",
            "is CONFIGURING.",
            "is INITIALIZING.",
            "is loaded and READY.",
        ],
    );

    let start = daemon.log().len();
    daemon
        .reload("badconfig", &[("config", "Refuse true")])
        .expect_refused(&[]);
    assert_told(
        &daemon,
        start,
        "badconfig",
        &[
            "is DRAINING.",
            "is unloaded.",
            "is LOADING.",
            "is CONFIGURING.",
            "F is FAILED.",
            "is DRAINING.",
            "is unloaded.",
            "is LOADING.",
            "is CONFIGURING.",
            "is INITIALIZING.",
            "F : the new configuration has failed",
        ],
    );
    daemon.stop();
}

/// Proves that an operation that is refused tells whoever has asked, and the
/// log, but sends no notification: nothing has changed. One that fails as busy
/// does, because the plugin was about to go.
#[test]
fn what_changes_nothing_is_not_notified() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("badconfig")
        .available("hang")
        .start();
    daemon.unload("badconfig").expect_refused(&["not loaded"]);
    daemon
        .load("badconfig", &[("config", "Number <")])
        .expect_refused(&["line 1"]);

    let entered = daemon.path("entered");
    let release = daemon.path("release");
    let config = format!(
        "Entered \"{}\"\nRelease \"{}\"",
        entered.display(),
        release.display()
    );
    let start = daemon.log().len();
    daemon.load("hang", &[("config", &config)]).expect_ok();
    assert_told(
        &daemon,
        start,
        "hang",
        &[
            "is LOADING.",
            "is CONFIGURING.",
            "is INITIALIZING.",
            "is loaded and READY.",
        ],
    );
    eventually("the callback to hang", SOON, || {
        entered.exists().then_some(())
    });
    let start = daemon.log().len();
    daemon
        .unload_within("hang", Duration::from_millis(100))
        .expect_refused(&["busy"]);
    assert_told(&daemon, start, "hang", &["is DRAINING.", "F is busy"]);
    fs::write(&release, "").expect("letting the callback return");

    let (lines, notifications) = told(&daemon.log(), "badconfig");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(notifications.is_empty(), "{notifications:?}");
    daemon.stop();
}
