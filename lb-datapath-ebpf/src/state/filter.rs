//! The filter that packets pass first.

use std::net::IpAddr;

use lb_datapath_ebpf_abi as abi;

use crate::sys::Words;

/// One bit for each address that a frontend, a backend or a flow has.
///
/// A bit is never cleared: a flow goes on after its frontend and its backend are gone. An address that is not in use any
/// more costs a look into the tables for each of its packets, and nothing else.
#[derive(Debug)]
pub(crate) struct Filter(Words);

impl Filter {
    pub(crate) const fn new(words: Words) -> Self {
        Self(words)
    }

    /// Makes programs look at packets of this address from now on.
    pub(crate) fn add(&self, addr: abi::Addr) {
        let (word, bit) = abi::filter_bit(addr);
        self.0.set_bits(word as usize, bit);
    }

    /// Whether programs look at packets of this address.
    pub(crate) fn has(&self, addr: abi::Addr) -> bool {
        let (word, bit) = abi::filter_bit(addr);
        self.0.load(word as usize, 1).first().is_some_and(|found| found & bit != 0)
    }

    /// The same for an address of the model. One that the maps cannot hold is in none of them.
    pub(crate) fn has_ip(&self, ip: IpAddr) -> bool {
        super::convert::addr(ip).map_or(true, |addr| self.has(addr))
    }

    /// Whether programs look at no packet at all: the map is new.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(0, usize::MAX).iter().all(|word| *word == 0)
    }
}
