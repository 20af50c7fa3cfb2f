//! Random packets: of clients, of backends that answer, of routers that report errors, of nobody, and what errors of
//! senders and of links make of them.

use std::{collections::VecDeque, net::IpAddr};

use lb_core::{
    addr::{Family, Protocol},
    decision::Entry,
};
use lb_testkit::packets::{
    Addresses, Datagram, Endpoint, Extension, Frame, Icmp, Ip, Payload, Ports, Reading, Segment, protocol,
};

use crate::{
    dice::Dice,
    reference::{Reference, Tuple},
    services::{self, BACKEND_PORT, OF_NODE, PODS, PROTOCOLS, SERVICES},
    world::Device,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const GATEWAY: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
/// How many clients with a source port there are for each family and protocol.
const CONVERSATIONS: usize = 60;

/// A frame, and where it comes in.
pub(crate) struct Sent {
    pub(crate) device: Device,
    pub(crate) bytes: Vec<u8>,
}

/// Clients that talk to frontends.
pub(crate) struct Traffic {
    conversations: Vec<Conversation>,
    /// Tuples of clients that may have a flow.
    flows: Vec<Tuple>,
    /// Fragments that follow.
    fragments: VecDeque<Sent>,
    /// Addresses of the node.
    node: Vec<IpAddr>,
}

#[derive(Clone, Copy)]
struct Conversation {
    device: Device,
    tuple: Tuple,
}

impl Traffic {
    /// New conversations.
    pub(crate) fn new(dice: &mut Dice, devices: &[Device], node: &[IpAddr]) -> Self {
        let conversation = |_| conversation(dice, devices, node);
        Self {
            conversations: (0..4 * CONVERSATIONS).map(conversation).collect(),
            flows: Vec::new(),
            fragments: VecDeque::new(),
            node: node.to_vec(),
        }
    }

    /// Remembers that there is a flow of this client.
    pub(crate) fn opened(&mut self, frame: &[u8]) {
        let Some(ip) = Reading::of(frame).ip else { return };
        let Some(ports) = ip.ports() else { return };
        let Some(protocol) = Protocol::from_number(ip.protocol) else { return };
        let source = Endpoint { ip: ip.addresses.source(), port: ports.source };
        let destination = Endpoint { ip: ip.addresses.destination(), port: ports.destination };
        self.flows.push(Tuple { protocol, source, destination });
    }

    /// The next packet.
    pub(crate) fn next(&mut self, dice: &mut Dice, reference: &Reference, devices: &[Device]) -> Sent {
        if dice.chance(60)
            && let Some(fragment) = self.fragments.pop_front()
        {
            return fragment;
        }
        let (device, mut frame) = match dice.below(100) {
            0..8 => self.error(dice, reference, devices),
            8..50 => {
                let Conversation { device, tuple } = dice.pick(&self.conversations);
                (device, changed(dice, device, tuple))
            }
            50..80 => self.some(dice, devices, |dice| self.of_backend(dice, reference)),
            80..84 => self.some(dice, devices, |dice| self.direct(dice, reference)),
            _ => self.some(dice, devices, |_| None),
        };
        if dice.chance(5) {
            frame = self.fragmented(dice, device, frame);
        }
        let mut bytes = frame.bytes();
        if dice.chance(15) {
            change_bytes(dice, &mut bytes);
        }
        Sent { device, bytes }
    }

    /// A packet with the tuple of `choose` through any device, or one of nobody in particular.
    fn some(
        &self,
        dice: &mut Dice,
        devices: &[Device],
        choose: impl Fn(&mut Dice) -> Option<Tuple>,
    ) -> (Device, Frame) {
        let Some(tuple) = choose(dice) else {
            let device = dice.pick(devices);
            let tuple = self.stray(dice, device);
            return (device, changed(dice, device, tuple));
        };
        let device = pick_device(dice, devices, self.leaves(tuple.source.ip, tuple.destination.ip));
        (device, changed(dice, device, tuple))
    }

    /// Whether the node itself may send such a packet through a device.
    fn leaves(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.node.contains(&source) && !self.node.contains(&destination)
    }

    /// An error about a packet as the node sent it on: to a backend, or the answer to a client. It is of the packet's
    /// receiver or of a router.
    fn error(&self, dice: &mut Dice, reference: &Reference, devices: &[Device]) -> (Device, Frame) {
        let Some((client, flow)) = self.flow(dice, reference) else { return self.some(dice, devices, |_| None) };
        let backend = Endpoint { ip: flow.backend.ip, port: flow.backend.port };
        let quoted = match dice.below(20) {
            0 => client,
            1..11 => Tuple { source: flow.source, destination: backend, ..client },
            _ => client.mirror(),
        };
        let family = Family::of(quoted.source.ip);
        let own = self.node.iter().copied().find(|ip| Family::of(*ip) == family).filter(|_| dice.chance(30));
        let reporter = own.unwrap_or_else(|| match (dice.chance(40), family) {
            (true, _) => quoted.destination.ip,
            (false, Family::V4) => dice.pick(&[[203, 0, 113, 77], [172, 18, 0, 254], [10, 244, 0, 10]]).into(),
            (false, Family::V6) => dice.pick(&["2001:db8::77", "fd00:172:18::fe", "fd00:10:244::10"]).parse().unwrap(),
        });
        let device = pick_device(dice, devices, self.leaves(reporter, quoted.source.ip));
        let packet = changed(dice, device, quoted).ip;
        let addresses = Addresses::new(reporter, packet.addresses.source()).unwrap_or(packet.addresses);
        let bytes = packet.bytes();
        let most = bytes.len().min(dice.within(20..=200));
        let mut icmp = match dice.below(4) {
            0 => Icmp::too_big(addresses, 1400, &bytes[..most]),
            1 => Icmp::port_unreachable(addresses, &bytes[..most]),
            2 => Icmp::time_exceeded(addresses, &bytes[..most]),
            _ => Icmp { kind: dice.below(14) as u8, ..Icmp::time_exceeded(addresses, &bytes[..most]) },
        };
        icmp.code = if dice.chance(20) { dice.byte() } else { icmp.code };
        let mut frame = changed(dice, device, Tuple { protocol: Protocol::Udp, ..client });
        (frame.ip.addresses, frame.ip.payload, frame.ip.fragment) = (addresses, Payload::Icmp(icmp), None);
        (device, frame)
    }

    /// The first part of the frame's packet that is sent; the others follow. It is not always the one at the beginning.
    fn fragmented(&mut self, dice: &mut Dice, device: Device, frame: Frame) -> Frame {
        let mut parts: VecDeque<Ip> = frame.ip.fragments(dice.word(), 8 * dice.within(3..=8)).into();
        if dice.chance(20) {
            parts.rotate_left(1);
        }
        let mut frames = parts.into_iter().map(|ip| Frame { ip, ..frame.clone() });
        let first = frames.next();
        self.fragments.extend(frames.map(|frame| Sent { device, bytes: frame.bytes() }));
        first.unwrap_or(frame)
    }

    /// A packet of nobody in particular. What the node itself sends has its address.
    fn stray(&self, dice: &mut Dice, device: Device) -> Tuple {
        let family = dice.pick(&FAMILIES);
        let pods = services::backends(family);
        let number = dice.below(SERVICES);
        let ips = [dice.pick(&pods), services::cluster_ip(number, family), services::ingress_ip(number, family)];
        let protocol = dice.pick(&PROTOCOLS);
        let ports = [
            services::port(number, protocol),
            BACKEND_PORT,
            1024 + dice.below(1000) as u16,
            40_000 + dice.below(12) as u16,
        ];
        let own = self.node.iter().copied().find(|ip| device.is_left() && Family::of(*ip) == family);
        Tuple {
            protocol,
            source: Endpoint { ip: own.unwrap_or_else(|| dice.pick(&ips)), port: dice.pick(&ports) },
            destination: Endpoint { ip: dice.pick(&ips), port: dice.pick(&ports) },
        }
    }

    /// An answer to a flow, or rarely another packet from a backend.
    fn of_backend(&self, dice: &mut Dice, reference: &Reference) -> Option<Tuple> {
        let (client, flow) = self.flow(dice, reference)?;
        let source = Endpoint { ip: flow.backend.ip, port: flow.backend.port };
        let destination = if dice.chance(3) { client.source } else { flow.source };
        Some(Tuple { protocol: client.protocol, source, destination })
    }

    /// A packet to a backend, past the frontend: of a client, or as it was sent on, which leaves through a device once more.
    fn direct(&self, dice: &mut Dice, reference: &Reference) -> Option<Tuple> {
        let (client, flow) = self.flow(dice, reference)?;
        let destination = Endpoint { ip: flow.backend.ip, port: flow.backend.port };
        let source = if dice.chance(40) { flow.source } else { client.source };
        Some(Tuple { source, destination, ..client })
    }

    fn flow(&self, dice: &mut Dice, reference: &Reference) -> Option<(Tuple, crate::reference::Flow)> {
        if self.flows.is_empty() {
            return None;
        }
        let client = dice.pick(&self.flows);
        reference.flows.get(&client).map(|flow| (client, *flow))
    }
}

/// A device that a packet comes in through, or that it [leaves](Traffic::leaves) through.
fn pick_device(dice: &mut Dice, devices: &[Device], leaves: bool) -> Device {
    let fits: Vec<Device> = devices.iter().copied().filter(|device| leaves || !device.is_left()).collect();
    dice.pick(&fits)
}

fn conversation(dice: &mut Dice, devices: &[Device], node: &[IpAddr]) -> Conversation {
    let (family, device) = (dice.pick(&FAMILIES), dice.pick(devices));
    let pods = &services::backends(family)[..4];
    let of_node = node.iter().copied().find(|ip| Family::of(*ip) == family);
    let ip = match (device.entry, family) {
        // A pod of another node, now and then.
        (Entry::Uplink, _) if dice.chance(15) => pods[2],
        (Entry::Uplink, Family::V4) => dice
            .pick(&[
                [172, 18, 0, 99],
                [172, 18, 0, 100],
                [172, 18, 0, 101],
                [172, 18, 0, 102],
                [198, 51, 100, 100],
                [203, 0, 113, 7],
                [203, 0, 113, 8],
            ])
            .into(),
        (Entry::Uplink, Family::V6) => {
            let clients = ["fd00:172:18::100", "fd00:172:18::101", "fd00:198:51::100", "2001:db8::7", "2001:db8::8"];
            dice.pick(&clients).parse().unwrap()
        }
        (Entry::PodDevice, _) => dice.pick(pods),
        (Entry::Socket, _) => of_node.unwrap_or(pods[0]),
    };
    let port = match dice.below(10) {
        0 => BACKEND_PORT,
        1 => 1024 + dice.below(1000) as u16,
        2 => dice.word() as u16,
        3 => services::node_port(dice.below(SERVICES)),
        _ => 40_000 + dice.below(12) as u16,
    };
    let protocol = dice.pick(&PROTOCOLS);
    let destination = match of_node.filter(|_| !device.is_left() && dice.chance(30)) {
        Some(ip) => at_node(dice, ip, protocol),
        None => at_service(dice, family, protocol),
    };
    Conversation { device, tuple: Tuple { protocol, source: Endpoint { ip, port }, destination } }
}

/// A frontend at the node's own address `ip`, or where one was or could be.
fn at_node(dice: &mut Dice, ip: IpAddr, protocol: Protocol) -> Endpoint {
    let port = match dice.below(4) {
        0 => services::port(dice.below(OF_NODE), protocol),
        1 => services::host_port(dice.below(PODS)),
        _ => services::node_port(dice.below(SERVICES)),
    };
    Endpoint { ip, port }
}

/// A frontend at an address of a service, or another port there.
fn at_service(dice: &mut Dice, family: Family, protocol: Protocol) -> Endpoint {
    let number = dice.below(SERVICES + 1);
    let ip = match dice.below(8) {
        0 | 1 => services::ingress_ip(number, family),
        2 => services::external_ip(number, family),
        _ => services::cluster_ip(number, family),
    };
    Endpoint { ip, port: services::port(number, protocol) + u16::from(dice.chance(8)) }
}

/// A packet with this tuple; every fourth of another kind.
fn changed(dice: &mut Dice, device: Device, tuple: Tuple) -> Frame {
    let mut frame = frame(dice, device, tuple);
    if dice.chance(25) {
        change_fields(dice, &mut frame, tuple);
    }
    frame
}

/// A whole packet, with fields that do not matter at random.
fn frame(dice: &mut Dice, device: Device, tuple: Tuple) -> Frame {
    let addresses = Addresses::new(tuple.source.ip, tuple.destination.ip);
    let addresses = addresses.expect("both ends of a tuple are of one family");
    let mut ip = Ip::new(addresses, payload(dice, tuple));
    if dice.chance(3) {
        ip.hop_limit = dice.pick(&[255, 2, 1, 0]);
    }
    if dice.chance(20) {
        (ip.class, ip.id, ip.dont_fragment) = (dice.byte(), dice.word() as u16, dice.chance(50));
    }
    if dice.chance(8) {
        let count = 4 * dice.within(1..=10);
        ip.options = options(dice, count);
    }
    let mut frame = Frame::new(device.mac, GATEWAY, ip);
    if dice.chance(10) {
        frame.padding = dice.below(30);
    }
    frame
}

/// Options that nobody has to understand, or those that record the route.
fn options(dice: &mut Dice, count: usize) -> Vec<u8> {
    let mut options = vec![1; count];
    if dice.chance(50) && count > 4 {
        options[..3].copy_from_slice(&[7, count as u8 - 1, 4]);
        options[3..].fill(0);
    }
    options
}

fn payload(dice: &mut Dice, tuple: Tuple) -> Payload {
    let ports = Ports { source: tuple.source.port, destination: tuple.destination.port };
    let len = dice.pick(&[0, 1, 8, 33, 200]);
    let data = dice.bytes(len);
    match tuple.protocol {
        Protocol::Tcp => {
            let flags = match dice.below(20) {
                0..8 => Segment::SYN,
                8..15 => Segment::ACK,
                15 => Segment::SYN | Segment::ACK,
                16 => Segment::FIN | Segment::ACK,
                17 => Segment::RST,
                18 => Segment::RST | Segment::ACK,
                _ => dice.byte(),
            };
            let options = if dice.chance(30) { vec![1; 4 * dice.within(0..=10)] } else { Vec::new() };
            let (sequence, acknowledgement) = (dice.word(), dice.word());
            let window = dice.word() as u16;
            Payload::Tcp(Segment { ports, sequence, acknowledgement, flags, window, options, data })
        }
        Protocol::Udp => Payload::Udp(Datagram { ports, checksum: !dice.chance(15), data }),
        Protocol::Sctp => Payload::Sctp { ports, chunks: chunk(dice, &data) },
    }
}

/// The first chunk of an SCTP packet; some are too short for their type.
fn chunk(dice: &mut Dice, data: &[u8]) -> Vec<u8> {
    /// INIT, INIT ACK, DATA, COOKIE ECHO, HEARTBEAT, ABORT, SHUTDOWN and its acknowledgement, SHUTDOWN COMPLETE.
    const KINDS: [u8; 14] = [1, 1, 1, 1, 1, 2, 0, 0, 10, 4, 6, 7, 8, 14];
    let kind = if dice.chance(3) { dice.byte() } else { dice.pick(&KINDS) };
    let [high, low] = (data.len() as u16 + 4).to_be_bytes();
    let chunk = [&[kind, 0, high, low], data].concat();
    let cut = if dice.chance(3) { dice.below(4) } else { chunk.len() };
    chunk[..cut].to_vec()
}

/// Makes another kind of packet of the frame; a valid one, or one that no host would send.
fn change_fields(dice: &mut Dice, frame: &mut Frame, tuple: Tuple) {
    let ip = &mut frame.ip;
    match dice.below(11) {
        0 => {
            let numbers = [protocol::HOP_BY_HOP, protocol::ROUTING, protocol::DESTINATION_OPTIONS];
            let count = dice.within(1..=3);
            ip.extensions = (0..count).map(|_| Extension { number: dice.pick(&numbers), data: vec![0; 6] }).collect();
        }
        1 => {
            let parts = ip.fragments(dice.word(), 8 * dice.within(1..=4));
            *ip = parts[dice.below(parts.len())].clone();
        }
        2 => {
            let ports = Ports { source: tuple.source.port, destination: tuple.destination.port };
            ip.payload = Payload::Sctp { ports, chunks: dice.bytes(8) };
        }
        3 | 4 => {
            let quoted = Ip::new(ip.addresses, ip.payload.clone()).bytes();
            let quoted = &quoted[..quoted.len().min(dice.within(20..=80))];
            let icmp = match dice.below(4) {
                0 => Icmp::too_big(ip.addresses, 1400, quoted),
                1 => Icmp::port_unreachable(ip.addresses, quoted),
                2 => Icmp::time_exceeded(ip.addresses, quoted),
                _ => {
                    let len = dice.pick(&[0, 8, 56, 201]);
                    Icmp { data: dice.bytes(len), ..Icmp::echo(ip.addresses, dice.word() as u16, dice.word() as u16) }
                }
            };
            ip.payload = Payload::Icmp(icmp);
        }
        5 => frame.tags = vec![dice.word() as u16; dice.within(1..=2)],
        6 => frame.destination = dice.pick(&[[2, 9, 9, 9, 9, 9], [0xff; 6], [0x01, 0, 0x5e, 0, 0, 1]]),
        7 => ip.payload = Payload::Raw { protocol: dice.byte(), data: dice.bytes(24) },
        8 => {
            // On the wire, such an address is one of IPv6, whatever a socket takes it for.
            if let Addresses::V4 { source, destination } = ip.addresses {
                let (source, destination) = (source.to_ipv6_mapped(), destination.to_ipv6_mapped());
                ip.addresses = Addresses::V6 { source, destination };
            }
        }
        _ => {
            let odd: [IpAddr; 6] = match Family::of(ip.addresses.source()) {
                Family::V4 => {
                    [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [10, 244, 0, 0], [172, 18, 0, 255]]
                        .map(IpAddr::from)
                }
                Family::V6 => ["::", "::1", "ff02::1", "fe80::1", "fd00:172:18::", "2001:db8::1"]
                    .map(|text| text.parse().unwrap()),
            };
            let source = dice.pick(&odd);
            ip.addresses = Addresses::new(source, ip.addresses.destination()).unwrap_or(ip.addresses);
        }
    }
}

/// Changes bytes behind the back of lengths and checksums.
fn change_bytes(dice: &mut Dice, bytes: &mut Vec<u8>) {
    const ETHERNET: usize = 14;
    match dice.below(6) {
        0 => bytes.truncate(dice.within(ETHERNET..=bytes.len())),
        // Version, or the length of the header.
        1 => bytes[ETHERNET] = if dice.chance(50) { 0x40 | dice.byte() & 0x0f } else { dice.byte() },
        // Both lengths: of an IPv4 packet, and of an IPv6 payload.
        2 => {
            let at = ETHERNET + dice.pick(&[2, 3, 4, 5]);
            bytes[at] = dice.byte();
        }
        _ => {
            for _ in 0..dice.within(1..=3) {
                let at = dice.within(12..=bytes.len() - 1);
                bytes[at] = dice.byte();
            }
        }
    }
}
