//! Every change of the ledger: each names what it replaces.

use alloc::{string::ToString, sync::Arc, vec::Vec};
use core::net::IpAddr;

use crate::{
    Allocator, Entry, Freed, Holders, Ledger, LedgerError, Pool, ReleaseCause, Released, ReservedBy,
    allocator::reconcile::Run, book::Slot,
};

impl<L: Ledger> Allocator<L> {
    /// Marks an address as in use by something else on the network, such as a hardware address. Its holder loses it and
    /// gets another one in the next reconcile, unless it asks for this one by name.
    ///
    /// # Errors
    /// When the ledger was not changed.
    pub fn claim(&mut self, address: IpAddr, by: &str) -> Result<(), LedgerError> {
        self.set_aside(address, Entry::Conflict(by.into()))
    }

    /// Reserves an address. Its holder loses it and gets another one in the next reconcile, unless it asks for this one
    /// by name.
    ///
    /// # Errors
    /// When the ledger was not changed.
    pub fn reserve(&mut self, address: IpAddr, why: &str) -> Result<(), LedgerError> {
        self.set_aside(address, Entry::Reserved(why.into()))
    }

    /// Reverts [`claim`](Self::claim) or [`reserve`](Self::reserve). Has no effect on other addresses.
    ///
    /// # Errors
    /// When the ledger was not changed.
    pub fn clear(&mut self, address: IpAddr) -> Result<(), LedgerError> {
        self.down = None;
        match self.ledger.get(address) {
            Some(before @ (Entry::Conflict(_) | Entry::Reserved(_))) => self.write(address, Some(&before), None),
            Some(Entry::Held(_) | Entry::Freed(_)) | None => Ok(()),
        }
    }

    fn set_aside(&mut self, address: IpAddr, entry: Entry) -> Result<(), LedgerError> {
        self.down = None;
        let before = self.ledger.get(address);
        if before.as_ref() == Some(&entry) {
            return Ok(());
        }
        let why = match &entry {
            Entry::Conflict(by) => ReleaseCause::Claimed(by.to_string()),
            Entry::Reserved(why) => ReleaseCause::Reserved(ReservedBy::Named { why: why.to_string() }),
            Entry::Held(_) | Entry::Freed(_) => return Ok(()),
        };
        self.write(address, before.as_ref(), Some(entry))?;
        self.book.note(address, before.as_ref(), None);
        for holder in before.as_ref().map_or(&[][..], Entry::holders) {
            self.released.push(Released { service: holder.clone(), address, why: why.clone() });
        }
        Ok(())
    }

    /// Makes the service a holder of the address, beside its present holders.
    pub(super) fn hold(&mut self, slot: Slot, address: IpAddr) -> Result<(), LedgerError> {
        let name = &self.book.get(slot).name;
        let before = self.ledger.get(address);
        let after = match &before {
            Some(Entry::Held(holders)) => holders.with(name),
            Some(Entry::Freed(_)) | None => Holders::one(name.clone()),
            Some(Entry::Reserved(_) | Entry::Conflict(_)) => return Err(LedgerError::Changed { found: before }),
        };
        self.write(address, before.as_ref(), Some(Entry::Held(after)))?;
        if let Some(Entry::Freed(freed)) = &before {
            self.book.remove_left(&freed.last, address);
        }
        self.book.add_held(slot, address);
        Ok(())
    }

    /// Takes the address from the service. If no holder is left, the address is quarantined.
    pub(super) fn release(&mut self, slot: Slot, address: IpAddr, why: ReleaseCause) -> Result<(), LedgerError> {
        let name = self.book.get(slot).name.clone();
        let before = self.ledger.get(address);
        let Some(Entry::Held(holders)) = &before else {
            self.book.remove_held(slot, address);
            return Ok(());
        };
        let after = match holders.without(&name) {
            Some(rest) => Some(Entry::Held(rest)),
            None => self.freed(slot, address),
        };
        // If the write fails, it may have been made all the same.
        self.released.push(Released { service: name.clone(), address, why });
        self.write(address, before.as_ref(), after.clone())?;
        if let Some(Entry::Freed(_)) = after {
            self.book.add_left(&name, address);
        }
        self.book.remove_held(slot, address);
        self.has_released = true;
        Ok(())
    }

    /// The entry of an address that the service was the last to hold. The address drains only if the service lives on,
    /// because connections to a service that is gone are gone as well.
    fn freed(&self, slot: Slot, address: IpAddr) -> Option<Entry> {
        let tracked = self.book.get(slot);
        let pool = self.catalog.owner(address).map(|compiled| &*compiled.pool);
        let drain = pool.filter(|_| tracked.request.is_some()).map_or_else(Default::default, |pool| pool.drain);
        let drained = self.now + drain;
        let rested = drained + pool.map_or(Pool::DEFAULT_QUARANTINE, |pool| pool.quarantine);
        let forgotten = rested.max(self.now + self.settings.sticky);
        let last = tracked.name.clone();
        let freed = Freed { last, at: self.now, drained, rested, forgotten };
        (forgotten > self.now).then(|| Entry::Freed(Arc::new(freed)))
    }

    /// Changes one entry, and everything that follows from it except in the book.
    fn write(&mut self, address: IpAddr, before: Option<&Entry>, after: Option<Entry>) -> Result<(), LedgerError> {
        if before == after.as_ref() {
            return Ok(());
        }
        if let Some(error) = &self.down {
            return Err(error.clone());
        }
        match self.ledger.compare_and_set(address, before, after.clone()) {
            Ok(()) => {
                self.ledger_writes += 1;
                self.note_change(address, before, after.as_ref());
                self.index.note(&self.catalog, address, before, after.as_ref());
                Ok(())
            }
            Err(LedgerError::Changed { found }) => {
                self.note_change(address, before, found.as_ref());
                self.index.note(&self.catalog, address, before, found.as_ref());
                self.book.note(address, before, found.as_ref());
                if found != after {
                    self.note_overwritten(address, before, found.as_ref());
                }
                // A write of this process that was thought to have failed.
                if found == after { Ok(()) } else { Err(LedgerError::Changed { found }) }
            }
            Err(error) => {
                self.unsure.entry(address).or_default().push(after);
                self.down = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Notes who held the address before something else changed the ledger.
    fn note_overwritten(&mut self, address: IpAddr, before: Option<&Entry>, found: Option<&Entry>) {
        let now = found.map_or(&[][..], Entry::holders);
        for holder in before.map_or(&[][..], Entry::holders).iter().filter(|holder| !now.contains(holder)) {
            self.released.push(Released { service: holder.clone(), address, why: ReleaseCause::Overwritten });
        }
    }

    /// Finds out what became of writes that failed, by putting what should be there in its own place.
    pub(super) fn make_sure(&mut self) {
        for (address, intended) in core::mem::take(&mut self.unsure) {
            let before = self.ledger.get(address);
            let sure = match &self.down {
                Some(error) => Err(error.clone()),
                None => self.ledger.compare_and_set(address, before.as_ref(), before.clone()),
            };
            match sure {
                Ok(()) => {}
                Err(LedgerError::Changed { found }) => {
                    self.note_change(address, before.as_ref(), found.as_ref());
                    self.index.note(&self.catalog, address, before.as_ref(), found.as_ref());
                    self.book.note(address, before.as_ref(), found.as_ref());
                    if !intended.contains(&found) {
                        self.note_overwritten(address, before.as_ref(), found.as_ref());
                    }
                    let holders = found.as_ref().map_or(&[][..], Entry::holders);
                    if intended.contains(&found) {
                        self.book.abandon_unknown(holders);
                    }
                }
                Err(error @ LedgerError::Failed(_)) => {
                    self.down = Some(error);
                    self.unsure.entry(address).or_default().extend(intended);
                }
            }
        }
    }

    /// Frees for good what nobody needs to remember. What fails is tried again by the next reconcile.
    pub(super) fn forget_old(&mut self, run: &mut Run) {
        for address in self.index.to_forget(self.now) {
            let before = self.ledger.get(address);
            let Some(Entry::Freed(freed)) = &before else { continue };
            let forgotten = self.write(address, before.as_ref(), None);
            match (forgotten, self.book.find(&freed.last)) {
                (Ok(()), _) => self.book.remove_left(&freed.last, address),
                (Err(LedgerError::Failed(why)), Some(slot)) => run.note(slot, Err(LedgerError::Failed(why))),
                (Err(LedgerError::Failed(_) | LedgerError::Changed { .. }), _) => {}
            }
        }
    }

    /// Releases the addresses of services that are gone.
    pub(super) fn release_orphans(&mut self, run: &mut Run) {
        for slot in self.book.orphans() {
            let released = self.release_all(slot, &ReleaseCause::ServiceGone);
            run.note(slot, released);
        }
    }

    pub(super) fn release_all(&mut self, slot: Slot, why: &ReleaseCause) -> Result<(), LedgerError> {
        while let Some(&address) = self.book.get(slot).held.first() {
            self.release(slot, address, why.clone())?;
        }
        Ok(())
    }

    /// Has those looked at with whom the service shares, because it may have changed so that it no longer may.
    pub(super) fn touch_sharers(&mut self, slot: Slot) {
        let entries = self.book.get(slot).held.iter().filter_map(|address| self.ledger.get(*address));
        let others = entries.flat_map(|entry| entry.holders().to_vec()).filter_map(|name| self.book.find(&name));
        let others: Vec<Slot> = others.filter(|other| *other != slot).collect();
        others.into_iter().for_each(|other| self.book.mark(other));
    }
}
