//! Packets at the ingress of a device: one program for pods' devices and uplinks.

use aya_ebpf::bindings::{
    __sk_buff,
    tcx_action_base::{TCX_DROP, TCX_NEXT},
};
use lb_datapath_ebpf_abi::{
    AffinityKey, CLIENT_ADDRESS, CtKey, CtValue, FrontendKey, FrontendValue, Port, ROLE_ACTIVE, ROLE_STANDBY,
};
use lb_datapath_ebpf_programs::tc::{
    client::{client_hash, flow_hash, prefix},
    header::{self, ACK, ETHERNET, FIN, RST, SYN, TCP, UDP},
};

use crate::{
    flow,
    reject::reject,
    rewrite::forward,
    select::{Answer, Flow, choose, role},
    skb,
};

/// Verdict: as if this program were not there.
pub(crate) const PASS: i32 = TCX_NEXT;
/// Verdict: dropped.
pub(crate) const DROP: i32 = TCX_DROP;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const PACKET_HOST: u32 = 0;

/// A TCP or UDP packet that is no fragment.
pub(crate) struct Packet {
    /// Its tuple.
    pub(crate) key: CtKey,
    /// Whether it is IPv4.
    pub(crate) is_v4: bool,
    /// Time to live or hop limit.
    pub(crate) ttl: u8,
    /// TCP flags; 0 for UDP.
    pub(crate) flags: u8,
    /// Bytes before the transport header.
    pub(crate) transport: u32,
}

/// What happens to a packet.
///
/// The steps are functions of their own in the kernel, too: their variables would not fit on one stack frame.
#[inline(always)]
pub(crate) fn ingress(skb: *mut __sk_buff) -> i32 {
    let role = role();
    if role == ROLE_STANDBY {
        return PASS;
    }
    let Some(packet) = parse(skb) else { return PASS };
    let mut to = CtValue::EMPTY;
    if flow::lookup(&packet, &mut to) {
        return forward(skb, &packet, &to);
    }
    if role != ROLE_ACTIVE {
        return PASS;
    }
    match answer(&packet, &mut to) {
        Fate::Pass => PASS,
        Fate::Drop => DROP,
        Fate::Reject => reject(skb, packet.is_v4, packet.is_udp(), packet.transport),
        Fate::Open if flow::open(&packet, &mut to) => forward(skb, &packet, &to),
        Fate::Open => DROP,
    }
}

/// What becomes of the first packet of a flow.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Fate {
    Pass,
    Drop,
    Reject,
    Open,
}

/// Decides on the first packet of a flow, and writes its backend to `to`.
#[inline(never)]
fn answer(packet: &Packet, to: &mut CtValue) -> Fate {
    match choose(&packet.frontend_key(), packet) {
        Answer::NotAFrontend => {
            flow::forget_reply(packet);
            Fate::Pass
        }
        Answer::Drop => Fate::Drop,
        // Nobody answers a reset, and it must not start a flow.
        _ if packet.flags & RST != 0 => Fate::Drop,
        Answer::Reject => Fate::Reject,
        Answer::Backend(chosen) => {
            (to.dst, to.dport) = (chosen.addr, chosen.port);
            (to.backend, to.set) = (chosen.id, chosen.set);
            Fate::Open
        }
    }
}

impl Packet {
    /// The frontend that the packet may be for.
    #[inline(always)]
    pub(crate) fn frontend_key(&self) -> FrontendKey {
        FrontendKey { addr: self.key.dst, port: self.key.dport, protocol: self.key.protocol, scope: 0, pad: 0 }
    }

    /// Whether it asks for a new connection.
    #[inline(always)]
    pub(crate) const fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// Whether it ends a connection.
    #[inline(always)]
    pub(crate) const fn is_end(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }

    /// Whether it is UDP; TCP otherwise.
    #[inline(always)]
    pub(crate) const fn is_udp(&self) -> bool {
        self.key.protocol == UDP
    }
}

impl Flow for Packet {
    #[inline(always)]
    fn client(&self, frontend: &FrontendValue) -> AffinityKey {
        let client = prefix(self.key.src, frontend.prefix_v4, frontend.prefix_v6);
        AffinityKey { client, frontend: frontend.id, kind: CLIENT_ADDRESS, pad: [0; 3] }
    }

    #[inline(always)]
    fn hash(&self, frontend: &FrontendValue) -> u32 {
        if frontend.affinity != 0 {
            return client_hash(prefix(self.key.src, frontend.prefix_v4, frontend.prefix_v6));
        }
        flow_hash(self.key.src, self.key.sport, self.key.dst, self.key.dport)
    }
}

/// Reads a packet that is for this host to receive or to route.
#[inline(always)]
fn parse(skb: *mut __sk_buff) -> Option<Packet> {
    // SAFETY: `skb` is the program's context; these are fields that it may read.
    let (kind, protocol) = unsafe { ((*skb).pkt_type, (*skb).protocol) };
    if kind != PACKET_HOST {
        return None;
    }
    let (ip, is_v4) = match u16::from_be(protocol as u16) {
        ETH_P_IP => (header::ipv4(&skb::load(skb, ETHERNET)?)?, true),
        ETH_P_IPV6 => (header::ipv6(&skb::load(skb, ETHERNET)?)?, false),
        _ => return None,
    };
    let transport = ETHERNET + ip.len;
    let (ports, flags) = match ip.protocol {
        TCP => {
            let [ports, _, _, flags]: [u32; 4] = skb::load(skb, transport)?;
            (ports, (u32::from_be(flags) >> 16) as u8)
        }
        UDP => (skb::load::<u32>(skb, transport)?, 0),
        _ => return None,
    };
    let ports = u32::from_be(ports);
    let (sport, dport) = (Port::new((ports >> 16) as u16), Port::new(ports as u16));
    let key = CtKey { src: ip.src, dst: ip.dst, sport, dport, protocol: ip.protocol, pad: [0; 3] };
    Some(Packet { key, is_v4, ttl: ip.ttl, flags, transport })
}
