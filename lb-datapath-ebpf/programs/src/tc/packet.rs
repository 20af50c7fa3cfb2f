//! What the program needs to know of a packet.

use lb_datapath_ebpf_abi::{
    AffinityKey, CLIENT_ADDRESS, CtKey, FRONTEND_DENIES, FRONTEND_GUARDS_OUTSIDE, FrontendKey, FrontendValue, Port,
    SCOPE_ANY, SOURCES_DENIED,
};

use super::{
    client::{client_hash, flow_hash, prefix},
    header::{self, ACK, ETHERNET, FIN, Ip, RST, SYN},
    skb::Skb,
};
use crate::{
    maps::Maps,
    protocol::{TCP, UDP},
    select::{Admission, Flow},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// A TCP or UDP packet that is no fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its tuple.
    pub key: CtKey,
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// Bytes before the transport header.
    pub transport: u32,
}

/// The IP header of a packet, before anything else is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The header.
    pub ip: Ip,
    /// Whether it is IPv4.
    pub is_v4: bool,
}

impl Head {
    /// Reads the header of a packet.
    #[inline(always)]
    pub fn read<S: Skb>(skb: S) -> Option<Self> {
        let (_, protocol) = skb.kind();
        match u16::from_be(protocol) {
            ETH_P_IP => Some(Self { ip: header::ipv4(&skb.load(ETHERNET)?)?, is_v4: true }),
            ETH_P_IPV6 => Some(Self { ip: header::ipv6(&skb.load(ETHERNET)?)?, is_v4: false }),
            _ => None,
        }
    }

    /// Reads the rest of a TCP or UDP packet, whose header has to be all there.
    #[inline(always)]
    pub fn packet<S: Skb>(self, skb: S) -> Option<Packet> {
        let Self { ip, is_v4 } = self;
        let transport = ETHERNET + ip.len;
        let (ports, flags) = match ip.protocol {
            TCP => {
                let [ports, _, _, flags, _]: [u32; 5] = skb.load(transport)?;
                (ports, (u32::from_be(flags) >> 16) as u8)
            }
            UDP => {
                let [ports, _]: [u32; 2] = skb.load(transport)?;
                (ports, 0)
            }
            _ => return None,
        };
        let ports = u32::from_be(ports);
        let (sport, dport) = (Port::new((ports >> 16) as u16), Port::new(ports as u16));
        let key = CtKey { src: ip.src, dst: ip.dst, sport, dport, protocol: ip.protocol, pad: [0; 3] };
        Some(Packet { key, is_v4, ttl: ip.ttl, flags, transport })
    }
}

impl Packet {
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

    /// Whether it is UDP; TCP otherwise.
    #[inline(always)]
    #[must_use]
    pub const fn is_udp(&self) -> bool {
        self.key.protocol == UDP
    }
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
        Head::read(skb)?.packet(skb)
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
        skb.set_byte(14 + 9, 132);
        assert_eq!(read(&skb), None, "SCTP");
        let skb = FakeSkb::udp_v4();
        skb.set_byte(14 + 6, 0x20);
        assert_eq!(read(&skb), None, "a fragment");
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
