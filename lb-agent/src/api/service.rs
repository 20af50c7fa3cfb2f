//! Services and backends as the agent lists them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Algorithm, BackendState, FrontendKind, FrontendStatus, Protocol, RangePolicy, ServiceKind, TrafficPolicy};

/// One service: an element of `/v1/services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `namespace/name`.
    pub name: String,
    /// Type of the service.
    #[serde(rename = "type", default)]
    pub kind: ServiceKind,
    /// Cluster addresses.
    #[serde(default)]
    pub cluster_ips: Vec<IpAddr>,
    /// Whether the service asks for no cluster address, so that it has no frontends.
    #[serde(default)]
    pub headless: bool,
    /// Addresses outside of the cluster: those of the load balancer, then external ones.
    #[serde(default)]
    pub external_ips: Vec<IpAddr>,
    /// What it got from pools, or why it got nothing; `None` if it gets its addresses elsewhere.
    #[serde(default)]
    pub ipam: Option<Ipam>,
    /// Ports, as `80/TCP` or `80:30080/TCP`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Frontends, in order of address. A headless service has none, and one that never was accepted.
    pub frontends: Vec<Frontend>,
    /// What a load balancer that asks this node is told; `None` unless the service has a health-check node port, type
    /// LoadBalancer and external traffic policy Local.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// Algorithm in use.
    pub algorithm: Algorithm,
    /// Client affinity, if any is in use or asked for.
    pub affinity: Option<Affinity>,
    /// Which endpoints take traffic to its addresses outside of the cluster and to node ports.
    #[serde(default)]
    pub external_traffic_policy: TrafficPolicy,
    /// Which endpoints take traffic to its cluster addresses.
    #[serde(default)]
    pub internal_traffic_policy: TrafficPolicy,
    /// Who may use it from outside; `None` if everybody may.
    #[serde(default)]
    pub source_ranges: Option<SourceRanges>,
    /// What becomes of connections whose backend takes no new ones: `keep`, `cut`, or after how long they are cut, as
    /// `30 s`; empty if the agent does not say.
    #[serde(default)]
    pub drain: String,
    /// Where the service falls short of its specification.
    pub conditions: Vec<Condition>,
}

/// What a service got from pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    /// Whether it got everything that it asked for: the condition `IPAMRequestSatisfied`.
    pub satisfied: bool,
    /// `satisfied`, or the code of the first refusal.
    pub reason: String,
    /// Every refusal, empty if there is none.
    pub message: String,
    /// What it got.
    pub granted: Vec<Granted>,
}

/// An address from a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The address.
    pub address: IpAddr,
    /// The pool, if one is known.
    pub pool: Option<String>,
}

/// What a node tells a load balancer that asks whether it has endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// TCP port on which this node answers by HTTP.
    pub port: u16,
    /// Status of the answer: 200 or 503; `None` if nobody answers, or the datapath does not have the service yet.
    pub status: Option<u16>,
    /// Ready endpoints on this node, as the answer has them.
    pub local_endpoints: Option<usize>,
    /// Whether the datapath follows changes; otherwise the answer is 503, whatever there is.
    pub healthy: Option<bool>,
    /// Why nobody answers, or another service claims the port as well.
    pub problem: Option<String>,
}

/// One frontend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// Virtual address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Where the address comes from.
    pub kind: FrontendKind,
    /// Name of the service's port; empty if it has none.
    pub port_name: String,
    /// Backends behind it.
    pub backends: BackendCount,
    /// How far it has come.
    pub status: FrontendStatus,
    /// Error of the datapath, if it refused.
    pub cause: Option<String>,
}

/// Backends of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendCount {
    /// Those that take new flows.
    pub active: usize,
    /// All.
    pub total: usize,
}

/// Client affinity of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// Seconds that a record lives after its last use.
    pub timeout_s: u64,
    /// Bits of an IPv4 source that make a client.
    pub prefix_v4: u8,
    /// Bits of an IPv6 source that make a client.
    pub prefix_v6: u8,
    /// Whether the source makes the client everywhere, so that sockets are left to their packets.
    #[serde(default)]
    pub by_source: bool,
}

/// Who may use a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRanges {
    /// What the prefixes are.
    pub policy: RangePolicy,
    /// Prefixes of source addresses, none of which contains another one; with `allow` and none of them, nobody may.
    pub prefixes: Vec<IpNet>,
}

/// A remark about an object, for its operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Condition {
    /// `Degraded`: the datapath lacks something that the service asks for. `Refused`: the newest version was refused;
    /// the last good one, if any, is served. `Unsupported`: a field has no effect. Others may come.
    #[serde(rename = "type")]
    pub kind: String,
    /// What and why, in a sentence.
    pub message: String,
}

/// One backend of one port of a service: an element of `/v1/backends`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `namespace/name` of the service.
    pub service: String,
    /// Name of the service's port; empty if it has none.
    pub port_name: String,
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Node that it runs on, if that is known.
    pub node: Option<String>,
    /// Whether it runs on this node; one whose node is unknown counts as if it did.
    pub local: bool,
    /// Share of new flows relative to the others.
    pub weight: u16,
    /// State of the backend.
    pub state: BackendState,
    /// Whether it takes new flows of traffic to a cluster address.
    pub takes_new_flows: bool,
    /// Why it takes no new flows.
    pub reason: Option<String>,
}
