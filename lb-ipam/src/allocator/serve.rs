//! The second and third phase: a service gets what it lacks.

use alloc::{sync::Arc, vec::Vec};
use core::net::IpAddr;

use lb_core::addr::Family;

use crate::{
    Allocation, Allocator, Answer, Cause, Entry, Ledger, LedgerError, Refusal, ReleaseCause, Request, Requested,
    RequestedAddress, WhenSharingBreaks,
    book::Slot,
    may_share,
    request::families::{FamilyList, families_wanted},
};

impl<L: Ledger> Allocator<L> {
    /// Allocates what the service lacks, as far as possible, and notes the answer.
    pub(super) fn serve(&mut self, slot: Slot) -> Result<(), LedgerError> {
        let Some(request) = self.book.get(slot).request.clone() else { return Ok(()) };
        if !self.is_ours(&request) {
            return Ok(());
        }
        let answer = if request.addresses.is_empty() {
            self.serve_any(slot, &request)?
        } else {
            self.serve_named(slot, &request)?
        };
        self.book.set_answer(slot, answer);
        Ok(())
    }

    fn serve_any(&mut self, slot: Slot, request: &Arc<Request>) -> Result<Answer, LedgerError> {
        let families = families_wanted(request.family_policy, &request.families, &self.settings);
        let lacks = |family: &Family| !self.book.get(slot).held.iter().any(|held| Family::of(*held) == *family);
        let missing: FamilyList = families.wanted.iter().filter(lacks).collect();
        let front = if missing.len() > 1 { self.pool_for_all(request, missing) } else { None };
        let mut refused = Vec::new();
        for family in missing.iter() {
            if let Err(cause) = self.allocate_any(slot, request, family, front)? {
                refused.push(Refusal { asked: Requested::Family(family), cause });
            }
        }
        for family in families.disabled.iter() {
            refused.push(Refusal { asked: Requested::Family(family), cause: Cause::FamilyDisabled(family) });
        }
        let held = &self.book.get(slot).held;
        let mut granted = Vec::with_capacity(held.len());
        for family in families.wanted.iter() {
            let of_family = held.iter().filter(|address| Family::of(**address) == family);
            granted.extend(of_family.map(|address| self.granted(*address)));
        }
        refused.extend(self.quarrels(request, held));
        Ok(Answer { granted, refused })
    }

    fn serve_named(&mut self, slot: Slot, request: &Arc<Request>) -> Result<Answer, LedgerError> {
        let mut answer = Answer::default();
        let mut seen: Vec<IpAddr> = Vec::new();
        for wanted in request.wanted() {
            let address = match wanted {
                RequestedAddress::Address(address) if seen.contains(address) => continue,
                RequestedAddress::Address(address) => *address,
                RequestedAddress::Unreadable(text) => {
                    answer.refused.push(Refusal { asked: Requested::Text(text.clone()), cause: Cause::Unreadable });
                    continue;
                }
            };
            match self.serve_one(slot, request, address, &seen)? {
                Ok(()) => answer.granted.push(self.granted(address)),
                Err(cause) => answer.refused.push(Refusal { asked: Requested::Address(address), cause }),
            }
            seen.push(address);
        }
        if request.addresses.len() > Request::MAX_ADDRESSES {
            let cause = Cause::TooMany { limit: Request::MAX_ADDRESSES };
            answer.refused.push(Refusal { asked: Requested::More, cause });
        }
        self.settle_surplus(slot, request, &mut answer)?;
        let held: Vec<IpAddr> = answer.addresses().collect();
        answer.refused.extend(self.quarrels(request, &held));
        Ok(answer)
    }

    fn serve_one(
        &mut self,
        slot: Slot,
        request: &Request,
        address: IpAddr,
        seen: &[IpAddr],
    ) -> Result<Result<(), Cause>, LedgerError> {
        let second = seen.iter().any(|other| Family::of(*other) == Family::of(address));
        if second && self.settings.one_address_per_family {
            return Ok(Err(Cause::SecondOfFamily));
        }
        if self.book.get(slot).held.contains(&address) {
            return Ok(Ok(()));
        }
        self.allocate_named(slot, request, address)
    }

    /// Releases what the service holds and does not ask for any more, but only once something that it asks for has
    /// taken its place: a service whose new wish cannot be granted keeps what it has.
    fn settle_surplus(&mut self, slot: Slot, request: &Request, answer: &mut Answer) -> Result<(), LedgerError> {
        let mut surplus = self.book.get(slot).held.clone();
        surplus.retain(|address| !answer.granted.iter().any(|granted| granted.address == *address));
        for address in surplus {
            let family = Family::of(address);
            let replaced = answer
                .granted
                .iter()
                .any(|granted| Family::of(granted.address) == family && request.names(granted.address));
            let wished = answer.refused.iter().any(|refusal| match &refusal.asked {
                Requested::Address(asked) => Family::of(*asked) == family,
                Requested::Family(_) | Requested::Text(_) | Requested::More => true,
            });
            if replaced || !wished {
                self.release(slot, address, ReleaseCause::Replaced)?;
            } else {
                answer.granted.push(self.granted(address));
            }
        }
        Ok(())
    }

    /// With whom the service shares an address though it may not, where that moves nobody.
    fn quarrels(&self, request: &Request, held: &[IpAddr]) -> Vec<Refusal> {
        if self.settings.when_sharing_breaks == WhenSharingBreaks::Move {
            return Vec::new();
        }
        let quarrel = |address: &IpAddr| {
            let entry = self.ledger.get(*address);
            let others = entry.iter().flat_map(Entry::holders).filter(|holder| **holder != request.service);
            let (holder, rule) = others.filter_map(|other| self.book.request(other)).find_map(|other| {
                let rule = may_share(request, other, &self.settings).err()?;
                Some((other.service.clone(), rule))
            })?;
            Some(Refusal { asked: Requested::Address(*address), cause: Cause::Incompatible { holder, rule } })
        };
        held.iter().filter_map(quarrel).collect()
    }

    pub(super) fn granted(&self, address: IpAddr) -> Allocation {
        Allocation { address, pool: self.catalog.owner(address).map(|compiled| compiled.pool.name.clone()) }
    }
}
