//! Plans: ordered operations that lead from one state to another.

use alloc::{collections::BTreeSet, string::String, sync::Arc, vec::Vec};

use crate::{
    addr::FrontendAddr,
    datapath::{ApplyError, DatapathError, ErrorKind},
    id::{BackendId, SetId},
    node::NodeFacts,
    state::{Backend, BackendSet, Frontend, State},
};

/// Number of a plan: its reconciler counts up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanId(pub u64);

/// Ordered operations that make before they break: after any prefix of them, each frontend that exists before and after
/// the plan still answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its number.
    pub id: PlanId,
    /// The operations, in order.
    pub ops: Vec<Op>,
}

/// One operation of a plan.
///
/// Later versions may add operations. A datapath that meets one that it does not know refuses the plan by
/// [`Plan::check_known`]: a plan of which an operation is left out leads to a state that nobody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// Facts about the node changed.
    SetNode(NodeFacts),
    /// Adds a backend, or changes whether it is local; its address never changes under an id.
    UpsertBackend(BackendId, Backend),
    /// Adds a set whose backends exist.
    AddSet(SetId, Arc<BackendSet>),
    /// Adds a frontend or points it elsewhere. No other operation moves traffic.
    UpsertFrontend {
        /// The frontend.
        addr: FrontendAddr,
        /// The frontend from now on.
        frontend: Frontend,
        /// `namespace/name:port` of its owner, for comments that people read; not part of the state.
        label: Arc<str>,
    },
    /// Removes a frontend.
    RemoveFrontend(FrontendAddr),
    /// Removes a set that no frontend points to.
    RemoveSet(SetId),
    /// Removes a backend that is in no set.
    RemoveBackend(BackendId),
}

impl Op {
    /// Its name, as errors print it: `set-node`, `upsert-backend`, `add-set`, `upsert-frontend`, `remove-frontend`,
    /// `remove-set` or `remove-backend`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::SetNode(_) => "set-node",
            Self::UpsertBackend(..) => "upsert-backend",
            Self::AddSet(..) => "add-set",
            Self::UpsertFrontend { .. } => "upsert-frontend",
            Self::RemoveFrontend(_) => "remove-frontend",
            Self::RemoveSet(_) => "remove-set",
            Self::RemoveBackend(_) => "remove-backend",
        }
    }

    /// The frontend that the operation is about, if it is about one.
    #[must_use]
    pub const fn frontend(&self) -> Option<FrontendAddr> {
        match self {
            Self::UpsertFrontend { addr, .. } | Self::RemoveFrontend(addr) => Some(*addr),
            Self::SetNode(_)
            | Self::UpsertBackend(..)
            | Self::AddSet(..)
            | Self::RemoveSet(_)
            | Self::RemoveBackend(_) => None,
        }
    }
}

/// Labels of frontends: `namespace/name:port` of the owner.
pub type Labels = alloc::collections::BTreeMap<FrontendAddr, Arc<str>>;

/// Keys of the objects that may differ between two states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Whether the node's facts may differ.
    pub node: bool,
    /// Backends that may differ.
    pub backends: BTreeSet<BackendId>,
    /// Sets that may differ.
    pub sets: BTreeSet<SetId>,
    /// Frontends that may differ.
    pub frontends: BTreeSet<FrontendAddr>,
}

impl Touched {
    /// Everything that either state holds.
    #[must_use]
    pub fn all(a: &State, b: &State) -> Self {
        Self {
            node: true,
            backends: a.backends.keys().chain(b.backends.keys()).copied().collect(),
            sets: a.sets.keys().chain(b.sets.keys()).copied().collect(),
            frontends: a.frontends.keys().chain(b.frontends.keys()).copied().collect(),
        }
    }

    /// Adds what `other` names.
    pub fn merge(&mut self, other: Self) {
        self.node |= other.node;
        self.backends.extend(other.backends);
        self.sets.extend(other.sets);
        self.frontends.extend(other.frontends);
    }

    /// Whether nothing may differ.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.node && self.backends.is_empty() && self.sets.is_empty() && self.frontends.is_empty()
    }
}

/// The plan that makes `desired` out of `observed`. Pure: `observed` with `diff(observed, desired)` applied is
/// `desired`.
///
/// Order: node, backends, sets, frontends that come or change, frontends that go, sets and backends that nothing
/// uses any more.
#[must_use]
pub fn diff(observed: &State, desired: &State, labels: &Labels) -> Plan {
    diff_touched(observed, desired, labels, &Touched::all(observed, desired))
}

/// [`diff`], restricted to `touched`: the cost grows with the change and not with the state.
#[must_use]
pub fn diff_touched(observed: &State, desired: &State, labels: &Labels, touched: &Touched) -> Plan {
    let mut ops = Vec::new();
    let mut removals = Vec::new();
    if touched.node && observed.node != desired.node {
        ops.push(Op::SetNode(desired.node.clone()));
    }
    for &id in &touched.backends {
        match (observed.backends.get(&id), desired.backends.get(&id)) {
            (Some(_), None) => removals.push(Op::RemoveBackend(id)),
            (before, Some(&after)) if before != Some(&after) => ops.push(Op::UpsertBackend(id, after)),
            _ => {}
        }
    }
    let mut removed_sets = Vec::new();
    for &id in &touched.sets {
        match (observed.sets.get(&id), desired.sets.get(&id)) {
            (Some(_), None) => removed_sets.push(Op::RemoveSet(id)),
            (before, Some(after)) if before != Some(after) => ops.push(Op::AddSet(id, Arc::clone(after))),
            _ => {}
        }
    }
    let mut removed_frontends = Vec::new();
    for &addr in &touched.frontends {
        match (observed.frontends.get(&addr), desired.frontends.get(&addr)) {
            (Some(_), None) => removed_frontends.push(Op::RemoveFrontend(addr)),
            (before, Some(frontend)) if before != Some(frontend) => {
                let label = labels.get(&addr).map_or_else(|| Arc::from(""), Arc::clone);
                ops.push(Op::UpsertFrontend { addr, frontend: frontend.clone(), label });
            }
            _ => {}
        }
    }
    ops.append(&mut removed_frontends);
    ops.append(&mut removed_sets);
    ops.append(&mut removals);
    Plan { id: PlanId::default(), ops }
}

impl State {
    /// Carries out one operation. Applying an operation twice is applying it once.
    ///
    /// Every datapath carries out an operation this way, with one more guard: see
    /// [`apply_guarded`](Self::apply_guarded).
    pub fn apply_op(&mut self, op: &Op) {
        match op {
            Op::SetNode(node) => self.node.clone_from(node),
            Op::UpsertBackend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            Op::AddSet(id, set) => {
                self.sets.insert(*id, Arc::clone(set));
            }
            Op::UpsertFrontend { addr, frontend, .. } => {
                self.frontends.insert(*addr, frontend.clone());
            }
            Op::RemoveFrontend(addr) => {
                self.frontends.remove(addr);
            }
            Op::RemoveSet(id) => {
                self.sets.remove(id);
            }
            Op::RemoveBackend(id) => {
                self.backends.remove(id);
            }
        }
    }
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Refuses a plan that contains an operation which `knows` denies. A datapath calls it before it carries out
    /// anything, with a `knows` that lists the operations that the datapath was written for.
    ///
    /// ```
    /// use lb_core::plan::{Op, Plan};
    ///
    /// let knows = |op: &Op| matches!(op, Op::SetNode(_));
    /// assert!(Plan::default().check_known(knows).is_ok());
    /// ```
    ///
    /// # Errors
    /// When there is an operation that the datapath does not know. The error names it and is of the kind
    /// [`ErrorKind::Unsupported`].
    pub fn check_known(&self, knows: impl Fn(&Op) -> bool) -> Result<(), ApplyError> {
        let Some(op) = self.ops.iter().find(|op| !knows(op)) else { return Ok(()) };
        let message = alloc::format!(
            "operation `{}` of plan {} is not one that this datapath knows; use a datapath of the same version as lb-core",
            op.as_str(),
            self.id.0
        );
        Err(ApplyError::unknown(DatapathError::new(ErrorKind::Unsupported, message)))
    }

    /// The plan in one line: how many operations of each kind.
    #[must_use]
    pub fn summary(&self) -> String {
        let count = |wanted: fn(&Op) -> bool| self.ops.iter().filter(|op| wanted(op)).count();
        alloc::format!(
            "{} operation{}: frontends +{} -{}, sets +{} -{}, backends +{} -{}",
            self.ops.len(),
            if self.ops.len() == 1 { "" } else { "s" },
            count(|op| matches!(op, Op::UpsertFrontend { .. })),
            count(|op| matches!(op, Op::RemoveFrontend(_))),
            count(|op| matches!(op, Op::AddSet(..))),
            count(|op| matches!(op, Op::RemoveSet(_))),
            count(|op| matches!(op, Op::UpsertBackend(..))),
            count(|op| matches!(op, Op::RemoveBackend(_))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_with_an_operation_that_a_datapath_does_not_know_is_refused_by_name() {
        let ops = Vec::from([Op::SetNode(NodeFacts::default()), Op::RemoveSet(SetId::new(1).expect("not 0"))]);
        let plan = Plan { id: PlanId(7), ops };
        assert!(plan.check_known(|op| matches!(op, Op::SetNode(_) | Op::RemoveSet(_))).is_ok());
        let error = plan.check_known(|op| matches!(op, Op::SetNode(_))).unwrap_err();
        assert_eq!((error.applied, error.failed.len()), (0, 0));
        let cause = error.unknown.unwrap();
        assert_eq!(cause.kind(), ErrorKind::Unsupported);
        assert!(cause.report().starts_with("operation `remove-set` of plan 7 "), "{}", cause.report());
    }
}
