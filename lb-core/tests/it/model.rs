//! Ownership of frontends, expansion, conditions and the oracle's decisions, one story each.

use core::time::Duration;

use crate::worlds::{ip, port, ready, slice, web};
use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, FrontendKind, Protocol},
    affinity::{Affinity, AffinityRecord},
    datapath::Capabilities,
    decision::{Choice, Decision, Entry, FlowView, Packet, SourceRewrite, Verdict, decide},
    endpoint::Endpoint,
    model::{Change, Degraded, Model, ModelError, Settings},
    name::{NodeName, ServiceName},
    node::NodeFacts,
    service::{Algorithm, Service, TrafficPolicy},
    time::Instant,
};

fn name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn served(model: &Model) -> Vec<String> {
    model.services().map(|service| service.name.name().to_owned()).collect()
}

#[test]
fn a_second_claimant_gets_an_error_that_names_the_owner() {
    let mut model = Model::default();
    model.apply(Change::UpsertService(web("first", "10.96.0.1"))).unwrap();
    let error = model.apply(Change::UpsertService(web("second", "10.96.0.1"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "service default/second claims frontend 10.96.0.1:80/tcp, which belongs to service default/first; \
         give one of them another address or port; until then, the claim waits for service default/first to give the \
         frontend up"
    );
    assert_eq!(served(&model), ["first"]);
    assert_eq!(model.refused().count(), 1);
}

#[test]
fn an_address_is_handed_over_within_a_batch_in_order() {
    let mut model = Model::default();
    model.apply(Change::UpsertService(web("first", "10.96.0.1"))).unwrap();
    model.apply(Change::RemoveService(name("first"))).unwrap();
    model.apply(Change::UpsertService(web("second", "10.96.0.1"))).unwrap();
    assert_eq!(served(&model), ["second"]);
}

#[test]
fn a_refused_claimant_gets_the_address_when_it_becomes_free() {
    let mut model = Model::default();
    model.apply(Change::UpsertService(web("first", "10.96.0.1"))).unwrap();
    model.apply(Change::UpsertService(web("second", "10.96.0.1"))).unwrap_err();
    let touched = model.apply(Change::UpsertService(web("first", "10.96.0.9"))).unwrap();
    assert_eq!(touched.len(), 2, "both services changed: {touched:?}");
    assert_eq!(served(&model), ["first", "second"]);
    assert_eq!(model.refused().count(), 0);
}

#[test]
fn a_refused_version_leaves_the_last_good_one_in_service() {
    let mut model = Model::default();
    model.apply(Change::UpsertService(web("a", "10.96.0.1"))).unwrap();
    let bad = Service { ports: vec![port("http", Protocol::Tcp, 0)], ..web("a", "10.96.0.1") };
    let error = model.apply(Change::UpsertService(bad)).unwrap_err();
    assert_eq!(error.to_string(), "service default/a: port is 0, expected 1..=65535");
    assert_eq!(model.service(&name("a")).unwrap().ports[0].port, 80);
}

#[test]
fn fields_out_of_range_are_refused_by_name() {
    let affinity = |seconds, prefix_v4, prefix_v6| Service {
        affinity: Some(Affinity { timeout: Duration::from_secs(seconds), prefix_v4, prefix_v6 }),
        ..web("a", "10.96.0.1")
    };
    let node_port = Service {
        ports: vec![lb_core::service::ServicePort { node_port: Some(0), ..port("http", Protocol::Tcp, 80) }],
        ..web("a", "10.96.0.1")
    };
    let cases = [
        (affinity(0, 32, 128), "service default/a: affinity time-out in seconds is 0, expected at least 1"),
        (affinity(1, 33, 128), "service default/a: affinity prefix for IPv4 is 33, expected 0..=32"),
        (affinity(1, 32, 129), "service default/a: affinity prefix for IPv6 is 129, expected 0..=128"),
        (node_port, "service default/a: node port is 0, expected 1..=65535"),
        (
            Service { health_check_node_port: Some(0), ..web("a", "10.96.0.1") },
            "service default/a: health-check node port is 0, expected 1..=65535",
        ),
        (
            web("a", "127.0.0.1"),
            "service default/a: cluster address 127.0.0.1 cannot be used: it is unspecified, loopback, multicast or \
             link-local",
        ),
        (
            Service { external_ips: vec![ip("10.96.0.1")], ..web("a", "10.96.0.1") },
            "service default/a lists frontend 10.96.0.1:80/tcp twice",
        ),
    ];
    for (service, expected) in cases {
        let error = Model::default().apply(Change::UpsertService(service)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let error = Model::default().apply(Change::ReplaceEndpoints(slice("a", [ready("0.0.0.0")]))).unwrap_err();
    assert!(matches!(error, ModelError::BadAddress { .. }), "{error}");
}

#[test]
fn a_service_expands_to_every_address_with_every_port() {
    let mut model = Model::default();
    let node = NodeFacts { ips: vec![ip("172.18.0.2"), ip("fd00::2")], ..NodeFacts::default() };
    model.apply(Change::SetNode(node)).unwrap();
    let service = Service {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        external_ips: vec![ip("192.0.2.1")],
        load_balancer_ips: vec![ip("20.0.0.1")],
        ports: vec![
            port("dns", Protocol::Udp, 53),
            lb_core::service::ServicePort { node_port: Some(30053), ..port("dns-tcp", Protocol::Tcp, 53) },
        ],
        ..Service::new(name("dns"))
    };
    let frontends: Vec<String> = model.frontends(&service).map(|f| format!("{} {}", f.kind, f.addr)).collect();
    let expected = [
        "ClusterIP 10.96.0.1:53/udp",
        "ClusterIP [fd00:96::1]:53/udp",
        "LoadBalancer 20.0.0.1:53/udp",
        "ExternalIP 192.0.2.1:53/udp",
        "ClusterIP 10.96.0.1:53/tcp",
        "ClusterIP [fd00:96::1]:53/tcp",
        "LoadBalancer 20.0.0.1:53/tcp",
        "ExternalIP 192.0.2.1:53/tcp",
        "NodePort 172.18.0.2:30053/tcp",
        "NodePort [fd00::2]:30053/tcp",
    ];
    assert_eq!(frontends, expected);
    let headless = Service { cluster_ips: vec![], external_ips: vec![], load_balancer_ips: vec![], ..service };
    assert_eq!(model.frontends(&headless).filter(|f| f.kind != FrontendKind::NodePort).count(), 0);
}

#[test]
fn services_have_other_ports_of_one_cluster_address() {
    let mut model = Model::default();
    let service = |name: &str, number| Service {
        cluster_ips: vec![ip("10.96.0.1")],
        ports: vec![port("", Protocol::Tcp, number)],
        ..Service::new(ServiceName::new("default", name))
    };
    model.apply(Change::UpsertService(service("a", 80))).unwrap();
    model.apply(Change::UpsertService(service("b", 81))).unwrap();
    assert_eq!((served(&model).len(), model.owners().count()), (2, 2));
}

#[test]
fn node_ports_are_on_the_node_addresses_of_their_family_alone() {
    let mut model = Model::default();
    model
        .apply(Change::SetNode(NodeFacts { ips: vec![ip("172.18.0.2"), ip("fd00::2")], ..NodeFacts::default() }))
        .unwrap();
    let service = |name: &str, family| Service {
        ports: vec![lb_core::service::ServicePort { node_port: Some(30053), ..port("dns", Protocol::Tcp, 53) }],
        node_port_family: family,
        ..Service::new(ServiceName::new("default", name))
    };
    let at = |family| {
        let frontends: Vec<_> = model.frontends(&service("a", family)).map(|frontend| frontend.addr.ip).collect();
        frontends
    };
    assert_eq!(at(None), [ip("172.18.0.2"), ip("fd00::2")]);
    assert_eq!(at(Some(Family::V4)), [ip("172.18.0.2")]);
    assert_eq!(at(Some(Family::V6)), [ip("fd00::2")]);
    model.apply(Change::UpsertService(service("a", Some(Family::V6)))).unwrap();
    model.apply(Change::UpsertService(service("b", Some(Family::V4)))).unwrap();
    assert_eq!(model.owners().count(), 2, "neither claims the port of the other one's family");
}

#[test]
fn what_a_datapath_lacks_is_a_condition_and_the_service_still_serves() {
    let capabilities = Capabilities::all("test")
        .with_algorithms([Algorithm::Random])
        .with_frontends([FrontendKind::ClusterIp])
        .with_external_traffic_policy_local(false)
        .with_affinity(None);
    let mut model = Model::new(Settings::default(), capabilities);
    let service = Service {
        load_balancer_ips: vec![ip("20.0.0.1")],
        algorithm: Some(Algorithm::Maglev),
        affinity: Some(Affinity::default()),
        external_traffic_policy: TrafficPolicy::Local,
        ..web("a", "10.96.0.1")
    };
    model.apply(Change::UpsertService(service.clone())).unwrap();
    model.apply(Change::ReplaceEndpoints(slice("a", ["10.244.0.1", "10.244.0.2"].map(ready)))).unwrap();
    let degraded: Vec<String> = model.degraded(&service).iter().map(ToString::to_string).collect();
    let expected = [
        "algorithm maglev is not supported by this datapath, random is used",
        "LoadBalancer frontends are not supported by this datapath",
        "external traffic policy Local is not supported by this datapath, Cluster is used",
        "session affinity is not supported by this datapath",
    ];
    assert_eq!(degraded, expected);
    let decision = decision(&model, "10.244.0.9", "10.96.0.1", Entry::PodDevice);
    assert!(
        matches!(decision.verdict, Verdict::Forward(ref f) if matches!(&f.choice, Choice::OneOf(w) if w.len() == 2))
    );
    let decision = decision_for(&model, packet("10.244.0.9", "20.0.0.1", Entry::Uplink), FlowView::default(), 0);
    assert_eq!(decision.verdict, Verdict::Pass, "no frontend of the address is carried");
    assert!(!model.degraded(&service).contains(&Degraded::AffinityPrefix));
}

fn packet(source: &str, destination: &str, entry: Entry) -> Packet {
    Packet {
        entry,
        protocol: Protocol::Tcp,
        source: ip(source),
        source_port: 40_000,
        destination: ip(destination),
        destination_port: 80,
    }
}

fn decision_for(model: &Model, packet: Packet, flow: FlowView, now: u64) -> Decision {
    decide(model, &packet, &flow, Instant::new(Duration::from_secs(now)))
}

fn decision(model: &Model, source: &str, destination: &str, entry: Entry) -> Decision {
    decision_for(model, packet(source, destination, entry), FlowView::default(), 0)
}

fn tcp(address: &str) -> BackendAddr {
    BackendAddr::new(ip(address), 8080, Protocol::Tcp)
}

/// Node `here` with one pod CIDR and a service `a` on 10.96.0.1:80 with the endpoints given.
fn world(service: Service, endpoints: impl IntoIterator<Item = Endpoint>) -> Model {
    let mut model = Model::default();
    let node = NodeFacts {
        name: Some(NodeName::new("here")),
        ips: vec![ip("172.18.0.2")],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
    };
    model.apply(Change::SetNode(node)).unwrap();
    model.apply(Change::UpsertService(service)).unwrap();
    model.apply(Change::ReplaceEndpoints(slice("a", endpoints))).unwrap();
    model
}

fn forward(decision: &Decision) -> &lb_core::decision::Forward {
    match &decision.verdict {
        Verdict::Forward(forward) => forward,
        other => panic!("not forwarded: {other:?}, {:#?}", decision.steps),
    }
}

#[test]
fn pods_keep_their_source_and_everybody_else_is_translated() {
    let model = world(web("a", "10.96.0.1"), [ready("10.244.0.1")]);
    let translated = SourceRewrite::Translated { addr: Some(ip("172.18.0.2")), ports: 1..=65535 };
    let pod = decision(&model, "10.244.0.9", "10.96.0.1", Entry::PodDevice);
    assert_eq!(forward(&pod).choice, Choice::Exactly(tcp("10.244.0.1")));
    assert_eq!(forward(&pod).source_rewrite(ip("10.244.0.9"), tcp("10.244.0.1")), &SourceRewrite::Kept);
    let hairpin = decision(&model, "10.244.0.1", "10.96.0.1", Entry::PodDevice);
    assert_eq!(forward(&hairpin).source_rewrite(ip("10.244.0.1"), tcp("10.244.0.1")), &translated);
    let outside = decision(&model, "203.0.113.7", "10.96.0.1", Entry::Uplink);
    assert_eq!(forward(&outside).source_rewrite(ip("203.0.113.7"), tcp("10.244.0.1")), &translated);
}

#[test]
fn of_several_addresses_the_route_chooses_the_source_where_the_datapath_asks_it() {
    let plain = world(web("a", "10.96.0.1"), [ready("10.244.0.1")]);
    let ports = plain.capabilities().translated_ports.clone();
    for (routed, others, expected) in [
        (true, vec!["198.51.100.1"], None),
        (true, vec!["2001:db8::1"], Some(ip("172.18.0.2"))),
        (false, vec!["198.51.100.1"], Some(ip("172.18.0.2"))),
    ] {
        let capabilities = plain.capabilities().clone().with_routed_sources(routed);
        let mut model = Model::new(Settings::default(), capabilities);
        let mut node = plain.node().clone();
        node.ips.extend(others.iter().map(|other| ip(other)));
        model.apply(Change::SetNode(node)).unwrap();
        model.apply(Change::UpsertService(web("a", "10.96.0.1"))).unwrap();
        model.apply(Change::ReplaceEndpoints(slice("a", [ready("10.244.0.1")]))).unwrap();
        let outside = decision(&model, "203.0.113.7", "10.96.0.1", Entry::Uplink);
        let translated = SourceRewrite::Translated { addr: expected, ports: ports.clone() };
        assert_eq!(forward(&outside).source, translated, "{others:?}");
    }
}

#[test]
fn no_backend_is_refused_and_none_by_policy_is_dropped() {
    let unready = Endpoint {
        conditions: lb_core::endpoint::Conditions { ready: false, serving: false, terminating: false },
        ..ready("10.244.0.1")
    };
    let model = world(web("a", "10.96.0.1"), [unready]);
    let refused = decision(&model, "10.244.0.9", "10.96.0.1", Entry::PodDevice);
    assert_eq!(refused.verdict, Verdict::Reject);
    assert_eq!(refused.rejected.len(), 1);
    let local = Service { internal_traffic_policy: TrafficPolicy::Local, ..web("a", "10.96.0.1") };
    let there = Endpoint { node: Some(NodeName::new("there")), ..ready("10.244.0.1") };
    let dropped = decision(&world(local, [there]), "10.244.0.9", "10.96.0.1", Entry::PodDevice);
    assert_eq!(dropped.verdict, Verdict::Drop);
}

#[test]
fn external_policy_local_keeps_the_source_and_binds_outside_traffic_only() {
    let service = Service {
        load_balancer_ips: vec![ip("20.0.0.1")],
        external_traffic_policy: TrafficPolicy::Local,
        ..web("a", "10.96.0.1")
    };
    let here = Endpoint { node: Some(NodeName::new("here")), ..ready("10.244.0.1") };
    let there = Endpoint { node: Some(NodeName::new("there")), ..ready("10.244.1.1") };
    let model = world(service, [here, there]);
    let outside = decision(&model, "203.0.113.7", "20.0.0.1", Entry::Uplink);
    assert_eq!(forward(&outside).choice, Choice::Exactly(tcp("10.244.0.1")));
    assert_eq!(forward(&outside).source, SourceRewrite::Kept);
    let inside = decision(&model, "10.244.0.9", "20.0.0.1", Entry::PodDevice);
    assert!(matches!(&forward(&inside).choice, Choice::OneOf(weights) if weights.len() == 2));
    let cluster = decision(&model, "203.0.113.7", "10.96.0.1", Entry::Uplink);
    assert!(matches!(forward(&cluster).source, SourceRewrite::Translated { .. }));
}

#[test]
fn affinity_sticks_until_the_time_out_and_to_live_backends_only() {
    let service = Service {
        affinity: Some(Affinity { timeout: Duration::from_secs(10), ..Affinity::default() }),
        ..web("a", "10.96.0.1")
    };
    let model = world(service, ["10.244.0.1", "10.244.0.2"].map(ready));
    let record = |backend: &str| FlowView {
        affinity: Some(AffinityRecord { backend: tcp(backend), last_use: Instant::new(Duration::from_secs(100)) }),
        ..FlowView::default()
    };
    let packet = packet("10.244.0.9", "10.96.0.1", Entry::PodDevice);
    let stuck = decision_for(&model, packet, record("10.244.0.2"), 109);
    assert_eq!(forward(&stuck).choice, Choice::Exactly(tcp("10.244.0.2")));
    let expired = decision_for(&model, packet, record("10.244.0.2"), 110);
    assert!(matches!(forward(&expired).choice, Choice::OneOf(_)));
    let dead = decision_for(&model, packet, record("10.244.0.3"), 109);
    assert!(matches!(forward(&dead).choice, Choice::OneOf(_)));
}

#[test]
fn maglev_under_affinity_leaves_the_source_port_out() {
    let backends = ["10.244.0.1", "10.244.0.2", "10.244.0.3"].map(ready);
    let choices = |affinity| {
        let service = Service { algorithm: Some(Algorithm::Maglev), affinity, ..web("a", "10.96.0.1") };
        let model = world(service, backends.clone());
        let of = |source_port| {
            let packet = Packet { source_port, ..packet("203.0.113.7", "10.96.0.1", Entry::Uplink) };
            match &forward(&decision_for(&model, packet, FlowView::default(), 0)).choice {
                Choice::Exactly(backend) => *backend,
                drawn => panic!("{drawn}"),
            }
        };
        (40_000..40_064).map(of).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(choices(Some(Affinity::default())).len(), 1, "nodes agree about a client without a record");
    assert_eq!(choices(None).len(), 3);
}

#[test]
fn least_connections_may_take_either_of_two_slots_of_the_hash() {
    let heavy = Endpoint { weight: 300, ..ready("10.244.0.2") };
    let ends = [ready("10.244.0.1"), heavy, ready("10.244.0.4"), Endpoint { weight: 0, ..ready("10.244.0.3") }];
    let service = Service { algorithm: Some(Algorithm::LeastConnections), ..web("a", "10.96.0.1") };
    let model = world(service.clone(), ends.clone());
    let (mut taken, mut both) = (std::collections::BTreeMap::new(), 0);
    for source_port in 40_000..41_000 {
        let packet = Packet { source_port, ..packet("10.244.0.9", "10.96.0.1", Entry::PodDevice) };
        let decision = decision_for(&model, packet, FlowView::default(), 0);
        let step = decision.steps.iter().find(|step| step.field == "algorithm").unwrap();
        assert!(step.says.starts_with("least-connections: flow hash 0x"), "{}", step.says);
        let candidates: Vec<_> = match &forward(&decision).choice {
            Choice::Exactly(backend) => vec![*backend; 2],
            Choice::OneOf(both) => both.keys().copied().collect(),
        };
        both += usize::from(candidates[0] != candidates[1]);
        for backend in candidates {
            assert!(step.says.contains(&backend.to_string()), "{}", step.says);
            *taken.entry(backend).or_insert(0) += 1;
        }
    }
    // Three of five slots are the heavy one's, so that both candidates are alike in 11 of 25 cases.
    let share = |addr: &str| taken.get(&tcp(addr)).copied().unwrap_or(0);
    assert!((1_100..1_300).contains(&share("10.244.0.2")), "{taken:?}");
    assert!((300..500).contains(&share("10.244.0.1")) && (300..500).contains(&share("10.244.0.4")), "{taken:?}");
    assert_eq!(share("10.244.0.3"), 0);
    assert!((500..620).contains(&both), "{both}");
    let mut desired = lb_core::desired::Desired::default();
    desired.update(&model, &[name("a")].into()).unwrap();
    let set = desired.state().sets.values().next().unwrap();
    assert_eq!((set.lookup, set.slots.len()), (lb_core::state::Lookup::LeastConnections, 5));

    let plain = Capabilities::all("test").with_algorithms([Algorithm::Random]);
    let model = Model::new(Settings::default().with_algorithm(Algorithm::LeastConnections), plain);
    let expected = Degraded::Algorithm { asked: Algorithm::LeastConnections, used: Algorithm::Random };
    assert_eq!(model.degraded(&web("b", "10.96.0.2")), [expected].into());
}

#[test]
fn established_tcp_keeps_a_removed_backend_and_udp_does_not() {
    let udp = Service { ports: vec![port("http", Protocol::Udp, 80)], ..web("b", "10.96.0.2") };
    let mut model = world(web("a", "10.96.0.1"), [ready("10.244.0.1")]);
    model.apply(Change::UpsertService(udp)).unwrap();
    let mut endpoints = slice("b", [ready("10.244.0.1")]);
    endpoints.ports[0].protocol = Protocol::Udp;
    model.apply(Change::ReplaceEndpoints(endpoints)).unwrap();
    let gone =
        |protocol| FlowView { established: Some(BackendAddr { protocol, ..tcp("10.244.0.7") }), ..FlowView::default() };
    let kept = decision_for(&model, packet("10.244.0.9", "10.96.0.1", Entry::PodDevice), gone(Protocol::Tcp), 0);
    assert_eq!(forward(&kept).choice, Choice::Exactly(tcp("10.244.0.7")));
    let datagram = Packet { protocol: Protocol::Udp, ..packet("10.244.0.9", "10.96.0.2", Entry::PodDevice) };
    let anew = decision_for(&model, datagram, gone(Protocol::Udp), 0);
    let expected = BackendAddr { protocol: Protocol::Udp, ..tcp("10.244.0.1") };
    assert_eq!(forward(&anew).choice, Choice::Exactly(expected));
}

#[test]
fn an_address_without_frontends_is_passed_on() {
    let model = world(web("a", "10.96.0.1"), [ready("10.244.0.1")]);
    let decision = decision(&model, "10.244.0.9", "10.96.0.2", Entry::PodDevice);
    assert_eq!(decision.verdict, Verdict::Pass);
    assert_eq!(decision.steps[0].object, "frontend 10.96.0.2:80/tcp");
    assert_eq!(
        model.owner(&FrontendAddr::new(ip("10.96.0.1"), 80, Protocol::Tcp)).unwrap().kind,
        FrontendKind::ClusterIp
    );
}
