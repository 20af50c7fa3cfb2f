//! What must hold of everything that a service has and did not have before, and of what it left.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_ipam::{Entry, Family, FamilyPolicy, Request, Requested, ServiceName};

use crate::{
    checks::ensure,
    reference::{chooses, compatible, names, wants},
    rig::{Checked, Held, Rig},
};

impl Rig {
    /// Whoever has something new may have it, and nobody else had it.
    pub(crate) fn check_gains(
        &self,
        before: &BTreeMap<IpAddr, Entry>,
        after: &BTreeMap<IpAddr, Entry>,
        held: &Held,
    ) -> Checked {
        for (service, address) in gains(&self.held, held) {
            let Some(request) = self.reference.services.get(service) else {
                return Err(format!("{service}, which is gone, got {address}"));
            };
            let published = self.had_published(service, address) && self.reference.may_keep(request, address);
            let pool = self.reference.gives(request, address);
            ensure!(published || pool.is_some(), "{service} got {address} from no pool");
            ensure!(
                published || request.addresses.is_empty() || names(request, address),
                "{service} got {address}, which it did not ask for"
            );
            for other in after[&address].holders().iter().filter(|other| *other != service) {
                ensure!(!self.reference.unknown.contains_key(other), "{service} joined {other}, which cannot be read");
                let other = self.reference.services.get(other);
                ensure!(
                    other.is_none_or(|other| compatible(request, other)),
                    "{service} joined {other:?} at {address}, with whom it cannot share"
                );
            }
            if let Some(Entry::Freed(freed)) = before.get(&address) {
                ensure!(
                    freed.drained <= self.now || after[&address].holders().contains(&freed.last),
                    "{service} got {address}, which is draining"
                );
            }
            if let Some(set) = pool.filter(|_| !published) {
                let (namespace, quota) = (service.namespace(), set.pool.namespace_quota);
                let imported = held.iter().any(|(other, addresses)| {
                    addresses
                        .iter()
                        .any(|address| set.addresses.contains(address) && self.had_published(other, *address))
                });
                let (used, had) = (set.used_by(namespace, after), set.used_by(namespace, before));
                ensure!(
                    imported || used <= had || quota.is_none_or(|quota| used <= quota),
                    "{service} got {address}, and {namespace} has {used} of {quota:?}"
                );
            }
            let (Some(pool), Some((last, rested))) = (pool, self.resting.get(&address)) else { continue };
            let alone = after[&address].holders().len() == 1;
            if alone && !published && request.addresses.is_empty() && last != service && *rested > self.now {
                let fresh = pool.usable.iter().find(|other| {
                    let free = !after.contains_key(*other) && !self.reference.claimed.contains(*other);
                    free && Family::of(**other) == Family::of(address)
                });
                ensure!(fresh.is_none(), "{service} got {address}, which rests, while {fresh:?} is free");
            }
        }
        Ok(())
    }

    /// Whoever asks for nothing by name gets an address of the pool that it prefers, as long as there is one, and none
    /// of a pool that gives only by name.
    pub(crate) fn check_choices(
        &self,
        before: &BTreeMap<IpAddr, Entry>,
        after: &BTreeMap<IpAddr, Entry>,
        held: &Held,
    ) -> Checked {
        for (service, address) in gains(&self.held, held) {
            let Some(request) = self.reference.services.get(service) else { continue };
            let returns = matches!(before.get(&address), Some(Entry::Freed(freed)) if freed.last == *service);
            if self.had_published(service, address) || request.sharing.is_some() || !request.addresses.is_empty() {
                continue;
            }
            let Some(set) = self.reference.gives(request, address) else { continue };
            ensure!(set.gives_unasked(request), "{service} got {address}, which is given by name only");
            if returns || chooses(request, &set.pool) || request.family_policy != FamilyPolicy::SingleStack {
                continue;
            }
            let mut preferred = self.reference.pools.values().filter(|set| {
                chooses(request, &set.pool) && set.gives_unasked(request) && set.pool.namespace_quota.is_none()
            });
            let fresh = preferred.find_map(|set| {
                set.usable.iter().find(|other| {
                    let untouched = !before.contains_key(*other) && !after.contains_key(*other);
                    untouched && Family::of(**other) == Family::of(address)
                })
            });
            ensure!(fresh.is_none(), "{service} got {address}, and {fresh:?} of the pool that it prefers is free");
        }
        Ok(())
    }

    /// What was given back drains and rests for as long as its pool says, and drains only if who left it lives on.
    pub(crate) fn check_freed(&self, before: &BTreeMap<IpAddr, Entry>, after: &BTreeMap<IpAddr, Entry>) -> Checked {
        for (address, entry) in after {
            let (Entry::Freed(freed), Some(Entry::Held(_))) = (entry, before.get(address)) else { continue };
            let mut owners = self.reference.pools.values();
            let owner = owners.find(|set| set.in_service && set.addresses.contains(address));
            let Some(pool) = owner.map(|set| &set.pool) else { continue };
            let lives = self.reference.services.contains_key(&freed.last);
            let drained = self.now + if lives { pool.drain } else { Duration::ZERO };
            let found = (freed.at, freed.drained, freed.rested);
            let expected = (self.now, drained, drained + pool.quarantine);
            ensure!(found == expected, "{address} of {} rests {found:?} instead of {expected:?}", pool.name);
        }
        Ok(())
    }

    /// Nobody is served before an older one that waits for the same.
    pub(crate) fn check_order(&self, before: &BTreeMap<IpAddr, Entry>, held: &Held) -> Checked {
        let plain = |request: &Request| request.sharing.is_none() && request.addresses.is_empty();
        for (service, address) in gains(&self.held, held) {
            let request = &self.reference.services[service];
            // Whoever says that it has an address and lost it comes before those that wait, though it failed before.
            let had = self.published.get(service).is_some_and(|addresses| !addresses.is_empty());
            let new = !had && !self.held.contains_key(service) && request.published.addresses.len() <= 1;
            let returns = matches!(before.get(&address), Some(Entry::Freed(freed)) if freed.last == *service);
            let imported = self.had_published(service, address);
            if !plain(request) || !new || imported || returns || self.restarted || !self.edited.contains(service) {
                continue;
            }
            let family = Family::of(address);
            for (older, waits) in &self.reference.services {
                let refused = self.allocator.answer(older).is_some_and(|answer| {
                    answer.refused.iter().any(|refusal| refusal.asked == Requested::Family(family))
                });
                let before = (waits.created, older) < (request.created, service);
                let same = older.namespace() == service.namespace()
                    && waits.labels == request.labels
                    && waits.pool == request.pool
                    && plain(waits)
                    && wants(waits, family);
                ensure!(!(refused && before && same), "{service} got {address} before {older}, which is older");
            }
        }
        Ok(())
    }
}

fn gains<'a>(before: &'a Held, after: &'a Held) -> impl Iterator<Item = (&'a ServiceName, IpAddr)> {
    let had =
        move |service: &ServiceName, address: &IpAddr| before.get(service).is_some_and(|had| had.contains(address));
    let all = after.iter().flat_map(|(service, addresses)| addresses.iter().map(move |address| (service, *address)));
    all.filter(move |(service, address)| !had(service, address))
}
