//! Plugins that leave something of themselves behind.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use collectd_live_tests::{eventually, Daemon, Variant};

const SOON: Duration = Duration::from_secs(20);

/// Proves that a plugin whose code something still points to when it has been
/// shut down stays in memory: unloading it is refused with the reason, as often as
/// it is tried, and what points to it goes on working.
#[test]
fn what_points_into_a_plugin_keeps_it() {
    let daemon = Daemon::builder(Variant::Asan)
        .load_plugin("memory")
        .available("remains")
        .start();
    daemon
        .load("remains", &[("config", "Leave handler")])
        .expect_ok();
    let reason = "there is still a pointer into it: handler of signal";
    daemon
        .unload("remains")
        .expect_refused(&["cannot be unloaded and is FAILED", reason]);
    let failed = daemon.assert_state("remains", "FAILED");
    assert!(failed.field("error").contains(reason), "{failed:?}");
    daemon.unload("remains").expect_refused(&[reason]);
    daemon
        .load("remains", &[("config", "Leave handler")])
        .expect_refused(&["cannot be loaded again", reason]);
    assert!(daemon.is_mapped("remains"), "the object is gone");

    let caught = daemon.path("caught");
    daemon.signal(Signal::USR2);
    eventually("the handler to run", SOON, || caught.exists().then_some(()));
    daemon.wait_for_value_of("memory");
    daemon.stop();
}

/// Proves that the answer says so when the object of a plugin stays in memory, and
/// that it is not used again: its variables are not as they were at first.
#[test]
fn an_object_that_stays_in_memory_is_not_used_again() {
    let daemon = Daemon::builder(Variant::Patched)
        .available("remains")
        .start();
    daemon
        .load("remains", &[("config", "Leave object")])
        .expect_ok();
    let reply = daemon.unload("remains").expect_ok();
    assert!(
        reply.text.contains("its object stays in memory"),
        "{reply:?}"
    );
    assert_eq!(daemon.plugin("remains"), None);
    assert!(daemon.is_mapped("remains"), "the object is gone");
    daemon
        .load("remains", &[])
        .expect_refused(&["cannot be loaded again", "still in memory"]);
    assert_eq!(daemon.plugin("remains"), None);
    daemon.stop();
}

/// Proves that it is used again if the plugin has said that it can cope with that,
/// which it is listed with.
#[test]
fn an_object_that_stays_in_memory_can_cope_with_that() {
    let daemon = Daemon::builder(Variant::Patched)
        .available("remains")
        .start();
    fs::write(daemon.path("remains-copes"), "").expect("a file");
    for generation in 1..=3 {
        daemon
            .load("remains", &[("config", "Leave object")])
            .expect_ok();
        let plugin = daemon.assert_state("remains", "READY");
        assert_eq!(plugin.field("unloadable"), "yes", "{plugin:?}");
        assert_eq!(plugin.field("resident"), "yes", "{plugin:?}");
        assert_eq!(plugin.field("generation"), generation.to_string());
        daemon.wait_for_log(&format!("remains plugin: Registered {generation} times."));

        let table = daemon.collectdctl(&["listplugins"]).stdout;
        let row = table
            .lines()
            .find(|line| line.starts_with("remains"))
            .unwrap_or_else(|| panic!("remains is not in\n{table}"));
        assert_eq!(row.split_whitespace().nth(5), Some("resident"), "{table}");
        let json = daemon.collectdctl(&["-j", "listplugins"]).stdout;
        let list: Vec<Value> = serde_json::from_str(&json).expect("JSON");
        assert!(
            list.iter()
                .any(|p| p["name"] == "remains" && p["resident"] == true),
            "{json}"
        );

        let reply = daemon.unload("remains").expect_ok();
        assert!(
            reply.text.contains("its object stays in memory"),
            "{reply:?}"
        );
        assert_eq!(daemon.plugin("remains"), None);
    }
    daemon.stop();
}
