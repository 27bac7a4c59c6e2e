//! Results on their way to the broker. Each is kept until the broker has it.

use std::collections::{HashMap, VecDeque};

use crate::store::Number;

/// How many results may be on their way at once.
const WINDOW: usize = 16;
/// How many results are kept.
const CAPACITY: usize = 1024;
/// How many bytes of results are kept.
const CAPACITY_BYTES: usize = 16 * 1024 * 1024;
/// rumqttc counts packet ids up to its in-flight limit and then from 1 again, and cannot cope when it comes
/// round to one that is still in use. So nothing is sent when the oldest unacknowledged result is this far behind.
const MAX_DISTANCE: u64 = super::IN_FLIGHT as u64 / 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be sent.
    Waiting,
    /// Handed to rumqttc as the n-th of all, which will give it a packet id.
    Handed(u64),
    /// Sent.
    Sent(u64),
}

#[derive(Debug)]
struct Item {
    /// What the journal calls it. What has no number is about the monitor, and only the last one matters.
    result: Option<Number>,
    number: u64,
    payload: Vec<u8>,
    state: State,
}

/// Results in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    items: VecDeque<Item>,
    bytes: usize,
    by_packet: HashMap<u16, u64>,
    next_number: u64,
    handed: u64,
}

impl Outbox {
    /// Adds a result. If there is no room, the oldest ones that were not sent yet are dropped, and returned.
    pub(super) fn push(&mut self, result: Number, payload: Vec<u8>) -> Vec<Number> {
        let mut dropped = Vec::new();
        while self.items.len() >= CAPACITY || self.bytes + payload.len() > CAPACITY_BYTES {
            // What rumqttc has cannot be taken back; there is little of it.
            let Some(at) = self
                .items
                .iter()
                .position(|item| item.state == State::Waiting && item.result.is_some())
            else {
                break;
            };
            if let Some(item) = self.items.remove(at) {
                self.bytes -= item.payload.len();
                dropped.extend(item.result);
            }
        }
        self.add(Some(result), payload);
        dropped
    }

    /// Adds what is to be said of the monitor, instead of what was to be said before.
    pub(super) fn push_status(&mut self, payload: Vec<u8>) {
        while let Some(at) = self
            .items
            .iter()
            .position(|item| item.state == State::Waiting && item.result.is_none())
        {
            if let Some(item) = self.items.remove(at) {
                self.bytes -= item.payload.len();
            }
        }
        self.add(None, payload);
    }

    fn add(&mut self, result: Option<Number>, payload: Vec<u8>) {
        self.bytes += payload.len();
        self.items.push_back(Item {
            result,
            number: self.next_number,
            payload,
            state: State::Waiting,
        });
        self.next_number += 1;
    }

    /// Whether every result has reached the broker.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What to send next, if anything may be sent now, and whether it is a result.
    pub(super) fn next(&self) -> Option<(&[u8], bool)> {
        let (mut under_way, mut oldest) = (0, None);
        for item in &self.items {
            if let State::Handed(n) | State::Sent(n) = item.state {
                under_way += 1;
                oldest = Some(oldest.map_or(n, |oldest: u64| oldest.min(n)));
            }
        }
        let too_far = oldest.is_some_and(|oldest| self.handed - oldest >= MAX_DISTANCE);
        if under_way >= WINDOW || too_far {
            return None;
        }
        let next = self.items.iter().find(|item| item.state == State::Waiting);
        next.map(|item| (item.payload.as_slice(), item.result.is_some()))
    }

    /// What [`Self::next`] returned was handed to rumqttc.
    pub(super) fn handed(&mut self) {
        if let Some(item) = self
            .items
            .iter_mut()
            .find(|item| item.state == State::Waiting)
        {
            item.state = State::Handed(self.handed);
            self.handed += 1;
        }
    }

    /// rumqttc has sent a result: the oldest that it was handed, or one again. Returns the result if this was
    /// all that will be heard of it.
    pub(super) fn sent(&mut self, packet: u16) -> Option<Number> {
        if packet != 0 && self.by_packet.contains_key(&packet) {
            return None;
        }
        let oldest = self
            .items
            .iter_mut()
            .filter_map(|item| match item.state {
                State::Handed(n) => Some((n, item)),
                _ => None,
            })
            .min_by_key(|(n, _)| *n);
        let (n, item) = oldest?;
        item.state = State::Sent(n);
        let number = item.number;
        if packet == 0 {
            // At QoS 0 nobody says more.
            return self.remove(number);
        }
        self.by_packet.insert(packet, number);
        None
    }

    /// The broker has a result. Returns which.
    pub(super) fn acknowledged(&mut self, packet: u16) -> Option<Number> {
        let number = self.by_packet.remove(&packet)?;
        self.remove(number)
    }

    /// The broker has forgotten the session, and rumqttc what it was handed: everything is sent again.
    pub(super) fn start_over(&mut self) {
        self.by_packet.clear();
        for item in &mut self.items {
            item.state = State::Waiting;
        }
    }

    fn remove(&mut self, number: u64) -> Option<Number> {
        let at = self.items.iter().position(|item| item.number == number)?;
        let item = self.items.remove(at)?;
        self.bytes -= item.payload.len();
        item.result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(count: usize) -> Outbox {
        let mut outbox = Outbox::default();
        for number in 0..count {
            let payload = number.to_string().into_bytes();
            assert_eq!(outbox.push(100 + number as u64, payload), [0; 0]);
        }
        outbox
    }

    fn hand_over(outbox: &mut Outbox) -> Vec<String> {
        let mut handed = Vec::new();
        while let Some((payload, _)) = outbox.next() {
            handed.push(String::from_utf8(payload.to_vec()).unwrap());
            outbox.handed();
        }
        handed
    }

    #[test]
    fn a_result_is_kept_until_it_is_acknowledged() {
        let mut outbox = outbox(2);
        assert_eq!(hand_over(&mut outbox), ["0", "1"]);
        assert_eq!(outbox.sent(1), None);
        assert_eq!(outbox.sent(2), None);
        assert_eq!(outbox.acknowledged(2), Some(101));
        assert!(!outbox.is_empty());
        assert_eq!(outbox.acknowledged(2), None);
        assert_eq!(outbox.acknowledged(9), None);
        assert!(!outbox.is_empty());
        assert_eq!(outbox.acknowledged(1), Some(100));
        assert!(outbox.is_empty());
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn of_what_is_said_of_the_monitor_only_the_last_is_sent() {
        let mut outbox = outbox(1);
        outbox.push_status(b"online".to_vec());
        outbox.push_status(b"offline".to_vec());
        assert_eq!(hand_over(&mut outbox), ["0", "offline"]);
        // One that is under way cannot be taken back.
        outbox.push_status(b"online".to_vec());
        assert_eq!(outbox.next(), Some((&b"online"[..], false)));
        for packet in 1..=3 {
            hand_over(&mut outbox);
            outbox.sent(packet);
        }
        assert_eq!(outbox.acknowledged(2), None);
        assert_eq!(outbox.acknowledged(1), Some(100));
        assert_eq!(outbox.acknowledged(3), None);
        assert_eq!((outbox.is_empty(), outbox.bytes), (true, 0));
    }

    #[test]
    fn at_qos_0_sent_is_all() {
        let mut outbox = outbox(2);
        hand_over(&mut outbox);
        assert_eq!(outbox.sent(0), Some(100));
        assert!(!outbox.is_empty());
        assert_eq!(outbox.sent(0), Some(101));
        assert!(outbox.is_empty());
    }

    #[test]
    fn only_so_many_are_under_way() {
        let mut outbox = outbox(WINDOW + 2);
        assert_eq!(hand_over(&mut outbox).len(), WINDOW);
        for packet in 1..=3 {
            outbox.sent(packet);
        }
        outbox.acknowledged(2);
        assert_eq!(hand_over(&mut outbox), [WINDOW.to_string()]);
    }

    #[test]
    fn sending_one_again_is_not_sending_the_next() {
        let mut outbox = outbox(2);
        hand_over(&mut outbox);
        outbox.sent(1);
        outbox.sent(1);
        outbox.sent(2);
        outbox.acknowledged(1);
        outbox.acknowledged(2);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_forgotten_session_sends_everything_again_in_order() {
        let mut outbox = outbox(3);
        hand_over(&mut outbox);
        outbox.sent(1);
        outbox.sent(2);
        outbox.acknowledged(2);
        outbox.start_over();
        assert_eq!(hand_over(&mut outbox), ["0", "2"]);
        outbox.sent(7);
        outbox.acknowledged(7);
        outbox.sent(8);
        outbox.acknowledged(8);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_straggler_stops_the_rest_before_packet_ids_come_round() {
        let mut outbox = outbox(1);
        hand_over(&mut outbox);
        outbox.sent(1);
        let mut packet = 1;
        loop {
            outbox.push(0, vec![0]);
            if hand_over(&mut outbox).is_empty() {
                break;
            }
            packet += 1;
            outbox.sent(packet);
            outbox.acknowledged(packet);
        }
        assert!(u64::from(packet) <= MAX_DISTANCE + 1, "{packet}");
    }

    #[test]
    fn what_does_not_fit_is_dropped_from_the_front_and_counted() {
        let mut outbox = outbox(CAPACITY);
        outbox.handed();
        assert_eq!(outbox.push(1, b"new".to_vec()), [101]);
        assert_eq!(outbox.push(2, b"newer".to_vec()), [102]);
        // The first one is under way and stays.
        outbox.start_over();
        assert_eq!(outbox.next(), Some((&b"0"[..], true)));
        assert_eq!(outbox.items[1].payload, b"3");

        let mut outbox = Outbox::default();
        outbox.push(7, vec![0; CAPACITY_BYTES]);
        assert_eq!(outbox.push(8, vec![0; 10]), [7]);
        assert_eq!((outbox.items.len(), outbox.bytes), (1, 10));
    }
}
