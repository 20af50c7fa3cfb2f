//! Endpoints: what a source says about the backends of a service.

use alloc::{sync::Arc, vec::Vec};
use core::net::IpAddr;

use crate::{
    addr::Protocol,
    name::{NodeName, ServiceName, SliceName, ZoneName},
    time::Instant,
    topology::Hints,
};

/// Some of the endpoints of one service, replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Identity.
    pub name: SliceName,
    /// The service whose backends these are.
    pub service: ServiceName,
    /// Ports, joined by name and protocol with the service's ports.
    pub ports: Vec<SlicePort>,
    /// The endpoints. Each serves on every port of the slice.
    pub endpoints: Vec<Endpoint>,
}

/// A port that the endpoints of a slice serve on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service's port.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port of the backends, 1..=65535.
    pub port: u16,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address of the pod or server.
    pub ip: IpAddr,
    /// Node that it runs on. Unknown counts as this node, as for a server outside the cluster.
    pub node: Option<NodeName>,
    /// Zone that it runs in.
    pub zone: Option<ZoneName>,
    /// Zones and nodes that it is meant for. Default: for all of them.
    pub hints: Hints,
    /// Readiness as Kubernetes reports it.
    pub conditions: Conditions,
    /// The decision of an operator about it.
    pub admin: AdminState,
    /// Share of new flows relative to the others, 0..=65535; 0 takes none. Default [`Endpoint::DEFAULT_WEIGHT`].
    pub weight: u16,
}

impl Endpoint {
    /// Weight of an endpoint that states none.
    pub const DEFAULT_WEIGHT: u16 = 100;

    /// A ready endpoint of the default weight, on an unknown node.
    #[must_use]
    pub const fn new(ip: IpAddr) -> Self {
        Self {
            ip,
            node: None,
            zone: None,
            hints: Hints { zones: Vec::new(), nodes: Vec::new() },
            conditions: Conditions::READY,
            admin: AdminState::InService,
            weight: Self::DEFAULT_WEIGHT,
        }
    }

    /// The state that follows from the conditions and the operator's decision at `now`.
    #[must_use]
    pub fn state(&self, now: Instant) -> BackendState {
        match self.admin {
            AdminState::Maintenance => return BackendState::Maintenance,
            AdminState::Draining { until } => {
                return if until.is_some_and(|until| now >= until) {
                    BackendState::Maintenance
                } else {
                    BackendState::Draining
                };
            }
            AdminState::InService => {}
        }
        let Conditions { ready, serving, terminating } = self.conditions;
        match (ready, serving, terminating) {
            (true, _, _) => BackendState::Active,
            (false, true, true) => BackendState::TerminatingServing,
            (false, false, true) => BackendState::Terminating,
            (false, _, false) => BackendState::NotReady,
        }
    }
}

/// The conditions of an endpoint (KEP-1669).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// May take new flows. `publishNotReadyAddresses` makes this true whatever the other two say.
    pub ready: bool,
    /// Answers its probes, whether terminating or not.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
}

impl Conditions {
    /// Ready, serving, not terminating: what missing conditions mean.
    pub const READY: Self = Self { ready: true, serving: true, terminating: false };
}

/// The decision of an operator about an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminState {
    /// As its conditions say.
    #[default]
    InService,
    /// Takes no new flows, keeps those it has; after `until` it is in maintenance.
    Draining {
        /// End of the drain; `None` for no end.
        until: Option<Instant>,
    },
    /// Takes no new flows; nothing holds its old ones.
    Maintenance,
}

/// State of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// Takes new flows.
    Active,
    /// Terminating but serving: takes new flows only while no backend is active.
    TerminatingServing,
    /// Terminating and not serving.
    Terminating,
    /// Not ready, not terminating.
    NotReady,
    /// Drained by an operator: keeps its flows.
    Draining,
    /// Taken out by an operator.
    Maintenance,
}
