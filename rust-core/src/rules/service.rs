//! Keeps the rules of a directory in force: one thread that looks at the files, and one for each Lua state.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use tracing::{error, info, warn};

use super::errand::{self, Elsewhere, Errands};
use super::files::{Directory, Found};
use super::intake::{Intake, Lane};
use super::lua::{Broken, Environment, Limits, Source};
use super::worker::{Loaded, Order, Parts, Worker};
use super::{Handler, Subject};
use crate::daemon::Daemon;
use crate::engine::Input;
use crate::logging::Logger;
use crate::threads::{self, Failure};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many files may have a state, and a thread, of their own.
const MAX_ISOLATED: usize = 64;
/// How long a function that cannot be stopped, such as a search in a long text, may hold up the shutdown.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many values wait for the rules of a state, where the settings say nothing.
pub const DEFAULT_QUEUE: usize = 8192;

/// What the rules are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the rule files are.
    pub directory: PathBuf,
    /// What they may do.
    pub limits: Limits,
    /// How many values may wait for the rules of a state.
    pub queue: usize,
    /// Whether it is only said what would be done.
    pub shadow: bool,
    /// The key that commands for other hosts are signed with, if any.
    pub key: Option<PathBuf>,
    /// The public keys of other hosts, if only results that they have signed count.
    pub host_keys: Option<PathBuf>,
}

/// The rules, while they run.
pub(crate) struct Rules {
    /// Closed to stop them.
    stop: Sender<Infallible>,
    thread: JoinHandle<()>,
    /// Who sends commands to other hosts.
    courier: Option<JoinHandle<()>>,
    intake: Arc<Intake>,
}

impl Rules {
    /// Starts to keep these rules in force. Through the broker, if there is one, they reach other hosts.
    pub(crate) fn start(
        settings: Settings,
        elsewhere: Elsewhere<'_>,
        daemon: Arc<dyn Daemon>,
        intake: Arc<Intake>,
        inputs: Sender<Input>,
        logger: &Logger,
        failure: &Arc<Failure>,
    ) -> Result<Self, String> {
        let (errands, courier) = errand::prepare(&settings, elsewhere, &daemon)?;
        let no_thread = |error| format!("no thread could be started: {error}");
        let courier = courier.map(|courier| {
            threads::spawn("monitor-errands", logger, failure, || courier.run()).map_err(no_thread)
        });
        let courier = courier.transpose()?;
        let (stop, stopped) = bounded(0);
        let keeper = Keeper {
            directory: Directory::new(&settings.directory, true),
            settings,
            daemon,
            intake: Arc::clone(&intake),
            inputs,
            errands,
            logger: logger.clone(),
            failure: Arc::clone(failure),
            states: BTreeMap::new(),
            good: BTreeMap::new(),
            dropped: 0,
        };
        let thread = threads::spawn("monitor-rules", logger, failure, move || {
            keeper.run(&stopped);
        });
        Ok(Self {
            stop,
            thread: thread.map_err(no_thread)?,
            courier,
            intake,
        })
    }

    /// Ends them. From here on nothing is taken.
    pub(crate) fn join(self) {
        self.intake.set(&[]);
        drop(self.stop);
        // It waits for the threads of the rules, too.
        let deadline = Instant::now() + PATIENCE * 2;
        wait(self.thread, deadline);
        // Nobody gives errands any more.
        if let Some(courier) = self.courier {
            wait(courier, deadline);
        }
    }
}

/// A thread with a Lua state in it.
struct State {
    orders: Sender<Order>,
    queue: Sender<Subject>,
    thread: JoinHandle<()>,
    sources: Vec<Source>,
    handlers: Vec<Handler>,
}

struct Keeper {
    directory: Directory,
    settings: Settings,
    daemon: Arc<dyn Daemon>,
    intake: Arc<Intake>,
    inputs: Sender<Input>,
    errands: Errands,
    logger: Logger,
    failure: Arc<Failure>,
    /// The states: the one that files share has no name, the others have that of their file.
    states: BTreeMap<Option<Arc<str>>, State>,
    /// Of each file the last version that could be loaded.
    good: BTreeMap<Arc<str>, Source>,
    /// How many drops were told.
    dropped: u64,
}

impl Keeper {
    fn run(mut self, stopped: &Receiver<Infallible>) {
        loop {
            if let Some(found) = self.directory.look() {
                self.update(found);
            }
            self.tell_drops();
            match stopped.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.intake.set(&[]);
        let states = std::mem::take(&mut self.states);
        let threads: Vec<_> = states.into_values().map(State::close).collect();
        let deadline = Instant::now() + PATIENCE;
        threads
            .into_iter()
            .for_each(|thread| wait(thread, deadline));
    }

    /// Puts what was found into force.
    fn update(&mut self, found: Found) {
        for problem in &found.problems {
            error!("{problem}");
        }
        let mut groups: BTreeMap<Option<Arc<str>>, Vec<Source>> = BTreeMap::new();
        let mut isolated = 0;
        for source in found.sources {
            let mut key = source.is_isolated().then(|| Arc::clone(&source.name));
            isolated += usize::from(key.is_some());
            if isolated > MAX_ISOLATED && key.is_some() {
                warn!(file = %source.name, "shares the state of the others: more than {MAX_ISOLATED} files ask for one of their own");
                key = None;
            }
            groups.entry(key).or_default().push(source);
        }
        let gone: Vec<_> = self.states.keys().cloned().collect();
        let gone = gone.into_iter().filter(|key| !groups.contains_key(key));
        let gone: Vec<_> = gone.filter_map(|key| self.states.remove(&key)).collect();
        let there: Vec<Arc<str>> = groups.values().flatten().map(|s| s.name.clone()).collect();
        self.good.retain(|name, _| there.contains(name));
        for (key, sources) in groups {
            let same = self
                .states
                .get(&key)
                .is_some_and(|state| state.sources == sources);
            if !same || found.modules_changed {
                self.load(key, sources);
            }
        }
        self.publish();
        let deadline = Instant::now() + PATIENCE;
        let threads: Vec<_> = gone.into_iter().map(State::close).collect();
        threads
            .into_iter()
            .for_each(|thread| wait(thread, deadline));
        let handlers: usize = self.states.values().map(|state| state.handlers.len()).sum();
        info!(
            files = there.len(),
            handlers,
            states = self.states.len(),
            "rules are in force"
        );
    }

    /// Lets the rules see values.
    fn publish(&self) {
        let lanes: Vec<Lane> = self
            .states
            .values()
            .map(|state| Lane {
                queue: state.queue.clone(),
                handlers: state.handlers.clone(),
            })
            .collect();
        self.intake.set(&lanes);
    }

    /// Loads the files of one state. Of one that is broken, the version before it stays in force.
    fn load(&mut self, key: Option<Arc<str>>, sources: Vec<Source>) {
        if !self.states.contains_key(&key) {
            match self.spawn() {
                Ok(state) => {
                    self.states.insert(key.clone(), state);
                }
                Err(error) => {
                    error!("there is no thread for rules: {error}");
                    return;
                }
            }
        }
        let Some(state) = self.states.get_mut(&key) else {
            return;
        };
        let Some(mut loaded) = state.load(sources.clone()) else {
            return;
        };
        let broken = std::mem::take(&mut loaded.broken);
        for source in &sources {
            if !broken.iter().any(|b| b.file == source.name) {
                self.good.insert(Arc::clone(&source.name), source.clone());
            }
        }
        let mut fall_back = false;
        for Broken { file, why } in &broken {
            match self.good.contains_key(file) {
                true => {
                    error!(file = %file, "is broken, the version before it stays in force: {why}");
                    fall_back = true;
                }
                false => error!(file = %file, "is broken and is left out: {why}"),
            }
        }
        if fall_back {
            let good = sources.iter().map(|source| {
                let is_broken = broken.iter().any(|b| b.file == source.name);
                let good = self.good.get(&source.name).filter(|_| is_broken);
                good.unwrap_or(source).clone()
            });
            if let Some(again) = state.load(good.collect()) {
                loaded = again;
            }
        }
        state.handlers = loaded.handlers;
        state.sources = sources;
    }

    fn spawn(&self) -> std::io::Result<State> {
        let (orders, orders_out) = bounded(1);
        let (queue, queue_out) = bounded(self.settings.queue);
        let parts = Parts {
            environment: Environment {
                daemon: Arc::clone(&self.daemon),
                directory: self.settings.directory.clone(),
                limits: self.settings.limits,
                strict: true,
            },
            intake: Arc::clone(&self.intake),
            inputs: self.inputs.clone(),
            errands: self.errands.clone(),
            shadow: self.settings.shadow,
            logger: self.logger.clone(),
            failure: Arc::clone(&self.failure),
        };
        let thread = threads::spawn("monitor-lua", &self.logger, &self.failure, move || {
            Worker::new(parts).run(&orders_out, &queue_out);
        })?;
        Ok(State {
            orders,
            queue,
            thread,
            sources: Vec::new(),
            handlers: Vec::new(),
        })
    }

    /// Says how much was lost, once for each look.
    fn tell_drops(&mut self) {
        let dropped = self.intake.counters.dropped.load(Ordering::Relaxed);
        if dropped > self.dropped {
            warn!(
                dropped = dropped - self.dropped,
                in_all = dropped,
                "values and notifications did not reach the rules, which are too slow"
            );
            self.dropped = dropped;
        }
    }
}

impl State {
    /// Has the thread load files. There is no answer if it has failed.
    fn load(&self, sources: Vec<Source>) -> Option<Loaded> {
        let (reply, loaded) = bounded(1);
        self.orders.send(Order::Load(sources, reply)).ok()?;
        loaded.recv().ok()
    }

    /// Tells the thread to end.
    fn close(self) -> JoinHandle<()> {
        self.thread
    }
}

/// Joins a thread that ends in time. Another one ends when it can: its code stays mapped.
fn wait(thread: JoinHandle<()>, deadline: Instant) {
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    match thread.is_finished() {
        // A panic of a thread was reported by the thread.
        true => drop(thread.join()),
        false => warn!("a rule does not return, and is not waited for"),
    }
}
