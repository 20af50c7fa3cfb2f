//! What those who follow drift and those who ask are told.

use std::time::Duration;

use lb_core::{
    drift::{Cause, Difference, Drift, DriftClass, Inspection},
    runner::{DriftOutcome, DriftRecord, Inspected},
    time::Instant,
};

use super::*;

fn at(ms: u64) -> Instant {
    Instant::new(Duration::from_millis(ms))
}

fn record(name: &str, outcome: DriftOutcome) -> DriftRecord {
    let drift = Drift::new(DriftClass::Rule, name, Difference::Missing).because(Cause::Flushed);
    let right_at = (outcome == DriftOutcome::Repaired).then(|| at(108));
    DriftRecord { drift, outcome, found_at: at(100), right_at, times: 1 }
}

/// An inspection that found so many rules missing, none of them known, and repaired all.
fn repaired(count: usize) -> Inspected {
    let of = |outcome: DriftOutcome| (0..count).map(|n| record(&n.to_string(), outcome.clone())).collect::<Vec<_>>();
    Inspected {
        inspection: Inspection::Everything,
        asked: false,
        took: Duration::ZERO,
        found: of(DriftOutcome::Found).into_iter().map(|record| record.drift).collect(),
        new: of(DriftOutcome::Found),
        unlisted: 0,
        cause: Some(Cause::Flushed),
        changed: of(DriftOutcome::Repaired),
        repair_error: None,
    }
}

#[test]
fn who_watches_is_told_each_difference_and_each_repair_once() {
    let mut feed = Feed::default();
    let mut client = feed.subscribe().unwrap();
    feed.tell(&repaired(2), at(110), Duration::from_secs(1000));
    feed.tell(&repaired(0), at(120), Duration::from_secs(1000));
    let mut heard = || -> Vec<String> {
        let Ok(lines) = client.try_recv() else { return Vec::new() };
        let of = |line: &str| match serde_json::from_str(line).unwrap() {
            DriftNews::Difference(record) => format!("{} {}", record.object, record.status),
            DriftNews::Unlisted { unlisted } => format!("and {unlisted}"),
        };
        lines.iter().map(|line| of(line)).collect()
    };
    assert_eq!(heard(), ["0 found", "1 found"]);
    assert_eq!(heard(), ["0 repaired", "1 repaired"]);
    assert_eq!(heard(), [""; 0]);
}

#[test]
fn a_repair_of_more_than_can_be_listed_is_heard_of() {
    let mut feed = Feed::default();
    let mut client = feed.subscribe().unwrap();
    feed.tell(&repaired(1000), at(110), Duration::ZERO);
    for status in ["found", "repaired"] {
        let lines = client.try_recv().unwrap();
        assert!(lines[0].contains(&format!("\"status\":\"{status}\"")), "{}", lines[0]);
        assert!(lines.last().unwrap().starts_with("{\"unlisted\":"), "{}", lines.last().unwrap());
    }
}

#[test]
fn a_record_says_when_and_for_how_long() {
    let record = told(&record("a", DriftOutcome::Repaired), at(1100), Duration::from_secs(1000));
    assert_eq!((record.found_unix_ms, record.age_ms, record.right_after_us), (999_000, 1000, Some(8000)));
}
