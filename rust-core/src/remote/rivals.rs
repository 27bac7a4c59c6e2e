//! Finds out whether another client has our client id: two hosts that were given the same one throw each other
//! out for ever.
//!
//! MQTT 5 says so when it happens. With 3.1.1 the broker only closes the connection, again and again, shortly
//! after it was made.

use std::time::Duration;

use super::link::Cause;

/// A connection that was closed before it lasted this long may have been taken over.
const SHORT: Duration = Duration::from_secs(10);
/// After so long without a rival there is none.
pub(super) const SETTLED: Duration = Duration::from_secs(120);
/// How many connections in a row must be short before that is no accident.
const TOO_MANY: u32 = 4;
/// How many times the broker must say so. Once may be a host that was replaced.
const TOLD: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Rivals {
    short: u32,
    told: u32,
    suspected: bool,
}

impl Rivals {
    /// A connection has ended that lasted so long. Says whether there is a rival that was not known of.
    pub(super) fn lost(&mut self, cause: &Cause, lasted: Duration) -> bool {
        if lasted >= SETTLED {
            *self = Self::default();
        }
        match cause {
            Cause::TakenOver => self.told += 1,
            Cause::Closed if lasted < SHORT => self.short += 1,
            _ => self.short = 0,
        }
        let found = self.short >= TOO_MANY || self.told >= TOLD;
        found && !std::mem::replace(&mut self.suspected, true)
    }

    /// Whether there seems to be one.
    pub(super) fn are_there(&self) -> bool {
        self.suspected
    }

    /// A connection has lasted.
    pub(super) fn settled(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_says_so_twice_is_believed() {
        let mut rivals = Rivals::default();
        let hour = Duration::from_secs(3600);
        assert!(!rivals.lost(&Cause::TakenOver, hour));
        assert!(rivals.lost(&Cause::TakenOver, Duration::ZERO));
        // It is said once.
        assert!(!rivals.lost(&Cause::TakenOver, Duration::ZERO));
        assert!(rivals.are_there());
        assert!(!rivals.lost(&Cause::TakenOver, SETTLED));
        assert!(!rivals.are_there());
    }

    #[test]
    fn connections_that_are_closed_at_once_again_and_again_are_suspicious() {
        let mut rivals = Rivals::default();
        let second = Duration::from_secs(1);
        for _ in 1..TOO_MANY {
            assert!(!rivals.lost(&Cause::Closed, second));
        }
        assert!(rivals.lost(&Cause::Closed, second));
        rivals.settled();
        assert!(!rivals.are_there());
    }

    #[test]
    fn a_broker_that_is_restarted_now_and_then_is_not() {
        let mut rivals = Rivals::default();
        let second = Duration::from_secs(1);
        for round in 0..20 {
            let (cause, lasted) = match round % 3 {
                0 => (Cause::Other, second),
                1 => (Cause::Closed, SHORT),
                _ => (Cause::Closed, second),
            };
            assert!(!rivals.lost(&cause, lasted), "{round}");
        }
    }
}
