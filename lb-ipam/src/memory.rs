//! A ledger in memory.

use alloc::{boxed::Box, collections::BTreeMap};
use core::net::IpAddr;

use crate::{Entry, Ledger, LedgerError};

/// A ledger in memory, for one process. Its owner saves [`entries`](Ledger::entries) and restores them with `collect`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryLedger(BTreeMap<IpAddr, Entry>);

impl Ledger for MemoryLedger {
    fn get(&self, address: IpAddr) -> Option<Entry> {
        self.0.get(&address).cloned()
    }

    fn entries(&self) -> Box<dyn Iterator<Item = (IpAddr, Entry)> + '_> {
        Box::new(self.0.iter().map(|(address, entry)| (*address, entry.clone())))
    }

    fn compare_and_set(
        &mut self,
        address: IpAddr,
        expected: Option<&Entry>,
        new: Option<Entry>,
    ) -> Result<(), LedgerError> {
        let found = self.0.get(&address);
        if found != expected {
            return Err(LedgerError::Changed { found: found.cloned() });
        }
        match new {
            Some(entry) => self.0.insert(address, entry),
            None => self.0.remove(&address),
        };
        Ok(())
    }
}

impl FromIterator<(IpAddr, Entry)> for MemoryLedger {
    fn from_iter<I: IntoIterator<Item = (IpAddr, Entry)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}
