//! ICMP errors about packets of flows (RFC 792, RFC 4443), translated in both directions as RFC 5508 (section 4) asks
//! for.
//!
//! A router, or the receiver, quotes the packet that it could not deliver: as this node had translated it. The quote
//! becomes the packet that its sender knows, and the error goes to that sender. An error about a packet to a backend
//! goes to the client, and one about an answer to the backend. Its source stays the router's, which is what shows where
//! on the way it happened. If the source is the receiver itself, it becomes the one that the sender knows.

use lb_datapath_ebpf_abi::{Addr, CT_CUT, CT_DIRECT, Port};

use super::{
    checksum::{difference, finish},
    flow::{Entry, FlowMaps, find},
    header::{self, Piece},
    rewrite::{ports, v4_words, v6_words},
    skb::{RECOMPUTE, Refused, Skb},
    work::Work,
};
use crate::protocol::{ICMP, ICMP_V6};

/// Bytes of an ICMP header.
const ICMP_HEADER: u32 = 8;

/// Where things are in an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Quote {
    /// Who sent the error.
    pub sender: Addr,
    /// The ICMP header.
    pub icmp: u32,
    /// The quoted IP header.
    pub ip: u32,
    /// The quoted transport header.
    pub transport: u32,
    /// The end of the error.
    pub end: u32,
}

/// What became of a packet that may be an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// It is no error about a packet of ours, and untouched.
    Foreign,
    /// Its quote is translated, and `work` says what becomes of the packet.
    Done,
    /// It could not be rewritten, and may be half of it.
    Broken,
}

/// Translates the quote in the ICMP message in `work`, if it is an error about a packet of a flow. Afterwards `work` says
/// which addresses the error gets; they are still to be written.
#[inline(never)]
pub fn translate<M: FlowMaps, S: Skb>(maps: M, skb: S, work: &mut Work) -> Translation {
    if read_icmp(skb, work).is_none() || read_quote(skb, work).is_none() {
        return Translation::Foreign;
    }
    let Some((entry, _)) = find(maps, &work.packet.key) else { return Translation::Foreign };
    work.to = entry.value();
    // Direct flows are not translated, and those that user space has ended not any more.
    if work.to.flags & (CT_DIRECT | CT_CUT) != 0 {
        return Translation::Foreign;
    }
    if rewrite(skb, work).is_err() {
        return Translation::Broken;
    }
    let Work { packet, to, quote, .. } = work;
    if quote.sender != packet.key.src {
        to.src = quote.sender;
    }
    (packet.key.src, packet.key.sport, packet.key.dport) = (quote.sender, Port(0), Port(0));
    (to.sport, to.dport) = (Port(0), Port(0));
    packet.key.protocol = if packet.is_v4 { ICMP } else { ICMP_V6 };
    Translation::Done
}

/// Reads the ICMP header of an error.
#[inline(never)]
fn read_icmp<S: Skb>(skb: S, work: &mut Work) -> Option<()> {
    let Work { packet, quote, .. } = work;
    let [kind, ..] = skb.load_far::<u32>(packet.transport)?.to_ne_bytes();
    // An error at the end of its own way is dropped by the network stack, which must find it as it came.
    if packet.ttl <= 1 || !is_error(kind, packet.is_v4) {
        return None;
    }
    (packet.is_later, packet.len) = (true, packet.total(skb, skb.segment())?);
    (quote.sender, quote.end) = (packet.key.src, packet.start + packet.len);
    Some(())
}

/// Reads the quote in an error. The tuple of the packet in `work` becomes that of an answer to the quoted packet.
#[inline(never)]
fn read_quote<S: Skb>(skb: S, work: &mut Work) -> Option<()> {
    let Work { packet, quote, .. } = work;
    let (is_v4, at) = (packet.is_v4, packet.transport.wrapping_add(ICMP_HEADER));
    let mut ip = if is_v4 { header::ipv4(&skb.load_far(at)?)? } else { header::ipv6(&skb.load_far(at)?)? };
    if !is_v4 && !ip.walk(skb, at) {
        return None;
    }
    // An error goes to whoever sent the packet.
    if ip.piece == Piece::Later || !header::is_transport(ip.protocol) || ip.src != packet.key.dst {
        return None;
    }
    let transport = at.wrapping_add(ip.len);
    let ports = u32::from_be(skb.load_far(transport)?);
    // The quote has the ports and all that is before them.
    if transport.wrapping_add(8) > quote.end {
        return None;
    }
    (packet.key.src, packet.key.dst, packet.key.protocol) = (ip.dst, ip.src, ip.protocol);
    (packet.key.sport, packet.key.dport) = (Port::new(ports as u16), Port::new((ports >> 16) as u16));
    (quote.icmp, quote.ip, quote.transport) = (packet.transport, at, transport);
    Some(())
}

/// Whether an ICMP message of this type is an error with a quote: unreachable, source quench, time exceeded and
/// parameter problem; too big as well for ICMPv6.
#[inline(always)]
const fn is_error(kind: u8, is_v4: bool) -> bool {
    if is_v4 { matches!(kind, 3 | 4 | 11 | 12) } else { matches!(kind, 1..=4) }
}

/// Writes what the sender of the quoted packet knows it as, and what the error's checksum becomes by that. ICMPv6 counts
/// the error's own addresses in, which are written later.
///
/// No device fills in the checksum of an error, so that bytes can be written as they are to be.
#[inline(never)]
fn rewrite<S: Skb>(skb: S, work: &Work) -> Result<(), Refused> {
    let Work { packet, to, quote, .. } = work;
    let key = &packet.key;
    // The quote is a packet of the other direction than the tuples are.
    let addresses = difference(&v6_words(key.dst, key.src), &v6_words(to.dst, to.src));
    let (old_ports, new_ports) = (ports(key.dport, key.sport), ports(to.dport, to.sport));
    let port_change = difference(&[old_ports], &[new_ports]);
    let mut change = addresses.wrapping_add(port_change);
    if packet.is_v4 {
        let [source, destination] = v4_words(to.dst, to.src)?;
        let at = quote.ip + 8;
        let old = skb.load_far::<u32>(at).ok_or(Refused)?;
        let [ttl, protocol, c0, c1] = old.to_ne_bytes();
        let check = finish((!u16::from_ne_bytes([c0, c1]) as u32).wrapping_add(addresses));
        let [c0, c1] = check.to_ne_bytes();
        let new = u32::from_ne_bytes([ttl, protocol, c0, c1]);
        change = change.wrapping_add(difference(&[old], &[new]));
        skb.store(at, &[new, source, destination], RECOMPUTE)?;
    } else {
        skb.store(quote.ip + 8, &to.dst, RECOMPUTE)?;
        skb.store(quote.ip + 24, &to.src, RECOMPUTE)?;
        let source = if quote.sender == key.src { to.src } else { quote.sender };
        change = change.wrapping_add(difference(&v6_words(quote.sender, key.dst), &v6_words(source, to.dst)));
    }
    skb.store(quote.transport, &new_ports, RECOMPUTE)?;
    change = change.wrapping_add(transport_checksum(skb, work, addresses.wrapping_add(port_change))?);
    let at = quote.icmp + 2;
    let old: [u8; 2] = skb.load_far(at).ok_or(Refused)?;
    let check = finish((!u16::from_ne_bytes(old) as u32).wrapping_add(change));
    skb.store(at, &check.to_ne_bytes(), RECOMPUTE)
}

/// Applies a change of what the quoted transport checksum covers, if the quote is long enough to have one; returns how
/// the checksum itself changes.
#[inline(always)]
fn transport_checksum<S: Skb>(skb: S, work: &Work, change: u32) -> Result<u32, Refused> {
    let Work { packet, quote, .. } = work;
    // That of SCTP covers neither addresses nor what else has changed.
    if packet.is_sctp() {
        return Ok(0);
    }
    let is_udp = packet.is_udp();
    let at = quote.transport + if is_udp { 6 } else { 16 };
    if at + 2 > quote.end {
        return Ok(0);
    }
    let old: [u8; 2] = skb.load_far(at).ok_or(Refused)?;
    // A UDP checksum of zero says that there is none.
    if is_udp && old == [0; 2] {
        return Ok(0);
    }
    let check = finish((!u16::from_ne_bytes(old) as u32).wrapping_add(change));
    let new = if is_udp && check == 0 { [0xff; 2] } else { check.to_ne_bytes() };
    skb.store(at, &new, RECOMPUTE)?;
    let word = |[a, b]: [u8; 2]| u32::from_ne_bytes([a, b, 0, 0]);
    Ok(difference(&[word(old)], &[word(new)]))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use lb_datapath_ebpf_abi::{LOOKUP_HASH, Reason, from_octets, map_v4};

    use super::*;
    use crate::{
        fake::{Fake, FakeSkb, REDIRECTED, VIP, VIP_V6},
        tc::{
            header::SYN,
            ingress::{DROP, PASS, ingress},
        },
    };

    /// A packet in both forms: as its sender knows it, and as it leaves this node.
    struct Sent {
        fake: Fake,
        known: FakeSkb,
        left: FakeSkb,
    }

    /// Packets of a client, or answers to them, of both families and protocols.
    fn sent(is_answer: bool) -> Vec<Sent> {
        let make: [fn() -> FakeSkb; 4] =
            [|| FakeSkb::tcp_v4(SYN), FakeSkb::udp_v4, || FakeSkb::tcp_v6(SYN), FakeSkb::udp_v6];
        let sent = make.map(|make| {
            let (known, left) = (make(), make());
            let fake = Fake::serving_at(if left.packet().is_v4 { VIP } else { VIP_V6 }, LOOKUP_HASH, &[1]);
            assert_eq!(ingress(&fake, &left), REDIRECTED);
            if !is_answer {
                return Sent { fake, known, left };
            }
            left.answer();
            let known = left.copy();
            assert_eq!(ingress(&fake, &left), REDIRECTED);
            Sent { fake, known, left }
        });
        Vec::from(sent)
    }

    fn router(is_v4: bool) -> Addr {
        if is_v4 { map_v4([203, 0, 113, 7]) } else { from_octets([0x2a; 16]) }
    }

    /// What an error quotes of `known`, of which a router on the way has decremented the time to live.
    fn quoted(known: &FakeSkb, len: usize) -> Vec<u8> {
        known.count_down();
        known.bytes()[14..14 + len].to_vec()
    }

    #[test]
    fn an_error_from_the_way_goes_to_the_sender_with_the_packet_that_it_sent() {
        for is_answer in [false, true] {
            for Sent { fake, known, left } in sent(is_answer) {
                let (is_v4, sender) = (known.packet().is_v4, known.packet().key.src);
                let (header, types) = if is_v4 { (20, &[3, 4, 11, 12][..]) } else { (40, &[1, 2, 3, 4][..]) };
                let all = left.bytes().len() - 14;
                let quote = quoted(&known, all);
                for len in [header + 8, all] {
                    for kind in types {
                        let error = left.error(router(is_v4), *kind, len);
                        assert_eq!(ingress(&fake, &error), REDIRECTED, "{kind}");
                        assert_eq!(error.assert_error(), quote[..len], "{kind}");
                        assert_eq!(error.addresses(), (router(is_v4), sender));
                    }
                }
                assert!(fake.counts.borrow().is_empty());
            }
        }
    }

    #[test]
    fn an_error_from_the_receiver_comes_from_the_address_that_the_sender_knows() {
        for is_answer in [false, true] {
            for Sent { fake, known, left } in sent(is_answer) {
                let error = left.error(left.packet().key.dst, 3, left.bytes().len() - 14);
                assert_eq!(ingress(&fake, &error), REDIRECTED);
                error.assert_error();
                let key = known.packet().key;
                assert_eq!(error.addresses(), (key.dst, key.src));
            }
        }
    }

    #[test]
    fn errors_pass_the_filter_though_their_addresses_are_unknown() {
        for Sent { fake, known, left } in sent(false) {
            let error = left.error(router(known.packet().is_v4), 3, left.bytes().len() - 14);
            let (src, dst) = error.addresses();
            fake.strangers.borrow_mut().extend([src, dst]);
            assert_eq!(ingress(&fake, &error), REDIRECTED);
        }
    }

    #[test]
    fn a_quoted_datagram_without_a_checksum_stays_without_one() {
        let Sent { fake, left, .. } = sent(false).swap_remove(1);
        left.set_byte(40, 0);
        left.set_byte(41, 0);
        let error = left.error(router(true), 3, 28);
        assert_eq!(ingress(&fake, &error), REDIRECTED);
        assert_eq!(error.assert_error()[26..], [0, 0]);
    }

    #[test]
    fn a_quote_is_found_behind_options_and_extension_headers() {
        for Sent { fake, known, left } in sent(false) {
            for skb in [&known, &left] {
                if known.packet().is_v4 {
                    skb.add_ip_option();
                } else {
                    skb.add_extension(60, 0);
                }
            }
            let all = left.bytes().len() - 14;
            let error = left.error(router(known.packet().is_v4), 3, all);
            assert_eq!(ingress(&fake, &error), REDIRECTED);
            assert_eq!(error.assert_error(), quoted(&known, all));
        }
    }

    #[test]
    fn what_is_no_error_about_a_packet_of_ours_passes_untouched() {
        type Change = fn(&FakeSkb);
        let changes_v4: [(&str, Change); 8] = [
            ("an echo", |skb| skb.set_byte(34, 8)),
            ("a redirect", |skb| skb.set_byte(34, 5)),
            ("a quote of another flow", |skb| skb.set_byte(63, 1)),
            ("a quote from another sender", |skb| skb.set_byte(57, 77)),
            ("a quote of an error", |skb| skb.set_byte(51, 1)),
            ("a quote of a later fragment", |skb| skb.set_byte(49, 1)),
            ("an error in fragments", |skb| skb.set_byte(20, 0x20)),
            ("an error at the end of its way", |skb| skb.set_byte(22, 1)),
        ];
        let changes_v6: [(&str, Change); 5] = [
            ("an echo", |skb| skb.set_byte(54, 128)),
            ("a neighbour advertisement", |skb| skb.set_byte(54, 136)),
            ("a quote of another flow", |skb| skb.set_byte(103, 1)),
            ("a quote from another sender", |skb| skb.set_byte(85, 77)),
            ("a quote of an error", |skb| skb.set_byte(68, 58)),
        ];
        for (at, changes) in [(1, &changes_v4[..]), (3, &changes_v6[..])] {
            for (what, change) in changes {
                let Sent { fake, known, left } = sent(false).swap_remove(at);
                let error = left.error(router(known.packet().is_v4), 3, left.bytes().len() - 14);
                change(&error);
                let before = error.bytes();
                assert_eq!(ingress(&fake, &error), PASS, "{what}");
                assert_eq!(error.bytes(), before, "{what}");
            }
        }
    }

    #[test]
    fn an_error_that_is_cut_short_is_left_alone() {
        for Sent { fake, known, left } in sent(false) {
            let is_v4 = known.packet().is_v4;
            let needed = if is_v4 { 20 + 8 } else { 40 + 8 };
            for len in 0..needed {
                let error = left.error(router(is_v4), 3, len);
                let before = error.bytes();
                assert_eq!(ingress(&fake, &error), PASS, "{len}");
                assert_eq!(error.bytes(), before);
            }
            let error = left.error(router(is_v4), 3, needed);
            error.truncate(error.bytes().len() - 1);
            assert_eq!(ingress(&fake, &error), PASS, "an error that says that it is longer than its frame");
        }
    }

    #[test]
    fn an_error_that_cannot_be_rewritten_is_dropped_and_counted() {
        let Sent { fake, left, .. } = sent(false).swap_remove(0);
        let error = left.error(router(true), 3, 28);
        error.refuse_stores.set(true);
        assert_eq!(ingress(&fake, &error), DROP);
        assert_eq!(*fake.counts.borrow(), [(Reason::PacketNotRewritten, 1)].into());
    }

    #[test]
    fn an_error_neither_starts_nor_prolongs_a_flow() {
        let Sent { fake, left, .. } = sent(false).swap_remove(0);
        let before: Vec<_> = fake.flows.borrow().iter().map(|(key, value)| (*key, value.get())).collect();
        fake.now.set(77);
        assert_eq!(ingress(&fake, &left.error(router(true), 3, 40)), REDIRECTED);
        for (key, value) in before {
            assert_eq!(fake.flows.borrow()[&key].get(), value);
        }
        assert_eq!(fake.flows.borrow().len(), 2);
    }
}
