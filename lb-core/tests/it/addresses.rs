//! What becomes of packets to addresses of services, beside the choice of a backend.

use crate::worlds::{backend, ip, port, ready, slice, web};
use lb_core::{
    addr::{FrontendAddr, FrontendKind, Protocol},
    datapath::{Capabilities, SocketCapability, SocketHash, SocketOwners},
    decision::{Choice, Entry, FlowView, Forward, Packet, SourceRewrite, Verdict, decide},
    endpoint::{Endpoint, SlicePort},
    model::{Change, Claim, Degraded, Model, ModelError, Settings},
    name::{NodeName, ServiceName},
    node::NodeFacts,
    service::{HostIps, Service, ServicePort, ServiceType},
    state::OtherPorts,
    time::Instant,
};

fn node() -> NodeFacts {
    NodeFacts {
        name: Some(NodeName::new("here")),
        ips: vec![ip("172.18.0.2"), ip("198.51.100.2")],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
    }
}

fn model_with(settings: Settings, capabilities: Capabilities) -> Model {
    let mut model = Model::new(settings, capabilities);
    model.apply(Change::SetNode(node())).unwrap();
    model
}

fn model() -> Model {
    model_with(Settings::default(), Capabilities::all("model"))
}

/// A service of every kind of frontend: `http` on 80, and on node port 30080.
fn everywhere() -> Service {
    Service {
        load_balancer_ips: vec![ip("20.0.0.1")],
        external_ips: vec![ip("192.0.2.1")],
        ports: vec![ServicePort { node_port: Some(30080), ..port("http", Protocol::Tcp, 80) }],
        ..web("a", "10.96.0.1")
    }
}

fn packet(entry: Entry, destination: &str, port: u16) -> Packet {
    let source = match entry {
        Entry::Socket => "172.18.0.2",
        Entry::PodDevice => "10.244.0.9",
        Entry::Uplink => "203.0.113.7",
    };
    Packet {
        entry,
        protocol: Protocol::Tcp,
        source: ip(source),
        source_port: 40_000,
        destination: ip(destination),
        destination_port: port,
    }
}

fn verdict(model: &Model, packet: &Packet) -> Verdict {
    decide(model, packet, &FlowView::default(), Instant::default()).verdict
}

fn forward(model: &Model, packet: &Packet) -> Forward {
    match verdict(model, packet) {
        Verdict::Forward(forward) => forward,
        other => panic!("{packet}: {other}"),
    }
}

const ENTRIES: [Entry; 3] = [Entry::Socket, Entry::PodDevice, Entry::Uplink];

#[track_caller]
fn other_ports_of(model: &Model, address: &str, expected: Verdict) {
    for entry in ENTRIES {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let packet = Packet { protocol, ..packet(entry, address, 81) };
            assert_eq!(verdict(model, &packet), expected, "{packet}");
        }
    }
    let known_port = Packet { protocol: Protocol::Udp, ..packet(Entry::Uplink, address, 80) };
    assert_eq!(verdict(model, &known_port), expected, "another protocol at a port that has a frontend");
}

#[test]
fn other_ports_are_refused_inside_dropped_outside_and_passed_on_to_hosts() {
    let mut model = model();
    model.apply(Change::UpsertService(everywhere())).unwrap();
    other_ports_of(&model, "10.96.0.1", Verdict::Reject);
    other_ports_of(&model, "20.0.0.1", Verdict::Drop);
    other_ports_of(&model, "192.0.2.1", Verdict::Drop);
    other_ports_of(&model, "172.18.0.2", Verdict::Pass);
    other_ports_of(&model, "20.0.0.2", Verdict::Pass);
    model.apply(Change::RemoveService(everywhere().name)).unwrap();
    other_ports_of(&model, "20.0.0.1", Verdict::Pass);
}

#[test]
fn a_source_that_nobody_outside_has_is_dropped_where_the_datapath_looks_at_it() {
    let mut model = model();
    model.apply(Change::UpsertService(everywhere())).unwrap();
    let forged = ["172.18.0.2", "198.51.100.2", "127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255"];
    let from = |entry, source: &str, destination: &str, port| Packet {
        source: ip(source),
        ..packet(entry, destination, port)
    };
    let decided = |model: &Model, packet: &Packet| decide(model, packet, &FlowView::default(), Instant::default());
    for source in forged.into_iter().chain(["10.96.0.1"]) {
        for entry in [Entry::PodDevice, Entry::Uplink] {
            for (address, port) in [("10.96.0.1", 80), ("10.96.0.1", 81), ("20.0.0.1", 80), ("172.18.0.2", 30080)] {
                let is_forged = source != "10.96.0.1" || address == source;
                let decision = decided(&model, &from(entry, source, address, port));
                assert_eq!(
                    decision.steps.iter().any(|step| step.field == "forged"),
                    is_forged,
                    "{source} to {address}"
                );
                assert!(!is_forged || decision.verdict == Verdict::Drop, "{source} to {address}");
            }
            // The node's own ports, and addresses that no frontend has.
            for (address, port) in [("172.18.0.2", 22), ("20.0.0.9", 80)] {
                assert_eq!(
                    verdict(&model, &from(entry, source, address, port)),
                    Verdict::Pass,
                    "{source} to {address}"
                );
            }
        }
    }
    let established = FlowView { established: Some(backend("10.244.1.1")), ..FlowView::default() };
    let injected = from(Entry::Uplink, "172.18.0.2", "10.96.0.1", 80);
    assert_eq!(decide(&model, &injected, &established, Instant::default()).verdict, Verdict::Drop);
    // The node itself sends from its addresses, and a neighbour or a host of class E is nobody special.
    for (entry, source) in [(Entry::Socket, "172.18.0.2"), (Entry::Uplink, "172.18.0.3"), (Entry::Uplink, "240.0.0.1")]
    {
        assert_eq!(verdict(&model, &from(entry, source, "10.96.0.1", 80)), Verdict::Reject, "{source} has no backends");
    }
    let mut other = model_with(Settings::default(), Capabilities::all("model").with_drops_forged(false));
    other.apply(Change::UpsertService(everywhere())).unwrap();
    assert_eq!(verdict(&other, &injected), Verdict::Reject, "it has no backends");
}

#[test]
fn an_address_in_a_connected_network_may_be_a_hosts() {
    let mut model = model();
    model.apply(Change::UpsertService(everywhere())).unwrap();
    let touched = model.apply(Change::SetNetworks(vec!["20.0.0.0/24".parse().unwrap()])).unwrap();
    assert!(touched.contains(&everywhere().name));
    other_ports_of(&model, "20.0.0.1", Verdict::Pass);
    other_ports_of(&model, "192.0.2.1", Verdict::Drop);
    model.apply(Change::SetNetworks(vec![])).unwrap();
    other_ports_of(&model, "20.0.0.1", Verdict::Drop);
}

/// As where a pool has the address of a node: its API server and its other ports stay reachable.
#[test]
fn an_ingress_address_that_the_node_has_leaves_its_other_ports_to_the_node() {
    let mut model = model();
    let own = Service { load_balancer_ips: vec![ip("172.18.0.2")], ..web("a", "10.96.0.1") };
    model.apply(Change::UpsertService(own)).unwrap();
    other_ports_of(&model, "172.18.0.2", Verdict::Pass);
    model.apply(Change::SetNode(NodeFacts { ips: vec![ip("198.51.100.2")], ..node() })).unwrap();
    other_ports_of(&model, "172.18.0.2", Verdict::Drop);
}

#[test]
fn frontends_of_one_address_that_disagree_pass_rather_than_refuse_rather_than_drop() {
    let mut model = model();
    let cluster = Service {
        cluster_ips: vec![ip("20.0.0.1")],
        ports: vec![port("x", Protocol::Tcp, 443)],
        ..web("b", "20.0.0.1")
    };
    model.apply(Change::UpsertService(cluster.clone())).unwrap();
    model.apply(Change::UpsertService(everywhere())).unwrap();
    other_ports_of(&model, "20.0.0.1", Verdict::Reject);
    model.apply(Change::RemoveService(cluster.name)).unwrap();
    other_ports_of(&model, "20.0.0.1", Verdict::Drop);
    let mut ranked = [OtherPorts::Pass, OtherPorts::Drop, OtherPorts::Reject];
    ranked.sort();
    assert_eq!(ranked.map(OtherPorts::as_str), ["drop", "reject", "pass"]);
}

#[test]
fn a_frontend_that_is_not_carried_is_another_port_of_its_address() {
    let capabilities = Capabilities::all("test").with_protocols([Protocol::Tcp]);
    let mut model = model_with(Settings::default(), capabilities);
    let ports = vec![port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)];
    model.apply(Change::UpsertService(Service { ports, ..everywhere() })).unwrap();
    let dns = Packet { protocol: Protocol::Udp, ..packet(Entry::Uplink, "20.0.0.1", 53) };
    assert_eq!(verdict(&model, &dns), Verdict::Drop);
    let decision = decide(&model, &dns, &FlowView::default(), Instant::default());
    let fields: Vec<_> = decision.steps.iter().map(|step| step.field).collect();
    assert_eq!(fields, ["owner", "capabilities", "other ports"], "{decision}");
}

#[test]
fn a_connection_goes_on_when_its_frontend_went_and_the_address_stays() {
    let mut model = model();
    model.apply(Change::UpsertService(everywhere())).unwrap();
    let flow = FlowView { established: Some(backend("10.244.0.1")), ..FlowView::default() };
    let fate = |protocol| {
        let packet = Packet { protocol, ..packet(Entry::Uplink, "20.0.0.1", 81) };
        decide(&model, &packet, &flow, Instant::default()).verdict
    };
    assert_eq!((fate(Protocol::Tcp), fate(Protocol::Udp)), (Verdict::Pass, Verdict::Drop));
}

#[test]
fn a_datapath_without_a_say_in_other_ports_passes_them_on() {
    let mut model = model_with(Settings::default(), Capabilities::all("test").with_other_ports(false));
    model.apply(Change::UpsertService(everywhere())).unwrap();
    for address in ["10.96.0.1", "20.0.0.1", "192.0.2.1", "172.18.0.2"] {
        other_ports_of(&model, address, Verdict::Pass);
    }
}

#[test]
fn pings_are_answered_if_asked_for_and_never_for_the_node_itself() {
    let answers = |settings: Settings, capabilities| {
        let mut model = model_with(settings, capabilities);
        let own = Service { load_balancer_ips: vec![ip("20.0.0.1"), ip("172.18.0.2")], ..everywhere() };
        model.apply(Change::UpsertService(own)).unwrap();
        ["10.96.0.1", "20.0.0.1", "192.0.2.1", "172.18.0.2", "198.51.100.2", "20.0.0.9"]
            .map(|to| model.answers_ping(ip(to)))
    };
    let asked = Settings::default().with_answer_ping(true);
    assert_eq!(answers(asked.clone(), Capabilities::all("test")), [true, true, true, false, false, false]);
    assert_eq!(answers(Settings::default(), Capabilities::all("test")), [false; 6]);
    assert_eq!(answers(asked, Capabilities::all("test").with_ping(false)), [false; 6]);
}

#[test]
fn pings_of_an_external_address_that_may_be_a_hosts_are_left_to_that_host() {
    let mut model = model_with(Settings::default().with_answer_ping(true), Capabilities::all("test"));
    model.apply(Change::UpsertService(everywhere())).unwrap();
    let networks = ["192.0.2.0/24", "20.0.0.0/24"].map(|network| network.parse().unwrap());
    model.apply(Change::SetNetworks(networks.into())).unwrap();
    assert!(!model.answers_ping(ip("192.0.2.1")), "external");
    assert!(model.answers_ping(ip("20.0.0.1")), "an ingress that an announcer takes from the network");
    model.apply(Change::SetNetworks(vec![])).unwrap();
    assert!(model.answers_ping(ip("192.0.2.1")));
}

/// The host ports of a pod on this node, or on another one.
fn host_ports(pod: &str, node: &str, host_ips: HostIps) -> (Service, lb_core::endpoint::EndpointSlice) {
    let service = Service {
        kind: ServiceType::HostPort,
        ports: vec![port("http", Protocol::Tcp, 8443)],
        host_ips: Some(host_ips),
        ..Service::new(ServiceName::new("default", "a"))
    };
    let pod = Endpoint { node: Some(NodeName::new(node)), ..ready(pod) };
    (service, slice("a", [pod]))
}

#[test]
fn a_host_port_leads_to_the_pod_on_this_node_and_keeps_its_clients() {
    let mut model = model();
    let (service, endpoints) = host_ports("10.244.0.7", "here", HostIps::Every);
    model.apply(Change::UpsertService(service)).unwrap();
    model.apply(Change::ReplaceEndpoints(endpoints)).unwrap();
    for address in ["172.18.0.2", "198.51.100.2"] {
        for entry in [Entry::Uplink, Entry::PodDevice] {
            let forward = forward(&model, &packet(entry, address, 8443));
            assert_eq!(forward.choice, Choice::Exactly(backend("10.244.0.7")));
            assert_eq!(forward.source, SourceRewrite::Kept);
        }
        other_ports_of(&model, address, Verdict::Pass);
    }
    let owner = model.owner(&FrontendAddr::new(ip("172.18.0.2"), 8443, Protocol::Tcp)).unwrap();
    assert_eq!((owner.kind, owner.kind.to_string().as_str()), (FrontendKind::HostPort, "HostPort"));
}

#[test]
fn a_host_port_never_leads_to_a_pod_of_another_node() {
    let mut model = model();
    let (service, endpoints) = host_ports("10.244.1.7", "there", HostIps::Every);
    model.apply(Change::UpsertService(service)).unwrap();
    model.apply(Change::ReplaceEndpoints(endpoints)).unwrap();
    for entry in ENTRIES {
        assert_eq!(verdict(&model, &packet(entry, "172.18.0.2", 8443)), Verdict::Drop);
    }
}

#[test]
fn a_host_port_is_on_the_address_that_it_names_and_follows_the_node() {
    let mut model = model();
    let (service, endpoints) = host_ports("10.244.0.7", "here", HostIps::One(ip("198.51.100.2")));
    model.apply(Change::UpsertService(service)).unwrap();
    model.apply(Change::ReplaceEndpoints(endpoints)).unwrap();
    let served = |model: &Model| {
        ["172.18.0.2", "198.51.100.2"].map(|to| verdict(model, &packet(Entry::Uplink, to, 8443)) != Verdict::Pass)
    };
    assert_eq!(served(&model), [false, true]);
    model.apply(Change::SetNode(NodeFacts { ips: vec![ip("172.18.0.2")], ..node() })).unwrap();
    assert_eq!(served(&model), [false, false]);
}

#[test]
fn an_external_address_of_the_node_or_of_pods_takes_nothing() {
    let claimed =
        Service { external_ips: vec![ip("172.18.0.2"), ip("10.244.0.9"), ip("192.0.2.1")], ..web("a", "10.96.0.1") };
    let mut model = model();
    model.apply(Change::UpsertService(claimed.clone())).unwrap();
    model.apply(Change::ReplaceEndpoints(slice("a", [ready("10.244.0.1")]))).unwrap();
    let taken = |model: &Model| {
        let to = |to| {
            let packet = Packet { source: ip("10.244.0.8"), ..packet(Entry::PodDevice, to, 80) };
            matches!(verdict(model, &packet), Verdict::Forward(_))
        };
        ["172.18.0.2", "10.244.0.9", "192.0.2.1", "10.96.0.1"].map(to)
    };
    assert_eq!(taken(&model), [false, false, true, true]);
    let degraded: Vec<String> = model.degraded(&claimed).iter().map(ToString::to_string).collect();
    assert_eq!(degraded.len(), 2, "{degraded:?}");
    assert!(
        degraded[0].starts_with("external address 10.244.0.9 is not served: it is an address of pods"),
        "{degraded:?}"
    );
    assert!(
        degraded[1].starts_with("external address 172.18.0.2 is not served: it is an address of this node"),
        "{degraded:?}"
    );

    model.apply(Change::SetNode(NodeFacts { ips: vec![ip("192.0.2.1")], ..NodeFacts::default() })).unwrap();
    assert_eq!(taken(&model), [true, true, false, true], "the node and the pods are others now");

    let mut allowed = model_with(Settings::default().with_external_ips_of_node(true), Capabilities::all("test"));
    allowed.apply(Change::UpsertService(claimed)).unwrap();
    allowed.apply(Change::ReplaceEndpoints(slice("a", [ready("10.244.0.1")]))).unwrap();
    assert_eq!(taken(&allowed), [true, false, true, true]);
}

#[test]
fn an_external_address_on_a_device_without_node_ports_takes_nothing_either() {
    let claimed = Service { external_ips: vec![ip("10.99.0.1"), ip("192.0.2.1")], ..web("a", "10.96.0.1") };
    let served = |model: &Model| {
        ["10.99.0.1", "192.0.2.1"].map(|at| model.owner(&FrontendAddr::new(ip(at), 80, Protocol::Tcp)).is_some())
    };
    let on_devices = |ips: &[&str]| Change::SetLocalAddresses(ips.iter().map(|at| ip(at)).collect());
    let mut model = model();
    model.apply(Change::UpsertService(claimed.clone())).unwrap();
    model.apply(Change::UpsertService(web("b", "10.96.0.2"))).unwrap();
    assert_eq!(served(&model), [true, true]);

    let touched = model.apply(on_devices(&["10.99.0.1", "172.18.0.2"])).unwrap();
    assert!(touched.contains(&claimed.name));
    assert_eq!(served(&model), [false, true]);
    let degraded: Vec<String> = model.degraded(&claimed).iter().map(ToString::to_string).collect();
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert!(
        degraded[0].starts_with("external address 10.99.0.1 is not served: it is an address of this node"),
        "{degraded:?}"
    );
    assert!(degraded[0].ends_with("with the setting `external-ips-of-node`"), "{degraded:?}");

    let touched = model.apply(on_devices(&["10.99.0.1", "10.99.0.7"])).unwrap();
    assert!(touched.is_empty(), "no service has one of those that changed: {touched:?}");
    model.apply(on_devices(&[])).unwrap();
    assert_eq!(served(&model), [true, true], "the device is gone");
    model.apply(on_devices(&["192.0.2.1"])).unwrap();
    assert_eq!(served(&model), [true, false]);

    let mut allowed = model_with(Settings::default().with_external_ips_of_node(true), Capabilities::all("test"));
    allowed.apply(on_devices(&["10.99.0.1"])).unwrap();
    allowed.apply(Change::UpsertService(claimed)).unwrap();
    assert_eq!(served(&allowed), [true, true]);
}

#[test]
fn an_external_address_gives_way_to_the_service_that_was_assigned_the_address() {
    let mut model = model();
    let thief = Service {
        external_ips: vec![ip("10.96.0.1"), ip("192.0.2.1")],
        cluster_ips: vec![],
        ..web("thief", "10.96.0.9")
    };
    model.apply(Change::UpsertService(thief.clone())).unwrap();
    model.apply(Change::UpsertService(web("api", "10.96.0.1"))).unwrap();
    let owner = |model: &Model, at: &str| {
        model.owner(&FrontendAddr::new(ip(at), 80, Protocol::Tcp)).map(|owner| owner.port.service.name().to_owned())
    };
    assert_eq!(owner(&model, "10.96.0.1").as_deref(), Some("api"));
    assert_eq!(owner(&model, "192.0.2.1").as_deref(), Some("thief"), "it keeps its other address");
    let (name, claim) = model.poll_claim().unwrap();
    assert_eq!(name, thief.name);
    assert!(matches!(claim, Claim::Refused(ModelError::FrontendTaken { .. })), "{claim}");

    model.apply(Change::UpsertService(thief)).unwrap_err();
    assert_eq!(owner(&model, "10.96.0.1").as_deref(), Some("api"), "it does not come back");
}

#[test]
fn a_backend_on_the_node_itself_sees_its_clients() {
    let mut model = model();
    model.apply(Change::UpsertService(everywhere())).unwrap();
    model.apply(Change::ReplaceEndpoints(slice("a", ["172.18.0.2", "10.244.1.1"].map(ready)))).unwrap();
    let (here, there) = (backend("172.18.0.2"), backend("10.244.1.1"));
    for (to, port) in [("10.96.0.1", 80), ("20.0.0.1", 80), ("172.18.0.2", 30080)] {
        let packet = packet(Entry::Uplink, to, port);
        let forward = forward(&model, &packet);
        assert_eq!(forward.source_rewrite(packet.source, here), &SourceRewrite::Kept, "{packet}");
        assert!(matches!(forward.source_rewrite(packet.source, there), SourceRewrite::Translated { .. }), "{packet}");
        let says = forward.to_string();
        assert!(says.ends_with("; if the backend is on an address of this node: kept"), "{says}");
    }
    let own = forward(&model, &packet(Entry::Socket, "10.96.0.1", 80));
    assert!(matches!(own.source_rewrite(ip("172.18.0.2"), here), SourceRewrite::Translated { .. }));
    model.apply(Change::ReplaceEndpoints(slice("a", [ready("172.18.0.2")]))).unwrap();
    let only = forward(&model, &packet(Entry::Uplink, "20.0.0.1", 80));
    assert_eq!(only.to_string(), "forwarded to 172.18.0.2:8080\nsource: kept");
}

#[test]
fn sctp_at_another_port_than_its_backends_is_not_carried_where_ports_cannot_be_rewritten() {
    let sctp = |target| {
        let mut endpoints = slice("a", [ready("10.244.0.1")]);
        endpoints.ports = vec![SlicePort { name: "sig".into(), protocol: Protocol::Sctp, port: target }];
        endpoints
    };
    let service = Service {
        ports: vec![ServicePort { node_port: Some(30080), ..port("sig", Protocol::Sctp, 3868) }],
        ..everywhere()
    };
    let fates = |target, capabilities| {
        let mut model = model_with(Settings::default(), capabilities);
        model.apply(Change::UpsertService(service.clone())).unwrap();
        model.apply(Change::ReplaceEndpoints(sctp(target))).unwrap();
        let at = |(to, port)| verdict(&model, &Packet { protocol: Protocol::Sctp, ..packet(Entry::Uplink, to, port) });
        let degraded: Vec<String> = model.degraded(&service).iter().map(ToString::to_string).collect();
        let fates = [("20.0.0.1", 3868), ("172.18.0.2", 30080)].map(at);
        (fates.map(|verdict| matches!(verdict, Verdict::Forward(_))), degraded)
    };
    let fixed = || Capabilities::all("test").with_sctp_ports(false);
    assert_eq!(fates(3868, Capabilities::all("test")), ([true, true], vec![]));
    let (carried, degraded) = fates(3868, fixed());
    assert_eq!((carried, degraded.len()), ([true, false], 2), "a node port on two addresses of the node: {degraded:?}");
    assert!(degraded[0].starts_with("SCTP frontend 172.18.0.2:30080/sctp is not carried"), "{degraded:?}");
    let (carried, degraded) = fates(9999, fixed());
    assert_eq!((carried, degraded.len()), ([false, false], 5));
    let (carried, degraded) = fates(30080, fixed());
    assert_eq!((carried, degraded.len()), ([false, true], 3));
    let (carried, degraded) = fates(9999, fixed().with_protocols([Protocol::Tcp, Protocol::Udp]));
    assert_eq!(
        (carried, degraded),
        ([false, false], vec!["protocol sctp is not supported by this datapath".to_owned()])
    );
}

#[test]
fn a_datapath_at_the_devices_does_not_see_what_the_node_sends_to_itself() {
    let at_devices = Capabilities::all("devices").with_sockets(SocketCapability::Egress);
    let mut model = model_with(Settings::default(), at_devices);
    model.apply(Change::UpsertService(everywhere())).unwrap();
    model.apply(Change::ReplaceEndpoints(slice("a", ["172.18.0.2", "10.244.1.1"].map(ready)))).unwrap();
    assert_eq!(verdict(&model, &packet(Entry::Socket, "172.18.0.2", 30080)), Verdict::Pass);
    let on_the_node = Packet { source: ip("20.0.0.1"), ..packet(Entry::Socket, "20.0.0.1", 80) };
    assert_eq!(verdict(&model, &on_the_node), Verdict::Pass, "a load balancer has put its address there");
    let of_a_pod = Packet { source: ip("10.244.0.9"), ..packet(Entry::Socket, "172.18.0.2", 30080) };
    for seen in [of_a_pod, packet(Entry::Uplink, "172.18.0.2", 30080), packet(Entry::Socket, "20.0.0.1", 80)] {
        forward(&model, &seen);
    }
    let own_address = |service: &Service| {
        let degraded = model.degraded(service).into_iter();
        degraded.filter(|it| matches!(it, Degraded::OwnAddress { .. })).map(|it| it.to_string()).collect::<Vec<_>>()
    };
    let ends = |service: &Service, protocol: &str, advice: &str| {
        let says = own_address(service);
        let start =
            format!("processes of the node do not reach {protocol} frontends at addresses of the node itself: ");
        assert!(says.len() == 1 && says[0].starts_with(&start) && says[0].ends_with(advice), "{says:?}");
    };
    ends(&everywhere(), "tcp", "; use the cluster address there, or let sockets of the node be translated");
    let (host_port, _) = host_ports("10.244.0.7", "here", HostIps::Every);
    ends(&host_port, "tcp", "; let sockets of the node be translated, or use the address of a backend there");
    let sctp = vec![ServicePort { node_port: Some(30081), ..port("sig", Protocol::Sctp, 3868) }];
    ends(&Service { ports: sctp.clone(), ..everywhere() }, "sctp", "; use the cluster address there");
    let elsewhere = Service { ports: vec![port("http", Protocol::Tcp, 80)], ..everywhere() };
    assert_eq!(own_address(&elsewhere), Vec::<String>::new());
    let tcp_alone = Capabilities::all("tcp").with_sockets(SocketCapability::Egress).with_protocols([Protocol::Tcp]);
    let mut tcp_alone = model_with(Settings::default(), tcp_alone);
    let service = Service { ports: sctp, ..everywhere() };
    tcp_alone.apply(Change::UpsertService(service.clone())).unwrap();
    let degraded: Vec<String> = tcp_alone.degraded(&service).iter().map(ToString::to_string).collect();
    assert_eq!(degraded, ["protocol sctp is not supported by this datapath"], "nobody reaches what is not carried");

    let own = forward(&model, &packet(Entry::Socket, "10.96.0.1", 80));
    let seen = |backend| match own.source_rewrite(ip("172.18.0.2"), backend) {
        SourceRewrite::Translated { addr, .. } => *addr,
        SourceRewrite::Kept => panic!("{backend}"),
    };
    assert_eq!(seen(backend("172.18.0.2")), Some(ip("10.96.0.1")));
    assert_eq!(seen(backend("10.244.1.1")), Some(ip("172.18.0.2")));
}

#[test]
fn sctp_of_sockets_is_translated_as_packets_and_keeps_its_port_where_ports_cannot_be_rewritten() {
    let capabilities = |can| {
        let sockets = SocketCapability::Connect { hashes: SocketHash::SocketCookie, whose: SocketOwners::All };
        Capabilities::all("test").with_sockets(sockets).with_sctp_ports(can).with_translated_ports(1024..=29_999)
    };
    let mut endpoints = slice("a", [ready("198.51.100.77")]);
    endpoints.ports = vec![SlicePort { name: "sig".into(), protocol: Protocol::Sctp, port: 3868 }];
    let service = Service { ports: vec![port("sig", Protocol::Sctp, 3868)], ..everywhere() };
    for (can, ports) in [(false, 40_000..=40_000), (true, 1024..=29_999)] {
        let mut model = model_with(Settings::default(), capabilities(can));
        model.apply(Change::UpsertService(service.clone())).unwrap();
        model.apply(Change::ReplaceEndpoints(endpoints.clone())).unwrap();
        for entry in [Entry::Socket, Entry::Uplink] {
            let packet = Packet { protocol: Protocol::Sctp, ..packet(entry, "10.96.0.1", 3868) };
            let expected = SourceRewrite::Translated { addr: Some(ip("172.18.0.2")), ports: ports.clone() };
            assert_eq!(forward(&model, &packet).source, expected, "{entry:?}");
        }
    }
}
