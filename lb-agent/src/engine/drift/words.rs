//! Drift in the words of the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_core::{
    drift::{Drift, DriftClass},
    time::Instant,
};

use super::{
    Drifts,
    records::{IN_A_ROW, Record, Status, key},
};
use crate::api::{DriftOutcome, DriftRecord, DriftStatus};

/// An object that was repaired so often in a row is fought about.
const FOUGHT: u32 = 5;

impl Drifts {
    /// What is about any of `found`, and what was found before and is right by now, the latest first.
    pub(crate) fn listed(&self, found: &[Drift], now: Instant, wall: Duration) -> (Vec<DriftRecord>, Vec<DriftRecord>) {
        let keys: BTreeSet<_> = found.iter().map(key).collect();
        let (is_now, mut before): (Vec<&Record>, Vec<&Record>) =
            self.records.iter().partition(|record| keys.contains(&key(&record.drift)));
        before.sort_by_key(|record| std::cmp::Reverse(record.found_at));
        let told = |records: Vec<&Record>| records.into_iter().map(|record| told(record, now, wall)).collect();
        (told(is_now), told(before))
    }

    pub(crate) fn status(&self) -> DriftStatus {
        let named =
            |counts: &BTreeMap<DriftClass, u64>| counts.iter().map(|(&class, &count)| (class.into(), count)).collect();
        DriftStatus {
            mode: self.mode.into(),
            watched: self.watched,
            interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            inspections: self.inspections,
            inspection_us: u64::try_from(self.full_took.as_micros()).unwrap_or(u64::MAX),
            open: self.records.open().count() as u64,
            watchers: self.feed.watchers() as u64,
            found: named(&self.found),
            repaired: named(&self.repaired),
        }
    }

    /// What an operator should know: type and message of each condition.
    pub(crate) fn conditions(&self, now: Instant) -> Vec<(&'static str, String)> {
        let mut conditions = Vec::new();
        if let Some(oldest) = self.records.open().min_by_key(|record| record.found_at) {
            let (count, age) = (self.records.open().count(), now.since(oldest.found_at).as_secs());
            let why = match &oldest.status {
                Status::NotRepaired(why) => format!(", not repaired: {why}"),
                Status::Found | Status::Repaired | Status::Gone => String::new(),
            };
            let what = oldest.what();
            let wait = self.waiting(now);
            conditions
                .push(("Drift", format!("{count} in all, the oldest for {age} s: {what}{why}{wait}; see `lb drift`")));
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
        let is_recent = |record: &&Record| now.since(record.right_at.unwrap_or(record.found_at)) < IN_A_ROW;
        let most = self.records.iter().filter(is_recent).max_by_key(|record| record.times)?;
        if most.times < FOUGHT {
            return None;
        }
        let wait = self.waiting(now);
        let Drift { class, object, cause, .. } = &most.drift;
        Some(format!("{class} {object} is {cause}, {} times in a row{wait}: find out which tool that is", most.times))
    }
}

/// A record in the words of the API.
pub(super) fn told(record: &Record, now: Instant, wall: Duration) -> DriftRecord {
    let age = now.since(record.found_at);
    let (expected, found) = match &record.drift.difference {
        lb_core::drift::Difference::Wrong { expected, found } => (Some(expected.clone()), Some(found.clone())),
        lb_core::drift::Difference::Missing | lb_core::drift::Difference::Extra => (None, None),
    };
    let (status, detail) = match &record.status {
        Status::Found => (DriftOutcome::Found, None),
        Status::Repaired => (DriftOutcome::Repaired, None),
        Status::NotRepaired(why) => (DriftOutcome::NotRepaired, Some(why.clone())),
        Status::Gone => (DriftOutcome::Gone, None),
    };
    let whole = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    DriftRecord {
        class: record.drift.class.into(),
        object: record.drift.object.clone(),
        difference: (&record.drift.difference).into(),
        expected,
        found,
        cause: record.drift.cause.into(),
        status,
        detail,
        found_unix_ms: whole(wall.saturating_sub(age).as_millis()),
        age_ms: whole(age.as_millis()),
        right_after_us: record.right_at.map(|right| whole(right.since(record.found_at).as_micros())),
        times: record.times,
    }
}
