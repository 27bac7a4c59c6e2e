//! Many rounds of load, use and unload under AddressSanitizer.

use std::env;
use std::time::{Duration, SystemTime};

use collectd_live_tests::{eventually, Daemon, Variant};

use crate::others::{fail_to_load, PLUGINS_THAT_FAIL};

mod chains;
mod failures;
mod readers;
mod services;
mod values;
mod writers;

const DEADLINE: Duration = Duration::from_secs(20);

/// How many rounds a test makes.
#[derive(Clone, Copy)]
struct Rounds {
    /// After so many the process must have its final size.
    to_settle: u32,
    /// All of them, unless `COLLECTD_LIVE_ROUNDS` says otherwise.
    in_all: u32,
}

const MANY: Rounds = Rounds {
    to_settle: 200,
    in_all: 1000,
};

/// For plugins with no more than a list or a handle to lose.
const FEW: Rounds = Rounds {
    to_settle: 50,
    in_all: 200,
};

/// The least that `COLLECTD_LIVE_ROUNDS` can be.
const FEWEST_ROUNDS: u32 = MANY.to_settle + 1;

impl Rounds {
    fn in_all(self) -> u32 {
        match env::var("COLLECTD_LIVE_ROUNDS") {
            Err(env::VarError::NotPresent) => self.in_all,
            Ok(text) => text
                .parse()
                .ok()
                .filter(|rounds| *rounds >= FEWEST_ROUNDS)
                .unwrap_or_else(|| {
                    panic!("COLLECTD_LIVE_ROUNDS={text:?} is not a number from {FEWEST_ROUNDS} up")
                }),
            Err(e) => panic!("COLLECTD_LIVE_ROUNDS: {e}"),
        }
    }
}

/// What the rounds after that may add to the memory that is allocated. The
/// buffers of one connection come and go; 110 bytes a round would be over it.
const HEAP_GROWTH_BYTES: f64 = 16.0 * 1024.0;

/// What they may add to the size of the process: 4 KiB a round would be over it.
const RSS_GROWTH_KIB: u64 = 512;

/// Repeats `round` in a daemon under AddressSanitizer, which looks for leaks at
/// its end, and checks that what is allocated does not grow. Then repeats it in
/// an ordinary daemon, and checks that the process does not grow:
/// AddressSanitizer's own records of objects do, a few KiB for each.
#[track_caller]
fn assert_no_trace(rounds: Rounds, available: &[&str], round: impl Fn(&Daemon)) {
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
    let (settled, last) =
        before_and_after(rounds, &watched, available, &round, || allocated(&watched));
    watched.stop();
    assert!(
        last <= settled + HEAP_GROWTH_BYTES,
        "after {} rounds {settled} bytes were allocated, at the end {last}",
        rounds.to_settle
    );

    // A thread that works for the first time adds some 250 KiB. With one of each
    // kind all have worked soon.
    let plain = daemon(Variant::Patched)
        .option("ReadThreads 1")
        .option("WriteThreads 1")
        .start();
    let (settled, last) =
        before_and_after(rounds, &plain, available, &round, || plain.status().rss_kib);
    plain.stop();
    assert!(
        last <= settled + RSS_GROWTH_KIB,
        "after {} rounds the process had {settled} KiB, at the end {last}",
        rounds.to_settle
    );
}

/// What `measure` gives after the rounds it takes to settle, and at the end.
#[track_caller]
fn before_and_after<T>(
    rounds: Rounds,
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
    for _ in 0..rounds.to_settle {
        round(daemon);
    }
    let settled = measure_when_gone();
    for _ in rounds.to_settle..rounds.in_all() {
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

/// Loads a plugin with a configuration that it refuses after it has taken a part
/// of it, so that it is not initialized, and unloads it.
#[track_caller]
fn configure_in_part(daemon: &Daemon, plugin: &str, config: &str) {
    daemon
        .load(plugin, &[("config", config)])
        .expect_refused(&[]);
    daemon.assert_state(plugin, "FAILED");
    daemon.unload(plugin).expect_ok();
}

/// Proves that `cpu` can come and go for ever.
#[test]
fn cpu_leaves_no_trace() {
    assert_no_trace(MANY, &["cpu"], |daemon| load_read_unload(daemon, "cpu"));
}

/// Proves that `memory` can come and go for ever.
#[test]
fn memory_leaves_no_trace() {
    assert_no_trace(MANY, &["memory"], |daemon| {
        load_read_unload(daemon, "memory")
    });
}

/// Proves that `load` can come and go for ever.
#[test]
fn load_leaves_no_trace() {
    assert_no_trace(MANY, &["load"], |daemon| load_read_unload(daemon, "load"));
}

/// Proves that `uptime` can come and go for ever.
#[test]
fn uptime_leaves_no_trace() {
    assert_no_trace(MANY, &["uptime"], |daemon| {
        load_read_unload(daemon, "uptime")
    });
}

/// Proves that callbacks of every kind, each with memory of its own, can come
/// and go for ever.
#[test]
fn callbacks_of_every_kind_leave_no_trace() {
    assert_no_trace(MANY, &["early"], |daemon| load_read_unload(daemon, "early"));
}

/// Proves that loads may fail for ever.
#[test]
fn loads_that_fail_leave_no_trace() {
    assert_no_trace(MANY, PLUGINS_THAT_FAIL, fail_to_load);
}
