//! What happened to clusters, so that nobody has to believe that it did.

use std::fmt;

/// How often each thing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Operations of every kind.
    pub(crate) operations: u64,
    /// Times that everything was brought in order, and looked at.
    pub(crate) settled: u64,
    /// Starts over the ledger as it was left.
    pub(crate) restarts: u64,
    /// Those of them after an end in the middle of bringing things in order.
    pub(crate) crashes: u64,
    /// Starts with statuses alone.
    pub(crate) lost_ledgers: u64,
    /// Writes that failed and were not made.
    pub(crate) lost_writes: u64,
    /// Writes that were said to fail and were made.
    pub(crate) unheard_writes: u64,
    /// Statuses that somebody else wrote.
    pub(crate) foreign: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        let pairs = self.numbers_mut().into_iter().zip(other.numbers());
        pairs.for_each(|((sum, _), (number, _))| *sum += number);
    }

    /// Whether everything happened.
    pub(crate) fn is_complete(&self) -> bool {
        self.numbers().iter().all(|(number, _)| *number > 0)
    }

    fn numbers(mut self) -> [(u64, &'static str); 8] {
        self.numbers_mut().map(|(number, what)| (*number, what))
    }

    fn numbers_mut(&mut self) -> [(&mut u64, &'static str); 8] {
        [
            (&mut self.operations, "operations"),
            (&mut self.settled, "reconciles checked"),
            (&mut self.restarts, "restarts"),
            (&mut self.crashes, "of them after a crash"),
            (&mut self.lost_ledgers, "lost ledgers"),
            (&mut self.lost_writes, "writes failed"),
            (&mut self.unheard_writes, "writes made that were said to fail"),
            (&mut self.foreign, "statuses that somebody else wrote"),
        ]
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.numbers().map(|(number, what)| format!("{number} {what}"));
        f.write_str(&parts.join(", "))
    }
}
