//! Tests that cannot run on this machine.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;

use rustix::process::geteuid;

/// Says that a test does not run because something is missing. The test runner
/// counts it as passed; whoever set `COLLECTD_LIVE_TALLY` learns better from the
/// line added to that file.
///
/// # Panics
/// If that file cannot be written.
pub fn skip(test: &str, missing: &str) {
    eprintln!("{test} skipped, missing: {missing}");
    if let Some(tally) = env::var_os("COLLECTD_LIVE_TALLY") {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&tally)
            .unwrap_or_else(|e| panic!("{}: {e}", tally.to_string_lossy()));
        file.write_all(format!("skip\tcargo test {test}\tmissing: {missing}\n").as_bytes())
            .unwrap_or_else(|e| panic!("{}: {e}", tally.to_string_lossy()));
    }
}

/// Whether [`crate::Daemon::collectdctl_as_nobody`] can do what it promises.
pub fn may_change_user() -> bool {
    geteuid().is_root()
}
