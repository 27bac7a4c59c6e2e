//! The moments at which the daemon may die, each with a test in which it does.
//!
//! In a debug build, `COLLECTD_LIVE_DIE_AT` names one of them. In a release build there is nothing here.

/// Defines the enumeration and the list of its values together, so that none is left out.
macro_rules! boundaries {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// A moment between two steps of which the first must not be taken for both.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Boundary {
            $($(#[$meta])* $name,)*
        }

        /// All of them.
        pub const ALL: &[Boundary] = &[$(Boundary::$name,)*];
    };
}

boundaries! {
    /// A task has arrived and stands nowhere yet.
    BeforeAccepted,
    /// A task is in the journal, and the broker does not know.
    AfterAccepted,
    /// The broker is about to be told that a task has arrived.
    BeforeAcknowledged,
    /// A task is about to be marked as started.
    BeforeStarted,
    /// A task is marked as started, and the mark may not be on the disk.
    AfterStarted,
    /// The mark is on the disk.
    BeforeRun,
    /// The helper was told.
    AfterRun,
    /// The helper is about to fork.
    BeforeFork,
    /// The command runs. Fork and exec are one step to their caller.
    AfterExec,
    /// The command has ended, and nobody knows.
    BeforeWait,
    /// The helper has its exit status.
    AfterWait,
    /// The result is about to be written.
    BeforeFinished,
    /// The result is in the journal.
    AfterFinished,
    /// The broker has the result, and the journal does not say so.
    BeforeDelivered,
    /// The journal says that the broker has the result.
    AfterDelivered,
    /// The other half of the journal is about to be written.
    BeforeCompacted,
    /// It has taken over.
    AfterCompacted,
}

/// The variable that names the one to die at.
pub const VARIABLE: &str = "COLLECTD_LIVE_DIE_AT";

#[cfg(debug_assertions)]
fn is_chosen(boundary: Boundary) -> bool {
    std::env::var(VARIABLE).is_ok_and(|name| name == format!("{boundary:?}"))
}

/// The daemon is at a boundary.
#[cfg(debug_assertions)]
pub(crate) fn reached(boundary: Boundary) {
    use rustix::process::{getpid, kill_process, Signal};

    if is_chosen(boundary) {
        // Nothing behind this line is reached.
        while kill_process(getpid(), Signal::KILL).is_ok() {}
    }
}

/// Who started the helper.
#[cfg(debug_assertions)]
static DAEMON: std::sync::OnceLock<Option<rustix::process::Pid>> = std::sync::OnceLock::new();

/// The helper begins.
#[cfg(debug_assertions)]
pub(crate) fn helper_begins() {
    DAEMON.get_or_init(rustix::process::getppid);
}

/// The helper is at a boundary, and it is the daemon that dies.
#[cfg(debug_assertions)]
pub(crate) fn reached_by_helper(boundary: Boundary) {
    use rustix::process::{getppid, kill_process, Signal};

    // An orphan has another parent, which is none of our business.
    let daemon = DAEMON.get().copied().flatten();
    let daemon = daemon.filter(|daemon| !daemon.is_init() && getppid() == Some(*daemon));
    if let Some(daemon) = daemon.filter(|_| is_chosen(boundary)) {
        kill_process(daemon, Signal::KILL).ok();
    }
}

/// The helper begins.
#[cfg(not(debug_assertions))]
pub(crate) fn helper_begins() {}

/// The daemon is at a boundary.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: Boundary) {}

/// The helper is at a boundary.
#[cfg(not(debug_assertions))]
pub(crate) fn reached_by_helper(_: Boundary) {}
