//! Facts about the node that a model is for.

use alloc::vec::Vec;
use core::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::{addr::Family, name::NodeName};

/// Facts about the node that the model is for.
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

impl fmt::Display for NodeFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_ref().map_or("no name", |name| name.as_str()))?;
        listed(f, ", addresses", &self.ips)?;
        listed(f, ", pods", &self.cluster_cidrs)
    }
}

fn listed(f: &mut fmt::Formatter<'_>, what: &str, all: &[impl fmt::Display]) -> fmt::Result {
    f.write_str(what)?;
    all.iter().try_for_each(|one| write!(f, " {one}"))?;
    if all.is_empty() { f.write_str(" none") } else { Ok(()) }
}
