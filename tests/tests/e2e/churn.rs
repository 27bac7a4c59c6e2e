//! Many rounds of load, read and unload under AddressSanitizer.

use std::env;
use std::time::{Duration, SystemTime};

use collectd_live_tests::{eventually, Daemon, Variant};

use crate::others::{fail_to_load, PLUGINS_THAT_FAIL};

const DEADLINE: Duration = Duration::from_secs(20);

/// After so many rounds the process must have its final size.
const ROUNDS_TO_SETTLE: u32 = 200;

/// What the rounds after that may add to the memory that is allocated. The
/// buffers of one connection come and go; 20 bytes a round would be over it.
const HEAP_GROWTH_BYTES: f64 = 16.0 * 1024.0;

/// What they may add to the size of the process: 1 KiB a round would be over it.
const RSS_GROWTH_KIB: u64 = 512;

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

/// Repeats `round` in a daemon under AddressSanitizer, which looks for leaks at
/// its end, and checks that what is allocated does not grow. Then repeats it in
/// an ordinary daemon, and checks that the process does not grow:
/// AddressSanitizer's own records of objects do, a few KiB for each.
#[track_caller]
fn assert_no_trace(available: &[&str], round: impl Fn(&Daemon)) {
    let daemon = |variant| {
        available
            .iter()
            .fold(Daemon::builder(variant), |builder, plugin| {
                builder.available(plugin)
            })
    };

    let watched = daemon(Variant::Asan)
        .load_plugin_with("heap", "Interval 0.01")
        .start();
    let (settled, last) = before_and_after(&watched, available, &round, || allocated(&watched));
    watched.stop();
    assert!(
        last <= settled + HEAP_GROWTH_BYTES,
        "after {ROUNDS_TO_SETTLE} rounds {settled} bytes were allocated, at the end {last}"
    );

    let plain = daemon(Variant::Patched).start();
    let (settled, last) = before_and_after(&plain, available, &round, || plain.status().rss_kib);
    plain.stop();
    assert!(
        last <= settled + RSS_GROWTH_KIB,
        "after {ROUNDS_TO_SETTLE} rounds the process had {settled} KiB, at the end {last}"
    );
}

/// What `measure` gives after the rounds it takes to settle, and at the end.
#[track_caller]
fn before_and_after<T>(
    daemon: &Daemon,
    available: &[&str],
    round: impl Fn(&Daemon),
    measure: impl Fn() -> T,
) -> (T, T) {
    let measure_when_gone = || {
        for plugin in available {
            daemon.assert_gone(plugin);
            eventually(
                &format!("the last values of {plugin} to expire"),
                DEADLINE,
                || daemon.last_value_of(plugin).is_none().then_some(()),
            );
        }
        measure()
    };
    for _ in 0..ROUNDS_TO_SETTLE {
        round(daemon);
    }
    let settled = measure_when_gone();
    for _ in ROUNDS_TO_SETTLE..rounds() {
        round(daemon);
    }
    (settled, measure_when_gone())
}

/// The bytes that the daemon has allocated, as the plugin `heap` reports them:
/// the least of some readings, as one may fall into the middle of something.
#[track_caller]
fn allocated(daemon: &Daemon) -> f64 {
    (0..10)
        .filter_map(|_| {
            daemon.wait_for_value_of("heap");
            daemon.getval("heap/count")
        })
        .fold(f64::INFINITY, f64::min)
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
