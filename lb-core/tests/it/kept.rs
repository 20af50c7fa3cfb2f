//! Installed frontends that stay while nobody knows whether a service has them.

use crate::{
    reconciler::{reconciler, run, settle},
    worlds::{backend, history, ip, ready, slice, source, web},
};
use lb_core::{
    addr::{FrontendAddr, Protocol, Scope},
    datapath::Datapath,
    drift::{Inspection, compare},
    faulty::{Faults, Faulty},
    memory::MemoryDatapath,
    model::Change,
    name::ServiceName,
    reconciler::{FrontendStatus, Reconciler},
    service::{Service, TrafficPolicy},
    state::{Answer, State},
    time::Instant,
};
use proptest::prelude::*;

const NOW: Instant = Instant::new(core::time::Duration::ZERO);

fn vip(address: &str) -> FrontendAddr {
    FrontendAddr::new(ip(address), 80, Protocol::Tcp)
}

fn handle(reconciler: &mut Reconciler, changes: impl IntoIterator<Item = Change>) {
    changes.into_iter().for_each(|change| reconciler.handle_change(change).unwrap());
}

/// Services `a` and `b`, which share a backend, as an earlier process left them.
fn installed() -> MemoryDatapath {
    let mut datapath = MemoryDatapath::default();
    let mut first = reconciler(&datapath);
    handle(
        &mut first,
        [
            Change::UpsertService(web("a", "10.96.0.1")),
            Change::ReplaceEndpoints(slice("a", [ready("10.244.0.1"), ready("10.244.0.2")])),
            Change::UpsertService(web("b", "10.96.0.2")),
            Change::ReplaceEndpoints(slice("b", [ready("10.244.0.2"), ready("10.244.0.3")])),
        ],
    );
    run(&mut first, &mut datapath, NOW);
    assert_eq!(datapath.state().frontends.len(), 2);
    datapath
}

/// A new process that lists these changes, and has objects that it cannot read.
fn restarted(datapath: &mut MemoryDatapath, changes: impl IntoIterator<Item = Change>) -> Reconciler {
    let mut second = reconciler(datapath);
    handle(&mut second, [Change::InitStart(source("files"))]);
    handle(&mut second, changes);
    handle(&mut second, [Change::KeepUnclaimed(true), Change::InitDone(source("files"))]);
    run(&mut second, datapath, NOW);
    assert!(second.is_settled());
    second
}

fn kept(reconciler: &Reconciler) -> Vec<FrontendAddr> {
    reconciler.kept().iter().copied().collect()
}

fn backends<const N: usize>(all: [&str; N]) -> Answer {
    Answer::Backends(all.map(|address| (backend(address), 1)).into())
}

#[test]
fn a_frontend_that_no_service_claims_stays_until_everything_is_read() {
    let mut datapath = installed();
    let before = datapath.state().clone();
    let changes =
        [Change::UpsertService(web("a", "10.96.0.1")), Change::ReplaceEndpoints(slice("a", [ready("10.244.0.1")]))];
    let mut second = restarted(&mut datapath, changes);
    let state = datapath.state();
    assert_eq!(state.answer(&vip("10.96.0.1"), 0), backends(["10.244.0.1"]), "what is read takes effect");
    assert_eq!(state.answer(&vip("10.96.0.2"), 0), backends(["10.244.0.2", "10.244.0.3"]));
    assert_eq!(state.frontends[&vip("10.96.0.2")], before.frontends[&vip("10.96.0.2")], "its ids stay");
    assert_eq!(kept(&second), [vip("10.96.0.2")]);
    assert_eq!(second.status(&vip("10.96.0.2")), FrontendStatus::Done);
    let expected = second.expected().unwrap();
    assert_eq!(datapath.inspect(expected, Inspection::Everything).unwrap(), [], "it is no drift");

    handle(&mut second, [Change::KeepUnclaimed(false)]);
    assert!(!second.is_settled());
    run(&mut second, &mut datapath, NOW);
    assert!(second.is_settled() && kept(&second).is_empty());
    let state = datapath.state();
    assert_eq!(state.answer(&vip("10.96.0.2"), 0), Answer::NotAFrontend);
    assert_eq!((state.frontends.len(), state.sets.len(), state.backends.len()), (1, 1, 1));
}

#[test]
fn without_a_word_what_no_service_claims_is_removed() {
    let mut datapath = installed();
    let mut second = reconciler(&datapath);
    run(&mut second, &mut datapath, NOW);
    handle(&mut second, [Change::KeepUnclaimed(true)]);
    run(&mut second, &mut datapath, NOW);
    assert!(datapath.state().frontends.is_empty() && kept(&second).is_empty());
}

#[test]
fn the_service_that_comes_back_has_the_frontend_without_a_write() {
    let mut datapath = installed();
    let before = datapath.state().clone();
    let mut second = restarted(&mut datapath, []);
    assert_eq!(kept(&second).len(), 2);
    assert_eq!(*datapath.state(), before);
    let back = [
        Change::UpsertService(web("b", "10.96.0.2")),
        Change::ReplaceEndpoints(slice("b", [ready("10.244.0.2"), ready("10.244.0.3")])),
    ];
    handle(&mut second, back);
    assert_eq!(second.poll_plan(NOW).unwrap(), None);
    assert_eq!(kept(&second), [vip("10.96.0.1")]);
    // From now on it is the service's, and goes with it.
    handle(&mut second, [Change::RemoveService(ServiceName::new("default", "b"))]);
    run(&mut second, &mut datapath, NOW);
    assert_eq!(datapath.state().frontends.keys().copied().collect::<Vec<_>>(), [vip("10.96.0.1")]);
    assert_eq!(datapath.state().answer(&vip("10.96.0.1"), 0), backends(["10.244.0.1", "10.244.0.2"]));
}

#[test]
fn a_service_claims_its_address_in_every_scope() {
    let external = |policy| Service {
        external_ips: vec![ip("192.0.2.1")],
        external_traffic_policy: policy,
        ..web("a", "10.96.0.1")
    };
    let mut datapath = MemoryDatapath::default();
    let mut first = reconciler(&datapath);
    handle(&mut first, [Change::UpsertService(external(TrafficPolicy::Local))]);
    run(&mut first, &mut datapath, NOW);
    let inside = FrontendAddr { scope: Scope::Internal, ..vip("192.0.2.1") };
    assert!(datapath.state().frontends.contains_key(&inside));
    let second = restarted(&mut datapath, [Change::UpsertService(external(TrafficPolicy::Cluster))]);
    assert!(kept(&second).is_empty() && !datapath.state().frontends.contains_key(&inside));
}

#[test]
fn an_observation_that_fails_first_costs_nobody_his_ids() {
    let mut datapath = installed();
    let before = datapath.state().clone();
    let mut second = reconciler(&datapath);
    handle(&mut second, [Change::KeepUnclaimed(true), Change::UpsertService(web("c", "10.96.0.3"))]);
    second.handle_observe_failed(NOW);
    assert_eq!(second.poll_plan(NOW).unwrap(), None);
    settle(&mut second, &mut datapath, NOW);
    assert_eq!(kept(&second), [vip("10.96.0.1"), vip("10.96.0.2")]);
    for (addr, frontend) in &before.frontends {
        assert_eq!(datapath.state().frontends.get(addr), Some(frontend));
    }
}

/// What `state` answers, whoever asks.
fn answers(state: &State) -> Vec<(FrontendAddr, Answer)> {
    state.frontends.keys().map(|addr| (*addr, state.answer(addr, 7))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_answers_as_before_and_leaves_nothing_behind(
        earlier in history(),
        listed in history(),
        later in history(),
        seed in any::<u64>(),
    ) {
        let mut datapath = MemoryDatapath::default();
        let mut first = reconciler(&datapath);
        for change in earlier {
            let _refused_by_the_model = first.handle_change(change);
        }
        settle(&mut first, &mut datapath, NOW);
        let before = answers(datapath.state());

        let faults = Faults { refused_frontends: 200, interrupted_plans: 100, failed_observations: 100, ..Faults::default() };
        let mut datapath = Faulty::new(datapath, faults, seed);
        let mut second = reconciler(&datapath);
        handle(&mut second, [Change::KeepUnclaimed(true)]);
        for change in &listed {
            let _refused_by_the_model = second.handle_change(change.clone());
        }
        let mut now = settle(&mut second, &mut datapath, NOW);
        let serves = |reconciler: &Reconciler, addr: &FrontendAddr| {
            reconciler.model().owner(&FrontendAddr { scope: Scope::External, ..*addr }).is_some()
        };
        for (addr, answer) in &before {
            if !serves(&second, addr) {
                prop_assert!(second.kept().contains(addr), "{} is not kept", addr);
                prop_assert_eq!(&datapath.inner().state().answer(addr, 7), answer, "{}", addr);
            }
        }
        for change in &later {
            let _refused_by_the_model = second.handle_change(change.clone());
            run(&mut second, &mut datapath, now);
            prop_assert_eq!(datapath.inner().state().dangling(), None);
            for (addr, answer) in before.iter().filter(|(addr, _)| second.kept().contains(addr)) {
                // A datapath that was interrupted may wait for the next plan.
                if second.is_settled() {
                    prop_assert_eq!(&datapath.inner().state().answer(addr, 7), answer, "{}", addr);
                }
            }
            now = now + core::time::Duration::from_millis(150);
        }
        handle(&mut second, [Change::KeepUnclaimed(false)]);
        settle(&mut second, &mut datapath, now);
        prop_assert!(second.kept().is_empty());
        prop_assert_eq!(datapath.inner().state(), second.desired());

        // As if nothing had been there before.
        let mut empty = MemoryDatapath::default();
        let mut fresh = reconciler(&empty);
        for change in listed.iter().chain(&later) {
            let _refused_by_the_model = fresh.handle_change(change.clone());
        }
        settle(&mut fresh, &mut empty, NOW);
        prop_assert_eq!(compare(empty.state(), datapath.inner().state()), []);
        let count = |state: &State| (state.frontends.len(), state.sets.len(), state.backends.len());
        prop_assert_eq!(count(empty.state()), count(datapath.inner().state()));
    }
}
