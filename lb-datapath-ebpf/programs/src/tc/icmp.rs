//! The answer to a datagram for a frontend without backends: destination unreachable, port unreachable.

use super::checksum::{finish, sum};

/// Words of the refused IPv4 packet that the answer quotes: its header and eight bytes of its payload (RFC 792).
pub const QUOTE_V4: usize = 7;
/// Words of the refused IPv6 packet that the answer quotes: its header and eight bytes of its payload.
pub const QUOTE_V6: usize = 12;
/// Words of headers that precede the quote: IPv4 and ICMP.
pub const HEADERS_V4: usize = 7;
/// Words of headers that precede the quote: IPv6 and ICMPv6.
pub const HEADERS_V6: usize = 12;

const LEN_V4: u16 = 4 * (HEADERS_V4 + QUOTE_V4) as u16;
const PAYLOAD_V6: u16 = 8 + 4 * QUOTE_V6 as u16;
const ICMP_V6: u8 = 58;

/// The headers of the answer to an IPv4 packet without options; the quote follows them.
#[inline(always)]
#[must_use]
pub fn unreachable_v4(quote: &[u32; QUOTE_V4]) -> [u32; HEADERS_V4] {
    let &[_, _, _, src, dst, _, _] = quote;
    let [l0, l1] = LEN_V4.to_be_bytes();
    let (version, fragment) = (u32::from_ne_bytes([0x45, 0xc0, l0, l1]), u32::from_ne_bytes([0, 0, 0x40, 0]));
    let [h0, h1] = finish(sum(&[version, fragment, u32::from_ne_bytes([64, 1, 0, 0]), dst, src])).to_ne_bytes();
    let icmp = u32::from_ne_bytes([3, 3, 0, 0]);
    let [c0, c1] = finish(sum(quote).wrapping_add(sum(&[icmp]))).to_ne_bytes();
    [version, fragment, u32::from_ne_bytes([64, 1, h0, h1]), dst, src, u32::from_ne_bytes([3, 3, c0, c1]), 0]
}

/// The headers of the answer to an IPv6 packet without extension headers; the quote follows them.
#[inline(always)]
#[must_use]
pub fn unreachable_v6(quote: &[u32; QUOTE_V6]) -> [u32; HEADERS_V6] {
    let &[_, _, s0, s1, s2, s3, d0, d1, d2, d3, _, _] = quote;
    let [l0, l1] = PAYLOAD_V6.to_be_bytes();
    let (version, rest) = (u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([l0, l1, ICMP_V6, 64]));
    let icmp = u32::from_ne_bytes([1, 4, 0, 0]);
    let pseudo = [u32::from_ne_bytes([0, 0, l0, l1]), u32::from_ne_bytes([0, 0, 0, ICMP_V6])];
    let addresses = [s0, s1, s2, s3, d0, d1, d2, d3];
    let total = sum(quote).wrapping_add(sum(&addresses)).wrapping_add(sum(&pseudo)).wrapping_add(sum(&[icmp]));
    let [c0, c1] = finish(total).to_ne_bytes();
    [version, rest, d0, d1, d2, d3, s0, s1, s2, s3, u32::from_ne_bytes([1, 4, c0, c1]), 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_ipv4_goes_back_with_right_checksums() {
        let quote = [1, 2, 3, 0x0900_000a, 0x0100_600a, 0x5a5a_5a5a, 7];
        let reply = unreachable_v4(&quote);
        assert_eq!(reply[3..5], [quote[4], quote[3]]);
        assert_eq!(finish(sum(&reply[..5])), 0);
        assert_eq!(finish(sum(&reply[5..]) + sum(&quote)), 0);
        assert_eq!(reply[5].to_ne_bytes()[..2], [3, 3]);
        assert_eq!(reply[0].to_ne_bytes()[2..], [0, 56]);
    }

    #[test]
    fn the_answer_to_ipv6_goes_back_with_the_right_checksum() {
        let quote = core::array::from_fn(|i| 0x0101_0101 * i as u32);
        let reply = unreachable_v6(&quote);
        assert_eq!(reply[2..6], quote[6..10]);
        assert_eq!(reply[6..10], quote[2..6]);
        assert_eq!(reply[10].to_ne_bytes()[..2], [1, 4]);
        let pseudo = (u32::from(PAYLOAD_V6) + u32::from(ICMP_V6)).to_be();
        assert_eq!(finish(sum(&reply[2..]) + sum(&quote) + sum(&[pseudo])), 0);
    }
}
