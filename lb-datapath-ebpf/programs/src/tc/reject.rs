//! Answers packets from the packets themselves.

use super::{
    icmp::{self, Message},
    packet::Packet,
    reset, sctp,
    skb::{Refused, Skb},
};

/// Turns a packet that is refused into the answer to it: a reset (TCP), an ABORT (SCTP) or "port unreachable" (UDP, and
/// ICMP echo requests).
/// Returns whether that worked.
///
/// The steps are functions of their own in the kernel. Together they would need a stack frame that does not fit beside
/// the caller's: older kernels round each frame up to 32 bytes and refuse more than 512 for a chain of calls.
#[inline(always)]
pub fn reject<S: Skb>(skb: S, packet: &Packet) -> bool {
    let answered = if packet.is_tcp() {
        reset::answer(skb, packet)
    } else if packet.is_sctp() {
        sctp::abort(skb, packet)
    } else {
        icmp::answer(skb, packet, Message::PortUnreachable)
    };
    answered.and_then(|()| turn(skb, packet)).is_ok()
}

/// Turns a packet that is longer than what the next device takes into the error about it. Returns whether that worked.
#[inline(always)]
pub fn too_big<S: Skb>(skb: S, packet: &Packet, mtu: u16) -> bool {
    icmp::answer(skb, packet, Message::TooBig(mtu)).and_then(|()| turn(skb, packet)).is_ok()
}

/// Turns the Ethernet header around, if there is one.
#[inline(never)]
pub(super) fn turn<S: Skb>(skb: S, packet: &Packet) -> Result<(), Refused> {
    if packet.start == 0 {
        return Ok(());
    }
    let [a, b, c]: [u32; 3] = skb.load_far(0).ok_or(Refused)?;
    let (to, from) = ((a as u64) | (b as u64 & 0xffff) << 32, (b as u64) >> 16 | (c as u64) << 16);
    skb.store(0, &[from as u32, (from >> 32) as u32 | (to as u32) << 16, (to >> 16) as u32], 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fake::FakeSkb,
        tc::header::{ACK, RST, SYN},
    };

    fn rejected(skb: &FakeSkb) -> bool {
        reject(skb, &skb.packet())
    }

    #[test]
    fn the_ethernet_header_is_turned_around() {
        let skb = FakeSkb::tcp_v4(SYN);
        let before = skb.bytes();
        assert!(rejected(&skb));
        let after = skb.bytes();
        assert_eq!((&after[..6], &after[6..12], &after[12..14]), (&before[6..12], &before[..6], &before[12..14]));
    }

    #[test]
    fn a_request_for_a_connection_is_reset_from_the_frontend() {
        for skb in [FakeSkb::tcp_v4(SYN), FakeSkb::tcp_v6(SYN)] {
            let asked = skb.packet();
            assert!(rejected(&skb));
            let answer = skb.packet();
            assert_eq!(answer.key, asked.key.mirror());
            assert_eq!(answer.flags, RST | ACK);
            assert_eq!(skb.bytes().len(), if asked.is_v4 { 54 } else { 74 });
            skb.assert_checksums();
        }
    }

    #[test]
    fn a_datagram_is_answered_with_port_unreachable_that_quotes_it() {
        let skb = FakeSkb::udp_v4();
        let asked = skb.bytes();
        assert!(rejected(&skb));
        let answer = skb.bytes();
        assert_eq!((answer[14 + 9], &answer[34..36], answer.len()), (1, &[3, 3][..], 70));
        assert_eq!((&answer[26..30], &answer[30..34]), (&asked[30..34], &asked[26..30]));
        assert_eq!(answer[42..], asked[14..42]);
        let skb = FakeSkb::udp_v6();
        let asked = skb.bytes();
        assert!(rejected(&skb));
        let answer = skb.bytes();
        assert_eq!((answer[14 + 6], &answer[54..56], answer.len()), (58, &[1, 4][..], 110));
        assert_eq!(answer[62..], asked[14..62]);
    }

    #[test]
    fn a_packet_with_options_or_extension_headers_is_answered_like_any_other() {
        for skb in [FakeSkb::tcp_v4(SYN), FakeSkb::tcp_v6(SYN), FakeSkb::udp_v4(), FakeSkb::udp_v6()] {
            if skb.packet().is_v4 {
                (0..10).for_each(|_| skb.add_ip_option());
            } else {
                (0..4).for_each(|_| skb.add_extension(60, 0));
            }
            let (asked, packet) = (skb.copy(), skb.packet());
            assert!(rejected(&skb));
            if packet.is_udp() {
                let quoted = (packet.transport - 14 + 8) as usize;
                assert_eq!(skb.assert_error(), asked.bytes()[14..14 + quoted]);
                assert_eq!(skb.addresses(), (packet.key.dst, packet.key.src));
            } else {
                assert_eq!((skb.packet().key, skb.packet().flags), (packet.key.mirror(), RST | ACK));
                skb.assert_checksums();
                assert_eq!(skb.bytes().len(), if packet.is_v4 { 54 } else { 74 });
            }
        }
    }

    #[test]
    fn the_sender_of_a_packet_that_is_too_big_hears_what_fits() {
        for (skb, message) in [
            (FakeSkb::tcp_v4(ACK), [3, 4]),
            (FakeSkb::udp_v4(), [3, 4]),
            (FakeSkb::tcp_v6(ACK), [2, 0]),
            (FakeSkb::udp_v6(), [2, 0]),
        ] {
            let (asked, packet) = (skb.copy(), skb.packet());
            skb.pad(1500);
            assert!(too_big(&skb, &packet, 1400));
            let at = packet.transport as usize;
            assert_eq!(skb.bytes()[at..at + 2], message);
            assert_eq!(skb.bytes()[at + 4..at + 8], [0, 0, 5, 0x78]);
            assert_eq!(skb.assert_error(), asked.bytes()[14..at + 8]);
            assert_eq!(skb.addresses(), (packet.key.dst, packet.key.src));
        }
    }

    #[test]
    fn an_answer_that_cannot_be_built_is_said_to_be_none() {
        assert!(!rejected(&FakeSkb::tcp_v4(RST)));
        for skb in [FakeSkb::tcp_v4(SYN), FakeSkb::tcp_v6(SYN), FakeSkb::udp_v4(), FakeSkb::udp_v6()] {
            skb.refuse_stores.set(true);
            assert!(!rejected(&skb));
        }
    }
}
