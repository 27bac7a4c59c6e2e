//! Waiting for conditions, with one variable that scales all deadlines.

use std::env;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long to pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);

/// Scales a deadline by `COLLECTD_LIVE_PATIENCE` (default 1.0).
///
/// # Panics
/// If the variable is not a positive number.
pub fn patience(deadline: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match env::var("COLLECTD_LIVE_PATIENCE") {
        Err(env::VarError::NotPresent) => 1.0,
        Ok(text) => text
            .parse()
            .ok()
            .filter(|factor: &f64| factor.is_finite() && *factor > 0.0)
            .unwrap_or_else(|| panic!("COLLECTD_LIVE_PATIENCE={text:?} is not a positive number")),
        Err(e) => panic!("COLLECTD_LIVE_PATIENCE: {e}"),
    });
    deadline.mul_f64(*factor)
}

/// Polls until `condition` returns something, and returns that.
///
/// # Panics
/// If `deadline` (scaled by [`patience`]) passes first; the message names
/// `what` was waited for.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = patience(deadline);
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            start.elapsed() < deadline,
            "waited {deadline:?} for this, in vain: {what}"
        );
        thread::sleep(POLL); // Between two looks at the condition.
    }
}
