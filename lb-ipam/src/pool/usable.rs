//! The allocatable addresses of a pool.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::net::IpAddr;

use lb_core::addr::Family;

use crate::{
    AddressRange, Block, Pool, Reservation, ReservedBy, Settings,
    range::{FAMILIES, RangeSet, number, slot},
};

/// The addresses of one pool, sorted out.
#[derive(Clone, Debug)]
pub(crate) struct Usable {
    /// Everything that the blocks contain.
    pub(crate) blocks: [RangeSet; 2],
    /// The allocatable addresses, including those that end in .0 or .255 where the pool avoids them.
    pub(crate) open: [RangeSet; 2],
    edges: [RangeSet; 2],
    avoided: [RangeSet; 2],
    avoid_zero_and_255: bool,
}

impl Usable {
    pub(crate) fn new(pool: &Pool, settings: &Settings) -> Self {
        let ranges = |blocks: &[Block]| blocks.iter().filter_map(|block| block.range().ok()).collect::<Vec<_>>();
        let blocks = by_family(&ranges(&pool.blocks));
        let avoided = by_family(&ranges(&pool.avoid));
        let edges = if pool.allow_first_last { Vec::new() } else { pool.blocks.iter().flat_map(edges).collect() };
        let edges = by_family(&edges);
        let reserved: Vec<_> = settings.reserved.iter().map(|reservation| reservation.range).collect();
        let reserved = by_family(&reserved);
        let open =
            core::array::from_fn(|at| blocks[at].without(&edges[at]).without(&avoided[at]).without(&reserved[at]));
        Self { blocks, open, edges, avoided, avoid_zero_and_255: pool.avoid_zero_and_255 }
    }

    /// Whether the address can be allocated.
    pub(crate) fn is_open(&self, address: IpAddr) -> bool {
        let (family, number) = (Family::of(address), number(address));
        self.open[slot(family)].contains(number) && !self.skips(family, number)
    }

    /// Whether the pool avoids the number because of how it ends.
    pub(crate) const fn skips(&self, family: Family, number: u128) -> bool {
        self.avoid_zero_and_255 && matches!(family, Family::V4) && ends_in_zero_or_255(number)
    }

    /// Whether a service that has the address has to leave it. It may keep a first or last one.
    pub(crate) fn avoids(&self, address: IpAddr) -> bool {
        let (family, number) = (Family::of(address), number(address));
        self.avoided[slot(family)].contains(number) || self.skips(family, number)
    }

    /// Why an address of the pool cannot be allocated, if it cannot.
    pub(crate) fn reserved_by(&self, address: IpAddr, pool: &Pool, settings: &Settings) -> Option<ReservedBy> {
        if let Some(reservation) = settings.reserved.iter().find(|reservation| reservation.range.contains(address)) {
            return Some(ReservedBy::Named { why: reservation.why.clone() });
        }
        let (family, number) = (Family::of(address), number(address));
        if self.avoided[slot(family)].contains(number) {
            return Some(ReservedBy::Avoided { pool: pool.name.clone() });
        }
        if self.skips(family, number) {
            return Some(ReservedBy::ZeroOr255 { pool: pool.name.clone() });
        }
        if !self.edges[slot(family)].contains(number) {
            return None;
        }
        let block = pool.blocks.iter().find(|block| edges(block).any(|edge| edge.contains(address)))?;
        Some(ReservedBy::FirstOrLast { pool: pool.name.clone(), block: block.to_string() })
    }

    /// Addresses of the pool that rules reserve, and for what.
    pub(crate) fn covered(&self, settings: &Settings) -> Vec<(AddressRange, String)> {
        let covered = |reservation: &Reservation| {
            let (family, (first, last)) = (reservation.range.family(), reservation.range.bounds());
            let (first, last) = self.blocks[slot(family)].span_within(first, last)?;
            Some((AddressRange::of_numbers(family, first, last), reservation.why.clone()))
        };
        settings.reserved.iter().filter_map(covered).collect()
    }

    /// What else keeps addresses of the family from being allocated.
    pub(crate) fn kept_back(&self, family: Family) -> impl Iterator<Item = &'static str> {
        let at = slot(family);
        let skips = self.avoid_zero_and_255 && family == Family::V4;
        let kept = [
            (self.edges[at].iter().next().is_some(), "the first and last addresses of its blocks"),
            (self.avoided[at].iter().next().is_some(), "addresses that it avoids"),
            (skips, "addresses that end in .0 or .255"),
        ];
        kept.into_iter().filter(|(is, _)| *is).map(|(_, what)| what)
    }

    /// How many addresses of the family can be allocated, and how many the blocks contain.
    pub(crate) fn sizes(&self, family: Family) -> (u128, u128) {
        let (open, all) = (&self.open[slot(family)], &self.blocks[slot(family)]);
        let skips = self.avoid_zero_and_255 && family == Family::V4;
        let skipped = if skips { open.iter().map(zeros_and_255s).sum() } else { 0 };
        (open.len() - skipped, all.len())
    }
}

fn by_family(ranges: &[AddressRange]) -> [RangeSet; 2] {
    FAMILIES.map(|family| {
        RangeSet::of(ranges.iter().filter(|range| range.family() == family).map(AddressRange::bounds).collect())
    })
}

/// The first and last address of a network of more than two.
fn edges(block: &Block) -> impl Iterator<Item = AddressRange> {
    let range = match block {
        Block::Cidr(net) => Some(AddressRange::of_net(*net)),
        Block::Range { .. } | Block::Address(_) | Block::Unreadable(_) => None,
    };
    let large = range.filter(|range| range.bounds().1 - range.bounds().0 > 1);
    large.into_iter().flat_map(|range| [AddressRange::single(range.first()), AddressRange::single(range.last())])
}

const fn ends_in_zero_or_255(number: u128) -> bool {
    matches!(number & 0xff, 0 | 0xff)
}

/// How many numbers from `first` to `last` end in 0 or 255.
fn zeros_and_255s((first, last): (u128, u128)) -> u128 {
    // Up to and including `n` there are n / 256 + 1 that end in 0 and (n + 1) / 256 that end in 255.
    let up_to = |n: u128| n / 256 + 1 + (n + 1) / 256;
    up_to(last) - first.checked_sub(1).map_or(0, up_to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_end_in_zero_or_255_are_counted_as_they_are_skipped() {
        for (first, last) in [(0, 0), (0, 255), (1, 254), (255, 256), (200, 1800), (256, 511), (3, 3)] {
            let counted = (first..=last).filter(|number| ends_in_zero_or_255(*number)).count();
            assert_eq!(zeros_and_255s((first, last)), counted as u128, "{first}..={last}");
        }
    }
}
