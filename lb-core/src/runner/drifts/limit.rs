//! How often repairs may come.

use core::time::Duration;

use crate::time::{Backoff, Instant};

/// Repairs that may follow each other without a wait, after a quiet time.
const BURST: f64 = 20.0;
/// Repairs per second beyond the burst.
const PER_SECOND: f64 = 2.0;
/// Longest wait once there were more.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);
/// The waits once there were more.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), MAX_WAIT);
/// Time without a repair after which waits are forgotten. Longer than the longest wait, or that would end the quarrel.
const CALM: Duration = Duration::from_secs(60);

/// A bucket of repairs; when it is empty, somebody undoes them, and each further one has to wait longer than the last.
#[derive(Clone, Debug)]
struct Limit {
    tokens: f64,
    filled: Instant,
    last: Instant,
    backoff: Backoff,
}

impl Default for Limit {
    fn default() -> Self {
        Self { tokens: BURST, filled: Instant::default(), last: Instant::default(), backoff: BACKOFF }
    }
}

impl Limit {
    /// Takes a repair out, or says when there may be one.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        self.calm_down(now);
        if let Some(until) = self.backoff.until() {
            if now < until {
                return Err(until);
            }
            self.backoff.fail(now);
        } else {
            self.tokens = (self.tokens + now.since(self.filled).as_secs_f64() * PER_SECOND).min(BURST);
            self.filled = now;
            if self.tokens < 1.0 {
                return Err(now + self.backoff.fail(now));
            }
            self.tokens -= 1.0;
        }
        self.last = now;
        Ok(())
    }

    /// A repair did not help: says when there may be another one.
    fn penalise(&mut self, now: Instant) -> Instant {
        self.calm_down(now);
        match self.backoff.until() {
            Some(until) if now < until => until,
            _ => now + self.backoff.fail(now),
        }
    }

    /// How long repairs wait for each other now, if they do.
    fn wait(&self, now: Instant) -> Option<Duration> {
        self.backoff.until().filter(|_| now.since(self.last) < CALM).map(|_| self.backoff.delay())
    }

    fn calm_down(&mut self, now: Instant) {
        if self.backoff.until().is_some() && now.since(self.last) >= CALM {
            *self = Self { filled: now, last: self.last, ..Self::default() };
        }
    }
}

/// What is known to come back waits apart from what is new: a quarrel about one object does not hold back the repair of
/// another one, and whoever thinks of a new object each time is held back as well.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    known: Limit,
    new: Limit,
    last_was_new: bool,
}

impl Limits {
    /// Takes a repair out, or says when there may be one.
    pub(super) fn take(&mut self, is_new: bool, now: Instant) -> Result<(), Instant> {
        self.last_was_new = is_new;
        self.last().take(now)
    }

    /// The last repair did not help: says when there may be another one of its kind.
    pub(super) fn penalise(&mut self, now: Instant) -> Instant {
        self.last().penalise(now)
    }

    /// How long repairs wait for each other now, if they do.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.known.wait(now).max(self.new.wait(now))
    }

    fn last(&mut self) -> &mut Limit {
        if self.last_was_new { &mut self.new } else { &mut self.known }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::new(Duration::from_millis(ms))
    }

    #[test]
    fn now_and_then_is_never_held_back() {
        let mut limit = Limit::default();
        for n in 0..1000 {
            assert_eq!(limit.take(at(n * 500)), Ok(()), "{n}");
        }
        assert_eq!(limit.wait(at(500_000)), None);
    }

    #[test]
    fn a_quarrel_is_answered_ever_more_slowly_and_forgotten_when_it_is_over() {
        let mut limit = Limit::default();
        let mut now = at(0);
        let mut waits = Vec::new();
        while waits.last() != Some(&MAX_WAIT) {
            match limit.take(now) {
                Ok(()) => {}
                Err(until) => {
                    waits.push(until.since(now));
                    now = until;
                }
            }
        }
        let seconds: Vec<f64> = waits.iter().map(Duration::as_secs_f64).collect();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]);
        assert_eq!(limit.wait(now), Some(MAX_WAIT));
        assert_eq!((limit.take(now), limit.take(now)), (Ok(()), Err(now + MAX_WAIT)));
        let later = now + CALM;
        assert_eq!(limit.wait(later), None);
        let burst = (0..).take_while(|_| limit.take(later).is_ok()).count();
        assert_eq!(burst, 20);
    }

    #[test]
    fn a_repair_that_does_not_help_makes_the_next_one_wait() {
        let mut limit = Limit::default();
        assert_eq!(limit.take(at(0)), Ok(()));
        let next = limit.penalise(at(0));
        assert_eq!((next, limit.take(at(1))), (at(500), Err(next)));
        assert_eq!(limit.penalise(at(1)), next, "one wait is enough");
        assert_eq!((limit.take(next), limit.take(next)), (Ok(()), Err(at(1500))));
    }
}
