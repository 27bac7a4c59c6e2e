//! Sends messages to monitors and waits for the results that answer them: one connection for all hosts.

mod discovery;
mod rollout;

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rumqttc::mqttbytes::v4::{Publish, SubscribeFilter, SubscribeReasonCode};
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, NetworkOptions, Outgoing, Packet};
use tokio::signal::unix::{signal, Signal, SignalKind};
use tokio::time::{sleep_until, timeout, Instant};

pub use discovery::{discover, Found, HostState, Pattern};
pub use rollout::{Ending, Limits, Rollout, Step, Stop, Tolerance};

use crate::protocol::{Answer, Digest, TaskId};
use crate::remote::connect;
use crate::secret::Secret;
use crate::settings::Remote;
use crate::trust::{self, Kind, PublicKey, SigningKey};

/// How many requests rumqttc holds. What is more waits here.
const REQUESTS: usize = 64;
/// How many topics are subscribed to with one packet.
const SUBSCRIPTIONS: usize = 100;
/// How long a goodbye may take. What was wanted is known by then.
const GOODBYE: Duration = Duration::from_secs(2);

/// A host, or whoever else listens on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name, if the topics hold one.
    pub host: Option<String>,
    /// Where it takes messages from.
    pub topic: String,
    /// Where its results go, if they are of interest.
    pub result_topic: Option<String>,
}

impl Target {
    /// Whoever listens on a topic.
    pub fn topic(topic: &str, result_topic: Option<&str>) -> Self {
        Self {
            host: None,
            topic: topic.to_owned(),
            result_topic: result_topic.map(str::to_owned),
        }
    }

    /// A host, of which the name stands for `%h` in the topics.
    pub fn host(name: &str, topic: &str, result_topic: Option<&str>) -> Result<Self, String> {
        if !is_host(name) {
            return Err(format!("{name:?} cannot stand for %h in a topic"));
        }
        Ok(Self {
            host: Some(name.to_owned()),
            topic: topic.replace("%h", name),
            result_topic: result_topic.map(|topic| topic.replace("%h", name)),
        })
    }
}

/// Whether a name can be a part of a topic: MQTT gives some characters a meaning.
pub fn is_host(name: &str) -> bool {
    let reserved = |c: char| matches!(c, '+' | '#' | '/') || c.is_control();
    !name.is_empty() && name.len() <= 1024 && !name.contains(reserved)
}

/// What to send to whom.
#[derive(Clone, Debug)]
pub struct Order {
    /// The broker. Its topics are not looked at.
    pub remote: Remote,
    /// Who is sent the message.
    pub targets: Vec<Target>,
    /// How careful to be. The timeout is also that for the connection.
    pub limits: Limits,
    /// How often to do it all.
    pub rounds: u32,
    /// How long to wait between two rounds.
    pub pause: Duration,
    /// How to sign, and whom to believe.
    pub signing: Signing,
}

/// How to sign, and whom to believe.
#[derive(Clone, Debug, Default)]
pub struct Signing {
    /// What to sign with, if anything.
    pub with: Option<Seal>,
    /// The keys of hosts, each of the name of its host. If there are some, results count only if such a key has
    /// signed them.
    pub host_keys: Vec<PublicKey>,
}

/// What to sign with.
#[derive(Clone, Debug)]
pub struct Seal {
    /// The key.
    pub key: SigningKey,
    /// What the messages are about.
    pub kind: Kind,
    /// Whom they are addressed to, where that is not each host by itself.
    pub targets: Vec<String>,
    /// How long they are good.
    pub lifetime: Duration,
}

impl Signing {
    /// What is sent to a host, and what tells its envelope.
    fn seal(&self, target: &Target, text: String) -> Result<(String, Option<Digest>), String> {
        let Some(seal) = &self.with else {
            return Ok((text, None));
        };
        let host = target.host.iter().map(|host| format!("host:{host}"));
        let targets = match seal.targets.is_empty() {
            true => host.collect(),
            false => seal.targets.clone(),
        };
        let now = SystemTime::now();
        let envelope = trust::sign(&seal.key, &targets, seal.kind, &text, now, seal.lifetime)?;
        let digest = trust::envelope_digest(&envelope);
        Ok((envelope, digest))
    }

    /// Whether a result can be believed.
    fn believe(
        &self,
        target: &Target,
        payload: &[u8],
        request: Option<Digest>,
    ) -> Result<(), &'static str> {
        if self.host_keys.is_empty() {
            return Ok(());
        }
        let text = std::str::from_utf8(payload).map_err(|_| "the result is not UTF-8")?;
        let key = trust::verify_result(text, &self.host_keys, request)?;
        // One host must not answer for another.
        match &target.host {
            Some(host) if host != key.kid() => Err("another host has signed the result"),
            _ => Ok(()),
        }
    }
}

/// What the caller is told while it waits.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// This was handed to the broker's connection.
    Sent(usize, &'a str),
    /// A target has answered, or has not in time; after that its answer may still come.
    Ended(usize, Ending, Option<Reply<'a>>),
    /// Something looks like the answer of a target, and is not believed.
    Disbelieved(usize, &'static str),
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// What was understood of it, unless the target has no topic for results: then the broker has answered.
    pub answer: Option<&'a Answer>,
    /// All of it.
    pub json: &'a str,
    /// How long it took.
    pub took: Duration,
}

/// What came of it all.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How it ended for each target, in the last round.
    pub endings: Vec<Ending>,
    /// Why not all targets were reached, if so.
    pub stop: Option<Stop>,
    /// What became of the connection, if it was lost.
    pub lost: Option<String>,
}

/// Why nothing was sent.
#[derive(Debug)]
pub enum Error {
    /// The broker did not answer in time.
    Timeout,
    /// The broker cannot be reached or does not let us in.
    Connection(String),
    /// The user did not want to wait any longer.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Timeout => f.write_str("the broker did not answer in time"),
            Error::Connection(what) => f.write_str(what),
            Error::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Self {
        Error::Connection(connect::describe(&error))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Connection(error.to_string())
    }
}

/// The password in a file: its first line.
pub fn read_password(path: &Path) -> Result<Secret, String> {
    connect::password(path)
}

/// Sends a message to each target, and waits for what answers it. The message is made when its turn comes, and
/// must hold the task id.
///
/// An error means that nothing was sent.
pub fn send(
    order: &Order,
    message: &mut dyn FnMut(&TaskId) -> String,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, Error> {
    block_on(async {
        let interrupts = Interrupts::new()?;
        send_until(order, message, progress, interrupts).await
    })
}

/// The same for a program that has an event loop, and that signals do not interrupt.
pub(crate) async fn send_undisturbed(
    order: &Order,
    message: &mut dyn FnMut(&TaskId) -> String,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, Error> {
    send_until(order, message, progress, Interrupts::none()).await
}

async fn send_until(
    order: &Order,
    message: &mut dyn FnMut(&TaskId) -> String,
    progress: &mut dyn FnMut(Progress<'_>),
    interrupts: Interrupts,
) -> Result<Summary, Error> {
    let mut sending = Sending::new(order, message, progress, interrupts)?;
    let result = sending.run().await;
    let broken = match &result {
        Ok(summary) => summary.lost.is_some(),
        Err(error) => matches!(error, Error::Connection(_)),
    };
    if !broken {
        sending.link.leave().await;
    }
    result
}

fn block_on<T>(work: impl std::future::Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    // A name lookup that hangs need not be waited for.
    runtime.shutdown_background();
    result
}

/// A number that no other sender uses at the same time. It fits into the numbers of every JSON library.
fn unique() -> u64 {
    const EXACT_IN_A_DOUBLE: u64 = (1 << 53) - 1;
    (RandomState::new().build_hasher().finish() & EXACT_IN_A_DOUBLE).max(1)
}

/// The user's wish to end: SIGINT and SIGTERM, unless they are somebody else's.
struct Interrupts(Option<(Signal, Signal)>);

impl Interrupts {
    fn new() -> io::Result<Self> {
        Ok(Self(Some((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))))
    }

    fn none() -> Self {
        Self(None)
    }

    async fn wait(&mut self) {
        let Some((int, term)) = &mut self.0 else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
    }
}

/// A connection to the broker.
struct Link {
    client: AsyncClient,
    events: EventLoop,
}

impl Link {
    fn new(remote: &Remote) -> Result<Self, Error> {
        let options = connect::options(remote, &format!("collectd-live-{}", unique()))
            .map_err(Error::Connection)?;
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        events.set_network_options(network);
        Ok(Self { client, events })
    }

    /// Connects, and subscribes to all topics.
    async fn arrive(&mut self, remote: &Remote, topics: &[&str]) -> Result<(), Error> {
        while !matches!(
            self.events.poll().await?,
            Event::Incoming(Packet::ConnAck(_))
        ) {}
        for topics in topics.chunks(SUBSCRIPTIONS) {
            self.subscribe(remote, topics)?;
            let codes = loop {
                if let Event::Incoming(Packet::SubAck(ack)) = self.events.poll().await? {
                    break ack.return_codes;
                }
            };
            Self::check(topics, &codes)?;
        }
        Ok(())
    }

    fn subscribe(&self, remote: &Remote, topics: &[&str]) -> Result<(), Error> {
        let qos = connect::qos(remote.qos);
        let filters = topics
            .iter()
            .map(|topic| SubscribeFilter::new((*topic).to_owned(), qos));
        self.client
            .try_subscribe_many(filters)
            .map_err(|error| Error::Connection(error.to_string()))
    }

    /// Whether the broker grants all subscriptions.
    fn check(topics: &[&str], codes: &[SubscribeReasonCode]) -> Result<(), Error> {
        let mut refused = topics.iter().zip(codes);
        match refused.find(|(_, code)| **code == SubscribeReasonCode::Failure) {
            Some((topic, _)) => Err(Error::Connection(format!(
                "the broker refuses the subscription to the topic {topic:?}"
            ))),
            None => Ok(()),
        }
    }

    async fn leave(&mut self) {
        let goodbye = async {
            if self.client.try_disconnect().is_ok() {
                while !matches!(
                    self.events.poll().await,
                    Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)
                ) {}
            }
        };
        // The result is known; a broker that does not take a goodbye changes nothing.
        timeout(GOODBYE, goodbye).await.ok();
    }
}

/// A message that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    target: usize,
    at: Instant,
    request: Option<Digest>,
}

struct Sending<'a> {
    order: &'a Order,
    message: &'a mut dyn FnMut(&TaskId) -> String,
    progress: &'a mut dyn FnMut(Progress<'_>),
    link: Link,
    interrupts: Interrupts,
    /// The messages of this round, by their ids.
    tasks: HashMap<TaskId, Sent>,
    /// Messages that rumqttc has no room for yet: target, task and text.
    waiting: VecDeque<(usize, String)>,
    /// Targets of messages that rumqttc was given and has not sent yet.
    handed: VecDeque<Sent>,
    /// Messages that the broker has not acknowledged, by packet id.
    unacknowledged: HashMap<u16, Sent>,
}

impl<'a> Sending<'a> {
    fn new(
        order: &'a Order,
        message: &'a mut dyn FnMut(&TaskId) -> String,
        progress: &'a mut dyn FnMut(Progress<'_>),
        interrupts: Interrupts,
    ) -> Result<Self, Error> {
        Ok(Self {
            order,
            message,
            progress,
            link: Link::new(&order.remote)?,
            interrupts,
            tasks: HashMap::new(),
            waiting: VecDeque::new(),
            handed: VecDeque::new(),
            unacknowledged: HashMap::new(),
        })
    }

    async fn run(&mut self) -> Result<Summary, Error> {
        let targets = self.order.targets.iter();
        let mut topics: Vec<_> = targets.filter_map(|t| t.result_topic.as_deref()).collect();
        topics.sort_unstable();
        topics.dedup();
        let arrival = self.link.arrive(&self.order.remote, &topics);
        tokio::select! {
            arrived = timeout(self.order.limits.timeout, arrival) => arrived.unwrap_or(Err(Error::Timeout))?,
            () = self.interrupts.wait() => return Err(Error::Interrupted),
        }
        let mut summary = self.round().await;
        for _ in 1..self.order.rounds {
            if summary.stop.is_none() {
                if let Some(stopped) = self.pause(&summary).await {
                    return Ok(stopped);
                }
                summary = self.round().await;
            }
        }
        Ok(summary)
    }

    /// Waits before the next round. Answers the summary if there is to be none.
    async fn pause(&mut self, last: &Summary) -> Option<Summary> {
        let until = Instant::now() + self.order.pause;
        loop {
            let (stop, lost) = tokio::select! {
                event = self.link.events.poll() => match event {
                    Ok(_) => continue,
                    Err(error) => (Stop::Lost, Some(connect::describe(&error))),
                },
                () = sleep_until(until) => return None,
                () = self.interrupts.wait() => (Stop::Interrupted, None),
            };
            return Some(Summary {
                stop: Some(stop),
                lost,
                ..last.clone()
            });
        }
    }

    async fn round(&mut self) -> Summary {
        let mut rollout = Rollout::new(self.order.targets.len(), self.order.limits);
        let begin = Instant::now();
        let mut lost = None;
        self.tasks.clear();
        loop {
            self.hand_over();
            // Whoever has not been sent its message yet must not be timed.
            let step = match self.waiting.is_empty() {
                true => rollout.step(begin.elapsed()),
                false => Step::Wait(Duration::MAX),
            };
            let wait = match step {
                Step::Send(target) => {
                    self.send(target, &mut rollout);
                    continue;
                }
                Step::GiveUp(target) => {
                    (self.progress)(Progress::Ended(target, Ending::NoAnswer, None));
                    continue;
                }
                Step::Wait(until) => until.saturating_sub(begin.elapsed()),
                Step::Done => break,
            };
            // Nobody waits for years.
            let wait = wait.min(Duration::from_secs(1 << 30));
            tokio::select! {
                event = self.link.events.poll() => match event {
                    Ok(event) => self.take(event, &mut rollout),
                    Err(error) => {
                        lost = Some(connect::describe(&error));
                        rollout.abandon(Stop::Lost);
                    }
                },
                () = sleep_until(Instant::now() + wait) => {}
                () = self.interrupts.wait() => rollout.abandon(Stop::Interrupted),
            }
        }
        let all = 0..self.order.targets.len();
        Summary {
            endings: all.map(|target| rollout.ending(target)).collect(),
            stop: rollout.why_stopped(),
            lost,
        }
    }

    fn send(&mut self, target: usize, rollout: &mut Rollout) {
        let task = TaskId::from(unique());
        let text = (self.message)(&task);
        let signing = &self.order.signing;
        let sealed = signing.seal(&self.order.targets[target], text.clone());
        let (payload, request) = match sealed {
            Ok(sealed) => sealed,
            Err(_) => {
                // What is wrong with the key or the targets was seen before; this is the library's failure.
                if rollout.answered(target, Ending::NotSent) {
                    (self.progress)(Progress::Ended(target, Ending::NotSent, None));
                }
                return;
            }
        };
        (self.progress)(Progress::Sent(target, &text));
        let at = Instant::now();
        self.tasks.insert(
            task,
            Sent {
                target,
                at,
                request,
            },
        );
        self.waiting.push_back((target, payload));
    }

    /// Gives rumqttc what it has room for.
    fn hand_over(&mut self) {
        while let Some((target, text)) = self.waiting.front() {
            let topic = &self.order.targets[*target].topic;
            let qos = connect::qos(self.order.remote.qos);
            let handed = self
                .link
                .client
                .try_publish(topic, qos, false, text.as_str());
            if handed.is_err() {
                return;
            }
            self.handed.push_back(Sent {
                target: *target,
                at: Instant::now(),
                request: None,
            });
            self.waiting.pop_front();
        }
    }

    fn take(&mut self, event: Event, rollout: &mut Rollout) {
        match event {
            Event::Incoming(Packet::Publish(publish)) => self.answer(&publish, rollout),
            Event::Outgoing(Outgoing::Publish(packet)) => {
                // rumqttc sends in order.
                let Some(sent) = self.handed.pop_front() else {
                    return;
                };
                match packet {
                    0 => self.delivered(sent, rollout),
                    _ => drop(self.unacknowledged.insert(packet, sent)),
                }
            }
            Event::Incoming(Packet::PubAck(ack)) => self.acknowledged(ack.pkid, rollout),
            Event::Incoming(Packet::PubComp(ack)) => self.acknowledged(ack.pkid, rollout),
            _ => {}
        }
    }

    fn acknowledged(&mut self, packet: u16, rollout: &mut Rollout) {
        if let Some(sent) = self.unacknowledged.remove(&packet) {
            self.delivered(sent, rollout);
        }
    }

    /// The broker has the message. Where there is no topic to listen on, that is all there is to know.
    fn delivered(&mut self, sent: Sent, rollout: &mut Rollout) {
        if self.order.targets[sent.target].result_topic.is_none()
            && rollout.answered(sent.target, Ending::Succeeded)
        {
            let reply = Reply {
                answer: None,
                json: "",
                took: sent.at.elapsed(),
            };
            (self.progress)(Progress::Ended(sent.target, Ending::Succeeded, Some(reply)));
        }
    }

    /// Takes what came on the topics of results. What does not answer our messages is passed over.
    fn answer(&mut self, publish: &Publish, rollout: &mut Rollout) {
        let Some(answer) = Answer::parse(&publish.payload) else {
            return;
        };
        let Some(sent) = self.tasks.get(&answer.task).copied() else {
            return;
        };
        let target = &self.order.targets[sent.target];
        let signing = &self.order.signing;
        if let Err(why) = signing.believe(target, &publish.payload, sent.request) {
            (self.progress)(Progress::Disbelieved(sent.target, why));
            return;
        }
        let ending = match answer.code {
            0 => Ending::Succeeded,
            1..=255 => Ending::Failed,
            _ => Ending::Refused,
        };
        if rollout.answered(sent.target, ending) {
            let reply = Reply {
                answer: Some(&answer),
                json: &String::from_utf8_lossy(&publish.payload),
                took: sent.at.elapsed(),
            };
            (self.progress)(Progress::Ended(sent.target, ending, Some(reply)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_ids_differ_and_fit_into_a_double() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| unique()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| *id > 0 && *id < 1 << 53));
    }

    #[test]
    fn the_name_of_a_host_is_filled_in() {
        let target = Target::host("web1", "a/%h/b", Some("%h")).unwrap();
        assert_eq!(target.topic, "a/web1/b");
        assert_eq!(target.result_topic.as_deref(), Some("web1"));
        for name in ["", "a/b", "+", "#", "a\n", "a\0", "\u{85}"] {
            assert!(Target::host(name, "a/%h", None).is_err(), "{name:?}");
        }
    }
}
