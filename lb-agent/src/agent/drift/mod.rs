//! When the datapath is inspected, what becomes of what is found, and what is told of it. Without I/O: time is an argument.

mod feed;
mod limit;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_core::{Drift, DriftClass, Inspection, Instant};

pub(super) use self::feed::Subscription;
use self::{
    feed::Feed,
    limit::Limit,
    records::{IN_A_ROW, Noted, Record, Records, Status, cause_of, key},
};
use crate::{
    api::{DriftNews, DriftRecord, DriftStatus},
    config::DriftMode,
};

/// A full inspection is followed by so many times the time that it took: half a per cent of a processor.
const FULL_SHARE: u32 = 200;
/// An inspection of suspects is followed by so many times the time that it took, so that whoever changes things all the
/// time does not keep a processor busy.
const SUSPECTS_SHARE: u32 = 4;
/// How soon a full inspection follows when suspects had drifted: who changed one thing may have changed others.
const SOON: Duration = Duration::from_secs(1);
/// How soon an inspection that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// An object that was repaired so often in a row is fought about.
const FOUGHT: u32 = 5;
/// Most differences of one inspection that are logged one by one.
const MAX_LOGGED: usize = 10;

/// The machine.
#[derive(Debug)]
pub(super) struct Drifts {
    mode: DriftMode,
    interval: Duration,
    watched: bool,
    records: Records,
    limit: Limit,
    feed: Feed,
    full_at: Option<Instant>,
    suspects_at: Option<Instant>,
    repair_at: Option<Instant>,
    quiet_until: Instant,
    inspections: u64,
    full_took: Duration,
    found: BTreeMap<DriftClass, u64>,
    repaired: BTreeMap<DriftClass, u64>,
}

/// An inspection and what was done about it.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) inspection: Inspection,
    pub(super) found: Vec<Drift>,
    /// When it was done.
    pub(super) at: Instant,
    /// How long it took.
    pub(super) took: Duration,
    pub(super) repair: Repair,
}

/// What was done about what an inspection found.
#[derive(Debug)]
pub(super) enum Repair {
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
    pub(super) fn new(mode: DriftMode, interval: Duration) -> Self {
        Self {
            mode,
            interval,
            watched: false,
            records: Records::default(),
            limit: Limit::default(),
            feed: Feed::default(),
            full_at: None,
            suspects_at: None,
            repair_at: None,
            quiet_until: Instant::default(),
            inspections: 0,
            full_took: Duration::ZERO,
            found: BTreeMap::new(),
            repaired: BTreeMap::new(),
        }
    }

    pub(super) fn mode(&self) -> DriftMode {
        self.mode
    }

    /// Whether somebody says when others change what the datapath holds.
    pub(super) fn set_watched(&mut self, watched: bool) {
        self.watched = watched;
    }

    /// From now on the datapath holds what it should.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.mode != DriftMode::Off {
            self.full_at = Some(now);
        }
    }

    /// Something happened that deserves an inspection of the suspects.
    pub(super) fn handle_suspicion(&mut self, now: Instant) {
        if self.mode != DriftMode::Off {
            let at = now.max(self.quiet_until).max(self.repair_at.unwrap_or_default());
            self.suspects_at.get_or_insert(at);
        }
    }

    /// Something may have been missed.
    pub(super) fn handle_missed(&mut self, now: Instant) {
        self.full_at = self.full_at.map(|at| at.min(now.max(self.quiet_until)));
    }

    /// What is to be inspected now.
    pub(super) fn poll_inspection(&self, now: Instant) -> Option<Inspection> {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.full_at) || due(self.repair_at) {
            return Some(Inspection::Everything);
        }
        due(self.suspects_at).then_some(Inspection::Suspects)
    }

    /// When to poll again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.full_at, self.repair_at, self.suspects_at].into_iter().flatten().min()
    }

    /// Whether what was found is to be repaired, and may be by now.
    pub(super) fn take_repair(&mut self, found: &[Drift], now: Instant) -> Option<Result<(), Instant>> {
        (self.mode == DriftMode::Repair && !found.is_empty()).then(|| self.limit.take(now))
    }

    /// The datapath could not be inspected.
    pub(super) fn handle_inspection_failed(&mut self, now: Instant) {
        self.suspects_at = None;
        self.repair_at = None;
        self.full_at = self.full_at.map(|_| now + RETRY);
    }

    /// Takes an inspection in; `wall` is the time since 1970 now. Gives how many differences it could not list.
    pub(super) fn handle_inspected(&mut self, inspected: &Inspected, now: Instant, wall: Duration) -> usize {
        self.schedule(inspected, now);
        let found_at = inspected.at;
        let Noted { new, unlisted } = self.records.note(&inspected.found, found_at);
        count(&mut self.found, &new);
        log_found(&new, unlisted, cause_of(&inspected.found));
        let mut changed = new;
        let keys: BTreeSet<_> = inspected.found.iter().map(key).collect();
        if inspected.inspection == Inspection::Everything {
            let gone = self.records.settle(|known| !keys.contains(known), &Status::Gone, found_at);
            gone.iter().for_each(|record| tracing::info!(what = record.what(), "drift is gone by itself"));
            changed.extend(gone);
        }
        match &inspected.repair {
            Repair::None => {}
            Repair::HeldBack { until } => {
                self.repair_at = Some(*until);
                let why = format!(
                    "it was repaired too often lately, the next repair is {:.1} s after the one before",
                    self.limit.wait(now).unwrap_or_default().as_secs_f64()
                );
                let held = self.records.settle(|known| keys.contains(known), &Status::NotRepaired(why), now);
                changed.extend(held);
            }
            Repair::Tried { at, still, failed } => {
                changed.extend(self.note_repair(&keys, *at, still, failed));
                if !failed.is_empty() || still.iter().any(|drift| keys.contains(&key(drift))) {
                    self.repair_at = Some(self.limit.penalise(now));
                } else if !still.is_empty() {
                    self.handle_missed(now);
                }
            }
        }
        self.tell(changed, unlisted, now, wall);
        unlisted
    }

    fn schedule(&mut self, inspected: &Inspected, now: Instant) {
        self.suspects_at = None;
        self.quiet_until = now + inspected.took * SUSPECTS_SHARE;
        match inspected.inspection {
            Inspection::Everything => {
                self.inspections += 1;
                self.full_took = inspected.took;
                self.repair_at = None;
                self.full_at = self.full_at.map(|_| now + self.interval.max(inspected.took * FULL_SHARE));
            }
            Inspection::Suspects if !inspected.found.is_empty() => {
                let soon = now + SOON.max(self.full_took * FULL_SHARE);
                self.full_at = self.full_at.map(|at| at.min(soon));
            }
            Inspection::Suspects => {}
        }
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
            tracing::info!(differences = changed.len(), first = changed[0].what(), "drift is repaired");
        }
        for known in keys.iter().filter(|known| !right(known)) {
            let why = why(&known.1).map_or("it was there again right after the repair", String::as_str);
            let status = Status::NotRepaired(why.into());
            changed.extend(self.records.settle(|other| other == known, &status, at));
        }
        changed
    }

    fn tell(&mut self, changed: Vec<Record>, unlisted: usize, now: Instant, wall: Duration) {
        if self.feed.is_idle() {
            return;
        }
        let news = changed.iter().map(|record| DriftNews::Difference(Box::new(told(record, now, wall)))).collect();
        self.feed.publish(news, unlisted);
    }

    /// Follows what is found and repaired from now on.
    pub(super) fn subscribe(&mut self) -> Option<Subscription> {
        self.feed.subscribe()
    }

    /// What is about any of `found`, and what was found before and is right by now, the latest first.
    pub(super) fn listed(&self, found: &[Drift], now: Instant, wall: Duration) -> (Vec<DriftRecord>, Vec<DriftRecord>) {
        let keys: BTreeSet<_> = found.iter().map(key).collect();
        let (is_now, mut before): (Vec<&Record>, Vec<&Record>) =
            self.records.iter().partition(|record| keys.contains(&key(&record.drift)));
        before.sort_by_key(|record| std::cmp::Reverse(record.found_at));
        let told = |records: Vec<&Record>| records.into_iter().map(|record| told(record, now, wall)).collect();
        (told(is_now), told(before))
    }

    pub(super) fn status(&self) -> DriftStatus {
        let named = |counts: &BTreeMap<DriftClass, u64>| {
            counts.iter().map(|(class, &count)| (class.as_str().to_owned(), count)).collect()
        };
        DriftStatus {
            mode: self.mode.as_str().into(),
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
    pub(super) fn conditions(&self, now: Instant) -> Vec<(&'static str, String)> {
        let mut conditions = Vec::new();
        if let Some(oldest) = self.records.open().min_by_key(|record| record.found_at) {
            let (count, age) = (self.records.open().count(), now.since(oldest.found_at).as_secs());
            let why = match &oldest.status {
                Status::NotRepaired(why) => format!(", not repaired: {why}"),
                Status::Found | Status::Repaired | Status::Gone => String::new(),
            };
            let what = oldest.what();
            conditions.push(("Drift", format!("{count} in all, the oldest for {age} s: {what}{why}; see `lb drift`")));
        }
        conditions.extend(self.fought(now).map(|message| ("DriftFought", message)));
        conditions
    }

    /// Who keeps changing what, if anybody does.
    fn fought(&self, now: Instant) -> Option<String> {
        let is_recent = |record: &&Record| now.since(record.right_at.unwrap_or(record.found_at)) < IN_A_ROW;
        let most = self.records.iter().filter(is_recent).max_by_key(|record| record.times)?;
        let wait = self.limit.wait(now);
        if most.times < FOUGHT && wait.is_none() {
            return None;
        }
        let wait = wait.map(|wait| format!("; repairs wait for {:.1} s", wait.as_secs_f64())).unwrap_or_default();
        let Drift { class, object, cause, .. } = &most.drift;
        Some(format!("{class} {object} is {cause}, {} times in a row{wait}: find out which tool that is", most.times))
    }
}

fn count(counts: &mut BTreeMap<DriftClass, u64>, records: &[Record]) {
    for record in records {
        *counts.entry(record.drift.class).or_default() += 1;
    }
}

fn log_found(new: &[Record], unlisted: usize, cause: Option<lb_core::Cause>) {
    for record in new.iter().take(MAX_LOGGED) {
        let Drift { class, object, difference, cause } = &record.drift;
        tracing::warn!(%class, object, %difference, %cause, "drift");
    }
    let more = new.len().saturating_sub(MAX_LOGGED) + unlisted;
    if more > 0 {
        let cause = cause.map_or("various", lb_core::Cause::as_str);
        tracing::warn!(more, cause, "drift of further objects, see `lb drift`");
    }
}

/// A record in the words of the API.
fn told(record: &Record, now: Instant, wall: Duration) -> DriftRecord {
    let age = now.since(record.found_at);
    let (expected, found) = match &record.drift.difference {
        lb_core::Difference::Wrong { expected, found } => (Some(expected.clone()), Some(found.clone())),
        lb_core::Difference::Missing | lb_core::Difference::Extra => (None, None),
    };
    let (status, detail) = match &record.status {
        Status::Found => ("found", None),
        Status::Repaired => ("repaired", None),
        Status::NotRepaired(why) => ("not-repaired", Some(why.clone())),
        Status::Gone => ("gone", None),
    };
    let whole = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    DriftRecord {
        class: record.drift.class.to_string(),
        object: record.drift.object.clone(),
        difference: record.drift.difference.as_str().into(),
        expected,
        found,
        cause: record.drift.cause.to_string(),
        status: status.into(),
        detail,
        found_unix_ms: whole(wall.saturating_sub(age).as_millis()),
        age_ms: whole(age.as_millis()),
        right_after_us: record.right_at.map(|right| whole(right.since(record.found_at).as_micros())),
        times: record.times,
    }
}

#[cfg(test)]
mod tests {
    use lb_core::{Cause, Difference};

    use super::*;
    use crate::api::Lines;

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
        let inspected = Inspected { inspection, found: found.to_vec(), at: at(ms), took, repair };
        drifts.handle_inspected(&inspected, at(ms), Duration::from_secs(1_000_000));
    }

    fn tried(ms: u64) -> Repair {
        Repair::Tried { at: at(ms), still: Vec::new(), failed: Vec::new() }
    }

    fn statuses(drifts: &Drifts) -> Vec<&Status> {
        drifts.records.iter().map(|record| &record.status).collect()
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
        assert_eq!(statuses(&drifts), [&Status::Repaired]);
    }

    #[test]
    fn off_means_never_unless_asked() {
        let mut drifts = drifts(DriftMode::Off);
        drifts.handle_suspicion(at(1));
        drifts.handle_missed(at(1));
        assert_eq!((drifts.poll_inspection(at(99_999)), drifts.poll_timeout()), (None, None));
        assert_eq!(drifts.take_repair(&[rule("a")], at(1)), None);
        take(&mut drifts, Inspection::Everything, &[rule("a")], 5, 0, Repair::None);
        assert_eq!((drifts.poll_timeout(), statuses(&drifts)), (None, vec![&Status::Found]));
    }

    #[test]
    fn what_was_missed_is_looked_for() {
        let mut drifts = drifts(DriftMode::Alert);
        drifts.handle_missed(at(7));
        assert_eq!(drifts.poll_inspection(at(7)), Some(Inspection::Everything));
    }

    #[test]
    fn alert_touches_nothing_and_says_so_until_it_is_gone() {
        let mut drifts = drifts(DriftMode::Alert);
        assert_eq!(drifts.take_repair(&[rule("a")], at(5)), None);
        take(&mut drifts, Inspection::Everything, &[rule("a")], 5, 0, Repair::None);
        let (_, message) = drifts.conditions(at(3005)).remove(0);
        assert!(
            message.starts_with("1 in all, the oldest for 3 s: rule a missing (flushed by another tool)"),
            "{message}"
        );
        clean(&mut drifts, Inspection::Suspects, 4000, 0);
        assert_eq!(kinds(&drifts, 4000), ["Drift"], "it was no suspect");
        clean(&mut drifts, Inspection::Everything, 5000, 0);
        assert_eq!((kinds(&drifts, 5000), statuses(&drifts)), (vec![], vec![&Status::Gone]));
    }

    #[test]
    fn a_repair_that_does_not_help_is_said_and_tried_again() {
        let mut drifts = drifts(DriftMode::Repair);
        let still = Repair::Tried { at: at(6), still: vec![rule("a")], failed: Vec::new() };
        take(&mut drifts, Inspection::Suspects, &[rule("a"), rule("b")], 5, 0, still);
        let there_again = Status::NotRepaired("it was there again right after the repair".into());
        assert_eq!(statuses(&drifts), [&there_again, &Status::Repaired]);
        assert_eq!((drifts.status().open, drifts.poll_timeout()), (1, Some(at(505))));
        assert_eq!(drifts.poll_inspection(at(505)), Some(Inspection::Everything));
        assert_eq!(drifts.take_repair(&[rule("a")], at(505)), Some(Ok(())));
        take(&mut drifts, Inspection::Everything, &[rule("a")], 505, 0, tried(506));
        assert_eq!((drifts.status().open, kinds(&drifts, 506)), (0, vec!["DriftFought"]));
        assert_eq!(drifts.status().repaired, BTreeMap::from([("rule".to_owned(), 2)]));
    }

    #[test]
    fn what_the_datapath_refused_says_why() {
        let mut drifts = drifts(DriftMode::Repair);
        let failed = vec![("10.96.0.1:80/tcp".to_owned(), "table full".to_owned())];
        let repair = Repair::Tried { at: at(6), still: Vec::new(), failed };
        take(&mut drifts, Inspection::Suspects, &[rule("10.96.0.1:80/tcp slot 3"), rule("b")], 5, 0, repair);
        assert_eq!(statuses(&drifts), [&Status::NotRepaired("table full".into()), &Status::Repaired]);
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
                    drifts.handle_suspicion(at(now));
                    assert_eq!(drifts.suspects_at, Some(until), "no use in looking any earlier");
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
    fn who_watches_is_told_each_difference_and_each_repair_once() {
        let mut drifts = drifts(DriftMode::Repair);
        let mut client = drifts.subscribe().unwrap();
        let mut heard = || -> Vec<String> {
            let lines = client.next(Duration::ZERO).unwrap();
            let of = |line: &str| match serde_json::from_str(line).unwrap() {
                DriftNews::Difference(record) => format!("{} {}", record.object, record.status),
                DriftNews::Unlisted { unlisted } => format!("and {unlisted}"),
            };
            lines.iter().map(|line| of(line)).collect()
        };
        take(&mut drifts, Inspection::Everything, &[rule("a")], 5, 0, Repair::None);
        take(&mut drifts, Inspection::Everything, &[rule("a"), rule("b")], 10, 0, tried(11));
        assert_eq!(heard(), ["a found"]);
        assert_eq!(heard(), ["b found", "a repaired", "b repaired"]);
        assert_eq!(heard(), [""; 0]);
    }

    #[test]
    fn a_record_says_when_and_for_how_long() {
        let mut drifts = drifts(DriftMode::Repair);
        take(&mut drifts, Inspection::Everything, &[rule("a")], 100, 0, tried(108));
        let (is_now, before) = drifts.listed(&[rule("a")], at(1100), Duration::from_secs(1000));
        assert_eq!((is_now.len(), before.len()), (1, 0));
        let record = &is_now[0];
        assert_eq!((record.found_unix_ms, record.age_ms, record.right_after_us), (999_000, 1000, Some(8000)));
        assert_eq!(drifts.listed(&[], at(1100), Duration::ZERO).1.len(), 1);
    }
}
