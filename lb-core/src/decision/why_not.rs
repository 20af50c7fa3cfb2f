//! Why a backend is, or is not, the choice for a packet.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::net::IpAddr;

use crate::{
    addr::BackendAddr,
    decision::{Choice, Decision, FlowView, Packet, Verdict},
    flow_hash,
    selection::Reason,
    state::{Lookup, State, Target},
    time::Instant,
};

/// The backend that a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendQuery {
    /// Its address.
    pub ip: IpAddr,
    /// Its port; `None` for any.
    pub port: Option<u16>,
}

/// Why a backend is, or is not, the choice for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// The packet is for no frontend of the datapath, so no backend gets it.
    NoFrontend,
    /// The source ranges of the service keep the sender out, so no backend gets the packet.
    KeptOut {
        /// The sender.
        source: IpAddr,
    },
    /// The address is not a backend of the service.
    NotABackend,
    /// The backend may not take the packet.
    Rejected {
        /// The backend.
        backend: BackendAddr,
        /// Why not.
        reason: Reason,
    },
    /// The backend is the choice.
    Chosen {
        /// The backend.
        backend: BackendAddr,
        /// The reason of the choice.
        because: Because,
        /// Its slots.
        slots: Slots,
    },
    /// The choice is drawn from several backends, and this is one of them.
    Possible {
        /// The backend.
        backend: BackendAddr,
        /// Its slots: each is equally likely.
        slots: Slots,
    },
    /// The backend may take new flows, but the choice is drawn from others: by least connections, two slots of the hash.
    Others {
        /// The backend.
        backend: BackendAddr,
        /// Those that the choice is drawn from.
        drawn: Vec<BackendAddr>,
        /// Slots of the backend that is asked about.
        slots: Slots,
    },
    /// The backend may take new flows, but another one is the choice.
    Other {
        /// The backend.
        backend: BackendAddr,
        /// The one that is the choice.
        chosen: BackendAddr,
        /// Because of what.
        because: Because,
        /// Slots of the backend that is asked about.
        slots: Slots,
    },
}

/// Why a backend is the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// The packet belongs to a flow that this backend has.
    Established,
    /// The client used this backend before.
    Affinity,
    /// The hash leads to this slot.
    Hash {
        /// The slot, from 0.
        slot: u32,
    },
    /// There is no other.
    Only,
}

/// The share of a backend in a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Numbers of its slots, from 0, in order.
    pub own: Vec<u32>,
    /// Slots of the table.
    pub total: u32,
}

/// Explains why a backend is, or is not, the choice of `decision` for `packet` and `flow`. `state` is the desired state
/// of the datapath.
#[must_use]
pub fn why_not(
    state: &State,
    packet: &Packet,
    flow: &FlowView,
    decision: &Decision,
    query: BackendQuery,
    now: Instant,
) -> WhyNot {
    let Some(addr) = decision.frontend else { return WhyNot::NoFrontend };
    let guard = state.frontends.get(&addr).and_then(|frontend| frontend.guard.as_ref());
    if decision.verdict == Verdict::Drop && guard.is_some_and(|guard| !guard.admits(packet, &state.node)) {
        return WhyNot::KeptOut { source: packet.source };
    }
    let is_meant = |addr: &BackendAddr| addr.ip == query.ip && query.port.is_none_or(|port| port == addr.port);
    let table = Table::of(state, decision);
    let choice = match &decision.verdict {
        Verdict::Forward(forward) => Some(&forward.choice),
        Verdict::Pass | Verdict::Reject | Verdict::Drop => None,
    };
    if let Some(Choice::Exactly(chosen)) = choice {
        let affinity = state.frontends.get(&addr).and_then(|frontend| frontend.affinity);
        let is_established = flow.established == Some(*chosen);
        let sticks = affinity
            .zip(flow.affinity)
            .is_some_and(|(affinity, record)| record.backend == *chosen && record.holds(&affinity, now));
        let because = match table.lookup {
            _ if is_established => Because::Established,
            _ if sticks => Because::Affinity,
            Some(Lookup::Hash | Lookup::LeastConnections) if table.backends.iter().any(|backend| backend != chosen) => {
                let hash = affinity.map_or_else(|| packet.flow_hash(), |affinity| affinity.client_hash(packet.source));
                Because::Hash { slot: flow_hash::slot(hash, table.backends.len() as u32) }
            }
            _ => Because::Only,
        };
        if is_meant(chosen) {
            return WhyNot::Chosen { backend: *chosen, because, slots: table.slots_of(chosen) };
        }
        if let Some(&backend) = table.backends.iter().find(|backend| is_meant(backend)) {
            return WhyNot::Other { backend, chosen: *chosen, because, slots: table.slots_of(&backend) };
        }
    }
    if let Some(Choice::OneOf(weights)) = choice
        && let Some(&backend) = weights.keys().find(|backend| is_meant(backend))
    {
        return WhyNot::Possible { backend, slots: table.slots_of(&backend) };
    }
    if let Some(Choice::OneOf(weights)) = choice
        && let Some(&backend) = table.backends.iter().find(|backend| is_meant(backend))
    {
        return WhyNot::Others { backend, drawn: weights.keys().copied().collect(), slots: table.slots_of(&backend) };
    }
    match decision.rejected.iter().find(|(backend, _)| is_meant(backend)) {
        Some((backend, reason)) => WhyNot::Rejected { backend: *backend, reason: reason.clone() },
        None => WhyNot::NotABackend,
    }
}

/// The table of a decision's frontend, expanded.
struct Table {
    lookup: Option<Lookup>,
    backends: Vec<BackendAddr>,
}

impl Table {
    fn of(state: &State, decision: &Decision) -> Self {
        let target = decision.frontend.and_then(|addr| state.frontends.get(&addr)).map(|frontend| frontend.target);
        let set = match target {
            Some(Target::Set(id)) => state.sets.get(&id),
            Some(Target::Reject | Target::Drop) | None => None,
        };
        let Some(set) = set else { return Self { lookup: None, backends: Vec::new() } };
        let backends = set.slots.iter().filter_map(|id| state.backends.get(id)).map(|backend| backend.addr);
        Self { lookup: Some(set.lookup), backends: backends.collect() }
    }

    fn slots_of(&self, backend: &BackendAddr) -> Slots {
        let own = (0u32..).zip(&self.backends).filter(|(_, other)| *other == backend).map(|(slot, _)| slot);
        Slots { own: own.collect(), total: self.backends.len() as u32 }
    }
}

impl WhyNot {
    /// The answer in one sentence without a full stop.
    pub(super) fn says(&self) -> String {
        match self {
            Self::NoFrontend => "the packet is for no frontend, so no backend gets it".into(),
            Self::KeptOut { source } => {
                format!("the source ranges of the service keep {source} out, so no backend gets the packet")
            }
            Self::NotABackend => "it is no backend of the service".into(),
            Self::Rejected { reason, .. } => format!("it takes no new flows: {reason}"),
            Self::Chosen { because: Because::Established, .. } => "it is the choice: the flow belongs to it".into(),
            Self::Chosen { because: Because::Affinity, .. } => "it is the choice: the client used it before".into(),
            Self::Chosen { because: Because::Hash { slot }, slots, .. } => {
                format!("it is the choice: the hash leads to slot {slot} of {}, which belongs to it", slots.total)
            }
            Self::Chosen { because: Because::Only, .. } => "it is the choice: there is no other".into(),
            Self::Possible { slots, .. } => {
                format!("it may be the choice: {} of {} slots belong to it", slots.own.len(), slots.total)
            }
            Self::Others { drawn, slots, .. } => {
                let drawn: Vec<_> = drawn.iter().map(ToString::to_string).collect();
                let (own, drawn) = (slots.own.len(), drawn.join(" and "));
                format!(
                    "it takes new flows, but the hash leads to {drawn}; {own} of {} slots belong to it",
                    slots.total
                )
            }
            Self::Other { chosen, because, slots, .. } => {
                let why = match because {
                    Because::Established => format!("the flow belongs to {chosen}"),
                    Because::Affinity => format!("the client used {chosen} before"),
                    Because::Hash { slot } => format!("the hash leads to slot {slot} of {}: {chosen}", slots.total),
                    Because::Only => format!("{chosen} is the only one that takes new flows"),
                };
                let own = slots.own.len();
                format!("it takes new flows, but {why}; {own} of {} slots belong to it", slots.total)
            }
        }
    }

    /// The backend, if there is one.
    #[must_use]
    pub const fn backend(&self) -> Option<BackendAddr> {
        match self {
            Self::NoFrontend | Self::KeptOut { .. } | Self::NotABackend => None,
            Self::Rejected { backend, .. }
            | Self::Chosen { backend, .. }
            | Self::Possible { backend, .. }
            | Self::Others { backend, .. }
            | Self::Other { backend, .. } => Some(*backend),
        }
    }

    /// Its slots, if it has any.
    #[must_use]
    pub const fn slots(&self) -> Option<&Slots> {
        match self {
            Self::Chosen { slots, .. }
            | Self::Possible { slots, .. }
            | Self::Others { slots, .. }
            | Self::Other { slots, .. } => Some(slots),
            Self::NoFrontend | Self::KeptOut { .. } | Self::NotABackend | Self::Rejected { .. } => None,
        }
    }

    /// `chosen`, `possible`, `other`, `rejected`, `kept-out`, `not-a-backend` or `no-frontend`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NoFrontend => "no-frontend",
            Self::KeptOut { .. } => "kept-out",
            Self::NotABackend => "not-a-backend",
            Self::Rejected { .. } => "rejected",
            Self::Chosen { .. } => "chosen",
            Self::Possible { .. } => "possible",
            Self::Others { .. } | Self::Other { .. } => "other",
        }
    }
}

impl core::fmt::Display for BackendQuery {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.port {
            Some(port) => f.write_str(&core::net::SocketAddr::new(self.ip, port).to_string()),
            None => self.ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, vec};

    use super::*;
    use crate::{
        addr::Protocol,
        affinity::{Affinity, AffinityRecord},
        datapath::Capabilities,
        decision::{Entry, decide},
        endpoint::{Endpoint, EndpointSlice, SlicePort},
        model::{Change, Model, Settings},
        name::{ServiceName, SliceName},
        node::NodeFacts,
        reconciler::Reconciler,
        service::{Algorithm, Service, ServicePort},
    };

    /// Three backends, the last of weight 0, behind 10.96.0.1:80.
    struct World {
        reconciler: Reconciler,
        packet: Packet,
        flow: FlowView,
    }

    impl World {
        fn new(algorithm: Algorithm, affinity: Option<Affinity>) -> Self {
            let mut reconciler = Reconciler::new(Model::new(Settings::default(), Capabilities::all("memory")));
            let name = ServiceName::new("default", "web");
            let endpoint =
                |n: u8| Endpoint { weight: if n == 3 { 0 } else { 100 }, ..Endpoint::new([10, 0, 0, n].into()) };
            let changes = [
                Change::SetNode(NodeFacts::default()),
                Change::UpsertService(Service {
                    cluster_ips: vec![[10, 96, 0, 1].into()],
                    algorithm: Some(algorithm),
                    affinity,
                    ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
                    ..Service::new(name.clone())
                }),
                Change::ReplaceEndpoints(EndpointSlice {
                    name: SliceName::new("default", "web-1"),
                    service: name,
                    ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
                    endpoints: (1..=3).map(endpoint).collect(),
                }),
            ];
            changes.into_iter().for_each(|change| reconciler.handle_change(change).unwrap());
            reconciler.handle_observed(State::default());
            let plan = reconciler.poll_plan(Instant::default()).unwrap().unwrap();
            reconciler.handle_applied(plan.id, Ok(()), Instant::default());
            let packet = Packet {
                entry: Entry::PodDevice,
                protocol: Protocol::Tcp,
                source: [10, 244, 0, 9].into(),
                source_port: 4000,
                destination: [10, 96, 0, 1].into(),
                destination_port: 80,
            };
            Self { reconciler, packet, flow: FlowView::default() }
        }

        fn decision(&self) -> Decision {
            decide(self.reconciler.model(), &self.packet, &self.flow, Instant::default())
        }

        fn ask(&self, n: u8, port: Option<u16>) -> WhyNot {
            let query = BackendQuery { ip: [10, 0, 0, n].into(), port };
            let state = self.reconciler.desired();
            why_not(state, &self.packet, &self.flow, &self.decision(), query, Instant::default())
        }
    }

    fn backend(n: u8) -> BackendAddr {
        BackendAddr::new([10, 0, 0, n].into(), 8080, Protocol::Tcp)
    }

    #[test]
    fn a_backend_is_known_by_address_with_or_without_port() {
        let world = World::new(Algorithm::Random, None);
        let possible = |n| {
            let slots = Slots { own: vec![n as u32 - 1], total: 2 };
            WhyNot::Possible { backend: backend(n), slots }
        };
        assert_eq!((world.ask(1, None), world.ask(2, Some(8080))), (possible(1), possible(2)));
        assert_eq!(world.ask(1, Some(80)), WhyNot::NotABackend);
        assert_eq!(world.ask(9, None), WhyNot::NotABackend);
    }

    #[test]
    fn one_that_is_rejected_says_why() {
        let world = World::new(Algorithm::Random, None);
        assert_eq!(world.ask(3, None), WhyNot::Rejected { backend: backend(3), reason: Reason::WeightZero });
        assert_eq!(world.ask(3, None).to_string(), "it takes no new flows: weight is 0");
    }

    #[test]
    fn a_hash_leads_to_a_slot_of_the_one_that_is_chosen() {
        let world = World::new(Algorithm::Maglev, None);
        let (one, two) = (world.ask(1, None), world.ask(2, None));
        let (chosen, other) = if one.as_str() == "chosen" { (one, two) } else { (two, one) };
        let WhyNot::Chosen { because: Because::Hash { slot }, slots, .. } = &chosen else { panic!("{chosen:?}") };
        assert!(slots.own.contains(slot) && slots.own.len() < slots.total as usize);
        let WhyNot::Other { because, slots: others, .. } = &other else { panic!("{other:?}") };
        assert_eq!(*because, Because::Hash { slot: *slot });
        assert_eq!(others.own.len() + slots.own.len(), slots.total as usize);
        assert!(!others.own.contains(slot));
    }

    #[test]
    fn two_slots_of_the_hash_are_drawn_from_by_least_connections() {
        let mut world = World::new(Algorithm::LeastConnections, None);
        let mut seen = BTreeSet::new();
        for source_port in 40_000..40_064 {
            world.packet.source_port = source_port;
            for n in [1, 2] {
                let answer = world.ask(n, None);
                if let WhyNot::Chosen { because: Because::Hash { slot }, slots, .. } = &answer {
                    assert!(slots.own.contains(slot));
                }
                seen.insert(answer.as_str());
            }
        }
        assert_eq!(seen, ["chosen", "other", "possible"].into());
    }

    #[test]
    fn what_the_datapath_remembers_is_a_reason() {
        let affinity = Affinity::default();
        let mut world = World::new(Algorithm::Maglev, Some(affinity));
        for n in [1, 2] {
            world.flow = FlowView {
                affinity: Some(AffinityRecord { backend: backend(n), last_use: Instant::default() }),
                ..FlowView::default()
            };
            let because = |why_not: WhyNot| match why_not {
                WhyNot::Chosen { because, .. } | WhyNot::Other { because, .. } => because,
                other => panic!("{other:?}"),
            };
            assert_eq!(world.ask(n, None).as_str(), "chosen");
            assert_eq!([1, 2].map(|n| because(world.ask(n, None))), [Because::Affinity; 2]);
            world.flow.established = Some(backend(3 - n));
            assert_eq!((world.ask(3 - n, None).as_str(), world.ask(n, None).as_str()), ("chosen", "other"));
            assert_eq!([1, 2].map(|n| because(world.ask(n, None))), [Because::Established; 2]);
        }
    }

    #[test]
    fn without_a_frontend_there_is_no_backend() {
        let mut world = World::new(Algorithm::Random, None);
        world.packet.destination_port = 81;
        assert_eq!(world.ask(1, None), WhyNot::NoFrontend);
    }
}
