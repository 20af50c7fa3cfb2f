//! Services, endpoint slices and pools as manifests: the way back from the model, without a detour through objects, so
//! that ten thousand services are written in milliseconds. Also what their status says once addresses are allocated.
//!
//! ```
//! use lb_core::{addr::Protocol, endpoint::Endpoint, name::ServiceName, service::{Service, ServicePort}};
//! use lb_k8s::{Snapshot, write};
//!
//! let mut service = Service::new(ServiceName::new("default", "web"));
//! service.cluster_ips = vec!["10.96.0.10".parse()?];
//! service.ports = vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }];
//! let endpoints = ["10.0.0.1".parse()?, "10.0.0.2".parse()?].map(Endpoint::new);
//!
//! let text = write::service_with_endpoints(&service, &endpoints, |_| 8080)?;
//! let snapshot = Snapshot::parse("web.yaml", &text)?;
//! assert_eq!(snapshot.services().next(), Some(&service));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod pool;
mod status;

use std::fmt::{self, Write as _};

use lb_core::{
    addr::{Family, Protocol},
    affinity::Affinity,
    endpoint::{AdminState, Conditions, Endpoint, EndpointSlice, SlicePort},
    service::{DrainPolicy, Service, ServicePort, ServiceType, TrafficPolicy},
    sources::RangePolicy,
    topology::Hints,
};

use crate::{
    annotations::{
        AFFINITY_BY_SOURCE, AFFINITY_PREFIX_V4, AFFINITY_PREFIX_V6, ALGORITHM, CILIUM_RANGES_POLICY, DRAIN,
        MAGLEV_TABLE_SIZE, PANIC_THRESHOLD, SERVICE_NAME, WEIGHT,
    },
    check,
    lab::slice_name,
    limits::{MAX_ENDPOINTS, MAX_HINTS},
};

pub use pool::pool;
pub use status::{Condition, Ingress, LoadBalancerStatus, PoolStatus, ServiceStatus, pool_status, service_status};

/// Why something cannot be a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object} cannot be written as a manifest: {message}")]
pub struct WriteError {
    /// The service, slice or pool.
    pub object: String,
    /// A property that no manifest can express.
    pub message: String,
}

/// A service as one document.
///
/// Reading it returns the same service, except that addresses without ports are lost together with the service's
/// frontends: a service without ports is written headless. Its type is the one that its addresses need, if that is
/// another one.
///
/// # Errors
/// When its ports are host ports, a name is not a DNS label, the time-out of affinity or the time to drain is not 1 to 86400 whole seconds, or
/// node ports are of one family while a cluster address is of the other.
pub fn service(service: &Service) -> Result<String, WriteError> {
    let mut text = String::with_capacity(512);
    write_service(&mut text, service)?;
    Ok(text)
}

/// An endpoint slice as one document.
///
/// # Errors
/// When a name is not a DNS name, the endpoints are not of one family or weight, one of them is out of service, or the
/// slice is in another namespace than its service.
pub fn endpoint_slice(slice: &EndpointSlice) -> Result<String, WriteError> {
    let mut text = String::with_capacity(512 + 128 * slice.endpoints.len());
    write_slice(&mut text, slice)?;
    Ok(text)
}

/// A service with `endpoints` behind it, as several documents. `target` returns the endpoints' port for each of its
/// ports.
///
/// # Errors
/// As [`service`] and [`endpoint_slice`].
pub fn service_with_endpoints(
    service: &Service,
    endpoints: &[Endpoint],
    target: impl Fn(&ServicePort) -> u16,
) -> Result<String, WriteError> {
    let mut text = String::with_capacity(1024 + 128 * endpoints.len());
    write_service(&mut text, service)?;
    for slice in endpoint_slices(service, endpoints, target) {
        write_slice(&mut text, &slice)?;
    }
    Ok(text)
}

/// The slices of a service with `endpoints` behind it, one per family unless there are more than [`MAX_ENDPOINTS`].
#[must_use]
pub fn endpoint_slices(
    service: &Service,
    endpoints: &[Endpoint],
    target: impl Fn(&ServicePort) -> u16,
) -> Vec<EndpointSlice> {
    let port = |port: &ServicePort| SlicePort { name: port.name.clone(), protocol: port.protocol, port: target(port) };
    let ports: Vec<_> = service.ports.iter().map(port).collect();
    let mut slices = Vec::new();
    for family in [Family::V4, Family::V6] {
        let of_family: Vec<_> = endpoints.iter().filter(|endpoint| Family::of(endpoint.ip) == family).collect();
        slices.extend(of_family.chunks(MAX_ENDPOINTS).enumerate().map(|(index, endpoints)| EndpointSlice {
            name: slice_name(&service.name, family, index),
            service: service.name.clone(),
            ports: ports.clone(),
            endpoints: endpoints.iter().map(|&endpoint| endpoint.clone()).collect(),
        }));
    }
    slices
}

fn write_service(text: &mut String, service: &Service) -> Result<(), WriteError> {
    let name = &service.name;
    let refuse = |message| WriteError { object: format!("service {name}"), message };
    if service.host_ips.is_some() {
        return Err(refuse("its ports are host ports, which stand in the manifest of a pod".to_owned()));
    }
    check::label(name.name()).and(check::label(name.namespace())).map_err(refuse)?;
    if service.host_ips.is_some() {
        return Err(refuse("its ports are host ports, which stand in the manifest of a pod".to_owned()));
    }
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        check::label(&port.name).map_err(refuse)?;
    }
    if let Some(Affinity { timeout, .. }) = service.affinity
        && (timeout.subsec_nanos() != 0 || !(1..=86_400).contains(&timeout.as_secs()))
    {
        return Err(refuse(format!("the time-out of its affinity is {timeout:?}, expected whole seconds, 1 to 86400")));
    }
    if let DrainPolicy::For(time) = service.drain
        && (time.subsec_nanos() != 0 || !(1..=86_400).contains(&time.as_secs()))
    {
        return Err(refuse(format!("its time to drain is {time:?}, expected whole seconds, 1 to 86400")));
    }
    if service.host_ips.is_some() {
        return Err(refuse("its ports are host ports, which a `Pod` has and no `Service`".to_owned()));
    }
    if let Some(ranges) = &service.source_ranges
        && ranges.prefixes().is_empty()
    {
        return Err(refuse(format!("its source ranges, `{ranges}`, have no prefix")));
    }
    if let Some(family) = service.node_port_family
        && let Some(ip) = service.cluster_ips.iter().find(|ip| Family::of(**ip) != family)
    {
        let family = family_name(family);
        return Err(refuse(format!("its node ports are {family} alone, and its cluster address {ip} is not")));
    }
    render_service(text, service).map_err(|fmt::Error| refuse("out of memory".to_owned()))
}

fn render_service(text: &mut String, service: &Service) -> fmt::Result {
    let name = &service.name;
    writeln!(text, "---\napiVersion: v1\nkind: Service\nmetadata:")?;
    writeln!(text, "  namespace: \"{}\"\n  name: \"{}\"", name.namespace(), name.name())?;
    render_tuning(text, service)?;
    writeln!(text, "spec:\n  type: {}", service_type(service))?;
    render_addresses(text, service)?;
    if let Some(Affinity { timeout, .. }) = service.affinity {
        writeln!(text, "  sessionAffinity: ClientIP\n  sessionAffinityConfig:\n    clientIP:")?;
        writeln!(text, "      timeoutSeconds: {}", timeout.as_secs())?;
    }
    let policies = [
        ("externalTrafficPolicy", service.external_traffic_policy),
        ("internalTrafficPolicy", service.internal_traffic_policy),
    ];
    for (field, _) in policies.into_iter().filter(|(_, policy)| *policy == TrafficPolicy::Local) {
        writeln!(text, "  {field}: Local")?;
    }
    if let Some(port) = service.health_check_node_port {
        writeln!(text, "  healthCheckNodePort: {port}")?;
    }
    if let Some(distribution) = service.traffic_distribution {
        writeln!(text, "  trafficDistribution: {distribution}")?;
    }
    if let Some(ranges) = &service.source_ranges {
        render_list(text, "loadBalancerSourceRanges", ranges.prefixes())?;
    }
    render_service_ports(text, &service.ports)?;
    if !service.load_balancer_ips.is_empty() {
        writeln!(text, "status:\n  loadBalancer:\n    ingress:")?;
    }
    service.load_balancer_ips.iter().try_for_each(|ip| writeln!(text, "    - {{ip: \"{ip}\", ipMode: VIP}}"))
}

fn service_type(service: &Service) -> &'static str {
    let has_node_port = service.ports.iter().any(|port| port.node_port.is_some());
    let has_address = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips]
        .into_iter()
        .any(|ips| !ips.is_empty());
    if service.kind == ServiceType::ExternalName && !has_address && !has_node_port {
        "ExternalName"
    } else if service.kind == ServiceType::LoadBalancer || !service.load_balancer_ips.is_empty() {
        "LoadBalancer"
    } else if service.kind == ServiceType::NodePort || has_node_port {
        "NodePort"
    } else {
        "ClusterIP"
    }
}

fn render_tuning(text: &mut String, service: &Service) -> fmt::Result {
    let default = Affinity::default();
    let affinity = service.affinity.unwrap_or_default();
    let drain = match service.drain {
        DrainPolicy::Keep => None,
        DrainPolicy::For(time) => Some(time.as_secs().to_string()),
        DrainPolicy::Cut => Some("cut".to_owned()),
    };
    let denies = service.source_ranges.as_ref().filter(|ranges| ranges.policy() == RangePolicy::Deny);
    let annotations = [
        (CILIUM_RANGES_POLICY, denies.map(|ranges| ranges.policy().to_string())),
        (ALGORITHM, service.algorithm.map(|algorithm| algorithm.to_string())),
        (MAGLEV_TABLE_SIZE, service.table_size.map(|size| size.get().to_string())),
        (DRAIN, drain),
        (PANIC_THRESHOLD, service.panic_threshold.map(|percent| percent.to_string())),
        (AFFINITY_PREFIX_V4, (affinity.prefix_v4 != default.prefix_v4).then(|| affinity.prefix_v4.to_string())),
        (AFFINITY_BY_SOURCE, service.affinity_by_source.then(|| "true".to_owned())),
        (AFFINITY_PREFIX_V6, (affinity.prefix_v6 != default.prefix_v6).then(|| affinity.prefix_v6.to_string())),
    ];
    if annotations.iter().any(|(_, value)| value.is_some()) {
        writeln!(text, "  annotations:")?;
    }
    for (key, value) in annotations {
        value.map_or(Ok(()), |value| writeln!(text, "    {key}: \"{value}\""))?;
    }
    Ok(())
}

fn render_addresses(text: &mut String, service: &Service) -> fmt::Result {
    let others = [&service.external_ips, &service.load_balancer_ips];
    let has_others = others.into_iter().any(|ips| !ips.is_empty());
    let is_headless = service.kind == ServiceType::Headless && !has_others && service_type(service) == "ClusterIP";
    match service.cluster_ips.first() {
        _ if service_type(service) == "ExternalName" => {}
        _ if service.ports.is_empty() => return writeln!(text, "  clusterIP: None"),
        Some(first) => {
            writeln!(text, "  clusterIP: \"{first}\"")?;
            render_list(text, "clusterIPs", &service.cluster_ips)?;
        }
        None if is_headless => writeln!(text, "  clusterIP: None")?,
        None => {}
    }
    render_families(text, service)?;
    render_list(text, "externalIPs", &service.external_ips)
}

/// Families as far as node ports need them: the cluster addresses say the rest.
fn render_families(text: &mut String, service: &Service) -> fmt::Result {
    if !service.ports.iter().any(|port| port.node_port.is_some()) {
        return Ok(());
    }
    match (service.node_port_family, &service.cluster_ips[..]) {
        (Some(family), []) => writeln!(text, "  ipFamilies: [{}]", family_name(family)),
        (None, [_]) => writeln!(text, "  ipFamilyPolicy: PreferDualStack"),
        (Some(_) | None, _) => Ok(()),
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn render_list(text: &mut String, field: &str, items: &[impl fmt::Display]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(text, "  {field}:")?;
    items.iter().try_for_each(|item| writeln!(text, "  - \"{item}\""))
}

fn render_service_ports(text: &mut String, ports: &[ServicePort]) -> fmt::Result {
    if !ports.is_empty() {
        writeln!(text, "  ports:")?;
    }
    for ServicePort { name, protocol, port, node_port } in ports {
        write!(text, "  - {{name: \"{name}\", protocol: {}, port: {port}", protocol_name(*protocol))?;
        if let Some(node_port) = node_port {
            write!(text, ", nodePort: {node_port}")?;
        }
        writeln!(text, "}}")?;
    }
    Ok(())
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn write_slice(text: &mut String, slice: &EndpointSlice) -> Result<(), WriteError> {
    let refuse = |message| WriteError { object: format!("endpoint slice {}", slice.name), message };
    check_slice(slice).map_err(refuse)?;
    render_slice(text, slice).map_err(|fmt::Error| refuse("out of memory".to_owned()))
}

fn check_slice(slice: &EndpointSlice) -> Result<(), String> {
    check::subdomain(&slice.name.name).and(check::label(&slice.name.namespace))?;
    check::label(slice.service.name())?;
    if *slice.name.namespace != *slice.service.namespace() {
        return Err(format!("its service is in namespace {}", slice.service.namespace()));
    }
    for port in slice.ports.iter().filter(|port| !port.name.is_empty()) {
        check::label(&port.name)?;
    }
    let Some(first) = slice.endpoints.first() else { return Ok(()) };
    for endpoint in &slice.endpoints {
        for node in endpoint.node.iter().chain(&endpoint.hints.nodes) {
            check::subdomain(node.as_str())?;
        }
        for zone in endpoint.zone.iter().chain(&endpoint.hints.zones) {
            check::zone(zone.as_str())?;
        }
        if endpoint.hints.nodes.len().max(endpoint.hints.zones.len()) > MAX_HINTS {
            return Err(format!("endpoint {} has more than {MAX_HINTS} hints", endpoint.ip));
        }
        if Family::of(endpoint.ip) != Family::of(first.ip) {
            return Err("its endpoints are of two families: make two slices".to_owned());
        }
        if endpoint.weight != first.weight {
            return Err("its endpoints differ in weight: make a slice per weight".to_owned());
        }
        if endpoint.admin != AdminState::InService {
            return Err(format!("endpoint {} is out of service, which no manifest says", endpoint.ip));
        }
    }
    Ok(())
}

fn render_slice(text: &mut String, slice: &EndpointSlice) -> fmt::Result {
    let first = slice.endpoints.first();
    let weight = first.map_or(Endpoint::DEFAULT_WEIGHT, |first| first.weight);
    let family = if first.is_some_and(|first| first.ip.is_ipv6()) { "IPv6" } else { "IPv4" };
    writeln!(text, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:")?;
    writeln!(text, "  namespace: \"{}\"\n  name: \"{}\"", slice.name.namespace, slice.name.name)?;
    writeln!(text, "  labels:\n    {SERVICE_NAME}: \"{}\"", slice.service.name())?;
    if weight != Endpoint::DEFAULT_WEIGHT {
        writeln!(text, "  annotations:\n    {WEIGHT}: \"{weight}\"")?;
    }
    writeln!(text, "addressType: {family}")?;
    if !slice.ports.is_empty() {
        writeln!(text, "ports:")?;
    }
    for SlicePort { name, protocol, port } in &slice.ports {
        writeln!(text, "- {{name: \"{name}\", protocol: {}, port: {port}}}", protocol_name(*protocol))?;
    }
    if !slice.endpoints.is_empty() {
        writeln!(text, "endpoints:")?;
    }
    slice.endpoints.iter().try_for_each(|endpoint| render_endpoint(text, endpoint))
}

fn render_endpoint(text: &mut String, endpoint: &Endpoint) -> fmt::Result {
    write!(text, "- {{addresses: [\"{}\"]", endpoint.ip)?;
    if let Some(node) = &endpoint.node {
        write!(text, ", nodeName: \"{node}\"")?;
    }
    if let Some(zone) = &endpoint.zone {
        write!(text, ", zone: \"{zone}\"")?;
    }
    render_hints(text, &endpoint.hints)?;
    let Conditions { ready, serving, terminating } = endpoint.conditions;
    if endpoint.conditions != Conditions::READY {
        write!(text, ", conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}")?;
    }
    writeln!(text, "}}")
}

fn render_hints(text: &mut String, hints: &Hints) -> fmt::Result {
    if hints.is_empty() {
        return Ok(());
    }
    let names = |names: &mut dyn Iterator<Item = &str>| -> String {
        names.map(|name| format!("{{name: \"{name}\"}}")).collect::<Vec<_>>().join(", ")
    };
    let zones = names(&mut hints.zones.iter().map(|zone| zone.as_str()));
    let nodes = names(&mut hints.nodes.iter().map(|node| node.as_str()));
    write!(text, ", hints: {{forZones: [{zones}], forNodes: [{nodes}]}}")
}
