//! Local recovery: rules look at every value and notification, and say what is to be done.
//!
//! A rule file declares [`Handler`]s. A handler is given a [`Subject`], which is a value or a notification, and
//! answers with nothing or with a [`Task`]. Who evaluates handlers is behind [`Evaluate`], so that everything
//! here can be tested without an interpreter.

pub mod budget;
pub mod check;
mod consult;
pub mod episode;
mod errand;
mod files;
mod glob;
pub(crate) mod intake;
pub mod lua;
pub mod matching;
pub mod record;
pub mod replay;
mod result;
mod service;
pub mod table;
pub mod task;
pub mod tool;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::daemon::{DataSource, DataValue, Notification};
pub(crate) use errand::Elsewhere;
pub(crate) use service::Rules;
pub use service::{Settings, DEFAULT_QUEUE};
use task::Task;

/// Where a value or a notification comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The plugin that dispatched it, if the daemon knows.
    pub plugin: Option<Arc<str>>,
    /// Whether it came from another host.
    pub foreign: bool,
}

/// What identifies a series of values, and stays the same from one to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// On which host.
    pub host: String,
    /// Which plugin measured it.
    pub plugin: String,
    /// Which of its instances.
    pub plugin_instance: String,
    /// What kind of thing it is.
    pub type_: String,
    /// Which of them.
    pub type_instance: String,
    /// What its type is made of.
    pub sources: Vec<DataSource>,
    /// Where it comes from.
    pub origin: Origin,
}

/// One value, as a plugin dispatched it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Of what.
    pub series: Arc<Series>,
    /// When it was measured.
    pub time: SystemTime,
    /// How often it is measured.
    pub interval: Duration,
    /// The numbers, one for each data source.
    pub values: Vec<DataValue>,
}

/// A notification and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it says.
    pub notification: Notification,
    /// Where it comes from.
    pub origin: Origin,
}

/// What a handler is called for.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// A value.
    Metric(Arc<Sample>),
    /// A notification.
    Notification(Arc<Notice>),
}

/// Which subjects a handler takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Values.
    Metric,
    /// Notifications.
    Notification,
}

impl Kind {
    /// As it stands in the name of a handler.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Metric => "metric",
            Kind::Notification => "notification",
        }
    }
}

impl Subject {
    /// Which handlers take it.
    pub fn kind(&self) -> Kind {
        match self {
            Subject::Metric(_) => Kind::Metric,
            Subject::Notification(_) => Kind::Notification,
        }
    }

    /// When it was measured, or happened.
    pub fn time(&self) -> SystemTime {
        match self {
            Subject::Metric(sample) => sample.time,
            Subject::Notification(notice) => notice.notification.time,
        }
    }

    /// When to expect another one. Nobody expects a notification.
    pub fn interval(&self) -> Option<Duration> {
        match self {
            Subject::Metric(sample) => Some(sample.interval),
            Subject::Notification(_) => None,
        }
    }

    /// What a match may look at.
    pub fn fields(&self) -> matching::Subject<'_> {
        match self {
            Subject::Metric(sample) => sample.series.fields(),
            Subject::Notification(notice) => notice.fields(),
        }
    }

    /// The name of what it is about: `host/plugin-instance/type-instance`.
    pub fn identifier(&self) -> String {
        let [host, plugin, plugin_instance, type_, type_instance, ..] = self.fields().fields;
        let mut name = String::with_capacity(64);
        for part in [host, "/", plugin] {
            name.push_str(part);
        }
        for (separator, instance) in [("-", plugin_instance), ("/", type_), ("-", type_instance)] {
            if separator == "/" || !instance.is_empty() {
                name.push_str(separator);
                name.push_str(instance);
            }
        }
        name
    }
}

impl Series {
    /// What a match may look at.
    pub fn fields(&self) -> matching::Subject<'_> {
        matching::Subject {
            fields: [
                &self.host,
                &self.plugin,
                &self.plugin_instance,
                &self.type_,
                &self.type_instance,
                self.origin.plugin.as_deref().unwrap_or_default(),
                "",
            ],
            foreign: self.origin.foreign,
        }
    }
}

impl Notice {
    /// What a match may look at.
    pub fn fields(&self) -> matching::Subject<'_> {
        let n = &self.notification;
        matching::Subject {
            fields: [
                &n.host,
                &n.plugin,
                &n.plugin_instance,
                &n.type_,
                &n.type_instance,
                self.origin.plugin.as_deref().unwrap_or_default(),
                n.severity.name(),
            ],
            foreign: self.origin.foreign,
        }
    }
}

/// What a handler wants to see, as it declared it: of each field that it names, the names or patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The fields by their names in rule files, and what each may be.
    pub fields: BTreeMap<String, Vec<String>>,
    /// Whether it wants what comes from elsewhere, if it says so.
    pub foreign: Option<bool>,
}

/// A function of a rule file, as it declared it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The name of its file, with neither directory nor `.lua`.
    pub file: Arc<str>,
    /// What it takes.
    pub kind: Kind,
    /// Its own name, if it has one.
    pub name: Option<String>,
    /// What it wants to see, if it says so.
    pub matches: Option<Wanted>,
}

/// `<file>::metric::<name>`, without the last part for one that has no name.
impl fmt::Display for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.file, self.kind.name())?;
        match &self.name {
            Some(name) => write!(f, "::{name}"),
            None => Ok(()),
        }
    }
}

/// Why a handler has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has failed, or has answered with what is no task.
    Failed(String),
    /// It has gone on for too long.
    Instructions,
    /// It has taken too much memory.
    Memory,
    /// It is disabled, or gone.
    Disabled,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Failed(why) => f.write_str(why),
            Fault::Instructions => f.write_str("it has gone on for too long and was stopped"),
            Fault::Memory => f.write_str("it has taken too much memory and was stopped"),
            Fault::Disabled => f.write_str("it is disabled"),
        }
    }
}

impl std::error::Error for Fault {}

/// What a handler answers: a task or, by leaving it out, that there is nothing to do.
pub type Answer<F> = (usize, Result<Task<F>, Fault>);

/// What evaluates handlers.
pub trait Evaluate {
    /// A function of a rule file that a task may bring.
    type Function: Clone;

    /// What there is to evaluate. Others refer to a handler by its place in this list.
    fn handlers(&self) -> &[Handler];

    /// Calls these handlers for a subject, in this order.
    fn call(&mut self, handlers: &[usize], subject: &Subject) -> Vec<Answer<Self::Function>>;

    /// Asks a function that a task has brought whether something is so, for a subject.
    fn ask(&mut self, function: &Self::Function, subject: &Subject) -> Result<bool, Fault>;
}

#[cfg(test)]
mod tests;
