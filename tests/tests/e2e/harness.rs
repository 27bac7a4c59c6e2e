//! The harness itself: what the other tests rely on.

use std::time::Duration;

use collectd_live_tests::{eventually, Daemon, SequenceLog, Variant};

/// Proves that a daemon that is left alone loses no number of a fast reader: a
/// gap seen elsewhere comes from what that test did.
#[test]
fn an_undisturbed_daemon_delivers_every_number() {
    let builder = Daemon::builder(Variant::Stock);
    let record = builder.path("sequence");
    let daemon = builder
        .load_plugin("seqread")
        .plugin_block("seqread", "Interval 0.01")
        .load_plugin("seqsink")
        .plugin_block("seqsink", &format!("File \"{}\"", record.display()))
        .start();
    SequenceLog::new(&record)
        .wait_for_more("testhost/seqread/count", 100)
        .assert_complete();
    daemon.stop();
}

/// Proves that values can be put in and read back through the control socket.
#[test]
fn a_value_put_in_can_be_read_back() {
    let daemon = Daemon::builder(Variant::Stock).load_plugin("load").start();
    daemon.putval("gauges/count-one", 10.0, 42.0).expect_ok();
    let value = eventually("the value", Duration::from_secs(10), || {
        daemon.getval("gauges/count-one")
    });
    assert_eq!(value, 42.0);
    daemon.wait_for_value_of("load");
    assert!(daemon.is_mapped("load"));
    assert!(!daemon.is_mapped("cpu"));
    daemon.stop();
}

/// Proves that a leak in a plugin makes a test fail: without this, the tests
/// under AddressSanitizer would prove nothing.
#[test]
#[should_panic(expected = "LeakSanitizer: detected memory leaks")]
fn a_leak_is_noticed_at_the_end() {
    let daemon = Daemon::builder(Variant::Asan).load_plugin("leak").start();
    daemon.wait_for_value_of("leak");
    daemon.stop();
}
