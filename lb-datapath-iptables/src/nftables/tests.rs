//! Plans against a table that keeps its promises: additions are new, removals are there, chains in use stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, Protocol},
    affinity::Affinity,
    datapath::ErrorKind,
    drift::{Expected, Inspection},
    id::{BackendId, FrontendId, SetId},
    name::NodeName,
    node::NodeFacts,
    plan::{Labels, Op, Plan, diff},
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};
use proptest::prelude::*;

use crate::nftables::{
    check::expected::{ExpectedTable, agrees},
    fake::World,
    host::Host,
    table::{
        choice::{Choice, How, Pick},
        elements::fixed_verdicts,
        layout::{Element, Key, Note, Value},
        ranges,
        ruleset::{self},
        slots,
    },
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_what_the_state_says_whatever_led_there(states in prop::collection::vec(arbitrary_state(), 1..5)) {
        let world = World::default();
        let mut engine = world.engine();
        let mut now = State::default();
        for next in states {
            engine.apply(&diff(&now, &next, &Labels::new())).unwrap();
            now = next;
            prop_assert_eq!(world.elements(), expected(&now));
            prop_assert_eq!(world.routed(), now.frontends.keys().map(|addr| addr.ip).collect());
        }
        prop_assert_eq!(world.engine().observe().unwrap(), now.clone());
        let mut restarted = world.engine();
        restarted.apply(&diff(&now, &State::default(), &Labels::new())).unwrap();
        prop_assert_eq!(world.elements(), expected(&State::default()));
        prop_assert_eq!(world.lock().picks.len(), 0);
    }

    #[test]
    fn a_plan_applied_twice_is_applied_once(before in arbitrary_state(), after in arbitrary_state()) {
        let world = World::default();
        let mut engine = world.engine();
        engine.apply(&diff(&State::default(), &before, &Labels::new())).unwrap();
        let plan = diff(&before, &after, &Labels::new());
        engine.apply(&plan).unwrap();
        let sent = world.lock().sent;
        engine.apply(&plan).unwrap();
        prop_assert_eq!(world.lock().sent, sent, "the second time there is nothing to send");
        prop_assert_eq!(world.elements(), expected(&after));
    }

    #[test]
    fn frontends_that_the_kernel_refuses_stay_as_they_were(
        before in arbitrary_state(),
        after in arbitrary_state(),
        refused in prop::collection::btree_set(0_u8..6, 0..3),
    ) {
        let world = World::default();
        let mut engine = world.engine();
        engine.apply(&diff(&State::default(), &before, &Labels::new())).unwrap();
        let refused: BTreeSet<FrontendAddr> = refused.into_iter().map(frontend_addr).collect();
        world.lock().refuses.clone_from(&refused);
        let plan = diff(&before, &after, &Labels::new());
        let result = engine.apply(&plan);
        let touched = |addr: &FrontendAddr| plan.ops.iter().any(|op| names(op, addr));
        let failed: BTreeSet<FrontendAddr> = refused.iter().copied().filter(touched).collect();
        match result {
            Ok(()) => prop_assert_eq!(failed, BTreeSet::new()),
            Err(error) => {
                prop_assert!(error.unknown.is_none());
                prop_assert_eq!(error.failed.iter().map(|(addr, _)| *addr).collect::<BTreeSet<_>>(), failed.clone());
                prop_assert_eq!(error.applied, plan.ops.len() - failed.len());
            }
        }
        let found = world.engine().observe().unwrap();
        for addr in before.frontends.keys().chain(after.frontends.keys()) {
            let side = if refused.contains(addr) { &before } else { &after };
            prop_assert_eq!(found.frontends.get(addr), side.frontends.get(addr), "{}", addr);
        }
        prop_assert_eq!(found.dangling(), None);
    }

    #[test]
    fn whatever_the_table_holds_is_read_without_a_panic(
        state in arbitrary_state(),
        lost in any::<prop::sample::Index>(),
        other in arbitrary_state(),
    ) {
        let world = World::default();
        world.engine().apply(&diff(&State::default(), &state, &Labels::new())).unwrap();
        let key = *lost.get(&world.lock().table.as_ref().unwrap().keys().copied().collect::<Vec<_>>());
        world.lock().table.as_mut().unwrap().remove(&key);
        let mut engine = world.engine();
        let found = engine.observe().unwrap();
        prop_assert_eq!(found.dangling(), None);
        engine.apply(&diff(&found, &other, &Labels::new())).unwrap();
        if !matches!(key, Key::Note(Note::NodeIp | Note::NodeName, _)) {
            prop_assert_eq!(world.elements(), expected(&other));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whatever_others_remove_add_or_change_is_found_and_put_back(
        state in arbitrary_state(),
        other in arbitrary_state(),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        changed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let world = World::default();
        let mut engine = world.engine();
        let labels = Labels::new();
        let expectation = Expected { state: &state, labels: &labels };
        engine.apply(&diff(&State::default(), &state, &labels)).unwrap();
        prop_assert_eq!(engine.inspect(expectation, Inspection::Everything).unwrap(), []);
        let before = world.elements();
        for key in removed {
            let mut model = world.lock();
            let table = model.table.as_mut().unwrap();
            let key = *key.get(&table.keys().copied().collect::<Vec<_>>());
            table.remove(&key);
        }
        // Elements of another state: some are new, some have another value under the same key.
        let others: Vec<(Key, (Value, String))> = expected(&other).into_iter().collect();
        for index in changed {
            let (key, value) = index.get(&others).clone();
            world.lock().table.as_mut().unwrap().insert(key, value);
        }
        let found = engine.inspect(expectation, Inspection::Everything).unwrap();
        let gone = !world.lock().table.as_ref().unwrap().keys().any(|key| matches!(key, Key::Note(Note::Generation, _)));
        prop_assert_eq!(found.is_empty(), world.elements() == before && !gone);
        engine.repair(expectation, &found).unwrap();
        prop_assert_eq!(world.elements(), before);
        prop_assert_eq!(engine.inspect(expectation, Inspection::Everything).unwrap(), []);
        engine.apply(&diff(&state, &other, &labels)).unwrap();
        prop_assert_eq!(world.elements(), expected(&other));
    }

    #[test]
    fn what_is_wanted_is_what_is_written(state in arbitrary_state()) {
        let labels = Labels::new();
        let wanted = ExpectedTable::new(Expected { state: &state, labels: &labels }, Some(7), &BTreeSet::new());
        let mut elements = expected(&state);
        elements.insert(Key::Note(Note::Generation, 7), (Value::None, String::new()));
        prop_assert_eq!(wanted.keys().collect::<BTreeSet<_>>(), elements.keys().copied().collect());
        for (key, (value, comment)) in elements {
            let element = Element { key, value, comment };
            let wanted = wanted.element(&key);
            prop_assert!(wanted.as_ref().is_some_and(|wanted| agrees(wanted, &element)), "{:?}, {:?}", wanted, element);
        }
        let picks: BTreeSet<String> = ruleset::expected(wanted.picks()).chains.into_keys().collect();
        let world = World::default();
        world.engine().apply(&diff(&State::default(), &state, &labels)).unwrap();
        prop_assert_eq!(picks, world.clone().ruleset().unwrap().chains.into_keys().collect());
    }
}

#[test]
fn a_fifth_endpoint_sends_a_handful_of_elements() {
    let world = World::default();
    let mut engine = world.engine();
    let mut services = BTreeMap::new();
    for n in 0..6 {
        services.insert(n, Service { to: Some((Lookup::Random, vec![1, 2, 3, 4])), affinity: None });
    }
    let before = state(&services, &NodeFacts::default(), 1);
    engine.apply(&diff(&State::default(), &before, &Labels::new())).unwrap();
    let sent = world.lock().sent;
    let mut after = before.clone();
    let addr = frontend_addr(0);
    let fifth = BackendId::new(999).unwrap();
    let listens = BackendAddr::new(Ipv4Addr::new(10, 0, 9, 9).into(), 8080, addr.protocol);
    after.backends.insert(fifth, Backend { addr: listens, local: false });
    let Target::Set(old) = after.frontends[&addr].target else { panic!("it has backends") };
    let mut slots = after.sets[&old].slots.to_vec();
    slots.push(fifth);
    let new = SetId::new(999).unwrap();
    after.sets.insert(new, Arc::new(BackendSet::new(Lookup::Random, slots)));
    after.frontends.get_mut(&addr).unwrap().target = Target::Set(new);
    engine.apply(&diff(&before, &after, &Labels::new())).unwrap();
    // Generation, the frontend, the new chain with its rule and what leads there; one slot, and one backend.
    assert_eq!(world.lock().sent - sent, 2 + 2 + 2 + 1 + 1);
    assert_eq!(world.elements(), expected(&after));
}

#[test]
fn another_endpoint_in_a_slot_sends_the_slot_and_the_frontend() {
    let world = World::default();
    let mut engine = world.engine();
    let services = BTreeMap::from([(0, Service { to: Some((Lookup::Random, vec![1, 2])), affinity: None })]);
    let before = state(&services, &NodeFacts::default(), 1);
    engine.apply(&diff(&State::default(), &before, &Labels::new())).unwrap();
    let sent = world.lock().sent;
    let mut after = before.clone();
    let addr = frontend_addr(0);
    let Target::Set(old) = after.frontends[&addr].target else { panic!("it has backends") };
    let mut slots = after.sets.remove(&old).unwrap().slots.to_vec();
    slots.swap(0, 1);
    let new = SetId::new(999).unwrap();
    after.sets.insert(new, Arc::new(BackendSet::new(Lookup::Random, slots)));
    after.frontends.get_mut(&addr).unwrap().target = Target::Set(new);
    engine.apply(&diff(&before, &after, &Labels::new())).unwrap();
    // Generation, the frontend and its two slots, each removed and added.
    assert_eq!(world.lock().sent - sent, 2 + 2 + 4);
    assert_eq!(world.elements(), expected(&after));
}

#[test]
fn one_replaced_backend_of_a_maglev_table_sends_its_slots_only() {
    let world = World::default();
    let mut engine = world.engine();
    let of = |backends: Vec<u8>| BTreeMap::from([(0, Service { to: Some((Lookup::Hash, backends)), affinity: None })]);
    let table = |odd: u8| (0..251).map(|slot| if slot % 10 == 0 { odd } else { 1 }).collect::<Vec<u8>>();
    let before = state(&of(table(2)), &NodeFacts::default(), 1);
    engine.apply(&diff(&State::default(), &before, &Labels::new())).unwrap();
    let sent = world.lock().sent;
    let after = state(&of(table(3)), &NodeFacts::default(), 1);
    engine.apply(&diff(&before, &after, &Labels::new())).unwrap();
    // Generation, the frontend, the hairpin of the backend that was local, both backends, and the blocks with one slot
    // in ten.
    let blocks = (0..251).step_by(10).map(|slot| slot / 8).collect::<BTreeSet<u32>>().len();
    assert_eq!(world.lock().sent - sent, 2 + 2 + 1 + 2 + blocks * 2);
}

#[test]
fn records_of_a_backend_that_left_go_with_it_and_once_more_afterwards() {
    let world = World::default();
    let mut engine = world.engine();
    let sticky = |backends: Vec<u8>| {
        BTreeMap::from([(0, Service { to: Some((Lookup::Random, backends)), affinity: Some(Affinity::default()) })])
    };
    let before = state(&sticky(vec![1, 2]), &NodeFacts::default(), 1);
    engine.apply(&diff(&State::default(), &before, &Labels::new())).unwrap();
    let record = |n: u8, backend: u8| {
        let addr = frontend_addr(0);
        let BackendAddr { ip, port, .. } = backend_addr(&addr, backend);
        Element::new(Key::Record(Ipv4Addr::new(192, 0, 2, n).into(), addr), Value::Backend(ip, port))
    };
    for element in [record(1, 1), record(2, 2)] {
        world.lock().add(element);
    }
    world.lock().late = Some(record(3, 1));
    let after = state(&sticky(vec![2]), &NodeFacts::default(), 1);
    engine.apply(&diff(&before, &after, &Labels::new())).unwrap();
    assert_eq!(world.records(), [record(2, 2).key], "the one that a packet wrote in between is gone too");
    let mut renamed = after.clone();
    renamed.frontends.values_mut().for_each(|frontend| frontend.id = FrontendId::new(77).unwrap());
    engine.apply(&diff(&after, &renamed, &Labels::new())).unwrap();
    assert_eq!(world.records(), []);
}

#[test]
fn flows_are_looked_at_when_a_service_comes_or_goes_and_those_of_udp_when_a_backend_leaves() {
    let world = World::default();
    let mut engine = world.engine();
    let (tcp, udp) = (0, 1);
    let both = |backends: Vec<u8>| {
        let service = |to| Service { to: Some((Lookup::Random, to)), affinity: None };
        BTreeMap::from([(tcp, service(backends.clone())), (udp, service(backends))])
    };
    let mut now = State::default();
    let mut flows = |backends: Vec<u8>| {
        let next = state(&both(backends), &NodeFacts::default(), 1);
        engine.apply(&diff(&now, &next, &Labels::new())).unwrap();
        now = next;
        std::mem::take(&mut world.lock().flows)
    };
    let endpoint = |n| (backend_addr(&frontend_addr(udp), n).ip, backend_addr(&frontend_addr(udp), n).port);
    let allowed = |service, backends: &[u8]| (frontend_addr(service), backends.iter().copied().map(endpoint).collect());
    assert_eq!(flows(vec![1]), [allowed(tcp, &[1]), allowed(udp, &[1])], "it is new");
    assert_eq!(flows(vec![1, 2]), []);
    assert_eq!(flows(vec![2]), [allowed(udp, &[2])], "connections end by themselves");
    let mut gone = |next: State| {
        engine.apply(&diff(&now, &next, &Labels::new())).unwrap();
        std::mem::take(&mut world.lock().flows)
    };
    assert_eq!(gone(State::default()), [allowed(tcp, &[]), allowed(udp, &[])], "nobody may be waited for");
}

#[test]
fn udp_flows_of_a_backend_that_drains_stay_until_it_leaves() {
    let world = World::default();
    let mut engine = world.engine();
    let udp = frontend_addr(1);
    let mut now = State::default();
    let mut flows = |takes: &[u8], drains: &[u8]| {
        let service = Service { to: Some((Lookup::Random, takes.to_vec())), affinity: None };
        let mut next = state(&BTreeMap::from([(1, service)]), &NodeFacts::default(), 1);
        let Target::Set(old) = next.frontends[&udp].target else { panic!("it has backends") };
        let mut set = BackendSet::clone(&next.sets.remove(&old).unwrap());
        set.draining = drains.iter().map(|&n| put_backend(&mut next, &udp, n)).collect();
        next.frontends.get_mut(&udp).unwrap().target = Target::Set(set_id(&set));
        next.sets.insert(set_id(&set), Arc::new(set));
        engine.apply(&diff(&now, &next, &Labels::new())).unwrap();
        assert_eq!(world.elements(), expected(&next));
        now = next;
        std::mem::take(&mut world.lock().flows)
    };
    let endpoint = |n| (backend_addr(&udp, n).ip, backend_addr(&udp, n).port);
    flows(&[1], &[]);
    assert_eq!(flows(&[2], &[1]), []);
    assert_eq!(flows(&[2, 3], &[1]), []);
    assert_eq!(flows(&[2, 3], &[]), [(udp, [endpoint(2), endpoint(3)].into())]);
    assert_eq!(flows(&[3], &[2]), []);
    assert_eq!(flows(&[2], &[]), [(udp, [endpoint(2)].into())], "one that came back keeps its flows");
}

#[test]
fn a_table_of_another_layout_is_replaced_in_one_batch() {
    let world = World::default();
    let some = state(&BTreeMap::from([(0, Service { to: None, affinity: None })]), &NodeFacts::default(), 1);
    world.engine().apply(&diff(&State::default(), &some, &Labels::new())).unwrap();
    world.lock().table.as_mut().unwrap().remove(&Key::Note(Note::Layout, crate::nftables::table::layout::VERSION));
    let mut engine = world.engine();
    assert_eq!(engine.observe().unwrap(), some);
    let commits = world.lock().commits;
    engine.apply(&Plan::default()).unwrap();
    assert_eq!(world.lock().commits, commits + 1);
    assert_eq!(world.elements(), expected(&some));
}

#[test]
fn a_lost_answer_makes_the_state_unknown_and_observing_ends_that() {
    let world = World::default();
    let mut engine = world.engine();
    let some = state(&BTreeMap::from([(0, Service { to: None, affinity: None })]), &NodeFacts::default(), 1);
    world.lock().deaf = true;
    let error = engine.apply(&diff(&State::default(), &some, &Labels::new())).unwrap_err();
    assert!(error.unknown.is_some());
    assert_eq!(engine.observe().unwrap(), some, "it took, only the answer was lost");
}

/// The kernel's hash tables grow in the background.
#[test]
fn elements_that_a_dump_leaves_out_are_there() {
    let world = World::default();
    let mut engine = world.engine();
    let service = || Service { to: Some((Lookup::Random, vec![1, 2])), affinity: None };
    let wanted = state(&(0..6).map(|n| (n, service())).collect(), &NodeFacts::default(), 1);
    let labels = Labels::new();
    engine.apply(&diff(&State::default(), &wanted, &labels)).unwrap();
    let expected = Expected { state: &wanted, labels: &labels };
    for blind in 1..10 {
        world.lock().blind = blind;
        assert_eq!(engine.inspect(expected, Inspection::Everything).unwrap(), [], "{blind}");
        world.lock().blind = blind;
        assert_eq!(world.engine().observe().unwrap(), wanted, "{blind}");
    }
    let commits = world.lock().commits;
    let mut restarted = world.engine();
    world.lock().blind = 9;
    restarted.observe().unwrap();
    restarted.apply(&Plan::default()).unwrap();
    assert_eq!(world.lock().commits, commits, "nothing is made anew");
}

#[test]
fn a_failed_route_fails_its_frontends_only() {
    let world = World::default();
    let mut engine = world.engine();
    let service = || Service { to: None, affinity: None };
    let wanted = state(&(0..4).map(|n| (n, service())).collect(), &NodeFacts::default(), 1);
    let bad = frontend_addr(0).ip;
    world.lock().unroutable = Some(bad);
    let error = engine.apply(&diff(&State::default(), &wanted, &Labels::new())).unwrap_err();
    assert!(error.failed.iter().all(|(addr, cause)| addr.ip == bad && cause.kind() == ErrorKind::System));
    let found = world.engine().observe().unwrap();
    assert_eq!(found.frontends.len() + error.failed.len(), wanted.frontends.len());
}

#[test]
fn a_table_that_appears_before_the_first_transaction_is_left_alone() {
    let world = World::default();
    let mut engine = world.engine();
    engine.observe().unwrap();
    world.lock().foreign = true;
    let wanted = state(&[(0, Service { to: None, affinity: None })].into(), &NodeFacts::default(), 1);
    let plan = diff(&State::default(), &wanted, &Labels::new());
    for _ in 0..2 {
        let error = engine.apply(&plan).unwrap_err();
        assert_eq!(error.unknown.unwrap().kind(), ErrorKind::Busy);
        assert!(world.lock().table.is_none());
    }
    assert_eq!(engine.cleanup().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(world.routed(), BTreeSet::new(), "routes are ours, whosever the table is");
}

#[test]
fn a_kernel_that_lacks_a_message_is_told_by_version() {
    let world = World::default();
    world.lock().outdated = true;
    let error = world.engine().observe().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.report().contains("6.3"), "{}", error.report());
    world.engine().cleanup().unwrap();
}

/// What a service of a test is: where it goes, by number of backend, one for each slot.
#[derive(Clone, Debug)]
struct Service {
    to: Option<(Lookup, Vec<u8>)>,
    affinity: Option<Affinity>,
}

fn arbitrary_state() -> impl Strategy<Value = State> {
    let lookup = prop_oneof![Just(Lookup::Random), Just(Lookup::RoundRobin), Just(Lookup::Hash)];
    let draining = prop::sample::subsequence(vec![DRAINS, DRAINS + 1], 0..=2);
    let backends =
        (prop::collection::vec(1_u8..5, 1..6), draining).prop_map(|(slots, draining)| [slots, draining].concat());
    let to = prop::option::of((lookup, backends));
    let affinity = prop::option::of((1_u64..4, 8_u8..=32, 40_u8..=128).prop_map(|(ms, prefix_v4, prefix_v6)| {
        Affinity { timeout: Duration::from_millis(500 * ms), prefix_v4, prefix_v6 }
    }));
    let service = (to, affinity).prop_map(|(to, affinity)| Service { to, affinity });
    (prop::collection::btree_map(0_u8..6, service, 0..6), arbitrary_node(), 1_u32..4)
        .prop_map(|(services, node, first)| state(&services, &node, first))
}

fn arbitrary_node() -> impl Strategy<Value = NodeFacts> {
    let cidr = prop::sample::select(vec!["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "fd00::/8", "::/0"]);
    (prop::option::of(Just("node-1")), prop::collection::vec(cidr, 0..3)).prop_map(|(name, cidrs)| NodeFacts {
        name: name.map(NodeName::new),
        ips: vec![Ipv4Addr::new(192, 0, 2, 1).into()],
        cluster_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    })
}

/// The state for services; ids follow from content and `first`, so that two states have some in common.
fn state(services: &BTreeMap<u8, Service>, node: &NodeFacts, first: u32) -> State {
    let mut state = State { node: node.clone(), ..State::default() };
    for (&n, service) in services {
        let addr = frontend_addr(n);
        let target = match &service.to {
            None if n % 2 == 0 => Target::Reject,
            None => Target::Drop,
            Some((lookup, backends)) => {
                let (draining, slots): (Vec<u8>, Vec<u8>) = backends.iter().partition(|n| **n >= DRAINS);
                let draining = if addr.protocol == Protocol::Udp { draining } else { Vec::new() };
                let slots = slots.iter().map(|&backend| put_backend(&mut state, &addr, backend)).collect();
                let draining = draining.iter().map(|&backend| put_backend(&mut state, &addr, backend)).collect();
                let set = BackendSet { lookup: *lookup, slots, draining };
                let id = set_id(&set);
                state.sets.insert(id, Arc::new(set));
                Target::Set(id)
            }
        };
        let id = FrontendId::new(first + 10 * u32::from(n)).unwrap();
        state.frontends.insert(addr, Frontend { affinity: service.affinity, ..Frontend::new(id, target) });
    }
    state
}

/// The first backend that takes no new flows, only UDP flows that it has.
const DRAINS: u8 = 8;

/// Equal sets have equal ids, and no others.
fn set_id(set: &BackendSet) -> SetId {
    let mut hasher = DefaultHasher::new();
    (set.lookup, &set.slots, &set.draining).hash(&mut hasher);
    SetId::new(u32::try_from(hasher.finish() >> 32).unwrap() | 1).unwrap()
}

fn frontend_addr(n: u8) -> FrontendAddr {
    let ip: IpAddr =
        if n < 4 { [10, 96, 0, n / 2].into() } else { Ipv6Addr::from([0xfd96, 0, 0, 0, 0, 0, 0, 1]).into() };
    FrontendAddr::new(ip, 80, if n.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp })
}

fn backend_addr(frontend: &FrontendAddr, n: u8) -> BackendAddr {
    let ip: IpAddr = match frontend.family() {
        Family::V4 => [10, 0, 0, n].into(),
        Family::V6 => Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, n.into()]).into(),
    };
    BackendAddr::new(ip, 8080, frontend.protocol)
}

fn put_backend(state: &mut State, frontend: &FrontendAddr, n: u8) -> BackendId {
    let addr = backend_addr(frontend, n);
    let family = if frontend.ip.is_ipv4() { 0 } else { 100 };
    let protocol = if frontend.protocol == Protocol::Tcp { 0 } else { 10 };
    let id = BackendId::new(family + protocol + u32::from(n)).unwrap();
    state.backends.insert(id, Backend { addr, local: n.is_multiple_of(2) });
    id
}

fn names(op: &Op, wanted: &FrontendAddr) -> bool {
    match op {
        Op::UpsertFrontend { addr, .. } | Op::RemoveFrontend(addr) => addr == wanted,
        _ => false,
    }
}

/// The elements that a state stands for, said once more and from scratch.
fn expected(state: &State) -> BTreeMap<Key, (Value, String)> {
    let mut table = BTreeMap::new();
    table.insert(Key::Note(Note::Layout, crate::nftables::table::layout::VERSION), (Value::None, "layout".into()));
    table.extend(fixed_verdicts().map(|way| (way.key, (way.value, String::new()))));
    for backend in state.backends.values().filter(|backend| backend.local) {
        table.insert(Key::Hairpin(backend.addr.ip), (Value::None, String::new()));
    }
    for backend in state.backends.values().filter(|backend| backend.addr.protocol == Protocol::Tcp) {
        table.insert(Key::Backend(backend.addr.ip, backend.addr.port), (Value::None, String::new()));
    }
    for (&addr, frontend) in &state.frontends {
        let mut comment = format!("frontend {}", frontend.id);
        let choice = match frontend.target {
            Target::Reject => Choice::Refuse,
            Target::Drop => Choice::Drop,
            Target::Set(id) => {
                comment.push_str(&format!(" set {id}"));
                let set = &state.sets[&id];
                let how = match set.lookup {
                    Lookup::Random | Lookup::LeastConnections => How::Random,
                    Lookup::Hash => How::Hash,
                    Lookup::RoundRobin => How::Turn(frontend.id),
                };
                let slots = u32::try_from(set.slots.len()).unwrap();
                let pick = Pick { family: addr.family(), scope: addr.scope, how, slots, affinity: frontend.affinity };
                let in_slots = |ids: &[BackendId]| ids.iter().map(|id| (*id, state.backends[id])).collect();
                let backends = slots::Backends { slots: in_slots(&set.slots), draining: in_slots(&set.draining) };
                let elements =
                    slots::elements(addr, set.lookup == Lookup::Hash && frontend.affinity.is_none(), &backends);
                table.extend(elements.into_iter().map(|element| (element.key, (element.value, element.comment))));
                let choice = Choice::Pick(pick);
                table.insert(Key::Verdict(addr.family(), choice), (Value::Choice(choice), String::new()));
                choice
            }
        };
        if let Some(Affinity { timeout, prefix_v4, prefix_v6 }) = frontend.affinity {
            comment.push_str(&format!(" affinity {}/{prefix_v4}/{prefix_v6}", timeout.as_nanos()));
        }
        table.insert(Key::Frontend(addr), (Value::Choice(choice), comment));
    }
    let NodeFacts { name, ips, cluster_cidrs } = &state.node;
    let mut note = |note, n, text: String| table.insert(Key::Note(note, n), (Value::None, text));
    name.iter().for_each(|name| drop(note(Note::NodeName, 0, name.to_string())));
    (0..).zip(ips).for_each(|(n, ip)| drop(note(Note::NodeIp, n, ip.to_string())));
    (0..).zip(cluster_cidrs).for_each(|(n, cidr)| drop(note(Note::ClusterCidr, n, cidr.to_string())));
    for (first, end) in [Family::V4, Family::V6].into_iter().flat_map(|family| ranges::merged(cluster_cidrs, family)) {
        table.insert(Key::Bound(first, crate::nftables::table::layout::Bound::Start), (Value::None, String::new()));
        if let Some(end) = end {
            table.insert(Key::Bound(end, crate::nftables::table::layout::Bound::End), (Value::None, String::new()));
        }
    }
    table
}
