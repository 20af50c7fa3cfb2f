//! A datapath in memory.

use alloc::vec::Vec;

use crate::{
    addr::{FrontendAddr, Scope},
    datapath::{ApplyError, Capabilities, Datapath, DatapathError, ErrorKind, Evicted, Eviction, Role},
    decision::{Entry, FlowView, Packet},
    kernel::{Backends, KernelAnswer, KernelVerdict},
    plan::Plan,
    state::{Answer, OtherPorts, State},
};

/// A datapath that holds its state in memory. It can do everything, needs no privilege and carries no packets.
///
/// ```
/// use lb_core::{datapath::Datapath, memory::MemoryDatapath};
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
    /// A datapath in memory with these `capabilities` only.
    #[must_use]
    pub fn with_capabilities(capabilities: Capabilities) -> Self {
        Self { capabilities, state: State::default(), role: Role::Active }
    }

    /// The state that it holds.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Changes the state behind the user's back, as another tool changes a kernel.
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
                alloc::format!("role {role:?} is not supported by this datapath"),
            ));
        }
        self.role = role;
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.state = State::default();
        Ok(())
    }

    /// It has no flow that could end.
    fn evict(&mut self, _: &[Eviction]) -> Result<Evicted, DatapathError> {
        Ok(Evicted::default())
    }

    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        let internal = FrontendAddr {
            scope: Scope::Internal,
            ..FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol)
        };
        let external = FrontendAddr { scope: Scope::External, ..internal };
        let inside = packet.entry != Entry::Uplink && self.state.frontends.contains_key(&internal);
        let addr = if inside { internal } else { external };
        let frontend = self.state.frontends.get(&addr);
        let affinity = frontend.and_then(|frontend| frontend.affinity);
        let guard = frontend.and_then(|frontend| frontend.guard.as_ref());
        let hash = affinity.map_or_else(|| packet.flow_hash(), |affinity| affinity.client_hash(packet.source));
        let is_forged = self.capabilities.drops_forged && packet.forged(&self.state.node).is_some();
        let is_ours = frontend.is_some()
            || matches!(self.state.other_ports(packet.destination), Some(OtherPorts::Drop | OtherPorts::Reject));
        let verdict = match self.state.answer(&addr, hash) {
            _ if is_forged && is_ours => KernelVerdict::Drop,
            _ if guard.is_some_and(|guard| !guard.admits(packet, &self.state.node)) => KernelVerdict::Drop,
            Answer::NotAFrontend => match self.state.other_ports(packet.destination) {
                Some(OtherPorts::Drop) => KernelVerdict::Drop,
                Some(OtherPorts::Reject) => KernelVerdict::Reject,
                Some(OtherPorts::Pass) | None => KernelVerdict::Pass,
            },
            Answer::Reject => KernelVerdict::Reject,
            Answer::Drop => KernelVerdict::Drop,
            Answer::Backends(backends) => {
                KernelVerdict::Forward { backends: Backends::MayTake(backends), translated: None }
            }
            Answer::Broken => {
                return Err(DatapathError::new(
                    ErrorKind::System,
                    alloc::format!("frontend {addr} refers to a set or backend that does not exist"),
                ));
            }
        };
        Ok(Some(KernelAnswer {
            method: "look-up in memory".into(),
            steps: Vec::from([alloc::format!("frontend {addr}")]),
            flow: FlowView::default(),
            verdict,
            faults: Vec::new(),
        }))
    }
}
