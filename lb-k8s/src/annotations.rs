//! Annotations and labels that manifests may carry.

/// Cilium's choice of algorithm for a `Service`: `random` or `maglev`.
pub const CILIUM_ALGORITHM: &str = "service.cilium.io/lb-algorithm";
/// Algorithm of a `Service`: `random`, `round-robin`, `maglev` or `least-connections`. Must not contradict [`CILIUM_ALGORITHM`].
pub const ALGORITHM: &str = "lb/algorithm";
/// Slots of the Maglev table of a `Service`: one of [`lb_core::table::TableSize::PRIMES`].
pub const MAGLEV_TABLE_SIZE: &str = "lb/maglev-table-size";
/// Bits of an IPv4 source that make a client under `sessionAffinity: ClientIP`, 0..=32. Default 32.
pub const AFFINITY_PREFIX_V4: &str = "lb/affinity-prefix-v4";
/// Bits of an IPv6 source that make a client under `sessionAffinity: ClientIP`, 0..=128. Default 128.
pub const AFFINITY_PREFIX_V6: &str = "lb/affinity-prefix-v6";
/// Whether a client under `sessionAffinity: ClientIP` is its source address everywhere, `true`, or the network namespace
/// where sockets are balanced, `false`, which is the default. See [`lb_core::service::Service::affinity_by_source`].
pub const AFFINITY_BY_SOURCE: &str = "lb/affinity-by-source";
/// The fate of established flows of a `Service` whose backend takes no new ones: `keep`, the default; a number of
/// seconds, 1..=86400, after which they are cut; or `cut`. See [`lb_core::service::DrainPolicy`].
pub const DRAIN: &str = "lb/drain";
/// Per cent of the backends of a `Service` that must not be unhealthy, or health is not looked at, 0..=100. See
/// [`lb_core::model::Settings::panic_threshold`], which is the default.
pub const PANIC_THRESHOLD: &str = "lb/panic-threshold";
/// Whether the [source ranges](lb_core::service::Service::source_ranges) of a `Service` are those that are let in,
/// `allow`, which is the default, or those that are kept out, `deny`.
pub const CILIUM_RANGES_POLICY: &str = "service.cilium.io/src-ranges-policy";
/// Kubernetes' older place for the source ranges of a `Service`, separated by commas. It counts if
/// `spec.loadBalancerSourceRanges` is empty.
pub const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Kubernetes' older way to ask for hints of a `Service`. Whoever writes its endpoint slices carries it out.
pub const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// The older name of [`TOPOLOGY_MODE`].
pub const TOPOLOGY_AWARE_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
/// Cilium's weight of every endpoint of an `EndpointSlice`, 0..=65535.
pub const CILIUM_WEIGHT: &str = "service.cilium.io/weight";
/// Weight of every endpoint of an `EndpointSlice`, 0..=65535. Must not contradict [`CILIUM_WEIGHT`].
pub const WEIGHT: &str = "lb/weight";

/// The addresses that a `Service` of type LoadBalancer asks for by name, separated by commas.
///
/// Of several annotations for one purpose the first of these counts: this one, Cilium's, Cilium's older one, MetalLB's,
/// MetalLB's older one. Another one with a different value is reported.
pub const IPS: &str = "lb/ips";
/// Cilium's name for [`IPS`].
pub const CILIUM_IPS: &str = "lbipam.cilium.io/ips";
/// Cilium's older name for [`IPS`].
pub const CILIUM_IPS_OLD: &str = "io.cilium/lb-ipam-ips";
/// MetalLB's name for [`IPS`].
pub const METALLB_IPS: &str = "metallb.io/loadBalancerIPs";
/// MetalLB's older name for [`IPS`].
pub const METALLB_IPS_OLD: &str = "metallb.universe.tf/loadBalancerIPs";
/// Key of a `Service` that shares its addresses with the services that have the same one.
pub const SHARING_KEY: &str = "lb/sharing-key";
/// Cilium's name for [`SHARING_KEY`].
pub const CILIUM_SHARING_KEY: &str = "lbipam.cilium.io/sharing-key";
/// Cilium's older name for [`SHARING_KEY`].
pub const CILIUM_SHARING_KEY_OLD: &str = "io.cilium/lb-ipam-sharing-key";
/// MetalLB's name for [`SHARING_KEY`]; it shares with every namespace, as MetalLB does, unless [`SHARING_NAMESPACES`]
/// says otherwise.
pub const METALLB_SHARING_KEY: &str = "metallb.io/allow-shared-ip";
/// MetalLB's older name for [`METALLB_SHARING_KEY`].
pub const METALLB_SHARING_KEY_OLD: &str = "metallb.universe.tf/allow-shared-ip";
/// Namespaces whose services may share addresses with this one, separated by commas, or `*`. Default: its own.
pub const SHARING_NAMESPACES: &str = "lb/sharing-namespaces";
/// Cilium's name for [`SHARING_NAMESPACES`].
pub const CILIUM_SHARING_NAMESPACES: &str = "lbipam.cilium.io/sharing-cross-namespace";
/// Cilium's older name for [`SHARING_NAMESPACES`].
pub const CILIUM_SHARING_NAMESPACES_OLD: &str = "io.cilium/lb-ipam-sharing-cross-namespace";
/// The only pool that a `Service` takes addresses from.
pub const POOL: &str = "lb/pool";
/// MetalLB's name for [`POOL`].
pub const METALLB_POOL: &str = "metallb.io/address-pool";
/// MetalLB's older name for [`POOL`].
pub const METALLB_POOL_OLD: &str = "metallb.universe.tf/address-pool";
/// The pool that a `Service` takes addresses from as long as that one has some. [`POOL`] counts before it.
pub const PREFERRED_POOL: &str = "lb/preferred-pool";
/// Notes of MetalLB on a `Service`, which repeat its status.
pub(crate) const METALLB_NOTES: [&str; 2] =
    ["metallb.io/ip-allocated-from-pool", "metallb.universe.tf/ip-allocated-from-pool"];

/// Label of a `Service` or `EndpointSlice` that another proxy serves, whatever its value.
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of a `Service` or `EndpointSlice` without frontends, whatever its value.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that every `Namespace` has with its own name as value.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Label of an `EndpointSlice` that names its service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
