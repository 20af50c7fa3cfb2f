//! The Internet checksum (RFC 1071), whose sum does not depend on byte order: words are taken as they lie in memory.

/// Sum of the 16-bit halves of `words`, carries not yet folded.
#[inline(always)]
#[must_use]
pub fn sum(words: &[u32]) -> u32 {
    let mut total = 0_u32;
    for word in words {
        total = total.wrapping_add(word & 0xffff).wrapping_add(word >> 16);
    }
    total
}

/// The difference that a checksum over `old` has to make up for when that becomes `new` (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub fn difference<const N: usize>(old: &[u32; N], new: &[u32; N]) -> u32 {
    sum(new).wrapping_add(sum(&old.map(|word| !word)))
}

/// The checksum of what was summed, as it lies in a packet.
#[inline(always)]
#[must_use]
pub const fn finish(total: u32) -> u16 {
    let once = (total & 0xffff) + (total >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    !(twice as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_its_checksum_sums_to_zero() {
        let bytes = [[0x45, 0, 0, 56], [0, 0, 0x40, 0], [64, 1, 0, 0], [10, 96, 0, 1], [192, 0, 2, 1]];
        let mut header = bytes.map(u32::from_ne_bytes);
        let [c0, c1] = finish(sum(&header)).to_ne_bytes();
        header[2] = u32::from_ne_bytes([64, 1, c0, c1]);
        assert_eq!(finish(sum(&header)), 0);
    }

    #[test]
    fn a_difference_turns_the_old_checksum_into_the_new_one() {
        let (old, new) = ([0x0101_a8c0, 0x5000, u32::MAX], [0xfe01_0a0a, u32::MAX, 0]);
        let check = finish(sum(&old));
        assert_eq!(finish(u32::from(!check) + difference(&old, &new)), finish(sum(&new)));
    }

    #[test]
    fn the_carry_of_a_carry_is_added_as_well() {
        assert_eq!(finish(0x0001_ffff), !1);
        assert_eq!(finish(0xffff_ffff), 0);
    }
}
