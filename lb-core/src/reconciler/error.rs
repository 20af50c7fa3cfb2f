//! Why there can be no plan.

use crate::plan::PlanId;

/// Why there can be no plan: the caller of the [`Reconciler`](super::Reconciler) left something out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// There are no facts about the node, so flows could not be translated to an address of it.
    #[error(
        "no plan without facts about the node, from which translated flows get their source: call `handle_change` with \
         `Change::SetNode` and the node's addresses"
    )]
    NoNode,
    /// What the datapath holds is not known.
    #[error(
        "no plan before the datapath was observed: while `wants_observation` returns true, call `observe` of the \
         datapath, and then `handle_observed` or `handle_observe_failed`"
    )]
    NotObserved,
    /// What became of the last plan is not known.
    #[error("no plan while plan {} is under way: call `handle_applied` with what `apply` of the datapath returned", .0.0)]
    NotApplied(PlanId),
}
