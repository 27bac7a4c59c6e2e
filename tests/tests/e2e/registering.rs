//! What plugins register while they are being unloaded.

use std::time::Duration;

use collectd_live_tests::{eventually, Daemon, Variant};

/// Proves that a plugin can be unloaded although its thread registers readers
/// until it is told to end, which comes after the readers have been removed.
#[test]
fn readers_registered_while_readers_are_removed_are_removed_too() {
    let daemon = Daemon::builder(Variant::Patched)
        .interval("3600")
        .available("moreread")
        .start();
    for round in 1..=10 {
        daemon.load("moreread", &[]).expect_ok();
        eventually("many readers", Duration::from_secs(20), || {
            (daemon.log().matches("There are many readers.").count() == round).then_some(())
        });
        daemon.unload("moreread").expect_ok();
        daemon.assert_gone("moreread");
    }
    daemon.stop();
}
