//! The daemon as the monitor sees it.

use std::path::PathBuf;
use std::time::SystemTime;

/// How much a line of the daemon's log matters, in syslog's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum LogLevel {
    /// `LOG_ERR`
    Error = 3,
    /// `LOG_WARNING`
    Warning = 4,
    /// `LOG_INFO`
    Info = 6,
    /// `LOG_DEBUG`
    Debug = 7,
}

/// How bad a notification is, in collectd's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Severity {
    /// `NOTIF_FAILURE`
    Failure = 1,
    /// `NOTIF_WARNING`
    Warning = 2,
    /// `NOTIF_OKAY`
    Okay = 4,
}

/// A notification, without its meta data. Fields longer than the daemon's are cut by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// How bad it is.
    pub severity: Severity,
    /// When it happened.
    pub time: SystemTime,
    /// What happened.
    pub message: String,
    /// On which host.
    pub host: String,
    /// Who says so.
    pub plugin: String,
    /// Which of its instances.
    pub plugin_instance: String,
    /// What kind of thing it is about.
    pub type_: String,
    /// Which of them.
    pub type_instance: String,
}

/// What the monitor needs of the daemon. All of it may be called from any thread.
pub trait Daemon: Send + Sync {
    /// Writes one line to the daemon's log.
    fn log(&self, level: LogLevel, line: &str);

    /// Writes one line to the system's log.
    fn syslog(&self, level: LogLevel, line: &str);

    /// Hands a notification to every plugin that takes them. Says whether the daemon took it.
    fn dispatch_notification(&self, notification: &Notification) -> bool;

    /// The name of this host as collectd uses it. Final only once configuration is over.
    fn hostname(&self) -> String;

    /// The directory for what must outlive the daemon.
    fn state_dir(&self) -> PathBuf;

    /// The time of day.
    fn now(&self) -> SystemTime;
}
