//! What the kernel says about a packet is what the model decides, until somebody has changed the kernel.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::Protocol,
    affinity::Affinity,
    datapath::{Datapath, Role},
    decision::{Entry, Packet, decide},
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    kernel::{Backends, KernelAnswer, KernelVerdict},
    model::{Change, Model, Settings},
    name::{ServiceName, SliceName},
    node::NodeFacts,
    reconciler::Reconciler,
    service::{Algorithm, Service, ServicePort, ServiceType},
    time::Instant,
};
use lb_datapath_ebpf::{EbpfDatapath, SocketBalancing};
use lb_datapath_ebpf_abi as abi;

use crate::{
    bpf::Map,
    common::{
        Cgroup, Namespace, PATIENCE, POD_DEVICES, PinDir, UPLINK, World, ask_on, ask_tcp, config, connect_from, detach,
        first_answer, ip, serve, turn,
    },
};

/// A node with a datapath, and the model of what it holds.
struct Subject {
    datapath: EbpfDatapath,
    reconciler: Reconciler,
    world: World,
    pins: PinDir,
    _cgroup: Cgroup,
}

impl Subject {
    fn new(changes: impl IntoIterator<Item = Change>) -> Self {
        Self::in_world(World::new(), &[UPLINK], World::facts(), changes)
    }

    fn in_world(world: World, uplinks: &[&str], node: NodeFacts, changes: impl IntoIterator<Item = Change>) -> Self {
        Self::in_cgroup(Cgroup::empty(), world, (uplinks, node), changes)
    }

    fn balancing(balancing: SocketBalancing, changes: impl IntoIterator<Item = Change>) -> Self {
        Self::with(Cgroup::empty(), World::new(), (&[UPLINK], World::facts()), balancing, changes)
    }

    fn in_cgroup(
        cgroup: Cgroup,
        world: World,
        place: (&[&str], NodeFacts),
        changes: impl IntoIterator<Item = Change>,
    ) -> Self {
        Self::with(cgroup, world, place, SocketBalancing::All, changes)
    }

    fn with(
        cgroup: Cgroup,
        world: World,
        (uplinks, node): (&[&str], NodeFacts),
        balancing: SocketBalancing,
        changes: impl IntoIterator<Item = Change>,
    ) -> Self {
        let pins = PinDir::new();
        let mut config = config(&pins, &cgroup);
        config.pod_devices = POD_DEVICES.map(String::from).to_vec();
        config.uplink_devices = uplinks.iter().map(ToString::to_string).collect();
        config.socket_balancing = balancing;
        let mut datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        let mut reconciler = Reconciler::new(Model::new(Settings::default(), datapath.capabilities()));
        reconciler.handle_observed(datapath.observe().unwrap());
        let mut subject = Self { datapath, reconciler, world, pins, _cgroup: cgroup };
        subject.change(Change::SetNode(node));
        for change in changes {
            subject.change(change);
        }
        subject
    }

    fn change(&mut self, change: Change) {
        self.reconciler.handle_change(change).unwrap();
        while let Some(plan) = self.reconciler.poll_plan(Instant::default()).unwrap() {
            let outcome = self.datapath.apply(&plan);
            self.reconciler.handle_applied(plan.id, outcome, Instant::default());
        }
    }

    fn ask(&mut self, packet: &Packet) -> KernelAnswer {
        let datapath = &mut self.datapath;
        self.world.node.run(|| datapath.ask(packet)).unwrap().unwrap()
    }

    /// The answer, and what it disagrees about with the model.
    fn verify(&mut self, packet: &Packet) -> (KernelAnswer, Vec<String>) {
        let answer = self.ask(packet);
        let decision = decide(self.reconciler.model(), packet, &answer.flow, now());
        let found = answer.disagreements(packet, &decision);
        (answer, found)
    }

    fn map(&self, name: &str) -> Map {
        Map::open(&self.pins.0.join("v1/maps").join(name))
    }

    /// Everything that the programs write.
    fn traces(&self) -> Traces {
        let turns = self.map("TURNS");
        let turns = turns.keys::<u32>().iter().map(|set| turns.get(set)).collect();
        (self.map("CT").keys(), self.map("AFFINITY").keys(), turns)
    }
}

/// Keys of flows and of records, and turns.
type Traces = (Vec<[u8; 40]>, Vec<[u8; 24]>, Vec<Option<u64>>);

/// Now, by the clock that answers are dated with.
fn now() -> Instant {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: there is room for the answer.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) }, 0);
    Instant::new(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

const VIPS: [&str; 2] = ["10.96.0", "fd00:96:"];
const PODS: [[&str; 4]; 2] = [
    ["10.244.0.2", "10.244.1.2", "10.244.7.7", "10.244.8.8"],
    ["fd00:244::2", "fd00:244:1::2", "fd00:244:7::7", "fd00:244:8::8"],
];

fn vip(family: usize, number: usize) -> IpAddr {
    let separator = if family == 0 { "." } else { ":" };
    ip(&format!("{}{separator}{}", VIPS[family], number + 1))
}

fn service(number: usize, family: usize, algorithm: Algorithm, affinity: Option<Affinity>) -> Service {
    let port = |protocol| ServicePort { name: name_of(protocol), protocol, port: port_of(protocol), node_port: None };
    Service {
        cluster_ips: vec![vip(family, number)],
        ports: PROTOCOLS.map(port).to_vec(),
        affinity,
        algorithm: Some(algorithm),
        ..Service::new(ServiceName::new("test", &format!("s{number}")))
    }
}

fn endpoints(number: usize, addrs: &[&str]) -> Change {
    let port = |protocol| SlicePort { name: name_of(protocol), protocol, port: 8080 };
    Change::ReplaceEndpoints(EndpointSlice {
        name: SliceName::new("test", &format!("s{number}")),
        service: ServiceName::new("test", &format!("s{number}")),
        ports: PROTOCOLS.map(port).to_vec(),
        endpoints: addrs.iter().map(|addr| Endpoint::new(ip(addr))).collect(),
    })
}

fn name_of(protocol: Protocol) -> Arc<str> {
    protocol.as_str().into()
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The port of services: of SCTP it is that of the backends.
fn port_of(protocol: Protocol) -> u16 {
    if protocol == Protocol::Sctp { 8080 } else { 80 }
}

const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev, Algorithm::LeastConnections];

const SERVICES: usize = 32;

fn services(dice: &mut Dice) -> Vec<Change> {
    let mut changes = Vec::new();
    for number in 0..SERVICES {
        let family = number % 2;
        let algorithm = dice.pick(&ALGORITHMS);
        let affinity = dice.pick(&[None, Some(Affinity { prefix_v4: 24, ..Affinity::default() })]);
        let affinity_by_source = dice.below(2) == 0;
        let service = Service { affinity_by_source, ..service(number, family, algorithm, affinity) };
        changes.push(Change::UpsertService(service));
        changes.push(endpoints(number, &PODS[family][..dice.below(5)]));
    }
    changes
}

fn packet(dice: &mut Dice) -> Packet {
    let number = dice.below(SERVICES + 1);
    let family = number % 2;
    let outside = [["192.0.2.2", "198.51.100.7"], ["2001:db8::2", "2001:db8:7::7"]][family];
    let entry = dice.pick(&[Entry::Socket, Entry::PodDevice, Entry::Uplink]);
    let source = if entry == Entry::Uplink { dice.pick(&outside) } else { dice.pick(&PODS[family]) };
    let protocol = dice.pick(&PROTOCOLS);
    Packet {
        entry,
        protocol,
        source: ip(source),
        source_port: 30000 + dice.below(30000) as u16,
        destination: vip(family, number),
        destination_port: if dice.below(4) > 0 { port_of(protocol) } else { 81 },
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_kernel_says_what_the_model_decides_and_keeps_no_trace() {
    let _turn = turn();
    let mut dice = Dice(7);
    let mut subject = Subject::new(services(&mut dice));
    let before = subject.traces();
    let (mut forwarded, mut translated, mut refused, mut passed) = (0, 0, 0, 0);
    for _ in 0..1500 {
        let packet = packet(&mut dice);
        let (answer, found) = subject.verify(&packet);
        assert_eq!(found, [""; 0], "{packet:?}: {answer:?}");
        match answer.verdict {
            KernelVerdict::Forward { translated: Some(true), .. } => translated += 1,
            KernelVerdict::Forward { .. } => forwarded += 1,
            KernelVerdict::Reject => refused += 1,
            KernelVerdict::Pass => passed += 1,
            KernelVerdict::Drop => panic!("{packet:?}: {answer:?}"),
        }
    }
    println!("1500 packets agree: {forwarded} forwarded, {translated} translated, {refused} refused, {passed} passed");
    assert!(forwarded > 100 && translated > 100 && refused > 100 && passed > 50);
    assert_eq!(subject.traces(), before);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn sockets_that_are_not_balanced_are_asked_about_as_packets() {
    const PACKETS: usize = 400;
    let _turn = turn();
    for balancing in [SocketBalancing::Host, SocketBalancing::Off] {
        let mut dice = Dice(11);
        let mut subject = Subject::balancing(balancing, services(&mut dice));
        let node = World::facts().ips;
        let mut forwarded = [0, 0];
        for _ in 0..PACKETS {
            let from_node = dice.below(2) == 1;
            let mut packet = Packet { entry: Entry::Socket, ..packet(&mut dice) };
            if from_node {
                let same = |ip: &&IpAddr| ip.is_ipv4() == packet.destination.is_ipv4();
                packet.source = *node.iter().find(same).expect("the node has both families");
            } else {
                packet.source = ip(dice.pick(&PODS[usize::from(packet.destination.is_ipv6())]));
            }
            let (answer, found) = subject.verify(&packet);
            assert_eq!(found, [""; 0], "{balancing:?} {packet:?}: {answer:?}");
            let is_forwarded = matches!(answer.verdict, KernelVerdict::Forward { .. });
            forwarded[usize::from(from_node)] += usize::from(is_forwarded);
        }
        assert!(forwarded.iter().all(|count| *count > PACKETS / 10), "{balancing:?}: {forwarded:?}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn flows_and_records_are_seen_and_left_alone() {
    let _turn = turn();
    let sticky = service(0, 0, Algorithm::Random, Some(Affinity::default()));
    let mut subject = Subject::new([Change::UpsertService(sticky), endpoints(0, &PODS[0][..2])]);
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let addr = SocketAddr::new(ip(PODS[0][i]), 8080);
        let job = subject.world.pods[i].run(|| serve(addr, name));
        subject.world.pods[i].spawn(job);
    }
    let vip = SocketAddr::new(vip(0, 0), 80);
    let mut stream = subject.world.client.run(|| TcpStream::connect(vip)).unwrap();
    let answer = ask_on(&mut stream).unwrap();
    let backend = if answer.starts_with('a') { PODS[0][0] } else { PODS[0][1] };
    let packet = Packet {
        entry: Entry::Uplink,
        protocol: Protocol::Tcp,
        source: ip("192.0.2.2"),
        source_port: stream.local_addr().unwrap().port(),
        destination: vip.ip(),
        destination_port: 80,
    };
    let before = subject.traces();
    let (found, disagreements) = subject.verify(&packet);
    assert_eq!(disagreements, [""; 0], "{found:?}");
    assert_eq!(found.flow.established.map(|backend| backend.ip), Some(ip(backend)));
    assert_eq!(found.flow.affinity.map(|record| record.backend.ip), Some(ip(backend)));
    // Another connection of the client sticks, and one that is established keeps a backend that left.
    let (found, disagreements) = subject.verify(&Packet { source_port: 1, ..packet });
    assert_eq!((disagreements, found.flow.established), (Vec::new(), None));
    let other = if backend == PODS[0][0] { 1..2 } else { 0..1 };
    subject.change(endpoints(0, &PODS[0][other]));
    let (found, disagreements) = subject.verify(&packet);
    assert_eq!(disagreements, [""; 0], "{found:?}");
    let KernelVerdict::Forward { backends: Backends::Took(took), .. } = found.verdict else { panic!("{found:?}") };
    assert_eq!(took.ip, ip(backend));
    let (found, disagreements) = subject.verify(&Packet { source_port: 2, ..packet });
    assert_eq!(disagreements, [""; 0], "{found:?}");
    assert_eq!(subject.traces(), before);
    assert_eq!(ask_on(&mut stream).unwrap(), answer);
}

/// A change behind the datapath's back, and where packets come in that it is seen at.
type Case = (&'static str, fn(&mut Subject), &'static [Entry]);

const EVERYWHERE: &[Entry] = &[Entry::Socket, Entry::PodDevice, Entry::Uplink];
const DEVICES: &[Entry] = &[Entry::PodDevice, Entry::Uplink];

fn key() -> abi::FrontendKey {
    abi::FrontendKey { addr: abi::map_v4([10, 96, 0, 1]), port: abi::Port::new(80), protocol: 6, scope: 0, pad: 0 }
}

fn edit(subject: &Subject, change: impl Fn(&mut abi::FrontendValue)) {
    let map = subject.map("FRONTENDS");
    let mut value = map.get(&key()).unwrap();
    change(&mut value);
    map.put(&key(), &value);
}

fn detach_all(subject: &Subject, program: &str) {
    for entry in std::fs::read_dir(subject.pins.0.join("v1/links")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with(program) {
            detach(&subject.world.node, &path);
        }
    }
}

const CASES: [Case; 9] = [
    ("frontend gone", |s| s.map("FRONTENDS").remove(&key()), EVERYWHERE),
    ("frontend refused", |s| edit(s, |value| value.target = abi::TARGET_REJECT), EVERYWHERE),
    ("frontend dropped", |s| edit(s, |value| value.target = abi::TARGET_DROP), EVERYWHERE),
    ("another table", |s| edit(s, |value| value.first += 1000), EVERYWHERE),
    (
        "backend elsewhere",
        |s| {
            let map = s.map("BACKENDS");
            for id in map.keys::<u32>() {
                let value = map.get::<abi::BackendValue>(&id).unwrap();
                map.put(&id, &abi::BackendValue { port: abi::Port::new(9), ..value });
            }
        },
        EVERYWHERE,
    ),
    ("standby", |s| s.datapath.set_role(Role::Standby).unwrap(), EVERYWHERE),
    ("detached from the cgroup", |s| detach_all(s, "lb_connect4"), &[Entry::Socket]),
    ("detached from devices", |s| detach_all(s, "lb_ingress"), DEVICES),
    ("no node", |s| s.map("NODE").remove(&abi::NODE_KEY), &[Entry::Uplink]),
];

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_change_behind_the_back_is_a_disagreement() {
    let _turn = turn();
    for (name, change, seen) in CASES {
        let web = service(0, 0, Algorithm::Maglev, None);
        let mut subject = Subject::new([Change::UpsertService(web), endpoints(0, &PODS[0][..1])]);
        change(&mut subject);
        for &entry in EVERYWHERE {
            let packet = Packet {
                entry,
                protocol: Protocol::Tcp,
                source: ip(if entry == Entry::Uplink { "192.0.2.2" } else { "10.244.1.2" }),
                source_port: 40000,
                destination: vip(0, 0),
                destination_port: 80,
            };
            let (answer, found) = subject.verify(&packet);
            assert_eq!(!found.is_empty(), seen.contains(&entry), "{name}, {entry:?}: {answer:?}");
        }
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_packet_of_a_pod_cannot_be_asked_about_without_a_device_of_pods() {
    let _turn = turn();
    let (space, pins, cgroup) = (Namespace::new("v"), PinDir::new(), Cgroup::empty());
    let config = config(&pins, &cgroup).with_pod_devices(["gone"]);
    let mut datapath = space.run(|| EbpfDatapath::open(config)).unwrap();
    let packet = Packet {
        entry: Entry::PodDevice,
        protocol: Protocol::Tcp,
        source: ip("10.244.1.2"),
        source_port: 40000,
        destination: vip(0, 0),
        destination_port: 80,
    };
    let error = space.run(|| datapath.ask(&packet)).unwrap_err();
    let expected = "no pod device is attached; name one that exists in `EbpfConfig::pod_devices`";
    assert_eq!(error.to_string(), expected);
    assert!(space.run(|| datapath.ask(&Packet { entry: Entry::Socket, ..packet })).is_ok());
}

/// A packet of TCP from `source` to `destination`.
fn segment(entry: Entry, source: &str, destination: &str) -> Packet {
    let [source, destination] = [source, destination].map(|end| end.parse::<SocketAddr>().unwrap());
    Packet {
        entry,
        protocol: Protocol::Tcp,
        source: source.ip(),
        source_port: source.port(),
        destination: destination.ip(),
        destination_port: destination.port(),
    }
}

fn web(family: usize, backend: &str) -> [Change; 2] {
    [Change::UpsertService(service(family, family, Algorithm::Random, None)), endpoints(family, &[backend])]
}

fn says(answer: &KernelAnswer, what: &str) -> bool {
    answer.steps.iter().any(|step| step.contains(what))
}

/// `10.244.0.2` and `10.244.0.3` are on one bridge.
fn bridged() -> World {
    let world = World::new();
    // Otherwise it would have the address of one of its ports.
    world.node.ip("link add cni0 address 02:00:00:00:0c:01 type bridge");
    world.node.ip("link set cni0 up");
    for device in POD_DEVICES {
        world.node.ip(&format!("addr flush dev {device}"));
        world.node.ip(&format!("link set {device} master cni0"));
    }
    world.node.ip("addr add 10.244.0.1/24 dev cni0");
    world.pods[1].ip("addr add 10.244.0.3/24 dev eth0");
    world.pods[1].ip("route replace default via 10.244.0.1");
    world
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces, a bridge and a cgroup"]
fn pods_behind_a_bridge_are_asked_about_as_their_packets_come() {
    let _turn = turn();
    let subject = &mut Subject::in_world(bridged(), &[UPLINK], World::facts(), web(0, "10.244.0.3"));
    let job = subject.world.pods[1].run(|| serve("10.244.0.3:8080".parse().unwrap(), "b"));
    subject.world.pods[1].spawn(job);
    let vip = SocketAddr::new(vip(0, 0), 80);
    let packet = segment(Entry::PodDevice, "10.244.0.2:40000", &vip.to_string());
    let (answer, found) = subject.verify(&packet);
    assert_eq!(found, [""; 0], "{answer:?}");
    assert!(says(&answer, "a port of bridge cni0"), "{answer:?}");
    assert_eq!(subject.world.pods[0].run(|| ask_tcp(vip)).unwrap(), "b 10.244.0.2");
    // As if the programs took no packets to the bridge's address.
    let devices = subject.map("DEVICES");
    for device in devices.keys::<u32>() {
        let value = devices.get::<abi::DeviceValue>(&device).unwrap();
        devices.put(&device, &abi::DeviceValue { kind: value.kind & !abi::DEVICE_PORT, ..value });
    }
    let (answer, found) = subject.verify(&packet);
    assert_eq!(found, ["verdict: expected forward, the kernel has pass"], "{answer:?}");
    assert!(subject.world.pods[0].run(|| first_answer(vip)).is_err());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_source_that_is_translated_is_told_and_is_what_the_backend_sees() {
    let _turn = turn();
    let (world, far) = (World::new(), Namespace::new("f"));
    world.node.join("uplink2", &far, "eth0");
    world.node.ip("addr add 198.51.100.1/24 dev uplink2");
    far.ip("addr add 198.51.100.2/24 dev eth0");
    let mut node = World::facts();
    node.ips.push(ip("198.51.100.1"));
    let subject = &mut Subject::in_world(world, &[UPLINK, "uplink2"], node, web(0, "198.51.100.2"));
    let job = far.run(|| serve("198.51.100.2:8080".parse().unwrap(), "far"));
    far.spawn(job);
    let vip = SocketAddr::new(vip(0, 0), 80);
    let packet = segment(Entry::Uplink, "192.0.2.2:40000", &vip.to_string());
    let (answer, found) = subject.verify(&packet);
    assert_eq!(found, [""; 0], "{answer:?}");
    assert!(says(&answer, "source 198.51.100.1, as the route to the backend says"), "{answer:?}");
    assert_eq!(subject.world.client.run(|| ask_tcp(vip)).unwrap(), "far 198.51.100.1");
    // A program that takes the first address, whatever the route.
    let map = subject.map("NODE");
    let node = map.get::<abi::NodeValue>(&abi::NODE_KEY).unwrap();
    map.put(&abi::NODE_KEY, &abi::NodeValue { many_v4: 0, ..node });
    let (answer, found) = subject.verify(&packet);
    let expected = "source: the route to the backend says 198.51.100.1, the kernel has 192.0.2.1";
    assert_eq!(found, [expected], "{answer:?}");
    assert!(subject.world.client.run(|| first_answer(vip)).is_err(), "no way leads back to the first address");
    map.put(&abi::NODE_KEY, &node);
    // A packet of a client behind the second uplink is asked about there.
    let other = subject.ask(&segment(Entry::Uplink, "198.51.100.9:40000", &vip.to_string()));
    assert!(says(&answer, "came in through uplink") && says(&other, "came in through uplink2"), "{other:?}");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn an_answer_to_a_process_of_the_node_is_asked_about_as_one() {
    let _turn = turn();
    let own = Service {
        kind: ServiceType::LoadBalancer,
        load_balancer_ips: vec![ip("192.0.2.1")],
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 10_001, node_port: None }],
        ..Service::new(ServiceName::new("test", "s0"))
    };
    let slice = EndpointSlice {
        name: SliceName::new("test", "s0"),
        service: ServiceName::new("test", "s0"),
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![Endpoint::new(ip(PODS[0][0]))],
    };
    let subject = &mut Subject::new([Change::UpsertService(own), Change::ReplaceEndpoints(slice)]);
    let listener = subject.world.client.run(|| TcpListener::bind("192.0.2.2:9000").unwrap());
    let mut stream = subject.world.node.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"192.0.2.1:10001".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&"192.0.2.2:9000".parse::<SocketAddr>().unwrap().into()).unwrap();
        TcpStream::from(socket)
    });
    let (mut peer, _) = listener.accept().unwrap();
    let answer_to = segment(Entry::Uplink, "192.0.2.2:9000", "192.0.2.1:10001");
    let (answer, found) = subject.verify(&answer_to);
    assert_eq!(found, [""; 0], "{answer:?}");
    assert_eq!((answer.verdict, answer.flow.direct), (KernelVerdict::Pass, true));
    peer.write_all(b"!").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    // From another port, it is a new connection.
    let (answer, found) = subject.verify(&Packet { source_port: 9001, ..answer_to });
    assert_eq!(found, [""; 0], "{answer:?}");
    assert!(matches!(answer.verdict, KernelVerdict::Forward { .. }), "{answer:?}");
    // A program that takes the answer for new traffic of the service, once it has forgotten what the node has sent.
    let flows = subject.map("CT");
    flows.keys::<abi::CtKey>().iter().for_each(|key| flows.remove(key));
    assert_eq!(subject.verify(&answer_to).1, [""; 0]);
    let map = subject.map("NODE");
    let node = map.get::<abi::NodeValue>(&abi::NODE_KEY).unwrap();
    map.put(&abi::NODE_KEY, &abi::NodeValue { facts: abi::Facts { ips_len: 0, ..node.facts }, ..node });
    let (answer, found) = subject.verify(&answer_to);
    assert!(found.first().is_some_and(|found| found.starts_with("verdict: expected pass, ")), "{answer:?} {found:?}");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn what_comes_back_for_a_packet_that_is_too_long_is_told() {
    let _turn = turn();
    let subject = &mut Subject::new([web(0, PODS[0][1]), web(1, PODS[1][1])].concat());
    let [v4, v6] = [0, 1].map(|family| SocketAddr::new(vip(family, family), 80));
    let ask = |subject: &mut Subject| {
        [(v4, "192.0.2.2:40000"), (v6, "[2001:db8::2]:40000")].map(|(vip, client)| {
            let (answer, found) = subject.verify(&segment(Entry::Uplink, client, &vip.to_string()));
            assert_eq!(found, [""; 0], "{answer:?}");
            answer
        })
    };
    assert!(ask(subject).iter().all(|answer| !says(answer, "1500 bytes")));
    subject.world.node.ip(&format!("link set {} mtu 1400", POD_DEVICES[1]));
    let [of_v4, of_v6] = ask(subject);
    let told =
        format!("a packet of 1500 bytes is answered with \"fragmentation needed\" by {}: 1400 bytes fit", v4.ip());
    assert!(says(&of_v4, &told), "{of_v4:?}");
    let told = format!("a packet of 1500 bytes is answered with \"packet too big\" by {}: 1400 bytes fit", v6.ip());
    assert!(says(&of_v6, &told), "{of_v6:?}");
    let error = subject.world.client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let option = libc::IP_PMTUDISC_DO;
        let (at, len) = ((&raw const option).cast(), size_of_val(&option) as u32);
        // SAFETY: the option takes an integer.
        let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, at, len) };
        assert_eq!(set, 0);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(v4).unwrap();
        socket.send(&[0; 1472]).unwrap();
        socket.recv(&mut [0; 8]).unwrap_err()
    });
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_program_that_lacks_on_the_way_back_or_for_mapped_addresses_is_a_disagreement() {
    let _turn = turn();
    let packet = |protocol| Packet { protocol, ..segment(Entry::Socket, "10.244.1.2:40000", "10.96.0.1:80") };
    for (program, of_udp, of_tcp) in [
        ("lb_recvmsg6", Some("an IPv6 socket that uses the IPv4-mapped address hears the backend's address"), None),
        ("lb_recvmsg4", Some("a socket hears the backend's address"), None),
        ("lb_sendmsg6", Some("the IPv4-mapped address is not sent to a backend"), None),
        ("lb_connect6", Some("is not sent to a backend"), Some("is not sent to a backend")),
        ("lb_getpeername4", Some("is told the backend's address"), Some("is told the backend's address")),
    ] {
        let subject = &mut Subject::new(web(0, PODS[0][0]));
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            assert_eq!(subject.verify(&packet(protocol)).1, [""; 0]);
        }
        detach_all(subject, program);
        for (protocol, expected) in [(Protocol::Udp, of_udp), (Protocol::Tcp, of_tcp)] {
            let found = subject.verify(&packet(protocol)).1;
            assert_eq!(found.len(), usize::from(expected.is_some()), "{program}: {found:?}");
            assert!(found.iter().all(|found| found.contains(expected.unwrap())), "{program}: {found:?}");
        }
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_forged_source_is_dropped_by_both() {
    let _turn = turn();
    let subject = &mut Subject::new([web(0, PODS[0][0]), web(1, PODS[1][0])].concat());
    let vips = [0, 1].map(|family| SocketAddr::new(vip(family, family), 80).to_string());
    for (family, source) in [(0, "192.0.2.1"), (0, "127.0.0.1"), (0, "224.0.0.1"), (1, "[2001:db8::1]"), (1, "[::1]")] {
        for entry in [Entry::Uplink, Entry::PodDevice] {
            let (answer, found) = subject.verify(&segment(entry, &format!("{source}:40000"), &vips[family]));
            assert_eq!((found, &answer.verdict), (Vec::new(), &KernelVerdict::Drop), "{source}: {answer:?}");
        }
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_half_closed_connection_is_one_that_goes_on() {
    let _turn = turn();
    let subject = &mut Subject::new(web(0, PODS[0][0]));
    let listener = subject.world.pods[0].run(|| TcpListener::bind("10.244.0.2:8080").unwrap());
    let mut stream = subject.world.client.run(|| TcpStream::connect(SocketAddr::new(vip(0, 0), 80)).unwrap());
    let (mut served, _) = listener.accept().unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(served.read(&mut [0]).unwrap(), 0, "the FIN is there");
    let port = stream.local_addr().unwrap().port();
    let packet = Packet { source_port: port, ..segment(Entry::Uplink, "192.0.2.2:1", "10.96.0.1:80") };
    let (answer, found) = subject.verify(&packet);
    assert_eq!(found, [""; 0], "{answer:?}");
    assert!(answer.flow.established.is_some(), "{answer:?}");
    served.write_all(b"!").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// What `pod` hears from `to` when it connects from port `port` of its address, and the connection.
fn hear(pod: &Namespace, source: &str, to: SocketAddr) -> (String, TcpStream) {
    pod.run(|| {
        let mut stream = connect_from(source.parse().unwrap(), to).unwrap();
        (ask_on(&mut stream).unwrap(), stream)
    })
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_source_that_a_direct_flow_or_one_of_a_frontend_has_is_not_kept() {
    let _turn = turn();
    let subject = &mut Subject::new(web(0, PODS[0][1]));
    let (backend, vip) = (SocketAddr::new(ip(PODS[0][1]), 8080), SocketAddr::new(vip(0, 0), 80));
    let job = subject.world.pods[1].run(|| serve(backend, "b"));
    subject.world.pods[1].spawn(job);
    let sources = ["10.244.0.2:40000", "10.244.0.2:40001", "10.244.0.2:40002"];
    let (heard, _direct) = hear(&subject.world.pods[0], sources[0], backend);
    assert_eq!(heard, "b 10.244.0.2");
    let (answer, found) = subject.verify(&segment(Entry::PodDevice, sources[0], &vip.to_string()));
    assert_eq!(found, [""; 0], "{answer:?}");
    let told = "a direct flow has the source 10.244.0.2:40000 to 10.244.1.2:8080: another one is looked for";
    assert!(says(&answer, told) && says(&answer, "source 192.0.2.1, port "), "{answer:?}");
    let (heard, _translated) = hear(&subject.world.pods[0], sources[0], vip);
    assert_eq!(heard, "b 192.0.2.1");
    // The other way round.
    let (heard, _kept) = hear(&subject.world.pods[0], sources[1], vip);
    assert_eq!(heard, "b 10.244.0.2");
    let (answer, found) = subject.verify(&segment(Entry::PodDevice, sources[1], &backend.to_string()));
    assert_eq!(found, [""; 0], "{answer:?}");
    assert!(says(&answer, "a flow of a frontend has its addresses and ports: it gets another source"), "{answer:?}");
    let (heard, _translated) = hear(&subject.world.pods[0], sources[1], backend);
    assert_eq!(heard, "b 192.0.2.1");
    // Nobody has the third one.
    for to in [vip, backend] {
        let (answer, found) = subject.verify(&segment(Entry::PodDevice, sources[2], &to.to_string()));
        assert_eq!((&found[..], says(&answer, "another")), (&[][..], false), "{answer:?}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_port_whose_backend_is_in_time_wait_is_not_named() {
    let _turn = turn();
    let world = World::new();
    // This leaves 1,024 ports to translated sources.
    world.node.sysctl("ipv4/ip_local_port_range", "2048 65535");
    let subject = &mut Subject::in_world(world, &[UPLINK], World::facts(), web(0, PODS[0][0]));
    // Closes first.
    let listener = subject.world.pods[0].run(|| TcpListener::bind("10.244.0.2:8080").unwrap());
    subject.world.pods[0].spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.port().to_string().as_bytes());
        }
    });
    let vip = SocketAddr::new(vip(0, 0), 80);
    let used: BTreeSet<String> = subject.world.client.run(|| {
        let mut used = BTreeSet::new();
        for _ in 0..700 {
            let mut text = String::new();
            TcpStream::connect(vip).unwrap().read_to_string(&mut text).unwrap();
            used.insert(text);
        }
        used
    });
    assert!(used.len() > 600, "{}", used.len());
    let mut looked = 0;
    for port in 20_000..20_040 {
        let (answer, found) = subject.verify(&segment(Entry::Uplink, &format!("192.0.2.2:{port}"), &vip.to_string()));
        assert_eq!(found, [""; 0], "{answer:?}");
        looked += u32::from(says(&answer, "a closed flow, whose backend may be in TIME-WAIT, has the source"));
        let named = answer.steps.iter().find_map(|step| step.strip_prefix("source 192.0.2.1, port ")).unwrap();
        assert!(!used.contains(named), "{answer:?}");
    }
    assert!(looked > 5, "{looked} of 40 ran into one that is used");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_socket_that_could_not_tell_two_frontends_apart_is_told() {
    let _turn = turn();
    let services = [0, 2].into_iter().flat_map(|number| {
        [Change::UpsertService(service(number, 0, Algorithm::Random, None)), endpoints(number, &["192.0.2.2"])]
    });
    let node = (&[UPLINK][..], World::facts());
    let subject = &mut Subject::in_cgroup(Cgroup::joined(), World::new(), node, services);
    let [first, second] = [0, 2].map(|number| SocketAddr::new(vip(0, number), 80));
    let socket = subject.world.node.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"?", first).unwrap();
        socket
    });
    let from = socket.local_addr().unwrap().port();
    let packet = |port, to: SocketAddr| Packet {
        protocol: Protocol::Udp,
        ..segment(Entry::Socket, &format!("192.0.2.1:{port}"), &to.to_string())
    };
    assert_eq!(subject.verify(&packet(from, first)).1, [""; 0]);
    assert_eq!(subject.verify(&packet(from ^ 1, second)).1, [""; 0], "another socket");
    let (answer, found) = subject.verify(&packet(from, second));
    assert_eq!(found, ["verdict: expected forward, the kernel has refuse"], "{answer:?}");
    assert!(says(&answer, &format!("the socket talks to 192.0.2.2:8080/udp under {first} already")), "{answer:?}");
    let error = subject.world.node.run(|| socket.send_to(b"?", second).unwrap_err());
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_process_of_the_node_whose_socket_is_left_to_packets_has_the_backend_of_its_source() {
    let _turn = turn();
    for algorithm in ALGORITHMS {
        let asks = Service { affinity_by_source: true, ..service(0, 0, algorithm, Some(Affinity::default())) };
        let mut subject = Subject::new([Change::UpsertService(asks), endpoints(0, &PODS[0])]);
        let packet = segment(Entry::Socket, "192.0.2.1:40000", "10.96.0.1:80");
        let (answer, found) = subject.verify(&packet);
        assert_eq!(found, [""; 0], "{algorithm}: {answer:?}");
        let count = match &answer.verdict {
            KernelVerdict::Forward { backends: Backends::MayTake(backends), .. } => backends.len(),
            other => panic!("{algorithm}: {other:?}"),
        };
        assert!(if algorithm == Algorithm::Maglev { count == 1 } else { count > 0 }, "{algorithm}: {answer:?}");
        // Programs at the devices do it, and not those of sockets.
        detach_all(&subject, "lb_connect4");
        assert_eq!(subject.verify(&packet).1, [""; 0], "{algorithm}");
        detach_all(&subject, "lb_egress");
        assert_ne!(subject.verify(&packet).1, [""; 0], "{algorithm}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn an_association_of_the_node_is_translated_by_the_programs_of_its_devices() {
    let _turn = turn();
    for (program, is_fault) in [("lb_egress", false), ("lb_ingress", true)] {
        let sig = service(0, 0, Algorithm::Maglev, None);
        let mut subject = Subject::new([Change::UpsertService(sig), endpoints(0, &PODS[0][..1])]);
        let packet = Packet {
            entry: Entry::Socket,
            protocol: Protocol::Sctp,
            source: ip("192.0.2.1"),
            source_port: 40000,
            destination: vip(0, 0),
            destination_port: 8080,
        };
        let (answer, found) = subject.verify(&packet);
        assert_eq!(found, [""; 0], "{answer:?}");
        detach_all(&subject, program);
        let (answer, found) = subject.verify(&packet);
        assert_eq!((!found.is_empty(), !answer.faults.is_empty()), (true, is_fault), "{program}: {answer:?}");
    }
}
