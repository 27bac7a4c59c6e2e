//! Decides what becomes of a message: refused, or run, or waiting for its turn.
//!
//! The engine has a thread of its own. It shares nothing: messages and reports come in through queues,
//! outcomes go out through a function.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crossbeam_channel::{never, select, Receiver};
use tracing::{error, info, warn};

use crate::arbiter::{Arbiter, Claim, Refusal, Ticket};
use crate::protocol::{Code, Content, Message, Outcome, TaskId};
use crate::runner::{End, Event, Job, Report, Runner};
use crate::settings::{Argument, CommandSpec, Program, ServicesSource};

/// How long the runner may take to end its commands when the monitor stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A task that was not refused.
#[derive(Debug)]
struct Task {
    id: TaskId,
    service: String,
    command: String,
    spec: CommandSpec,
    program: Program,
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

/// Decides what becomes of each message.
pub struct Engine {
    services: ServicesSource,
    runner: Box<dyn Runner>,
    outcomes: Box<dyn FnMut(Outcome) + Send>,
    arbiter: Arbiter<Task>,
    running: HashMap<Ticket, Task>,
}

impl Engine {
    /// An engine that looks commands up here, runs them there, and tells how they ended.
    pub fn new(
        services: ServicesSource,
        runner: Box<dyn Runner>,
        outcomes: Box<dyn FnMut(Outcome) + Send>,
    ) -> Self {
        Self {
            services,
            runner,
            outcomes,
            arbiter: Arbiter::default(),
            running: HashMap::new(),
        }
    }

    /// Works until the stop channel is closed, and ends what runs then.
    pub fn run(
        mut self,
        messages: &Receiver<Message>,
        events: Receiver<Event>,
        stop: &Receiver<std::convert::Infallible>,
    ) {
        let mut messages = messages.clone();
        loop {
            select! {
                recv(messages) -> message => match message {
                    Ok(message) => self.message(message),
                    // Nobody sends any more. What runs may end in peace.
                    Err(_) => messages = never(),
                },
                recv(events) -> event => match event {
                    Ok(event) => self.event(event),
                    Err(_) => break,
                },
                recv(stop) -> _ => break,
            }
        }
        self.stop(events);
    }

    /// Takes a message.
    pub fn message(&mut self, message: Message) {
        let task = message.task;
        match message.content {
            Content::Configuration => {
                warn!(%task, "refused: this version cannot replace the configuration");
                let text = "This version cannot replace the configuration.";
                self.tell(task, Code::NotImplemented, text);
            }
            Content::Command {
                service,
                command,
                arguments,
            } => match self.admit(&task, &service, &command, &arguments) {
                Ok((claim, spec, program)) => {
                    let task = Task {
                        id: task,
                        service,
                        command,
                        spec,
                        program,
                    };
                    self.arbiter.submit(claim, task);
                    self.start();
                }
                Err(Refused { code, why }) => {
                    warn!(%task, service, command, "refused: {why}");
                    self.tell(task, code, &why);
                }
            },
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
        let mut known = self.running.values().chain(self.arbiter.waiting());
        if known.any(|known| known.id == *task) {
            return Err(Refused::new(
                Code::TaskRunning,
                "A task with this id is running.",
            ));
        }
        let services = self.services.current().ok_or_else(|| {
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
        while let Some((ticket, task)) = self.arbiter.next(Instant::now()) {
            let job = Job::new(ticket, &task.spec, task.program.clone());
            match self.runner.run(&job) {
                Ok(()) => {
                    info!(task = %task.id, service = task.service, command = task.command, "started");
                    self.running.insert(ticket, task);
                }
                Err(why) => {
                    self.arbiter.ended(ticket);
                    self.not_started(task, &why);
                }
            }
        }
    }

    fn not_started(&mut self, task: Task, why: &str) {
        error!(task = %task.id, service = task.service, command = task.command, "not started: {why}");
        self.tell(
            task.id,
            Code::NotStarted,
            &format!("The command was not started: {why}"),
        );
    }

    /// An action that has ended, if it was running.
    fn ended(&mut self, ticket: Ticket) -> Option<Task> {
        self.arbiter.ended(ticket);
        self.running.remove(&ticket)
    }

    /// Takes a report of the runner.
    pub fn event(&mut self, event: Event) {
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
                self.runner.lost();
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
        (self.outcomes)(Outcome {
            task: task.id,
            message: output,
            errors,
            code,
        });
    }

    /// Gives up on what runs.
    fn interrupt(&mut self, why: &str) {
        for (ticket, task) in std::mem::take(&mut self.running) {
            self.arbiter.ended(ticket);
            self.tell(task.id, Code::Interrupted, why);
        }
    }

    fn stop(mut self, events: Receiver<Event>) {
        for task in self.arbiter.withdraw(|_| true) {
            self.tell(
                task.id,
                Code::Interrupted,
                "The monitor was stopped before the command was started.",
            );
        }
        self.runner.stop();
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.running.is_empty() {
            match events.recv_deadline(deadline) {
                Ok(Event::Lost) | Err(_) => break,
                Ok(event) => self.event(event),
            }
        }
        self.interrupt("The monitor was stopped; how the command ended is unknown.");
        // The runner's reader may wait for room in the queue. Without the queue it ends, and can be joined.
        drop(events);
    }

    fn tell(&mut self, task: TaskId, code: Code, message: &str) {
        (self.outcomes)(Outcome {
            task,
            message: message.to_owned(),
            errors: String::new(),
            code,
        });
    }
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
        outcomes: Arc<Mutex<Vec<Outcome>>>,
    }

    fn fixture(services: bool) -> Fixture {
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
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&outcomes);
        let engine = Engine::new(
            Settings::read(&block).unwrap().services,
            Box::new(FakeRunner(Arc::clone(&script))),
            Box::new(move |outcome| sink.lock().unwrap().push(outcome)),
        );
        Fixture {
            engine,
            script,
            outcomes,
        }
    }

    impl Fixture {
        fn command(&mut self, id: u64, service: &str, command: &str) {
            let content = Content::Command {
                service: service.into(),
                command: command.into(),
                arguments: BTreeMap::new(),
            };
            self.engine.message(Message {
                task: id.into(),
                timestamp: None,
                content,
            });
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
            let outcomes = std::mem::take(&mut *self.outcomes.lock().unwrap());
            outcomes
                .into_iter()
                .map(|o| (o.task.to_string(), o.code, o.message))
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
        f.engine.message(Message {
            task: 3.into(),
            timestamp: None,
            content: Content::Configuration,
        });
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
    fn standard_error_is_told_apart() {
        let mut f = fixture(true);
        f.command(1, "web", "restart");
        f.finish(1, End::Exited(0), "out");
        let outcomes = f.outcomes.lock().unwrap();
        assert_eq!(
            (outcomes[0].message.as_str(), outcomes[0].errors.as_str()),
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
        f.command(1, "web", "restart");
        f.engine.event(Event::Report(Report::NotStarted {
            id: 2,
            error: "fork".into(),
        }));
        assert_eq!(f.codes(), [("1".to_owned(), Code::NotStarted)]);
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
        let outcomes = std::mem::take(&mut *f.outcomes.lock().unwrap());
        assert_eq!(outcomes.len(), MAX_RUNNING + 1);
        assert!(outcomes
            .iter()
            .all(|outcome| outcome.code == Code::Interrupted));
        assert_eq!(f.script.lock().unwrap().started.len(), MAX_RUNNING);
    }
}
