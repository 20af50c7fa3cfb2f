//! Reconciling services with pools and the ledger.

use alloc::{collections::BTreeMap, vec::Vec};

use lb_core::name::ServiceName;

use crate::{
    Allocator, Ledger, LedgerError, Status, Timestamp,
    book::{Slot, Staleness},
    ledger::index::Index,
    pool::catalog::Catalog,
};

/// The result of a reconcile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// Statuses to write, in order of name. The statuses of all other services are correct.
    pub writes: Vec<(ServiceName, Status)>,
    /// Services that stay as they are because the ledger failed. The next reconcile tries them again.
    pub failed: Vec<(ServiceName, LedgerError)>,
    /// Number of changed entries of the ledger.
    pub ledger_writes: usize,
    /// Whether there is more to do: services that another reconcile can serve, or writes with an unknown outcome.
    pub unfinished: bool,
}

impl<L: Ledger> Allocator<L> {
    /// Reconciles in three phases. First, every service keeps each address that it holds and may keep. Then services
    /// that lost an address get another one. Then services that wait are served.
    ///
    /// A phase begins only once the one before is complete for all services. Otherwise a service could get an address
    /// that another one, which was not examined yet, may keep. Within a phase the older service comes first, and of two
    /// of the same age the name decides.
    pub fn reconcile(&mut self, now: Timestamp) -> Outcome {
        let drained = self.index.next_drained(self.now).is_some_and(|at| at <= now);
        (self.now, self.ledger_writes) = (now, 0);
        if self.stale {
            self.compile();
        }
        if core::mem::take(&mut self.listing) {
            self.book.abandon_all_unknown();
        }
        if drained {
            self.news.for_everybody();
        }
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
        self.answer_unreadable();
        self.finish(run)
    }

    fn compile(&mut self) {
        self.catalog = Catalog::new(&self.pools, &self.settings);
        self.index = Index::new(&self.catalog, &self.ledger);
        self.book.mark_all();
        self.stale = false;
        self.news.for_everybody();
    }

    /// Serves the services of `queue`, those that lost an address first. Whenever an address is released, services that
    /// wait are examined again, so that no service of the queue gets it before an older one.
    fn serve_all(&mut self, mut queue: Vec<Slot>, run: &mut Run) {
        for pass in 1..=Self::MAX_PASSES {
            queue.extend(self.awakened());
            if queue.is_empty() {
                return;
            }
            self.book.sort_by_key(&mut queue, |tracked| !tracked.lost);
            queue.dedup();
            let served = self.serve_in_turn(&queue, run, pass < Self::MAX_PASSES);
            let rest = queue.split_off(served);
            run.touch(core::mem::replace(&mut queue, rest));
        }
    }

    /// Serves one service after the other and returns how many. It stops early if an address was released.
    fn serve_in_turn(&mut self, queue: &[Slot], run: &mut Run, may_stop: bool) -> usize {
        for (at, &slot) in queue.iter().enumerate() {
            self.has_released = false;
            if !run.failed.contains_key(&slot) {
                let served = self.serve(slot);
                run.note(slot, served);
            }
            if self.has_released && may_stop && self.book.someone_waits() {
                return at + 1;
            }
        }
        queue.len()
    }

    /// Answers services that cannot be read with the addresses that they hold.
    fn answer_unreadable(&mut self) {
        let unreadable: Vec<Slot> = self.book.unreadable().collect();
        for slot in unreadable {
            let granted = self.book.get(slot).held.iter().map(|address| self.granted(*address)).collect();
            self.book.answer_unreadable(slot, granted);
        }
    }

    fn finish(&mut self, mut run: Run) -> Outcome {
        self.down = None;
        if !run.failed.is_empty() {
            // A service that failed may want something else by then, and others may get the address that it would have
            // got.
            self.news.for_everybody();
        }
        let mut outcome = Outcome { ledger_writes: self.ledger_writes, ..Outcome::default() };
        outcome.unfinished = (!self.news.is_empty() && self.book.someone_waits()) || !self.unsure.is_empty();
        run.touched.sort_unstable();
        run.touched.dedup();
        for &slot in &run.touched {
            let tracked = self.book.get_mut(slot);
            tracked.lost = false;
            if !run.failed.contains_key(&slot) {
                tracked.was = Staleness::Clean;
            }
        }
        run.touched.retain(|slot| !run.failed.contains_key(slot));
        for &slot in &run.touched {
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
            let dirt = core::mem::take(&mut self.book.get_mut(slot).was).max(Staleness::Touched);
            self.book.mark(slot, dirt);
            outcome.failed.push((self.book.get(slot).name.clone(), error));
        }
        self.book.take_back(run.touched);
        outcome.writes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        outcome.failed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        outcome
    }
}

/// Services of one reconcile and their outcome.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Services that were served.
    touched: Vec<Slot>,
    /// Services that could not be served.
    failed: BTreeMap<Slot, LedgerError>,
}

impl Run {
    fn touch(&mut self, mut slots: Vec<Slot>) {
        if self.touched.is_empty() {
            self.touched = slots;
        } else {
            self.touched.append(&mut slots);
        }
    }

    pub(super) fn note(&mut self, slot: Slot, outcome: Result<(), LedgerError>) {
        if let Err(error) = outcome {
            self.failed.entry(slot).or_insert(error);
        }
    }
}
