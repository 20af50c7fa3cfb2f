//! What a snapshot may be made of. Generous for real clusters, small enough that hostile input costs bounded time and
//! memory.

/// Bytes of one file.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Bytes of all files of a snapshot together.
pub const MAX_TOTAL_BYTES: u64 = 256 << 20;
/// Files of a snapshot.
pub const MAX_FILES: usize = 100_000;
/// Objects of a snapshot, items of lists counted one by one.
pub const MAX_OBJECTS: usize = 250_000;
/// Mappings, sequences and scalars of one document, those that aliases repeat included.
pub const MAX_NODES: usize = 4_000_000;
/// Mappings and sequences inside one another.
pub const MAX_DEPTH: usize = 64;
/// Nodes that the aliases of one document may repeat.
pub const MAX_ALIAS_NODES: usize = 10_000;
/// Unsupported fields that are reported one by one for one object; the rest is only counted.
pub const MAX_FINDINGS_PER_OBJECT: usize = 16;
/// Findings that are reported one by one for one file; the rest is only counted.
pub const MAX_FINDINGS_PER_FILE: usize = 1000;
/// Bytes of a document in which findings are given a line and column.
pub const MAX_LOCATED_BYTES: usize = 4 << 20;
/// Endpoints of one `EndpointSlice`, the limit of Kubernetes.
pub const MAX_ENDPOINTS: usize = 1000;
/// Ports of one `Service` or `EndpointSlice`, the limit of Kubernetes for slices.
pub const MAX_PORTS: usize = 20_000;
/// Replicas of one `Deployment` or `StatefulSet`.
pub const MAX_REPLICAS: i32 = 10_000;
/// Characters of a text from outside that a message repeats.
pub(crate) const MAX_SHOWN: usize = 128;
