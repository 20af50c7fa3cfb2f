//! Slot tables: how weights become slots for each algorithm.

use alloc::{sync::Arc, vec::Vec};

use crate::{
    addr::BackendAddr,
    maglev::{self, HashFamily},
    selection::Usable,
    service::Algorithm,
    state::Lookup,
};

/// Most slots of a table other than Maglev's of up to this many backends; a table of more backends has one slot
/// for each.
pub const MAX_PLAIN_SLOTS: usize = 4093;

/// Number of slots of a Maglev table: one of ten primes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize(u32);

/// The number is not a table size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table size {0} is not one of {sizes:?}", sizes = TableSize::PRIMES)]
pub struct BadTableSize(pub u32);

impl TableSize {
    /// The sizes there are.
    pub const PRIMES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131_071];

    /// A table of `slots` slots.
    ///
    /// # Errors
    /// When `slots` is not one of [`TableSize::PRIMES`].
    pub fn new(slots: u32) -> Result<Self, BadTableSize> {
        if Self::PRIMES.contains(&slots) { Ok(Self(slots)) } else { Err(BadTableSize(slots)) }
    }

    /// The smallest size with a hundred slots per backend, the largest if there is none: with a hundred, shares
    /// differ by about one per cent (Maglev paper, section 5.3).
    #[must_use]
    pub fn for_backends(backends: usize) -> Self {
        let wanted = backends.saturating_mul(100);
        let fits = Self::PRIMES.into_iter().find(|&prime| prime as usize >= wanted);
        Self(fits.unwrap_or(131_071))
    }

    /// The largest size of at most `slots` slots, if there is one.
    #[must_use]
    pub fn largest_within(slots: u32) -> Option<Self> {
        Self::PRIMES.into_iter().rev().find(|&prime| prime <= slots).map(Self)
    }

    /// Slots.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The specification of a table. Equal specifications lead to equal tables, under one [family](HashFamily).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableSpec {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Slots of a Maglev table; `None`: [`TableSize::for_backends`].
    pub size: Option<TableSize>,
    /// Backends with their weights, in order of address, none of weight 0.
    pub backends: Vec<(BackendAddr, u16)>,
}

impl TableSpec {
    /// The specification for the usable backends of a selection, in lowest terms: weights are divided by their
    /// greatest common divisor, unless Maglev's `family` cares for their size; and only Maglev has a size.
    #[must_use]
    pub fn new(algorithm: Algorithm, size: Option<TableSize>, family: &HashFamily, usable: &[Usable]) -> Self {
        let divisor = match (algorithm, family) {
            (Algorithm::Maglev, HashFamily::Cilium(_)) => 1,
            _ => usable.iter().map(|u| u.weight).fold(0, gcd).max(1),
        };
        Self {
            algorithm,
            size: size.filter(|_| algorithm == Algorithm::Maglev),
            backends: usable.iter().map(|u| (u.addr, u.weight / divisor)).collect(),
        }
    }

    /// How a datapath picks a slot.
    #[must_use]
    pub const fn lookup(&self) -> Lookup {
        match self.algorithm {
            Algorithm::Random => Lookup::Random,
            Algorithm::RoundRobin => Lookup::RoundRobin,
            Algorithm::Maglev => Lookup::Hash,
            Algorithm::LeastConnections => Lookup::LeastConnections,
        }
    }

    /// The table: for each slot an index into `backends`. Empty without backends.
    ///
    /// All but Maglev have a slot per unit of weight, after division by the greatest common divisor; beyond
    /// [`MAX_PLAIN_SLOTS`] shares are rounded to that many slots by largest remainder.
    #[must_use]
    pub fn slots(&self, family: &HashFamily) -> Vec<u32> {
        match self.algorithm {
            Algorithm::Maglev => {
                let size = self.size.unwrap_or_else(|| TableSize::for_backends(self.backends.len()));
                maglev::table(&self.backends, size, family)
            }
            Algorithm::Random | Algorithm::LeastConnections => in_blocks(&self.shares()),
            Algorithm::RoundRobin => interleaved(&self.shares()),
        }
    }

    /// Number of slots of each backend.
    fn shares(&self) -> Vec<usize> {
        let weights: Vec<usize> = self.backends.iter().map(|(_, weight)| usize::from(*weight)).collect();
        let divisor = usize::from(self.backends.iter().map(|(_, weight)| *weight).fold(0, gcd).max(1));
        let exact: Vec<usize> = weights.iter().map(|weight| weight / divisor).collect();
        let most = MAX_PLAIN_SLOTS.max(weights.len());
        if exact.iter().sum::<usize>() <= most { exact } else { apportion(&weights, most) }
    }
}

/// The specification's table with backends as ids.
pub(crate) fn with_ids<I: Copy>(slots: &[u32], ids: &[I]) -> Arc<[I]> {
    slots.iter().map(|&index| ids[index as usize]).collect()
}

fn in_blocks(shares: &[usize]) -> Vec<u32> {
    (0u32..).zip(shares).flat_map(|(index, &share)| core::iter::repeat_n(index, share)).collect()
}

/// Each backend's slots spread evenly over the turn.
fn interleaved(shares: &[usize]) -> Vec<u32> {
    let mut turns: Vec<(u64, u32)> = Vec::with_capacity(shares.iter().sum());
    for (index, &share) in (0u32..).zip(shares) {
        let share = share as u64;
        turns.extend((0..share).map(|nth| (((2 * nth + 1) << 32) / (2 * share), index)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, index)| index).collect()
}

/// Largest remainder method, at least one slot each.
fn apportion(weights: &[usize], slots: usize) -> Vec<usize> {
    let total: usize = weights.iter().sum();
    let spare = slots - weights.len();
    let mut shares: Vec<usize> = weights.iter().map(|weight| 1 + weight * spare / total).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|&i| core::cmp::Reverse(weights[i] * spare % total));
    let left = slots - shares.iter().sum::<usize>();
    for &index in by_remainder.iter().take(left) {
        shares[index] += 1;
    }
    shares
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::addr::Protocol;

    fn spec(algorithm: Algorithm, weights: &[u16]) -> TableSpec {
        let backends = (1u8..)
            .zip(weights)
            .map(|(n, &weight)| (BackendAddr::new(Ipv4Addr::new(10, 0, 0, n).into(), 80, Protocol::Tcp), weight))
            .collect();
        TableSpec { algorithm, size: None, backends }
    }

    #[test]
    fn equal_weights_have_one_slot_each() {
        assert_eq!(spec(Algorithm::Random, &[100, 100, 100]).slots(&HashFamily::default()), [0, 1, 2]);
    }

    #[test]
    fn weights_become_slots_after_division() {
        assert_eq!(spec(Algorithm::Random, &[300, 100]).slots(&HashFamily::default()), [0, 0, 0, 1]);
    }

    #[test]
    fn round_robin_spreads_a_heavy_backend_over_the_turn() {
        assert_eq!(spec(Algorithm::RoundRobin, &[2, 1, 1]).slots(&HashFamily::default()), [0, 1, 2, 0]);
    }

    #[test]
    fn awkward_weights_are_rounded_to_the_largest_plain_table() {
        let slots = spec(Algorithm::Random, &[65535, 65534, 1]).slots(&HashFamily::default());
        assert_eq!(slots.len(), MAX_PLAIN_SLOTS);
        let count = |index| slots.iter().filter(|&&slot| slot == index).count();
        assert_eq!((count(0), count(1), count(2)), (2046, 2046, 1));
    }

    #[test]
    fn no_backends_give_no_slots() {
        for algorithm in [Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev] {
            assert!(spec(algorithm, &[]).slots(&HashFamily::default()).is_empty(), "{algorithm}");
        }
    }

    #[test]
    fn table_size_follows_the_number_of_backends() {
        for (backends, slots) in [(0, 251), (2, 251), (3, 509), (10, 1021), (163, 16381), (164, 32749), (5000, 131_071)]
        {
            assert_eq!(TableSize::for_backends(backends).get(), slots, "{backends} backends");
        }
    }

    #[test]
    fn other_table_sizes_are_refused() {
        assert_eq!(TableSize::new(250), Err(BadTableSize(250)));
        assert!(TableSize::new(65521).is_ok());
    }
}
