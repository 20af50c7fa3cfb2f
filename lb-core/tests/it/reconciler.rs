//! The reconciler against a datapath that fails, over random histories.

use core::time::Duration;

use crate::worlds::{history, ready, settings, slice, web};
use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::{ApplyError, Datapath, DatapathError, ErrorKind},
    desired::Desired,
    faulty::{Faults, Faulty},
    memory::MemoryDatapath,
    model::{Change, Model, Settings},
    name::SourceName,
    node::NodeFacts,
    plan::PlanId,
    reconciler::{FrontendStatus, PlanError, Reconciler},
    state::Answer,
    time::Instant,
};
use proptest::prelude::*;

pub(crate) fn reconciler(datapath: &impl Datapath) -> Reconciler {
    reconciler_with(settings(), datapath)
}

pub(crate) fn reconciler_with(settings: Settings, datapath: &impl Datapath) -> Reconciler {
    let mut reconciler = Reconciler::new(Model::new(settings, datapath.capabilities()));
    reconciler.handle_change(Change::SetNode(NodeFacts::default())).unwrap();
    reconciler
}

/// Drives until nothing is left to do at `now`.
pub(crate) fn run(reconciler: &mut Reconciler, datapath: &mut impl Datapath, now: Instant) {
    loop {
        if reconciler.wants_observation(now) {
            match datapath.observe() {
                Ok(state) => reconciler.handle_observed(state),
                Err(_) => reconciler.handle_observe_failed(now),
            }
        }
        let Some(plan) = reconciler.poll_plan(now).unwrap() else { return };
        let outcome = datapath.apply(&plan);
        reconciler.handle_applied(plan.id, outcome, now);
    }
}

/// Drives through every time-out until everything has settled.
pub(crate) fn settle(reconciler: &mut Reconciler, datapath: &mut impl Datapath, mut now: Instant) -> Instant {
    for _ in 0..10_000 {
        run(reconciler, datapath, now);
        match reconciler.poll_timeout() {
            Some((at, _)) => now = now.max(at),
            None => break,
        }
    }
    assert!(reconciler.is_settled(), "time-outs never end");
    now
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn converges_whatever_fails(history in history(), seed in any::<u64>()) {
        let faults = Faults { refused_frontends: 200, interrupted_plans: 150, failed_observations: 150, ..Faults::default() };
        let mut datapath = Faulty::new(MemoryDatapath::default(), faults, seed);
        let mut reconciler = reconciler(&datapath);
        let mut now = Instant::default();
        for change in history {
            let _refused_by_the_model = reconciler.handle_change(change);
            run(&mut reconciler, &mut datapath, now);
            prop_assert_eq!(datapath.inner().state().dangling(), None);
            now = now + Duration::from_millis(150);
        }
        settle(&mut reconciler, &mut datapath, now);
        prop_assert_eq!(datapath.inner().state(), reconciler.desired());
    }

    #[test]
    fn a_crash_after_any_prefix_and_a_restart_converge_with_ids_kept(history in history(), stop in any::<prop::sample::Index>()) {
        let mut datapath = MemoryDatapath::default();
        let mut first = reconciler(&datapath);
        for change in &history {
            let _refused_by_the_model = first.handle_change(change.clone());
            if first.wants_observation(Instant::default()) {
                first.handle_observed(datapath.observe().unwrap());
            }
            let Some(mut plan) = first.poll_plan(Instant::default()).unwrap() else { continue };
            plan.ops.truncate(stop.index(plan.ops.len() + 1));
            datapath.apply(&plan).unwrap();
            let crashed = datapath.state().clone();
            let mut second = reconciler(&datapath);
            for change in history.iter().take_while(|c| *c != change).chain([change]) {
                let _refused_by_the_model = second.handle_change(change.clone());
            }
            settle(&mut second, &mut datapath, Instant::default());
            prop_assert_eq!(datapath.state(), second.desired());
            for (addr, after) in &datapath.state().frontends {
                if let Some(before) = crashed.frontends.get(addr) {
                    prop_assert_eq!(after.id, before.id, "{} got another id", addr);
                }
            }
            first = second;
        }
    }
}

fn addr(ip: &str) -> FrontendAddr {
    FrontendAddr::new(crate::worlds::ip(ip), 80, Protocol::Tcp)
}

#[test]
fn nothing_is_planned_or_pruned_before_every_source_has_listed() {
    let mut datapath = MemoryDatapath::default();
    let mut old = Desired::default();
    let mut model = Model::default();
    for (name, address) in [("kept", "10.96.0.1"), ("gone", "10.96.0.2")] {
        model.apply(Change::UpsertService(web(name, address))).unwrap();
        let touched = model.apply(Change::ReplaceEndpoints(slice(name, [ready("10.244.0.1")]))).unwrap();
        old.update(&model, &touched).unwrap();
    }
    datapath.apply(&lb_core::plan::diff(&Default::default(), old.state(), old.labels())).unwrap();

    let mut reconciler = reconciler(&datapath);
    let (files, api) = (SourceName("files".into()), SourceName("api".into()));
    reconciler.handle_change(Change::InitStart(files.clone())).unwrap();
    reconciler.handle_change(Change::InitStart(api.clone())).unwrap();
    reconciler.handle_change(Change::UpsertService(web("kept", "10.96.0.1"))).unwrap();
    run(&mut reconciler, &mut datapath, Instant::default());
    assert_eq!(datapath.state(), old.state(), "a service without its endpoints must not reach the datapath");
    reconciler.handle_change(Change::InitDone(files)).unwrap();
    run(&mut reconciler, &mut datapath, Instant::default());
    assert_eq!(datapath.state(), old.state());
    reconciler.handle_change(Change::ReplaceEndpoints(slice("kept", [ready("10.244.0.1")]))).unwrap();
    reconciler.handle_change(Change::InitDone(api)).unwrap();
    run(&mut reconciler, &mut datapath, Instant::default());
    assert!(matches!(datapath.state().answer(&addr("10.96.0.1"), 0), Answer::Backends(_)));
    assert_eq!(datapath.state().answer(&addr("10.96.0.2"), 0), Answer::NotAFrontend);
    assert_eq!(datapath.state().frontends[&addr("10.96.0.1")].id, old.state().frontends[&addr("10.96.0.1")].id);
}

#[test]
fn one_bad_frontend_does_not_hold_back_the_others_and_is_retried() {
    let always = Faults { refused_frontends: 1000, ..Faults::default() };
    let mut datapath = Faulty::new(MemoryDatapath::default(), always, 1);
    let mut reconciler = reconciler(&datapath);
    reconciler.handle_change(Change::UpsertService(web("a", "10.96.0.1"))).unwrap();
    run(&mut reconciler, &mut datapath, Instant::default());
    let FrontendStatus::Failed { cause, retry_at } = reconciler.status(&addr("10.96.0.1")) else {
        panic!("not failed: {:?}", reconciler.status(&addr("10.96.0.1")));
    };
    assert_eq!(cause, "injected fault: frontend refused");
    assert_eq!(retry_at.since_origin(), Reconciler::MIN_RETRY_DELAY);
    datapath.set_faults(Faults::default());
    reconciler.handle_change(Change::UpsertService(web("b", "10.96.0.2"))).unwrap();
    run(&mut reconciler, &mut datapath, Instant::default());
    assert_eq!(reconciler.status(&addr("10.96.0.2")), FrontendStatus::Done);
    assert!(matches!(reconciler.status(&addr("10.96.0.1")), FrontendStatus::Failed { .. }), "its time has not come");
    run(&mut reconciler, &mut datapath, retry_at);
    assert_eq!(reconciler.status(&addr("10.96.0.1")), FrontendStatus::Done);
    assert_eq!(reconciler.poll_timeout(), None);
}

#[test]
fn a_datapath_that_cannot_be_observed_is_asked_ever_more_rarely() {
    let mut reconciler = reconciler(&MemoryDatapath::default());
    let mut now = Instant::default();
    let mut waits = Vec::new();
    for _ in 0..9 {
        assert!(reconciler.wants_observation(now));
        reconciler.handle_observe_failed(now);
        assert!(!reconciler.wants_observation(now));
        let (at, _) = reconciler.poll_timeout().unwrap();
        waits.push(at.since(now).as_millis());
        now = at;
    }
    assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000]);
    // Nothing left to do in between starts over.
    reconciler.handle_observed(MemoryDatapath::default().state().clone());
    assert_eq!(reconciler.poll_plan(now), Ok(None));
    reconciler.handle_repaired(Err(ApplyError::unknown(DatapathError::new(ErrorKind::System, "lost"))), now);
    assert!(reconciler.wants_observation(now));
    reconciler.handle_observe_failed(now);
    assert_eq!(reconciler.poll_timeout().unwrap().0.since(now), Reconciler::MIN_RETRY_DELAY);
}

#[test]
fn a_datapath_that_loses_its_state_with_every_plan_gets_ever_more_time() {
    let mut datapath = MemoryDatapath::default();
    let mut reconciler = reconciler(&datapath);
    reconciler.handle_change(Change::UpsertService(web("a", "10.96.0.1"))).unwrap();
    let (mut now, mut waits) = (Instant::default(), Vec::new());
    for _ in 0..4 {
        reconciler.handle_observed(datapath.observe().unwrap());
        let plan = reconciler.poll_plan(now).unwrap().unwrap();
        let lost = DatapathError::new(ErrorKind::System, "lost");
        reconciler.handle_applied(plan.id, Err(ApplyError::unknown(lost)), now);
        assert!(!reconciler.wants_observation(now));
        let (at, _) = reconciler.poll_timeout().unwrap();
        waits.push(at.since(now).as_millis());
        now = at;
    }
    assert_eq!(waits, [200, 400, 800, 1600]);
    run(&mut reconciler, &mut datapath, now);
    assert!(reconciler.is_settled() && reconciler.poll_timeout().is_none());
}

#[test]
fn changes_between_two_plans_coalesce() {
    let mut datapath = MemoryDatapath::default();
    let mut reconciler = reconciler(&datapath);
    run(&mut reconciler, &mut datapath, Instant::default());
    for n in 1..=9 {
        let endpoints = slice("a", [ready(&format!("10.244.0.{n}"))]);
        reconciler.handle_change(Change::ReplaceEndpoints(endpoints)).unwrap();
    }
    reconciler.handle_change(Change::UpsertService(web("a", "10.96.0.1"))).unwrap();
    let plan = reconciler.poll_plan(Instant::default()).unwrap().unwrap();
    assert_eq!(plan.summary(), "3 operations: frontends +1 -0, sets +1 -0, backends +1 -0");
}

#[test]
fn whoever_leaves_a_step_out_is_told_which_and_goes_on_once_it_is_made_up_for() {
    let mut datapath = MemoryDatapath::default();
    let mut reconciler = Reconciler::new(Model::new(settings(), datapath.capabilities()));
    let now = Instant::default();
    reconciler.handle_change(Change::UpsertService(web("a", "10.96.0.1"))).unwrap();
    assert_eq!(reconciler.poll_plan(now), Err(PlanError::NotObserved));
    reconciler.handle_observed(datapath.observe().unwrap());
    assert_eq!(reconciler.poll_plan(now), Err(PlanError::NoNode));
    assert!(!reconciler.is_settled());
    reconciler.handle_change(Change::SetNode(NodeFacts::default())).unwrap();
    let plan = reconciler.poll_plan(now).unwrap().unwrap();
    assert_eq!(reconciler.poll_plan(now), Err(PlanError::NotApplied(PlanId(1))));
    let lost = DatapathError::new(ErrorKind::System, "lost");
    reconciler.handle_applied(plan.id, Err(ApplyError::unknown(lost)), now);
    assert_eq!(reconciler.poll_plan(now), Ok(None), "it is not yet to be observed again");
    let later = reconciler.poll_timeout().unwrap().0;
    assert_eq!(reconciler.poll_plan(later), Err(PlanError::NotObserved));
    run(&mut reconciler, &mut datapath, later);
    assert!(reconciler.is_settled());
}
