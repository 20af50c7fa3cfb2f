//! How sources say that they have news.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Wakes the agent for one source. Cheap to clone, and to be used from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    bell: Arc<Bell>,
    source: usize,
}

impl Waker {
    pub(super) fn new(bell: Arc<Bell>, source: usize) -> Self {
        Self { bell, source }
    }

    /// Has the source polled. Wakes that come before it is are one. False when the agent is gone: nobody will ever
    /// poll.
    pub fn wake(&self) -> bool {
        self.bell.ring(self.source)
    }

    /// Whether the agent is gone: nobody will ever poll.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.bell.is_closed()
    }

    /// A waker for tests of sources, and what waits for it: it returns whether the source woke within a time.
    pub fn detached() -> (Self, impl FnMut(Duration) -> bool) {
        let bell = Arc::new(Bell::default());
        let heard = Arc::clone(&bell);
        (Self { bell, source: 0 }, move |patience| !heard.wait(Some(patience)).is_empty())
    }
}

/// What wakers ring and one thread hears.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct State {
    sources: BTreeSet<usize>,
    is_closed: bool,
}

impl Bell {
    fn ring(&self, source: usize) -> bool {
        let mut state = self.state();
        state.sources.insert(source);
        self.rung.notify_one();
        !state.is_closed
    }

    /// Nobody listens from now on.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.rung.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Sources that rang since the last time; none if none did within `patience`, or nobody should listen any more.
    pub(super) fn wait(&self, patience: Option<Duration>) -> BTreeSet<usize> {
        let is_quiet = |state: &mut State| state.sources.is_empty() && !state.is_closed;
        let mut state = match patience {
            Some(patience) => {
                let waited = self.rung.wait_timeout_while(self.state(), patience, is_quiet);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.rung.wait_while(self.state(), is_quiet).unwrap_or_else(PoisonError::into_inner),
        };
        std::mem::take(&mut state.sources)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_before_a_poll_are_one_and_name_their_source() {
        let bell = Arc::new(Bell::default());
        let wakers = [0, 1, 2].map(|source| Waker::new(Arc::clone(&bell), source));
        assert!(wakers[2].wake() && wakers[0].wake() && wakers[2].wake());
        assert_eq!(bell.wait(None), [0, 2].into());
        assert!(bell.wait(Some(Duration::ZERO)).is_empty());
    }

    #[test]
    fn a_closed_bell_lets_both_sides_go() {
        let bell = Arc::new(Bell::default());
        bell.close();
        assert!(bell.wait(None).is_empty() && bell.is_closed());
        assert!(!Waker::new(bell, 0).wake());
    }
}
