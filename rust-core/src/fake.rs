//! A daemon for tests: it remembers what it is told.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::daemon::{
    Daemon, DataSource, DataValue, LogLevel, Notification, SourceType, ValueList, Verb,
};

/// A daemon that is not there.
#[derive(Debug)]
pub struct FakeDaemon {
    hostname: String,
    state_dir: PathBuf,
    lines: Mutex<Vec<(LogLevel, String)>>,
    syslog: Mutex<Vec<(LogLevel, String)>>,
    notifications: Mutex<Vec<Notification>>,
    values: Mutex<Vec<ValueList>>,
    changes: Mutex<Vec<(Verb, String)>>,
}

impl FakeDaemon {
    /// A daemon on a host of this name.
    pub fn new(hostname: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("collectd-live-fake-{}-{number}", std::process::id());
        Self {
            hostname: hostname.to_owned(),
            state_dir: std::env::temp_dir().join(name),
            lines: Mutex::default(),
            syslog: Mutex::default(),
            notifications: Mutex::default(),
            values: Mutex::default(),
            changes: Mutex::default(),
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

    /// The values dispatched so far.
    pub fn values(&self) -> Vec<ValueList> {
        lock(&self.values).clone()
    }

    /// What was done with plugins so far.
    pub fn changes(&self) -> Vec<(Verb, String)> {
        lock(&self.changes).clone()
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

    fn data_sources(&self, type_: &str) -> Option<Vec<DataSource>> {
        let source = |name: &str, type_| DataSource {
            name: name.to_owned(),
            type_,
        };
        match type_ {
            "derive" | "total_requests" | "operations" | "errors" | "connections"
            | "total_time_in_ms" => Some(vec![source("value", SourceType::Derive)]),
            "if_octets" => Some(vec![
                source("rx", SourceType::Derive),
                source("tx", SourceType::Derive),
            ]),
            "" | "unknown" => None,
            _ => Some(vec![source("value", SourceType::Gauge)]),
        }
    }

    fn dispatch_values(&self, values: &ValueList) -> bool {
        let types = values.values.iter().map(|value| value.source_type());
        let fits = self
            .data_sources(&values.type_)
            .is_some_and(|sources| sources.iter().map(|source| source.type_).eq(types));
        if fits {
            lock(&self.values).push(values.clone());
        }
        fits
    }

    fn last_values(&self, series: &str) -> Option<Vec<DataValue>> {
        let of_series = |values: &&ValueList| {
            let [host, plugin, type_] = [&values.host, &values.plugin, &values.type_];
            format!("{host}/{plugin}/{type_}") == series
        };
        let values = lock(&self.values);
        Some(values.iter().rfind(of_series)?.values.clone())
    }

    fn rates(&self, series: &str) -> Option<Vec<f64>> {
        let rate = |value: DataValue| match value {
            DataValue::Gauge(value) => value,
            _ => f64::NAN,
        };
        Some(self.last_values(series)?.into_iter().map(rate).collect())
    }

    fn change_plugin(&self, verb: Verb, plugin: &str) -> Result<String, String> {
        lock(&self.changes).push((verb, plugin.to_owned()));
        match plugin {
            "unknown" => Err("There is no such plugin.".to_owned()),
            _ => Ok(format!("Plugin \"{plugin}\": {} is done.", verb.name())),
        }
    }

    fn hostname(&self) -> String {
        self.hostname.clone()
    }

    fn state_dir(&self) -> PathBuf {
        self.state_dir.clone()
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        if self.state_dir.exists() {
            // What is left in a directory for temporary files harms nobody.
            drop(std::fs::remove_dir_all(&self.state_dir));
        }
    }
}

/// A test that fails while it holds a lock must not hide its own message behind a poisoned one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
