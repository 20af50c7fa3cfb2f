//! Ports at the addresses of the node.

use lb_datapath_ebpf_abi::{Addr, Facts, FrontendKey, unmap_v4};

use crate::sock::SockMaps;

/// The first address of the node, of one family, at which the port and protocol of `key` are a frontend.
#[inline(never)]
pub(super) fn serving<M: SockMaps>(maps: M, key: &FrontendKey, is_v4: bool) -> Option<Addr> {
    for index in 0..Facts::IPS as u32 {
        let addr = maps.node_ip(index)?;
        if unmap_v4(addr).is_some() == is_v4 && maps.frontend(&FrontendKey { addr, ..*key }).is_some() {
            return Some(addr);
        }
    }
    None
}

/// Whether the node has this address.
#[inline(never)]
pub(super) fn has<M: SockMaps>(maps: M, addr: Addr) -> bool {
    for index in 0..Facts::IPS as u32 {
        match maps.node_ip(index) {
            Some(known) if known == addr => return true,
            Some(_) => {}
            None => return false,
        }
    }
    false
}
