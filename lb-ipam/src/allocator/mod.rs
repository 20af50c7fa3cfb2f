//! The allocator.

mod entries;
mod explain;
mod give;
mod keep;
mod plan;
mod reconcile;
mod refuse;
mod serve;
mod wake;

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};
use core::net::IpAddr;

use lb_core::ServiceName;

use crate::{
    Answer, Entry, Ledger, LedgerError, MemoryLedger, Pool, PoolName, PoolStatus, PoolWarning, Request, Settings,
    Timestamp, book::Book, ledger::index::Index, pool::catalog::Catalog, range::FAMILIES,
};

pub use explain::{AddressReport, AddressState, KeptFor};
pub use plan::{EditPlan, Move};
pub use reconcile::Outcome;
use wake::Wakeups;

/// Gives the addresses of pools to services. No I/O: edits come in, what to write into statuses comes out, the ledger
/// is written through [`Ledger`], and the caller tells the time.
///
/// 1. [`new`](Self::new) with the ledger as it was left.
/// 2. [`handle_edit`](Self::handle_edit) for every pool and every service there is, in any order. Where other processes
///    use the ledger too, services are listed after it was read.
/// 3. [`reconcile`](Self::reconcile), and write the statuses that it returns.
/// 4. Then `handle_edit` and `reconcile` again for each change, and at [`poll_timeout`](Self::poll_timeout).
///
/// The first `reconcile` gives back what services hold that nobody mentioned, so it must come after all of them. Later
/// only those give back that are [removed](Edit::RemoveService): who is not known may be known to another process.
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
    /// Where a write failed, so that it is not known what the ledger has, and what was to be written.
    unsure: BTreeMap<IpAddr, Vec<Option<Entry>>>,
    /// Why the reconcile under way writes nothing any more.
    down: Option<LedgerError>,
    index: Index,
    book: Book,
    /// Why those that wait may get another answer.
    news: Wakeups,
    /// Whether an address was given back since a service was last served.
    gave_back: bool,
    now: Timestamp,
    ledger_writes: usize,
}

/// A change of what there is or what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Adds a pool or replaces the one of the same name.
    UpsertPool(Pool),
    /// Removes a pool; its addresses leave their services.
    RemovePool(PoolName),
    /// Adds a service or replaces what it asks for.
    UpsertService(Request),
    /// Says of a service that it is there and cannot be read, such as one whose manifest is refused. One that is known
    /// stays as it was. One that is not asks for nothing and gets nothing, keeps every address that the ledger says it
    /// has, whatever becomes of pools and rules, is joined by nobody, and has no status written: [`Allocator::answer`]
    /// says what it has. [`UpsertService`](Self::UpsertService) makes it a service like any other, and
    /// [`RemoveService`](Self::RemoveService) has it give everything back.
    KeepService(ServiceName),
    /// Removes a service; it gives its addresses back.
    RemoveService(ServiceName),
    /// Replaces the rules.
    SetSettings(Settings),
}

impl<L: Ledger> Allocator<L> {
    /// Most services that share one address.
    pub const MAX_SHARERS: usize = 1024;
    /// How many services with its sharing key a service is compared with, the oldest first, before it gets an address
    /// of its own.
    pub const MAX_SHARING_CANDIDATES: usize = 1024;
    /// How often a service tries another address because other processes were faster, before it waits for the next
    /// reconcile.
    pub const MAX_TRIES: usize = 64;
    /// How often one reconcile goes over those that wait, because others gave something back meanwhile.
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
            gave_back: false,
            now: Timestamp::default(),
            ledger_writes: 0,
        };
        allocator.refresh();
        allocator
    }

    /// The ledger.
    #[must_use]
    pub const fn ledger(&self) -> &L {
        &self.ledger
    }

    /// Gives the ledger back, for a restart.
    #[must_use]
    pub fn into_ledger(self) -> L {
        self.ledger
    }

    /// Reads the ledger anew, after something else than this allocator changed what it shows.
    pub fn refresh(&mut self) {
        self.stale = true;
        self.news.for_everybody();
        let gone = self.book.clear_entries();
        let entries: Vec<_> = self.ledger.entries().collect();
        for (address, entry) in entries {
            self.book.note(address, None, Some(&entry));
        }
        self.book.abandon_unknown(&gone);
        self.book.mark_all();
    }

    /// Takes an edit in. Never fails: what is wrong with a pool is in its status, and what is wrong with a request is
    /// in its answer.
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

    /// When to reconcile again though nothing was edited, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Timestamp, &'static str)> {
        let drained = || self.index.next_drained(self.now).map(|at| (at, "an address is drained"));
        let drained = if self.book.someone_waits() { drained() } else { None };
        let forgotten = self.index.next_forgotten().map(|at| (at, "an address is forgotten"));
        drained.into_iter().chain(forgotten).min()
    }

    /// What a service got in the last reconcile, `None` if it is not ours. A service that is [kept](Edit::KeepService)
    /// has got what it holds; if it holds nothing, it is not known whether it is ours, and the answer is `None`.
    #[must_use]
    pub fn answer(&self, service: &ServiceName) -> Option<&Answer> {
        let tracked = self.book.get(self.book.find(service)?);
        tracked.managed.then_some(&tracked.answer)
    }

    /// How every pool is doing as of the last reconcile, in the order in which they are asked.
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
                warnings: compiled.warnings.iter().cloned().chain(keeps).collect(),
                counts: ipv4.with(&ipv6),
                ipv4,
                ipv6,
            }
        })
    }

    /// How many addresses of no pool stay with services that can be read because a pool cannot, if there are any.
    fn kept_outside(&self) -> Option<usize> {
        self.catalog.unreadable()?;
        let for_pool = |address: &IpAddr| matches!(self.kept_for(*address), Some(KeptFor::Pool(_)));
        let kept = self.index.outside().filter(for_pool);
        Some(kept.count()).filter(|kept| *kept > 0)
    }

    /// How one pool is doing as of the last reconcile.
    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<PoolStatus> {
        self.pools().find(|status| status.name == *name)
    }
}
