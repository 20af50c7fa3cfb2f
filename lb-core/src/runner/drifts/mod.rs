//! When the datapath is inspected, what follows from the differences, and which of them are reported.

mod limit;
mod outcome;
mod records;
mod schedule;
#[cfg(test)]
mod tests;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};
use core::{cmp::Reverse, time::Duration};

pub(super) use self::outcome::{Look, Repair};
use self::{
    limit::Limits,
    records::{IN_A_ROW, Records, key},
};
pub use self::{
    outcome::Inspected,
    records::{DriftOutcome, DriftRecord},
};
use crate::{
    drift::{Drift, DriftClass},
    time::Instant,
};

/// An object that was repaired so often in a row is fought about.
const FOUGHT: u32 = 5;

/// What a [`Runner`](super::Runner) does about changes that others make to the datapath.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriftMode {
    /// Report them and repair them.
    #[default]
    Repair,
    /// Report them and leave them.
    Alert,
    /// Inspect only when [asked](super::Runner::inspect_now), and leave them.
    Off,
}

/// What is known of drift: how often the datapath was inspected, what was found, and what became of it.
#[derive(Debug)]
pub struct Drifts {
    mode: DriftMode,
    interval: Duration,
    watched: bool,
    records: Records,
    limits: Limits,
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

impl Drifts {
    pub(super) fn new(mode: DriftMode, interval: Duration) -> Self {
        Self {
            mode,
            interval,
            watched: false,
            records: Records::default(),
            limits: Limits::default(),
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

    /// What is done about drift.
    #[must_use]
    pub const fn mode(&self) -> DriftMode {
        self.mode
    }

    /// The time from one full inspection to the next.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether a watcher reports when others change the datapath.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.watched
    }

    pub(super) const fn set_watched(&mut self, watched: bool) {
        self.watched = watched;
    }

    /// The number of full inspections.
    #[must_use]
    pub const fn inspections(&self) -> u64 {
        self.inspections
    }

    /// How long the last full inspection took.
    #[must_use]
    pub const fn inspection_took(&self) -> Duration {
        self.full_took
    }

    /// How many differences were found, by class of their objects.
    #[must_use]
    pub const fn found(&self) -> &BTreeMap<DriftClass, u64> {
        &self.found
    }

    /// How many differences were repaired, by class of their objects.
    #[must_use]
    pub const fn repaired(&self) -> &BTreeMap<DriftClass, u64> {
        &self.repaired
    }

    /// Differences that are not right by now.
    pub fn open(&self) -> impl Iterator<Item = &DriftRecord> {
        self.records.open()
    }

    /// Records of the differences in `found`, and records of what is right by now, the latest first. At most 1,000
    /// differences are remembered, each for an hour after it is right.
    #[must_use]
    pub fn listed(&self, found: &[Drift]) -> (Vec<&DriftRecord>, Vec<&DriftRecord>) {
        let keys: BTreeSet<_> = found.iter().map(key).collect();
        let (is_now, mut before): (Vec<&DriftRecord>, Vec<&DriftRecord>) =
            self.records.iter().partition(|record| keys.contains(&key(&record.drift)));
        before.sort_by_key(|record| Reverse(record.found_at));
        (is_now, before)
    }

    /// What an operator should know at `now`: type and message of each condition, `Drift` and `DriftFought`.
    #[must_use]
    pub fn conditions(&self, now: Instant) -> Vec<(&'static str, String)> {
        let mut conditions = Vec::new();
        if let Some(oldest) = self.records.open().min_by_key(|record| record.found_at) {
            let (count, age) = (self.records.open().count(), now.since(oldest.found_at).as_secs());
            let why = match &oldest.outcome {
                DriftOutcome::NotRepaired(why) => format!(", not repaired: {why}"),
                DriftOutcome::Found | DriftOutcome::Repaired | DriftOutcome::Gone => String::new(),
            };
            let (what, wait) = (&oldest.drift, self.waiting(now));
            conditions.push(("Drift", format!("{count} in all, the oldest for {age} s: {what}{why}{wait}")));
        }
        conditions.extend(self.fought(now).map(|message| ("DriftFought", message)));
        conditions
    }

    fn waiting(&self, now: Instant) -> String {
        let wait = self.limits.wait(now);
        wait.map(|wait| format!("; repairs wait for {:.1} s", wait.as_secs_f64())).unwrap_or_default()
    }

    /// Who keeps changing what, if anybody does.
    fn fought(&self, now: Instant) -> Option<String> {
        let is_recent = |record: &&DriftRecord| now.since(record.right_at.unwrap_or(record.found_at)) < IN_A_ROW;
        let most = self.records.iter().filter(is_recent).max_by_key(|record| record.times)?;
        if most.times < FOUGHT {
            return None;
        }
        let wait = self.waiting(now);
        let Drift { class, object, cause, .. } = &most.drift;
        Some(format!("{class} {object} is {cause}, {} times in a row{wait}: find out which tool that is", most.times))
    }
}
