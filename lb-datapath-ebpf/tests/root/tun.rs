//! Devices whose packets have no Ethernet header: a tunnel of two tun devices, as WireGuard or IPIP would make one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use lb_core::{
    addr::Protocol,
    datapath::{Datapath, DatapathError, Devices, ErrorKind},
    decision::{Entry, Packet},
    kernel::KernelVerdict,
    state::{Lookup, State},
};
use lb_datapath_ebpf::{EbpfDatapath, Reason};

use crate::{
    common::{
        Cgroup, Namespace, PATIENCE, PinDir, UPLINK, World, ask_tcp, config, first_answer, ip, serve, state, turn,
    },
    packets::{Cluster, addr},
};

const TUNNEL: &str = "tun0";
/// What the tunnel takes is less than what the devices before it take.
const MTU: usize = 1300;

/// Frontends of each family: with backends in pods, beyond the tunnel, on the node, and without any.
const PODS: [&str; 2] = ["10.96.0.1:80", "[fd00:96::1]:80"];
const FAR: [&str; 2] = ["10.96.0.2:80", "[fd00:96::2]:80"];
const OWN: [&str; 2] = ["10.96.0.3:80", "[fd00:96::3]:80"];
const NONE: [&str; 2] = ["10.96.0.4:80", "[fd00:96::4]:80"];
/// The same again for what is sent in bulk: to a pod, and beyond the tunnel.
const BULK: [[&str; 2]; 2] = [["10.96.0.5:90", "10.96.0.6:90"], ["[fd00:96::5]:90", "[fd00:96::6]:90"]];

const POD_BACKENDS: [[&str; 2]; 2] =
    [["10.244.0.2:8080", "10.244.1.2:8080"], ["[fd00:244::2]:8080", "[fd00:244:1::2]:8080"]];
const FAR_BACKEND: [&str; 2] = ["10.77.0.2:8080", "[fd00:77::2]:8080"];
const OWN_BACKEND: [&str; 2] = ["192.0.2.1:8081", "[2001:db8::1]:8081"];
const BULK_BACKENDS: [[&str; 2]; 2] =
    [["10.244.0.2:9090", "10.77.0.2:9090"], ["[fd00:244::2]:9090", "[fd00:77::2]:9090"]];

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const REMOTE: [&str; 2] = ["10.77.0.2", "fd00:77::2"];
const POD: [&str; 2] = ["10.244.0.2", "fd00:244::2"];

/// Two tun devices, each of which gives what it is sent to the other.
struct Tunnel {
    stop: Arc<AtomicBool>,
    relays: Vec<JoinHandle<()>>,
}

impl Tunnel {
    fn between(node: &Namespace, remote: &Namespace) -> Self {
        let [here, there] = [node, remote].map(open_tun);
        for (space, number) in [(node, 1), (remote, 2)] {
            space.ip(&format!("link set {TUNNEL} mtu {MTU} up"));
            space.ip(&format!("addr add 10.77.0.{number}/24 dev {TUNNEL}"));
            space.ip(&format!("addr add fd00:77::{number}/64 dev {TUNNEL} nodad"));
        }
        remote.ip(&format!("route add default dev {TUNNEL}"));
        remote.ip(&format!("-6 route add default dev {TUNNEL}"));
        let stop = Arc::new(AtomicBool::new(false));
        let relay = |from: &File, to: &File| {
            let (from, to, stop) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(&stop));
            thread::spawn(move || relay(from, to, &stop))
        };
        Self { relays: vec![relay(&here, &there), relay(&there, &here)], stop }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for relay in self.relays.drain(..) {
            let _ = relay.join();
        }
    }
}

/// Makes a tun device in the namespace.
fn open_tun(space: &Namespace) -> File {
    open_tun_of(space, libc::ARPHRD_NONE)
}

/// The same, with another type: `ARPHRD_…`.
fn open_tun_of(space: &Namespace, kind: u16) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TUNSETLINK: libc::c_ulong = 0x4004_54cd;
    space.run(|| {
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = [0_u8; 40];
        request[..TUNNEL.len()].copy_from_slice(TUNNEL.as_bytes());
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the request is an `ifreq` with a name and flags, and outlives the call.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        // SAFETY: the argument is a number.
        let typed = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETLINK, libc::c_int::from(kind)) };
        assert_eq!(typed, 0, "{}", io::Error::last_os_error());
        file
    })
}

/// Gives every packet of one device to the other, until it is stopped. A device that is down takes none.
fn relay(mut from: File, mut to: File, stop: &AtomicBool) {
    let mut room = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which outlives the call.
        if unsafe { libc::poll(&raw mut ready, 1, 50) } == 1
            && let Ok(len) = from.read(&mut room)
        {
            let _ = to.write(&room[..len]);
        }
    }
}

/// A cluster whose node has a tunnel to a host as a second uplink. Processes of this test are in no cgroup, so that
/// packets of the node are translated as well.
struct Overlay {
    cluster: Cluster,
    remote: Namespace,
    _tunnel: Tunnel,
}

impl Overlay {
    fn new() -> Self {
        let (world, remote) = (World::new(), Namespace::new("r"));
        let tunnel = Tunnel::between(&world.node, &remote);
        world.node.sysctl(&format!("ipv4/conf/{TUNNEL}/rp_filter"), "1");
        for (space, backends, name) in [(&remote, FAR_BACKEND, "far"), (&world.node, OWN_BACKEND, "own")] {
            for backend in backends {
                let job = space.run(|| serve(addr(backend), name));
                space.spawn(job);
            }
        }
        for family in BULK_BACKENDS {
            for (space, backend) in [&world.pods[0], &remote].into_iter().zip(family) {
                let job = space.run(|| count(addr(backend)));
                space.spawn(job);
            }
        }
        let mut cluster = Cluster::in_world(world, &[UPLINK, TUNNEL]);
        cluster.apply(services());
        Self { cluster, remote, _tunnel: tunnel }
    }

    fn ask(&self, from: &Namespace, vip: &str) -> BTreeSet<String> {
        self.cluster.ask(from, vip)
    }
}

/// Tells every client how many bytes it has sent, once it has sent all.
fn count(addr: SocketAddr) -> impl FnOnce() + Send + 'static {
    let listener = TcpListener::bind(addr);
    move || {
        for stream in listener.unwrap().incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let count = io::copy(&mut stream, &mut io::sink()).unwrap_or_default();
                let _ = stream.write_all(&count.to_be_bytes());
            });
        }
    }
}

/// Sends a megabyte; returns how much of it came.
fn send_bulk(vip: SocketAddr) -> io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&vip, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&vec![7; 1 << 20])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    Ok(u64::from_be_bytes(answer))
}

fn services() -> State {
    let mut services: Vec<(SocketAddr, Vec<SocketAddr>)> = Vec::new();
    for family in 0..2 {
        services.push((addr(PODS[family]), POD_BACKENDS[family].map(addr).to_vec()));
        services.push((addr(FAR[family]), vec![addr(FAR_BACKEND[family])]));
        services.push((addr(OWN[family]), vec![addr(OWN_BACKEND[family])]));
        services.push((addr(NONE[family]), Vec::new()));
        services.extend((0..2).map(|to| (addr(BULK[family][to]), vec![addr(BULK_BACKENDS[family][to])])));
    }
    let of = |protocol| services.iter().map(move |(vip, backends)| (*vip, protocol, &backends[..]));
    let services: Vec<_> = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(of).collect();
    state(&services, Lookup::Random, None)
}

fn answers<const N: usize>(answers: [(&str, &str); N]) -> BTreeSet<String> {
    answers.map(|(name, from)| format!("{name} {from}")).into()
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces, tun devices and a cgroup"]
fn clients_and_backends_beyond_a_tunnel_are_served() {
    let _turn = turn();
    let overlay = Overlay::new();
    let World { pods, client, .. } = &overlay.cluster.world;
    for family in 0..2 {
        let (node, remote, pod) = (NODE[family], REMOTE[family], POD[family]);
        let in_pods = answers([("a", node), ("b", node)]);
        assert_eq!(overlay.ask(&overlay.remote, PODS[family]), in_pods, "from the tunnel to Ethernet");
        assert_eq!(overlay.ask(client, FAR[family]), answers([("far", node)]), "from Ethernet to the tunnel");
        assert_eq!(overlay.ask(&pods[0], FAR[family]), answers([("far", pod)]), "from a pod to the tunnel");
        assert_eq!(overlay.ask(&overlay.remote, FAR[family]), answers([("far", node)]), "from the tunnel into it");
        assert_eq!(
            overlay.ask(&overlay.remote, OWN[family]),
            answers([("own", remote)]),
            "from the tunnel to the node"
        );
    }
    assert_eq!(overlay.cluster.stopped(), BTreeMap::new());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces, tun devices and a cgroup"]
fn processes_of_the_node_reach_backends_out_of_a_tunnel_and_through_it() {
    let _turn = turn();
    let overlay = Overlay::new();
    let node = &overlay.cluster.world.node;
    for (family, (vips, flag)) in [("10.96.0.0/24", ""), ("fd00:96::/64", "-6 ")].into_iter().enumerate() {
        let via = ["192.0.2.2", "2001:db8::2"][family];
        for way in [format!("dev {TUNNEL}"), format!("via {via}")] {
            node.ip(&format!("{flag}route replace {vips} {way}"));
            let of_node = NODE[family];
            // The first packet to a neighbour that is not known yet may be lost, and TCP sends it again.
            node.run(|| (0..24).for_each(|_| drop(ask_tcp(addr(PODS[family])).unwrap())));
            let in_pods = answers([("a", of_node), ("b", of_node)]);
            assert_eq!(overlay.ask(node, PODS[family]), in_pods, "{way}");
            assert_eq!(overlay.ask(node, FAR[family]), answers([("far", of_node)]), "{way}");
            let error = node.run(|| first_answer(addr(NONE[family]))).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{way}");
        }
    }
    assert_eq!(overlay.cluster.stopped(), [(Reason::PacketNoBackends, 4)].into());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces, tun devices and a cgroup"]
fn what_is_refused_is_answered_into_the_tunnel() {
    let _turn = turn();
    let overlay = Overlay::new();
    for vip in NONE {
        let error = overlay.remote.run(|| first_answer(addr(vip))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{vip}");
        let any = if addr(vip).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let error = overlay.remote.run(|| {
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(addr(vip)).unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0]).unwrap_err()
        });
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{vip}");
    }
    assert_eq!(overlay.cluster.stopped(), [(Reason::PacketNoBackends, 4)].into());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces, tun devices and a cgroup"]
fn what_is_longer_than_the_tunnel_takes_is_told_and_a_megabyte_comes_through() {
    let _turn = turn();
    let overlay = Overlay::new();
    let World { pods, client, .. } = &overlay.cluster.world;
    for [to_pod, to_remote] in BULK {
        assert_eq!(overlay.remote.run(|| send_bulk(addr(to_pod))).unwrap(), 1 << 20, "out of the tunnel");
        for (space, name) in [(client, "client"), (&pods[1], "pod"), (&overlay.remote, "remote")] {
            assert_eq!(space.run(|| send_bulk(addr(to_remote))).unwrap(), 1 << 20, "{name} into the tunnel");
        }
    }
    assert_eq!(overlay.cluster.stopped(), BTreeMap::new(), "the remote host says what it takes");
    for (number, vip) in (1..).zip(FAR) {
        let any = if addr(vip).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = client.run(|| UdpSocket::bind(any).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&[7; MTU + 100], addr(vip)).unwrap();
        assert_eq!(overlay.cluster.stopped(), [(Reason::PacketTooBig, number)].into());
        // Its host has been told, and sends fragments.
        socket.send_to(&[7; MTU + 100], addr(vip)).unwrap();
        let mut room = [0; 64];
        let answer = socket.recv(&mut room).map(|len| room[..len].to_vec());
        assert!(answer.unwrap().starts_with(b"far "));
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces, tun devices and a cgroup"]
fn the_kernel_is_asked_about_packets_out_of_a_tunnel_and_into_it() {
    let _turn = turn();
    let mut overlay = Overlay::new();
    let Cluster { world, datapath, .. } = &mut overlay.cluster;
    for family in 0..2 {
        for (source, vip, device) in [(REMOTE, PODS, TUNNEL), (["192.0.2.2", "2001:db8::2"], FAR, UPLINK)] {
            let (source, vip) = (ip(source[family]), addr(vip[family]));
            let packet = Packet {
                entry: Entry::Uplink,
                protocol: Protocol::Tcp,
                source,
                source_port: 40_000,
                destination: vip.ip(),
                destination_port: vip.port(),
            };
            let answer = world.node.run(|| datapath.ask(&packet)).unwrap().unwrap();
            assert!(matches!(answer.verdict, KernelVerdict::Forward { translated: Some(true), .. }), "{answer:?}");
            assert!(answer.steps.contains(&format!("as if it came in through {device}")), "{answer:?}");
            assert!(answer.faults.is_empty(), "{answer:?}");
        }
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces, tun devices and a cgroup"]
fn a_device_whose_packets_begin_with_something_else_is_refused_by_name_and_type() {
    let _turn = turn();
    let (node, pins, cgroup) = (Namespace::new("n"), PinDir::new(), Cgroup::empty());
    let _device = open_tun_of(&node, libc::ARPHRD_INFINIBAND);
    let is_named = |error: DatapathError| {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().starts_with("device tun0 is of type 32 (InfiniBand), "), "{error}");
    };
    is_named(node.run(|| EbpfDatapath::open(config(&pins, &cgroup).with_uplink_devices([TUNNEL]))).unwrap_err());
    let mut datapath = node.run(|| EbpfDatapath::open(config(&pins, &cgroup).with_pod_devices([TUNNEL]))).unwrap();
    assert!(datapath.config().pod_devices.is_empty());
    is_named(node.run(|| datapath.attach_device(TUNNEL)).unwrap_err());
}
