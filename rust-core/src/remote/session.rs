//! The part of an MQTT session that rumqttc does not keep.
//!
//! rumqttc 0.25 forgets at each reconnection which QoS 2 messages it has received but not seen released. The
//! broker remembers, releases them, and rumqttc takes that for a violation and closes the connection: with a
//! kept session, for ever. So they are remembered here, and put back after each reconnection.

use std::collections::BTreeMap;

use rumqttc::mqttbytes::v4::{PubRel, Publish};
use rumqttc::{ConnectionError, Event, MqttState, Outgoing, Packet, QoS, StateError};

/// The packet ids of QoS 2 messages that were received and not yet released, and whether they are in good
/// hands.
#[derive(Debug, Default)]
pub(super) struct Unreleased(BTreeMap<u16, bool>);

impl Unreleased {
    /// Takes note of a message. Says whether it came before, is only repeated, and needs nothing but to be
    /// acknowledged once more.
    pub(super) fn received(&mut self, publish: &Publish) -> bool {
        if publish.qos != QoS::ExactlyOnce {
            return false;
        }
        if publish.dup && self.0.get(&publish.pkid) == Some(&true) {
            return true;
        }
        self.0.insert(publish.pkid, false);
        false
    }

    /// A message is in good hands.
    pub(super) fn accepted(&mut self, packet: u16) {
        if let Some(accepted) = self.0.get_mut(&packet) {
            *accepted = true;
        }
    }

    /// Takes note of what was sent.
    pub(super) fn sent(&mut self, outgoing: &Outgoing) {
        if let Outgoing::PubComp(packet) = outgoing {
            self.0.remove(packet);
        }
    }

    /// Takes note of an error: a release that rumqttc did not expect is one that it will be told to.
    pub(super) fn failed(&mut self, error: &ConnectionError, state: &MqttState) {
        let ConnectionError::MqttState(StateError::Unsolicited(packet)) = error else {
            return;
        };
        let release = Event::Incoming(Packet::PubRel(PubRel { pkid: *packet }));
        if state.events.back() == Some(&release) {
            self.0.insert(*packet, true);
        }
    }

    /// After a reconnection, tells rumqttc what it has forgotten.
    pub(super) fn resume(&self, state: &mut MqttState) {
        let events = state.events.len();
        for packet in self.0.keys() {
            let mut publish = Publish::new("", QoS::ExactlyOnce, Vec::new());
            publish.pkid = *packet;
            // The answer to this message was sent when it really came.
            drop(state.handle_incoming_packet(Packet::Publish(publish)));
        }
        state.events.truncate(events);
    }

    /// The broker has forgotten the session.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(packet: u16, dup: bool) -> Publish {
        let mut publish = Publish::new("t", QoS::ExactlyOnce, "x");
        publish.pkid = packet;
        publish.dup = dup;
        publish
    }

    fn release(state: &mut MqttState, packet: u16) -> Result<(), StateError> {
        state
            .handle_incoming_packet(Packet::PubRel(PubRel { pkid: packet }))
            .map(|_| ())
    }

    #[test]
    fn a_message_that_is_repeated_is_recognised() {
        let mut unreleased = Unreleased::default();
        assert!(!unreleased.received(&publish(1, false)));
        // Nobody has it yet, so whoever was to take it must be asked again.
        assert!(!unreleased.received(&publish(1, true)));
        unreleased.accepted(1);
        assert!(unreleased.received(&publish(1, true)));
        unreleased.sent(&Outgoing::PubComp(1));
        assert!(!unreleased.received(&publish(1, false)));
        // An id that comes again for a new message is not a repetition.
        assert!(!unreleased.received(&publish(1, false)));
    }

    #[test]
    fn a_release_after_reconnection_is_accepted() {
        let mut state = MqttState::new(10, true);
        let mut unreleased = Unreleased::default();
        unreleased.received(&publish(5, false));
        state
            .handle_incoming_packet(Packet::Publish(publish(5, false)))
            .unwrap();
        state.events.clear();
        state.clean();
        let error = release(&mut state.clone(), 5).unwrap_err();
        assert!(matches!(error, StateError::Unsolicited(5)));
        unreleased.resume(&mut state);
        assert!(state.events.is_empty());
        release(&mut state, 5).unwrap();
        assert!(state
            .events
            .contains(&Event::Outgoing(Outgoing::PubComp(5))));
    }

    #[test]
    fn a_release_from_before_a_restart_is_accepted_at_the_second_attempt() {
        let mut state = MqttState::new(10, true);
        let mut unreleased = Unreleased::default();
        let error = release(&mut state, 9).unwrap_err().into();
        unreleased.failed(&error, &state);
        state.clean();
        unreleased.resume(&mut state);
        release(&mut state, 9).unwrap();
    }

    #[test]
    fn other_errors_are_not_taken_for_a_release() {
        let mut state = MqttState::new(10, true);
        let mut unreleased = Unreleased::default();
        let ack = Packet::PubAck(rumqttc::mqttbytes::v4::PubAck { pkid: 3 });
        let error = ConnectionError::from(state.handle_incoming_packet(ack).unwrap_err());
        unreleased.failed(&error, &state);
        assert!(unreleased.0.is_empty());
    }
}
