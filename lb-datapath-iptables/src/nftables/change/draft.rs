//! A plan laid over the mirror: the contents that the table is to have, at the cost of the change alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::{DatapathError, ErrorKind},
    id::{BackendId, SetId},
    node::NodeFacts,
    plan::{Op, Plan},
    state::{Backend, BackendSet, Frontend, Lookup, State},
};

use crate::nftables::{
    change::mirror::{Counts, Mirror, members},
    table::{
        elements::set_of,
        layout::Device,
        slots::{Backends, Slot},
    },
};

/// Changes over a mirror; `None` removes.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) node: Option<NodeFacts>,
    pub(crate) backends: BTreeMap<BackendId, Option<Backend>>,
    pub(crate) sets: BTreeMap<SetId, Option<Arc<BackendSet>>>,
    pub(crate) frontends: BTreeMap<FrontendAddr, Option<Frontend>>,
    pub(crate) labels: BTreeMap<FrontendAddr, Arc<str>>,
    pub(crate) uplinks: Option<BTreeSet<Device>>,
}

impl Draft {
    /// Adds everything that `state` holds, for a new table.
    pub(crate) fn add_state(&mut self, state: &State) {
        self.node = Some(state.node.clone());
        self.backends.extend(state.backends.iter().map(|(&id, &backend)| (id, Some(backend))));
        self.sets.extend(state.sets.iter().map(|(&id, set)| (id, Some(Arc::clone(set)))));
        self.frontends.extend(state.frontends.iter().map(|(&addr, frontend)| (addr, Some(frontend.clone()))));
    }

    /// Adds what `plan` does, without what it does to `refused` frontends. A set that a frontend still points to and a
    /// backend that is still in a set stay.
    pub(crate) fn add_plan(&mut self, mirror: &Mirror, plan: &Plan, refused: &BTreeMap<FrontendAddr, DatapathError>) {
        for op in &plan.ops {
            self.add_op(op, refused);
        }
        self.keep_what_is_used(mirror);
    }

    /// A backend as it is to be.
    pub(crate) fn backend<'a>(&'a self, mirror: &'a Mirror, id: BackendId) -> Option<&'a Backend> {
        self.backends.get(&id).map_or_else(|| mirror.state.backends.get(&id), Option::as_ref)
    }

    /// A set as it is to be.
    pub(crate) fn set<'a>(&'a self, mirror: &'a Mirror, id: SetId) -> Option<&'a Arc<BackendSet>> {
        self.sets.get(&id).map_or_else(|| mirror.state.sets.get(&id), Option::as_ref)
    }

    /// The backends of a frontend as they are to be; none for one that points to no set.
    ///
    /// # Errors
    /// When this datapath cannot carry the frontend, its set or a backend.
    pub(crate) fn backends_of(
        &self,
        mirror: &Mirror,
        addr: &FrontendAddr,
        frontend: &Frontend,
    ) -> Result<Backends, DatapathError> {
        supported(addr, frontend)?;
        let Some(id) = set_of(frontend) else { return Ok(Backends::default()) };
        let missing = |what: String| DatapathError::new(ErrorKind::Invalid, format!("frontend {addr}: {what}"));
        let set = self.set(mirror, id).ok_or_else(|| missing(format!("set {id} does not exist")))?;
        if set.slots.is_empty() {
            return Err(missing(format!("set {id} is empty")));
        }
        if set.lookup == Lookup::LeastConnections {
            return lacks(addr, "least connections");
        }
        let slot = |&id: &BackendId| -> Result<Slot, DatapathError> {
            let backend = self.backend(mirror, id).ok_or_else(|| missing(format!("backend {id} does not exist")))?;
            if backend.addr.family() != addr.family() || backend.addr.protocol != addr.protocol {
                return Err(missing(format!("backend {} is of another family or protocol", backend.addr)));
            }
            Ok((id, *backend))
        };
        Ok(Backends {
            slots: set.slots.iter().map(slot).collect::<Result<_, _>>()?,
            draining: set.draining.iter().map(slot).collect::<Result<_, _>>()?,
        })
    }

    /// Frontends that may change: those of the plan, and those whose set changes under its id.
    pub(crate) fn touched(&self, mirror: &Mirror) -> BTreeSet<FrontendAddr> {
        let mut touched: BTreeSet<FrontendAddr> = self.frontends.keys().copied().collect();
        let changed = self.changed_sets(mirror);
        if !changed.is_empty() {
            let users = mirror.state.frontends.iter();
            touched.extend(
                users.filter(|(_, f)| set_of(f).is_some_and(|id| changed.contains(&id))).map(|(&addr, _)| addr),
            );
        }
        touched
    }

    /// Takes the changes over into the mirror.
    pub(crate) fn settle(self, mirror: &mut Mirror) {
        if let Some(node) = self.node {
            mirror.state.node = node;
        }
        if let Some(uplinks) = self.uplinks {
            mirror.uplinks = uplinks;
        }
        for (id, backend) in self.backends {
            mirror.put_backend(id, backend);
        }
        for (id, set) in self.sets {
            mirror.put_set(id, set);
        }
        for (addr, frontend) in self.frontends {
            mirror.put_frontend(addr, frontend);
        }
    }

    /// Whether a draft can carry out `op`: a plan with another operation is refused as a whole.
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

    fn add_op(&mut self, op: &Op, refused: &BTreeMap<FrontendAddr, DatapathError>) {
        match op {
            Op::SetNode(node) => self.node = Some(node.clone()),
            Op::UpsertBackend(id, backend) => {
                self.backends.insert(*id, Some(*backend));
            }
            Op::AddSet(id, set) => {
                self.sets.insert(*id, Some(Arc::clone(set)));
            }
            Op::UpsertFrontend { addr, frontend, label } => {
                if !refused.contains_key(addr) {
                    self.frontends.insert(*addr, Some(frontend.clone()));
                    self.labels.insert(*addr, Arc::clone(label));
                }
            }
            Op::RemoveFrontend(addr) => {
                if !refused.contains_key(addr) {
                    self.frontends.insert(*addr, None);
                }
            }
            Op::RemoveSet(id) => {
                self.sets.insert(*id, None);
            }
            Op::RemoveBackend(id) => {
                self.backends.insert(*id, None);
            }
            op => unreachable!("a plan with operation {} is refused before it is drafted", op.as_str()),
        }
    }

    fn keep_what_is_used(&mut self, mirror: &Mirror) {
        if self.sets.values().any(Option::is_none) {
            let (gained, lost) = self.set_uses(mirror);
            self.sets.retain(|id, set| set.is_some() || mirror.set_users.get(*id) + gained.get(*id) <= lost.get(*id));
        }
        if self.backends.values().any(Option::is_none) {
            let (gained, lost) = self.backend_uses(mirror);
            self.backends
                .retain(|id, b| b.is_some() || mirror.backend_users.get(*id) + gained.get(*id) <= lost.get(*id));
        }
    }

    fn set_uses(&self, mirror: &Mirror) -> (Counts<SetId>, Counts<SetId>) {
        let (mut gained, mut lost) = (Counts::default(), Counts::default());
        for (addr, new) in &self.frontends {
            gained.swap(None, new.as_ref().and_then(set_of));
            lost.swap(None, mirror.state.frontends.get(addr).and_then(set_of));
        }
        (gained, lost)
    }

    fn backend_uses(&self, mirror: &Mirror) -> (Counts<BackendId>, Counts<BackendId>) {
        let (mut gained, mut lost) = (Counts::default(), Counts::default());
        for (id, new) in &self.sets {
            for member in new.as_deref().map(members).unwrap_or_default() {
                gained.swap(None, Some(member));
            }
            for member in mirror.state.sets.get(id).map(|old| members(old)).unwrap_or_default() {
                lost.swap(None, Some(member));
            }
        }
        (gained, lost)
    }

    fn changed_sets(&self, mirror: &Mirror) -> BTreeSet<SetId> {
        let differs = |id: &SetId, new: &Option<Arc<BackendSet>>| match (mirror.state.sets.get(id), new) {
            (Some(old), Some(new)) => old != new,
            _ => false,
        };
        let mut changed: BTreeSet<SetId> =
            self.sets.iter().filter(|(id, new)| differs(id, new)).map(|(&id, _)| id).collect();
        let moved: BTreeSet<BackendId> =
            self.backends.iter().filter(|(id, new)| self.moved(mirror, **id, **new)).map(|(&id, _)| id).collect();
        if !moved.is_empty() {
            let all = mirror.state.sets.iter();
            changed.extend(
                all.filter(|(_, set)| set.slots.iter().chain(&*set.draining).any(|id| moved.contains(id)))
                    .map(|(&id, _)| id),
            );
        }
        changed
    }

    fn moved(&self, mirror: &Mirror, id: BackendId, new: Option<Backend>) -> bool {
        match (mirror.state.backends.get(&id), new) {
            (Some(old), Some(new)) => *old != new,
            _ => false,
        }
    }
}

fn supported(addr: &FrontendAddr, frontend: &Frontend) -> Result<(), DatapathError> {
    if frontend.guard.is_some() {
        return lacks(addr, "source ranges");
    }
    if frontend.answers_ping {
        return lacks(addr, "answers to pings");
    }
    match addr.protocol {
        Protocol::Sctp => lacks(addr, "SCTP"),
        Protocol::Tcp | Protocol::Udp => Ok(()),
    }
}

fn lacks<T>(addr: &FrontendAddr, what: &str) -> Result<T, DatapathError> {
    Err(DatapathError::new(ErrorKind::Unsupported, format!("frontend {addr}: nftables datapath lacks {what}")))
}
