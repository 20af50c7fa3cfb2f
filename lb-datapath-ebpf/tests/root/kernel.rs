//! What `cargo xtask kernels` runs on kernels of other versions: every program loads and is attached, and single packets
//! come out as they should. The expectations are computed here, by nothing that the programs use.

use std::net::{IpAddr, SocketAddr};

use lb_core::{
    addr::Protocol,
    datapath::Datapath,
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_ebpf::{DeviceHook, EbpfDatapath};

use crate::{
    bpf,
    common::{Cgroup, POD_DEVICES, PinDir, UPLINK, World, config, state, turn},
};

/// Half of what the verifier looks at: <https://elixir.bootlin.com/linux/v6.18/source/include/linux/bpf.h>
/// (`BPF_COMPLEXITY_LIMIT_INSNS`).
const MOST_VERIFIED: u32 = 500_000;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PASS: i32 = -1;
const REDIRECT: i32 = 7;
const SYN: u8 = 2;
const RST_ACK: u8 = 0x14;
const ACK: u8 = 0x10;

const VIPS: [&str; 2] = ["10.96.0.1:80", "[fd00:96::1]:80"];
const EMPTY: [&str; 2] = ["10.96.0.2:80", "[fd00:96::2]:80"];
const BACKENDS: [&str; 2] = ["10.244.1.2:8080", "[fd00:244:1::2]:8080"];
const PODS: [&str; 2] = ["10.244.0.2:40000", "[fd00:244::2]:40000"];
const CLIENTS: [&str; 2] = ["192.0.2.2:40000", "[2001:db8::2]:40000"];

struct Node {
    world: World,
    datapath: EbpfDatapath,
    pins: PinDir,
    _cgroup: Cgroup,
}

impl Node {
    fn new() -> Self {
        let world = World::new();
        for device in [POD_DEVICES[0], POD_DEVICES[1], UPLINK] {
            world.node.ip(&format!("link set {device} address 02:00:00:00:00:01"));
        }
        let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
        let config = config(&pins, &cgroup).with_pod_devices(POD_DEVICES).with_uplink_devices([UPLINK]);
        let mut datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        let backends = BACKENDS.map(|addr| [address(addr)]);
        let served = VIPS.iter().zip(&backends).map(|(vip, to)| (address(vip), Protocol::Tcp, &to[..]));
        let empty = EMPTY.iter().map(|vip| (address(vip), Protocol::Tcp, &[][..]));
        let services: Vec<_> = served.chain(empty).collect();
        let desired = State { node: World::facts(), ..state(&services, Lookup::Random, None) };
        let observed = datapath.observe().unwrap();
        datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
        Self { world, datapath, pins, _cgroup: cgroup }
    }

    /// Runs the program of a device on a segment: the verdict, and the segment that comes out.
    fn run(&self, device: &str, segment: Segment) -> (i32, Segment) {
        let links = self.pins.0.join("v1/links");
        let (verdict, bytes) = self.world.node.run(|| {
            let name = std::ffi::CString::new(device).unwrap();
            // SAFETY: the name is a string.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            bpf::test_run(&bpf::program_at(&links.join(format!("lb_ingress_{index}"))), &segment.bytes(), index)
        });
        (verdict, Segment::read(&bytes))
    }
}

/// A TCP segment without payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    source: SocketAddr,
    destination: SocketAddr,
    ttl: u8,
    flags: u8,
}

impl Segment {
    fn new(source: &str, destination: &str, flags: u8) -> Self {
        Self { source: address(source), destination: address(destination), ttl: 64, flags }
    }

    fn bytes(self) -> Vec<u8> {
        let ports = [self.source.port(), self.destination.port()].map(u16::to_be_bytes).concat();
        let mut tcp = [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]].concat();
        let sum = checksum(&[&pseudo(self.source.ip(), self.destination.ip(), tcp.len()), &tcp]);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let (kind, header) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let fixed = [0x45, 0, 0, 40, 0, 0, 0x40, 0, self.ttl, 6, 0, 0];
                let mut header = [&fixed[..], &from.octets(), &to.octets()].concat();
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                (0x0800_u16, header)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let fixed = [0x60, 0, 0, 0, 0, 20, 6, self.ttl];
                (0x86dd, [&fixed[..], &from.octets(), &to.octets()].concat())
            }
            families => panic!("{families:?}"),
        };
        [&MAC[..], &[2, 0, 0, 0, 0, 2], &kind.to_be_bytes(), &header, &tcp].concat()
    }

    /// What the bytes say, if every length and checksum is right.
    fn read(bytes: &[u8]) -> Self {
        let packet = &bytes[14..];
        let is_v4 = bytes[12..14] == [8, 0];
        let (header, tcp) = packet.split_at(if is_v4 { 20 } else { 40 });
        let addr = |at: usize| match is_v4 {
            true => IpAddr::from(<[u8; 4]>::try_from(&header[12 + 4 * at..16 + 4 * at]).unwrap()),
            false => IpAddr::from(<[u8; 16]>::try_from(&header[8 + 16 * at..24 + 16 * at]).unwrap()),
        };
        let port = |at: usize| u16::from_be_bytes([tcp[2 * at], tcp[2 * at + 1]]);
        let length = usize::from(if is_v4 { header[3] - 20 } else { header[5] });
        assert_eq!(length, tcp.len());
        assert!(!is_v4 || checksum(&[header]) == 0, "checksum of the header");
        assert_eq!(checksum(&[&pseudo(addr(0), addr(1), tcp.len()), tcp]), 0, "checksum of the segment");
        Self {
            source: SocketAddr::new(addr(0), port(0)),
            destination: SocketAddr::new(addr(1), port(1)),
            ttl: header[if is_v4 { 8 } else { 7 }],
            flags: tcp[13],
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pseudo(from: IpAddr, to: IpAddr, length: usize) -> Vec<u8> {
    let octets = |addr| match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    [octets(from), octets(to), vec![0, 6, 0, length as u8]].concat()
}

/// The Internet checksum (RFC 1071), 0 over what has a right one in it.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from)).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn every_program_is_attached_and_well_below_the_verifiers_limit() {
    let _turn = turn();
    let node = Node::new();
    let features = node.datapath.kernel_features().unwrap();
    println!("features: {}", features.to_string().replace('\n', "; "));
    let links = std::fs::read_dir(node.pins.0.join("v1/links")).unwrap();
    let mut pins: Vec<_> = links.map(|entry| entry.unwrap().path()).collect();
    pins.sort();
    let is_of_device = |pin: &std::path::PathBuf| {
        let pin = pin.to_str().unwrap();
        pin.contains("lb_ingress") || pin.contains("lb_egress")
    };
    let devices = pins.iter().filter(|pin| is_of_device(pin)).count();
    assert!(devices == 6 && pins.len() >= devices + 8, "two programs of three devices, and those of sockets: {pins:?}");
    for pin in pins {
        let is_device = is_of_device(&pin);
        assert_eq!(bpf::is_link(&bpf::open(&pin)), !is_device || features.hook == DeviceHook::Tcx, "{pin:?}");
        let (name, verified) = bpf::verified(&bpf::program_at(&pin));
        // Kernels before 5.16 do not say it.
        let count = if verified > 0 { verified.to_string() } else { "unknown".into() };
        println!("insns\t{name}\t{count}");
        assert!(verified <= MOST_VERIFIED, "{name}: {verified} instructions, expected at most {MOST_VERIFIED}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn single_packets_come_out_translated() {
    let _turn = turn();
    let node = Node::new();
    for family in 0..2 {
        let (vip, backend, pod, client) = (VIPS[family], BACKENDS[family], PODS[family], CLIENTS[family]);
        // None of ours: it stays as it is. Another port, since a port that is in use to the backend is not kept.
        let port = SocketAddr::new(address(pod).ip(), 40_001).to_string();
        let other = Segment::new(&port, backend, SYN);
        assert_eq!(node.run(POD_DEVICES[0], other), (PASS, other), "{other:?}");
        // A new flow of a pod, then the same flow once it is established, and its answer.
        for flags in [SYN, ACK] {
            let expected = Segment { ttl: 63, ..Segment::new(pod, backend, flags) };
            assert_eq!(node.run(POD_DEVICES[0], Segment::new(pod, vip, flags)), (REDIRECT, expected));
        }
        let expected = Segment { ttl: 63, ..Segment::new(vip, pod, ACK) };
        assert_eq!(node.run(POD_DEVICES[1], Segment::new(backend, pod, ACK)), (REDIRECT, expected));
        // A client from outside gets a source of the node, and its answer comes from where it asked.
        let (verdict, asked) = node.run(UPLINK, Segment::new(client, vip, SYN));
        let facts = World::facts();
        let source = SocketAddr::new(facts.ips[family], asked.source.port());
        let expected = Segment { source, ttl: 63, ..Segment::new(client, backend, SYN) };
        assert_eq!((verdict, asked), (REDIRECT, expected));
        let answer = Segment { destination: source, ..Segment::new(backend, client, ACK) };
        let expected = Segment { ttl: 63, ..Segment::new(vip, client, ACK) };
        assert_eq!(node.run(POD_DEVICES[1], answer), (REDIRECT, expected));
        // Without backends: refused, from where it asked.
        let empty = EMPTY[family];
        let (verdict, refused) = node.run(POD_DEVICES[0], Segment::new(pod, empty, SYN));
        let expected = Segment { ttl: refused.ttl, ..Segment::new(empty, pod, RST_ACK) };
        assert_eq!((verdict, refused), (REDIRECT, expected));
    }
}
