//! What sources say.

use crate::{EndpointSlice, NodeFacts, Service, ServiceName, SliceName, SourceName};

/// One change of the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// A source begins its first listing; until its `InitDone` nothing is pruned.
    InitStart(SourceName),
    /// A source has listed everything once.
    InitDone(SourceName),
}
