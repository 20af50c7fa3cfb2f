//! The machine as a whole.

use alloc::{borrow::ToOwned, string::ToString, vec};

use super::*;
use crate::drift::{Cause, Difference, Inspection};

const INTERVAL: Duration = Duration::from_secs(60);

fn at(ms: u64) -> Instant {
    Instant::new(Duration::from_millis(ms))
}

fn rule(name: &str) -> Drift {
    Drift::new(DriftClass::Rule, name, Difference::Missing).because(Cause::Flushed)
}

/// Just begun, its first full inspection done.
fn drifts(mode: DriftMode) -> Drifts {
    let mut drifts = Drifts::new(mode, INTERVAL);
    drifts.begin(at(0));
    if drifts.poll_inspection(at(0)).is_some() {
        clean(&mut drifts, Inspection::Everything, 0, 0);
    }
    drifts
}

fn clean(drifts: &mut Drifts, inspection: Inspection, ms: u64, took: u64) {
    take(drifts, inspection, &[], ms, took, Repair::None);
}

fn take(drifts: &mut Drifts, inspection: Inspection, found: &[Drift], ms: u64, took: u64, repair: Repair) {
    let took = Duration::from_millis(took);
    let look = Look { inspection, asked: false, found: found.to_vec(), at: at(ms), took, cpu: took };
    drifts.handle_inspected(look, repair, at(ms));
}

fn tried(ms: u64) -> Repair {
    Repair::Tried { at: at(ms), still: Vec::new(), failed: Vec::new() }
}

fn statuses(drifts: &Drifts) -> Vec<&DriftOutcome> {
    drifts.records.iter().map(|record| &record.outcome).collect()
}

fn kinds(drifts: &Drifts, ms: u64) -> Vec<&'static str> {
    drifts.conditions(at(ms)).into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn everything_is_inspected_at_the_start_and_once_in_an_interval() {
    let mut drifts = Drifts::new(DriftMode::Alert, INTERVAL);
    assert_eq!((drifts.poll_inspection(at(9)), drifts.poll_timeout()), (None, None), "it is not ready");
    drifts.begin(at(10));
    assert_eq!(drifts.poll_inspection(at(10)), Some(Inspection::Everything));
    clean(&mut drifts, Inspection::Everything, 10, 5);
    assert_eq!((drifts.poll_inspection(at(60_009)), drifts.poll_timeout()), (None, Some(at(60_010))));
    assert_eq!(drifts.poll_inspection(at(60_010)), Some(Inspection::Everything));
}

#[test]
fn full_inspections_never_take_more_than_their_share() {
    let mut drifts = drifts(DriftMode::Repair);
    clean(&mut drifts, Inspection::Everything, 0, 1000);
    assert_eq!(drifts.poll_timeout(), Some(at(200_000)));
}

#[test]
fn waiting_for_a_processor_is_not_counted_to_the_share() {
    let mut drifts = drifts(DriftMode::Repair);
    let (took, cpu) = (Duration::from_secs(10), Duration::from_millis(400));
    let look = Look { inspection: Inspection::Everything, asked: false, found: Vec::new(), at: at(0), took, cpu };
    drifts.handle_inspected(look, Repair::None, at(0));
    assert_eq!((drifts.poll_timeout(), drifts.inspection_took()), (Some(at(80_000)), took));
}

#[test]
fn suspects_are_inspected_at_once_and_then_no_more_often_than_they_may() {
    let mut drifts = drifts(DriftMode::Repair);
    drifts.handle_suspicion(at(5));
    assert_eq!(drifts.poll_inspection(at(5)), Some(Inspection::Suspects));
    clean(&mut drifts, Inspection::Suspects, 5, 10);
    drifts.handle_suspicion(at(6));
    assert_eq!((drifts.poll_inspection(at(44)), drifts.poll_timeout()), (None, Some(at(45))));
    assert_eq!(drifts.poll_inspection(at(45)), Some(Inspection::Suspects));
}

#[test]
fn a_full_inspection_follows_suspects_that_drifted() {
    let mut drifts = drifts(DriftMode::Repair);
    take(&mut drifts, Inspection::Suspects, &[rule("a")], 5, 0, tried(6));
    assert_eq!(drifts.poll_timeout(), Some(at(1005)));
    assert_eq!(statuses(&drifts), [&DriftOutcome::Repaired]);
}

#[test]
fn off_means_never_unless_asked() {
    let mut drifts = drifts(DriftMode::Off);
    drifts.handle_suspicion(at(1));
    drifts.handle_missed(at(1));
    assert_eq!((drifts.poll_inspection(at(99_999)), drifts.poll_timeout()), (None, None));
    assert_eq!(drifts.take_repair(&[rule("a")], at(1)), None);
    take(&mut drifts, Inspection::Everything, &[rule("a")], 5, 0, Repair::None);
    assert_eq!((drifts.poll_timeout(), statuses(&drifts)), (None, vec![&DriftOutcome::Found]));
}

#[test]
fn what_was_missed_is_looked_for() {
    let mut drifts = drifts(DriftMode::Alert);
    drifts.handle_missed(at(7));
    assert_eq!(drifts.poll_inspection(at(7)), Some(Inspection::Everything));
}

#[test]
fn what_a_change_may_have_put_right_is_looked_for_as_soon_as_may_be() {
    let mut drifts = drifts(DriftMode::Alert);
    drifts.handle_applied(at(3));
    assert_eq!(drifts.poll_timeout(), Some(at(60_000)), "nothing is said to be wrong");
    take(&mut drifts, Inspection::Everything, &[rule("a")], 100, 5, Repair::None);
    drifts.handle_applied(at(110));
    drifts.handle_applied(at(120));
    assert_eq!(drifts.poll_timeout(), Some(at(1100)), "no more often than may be");
    clean(&mut drifts, Inspection::Everything, 1100, 5);
    assert_eq!((kinds(&drifts, 1100), drifts.poll_timeout()), (vec![], Some(at(61_100))));
}

#[test]
fn alert_touches_nothing_and_says_so_until_it_is_gone() {
    let mut drifts = drifts(DriftMode::Alert);
    assert_eq!(drifts.take_repair(&[rule("a")], at(5)), None);
    take(&mut drifts, Inspection::Everything, &[rule("a")], 5, 0, Repair::None);
    let (_, message) = drifts.conditions(at(3005)).remove(0);
    assert!(message.starts_with("1 in all, the oldest for 3 s: rule a missing (flushed by another tool)"), "{message}");
    clean(&mut drifts, Inspection::Suspects, 4000, 0);
    assert_eq!(kinds(&drifts, 4000), ["Drift"], "it was no suspect");
    clean(&mut drifts, Inspection::Everything, 5000, 0);
    assert_eq!((kinds(&drifts, 5000), statuses(&drifts)), (vec![], vec![&DriftOutcome::Gone]));
}

#[test]
fn a_repair_that_does_not_help_is_said_and_tried_again() {
    let mut drifts = drifts(DriftMode::Repair);
    let still = Repair::Tried { at: at(6), still: vec![rule("a")], failed: Vec::new() };
    take(&mut drifts, Inspection::Suspects, &[rule("a"), rule("b")], 5, 0, still);
    let there_again = DriftOutcome::NotRepaired("the difference was back right after the repair".into());
    assert_eq!(statuses(&drifts), [&there_again, &DriftOutcome::Repaired]);
    assert_eq!((drifts.open().count(), drifts.poll_timeout()), (1, Some(at(505))));
    assert_eq!(drifts.poll_inspection(at(505)), Some(Inspection::Everything));
    assert_eq!(drifts.take_repair(&[rule("a")], at(505)), Some(Ok(())));
    take(&mut drifts, Inspection::Everything, &[rule("a")], 505, 0, tried(506));
    assert_eq!((drifts.open().count(), kinds(&drifts, 506)), (0, vec![]), "twice is no quarrel");
    assert_eq!(*drifts.repaired(), BTreeMap::from([(DriftClass::Rule, 2)]));
}

#[test]
fn what_the_datapath_refused_says_why() {
    let mut drifts = drifts(DriftMode::Repair);
    let failed = vec![("10.96.0.1:80/tcp".to_owned(), "table full".to_owned())];
    let repair = Repair::Tried { at: at(6), still: Vec::new(), failed };
    take(&mut drifts, Inspection::Suspects, &[rule("10.96.0.1:80/tcp slot 3"), rule("b")], 5, 0, repair);
    assert_eq!(statuses(&drifts), [&DriftOutcome::NotRepaired("table full".into()), &DriftOutcome::Repaired]);
    let (_, message) = drifts.conditions(at(6)).remove(0);
    assert!(message.contains("not repaired: table full"), "{message}");
}

#[test]
fn whoever_undoes_repairs_is_named_and_repairs_come_ever_more_slowly() {
    let mut drifts = drifts(DriftMode::Repair);
    let (mut now, mut repairs) = (1000, Vec::new());
    while now < 200_000 {
        match drifts.take_repair(&[rule("a")], at(now)).unwrap() {
            Ok(()) => {
                repairs.push(now);
                take(&mut drifts, Inspection::Suspects, &[rule("a")], now, 0, tried(now));
            }
            Err(until) => {
                take(&mut drifts, Inspection::Suspects, &[rule("a")], now, 0, Repair::HeldBack { until });
            }
        }
        now += 20;
    }
    let between: Vec<u64> = repairs.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!((between[0], between.last()), (20, Some(&30_000)));
    assert!(repairs.len() < 35, "{repairs:?}");
    let fought = drifts.conditions(at(now)).pop().unwrap();
    assert_eq!(fought.0, "DriftFought");
    assert!(fought.1.starts_with("rule a is flushed by another tool, "), "{}", fought.1);
    assert!(fought.1.contains("repairs wait for 30.0 s"), "{}", fought.1);
    assert_eq!(kinds(&drifts, now + 120_000), ["Drift"], "over, but not repaired");
}

#[test]
fn a_quarrel_about_one_object_holds_back_no_other() {
    let mut drifts = drifts(DriftMode::Repair);
    let mut now = 0;
    let until = loop {
        now += 20;
        match drifts.take_repair(&[rule("a")], at(now)).unwrap() {
            Ok(()) => take(&mut drifts, Inspection::Suspects, &[rule("a")], now, 0, tried(now)),
            Err(until) => break until,
        }
    };
    take(&mut drifts, Inspection::Suspects, &[rule("a")], now, 0, Repair::HeldBack { until });
    drifts.handle_suspicion(at(now));
    assert_eq!(drifts.poll_inspection(at(now)), Some(Inspection::Suspects), "it may be about something else");
    assert_eq!(drifts.take_repair(&[rule("a")], at(now)), Some(Err(until)));
    assert_eq!(drifts.take_repair(&[rule("a"), rule("b")], at(now)), Some(Ok(())));
}

#[test]
fn ever_new_objects_are_a_quarrel_as_well() {
    let mut drifts = drifts(DriftMode::Repair);
    let mut repairs = 0;
    while drifts.take_repair(&[rule(&repairs.to_string())], at(1000)) == Some(Ok(())) {
        take(&mut drifts, Inspection::Suspects, &[rule(&repairs.to_string())], 1000, 0, tried(1000));
        repairs += 1;
    }
    assert_eq!(repairs, 20);
}

#[test]
fn why_a_repair_did_not_help_is_said_while_the_next_one_waits() {
    let mut drifts = drifts(DriftMode::Repair);
    let failed = vec![(String::new(), "is the loopback device up?".to_owned())];
    let repair = Repair::Tried { at: at(6), still: Vec::new(), failed };
    take(&mut drifts, Inspection::Suspects, &[rule("a")], 5, 0, repair);
    take(&mut drifts, Inspection::Suspects, &[rule("a")], 7, 0, Repair::HeldBack { until: at(506) });
    let conditions = drifts.conditions(at(8));
    assert_eq!(conditions.len(), 1, "{conditions:?}");
    for part in ["not repaired: is the loopback device up?", "repairs wait for 0.5 s"] {
        assert!(conditions[0].1.contains(part), "{conditions:?}");
    }
}
