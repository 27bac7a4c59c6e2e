//! Threads of the monitor: none before init, all joined in shutdown.

use std::any::Any;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use tracing::error;

use crate::daemon::{Daemon, Notification, Severity};
use crate::ffi::os;
use crate::logging::{Logger, FATAL};

/// Whether something went wrong inside the monitor that never should.
pub(crate) struct Failure {
    failed: AtomicBool,
    daemon: Arc<dyn Daemon>,
}

impl Failure {
    pub(crate) fn new(daemon: Arc<dyn Daemon>) -> Self {
        Self {
            failed: AtomicBool::new(false),
            daemon,
        }
    }

    pub(crate) fn happened(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Says so in one line and one notification. From here on the monitor does nothing.
    pub(crate) fn report(&self, place: &str, panic: &(dyn Any + Send)) {
        let what = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a message");
        if self.failed.swap(true, Ordering::AcqRel) {
            return;
        }
        error!(target: FATAL, "the monitor has failed in {place} and is out of service: {what}");
        self.daemon.dispatch_notification(&Notification {
            severity: Severity::Failure,
            time: self.daemon.now(),
            message: format!("the monitor has failed in {place} and is out of service"),
            host: self.daemon.hostname(),
            plugin: "monitor".to_owned(),
            plugin_instance: String::new(),
            type_: String::new(),
            type_instance: String::new(),
        });
    }
}

/// Starts a thread that leaves signals to the daemon, logs where the monitor logs, and cannot bring the
/// daemon down by a panic.
pub(crate) fn spawn(
    name: &'static str,
    logger: &Logger,
    failure: &Arc<Failure>,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let logger = logger.clone();
    let failure = Arc::clone(failure);
    // A thread inherits the mask of the one that starts it, so no signal can slip in between.
    os::with_signals_blocked(|| {
        Builder::new().name(name.to_owned()).spawn(move || {
            let _entered = logger.enter();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                failure.report(name, &*panic);
            }
        })
    })
}
