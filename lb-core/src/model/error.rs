//! Why a change is refused, and how a served service falls short.

use core::{fmt, net::IpAddr};

use crate::{
    addr::{Family, FrontendAddr, FrontendKind, Protocol},
    name::{ServiceName, SliceName, SourceName},
    service::{Algorithm, DrainPolicy},
};

/// Why a change was refused. What the model serves is as it was before.
///
/// The model keeps a service that it refused, and [serves it later](crate::model::Model::poll_claim) if that becomes
/// possible: a claim [on an address of another service](Self::FrontendTaken) waits for that service to give the address
/// up. [`Change::RemoveService`](crate::model::Change::RemoveService) takes the claim back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Another service owns the address.
    #[error(
        "service {claimant} claims frontend {frontend}, which belongs to service {owner}; give one of them another address or port; until then, the claim waits for service {owner} to give the frontend up"
    )]
    FrontendTaken {
        /// The address.
        frontend: FrontendAddr,
        /// Its owner.
        owner: ServiceName,
        /// The service that claims it too.
        claimant: ServiceName,
    },
    /// Nobody began the listing of which a change says the end.
    #[error(
        "`Change::InitDone` names source `{source_name}`, whose listing `Change::InitStart` never began; the sources are {known}"
    )]
    UnknownSource {
        /// The name.
        source_name: SourceName,
        /// The names of those that list, with commas.
        known: alloc::string::String,
    },
    /// A service lists one address and port twice.
    #[error("service {service} lists frontend {frontend} twice")]
    FrontendTwice {
        /// The service.
        service: ServiceName,
        /// The address.
        frontend: FrontendAddr,
    },
    /// A field is out of range.
    #[error("service {service}: {field} is {value}, expected {expected}")]
    OutOfRange {
        /// The service.
        service: ServiceName,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The range that is allowed.
        expected: &'static str,
    },
    /// An address cannot be one of a frontend or backend.
    #[error("{object}: {field} {ip} cannot be used: it is unspecified, loopback, multicast or link-local")]
    BadAddress {
        /// Service or slice.
        object: alloc::string::String,
        /// The field.
        field: &'static str,
        /// The address.
        ip: IpAddr,
    },
    /// A slice's port is 0.
    #[error("endpoint slice {slice}: port `{port}` is 0, expected 1..=65535")]
    SlicePortZero {
        /// The slice.
        slice: SliceName,
        /// Name of the port.
        port: alloc::string::String,
    },
}

/// What became of a service without a change of its own: another service took an address, or gave one up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The service was refused, and is served now.
    Served,
    /// The service was served as it asks, and is refused now; it keeps the addresses that nobody took.
    Refused(ModelError),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served => f.write_str("was refused and is served now"),
            Self::Refused(error) => write!(f, "is refused from now on: {error}"),
        }
    }
}

/// How a served service falls short of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Degraded {
    /// The datapath cannot run the algorithm.
    #[error("algorithm {asked} is not supported by this datapath, {used} is used")]
    Algorithm {
        /// The algorithm that the service asks for.
        asked: Algorithm,
        /// The algorithm that it gets.
        used: Algorithm,
    },
    /// The datapath does not carry frontends of this kind.
    #[error("{0} frontends are not supported by this datapath")]
    Frontends(FrontendKind),
    /// The datapath does not forward this protocol.
    #[error("protocol {0} is not supported by this datapath")]
    Protocol(Protocol),
    /// The datapath does not forward this family.
    #[error("{0:?} is not supported by this datapath")]
    Family(Family),
    /// The datapath cannot keep external traffic on local backends.
    #[error("external traffic policy Local is not supported by this datapath, Cluster is used")]
    ExternalTrafficPolicyLocal,
    /// The datapath has no affinity.
    #[error("session affinity is not supported by this datapath")]
    Affinity,
    /// The datapath cannot take a prefix as a client.
    #[error("affinity by prefix is not supported by this datapath, the whole address is used")]
    AffinityPrefix,
    /// The datapath cannot hold so long a time-out.
    #[error("affinity time-out is cut to {0} s")]
    AffinityTimeout(u64),
    /// The datapath cannot check sources.
    #[error("source ranges are not supported by this datapath, every source is let in")]
    SourceRanges,
    /// The datapath does not see packets of the node to itself.
    #[error(
        "processes of the node do not reach {protocol} frontends at addresses of the node itself: this datapath sees \
         packets where they leave the node; {}",
        instead_of_own_address(*protocol, *has_cluster_ip)
    )]
    OwnAddress {
        /// The protocol of these frontends.
        protocol: Protocol,
        /// Whether the service has a cluster address.
        has_cluster_ip: bool,
    },
    /// The datapath cannot rewrite SCTP ports.
    #[error(
        "SCTP frontend {0} is not carried: this datapath cannot rewrite the port of SCTP; give the backends the same port"
    )]
    SctpPort(FrontendAddr),
    /// An external address would take traffic that is meant for others.
    #[error("external address {ip} is not served: {refusal}")]
    ExternalIp {
        /// The address.
        ip: IpAddr,
        /// Why not.
        refusal: ExternalIpRefusal,
    },
    /// The datapath cannot cut established flows.
    #[error(
        "drain policy {0} is not supported by this datapath as it is set up, established flows keep their backend; eBPF \
         ends them with the setting `destroy-sockets: all`"
    )]
    Drain(DrainPolicy),
}

/// What processes of the node can use. No datapath has a hook for SCTP sockets.
const fn instead_of_own_address(protocol: Protocol, has_cluster_ip: bool) -> &'static str {
    match (protocol, has_cluster_ip) {
        (Protocol::Sctp, true) => "use the cluster address there",
        (Protocol::Sctp, false) => "use the address of a backend there",
        (_, true) => "use the cluster address there, or let sockets of the node be translated",
        (_, false) => "let sockets of the node be translated, or use the address of a backend there",
    }
}

/// Why an external address of a service has no frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ExternalIpRefusal {
    /// It is one of the node's own addresses, on whichever device, and the
    /// [settings](crate::model::Settings::external_ips_of_node) do not allow that.
    #[error(
        "it is an address of this node, whose own traffic the service would take (CVE-2020-8554); use a node port, or allow such addresses with the setting `external-ips-of-node`"
    )]
    OfNode,
    /// It is in a network of pods.
    #[error(
        "it is an address of pods, whose traffic the service would take (CVE-2020-8554); use an address outside of the cluster CIDRs"
    )]
    OfPods,
}
