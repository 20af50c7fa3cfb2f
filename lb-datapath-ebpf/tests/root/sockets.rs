//! Sockets of a cgroup, on the loopback device of a namespace.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::Arc,
};

use aya::programs::links::PinnedLink;
use ipnet::IpNet;
use lb_core::{
    addr::{FrontendAddr, Protocol},
    affinity::Affinity,
    datapath::Datapath,
    decision::{Entry, Packet},
    drift::{Expected, Inspection},
    id::SetId,
    kernel::KernelVerdict,
    node::NodeFacts,
    plan::{Labels, diff},
    state::{BackendSet, Lookup, State, Target},
};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath, Reason, SocketBalancing};
use lb_datapath_ebpf_abi::{Pod, SETTINGS_KEY, SOCK_CELLS, SockCell, SockKey, SockSettings, map_v4};

use crate::bpf::Map;
use crate::common::{Cgroup, Namespace, PinDir, ask_on, ask_tcp, ask_udp, backend, config, ip, serve, state, turn};

/// A datapath in a namespace with two servers per family, whose clients are this process.
struct Host {
    datapath: EbpfDatapath,
    space: Namespace,
    pins: PinDir,
    _cgroup: Cgroup,
}

impl Host {
    fn new() -> Self {
        let space = Namespace::new("h");
        let (pins, cgroup) = (PinDir::new(), Cgroup::joined());
        for (addr, name) in BACKENDS {
            let addr = addr.parse().unwrap();
            let job = space.run(|| serve(addr, name));
            space.spawn(job);
        }
        let datapath = EbpfDatapath::open(config(&pins, &cgroup)).unwrap();
        Self { datapath, space, pins, _cgroup: cgroup }
    }

    fn apply(&mut self, desired: &State) {
        let observed = self.datapath.observe().unwrap();
        self.datapath.apply(&diff(&observed, desired, &Labels::default())).unwrap();
    }

    fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.space.run(job)
    }
}

const BACKENDS: [(&str, &str); 4] =
    [("127.0.0.1:8001", "a"), ("127.0.0.1:8002", "b"), ("[::1]:8001", "a"), ("[::1]:8002", "b")];
const VIPS: [(&str, [&str; 2]); 2] =
    [("10.96.0.1:80", ["127.0.0.1:8001", "127.0.0.1:8002"]), ("[fd00:96::1]:80", ["[::1]:8001", "[::1]:8002"])];

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn services(protocol: Protocol, lookup: Lookup, affinity: Option<Affinity>) -> State {
    let backends = VIPS.map(|(_, backends)| backends.map(addr));
    let services: Vec<_> =
        VIPS.iter().zip(&backends).map(|((vip, _), backends)| (addr(vip), protocol, &backends[..])).collect();
    state(&services, lookup, affinity)
}

fn name(answer: &str) -> &str {
    answer.split(' ').next().unwrap()
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn tcp_connections_reach_every_backend_and_believe_to_talk_to_the_vip() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&services(Protocol::Tcp, Lookup::Random, None));
    for (vip, _) in VIPS {
        let vip = addr(vip);
        let names: BTreeSet<_> = host.run(|| (0..40).map(|_| ask_tcp(vip).unwrap()).collect());
        assert_eq!(names.iter().map(|answer| name(answer)).collect::<Vec<_>>(), ["a", "b"], "{vip}");
        assert_eq!(host.run(|| TcpStream::connect(vip).unwrap().peer_addr().unwrap()), vip);
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn an_ipv6_socket_reaches_an_ipv4_service() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&services(Protocol::Tcp, Lookup::Random, None));
    let vip = addr("[::ffff:10.96.0.1]:80");
    let peer = host.run(|| {
        let mut stream = TcpStream::connect(vip).unwrap();
        assert!(["a", "b"].contains(&name(&ask_on(&mut stream).unwrap())));
        stream.peer_addr().unwrap()
    });
    assert_eq!(peer, vip);
}

/// A link that only loses its pin stays attached while anybody holds it, and until the kernel finds time after that.
#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn nothing_is_translated_any_more_when_cleanup_returns() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&services(Protocol::Tcp, Lookup::Random, None));
    let vip = addr(VIPS[0].0);
    assert!(host.run(|| ask_tcp(vip)).is_ok());
    let links = fs::read_dir(host.pins.0.join("v1/links")).unwrap();
    let held: Vec<_> = links.map(|link| PinnedLink::from_pin(link.unwrap().path()).unwrap()).collect();
    assert!(!held.is_empty());
    host.datapath.cleanup().unwrap();
    assert_eq!(host.run(|| TcpStream::connect(vip)).unwrap_err().kind(), io::ErrorKind::NetworkUnreachable);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn round_robin_takes_turns() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&services(Protocol::Tcp, Lookup::RoundRobin, None));
    let vip = addr(VIPS[0].0);
    let names: Vec<_> = host.run(|| (0..6).map(|_| ask_tcp(vip).unwrap()).collect());
    let names: Vec<_> = names.iter().map(|answer| name(answer)).collect();
    assert_eq!(names, ["a", "b", "a", "b", "a", "b"]);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn affinity_keeps_the_clients_of_a_namespace_on_one_backend() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&services(Protocol::Tcp, Lookup::Random, Some(Affinity::default())));
    let vip = addr(VIPS[0].0);
    let names: BTreeSet<_> = host.run(|| (0..20).map(|_| ask_tcp(vip).unwrap()).collect());
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn datagrams_of_a_socket_keep_their_backend_and_answers_come_from_the_vip() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&services(Protocol::Udp, Lookup::Random, None));
    for (vip, _) in VIPS {
        let vip = addr(vip);
        let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let answers: BTreeSet<_> = host.run(|| {
            let socket = UdpSocket::bind(any).unwrap();
            (0..20).map(|_| ask_udp(&socket, vip).unwrap()).collect()
        });
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(answers.first().unwrap().1, vip);
        let names: BTreeSet<_> =
            host.run(|| (0..40).map(|_| ask_udp(&UdpSocket::bind(any).unwrap(), vip).unwrap().0).collect());
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_connected_datagram_socket_hears_the_vip() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&services(Protocol::Udp, Lookup::Hash, None));
    let vip = addr(VIPS[0].0);
    let (peer, from) = host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
        socket.connect(vip).unwrap();
        socket.send(b"?").unwrap();
        (socket.peer_addr().unwrap(), socket.recv_from(&mut [0; 64]).unwrap().1)
    });
    assert_eq!((peer, from), (vip, vip));
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_datagram_socket_leaves_a_backend_that_left_the_set() {
    let _turn = turn();
    let mut host = Host::new();
    let desired = services(Protocol::Udp, Lookup::Random, None);
    host.apply(&desired);
    let vip = addr(VIPS[0].0);
    let socket = host.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let before = ask_udp(&socket, vip).unwrap().0;
    let stays = if name(&before) == "a" { backend(2) } else { backend(1) };
    let (small, mut smaller) = (SetId::new(9).unwrap(), desired);
    smaller.sets.insert(small, Arc::new(BackendSet::new(Lookup::Random, [stays])));
    smaller.sets.remove(&SetId::new(1).unwrap());
    smaller.frontends.get_mut(&FrontendAddr::new(vip.ip(), vip.port(), Protocol::Udp)).unwrap().target =
        Target::Set(small);
    host.apply(&smaller);
    let after = ask_udp(&socket, vip).unwrap();
    assert_ne!(name(&after.0), name(&before));
    assert_eq!(after.1, vip);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_service_without_backends_refuses_at_once() {
    let _turn = turn();
    let mut host = Host::new();
    let vip = addr("10.96.0.9:80");
    host.apply(&state(&[(vip, Protocol::Tcp, &[]), (vip, Protocol::Udp, &[])], Lookup::Random, None));
    let tcp = host.run(|| ask_tcp(vip).unwrap_err());
    let by_name = host.datapath.kernel_features().unwrap().socket_errors;
    let refused = if by_name { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::PermissionDenied };
    assert_eq!(tcp.kind(), refused);
    let udp = host.run(|| ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), vip).unwrap_err());
    assert_eq!(udp.kind(), refused);
    let counts = host.datapath.reason_counters().unwrap().unwrap().read().unwrap();
    let counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counts, [(Reason::SocketNoBackends, 2)]);
}

/// A UDP socket of IPv6 that is bound to any address, for IPv4 peers as well.
fn dual_socket() -> UdpSocket {
    let socket = UdpSocket::bind("[::]:0").unwrap();
    socket.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
    socket
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn an_ipv6_datagram_socket_hears_an_ipv4_service_under_its_mapped_address() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&services(Protocol::Udp, Lookup::Random, None));
    let vip = addr("[::ffff:10.96.0.1]:80");
    let (peer, from) = host.run(|| {
        let socket = dual_socket();
        socket.connect(vip).unwrap();
        socket.send(b"?").unwrap();
        (socket.peer_addr().unwrap(), socket.recv_from(&mut [0; 64]).unwrap().1)
    });
    assert_eq!((peer, from), (vip, vip));
    let unconnected = host.run(|| ask_udp(&dual_socket(), vip).unwrap().1);
    assert_eq!(unconnected, vip);
}

/// Two addresses with the same backends.
fn twins(backends: &[SocketAddr]) -> State {
    let [first, second] = TWINS.map(addr);
    state(&[(first, Protocol::Udp, backends), (second, Protocol::Udp, backends)], Lookup::Random, None)
}

const TWINS: [&str; 2] = ["10.96.0.1:80", "10.96.0.2:80"];

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn answers_of_two_addresses_with_the_same_backends_come_from_their_own() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&twins(&["127.0.0.1:8001", "127.0.0.1:8002"].map(addr)));
    let heard = host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
        for vip in TWINS {
            socket.send_to(b"?", addr(vip)).unwrap();
        }
        TWINS.map(|_| socket.recv_from(&mut [0; 64]).unwrap().1).into_iter().collect::<BTreeSet<_>>()
    });
    assert_eq!(heard, TWINS.map(addr).into());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_second_address_of_an_only_backend_is_refused_and_the_first_one_answers() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&twins(&[addr("127.0.0.1:8001")]));
    let (error, heard, alone) = host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
        socket.send_to(b"?", addr(TWINS[0])).unwrap();
        let error = socket.send_to(b"?", addr(TWINS[1])).unwrap_err();
        let heard = socket.recv_from(&mut [0; 64]).unwrap().1;
        (error, heard, ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), addr(TWINS[1])).unwrap().1)
    });
    assert_eq!((error.kind(), heard), (io::ErrorKind::AddrInUse, addr(TWINS[0])));
    assert_eq!(alone, addr(TWINS[1]));
    let counts = host.datapath.reason_counters().unwrap().unwrap().read().unwrap();
    assert_eq!(counts[&Reason::SocketAmbiguous], 1);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn sockets_that_are_closed_leave_no_entries() {
    let _turn = turn();
    let mut host = Host::new();
    let mut services = Vec::new();
    let backends = ["127.0.0.1:8001", "127.0.0.1:8002"].map(addr);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        services.extend(TWINS.map(|vip| (addr(vip), protocol, &backends[..])));
    }
    let closed = [addr("127.0.0.1:9")];
    services.push((addr("10.96.0.3:80"), Protocol::Tcp, &closed));
    host.apply(&state(&services, Lookup::Random, None));
    let maps = ["SOCK_PEERS", "SOCK_FLOWS"].map(|name| Map::open(&host.pins.0.join("v1/maps").join(name)));
    let cells = Map::open(&host.pins.0.join("v1/maps/SOCK_CELLS"));
    let owned = || cells.values::<SockCell>().into_iter().filter(|cell| cell.key.cookie != 0).collect::<Vec<_>>();
    let entries = || [owned().len(), maps[0].keys::<SockKey>().len(), maps[1].keys::<SockKey>().len()];
    host.run(|| {
        let stream = TcpStream::connect(addr(TWINS[0])).unwrap();
        let [connected, unconnected] = [0; 2].map(|_| UdpSocket::bind("0.0.0.0:0").unwrap());
        connected.connect(addr(TWINS[0])).unwrap();
        for vip in TWINS {
            ask_udp(&unconnected, addr(vip)).unwrap();
        }
        let dual = dual_socket();
        ask_udp(&dual, addr("[::ffff:10.96.0.1]:80")).unwrap();
        // Two entries for the two addresses of a socket, and one where its list begins.
        assert_eq!(entries(), [1, 4, 5]);
        let cell = owned()[0];
        assert!(backends.contains(&SocketAddr::from(([127, 0, 0, 1], cell.key.port.number()))), "{cell:?}");
        assert_eq!((cell.key.protocol, cell.peer.addr), (6, map_v4([10, 96, 0, 1])));
        // A connection that is refused has no peer when its socket is closed.
        assert_eq!(TcpStream::connect("10.96.0.3:80").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(entries(), [1, 4, 5]);
        // A socket that connects again forgets its old peer.
        connected.connect("127.0.0.1:8001").unwrap();
        assert_eq!(entries(), [1, 3, 5]);
        drop((stream, connected, unconnected, dual));
    });
    assert_eq!(entries(), [0, 0, 0]);
}

/// Each element belongs to a socket that is not there: those that connect are kept in the table.
#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn sockets_whose_elements_are_taken_hear_the_address_that_they_connected_to() {
    let _turn = turn();
    let mut host = Host::new();
    host.apply(&state(&[(addr(TWINS[0]), Protocol::Tcp, &[addr("127.0.0.1:8001")])], Lookup::Random, None));
    let [cells, peers] = ["SOCK_CELLS", "SOCK_PEERS"].map(|name| Map::open(&host.pins.0.join("v1/maps").join(name)));
    // No socket has as large a cookie.
    let stranger = |index| SockKey { cookie: (1 << 48) + u64::from(index), ..SockKey::from_bytes(&[0; 32]).unwrap() };
    for index in 0..SOCK_CELLS {
        cells.put(&index, &SockCell { key: stranger(index), ..SockCell::FREE });
    }
    host.run(|| {
        let stream = TcpStream::connect(addr(TWINS[0])).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addr(TWINS[0]));
        assert_eq!(peers.keys::<SockKey>().len(), 1);
    });
    assert_eq!(peers.keys::<SockKey>().len(), 0);
    let strangers = (0..SOCK_CELLS).filter(|index| cells.get::<SockCell>(index).unwrap().key == stranger(*index));
    assert_eq!(strangers.count(), SOCK_CELLS as usize);
}

const NODE_PORT: u16 = 30_080;

/// What a node is served with whose namespace is that of the datapath.
struct Node {
    datapath: EbpfDatapath,
    space: Namespace,
    pod: Namespace,
    pins: PinDir,
    cgroup: Cgroup,
}

impl Node {
    /// A node at 192.0.2.1 and fd00:2::1 with node port 30080 over TCP and UDP at both, and port 80 at the first.
    fn new(configured: impl FnOnce(EbpfConfig) -> EbpfConfig + Send) -> Self {
        let (space, pod) = (Namespace::new("h"), Namespace::new("p"));
        let (pins, cgroup) = (PinDir::new(), Cgroup::joined());
        for command in ["addr add 192.0.2.1/24 dev lo", "addr add fd00:2::1/64 dev lo nodad"] {
            space.ip(command);
            pod.ip(command);
        }
        for (addr, name) in BACKENDS {
            let addr = addr.parse().unwrap();
            for namespace in [&space, &pod] {
                let job = namespace.run(|| serve(addr, name));
                namespace.spawn(job);
            }
        }
        let settings = configured(config(&pins, &cgroup));
        let datapath = space.run(|| EbpfDatapath::open(settings).unwrap());
        let mut node = Self { datapath, space, pod, pins, cgroup };
        let (v4, v6) = (["127.0.0.1:8001", "127.0.0.1:8002"].map(addr), ["[::1]:8001", "[::1]:8002"].map(addr));
        let mut services = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            services.push((SocketAddr::new(ip("192.0.2.1"), NODE_PORT), protocol, &v4[..]));
            services.push((SocketAddr::new(ip("fd00:2::1"), NODE_PORT), protocol, &v6[..]));
            services.push((SocketAddr::new(ip("192.0.2.1"), 80), protocol, &v4[..]));
            services.push((SocketAddr::new(ip("10.96.0.1"), 80), protocol, &v4[..]));
        }
        let mut desired = state(&services, Lookup::Random, None);
        desired.node = NodeFacts { ips: vec![ip("192.0.2.1"), ip("fd00:2::1")], ..NodeFacts::default() };
        node.apply(&desired);
        node
    }

    fn apply(&mut self, desired: &State) {
        let observed = self.datapath.observe().unwrap();
        self.datapath.apply(&diff(&observed, desired, &Labels::default())).unwrap();
    }
}

fn bound(address: &str) -> [io::Result<()>; 2] {
    [TcpListener::bind(address).map(drop), UdpSocket::bind(address).map(drop)]
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn nobody_else_on_the_node_binds_a_node_port() {
    let _turn = turn();
    let node = Node::new(|config| config);
    let taken = [
        "0.0.0.0:30080",
        "[::]:30080",
        "127.0.0.1:30080",
        "[::1]:30080",
        "[::ffff:192.0.2.1]:30080",
        "192.0.2.1:30080",
        "[fd00:2::1]:30080",
        "192.0.2.1:80",
    ];
    for address in taken {
        for outcome in node.space.run(|| bound(address)) {
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::AddrInUse, "{address}");
        }
    }
    let counts = node.datapath.reason_counters().unwrap().unwrap().read().unwrap();
    assert_eq!(counts[&Reason::SocketPortTaken], 2 * taken.len() as u64);
    // A health-check node port is no frontend.
    for address in ["0.0.0.0:30081", "[::]:30081", "0.0.0.0:80", "127.0.0.1:80", "192.0.2.1:81", "0.0.0.0:0"] {
        for outcome in node.space.run(|| bound(address)) {
            outcome.unwrap_or_else(|error| panic!("{address}: {error}"));
        }
    }
    for outcome in node.pod.run(|| bound("0.0.0.0:30080")) {
        outcome.unwrap();
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_guard_of_ports_can_be_off_and_leaves_bound_sockets_alone() {
    let _turn = turn();
    let mut node = Node::new(|config| config.with_guard_ports(false));
    let listener = node.space.run(|| TcpListener::bind("192.0.2.1:30080").unwrap());
    drop(node.datapath);
    let guarded = config(&node.pins, &node.cgroup);
    node.datapath = node.space.run(|| EbpfDatapath::open(guarded).unwrap());
    assert!(node.space.run(|| UdpSocket::bind("192.0.2.1:30080")).is_err());
    assert_eq!(listener.local_addr().unwrap(), addr("192.0.2.1:30080"));
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_node_reaches_its_node_ports_at_loopback_addresses() {
    let _turn = turn();
    let node = Node::new(|config| config);
    for address in ["127.0.0.1:30080", "[::1]:30080", "127.8.9.10:30080"].map(addr) {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let (peer, from) = node.space.run(|| {
            let mut stream = TcpStream::connect(address).unwrap();
            ask_on(&mut stream).unwrap();
            (stream.peer_addr().unwrap(), ask_udp(&UdpSocket::bind(any).unwrap(), address).unwrap().1)
        });
        assert_eq!((peer, from), (address, address));
        assert_eq!(refusal(&node.pod, address), Some(io::ErrorKind::ConnectionRefused), "{address}, in a pod");
    }
    // Outside of the range of node ports, a loopback address is only itself.
    assert_eq!(refusal(&node.space, addr("127.0.0.1:80")), Some(io::ErrorKind::ConnectionRefused));
    drop(node);
    let without = Node::new(|config| config.with_loopback_node_ports(false));
    assert_eq!(refusal(&without.space, addr("127.0.0.1:30080")), Some(io::ErrorKind::ConnectionRefused));
}

/// Why a namespace does not reach an address; `None` if it does.
fn refusal(space: &Namespace, address: SocketAddr) -> Option<io::ErrorKind> {
    space.run(|| ask_tcp(address)).err().map(|error| error.kind())
}

/// A socket that connects to the cluster address.
const QUESTION: Packet = Packet {
    entry: Entry::Socket,
    protocol: Protocol::Tcp,
    source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    source_port: 0,
    destination: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    destination_port: 80,
};

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn sockets_are_balanced_where_the_configuration_says() {
    let _turn = turn();
    let unreachable = Some(io::ErrorKind::NetworkUnreachable);
    let cases = [
        (SocketBalancing::All, [None, None]),
        (SocketBalancing::Host, [None, unreachable]),
        (SocketBalancing::Off, [unreachable, unreachable]),
    ];
    let mut node = Node::new(|config| config);
    let vip = addr("10.96.0.1:80");
    let mut stream = node.pod.run(|| TcpStream::connect(vip).unwrap());
    for (balancing, expected) in cases {
        drop(node.datapath);
        let settings = config(&node.pins, &node.cgroup).with_socket_balancing(balancing);
        node.datapath = node.space.run(|| EbpfDatapath::open(settings).unwrap());
        assert_eq!([&node.space, &node.pod].map(|space| refusal(space, vip)), expected, "{balancing:?}");
        // The answer to a question says the same. Packets of a pod, which has another address than the node, would come
        // through its device.
        let [of_node, of_pod] = ["192.0.2.1", "10.244.0.9"].map(|source| {
            let answer = node.datapath.ask(&Packet { source: ip(source), ..QUESTION });
            answer.map(|answer| matches!(answer.unwrap().verdict, KernelVerdict::Forward { .. }))
        });
        assert_eq!(of_node.unwrap(), expected[0].is_none(), "{balancing:?}");
        match expected[1] {
            None => assert!(of_pod.unwrap(), "{balancing:?}"),
            Some(_) => assert!(of_pod.unwrap_err().to_string().contains("no pod device is attached"), "{balancing:?}"),
        }
        // A socket that was connected before stays as it is.
        ask_on(&mut stream).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), vip);
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_sockets_of_one_namespace_can_be_left_alone() {
    let _turn = turn();
    let mut node = Node::new(|config| config);
    let vip = addr("10.96.0.1:80");
    let cookie = node.pod.run(|| EbpfDatapath::netns_cookie().unwrap());
    node.datapath.set_socket_balancing(cookie, false).unwrap();
    let unreachable = Some(io::ErrorKind::NetworkUnreachable);
    assert_eq!([&node.space, &node.pod].map(|space| refusal(space, vip)), [None, unreachable]);
    // Another process takes it over.
    drop(node.datapath);
    let settings = config(&node.pins, &node.cgroup);
    node.datapath = node.space.run(|| EbpfDatapath::open(settings).unwrap());
    assert_eq!([&node.space, &node.pod].map(|space| refusal(space, vip)), [None, unreachable]);
    node.datapath.set_socket_balancing(cookie, true).unwrap();
    assert_eq!([&node.space, &node.pod].map(|space| refusal(space, vip)), [None, None]);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_sockets_of_pods_with_certain_addresses_can_be_left_alone() {
    let _turn = turn();
    let mut node = Node::new(|config| config);
    let vip = addr("10.96.0.1:80");
    let unreachable = Some(io::ErrorKind::NetworkUnreachable);
    node.pod.ip("addr add 198.18.7.9/32 dev lo");
    node.pod.ip("addr add fd00:7777::9/128 dev lo nodad");
    node.space.ip("addr add 198.18.9.9/32 dev lo");
    // Its first process has no name for its namespace.
    let command = "ip link set lo up; ip addr add 198.18.8.9/32 dev lo; echo ready; while read; do \
        (exec 3<>/dev/tcp/10.96.0.1/80) 2>&1 | tail -1; done";
    let mut process = Command::new("unshare");
    let process = process.args(["--net", "bash", "-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = process.spawn().unwrap();
    let (mut ask, mut answers) =
        (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()).lines());
    assert_eq!(answers.next().unwrap().unwrap(), "ready");
    let mut refused = move || {
        ask.write_all(b"\n").unwrap();
        answers.next().unwrap().unwrap()
    };
    // There is no server behind 127.0.0.1 in that namespace.
    let (sent, left) = ("Connection refused", "Network is unreachable");
    let leave = |node: &mut Node, prefixes: &[&str]| {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        let Node { datapath, space, .. } = node;
        let found = space.run(|| datapath.leave_alone(&prefixes)).unwrap();
        assert!(found.hidden.is_none(), "{found:?}");
        found.namespaces
    };
    for (prefixes, of_pod, of_process) in [
        (&[][..], None, sent),
        (&["198.18.7.0/24"], unreachable, sent),
        (&["198.18.8.9/32", "fd00:7777::/64"], unreachable, left),
        (&["198.18.0.0/24"], None, sent),
        // The node itself is never left alone.
        (&["198.18.9.9/32", "198.18.8.0/24"], None, left),
        (&[], None, sent),
    ] {
        let expected = usize::from(of_pod.is_some()) + usize::from(of_process == left);
        assert_eq!(leave(&mut node, prefixes), expected, "{prefixes:?}");
        assert_eq!([&node.space, &node.pod].map(|space| refusal(space, vip)), [None, of_pod], "{prefixes:?}");
        // The answer to a question says the same.
        for (source, is_sent) in [("198.18.7.9", of_pod.is_none()), ("198.18.8.9", of_process == sent)] {
            let packet = Packet { source: ip(source), ..QUESTION };
            let verdict = node.space.run(|| node.datapath.ask(&packet)).unwrap().unwrap().verdict;
            assert_eq!(matches!(verdict, KernelVerdict::Forward { .. }), is_sent, "{prefixes:?}: {source}");
        }
        let said = refused();
        assert!(said.contains(of_process), "{prefixes:?}: {said}");
    }
    // A namespace that has gone is none any more.
    leave(&mut node, &["198.18.8.0/24"]);
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(leave(&mut node, &["198.18.8.0/24"]), 0);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn changed_settings_of_sockets_are_found_and_repaired() {
    let _turn = turn();
    let mut node = Node::new(|config| config.with_socket_balancing(SocketBalancing::Host));
    let (state, labels) = (node.datapath.observe().unwrap(), Labels::default());
    let maps = node.pins.0.join("v1/maps");
    Map::open(&maps.join("SOCK_SETTINGS")).put(&SETTINGS_KEY, &SockSettings::NONE);
    Map::open(&maps.join("SOCK_SKIPS")).put(&7_u64, &1_u8);
    let expected = Expected { state: &state, labels: &labels };
    let found = node.datapath.inspect(expected, Inspection::Everything).unwrap();
    let objects: Vec<String> = found.iter().map(|drift| drift.object.to_string()).collect();
    assert_eq!(objects, ["MAP SOCK_SETTINGS", "MAP SOCK_SKIPS"]);
    node.datapath.repair(expected, &found).unwrap();
    assert_eq!(node.datapath.inspect(expected, Inspection::Everything).unwrap(), []);
    let vip = addr("10.96.0.1:80");
    assert_eq!(refusal(&node.pod, vip), Some(io::ErrorKind::NetworkUnreachable));
}
