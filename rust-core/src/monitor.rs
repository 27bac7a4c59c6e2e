//! The monitor as a whole, from configuration to shutdown.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crossbeam_channel::{bounded, never, Sender};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::clock::iso8601;
use crate::daemon::{Daemon, Notification, Severity};
use crate::engine::{Engine, Output, Parts};
use crate::logging::{Device, Entered, Logger, Threshold};
use crate::metrics::{Metric, Metrics, Word};
use crate::remote::{Links, Remote};
use crate::rules::intake::Intake;
use crate::rules::{Elsewhere, Rules};
use crate::runner::Client;
use crate::settings::{Block, Settings};
use crate::store::{Store, Syncer};
use crate::threads::{self, Failure};
use crate::trust::{audit, Change, Requester, Trust};

/// How many messages may wait for the engine.
const INPUTS: usize = 256;
/// How many reports may wait for the engine.
const EVENTS: usize = 64;
/// How many results may wait for the connection's thread, which only passes them on.
const OUTPUTS: usize = 2048;
/// How long the disk may hold up the shutdown.
const DISK_PATIENCE: Duration = Duration::from_secs(2);
/// How long a name lookup that hangs may hold up the shutdown.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(5);

/// Why the monitor did not do what it was asked. What exactly is wrong is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The settings are wrong.
    Configuration,
    /// It could not be started.
    Init,
    /// This is not the time for it.
    State,
    /// It has failed before and is out of service.
    Failed,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Configuration => "the settings are wrong",
            Error::Init => "the monitor could not be started",
            Error::State => "this is not the time for it",
            Error::Failed => "the monitor has failed and is out of service",
        })
    }
}

impl std::error::Error for Error {}

/// The monitor.
pub struct Monitor {
    daemon: Arc<dyn Daemon>,
    helper: PathBuf,
    failure: Arc<Failure>,
    metrics: Arc<Metrics>,
    /// The journal, while it is used.
    journal: Mutex<Weak<Mutex<Store>>>,
    /// Where the rules see values and notifications.
    intake: Arc<Intake>,
    /// Where lines go. Its lock is only held to look at it, so that no callback waits for another.
    logger: Mutex<Logger>,
    /// How far the monitor is. Its lock is held while it starts.
    phase: Mutex<Phase>,
}

enum Phase {
    /// Waits for its configuration.
    New,
    /// Knows its settings, and has not started anything.
    Configured(Box<Settings>),
    /// Its threads run.
    Running(Running),
    /// Its threads are joined. It does not start again; a new one does.
    Stopped,
}

struct Running {
    /// Closed to stop the engine.
    engine_stop: Sender<Infallible>,
    engine: JoinHandle<()>,
    /// Brings the journal to the disk. Ends when the engine does.
    journal: Option<JoinHandle<()>>,
    /// Writes the audit log. Ends when nobody decides any more.
    audit: Option<JoinHandle<()>>,
    trust: Arc<Trust>,
    remote: Option<(watch::Sender<bool>, JoinHandle<()>)>,
    rules: Option<Rules>,
}

impl Monitor {
    /// A monitor of this daemon, which runs commands through the helper installed there.
    pub fn new(daemon: Arc<dyn Daemon>, helper: PathBuf) -> Self {
        // Until the settings say otherwise, mistakes in them go to the daemon's log.
        let logger = own_log(&daemon);
        Self {
            failure: Arc::new(Failure::new(Arc::clone(&daemon))),
            metrics: Arc::default(),
            journal: Mutex::default(),
            intake: Arc::default(),
            logger: Mutex::new(logger),
            phase: Mutex::new(Phase::New),
            daemon,
            helper,
        }
    }

    /// Makes the monitor's way of logging this thread's, for as long as the result lives.
    pub fn enter(&self) -> Entered {
        self.logger().enter()
    }

    /// Takes note of a panic that was caught. From here on the monitor does nothing.
    pub fn failed(&self, place: &str, panic: &(dyn std::any::Any + Send)) {
        self.failure.report(place, panic);
    }

    /// Takes its block of collectd.conf. Every mistake in it is logged.
    pub fn configure(&self, block: &Block) -> Result<(), Error> {
        self.in_service()?;
        let mut phase = self.phase();
        match &*phase {
            Phase::New => {}
            Phase::Configured(_) => {
                error!("there are two <Plugin monitor> blocks; put everything into one");
                return Err(Error::Configuration);
            }
            Phase::Running(_) | Phase::Stopped => return Err(Error::State),
        }
        let settings = Settings::read(block).map_err(|problems| {
            for problem in problems.iter() {
                error!("{problem}");
            }
            Error::Configuration
        })?;
        let logger = Logger::new(
            Arc::clone(&self.daemon),
            settings.device,
            settings.threshold,
        );
        *lock(&self.logger) = logger;
        *phase = Phase::Configured(Box::new(settings));
        Ok(())
    }

    /// Starts what was configured. Nothing runs if this fails.
    pub fn init(&self) -> Result<(), Error> {
        self.in_service()?;
        let mut phase = self.phase();
        let settings = match std::mem::replace(&mut *phase, Phase::Stopped) {
            Phase::Configured(settings) => settings,
            Phase::New => {
                error!("there is no <Plugin monitor> block, so there is nothing to do");
                *phase = Phase::New;
                return Err(Error::Init);
            }
            other => {
                *phase = other;
                return Err(Error::State);
            }
        };
        let started = self.start(*settings, &self.logger()).map_err(|why| {
            // Whoever loads the plugin is shown what the daemon's log is told.
            let _entered = own_log(&self.daemon).enter();
            error!("cannot start: {why}");
            Error::Init
        });
        *phase = Phase::Running(started?);
        Ok(())
    }

    fn start(&self, settings: Settings, logger: &Logger) -> Result<Running, String> {
        let remote = settings
            .remote
            .clone()
            .map(|remote| Remote::prepare(remote, Arc::clone(&self.daemon)))
            .transpose()?;
        let (trust, auditor) = Trust::new(settings.trust, &self.daemon)?;
        let trust = Arc::new(trust);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .thread_name("monitor-resolver")
            .build()
            .map_err(|error| format!("there is no event loop: {error}"))?;

        let (events_in, events) = bounded(EVENTS);
        let (inputs_in, inputs) = bounded(INPUTS);
        let (outputs_in, outputs) = mpsc::channel(OUTPUTS);
        let (engine_stop, engine_stopped) = bounded::<Infallible>(0);

        let helper = settings.helper.unwrap_or_else(|| self.helper.clone());
        let runner = Client::start(helper, events_in, logger.clone(), Arc::clone(&self.failure))?;
        let thread_failed = |error| format!("no thread could be started: {error}");
        let directory = settings
            .state_dir
            .unwrap_or_else(|| self.daemon.state_dir());
        let (store, problem) = Store::open(&directory);
        if let Some(problem) = problem {
            error!("the journal is only in memory, so a task may be run again after a restart: {problem}");
        }
        let (syncer, synced, journal) = match store.sync_handle() {
            Some(file) => {
                let (syncer, worker, synced) = Syncer::new(file);
                let journal = threads::spawn("monitor-journal", logger, &self.failure, || {
                    worker.run();
                });
                (Some(syncer), synced, Some(journal.map_err(thread_failed)?))
            }
            None => (None, never(), None),
        };
        let audit = auditor
            .map(|writer| threads::spawn("monitor-audit", logger, &self.failure, || writer.run()));
        let audit = audit.transpose().map_err(thread_failed)?;
        let store = Arc::new(Mutex::new(store));
        *lock(&self.journal) = Arc::downgrade(&store);
        let clock = Arc::clone(&self.daemon);
        let at_engine = Arc::clone(&store);
        let engine = Engine::new(Parts {
            services: settings.services,
            runner: Box::new(runner),
            store: Arc::clone(&store),
            syncer,
            freshness: settings.freshness,
            trust: Arc::clone(&trust),
            metrics: Arc::clone(&self.metrics),
            clock: Box::new(move || clock.now()),
            outputs: Box::new(move |output| {
                if let Err(error) = outputs_in.try_send(output) {
                    match error.into_inner() {
                        Output::Result(number, outcome) => {
                            lock(&at_engine).dropped(number);
                            warn!(task = %outcome.task, "a result was dropped, because nobody takes it");
                        }
                        // The broker delivers the message again.
                        Output::Acknowledge(_) => debug!("a message is not acknowledged"),
                        Output::Status => debug!("the status is not told"),
                    }
                }
            }),
        });
        let engine = threads::spawn("monitor-engine", logger, &self.failure, move || {
            engine.run(&inputs, events, &synced, &engine_stopped);
        })
        .map_err(thread_failed)?;
        let mut running = Running {
            engine_stop,
            engine,
            journal,
            audit,
            trust: Arc::clone(&trust),
            remote: None,
            rules: None,
        };
        let inputs_of_rules = inputs_in.clone();

        if let Some(remote) = remote {
            let (stop, stopped) = watch::channel(false);
            let links = Links {
                inputs: inputs_in,
                outputs,
                store,
                trust,
                metrics: Arc::clone(&self.metrics),
                stop: stopped,
            };
            self.metrics.deaf("there was no connection yet");
            let thread = threads::spawn("monitor-remote", logger, &self.failure, move || {
                runtime.block_on(remote.run(links));
                runtime.shutdown_timeout(RUNTIME_PATIENCE);
            });
            match thread {
                Ok(thread) => running.remote = Some((stop, thread)),
                Err(error) => {
                    running.join();
                    return Err(thread_failed(error));
                }
            }
        }
        if let Some(rules) = settings.rules {
            let (journal, daemon) = (lock(&self.journal).clone(), Arc::clone(&self.daemon));
            let elsewhere = Elsewhere {
                remote: settings.remote.as_ref(),
                not_held: Arc::new(move || not_held(&journal, &*daemon)),
            };
            let started = Rules::start(
                rules,
                elsewhere,
                Arc::clone(&self.daemon),
                Arc::clone(&self.intake),
                inputs_of_rules,
                logger,
                &self.failure,
            );
            match started {
                Ok(rules) => running.rules = Some(rules),
                Err(why) => {
                    running.join();
                    return Err(why);
                }
            }
        }
        info!("started");
        Ok(running)
    }

    /// Whether there are rules that want to see values. Known from the configuration on.
    pub fn takes_values(&self) -> bool {
        match &*self.phase() {
            Phase::Configured(settings) => settings.rules.is_some(),
            Phase::Running(running) => running.rules.is_some(),
            Phase::New | Phase::Stopped => false,
        }
    }

    /// Where values and notifications go in. Takes no lock, and answers nothing when the monitor has failed.
    pub(crate) fn intake(&self) -> Result<&Intake, Error> {
        self.in_service()?;
        Ok(&self.intake)
    }

    /// Whether what somebody asks the daemon to do with a plugin may be done. The error is a reason in words, part of
    /// a sentence, without any value of an option. Does not wait for more than the disks of the trust file and of the
    /// journal.
    pub fn may(&self, change: &Change) -> Result<(), String> {
        let Some(trust) = self.trust() else {
            return change.by.mends();
        };
        trust.judge(change)?;
        match &change.by {
            // What a rule does with a plugin is a recovery action, too.
            Requester::Plugin(name) if name == "monitor" => {
                not_held(&lock(&self.journal).clone(), &*self.daemon)
            }
            _ => Ok(()),
        }
    }

    /// Writes down what the daemon has decided about a plugin, with the SHA-256 of the configuration, if it was read.
    /// Does not wait.
    pub fn decided(
        &self,
        change: &Change,
        outcome: Result<(), &str>,
        configuration: Option<String>,
    ) -> Result<(), Error> {
        self.in_service()?;
        if let Some(trust) = self.trust() {
            trust.judged(change, outcome, configuration, self.daemon.now());
        }
        Ok(())
    }

    /// What decides, while it can. The lock is held for longer only while the monitor starts; it is not asked then.
    fn trust(&self) -> Option<Arc<Trust>> {
        self.in_service().ok()?;
        match &*self.phase() {
            Phase::Running(running) => Some(Arc::clone(&running.trust)),
            Phase::New | Phase::Configured(_) | Phase::Stopped => None,
        }
    }

    /// Reports what was counted, and says so when commands do not come through for long. Does not wait.
    pub fn read(&self) -> Result<(), Error> {
        self.in_service()?;
        // Whoever holds the lock may wait for a disk. There is another reading soon.
        if let Some(store) = lock(&self.journal).upgrade() {
            if let Ok(store) = store.try_lock() {
                let losses = store.losses();
                self.metrics.set(Metric::ResultsLost, losses.results);
                let damaged = u64::try_from(losses.damaged).unwrap_or(u64::MAX);
                self.metrics.set(Metric::Damaged, damaged);
                self.metrics.set(Metric::Durable, store.is_durable().into());
                let held = store.held(self.daemon.now()).is_some();
                self.metrics.set(Metric::Held, held.into());
            }
        }
        let counters = &self.intake.counters;
        for (metric, counter) in [
            (Metric::RulesTaken, &counters.taken),
            (Metric::RulesDropped, &counters.dropped),
            (Metric::RulesFaults, &counters.faults),
            (Metric::RulesActions, &counters.actions),
        ] {
            self.metrics.set(metric, counter.load(Ordering::Relaxed));
        }
        if let Ok(phase) = self.phase.try_lock() {
            if let Phase::Running(running) = &*phase {
                let lost = running.trust.audit.lost();
                self.metrics.set(Metric::AuditLost, lost);
            }
        }
        for values in self.metrics.report() {
            if !self.daemon.dispatch_values(&values) {
                debug!(
                    type_ = values.type_,
                    "the daemon does not take a value of this type"
                );
            }
        }
        if let Some(word) = self.metrics.word(Instant::now()) {
            let (severity, message) = match word {
                Word::Deaf(why) => (
                    Severity::Failure,
                    format!("the monitor hears no commands: {why}"),
                ),
                Word::Hears => (
                    Severity::Okay,
                    "the monitor hears commands again".to_owned(),
                ),
            };
            self.daemon.dispatch_notification(&Notification {
                severity,
                time: self.daemon.now(),
                message,
                host: self.daemon.hostname(),
                plugin: "monitor".to_owned(),
                plugin_instance: "connection".to_owned(),
                type_: "bool".to_owned(),
                type_instance: "hearing".to_owned(),
            });
        }
        Ok(())
    }

    /// Ends what runs, and joins every thread.
    pub fn shutdown(&self) {
        let phase = std::mem::replace(&mut *self.phase(), Phase::Stopped);
        if let Phase::Running(running) = phase {
            running.join();
            info!("stopped");
        }
    }

    fn in_service(&self) -> Result<(), Error> {
        if self.failure.happened() {
            Err(Error::Failed)
        } else {
            Ok(())
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        lock(&self.phase)
    }

    fn logger(&self) -> Logger {
        lock(&self.logger).clone()
    }
}

/// The daemon's log, at the level that a site has without asking.
fn own_log(daemon: &Arc<dyn Daemon>) -> Logger {
    Logger::new(Arc::clone(daemon), Device::default(), Threshold::default())
}

/// A panic while a lock was held is reported where it is caught; what it protects is still good enough to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Threads must not outlive what they belong to.
        self.shutdown();
    }
}

impl Running {
    /// First the rules, then the engine, which tells how its commands ended; then the connection, which passes that on.
    fn join(self) {
        // Rules ask for nothing more, and are not told how what they have asked for is ended.
        if let Some(rules) = self.rules {
            rules.join();
        }
        drop(self.engine_stop);
        // A panic of a thread was reported by the thread.
        drop(self.engine.join());
        if let Some(thread) = self.journal {
            if !join_within(thread, DISK_PATIENCE) {
                // It ends when the disk answers. The code stays mapped, and it holds nothing but a descriptor.
                warn!("the disk of the journal does not answer, and is not waited for");
            }
        }
        if let Some((stop, thread)) = self.remote {
            if stop.send(true).is_err() {
                debug!("the connection's thread has ended before");
            }
            drop(thread.join());
        }
        drop(self.trust);
        if let Some(thread) = self.audit {
            if !join_within(thread, audit::STOP_PATIENCE) {
                warn!("the disk of the audit log does not answer, and is not waited for");
            }
        }
    }
}

/// Whether recovery actions may be begun. The error says why not, as a part of a sentence.
fn not_held(store: &Weak<Mutex<Store>>, daemon: &dyn Daemon) -> Result<(), String> {
    let Some(store) = store.upgrade() else {
        return Ok(());
    };
    let store = lock(&store);
    match store.held(daemon.now()) {
        None => Ok(()),
        Some(hold) => Err(format!(
            "recovery is on hold for {} until {}",
            hold.target,
            iso8601(UNIX_EPOCH + Duration::from_secs(hold.until))
        )),
    }
}

/// Waits for a thread that may be held up by a disk. Says whether it has ended.
fn join_within(thread: JoinHandle<()>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ended = thread.is_finished();
    if ended {
        // A panic of a thread was reported by the thread.
        drop(thread.join());
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeDaemon;
    use crate::settings::Value;

    fn block() -> Block {
        Block::option("Plugin", [Value::from("monitor")])
    }

    fn monitor() -> (Arc<FakeDaemon>, Monitor) {
        let daemon = Arc::new(FakeDaemon::new("h"));
        let monitor = Monitor::new(
            Arc::clone(&daemon) as Arc<dyn Daemon>,
            "/nonexistent/helper".into(),
        );
        (daemon, monitor)
    }

    #[test]
    fn values_are_reported_whatever_the_monitor_does() {
        let (daemon, monitor) = monitor();
        let _entered = monitor.enter();
        monitor.read().unwrap();
        let values = daemon.values();
        assert!(values.iter().all(|list| list.plugin == "monitor"));
        // The daemon takes all of them.
        assert_eq!(values.len(), monitor.metrics.report().len());
        assert_eq!(daemon.notifications(), []);
        monitor.metrics.deaf("nobody talks");
        monitor.read().unwrap();
        assert_eq!(daemon.notifications(), []);
    }

    #[test]
    fn without_a_block_there_is_nothing_to_do() {
        let (daemon, monitor) = monitor();
        let _entered = monitor.enter();
        assert_eq!(monitor.init(), Err(Error::Init));
        assert_eq!(daemon.count("there is no <Plugin monitor> block"), 1);
    }

    #[test]
    fn each_mistake_in_the_block_is_a_line_in_the_log() {
        let (daemon, monitor) = monitor();
        let _entered = monitor.enter();
        let wrong = block().with("Hots", "h").with("QoS", 7.0);
        assert_eq!(monitor.configure(&wrong), Err(Error::Configuration));
        assert_eq!(daemon.lines().len(), 2);
        assert_eq!(daemon.count("<Plugin monitor>: Hots: is not a setting"), 1);
    }

    #[test]
    fn two_blocks_are_refused() {
        let (_, monitor) = monitor();
        let good = block().with("Host", "h").with("CommandTopic", "c");
        assert_eq!(monitor.configure(&good), Ok(()));
        assert_eq!(monitor.configure(&good), Err(Error::Configuration));
    }

    #[test]
    fn a_missing_helper_is_named_and_nothing_runs() {
        let (daemon, monitor) = monitor();
        let good = block().with("Host", "h").with("CommandTopic", "c");
        monitor.configure(&good).unwrap();
        let _entered = monitor.enter();
        assert_eq!(monitor.init(), Err(Error::Init));
        assert_eq!(
            daemon.count("cannot start: the helper /nonexistent/helper cannot be started: No such"),
            1
        );
        assert_eq!(monitor.init(), Err(Error::State));
        monitor.shutdown();
    }

    #[test]
    fn why_it_does_not_start_is_in_the_daemons_log_whatever_the_device() {
        let (daemon, monitor) = monitor();
        let block = block()
            .with("Host", "h")
            .with("CommandTopic", "c")
            .with("LogDevice", "syslog")
            .with("LogLevel", "fatal");
        monitor.configure(&block).unwrap();
        let _entered = monitor.enter();
        assert_eq!(monitor.init(), Err(Error::Init));
        assert_eq!(daemon.count("cannot start"), 1);
    }

    #[test]
    fn a_program_that_is_no_helper_is_refused() {
        let (daemon, monitor) = monitor();
        let good = block()
            .with("Host", "h")
            .with("CommandTopic", "c")
            .with("HelperPath", "/bin/true");
        monitor.configure(&good).unwrap();
        let _entered = monitor.enter();
        assert_eq!(monitor.init(), Err(Error::Init));
        assert_eq!(
            daemon.count("the helper /bin/true does not work: it has ended at once"),
            1
        );
    }

    #[test]
    fn after_a_panic_the_monitor_is_out_of_service_and_says_so_once() {
        let (daemon, monitor) = monitor();
        let _entered = monitor.enter();
        let panic = std::panic::catch_unwind(|| panic!("what {}", "happened")).unwrap_err();
        monitor.failed("a test", &*panic);
        monitor.failed("a test", &*panic);
        assert_eq!(daemon.lines().len(), 1);
        assert_eq!(
            daemon.count("failed in a test and is out of service: what happened"),
            1
        );
        assert_eq!(daemon.notifications().len(), 1);
        assert_eq!(monitor.configure(&block()), Err(Error::Failed));
        assert_eq!(monitor.init(), Err(Error::Failed));
        monitor.shutdown();
    }

    #[test]
    fn a_panic_in_a_thread_is_reported_like_any_other() {
        let (daemon, monitor) = monitor();
        let logger = monitor.logger();
        let thread =
            threads::spawn("some-thread", &logger, &monitor.failure, || panic!("boom")).unwrap();
        thread.join().unwrap();
        assert_eq!(
            daemon.count("failed in some-thread and is out of service: boom"),
            1
        );
        assert_eq!(monitor.init(), Err(Error::Failed));
    }
}
