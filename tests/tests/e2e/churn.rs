//! Many rounds of load, read and unload under AddressSanitizer.

use std::env;
use std::time::{Duration, SystemTime};

use collectd_live_tests::{eventually, Daemon, Variant};

use crate::others::{fail_to_load, PLUGINS_THAT_FAIL};

const DEADLINE: Duration = Duration::from_secs(20);

/// After so many rounds the process must have its final size.
const ROUNDS_TO_SETTLE: u32 = 200;

/// What the rounds after that may add to the memory in use. The size of one
/// connection's buffers comes and goes; 20 bytes a round would be over it.
const HEAP_GROWTH_BYTES: f64 = 16.0 * 1024.0;

/// What they may add to the size of the process. AddressSanitizer's own records
/// grow for a while; objects that stay mapped would be over it.
const RSS_GROWTH_KIB: u64 = 8 * 1024;

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

/// Repeats `round`, checks that memory in use does not grow, then ends the
/// daemon, which checks for leaks.
#[track_caller]
fn assert_no_trace(available: &[&str], round: impl Fn(&Daemon)) {
    let daemon = available
        .iter()
        .fold(Daemon::builder(Variant::Asan), |builder, plugin| {
            builder.available(plugin)
        })
        .load_plugin_with("heap", "Interval 0.01")
        .start();
    for _ in 0..ROUNDS_TO_SETTLE {
        round(&daemon);
    }
    let settled = memory(&daemon, available);
    for _ in ROUNDS_TO_SETTLE..rounds() {
        round(&daemon);
    }
    let last = memory(&daemon, available);
    daemon.stop();
    assert!(
        last.heap <= settled.heap + HEAP_GROWTH_BYTES
            && last.rss_kib <= settled.rss_kib + RSS_GROWTH_KIB,
        "the daemon has grown from {settled:?} to {last:?}"
    );
}

/// What a daemon uses when all plugins but its own are gone.
#[derive(Debug)]
struct Memory {
    /// Bytes allocated, as the plugin `heap` reports them.
    heap: f64,
    rss_kib: u64,
}

fn memory(daemon: &Daemon, gone: &[&str]) -> Memory {
    for plugin in gone {
        daemon.assert_gone(plugin);
        eventually(
            &format!("the last values of {plugin} to expire"),
            DEADLINE,
            || daemon.last_value_of(plugin).is_none().then_some(()),
        );
    }
    // The least of some readings: one may fall into the middle of something.
    let heap = (0..10)
        .filter_map(|_| {
            daemon.wait_for_value_of("heap");
            daemon.getval("heap/count")
        })
        .fold(f64::INFINITY, f64::min);
    Memory {
        heap,
        rss_kib: daemon.status().rss_kib,
    }
}

/// Loads a plugin, waits for one value and unloads it.
#[track_caller]
fn load_read_unload(daemon: &Daemon, plugin: &str) {
    let start = SystemTime::now();
    daemon.load(plugin, &[("interval", "0.01")]).expect_ok();
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
