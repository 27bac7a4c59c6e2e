//! The decisions of a run over many hosts: which host is next, and when to stop.
//!
//! Nothing here knows a broker or a clock. Times are counted from the beginning of the run.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

/// How many hosts may fail before no further one is sent the command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// So many.
    Hosts(usize),
    /// This share of all hosts.
    Percent(f64),
}

impl Tolerance {
    fn is_exceeded(self, failed: usize, all: usize) -> bool {
        match self {
            Tolerance::Hosts(most) => failed > most,
            // Counts of hosts are far from where a double is not exact.
            Tolerance::Percent(most) => failed as f64 * 100.0 > most * all as f64,
        }
    }
}

/// How careful to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// So many hosts go first. The others follow only if all of these succeed.
    pub canary: usize,
    /// So many hosts may be at it at once.
    pub parallel: NonZeroUsize,
    /// The shortest time between two hosts.
    pub interval: Duration,
    /// How many hosts may fail.
    pub tolerance: Tolerance,
    /// How long a host may take to answer.
    pub timeout: Duration,
}

impl Limits {
    /// For a single host, or where all hosts may go at once.
    pub fn none(timeout: Duration) -> Self {
        Self {
            canary: 0,
            parallel: NonZeroUsize::MAX,
            interval: Duration::ZERO,
            tolerance: Tolerance::Percent(100.0),
            timeout,
        }
    }
}

/// How it ended for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ending {
    /// The command succeeded.
    Succeeded,
    /// The command ran, and failed.
    Failed,
    /// The monitor refused the command, or it did not run to its end.
    Refused,
    /// There was no answer in time.
    NoAnswer,
    /// The run ended before there was an answer.
    Unknown,
    /// The run ended before the host's turn came.
    NotSent,
}

impl Ending {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Ending::Succeeded => "succeeded",
            Ending::Failed => "failed",
            Ending::Refused => "refused",
            Ending::NoAnswer => "no-answer",
            Ending::Unknown => "unknown",
            Ending::NotSent => "not-sent",
        }
    }
}

/// Why the run did not reach all hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// One of the hosts that go first did not succeed.
    Canary,
    /// Too many hosts did not succeed.
    Failures,
    /// The user wanted it to.
    Interrupted,
    /// The broker is lost.
    Lost,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stop::Canary => "stopped: a host that goes first did not succeed",
            Stop::Failures => "stopped: too many hosts did not succeed",
            Stop::Interrupted => "interrupted",
            Stop::Lost => "the connection to the broker is lost",
        })
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the command to this host.
    Send(usize),
    /// This host has not answered in time.
    GiveUp(usize),
    /// Nothing, until there is an answer or it is this late.
    Wait(Duration),
    /// The run is over.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    UnderWay { since: Duration },
    Ended(Ending),
}

/// A run over hosts, which are known by their numbers.
#[derive(Clone, Debug)]
pub struct Rollout {
    limits: Limits,
    hosts: Vec<State>,
    /// Hosts get their turn in order.
    next: usize,
    /// Those that were sent the command, in this order. Some have answered since.
    sent: VecDeque<usize>,
    under_way: usize,
    canaries_under_way: usize,
    failed: usize,
    last_sent: Option<Duration>,
    stop: Option<Stop>,
}

impl Rollout {
    /// A run that has not begun.
    pub fn new(hosts: usize, limits: Limits) -> Self {
        Self {
            limits,
            hosts: vec![State::Waiting; hosts],
            next: 0,
            sent: VecDeque::new(),
            under_way: 0,
            canaries_under_way: 0,
            failed: 0,
            last_sent: None,
            stop: None,
        }
    }

    /// What to do at this time. To be asked until there is nothing but to wait.
    pub fn step(&mut self, now: Duration) -> Step {
        let deadline = self.first_deadline();
        if let Some((host, _)) = deadline.filter(|(_, deadline)| *deadline <= now) {
            self.end(host, Ending::NoAnswer);
            return Step::GiveUp(host);
        }
        let until = deadline.map(|(_, deadline)| deadline);
        let waits_for_canaries = self.next == self.limits.canary && self.canaries_under_way > 0;
        let may_send = self.next < self.hosts.len()
            && self.under_way < self.limits.parallel.get()
            && !waits_for_canaries;
        let soonest = match self.last_sent {
            Some(last) => last.saturating_add(self.limits.interval),
            None => now,
        };
        match (until, may_send.then_some(soonest)) {
            (_, Some(soonest)) if soonest <= now => self.send(now),
            (None, None) => Step::Done,
            (Some(until), None) | (None, Some(until)) => Step::Wait(until),
            (Some(one), Some(other)) => Step::Wait(one.min(other)),
        }
    }

    /// A host has answered. An answer that is late counts, too. Says whether there was one to be expected.
    pub fn answered(&mut self, host: usize, ending: Ending) -> bool {
        match self.hosts.get(host) {
            Some(State::UnderWay { .. }) => {
                self.end(host, ending);
                true
            }
            Some(State::Ended(Ending::NoAnswer)) => {
                self.hosts[host] = State::Ended(ending);
                self.failed -= usize::from(ending == Ending::Succeeded);
                true
            }
            _ => false,
        }
    }

    /// Ends the run now.
    pub fn abandon(&mut self, why: Stop) {
        self.stop(why);
        self.under_way = 0;
        self.canaries_under_way = 0;
        self.sent.clear();
        for host in &mut self.hosts {
            if let State::UnderWay { .. } = host {
                *host = State::Ended(Ending::Unknown);
            }
        }
    }

    /// Why the run did not reach all hosts, if it did not.
    pub fn why_stopped(&self) -> Option<Stop> {
        self.stop
    }

    /// How it ended for a host, when the run is over.
    pub fn ending(&self, host: usize) -> Ending {
        match self.hosts.get(host) {
            Some(State::Ended(ending)) => *ending,
            Some(State::UnderWay { .. }) => Ending::Unknown,
            Some(State::Waiting) | None => Ending::NotSent,
        }
    }

    fn send(&mut self, now: Duration) -> Step {
        let host = self.next;
        self.hosts[host] = State::UnderWay { since: now };
        self.sent.push_back(host);
        self.next += 1;
        self.under_way += 1;
        self.canaries_under_way += usize::from(host < self.limits.canary);
        self.last_sent = Some(now);
        Step::Send(host)
    }

    fn end(&mut self, host: usize, ending: Ending) {
        self.hosts[host] = State::Ended(ending);
        self.under_way -= 1;
        let is_canary = host < self.limits.canary;
        self.canaries_under_way -= usize::from(is_canary);
        if ending == Ending::Succeeded {
            return;
        }
        self.failed += 1;
        if is_canary {
            self.stop(Stop::Canary);
        } else if self
            .limits
            .tolerance
            .is_exceeded(self.failed, self.hosts.len())
        {
            self.stop(Stop::Failures);
        }
    }

    /// No further host is sent the command. Where none is left there is nothing to stop.
    fn stop(&mut self, why: Stop) {
        if self.next < self.hosts.len() || self.under_way > 0 && why >= Stop::Interrupted {
            self.stop.get_or_insert(why);
        }
        self.next = self.hosts.len();
    }

    /// The host that is to be given up first, and when. All have the same time to answer.
    fn first_deadline(&mut self) -> Option<(usize, Duration)> {
        loop {
            let host = *self.sent.front()?;
            if let State::UnderWay { since } = self.hosts[host] {
                return Some((host, since.saturating_add(self.limits.timeout)));
            }
            self.sent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> Limits {
        Limits::none(10 * SECOND)
    }

    fn at_most(parallel: usize) -> Limits {
        Limits {
            parallel: NonZeroUsize::new(parallel).unwrap(),
            ..limits()
        }
    }

    /// Every host that gets the command now.
    fn sends(rollout: &mut Rollout, now: Duration) -> Vec<usize> {
        let mut hosts = Vec::new();
        while let Step::Send(host) = rollout.step(now) {
            hosts.push(host);
        }
        hosts
    }

    #[test]
    fn without_limits_all_go_at_once() {
        let mut rollout = Rollout::new(3, limits());
        assert_eq!(sends(&mut rollout, SECOND), [0, 1, 2]);
        assert_eq!(rollout.step(SECOND), Step::Wait(11 * SECOND));
        for host in 0..3 {
            assert!(rollout.answered(host, Ending::Failed));
        }
        assert_eq!(rollout.step(SECOND), Step::Done);
        // There was nobody left to spare.
        assert_eq!(rollout.why_stopped(), None);
    }

    #[test]
    fn no_hosts_are_done_at_once() {
        assert_eq!(Rollout::new(0, limits()).step(SECOND), Step::Done);
    }

    #[test]
    fn the_next_one_starts_when_one_has_ended() {
        let mut rollout = Rollout::new(4, at_most(2));
        assert_eq!(sends(&mut rollout, SECOND), [0, 1]);
        rollout.answered(1, Ending::Succeeded);
        assert_eq!(sends(&mut rollout, SECOND), [2]);
        assert_eq!(rollout.step(11 * SECOND), Step::GiveUp(0));
        assert_eq!(rollout.step(11 * SECOND), Step::GiveUp(2));
        assert_eq!(sends(&mut rollout, 11 * SECOND), [3]);
        assert_eq!(rollout.ending(0), Ending::NoAnswer);
    }

    #[test]
    fn the_rate_is_kept() {
        let mut rollout = Rollout::new(
            3,
            Limits {
                interval: SECOND,
                ..limits()
            },
        );
        assert_eq!(rollout.step(5 * SECOND), Step::Send(0));
        assert_eq!(rollout.step(5 * SECOND), Step::Wait(6 * SECOND));
        rollout.answered(0, Ending::Succeeded);
        assert_eq!(rollout.step(5 * SECOND), Step::Wait(6 * SECOND));
        assert_eq!(rollout.step(6 * SECOND), Step::Send(1));
        // A moment that was missed is not made up for.
        assert_eq!(rollout.step(60 * SECOND), Step::GiveUp(1));
        assert_eq!(sends(&mut rollout, 60 * SECOND), [2]);
    }

    #[test]
    fn a_canary_that_fails_spares_the_others() {
        for ending in [Ending::Failed, Ending::Refused] {
            let mut rollout = Rollout::new(
                5,
                Limits {
                    canary: 2,
                    ..limits()
                },
            );
            assert_eq!(sends(&mut rollout, SECOND), [0, 1]);
            rollout.answered(0, Ending::Succeeded);
            assert!(sends(&mut rollout, SECOND).is_empty());
            rollout.answered(1, ending);
            assert_eq!(rollout.step(SECOND), Step::Done);
            assert_eq!(rollout.why_stopped(), Some(Stop::Canary));
            assert_eq!(rollout.ending(4), Ending::NotSent);
        }
    }

    #[test]
    fn a_canary_that_does_not_answer_spares_the_others() {
        let canary = Limits {
            canary: 1,
            ..limits()
        };
        let mut rollout = Rollout::new(2, canary);
        assert_eq!(sends(&mut rollout, SECOND), [0]);
        assert_eq!(rollout.step(11 * SECOND), Step::GiveUp(0));
        assert_eq!(rollout.step(11 * SECOND), Step::Done);
        assert_eq!(rollout.why_stopped(), Some(Stop::Canary));
        // Too late to go on, but it is known now.
        assert!(rollout.answered(0, Ending::Succeeded));
        assert_eq!(rollout.step(12 * SECOND), Step::Done);
        assert_eq!(rollout.ending(0), Ending::Succeeded);
    }

    #[test]
    fn canaries_that_succeed_let_the_others_go() {
        let canary = Limits {
            canary: 1,
            ..limits()
        };
        let mut rollout = Rollout::new(3, canary);
        assert_eq!(sends(&mut rollout, SECOND), [0]);
        rollout.answered(0, Ending::Succeeded);
        assert_eq!(sends(&mut rollout, SECOND), [1, 2]);
    }

    #[test]
    fn too_many_failures_spare_the_others() {
        for (tolerance, most) in [
            (Tolerance::Hosts(2), 2),
            (Tolerance::Percent(20.0), 2),
            (Tolerance::Percent(29.9), 2),
            (Tolerance::Percent(0.0), 0),
            (Tolerance::Hosts(0), 0),
        ] {
            let mut rollout = Rollout::new(
                10,
                Limits {
                    tolerance,
                    ..at_most(1)
                },
            );
            for host in 0..=most {
                assert_eq!(sends(&mut rollout, SECOND), [host], "{tolerance:?}");
                rollout.answered(host, Ending::Failed);
            }
            assert_eq!(rollout.step(SECOND), Step::Done, "{tolerance:?}");
            assert_eq!(rollout.why_stopped(), Some(Stop::Failures), "{tolerance:?}");
        }
    }

    #[test]
    fn what_is_under_way_is_waited_for_after_a_stop() {
        let mut rollout = Rollout::new(
            5,
            Limits {
                tolerance: Tolerance::Hosts(0),
                ..at_most(2)
            },
        );
        assert_eq!(sends(&mut rollout, SECOND), [0, 1]);
        rollout.answered(0, Ending::Failed);
        assert_eq!(rollout.step(SECOND), Step::Wait(11 * SECOND));
        rollout.answered(1, Ending::Succeeded);
        assert_eq!(rollout.step(SECOND), Step::Done);
    }

    #[test]
    fn a_run_that_is_abandoned_says_what_it_does_not_know() {
        let mut rollout = Rollout::new(3, at_most(2));
        assert_eq!(sends(&mut rollout, SECOND), [0, 1]);
        rollout.answered(0, Ending::Succeeded);
        rollout.abandon(Stop::Interrupted);
        assert_eq!(rollout.step(SECOND), Step::Done);
        let endings = [0, 1, 2].map(|host| rollout.ending(host));
        let expected = [Ending::Succeeded, Ending::Unknown, Ending::NotSent];
        assert_eq!(endings, expected);
        assert_eq!(rollout.why_stopped(), Some(Stop::Interrupted));
    }

    #[test]
    fn answers_that_nobody_asked_for_change_nothing() {
        let mut rollout = Rollout::new(2, at_most(1));
        assert!(!rollout.answered(0, Ending::Succeeded));
        assert_eq!(sends(&mut rollout, SECOND), [0]);
        assert!(!rollout.answered(1, Ending::Succeeded));
        assert!(!rollout.answered(7, Ending::Succeeded));
        assert!(rollout.answered(0, Ending::Succeeded));
        assert!(!rollout.answered(0, Ending::Failed));
        assert_eq!(rollout.ending(0), Ending::Succeeded);
    }

    /// What a host does: answers after a time, or does not.
    #[derive(Clone, Debug)]
    struct Host {
        takes: u32,
        ending: Ending,
    }

    fn host() -> impl Strategy<Value = Host> {
        let ending = prop_oneof![
            8 => Just(Ending::Succeeded),
            1 => Just(Ending::Failed),
            1 => Just(Ending::Refused)
        ];
        (0_u32..30, ending).prop_map(|(takes, ending)| Host { takes, ending })
    }

    fn any_limits() -> impl Strategy<Value = Limits> {
        let tolerance = prop_oneof![
            (0_usize..20).prop_map(Tolerance::Hosts),
            (0.0..=100.0).prop_map(Tolerance::Percent)
        ];
        (0_usize..5, 1_usize..8, 0_u32..5, tolerance, 1_u32..25).prop_map(
            |(canary, parallel, interval, tolerance, timeout)| Limits {
                canary,
                parallel: NonZeroUsize::new(parallel).unwrap(),
                interval: interval * SECOND,
                tolerance,
                timeout: timeout * SECOND,
            },
        )
    }

    proptest! {
        #[test]
        fn every_run_obeys_its_limits_and_ends(
            hosts in prop::collection::vec(host(), 0..40),
            limits in any_limits(),
        ) {
            let mut rollout = Rollout::new(hosts.len(), limits);
            let mut now = Duration::ZERO;
            let mut sent: Vec<Option<Duration>> = vec![None; hosts.len()];
            let mut open: Vec<usize> = Vec::new();
            let mut ended = vec![false; hosts.len()];
            let mut failed = 0;
            loop {
                match rollout.step(now) {
                    Step::Send(host) => {
                        prop_assert_eq!(sent[host], None, "sent twice");
                        if let Some(last) = sent.iter().flatten().max() {
                            prop_assert!(now - *last >= limits.interval);
                        }
                        if host >= limits.canary {
                            let first = 0..limits.canary.min(hosts.len());
                            prop_assert!(first.clone().all(|h| ended[h]));
                            prop_assert!(first.clone().all(|h| rollout.ending(h) == Ending::Succeeded));
                        }
                        prop_assert!(!limits.tolerance.is_exceeded(failed, hosts.len()));
                        sent[host] = Some(now);
                        open.push(host);
                        prop_assert!(open.len() <= limits.parallel.get());
                    }
                    Step::GiveUp(host) => {
                        prop_assert!(now - sent[host].unwrap() >= limits.timeout);
                        open.retain(|other| *other != host);
                        ended[host] = true;
                        failed += 1;
                    }
                    Step::Wait(until) => {
                        prop_assert!(until > now, "it would wait for the past");
                        let answers = open.iter().map(|h| (sent[*h].unwrap() + hosts[*h].takes * SECOND, *h));
                        match answers.min().filter(|(at, _)| *at <= until) {
                            Some((at, host)) => {
                                now = now.max(at);
                                prop_assert!(rollout.answered(host, hosts[host].ending));
                                open.retain(|other| *other != host);
                                ended[host] = true;
                                failed += usize::from(hosts[host].ending != Ending::Succeeded);
                            }
                            None => now = until,
                        }
                    }
                    Step::Done => break,
                }
            }
            prop_assert!(open.is_empty());
            match rollout.why_stopped() {
                None => prop_assert!(ended.iter().all(|ended| *ended)),
                Some(_) => prop_assert!(failed > 0 && ended.iter().any(|ended| !ended)),
            }
            for (host, sent) in sent.iter().enumerate() {
                prop_assert_eq!(rollout.ending(host) == Ending::NotSent, sent.is_none());
            }
        }
    }
}
