//! Properties of states and plans over random histories.

use std::collections::BTreeSet;

use crate::worlds::{history, settings};
use lb_core::{
    datapath::Capabilities,
    decision::{Packet, Verdict, decide},
    desired::Desired,
    model::{Change, Model},
    name::ServiceName,
    plan::{Labels, Plan, diff},
    state::{Answer, State, Target},
};
use proptest::prelude::*;

/// The states that a history passes through, each computed service by service, and the model at its end.
fn states(history: &[Change]) -> (Vec<State>, Model) {
    let (mut model, mut desired) = (Model::new(settings(), Capabilities::all("memory")), Desired::default());
    let mut states = vec![State::default()];
    for change in history {
        if let Ok(touched) = model.apply(change.clone()) {
            desired.update(&model, &touched).unwrap();
            states.push(desired.state().clone());
        }
    }
    (states, model)
}

fn applied(from: &State, plan: &Plan) -> State {
    let mut state = from.clone();
    state.apply_guarded(&plan.ops);
    state
}

/// The answers of a state with ids replaced by what they stand for, so that two states can be compared.
fn meaning(state: &State) -> Vec<(lb_core::addr::FrontendAddr, Answer, Option<lb_core::affinity::Affinity>)> {
    let hash = 0x1234_5678;
    state.frontends.iter().map(|(addr, frontend)| (*addr, state.answer(addr, hash), frontend.affinity)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn applying_the_difference_gives_the_desired_state(history in history()) {
        let (states, _) = states(&history);
        for pair in states.windows(2) {
            prop_assert_eq!(pair[1].dangling(), None);
            let plan = diff(&pair[0], &pair[1], &Labels::new());
            prop_assert_eq!(&applied(&pair[0], &plan), &pair[1]);
            prop_assert!(diff(&pair[1], &pair[1], &Labels::new()).is_empty());
        }
        let (first, last) = (&states[0], &states[states.len() - 1]);
        prop_assert_eq!(&applied(first, &diff(first, last, &Labels::new())), last);
    }

    #[test]
    fn no_prefix_of_a_plan_leaves_a_live_frontend_without_an_answer(history in history()) {
        let (states, _) = states(&history);
        for pair in states.windows(2) {
            let plan = diff(&pair[0], &pair[1], &Labels::new());
            let mut state = pair[0].clone();
            for op in &plan.ops {
                state.apply_op(op);
                for addr in pair[0].frontends.keys().filter(|addr| pair[1].frontends.contains_key(addr)) {
                    let answer = state.answer(addr, 7);
                    prop_assert!(!matches!(answer, Answer::Broken | Answer::NotAFrontend), "{addr}: {answer:?} after {op:?}");
                    let (old, new) = (pair[0].answer(addr, 7), pair[1].answer(addr, 7));
                    prop_assert!(answer == old || answer == new, "{addr}: a mix {answer:?} after {op:?}");
                }
            }
        }
    }

    #[test]
    fn service_by_service_equals_all_at_once(history in history()) {
        let (states, model) = states(&history);
        let mut fresh = Desired::default();
        let all: BTreeSet<ServiceName> = model.services().map(|service| service.name.clone()).collect();
        fresh.update(&model, &all).unwrap();
        prop_assert_eq!(meaning(fresh.state()), meaning(states.last().unwrap()));
        prop_assert_eq!(fresh.state().backends.len(), states.last().unwrap().backends.len());
        prop_assert_eq!(fresh.state().sets.len(), states.last().unwrap().sets.len());
    }

    #[test]
    fn ids_survive_a_restart(history in history(), seed in any::<u64>()) {
        let (states, model) = states(&history);
        let installed = states.last().unwrap();
        let mut restarted = Desired::default();
        restarted.adopt(installed);
        restarted.update(&model, &BTreeSet::new()).unwrap();
        let mut names: Vec<ServiceName> = model.services().map(|service| service.name.clone()).collect();
        if !names.is_empty() {
            let turn = seed as usize % names.len();
            names.rotate_left(turn);
        }
        for name in names {
            restarted.update(&model, &BTreeSet::from([name])).unwrap();
        }
        prop_assert!(diff(installed, restarted.state(), restarted.labels()).is_empty());
    }

    #[test]
    fn the_state_answers_as_the_oracle_decides(history in history(), source in 1u8..=9, source_port in 1024u16.., entry in 0usize..3) {
        let (states, model) = states(&history);
        let state = states.last().unwrap();
        let entry = [lb_core::decision::Entry::Socket, lb_core::decision::Entry::PodDevice, lb_core::decision::Entry::Uplink][entry];
        for (addr, _) in model.owners() {
            let source = if addr.ip.is_ipv4() { format!("10.244.0.{source}") } else { format!("fd00:244::{source}") };
            let packet = Packet {
                entry,
                protocol: addr.protocol,
                source: crate::worlds::ip(&source),
                source_port,
                destination: addr.ip,
                destination_port: addr.port,
            };
            let decision = decide(&model, &packet, &Default::default(), Default::default());
            let frontend = decision.frontend.expect("every frontend is in a datapath that can do everything");
            let hash = match state.frontends[&frontend].affinity {
                Some(affinity) => affinity.client_hash(packet.source),
                None => packet.flow_hash(),
            };
            let guard = state.frontends[&frontend].guard.as_ref();
            prop_assert_eq!(model.other_ports(addr.ip), state.other_ports(addr.ip));
            match (decision.verdict, state.answer(&frontend, hash)) {
                (verdict, _) if guard.is_some_and(|guard| !guard.admits(&packet, &state.node)) => {
                    prop_assert_eq!(verdict, Verdict::Drop);
                }
                (Verdict::Reject, Answer::Reject) | (Verdict::Drop, Answer::Drop) => {}
                (Verdict::Forward(forward), Answer::Backends(slots)) => match forward.choice {
                    lb_core::decision::Choice::Exactly(backend) => prop_assert!(slots.len() == 1 && slots.contains_key(&backend)),
                    lb_core::decision::Choice::OneOf(weights) => prop_assert_eq!(weights, slots),
                },
                (verdict, answer) => prop_assert!(false, "{frontend}: oracle {verdict:?}, state {answer:?}"),
            }
        }
    }
}

#[test]
fn equal_backend_sets_share_one_table() {
    let (mut model, mut desired) = (Model::default(), Desired::default());
    for (name, address) in [("a", "10.96.0.1"), ("b", "10.96.0.2")] {
        let mut service = crate::worlds::web(name, address);
        service.external_ips =
            vec![crate::worlds::ip(&format!("192.0.2.{}", address.len() + name.as_bytes()[0] as usize % 7))];
        service.algorithm = Some(lb_core::service::Algorithm::Maglev);
        model.apply(Change::UpsertService(service)).unwrap();
        let slice = crate::worlds::slice(name, ["10.244.0.1", "10.244.0.2"].map(crate::worlds::ready));
        let touched = model.apply(Change::ReplaceEndpoints(slice)).unwrap();
        desired.update(&model, &touched).unwrap();
    }
    let targets: BTreeSet<Target> = desired.state().frontends.values().map(|frontend| frontend.target).collect();
    assert_eq!((desired.state().frontends.len(), targets.len(), desired.state().sets.len()), (4, 1, 1));
}

#[test]
fn a_backend_that_two_services_place_differently_is_local_whichever_came_first() {
    let mut model = Model::default();
    let here = lb_core::node::NodeFacts { name: Some(lb_core::name::NodeName::new("here")), ..Default::default() };
    model.apply(Change::SetNode(here)).unwrap();
    let at = |node| lb_core::endpoint::Endpoint {
        node: Some(lb_core::name::NodeName::new(node)),
        ..crate::worlds::ready("10.244.0.1")
    };
    for (name, address, node) in [("a", "10.96.0.1", "here"), ("b", "10.96.0.2", "there")] {
        model.apply(Change::UpsertService(crate::worlds::web(name, address))).unwrap();
        model.apply(Change::ReplaceEndpoints(crate::worlds::slice(name, [at(node)]))).unwrap();
    }
    let names = ["a", "b"].map(|name| BTreeSet::from([ServiceName::new("default", name)]));
    for order in [[&names[0], &names[1]], [&names[1], &names[0]]] {
        let mut desired = Desired::default();
        for name in order {
            desired.update(&model, name).unwrap();
        }
        let local: Vec<bool> = desired.state().backends.values().map(|backend| backend.local).collect();
        assert_eq!(local, [true]);
        let mut without = model.clone();
        let touched = without.apply(Change::RemoveService(ServiceName::new("default", "a"))).unwrap();
        desired.update(&without, &touched).unwrap();
        assert!(desired.state().backends.values().all(|backend| !backend.local), "only `b` is left to say");
    }
}

#[test]
fn a_service_that_moves_keeps_its_set_and_the_ids_of_its_backends() {
    let (mut model, mut desired) = (Model::default(), Desired::default());
    let slice = crate::worlds::slice("a", ["10.244.0.1", "10.244.0.2"].map(crate::worlds::ready));
    model.apply(Change::ReplaceEndpoints(slice)).unwrap();
    let mut states = Vec::new();
    for address in ["10.96.0.1", "10.96.0.2"] {
        let touched = model.apply(Change::UpsertService(crate::worlds::web("a", address))).unwrap();
        desired.update(&model, &touched).unwrap();
        states.push(desired.state().clone());
    }
    assert_eq!((&states[0].sets, &states[0].backends), (&states[1].sets, &states[1].backends));
    let plan = diff(&states[0], &states[1], &Labels::new());
    assert_eq!(plan.summary(), "2 operations: frontends +1 -1, sets +0 -0, backends +0 -0");
    let one = Plan { ops: plan.ops[..1].to_vec(), ..plan };
    assert!(one.summary().starts_with("1 operation: "), "{}", one.summary());
}
