//! Annotations and labels that manifests may carry.

/// Cilium's choice of algorithm for a `Service`: `random` or `maglev`.
pub const CILIUM_ALGORITHM: &str = "service.cilium.io/lb-algorithm";
/// Algorithm of a `Service`: `random`, `round-robin` or `maglev`. Must not contradict [`CILIUM_ALGORITHM`].
pub const ALGORITHM: &str = "lb/algorithm";
/// Slots of the Maglev table of a `Service`: one of [`lb_core::TableSize::PRIMES`].
pub const MAGLEV_TABLE_SIZE: &str = "lb/maglev-table-size";
/// Bits of an IPv4 source that make a client under `sessionAffinity: ClientIP`, 0..=32. Default 32.
pub const AFFINITY_PREFIX_V4: &str = "lb/affinity-prefix-v4";
/// Bits of an IPv6 source that make a client under `sessionAffinity: ClientIP`, 0..=128. Default 128.
pub const AFFINITY_PREFIX_V6: &str = "lb/affinity-prefix-v6";
/// What becomes of established flows of a `Service` whose backend takes no new ones: `keep`, the default; a number of
/// seconds, 1..=86400, after which they are cut; or `cut`. See [`lb_core::DrainPolicy`].
pub const DRAIN: &str = "lb/drain";
/// Per cent of the backends of a `Service` that must not be unhealthy, or health is not looked at, 0..=100. See
/// [`lb_core::Settings::panic_threshold`], which is the default.
pub const PANIC_THRESHOLD: &str = "lb/panic-threshold";
/// Kubernetes' older way to ask for hints of a `Service`. Whoever writes its endpoint slices carries it out.
pub const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// The older name of [`TOPOLOGY_MODE`].
pub const TOPOLOGY_AWARE_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
/// Cilium's weight of every endpoint of an `EndpointSlice`, 0..=65535.
pub const CILIUM_WEIGHT: &str = "service.cilium.io/weight";
/// Weight of every endpoint of an `EndpointSlice`, 0..=65535. Must not contradict [`CILIUM_WEIGHT`].
pub const WEIGHT: &str = "lb/weight";

/// Label of a `Service` or `EndpointSlice` that another proxy serves, whatever its value.
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of a `Service` or `EndpointSlice` without frontends, whatever its value.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label of an `EndpointSlice` that names its service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
