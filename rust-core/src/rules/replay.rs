//! Recorded values through rules, on a clock of their own: what would be done, and when.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::consult::consult;
use super::episode::{Effect, Ended, Episodes, Moment, Report, Run, Seen};
use super::intake::wanted;
use super::matching::Index;
use super::task::Action;
use super::{Evaluate, Kind, Subject};
use crate::clock::iso8601;

/// Something that would happen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Happening {
    /// When.
    pub time: String,
    /// Because of which rule.
    pub rule: String,
    /// About which series.
    pub series: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// An action is run.
    Run {
        /// Which.
        action: String,
        /// Which step of the task it is, from 0.
        step: usize,
        /// The task is dry: it is only told.
        dry: bool,
    },
    /// A notification is sent.
    Notify {
        /// How bad it is.
        severity: &'static str,
        /// What it says.
        message: String,
        /// The task is dry: it is only told.
        dry: bool,
    },
    /// Rules say something.
    Log {
        /// How much it matters.
        level: &'static str,
        /// What they say.
        message: String,
    },
    /// The rule fails.
    Fail {
        /// How.
        message: String,
    },
}

impl Happening {
    /// One line, for people.
    pub fn line(&self) -> String {
        let would = |dry: &bool| if *dry { " (dry run)" } else { "" };
        let what = match &self.what {
            What::Run { action, step, dry } => match step {
                0 => format!("run: {action}{}", would(dry)),
                _ => format!("run: {action} (step {}){}", step + 1, would(dry)),
            },
            What::Notify {
                severity,
                message,
                dry,
            } => format!("{severity}: {message}{}", would(dry)),
            What::Log { level, message } => format!("{level}: {message}"),
            What::Fail { message } => format!("fails: {message}"),
        };
        format!("{}  {}  {}  {what}", self.time, self.rule, self.series)
    }
}

/// Which handlers of a kind want something.
struct Side {
    index: Index,
    ids: Vec<usize>,
}

/// How an action is taken to end, at once: what it does to the values was recorded, or was not.
pub type EndOf = Box<dyn Fn(&Action) -> Ended>;

/// Rules, with a clock that only moves when it is told.
pub struct Replay<E: Evaluate> {
    evaluate: E,
    names: Vec<Arc<str>>,
    sides: [Side; 2],
    episodes: Episodes<E::Function>,
    /// How every action is taken to end.
    end: EndOf,
    /// Handlers that something was for.
    matched: BTreeSet<usize>,
    now: Moment,
}

impl<E: Evaluate> Replay<E> {
    /// Replays for these rules.
    pub fn new(evaluate: E, end: EndOf) -> Self {
        let side = |kind| {
            let of_kind = evaluate.handlers().iter().enumerate();
            let of_kind = of_kind.filter(|(_, handler)| handler.kind == kind);
            let (ids, matches) = of_kind.map(|(id, handler)| (id, wanted(handler))).unzip();
            Side {
                index: Index::new(matches),
                ids,
            }
        };
        Self {
            sides: [side(Kind::Metric), side(Kind::Notification)],
            names: evaluate
                .handlers()
                .iter()
                .map(|h| h.to_string().into())
                .collect(),
            episodes: Episodes::new(false),
            end,
            matched: BTreeSet::new(),
            now: Moment::ZERO,
            evaluate,
        }
    }

    /// What happens because of a value or notification, and before it. They must come in the order of time.
    pub fn subject(&mut self, subject: &Subject) -> Vec<Happening> {
        let mut happenings = Vec::new();
        let measured = subject
            .time()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.pass(measured, &mut happenings);
        let side = &self.sides[subject.kind() as usize];
        let Some(found) = side.index.find(&subject.fields()) else {
            return happenings;
        };
        let ids: Vec<usize> = found
            .iter()
            .filter_map(|at| side.ids.get(*at).copied())
            .collect();
        self.matched.extend(&ids);
        let seen = Seen {
            measured,
            now: self.now,
            interval: subject.interval(),
        };
        let mut effects = Vec::new();
        let faults = consult(
            &mut self.evaluate,
            &ids,
            &self.names,
            subject,
            || seen,
            &mut self.episodes,
            &mut effects,
        );
        for (id, fault) in faults {
            happenings.push(Happening {
                time: self.time(),
                rule: self.names[id].to_string(),
                series: subject.identifier(),
                what: What::Fail {
                    message: fault.to_string(),
                },
            });
        }
        self.carry_out(effects, &mut happenings);
        happenings
    }

    /// What happens until this moment, if nothing else comes.
    fn pass(&mut self, until: Moment, happenings: &mut Vec<Happening>) {
        while let Some(tick) = self.episodes.next_tick().filter(|tick| *tick <= until) {
            self.now = self.now.max(tick);
            let mut effects = Vec::new();
            self.episodes.tick(tick, &mut effects);
            self.carry_out(effects, happenings);
        }
        self.now = self.now.max(until);
    }

    fn time(&self) -> String {
        iso8601(
            SystemTime::UNIX_EPOCH
                .checked_add(self.now)
                .unwrap_or(UNIX_EPOCH),
        )
    }

    fn carry_out(&mut self, effects: Vec<Effect>, happenings: &mut Vec<Happening>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let (rule, series, what) = match effect {
                Effect::Run(Run {
                    id,
                    rule,
                    series,
                    action,
                    step,
                    dry,
                }) => {
                    if !dry {
                        let mut more = Vec::new();
                        let ended = (self.end)(&action);
                        self.episodes.finished(id, &ended, self.now, &mut more);
                        effects.extend(more);
                    }
                    let action = action.to_string();
                    (rule, series, What::Run { action, step, dry })
                }
                Effect::Report(Report {
                    rule,
                    series,
                    event,
                    dry,
                }) => {
                    let what = What::Notify {
                        severity: event.severity().name(),
                        message: event.to_string(),
                        dry,
                    };
                    (rule, series, what)
                }
            };
            happenings.push(Happening {
                time: self.time(),
                rule: rule.to_string(),
                series: series.to_string(),
                what,
            });
        }
    }

    /// The handlers that nothing was for.
    pub fn unmatched(&self) -> impl Iterator<Item = &str> {
        let names = self.names.iter().enumerate();
        names
            .filter(|(id, _)| !self.matched.contains(id))
            .map(|(_, name)| &**name)
    }
}
