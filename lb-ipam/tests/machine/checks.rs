//! What must hold whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_ipam::{
    AddressState, Answer, Cause, Counts, Entry, Family, Ledger, Outcome, PoolRefusal, Request, Requested, ServiceName,
    Timestamp,
};

use crate::{
    mutants::Mutant,
    reference::{Set, compatible, names, wants},
    rig::{Checked, Held, Rig, held},
};

/// Ends a check with a sentence unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

pub(crate) use ensure;

impl Rig {
    pub(crate) fn check(&mut self, before: &BTreeMap<IpAddr, Entry>, outcome: &Outcome, publish: bool) -> Checked {
        let failed: BTreeSet<&ServiceName> = outcome.failed.iter().map(|(name, _)| name).collect();
        let after: BTreeMap<IpAddr, Entry> = self.allocator.ledger().store.entries().collect();
        let held = held(&self.allocator.ledger().store);
        self.check_no_duplicates(&after)?;
        self.check_no_unasked_moves(before, &held, &failed)?;
        self.check_left_alone(outcome)?;
        self.check_gains(before, &after, &held)?;
        self.check_choices(before, &after, &held)?;
        self.check_freed(before, &after)?;
        self.note_resting(&after);
        if !failed.is_empty() || outcome.unfinished {
            return Ok(());
        }
        check_released(before, &after, outcome)?;
        self.check_no_leaks(&after, &held)?;
        self.check_complete(&after)?;
        self.check_order(before, &held)?;
        self.check_counts(&after)?;
        if publish { self.check_rest() } else { Ok(()) }
    }

    /// Those that have one address agree to share it, unless whoever stops to agree stays.
    fn check_no_duplicates(&self, after: &BTreeMap<IpAddr, Entry>) -> Checked {
        if self.reference.keeps_quarrels() {
            return Ok(());
        }
        for (address, entry) in after {
            let known = entry.holders().iter().filter_map(|name| self.reference.services.get(name));
            let holders: Vec<&Request> = known.filter(|request| !self.edited.contains(&request.service)).collect();
            for (at, one) in holders.iter().enumerate() {
                for other in &holders[at + 1..] {
                    ensure!(compatible(one, other), "{address} is held by {} and {}", one.service, other.service);
                }
            }
        }
        Ok(())
    }

    /// Whoever was told that it has an address keeps it as long as it may, whoever changed, whether the process went on
    /// or started again. Those leave that came to the address later and may not share it.
    fn check_no_unasked_moves(
        &self,
        before: &BTreeMap<IpAddr, Entry>,
        held: &Held,
        failed: &BTreeSet<&ServiceName>,
    ) -> Checked {
        for (service, addresses) in &self.held {
            self.check_unreadable(service, addresses, held)?;
            let Some(request) = self.reference.services.get(service) else { continue };
            // Of several addresses, one that changed may have to leave some; which, an earlier process decided.
            let is_plain = !self.edited.contains(service) || !self.restarted || self.published_count(service) == 1;
            for address in addresses.iter().filter(|_| is_plain || self.reference.keeps_quarrels()) {
                let named = request.addresses.is_empty() || names(request, *address);
                let entry = before.get(address).filter(|entry| entry.holders().contains(service));
                let quarrel = match entry {
                    Some(entry) => self.gives_way(request, *address, entry),
                    None => self.has_rival(request, *address),
                };
                let told = self.had_published(service, *address);
                if told && named && !quarrel && self.reference.may_keep(request, *address) {
                    // What could not be written is tried again, and its status stays.
                    let failed = failed.contains(service) && request.published.addresses.contains(address);
                    let kept = failed || held.get(service).is_some_and(|held| held.contains(address));
                    ensure!(kept || self.is_surplus(request, addresses), "{service} had to leave {address}");
                }
            }
        }
        Ok(())
    }

    /// What cannot be read has what it had, but for what something else claimed.
    fn check_unreadable(&self, service: &ServiceName, had: &BTreeSet<IpAddr>, held: &Held) -> Checked {
        if !self.reference.unknown.contains_key(service) {
            return Ok(());
        }
        let has = |address: &IpAddr| held.get(service).is_some_and(|held| held.contains(address));
        let lost = had.iter().find(|address| !has(address) && !self.reference.claimed.contains(*address));
        ensure!(lost.is_none(), "{service}, which cannot be read, had to leave {lost:?}");
        Ok(())
    }

    fn published_count(&self, service: &ServiceName) -> usize {
        self.published.get(service).map_or(0, BTreeSet::len)
    }

    /// Whether one that came to the address before the service keeps it and does not share it.
    fn gives_way(&self, request: &Request, address: IpAddr, entry: &Entry) -> bool {
        let before = entry.holders().iter().take_while(|holder| **holder != request.service);
        let mut staying: Vec<&Request> = Vec::new();
        for other in before.filter_map(|holder| self.reference.services.get(holder)) {
            if self.reference.may_keep(other, address) && staying.iter().all(|senior| compatible(other, senior)) {
                staying.push(other);
            }
        }
        !self.reference.keeps_quarrels() && !staying.iter().all(|senior| compatible(request, senior))
    }

    /// Whether another service had published the address that it does not share: without a ledger, nobody knows who came
    /// first.
    fn has_rival(&self, request: &Request, address: IpAddr) -> bool {
        let others = self.reference.services.values().filter(|other| other.service != request.service);
        let mut rivals = others.filter(|other| self.had_published(&other.service, address));
        self.restarted && rivals.any(|other| !compatible(request, other))
    }

    /// Whoever is no load balancer, and has a status that somebody else wrote, has it from then on.
    fn check_left_alone(&self, outcome: &Outcome) -> Checked {
        let written = outcome.writes.iter().find(|(service, _)| self.left_alone.contains(service));
        ensure!(written.is_none(), "the status of somebody else's service was written: {written:?}");
        Ok(())
    }

    /// Whether the service holds more than it may, after something failed half-way.
    fn is_surplus(&self, request: &Request, addresses: &BTreeSet<IpAddr>) -> bool {
        let several = [Family::V4, Family::V6]
            .into_iter()
            .any(|family| addresses.iter().filter(|address| Family::of(**address) == family).count() > 1);
        request.sharing.is_none() && request.addresses.is_empty() && several
    }

    /// Whether the status of the service said so before.
    pub(crate) fn had_published(&self, service: &ServiceName, address: IpAddr) -> bool {
        self.published.get(service).is_some_and(|addresses| addresses.contains(&address))
    }

    fn note_resting(&mut self, after: &BTreeMap<IpAddr, Entry>) {
        for (address, entry) in after {
            match entry {
                Entry::Freed(freed) => {
                    self.resting.entry(*address).or_insert_with(|| (freed.last.clone(), freed.rested));
                }
                Entry::Held(_) | Entry::Reserved(_) | Entry::Conflict(_) => {
                    self.resting.remove(address);
                }
            }
        }
        self.resting.retain(|_, (_, rested)| *rested > self.now);
    }

    /// What the ledger says is held is what answers say, and nothing that is over is remembered.
    fn check_no_leaks(&self, after: &BTreeMap<IpAddr, Entry>, held: &Held) -> Checked {
        for (service, addresses) in held {
            let answered = self.allocator.answer(service).map(|answer| answer.addresses().collect::<BTreeSet<_>>());
            ensure!(answered.as_ref() == Some(addresses), "{service} holds {addresses:?} and is told {answered:?}");
            if self.reference.unknown.contains_key(service) {
                continue;
            }
            ensure!(self.reference.services.contains_key(service), "{service} is gone and holds {addresses:?}");
            let request = &self.reference.services[service];
            for address in addresses {
                ensure!(self.reference.may_keep(request, *address), "{service} must not hold {address}");
            }
        }
        for service in self.reference.services.keys() {
            let answer = self.allocator.answer(service);
            let granted = answer.map_or(0, |answer| answer.granted.len());
            ensure!(granted == held.get(service).map_or(0, BTreeSet::len), "{service} is told {answer:?}");
        }
        for (address, entry) in after {
            let over = matches!(entry, Entry::Freed(freed) if freed.forgotten <= self.now);
            ensure!(!over, "{address} is still remembered");
        }
        Ok(())
    }

    /// What is refused could not be given.
    fn check_complete(&self, after: &BTreeMap<IpAddr, Entry>) -> Checked {
        let vacant = |address: &IpAddr, service: &ServiceName| match after.get(address) {
            None => true,
            Some(Entry::Freed(freed)) => freed.drained <= self.now || freed.last == *service,
            Some(Entry::Held(_) | Entry::Reserved(_) | Entry::Conflict(_)) => false,
        };
        for (service, request) in self.reference.services.iter().filter(|(_, request)| request.load_balancer) {
            let Some(answer) = self.allocator.answer(service) else { return Err(format!("{service} has no answer")) };
            for refusal in &answer.refused {
                let free = match &refusal.asked {
                    Requested::Address(address) => vacant(address, service)
                        .then(|| self.reference.gives(request, *address))
                        .flatten()
                        .filter(|set| !set.is_spent(service.namespace(), after))
                        .map(|_| *address),
                    Requested::Family(family) => {
                        let giving = self
                            .reference
                            .pools
                            .values()
                            .filter(|set| set.gives_unasked(request) && !set.is_spent(service.namespace(), after));
                        giving.flat_map(|set| &set.usable).copied().find(|address| {
                            let free = vacant(address, service) && !self.reference.claimed.contains(address);
                            free && Family::of(*address) == *family
                        })
                    }
                    Requested::Text(_) | Requested::More => None,
                };
                ensure!(free.is_none(), "{service}: {refusal}, but {free:?} is free");
            }
            self.check_full(answer)?;
            self.check_answer(request, answer)?;
            self.check_quarrels(request, answer, after)?;
        }
        Ok(())
    }

    /// What is said of a full pool: how many of its addresses nobody gets, and that services have the others.
    fn check_full(&self, answer: &Answer) -> Checked {
        for refusal in &answer.refused {
            let (Requested::Family(family), Cause::NoneGives { pools, .. }) = (&refusal.asked, &refusal.cause) else {
                continue;
            };
            for group in pools {
                let PoolRefusal::Full { used, total, reserved, .. } = group.why else { continue };
                let Some(sets) =
                    group.pools.iter().map(|name| self.reference.pools.get(name)).collect::<Option<Vec<_>>>()
                else {
                    return Err(format!("{refusal}, and there is no such pool"));
                };
                let of_family = |addresses: &BTreeSet<IpAddr>| {
                    addresses.iter().filter(|ip| Family::of(**ip) == *family).copied().collect::<Vec<_>>()
                };
                let open = |set: &&Set| {
                    of_family(&set.usable).iter().filter(|ip| !self.reference.claimed.contains(*ip)).count()
                };
                let all: usize = sets.iter().map(|set| of_family(&set.addresses).len()).sum();
                let given: usize = sets.iter().map(open).sum();
                let expected = (given as u128, all as u128, (all - given) as u128);
                ensure!(group.more > 0 || (used, total, reserved) == expected, "{refusal}, expected {expected:?}");
            }
        }
        Ok(())
    }

    /// Where nobody has to leave, whoever shares an address though it may not is told so, and nobody else is.
    fn check_quarrels(&self, request: &Request, answer: &Answer, after: &BTreeMap<IpAddr, Entry>) -> Checked {
        for address in answer.addresses() {
            let others = after[&address].holders().iter().filter(|other| **other != request.service);
            let mut others = others.filter_map(|other| self.reference.services.get(other));
            let (quarrels, told) = (others.any(|other| !compatible(request, other)), is_quarrel(answer, address));
            let service = &request.service;
            ensure!(
                quarrels == told,
                "{service} has {address}, which it may not share: {quarrels}, and is told {answer:?}"
            );
        }
        Ok(())
    }

    /// One address for each family, or every address that is asked for, or a refusal.
    fn check_answer(&self, request: &Request, answer: &Answer) -> Checked {
        let service = &request.service;
        let listed: BTreeSet<String> = request.addresses.iter().map(ToString::to_string).collect();
        if listed.is_empty() {
            for family in [Family::V4, Family::V6].into_iter().filter(|family| wants(request, *family)) {
                let got = answer.addresses().filter(|address| Family::of(*address) == family).count();
                let refused =
                    answer.refused.iter().filter(|refusal| refusal.asked == Requested::Family(family)).count();
                ensure!(got + refused == 1 || (request.sharing.is_some() && got > 1), "{service}: {got} of {family:?}");
            }
            return Ok(());
        }
        let named = answer.addresses().filter(|address| names(request, *address)).count();
        let quarrels = answer.addresses().filter(|address| is_quarrel(answer, *address)).count();
        let refused = answer.refused.len() - quarrels;
        ensure!(named + refused == listed.len(), "{service} asks for {listed:?} and is told {answer:?}");
        Ok(())
    }

    /// The numbers of every pool are those of its sets.
    fn check_counts(&self, after: &BTreeMap<IpAddr, Entry>) -> Checked {
        for status in self.allocator.pools() {
            let Some(set) = self.reference.pools.get(&status.name) else {
                return Err(format!("{} is gone and has numbers", status.name));
            };
            let (all, usable) = (&set.addresses, &set.usable);
            let entries = |wanted: fn(&Entry, Timestamp) -> bool| {
                let is = |address: &&IpAddr| after.get(*address).is_some_and(|entry| wanted(entry, self.now));
                usable.iter().filter(is).count() as u128
            };
            let is_held = |entry: &Entry, _| matches!(entry, Entry::Held(_));
            let used =
                all.iter().filter(|address| after.get(*address).is_some_and(|entry| is_held(entry, self.now))).count();
            let reserved_but_used = used as u128 - entries(is_held);
            let draining = entries(|entry, now| matches!(entry, Entry::Freed(freed) if freed.drained > now));
            let resting = entries(
                |entry, now| matches!(entry, Entry::Freed(freed) if freed.drained <= now && freed.rested > now),
            );
            let conflict = entries(|entry, _| matches!(entry, Entry::Conflict(_)));
            let total = usable.len() as u128 + reserved_but_used;
            let free = total - used as u128 - draining - resting - conflict;
            let counts = status.counts;
            let found = [counts.total, counts.used, counts.free, counts.draining, counts.quarantined, counts.conflict];
            let expected = [total, used as u128, free, draining, resting, conflict];
            ensure!(found == expected, "{}: {found:?} instead of {expected:?}", status.name);
            let gives = set.in_service && !set.pool.disabled;
            let available = if gives { free + resting } else { 0 };
            ensure!(counts.available == available, "{}: {} available", status.name, counts.available);
            ensure!(counts.reserved == all.len() as u128 - total, "{}: {} reserved", status.name, counts.reserved);
            ensure!(set.in_service == status.problem.is_none(), "{}: {:?}", status.name, status.problem);
            self.check_explained(set, &status.counts)?;
        }
        Ok(())
    }

    /// What is said of every address adds up to the numbers of its pool, if that is in service. A conflict is one
    /// wherever it is.
    fn check_explained(&self, set: &Set, counts: &Counts) -> Checked {
        let reports = set.addresses.iter().map(|address| self.allocator.explain(*address).state);
        let states: Vec<AddressState> = reports.collect();
        let count = |is: fn(&AddressState) -> bool| states.iter().filter(|state| is(state)).count() as u128;
        let free = count(|state| *state == AddressState::Free);
        if !set.in_service || set.pool.disabled {
            ensure!(free == 0 || !set.in_service, "{} is disabled, and {free} are free", set.pool.name);
            return Ok(());
        }
        let found = [
            count(|state| matches!(state, AddressState::Held(_))),
            free,
            count(|state| matches!(state, AddressState::Draining { .. })),
            count(|state| matches!(state, AddressState::Quarantined { .. })),
            count(|state| matches!(state, AddressState::Reserved(_) | AddressState::Conflict { .. })),
        ];
        let expected =
            [counts.used, counts.free, counts.draining, counts.quarantined, counts.reserved + counts.conflict];
        ensure!(found == expected, "{}: {found:?} are said to be, and {expected:?} counted", set.pool.name);
        Ok(())
    }

    /// Neither another look nor a restart, told in any order, changes anything.
    fn check_rest(&mut self) -> Checked {
        let again = self.allocator.reconcile(Mutant::clock(self.mutant, self.now));
        ensure!(again == Outcome::default(), "a second look: {again:?}");
        if !self.tally.settled.is_multiple_of(4) {
            return Ok(());
        }
        for reversed in [false, true] {
            let mut allocator = self.start(self.allocator.ledger().restarted(), reversed);
            let outcome = allocator.reconcile(Mutant::clock(self.mutant, self.now));
            ensure!(outcome == Outcome::default(), "a restart: {outcome:?}");
        }
        Ok(())
    }
}

/// Every address that a service lost is told, with the reason, and no other.
fn check_released(before: &BTreeMap<IpAddr, Entry>, after: &BTreeMap<IpAddr, Entry>, outcome: &Outcome) -> Checked {
    let holds = |entries: &BTreeMap<IpAddr, Entry>, address: &IpAddr, service: &ServiceName| {
        entries.get(address).is_some_and(|entry| entry.holders().contains(service))
    };
    for (address, entry) in before {
        for service in entry.holders().iter().filter(|service| !holds(after, address, service)) {
            let told = outcome.released.iter().any(|it| it.service == *service && it.address == *address);
            ensure!(told, "{service} lost {address}, and nobody was told");
        }
    }
    let wrong = outcome.released.iter().find(|it| holds(after, &it.address, &it.service));
    ensure!(wrong.is_none(), "{wrong:?} is told, and the service has it");
    Ok(())
}

/// Whether the service is told that it has the address and may not share it.
fn is_quarrel(answer: &Answer, address: IpAddr) -> bool {
    answer.addresses().any(|granted| granted == address)
        && answer.refused.iter().any(|refusal| refusal.asked == Requested::Address(address))
}
