//! Addresses for services, out of the pools among the manifests.
//!
//! The allocator decides; its ledger is on the disk before anything that it gave is programmed. What is given back is
//! let go of at once: after a crash the next agent finds the ledger with more in it than is held, and gives it back
//! again.

mod by_hand;
mod claims;
mod ledger;
mod rules;
mod view;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use lb_core::{Change, ServiceName};
use lb_ipam::{Allocator, Classes, Edit, Entry, Ledger, Pool, PoolName, Status, Timestamp};
use lb_k8s::{Batch, Manifests};

use self::{by_hand::ByHand, claims::Claims, ledger::LedgerFile, writer::LedgerWriter};
use crate::{api::PoolPlan, config::Config};

pub(crate) use self::ledger::LedgerFileError;
#[cfg(any(test, fuzzing))]
pub(crate) use self::ledger::read_any;

/// How long until an allocator that is not done goes on.
const BREATH: Duration = Duration::from_millis(100);

/// Who has which address, and what is not carried out yet.
#[derive(Debug)]
pub(super) struct Allocation {
    allocator: Allocator,
    writer: LedgerWriter,
    by_hand: ByHand,
    pools: BTreeMap<PoolName, Pool>,
    /// Services of type LoadBalancer, and whether their class is ours.
    load_balancers: BTreeMap<ServiceName, bool>,
    classes: Classes,
    claims: Claims,
    /// Addresses that are kept back for claims.
    reserved: BTreeSet<IpAddr>,
    /// Whether the first listing is complete.
    is_listed: bool,
    /// Services whose answers are not carried out yet.
    held_back: BTreeSet<ServiceName>,
    /// When the allocator wants to be asked again though nothing was edited.
    due: Option<Timestamp>,
}

impl Allocation {
    /// With the ledger that was left in the state directory.
    pub(super) fn open(config: &Config) -> Result<Self, LedgerFileError> {
        let file = LedgerFile::in_directory(&config.state_dir);
        let ledger = file.read()?;
        let held = ledger.entries().filter(|(_, entry)| matches!(entry, Entry::Held(_))).count();
        if held > 0 {
            tracing::info!(ledger = %file.path().display(), held, "addresses of services are remembered");
        }
        let reserved = ledger.entries().filter(|(_, entry)| matches!(entry, Entry::Reserved(_)));
        let reserved = reserved.map(|(address, _)| address).collect();
        let settings = rules::settings(config);
        Ok(Self {
            classes: settings.classes.clone(),
            allocator: Allocator::new(settings, ledger),
            writer: LedgerWriter::new(file),
            by_hand: ByHand::default(),
            pools: BTreeMap::new(),
            load_balancers: BTreeMap::new(),
            claims: Claims::default(),
            reserved,
            is_listed: false,
            held_back: BTreeSet::new(),
            due: None,
        })
    }

    /// Takes in what a batch asks of pools, and adds to it what comes of that.
    pub(super) fn take(&mut self, manifests: &mut Manifests, batch: &mut Batch, now: Timestamp) {
        let edits = std::mem::take(&mut batch.edits);
        let mut is_news = !edits.is_empty();
        let had_pools = !self.pools.is_empty();
        edits.iter().for_each(|edit| self.note(edit));
        if had_pools == self.pools.is_empty() {
            self.held_back.extend(self.load_balancers.keys().cloned());
        }
        let touches_pools = edits.iter().any(|edit| matches!(edit, Edit::UpsertPool(_) | Edit::RemovePool(_)));
        for edit in self.by_hand.translate(edits) {
            self.allocator.handle_edit(edit);
        }
        for change in &batch.changes {
            is_news |= self.note_change(change);
        }
        if touches_pools {
            for service in manifests.services() {
                self.note_claims(service);
            }
        }
        let is_listed_now = !self.is_listed && batch.changes.iter().any(|change| matches!(change, Change::InitDone(_)));
        self.is_listed |= is_listed_now;
        if self.is_listed && (is_news || is_listed_now || self.is_due(now)) {
            let granted = self.settle(manifests, now);
            if is_listed_now {
                put_first(&mut batch.changes, granted);
            } else {
                batch.changes.extend(granted);
            }
        }
    }

    /// What has to be done though nothing was edited; nothing before its time.
    pub(super) fn poll(&mut self, manifests: &mut Manifests, now: Timestamp) -> Vec<Change> {
        if self.is_listed && self.is_due(now) { self.settle(manifests, now) } else { Vec::new() }
    }

    /// How long nothing has to be done unless something is edited.
    pub(super) fn patience(&self, now: Timestamp) -> Option<Duration> {
        let at = self.due.into_iter().chain(self.writer.again()).min()?;
        Some(Duration::from_millis(at.as_millis().saturating_sub(now.as_millis())))
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.patience(now).is_some_and(|patience| patience.is_zero())
    }

    fn note(&mut self, edit: &Edit) {
        match edit {
            Edit::UpsertPool(pool) => drop(self.pools.insert(pool.name.clone(), pool.clone())),
            Edit::RemovePool(name) => drop(self.pools.remove(name)),
            Edit::UpsertService(request) if request.load_balancer => {
                let is_ours = self.classes.include(request.class.as_deref());
                self.load_balancers.insert(request.service.clone(), is_ours);
            }
            Edit::UpsertService(request) => drop(self.load_balancers.remove(&request.service)),
            // The service itself may still be there, as one of another type.
            Edit::RemoveService(name) => {
                self.load_balancers.remove(name);
                self.held_back.insert(name.clone());
            }
            Edit::SetSettings(_) => {}
        }
    }

    fn settle(&mut self, manifests: &mut Manifests, now: Timestamp) -> Vec<Change> {
        self.reserve_claimed();
        let outcome = self.allocator.reconcile(now);
        if outcome.ledger_writes > 0 {
            self.writer.note_change();
        }
        if !self.pools.is_empty() {
            log(&outcome.writes);
        }
        self.held_back.extend(outcome.writes.into_iter().map(|(service, _)| service));
        let next = self.allocator.poll_timeout().map(|(at, _)| at);
        self.due = if outcome.unfinished { Some(now + BREATH) } else { next };
        let is_written = self.writer.write(self.allocator.ledger(), now);
        self.carry_out(manifests, is_written)
    }

    /// Carries out answers: all of each, or, of addresses that are not on the disk as the service's own, none.
    fn carry_out(&mut self, manifests: &mut Manifests, is_written: bool) -> Vec<Change> {
        let mut answers: Vec<_> =
            self.held_back.iter().map(|service| (service.clone(), self.granted_to(service))).collect();
        if is_written {
            self.held_back.clear();
        } else {
            let written = self.writer.written();
            for (service, granted) in &mut answers {
                let is_its_own = |ip: &IpAddr| written.get(*ip).is_some_and(|entry| entry.holders().contains(service));
                let outside: Vec<IpAddr> = self.by_hand.outside(service).collect();
                granted.iter_mut().for_each(|ips| ips.retain(|ip| is_its_own(ip) || outside.contains(ip)));
            }
        }
        manifests.grant(answers)
    }

    pub(super) fn has_pool(&self, name: &PoolName) -> bool {
        self.pools.contains_key(name)
    }

    /// What edits would do.
    pub(super) fn plan(&self, edits: Vec<Edit>, problems: Vec<String>, now: Timestamp) -> PoolPlan {
        let pools = edits.iter().filter_map(|edit| match edit {
            Edit::UpsertPool(pool) => Some((pool.name.clone(), pool.clone())),
            _ => None,
        });
        let pools = pools.collect();
        let plan = self.allocator.plan(self.by_hand.clone().translate(edits), now);
        self.planned(plan, &pools, problems)
    }

    /// The addresses that a service should have, `None` for those that its status names.
    fn granted_to(&self, service: &ServiceName) -> Option<Vec<IpAddr>> {
        if self.pools.is_empty() {
            return None;
        }
        let answer = self.allocator.answer(service)?;
        Some(answer.addresses().chain(self.by_hand.outside(service)).collect())
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

/// Most services that are logged one by one, at a start for example.
const MAX_LOGGED: usize = 10;

fn log(writes: &[(ServiceName, Status)]) {
    let satisfied = |status: &Status| status.condition.as_ref().is_none_or(|condition| condition.satisfied);
    if writes.len() > MAX_LOGGED {
        let unsatisfied = writes.iter().filter(|(_, status)| !satisfied(status)).count();
        return tracing::info!(services = writes.len(), unsatisfied, "addresses are given");
    }
    for (service, status) in writes {
        let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
        match &status.condition {
            Some(refused) if !refused.satisfied => {
                let (reason, message) = (&refused.reason, &refused.message);
                tracing::warn!(%service, ?addresses, %reason, message, "addresses are refused");
            }
            _ => tracing::info!(%service, ?addresses, "addresses are given"),
        }
    }
}

/// Now, on the wall clock.
pub(super) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
