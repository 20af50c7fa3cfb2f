//! Finding an address for a service that lacks one.

use alloc::{string::ToString, vec::Vec};
use core::net::IpAddr;

use lb_core::{addr::Family, name::ServiceName};

use crate::{
    Allocator, Cause, Entry, Ledger, LedgerError, PoolChoice, PoolRefusal, Request, SharingRule, book::Slot, may_share,
    pool::catalog::PoolIndex, request::families::FamilyList,
};

/// A service has the address, or the cause why not.
type Grant = Result<(), Cause>;

impl<L: Ledger> Allocator<L> {
    /// Assigns the service any address of the family: one that it may share; else the one that it had before; else the
    /// next one of the first pool that has any. `front` is asked before the others.
    pub(super) fn allocate_any(
        &mut self,
        slot: Slot,
        request: &Request,
        family: Family,
        front: Option<PoolIndex>,
    ) -> Result<Grant, LedgerError> {
        if self.join_group(slot, request, family)? || self.take_back_left(slot, request, family)? {
            return Ok(Ok(()));
        }
        let asked = self.catalog.asked(request, family);
        let rest = asked.iter().copied().filter(|index| Some(*index) != front);
        let mut refusing = Vec::new();
        let mut tries = 0;
        for index in front.into_iter().chain(rest) {
            loop {
                let address = match self.offer(index, request, family) {
                    Ok(address) => address,
                    Err(why) => {
                        refusing.push((index, why));
                        break;
                    }
                };
                match self.hold(slot, address) {
                    Ok(()) => return Ok(Ok(())),
                    Err(LedgerError::Changed { .. }) if tries < Self::MAX_TRIES => tries += 1,
                    Err(LedgerError::Changed { .. }) => {
                        self.news.again(slot);
                        return Ok(Err(Cause::Outrun { tries }));
                    }
                    Err(failed) => return Err(failed),
                }
            }
        }
        Ok(Err(self.all_refuse(request, family, refusing)))
    }

    /// The first pool that has an address of every family that the service lacks.
    pub(super) fn pool_for_all(&self, request: &Request, families: FamilyList) -> Option<PoolIndex> {
        let gives_all = |index: &PoolIndex| {
            families
                .iter()
                .all(|family| self.catalog.pools[*index].has(family) && self.offer(*index, request, family).is_ok())
        };
        self.catalog.asked(request, families.first()?).iter().copied().find(gives_all)
    }

    /// The address that the pool would allocate to the service next.
    fn offer(&self, index: PoolIndex, request: &Request, family: Family) -> Result<IpAddr, PoolRefusal> {
        self.check_unasked(index, request)?;
        self.index.next(&self.catalog, index, family, self.now).ok_or(PoolRefusal::FULL)
    }

    /// Whether the pool allocates addresses to the service that it does not ask for by name.
    pub(super) fn check_unasked(&self, index: PoolIndex, request: &Request) -> Result<(), PoolRefusal> {
        let compiled = &self.catalog.pools[index];
        if let Some(why) = compiled.refusal_for(request) {
            return Err(why);
        }
        let asked_for = match &request.pool {
            PoolChoice::Any => false,
            PoolChoice::Prefer(name) | PoolChoice::Only(name) => *name == compiled.pool.name,
        };
        if !compiled.pool.auto_assign && !asked_for {
            return Err(PoolRefusal::NotAutomatic);
        }
        self.check_quota(index, request)
    }

    fn check_quota(&self, index: PoolIndex, request: &Request) -> Result<(), PoolRefusal> {
        let Some(quota) = self.catalog.pools[index].pool.namespace_quota else { return Ok(()) };
        let namespace = request.service.namespace();
        if self.index.used_by(index, namespace) < quota {
            return Ok(());
        }
        Err(PoolRefusal::Quota { namespace: namespace.to_string(), quota })
    }

    /// Lets the service in on the addresses of the first service with its key that it gets along with.
    fn join_group(&mut self, slot: Slot, request: &Request, family: Family) -> Result<bool, LedgerError> {
        let Some(sharing) = &request.sharing else { return Ok(false) };
        let members: Vec<Slot> = self
            .book
            .with_key(&sharing.key)
            .filter(|other| *other != slot)
            .take(Self::MAX_SHARING_CANDIDATES)
            .collect();
        for other in members {
            let mut joined = false;
            for address in
                self.book.get(other).held.clone().into_iter().filter(|address| Family::of(*address) == family)
            {
                let held = self.book.get(slot).held.contains(&address);
                if held || (self.check_pool(request, address).is_ok() && self.may_join(slot, request, address).is_ok())
                {
                    match self.hold(slot, address) {
                        Ok(()) => joined = true,
                        Err(LedgerError::Changed { .. }) => {}
                        Err(failed) => return Err(failed),
                    }
                }
            }
            if joined {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Assigns the service an address again that it was the last to hold.
    fn take_back_left(&mut self, slot: Slot, request: &Request, family: Family) -> Result<bool, LedgerError> {
        for address in self.book.get(slot).left.clone().into_iter().filter(|address| Family::of(*address) == family) {
            let Some(&index) = self.catalog.containing(address).first() else { continue };
            let fits = self.check_unasked(index, request).is_ok() && self.catalog.pools[index].usable.is_open(address);
            let rests = matches!(self.ledger.get(address), Some(Entry::Freed(_)));
            if fits && rests {
                match self.hold(slot, address) {
                    Ok(()) => return Ok(true),
                    Err(LedgerError::Changed { .. }) => {}
                    Err(failed) => return Err(failed),
                }
            }
        }
        Ok(false)
    }

    /// Assigns the service this address.
    pub(super) fn allocate_named(
        &mut self,
        slot: Slot,
        request: &Request,
        address: IpAddr,
    ) -> Result<Grant, LedgerError> {
        if let Err(cause) = self.check_pool(request, address).and_then(|()| self.check_entry(slot, request, address)) {
            return Ok(Err(cause));
        }
        match self.hold(slot, address) {
            Ok(()) => Ok(Ok(())),
            Err(LedgerError::Changed { .. }) => {
                let cause = self.check_entry(slot, request, address).err();
                Ok(Err(cause.unwrap_or(Cause::Outrun { tries: 1 })))
            }
            Err(failed) => Err(failed),
        }
    }

    /// Whether the pool of the address would allocate it to the service if it were free.
    fn check_pool(&self, request: &Request, address: IpAddr) -> Result<(), Cause> {
        let family = Family::of(address);
        if !self.settings.enables(family) && !self.wants_family(request, family) {
            return Err(Cause::FamilyDisabled(family));
        }
        if !self.wants_family(request, family) {
            return Err(Cause::FamilyNotListed(family));
        }
        self.check_choice(request)?;
        let index = *self.catalog.containing(address).first().ok_or(Cause::InNoPool)?;
        let compiled = &self.catalog.pools[index];
        let not_from = |why| Cause::NotFromPool { pool: compiled.pool.name.clone(), why };
        if let Some(why) = compiled.refusal_for(request) {
            return Err(not_from(why));
        }
        if let Some(reserved) = compiled.usable.reserved_by(address, &compiled.pool, &self.settings) {
            return Err(Cause::Reserved(reserved));
        }
        let joins = self.ledger.get(address).is_some_and(|entry| {
            entry.holders().iter().any(|holder| holder.namespace() == request.service.namespace())
        });
        if joins { Ok(()) } else { self.check_quota(index, request).map_err(not_from) }
    }

    /// Whether the address is free for the service.
    fn check_entry(&self, slot: Slot, request: &Request, address: IpAddr) -> Result<(), Cause> {
        match self.ledger.get(address) {
            None => Ok(()),
            Some(Entry::Freed(freed)) if freed.drained <= self.now || freed.last == request.service => Ok(()),
            Some(Entry::Freed(freed)) => Err(Cause::Draining { last: freed.last.clone() }),
            Some(Entry::Reserved(why)) => Err(Cause::Reserved(crate::ReservedBy::Named { why: why.to_string() })),
            Some(Entry::Conflict(by)) => Err(Cause::Claimed { by: by.to_string() }),
            Some(Entry::Held(_)) => {
                self.may_join(slot, request, address).map_err(|(holder, rule)| match request.sharing {
                    Some(_) => Cause::Incompatible { holder, rule },
                    None => Cause::Held { holder },
                })
            }
        }
    }

    /// Whether the service may join those that hold the address, or with whom it does not get along.
    pub(super) fn may_join(
        &self,
        slot: Slot,
        request: &Request,
        address: IpAddr,
    ) -> Result<(), (ServiceName, SharingRule)> {
        let entry = self.ledger.get(address);
        let holders = entry.as_ref().map_or(&[][..], Entry::holders);
        for holder in holders.iter().filter(|holder| **holder != self.book.get(slot).name) {
            let rule = match self.book.request(holder) {
                None if self.book.is_unreadable(holder) => Err(SharingRule::Unreadable),
                None => Err(SharingRule::Unknown),
                Some(_) if holders.len() >= Self::MAX_SHARERS => Err(SharingRule::TooMany),
                Some(other) => may_share(request, other, &self.settings),
            };
            rule.map_err(|rule| (holder.clone(), rule))?;
        }
        Ok(())
    }
}
