//! Packets as fields, and their bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header,
    SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};

use super::{checksum, protocol};

/// An Ethernet frame with an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// MAC address of the receiver.
    pub destination: [u8; 6],
    /// MAC address of the sender.
    pub source: [u8; 6],
    /// VLAN ids of 802.1Q tags, the outermost first; 12 bits of each count.
    pub tags: Vec<u16>,
    /// The packet.
    pub ip: Ip,
    /// Zeros after the packet, as senders add them to reach the smallest frame of 60 bytes.
    pub padding: usize,
}

impl Frame {
    /// A frame without tags and padding.
    #[must_use]
    pub const fn new(destination: [u8; 6], source: [u8; 6], ip: Ip) -> Self {
        Self { destination, source, tags: Vec::new(), ip, padding: 0 }
    }

    /// The bytes on the wire, without the frame check sequence.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let inner = match self.ip.addresses {
            Addresses::V4 { .. } => EtherType::IPV4,
            Addresses::V6 { .. } => EtherType::IPV6,
        };
        let ether_type = if self.tags.is_empty() { inner } else { EtherType::VLAN_TAGGED_FRAME };
        let ethernet = Ethernet2Header { destination: self.destination, source: self.source, ether_type };
        let mut bytes = ethernet.to_bytes().to_vec();
        for (index, &tag) in self.tags.iter().enumerate() {
            let last = index + 1 == self.tags.len();
            let vlan_id = VlanId::try_new(tag & VlanId::MAX_U16).unwrap_or_default();
            let ether_type = if last { inner } else { EtherType::VLAN_TAGGED_FRAME };
            bytes.extend(SingleVlanHeader { vlan_id, ether_type, ..SingleVlanHeader::default() }.to_bytes());
        }
        bytes.extend(self.ip.bytes());
        bytes.extend(std::iter::repeat_n(0, self.padding));
        bytes
    }
}

/// Source and destination of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Source.
        source: Ipv4Addr,
        /// Destination.
        destination: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// Source.
        source: Ipv6Addr,
        /// Destination.
        destination: Ipv6Addr,
    },
}

impl Addresses {
    /// Both; `None` if they are of different families.
    #[must_use]
    pub const fn new(source: IpAddr, destination: IpAddr) -> Option<Self> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(Self::V4 { source, destination }),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(Self::V6 { source, destination }),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    /// Source.
    #[must_use]
    pub const fn source(self) -> IpAddr {
        match self {
            Self::V4 { source, .. } => IpAddr::V4(source),
            Self::V6 { source, .. } => IpAddr::V6(source),
        }
    }

    /// Destination.
    #[must_use]
    pub const fn destination(self) -> IpAddr {
        match self {
            Self::V4 { destination, .. } => IpAddr::V4(destination),
            Self::V6 { destination, .. } => IpAddr::V6(destination),
        }
    }
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source and destination.
    pub addresses: Addresses,
    /// Time to live of IPv4, hop limit of IPv6. Default 64.
    pub hop_limit: u8,
    /// Type of service of IPv4, traffic class of IPv6.
    pub class: u8,
    /// Identification of an IPv4 packet.
    pub id: u16,
    /// The bit of IPv4. Default: set.
    pub dont_fragment: bool,
    /// Options of IPv4. They are filled up to a multiple of 4 bytes, and cut after 40.
    pub options: Vec<u8>,
    /// Extension headers of IPv6 before the fragment header, in order.
    pub extensions: Vec<Extension>,
    /// Which part of a larger packet this is. Its payload is all that is written; use [`fragments`](Self::fragments) to
    /// cut a packet.
    pub fragment: Option<Fragment>,
    /// The payload.
    pub payload: Payload,
}

/// An extension header of IPv6 other than the fragment header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its number, as the header before it has it.
    pub number: u8,
    /// What follows the two bytes of next header and length. It is filled up with `PadN` options to a multiple of 8
    /// bytes less 2, and cut after 2046 bytes.
    pub data: Vec<u8>,
}

/// A part of a larger packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// What all parts have in common; 16 bits of it count for IPv4.
    pub id: u32,
    /// Where it begins, in units of 8 bytes, 0..=8191.
    pub offset: u16,
    /// Whether it is not the last.
    pub more: bool,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// TCP.
    Tcp(Segment),
    /// UDP.
    Udp(Datagram),
    /// ICMP of the packet's family.
    Icmp(Icmp),
    /// SCTP, with a verification tag of 1.
    Sctp {
        /// Ports.
        ports: Ports,
        /// All chunks.
        chunks: Vec<u8>,
    },
    /// Anything else, or a part of something.
    Raw {
        /// IP protocol number.
        protocol: u8,
        /// Its bytes.
        data: Vec<u8>,
    },
}

/// Ports of TCP, UDP and SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Source.
    pub source: u16,
    /// Destination.
    pub destination: u16,
}

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Ports.
    pub ports: Ports,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Flags, the byte that has FIN as its lowest bit.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options. They are filled up to a multiple of 4 bytes, and cut after 40.
    pub options: Vec<u8>,
    /// What follows the header.
    pub data: Vec<u8>,
}

impl Segment {
    /// Flag.
    pub const FIN: u8 = 0x01;
    /// Flag.
    pub const SYN: u8 = 0x02;
    /// Flag.
    pub const RST: u8 = 0x04;
    /// Flag.
    pub const PSH: u8 = 0x08;
    /// Flag.
    pub const ACK: u8 = 0x10;

    /// A segment without flags and data.
    #[must_use]
    pub const fn new(ports: Ports) -> Self {
        Self {
            ports,
            sequence: 1,
            acknowledgement: 0,
            flags: 0,
            window: u16::MAX,
            options: Vec::new(),
            data: Vec::new(),
        }
    }
}

/// A UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Ports.
    pub ports: Ports,
    /// Whether it has a checksum. IPv6 demands one.
    pub checksum: bool,
    /// What follows the header.
    pub data: Vec<u8>,
}

/// A message of ICMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The four bytes after the checksum.
    pub rest: [u8; 4],
    /// What follows: the quoted packet of an error.
    pub data: Vec<u8>,
}

impl Icmp {
    /// "Fragmentation needed" over IPv4, "packet too big" over IPv6, with the MTU of the next hop. It quotes `packet`.
    #[must_use]
    pub fn too_big(addresses: Addresses, mtu: u16, packet: &[u8]) -> Self {
        let (kind, code) = match addresses {
            Addresses::V4 { .. } => (3, 4),
            Addresses::V6 { .. } => (2, 0),
        };
        let [high, low] = mtu.to_be_bytes();
        Self { kind, code, rest: [0, 0, high, low], data: packet.to_vec() }
    }

    /// "Port unreachable". It quotes `packet`.
    #[must_use]
    pub fn port_unreachable(addresses: Addresses, packet: &[u8]) -> Self {
        let (kind, code) = match addresses {
            Addresses::V4 { .. } => (3, 3),
            Addresses::V6 { .. } => (1, 4),
        };
        Self { kind, code, rest: [0; 4], data: packet.to_vec() }
    }

    /// "Time exceeded" in transit. It quotes `packet`.
    #[must_use]
    pub fn time_exceeded(addresses: Addresses, packet: &[u8]) -> Self {
        let kind = match addresses {
            Addresses::V4 { .. } => 11,
            Addresses::V6 { .. } => 3,
        };
        Self { kind, code: 0, rest: [0; 4], data: packet.to_vec() }
    }

    /// A request for an echo.
    #[must_use]
    pub const fn echo(addresses: Addresses, id: u16, sequence: u16) -> Self {
        let kind = match addresses {
            Addresses::V4 { .. } => 8,
            Addresses::V6 { .. } => 128,
        };
        let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
        Self { kind, code: 0, rest: [a, b, c, d], data: Vec::new() }
    }
}

impl Ip {
    /// A packet without options and extension headers, everything else at its default.
    #[must_use]
    pub const fn new(addresses: Addresses, payload: Payload) -> Self {
        Self {
            addresses,
            hop_limit: 64,
            class: 0,
            id: 0,
            dont_fragment: true,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            payload,
        }
    }

    /// The packet with its header. What exceeds 65,535 bytes is not counted in the length.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let payload = self.payload.bytes(self.addresses);
        match self.addresses {
            Addresses::V4 { source, destination } => self.v4(source, destination, &payload),
            Addresses::V6 { source, destination } => self.v6(source, destination, &payload),
        }
    }

    /// The parts of this packet that carry `size` bytes of its payload each, `size` rounded down to a multiple of 8 but
    /// not to zero. All have `id`.
    #[must_use]
    pub fn fragments(&self, id: u32, size: usize) -> Vec<Self> {
        let (protocol, payload) = (self.payload.protocol(self.addresses), self.payload.bytes(self.addresses));
        let size = (size & !7).max(8);
        let count = payload.len().div_ceil(size).max(1);
        let part = |index: usize| {
            let data = payload[index * size..payload.len().min((index + 1) * size)].to_vec();
            let fragment = Fragment { id, offset: (index * size / 8) as u16, more: index + 1 < count };
            let payload = Payload::Raw { protocol, data };
            Self { fragment: Some(fragment), dont_fragment: false, payload, ..self.clone() }
        };
        (0..count).map(part).collect()
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let mut options = self.options.clone();
        options.truncate(Ipv4Options::MAX_LEN as usize);
        options.resize(options.len().next_multiple_of(4), 0);
        let fragment = self.fragment.unwrap_or(Fragment { id: u32::from(self.id), offset: 0, more: false });
        let mut header = Ipv4Header {
            total_len: (Ipv4Header::MIN_LEN + options.len() + payload.len()) as u16,
            identification: fragment.id as u16,
            dont_fragment: self.dont_fragment,
            more_fragments: fragment.more,
            fragment_offset: IpFragOffset::try_new(fragment.offset & IpFragOffset::MAX_U16).unwrap_or_default(),
            time_to_live: self.hop_limit,
            protocol: IpNumber(self.payload.protocol(self.addresses)),
            source: source.octets(),
            destination: destination.octets(),
            options: Ipv4Options::try_from(&options[..]).unwrap_or_default(),
            ..Ipv4Header::default()
        };
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = header.to_bytes().to_vec();
        if self.class != 0 {
            bytes[1] = self.class;
            bytes[10..12].fill(0);
            let checksum = checksum::internet(&bytes);
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes.extend(payload);
        bytes
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let last = self.payload.protocol(self.addresses);
        let fragment = self.fragment.map(|_| protocol::FRAGMENT);
        let numbers: Vec<u8> =
            self.extensions.iter().map(|extension| extension.number).chain(fragment).chain([last]).collect();
        let mut rest = Vec::new();
        for (extension, &next) in self.extensions.iter().zip(&numbers[1..]) {
            rest.extend(extension.bytes(next));
        }
        if let Some(Fragment { id, offset, more }) = self.fragment {
            let offset = IpFragOffset::try_new(offset & IpFragOffset::MAX_U16).unwrap_or_default();
            rest.extend(Ipv6FragmentHeader::new(IpNumber(last), offset, more, id).to_bytes());
        }
        rest.extend(payload);
        let header = Ipv6Header {
            traffic_class: self.class,
            payload_length: rest.len() as u16,
            next_header: IpNumber(numbers[0]),
            hop_limit: self.hop_limit,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        };
        [&header.to_bytes()[..], &rest].concat()
    }
}

impl Extension {
    /// Options that mean nothing.
    #[must_use]
    pub const fn padding(number: u8) -> Self {
        Self { number, data: Vec::new() }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        const LONGEST: usize = 2046;
        let data = &self.data[..self.data.len().min(LONGEST)];
        let missing = (data.len() + 2).next_multiple_of(8) - (data.len() + 2);
        let mut bytes = [&[next, ((data.len() + 2 + missing) / 8 - 1) as u8], data].concat();
        match missing {
            0 => {}
            1 => bytes.push(0),
            _ => bytes.extend([1, missing as u8 - 2].into_iter().chain(std::iter::repeat_n(0, missing - 2))),
        }
        bytes
    }
}

impl Payload {
    /// Its IP protocol number between `addresses`.
    #[must_use]
    pub const fn protocol(&self, addresses: Addresses) -> u8 {
        match (self, addresses) {
            (Self::Tcp(_), _) => protocol::TCP,
            (Self::Udp(_), _) => protocol::UDP,
            (Self::Icmp(_), Addresses::V4 { .. }) => protocol::ICMP,
            (Self::Icmp(_), Addresses::V6 { .. }) => protocol::ICMP_V6,
            (Self::Sctp { .. }, _) => protocol::SCTP,
            (Self::Raw { protocol, .. }, _) => *protocol,
        }
    }

    fn bytes(&self, addresses: Addresses) -> Vec<u8> {
        let protocol = self.protocol(addresses);
        let (mut bytes, at) = match self {
            Self::Tcp(segment) => (segment.bytes(), 16),
            Self::Udp(datagram) => {
                let bytes = datagram.bytes();
                if !datagram.checksum {
                    return bytes;
                }
                (bytes, 6)
            }
            Self::Icmp(Icmp { kind, code, rest, data }) => ([&[*kind, *code, 0, 0], &rest[..], data].concat(), 2),
            Self::Sctp { ports, chunks } => return sctp(*ports, chunks),
            Self::Raw { data, .. } => return data.clone(),
        };
        let checksum = match checksum::transport(addresses, protocol, &bytes) {
            0 if protocol == protocol::UDP => u16::MAX,
            checksum => checksum,
        };
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

impl Segment {
    fn bytes(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.truncate(TcpHeader::MAX_LEN - TcpHeader::MIN_LEN);
        options.resize(options.len().next_multiple_of(4), 0);
        let mut header = TcpHeader::new(self.ports.source, self.ports.destination, self.sequence, self.window);
        header.acknowledgment_number = self.acknowledgement;
        // The length is right, so that this is no error.
        let _ = header.set_options_raw(&options);
        let mut bytes = header.to_bytes().to_vec();
        bytes[13] = self.flags;
        bytes.extend(&self.data);
        bytes
    }
}

impl Datagram {
    fn bytes(&self) -> Vec<u8> {
        let length = (UdpHeader::LEN + self.data.len()) as u16;
        let Ports { source: source_port, destination: destination_port } = self.ports;
        let header = UdpHeader { source_port, destination_port, length, checksum: 0 };
        [&header.to_bytes()[..], &self.data].concat()
    }
}

fn sctp(ports: Ports, chunks: &[u8]) -> Vec<u8> {
    let head = [ports.source.to_be_bytes(), ports.destination.to_be_bytes(), [0, 0], [0, 1], [0, 0], [0, 0]];
    let mut bytes = [&head.concat()[..], chunks].concat();
    let crc = checksum::crc32c(&bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const PORTS: Ports = Ports { source: 40_000, destination: 80 };

    fn v4() -> Addresses {
        Addresses::V4 { source: [192, 0, 2, 1].into(), destination: [10, 96, 0, 1].into() }
    }

    fn v6() -> Addresses {
        Addresses::V6 { source: "2001:db8::1".parse().unwrap(), destination: "fd00::1".parse().unwrap() }
    }

    fn frame(ip: Ip) -> Vec<u8> {
        Frame::new([2; 6], [4; 6], ip).bytes()
    }

    #[test]
    fn options_and_extension_headers_lead_to_the_segment() {
        let segment = || Segment { flags: Segment::SYN, options: vec![2, 4, 5, 0xb4, 1], ..Segment::new(PORTS) };
        let mut four = Ip::new(v4(), Payload::Tcp(segment()));
        four.options = vec![7, 3, 4];
        let mut six = Ip::new(v6(), Payload::Tcp(segment()));
        six.extensions = vec![
            Extension::padding(protocol::HOP_BY_HOP),
            Extension { number: protocol::ROUTING, data: vec![0; 6] },
            Extension { number: protocol::DESTINATION_OPTIONS, data: vec![1; 5] },
        ];
        for bytes in [frame(four), frame(six)] {
            let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("{packet:?}") };
            assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.syn(), tcp.ack()), (40_000, 80, true, false));
            assert_eq!(tcp.data_offset(), 7);
        }
    }

    #[test]
    fn checksums_are_those_that_etherparse_computes() {
        let datagram = Datagram { ports: PORTS, checksum: true, data: b"query".to_vec() };
        let bytes = frame(Ip { class: 0xb8, ..Ip::new(v4(), Payload::Udp(datagram.clone())) });
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport) else {
            panic!("no datagram")
        };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, b"query").unwrap());
        let bytes = frame(Ip::new(v6(), Payload::Udp(datagram)));
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport) else {
            panic!("no datagram")
        };
        assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), b"query").unwrap());
    }

    #[test]
    fn parts_of_a_packet_are_its_payload_in_order() {
        for addresses in [v4(), v6()] {
            let datagram = Datagram { ports: PORTS, checksum: true, data: (0..50).collect() };
            let whole = Ip::new(addresses, Payload::Udp(datagram));
            let parts = whole.fragments(7, 26);
            let offsets: Vec<_> = parts.iter().filter_map(|part| part.fragment).map(|f| (f.offset, f.more)).collect();
            assert_eq!(offsets, [(0, true), (3, true), (6, false)]);
            let joined: Vec<u8> = parts.iter().flat_map(|part| part.payload.bytes(addresses)).collect();
            assert_eq!(joined, whole.payload.bytes(addresses));
            for part in &parts {
                let bytes = frame(part.clone());
                assert!(SlicedPacket::from_ethernet(&bytes).unwrap().is_ip_payload_fragmented());
            }
        }
    }

    #[test]
    fn tags_lie_between_addresses_and_packet() {
        let mut tagged = Frame::new([2; 6], [4; 6], Ip::new(v4(), Payload::Tcp(Segment::new(PORTS))));
        tagged.tags = vec![10, 20];
        tagged.padding = 3;
        let bytes = tagged.bytes();
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        assert_eq!(packet.vlan_ids().iter().map(|id| id.value()).collect::<Vec<_>>(), [10, 20]);
        assert_eq!(bytes.len(), 14 + 8 + 40 + 3);
    }

    #[test]
    fn errors_quote_what_they_are_about() {
        let quoted = Ip::new(v4(), Payload::Tcp(Segment::new(PORTS))).bytes();
        let bytes = frame(Ip::new(v4(), Payload::Icmp(Icmp::too_big(v4(), 1400, &quoted))));
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((icmp.type_u8(), icmp.code_u8(), icmp.payload()), (3, 4, &quoted[..]));
        assert_eq!(icmp.bytes5to8(), [0, 0, 0x05, 0x78]);
        assert!(icmp.header().checksum == etherparse::Icmpv4Header::with_checksum(icmp.icmp_type(), &quoted).checksum);
    }
}
