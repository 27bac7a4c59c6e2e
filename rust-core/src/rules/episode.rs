//! From a condition to an action, and from an action to a recovery.
//!
//! A rule looks at a value and returns a task, which means that its condition holds, or nothing. What follows
//! is decided here, with nothing but what is put in: evaluations, results and the time.
//!
//! Conditions are counted for each rule and series: `for`, `times`, the episode. Actions are counted for each
//! rule and action, whatever the series that asked: an action that is pending or runs is not started a second
//! time, and `cooldown` and `max_per_hour` hold for it.
//!
//! ```text
//!                 holds for long enough,           no `clear`, `verify`, `escalate`:
//!                 often enough                     acts again for the next value
//!   (nothing) ───▶ Watching ───────────▶ Due ───▶ Acting ───▶ Verifying ───▶ Over ───▶ (nothing)
//!                                         ▲   may      ended     │   │ recovered   cleared
//!                                         └──── next step ◀──────┘   │
//!                                               not in time          └ no step left: FAILURE
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::budget::Budget;
#[cfg(test)]
use super::task::Verify;
use super::task::{Action, Task, Times};
use crate::daemon::Severity;

/// A point in time, as the time since any fixed one, on a clock that does not jump.
pub type Moment = Duration;

/// How many series of all rules may be in trouble at once.
pub const MAX_SERIES: usize = 10_000;
/// How many actions are remembered that ran within the last hour or are cooling down.
const MAX_ACTIONS: usize = 10_000;
/// A series that has not been seen for so many of its intervals is silent.
const SILENT_INTERVALS: u32 = 3;
/// A condition is forgotten when its series has not been seen for this long, if its interval is not longer.
const FORGET: Duration = Duration::from_secs(600);
/// So is an episode that waits to be cleared. What clears it may be a notification, which may take its time.
const FORGET_EPISODE: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);
/// Fewer actions than this are not worth looking through.
const MIN_PRUNE: usize = 64;
/// And not more often than this.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// How many actions notifications may cause without a pause, for each rule, and how long it takes for one more.
/// Values do not answer actions, notifications may.
const BURST: u32 = 60;
const REFILL: Duration = Duration::from_secs(10);

/// Names an action that was started.
pub type RunId = u64;

/// When a value was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it was measured.
    pub measured: Moment,
    /// What time it is now.
    pub now: Moment,
    /// When to expect the next one. Nobody expects a notification.
    pub interval: Option<Duration>,
}

/// What a rule says to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<F> {
    /// What its handler returned.
    pub task: Option<Task<F>>,
    /// What `clear` returned, if it was asked.
    pub clear: Option<bool>,
    /// What the condition of `verify` returned, if it was asked.
    pub check: Option<bool>,
}

impl<F> Default for Verdict<F> {
    fn default() -> Self {
        Self {
            task: None,
            clear: None,
            check: None,
        }
    }
}

/// The functions of a rule to be asked about a value, besides its handler.
#[derive(Debug, PartialEq, Eq)]
pub struct Ask<'a, F> {
    /// `clear`.
    pub clear: Option<&'a F>,
    /// The condition of `verify`.
    pub check: Option<&'a F>,
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It says that it did what it should.
    Succeeded,
    /// It did not, for this reason.
    Failed(String),
    /// It was not even begun, for this reason.
    NotRun(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// To run an action, and to tell how it ended.
    Run(Run),
    /// To tell people.
    Report(Report),
}

/// An action to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// The rule that asks for it.
    pub rule: Arc<str>,
    /// The series that it is about.
    pub series: Arc<str>,
    /// What to do.
    pub action: Action,
    /// Which step of the task it is, from 0.
    pub step: usize,
    /// Only say so. Nobody is told how that ended.
    pub dry: bool,
}

/// Something that people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The rule that it is about.
    pub rule: Arc<str>,
    /// The series.
    pub series: Arc<str>,
    /// What has happened.
    pub event: Event,
    /// Nothing was done, so nobody is to be alarmed.
    pub dry: bool,
}

/// What may happen in an episode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An action has helped.
    Recovered {
        /// Which.
        action: Action,
        /// How long after its end that showed.
        after: Duration,
    },
    /// An action has not helped, another one follows.
    Escalated {
        /// Which.
        action: Action,
        /// How that is known.
        why: String,
        /// What follows.
        next: Action,
    },
    /// An action has not helped, and there is no other one.
    GaveUp {
        /// Which.
        action: Action,
        /// How that is known.
        why: String,
    },
    /// What was given up has ended all the same.
    Cleared,
    /// An action is not started now, because it was started too often.
    Exhausted {
        /// Which.
        action: Action,
    },
    /// Notifications make the rule act again and again.
    Loop,
    /// There are too many series in trouble to watch this one.
    Crowded,
}

impl Event {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Event::Recovered { .. } | Event::Cleared => Severity::Okay,
            Event::Escalated { .. } | Event::Exhausted { .. } => Severity::Warning,
            Event::GaveUp { .. } | Event::Loop | Event::Crowded => Severity::Failure,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Recovered { action, after } => {
                write!(f, "recovered {} s after {action}", after.as_secs())
            }
            Event::Escalated { action, why, next } => {
                write!(f, "{action} has not helped ({why}), next is {next}")
            }
            Event::GaveUp { action, why } => write!(
                f,
                "{action} has not helped ({why}), nothing is done until the condition is cleared"
            ),
            Event::Cleared => f.write_str("cleared"),
            Event::Exhausted { action } => {
                write!(f, "{action} was started as often as max_per_hour allows")
            }
            Event::Loop => f.write_str(
                "notifications make the rule act again and again, which may be a loop; it acts more slowly now",
            ),
            Event::Crowded => f.write_str("too many series are in trouble to watch this one"),
        }
    }
}

/// Why an action is not started now.
enum Blocked {
    /// It is pending or runs.
    Running(RunId),
    /// It was started a short while ago.
    Cooldown(Moment),
    /// It was started as often as it may be.
    Exhausted(Moment),
    /// Notifications make its rule act without end.
    Loop(Moment),
}

/// What is remembered of an action of a rule.
#[derive(Debug, Default)]
struct Ledger {
    /// The latest starts, as many as `max_per_hour` needs.
    starts: VecDeque<Moment>,
    latest: Moment,
    cooldown: Duration,
    /// Somebody knows that it is exhausted.
    told: bool,
}

impl Ledger {
    fn is_over(&self, now: Moment) -> bool {
        now.saturating_sub(self.latest) > self.cooldown.max(HOUR)
    }
}

#[derive(Debug)]
struct Flight {
    rule: Arc<str>,
    action: Action,
    /// Who waits for the result.
    series: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The condition is being counted.
    Watching,
    /// A step wants to be started.
    Due { step: usize, at: Moment },
    /// A step runs.
    Acting { step: usize },
    /// A step has ended. Whether it has helped must show.
    Verifying {
        step: usize,
        from: Moment,
        until: Moment,
    },
    /// Nothing more is done until the condition is cleared.
    Over { gave_up: bool },
}

#[derive(Debug)]
struct Entry<F> {
    task: Task<F>,
    /// The functions of the task went with the rule that it is from.
    outdated: bool,
    phase: Phase,
    /// Whether the condition held for the last values, the latest in the lowest bit.
    history: u64,
    /// Since when it holds, as `times` sees it.
    since: Option<Moment>,
    last: Seen,
    /// What the last value said.
    cleared: bool,
    recovered: bool,
    wake: Moment,
}

impl<F> Entry<F> {
    fn holds(&self) -> bool {
        match self.task.times {
            Some(Times { hits, of }) => (self.history & mask(of)).count_ones() >= hits,
            None => self.history & 1 == 1,
        }
    }

    /// Whether the condition has held for long enough.
    fn is_ripe(&self, at: Moment) -> bool {
        self.since
            .is_some_and(|since| at.saturating_sub(since) >= self.task.hold)
    }

    /// Nobody expects a notification: what the last one said is so until another one comes.
    fn is_notification(&self) -> bool {
        self.last.interval.is_none()
    }

    /// How long it may be quiet around the series before that means something.
    fn patience(&self) -> Duration {
        let interval = self.last.interval.unwrap_or_default();
        interval.saturating_mul(SILENT_INTERVALS)
    }

    fn is_silent(&self, now: Moment) -> bool {
        now.saturating_sub(self.last.measured) >= self.patience()
    }

    /// Takes in what a value said.
    fn take(&mut self, seen: Seen, holds: bool, verdict: &Verdict<F>) {
        let measured = seen.measured.max(self.last.measured);
        if self.phase == Phase::Watching && !self.is_notification() && self.is_silent(measured) {
            // Nobody knows what was in between.
            self.restart();
        }
        self.last = Seen { measured, ..seen };
        self.history = self.history << 1 | u64::from(holds);
        let holds = self.holds();
        match self.since {
            None if holds => self.since = Some(measured),
            Some(_) if !holds => self.since = None,
            _ => {}
        }
        self.cleared = match &self.task.clear {
            Some(_) => verdict.clear.unwrap_or(false),
            None => !holds,
        };
        self.recovered = match self.task.verify.as_ref().and_then(|v| v.check.as_ref()) {
            Some(_) => verdict.check.unwrap_or(false),
            None => self.cleared,
        };
    }

    /// Takes a task that the rule has returned once more.
    fn adopt(&mut self, task: Task<F>) {
        if matches!(self.phase, Phase::Watching | Phase::Due { step: 0, .. }) {
            self.task = task;
        } else if self.outdated {
            // An episode ends as it began, but by the functions that there are now.
            self.task.clear = task.clear;
            if let (Some(old), Some(new)) = (&mut self.task.verify, task.verify) {
                old.check = new.check;
            }
        }
        self.outdated = false;
    }

    /// Starts counting afresh.
    fn restart(&mut self) {
        self.history = 0;
        self.since = None;
    }

    /// Whether there is nothing to remember.
    fn is_idle(&self) -> bool {
        let of = self.task.times.map_or(1, |times| times.of);
        self.phase == Phase::Watching && self.history & mask(of) == 0
    }

    /// When to look at it, if no value comes.
    fn next_look(&self) -> Moment {
        let forget = |after: Duration| self.last.now + after.max(self.patience() * 2);
        match (self.phase, self.since) {
            (Phase::Watching, Some(since)) if self.is_notification() => since + self.task.hold,
            (Phase::Watching, None) if self.is_notification() => forget(FORGET_EPISODE),
            (Phase::Watching, _) => forget(FORGET.max(self.task.hold)),
            (Phase::Due { at, .. }, _) => at,
            (Phase::Verifying { until, .. }, _) => until,
            (Phase::Acting { .. } | Phase::Over { .. }, _) => forget(FORGET_EPISODE),
        }
    }
}

/// The bits of the last so many values.
fn mask(of: u32) -> u64 {
    match of {
        0..64 => (1 << of) - 1,
        _ => u64::MAX,
    }
}

#[derive(Debug)]
struct Rule<F> {
    series: HashMap<Arc<str>, Entry<F>>,
    ledgers: BTreeMap<Action, Ledger>,
    /// What notifications may still cause.
    budget: Budget,
    /// Somebody knows that it is in a loop.
    told: bool,
}

impl<F> Default for Rule<F> {
    fn default() -> Self {
        Self {
            series: HashMap::new(),
            ledgers: BTreeMap::new(),
            budget: Budget::new(BURST, REFILL),
            told: false,
        }
    }
}

/// A series as a rule sees it.
type Key = (Arc<str>, Arc<str>);

/// The episodes of all rules.
#[derive(Debug)]
pub struct Episodes<F> {
    rules: HashMap<Arc<str>, Rule<F>>,
    flights: HashMap<RunId, Flight>,
    running: BTreeMap<(Arc<str>, Action), RunId>,
    wakes: BTreeSet<(Moment, Key)>,
    next_run: RunId,
    entries: usize,
    /// How many series were not watched, because there were too many.
    refused: u64,
    crowded: bool,
    actions: usize,
    /// When to look for actions that need not be remembered.
    prune_at: usize,
    pruned: Moment,
    shadow: bool,
}

impl<F> Episodes<F> {
    /// No episodes yet. In a shadow, every task is dry.
    pub fn new(shadow: bool) -> Self {
        Self {
            rules: HashMap::new(),
            flights: HashMap::new(),
            running: BTreeMap::new(),
            wakes: BTreeSet::new(),
            next_run: 1,
            entries: 0,
            refused: 0,
            crowded: false,
            actions: 0,
            prune_at: MIN_PRUNE,
            pruned: Moment::ZERO,
            shadow,
        }
    }

    /// How many series are in trouble.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many actions are pending or run.
    pub fn running(&self) -> usize {
        self.flights.len()
    }

    /// How often a series in trouble was not watched, because too many were.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// When to call [`Self::tick`], if nothing else happens.
    pub fn next_tick(&self) -> Option<Moment> {
        self.wakes.first().map(|(when, _)| *when)
    }

    /// What to ask a rule about a value of this series, besides its handler.
    pub fn ask(&self, rule: &str, series: &str) -> Ask<'_, F> {
        let rule = self.rules.get(rule);
        match rule.and_then(|rule| rule.series.get(series)) {
            Some(entry) if entry.phase != Phase::Watching => Ask {
                clear: entry.task.clear.as_ref(),
                check: entry.task.verify.as_ref().and_then(|v| v.check.as_ref()),
            },
            _ => Ask {
                clear: None,
                check: None,
            },
        }
    }

    /// A rule has looked at a value.
    pub fn evaluate(
        &mut self,
        rule: &str,
        series: &str,
        seen: Seen,
        mut verdict: Verdict<F>,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.rules.get_key_value(rule).and_then(|(name, rule)| {
            let (series, _) = rule.series.get_key_value(series)?;
            Some((Arc::clone(name), Arc::clone(series)))
        });
        let holds = verdict.task.is_some();
        let key = match (known, verdict.task.take()) {
            (None, None) => return,
            (None, Some(task)) => match self.add(rule, series, seen, task, effects) {
                Some(key) => key,
                None => return,
            },
            (Some(key), task) => {
                if let (Some(task), Some(entry)) = (task, self.entry(&key)) {
                    entry.adopt(task);
                }
                key
            }
        };
        let Some(entry) = self.entry(&key) else {
            return;
        };
        entry.take(seen, holds, &verdict);
        let measured = entry.last.measured;
        match entry.phase {
            Phase::Watching if entry.is_ripe(measured) => self.act(&key, seen.now, effects),
            Phase::Due { step: 0, .. } if !entry.holds() => entry.phase = Phase::Watching,
            // The step before has helped, late.
            Phase::Due { step: 1.., .. } if entry.recovered => {
                self.recover(&key, measured, effects)
            }
            Phase::Due { .. } => self.start(&key, seen.now, effects),
            Phase::Verifying { from, .. } if measured > from && entry.recovered => {
                self.recover(&key, measured, effects);
            }
            Phase::Over { gave_up } if entry.cleared => {
                if gave_up {
                    self.report(&key, Event::Cleared, effects);
                }
                self.remove(&key);
            }
            Phase::Watching
            | Phase::Acting { .. }
            | Phase::Verifying { .. }
            | Phase::Over { .. } => {}
        }
        self.settle(&key);
    }

    /// An action that was to be run has ended, or was not run.
    pub fn finished(&mut self, id: RunId, ended: &Ended, now: Moment, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flights.remove(&id) else {
            return;
        };
        self.running
            .remove(&(Arc::clone(&flight.rule), flight.action));
        for series in flight.series {
            let key = (Arc::clone(&flight.rule), series);
            self.ended(&key, ended, now, effects);
            self.settle(&key);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while self.wakes.first().is_some_and(|(when, _)| *when <= now) {
            let Some((_, key)) = self.wakes.pop_first() else {
                return;
            };
            self.look(&key, now, effects);
            self.settle(&key);
        }
    }

    /// Forgets the rules that there are no more. What they have started is not started again before it ends.
    pub fn retain(&mut self, mut is_there: impl FnMut(&str) -> bool) {
        let gone: Vec<Key> = self
            .rules
            .iter()
            .filter(|(name, _)| !is_there(name))
            .flat_map(|(name, rule)| {
                let series = rule.series.keys();
                series.map(|series| (Arc::clone(name), Arc::clone(series)))
            })
            .collect();
        for key in gone {
            self.remove(&key);
        }
        self.rules.retain(|name, rule| {
            let keep = is_there(name);
            if !keep {
                self.actions -= rule.ledgers.len();
            }
            keep
        });
    }

    /// Lets go of the functions of a rule that has been read again. Its episodes go on.
    pub fn reloaded(&mut self, rule: &str) {
        let entries = self
            .rules
            .get_mut(rule)
            .map(|rule| rule.series.values_mut());
        for entry in entries.into_iter().flatten() {
            entry.task.clear = None;
            if let Some(verify) = &mut entry.task.verify {
                verify.check = None;
            }
            entry.outdated = true;
        }
    }

    fn entry(&mut self, key: &Key) -> Option<&mut Entry<F>> {
        self.rules.get_mut(&key.0)?.series.get_mut(&key.1)
    }

    fn add(
        &mut self,
        rule: &str,
        series: &str,
        seen: Seen,
        task: Task<F>,
        effects: &mut Vec<Effect>,
    ) -> Option<Key> {
        let name = match self.rules.get_key_value(rule) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(rule),
        };
        let key = (name, Arc::from(series));
        if self.entries >= MAX_SERIES {
            self.refused += 1;
            if !std::mem::replace(&mut self.crowded, true) {
                self.report(&key, Event::Crowded, effects);
            }
            return None;
        }
        let entry = Entry {
            task,
            outdated: false,
            phase: Phase::Watching,
            history: 0,
            since: None,
            last: seen,
            cleared: false,
            recovered: false,
            wake: Moment::MAX,
        };
        let rule = self.rules.entry(Arc::clone(&key.0)).or_default();
        rule.series.insert(Arc::clone(&key.1), entry);
        self.entries += 1;
        Some(key)
    }

    fn remove(&mut self, key: &Key) {
        let rule = self.rules.get_mut(&key.0);
        if let Some(entry) = rule.and_then(|rule| rule.series.remove(&key.1)) {
            self.wakes.remove(&(entry.wake, key.clone()));
            self.entries -= 1;
            if self.entries < MAX_SERIES / 10 * 9 {
                self.crowded = false;
            }
        }
    }

    /// Puts a series where it belongs now: to be looked at later, or out of the way.
    fn settle(&mut self, key: &Key) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        if entry.is_idle() {
            self.remove(key);
            return;
        }
        let wake = entry.next_look();
        let before = std::mem::replace(&mut entry.wake, wake);
        self.wakes.remove(&(before, key.clone()));
        self.wakes.insert((wake, key.clone()));
    }

    /// The condition has held for long enough.
    fn act(&mut self, key: &Key, now: Moment, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        if entry.task.has_episodes() {
            entry.phase = Phase::Due { step: 0, at: now };
            self.start(key, now, effects);
            return;
        }
        // Each value is a reason to act. A notification that comes at the wrong time is none later.
        let notified = entry.is_notification();
        let started = self.launch(key, 0, now, effects).is_ok();
        if let (true, Some(entry)) = (started || notified, self.entry(key)) {
            entry.restart();
        }
    }

    /// Starts the step that is due, if it may be.
    fn start(&mut self, key: &Key, now: Moment, effects: &mut Vec<Effect>) {
        let Some(Entry {
            phase: Phase::Due { step, .. },
            ..
        }) = self.entry(key)
        else {
            return;
        };
        let step = *step;
        let next = match self.launch(key, step, now, effects) {
            Ok(None) => Phase::Acting { step },
            Ok(Some(dry)) => {
                if let Some(entry) = self.entry(key) {
                    entry.phase = Phase::Acting { step };
                }
                return self.ended(key, &dry, now, effects);
            }
            Err(Blocked::Running(id)) => {
                // Another series has asked for the same. What comes of it matters to both.
                if let Some(flight) = self.flights.get_mut(&id) {
                    flight.series.push(Arc::clone(&key.1));
                }
                Phase::Acting { step }
            }
            Err(Blocked::Cooldown(at) | Blocked::Exhausted(at) | Blocked::Loop(at)) => {
                Phase::Due { step, at }
            }
        };
        if let Some(entry) = self.entry(key) {
            entry.phase = next;
        }
    }

    /// Starts an action, unless something speaks against it. What is dry has ended at once.
    fn launch(
        &mut self,
        key: &Key,
        step: usize,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<Ended>, Blocked> {
        self.prune(now);
        let shadow = self.shadow;
        let Some(rule) = self.rules.get_mut(&key.0) else {
            return Ok(None);
        };
        let Some(entry) = rule.series.get(&key.1) else {
            return Ok(None);
        };
        let task = &entry.task;
        let Some(action) = task.step(step).cloned() else {
            return Ok(None);
        };
        if let Some(id) = self.running.get(&(Arc::clone(&key.0), action.clone())) {
            return Err(Blocked::Running(*id));
        }
        let dry = shadow || task.dry_run;
        let tell = |event| {
            Effect::Report(Report {
                rule: Arc::clone(&key.0),
                series: Arc::clone(&key.1),
                event,
                dry,
            })
        };
        match rule.ledgers.get_mut(&action) {
            Some(ledger) => {
                if let Some(blocked) = blocked(ledger, task, now) {
                    let exhausted = matches!(blocked, Blocked::Exhausted(_));
                    if exhausted && !std::mem::replace(&mut ledger.told, true) {
                        effects.push(tell(Event::Exhausted { action }));
                    }
                    return Err(blocked);
                }
            }
            None if self.actions >= MAX_ACTIONS => {
                return Err(Blocked::Cooldown(now + FORGET));
            }
            None => {}
        }
        if entry.is_notification() {
            if let Err(at) = rule.budget.spend(now) {
                if !std::mem::replace(&mut rule.told, true) {
                    effects.push(tell(Event::Loop));
                }
                return Err(Blocked::Loop(at));
            }
            if rule.budget.is_full(now) {
                rule.told = false;
            }
        }
        let kept = task.max_per_hour.unwrap_or(0) as usize;
        let cooldown = task.cooldown;
        let ledger = rule.ledgers.entry(action.clone()).or_insert_with(|| {
            self.actions += 1;
            Ledger::default()
        });
        ledger.starts.push_back(now);
        while ledger.starts.len() > kept {
            ledger.starts.pop_front();
        }
        ledger.latest = now;
        ledger.cooldown = cooldown;
        ledger.told = false;

        let id = self.next_run;
        self.next_run += 1;
        if !dry {
            self.running
                .insert((Arc::clone(&key.0), action.clone()), id);
            let flight = Flight {
                rule: Arc::clone(&key.0),
                action: action.clone(),
                series: vec![Arc::clone(&key.1)],
            };
            self.flights.insert(id, flight);
        }
        effects.push(Effect::Run(Run {
            id,
            rule: Arc::clone(&key.0),
            series: Arc::clone(&key.1),
            action,
            step,
            dry,
        }));
        Ok(dry.then_some(Ended::Succeeded))
    }

    /// Forgets actions that nothing depends on any more.
    fn prune(&mut self, now: Moment) {
        if self.actions < self.prune_at || now < self.pruned + PRUNE_INTERVAL {
            return;
        }
        self.pruned = now;
        for rule in self.rules.values_mut() {
            rule.ledgers.retain(|_, ledger| !ledger.is_over(now));
        }
        self.actions = self.rules.values().map(|rule| rule.ledgers.len()).sum();
        self.rules
            .retain(|_, rule| !(rule.series.is_empty() && rule.ledgers.is_empty()));
        self.prune_at = (self.actions * 2).clamp(MIN_PRUNE, MAX_ACTIONS);
    }

    /// An action that a series has waited for has ended.
    fn ended(&mut self, key: &Key, ended: &Ended, now: Moment, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let Phase::Acting { step } = entry.phase else {
            if entry.phase == Phase::Watching {
                // `for` and `times` count what is after the action.
                entry.restart();
            }
            return;
        };
        let within = entry.task.verify.as_ref().map(|verify| verify.within);
        let why = match (ended, within) {
            (Ended::NotRun(why), _) | (Ended::Failed(why), None) => why.clone(),
            (Ended::Succeeded | Ended::Failed(_), Some(within)) => {
                // It takes a value to show it, and one more if the first is half from before.
                let least = entry.last.interval.unwrap_or_default() * 2;
                entry.phase = Phase::Verifying {
                    step,
                    from: now,
                    until: now + within.max(least),
                };
                // No value has to follow a notification that all is well.
                if entry.is_notification() && entry.recovered {
                    self.recover(key, now, effects);
                }
                return;
            }
            (Ended::Succeeded, None) => {
                entry.phase = Phase::Over { gave_up: false };
                if entry.is_notification() && entry.cleared {
                    self.remove(key);
                }
                return;
            }
        };
        self.step_failed(key, step, why, now, effects);
    }

    /// A step has not helped.
    fn step_failed(
        &mut self,
        key: &Key,
        step: usize,
        why: String,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let Some(action) = entry.task.step(step).cloned() else {
            return;
        };
        if entry.is_notification() && entry.recovered {
            self.remove(key);
            return;
        }
        match entry.task.step(step + 1).cloned() {
            Some(next) => {
                // It looks as if all were well. The next value shows whether it is.
                let wait = entry.recovered.then(|| entry.patience());
                entry.phase = Phase::Due {
                    step: step + 1,
                    at: now + wait.unwrap_or_default(),
                };
                self.report(key, Event::Escalated { action, why, next }, effects);
                if wait.is_none() {
                    self.start(key, now, effects);
                }
            }
            None => {
                entry.phase = Phase::Over { gave_up: true };
                self.report(key, Event::GaveUp { action, why }, effects);
            }
        }
    }

    /// A step has helped.
    fn recover(&mut self, key: &Key, at: Moment, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let (step, after) = match entry.phase {
            Phase::Verifying { step, from, .. } => (step, at.saturating_sub(from)),
            Phase::Due { step, .. } => (step.saturating_sub(1), Duration::ZERO),
            Phase::Watching | Phase::Acting { .. } | Phase::Over { .. } => return,
        };
        let Some(action) = entry.task.step(step).cloned() else {
            return;
        };
        let cleared = entry.cleared;
        entry.phase = Phase::Over { gave_up: false };
        self.report(key, Event::Recovered { action, after }, effects);
        if cleared {
            self.remove(key);
        }
    }

    /// Looks at a series for which no value came in time.
    fn look(&mut self, key: &Key, now: Moment, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        match entry.phase {
            Phase::Watching if entry.is_notification() && entry.since.is_some() => {
                self.act(key, now, effects);
            }
            Phase::Due { step: 0, .. } if !entry.is_notification() && entry.is_silent(now) => {
                entry.phase = Phase::Watching;
                entry.restart();
            }
            Phase::Due { .. } => self.start(key, now, effects),
            Phase::Verifying { step, from, until } => {
                let why = format!("no recovery within {} s", (until - from).as_secs_f64());
                self.step_failed(key, step, why, now, effects);
            }
            Phase::Watching | Phase::Acting { .. } | Phase::Over { .. } => self.remove(key),
        }
    }

    fn report(&self, key: &Key, event: Event, effects: &mut Vec<Effect>) {
        let rule = self.rules.get(&key.0);
        let entry = rule.and_then(|rule| rule.series.get(&key.1));
        effects.push(Effect::Report(Report {
            rule: Arc::clone(&key.0),
            series: Arc::clone(&key.1),
            event,
            dry: self.shadow || entry.is_some_and(|entry| entry.task.dry_run),
        }));
    }
}

/// What an action's past says against starting it now.
fn blocked<F>(ledger: &Ledger, task: &Task<F>, now: Moment) -> Option<Blocked> {
    let rested = ledger.latest + task.cooldown;
    if rested > now {
        return Some(Blocked::Cooldown(rested));
    }
    let most = task.max_per_hour? as usize;
    // The oldest of those that count must be an hour ago.
    let oldest = ledger.starts.len().checked_sub(most)?;
    let free = *ledger.starts.get(oldest)? + HOUR;
    (free > now).then_some(Blocked::Exhausted(free))
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod stories;
