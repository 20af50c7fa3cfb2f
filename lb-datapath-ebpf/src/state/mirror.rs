//! The content of the maps, in the model's terms.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    id::{BackendId, SetId},
    state::{BackendSet, Frontend, Lookup, State, Target},
};
use lb_datapath_ebpf_abi as abi;

use crate::state::{
    convert,
    heap::{Extent, Heap},
    write::{Limits, Snapshot, Write, cidr_keys},
};

/// The content of the maps: the state, the places of its sets in `SLOTS`, and the users of each set and backend.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    pub(crate) state: State,
    pub(crate) heap: Heap,
    pub(crate) limits: Limits,
    extents: BTreeMap<SetId, Extent>,
    set_users: BTreeMap<SetId, usize>,
    backend_users: BTreeMap<BackendId, usize>,
    listed: BTreeMap<SetId, Members>,
    /// Sum of `listed`.
    members: usize,
    /// Sets that have a turn.
    turns: usize,
    /// Keys that `SOURCES` may have.
    pub(crate) sources: BTreeSet<abi::SourceKey>,
    /// What `ADDRESSES` holds.
    pub(crate) addresses_said: BTreeMap<IpAddr, u8>,
    /// Keys that `CIDRS` may have.
    pub(crate) cidrs: BTreeSet<abi::CidrKey>,
    number: u64,
}

/// Elements of the maps that user space fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Of all of them, slots left out.
    pub(crate) elements: u64,
    /// By map.
    pub(crate) tables: [(&'static str, u64); 8],
}

/// The backends that `MEMBERS` lists for a set, in order, each with its value.
pub(crate) type Members = Box<[(BackendId, u8)]>;

/// What `MEMBERS` says of a set.
pub(crate) fn members_of(set: &BackendSet) -> Members {
    let takers = set.slots.iter().map(|&backend| (backend, abi::MEMBER_TAKES));
    let draining = set.draining.iter().map(|&backend| (backend, abi::MEMBER_DRAINS));
    draining.chain(takers).collect::<BTreeMap<_, _>>().into_iter().collect()
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
            sources: BTreeSet::new(),
            addresses_said: BTreeMap::new(),
            cidrs: BTreeSet::new(),
            number: next_number(),
        }
    }

    /// A number that no other mirror of this process has, from 1 on.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// Takes over members, turns and prefixes. Returns the writes that finish or remove what a process left half done.
    pub(crate) fn restore_rest(&mut self, snapshot: &Snapshot) -> Vec<Write> {
        let mut fixes = self.restore_members(snapshot);
        let counting = |state: &State, set: u32| {
            let set = SetId::new(set).and_then(|set| state.sets.get(&set));
            set.is_some_and(|set| set.lookup == Lookup::RoundRobin)
        };
        let turns: BTreeSet<u32> = snapshot.turns.iter().copied().collect();
        fixes.extend(turns.iter().filter(|set| !counting(&self.state, **set)).map(|&set| Write::NoTurns(set)));
        let sets = self.state.sets.keys().map(|set| set.get());
        fixes.extend(sets.filter(|&set| counting(&self.state, set) && !turns.contains(&set)).map(Write::Turns));
        let wanted = cidr_keys(&self.state.node.cluster_cidrs);
        let found: BTreeSet<_> = snapshot.cidrs.iter().copied().collect();
        if snapshot.node.as_ref().is_some_and(|value| convert::node(value).is_err()) {
            // Which prefixes are right is not known until the node's facts are written again.
            self.cidrs.extend(found);
            return fixes;
        }
        fixes.extend(found.iter().filter(|key| !wanted.contains_key(key)).map(|&key| Write::NoCidr(key)));
        fixes.extend(wanted.iter().filter(|(key, _)| !found.contains(key)).map(|(&key, &ip)| Write::Cidr(key, ip)));
        self.cidrs.extend(wanted.into_keys());
        fixes
    }

    /// Completes the member lists that a frontend needs, and removes others that are incomplete.
    fn restore_members(&mut self, snapshot: &Snapshot) -> Vec<Write> {
        let mut found: BTreeMap<u32, BTreeMap<u32, u8>> = BTreeMap::new();
        for (key, value) in &snapshot.members {
            found.entry(key.set).or_default().insert(key.backend, *value);
        }
        let sticky = self.state.frontends.values().filter(|frontend| frontend.affinity.is_some());
        let sticky: BTreeSet<Target> = sticky.map(|frontend| frontend.target).collect();
        let (mut fixes, mut lists) = (Vec::new(), Vec::new());
        for (&id, set) in &self.state.sets {
            let found = found.remove(&id.get()).unwrap_or_default();
            let members = members_of(set);
            let missing = members.iter().filter(|(member, value)| found.get(&member.get()) != Some(value));
            let needed = self.is_udp(set) || sticky.contains(&Target::Set(id));
            let kept = needed || missing.clone().next().is_none();
            let key = |backend| abi::MemberKey { set: id.get(), backend };
            let foreign = |id: &u32| !kept || members.binary_search_by_key(id, |(member, _)| member.get()).is_err();
            fixes.extend(found.keys().copied().filter(foreign).map(|backend| Write::NoMember(key(backend))));
            if kept {
                fixes.extend(missing.map(|(member, value)| Write::Member(key(member.get()), *value)));
                lists.push((id, members));
            }
        }
        for (set, backends) in found {
            fixes.extend(backends.into_keys().map(|backend| Write::NoMember(abi::MemberKey { set, backend })));
        }
        for (set, members) in lists {
            self.list(set, members);
        }
        fixes
    }

    /// Elements of all maps that hold the state.
    pub(crate) fn elements(&self) -> u64 {
        let State { backends, sets, frontends, .. } = &self.state;
        let rest = self.sources.len() + self.addresses_said.len() + self.cidrs.len();
        (backends.len() + sets.len() + frontends.len() + self.turns + self.members + rest) as u64
    }

    /// What `ADDRESSES` should say about an address; nothing if it has no frontend.
    pub(crate) fn says(&self, ip: IpAddr) -> Option<u8> {
        self.state.other_ports(ip).map(|others| convert::address_value(others, self.state.answers_ping(ip)))
    }

    /// Takes over the source ranges of frontends, and what addresses say. Returns the writes that finish or remove what a
    /// process left half done.
    pub(crate) fn restore_addresses(&mut self, snapshot: &Snapshot) -> Vec<Write> {
        let wanted: BTreeSet<_> = self.state.frontends.values().flat_map(convert::source_keys).collect();
        let found: BTreeSet<_> = snapshot.sources.iter().copied().collect();
        let mut fixes: Vec<Write> = found.difference(&wanted).map(|key| Write::NoSource(*key)).collect();
        fixes.extend(wanted.difference(&found).map(|key| Write::Source(*key)));
        self.sources = wanted;
        let ips: BTreeSet<IpAddr> = self.state.frontends.keys().map(|addr| addr.ip).collect();
        let found: BTreeMap<abi::Addr, u8> = snapshot.addresses.iter().copied().collect();
        for ip in ips {
            let (Ok(addr), Some(says)) = (convert::addr(ip), self.says(ip)) else { continue };
            if found.get(&addr) != Some(&says) {
                fixes.push(Write::Address(addr, says));
            }
            self.addresses_said.insert(ip, says);
        }
        let unknown = found.keys().filter(|addr| !self.addresses_said.contains_key(&convert::ip(**addr)));
        fixes.extend(unknown.map(|addr| Write::NoAddress(*addr)));
        fixes
    }

    /// Elements of each map that user space fills.
    pub(crate) fn filled(&self) -> Filled {
        let State { backends, sets, frontends, .. } = &self.state;
        let slots = (self.limits.chunks - self.heap.unused()) as usize * abi::SLOTS_PER_CHUNK as usize;
        Filled {
            elements: self.elements(),
            tables: [
                ("FRONTENDS", frontends.len() as u64),
                ("BACKENDS", backends.len() as u64),
                ("SETS", sets.len() as u64),
                ("MEMBERS", self.members as u64),
                ("TURNS", self.turns as u64),
                ("SLOTS", slots as u64),
                ("SOURCES", self.sources.len() as u64),
                ("ADDRESSES", self.addresses_said.len() as u64),
            ],
        }
    }

    /// Addresses of frontends and backends; one may come more than once.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let frontends = self.state.frontends.keys().map(|frontend| frontend.ip);
        frontends.chain(self.state.backends.values().map(|backend| backend.addr.ip))
    }

    /// Entries of `MEMBERS`.
    pub(crate) const fn members(&self) -> usize {
        self.members
    }

    /// Sets that have a turn.
    pub(crate) const fn turns(&self) -> usize {
        self.turns
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

    /// The backends that `MEMBERS` lists for a set, in order.
    pub(crate) fn listed(&self, set: SetId) -> &[(BackendId, u8)] {
        self.listed.get(&set).map_or(&[], |members| members)
    }

    /// Sets that `MEMBERS` lists, with their backends in order.
    pub(crate) fn lists(&self) -> impl Iterator<Item = (SetId, &[(BackendId, u8)])> {
        self.listed.iter().map(|(&set, members)| (set, &**members))
    }

    pub(crate) fn list(&mut self, set: SetId, members: Members) {
        self.members += members.len();
        self.members -= self.listed.insert(set, members).map_or(0, |before| before.len());
    }

    /// Whether programs look up the members of this set for every frontend: UDP flows move when their backend leaves.
    pub(crate) fn is_udp(&self, set: &BackendSet) -> bool {
        let first = set.slots.first().and_then(|id| self.state.backends.get(id));
        !set.draining.is_empty() || first.is_some_and(|backend| backend.addr.protocol == Protocol::Udp)
    }

    pub(crate) fn insert_set(&mut self, id: SetId, set: &Arc<BackendSet>, extent: Extent) {
        for backend in set.backends() {
            *self.backend_users.entry(backend).or_insert(0) += 1;
        }
        self.extents.insert(id, extent);
        self.turns += usize::from(set.lookup == Lookup::RoundRobin);
        let before = self.state.sets.insert(id, Arc::clone(set));
        self.turns -= usize::from(before.is_some_and(|set| set.lookup == Lookup::RoundRobin));
    }

    pub(crate) fn remove_set(&mut self, id: SetId) -> Option<Extent> {
        let set = self.state.sets.remove(&id)?;
        for backend in set.backends() {
            release(&mut self.backend_users, backend);
        }
        self.turns -= usize::from(set.lookup == Lookup::RoundRobin);
        self.members -= self.listed.remove(&id).map_or(0, |members| members.len());
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

fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Chunks that a table of `slots` slots takes.
pub(crate) const fn chunks(slots: u32) -> u32 {
    slots.div_ceil(abi::SLOTS_PER_CHUNK)
}

fn release<K: Ord>(users: &mut BTreeMap<K, usize>, key: K) {
    if let Some(count) = users.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            users.remove(&key);
        }
    }
}
