//! SCTP (RFC 9260), whose packets get other addresses and keep their ports.
//!
//! The checksum of an SCTP packet is a CRC32c over all of it, and over nothing of the IP header. So it stays right when
//! addresses change, and no program can make up for another port.
//!
//! The first chunk of a packet says where an association is. It is read as the flags of TCP that mean the same, so that
//! flows of both protocols have the same states.

use lb_datapath_ebpf_abi::CtKey;

use super::{
    checksum::{finish, sum},
    header::{ACK, FIN, RST, SYN},
    packet::Packet,
    rewrite::v4_words,
    skb::{RECOMPUTE, Refused, Skb},
};
use crate::protocol::SCTP;

/// Bytes of the common header, and of the first chunk's header: fewest of a packet.
pub const LEAST: u32 = 16;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const SHUTDOWN_COMPLETE: u8 = 14;

/// The flags of TCP that stand for a first chunk of this type.
///
/// INIT asks for an association and INIT ACK answers; SHUTDOWN and its acknowledgement are the ends of the two sides;
/// ABORT and SHUTDOWN COMPLETE end it at once, and nobody answers them. All other chunks belong to an association.
#[inline(always)]
#[must_use]
pub const fn flags_of(chunk: u8) -> u8 {
    if chunk == INIT {
        SYN
    } else if chunk == INIT_ACK {
        SYN | ACK
    } else if chunk == SHUTDOWN || chunk == SHUTDOWN_ACK {
        FIN | ACK
    } else if chunk == ABORT || chunk == SHUTDOWN_COMPLETE {
        RST
    } else {
        ACK
    }
}

/// Bytes of an answer, its IP header included.
const SIZE_V4: u32 = 20 + LEAST;
/// The same for IPv6.
const SIZE_V6: u32 = 40 + LEAST;
/// The verification tag in the answer is that of the packet.
const TAG_REFLECTED: u8 = 1;

/// Turns the packet into an ABORT for its association (RFC 9260, section 8.4). What is before its IP header stays as it
/// is, and options and extension headers go.
///
/// ICMP would not do: section 10 asks receivers to ignore "port unreachable".
///
/// # Errors
/// When the packet is cut short or nobody answers it, or a helper refuses; the packet may be half of an answer then.
#[inline(never)]
pub fn abort<S: Skb>(skb: S, packet: &Packet) -> Result<(), Refused> {
    if packet.is_reset() {
        return Err(Refused);
    }
    let chunk = chunk(skb, packet).ok_or(Refused)?;
    let (CtKey { src, dst, .. }, start) = (&packet.key, packet.start);
    if packet.is_v4 {
        skb.resize(start + SIZE_V4)?;
        let [from, to] = v4_words(*dst, *src)?;
        let (version, fragment) =
            (u32::from_ne_bytes([0x45, 0, 0, SIZE_V4 as u8]), u32::from_ne_bytes([0, 0, 0x40, 0]));
        let ttl = u32::from_ne_bytes([64, SCTP, 0, 0]);
        let [h0, h1] = finish(sum(&[version, fragment, ttl, from, to])).to_ne_bytes();
        let ttl = u32::from_ne_bytes([64, SCTP, h0, h1]);
        skb.store(start, &[version, fragment, ttl, from, to], RECOMPUTE)?;
        return skb.store(start + 20, &chunk, RECOMPUTE);
    }
    skb.resize(start + SIZE_V6)?;
    let words = [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([0, LEAST as u8, SCTP, 64])];
    skb.store(start, &words, RECOMPUTE)?;
    skb.store(start + 8, dst, RECOMPUTE)?;
    skb.store(start + 24, src, RECOMPUTE)?;
    skb.store(start + 40, &chunk, RECOMPUTE)
}

/// The common header and the chunk of the answer. That to an INIT has the tag that its sender has chosen. That to any
/// other packet has the tag of the packet, and says so.
#[inline(never)]
fn chunk<S: Skb>(skb: S, packet: &Packet) -> Option<[u32; 4]> {
    let [ports, tag]: [u32; 2] = skb.load_far(packet.transport)?;
    let (tag, flags) =
        if packet.is_syn() { (skb.load_far(packet.transport.wrapping_add(LEAST))?, 0) } else { (tag, TAG_REFLECTED) };
    let ports = u32::from_be(ports).rotate_left(16).to_be();
    let chunk = u32::from_ne_bytes([ABORT, flags, 0, 4]);
    Some([ports, tag, checksum(ports, tag, chunk), chunk])
}

/// The checksum of the answer with these ports, tag and chunk, all as they lie in a packet (RFC 9260, appendix A): a CRC32c,
/// bit by bit, since there is no room for a table.
#[inline(never)]
fn checksum(ports: u32, tag: u32, chunk: u32) -> u32 {
    /// The polynomial, lowest bit first.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for word in [ports, tag, 0, chunk] {
        crc ^= u32::from_le(word);
        for _ in 0..u32::BITS {
            crc = crc >> 1 ^ core::hint::black_box(crc & 1).wrapping_mul(POLYNOMIAL);
        }
    }
    (!crc).to_le()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_datapath_ebpf_abi::{
        ADDRESS_REJECTS, Addr, CT_CUT, CtValue, FAMILY_V4, Port, Reason, SCTP_CLOSED_NS, SCTP_IDLE_NS, SCTP_NEW_NS,
        TARGET_REJECT, map_v4,
    };

    use super::*;
    use crate::{
        fake::{Fake, FakeSkb, NODE, REDIRECTED, SENT_BACK, VIP, VIP_V6, addr_of, backend, backend_v6},
        tc::{
            ingress::{DROP, PASS, ingress},
            skb::Unrouted,
        },
    };

    const DATA: u8 = 0;
    const COOKIE_ECHO: u8 = 10;

    /// Makes a packet whose first chunk is of this type.
    type Make = fn(u8) -> FakeSkb;

    const FAMILIES: [(Make, IpAddr); 2] = [(FakeSkb::sctp_v4, VIP), (FakeSkb::sctp_v6, VIP_V6)];

    fn backend_of(vip: IpAddr) -> Addr {
        if vip.is_ipv4() { backend(1).0 } else { backend_v6(1) }
    }

    fn from_port(make: Make, chunk: u8, port: u16) -> FakeSkb {
        let skb = make(chunk);
        skb.set_source_port(port);
        skb
    }

    /// An answer of the backend to what was sent as `out`, whose first chunk is of this type.
    fn answer_to(out: &FakeSkb, chunk: u8) -> FakeSkb {
        let skb = out.copy();
        skb.answer();
        skb.set_chunk(chunk);
        skb
    }

    /// A client with this port sets an association up; returns the INIT as the backend gets it.
    fn associate(fake: &Fake, make: Make, port: u16) -> FakeSkb {
        let init = from_port(make, INIT, port);
        assert_eq!(ingress(fake, &init), REDIRECTED);
        assert_eq!(ingress(fake, &answer_to(&init, INIT_ACK)), REDIRECTED);
        assert_eq!(ingress(fake, &from_port(make, COOKIE_ECHO, port)), REDIRECTED);
        init
    }

    #[test]
    fn chunks_stand_for_flags() {
        for (chunk, flags) in [(1, SYN), (2, SYN | ACK), (6, RST), (14, RST), (7, FIN | ACK), (8, FIN | ACK)] {
            assert_eq!(flags_of(chunk), flags, "{chunk}");
        }
        assert!([0, 3, 4, 5, 9, 10, 11, 12, 13, 15, 64, 130, 192, 255].into_iter().all(|chunk| flags_of(chunk) == ACK));
    }

    #[test]
    fn an_association_reaches_its_backend_with_its_port_and_its_checksum() {
        for (make, vip) in FAMILIES {
            let fake = Fake::serving_sctp(vip, &[1]);
            let asked = make(INIT);
            let out = associate(&fake, make, 40_000);
            let (key, node) = (out.packet().key, crate::fake::node());
            let source = if vip.is_ipv4() { node.snat_v4 } else { node.snat_v6 };
            assert_eq!((key.src, key.dst), (source, backend_of(vip)));
            assert_eq!((key.sport.number(), key.dport.number(), out.packet().ttl), (40_000, 80, 63));
            out.assert_checksums();
            let back = answer_to(&out, DATA);
            assert_eq!(ingress(&fake, &back), REDIRECTED);
            assert_eq!(back.packet().key, asked.packet().key.mirror());
            back.assert_checksums();
            assert_eq!((fake.flows.borrow().len(), fake.live.borrow().len()), (0, 2), "established");
            assert!(fake.counts.borrow().is_empty());
        }
    }

    #[test]
    fn a_port_that_another_client_has_at_the_same_backend_is_refused_and_counted() {
        for (make, vip) in FAMILIES {
            let fake = Fake::serving_sctp(vip, &[1]);
            let out = associate(&fake, make, 40_000);
            let other = make(INIT);
            other.set_last_of_source(99);
            let before = other.bytes();
            assert_eq!((ingress(&fake, &other), other.bytes()), (DROP, before));
            assert_eq!(*fake.counts.borrow(), [(Reason::PacketSctpPortTaken, 1)].into());
            assert_eq!(ingress(&fake, &answer_to(&out, DATA)), REDIRECTED, "the older association lives");
            let free = from_port(make, INIT, 40_001);
            free.set_last_of_source(99);
            assert_eq!(ingress(&fake, &free), REDIRECTED);
        }
    }

    #[test]
    fn a_port_is_free_again_once_its_association_is_closed_or_silent() {
        type End = fn(&Fake, &FakeSkb);
        let ends: [(End, u64); 3] = [
            (|fake, out| assert_eq!(ingress(fake, &answer_to(out, ABORT)), REDIRECTED), 0),
            (
                |fake, out| {
                    assert_eq!(ingress(fake, &FakeSkb::sctp_v4(SHUTDOWN)), REDIRECTED);
                    assert_eq!(ingress(fake, &answer_to(out, SHUTDOWN_ACK)), REDIRECTED);
                    assert_eq!(ingress(fake, &FakeSkb::sctp_v4(SHUTDOWN_COMPLETE)), REDIRECTED, "still on its way");
                },
                0,
            ),
            (|_, _| {}, SCTP_IDLE_NS),
        ];
        for (end, silence) in ends {
            let fake = Fake::serving_sctp(VIP, &[1]);
            let out = associate(&fake, FakeSkb::sctp_v4, 40_000);
            end(&fake, &out);
            let init = || {
                let skb = FakeSkb::sctp_v4(INIT);
                skb.set_last_of_source(99);
                skb
            };
            if silence > 0 {
                fake.now.set(silence - 1);
                assert_eq!(ingress(&fake, &init()), DROP);
                fake.now.set(silence);
            }
            assert_eq!(ingress(&fake, &init()), REDIRECTED);
        }
    }

    #[test]
    fn an_init_that_is_never_answered_keeps_its_port_for_three_seconds() {
        let fake = Fake::serving_sctp(VIP, &[1]);
        assert_eq!(ingress(&fake, &FakeSkb::sctp_v4(INIT)), REDIRECTED);
        for (now, verdict) in [(SCTP_NEW_NS - 1, DROP), (SCTP_NEW_NS, REDIRECTED)] {
            fake.now.set(now);
            let other = FakeSkb::sctp_v4(INIT);
            other.set_last_of_source(99);
            assert_eq!(ingress(&fake, &other), verdict);
        }
    }

    #[test]
    fn states_of_a_flow_live_as_long_as_those_of_conntrack() {
        let sides = |client, server| CtValue { client, server, ..CtValue::EMPTY };
        for (value, seconds) in [
            (sides(0, 0), 3),
            (sides(0, 1), 3),
            (sides(1, 1), 210),
            (sides(1 | 2, 1), 3),
            (sides(1, 1 | 2), 3),
            (CtValue { flags: CT_CUT, ..sides(1, 1) }, 10),
        ] {
            assert_eq!(value.lifetime(SCTP), seconds * 1_000_000_000, "{value:?}");
        }
        assert_eq!(SCTP_CLOSED_NS, 10_000_000_000);
    }

    #[test]
    fn only_an_init_starts_a_flow() {
        for (make, vip) in FAMILIES {
            for chunk in [DATA, INIT_ACK, 4, ABORT, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, SHUTDOWN_COMPLETE] {
                let fake = Fake::serving_sctp(vip, &[1]);
                assert_eq!(ingress(&fake, &make(chunk)), DROP, "{chunk}");
                assert!(fake.flows.borrow().is_empty());
                assert_eq!(*fake.counts.borrow(), [(Reason::PacketStraySctp, 1)].into());
            }
        }
    }

    #[test]
    fn a_stray_packet_to_another_port_of_an_address_is_dropped_and_an_init_is_refused() {
        let fake = Fake::new();
        fake.addresses.borrow_mut().insert(addr_of(VIP), ADDRESS_REJECTS);
        assert_eq!(ingress(&fake, &FakeSkb::sctp_v4(DATA)), DROP);
        assert_eq!(ingress(&fake, &FakeSkb::sctp_v4(INIT)), SENT_BACK);
        let counts = [(Reason::PacketOtherPort, 1), (Reason::PacketStraySctp, 1)];
        assert_eq!(*fake.counts.borrow(), counts.into());
    }

    #[test]
    fn a_service_without_backends_aborts_the_association_that_a_client_asks_for() {
        for (make, vip) in FAMILIES {
            let fake = Fake::serving_sctp(vip, &[1]);
            fake.change_sctp(vip, |frontend| frontend.target = TARGET_REJECT);
            let skb = make(INIT);
            if vip.is_ipv4() {
                skb.add_ip_option();
            } else {
                skb.add_extension(60, 0);
            }
            let asked = skb.packet();
            assert_eq!(ingress(&fake, &skb), SENT_BACK);
            let (answer, bytes) = (skb.packet(), skb.bytes());
            assert_eq!((answer.key, answer.flags, answer.ttl), (asked.key.mirror(), RST, 64));
            let at = answer.transport as usize;
            assert_eq!(bytes[at + 4..at + 8], [0x0a, 0x0b, 0x0c, 0x0d], "the tag that the client has chosen");
            assert_eq!(bytes[at + 12..], [ABORT, 0, 0, 4]);
            skb.assert_checksums();
            assert_eq!(*fake.counts.borrow(), [(Reason::PacketNoBackends, 1)].into());
        }
    }

    #[test]
    fn both_ends_of_an_association_that_was_cut_are_told() {
        for (make, vip) in FAMILIES {
            let fake = Fake::serving_sctp(vip, &[1]);
            let out = associate(&fake, make, 40_000);
            fake.cut_all();
            for skb in [make(DATA), answer_to(&out, DATA)] {
                let asked = skb.packet();
                assert_eq!(ingress(&fake, &skb), SENT_BACK);
                let (answer, bytes) = (skb.packet(), skb.bytes());
                assert_eq!((answer.key, answer.flags), (asked.key.mirror(), RST));
                let at = answer.transport as usize;
                assert_eq!(bytes[at + 4..at + 8], [1, 2, 3, 4], "the tag of the packet");
                assert_eq!(bytes[at + 12..], [ABORT, TAG_REFLECTED, 0, 4]);
                skb.assert_checksums();
            }
            assert_eq!(ingress(&fake, &make(ABORT)), REDIRECTED, "the end itself is passed on");
        }
    }

    #[test]
    fn an_error_about_a_packet_of_an_association_goes_to_its_sender() {
        for (make, vip) in FAMILIES {
            let fake = Fake::serving_sctp(vip, &[1]);
            let (known, out) = (make(INIT), associate(&fake, make, 40_000));
            known.count_down();
            let header = if vip.is_ipv4() { 20 } else { 40 };
            for len in [header + 8, header + 32] {
                let kind = if vip.is_ipv4() { 3 } else { 2 };
                let router = if vip.is_ipv4() { map_v4([203, 0, 113, 7]) } else { backend_v6(77) };
                let error = out.error(router, kind, len);
                assert_eq!(ingress(&fake, &error), REDIRECTED);
                assert_eq!(error.assert_error(), known.bytes()[14..14 + len]);
                assert_eq!(error.addresses(), (router, known.packet().key.src));
            }
        }
    }

    #[test]
    fn every_fragment_of_a_packet_is_translated() {
        for (make, vip) in FAMILIES {
            let fake = Fake::serving_sctp(vip, &[1]);
            let whole = make(INIT);
            let pieces =
                if vip.is_ipv4() { FakeSkb::split_v4(&whole.bytes()) } else { FakeSkb::split_v6(&whole.bytes()) };
            for piece in &pieces {
                assert_eq!(ingress(&fake, piece), REDIRECTED);
            }
            let out = FakeSkb::join(&pieces[0], &pieces[1]);
            assert_eq!((out.packet().key.dst, out.packet().key.dport), (backend_of(vip), Port::new(80)));
            out.assert_checksums();
        }
    }

    #[test]
    fn a_pod_keeps_its_source_and_gets_another_address_if_it_is_its_own_backend() {
        let fake = Fake::serving_sctp(VIP, &[1]);
        let pod = FakeSkb::sctp_v4(INIT);
        fake.pods.borrow_mut().extend([(pod.packet().key.src, FAMILY_V4), (backend(1).0, FAMILY_V4)]);
        let own = pod.copy();
        assert_eq!(ingress(&fake, &pod), REDIRECTED);
        assert_eq!(pod.packet().key.src, map_v4([192, 0, 2, 2]));
        own.set_source_of(backend(1).0);
        assert_eq!(ingress(&fake, &own), REDIRECTED);
        assert_eq!((own.packet().key.src, own.packet().key.sport.number()), (map_v4(NODE), 40_000));
        own.assert_checksums();
    }

    #[test]
    fn a_packet_is_never_sent_to_another_port() {
        let (fake, skb) = (Fake::serving_sctp(VIP, &[1]), FakeSkb::sctp_v4(INIT));
        fake.backends.borrow_mut().values_mut().for_each(|backend| backend.port = Port::new(81));
        assert_eq!(ingress(&fake, &skb), DROP);
        assert_eq!(*fake.counts.borrow(), [(Reason::PacketNotRewritten, 1)].into());
    }

    #[test]
    fn a_packet_without_a_whole_chunk_header_is_left_alone() {
        for (make, vip) in FAMILIES {
            let whole = make(INIT);
            let start = whole.packet().transport as usize;
            for len in start..start + LEAST as usize {
                let (fake, cut) = (Fake::serving_sctp(vip, &[1]), whole.copy());
                cut.truncate(len);
                assert_eq!(ingress(&fake, &cut), PASS, "{len}");
            }
        }
    }

    #[test]
    fn packets_that_a_device_has_merged_are_not_judged_by_a_length_that_none_of_them_has() {
        // `GSO_BY_FRAGS`
        let skb = FakeSkb::sctp_v4(DATA);
        skb.segment.set(0xffff);
        skb.pad(3000);
        assert_eq!(skb.packet().len, 0);
    }

    #[test]
    fn a_packet_that_is_too_long_is_answered_with_what_fits() {
        for (make, vip) in FAMILIES {
            let fake = Fake::serving_sctp(vip, &[1]);
            let skb = make(INIT);
            skb.routes.set(Err(Unrouted::TooBig(1400)));
            let asked = skb.bytes();
            assert_eq!(ingress(&fake, &skb), SENT_BACK);
            let header = if vip.is_ipv4() { 20 } else { 40 };
            assert_eq!(skb.assert_error(), asked[14..14 + header + 8], "its ports and its tag");
        }
    }

    #[test]
    fn the_checksum_is_that_of_the_castagnoli_polynomial() {
        assert_eq!(crate::fake::crc32c(&[0; 32]), 0x8a91_36aa, "RFC 3720, appendix B.4");
        let chunks = [0, TAG_REFLECTED].map(|flags| u32::from_ne_bytes([ABORT, flags, 0, 4]));
        for (ports, tag) in [(0, 0), (u32::MAX, 0), (0, u32::MAX), (0x0102_0304, 0xfefd_fcfb), (1, 1 << 31)] {
            for chunk in chunks {
                let bytes: std::vec::Vec<u8> = [ports, tag, 0, chunk].into_iter().flat_map(u32::to_ne_bytes).collect();
                assert_eq!(checksum(ports, tag, chunk).to_le_bytes(), crate::fake::crc32c(&bytes).to_le_bytes());
            }
        }
    }
}
