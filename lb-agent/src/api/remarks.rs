//! What there is to say about services beyond what is served: findings of their sources, and endpoints that they do
//! not get. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::{
    addr::{Family, FrontendKind, Protocol},
    decision::BackendQuery,
    endpoint::EndpointSlice,
    model::Model,
    name::{ServiceName, ServicePortName, SourceName},
    service::{HostIps, Service},
};
use lb_k8s::{Finding, Instead, Report};

use crate::api::{Condition, Step};

/// Sources and what they did not take over.
pub(crate) type Reports = [(SourceName, Arc<Report>)];

/// A fact about a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    /// Type of the condition.
    kind: &'static str,
    /// The object that it is about, if that is not the service itself.
    object: Option<String>,
    field: String,
    says: String,
}

/// Conditions of the agent that name services with such a condition, and what they say first.
const OF_ALL: [(&str, &str); 4] = [
    (NO_ENDPOINTS, "no EndpointSlice fits these services, or one of their ports or families"),
    (ENDPOINTS_UNUSED, "EndpointSlices fit no port of these services"),
    (HOST_IP_ELSEWHERE, "these host ports are for an address that this node does not have"),
    (NODE_PORTS_NOWHERE, "no address of this node has the node ports of these services"),
];

const NO_ENDPOINTS: &str = "NoEndpoints";
const ENDPOINTS_UNUSED: &str = "EndpointsUnused";
const HOST_IP_ELSEWHERE: &str = "HostIpElsewhere";
const NODE_PORTS_NOWHERE: &str = "NodePortsNowhere";
pub(crate) const NO_SERVICE: &str = "NoService";

/// Most names that one message has.
const MAX_NAMED: usize = 3;

impl Remark {
    pub(crate) fn condition(&self) -> Condition {
        let parts = [self.object.as_deref().unwrap_or_default(), &self.field, &self.says];
        let message = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
        Condition::new(self.kind, &message)
    }

    /// As a step of a decision about a packet for `service`.
    fn step(&self, service: &ServiceName) -> Step {
        let object = self.object.clone().unwrap_or_else(|| format!("service {service}"));
        let field = if self.field.is_empty() { "manifest".to_owned() } else { self.field.clone() };
        Step { object, field, says: self.says.clone() }
    }

    fn is_about_all(&self) -> bool {
        OF_ALL.iter().any(|(kind, _)| *kind == self.kind)
    }
}

/// Remarks about every service that there is, by `namespace/name`. What has endpoints for a service makes none.
pub(crate) fn of_services(model: &Model, reports: &Reports) -> BTreeMap<String, Vec<Remark>> {
    let mut found: BTreeMap<String, Vec<Remark>> = BTreeMap::new();
    for (service, remark) in findings(model, reports) {
        found.entry(service).or_default().push(remark);
    }
    for (service, remark) in unjoined(model, &UnreadSlices::of(reports)) {
        found.entry(service.to_string()).or_default().push(remark);
    }
    let known = model.services().map(|service| &service.name).chain(model.refused().map(|(name, _)| name));
    let known: BTreeSet<String> = known.map(ToString::to_string).collect();
    found.retain(|service, remarks| known.contains(service) || remarks.iter().any(|remark| remark.object.is_none()));
    found
}

/// Slices that are refused or skipped, and which of the two, by the service that they name.
pub(crate) struct UnreadSlices(BTreeMap<ServiceName, Vec<String>>);

impl UnreadSlices {
    pub(crate) fn of(reports: &Reports) -> Self {
        let mut slices: BTreeMap<ServiceName, Vec<String>> = BTreeMap::new();
        let reports = || reports.iter().map(|(_, report)| report);
        let refused = reports().flat_map(|report| &report.refused);
        let refused = refused.filter(|refusal| refusal.instead == Instead::Nothing).map(|it| (&it.finding, "refused"));
        let skipped = reports().flat_map(|report| &report.skipped).map(|finding| (finding, "skipped"));
        for (finding, fate) in refused.chain(skipped).filter(|(finding, _)| finding.object.kind == "EndpointSlice") {
            let object = &finding.object;
            if let Some((service, _)) = service_of(finding) {
                slices.entry(service).or_default().push(format!("{}/{} is {fate}", object.namespace, object.name));
            }
        }
        Self(slices)
    }

    /// Why no slice of a service counts.
    fn why_none(&self, service: &ServiceName) -> String {
        match self.of_service(service) {
            [] => "no EndpointSlice names it in the label kubernetes.io/service-name: it has no backends".to_owned(),
            [only] => format!("its only EndpointSlice {only}: it has no backends"),
            several => format!("none of its EndpointSlices is read: {}: it has no backends", named(several.iter())),
        }
    }

    /// What a text that says what none of a service's slices has adds, where not all of them are read.
    fn besides(&self, service: &ServiceName) -> String {
        match self.of_service(service) {
            [] => String::new(),
            several => format!(" (not read: {})", named(several.iter())),
        }
    }

    fn of_service(&self, service: &ServiceName) -> &[String] {
        self.0.get(service).map_or(&[], Vec::as_slice)
    }
}

/// The steps that remarks add to a decision about a packet for `service`.
pub(crate) fn steps(model: &Model, reports: &Reports, service: &ServiceName) -> Vec<Step> {
    of_service(model, reports, service).iter().map(|remark| remark.step(service)).collect()
}

/// How `service` lets in more than its source asks for.
pub(crate) fn degraded(model: &Model, reports: &Reports, service: &ServiceName) -> Vec<String> {
    let of_service = of_service(model, reports, service).into_iter();
    of_service.filter(|remark| remark.kind == "Degraded").map(|remark| remark.condition().message).collect()
}

fn of_service(model: &Model, reports: &Reports, service: &ServiceName) -> Vec<Remark> {
    let name = service.to_string();
    let found = findings(model, reports).filter(|(of, _)| *of == name).map(|(_, remark)| remark);
    let unread = UnreadSlices::of(reports);
    let slices: Vec<_> = model.endpoint_slices_of(service).collect();
    let unjoined = model.service(service).map(|it| unjoined_of(model, it, &slices, &unread));
    found.chain(unjoined.into_iter().flatten()).collect()
}

/// Why a service has no backends, or slices of its name have no service: a sentence for each reason.
pub(crate) fn of_endpoints(model: &Model, unread: &UnreadSlices, service: &ServiceName) -> Vec<String> {
    let slices: Vec<_> = model.endpoint_slices_of(service).collect();
    let remarks = match model.service(service) {
        Some(served) => unjoined_of(model, served, &slices, unread),
        None if model.refused().any(|(name, _)| name == service) => Vec::new(),
        None => slices.into_iter().map(without_service).collect(),
    };
    remarks.iter().map(|remark| remark.condition().message).collect()
}

/// One condition of the agent for each kind of remark, however many services have one.
pub(crate) fn conditions(model: &Model, report: &Report) -> Vec<Condition> {
    let mut services: BTreeMap<&str, BTreeSet<ServiceName>> = BTreeMap::new();
    // Only the types of these remarks count here, and not what they say of slices that are not read.
    for (service, remark) in unjoined(model, &UnreadSlices::of(&[])).filter(|(_, remark)| remark.is_about_all()) {
        services.entry(remark.kind).or_default().insert(service);
    }
    let joined = OF_ALL.iter().filter_map(|(kind, says)| Some((kind, says, services.get(kind)?)));
    let mut conditions: Vec<Condition> = joined
        .map(|(kind, says, services)| {
            Condition::new(kind, &format!("{says}: {}; see `lb service list`", named(services.iter())))
        })
        .collect();
    let alone = without_services(model);
    if !alone.is_empty() {
        let alone = alone.iter().map(|slice| format!("EndpointSlice {} names {}", slice.name, slice.service));
        let says = format!("EndpointSlices name Services that are not there, and get nothing: {}", named(alone));
        conditions.push(Condition::new(NO_SERVICE, &says));
    }
    let mut exposed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let listed = report.unsupported.iter().chain(&report.skipped).filter(|finding| finding.exposes);
    for finding in listed.chain(&report.exposing) {
        exposed.entry(&finding.message).or_default().push(finding.object.to_string());
    }
    let exposed = exposed.into_iter().map(|(says, objects)| format!("{says}: {}", named(objects.iter())));
    conditions.extend(exposed.map(|message| Condition::new("Degraded", &message)));
    conditions
}

/// The first few names, and how many more there are.
fn named<T: ToString>(names: impl ExactSizeIterator<Item = T>) -> String {
    let more = match names.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    names.take(MAX_NAMED).map(|name| name.to_string()).collect::<Vec<_>>().join(", ") + &more
}

/// Findings about services and about what has their endpoints. Those about an object that another object of the same
/// name stands in for are left out.
fn findings(model: &Model, reports: &Reports) -> impl Iterator<Item = (String, Remark)> {
    let of_report = move |(source, report): &(SourceName, Arc<Report>)| {
        let refused = report.refused.iter().filter(|refusal| refusal.instead != Instead::First);
        let refused = refused.chain(&report.also_refused).map(|refusal| ("Refused", &refusal.finding));
        let unsupported = report.unsupported.iter().chain(&report.exposing).map(|finding| {
            let kind = if finding.exposes { "Degraded" } else { "Unsupported" };
            (kind, finding)
        });
        let endpoints = report.skipped.iter().filter(|finding| !finding.object.service.is_empty());
        let skipped = endpoints.map(|finding| ("Skipped", finding));
        let remarks = refused.chain(unsupported).chain(skipped).filter_map(|(kind, finding)| {
            let (service, is_itself) = service_of(finding)?;
            let is_shadowed = is_itself && is_of_another(model, &service, source);
            // Endpoints that are skipped make no service, and a headless one needs none.
            let is_served = || model.service(&service).is_some_and(|it| model.frontends(it).next().is_some());
            if is_shadowed || (kind == "Skipped" && !is_served()) {
                return None;
            }
            let object = (!is_itself).then(|| finding.object.to_string());
            let (field, says) = (finding.field.clone(), finding.message.clone());
            Some((service.to_string(), Remark { kind, object, field, says }))
        });
        remarks.collect::<Vec<_>>()
    };
    reports.iter().flat_map(of_report)
}

/// The service that a finding is about, and whether it is about that itself.
fn service_of(finding: &Finding) -> Option<(ServiceName, bool)> {
    let object = &finding.object;
    let (name, is_itself) = match &*object.kind {
        "Service" => (&object.name, true),
        _ => (&object.service, false),
    };
    (!name.is_empty()).then(|| (ServiceName::new(&object.namespace, name), is_itself))
}

/// Whether the service that is served comes from another source.
fn is_of_another(model: &Model, service: &ServiceName, source: &SourceName) -> bool {
    model.service(service).and_then(|it| it.source.as_ref()).is_some_and(|of| of != source)
}

/// Endpoints that services do not get, and services that get none.
fn unjoined(model: &Model, unread: &UnreadSlices) -> impl Iterator<Item = (ServiceName, Remark)> {
    let mut slices: BTreeMap<&ServiceName, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in model.endpoint_slices() {
        slices.entry(&slice.service).or_default().push(slice);
    }
    let mut found = Vec::new();
    for service in model.services() {
        let of_service = slices.remove(&service.name).unwrap_or_default();
        let remarks = unjoined_of(model, service, &of_service, unread).into_iter();
        let remarks = remarks.chain(node_ports_nowhere(model, service));
        found.extend(remarks.map(|remark| (service.name.clone(), remark)));
    }
    found.into_iter()
}

/// Slices that name a service that is neither served nor refused.
fn without_services(model: &Model) -> Vec<&EndpointSlice> {
    let refused: BTreeSet<&ServiceName> = model.refused().map(|(name, _)| name).collect();
    let is_alone = |service: &ServiceName| model.service(service).is_none() && !refused.contains(service);
    model.endpoint_slices().filter(|slice| is_alone(&slice.service)).collect()
}

fn without_service(slice: &EndpointSlice) -> Remark {
    let says = format!("there is no Service {}: its endpoints get nothing", slice.service);
    let object = Some(format!("EndpointSlice {}", slice.name));
    Remark { kind: NO_SERVICE, object, field: "service".into(), says }
}

fn unjoined_of(model: &Model, service: &Service, slices: &[&EndpointSlice], unread: &UnreadSlices) -> Vec<Remark> {
    let no_endpoints = |field: &str, says| Remark { kind: NO_ENDPOINTS, object: None, field: field.into(), says };
    if model.frontends(service).next().is_none() {
        return host_ip_elsewhere(model, service).into_iter().collect();
    }
    if slices.is_empty() {
        return vec![no_endpoints("endpoint slices", unread.why_none(&service.name))];
    }
    let besides = unread.besides(&service.name);
    let mut found = Vec::new();
    let joins = |name: &str, protocol: Protocol, slice: &EndpointSlice| {
        slice.ports.iter().any(|port| *port.name == *name && port.protocol == protocol)
    };
    let of_service = || list(service.ports.iter().map(|port| (&*port.name, port.protocol)));
    for port in &service.ports {
        if !slices.iter().any(|slice| joins(&port.name, port.protocol, slice)) {
            let of_slices: BTreeSet<(&str, Protocol)> =
                slices.iter().flat_map(|slice| &slice.ports).map(|port| (&*port.name, port.protocol)).collect();
            let (own, theirs) = (shown(&port.name, port.protocol), list(of_slices.into_iter()));
            let says =
                format!("{own} is in none of its EndpointSlices, which have {theirs}{besides}: it has no backends");
            found.push(no_endpoints("ports", says));
        }
    }
    for slice in slices.iter().filter(|slice| !slice.endpoints.is_empty()) {
        let is_used = service.ports.iter().any(|port| joins(&port.name, port.protocol, slice));
        if !is_used {
            let theirs = list(slice.ports.iter().map(|port| (&*port.name, port.protocol)));
            let says = format!("it has {theirs}, and the service {}: its endpoints get nothing", of_service());
            let object = Some(format!("EndpointSlice {}", slice.name));
            found.push(Remark { kind: ENDPOINTS_UNUSED, object, field: "ports".into(), says });
        }
    }
    let has = |family| slices.iter().flat_map(|slice| &slice.endpoints).any(|it| Family::of(it.ip) == family);
    let addresses = [&service.cluster_ips, &service.load_balancer_ips, &service.external_ips];
    let wants = |family| addresses.iter().copied().flatten().any(|ip| Family::of(*ip) == family);
    for (family, other, name) in [(Family::V4, Family::V6, "IPv4"), (Family::V6, Family::V4, "IPv6")] {
        if wants(family) && !has(family) && has(other) {
            let says = format!(
                "none of its EndpointSlices has an {name} endpoint{besides}: its {name} addresses have no backends"
            );
            found.push(no_endpoints("endpoint slices", says));
        }
    }
    found
}

/// A pod of this node whose host port is for an address that the node does not have.
fn host_ip_elsewhere(model: &Model, service: &Service) -> Option<Remark> {
    let Some(HostIps::One(ip)) = service.host_ips else { return None };
    let says = match &*model.node().ips {
        [] => format!("the node has no address, and so not {ip}: nobody is served there"),
        own => format!("{ip} is not an address of this node, which has {}: nobody is served there", named(own.iter())),
    };
    Some(Remark { kind: HOST_IP_ELSEWHERE, object: None, field: "hostIP".into(), says })
}

/// A service whose node ports no address has, since the chosen networks have none of the node's addresses.
fn node_ports_nowhere(model: &Model, service: &Service) -> Option<Remark> {
    let (chosen, own) = (&model.settings().node_port_addresses, &model.node().ips);
    let has_node_ports = service.ports.iter().any(|port| port.node_port.is_some());
    let is_served = || model.frontends(service).any(|frontend| frontend.kind == FrontendKind::NodePort);
    if chosen.is_empty() || own.is_empty() || !has_node_ports || is_served() {
        return None;
    }
    let says = format!(
        "node-port-addresses has {}, and this node has {}: nobody is served at its node ports",
        named(chosen.iter()),
        named(own.iter())
    );
    Some(Remark { kind: NODE_PORTS_NOWHERE, object: None, field: "nodePort".into(), says })
}

/// Why an address is no backend of a port of a service, if its endpoint slices or those of others say.
pub(crate) fn why_absent(model: &Model, port: &ServicePortName, wanted: &BackendQuery) -> Option<String> {
    let mut slices = model.endpoint_slices().filter(|slice| slice.endpoints.iter().any(|it| it.ip == wanted.ip));
    let own = slices.clone().find(|slice| slice.service == port.service);
    let slice = own.or_else(|| slices.next())?;
    if slice.service != port.service {
        return Some(format!("it is an endpoint of EndpointSlice {} of service {}", slice.name, slice.service));
    }
    let joined = slice.ports.iter().find(|it| it.name == port.port);
    let theirs = || list(slice.ports.iter().map(|port| (&*port.name, port.protocol)));
    Some(match (joined, wanted.port) {
        (Some(joined), Some(asked)) if joined.port != asked => {
            format!("EndpointSlice {} has it with port {}", slice.name, joined.port)
        }
        (Some(_), _) => format!("it is an endpoint of EndpointSlice {}, of another family or protocol", slice.name),
        (None, _) => {
            let name = if port.port.is_empty() { "without a name".to_owned() } else { format!("`{}`", port.port) };
            format!("it is an endpoint of EndpointSlice {}, which has {}, and the port is {name}", slice.name, theirs())
        }
    })
}

/// Ports by name and protocol.
fn list<'a>(ports: impl ExactSizeIterator<Item = (&'a str, Protocol)>) -> String {
    if ports.len() == 0 {
        return "no port".to_owned();
    }
    named(ports.map(|(name, protocol)| shown(name, protocol)))
}

fn shown(name: &str, protocol: Protocol) -> String {
    if name.is_empty() { format!("a port without a name ({protocol})") } else { format!("port `{name}` ({protocol})") }
}

#[cfg(test)]
mod tests {
    use lb_core::{
        datapath::Capabilities,
        model::{Change, Settings},
        name::NodeName,
        node::NodeFacts,
    };
    use lb_k8s::{Manifests, Snapshot};

    use super::*;

    /// What these manifests, each of a source of its own, say about a service, as conditions.
    fn said(texts: &[&str], service: &str) -> Vec<String> {
        let (model, reports) = world(texts);
        let of = of_services(&model, &reports).remove(service).unwrap_or_default();
        of.iter().map(Remark::condition).map(|it| format!("{}: {}", it.kind, it.message)).collect()
    }

    /// The first source that has a service counts.
    fn world(texts: &[&str]) -> (Model, Vec<(SourceName, Arc<Report>)>) {
        let mut model = Model::new(Settings::default(), Capabilities::all("memory"));
        let mut reports = Vec::new();
        for (number, text) in texts.iter().enumerate().rev() {
            let source = SourceName(format!("source-{number}"));
            let batch = Manifests::new(source.clone()).update(Snapshot::parse("x.yaml", text));
            assert!(batch.report.rejected.is_none(), "{:?}", batch.report.rejected);
            batch.changes.into_iter().for_each(|change| drop(model.apply(change)));
            reports.push((source, batch.report));
        }
        (model, reports)
    }

    fn service(name: &str, spec: &str) -> String {
        format!("---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n")
    }

    fn slice(name: &str, of: &str, rest: &str) -> String {
        let labels = format!("{{kubernetes.io/service-name: {of}}}");
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, labels: {labels}}}, \
             addressType: IPv4, {rest}}}\n"
        )
    }

    #[test]
    fn every_service_of_the_example_manifests_has_backends_and_nothing_is_to_say() {
        let mut model = Model::new(Settings::default(), Capabilities::all("memory"));
        let mut manifests = Manifests::new(SourceName("manifests".into())).allocating();
        let batch = manifests.reload(&[concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/manifests")]);
        assert!(batch.report.is_clean(), "{:?}", batch.report);
        batch.changes.into_iter().for_each(|change| drop(model.apply(change).unwrap()));
        assert_eq!(model.services().count(), 3);
        for service in model.services() {
            for frontend in model.frontends(service) {
                let family = frontend.addr.family();
                let selection = model.selection(service, frontend.port, family, service.internal_traffic_policy);
                assert!(!selection.usable.is_empty(), "{} has no backends", frontend.addr);
            }
        }
        assert!(of_services(&model, &[(SourceName("manifests".into()), batch.report)]).is_empty());
    }

    #[test]
    fn a_host_port_at_an_address_of_another_node_is_named() {
        let pod = "{apiVersion: v1, kind: Pod, metadata: {name: web, uid: a}, spec: {nodeName: here, containers: [{name: c, \
                   ports: [{containerPort: 80, hostPort: 8080, hostIP: 192.0.2.7}]}]}, status: {podIP: 10.244.0.5}}";
        let mut model = Model::new(Settings::default(), Capabilities::all("memory"));
        let mut manifests = Manifests::new(SourceName("manifests".into())).on_node(Some(NodeName::new("here")));
        let batch = manifests.update(Snapshot::parse("x.yaml", pod));
        assert!(batch.report.refused.is_empty(), "{:?}", batch.report);
        batch.changes.into_iter().for_each(|change| drop(model.apply(change).unwrap()));
        let mut said = |ips: &[&str]| -> Vec<String> {
            let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            model.apply(Change::SetNode(NodeFacts { ips, ..NodeFacts::default() })).unwrap();
            let of_services = of_services(&model, &[]);
            let of_agent = conditions(&model, &Report::default());
            assert_eq!(of_services.len(), of_agent.len());
            let remarks = of_services.values().flatten().map(Remark::condition);
            remarks.chain(of_agent).map(|it| format!("{}: {}", it.kind, it.message)).collect()
        };
        let found = said(&["192.0.2.1", "2001:db8::1"]);
        let says = "HostIpElsewhere: hostIP: 192.0.2.7 is not an address of this node, which has 192.0.2.1, 2001:db8::1: \
                    nobody is served there";
        assert_eq!(found[0], says);
        let all =
            "HostIpElsewhere: these host ports are for an address that this node does not have: default/web.host-port-";
        assert!(found[1].starts_with(all), "{found:?}");
        assert!(said(&[])[0].contains("the node has no address, and so not 192.0.2.7"));
        assert_eq!(said(&["192.0.2.1", "192.0.2.7"]), [""; 0]);
    }

    #[test]
    fn node_ports_that_no_address_of_the_node_has_are_named() {
        let said = |chosen: &str, spec: &str| -> Vec<String> {
            let settings = Settings::default().with_node_port_addresses([chosen.parse().unwrap()]);
            let mut model = Model::new(settings, Capabilities::all("memory"));
            let ips = vec!["192.0.2.1".parse().unwrap()];
            model.apply(Change::SetNode(NodeFacts { ips, ..NodeFacts::default() })).unwrap();
            let mut manifests = Manifests::new(SourceName("manifests".into()));
            let changes = manifests.update(Snapshot::parse("x.yaml", &service("web", spec))).changes;
            changes.into_iter().for_each(|change| drop(model.apply(change).unwrap()));
            let of_services = of_services(&model, &[]);
            let remarks = of_services.values().flatten().map(Remark::condition);
            let all = remarks.chain(conditions(&model, &Report::default()));
            all.filter(|it| it.kind == NODE_PORTS_NOWHERE).map(|it| it.message).collect()
        };
        let spec = "type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]";
        assert_eq!(
            said("172.16.0.0/12", spec),
            [
                "nodePort: node-port-addresses has 172.16.0.0/12, and this node has 192.0.2.1: nobody is served at its \
                 node ports",
                "no address of this node has the node ports of these services: default/web; see `lb service list`",
            ]
        );
        assert_eq!(said("192.0.2.0/24", spec), [""; 0]);
        assert_eq!(said("172.16.0.0/12", WEB), [""; 0]);
    }

    const WEB: &str = "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]";

    #[test]
    fn a_service_without_slices_says_so_and_one_that_fits_says_nothing() {
        assert_eq!(
            said(&[&service("web", WEB)], "default/web"),
            [
                "NoEndpoints: endpoint slices: no EndpointSlice names it in the label kubernetes.io/service-name: it has no \
              backends"
            ]
        );
        let fits = service("web", WEB)
            + &slice("web-1", "web", "ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.0.0.1]}]");
        assert_eq!(said(&[&fits], "default/web"), [""; 0]);
        let headless = service("web", "clusterIP: None, ports: [{name: http, port: 80}]");
        assert_eq!(said(&[&headless], "default/web"), [""; 0]);
    }

    #[test]
    fn a_slice_whose_port_is_none_of_the_services_is_named_with_both() {
        let text = service("web", WEB)
            + &slice("web-1", "web", "ports: [{name: web, port: 8080}], endpoints: [{addresses: [10.0.0.1]}]");
        assert_eq!(
            said(&[&text], "default/web"),
            [
                "NoEndpoints: ports: port `http` (tcp) is in none of its EndpointSlices, which have port `web` (tcp): it has \
                 no backends",
                "EndpointsUnused: EndpointSlice default/web-1: ports: it has port `web` (tcp), and the service port `http` \
                 (tcp): its endpoints get nothing",
            ]
        );
    }

    #[test]
    fn a_family_without_endpoints_is_named() {
        let text = service("web", "clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80}]")
            + &slice("web-1", "web", "ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.1]}]");
        let says = "NoEndpoints: endpoint slices: none of its EndpointSlices has an IPv6 endpoint: its IPv6 addresses have no \
                    backends";
        assert_eq!(said(&[&text], "default/web"), [says]);
    }

    #[test]
    fn what_is_wrong_with_a_slice_stands_on_its_service() {
        let good =
            slice("web-1", "web", "ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.0.0.1, 10.0.0.2]}]");
        let refused = slice("web-2", "web", "ports: [{name: http, port: 0}]");
        let old = slice("web-3", "web", "ports: []").replace("io/v1", "io/v1beta1");
        let endpoints = "---\n{apiVersion: v1, kind: Endpoints, metadata: {name: web}}\n";
        let found = said(&[&(service("web", WEB) + &good + &refused + &old + endpoints)], "default/web");
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(
            found[0].starts_with("Refused: EndpointSlice default/web-2: ports[0].port: 0 is not a port"),
            "{found:?}"
        );
        let first = "Unsupported: EndpointSlice default/web-1: endpoints[0].addresses: only the first address is used";
        assert!(found[1].starts_with(first), "{found:?}");
        assert!(
            found[2].starts_with("Skipped: EndpointSlice default/web-3: ") && found[2].contains("v1beta1"),
            "{found:?}"
        );
        assert!(found[3].contains("those of kind EndpointSlice in discovery.k8s.io/v1 are"), "{found:?}");
    }

    #[test]
    fn a_slice_of_no_service_makes_no_service_and_is_named() {
        let text = slice("web-1", "wbe", "ports: [{name: http, port: 8080}]")
            + &slice("web-2", "wbe", "ports: [{name: http, port: 0}]")
            + &slice("web-3", "wbe", "ports: []").replace("io/v1", "io/v1beta1");
        let (model, reports) = world(&[&text]);
        assert!(of_services(&model, &reports).is_empty());
        let says = "EndpointSlices name Services that are not there, and get nothing: EndpointSlice default/web-1 names \
                    default/wbe";
        assert_eq!(conditions(&model, &Report::default()), [Condition::new(NO_SERVICE, says)]);
    }

    #[test]
    fn a_service_whose_slices_are_not_read_is_told_so() {
        let refused = slice("web-1", "web", "endpoints: [{addresses: [10.1.0.999]}]");
        let old = slice("web-2", "web", "ports: []").replace("io/v1", "io/v1beta1");
        let no_endpoints = |slices: &str| {
            let mut all = said(&[&(service("web", WEB) + slices)], "default/web");
            all.retain(|condition| condition.starts_with(NO_ENDPOINTS));
            all
        };
        let says = "NoEndpoints: endpoint slices: its only EndpointSlice default/web-1 is refused: it has no backends";
        assert_eq!(no_endpoints(&refused), [says]);
        let says = "NoEndpoints: endpoint slices: its only EndpointSlice default/web-2 is skipped: it has no backends";
        assert_eq!(no_endpoints(&old), [says]);
        let says = "NoEndpoints: endpoint slices: none of its EndpointSlices is read: default/web-1 is refused, \
                    default/web-2 is skipped: it has no backends";
        assert_eq!(no_endpoints(&(refused.clone() + &old)), [says]);
        let other = slice("web-3", "web", "ports: [{name: web, port: 80}]");
        let says = "NoEndpoints: ports: port `http` (tcp) is in none of its EndpointSlices, which have port `web` (tcp) \
                    (not read: default/web-1 is refused): it has no backends";
        assert_eq!(no_endpoints(&(refused + &other)), [says]);
    }

    #[test]
    fn a_service_that_lets_in_more_than_it_asks_for_is_degraded_everywhere() {
        let open = service("web", "clusterIP: 10.96.0.1, ports: [{port: 80}], loadBalancerSourceRange: [10.0.0.0/8]");
        let fits = open + &slice("web-1", "web", "ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.1]}]");
        let says = "spec.loadBalancerSourceRange: there is no such field, so that every source is let in: write \
                    `loadBalancerSourceRanges`";
        assert_eq!(said(&[&fits], "default/web"), [format!("Degraded: {says}")]);
        let (model, reports) = world(&[&fits]);
        let name = ServiceName::new("default", "web");
        assert_eq!(degraded(&model, &reports, &name), [says]);
        assert_eq!(steps(&model, &reports, &name)[0].field, "spec.loadBalancerSourceRange");
        let policy = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}}\n";
        let (model, reports) = world(&[&(fits + policy)]);
        let of_all: Vec<String> = conditions(&model, &reports[0].1).into_iter().map(|it| it.message).collect();
        assert_eq!(
            of_all,
            [
                "policies are not enforced: packets of every source are forwarded: NetworkPolicy deny",
                "there is no such field, so that every source is let in: write `loadBalancerSourceRanges`: Service default/web",
            ]
        );
    }

    #[test]
    fn every_service_that_lets_more_in_or_is_refused_says_so_however_many_findings_there_are() {
        let range = "loadBalancerSourceRange: [10.0.0.0/8], bogus: 1";
        let count = lb_k8s::limits::MAX_FINDINGS_PER_FILE;
        let open = |n: usize| {
            service(
                &format!("s{n}"),
                &format!("clusterIP: 10.96.{}.{}, ports: [{{port: 80}}], {range}", n / 256, n % 256),
            )
        };
        let bad = service("zz", "clusterIP: nonsense, ports: [{port: 80}]");
        let (model, reports) = world(&[&((0..count).map(open).collect::<String>() + &bad)]);
        let services = of_services(&model, &reports);
        let has = |of: &str, kind| services.get(of).is_some_and(|of| of.iter().any(|remark| remark.kind == kind));
        for n in 0..count {
            assert!(has(&format!("default/s{n}"), "Degraded"), "s{n}");
        }
        assert!(has("default/zz", "Refused"));
        let last = ServiceName::new("default", &format!("s{}", count - 1));
        assert_eq!(degraded(&model, &reports, &last).len(), 1, "explain says it");
        let says = format!(
            "there is no such field, so that every source is let in: write `loadBalancerSourceRanges`: Service default/s0, \
             Service default/s1, Service default/s2 and {} more",
            count - 3
        );
        assert!(conditions(&model, &reports[0].1).iter().any(|it| it.message == says));
    }

    #[test]
    fn findings_of_a_copy_do_not_stand_on_the_one_that_is_served() {
        let slice = slice("web-1", "web", "ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.1]}]");
        let plain = service("web", "clusterIP: 10.96.0.1, ports: [{port: 80}]") + &slice;
        let open = service("web", "clusterIP: 10.96.0.1, ports: [{port: 80}], loadBalancerSourceRange: [10.0.0.0/8]");
        assert_eq!(said(&[&(plain.clone() + &open)], "default/web"), [""; 0], "a second document");
        assert_eq!(said(&[&plain, &open], "default/web"), [""; 0], "another source");
        assert_eq!(said(&[&(open + &slice), &plain], "default/web").len(), 1, "the copy that is served says it");
    }

    #[test]
    fn why_an_address_is_no_backend() {
        let text = service("web", WEB)
            + &slice("web-1", "web", "ports: [{name: web, port: 8080}], endpoints: [{addresses: [10.0.0.1]}]")
            + &service("api", &WEB.replace("0.1", "0.2"))
            + &slice("api-1", "api", "ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.0.0.2]}]");
        let (model, _) = world(&[&text]);
        let why = |service: &str, ip: &str, port| {
            let port_name = ServicePortName { service: ServiceName::new("default", service), port: "http".into() };
            why_absent(&model, &port_name, &BackendQuery { ip: ip.parse().unwrap(), port })
        };
        let says =
            "it is an endpoint of EndpointSlice default/web-1, which has port `web` (tcp), and the port is `http`";
        assert_eq!(why("web", "10.0.0.1", None).as_deref(), Some(says));
        let says = "it is an endpoint of EndpointSlice default/api-1 of service default/api";
        assert_eq!(why("web", "10.0.0.2", None).as_deref(), Some(says));
        assert_eq!(
            why("api", "10.0.0.2", Some(81)).as_deref(),
            Some("EndpointSlice default/api-1 has it with port 8080")
        );
        assert_eq!(why("web", "10.0.0.9", None), None);
    }
}
