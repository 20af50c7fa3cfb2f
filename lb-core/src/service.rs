//! What the user says about a service.

use alloc::{sync::Arc, vec::Vec};
use core::{fmt, net::IpAddr, time::Duration};

use crate::{DrainPolicy, Protocol, ServiceName, SourceName, TrafficDistribution};

/// A service as its source describes it.
///
/// One service has many [frontends](crate::FrontendAddr): every address with every port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Identity.
    pub name: ServiceName,
    /// Cluster addresses: none for a headless or `ExternalName` service, one per family otherwise.
    pub cluster_ips: Vec<IpAddr>,
    /// External addresses that somebody routes to this node.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer's ingress, those with `ipMode: VIP` only.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Ports. The name joins a port with the endpoints' ports.
    pub ports: Vec<ServicePort>,
    /// Sticks a client to its backend. Default: no affinity.
    pub affinity: Option<Affinity>,
    /// How a backend is chosen. Default: the model's default algorithm.
    pub algorithm: Option<Algorithm>,
    /// Size of the Maglev table. Default: by the number of backends.
    pub table_size: Option<TableSize>,
    /// Which backends traffic from outside may use. Default: all.
    pub external_traffic_policy: TrafficPolicy,
    /// Which backends traffic to a cluster address may use. Default: all.
    pub internal_traffic_policy: TrafficPolicy,
    /// Which backends are preferred where all of the cluster may be used. Default: those that their [hints](crate::Hints)
    /// name.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// What becomes of established flows whose backend takes no new ones. Default: they stay.
    pub drain: DrainPolicy,
    /// Per cent of backends that must not be unhealthy, or health is not looked at; see
    /// [`Settings::panic_threshold`](crate::Settings::panic_threshold), which is the default.
    pub panic_threshold: Option<u8>,
    /// Who says all this; decides between services that claim one address, see
    /// [`Settings::priorities`](crate::Settings::priorities). Default: nobody in particular, of priority 0.
    pub source: Option<SourceName>,
}

impl Service {
    /// A service without addresses and ports, everything else at its default.
    #[must_use]
    pub fn new(name: ServiceName) -> Self {
        Self {
            name,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            ports: Vec::new(),
            affinity: None,
            algorithm: None,
            table_size: None,
            external_traffic_policy: TrafficPolicy::Cluster,
            internal_traffic_policy: TrafficPolicy::Cluster,
            traffic_distribution: None,
            drain: DrainPolicy::Keep,
            panic_threshold: None,
            source: None,
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
    /// Port on every node's own addresses, if any.
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
}

impl Algorithm {
    /// Lower-case name, as manifests and the command line write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::Maglev => "maglev",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Client-IP affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// A record holds while `now < last use + timeout`; every new flow of the client renews it. Whole seconds,
    /// 1..=86400 from Kubernetes, default 10800.
    pub timeout: Duration,
    /// Bits of an IPv4 source that make a client, 0..=32. Default 32.
    pub prefix_v4: u8,
    /// Bits of an IPv6 source that make a client, 0..=128. Default 128.
    pub prefix_v6: u8,
}

impl Affinity {
    /// Kubernetes' default time-out: three hours.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10_800);
}

impl Default for Affinity {
    fn default() -> Self {
        Self { timeout: Self::DEFAULT_TIMEOUT, prefix_v4: 32, prefix_v6: 128 }
    }
}

/// Number of slots of a Maglev table: one of ten primes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize(u32);

/// The number is not a table size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table size {0} is not one of {sizes:?}", sizes = TableSize::PRIMES)]
pub struct BadTableSize(pub u32);

impl TableSize {
    /// The sizes there are.
    pub const PRIMES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131_071];

    /// A table of `slots` slots.
    ///
    /// # Errors
    /// When `slots` is not one of [`TableSize::PRIMES`].
    pub fn new(slots: u32) -> Result<Self, BadTableSize> {
        if Self::PRIMES.contains(&slots) { Ok(Self(slots)) } else { Err(BadTableSize(slots)) }
    }

    /// The smallest size with a hundred slots per backend, the largest if there is none: with a hundred, shares
    /// differ by about one per cent (Maglev paper, section 5.3).
    #[must_use]
    pub fn for_backends(backends: usize) -> Self {
        let wanted = backends.saturating_mul(100);
        let fits = Self::PRIMES.into_iter().find(|&prime| prime as usize >= wanted);
        Self(fits.unwrap_or(131_071))
    }

    /// The largest size of at most `slots` slots, if there is one.
    #[must_use]
    pub fn largest_within(slots: u32) -> Option<Self> {
        Self::PRIMES.into_iter().rev().find(|&prime| prime <= slots).map(Self)
    }

    /// Slots.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_size_follows_the_number_of_backends() {
        for (backends, slots) in [(0, 251), (2, 251), (3, 509), (10, 1021), (163, 16381), (164, 32749), (5000, 131_071)]
        {
            assert_eq!(TableSize::for_backends(backends).get(), slots, "{backends} backends");
        }
    }

    #[test]
    fn other_table_sizes_are_refused() {
        assert_eq!(TableSize::new(250), Err(BadTableSize(250)));
        assert!(TableSize::new(65521).is_ok());
    }
}
