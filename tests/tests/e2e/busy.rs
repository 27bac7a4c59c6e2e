//! A callback that does not return.

use std::fs;
use std::time::{Duration, Instant};

use collectd_live_tests::{eventually, patience, Daemon, Variant};

/// Proves that unloading gives up at its deadline when a callback does not
/// return, names the callback and leaves the plugin ready; that the others go on
/// meanwhile; and that unloading works once the callback has returned.
#[test]
fn a_callback_that_hangs_makes_unloading_fail_as_busy() {
    let daemon = Daemon::builder(Variant::Patched)
        .load_plugin("memory")
        .available("hang")
        .start();
    let entered = daemon.path("entered");
    let release = daemon.path("release");
    let config = format!(
        "Entered \"{}\"\nRelease \"{}\"",
        entered.display(),
        release.display()
    );
    daemon.load("hang", &[("config", &config)]).expect_ok();
    eventually("the callback to hang", Duration::from_secs(20), || {
        entered.exists().then_some(())
    });
    assert_eq!(daemon.assert_state("hang", "READY").field("calls"), "1");

    let timeout = Duration::from_secs(1);
    let start = Instant::now();
    daemon
        .unload_within("hang", timeout)
        .expect_refused(&["busy", "hang", "read"]);
    let elapsed = start.elapsed();
    assert!(
        elapsed >= timeout,
        "unloading gave up after {elapsed:?} already"
    );
    assert!(
        elapsed < timeout + patience(Duration::from_secs(5)),
        "unloading took {elapsed:?}"
    );
    daemon.assert_state("hang", "READY");
    daemon.wait_for_value_of("memory");

    fs::write(&release, "").unwrap();
    daemon.unload("hang").expect_ok();
    daemon.assert_gone("hang");
    daemon.stop();
}
