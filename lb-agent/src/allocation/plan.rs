//! What an edit would do, tried on a copy.

use std::collections::BTreeSet;

use lb_core::name::ServiceName;
use lb_ipam::{Edit, Pool, PoolName, Timestamp};

use super::{Allocation, assignments::Assignments, view};
use crate::api::{PoolMove, PoolPlan};

/// What would be edited.
pub(crate) struct PlannedEdits {
    pub(crate) edits: Vec<Edit>,
    /// The parts of the manifests that would not be accepted, and why.
    pub(crate) refused: Vec<String>,
    /// The fields of them that are not supported.
    pub(crate) unsupported: Vec<String>,
}

impl Allocation {
    /// What edits would do, beyond what is due anyway.
    pub(crate) fn plan(&self, planned: PlannedEdits, now: Timestamp) -> PoolPlan {
        let mut before = self.assignments.clone();
        // What is written here is written nowhere.
        let _ = before.settle(now);
        let mut after = before.clone();
        let asked: BTreeSet<ServiceName> = planned.edits.iter().filter_map(asked).cloned().collect();
        let _ = after.take(planned.edits, &[], now);
        let _ = after.settle(now);
        let names: BTreeSet<&ServiceName> =
            [&before, &after].into_iter().flat_map(|it| it.load_balancers().map(|(name, _)| name)).collect();
        let moves = names.into_iter().filter_map(|name| moved(name, &before, &after, asked.contains(name)));
        PoolPlan {
            moves: moves.collect(),
            pools: view::pools(&after),
            refused: planned.refused,
            unsupported: planned.unsupported,
        }
    }

    /// The first of these pools that there is not.
    pub(crate) fn unknown<'a>(&self, pools: &'a [PoolName]) -> Option<&'a PoolName> {
        pools.iter().find(|name| !self.assignments.pools().contains_key(name))
    }
}

/// The service that an edit is about.
fn asked(edit: &Edit) -> Option<&ServiceName> {
    match edit {
        Edit::UpsertService(request) => Some(&request.service),
        _ => None,
    }
}

/// A service whose addresses would change, or that asks for what it would not get.
fn moved(name: &ServiceName, before: &Assignments, after: &Assignments, is_asked: bool) -> Option<PoolMove> {
    let (now, then) = (before.addresses(name), after.addresses(name));
    let refused: Vec<String> =
        after.answer(name).map(|answer| answer.refused.iter().map(ToString::to_string).collect()).unwrap_or_default();
    let differs = now.iter().collect::<BTreeSet<_>>() != then.iter().collect::<BTreeSet<_>>();
    (differs || (is_asked && !refused.is_empty())).then(|| PoolMove {
        service: name.to_string(),
        before: now,
        after: then,
        refused,
    })
}

/// The first pool that would come and go at once.
pub(crate) fn contradiction<'a>(edits: &[Edit], removed: &'a [PoolName]) -> Option<&'a PoolName> {
    let comes = |name: &PoolName| {
        edits.iter().any(|edit| matches!(edit, Edit::UpsertPool(Pool { name: new, .. }) if new == name))
    };
    removed.iter().find(|name| comes(name))
}
