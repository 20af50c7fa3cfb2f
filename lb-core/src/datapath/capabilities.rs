//! Capabilities of datapaths.

use alloc::vec::Vec;
use core::{ops::RangeInclusive, time::Duration};

use super::Role;
use crate::{
    addr::{Family, FrontendKind, Protocol},
    service::Algorithm,
};

/// The capabilities of a datapath. A service that asks for more keeps serving with less and is marked
/// [degraded](crate::model::Degraded).
///
/// Later versions may add abilities. A datapath that does not mention one lacks it, so start with [`new`](Self::new).
///
/// ```
/// use lb_core::{
///     addr::{Family, Protocol},
///     datapath::Capabilities,
/// };
///
/// let capabilities = Capabilities::new("userspace").with_protocols([Protocol::Tcp]).with_families([Family::V4]);
/// assert_eq!((capabilities.drain, capabilities.protocols), (false, vec![Protocol::Tcp]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Name of the kind: `ebpf`, `nftables`, `iptables-nft`, `iptables-legacy`, `memory`.
    pub kind: &'static str,
    /// Algorithms that it can run. Random is in every one.
    pub algorithms: Vec<Algorithm>,
    /// Protocols that it forwards.
    pub protocols: Vec<Protocol>,
    /// Families that it forwards.
    pub families: Vec<Family>,
    /// Kinds of frontends that it carries.
    pub frontends: Vec<FrontendKind>,
    /// Whether it can keep external traffic on this node's backends, source kept.
    pub external_traffic_policy_local: bool,
    /// Affinity, if it has any.
    pub affinity: Option<AffinityCapability>,
    /// How it translates traffic of the node's own sockets.
    pub sockets: SocketCapability,
    /// The state that a crash in the middle of a plan leaves.
    pub atomic: Atomicity,
    /// Roles that it can take.
    pub roles: Vec<Role>,
    /// Whether it can cut the established flows of a backend that takes no new ones, as a
    /// [drain policy](crate::service::DrainPolicy) may ask.
    pub drain: bool,
    /// Whether it ends flows when it is [asked to](super::Datapath::evict). It is asked about UDP flows whose backend
    /// left, and, with [`drain`](Self::drain), about what a drain policy cuts.
    pub evicts: bool,
    /// Whether packets that come in through a device reach a backend elsewhere only if the kernel
    /// [forwards](crate::kernel::Forwarding).
    pub needs_forwarding: bool,
    /// Whether it checks the sources that services [let in](crate::service::Service::source_ranges).
    pub source_ranges: bool,
    /// Whether it knows packets to addresses of frontends at ports that have none, and does with them what the
    /// [frontends say](crate::state::OtherPorts). Without it, it passes them on, or does with them what its own documentation
    /// says.
    pub other_ports: bool,
    /// Whether it can answer ICMP echo requests to [addresses of frontends](crate::model::Settings::answer_ping).
    pub ping: bool,
    /// Whether it can rewrite the port of an SCTP packet, whose checksum covers all of the packet. Without it, a frontend
    /// of SCTP is carried only if its port is that of its backends, and a translated source keeps its port.
    pub sctp_ports: bool,
    /// Whether it knows the devices that lead out of the node, and so tells pods of other nodes from its own. Without it, it
    /// keeps the source of every pod, and a pod elsewhere that uses a virtual address of this node gets no answer unless
    /// its own node translates its source.
    pub uplinks: bool,
    /// Whether the source of a translated flow is that of the node's addresses which the route to the backend prefers.
    /// Without it, it is the node's [first address](crate::node::NodeFacts::primary_ip) of the family.
    pub routed_sources: bool,
    /// Whether it drops packets to addresses of frontends that come in through a device with a source which nobody outside
    /// can have: an address of the node, that of the frontend itself, a loopback or multicast address or another martian.
    /// Without it, it translates them like any other, and the kernel may drop them later.
    pub drops_forged: bool,
    /// Most slots that one backend set may have.
    pub max_slots: u32,
    /// Ports that a translated source may get, apart from [SCTP](Self::sctp_ports).
    pub translated_ports: RangeInclusive<u16>,
}

impl Capabilities {
    /// A datapath with no ability but random choice: no protocol, no family and no frontend until a setter adds them.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            algorithms: Vec::from([Algorithm::Random]),
            protocols: Vec::new(),
            families: Vec::new(),
            frontends: Vec::new(),
            external_traffic_policy_local: false,
            affinity: None,
            sockets: SocketCapability::Packets,
            atomic: Atomicity::Frontend,
            roles: Vec::from([Role::Active]),
            drain: false,
            evicts: false,
            needs_forwarding: false,
            source_ranges: false,
            other_ports: false,
            ping: false,
            sctp_ports: false,
            routed_sources: false,
            drops_forged: false,
            uplinks: false,
            max_slots: u32::MAX,
            translated_ports: 1..=u16::MAX,
        }
    }

    /// Everything that a model can ask for.
    #[must_use]
    pub fn all(kind: &'static str) -> Self {
        Self {
            kind,
            algorithms: Vec::from([
                Algorithm::Random,
                Algorithm::RoundRobin,
                Algorithm::Maglev,
                Algorithm::LeastConnections,
            ]),
            protocols: Vec::from([Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
            families: Vec::from([Family::V4, Family::V6]),
            frontends: Vec::from([
                FrontendKind::ClusterIp,
                FrontendKind::LoadBalancer,
                FrontendKind::ExternalIp,
                FrontendKind::NodePort,
                FrontendKind::HostPort,
            ]),
            external_traffic_policy_local: true,
            affinity: Some(AffinityCapability { prefixes: true, max_timeout: Duration::MAX }),
            sockets: SocketCapability::Packets,
            atomic: Atomicity::Plan,
            roles: Vec::from([Role::Standby, Role::Active, Role::Draining]),
            drain: true,
            evicts: true,
            needs_forwarding: false,
            source_ranges: true,
            other_ports: true,
            ping: true,
            sctp_ports: true,
            routed_sources: false,
            drops_forged: true,
            uplinks: true,
            max_slots: u32::MAX,
            translated_ports: 1..=u16::MAX,
        }
    }

    /// What it does with [`sockets`](Self::sockets) of this protocol. There is no hook for those of SCTP.
    #[must_use]
    pub fn sockets_of(&self, protocol: Protocol) -> SocketCapability {
        match self.sockets {
            SocketCapability::Connect { .. } if protocol == Protocol::Sctp => SocketCapability::Egress,
            sockets => sockets,
        }
    }

    /// The same with these [`algorithms`](Self::algorithms).
    #[must_use]
    pub fn with_algorithms(mut self, algorithms: impl Into<Vec<Algorithm>>) -> Self {
        self.algorithms = algorithms.into();
        self
    }

    /// The same with these [`protocols`](Self::protocols).
    #[must_use]
    pub fn with_protocols(mut self, protocols: impl Into<Vec<Protocol>>) -> Self {
        self.protocols = protocols.into();
        self
    }

    /// The same with these [`families`](Self::families).
    #[must_use]
    pub fn with_families(mut self, families: impl Into<Vec<Family>>) -> Self {
        self.families = families.into();
        self
    }

    /// The same with these kinds of [`frontends`](Self::frontends).
    #[must_use]
    pub fn with_frontends(mut self, frontends: impl Into<Vec<FrontendKind>>) -> Self {
        self.frontends = frontends.into();
        self
    }

    /// The same with these [`roles`](Self::roles).
    #[must_use]
    pub fn with_roles(mut self, roles: impl Into<Vec<Role>>) -> Self {
        self.roles = roles.into();
        self
    }

    /// The same with or without [`external_traffic_policy_local`](Self::external_traffic_policy_local).
    #[must_use]
    pub const fn with_external_traffic_policy_local(mut self, can: bool) -> Self {
        self.external_traffic_policy_local = can;
        self
    }

    /// The same with this [`affinity`](Self::affinity).
    #[must_use]
    pub const fn with_affinity(mut self, affinity: Option<AffinityCapability>) -> Self {
        self.affinity = affinity;
        self
    }

    /// The same with [`sockets`](Self::sockets) translated this way.
    #[must_use]
    pub const fn with_sockets(mut self, sockets: SocketCapability) -> Self {
        self.sockets = sockets;
        self
    }

    /// The same with this unit of change: see [`atomic`](Self::atomic).
    #[must_use]
    pub const fn with_atomic(mut self, atomic: Atomicity) -> Self {
        self.atomic = atomic;
        self
    }

    /// The same with or without [`drain`](Self::drain).
    #[must_use]
    pub const fn with_drain(mut self, can: bool) -> Self {
        self.drain = can;
        self
    }

    /// The same with or without [`evicts`](Self::evicts).
    #[must_use]
    pub const fn with_evicts(mut self, evicts: bool) -> Self {
        self.evicts = evicts;
        self
    }

    /// The same with or without [`needs_forwarding`](Self::needs_forwarding).
    #[must_use]
    pub const fn with_needs_forwarding(mut self, needs: bool) -> Self {
        self.needs_forwarding = needs;
        self
    }

    /// The same with or without [`source_ranges`](Self::source_ranges).
    #[must_use]
    pub const fn with_source_ranges(mut self, can: bool) -> Self {
        self.source_ranges = can;
        self
    }

    /// The same with or without [`other_ports`](Self::other_ports).
    #[must_use]
    pub const fn with_other_ports(mut self, can: bool) -> Self {
        self.other_ports = can;
        self
    }

    /// The same with or without [`ping`](Self::ping).
    #[must_use]
    pub const fn with_ping(mut self, can: bool) -> Self {
        self.ping = can;
        self
    }

    /// The same with or without [`sctp_ports`](Self::sctp_ports).
    #[must_use]
    pub const fn with_sctp_ports(mut self, can: bool) -> Self {
        self.sctp_ports = can;
        self
    }

    /// The same with or without [`routed_sources`](Self::routed_sources).
    #[must_use]
    pub const fn with_routed_sources(mut self, can: bool) -> Self {
        self.routed_sources = can;
        self
    }

    /// The same with or without [`drops_forged`](Self::drops_forged).
    #[must_use]
    pub const fn with_drops_forged(mut self, can: bool) -> Self {
        self.drops_forged = can;
        self
    }

    /// The same with or without [`uplinks`](Self::uplinks).
    #[must_use]
    pub const fn with_uplinks(mut self, can: bool) -> Self {
        self.uplinks = can;
        self
    }

    /// The same with at most this many [slots](Self::max_slots) in a set.
    #[must_use]
    pub const fn with_max_slots(mut self, max_slots: u32) -> Self {
        self.max_slots = max_slots;
        self
    }

    /// The same with these [`translated_ports`](Self::translated_ports).
    #[must_use]
    pub fn with_translated_ports(mut self, translated_ports: RangeInclusive<u16>) -> Self {
        self.translated_ports = translated_ports;
        self
    }
}

/// The affinity that a datapath supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityCapability {
    /// Whether a client can be a prefix rather than one address.
    pub prefixes: bool,
    /// Longest time-out that it can hold; a longer one is cut.
    pub max_timeout: Duration,
}

/// How a datapath translates traffic of sockets on its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketCapability {
    /// As packets, like everybody else's: the flow hash sees the source port, a translated source applies.
    Packets,
    /// As packets, where they leave the node through a device. A process of the node does not reach frontends at
    /// addresses of the node itself, to which no packet leaves, and a backend on an address of the node takes such a
    /// process for the frontend.
    Egress,
    /// At `connect` and `sendmsg`: there is no source address or port yet. Maglev hashes what `hashes` says, a client
    /// of affinity is a network namespace, and a source is never translated.
    Connect {
        /// The input of the hash of a Maglev choice.
        hashes: SocketHash,
        /// Whose sockets. The others' traffic is translated as packets.
        whose: SocketOwners,
    },
}

/// Whose sockets a datapath translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOwners {
    /// Those of the node and of its pods.
    All,
    /// Those of the node alone.
    Node,
}

/// The input of Maglev's hash at a socket hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketHash {
    /// The socket's cookie: a socket stays with its backend, two sockets of one client are independent.
    SocketCookie,
}

/// What a crash in the middle of a plan leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomicity {
    /// The whole plan or nothing of it.
    Plan,
    /// The whole plan or nothing of it, for each family on its own.
    Family,
    /// Each frontend as before or as after.
    Frontend,
}
