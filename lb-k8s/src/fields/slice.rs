//! `EndpointSlice`, discovery.k8s.io/v1.

use super::Rule::{self, Annotations, Known, List, Object, Open};

pub(crate) const ENDPOINT_SLICE: Rule = Object(&[
    ("apiVersion", Known),
    ("kind", Known),
    ("metadata", Open(&[("annotations", ANNOTATIONS)])),
    ("addressType", Known),
    ("endpoints", List(&ENDPOINT)),
    ("ports", List(&PORT)),
]);

const ANNOTATIONS: Rule = Annotations(&[crate::annotations::CILIUM_WEIGHT, crate::annotations::WEIGHT]);

const ENDPOINT: Rule = Object(&[
    ("addresses", Known),
    ("conditions", Object(&[("ready", Known), ("serving", Known), ("terminating", Known)])),
    ("deprecatedTopology", Known),
    ("hints", Object(&[("forNodes", List(&HINT)), ("forZones", List(&HINT))])),
    ("hostname", Known),
    ("nodeName", Known),
    ("targetRef", Known),
    ("zone", Known),
]);

const HINT: Rule = Object(&[("name", Known)]);

const PORT: Rule = Object(&[("appProtocol", Known), ("name", Known), ("port", Known), ("protocol", Known)]);
