//! Headers of IPv4 and IPv6.

use lb_datapath_ebpf_abi::{Addr, map_v4, unmap_v4};

use super::skb::Skb;
use crate::protocol::{ICMP, ICMP_V6, SCTP, TCP, UDP};

/// Bytes of an Ethernet header.
pub const ETHERNET: u32 = 14;

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;

/// Most IPv6 extension headers that are walked; a packet with more is none of ours.
const EXTENSIONS: u32 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Which part of a datagram a packet holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The first fragment, which has the ports.
    First,
    /// A fragment after the first, which has none.
    Later,
}

/// What an IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Transport protocol; of an IPv6 header that has not been [walked](Ip::walk), the next header.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Bytes of the header; with those of its extension headers, once they have been walked.
    pub len: u32,
    /// Part of a datagram.
    pub piece: Piece,
    /// Identification of the datagram, in no particular byte order; 0 if nothing says one.
    pub id: u32,
}

/// Reads an IPv4 header, as it lies in memory; `None` for what is no IPv4.
#[inline(always)]
#[must_use]
pub const fn ipv4(words: &[u32; 5]) -> Option<Ip> {
    let &[head, fragment, rest, src, dst] = words;
    let (head, fragment, rest) = (u32::from_be(head), u32::from_be(fragment), u32::from_be(rest));
    let len = (head >> 24 & 0x0f) << 2;
    if head >> 28 != 4 || len < 20 {
        return None;
    }
    Some(Ip {
        src: map_v4(src.to_ne_bytes()),
        dst: map_v4(dst.to_ne_bytes()),
        protocol: (rest >> 16) as u8,
        ttl: (rest >> 24) as u8,
        len,
        piece: piece(fragment & 0x1fff != 0, fragment & 0x2000 != 0),
        id: fragment >> 16,
    })
}

/// Reads an IPv6 header, as it lies in memory; `None` for what is no IPv6.
///
/// The same for IPv4-mapped addresses, which no packet may have: they would be taken for those of an IPv4 flow. The
/// kernel drops such packets ([`ip6_rcv_core`]).
///
/// [`ip6_rcv_core`]: https://elixir.bootlin.com/linux/v6.18/source/net/ipv6/ip6_input.c
#[inline(always)]
#[must_use]
pub const fn ipv6(words: &[u32; 10]) -> Option<Ip> {
    let &[head, rest, a, b, c, d, e, f, g, h] = words;
    if u32::from_be(head) >> 28 != 6 {
        return None;
    }
    let (src, dst, rest) = ([a, b, c, d], [e, f, g, h], u32::from_be(rest));
    if unmap_v4(src).is_some() || unmap_v4(dst).is_some() {
        return None;
    }
    Some(Ip { src, dst, protocol: (rest >> 8) as u8, ttl: rest as u8, len: 40, piece: Piece::Whole, id: 0 })
}

#[inline(always)]
const fn piece(is_later: bool, has_more: bool) -> Piece {
    match (is_later, has_more) {
        (true, _) => Piece::Later,
        (false, true) => Piece::First,
        (false, false) => Piece::Whole,
    }
}

/// Bytes of the packet that the IP header at `at` says, the header included. A packet that a device has merged may be
/// longer than its header can say, which then says 0 (IPv4) or 40 (IPv6).
#[inline(always)]
pub fn total<S: Skb>(skb: S, at: u32, is_v4: bool) -> Option<u32> {
    if is_v4 {
        return Some(u32::from_be(skb.load(at)?) & 0xffff);
    }
    Some(40 + (u32::from_be(skb.load(at.wrapping_add(4))?) >> 16))
}

/// Whether a protocol is one whose flows are translated. All have their ports in the first four bytes.
#[inline(always)]
#[must_use]
pub const fn is_transport(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// Whether an IPv6 header of this number is an extension header that is walked.
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Whether an IPv6 extension header of this number may be followed by an ICMPv6 message that is no fragment.
#[inline(always)]
#[must_use]
pub const fn may_precede_icmp(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS)
}

impl Ip {
    /// Walks the extension headers of an IPv6 header that lies at `at`, and moves [`protocol`](Self::protocol) and
    /// [`len`](Self::len) behind them. Returns whether that is a transport header; the later fragments of a datagram
    /// have none, and the walk ends behind their fragment header.
    ///
    /// A packet under a routing header whose way is not over is not at its destination yet, and is none of ours. Nor is
    /// what is authenticated (AH) or encrypted (ESP).
    #[inline(always)]
    pub fn walk<S: Skb>(&mut self, skb: S, at: u32) -> bool {
        for _ in 0..=EXTENSIONS {
            if is_transport(self.protocol) || self.protocol == ICMP_V6 {
                return true;
            }
            if !is_extension(self.protocol) {
                return false;
            }
            let Some(header) = skb.load_far::<u32>(at.wrapping_add(self.len)) else { return false };
            let [next, words, low, last] = header.to_ne_bytes();
            if self.protocol == FRAGMENT {
                let Some(id) = skb.load_far::<u32>(at.wrapping_add(self.len + 4)) else { return false };
                (self.piece, self.id) = (piece(low != 0 || last & !7 != 0, last & 1 != 0), id);
                self.len += 8;
                if matches!(self.piece, Piece::Later) {
                    return true;
                }
            } else if self.protocol == ROUTING && last != 0 {
                return false;
            } else {
                self.len += (words as u32 + 1) << 3;
            }
            self.protocol = next;
        }
        false
    }

    /// Whether it is followed by a header with ports, as far as this header alone says.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        is_transport(self.protocol) && matches!(self.piece, Piece::Whole)
    }

    /// Whether it is followed by an ICMP header.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp(&self, is_v4: bool) -> bool {
        self.protocol == if is_v4 { ICMP } else { ICMP_V6 }
    }
}

#[cfg(test)]
mod tests {
    use lb_datapath_ebpf_abi::from_octets;

    use super::*;
    use crate::protocol::{TCP, UDP};

    const V4: [u8; 20] = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 96, 0, 1];

    fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
        core::array::from_fn(|i| {
            u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        })
    }

    #[test]
    fn an_ipv4_header_is_read() {
        let ip = ipv4(&words(&V4)).unwrap();
        let expected = Ip {
            src: map_v4([10, 0, 0, 1]),
            dst: map_v4([10, 96, 0, 1]),
            protocol: TCP,
            ttl: 64,
            len: 20,
            piece: Piece::Whole,
            id: 0,
        };
        assert_eq!(ip, expected);
    }

    #[test]
    fn what_is_no_ipv4_header_is_left_alone() {
        for (at, byte) in [(0, 0x44), (0, 0x65)] {
            let mut bytes = V4;
            bytes[at] = byte;
            assert_eq!(ipv4(&words(&bytes)), None, "byte {at} = {byte:#x}");
        }
    }

    #[test]
    fn the_fragments_of_a_datagram_are_told_apart() {
        for (at, byte, expected) in [
            (6, 0x40, Piece::Whole),
            (6, 0x20, Piece::First),
            (6, 0x60, Piece::First),
            (6, 0x01, Piece::Later),
            (7, 0x01, Piece::Later),
            (6, 0x3f, Piece::Later),
        ] {
            let mut bytes = V4;
            (bytes[4], bytes[5], bytes[6], bytes[at]) = (0x12, 0x34, 0, byte);
            let ip = ipv4(&words(&bytes)).unwrap();
            assert_eq!((ip.piece, ip.id, ip.is_plain()), (expected, 0x1234, expected == Piece::Whole), "{byte:#x}");
        }
    }

    #[test]
    fn an_ipv6_header_is_read() {
        let mut bytes = [0; 40];
        bytes[0] = 0x60;
        bytes[6] = UDP;
        bytes[7] = 63;
        for (i, byte) in bytes[8..].iter_mut().enumerate() {
            *byte = i as u8;
        }
        let ip = ipv6(&words(&bytes)).unwrap();
        assert_eq!((ip.protocol, ip.ttl, ip.len, ip.piece), (UDP, 63, 40, Piece::Whole));
        assert_eq!(ip.src, from_octets(core::array::from_fn(|i| i as u8)));
        assert_eq!(ip.dst, from_octets(core::array::from_fn(|i| i as u8 + 16)));
        bytes[0] = 0x40;
        assert_eq!(ipv6(&words(&bytes)), None);
    }

    #[test]
    fn an_ipv4_mapped_address_in_an_ipv6_header_is_not_one_of_ipv4() {
        for at in [8, 24] {
            let mut bytes = [0xfd; 40];
            bytes[0] = 0x60;
            assert!(ipv6(&words(&bytes)).is_some());
            bytes[at..at + 10].fill(0);
            bytes[at + 10..at + 12].fill(0xff);
            assert_eq!(ipv6(&words(&bytes)), None, "at {at}");
        }
    }
}
