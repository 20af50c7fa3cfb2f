//! Kinds for the lab: `Namespace`, `Pod`, `Deployment` and `StatefulSet`.
//!
//! Containers are not run, so nearly everything about them says nothing about traffic.

use super::{
    METADATA,
    Rule::{self, Known, List, Object, Open, Unsupported},
};

pub(crate) const NAMESPACE: Rule =
    Object(&[("apiVersion", Known), ("kind", Known), ("metadata", METADATA), ("spec", Known), ("status", Known)]);

pub(crate) const POD: Rule =
    Object(&[("apiVersion", Known), ("kind", Known), ("metadata", METADATA), ("spec", POD_SPEC), ("status", Known)]);

const POD_SPEC: Rule = Open(&[
    ("affinity", PLACED),
    ("containers", List(&CONTAINER)),
    ("hostNetwork", Unsupported("every pod has a network of its own")),
    ("initContainers", List(&CONTAINER)),
    ("nodeSelector", PLACED),
    ("topologySpreadConstraints", PLACED),
]);

const PLACED: Rule = Unsupported("pods are not placed by it; `nodeName` is honoured");

const CONTAINER: Rule = Open(&[
    ("ports", List(&PORT)),
    ("readinessProbe", Unsupported("probes are not run: a pod is ready unless its status says otherwise")),
]);

const PORT: Rule = Object(&[
    ("containerPort", Known),
    ("hostIP", HOST_PORT),
    ("hostPort", HOST_PORT),
    ("name", Known),
    ("protocol", Known),
]);

const HOST_PORT: Rule = Unsupported("pods that are started from manifests have no host ports");

const TEMPLATE: Rule = Object(&[("metadata", METADATA), ("spec", POD_SPEC)]);

const SELECTOR: Rule = Object(&[
    ("matchExpressions", Unsupported("only `matchLabels` is compared with the template")),
    ("matchLabels", Known),
]);

pub(crate) const DEPLOYMENT: Rule = Object(&[
    ("apiVersion", Known),
    ("kind", Known),
    ("metadata", METADATA),
    ("spec", DEPLOYMENT_SPEC),
    ("status", Known),
]);

const DEPLOYMENT_SPEC: Rule = Object(&[
    ("minReadySeconds", Known),
    ("paused", Known),
    ("progressDeadlineSeconds", Known),
    ("replicas", Known),
    ("revisionHistoryLimit", Known),
    ("selector", SELECTOR),
    ("strategy", Known),
    ("template", TEMPLATE),
]);

pub(crate) const STATEFUL_SET: Rule = Object(&[
    ("apiVersion", Known),
    ("kind", Known),
    ("metadata", METADATA),
    ("spec", STATEFUL_SET_SPEC),
    ("status", Known),
]);

const STATEFUL_SET_SPEC: Rule = Object(&[
    ("minReadySeconds", Known),
    ("ordinals", Object(&[("start", Known)])),
    ("persistentVolumeClaimRetentionPolicy", Known),
    ("podManagementPolicy", Known),
    ("replicas", Known),
    ("revisionHistoryLimit", Known),
    ("selector", SELECTOR),
    ("serviceName", Known),
    ("template", TEMPLATE),
    ("updateStrategy", Known),
    ("volumeClaimTemplates", Known),
]);
