//! Host ports of pods: what the manifest of a pod says, and the services that a node serves for them.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec, PodStatus};
use lb_core::{
    addr::{Family, Protocol},
    endpoint::{Conditions, Endpoint, EndpointSlice, SlicePort},
    name::{NodeName, ServiceName},
    service::{HostIps, Service, ServicePort, ServiceType},
};

use crate::{
    check::{self, At, Invalid},
    kinds::Identity,
    lab::slice_name,
    limits::MAX_PORTS,
};

/// A pod that runs and has host ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPod {
    namespace: String,
    name: String,
    uid: String,
    /// In seconds since 1970, if its manifest says so.
    pub(crate) created: Option<i64>,
    /// The node that it runs on, if that is known.
    pub(crate) node: Option<NodeName>,
    /// One for each of its families.
    ips: Vec<IpAddr>,
    is_terminating: bool,
    pub(crate) ports: Vec<HostPort>,
    /// Host ports that no node serves, and why.
    pub(crate) refused: Vec<Invalid>,
}

/// A host port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// Path of its number in the manifest.
    pub(crate) field: String,
    pub(crate) host_ips: HostIps,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// The port of the pod.
    target: u16,
}

/// The host ports of a pod. `None` if it has none, or shares the network of its node, or has not begun to run or ended.
pub(crate) fn read((namespace, name): Identity<'_>, object: &Pod) -> Result<Option<HostPod>, Invalid> {
    let Some(spec) = object.spec.as_ref().filter(|spec| spec.host_network != Some(true)) else { return Ok(None) };
    let mut objects = host_ports(spec).peekable();
    let status = object.status.as_ref().filter(|status| !has_ended(status));
    let (Some(_), Some(status)) = (objects.peek(), status) else { return Ok(None) };
    let ips = pod_ips(status)?;
    if ips.is_empty() {
        return Ok(None);
    }
    let node = spec.node_name.as_deref().filter(|node| !node.is_empty());
    let mut pod = HostPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        created: object.metadata.creation_timestamp.as_ref().map(|created| created.0.as_second()),
        node: node.map(check::subdomain).transpose().at(|| "spec.nodeName".into())?.map(NodeName::new),
        ips,
        is_terminating: object.metadata.deletion_timestamp.is_some(),
        ports: Vec::new(),
        refused: Vec::new(),
    };
    let mut seen = BTreeSet::new();
    for (path, object) in objects {
        let port = match pod.port(&path, object) {
            Ok(port) if !seen.insert((port.host_ips, port.port, port.protocol)) => {
                Err(Invalid::new(port.field, format!("{}/{} appears twice", port.port, port.protocol)))
            }
            port => port,
        };
        match port {
            Ok(port) => pod.ports.push(port),
            Err(invalid) => pod.refused.push(invalid),
        }
        if pod.ports.len() + pod.refused.len() > MAX_PORTS {
            return Err(Invalid::new("spec.containers", format!("more than {MAX_PORTS} host ports")));
        }
    }
    Ok(Some(pod))
}

/// Ports with host ports, and their paths: of containers, and of those that start first and stay.
fn host_ports(spec: &PodSpec) -> impl Iterator<Item = (String, &ContainerPort)> {
    let stays = |container: &Container| container.restart_policy.as_deref() == Some("Always");
    let first = spec.init_containers.iter().flatten().enumerate().filter(move |(_, container)| stays(container));
    let first = first.map(|(index, container)| (format!("spec.initContainers[{index}]"), container));
    let others = spec.containers.iter().enumerate();
    let others = others.map(|(index, container)| (format!("spec.containers[{index}]"), container));
    first.chain(others).flat_map(|(path, container)| {
        let ports = container.ports.iter().flatten().enumerate();
        let with = ports.filter(|(_, port)| port.host_port.is_some_and(|port| port != 0));
        with.map(move |(index, port)| (format!("{path}.ports[{index}]"), port))
    })
}

fn has_ended(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The first address of each family.
fn pod_ips(status: &PodStatus) -> Result<Vec<IpAddr>, Invalid> {
    let many = status.pod_ips.iter().flatten().map(|ip| ("status.podIPs", ip.ip.as_str()));
    let all = many.chain(status.pod_ip.iter().map(|ip| ("status.podIP", ip.as_str())));
    let mut ips: Vec<IpAddr> = Vec::new();
    for (field, text) in all.filter(|(_, text)| !text.is_empty()) {
        let ip = check::ip(text).at(|| field.into())?;
        if ips.iter().all(|other| Family::of(*other) != Family::of(ip)) {
            ips.push(ip);
        }
    }
    Ok(ips)
}

impl HostPod {
    fn port(&self, path: &str, object: &ContainerPort) -> Result<HostPort, Invalid> {
        let field = |name: &str| format!("{path}.{name}");
        let host_ips = self.host_ips(object).at(|| field("hostIP"))?;
        Ok(HostPort {
            host_ips,
            port: check::port(object.host_port.unwrap_or_default()).at(|| field("hostPort"))?,
            protocol: check::protocol(object.protocol.as_deref()).at(|| field("protocol"))?,
            target: check::port(object.container_port).at(|| field("containerPort"))?,
            field: field("hostPort"),
        })
    }

    fn host_ips(&self, object: &ContainerPort) -> Result<HostIps, String> {
        let Some(text) = object.host_ip.as_deref().filter(|text| !text.is_empty()) else { return Ok(HostIps::Every) };
        match text.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => Ok(HostIps::Every),
            Ok(ip) if ip.is_loopback() => {
                Err(format!("{ip} is a loopback address: host ports are served only where others can reach them"))
            }
            _ => {
                let ip = check::ip(text)?;
                let family = Family::of(ip);
                self.has(family).then_some(HostIps::One(ip)).ok_or_else(|| format!("the pod has no {family} address"))
            }
        }
    }

    /// `namespace/name`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether a host port of this pod and one of another are at the same port of some address of a node.
    pub(crate) fn meets(&self, port: &HostPort, other: &Self, others: &HostPort) -> bool {
        if (port.port, port.protocol) != (others.port, others.protocol) {
            return false;
        }
        match (port.host_ips, others.host_ips) {
            (HostIps::One(ip), HostIps::One(other)) => ip == other,
            (HostIps::One(ip), HostIps::Every) => other.has(Family::of(ip)),
            (HostIps::Every, HostIps::One(ip)) => self.has(Family::of(ip)),
            (HostIps::Every, HostIps::Every) => self.ips.iter().any(|ip| other.has(Family::of(*ip))),
        }
    }

    fn has(&self, family: Family) -> bool {
        self.ips.iter().any(|ip| Family::of(*ip) == family)
    }

    /// The family of its addresses, if it has only one.
    pub(crate) fn only_family(&self) -> Option<Family> {
        match self.ips[..] {
            [only] => Some(Family::of(only)),
            _ => None,
        }
    }

    /// The service of one of its host ports. No manifest of a service can have its name, which has dots in it; and a pod
    /// that comes again with another uid has another service.
    pub(crate) fn service(&self, port: &HostPort) -> Service {
        let HostPort { port: number, protocol, .. } = port;
        let place = match port.host_ips {
            HostIps::Every => String::new(),
            HostIps::One(ip) => ip.to_string(),
        };
        let name = format!("{}.host-port-{number}-{protocol}.{:08x}", self.name, fnv1a([&self.uid, &place]));
        Service {
            kind: ServiceType::HostPort,
            ports: vec![ServicePort { name: "".into(), protocol: *protocol, port: *number, node_port: None }],
            node_port_family: self.only_family(),
            host_ips: Some(port.host_ips),
            ..Service::new(ServiceName::new(&self.namespace, &name))
        }
    }

    /// The pod as the endpoint of the `service` of one of its host ports.
    ///
    /// A host port is served for as long as the pod runs, whether it says that it is ready or not: without the host port
    /// there would be nobody else.
    pub(crate) fn endpoint_slices(&self, port: &HostPort, service: &ServiceName) -> Vec<EndpointSlice> {
        let terminating = Conditions { ready: false, serving: true, terminating: true };
        let slice = |&ip: &IpAddr| EndpointSlice {
            name: slice_name(service, Family::of(ip), 0),
            service: service.clone(),
            ports: vec![SlicePort { name: "".into(), protocol: port.protocol, port: port.target }],
            endpoints: vec![Endpoint {
                node: self.node.clone(),
                conditions: if self.is_terminating { terminating } else { Conditions::READY },
                ..Endpoint::new(ip)
            }],
        };
        self.ips.iter().map(slice).collect()
    }
}

/// The hash FNV-1a of 32 bits, <http://www.isthe.com/chongo/tech/comp/fnv/>, with a zero behind each part. It never
/// changes, so that names are the same after an upgrade.
fn fnv1a(parts: [&str; 2]) -> u32 {
    let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
