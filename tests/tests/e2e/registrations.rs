//! Callbacks registered from everywhere, under any name.

use std::fs;
use std::time::Duration;

use collectd_live_tests::{eventually, Daemon, SequenceLog, Variant};

/// How long a step may take that needs nothing but the daemon.
const SOON: Duration = Duration::from_secs(20);

/// What the plugin `everywhere` counts, but for init callbacks.
const KINDS: [&str; 7] = [
    "read",
    "write",
    "flush",
    "notification",
    "log",
    "missing",
    "cache_event",
];

const SERIES: &str = "testhost/seqread/count";

fn calls(daemon: &Daemon, kind: &str) -> f64 {
    daemon
        .getval(&format!("everywhere/count-{kind}"))
        .unwrap_or(0.0)
}

/// Sends traffic until callbacks of every kind have been called.
#[track_caller]
fn wait_for_calls(daemon: &Daemon, what: &str) {
    let mut number = 0;
    eventually(&format!("{what}: calls of every kind"), SOON, || {
        number += 1;
        daemon.ctl("FLUSH").expect_ok();
        daemon
            .ctl("PUTNOTIF severity=okay time=1 message=hello")
            .expect_ok();
        // A value that is new, and goes missing soon.
        daemon
            .putval(&format!("traffic-{number}/count"), 0.01, 1.0)
            .expect_ok();
        // This is logged.
        daemon.load("nosuch", &[]).expect_refused(&["nosuch"]);
        KINDS
            .iter()
            .all(|kind| calls(daemon, kind) > 0.0)
            .then_some(())
    });
}

/// Loads `everywhere`, has callbacks of every kind called and unloads it.
#[track_caller]
fn load_use_unload(daemon: &Daemon, place: &str, name: &str, option: &str) {
    let what = format!("{name:?} in {place}");
    let shutdowns = daemon.path("everywhere-shutdown");
    let config = format!("Name \"{name}\"\n{option}\nWhere \"{place}\"");
    daemon
        .load(
            "everywhere",
            &[("config", &config), ("flushinterval", "0.05")],
        )
        .expect_ok();
    wait_for_calls(daemon, &what);
    if ["config", "init"].contains(&place) {
        assert_eq!(calls(daemon, "init"), 1.0, "{what}");
    }
    assert!(!shutdowns.exists(), "{what}: shut down too early");
    let kinds = daemon.assert_state("everywhere", "READY");
    // Its own, the one with the name and the two of the group; a timer, unless the
    // context is that of whoever has sent a notification.
    let reads = match place {
        "callback" => "read:4",
        _ => "read:5",
    };
    for kind in [reads, "init:2", "shutdown:2"] {
        assert!(
            kinds.field("callbacks").contains(kind),
            "{what}: {kind}, but {kinds:?}"
        );
    }
    let put = || daemon.ctl("PUTVAL testhost/socket/everywhere interval=0.01 N:1");
    put().expect_ok();

    daemon.unload("everywhere").expect_ok();
    daemon.assert_gone("everywhere");
    put().expect_refused(&["everywhere"]);
    assert_eq!(
        fs::read(&shutdowns).expect("a shutdown callback").len(),
        1,
        "{what}"
    );
    fs::remove_file(&shutdowns).expect("taking the file away");
    eventually(&format!("{what}: its values to expire"), SOON, || {
        daemon.last_value_of("everywhere").is_none().then_some(())
    });
}

/// Proves that callbacks of every kind can be registered in a config callback,
/// in an init callback, in a callback that runs while the plugin is ready and in
/// a thread, under the plugin's name or any other; that they are called; and
/// that unloading leaves none of them, nor their memory, behind. The same for
/// groups of readers, timers, types, matches and targets.
#[test]
fn callbacks_can_be_registered_everywhere() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("everywhere")
        .start();
    for place in ["config", "init", "callback", "thread"] {
        for name in ["everywhere", "a name/of its \\\"own\\\"", "unixsock plugin"] {
            load_use_unload(&daemon, place, name, "");
        }
    }
    daemon.stop();
}

/// Proves that a callback that is registered twice is there once: the second
/// replaces the first, or, for readers, is refused.
#[test]
fn callbacks_can_be_registered_twice() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("everywhere")
        .start();
    for place in ["config", "init", "callback", "thread"] {
        load_use_unload(&daemon, place, "twice", "Twice true");
    }
    let log = daemon.stop();
    assert!(log.contains("a callback named `twice' already exists - overwriting"));
    assert!(log.contains("The read function \"twice\" is already registered."));
}

/// Proves that a shutdown callback can unregister everything, itself included:
/// nobody holds a lock that this needs, and nothing is freed twice.
#[test]
fn a_shutdown_callback_can_unregister_everything() {
    let daemon = Daemon::builder(Variant::Asan)
        .available("everywhere")
        .start();
    for place in ["config", "init", "callback", "thread"] {
        let before = daemon.log().len();
        load_use_unload(&daemon, place, "tidy", "Tidy true");
        assert!(
            daemon.log()[before..].contains("everywhere plugin: Everything is unregistered."),
            "{place}: something was not registered"
        );
    }
    daemon.stop();
}

/// Proves that the name of another plugin is refused for every kind that the
/// other one has, wherever it is registered: the other one works on, takes its
/// configuration and loses nothing.
#[test]
fn the_name_of_another_plugin_is_refused() {
    let builder = Daemon::builder(Variant::Asan).available("everywhere");
    let record = builder.path("sequence");
    let sink = format!("File \"{}\"", record.display());
    let daemon = builder
        .load_plugin("seqread")
        .plugin_block("seqread", "Interval 0.01")
        .load_plugin("seqsink")
        .plugin_block("seqsink", &sink)
        .available("badconfig")
        .start();
    let record = SequenceLog::new(&record);
    record.wait_for_more(SERIES, 10);
    daemon
        .load("badconfig", &[("config", "Number 1")])
        .expect_ok();

    for place in ["config", "init", "callback", "thread"] {
        for other in ["seqsink", "seqread", "badconfig"] {
            let config = format!("Name \"{other}\"\nWhere \"{place}\"");
            let before = daemon.log().len();
            daemon
                .load("everywhere", &[("config", &config)])
                .expect_ok();
            eventually(&format!("{other} in {place}: the end"), SOON, || {
                daemon
                    .ctl("PUTNOTIF severity=okay time=1 message=hello")
                    .expect_ok();
                daemon.log()[before..]
                    .contains("everywhere plugin: Everything is registered.")
                    .then_some(())
            });
            let log = daemon.log()[before..].to_owned();
            for refusal in [
                format!("A config callback for `{other}' already exists and belongs to"),
                match other {
                    "seqsink" => format!("A callback named `{other}' already exists and belongs"),
                    _ => format!("The read function \"{other}\" is already registered."),
                },
            ] {
                assert!(log.contains(&refusal), "{other} in {place}: {refusal}");
            }
            if place == "init" {
                // Its configuration still reaches the other one.
                daemon
                    .reload("badconfig", &[("config", "Number 2")])
                    .expect_ok();
                eventually("the second number", SOON, || {
                    daemon.getval("badconfig/count").filter(|n| *n == 2.0)
                });
                daemon
                    .reload("badconfig", &[("config", "Number 1")])
                    .expect_ok();
            }
            daemon.unload("everywhere").expect_ok();
            daemon.assert_gone("everywhere");
        }
    }
    record.wait_for_more(SERIES, 20).assert_complete();
    daemon.wait_for_value_of("badconfig");
    daemon.stop();
}
