//! Which messages the broker may have kept while we were away.
//!
//! Nothing in MQTT tells a kept message from one that has just been sent. But the broker sends what it has
//! kept one after the other, as soon as we are there again.

use std::time::Duration;

use tokio::time::Instant;

/// What comes after such a pause was not kept.
const QUIET: Duration = Duration::from_secs(5);
/// Whoever sends without a pause is not mistaken for the backlog for longer than this.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Backlog {
    lost: Option<Instant>,
    now: Option<Now>,
}

/// It is being sent.
#[derive(Debug)]
struct Now {
    away: Duration,
    until: Instant,
    at_most_until: Instant,
}

impl Backlog {
    /// There is a connection.
    pub(super) fn connected(&mut self, session_present: bool, now: Instant) {
        let away = match self.lost.take() {
            Some(lost) => {
                // What was not sent by then is as old as it was.
                let left = self.now.take().filter(|backlog| lost <= backlog.until);
                let before = left.map_or(Duration::ZERO, |backlog| backlog.away);
                before.saturating_add(now - lost)
            }
            // Nobody knows when the monitor before this one was here.
            None => Duration::MAX,
        };
        self.now = session_present.then(|| Now {
            away,
            until: now + QUIET,
            at_most_until: now + LONGEST,
        });
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self, now: Instant) {
        self.lost = Some(now);
    }

    /// For a message that arrives: how long we were away, if it may have been kept meanwhile.
    pub(super) fn away(&mut self, now: Instant) -> Option<Duration> {
        let backlog = self.now.as_mut()?;
        if now > backlog.until {
            self.now = None;
            return None;
        }
        backlog.until = (now + QUIET).min(backlog.at_most_until);
        Some(backlog.away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_at_once_after_a_reconnection_may_have_been_kept() {
        let second = Duration::from_secs(1);
        let mut backlog = Backlog::default();
        let start = Instant::now();
        assert_eq!(backlog.away(start), None);
        // A session that was there before the monitor was.
        backlog.connected(true, start);
        assert_eq!(backlog.away(start + second), Some(Duration::MAX));
        backlog.lost(start + 100 * second);
        backlog.connected(true, start + 500 * second);
        for at in [500, 504, 508] {
            let away = backlog.away(start + at * second);
            assert_eq!(away, Some(400 * second), "{at}");
        }
        // A pause.
        assert_eq!(backlog.away(start + 514 * second), None);
        assert_eq!(backlog.away(start + 515 * second), None);
    }

    #[test]
    fn a_new_session_has_nothing_and_a_stream_is_not_the_backlog_for_ever() {
        let second = Duration::from_secs(1);
        let mut backlog = Backlog::default();
        let start = Instant::now();
        backlog.connected(true, start);
        backlog.lost(start + second);
        backlog.connected(true, start + 2 * second);
        // Not all of it had come.
        assert_eq!(backlog.away(start + 3 * second), Some(Duration::MAX));
        backlog.connected(false, start);
        assert_eq!(backlog.away(start), None);
        backlog.lost(start);
        backlog.connected(true, start + second);
        let kept = (1..100).filter(|at| backlog.away(start + *at * second).is_some());
        assert_eq!(kept.count(), 61);
    }
}
