//! Maglev tables.
//!
//! Eisenbud et al., *Maglev: A Fast and Reliable Software Network Load Balancer*, NSDI 2016, section 3.4: each backend
//! walks along its own permutation of the slots, backends take turns, and each turn takes the next slot that is free.
//! Where a permutation starts and how it steps comes from a hash of the backend, and there are two
//! [families](HashFamily) of them.
//!
//! ```
//! use lb_core::{addr::{BackendAddr, Protocol}, maglev, table::TableSize};
//!
//! let backend = |ip: [u8; 4]| BackendAddr::new(ip.into(), 80, Protocol::Tcp);
//! let backends = [(backend([10, 0, 0, 1]), 100), (backend([10, 0, 0, 2]), 100)];
//! let cilium = maglev::HashFamily::Cilium("JLfvgnHc2kaSUFaI".parse()?);
//! assert_eq!(maglev::table(&backends, TableSize::new(251)?, &cilium).len(), 251);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```

mod cilium;
mod murmur3;
mod seed;
mod sip;
#[cfg(test)]
mod tests;

use alloc::{vec, vec::Vec};

pub use seed::{BadSeed, CiliumSeed, siphash_key};

use crate::{addr::BackendAddr, table::TableSize};

/// Where permutations come from, and how weights become turns. All nodes must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HashFamily {
    /// One SipHash-2-4-128 of the address, port and protocol under this key: nobody can compute a skewed table without
    /// it. A backend of weight `w` takes `w / max` turns per round; weight 0 counts as absent.
    SipHash([u8; 16]),
    /// Cilium's: MurmurHash3-x64-128 of a text. The same backends, weights and seed give the table that Cilium builds,
    /// so that nodes of both kinds agree on it. Whoever can choose backends' addresses can skew it.
    ///
    /// Only the table is the same: datapaths pick its slots by [their own flow hash](crate::flow_hash).
    ///
    /// Weights are as Cilium has them: as long as their mean is less than 2, they have no say; and a backend of weight
    /// 0 has one slot, or as many as all others while weights have no say. The model never puts such a backend into a
    /// table.
    Cilium(CiliumSeed),
}

impl Default for HashFamily {
    /// SipHash under a fixed, public key.
    fn default() -> Self {
        Self::SipHash(*b"lb-maglev-key-v1")
    }
}

/// The table of `backends` (address and weight): for each slot an index into `backends`.
///
/// Depends on addresses and weights only, not on their order. Empty if there is no backend (or none has weight, for
/// [`HashFamily::SipHash`]). Needs memory for the table and a few words per slot and backend; expected time is
/// proportional to `size × ln(size)` for equal weights.
#[must_use]
pub fn table(backends: &[(BackendAddr, u16)], size: TableSize, family: &HashFamily) -> Vec<u32> {
    match family {
        HashFamily::SipHash(key) => sip::table(backends, size, key),
        HashFamily::Cilium(seed) => cilium::table(backends, size, *seed),
    }
}

/// One backend's walk along its permutation of the slots.
struct Walk {
    index: u32,
    position: u32,
    skip: u32,
}

impl Walk {
    fn new(index: u32, (h1, h2): (u64, u64), size: TableSize) -> Self {
        let size = u64::from(size.get());
        Self { index, position: (h1 % size) as u32, skip: (h2 % (size - 1)) as u32 + 1 }
    }
}

/// A table that fills up.
struct Filling {
    slots: Vec<u32>,
    /// A bit per slot. Walks probe many slots for each that they take, and these bits fit into the nearest cache.
    taken: Vec<u64>,
    free: u32,
}

impl Filling {
    fn new(size: TableSize) -> Self {
        let slots = size.get();
        Self { slots: vec![0; slots as usize], taken: vec![0; slots.div_ceil(64) as usize], free: slots }
    }

    const fn is_full(&self) -> bool {
        self.free == 0
    }

    /// Assigns the next free slot of the walk to its backend.
    ///
    /// The size is prime, so a walk meets every slot once before it repeats: with a free slot left, it ends.
    fn take(&mut self, walk: &mut Walk) {
        let size = self.slots.len() as u32;
        loop {
            let slot = walk.position;
            let next = slot + walk.skip;
            walk.position = if next >= size { next - size } else { next };
            let (word, bit) = (&mut self.taken[slot as usize / 64], 1 << (slot % 64));
            if *word & bit == 0 {
                *word |= bit;
                self.slots[slot as usize] = walk.index;
                self.free -= 1;
                return;
            }
        }
    }
}
