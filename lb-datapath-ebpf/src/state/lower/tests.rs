//! Plans against fake maps that a reader looks at after every single write.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    affinity::Affinity,
    datapath::ErrorKind,
    id::{BackendId, FrontendId, SetId},
    node::NodeFacts,
    plan::{Labels, Op, Plan, diff},
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};
use lb_datapath_ebpf_abi as abi;
use proptest::prelude::*;

mod hostile;

use super::apply;
use crate::state::{
    convert,
    mirror::Mirror,
    ports::Ports,
    restore::{Restored, claim},
    write::{Cause, Limits, Snapshot, Store, Write},
};

const LIMITS: Limits =
    Limits { frontends: 16, backends: 64, sets: 64, members: 1024, sources: 64, chunks: 64, ports: PORTS };
const PORTS: Ports = Ports { first: 1024, last: 19_999 };

/// Maps in memory. After every write, down to the single slot, `check` looks at them.
#[derive(Default)]
struct Fake<'a> {
    frontends: BTreeMap<abi::FrontendKey, abi::FrontendValue>,
    backends: BTreeMap<u32, abi::BackendValue>,
    sets: BTreeMap<u32, abi::SetValue>,
    members: BTreeMap<abi::MemberKey, u8>,
    turns: BTreeMap<u32, ()>,
    sources: BTreeMap<abi::SourceKey, ()>,
    addresses: BTreeMap<abi::Addr, u8>,
    cidrs: BTreeMap<abi::CidrKey, u8>,
    node: Option<abi::NodeValue>,
    slots: Vec<u32>,
    now: Duration,
    writes: u64,
    fails: Vec<u64>,
    check: Option<&'a dyn Fn(&Fake<'_>)>,
}

impl Fake<'_> {
    fn new() -> Self {
        Self { slots: vec![0; LIMITS.chunks as usize * abi::SLOTS_PER_CHUNK as usize], ..Self::default() }
    }

    fn one(&mut self, write: &Write) -> Result<(), Cause> {
        self.writes += 1;
        if self.fails.contains(&self.writes) {
            return Err(Cause::new(ErrorKind::System, "injected"));
        }
        match write {
            Write::Backend(id, value) => drop(self.backends.insert(*id, *value)),
            Write::NoBackend(id) => drop(self.backends.remove(id)),
            Write::Member(key, value) => drop(self.members.insert(*key, *value)),
            Write::NoMember(key) => drop(self.members.remove(key)),
            Write::Turns(id) => drop(self.turns.insert(*id, ())),
            Write::NoTurns(id) => drop(self.turns.remove(id)),
            Write::Set(id, value) => drop(self.sets.insert(*id, *value)),
            Write::NoSet(id) => drop(self.sets.remove(id)),
            Write::Frontend(key, value) => drop(self.frontends.insert(*key, *value)),
            Write::NoFrontend(key) => drop(self.frontends.remove(key)),
            Write::Cidr(key, family) => drop(self.cidrs.insert(*key, *family)),
            Write::NoCidr(key) => drop(self.cidrs.remove(key)),
            Write::Node(value) => self.node = Some(**value),
            Write::Known(_) | Write::Device(..) | Write::NoDevice(_) => {}
            Write::Source(key) => drop(self.sources.insert(*key, ())),
            Write::NoSource(key) => drop(self.sources.remove(key)),
            Write::Address(addr, says) => drop(self.addresses.insert(*addr, *says)),
            Write::NoAddress(addr) => drop(self.addresses.remove(addr)),
            Write::Slots(first, ids) => {
                for (i, id) in ids.iter().enumerate() {
                    self.slots[*first as usize * abi::SLOTS_PER_CHUNK as usize + i] = id.get();
                    self.look();
                }
            }
        }
        Ok(())
    }

    fn look(&self) {
        if let Some(check) = self.check {
            check(self);
        }
    }

    /// Fewer at the end, as the maps say it.
    fn slots(&self, first: u32, count: u32) -> Vec<u32> {
        let start = first as usize * abi::SLOTS_PER_CHUNK as usize;
        self.slots.iter().copied().skip(start).take(count as usize).collect()
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            frontends: self.frontends.iter().map(|(key, value)| (*key, *value)).collect(),
            backends: self.backends.iter().map(|(key, value)| (*key, *value)).collect(),
            claims: self
                .frontends
                .values()
                .filter_map(claim)
                .map(|(id, value)| (id, value, self.slots(value.first, value.slots)))
                .collect(),
            sets: self.sets.iter().map(|(id, value)| (*id, *value, self.slots(value.first, value.slots))).collect(),
            members: self.members.iter().map(|(key, value)| (*key, *value)).collect(),
            turns: self.turns.keys().copied().collect(),
            sources: self.sources.keys().copied().collect(),
            addresses: self.addresses.iter().map(|(addr, says)| (*addr, *says)).collect(),
            cidrs: self.cidrs.keys().copied().collect(),
            node: self.node,
        }
    }

    fn state(&self) -> State {
        Restored::new(&self.snapshot(), LIMITS).mirror.state
    }

    /// What a program finds for a new flow to `addr`: `None` if it finds nothing, a backend's address per slot, or
    /// none for a frontend that refuses or drops.
    fn answer(&self, addr: &FrontendAddr) -> Option<Vec<BackendAddr>> {
        let value = self.frontends.get(&convert::frontend_key(addr).unwrap())?;
        if value.target != abi::TARGET_SET {
            return Some(Vec::new());
        }
        let found = self.slots(value.first, value.slots).into_iter().map(|id| {
            let backend = self.backends.get(&id)?;
            let known = self.members.get(&abi::MemberKey { set: value.set, backend: id }) == Some(&abi::MEMBER_TAKES);
            let counted = value.lookup != abi::LOOKUP_ROUND_ROBIN || self.turns.contains_key(&value.set);
            let asked = value.affinity != 0 || backend.protocol == Protocol::Udp.number();
            (counted && (known || !asked)).then(|| convert::backend(backend).unwrap().addr)
        });
        found.collect()
    }
}

impl Store for Fake<'_> {
    fn write(&mut self, writes: &[Write]) -> Vec<(usize, Cause)> {
        let mut failed = Vec::new();
        for (at, write) in writes.iter().enumerate() {
            if let Err(cause) = self.one(write) {
                failed.push((at, cause));
            }
            self.look();
        }
        failed
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn wait_until(&mut self, at: Duration) {
        self.now = at;
    }
}

/// What a state answers, in the fake's terms.
fn expected(state: &State, addr: &FrontendAddr) -> Option<Vec<BackendAddr>> {
    Some(match state.frontends.get(addr)?.target {
        Target::Set(id) => state.sets[&id].slots.iter().map(|id| state.backends[id].addr).collect(),
        Target::Reject | Target::Drop => Vec::new(),
    })
}

fn backend(id: u32) -> (BackendId, Backend) {
    let protocol = if id.is_multiple_of(2) { Protocol::Udp } else { Protocol::Tcp };
    let addr = BackendAddr::new([10, 0, 0, id as u8].into(), 8080, protocol);
    (BackendId::new(id).unwrap(), Backend { addr, local: id > 4 })
}

/// The content of a set, which follows from its id.
fn set(id: u32, protocol: Protocol) -> (SetId, BackendSet) {
    let first = if protocol == Protocol::Udp { 2 } else { 1 };
    let members = (0..4).filter(|bit| id >> bit & 1 == 1).map(|bit| backend(first + 2 * bit).0);
    let slots: Arc<[_]> = members.flat_map(|id| [id; 3]).collect();
    let lookup = [Lookup::Random, Lookup::RoundRobin, Lookup::Hash][id as usize % 3];
    let other = (0..4).find(|bit| protocol == Protocol::Udp && id.is_multiple_of(2) && id >> bit & 1 == 0);
    let draining = other.map(|bit| backend(first + 2 * bit).0).into_iter().collect();
    let id = id + if protocol == Protocol::Udp { 16 } else { 0 };
    (SetId::new(id).unwrap(), BackendSet { lookup, slots, draining })
}

fn frontend_addr(number: u8) -> FrontendAddr {
    let protocol = if number.is_multiple_of(2) { Protocol::Udp } else { Protocol::Tcp };
    FrontendAddr::new([10, 96, 0, number].into(), 80, protocol)
}

prop_compose! {
    /// A state with up to eight frontends over sets that are the same in every state.
    fn states()(
        targets in proptest::collection::btree_map(0_u8..8, (0_u32..18, any::<bool>()), 0..8),
        cidrs in proptest::collection::btree_set(8_u8..12, 0..3),
    ) -> State {
        let mut state = State::default();
        for (number, (target, sticky)) in targets {
            let addr = frontend_addr(number);
            let target = match target {
                0 | 16 => Target::Reject,
                17 => Target::Drop,
                id => {
                    let (id, content) = set(id, addr.protocol);
                    state.backends.extend(content.backends().into_iter().map(|id| backend(id.get())));
                    state.sets.insert(id, Arc::new(content));
                    Target::Set(id)
                }
            };
            let affinity = sticky.then(Affinity::default);
            let id = FrontendId::new(u32::from(number) + 1).unwrap();
            state.frontends.insert(addr, Frontend { affinity, ..Frontend::new(id, target) });
        }
        let cluster_cidrs = cidrs.into_iter().map(|bits| format!("10.0.0.0/{bits}").parse().unwrap()).collect();
        state.node = NodeFacts { name: None, ips: vec![[192, 0, 2, 1].into()], cluster_cidrs };
        state
    }
}

fn plan(before: &State, after: &State) -> Plan {
    diff(before, after, &Labels::default())
}

proptest! {
    #[test]
    fn no_single_write_leaves_a_lasting_frontend_without_an_answer(
        steps in proptest::collection::vec(states(), 2..5),
    ) {
        let mut mirror = Mirror::new(LIMITS);
        let mut before = State::default();
        let mut maps = Fake::new();
        for after in steps {
            let addrs: Vec<_> = (0..8).map(frontend_addr).collect();
            let check = |maps: &Fake<'_>| {
                for addr in addrs.iter().filter(|addr| before.frontends.contains_key(addr) && after.frontends.contains_key(addr)) {
                    let found = maps.answer(addr);
                    assert!(found.is_some(), "{addr} has no answer");
                    assert!(found == expected(&before, addr) || found == expected(&after, addr), "{addr}: {found:?}");
                }
            };
            let mut watched = Fake { check: Some(&check), ..maps };
            apply(&mut mirror, &mut watched, &plan(&before, &after)).unwrap();
            maps = Fake { check: None, ..watched };
            prop_assert_eq!(&mirror.state, &after);
            prop_assert_eq!(maps.state(), after.clone());
            for addr in after.frontends.keys() {
                prop_assert_eq!(maps.answer(addr), expected(&after, addr));
            }
            before = after;
        }
        apply(&mut mirror, &mut maps, &plan(&before, &State::default())).unwrap();
        prop_assert!(maps.members.is_empty() && maps.turns.is_empty() && maps.cidrs.is_empty());
        prop_assert_eq!(mirror.elements(), 0);
    }

    #[test]
    fn what_fails_is_named_and_the_rest_takes(
        first in states(), second in states(), fails in proptest::collection::vec(1_u64..60, 1..6),
    ) {
        let (mut mirror, mut maps) = (Mirror::new(LIMITS), Fake::new());
        apply(&mut mirror, &mut maps, &plan(&State::default(), &first)).unwrap();
        maps.fails = fails.iter().map(|fail| maps.writes + fail).collect();
        let outcome = apply(&mut mirror, &mut maps, &plan(&first, &second));
        prop_assert_eq!(&mirror.state, &maps.state());
        prop_assert_eq!(mirror.state.dangling(), None);
        if let Err(error) = &outcome {
            for (addr, _) in &error.failed {
                prop_assert_eq!(mirror.state.frontends.get(addr), first.frontends.get(addr));
            }
        }
        let failed = |addr: &FrontendAddr| {
            outcome.as_ref().is_err_and(|error| error.failed.iter().any(|(failed, _)| failed == addr))
        };
        for addr in (0..8).map(frontend_addr).filter(|addr| !failed(addr)) {
            prop_assert_eq!(mirror.state.frontends.get(&addr), second.frontends.get(&addr));
        }
        maps.fails.clear();
        let Restored { mirror: mut reopened, fixes: orphans, unreadable } = Restored::new(&maps.snapshot(), LIMITS);
        prop_assert_eq!(unreadable, []);
        maps.write(&orphans);
        let repair = plan(&reopened.state, &second);
        apply(&mut reopened, &mut maps, &repair).unwrap();
        prop_assert_eq!(maps.state(), second);
    }
}

#[test]
fn applying_twice_is_applying_once() {
    let (mut mirror, mut maps) = (Mirror::new(LIMITS), Fake::new());
    let plan = plan(&State::default(), &one_service(5));
    apply(&mut mirror, &mut maps, &plan).unwrap();
    let writes = maps.writes;
    apply(&mut mirror, &mut maps, &plan).unwrap();
    assert_eq!(maps.writes, writes);
    assert_eq!(mirror.state, one_service(5));
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_written() {
    let (mut mirror, mut maps) = (Mirror::new(Limits { chunks: 2, ..LIMITS }), Fake::new());
    let error = apply(&mut mirror, &mut maps, &plan(&State::default(), &one_service(15))).unwrap_err();
    let [(addr, cause)] = &error.failed[..] else { panic!("{error}") };
    assert_eq!((*addr, cause.kind()), (frontend_addr(1), ErrorKind::Capacity));
    assert!(cause.to_string().contains("`slots`"), "{cause}");
    assert!(maps.sets.is_empty() && maps.frontends.is_empty());
    assert_eq!(maps.slots.iter().filter(|slot| **slot != 0).count(), 0);
}

#[test]
fn a_refused_frontend_keeps_its_old_backends() {
    let (mut mirror, mut maps) = (Mirror::new(Limits { chunks: 2, ..LIMITS }), Fake::new());
    let (small, large) = (one_service(1), one_service(14));
    apply(&mut mirror, &mut maps, &plan(&State::default(), &small)).unwrap();
    let error = apply(&mut mirror, &mut maps, &plan(&small, &large)).unwrap_err();
    assert_eq!(error.failed.len(), 1);
    assert_eq!(maps.answer(&frontend_addr(1)), expected(&small, &frontend_addr(1)));
}

#[test]
fn a_set_does_not_change_under_its_id() {
    let (mut mirror, mut maps) = (Mirror::new(LIMITS), Fake::new());
    let state = one_service(1);
    apply(&mut mirror, &mut maps, &plan(&State::default(), &state)).unwrap();
    let other = set(3, Protocol::Tcp).1;
    let ops = vec![
        Op::UpsertBackend(backend(3).0, backend(3).1),
        Op::AddSet(*state.sets.keys().next().unwrap(), Arc::new(other)),
    ];
    let error = apply(&mut mirror, &mut maps, &Plan { ops, ..Plan::default() }).unwrap_err();
    assert_eq!(error.unknown.unwrap().kind(), ErrorKind::Invalid);
    assert_eq!(error.applied, 1);
}

/// A TCP frontend with the backends of the set `id`.
fn one_service(id: u32) -> State {
    let (id, content) = set(id, Protocol::Tcp);
    let backends = content.slots.iter().map(|id| backend(id.get())).collect();
    let frontend = Frontend::new(FrontendId::new(1).unwrap(), Target::Set(id));
    State {
        backends,
        sets: BTreeMap::from([(id, Arc::new(content))]),
        frontends: BTreeMap::from([(frontend_addr(1), frontend)]),
        node: NodeFacts::default(),
    }
}

#[test]
fn what_is_missing_when_maps_are_opened_again_is_written_and_what_is_left_over_goes() {
    let (mut mirror, mut maps) = (Mirror::new(LIMITS), Fake::new());
    // Set 10 takes turns; UDP sets are listed, and so are those under affinity.
    let mut state = one_service(10);
    state.frontends.get_mut(&frontend_addr(1)).unwrap().affinity = Some(Affinity::default());
    let (udp, content) = set(3, Protocol::Udp);
    state.backends.extend(content.backends().into_iter().map(|id| backend(id.get())));
    state.sets.insert(udp, Arc::new(content));
    state.node.cluster_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
    apply(&mut mirror, &mut maps, &plan(&State::default(), &state)).unwrap();
    let whole = (maps.members.clone(), maps.turns.clone(), maps.cidrs.clone());
    assert_eq!((whole.0.len(), whole.1.len(), whole.2.len()), (4, 1, 1));
    let stray = |set, backend| abi::MemberKey { set, backend };
    while let Some((key, _)) = maps.members.pop_first() {
        maps.turns.clear();
        maps.turns.insert(99, ());
        maps.cidrs.clear();
        maps.cidrs.insert(abi::CidrKey { bits: 104, addr: abi::map_v4([11, 0, 0, 0]) }, abi::FAMILY_V4);
        maps.members.extend([(stray(10, 99), abi::MEMBER_TAKES), (stray(99, 1), abi::MEMBER_DRAINS)]);
        let Restored { mirror: restored, fixes, .. } = Restored::new(&maps.snapshot(), LIMITS);
        assert_eq!(restored.state, state);
        let left: Vec<_> = maps.members.keys().copied().filter(|other| *other != key && other.set != 99).collect();
        assert!(maps.write(&fixes).is_empty());
        assert_eq!((&maps.members, &maps.turns, &maps.cidrs), (&whole.0, &whole.1, &whole.2));
        maps.members.retain(|other, _| left.contains(other));
    }
}

#[test]
fn ports_of_translated_sources_follow_the_process_that_opens_the_maps() {
    let (mut mirror, mut maps) = (Mirror::new(LIMITS), Fake::new());
    let node = NodeFacts { ips: vec![[192, 0, 2, 1].into()], ..NodeFacts::default() };
    let state = State { node, ..one_service(1) };
    apply(&mut mirror, &mut maps, &plan(&State::default(), &state)).unwrap();
    assert_eq!(Restored::new(&maps.snapshot(), LIMITS).fixes, []);
    let limits = Limits { ports: Ports { first: 5000, last: 6999 }, ..LIMITS };
    let Restored { mirror: restored, fixes, .. } = Restored::new(&maps.snapshot(), limits);
    assert_eq!(restored.state, state);
    maps.write(&fixes);
    assert_eq!(maps.node.map(|node| (node.nat_first, node.nat_ports)), Some((5000, 2000)));
}

#[test]
fn a_list_that_nothing_relies_on_is_removed_when_it_is_not_whole() {
    let (mut mirror, mut maps) = (Mirror::new(LIMITS), Fake::new());
    let state = one_service(5);
    apply(&mut mirror, &mut maps, &plan(&State::default(), &state)).unwrap();
    let id = state.sets.keys().next().unwrap().get();
    maps.members.insert(abi::MemberKey { set: id, backend: 1 }, abi::MEMBER_TAKES);
    let Restored { mirror: restored, fixes, .. } = Restored::new(&maps.snapshot(), LIMITS);
    maps.write(&fixes);
    assert!(maps.members.is_empty());
    assert_eq!(restored.members(), 0);
}
