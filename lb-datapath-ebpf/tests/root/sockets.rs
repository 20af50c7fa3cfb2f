//! Sockets of a cgroup, on the loopback device of a namespace.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
};

use aya::programs::links::PinnedLink;
use lb_core::{
    addr::{FrontendAddr, Protocol},
    affinity::Affinity,
    datapath::Datapath,
    id::SetId,
    plan::{Labels, diff},
    state::{BackendSet, Lookup, State, Target},
};
use lb_datapath_ebpf::{EbpfDatapath, Reason};
use lb_datapath_ebpf_abi::SockKey;

use crate::bpf::Map;
use crate::common::{Cgroup, Namespace, PinDir, ask_on, ask_tcp, ask_udp, backend, config, serve, state, turn};

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
    assert_eq!(tcp.kind(), io::ErrorKind::ConnectionRefused);
    let udp = host.run(|| ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), vip).unwrap_err());
    assert_eq!(udp.kind(), io::ErrorKind::ConnectionRefused);
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
    host.apply(&state(&services, Lookup::Random, None));
    let maps = ["SOCK_PEERS", "SOCK_FLOWS"].map(|name| Map::open(&host.pins.0.join("v1/maps").join(name)));
    let entries = || [maps[0].keys::<SockKey>().len(), maps[1].keys::<SockKey>().len()];
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
        assert_eq!(entries(), [5, 5]);
        // A socket that connects again forgets its old peer.
        connected.connect("127.0.0.1:8001").unwrap();
        assert_eq!(entries(), [4, 5]);
        drop((stream, connected, unconnected, dual));
    });
    assert_eq!(entries(), [0, 0]);
}
