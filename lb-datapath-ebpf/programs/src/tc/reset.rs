//! The answer to a TCP segment for a frontend without backends: a reset (RFC 9293, section 3.10.7.1).
//!
//! ICMP would not do. On the same machine, the error arrives while the client is still inside `connect` and holds its
//! socket. The kernel then keeps it as a soft error, and `connect` waits for its time-out ([`tcp_v4_err`]). A reset
//! goes to the backlog of the socket instead.
//!
//! [`tcp_v4_err`]: https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp_ipv4.c

use lb_datapath_ebpf_abi::CtKey;

use super::{
    checksum::{finish, sum},
    header::{ACK, FIN, RST, SYN},
    packet::Packet,
    rewrite::v4_words,
    skb::{RECOMPUTE, Refused, Skb},
};
use crate::protocol::TCP;

/// Bytes of a TCP header without options.
const LEN: u8 = 20;
/// Bytes of the answer, without the Ethernet header.
const SIZE_V4: u32 = 40;
/// The same for IPv6.
const SIZE_V6: u32 = 60;

/// Turns the packet into a reset of its connection. Its Ethernet header stays as it is, and options and extension headers
/// go.
///
/// # Errors
/// When the packet is a reset itself or too short, or a helper refuses; the packet may be half of an answer then.
#[inline(never)]
pub fn answer<S: Skb>(skb: S, packet: &Packet) -> Result<(), Refused> {
    let start = packet.start;
    let segment = packet.len.saturating_sub(packet.transport.wrapping_sub(start));
    let tcp = skb.load_far(packet.transport).ok_or(Refused)?;
    let CtKey { src, dst, .. } = &packet.key;
    let reset = reset(tcp, segment, sum(src).wrapping_add(sum(dst))).ok_or(Refused)?;
    if packet.is_v4 {
        skb.resize(start + SIZE_V4)?;
        let [from, to] = v4_words(*dst, *src)?;
        let (version, fragment) =
            (u32::from_ne_bytes([0x45, 0, 0, SIZE_V4 as u8]), u32::from_ne_bytes([0, 0, 0x40, 0]));
        let ttl = u32::from_ne_bytes([64, TCP, 0, 0]);
        let [h0, h1] = finish(sum(&[version, fragment, ttl, from, to])).to_ne_bytes();
        let ttl = u32::from_ne_bytes([64, TCP, h0, h1]);
        skb.store(start, &[version, fragment, ttl, from, to], RECOMPUTE)?;
        return skb.store(start + 20, &reset, RECOMPUTE);
    }
    skb.resize(start + SIZE_V6)?;
    let words = [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([0, LEN, TCP, 64])];
    skb.store(start, &words, RECOMPUTE)?;
    skb.store(start + 8, dst, RECOMPUTE)?;
    skb.store(start + 24, src, RECOMPUTE)?;
    skb.store(start + 40, &reset, RECOMPUTE)
}

/// The TCP header of the answer to a segment of `len` bytes, its header included; `addresses` is the sum over both. The
/// prefixes of two IPv4-mapped addresses sum up to zero. None if the segment is a reset itself.
#[inline(always)]
fn reset([ports, seq, ack, flags]: [u32; 4], len: u32, addresses: u32) -> Option<[u32; 5]> {
    let (seq, flags) = (u32::from_be(seq), u32::from_be(flags));
    let bits = (flags >> 16) as u8;
    if bits & RST != 0 {
        return None;
    }
    let (seq, ack, bits) = if bits & ACK != 0 {
        (ack, 0, RST)
    } else {
        let payload = len.saturating_sub((flags >> 28) << 2);
        let counted = payload + (bits & SYN != 0) as u32 + (bits & FIN != 0) as u32;
        (0, seq.wrapping_add(counted).to_be(), RST | ACK)
    };
    let ports = u32::from_be(ports).rotate_left(16).to_be();
    let flags = u32::from_ne_bytes([(LEN >> 2) << 4, bits, 0, 0]);
    let pseudo = u32::from_ne_bytes([0, TCP, 0, LEN]);
    let [c0, c1] = finish(addresses.wrapping_add(sum(&[ports, seq, ack, flags, pseudo]))).to_ne_bytes();
    Some([ports, seq, ack, flags, u32::from_ne_bytes([c0, c1, 0, 0])])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From port 40000 to port 80.
    fn segment(seq: u32, ack: u32, flags: u8) -> [u32; 4] {
        let flags = u32::from_ne_bytes([0x50, flags, 0xff, 0xff]);
        [u32::from_ne_bytes([0x9c, 0x40, 0, 80]), seq.to_be(), ack.to_be(), flags]
    }

    fn tcp(reply: &[u32; 5]) -> (u32, u32, u8) {
        (u32::from_be(reply[1]), u32::from_be(reply[2]), reply[3].to_ne_bytes()[1])
    }

    #[test]
    fn a_request_for_a_connection_is_acknowledged_and_reset() {
        let reply = reset(segment(7, 0, SYN), 20, 0).unwrap();
        assert_eq!(tcp(&reply), (0, 8, RST | ACK));
        assert_eq!(reply[0].to_ne_bytes(), [0, 80, 0x9c, 0x40]);
    }

    #[test]
    fn a_segment_of_a_connection_is_reset_where_it_stands() {
        assert_eq!(tcp(&reset(segment(7, 1234, ACK), 1480, 0).unwrap()), (1234, 0, RST));
    }

    #[test]
    fn data_without_acknowledgement_is_counted() {
        assert_eq!(tcp(&reset(segment(u32::MAX, 0, FIN), 25, 0).unwrap()), (0, 5, RST | ACK));
    }

    #[test]
    fn a_reset_is_not_answered() {
        assert_eq!(reset(segment(7, 8, RST | ACK), 20, 0), None);
    }
}
