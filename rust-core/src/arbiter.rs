//! Decides which actions may run at the same time, whoever asked for them.
//!
//! An action has its service for itself, unless its command says otherwise. What may not run yet waits, in
//! the order of arrival within its service; what is one too many is refused.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How many actions run at once.
pub const MAX_RUNNING: usize = 16;
/// How many more may wait for their turn.
pub const MAX_WAITING: usize = 512;
/// How many of them may be of one service, so that a service that hangs leaves room for the others.
pub const MAX_WAITING_OF_SERVICE: usize = 256;

/// What an action would like to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The service that it acts upon.
    pub service: String,
    /// Which of its commands it is.
    pub command: String,
    /// How many of this command may run at once, beside others that say the same. Without it, the service is
    /// the action's own.
    pub concurrency: Option<usize>,
    /// How long after a start the command is not started again.
    pub cooldown: Option<Duration>,
}

/// Why an action may neither run nor wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many are waiting.
    Busy,
    /// Its command was started a short while ago, or is about to be. It may be in this time, if that is known.
    Cooldown(Option<Duration>),
}

/// Names an action that runs.
pub type Ticket = u64;

/// What runs, and what waits for its turn.
#[derive(Debug)]
pub struct Arbiter<T> {
    running: HashMap<Ticket, Claim>,
    waiting: VecDeque<(Claim, T)>,
    /// When a command with a cooldown may be started again.
    cooling: HashMap<(String, String), Instant>,
    next_ticket: Ticket,
}

impl<T> Default for Arbiter<T> {
    fn default() -> Self {
        Self {
            running: HashMap::new(),
            waiting: VecDeque::new(),
            cooling: HashMap::new(),
            next_ticket: 1,
        }
    }
}

impl<T> Arbiter<T> {
    /// Whether an action may run, now or later.
    pub fn check(&self, claim: &Claim, now: Instant) -> Result<(), Refusal> {
        if claim.cooldown.is_some() {
            let same =
                |other: &Claim| other.service == claim.service && other.command == claim.command;
            if self.waiting.iter().any(|(other, _)| same(other)) {
                return Err(Refusal::Cooldown(None));
            }
            let until = self
                .cooling
                .get(&(claim.service.clone(), claim.command.clone()));
            if let Some(left) = until.and_then(|until| until.checked_duration_since(now)) {
                if !left.is_zero() {
                    return Err(Refusal::Cooldown(Some(left)));
                }
            }
        }
        if self.may_start(claim, &self.waiting) {
            return Ok(());
        }
        let of_service = self
            .waiting
            .iter()
            .filter(|(other, _)| other.service == claim.service);
        if self.waiting.len() >= MAX_WAITING || of_service.count() >= MAX_WAITING_OF_SERVICE {
            return Err(Refusal::Busy);
        }
        Ok(())
    }

    /// Puts an action behind those that wait. [`Self::next`] tells when it may run.
    pub fn submit(&mut self, claim: Claim, action: T) {
        self.waiting.push_back((claim, action));
    }

    /// The next action that may run, which is taken to run from now on.
    pub fn next(&mut self, now: Instant) -> Option<(Ticket, T)> {
        let at = (0..self.waiting.len()).find(|at| {
            let (claim, _) = &self.waiting[*at];
            self.may_start(claim, self.waiting.range(..at))
        })?;
        let (claim, action) = self.waiting.remove(at)?;
        if let Some(cooldown) = claim.cooldown {
            self.cooling.retain(|_, until| *until > now);
            let key = (claim.service.clone(), claim.command.clone());
            self.cooling.insert(key, now + cooldown);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.running.insert(ticket, claim);
        Some((ticket, action))
    }

    /// An action has ended.
    pub fn ended(&mut self, ticket: Ticket) {
        self.running.remove(&ticket);
    }

    /// A command was started this long ago, before there was this arbiter.
    pub fn remember(&mut self, service: &str, command: &str, left: Duration, now: Instant) {
        self.cooling
            .insert((service.to_owned(), command.to_owned()), now + left);
    }

    /// What waits.
    pub fn waiting(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|(_, action)| action)
    }

    /// Takes out of the queue what the function says yes to.
    pub fn withdraw(&mut self, mut which: impl FnMut(&T) -> bool) -> Vec<T> {
        let (out, rest) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, action)| which(action));
        self.waiting = rest;
        let out: VecDeque<_> = out;
        out.into_iter().map(|(_, action)| action).collect()
    }

    /// Whether an action may start beside what runs, and ahead of nothing of its service that came before it.
    fn may_start<'a>(&self, claim: &Claim, before: impl IntoIterator<Item = &'a (Claim, T)>) -> bool
    where
        T: 'a,
    {
        if self.running.len() >= MAX_RUNNING {
            return false;
        }
        if before
            .into_iter()
            .any(|(other, _)| other.service == claim.service)
        {
            return false;
        }
        let mut beside = self
            .running
            .values()
            .filter(|other| other.service == claim.service)
            .peekable();
        match claim.concurrency {
            _ if beside.peek().is_none() => true,
            None => false,
            Some(most) => {
                let mut same = 0;
                for other in beside {
                    if other.concurrency.is_none() {
                        return false;
                    }
                    same += usize::from(other.command == claim.command);
                }
                same < most
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(service: &str, command: &str, concurrency: Option<usize>) -> Claim {
        Claim {
            service: service.into(),
            command: command.into(),
            concurrency,
            cooldown: None,
        }
    }

    struct Fixture {
        arbiter: Arbiter<u32>,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                arbiter: Arbiter::default(),
                now: Instant::now(),
            }
        }

        fn ask(&mut self, claim: Claim, action: u32) -> Result<(), Refusal> {
            self.arbiter.check(&claim, self.now)?;
            self.arbiter.submit(claim, action);
            Ok(())
        }

        /// What starts now, with its tickets.
        fn start(&mut self) -> Vec<(Ticket, u32)> {
            std::iter::from_fn(|| self.arbiter.next(self.now)).collect()
        }
    }

    #[test]
    fn one_action_of_a_service_runs_at_a_time_in_order() {
        let mut f = Fixture::new();
        for (service, action) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
            f.ask(claim(service, "x", None), action).unwrap();
        }
        assert_eq!(f.start(), [(1, 1), (2, 3)]);
        f.arbiter.ended(2);
        assert_eq!(f.start(), []);
        f.arbiter.ended(1);
        assert_eq!(f.start(), [(3, 2)]);
        assert_eq!(f.arbiter.waiting().collect::<Vec<_>>(), [&4]);
    }

    #[test]
    fn commands_that_allow_it_run_beside_each_other() {
        let mut f = Fixture::new();
        for action in 1..=3 {
            f.ask(claim("a", "look", Some(2)), action).unwrap();
        }
        f.ask(claim("a", "list", Some(1)), 4).unwrap();
        assert_eq!(f.start(), [(1, 1), (2, 2)]);
        f.arbiter.ended(1);
        assert_eq!(f.start(), [(3, 3), (4, 4)]);
        // One that wants the service for itself waits for all, and is not overtaken.
        f.ask(claim("a", "restart", None), 5).unwrap();
        f.ask(claim("a", "look", Some(9)), 6).unwrap();
        for ticket in 2..=3 {
            f.arbiter.ended(ticket);
            assert_eq!(f.start(), []);
        }
        f.arbiter.ended(4);
        assert_eq!(f.start(), [(5, 5)]);
        f.arbiter.ended(5);
        assert_eq!(f.start(), [(6, 6)]);
    }

    #[test]
    fn so_many_run_so_many_wait_and_the_rest_is_refused() {
        let mut f = Fixture::new();
        for action in 0..MAX_RUNNING {
            f.ask(claim(&action.to_string(), "x", None), 0).unwrap();
        }
        assert_eq!(f.start().len(), MAX_RUNNING);
        f.ask(claim("one more", "x", None), 1).unwrap();
        assert_eq!(f.start(), []);
        for _ in 0..MAX_WAITING_OF_SERVICE {
            f.ask(claim("0", "x", None), 2).unwrap();
        }
        assert_eq!(f.ask(claim("0", "x", None), 3), Err(Refusal::Busy));
        // Others still have room.
        for _ in MAX_WAITING_OF_SERVICE + 1..MAX_WAITING {
            f.ask(claim("1", "x", None), 4).unwrap();
        }
        assert_eq!(f.ask(claim("2", "x", None), 5), Err(Refusal::Busy));
        f.arbiter.ended(16);
        assert_eq!(f.start(), [(17, 1)]);
    }

    #[test]
    fn a_command_cools_down_from_its_start() {
        let mut f = Fixture::new();
        let hot = Claim {
            cooldown: Some(Duration::from_secs(10)),
            ..claim("a", "restart", None)
        };
        f.ask(hot.clone(), 1).unwrap();
        // While one waits, another would only follow it.
        assert_eq!(f.ask(hot.clone(), 2), Err(Refusal::Cooldown(None)));
        assert_eq!(f.start().len(), 1);
        f.arbiter.ended(1);
        f.now += Duration::from_secs(4);
        let left = Some(Duration::from_secs(6));
        assert_eq!(f.ask(hot.clone(), 2), Err(Refusal::Cooldown(left)));
        f.ask(claim("a", "other", None), 3).unwrap();
        assert_eq!(f.start(), [(2, 3)]);
        f.now += Duration::from_secs(6);
        f.ask(hot.clone(), 4).unwrap();

        let mut f = Fixture::new();
        f.arbiter
            .remember("a", "restart", Duration::from_secs(3), f.now);
        let left = Some(Duration::from_secs(3));
        assert_eq!(f.ask(hot, 1), Err(Refusal::Cooldown(left)));
    }

    #[test]
    fn what_is_withdrawn_does_not_run_and_the_rest_keeps_its_order() {
        let mut f = Fixture::new();
        for action in 1..=5 {
            f.ask(claim("a", "x", None), action).unwrap();
        }
        assert_eq!(f.arbiter.withdraw(|action| action % 2 == 0), [2, 4]);
        assert_eq!(f.start(), [(1, 1)]);
        f.arbiter.ended(1);
        assert_eq!(f.start(), [(2, 3)]);
    }
}
