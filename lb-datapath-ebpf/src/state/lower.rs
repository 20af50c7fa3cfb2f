//! From plans to map writes.
//!
//! A plan is cut into stages of like operations, and each stage into phases of like writes, so that a phase is one call
//! to the kernel. What a write needs is written in an earlier phase; what did not take is left out of all that would
//! have needed it.

mod removals;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::discriminant,
    net::IpAddr,
    sync::Arc,
};

use lb_core::{
    addr::FrontendAddr,
    datapath::{ApplyError, DatapathError, ErrorKind},
    id::{BackendId, SetId},
    node::NodeFacts,
    plan::{Op, Plan},
    state::{Backend, BackendSet, Frontend, Lookup, Target},
};
use lb_datapath_ebpf_abi as abi;

use crate::state::{
    convert,
    heap::{Extent, NoRoom},
    mirror::{Mirror, chunks, members_of},
    write::{Cause, Store, Write, cidr_keys},
};

/// Most slots of one set: the largest Maglev table.
pub(crate) const MAX_SLOTS: u32 = 131_071;

/// Carries out `plan` through `store`; `mirror` follows what took.
pub(crate) fn apply(mirror: &mut Mirror, store: &mut impl Store, plan: &Plan) -> Result<(), ApplyError> {
    plan.check_known(knows)?;
    let mut run = Run {
        mirror,
        store,
        applied: 0,
        failed: Vec::new(),
        unknown: None,
        bad_backends: BTreeMap::new(),
        bad_sets: BTreeMap::new(),
    };
    for stage in plan.ops.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
        run.stage(stage);
    }
    run.finish()
}

/// Whether this datapath can carry out `op`: a plan with another operation is refused as a whole.
fn knows(op: &Op) -> bool {
    matches!(
        op,
        Op::SetNode(_)
            | Op::UpsertBackend(..)
            | Op::AddSet(..)
            | Op::UpsertFrontend { .. }
            | Op::RemoveFrontend(_)
            | Op::RemoveSet(_)
            | Op::RemoveBackend(_)
    )
}

struct Run<'a, S> {
    mirror: &'a mut Mirror,
    store: &'a mut S,
    applied: usize,
    failed: Vec<(FrontendAddr, DatapathError)>,
    unknown: Option<DatapathError>,
    bad_backends: BTreeMap<BackendId, Cause>,
    bad_sets: BTreeMap<SetId, Cause>,
}

/// Writes of a phase, each with the position of the operation that wants it.
type Phase = Vec<(usize, Write)>;

impl<S: Store> Run<'_, S> {
    fn finish(self) -> Result<(), ApplyError> {
        // A failure that belongs to no frontend of the plan.
        let unattributed = || self.bad_sets.values().chain(self.bad_backends.values()).next().cloned();
        let unattributed = if self.failed.is_empty() { unattributed() } else { None };
        let unknown = self.unknown.or(unattributed.map(DatapathError::from));
        if self.failed.is_empty() && unknown.is_none() {
            return Ok(());
        }
        Err(ApplyError { applied: self.applied, failed: self.failed, unknown })
    }

    /// Carries out operations of one kind.
    fn stage(&mut self, ops: &[Op]) {
        let Some(first) = ops.first() else { return };
        let failed = match first {
            Op::SetNode(_) => self.nodes(ops),
            Op::UpsertBackend(..) => self.backends(ops),
            Op::AddSet(..) => self.sets(ops),
            Op::UpsertFrontend { .. } => self.frontends(ops),
            Op::RemoveFrontend(_) => self.gone_frontends(ops),
            Op::RemoveSet(_) => self.gone_sets(ops),
            Op::RemoveBackend(_) => self.gone_backends(ops),
            op => unreachable!("operation {} is refused before the first stage", op.as_str()),
        };
        self.applied += ops.len() - failed;
    }

    /// Carries out phases one after the other, leaving out what belongs to an operation that has failed; adds to
    /// `failed` what does.
    fn execute(&mut self, phases: impl IntoIterator<Item = Phase>, failed: &mut BTreeMap<usize, Cause>) {
        for mut phase in phases {
            phase.retain(|(op, _)| !failed.contains_key(op));
            let (owners, writes): (Vec<_>, Vec<_>) = phase.into_iter().unzip();
            if writes.is_empty() {
                continue;
            }
            for (at, cause) in self.store.write(&writes) {
                failed.entry(owners[at]).or_insert(cause);
            }
        }
    }

    fn nodes(&mut self, ops: &[Op]) -> usize {
        let mut nodes = ops.iter().rev().filter_map(|op| if let Op::SetNode(node) = op { Some(node) } else { None });
        let Some(node) = nodes.next() else { return 0 };
        match self.node(node) {
            Ok(()) => 0,
            Err(cause) => {
                self.unknown.get_or_insert_with(|| cause.into());
                1
            }
        }
    }

    /// New prefixes come before and old ones go after the node's addresses, so that a pod is never taken for a
    /// client from outside.
    fn node(&mut self, node: &NodeFacts) -> Result<(), Cause> {
        if self.mirror.state.node == *node {
            return Ok(());
        }
        let value = Write::Node(Box::new(convert::node_value(node, self.mirror.limits.ports)?));
        let wanted = cidr_keys(&node.cluster_cidrs);
        let old: Vec<_> = self.mirror.cidrs.iter().filter(|key| !wanted.contains_key(key)).copied().collect();
        let new = wanted.iter().map(|(&key, &family)| (0, Write::Cidr(key, family))).collect();
        self.mirror.cidrs.extend(wanted.into_keys());
        self.all([new, vec![(0, value)]])?;
        let moved = self.moved(node);
        self.mirror.state.node.clone_from(node);
        self.all([moved])?;
        self.all([old.iter().map(|&key| (0, Write::NoCidr(key))).collect()])?;
        for key in old {
            self.mirror.cidrs.remove(&key);
        }
        Ok(())
    }

    /// Writes of backends that begin or cease to be on an address of the node.
    fn moved(&self, node: &NodeFacts) -> Phase {
        let before = &self.mirror.state.node;
        let is_moved = |backend: &Backend| {
            let ip = &backend.addr.ip;
            before.ips.contains(ip) != node.ips.contains(ip)
        };
        let moved = self.mirror.state.backends.iter().filter(|(_, backend)| is_moved(backend));
        let value = |(id, backend): (&BackendId, &Backend)| {
            Some((0, Write::Backend(id.get(), convert::backend_value(backend, node).ok()?)))
        };
        moved.filter_map(value).collect()
    }

    /// Carries out phases of one operation.
    fn all(&mut self, phases: impl IntoIterator<Item = Phase>) -> Result<(), Cause> {
        let mut failed = BTreeMap::new();
        self.execute(phases, &mut failed);
        failed.into_values().next().map_or(Ok(()), Err)
    }

    fn backends(&mut self, ops: &[Op]) -> usize {
        let (mut phase, mut failed, mut fresh) = (Phase::new(), BTreeMap::new(), BTreeSet::new());
        for (at, id, backend) in backends(ops) {
            let known = self.mirror.state.backends.get(&id);
            if known == Some(backend) {
                continue;
            }
            if known.is_none() {
                fresh.insert(id);
            }
            match self.backend(id, backend, fresh.len()) {
                Ok(write) => phase.push((at, write)),
                Err(cause) => {
                    fresh.remove(&id);
                    failed.insert(at, cause);
                }
            }
        }
        self.execute([phase], &mut failed);
        for (at, id, backend) in backends(ops) {
            match failed.get(&at) {
                Some(cause) => {
                    self.bad_backends.insert(id, cause.clone());
                }
                None => {
                    self.mirror.state.backends.insert(id, *backend);
                }
            }
        }
        failed.len()
    }

    fn backend(&self, id: BackendId, backend: &Backend, fresh: usize) -> Result<Write, Cause> {
        let max = self.mirror.limits.backends;
        if self.mirror.state.backends.len() + fresh > max {
            return Err(Cause::capacity("BACKENDS", max, "backends"));
        }
        Ok(Write::Backend(id.get(), convert::backend_value(backend, &self.mirror.state.node)?))
    }

    fn sets(&mut self, ops: &[Op]) -> usize {
        let mut failed = BTreeMap::new();
        let mut fresh: BTreeMap<SetId, (usize, Extent)> = BTreeMap::new();
        let mut members = 0;
        let [mut slots, mut lists, mut turns, mut values] = [const { Phase::new() }; 4];
        for (at, id, set) in sets(ops) {
            if self.mirror.state.sets.get(&id) == Some(set) || fresh.contains_key(&id) {
                continue;
            }
            let listed = if self.mirror.is_udp(set) { membership(id, set) } else { Vec::new() };
            let extent = match self.allocate(id, set, fresh.len(), members + listed.len()) {
                Ok(extent) => extent,
                Err(cause) => {
                    failed.insert(at, cause);
                    continue;
                }
            };
            members += listed.len();
            fresh.insert(id, (at, extent));
            slots.push((at, Write::Slots(extent.first, Arc::clone(&set.slots))));
            lists.extend(listed.into_iter().map(|write| (at, write)));
            turns.extend(turns_of(id, set).map(|set| (at, Write::Turns(set))));
            values.push((at, Write::Set(id.get(), set_value(set, extent))));
        }
        self.execute([slots, lists, turns, values], &mut failed);
        self.settle_sets(ops, &fresh, &failed);
        failed.len()
    }

    /// Takes over the sets that were written; what of the others was written is removed, so that it cannot pile up.
    fn settle_sets(&mut self, ops: &[Op], fresh: &BTreeMap<SetId, (usize, Extent)>, failed: &BTreeMap<usize, Cause>) {
        let now = self.store.now();
        let mut undo = Vec::new();
        for (at, id, set) in sets(ops) {
            let placed = fresh.get(&id).filter(|(owner, _)| *owner == at).map(|(_, extent)| *extent);
            match (failed.get(&at), placed) {
                (None, None) => {}
                (None, Some(extent)) => {
                    if self.mirror.is_udp(set) {
                        self.mirror.list(id, members_of(set));
                    }
                    self.mirror.insert_set(id, set, extent);
                }
                (Some(cause), placed) => {
                    self.bad_sets.insert(id, cause.clone());
                    if let Some(extent) = placed {
                        self.mirror.heap.free(extent, now);
                        undo.extend(remove_set(id, set));
                    }
                }
            }
        }
        if !undo.is_empty() {
            // What is left after this is removed when the maps are next opened.
            self.store.write(&undo);
        }
    }

    /// Room for a set, if it can be had.
    fn allocate(&mut self, id: SetId, set: &BackendSet, fresh: usize, members: usize) -> Result<Extent, Cause> {
        if self.mirror.state.sets.contains_key(&id) {
            return Err(Cause::new(ErrorKind::Invalid, format!("set {id} exists with another content")));
        }
        let slots = u32::try_from(set.slots.len()).unwrap_or(u32::MAX);
        if slots == 0 || slots > MAX_SLOTS {
            let message = format!("set {id} has {slots} slots, expected 1..={MAX_SLOTS}");
            return Err(Cause::new(ErrorKind::Invalid, message));
        }
        if let Some(backend) = set.backends().iter().find(|id| !self.mirror.state.backends.contains_key(id)) {
            let unknown = || Cause::new(ErrorKind::Invalid, format!("set {id} contains unknown backend {backend}"));
            return Err(self.bad_backends.get(backend).cloned().unwrap_or_else(unknown));
        }
        let limits = self.mirror.limits;
        if self.mirror.state.sets.len() + fresh >= limits.sets {
            return Err(Cause::capacity("SETS", limits.sets, "sets"));
        }
        if self.mirror.members() + members > limits.members {
            return Err(Cause::capacity("MEMBERS", limits.members, "members"));
        }
        loop {
            match self.mirror.heap.allocate(chunks(slots), self.store.now()) {
                Ok(extent) => return Ok(extent),
                Err(NoRoom::Until(at)) => self.store.wait_until(at),
                Err(NoRoom::Full) => {
                    let max = limits.chunks as usize * abi::SLOTS_PER_CHUNK as usize;
                    return Err(Cause::capacity("SLOTS", max, "slots"));
                }
            }
        }
    }

    fn frontends(&mut self, ops: &[Op]) -> usize {
        let (mut values, mut lists, mut failed) = (Phase::new(), Phase::new(), BTreeMap::new());
        let (mut sources, mut fresh) = (Phase::new(), BTreeSet::new());
        let mut newly_listed = BTreeMap::new();
        for (at, addr, frontend) in frontends(ops) {
            let known = self.mirror.state.frontends.get(&addr);
            if known == Some(frontend) {
                continue;
            }
            if known.is_none() {
                fresh.insert(addr);
            }
            let listed = self.unlisted(frontend, &newly_listed);
            let members = newly_listed.values().map(|(_, count)| count).sum::<usize>() + listed.len();
            let prefixes = convert::source_keys(frontend).filter(|key| !self.mirror.sources.contains(key));
            let prefixes: Vec<_> = prefixes.map(|key| (at, Write::Source(key))).collect();
            match self.frontend(&addr, frontend, fresh.len(), (members, sources.len() + prefixes.len())) {
                Ok(write) => {
                    values.push((at, write));
                    sources.extend(prefixes);
                }
                Err(cause) => {
                    fresh.remove(&addr);
                    failed.insert(at, cause);
                    continue;
                }
            }
            if let (Target::Set(set), false) = (frontend.target, listed.is_empty()) {
                newly_listed.insert(set, (at, listed.len()));
                lists.extend(listed.into_iter().map(|write| (at, write)));
            }
        }
        // Traffic from inside looks for its own frontend first: that is there before the other one stops serving it.
        values.sort_by_key(|(_, write)| !matches!(write, Write::Frontend(key, _) if key.scope == abi::SCOPE_INTERNAL));
        self.execute([sources, lists, values], &mut failed);
        for (set, (at, _)) in newly_listed {
            if !failed.contains_key(&at) {
                let members = self.mirror.state.sets.get(&set).map(|set| members_of(set));
                self.mirror.list(set, members.unwrap_or_default());
            }
        }
        let count = failed.len();
        let before = self.source_keys(frontends(ops).map(|(_, addr, _)| addr));
        for (at, addr, frontend) in frontends(ops) {
            match failed.remove(&at) {
                Some(cause) => self.failed.push((addr, cause.into())),
                None => self.mirror.insert_frontend(addr, frontend.clone()),
            }
        }
        self.settle_addresses(frontends(ops).map(|(_, addr, _)| addr).collect(), before);
        count
    }

    /// Keys in `SOURCES` of the frontends at `addrs`.
    fn source_keys(&self, addrs: impl Iterator<Item = FrontendAddr>) -> BTreeSet<abi::SourceKey> {
        addrs.filter_map(|addr| self.mirror.state.frontends.get(&addr)).flat_map(convert::source_keys).collect()
    }

    /// Brings what is known of the addresses of these frontends up to date, after they changed, and removes the prefixes
    /// that they had `before` and have no longer.
    ///
    /// Until then the old prefixes of a frontend are there beside the new ones: a client gets in, or is kept out, as before
    /// or as after.
    fn settle_addresses(&mut self, changed: Vec<FrontendAddr>, before: BTreeSet<abi::SourceKey>) {
        let after = self.source_keys(changed.iter().copied());
        let gone: Vec<_> = before.difference(&after).copied().collect();
        let prefixes = gone.iter().map(|key| (0, Write::NoSource(*key))).collect();
        let (mut puts, mut removals) = (Phase::new(), Phase::new());
        let ips: BTreeSet<IpAddr> = changed.into_iter().map(|addr| addr.ip).collect();
        let news = ips.into_iter().map(|ip| (ip, self.mirror.says(ip)));
        let news: Vec<_> = news.filter(|(ip, says)| self.mirror.addresses_said.get(ip) != says.as_ref()).collect();
        for (ip, says) in &news {
            let Ok(addr) = convert::addr(*ip) else { continue };
            match says {
                Some(says) => puts.push((0, Write::Address(addr, *says))),
                None => removals.push((0, Write::NoAddress(addr))),
            }
        }
        self.mirror.sources.extend(after);
        if let Err(cause) = self.all([puts, prefixes, removals]) {
            self.unknown.get_or_insert_with(|| cause.into());
            return;
        }
        for key in gone {
            self.mirror.sources.remove(&key);
        }
        for (ip, says) in news {
            match says {
                Some(says) => drop(self.mirror.addresses_said.insert(ip, says)),
                None => drop(self.mirror.addresses_said.remove(&ip)),
            }
        }
    }

    /// The entries of `MEMBERS` that a frontend with affinity needs and that are not there.
    fn unlisted(&self, frontend: &Frontend, pending: &BTreeMap<SetId, (usize, usize)>) -> Vec<Write> {
        let (Some(_), Target::Set(id)) = (frontend.affinity, frontend.target) else { return Vec::new() };
        if self.mirror.is_listed(id) || pending.contains_key(&id) {
            return Vec::new();
        }
        self.mirror.state.sets.get(&id).map_or_else(Vec::new, |set| membership(id, set))
    }

    fn frontend(
        &self,
        addr: &FrontendAddr,
        frontend: &Frontend,
        fresh: usize,
        (members, sources): (usize, usize),
    ) -> Result<Write, Cause> {
        let key = convert::frontend_key(addr)?;
        let limits = self.mirror.limits;
        if self.mirror.state.frontends.len() + fresh > limits.frontends {
            return Err(Cause::capacity("FRONTENDS", limits.frontends, "frontends"));
        }
        if self.mirror.members() + members > limits.members {
            return Err(Cause::capacity("MEMBERS", limits.members, "members"));
        }
        if self.mirror.sources.len() + sources > limits.sources {
            return Err(Cause::capacity("SOURCES", limits.sources, "sources"));
        }
        let set = match frontend.target {
            Target::Reject | Target::Drop => None,
            Target::Set(id) => Some(self.target(id)?),
        };
        Ok(Write::Frontend(key, convert::frontend_value(frontend, set)?))
    }

    fn target(&self, id: SetId) -> Result<(Extent, u32, Lookup), Cause> {
        if let Some(cause) = self.bad_sets.get(&id) {
            return Err(cause.clone());
        }
        let found = self.mirror.state.sets.get(&id).zip(self.mirror.extent(id));
        let Some((set, extent)) = found else {
            return Err(Cause::new(ErrorKind::Invalid, format!("set {id} does not exist")));
        };
        Ok((extent, set.slots.len() as u32, set.lookup))
    }
}

fn backends(ops: &[Op]) -> impl Iterator<Item = (usize, BackendId, &Backend)> {
    ops.iter().enumerate().filter_map(|(at, op)| match op {
        Op::UpsertBackend(id, backend) => Some((at, *id, backend)),
        _ => None,
    })
}

fn sets(ops: &[Op]) -> impl Iterator<Item = (usize, SetId, &Arc<BackendSet>)> {
    ops.iter().enumerate().filter_map(|(at, op)| match op {
        Op::AddSet(id, set) => Some((at, *id, set)),
        _ => None,
    })
}

fn frontends(ops: &[Op]) -> impl Iterator<Item = (usize, FrontendAddr, &Frontend)> {
    ops.iter().enumerate().filter_map(|(at, op)| match op {
        Op::UpsertFrontend { addr, frontend, .. } => Some((at, *addr, frontend)),
        _ => None,
    })
}

pub(crate) fn set_value(set: &BackendSet, extent: Extent) -> abi::SetValue {
    let slots = set.slots.len() as u32;
    abi::SetValue { first: extent.first, slots, lookup: convert::lookup(set.lookup), pad: [0; 3] }
}

fn members(id: SetId, set: &BackendSet) -> impl Iterator<Item = (abi::MemberKey, u8)> {
    let members = members_of(set).into_iter();
    members.map(move |(backend, value)| (abi::MemberKey { set: id.get(), backend: backend.get() }, value))
}

fn member_keys(id: SetId, set: &BackendSet) -> impl Iterator<Item = abi::MemberKey> {
    members(id, set).map(|(key, _)| key)
}

fn membership(id: SetId, set: &BackendSet) -> Vec<Write> {
    members(id, set).map(|(key, value)| Write::Member(key, value)).collect()
}

/// The key under which a set counts turns, if it does.
fn turns_of(id: SetId, set: &BackendSet) -> Option<u32> {
    (set.lookup == Lookup::RoundRobin).then(|| id.get())
}

/// Everything that a set may have in the maps, what says that it exists first.
fn remove_set(id: SetId, set: &BackendSet) -> impl Iterator<Item = Write> {
    let rest = turns_of(id, set).map(Write::NoTurns).into_iter().chain(member_keys(id, set).map(Write::NoMember));
    std::iter::once(Write::NoSet(id.get())).chain(rest)
}

#[cfg(test)]
mod tests;
