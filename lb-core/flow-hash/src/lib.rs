//! The flow hash that every lb datapath shares.
//!
//! It is the kernel's `jhash` (Bob Jenkins, *lookup3*, 2006; `include/linux/jhash.h`) over the words that nftables'
//! `jhash` expression sees when it hashes `ip saddr . th sport . ip daddr . th dport`: every field in its own 32-bit
//! registers, in network byte order, padded with zero bytes, read as little-endian words. The slot is
//! `(hash × M) >> 32`, what the kernel calls `reciprocal_scale`, so no datapath divides.
//!
//! This crate is not a general hash: it has no `Hasher`, and it promises nothing against chosen input beyond its
//! 32-bit seed.
//!
//! ```
//! use lb_flow_hash::{jhash, slot};
//!
//! // 192.0.2.1 port 40000 to 127.0.0.1, hashed as saddr . sport . daddr
//! let words = [
//!     u32::from_le_bytes([192, 0, 2, 1]),
//!     u32::from_le_bytes([0x9c, 0x40, 0, 0]),
//!     u32::from_le_bytes([127, 0, 0, 1]),
//! ];
//! assert_eq!(slot(jhash(&words, 0x71dc_da46), 65521), 62376);
//! ```
#![no_std]
#![forbid(unsafe_code)]

const INITIAL: u32 = 0xdead_beef;

/// The kernel's `jhash` of `words` (their bytes as they lie in little-endian memory), with `seed` as the initial value.
#[inline(always)]
#[must_use]
pub fn jhash<const N: usize>(words: &[u32; N], seed: u32) -> u32 {
    let start = INITIAL.wrapping_add((N as u32) << 2).wrapping_add(seed);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut rest: &[u32] = words;
    while let [x, y, z, tail @ ..] = rest {
        if tail.is_empty() {
            break;
        }
        a = a.wrapping_add(*x);
        b = b.wrapping_add(*y);
        c = c.wrapping_add(*z);
        (a, b, c) = mix(a, b, c);
        rest = tail;
    }
    match *rest {
        [x, y, z] => finish(a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z)),
        [x, y] => finish(a.wrapping_add(x), b.wrapping_add(y), c),
        [x] => finish(a.wrapping_add(x), b, c),
        _ => c,
    }
}

/// The slot of `hash` in a table of `slots` slots: in `0..slots` when `slots > 0`, otherwise 0.
#[inline(always)]
#[must_use]
pub const fn slot(hash: u32, slots: u32) -> u32 {
    ((hash as u64 * slots as u64) >> 32) as u32
}

/// The slots that two choices by one hash lead to, in a table of `slots` slots: that of `hash`, and that of the hash of
/// `hash` under `seed`. They may be the same.
///
/// Source of the algorithm: M. Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001.
#[inline(always)]
#[must_use]
pub fn two_slots(hash: u32, seed: u32, slots: u32) -> [u32; 2] {
    [slot(hash, slots), slot(jhash(&[hash], seed), slots)]
}

/// Words of an IPv4 flow, ports in host byte order.
#[inline(always)]
#[must_use]
pub const fn words_v4(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16) -> [u32; 4] {
    [u32::from_le_bytes(source), port_word(source_port), u32::from_le_bytes(destination), port_word(destination_port)]
}

/// Words of an IPv6 flow, ports in host byte order.
#[inline(always)]
#[must_use]
pub const fn words_v6(source: [u8; 16], source_port: u16, destination: [u8; 16], destination_port: u16) -> [u32; 10] {
    let s = address_words(source);
    let d = address_words(destination);
    [s[0], s[1], s[2], s[3], port_word(source_port), d[0], d[1], d[2], d[3], port_word(destination_port)]
}

/// The four words of an IPv6 address.
#[inline(always)]
#[must_use]
pub const fn address_words(a: [u8; 16]) -> [u32; 4] {
    [
        u32::from_le_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_le_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_le_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_le_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

const fn port_word(port: u16) -> u32 {
    let [high, low] = port.to_be_bytes();
    u32::from_le_bytes([high, low, 0, 0])
}

#[inline(always)]
const fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

#[inline(always)]
const fn finish(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_slots_that_nftables_took() {
        for (source_port, expected) in [(40000, 62376), (40001, 22467), (5353, 62771)] {
            let words = words_v4([192, 0, 2, 1], source_port, [127, 0, 0, 1], 0);
            let hash = jhash(&[words[0], words[1], words[2]], 0x71dc_da46);
            assert_eq!(slot(hash, 65521), expected, "source port {source_port}");
        }
    }

    #[test]
    fn the_second_of_two_slots_does_not_follow_from_the_first() {
        let of_first = (0..1000_u32).map(|number| two_slots(number, 1, 4));
        let seconds: [usize; 4] = of_first.fold([0; 4], |mut seconds, [first, second]| {
            assert_eq!(first, 0);
            seconds[second as usize] += 1;
            seconds
        });
        assert!(seconds.iter().all(|count| (200..300).contains(count)), "{seconds:?}");
        assert_eq!(two_slots(u32::MAX, 1, 1), [0, 0]);
    }

    #[test]
    fn slot_is_always_inside_the_table() {
        for slots in [1, 2, 251, 131_071] {
            assert_eq!(slot(0, slots), 0);
            assert_eq!(slot(u32::MAX, slots), slots - 1);
        }
        assert_eq!(slot(u32::MAX, 0), 0);
    }
}

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
