//! When the datapath is inspected, and when what is found may be repaired.

use core::time::Duration;

use crate::{
    drift::{Drift, Inspection},
    time::Instant,
};

use super::{DriftMode, Drifts, Look};

/// A full inspection is followed by so many times the processor time that it took: half a per cent of a processor.
const FULL_SHARE: u32 = 200;
/// An inspection of suspects is followed by so many times the processor time that it took, so that whoever changes
/// things all the time does not keep a processor busy.
const SUSPECTS_SHARE: u32 = 4;
/// How soon a full inspection follows when suspects had drifted: who changed one thing may have changed others.
const SOON: Duration = Duration::from_secs(1);
/// How soon an inspection that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

impl Drifts {
    /// From now on the datapath holds what it should.
    pub(in crate::runner) fn begin(&mut self, now: Instant) {
        if self.mode != DriftMode::Off {
            self.full_at = Some(now);
        }
    }

    /// Something happened that deserves an inspection of the suspects.
    pub(in crate::runner) fn handle_suspicion(&mut self, now: Instant) {
        if self.mode != DriftMode::Off {
            let at = now.max(self.quiet_until);
            self.suspects_at.get_or_insert(at);
        }
    }

    /// Something may have been missed.
    pub(in crate::runner) fn handle_missed(&mut self, now: Instant) {
        self.full_at = self.full_at.map(|at| at.min(now.max(self.quiet_until)));
    }

    /// A plan was carried out. What it needed was put right with it: whatever is said to be wrong is looked for again,
    /// as soon as full inspections may follow each other.
    pub(in crate::runner) fn handle_applied(&mut self, now: Instant) {
        if self.records.open().next().is_some() {
            let soon = now.max(self.full_done + self.full_cpu * FULL_SHARE);
            self.full_at = self.full_at.map(|at| at.min(soon));
        }
    }

    /// What is to be inspected now.
    pub(in crate::runner) fn poll_inspection(&self, now: Instant) -> Option<Inspection> {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.full_at) || due(self.repair_at) {
            return Some(Inspection::Everything);
        }
        due(self.suspects_at).then_some(Inspection::Suspects)
    }

    /// When to poll again.
    pub(in crate::runner) fn poll_timeout(&self) -> Option<Instant> {
        [self.full_at, self.repair_at, self.suspects_at].into_iter().flatten().min()
    }

    /// Whether what was found is to be repaired, and may be by now.
    pub(in crate::runner) fn take_repair(&mut self, found: &[Drift], now: Instant) -> Option<Result<(), Instant>> {
        let is_new = found.iter().any(|drift| !self.records.is_familiar(drift, now));
        (self.mode == DriftMode::Repair && !found.is_empty()).then(|| self.limits.take(is_new, now))
    }

    /// The datapath could not be inspected.
    pub(in crate::runner) fn handle_inspection_failed(&mut self, now: Instant) {
        self.suspects_at = None;
        self.repair_at = None;
        self.full_at = self.full_at.map(|_| now + RETRY);
    }

    pub(super) fn schedule(&mut self, inspected: &Look, now: Instant) {
        self.suspects_at = None;
        self.quiet_until = now + inspected.cpu * SUSPECTS_SHARE;
        match inspected.inspection {
            Inspection::Everything => {
                self.inspections += 1;
                self.full_took = inspected.took;
                self.full_cpu = inspected.cpu;
                self.full_done = now;
                self.repair_at = None;
                self.full_at = self.full_at.map(|_| now + self.interval.max(inspected.cpu * FULL_SHARE));
            }
            Inspection::Suspects if !inspected.found.is_empty() => {
                let soon = now + SOON.max(self.full_cpu * FULL_SHARE);
                self.full_at = self.full_at.map(|at| at.min(soon));
            }
            Inspection::Suspects => {}
        }
    }
}
