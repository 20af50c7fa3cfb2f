//! Packets of pods and of outside clients, through the ingress of devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Instant,
};

use lb_core::{
    addr::Protocol,
    affinity::Affinity,
    datapath::Datapath,
    node::NodeFacts,
    plan::{Labels, diff},
    state::{Lookup, State, Target},
};
use lb_datapath_ebpf::{EbpfDatapath, Reason};
use lb_datapath_ebpf_abi as abi;

use crate::{
    bpf::Map,
    common::{
        Cgroup, Namespace, POD_DEVICES, PinDir, UPLINK, World, ask_on, ask_tcp, ask_udp, config, first_answer, serve,
        state, turn,
    },
};

/// A world whose node has a datapath, and whose pods serve on port 8080.
pub(crate) struct Cluster {
    pub(crate) datapath: EbpfDatapath,
    pub(crate) world: World,
    _pins: PinDir,
    _cgroup: Cgroup,
}

pub(crate) const VIPS: [&str; 2] = ["10.96.0.1:80", "[fd00:96::1]:80"];
const BACKENDS: [[&str; 2]; 2] =
    [["10.244.0.2:8080", "10.244.1.2:8080"], ["[fd00:244::2]:8080", "[fd00:244:1::2]:8080"]];
const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::in_world(World::new(), &[UPLINK])
    }

    /// The same in a world with more uplinks.
    pub(crate) fn in_world(world: World, uplinks: &[&str]) -> Self {
        for (i, name) in ["a", "b"].into_iter().enumerate() {
            for family in BACKENDS {
                let job = world.pods[i].run(|| serve(addr(family[i]), name));
                world.pods[i].spawn(job);
            }
        }
        let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
        let mut config = config(&pins, &cgroup);
        config.pod_devices = POD_DEVICES.map(String::from).to_vec();
        config.uplink_devices = uplinks.iter().copied().map(String::from).collect();
        let datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        Self { datapath, world, _pins: pins, _cgroup: cgroup }
    }

    pub(crate) fn apply(&mut self, desired: State) {
        let observed = self.datapath.observe().unwrap();
        let desired = State { node: World::facts(), ..desired };
        self.datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
        assert_eq!(self.datapath.observe().unwrap(), desired);
    }

    /// Every backend in turn, where the kernel can count turns.
    fn in_turn(&self) -> Lookup {
        let turns = self.datapath.kernel_features().unwrap().fetch_add;
        if turns { Lookup::RoundRobin } else { Lookup::Random }
    }

    /// Why packets were stopped, and how many.
    pub(crate) fn stopped(&self) -> BTreeMap<Reason, u64> {
        let counts = self.datapath.reason_counters().unwrap().unwrap().read().unwrap();
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Asks over TCP and UDP, many times, and returns everything that was answered.
    pub(crate) fn ask(&self, from: &Namespace, vip: &str) -> BTreeSet<String> {
        let vip = addr(vip);
        let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        from.run(|| {
            let mut answers = BTreeSet::new();
            for _ in 0..24 {
                answers.insert(ask_tcp(vip).unwrap());
                let (answer, source) = ask_udp(&UdpSocket::bind(any).unwrap(), vip).unwrap();
                assert_eq!(source, vip);
                answers.insert(answer);
            }
            answers
        })
    }
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn services(lookup: Lookup, affinity: Option<Affinity>) -> State {
    let backends = BACKENDS.map(|family| family.map(addr));
    let mut services: Vec<(SocketAddr, Protocol, &[SocketAddr])> = Vec::new();
    for (vip, backends) in VIPS.iter().zip(&backends) {
        services.push((addr(vip), Protocol::Tcp, backends));
        services.push((addr(vip), Protocol::Udp, backends));
    }
    state(&services, lookup, affinity)
}

fn ip_of(addr: &str) -> String {
    self::addr(addr).ip().to_string()
}

fn answers(expected: &[(&str, &str)]) -> BTreeSet<String> {
    expected.iter().map(|(name, seen)| format!("{name} {seen}")).collect()
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_pod_reaches_every_backend_with_its_own_address_and_itself_with_the_nodes() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.apply(services(Lookup::Random, None));
    for (family, vip) in VIPS.iter().enumerate() {
        let found = cluster.ask(&cluster.world.pods[0], vip);
        assert_eq!(found, answers(&[("a", NODE[family]), ("b", &ip_of(BACKENDS[family][0]))]), "{vip}");
    }
    assert_eq!(cluster.stopped(), BTreeMap::new());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn counts_of_stopped_packets_survive_the_process() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    let mut desired = services(Lookup::Random, None);
    desired.frontends.values_mut().for_each(|frontend| frontend.target = Target::Drop);
    cluster.apply(desired);
    let dropped = [(Reason::PacketExcluded, 1)].into();
    cluster.world.client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", addr(VIPS[0])).unwrap());
    let sent = Instant::now();
    while cluster.stopped() != dropped {
        assert!(sent.elapsed() < crate::common::PATIENCE, "{:?}", cluster.stopped());
        thread::yield_now();
    }
    let config = cluster.datapath.config().clone();
    drop(cluster.datapath);
    cluster.datapath = cluster.world.node.run(|| EbpfDatapath::open(config)).unwrap();
    assert_eq!(cluster.stopped(), dropped);
    let counters = cluster.datapath.reason_counters().unwrap().unwrap();
    cluster.datapath.cleanup().unwrap();
    assert!(cluster.datapath.reason_counters().unwrap().is_none());
    assert_eq!(counters.read().unwrap()[&Reason::PacketExcluded], 1);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn an_outside_client_reaches_every_backend_with_the_nodes_address() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.apply(services(cluster.in_turn(), None));
    for (family, vip) in VIPS.iter().enumerate() {
        let found = cluster.ask(&cluster.world.client, vip);
        assert_eq!(found, answers(&[("a", NODE[family]), ("b", NODE[family])]), "{vip}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn translated_sources_have_no_ports_that_sockets_of_the_node_get() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    assert_eq!(cluster.datapath.capabilities().translated_ports, 1024..=29_999);
    cluster.apply(services(cluster.in_turn(), None));
    let Cluster { datapath, world, _pins: pins, _cgroup } = cluster;
    let config = datapath.config().clone();
    drop(datapath);
    let open = |local: &str, reserved: &str| {
        world.node.sysctl("ipv4/ip_local_port_range", local);
        world.node.sysctl("ipv4/ip_local_reserved_ports", reserved);
        world.node.run(|| EbpfDatapath::open(config.clone()))
    };
    let error = open("1024 65535", "8080,9000-9100").unwrap_err().report();
    for part in ["ip_local_port_range is 1024-65535", "`8080,9000-9100`", "1024 ports in a row"] {
        assert!(error.contains(part), "{error}");
    }
    for (local, reserved, expected) in
        [("1024 65535", "8080,26000-27999", 26_000..=27_999), ("20000 65535", "", 1024..=19_999)]
    {
        let datapath = open(local, reserved).unwrap();
        assert_eq!(datapath.capabilities().translated_ports, expected);
        let node = Map::open(&pins.0.join("v1/maps/NODE")).get::<abi::NodeValue>(&abi::NODE_KEY).unwrap();
        assert_eq!((node.nat_first, node.nat_ports), (*expected.start(), expected.len() as u16));
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn checksums_are_right_without_offload() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    for space in [&cluster.world.pods[0], &cluster.world.pods[1], &cluster.world.client] {
        space.run(|| crate::common::no_offload("eth0"));
    }
    cluster.world.node.run(|| POD_DEVICES.into_iter().chain([UPLINK]).for_each(crate::common::no_offload));
    cluster.apply(services(cluster.in_turn(), None));
    for (family, vip) in VIPS.iter().enumerate() {
        let found = cluster.ask(&cluster.world.client, vip);
        assert_eq!(found, answers(&[("a", NODE[family]), ("b", NODE[family])]), "{vip}");
    }
    cluster.apply(state(&VIPS.map(|vip| (addr(vip), Protocol::Udp, &[][..])), Lookup::Random, None));
    cluster.world.client.run(|| VIPS.map(expect_refused_udp));
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn affinity_keeps_a_client_on_one_backend() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.apply(services(Lookup::Random, Some(Affinity::default())));
    for vip in VIPS {
        let vip = addr(vip);
        let found: BTreeSet<_> = cluster.world.client.run(|| (0..20).map(|_| ask_tcp(vip).unwrap()).collect());
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_service_without_backends_refuses_at_once() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    let refused: Vec<(SocketAddr, Protocol, &[SocketAddr])> = VIPS
        .iter()
        .flat_map(|vip| [Protocol::Tcp, Protocol::Udp].map(|protocol| (addr(vip), protocol, &[][..])))
        .collect();
    cluster.apply(state(&refused, Lookup::Random, None));
    for from in [&cluster.world.pods[0], &cluster.world.client] {
        from.run(|| {
            for vip in VIPS {
                assert_eq!(first_answer(addr(vip)).unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "{vip}");
                expect_refused_udp(vip);
            }
        });
    }
    // Two senders, two families, two protocols.
    assert_eq!(cluster.stopped(), [(Reason::PacketNoBackends, 8)].into());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn connections_outlive_the_backend_in_the_set_and_the_process() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.apply(services(cluster.in_turn(), None));
    let mut streams = cluster.world.client.run(|| [0; 4].map(|_| TcpStream::connect(addr(VIPS[0])).unwrap()));
    let before = streams.each_mut().map(|stream| ask_on(stream).unwrap());
    let mut one = services(cluster.in_turn(), None);
    for (id, set) in std::mem::take(&mut one.sets) {
        let id = lb_core::id::SetId::new(id.get() + 10).unwrap();
        let slots = set.slots[..1].into();
        one.sets.insert(id, lb_core::state::BackendSet { slots, ..(*set).clone() }.into());
    }
    for frontend in one.frontends.values_mut() {
        let lb_core::state::Target::Set(id) = frontend.target else { panic!("{frontend:?}") };
        frontend.target = lb_core::state::Target::Set(lb_core::id::SetId::new(id.get() + 10).unwrap());
    }
    let used: BTreeSet<_> = one.sets.values().flat_map(|set| set.slots.iter().copied()).collect();
    one.backends.retain(|id, _| used.contains(id));
    cluster.apply(one.clone());
    let config = cluster.datapath.config().clone();
    let second = cluster.world.node.run(|| EbpfDatapath::open(config.clone())).unwrap_err();
    assert_eq!(second.kind(), lb_core::datapath::ErrorKind::Busy);
    drop(cluster.datapath);
    assert_eq!(streams.each_mut().map(|stream| ask_on(stream).unwrap()), before);
    let mut reopened = cluster.world.node.run(|| EbpfDatapath::open(config)).unwrap();
    assert_eq!(reopened.observe().unwrap(), State { node: World::facts(), ..one });
    assert_eq!(streams.each_mut().map(|stream| ask_on(stream).unwrap()), before);
    let fresh: BTreeSet<_> = cluster.world.client.run(|| (0..8).map(|_| ask_tcp(addr(VIPS[0])).unwrap()).collect());
    assert_eq!(fresh, answers(&[("a", NODE[0])]));
    reopened.cleanup().unwrap();
    assert!(!reopened.config().pin_dir.exists());
    assert_eq!(reopened.observe().unwrap(), State { node: NodeFacts::default(), ..State::default() });
}

fn expect_refused_udp(vip: &str) {
    let vip = addr(vip);
    let socket = UdpSocket::bind(if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
    socket.connect(vip).unwrap();
    socket.send(b"?").unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "{vip}");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_process_of_the_node_outside_of_the_cgroup_is_served_by_its_packets() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.world.node.ip("route add default via 192.0.2.2");
    cluster.world.node.ip("-6 route add default via 2001:db8::2");
    let in_turn = cluster.in_turn();
    cluster.apply(services(in_turn, None));
    for (vip, node) in VIPS.iter().zip(NODE) {
        let expected = ["a", "b"].map(|name| format!("{name} {node}"));
        assert_eq!(cluster.ask(&cluster.world.node, vip), expected.into(), "{vip}");
    }
    assert!(cluster.stopped().is_empty(), "{:?}", cluster.stopped());
    // A service without backends refuses the node's own packets at once as well.
    cluster.apply(state(&VIPS.map(|vip| (addr(vip), Protocol::Tcp, &[][..])), Lookup::Random, None));
    for vip in VIPS {
        let refused = cluster.world.node.run(|| first_answer(addr(vip)).unwrap_err().kind());
        assert_eq!(refused, io::ErrorKind::ConnectionRefused, "{vip}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_process_of_the_node_outside_of_the_cgroup_reaches_a_backend_on_the_node_itself() {
    const ON_NODE: [&str; 2] = ["192.0.2.1:8080", "[2001:db8::1]:8080"];
    let _turn = turn();
    let mut cluster = Cluster::new();
    let node = &cluster.world.node;
    node.ip("route add default via 192.0.2.2");
    node.ip("-6 route add default via 2001:db8::2");
    for backend in ON_NODE {
        let job = node.run(|| serve(addr(backend), "n"));
        node.spawn(job);
    }
    let backends = ON_NODE.map(|backend| [addr(backend)]);
    // A frontend of the node that has the same port as the backend takes none of it.
    let elsewhere = BACKENDS.map(|family| [addr(family[0])]);
    let mut services: Vec<(SocketAddr, Protocol, &[SocketAddr])> = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        services.extend(VIPS.iter().zip(&backends).map(|(vip, backends)| (addr(vip), protocol, &backends[..])));
        services.extend(ON_NODE.iter().zip(&elsewhere).map(|(at, backends)| (addr(at), protocol, &backends[..])));
    }
    cluster.apply(state(&services, Lookup::Random, None));
    for (vip, seen) in VIPS.iter().zip(["10.96.0.1", "fd00:96::1"]) {
        assert_eq!(cluster.ask(&cluster.world.node, vip), [format!("n {seen}")].into(), "{vip}");
    }
    assert!(cluster.stopped().is_empty(), "{:?}", cluster.stopped());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces, a bridge and a cgroup"]
fn pods_behind_a_bridge_reach_each_other_through_a_service() {
    const PEERS: [&str; 2] = ["10.244.0.3:8080", "[fd00:244::3]:8080"];
    let _turn = turn();
    let mut cluster = Cluster::new();
    let World { node, pods, .. } = &cluster.world;
    node.ip("link add cni0 type bridge");
    node.ip("link set cni0 up");
    for device in POD_DEVICES {
        node.ip(&format!("addr flush dev {device}"));
        node.ip(&format!("link set {device} master cni0"));
    }
    node.sysctl("ipv4/conf/cni0/rp_filter", "1");
    node.ip("addr add 10.244.0.1/24 dev cni0");
    node.ip("addr add fd00:244::1/64 dev cni0 nodad");
    // The second pod moves into the network of the first one.
    let [_, server] = pods;
    server.ip("addr add 10.244.0.3/24 dev eth0");
    server.ip("addr add fd00:244::3/64 dev eth0 nodad");
    server.ip("route replace default via 10.244.0.1");
    server.ip("-6 route replace default via fd00:244::1");
    for peer in PEERS {
        let job = server.run(|| serve(addr(peer), "b"));
        server.spawn(job);
    }
    let backends = PEERS.map(|peer| [addr(peer)]);
    let mut services: Vec<(SocketAddr, Protocol, &[SocketAddr])> = Vec::new();
    for (vip, backends) in VIPS.iter().zip(&backends) {
        services.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| (addr(vip), protocol, &backends[..])));
    }
    cluster.apply(state(&services, Lookup::Random, None));
    for (vip, pod) in VIPS.iter().zip(["10.244.0.2", "fd00:244::2"]) {
        assert_eq!(cluster.ask(&cluster.world.pods[0], vip), [format!("b {pod}")].into(), "{vip}");
    }
}
