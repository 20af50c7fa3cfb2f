//! Reads packets that are not as plain as most are: with extension headers, in fragments, and ICMP.

use lb_datapath_ebpf_abi::{CtKey, FragmentValue};

use super::{
    echo,
    flow::FlowMaps,
    header::Piece,
    packet::{Head, udp},
    skb::Skb,
    work::Work,
};
use crate::protocol::{ICMP, ICMP_V6, SCTP, TCP, UDP};

/// What a packet turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None of ours.
    Foreign,
    /// A packet of TCP, UDP or SCTP, or a fragment of one whose ports are known.
    Packet,
    /// An ICMP message that is no echo request.
    Icmp,
    /// An ICMP echo request, or a fragment of one.
    Echo,
}

/// Reads a packet, which `start` bytes are before, into `work`. The first fragment of a datagram tells the others their ports.
#[inline(always)]
pub fn unfold<M: FlowMaps, S: Skb>(maps: M, skb: S, start: u32, work: &mut Work) -> Kind {
    let Some(protocol) = headers(skb, start, work) else { return Kind::Foreign };
    let read = match (work.piece, protocol) {
        (Piece::Later, _) => later(maps, skb, work),
        (_, TCP | UDP | SCTP) => transport(maps, skb, work),
        (_, ICMP) if work.packet.is_v4 => return icmp(maps, skb, work),
        (_, ICMP_V6) if !work.packet.is_v4 => return icmp(maps, skb, work),
        _ => None,
    };
    match read {
        None => Kind::Foreign,
        Some(()) if matches!(work.packet.key.protocol, ICMP | ICMP_V6) => Kind::Echo,
        Some(()) => Kind::Packet,
    }
}

/// Reads all headers before the transport header; returns the protocol of that.
#[inline(never)]
fn headers<S: Skb>(skb: S, start: u32, work: &mut Work) -> Option<u8> {
    let mut head = Head::read(skb, start)?;
    if !head.is_v4 && !head.ip.walk(skb, head.start) {
        return None;
    }
    work.packet = head.packet();
    (work.piece, work.datagram) = (head.ip.piece, head.datagram());
    Some(head.ip.protocol)
}

/// Reads the transport header.
#[inline(never)]
fn transport<M: FlowMaps, S: Skb>(maps: M, skb: S, work: &mut Work) -> Option<()> {
    let packet = &mut work.packet;
    let header = match packet.is_udp() {
        true => udp(skb.load_far(packet.transport)?),
        false => skb.load_far(packet.transport)?,
    };
    packet.take(skb, &header, work.piece == Piece::Whole)?;
    if work.piece == Piece::First {
        let CtKey { sport, dport, protocol, .. } = packet.key;
        maps.put_fragment(&work.datagram, &FragmentValue { sport, dport, protocol, pad: [0; 3] });
    }
    Some(())
}

/// Tells an echo request from other ICMP messages.
#[inline(never)]
fn icmp<M: FlowMaps, S: Skb>(maps: M, skb: S, work: &mut Work) -> Kind {
    let packet = &mut work.packet;
    let Some([kind, code, ..]) = skb.load_far::<[u8; 4]>(packet.transport) else { return Kind::Foreign };
    if !echo::is_request(kind, code, packet.is_v4) {
        return if work.piece == Piece::Whole { Kind::Icmp } else { Kind::Foreign };
    }
    let Some(len) = packet.total(skb, skb.segment()) else { return Kind::Foreign };
    (packet.len, packet.key.protocol) = (len, if packet.is_v4 { ICMP } else { ICMP_V6 });
    if work.piece == Piece::First {
        let CtKey { sport, dport, protocol, .. } = packet.key;
        maps.put_fragment(&work.datagram, &FragmentValue { sport, dport, protocol, pad: [0; 3] });
    }
    Kind::Echo
}

/// Finds what the first fragment has told about a later one.
#[inline(never)]
fn later<M: FlowMaps, S: Skb>(maps: M, skb: S, work: &mut Work) -> Option<()> {
    let packet = &mut work.packet;
    (packet.is_later, packet.len) = (true, packet.total(skb, skb.segment())?);
    let FragmentValue { sport, dport, protocol, .. } = maps.fragment(&work.datagram)?;
    (packet.key.sport, packet.key.dport, packet.key.protocol) = (sport, dport, protocol);
    Some(())
}
