//! Addresses of services according to the ledger, and services that are gone but still hold some.

use alloc::vec::Vec;
use core::net::IpAddr;

use lb_core::name::ServiceName;

use super::{Book, Slot};
use crate::Entry;

impl Book {
    pub(crate) fn add_held(&mut self, slot: Slot, address: IpAddr) {
        let tracked = &mut self.slots[slot];
        insert(&mut tracked.held, address);
    }

    pub(crate) fn remove_held(&mut self, slot: Slot, address: IpAddr) {
        let tracked = &mut self.slots[slot];
        tracked.held.retain(|held| *held != address);
        if tracked.held.is_empty() {
            self.orphans.remove(&slot);
        }
        self.drop_if_unused(slot);
    }

    pub(crate) fn add_left(&mut self, name: &ServiceName, address: IpAddr) {
        let slot = self.intern(name);
        insert(&mut self.slots[slot].left, address);
    }

    pub(crate) fn remove_left(&mut self, name: &ServiceName, address: IpAddr) {
        let Some(slot) = self.find(name) else { return };
        self.slots[slot].left.retain(|left| *left != address);
        self.drop_if_unused(slot);
    }

    /// Follows a change of the ledger that nobody here made.
    pub(crate) fn note(&mut self, address: IpAddr, before: Option<&Entry>, after: Option<&Entry>) {
        let gone: Vec<ServiceName> = self.orphans.iter().map(|&slot| self.slots[slot].name.clone()).collect();
        for name in before.map_or(&[][..], Entry::holders) {
            if let Some(slot) = self.find(name) {
                self.mark(slot);
                self.remove_held(slot, address);
            }
        }
        if let Some(Entry::Freed(freed)) = before {
            self.remove_left(&freed.last, address);
        }
        for name in after.map_or(&[][..], Entry::holders) {
            let slot = self.intern(name);
            self.mark(slot);
            self.add_held(slot, address);
        }
        if let Some(Entry::Freed(freed)) = after {
            self.add_left(&freed.last, address);
        }
        // A service that is gone stays gone, whoever else changed the entry.
        self.abandon_unknown(&gone);
    }

    /// Who holds what, in no order.
    pub(crate) fn holdings(&self) -> Vec<(ServiceName, IpAddr)> {
        let slots = self.names.places().map(|slot| &self.slots[slot]);
        slots.flat_map(|tracked| tracked.held.iter().map(|address| (tracked.name.clone(), *address))).collect()
    }

    /// Forgets what everybody has, before the ledger is read anew. Says who is gone and held something.
    pub(crate) fn clear_entries(&mut self) -> Vec<ServiceName> {
        let gone = self.orphans.iter().map(|&slot| self.slots[slot].name.clone()).collect();
        for tracked in &mut self.slots {
            (tracked.held, tracked.left) = (Vec::new(), Vec::new());
        }
        self.orphans.clear();
        let slots: Vec<Slot> = self.names.places().collect();
        slots.into_iter().for_each(|slot| self.drop_if_unused(slot));
        gone
    }

    /// Counts every unknown service that holds an address as gone.
    pub(crate) fn abandon_all_unknown(&mut self) {
        let unknown: Vec<Slot> = self.names.places().filter(|&slot| self.is_unknown_holder(slot)).collect();
        self.orphans.extend(unknown);
    }

    /// Counts the unknown services among `names` that hold an address as gone.
    pub(crate) fn abandon_unknown(&mut self, names: &[ServiceName]) {
        let slots = names.iter().filter_map(|name| self.find(name)).filter(|&slot| self.is_unknown_holder(slot));
        let slots: Vec<Slot> = slots.collect();
        self.orphans.extend(slots);
    }

    fn is_unknown_holder(&self, slot: Slot) -> bool {
        let tracked = &self.slots[slot];
        tracked.request.is_none() && !tracked.unreadable && !tracked.held.is_empty()
    }

    /// Services that are gone and hold something, in order of name.
    pub(crate) fn orphans(&self) -> Vec<Slot> {
        let mut orphans: Vec<Slot> = self.orphans.iter().copied().collect();
        orphans.sort_unstable_by(|&a, &b| self.slots[a].name.cmp(&self.slots[b].name));
        orphans
    }
}

fn insert(sorted: &mut Vec<IpAddr>, address: IpAddr) {
    if let Err(at) = sorted.binary_search(&address) {
        sorted.insert(at, address);
    }
}
