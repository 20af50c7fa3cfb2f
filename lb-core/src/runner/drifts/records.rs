//! What drifted, and what became of it.

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use core::{fmt, time::Duration};

use crate::{
    drift::{Cause, Difference, Drift, DriftClass},
    time::Instant,
};

/// Most differences that are remembered, those that are right again included.
pub(super) const MAX_RECORDS: usize = 1000;
/// How long a difference is remembered after it is right again.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// An object that drifts again so soon after it was right drifts in a row.
pub(super) const IN_A_ROW: Duration = Duration::from_secs(60);
/// Longest name or value that is remembered; what others wrote may be of any length.
const MAX_TEXT: usize = 512;

/// One difference over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriftRecord {
    /// The difference, as found last. Names and values are cut after 512 characters.
    pub drift: Drift,
    /// What became of the difference.
    pub outcome: DriftOutcome,
    /// When the difference was found; the last time, if it came back.
    pub found_at: Instant,
    /// When the object was right again.
    pub right_at: Option<Instant>,
    /// How often the difference was found in a row: each time within a minute of the object being right.
    pub times: u32,
}

/// What became of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriftOutcome {
    /// Nothing was done about the difference.
    Found,
    /// The difference was repaired.
    Repaired,
    /// The difference could not be repaired, or not yet, and why.
    NotRepaired(String),
    /// The difference went away without a repair.
    Gone,
}

impl fmt::Display for DriftOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found => f.write_str("found"),
            Self::Repaired => f.write_str("repaired"),
            Self::NotRepaired(why) => write!(f, "not repaired: {why}"),
            Self::Gone => f.write_str("resolved by itself"),
        }
    }
}

/// Differences by what they are about.
#[derive(Debug, Default)]
pub(super) struct Records {
    records: BTreeMap<Key, DriftRecord>,
}

/// The values that were found are not part of it: somebody may write another one each time.
pub(super) type Key = (DriftClass, String, &'static str);

/// What a batch of differences brought.
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// Those that were not known to be there.
    pub(super) new: Vec<DriftRecord>,
    /// How many are too many to be remembered.
    pub(super) unlisted: usize,
}

impl Records {
    /// Takes in what was found at `now`.
    pub(super) fn note(&mut self, found: &[Drift], now: Instant) -> Noted {
        self.forget(now, found.len());
        let mut noted = Noted::default();
        for drift in found {
            let key = key(drift);
            let has_room = self.records.len() < MAX_RECORDS;
            match self.records.get_mut(&key) {
                Some(record) if record.right_at.is_none() => record.drift = clipped(drift),
                Some(record) => {
                    let in_a_row = record.right_at.is_some_and(|right| now.since(right) < IN_A_ROW);
                    let times = if in_a_row { record.times.saturating_add(1) } else { 1 };
                    *record = DriftRecord { times, ..DriftRecord::new(drift, now) };
                    noted.new.push(record.clone());
                }
                None if has_room => {
                    let record = DriftRecord::new(drift, now);
                    noted.new.push(record.clone());
                    self.records.insert(key, record);
                }
                None => noted.unlisted += 1,
            }
        }
        noted
    }

    /// Settles the open records that `about` selects, and returns those that changed.
    pub(super) fn settle(
        &mut self,
        about: impl Fn(&Key) -> bool,
        outcome: &DriftOutcome,
        now: Instant,
    ) -> Vec<DriftRecord> {
        let is_right = matches!(outcome, DriftOutcome::Repaired | DriftOutcome::Gone);
        let mut changed = Vec::new();
        for (key, record) in &mut self.records {
            if record.right_at.is_none() && record.outcome != *outcome && about(key) {
                record.outcome = outcome.clone();
                record.right_at = is_right.then_some(now);
                changed.push(record.clone());
            }
        }
        changed
    }

    /// Whether this is there already, or was a moment ago.
    pub(super) fn is_familiar(&self, drift: &Drift, now: Instant) -> bool {
        let known = self.records.get(&key(drift));
        known.is_some_and(|record| record.right_at.is_none_or(|right| now.since(right) < IN_A_ROW))
    }

    /// Those about which nothing was said yet.
    pub(super) fn untold(&self) -> impl Iterator<Item = Key> {
        let untold = |record: &&DriftRecord| record.right_at.is_none() && record.outcome == DriftOutcome::Found;
        self.records.values().filter(untold).map(|record| key(&record.drift)).collect::<Vec<_>>().into_iter()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &DriftRecord> {
        self.records.values()
    }

    /// Those that are not right.
    pub(super) fn open(&self) -> impl Iterator<Item = &DriftRecord> {
        self.records.values().filter(|record| record.right_at.is_none())
    }

    /// Makes room for so many, at the cost of those that have been right for longest.
    fn forget(&mut self, now: Instant, coming: usize) {
        self.records.retain(|_, record| record.right_at.is_none_or(|right| now.since(right) < KEPT));
        let excess = (self.records.len() + coming).saturating_sub(MAX_RECORDS);
        if excess == 0 {
            return;
        }
        let mut right: Vec<(Instant, Key)> =
            self.records.iter().filter_map(|(key, record)| Some((record.right_at?, key.clone()))).collect();
        right.sort();
        for (_, key) in right.into_iter().take(excess) {
            self.records.remove(&key);
        }
    }
}

impl DriftRecord {
    fn new(drift: &Drift, now: Instant) -> Self {
        Self { drift: clipped(drift), outcome: DriftOutcome::Found, found_at: now, right_at: None, times: 1 }
    }
}

pub(super) fn key(drift: &Drift) -> Key {
    (drift.class, clip(&drift.object), drift.difference.as_str())
}

/// A flush is reported as one cause.
pub(super) fn cause_of(found: &[Drift]) -> Option<Cause> {
    let first = found.first()?.cause;
    found.iter().all(|drift| drift.cause == first).then_some(first)
}

fn clipped(drift: &Drift) -> Drift {
    let difference = match &drift.difference {
        Difference::Missing => Difference::Missing,
        Difference::Extra => Difference::Extra,
        Difference::Wrong { expected, found } => Difference::Wrong { expected: clip(expected), found: clip(found) },
    };
    Drift { class: drift.class, object: clip(&drift.object), difference, cause: drift.cause }
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn rule(n: usize) -> Drift {
        Drift::new(DriftClass::Rule, n, Difference::Missing)
    }

    #[test]
    fn what_is_known_is_not_news_and_what_comes_back_is() {
        let mut records = Records::default();
        assert_eq!(records.note(&[rule(1)], at(0)).new.len(), 1);
        assert!(records.note(&[rule(1)], at(1)).new.is_empty());
        assert_eq!(records.open().next().map(|record| record.found_at), Some(at(0)));
        let repaired = records.settle(|_| true, &DriftOutcome::Repaired, at(2));
        assert_eq!((repaired.len(), records.open().count()), (1, 0));
        let again = records.note(&[rule(1)], at(3)).new.remove(0);
        assert_eq!((again.times, again.found_at, again.outcome), (2, at(3), DriftOutcome::Found));
        records.settle(|_| true, &DriftOutcome::Gone, at(4));
        let later = records.note(&[rule(1)], at(4) + IN_A_ROW).new.remove(0);
        assert_eq!(later.times, 1);
    }

    #[test]
    fn a_value_that_changes_is_the_same_difference() {
        let mut records = Records::default();
        let wrong = |found: &str| {
            let difference = Difference::Wrong { expected: "a".into(), found: found.into() };
            Drift::new(DriftClass::Slot, "s", difference)
        };
        records.note(&[wrong("b")], at(0));
        assert!(records.note(&[wrong("c")], at(1)).new.is_empty());
        assert_eq!(records.open().next().unwrap().drift, wrong("c"));
    }

    #[test]
    fn memory_is_bounded_and_what_was_right_for_longest_goes_first() {
        let mut records = Records::default();
        let first: Vec<Drift> = (0..MAX_RECORDS).map(rule).collect();
        assert_eq!(records.note(&first, at(0)).unlisted, 0);
        assert_eq!(records.note(&[rule(MAX_RECORDS)], at(1)).unlisted, 1, "none is right");
        records.settle(|key| key.1 == "7", &DriftOutcome::Repaired, at(2));
        records.settle(|key| key.1 == "8", &DriftOutcome::Repaired, at(3));
        assert_eq!(records.note(&[rule(MAX_RECORDS)], at(4)).unlisted, 0);
        assert_eq!(records.iter().count(), MAX_RECORDS);
        assert!(records.iter().all(|record| record.drift.object != "7"));
        assert_eq!(records.iter().filter(|record| record.right_at.is_some()).count(), 1);
    }

    #[test]
    fn what_is_right_is_forgotten_in_the_end() {
        let mut records = Records::default();
        records.note(&[rule(1)], at(0));
        records.settle(|_| true, &DriftOutcome::Repaired, at(0));
        records.note(&[], at(0) + KEPT);
        assert_eq!(records.iter().count(), 0);
    }

    #[test]
    fn long_names_are_cut() {
        let mut records = Records::default();
        let long = Drift::new(DriftClass::Rule, "ü".repeat(MAX_TEXT + 1), Difference::Extra);
        records.note(&[long.clone(), long], at(0));
        let record = records.iter().next().unwrap();
        assert_eq!((records.iter().count(), record.drift.object.chars().count()), (1, MAX_TEXT + 1));
        assert!(record.drift.object.ends_with('…'));
    }
}
