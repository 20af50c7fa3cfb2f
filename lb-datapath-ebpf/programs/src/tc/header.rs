//! Headers of IPv4, IPv6, TCP and UDP.

use lb_datapath_ebpf_abi::{Addr, map_v4, unmap_v4};

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

/// What an IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Transport protocol.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Bytes of the header.
    pub len: u32,
}

/// Reads an IPv4 header, as it lies in memory; `None` for fragments, of which only the first has ports, and for what is
/// no IPv4.
#[inline(always)]
#[must_use]
pub const fn ipv4(words: &[u32; 5]) -> Option<Ip> {
    const MORE_FRAGMENTS_OR_OFFSET: u32 = 0x3fff;
    let &[head, fragment, rest, src, dst] = words;
    let (head, fragment, rest) = (u32::from_be(head), u32::from_be(fragment), u32::from_be(rest));
    let len = (head >> 24 & 0x0f) << 2;
    if head >> 28 != 4 || len < 20 || fragment & MORE_FRAGMENTS_OR_OFFSET != 0 {
        return None;
    }
    let (src, dst) = (map_v4(src.to_ne_bytes()), map_v4(dst.to_ne_bytes()));
    Some(Ip { src, dst, protocol: (rest >> 16) as u8, ttl: (rest >> 24) as u8, len })
}

/// Reads an IPv6 header, as it lies in memory. A packet with extension headers shows as another protocol than TCP and
/// UDP.
///
/// `None` for IPv4-mapped addresses, which no packet may have: they would be taken for those of an IPv4 flow. The kernel
/// drops such packets ([`ip6_rcv_core`]).
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
    Some(Ip { src, dst, protocol: (rest >> 8) as u8, ttl: rest as u8, len: 40 })
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
        let expected = Ip { src: map_v4([10, 0, 0, 1]), dst: map_v4([10, 96, 0, 1]), protocol: TCP, ttl: 64, len: 20 };
        assert_eq!(ip, expected);
    }

    #[test]
    fn fragments_and_short_headers_are_left_alone() {
        for (at, byte) in [(6, 0x20), (6, 0x01), (7, 0x01), (0, 0x44), (0, 0x65)] {
            let mut bytes = V4;
            bytes[at] = byte;
            assert_eq!(ipv4(&words(&bytes)), None, "byte {at} = {byte:#x}");
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
        assert_eq!((ip.protocol, ip.ttl, ip.len), (UDP, 63, 40));
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
