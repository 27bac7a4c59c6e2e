//! Commands from an MQTT broker, and results to it.

mod backoff;
pub(crate) mod connect;
mod outbox;
mod session;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use rumqttc::mqttbytes::v4::{ConnAck, Publish, SubscribeReasonCode};
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, Outgoing, Packet};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout, timeout_at, Instant};
use tracing::{debug, error, info, warn};

use crate::daemon::Daemon;
use crate::protocol::{Code, Message, Outcome};
use crate::settings;
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
    /// The daemon, for its name and the time.
    pub(crate) daemon: Arc<dyn Daemon>,
    /// Where messages go.
    pub(crate) messages: Sender<Message>,
    /// Where results come from.
    pub(crate) outcomes: mpsc::Receiver<Outcome>,
    /// Becomes true when the monitor stops.
    pub(crate) stop: watch::Receiver<bool>,
}

/// A connection to a broker that is ready to be made.
pub(crate) struct Remote {
    settings: settings::Remote,
    options: rumqttc::MqttOptions,
    host: String,
}

impl Remote {
    /// Fills in the host's name and reads the certificates.
    pub(crate) fn prepare(mut settings: settings::Remote, host: &str) -> Result<Self, String> {
        let uses_host = [
            Some(&settings.command_topic),
            settings.result_topic.as_ref(),
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
        let mut options = connect::options(&settings, &client_id)?;
        options.set_inflight(IN_FLIGHT);
        Ok(Self {
            settings,
            options,
            host: host.to_owned(),
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
                    Some(outcome) = self.links.outcomes.recv() => self.take(&outcome),
                    () = sleep_until(resubscribe), if self.resubscribe.is_some() => self.subscribe(),
                    _ = self.links.stop.changed() => return Ok(()),
                }
            }
        };
        match event {
            Event::Incoming(Packet::ConnAck(ack)) => self.arrived(&ack, events),
            Event::Incoming(Packet::Publish(publish)) => self.receive(&publish),
            Event::Incoming(Packet::SubAck(ack)) => self.subscribed(&ack.return_codes),
            Event::Incoming(Packet::PubAck(ack)) => self.outbox.acknowledged(ack.pkid),
            Event::Incoming(Packet::PubComp(ack)) => self.outbox.acknowledged(ack.pkid),
            Event::Outgoing(Outgoing::Publish(packet)) => self.outbox.sent(packet),
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
                Some(outcome) = self.links.outcomes.recv() => self.take(&outcome),
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
            self.unreleased.resume(&mut events.state);
        } else {
            self.unreleased.clear();
            self.outbox.start_over();
        }
        self.subscribe();
    }

    fn lost(&mut self, error: &ConnectionError, events: &EventLoop) {
        self.unreleased.failed(error, &events.state);
        self.resubscribe = None;
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
        if self.unreleased.received(publish) {
            debug!("a message was delivered again and is passed over");
            return;
        }
        // A kept session may still have a subscription that was configured earlier.
        if !rumqttc::matches(&publish.topic, &self.remote.settings.command_topic) {
            warn!("a message on the topic {:?} is passed over", publish.topic);
            return;
        }
        let message = match Message::parse(&publish.payload) {
            Ok(message) => message,
            Err(unreadable) => {
                warn!(
                    bytes = publish.payload.len(),
                    "a message is not understood: {}", unreadable.reason
                );
                if let Some(task) = unreadable.task {
                    let message = format!("The message is not understood: {}.", unreadable.reason);
                    self.take(&Outcome {
                        task,
                        message,
                        errors: String::new(),
                        code: Code::Unreadable,
                    });
                }
                return;
            }
        };
        if publish.retain {
            // It comes with every subscription, and nobody knows when it was sent.
            warn!(task = %message.task, "refused: the broker had kept the message");
            let text = "Commands must not be retained.".to_owned();
            self.take(&Outcome {
                task: message.task,
                message: text,
                errors: String::new(),
                code: Code::Retained,
            });
            return;
        }
        match self.links.messages.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(message)) => {
                warn!(task = %message.task, "refused: too many messages are waiting");
                let text = "Too many messages are waiting.".to_owned();
                self.take(&Outcome {
                    task: message.task,
                    message: text,
                    errors: String::new(),
                    code: Code::Busy,
                });
            }
            Err(TrySendError::Disconnected(message)) => {
                let text = "The monitor is stopping.".to_owned();
                self.take(&Outcome {
                    task: message.task,
                    message: text,
                    errors: String::new(),
                    code: Code::Interrupted,
                });
            }
        }
    }

    /// Takes a result.
    fn take(&mut self, outcome: &Outcome) {
        if self.remote.settings.result_topic.is_none() {
            debug!(task = %outcome.task, "no result is sent, because there is no CommandResultTopic");
            return;
        }
        let json = outcome.to_json(&self.remote.host, self.links.daemon.now());
        if let Some(dropped) = self.outbox.push(json.into_bytes()) {
            warn!(
                dropped,
                "results were dropped, because the broker was away for too long"
            );
        }
        self.send();
    }

    /// Hands results to rumqttc, as many as may be under way.
    fn send(&mut self) {
        let Some(topic) = &self.remote.settings.result_topic else {
            return;
        };
        while self.connected.is_some() {
            let Some(payload) = self.outbox.next() else {
                return;
            };
            let qos = connect::qos(self.remote.settings.qos);
            if let Err(error) = self.client.try_publish(topic, qos, false, payload) {
                debug!("there is no room to publish yet: {error}");
                return;
            }
            self.outbox.handed();
        }
    }

    /// Gives what is known a chance to reach the broker, and says goodbye.
    async fn leave(&mut self, events: &mut EventLoop) {
        while let Ok(outcome) = self.links.outcomes.try_recv() {
            self.take(&outcome);
        }
        if self.connected.is_none() {
            if !self.outbox.is_empty() {
                warn!("stopping without a broker; results are lost");
            }
            return;
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.outbox.is_empty() {
            match timeout_at(deadline, events.poll()).await {
                Ok(Ok(Event::Outgoing(Outgoing::Publish(packet)))) => self.outbox.sent(packet),
                Ok(Ok(Event::Incoming(Packet::PubAck(ack)))) => self.outbox.acknowledged(ack.pkid),
                Ok(Ok(Event::Incoming(Packet::PubComp(ack)))) => self.outbox.acknowledged(ack.pkid),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    warn!("stopping; results are lost: {}", connect::describe(&error));
                    return;
                }
                Err(_) => {
                    warn!("stopping; the broker does not take results any more, and they are lost");
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
    use crate::settings::{Block, Settings, Value};

    fn settings(topic: &str) -> settings::Remote {
        let block = Block::option("Plugin", [Value::from("monitor")])
            .with("Host", "h")
            .with("CommandTopic", topic)
            .with("CommandResultTopic", "results/%h");
        Settings::read(&block).unwrap().remote.unwrap()
    }

    #[test]
    fn the_host_name_is_filled_in() {
        let remote = Remote::prepare(settings("commands/%h/x"), "node1").unwrap();
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
                Remote::prepare(settings("commands/%h"), host).is_err(),
                "{host}"
            );
        }
    }
}
