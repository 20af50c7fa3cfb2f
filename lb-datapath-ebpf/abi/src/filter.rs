//! The filter that packets pass first: one bit for each address that a frontend or a backend has.
//!
//! A Bloom filter with one hash (B. H. Bloom, *Space/Time Trade-offs in Hash Coding with Allowable Errors*, CACM 13,
//! 1970). A bit that is not set is an address that no frontend, backend or flow has. A bit that is set says nothing, and
//! the tables decide.

use crate::Addr;

/// Words of `FILTER`: 2^20 bits. With 50,000 addresses, one foreign address in 20 is looked up in the tables as well.
pub const FILTER_WORDS: u32 = 1 << 15;

/// One element of `FILTER`: two words, since the elements of an array take eight bytes at least.
pub type FilterPair = [u32; 2];

/// Where the bit of an address is in `FILTER`: the word, and the bit in it.
///
/// The hash multiplies by the odd constants of Stafford's *Mix13*, which spread neighbouring addresses.
#[inline(always)]
#[must_use]
pub const fn filter_bit(addr: Addr) -> (u32, u32) {
    const FIRST: u64 = 0xbf58_476d_1ce4_e5b9;
    const SECOND: u64 = 0x94d0_49bb_1331_11eb;
    let [a, b, c, d] = addr;
    let (high, low) = ((a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64);
    let mixed = (high ^ (low ^ low >> 30).wrapping_mul(FIRST)).wrapping_mul(SECOND);
    let hash = (mixed >> 44) as u32;
    (hash >> 5, 1 << (hash & 31))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{from_octets, map_v4};

    /// Bits that `addrs` set, each counted once.
    fn bits(addrs: impl Iterator<Item = Addr>) -> usize {
        extern crate std;
        addrs.map(filter_bit).collect::<std::collections::BTreeSet<_>>().len()
    }

    #[test]
    fn a_bit_is_inside_the_map() {
        for addr in [[0; 4], [u32::MAX; 4], map_v4([10, 96, 0, 1]), from_octets([0xfd; 16])] {
            let (word, bit) = filter_bit(addr);
            assert!(word < FILTER_WORDS && bit.count_ones() == 1, "{addr:?}");
        }
    }

    #[test]
    fn neighbours_have_bits_of_their_own() {
        // A random function hits 61,554 different bits of 2^20 with 2^16 addresses, with a deviation of 43.
        let v4 = (0..=u16::MAX).map(|i| map_v4([10, 244, (i >> 8) as u8, i as u8]));
        assert!(bits(v4) > 61_000);
        let v6 = (0..=u16::MAX).map(|i| {
            let mut octets = [0; 16];
            (octets[0], octets[14], octets[15]) = (0xfd, (i >> 8) as u8, i as u8);
            from_octets(octets)
        });
        assert!(bits(v6) > 61_000);
        let nets = (0..=u16::MAX).map(|i| {
            let mut octets = [0; 16];
            (octets[0], octets[6], octets[7], octets[15]) = (0xfd, (i >> 8) as u8, i as u8, 1);
            from_octets(octets)
        });
        assert!(bits(nets) > 61_000);
    }
}
