//! How long to wait before the next attempt.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// Waits that grow up to a limit, with jitter, so that the hosts of a site do not all come back at once.
#[derive(Debug)]
pub(super) struct Backoff {
    fixed: Option<Duration>,
    next: Duration,
}

impl Backoff {
    /// With a fixed interval, waits neither grow nor vary.
    pub(super) fn new(fixed: Option<Duration>) -> Self {
        Self { fixed, next: FIRST }
    }

    /// The next wait.
    pub(super) fn wait(&mut self) -> Duration {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let full = self.next;
        self.next = (full * 2).min(LONGEST);
        full.mul_f64(0.5 + random_fraction() / 2.0)
    }

    /// Starts over.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }
}

/// A number from 0 to 1. Good enough to spread clients, for nothing else.
fn random_fraction() -> f64 {
    f64::from(u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or(0))
        / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_with_jitter() {
        let mut backoff = Backoff::new(None);
        let mut full = FIRST;
        for _ in 0..20 {
            let wait = backoff.wait();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(LONGEST);
        }
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
        let varies = (0..20)
            .map(|_| Backoff::new(None).wait())
            .collect::<std::collections::HashSet<_>>();
        assert!(varies.len() > 1);
    }

    #[test]
    fn a_fixed_interval_is_kept() {
        let mut backoff = Backoff::new(Some(Duration::from_secs(3)));
        assert_eq!(
            [backoff.wait(), backoff.wait()],
            [Duration::from_secs(3); 2]
        );
    }
}
