//! Stops panics at the boundary.

use std::panic::{catch_unwind, AssertUnwindSafe};

use super::status::cl_status;
use crate::monitor::Monitor;

/// Runs the body of an entry point that has a monitor, with its way of logging.
pub(super) fn with_monitor(
    place: &'static str,
    monitor: &Monitor,
    body: impl FnOnce() -> Result<(), cl_status>,
) -> cl_status {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _entered = monitor.enter();
        match catch_unwind(AssertUnwindSafe(|| {
            fault(place);
            body()
        })) {
            Ok(result) => cl_status::from(result),
            Err(panic) => {
                monitor.failed(place, &*panic);
                cl_status::CL_STATUS_PANIC
            }
        }
    }));
    // A panic while a panic is reported leaves nobody to report it to.
    caught.unwrap_or(cl_status::CL_STATUS_PANIC)
}

/// The same for what is called for each value: the way of logging, which takes a lock, is only looked for when there is
/// something to be logged.
pub(super) fn on_the_way(
    place: &'static str,
    monitor: &Monitor,
    body: impl FnOnce() -> Result<(), cl_status>,
) -> cl_status {
    match catch_unwind(AssertUnwindSafe(|| {
        fault(place);
        body()
    })) {
        Ok(result) => cl_status::from(result),
        Err(panic) => {
            let reported = catch_unwind(AssertUnwindSafe(|| {
                let _entered = monitor.enter();
                monitor.failed(place, &*panic);
            }));
            // A panic while a panic is reported leaves nobody to report it to.
            drop(reported);
            cl_status::CL_STATUS_PANIC
        }
    }
}

/// Panics in the entry point that the variable `COLLECTD_LIVE_PANIC_IN` names, so that tests can see what
/// becomes of it in a real daemon. A release build does not ask.
fn fault(place: &str) {
    if cfg!(debug_assertions)
        && std::env::var_os("COLLECTD_LIVE_PANIC_IN").is_some_and(|named| named == place)
    {
        panic!("COLLECTD_LIVE_PANIC_IN={place}");
    }
}

/// Runs the body of an entry point that has no monitor.
pub(super) fn without_monitor(body: impl FnOnce() -> Result<(), cl_status>) -> cl_status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => cl_status::from(result),
        Err(_) => cl_status::CL_STATUS_PANIC,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Daemon;
    use crate::fake::FakeDaemon;
    use std::sync::Arc;

    #[test]
    fn a_panic_becomes_a_status_a_line_and_a_failed_monitor() {
        let daemon = Arc::new(FakeDaemon::new("h"));
        let monitor = Monitor::new(Arc::clone(&daemon) as Arc<dyn Daemon>, "/helper".into());
        let status = with_monitor("cl_test", &monitor, || panic!("boom"));
        assert_eq!(status, cl_status::CL_STATUS_PANIC);
        assert_eq!(
            daemon.count("failed in cl_test and is out of service: boom"),
            1
        );
        assert_eq!(daemon.lines().len(), 1);
        let status = with_monitor("cl_test", &monitor, || Ok(monitor.init()?));
        assert_eq!(status, cl_status::CL_STATUS_FAILED);
        assert_eq!(daemon.lines().len(), 1);
    }

    #[test]
    fn a_panic_without_a_monitor_is_a_status() {
        assert_eq!(
            without_monitor(|| panic!("boom")),
            cl_status::CL_STATUS_PANIC
        );
        assert_eq!(without_monitor(|| Ok(())), cl_status::CL_STATUS_OK);
    }
}
