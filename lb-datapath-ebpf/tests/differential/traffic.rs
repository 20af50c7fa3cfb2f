//! Random packets: of clients, of backends that answer, of nobody, and what errors of senders and of links make of
//! them.

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
    services::{self, BACKEND_PORT, PORT, SERVICES},
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
        let device = dice.pick(devices);
        let (device, tuple) = match dice.below(100) {
            0..45 => {
                let Conversation { device, tuple } = dice.pick(&self.conversations);
                (device, tuple)
            }
            45..80 => self.of_backend(dice, reference).map_or_else(|| (device, stray(dice)), |tuple| (device, tuple)),
            80..84 => self.direct(dice, reference).map_or_else(|| (device, stray(dice)), |tuple| (device, tuple)),
            _ => (device, stray(dice)),
        };
        let mut frame = frame(dice, device, tuple);
        if dice.chance(25) {
            change_fields(dice, &mut frame, tuple);
        }
        if dice.chance(5) {
            frame = self.fragmented(dice, device, frame);
        }
        let mut bytes = frame.bytes();
        if dice.chance(15) {
            change_bytes(dice, &mut bytes);
        }
        Sent { device, bytes }
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

    /// An answer to a flow, or rarely another packet from a backend.
    fn of_backend(&self, dice: &mut Dice, reference: &Reference) -> Option<Tuple> {
        let (client, flow) = self.flow(dice, reference)?;
        let source = Endpoint { ip: flow.backend.ip, port: flow.backend.port };
        let destination = if dice.chance(3) { client.source } else { flow.source };
        Some(Tuple { protocol: client.protocol, source, destination })
    }

    /// A client's packet to its backend, past the frontend, rarely from another port.
    fn direct(&self, dice: &mut Dice, reference: &Reference) -> Option<Tuple> {
        let (client, flow) = self.flow(dice, reference)?;
        let destination = Endpoint { ip: flow.backend.ip, port: flow.backend.port };
        Some(Tuple { destination, ..client })
    }

    fn flow(&self, dice: &mut Dice, reference: &Reference) -> Option<(Tuple, crate::reference::Flow)> {
        if self.flows.is_empty() {
            return None;
        }
        let client = dice.pick(&self.flows);
        reference.flows.get(&client).map(|flow| (client, *flow))
    }
}

fn conversation(dice: &mut Dice, devices: &[Device], node: &[IpAddr]) -> Conversation {
    let (family, device) = (dice.pick(&FAMILIES), dice.pick(devices));
    let pods = &services::backends(family)[..4];
    let ip = match (device.entry, family) {
        (Entry::Uplink, Family::V4) => {
            dice.pick(&[[172, 18, 0, 100], [172, 18, 0, 101], [198, 51, 100, 100], [203, 0, 113, 7]]).into()
        }
        (Entry::Uplink, Family::V6) => {
            let clients = ["fd00:172:18::100", "fd00:172:18::101", "fd00:198:51::100", "2001:db8::7"];
            dice.pick(&clients).parse().unwrap()
        }
        (Entry::PodDevice | Entry::Socket, _) => dice.pick(pods),
    };
    let port = match dice.below(10) {
        0 => BACKEND_PORT,
        1 => 1024 + dice.below(1000) as u16,
        2 => dice.word() as u16,
        _ => 40_000 + dice.below(12) as u16,
    };
    let number = dice.below(SERVICES + 1);
    let of_node = node.iter().copied().find(|ip| Family::of(*ip) == family);
    let destination = match dice.below(8) {
        0 | 1 if number < 2 => Endpoint {
            ip: of_node.unwrap_or(services::cluster_ip(number, family)),
            port: services::node_address_port(number),
        },
        _ if number < 2 => {
            Endpoint { ip: services::cluster_ip(number, family), port: services::node_address_port(number) }
        }
        0 => Endpoint { ip: services::cluster_ip(number, family), port: PORT + 1 },
        1 | 2 => Endpoint { ip: services::ingress_ip(number, family), port: PORT },
        _ => Endpoint { ip: services::cluster_ip(number, family), port: PORT },
    };
    let protocol = dice.pick(&[Protocol::Tcp, Protocol::Udp]);
    Conversation { device, tuple: Tuple { protocol, source: Endpoint { ip, port }, destination } }
}

/// A packet of nobody in particular.
fn stray(dice: &mut Dice) -> Tuple {
    let family = dice.pick(&FAMILIES);
    let pods = services::backends(family);
    let number = dice.below(SERVICES);
    let ips = [dice.pick(&pods), services::cluster_ip(number, family), services::ingress_ip(number, family)];
    let ports = [PORT, BACKEND_PORT, 1024 + dice.below(1000) as u16, 40_000 + dice.below(12) as u16];
    Tuple {
        protocol: dice.pick(&[Protocol::Tcp, Protocol::Udp]),
        source: Endpoint { ip: dice.pick(&ips), port: dice.pick(&ports) },
        destination: Endpoint { ip: dice.pick(&ips), port: dice.pick(&ports) },
    }
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
        Protocol::Udp | Protocol::Sctp => Payload::Udp(Datagram { ports, checksum: !dice.chance(15), data }),
    }
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
