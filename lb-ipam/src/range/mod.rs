//! Addresses as numbers, and ranges of them.

pub(crate) mod bands;
pub(crate) mod intervals;

use alloc::vec::Vec;
use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use lb_core::addr::Family;

/// Both families, in the order in which everything is done.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Place of a family in arrays of two.
pub(crate) const fn slot(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// The common name of a family.
pub(crate) const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with this number; bits that the family does not have are cut off.
pub(crate) const fn address(family: Family, number: u128) -> IpAddr {
    match family {
        #[expect(clippy::cast_possible_truncation, reason = "numbers of IPv4 addresses have 32 bits")]
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// Addresses of one family, both ends included, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    family: Family,
    first: u128,
    last: u128,
}

impl AddressRange {
    /// From `first` to `last`, both included; `None` if they are of two families or in the wrong order.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        let family = Family::of(first);
        let (first, last) = (number(first), (Family::of(last) == family).then(|| number(last))?);
        (first <= last).then_some(Self { family, first, last })
    }

    /// One address.
    #[must_use]
    pub fn single(address: IpAddr) -> Self {
        let only = number(address);
        Self { family: Family::of(address), first: only, last: only }
    }

    /// The network that `net` is in, whatever its host bits say.
    #[must_use]
    pub fn of_net(net: IpNet) -> Self {
        Self { family: Family::of(net.addr()), first: number(net.network()), last: number(net.broadcast()) }
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The lowest address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        address(self.family, self.first)
    }

    /// The highest address.
    #[must_use]
    pub const fn last(&self) -> IpAddr {
        address(self.family, self.last)
    }

    /// Whether `address` is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family && (self.first..=self.last).contains(&number(address))
    }

    /// Whether some address is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.family == other.family && self.first <= other.last && other.first <= self.last
    }

    /// From one number to another, in order.
    pub(crate) const fn of_numbers(family: Family, first: u128, last: u128) -> Self {
        Self { family, first, last }
    }

    /// The ends as numbers.
    pub(crate) const fn bounds(&self) -> (u128, u128) {
        (self.first, self.last)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first())?;
        if self.first == self.last { Ok(()) } else { write!(f, "-{}", self.last()) }
    }
}

/// Sorted, disjoint ranges of numbers of one family, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<(u128, u128)>);

impl RangeSet {
    /// The union of `ranges`, which may overlap and come in any order.
    pub(crate) fn of(mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if before.1 == u128::MAX || first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// The numbers that are in `self` and not in `other`.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.0.len());
        let mut holes = other.0.iter().peekable();
        for &(first, last) in &self.0 {
            let mut from = Some(first);
            while holes.peek().is_some_and(|hole| hole.1 < first) {
                holes.next();
            }
            for &(hole_first, hole_last) in holes.clone().take_while(|hole| hole.0 <= last) {
                let Some(start) = from else { break };
                if hole_first > start {
                    left.push((start, hole_first - 1));
                }
                from = hole_last.checked_add(1).filter(|next| *next <= last).map(|next| next.max(start));
            }
            left.extend(from.map(|start| (start, last)));
        }
        Self(left)
    }

    /// The ends of the numbers that are in it and from `first` to `last`, if there are any.
    pub(crate) fn span_within(&self, first: u128, last: u128) -> Option<(u128, u128)> {
        let from = self.0.partition_point(|range| range.1 < first);
        let to = self.0.partition_point(|range| range.0 <= last);
        let within = self.0.get(from..to)?;
        Some((within.first()?.0.max(first), within.last()?.1.min(last)))
    }

    pub(crate) fn contains(&self, number: u128) -> bool {
        let at = self.0.partition_point(|range| range.1 < number);
        self.0.get(at).is_some_and(|range| range.0 <= number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.0.iter().copied()
    }

    /// How many numbers, at most `u128::MAX`.
    pub(crate) fn len(&self) -> u128 {
        self.0.iter().fold(0_u128, |sum, (first, last)| sum.saturating_add((last - first).saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, vec};

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(u128, u128)]) -> BTreeSet<u128> {
        ranges.iter().flat_map(|&(first, last)| first..=last).collect()
    }

    fn ranges() -> impl Strategy<Value = Vec<(u128, u128)>> {
        proptest::collection::vec((0_u128..60, 0_u128..9).prop_map(|(first, more)| (first, first + more)), 0..8)
    }

    proptest! {
        #[test]
        fn sets_of_ranges_are_sets(a in ranges(), b in ranges()) {
            let (left, right) = (RangeSet::of(a.clone()), RangeSet::of(b.clone()));
            let difference = left.without(&right);
            let expected: BTreeSet<_> = set(&a).difference(&set(&b)).copied().collect();
            prop_assert_eq!(set(&difference.0), expected.clone());
            prop_assert_eq!(difference.len(), expected.len() as u128);
            for (first, last) in b {
                let within: Vec<u128> = set(&a).range(first..=last).copied().collect();
                let ends = within.first().copied().zip(within.last().copied());
                prop_assert_eq!(left.span_within(first, last), ends);
            }
            prop_assert!((0..80).all(|n| difference.contains(n) == expected.contains(&n)));
            prop_assert!(left.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }
    }

    #[test]
    fn the_largest_set_is_one_short_of_its_size() {
        let all = RangeSet::of(vec![(0, u128::MAX), (7, 9)]);
        assert_eq!(all.len(), u128::MAX);
        assert_eq!(all.without(&RangeSet::of(vec![(0, 0), (u128::MAX, u128::MAX)])).0, [(1, u128::MAX - 1)]);
        assert_eq!(all.without(&all).len(), 0);
    }

    #[test]
    fn a_range_has_one_family_and_an_order() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(AddressRange::new(ip("10.0.0.2"), ip("10.0.0.1")), None);
        assert_eq!(AddressRange::new(ip("10.0.0.2"), ip("::5")), None);
        let net = AddressRange::of_net("10.0.0.130/25".parse().unwrap());
        assert_eq!(alloc::format!("{net}"), "10.0.0.128-10.0.0.255");
        assert!(net.contains(ip("10.0.0.255")) && !net.contains(ip("::a00:ff")));
    }
}
