//! The allocator.

mod allocate;
mod entries;
mod explain;
mod keep;
mod plan;
mod reconcile;
mod refuse;
mod released;
mod serve;
mod wake;

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::net::IpAddr;

use lb_core::{addr::Family, name::ServiceName};

use crate::{
    AddressRange, Answer, Entry, Ledger, LedgerError, MemoryLedger, Pool, PoolName, PoolStatus, PoolWarning, Request,
    Settings, Timestamp,
    book::Book,
    ledger::index::Index,
    pool::catalog::{Catalog, PoolIndex},
    range::FAMILIES,
};

pub use explain::{AddressReport, AddressState, KeptFor};
pub use plan::{EditPlan, Move};
pub use reconcile::Outcome;
pub use released::{ReleaseCause, Released};
use wake::Wakeups;

/// Allocates the addresses of pools to services, without I/O. Edits and the time are arguments, the statuses to write
/// are results, and the ledger is written through [`Ledger`].
///
/// 1. [`new`](Self::new) with the ledger of the previous run.
/// 2. [`handle_edit`](Self::handle_edit) for every existing pool and service, in any order. If other processes use the
///    ledger too, list the services after the ledger was read.
/// 3. [`reconcile`](Self::reconcile), then write the statuses that it returns.
/// 4. `handle_edit` and `reconcile` again for each change, and at [`poll_timeout`](Self::poll_timeout).
///
/// The first `reconcile` releases the addresses of services that no edit mentioned, so it must come after all edits.
/// Later ones release only those of services that are [removed](Edit::RemoveService), because another process may know
/// a service that this one does not.
#[derive(Clone, Debug)]
pub struct Allocator<L = MemoryLedger> {
    settings: Settings,
    pools: BTreeMap<PoolName, Arc<Pool>>,
    catalog: Catalog,
    /// Whether `pools` or `settings` changed since `catalog` was made of them.
    stale: bool,
    ledger: L,
    /// Whether services are still being listed for the first time.
    listing: bool,
    /// Addresses whose last write failed with an unknown outcome, and the entries that were to be written.
    unsure: BTreeMap<IpAddr, Vec<Option<Entry>>>,
    /// Why the current reconcile writes nothing any more.
    down: Option<LedgerError>,
    index: Index,
    book: Book,
    /// Why services that wait may get another answer.
    news: Wakeups,
    /// Whether an address was released since a service was last served.
    has_released: bool,
    now: Timestamp,
    ledger_writes: usize,
    /// Addresses that services lost since the last reconcile ended.
    released: Vec<Released>,
}

/// A change of pools, services or rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Adds a pool or replaces the one of the same name.
    UpsertPool(Pool),
    /// Removes a pool; services lose its addresses.
    RemovePool(PoolName),
    /// Adds a service or replaces its request.
    UpsertService(Request),
    /// Declares that a service exists and cannot be read, such as one whose manifest is refused.
    ///
    /// A service that is known stays as it was. An unknown one keeps every address that the ledger attributes to it,
    /// whatever happens to pools and rules. It gets no new address, no service joins it, and no status is written for
    /// it; [`Allocator::answer`] lists its addresses. [`UpsertService`](Self::UpsertService) makes it a service like
    /// any other, and [`RemoveService`](Self::RemoveService) releases its addresses.
    KeepService(ServiceName),
    /// Removes a service and releases its addresses.
    RemoveService(ServiceName),
    /// Replaces the rules.
    SetSettings(Settings),
}

impl<L: Ledger> Allocator<L> {
    /// Most services that share one address.
    pub const MAX_SHARERS: usize = 1024;
    /// Most services with the same sharing key that a service is compared with, the oldest first, before it gets an
    /// address of its own.
    pub const MAX_SHARING_CANDIDATES: usize = 1024;
    /// Most addresses that a service loses to faster processes before it waits for the next reconcile.
    pub const MAX_TRIES: usize = 64;
    /// Most passes of one reconcile over services that wait, because others released addresses meanwhile.
    pub const MAX_PASSES: usize = 16;

    /// An allocator without pools over a ledger that may hold something.
    #[must_use]
    pub fn new(settings: Settings, ledger: L) -> Self {
        let mut allocator = Self {
            settings,
            pools: BTreeMap::new(),
            catalog: Catalog::default(),
            stale: true,
            ledger,
            listing: true,
            unsure: BTreeMap::new(),
            down: None,
            index: Index::default(),
            book: Book::default(),
            news: Wakeups::default(),
            has_released: false,
            now: Timestamp::default(),
            ledger_writes: 0,
            released: Vec::new(),
        };
        allocator.refresh();
        allocator
    }

    /// The ledger.
    #[must_use]
    pub const fn ledger(&self) -> &L {
        &self.ledger
    }

    /// Returns the ledger, for a restart.
    #[must_use]
    pub fn into_ledger(self) -> L {
        self.ledger
    }

    /// Reads the ledger anew, after its view was changed by something else than this allocator.
    pub fn refresh(&mut self) {
        self.stale = true;
        self.news.for_everybody();
        let before = self.book.holdings();
        let gone = self.book.clear_entries();
        let entries: Vec<_> = self.ledger.entries().collect();
        for (address, entry) in entries {
            self.book.note(address, None, Some(&entry));
        }
        self.book.abandon_unknown(&gone);
        for (service, address) in before {
            let holds = self.book.find(&service).is_some_and(|slot| self.book.get(slot).held.contains(&address));
            if !holds {
                self.released.push(Released { service, address, why: ReleaseCause::Overwritten });
            }
        }
        self.book.mark_all();
    }

    /// Handles an edit. This never fails: errors of a pool are in its status, and errors of a request are in its
    /// answer.
    pub fn handle_edit(&mut self, edit: Edit) {
        match edit {
            Edit::UpsertPool(pool) => {
                let pool = Arc::new(pool);
                let before = self.pools.insert(pool.name.clone(), Arc::clone(&pool));
                self.stale |= before != Some(pool);
            }
            Edit::RemovePool(name) => self.stale |= self.pools.remove(&name).is_some(),
            Edit::UpsertService(request) => self.upsert(request),
            Edit::KeepService(name) => {
                if let Some(slot) = self.book.keep(&name) {
                    self.note_request(slot, []);
                }
            }
            Edit::RemoveService(name) => self.book.remove(&name),
            Edit::SetSettings(settings) => {
                self.stale |= self.settings != settings;
                self.settings = settings;
            }
        }
    }

    fn upsert(&mut self, request: Request) {
        if let Some((slot, keys)) = self.book.upsert(request) {
            self.note_request(slot, keys.into_iter().flatten());
            self.touch_sharers(slot);
        }
    }

    /// When to reconcile again without an edit, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Timestamp, &'static str)> {
        let drained = || self.index.next_drained(self.now).map(|at| (at, "an address is drained"));
        let drained = if self.book.someone_waits() { drained() } else { None };
        let forgotten = self.index.next_forgotten().map(|at| (at, "an address is forgotten"));
        drained.into_iter().chain(forgotten).min()
    }

    /// The result of the last reconcile for a service; `None` if this allocator does not serve it. The result for a
    /// service that is [kept](Edit::KeepService) is what it holds. If that is nothing, nobody knows whose service it
    /// is, and the answer is `None`.
    #[must_use]
    pub fn answer(&self, service: &ServiceName) -> Option<&Answer> {
        let tracked = self.book.get(self.book.find(service)?);
        tracked.managed.then_some(&tracked.answer)
    }

    /// The status of every pool as of the last reconcile, in the order in which pools are asked.
    pub fn pools(&self) -> impl Iterator<Item = PoolStatus> + '_ {
        let kept = self.kept_outside();
        self.catalog.pools.iter().enumerate().map(move |(index, compiled)| {
            let counts = |family| self.index.counts(&self.catalog, index, family, &self.ledger, self.now);
            let [ipv4, ipv6] = FAMILIES.map(counts);
            let keeps = kept.filter(|_| compiled.is_unreadable());
            let keeps = keeps.map(|addresses| PoolWarning::KeepsOthers { addresses });
            PoolStatus {
                name: compiled.pool.name.clone(),
                problem: compiled.problem.clone(),
                warnings: compiled.warnings.iter().cloned().chain(self.lacks(index)).chain(keeps).collect(),
                counts: ipv4.with(&ipv6),
                ipv4,
                ipv6,
            }
        })
    }

    /// That the pool has nothing to give, or that some of its addresses belong to somebody else.
    fn lacks(&self, index: PoolIndex) -> Option<PoolWarning> {
        let compiled = &self.catalog.pools[index];
        let is_open = |family: &Family| {
            let set_aside = self.index.set_aside(index, *family).len() as u128;
            compiled.usable.sizes(*family).0 > set_aside
        };
        // Of a pool that is wrong it is not known what it has.
        if compiled.problem.is_some() || compiled.pool.blocks.is_empty() || FAMILIES.iter().any(is_open) {
            return self.covers(index);
        }
        let total = FAMILIES.iter().fold(0_u128, |sum, family| sum.saturating_add(compiled.usable.sizes(*family).1));
        Some(PoolWarning::NothingUsable { total, by: self.reserved_by(index, &FAMILIES) })
    }

    /// Addresses of a pool that belong to somebody else by the rules or by the ledger, and whose they are. Those that
    /// the pool itself keeps back are not among them.
    #[must_use]
    pub fn reserved(&self, pool: &PoolName) -> Vec<(AddressRange, String)> {
        let index = self.catalog.named(pool);
        index.map(|index| self.covered(index, &FAMILIES).collect()).unwrap_or_default()
    }

    /// Addresses of the pool that belong to somebody else, if there are any.
    fn covers(&self, index: PoolIndex) -> Option<PoolWarning> {
        let mut all = self.covered(index, &FAMILIES);
        let covered: Vec<_> = all.by_ref().take(PoolWarning::MAX_NAMED).collect();
        (!covered.is_empty()).then(|| PoolWarning::Covers { covered, more: all.count() })
    }

    /// Addresses of the pool that rules or the ledger give to somebody else, and to whom.
    fn covered<'a>(
        &'a self,
        index: PoolIndex,
        families: &'a [Family],
    ) -> impl Iterator<Item = (AddressRange, String)> + 'a {
        let by_rule = self.catalog.pools[index].covered.iter().filter(|(range, _)| families.contains(&range.family()));
        let set_aside = families.iter().flat_map(move |family| self.index.set_aside(index, *family));
        let by_entry = set_aside.filter_map(|address| {
            let why = match self.ledger.get(address)? {
                Entry::Reserved(why) => why.to_string(),
                Entry::Conflict(by) => alloc::format!("in use by {by}"),
                Entry::Held(_) | Entry::Freed(_) => return None,
            };
            Some((AddressRange::single(address), why))
        });
        by_rule.cloned().chain(by_entry)
    }

    /// How many addresses of no pool stay with services that can be read because a pool cannot, if there are any.
    fn kept_outside(&self) -> Option<usize> {
        self.catalog.unreadable()?;
        let for_pool = |address: &IpAddr| matches!(self.kept_for(*address), Some(KeptFor::Pool(_)));
        let kept = self.index.outside().filter(for_pool);
        Some(kept.count()).filter(|kept| *kept > 0)
    }

    /// The status of one pool as of the last reconcile.
    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<PoolStatus> {
        self.pools().find(|status| status.name == *name)
    }
}
