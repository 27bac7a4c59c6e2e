//! Decides what becomes of a message: refused, or run, or waiting for its turn.
//!
//! The engine has a thread of its own. Messages, reports and what reached the disk come in through queues,
//! outcomes go out through a function. What must not be forgotten goes through the journal, in this order:
//!
//! 1. A task that is not refused is written down as accepted. Only then is the broker told that it arrived.
//! 2. When its turn comes, it is written down as started. Only when that is on the disk is it run.
//! 3. How it ended is written down before it is sent.
//! 4. That the broker has it is written down by whoever hears so.
//!
//! So a task that is found started, but not ended, may have run; it is not run again. A disk that does not
//! answer is given a moment and then not waited for: it may be what the recovery is about.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{at, never, select, Receiver, Sender};
use tracing::{error, info, warn};

use crate::arbiter::{Arbiter, Claim, Refusal, Ticket};
use crate::boundary::{self, Boundary};
use crate::clock::{iso8601, parse_iso8601};
use crate::metrics::{Metric, Metrics};
use crate::protocol::{Code, Content, Digest, Message, Outcome, Reply, TaskId, PING};
use crate::runner::{End, Event, Job, Report, Runner};
use crate::settings::{Argument, CommandSpec, Freshness, Program, ServicesSource};
use crate::store::{Earlier, Hold, Number, Origin, Progress, Seen, Store, Syncer};
use crate::trust::audit::{By, Decision};
use crate::trust::{self, Authority, Signed, Trust};

/// How long the runner may take to end its commands when the monitor stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long the disk may take before commands are run without it.
const DISK_PATIENCE: Duration = Duration::from_secs(2);
/// How many messages are taken before the disk is asked to keep what was written.
const MAX_TOGETHER: usize = 16;
/// How many results that the broker does not have are sent after a start.
const MAX_UNDELIVERED: usize = 1024;
/// How long an identical message without a timestamp is taken for the same task, where messages of any age are
/// acted upon.
const SAME_WITHOUT_TIMESTAMP: Duration = Duration::from_secs(300);

/// How a message came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Names the message when it is to be acknowledged.
    pub token: u64,
    /// Whether the broker says that it may have delivered it before.
    pub again: bool,
    /// What the sender wants of the result.
    pub reply: Option<Reply>,
    /// How much longer the sender wants the message to be acted upon.
    pub expires: Option<Duration>,
    /// How long we were away, if the broker may have kept the message meanwhile.
    pub away: Option<Duration>,
}

/// What comes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message that was understood, and what it came with.
    Message(Message, Authority, Delivery),
    /// One that is refused by whoever read it, and whose sender can be told so.
    Refused {
        /// What the sender calls it.
        task: TaskId,
        /// The envelope that it came in, if it came in one.
        request: Option<Digest>,
        /// Why.
        code: Code,
        /// The same in words.
        why: String,
        /// How it came.
        delivery: Delivery,
    },
    /// A task of a rule. It is not in the journal: after a restart, the rule sees for itself what is to be done.
    Local(Local),
}

/// A task that a rule of this host has asked for.
#[derive(Clone, Debug)]
pub struct Local {
    /// The rule.
    pub rule: String,
    /// The service.
    pub service: String,
    /// Its command.
    pub command: String,
    /// What the command is told.
    pub arguments: BTreeMap<String, Argument>,
    /// What the rule calls it.
    pub run: u64,
    /// Who is told how it ended. There is room for as many as may run and wait.
    pub reply: Sender<LocalEnd>,
}

/// How such a task ended.
#[derive(Clone, Debug)]
pub struct LocalEnd {
    /// What the rule calls it.
    pub run: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// What goes out.
#[derive(Clone, Debug)]
pub enum Output {
    /// The message with this token is in good hands.
    Acknowledge(u64),
    /// What the monitor says of itself is different now.
    Status,
    /// A result. The number is the journal's.
    Result(Number, Outcome),
}

/// A task that was not refused.
#[derive(Debug)]
struct Task {
    to: Recipient,
    id: TaskId,
    service: String,
    command: String,
    spec: CommandSpec,
    program: Program,
    reply: Option<Reply>,
    arrived: Instant,
    started: Option<Instant>,
    /// How long its sender wants it to be acted upon.
    expires: Option<Duration>,
    authority: Authority,
    /// Whether the sender has chosen parameters.
    parameters: bool,
}

/// Who is told how a task ended.
#[derive(Clone, Debug)]
enum Recipient {
    /// Whoever listens to results. The number is the journal's.
    Remote(Number),
    /// The rule that asked for it.
    Rule(u64, Sender<LocalEnd>),
}

/// Why a message is not acted upon.
struct Refused {
    code: Code,
    why: String,
}

impl Refused {
    fn new(code: Code, why: impl Into<String>) -> Self {
        Self {
            code,
            why: why.into(),
        }
    }
}

/// What is done when what was written is on the disk.
#[derive(Debug)]
enum Then {
    Acknowledge(u64),
    Run(Ticket, Box<Task>),
}

#[derive(Debug)]
struct Unsynced {
    number: u64,
    deadline: Instant,
    then: Then,
}

/// What the engine works with.
pub(crate) struct Parts {
    /// The commands that may be run.
    pub(crate) services: ServicesSource,
    /// What runs them.
    pub(crate) runner: Box<dyn Runner>,
    /// The journal. Its lock is held for one access at a time.
    pub(crate) store: Arc<Mutex<Store>>,
    /// Brings the journal to the disk, if it has one.
    pub(crate) syncer: Option<Syncer>,
    /// How old messages may be.
    pub(crate) freshness: Freshness,
    /// Who may do what, and where decisions are written down.
    pub(crate) trust: Arc<Trust>,
    /// The time of day.
    pub(crate) clock: Box<dyn Fn() -> SystemTime + Send>,
    /// Where it is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// Where results go.
    pub(crate) outputs: Box<dyn FnMut(Output) + Send>,
}

/// Decides what becomes of each message.
pub(crate) struct Engine {
    parts: Parts,
    arbiter: Arbiter<Task>,
    running: HashMap<Ticket, Task>,
    /// Waits for the disk, in the order in which it was written.
    unsynced: VecDeque<Unsynced>,
    /// The disk has not answered in time.
    disk_is_late: bool,
    /// What the next task of a rule is called.
    next_local: u64,
}

impl Engine {
    /// An engine that begins where the one before it left off.
    pub(crate) fn new(parts: Parts) -> Self {
        let mut engine = Self {
            parts,
            arbiter: Arbiter::default(),
            running: HashMap::new(),
            unsynced: VecDeque::new(),
            disk_is_late: false,
            next_local: 0,
        };
        engine.recover();
        engine
    }

    /// Says what became of what the monitor before this one left behind.
    fn recover(&mut self) {
        let left_behind = self.store().left_behind();
        for task in left_behind {
            let (task_id, service, command) = (&task.task, &task.service, &task.command);
            warn!(task = %task_id, service, command, started = task.started, "was interrupted");
            let message = match task.started {
                true => {
                    "The monitor ended while the command ran; how the command ended is unknown."
                }
                false => "The monitor ended before the command was started.",
            };
            let outcome = self.outcome(
                task.task,
                task.request,
                task.reply,
                Code::Interrupted,
                message,
            );
            self.store().finish(task.number, &outcome);
        }
        let mut undelivered = self.store().undelivered();
        let too_many = undelivered.len().saturating_sub(MAX_UNDELIVERED);
        for (number, _) in undelivered.drain(..too_many) {
            self.store().dropped(number);
        }
        for (number, outcome) in undelivered {
            (self.parts.outputs)(Output::Result(number, outcome));
        }
        let now = (self.parts.clock)();
        let cooling = self.store().cooling(now);
        for (service, command, left) in cooling {
            self.arbiter
                .remember(&service, &command, left, Instant::now());
        }
    }

    /// Works until the stop channel is closed, and ends what runs then.
    pub(crate) fn run(
        mut self,
        inputs: &Receiver<Input>,
        events: Receiver<Event>,
        synced: &Receiver<u64>,
        stop: &Receiver<std::convert::Infallible>,
    ) {
        let mut inputs = inputs.clone();
        let mut synced = synced.clone();
        loop {
            let deadline = self.unsynced.front().map(|first| first.deadline);
            let late = deadline.map_or_else(never, at);
            select! {
                recv(inputs) -> input => match input {
                    Ok(input) => {
                        self.input(input);
                        // Messages that came together go to the disk together.
                        for input in inputs.try_iter().take(MAX_TOGETHER) {
                            self.input(input);
                        }
                    }
                    // Nobody sends any more. What runs may end in peace.
                    Err(_) => inputs = never(),
                },
                recv(events) -> event => match event {
                    Ok(event) => self.event(event),
                    Err(_) => break,
                },
                recv(synced) -> number => match number {
                    Ok(number) => self.synced(number),
                    Err(_) => {
                        synced = never();
                        self.disk_does_not_answer();
                    }
                },
                recv(late) -> _ => self.disk_does_not_answer(),
                recv(stop) -> _ => break,
            }
            // All that was written meanwhile takes one trip to the disk.
            if let Some(syncer) = &mut self.parts.syncer {
                syncer.begin();
            }
        }
        self.stop(events);
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // A panic is reported where it is caught; the journal is only ever changed as a whole.
        self.parts
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what comes from outside.
    pub(crate) fn input(&mut self, input: Input) {
        match input {
            Input::Message(message, authority, delivery) => {
                self.message(message, authority, delivery);
            }
            Input::Local(local) => self.local(local),
            Input::Refused {
                task,
                request,
                code,
                why,
                delivery,
            } => {
                warn!(%task, "refused: {why}");
                self.refuse(task, request, &delivery, code, &why);
                self.acknowledge(&delivery);
            }
        }
    }

    /// A rule asks for a command.
    fn local(&mut self, local: Local) {
        let id = self.local_id();
        let to = Recipient::Rule(local.run, local.reply);
        let content = Content::Command {
            service: local.service.clone(),
            command: local.command.clone(),
            arguments: local.arguments.clone(),
        };
        let now = (self.parts.clock)();
        let mut decision = Decision::new(By::Rule, "rule");
        decision.task = Some(id.to_string());
        trust::describe(&mut decision, &content);
        let permitted = self.parts.trust.permits(&Authority::Local, &content, now);
        let admitted = permitted
            .map_err(|(code, why)| Refused { code, why })
            .and_then(|()| self.admit(&id, &local.service, &local.command, &local.arguments));
        match admitted {
            Ok((claim, spec, program)) => {
                self.parts.trust.record(&decision, now);
                info!(task = %id, rule = local.rule, service = local.service, command = local.command, "asked for by a rule");
                let task = Task {
                    to,
                    id,
                    service: local.service,
                    command: local.command,
                    spec,
                    program,
                    arrived: Instant::now(),
                    authority: Authority::Local,
                    reply: None,
                    started: None,
                    expires: None,
                    parameters: !local.arguments.is_empty(),
                };
                self.arbiter.submit(claim, task);
                self.start();
            }
            Err(Refused { code, why }) => {
                warn!(task = %id, rule = local.rule, service = local.service, command = local.command, "refused: {why}");
                self.parts
                    .trust
                    .record(&decision.refused(Some(code), &why), now);
                let outcome = self.outcome(id, None, None, code, &why);
                self.conclude(&to, outcome);
            }
        }
    }

    /// A name for a task of a rule, which no sender has chosen, and which JavaScript can count with.
    fn local_id(&mut self) -> TaskId {
        let now = (self.parts.clock)().duration_since(SystemTime::UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or_default();
        self.next_local = now.max(self.next_local + 1);
        TaskId::from(self.next_local)
    }

    fn message(&mut self, message: Message, authority: Authority, delivery: Delivery) {
        let now = (self.parts.clock)();
        let key = message.key();
        let request = authority.envelope();
        let mut decision = Decision::new(By::from(&authority), "message");
        decision.task = Some(message.task.to_string());
        trust::describe(&mut decision, &message.content);
        let seen = match &authority {
            Authority::Key(signed) => {
                decision.targets.clone_from(&signed.targets);
                self.store().seen(signed, now)
            }
            Authority::Local | Authority::Unsigned => Seen::Never,
        };
        let permitted = check_seen(seen).and_then(|()| {
            let permitted = self.parts.trust.permits(&authority, &message.content, now);
            permitted.map_err(|(code, why)| Refused { code, why })
        });
        let earlier = match permitted {
            Ok(()) => self.earlier(&message),
            Err(refused) => {
                self.burn(seen, &authority);
                self.decline(message.task, request, refused, decision, &delivery);
                return;
            }
        };
        if let Some(earlier) = earlier {
            self.burn(seen, &authority);
            decision.decision = "repeated";
            decision.reason = "The task came before, and is not run again.".to_owned();
            self.parts.trust.record(&decision, now);
            self.duplicate(message.task, request, earlier, &delivery);
            return;
        }
        if seen == Seen::Same {
            let why = "This message came before. It was refused then, or its result is not kept.";
            let refused = Refused::new(Code::Replayed, why);
            self.decline(message.task, request, refused, decision, &delivery);
            return;
        }
        let Message {
            task,
            timestamp,
            content,
        } = message;
        match content {
            Content::Configuration => {
                self.burn(seen, &authority);
                let why = "This version cannot replace the configuration.";
                let refused = Refused::new(Code::NotImplemented, why);
                self.decline(task, request, refused, decision, &delivery);
            }
            Content::Hold { .. } | Content::Release => {
                let hold = match content {
                    Content::Hold { seconds, reason } => Some((seconds, reason)),
                    _ => None,
                };
                let result = self
                    .check_age(timestamp.as_deref(), &delivery)
                    .and_then(|()| self.hold_or_release(&authority, hold));
                match result {
                    Ok(message) => {
                        self.parts.trust.record(&decision, now);
                        let origin = Origin {
                            signed: signed(&authority),
                            reply: delivery.reply.as_ref(),
                        };
                        let number = self.store().accept(&task, key, "", "", now, origin);
                        let reply = delivery.reply.clone();
                        let outcome = self.outcome(task, request, reply, Code::Exit(0), &message);
                        self.store().finish(number, &outcome);
                        (self.parts.outputs)(Output::Status);
                        (self.parts.outputs)(Output::Result(number, outcome));
                        self.when_on_disk(Then::Acknowledge(delivery.token));
                        self.start();
                    }
                    Err(refused) => {
                        self.burn(seen, &authority);
                        self.decline(task, request, refused, decision, &delivery);
                    }
                }
            }
            Content::Command {
                service, command, ..
            } if (service.as_str(), command.as_str()) == PING => {
                self.burn(seen, &authority);
                self.parts.trust.record(&decision, now);
                self.pong(task, request, delivery.reply.clone());
                self.acknowledge(&delivery);
            }
            Content::Command {
                service,
                command,
                arguments,
            } => {
                let admitted = self
                    .check_age(timestamp.as_deref(), &delivery)
                    .and_then(|()| self.admit(&task, &service, &command, &arguments));
                match admitted {
                    Ok((claim, spec, program)) => {
                        self.parts.trust.record(&decision, now);
                        let reply = delivery.reply;
                        let origin = Origin {
                            signed: signed(&authority),
                            reply: reply.as_ref(),
                        };
                        let number = self
                            .store()
                            .accept(&task, key, &service, &command, now, origin);
                        self.when_on_disk(Then::Acknowledge(delivery.token));
                        let task = Task {
                            to: Recipient::Remote(number),
                            id: task,
                            service,
                            command,
                            spec,
                            program,
                            reply,
                            arrived: Instant::now(),
                            started: None,
                            expires: delivery.expires,
                            authority,
                            parameters: !arguments.is_empty(),
                        };
                        self.arbiter.submit(claim, task);
                        self.start();
                    }
                    Err(refused) => {
                        self.burn(seen, &authority);
                        self.decline(task, request, refused, decision, &delivery);
                    }
                }
            }
        }
    }

    /// Holds recovery actions, or goes on with them. Says what has come of it.
    fn hold_or_release(
        &mut self,
        authority: &Authority,
        hold: Option<(u64, String)>,
    ) -> Result<String, Refused> {
        let Some(signed) = signed(authority) else {
            return Err(Refused::new(Code::Unsigned, "A hold must be signed."));
        };
        let targets = signed.targets.join(", ");
        let Some((seconds, reason)) = hold else {
            let mut released = false;
            for target in &signed.targets {
                released |= self.store().release(target, &signed.kid);
            }
            warn!(by = signed.kid, targets, "recovery is released");
            let still = self.held();
            return Ok(match (released, still) {
                (_, Err(Refused { why, .. })) => format!("Released for {targets}. {why}"),
                (true, Ok(())) => format!("Released for {targets}."),
                (false, Ok(())) => format!("There was no hold for {targets}."),
            });
        };
        let now = (self.parts.clock)();
        let until = now + Duration::from_secs(seconds);
        for target in &signed.targets {
            self.store().hold(Hold {
                target: target.clone(),
                until: until
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs(),
                by: signed.kid.clone(),
                reason: reason.clone(),
            });
        }
        let until = iso8601(until);
        warn!(
            by = signed.kid,
            targets, until, reason, "recovery is on hold"
        );
        Ok(format!("On hold for {targets} until {until}."))
    }

    /// Whether recovery actions may be started.
    fn held(&self) -> Result<(), Refused> {
        let now = (self.parts.clock)();
        match self.store().held(now) {
            None => Ok(()),
            Some(hold) => {
                let until = SystemTime::UNIX_EPOCH + Duration::from_secs(hold.until);
                Err(Refused::new(
                    Code::Held,
                    format!(
                        "Recovery is on hold for {} until {}, as {} has asked for: {}",
                        hold.target,
                        iso8601(until),
                        hold.by,
                        hold.reason
                    ),
                ))
            }
        }
    }

    /// Remembers the nonce of a message that is no new task.
    fn burn(&mut self, seen: Seen, authority: &Authority) {
        if let (Seen::Never, Authority::Key(signed)) = (seen, authority) {
            self.store().burn(signed);
        }
    }

    /// Refuses a message, and writes down that and why.
    fn decline(
        &mut self,
        task: TaskId,
        request: Option<Digest>,
        Refused { code, why }: Refused,
        decision: Decision,
        delivery: &Delivery,
    ) {
        let (service, command) = (&decision.service, &decision.command);
        let service = service.as_deref().unwrap_or_default();
        let command = command.as_deref().unwrap_or_default();
        warn!(%task, service, command, "refused: {why}");
        let now = (self.parts.clock)();
        self.parts
            .trust
            .record(&decision.refused(Some(code), &why), now);
        self.refuse(task, request, delivery, code, &why);
        match request {
            // A nonce that was burnt must be so after a crash, too.
            Some(_) => self.when_on_disk(Then::Acknowledge(delivery.token)),
            None => self.acknowledge(delivery),
        }
    }

    /// The task that this message has brought before.
    fn earlier(&self, message: &Message) -> Option<Earlier> {
        let earlier = self.store().find(&message.key())?;
        if message.timestamp.is_none() && earlier.progress != Progress::UnderWay {
            // Senders that say neither when nor which may mean it again.
            let window = self.parts.freshness.max_age;
            let now = (self.parts.clock)();
            let age = now.duration_since(earlier.at).unwrap_or_default();
            if age > window.unwrap_or(SAME_WITHOUT_TIMESTAMP) {
                return None;
            }
        }
        Some(earlier)
    }

    /// A task came that came before. It is not run again.
    fn duplicate(
        &mut self,
        task: TaskId,
        request: Option<Digest>,
        earlier: Earlier,
        delivery: &Delivery,
    ) {
        info!(%task, progress = ?earlier.progress, "came before");
        self.parts.metrics.count(Metric::Duplicates);
        match earlier.progress {
            // Whoever sent it once is answered once.
            Progress::UnderWay if delivery.again => {}
            Progress::UnderWay => {
                let text = "This task is running. Its result follows.";
                self.refuse(task, request, delivery, Code::TaskRunning, text);
            }
            Progress::Finished => {}
            Progress::Delivered => {
                let result = self.store().result(earlier.number);
                match result {
                    Some(mut outcome) => {
                        // It answers this message as well as the one before.
                        outcome.request = request;
                        outcome.reply = delivery.reply.clone();
                        (self.parts.outputs)(Output::Result(earlier.number, outcome));
                    }
                    None => {
                        let text = "This task was run already. Its result is not kept any more.";
                        self.refuse(task, request, delivery, Code::TaskRunning, text);
                    }
                }
            }
        }
        self.acknowledge(delivery);
    }

    /// Whether a message with this timestamp is too old to be acted upon.
    fn check_age(&self, timestamp: Option<&str>, delivery: &Delivery) -> Result<(), Refused> {
        if delivery.expires == Some(Duration::ZERO) {
            return Err(Refused::new(Code::Stale, "The message has expired."));
        }
        let Some(text) = timestamp else {
            let max_age = self.parts.freshness.max_age;
            if self.parts.freshness.require_timestamp {
                let why = "The message has no timestamp.";
                return Err(Refused::new(Code::NoTimestamp, why));
            }
            if delivery
                .away
                .zip(max_age)
                .is_some_and(|(away, most)| away > most)
            {
                return Err(Refused::new(
                    Code::Stale,
                    "The message has no timestamp, and the broker may have kept it while the host was away.",
                ));
            }
            return Ok(());
        };
        let sent = parse_iso8601(text).ok_or_else(|| {
            Refused::new(Code::NoTimestamp, "The timestamp is not one of ISO 8601.")
        })?;
        let Some(max_age) = self.parts.freshness.max_age else {
            return Ok(());
        };
        let most = max_age.as_secs();
        match (self.parts.clock)().duration_since(sent) {
            Ok(age) if age > max_age => Err(Refused::new(
                Code::Stale,
                format!(
                    "The message was sent {} s ago, if the clocks of sender and host agree; at most {most} s are allowed.",
                    age.as_secs()
                ),
            )),
            Err(error) if error.duration() > max_age => Err(Refused::new(
                Code::ClockSkew,
                format!(
                    "The message was sent {} s in the future: the clocks of sender and host differ.",
                    error.duration().as_secs()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether a command may run, and what it is.
    fn admit(
        &mut self,
        task: &TaskId,
        service: &str,
        command: &str,
        arguments: &BTreeMap<String, Argument>,
    ) -> Result<(Claim, CommandSpec, Program), Refused> {
        let about_to_run = self
            .unsynced
            .iter()
            .filter_map(|unsynced| match &unsynced.then {
                Then::Run(_, task) => Some(&**task),
                Then::Acknowledge(_) => None,
            });
        let known = self.running.values().chain(self.arbiter.waiting());
        if known.chain(about_to_run).any(|known| known.id == *task) {
            return Err(Refused::new(
                Code::TaskRunning,
                "A task with this id is running.",
            ));
        }
        self.held()?;
        let services = self.parts.services.current().ok_or_else(|| {
            Refused::new(Code::NoServices, "There is no configuration of services.")
        })?;
        let commands = services
            .0
            .get(service)
            .ok_or_else(|| Refused::new(Code::NoSuchService, "There is no such service."))?;
        let spec = commands
            .commands
            .get(command)
            .ok_or_else(|| Refused::new(Code::NoSuchCommand, "The service has no such command."))?;
        let program = spec
            .parameters
            .fill(&spec.program, arguments)
            .map_err(|why| Refused::new(Code::WrongParameters, sentence(&why)))?;
        let claim = Claim {
            service: service.to_owned(),
            command: command.to_owned(),
            concurrency: spec.concurrency,
            cooldown: spec.cooldown,
        };
        let spec = spec.clone();
        match self.arbiter.check(&claim, Instant::now()) {
            Ok(()) => Ok((claim, spec, program)),
            Err(Refusal::Busy) => Err(Refused::new(Code::Busy, "Too many commands are waiting.")),
            Err(Refusal::Cooldown(None)) => Err(Refused::new(
                Code::Cooldown,
                "The command is about to run already.",
            )),
            Err(Refusal::Cooldown(Some(left))) => Err(Refused::new(
                Code::Cooldown,
                format!(
                    "The command ran a short while ago and may run again in {} s.",
                    left.as_secs() + 1
                ),
            )),
        }
    }

    /// Starts whatever may start.
    fn start(&mut self) {
        self.expire();
        while let Some((ticket, task)) = self.arbiter.next(Instant::now()) {
            let now = (self.parts.clock)();
            match task.to {
                Recipient::Remote(number) => {
                    self.store().start(number, task.spec.cooldown, now);
                    self.when_on_disk(Then::Run(ticket, Box::new(task)));
                }
                Recipient::Rule(..) => self.run_now(ticket, task),
            }
        }
        self.measure();
    }

    fn measure(&self) {
        let metrics = &self.parts.metrics;
        let count = |count| u64::try_from(count).unwrap_or(u64::MAX);
        metrics.set(Metric::Waiting, count(self.arbiter.waiting().count()));
        metrics.set(Metric::Running, count(self.running.len()));
    }

    /// Refuses what has waited for too long, and what may not run any more.
    fn expire(&mut self) {
        if let Err(Refused { code, why }) = self.held() {
            for task in self.arbiter.withdraw(|_| true) {
                warn!(task = %task.id, service = task.service, command = task.command, "refused: {why}");
                self.withdrawn(task, code, &why);
            }
        }
        let now = (self.parts.clock)();
        let trust = Arc::clone(&self.parts.trust);
        let permitted = |task: &Task| {
            trust.still_permits(
                &task.authority,
                &task.service,
                &task.command,
                task.parameters,
                now,
            )
        };
        for task in self.arbiter.withdraw(|task| permitted(task).is_err()) {
            // What changed in between is a refusal all the same.
            let (code, why) = permitted(&task).err().unwrap_or_else(|| {
                let why = "The key could not be verified when the command was to be started.";
                (Code::NotPermitted, why.to_owned())
            });
            warn!(task = %task.id, service = task.service, command = task.command, "refused: {why}");
            self.withdrawn(task, code, &why);
        }
        let max_age = self.parts.freshness.max_age;
        let most = |task: &Task| match (max_age, task.expires) {
            (Some(age), Some(expires)) => Some(age.min(expires)),
            (age, expires) => age.or(expires),
        };
        let late = self
            .arbiter
            .withdraw(|task| most(task).is_some_and(|most| task.arrived.elapsed() > most));
        for task in late {
            let why = format!(
                "The command waited for its turn for more than {} s.",
                most(&task).unwrap_or_default().as_secs()
            );
            warn!(task = %task.id, service = task.service, command = task.command, "refused: {why}");
            self.withdrawn(task, Code::Stale, &why);
        }
    }

    /// A task that was accepted is refused before it runs.
    fn withdrawn(&mut self, task: Task, code: Code, why: &str) {
        let mut decision = Decision::new(By::from(&task.authority), trust::Kind::Command.name());
        decision.service = Some(task.service.clone());
        decision.command = Some(task.command.clone());
        decision.task = Some(task.id.to_string());
        let now = (self.parts.clock)();
        self.parts
            .trust
            .record(&decision.refused(Some(code), why), now);
        self.tell(task, code, why);
    }

    fn run_now(&mut self, ticket: Ticket, mut task: Task) {
        boundary::reached(Boundary::BeforeRun);
        let job = Job::new(ticket, &task.spec, task.program.clone());
        match self.parts.runner.run(&job) {
            Ok(()) => {
                boundary::reached(Boundary::AfterRun);
                info!(task = %task.id, service = task.service, command = task.command, "started");
                task.started = Some(Instant::now());
                self.parts
                    .metrics
                    .add(Metric::TimeQueued, milliseconds(task.arrived));
                self.running.insert(ticket, task);
                self.measure();
            }
            Err(why) => {
                self.arbiter.ended(ticket);
                self.not_started(task, &why);
            }
        }
    }

    /// Does something as soon as all that was written is on the disk.
    fn when_on_disk(&mut self, then: Then) {
        let waits = !self.disk_is_late && self.store().is_durable();
        match &mut self.parts.syncer {
            Some(syncer) if waits => {
                let number = syncer.request();
                self.unsynced.push_back(Unsynced {
                    number,
                    deadline: Instant::now() + DISK_PATIENCE,
                    then,
                });
            }
            syncer => {
                if let Some(syncer) = syncer {
                    // It tells when the disk is there again.
                    syncer.request();
                }
                self.proceed(then);
            }
        }
    }

    fn proceed(&mut self, then: Then) {
        match then {
            Then::Acknowledge(token) => {
                boundary::reached(Boundary::BeforeAcknowledged);
                (self.parts.outputs)(Output::Acknowledge(token));
            }
            Then::Run(ticket, task) => self.run_now(ticket, *task),
        }
    }

    /// What was written up to this number is on the disk.
    fn synced(&mut self, number: u64) {
        if std::mem::take(&mut self.disk_is_late) {
            info!("the disk of the journal answers again");
        }
        while self
            .unsynced
            .front()
            .is_some_and(|first| first.number <= number)
        {
            if let Some(first) = self.unsynced.pop_front() {
                self.proceed(first.then);
            }
        }
    }

    fn disk_does_not_answer(&mut self) {
        if self.unsynced.is_empty() {
            return;
        }
        error!("the disk of the journal does not answer; commands are run without waiting for it");
        self.parts.metrics.count(Metric::DiskLate);
        self.disk_is_late = true;
        for unsynced in std::mem::take(&mut self.unsynced) {
            self.proceed(unsynced.then);
        }
    }

    fn acknowledge(&mut self, delivery: &Delivery) {
        (self.parts.outputs)(Output::Acknowledge(delivery.token));
    }

    fn not_started(&mut self, task: Task, why: &str) {
        error!(task = %task.id, service = task.service, command = task.command, "not started: {why}");
        self.tell(
            task,
            Code::NotStarted,
            &format!("The command was not started: {why}"),
        );
    }

    /// An action that has ended, if it was running.
    fn ended(&mut self, ticket: Ticket) -> Option<Task> {
        self.arbiter.ended(ticket);
        let task = self.running.remove(&ticket)?;
        let time = task.started.map_or(0, milliseconds);
        self.parts.metrics.add(Metric::TimeRunning, time);
        Some(task)
    }

    /// Takes a report of the runner.
    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::Report(Report::Finished {
                id,
                end,
                output,
                errors,
            }) => {
                if let Some(task) = self.ended(id) {
                    self.finished(task, end, output, errors);
                }
            }
            Event::Report(Report::NotStarted { id, error }) => {
                if let Some(task) = self.ended(id) {
                    self.not_started(task, &error);
                }
            }
            Event::Report(Report::Hello { .. }) => {}
            Event::Lost => {
                error!(
                    running = self.running.len(),
                    "the helper that runs commands has died"
                );
                self.parts.runner.lost();
                self.interrupt(
                    "The program that ran the command has died; how the command ended is unknown.",
                );
            }
        }
        self.start();
    }

    fn finished(&mut self, task: Task, end: End, mut output: String, errors: String) {
        let code = match end {
            End::Exited(status) => Code::Exit(status),
            End::TimedOut => Code::TimedOut,
            End::Stopped => Code::Interrupted,
        };
        info!(task = %task.id, service = task.service, command = task.command, code = code.number(), "{}", code.state());
        let remark = match end {
            End::Exited(_) => None,
            End::TimedOut => {
                warn!(task = %task.id, service = task.service, command = task.command, "ended, because it took too long");
                Some(format!(
                    "[ended after {} s, because it took too long]",
                    task.spec.timeout.as_secs_f64()
                ))
            }
            End::Stopped => Some("[ended, because the monitor was stopped]".to_owned()),
        };
        if let Some(remark) = remark {
            if !output.is_empty() && !output.ends_with('\n') {
                output.push('\n');
            }
            output.push_str(&remark);
        }
        let outcome = Outcome {
            task: task.id,
            message: output,
            errors,
            code,
            at: (self.parts.clock)(),
            request: task.authority.envelope(),
            reply: task.reply,
        };
        self.conclude(&task.to, outcome);
    }

    /// Gives up on what runs.
    fn interrupt(&mut self, why: &str) {
        for (ticket, task) in std::mem::take(&mut self.running) {
            self.arbiter.ended(ticket);
            self.tell(task, Code::Interrupted, why);
        }
    }

    fn stop(mut self, events: Receiver<Event>) {
        const NOT_STARTED: &str = "The monitor was stopped before the command was started.";
        for task in self.arbiter.withdraw(|_| true) {
            self.tell(task, Code::Interrupted, NOT_STARTED);
        }
        for unsynced in std::mem::take(&mut self.unsynced) {
            match unsynced.then {
                Then::Run(_, task) => self.tell(*task, Code::Interrupted, NOT_STARTED),
                acknowledge => self.proceed(acknowledge),
            }
        }
        self.parts.runner.stop();
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.running.is_empty() {
            match events.recv_deadline(deadline) {
                Ok(Event::Lost) | Err(_) => break,
                Ok(event) => self.event(event),
            }
        }
        self.interrupt("The monitor was stopped; how the command ended is unknown.");
        self.measure();
        // The runner's reader may wait for room in the queue. Without the queue it ends, and can be joined.
        drop(events);
    }

    fn outcome(
        &self,
        task: TaskId,
        request: Option<Digest>,
        reply: Option<Reply>,
        code: Code,
        message: &str,
    ) -> Outcome {
        Outcome {
            task,
            message: message.to_owned(),
            errors: String::new(),
            code,
            at: (self.parts.clock)(),
            request,
            reply,
        }
    }

    /// Says how a task ended that printed nothing.
    fn tell(&mut self, task: Task, code: Code, message: &str) {
        let request = task.authority.envelope();
        let outcome = self.outcome(task.id, request, task.reply, code, message);
        self.conclude(&task.to, outcome);
    }

    /// A task has ended.
    fn conclude(&mut self, to: &Recipient, outcome: Outcome) {
        self.parts.metrics.ended(outcome.code);
        match to {
            Recipient::Remote(number) => {
                self.store().finish(*number, &outcome);
                (self.parts.outputs)(Output::Result(*number, outcome));
            }
            Recipient::Rule(run, reply) => {
                let end = LocalEnd { run: *run, outcome };
                if let Err(error) = reply.try_send(end) {
                    let end = error.into_inner();
                    warn!(task = %end.outcome.task, "a rule is not told how its task ended, because it is gone");
                }
            }
        }
    }

    /// Says that the monitor is there.
    fn pong(&mut self, task: TaskId, request: Option<Digest>, reply: Option<Reply>) {
        let text = concat!("collectd-live ", env!("CARGO_PKG_VERSION"));
        let outcome = self.outcome(task, request, reply, Code::Exit(0), text);
        let number = self.store().answer(&outcome);
        (self.parts.outputs)(Output::Result(number, outcome));
    }

    /// Answers a message that is not acted upon.
    fn refuse(
        &mut self,
        task: TaskId,
        request: Option<Digest>,
        delivery: &Delivery,
        code: Code,
        message: &str,
    ) {
        self.parts.metrics.refused(code);
        let outcome = self.outcome(task, request, delivery.reply.clone(), code, message);
        let number = self.store().answer(&outcome);
        (self.parts.outputs)(Output::Result(number, outcome));
    }
}

/// The envelope of a message, if it came in one.
fn signed(authority: &Authority) -> Option<&Signed> {
    match authority {
        Authority::Key(signed) => Some(signed),
        Authority::Local | Authority::Unsigned => None,
    }
}

/// Whether a message with such a nonce may be acted upon, or answered as before.
fn check_seen(seen: Seen) -> Result<(), Refused> {
    match seen {
        Seen::Never | Seen::Same => Ok(()),
        Seen::Other => Err(Refused::new(
            Code::Replayed,
            "Another message came before with the same nonce.",
        )),
        Seen::Forgotten => Err(Refused::new(
            Code::Replayed,
            "The message had expired before the clock of this host was set back.",
        )),
        Seen::Full => Err(Refused::new(
            Code::NoReplayProtection,
            "Too many messages of this key, or of all keys, have not expired yet.",
        )),
        Seen::NotDurable => Err(Refused::new(
            Code::NoReplayProtection,
            "The journal is only in memory, so a replay of this message would not be recognised after a restart.",
        )),
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A reason as a sentence of its own.
fn sentence(why: &str) -> String {
    let mut chars = why.chars();
    match chars.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), chars.as_str()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::{MAX_RUNNING, MAX_WAITING_OF_SERVICE};
    use crate::settings::{Block, Settings, Value};
    use std::sync::{Arc, Mutex};

    /// A runner that does what the test tells it.
    #[derive(Default)]
    struct Script {
        started: Vec<Job>,
        refuse: bool,
        lost: usize,
    }

    struct FakeRunner(Arc<Mutex<Script>>);

    impl Runner for FakeRunner {
        fn run(&mut self, job: &Job) -> Result<(), String> {
            let mut script = self.0.lock().unwrap();
            if script.refuse {
                return Err("out of processes".to_owned());
            }
            script.started.push(job.clone());
            Ok(())
        }

        fn lost(&mut self) {
            self.0.lock().unwrap().lost += 1;
        }

        fn stop(&mut self) {}
    }

    struct Fixture {
        engine: Engine,
        script: Arc<Mutex<Script>>,
        outputs: Arc<Mutex<Vec<Output>>>,
        now: Arc<Mutex<SystemTime>>,
        store: Arc<Mutex<Store>>,
    }

    const NOW: &str = "2020-11-26T00:41:19Z";

    fn fixture(services: bool) -> Fixture {
        with_store(services, Store::in_memory())
    }

    fn with_store(services: bool, store: Store) -> Fixture {
        let mut block = Block::option("Plugin", [Value::from("monitor")])
            .with("Host", "h")
            .with("CommandTopic", "c");
        let names = (0..MAX_RUNNING).map(|number| format!("service{number}"));
        for name in names.chain(["web".to_owned()]).filter(|_| services) {
            let mut service = Block::option("Service", [Value::from(name.as_str())]);
            for command in ["restart", "stop"] {
                service.children.push(Block::option(
                    "Command",
                    [Value::from(command), Value::from("true")],
                ));
            }
            block = block.with_block(service);
        }
        let script = Arc::new(Mutex::new(Script::default()));
        let outputs = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&outputs);
        let now = Arc::new(Mutex::new(parse_iso8601(NOW).unwrap()));
        let clock = Arc::clone(&now);
        let store = Arc::new(Mutex::new(store));
        let settings = Settings::read(&block).unwrap();
        let engine = Engine::new(Parts {
            services: settings.services,
            runner: Box::new(FakeRunner(Arc::clone(&script))),
            store: Arc::clone(&store),
            syncer: None,
            freshness: settings.freshness,
            trust: Arc::new(Trust::unsigned("h")),
            metrics: Arc::default(),
            clock: Box::new(move || *clock.lock().unwrap()),
            outputs: Box::new(move |output| sink.lock().unwrap().push(output)),
        });
        Fixture {
            engine,
            script,
            outputs,
            now,
            store,
        }
    }

    impl Fixture {
        fn command(&mut self, id: u64, service: &str, command: &str) {
            self.send(id, Some(NOW), service, command, false);
        }

        fn send(
            &mut self,
            id: u64,
            timestamp: Option<&str>,
            service: &str,
            command: &str,
            again: bool,
        ) {
            let content = Content::Command {
                service: service.into(),
                command: command.into(),
                arguments: BTreeMap::new(),
            };
            let message = Message {
                task: id.into(),
                timestamp: timestamp.map(str::to_owned),
                content,
            };
            let delivery = Delivery {
                token: id,
                again,
                ..Delivery::default()
            };
            self.engine
                .input(Input::Message(message, Authority::Unsigned, delivery));
        }

        /// The tokens that were acknowledged so far.
        fn acknowledged(&self) -> Vec<u64> {
            let outputs = self.outputs.lock().unwrap();
            let tokens = outputs.iter().filter_map(|output| match output {
                Output::Acknowledge(token) => Some(*token),
                Output::Status | Output::Result(..) => None,
            });
            tokens.collect()
        }

        fn results(&self) -> Vec<(Number, Outcome)> {
            let outputs = std::mem::take(&mut *self.outputs.lock().unwrap());
            let results = outputs.into_iter().filter_map(|output| match output {
                Output::Status | Output::Acknowledge(_) => None,
                Output::Result(number, outcome) => Some((number, outcome)),
            });
            results.collect()
        }

        fn pass(&self, seconds: u64) {
            *self.now.lock().unwrap() += Duration::from_secs(seconds);
        }

        fn finish(&mut self, job: u64, end: End, output: &str) {
            let report = Report::Finished {
                id: job,
                end,
                output: output.into(),
                errors: "oh".into(),
            };
            self.engine.event(Event::Report(report));
        }

        /// The outcomes since the last call: task, code and message.
        fn outcomes(&self) -> Vec<(String, Code, String)> {
            self.results()
                .into_iter()
                .map(|(_, o)| (o.task.to_string(), o.code, o.message))
                .collect()
        }

        fn codes(&self) -> Vec<(String, Code)> {
            self.outcomes()
                .into_iter()
                .map(|(task, code, _)| (task, code))
                .collect()
        }

        fn started(&self) -> usize {
            self.script.lock().unwrap().started.len()
        }
    }

    #[test]
    fn a_command_runs_and_its_result_is_told() {
        let mut f = fixture(true);
        f.command(7, "web", "restart");
        assert_eq!(f.outcomes(), []);
        f.finish(1, End::Exited(3), "out");
        assert_eq!(f.outcomes(), [("7".into(), Code::Exit(3), "out".into())]);
    }

    #[test]
    fn what_cannot_run_is_refused_with_its_code() {
        let mut f = fixture(true);
        f.command(1, "db", "restart");
        f.command(2, "web", "explode");
        f.engine.input(Input::Message(
            Message {
                task: 3.into(),
                timestamp: None,
                content: Content::Configuration,
            },
            Authority::Unsigned,
            Delivery {
                token: 3,
                ..Delivery::default()
            },
        ));
        assert_eq!(f.acknowledged(), [1, 2, 3]);
        let code = |id: &str, code| (id.to_owned(), code);
        assert_eq!(
            f.codes(),
            [
                code("1", Code::NoSuchService),
                code("2", Code::NoSuchCommand),
                code("3", Code::NotImplemented),
            ]
        );
        assert_eq!(f.started(), 0);
        let mut f = fixture(false);
        f.command(1, "web", "restart");
        assert_eq!(f.codes(), [code("1", Code::NoServices)]);
    }

    #[test]
    fn a_task_id_is_taken_while_its_task_runs() {
        let mut f = fixture(true);
        f.command(1, "web", "restart");
        f.command(1, "web", "stop");
        assert_eq!(f.codes(), [("1".to_owned(), Code::TaskRunning)]);
        f.finish(1, End::Exited(0), "");
        f.command(1, "web", "stop");
        assert_eq!(f.started(), 2);
    }

    #[test]
    fn what_may_not_run_yet_waits_and_is_refused_when_there_is_too_much_of_it() {
        let mut f = fixture(true);
        let all = MAX_WAITING_OF_SERVICE + 1;
        for id in 0..all as u64 {
            f.command(id, "web", "restart");
        }
        assert_eq!(f.started(), 1);
        assert_eq!(f.outcomes(), []);
        f.command(9999, "web", "restart");
        assert_eq!(f.codes(), [("9999".to_owned(), Code::Busy)]);
        // One that waits holds its id as well.
        f.command(all as u64 - 1, "service1", "restart");
        assert_eq!(f.codes(), [((all - 1).to_string(), Code::TaskRunning)]);
        for job in 1..=all as u64 {
            assert_eq!(f.started() as u64, job);
            f.finish(job, End::Exited(0), "");
        }
        assert_eq!(f.codes().len(), all);
    }

    #[test]
    fn a_ping_is_answered_and_nothing_runs() {
        for services in [true, false] {
            let mut f = fixture(services);
            f.pass(100_000);
            f.command(1, "", "ping");
            let version = format!("collectd-live {}", env!("CARGO_PKG_VERSION"));
            assert_eq!(f.outcomes(), [("1".into(), Code::Exit(0), version)]);
            assert!(f.script.lock().unwrap().started.is_empty());
        }
    }

    #[test]
    fn standard_error_is_told_apart() {
        let mut f = fixture(true);
        f.command(1, "web", "restart");
        f.finish(1, End::Exited(0), "out");
        let (_, outcome) = f.results().remove(0);
        assert_eq!(
            (outcome.message.as_str(), outcome.errors.as_str()),
            ("out", "oh")
        );
    }

    #[test]
    fn a_command_that_took_too_long_is_told_as_such() {
        let mut f = fixture(true);
        f.command(1, "web", "restart");
        f.finish(1, End::TimedOut, "begun");
        let text = "begun\n[ended after 3600 s, because it took too long]";
        assert_eq!(f.outcomes(), [("1".into(), Code::TimedOut, text.into())]);
    }

    #[test]
    fn a_command_that_does_not_start_is_told_as_such() {
        let mut f = fixture(true);
        f.script.lock().unwrap().refuse = true;
        f.command(1, "web", "restart");
        assert_eq!(f.codes(), [("1".to_owned(), Code::NotStarted)]);
        f.script.lock().unwrap().refuse = false;
        f.command(2, "web", "restart");
        f.engine.event(Event::Report(Report::NotStarted {
            id: 2,
            error: "fork".into(),
        }));
        assert_eq!(f.codes(), [("2".to_owned(), Code::NotStarted)]);
    }

    #[test]
    fn when_the_helper_dies_each_running_command_is_answered_and_the_next_one_runs() {
        let mut f = fixture(true);
        f.command(1, "web", "restart");
        f.engine.event(Event::Lost);
        assert_eq!(f.codes(), [("1".to_owned(), Code::Interrupted)]);
        assert_eq!(f.script.lock().unwrap().lost, 1);
        f.command(2, "web", "restart");
        assert_eq!(f.started(), 2);
        // A report that was still on its way changes nothing.
        f.finish(1, End::Exited(0), "");
        assert_eq!(f.codes(), []);
    }

    #[test]
    fn stopping_answers_what_runs_and_what_waits() {
        let mut f = fixture(true);
        for id in 0..MAX_RUNNING as u64 {
            f.command(id, &format!("service{id}"), "restart");
        }
        f.command(MAX_RUNNING as u64, "web", "restart");
        let (events_in, events) = crossbeam_channel::bounded(4);
        let report = Report::Finished {
            id: 1,
            end: End::Stopped,
            output: String::new(),
            errors: String::new(),
        };
        events_in.send(Event::Report(report)).unwrap();
        events_in.send(Event::Lost).unwrap();
        f.engine.stop(events);
        let outputs = std::mem::take(&mut *f.outputs.lock().unwrap());
        let results = outputs.iter().filter_map(|output| match output {
            Output::Result(_, outcome) => Some(outcome.code),
            Output::Status | Output::Acknowledge(_) => None,
        });
        let results: Vec<_> = results.collect();
        assert_eq!(results, [Code::Interrupted; MAX_RUNNING + 1]);
        assert_eq!(f.script.lock().unwrap().started.len(), MAX_RUNNING);
    }

    #[test]
    fn a_duplicate_is_answered_and_not_run_again() {
        let mut f = fixture(true);
        f.command(1, "web", "restart");
        assert_eq!(f.acknowledged(), [1]);
        // The broker's repetition is silent, the sender's is not.
        f.send(1, Some(NOW), "web", "restart", true);
        assert_eq!(f.acknowledged(), [1, 1]);
        assert_eq!(f.codes(), []);
        f.command(1, "web", "restart");
        assert_eq!(f.codes(), [("1".to_owned(), Code::TaskRunning)]);
        f.finish(1, End::Exited(4), "out");
        let (number, outcome) = f.results().remove(0);
        // As long as its result is on its way there is nothing to add.
        f.command(1, "web", "restart");
        assert_eq!(f.codes(), []);
        f.store.lock().unwrap().delivered(number);
        f.pass(10);
        f.command(1, "web", "restart");
        assert_eq!(f.results(), [(number, outcome)]);
        assert_eq!(f.started(), 1);
        // The same id with other content is another task.
        f.command(1, "web", "stop");
        f.send(
            1,
            Some("2020-11-26T00:41:20Z"),
            "service1",
            "restart",
            false,
        );
        assert_eq!(f.started(), 2);
        assert_eq!(f.codes(), [("1".to_owned(), Code::TaskRunning)]);
    }

    #[test]
    fn a_duplicate_without_a_timestamp_is_one_only_for_a_while() {
        let mut f = fixture(true);
        f.send(1, None, "web", "restart", false);
        f.finish(1, End::Exited(0), "");
        let (number, _) = f.results().remove(0);
        f.store.lock().unwrap().delivered(number);
        f.pass(300);
        f.send(1, None, "web", "restart", false);
        assert_eq!((f.started(), f.codes().len()), (1, 1));
        f.pass(1);
        f.send(1, None, "web", "restart", false);
        assert_eq!((f.started(), f.codes().len()), (2, 0));
    }

    #[test]
    fn what_is_too_old_or_from_the_future_is_refused_by_name() {
        for (timestamp, code) in [
            ("2020-11-26T00:36:19Z", None),
            ("2020-11-26T00:36:18Z", Some(Code::Stale)),
            ("2019-11-26T00:41:19Z", Some(Code::Stale)),
            ("2020-11-26T00:46:19Z", None),
            ("2020-11-26T00:46:20Z", Some(Code::ClockSkew)),
            ("yesterday", Some(Code::NoTimestamp)),
            ("", Some(Code::NoTimestamp)),
        ] {
            let mut f = fixture(true);
            f.send(1, Some(timestamp), "web", "restart", false);
            let codes = f.codes();
            assert_eq!(codes.first().map(|(_, code)| *code), code, "{timestamp}");
            assert_eq!(f.started(), usize::from(code.is_none()), "{timestamp}");
        }
        let mut f = fixture(true);
        f.engine.parts.freshness.max_age = None;
        f.send(1, Some("1999-11-26T00:41:19Z"), "web", "restart", false);
        assert_eq!(f.started(), 1);
        f.engine.parts.freshness.require_timestamp = true;
        f.send(2, None, "service1", "restart", false);
        assert_eq!(f.codes(), [("2".to_owned(), Code::NoTimestamp)]);
        assert_eq!(f.acknowledged(), [0; 0]);
    }

    #[test]
    fn what_waited_too_long_for_its_turn_is_refused() {
        let mut f = fixture(true);
        f.engine.parts.freshness.max_age = Some(Duration::from_millis(200));
        f.send(1, None, "web", "restart", false);
        f.send(2, None, "web", "restart", false);
        std::thread::sleep(Duration::from_millis(201));
        f.finish(1, End::Exited(0), "");
        let codes = f.codes();
        assert_eq!(codes[0], ("1".to_owned(), Code::Exit(0)));
        assert_eq!(codes[1], ("2".to_owned(), Code::Stale));
        assert_eq!(f.started(), 1);
    }

    /// A journal on a disk, and the tests' side of its worker.
    fn on_disk(dir: &std::path::Path) -> Fixture {
        let (store, problem) = Store::open(dir);
        assert_eq!(problem, None);
        with_store(true, store)
    }

    #[test]
    fn what_the_monitor_before_left_behind_is_told_and_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = on_disk(dir.path());
        f.command(1, "web", "restart");
        f.command(2, "web", "stop");
        f.command(3, "service1", "restart");
        f.finish(2, End::Exited(7), "three");
        f.command(4, "nosuch", "restart");
        let before = f.results();
        assert_eq!(before.len(), 2);
        drop(f);

        let mut f = on_disk(dir.path());
        let told = f.outcomes();
        let told: Vec<_> = told
            .iter()
            .map(|(id, code, m)| (id.as_str(), *code, m.contains("before")))
            .collect();
        assert_eq!(
            told,
            [
                ("1", Code::Interrupted, false),
                ("2", Code::Interrupted, true),
                ("3", Code::Exit(7), false),
                ("4", Code::NoSuchService, false),
            ]
        );
        for (id, service, command) in [
            (1, "web", "restart"),
            (2, "web", "stop"),
            (3, "service1", "restart"),
        ] {
            f.command(id, service, command);
        }
        assert_eq!((f.started(), f.codes().len()), (0, 0));
        for number in 1..=4 {
            f.store.lock().unwrap().delivered(number);
        }
        drop(f);

        let mut f = on_disk(dir.path());
        assert_eq!(f.outcomes(), []);
        f.command(3, "service1", "restart");
        assert_eq!(f.outcomes(), [("3".into(), Code::Exit(7), "three".into())]);
        assert_eq!(f.started(), 0);
    }

    #[test]
    fn a_command_waits_for_the_disk_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = on_disk(dir.path());
        let file = f.store.lock().unwrap().sync_handle().unwrap();
        // Nobody runs the worker: the disk hangs.
        let (syncer, _worker, _) = Syncer::new(file);
        f.engine.parts.syncer = Some(syncer);
        f.command(1, "web", "restart");
        assert_eq!((f.started(), f.acknowledged().len()), (0, 0));
        // Its id is taken all the same.
        f.command(1, "service9", "restart");
        assert_eq!(f.codes(), [("1".to_owned(), Code::TaskRunning)]);
        f.engine.synced(1);
        assert_eq!((f.started(), f.acknowledged().len()), (0, 1));
        f.engine.synced(2);
        assert_eq!((f.started(), f.acknowledged().len()), (1, 1));
        f.command(2, "service1", "restart");
        assert_eq!((f.started(), f.acknowledged().len()), (1, 1));
        f.engine.disk_does_not_answer();
        assert_eq!((f.started(), f.acknowledged().len()), (2, 2));
        // From here on there is no waiting, until the disk answers again.
        f.command(3, "service2", "restart");
        assert_eq!((f.started(), f.acknowledged().len()), (3, 3));
        f.engine.synced(6);
        f.command(4, "service3", "restart");
        assert_eq!((f.started(), f.acknowledged().len()), (3, 3));
    }

    fn untimed(id: u64, delivery: Delivery) -> Input {
        let content = Content::Command {
            service: "web".into(),
            command: "restart".into(),
            arguments: BTreeMap::new(),
        };
        let message = Message {
            task: id.into(),
            timestamp: None,
            content,
        };
        Input::Message(message, Authority::Unsigned, delivery)
    }

    #[test]
    fn what_the_broker_may_have_kept_for_too_long_does_not_run_unless_it_says_when_it_was_sent() {
        let mut f = fixture(true);
        let kept = |away| Delivery {
            away: Some(Duration::from_secs(away)),
            ..Delivery::default()
        };
        f.engine.input(untimed(1, kept(301)));
        assert_eq!(f.codes(), [("1".to_owned(), Code::Stale)]);
        assert_eq!(f.started(), 0);
        f.engine.input(untimed(2, kept(300)));
        assert_eq!(f.started(), 1);
        f.finish(1, End::Exited(0), "");
        // What was started before the connection was lost is a duplicate, not stale.
        f.engine.input(untimed(2, kept(301)));
        assert_eq!(f.codes(), [("2".to_owned(), Code::Exit(0))]);
        let Input::Message(mut message, authority, delivery) = untimed(3, kept(1_000_000)) else {
            unreachable!("it is one");
        };
        message.timestamp = Some(NOW.to_owned());
        f.engine.input(Input::Message(message, authority, delivery));
        assert_eq!(f.started(), 2);
    }

    #[test]
    fn a_message_that_expires_while_it_waits_does_not_run() {
        let mut f = fixture(true);
        let expires = |millis| Delivery {
            expires: Some(Duration::from_millis(millis)),
            ..Delivery::default()
        };
        f.engine.input(untimed(1, expires(0)));
        f.engine.input(untimed(2, expires(100_000)));
        f.engine.input(untimed(3, expires(10)));
        f.engine.input(untimed(4, Delivery::default()));
        assert_eq!(f.codes(), [("1".to_owned(), Code::Stale)]);
        // Its time is the condition.
        std::thread::sleep(Duration::from_millis(11));
        f.finish(1, End::Exited(0), "");
        let expected = [
            ("2".to_owned(), Code::Exit(0)),
            ("3".to_owned(), Code::Stale),
        ];
        assert_eq!(f.codes(), expected);
        assert_eq!(f.started(), 2);
    }

    #[test]
    fn the_senders_wishes_come_back_with_every_kind_of_answer_and_across_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let reply = |topic: &str| {
            Some(Reply {
                topic: Some(topic.to_owned()),
                correlation: Some(vec![0, 255]),
            })
        };
        let wants = |topic: &str| Delivery {
            reply: reply(topic),
            ..Delivery::default()
        };
        let mut f = on_disk(dir.path());
        f.engine.input(untimed(1, wants("a")));
        let on_disk_now = f.engine.unsynced.back().map_or(0, |last| last.number);
        f.engine.synced(on_disk_now);
        f.finish(1, End::Exited(0), "");
        let results = f.results();
        assert_eq!(results[0].1.reply, reply("a"));
        f.store.lock().unwrap().delivered(results[0].0);
        // Whoever asks again gets the answer where it listens.
        f.engine.input(untimed(1, wants("b")));
        assert_eq!(f.results()[0].1.reply, reply("b"));
        let mut refused = wants("c");
        refused.expires = Some(Duration::ZERO);
        f.engine.input(untimed(2, refused));
        assert_eq!(f.results()[0].1.reply, reply("c"));
        f.engine.input(untimed(3, wants("d")));
        drop(f);
        let f = on_disk(dir.path());
        let again: Vec<_> = f.results().into_iter().map(|(_, o)| o.reply).collect();
        assert_eq!(again, [reply("c"), reply("d")]);
    }

    #[test]
    fn a_command_cools_down_across_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = on_disk(dir.path());
        let now = parse_iso8601(NOW).unwrap();
        let key = Message::parse(br#"{"task_id":1,"service":"web","command":"restart"}"#)
            .unwrap()
            .key();
        {
            let mut store = f.store.lock().unwrap();
            let number = store.accept(&1.into(), key, "web", "restart", now, Origin::default());
            store.start(number, Some(Duration::from_secs(60)), now);
        }
        f.pass(1);
        drop(f);
        f = on_disk(dir.path());
        let claim = Claim {
            service: "web".into(),
            command: "restart".into(),
            concurrency: None,
            cooldown: Some(Duration::from_secs(60)),
        };
        assert!(matches!(
            f.engine.arbiter.check(&claim, Instant::now()),
            Err(Refusal::Cooldown(Some(_)))
        ));
    }
}
