//! A ledger that fails when it is told to.

use std::{cell::Cell, net::IpAddr};

use lb_ipam::{Entry, Ledger, LedgerError, MemoryLedger};

use crate::mutants::Mutant;

/// What survives the process, and what the process sees of it.
#[derive(Clone, Default)]
pub(crate) struct Flaky {
    pub(crate) store: MemoryLedger,
    view: MemoryLedger,
    pub(crate) failure: Cell<Option<Failure>>,
    mutant: Option<Mutant>,
    writes: u32,
    /// Writes that failed: those that were not made, and those that were.
    pub(crate) failed: Cell<[u64; 2]>,
}

/// How the ledger fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// After so many writes.
    pub(crate) after: u8,
    /// Once, or until the process ends.
    pub(crate) once: bool,
    /// Whether the first write that fails is made all the same.
    pub(crate) made: bool,
}

impl Flaky {
    pub(crate) fn new(mutant: Option<Mutant>) -> Self {
        Self { mutant, ..Self::default() }
    }

    /// What a process sees that starts now.
    pub(crate) fn restarted(&self) -> Self {
        let kept = |(_, entry): &(IpAddr, Entry)| {
            self.mutant != Some(Mutant::RestartForgetsFreed) || !matches!(entry, Entry::Freed(_))
        };
        let store: MemoryLedger = self.store.entries().filter(kept).collect();
        Self { view: store.clone(), store, mutant: self.mutant, writes: self.writes, ..Self::default() }
    }

    /// The failure of this write, if it fails.
    fn fails(&self) -> Option<Failure> {
        let failure = self.failure.get()?;
        let next = Failure { after: failure.after.saturating_sub(1), ..failure };
        if failure.after > 0 {
            self.failure.set(Some(next));
            return None;
        }
        self.failure.set((!failure.once).then_some(Failure { made: false, ..next }));
        let mut failed = self.failed.get();
        failed[usize::from(failure.made)] += 1;
        self.failed.set(failed);
        Some(failure)
    }
}

impl Ledger for Flaky {
    fn get(&self, address: IpAddr) -> Option<Entry> {
        self.view.get(address)
    }

    fn entries(&self) -> Box<dyn Iterator<Item = (IpAddr, Entry)> + '_> {
        self.view.entries()
    }

    fn compare_and_set(
        &mut self,
        address: IpAddr,
        expected: Option<&Entry>,
        new: Option<Entry>,
    ) -> Result<(), LedgerError> {
        if let Some(failure) = self.fails() {
            if failure.made {
                // Whether it is made or refused because something else is there, nobody hears of it.
                let _ = self.store.compare_and_set(address, expected, new);
            }
            return Err(LedgerError::Failed("the disk is full".to_owned()));
        }
        let seen = self.view.get(address);
        match self.store.compare_and_set(address, expected, new.clone()) {
            Ok(()) => {
                self.writes += 1;
                let new = Mutant::written(self.mutant, self.writes, seen.as_ref(), new);
                let now = self.store.get(address);
                self.store.compare_and_set(address, now.as_ref(), new.clone())?;
                self.view.compare_and_set(address, seen.as_ref(), new)
            }
            Err(LedgerError::Changed { found }) => {
                self.view.compare_and_set(address, seen.as_ref(), found.clone())?;
                Err(LedgerError::Changed { found })
            }
            Err(failed) => Err(failed),
        }
    }
}
