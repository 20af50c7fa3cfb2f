//! The allocator.

mod entries;
mod explain;
mod give;
mod keep;
mod plan;
mod serve;

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};
use core::net::IpAddr;

use lb_core::ServiceName;

use crate::{
    Answer, Entry, Ledger, LedgerError, MemoryLedger, Pool, PoolName, PoolStatus, Request, Settings, Status, Timestamp,
    book::{Book, Dirt, Slot},
    catalog::Catalog,
    index::Index,
    range::FAMILIES,
};

pub use explain::{AddressReport, AddressState};
pub use plan::{EditPlan, Move};

/// Gives the addresses of pools to services. No I/O: edits come in, what to write into statuses comes out, the ledger is
/// written through [`Ledger`], and the caller tells the time.
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
    /// Whether those that wait may get another answer, because something changed since they were looked at.
    news: bool,
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
    /// Removes a service; it gives its addresses back.
    RemoveService(ServiceName),
    /// Replaces the rules.
    SetSettings(Settings),
}

/// What a reconcile came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// Statuses that should be written, in order of name; those of all other services are right as they are.
    pub writes: Vec<(ServiceName, Status)>,
    /// Services that were left as they are, because the ledger failed; they are tried again by the next reconcile.
    pub failed: Vec<(ServiceName, LedgerError)>,
    /// How many entries of the ledger were changed.
    pub ledger_writes: usize,
    /// Whether there is more to do: services that can be served by another reconcile, or writes of which it is not known
    /// what became.
    pub unfinished: bool,
}

impl<L: Ledger> Allocator<L> {
    /// Most services that share one address.
    pub const MAX_SHARERS: usize = 1024;
    /// How many services with its sharing key a service is compared with, the oldest first, before it gets an address of
    /// its own.
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
            news: true,
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
        self.news = true;
        let gone = self.book.clear_entries();
        let entries: Vec<_> = self.ledger.entries().collect();
        for (address, entry) in entries {
            self.book.note(address, None, Some(&entry));
        }
        self.book.abandon_unknown(&gone);
        self.book.mark_all();
    }

    /// Takes an edit in. Never fails: what is wrong with a pool is in its status, and what is wrong with a request is in
    /// its answer.
    pub fn handle_edit(&mut self, edit: Edit) {
        match edit {
            Edit::UpsertPool(pool) => {
                let pool = Arc::new(pool);
                let before = self.pools.insert(pool.name.clone(), Arc::clone(&pool));
                self.stale |= before != Some(pool);
            }
            Edit::RemovePool(name) => self.stale |= self.pools.remove(&name).is_some(),
            Edit::UpsertService(request) => self.upsert(request),
            Edit::RemoveService(name) => self.book.remove(&name),
            Edit::SetSettings(settings) => {
                self.stale |= self.settings != settings;
                self.settings = settings;
            }
        }
    }

    fn upsert(&mut self, request: Request) {
        if let Some(slot) = self.book.upsert(request) {
            self.news = true;
            self.touch_sharers(slot);
        }
    }

    /// Brings everything in order, in three phases: every address that a service has and may keep stays with it, for all
    /// services; then those that lost something get another one; then those that wait are served. Within a phase the
    /// older service comes first, and of two of the same age the name decides.
    pub fn reconcile(&mut self, now: Timestamp) -> Outcome {
        let drained = self.index.next_drained(self.now).is_some_and(|at| at <= now);
        (self.now, self.ledger_writes) = (now, 0);
        if self.stale {
            self.compile();
        }
        if core::mem::take(&mut self.listing) {
            self.book.abandon_all_unknown();
        }
        self.news |= drained;
        let mut run = Run::default();
        self.down = None;
        self.make_sure();
        self.forget_old(&mut run);
        self.release_orphans(&mut run);
        let dirty = self.book.take_dirty();
        for &slot in &dirty {
            let kept = self.keep(slot);
            run.note(slot, kept);
        }
        for &slot in &dirty {
            let imported = self.import(slot);
            run.note(slot, imported);
        }
        for &slot in &dirty {
            self.book.get_mut(slot).rank = None;
        }
        self.serve_all(dirty, &mut run);
        self.finish(run)
    }

    fn compile(&mut self) {
        self.catalog = Catalog::new(&self.pools, &self.settings);
        self.index = Index::new(&self.catalog, &self.ledger);
        self.book.mark_all();
        (self.stale, self.news) = (false, true);
    }

    /// Serves the services of `queue`, those that lost something first. Whenever something is given back, those that wait
    /// are looked at again, so that none of the queue gets it before an older one.
    fn serve_all(&mut self, mut queue: Vec<Slot>, run: &mut Run) {
        for pass in 1..=Self::MAX_PASSES {
            if core::mem::take(&mut self.news) && self.book.someone_waits() {
                queue.extend(self.book.waiting());
            }
            if queue.is_empty() {
                return;
            }
            self.book.sort_by_key(&mut queue, |tracked| !tracked.lost);
            queue.dedup();
            let mut rest = core::mem::take(&mut queue).into_iter();
            for slot in rest.by_ref() {
                self.gave_back = false;
                run.touched.push(slot);
                if !run.failed.contains_key(&slot) {
                    let served = self.serve(slot);
                    run.note(slot, served);
                }
                if self.gave_back && pass < Self::MAX_PASSES && self.book.someone_waits() {
                    break;
                }
            }
            queue.extend(rest);
        }
    }

    fn finish(&mut self, mut run: Run) -> Outcome {
        self.down = None;
        let mut outcome = Outcome { ledger_writes: self.ledger_writes, ..Outcome::default() };
        outcome.unfinished = (self.news && self.book.someone_waits()) || !self.unsure.is_empty();
        run.touched.sort_unstable();
        run.touched.dedup();
        for &slot in &run.touched {
            let tracked = self.book.get_mut(slot);
            tracked.lost = false;
            if !run.failed.contains_key(&slot) {
                tracked.was = Dirt::Clean;
            }
        }
        run.touched.retain(|slot| !run.failed.contains_key(slot));
        for slot in run.touched {
            let tracked = self.book.get_mut(slot);
            let status = match (tracked.managed, tracked.withdrawn) {
                (true, _) => tracked.answer.status(),
                (false, true) => Status::default(),
                (false, false) => continue,
            };
            if !tracked.told.says(&status) {
                tracked.told = status.clone();
                outcome.writes.push((tracked.name.clone(), status));
            }
        }
        for (slot, error) in run.failed {
            // Tried again for the same reason: who changed still has to give way to those that did not.
            let dirt = core::mem::take(&mut self.book.get_mut(slot).was).max(Dirt::Touched);
            self.book.mark(slot, dirt);
            outcome.failed.push((self.book.get(slot).name.clone(), error));
        }
        outcome.writes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        outcome.failed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        outcome
    }

    /// When to reconcile again though nothing was edited, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Timestamp, &'static str)> {
        let drained = || self.index.next_drained(self.now).map(|at| (at, "an address is drained"));
        let drained = if self.book.someone_waits() { drained() } else { None };
        let forgotten = self.index.next_forgotten().map(|at| (at, "an address is forgotten"));
        drained.into_iter().chain(forgotten).min()
    }

    /// What a service got in the last reconcile, `None` if it is not ours.
    #[must_use]
    pub fn answer(&self, service: &ServiceName) -> Option<&Answer> {
        let tracked = self.book.get(self.book.find(service)?);
        tracked.managed.then_some(&tracked.answer)
    }

    /// How every pool is doing as of the last reconcile, in the order in which they are asked.
    pub fn pools(&self) -> impl Iterator<Item = PoolStatus> + '_ {
        self.catalog.pools.iter().enumerate().map(|(index, compiled)| {
            let counts = |family| self.index.counts(&self.catalog, index, family, &self.ledger, self.now);
            let [ipv4, ipv6] = FAMILIES.map(counts);
            PoolStatus {
                name: compiled.pool.name.clone(),
                problem: compiled.problem.clone(),
                warnings: compiled.warnings.clone(),
                counts: ipv4.with(&ipv6),
                ipv4,
                ipv6,
            }
        })
    }

    /// How one pool is doing as of the last reconcile.
    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<PoolStatus> {
        self.pools().find(|status| status.name == *name)
    }
}

/// What happened to whom in one reconcile.
#[derive(Debug, Default)]
struct Run {
    touched: Vec<Slot>,
    failed: BTreeMap<Slot, LedgerError>,
}

impl Run {
    fn note(&mut self, slot: Slot, outcome: Result<(), LedgerError>) {
        if let Err(error) = outcome {
            self.failed.entry(slot).or_insert(error);
        }
    }
}
