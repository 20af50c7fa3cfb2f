//! A range of numbers of which the lower ones are kept for those that ask by number (KEP-3070, KEP-3668).

use crate::range::intervals::Intervals;

/// The numbers from `first` to `last`. Those before `dynamic` are allocated unasked only when all others are taken.
#[derive(Clone, Debug)]
pub(crate) struct Bands {
    pub(crate) first: u128,
    pub(crate) dynamic: u128,
    pub(crate) last: u128,
    /// Where the search starts: behind the number that was assigned last, so that a released one is not assigned again
    /// soon.
    cursor: u128,
}

impl Bands {
    /// `kept` numbers are kept. `None` if there are no numbers.
    pub(crate) fn new(first: u128, last: u128, kept: u128) -> Option<Self> {
        let dynamic = first.checked_add(kept)?;
        (first <= last).then_some(Self { first, dynamic, last, cursor: dynamic })
    }

    pub(crate) fn contains(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// The next number that is not taken.
    pub(crate) fn next(&self, taken: &Intervals) -> Option<u128> {
        let before = |number: u128| number.checked_sub(1);
        let behind = taken.lowest_gap(self.cursor, self.last);
        let wrapped = || taken.lowest_gap(self.dynamic, before(self.cursor)?.min(self.last));
        let kept = || taken.lowest_gap(self.first, before(self.dynamic)?.min(self.last));
        behind.or_else(wrapped).or_else(kept)
    }

    /// Notes that `number` was allocated unasked.
    pub(crate) fn note_allocated(&mut self, number: u128) {
        if number >= self.dynamic {
            self.cursor = number.checked_add(1).filter(|next| *next <= self.last).unwrap_or(self.dynamic);
        }
    }
}
