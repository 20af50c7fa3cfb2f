//! SCTP through the real datapath. Not every kernel has it: both ends are raw sockets, and what they send is written by
//! `lb_testkit::packets`.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use lb_core::{
    addr::Protocol,
    state::{Lookup, State},
};
use lb_datapath_ebpf::Reason;
use lb_testkit::packets::{Addresses, Check, Frame, Ip, Payload, Ports, Reading, Transport, protocol};

use crate::{
    common::{Namespace, PATIENCE, World, ip, state, turn},
    packets::Cluster,
};

const PORT: u16 = 3868;
const CLIENT_PORT: u16 = 40_000;
const VIPS: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const PODS: [[&str; 2]; 2] = [["10.244.0.2", "10.244.1.2"], ["fd00:244::2", "fd00:244:1::2"]];
const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// Another address of the client.
const OTHER: [&str; 2] = ["192.0.2.3", "2001:db8::3"];

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// What came: from whom, with which ports, and the first chunk.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    from: IpAddr,
    ports: (u16, u16),
    chunk: Vec<u8>,
}

/// One end of associations.
struct End {
    socket: UdpSocket,
    own: IpAddr,
}

impl End {
    /// Hears every SCTP packet to this address of the namespace.
    fn open(space: &Namespace, own: &str) -> Self {
        let own = ip(own);
        let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = space.run(|| {
            // SAFETY: the call takes numbers.
            let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol::SCTP)) };
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            // SAFETY: the call has made the descriptor.
            UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) })
        });
        bind(&socket, own);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, own }
    }

    fn send(&self, to: IpAddr, ports: (u16, u16), chunk: &[u8]) {
        self.try_send(to, ports, chunk).unwrap();
    }

    fn try_send(&self, to: IpAddr, ports: (u16, u16), chunk: &[u8]) -> io::Result<usize> {
        let addresses = Addresses::new(self.own, to).unwrap();
        let ports = Ports { source: ports.0, destination: ports.1 };
        let packet = Ip::new(addresses, Payload::Sctp { ports, chunks: chunk.to_vec() }).bytes();
        let header = if to.is_ipv4() { 20 } else { 40 };
        self.socket.send_to(&packet[header..], SocketAddr::new(to, 0))
    }

    /// The next packet, whose checksum is right.
    fn next(&self) -> io::Result<Came> {
        let mut room = vec![0; 1 << 16];
        let (len, from) = self.socket.recv_from(&mut room)?;
        // An IPv4 header comes with the packet.
        let start = if self.own.is_ipv4() { usize::from(room[0] & 0x0f) * 4 } else { 0 };
        let payload = Payload::Raw { protocol: protocol::SCTP, data: room[start..len].to_vec() };
        let addresses = Addresses::new(from.ip(), self.own).unwrap();
        let frame = Frame::new([2; 6], [4; 6], Ip::new(addresses, payload)).bytes();
        let found = Reading::of(&frame).ip.unwrap();
        let Transport::Sctp(ports) = found.transport else { panic!("{found:?}") };
        assert_eq!(found.transport_checksum, Check::Right, "{found:?}");
        let chunk = frame[found.payload_at + 12..].to_vec();
        Ok(Came { from: from.ip(), ports: (ports.source, ports.destination), chunk })
    }
}

/// Binds a raw socket, which has no port.
fn bind(socket: &UdpSocket, own: IpAddr) {
    let (v4, v6): (libc::sockaddr_in, libc::sockaddr_in6);
    let (addr, len): (*const libc::sockaddr, usize) = match own {
        IpAddr::V4(own) => {
            let sin_addr = libc::in_addr { s_addr: u32::from_ne_bytes(own.octets()) };
            v4 = libc::sockaddr_in { sin_family: libc::AF_INET as u16, sin_port: 0, sin_addr, sin_zero: [0; 8] };
            ((&raw const v4).cast(), size_of_val(&v4))
        }
        IpAddr::V6(own) => {
            v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: own.octets() },
                sin6_scope_id: 0,
            };
            ((&raw const v6).cast(), size_of_val(&v6))
        }
    };
    // SAFETY: the address is that long.
    let done = unsafe { libc::bind(socket.as_raw_fd(), addr, len as u32) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// A chunk of this type with so many bytes of content.
fn chunk(kind: u8, content: usize) -> Vec<u8> {
    let [high, low] = (content as u16 + 4).to_be_bytes();
    [kind, 0, high, low].into_iter().chain((0..content).map(|i| (i % 251) as u8)).collect()
}

/// A service for every family, with these pods as its backends.
fn services(pods: &[usize]) -> State {
    let backends =
        PODS.map(|family| pods.iter().map(|&pod| SocketAddr::new(ip(family[pod]), PORT)).collect::<Vec<_>>());
    let vips = VIPS.map(|vip| SocketAddr::new(ip(vip), PORT));
    let services: Vec<(SocketAddr, Protocol, &[SocketAddr])> =
        vips.iter().zip(&backends).map(|(vip, backends)| (*vip, Protocol::Sctp, &backends[..])).collect();
    state(&services, Lookup::Random, None)
}

fn cluster(desired: State) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.apply(desired);
    let World { node, client, .. } = &cluster.world;
    node.ip("route add default via 192.0.2.2");
    node.ip("-6 route add default via 2001:db8::2");
    client.ip(&format!("addr add {}/24 dev eth0", OTHER[0]));
    client.ip(&format!("addr add {}/64 dev eth0 nodad", OTHER[1]));
    cluster
}

/// One end says these chunks to the virtual address and the other one answers each with the next; `seen` is how the backend
/// knows the client.
fn talk(client: &End, backend: &End, vip: &str, seen: &str, chunks: &[(bool, Vec<u8>)]) {
    let (vip, seen) = (ip(vip), ip(seen));
    for (from_client, content) in chunks {
        let (sent, heard) = if *from_client {
            client.send(vip, (CLIENT_PORT, PORT), content);
            (Came { from: seen, ports: (CLIENT_PORT, PORT), chunk: content.clone() }, backend.next())
        } else {
            backend.send(seen, (PORT, CLIENT_PORT), content);
            (Came { from: vip, ports: (PORT, CLIENT_PORT), chunk: content.clone() }, client.next())
        };
        assert_eq!(heard.unwrap_or_else(|error| panic!("chunk {} of {vip}: {error}", content[0])), sent);
    }
}

fn association() -> Vec<(bool, Vec<u8>)> {
    let large = 4000;
    vec![
        (true, chunk(INIT, 16)),
        (false, chunk(INIT_ACK, 16)),
        (true, chunk(COOKIE_ECHO, 40)),
        (false, chunk(COOKIE_ACK, 0)),
        (true, chunk(DATA, 100)),
        (false, chunk(DATA, 100)),
        // In fragments.
        (true, chunk(DATA, large)),
        (false, chunk(DATA, large)),
        (false, chunk(SHUTDOWN, 4)),
        (true, chunk(SHUTDOWN_ACK, 0)),
        (false, chunk(SHUTDOWN_COMPLETE, 0)),
    ]
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn associations_of_clients_pods_and_the_node_reach_a_backend_with_their_ports() {
    let _turn = turn();
    let cluster = cluster(services(&[0]));
    let World { node, pods, client } = &cluster.world;
    for (family, vip) in VIPS.into_iter().enumerate() {
        let backend = End::open(&pods[0], PODS[family][0]);
        let pod = PODS[family][1];
        for (space, own, seen) in
            [(client, CLIENT[family], NODE[family]), (&pods[1], pod, pod), (node, NODE[family], NODE[family])]
        {
            talk(&End::open(space, own), &backend, vip, seen, &association());
        }
        // A pod that is its own backend hears what it sends from the node's address, at the same socket.
        backend.send(ip(vip), (CLIENT_PORT + 1, PORT), &chunk(INIT, 16));
        assert_eq!(backend.next().unwrap().from, ip(NODE[family]));
    }
    assert_eq!(cluster.stopped(), BTreeMap::new());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_frontend_that_keeps_the_source_shows_clients_outside_to_their_backend() {
    let _turn = turn();
    let mut desired = services(&[0]);
    desired.frontends.values_mut().for_each(|frontend| frontend.keeps_source = true);
    let cluster = cluster(desired);
    let World { pods, client, .. } = &cluster.world;
    for (family, vip) in VIPS.into_iter().enumerate() {
        let backend = End::open(&pods[0], PODS[family][0]);
        // Two clients with one port are two associations.
        for own in [CLIENT[family], OTHER[family]] {
            talk(&End::open(client, own), &backend, vip, own, &association()[..8]);
        }
    }
    assert_eq!(cluster.stopped(), BTreeMap::new());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn two_clients_with_one_port_are_never_one_association() {
    let _turn = turn();
    let cluster = cluster(services(&[0]));
    let World { pods, client, .. } = &cluster.world;
    for (family, vip) in VIPS.into_iter().enumerate() {
        let backend = End::open(&pods[0], PODS[family][0]);
        let (first, second) = (End::open(client, CLIENT[family]), End::open(client, OTHER[family]));
        let whole = association();
        talk(&first, &backend, vip, NODE[family], &whole[..6]);
        second.send(ip(vip), (CLIENT_PORT, PORT), &chunk(INIT, 16));
        talk(&first, &backend, vip, NODE[family], &whole[4..]);
        // The port is free again, and what the second client sent has not come.
        talk(&second, &backend, vip, NODE[family], &whole);
    }
    assert_eq!(cluster.stopped(), [(Reason::PacketSctpPortTaken, 2)].into());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_service_without_backends_aborts_associations_and_ignores_strays() {
    let _turn = turn();
    let cluster = cluster(services(&[]));
    let World { node, pods, client } = &cluster.world;
    for (family, vip) in VIPS.into_iter().enumerate() {
        // What is dropped where it leaves the node, its sender hears of, if that is a raw socket of IPv6.
        let dropped = (!ip(vip).is_ipv4()).then_some(libc::ENOBUFS);
        for (space, own, fails) in
            [(client, CLIENT[family], None), (&pods[1], PODS[family][1], None), (node, NODE[family], dropped)]
        {
            let end = End::open(space, own);
            let stray = end.try_send(ip(vip), (CLIENT_PORT, PORT), &chunk(DATA, 16));
            assert_eq!(stray.err().and_then(|error| error.raw_os_error()), fails, "{own}");
            end.send(ip(vip), (CLIENT_PORT, PORT), &chunk(INIT, 16));
            let abort = Came { from: ip(vip), ports: (PORT, CLIENT_PORT), chunk: vec![ABORT, 0, 0, 4] };
            assert_eq!(end.next().unwrap(), abort, "{vip} from {own}");
        }
    }
    assert_eq!(cluster.stopped(), [(Reason::PacketNoBackends, 6), (Reason::PacketStraySctp, 6)].into());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_client_learns_that_the_host_of_the_backend_does_not_know_sctp() {
    let _turn = turn();
    let cluster = cluster(services(&[0]));
    for (family, (vip, errno)) in VIPS.into_iter().zip([libc::ENOPROTOOPT, libc::EPROTO]).enumerate() {
        let client = End::open(&cluster.world.client, CLIENT[family]);
        client.socket.connect(SocketAddr::new(ip(vip), 0)).unwrap();
        client.send(ip(vip), (CLIENT_PORT, PORT), &chunk(INIT, 16));
        let error = client.next().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno), "{vip}: {error}");
    }
    assert_eq!(cluster.stopped(), BTreeMap::new());
}
