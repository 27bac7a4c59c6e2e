//! Signals to the daemon.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use collectd_live_tests::{eventually, patience, Daemon, Variant};

const DEADLINE: Duration = Duration::from_secs(20);

/// A daemon with a plugin whose flush callback waits for [`release`].
fn daemon_that_flushes_slowly() -> Daemon {
    let builder = Daemon::builder(Variant::Patched);
    let paths = format!(
        "Entered \"{}\"\nRelease \"{}\"",
        builder.path("entered").display(),
        builder.path("release").display()
    );
    builder
        .load_plugin("slowflush")
        .plugin_block("slowflush", &paths)
        .start()
}

fn wait_until_flushing(daemon: &Daemon) {
    eventually("the flush callback to be called", DEADLINE, || {
        daemon.path("entered").exists().then_some(())
    });
}

fn release(daemon: &Daemon) {
    File::create(daemon.path("release")).expect("a file that lets the callback return");
}

/// Proves that no plugin is shut down while data is being flushed on SIGUSR1.
#[test]
fn the_end_waits_for_a_flush_that_is_under_way() {
    let daemon = daemon_that_flushes_slowly();
    daemon.ask_to_flush();
    wait_until_flushing(&daemon);
    daemon.ask_to_stop();
    daemon.wait_for_log("Exiting normally.");
    // Long enough for a daemon that does not wait to shut the plugin down.
    let observed = Instant::now();
    while observed.elapsed() < patience(Duration::from_millis(200)) {
        assert!(daemon.runs(), "the daemon has not waited for the flush");
        thread::sleep(Duration::from_millis(5)); // Between two looks.
    }
    release(&daemon);
    let log = daemon.wait_for_end();
    assert!(log.contains("Finished flushing all data."), "{log}");
}

/// Proves that what comes before the last SIGUSR1 is flushed after it, although a
/// flush was under way.
#[test]
fn a_flush_asked_for_during_another_one_is_done_afterwards() {
    const FINISHED: &str = "Finished flushing all data.";
    let daemon = daemon_that_flushes_slowly();
    daemon.ask_to_flush();
    wait_until_flushing(&daemon);
    daemon.ask_to_flush();
    release(&daemon);
    eventually("the end of both flushes", DEADLINE, || {
        (daemon.log().matches(FINISHED).count() == 2).then_some(())
    });
    daemon.stop();
}

/// Proves that the daemon ends at once, and not after its interval of an hour,
/// whichever of its threads gets the signal.
#[test]
fn a_signal_to_any_thread_ends_the_daemon_at_once() {
    let daemon = Daemon::builder(Variant::Patched)
        .interval("3600")
        .load_plugin("slowflush")
        .start();
    // The connection may end before there is an answer.
    drop(
        daemon
            .connect()
            .command("PUTNOTIF severity=okay time=1 message=raise"),
    );
    daemon.wait_for_end();
}
