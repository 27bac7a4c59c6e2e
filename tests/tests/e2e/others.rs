//! The others never notice: no value is lost, doubled or late because another
//! plugin comes, fails or goes.

use std::time::Duration;

use collectd_live_tests::{patience, Daemon, SequenceLog, Variant};

/// How late a reader that is due every 10 ms may be on a busy machine.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

const SERIES: &str = "testhost/seqread/count";

/// Does something `rounds` times beside a reader at 10 ms, and checks that every
/// number arrives at the writer, in time.
#[track_caller]
pub(crate) fn assert_unnoticed(available: &[&str], rounds: u32, round: impl Fn(&Daemon)) {
    let builder = Daemon::builder(Variant::Patched);
    let record = builder.path("sequence");
    let daemon = available
        .iter()
        .fold(builder, |builder, plugin| builder.available(plugin))
        .load_plugin("seqread")
        .plugin_block("seqread", "Interval 0.01")
        .load_plugin("seqsink")
        .plugin_block("seqsink", &format!("File \"{}\"", record.display()))
        .start();
    let record = SequenceLog::new(&record);
    record.wait_for_more(SERIES, 10);
    for _ in 0..rounds {
        round(&daemon);
    }
    let sequence = record.wait_for_more(SERIES, 50);
    sequence.assert_complete();
    let pause = sequence.longest_pause();
    assert!(
        pause < patience(LONGEST_PAUSE),
        "the reader was held up for {pause:?}"
    );
    daemon.stop();
}

/// Proves it for a reader (`cpu`) and for a plugin with callbacks of every kind,
/// the writer's among them (`early`).
#[test]
fn loading_and_unloading_costs_the_others_nothing() {
    assert_unnoticed(&["cpu", "early"], 100, |daemon| {
        for plugin in ["cpu", "early"] {
            daemon.load(plugin, &[]).expect_ok();
            daemon.unload(plugin).expect_ok();
        }
    });
}

/// What [`fail_to_load`] needs.
pub(crate) const PLUGINS_THAT_FAIL: &[&str] = &["cpu", "noreg", "badinit", "badconfig"];

/// Loads that fail in every way there is: before, in and after configuration.
pub(crate) fn fail_to_load(daemon: &Daemon) {
    daemon.load("noreg", &[]).expect_refused(&[]);
    daemon
        .load("cpu", &[("config", "ReportByCpu")])
        .expect_refused(&[]);
    daemon
        .load("badconfig", &[("config", "Refuse true")])
        .expect_refused(&[]);
    daemon.unload("badconfig").expect_ok();
    daemon.load("badinit", &[]).expect_refused(&[]);
    daemon
        .load("badinit", &[("config", "Fail false")])
        .expect_ok();
    daemon
        .reload("badinit", &[("config", "Fail true")])
        .expect_refused(&[]);
    daemon.unload("badinit").expect_ok();
}

/// Proves it for loads that fail.
#[test]
fn failing_to_load_costs_the_others_nothing() {
    assert_unnoticed(PLUGINS_THAT_FAIL, 50, fail_to_load);
}
