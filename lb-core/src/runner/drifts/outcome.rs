//! What an inspection found, and what was done about it.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::time::Duration;

use super::{
    Drifts,
    records::{DriftOutcome, DriftRecord, Key, Noted, cause_of, key},
};
use crate::{
    datapath::ApplyError,
    drift::{Cause, Drift, DriftClass, Inspection},
    time::Instant,
};

/// What an inspection found, and what was done about it.
#[derive(Debug)]
pub struct Inspected {
    /// How much was inspected.
    pub inspection: Inspection,
    /// Whether the inspection was [asked for](crate::runner::Runner::inspect_now).
    pub asked: bool,
    /// How long it took, without the repair.
    pub took: Duration,
    /// Every difference that it found.
    pub found: Vec<Drift>,
    /// Those of them that were not known.
    pub new: Vec<DriftRecord>,
    /// How many differences are too many to be remembered, and are therefore not in `new`.
    pub unlisted: usize,
    /// The cause of all differences, if they have one and the same.
    pub cause: Option<Cause>,
    /// Differences of which something else became than was known: those that went away, those that were repaired, and
    /// those that were not, in this order.
    pub changed: Vec<DriftRecord>,
    /// Why the repair failed, for some objects or for all.
    pub repair_error: Option<ApplyError>,
}

/// One look at the datapath.
#[derive(Debug)]
pub(in crate::runner) struct Look {
    pub(in crate::runner) inspection: Inspection,
    pub(in crate::runner) asked: bool,
    pub(in crate::runner) found: Vec<Drift>,
    /// When it was done.
    pub(in crate::runner) at: Instant,
    /// How long it took.
    pub(in crate::runner) took: Duration,
    /// How much of a processor it took: less than the former if others were busy, too.
    pub(in crate::runner) cpu: Duration,
}

/// What was done about what an inspection found.
#[derive(Debug)]
pub(in crate::runner) enum Repair {
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
    /// Takes an inspection in.
    pub(in crate::runner) fn handle_inspected(&mut self, look: Look, repair: Repair, now: Instant) -> Inspected {
        self.schedule(&look, now);
        let Noted { new, unlisted } = self.records.note(&look.found, look.at);
        count(&mut self.found, &new);
        let mut changed = Vec::new();
        let keys: BTreeSet<_> = look.found.iter().map(key).collect();
        if look.inspection == Inspection::Everything {
            changed = self.records.settle(|known| !keys.contains(known), &DriftOutcome::Gone, look.at);
        }
        match repair {
            Repair::None => {}
            Repair::HeldBack { until } => {
                self.repair_at = Some(until);
                // Why the last repair did not help says more than that the next one waits.
                let untold: BTreeSet<_> = self.records.untold().collect();
                let why = DriftOutcome::NotRepaired("it was repaired too often lately and has to wait".into());
                let about = |known: &_| keys.contains(known) && untold.contains(known);
                changed.extend(self.records.settle(about, &why, now));
            }
            Repair::Tried { at, still, failed } => {
                changed.extend(self.note_repair(&keys, at, &still, &failed));
                if !failed.is_empty() || still.iter().any(|drift| keys.contains(&key(drift))) {
                    self.repair_at = Some(self.limits.penalise(now));
                } else if !still.is_empty() {
                    self.handle_missed(now);
                }
            }
        }
        let Look { inspection, asked, found, took, .. } = look;
        let cause = cause_of(&found);
        Inspected { inspection, asked, took, found, new, unlisted, cause, changed, repair_error: None }
    }

    fn note_repair(
        &mut self,
        keys: &BTreeSet<Key>,
        at: Instant,
        still: &[Drift],
        failed: &[(String, String)],
    ) -> Vec<DriftRecord> {
        let still: BTreeSet<_> = still.iter().map(key).collect();
        let why = |object: &str| failed.iter().find(|(name, _)| object.starts_with(name.as_str())).map(|(_, why)| why);
        let right = |known: &Key| keys.contains(known) && !still.contains(known) && why(&known.1).is_none();
        let mut changed = self.records.settle(right, &DriftOutcome::Repaired, at);
        count(&mut self.repaired, &changed);
        for known in keys.iter().filter(|known| !right(known)) {
            let why = why(&known.1).map_or("the difference was back right after the repair", String::as_str);
            let outcome = DriftOutcome::NotRepaired(why.into());
            changed.extend(self.records.settle(|other| other == known, &outcome, at));
        }
        changed
    }
}

fn count(counts: &mut BTreeMap<DriftClass, u64>, records: &[DriftRecord]) {
    for record in records {
        *counts.entry(record.drift.class).or_default() += 1;
    }
}
