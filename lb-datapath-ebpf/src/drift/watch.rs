//! Notices that a map or link was unpinned, or that a link was detached.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use lb_core::{
    datapath::{DatapathError, Watcher},
    drift::Drift,
};

use crate::pins::anchors::SharedAnchors;

/// Time between two looks at pins and links. The kernel has no notification for a link that is detached.
const PERIOD: Duration = Duration::from_millis(50);

/// Looks at pins and links every [`PERIOD`].
#[derive(Debug)]
pub(crate) struct PinWatcher {
    shared: SharedAnchors,
    known: Vec<Drift>,
    repairs: u64,
    next: Instant,
    sleep: Arc<Sleep>,
}

/// A sleep that another thread can end.
#[derive(Debug, Default)]
struct Sleep {
    woken: Mutex<bool>,
    wakes: Condvar,
}

impl Sleep {
    /// Whether it ended before `until`.
    fn until(&self, until: Instant) -> bool {
        let woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.wakes.wait_timeout_while(woken, left, |woken| !*woken);
        let (mut woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut woken)
    }
}

impl Wake for Sleep {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wakes.notify_all();
    }
}

impl PinWatcher {
    pub(crate) fn new(shared: SharedAnchors) -> Self {
        Self { shared, known: Vec::new(), repairs: 0, next: Instant::now(), sleep: Arc::default() }
    }

    /// Whether there is drift that the last look did not find.
    fn look(&mut self) -> Result<bool, DatapathError> {
        let anchors = self.shared.lock();
        let Some(anchors) = anchors.as_ref() else { return Ok(false) };
        let found = anchors.check()?;
        if self.repairs != anchors.repairs() {
            // The same drift after a repair is new.
            self.known.clear();
            self.repairs = anchors.repairs();
        }
        let news = found.iter().any(|drift| !self.known.contains(drift));
        self.known = found;
        Ok(news)
    }
}

impl Watcher for PinWatcher {
    fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError> {
        let deadline = Instant::now() + timeout;
        loop {
            let until = self.next.min(deadline);
            if self.sleep.until(until) || Instant::now() < self.next {
                return Ok(false);
            }
            self.next = Instant::now() + PERIOD;
            if self.look()? {
                return Ok(true);
            }
        }
    }

    fn waker(&self) -> Option<Waker> {
        Some(Arc::clone(&self.sleep).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_ended_from_another_thread_once() {
        let mut watcher = PinWatcher::new(SharedAnchors::default());
        watcher.waker().unwrap().wake();
        let start = Instant::now();
        assert!(!watcher.wait(Duration::from_secs(3600)).unwrap());
        assert!(start.elapsed() < Duration::from_secs(1800));
        assert!(!watcher.sleep.until(Instant::now()), "the next wait is a whole one");
    }
}
