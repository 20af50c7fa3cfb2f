//! What a datapath can do.

use alloc::vec::Vec;
use core::{ops::RangeInclusive, time::Duration};

use super::Role;
use crate::{
    addr::{Family, FrontendKind, Protocol},
    service::Algorithm,
};

/// What a datapath can do. A service that asks for more keeps serving with less and is marked
/// [degraded](crate::model::Degraded).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Its name: `ebpf`, `nftables`, `iptables-nft`, `iptables-legacy`, `memory`.
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
    /// What a crash in the middle of a plan leaves.
    pub atomic: Atomicity,
    /// Roles that it can take.
    pub roles: Vec<Role>,
    /// Whether it can cut the established flows of a backend that takes no new ones, as a
    /// [drain policy](crate::service::DrainPolicy) may ask.
    pub drain: bool,
    /// Most slots that one backend set may have.
    pub max_slots: u32,
    /// Ports that a translated source may get.
    pub translated_ports: RangeInclusive<u16>,
}

impl Capabilities {
    /// Everything that a model can ask for.
    #[must_use]
    pub fn all(kind: &'static str) -> Self {
        Self {
            kind,
            algorithms: Vec::from([Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev]),
            protocols: Vec::from([Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
            families: Vec::from([Family::V4, Family::V6]),
            frontends: Vec::from([
                FrontendKind::ClusterIp,
                FrontendKind::LoadBalancer,
                FrontendKind::ExternalIp,
                FrontendKind::NodePort,
            ]),
            external_traffic_policy_local: true,
            affinity: Some(AffinityCapability { prefixes: true, max_timeout: Duration::MAX }),
            sockets: SocketCapability::Packets,
            atomic: Atomicity::Plan,
            roles: Vec::from([Role::Standby, Role::Active, Role::Draining]),
            drain: true,
            max_slots: u32::MAX,
            translated_ports: 1..=u16::MAX,
        }
    }
}

/// What affinity a datapath has.
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
    /// At `connect` and `sendmsg`: there is no source address or port yet. Maglev hashes what `hashes` says, a client
    /// of affinity is a network namespace, and a source is never translated.
    Connect {
        /// What the hash of a Maglev choice covers.
        hashes: SocketHash,
    },
}

/// What Maglev hashes at a socket hook.
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
