//! From a frontend to a backend.

use lb_datapath_ebpf_abi::{
    Addr, AffinityKey, AffinityValue, BackendValue, FLOW_SEED, FRONTEND_KEEPS_SOURCE, FRONTEND_SOURCES,
    FRONTEND_TRANSLATES_PODS, FrontendKey, FrontendValue, LOOKUP_HASH, LOOKUP_LEAST, LOOKUP_ROUND_ROBIN, Port,
    SCOPE_INTERNAL, TARGET_DROP, TARGET_SET,
};
use lb_flow_hash::{slot, two_slots};

use crate::maps::Maps;

/// Where a new flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The address is no frontend.
    NotAFrontend,
    /// The frontend has no backends: the client gets a refusal at once.
    NoBackends,
    /// The frontend drops its traffic.
    Excluded,
    /// The frontend does not let the client in.
    KeptOut,
    /// Only packets say who the client is, so they decide.
    Undecided,
    /// The frontend names a backend that does not exist.
    BackendMissing,
    /// To this backend.
    Backend(Chosen),
}

/// The backend of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its id.
    pub id: u32,
    /// The set that it comes from.
    pub set: u32,
    /// Where it listens.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
    /// Whether the backend sees clients from outside as they are.
    pub keeps_source: bool,
    /// Whether the backend sees the node in the place of a pod that comes from outside.
    pub translates_pods: bool,
    /// Whether it listens on an address of the node, which then answers through the node, whatever the source.
    pub on_node: bool,
    /// Whether the flow counts as a connection of the backend.
    pub is_counted: bool,
}

impl Chosen {
    /// All zero.
    pub const EMPTY: Self = Self {
        id: 0,
        set: 0,
        addr: [0; 4],
        port: Port(0),
        keeps_source: false,
        translates_pods: false,
        on_node: false,
        is_counted: false,
    };

    /// The backend with this id, for a flow to `frontend`.
    #[inline(always)]
    pub fn new(id: u32, frontend: &FrontendValue, backend: &BackendValue) -> Self {
        Self {
            id,
            set: frontend.set,
            addr: backend.addr,
            port: backend.port,
            keeps_source: frontend.flags & FRONTEND_KEEPS_SOURCE != 0,
            translates_pods: frontend.flags & FRONTEND_TRANSLATES_PODS != 0,
            on_node: backend.host != 0,
            is_counted: frontend.lookup == LOOKUP_LEAST,
        }
    }
}

/// Whether a frontend with source ranges lets a client in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The client may use it.
    Admitted,
    /// The client may not.
    KeptOut,
    /// The source is not known here.
    Unknown,
}

/// What a choice needs to know of a flow.
pub trait Flow {
    /// Whether the client is inside: on this node, or one of its pods.
    fn is_inside(&self) -> bool;
    /// Whether `frontend`, which has source ranges, lets the client in.
    fn admission<M: Maps>(&self, maps: M, frontend: &FrontendValue) -> Admission;
    /// Whether only packets say who the client is, for a frontend that needs to know.
    fn waits<M: Maps>(&self, maps: M) -> bool;
    /// Key of the client's affinity record at `frontend`.
    fn client(&self, frontend: &FrontendValue) -> AffinityKey;
    /// The hash by which a slot is picked: of the flow, under affinity of the client.
    fn hash(&self, frontend: &FrontendValue) -> u32;
}

/// Chooses a backend for a new flow to the frontend at `key`.
///
/// A reader that finds its backend gone reads the frontend again: user space removes a backend only after the write
/// that moved every frontend away from it.
#[inline(always)]
pub fn choose<M: Maps>(maps: M, key: &FrontendKey, flow: &impl Flow) -> Answer {
    match attempt(maps, key, flow) {
        Answer::BackendMissing => attempt(maps, key, flow),
        answer => answer,
    }
}

/// An [`Answer`] without the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// [`Answer::NotAFrontend`].
    NotAFrontend,
    /// [`Answer::NoBackends`].
    NoBackends,
    /// [`Answer::Excluded`].
    Excluded,
    /// [`Answer::KeptOut`].
    KeptOut,
    /// [`Answer::Undecided`].
    Undecided,
    /// [`Answer::BackendMissing`].
    BackendMissing,
    /// [`Answer::Backend`].
    Backend,
}

/// The same as [`choose`], in frames of its own: for programs that have little stack left. Writes the backend to `chosen`.
///
/// It returns a number and writes into memory that is whole from the start: verifiers before Linux 6.3 refuse a value
/// that was returned through memory, if a part of it was not written.
#[inline(always)]
pub fn choose_apart<M: Maps>(maps: M, key: &FrontendKey, flow: &impl Flow, chosen: &mut Chosen) -> Outcome {
    match attempt_apart(maps, key, flow, chosen) {
        Outcome::BackendMissing => attempt_apart(maps, key, flow, chosen),
        outcome => outcome,
    }
}

#[inline(never)]
fn attempt_apart<M: Maps>(maps: M, key: &FrontendKey, flow: &impl Flow, chosen: &mut Chosen) -> Outcome {
    match attempt(maps, key, flow) {
        Answer::NotAFrontend => Outcome::NotAFrontend,
        Answer::NoBackends => Outcome::NoBackends,
        Answer::Excluded => Outcome::Excluded,
        Answer::KeptOut => Outcome::KeptOut,
        Answer::Undecided => Outcome::Undecided,
        Answer::BackendMissing => Outcome::BackendMissing,
        Answer::Backend(backend) => {
            *chosen = backend;
            Outcome::Backend
        }
    }
}

#[inline(always)]
fn attempt<M: Maps>(maps: M, key: &FrontendKey, flow: &impl Flow) -> Answer {
    let Some(frontend) = frontend_for(maps, key, flow.is_inside()) else { return Answer::NotAFrontend };
    if frontend.flags & FRONTEND_SOURCES != 0 {
        match flow.admission(maps, &frontend) {
            Admission::Admitted => {}
            Admission::KeptOut => return Answer::KeptOut,
            Admission::Unknown => return Answer::Undecided,
        }
    }
    match frontend.target {
        TARGET_SET => {}
        TARGET_DROP => return Answer::Excluded,
        _ => return Answer::NoBackends,
    }
    if frontend.leaves_sockets != 0 && flow.waits(maps) {
        return Answer::Undecided;
    }
    let Some(id) = backend_of(maps, &frontend, flow) else { return Answer::BackendMissing };
    let Some(backend) = maps.backend(id) else { return Answer::BackendMissing };
    Answer::Backend(Chosen::new(id, &frontend, &backend))
}

/// The frontend at `key` for traffic from inside or from anywhere: traffic from inside has the twin, if there is one.
#[inline(always)]
pub fn frontend_for<M: Maps>(maps: M, key: &FrontendKey, inside: bool) -> Option<FrontendValue> {
    if inside && let Some(twin) = maps.frontend(&FrontendKey { scope: SCOPE_INTERNAL, ..*key }) {
        return Some(twin);
    }
    maps.frontend(key)
}

#[inline(always)]
fn backend_of<M: Maps>(maps: M, frontend: &FrontendValue, flow: &impl Flow) -> Option<u32> {
    if frontend.affinity == 0 {
        return pick(maps, frontend, flow);
    }
    let (client, now) = (flow.client(frontend), maps.now());
    let backend = match remembered(maps, frontend, &client, now) {
        Some(backend) => backend,
        None => pick(maps, frontend, flow)?,
    };
    maps.remember(&client, &AffinityValue { last_ns: now, backend, pad: 0 });
    Some(backend)
}

/// The backend of the client's record, while the record holds. Programs on other processors may write the record at the
/// same time; a record of two halves names no member of the set, or names one that may serve the client as well.
#[inline(always)]
fn remembered<M: Maps>(maps: M, frontend: &FrontendValue, client: &AffinityKey, now: u64) -> Option<u32> {
    let record = maps.affinity(client)?;
    let holds = now.saturating_sub(record.last_ns) < frontend.affinity_ns;
    (holds && maps.takes_flows(frontend.set, record.backend)).then_some(record.backend)
}

#[inline(always)]
fn pick<M: Maps>(maps: M, frontend: &FrontendValue, flow: &impl Flow) -> Option<u32> {
    let index = match frontend.lookup {
        LOOKUP_HASH => slot(flow.hash(frontend), frontend.slots),
        LOOKUP_ROUND_ROBIN => turn(maps, frontend)?,
        LOOKUP_LEAST => {
            let backend = least(maps, frontend.first, frontend.slots, flow.hash(frontend));
            return (backend != 0).then_some(backend);
        }
        _ => slot(maps.random(), frontend.slots),
    };
    in_slot(maps, frontend.first, index)
}

/// Of two slots, the backend that has fewer connections; 0 if one of them has none.
///
/// Programs on other processors choose at the same time, so that a few new flows may go to one backend before its counter
/// says so. It is a function of its own, since most frontends do without.
#[inline(never)]
fn least<M: Maps>(maps: M, first: u32, slots: u32, hash: u32) -> u32 {
    let [one, two] = two_slots(hash, FLOW_SEED, slots);
    let (Some(one), Some(two)) = (in_slot(maps, first, one), in_slot(maps, first, two)) else { return 0 };
    if one != two && maps.load(two) < maps.load(one) { two } else { one }
}

#[inline(always)]
fn in_slot<M: Maps>(maps: M, first: u32, index: u32) -> Option<u32> {
    let [a, b, c, d] = maps.slots(first.wrapping_add(index >> 2))?;
    Some(match index & 3 {
        0 => a,
        1 => b,
        2 => c,
        _ => d,
    })
}

/// A backend of `frontend` that `fits`: the first one from a random slot on, among [`TRIES`] slots. A set with as many
/// slots or fewer is looked through as a whole. Neither affinity nor the algorithm is asked.
#[inline(always)]
pub fn find<M: Maps>(maps: M, frontend: &FrontendValue, fits: impl Fn(&Chosen) -> bool) -> Option<Chosen> {
    let start = slot(maps.random(), frontend.slots);
    for offset in 0..TRIES {
        let index = start.wrapping_add(offset).checked_rem(frontend.slots)?;
        let Some(id) = in_slot(maps, frontend.first, index) else { continue };
        let Some(backend) = maps.backend(id) else { continue };
        let chosen = Chosen::new(id, frontend, &backend);
        if fits(&chosen) {
            return Some(chosen);
        }
    }
    None
}

/// Slots that [`find`] looks at.
pub const TRIES: u32 = 16;

#[inline(always)]
fn turn<M: Maps>(maps: M, frontend: &FrontendValue) -> Option<u32> {
    let count = maps.next_turn(frontend.set)?;
    Some(count.checked_rem(frontend.slots as u64)? as u32)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use lb_datapath_ebpf_abi::{LOOKUP_RANDOM, TARGET_REJECT};

    use super::*;
    use crate::{
        fake::{Fake, VIP, backend, frontend_key},
        maps::Change,
    };

    /// A flow with this hash, of client 7.
    struct Hashed(u32);

    impl Flow for Hashed {
        fn is_inside(&self) -> bool {
            false
        }

        fn admission<M: Maps>(&self, _: M, _: &FrontendValue) -> Admission {
            Admission::Admitted
        }

        fn waits<M: Maps>(&self, _: M) -> bool {
            false
        }

        fn client(&self, frontend: &FrontendValue) -> AffinityKey {
            AffinityKey { client: [7; 4], frontend: frontend.id, kind: 0, pad: [0; 3] }
        }

        fn hash(&self, _: &FrontendValue) -> u32 {
            self.0
        }
    }

    fn ids(fake: &Fake, hashes: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let id = |hash| match choose(fake, &frontend_key(VIP), &Hashed(hash)) {
            Answer::Backend(chosen) => chosen.id,
            other => panic!("{other:?}"),
        };
        hashes.into_iter().map(id).collect()
    }

    fn answer(fake: &Fake) -> Answer {
        choose(fake, &frontend_key(VIP), &Hashed(0))
    }

    #[test]
    fn an_address_without_an_entry_is_no_frontend() {
        assert_eq!(answer(&Fake::new()), Answer::NotAFrontend);
    }

    #[test]
    fn the_target_decides_before_any_backend_is_looked_up() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        fake.change_frontend(VIP, |frontend| frontend.target = TARGET_REJECT);
        assert_eq!(answer(&fake), Answer::NoBackends);
        fake.change_frontend(VIP, |frontend| frontend.target = TARGET_DROP);
        assert_eq!(answer(&fake), Answer::Excluded);
        fake.change_frontend(VIP, |frontend| frontend.target = TARGET_SET);
        let (addr, port) = backend(1);
        assert_eq!(answer(&fake), Answer::Backend(Chosen { id: 1, set: 1, addr, port, ..Chosen::EMPTY }));
    }

    #[test]
    fn a_hash_picks_its_slot_also_beyond_the_first_chunk() {
        let fake = Fake::serving(LOOKUP_HASH, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let hashes = (0..8).map(|slot| slot << 29);
        assert_eq!(ids(&fake, hashes), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(ids(&fake, [u32::MAX]), [8]);
    }

    #[test]
    fn turns_go_round_the_slots() {
        let fake = Fake::serving(LOOKUP_ROUND_ROBIN, &[1, 2, 3]);
        assert_eq!(ids(&fake, [0; 7]), [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn a_random_number_picks_a_slot() {
        let fake = Fake::serving(LOOKUP_RANDOM, &[1, 2, 3, 4]);
        fake.dice([0, 1 << 30, 2 << 30, u32::MAX]);
        assert_eq!(ids(&fake, [0; 4]), [1, 2, 3, 4]);
    }

    #[test]
    fn of_two_slots_the_one_with_fewer_connections_is_taken() {
        let fake = Fake::serving(LOOKUP_LEAST, &[1, 2, 3, 4]);
        let key = frontend_key(VIP);
        for number in 0..200_u32 {
            let hash = number.wrapping_mul(0x9e37_79b9);
            let candidates = two_slots(hash, FLOW_SEED, 4).map(|slot| slot + 1);
            let loads = |id: u32| fake.loads.borrow().get(&id).copied().unwrap_or(0);
            let [one, two] = candidates;
            let expected = if loads(two) < loads(one) { two } else { one };
            let Answer::Backend(chosen) = choose(&fake, &key, &Hashed(hash)) else { panic!("no backend") };
            assert_eq!((chosen.id, chosen.is_counted), (expected, true), "of {candidates:?}");
            (&fake).change_load(chosen.id, Change::Begins);
        }
        let loads: Vec<i64> = fake.loads.borrow().values().copied().collect();
        assert!(loads.len() == 4 && loads.iter().all(|load| (45..=55).contains(load)), "{loads:?}");
        // One that is full gets nothing but what has both of its slots there.
        fake.loads.borrow_mut().insert(1, 1_000);
        let taken = (0..64).filter(|number| ids(&fake, [number << 26]) == [1]);
        assert!(taken.map(|number| two_slots(number << 26, FLOW_SEED, 4)).all(|slots| slots == [0, 0]));
    }

    #[test]
    fn a_set_without_turns_or_slots_has_no_backend() {
        let fake = Fake::serving(LOOKUP_ROUND_ROBIN, &[1]);
        fake.turns.borrow_mut().clear();
        assert_eq!(answer(&fake), Answer::BackendMissing);
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        fake.slots.borrow_mut().clear();
        assert_eq!(answer(&fake), Answer::BackendMissing);
    }

    #[test]
    fn a_backend_that_has_gone_makes_the_frontend_be_read_again() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        fake.backends.borrow_mut().remove(&1);
        assert_eq!(answer(&fake), Answer::BackendMissing);
        assert_eq!(fake.frontend_reads.get(), 2);
        // The frontend moves to set 2 between the two reads.
        fake.add_set(2, &[2]);
        fake.frontend_reads.set(0);
        fake.after_frontend_read(|fake| fake.point(VIP, 2, 1));
        let (addr, port) = backend(2);
        assert_eq!(answer(&fake), Answer::Backend(Chosen { id: 2, set: 2, addr, port, ..Chosen::EMPTY }));
    }

    #[test]
    fn a_client_keeps_its_backend_until_the_record_is_too_old() {
        let fake = Fake::serving(LOOKUP_HASH, &[1, 2]);
        fake.change_frontend(VIP, |frontend| (frontend.affinity, frontend.affinity_ns) = (1, 100));
        fake.list(1, &[1, 2]);
        let (first, second) = (0, u32::MAX);
        assert_eq!(ids(&fake, [first, second]), [1, 1]);
        // Each use renews the record.
        fake.now.set(99);
        assert_eq!(ids(&fake, [second]), [1]);
        fake.now.set(198);
        assert_eq!(ids(&fake, [second]), [1]);
        fake.now.set(298);
        assert_eq!(ids(&fake, [second]), [2]);
    }

    #[test]
    fn a_record_of_a_backend_that_has_left_the_set_does_not_hold() {
        let fake = Fake::serving(LOOKUP_HASH, &[1, 2]);
        fake.change_frontend(VIP, |frontend| (frontend.affinity, frontend.affinity_ns) = (1, 100));
        fake.list(1, &[1, 2]);
        assert_eq!(ids(&fake, [0]), [1]);
        fake.members.borrow_mut().remove(&(1, 1));
        assert_eq!(ids(&fake, [u32::MAX]), [2]);
    }

    #[test]
    fn a_record_of_a_backend_that_is_draining_does_not_hold() {
        let fake = Fake::serving(LOOKUP_HASH, &[1, 2]);
        fake.change_frontend(VIP, |frontend| (frontend.affinity, frontend.affinity_ns) = (1, 100));
        fake.list(1, &[1, 2]);
        assert_eq!(ids(&fake, [0]), [1]);
        fake.drain(1, 1);
        assert_eq!(ids(&fake, [u32::MAX]), [2]);
    }

    #[test]
    fn a_record_that_cannot_be_written_stops_no_flow() {
        let fake = Fake::serving(LOOKUP_HASH, &[1, 2]);
        fake.change_frontend(VIP, |frontend| (frontend.affinity, frontend.affinity_ns) = (1, 100));
        fake.list(1, &[1, 2]);
        fake.full.set(true);
        assert_eq!(ids(&fake, [0, u32::MAX]), [1, 2]);
    }
}
