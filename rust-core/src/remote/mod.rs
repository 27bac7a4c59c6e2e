//! Commands from an MQTT broker, and results to it.

mod backlog;
mod backoff;
pub(crate) mod connect;
mod link;
mod outbox;
mod rivals;
mod session;
mod status;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout, timeout_at, Instant};
use tracing::{debug, error, info, warn};

use crate::daemon::{Daemon, Notification, Severity};
use crate::engine::{Delivery, Input, Output};
use crate::json;
use crate::metrics::{Metric, Metrics};
use crate::protocol::{Code, Message, Outcome, Reply, TaskId};
use crate::settings::{self, Qos};
use crate::store::{Number, Store};
use crate::trust::audit::{By, Decision};
use crate::trust::{self, Trust};
use backlog::Backlog;
use backoff::Backoff;
use link::{Cause, Client, Event, Events, Incoming, Limits, Lost, Outgoing};
use outbox::{Outbox, Parcel};
use rivals::Rivals;
use session::Unreleased;

/// How long a connection must last before the next attempt after it counts as a first one.
const STABLE: Duration = Duration::from_secs(10);
/// How long results may take to reach the broker when the monitor stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// The longest correlation data that is given back. It goes through the journal.
const MAX_CORRELATION: usize = 1024;
/// What a packet holds besides topic, payload and correlation data, and then some.
const PACKET_OVERHEAD: usize = 64;
/// What a signed envelope adds to what it holds, and does not grow with it.
const SEAL: usize = 512;

/// What connects the remote side to the rest of the monitor.
pub(crate) struct Links {
    /// Where messages go.
    pub(crate) inputs: Sender<Input>,
    /// Where results come from, and word of what has become of messages.
    pub(crate) outputs: mpsc::Receiver<Output>,
    /// Where to write down that the broker has a result.
    pub(crate) store: Arc<Mutex<Store>>,
    /// Which messages are looked at, and how results are signed.
    pub(crate) trust: Arc<Trust>,
    /// Where it is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// Becomes true when the monitor stops.
    pub(crate) stop: watch::Receiver<bool>,
}

/// A connection to a broker that is ready to be made.
pub(crate) struct Remote {
    daemon: Arc<dyn Daemon>,
    settings: settings::Remote,
    options: link::Options,
    client_id: String,
    host: String,
}

impl Remote {
    /// Fills in the host's name and reads the certificates.
    pub(crate) fn prepare(
        mut settings: settings::Remote,
        daemon: Arc<dyn Daemon>,
    ) -> Result<Self, String> {
        let host = daemon.hostname();
        let host = host.as_str();
        let uses_host = [
            Some(&settings.command_topic),
            settings.result_topic.as_ref(),
            settings.status_topic.as_ref(),
            settings.response_prefix.as_ref(),
        ]
        .into_iter()
        .flatten()
        .any(|topic| topic.contains("%h"));
        if uses_host && (host.is_empty() || host.contains(['+', '#', '/', '\0'])) {
            return Err("the name of this host cannot stand for %h in a topic".to_owned());
        }
        for topic in [
            Some(&mut settings.command_topic),
            settings.result_topic.as_mut(),
            settings.status_topic.as_mut(),
            settings.response_prefix.as_mut(),
        ]
        .into_iter()
        .flatten()
        {
            *topic = topic.replace("%h", host);
        }
        let client_id = settings
            .client_id
            .as_deref()
            .unwrap_or("collectd-monitor-%h")
            .replace("%h", host);
        if let Some(password) = connect::kept_password(&settings, |name| std::env::var_os(name))? {
            settings.password = Some(password);
        }
        let will = status::offline(host, "lost", None);
        let options = link::Options::new(&settings, &client_id, Some(will))?;
        Ok(Self {
            settings,
            options,
            client_id,
            host: host.to_owned(),
            daemon,
        })
    }

    /// Stays connected until it is told to stop.
    pub(crate) async fn run(self, links: Links) {
        let (client, mut events) = self.options.open();
        let mut connection = Connection {
            backoff: Backoff::new(self.settings.reconnect),
            asking: Backoff::new(None),
            backlog: Backlog::default(),
            rivals: Rivals::default(),
            settles: None,
            remote: self,
            client,
            links,
            outbox: Outbox::default(),
            limits: Limits::default(),
            unreleased: Unreleased::default(),
            unacknowledged: HashMap::new(),
            next_token: 0,
            acknowledgements: VecDeque::new(),
            connected: None,
            since: std::time::UNIX_EPOCH,
            resubscribe: None,
            refused: false,
            hold: None,
            rejected: None,
            last_error: None,
        };
        connection.serve(&mut events).await;
        connection.leave(&mut events).await;
    }

    fn broker(&self) -> String {
        format!("{}:{}", self.settings.host, self.settings.port)
    }
}

struct Connection {
    remote: Remote,
    client: Client,
    links: Links,
    outbox: Outbox,
    /// What the broker allows.
    limits: Limits,
    unreleased: Unreleased,
    /// Which messages the broker may have kept while we were away.
    backlog: Backlog,
    /// Whether another client has our client id, and when that is over unless it happens again.
    rivals: Rivals,
    settles: Option<Instant>,
    /// Messages of this connection that are in nobody's hands yet, by token.
    unacknowledged: HashMap<u64, (u16, Qos)>,
    next_token: u64,
    /// What rumqttc had no room for.
    acknowledgements: VecDeque<(u16, Qos)>,
    backoff: Backoff,
    connected: Option<Instant>,
    /// Since when, by the clock.
    since: SystemTime,
    /// When to ask again for what was refused.
    asking: Backoff,
    /// When to ask again for a topic that was refused.
    resubscribe: Option<Instant>,
    /// Whether the broker refuses the topic, and that was said.
    refused: bool,
    /// When to send again, after the broker did not take what was sent.
    hold: Option<Instant>,
    /// Why the broker takes no results, and that was said.
    rejected: Option<String>,
    /// Why there is no connection, and that was said.
    last_error: Option<String>,
}

impl Connection {
    async fn serve(&mut self, events: &mut Events) {
        while !self.stopping() {
            if let Err(lost) = self.step(events).await {
                self.lost(lost);
                self.pause().await;
            }
        }
    }

    /// Whether the monitor stops, or is gone already.
    fn stopping(&self) -> bool {
        *self.links.stop.borrow() || self.links.stop.has_changed().is_err()
    }

    /// One event of the connection. Polling is not cancelled meanwhile: that could lose a packet.
    async fn step(&mut self, events: &mut Events) -> Result<(), Lost> {
        let event = {
            let mut poll = std::pin::pin!(events.poll());
            loop {
                let resubscribe = self.resubscribe.unwrap_or_else(Instant::now);
                let hold = self.hold.unwrap_or_else(Instant::now);
                let settles = self.settles.unwrap_or_else(Instant::now);
                tokio::select! {
                    event = &mut poll => break event?,
                    Some(output) = self.links.outputs.recv() => self.take(output),
                    () = sleep_until(resubscribe), if self.resubscribe.is_some() => self.subscribe(),
                    () = sleep_until(hold), if self.hold.is_some() => {
                        self.hold = None;
                        self.send();
                    }
                    () = sleep_until(settles), if self.settles.is_some() => self.settle(),
                    _ = self.links.stop.changed() => return Ok(()),
                }
            }
        };
        match event {
            Event::Connected {
                session_present,
                limits,
            } => self.arrived(session_present, limits, events),
            Event::Message(message) => self.receive(message),
            Event::Subscribed(answers) => self.subscribed(&answers),
            Event::Sent(packet) => self.sent(packet),
            Event::Acknowledged(packet) => self.acknowledged(packet),
            Event::Rejected(packet, why) => self.rejected(packet, &why),
            Event::Released(packet) => self.unreleased.released(packet),
            Event::Goodbye | Event::Other => {}
        }
        self.send();
        Ok(())
    }

    /// Waits before the next attempt to connect, and goes on taking results.
    async fn pause(&mut self) {
        let wait = self.backoff.wait();
        debug!("next attempt to connect in {} ms", wait.as_millis());
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                Some(output) = self.links.outputs.recv() => self.take(output),
                _ = self.links.stop.changed() => return,
            }
        }
    }

    fn arrived(&mut self, session_present: bool, limits: Limits, events: &mut Events) {
        self.connected = Some(Instant::now());
        self.limits = limits;
        self.count(Metric::Connections);
        self.links.metrics.set(Metric::Connected, 1);
        self.hold = None;
        if self.last_error.take().is_some() {
            warn!("connected to the broker {} again", self.remote.broker());
        } else {
            info!("connected to the broker {}", self.remote.broker());
        }
        self.outbox.limit(limits.packet_ids);
        self.backlog.connected(session_present, Instant::now());
        if session_present {
            events.resume(self.unreleased.packets());
        } else {
            self.unreleased.clear();
            self.outbox.start_over();
        }
        let rivals = self.rivals.are_there();
        self.settles = rivals.then(|| Instant::now() + rivals::SETTLED);
        self.since = self.remote.daemon.now();
        self.say_online();
        self.subscribe();
    }

    /// Another client throws us out again and again.
    fn rival(&mut self) {
        let id = &self.remote.client_id;
        let what = format!(
            "another client seems to use the client id {id:?}; each host needs one of its own (ClientId)"
        );
        error!("{what}");
        self.links.metrics.set(Metric::SharedClientId, 1);
        self.notify(Severity::Failure, what);
    }

    /// The connection lasts, so nobody throws us out any more.
    fn settle(&mut self) {
        self.settles = None;
        self.rivals.settled();
        let what = format!(
            "no other client uses the client id {:?} any more",
            self.remote.client_id
        );
        warn!("{what}");
        self.links.metrics.set(Metric::SharedClientId, 0);
        self.notify(Severity::Okay, what);
        self.say_online();
        self.send();
    }

    fn notify(&self, severity: Severity, message: String) {
        let daemon = &self.remote.daemon;
        daemon.dispatch_notification(&Notification {
            severity,
            time: daemon.now(),
            message,
            host: daemon.hostname(),
            plugin: "monitor".to_owned(),
            plugin_instance: "connection".to_owned(),
            type_: "bool".to_owned(),
            type_instance: "client_id_shared".to_owned(),
        });
    }

    /// Tells that we are there, and what keeps us from working.
    fn say_online(&mut self) {
        if self.connected.is_none() || self.remote.settings.status_topic.is_none() {
            return;
        }
        let store = self.store();
        let hold = store.held(self.remote.daemon.now());
        let problem = self.rivals.are_there().then_some("client id shared");
        let starts = store.starts();
        let online = status::online(&self.remote.host, starts, self.since, problem, hold);
        drop(store);
        self.say(online);
    }

    fn count(&self, metric: Metric) {
        self.links.metrics.count(metric);
    }

    /// Publishes what is to be said of the monitor.
    fn say(&mut self, payload: Vec<u8>) {
        if let Some(topic) = self.remote.settings.status_topic.clone() {
            self.outbox.push_status(Parcel {
                topic,
                payload,
                correlation: None,
            });
        }
    }

    fn lost(&mut self, lost: Lost) {
        if let Some(packet) = lost.released {
            // It is one that rumqttc will be told to expect.
            self.unreleased.expect(packet);
        }
        self.resubscribe = None;
        // The broker sends them again.
        self.unacknowledged.clear();
        self.acknowledgements.clear();
        let was_connected = self.connected.take();
        if was_connected.is_some() {
            self.backlog.lost(Instant::now());
        }
        self.settles = None;
        if let Some(since) = was_connected {
            let lasted = since.elapsed();
            if lost.cause == Cause::TakenOver {
                self.count(Metric::TakenOver);
            }
            if self.rivals.lost(&lost.cause, lasted) {
                self.rival();
            }
            // Two that throw each other out do so at leisure.
            if lasted > STABLE && !self.rivals.are_there() {
                self.backoff.reset();
            }
        }
        self.count(match (was_connected.is_some(), &lost.cause) {
            (true, _) => Metric::Lost,
            (false, Cause::Refused) => Metric::Refused,
            (false, _) => Metric::Unreachable,
        });
        self.links.metrics.set(Metric::Connected, 0);
        let broker = self.remote.broker();
        let what = lost.what;
        self.links.metrics.deaf(&what);
        let said = self.last_error.replace(what.clone());
        if was_connected.is_some() {
            warn!("the connection to the broker {broker} is lost: {what}");
        } else if said.as_ref() != Some(&what) {
            error!("cannot connect to the broker {broker}, trying again: {what}");
        } else {
            debug!("still cannot connect to the broker {broker}: {what}");
        }
    }

    fn subscribe(&mut self) {
        self.resubscribe = None;
        let settings = &self.remote.settings;
        if let Err(error) = self.client.subscribe(&settings.command_topic, settings.qos) {
            debug!("there is no room to subscribe yet: {error}");
            self.resubscribe = Some(Instant::now() + Duration::from_secs(1));
        }
    }

    fn subscribed(&mut self, answers: &[Result<Qos, String>]) {
        let topic = &self.remote.settings.command_topic;
        for answer in answers {
            match answer {
                Err(why) => {
                    self.count(Metric::Denied);
                    let deaf = format!("the broker refuses the subscription: {why}");
                    self.links.metrics.deaf(&deaf);
                    if !self.refused {
                        error!("the broker refuses the subscription to the topic {topic:?}, trying again: {why}");
                    }
                    self.refused = true;
                    self.resubscribe = Some(Instant::now() + self.asking.wait());
                }
                Ok(granted) => {
                    self.links.metrics.hears();
                    self.refused = false;
                    self.asking.reset();
                    if *granted == self.remote.settings.qos {
                        info!("listening for commands on the topic {topic:?}");
                    } else {
                        warn!(
                            "listening for commands on the topic {topic:?}, but only with QoS {}",
                            granted.level()
                        );
                    }
                }
            }
        }
    }

    fn receive(&mut self, message: Incoming) {
        self.count(Metric::Messages);
        let token = self.next_token;
        self.next_token += 1;
        self.unacknowledged
            .insert(token, (message.packet, message.qos));
        let again = message.qos == Qos::ExactlyOnce
            && self.unreleased.received(message.packet, message.dup);
        if again {
            debug!("a message was delivered again and is passed over");
            self.count(Metric::PassedOver);
            self.acknowledge(token);
            return;
        }
        // A kept session may still have a subscription that was configured earlier.
        if !rumqttc::matches(&message.topic, &self.remote.settings.command_topic) {
            warn!("a message on the topic {:?} is passed over", message.topic);
            self.count(Metric::PassedOver);
            self.acknowledge(token);
            return;
        }
        let reply = message.reply.clone().and_then(|r| self.permitted(r));
        let delivery = Delivery {
            token,
            again: message.dup,
            reply: reply.clone(),
            expires: message.expires,
            away: self.backlog.away(Instant::now()),
        };
        let Some(input) = self.read(&message, delivery) else {
            self.acknowledge(token);
            return;
        };
        match self.links.inputs.try_send(input) {
            Ok(()) => {}
            Err(TrySendError::Full(input)) => {
                let (task, request) = match input {
                    Input::Message(message, authority, _) => (message.task, authority.envelope()),
                    Input::Refused { task, request, .. } => (task, request),
                    // Rules do not come from here.
                    Input::Local(_) => return,
                };
                warn!(%task, "refused: too many messages are waiting");
                self.links.metrics.refused(Code::Busy);
                let outcome = Outcome {
                    task,
                    message: "Too many messages are waiting.".to_owned(),
                    errors: String::new(),
                    code: Code::Busy,
                    at: self.remote.daemon.now(),
                    request,
                    reply,
                };
                let number = self.store().answer(&outcome);
                self.result(number, &outcome);
                self.acknowledge(token);
            }
            // The monitor stops. Whoever comes after it gets the message again.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// What a payload asks for, or why it is refused. None if nobody can be told.
    fn read(&self, incoming: &Incoming, delivery: Delivery) -> Option<Input> {
        let trust = &self.links.trust;
        let now = self.remote.daemon.now();
        let opened = match trust.open(&incoming.payload, now) {
            Ok(opened) => opened,
            Err(refusal) => {
                let trust::Refusal {
                    code,
                    why,
                    task,
                    request,
                } = refusal;
                // The engine says so where it answers.
                let Some(task) = task else {
                    warn!(bytes = incoming.payload.len(), "refused: {why}");
                    self.links.metrics.refused(code);
                    return None;
                };
                return Some(Input::Refused {
                    task,
                    request,
                    code,
                    why,
                    delivery,
                });
            }
        };
        let refused = |task: Option<&TaskId>, code: Code, why: &str| {
            let mut decision = Decision::new(By::from(&opened.authority), "message");
            decision.task = task.map(ToString::to_string);
            trust.record(&decision.refused(Some(code), why), now);
        };
        match Message::parse(&opened.text) {
            // It comes with every subscription, and nobody knows when it was sent.
            Ok(message) if incoming.retain => {
                let why = "Commands must not be retained.";
                refused(Some(&message.task), Code::Retained, why);
                Some(Input::Refused {
                    task: message.task,
                    request: opened.authority.envelope(),
                    code: Code::Retained,
                    why: why.to_owned(),
                    delivery,
                })
            }
            Ok(message) => Some(Input::Message(message, opened.authority, delivery)),
            Err(unreadable) => {
                warn!(
                    bytes = incoming.payload.len(),
                    "a message is not understood: {}", unreadable.reason
                );
                self.count(Metric::Unreadable);
                let why = format!("The message is not understood: {}.", unreadable.reason);
                refused(unreadable.task.as_ref(), unreadable.code, &why);
                Some(Input::Refused {
                    task: unreadable.task?,
                    request: opened.authority.envelope(),
                    code: unreadable.code,
                    why,
                    delivery,
                })
            }
        }
    }

    /// What of a sender's wishes is granted.
    fn permitted(&self, mut reply: Reply) -> Option<Reply> {
        let settings = &self.remote.settings;
        let refused = |topic: &String| {
            let prefix = settings.response_prefix.as_deref();
            !prefix.is_some_and(|prefix| is_below(topic, prefix))
                || rumqttc::matches(topic, &settings.command_topic)
        };
        if let Some(topic) = reply.topic.take_if(|topic| refused(topic)) {
            warn!("the response topic {topic:?} is not below ResponseTopicPrefix; the result goes where all others do");
        }
        if let Some(data) = reply.correlation.take_if(|d| d.len() > MAX_CORRELATION) {
            warn!(
                "correlation data of {} bytes is not given back; at most {MAX_CORRELATION} are",
                data.len()
            );
        }
        (reply != Reply::default()).then_some(reply)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // A panic is reported where it is caught; the journal is only ever changed as a whole.
        self.links
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the engine says.
    fn take(&mut self, output: Output) {
        match output {
            Output::Acknowledge(token) => self.acknowledge(token),
            Output::Result(number, outcome) => self.result(number, &outcome),
            Output::Status => self.say_online(),
        }
        self.send();
    }

    /// A message is in good hands. If it came with an earlier connection, it comes again.
    fn acknowledge(&mut self, token: u64) {
        if let Some((packet, qos)) = self.unacknowledged.remove(&token) {
            self.unreleased.accepted(packet);
            if qos != Qos::AtMostOnce {
                self.acknowledgements.push_back((packet, qos));
            }
        }
    }

    fn result(&mut self, number: Number, outcome: &Outcome) {
        let wished = outcome.reply.as_ref().and_then(|reply| reply.topic.clone());
        let Some(topic) = wished.or_else(|| self.remote.settings.result_topic.clone()) else {
            debug!(task = %outcome.task, "no result is sent, because there is no CommandResultTopic");
            self.store().delivered(number);
            return;
        };
        let parcel = Parcel {
            topic,
            payload: self.payload(outcome, None).unwrap_or_default(),
            correlation: outcome.reply.as_ref().and_then(|r| r.correlation.clone()),
        };
        let dropped = self.outbox.push(number, parcel);
        self.measure();
        if !dropped.is_empty() {
            self.drop_results(dropped);
            let all = self.store().losses().results;
            warn!("{all} results were dropped, because the broker was away for too long");
        }
    }

    fn drop_results(&self, dropped: impl IntoIterator<Item = Number>) {
        let mut store = self.store();
        for number in dropped {
            store.dropped(number);
        }
    }

    fn measure(&self) {
        let waiting = u64::try_from(self.outbox.results()).unwrap_or(u64::MAX);
        self.links.metrics.set(Metric::ResultsWaiting, waiting);
    }

    fn delivered(&self, number: Number) {
        self.store().delivered(number);
        self.count(Metric::ResultsDelivered);
        self.measure();
    }

    /// rumqttc has sent a result.
    fn sent(&mut self, packet: u16) {
        if let Some(number) = self.outbox.sent(packet) {
            self.delivered(number);
        }
    }

    /// The broker has a result.
    fn acknowledged(&mut self, packet: u16) {
        if self.rejected.take().is_some() {
            self.asking.reset();
            warn!("the broker takes results again");
        }
        if let Some(number) = self.outbox.acknowledged(packet) {
            self.delivered(number);
        }
    }

    /// The broker does not take a result. It is kept, and sent again.
    fn rejected(&mut self, packet: u16, why: &str) {
        self.count(Metric::ResultsRejected);
        let instead = self.remote.settings.result_topic.as_deref();
        match self.outbox.rejected(packet, instead) {
            None => {}
            Some(outbox::Rejection::Elsewhere(topic)) => {
                warn!("the broker takes no result on the response topic {topic:?}: {why}");
            }
            Some(outbox::Rejection::Dropped(number, topic)) => {
                warn!("a result was dropped, because the broker does not take it on the response topic {topic:?}: {why}");
                self.drop_results([number]);
            }
            Some(outbox::Rejection::Again(topic)) => {
                self.hold = Some(Instant::now() + self.asking.wait());
                if self.rejected.replace(why.to_owned()).as_deref() != Some(why) {
                    error!("the broker takes nothing on the topic {topic:?}, trying again: {why}");
                }
            }
        }
    }

    /// Hands acknowledgements to rumqttc, and as many results as may be under way.
    fn send(&mut self) {
        while let Some((packet, qos)) = self.acknowledgements.front() {
            if let Err(error) = self.client.acknowledge(*packet, *qos) {
                debug!("there is no room to acknowledge yet: {error}");
                return;
            }
            self.acknowledgements.pop_front();
        }
        while self.connected.is_some() && self.hold.is_none() {
            if let Some(number) = self.make_fit() {
                warn!("a result was dropped, because the broker takes no message of its length");
                self.drop_results([number]);
            }
            let Some((parcel, is_result)) = self.outbox.next() else {
                return;
            };
            let message = Outgoing {
                topic: &parcel.topic,
                qos: self.remote.settings.qos,
                // Whoever asks for the state of the monitor later must find it.
                retain: !is_result,
                payload: &parcel.payload,
                correlation: parcel.correlation.as_deref(),
            };
            if let Err(error) = self.client.publish(&message) {
                debug!("there is no room to publish yet: {error}");
                return;
            }
            self.outbox.handed();
        }
    }

    /// A result as it is sent, in at most so many bytes. None if it cannot be shortened so far.
    fn payload(&self, outcome: &Outcome, most: Option<usize>) -> Option<Vec<u8>> {
        let now = self.remote.daemon.now();
        let json = outcome.to_json(&self.remote.host);
        let length = json.len();
        let seal = |json| self.links.trust.seal_result(json, outcome.request, now);
        let sealed = seal(json.clone());
        let Some(most) = most.filter(|most| sealed.len() > *most) else {
            return Some(sealed.into_bytes());
        };
        // A seal adds a share of what it is put on, and something more.
        let share = most.saturating_mul(length) / sealed.len().max(1);
        let most_json = if sealed.len() == length {
            most
        } else {
            share.saturating_sub(SEAL)
        };
        let short = seal(shorten_result(&json, most_json)?);
        (short.len() <= most).then(|| short.into_bytes())
    }

    /// Shortens what is sent next to what the broker takes. Returns a result that cannot be shortened so far.
    fn make_fit(&mut self) -> Option<Number> {
        let most = self.limits.max_packet?;
        let (parcel, _) = self.outbox.next()?;
        let rest = parcel.topic.len() + parcel.correlation.as_ref().map_or(0, Vec::len);
        let most = most.saturating_sub(rest + PACKET_OVERHEAD);
        if parcel.payload.len() <= most {
            return None;
        }
        let outcome = self
            .outbox
            .next_result()
            .and_then(|n| self.store().result(n));
        match outcome.and_then(|outcome| self.payload(&outcome, Some(most))) {
            Some(payload) => {
                warn!("a result is shortened, because the broker takes no message of its length");
                self.outbox.replace_next(payload);
                None
            }
            None => self.outbox.drop_next(),
        }
    }

    /// Gives what is known a chance to reach the broker, and says goodbye.
    async fn leave(&mut self, events: &mut Events) {
        while let Ok(output) = self.links.outputs.try_recv() {
            self.take(output);
        }
        if self.connected.is_none() {
            if !self.outbox.is_empty() {
                warn!("stopping without a broker; results are kept for the next start");
            }
            return;
        }
        if self.remote.settings.status_topic.is_some() {
            let now = self.remote.daemon.now();
            let offline = status::offline(&self.remote.host, "stopped", Some(now));
            self.say(offline);
            self.send();
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.outbox.is_empty() || !self.acknowledgements.is_empty() {
            match timeout_at(deadline, events.poll()).await {
                Ok(Ok(Event::Sent(packet))) => self.sent(packet),
                Ok(Ok(Event::Acknowledged(packet))) => self.acknowledged(packet),
                Ok(Ok(Event::Rejected(packet, why))) => self.rejected(packet, &why),
                Ok(Ok(_)) => {}
                Ok(Err(Lost { what, .. })) => {
                    warn!("stopping; results are kept for the next start: {what}");
                    return;
                }
                Err(_) => {
                    warn!("stopping; the broker takes no more results, which are kept for the next start");
                    break;
                }
            }
            self.send();
        }
        if let Err(error) = self.client.disconnect() {
            debug!("no room to say goodbye: {error}");
            return;
        }
        let goodbye =
            async { while !matches!(events.poll().await, Ok(Event::Goodbye) | Err(_)) {} };
        if timeout(STOP_PATIENCE, goodbye).await.is_err() {
            debug!("the broker does not take a goodbye");
        }
        // The packet leaves with the next turn of the runtime.
        sleep(Duration::ZERO).await;
    }
}

/// Whether a topic can be published to and is a certain one, or below it.
fn is_below(topic: &str, prefix: &str) -> bool {
    let Some(rest) = topic.strip_prefix(prefix) else {
        return false;
    };
    (rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
        && rumqttc::valid_topic(topic)
        && !topic.contains('\0')
}

/// What stands behind a text that was shortened.
const CUT: &str = "\n[cut: the broker takes no more of it]";

/// The same result with less of what the command printed, in at most so many bytes.
fn shorten_result(json: &str, most: usize) -> Option<String> {
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let mut fields: Vec<(String, String)> = json::entries(json)
        .ok()?
        .into_iter()
        .map(|(key, value)| (quoted(&key), value.get().to_owned()))
        .collect();
    let write = |fields: &[(String, String)]| {
        let fields: Vec<_> = fields.iter().map(|(k, v)| format!("{k}:{v}")).collect();
        format!("{{{}}}", fields.join(","))
    };
    for field in ["\"stderr\"", "\"message\""] {
        let Some(at) = fields.iter().position(|(key, _)| key == field) else {
            continue;
        };
        let text: String = serde_json::from_str(&fields[at].1).ok()?;
        fields[at].1 = quoted(CUT);
        let room = most.saturating_sub(write(&fields).len());
        // Each character takes as many bytes as it is long, or up to six.
        let mut kept = String::new();
        let mut used = 0;
        for c in text.chars() {
            used += quoted(c.encode_utf8(&mut [0; 4])).len() - 2;
            if used > room {
                break;
            }
            kept.push(c);
        }
        if kept.len() < text.len() {
            kept.push_str(CUT);
        }
        fields[at].1 = quoted(&kept);
    }
    let json = write(&fields);
    (json.len() <= most).then_some(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeDaemon;
    use crate::settings::{Block, Settings, Value};

    fn daemon(host: &str) -> Arc<dyn Daemon> {
        Arc::new(FakeDaemon::new(host))
    }

    fn settings(topic: &str) -> settings::Remote {
        let block = Block::option("Plugin", [Value::from("monitor")])
            .with("Host", "h")
            .with("CommandTopic", topic)
            .with("CommandResultTopic", "results/%h");
        Settings::read(&block).unwrap().remote.unwrap()
    }

    #[test]
    fn the_host_name_is_filled_in() {
        let remote = Remote::prepare(settings("commands/%h/x"), daemon("node1")).unwrap();
        assert_eq!(remote.settings.command_topic, "commands/node1/x");
        assert_eq!(
            remote.settings.result_topic.as_deref(),
            Some("results/node1")
        );
        let link::Options::V3(options) = remote.options else {
            panic!("3.1.1 is the default");
        };
        assert_eq!(options.client_id(), "collectd-monitor-node1");
        assert!(!options.clean_session());
    }

    #[test]
    fn a_host_name_that_means_something_to_mqtt_is_refused() {
        for host in ["a/b", "+", "#", ""] {
            assert!(
                Remote::prepare(settings("commands/%h"), daemon(host)).is_err(),
                "{host}"
            );
        }
    }

    #[test]
    fn a_topic_is_below_another_level_by_level() {
        for (topic, prefix, expected) in [
            ("replies", "replies", true),
            ("replies/a/b", "replies", true),
            ("replies/a", "replies/", true),
            ("replies-of-others", "replies", false),
            ("other/replies/a", "replies", false),
            ("replies/#", "replies", false),
            ("replies/+/a", "replies", false),
            ("replies/a\0", "replies", false),
            ("replies", "replies/a", false),
            ("", "replies", false),
        ] {
            assert_eq!(is_below(topic, prefix), expected, "{topic:?} {prefix:?}");
        }
    }

    #[test]
    fn a_result_is_shortened_to_what_fits() {
        let outcome = Outcome {
            task: 18_446_744_073_709_551_615.into(),
            message: "é\n".repeat(1000),
            errors: "x\0".repeat(1000),
            code: Code::Exit(3),
            at: std::time::UNIX_EPOCH,
            request: None,
            reply: None,
        };
        let json = outcome.to_json("node1");
        for most in [220, 300, 1000, 5000, 8000, 10_000] {
            let text = shorten_result(&json, most).unwrap();
            assert!(text.len() <= most, "{} of {most}", text.len());
            assert!(text.contains("\"task_id\":18446744073709551615"), "{text}");
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(
                (&value["code"], &value["host"]),
                (&3.into(), &"node1".into())
            );
            let message = value["message"].as_str().unwrap();
            let kept = message
                .strip_suffix(CUT)
                .unwrap_or_else(|| panic!("{message:?}"));
            assert!(outcome.message.starts_with(kept), "{kept:?}");
        }
        assert_eq!(shorten_result(&json, 50), None);
        assert_eq!(shorten_result("no JSON", 5), None);
    }
}
