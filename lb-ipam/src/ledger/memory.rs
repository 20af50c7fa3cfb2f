//! A ledger in memory.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, btree_map},
};
use core::net::IpAddr;

use lb_core::addr::Family;

use crate::{
    Entry, Ledger, LedgerError,
    range::{self, FAMILIES, number, slot},
};

/// A ledger in memory, for one process. Its owner saves [`entries`](Ledger::entries) and restores them with `collect`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryLedger([BTreeMap<u128, Entry>; 2]);

impl Ledger for MemoryLedger {
    fn get(&self, address: IpAddr) -> Option<Entry> {
        self.0[slot(Family::of(address))].get(&number(address)).cloned()
    }

    fn entries(&self) -> Box<dyn Iterator<Item = (IpAddr, Entry)> + '_> {
        let of_family = |family| {
            let entries = self.0[slot(family)].iter();
            entries.map(move |(number, entry)| (range::address(family, *number), entry.clone()))
        };
        Box::new(FAMILIES.into_iter().flat_map(of_family))
    }

    fn compare_and_set(
        &mut self,
        address: IpAddr,
        expected: Option<&Entry>,
        new: Option<Entry>,
    ) -> Result<(), LedgerError> {
        // One search for both, because this is most of what an address costs.
        match (self.0[slot(Family::of(address))].entry(number(address)), new) {
            (btree_map::Entry::Occupied(found), _) if Some(found.get()) != expected => {
                return Err(LedgerError::Changed { found: Some(found.get().clone()) });
            }
            (btree_map::Entry::Vacant(_), _) if expected.is_some() => return Err(LedgerError::Changed { found: None }),
            (btree_map::Entry::Occupied(mut found), Some(new)) => drop(found.insert(new)),
            (btree_map::Entry::Occupied(found), None) => drop(found.remove()),
            (btree_map::Entry::Vacant(place), Some(new)) => drop(place.insert(new)),
            (btree_map::Entry::Vacant(_), None) => {}
        }
        Ok(())
    }
}

impl FromIterator<(IpAddr, Entry)> for MemoryLedger {
    fn from_iter<I: IntoIterator<Item = (IpAddr, Entry)>>(entries: I) -> Self {
        let mut ledger = Self::default();
        for (address, entry) in entries {
            ledger.0[slot(Family::of(address))].insert(number(address), entry);
        }
        ledger
    }
}
