//! Objects that must not be removed yet.

use alloc::collections::BTreeSet;

use crate::{
    addr::FrontendAddr,
    id::SetId,
    plan::Op,
    state::{State, Target},
};

/// Sets and backends that deferred frontends still use.
pub(crate) struct InUse<'a> {
    state: &'a State,
    sets: BTreeSet<SetId>,
}

pub(crate) fn in_use<'a>(state: &'a State, frontends: impl Iterator<Item = &'a FrontendAddr>) -> InUse<'a> {
    let targets = frontends.filter_map(|addr| state.frontends.get(addr)).map(|frontend| frontend.target);
    let sets = targets.filter_map(|target| match target {
        Target::Set(set) => Some(set),
        Target::Reject | Target::Drop => None,
    });
    InUse { state, sets: sets.collect() }
}

impl InUse<'_> {
    pub(crate) fn needs(&self, op: &Op) -> bool {
        match op {
            Op::RemoveSet(id) => self.sets.contains(id),
            Op::RemoveBackend(id) => {
                let sets = self.sets.iter().filter_map(|set| self.state.sets.get(set));
                sets.into_iter().any(|set| set.slots.contains(id) || set.draining.contains(id))
            }
            Op::SetNode(_)
            | Op::UpsertBackend(..)
            | Op::AddSet(..)
            | Op::UpsertFrontend { .. }
            | Op::RemoveFrontend(_) => false,
        }
    }
}
