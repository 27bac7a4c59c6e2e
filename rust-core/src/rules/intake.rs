//! The way from the daemon's threads to the rules.
//!
//! A write thread asks whether anybody wants a value, before anything of it is copied. If so, it hands over a copy,
//! and goes on; if there is no room for it, the value is lost to the rules and counted. It never waits for a rule.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam_channel::Sender;
use papaya::HashMap;

use super::matching::{self, Index, Match};
use super::{Handler, Kind, Notice, Sample, Series, Subject};

/// How many series are kept, so that values of one share what identifies them.
const MAX_SERIES: usize = 65_536;

/// What was counted on the way.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Values and notifications that were handed over.
    pub(crate) taken: AtomicU64,
    /// Those that were not, because the rules were too slow.
    pub(crate) dropped: AtomicU64,
    /// Calls of handlers that failed or were stopped.
    pub(crate) faults: AtomicU64,
    /// Actions that rules asked for.
    pub(crate) actions: AtomicU64,
}

/// A queue with the handlers behind it.
pub(crate) struct Lane {
    pub(crate) queue: Sender<Subject>,
    pub(crate) handlers: Vec<Handler>,
}

/// What a handler wants to see. Without a match, that is all that does not come from elsewhere.
pub(crate) fn wanted(handler: &Handler) -> Match {
    let mut wanted = Match::default();
    if let Some(declared) = &handler.matches {
        for (name, patterns) in &declared.fields {
            if let Some(field) = matching::Field::from_name(name) {
                wanted = wanted.with(field, patterns);
            }
        }
        if let Some(foreign) = declared.foreign {
            wanted = wanted.with_foreign(foreign);
        }
    }
    wanted
}

/// The handlers of one kind in all lanes.
struct Side {
    index: Index,
    /// Which lane each of them is in.
    lanes: Vec<usize>,
}

impl Side {
    fn new(lanes: &[Lane], kind: Kind) -> Self {
        let all = lanes.iter().enumerate().flat_map(|(lane, of)| {
            let handlers = of.handlers.iter().filter(|handler| handler.kind == kind);
            handlers.map(move |handler| (lane, wanted(handler)))
        });
        let (lanes, matches) = all.unzip();
        Self {
            index: Index::new(matches),
            lanes,
        }
    }

    /// The lanes that want something, each once, in order.
    fn find(&self, subject: &matching::Subject<'_>, mut give: impl FnMut(usize)) {
        let Some(found) = self.index.find(subject) else {
            return;
        };
        let mut last = None;
        // Handlers are numbered lane by lane.
        for handler in found.iter() {
            let lane = self.lanes.get(*handler).copied();
            if let Some(lane) = lane.filter(|lane| last != Some(*lane)) {
                give(lane);
                last = Some(lane);
            }
        }
    }
}

/// The rules that are in force.
struct Current {
    queues: Vec<Sender<Subject>>,
    metrics: Side,
    notifications: Side,
    series: HashMap<Box<str>, Arc<Series>>,
}

impl Current {
    fn new(lanes: &[Lane]) -> Self {
        Self {
            queues: lanes.iter().map(|lane| lane.queue.clone()).collect(),
            metrics: Side::new(lanes, Kind::Metric),
            notifications: Side::new(lanes, Kind::Notification),
            series: HashMap::new(),
        }
    }

    /// The same for every value of a series.
    fn series(
        &self,
        subject: &matching::Subject<'_>,
        make: impl FnOnce() -> Series,
    ) -> Arc<Series> {
        let mut key = subject.fields.join("\0");
        key.push(if subject.foreign { '1' } else { '0' });
        let known = self.series.pin();
        if let Some(series) = known.get(key.as_str()) {
            return Arc::clone(series);
        }
        if known.len() >= MAX_SERIES {
            known.clear();
        }
        let made = Arc::new(make());
        Arc::clone(known.get_or_insert(key.into(), made))
    }
}

/// Where values and notifications go in.
pub(crate) struct Intake {
    current: ArcSwap<Current>,
    pub(crate) counters: Counters,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            current: ArcSwap::from_pointee(Current::new(&[])),
            counters: Counters::default(),
        }
    }
}

impl Intake {
    /// Puts these rules into force. Without any, nothing is taken.
    pub(crate) fn set(&self, lanes: &[Lane]) {
        self.current.store(Arc::new(Current::new(lanes)));
    }

    /// Takes a value, if anybody wants it.
    pub(crate) fn value(
        &self,
        subject: &matching::Subject<'_>,
        series: impl FnOnce() -> Series,
        sample: impl FnOnce(Arc<Series>) -> Sample,
    ) {
        let current = self.current.load();
        let mut parts = Some((series, sample));
        let mut made = None;
        current.metrics.find(subject, |lane| {
            if let Some((series, sample)) = parts.take() {
                let series = current.series(subject, series);
                made = Some(Arc::new(sample(series)));
            }
            if let Some(sample) = &made {
                self.give(&current.queues[lane], Subject::Metric(Arc::clone(sample)));
            }
        });
    }

    /// Takes a notification, if anybody wants it.
    pub(crate) fn notification(
        &self,
        subject: &matching::Subject<'_>,
        notice: impl FnOnce() -> Notice,
    ) {
        let current = self.current.load();
        let mut parts = Some(notice);
        let mut made = None;
        current.notifications.find(subject, |lane| {
            if let Some(notice) = parts.take() {
                made = Some(Arc::new(notice()));
            }
            if let Some(notice) = &made {
                let notice = Subject::Notification(Arc::clone(notice));
                self.give(&current.queues[lane], notice);
            }
        });
    }

    fn give(&self, queue: &Sender<Subject>, subject: Subject) {
        let counter = match queue.try_send(subject) {
            Ok(()) => &self.counters.taken,
            Err(_) => &self.counters.dropped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
