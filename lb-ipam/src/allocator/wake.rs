//! Services that wait and may now get another answer, because of events since they were examined.
//!
//! An answer depends on the entries of the addresses that it names, on the requests of services that share or hold
//! them, and on the room in pools. A service that waits for an address is therefore examined when that address changes.
//! A service with a sharing key is examined when another one with that key changes. If a pool has room for one more,
//! the first service in turn that the pool is for is examined.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};
use core::net::IpAddr;

use lb_core::addr::Family;

use crate::{
    Allocator, Entry, Ledger,
    book::{Slot, waiting::Turn},
    pool::catalog::PoolIndex,
};

/// Events since services that wait were examined.
#[derive(Clone, Debug, Default)]
pub(super) struct Wakeups {
    /// Something that concerns everybody.
    everybody: bool,
    addresses: BTreeSet<IpAddr>,
    keys: BTreeSet<Arc<str>>,
    room: BTreeMap<(PoolIndex, Family), Vacancies>,
    /// Services that lost an address to faster processes.
    outrun: BTreeSet<Slot>,
    /// How many entries changed, ever.
    changes: u64,
}

/// Addresses that a pool can allocate again.
#[derive(Clone, Copy, Debug, Default)]
struct Vacancies {
    addresses: usize,
    /// How many entries had changed when somebody was woken for them.
    woken: Option<u64>,
}

impl Wakeups {
    pub(super) const fn for_everybody(&mut self) {
        self.everybody = true;
    }

    /// The service was outrun, and tries again.
    pub(super) fn again(&mut self, slot: Slot) {
        self.outrun.insert(slot);
    }

    pub(super) fn is_empty(&self) -> bool {
        let nobody = self.addresses.is_empty() && self.keys.is_empty() && self.outrun.is_empty();
        !self.everybody && nobody && self.room.is_empty()
    }
}

impl<L: Ledger> Allocator<L> {
    /// Notes a change of the ledger.
    pub(super) fn note_change(&mut self, address: IpAddr, before: Option<&Entry>, after: Option<&Entry>) {
        self.news.changes += 1;
        let containing = self.catalog.containing(address);
        // With a quota, a change of one service changes the room of every service in its namespace.
        let has_quota = |index: &PoolIndex| self.catalog.pools[*index].pool.namespace_quota.is_some();
        self.news.everybody |= containing.iter().any(has_quota);
        // Everybody who finds a pool full is told of addresses that are set aside.
        let is_set_aside = |entry: &Option<&Entry>| matches!(entry, Some(Entry::Reserved(_) | Entry::Conflict(_)));
        self.news.everybody |= [before, after].iter().any(is_set_aside);
        if !self.book.someone_waits() || self.news.everybody {
            return;
        }
        let holders = [before, after].into_iter().flatten().flat_map(Entry::holders);
        let sharing = holders.filter_map(|holder| self.book.request(holder)?.sharing.as_ref());
        self.news.keys.extend(sharing.map(|sharing| Arc::clone(&sharing.key)));
        self.news.addresses.insert(address);
        let Some(&owner) = containing.first() else { return };
        let opens = self.is_to_be_had(after) && !self.is_to_be_had(before);
        if opens && self.catalog.pools[owner].usable.is_open(address) {
            self.news.room.entry((owner, Family::of(address))).or_default().addresses += 1;
        }
    }

    fn is_to_be_had(&self, entry: Option<&Entry>) -> bool {
        match entry {
            None => true,
            Some(Entry::Freed(freed)) => freed.drained <= self.now,
            Some(Entry::Held(_) | Entry::Reserved(_) | Entry::Conflict(_)) => false,
        }
    }

    /// Notes that a service asks for something else, where that may concern those with whom it shares or could share.
    pub(super) fn note_request(&mut self, slot: Slot, keys: impl IntoIterator<Item = Arc<str>>) {
        if self.book.someone_waits() {
            self.news.keys.extend(keys);
            self.news.addresses.extend(&self.book.get(slot).held);
        }
    }

    /// Services to examine again, in no order; some of them occur more than once.
    pub(super) fn awakened(&mut self) -> Vec<Slot> {
        let changes = self.news.changes;
        let news = core::mem::replace(&mut self.news, Wakeups { changes, ..Wakeups::default() });
        if news.is_empty() || !self.book.someone_waits() {
            return Vec::new();
        }
        let waiting = self.book.waiting();
        if news.everybody {
            return waiting.all().filter_map(|turn| self.book.find(&turn.1)).collect();
        }
        let for_addresses = news.addresses.iter().flat_map(|address| waiting.for_address(*address));
        let mut awakened: Vec<Slot> = for_addresses.filter_map(|turn| self.book.find(&turn.1)).collect();
        let with_keys = news.keys.iter().flat_map(|key| self.book.with_key(key));
        awakened.extend(with_keys.chain(news.outrun).filter(|slot| self.book.waits(*slot)));
        for ((pool, family), room) in news.room {
            // A service that was woken and did not take the address never will, unless something else changed.
            if room.woken == Some(changes) || self.index.next(&self.catalog, pool, family, self.now).is_none() {
                continue;
            }
            let is_for = |turn: &&Turn| {
                self.book.request(&turn.1).is_some_and(|request| self.check_unasked(pool, request).is_ok())
            };
            let first = self.book.waiting().for_family(family).filter(is_for).take(room.addresses);
            let before = awakened.len();
            awakened.extend(first.filter_map(|turn| self.book.find(&turn.1)));
            if awakened.len() > before {
                // They may take another address that was released as well.
                self.news.room.insert((pool, family), Vacancies { woken: Some(changes), ..room });
            }
        }
        awakened
    }
}
