//! `Service`, v1.

use super::Rule::{self, Annotations, Known, List, Object, Open, Unsupported};

/// Annotations that choose how a service balances and which addresses it gets.
const ANNOTATIONS: Rule = Annotations(&[
    crate::annotations::CILIUM_ALGORITHM,
    crate::annotations::ALGORITHM,
    crate::annotations::MAGLEV_TABLE_SIZE,
    crate::annotations::AFFINITY_PREFIX_V4,
    crate::annotations::AFFINITY_PREFIX_V6,
    crate::annotations::AFFINITY_BY_SOURCE,
    crate::annotations::DRAIN,
    crate::annotations::PANIC_THRESHOLD,
    crate::annotations::CILIUM_RANGES_POLICY,
    crate::annotations::SOURCE_RANGES,
    crate::annotations::TOPOLOGY_MODE,
    crate::annotations::TOPOLOGY_AWARE_HINTS,
    crate::annotations::IPS,
    crate::annotations::CILIUM_IPS,
    crate::annotations::CILIUM_IPS_OLD,
    crate::annotations::METALLB_IPS,
    crate::annotations::METALLB_IPS_OLD,
    crate::annotations::SHARING_KEY,
    crate::annotations::CILIUM_SHARING_KEY,
    crate::annotations::CILIUM_SHARING_KEY_OLD,
    crate::annotations::METALLB_SHARING_KEY,
    crate::annotations::METALLB_SHARING_KEY_OLD,
    crate::annotations::SHARING_NAMESPACES,
    crate::annotations::CILIUM_SHARING_NAMESPACES,
    crate::annotations::CILIUM_SHARING_NAMESPACES_OLD,
    crate::annotations::POOL,
    crate::annotations::METALLB_POOL,
    crate::annotations::METALLB_POOL_OLD,
    crate::annotations::PREFERRED_POOL,
    crate::annotations::METALLB_NOTES[0],
    crate::annotations::METALLB_NOTES[1],
]);

pub(crate) const SERVICE: Rule = Object(&[
    ("apiVersion", Known),
    ("kind", Known),
    ("metadata", Open(&[("annotations", ANNOTATIONS)])),
    ("spec", SPEC),
    ("status", STATUS),
]);

const SPEC: Rule = Object(&[
    // About allocation: node ports are those that the manifest names, and no others.
    ("allocateLoadBalancerNodePorts", Known),
    ("clusterIP", Known),
    ("clusterIPs", Known),
    ("externalIPs", Known),
    ("externalName", Unsupported("names are not resolved: such a service has no frontends")),
    ("externalTrafficPolicy", Known),
    ("healthCheckNodePort", Known),
    ("internalTrafficPolicy", Known),
    // Compared with clusterIPs.
    ("ipFamilies", Known),
    ("ipFamilyPolicy", Known),
    // Which controller assigns addresses: kube-proxy carries the addresses of every class, too.
    ("loadBalancerClass", Known),
    // Asks for an address, and is compared with status.loadBalancer.ingress where nobody allocates.
    ("loadBalancerIP", Known),
    ("loadBalancerSourceRanges", Known),
    ("ports", List(&PORT)),
    // Carried out by whoever writes the endpoint slices.
    ("publishNotReadyAddresses", Known),
    ("selector", Known),
    ("sessionAffinity", Known),
    ("sessionAffinityConfig", Object(&[("clientIP", Object(&[("timeoutSeconds", Known)]))])),
    ("trafficDistribution", Known),
    ("type", Known),
]);

const PORT: Rule = Object(&[
    ("appProtocol", Known),
    ("name", Known),
    ("nodePort", Known),
    ("port", Known),
    ("protocol", Known),
    // Carried out by whoever writes the endpoint slices.
    ("targetPort", Known),
]);

const STATUS: Rule = Object(&[("conditions", Known), ("loadBalancer", Object(&[("ingress", List(&INGRESS))]))]);

const INGRESS: Rule = Object(&[
    ("hostname", Unsupported("names are not resolved: only addresses have frontends")),
    ("ip", Known),
    ("ipMode", Known),
    ("ports", Known),
]);
