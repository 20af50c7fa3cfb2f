//! Facts about the node that a model is for.

use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::IpNet;

use crate::{Family, NodeName};

/// What the model needs to know about its own node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name, compared with the endpoints' node. `None`: every endpoint counts as local.
    pub name: Option<NodeName>,
    /// Its own addresses, node ports' frontends among them; the first of a family is the one that translated
    /// flows come from.
    pub ips: Vec<IpAddr>,
    /// Prefixes of the pods. A source outside of them gets translated; with none listed, every source does.
    pub cluster_cidrs: Vec<IpNet>,
}

impl NodeFacts {
    /// Whether `ip` is a pod of the cluster.
    #[must_use]
    pub fn is_pod(&self, ip: IpAddr) -> bool {
        self.cluster_cidrs.iter().any(|cidr| cidr.contains(&ip))
    }

    /// The address that translated flows of `family` come from.
    #[must_use]
    pub fn primary_ip(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|&ip| Family::of(ip) == family)
    }
}
