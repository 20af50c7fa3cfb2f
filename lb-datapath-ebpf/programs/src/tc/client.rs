//! The client of a packet, as affinity and hashing see it.

use lb_datapath_ebpf_abi::{Addr, FLOW_SEED, Port, unmap_v4};
use lb_flow_hash::jhash;

/// `addr` with all but its first `bits` bits cleared.
#[inline(always)]
#[must_use]
pub fn mask(addr: Addr, bits: u32) -> Addr {
    let [a, b, c, d] = addr;
    let mask = |word: u32, before: u32| word & high_bits(bits.saturating_sub(before).min(32)).to_be();
    [mask(a, 0), mask(b, 32), mask(c, 64), mask(d, 96)]
}

#[inline(always)]
const fn high_bits(bits: u32) -> u32 {
    match u32::MAX.checked_shl(32 - bits) {
        Some(mask) => mask,
        None => 0,
    }
}

/// The client that `source` belongs to: its prefix.
#[inline(always)]
#[must_use]
pub fn prefix(source: Addr, prefix_v4: u8, prefix_v6: u8) -> Addr {
    match unmap_v4(source) {
        Some(_) => mask(source, 96 + prefix_v4 as u32),
        None => mask(source, prefix_v6 as u32),
    }
}

/// Hash of a client alone.
#[inline(always)]
#[must_use]
pub fn client_hash(client: Addr) -> u32 {
    match unmap_v4(client) {
        Some(ip) => jhash(&[u32::from_le_bytes(ip)], FLOW_SEED),
        None => jhash(&client.map(u32::to_le), FLOW_SEED),
    }
}

/// Hash of a flow.
#[inline(always)]
#[must_use]
pub fn flow_hash(src: Addr, sport: Port, dst: Addr, dport: Port) -> u32 {
    let (from, to) = ((sport.0 as u32).to_le(), (dport.0 as u32).to_le());
    let [a, b, c, d] = src.map(u32::to_le);
    let [e, f, g, h] = dst.map(u32::to_le);
    if unmap_v4(src).is_some() && unmap_v4(dst).is_some() {
        return jhash(&[d, from, h, to], FLOW_SEED);
    }
    jhash(&[a, b, c, d, from, e, f, g, h, to], FLOW_SEED)
}

#[cfg(test)]
mod tests {
    use lb_datapath_ebpf_abi::{from_octets, map_v4, octets};
    use lb_flow_hash::{words_v4, words_v6};

    use super::*;

    #[test]
    fn a_client_is_a_prefix() {
        assert_eq!(prefix(map_v4([192, 0, 2, 77]), 24, 64), map_v4([192, 0, 2, 0]));
        assert_eq!(prefix(map_v4([192, 0, 2, 77]), 0, 64), map_v4([0, 0, 0, 0]));
        assert_eq!(prefix(map_v4([192, 0, 2, 77]), 32, 0), map_v4([192, 0, 2, 77]));
        let v6 = from_octets([0xfd; 16]);
        assert_eq!(octets(prefix(v6, 32, 68))[..10], [0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xf0, 0]);
        assert_eq!(prefix(v6, 32, 0), [0; 4]);
        assert_eq!(prefix(v6, 32, 128), v6);
    }

    #[test]
    fn a_flow_hashes_as_everywhere_else() {
        let (src, dst) = ([192, 0, 2, 1], [10, 96, 0, 1]);
        let ours = flow_hash(map_v4(src), Port::new(40000), map_v4(dst), Port::new(80));
        assert_eq!(ours, jhash(&words_v4(src, 40000, dst, 80), FLOW_SEED));
        let (src, dst) = (core::array::from_fn(|i| i as u8), core::array::from_fn(|i| 100 + i as u8));
        let ours = flow_hash(from_octets(src), Port::new(40000), from_octets(dst), Port::new(80));
        assert_eq!(ours, jhash(&words_v6(src, 40000, dst, 80), FLOW_SEED));
    }
}
