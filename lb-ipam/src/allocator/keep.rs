//! The first phase: a service keeps what it holds, as long as it may.

use alloc::{sync::Arc, vec::Vec};
use core::net::IpAddr;

use lb_core::addr::Family;

use crate::{
    Allocator, Entry, Ledger, LedgerError, ReleaseCause, Request, ReservedBy, Status, WhenSharingBreaks, book::Slot,
    may_share, pool::catalog::Compiled, range::FAMILIES, request::families::families_wanted,
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
            return self.leave(slot, &request);
        }
        let held = self.book.get(slot).held.clone();
        for address in held {
            let kept = self.stays(slot, &request, address).and_then(|()| self.gets_along(&request, address));
            if let Err(why) = kept {
                self.book.get_mut(slot).lost = true;
                self.release(slot, address, why)?;
            }
        }
        Ok(())
    }

    /// This allocator does not serve the service, or no longer does. Its status is cleared once of what this allocator
    /// wrote. Afterwards it is left alone.
    ///
    /// What is known to be ours is what the service held until now. At a start, so is what it left a short time ago, if
    /// it is no load balancer: the previous process may have ended before it wrote the status. For a load balancer of
    /// another class, the address may have come from its next owner meanwhile.
    fn leave(&mut self, slot: Slot, request: &Request) -> Result<(), LedgerError> {
        let tracked = self.book.get(slot);
        let mut ours: Vec<IpAddr> = tracked.held.iter().copied().chain(tracked.answer.addresses()).collect();
        let is_left_over = |address: &IpAddr| tracked.left.contains(address);
        let may_be_left_over = !tracked.left_alone && !request.load_balancer && tracked.told.condition.is_some();
        if may_be_left_over {
            ours.extend(tracked.told.addresses.iter().filter(|address| is_left_over(address)));
        }
        if tracked.managed || !ours.is_empty() {
            let why = match request.load_balancer {
                true => ReleaseCause::Class(request.class.clone()),
                false => ReleaseCause::NotLoadBalancer,
            };
            self.release_all(slot, &why)?;
            self.book.disown(slot, &ours);
        }
        self.book.get_mut(slot).left_alone = true;
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
            if self.may_have(&request, address).is_ok()
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
    fn may_have(&self, request: &Request, address: IpAddr) -> Result<(), ReleaseCause> {
        if let Some(reservation) = self.settings.reserved.iter().find(|it| it.range.contains(address)) {
            return Err(ReleaseCause::Reserved(ReservedBy::Named { why: reservation.why.clone() }));
        }
        let family = Family::of(address);
        if !self.wants_family(request, family) {
            return Err(ReleaseCause::Family(family));
        }
        let containing = self.catalog.containing(address);
        // It may be in the pool that cannot be read.
        if containing.is_empty() && self.catalog.unreadable().is_some() {
            return Ok(());
        }
        let mut refused = containing.iter().map(|&index| self.admits(&self.catalog.pools[index], request, address));
        let Some(first) = refused.next() else { return Err(ReleaseCause::InNoPool) };
        first.or_else(|why| if refused.any(|other| other.is_ok()) { Ok(()) } else { Err(why) })
    }

    /// Whether a service that holds the address of the pool may keep it.
    fn admits(&self, compiled: &Compiled, request: &Request, address: IpAddr) -> Result<(), ReleaseCause> {
        let name = || compiled.pool.name.clone();
        if !request.pool.admits(&compiled.pool.name) {
            return Err(ReleaseCause::OtherPool(name()));
        }
        if !compiled.is_for(request) {
            return Err(ReleaseCause::NotSelected(name()));
        }
        if !compiled.usable.avoids(address) {
            return Ok(());
        }
        let by = compiled.usable.reserved_by(address, &compiled.pool, &self.settings);
        Err(ReleaseCause::Reserved(by.unwrap_or(ReservedBy::Avoided { pool: name() })))
    }

    /// Whether an address of the family can be right for the service.
    pub(super) fn wants_family(&self, request: &Request, family: Family) -> bool {
        if request.addresses.is_empty() {
            return families_wanted(request.family_policy, &request.families, &self.settings).wanted.contains(family);
        }
        self.settings.enables(family) && (request.families.is_empty() || request.families.contains(&family))
    }

    /// Whether the service, which holds the address, may keep it, as far as that is not about others.
    fn stays(&self, slot: Slot, request: &Request, address: IpAddr) -> Result<(), ReleaseCause> {
        let tracked = self.book.get(slot);
        self.may_have(request, address)?;
        match surplus(request, &tracked.held, &tracked.told).contains(&address) {
            true => Err(ReleaseCause::Replaced),
            false => Ok(()),
        }
    }

    /// Whether the service may go on sharing the address. Who came first stays: the service has to get along with those
    /// that have held the address for longer and keep it. That depends on the ledger alone and not on who changed, so
    /// that an agent that was away comes to the same result.
    fn gets_along(&self, request: &Arc<Request>, address: IpAddr) -> Result<(), ReleaseCause> {
        let entry = self.ledger.get(address);
        let holders = entry.as_ref().map_or(&[][..], Entry::holders);
        if self.settings.when_sharing_breaks == WhenSharingBreaks::Keep || holders.len() < 2 {
            return Ok(());
        }
        let before = holders.iter().take_while(|holder| **holder != request.service);
        let known = |holder| Some((self.book.find(holder)?, self.book.request(holder)?));
        let before: Vec<(Slot, &Arc<Request>)> = before.filter_map(known).collect();
        let shares = |a: &Request, b: &Request| may_share(a, b, &self.settings).is_ok();
        if before.iter().all(|(_, other)| shares(request, other)) {
            return Ok(());
        }
        let mut staying: Vec<&Arc<Request>> = Vec::new();
        for (slot, other) in before {
            let stays = self.is_ours(other) && self.stays(slot, other, address).is_ok();
            if stays && staying.iter().all(|senior| shares(other, senior)) {
                staying.push(other);
            }
        }
        staying.into_iter().try_for_each(|senior| {
            may_share(request, senior, &self.settings)
                .map_err(|rule| ReleaseCause::Sharing { holder: senior.service.clone(), rule })
        })
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
