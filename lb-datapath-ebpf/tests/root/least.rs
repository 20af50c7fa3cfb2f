//! Least connections, with real connections: of packets, and of sockets.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::Datapath,
    decision::{Entry, Packet},
    id::SetId,
    plan::{Labels, diff},
    state::{Answer, BackendSet, Lookup, State, Target},
};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath};
use lb_datapath_ebpf_abi as abi;

use crate::{
    bpf::Map,
    common::{
        Cgroup, Namespace, POD_DEVICES, PinDir, UPLINK, World, ask_on, ask_udp, backend, config, ip, serve, state, turn,
    },
};

/// The service whose backends are all of [`BACKENDS`].
const ALL: &str = "10.96.0.1:80";
/// A service with the first one alone.
const FIRST: &str = "10.96.0.2:80";
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Backends on pods.
const PODS: [&str; 6] =
    ["10.244.0.2:8080", "10.244.0.2:8081", "10.244.0.2:8082", "10.244.1.2:8080", "10.244.1.2:8081", "10.244.1.2:8082"];
/// Backends of sockets.
const LOCAL: [&str; 6] =
    ["127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003", "127.0.0.1:8004", "127.0.0.1:8005", "127.0.0.1:8006"];

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Both services, over TCP and UDP.
fn services(lookup: Lookup, backends: &[&str]) -> State {
    let all: Vec<_> = backends.iter().map(|text| addr(text)).collect();
    let services = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .flat_map(|protocol| [(addr(ALL), protocol, &all[..]), (addr(FIRST), protocol, &all[..1])]);
    State { node: World::facts(), ..state(&services.collect::<Vec<_>>(), lookup, None) }
}

/// The same with other sets: a set never changes.
fn renumbered(mut state: State) -> State {
    let other = |set: SetId| SetId::new(set.get() + 10).unwrap();
    state.sets = state.sets.into_iter().map(|(id, set)| (other(id), set)).collect();
    for frontend in state.frontends.values_mut() {
        if let Target::Set(set) = &mut frontend.target {
            *set = other(*set);
        }
    }
    state
}

/// The same without the last backend of each protocol.
fn without_last(mut state: State) -> State {
    let last = [backend(6), backend(12)];
    for set in state.sets.values_mut() {
        let slots: Vec<_> = set.slots.iter().copied().filter(|id| !last.contains(id)).collect();
        *set = Arc::new(BackendSet::new(set.lookup, slots));
    }
    state.backends.retain(|id, _| !last.contains(id));
    renumbered(state)
}

/// A datapath that can start anew.
struct Node {
    datapath: Option<EbpfDatapath>,
    config: EbpfConfig,
    pins: PinDir,
    _cgroup: Cgroup,
}

impl Node {
    fn new(space: &Namespace, pins: PinDir, cgroup: Cgroup, config: EbpfConfig) -> Self {
        let mut node = Self { datapath: None, config, pins, _cgroup: cgroup };
        node.restart(space);
        node
    }

    fn restart(&mut self, space: &Namespace) {
        self.datapath = None;
        let config = self.config.clone();
        self.datapath = Some(space.run(|| EbpfDatapath::open(config)).unwrap());
    }

    fn datapath(&mut self) -> &mut EbpfDatapath {
        self.datapath.as_mut().unwrap()
    }

    fn apply(&mut self, desired: &State) {
        let observed = self.datapath().observe().unwrap();
        self.datapath().apply(&diff(&observed, desired, &Labels::default())).unwrap();
    }

    /// Counts what is there, as it is done from time to time.
    fn recount(&mut self) {
        self.datapath().evict(&[]).unwrap();
    }

    fn map(&self, name: &str) -> Map {
        Map::open(&self.pins.0.join("v1/maps").join(name))
    }

    /// Connections by the name of their backend, those without left out.
    fn loads(&self) -> BTreeMap<String, i64> {
        let map = self.map("LOADS");
        let mut loads = BTreeMap::new();
        for key in map.keys::<abi::LoadKey>() {
            // TCP backends have the first numbers, those of UDP the others.
            let name = NAMES[(key.backend as usize - 1) % NAMES.len()];
            *loads.entry(name.into()).or_insert(0) += map.get::<u64>(&key).unwrap() as i64;
        }
        loads.retain(|_, load| *load != 0);
        loads
    }
}

/// A node, pods that serve, and a client outside.
struct Cluster {
    node: Node,
    world: World,
}

impl Cluster {
    fn new() -> Self {
        let world = World::new();
        for (number, (backend, name)) in PODS.into_iter().zip(NAMES).enumerate() {
            let pod = &world.pods[number / 3];
            let job = pod.run(|| serve(addr(backend), name));
            pod.spawn(job);
        }
        let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
        let config = config(&pins, &cgroup).with_pod_devices(POD_DEVICES).with_uplink_devices([UPLINK]);
        let node = Node::new(&world.node, pins, cgroup, config);
        Self { node, world }
    }

    /// So many connections of the client, each with the name of its backend.
    fn connect(&self, vip: &str, count: usize) -> Vec<Held> {
        self.world.client.run(|| (0..count).map(|_| Held::new(vip)).collect())
    }
}

/// A connection that stays.
struct Held {
    name: String,
    stream: TcpStream,
}

impl Held {
    fn new(vip: &str) -> Self {
        let mut stream = TcpStream::connect(addr(vip)).unwrap();
        let answer = ask_on(&mut stream).unwrap();
        Self { name: answer.split(' ').next().unwrap().into(), stream }
    }

    /// Ends it, and waits for the end from the other side, which the node has forwarded by then.
    fn close(mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.stream.read(&mut [0; 8]).unwrap(), 0);
    }
}

fn by_name<'a>(held: impl IntoIterator<Item = &'a Held>) -> BTreeMap<String, i64> {
    let mut names = BTreeMap::new();
    for connection in held {
        *names.entry(connection.name.clone()).or_insert(0) += 1;
    }
    names
}

/// Asserts that these connections went past the one that was full, and to all others alike.
fn assert_balanced(connections: &[Held]) {
    let taken = by_name(connections);
    let of = |name: &str| taken.get(name).copied().unwrap_or(0);
    // Both of its slots have to be there: a 36th of all.
    assert!(of("a") <= connections.len() as i64 / 8, "{taken:?}");
    let others = NAMES[1..].iter().map(|name| of(name));
    let (least, most) = (others.clone().min().unwrap(), others.max().unwrap());
    assert!(most - least <= 8, "{taken:?}");
}

#[test]
#[ignore = "needs root: loads eBPF programs, makes namespaces and sends packets"]
fn new_flows_of_packets_go_past_a_backend_that_has_many_connections() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    let desired = services(Lookup::LeastConnections, &PODS);
    cluster.node.apply(&desired);
    let held = cluster.connect(FIRST, 60);
    assert_eq!(cluster.node.loads(), [("a".into(), 60)].into());
    let new = cluster.connect(ALL, 100);
    assert_balanced(&new);
    assert_eq!(cluster.node.loads(), by_name(held.iter().chain(&new)));
    // The model knows the two candidates of each.
    for connection in &new {
        let local = connection.stream.local_addr().unwrap();
        let packet = Packet {
            entry: Entry::Uplink,
            protocol: Protocol::Tcp,
            source: local.ip(),
            source_port: local.port(),
            destination: addr(ALL).ip(),
            destination_port: 80,
        };
        let frontend = FrontendAddr::new(addr(ALL).ip(), 80, Protocol::Tcp);
        let Answer::Backends(candidates) = desired.answer(&frontend, packet.flow_hash()) else { panic!("no backends") };
        let taken = addr(PODS[NAMES.iter().position(|name| *name == connection.name).unwrap()]);
        assert!(candidates.keys().any(|backend| (backend.ip, backend.port) == (taken.ip(), taken.port())));
    }
    // A recount finds what the programs have counted.
    cluster.node.recount();
    assert_eq!(cluster.node.loads(), by_name(held.iter().chain(&new)));
    held.into_iter().chain(new).for_each(Held::close);
    assert_eq!(cluster.node.loads(), BTreeMap::new());
    cluster.node.recount();
    assert!(cluster.node.map("LOADS").keys::<abi::LoadKey>().is_empty());
}

#[test]
#[ignore = "needs root: loads eBPF programs, makes namespaces and sends packets"]
fn a_restart_and_a_backend_that_leaves_keep_the_counts_of_packets_right() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.node.apply(&services(Lookup::LeastConnections, &PODS));
    let held = cluster.connect(FIRST, 30);
    cluster.node.restart(&cluster.world.node);
    assert_eq!(cluster.node.loads(), by_name(&held));
    let new = cluster.connect(ALL, 50);
    assert_balanced(&new);
    assert_eq!(cluster.node.loads(), by_name(held.iter().chain(&new)));
    // The last backend leaves both slots and connections.
    cluster.node.apply(&without_last(services(Lookup::LeastConnections, &PODS)));
    let newer = cluster.connect(ALL, 30);
    assert!(newer.iter().all(|connection| connection.name != "f"), "{:?}", by_name(&newer));
    for connections in [held, new, newer] {
        connections.into_iter().for_each(Held::close);
    }
    assert_eq!(cluster.node.loads(), BTreeMap::new());
    cluster.node.recount();
    assert!(cluster.node.map("LOADS").keys::<abi::LoadKey>().is_empty());
}

#[test]
#[ignore = "needs root: loads eBPF programs, makes namespaces and sends packets"]
fn counters_that_are_wrong_are_put_right() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.node.apply(&services(Lookup::LeastConnections, &PODS));
    let held = cluster.connect(FIRST, 5);
    let loads = cluster.node.map("LOADS");
    let lane = loads.keys::<abi::LoadKey>()[0];
    for wrong in [1_000, 0, u64::MAX] {
        loads.put(&lane, &wrong);
        cluster.node.recount();
        assert_eq!(cluster.node.loads(), by_name(&held), "{wrong}");
    }
    // As if the kernel had evicted a flow, of which the programs learn nothing.
    let flows = cluster.node.map("CT_LIVE");
    let port = held[0].stream.local_addr().unwrap().port();
    let key = flows.keys::<abi::CtKey>().into_iter().find(|key| key.sport == abi::Port::new(port)).unwrap();
    let value: abi::CtValue = flows.get(&key).unwrap();
    flows.remove(&value.mirror(key.protocol));
    flows.remove(&key);
    assert_eq!(cluster.node.loads(), [("a".into(), 5)].into());
    cluster.node.recount();
    assert_eq!(cluster.node.loads(), [("a".into(), 4)].into());
    // A UDP flow that falls silent is over.
    let socket = cluster.world.client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        ask_udp(&socket, addr(FIRST)).unwrap();
        socket
    });
    assert_eq!(cluster.node.loads().values().sum::<i64>(), 5);
    for name in ["CT", "CT_LIVE"] {
        let flows = cluster.node.map(name);
        for key in flows.keys::<abi::CtKey>().into_iter().filter(|key| key.protocol == 17) {
            let value = flows.get::<abi::CtValue>(&key).unwrap();
            flows.put(&key, &abi::CtValue { last_ns: value.last_ns - abi::UDP_IDLE_NS, ..value });
        }
    }
    cluster.node.recount();
    assert_eq!(cluster.node.loads(), [("a".into(), 4)].into());
    drop(socket);
}

#[test]
#[ignore = "needs root: loads eBPF programs, makes namespaces and sends packets"]
fn a_question_tells_how_many_connections_there_are_and_counts_none() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.node.apply(&services(Lookup::LeastConnections, &PODS));
    let held = cluster.connect(FIRST, 3);
    let Cluster { node, world } = &mut cluster;
    for (entry, source) in [(Entry::Uplink, "192.0.2.2"), (Entry::Socket, "192.0.2.1")] {
        let packet = Packet {
            entry,
            protocol: Protocol::Tcp,
            source: ip(source),
            source_port: 4000,
            destination: addr(ALL).ip(),
            destination_port: 80,
        };
        let answer = world.node.run(|| node.datapath().ask(&packet)).unwrap().unwrap();
        let step = answer.steps.iter().find(|step| step.starts_with("LOADS: "));
        assert!(step.is_some_and(|step| step.ends_with("10.244.0.2:8080/tcp has 3")), "{:?}", answer.steps);
        assert_eq!(node.loads(), by_name(&held));
    }
}

/// Servers at loopback addresses, for sockets of this process.
fn host() -> (Node, Namespace) {
    let space = Namespace::new("h");
    for (backend, name) in LOCAL.into_iter().zip(NAMES) {
        let job = space.run(|| serve(addr(backend), name));
        space.spawn(job);
    }
    let (pins, cgroup) = (PinDir::new(), Cgroup::joined());
    let config = config(&pins, &cgroup);
    (Node::new(&space, pins, cgroup, config), space)
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn new_sockets_go_past_a_backend_that_has_many_connections() {
    let _turn = turn();
    let (mut node, space) = host();
    node.apply(&services(Lookup::LeastConnections, &LOCAL));
    let connect = |vip, count| space.run(|| (0..count).map(|_| Held::new(vip)).collect::<Vec<_>>());
    let held = connect(FIRST, 60);
    assert_eq!(node.loads(), [("a".into(), 60)].into());
    let new = connect(ALL, 100);
    assert_balanced(&new);
    node.recount();
    assert_eq!(node.loads(), by_name(held.iter().chain(&new)));
    node.restart(&space);
    assert_eq!(node.loads(), by_name(held.iter().chain(&new)));
    // The end of a socket counts at once, also after a restart.
    drop(new);
    assert_eq!(node.loads(), [("a".into(), 60)].into());
    drop(held);
    assert_eq!(node.loads(), BTreeMap::new());
    assert!(node.map("SOCK_COUNTS").keys::<u64>().is_empty());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_socket_counts_until_it_ends_or_goes_elsewhere() {
    let _turn = turn();
    let (mut node, space) = host();
    node.apply(&services(Lookup::LeastConnections, &LOCAL));
    let node = &mut node;
    space.run(move || {
        let loads = |node: &Node| node.loads().into_iter().collect::<Vec<_>>();
        let one = || vec![("a".into(), 1)];
        // A connected UDP socket, until it goes elsewhere.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(addr(FIRST)).unwrap();
        assert_eq!(loads(node), one());
        socket.connect(addr(ALL)).unwrap();
        assert_eq!(node.loads().values().sum::<i64>(), 1);
        socket.connect(addr("127.0.0.1:9")).unwrap();
        assert_eq!(loads(node), []);
        socket.connect(addr(FIRST)).unwrap();
        drop(socket);
        assert_eq!(loads(node), []);
        // One that states the address with each datagram, until it has been silent.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..3 {
            ask_udp(&socket, addr(FIRST)).unwrap();
            assert_eq!(loads(node), one());
        }
        node.recount();
        assert_eq!(loads(node), one());
        let flows = node.map("SOCK_FLOWS");
        let old = flows.keys::<abi::SockKey>();
        for key in &old {
            let flow: abi::SockFlow = flows.get(key).unwrap();
            flows.put(key, &abi::SockFlow { last_ns: flow.last_ns.saturating_sub(abi::UDP_IDLE_NS), ..flow });
        }
        node.recount();
        assert_eq!(loads(node), []);
        drop(socket);
        assert_eq!(loads(node), []);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        ask_udp(&socket, addr(FIRST)).unwrap();
        drop(socket);
        assert_eq!(loads(node), []);
    });
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_connection_that_is_refused_counts_no_longer() {
    let _turn = turn();
    let (mut node, space) = host();
    let silent = ["127.0.0.1:9001", "127.0.0.1:9002"];
    node.apply(&services(Lookup::LeastConnections, &silent));
    let node = &mut node;
    space.run(move || {
        for _ in 0..10 {
            assert_eq!(TcpStream::connect(addr(ALL)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        assert_eq!(node.loads(), BTreeMap::new());
        // A socket that has failed tries again, and finds the server: the backend that it has counts one connection.
        let listener = TcpListener::bind(silent[0]).unwrap();
        let both = (0..100).find_map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let failed = socket.connect(&addr(ALL).into()).is_err();
            assert_eq!(node.loads().values().sum::<i64>(), 1);
            (failed && socket.connect(&addr(ALL).into()).is_ok()).then_some(socket)
        });
        let socket = both.unwrap();
        assert_eq!(node.loads(), [("a".into(), 1)].into());
        drop((socket, listener));
        assert_eq!(node.loads(), BTreeMap::new());
    });
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn other_algorithms_count_nothing() {
    let _turn = turn();
    let (mut node, space) = host();
    node.apply(&services(Lookup::Random, &LOCAL));
    let held: Vec<_> = space.run(|| (0..5).map(|_| Held::new(ALL)).collect());
    let socket = space.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        ask_udp(&socket, addr(ALL)).unwrap();
        socket
    });
    assert!(node.map("LOADS").keys::<abi::LoadKey>().is_empty());
    assert!(node.map("SOCK_COUNTS").keys::<u64>().is_empty());
    // The service changes its algorithm: what is there does not count, what comes does.
    node.apply(&renumbered(services(Lookup::LeastConnections, &LOCAL)));
    let new: Vec<_> = space.run(|| (0..6).map(|_| Held::new(ALL)).collect());
    assert_eq!(node.loads(), by_name(&new));
    drop((held, socket));
    assert_eq!(node.loads(), by_name(&new));
    let set = Arc::new(BackendSet::new(Lookup::LeastConnections, [backend(1)]));
    assert_eq!(node.datapath().observe().unwrap().sets[&SetId::new(12).unwrap()], set);
}
