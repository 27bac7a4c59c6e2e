//! The part of an MQTT session that rumqttc does not keep.
//!
//! rumqttc 0.25 forgets at each reconnection which QoS 2 messages it has received but not seen released. The
//! broker remembers, releases them, and rumqttc takes that for a violation and closes the connection: with a
//! kept session, for ever. So they are remembered here, and put back after each reconnection.

use std::collections::BTreeMap;

/// The packet ids of QoS 2 messages that were received and not yet released, and whether they are in good
/// hands.
#[derive(Debug, Default)]
pub(super) struct Unreleased(BTreeMap<u16, bool>);

impl Unreleased {
    /// Takes note of a QoS 2 message. Says whether it came before, is only repeated, and needs nothing but to
    /// be acknowledged once more.
    pub(super) fn received(&mut self, packet: u16, dup: bool) -> bool {
        if dup && self.0.get(&packet) == Some(&true) {
            return true;
        }
        self.0.insert(packet, false);
        false
    }

    /// A message is in good hands.
    pub(super) fn accepted(&mut self, packet: u16) {
        if let Some(accepted) = self.0.get_mut(&packet) {
            *accepted = true;
        }
    }

    /// A message was released, and the broker was told that this is known.
    pub(super) fn released(&mut self, packet: u16) {
        self.0.remove(&packet);
    }

    /// The broker releases a message that came before this monitor was started.
    pub(super) fn expect(&mut self, packet: u16) {
        self.0.insert(packet, true);
    }

    /// What rumqttc is to be told after a reconnection.
    pub(super) fn packets(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.keys().copied()
    }

    /// The broker has forgotten the session.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_repeated_is_recognised() {
        let mut unreleased = Unreleased::default();
        assert!(!unreleased.received(1, false));
        // Nobody has it yet, so whoever was to take it must be asked again.
        assert!(!unreleased.received(1, true));
        unreleased.accepted(1);
        assert!(unreleased.received(1, true));
        assert_eq!(unreleased.packets().collect::<Vec<_>>(), [1]);
        unreleased.released(1);
        assert!(!unreleased.received(1, false));
        // An id that comes again for a new message is not a repetition.
        assert!(!unreleased.received(1, false));
        unreleased.clear();
        assert_eq!(unreleased.packets().count(), 0);
    }

    #[test]
    fn a_message_from_before_a_restart_is_only_waited_for() {
        let mut unreleased = Unreleased::default();
        unreleased.expect(9);
        assert!(unreleased.received(9, true));
    }
}
