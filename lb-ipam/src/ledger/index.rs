//! An index over the ledger, so that nothing has to be searched.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::{String, ToString},
    vec::Vec,
};
use core::net::IpAddr;

use lb_core::addr::Family;

use crate::{
    Counts, Entry, Ledger, Timestamp,
    pool::catalog::{Catalog, PoolIndex},
    range::{address, intervals::Intervals, number, slot},
};

/// Numbers and orders over the ledger's entries. Costs what the ledger holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    taken: [Intervals; 2],
    forgotten: BTreeSet<(Timestamp, IpAddr)>,
    /// Addresses that can be allocated again once they are drained.
    draining: BTreeSet<(Timestamp, IpAddr)>,
    pools: Vec<[Tally; 2]>,
    namespaces: BTreeMap<(PoolIndex, String), u64>,
    /// Addresses that services hold and no pool has.
    outside: BTreeSet<IpAddr>,
}

/// Entries of one family of one pool.
#[derive(Clone, Debug, Default)]
struct Tally {
    used: u64,
    /// Of those used, the ones that could not be allocated now.
    used_but_reserved: u64,
    /// Addresses that something else answers for.
    conflict: BTreeSet<IpAddr>,
    /// Addresses that an entry reserves.
    reserved: BTreeSet<IpAddr>,
    /// Addresses that can be allocated again, those that were drained first in front.
    freed: BTreeSet<(Timestamp, IpAddr)>,
}

impl Index {
    pub(crate) fn new(catalog: &Catalog, ledger: &impl Ledger) -> Self {
        let mut index = Self { pools: alloc::vec![Default::default(); catalog.pools.len()], ..Self::default() };
        for (address, entry) in ledger.entries() {
            index.note(catalog, address, None, Some(&entry));
        }
        index
    }

    /// Follows a change of the ledger.
    pub(crate) fn note(&mut self, catalog: &Catalog, address: IpAddr, before: Option<&Entry>, after: Option<&Entry>) {
        let taken = &mut self.taken[slot(Family::of(address))];
        match (before, after) {
            (None, Some(_)) => taken.insert(number(address)),
            (Some(_), None) => taken.remove(number(address)),
            (None, None) | (Some(_), Some(_)) => true,
        };
        if let Some(Entry::Freed(freed)) = before {
            self.forgotten.remove(&(freed.forgotten, address));
        }
        if let Some(Entry::Freed(freed)) = after {
            self.forgotten.insert((freed.forgotten, address));
        }
        let containing = catalog.containing(address);
        if containing.is_empty() {
            match after {
                Some(Entry::Held(_)) => self.outside.insert(address),
                Some(Entry::Freed(_) | Entry::Reserved(_) | Entry::Conflict(_)) | None => self.outside.remove(&address),
            };
        }
        let mut is_open = false;
        for &pool in containing {
            let open = catalog.pools[pool].usable.is_open(address);
            is_open |= open;
            let tally = &mut self.pools[pool][slot(Family::of(address))];
            tally.count(address, before, open, false);
            tally.count(address, after, open, true);
            if catalog.pools[pool].pool.namespace_quota.is_some() {
                self.count_namespaces(pool, before, after);
            }
        }
        if let Some(Entry::Freed(freed)) = before {
            self.draining.remove(&(freed.drained, address));
        }
        if let Some(Entry::Freed(freed)) = after
            && is_open
            && freed.drained > freed.at
        {
            self.draining.insert((freed.drained, address));
        }
    }

    fn count_namespaces(&mut self, pool: PoolIndex, before: Option<&Entry>, after: Option<&Entry>) {
        let (before, after) = (namespaces(before), namespaces(after));
        for gone in before.difference(&after) {
            let key = (pool, gone.to_string());
            match self.namespaces.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    self.namespaces.remove(&key);
                }
            }
        }
        for new in after.difference(&before) {
            *self.namespaces.entry((pool, new.to_string())).or_default() += 1;
        }
    }

    /// Addresses that services hold and no pool has.
    pub(crate) fn outside(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.outside.iter().copied()
    }

    /// Addresses of the pool that could be allocated if their entries did not say otherwise: reserved ones and those that
    /// something else answers for.
    pub(crate) fn set_aside(&self, pool: PoolIndex, family: Family) -> impl ExactSizeIterator<Item = IpAddr> {
        let tally = &self.pools[pool][slot(family)];
        let all: Vec<IpAddr> = tally.reserved.union(&tally.conflict).copied().collect();
        all.into_iter()
    }

    /// How many addresses of the pool services of the namespace hold. Counted for pools with a quota only.
    pub(crate) fn used_by(&self, pool: PoolIndex, namespace: &str) -> u64 {
        self.namespaces.get(&(pool, namespace.to_string())).copied().unwrap_or(0)
    }

    /// The address that the pool allocates next: the lowest that is not remembered as used, or else the one that was
    /// released longest ago.
    pub(crate) fn next(&self, catalog: &Catalog, pool: PoolIndex, family: Family, now: Timestamp) -> Option<IpAddr> {
        let fresh = || self.lowest_fresh(catalog, pool, family).map(|number| address(family, number));
        let freed = || {
            let (drained, address) = self.pools[pool][slot(family)].freed.first()?;
            (*drained <= now).then_some(*address)
        };
        fresh().or_else(freed)
    }

    fn lowest_fresh(&self, catalog: &Catalog, pool: PoolIndex, family: Family) -> Option<u128> {
        let (taken, usable) = (&self.taken[slot(family)], &catalog.pools[pool].usable);
        usable.open[slot(family)].iter().find_map(|(first, last)| {
            let mut from = first;
            loop {
                let gap = taken.lowest_gap(from, last)?;
                if !usable.skips(family, gap) {
                    return Some(gap);
                }
                from = gap.checked_add(1).filter(|next| *next <= last)?;
            }
        })
    }

    /// Addresses whose last holder need not be remembered any more.
    pub(crate) fn to_forget(&self, now: Timestamp) -> Vec<IpAddr> {
        self.forgotten.iter().take_while(|(at, _)| *at <= now).map(|(_, address)| *address).collect()
    }

    /// When the next address stops draining after `now`.
    pub(crate) fn next_drained(&self, now: Timestamp) -> Option<Timestamp> {
        let after = (now + core::time::Duration::from_millis(1), LOWEST);
        self.draining.range(after..).next().map(|(drained, _)| *drained)
    }

    /// When the next address is forgotten.
    pub(crate) fn next_forgotten(&self) -> Option<Timestamp> {
        self.forgotten.first().map(|(at, _)| *at)
    }

    pub(crate) fn counts(
        &self,
        catalog: &Catalog,
        pool: PoolIndex,
        family: Family,
        ledger: &impl Ledger,
        now: Timestamp,
    ) -> Counts {
        let tally = &self.pools[pool][slot(family)];
        let (open, size) = catalog.pools[pool].usable.sizes(family);
        let wide = |number: u64| u128::from(number);
        let total = open.saturating_sub(tally.reserved.len() as u128).saturating_add(wide(tally.used_but_reserved));
        let (mut draining, mut quarantined) = (0_u128, 0_u128);
        for (drained, address) in &tally.freed {
            match ledger.get(*address) {
                _ if *drained > now => draining += 1,
                Some(Entry::Freed(freed)) if freed.rested > now => quarantined += 1,
                _ => {}
            }
        }
        let (used, conflict) = (wide(tally.used), tally.conflict.len() as u128);
        let free = total.saturating_sub(used + conflict + draining + quarantined);
        let gives = catalog.pools[pool].out_of_service().is_none();
        let available = if gives { free.saturating_add(quarantined) } else { 0 };
        Counts { total, used, free, quarantined, draining, conflict, reserved: size.saturating_sub(total), available }
    }
}

const LOWEST: IpAddr = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);

impl Tally {
    fn count(&mut self, address: IpAddr, entry: Option<&Entry>, open: bool, add: bool) {
        let step = |count: &mut u64| *count = if add { *count + 1 } else { count.saturating_sub(1) };
        let put = |addresses: &mut BTreeSet<IpAddr>| {
            if add {
                addresses.insert(address)
            } else {
                addresses.remove(&address)
            };
        };
        match entry {
            Some(Entry::Held(_)) => {
                step(&mut self.used);
                if !open {
                    step(&mut self.used_but_reserved);
                }
            }
            Some(Entry::Freed(freed)) if open => {
                let key = (freed.drained, address);
                if add {
                    self.freed.insert(key)
                } else {
                    self.freed.remove(&key)
                };
            }
            Some(Entry::Conflict(_)) if open => put(&mut self.conflict),
            Some(Entry::Reserved(_)) if open => put(&mut self.reserved),
            Some(Entry::Freed(_) | Entry::Conflict(_) | Entry::Reserved(_)) | None => {}
        }
    }
}

fn namespaces(entry: Option<&Entry>) -> BTreeSet<&str> {
    entry.map_or(&[][..], Entry::holders).iter().map(lb_core::name::ServiceName::namespace).collect()
}
