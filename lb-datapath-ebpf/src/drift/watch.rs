//! Notices that a map or link was unpinned, or that a link was detached.

use std::{
    thread,
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
}

impl PinWatcher {
    pub(crate) fn new(shared: SharedAnchors) -> Self {
        Self { shared, known: Vec::new(), repairs: 0, next: Instant::now() }
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
            thread::sleep(until.saturating_duration_since(Instant::now()));
            if Instant::now() < self.next {
                return Ok(false);
            }
            self.next = Instant::now() + PERIOD;
            if self.look()? {
                return Ok(true);
            }
        }
    }
}
