//! Flows that end when their backend left, on a kernel with `CONFIG_INET_DIAG_DESTROY`.

use std::{
    io,
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    datapath::{Datapath, Evicted, Eviction},
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_ebpf::{DestroySockets, EbpfDatapath};
use lb_datapath_ebpf_abi as abi;
use socket2::{Domain, Socket, Type};

use crate::{
    bpf::Map,
    common::{
        Cgroup, Namespace, PATIENCE, POD_DEVICES, PinDir, UPLINK, World, ask_on, ask_tcp, ask_udp, config, serve,
        state, turn,
    },
};

/// A datapath in a namespace with servers, whose clients are threads of this process.
struct Host {
    datapath: EbpfDatapath,
    space: Namespace,
    pins: PinDir,
    _cgroup: Cgroup,
}

const VIPS: [&str; 2] = ["10.96.0.1:80", "[fd00:96::1]:80"];
const BACKENDS: [[&str; 2]; 2] = [["127.0.0.1:8001", "127.0.0.1:8002"], ["[::1]:8001", "[::1]:8002"]];
/// The addresses under which IPv4, IPv6 and IPv6 sockets with an IPv4-mapped peer reach the two frontends.
const STATED: [(&str, usize); 3] = [("10.96.0.1:80", 0), ("[fd00:96::1]:80", 1), ("[::ffff:10.96.0.1]:80", 0)];

impl Host {
    fn new(destroy: DestroySockets) -> Self {
        let space = Namespace::new("e");
        let (pins, cgroup) = (PinDir::new(), Cgroup::joined());
        for family in BACKENDS {
            for (backend, name) in family.into_iter().zip(["a", "b"]) {
                let job = space.run(|| serve(addr(backend), name));
                space.spawn(job);
            }
        }
        let config = config(&pins, &cgroup).with_destroy_sockets(destroy);
        let datapath = EbpfDatapath::open(config).unwrap();
        Self { datapath, space, pins, _cgroup: cgroup }
    }

    fn apply(&mut self, desired: &State) {
        let observed = self.datapath.observe().unwrap();
        self.datapath.apply(&diff(&observed, desired, &Labels::default())).unwrap();
    }

    fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.space.run(job)
    }

    /// Ends the flows of a frontend to all backends but one.
    fn evict(&mut self, vip: &str, protocol: Protocol, keeps: &str) -> Evicted {
        let (space, datapath) = (&self.space, &mut self.datapath);
        space.run(|| datapath.evict(&[eviction(vip, protocol, keeps)])).unwrap()
    }

    /// Entries of `SOCK_PEERS`, and elements of `SOCK_CELLS` in use.
    fn peers(&self) -> (usize, usize) {
        let [peers, cells] =
            ["SOCK_PEERS", "SOCK_CELLS"].map(|name| Map::open(&self.pins.0.join("v1/maps").join(name)));
        let cells = cells.values::<abi::SockCell>();
        (peers.keys::<abi::SockKey>().len(), cells.iter().filter(|cell| cell.key.cookie != 0).count())
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn eviction(vip: &str, protocol: Protocol, keeps: &str) -> Eviction {
    let (vip, keeps) = (addr(vip), addr(keeps));
    Eviction {
        frontend: FrontendAddr::new(vip.ip(), vip.port(), protocol),
        keeps: [BackendAddr::new(keeps.ip(), keeps.port(), protocol)].into(),
    }
}

fn services(protocol: Protocol) -> State {
    let backends = BACKENDS.map(|family| family.map(addr));
    let services: Vec<_> = VIPS.iter().zip(&backends).map(|(vip, all)| (addr(vip), protocol, &all[..])).collect();
    state(&services, Lookup::RoundRobin, None)
}

fn datagrams_to(vip: SocketAddr) -> UdpSocket {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(vip).unwrap();
    socket
}

/// What answers on a connected socket.
fn ask(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"?")?;
    let mut room = [0; 64];
    let count = socket.recv(&mut room)?;
    Ok(name(&String::from_utf8_lossy(&room[..count])))
}

fn name(answer: &str) -> String {
    answer.split(' ').next().unwrap().to_owned()
}

/// Two connected sockets, the first of them to backend `a` and the second to `b`.
fn one_of_each(vip: &str) -> [UdpSocket; 2] {
    let sockets = [datagrams_to(addr(vip)), datagrams_to(addr(vip))];
    let (first, second) = (ask(&sockets[0]).unwrap(), ask(&sockets[1]).unwrap());
    let [x, y] = sockets;
    match (&*first, &*second) {
        ("a", "b") => [x, y],
        ("b", "a") => [y, x],
        answers => panic!("{answers:?}"),
    }
}

fn connections(vip: &str) -> [TcpStream; 2] {
    let mut streams = [0, 1].map(|_| TcpStream::connect_timeout(&addr(vip), PATIENCE).unwrap());
    let first = name(&ask_on(&mut streams[0]).unwrap());
    assert_ne!(first, name(&ask_on(&mut streams[1]).unwrap()));
    let [x, y] = streams;
    if first == "a" { [x, y] } else { [y, x] }
}

/// Whether a call failed because somebody ended the socket: the error is told once, and then there is no peer.
fn is_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted || error.raw_os_error() == Some(libc::EDESTADDRREQ)
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_resolver_whose_backend_left_recovers_at_once() {
    let _turn = turn();
    let mut host = Host::new(DestroySockets::Host);
    host.apply(&services(Protocol::Udp));
    for (stated, family) in STATED {
        let [leaves, stays] = host.run(|| one_of_each(stated));
        let before = host.peers();
        let evicted = host.evict(VIPS[family], Protocol::Udp, BACKENDS[family][1]);
        assert_eq!((evicted.sockets, evicted.flows, evicted.count_remaining()), (1, 0, 0), "{stated}: {evicted}");
        assert_eq!(host.peers(), (before.0 - 1, before.1));
        // It was waiting for an answer, or it sends the next question.
        let error = leaves.recv(&mut [0; 8]).unwrap_err();
        assert!(is_ended(&error), "{stated}: {error}");
        assert_eq!(ask(&stays).unwrap(), "b", "{stated}");
        // It connects again, as resolvers do.
        let again = (0..4).map(|_| {
            leaves.connect(addr(stated)).unwrap();
            ask(&leaves).unwrap()
        });
        assert!(again.into_iter().all(|answer| ["a", "b"].contains(&&*answer)));
        drop(stays);
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_connection_that_is_cut_fails_at_both_ends() {
    let _turn = turn();
    let mut host = Host::new(DestroySockets::Host);
    host.apply(&services(Protocol::Tcp));
    for (stated, family) in STATED {
        let [mut cut, mut stays] = host.run(|| connections(stated));
        assert_eq!(host.peers(), (0, 2));
        let evicted = host.evict(VIPS[family], Protocol::Tcp, BACKENDS[family][1]);
        assert_eq!((evicted.sockets, evicted.count_remaining()), (1, 0), "{stated}: {evicted}");
        assert_eq!(host.peers(), (0, 1));
        let error = cut.write_all(b"?").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{stated}");
        assert_eq!(name(&ask_on(&mut stays).unwrap()), "b", "{stated}");
        assert_eq!(host.evict(VIPS[family], Protocol::Tcp, BACKENDS[family][1]).sockets, 0, "it is done once");
        drop(stays);
    }
}

/// It is not ours, although it has the same peer.
#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_socket_that_talks_to_the_backend_itself_is_left_alone() {
    let _turn = turn();
    let mut host = Host::new(DestroySockets::Host);
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        host.apply(&services(protocol));
        let ours = host.run(|| one_of(protocol));
        let direct = host.run(|| datagrams_to(addr(BACKENDS[0][0])));
        let mut stream = host.run(|| TcpStream::connect(addr(BACKENDS[0][0])).unwrap());
        assert_eq!(host.evict(VIPS[0], protocol, BACKENDS[0][1]).sockets, 1, "{protocol}");
        assert_eq!(ask(&direct).unwrap(), "a", "{protocol}");
        assert_eq!(name(&ask_on(&mut stream).unwrap()), "a", "{protocol}");
        drop(ours);
    }
}

/// Sockets of one protocol through the first frontend, one to each backend.
fn one_of(protocol: Protocol) -> (Vec<UdpSocket>, Vec<TcpStream>) {
    match protocol {
        Protocol::Udp => (one_of_each(VIPS[0]).into(), Vec::new()),
        _ => (Vec::new(), connections(VIPS[0]).into()),
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn another_service_with_the_same_backend_keeps_its_sockets() {
    let _turn = turn();
    let mut host = Host::new(DestroySockets::Host);
    let only = [addr(BACKENDS[0][0])];
    let [first, second] = [addr("10.96.0.1:80"), addr("10.96.0.2:80")];
    let of = |vip| (vip, Protocol::Udp, &only[..]);
    host.apply(&state(&[of(first), of(second)], Lookup::Random, None));
    let (leaves, stays) = host.run(|| (datagrams_to(first), datagrams_to(second)));
    assert_eq!((ask(&leaves).unwrap(), ask(&stays).unwrap()), ("a".into(), "a".into()));
    assert_eq!(host.evict("10.96.0.1:80", Protocol::Udp, BACKENDS[0][1]).sockets, 1);
    assert!(is_ended(&leaves.recv(&mut [0]).unwrap_err()));
    assert_eq!(ask(&stays).unwrap(), "a");
}

/// The kernel would take away its port, and whoever answers later would not find it.
#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_datagram_socket_that_is_not_connected_keeps_its_port() {
    let _turn = turn();
    let mut host = Host::new(DestroySockets::Host);
    host.apply(&services(Protocol::Udp));
    let vip = addr(VIPS[0]);
    let sockets: Vec<UdpSocket> = host.run(|| (0..4).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect());
    let ports = || sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect::<Vec<_>>();
    let before = ports();
    sockets.iter().for_each(|socket| drop(ask_udp(socket, vip).unwrap()));
    let evicted = host.evict(VIPS[0], Protocol::Udp, BACKENDS[0][1]);
    assert_eq!((evicted.sockets, evicted.count_remaining()), (0, 0), "{evicted}");
    for socket in &sockets {
        assert_eq!(ask_udp(socket, vip).unwrap().1, vip);
    }
    assert_eq!(ports(), before);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn sockets_in_other_namespaces_end_if_that_was_asked_for_and_are_counted_if_not() {
    let _turn = turn();
    for (destroy, ended) in [(DestroySockets::Off, 0), (DestroySockets::Host, 1), (DestroySockets::All, 2)] {
        let mut host = Host::new(destroy);
        assert_eq!(host.datapath.capabilities().drain, destroy == DestroySockets::All);
        host.apply(&services(Protocol::Udp));
        let pod = Namespace::new("f");
        // The server of the pod keeps the pod's namespace alive in a thread of this process.
        let job = pod.run(|| serve(addr(BACKENDS[0][0]), "a"));
        pod.spawn(job);
        let [here, _other] = host.run(|| one_of_each(VIPS[0]));
        let there = pod.run(|| {
            // Routed to a device, whatever the address is.
            let sockets = [datagrams_to(addr(VIPS[0])), datagrams_to(addr(VIPS[0]))];
            let is_first = |socket: &UdpSocket| ask(socket).is_ok();
            sockets.into_iter().find(is_first).unwrap()
        });
        let evicted = host.evict(VIPS[0], Protocol::Udp, BACKENDS[0][1]);
        assert_eq!((evicted.sockets, evicted.count_remaining()), (ended, 2 - ended), "{destroy:?}: {evicted}");
        if let Some(remaining) = evicted.remaining.first() {
            assert_eq!(remaining.frontend, FrontendAddr::new(addr(VIPS[0]).ip(), 80, Protocol::Udp));
            assert!(remaining.cause.report().contains("--destroy-sockets"), "{}", remaining.cause);
        }
        assert_eq!(ask(&here).is_err(), ended >= 1, "{destroy:?}");
        assert_eq!(ask(&there).is_err(), ended == 2, "{destroy:?}");
    }
}

/// A node with packets: pods that serve, and a client outside.
struct Cluster {
    datapath: EbpfDatapath,
    world: World,
    pins: PinDir,
    _cgroup: Cgroup,
}

const POD_BACKENDS: [[&str; 2]; 2] =
    [["10.244.0.2:8080", "10.244.1.2:8080"], ["[fd00:244::2]:8080", "[fd00:244:1::2]:8080"]];

impl Cluster {
    fn new() -> Self {
        let world = World::new();
        for (pod, name) in ["a", "b"].into_iter().enumerate() {
            for family in POD_BACKENDS {
                let job = world.pods[pod].run(|| serve(addr(family[pod]), name));
                world.pods[pod].spawn(job);
            }
        }
        let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
        let config = config(&pins, &cgroup).with_pod_devices(POD_DEVICES).with_uplink_devices([UPLINK]);
        let mut datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        let backends = POD_BACKENDS.map(|family| family.map(addr));
        let of = |protocol| VIPS.iter().zip(&backends).map(move |(vip, all)| (addr(vip), protocol, &all[..]));
        let services: Vec<_> = of(Protocol::Tcp).chain(of(Protocol::Udp)).collect();
        let desired = State { node: World::facts(), ..state(&services, Lookup::RoundRobin, None) };
        let observed = datapath.observe().unwrap();
        datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
        Self { datapath, world, pins, _cgroup: cgroup }
    }

    fn evict(&mut self, vip: &str, protocol: Protocol, keeps: &str) -> Evicted {
        let (node, datapath) = (&self.world.node, &mut self.datapath);
        node.run(|| datapath.evict(&[eviction(vip, protocol, keeps)])).unwrap()
    }

    /// Flows of a backend with this address that are not over.
    fn flows(&self, ip: IpAddr) -> usize {
        let wanted = match ip {
            IpAddr::V4(ip) => abi::map_v4(ip.octets()),
            IpAddr::V6(ip) => abi::from_octets(ip.octets()),
        };
        let living = |map: &Map, key: &abi::CtKey| map.get(key).is_some_and(|flow: abi::CtValue| !flow.is_closed());
        let of = |map: Map| {
            let keys = map.keys::<abi::CtKey>().into_iter();
            keys.filter(|key| key.src == wanted && living(&map, key)).count()
        };
        ["CT", "CT_LIVE"].map(|name| of(Map::open(&self.pins.0.join("v1/maps").join(name)))).iter().sum()
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_client_whose_packets_are_translated_is_refused_when_it_next_sends() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    for (vip, backends) in VIPS.into_iter().zip(POD_BACKENDS) {
        for from in ["outside", "pod"] {
            let space = if from == "pod" { &cluster.world.pods[1] } else { &cluster.world.client };
            let [mut cut, mut stays] = space.run(|| connections(vip));
            // The backend of the other flow is the pod itself, or not.
            let evicted = cluster.evict(vip, Protocol::Tcp, backends[1]);
            assert_eq!((evicted.sockets, evicted.flows, evicted.count_remaining()), (0, 1, 0), "{from} {vip}");
            assert_eq!(cluster.flows(addr(backends[0]).ip()), 0, "{from} {vip}");
            let error = ask_on(&mut cut).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{from} {vip}");
            assert_eq!(name(&ask_on(&mut stays).unwrap()), "b", "{from} {vip}");
            drop((cut, stays));
            cluster.evict(vip, Protocol::Tcp, "192.0.2.99:1");
        }
        assert!(cluster.world.client.run(|| ask_tcp(addr(vip))).is_ok());
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn datagrams_of_a_backend_that_left_leave_nothing_behind() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    for (vip, backends) in VIPS.into_iter().zip(POD_BACKENDS) {
        let [_leaves, stays] = cluster.world.client.run(|| one_of_each(vip));
        let evicted = cluster.evict(vip, Protocol::Udp, backends[1]);
        assert_eq!((evicted.sockets, evicted.flows), (0, 1), "{vip}");
        assert_eq!(cluster.flows(addr(backends[0]).ip()), 0);
        assert_eq!(ask(&stays).unwrap(), "b");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn a_multipath_connection_is_cut_as_well() {
    const IPPROTO_MPTCP: i32 = 262;
    let _turn = turn();
    let mut host = Host::new(DestroySockets::Host);
    host.apply(&services(Protocol::Tcp));
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(IPPROTO_MPTCP.into())).unwrap();
        socket.connect(&addr(VIPS[0]).into()).unwrap();
        TcpStream::from(socket)
    };
    let mut streams = host.run(|| [connect(), connect()]);
    let cut = [0, 1].map(|n| name(&ask_on(&mut streams[n]).unwrap()) == "a");
    let evicted = host.evict(VIPS[0], Protocol::Tcp, BACKENDS[0][1]);
    assert_eq!((evicted.sockets, evicted.count_remaining()), (1, 0), "{evicted}");
    assert_eq!([0, 1].map(|n| ask_on(&mut streams[n]).is_err()), cut);
}

/// Takes CAP_SYS_ADMIN from the calling thread.
fn give_up_sys_admin() {
    const VERSION_3: u32 = 0x2008_0522;
    const SYS_ADMIN: u32 = 21;
    let header = [VERSION_3, 0];
    // Effective, permitted and inheritable capabilities, twice 32 of each.
    let mut sets = [0_u32; 6];
    // SAFETY: the header and the sets are as large as this version says, and this thread alone changes.
    let done = unsafe {
        let got = libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        sets[0] &= !(1 << SYS_ADMIN);
        got | libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr())
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn without_the_privilege_to_enter_namespaces_the_reason_is_said_and_drain_policies_are_not_promised() {
    let _turn = turn();
    let mut host = Host::new(DestroySockets::All);
    host.apply(&services(Protocol::Udp));
    assert!(host.datapath.drain_problem().is_none() && host.datapath.capabilities().drain);
    let pod = Namespace::new("g");
    let job = pod.run(|| serve(addr(BACKENDS[0][0]), "a"));
    pod.spawn(job);
    let _elsewhere = pod.run(|| [datagrams_to(addr(VIPS[0])), datagrams_to(addr(VIPS[0]))]);
    let (space, datapath) = (&host.space, &mut host.datapath);
    let evicted = space.run(|| {
        give_up_sys_admin();
        datapath.evict(&[eviction(VIPS[0], Protocol::Udp, BACKENDS[0][1])]).unwrap()
    });
    assert_eq!((evicted.sockets, evicted.count_remaining()), (0, 1), "{evicted}");
    assert!(evicted.remaining[0].cause.report().contains("CAP_SYS_ADMIN"), "{evicted}");

    let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
    let config = config(&pins, &cgroup).with_destroy_sockets(DestroySockets::All);
    let opened = thread::spawn(move || {
        give_up_sys_admin();
        EbpfDatapath::open(config)
    });
    let opened = opened.join().unwrap().unwrap();
    assert!(!opened.capabilities().drain);
    let why = opened.drain_problem().unwrap();
    assert!(why.report().contains("CAP_SYS_ADMIN"), "{why}");
}
