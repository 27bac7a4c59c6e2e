//! MQTT 5.
//!
//! rumqttc 0.25.1 loses count of what is in flight when the broker refuses a QoS 2 message, and ends in not
//! sending anything any more. Only a new connection sets that right, so there is one before it comes to that.

use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, ConnectReturnCode, DisconnectReasonCode, LastWill, Packet,
    PubAckReason, PubCompReason, PubRecReason, PubRelReason, Publish, PublishProperties,
    SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::{AsyncClient, ConnectionError, EventLoop, MqttOptions, Request, StateError};
use rumqttc::{Outgoing, TlsConfiguration, Transport};

use super::{Cause, Client, Event, Incoming, Limits, Lost, IN_FLIGHT, REQUESTS};
use crate::protocol::Reply;
use crate::remote::connect;
use crate::settings::{self, Qos};

pub(super) fn options(
    settings: &settings::Remote,
    client_id: &str,
    will: Option<(&str, Vec<u8>)>,
) -> Result<MqttOptions, String> {
    let mut options = MqttOptions::new(client_id, connect::host(settings), settings.port);
    options.set_keep_alive(settings.keep_alive);
    options.set_clean_start(settings.clean_session);
    let mut properties = ConnectProperties::new();
    properties.max_packet_size = u32::try_from(connect::MAX_INCOMING).ok();
    if !settings.clean_session {
        let seconds = u32::try_from(settings.session_expiry.as_secs());
        // The largest number stands for ever.
        properties.session_expiry_interval = Some(seconds.unwrap_or(u32::MAX));
    }
    options.set_connect_properties(properties);
    if let Some((user, password)) = connect::credentials(settings) {
        options.set_credentials(user, password);
    }
    if let Some(tls) = &settings.tls {
        let connector = TlsConfiguration::NativeConnector(connect::connector(tls)?);
        options.set_transport(Transport::tls_with_config(connector));
    }
    if let Some((topic, payload)) = will {
        let qos = to_qos(settings.qos);
        options.set_last_will(LastWill::new(topic, payload, qos, true, None));
    }
    options.set_network_options(connect::network());
    options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
    // A message is acknowledged when it is in the journal.
    options.set_manual_acks(true);
    Ok(options)
}

pub(super) fn open(options: &MqttOptions) -> (Client, super::Events) {
    let (client, events) = AsyncClient::new(options.clone(), REQUESTS);
    let events = Events {
        events,
        limits: Limits::default(),
        miscounted: 0,
    };
    (Client::V5(client), super::Events::V5(Box::new(events)))
}

pub(super) fn subscribe(client: &AsyncClient, topic: &str, qos: Qos) -> Result<(), String> {
    let subscribed = client.try_subscribe(topic, to_qos(qos));
    subscribed.map_err(|error| error.to_string())
}

pub(super) fn publish(client: &AsyncClient, message: &super::Outgoing<'_>) -> Result<(), String> {
    let properties = PublishProperties {
        // It is text, which whoever looks at it may want to know.
        payload_format_indicator: Some(1),
        correlation_data: message.correlation.map(|data| data.to_vec().into()),
        ..PublishProperties::default()
    };
    let payload = message.payload.to_vec();
    let qos = to_qos(message.qos);
    client
        .try_publish_with_properties(message.topic, qos, message.retain, payload, properties)
        // Its text would hold the message.
        .map_err(|_| "the queue is full".to_owned())
}

pub(super) fn acknowledge(client: &AsyncClient, packet: u16, qos: Qos) -> Result<(), String> {
    let mut publish = Publish::new("", to_qos(qos), Vec::new(), None);
    publish.pkid = packet;
    client
        .try_ack(&publish)
        .map_err(|_| "the queue is full".to_owned())
}

pub(in crate::remote) struct Events {
    events: EventLoop,
    limits: Limits,
    /// How many messages rumqttc wrongly takes to be in flight.
    miscounted: u16,
}

impl Events {
    pub(super) async fn poll(&mut self) -> Result<Event, Lost> {
        if self.miscounted > self.limits.packet_ids / 4 {
            // The session is kept, and the count starts over.
            self.events.clean();
            self.miscounted = 0;
            return Err(Lost {
                cause: Cause::Other,
                what: "it is made anew, after the broker has refused too many results".to_owned(),
                released: None,
            });
        }
        match self.events.poll().await {
            Ok(event) => Ok(self.translate(event)),
            Err(error) => {
                self.miscounted = 0;
                let released = self.unexpected_release(&error);
                Err(Lost {
                    cause: cause(&error),
                    what: describe(&error),
                    released,
                })
            }
        }
    }

    /// A release that rumqttc did not expect is one that it will be told to.
    fn unexpected_release(&self, error: &ConnectionError) -> Option<u16> {
        let ConnectionError::MqttState(StateError::Unsolicited(packet)) = error else {
            return None;
        };
        let last = self.events.state.events.back();
        let is_release = matches!(last,
            Some(rumqttc::v5::Event::Incoming(Packet::PubRel(release))) if release.pkid == *packet);
        is_release.then_some(*packet)
    }

    pub(super) fn resume(&mut self, unreleased: impl Iterator<Item = u16>) {
        // The broker sends what was not acknowledged again, and is told then.
        self.events
            .pending
            .retain(|request| !matches!(request, Request::PubRec(_) | Request::PubAck(_)));
        let state = &mut self.events.state;
        let events = state.events.len();
        for packet in unreleased {
            let mut publish = Publish::new("", QoS::ExactlyOnce, Vec::new(), None);
            publish.pkid = packet;
            // The answer to this message was sent when it really came.
            drop(state.handle_incoming_packet(Packet::Publish(publish)));
        }
        state.events.truncate(events);
    }

    fn translate(&mut self, event: rumqttc::v5::Event) -> Event {
        let packet = match event {
            rumqttc::v5::Event::Incoming(packet) => packet,
            rumqttc::v5::Event::Outgoing(outgoing) => {
                return match outgoing {
                    Outgoing::Publish(packet) => Event::Sent(packet),
                    Outgoing::PubComp(packet) => Event::Released(packet),
                    Outgoing::Disconnect => Event::Goodbye,
                    _ => Event::Other,
                }
            }
        };
        match packet {
            Packet::ConnAck(ack) => self.connected(&ack),
            Packet::Publish(publish) => Event::Message(incoming(publish)),
            Packet::SubAck(ack) => {
                let words = ack.properties.and_then(|p| p.reason_string);
                let codes = ack.return_codes.into_iter().map(|code| match code {
                    SubscribeReasonCode::Success(granted) => Ok(from_qos(granted)),
                    code => Err(reason(&code, words.as_deref())),
                });
                Event::Subscribed(codes.collect())
            }
            Packet::PubAck(ack) => match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                    Event::Acknowledged(ack.pkid)
                }
                code => {
                    let words = ack.properties.and_then(|p| p.reason_string);
                    Event::Rejected(ack.pkid, reason(&code, words.as_deref()))
                }
            },
            Packet::PubRec(ack) => match ack.reason {
                PubRecReason::Success | PubRecReason::NoMatchingSubscribers => Event::Other,
                code => {
                    self.miscounted += 1;
                    let words = ack.properties.and_then(|p| p.reason_string);
                    Event::Rejected(ack.pkid, reason(&code, words.as_deref()))
                }
            },
            Packet::PubComp(ack) => {
                if ack.reason != PubCompReason::Success {
                    // It was released earlier.
                    self.miscounted += 1;
                }
                Event::Acknowledged(ack.pkid)
            }
            // rumqttc does not answer this one.
            Packet::PubRel(release) if release.reason != PubRelReason::Success => {
                Event::Released(release.pkid)
            }
            _ => Event::Other,
        }
    }

    fn connected(&mut self, ack: &ConnAck) -> Event {
        let properties = ack.properties.as_ref();
        self.limits = limits(
            properties.and_then(|properties| properties.receive_max),
            properties.and_then(|properties| properties.max_packet_size),
        );
        Event::Connected {
            session_present: ack.session_present,
            limits: self.limits,
        }
    }
}

/// What the broker allows. rumqttc goes round the packet ids as soon as so many could be in flight.
fn limits(receive_max: Option<u16>, max_packet: Option<u32>) -> Limits {
    Limits {
        packet_ids: receive_max.map_or(IN_FLIGHT, |most| most.clamp(1, IN_FLIGHT)),
        max_packet: max_packet.and_then(|most| usize::try_from(most).ok()),
    }
}

fn incoming(publish: Publish) -> Incoming {
    let properties = publish.properties.unwrap_or_default();
    let reply = Reply {
        topic: properties.response_topic,
        correlation: properties.correlation_data.map(|data| data.to_vec()),
    };
    let expires = properties.message_expiry_interval;
    Incoming {
        packet: publish.pkid,
        qos: from_qos(publish.qos),
        dup: publish.dup,
        retain: publish.retain,
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload.into(),
        reply: (reply != Reply::default()).then_some(reply),
        expires: expires.map(|seconds| Duration::from_secs(seconds.into())),
    }
}

fn from_qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

fn to_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

/// A reason code in words, with the broker's own behind it.
fn reason(code: &impl std::fmt::Debug, words: Option<&str>) -> String {
    let code = connect::spaced(&format!("{code:?}"));
    match words {
        // They come from outside, and go into a log.
        Some(words) => format!("{code} ({})", words.escape_debug()),
        None => code,
    }
}

fn cause(error: &ConnectionError) -> Cause {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::ServerBusy
            | ConnectReturnCode::ServerUnavailable
            | ConnectReturnCode::ServiceUnavailable,
        ) => Cause::Other,
        ConnectionError::ConnectionRefused(_) => Cause::Refused,
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        }) => Cause::TakenOver,
        ConnectionError::MqttState(StateError::ConnectionAborted) => Cause::Closed,
        ConnectionError::MqttState(StateError::Io(error)) | ConnectionError::Io(error) => {
            connect::cause(error)
        }
        _ => Cause::Other,
    }
}

/// An error in the broker's words where it gave some.
fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::BadUserNamePassword) => {
            "bad user name or password".to_owned()
        }
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::UnsupportedProtocolVersion
            | ConnectReturnCode::RefusedProtocolVersion,
        ) => "the broker does not know MQTT 5; Protocol \"3.1.1\" may do".to_owned(),
        ConnectionError::ConnectionRefused(code) => reason(code, None),
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code,
            reason_string,
        }) => reason(reason_code, reason_string.as_deref()),
        // Its text would hold the packet.
        ConnectionError::NotConnAck(_) => "it does not talk MQTT".to_owned(),
        ConnectionError::Timeout(_) => "no answer in time".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::v5::{PubAck, PubRec, PubRecProperties, PubRel};

    fn events() -> Events {
        let mut options = MqttOptions::new("id", "h", 1);
        options.set_manual_acks(true);
        options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
        Events {
            events: AsyncClient::new(options, 10).1,
            limits: Limits::default(),
            miscounted: 0,
        }
    }

    fn release(events: &mut Events, packet: u16) -> Result<(), Box<ConnectionError>> {
        let packet = Packet::PubRel(PubRel::new(packet, None));
        let handled = events.events.state.handle_incoming_packet(packet);
        handled.map(|_| ()).map_err(|error| Box::new(error.into()))
    }

    #[test]
    fn a_release_after_reconnection_is_accepted() {
        let mut events = events();
        let mut publish = Publish::new("t", QoS::ExactlyOnce, "x", None);
        publish.pkid = 5;
        let state = &mut events.events.state;
        state
            .handle_incoming_packet(Packet::Publish(publish))
            .unwrap();
        state.events.clear();
        events.events.clean();
        events.resume([5].into_iter());
        assert!(events.events.state.events.is_empty());
        release(&mut events, 5).unwrap();
        let last = events.events.state.events.pop_back().unwrap();
        assert_eq!(events.translate(last), Event::Released(5));
    }

    #[test]
    fn a_release_from_before_a_restart_is_accepted_at_the_second_attempt() {
        let mut events = events();
        let error = release(&mut events, 9).unwrap_err();
        let released = events.unexpected_release(&error);
        assert_eq!(released, Some(9));
        events.events.clean();
        events.resume(released.into_iter());
        release(&mut events, 9).unwrap();
    }

    #[test]
    fn other_errors_are_not_taken_for_a_release() {
        let mut events = events();
        let ack = Packet::PubAck(PubAck::new(3, None));
        let error = events.events.state.handle_incoming_packet(ack).unwrap_err();
        assert_eq!(events.unexpected_release(&error.into()), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_rumqttc_miscounts_is_set_right_before_it_stops_sending() {
        let mut events = events();
        let ack = |packet| {
            let mut ack = PubRec::new(packet, None);
            ack.reason = PubRecReason::NotAuthorized;
            ack.properties = Some(PubRecProperties {
                reason_string: Some("no\n".to_owned()),
                user_properties: Vec::new(),
            });
            rumqttc::v5::Event::Incoming(Packet::PubRec(ack))
        };
        for packet in 0..=IN_FLIGHT / 4 {
            let rejected = events.translate(ack(packet));
            let why = "not authorized (no\\n)".to_owned();
            assert_eq!(rejected, Event::Rejected(packet, why));
        }
        let lost = events.poll().await.unwrap_err();
        assert!(lost.what.contains("anew"), "{lost:?}");
        assert_eq!(events.miscounted, 0);
    }

    #[test]
    fn what_the_broker_allows_is_taken_over() {
        assert_eq!(limits(None, None), Limits::default());
        let all = [(20, 20), (0, 1), (u16::MAX, IN_FLIGHT)];
        for (receive_max, packet_ids) in all {
            let expected = Limits {
                packet_ids,
                max_packet: Some(5000),
            };
            assert_eq!(limits(Some(receive_max), Some(5000)), expected);
        }
    }

    #[test]
    fn somebody_who_takes_over_is_told_from_a_broker_that_stops() {
        let disconnected = |reason_code| {
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code,
                reason_string: None,
            })
        };
        let taken = disconnected(DisconnectReasonCode::SessionTakenOver);
        assert_eq!(cause(&taken), Cause::TakenOver);
        assert_eq!(describe(&taken), "session taken over");
        let stopping = disconnected(DisconnectReasonCode::ServerShuttingDown);
        assert_eq!(cause(&stopping), Cause::Other);
        assert_eq!(describe(&stopping), "server shutting down");
    }
}
