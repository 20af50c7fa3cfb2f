//! Who should have which address. Touches nothing outside, so that an edit can be tried on a copy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{model::Change, name::ServiceName};
use lb_ipam::{
    Allocator, Answer, Classes, Edit, Entry, Ledger, Outcome, Pool, PoolName, ReleaseCause, Request, Settings,
    Timestamp,
};

use super::{
    by_hand::ByHand,
    claims::Claims,
    stored::{FirstSeen, Remembered},
};

/// How the reason of an address that is reserved for another service begins.
const CLAIMED: &str = "an address that service ";

/// The allocator, and what the agent knows beyond it.
#[derive(Clone, Debug)]
pub(super) struct Assignments {
    allocator: Allocator,
    by_hand: ByHand,
    pools: BTreeMap<PoolName, Pool>,
    /// When pools and services were seen first whose manifests do not say when they were made.
    first_seen: FirstSeen,
    /// How often `first_seen` changed.
    sightings: u64,
    load_balancers: BTreeMap<ServiceName, LoadBalancer>,
    /// Services that are there and cannot be read.
    kept: BTreeSet<ServiceName>,
    classes: Classes,
    claims: Claims,
    /// Addresses from pools that services lost because their statuses came to name others.
    replaced: BTreeMap<ServiceName, BTreeSet<IpAddr>>,
    /// Addresses that are reserved for claims.
    reserved: BTreeSet<IpAddr>,
}

/// A service of type LoadBalancer.
#[derive(Clone, Debug)]
struct LoadBalancer {
    /// Its class, if another program allocates for it.
    foreign: Option<String>,
    /// What its status names.
    published: Vec<IpAddr>,
}

/// Gives what does not say when it was made the time at which it was seen first. Whether that is now.
fn date<K: Clone + Ord>(seen: &mut BTreeMap<K, Timestamp>, name: &K, created: &mut Timestamp, now: Timestamp) -> bool {
    let is_new = !seen.contains_key(name);
    *created = *seen.entry(name.clone()).or_insert(now);
    is_new
}

/// Whether the ledger says that the service has the address, or was the last to have it.
fn is_remembered(ledger: &impl Ledger, service: &ServiceName, address: IpAddr) -> bool {
    match ledger.get(address) {
        Some(Entry::Held(holders)) => holders.names().contains(service),
        Some(Entry::Freed(freed)) => freed.last == *service,
        Some(Entry::Reserved(_) | Entry::Conflict(_)) | None => false,
    }
}

/// What came of edits.
#[derive(Debug, Default)]
pub(super) struct Effect {
    /// Whether anything may follow from them.
    pub(super) is_news: bool,
    /// Services whose addresses may be others now, whatever the allocator says.
    pub(super) touched: BTreeSet<ServiceName>,
}

impl Assignments {
    pub(super) fn new(settings: Settings, remembered: Remembered) -> Self {
        let Remembered { ledger, first_seen } = remembered;
        let is_ours = |entry: &Entry| matches!(entry, Entry::Reserved(why) if why.starts_with(CLAIMED));
        let reserved = ledger.entries().filter(|(_, entry)| is_ours(entry)).map(|(address, _)| address).collect();
        Self {
            classes: settings.classes.clone(),
            allocator: Allocator::new(settings, ledger),
            by_hand: ByHand::default(),
            pools: BTreeMap::new(),
            first_seen,
            sightings: 0,
            load_balancers: BTreeMap::new(),
            kept: BTreeSet::new(),
            claims: Claims::default(),
            replaced: BTreeMap::new(),
            reserved,
        }
    }

    pub(super) fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    pub(super) fn pools(&self) -> &BTreeMap<PoolName, Pool> {
        &self.pools
    }

    pub(super) fn first_seen(&self) -> &FirstSeen {
        &self.first_seen
    }

    /// A number that is another one whenever [`first_seen`](Self::first_seen) is.
    pub(super) fn sightings(&self) -> u64 {
        self.sightings
    }

    /// Takes in what services ask of pools, and what else changes.
    pub(super) fn take(&mut self, mut edits: Vec<Edit>, changes: &[Change], now: Timestamp) -> Effect {
        let mut effect = Effect { is_news: !edits.is_empty(), touched: BTreeSet::new() };
        let had_pools = !self.pools.is_empty();
        let touches_pools = edits.iter().any(|edit| matches!(edit, Edit::UpsertPool(_) | Edit::RemovePool(_)));
        edits.iter_mut().for_each(|edit| self.date(edit, now));
        edits.iter().for_each(|edit| self.note(edit, &mut effect.touched));
        let ledger = self.allocator.ledger();
        for edit in self.by_hand.translate(edits, |service, address| is_remembered(ledger, service, address)) {
            self.allocator.handle_edit(edit);
        }
        for change in changes {
            effect.is_news |= self.note_change(change);
        }
        if touches_pools {
            self.claims.note_pools(|ip| self.by_hand.is_in_a_pool(ip));
        }
        effect.is_news |= self.note_statuses(touches_pools, &effect.touched);
        if had_pools == self.pools.is_empty() {
            effect.touched.extend(self.load_balancers.keys().cloned());
        }
        effect
    }

    /// Services that hold addresses by the ledger, and whether one of these is in no pool.
    pub(super) fn holders(&self) -> BTreeMap<ServiceName, bool> {
        let mut holders = BTreeMap::new();
        for (address, entry) in self.allocator.ledger().entries() {
            let is_outside = !self.by_hand.is_in_a_pool(address);
            for holder in entry.holders() {
                *holders.entry(holder.clone()).or_insert(false) |= is_outside;
            }
        }
        holders
    }

    /// Forgets pools and services that are not there, once all are known that are.
    pub(super) fn forget_others(&mut self) {
        let FirstSeen { pools, services } = &mut self.first_seen;
        let before = pools.len() + services.len();
        pools.retain(|name, _| self.pools.contains_key(name));
        services.retain(|name, _| self.load_balancers.contains_key(name) || self.kept.contains(name));
        self.sightings += u64::from(before != pools.len() + services.len());
    }

    /// Brings everything in order; the changes of the ledger are counted together.
    pub(super) fn settle(&mut self, now: Timestamp) -> Outcome {
        let reserved = self.reserve_claimed();
        let outcome = self.allocator.reconcile(now);
        self.note_replaced(&outcome);
        Outcome { ledger_writes: outcome.ledger_writes + reserved, ..outcome }
    }

    /// What a service gets from pools; `None` if its addresses do not come from there.
    pub(super) fn answer(&self, service: &ServiceName) -> Option<&Answer> {
        self.allocator.answer(service)
    }

    /// The addresses that a service should have, `None` for those that its status names.
    pub(super) fn granted_to(&self, service: &ServiceName) -> Option<Vec<IpAddr>> {
        let answer = self.answer(service)?;
        Some(answer.addresses().chain(self.by_hand.outside(service)).collect())
    }

    /// The same, with those that its status names.
    pub(super) fn addresses(&self, service: &ServiceName) -> Vec<IpAddr> {
        let published = || self.load_balancers.get(service).map(|it| it.published.clone()).unwrap_or_default();
        self.granted_to(service).unwrap_or_else(published)
    }

    /// Addresses that a service has beside those of pools.
    pub(super) fn outside(&self, service: &ServiceName) -> impl Iterator<Item = IpAddr> {
        self.by_hand.outside(service)
    }

    /// Services that get their addresses here, and what they get.
    pub(super) fn answered(&self) -> impl Iterator<Item = (&ServiceName, &Answer)> {
        self.load_balancers.keys().filter_map(|name| Some((name, self.answer(name)?)))
    }

    /// Those of them that lack something.
    pub(super) fn unsatisfied(&self) -> impl Iterator<Item = (&ServiceName, &Answer)> {
        self.answered().filter(|(_, answer)| !answer.is_satisfied())
    }

    /// The class of a service of type LoadBalancer, if another program allocates for it.
    pub(super) fn class_of(&self, service: &ServiceName) -> Option<Option<&str>> {
        self.load_balancers.get(service).map(|it| it.foreign.as_deref())
    }

    /// Addresses from pools that the status of a service replaced with others, for as long as the ledger remembers who
    /// had them: about an hour.
    pub(super) fn by_hand_instead(&self, service: &ServiceName) -> Vec<IpAddr> {
        let left = |entry: &Entry| matches!(entry, Entry::Freed(freed) if freed.last == *service);
        let is_remembered = |ip: &IpAddr| self.allocator.ledger().get(*ip).as_ref().is_some_and(left);
        self.replaced.get(service).into_iter().flatten().copied().filter(is_remembered).collect()
    }

    /// Whether a service of this agent has only addresses that its status names.
    fn is_by_hand(&self, service: &ServiceName) -> bool {
        self.class_of(service) == Some(None)
            && self.answer(service).is_none()
            && self.by_hand.outside(service).next().is_some()
    }

    /// A service of this agent that is none of the allocator's any more has addresses in its status instead.
    fn note_replaced(&mut self, outcome: &Outcome) {
        for released in &outcome.released {
            if released.why == ReleaseCause::NotLoadBalancer {
                self.replaced.entry(released.service.clone()).or_default().insert(released.address);
            }
        }
        let mut replaced = std::mem::take(&mut self.replaced);
        replaced.retain(|service, _| self.is_by_hand(service));
        self.replaced = replaced;
    }

    /// Services of type LoadBalancer, with their class if another program allocates for it.
    pub(super) fn load_balancers(&self) -> impl Iterator<Item = (&ServiceName, Option<&str>)> {
        self.load_balancers.iter().map(|(name, it)| (name, it.foreign.as_deref()))
    }

    /// A pool that does not say when it was made is as old as we know it to be: it must not take the addresses of one
    /// that was there before. Likewise a service that waits must not be overtaken by one that came later.
    fn date(&mut self, edit: &mut Edit, now: Timestamp) {
        let FirstSeen { pools, services } = &mut self.first_seen;
        let is_dated = |created: Timestamp| created != Timestamp::default();
        self.sightings += u64::from(match edit {
            Edit::UpsertPool(pool) if !is_dated(pool.created) => date(pools, &pool.name, &mut pool.created, now),
            Edit::UpsertPool(Pool { name, .. }) | Edit::RemovePool(name) => pools.remove(name).is_some(),
            Edit::UpsertService(request) if request.load_balancer && !is_dated(request.created) => {
                date(services, &request.service, &mut request.created, now)
            }
            Edit::UpsertService(Request { service: name, .. }) | Edit::RemoveService(name) => {
                services.remove(name).is_some()
            }
            Edit::KeepService(_) | Edit::SetSettings(_) => false,
        });
    }

    fn note(&mut self, edit: &Edit, touched: &mut BTreeSet<ServiceName>) {
        match edit {
            Edit::UpsertPool(pool) => drop(self.pools.insert(pool.name.clone(), pool.clone())),
            Edit::RemovePool(name) => drop(self.pools.remove(name)),
            Edit::UpsertService(request) => {
                touched.insert(request.service.clone());
                self.kept.remove(&request.service);
                self.note_request(request);
            }
            // The service itself may still be there, as one of another type.
            Edit::RemoveService(name) => {
                touched.insert(name.clone());
                self.kept.remove(name);
                self.load_balancers.remove(name);
            }
            Edit::KeepService(name) => drop(self.kept.insert(name.clone())),
            Edit::SetSettings(_) => {}
        }
    }

    fn note_request(&mut self, request: &Request) {
        if !request.load_balancer {
            self.load_balancers.remove(&request.service);
            return;
        }
        let foreign = request.class.clone().filter(|class| !self.classes.include(Some(class)));
        let published = request.published.addresses.clone();
        self.load_balancers.insert(request.service.clone(), LoadBalancer { foreign, published });
    }

    /// What statuses name of services of another class: of those that were touched, which may be of another type by
    /// now, or of all.
    fn note_statuses(&mut self, all: bool, touched: &BTreeSet<ServiceName>) -> bool {
        let mut names = touched.clone();
        if all {
            names.extend(self.load_balancers.keys().cloned());
        }
        let mut is_news = false;
        for name in names {
            let foreign = self.load_balancers.get(&name).filter(|service| service.foreign.is_some());
            let published = foreign.map(|service| &*service.published).unwrap_or_default();
            is_news |= self.claims.note_status(&name, published, |ip| self.by_hand.is_in_a_pool(ip));
        }
        is_news
    }

    fn note_change(&mut self, change: &Change) -> bool {
        match change {
            Change::UpsertService(service) => self.claims.note_service(service, |ip| self.by_hand.is_in_a_pool(ip)),
            Change::RemoveService(name) => self.claims.forget(name),
            _ => false,
        }
    }

    /// Whether a service that holds an address goes on asking for one.
    fn stays(&self, service: &ServiceName) -> bool {
        let is_ours = self.load_balancers.get(service).is_some_and(|service| service.foreign.is_none());
        is_ours || self.kept.contains(service)
    }

    /// Reserves addresses that services have, but not from pools, unless a service that stays holds them by now. The
    /// first holder keeps an address; after it, services that claim it precede those that wait. Returns how many
    /// entries changed.
    fn reserve_claimed(&mut self) -> usize {
        let claimed = self.claims.all();
        let over: Vec<IpAddr> = self.reserved.iter().copied().filter(|ip| !claimed.contains_key(ip)).collect();
        let mut writes = 0;
        for address in over {
            self.reserved.remove(&address);
            writes += usize::from(self.allocator.clear(address).is_ok());
        }
        for (address, service) in claimed {
            let entry = self.allocator.ledger().get(address);
            let is_held = entry.is_some_and(|entry| entry.holders().iter().any(|holder| self.stays(holder)));
            let why = format!("{CLAIMED}{service} has already");
            if !is_held && self.reserved.insert(address) {
                writes += usize::from(self.allocator.reserve(address, &why).is_ok());
            }
        }
        writes
    }
}
