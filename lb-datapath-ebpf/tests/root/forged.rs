//! Frames with sources that nobody outside has, injected through the devices of a client and of a pod.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::Instant,
};

use lb_core::datapath::Datapath;
use lb_core::{
    addr::Protocol,
    plan::{Labels, diff},
    state::{Lookup, OtherPorts, State},
};
use lb_datapath_ebpf::{EbpfDatapath, Reason};
use lb_datapath_ebpf_abi as abi;
use lb_testkit::packets::{Addresses, Datagram, Frame, Icmp, Ip, Payload, Ports, Segment};

use crate::{
    bpf::Map,
    common::{Cgroup, Namespace, PATIENCE, POD_DEVICES, PinDir, UPLINK, World, ask_tcp, config, serve, state, turn},
};

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const VIPS: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const BACKENDS: [&str; 2] = ["10.244.0.2:8080", "[fd00:244::2]:8080"];
const NODE_PORT: u16 = 30_080;

/// A node with a service at a virtual address and a node port, another one without backends at the next port, and pings
/// that are answered.
struct Subject {
    datapath: EbpfDatapath,
    world: World,
    pins: PinDir,
    _cgroup: Cgroup,
}

impl Subject {
    fn new() -> Self {
        let world = World::new();
        let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
        let mut config = config(&pins, &cgroup);
        config.pod_devices = POD_DEVICES.map(String::from).to_vec();
        config.uplink_devices = vec![UPLINK.into()];
        let mut datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        let backends = BACKENDS.map(|backend| [backend.parse::<SocketAddr>().unwrap()]);
        let mut services: Vec<(SocketAddr, Protocol, &[SocketAddr])> = Vec::new();
        for (family, backends) in backends.iter().enumerate() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                services.push((at(VIPS[family], 80), protocol, backends));
                services.push((at(VIPS[family], 81), protocol, &[]));
                services.push((at(NODE[family], NODE_PORT), protocol, backends));
            }
            let job = world.pods[0].run(|| serve(backends[0], "a"));
            world.pods[0].spawn(job);
        }
        let mut desired = State { node: World::facts(), ..state(&services, Lookup::Random, None) };
        for (addr, frontend) in &mut desired.frontends {
            if addr.port != NODE_PORT {
                (frontend.answers_ping, frontend.other_ports) = (true, OtherPorts::Reject);
            }
        }
        let observed = datapath.observe().unwrap();
        datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
        Self { datapath, world, pins, _cgroup: cgroup }
    }

    fn stopped(&self) -> Vec<(Reason, u64)> {
        let counts = self.datapath.reason_counters().unwrap().unwrap().read().unwrap();
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    fn flows(&self) -> usize {
        let count = |name| Map::open(&self.pins.0.join("v1/maps").join(name)).keys::<abi::CtKey>().len();
        count("CT") + count("CT_LIVE")
    }

    /// Waits until packets were stopped for these reasons, and for no others.
    fn await_stopped(&self, expected: &[(Reason, u64)]) {
        let started = Instant::now();
        while self.stopped() != expected {
            assert!(started.elapsed() < PATIENCE, "{:?}, expected {expected:?}", self.stopped());
            thread::yield_now();
        }
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Sends frames through the device `eth0` of this namespace, as they are.
struct Injector {
    socket: OwnedFd,
    device: i32,
}

impl Injector {
    fn new() -> Self {
        // SAFETY: the calls take numbers and a name that ends with a zero byte.
        let (fd, device) = unsafe {
            (
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0),
                libc::if_nametoindex(c"eth0".as_ptr()),
            )
        };
        assert!(fd >= 0 && device > 0, "{}", io::Error::last_os_error());
        // SAFETY: it was just made.
        Self { socket: unsafe { OwnedFd::from_raw_fd(fd) }, device: device as i32 }
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: all zero is an address.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (to.sll_family, to.sll_ifindex) = (libc::AF_PACKET as u16, self.device);
        let (frame_at, to_at) = (frame.as_ptr().cast(), (&raw const to).cast());
        // SAFETY: frame and address outlive the call and are as long as is said.
        let sent =
            unsafe { libc::sendto(self.socket.as_raw_fd(), frame_at, frame.len(), 0, to_at, size_of_val(&to) as u32) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }
}

/// The hardware address of a device, as it is written in a file.
fn hardware(space: &Namespace, device: &str) -> [u8; 6] {
    let output = space.run(|| std::process::Command::new("ip").args(["-o", "link", "show", device]).output().unwrap());
    let text = String::from_utf8(output.stdout).unwrap();
    let address = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned();
    let bytes: Vec<u8> = address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Every kind of packet that a frontend, an address with other ports, or an address that answers pings could take.
fn frames(to: [u8; 6], source: IpAddr, family: usize) -> Vec<Vec<u8>> {
    let vip: IpAddr = VIPS[family].parse().unwrap();
    let node: IpAddr = NODE[family].parse().unwrap();
    let frame = |destination, payload: &dyn Fn(Addresses) -> Payload| {
        let addresses = Addresses::new(source, destination).unwrap();
        Frame::new(to, [2, 0, 0, 0, 0, 9], Ip::new(addresses, payload(addresses))).bytes()
    };
    let ports = |destination| Ports { source: 40_000, destination };
    let tcp = |port, flags| move |_| Payload::Tcp(Segment { flags, ..Segment::new(ports(port)) });
    let udp = |port| move |_| Payload::Udp(Datagram { ports: ports(port), checksum: true, data: b"?".to_vec() });
    vec![
        frame(vip, &tcp(80, Segment::SYN)),
        frame(vip, &tcp(80, Segment::ACK)),
        frame(vip, &tcp(80, Segment::RST)),
        frame(vip, &udp(80)),
        frame(vip, &tcp(81, Segment::SYN)),
        frame(vip, &udp(81)),
        frame(vip, &tcp(82, Segment::SYN)),
        frame(vip, &|addresses| Payload::Icmp(Icmp::echo(addresses, 7, 1))),
        frame(node, &tcp(NODE_PORT, Segment::SYN)),
        frame(node, &udp(NODE_PORT)),
    ]
}

const FORGED: [&[&str]; 2] = [
    &[NODE[0], VIPS[0], "127.0.0.1", "127.8.9.10", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.2.3", "255.255.255.255"],
    &[NODE[1], VIPS[1], "::1", "::", "ff02::1", "ff0e::7"],
];

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn frames_with_sources_that_nobody_outside_has_are_dropped_and_leave_no_trace() {
    let _turn = turn();
    let subject = Subject::new();
    let World { node, pods, client } = &subject.world;
    let mut sent = 0;
    for (space, device) in [(client, UPLINK), (&pods[1], POD_DEVICES[1])] {
        let to = hardware(node, device);
        for (family, sources) in FORGED.iter().enumerate() {
            for source in *sources {
                let source: IpAddr = source.parse().unwrap();
                let mut frames = frames(to, source, family);
                // The node has not sent it, so that this one alone is its own destination.
                let is_vip = source == VIPS[family].parse::<IpAddr>().unwrap();
                frames.retain(|frame| !is_vip || !to_node(frame));
                space.run(|| frames.iter().for_each(|frame| Injector::new().send(frame)));
                sent += frames.len() as u64;
                subject.await_stopped(&[(Reason::PacketForgedSource, sent)]);
                assert_eq!(subject.flows(), 0, "{source} from {device}");
            }
        }
    }
    // What is not forged is served.
    for family in [0, 1] {
        let answer = client.run(|| ask_tcp(at(VIPS[family], 80))).unwrap();
        assert_eq!(answer, format!("a {}", NODE[family]));
        assert!(pods[1].run(|| ask_tcp(at(NODE[family], NODE_PORT))).unwrap().starts_with("a "));
    }
    assert_eq!(subject.stopped(), [(Reason::PacketForgedSource, sent)]);
}

/// Whether a frame is for an address of the node.
fn to_node(frame: &[u8]) -> bool {
    let read = lb_testkit::packets::Reading::of(frame).ip.unwrap();
    NODE.iter().any(|node| read.addresses.destination() == node.parse::<IpAddr>().unwrap())
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn nobody_outside_writes_into_a_connection_of_the_node() {
    let _turn = turn();
    let subject = Subject::new();
    let World { node, client, .. } = &subject.world;
    node.ip("route add default via 192.0.2.2");
    let vip = at(VIPS[0], 80);
    let mut stream = node.run(|| std::net::TcpStream::connect(vip)).unwrap();
    crate::common::ask_on(&mut stream).unwrap();
    let before = subject.flows();
    let ports = Ports { source: stream.local_addr().unwrap().port(), destination: 80 };
    let addresses = Addresses::new(NODE[0].parse().unwrap(), vip.ip()).unwrap();
    let flags = [Segment::RST, Segment::ACK, Segment::FIN | Segment::ACK];
    for (count, flags) in flags.into_iter().enumerate() {
        let segment = Segment { flags, ..Segment::new(ports) };
        let to = hardware(node, UPLINK);
        let frame = Frame::new(to, [2, 0, 0, 0, 0, 9], Ip::new(addresses, Payload::Tcp(segment))).bytes();
        client.run(|| Injector::new().send(&frame));
        subject.await_stopped(&[(Reason::PacketForgedSource, count as u64 + 1)]);
    }
    assert_eq!(subject.flows(), before);
    assert_eq!(crate::common::ask_on(&mut stream).unwrap(), format!("a {}", NODE[0]));
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn forged_frames_that_are_for_no_frontend_are_left_to_the_network_stack() {
    let _turn = turn();
    let subject = Subject::new();
    let World { node, client, .. } = &subject.world;
    let martians = || {
        let text = fs::read_to_string("/proc/thread-self/net/stat/rt_cache").unwrap();
        let fields = text.lines().next().unwrap().split_whitespace().position(|name| name == "in_martian_src").unwrap();
        let counts = text.lines().skip(1).map(|row| row.split_whitespace().nth(fields).unwrap().to_owned());
        counts.map(|count| u64::from_str_radix(&count, 16).unwrap()).sum::<u64>()
    };
    let before = node.run(martians);
    let addresses = Addresses::new("127.0.0.1".parse().unwrap(), NODE[0].parse().unwrap()).unwrap();
    let datagram = Datagram { ports: Ports { source: 9, destination: 9 }, checksum: true, data: Vec::new() };
    let to = hardware(node, UPLINK);
    let frame = Frame::new(to, [2, 0, 0, 0, 0, 9], Ip::new(addresses, Payload::Udp(datagram))).bytes();
    client.run(|| Injector::new().send(&frame));
    let started = Instant::now();
    while node.run(martians) == before {
        assert!(started.elapsed() < PATIENCE, "the kernel has not seen it");
        thread::yield_now();
    }
    assert_eq!(subject.stopped(), []);
}
