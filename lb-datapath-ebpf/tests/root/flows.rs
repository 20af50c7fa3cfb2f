//! The table of flows under real connections: whose a tuple is, for how long, and what a flood costs.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    sync::mpsc,
    thread,
    time::Instant,
};

use lb_core::{
    addr::Protocol,
    datapath::Datapath,
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_ebpf::{Capacities, EbpfDatapath, Reason};
use lb_datapath_ebpf_abi as abi;

use crate::{
    bpf::Map,
    common::{
        Cgroup, Namespace, PATIENCE, POD_DEVICES, PinDir, UPLINK, World, ask_on, ask_tcp, ask_udp, config,
        connect_from, ip, serve, state, turn,
    },
};

/// Two pods that serve on port 8080, and a datapath on the node.
pub(crate) struct Cluster {
    pub(crate) datapath: EbpfDatapath,
    pub(crate) world: World,
    pub(crate) pins: PinDir,
    _cgroup: Cgroup,
}

pub(crate) const VIP: &str = "10.96.0.1:80";
const PODS: [&str; 2] = ["10.244.0.2:8080", "10.244.1.2:8080"];
const NODE: &str = "192.0.2.1";

impl Cluster {
    /// With the ports that these settings leave to translated sources.
    pub(crate) fn with_local_ports(range: &str) -> Self {
        let world = World::new();
        world.node.sysctl("ipv4/ip_local_port_range", range);
        Self::in_world(world, &[UPLINK])
    }

    fn in_world(world: World, uplinks: &[&str]) -> Self {
        Self::with_capacities(world, uplinks, |_| ())
    }

    /// With maps of other sizes than most tests have.
    pub(crate) fn with_capacities(world: World, uplinks: &[&str], change: impl FnOnce(&mut Capacities)) -> Self {
        for (i, name) in ["a", "b"].into_iter().enumerate() {
            let job = world.pods[i].run(|| serve(addr(PODS[i]), name));
            world.pods[i].spawn(job);
        }
        let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
        let mut config = config(&pins, &cgroup);
        config.pod_devices = POD_DEVICES.map(String::from).to_vec();
        config.uplink_devices = uplinks.iter().map(ToString::to_string).collect();
        change(&mut config.capacities);
        let datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        Self { datapath, world, pins, _cgroup: cgroup }
    }

    fn new() -> Self {
        Self::with_local_ports("32768 60999")
    }

    /// 1,024 ports for translated sources.
    fn with_few_ports() -> Self {
        Self::with_local_ports("2048 65535")
    }

    pub(crate) fn apply(&mut self, desired: State) {
        let observed = self.datapath.observe().unwrap();
        let desired = State { node: World::facts(), ..desired };
        self.datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
    }

    /// `vip` over TCP and UDP, with these backends.
    pub(crate) fn serve_at(&mut self, vip: &str, backends: &[&str]) {
        let backends: Vec<_> = backends.iter().map(|text| addr(text)).collect();
        let services = [Protocol::Tcp, Protocol::Udp].map(|protocol| (addr(vip), protocol, &*backends));
        self.apply(state(&services, Lookup::RoundRobin, None));
    }

    pub(crate) fn stopped(&self, reason: Reason) -> u64 {
        self.datapath.reason_counters().unwrap().unwrap().read().unwrap()[&reason]
    }
}

/// Every entry of a flow.
fn flows(pins: &PinDir) -> Vec<(Map, abi::CtKey, abi::CtValue)> {
    let of = |name: &str| {
        let open = || Map::open(&pins.0.join("v1/maps").join(name));
        let map = open();
        let keys = map.keys::<abi::CtKey>().into_iter();
        keys.filter_map(|key| Some((open(), key, map.get(&key)?))).collect::<Vec<_>>()
    };
    ["CT", "CT_LIVE"].into_iter().flat_map(of).collect()
}

/// As if every flow had been silent for so many seconds more.
fn age(pins: &PinDir, seconds: u64) {
    for (map, key, value) in flows(pins) {
        let last_ns = value.last_ns.saturating_sub(seconds * 1_000_000_000);
        map.put(&key, &abi::CtValue { last_ns, ..value });
    }
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn answers_to_the_node_are_no_service_traffic() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.serve_at("192.0.2.1:10001", &PODS);
    let World { node, client, .. } = &cluster.world;
    let outside = addr("192.0.2.2:9000");
    let job = client.run(|| serve(outside, "outside"));
    client.spawn(job);
    node.run(|| {
        let mut stream = connect_from(addr("192.0.2.1:10001"), outside).unwrap();
        assert_eq!(ask_on(&mut stream).unwrap(), "outside 192.0.2.1");
        let socket = UdpSocket::bind("192.0.2.1:10001").unwrap();
        socket.connect(outside).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(b"?").unwrap();
        let mut room = [0; 64];
        let count = socket.recv(&mut room).unwrap();
        assert_eq!(&room[..count], b"outside 192.0.2.1");
        drop(socket);
        // One that is not connected is known by what it has sent.
        let socket = UdpSocket::bind("192.0.2.1:10001").unwrap();
        assert_eq!(ask_udp(&socket, outside).unwrap(), ("outside 192.0.2.1".into(), outside));
    });
    let answer = client.run(|| ask_tcp(addr("192.0.2.1:10001")).unwrap());
    assert!(["a 192.0.2.1", "b 192.0.2.1"].contains(&&*answer), "{answer}");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn answers_to_a_masqueraded_pod_are_no_service_traffic() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.serve_at("192.0.2.1:10001", &PODS);
    let World { node, client, pods } = &cluster.world;
    let outside = addr("192.0.2.2:9000");
    let job = client.run(|| serve(outside, "outside"));
    client.spawn(job);
    let rules = "add table ip m; add chain ip m post { type nat hook postrouting priority 100; }; \
                 add rule ip m post ip saddr 10.244.0.0/16 oifname uplink masquerade";
    assert!(node.run(|| Command::new("nft").arg(rules).status().unwrap().success()));
    pods[0].run(|| {
        let mut stream = connect_from(addr("10.244.0.2:10001"), outside).unwrap();
        assert_eq!(ask_on(&mut stream).unwrap(), "outside 192.0.2.1");
    });
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_direct_connection_and_one_to_a_frontend_from_one_port_do_not_meet() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.serve_at(VIP, &PODS[1..]);
    let pod = &cluster.world.pods[0];
    for (port, ways) in [(40_000, [PODS[1], VIP]), (40_001, [VIP, PODS[1]])] {
        pod.run(|| {
            let source = SocketAddr::new(ip("10.244.0.2"), port);
            let mut streams = ways.map(|to| {
                let mut stream = connect_from(source, addr(to)).unwrap_or_else(|error| panic!("{to}: {error}"));
                assert_eq!(&ask_on(&mut stream).unwrap()[..1], "b", "{to}");
                stream
            });
            let seen = streams.each_mut().map(|stream| ask_on(stream).unwrap());
            assert_eq!(seen, ["b 10.244.0.2", "b 192.0.2.1"], "{ways:?}: the newer one has another source");
        });
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_socket_that_talks_to_a_backend_directly_and_through_a_frontend_tells_them_apart() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.serve_at(VIP, &PODS[1..]);
    cluster.world.pods[0].run(|| {
        let socket = UdpSocket::bind("10.244.0.2:40000").unwrap();
        for to in [PODS[1], VIP, PODS[1], VIP] {
            let (_, from) = ask_udp(&socket, addr(to)).unwrap();
            assert_eq!(from, addr(to));
        }
    });
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_translated_source_is_the_address_of_the_way_to_the_backend() {
    const UPLINKS: [&str; 2] = [UPLINK, "uplink2"];
    let _turn = turn();
    let (world, far) = (World::new(), Namespace::new("f"));
    world.node.join(UPLINKS[1], &far, "eth0");
    world.node.ip("addr add 198.51.100.1/24 dev uplink2");
    world.node.ip("addr add 2001:db8:2::1/64 dev uplink2 nodad");
    far.ip("addr add 198.51.100.2/24 dev eth0");
    far.ip("addr add 2001:db8:2::2/64 dev eth0 nodad");
    let mut cluster = Cluster::in_world(world, &UPLINKS);
    // No way leads from there to the first address.
    for (vip, backend, source) in
        [(VIP, "198.51.100.2:8080", "198.51.100.1"), ("[fd00:96::1]:80", "[2001:db8:2::2]:8080", "2001:db8:2::1")]
    {
        let job = far.run(|| serve(addr(backend), "far"));
        far.spawn(job);
        let services = [Protocol::Tcp, Protocol::Udp];
        let backends = [addr(backend)];
        let services = services.map(|protocol| (addr(vip), protocol, &backends[..]));
        let desired = state(&services, Lookup::RoundRobin, None);
        let mut node = World::facts();
        node.ips.extend([ip("198.51.100.1"), ip("2001:db8:2::1")]);
        let observed = cluster.datapath.observe().unwrap();
        let plan = diff(&observed, &State { node, ..desired }, &Labels::default());
        cluster.datapath.apply(&plan).unwrap();
        assert_eq!(cluster.world.client.run(|| ask_tcp(addr(vip))).unwrap(), format!("far {source}"));
    }
}

/// Answers each connection to port 8081 with the client's address and closes it first.
fn closes_first(space: &Namespace, at: SocketAddr) {
    let listener = space.run(|| TcpListener::bind(at).unwrap());
    space.spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.to_string().as_bytes());
        }
    });
}

/// The source that a server which closes first has seen.
fn seen_by(vip: SocketAddr) -> io::Result<SocketAddr> {
    let mut stream = TcpStream::connect_timeout(&vip, PATIENCE)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.parse().unwrap())
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_port_whose_backend_is_in_time_wait_is_not_used_again_while_others_are_fresh() {
    let _turn = turn();
    let mut cluster = Cluster::with_few_ports();
    cluster.serve_at(VIP, &["10.244.0.2:8081"]);
    closes_first(&cluster.world.pods[0], addr("10.244.0.2:8081"));
    let seen = |count: usize| -> Vec<_> {
        cluster.world.client.run(|| (0..count).map(|_| seen_by(addr(VIP)).unwrap().port()).collect())
    };
    let used = seen(800);
    // The backend's sockets are in TIME-WAIT for a minute.
    age(&cluster.pins, 30);
    let fresh = seen(100);
    let again: Vec<_> = fresh.iter().filter(|port| used.contains(port)).collect();
    // 32 picks out of 1,024 ports of which 900 are taken all miss one time in 60.
    assert!(again.len() < 20, "{again:?}");
    age(&cluster.pins, 60);
    assert_eq!(cluster.world.client.run(|| seen_by(addr(VIP))).unwrap().ip(), ip(NODE));
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn half_closed_connections_keep_their_ports_while_newcomers_take_others() {
    const HALF_CLOSED: usize = 16;
    let _turn = turn();
    let mut cluster = Cluster::with_few_ports();
    cluster.serve_at(VIP, &["10.244.0.2:8081"]);
    let listener = cluster.world.pods[0].run(|| TcpListener::bind("10.244.0.2:8081").unwrap());
    let (go, wait) = mpsc::channel();
    cluster.world.pods[0].spawn(move || {
        let mut held: Vec<_> = (0..HALF_CLOSED).map(|_| listener.accept().unwrap().0).collect();
        // Their clients have ended their side.
        held.iter_mut().for_each(|stream| assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0));
        let others = thread::spawn(move || listener.incoming().for_each(drop));
        wait.recv().unwrap();
        held.iter_mut().for_each(|stream| stream.write_all(b"late").unwrap());
        drop(held);
        let _ = others.join();
    });
    let pins = &cluster.pins;
    cluster.world.client.run(|| {
        let held: Vec<_> = (0..HALF_CLOSED).map(|_| TcpStream::connect(addr(VIP)).unwrap()).collect();
        held.iter().for_each(|stream| stream.shutdown(Shutdown::Write).unwrap());
        held.iter().for_each(wait_for_acknowledgement);
        age(pins, 28);
        (0..800).for_each(|_| seen_closed(addr(VIP)));
        go.send(()).unwrap();
        for mut stream in held {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, "late");
        }
    });
    assert_eq!(cluster.stopped(Reason::PacketNoSourcePort), 0);
}

/// Waits until the server has acknowledged the end of `stream`, which it may take its time for.
fn wait_for_acknowledgement(stream: &TcpStream) {
    const FIN_WAIT2: u8 = 5;
    let started = Instant::now();
    loop {
        let (mut state, mut len) = (0_u8, 1_u32);
        let to = (&raw mut state).cast();
        // SAFETY: there is room for the first byte of the answer, which is the state.
        let got = unsafe { libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut len) };
        assert_eq!(got, 0, "{}", io::Error::last_os_error());
        if state == FIN_WAIT2 {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "state {state}");
        thread::yield_now();
    }
}

/// A connection that the server closes at once.
fn seen_closed(vip: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&vip, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The end of the stream, or a reset if the server closed it unread.
    let _ = stream.read(&mut [0; 8]);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_connection_that_is_cut_is_reset_at_once() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.serve_at(VIP, &PODS);
    let pins = &cluster.pins;
    cluster.world.client.run(|| {
        let mut stream = TcpStream::connect(addr(VIP)).unwrap();
        ask_on(&mut stream).unwrap();
        for (map, key, value) in flows(pins) {
            map.put(&key, &abi::CtValue { flags: value.flags | abi::CT_CUT, ..value });
        }
        assert_eq!(ask_on(&mut stream).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(ask_tcp(addr(VIP)).is_ok());
    });
    assert_eq!(cluster.stopped(Reason::PacketFlowCut), 1);
}
