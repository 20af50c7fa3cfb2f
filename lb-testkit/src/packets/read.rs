//! Any bytes, read as a packet as far as they are one.

use etherparse::{
    EtherType, Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, SingleVlanHeaderSlice,
    UdpHeaderSlice,
};

use super::{Addresses, Ports, checksum, protocol};

/// What lies in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Receiver and sender; `None` if there are less than 14 bytes.
    pub ethernet: Option<([u8; 6], [u8; 6])>,
    /// VLAN ids, the outermost first.
    pub tags: Vec<u16>,
    /// The IP packet, if the type after the tags says that there is one and its header is there.
    pub ip: Option<IpReading>,
}

/// What lies in an IP packet. Every position is counted from the beginning of the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpReading {
    /// Where the header begins.
    pub at: usize,
    /// Source and destination.
    pub addresses: Addresses,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// Whether the IPv4 header has options.
    pub has_options: bool,
    /// Numbers of the IPv6 extension headers, the fragment header too.
    pub extensions: Vec<u8>,
    /// Most stops that a routing header of IPv6 has before the destination; 0 without one.
    pub segments_left: u8,
    /// Which part of a larger packet this is. A fragment header that stands for the whole of its packet counts too.
    pub fragment: Option<FragmentReading>,
    /// Protocol of what follows all headers of IP.
    pub protocol: u8,
    /// Where that begins; it may be beyond the end of the frame.
    pub payload_at: usize,
    /// Where the packet ends according to its length; it may be beyond the end of the frame.
    pub end: usize,
    /// Checksum of the header; [`Check::Absent`] for IPv6.
    pub checksum: Check,
    /// The header of the transport protocol, as far as the frame has it, whatever [`end`](Self::end) says.
    pub transport: Transport,
    /// Checksum of the transport protocol.
    pub transport_checksum: Check,
    /// What is wrong with lengths and structure, in order of place.
    pub faults: Vec<Fault>,
}

/// The part of a packet that a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentReading {
    /// Common to all parts.
    pub id: u32,
    /// Where it begins, in units of 8 bytes.
    pub offset: u16,
    /// Whether it is not the last.
    pub more: bool,
}

/// The header of a transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(TcpReading),
    /// UDP.
    Udp(Ports),
    /// SCTP.
    Sctp(Ports),
    /// ICMP of the packet's family: type, code and the four bytes after the checksum.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// What follows the checksum.
        rest: [u8; 4],
    },
    /// Another protocol, or a later part of a fragmented packet.
    Other,
    /// The frame ends inside of the header.
    Cut,
}

/// The header of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpReading {
    /// Ports.
    pub ports: Ports,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Flags, the byte that has FIN as its lowest bit.
    pub flags: u8,
    /// Bytes of the header, as it says itself.
    pub header: usize,
}

/// Whether a checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is.
    Right,
    /// It is not.
    Wrong,
    /// There is none.
    Absent,
    /// Not all that it covers is there, or it covers more than a packet.
    Unknown,
}

/// Something wrong with lengths or structure, for which a receiver drops a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The length of the IPv4 header is less than 20 bytes, or more than the packet has.
    HeaderLength,
    /// The packet claims more bytes than the frame has.
    Length,
    /// The chain of extension headers does not end in the packet.
    Extensions,
    /// The header of the transport protocol does not end in the packet.
    TransportLength,
    /// The length in the UDP header is not that of the datagram, or not more than the first part of it has.
    DatagramLength,
}

impl Reading {
    /// Reads `frame`.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let mut reading = Self { ethernet: None, tags: Vec::new(), ip: None };
        let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(frame) else { return reading };
        reading.ethernet = Some((ethernet.destination(), ethernet.source()));
        let (mut kind, mut at) = (ethernet.ether_type(), ethernet.slice().len());
        while matches!(kind, EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING) {
            let Ok(tag) = SingleVlanHeaderSlice::from_slice(&frame[at..]) else { return reading };
            reading.tags.push(tag.vlan_identifier().value());
            (kind, at) = (tag.ether_type(), at + tag.slice().len());
        }
        reading.ip = match kind {
            EtherType::IPV4 => IpReading::v4(frame, at),
            EtherType::IPV6 => IpReading::v6(frame, at),
            _ => None,
        };
        reading
    }
}

impl IpReading {
    /// Reads the packet that begins at `at`: one that is quoted in an error, for example. `None` if no header of IPv4 or
    /// IPv6 is there.
    #[must_use]
    pub fn of(frame: &[u8], at: usize) -> Option<Self> {
        match frame.get(at)? >> 4 {
            4 => Self::v4(frame, at),
            6 => Self::v6(frame, at),
            _ => None,
        }
    }

    /// Ports, if the protocol has some and they are there.
    #[must_use]
    pub const fn ports(&self) -> Option<Ports> {
        match self.transport {
            Transport::Tcp(TcpReading { ports, .. }) | Transport::Udp(ports) | Transport::Sctp(ports) => Some(ports),
            Transport::Icmp { .. } | Transport::Other | Transport::Cut => None,
        }
    }

    /// Whether this is a part of a larger packet, not the whole.
    #[must_use]
    pub fn is_part(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.more || fragment.offset != 0)
    }

    fn v4(frame: &[u8], at: usize) -> Option<Self> {
        let bytes = frame.get(at..)?;
        // A length of the header that is wrong is a fault of the packet, and no reason not to read it.
        let mut fixed = bytes.get(..20).filter(|bytes| bytes[0] >> 4 == 4)?.to_vec();
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        fixed[0] = 0x45;
        let header = Ipv4HeaderSlice::from_slice(&fixed).ok()?;
        let end = at + usize::from(header.total_len());
        let addresses = Addresses::V4 { source: header.source_addr(), destination: header.destination_addr() };
        let (offset, more) = (header.fragments_offset().value(), header.more_fragments());
        let id = u32::from(header.identification());
        let fragment = (more || offset != 0).then_some(FragmentReading { id, offset, more });
        let checksum = match bytes.get(..header_len) {
            Some(header) if header_len >= 20 && checksum::internet(header) == 0 => Check::Right,
            Some(_) => Check::Wrong,
            None => Check::Unknown,
        };
        let mut reading = Self {
            at,
            addresses,
            hop_limit: header.ttl(),
            has_options: header_len > 20,
            extensions: Vec::new(),
            segments_left: 0,
            fragment,
            protocol: header.protocol().0,
            payload_at: at + header_len,
            end,
            checksum,
            transport: Transport::Other,
            transport_checksum: Check::Absent,
            faults: Vec::new(),
        };
        if header_len < 20 || reading.payload_at > end || reading.payload_at > frame.len() {
            reading.faults.push(Fault::HeaderLength);
        }
        reading.read_transport(frame);
        Some(reading)
    }

    fn v6(frame: &[u8], at: usize) -> Option<Self> {
        let header = Ipv6HeaderSlice::from_slice(frame.get(at..)?).ok()?;
        let payload_at = at + header.slice().len();
        let mut reading = Self {
            at,
            addresses: Addresses::V6 { source: header.source_addr(), destination: header.destination_addr() },
            hop_limit: header.hop_limit(),
            has_options: false,
            extensions: Vec::new(),
            segments_left: 0,
            fragment: None,
            protocol: header.next_header().0,
            payload_at,
            end: payload_at + usize::from(header.payload_length()),
            checksum: Check::Absent,
            transport: Transport::Other,
            transport_checksum: Check::Absent,
            faults: Vec::new(),
        };
        reading.skip_extensions(frame);
        reading.read_transport(frame);
        Some(reading)
    }

    fn skip_extensions(&mut self, frame: &[u8]) {
        use protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
        while matches!(self.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) && !self.is_later_part() {
            let Some(&[next, len]) = frame.get(self.payload_at..self.payload_at + 2) else {
                return self.faults.push(Fault::Extensions);
            };
            self.extensions.push(self.protocol);
            let mut size = (usize::from(len) + 1) * 8;
            if self.protocol == ROUTING {
                let left = frame.get(self.payload_at + 3).copied().unwrap_or_default();
                self.segments_left = self.segments_left.max(left);
            }
            if self.protocol == FRAGMENT {
                let Ok(header) = Ipv6FragmentHeaderSlice::from_slice(&frame[self.payload_at..]) else {
                    return self.faults.push(Fault::Extensions);
                };
                let (offset, more) = (header.fragment_offset().value(), header.more_fragments());
                self.fragment = Some(FragmentReading { id: header.identification(), offset, more });
                size = header.slice().len();
            }
            (self.protocol, self.payload_at) = (next, self.payload_at + size);
            if self.payload_at > self.end.min(frame.len()) {
                return self.faults.push(Fault::Extensions);
            }
        }
    }

    /// Whether this is a part of a larger packet other than the first, so that no header of a transport protocol begins
    /// in it.
    #[must_use]
    pub fn is_later_part(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }

    fn read_transport(&mut self, frame: &[u8]) {
        if self.end > frame.len() {
            self.faults.push(Fault::Length);
        }
        if self.is_later_part() {
            return;
        }
        let bytes = frame.get(self.payload_at..).unwrap_or_default();
        let claimed = self.end.saturating_sub(self.payload_at);
        let (transport, header) = match self.protocol {
            protocol::TCP => tcp(bytes),
            protocol::UDP => (udp(bytes), 8),
            protocol::SCTP => (ports(bytes).filter(|_| bytes.len() >= 12).map(Transport::Sctp), 12),
            protocol::ICMP if self.is_v4() => (icmp(bytes), 8),
            protocol::ICMP_V6 if !self.is_v4() => (icmp(bytes), 8),
            _ => return,
        };
        self.transport = transport.unwrap_or(Transport::Cut);
        if header > claimed || self.transport == Transport::Cut {
            self.faults.push(Fault::TransportLength);
        }
        if let (Transport::Udp(_), Ok(udp)) = (self.transport, UdpHeaderSlice::from_slice(bytes)) {
            let length = usize::from(udp.length());
            let fits = if self.is_part() { length > claimed } else { length == claimed };
            if !fits {
                self.faults.push(Fault::DatagramLength);
            }
        }
        self.transport_checksum = self.check(frame);
    }

    const fn is_v4(&self) -> bool {
        matches!(self.addresses, Addresses::V4 { .. })
    }

    fn check(&self, frame: &[u8]) -> Check {
        if self.transport == Transport::Cut || self.is_part() {
            return Check::Unknown;
        }
        let Some(bytes) = frame.get(self.payload_at..self.end) else { return Check::Unknown };
        let right = match self.protocol {
            protocol::UDP if bytes.get(6..8) == Some(&[0, 0]) => return Check::Absent,
            protocol::SCTP => {
                let Some(&found) = bytes.get(8..12).and_then(|bytes| bytes.first_chunk()) else {
                    return Check::Unknown;
                };
                let mut zeroed = bytes.to_vec();
                zeroed[8..12].fill(0);
                u32::from_le_bytes(found) == checksum::crc32c(&zeroed)
            }
            protocol => checksum::transport(self.addresses, protocol, bytes) == 0,
        };
        if right { Check::Right } else { Check::Wrong }
    }
}

fn ports(bytes: &[u8]) -> Option<Ports> {
    let &[a, b, c, d] = bytes.first_chunk()?;
    Some(Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) })
}

/// The header without its options, and its length with them.
fn tcp(bytes: &[u8]) -> (Option<Transport>, usize) {
    let Some(&[_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, ..]) = bytes.first_chunk::<20>() else {
        return (None, 20);
    };
    let header = usize::from(offset >> 4) * 4;
    let reading = ports(bytes).map(|ports| {
        let (sequence, acknowledgement) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([a0, a1, a2, a3]));
        Transport::Tcp(TcpReading { ports, sequence, acknowledgement, flags, header })
    });
    // Less than the smallest header is as wrong as more than there is.
    (reading, if header < 20 { usize::MAX } else { header })
}

fn udp(bytes: &[u8]) -> Option<Transport> {
    ports(bytes).filter(|_| bytes.len() >= 8).map(Transport::Udp)
}

fn icmp(bytes: &[u8]) -> Option<Transport> {
    let &[kind, code, _, _, a, b, c, d] = bytes.first_chunk()?;
    Some(Transport::Icmp { kind, code, rest: [a, b, c, d] })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Datagram, Extension, Frame, Icmp, Ip, Payload, Segment},
        *,
    };

    const PORTS: Ports = Ports { source: 40_000, destination: 80 };

    fn both() -> [Addresses; 2] {
        [
            Addresses::V4 { source: [192, 0, 2, 1].into(), destination: [10, 96, 0, 1].into() },
            Addresses::V6 { source: "2001:db8::1".parse().unwrap(), destination: "fd00::1".parse().unwrap() },
        ]
    }

    fn payloads(addresses: Addresses) -> Vec<Payload> {
        vec![
            Payload::Tcp(Segment { flags: Segment::SYN | Segment::ACK, sequence: 7, ..Segment::new(PORTS) }),
            Payload::Udp(Datagram { ports: PORTS, checksum: true, data: b"odd".to_vec() }),
            Payload::Sctp { ports: PORTS, chunks: vec![1, 2, 3, 4] },
            Payload::Icmp(Icmp::port_unreachable(addresses, &[0; 28])),
        ]
    }

    fn frames() -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for addresses in both() {
            for payload in payloads(addresses) {
                let mut ip = Ip::new(addresses, payload);
                frames.push(Frame::new([2; 6], [4; 6], ip.clone()).bytes());
                ip.options = vec![1; 8];
                ip.extensions =
                    vec![Extension::padding(protocol::HOP_BY_HOP), Extension::padding(protocol::DESTINATION_OPTIONS)];
                let tagged = Frame { tags: vec![3], padding: 5, ..Frame::new([2; 6], [4; 6], ip) };
                frames.push(tagged.bytes());
            }
        }
        frames
    }

    #[test]
    fn what_was_written_is_read_back() {
        for addresses in both() {
            for payload in payloads(addresses) {
                let mut ip = Ip { hop_limit: 9, ..Ip::new(addresses, payload.clone()) };
                ip.extensions = vec![Extension { number: protocol::ROUTING, data: vec![0, 3] }];
                let reading = Reading::of(&Frame::new([2; 6], [4; 6], ip).bytes()).ip.unwrap();
                assert_eq!((reading.addresses, reading.hop_limit), (addresses, 9));
                assert_eq!(reading.protocol, payload.protocol(addresses));
                assert_eq!(reading.segments_left, if matches!(addresses, Addresses::V6 { .. }) { 3 } else { 0 });
                assert_eq!((&reading.faults[..], reading.transport_checksum), (&[][..], Check::Right));
                match reading.transport {
                    Transport::Tcp(tcp) => assert_eq!((tcp.ports, tcp.sequence, tcp.flags), (PORTS, 7, 0x12)),
                    Transport::Icmp { kind, .. } => assert!(kind == 3 || kind == 1),
                    _ => assert_eq!(reading.ports(), Some(PORTS)),
                }
            }
        }
    }

    #[test]
    fn one_bit_makes_a_checksum_wrong() {
        for frame in frames() {
            let whole = Reading::of(&frame).ip.unwrap();
            let mut changed = frame.clone();
            changed[whole.end - 1] ^= 1;
            assert_eq!(Reading::of(&changed).ip.unwrap().transport_checksum, Check::Wrong, "{whole:?}");
            if whole.checksum == Check::Right {
                changed[whole.at + 8] ^= 1;
                assert_eq!(Reading::of(&changed).ip.unwrap().checksum, Check::Wrong);
            }
        }
    }

    #[test]
    fn no_cut_and_no_flipped_byte_makes_reading_panic() {
        for frame in frames() {
            let end = Reading::of(&frame).ip.unwrap().end;
            for len in 0..frame.len() {
                let reading = Reading::of(&frame[..len]);
                let faults = reading.ip.map(|ip| ip.faults);
                assert!(len >= end || faults.is_none_or(|faults| !faults.is_empty()), "{len} of {frame:?}");
            }
            for at in 0..frame.len() {
                for mask in [0x01, 0x10, 0x80, 0xff] {
                    let mut changed = frame.clone();
                    changed[at] ^= mask;
                    let _ = Reading::of(&changed);
                }
            }
        }
    }

    #[test]
    fn a_datagram_without_a_checksum_is_told_from_a_wrong_one() {
        let [v4, _] = both();
        let datagram = Datagram { ports: PORTS, checksum: false, data: Vec::new() };
        let frame = Frame::new([2; 6], [4; 6], Ip::new(v4, Payload::Udp(datagram))).bytes();
        assert_eq!(Reading::of(&frame).ip.unwrap().transport_checksum, Check::Absent);
    }

    #[test]
    fn lengths_that_do_not_fit_are_faults() {
        let [v4, _] = both();
        let datagram = Datagram { ports: PORTS, checksum: true, data: vec![0; 4] };
        let frame = Frame::new([2; 6], [4; 6], Ip::new(v4, Payload::Udp(datagram))).bytes();
        let with = |at: usize, byte: u8| {
            let mut changed = frame.clone();
            changed[at] = byte;
            Reading::of(&changed).ip.unwrap().faults
        };
        assert_eq!(with(14, 0x44), [Fault::HeaderLength, Fault::DatagramLength]);
        assert_eq!(with(17, 33), [Fault::Length, Fault::DatagramLength]);
        assert_eq!(with(17, 27), [Fault::TransportLength, Fault::DatagramLength]);
        assert_eq!(with(39, 11), [Fault::DatagramLength]);
    }

    #[test]
    fn parts_are_seen_in_both_families() {
        for addresses in both() {
            let [udp] = &payloads(addresses)[1..2] else { panic!("no datagram") };
            let parts = Ip::new(addresses, udp.clone()).fragments(5, 8);
            let read = |ip: &Ip| Reading::of(&Frame::new([2; 6], [4; 6], ip.clone()).bytes()).ip.unwrap();
            let (first, last) = (read(&parts[0]), read(&parts[1]));
            assert_eq!(first.fragment, Some(FragmentReading { id: 5, offset: 0, more: true }));
            assert_eq!(last.fragment, Some(FragmentReading { id: 5, offset: 1, more: false }));
            assert_eq!((first.ports(), last.ports()), (Some(PORTS), None));
            assert!(first.is_part() && last.is_part());
        }
    }
}
