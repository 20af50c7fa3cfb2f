//! What the maps hold, in the model's terms.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::{BackendId, BackendSet, Frontend, FrontendAddr, Lookup, Protocol, SetId, State, Target};
use lb_datapath_ebpf_abi as abi;

use crate::{
    convert::{self, Corrupt},
    heap::{Extent, Heap},
    write::{Limits, Snapshot, Write, cidr_keys},
};

/// What the maps hold: the state, where its sets lie, and who uses what.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    pub(crate) state: State,
    pub(crate) heap: Heap,
    pub(crate) limits: Limits,
    extents: BTreeMap<SetId, Extent>,
    set_users: BTreeMap<SetId, usize>,
    backend_users: BTreeMap<BackendId, usize>,
    listed: BTreeMap<SetId, usize>,
    /// Sum of `listed`.
    members: usize,
    /// Sets that have a turn.
    turns: usize,
    /// Keys that `CIDRS` may have.
    pub(crate) cidrs: BTreeSet<abi::CidrKey>,
}

impl Mirror {
    /// Empty maps.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            state: State::default(),
            heap: Heap::new(limits.chunks),
            limits,
            extents: BTreeMap::new(),
            set_users: BTreeMap::new(),
            backend_users: BTreeMap::new(),
            listed: BTreeMap::new(),
            members: 0,
            turns: 0,
            cidrs: BTreeSet::new(),
        }
    }

    /// What a snapshot says, and the writes that remove what a process left half done.
    pub(crate) fn restore(snapshot: &Snapshot, limits: Limits) -> Result<(Self, Vec<Write>), Corrupt> {
        let mut mirror = Self::new(limits);
        for (id, value) in &snapshot.backends {
            let id = BackendId::new(*id).ok_or_else(|| corrupt("BACKENDS", "a backend with id 0"))?;
            mirror.state.backends.insert(id, convert::backend(value)?);
        }
        for (id, value, slots) in &snapshot.sets {
            mirror.restore_set(*id, value, slots)?;
        }
        for (key, value) in &snapshot.frontends {
            mirror.insert_frontend(convert::frontend_addr(key)?, convert::frontend(value)?);
        }
        if let Some(value) = &snapshot.node {
            mirror.state.node = convert::node(value)?;
        }
        let orphans = mirror.restore_rest(snapshot);
        Ok((mirror, orphans))
    }

    fn restore_set(&mut self, id: u32, value: &abi::SetValue, slots: &[u32]) -> Result<(), Corrupt> {
        let broken = || corrupt("SETS", format!("set {id}: {value:?}"));
        let ids: Option<Arc<[BackendId]>> = slots.iter().copied().map(BackendId::new).collect();
        let (id, slots) = (SetId::new(id).ok_or_else(broken)?, ids.ok_or_else(broken)?);
        let extent = Extent { first: value.first, chunks: chunks(value.slots) };
        if slots.len() != value.slots as usize || slots.is_empty() || !self.heap.take(extent) {
            return Err(broken());
        }
        self.insert_set(id, &Arc::new(BackendSet { lookup: convert::model_lookup(value)?, slots }), extent);
        Ok(())
    }

    fn restore_rest(&mut self, snapshot: &Snapshot) -> Vec<Write> {
        let mut orphans = Vec::new();
        let mut found: BTreeMap<SetId, BTreeSet<BackendId>> = BTreeMap::new();
        for &key in &snapshot.members {
            match (SetId::new(key.set), BackendId::new(key.backend)) {
                (Some(set), Some(backend)) if self.state.sets.contains_key(&set) => {
                    found.entry(set).or_default().insert(backend);
                }
                _ => orphans.push(Write::NoMember(key)),
            }
        }
        for (set, backends) in found {
            // A list that is not whole is written again before anything relies on it.
            if self.state.sets.get(&set).is_some_and(|content| content.members().keys().eq(&backends)) {
                self.list(set, backends.len());
            }
        }
        let kept = |set: &u32| SetId::new(*set).is_some_and(|set| self.state.sets.contains_key(&set));
        orphans.extend(snapshot.turns.iter().filter(|set| !kept(set)).map(|&set| Write::NoTurns(set)));
        let wanted = cidr_keys(&self.state.node.cluster_cidrs);
        let (known, unknown): (Vec<_>, Vec<_>) = snapshot.cidrs.iter().partition(|key| wanted.contains_key(key));
        self.cidrs.extend(known);
        orphans.extend(unknown.into_iter().map(|&key| Write::NoCidr(key)));
        orphans
    }

    /// Elements of all maps that hold the state.
    pub(crate) fn elements(&self) -> u64 {
        let State { backends, sets, frontends, .. } = &self.state;
        (backends.len() + sets.len() + frontends.len() + self.turns + self.members + self.cidrs.len()) as u64
    }

    /// Entries of `MEMBERS`.
    pub(crate) const fn members(&self) -> usize {
        self.members
    }

    pub(crate) fn extent(&self, set: SetId) -> Option<Extent> {
        self.extents.get(&set).copied()
    }

    pub(crate) fn is_set_used(&self, set: SetId) -> bool {
        self.set_users.contains_key(&set)
    }

    pub(crate) fn is_backend_used(&self, backend: BackendId) -> bool {
        self.backend_users.contains_key(&backend)
    }

    /// Whether `MEMBERS` lists the set's backends.
    pub(crate) fn is_listed(&self, set: SetId) -> bool {
        self.listed.contains_key(&set)
    }

    pub(crate) fn list(&mut self, set: SetId, members: usize) {
        self.members += members;
        self.members -= self.listed.insert(set, members).unwrap_or(0);
    }

    /// Whether programs ask who is in a set like this whatever its frontends: UDP flows move when their backend leaves.
    pub(crate) fn is_udp(&self, set: &BackendSet) -> bool {
        let first = set.slots.first().and_then(|id| self.state.backends.get(id));
        first.is_some_and(|backend| backend.addr.protocol == Protocol::Udp)
    }

    pub(crate) fn insert_set(&mut self, id: SetId, set: &Arc<BackendSet>, extent: Extent) {
        for backend in set.members().into_keys() {
            *self.backend_users.entry(backend).or_insert(0) += 1;
        }
        self.extents.insert(id, extent);
        self.turns += usize::from(set.lookup == Lookup::RoundRobin);
        let before = self.state.sets.insert(id, Arc::clone(set));
        self.turns -= usize::from(before.is_some_and(|set| set.lookup == Lookup::RoundRobin));
    }

    pub(crate) fn remove_set(&mut self, id: SetId) -> Option<Extent> {
        let set = self.state.sets.remove(&id)?;
        for backend in set.members().into_keys() {
            release(&mut self.backend_users, backend);
        }
        self.turns -= usize::from(set.lookup == Lookup::RoundRobin);
        self.members -= self.listed.remove(&id).unwrap_or(0);
        self.extents.remove(&id)
    }

    pub(crate) fn insert_frontend(&mut self, addr: FrontendAddr, frontend: Frontend) {
        if let Target::Set(set) = frontend.target {
            *self.set_users.entry(set).or_insert(0) += 1;
        }
        let before = self.state.frontends.insert(addr, frontend);
        self.release_target(before);
    }

    pub(crate) fn remove_frontend(&mut self, addr: &FrontendAddr) {
        let before = self.state.frontends.remove(addr);
        self.release_target(before);
    }

    fn release_target(&mut self, frontend: Option<Frontend>) {
        if let Some(Frontend { target: Target::Set(set), .. }) = frontend {
            release(&mut self.set_users, set);
        }
    }
}

/// Chunks that a table of `slots` slots takes.
pub(crate) const fn chunks(slots: u32) -> u32 {
    slots.div_ceil(abi::SLOTS_PER_CHUNK)
}

fn corrupt(map: &'static str, what: impl Into<String>) -> Corrupt {
    Corrupt { map, what: what.into() }
}

fn release<K: Ord>(users: &mut BTreeMap<K, usize>, key: K) {
    if let Some(count) = users.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            users.remove(&key);
        }
    }
}
