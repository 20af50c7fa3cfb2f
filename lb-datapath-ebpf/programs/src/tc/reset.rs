//! The answer to a TCP segment for a frontend without backends: a reset (RFC 9293, section 3.10.7.1).
//!
//! ICMP would not do. On the same machine, the error arrives while the client is still inside `connect` and holds its
//! socket. The kernel then keeps it as a soft error, and `connect` waits for its time-out ([`tcp_v4_err`]). A reset
//! goes to the backlog of the socket instead.
//!
//! [`tcp_v4_err`]: https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp_ipv4.c

use super::{
    checksum::{finish, sum},
    header::{ACK, FIN, RST, SYN},
};
use crate::protocol::TCP;

/// Words of an IPv4 header without options and a TCP header without options.
pub const RESET_V4: usize = 10;
/// Words of an IPv6 header and a TCP header without options.
pub const RESET_V6: usize = 15;

/// Bytes of a TCP header without options.
const LEN: u8 = 20;

/// The packet that resets what sent the IPv4 packet that begins with `request`; none if that is a reset itself.
#[inline(always)]
#[must_use]
pub fn reset_v4(request: &[u32; RESET_V4]) -> Option<[u32; RESET_V4]> {
    let &[version, _, _, to, from, ports, seq, ack, flags, _] = request;
    let segment = (u32::from_be(version) & 0xffff).saturating_sub(20);
    let (version, fragment) = (u32::from_ne_bytes([0x45, 0, 0, 20 + LEN]), u32::from_ne_bytes([0, 0, 0x40, 0]));
    let [h0, h1] = finish(sum(&[version, fragment, u32::from_ne_bytes([64, TCP, 0, 0]), from, to])).to_ne_bytes();
    let ttl = u32::from_ne_bytes([64, TCP, h0, h1]);
    let [ports, seq, ack, flags, check] = answer([ports, seq, ack, flags], segment, sum(&[from, to]))?;
    Some([version, fragment, ttl, from, to, ports, seq, ack, flags, check])
}

/// The packet that resets what sent the IPv6 packet that begins with `request`; none if that is a reset itself.
#[inline(always)]
#[must_use]
pub fn reset_v6(request: &[u32; RESET_V6]) -> Option<[u32; RESET_V6]> {
    let &[_, rest, t0, t1, t2, t3, f0, f1, f2, f3, ports, seq, ack, flags, _] = request;
    let segment = u32::from_be(rest) >> 16;
    let (version, rest) = (u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([0, LEN, TCP, 64]));
    let addresses = sum(&[t0, t1, t2, t3, f0, f1, f2, f3]);
    let [ports, seq, ack, flags, check] = answer([ports, seq, ack, flags], segment, addresses)?;
    Some([version, rest, f0, f1, f2, f3, t0, t1, t2, t3, ports, seq, ack, flags, check])
}

/// The TCP header of the answer to a segment of `len` bytes, its header included; `addresses` is the sum over both.
#[inline(always)]
fn answer([ports, seq, ack, flags]: [u32; 4], len: u32, addresses: u32) -> Option<[u32; 5]> {
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

    const PSEUDO: u32 = u32::from_ne_bytes([0, TCP, 0, LEN]);

    /// From port 40000 to port 80; `len` is that of the segment, its header of 20 bytes included.
    fn request_v4(len: u8, seq: u32, ack: u32, flags: u8) -> [u32; RESET_V4] {
        let [a, b, c, d, e] =
            [[0x45, 0, 0, 20 + len], [0; 4], [64, TCP, 0, 0], [192, 0, 2, 1], [10, 96, 0, 1]].map(u32::from_ne_bytes);
        let flags = u32::from_ne_bytes([0x50, flags, 0xff, 0xff]);
        [a, b, c, d, e, u32::from_ne_bytes([0x9c, 0x40, 0, 80]), seq.to_be(), ack.to_be(), flags, 0]
    }

    fn tcp(reply: &[u32]) -> (u32, u32, u8) {
        (u32::from_be(reply[1]), u32::from_be(reply[2]), reply[3].to_ne_bytes()[1])
    }

    #[test]
    fn a_request_for_a_connection_is_acknowledged_and_reset() {
        let reply = reset_v4(&request_v4(20, 7, 0, SYN)).unwrap();
        assert_eq!(tcp(&reply[5..]), (0, 8, RST | ACK));
        assert_eq!((reply[3].to_ne_bytes(), reply[4].to_ne_bytes()), ([10, 96, 0, 1], [192, 0, 2, 1]));
        assert_eq!(reply[5].to_ne_bytes(), [0, 80, 0x9c, 0x40]);
        assert_eq!(finish(sum(&reply[..5])), 0);
        assert_eq!(finish(sum(&reply[3..]) + sum(&[PSEUDO])), 0);
    }

    #[test]
    fn a_segment_of_a_connection_is_reset_where_it_stands() {
        let mut request = [0; RESET_V6];
        request[1] = u32::from_ne_bytes([1, 0, TCP, 64]);
        request[2..6].fill(0x0101_0101);
        request[6..10].fill(0x0202_0202);
        request[10..].copy_from_slice(&request_v4(0, 7, 1234, ACK)[5..]);
        let reply = reset_v6(&request).unwrap();
        assert_eq!(tcp(&reply[10..]), (1234, 0, RST));
        assert_eq!((reply[2], reply[6]), (0x0202_0202, 0x0101_0101));
        assert_eq!(finish(sum(&reply[2..]) + sum(&[PSEUDO])), 0);
    }

    #[test]
    fn data_without_acknowledgement_is_counted() {
        let reply = reset_v4(&request_v4(25, u32::MAX, 0, FIN)).unwrap();
        assert_eq!(tcp(&reply[5..]), (0, 5, RST | ACK));
    }

    #[test]
    fn a_reset_is_not_answered() {
        assert_eq!(reset_v4(&request_v4(20, 7, 8, RST | ACK)), None);
    }
}
