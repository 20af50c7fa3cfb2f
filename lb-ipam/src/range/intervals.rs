//! A set of numbers that costs what it holds, not what it could hold.

use alloc::collections::BTreeMap;

/// Numbers, kept as runs without a gap: first number to last. Every operation takes time logarithmic in the number of
/// runs, however large the numbers are and however long the runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intervals(BTreeMap<u128, u128>);

impl Intervals {
    /// Adds `number`; `false` if it was there.
    pub(crate) fn insert(&mut self, number: u128) -> bool {
        let before = self.0.range_mut(..=number).next_back();
        let after = number.checked_add(1);
        match before {
            Some((_, last)) if *last >= number => return false,
            Some((_, last)) if *last + 1 == number => {
                *last = number;
                let Some(joined) = after.and_then(|after| self.0.remove(&after)) else { return true };
                if let Some((_, last)) = self.0.range_mut(..=number).next_back() {
                    *last = joined;
                }
            }
            _ => {
                let last = after.and_then(|after| self.0.remove(&after)).unwrap_or(number);
                self.0.insert(number, last);
            }
        }
        true
    }

    /// Takes `number` out; `false` if it was not there.
    pub(crate) fn remove(&mut self, number: u128) -> bool {
        let Some((&first, last)) = self.0.range_mut(..=number).next_back() else { return false };
        let end = *last;
        if end < number {
            return false;
        }
        if first == number {
            self.0.remove(&first);
        } else {
            *last = number - 1;
        }
        if number < end {
            self.0.insert(number + 1, end);
        }
        true
    }

    /// The lowest number from `first` to `last` that is not in the set.
    pub(crate) fn lowest_gap(&self, first: u128, last: u128) -> Option<u128> {
        let gap = match self.0.range(..=first).next_back() {
            Some((_, &end)) if end >= first => end.checked_add(1)?,
            _ => first,
        };
        (gap <= last).then_some(gap)
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn intervals_are_a_set(ops in proptest::collection::vec((any::<bool>(), 0_u128..40), 0..200)) {
            let (mut intervals, mut naive) = (Intervals::default(), BTreeSet::new());
            for (insert, number) in ops {
                let (done, expected) = if insert {
                    (intervals.insert(number), naive.insert(number))
                } else {
                    (intervals.remove(number), naive.remove(&number))
                };
                prop_assert_eq!(done, expected);
                let gap = (number..=40).find(|n| !naive.contains(n));
                prop_assert_eq!(intervals.lowest_gap(number, 40), gap);
            }
            let runs: Vec<_> = intervals.0.into_iter().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            prop_assert_eq!(runs.iter().map(|(first, last)| last - first + 1).sum::<u128>(), naive.len() as u128);
        }
    }

    #[test]
    fn the_ends_of_the_numbers_are_numbers() {
        let mut intervals = Intervals::default();
        assert!(intervals.insert(u128::MAX) && intervals.insert(u128::MAX - 1) && intervals.insert(0));
        assert_eq!(intervals.lowest_gap(u128::MAX - 1, u128::MAX), None);
        assert_eq!(intervals.lowest_gap(0, u128::MAX), Some(1));
        assert!(intervals.remove(u128::MAX) && !intervals.remove(u128::MAX));
        assert_eq!(intervals.lowest_gap(u128::MAX - 1, u128::MAX), Some(u128::MAX));
    }

    #[test]
    fn a_run_costs_one_entry_however_long_it_is() {
        let mut intervals = Intervals::default();
        (0..100_000).for_each(|number| assert!(intervals.insert(number)));
        assert_eq!(intervals.0.len(), 1);
    }
}
