//! The hash of what a socket hook knows: there is no source port yet.

use lb_datapath_ebpf_abi::FLOW_SEED;
use lb_flow_hash::jhash;

/// Hash of a socket's or a network namespace's cookie.
#[inline(always)]
#[must_use]
pub fn cookie_hash(cookie: u64) -> u32 {
    jhash(&[cookie as u32, (cookie >> 32) as u32], FLOW_SEED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_of_a_cookie_count() {
        assert_eq!(cookie_hash(0x0000_0002_0000_0001), jhash(&[1, 2], FLOW_SEED));
        assert_ne!(cookie_hash(1), cookie_hash(1 << 32));
    }
}
