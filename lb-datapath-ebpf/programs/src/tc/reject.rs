//! Answers a packet for a frontend without backends, from the packet itself.

use aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM;

use super::{
    header::ETHERNET,
    icmp::{HEADERS_V4, HEADERS_V6, QUOTE_V4, QUOTE_V6, unreachable_v4, unreachable_v6},
    reset::{RESET_V4, RESET_V6, reset_v4, reset_v6},
    skb::{Refused, Skb},
};

const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;
const WORD: u32 = 4;
const QUOTE_AT_V4: u32 = ETHERNET + WORD * HEADERS_V4 as u32;
const QUOTE_AT_V6: u32 = ETHERNET + WORD * HEADERS_V6 as u32;

/// Turns the packet into the answer to it: a reset (TCP) or "port unreachable" (UDP). Returns whether that worked.
///
/// Each answer is a function of its own in the kernel. Together they would need a stack frame that does not fit beside
/// the caller's: older kernels round each frame up to 32 bytes and refuse more than 512 for a chain of calls.
#[inline(always)]
pub fn reject<S: Skb>(skb: S, is_v4: bool, is_udp: bool, transport: u32) -> bool {
    let answered = match (is_v4, is_udp) {
        // An answer to a packet with options would have to be built around them.
        (true, _) if transport != ETHERNET + 20 => Err(Refused),
        (true, true) => unreachable_to_v4(skb),
        (true, false) => reset_to_v4(skb),
        (false, true) => unreachable_to_v6(skb),
        (false, false) => reset_to_v6(skb),
    };
    answered.and_then(|()| turn(skb)).is_ok()
}

#[inline(never)]
fn reset_to_v4<S: Skb>(skb: S) -> Result<(), Refused> {
    let request: [u32; RESET_V4] = skb.load(ETHERNET).ok_or(Refused)?;
    let reply = reset_v4(&request).ok_or(Refused)?;
    skb.resize(ETHERNET + WORD * RESET_V4 as u32)?;
    skb.store(ETHERNET, &reply, RECOMPUTE)
}

#[inline(never)]
fn reset_to_v6<S: Skb>(skb: S) -> Result<(), Refused> {
    let request: [u32; RESET_V6] = skb.load(ETHERNET).ok_or(Refused)?;
    let reply = reset_v6(&request).ok_or(Refused)?;
    skb.resize(ETHERNET + WORD * RESET_V6 as u32)?;
    skb.store(ETHERNET, &reply, RECOMPUTE)
}

#[inline(never)]
fn unreachable_to_v4<S: Skb>(skb: S) -> Result<(), Refused> {
    let quote: [u32; QUOTE_V4] = skb.load(ETHERNET).ok_or(Refused)?;
    skb.resize(QUOTE_AT_V4 + WORD * QUOTE_V4 as u32)?;
    skb.store(ETHERNET, &unreachable_v4(&quote), RECOMPUTE)?;
    skb.store(QUOTE_AT_V4, &quote, RECOMPUTE)
}

#[inline(never)]
fn unreachable_to_v6<S: Skb>(skb: S) -> Result<(), Refused> {
    let quote: [u32; QUOTE_V6] = skb.load(ETHERNET).ok_or(Refused)?;
    skb.resize(QUOTE_AT_V6 + WORD * QUOTE_V6 as u32)?;
    skb.store(ETHERNET, &unreachable_v6(&quote), RECOMPUTE)?;
    skb.store(QUOTE_AT_V6, &quote, RECOMPUTE)
}

/// Turns the Ethernet header around.
#[inline(never)]
fn turn<S: Skb>(skb: S) -> Result<(), Refused> {
    let [a, b, c]: [u32; 3] = skb.load(0).ok_or(Refused)?;
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
        let packet = skb.packet();
        reject(skb, packet.is_v4, packet.is_udp(), packet.transport)
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
    fn an_answer_that_cannot_be_built_is_said_to_be_none() {
        assert!(!rejected(&FakeSkb::tcp_v4(RST)));
        let skb = FakeSkb::udp_v4();
        skb.add_ip_option();
        assert!(!rejected(&skb));
        let skb = FakeSkb::udp_v6();
        skb.refuse_stores.set(true);
        assert!(!rejected(&skb));
    }
}
