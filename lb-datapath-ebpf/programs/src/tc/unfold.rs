//! Reads packets that are not as plain as most are: with extension headers, in fragments, and ICMP.

use lb_datapath_ebpf_abi::{CtKey, FragmentValue};

use super::{
    flow::FlowMaps,
    header::{ETHERNET, Piece},
    packet::{Head, udp},
    skb::Skb,
    work::Work,
};
use crate::protocol::{ICMP, ICMP_V6, TCP, UDP};

/// What a packet turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None of ours.
    Foreign,
    /// A packet of TCP or UDP, or a fragment of one whose ports are known.
    Packet,
    /// An ICMP message.
    Icmp,
}

/// Reads a packet into `work`. The first fragment of a datagram tells the others their ports.
#[inline(always)]
pub fn unfold<M: FlowMaps, S: Skb>(maps: M, skb: S, work: &mut Work) -> Kind {
    let Some(protocol) = headers(skb, work) else { return Kind::Foreign };
    let read = match (work.piece, protocol) {
        (Piece::Later, _) => later(maps, skb, work),
        (_, TCP | UDP) => transport(maps, skb, work),
        (Piece::Whole, ICMP) if work.packet.is_v4 => return Kind::Icmp,
        (Piece::Whole, ICMP_V6) if !work.packet.is_v4 => return Kind::Icmp,
        _ => None,
    };
    if read.is_some() { Kind::Packet } else { Kind::Foreign }
}

/// Reads all headers before the transport header; returns the protocol of that.
#[inline(never)]
fn headers<S: Skb>(skb: S, work: &mut Work) -> Option<u8> {
    let mut head = Head::read(skb)?;
    if !head.is_v4 && !head.ip.walk(skb, ETHERNET) {
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

/// Finds what the first fragment has told about a later one.
#[inline(never)]
fn later<M: FlowMaps, S: Skb>(maps: M, skb: S, work: &mut Work) -> Option<()> {
    let packet = &mut work.packet;
    (packet.is_later, packet.len) = (true, packet.total(skb, skb.segment())?);
    let FragmentValue { sport, dport, protocol, .. } = maps.fragment(&work.datagram)?;
    (packet.key.sport, packet.key.dport, packet.key.protocol) = (sport, dport, protocol);
    Some(())
}
