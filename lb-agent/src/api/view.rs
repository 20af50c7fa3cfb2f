//! The model, in the words of the API. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{
    addr::{BackendAddr, FrontendKind},
    decision::{BackendQuery, Decision, Packet, SourceRewrite, Verdict},
    model::{Degraded, Model, ServiceFrontend},
    name::{ServiceName, ServicePortName, SliceName},
    reconciler::Reconciler,
    selection::select,
    service::{ServicePort, ServiceType, TrafficPolicy},
    time::Instant,
};
use lb_k8s::{Finding, Instead, Report};

use crate::{
    api::{
        self, Affinity, Algorithm, Backend, BackendCount, Choice, Condition, Counts, Explanation, Frontend,
        FrontendStatus, Rejected, Rewrite, Service, ServiceKind, SourceRanges, Step, Verification, Weighted, WhyNot,
        remarks::{self, Reports},
    },
    engine::inspection::Verified,
};

impl Condition {
    pub(crate) fn new(kind: &str, message: &str) -> Self {
        Self { kind: kind.into(), message: message.into() }
    }
}

/// Every service that is served or refused, in order of name.
pub(crate) fn services(reconciler: &Reconciler, reports: &Reports) -> Vec<Service> {
    let model = reconciler.model();
    let mut found: BTreeMap<String, Service> =
        model.services().map(|service| (service.name.to_string(), served(reconciler, service))).collect();
    let refused =
        model.refused().map(|(name, error)| (name.to_string(), Condition::new("Refused", &error.to_string())));
    let remarks = remarks::of_services(model, reports).into_iter();
    let remarks = remarks.flat_map(|(name, of)| of.into_iter().map(move |remark| (name.clone(), remark.condition())));
    for (name, condition) in refused.chain(remarks) {
        let service = found.entry(name).or_insert_with_key(|name| absent(name));
        service.conditions.push(condition);
    }
    found.into_values().collect()
}

/// Why the newest manifest of a pool was not accepted.
pub(crate) fn refusals_of_pool(report: &Report, pool: &str) -> impl Iterator<Item = Condition> {
    let is_of_it = move |finding: &Finding| finding.object.is_pool() && finding.object.name == pool;
    let refused = report.refused.iter().filter(|refusal| refusal.instead != Instead::First);
    let refused = refused.chain(&report.also_refused).filter(move |refusal| is_of_it(&refusal.finding));
    refused.map(|refusal| Condition::new("Refused", &about(&refusal.finding)))
}

/// Every backend of every port of every service.
pub(crate) fn backends(model: &Model, now: Instant) -> Vec<Backend> {
    let mut found = Vec::new();
    for service in model.services() {
        for port in &service.ports {
            for family in [lb_core::addr::Family::V4, lb_core::addr::Family::V6] {
                let candidates = model.candidates(&service.name, port, family);
                let selection = select(&candidates, &model.rules(service, service.internal_traffic_policy));
                found.extend(candidates.iter().map(|candidate| {
                    let rejected = selection.rejected.iter().find(|(addr, _)| *addr == candidate.addr);
                    Backend {
                        service: service.name.to_string(),
                        port_name: port.name.to_string(),
                        ip: candidate.addr.ip,
                        port: candidate.addr.port,
                        protocol: candidate.addr.protocol.into(),
                        node: candidate.endpoint.node.as_ref().map(ToString::to_string),
                        local: candidate.local,
                        weight: candidate.endpoint.weight,
                        state: candidate.endpoint.state(now).into(),
                        takes_new_flows: rejected.is_none(),
                        reason: rejected.map(|(_, reason)| reason.to_string()),
                    }
                }));
            }
        }
    }
    found
}

/// How many of everything, as the datapath has it.
pub(crate) fn counts(reconciler: &Reconciler) -> Counts {
    let model = reconciler.model();
    let failed = |addr: &lb_core::addr::FrontendAddr| {
        matches!(reconciler.status(addr), lb_core::reconciler::FrontendStatus::Failed { .. })
    };
    let held = reconciler.installed();
    Counts {
        services: model.services().count(),
        frontends: held.map_or(0, |state| state.frontends.len()),
        sets: held.map_or(0, |state| state.sets.len()),
        backends: held.map_or(0, |state| state.backends.len()),
        failed: reconciler.desired().frontends.keys().filter(|addr| failed(addr)).count(),
    }
}

/// What is wrong with the objects, for the agent as a whole.
pub(crate) fn conditions(
    reconciler: &Reconciler,
    report: &Report,
    refused_slices: &BTreeMap<SliceName, String>,
) -> Vec<Condition> {
    let mut found = Vec::new();
    found.extend(report.refused.iter().map(|refusal| Condition::new("Refused", &refusal.to_string())));
    found.extend(further_refused(report));
    found.extend(reconciler.model().refused().map(|(_, error)| Condition::new("Refused", &error.to_string())));
    found.extend(refused_slices.values().map(|error| Condition::new("Refused", error)));
    for addr in reconciler.desired().frontends.keys() {
        if let lb_core::reconciler::FrontendStatus::Failed { cause, .. } = reconciler.status(addr) {
            found.push(Condition::new("FrontendFailed", &format!("{addr}: {cause}")));
        }
    }
    found.extend(degraded(reconciler.model()));
    found.extend(remarks::conditions(reconciler.model(), report));
    found
}

/// How many objects are refused beyond those that are named.
pub(crate) fn further_refused(report: &Report) -> Option<Condition> {
    let further = report.unlisted.refused;
    let message = || format!("{further} more objects are refused, which are not listed; see `lb service list`");
    (further > 0).then(|| Condition::new("Refused", &message()))
}

/// Most services that a condition names.
const MAX_NAMED: usize = 3;

/// Most frontends that a condition or a line of the log names.
const MAX_FRONTENDS: usize = 10;

/// Which frontends are kept although no service has them.
pub(crate) fn kept(reconciler: &Reconciler) -> Option<Condition> {
    let kept: Vec<_> = reconciler.kept().iter().collect();
    let frontends = match kept.len() {
        0 => return None,
        1 => "1 frontend is kept as it was".to_owned(),
        several => format!("{several} frontends are kept as they were"),
    };
    let message = format!(
        "{frontends} found at the start, because some manifests are not read and no other one has such an address: {}; \
         correct or remove the files that the condition ManifestsRejected names",
        few(&kept)
    );
    Some(Condition::new("Kept", &message))
}

/// The step of a decision about a packet to a frontend that is kept although no service has it.
pub(crate) fn kept_step(reconciler: &Reconciler, packet: &Packet) -> Option<Step> {
    let addr = lb_core::addr::FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
    let is_same = |it: &&lb_core::addr::FrontendAddr| lb_core::addr::FrontendAddr { scope: addr.scope, ..**it } == addr;
    reconciler.kept().iter().find(is_same)?;
    let says = "it is kept as it was found at the start, because some manifests are not read and no other one has this \
                address: the datapath still forwards to the backends of that time";
    Some(Step { object: format!("frontend {addr}"), field: "manifest".into(), says: says.into() })
}

/// The first few frontends, and how many more there are.
pub(crate) fn few(frontends: &[&lb_core::addr::FrontendAddr]) -> String {
    let more = match frontends.len().saturating_sub(MAX_FRONTENDS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    frontends.iter().take(MAX_FRONTENDS).map(ToString::to_string).collect::<Vec<_>>().join(", ") + &more
}

/// How services fall short of what they ask for, and which: a condition for each way, however many services there are.
fn degraded(model: &Model) -> impl Iterator<Item = Condition> {
    let mut ways: BTreeMap<Degraded, Vec<&ServiceName>> = BTreeMap::new();
    let (mut sctp, mut of_sctp) = (Vec::new(), BTreeSet::new());
    for service in model.services() {
        for way in model.degraded(service) {
            if let Degraded::SctpPort(frontend) = way {
                sctp.push(frontend);
                of_sctp.insert(&service.name);
            } else {
                ways.entry(way).or_default().push(&service.name);
            }
        }
    }
    sctp.sort_unstable();
    // One of each service's frontends at every address of the node is one thing to correct.
    let sctp = match &*sctp {
        [] => None,
        [frontend] => Some((Degraded::SctpPort(*frontend).to_string(), of_sctp.into_iter().collect())),
        several => {
            let frontends = few(&several.iter().collect::<Vec<_>>());
            let says = format!(
                "{} SCTP frontends are not carried: this datapath cannot rewrite the port of SCTP; give the backends the \
                 same port ({frontends})",
                several.len()
            );
            Some((says, of_sctp.into_iter().collect()))
        }
    };
    let ways = ways.into_iter().map(|(way, services)| (way.to_string(), services));
    ways.chain(sctp).map(|(way, services): (String, Vec<&ServiceName>)| {
        let named: Vec<String> = services.iter().take(MAX_NAMED).map(ToString::to_string).collect();
        let more = match services.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Condition::new("Degraded", &format!("{way}: {}{more}; see `lb service list`", named.join(", ")))
    })
}

/// A decision in words.
pub(crate) fn explanation(model: &Model, packet: &Packet, decision: &Decision) -> Explanation {
    let socket = |ip, port| std::net::SocketAddr::new(ip, port).to_string();
    let forward = match &decision.verdict {
        Verdict::Forward(forward) => Some(forward),
        Verdict::Pass | Verdict::Reject | Verdict::Drop => None,
    };
    let addr = lb_core::addr::FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
    // Known even where the datapath does not carry it and so nothing is decided.
    let owner = model.owner(&addr);
    Explanation {
        protocol: packet.protocol.into(),
        source: socket(packet.source, packet.source_port),
        destination: socket(packet.destination, packet.destination_port),
        entry: packet.entry.into(),
        verdict: (&decision.verdict).into(),
        frontend: decision.frontend.or(owner.map(|_| addr)).map(|addr| addr.to_string()),
        service: owner.map(|owner| owner.port.to_string()),
        choice: forward.map(|forward| choice(&forward.choice)),
        source_rewrite: forward.map(|forward| rewrite(&forward.source)),
        hairpin_rewrite: forward.map(|forward| rewrite(&forward.hairpin_source)),
        degraded: owner
            .and_then(|owner| model.service(&owner.port.service))
            .map_or_else(Vec::new, |service| model.degraded(service).iter().map(ToString::to_string).collect()),
        steps: decision.steps.iter().map(step).collect(),
        rejected: decision
            .rejected
            .iter()
            .map(|(addr, reason)| Rejected { backend: socket(addr.ip, addr.port), reason: reason.to_string() })
            .collect(),
        verification: None,
        why_not: None,
    }
}

/// The port of a service that the destination of a packet belongs to.
pub(crate) fn owner<'a>(model: &'a Model, packet: &Packet) -> Option<&'a ServicePortName> {
    let addr = lb_core::addr::FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
    model.owner(&addr).map(|owner| &owner.port)
}

/// What the kernel says about `packet`, beside what must become of it.
pub(crate) fn verification(packet: &Packet, verified: &Verified) -> Verification {
    let Verified { answer, decision, lost, settled } = verified;
    let mut disagreements = answer.disagreements(packet, decision);
    disagreements.extend(lost.clone());
    Verification {
        agrees: disagreements.is_empty(),
        method: answer.method.clone(),
        steps: answer.steps.clone(),
        kernel: answer.verdict.to_string(),
        disagreements,
        established: answer.flow.established.map(|backend| socket(&backend)),
        affinity: answer.flow.affinity.map(|record| socket(&record.backend)),
        settled: *settled,
    }
}

/// Most slots that are listed.
const MAX_SLOTS: usize = 16;

/// Why a backend is, or is not, the choice.
pub(crate) fn why_not(wanted: BackendQuery, answer: &lb_core::decision::WhyNot) -> WhyNot {
    let slots = answer.slots().cloned().unwrap_or_default();
    WhyNot {
        backend: answer.backend().map_or_else(|| wanted.to_string(), |backend| socket(&backend)),
        answer: answer.into(),
        says: answer.to_string(),
        slot_count: u32::try_from(slots.own.len()).unwrap_or(u32::MAX),
        slots: slots.own.into_iter().take(MAX_SLOTS).collect(),
        table: slots.total,
    }
}

fn socket(backend: &BackendAddr) -> String {
    std::net::SocketAddr::new(backend.ip, backend.port).to_string()
}

fn served(reconciler: &Reconciler, service: &lb_core::service::Service) -> Service {
    let model = reconciler.model();
    let mut frontends: Vec<Frontend> = model
        .frontends(service)
        .filter(|frontend| model.owns(service, frontend))
        .map(|f| listed(reconciler, service, &f))
        .collect();
    frontends.sort_by_key(|frontend| (frontend.ip, frontend.port, frontend.protocol));
    let degraded = model.degraded(service);
    Service {
        name: service.name.to_string(),
        kind: kind(service),
        cluster_ips: service.cluster_ips.clone(),
        headless: service.kind == ServiceType::Headless,
        external_ips: external_ips(service),
        ipam: None,
        ports: service.ports.iter().map(port).collect(),
        frontends,
        health_check: None,
        algorithm: model.algorithm(service).into(),
        affinity: service.affinity.map(|affinity| Affinity {
            timeout_s: affinity.timeout.as_secs(),
            prefix_v4: affinity.prefix_v4,
            prefix_v6: affinity.prefix_v6,
            by_source: service.affinity_by_source,
        }),
        external_traffic_policy: service.external_traffic_policy.into(),
        internal_traffic_policy: service.internal_traffic_policy.into(),
        source_ranges: service
            .source_ranges
            .as_deref()
            .map(|ranges| SourceRanges { policy: ranges.policy().into(), prefixes: ranges.prefixes().to_vec() }),
        drain: service.drain.to_string(),
        conditions: degraded.iter().map(|what| Condition::new("Degraded", &what.to_string())).collect(),
    }
}

fn kind(service: &lb_core::service::Service) -> ServiceKind {
    let has_node_port = service.ports.iter().any(|port| port.node_port.is_some());
    match service.kind {
        ServiceType::LoadBalancer => ServiceKind::LoadBalancer,
        ServiceType::ExternalName => ServiceKind::ExternalName,
        ServiceType::NodePort => ServiceKind::NodePort,
        ServiceType::HostPort => ServiceKind::HostPort,
        // A source that does not say.
        ServiceType::ClusterIp | ServiceType::Headless if has_node_port => ServiceKind::NodePort,
        ServiceType::ClusterIp | ServiceType::Headless => ServiceKind::ClusterIp,
    }
}

/// Of its load balancer first; none twice.
fn external_ips(service: &lb_core::service::Service) -> Vec<IpAddr> {
    let mut all = service.load_balancer_ips.clone();
    all.extend(service.external_ips.iter().filter(|ip| !service.load_balancer_ips.contains(ip)));
    all
}

/// As `kubectl get services` writes it.
fn port(port: &ServicePort) -> String {
    let protocol = port.protocol.to_string().to_uppercase();
    match port.node_port {
        Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
        None => format!("{}/{protocol}", port.port),
    }
}

/// A service of which no version was ever accepted.
fn absent(name: &str) -> Service {
    Service {
        name: name.into(),
        kind: ServiceKind::default(),
        cluster_ips: Vec::new(),
        headless: false,
        external_ips: Vec::new(),
        ipam: None,
        ports: Vec::new(),
        frontends: Vec::new(),
        health_check: None,
        algorithm: Algorithm::default(),
        affinity: None,
        external_traffic_policy: api::TrafficPolicy::default(),
        internal_traffic_policy: api::TrafficPolicy::default(),
        source_ranges: None,
        drain: String::new(),
        conditions: Vec::new(),
    }
}

fn listed(reconciler: &Reconciler, service: &lb_core::service::Service, frontend: &ServiceFrontend<'_>) -> Frontend {
    let model = reconciler.model();
    let candidates = model.candidates(&service.name, frontend.port, frontend.addr.family());
    let selection = select(&candidates, &model.rules(service, policy(service, frontend.kind)));
    let (status, cause) = if model.carries(service, frontend) {
        match reconciler.status(&frontend.addr) {
            lb_core::reconciler::FrontendStatus::Done => (FrontendStatus::Active, None),
            lb_core::reconciler::FrontendStatus::Pending => (FrontendStatus::Pending, None),
            lb_core::reconciler::FrontendStatus::Failed { cause, .. } => (FrontendStatus::Failed, Some(cause)),
        }
    } else {
        (FrontendStatus::NotCarried, None)
    };
    Frontend {
        ip: frontend.addr.ip,
        port: frontend.addr.port,
        protocol: frontend.addr.protocol.into(),
        kind: frontend.kind.into(),
        port_name: frontend.port.name.to_string(),
        backends: BackendCount { active: selection.usable.len(), total: candidates.len() },
        status,
        cause,
    }
}

fn policy(service: &lb_core::service::Service, kind: FrontendKind) -> TrafficPolicy {
    match kind {
        FrontendKind::HostPort => TrafficPolicy::Local,
        FrontendKind::ClusterIp => service.internal_traffic_policy,
        FrontendKind::NodePort | FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
            service.external_traffic_policy
        }
    }
}

fn about(finding: &Finding) -> String {
    if finding.field.is_empty() { finding.message.clone() } else { format!("{}: {}", finding.field, finding.message) }
}

fn choice(choice: &lb_core::decision::Choice) -> Choice {
    let weighted = |addr: &lb_core::addr::BackendAddr, weight| Weighted {
        address: std::net::SocketAddr::new(addr.ip, addr.port).to_string(),
        weight,
    };
    match choice {
        lb_core::decision::Choice::Exactly(addr) => Choice { exact: true, backends: vec![weighted(addr, 1)] },
        lb_core::decision::Choice::OneOf(weights) => {
            Choice { exact: false, backends: weights.iter().map(|(addr, &weight)| weighted(addr, weight)).collect() }
        }
    }
}

fn rewrite(rewrite: &SourceRewrite) -> Rewrite {
    match rewrite {
        SourceRewrite::Kept => Rewrite::Kept,
        SourceRewrite::Translated { addr, ports } => {
            Rewrite::Translated { address: *addr, ports: (*ports.start(), *ports.end()) }
        }
    }
}

fn step(step: &lb_core::decision::Step) -> Step {
    Step { object: step.object.clone(), field: step.field.into(), says: step.says.clone() }
}

#[cfg(test)]
mod tests {
    use lb_core::{
        addr::Protocol,
        datapath::{ApplyError, Capabilities, DatapathError, ErrorKind},
        endpoint::{Endpoint, EndpointSlice, SlicePort},
        model::{Change, Model, Settings},
        name::ServiceName,
        node::NodeFacts,
        service::{Algorithm, DrainPolicy, ServicePort},
        state::State,
    };

    use super::*;
    use crate::api::{self, ExplainQuery, FrontendStatus as Status};

    fn packet(model: &Model, destination: &str) -> Packet {
        let ends = ("198.51.100.1:4000".parse().unwrap(), destination.parse().unwrap());
        ExplainQuery::new(api::Protocol::Tcp, ends.0, ends.1).unwrap().packet(model.node()).unwrap()
    }

    /// A service that asks for Maglev and a node port, on a datapath that has neither.
    fn reconciler() -> Reconciler {
        let mut capabilities = Capabilities::all("small");
        capabilities.algorithms = vec![Algorithm::Random];
        capabilities.frontends = vec![FrontendKind::ClusterIp];
        let mut reconciler = Reconciler::new(Model::new(Settings::default(), capabilities));
        let name = ServiceName::new("default", "web");
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) };
        let endpoint = |ip: &str, weight| Endpoint { weight, ..Endpoint::new(ip.parse().unwrap()) };
        let changes = [
            Change::SetNode(NodeFacts { ips: vec!["192.0.2.1".parse().unwrap()], ..NodeFacts::default() }),
            Change::UpsertService(lb_core::service::Service {
                cluster_ips: vec!["10.96.0.1".parse().unwrap()],
                algorithm: Some(Algorithm::Maglev),
                ports: vec![port],
                ..lb_core::service::Service::new(name.clone())
            }),
            Change::ReplaceEndpoints(EndpointSlice {
                name: SliceName::new("default", "web-1"),
                service: name,
                ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
                endpoints: vec![endpoint("10.0.0.1", 1), endpoint("10.0.0.2", 0)],
            }),
        ];
        changes.into_iter().for_each(|change| reconciler.handle_change(change).unwrap());
        reconciler.handle_observed(State::default());
        reconciler
    }

    fn only(reconciler: &Reconciler) -> Service {
        services(reconciler, &[]).remove(0)
    }

    #[test]
    fn what_the_datapath_lacks_is_a_condition() {
        let service = only(&reconciler());
        let said: Vec<(&str, &str)> =
            service.conditions.iter().map(|it| (it.kind.as_str(), it.message.as_str())).collect();
        assert_eq!(
            said,
            [
                ("Degraded", "algorithm maglev is not supported by this datapath, random is used"),
                ("Degraded", "NodePort frontends are not supported by this datapath"),
            ]
        );
        assert_eq!(service.algorithm, api::Algorithm::Random);
    }

    #[test]
    fn status_has_one_condition_for_each_way_to_fall_short_and_names_a_few_services() {
        let mut capabilities = Capabilities::all("no draining");
        capabilities.drain = false;
        let mut reconciler = Reconciler::new(Model::new(Settings::default(), capabilities));
        for n in 1..=5 {
            let service = lb_core::service::Service {
                drain: DrainPolicy::Cut,
                ..lb_core::service::Service::new(ServiceName::new("default", &format!("web-{n}")))
            };
            reconciler.handle_change(Change::UpsertService(service)).unwrap();
        }
        let said = conditions(&reconciler, &Report::default(), &BTreeMap::new());
        let message = "drain policy cut is not supported by this datapath as it is set up, established flows keep their backend; \
                       eBPF ends them with the setting `destroy-sockets: all`: \
                       default/web-1, default/web-2, default/web-3 and 2 more; see `lb service list`";
        assert_eq!(said, [Condition::new("Degraded", message)]);
    }

    #[test]
    fn frontends_of_sctp_that_are_not_carried_are_one_condition() {
        let said = |addresses: &[&str]| {
            let capabilities = Capabilities::all("fixed ports").with_sctp_ports(false);
            let mut reconciler = Reconciler::new(Model::new(Settings::default(), capabilities));
            let (protocol, name) = (Protocol::Sctp, ServiceName::new("default", "sig"));
            let port = ServicePort { name: "sig".into(), protocol, port: 3868, node_port: None };
            let service = lb_core::service::Service {
                cluster_ips: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
                ports: vec![port],
                ..lb_core::service::Service::new(name.clone())
            };
            reconciler.handle_change(Change::UpsertService(service)).unwrap();
            let slice = EndpointSlice {
                name: SliceName::new("default", "sig-0"),
                service: name,
                ports: vec![SlicePort { name: "sig".into(), protocol, port: 9999 }],
                endpoints: vec![Endpoint::new("10.244.0.1".parse().unwrap())],
            };
            reconciler.handle_change(Change::ReplaceEndpoints(slice)).unwrap();
            let conditions = conditions(&reconciler, &Report::default(), &BTreeMap::new());
            conditions.into_iter().filter(|it| it.kind == "Degraded").map(|it| it.message).collect::<Vec<_>>()
        };
        assert_eq!(
            said(&["10.96.0.1", "10.96.0.2"]),
            [
                "2 SCTP frontends are not carried: this datapath cannot rewrite the port of SCTP; give the backends the same \
              port (10.96.0.1:3868/sctp, 10.96.0.2:3868/sctp): default/sig; see `lb service list`"
            ]
        );
        let one = said(&["10.96.0.1"]);
        assert!(one.len() == 1 && one[0].starts_with("SCTP frontend 10.96.0.1:3868/sctp is not carried"), "{one:?}");
    }

    #[test]
    fn an_explanation_says_how_the_datapath_falls_short() {
        let mut reconciler = reconciler();
        let service = reconciler.model().services().next().unwrap().clone();
        let service = lb_core::service::Service { drain: DrainPolicy::Cut, ..service };
        reconciler.handle_change(Change::UpsertService(service)).unwrap();
        let of = |destination| {
            let model = reconciler.model();
            let packet = packet(model, destination);
            let decision =
                lb_core::decision::decide(model, &packet, &lb_core::decision::FlowView::default(), Instant::default());
            explanation(model, &packet, &decision).degraded
        };
        let said = of("10.96.0.1:80");
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("algorithm maglev is not supported by this datapath"), "{said:?}");
        assert!(of("10.96.0.9:80").is_empty(), "no service, nothing to fall short of");
    }

    #[test]
    fn a_frontend_is_pending_until_it_is_carried() {
        let mut reconciler = reconciler();
        let statuses = |reconciler: &Reconciler| {
            only(reconciler).frontends.iter().map(|frontend| frontend.status.clone()).collect::<Vec<_>>()
        };
        assert_eq!(statuses(&reconciler), [Status::Pending, Status::NotCarried]);
        let plan = reconciler.poll_plan(Instant::default()).unwrap().unwrap();
        reconciler.handle_applied(plan.id, Ok(()), Instant::default());
        assert_eq!(statuses(&reconciler), [Status::Active, Status::NotCarried]);
        assert_eq!(only(&reconciler).frontends[0].backends, BackendCount { active: 1, total: 2 });
    }

    #[test]
    fn a_frontend_that_is_not_carried_is_named() {
        let reconciler = reconciler();
        let model = reconciler.model();
        let packet = packet(model, "192.0.2.1:30080");
        let decision =
            lb_core::decision::decide(model, &packet, &lb_core::decision::FlowView::default(), Instant::default());
        let said = explanation(model, &packet, &decision);
        assert_eq!((said.verdict, said.service.as_deref()), (api::Verdict::Pass, Some("default/web")));
        assert_eq!(said.frontend.as_deref(), Some("192.0.2.1:30080/tcp"));
    }

    #[test]
    fn what_the_datapath_refused_says_why() {
        let mut reconciler = reconciler();
        let plan = reconciler.poll_plan(Instant::default()).unwrap().unwrap();
        let addr = *reconciler.desired().frontends.keys().next().unwrap();
        let cause = DatapathError::new(ErrorKind::Capacity, "table full");
        let outcome = Err(ApplyError { applied: 0, failed: vec![(addr, cause)], unknown: None });
        reconciler.handle_applied(plan.id, outcome, Instant::default());
        let frontend = only(&reconciler).frontends.remove(0);
        assert_eq!((frontend.status, frontend.cause.as_deref()), (Status::Failed, Some("table full")));
        assert_eq!(counts(&reconciler).failed, 1);
        let conditions = conditions(&reconciler, &Report::default(), &BTreeMap::new());
        assert_eq!(conditions[0], Condition::new("FrontendFailed", "10.96.0.1:80/tcp: table full"));
    }

    #[test]
    fn backends_say_why_they_take_nothing() {
        let backends = backends(reconciler().model(), Instant::default());
        let said: Vec<_> =
            backends.iter().map(|backend| (backend.takes_new_flows, backend.reason.as_deref())).collect();
        assert_eq!(said, [(true, None), (false, Some("weight is 0"))]);
    }
}
