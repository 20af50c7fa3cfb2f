//! The effect of a plan, frontend by frontend. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{
    addr::{Family, FrontendAddr, Protocol, Scope},
    datapath::{DatapathError, ErrorKind},
    id::{BackendId, SetId},
    plan::{Labels, Op, Plan},
    state::{Frontend, Lookup, OtherPorts, State, Target},
};

use crate::iptables::change::lower::MAX_SLOTS;

/// Frontends that a plan does not change, and why.
pub(crate) type Refused = BTreeMap<FrontendAddr, DatapathError>;

/// A state on its way to the next one.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) after: State,
    pub(crate) labels: Labels,
    /// Frontends whose rules change.
    pub(crate) dirty: BTreeSet<FrontendAddr>,
    /// Whether the node's facts change.
    pub(crate) node: bool,
}

impl Change {
    /// Carries out `plan` except for the frontends that are refused: those stay as they are, with what they refer to.
    pub(crate) fn new(before: &State, labels: &Labels, plan: &Plan, refused: &Refused) -> Self {
        let (mut after, mut labels) = (before.clone(), labels.clone());
        let taken = plan.ops.iter().filter(|op| frontend_of(op).is_none_or(|addr| !refused.contains_key(&addr)));
        after.apply_guarded(taken.clone());
        let mut dirty = BTreeSet::new();
        for op in taken {
            match op {
                Op::UpsertFrontend { addr, label, .. } if after.frontends.contains_key(addr) => {
                    labels.insert(*addr, label.clone());
                    dirty.insert(*addr);
                }
                Op::UpsertFrontend { addr, .. } | Op::RemoveFrontend(addr) => {
                    labels.remove(addr);
                    dirty.insert(*addr);
                }
                _ => debug_assert!(knows(op), "a plan with operation {} is refused before", op.as_str()),
            }
        }
        dirty.extend(affected(before, &after, plan));
        let node = before.node != after.node;
        Self { after, labels, dirty, node }
    }

    /// Whether anything of `family` changes.
    pub(crate) fn touches(&self, family: Family) -> bool {
        self.node || self.dirty.iter().any(|addr| addr.family() == family)
    }
}

/// Whether this datapath can carry out `op`: a plan with another operation is refused as a whole.
pub(crate) fn knows(op: &Op) -> bool {
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

/// The frontend that an operation is about.
pub(crate) fn frontend_of(op: &Op) -> Option<FrontendAddr> {
    op.frontend()
}

/// Frontends whose rules change although no operation names them: a backend of theirs became local, say.
fn affected(before: &State, after: &State, plan: &Plan) -> Vec<FrontendAddr> {
    let mut backends = BTreeSet::new();
    let mut sets = BTreeSet::new();
    for op in &plan.ops {
        match op {
            Op::UpsertBackend(id, backend) if before.backends.get(id).is_some_and(|known| known != backend) => {
                backends.insert(*id);
            }
            Op::AddSet(id, set) if before.sets.get(id).is_some_and(|known| known != set) => {
                sets.insert(*id);
            }
            _ => debug_assert!(knows(op), "a plan with operation {} is refused before", op.as_str()),
        }
    }
    if backends.is_empty() && sets.is_empty() { Vec::new() } else { users(after, &backends, &sets) }
}

fn users(state: &State, backends: &BTreeSet<BackendId>, sets: &BTreeSet<SetId>) -> Vec<FrontendAddr> {
    let changed: BTreeSet<SetId> = state
        .sets
        .iter()
        .filter(|(id, set)| sets.contains(id) || set.slots.iter().chain(&*set.draining).any(|id| backends.contains(id)))
        .map(|(&id, _)| id)
        .collect();
    let uses = |frontend: &Frontend| matches!(frontend.target, Target::Set(id) if changed.contains(&id));
    state.frontends.iter().filter(|(_, frontend)| uses(frontend)).map(|(&addr, _)| addr).collect()
}

/// Frontends of `plan` that iptables cannot carry.
pub(crate) fn refused(before: &State, plan: &Plan, families: &[Family]) -> Refused {
    let after = Change::new(before, &Labels::new(), plan, &Refused::new()).after;
    let mut refused = Refused::new();
    for op in &plan.ops {
        let Op::UpsertFrontend { addr, frontend, .. } = op else { continue };
        if let Err(error) = check(&after, *addr, frontend, families) {
            refused.insert(*addr, error);
        }
    }
    refused
}

fn check(state: &State, addr: FrontendAddr, frontend: &Frontend, families: &[Family]) -> Result<(), DatapathError> {
    let unsupported = |what: &str| {
        Err(DatapathError::new(ErrorKind::Unsupported, format!("frontend {addr} needs {what}, which iptables lacks")))
    };
    let invalid = |what: String| Err(DatapathError::new(ErrorKind::Invalid, format!("frontend {addr}: {what}")));
    if !families.contains(&addr.family()) {
        return unsupported("a family that is switched off");
    }
    if addr.scope == Scope::Internal {
        return unsupported("a scope of its own for internal traffic");
    }
    if addr.protocol == Protocol::Sctp {
        return unsupported("SCTP");
    }
    if frontend.guard.is_some() {
        return unsupported("source ranges");
    }
    if frontend.other_ports != OtherPorts::Pass || frontend.answers_ping {
        return unsupported("a say in other packets to its address");
    }
    let Target::Set(id) = frontend.target else { return Ok(()) };
    let Some(set) = state.sets.get(&id) else { return invalid(format!("its set {id} does not exist")) };
    match set.lookup {
        Lookup::Random => {}
        Lookup::Hash => return unsupported("a hash"),
        Lookup::RoundRobin => return unsupported("turns that survive a change"),
        Lookup::LeastConnections => return unsupported("least connections"),
    }
    if set.slots.is_empty() || set.slots.len() > MAX_SLOTS as usize {
        return invalid(format!("its set {id} has {} slots, 1 to {MAX_SLOTS} are possible", set.slots.len()));
    }
    for id in set.backends() {
        let Some(backend) = state.backends.get(&id) else { return invalid(format!("backend {id} does not exist")) };
        if backend.addr.family() != addr.family() || backend.addr.protocol != addr.protocol {
            return invalid(format!("backend {} has another family or protocol", backend.addr));
        }
    }
    Ok(())
}
