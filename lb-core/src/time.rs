//! Time as the caller passes it: points in time, and the wait before something that failed is tried again.

use core::{ops::Add, time::Duration};

/// A point on the caller's monotonic clock: the time since an origin that the caller chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The point `since_origin` after the origin.
    #[must_use]
    pub const fn new(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// Time since the origin.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Time since `earlier`; zero if that lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Stops at the end of time instead of overflowing.
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

/// How long to wait before something that failed is tried again: the wait doubles with each failure in a row.
///
/// A back-off has no clock and draws no random numbers. `T` is a point on whichever clock the caller uses; it only
/// needs to add a [`Duration`].
///
/// ```
/// use core::time::Duration;
/// use lb_core::time::{Backoff, Instant};
///
/// let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
/// let now = Instant::default();
/// assert!(backoff.is_over(now), "nothing has failed yet");
/// assert_eq!([(); 3].map(|()| backoff.fail(now).as_secs()), [1, 2, 3]);
/// assert_eq!(backoff.until(), Some(now + Duration::from_secs(3)));
/// backoff.reset();
/// assert_eq!(backoff.until(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff<T = Instant> {
    min: Duration,
    max: Duration,
    wait: Option<Wait<T>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait<T> {
    delay: Duration,
    until: T,
}

impl<T: Copy + PartialOrd + Add<Duration, Output = T>> Backoff<T> {
    /// A back-off of `min` after the first failure and of at most `max` after any. Nothing has failed yet.
    #[must_use]
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, wait: None }
    }

    /// A back-off that always lasts for `delay`.
    #[must_use]
    pub const fn constant(delay: Duration) -> Self {
        Self::new(delay, delay)
    }

    /// Notes a failure at `now` and returns how long to wait.
    pub fn fail(&mut self, now: T) -> Duration {
        let delay = self.wait.map_or(self.min, |wait| wait.delay.saturating_mul(2)).min(self.max);
        self.wait = Some(Wait { delay, until: now + delay });
        delay
    }

    /// Notes a success: the next failure is the first again.
    pub const fn reset(&mut self) {
        self.wait = None;
    }

    /// When to try again; `None` unless the last attempt failed.
    #[must_use]
    pub fn until(&self) -> Option<T> {
        self.wait.map(|wait| wait.until)
    }

    /// How long the wait after the last failure is; zero unless the last attempt failed.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.wait.map_or(Duration::ZERO, |wait| wait.delay)
    }

    /// Whether the next attempt may be made at `now`: the wait is half-open, so it is over at [`until`](Self::until).
    #[must_use]
    pub fn is_over(&self, now: T) -> bool {
        self.wait.is_none_or(|wait| now >= wait.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Instant {
        Instant::new(Duration::from_millis(millis))
    }

    #[test]
    fn the_wait_doubles_up_to_its_longest_and_starts_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let delays: [u128; 5] = [(); 5].map(|()| backoff.fail(at(0)).as_millis());
        assert_eq!(delays, [200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.delay(), Duration::from_secs(1));
        backoff.reset();
        assert_eq!((backoff.delay(), backoff.until()), (Duration::ZERO, None));
        assert_eq!((backoff.fail(at(50)), backoff.until()), (Duration::from_millis(200), Some(at(250))));
    }

    #[test]
    fn the_wait_is_over_when_its_end_is_reached() {
        let mut backoff = Backoff::constant(Duration::from_secs(5));
        assert!(backoff.is_over(at(0)));
        backoff.fail(at(1000));
        assert!(!backoff.is_over(at(5999)) && backoff.is_over(at(6000)));
        assert_eq!(backoff.fail(at(6000)), Duration::from_secs(5));
    }

    #[test]
    fn the_longest_waits_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX / 2 + Duration::from_secs(1), Duration::MAX);
        backoff.fail(at(1));
        assert_eq!(backoff.fail(at(1)), Duration::MAX);
        assert!(!backoff.is_over(at(1)));
    }
}
