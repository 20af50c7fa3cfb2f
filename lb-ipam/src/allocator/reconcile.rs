//! Reconciling services with pools and the ledger.

use alloc::{collections::BTreeMap, vec::Vec};

use lb_core::name::ServiceName;

use crate::{
    Allocator, Ledger, LedgerError, Released, Status, Timestamp, book::Slot, ledger::index::Index,
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
    /// Addresses that services no longer hold, and why, in order of service and address: those of services that are
    /// gone too, and those of which a [`claim`](Allocator::claim) or another program took hold since the last
    /// reconcile.
    pub released: Vec<Released>,
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
            self.book.get_mut(slot).lost = false;
        }
        run.touched.retain(|slot| !run.failed.contains_key(slot));
        for &slot in &run.touched {
            let tracked = self.book.get_mut(slot);
            let status = match (tracked.managed, tracked.withdrawal.take()) {
                (true, _) => tracked.answer.status(),
                (false, Some(cleared)) => cleared,
                (false, None) => continue,
            };
            if !tracked.told.says(&status) {
                tracked.told = status.clone();
                outcome.writes.push((tracked.name.clone(), status));
            }
        }
        for (slot, error) in run.failed {
            self.book.mark(slot);
            outcome.failed.push((self.book.get(slot).name.clone(), error));
        }
        self.book.take_back(run.touched);
        outcome.released = self.take_released();
        outcome.writes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        outcome.failed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        outcome
    }

    /// What services lost and did not get back meanwhile. What is not known to be written is told once it is.
    fn take_released(&mut self) -> Vec<Released> {
        let all = core::mem::take(&mut self.released).into_iter();
        let mut released: Vec<Released>;
        (self.released, released) = all.partition(|it| self.unsure.contains_key(&it.address));
        let holds = |it: &Released| {
            self.book.find(&it.service).is_some_and(|slot| self.book.get(slot).held.contains(&it.address))
        };
        released.retain(|it| !holds(it));
        released.sort_by(|a, b| (&a.service, a.address).cmp(&(&b.service, b.address)));
        released.dedup_by(|b, a| (&a.service, a.address) == (&b.service, b.address));
        released
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
