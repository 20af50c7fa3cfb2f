//! What another tool changes is found, named and put right.

use std::collections::BTreeSet;

use crate::worlds::{history, ip, ready, slice, web};
use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::Datapath,
    decision::{Entry, FlowView, Packet, Verdict, decide},
    drift::{Cause, Difference, Drift, DriftClass, Inspection},
    faulty::{Faults, Faulty},
    kernel::{Backends, KernelVerdict},
    memory::MemoryDatapath,
    model::{Change, Model, Settings},
    node::NodeFacts,
    reconciler::Reconciler,
    state::{State, Target},
    time::Instant,
};
use proptest::prelude::*;

fn reconciler(changes: impl IntoIterator<Item = Change>, datapath: &mut impl Datapath) -> Reconciler {
    let mut reconciler = Reconciler::new(Model::new(Settings::default(), datapath.capabilities()));
    reconciler.handle_change(Change::SetNode(NodeFacts::default())).unwrap();
    reconciler.handle_observed(datapath.observe().unwrap());
    for change in changes {
        let _refused_by_the_model = reconciler.handle_change(change);
        while let Some(plan) = reconciler.poll_plan(Instant::default()).unwrap() {
            let outcome = datapath.apply(&plan);
            reconciler.handle_applied(plan.id, outcome, Instant::default());
        }
    }
    reconciler
}

fn one_service() -> [Change; 2] {
    let backends = [ready("10.244.0.1"), ready("10.244.0.2")];
    [Change::UpsertService(web("a", "10.96.0.1")), Change::ReplaceEndpoints(slice("a", backends))]
}

fn addr(ip_: &str) -> FrontendAddr {
    FrontendAddr::new(ip(ip_), 80, Protocol::Tcp)
}

/// Disturbs a datapath with one service, and says what an inspection finds.
fn found_after(disturb: impl FnOnce(&mut State)) -> Vec<Drift> {
    let mut datapath = MemoryDatapath::default();
    let reconciler = reconciler(one_service(), &mut datapath);
    assert_eq!(datapath.inspect(reconciler.expected().unwrap(), Inspection::Everything).unwrap(), []);
    datapath.disturb(disturb);
    let found = datapath.inspect(reconciler.expected().unwrap(), Inspection::Everything).unwrap();
    datapath.repair(reconciler.expected().unwrap(), &found).unwrap();
    assert_eq!(Some(datapath.state()), reconciler.installed());
    found
}

#[test]
fn each_difference_is_named() {
    let vip = addr("10.96.0.1");
    let missing = |class, object: &str| Drift::new(class, object, Difference::Missing);
    let found = found_after(|state| state.frontends.clear());
    assert!(found.contains(&missing(DriftClass::Frontend, "10.96.0.1:80/tcp").because(Cause::Flushed)), "{found:?}");
    let found = found_after(|state| {
        let copy = state.frontends[&vip].clone();
        state.frontends.insert(addr("10.96.0.9"), copy);
    });
    assert_eq!(found, [Drift::new(DriftClass::Frontend, "10.96.0.9:80/tcp", Difference::Extra)]);
    let found = found_after(|state| state.frontends.get_mut(&vip).unwrap().target = Target::Reject);
    let wrong = |expected: &str, found: &str| Difference::Wrong { expected: expected.into(), found: found.into() };
    assert!(found.contains(&Drift::new(DriftClass::Frontend, vip, wrong("2 slots, at random", "refused"))));
    let found = found_after(|state| {
        let last = *state.backends.keys().next_back().unwrap();
        state.backends.get_mut(&last).unwrap().addr.port = 9;
    });
    let slot = wrong("10.244.0.2:8080/tcp", "10.244.0.2:9/tcp");
    assert!(found.contains(&Drift::new(DriftClass::Slot, "10.96.0.1:80/tcp slot 1", slot)), "{found:?}");
    assert!(found.contains(&missing(DriftClass::Backend, "10.244.0.2:8080/tcp")), "{found:?}");
}

proptest! {
    #[test]
    fn lost_operations_are_found_and_repaired(history in history(), seed in any::<u64>()) {
        let mut datapath = Faulty::new(MemoryDatapath::default(), Faults { lost_operations: 100, ..Faults::default() }, seed);
        let reconciler = reconciler(history, &mut datapath);
        datapath.set_faults(Faults::default());
        let expected = reconciler.expected().unwrap();
        let found = datapath.inspect(expected, Inspection::Everything).unwrap();
        let answers = |state: &State| -> Vec<_> {
            let all = expected.state.frontends.keys().chain(datapath.inner().state().frontends.keys());
            all.map(|addr| state.answer(addr, 0)).collect()
        };
        if answers(datapath.inner().state()) != answers(expected.state) {
            prop_assert!(!found.is_empty());
        }
        datapath.repair(expected, &found).unwrap();
        prop_assert_eq!(datapath.inner().state(), expected.state);
        prop_assert_eq!(datapath.inspect(expected, Inspection::Everything).unwrap(), []);
    }

    /// The oracle and the state that was made of the same model never disagree.
    #[test]
    fn memory_agrees_with_the_oracle(history in history(), client in any::<u32>(), port in any::<u16>()) {
        let mut datapath = MemoryDatapath::default();
        let reconciler = reconciler(history, &mut datapath);
        let frontends: BTreeSet<_> = reconciler.desired().frontends.keys().copied().collect();
        for frontend in frontends {
            let source = match frontend.ip {
                std::net::IpAddr::V4(_) => std::net::Ipv4Addr::from_bits(client).into(),
                std::net::IpAddr::V6(_) => std::net::Ipv6Addr::from_bits(client.into()).into(),
            };
            let packet = Packet {
                entry: Entry::PodDevice,
                protocol: frontend.protocol,
                source,
                source_port: port,
                destination: frontend.ip,
                destination_port: frontend.port,
            };
            let decision = decide(reconciler.model(), &packet, &FlowView::default(), Instant::default());
            let answer = datapath.ask(&packet).unwrap().unwrap();
            prop_assert_eq!(answer.disagreements(&packet, &decision), Vec::<String>::new());
        }
    }
}

#[test]
fn disagreements_are_said() {
    let mut datapath = MemoryDatapath::default();
    let reconciler = reconciler(one_service(), &mut datapath);
    let packet = Packet {
        entry: Entry::PodDevice,
        protocol: Protocol::Tcp,
        source: ip("10.244.0.5"),
        source_port: 4000,
        destination: ip("10.96.0.1"),
        destination_port: 80,
    };
    let decision = decide(reconciler.model(), &packet, &FlowView::default(), Instant::default());
    assert!(matches!(decision.verdict, Verdict::Forward(_)));
    datapath.disturb(|state| {
        let id = *state.backends.keys().next().unwrap();
        state.backends.get_mut(&id).unwrap().addr.ip = ip("192.0.2.9");
    });
    let answer = datapath.ask(&packet).unwrap().unwrap();
    let expected = "backend: expected 10.244.0.1:8080/tcp or 10.244.0.2:8080/tcp, \
                    the kernel has 10.244.0.2:8080/tcp or 192.0.2.9:8080/tcp";
    assert_eq!(answer.disagreements(&packet, &decision), [expected]);
    datapath.disturb(|state| state.frontends.clear());
    let answer = datapath.ask(&packet).unwrap().unwrap();
    assert_eq!(answer.disagreements(&packet, &decision), ["verdict: expected forward, the kernel has pass"]);
    let took = |translated| KernelVerdict::Forward {
        backends: Backends::Took(lb_core::addr::BackendAddr::new(ip("10.244.0.1"), 8080, Protocol::Tcp)),
        translated: Some(translated),
    };
    let sources = [false, true].map(|translated| {
        lb_core::kernel::KernelAnswer { verdict: took(translated), ..answer.clone() }.disagreements(&packet, &decision)
    });
    let kept = "source: expected a translated one, the kernel has the client's".to_owned();
    assert_eq!(sources, [vec![kept], vec![]]);
}
