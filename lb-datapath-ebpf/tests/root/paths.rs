//! Packets between a client and a server that are routers away: fragments, errors, path MTU.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
};

use lb_core::{
    addr::Protocol,
    datapath::Datapath,
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_ebpf::EbpfDatapath;

use crate::common::{
    Cgroup, Namespace, PATIENCE, POD_DEVICES, PinDir, UPLINK, World, config, no_offload, no_segmentation, state, turn,
};

/// A client and a server outside of the node, each behind a router of its own, and pods on the node.
///
/// ```text
/// client 198.51.100.2 -- left router -- 192.0.2.2 uplink 192.0.2.1 node 10.0.3.1 core -- right router -- server 10.0.4.2
/// ```
struct Path {
    datapath: EbpfDatapath,
    world: World,
    client: Namespace,
    right: Namespace,
    server: Namespace,
    _pins: PinDir,
    _cgroup: Cgroup,
}

const CORE: &str = "core";
const VIPS: [&str; 2] = ["10.96.0.1:80", "[fd00:96::1]:80"];
const SERVERS: [&str; 2] = ["10.0.4.2:8080", "[fd00:4::2]:8080"];
const PODS: [&str; 2] = ["10.244.0.2:8080", "[fd00:244::2]:8080"];

impl Path {
    fn new(backends: [&str; 2]) -> Self {
        let world = World::new();
        let left = &world.client;
        let (client, right, server) = (Namespace::new("c"), Namespace::new("r"), Namespace::new("s"));
        // The world's client is the left router.
        link(left, "out", "198.51.100.1", "2001:db8:100::1", &client, "198.51.100.2", "2001:db8:100::2");
        link(&world.node, CORE, "10.0.3.1", "fd00:3::1", &right, "10.0.3.2", "fd00:3::2");
        link(&right, "out", "10.0.4.1", "fd00:4::1", &server, "10.0.4.2", "fd00:4::2");
        for router in [left, &right] {
            router.sysctl("ipv4/ip_forward", "1");
            router.sysctl("ipv6/conf/all/forwarding", "1");
        }
        client.ip("route add default via 198.51.100.1");
        client.ip("-6 route add default via 2001:db8:100::1");
        world.node.ip("route add 198.51.100.0/24 via 192.0.2.2");
        world.node.ip("-6 route add 2001:db8:100::/64 via 2001:db8::2");
        world.node.ip("route add 10.0.4.0/24 via 10.0.3.2");
        world.node.ip("-6 route add fd00:4::/64 via fd00:3::2");
        right.ip("route add default via 10.0.3.1");
        right.ip("-6 route add default via fd00:3::1");
        server.ip("route add default via 10.0.4.1");
        server.ip("-6 route add default via fd00:4::1");
        let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
        let mut config = config(&pins, &cgroup);
        config.pod_devices = POD_DEVICES.map(String::from).to_vec();
        config.uplink_devices = vec![UPLINK.into(), CORE.into()];
        let mut datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        let backends = backends.map(|backend| [addr(backend)]);
        let services: Vec<(SocketAddr, Protocol, &[SocketAddr])> = VIPS
            .iter()
            .zip(&backends)
            .flat_map(|(vip, backend)| [Protocol::Tcp, Protocol::Udp].map(|p| (addr(vip), p, &backend[..])))
            .collect();
        let desired = State { node: World::facts(), ..state(&services, Lookup::Random, None) };
        let observed = datapath.observe().unwrap();
        datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
        Self { datapath, world, client, right, server, _pins: pins, _cgroup: cgroup }
    }

    /// The namespace that has the address of a backend.
    fn host_of(&self, backend: &str) -> &Namespace {
        if PODS.contains(&backend) { &self.world.pods[0] } else { &self.server }
    }

    fn stopped(&self) -> Vec<(&'static str, u64)> {
        let counts = self.datapath.reason_counters().unwrap().unwrap().read().unwrap();
        counts.into_iter().filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.name(), count)).collect()
    }
}

fn link(space: &Namespace, device: &str, v4: &str, v6: &str, other: &Namespace, other_v4: &str, other_v6: &str) {
    space.join(device, other, "eth0");
    space.ip(&format!("addr add {v4}/24 dev {device}"));
    space.ip(&format!("addr add {v6}/64 dev {device} nodad"));
    other.ip(&format!("addr add {other_v4}/24 dev eth0"));
    other.ip(&format!("addr add {other_v6}/64 dev eth0 nodad"));
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn any(of: SocketAddr) -> SocketAddr {
    addr(if of.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
}

fn socket(vip: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(any(vip)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends every datagram back to where it came from.
fn echo(at: SocketAddr) -> impl FnOnce() + Send + 'static {
    let socket = UdpSocket::bind(at).unwrap();
    move || {
        let mut room = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut room) {
            let _ = socket.send_to(&room[..len], from);
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn datagrams_in_fragments_arrive_whole_and_come_back(backends: [&str; 2], offload: bool) {
    let path = Path::new(backends);
    if !offload {
        path.client.run(|| no_offload("eth0"));
        path.host_of(backends[0]).run(|| no_offload("eth0"));
    }
    for (vip, backend) in VIPS.into_iter().zip(backends) {
        let job = path.host_of(backend).run(|| echo(addr(backend)));
        path.host_of(backend).spawn(job);
        for from in [&path.client, &path.world.pods[1]] {
            for len in [1, 1472, 1473, 4000, 60_000] {
                let sent = pattern(len);
                let mut room = vec![0; 1 << 16];
                let (got, source) = from.run(|| {
                    let socket = socket(addr(vip));
                    socket.send_to(&sent, addr(vip)).unwrap();
                    socket.recv_from(&mut room).unwrap_or_else(|error| panic!("{len} bytes by {vip}: {error}"))
                });
                assert_eq!((source, &room[..got] == sent.as_slice()), (addr(vip), true), "{len} bytes by {vip}");
            }
        }
    }
    assert_eq!(path.stopped(), []);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn datagrams_in_fragments_reach_a_pod_of_the_node_and_come_back() {
    let _turn = turn();
    datagrams_in_fragments_arrive_whole_and_come_back(PODS, true);
    datagrams_in_fragments_arrive_whole_and_come_back(PODS, false);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn datagrams_in_fragments_reach_a_remote_backend_with_a_translated_source_and_come_back() {
    let _turn = turn();
    datagrams_in_fragments_arrive_whole_and_come_back(SERVERS, true);
    datagrams_in_fragments_arrive_whole_and_come_back(SERVERS, false);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_client_learns_that_nobody_listens_at_the_backend() {
    let _turn = turn();
    for backends in [PODS, SERVERS] {
        let path = Path::new(backends);
        for vip in VIPS {
            for from in [&path.client, &path.world.pods[1]] {
                let error = from.run(|| {
                    let socket = socket(addr(vip));
                    socket.connect(addr(vip)).unwrap();
                    socket.send(b"?").unwrap();
                    socket.recv(&mut [0; 8]).unwrap_err()
                });
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{vip} at {backends:?}: {error}");
            }
        }
        assert_eq!(path.stopped(), []);
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_backend_learns_that_the_client_is_gone() {
    let _turn = turn();
    for backends in [PODS, SERVERS] {
        let path = Path::new(backends);
        for (vip, backend) in VIPS.into_iter().zip(backends) {
            for from in [&path.client, &path.world.pods[1]] {
                let server = path.host_of(backend).run(|| UdpSocket::bind(addr(backend)).unwrap());
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                from.run(|| socket(addr(vip)).send_to(b"?", addr(vip)).unwrap());
                let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
                server.connect(peer).unwrap();
                server.send(b"!").unwrap();
                let error = server.recv(&mut [0; 8]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{vip} at {backend}: {error}");
            }
        }
        assert_eq!(path.stopped(), []);
    }
}

/// The sender of the error that a datagram with this time to live, to `vip`, comes back with.
fn offender(vip: SocketAddr, ttl: u32) -> IpAddr {
    let socket = socket(vip);
    let set = |level, name, value: u32| {
        let value = (&raw const value).cast();
        // SAFETY: the option takes an integer.
        let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, 4) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    if vip.is_ipv4() {
        set(libc::IPPROTO_IP, libc::IP_RECVERR, 1);
        set(libc::IPPROTO_IP, libc::IP_TTL, ttl);
    } else {
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1);
        set(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ttl);
    }
    socket.connect(vip).unwrap();
    socket.send(b"?").unwrap();
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one descriptor that is open.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) }, 1, "no error for {vip}");
    let (mut control, mut message) = ([0_u64; 32], libc::msghdr { ..unsafe_zero() });
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message has room for control data and none for payload.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE) };
    assert!(got >= 0, "{}", io::Error::last_os_error());
    // A control message of 16 bytes of header and 16 of `sock_extended_err`, which the offender's address follows.
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let offender = &bytes[32..];
    if vip.is_ipv4() {
        Ipv4Addr::from(<[u8; 4]>::try_from(&offender[4..8]).unwrap()).into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(&offender[8..24]).unwrap()).into()
    }
}

/// A message without anything.
fn unsafe_zero() -> libc::msghdr {
    // SAFETY: integers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn errors_show_the_router_where_a_packet_ended_before_and_behind_the_node() {
    let _turn = turn();
    let path = Path::new(SERVERS);
    let hops = [["198.51.100.1", "192.0.2.1", "10.0.3.2"], ["2001:db8:100::1", "2001:db8::1", "fd00:3::2"]];
    for (vip, hops) in VIPS.into_iter().zip(hops) {
        for (ttl, hop) in (1..).zip(hops) {
            let found = path.client.run(|| offender(addr(vip), ttl));
            assert_eq!(found.to_string(), hop, "{vip}, time to live {ttl}");
        }
    }
    assert_eq!(path.stopped(), [("packet_hop_limit", 2)]);
}

const AMOUNT: usize = 2 << 20;

/// Takes this much on each connection, and sends it back.
fn mirror(at: SocketAddr) -> impl FnOnce() + Send + 'static {
    let listener = TcpListener::bind(at).unwrap();
    move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut room = vec![0; AMOUNT];
                stream.read_exact(&mut room).and_then(|()| stream.write_all(&room))
            });
        }
    }
}

/// Uploads and downloads through every virtual address, from every client.
fn transfer(path: &Path, backends: [&str; 2], clients: &[&Namespace]) {
    for (vip, backend) in VIPS.into_iter().zip(backends) {
        let job = path.host_of(backend).run(|| mirror(addr(backend)));
        path.host_of(backend).spawn(job);
        for from in clients {
            let sent = pattern(AMOUNT);
            let mut got = vec![0; AMOUNT];
            let done: io::Result<()> = from.run(|| {
                let mut stream = TcpStream::connect_timeout(&addr(vip), PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.write_all(&sent)?;
                stream.read_exact(&mut got)
            });
            done.unwrap_or_else(|error| panic!("by {vip}: {error}, {:?}", path.stopped()));
            assert!(got == sent, "by {vip}");
        }
    }
}

/// Makes every device on the way take and give each segment as a packet of its own.
fn split_segments(path: &Path) {
    path.client.run(|| no_segmentation("eth0"));
    path.server.run(|| no_segmentation("eth0"));
    path.world.client.run(|| ["eth0", "out"].into_iter().for_each(no_segmentation));
    path.right.run(|| ["eth0", "out"].into_iter().for_each(no_segmentation));
    path.world.pods.iter().for_each(|pod| pod.run(|| no_segmentation("eth0")));
    path.world.node.run(|| [UPLINK, CORE].into_iter().chain(POD_DEVICES).for_each(no_segmentation));
}

fn path_mtu(whole: bool) {
    let path = Path::new(SERVERS);
    if !whole {
        split_segments(&path);
    }
    path.right.ip("route add 10.0.4.2/32 dev out mtu 1400");
    path.right.ip("-6 route add fd00:4::2/128 dev out mtu 1400");
    path.world.client.ip("route add 198.51.100.2/32 dev out mtu 1300");
    path.world.client.ip("-6 route add 2001:db8:100::2/128 dev out mtu 1300");
    transfer(&path, SERVERS, &[&path.client]);
    assert_eq!(path.stopped(), []);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn both_sides_learn_the_path_mtu_behind_a_translation() {
    let _turn = turn();
    path_mtu(true);
    path_mtu(false);
}

/// Uploads through the node when the device to the server takes less than the client's.
fn next_device(whole: bool) {
    let path = Path::new(SERVERS);
    if !whole {
        split_segments(&path);
    }
    path.world.node.ip(&format!("link set {CORE} mtu 1400"));
    path.right.ip("link set eth0 mtu 1400");
    transfer(&path, SERVERS, &[&path.client, &path.world.pods[1]]);
    let stopped = path.stopped();
    assert!(matches!(stopped[..], [("packet_too_big", 1..)]), "{stopped:?}");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_node_tells_what_its_next_device_takes() {
    let _turn = turn();
    next_device(true);
    next_device(false);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn datagrams_that_their_sender_splits_find_the_mtu_of_the_next_device() {
    let _turn = turn();
    let path = Path::new(SERVERS);
    path.world.node.ip(&format!("link set {CORE} mtu 1400"));
    path.right.ip("link set eth0 mtu 1400");
    for (vip, backend) in VIPS.into_iter().zip(SERVERS) {
        let job = path.server.run(|| echo(addr(backend)));
        path.server.spawn(job);
        let sent = pattern(4000);
        let answered = path.client.run(|| {
            let socket = UdpSocket::bind(any(addr(vip))).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
            // The first datagram is lost: its sender learns from the error about it.
            (0..10).any(|_| {
                socket.send_to(&sent, addr(vip)).unwrap();
                let mut room = vec![0; 1 << 16];
                socket.recv_from(&mut room).is_ok_and(|(got, _)| room[..got] == sent)
            })
        });
        assert!(answered, "{vip}: {:?}", path.stopped());
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn packets_with_ipv4_options_are_translated_and_refused_like_any_other() {
    let _turn = turn();
    let mut path = Path::new(SERVERS);
    let job = path.server.run(|| echo(addr(SERVERS[0])));
    path.server.spawn(job);
    let ask = |path: &Path| {
        path.client.run(|| {
            let socket = socket(addr(VIPS[0]));
            // Router alert (RFC 2113).
            let option = [148_u8, 4, 0, 0];
            // SAFETY: the option takes as many bytes as it is told.
            let done = unsafe {
                libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, option.as_ptr().cast(), 4)
            };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
            socket.connect(addr(VIPS[0])).unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 8])
        })
    };
    assert_eq!(ask(&path).unwrap(), 1);
    let observed = path.datapath.observe().unwrap();
    let refused = [(addr(VIPS[0]), Protocol::Udp, &[][..])];
    let desired = State { node: World::facts(), ..state(&refused, Lookup::Random, None) };
    path.datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
    assert_eq!(ask(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn refusals_are_limited_and_counted() {
    let _turn = turn();
    let mut path = Path::new(SERVERS);
    let observed = path.datapath.observe().unwrap();
    let refused = [(addr(VIPS[1]), Protocol::Udp, &[][..])];
    let desired = State { node: World::facts(), ..state(&refused, Lookup::Random, None) };
    path.datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
    // More than every processor answers at once, in less time than it takes to earn the right to as many again.
    path.client.run(|| {
        let socket = socket(addr(VIPS[1]));
        let processors = thread::available_parallelism().unwrap().get();
        (0..processors * 20_000).for_each(|_| drop(socket.send_to(b"?", addr(VIPS[1]))));
    });
    let stopped = path.stopped();
    assert!(matches!(stopped[..], [("packet_no_backends", 1_000..), ("packet_answer_limit", 1..)]), "{stopped:?}");
}
