//! Removals: frontends first, then the sets and backends that no frontend needs any more.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::plan::Op;

use super::{Phase, Run, member_keys, turns_of};
use crate::state::{
    convert,
    write::{Store, Write},
};

impl<S: Store> Run<'_, S> {
    pub(super) fn gone_frontends(&mut self, ops: &[Op]) -> usize {
        let addrs = || {
            ops.iter().enumerate().filter_map(|(at, op)| match op {
                Op::RemoveFrontend(addr) => Some((at, *addr)),
                _ => None,
            })
        };
        let (mut phase, mut failed) = (Phase::new(), BTreeMap::new());
        for (at, addr) in addrs().filter(|(_, addr)| self.mirror.state.frontends.contains_key(addr)) {
            match convert::frontend_key(&addr) {
                Ok(key) => phase.push((at, Write::NoFrontend(key))),
                Err(error) => {
                    failed.insert(at, error.into());
                }
            }
        }
        self.execute([phase], &mut failed);
        let count = failed.len();
        let before = self.source_keys(addrs().map(|(_, addr)| addr));
        for (at, addr) in addrs() {
            match failed.remove(&at) {
                Some(cause) => self.failed.push((addr, cause.into())),
                None => self.mirror.remove_frontend(&addr),
            }
        }
        self.settle_addresses(addrs().map(|(_, addr)| addr).collect(), before);
        count
    }

    /// Removes sets, except for those that a frontend points to, which happens when the frontend could not be moved.
    pub(super) fn gone_sets(&mut self, ops: &[Op]) -> usize {
        let ids = || {
            ops.iter()
                .enumerate()
                .filter_map(|(at, op)| if let Op::RemoveSet(id) = op { Some((at, *id)) } else { None })
        };
        let (mut sets, mut turns, mut members, mut kept) = (Phase::new(), Phase::new(), Phase::new(), 0);
        for (at, id) in ids() {
            if self.mirror.is_set_used(id) {
                kept += 1;
            } else if let Some(set) = self.mirror.state.sets.get(&id) {
                sets.push((at, Write::NoSet(id.get())));
                turns.extend(turns_of(id, set).map(|set| (at, Write::NoTurns(set))));
                let listed = self.mirror.is_listed(id).then(|| member_keys(id, set)).into_iter().flatten();
                members.extend(listed.map(|key| (at, Write::NoMember(key))));
            }
        }
        let failed = self.remove([sets]);
        let now = self.store.now();
        for (_, id) in ids().filter(|(at, _)| !failed.contains(at)) {
            if !self.mirror.is_set_used(id)
                && let Some(extent) = self.mirror.remove_set(id)
            {
                self.mirror.heap.free(extent, now);
            }
        }
        // The set is gone, whatever becomes of the rest: what is left of that goes when the maps are next opened.
        let gone = |(at, _): &(usize, Write)| !failed.contains(at);
        turns.retain(gone);
        members.retain(gone);
        self.remove([turns, members]);
        kept + failed.len()
    }

    /// Removes backends, except for those that are in a set, for the same reason.
    pub(super) fn gone_backends(&mut self, ops: &[Op]) -> usize {
        let (mut phase, mut kept) = (Phase::new(), 0);
        for (at, op) in ops.iter().enumerate() {
            let Op::RemoveBackend(id) = op else { continue };
            if self.mirror.is_backend_used(*id) {
                kept += 1;
            } else if self.mirror.state.backends.contains_key(id) {
                phase.push((at, Write::NoBackend(id.get())));
            }
        }
        let failed = self.remove([phase]);
        for (at, op) in ops.iter().enumerate() {
            if let Op::RemoveBackend(id) = op
                && !failed.contains(&at)
                && !self.mirror.is_backend_used(*id)
            {
                self.mirror.state.backends.remove(id);
            }
        }
        kept + failed.len()
    }

    /// Removes what no frontend needs. A failure leaves the maps with more than the plan says.
    fn remove(&mut self, phases: impl IntoIterator<Item = Phase>) -> BTreeSet<usize> {
        let mut failed = BTreeMap::new();
        self.execute(phases, &mut failed);
        if let Some(cause) = failed.values().next().cloned() {
            self.unknown.get_or_insert_with(|| cause.into());
        }
        failed.into_keys().collect()
    }
}
