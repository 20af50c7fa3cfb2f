//! Checksums, each over all that it covers.

use etherparse::checksum::Sum16BitWords;

use super::{Addresses, protocol};

/// The Internet checksum (RFC 1071) of `bytes`; a sender writes it where `bytes` have zeros, and a receiver gets zero.
pub(super) fn internet(bytes: &[u8]) -> u16 {
    Sum16BitWords::new().add_slice(bytes).ones_complement().to_be()
}

/// The Internet checksum of `bytes` as what `protocol` carries between `addresses` (RFC 9293, section 3.1, and RFC
/// 8200, section 8.1). ICMP over IPv4 has no pseudo header.
pub(super) fn transport(addresses: Addresses, protocol: u8, bytes: &[u8]) -> u16 {
    let mut sum = Sum16BitWords::new().add_slice(bytes);
    let sum = match addresses {
        Addresses::V4 { .. } if protocol == protocol::ICMP => sum,
        Addresses::V4 { source, destination } => {
            let len = (bytes.len() as u16).to_be_bytes();
            sum.add_4bytes(source.octets()).add_4bytes(destination.octets()).add_2bytes([0, protocol]).add_2bytes(len)
        }
        Addresses::V6 { source, destination } => {
            let len = (bytes.len() as u32).to_be_bytes();
            sum.add_16bytes(source.octets()).add_16bytes(destination.octets()).add_2bytes([0, protocol]).add_4bytes(len)
        }
    };
    sum.ones_complement().to_be()
}

/// The checksum of SCTP, CRC32c (RFC 9260, appendix A), of a packet that has zeros in its place.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

/// `checksum` after `old` became `new` among the bytes that it covers (RFC 1624, equation 3), whether it was right or
/// not. Both begin at an even offset.
pub(super) fn adjusted(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> Vec<u64> {
        let word = |pair: &[u8]| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        bytes.chunks(2).map(word).collect()
    };
    let taken: u64 = words(old).into_iter().map(|word| 0xffff - word).sum();
    let mut sum = u64::from(!checksum) + taken + words(new).into_iter().sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standards_hold() {
        // RFC 1071, section 3, and RFC 3720, appendix B.4.
        assert_eq!(!internet(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_pseudo_header_counts_for_all_but_icmp_over_ipv4() {
        let addresses = Addresses::V4 { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into() };
        let mut header = etherparse::UdpHeader { source_port: 53, destination_port: 54, length: 11, checksum: 0 };
        header.checksum = header.calc_checksum_ipv4_raw([10, 0, 0, 1], [10, 0, 0, 2], b"abc").unwrap();
        assert_eq!(transport(addresses, protocol::UDP, &[&header.to_bytes()[..], b"abc"].concat()), 0);
        assert_eq!(transport(addresses, protocol::ICMP, &[0xff, 0xff]), 0);
    }

    #[test]
    fn an_adjusted_checksum_is_the_one_of_the_new_bytes() {
        let (old, new) = ([1, 2, 3, 4, 5, 6], [1, 2, 0xff, 0xfe, 5, 6]);
        assert_eq!(adjusted(internet(&old), &old[2..4], &new[2..4]), internet(&new));
        // Both forms of zero are the same number, and a sender writes this one.
        assert_eq!(adjusted(0xffff, &[0, 0], &[0, 0]), 0);
    }
}
