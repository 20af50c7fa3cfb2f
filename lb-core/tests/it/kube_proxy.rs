//! Scenarios of kube-proxy, as its own tests and the end-to-end tests of Kubernetes have them, with the decisions of
//! lb. A test is named after the scenario.
//!
//! lb differs from kube-proxy in one point, as Cilium does: a pod of the same node keeps its source on every frontend.
//! kube-proxy translates it on external ones under traffic policy Cluster.

use lb_core::{
    addr::{BackendAddr, Protocol},
    decision::{Choice, Entry, FlowView, Packet, SourceRewrite, Verdict, decide},
    endpoint::{Conditions, Endpoint, SlicePort},
    model::{Change, Model, Settings},
    name::{NodeName, ServiceName},
    node::NodeFacts,
    service::{Service, ServicePort, TrafficPolicy},
    time::Instant,
};

use crate::worlds::{ip, port, ready, slice, web};

const CLUSTER: &str = "10.96.0.1:80";
const INGRESS: &str = "20.0.0.1:80";
const EXTERNAL: &str = "192.0.2.1:80";
const NODE_PORT: &str = "172.18.0.2:30080";
/// Every frontend that the external traffic policy governs.
const OUTER: [&str; 3] = [NODE_PORT, INGRESS, EXTERNAL];

const SERVING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };

#[derive(Clone, Copy)]
enum Client {
    /// On this node.
    Pod,
    Outside,
    Node,
}
use Client::{Node, Outside, Pod};

const CLIENTS: [Client; 3] = [Pod, Outside, Node];

/// Node `here` of two, with a service that has every kind of frontend.
struct World {
    model: Model,
    service: Service,
}

impl World {
    fn new(external: TrafficPolicy, internal: TrafficPolicy, endpoints: &[Endpoint]) -> Self {
        Self::with(Settings::default(), external, internal, endpoints)
    }

    fn with(settings: Settings, external: TrafficPolicy, internal: TrafficPolicy, endpoints: &[Endpoint]) -> Self {
        let service = Service {
            load_balancer_ips: vec![ip("20.0.0.1")],
            external_ips: vec![ip("192.0.2.1")],
            ports: vec![ServicePort { node_port: Some(30080), ..port("http", Protocol::Tcp, 80) }],
            external_traffic_policy: external,
            internal_traffic_policy: internal,
            ..web("a", "10.96.0.1")
        };
        let mut model = Model::new(settings, lb_core::datapath::Capabilities::all("model"));
        let node = NodeFacts {
            name: Some(NodeName::new("here")),
            ips: vec![ip("172.18.0.2"), ip("198.51.100.2")],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        };
        model.apply(Change::SetNode(node)).unwrap();
        model.apply(Change::UpsertService(service.clone())).unwrap();
        model.apply(Change::ReplaceEndpoints(slice("a", endpoints.iter().cloned()))).unwrap();
        Self { model, service }
    }

    /// Who may get a packet, and whether the source stays; or what becomes of it.
    fn fate(&self, client: Client, to: &str) -> String {
        self.fate_of(Protocol::Tcp, client, to)
    }

    fn fate_of(&self, protocol: Protocol, client: Client, to: &str) -> String {
        let to: core::net::SocketAddr = to.parse().unwrap();
        let (entry, source) = match client {
            Pod => (Entry::PodDevice, "10.244.0.9"),
            Outside => (Entry::Uplink, "203.0.113.7"),
            Node => (Entry::Socket, "172.18.0.2"),
        };
        let packet = Packet {
            entry,
            protocol,
            source: ip(source),
            source_port: 40_000,
            destination: to.ip(),
            destination_port: to.port(),
        };
        let forward = match decide(&self.model, &packet, &FlowView::default(), Instant::default()).verdict {
            Verdict::Forward(forward) => forward,
            Verdict::Reject => return "refused".into(),
            Verdict::Drop => return "dropped".into(),
            Verdict::Pass => return "passed on".into(),
        };
        let backends: Vec<BackendAddr> = match &forward.choice {
            Choice::Exactly(backend) => vec![*backend],
            Choice::OneOf(weights) => weights.keys().copied().collect(),
        };
        let source = match forward.source_rewrite(packet.source, backends[0]) {
            SourceRewrite::Kept => "kept",
            SourceRewrite::Translated { .. } => "translated",
        };
        let backends: Vec<String> = backends.iter().map(|backend| backend.ip.to_string()).collect();
        format!("{}, source {source}", backends.join(" "))
    }

    fn all(&self, clients: &[Client], to: &[&str], expected: &str) {
        for &client in clients {
            for to in to {
                assert_eq!(self.fate(client, to), expected, "to {to}, {}", ["pod", "outside", "node"][client as usize]);
            }
        }
    }
}

fn on(node: &str, address: &str, conditions: Conditions) -> Endpoint {
    Endpoint { node: Some(NodeName::new(node)), conditions, ..ready(address) }
}

fn local(conditions: Conditions) -> Endpoint {
    on("here", "10.244.0.1", conditions)
}

fn remote(conditions: Conditions) -> Endpoint {
    on("there", "10.244.1.1", conditions)
}

use TrafficPolicy::{Cluster, Local};
const READY: Conditions = Conditions::READY;

#[test]
fn scenario_20_to_22_a_node_port_takes_any_endpoint() {
    let world = World::new(Cluster, Cluster, &[local(READY), remote(READY)]);
    world.all(&[Outside, Node], &[NODE_PORT], "10.244.0.1 10.244.1.1, source translated");
    world.all(&[Pod], &[NODE_PORT], "10.244.0.1 10.244.1.1, source kept");
}

#[test]
fn scenario_24_and_25_node_ports_are_on_chosen_addresses() {
    let ends = [local(READY)];
    let of = |networks: &[&str]| {
        let networks: Vec<_> = networks.iter().map(|network| network.parse().unwrap()).collect();
        World::with(Settings::default().with_node_port_addresses(networks), Cluster, Cluster, &ends)
    };
    let (chosen, other) = (NODE_PORT, "198.51.100.2:30080");
    let one = of(&["172.18.0.0/16"]);
    one.all(&CLIENTS, &[other], "passed on");
    one.all(&[Outside], &[chosen], "10.244.0.1, source translated");
    of(&["172.18.0.0/16", "198.51.100.0/24"]).all(&[Outside], &[chosen, other], "10.244.0.1, source translated");
    of(&[]).all(&[Outside], &[chosen, other], "10.244.0.1, source translated");
}

#[test]
fn scenario_26_one_service_port_number_has_node_ports_of_two_protocols() {
    let mut world = World::new(Cluster, Cluster, &[local(READY)]);
    let both =
        |protocol, number| ServicePort { node_port: Some(number), ..port(protocol_name(protocol), protocol, 80) };
    world.service.ports = vec![both(Protocol::Tcp, 30080), both(Protocol::Udp, 30081)];
    world.model.apply(Change::UpsertService(world.service.clone())).unwrap();
    let mut endpoints = slice("a", [local(READY)]);
    endpoints.ports = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| SlicePort { name: protocol_name(protocol).into(), protocol, port: 8080 })
        .into();
    world.model.apply(Change::ReplaceEndpoints(endpoints)).unwrap();
    let served = "10.244.0.1, source translated";
    assert_eq!(world.fate_of(Protocol::Tcp, Outside, "172.18.0.2:30080"), served);
    assert_eq!(world.fate_of(Protocol::Udp, Outside, "172.18.0.2:30081"), served);
    assert_eq!(world.fate_of(Protocol::Udp, Outside, "172.18.0.2:30080"), "passed on");
}

fn protocol_name(protocol: Protocol) -> &'static str {
    protocol.as_str()
}

#[test]
fn scenario_27_to_30_external_policy_local_binds_traffic_from_outside_alone() {
    let world = World::new(Local, Cluster, &[local(READY), remote(READY)]);
    world.all(&[Outside], &OUTER, "10.244.0.1, source kept");
    world.all(&[Pod], &OUTER, "10.244.0.1 10.244.1.1, source kept");
    world.all(&[Node], &OUTER, "10.244.0.1 10.244.1.1, source translated");
    world.all(&[Pod], &[CLUSTER], "10.244.0.1 10.244.1.1, source kept");
    world.all(&[Outside, Node], &[CLUSTER], "10.244.0.1 10.244.1.1, source translated");
}

#[test]
fn scenario_31_and_32_external_policy_local_without_a_local_endpoint_drops() {
    let world = World::new(Local, Cluster, &[remote(READY)]);
    world.all(&[Outside], &OUTER, "dropped");
    world.all(&[Pod], &OUTER, "10.244.1.1, source kept");
    world.all(&[Node], &OUTER, "10.244.1.1, source translated");
}

#[test]
fn scenario_34_a_change_of_the_external_policy_is_followed() {
    let mut world = World::new(Local, Cluster, &[remote(READY)]);
    for (policy, fate) in [(Cluster, "10.244.1.1, source translated"), (Local, "dropped")] {
        world.service.external_traffic_policy = policy;
        world.model.apply(Change::UpsertService(world.service.clone())).unwrap();
        world.all(&[Outside], &OUTER, fate);
    }
}

#[test]
fn scenario_35_internal_policy_local_takes_local_endpoints() {
    let world = World::new(Cluster, Local, &[local(READY), remote(READY)]);
    world.all(&[Pod], &[CLUSTER], "10.244.0.1, source kept");
    world.all(&[Outside, Node], &[CLUSTER], "10.244.0.1, source translated");
}

#[test]
fn scenario_36_internal_policy_local_without_a_local_endpoint_drops() {
    World::new(Cluster, Local, &[remote(READY)]).all(&CLIENTS, &[CLUSTER], "dropped");
}

#[test]
fn scenario_37_the_internal_policy_has_no_say_in_external_frontends() {
    let world = World::new(Cluster, Local, &[local(READY), remote(READY)]);
    world.all(&[Outside], &OUTER, "10.244.0.1 10.244.1.1, source translated");
    world.all(&[Pod], &OUTER, "10.244.0.1 10.244.1.1, source kept");
    let both = World::new(Local, Local, &[remote(READY)]);
    both.all(&[Pod], &OUTER, "10.244.1.1, source kept");
    both.all(&CLIENTS, &[CLUSTER], "dropped");
}

#[test]
fn scenario_38_internal_policy_local_with_an_endpoint_on_the_hosts_network() {
    let here = World::new(Cluster, Local, &[on("here", "172.18.0.2", READY)]);
    here.all(&[Pod], &[CLUSTER], "172.18.0.2, source kept");
    assert!(here.fate(Node, CLUSTER).starts_with("172.18.0.2, "));
    World::new(Cluster, Local, &[on("there", "172.18.0.3", READY)]).all(&[Pod, Node], &[CLUSTER], "dropped");
}

#[test]
fn scenario_46_an_external_address_that_no_node_has_is_served() {
    let world = World::new(Cluster, Cluster, &[remote(READY)]);
    world.all(&[Outside], &[EXTERNAL], "10.244.1.1, source translated");
    world.all(&[Pod], &[EXTERNAL], "10.244.1.1, source kept");
}

#[test]
fn scenario_52_a_ready_local_endpoint_comes_before_one_that_terminates() {
    let ends = [local(READY), on("here", "10.244.0.2", SERVING)];
    World::new(Local, Cluster, &ends).all(&[Outside], &[INGRESS], "10.244.0.1, source kept");
    World::new(Cluster, Local, &ends).all(&[Pod], &[CLUSTER], "10.244.0.1, source kept");
}

#[test]
fn scenario_54_only_a_remote_endpoint_that_terminates() {
    let world = World::new(Local, Cluster, &[remote(SERVING)]);
    world.all(&[Outside], &OUTER, "dropped");
    world.all(&[Pod], &[CLUSTER], "10.244.1.1, source kept");
}

#[test]
fn scenario_55_when_all_terminate_those_that_serve_are_used() {
    let world = World::new(Cluster, Cluster, &[local(SERVING), remote(SERVING)]);
    world.all(&[Outside, Node], &[CLUSTER, INGRESS], "10.244.0.1 10.244.1.1, source translated");
    world.all(&[Pod], &[CLUSTER, INGRESS], "10.244.0.1 10.244.1.1, source kept");
}

#[test]
fn scenario_56_one_that_terminates_is_not_used_while_another_one_is_ready() {
    let world = World::new(Cluster, Cluster, &[local(SERVING), remote(READY)]);
    world.all(&[Pod], &[CLUSTER], "10.244.1.1, source kept");
    world.all(&[Outside], &OUTER, "10.244.1.1, source translated");
}

#[test]
fn scenario_57_only_endpoints_that_are_not_ready_anywhere() {
    for (external, internal) in [(Cluster, Cluster), (Local, Local)] {
        let world = World::new(external, internal, &[local(UNREADY), remote(UNREADY)]);
        world.all(&CLIENTS, &[CLUSTER, NODE_PORT, INGRESS, EXTERNAL], "refused");
    }
}

#[test]
fn a_pod_of_another_node_is_translated_where_its_answer_would_take_another_way() {
    let world = World::new(Cluster, Cluster, &[remote(READY)]);
    let fate = |model: &Model, destination: &str, destination_port| {
        let packet = Packet {
            entry: Entry::Uplink,
            protocol: Protocol::Tcp,
            source: ip("10.244.7.9"),
            source_port: 40_000,
            destination: ip(destination),
            destination_port,
        };
        match decide(model, &packet, &FlowView::default(), Instant::default()).verdict {
            Verdict::Forward(forward) => forward.source,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(fate(&world.model, "172.18.0.2", 30080), SourceRewrite::Translated { .. }));
    assert!(matches!(fate(&world.model, "20.0.0.1", 80), SourceRewrite::Translated { .. }));
    assert_eq!(fate(&world.model, "10.96.0.1", 80), SourceRewrite::Kept);
    let here = World::new(Local, Cluster, &[local(READY)]);
    assert_eq!(fate(&here.model, "172.18.0.2", 30080), SourceRewrite::Kept);
    assert_eq!(here.service.name, ServiceName::new("default", "a"));
}
