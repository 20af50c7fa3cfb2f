//! What the kernel is asked about a packet agrees with the decision, and no longer once somebody changed an element.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use lb_core::{
    addr::Protocol,
    affinity::Affinity,
    datapath::Datapath,
    decision::{Entry, FlowView, Packet, decide},
    desired::Desired,
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    kernel::{Backends, KernelAnswer, KernelVerdict},
    model::{Change, Model, Settings},
    name::{NodeName, ServiceName, SliceName},
    plan::{Labels, diff},
    service::{Algorithm, Service, ServicePort, TrafficPolicy},
    state::State,
    time::Instant,
};

use lb_datapath_iptables::nftables::NftablesConfig;

use crate::{
    net::{Net, tcp, udp_socket},
    services::{Node, at, facts},
};

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn the_kernel_agrees_with_the_decision() {
    let net = Net::new();
    let (mut node, world) = (open(&net), World::new(&net));
    node.become_state(world.state());
    let mut source_port = 1_000;
    for vip in VIPS {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (source, entry) in [
                ("10.1.0.2", Entry::Uplink),
                ("10.2.1.2", Entry::PodDevice),
                ("10.2.1.1", Entry::Socket),
                ("10.9.0.1", Entry::Uplink),
                ("10.2.1.2", Entry::Uplink),
                ("10.9.0.1", Entry::PodDevice),
            ] {
                for destination_port in [80, 81] {
                    source_port += 7;
                    let packet = Packet { entry, protocol, destination_port, ..from(source, source_port, vip) };
                    let answer = node.datapath.ask(&packet).unwrap().unwrap();
                    assert_eq!(world.disagreements(&packet, &answer), Vec::<String>::new(), "{packet:?}\n{answer:#?}");
                }
            }
        }
    }
}

/// Out of the same address, an uplink and the device of a pod lead to other backends and other sources.
#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn what_comes_in_through_an_uplink_is_asked_apart() {
    let net = Net::new();
    let (mut node, world) = (open(&net), World::new(&net));
    node.become_state(world.state());
    for (source, entry, vip, backends, translated) in [
        ("10.9.0.1", Entry::Uplink, LOCAL, 1, Some(false)),
        ("10.9.0.1", Entry::PodDevice, LOCAL, 2, Some(true)),
        ("10.2.1.2", Entry::Uplink, OUTSIDE, 2, Some(true)),
        ("10.2.1.2", Entry::PodDevice, OUTSIDE, 2, None),
    ] {
        let packet = Packet { entry, ..from(source, 40_000, vip) };
        let answer = node.datapath.ask(&packet).unwrap().unwrap();
        assert_eq!(world.disagreements(&packet, &answer), Vec::<String>::new(), "{packet:?}\n{answer:#?}");
        let KernelVerdict::Forward { backends: Backends::MayTake(found), translated: found_translated } =
            &answer.verdict
        else {
            panic!("{answer:#?}")
        };
        assert_eq!((found.len(), *found_translated), (backends, translated), "{packet:?}\n{answer:#?}");
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn what_the_kernel_remembers_is_told() {
    let net = Net::new();
    let (mut node, world) = (open(&net), World::new(&net));
    node.become_state(world.state());
    let sticky = from("10.1.0.2", 40_000, STICKY);
    let answer = node.datapath.ask(&sticky).unwrap().unwrap();
    assert_eq!(answer.flow, FlowView::default());
    net.client.run(|| tcp(at(STICKY))).unwrap();
    let answer = node.datapath.ask(&sticky).unwrap().unwrap();
    let record = answer.flow.affinity.expect("a record");
    assert_eq!(answer.verdict, took(record.backend, true), "{answer:#?}");
    assert!(world.disagreements(&sticky, &answer).is_empty(), "{answer:#?}");
    let stream = net.client.run(|| TcpStream::connect(at(RANDOM))).unwrap();
    let port = stream.local_addr().unwrap().port();
    let answer = node.datapath.ask(&from("10.1.0.2", port, RANDOM)).unwrap().unwrap();
    let backend = answer.flow.established.expect("a flow");
    assert_eq!(answer.verdict, took(backend, true), "{answer:#?}");
    let udp = net.client.run(|| udp_socket(at(RANDOM))).unwrap();
    udp.send(b"?").unwrap();
    let port = udp.local_addr().unwrap().port();
    let packet = Packet { protocol: Protocol::Udp, ..from("10.1.0.2", port, RANDOM) };
    let answer = node.datapath.ask(&packet).unwrap().unwrap();
    assert!(answer.flow.established.is_some(), "{answer:#?}");
    assert!(world.disagreements(&packet, &answer).is_empty(), "{answer:#?}");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn what_somebody_changed_disagrees() {
    let net = Net::new();
    let world = World::new(&net);
    for edit in [
        "nft delete element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 }'",
        "nft delete element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 }'; \
         nft add element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 : 0x0 . 0x40000000 . 0x0 . 0x0 . 0x0 }'",
        "nft delete element inet lb slots4 '{ 10.96.0.1 . tcp . 80 . 1 }'",
        "nft delete element inet lb slots4 '{ 10.96.0.1 . tcp . 80 . 0 }'; \
         nft add element inet lb slots4 '{ 10.96.0.1 . tcp . 80 . 0 : 10.66.6.6 . 80 }'",
        "nft flush chain inet lb prerouting",
        "nft flush map inet lb slots4",
        "nft delete chain inet lb prerouting",
        "nft add table inet lb '{ flags dormant; }'",
        "nft delete table inet lb",
    ] {
        let mut node = open(&net);
        node.become_state(world.state());
        let packet = from("10.1.0.2", 40_000, RANDOM);
        let answer = node.datapath.ask(&packet).unwrap().unwrap();
        assert!(world.disagreements(&packet, &answer).is_empty(), "{answer:#?}");
        net.node.sh(edit);
        let answer = node.datapath.ask(&packet).unwrap().unwrap();
        assert!(!world.disagreements(&packet, &answer).is_empty(), "{edit}\n{answer:#?}");
        node.datapath.cleanup().unwrap();
    }
}

/// What a foreign rule does is not known, and a chain without its rules translates nothing: neither is an agreement.
#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn chains_that_are_not_ours_any_more_are_named() {
    let net = Net::new();
    let world = World::new(&net);
    for (edit, vip, chain) in [
        ("nft insert rule inet lb prerouting accept", RANDOM, "prerouting"),
        ("nft add rule inet lb prerouting counter", RANDOM, "prerouting"),
        ("nft chain inet lb prerouting '{ policy drop; }'", RANDOM, "prerouting"),
        ("nft flush chain inet lb postrouting", RANDOM, "postrouting"),
        ("nft insert rule inet lb postrouting accept", STICKY, "postrouting"),
        ("nft flush chain inet lb masquerade4", RANDOM, "masquerade4"),
        ("nft insert rule inet lb refuse accept", NOBODY, "refuse"),
    ] {
        let mut node = open(&net);
        node.become_state(world.state());
        net.node.sh(edit);
        let error = node.datapath.ask(&from("10.1.0.2", 40_000, vip)).unwrap_err().report();
        assert!(
            error.contains(&format!("chain {chain} are no longer those of lb")) && error.contains("`lb drift`"),
            "{edit}: {error}"
        );
        let drift = node.drift();
        assert!(!drift.is_empty(), "{edit}");
        node.repair(&drift);
        let packet = from("10.1.0.2", 40_000, vip);
        let answer = node.datapath.ask(&packet).unwrap().unwrap();
        assert_eq!(world.disagreements(&packet, &answer), Vec::<String>::new(), "{edit}\n{answer:#?}");
        node.datapath.cleanup().unwrap();
    }
}

const NOBODY: &str = "10.96.0.5";
const RANDOM: &str = "10.96.0.1";
const STICKY: &str = "10.96.0.4";
const VIPS: [&str; 8] = [RANDOM, "10.96.0.2", "10.96.0.3", STICKY, NOBODY, "10.96.0.99", OUTSIDE, LOCAL];
/// Addresses of load balancers, with external traffic policy Cluster and Local.
const OUTSIDE: &str = "10.97.0.1";
const LOCAL: &str = "10.97.0.2";

fn open(net: &Net) -> Node {
    Node::open_with(net, &NftablesConfig::default().with_uplink_devices(["eth0"]))
}

fn took(backend: lb_core::addr::BackendAddr, translated: bool) -> KernelVerdict {
    KernelVerdict::Forward { backends: Backends::Took(backend), translated: Some(translated) }
}

fn from(source: &str, source_port: u16, vip: &str) -> Packet {
    let SocketAddr::V4(to) = at(vip) else { panic!("IPv4") };
    Packet {
        entry: Entry::Uplink,
        protocol: Protocol::Tcp,
        source: source.parse().unwrap(),
        source_port,
        destination: IpAddr::V4(*to.ip()),
        destination_port: to.port(),
    }
}

/// Services of every kind, as a model and as what it asks of a datapath.
struct World {
    model: Model,
    desired: Desired,
}

impl World {
    fn new(net: &Net) -> Self {
        let capabilities = open(net).datapath.capabilities();
        let mut world = Self { model: Model::new(Settings::default(), capabilities), desired: Desired::default() };
        world.take(Change::SetNode(facts(&["10.2.0.0/16"])));
        let both = &["10.2.1.2", "10.2.2.2"][..];
        let affinity = Affinity { timeout: Duration::from_secs(60), ..Affinity::default() };
        world.serve("random", RANDOM, Algorithm::Random, None, both);
        world.serve("hashed", "10.96.0.2", Algorithm::Maglev, None, both);
        world.serve("turns", "10.96.0.3", Algorithm::RoundRobin, None, both);
        world.serve("sticky", STICKY, Algorithm::Maglev, Some(affinity), both);
        world.serve("nobody", "10.96.0.5", Algorithm::Random, None, &[]);
        world.expose("outside", OUTSIDE, TrafficPolicy::Cluster);
        world.expose("local", LOCAL, TrafficPolicy::Local);
        world
    }

    /// A service of a load balancer, one of whose two backends is on another node.
    fn expose(&mut self, name: &str, vip: &str, policy: TrafficPolicy) {
        let port = ServicePort { name: "tcp".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let mut service = Service::new(ServiceName::new("default", name));
        (service.load_balancer_ips, service.ports) = (vec![vip.parse().unwrap()], vec![port]);
        service.external_traffic_policy = policy;
        self.take(Change::UpsertService(service));
        let near = Endpoint::new("10.2.1.2".parse().unwrap());
        let far = Endpoint { node: Some(NodeName::new("node-2")), ..Endpoint::new("10.2.2.2".parse().unwrap()) };
        self.take(Change::ReplaceEndpoints(EndpointSlice {
            name: SliceName::new("default", name),
            service: ServiceName::new("default", name),
            ports: vec![SlicePort { name: "tcp".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: vec![near, far],
        }));
    }

    fn serve(&mut self, name: &str, vip: &str, algorithm: Algorithm, affinity: Option<Affinity>, backends: &[&str]) {
        let ports = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
        let mut service = Service::new(ServiceName::new("default", name));
        service.cluster_ips = vec![vip.parse().unwrap()];
        service.ports = ports
            .map(|(name, protocol)| ServicePort { name: name.into(), protocol, port: 80, node_port: None })
            .to_vec();
        (service.algorithm, service.affinity) = (Some(algorithm), affinity);
        self.take(Change::UpsertService(service));
        self.take(Change::ReplaceEndpoints(EndpointSlice {
            name: SliceName::new("default", name),
            service: ServiceName::new("default", name),
            ports: ports.map(|(name, protocol)| SlicePort { name: name.into(), protocol, port: 8080 }).to_vec(),
            endpoints: backends.iter().map(|ip| Endpoint::new(ip.parse().unwrap())).collect(),
        }));
    }

    fn take(&mut self, change: Change) {
        let services = self.model.apply(change).unwrap();
        let touched = self.desired.update(&self.model, &services).unwrap();
        drop(touched);
    }

    fn state(&self) -> State {
        assert!(!diff(&State::default(), self.desired.state(), &Labels::new()).is_empty());
        self.desired.state().clone()
    }

    fn disagreements(&self, packet: &Packet, answer: &KernelAnswer) -> Vec<String> {
        let now = answer.flow.affinity.map_or(Instant::default(), |record| record.last_use);
        answer.disagreements(packet, &decide(&self.model, packet, &answer.flow, now))
    }
}
