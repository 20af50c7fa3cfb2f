//! Drift in the log, for those who follow it, and in the words of the API.

mod feed;
#[cfg(test)]
mod tests;
pub(crate) mod words;

use std::time::Duration;

use lb_core::{
    drift::{Cause, Drift},
    runner::{DriftOutcome, DriftRecord, Inspected},
    time::Instant,
};

pub(crate) use self::feed::{Feed, Subscription};
use self::words::told;
use crate::{api::DriftNews, config};

/// Most differences of one inspection that are logged one by one.
const MAX_LOGGED: usize = 10;

impl From<config::DriftMode> for lb_core::runner::DriftMode {
    fn from(mode: config::DriftMode) -> Self {
        match mode {
            config::DriftMode::Repair => Self::Repair,
            config::DriftMode::Alert => Self::Alert,
            config::DriftMode::Off => Self::Off,
        }
    }
}

/// Logs what an inspection brought.
pub(crate) fn log(inspected: &Inspected) {
    if let Some(error) = &inspected.repair_error {
        tracing::warn!(%error, "drift was repaired in part only");
    }
    for record in inspected.new.iter().take(MAX_LOGGED) {
        let Drift { class, object, difference, cause } = &record.drift;
        tracing::warn!(%class, object, %difference, %cause, "drift");
    }
    let more = inspected.new.len().saturating_sub(MAX_LOGGED) + inspected.unlisted;
    if more > 0 {
        let cause = inspected.cause.map_or("various", Cause::as_str);
        tracing::warn!(more, cause, "drift of more objects; see `lb drift`");
    }
    let with = |outcome| inspected.changed.iter().filter(move |record| record.outcome == outcome);
    for record in with(DriftOutcome::Gone) {
        tracing::info!(what = %record.drift, "drift resolved by itself");
    }
    let mut repaired = with(DriftOutcome::Repaired).peekable();
    if let Some(first) = repaired.peek().map(|record| record.drift.to_string()) {
        tracing::info!(differences = repaired.count(), first, "drift repaired");
    }
}

impl Feed {
    /// Tells those who follow what an inspection brought; `wall` is the time since 1970 now.
    pub(crate) fn tell(&mut self, inspected: &Inspected, now: Instant, wall: Duration) {
        if self.is_idle() {
            return;
        }
        let news = |records: &[DriftRecord]| {
            records.iter().map(|record| DriftNews::Difference(Box::new(told(record, now, wall)))).collect()
        };
        // Apart from what became of it: a batch may be cut short, and whoever waits for a repair must hear of it.
        self.publish(news(&inspected.new), inspected.unlisted);
        self.publish(news(&inspected.changed), 0);
    }
}
