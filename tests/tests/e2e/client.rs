//! `collectdctl` offers the same as the control socket.

use std::time::Duration;

use collectd_live_tests::{eventually, Daemon, Variant};

/// Proves that the client loads (with options), lists, reloads and unloads, and
/// that scripts can tell by its exit status and output what happened.
#[test]
fn the_client_loads_lists_reloads_and_unloads() {
    let daemon = Daemon::builder(Variant::Patched)
        .load_plugin("memory")
        .available("badconfig")
        .start();

    let loaded = daemon.collectdctl(&[
        "loadplugin",
        "badconfig",
        "interval=0.05",
        "config=Number 1",
    ]);
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    assert!(loaded.stdout.contains("badconfig"), "{loaded:?}");
    daemon.assert_state("badconfig", "READY");
    daemon.wait_for_value_of("badconfig");

    let listing = daemon.collectdctl(&["listplugins"]);
    assert_eq!(listing.code, Some(0), "{listing:?}");
    for (plugin, origin) in [
        ("badconfig", "runtime"),
        ("memory", "file"),
        ("unixsock", "file"),
    ] {
        assert!(
            listing.stdout.lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.starts_with(&[plugin, "READY"]) && words.contains(&origin)
            }),
            "{plugin} is not listed as READY with {origin}: {listing:?}"
        );
    }

    // A configuration of several lines goes through the client unharmed.
    let reloaded =
        daemon.collectdctl(&["reloadplugin", "badconfig", "config=Number 1\nNumber \"2\""]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    eventually("the second number", Duration::from_secs(20), || {
        daemon.getval("badconfig/count").filter(|n| *n == 2.0)
    });

    let unloaded = daemon.collectdctl(&["unloadplugin", "badconfig", "timeout=5"]);
    assert_eq!(unloaded.code, Some(0), "{unloaded:?}");
    daemon.assert_gone("badconfig");
    daemon.stop();
}

/// Proves that a refusal ends the client with an error status and the daemon's
/// reason on standard error.
#[test]
fn the_client_passes_on_what_is_refused() {
    let daemon = Daemon::builder(Variant::Patched)
        .load_plugin("memory")
        .available("cpu")
        .start();
    for (args, reason) in [
        (vec!["loadplugin", "nosuch"], "nosuch"),
        (vec!["loadplugin", "cpu", "colour=blue"], "colour"),
        (
            vec!["loadplugin", "cpu", "config=ReportByCpu true\nReportByCpu"],
            "line 2",
        ),
        (vec!["unloadplugin", "cpu"], "not loaded"),
        (vec!["reloadplugin", "cpu"], "not loaded"),
        (vec!["loadplugin"], ""),
        (vec!["unloadplugin"], ""),
        (vec!["reloadplugin"], ""),
    ] {
        let refused = daemon.collectdctl(&args);
        assert!(
            refused.code.is_some_and(|code| code != 0),
            "{args:?}: {refused:?}"
        );
        assert!(
            !refused.stderr.is_empty(),
            "{args:?} gives no reason: {refused:?}"
        );
        assert!(refused.stderr.contains(reason), "{args:?}: {refused:?}");
    }
    daemon.wait_for_value_of("memory");
    daemon.stop();
}
