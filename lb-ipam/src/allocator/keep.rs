//! The first phase: a service keeps what it holds, as long as it may.

use alloc::{sync::Arc, vec::Vec};
use core::net::IpAddr;

use lb_core::addr::Family;

use crate::{
    Allocator, Entry, Ledger, LedgerError, Request, Status, WhenSharingBreaks, book::Slot, may_share, range::FAMILIES,
    request::families::families_wanted,
};

impl<L: Ledger> Allocator<L> {
    /// Whether the service is one that gets addresses here.
    pub(super) fn is_ours(&self, request: &Request) -> bool {
        request.load_balancer && self.settings.classes.include(request.class.as_deref())
    }

    /// Releases the addresses of the service that it may not keep.
    pub(super) fn keep(&mut self, slot: Slot) -> Result<(), LedgerError> {
        let Some(request) = self.book.get(slot).request.clone() else { return Ok(()) };
        if !self.is_ours(&request) {
            return self.leave(slot);
        }
        let held = self.book.get(slot).held.clone();
        let surplus = surplus(&request, &held, &self.book.get(slot).told);
        for address in held {
            let keeps = !surplus.contains(&address)
                && self.may_have(&request, address)
                && self.gets_along(slot, &request, address);
            if !keeps {
                self.book.get_mut(slot).lost = true;
                self.release(slot, address)?;
            }
        }
        Ok(())
    }

    /// This allocator does not serve the service, or no longer does.
    fn leave(&mut self, slot: Slot) -> Result<(), LedgerError> {
        let tracked = self.book.get(slot);
        let was_ours = tracked.managed || !tracked.held.is_empty() || tracked.told.condition.is_some();
        self.release_all(slot)?;
        if was_ours {
            self.book.disown(slot);
        }
        Ok(())
    }

    /// Lets the service hold the addresses of its status, unless another service holds them. This is more generous than
    /// an allocation: the pool may be disabled, in conflict, full or beyond its quota.
    pub(super) fn import(&mut self, slot: Slot) -> Result<(), LedgerError> {
        let Some(request) = self.book.get(slot).request.clone() else { return Ok(()) };
        if !self.is_ours(&request) {
            return Ok(());
        }
        for address in self.book.get(slot).told.addresses.clone() {
            if self.book.get(slot).held.contains(&address) {
                continue;
            }
            if self.may_have(&request, address)
                && self.has_room(slot, &request, address)
                && self.is_vacant(slot, &request, address)
            {
                match self.hold(slot, address) {
                    Ok(()) => continue,
                    Err(LedgerError::Changed { .. }) => {}
                    Err(failed) => return Err(failed),
                }
            }
            self.book.get_mut(slot).lost = true;
        }
        Ok(())
    }

    /// Whether nothing but other services keeps the service from having the address.
    fn may_have(&self, request: &Request, address: IpAddr) -> bool {
        if self.settings.reserved.iter().any(|reservation| reservation.range.contains(address)) {
            return false;
        }
        if !self.wants_family(request, Family::of(address)) {
            return false;
        }
        let containing = self.catalog.containing(address);
        let admits = |index: &usize| {
            let compiled = &self.catalog.pools[*index];
            compiled.is_for(request) && !compiled.usable.avoids(address)
        };
        // It may be in the pool that cannot be read.
        let lost_and_found = containing.is_empty() && self.catalog.unreadable().is_some();
        lost_and_found || containing.iter().any(admits)
    }

    /// Whether an address of the family can be right for the service.
    pub(super) fn wants_family(&self, request: &Request, family: Family) -> bool {
        if request.addresses.is_empty() {
            return families_wanted(request.family_policy, &request.families, &self.settings).wanted.contains(family);
        }
        self.settings.enables(family) && (request.families.is_empty() || request.families.contains(&family))
    }

    /// Whether the service may go on sharing the address.
    fn gets_along(&self, slot: Slot, request: &Arc<Request>, address: IpAddr) -> bool {
        if self.settings.when_sharing_breaks == WhenSharingBreaks::Keep {
            return true;
        }
        self.seniors(slot, address)
            .into_iter()
            .filter_map(|other| self.book.get(other).request.as_ref())
            .all(|other| may_share(request, other, &self.settings).is_ok())
    }

    /// Whether the service still lacks an address of the family. An address that it does not ask for by name stays with
    /// it only as long as it waits for one of the family that it does ask for.
    fn has_room(&self, slot: Slot, request: &Request, address: IpAddr) -> bool {
        let mut of_family = self.book.get(slot).held.iter().filter(|held| Family::of(**held) == Family::of(address));
        match (request.addresses.is_empty(), request.sharing.is_some()) {
            (true, true) => true,
            (true, false) => of_family.next().is_none(),
            (false, _) => {
                let waits = request.names_any(Family::of(address)) && !of_family.any(|held| request.names(*held));
                request.names(address) || waits
            }
        }
    }

    /// Whether nobody has the address, or only services that share it.
    fn is_vacant(&self, slot: Slot, request: &Request, address: IpAddr) -> bool {
        match self.ledger.get(address) {
            None => true,
            Some(Entry::Freed(freed)) => freed.drained <= self.now || freed.last == request.service,
            Some(Entry::Held(_)) => self.may_join(slot, request, address).is_ok(),
            Some(Entry::Reserved(_) | Entry::Conflict(_)) => false,
        }
    }
}

/// The addresses of a service beyond one of each family. The published address stays, or else the lowest. Services that
/// share hold all addresses of their group, and services that ask by name are examined once it is known what they get.
fn surplus(request: &Request, held: &[IpAddr], published: &Status) -> Vec<IpAddr> {
    if !request.addresses.is_empty() || request.sharing.is_some() {
        return Vec::new();
    }
    let mut surplus = Vec::new();
    for family in FAMILIES {
        let of_family = held.iter().copied().filter(|address| Family::of(*address) == family);
        let published = |address: &IpAddr| published.addresses.contains(address);
        let kept = of_family.clone().find(published).or_else(|| of_family.clone().next());
        surplus.extend(of_family.filter(|address| Some(*address) != kept));
    }
    surplus
}
