//! Which zones and nodes endpoints are meant for.

use alloc::vec::Vec;
use core::fmt;

use crate::{
    endpoint::Endpoint,
    name::{NodeName, ZoneName},
    selection::{Reason, Rules},
};

/// Zones and nodes that an endpoint is meant for, as whoever wrote its slice decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Zones.
    pub zones: Vec<ZoneName>,
    /// Nodes.
    pub nodes: Vec<NodeName>,
}

impl Hints {
    /// Whether the endpoint is meant for nobody in particular.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.zones.is_empty() && self.nodes.is_empty()
    }
}

/// Which backends a service prefers. An endpoint without [hints](Hints) is then meant for where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficDistribution {
    /// Backends in the same zone, as Kubernetes' `PreferSameZone` and its older name `PreferClose`.
    PreferSameZone,
    /// Backends on the same node, then those in the same zone, as Kubernetes' `PreferSameNode`.
    PreferSameNode,
}

/// The part of the backends that topology narrows a selection to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Near {
    /// Backends that are meant for this node.
    Node(NodeName),
    /// Backends that are meant for this zone.
    Zone(ZoneName),
}

/// The part of the `endpoints` that flows of a node are kept to.
///
/// Flows are kept to endpoints meant for this node, if every endpoint is meant for some node and at least one for this
/// one. Otherwise they are kept to endpoints meant for its zone, under the same two conditions. Otherwise any endpoint
/// will do. So a single endpoint without a hint switches hints off, and so does a node or zone that no endpoint is
/// meant for.
pub(crate) fn near<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone, rules: &Rules<'_>) -> Option<Near> {
    let places = [rules.node.cloned().map(Near::Node), rules.zone.cloned().map(Near::Zone)];
    places.into_iter().flatten().find(|near| {
        let mut hints = endpoints.clone().map(|endpoint| near.hint(endpoint, rules.distribution));
        hints.clone().all(|hint| hint != Hint::None) && hints.any(|hint| hint == Hint::Here)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hint {
    None,
    Here,
    Elsewhere,
}

impl Near {
    /// Why `endpoint` is not among what flows are kept to.
    pub(crate) fn reason_against(
        &self,
        endpoint: &Endpoint,
        distribution: Option<TrafficDistribution>,
    ) -> Option<Reason> {
        match (self.hint(endpoint, distribution), self) {
            (Hint::Here, _) => None,
            (Hint::None | Hint::Elsewhere, Self::Node(here)) => {
                Some(Reason::OtherNode { hinted: nodes(endpoint, distribution).to_vec(), here: here.clone() })
            }
            (Hint::None | Hint::Elsewhere, Self::Zone(here)) => {
                Some(Reason::OtherZone { hinted: zones(endpoint, distribution).to_vec(), here: here.clone() })
            }
        }
    }

    fn hint(&self, endpoint: &Endpoint, distribution: Option<TrafficDistribution>) -> Hint {
        match self {
            Self::Node(here) => hint(nodes(endpoint, distribution), here),
            Self::Zone(here) => hint(zones(endpoint, distribution), here),
        }
    }
}

fn hint<T: PartialEq>(hinted: &[T], here: &T) -> Hint {
    match hinted {
        [] => Hint::None,
        hinted if hinted.contains(here) => Hint::Here,
        _ => Hint::Elsewhere,
    }
}

fn nodes(endpoint: &Endpoint, distribution: Option<TrafficDistribution>) -> &[NodeName] {
    match distribution {
        Some(TrafficDistribution::PreferSameNode) if endpoint.hints.is_empty() => endpoint.node.as_slice(),
        _ => &endpoint.hints.nodes,
    }
}

fn zones(endpoint: &Endpoint, distribution: Option<TrafficDistribution>) -> &[ZoneName] {
    if distribution.is_some() && endpoint.hints.is_empty() { endpoint.zone.as_slice() } else { &endpoint.hints.zones }
}

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Zone(zone) => write!(f, "zone {zone}"),
        }
    }
}

impl TrafficDistribution {
    /// As manifests write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PreferSameZone => "PreferSameZone",
            Self::PreferSameNode => "PreferSameNode",
        }
    }
}

impl fmt::Display for TrafficDistribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
