//! What the monitor says of itself as values, so that whatever stores collectd's values stores these.
//!
//! Anybody may count from any thread. A read callback reports all of it as values of the plugin `monitor`; the
//! types are those of collectd's own types.db. `collectd.conf(5)` has the list of series: whoever adds one
//! here adds it there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::daemon::{DataValue, ValueList};
use crate::protocol::{self, Code};

/// How long the monitor may be deaf before that is a notification.
pub(crate) const DEAF_AFTER: Duration = Duration::from_secs(60);

/// Whether the change of a value matters, or the value itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Derive,
    Gauge,
}

/// Defines the enumeration and the series together, so that none is left out.
macro_rules! metrics {
    ($($(#[$meta:meta])* $name:ident = $instance:literal / $type_:literal - $type_instance:literal, $kind:ident;)*) => {
        /// Something that is counted or measured.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Metric {
            $($(#[$meta])* $name,)*
        }

        /// Plugin instance, type, type instance.
        const SERIES: &[(Metric, &str, &str, &str, Kind)] =
            &[$((Metric::$name, $instance, $type_, $type_instance, Kind::$kind),)*];
    };
}

metrics! {
    /// Commands that ended with status 0.
    Succeeded = "commands"/"operations"-"succeeded", Derive;
    /// Commands that ended with another status.
    Failed = "commands"/"operations"-"failed", Derive;
    /// Commands that took too long.
    TimedOut = "commands"/"operations"-"timed_out", Derive;
    /// Commands of which nobody knows how they ended.
    Interrupted = "commands"/"operations"-"interrupted", Derive;
    /// Commands that could not be started.
    NotStarted = "commands"/"operations"-"not_started", Derive;
    /// Tasks that came before, and were not run again.
    Duplicates = "commands"/"operations"-"duplicate", Derive;
    /// Commands that wait for their turn.
    Waiting = "commands"/"queue_length"-"waiting", Gauge;
    /// Commands that run.
    Running = "commands"/"queue_length"-"running", Gauge;
    /// For how long all commands together have waited from arrival to start, in milliseconds.
    TimeQueued = "commands"/"total_time_in_ms"-"queued", Derive;
    /// For how long all commands together have run, in milliseconds.
    TimeRunning = "commands"/"total_time_in_ms"-"running", Derive;
    /// Messages that have arrived.
    Messages = "messages"/"operations"-"received", Derive;
    /// Messages that were not understood, with or without an answer.
    Unreadable = "messages"/"operations"-"unreadable", Derive;
    /// Messages on another topic, or delivered again.
    PassedOver = "messages"/"operations"-"passed_over", Derive;
    /// Results that the broker does not have yet.
    ResultsWaiting = "results"/"queue_length"-"waiting", Gauge;
    /// Results that the broker has.
    ResultsDelivered = "results"/"operations"-"delivered", Derive;
    /// Results that the broker did not take; they are sent again.
    ResultsRejected = "results"/"operations"-"rejected", Derive;
    /// Results that were given up.
    ResultsLost = "results"/"operations"-"lost", Derive;
    /// Whether the broker lets commands through to us.
    Hearing = "connection"/"bool"-"hearing", Gauge;
    /// Whether there is a connection.
    Connected = "connection"/"bool"-"connected", Gauge;
    /// Connections that were made.
    Connections = "connection"/"connections"-"made", Derive;
    /// Connections that were lost.
    Lost = "connection"/"errors"-"lost", Derive;
    /// Attempts to connect that have failed.
    Unreachable = "connection"/"errors"-"unreachable", Derive;
    /// Attempts to connect that the broker has refused.
    Refused = "connection"/"errors"-"refused", Derive;
    /// Subscriptions that the broker has refused.
    Denied = "connection"/"errors"-"denied", Derive;
    /// How often somebody else has taken over the session.
    TakenOver = "connection"/"errors"-"taken_over", Derive;
    /// Whether another client seems to have our client id.
    SharedClientId = "connection"/"bool"-"client_id_shared", Gauge;
    /// Whether the journal outlives the daemon.
    Durable = "journal"/"bool"-"durable", Gauge;
    /// Places of the journal that were damaged.
    Damaged = "journal"/"errors"-"damaged", Derive;
    /// How often the disk of the journal did not answer in time.
    DiskLate = "journal"/"errors"-"late", Derive;
    /// Values and notifications that were handed to rules.
    RulesTaken = "rules"/"operations"-"taken", Derive;
    /// Those that were not, because the rules were too slow.
    RulesDropped = "rules"/"operations"-"dropped", Derive;
    /// Calls of handlers that failed or were stopped.
    RulesFaults = "rules"/"errors"-"handlers", Derive;
    /// Actions that rules have asked for.
    RulesActions = "rules"/"operations"-"actions", Derive;
    /// Whether recovery is on hold.
    Held = "trust"/"bool"-"held", Gauge;
    /// Lines of the audit log that were not written.
    AuditLost = "trust"/"errors"-"audit_lost", Derive;
}

/// Where what is counted comes together.
#[derive(Debug)]
pub struct Metrics {
    values: Vec<AtomicU64>,
    /// One for each code that is not an exit status.
    refused: Vec<AtomicU64>,
    ear: Mutex<Ear>,
}

/// Whether we hear commands.
#[derive(Debug, Default)]
struct Ear {
    /// Since when not, and why.
    deaf: Option<(Instant, String)>,
    /// The world was told.
    told: bool,
}

/// What a notification is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The monitor does not hear, for this reason.
    Deaf(String),
    /// It hears again.
    Hears,
}

impl Default for Metrics {
    fn default() -> Self {
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            values: zeros(SERIES.len()),
            refused: zeros(protocol::CODES.len()),
            ear: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Counts so many more.
    pub fn add(&self, metric: Metric, count: u64) {
        self.values[metric as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Counts one more.
    pub fn count(&self, metric: Metric) {
        self.add(metric, 1);
    }

    /// It is so much now.
    pub fn set(&self, metric: Metric, value: u64) {
        self.values[metric as usize].store(value, Ordering::Relaxed);
    }

    /// How much it is.
    pub fn get(&self, metric: Metric) -> u64 {
        self.values[metric as usize].load(Ordering::Relaxed)
    }

    /// A message was refused.
    pub fn refused(&self, code: Code) {
        let at = protocol::CODES.iter().position(|(other, _)| *other == code);
        if let Some(count) = at.and_then(|at| self.refused.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A command has ended, or will never run.
    pub(crate) fn ended(&self, code: Code) {
        match code {
            Code::Exit(0) => self.count(Metric::Succeeded),
            Code::Exit(_) => self.count(Metric::Failed),
            Code::TimedOut => self.count(Metric::TimedOut),
            Code::Interrupted => self.count(Metric::Interrupted),
            Code::NotStarted => self.count(Metric::NotStarted),
            // It waited for too long.
            other => self.refused(other),
        }
    }

    /// No commands come through. The last reason counts.
    pub(crate) fn deaf(&self, why: &str) {
        self.set(Metric::Hearing, 0);
        let mut ear = self.ear();
        match &mut ear.deaf {
            Some((_, reason)) => why.clone_into(reason),
            None => ear.deaf = Some((Instant::now(), why.to_owned())),
        }
    }

    /// Commands come through.
    pub(crate) fn hears(&self) {
        self.set(Metric::Hearing, 1);
        self.ear().deaf = None;
    }

    /// What the world is to be told of it now, once.
    pub(crate) fn word(&self, now: Instant) -> Option<Word> {
        let mut ear = self.ear();
        let word = match (&ear.deaf, ear.told) {
            (Some((since, why)), false) if now - *since >= DEAF_AFTER => Word::Deaf(why.clone()),
            (None, true) => Word::Hears,
            _ => return None,
        };
        ear.told = !ear.told;
        Some(word)
    }

    fn ear(&self) -> MutexGuard<'_, Ear> {
        self.ear.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, as the daemon takes it.
    pub(crate) fn report(&self) -> Vec<ValueList> {
        let list = |instance: &str, type_: &str, type_instance: String, value| ValueList {
            values: vec![value],
            time: None,
            interval: None,
            host: String::new(),
            plugin: "monitor".to_owned(),
            plugin_instance: instance.to_owned(),
            type_: type_.to_owned(),
            type_instance,
        };
        let mut all: Vec<_> = SERIES
            .iter()
            .map(|(metric, instance, type_, type_instance, kind)| {
                let value = data(*kind, self.get(*metric));
                list(instance, type_, (*type_instance).to_owned(), value)
            })
            .collect();
        for (count, (_, number)) in self.refused.iter().zip(protocol::CODES) {
            let value = data(Kind::Derive, count.load(Ordering::Relaxed));
            all.push(list("refused", "operations", format!("{number:#x}"), value));
        }
        all
    }
}

fn data(kind: Kind, value: u64) -> DataValue {
    match kind {
        Kind::Derive => DataValue::Derive(i64::try_from(value).unwrap_or(i64::MAX)),
        // None of them comes near the number from which on they are not exact.
        Kind::Gauge => DataValue::Gauge(u32::try_from(value).map_or(f64::MAX, f64::from)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(metrics: &Metrics, instance: &str, type_instance: &str) -> Vec<DataValue> {
        let all = metrics.report();
        let mut found = all
            .into_iter()
            .filter(|list| list.plugin_instance == instance && list.type_instance == type_instance);
        let list = found.next().unwrap();
        assert_eq!(found.next(), None);
        list.values
    }

    #[test]
    fn what_is_counted_is_reported() {
        let metrics = Metrics::default();
        metrics.count(Metric::Succeeded);
        metrics.add(Metric::TimeQueued, 41);
        metrics.set(Metric::Waiting, 3);
        metrics.refused(Code::Stale);
        metrics.refused(Code::Exit(3));
        let derive = |number| vec![DataValue::Derive(number)];
        assert_eq!(find(&metrics, "commands", "succeeded"), derive(1));
        assert_eq!(find(&metrics, "commands", "queued"), derive(41));
        assert_eq!(find(&metrics, "refused", "0x3008"), derive(1));
        assert_eq!(find(&metrics, "refused", "0x1001"), derive(0));
        let gauge = vec![DataValue::Gauge(3.0)];
        assert_eq!(find(&metrics, "commands", "waiting"), gauge);
    }

    #[test]
    fn each_series_is_there_once() {
        let all = Metrics::default().report();
        let names: std::collections::HashSet<_> = all
            .iter()
            .map(|l| (&l.plugin_instance, &l.type_, &l.type_instance))
            .collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn deafness_is_told_once_when_it_lasts_and_so_is_its_end() {
        let metrics = Metrics::default();
        let start = Instant::now();
        assert_eq!(metrics.word(start + DEAF_AFTER * 2), None);
        metrics.deaf("first");
        metrics.deaf("no broker");
        assert_eq!(metrics.word(start), None);
        let late = Instant::now() + DEAF_AFTER;
        assert_eq!(metrics.word(late), Some(Word::Deaf("no broker".into())));
        assert_eq!(metrics.word(late), None);
        metrics.hears();
        assert_eq!(metrics.get(Metric::Hearing), 1);
        assert_eq!(metrics.word(late), Some(Word::Hears));
        assert_eq!(metrics.word(late), None);
        // A moment of it is nothing to talk about.
        metrics.deaf("again");
        metrics.hears();
        assert_eq!(metrics.word(late), None);
    }
}
