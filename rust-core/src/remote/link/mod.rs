//! One face for both versions of MQTT: rumqttc has a client for each, with types of its own.
//!
//! What is here only translates. What becomes of a message, a result or a lost connection is decided by
//! whoever uses it, and is the same for both versions.

mod v3;
mod v5;

use std::time::Duration;

use crate::protocol::Reply;
use crate::settings::{self, Protocol, Qos};

/// How many packet ids rumqttc may use.
const IN_FLIGHT: u16 = 1000;
/// Subscriptions and a window of results fit into rumqttc's queue.
const REQUESTS: usize = 64;

/// What a client is made with.
pub(super) enum Options {
    V3(Box<rumqttc::MqttOptions>),
    V5(Box<rumqttc::v5::MqttOptions>),
}

impl Options {
    /// Reads the certificates. The will is what the broker says of us on the status topic when we are lost.
    pub(super) fn new(
        settings: &settings::Remote,
        client_id: &str,
        will: Option<Vec<u8>>,
    ) -> Result<Self, String> {
        let will = settings.status_topic.as_deref().zip(will);
        match settings.protocol {
            Protocol::V3 => v3::options(settings, client_id, will).map(|o| Self::V3(Box::new(o))),
            Protocol::V5 => v5::options(settings, client_id, will).map(|o| Self::V5(Box::new(o))),
        }
    }

    /// A client that is not connected yet. Polling its events connects it.
    pub(super) fn open(&self) -> (Client, Events) {
        match self {
            Self::V3(options) => v3::open(options),
            Self::V5(options) => v5::open(options),
        }
    }
}

/// Takes requests. What it returns when there is no room says so.
pub(super) enum Client {
    V3(rumqttc::AsyncClient),
    V5(rumqttc::v5::AsyncClient),
}

/// What to publish.
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) payload: &'a [u8],
    /// Given back to whoever asked. MQTT 3.1.1 has no room for it.
    pub(super) correlation: Option<&'a [u8]>,
}

impl Client {
    pub(super) fn subscribe(&self, topic: &str, qos: Qos) -> Result<(), String> {
        match self {
            Self::V3(client) => v3::subscribe(client, topic, qos),
            Self::V5(client) => v5::subscribe(client, topic, qos),
        }
    }

    pub(super) fn publish(&self, message: &Outgoing<'_>) -> Result<(), String> {
        match self {
            Self::V3(client) => v3::publish(client, message),
            Self::V5(client) => v5::publish(client, message),
        }
    }

    /// Tells the broker that a message has arrived.
    pub(super) fn acknowledge(&self, packet: u16, qos: Qos) -> Result<(), String> {
        match self {
            Self::V3(client) => v3::acknowledge(client, packet, qos),
            Self::V5(client) => v5::acknowledge(client, packet, qos),
        }
    }

    /// Says goodbye.
    pub(super) fn disconnect(&self) -> Result<(), String> {
        match self {
            Self::V3(client) => client.try_disconnect().map_err(|e| e.to_string()),
            Self::V5(client) => client.try_disconnect().map_err(|e| e.to_string()),
        }
    }
}

/// Where events come from.
pub(super) enum Events {
    V3(Box<v3::Events>),
    V5(Box<v5::Events>),
}

impl Events {
    /// The next event. Connects if there is no connection. Must not be cancelled: that could lose a packet.
    pub(super) async fn poll(&mut self) -> Result<Event, Lost> {
        match self {
            Self::V3(events) => events.poll().await,
            Self::V5(events) => events.poll().await,
        }
    }

    /// The broker has kept the session: tells rumqttc which QoS 2 messages it has received and not seen
    /// released, which it forgets, and not to acknowledge what will come again.
    pub(super) fn resume(&mut self, unreleased: impl Iterator<Item = u16>) {
        match self {
            Self::V3(events) => events.resume(unreleased),
            Self::V5(events) => events.resume(unreleased),
        }
    }
}

/// What the other side allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// How many packet ids there are before the first one is used again.
    pub(super) packet_ids: u16,
    /// The longest packet that the broker takes, if it says so.
    pub(super) max_packet: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet_ids: IN_FLIGHT,
            max_packet: None,
        }
    }
}

/// A message that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    pub(super) packet: u16,
    pub(super) qos: Qos,
    /// The broker may have delivered it before.
    pub(super) dup: bool,
    /// The broker had kept it for whoever subscribes.
    pub(super) retain: bool,
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    /// Where the sender wants its result, and what it is to be told with it.
    pub(super) reply: Option<Reply>,
    /// How much longer the sender wants the message to be acted upon.
    pub(super) expires: Option<Duration>,
}

/// What happens on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Connected {
        /// The broker has kept our session.
        session_present: bool,
        limits: Limits,
    },
    Message(Incoming),
    /// The answer for each topic: what was granted, or why not.
    Subscribed(Vec<Result<Qos, String>>),
    /// A message of ours was sent, or sent again. Its packet id is 0 at QoS 0.
    Sent(u16),
    /// The broker has a message of ours.
    Acknowledged(u16),
    /// The broker does not take a message of ours. Why is in its words.
    Rejected(u16, String),
    /// The last was heard of a QoS 2 message that has arrived.
    Released(u16),
    /// Our goodbye was sent.
    Goodbye,
    /// Nothing that anybody waits for.
    Other,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The broker does not let us in.
    Refused,
    /// Somebody else has connected with our client id.
    TakenOver,
    /// The broker has closed the connection, and has not said why.
    Closed,
    /// Anything else: it cannot be reached, or breaks the rules.
    Other,
}

/// There is no connection, or none any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) cause: Cause,
    /// The broker's words where it gave some.
    pub(super) what: String,
    /// The broker has released a QoS 2 message that rumqttc knew nothing about.
    pub(super) released: Option<u16>,
}
