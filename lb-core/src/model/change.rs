//! Changes that sources report.

use alloc::{collections::BTreeSet, vec::Vec};
use core::net::IpAddr;

use ipnet::IpNet;

use crate::{
    endpoint::EndpointSlice,
    health::HealthReport,
    name::{ServiceName, SliceName, SourceName, ZoneName},
    node::NodeFacts,
    service::Service,
};

/// One change of the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A service appeared or changed.
    UpsertService(Service),
    /// A service is gone; its endpoints stay until their slices go.
    RemoveService(ServiceName),
    /// A slice appeared or changed: its endpoints replace those it had.
    ReplaceEndpoints(EndpointSlice),
    /// A slice is gone.
    RemoveEndpoints(SliceName),
    /// The node's facts changed.
    SetNode(NodeFacts),
    /// The zone of the node changed. Hints of endpoints are compared with it; a datapath never sees it.
    SetZone(Option<ZoneName>),
    /// The networks changed that a device of the node connects to. An address in one of them may belong to another host,
    /// so packets to its other ports go there. A datapath sees what follows for each frontend.
    SetNetworks(Vec<IpNet>),
    /// The addresses changed that devices of the node have, those included that have no node ports. No external address
    /// of a service may be [one of them](crate::model::ExternalIpRefusal::OfNode). A datapath never sees them.
    SetLocalAddresses(BTreeSet<IpAddr>),
    /// A prober of backends has a new verdict.
    SetHealth(HealthReport),
    /// A verdict of an earlier run. It holds until its source has a new one, or ends its first listing without one.
    RestoreHealth(HealthReport),
    /// A source of verdicts is gone, and all of its verdicts with it.
    ForgetHealth(SourceName),
    /// A source begins its first listing; until its `InitDone` nothing is pruned.
    InitStart(SourceName),
    /// A source has listed everything once.
    InitDone(SourceName),
    /// Whether frontends that an earlier process installed, and that no service claims, stay as they are. It is `true`
    /// while sources have objects that they could never read, and comes before the last `InitDone`; `false` removes
    /// these frontends.
    KeepUnclaimed(bool),
}
