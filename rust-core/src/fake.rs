//! A daemon for tests: it remembers what it is told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::daemon::{Daemon, LogLevel, Notification};

/// A daemon that is not there.
#[derive(Debug)]
pub struct FakeDaemon {
    hostname: String,
    lines: Mutex<Vec<(LogLevel, String)>>,
    syslog: Mutex<Vec<(LogLevel, String)>>,
    notifications: Mutex<Vec<Notification>>,
}

impl FakeDaemon {
    /// A daemon on a host of this name.
    pub fn new(hostname: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            lines: Mutex::default(),
            syslog: Mutex::default(),
            notifications: Mutex::default(),
        }
    }

    /// What was logged so far.
    pub fn lines(&self) -> Vec<(LogLevel, String)> {
        lock(&self.lines).clone()
    }

    /// What was sent to the system's log so far.
    pub fn syslog_lines(&self) -> Vec<(LogLevel, String)> {
        lock(&self.syslog).clone()
    }

    /// The notifications dispatched so far.
    pub fn notifications(&self) -> Vec<Notification> {
        lock(&self.notifications).clone()
    }

    /// How many log lines hold this text.
    pub fn count(&self, text: &str) -> usize {
        lock(&self.lines)
            .iter()
            .filter(|(_, line)| line.contains(text))
            .count()
    }
}

impl Daemon for FakeDaemon {
    fn log(&self, level: LogLevel, line: &str) {
        lock(&self.lines).push((level, line.to_owned()));
    }

    fn syslog(&self, level: LogLevel, line: &str) {
        lock(&self.syslog).push((level, line.to_owned()));
    }

    fn dispatch_notification(&self, notification: &Notification) -> bool {
        lock(&self.notifications).push(notification.clone());
        true
    }

    fn hostname(&self) -> String {
        self.hostname.clone()
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A test that fails while it holds a lock must not hide its own message behind a poisoned one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
