//! MQTT 3.1.1.

use rumqttc::mqttbytes::v4::{Publish, SubscribeReasonCode};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, EventLoop, LastWill, MqttOptions, Outgoing,
    Packet, QoS, Request, StateError,
};

use super::{Cause, Client, Event, Incoming, Limits, Lost, IN_FLIGHT, REQUESTS};
use crate::remote::connect;
use crate::settings::{self, Qos};

pub(super) fn options(
    settings: &settings::Remote,
    client_id: &str,
    will: Option<(&str, Vec<u8>)>,
) -> Result<MqttOptions, String> {
    let mut options = connect::options(settings, client_id)?;
    if let Some((topic, payload)) = will {
        let qos = connect::qos(settings.qos);
        options.set_last_will(LastWill::new(topic, payload, qos, true));
    }
    options.set_inflight(IN_FLIGHT);
    // A message is acknowledged when it is in the journal.
    options.set_manual_acks(true);
    Ok(options)
}

pub(super) fn open(options: &MqttOptions) -> (Client, super::Events) {
    let (client, mut events) = AsyncClient::new(options.clone(), REQUESTS);
    events.set_network_options(connect::network());
    (
        Client::V3(client),
        super::Events::V3(Box::new(Events(events))),
    )
}

pub(super) fn subscribe(client: &AsyncClient, topic: &str, qos: Qos) -> Result<(), String> {
    let subscribed = client.try_subscribe(topic, connect::qos(qos));
    subscribed.map_err(|error| error.to_string())
}

pub(super) fn publish(client: &AsyncClient, message: &super::Outgoing<'_>) -> Result<(), String> {
    let qos = connect::qos(message.qos);
    let published = client.try_publish(message.topic, qos, message.retain, message.payload);
    // Its text would hold the message.
    published.map_err(|_| "the queue is full".to_owned())
}

pub(super) fn acknowledge(client: &AsyncClient, packet: u16, qos: Qos) -> Result<(), String> {
    let mut publish = Publish::new("", connect::qos(qos), Vec::new());
    publish.pkid = packet;
    client
        .try_ack(&publish)
        .map_err(|_| "the queue is full".to_owned())
}

pub(in crate::remote) struct Events(EventLoop);

impl Events {
    pub(super) async fn poll(&mut self) -> Result<Event, Lost> {
        match self.0.poll().await {
            Ok(event) => Ok(translate(event)),
            Err(error) => {
                let released = self.unexpected_release(&error);
                Err(Lost {
                    cause: cause(&error),
                    what: connect::describe(&error),
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
        let last = self.0.state.events.back();
        let is_release = matches!(last,
            Some(rumqttc::Event::Incoming(Packet::PubRel(release))) if release.pkid == *packet);
        is_release.then_some(*packet)
    }

    pub(super) fn resume(&mut self, unreleased: impl Iterator<Item = u16>) {
        // The broker sends what was not acknowledged again, and is told then.
        self.0
            .pending
            .retain(|request| !matches!(request, Request::PubRec(_) | Request::PubAck(_)));
        let state = &mut self.0.state;
        let events = state.events.len();
        for packet in unreleased {
            let mut publish = Publish::new("", QoS::ExactlyOnce, Vec::new());
            publish.pkid = packet;
            // The answer to this message was sent when it really came.
            drop(state.handle_incoming_packet(Packet::Publish(publish)));
        }
        state.events.truncate(events);
    }
}

fn translate(event: rumqttc::Event) -> Event {
    match event {
        rumqttc::Event::Incoming(Packet::ConnAck(ack)) => Event::Connected {
            session_present: ack.session_present,
            limits: Limits::default(),
        },
        rumqttc::Event::Incoming(Packet::Publish(publish)) => Event::Message(Incoming {
            packet: publish.pkid,
            qos: qos(publish.qos),
            dup: publish.dup,
            retain: publish.retain,
            topic: publish.topic,
            payload: publish.payload.into(),
            reply: None,
            expires: None,
        }),
        rumqttc::Event::Incoming(Packet::SubAck(ack)) => {
            let codes = ack.return_codes.into_iter().map(|code| match code {
                SubscribeReasonCode::Success(granted) => Ok(qos(granted)),
                // The protocol has no reasons.
                SubscribeReasonCode::Failure => Err("not allowed".to_owned()),
            });
            Event::Subscribed(codes.collect())
        }
        rumqttc::Event::Incoming(Packet::PubAck(ack)) => Event::Acknowledged(ack.pkid),
        rumqttc::Event::Incoming(Packet::PubComp(ack)) => Event::Acknowledged(ack.pkid),
        rumqttc::Event::Outgoing(Outgoing::Publish(packet)) => Event::Sent(packet),
        rumqttc::Event::Outgoing(Outgoing::PubComp(packet)) => Event::Released(packet),
        rumqttc::Event::Outgoing(Outgoing::Disconnect) => Event::Goodbye,
        _ => Event::Other,
    }
}

fn qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

fn cause(error: &ConnectionError) -> Cause {
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::ServiceUnavailable) => Cause::Other,
        ConnectionError::ConnectionRefused(_) => Cause::Refused,
        ConnectionError::MqttState(StateError::ConnectionAborted) => Cause::Closed,
        ConnectionError::MqttState(StateError::Io(error)) | ConnectionError::Io(error) => {
            connect::cause(error)
        }
        _ => Cause::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::mqttbytes::v4::{PubAck, PubRel};

    fn events() -> Events {
        let mut options = MqttOptions::new("id", "h", 1);
        options.set_manual_acks(true);
        Events(AsyncClient::new(options, 10).1)
    }

    fn release(events: &mut Events, packet: u16) -> Result<(), Box<ConnectionError>> {
        let packet = Packet::PubRel(PubRel { pkid: packet });
        let handled = events.0.state.handle_incoming_packet(packet);
        handled.map(|_| ()).map_err(|error| Box::new(error.into()))
    }

    #[test]
    fn a_release_after_reconnection_is_accepted() {
        let mut events = events();
        let mut publish = Publish::new("t", QoS::ExactlyOnce, "x");
        publish.pkid = 5;
        let state = &mut events.0.state;
        state
            .handle_incoming_packet(Packet::Publish(publish))
            .unwrap();
        state.events.clear();
        events.0.clean();
        events.resume([5].into_iter());
        assert!(events.0.state.events.is_empty());
        release(&mut events, 5).unwrap();
        let last = events.0.state.events.pop_back().unwrap();
        assert_eq!(translate(last), Event::Released(5));
    }

    #[test]
    fn a_release_from_before_a_restart_is_accepted_at_the_second_attempt() {
        let mut events = events();
        let error = release(&mut events, 9).unwrap_err();
        let released = events.unexpected_release(&error);
        assert_eq!(released, Some(9));
        events.0.clean();
        events.resume(released.into_iter());
        release(&mut events, 9).unwrap();
    }

    #[test]
    fn other_errors_are_not_taken_for_a_release() {
        let mut events = events();
        let ack = Packet::PubAck(PubAck { pkid: 3 });
        let error = events.0.state.handle_incoming_packet(ack).unwrap_err();
        assert_eq!(events.unexpected_release(&error.into()), None);
    }

    #[test]
    fn what_was_not_acknowledged_comes_again_and_is_acknowledged_then() {
        let mut events = events();
        for request in [
            Request::PubAck(PubAck { pkid: 3 }),
            Request::Publish(Publish::new("t", QoS::AtLeastOnce, "x")),
        ] {
            events.0.pending.push_back(request);
        }
        events.resume(std::iter::empty());
        assert_eq!(events.0.pending.len(), 1);
    }
}
