//! Commands from an MQTT broker, and results to it.

mod backoff;
pub(crate) mod connect;
mod outbox;
mod session;
mod status;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use rumqttc::mqttbytes::v4::{ConnAck, Publish, SubscribeReasonCode};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, LastWill, Outgoing, Packet, QoS, Request,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout, timeout_at, Instant};
use tracing::{debug, error, info, warn};

use crate::daemon::Daemon;
use crate::engine::{Delivery, Input, Output};
use crate::protocol::{Code, Message, Outcome, TaskId};
use crate::settings;
use crate::store::{Number, Store};
use crate::trust::audit::{By, Decision};
use crate::trust::{self, Trust};
use backoff::Backoff;
use outbox::Outbox;
use session::Unreleased;

/// How many packet ids rumqttc may use.
const IN_FLIGHT: u16 = 1000;
/// Subscriptions and a window of results fit into rumqttc's queue.
const REQUESTS: usize = 64;
/// How long a connection must last before the next attempt after it counts as a first one.
const STABLE: Duration = Duration::from_secs(10);
/// How long results may take to reach the broker when the monitor stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait before a topic that the broker refused is asked for again.
const RESUBSCRIBE: Duration = Duration::from_secs(60);

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
    /// Becomes true when the monitor stops.
    pub(crate) stop: watch::Receiver<bool>,
}

/// A connection to a broker that is ready to be made.
pub(crate) struct Remote {
    daemon: Arc<dyn Daemon>,
    settings: settings::Remote,
    options: rumqttc::MqttOptions,
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
        if let Some(path) = &settings.password_file {
            settings.password = Some(connect::password(path)?);
        }
        let mut options = connect::options(&settings, &client_id)?;
        if let Some(topic) = &settings.status_topic {
            let payload = status::offline(host, "lost", None);
            let qos = connect::qos(settings.qos);
            options.set_last_will(LastWill::new(topic, payload, qos, true));
        }
        options.set_inflight(IN_FLIGHT);
        // A message is acknowledged when it is in the journal.
        options.set_manual_acks(true);
        Ok(Self {
            settings,
            options,
            host: host.to_owned(),
            daemon,
        })
    }

    /// Stays connected until it is told to stop.
    pub(crate) async fn run(self, links: Links) {
        let mut options = rumqttc::NetworkOptions::new();
        options.set_tcp_nodelay(true);
        let (client, mut events) = AsyncClient::new(self.options.clone(), REQUESTS);
        events.set_network_options(options);
        let mut connection = Connection {
            backoff: Backoff::new(self.settings.reconnect),
            remote: self,
            client,
            links,
            outbox: Outbox::default(),
            unreleased: Unreleased::default(),
            unacknowledged: HashMap::new(),
            next_token: 0,
            acknowledgements: VecDeque::new(),
            connected: None,
            resubscribe: None,
            refused: false,
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
    client: AsyncClient,
    links: Links,
    outbox: Outbox,
    unreleased: Unreleased,
    /// Messages of this connection that are in nobody's hands yet, by token.
    unacknowledged: HashMap<u64, (u16, QoS)>,
    next_token: u64,
    /// What rumqttc had no room for.
    acknowledgements: VecDeque<(u16, QoS)>,
    backoff: Backoff,
    connected: Option<Instant>,
    /// When to ask again for a topic that was refused.
    resubscribe: Option<Instant>,
    /// Whether the broker refuses the topic, and that was said.
    refused: bool,
    /// Why there is no connection, and that was said.
    last_error: Option<String>,
}

impl Connection {
    async fn serve(&mut self, events: &mut EventLoop) {
        while !self.stopping() {
            if let Err(error) = self.step(events).await {
                self.lost(&error, events);
                self.pause().await;
            }
        }
    }

    /// Whether the monitor stops, or is gone already.
    fn stopping(&self) -> bool {
        *self.links.stop.borrow() || self.links.stop.has_changed().is_err()
    }

    /// One event of the connection. Polling is not cancelled meanwhile: that could lose a packet.
    async fn step(&mut self, events: &mut EventLoop) -> Result<(), ConnectionError> {
        let event = {
            let mut poll = std::pin::pin!(events.poll());
            loop {
                let resubscribe = self.resubscribe.unwrap_or_else(Instant::now);
                tokio::select! {
                    event = &mut poll => break event?,
                    Some(output) = self.links.outputs.recv() => self.take(output),
                    () = sleep_until(resubscribe), if self.resubscribe.is_some() => self.subscribe(),
                    _ = self.links.stop.changed() => return Ok(()),
                }
            }
        };
        match event {
            Event::Incoming(Packet::ConnAck(ack)) => self.arrived(&ack, events),
            Event::Incoming(Packet::Publish(publish)) => self.receive(&publish),
            Event::Incoming(Packet::SubAck(ack)) => self.subscribed(&ack.return_codes),
            Event::Incoming(Packet::PubAck(ack)) => self.acknowledged(ack.pkid),
            Event::Incoming(Packet::PubComp(ack)) => self.acknowledged(ack.pkid),
            Event::Outgoing(Outgoing::Publish(packet)) => self.sent(packet),
            Event::Outgoing(outgoing) => self.unreleased.sent(&outgoing),
            Event::Incoming(_) => {}
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

    fn arrived(&mut self, ack: &ConnAck, events: &mut EventLoop) {
        self.connected = Some(Instant::now());
        if self.last_error.take().is_some() {
            warn!("connected to the broker {} again", self.remote.broker());
        } else {
            info!("connected to the broker {}", self.remote.broker());
        }
        if ack.session_present {
            // The broker sends what was not acknowledged again, and is told then.
            let mut pending = std::mem::take(&mut events.pending);
            pending.retain(|request| !matches!(request, Request::PubRec(_) | Request::PubAck(_)));
            events.pending = pending;
            self.unreleased.resume(&mut events.state);
        } else {
            self.unreleased.clear();
            self.outbox.start_over();
        }
        if self.remote.settings.status_topic.is_some() {
            let starts = self.store().starts();
            let now = self.remote.daemon.now();
            let online = status::online(&self.remote.host, starts, now);
            self.outbox.push_status(online);
        }
        self.subscribe();
    }

    fn lost(&mut self, error: &ConnectionError, events: &EventLoop) {
        self.unreleased.failed(error, &events.state);
        self.resubscribe = None;
        // The broker sends them again.
        self.unacknowledged.clear();
        self.acknowledgements.clear();
        let was_connected = self.connected.take();
        if was_connected.is_some_and(|since| since.elapsed() > STABLE) {
            self.backoff.reset();
        }
        let broker = self.remote.broker();
        let what = connect::describe(error);
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
        if let Err(error) = self
            .client
            .try_subscribe(&settings.command_topic, connect::qos(settings.qos))
        {
            debug!("there is no room to subscribe yet: {error}");
            self.resubscribe = Some(Instant::now() + Duration::from_secs(1));
        }
    }

    fn subscribed(&mut self, codes: &[SubscribeReasonCode]) {
        let topic = &self.remote.settings.command_topic;
        let wanted = connect::qos(self.remote.settings.qos);
        for code in codes {
            match code {
                SubscribeReasonCode::Failure => {
                    if !self.refused {
                        error!("the broker refuses the subscription to the topic {topic:?}, trying again");
                    }
                    self.refused = true;
                    self.resubscribe = Some(Instant::now() + RESUBSCRIBE);
                }
                SubscribeReasonCode::Success(granted) => {
                    self.refused = false;
                    if *granted as u8 == wanted as u8 {
                        info!("listening for commands on the topic {topic:?}");
                    } else {
                        warn!(
                            "listening for commands on the topic {topic:?}, but only with QoS {}",
                            *granted as u8
                        );
                    }
                }
            }
        }
    }

    fn receive(&mut self, publish: &Publish) {
        let delivery = Delivery {
            token: self.next_token,
            again: publish.dup,
        };
        self.next_token += 1;
        self.unacknowledged
            .insert(delivery.token, (publish.pkid, publish.qos));
        if self.unreleased.received(publish) {
            debug!("a message was delivered again and is passed over");
            self.acknowledge(delivery.token);
            return;
        }
        // A kept session may still have a subscription that was configured earlier.
        if !rumqttc::matches(&publish.topic, &self.remote.settings.command_topic) {
            warn!("a message on the topic {:?} is passed over", publish.topic);
            self.acknowledge(delivery.token);
            return;
        }
        let Some(input) = self.read(publish, delivery) else {
            self.acknowledge(delivery.token);
            return;
        };
        match self.links.inputs.try_send(input) {
            Ok(()) => {}
            Err(TrySendError::Full(input)) => {
                let (task, request) = match input {
                    Input::Message(message, authority, _) => (message.task, authority.envelope()),
                    Input::Refused { task, .. } => (task, None),
                };
                warn!(%task, "refused: too many messages are waiting");
                let outcome = Outcome {
                    task,
                    message: "Too many messages are waiting.".to_owned(),
                    errors: String::new(),
                    code: Code::Busy,
                    at: self.remote.daemon.now(),
                    request,
                };
                let number = self.store().answer(&outcome);
                self.result(number, &outcome);
                self.acknowledge(delivery.token);
            }
            // The monitor stops. Whoever comes after it gets the message again.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// What a payload asks for, or why it is refused. None if nobody can be told.
    fn read(&self, publish: &Publish, delivery: Delivery) -> Option<Input> {
        let trust = &self.links.trust;
        let now = self.remote.daemon.now();
        let opened = match trust.open(&publish.payload, now) {
            Ok(opened) => opened,
            Err(refusal) => {
                let trust::Refusal { code, why, task } = refusal;
                // The engine says so where it answers.
                let Some(task) = task else {
                    warn!(bytes = publish.payload.len(), "refused: {why}");
                    return None;
                };
                return Some(Input::Refused {
                    task,
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
            Ok(message) if publish.retain => {
                let why = "Commands must not be retained.";
                refused(Some(&message.task), Code::Retained, why);
                Some(Input::Refused {
                    task: message.task,
                    code: Code::Retained,
                    why: why.to_owned(),
                    delivery,
                })
            }
            Ok(message) => Some(Input::Message(message, opened.authority, delivery)),
            Err(unreadable) => {
                warn!(
                    bytes = publish.payload.len(),
                    "a message is not understood: {}", unreadable.reason
                );
                let why = format!("The message is not understood: {}.", unreadable.reason);
                refused(unreadable.task.as_ref(), unreadable.code, &why);
                Some(Input::Refused {
                    task: unreadable.task?,
                    code: unreadable.code,
                    why,
                    delivery,
                })
            }
        }
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
        }
        self.send();
    }

    /// A message is in good hands. If it came with an earlier connection, it comes again.
    fn acknowledge(&mut self, token: u64) {
        if let Some((packet, qos)) = self.unacknowledged.remove(&token) {
            self.unreleased.accepted(packet);
            if qos != QoS::AtMostOnce {
                self.acknowledgements.push_back((packet, qos));
            }
        }
    }

    fn result(&mut self, number: Number, outcome: &Outcome) {
        if self.remote.settings.result_topic.is_none() {
            debug!(task = %outcome.task, "no result is sent, because there is no CommandResultTopic");
            self.store().delivered(number);
            return;
        }
        let json = outcome.to_json(&self.remote.host);
        let now = self.remote.daemon.now();
        let json = self.links.trust.seal_result(json, outcome.request, now);
        let dropped = self.outbox.push(number, json.into_bytes());
        if !dropped.is_empty() {
            let mut store = self.store();
            for number in dropped {
                store.dropped(number);
            }
            let all = store.losses().results;
            drop(store);
            warn!("{all} results were dropped, because the broker was away for too long");
        }
    }

    /// rumqttc has sent a result.
    fn sent(&mut self, packet: u16) {
        if let Some(number) = self.outbox.sent(packet) {
            self.store().delivered(number);
        }
    }

    /// The broker has a result.
    fn acknowledged(&mut self, packet: u16) {
        if let Some(number) = self.outbox.acknowledged(packet) {
            self.store().delivered(number);
        }
    }

    /// Hands acknowledgements to rumqttc, and as many results as may be under way.
    fn send(&mut self) {
        while let Some((packet, qos)) = self.acknowledgements.front() {
            let mut publish = Publish::new("", *qos, Vec::new());
            publish.pkid = *packet;
            if let Err(error) = self.client.try_ack(&publish) {
                debug!("there is no room to acknowledge yet: {error}");
                return;
            }
            self.acknowledgements.pop_front();
        }
        let settings = &self.remote.settings;
        while self.connected.is_some() {
            let Some((payload, is_result)) = self.outbox.next() else {
                return;
            };
            let topic = match is_result {
                true => &settings.result_topic,
                false => &settings.status_topic,
            };
            // What has no topic is not put into the outbox.
            let topic = topic.as_deref().unwrap_or_default();
            let qos = connect::qos(settings.qos);
            // Whoever asks for the state of the monitor later must find it.
            let retain = !is_result;
            if let Err(error) = self.client.try_publish(topic, qos, retain, payload) {
                debug!("there is no room to publish yet: {error}");
                return;
            }
            self.outbox.handed();
        }
    }

    /// Gives what is known a chance to reach the broker, and says goodbye.
    async fn leave(&mut self, events: &mut EventLoop) {
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
            self.outbox.push_status(offline);
            self.send();
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.outbox.is_empty() || !self.acknowledgements.is_empty() {
            match timeout_at(deadline, events.poll()).await {
                Ok(Ok(Event::Outgoing(Outgoing::Publish(packet)))) => self.sent(packet),
                Ok(Ok(Event::Incoming(Packet::PubAck(ack)))) => self.acknowledged(ack.pkid),
                Ok(Ok(Event::Incoming(Packet::PubComp(ack)))) => self.acknowledged(ack.pkid),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    let why = connect::describe(&error);
                    warn!("stopping; results are kept for the next start: {why}");
                    return;
                }
                Err(_) => {
                    warn!("stopping; the broker takes no more results, which are kept for the next start");
                    break;
                }
            }
            self.send();
        }
        if let Err(error) = self.client.try_disconnect() {
            debug!("no room to say goodbye: {error}");
            return;
        }
        let goodbye = async {
            while !matches!(
                events.poll().await,
                Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)
            ) {}
        };
        if timeout(STOP_PATIENCE, goodbye).await.is_err() {
            debug!("the broker does not take a goodbye");
        }
        // The packet leaves with the next turn of the runtime.
        sleep(Duration::ZERO).await;
    }
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
        assert_eq!(remote.options.client_id(), "collectd-monitor-node1");
        assert!(!remote.options.clean_session());
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
}
