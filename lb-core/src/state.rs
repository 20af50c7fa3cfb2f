//! The state of a datapath: the common language of plans, observation and lowering.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};
use core::{fmt, net::IpAddr};

use crate::{
    addr::{BackendAddr, FrontendAddr},
    affinity::Affinity,
    decision::{Entry, Packet},
    flow_hash::{self, FLOW_SEED},
    id::{BackendId, FrontendId, SetId},
    node::NodeFacts,
    plan::Op,
    sources::SourceRanges,
};

/// Everything that a datapath holds, or should hold.
///
/// References point one way: frontends to sets, sets to backends. A state is [whole](State::dangling) when none
/// dangles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Backends by id.
    pub backends: BTreeMap<BackendId, Backend>,
    /// Backend sets by id; content never changes under an id.
    pub sets: BTreeMap<SetId, Arc<BackendSet>>,
    /// Frontends by address.
    pub frontends: BTreeMap<FrontendAddr, Frontend>,
    /// Facts about the node that translate sources.
    pub node: NodeFacts,
}

/// A backend as datapaths hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Where it listens.
    pub addr: BackendAddr,
    /// Whether it runs on this node, so that it can be its own client.
    pub local: bool,
}

/// Backends that take new flows, in slots. A lookup picks a slot; every slot is equally likely.
///
/// Beside them are those that only finish what they have begun.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendSet {
    /// How a slot is picked.
    pub lookup: Lookup,
    /// Backend of each slot, never empty. Weights show as the number of slots: the table is all that a datapath
    /// needs.
    pub slots: Arc<[BackendId]>,
    /// Backends that take no new flows and still serve: a UDP flow that one of them has stays with it. In order of id,
    /// none of them in a slot. Empty for TCP, whose connections stay with their backends in any case.
    pub draining: Arc<[BackendId]>,
}

impl BackendSet {
    /// A set that nobody leaves.
    #[must_use]
    pub fn new(lookup: Lookup, slots: impl Into<Arc<[BackendId]>>) -> Self {
        Self { lookup, slots: slots.into(), draining: Arc::from([]) }
    }

    /// Each backend that may have flows: those in slots, and those that are draining.
    #[must_use]
    pub fn backends(&self) -> BTreeSet<BackendId> {
        self.slots.iter().chain(&*self.draining).copied().collect()
    }

    /// Each backend that takes new flows once, in order of id, with its number of slots.
    #[must_use]
    pub fn members(&self) -> BTreeMap<BackendId, u32> {
        let mut members = BTreeMap::new();
        for &backend in &*self.slots {
            *members.entry(backend).or_insert(0) += 1;
        }
        members
    }
}

/// How a slot of a [`BackendSet`] is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lookup {
    /// At random.
    Random,
    /// In turn.
    RoundRobin,
    /// By the [flow hash](lb_flow_hash), or by the client's alone under affinity.
    Hash,
    /// Of the [two slots](lb_flow_hash::two_slots) of the flow hash, the one whose backend has fewer flows through this node;
    /// the first one if both have as many. Under affinity it is the hash of the client alone.
    LeastConnections,
}

/// A frontend as datapaths hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Key of its affinity records.
    pub id: FrontendId,
    /// Where its new flows go.
    pub target: Target,
    /// Client affinity, if any.
    pub affinity: Option<Affinity>,
    /// Whether sockets are left alone and their packets translated, since they alone
    /// [say who the client is](crate::service::Service::affinity_by_source). Sockets of the node to an address of the node are
    /// not left alone: nobody sees their packets. Default: no; so it is for a datapath that translates no
    /// [sockets](crate::datapath::SocketCapability::Connect).
    pub leaves_sockets: bool,
    /// Whether backends see clients from outside as they are, since all of them are on this node: under external traffic
    /// policy Local. Default: no; so it is for scope internal.
    pub keeps_source: bool,
    /// Whether the source of a pod is translated if its packets come in through an uplink: its backend would answer it past
    /// this node. Default: no; so it is for cluster addresses, for scope internal, for a frontend that keeps sources, and for
    /// a datapath [without uplinks](crate::datapath::Capabilities::uplinks).
    pub translates_pods: bool,
    /// Who may use it. Default: everybody; so it is for a datapath
    /// [without source ranges](crate::datapath::Capabilities::source_ranges).
    pub guard: Option<Guard>,
    /// What it says about other ports of its address. Default: they are passed on; so it is for a datapath
    /// [without a say in them](crate::datapath::Capabilities::other_ports).
    pub other_ports: OtherPorts,
    /// Whether the node answers ICMP echo requests to its address. Default: no; so it is for a datapath that
    /// [cannot](crate::datapath::Capabilities::ping).
    pub answers_ping: bool,
}

impl Frontend {
    /// A frontend without affinity, open to everybody, with no say in anything else about its address.
    #[must_use]
    pub const fn new(id: FrontendId, target: Target) -> Self {
        Self {
            id,
            target,
            affinity: None,
            leaves_sockets: false,
            keeps_source: false,
            translates_pods: false,
            guard: None,
            other_ports: OtherPorts::Pass,
            answers_ping: false,
        }
    }
}

/// Who may use a frontend. The first packet of a flow that the ranges keep out is dropped silently.
///
/// The node's own processes are let in whatever it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The sources that are let in, or kept out.
    pub ranges: Arc<SourceRanges>,
    /// The traffic that is checked.
    pub traffic: GuardedTraffic,
}

/// Its ranges, and the traffic that they are for if that is not all.
impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ranges.fmt(f)?;
        match self.traffic {
            GuardedTraffic::All => Ok(()),
            GuardedTraffic::Outside => f.write_str(", of traffic from outside"),
        }
    }
}

impl Guard {
    /// Whether the first packet of a flow is let in, on a node with these facts.
    #[must_use]
    pub fn admits(&self, packet: &Packet, node: &NodeFacts) -> bool {
        let is_checked = match self.traffic {
            GuardedTraffic::All => !packet.is_of_node(node),
            GuardedTraffic::Outside => packet.entry == Entry::Uplink && !node.is_pod(packet.source),
        };
        !is_checked || self.ranges.admit(packet.source)
    }
}

/// The traffic that a [`Guard`] checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuardedTraffic {
    /// All but that of the node's own processes: pods', and what comes in through an uplink.
    All,
    /// What comes in through an uplink, unless its source is a pod of the cluster.
    Outside,
}

/// The fate of a packet to an address that has frontends, but none at the packet's port and protocol.
///
/// If frontends of one address disagree, the [greatest](Ord) of them counts: see [`State::other_ports`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OtherPorts {
    /// It is dropped silently: the address is a load balancer's alone, and whoever passed the packet on would get it
    /// back.
    Drop,
    /// It is refused at once: the address is one of the cluster, and its clients are inside.
    Reject,
    /// It is passed on: the address is one of a host.
    #[default]
    Pass,
}

impl OtherPorts {
    /// `drop`, `reject` or `pass`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Pass => "pass",
        }
    }
}

/// Where new flows of a frontend go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// To a backend of this set.
    Set(SetId),
    /// Nowhere: refused at once (TCP reset or ICMP port unreachable), since no backend is usable anywhere.
    Reject,
    /// Nowhere: dropped silently, since backends exist but the policy excludes them here.
    Drop,
}

impl State {
    /// The first reference to something that is not there, as text.
    #[must_use]
    pub fn dangling(&self) -> Option<Dangling> {
        let set = self.frontends.iter().find_map(|(&addr, frontend)| match frontend.target {
            Target::Set(set) if !self.sets.contains_key(&set) => Some(Dangling::Set { frontend: addr, set }),
            Target::Set(_) | Target::Reject | Target::Drop => None,
        });
        set.or_else(|| {
            self.sets.iter().find_map(|(&set, content)| {
                let missing = content.backends().into_iter().find(|id| !self.backends.contains_key(id));
                missing.map(|backend| Dangling::Backend { set, backend })
            })
        })
    }
}

/// A reference to something that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Dangling {
    /// A frontend names a set that does not exist.
    #[error("frontend {frontend} points to set {set}, which does not exist")]
    Set {
        /// The frontend.
        frontend: FrontendAddr,
        /// The missing set.
        set: SetId,
    },
    /// A set names a backend that does not exist.
    #[error("set {set} contains backend {backend}, which does not exist")]
    Backend {
        /// The set.
        set: SetId,
        /// The missing backend.
        backend: BackendId,
    },
}

/// The answer of a state to the first packet of a flow.
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
    /// The answer of this state to a new flow to `addr` whose [flow hash](crate::flow_hash) is `hash`, without an
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
            Lookup::LeastConnections => {
                let slots = flow_hash::two_slots(hash, FLOW_SEED, set.slots.len() as u32);
                slots.into_iter().filter_map(|slot| Some((*set.slots.get(slot as usize)?, 1))).collect()
            }
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

    /// Carries out `ops` in order, except for removals of objects that something still refers to. A datapath does the
    /// same when some frontends of a plan are refused.
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

    /// The fate of packets to `ip` at ports and protocols without a frontend, if it has any frontend.
    #[must_use]
    pub fn other_ports(&self, ip: IpAddr) -> Option<OtherPorts> {
        self.frontends_at(ip).map(|frontend| frontend.other_ports).max()
    }

    /// Whether the node answers ICMP echo requests to `ip`.
    #[must_use]
    pub fn answers_ping(&self, ip: IpAddr) -> bool {
        self.frontends_at(ip).any(|frontend| frontend.answers_ping)
    }

    fn frontends_at(&self, ip: IpAddr) -> impl Iterator<Item = &Frontend> {
        self.frontends.range(FrontendAddr::all_at(ip)).map(|(_, frontend)| frontend)
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
        self.sets.values().flat_map(|set| set.slots.iter().chain(&*set.draining).copied()).collect()
    }
}
