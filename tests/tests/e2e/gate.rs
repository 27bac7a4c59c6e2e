//! The ready gate: no callback runs before configuration and init are complete.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use collectd_live_tests::{eventually, Daemon, Variant};

const DEADLINE: Duration = Duration::from_secs(30);

/// What the plugin `early` counts.
const KINDS: [&str; 7] = [
    "read",
    "write",
    "flush",
    "notification",
    "log",
    "missing",
    "cache_event",
];

/// Sends one kind of traffic until told to stop.
fn send_until(stop: &AtomicBool, daemon: &Daemon, line: impl Fn(u64) -> String) {
    let mut connection = daemon.connect();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        connection
            .command(&line(number))
            .unwrap_or_else(|e| panic!("no answer in the middle of the traffic: {e}"))
            .expect_ok();
    }
}

/// Stops the traffic at the end of a scope, also when the test fails in it.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Proves that callbacks of every kind are held back while the plugin takes a
/// second to configure under traffic of every kind, and run afterwards. The
/// plugin aborts the daemon when one is called too early, or after its shutdown.
#[test]
fn no_callback_runs_before_the_configuration_is_complete() {
    let daemon = Daemon::builder(Variant::Patched)
        .load_plugin("seqread")
        .plugin_block("seqread", "Interval 0.01\nLog true")
        .available("early")
        .start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            send_until(&stop, &daemon, |n| {
                format!(
                    "PUTNOTIF severity=okay time={} message=\"traffic {n}\"",
                    n + 1
                )
            });
        });
        scope.spawn(|| send_until(&stop, &daemon, |_| "FLUSH".to_owned()));
        // New values that go missing soon: cache events of every type.
        scope.spawn(|| {
            send_until(&stop, &daemon, |n| {
                format!(
                    "PUTVAL testhost/traffic-{}/count interval=0.01 N:1",
                    n % 1000
                )
            });
        });

        for round in 1..=3 {
            let start = Instant::now();
            daemon.load("early", &[("config", "Delay 1")]).expect_ok();
            assert!(
                start.elapsed() >= Duration::from_secs(1),
                "the load did not wait for the configuration"
            );
            for kind in KINDS {
                eventually(
                    &format!("a call of {kind} in round {round}"),
                    DEADLINE,
                    || {
                        daemon
                            .getval(&format!("early/count-{kind}"))
                            .filter(|calls| *calls > 0.0)
                    },
                );
            }
            daemon.unload("early").expect_ok();
            daemon.assert_gone("early");
            eventually("the last values of early to expire", DEADLINE, || {
                daemon.last_value_of("early").is_none().then_some(())
            });
        }
    });
    daemon.stop();
}
