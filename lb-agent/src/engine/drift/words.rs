//! Drift in the words of the API.

use std::{collections::BTreeMap, time::Duration};

use lb_core::{
    drift::DriftClass,
    runner::{DriftOutcome as Became, DriftRecord, Drifts},
    time::Instant,
};

use crate::{
    api::{self, DriftOutcome, DriftStatus},
    config::DriftMode,
};

/// What is known of drift; `watchers` follow it.
pub(crate) fn status(drifts: &Drifts, mode: DriftMode, watchers: usize) -> DriftStatus {
    let named =
        |counts: &BTreeMap<DriftClass, u64>| counts.iter().map(|(&class, &count)| (class.into(), count)).collect();
    DriftStatus {
        mode: mode.into(),
        watched: drifts.is_watched(),
        interval_ms: u64::try_from(drifts.interval().as_millis()).unwrap_or(u64::MAX),
        inspections: drifts.inspections(),
        inspection_us: u64::try_from(drifts.inspection_took().as_micros()).unwrap_or(u64::MAX),
        open: drifts.open().count() as u64,
        watchers: watchers as u64,
        found: named(drifts.found()),
        repaired: named(drifts.repaired()),
    }
}

/// What an operator should know: type and message of each condition.
pub(crate) fn conditions(drifts: &Drifts, now: Instant) -> Vec<(&'static str, String)> {
    let mut conditions = drifts.conditions(now);
    for (_, message) in conditions.iter_mut().filter(|(kind, _)| *kind == "Drift") {
        message.push_str("; see `lb drift`");
    }
    conditions
}

/// A record in the words of the API.
pub(crate) fn told(record: &DriftRecord, now: Instant, wall: Duration) -> api::DriftRecord {
    let age = now.since(record.found_at);
    let (expected, found) = match &record.drift.difference {
        lb_core::drift::Difference::Wrong { expected, found } => (Some(expected.clone()), Some(found.clone())),
        lb_core::drift::Difference::Missing | lb_core::drift::Difference::Extra => (None, None),
    };
    let (status, detail) = match &record.outcome {
        Became::Found => (DriftOutcome::Found, None),
        Became::Repaired => (DriftOutcome::Repaired, None),
        Became::NotRepaired(why) => (DriftOutcome::NotRepaired, Some(why.clone())),
        Became::Gone => (DriftOutcome::Gone, None),
    };
    let whole = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    api::DriftRecord {
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
