//! Limits of snapshots. They are generous for real clusters, and small enough that hostile input costs bounded time and
//! memory: what exceeds a limit is an error that names the file and the limit, and the last good state stays.

/// Bytes of one file. 10,000 services with four endpoints each are about 7 MiB.
///
/// Reading this much YAML takes less than a second, so that no single file keeps others waiting for long.
pub const MAX_FILE_BYTES: u64 = 8 << 20;
/// Bytes of all files of a snapshot together. Checked before any of them is read.
pub const MAX_TOTAL_BYTES: u64 = 128 << 20;
/// Files of a snapshot, and entries of one directory, those included that are not manifests.
pub const MAX_FILES: usize = 100_000;
/// Documents of one file that have content. Kubernetes' own tools write one object into each.
pub const MAX_DOCUMENTS: usize = 100_000;
/// Objects of a snapshot, items of lists counted one by one.
pub const MAX_OBJECTS: usize = 250_000;
/// Pools of a snapshot, of every kind.
pub const MAX_POOLS: usize = 10_000;
/// Comparisons of namespaces with what pools select them by: the selectors of all pools, with their labels, expressions
/// and values counted one by one, times the `Namespace` objects.
pub const MAX_NAMESPACE_COMPARISONS: usize = 1_000_000;
/// Mappings, sequences and scalars of one document, those that aliases repeat included. A list of 10,000 services and
/// their slices has about 700,000; each costs 50 to 350 bytes while its document is read.
pub const MAX_NODES: usize = 800_000;
/// Mappings and sequences inside one another. No object of Kubernetes that is used here needs more than 12.
pub const MAX_DEPTH: usize = 64;
/// Nodes that the aliases of one document may repeat.
pub const MAX_ALIAS_NODES: usize = 10_000;
/// Unsupported fields that are reported one by one for one object; the rest is only counted.
pub const MAX_FINDINGS_PER_OBJECT: usize = 16;
/// Findings that are reported one by one for one file; the rest is only counted.
pub const MAX_FINDINGS_PER_FILE: usize = 1000;
/// Findings that are reported one by one for a snapshot; the rest is only counted.
pub const MAX_FINDINGS: usize = 10_000;
/// Entries of directories that are not manifests and are named; the rest is only counted.
pub const MAX_IGNORED_FILES: usize = 100;
/// Bytes of a document in which findings have a line and column.
pub const MAX_LOCATED_BYTES: usize = 4 << 20;
/// Endpoints of one `EndpointSlice`, the limit of Kubernetes.
pub const MAX_ENDPOINTS: usize = 1000;
/// Addresses of one kind of one `Service`.
pub const MAX_ADDRESSES: usize = 1000;
/// Source ranges of one `Service`.
pub const MAX_SOURCE_RANGES: usize = 1000;
/// Ports of one `Service` or `EndpointSlice`, the limit of Kubernetes for slices.
pub const MAX_PORTS: usize = 20_000;
/// Zones, and nodes, that one endpoint is hinted for, the limit of Kubernetes.
pub const MAX_HINTS: usize = 8;
/// Labels, expressions and values of one selector of a pool together, and namespaces that a pool names.
pub const MAX_SELECTOR_TERMS: usize = 1000;
/// Selectors of services of one pool, and of namespaces of one `IPAddressPool`.
pub const MAX_SELECTORS: usize = 100;
/// Seconds for which a pool can let an address rest or drain: 30 days.
pub const MAX_REST_SECONDS: u32 = 30 * 86_400;
/// Namespaces that one `Service` shares its addresses with by name.
pub const MAX_SHARING_NAMESPACES: usize = 1000;
/// Bytes of the message of one condition, the limit of Kubernetes.
pub const MAX_MESSAGE_BYTES: usize = 32 << 10;
/// Replicas of one `Deployment` or `StatefulSet`.
pub const MAX_REPLICAS: i32 = 10_000;
/// Bytes of all annotations of one object together, keys and values, the limit of Kubernetes.
pub const MAX_ANNOTATION_BYTES: usize = 256 << 10;
/// Bytes of a DNS label, RFC 1123: the name of a service, a namespace or a service's port.
pub const MAX_LABEL_LENGTH: usize = 63;
/// Bytes of a DNS name, RFC 1123: every other name.
pub const MAX_NAME_LENGTH: usize = 253;
/// How often a file that changes while it is read is read again.
pub const MAX_OPEN_ATTEMPTS: usize = 4;
/// Characters of a text from outside that a message repeats.
pub(crate) const MAX_SHOWN: usize = 128;
