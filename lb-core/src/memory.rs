//! A datapath that only remembers.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::{
    ApplyError, BackendAddr, BackendId, Backends, Capabilities, Datapath, DatapathError, Entry, ErrorKind, FlowView,
    FrontendAddr, KernelAnswer, KernelVerdict, Lookup, Op, Packet, Plan, Role, Scope, SetId, State, Target, flow_hash,
};

/// A datapath in memory: it can do everything, needs no privilege and carries no packets.
///
/// ```
/// use lb_core::{Datapath, MemoryDatapath};
///
/// let mut datapath = MemoryDatapath::default();
/// assert!(datapath.observe().unwrap().frontends.is_empty());
/// ```
#[derive(Clone, Debug)]
pub struct MemoryDatapath {
    capabilities: Capabilities,
    state: State,
    role: Role,
}

impl Default for MemoryDatapath {
    fn default() -> Self {
        Self::with_capabilities(Capabilities::all("memory"))
    }
}

impl MemoryDatapath {
    /// One that claims to be able to do only `capabilities`.
    #[must_use]
    pub fn with_capabilities(capabilities: Capabilities) -> Self {
        Self { capabilities, state: State::default(), role: Role::Active }
    }

    /// What it holds.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Changes what it holds behind its user's back, as another tool changes a kernel.
    pub fn disturb(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
    }

    /// Its role.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }
}

impl Datapath for MemoryDatapath {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        Ok(self.state.clone())
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        self.state.apply_guarded(&plan.ops);
        Ok(())
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        if !self.capabilities.roles.contains(&role) {
            return Err(DatapathError::new(
                ErrorKind::Unsupported,
                alloc::format!("role {role:?} is not in this datapath"),
            ));
        }
        self.role = role;
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.state = State::default();
        Ok(())
    }

    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        let internal = FrontendAddr {
            scope: Scope::Internal,
            ..FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol)
        };
        let external = FrontendAddr { scope: Scope::External, ..internal };
        let inside = packet.entry != Entry::Uplink && self.state.frontends.contains_key(&internal);
        let addr = if inside { internal } else { external };
        let affinity = self.state.frontends.get(&addr).and_then(|frontend| frontend.affinity);
        let hash = affinity.map_or_else(|| packet.flow_hash(), |affinity| affinity.client_hash(packet.source));
        let verdict = match self.state.answer(&addr, hash) {
            Answer::NotAFrontend => KernelVerdict::Pass,
            Answer::Reject => KernelVerdict::Reject,
            Answer::Drop => KernelVerdict::Drop,
            Answer::Backends(backends) => {
                KernelVerdict::Forward { backends: Backends::MayTake(backends), translated: None }
            }
            Answer::Broken => {
                return Err(DatapathError::new(ErrorKind::System, alloc::format!("frontend {addr} leads nowhere")));
            }
        };
        Ok(Some(KernelAnswer {
            method: "look-up in memory".into(),
            steps: Vec::from([alloc::format!("frontend {addr}")]),
            flow: FlowView::default(),
            verdict,
        }))
    }
}

/// What a state answers to the first packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The address is no frontend.
    NotAFrontend,
    /// Refused at once.
    Reject,
    /// Dropped silently.
    Drop,
    /// One of these backends, with their number of slots.
    Backends(BTreeMap<BackendAddr, u32>),
    /// The state refers to something that it does not hold.
    Broken,
}

impl State {
    /// What this state answers to a new flow to `addr` whose [flow hash](crate::flow_hash) is `hash`, without an
    /// affinity record.
    #[must_use]
    pub fn answer(&self, addr: &FrontendAddr, hash: u32) -> Answer {
        let Some(frontend) = self.frontends.get(addr) else { return Answer::NotAFrontend };
        let set = match frontend.target {
            Target::Reject => return Answer::Reject,
            Target::Drop => return Answer::Drop,
            Target::Set(id) => self.sets.get(&id),
        };
        let Some(set) = set else { return Answer::Broken };
        let ids: Vec<_> = match set.lookup {
            Lookup::Random | Lookup::RoundRobin => set.members().into_iter().collect(),
            Lookup::Hash => {
                let slot = flow_hash::slot(hash, set.slots.len() as u32);
                set.slots.get(slot as usize).map(|&id| (id, 1)).into_iter().collect()
            }
        };
        let found: Option<BTreeMap<_, _>> =
            ids.iter().map(|(id, slots)| Some((self.backends.get(id)?.addr, *slots))).collect();
        match found {
            Some(backends) if !backends.is_empty() => Answer::Backends(backends),
            _ => Answer::Broken,
        }
    }

    /// Carries out `ops` in order, except for removals of what something still refers to: what a datapath does when
    /// some frontends of a plan are refused.
    pub fn apply_guarded<'a>(&mut self, ops: impl IntoIterator<Item = &'a Op>) {
        let mut sets_in_use: Option<BTreeSet<SetId>> = None;
        let mut backends_in_use: Option<BTreeSet<BackendId>> = None;
        for op in ops {
            let needed = match op {
                Op::RemoveSet(id) => sets_in_use.get_or_insert_with(|| self.sets_in_use()).contains(id),
                Op::RemoveBackend(id) => backends_in_use.get_or_insert_with(|| self.backends_in_use()).contains(id),
                Op::SetNode(_)
                | Op::UpsertBackend(..)
                | Op::AddSet(..)
                | Op::UpsertFrontend { .. }
                | Op::RemoveFrontend(_) => {
                    sets_in_use = None;
                    false
                }
            };
            if !needed {
                self.apply_op(op);
            }
            if !matches!(op, Op::RemoveBackend(_)) {
                backends_in_use = None;
            }
        }
    }

    /// Sets that a frontend points to.
    #[must_use]
    pub fn sets_in_use(&self) -> BTreeSet<SetId> {
        let targets = self.frontends.values().map(|frontend| frontend.target);
        targets
            .filter_map(|target| match target {
                Target::Set(set) => Some(set),
                Target::Reject | Target::Drop => None,
            })
            .collect()
    }

    /// Backends that are in a set.
    #[must_use]
    pub fn backends_in_use(&self) -> BTreeSet<BackendId> {
        self.sets.values().flat_map(|set| set.slots.iter().copied()).collect()
    }
}
