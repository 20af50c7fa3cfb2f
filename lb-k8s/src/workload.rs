//! Pods and the objects that multiply them, for the lab.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    Resource,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ContainerPort as PortObject, Namespace, Pod as PodObject, PodSpec, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use lb_core::{addr::Protocol, name::NodeName};

use crate::{
    annotations,
    check::{self, At, Invalid},
    fields::{self, Rule},
    host_ports::{self, HostPod},
    kinds::{Identity, Kind, Notes, Reading},
    limits::MAX_REPLICAS,
    snapshot::part::{Body, Key, WorkloadKey},
    text::quoted,
};

/// Pods that an object asks for: one of a `Pod`, some of a `Deployment` or `StatefulSet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Their namespace.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Which of its pods there are.
    pub replicas: Replicas,
    /// The common template.
    pub pod: PodTemplate,
}

/// A workload as it was read.
#[derive(Clone, Debug)]
pub(crate) struct ReadWorkload {
    pub(crate) workload: Workload,
    /// Only of a pod.
    pub(crate) host_ports: Option<Arc<HostPod>>,
}

/// Which pods of a workload there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// One, called like the object.
    Single,
    /// `count` of them, called like the object with a number behind it that starts with `first`.
    Numbered {
        /// The first number.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// The template of the pods of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTemplate {
    /// Labels, which selectors compare.
    pub labels: BTreeMap<String, String>,
    /// Ports that the containers listen on. A pod without one is no server, only a client.
    pub ports: Vec<ContainerPort>,
    /// Node that the manifest asks for.
    pub node: Option<NodeName>,
    /// Whether the pods are ready: true unless the status of a `Pod` says otherwise.
    pub ready: bool,
    /// Whether they are being deleted: whether a `Pod` has a `deletionTimestamp`.
    pub terminating: bool,
}

/// A port that a container listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name; empty if it has none.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Its number, 1..=65535.
    pub port: u16,
}

impl Kind for Namespace {
    const FIELDS: &'static Rule = &fields::NAMESPACE;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn check_name(name: &str) -> Result<&str, String> {
        check::label(name)
    }

    fn key((_, name): Identity<'_>) -> Key {
        Key::Namespace(name.into())
    }

    fn read(&self, (_, name): Identity<'_>) -> Result<Reading, Invalid> {
        let mut labels = self.metadata.labels.clone().unwrap_or_default();
        labels.insert(annotations::NAMESPACE_NAME.into(), name.into());
        Ok(Reading::of(Body::Namespace(Arc::new(labels)), Notes::default()))
    }
}

impl Kind for PodObject {
    const FIELDS: &'static Rule = &fields::POD;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn key(identity: Identity<'_>) -> Key {
        workload_key::<Self>(identity)
    }

    fn read(&self, identity: Identity<'_>) -> Result<Reading, Invalid> {
        let host_ports = host_ports::read(identity, self)?.map(Arc::new);
        Ok(reading(ReadWorkload { workload: read_pod(identity, self)?, host_ports }))
    }
}

impl Kind for Deployment {
    const FIELDS: &'static Rule = &fields::DEPLOYMENT;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn key(identity: Identity<'_>) -> Key {
        workload_key::<Self>(identity)
    }

    fn read(&self, identity: Identity<'_>) -> Result<Reading, Invalid> {
        Ok(reading(ReadWorkload { workload: read_deployment(identity, self)?, host_ports: None }))
    }
}

impl Kind for StatefulSet {
    const FIELDS: &'static Rule = &fields::STATEFUL_SET;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn key(identity: Identity<'_>) -> Key {
        workload_key::<Self>(identity)
    }

    fn read(&self, identity: Identity<'_>) -> Result<Reading, Invalid> {
        Ok(reading(ReadWorkload { workload: read_stateful_set(identity, self)?, host_ports: None }))
    }
}

fn reading(read: ReadWorkload) -> Reading {
    Reading::of(Body::Workload(Box::new(read)), Notes::default())
}

fn workload_key<T: Resource>((namespace, name): Identity<'_>) -> Key {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    Key::Workload(Box::new(WorkloadKey { api_version: T::API_VERSION, kind: T::KIND, namespace, name }))
}

fn read_pod((namespace, name): Identity<'_>, object: &PodObject) -> Result<Workload, Invalid> {
    let mut pod = pod_template(&object.metadata, object.spec.as_ref(), "")?;
    let conditions = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    pod.ready = ready.is_none_or(|condition| condition.status == "True");
    pod.terminating = object.metadata.deletion_timestamp.is_some();
    Ok(workload(namespace, name, Replicas::Single, pod))
}

fn read_deployment((namespace, name): Identity<'_>, object: &Deployment) -> Result<Workload, Invalid> {
    let spec = &object.spec;
    let pod = numbered_pod(&spec.selector, &spec.template)?;
    let replicas = Replicas::Numbered { first: 0, count: count(spec.replicas)? };
    Ok(workload(namespace, name, replicas, pod))
}

fn read_stateful_set((namespace, name): Identity<'_>, object: &StatefulSet) -> Result<Workload, Invalid> {
    let spec = &object.spec;
    let pod = numbered_pod(&spec.selector, &spec.template)?;
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    let negative = || format!("{start} is not a number of a pod, expected 0 or more");
    let first = u32::try_from(start).map_err(|_| negative()).at(|| "spec.ordinals.start".into())?;
    let replicas = Replicas::Numbered { first, count: count(spec.replicas)? };
    Ok(workload(namespace, name, replicas, pod))
}

fn workload(namespace: &str, name: &str, replicas: Replicas, pod: PodTemplate) -> Workload {
    Workload { namespace: namespace.to_owned(), name: name.to_owned(), replicas, pod }
}

fn count(replicas: Option<i32>) -> Result<u32, Invalid> {
    let replicas = replicas.unwrap_or(1);
    if (0..=MAX_REPLICAS).contains(&replicas) {
        return Ok(replicas.unsigned_abs());
    }
    Err(Invalid::new("spec.replicas", format!("{replicas} is not a number of replicas, expected 0 to {MAX_REPLICAS}")))
}

fn numbered_pod(selector: &LabelSelector, template: &PodTemplateSpec) -> Result<PodTemplate, Invalid> {
    let none = ObjectMeta::default();
    let pod = pod_template(template.metadata.as_ref().unwrap_or(&none), template.spec.as_ref(), "spec.template.")?;
    for (key, value) in selector.match_labels.iter().flatten() {
        if pod.labels.get(key) != Some(value) {
            let message = format!("the template's labels do not have {} = {}", quoted(key), quoted(value));
            return Err(Invalid::new("spec.selector.matchLabels", message));
        }
    }
    Ok(pod)
}

fn pod_template(metadata: &ObjectMeta, spec: Option<&PodSpec>, prefix: &str) -> Result<PodTemplate, Invalid> {
    let spec = spec.ok_or_else(|| Invalid::new(format!("{prefix}spec"), "a pod needs a spec"))?;
    let labels = metadata.labels.clone().unwrap_or_default();
    for (key, value) in &labels {
        check::label_key(key).at(|| format!("{prefix}metadata.labels"))?;
        check::label_value(value).at(|| format!("{prefix}metadata.labels[{key}]"))?;
    }
    let node = spec.node_name.as_deref().filter(|node| !node.is_empty());
    let node = node.map(check::subdomain).transpose().at(|| format!("{prefix}spec.nodeName"))?;
    let node = node.map(NodeName::new);
    Ok(PodTemplate { labels, ports: container_ports(spec, prefix)?, node, ready: true, terminating: false })
}

fn container_ports(spec: &PodSpec, prefix: &str) -> Result<Vec<ContainerPort>, Invalid> {
    let mut names = BTreeSet::new();
    let mut ports = Vec::new();
    for (container, object) in spec.containers.iter().enumerate() {
        for (index, object) in object.ports.iter().flatten().enumerate() {
            let field = |name: &str| format!("{prefix}spec.containers[{container}].ports[{index}].{name}");
            let port = container_port(object, field)?;
            if !port.name.is_empty() && !names.insert(port.name.clone()) {
                return Err(Invalid::new(field("name"), format!("{} appears twice", quoted(&port.name))));
            }
            ports.push(port);
        }
    }
    Ok(ports)
}

fn container_port(object: &PortObject, field: impl Fn(&str) -> String) -> Result<ContainerPort, Invalid> {
    let name = object.name.as_deref().filter(|name| !name.is_empty());
    let name = name.map_or(Ok(""), check::port_name).at(|| field("name"))?;
    let protocol = check::protocol(object.protocol.as_deref()).at(|| field("protocol"))?;
    let port = check::port(object.container_port).at(|| field("containerPort"))?;
    Ok(ContainerPort { name: name.to_owned(), protocol, port })
}
