//! Frontends: a service spelled out as the addresses that packets are sent to.

use core::fmt;

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
        }
    }

    /// Whether the external traffic policy governs it; otherwise the internal one does.
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
