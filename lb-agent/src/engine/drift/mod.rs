//! When the datapath is inspected, what follows from the differences, and which of them are reported. Without I/O: time
//! is an argument.

mod feed;
mod limit;
mod outcome;
mod records;
mod schedule;
#[cfg(test)]
mod tests;
mod words;

use std::{collections::BTreeMap, time::Duration};

use lb_core::{
    drift::{Drift, DriftClass, Inspection},
    time::Instant,
};

pub(crate) use self::feed::Subscription;
use self::{feed::Feed, limit::Limits, records::Records};
use crate::config::DriftMode;

/// The machine.
#[derive(Debug)]
pub(crate) struct Drifts {
    mode: DriftMode,
    interval: Duration,
    watched: bool,
    records: Records,
    limits: Limits,
    feed: Feed,
    full_at: Option<Instant>,
    suspects_at: Option<Instant>,
    repair_at: Option<Instant>,
    quiet_until: Instant,
    inspections: u64,
    full_took: Duration,
    full_cpu: Duration,
    full_done: Instant,
    found: BTreeMap<DriftClass, u64>,
    repaired: BTreeMap<DriftClass, u64>,
}

/// An inspection and what was done about it.
#[derive(Debug)]
pub(crate) struct Inspected {
    pub(crate) inspection: Inspection,
    pub(crate) found: Vec<Drift>,
    /// When it was done.
    pub(crate) at: Instant,
    /// How long it took.
    pub(crate) took: Duration,
    /// How much of a processor it took: less than the former if others were busy, too.
    pub(crate) cpu: Duration,
    pub(crate) repair: Repair,
}

/// What was done about what an inspection found.
#[derive(Debug)]
pub(crate) enum Repair {
    /// Nothing: nothing was found, or that is not wanted.
    None,
    /// Nothing yet: it was repaired too often lately.
    HeldBack {
        /// When it may be repaired.
        until: Instant,
    },
    /// A repair was tried.
    Tried {
        /// When it was over.
        at: Instant,
        /// What was found when looked again, and why it is still there.
        still: Vec<Drift>,
        /// Why it did not succeed, by the beginning of the object's name: empty for everything.
        failed: Vec<(String, String)>,
    },
}

impl Drifts {
    pub(crate) fn new(mode: DriftMode, interval: Duration) -> Self {
        Self {
            mode,
            interval,
            watched: false,
            records: Records::default(),
            limits: Limits::default(),
            feed: Feed::default(),
            full_at: None,
            suspects_at: None,
            repair_at: None,
            quiet_until: Instant::default(),
            inspections: 0,
            full_took: Duration::ZERO,
            full_cpu: Duration::ZERO,
            full_done: Instant::default(),
            found: BTreeMap::new(),
            repaired: BTreeMap::new(),
        }
    }

    pub(crate) fn mode(&self) -> DriftMode {
        self.mode
    }

    /// Whether somebody says when others change what the datapath holds.
    pub(crate) fn set_watched(&mut self, watched: bool) {
        self.watched = watched;
    }

    /// Follows what is found and repaired from now on.
    pub(crate) fn subscribe(&mut self) -> Option<Subscription> {
        self.feed.subscribe()
    }
}
