//! What an inspection found, and what was done about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_core::{
    drift::{Drift, DriftClass, Inspection},
    time::Instant,
};

use super::{
    Drifts, Inspected, Repair,
    records::{Noted, Record, Status, cause_of, key},
    words::told,
};
use crate::api::DriftNews;

/// Most differences of one inspection that are logged one by one.
const MAX_LOGGED: usize = 10;

impl Drifts {
    /// Takes an inspection in; `wall` is the time since 1970 now. Gives how many differences it could not list.
    pub(crate) fn handle_inspected(&mut self, inspected: &Inspected, now: Instant, wall: Duration) -> usize {
        self.schedule(inspected, now);
        let found_at = inspected.at;
        let Noted { new, unlisted } = self.records.note(&inspected.found, found_at);
        count(&mut self.found, &new);
        log_found(&new, unlisted, cause_of(&inspected.found));
        // Apart from what became of it: a batch may be cut short, and whoever waits for a repair must hear of it.
        self.tell(&new, unlisted, now, wall);
        let mut changed = Vec::new();
        let keys: BTreeSet<_> = inspected.found.iter().map(key).collect();
        if inspected.inspection == Inspection::Everything {
            let gone = self.records.settle(|known| !keys.contains(known), &Status::Gone, found_at);
            gone.iter().for_each(|record| tracing::info!(what = record.what(), "drift resolved by itself"));
            changed.extend(gone);
        }
        match &inspected.repair {
            Repair::None => {}
            Repair::HeldBack { until } => {
                self.repair_at = Some(*until);
                // Why the last repair did not help says more than that the next one waits.
                let untold: BTreeSet<_> = self.records.untold().collect();
                let why = Status::NotRepaired("it was repaired too often lately and has to wait".into());
                let about = |known: &_| keys.contains(known) && untold.contains(known);
                changed.extend(self.records.settle(about, &why, now));
            }
            Repair::Tried { at, still, failed } => {
                changed.extend(self.note_repair(&keys, *at, still, failed));
                if !failed.is_empty() || still.iter().any(|drift| keys.contains(&key(drift))) {
                    self.repair_at = Some(self.limits.penalise(now));
                } else if !still.is_empty() {
                    self.handle_missed(now);
                }
            }
        }
        self.tell(&changed, 0, now, wall);
        unlisted
    }

    fn note_repair(
        &mut self,
        keys: &BTreeSet<(DriftClass, String, &'static str)>,
        at: Instant,
        still: &[Drift],
        failed: &[(String, String)],
    ) -> Vec<Record> {
        let still: BTreeSet<_> = still.iter().map(key).collect();
        let why = |object: &str| failed.iter().find(|(name, _)| object.starts_with(name.as_str())).map(|(_, why)| why);
        let right = |known: &(DriftClass, String, &'static str)| {
            keys.contains(known) && !still.contains(known) && why(&known.1).is_none()
        };
        let mut changed = self.records.settle(right, &Status::Repaired, at);
        count(&mut self.repaired, &changed);
        if !changed.is_empty() {
            tracing::info!(differences = changed.len(), first = changed[0].what(), "drift repaired");
        }
        for known in keys.iter().filter(|known| !right(known)) {
            let why = why(&known.1).map_or("the difference was back right after the repair", String::as_str);
            let status = Status::NotRepaired(why.into());
            changed.extend(self.records.settle(|other| other == known, &status, at));
        }
        changed
    }

    fn tell(&mut self, changed: &[Record], unlisted: usize, now: Instant, wall: Duration) {
        if self.feed.is_idle() {
            return;
        }
        let news = changed.iter().map(|record| DriftNews::Difference(Box::new(told(record, now, wall)))).collect();
        self.feed.publish(news, unlisted);
    }
}

fn count(counts: &mut BTreeMap<DriftClass, u64>, records: &[Record]) {
    for record in records {
        *counts.entry(record.drift.class).or_default() += 1;
    }
}

fn log_found(new: &[Record], unlisted: usize, cause: Option<lb_core::drift::Cause>) {
    for record in new.iter().take(MAX_LOGGED) {
        let Drift { class, object, difference, cause } = &record.drift;
        tracing::warn!(%class, object, %difference, %cause, "drift");
    }
    let more = new.len().saturating_sub(MAX_LOGGED) + unlisted;
    if more > 0 {
        let cause = cause.map_or("various", lb_core::drift::Cause::as_str);
        tracing::warn!(more, cause, "drift of more objects; see `lb drift`");
    }
}
