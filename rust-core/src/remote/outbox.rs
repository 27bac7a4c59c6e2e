//! Results on their way to the broker. Each is kept until the broker has it.

use std::collections::{HashMap, VecDeque};

use crate::store::Number;

/// How many results may be on their way at once.
const WINDOW: usize = 16;
/// How many results are kept.
const CAPACITY: usize = 1024;
/// How many bytes of results are kept.
const CAPACITY_BYTES: usize = 16 * 1024 * 1024;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be sent.
    Waiting,
    /// Handed to rumqttc as the n-th of all, which will give it a packet id.
    Handed(u64),
    /// Sent.
    Sent(u64),
}

/// What is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parcel {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    /// Given back to whoever asked.
    pub(super) correlation: Option<Vec<u8>>,
}

impl Parcel {
    fn size(&self) -> usize {
        self.payload.len() + self.topic.len() + self.correlation.as_ref().map_or(0, Vec::len)
    }
}

/// What becomes of something that the broker did not take.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// It is sent again, on this topic.
    Again(String),
    /// It was to go to this topic, and goes where all others do.
    Elsewhere(String),
    /// It was to go to this topic, and there is no other.
    Dropped(Number, String),
}

#[derive(Debug)]
struct Item {
    /// What the journal calls it. What has no number is about the monitor, and only the last one matters.
    result: Option<Number>,
    number: u64,
    parcel: Parcel,
    state: State,
}

/// Results in the order in which they came.
#[derive(Debug)]
pub(super) struct Outbox {
    items: VecDeque<Item>,
    bytes: usize,
    by_packet: HashMap<u16, u64>,
    next_number: u64,
    handed: u64,
    /// rumqttc counts packet ids up to a limit and then from 1 again, and cannot cope when it comes round to one
    /// that is still in use. So nothing is sent when the oldest unacknowledged result is this far behind.
    max_distance: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        let mut outbox = Self {
            items: VecDeque::new(),
            bytes: 0,
            by_packet: HashMap::new(),
            next_number: 0,
            handed: 0,
            max_distance: 1,
        };
        outbox.limit(super::Limits::default().packet_ids);
        outbox
    }
}

impl Outbox {
    /// So many packet ids are used in turn. Half of them are left to subscriptions and what is sent again.
    pub(super) fn limit(&mut self, packet_ids: u16) {
        self.max_distance = u64::from(packet_ids / 2).max(1);
    }

    /// Adds a result. If there is no room, the oldest ones that were not sent yet are dropped, and returned.
    pub(super) fn push(&mut self, result: Number, parcel: Parcel) -> Vec<Number> {
        let mut dropped = Vec::new();
        while self.items.len() >= CAPACITY || self.bytes + parcel.size() > CAPACITY_BYTES {
            // What rumqttc has cannot be taken back; there is little of it.
            let Some(at) = self
                .items
                .iter()
                .position(|item| item.state == State::Waiting && item.result.is_some())
            else {
                break;
            };
            dropped.extend(self.take(at));
        }
        self.add(Some(result), parcel);
        dropped
    }

    /// Adds what is to be said of the monitor, instead of what was to be said before.
    pub(super) fn push_status(&mut self, parcel: Parcel) {
        while let Some(at) = self
            .items
            .iter()
            .position(|item| item.state == State::Waiting && item.result.is_none())
        {
            self.take(at);
        }
        self.add(None, parcel);
    }

    fn add(&mut self, result: Option<Number>, parcel: Parcel) {
        self.bytes += parcel.size();
        self.items.push_back(Item {
            result,
            number: self.next_number,
            parcel,
            state: State::Waiting,
        });
        self.next_number += 1;
    }

    /// Whether every result has reached the broker.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many results the broker does not have.
    pub(super) fn results(&self) -> usize {
        let results = self.items.iter().filter(|item| item.result.is_some());
        results.count()
    }

    /// What to send next, if anything may be sent now, and whether it is a result.
    pub(super) fn next(&self) -> Option<(&Parcel, bool)> {
        let (mut under_way, mut oldest) = (0, None);
        for item in &self.items {
            if let State::Handed(n) | State::Sent(n) = item.state {
                under_way += 1;
                oldest = Some(oldest.map_or(n, |oldest: u64| oldest.min(n)));
            }
        }
        let too_far = oldest.is_some_and(|oldest| self.handed - oldest >= self.max_distance);
        if under_way >= WINDOW || too_far {
            return None;
        }
        let next = self.items.iter().find(|item| item.state == State::Waiting);
        next.map(|item| (&item.parcel, item.result.is_some()))
    }

    /// Which result [`Self::next`] returns, if it is one.
    pub(super) fn next_result(&self) -> Option<Number> {
        let mut items = self.items.iter();
        items.find(|item| item.state == State::Waiting)?.result
    }

    fn first_waiting(&mut self) -> Option<&mut Item> {
        let mut items = self.items.iter_mut();
        items.find(|item| item.state == State::Waiting)
    }

    /// What [`Self::next`] returned was handed to rumqttc.
    pub(super) fn handed(&mut self) {
        let handed = self.handed;
        if let Some(item) = self.first_waiting() {
            item.state = State::Handed(handed);
            self.handed += 1;
        }
    }

    /// What [`Self::next`] returns has this payload from now on.
    pub(super) fn replace_next(&mut self, payload: Vec<u8>) {
        if let Some(item) = self.first_waiting() {
            let (old, new) = (item.parcel.payload.len(), payload.len());
            item.parcel.payload = payload;
            self.bytes = self.bytes + new - old;
        }
    }

    /// Drops what [`Self::next`] returns. Returns the result, if it is one.
    pub(super) fn drop_next(&mut self) -> Option<Number> {
        let mut items = self.items.iter();
        let at = items.position(|item| item.state == State::Waiting)?;
        self.take(at)
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

    /// The broker does not take something. It is sent again, on the topic for all results if it was to go
    /// elsewhere. Returns nothing if it is not known.
    pub(super) fn rejected(&mut self, packet: u16, instead: Option<&str>) -> Option<Rejection> {
        let number = self.by_packet.remove(&packet)?;
        let at = self.items.iter().position(|item| item.number == number)?;
        let item = self.items.get_mut(at)?;
        let topic = item.parcel.topic.clone();
        let Some(result) = item.result.filter(|_| instead != Some(topic.as_str())) else {
            item.state = State::Waiting;
            return Some(Rejection::Again(topic));
        };
        match instead {
            Some(instead) => {
                item.state = State::Waiting;
                self.bytes = self.bytes + instead.len() - topic.len();
                item.parcel.topic = instead.to_owned();
                Some(Rejection::Elsewhere(topic))
            }
            None => {
                self.take(at);
                Some(Rejection::Dropped(result, topic))
            }
        }
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
        self.take(at)
    }

    fn take(&mut self, at: usize) -> Option<Number> {
        let item = self.items.remove(at)?;
        self.bytes -= item.parcel.size();
        item.result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(payload: impl Into<Vec<u8>>) -> Parcel {
        Parcel {
            topic: "t".to_owned(),
            payload: payload.into(),
            correlation: None,
        }
    }

    fn outbox(count: usize) -> Outbox {
        let mut outbox = Outbox::default();
        for number in 0..count {
            let parcel = parcel(number.to_string());
            assert_eq!(outbox.push(100 + number as u64, parcel), [0; 0]);
        }
        outbox
    }

    fn hand_over(outbox: &mut Outbox) -> Vec<String> {
        let mut handed = Vec::new();
        while let Some((parcel, _)) = outbox.next() {
            handed.push(String::from_utf8(parcel.payload.clone()).unwrap());
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
        outbox.push_status(parcel("online"));
        outbox.push_status(parcel("offline"));
        assert_eq!(hand_over(&mut outbox), ["0", "offline"]);
        // One that is under way cannot be taken back.
        outbox.push_status(parcel("online"));
        assert_eq!(outbox.next(), Some((&parcel("online"), false)));
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
            outbox.push(0, parcel("x"));
            if hand_over(&mut outbox).is_empty() {
                break;
            }
            packet += 1;
            outbox.sent(packet);
            outbox.acknowledged(packet);
        }
        assert!(u64::from(packet) <= outbox.max_distance + 1, "{packet}");
    }

    #[test]
    fn what_does_not_fit_is_dropped_from_the_front_and_counted() {
        let mut outbox = outbox(CAPACITY);
        outbox.handed();
        assert_eq!(outbox.push(1, parcel("new")), [101]);
        assert_eq!(outbox.push(2, parcel("newer")), [102]);
        // The first one is under way and stays.
        outbox.start_over();
        assert_eq!(outbox.next(), Some((&parcel("0"), true)));
        assert_eq!(outbox.items[1].parcel, parcel("3"));

        let mut outbox = Outbox::default();
        outbox.push(7, parcel(vec![0; CAPACITY_BYTES - 1]));
        assert_eq!(outbox.push(8, parcel(vec![0; 9])), [7]);
        assert_eq!((outbox.items.len(), outbox.bytes), (1, 10));
    }

    #[test]
    fn what_the_broker_does_not_take_is_sent_again_in_order() {
        let mut outbox = outbox(3);
        hand_over(&mut outbox);
        for packet in 1..=3 {
            outbox.sent(packet);
        }
        assert_eq!(outbox.rejected(9, Some("t")), None);
        for packet in [2, 1] {
            let again = Rejection::Again("t".to_owned());
            assert_eq!(outbox.rejected(packet, Some("t")), Some(again));
        }
        assert_eq!(hand_over(&mut outbox), ["0", "1"]);
    }

    #[test]
    fn a_response_topic_that_is_refused_is_not_insisted_on() {
        let elsewhere = |topic: &str| Parcel {
            topic: topic.to_owned(),
            ..parcel("x")
        };
        let mut outbox = Outbox::default();
        for (number, topic) in [(7, "other"), (8, "another")] {
            outbox.push(number, elsewhere(topic));
        }
        hand_over(&mut outbox);
        outbox.sent(1);
        outbox.sent(2);
        let moved = Rejection::Elsewhere("other".to_owned());
        assert_eq!(outbox.rejected(1, Some("t")), Some(moved));
        assert_eq!(outbox.next(), Some((&parcel("x"), true)));
        let dropped = Rejection::Dropped(8, "another".to_owned());
        assert_eq!(outbox.rejected(2, None), Some(dropped));
        assert_eq!((outbox.items.len(), outbox.bytes), (1, 2));
    }

    #[test]
    fn what_is_too_long_is_replaced_or_dropped() {
        let mut outbox = outbox(2);
        outbox.replace_next(b"shorter".to_vec());
        assert_eq!(outbox.next(), Some((&parcel("shorter"), true)));
        assert_eq!(outbox.drop_next(), Some(100));
        assert_eq!(hand_over(&mut outbox), ["1"]);
        assert_eq!((outbox.drop_next(), outbox.bytes), (None, 2));
    }

    #[test]
    fn a_broker_may_allow_a_single_packet_id() {
        let mut outbox = outbox(3);
        outbox.limit(1);
        for number in ["0", "1", "2"] {
            assert_eq!(hand_over(&mut outbox), [number]);
            outbox.sent(1);
            outbox.acknowledged(1);
        }
    }
}
