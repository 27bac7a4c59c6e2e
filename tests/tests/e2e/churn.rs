//! Many rounds of load, read and unload under AddressSanitizer.

use std::env;
use std::time::SystemTime;

use collectd_live_tests::{Daemon, Variant};

use crate::others::{fail_to_load, PLUGINS_THAT_FAIL};

/// After so many rounds the process must have its final size.
const ROUNDS_TO_SETTLE: u32 = 200;

/// What a thousand rounds may add: less than one KiB a round.
const GROWTH_KIB: u64 = 512;

/// How many rounds: `COLLECTD_LIVE_ROUNDS`, or a thousand.
fn rounds() -> u32 {
    match env::var("COLLECTD_LIVE_ROUNDS") {
        Err(env::VarError::NotPresent) => 1000,
        Ok(text) => text
            .parse()
            .ok()
            .filter(|rounds| *rounds > ROUNDS_TO_SETTLE)
            .unwrap_or_else(|| {
                panic!("COLLECTD_LIVE_ROUNDS={text:?} is not a number above {ROUNDS_TO_SETTLE}")
            }),
        Err(e) => panic!("COLLECTD_LIVE_ROUNDS: {e}"),
    }
}

/// Repeats `round`, checks the size of the process, then ends the daemon, which
/// checks for leaks.
#[track_caller]
fn assert_no_trace(available: &[&str], round: impl Fn(&Daemon)) {
    let daemon = available
        .iter()
        .fold(Daemon::builder(Variant::Asan), |builder, plugin| {
            builder.available(plugin)
        })
        .start();
    for _ in 0..ROUNDS_TO_SETTLE {
        round(&daemon);
    }
    let settled_kib = daemon.status().rss_kib;
    for _ in ROUNDS_TO_SETTLE..rounds() {
        round(&daemon);
    }
    let final_kib = daemon.status().rss_kib;
    for plugin in available {
        daemon.assert_gone(plugin);
    }
    daemon.stop();
    assert!(
        final_kib <= settled_kib + GROWTH_KIB,
        "the daemon has grown from {settled_kib} KiB to {final_kib} KiB"
    );
}

/// Loads a plugin, waits for one value and unloads it.
#[track_caller]
fn load_read_unload(daemon: &Daemon, plugin: &str) {
    let start = SystemTime::now();
    daemon.load(plugin, &[("interval", "0.05")]).expect_ok();
    daemon.wait_for_value_since(plugin, start);
    daemon.unload(plugin).expect_ok();
}

/// Proves that `cpu` can come and go for ever.
#[test]
fn cpu_leaves_no_trace() {
    assert_no_trace(&["cpu"], |daemon| load_read_unload(daemon, "cpu"));
}

/// Proves that `memory` can come and go for ever.
#[test]
fn memory_leaves_no_trace() {
    assert_no_trace(&["memory"], |daemon| load_read_unload(daemon, "memory"));
}

/// Proves that `load` can come and go for ever.
#[test]
fn load_leaves_no_trace() {
    assert_no_trace(&["load"], |daemon| load_read_unload(daemon, "load"));
}

/// Proves that `uptime` can come and go for ever.
#[test]
fn uptime_leaves_no_trace() {
    assert_no_trace(&["uptime"], |daemon| load_read_unload(daemon, "uptime"));
}

/// Proves that callbacks of every kind, each with memory of its own, can come
/// and go for ever.
#[test]
fn callbacks_of_every_kind_leave_no_trace() {
    assert_no_trace(&["early"], |daemon| load_read_unload(daemon, "early"));
}

/// Proves that loads may fail for ever.
#[test]
fn loads_that_fail_leave_no_trace() {
    assert_no_trace(PLUGINS_THAT_FAIL, fail_to_load);
}
