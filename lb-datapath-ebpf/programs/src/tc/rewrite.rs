//! Gives a packet another tuple and sends it on.
//!
//! A translated packet does not go through the node's own routing input: there, a packet that comes in from outside
//! with a source address of the node is a martian, and a reply that comes in from a pod with a virtual address as its
//! source fails the reverse path filter. Both are decided in [`fib_validate_source`]. The routing table is asked here,
//! and the packet leaves through the device that it names.
//!
//! [`fib_validate_source`]: https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/fib_frontend.c

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use lb_datapath_ebpf_abi::{Addr, CT_OWN, CT_REPLY, CtValue, Port, Reason, unmap_v4};

use super::{
    checksum::{difference, finish},
    ingress::{PASS, give_up},
    packet::Packet,
    skb::{RECOMPUTE, Refused, Skb, Unrouted},
};
use crate::maps::Maps;

/// `BPF_F_IPV6`, since Linux 6.16: an IPv6 address changes the pseudo header's sum and no checksum of its own header,
/// so that the checksum of the whole packet (`skb->csum`) changes with it.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/net/core/utils.c> (`inet_proto_csum_replace_by_diff`)
const BPF_F_IPV6: u64 = 1 << 7;

/// Of an Ethernet header.
const HARDWARE_SOURCE: u32 = 6;
/// Where time to live, protocol, checksum and addresses begin in an IPv4 header.
pub(super) const START_V4: u32 = 8;
/// Where length, next header, hop limit and addresses begin in an IPv6 header.
pub(super) const START_V6: u32 = 4;
const HOP_LIMIT_V6: u32 = 7;
pub(super) const SOURCE_V6: u32 = 8;
pub(super) const DESTINATION_V6: u32 = 24;

/// What became of a packet that was to be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// The verdict for the kernel.
    Verdict(i32),
    /// The packet is as it came, and longer than this, which the way to the next hop takes.
    TooBig(u16),
}

/// Translates `packet` to the tuple of `to` and sends it on.
#[inline(never)]
pub fn forward<M: Maps, S: Skb>(maps: M, skb: S, packet: &Packet, to: &CtValue) -> Forwarded {
    deliver(maps, skb, packet, to, 1)
}

/// Translates `packet`, which the node itself made, to the tuple of `to` and sends it on.
#[inline(never)]
pub fn send<M: Maps, S: Skb>(maps: M, skb: S, packet: &Packet, to: &CtValue) -> Forwarded {
    deliver(maps, skb, packet, to, 0)
}

/// Translates `packet`, the answer of a backend on the node, to the tuple of `to`. It leaves on its way, unless a process
/// of the node itself has asked. Returns the verdict for the kernel.
#[inline(never)]
pub fn translate<M: Maps, S: Skb>(maps: M, skb: S, packet: &Packet, to: &CtValue) -> i32 {
    match rewrite(skb, packet, to, packet.ttl) {
        Ok(()) if to.flags & CT_OWN != 0 => come_in(maps, skb, packet),
        Ok(()) => PASS,
        Err(Refused) => give_up(maps, Reason::PacketNotRewritten),
    }
}

/// Lets the node receive a packet that it would have sent. The device takes only what has its hardware address
/// (`eth_type_trans`), which is the source of what it sends.
#[inline(always)]
fn come_in<M: Maps, S: Skb>(maps: M, skb: S, packet: &Packet) -> i32 {
    if packet.start == 0 {
        return skb.turn_in();
    }
    match skb.load::<[u8; 6]>(HARDWARE_SOURCE).map(|hardware| skb.store(0, &hardware, 0)) {
        Some(Ok(())) => skb.turn_in(),
        _ => give_up(maps, Reason::PacketNotRewritten),
    }
}

/// Translates `packet` and sends it to the next hop, which takes `hops` from its time to live.
#[inline(always)]
fn deliver<M: Maps, S: Skb>(maps: M, skb: S, packet: &Packet, to: &CtValue, hops: u8) -> Forwarded {
    const ANSWER: u8 = CT_OWN | CT_REPLY;
    let mut hop = S::Hop::default();
    let verdict = match skb.route(packet, to, &mut hop) {
        // The kernel answers with "time exceeded", from the packet as the client knows it. The node itself is no hop.
        Ok(()) | Err(Unrouted::TooBig(_)) if packet.ttl <= hops => give_up(maps, Reason::PacketHopLimit),
        Ok(()) => match rewrite(skb, packet, to, packet.ttl.wrapping_sub(hops)).and_then(|()| dress(skb, packet)) {
            Ok(()) => skb.redirect(&hop),
            Err(Refused) => give_up(maps, Reason::PacketNotRewritten),
        },
        Err(Unrouted::TooBig(mtu)) => return Forwarded::TooBig(mtu),
        Err(unrouted) => match (rewrite(skb, packet, to, packet.ttl), unrouted) {
            (Err(Refused), _) => give_up(maps, Reason::PacketNotRewritten),
            (Ok(()), Unrouted::NoRoute) => give_up(maps, Reason::PacketNoRoute),
            (Ok(()), Unrouted::ForwardingOff) => give_up(maps, Reason::PacketForwardingOff),
            // The answer to a process of the node may come from a pod, whose device does not lead to the frontend.
            (Ok(()), Unrouted::Local) if to.flags & ANSWER == ANSWER => skb.receive(packet, to),
            (Ok(()), Unrouted::Local) if hops == 0 => come_in(maps, skb, packet),
            (Ok(()), Unrouted::Local | Unrouted::TooBig(_)) => PASS,
        },
    };
    Forwarded::Verdict(verdict)
}

/// Gives the packet an Ethernet header, if it has none.
#[inline(always)]
fn dress<S: Skb>(skb: S, packet: &Packet) -> Result<(), Refused> {
    if packet.start == 0 { skb.dress() } else { Ok(()) }
}

/// Writes the tuple of `to` and the time to live.
#[inline(never)]
fn rewrite<S: Skb>(skb: S, packet: &Packet, to: &CtValue, ttl: u8) -> Result<(), Refused> {
    match (packet.is_later || packet.is_sctp(), packet.is_v4) {
        // The checksum of SCTP covers its ports with all the rest.
        (true, _) if (packet.key.sport, packet.key.dport) != (to.sport, to.dport) && packet.is_sctp() => Err(Refused),
        (true, _) => readdress(skb, packet, to, ttl),
        (false, true) => rewrite_v4(skb, packet, to, ttl),
        (false, false) => rewrite_v6(skb, packet, to, ttl),
    }
}

/// Gives other addresses to a fragment after the first, which has no ports and no transport checksum, or to an SCTP
/// packet, whose checksum does not cover them. A checksum of the whole packet that a device computed changes with them.
#[inline(always)]
fn readdress<S: Skb>(skb: S, packet: &Packet, to: &CtValue, ttl: u8) -> Result<(), Refused> {
    if packet.is_v4 {
        let (old, new) = (v4_words(packet.key.src, packet.key.dst)?, v4_words(to.src, to.dst)?);
        let head = header_v4(skb, packet.start, packet.ttl, ttl, difference(&old, &new))?;
        let [src, dst] = new;
        return skb.store(packet.start + START_V4, &[head, src, dst], 0);
    }
    skb.store(packet.start + SOURCE_V6, &to.src, RECOMPUTE)?;
    skb.store(packet.start + DESTINATION_V6, &to.dst, RECOMPUTE)?;
    skb.store(packet.start + HOP_LIMIT_V6, &ttl, RECOMPUTE)
}

/// The word of an IPv4 header with time to live and checksum, when its addresses differ by `addresses`.
#[inline(always)]
pub(super) fn header_v4<S: Skb>(skb: S, start: u32, old_ttl: u8, ttl: u8, addresses: u32) -> Result<u32, Refused> {
    let [_, protocol, c0, c1] = skb.load::<u32>(start + START_V4).ok_or(Refused)?.to_ne_bytes();
    let lives = difference(&[first_byte(old_ttl)], &[first_byte(ttl)]);
    let check = !u16::from_ne_bytes([c0, c1]);
    let [c0, c1] = finish((check as u32).wrapping_add(addresses).wrapping_add(lives)).to_ne_bytes();
    Ok(u32::from_ne_bytes([ttl, protocol, c0, c1]))
}

/// Time to live, checksum, addresses and ports of a packet without options lie side by side: one call writes them all.
#[inline(always)]
fn rewrite_v4<S: Skb>(skb: S, packet: &Packet, to: &CtValue, ttl: u8) -> Result<(), Refused> {
    const WITHOUT_OPTIONS: u32 = 20;
    let start = packet.start;
    let [old_src, old_dst] = v4_words(packet.key.src, packet.key.dst)?;
    let [src, dst] = v4_words(to.src, to.dst)?;
    let addresses = difference(&[old_src, old_dst], &[src, dst]);
    let head = header_v4(skb, packet.start, packet.ttl, ttl, addresses)?;
    transport(skb, packet, to, addresses, 0)?;
    let ports = ports(to.sport, to.dport);
    if packet.transport == start + WITHOUT_OPTIONS {
        return skb.store(start + START_V4, &[head, src, dst, ports], 0);
    }
    skb.store(start + START_V4, &[head, src, dst], 0)?;
    skb.store(packet.transport, &ports, 0)
}

/// Hop limit, addresses and ports of a packet without extension headers lie side by side: one call writes them all.
#[inline(always)]
fn rewrite_v6<S: Skb>(skb: S, packet: &Packet, to: &CtValue, ttl: u8) -> Result<(), Refused> {
    const WITHOUT_EXTENSIONS: u32 = 40;
    let start = packet.start;
    let old = v6_words(packet.key.src, packet.key.dst);
    let new @ [a, b, c, d, e, f, g, h] = v6_words(to.src, to.dst);
    transport(skb, packet, to, difference(&old, &new), BPF_F_IPV6)?;
    let [l0, l1, next, old_ttl] = skb.load::<u32>(start + START_V6).ok_or(Refused)?.to_ne_bytes();
    let head = u32::from_ne_bytes([l0, l1, next, ttl]);
    // No checksum of the packet covers the hop limit, but one of the device's may.
    skb.replace_whole(difference(&[last_byte(old_ttl)], &[last_byte(ttl)]));
    let ports = ports(to.sport, to.dport);
    if packet.transport == start + WITHOUT_EXTENSIONS {
        return skb.store(start + START_V6, &[head, a, b, c, d, e, f, g, h, ports], 0);
    }
    skb.store(start + START_V6, &[head, a, b, c, d, e, f, g, h], 0)?;
    skb.store(packet.transport, &ports, 0)
}

/// The checksum over the ports and the pseudo header, whose addresses differ by `addresses`.
///
/// The helpers know whether the device still has to fill the checksum in (`CHECKSUM_PARTIAL`), in which case the packet
/// holds the pseudo header's sum alone. Bytes that a program wrote itself would be wrong for one of the two.
#[inline(always)]
fn transport<S: Skb>(skb: S, packet: &Packet, to: &CtValue, addresses: u32, family: u64) -> Result<(), Refused> {
    // A UDP checksum of zero says that there is none, and stays zero.
    let (at, zero) = if packet.is_udp() { (6, BPF_F_MARK_MANGLED_0 as u64) } else { (16, 0) };
    let at = packet.transport.wrapping_add(at);
    let pseudo = BPF_F_PSEUDO_HDR as u64 | zero;
    // A kernel that does not know `family` refuses it before it writes anything.
    if skb.replace_l4(at, addresses, pseudo | family).is_err() {
        skb.replace_l4(at, addresses, pseudo)?;
    }
    let (old, new) = (ports(packet.key.sport, packet.key.dport), ports(to.sport, to.dport));
    if old == new { Ok(()) } else { skb.replace_l4(at, difference(&[old], &[new]), zero) }
}

#[inline(always)]
pub(super) const fn ports(sport: Port, dport: Port) -> u32 {
    ((sport.number() as u32) << 16 | dport.number() as u32).to_be()
}

/// A word whose first byte is this one, as it lies in a packet.
#[inline(always)]
const fn first_byte(byte: u8) -> u32 {
    u32::from_ne_bytes([byte, 0, 0, 0])
}

/// A word whose last byte is this one, as it lies in a packet.
#[inline(always)]
const fn last_byte(byte: u8) -> u32 {
    u32::from_ne_bytes([0, 0, 0, byte])
}

/// Source and destination, as they lie in the header.
#[inline(always)]
pub(super) fn v4_words(src: Addr, dst: Addr) -> Result<[u32; 2], Refused> {
    let (src, dst) = (unmap_v4(src).ok_or(Refused)?, unmap_v4(dst).ok_or(Refused)?);
    Ok([u32::from_ne_bytes(src), u32::from_ne_bytes(dst)])
}

#[inline(always)]
pub(super) const fn v6_words(src: Addr, dst: Addr) -> [u32; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (src, dst);
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use lb_datapath_ebpf_abi::{from_octets, map_v4};

    use super::{forward as forward_or_not, *};
    use crate::{
        fake::{Fake, FakeSkb, REDIRECTED},
        tc::header::SYN,
    };

    fn forward(fake: &Fake, skb: &FakeSkb, packet: &Packet, to: &CtValue) -> i32 {
        let Forwarded::Verdict(verdict) = forward_or_not(fake, skb, packet, to) else { panic!("too big") };
        verdict
    }

    /// Another tuple of the same family.
    fn tuple(is_v4: bool) -> CtValue {
        let (src, dst) = if is_v4 {
            (map_v4([192, 0, 2, 1]), map_v4([10, 244, 0, 9]))
        } else {
            (from_octets([0x20; 16]), from_octets([0xfd; 16]))
        };
        CtValue { src, dst, sport: Port::new(1024), dport: Port::new(8080), ..CtValue::EMPTY }
    }

    #[test]
    fn every_checksum_is_right_after_a_translation() {
        for skb in [FakeSkb::tcp_v4(SYN), FakeSkb::udp_v4(), FakeSkb::tcp_v6(SYN), FakeSkb::udp_v6()] {
            skb.assert_checksums();
            let (fake, before) = (Fake::new(), skb.packet());
            let to = tuple(before.is_v4);
            assert_eq!(forward(&fake, &skb, &before, &to), REDIRECTED);
            let after = skb.packet();
            assert_eq!((after.key.src, after.key.dst), (to.src, to.dst));
            assert_eq!((after.key.sport, after.key.dport), (to.sport, to.dport));
            assert_eq!((after.ttl, after.flags), (63, before.flags));
            skb.assert_checksums();
        }
    }

    #[test]
    fn the_checksum_that_a_device_computed_over_the_whole_packet_follows() {
        for skb in [FakeSkb::tcp_v4(SYN), FakeSkb::udp_v4(), FakeSkb::tcp_v6(SYN), FakeSkb::udp_v6()] {
            skb.compute_whole();
            let packet = skb.packet();
            assert_eq!(forward(&Fake::new(), &skb, &packet, &tuple(packet.is_v4)), REDIRECTED);
            skb.assert_whole();
        }
        let skb = FakeSkb::udp_v6();
        skb.add_extension(60, 0);
        skb.compute_whole();
        let packet = skb.packet();
        assert_eq!(forward(&Fake::new(), &skb, &packet, &tuple(false)), REDIRECTED);
        skb.assert_whole();
    }

    #[test]
    fn a_datagram_without_a_checksum_stays_without_one() {
        let skb = FakeSkb::udp_v4();
        skb.set_byte(40, 0);
        skb.set_byte(41, 0);
        let packet = skb.packet();
        assert_eq!(forward(&Fake::new(), &skb, &packet, &tuple(true)), REDIRECTED);
        assert_eq!(skb.bytes()[40..42], [0, 0]);
    }

    #[test]
    fn a_kernel_without_the_flag_for_ipv6_translates_as_well() {
        let skb = FakeSkb::tcp_v6(SYN);
        skb.old_kernel.set(true);
        let packet = skb.packet();
        assert_eq!(forward(&Fake::new(), &skb, &packet, &tuple(false)), REDIRECTED);
        skb.assert_checksums();
    }

    #[test]
    fn a_packet_at_the_end_of_its_way_is_left_as_the_client_sent_it() {
        let skb = FakeSkb::udp_v6();
        skb.set_byte(14 + 7, 1);
        let (before, packet) = (skb.bytes(), skb.packet());
        assert_eq!(forward(&Fake::new(), &skb, &packet, &tuple(false)), PASS);
        assert_eq!(skb.bytes(), before);
    }

    #[test]
    fn a_packet_to_the_node_itself_has_no_hop_to_go() {
        let skb = FakeSkb::udp_v4();
        skb.set_byte(14 + 8, 1);
        skb.routes.set(Err(Unrouted::Local));
        let (packet, to) = (skb.packet(), tuple(true));
        assert_eq!(forward(&Fake::new(), &skb, &packet, &to), PASS);
        assert_eq!((skb.packet().key.dst, skb.packet().ttl), (to.dst, 1));
    }

    #[test]
    fn a_tuple_of_the_other_family_is_not_written() {
        let (fake, skb) = (Fake::new(), FakeSkb::tcp_v4(SYN));
        let packet = skb.packet();
        forward(&fake, &skb, &packet, &tuple(false));
        assert_eq!(*fake.counts.borrow(), [(Reason::PacketNotRewritten, 1)].into());
    }
}
