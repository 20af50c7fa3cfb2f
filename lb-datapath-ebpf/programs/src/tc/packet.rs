//! What the program needs to know of a packet.

use lb_datapath_ebpf_abi::{
    AffinityKey, CLIENT_ADDRESS, CtKey, FRONTEND_DENIES, FRONTEND_GUARDS_OUTSIDE, FragmentKey, FrontendKey,
    FrontendValue, Port, SCOPE_ANY, SOURCES_DENIED,
};

use super::{
    client::{client_hash, flow_hash, prefix},
    header::{self, ACK, FIN, Ip, RST, SYN},
    sctp,
    skb::Skb,
};
use crate::{
    maps::Maps,
    protocol::{SCTP, TCP, UDP},
    select::{Admission, Flow},
};

/// EtherType.
pub(super) const ETH_P_IP: u16 = 0x0800;
/// EtherType.
pub(super) const ETH_P_IPV6: u16 = 0x86dd;
/// Fewest bytes of a TCP header.
const TCP_HEADER: u32 = 20;
/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;

/// A packet of TCP, UDP or SCTP, or a fragment of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its tuple.
    pub key: CtKey,
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// TCP flags, or those that [stand for](sctp::flags_of) the first chunk of an SCTP packet; 0 for UDP and for a
    /// fragment after the first.
    pub flags: u8,
    /// Whether it is a fragment after the first: it has neither ports nor a transport checksum.
    pub is_later: bool,
    /// Whether the node itself sends it.
    pub is_own: bool,
    /// Bytes before the IP header: those of an Ethernet header, or none on a device whose packets have none.
    pub start: u32,
    /// Bytes before the transport header; before the payload of a fragment after the first.
    pub transport: u32,
    /// Bytes of the IP packet; of its longest segment, if a device merged several or is to split it. 0 if that is not
    /// known.
    pub len: u32,
}

/// The IP header of a packet, before anything else is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes before it.
    pub start: u32,
    /// The header.
    pub ip: Ip,
    /// Whether it is IPv4.
    pub is_v4: bool,
}

impl Head {
    /// Reads the header of a packet, which so many bytes are before.
    #[inline(always)]
    pub fn read<S: Skb>(skb: S, start: u32) -> Option<Self> {
        let (_, protocol) = skb.kind();
        match u16::from_be(protocol) {
            ETH_P_IP => Some(Self { start, ip: header::ipv4(&skb.load(start)?)?, is_v4: true }),
            ETH_P_IPV6 => Some(Self { start, ip: header::ipv6(&skb.load(start)?)?, is_v4: false }),
            _ => None,
        }
    }

    /// Whether the packet may be an ICMP error about a packet of ours, which comes from any address to any address.
    #[inline(always)]
    #[must_use]
    pub const fn may_be_error(&self) -> bool {
        self.ip.is_icmp(self.is_v4) || (!self.is_v4 && header::may_precede_icmp(self.ip.protocol))
    }
}

impl Head {
    /// The packet as far as this header says: without ports, flags and length.
    #[inline(always)]
    #[must_use]
    pub const fn packet(&self) -> Packet {
        let &Self { start, ip: Ip { src, dst, protocol, ttl, len, .. }, is_v4 } = self;
        let key = CtKey::without_ports(src, dst, protocol);
        Packet { key, is_v4, ttl, flags: 0, is_later: false, is_own: false, start, transport: start + len, len: 0 }
    }

    /// The datagram that the packet is a fragment of.
    #[inline(always)]
    #[must_use]
    pub const fn datagram(&self) -> FragmentKey {
        let &Self { ip: Ip { src, dst, protocol, id, .. }, is_v4, .. } = self;
        FragmentKey::new(src, dst, id, if is_v4 { protocol } else { 0 })
    }
}

impl Packet {
    /// Reads a packet that is [plain](Ip::is_plain), its header once more; `None` if it is none of ours. That
    /// is so if lengths in it contradict each other: the network stack drops and counts it, or a receiver does.
    #[inline(always)]
    pub fn read_plain<S: Skb>(&mut self, skb: S, start: u32) -> Option<()> {
        *self = Head::read(skb, start)?.packet();
        let transport = match self.key.protocol {
            UDP => udp(skb.load(self.transport)?),
            _ => skb.load(self.transport)?,
        };
        self.take(skb, &transport, true)
    }

    /// Takes over the first 16 bytes of a transport header, of which those of UDP has eight.
    #[inline(always)]
    pub(super) fn take<S: Skb>(&mut self, skb: S, transport: &[u32; 4], is_whole: bool) -> Option<()> {
        let segment = skb.segment();
        let total = self.total(skb, segment)?;
        let headers = self.transport - self.start;
        let payload = total.checked_sub(headers)?;
        let &[ports, second, _, flags] = transport;
        let header = if self.is_udp() {
            let len = u32::from_be(second) >> 16;
            if segment == 0 && (len < UDP_HEADER || (is_whole && len > payload)) {
                return None;
            }
            UDP_HEADER
        } else if self.is_sctp() {
            // What a device has merged are packets of any length.
            if segment == 0 && payload < sctp::LEAST {
                return None;
            }
            self.flags = sctp::flags_of((u32::from_be(flags) >> 24) as u8);
            0
        } else {
            let flags = u32::from_be(flags);
            let header = flags >> 28 << 2;
            // A first fragment has all of it as well (RFC 8200, section 4.5).
            if header < TCP_HEADER || payload < header {
                return None;
            }
            self.flags = (flags >> 16) as u8;
            header
        };
        let ports = u32::from_be(ports);
        (self.key.sport, self.key.dport) = (Port::new((ports >> 16) as u16), Port::new(ports as u16));
        self.len = match segment {
            0 => total,
            // The routing table does not judge what has no length: each of the packets may have another one.
            _ if self.is_sctp() => 0,
            _ => headers + header + segment,
        };
        Some(())
    }

    /// Bytes of the IP packet; `None` if it says more than there are. What a device has merged is as long as it is, and
    /// may be longer than its header can say.
    #[inline(always)]
    pub(super) fn total<S: Skb>(&self, skb: S, segment: u32) -> Option<u32> {
        let available = skb.size().checked_sub(self.start)?;
        let total = if segment == 0 { header::total(skb, self.start, self.is_v4)? } else { available };
        (total <= available).then_some(total)
    }

    /// The frontend that the packet may be for.
    #[inline(always)]
    #[must_use]
    pub fn frontend_key(&self) -> FrontendKey {
        FrontendKey { addr: self.key.dst, port: self.key.dport, protocol: self.key.protocol, scope: SCOPE_ANY, pad: 0 }
    }

    /// Whether it asks for a new connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// Whether it ends a connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_end(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }

    /// Whether it resets a connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_reset(&self) -> bool {
        self.flags & RST != 0
    }

    /// Whether it is TCP.
    #[inline(always)]
    #[must_use]
    pub const fn is_tcp(&self) -> bool {
        self.key.protocol == TCP
    }

    /// Whether it is SCTP.
    #[inline(always)]
    #[must_use]
    pub const fn is_sctp(&self) -> bool {
        self.key.protocol == SCTP
    }

    /// Whether it belongs to a connection that is there already, or to none: it must not start one.
    #[inline(always)]
    #[must_use]
    pub const fn is_stray(&self) -> bool {
        self.is_reset() || (self.is_sctp() && !self.is_syn())
    }

    /// Whether it is UDP, which has no connections.
    #[inline(always)]
    #[must_use]
    pub const fn is_udp(&self) -> bool {
        self.key.protocol == UDP
    }
}

/// A UDP header in the place of a TCP header's beginning.
#[inline(always)]
pub(super) const fn udp([ports, rest]: [u32; 2]) -> [u32; 4] {
    [ports, rest, 0, 0]
}

/// The first packet of a flow, and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The packet.
    pub packet: &'a Packet,
    /// Whether it is of this node or of one of its pods.
    pub inside: bool,
    /// Whether it is of a process of this node.
    pub own: bool,
    /// Whether its source is a pod of the cluster, on whichever node.
    pub pod: bool,
}

impl Flow for Arrival<'_> {
    #[inline(always)]
    fn is_inside(&self) -> bool {
        self.inside
    }

    /// Processes of the node are let in whatever the ranges say.
    #[inline(always)]
    fn admission<M: Maps>(&self, maps: M, frontend: &FrontendValue) -> Admission {
        let outside_only = frontend.flags & FRONTEND_GUARDS_OUTSIDE != 0;
        if self.own || (outside_only && (self.inside || self.pod)) {
            return Admission::Admitted;
        }
        let denies = frontend.flags & FRONTEND_DENIES != 0;
        let list = if denies { frontend.id | SOURCES_DENIED } else { frontend.id };
        let listed = maps.has_source(list, self.packet.key.src);
        if listed == denies { Admission::KeptOut } else { Admission::Admitted }
    }

    #[inline(always)]
    fn waits<M: Maps>(&self, _: M) -> bool {
        false
    }

    #[inline(always)]
    fn client(&self, frontend: &FrontendValue) -> AffinityKey {
        self.packet.client(frontend)
    }

    #[inline(always)]
    fn hash(&self, frontend: &FrontendValue) -> u32 {
        self.packet.hash(frontend)
    }
}

impl Packet {
    /// Key of the client's affinity record at `frontend`.
    #[inline(always)]
    fn client(&self, frontend: &FrontendValue) -> AffinityKey {
        let client = prefix(self.key.src, frontend.prefix_v4, frontend.prefix_v6);
        AffinityKey { client, frontend: frontend.id, kind: CLIENT_ADDRESS, pad: [0; 3] }
    }

    /// The hash by which a slot is picked.
    #[inline(always)]
    fn hash(&self, frontend: &FrontendValue) -> u32 {
        if frontend.affinity != 0 {
            return client_hash(prefix(self.key.src, frontend.prefix_v4, frontend.prefix_v6));
        }
        flow_hash(self.key.src, self.key.sport, self.key.dst, self.key.dport)
    }
}

#[cfg(test)]
mod tests {
    use lb_datapath_ebpf_abi::{LOOKUP_HASH, map_v4};

    use super::*;
    use crate::{
        fake::{Fake, FakeSkb, VIP},
        tc::header::{ACK, SYN},
    };

    fn read(skb: &FakeSkb) -> Option<Packet> {
        let head = Head::read(skb, 14).filter(|head| head.ip.is_plain())?;
        let mut packet = head.packet();
        packet.read_plain(skb, 14).map(|()| packet)
    }

    #[test]
    fn packets_of_both_families_and_protocols_are_read() {
        for (skb, is_v4, protocol, flags) in [
            (FakeSkb::tcp_v4(SYN), true, TCP, SYN),
            (FakeSkb::udp_v4(), true, UDP, 0),
            (FakeSkb::tcp_v6(SYN | ACK), false, TCP, SYN | ACK),
            (FakeSkb::udp_v6(), false, UDP, 0),
        ] {
            let packet = read(&skb).unwrap();
            assert_eq!((packet.is_v4, packet.key.protocol, packet.flags, packet.ttl), (is_v4, protocol, flags, 64));
            assert_eq!((packet.key.sport.number(), packet.key.dport.number()), (40_000, 80));
            assert_eq!(packet.transport, if is_v4 { 34 } else { 54 });
            assert_eq!(packet.is_syn(), flags == SYN);
        }
    }

    #[test]
    fn options_move_the_transport_header() {
        let skb = FakeSkb::tcp_v4(SYN);
        skb.add_ip_option();
        let packet = read(&skb).unwrap();
        assert_eq!((packet.transport, packet.key.dport.number()), (38, 80));
    }

    #[test]
    fn packets_of_others_are_left_alone() {
        let skb = FakeSkb::tcp_v4(SYN);
        skb.kind.set((0, 0x0806_u16.to_be()));
        assert_eq!(read(&skb), None, "ARP");
        let skb = FakeSkb::tcp_v4(SYN);
        skb.set_byte(14 + 9, 47);
        assert_eq!(read(&skb), None, "GRE");
    }

    #[test]
    fn a_packet_whose_lengths_contradict_each_other_is_left_alone() {
        type Case = (&'static str, FakeSkb, usize, u8);
        let cases: [Case; 12] = [
            ("IPv4 header past the end", FakeSkb::udp_v4(), 14, 0x4f),
            ("IPv4 packet longer than the frame", FakeSkb::udp_v4(), 17, 29),
            ("IPv4 packet shorter than its header", FakeSkb::udp_v4(), 17, 19),
            ("IPv4 packet without room for UDP", FakeSkb::udp_v4(), 17, 27),
            ("IPv4 packet without room for TCP", FakeSkb::tcp_v4(SYN), 17, 39),
            ("IPv6 packet longer than the frame", FakeSkb::udp_v6(), 19, 9),
            ("IPv6 packet without room for UDP", FakeSkb::udp_v6(), 19, 7),
            ("IPv6 packet without room for TCP", FakeSkb::tcp_v6(SYN), 19, 19),
            ("datagram longer than the packet", FakeSkb::udp_v4(), 39, 9),
            ("datagram shorter than its header", FakeSkb::udp_v6(), 59, 7),
            ("TCP header past the end", FakeSkb::tcp_v4(SYN), 46, 0x60),
            ("TCP header too short", FakeSkb::tcp_v6(SYN), 66, 0x40),
        ];
        for (what, skb, at, byte) in cases {
            assert!(read(&skb).is_some(), "{what}");
            skb.set_byte(at, byte);
            assert_eq!(read(&skb), None, "{what}");
        }
    }

    #[test]
    fn padding_of_the_frame_is_not_part_of_the_packet() {
        let skb = FakeSkb::udp_v4();
        skb.pad(60);
        assert_eq!(read(&skb).unwrap().len, 28);
    }

    #[test]
    fn what_a_device_has_merged_counts_by_its_segments_and_may_be_longer_than_its_headers_say() {
        for (skb, len) in [(FakeSkb::tcp_v4(ACK), 20 + 20), (FakeSkb::udp_v6(), 40 + 8)] {
            skb.segment.set(1000);
            [16, 17, 18, 19].into_iter().for_each(|at| skb.set_byte(at, 0));
            skb.pad(3000);
            assert_eq!(read(&skb).unwrap().len, len + 1000);
        }
    }

    #[test]
    fn ipv6_extension_headers_are_walked_in_any_order() {
        for numbers in [&[0][..], &[60], &[43], &[0, 60, 43, 60], &[60, 60, 60, 60, 60, 60]] {
            let skb = FakeSkb::tcp_v6(SYN);
            numbers.iter().rev().for_each(|number| skb.add_extension(*number, 0));
            let packet = skb.packet();
            assert_eq!((packet.key.protocol, packet.key.dport.number(), packet.flags), (TCP, 80, SYN), "{numbers:?}");
            assert_eq!(packet.transport as usize, 54 + 8 * numbers.len());
            skb.assert_checksums();
        }
    }

    #[test]
    fn ipv6_packets_that_no_walk_gets_to_the_end_of_are_left_alone() {
        let walked = |skb: &FakeSkb| Head::read(skb, 14).is_some_and(|mut head| head.ip.walk(skb, 14));
        for (what, numbers, last) in [
            ("a routing header whose way is not over", &[43][..], 1),
            ("an authentication header", &[51], 0),
            ("an encrypted payload", &[0, 50], 0),
            ("seven headers", &[60; 7], 0),
        ] {
            let skb = FakeSkb::udp_v6();
            numbers.iter().rev().for_each(|number| skb.add_extension(*number, last));
            assert!(!walked(&skb), "{what}");
        }
        let skb = FakeSkb::udp_v6();
        skb.add_extension(60, 0);
        assert!(walked(&skb));
        skb.truncate(57);
        assert!(!walked(&skb), "a header that is cut short");
    }

    #[test]
    fn the_last_fragment_alone_says_which_protocol_it_is_only_to_those_who_saw_the_first() {
        let fake = Fake::new();
        for [first, later] in [FakeSkb::fragments_v4(40), FakeSkb::fragments_v6(40)] {
            assert_eq!(later.unfold(&fake), None);
            let packet = first.unfold(&fake).unwrap();
            let found = later.unfold(&fake).unwrap();
            assert_eq!((found.key, found.is_later, packet.is_later), (packet.key, true, false));
            assert_eq!(later.size() - found.transport, 40);
        }
    }

    #[test]
    fn a_packet_that_is_cut_short_is_left_alone() {
        for (skb, needed) in
            [(FakeSkb::tcp_v4(0), 54), (FakeSkb::udp_v4(), 42), (FakeSkb::tcp_v6(0), 74), (FakeSkb::udp_v6(), 62)]
        {
            skb.truncate(needed);
            assert!(read(&skb).is_some());
            for len in (0..needed).rev() {
                skb.truncate(len);
                assert_eq!(read(&skb), None, "{len} bytes");
            }
        }
    }

    #[test]
    fn affinity_makes_the_hash_depend_on_the_client_alone() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let packet = read(&FakeSkb::tcp_v4(SYN)).unwrap();
        let mut other = packet;
        other.key.sport = Port::new(40_001);
        let frontend = fake.frontend_at(VIP);
        assert_ne!(packet.hash(&frontend), other.hash(&frontend));
        let sticky = FrontendValue { affinity: 1, prefix_v4: 24, prefix_v6: 64, ..frontend };
        assert_eq!(packet.hash(&sticky), other.hash(&sticky));
        assert_eq!(packet.client(&sticky).client, map_v4([192, 0, 2, 0]));
        other.key.src = map_v4([192, 0, 3, 2]);
        assert_ne!(packet.hash(&sticky), other.hash(&sticky));
        assert_ne!(packet.client(&sticky), other.client(&sticky));
    }
}
