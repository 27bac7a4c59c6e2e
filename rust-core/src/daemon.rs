//! The daemon as the monitor sees it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

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

impl Severity {
    /// Its name in rules, without the prefix.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Failure => "FAILURE",
            Severity::Warning => "WARNING",
            Severity::Okay => "OKAY",
        }
    }
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

/// What a data source measures, in collectd's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum SourceType {
    /// `DS_TYPE_COUNTER`: only rises, and wraps.
    Counter = 0,
    /// `DS_TYPE_GAUGE`: as it is.
    Gauge = 1,
    /// `DS_TYPE_DERIVE`: what matters is how it changes.
    Derive = 2,
    /// `DS_TYPE_ABSOLUTE`: starts over at each reading.
    Absolute = 3,
}

/// One of the values that a type is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSource {
    /// What it is called within its type.
    pub name: String,
    /// What it measures.
    pub type_: SourceType,
}

/// A value, with the type of its data source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DataValue {
    /// A counter's reading.
    Counter(u64),
    /// NaN where it is not known.
    Gauge(f64),
    /// A reading of which the change matters.
    Derive(i64),
    /// What has come together since the last reading.
    Absolute(u64),
}

impl DataValue {
    /// The type of data source that has such values.
    pub fn source_type(self) -> SourceType {
        match self {
            DataValue::Counter(_) => SourceType::Counter,
            DataValue::Gauge(_) => SourceType::Gauge,
            DataValue::Derive(_) => SourceType::Derive,
            DataValue::Absolute(_) => SourceType::Absolute,
        }
    }
}

/// Values of one series. Fields longer than the daemon's are cut by it.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueList {
    /// One for each data source of the type, in their order.
    pub values: Vec<DataValue>,
    /// When they were measured; now, if that is not said.
    pub time: Option<SystemTime>,
    /// How far apart values of this series are; the daemon's interval, if that is not said.
    pub interval: Option<Duration>,
    /// On which host; this one, if it is empty.
    pub host: String,
    /// Who measured.
    pub plugin: String,
    /// Which of its instances.
    pub plugin_instance: String,
    /// The name of a type in types.db.
    pub type_: String,
    /// Which of the things of this type.
    pub type_instance: String,
}

/// What the daemon can do with a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Load it.
    Load,
    /// Unload it and load it again.
    Reload,
    /// Unload it.
    Unload,
}

impl Verb {
    /// Its name in a rule.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Load => "load",
            Verb::Reload => "reload",
            Verb::Unload => "unload",
        }
    }
}

/// What the monitor needs of the daemon. All of it may be called from any thread.
pub trait Daemon: Send + Sync {
    /// Writes one line to the daemon's log.
    fn log(&self, level: LogLevel, line: &str);

    /// Writes one line to the system's log.
    fn syslog(&self, level: LogLevel, line: &str);

    /// Hands a notification to every plugin that takes them. Says whether the daemon took it.
    fn dispatch_notification(&self, notification: &Notification) -> bool;

    /// What a type is made of; none if types.db does not have it.
    fn data_sources(&self, type_: &str) -> Option<Vec<DataSource>>;

    /// Queues values for every plugin that writes. Says whether the daemon took them: it does not if the type is
    /// unknown or made of something else.
    fn dispatch_values(&self, values: &ValueList) -> bool;

    /// The last values of a series, which is named `host/plugin-instance/type-instance`; none if the daemon does not
    /// know it.
    fn last_values(&self, series: &str) -> Option<Vec<DataValue>>;

    /// How fast the values of a series change, and gauges as they are; none if the daemon does not know it.
    fn rates(&self, series: &str) -> Option<Vec<f64>>;

    /// Loads, reloads or unloads another plugin, and waits until that is done. Says what has happened, or why not.
    fn change_plugin(&self, verb: Verb, plugin: &str) -> Result<String, String>;

    /// The name of this host as collectd uses it. Final only once configuration is over.
    fn hostname(&self) -> String;

    /// The directory for what must outlive the daemon.
    fn state_dir(&self) -> PathBuf;

    /// The time of day.
    fn now(&self) -> SystemTime;
}
