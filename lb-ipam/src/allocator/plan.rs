//! The effect of edits before they are made.

use alloc::vec::Vec;
use core::{fmt, net::IpAddr};

use lb_core::name::ServiceName;

use crate::{Allocator, Answer, Edit, Ledger, MemoryLedger, PoolStatus, Timestamp};

/// The effect of edits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EditPlan {
    /// Services whose addresses would change, in order of name.
    pub moves: Vec<Move>,
    /// How every pool would be doing.
    pub pools: Vec<PoolStatus>,
}

/// A service whose addresses would change. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which service.
    pub service: ServiceName,
    /// Its addresses now.
    pub before: Vec<IpAddr>,
    /// Its answer after the edits.
    pub after: Answer,
}

impl<L: Ledger> Allocator<L> {
    /// Says what `edits` would do at the time `now`, without doing it: what is due anyway is done on a copy first, then
    /// the edits are. Costs a copy of everything.
    #[must_use]
    pub fn plan(&self, edits: impl IntoIterator<Item = Edit>, now: Timestamp) -> EditPlan {
        let mut trial = self.copy();
        // The trial writes into a copy of the ledger, so its outcome is of no use.
        let _ = trial.reconcile(now);
        let before = trial.clone();
        edits.into_iter().for_each(|edit| trial.handle_edit(edit));
        let _ = trial.reconcile(now);
        let names = before.book.known().map(|tracked| tracked.name.clone());
        let newcomers = trial.book.known().map(|tracked| tracked.name.clone());
        let mut names: Vec<ServiceName> = names.chain(newcomers).collect();
        names.sort_unstable();
        names.dedup();
        let moves = names.into_iter().filter_map(|service| {
            let addresses = before.answer(&service).map(|answer| answer.addresses().collect::<Vec<_>>());
            let (before, after) = (addresses.unwrap_or_default(), trial.answer(&service).cloned().unwrap_or_default());
            let moved = !before.iter().copied().eq(after.addresses());
            moved.then_some(Move { service, before, after })
        });
        EditPlan { moves: moves.collect(), pools: trial.pools().collect() }
    }

    fn copy(&self) -> Allocator<MemoryLedger> {
        Allocator {
            settings: self.settings.clone(),
            pools: self.pools.clone(),
            catalog: self.catalog.clone(),
            stale: self.stale,
            ledger: self.ledger.entries().collect(),
            listing: self.listing,
            unsure: self.unsure.clone(),
            down: None,
            index: self.index.clone(),
            book: self.book.clone(),
            news: self.news.clone(),
            has_released: false,
            now: self.now,
            ledger_writes: 0,
            released: Vec::new(),
        }
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, addresses: &mut dyn Iterator<Item = IpAddr>| {
            let mut none = true;
            for address in addresses {
                write!(f, "{}{address}", if none { "" } else { ", " })?;
                none = false;
            }
            if none { f.write_str("nothing") } else { Ok(()) }
        };
        write!(f, "{}: ", self.service)?;
        list(f, &mut self.before.iter().copied())?;
        f.write_str(" -> ")?;
        list(f, &mut self.after.addresses())?;
        self.after.refused.iter().try_for_each(|refusal| write!(f, "; {refusal}"))
    }
}
