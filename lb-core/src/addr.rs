//! Addresses of frontends and backends, and what an address is made of.

use core::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

/// Transport protocol of a frontend or backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of an IP header's number, if a service can have it.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// Lower-case name, as netfilter writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `ip`.
    #[must_use]
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// `IPv4` or `IPv6`.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Which traffic a frontend is for.
///
/// Most frontends are one for both. A service whose external and internal traffic policies differ has, for each
/// external address, one frontend per scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Traffic from anywhere; from outside only, when an `Internal` twin exists.
    External,
    /// Traffic from this node's sockets and pods only.
    Internal,
}

/// Identity of a frontend: what a packet's destination must be, and from where it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddr {
    /// Virtual address.
    pub ip: IpAddr,
    /// Port, 1..=65535.
    pub port: u16,
    /// Transport protocol; TCP 53 and UDP 53 are two frontends.
    pub protocol: Protocol,
    /// Which traffic it takes.
    pub scope: Scope,
}

impl FrontendAddr {
    /// A frontend for traffic from anywhere.
    #[must_use]
    pub const fn new(ip: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self { ip, port, protocol, scope: Scope::External }
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.ip)
    }

    /// Every frontend that `ip` can have.
    pub(crate) const fn all_at(ip: IpAddr) -> RangeInclusive<Self> {
        let first = Self { ip, port: 0, protocol: Protocol::Tcp, scope: Scope::External };
        let last = Self { ip, port: u16::MAX, protocol: Protocol::Sctp, scope: Scope::Internal };
        RangeInclusive::new(first, last)
    }
}

impl fmt::Display for FrontendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.ip, self.port), self.protocol)?;
        if self.scope == Scope::Internal { f.write_str("/internal") } else { Ok(()) }
    }
}

/// Where a frontend's address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// A cluster address of the service.
    ClusterIp,
    /// An ingress address of the load balancer.
    LoadBalancer,
    /// An external address that somebody routes here.
    ExternalIp,
    /// One of the node's own addresses, at the node port.
    NodePort,
    /// One of the node's own addresses, at the host port of a pod that runs there.
    HostPort,
}

impl FrontendKind {
    /// As the command line writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
            Self::NodePort => "NodePort",
            Self::HostPort => "HostPort",
        }
    }

    /// Whether it is for clients outside of the cluster, too. The external traffic policy governs it, except for a host
    /// port, whose backend is always on the node; the internal one governs a cluster address.
    #[must_use]
    pub const fn is_external(self) -> bool {
        !matches!(self, Self::ClusterIp)
    }
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Address of a backend. Two services with the same one share the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendAddr {
    /// Address of the pod or server.
    pub ip: IpAddr,
    /// Port, 1..=65535.
    pub port: u16,
    /// Transport protocol, the same as its frontends'.
    pub protocol: Protocol,
}

impl BackendAddr {
    /// A backend.
    #[must_use]
    pub const fn new(ip: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self { ip, port, protocol }
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.ip)
    }
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.ip, self.port), self.protocol)
    }
}
