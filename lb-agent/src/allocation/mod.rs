//! Addresses for services, out of the pools among the manifests.
//!
//! The allocator decides; its ledger is on the disk before anything that it gave is programmed. What is given back is
//! let go of at once: after a crash the next agent finds the ledger with more in it than is held, and gives it back
//! again.

mod assignments;
mod by_hand;
mod claims;
mod ledger;
mod plan;
mod rules;
mod stored;
mod view;
mod writer;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use lb_core::{Change, ServiceName};
use lb_ipam::{Condition, Ledger, Status, Timestamp};
use lb_k8s::{Batch, Manifests};

pub use self::ledger::LedgerFileError;
pub(crate) use self::plan::{Edits, contradiction};
#[cfg(any(test, fuzzing))]
pub(crate) use self::stored::read_any;
use self::{
    assignments::{Assignments, Taken},
    ledger::LedgerFile,
    writer::LedgerWriter,
};
use crate::config::Config;

/// How long until an allocator that is not done goes on.
const BREATH: Duration = Duration::from_millis(100);

/// Who has which address, and what is not carried out yet.
#[derive(Debug)]
pub(crate) struct Allocation {
    assignments: Assignments,
    writer: LedgerWriter,
    /// Whether the first listing is complete.
    is_listed: bool,
    /// Services whose answers are not carried out yet.
    held_back: BTreeSet<ServiceName>,
    /// When the allocator wants to be asked again though nothing was edited.
    due: Option<Timestamp>,
}

impl Allocation {
    /// With the ledger that was left in the state directory.
    pub(crate) fn open(config: &Config) -> Result<Self, LedgerFileError> {
        let file = LedgerFile::in_directory(&config.state_dir);
        let remembered = file.read()?;
        let held = remembered.ledger.entries().filter(|(_, entry)| !entry.holders().is_empty()).count();
        if held > 0 {
            tracing::info!(ledger = %file.path().display(), held, "addresses of services are remembered");
        }
        Ok(Self {
            writer: LedgerWriter::new(file, &remembered),
            assignments: Assignments::new(rules::settings(config), remembered),
            is_listed: false,
            held_back: BTreeSet::new(),
            due: None,
        })
    }

    /// Takes in what a batch asks of pools, and adds to it what comes of that.
    pub(crate) fn take(&mut self, manifests: &mut Manifests, batch: &mut Batch, now: Timestamp) {
        let edits = std::mem::take(&mut batch.edits);
        let Taken { is_news, touched } = self.assignments.take(edits, &batch.changes, manifests.services(), now);
        self.held_back.extend(touched);
        let is_listed_now = !self.is_listed && batch.changes.iter().any(|change| matches!(change, Change::InitDone(_)));
        if is_listed_now {
            self.is_listed = true;
            self.assignments.forget_other_pools();
            put_first(&mut batch.changes, self.settle(manifests, true, now));
        } else if self.is_listed && (is_news || self.is_due(now)) {
            batch.changes.extend(self.settle(manifests, false, now));
        }
    }

    /// What has to be done though nothing was edited; nothing before its time.
    pub(crate) fn poll(&mut self, manifests: &mut Manifests, now: Timestamp) -> Vec<Change> {
        if self.is_listed && self.is_due(now) { self.settle(manifests, false, now) } else { Vec::new() }
    }

    /// How long nothing has to be done unless something is edited.
    pub(crate) fn patience(&self, now: Timestamp) -> Option<Duration> {
        let at = self.due.into_iter().chain(self.writer.again()).min()?;
        Some(Duration::from_millis(at.as_millis().saturating_sub(now.as_millis())))
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.patience(now).is_some_and(|patience| patience.is_zero())
    }

    fn settle(&mut self, manifests: &mut Manifests, is_start: bool, now: Timestamp) -> Vec<Change> {
        let outcome = self.assignments.settle(now);
        if !self.assignments.pools().is_empty() {
            log(&outcome.writes, is_start);
        }
        self.held_back.extend(outcome.writes.into_iter().map(|(service, _)| service));
        let next = self.assignments.allocator().poll_timeout().map(|(at, _)| at);
        self.due = if outcome.unfinished { Some(now + BREATH) } else { next };
        let is_changed = outcome.ledger_writes > 0;
        let is_written = self.writer.write(&self.assignments, is_changed, now);
        self.carry_out(manifests, is_written)
    }

    /// Carries out answers: all of each, or, of addresses that are not on the disk as the service's own, none.
    fn carry_out(&mut self, manifests: &mut Manifests, is_written: bool) -> Vec<Change> {
        let granted = |service: &ServiceName| (service.clone(), self.assignments.granted_to(service));
        let mut answers: Vec<_> = self.held_back.iter().map(granted).collect();
        if is_written {
            self.held_back.clear();
        } else {
            let written = self.writer.written();
            for (service, granted) in &mut answers {
                let is_its_own = |ip: &IpAddr| written.get(*ip).is_some_and(|entry| entry.holders().contains(service));
                let outside: Vec<IpAddr> = self.assignments.outside(service).collect();
                granted.iter_mut().for_each(|ips| ips.retain(|ip| is_its_own(ip) || outside.contains(ip)));
            }
        }
        manifests.grant(answers)
    }
}

/// At a start nobody has anything yet, and the first to name an address has it: that is who the ledger says holds it, and
/// not who names it in a manifest.
fn put_first(changes: &mut Vec<Change>, granted: Vec<Change>) {
    let names: BTreeSet<&ServiceName> = granted.iter().filter_map(upserted).collect();
    changes.retain(|change| upserted(change).is_none_or(|name| !names.contains(name)));
    let start = changes.iter().take_while(|change| matches!(change, Change::InitStart(_))).count();
    changes.splice(start..start, granted);
}

fn upserted(change: &Change) -> Option<&ServiceName> {
    match change {
        Change::UpsertService(service) => Some(&service.name),
        _ => None,
    }
}

/// Most services that are logged one by one.
const MAX_LOGGED: usize = 10;

/// At a start, what services have is no news: one line for all of them.
fn log(writes: &[(ServiceName, Status)], is_start: bool) {
    let refusal = |status: &Status| status.condition.clone().filter(|condition| !condition.satisfied);
    if is_start || writes.len() > MAX_LOGGED {
        let unsatisfied = writes.iter().filter(|(_, status)| refusal(status).is_some()).count();
        return tracing::info!(services = writes.len(), unsatisfied, "addresses are given");
    }
    for (service, status) in writes {
        let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
        match refusal(status) {
            Some(Condition { reason, message, .. }) => {
                tracing::warn!(%service, ?addresses, %reason, message, "addresses are refused");
            }
            None if addresses.is_empty() => tracing::info!(%service, "its addresses are given back"),
            None => tracing::info!(%service, ?addresses, "addresses are given"),
        }
    }
}

/// Now, on the wall clock.
pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
