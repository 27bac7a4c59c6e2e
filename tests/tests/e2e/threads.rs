//! Threads that a daemon needs only after a plugin was loaded.

use std::time::Duration;

use collectd_live_tests::{eventually, Daemon, SequenceLog, Variant};

const SERIES: &str = "testhost/seqread/count";

/// How many threads have names that start so.
fn count(daemon: &Daemon, name: &str) -> usize {
    daemon
        .status()
        .threads
        .iter()
        .filter(|thread| thread.starts_with(name))
        .count()
}

/// Proves that a daemon that starts with neither a reader nor a writer gets its
/// threads when one is loaded, and that values then flow.
#[test]
fn a_daemon_without_readers_and_writers_gets_threads_with_the_first_one() {
    let builder = Daemon::builder(Variant::Patched).option("ReadThreads 3");
    let record = builder.path("sequence");
    let daemon = builder.available("seqread").available("seqsink").start();
    assert_eq!(count(&daemon, "reader"), 0, "{:?}", daemon.status());

    daemon
        .load(
            "seqsink",
            &[("config", &format!("File \"{}\"", record.display()))],
        )
        .expect_ok();
    daemon
        .load("seqread", &[("config", "Interval 0.01")])
        .expect_ok();
    SequenceLog::new(&record)
        .wait_for_more(SERIES, 20)
        .assert_complete();
    assert_eq!(count(&daemon, "reader"), 3, "{:?}", daemon.status());
    assert!(count(&daemon, "writer") > 0, "{:?}", daemon.status());
    daemon.stop();
}

/// Proves that a new reader runs at once although every read thread sleeps until
/// the next turn of a slow one, an hour away.
#[test]
fn a_new_reader_starts_at_once_beside_slow_ones() {
    const SLOW: [&str; 3] = ["memory", "load", "uptime"];
    let builder = Daemon::builder(Variant::Patched)
        .interval("3600")
        .option("ReadThreads 3");
    let record = builder.path("sequence");
    let daemon = SLOW
        .iter()
        .fold(builder, |builder, plugin| builder.load_plugin(plugin))
        .load_plugin("seqsink")
        .plugin_block("seqsink", &format!("File \"{}\"", record.display()))
        .available("seqread")
        .start();
    for plugin in SLOW {
        eventually(
            &format!("the first value of {plugin}"),
            Duration::from_secs(20),
            || daemon.last_value_of(plugin),
        );
    }
    daemon
        .load("seqread", &[("config", "Interval 0.01")])
        .expect_ok();
    SequenceLog::new(&record)
        .wait_for_more(SERIES, 20)
        .assert_complete();
    daemon.stop();
}
