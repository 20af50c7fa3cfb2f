//! Reads a `Service` of Kubernetes into a [`Service`] of the model.

mod addresses;
mod ranges;
mod request;
mod tuning;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Service as Object, ServicePort as PortObject, ServiceSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use lb_core::{
    addr::{Family, Protocol},
    name::ServiceName,
    service::{Service, ServicePort, ServiceType, TrafficPolicy},
};
use lb_ipam::Request;

use crate::{
    annotations,
    check::{self, At, Invalid},
    fields::{self, Rule, Unsupported},
    kinds::{Identity, Kind, Notes, Reading, other_proxy},
    limits::MAX_PORTS,
    snapshot::part::{Aside, Body, Key},
    text::quoted,
};

impl Kind for Object {
    const FIELDS: &'static Rule = &fields::SERVICE;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn check_name(name: &str) -> Result<&str, String> {
        check::label(name)
    }

    fn foreign(metadata: &ObjectMeta) -> Option<&'static str> {
        other_proxy(metadata)
    }

    fn key((namespace, name): Identity<'_>) -> Key {
        Key::Service(ServiceName::new(namespace, name))
    }

    fn read(&self, (namespace, name): Identity<'_>) -> Result<Reading, Invalid> {
        let read = read(ServiceName::new(namespace, name), self)?;
        let has_aside = read.template.is_some() || read.request.is_some();
        let aside = has_aside.then(|| Box::new(Aside { template: read.template, request: read.request.map(Arc::new) }));
        Ok(Reading::of(Body::Service { service: Arc::new(read.service), aside }, read.notes))
    }
}

/// The part of a service with a selector that a controller of endpoints needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTemplate {
    /// The service.
    pub name: ServiceName,
    /// Labels that a pod of the same namespace must have, all of them.
    pub selector: BTreeMap<String, String>,
    /// Ports of the service and where they lead.
    pub ports: Vec<TemplatePort>,
    /// Families that it has endpoints in.
    pub families: Vec<Family>,
    /// Whether its endpoints are ready whatever their pods say.
    pub publish_not_ready_addresses: bool,
}

/// A port of a service and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplatePort {
    /// Name of the service's port; empty if it has none.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port of the pods.
    pub target: TargetPort,
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// By number, 1..=65535.
    Number(u16),
    /// By the name of a container port of the same protocol.
    Name(Arc<str>),
}

/// A service as it was read.
#[derive(Debug)]
pub(crate) struct ReadService {
    pub(crate) service: Service,
    /// `None` without a selector.
    pub(crate) template: Option<ServiceTemplate>,
    /// `None` if it asks nothing of pools and has nothing of them.
    pub(crate) request: Option<Request>,
    pub(crate) notes: Notes,
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// Reads a service. A service without a cluster address still has the frontends of its other addresses; a headless one
/// and an `ExternalName` have none.
pub(crate) fn read(name: ServiceName, object: &Object) -> Result<ReadService, Invalid> {
    let missing = || Invalid::new("spec", "a service needs a spec");
    let spec = object.spec.as_ref().ok_or_else(missing)?;
    let kind = service_type(spec)?;
    let labels = object.metadata.labels.as_ref();
    let is_headless =
        addresses::is_none(spec) || labels.is_some_and(|labels| labels.contains_key(annotations::HEADLESS));
    let has_frontends = !is_headless && kind != Type::ExternalName;
    let mut notes = Notes::default();

    let mut service = Service::new(name);
    service.kind = match kind {
        Type::ExternalName => ServiceType::ExternalName,
        _ if is_headless => ServiceType::Headless,
        Type::ClusterIp => ServiceType::ClusterIp,
        Type::NodePort => ServiceType::NodePort,
        Type::LoadBalancer => ServiceType::LoadBalancer,
    };
    addresses::read(object, spec, kind, has_frontends, &mut service, &mut notes)?;
    service.ports = ports(spec, kind, has_frontends, &mut notes.always)?;
    service.node_port_family = node_port_family(spec, &service)?;
    service.external_traffic_policy =
        traffic_policy(spec.external_traffic_policy.as_deref()).at(|| "spec.externalTrafficPolicy".into())?;
    service.internal_traffic_policy =
        traffic_policy(spec.internal_traffic_policy.as_deref()).at(|| "spec.internalTrafficPolicy".into())?;
    service.health_check_node_port = health_check_node_port(spec)?;
    if service.health_check_node_port.is_some() && service.health_check().is_none() {
        notes.always.push(Unsupported::new(HEALTH_CHECK_NODE_PORT, IN_VAIN));
    }
    service.source_ranges = ranges::read(object, spec, &mut notes.always)?;
    tuning::read(object, spec, &mut service)?;
    let template = template(spec, &service)?;
    let request = request::read(object, spec, kind == Type::LoadBalancer && has_frontends, &service, &mut notes)?;
    Ok(ReadService { service, template, request, notes })
}

const HEALTH_CHECK_NODE_PORT: &str = "spec.healthCheckNodePort";
// Nothing more is let in without it: whoever asks takes the node for one without backends.
const IN_VAIN: &str = "no health check is answered on this port: that needs type LoadBalancer, frontends, and \
                       `externalTrafficPolicy: Local`";

fn health_check_node_port(spec: &ServiceSpec) -> Result<Option<u16>, Invalid> {
    let port = spec.health_check_node_port.filter(|&port| port != 0);
    port.map(check::port).transpose().at(|| HEALTH_CHECK_NODE_PORT.into())
}

/// A text field; empty means absent.
fn text(field: Option<&String>) -> Option<&str> {
    field.map(String::as_str).filter(|text| !text.is_empty())
}

fn service_type(spec: &ServiceSpec) -> Result<Type, Invalid> {
    match text(spec.type_.as_ref()) {
        None | Some("ClusterIP") => Ok(Type::ClusterIp),
        Some("NodePort") => Ok(Type::NodePort),
        Some("LoadBalancer") => Ok(Type::LoadBalancer),
        Some("ExternalName") => Ok(Type::ExternalName),
        Some(other) => {
            let message =
                format!("{} is not a type, expected ClusterIP, NodePort, LoadBalancer or ExternalName", quoted(other));
            Err(Invalid::new("spec.type", message))
        }
    }
}

/// The family of its node ports, if the service is of one family.
fn node_port_family(spec: &ServiceSpec, service: &Service) -> Result<Option<Family>, Invalid> {
    let families = addresses::families(spec, &service.cluster_ips)?;
    let has_node_port = service.ports.iter().any(|port| port.node_port.is_some());
    Ok(families.first().copied().filter(|_| has_node_port && families.len() == 1))
}

fn traffic_policy(policy: Option<&str>) -> Result<TrafficPolicy, String> {
    match policy {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(format!("{} is not a traffic policy, expected Cluster or Local", quoted(other))),
    }
}

fn ports(
    spec: &ServiceSpec,
    kind: Type,
    has_frontends: bool,
    notes: &mut Vec<Unsupported>,
) -> Result<Vec<ServicePort>, Invalid> {
    let objects = spec.ports.as_deref().unwrap_or_default();
    if objects.is_empty() && has_frontends {
        return Err(Invalid::new("spec.ports", "a service needs at least one port"));
    }
    if objects.len() > MAX_PORTS {
        return Err(Invalid::new("spec.ports", format!("more than {MAX_PORTS} ports")));
    }
    let mut seen = Seen::default();
    let mut ports = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        let port = read_port(object, index, objects.len(), kind)?;
        seen.check(&port, index)?;
        if kind == Type::NodePort && has_frontends && port.node_port.is_none() {
            let field = format!("spec.ports[{index}].nodePort");
            notes.push(Unsupported::new(field, "node ports are not allocated: name one"));
        }
        ports.push(port);
    }
    Ok(ports)
}

fn read_port(object: &PortObject, index: usize, of: usize, kind: Type) -> Result<ServicePort, Invalid> {
    let field = |name: &str| format!("spec.ports[{index}].{name}");
    let name = text(object.name.as_ref());
    if name.is_none() && of > 1 {
        return Err(Invalid::new(field("name"), "a port of several needs a name"));
    }
    let name = name.map_or(Ok(""), check::label).at(|| field("name"))?;
    let protocol = check::protocol(text(object.protocol.as_ref())).at(|| field("protocol"))?;
    let port = check::port(object.port).at(|| field("port"))?;
    let node_port = object.node_port.filter(|&port| port != 0);
    let node_port = node_port.map(check::port).transpose().at(|| field("nodePort"))?;
    if node_port.is_some() && !matches!(kind, Type::NodePort | Type::LoadBalancer) {
        let message = "a node port needs type NodePort or LoadBalancer";
        return Err(Invalid::new(field("nodePort"), message));
    }
    Ok(ServicePort { name: name.into(), protocol, port, node_port })
}

/// Properties that two ports of one service must not share.
#[derive(Default)]
struct Seen {
    names: BTreeSet<Arc<str>>,
    ports: BTreeSet<(Protocol, u16)>,
    node_ports: BTreeSet<(Protocol, u16)>,
}

impl Seen {
    fn check(&mut self, port: &ServicePort, index: usize) -> Result<(), Invalid> {
        let twice = |field: &str, what: String| {
            Err(Invalid::new(format!("spec.ports[{index}].{field}"), format!("{what} appears twice")))
        };
        if !self.names.insert(Arc::clone(&port.name)) {
            return twice("name", quoted(&port.name));
        }
        if !self.ports.insert((port.protocol, port.port)) {
            return twice("port", format!("{}/{}", port.port, port.protocol));
        }
        match port.node_port {
            Some(number) if !self.node_ports.insert((port.protocol, number)) => {
                twice("nodePort", format!("{number}/{}", port.protocol))
            }
            _ => Ok(()),
        }
    }
}

fn template(spec: &ServiceSpec, service: &Service) -> Result<Option<ServiceTemplate>, Invalid> {
    let Some(selector) = spec.selector.clone().filter(|selector| !selector.is_empty()) else { return Ok(None) };
    for (key, value) in &selector {
        check::label_key(key).at(|| "spec.selector".into())?;
        check::label_value(value).at(|| format!("spec.selector[{key}]"))?;
    }
    let mut ports = Vec::with_capacity(service.ports.len());
    for (index, (port, object)) in service.ports.iter().zip(spec.ports.iter().flatten()).enumerate() {
        let target = target_port(object, port).at(|| format!("spec.ports[{index}].targetPort"))?;
        ports.push(TemplatePort { name: Arc::clone(&port.name), protocol: port.protocol, target });
    }
    Ok(Some(ServiceTemplate {
        name: service.name.clone(),
        selector,
        ports,
        families: Some(addresses::families(spec, &service.cluster_ips)?)
            .filter(|families| !families.is_empty())
            .unwrap_or_else(|| vec![Family::V4, Family::V6]),
        publish_not_ready_addresses: spec.publish_not_ready_addresses == Some(true),
    }))
}

fn target_port(object: &PortObject, port: &ServicePort) -> Result<TargetPort, String> {
    match &object.target_port {
        None => Ok(TargetPort::Number(port.port)),
        Some(IntOrString::Int(0)) => Ok(TargetPort::Number(port.port)),
        Some(IntOrString::Int(number)) => check::port(*number).map(TargetPort::Number),
        Some(IntOrString::String(name)) if name.is_empty() => Ok(TargetPort::Number(port.port)),
        Some(IntOrString::String(name)) => check::port_name(name).map(|name| TargetPort::Name(name.into())),
    }
}
