//! Services as their sources describe them, and the choices that a service makes.

use alloc::{sync::Arc, vec::Vec};
use core::{fmt, net::IpAddr, time::Duration};

use crate::{
    addr::{Family, Protocol},
    affinity::Affinity,
    name::{ServiceName, SourceName},
    sources::SourceRanges,
    table::TableSize,
    time::Instant,
    topology::TrafficDistribution,
};

/// A service as its source describes it.
///
/// One service has many [frontends](crate::addr::FrontendAddr): every address with every port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Identity.
    pub name: ServiceName,
    /// What it is to its owner. Default: reached by a cluster address.
    pub kind: ServiceType,
    /// Cluster addresses: none for a headless or `ExternalName` service, one per family otherwise.
    pub cluster_ips: Vec<IpAddr>,
    /// External addresses that somebody routes to this node.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer's ingress, those with `ipMode: VIP` only.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Ports. The name joins a port with the endpoints' ports.
    pub ports: Vec<ServicePort>,
    /// The family of the node addresses that have its node ports and host ports, if only those of one have. Default:
    /// every address.
    pub node_port_family: Option<Family>,
    /// Node addresses at which its ports are host ports, if they are. Such a service has one pod, and a node serves only
    /// the pods that it runs itself. Default: none.
    pub host_ips: Option<HostIps>,
    /// Who may use its frontends. Default: everybody.
    ///
    /// They guard every [external](crate::addr::FrontendKind::is_external) frontend against all traffic but that of the
    /// node's own processes. Cluster addresses are guarded against traffic from outside only: pods and nodes of the
    /// cluster are let in.
    pub source_ranges: Option<Arc<SourceRanges>>,
    /// Sticks a client to its backend. Default: no affinity.
    pub affinity: Option<Affinity>,
    /// Whether a client of [`affinity`](Self::affinity) is its source address everywhere, so that its connections have one
    /// backend whoever balances them. A datapath that translates sockets where they connect, when they have no source yet,
    /// leaves them alone then, and translates their packets. A process of the node reaches the frontend only where its
    /// packets pass the datapath; its sockets to addresses of the node itself are not left alone. No effect without
    /// affinity. Default: no.
    pub affinity_by_source: bool,
    /// How a backend is chosen. Default: the model's default algorithm.
    pub algorithm: Option<Algorithm>,
    /// Size of the Maglev table. Default: by the number of backends.
    pub table_size: Option<TableSize>,
    /// Which backends traffic from outside may use. Default: all.
    pub external_traffic_policy: TrafficPolicy,
    /// Which backends traffic to a cluster address may use. Default: all.
    pub internal_traffic_policy: TrafficPolicy,
    /// TCP port, 1..=65535, on which each node says whether it has [endpoints that are
    /// ready](crate::model::Model::ready_local_endpoints). Somebody else answers there; no packet depends on it. It
    /// counts under the conditions of [`health_check`](Self::health_check). Default: none.
    pub health_check_node_port: Option<u16>,
    /// Which backends are preferred where all of the cluster may be used. Default: those that their
    /// [hints](crate::topology::Hints) name.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// The fate of established flows whose backend takes no new ones. Default: they stay.
    pub drain: DrainPolicy,
    /// Per cent of backends that must not be unhealthy, or health is not looked at; see
    /// [`Settings::panic_threshold`](crate::model::Settings::panic_threshold), which is the default.
    pub panic_threshold: Option<u8>,
    /// The source of the service. It decides between services that claim one address, see
    /// [`Settings::priorities`](crate::model::Settings::priorities). Default: nobody in particular, of priority 0.
    pub source: Option<SourceName>,
}

impl Service {
    /// A service without addresses and ports, everything else at its default.
    #[must_use]
    pub fn new(name: ServiceName) -> Self {
        Self {
            name,
            kind: ServiceType::ClusterIp,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            ports: Vec::new(),
            node_port_family: None,
            host_ips: None,
            source_ranges: None,
            affinity: None,
            affinity_by_source: false,
            algorithm: None,
            table_size: None,
            external_traffic_policy: TrafficPolicy::Cluster,
            internal_traffic_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            traffic_distribution: None,
            drain: DrainPolicy::Keep,
            panic_threshold: None,
            source: None,
        }
    }

    /// The [port of its health check](Self::health_check_node_port), if there has to be one: a load balancer asks
    /// which nodes have endpoints only where traffic from outside stays on the node that it reaches.
    #[must_use]
    pub fn health_check(&self) -> Option<u16> {
        let is_asked = self.kind == ServiceType::LoadBalancer && self.external_traffic_policy == TrafficPolicy::Local;
        self.health_check_node_port.filter(|_| is_asked)
    }
}

/// What a service is to its owner. It explains why addresses are there or missing; no packet depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceType {
    /// Reached by a cluster address.
    #[default]
    ClusterIp,
    /// Asks for no cluster address: clients look up its endpoints themselves.
    Headless,
    /// Reached by a port of every node as well.
    NodePort,
    /// Reached by an address of a load balancer as well.
    LoadBalancer,
    /// The name of something elsewhere.
    ExternalName,
    /// The host ports of one pod.
    HostPort,
}

/// The node addresses that have host ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostIps {
    /// Each address of the node.
    Every,
    /// This one, on the node that has it.
    One(IpAddr),
}

impl HostIps {
    /// Whether `ip`, an address of the node, has the host ports.
    #[must_use]
    pub fn contain(self, ip: IpAddr) -> bool {
        match self {
            Self::Every => true,
            Self::One(only) => only == ip,
        }
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name that joins it with the ports of endpoint slices; empty if the service has one port.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port of the frontends, 1..=65535.
    pub port: u16,
    /// Port on every node's own addresses, if any, of the family that the [service](Service::node_port_family) says.
    pub node_port: Option<u16>,
}

/// Which backends may take traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// All of the cluster.
    #[default]
    Cluster,
    /// Those on this node only.
    Local,
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// Independent draws, in proportion to weight.
    #[default]
    Random,
    /// In turn, in proportion to weight.
    RoundRobin,
    /// Consistent hashing of the flow: Eisenbud et al., *Maglev*, NSDI 2016.
    Maglev,
    /// Of two backends drawn in proportion to weight, the one with fewer flows through this node: Mitzenmacher, *The
    /// Power of Two Choices in Randomized Load Balancing*, IEEE TPDS 12(10), 2001.
    LeastConnections,
}

impl Algorithm {
    /// Lower-case name, as manifests and the command line write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::Maglev => "maglev",
            Self::LeastConnections => "least-connections",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The fate of established TCP and SCTP flows whose backend is gone, terminating, unhealthy, or taken out by an
/// operator.
///
/// A backend that is well, but not for this node (by traffic policy or topology), keeps its flows whatever the policy.
/// UDP has no connections to cut: whatever the policy, a flow stays with its backend
/// [as long as that serves](crate::selection::select), and then moves to another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DrainPolicy {
    /// They stay with their backend for as long as they live.
    #[default]
    Keep,
    /// They stay for so long after the backend took its last new flow, then they are cut. At least a second.
    For(Duration),
    /// They are cut at once: the client is refused when it next sends.
    Cut,
}

impl DrainPolicy {
    /// Whether a flow may stay at `now` with a backend that takes no new flows since `since`; not known counts as
    /// `now`.
    #[must_use]
    pub fn keeps(self, since: Option<Instant>, now: Instant) -> bool {
        match self {
            Self::Keep => true,
            Self::For(time) => now.since(since.unwrap_or(now)) < time,
            Self::Cut => false,
        }
    }
}

impl fmt::Display for DrainPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::For(time) => write!(f, "{} s", time.as_secs()),
            Self::Cut => f.write_str("cut"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_is_for_load_balancers_whose_traffic_stays_on_the_node() {
        let service = |kind, external_traffic_policy| Service {
            kind,
            external_traffic_policy,
            health_check_node_port: Some(32_000),
            ..Service::new(ServiceName::new("default", "web"))
        };
        let local = service(ServiceType::LoadBalancer, TrafficPolicy::Local);
        assert_eq!(local.health_check(), Some(32_000));
        assert_eq!(Service { health_check_node_port: None, ..local }.health_check(), None);
        assert_eq!(service(ServiceType::LoadBalancer, TrafficPolicy::Cluster).health_check(), None);
        assert_eq!(service(ServiceType::NodePort, TrafficPolicy::Local).health_check(), None);
    }

    #[test]
    fn the_time_to_drain_is_half_open() {
        let at = |seconds| Instant::new(Duration::from_secs(seconds));
        let policy = DrainPolicy::For(Duration::from_secs(30));
        assert!(policy.keeps(Some(at(100)), at(129)) && !policy.keeps(Some(at(100)), at(130)));
        assert!(policy.keeps(None, at(1000)), "not known since when");
        assert!(DrainPolicy::Keep.keeps(Some(at(0)), at(u64::MAX)) && !DrainPolicy::Cut.keeps(None, at(0)));
    }
}
