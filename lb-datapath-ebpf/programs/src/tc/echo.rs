//! ICMP echo requests to addresses of frontends, which the node answers if it is asked to (RFC 792, RFC 4443).
//!
//! A request becomes its own reply: source and destination change places, the type becomes that of a reply, and the
//! time to live starts anew. So a reply is never longer than its request, and there is one for each: the node is no
//! amplifier, and its answers have no limit, as those of Linux itself have none (`icmp_ratemask` in
//! <https://www.kernel.org/doc/html/v6.18/networking/ip-sysctl.html>). Replies are never answered.
//!
//! Every fragment of a request becomes one of the reply.

use lb_datapath_ebpf_abi::{Addr, unmap_v4};

use super::{
    checksum::{difference, finish},
    header::Piece,
    packet::Packet,
    rewrite::{DESTINATION_V6, SOURCE_V6, START_V4, START_V6, header_v4, v4_words},
    skb::{RECOMPUTE, Refused, Skb},
    work::Work,
};

/// Type of an ICMP request.
const REQUEST_V4: u8 = 8;
/// Type of an ICMP reply.
const REPLY_V4: u8 = 0;
/// Type of an ICMPv6 request.
const REQUEST_V6: u8 = 128;
/// Type of an ICMPv6 reply.
const REPLY_V6: u8 = 129;
/// Time to live of a reply.
const TTL: u8 = 64;
/// Bytes of an IPv6 fragment header.
const FRAGMENT: u32 = 8;

/// Whether an ICMP message with this type and code is a request.
#[inline(always)]
#[must_use]
pub const fn is_request(kind: u8, code: u8, is_v4: bool) -> bool {
    kind == if is_v4 { REQUEST_V4 } else { REQUEST_V6 } && code == 0
}

/// Whether a request can become its own reply: it comes from one host, and has neither options nor extension headers,
/// which a reply must not repeat (RFC 1122, section 3.2.2.6; RFC 8200, section 4.4).
#[inline(always)]
#[must_use]
pub fn is_answerable(packet: &Packet, piece: Piece) -> bool {
    let fragment = (!packet.is_v4 && !matches!(piece, Piece::Whole)) as u32 * FRAGMENT;
    let fixed = if packet.is_v4 { 20 } else { 40 };
    packet.transport == packet.start + fixed + fragment && is_host(packet.key.src)
}

/// Whether an address may be that of one host, and of another one than this.
#[inline(always)]
const fn is_host(addr: Addr) -> bool {
    match unmap_v4(addr) {
        Some([first, ..]) => first != 0 && first != 127 && first < 224,
        None => {
            let [a, b, c, d] = addr;
            let is_low = a | b | c == 0 && u32::from_be(d) <= 1;
            a.to_ne_bytes()[0] != 0xff && !is_low
        }
    }
}

/// Turns the request, or a fragment of it, into the reply. The Ethernet header stays as it is.
///
/// # Errors
/// When the packet is cut short, or a helper refuses; the packet may be half of a reply then.
#[inline(never)]
pub fn answer<S: Skb>(skb: S, work: &Work) -> Result<(), Refused> {
    let (packet, start) = (&work.packet, work.packet.start);
    if packet.is_v4 {
        // The sum of the addresses stays what it is.
        let [dst, src] = v4_words(packet.key.src, packet.key.dst)?;
        let head = header_v4(skb, start, packet.ttl, TTL, 0)?;
        skb.store(start + START_V4, &[head, src, dst], 0)?;
    } else {
        skb.store(start + SOURCE_V6, &packet.key.dst, RECOMPUTE)?;
        skb.store(start + DESTINATION_V6, &packet.key.src, RECOMPUTE)?;
        let [l0, l1, next, _] = skb.load_far::<[u8; 4]>(start + START_V6).ok_or(Refused)?;
        skb.store(start + START_V6, &u32::from_ne_bytes([l0, l1, next, TTL]), RECOMPUTE)?;
    }
    if packet.is_later {
        return Ok(());
    }
    let reply = if packet.is_v4 { REPLY_V4 } else { REPLY_V6 };
    let old: u32 = skb.load_far(packet.transport).ok_or(Refused)?;
    let [kind, code, c0, c1] = old.to_ne_bytes();
    let change = difference(&[u32::from_ne_bytes([kind, 0, 0, 0])], &[u32::from_ne_bytes([reply, 0, 0, 0])]);
    let check = finish((!u16::from_ne_bytes([c0, c1]) as u32).wrapping_add(change));
    let [c0, c1] = check.to_ne_bytes();
    skb.store(packet.transport, &u32::from_ne_bytes([reply, code, c0, c1]), RECOMPUTE)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use lb_datapath_ebpf_abi::{
        ADDRESS_ANSWERS_PING, ADDRESS_DROPS, ADDRESS_REJECTS, LOOKUP_HASH, ROLE_DRAINING, Reason, from_octets, map_v4,
    };

    use super::*;
    use crate::{
        fake::{Fake, FakeSkb, SENT_BACK, TURNED_IN, VIP, VIP_V6, addr_of},
        tc::ingress::{DROP, PASS, egress, ingress},
    };

    /// A world whose addresses say this.
    fn saying(says: u8) -> Fake {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        fake.addresses.borrow_mut().extend([VIP, VIP_V6].map(|vip| (addr_of(vip), says)));
        fake
    }

    fn pings(payload: usize) -> [FakeSkb; 2] {
        [FakeSkb::ping_v4(payload), FakeSkb::ping_v6(payload)]
    }

    /// Type and code, and what follows the checksum.
    fn message(skb: &FakeSkb) -> (Vec<u8>, Vec<u8>) {
        let bytes = skb.bytes();
        let at = if bytes[12] == 0x08 { 34 } else { 54 };
        (bytes[at..at + 2].to_vec(), bytes[at + 4..].to_vec())
    }

    #[test]
    fn a_request_comes_back_as_its_reply_with_a_new_time_to_live() {
        for (skb, kind) in pings(56).into_iter().zip([0, 129]) {
            for ttl in [1, 64, 200] {
                let asked = skb.copy();
                asked.set_ttl(ttl);
                let (before, (src, dst)) = (asked.bytes(), asked.addresses());
                assert_eq!(ingress(&saying(ADDRESS_ANSWERS_PING), &asked), SENT_BACK);
                assert_eq!(asked.addresses(), (dst, src));
                assert_eq!((message(&asked).0, message(&asked).1), (Vec::from([kind, 0]), message(&skb).1));
                assert_eq!(asked.ttl(), TTL);
                asked.assert_error();
                let after = asked.bytes();
                assert_eq!((&after[..6], &after[6..12]), (&before[6..12], &before[..6]));
                assert_eq!(after.len(), before.len());
            }
        }
    }

    #[test]
    fn every_fragment_of_a_request_becomes_one_of_the_reply() {
        for (v4, whole) in [(true, FakeSkb::ping_v4(80)), (false, FakeSkb::ping_v6(80))] {
            let fake = saying(ADDRESS_ANSWERS_PING);
            let pieces = if v4 { FakeSkb::split_v4(&whole.bytes()) } else { FakeSkb::split_v6(&whole.bytes()) };
            let (src, dst) = whole.addresses();
            for piece in &pieces {
                assert_eq!(ingress(&fake, piece), SENT_BACK);
            }
            let reply = FakeSkb::join(&pieces[0], &pieces[1]);
            assert_eq!(reply.addresses(), (dst, src));
            assert_eq!(message(&reply).1, message(&whole).1);
            reply.assert_error();
        }
    }

    #[test]
    fn a_later_fragment_without_its_first_passes() {
        for (v4, whole) in [(true, FakeSkb::ping_v4(80)), (false, FakeSkb::ping_v6(80))] {
            let [_, later] = if v4 { FakeSkb::split_v4(&whole.bytes()) } else { FakeSkb::split_v6(&whole.bytes()) };
            let before = later.bytes();
            assert_eq!(ingress(&saying(ADDRESS_ANSWERS_PING), &later), PASS);
            assert_eq!(later.bytes(), before);
        }
    }

    #[test]
    fn a_request_that_nobody_answers_is_refused_dropped_or_passed_like_another_port() {
        for skb in pings(8) {
            for (says, verdict, reason) in [
                (ADDRESS_REJECTS, SENT_BACK, Some(Reason::PacketOtherPort)),
                (ADDRESS_DROPS, DROP, Some(Reason::PacketOtherPortDropped)),
                (0, PASS, None),
            ] {
                let (fake, asked) = (saying(says), skb.copy());
                assert_eq!(ingress(&fake, &asked), verdict, "{says}");
                assert_eq!(fake.counts.borrow().keys().copied().next(), reason);
                if verdict == SENT_BACK {
                    let all = skb.bytes();
                    let header = if all[12] == 0x08 { 20 } else { 40 };
                    assert_eq!(asked.assert_error(), all[14..14 + header + 8], "port unreachable");
                }
            }
        }
    }

    #[test]
    fn the_node_itself_hears_the_reply_through_the_device_that_it_asked_through() {
        for skb in pings(8) {
            skb.came_in.set(false);
            assert_eq!(egress(&saying(ADDRESS_ANSWERS_PING), &skb), TURNED_IN);
        }
    }

    #[test]
    fn replies_and_requests_to_other_addresses_pass_untouched() {
        let reply = FakeSkb::ping_v4(8);
        reply.set_byte(34, 0);
        let other_code = FakeSkb::ping_v6(8);
        other_code.set_byte(55, 1);
        let elsewhere = FakeSkb::ping_v4(8);
        elsewhere.set_byte(33, 9);
        for skb in [reply, other_code, elsewhere] {
            let before = skb.bytes();
            assert_eq!(ingress(&saying(ADDRESS_ANSWERS_PING), &skb), PASS);
            assert_eq!(skb.bytes(), before);
        }
    }

    #[test]
    fn a_datapath_that_takes_no_new_flows_answers_nobody() {
        let fake = saying(ADDRESS_ANSWERS_PING);
        fake.role.set(ROLE_DRAINING);
        for skb in pings(8) {
            assert_eq!(ingress(&fake, &skb), PASS);
        }
    }

    #[test]
    fn a_request_with_options_or_from_no_single_host_is_not_answered() {
        let fake = saying(ADDRESS_ANSWERS_PING | ADDRESS_DROPS);
        let with_options = FakeSkb::ping_v4(8);
        with_options.add_ip_option();
        let with_extension = FakeSkb::ping_v6(8);
        with_extension.add_extension(60, 0);
        let from = |at: usize, byte: u8| {
            let skb = if at < 30 { FakeSkb::ping_v4(8) } else { FakeSkb::ping_v6(8) };
            skb.set_byte(at, byte);
            skb
        };
        // The first byte of the IPv4 source is at 26, that of the IPv6 source at 22: the destination of IPv4 is at 30.
        for skb in [with_options, with_extension, from(26, 224), from(26, 255), from(26, 0), from(26, 127)] {
            assert_eq!(ingress(&fake, &skb), DROP);
        }
        let multicast = FakeSkb::ping_v6(8);
        multicast.set_byte(22, 0xff);
        assert_eq!(ingress(&fake, &multicast), DROP);
    }

    #[test]
    fn addresses_of_one_host_are_told_from_others() {
        let low = |last| from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        for (addr, expected) in [
            (map_v4([192, 0, 2, 1]), true),
            (map_v4([223, 255, 255, 255]), true),
            (map_v4([0, 0, 0, 0]), false),
            (map_v4([127, 0, 0, 1]), false),
            (map_v4([239, 1, 2, 3]), false),
            (map_v4([255; 4]), false),
            (low(0), false),
            (low(1), false),
            (low(2), true),
            (from_octets([0xfe; 16]), true),
            (from_octets([0xff; 16]), false),
        ] {
            assert_eq!(is_host(addr), expected, "{addr:?}");
        }
    }

    #[test]
    fn a_request_that_is_cut_short_is_none() {
        for (skb, header) in pings(0).into_iter().zip([34, 54]) {
            for len in header..header + 4 {
                let cut = skb.copy();
                cut.truncate(len);
                assert_eq!(ingress(&saying(ADDRESS_ANSWERS_PING | ADDRESS_DROPS), &cut), PASS, "{len} bytes");
            }
        }
    }
}
