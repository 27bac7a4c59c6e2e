//! How much of something there may be: so much at once, and then so much in a time.

use std::time::Duration;

use super::episode::Moment;

/// A budget that fills up again.
#[derive(Clone, Debug)]
pub struct Budget {
    most: u32,
    refill: Duration,
    /// When it will be full.
    full: Moment,
}

impl Budget {
    /// A full budget for so many at once, and for one more each time this has passed.
    pub fn new(most: u32, refill: Duration) -> Self {
        Self {
            most,
            refill,
            full: Moment::ZERO,
        }
    }

    /// Takes one, or says when there is one again.
    pub fn spend(&mut self, now: Moment) -> Result<(), Moment> {
        let full = self.full.max(now) + self.refill;
        let limit = now + self.refill * self.most;
        if full > limit {
            return Err(now + (full - limit));
        }
        self.full = full;
        Ok(())
    }

    /// Whether at most one has been taken of what there may be at once.
    pub fn is_full(&self, now: Moment) -> bool {
        self.full <= now + self.refill
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_spent_and_fills_up() {
        let seconds = Duration::from_secs;
        let mut budget = Budget::new(3, seconds(10));
        let start = seconds(1000);
        for _ in 0..3 {
            assert_eq!(budget.spend(start), Ok(()));
        }
        assert_eq!(budget.spend(start), Err(start + seconds(10)));
        assert_eq!(budget.spend(start + seconds(9)), Err(start + seconds(10)));
        assert_eq!(budget.spend(start + seconds(10)), Ok(()));
        assert_eq!(budget.spend(start + seconds(10)), Err(start + seconds(20)));
        assert!(!budget.is_full(start + seconds(29)));
        assert!(budget.is_full(start + seconds(30)));
        // What is not used does not add up.
        for _ in 0..3 {
            assert_eq!(budget.spend(start + seconds(1000)), Ok(()));
        }
        assert!(budget.spend(start + seconds(1000)).is_err());
    }
}
