//! Pools of addresses: `CiliumLoadBalancerIPPool`, `IPAddressPool`, and our `IPPool`.

use super::{
    METADATA,
    Rule::{self, Known, List, Object},
};

/// cilium.io/v2alpha1 and v2.
pub(crate) const CILIUM_POOL: Rule = Object(&[
    ("apiVersion", Known),
    ("kind", Known),
    ("metadata", METADATA),
    ("spec", CILIUM_SPEC),
    // Written by whoever allocates.
    ("status", Known),
]);

const CILIUM_SPEC: Rule = Object(&[
    ("allowFirstLastIPs", Known),
    ("blocks", List(&CILIUM_BLOCK)),
    // The older name of blocks.
    ("cidrs", List(&CILIUM_BLOCK)),
    ("disabled", Known),
    ("serviceSelector", SELECTOR),
]);

const CILIUM_BLOCK: Rule = Object(&[("cidr", Known), ("start", Known), ("stop", Known)]);

/// metallb.io/v1beta1.
pub(crate) const ADDRESS_POOL: Rule = Object(&[
    ("apiVersion", Known),
    ("kind", Known),
    ("metadata", METADATA),
    ("spec", ADDRESS_SPEC),
    ("status", Known),
]);

const ADDRESS_SPEC: Rule = Object(&[
    ("addresses", Known),
    ("autoAssign", Known),
    ("avoidBuggyIPs", Known),
    ("serviceAllocation", SERVICE_ALLOCATION),
]);

const SERVICE_ALLOCATION: Rule = Object(&[
    ("namespaceSelectors", List(&SELECTOR)),
    ("namespaces", Known),
    ("priority", Known),
    ("serviceSelectors", List(&SELECTOR)),
]);

/// lb/v1.
pub(crate) const POOL: Rule =
    Object(&[("apiVersion", Known), ("kind", Known), ("metadata", METADATA), ("spec", SPEC), ("status", Known)]);

const SPEC: Rule = Object(&[
    ("allowFirstLastIPs", Known),
    ("autoAssign", Known),
    ("avoid", Known),
    ("avoidZeroAnd255", Known),
    ("blocks", Known),
    ("disabled", Known),
    ("drainSeconds", Known),
    ("namespaceQuota", Known),
    ("priority", Known),
    ("quarantineSeconds", Known),
    ("serviceSelector", SELECTOR),
    ("serviceSelectors", List(&SELECTOR)),
]);

const SELECTOR: Rule = Object(&[("matchExpressions", List(&EXPRESSION)), ("matchLabels", Known)]);

const EXPRESSION: Rule = Object(&[("key", Known), ("operator", Known), ("values", Known)]);
