//! The thread that a Lua state lives in: calls handlers, and follows up on what they ask for.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{after, bounded, never, select, Receiver, Sender, TryRecvError};
use mlua::Function;
use tracing::{debug, error, info, warn};

use super::consult::consult;
use super::episode::{Effect, Ended, Episodes, Moment, Report, Run, Seen};
use super::errand::{Errand, Errands};
use super::intake::{wanted, Intake};
use super::lua::{Broken, Environment, LuaState, Plain, Source};
use super::matching::Index;
use super::result;
use super::task::Action;
use super::{Evaluate, Fault, Handler, Kind, Subject};
use crate::daemon::{Daemon, Notification, Severity, Verb};
use crate::engine::{Input, Local, LocalEnd};
use crate::logging::Logger;
use crate::protocol::{Code, Outcome, TaskId};
use crate::threads::{self, Failure};

/// So many offences within this time, and a handler is disabled.
const OFFENCES: usize = 10;
const OFFENCES_WITHIN: Duration = Duration::from_secs(600);
/// How long the same refusal of the same rule is told once.
const REFUSAL_ONCE: Duration = Duration::from_secs(600);
/// How many ends of actions may wait for the worker. There are never more than run or wait in the engine.
const ENDS: usize = 1024;
/// How many values are looked at before anything else is.
const BATCH: usize = 64;
/// How many plugins are changed at once. The daemon changes one after the other.
const MAX_CHANGES: usize = 4;
/// How long a change may hold up the shutdown.
const CHANGE_PATIENCE: Duration = Duration::from_secs(2);
/// A moment before any that matters.
const EPOCH: Duration = Duration::from_secs(86_400 * 7);

/// What a worker is told to do.
pub(super) enum Order {
    /// To put these files into force instead of those before.
    Load(Vec<Source>, Sender<Loaded>),
}

/// What came of it.
pub(super) struct Loaded {
    pub(super) handlers: Vec<Handler>,
    pub(super) broken: Vec<Broken>,
}

/// What a worker needs.
pub(super) struct Parts {
    pub(super) environment: Environment,
    pub(super) intake: Arc<Intake>,
    pub(super) inputs: Sender<Input>,
    pub(super) errands: Errands,
    pub(super) shadow: bool,
    pub(super) logger: Logger,
    pub(super) failure: Arc<Failure>,
}

/// Which handlers of a kind want something.
struct Side {
    index: Index,
    ids: Vec<usize>,
}

impl Side {
    fn new(handlers: &[Handler], kind: Kind) -> Self {
        let of_kind = handlers.iter().enumerate();
        let of_kind = of_kind.filter(|(_, handler)| handler.kind == kind);
        let (ids, matches) = of_kind.map(|(id, handler)| (id, wanted(handler))).unzip();
        Self {
            index: Index::new(matches),
            ids,
        }
    }
}

/// A Lua state with what its handlers have asked for.
pub(super) struct Worker {
    parts: Parts,
    state: Option<LuaState>,
    metrics: Side,
    notifications: Side,
    /// The names of the handlers.
    names: Vec<Arc<str>>,
    sources: Vec<Source>,
    disabled: HashSet<usize>,
    offences: HashMap<usize, VecDeque<Instant>>,
    episodes: Episodes<Function>,
    effects: Vec<Effect>,
    runs: HashMap<u64, Run>,
    refusals: HashMap<(Arc<str>, u32), Instant>,
    ends: (Sender<LocalEnd>, Receiver<LocalEnd>),
    started: Instant,
    /// The threads that have the daemon change a plugin.
    changes: Vec<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            state: None,
            metrics: Side::new(&[], Kind::Metric),
            notifications: Side::new(&[], Kind::Notification),
            names: Vec::new(),
            sources: Vec::new(),
            disabled: HashSet::new(),
            offences: HashMap::new(),
            episodes: Episodes::new(parts.shadow),
            effects: Vec::new(),
            runs: HashMap::new(),
            refusals: HashMap::new(),
            ends: bounded(ENDS),
            started: Instant::now(),
            changes: Vec::new(),
            parts,
        }
    }

    /// Works until nobody gives orders any more.
    pub(super) fn run(mut self, orders: &Receiver<Order>, queue: &Receiver<Subject>) {
        self.work(orders, queue);
        self.stop();
    }

    fn work(&mut self, orders: &Receiver<Order>, queue: &Receiver<Subject>) {
        let ends = self.ends.1.clone();
        loop {
            match orders.try_recv() {
                Ok(order) => self.obey(order),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            while let Ok(end) = ends.try_recv() {
                self.ended(end);
            }
            self.tick();
            let mut some = false;
            for subject in queue.try_iter().take(BATCH) {
                self.subject(&subject);
                some = true;
            }
            if some {
                continue;
            }
            let wait = self
                .episodes
                .next_tick()
                .map(|at| at.saturating_sub(self.now()));
            let tick = wait.map_or_else(never, after);
            select! {
                recv(orders) -> order => match order {
                    Ok(order) => self.obey(order),
                    Err(_) => return,
                },
                recv(ends) -> end => if let Ok(end) = end {
                    self.ended(end);
                },
                recv(queue) -> subject => if let Ok(subject) = subject {
                    self.subject(&subject);
                },
                recv(tick) -> _ => {}
            }
        }
    }

    fn daemon(&self) -> &dyn Daemon {
        &*self.parts.environment.daemon
    }

    fn now(&self) -> Moment {
        EPOCH + self.started.elapsed()
    }

    fn obey(&mut self, order: Order) {
        let Order::Load(sources, reply) = order;
        let broken = self.load(sources);
        let handlers = self.state.as_ref().map(|state| state.handlers().to_vec());
        let loaded = Loaded {
            handlers: handlers.unwrap_or_default(),
            broken,
        };
        // Whoever asked may be gone by now, and then this thread is to end, too.
        drop(reply.try_send(loaded));
    }

    fn load(&mut self, sources: Vec<Source>) -> Vec<Broken> {
        let remembered = self.state.as_ref().map(LuaState::remembered);
        let remembered = remembered.unwrap_or(Plain::Nil);
        let (state, broken) = match LuaState::load(&sources, &self.parts.environment, &remembered) {
            Ok(loaded) => loaded,
            Err(why) => {
                error!("there is no Lua state for the rules: {why}");
                return Vec::new();
            }
        };
        let handlers = state.handlers();
        let names: Vec<Arc<str>> = handlers.iter().map(|h| h.to_string().into()).collect();
        let unchanged = |name: &Arc<str>, handler: &Handler| {
            let text = |list: &[Source]| {
                let source = list.iter().find(|source| source.name == handler.file);
                source.map(|source| Arc::clone(&source.text))
            };
            self.names.contains(name) && text(&self.sources) == text(&sources)
        };
        let disabled = names.iter().zip(handlers).enumerate();
        let disabled = disabled.filter(|(_, (name, handler))| {
            let before = self.names.iter().position(|before| before == *name);
            before.is_some_and(|id| self.disabled.contains(&id)) && unchanged(name, handler)
        });
        self.disabled = disabled.map(|(id, _)| id).collect();
        self.offences.clear();
        let there: HashSet<&str> = names.iter().map(|name| &**name).collect();
        self.episodes.retain(|name| there.contains(name));
        for name in &names {
            // The functions of its tasks live in the state that goes.
            self.episodes.reloaded(name);
        }
        self.metrics = Side::new(handlers, Kind::Metric);
        self.notifications = Side::new(handlers, Kind::Notification);
        self.names = names;
        self.sources = sources;
        self.state = Some(state);
        broken
    }

    fn subject(&mut self, subject: &Subject) {
        let side = match subject.kind() {
            Kind::Metric => &self.metrics,
            Kind::Notification => &self.notifications,
        };
        let Some(found) = side.index.find(&subject.fields()) else {
            return;
        };
        let ids: Vec<usize> = found
            .iter()
            .filter_map(|number| side.ids.get(*number).copied())
            .filter(|id| !self.disabled.contains(id))
            .collect();
        let Some(state) = &mut self.state else {
            return;
        };
        let now = EPOCH + self.started.elapsed();
        let daemon = &self.parts.environment.daemon;
        let faults = consult(
            state,
            &ids,
            &self.names,
            subject,
            || Seen {
                measured: measured(&**daemon, subject, now),
                now,
                interval: subject.interval(),
            },
            &mut self.episodes,
            &mut self.effects,
        );
        for (id, fault) in faults {
            if let Some(name) = self.names.get(id).map(Arc::clone) {
                self.offence(id, &name, &fault);
            }
        }
        self.carry_out();
    }

    fn tick(&mut self) {
        let now = self.now();
        if self.episodes.next_tick().is_some_and(|at| at <= now) {
            self.episodes.tick(now, &mut self.effects);
            self.carry_out();
        }
    }

    /// Does what the episodes decided. What cannot be begun is an end, which may decide something else.
    fn carry_out(&mut self) {
        let mut effects: VecDeque<Effect> = std::mem::take(&mut self.effects).into();
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Report(report) => self.report(&report),
                Effect::Run(run) => {
                    if let Err(why) = self.start(&run) {
                        warn!(rule = %run.rule, series = %run.series, "not run: {}: {why}", run.action);
                        let ended = Ended::NotRun(why);
                        let now = self.now();
                        self.episodes
                            .finished(run.id, &ended, now, &mut self.effects);
                        effects.extend(self.effects.drain(..));
                    }
                }
            }
        }
    }

    fn start(&mut self, run: &Run) -> Result<(), String> {
        let (rule, series, action) = (&run.rule, &run.series, &run.action);
        if run.dry {
            info!(%rule, %series, "would run: {action}");
            return Ok(());
        }
        let (host, service, command, params) = match action {
            Action::Command {
                host,
                service,
                command,
                params,
            } => (host, service.clone(), command.clone(), params.clone()),
            Action::Plugin { verb, plugin } => return self.change_plugin(run, *verb, plugin),
        };
        if self.runs.len() >= ENDS {
            return Err("too many commands are waiting".to_owned());
        }
        let (id, reply) = (run.id, self.ends.0.clone());
        let here = self.daemon().hostname();
        match host.as_ref().filter(|host| **host != here) {
            Some(host) => self.parts.errands.give(Errand {
                run: id,
                host: host.clone(),
                service,
                command,
                params,
                reply,
            })?,
            None => {
                let local = Local {
                    rule: rule.to_string(),
                    service,
                    command,
                    arguments: params,
                    run: id,
                    reply,
                };
                self.parts
                    .inputs
                    .try_send(Input::Local(local))
                    .map_err(|_| "too many commands are waiting".to_owned())?;
            }
        }
        self.parts
            .intake
            .counters
            .actions
            .fetch_add(1, Ordering::Relaxed);
        debug!(%rule, %series, "asks for: {action}");
        self.runs.insert(run.id, run.clone());
        Ok(())
    }

    /// Has the daemon do something with a plugin. That takes its time, so somebody else waits for it.
    fn change_plugin(&mut self, run: &Run, verb: Verb, plugin: &str) -> Result<(), String> {
        if plugin == "monitor" {
            return Err("a rule cannot change the plugin that it runs in".to_owned());
        }
        self.changes.retain(|thread| !thread.is_finished());
        if self.changes.len() >= MAX_CHANGES || self.runs.len() >= ENDS {
            return Err("too many plugins are being changed".to_owned());
        }
        let daemon = Arc::clone(&self.parts.environment.daemon);
        let (id, reply, plugin) = (run.id, self.ends.0.clone(), plugin.to_owned());
        let change = move || {
            let (code, message) = match daemon.change_plugin(verb, &plugin) {
                Ok(message) => (Code::Exit(0), message),
                Err(message) => (Code::Exit(1), message),
            };
            let outcome = Outcome {
                task: TaskId::from(id),
                request: None,
                reply: None,
                message,
                errors: String::new(),
                code,
                at: daemon.now(),
            };
            // There is room for every end; without a worker, nobody wants to know.
            drop(reply.try_send(LocalEnd { run: id, outcome }));
        };
        let (logger, failure) = (&self.parts.logger, &self.parts.failure);
        let thread = threads::spawn("monitor-plugin", logger, failure, change)
            .map_err(|error| format!("there is no thread for it: {error}"))?;
        self.changes.push(thread);
        self.parts
            .intake
            .counters
            .actions
            .fetch_add(1, Ordering::Relaxed);
        self.runs.insert(run.id, run.clone());
        Ok(())
    }

    /// Joins the threads that change plugins. One that waits for the daemon, which may be waiting for us, ends when it
    /// can: its code stays mapped.
    fn stop(self) {
        let deadline = Instant::now() + CHANGE_PATIENCE;
        for thread in self.changes {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            match thread.is_finished() {
                // A panic of a thread was reported by the thread.
                true => drop(thread.join()),
                false => warn!("the change of a plugin is not waited for"),
            }
        }
    }

    /// An action has ended, or was refused.
    fn ended(&mut self, end: LocalEnd) {
        let Some(run) = self.runs.remove(&end.run) else {
            return;
        };
        let outcome = &end.outcome;
        let ended = match outcome.code {
            Code::Exit(0) => Ended::Succeeded,
            Code::Exit(status) => Ended::Failed(format!("exit status {status}")),
            Code::TimedOut | Code::Interrupted => Ended::Failed(outcome.code.state().to_owned()),
            _ => Ended::NotRun(outcome.message.clone()),
        };
        if self.is_news(&run, &ended, outcome.code.number()) {
            let daemon = self.daemon();
            let host = match &run.action {
                Action::Command {
                    host: Some(host), ..
                } => host.clone(),
                _ => daemon.hostname(),
            };
            let result = result::notification(&run.rule, outcome, &host, daemon.now());
            daemon.dispatch_notification(&result);
        }
        let now = self.now();
        self.episodes
            .finished(run.id, &ended, now, &mut self.effects);
        self.carry_out();
    }

    /// A command that is refused each time is told once in a while.
    fn is_news(&mut self, run: &Run, ended: &Ended, code: u32) -> bool {
        if !matches!(ended, Ended::NotRun(_)) {
            self.refusals.retain(|(rule, _), _| *rule != run.rule);
            return true;
        }
        self.refusals
            .retain(|_, told| told.elapsed() < REFUSAL_ONCE);
        let key = (Arc::clone(&run.rule), code);
        self.refusals.insert(key, Instant::now()).is_none()
    }

    fn report(&self, report: &Report) {
        let (rule, series, event) = (&report.rule, &report.series, &report.event);
        if report.dry {
            info!(%rule, %series, "would report: {event}");
            return;
        }
        let severity = event.severity();
        match severity {
            Severity::Okay => info!(%rule, %series, "{event}"),
            Severity::Warning => warn!(%rule, %series, "{event}"),
            Severity::Failure => error!(%rule, %series, "{event}"),
        }
        self.notify(severity, rule, format!("{series}: {event}"));
    }

    fn notify(&self, severity: Severity, rule: &str, message: String) {
        let daemon = self.daemon();
        daemon.dispatch_notification(&Notification {
            severity,
            time: daemon.now(),
            message,
            host: daemon.hostname(),
            plugin: result::PLUGIN.to_owned(),
            plugin_instance: String::new(),
            type_: rule.to_owned(),
            type_instance: String::new(),
        });
    }

    /// A handler has failed. One that does so again and again is not called any more.
    fn offence(&mut self, id: usize, name: &Arc<str>, fault: &Fault) {
        self.parts
            .intake
            .counters
            .faults
            .fetch_add(1, Ordering::Relaxed);
        error!(rule = %name, "{fault}");
        let offences = self.offences.entry(id).or_default();
        offences.push_back(Instant::now());
        offences.retain(|at| at.elapsed() < OFFENCES_WITHIN);
        if offences.len() < OFFENCES {
            return;
        }
        self.offences.remove(&id);
        self.disabled.insert(id);
        let minutes = OFFENCES_WITHIN.as_secs() / 60;
        let why = format!(
            "disabled until its file changes, because it failed {OFFENCES} times within {minutes} minutes, last: {fault}"
        );
        error!(rule = %name, "{why}");
        self.notify(Severity::Failure, name, why);
    }
}

/// When something was measured, on the clock of episodes.
fn measured(daemon: &dyn Daemon, subject: &Subject, now: Moment) -> Moment {
    let age = daemon.now().duration_since(subject.time());
    now.saturating_sub(age.unwrap_or_default())
}
