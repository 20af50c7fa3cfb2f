//! Addresses for services, from the pools among the manifests.
//!
//! The allocator decides; its ledger is on the disk before an address that it assigned is programmed. A released
//! address leaves the datapath at once, before the ledger is written: after a crash the next agent finds more addresses
//! in the ledger than are held, and releases them again.

mod assignments;
mod by_hand;
mod claims;
mod journal;
mod ledger;
mod plan;
mod rules;
mod stored;
mod view;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_core::{model::Change, name::ServiceName};
use lb_ipam::{Edit, Ledger, Status, Timestamp};

pub use self::ledger::LedgerFileError;
pub(crate) use self::plan::{PlannedEdits, contradiction};
#[cfg(any(test, fuzzing))]
pub(crate) use self::stored::read_any;
pub(crate) use self::view::OTHER_CLASS;
use self::{
    assignments::{Assignments, Effect},
    journal::{Journal, Line, Withheld},
    ledger::LedgerFile,
    stored::Remembered,
    writer::LedgerWriter,
};
use crate::{config::Config, source::Grant};

/// How long until an allocator that is not done goes on.
const BREATH: Duration = Duration::from_millis(100);

/// Which service holds which address, and the answers that are not applied yet.
#[derive(Debug)]
pub(crate) struct Allocation {
    assignments: Assignments,
    writer: LedgerWriter,
    journal: Journal,
    /// Whether the first listing is complete.
    is_listed: bool,
    /// Services whose answers are not applied yet.
    held_back: BTreeSet<ServiceName>,
    /// Addresses of theirs that wait for the ledger.
    withheld: Withheld,
    /// Statuses that say more than the disk does.
    unpublished: BTreeMap<ServiceName, Status>,
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
            tracing::info!(ledger = %file.path().display(), held, "read the ledger of addresses");
        }
        Ok(Self::new(config, LedgerWriter::new(file), remembered))
    }

    /// With an empty ledger that is written nowhere, to try what would be assigned.
    pub(crate) fn in_memory(config: &Config) -> Self {
        Self::new(config, LedgerWriter::to_nowhere(), Remembered::default())
    }

    fn new(config: &Config, writer: LedgerWriter, remembered: Remembered) -> Self {
        Self {
            writer,
            journal: Journal::new(&remembered.ledger),
            assignments: Assignments::new(rules::settings(config), remembered),
            is_listed: false,
            held_back: BTreeSet::new(),
            withheld: Withheld::new(),
            unpublished: BTreeMap::new(),
            due: None,
        }
    }

    /// Takes in what sources ask of pools, and the services that they change. Says whether anything has to be
    /// [settled](Self::settle) by it.
    pub(crate) fn handle_edits(&mut self, edits: Vec<Edit>, changes: &[Change], now: Timestamp) -> bool {
        let Effect { is_news, touched } = self.assignments.take(edits, changes, now);
        self.held_back.extend(touched);
        is_news || self.is_due(now)
    }

    /// Services that hold addresses by the ledger, and whether one of these is in no pool.
    pub(crate) fn holders(&self) -> BTreeMap<ServiceName, bool> {
        self.assignments.holders()
    }

    /// What services get at the start, when every source has listed everything once. If not every pool could be read,
    /// nobody knows which others are gone.
    pub(crate) fn settle_first(&mut self, knows_all_pools: bool, now: Timestamp) -> Settled {
        self.is_listed = true;
        if knows_all_pools {
            self.assignments.forget_others();
        }
        self.settle_all(true, now)
    }

    /// What services get by now.
    pub(crate) fn settle(&mut self, now: Timestamp) -> Settled {
        self.settle_all(false, now)
    }

    /// The same, unless nothing is due though nothing was edited.
    pub(crate) fn poll(&mut self, now: Timestamp) -> Option<Settled> {
        (self.is_listed && self.is_due(now)).then(|| self.settle(now))
    }

    /// How long nothing has to be done unless something is edited.
    pub(crate) fn patience(&self, now: Timestamp) -> Option<Duration> {
        let at = self.due.into_iter().chain(self.writer.again()).min()?;
        Some(Duration::from_millis(at.as_millis().saturating_sub(now.as_millis())))
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.patience(now).is_some_and(|patience| patience.is_zero())
    }

    fn settle_all(&mut self, is_start: bool, now: Timestamp) -> Settled {
        let outcome = self.assignments.settle(now);
        self.held_back.extend(outcome.writes.iter().map(|(service, _)| service.clone()));
        self.held_back.extend(outcome.released.iter().map(|released| released.service.clone()));
        self.unpublished.extend(outcome.writes.iter().cloned());
        let next = self.assignments.allocator().poll_timeout().map(|(at, _)| at);
        self.due = if outcome.unfinished { Some(now + BREATH) } else { next };
        let is_changed = outcome.ledger_writes > 0;
        let is_written = self.writer.write(&self.assignments, is_changed, now);
        let statuses = if is_written { std::mem::take(&mut self.unpublished) } else { BTreeMap::new() };
        let grants = self.grants(is_written);
        let lines = self.journal.lines(&self.assignments, &outcome, &self.withheld, &self.held_back, is_start);
        lines.iter().for_each(Line::log);
        if is_written {
            self.held_back.clear();
        }
        Settled { grants, statuses: statuses.into_iter().collect() }
    }

    /// What services get: all of it, or, of addresses that are not on the disk as the service's own, none.
    fn grants(&mut self, is_written: bool) -> Vec<Grant> {
        let granted =
            |service: &ServiceName| Grant { service: service.clone(), addresses: self.assignments.granted_to(service) };
        let mut grants: Vec<Grant> = self.held_back.iter().map(granted).collect();
        self.withheld.clear();
        if is_written {
            return grants;
        }
        let written = self.writer.written();
        for Grant { service, addresses } in &mut grants {
            let is_its_own = |ip: &IpAddr| written.get(*ip).is_some_and(|entry| entry.holders().contains(service));
            let outside: Vec<IpAddr> = self.assignments.outside(service).collect();
            if let Some(addresses) = addresses {
                let (has, waits): (Vec<IpAddr>, Vec<IpAddr>) =
                    addresses.iter().partition(|ip| is_its_own(ip) || outside.contains(ip));
                *addresses = has;
                if !waits.is_empty() {
                    self.withheld.insert(service.clone(), waits.into_iter().collect());
                }
            }
        }
        grants
    }
}

/// What became of requests.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Addresses that services should have from now on, in order of their names.
    pub(crate) grants: Vec<Grant>,
    /// Statuses to publish, in order of the services' names: none while the ledger cannot be written.
    pub(crate) statuses: Vec<(ServiceName, Status)>,
}

#[cfg(test)]
mod tests {
    use lb_ipam::{Pool, Request};

    use super::*;

    #[test]
    fn what_the_ledger_does_not_have_yet_counts_as_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let draft = directory.path().join("ledger.json.new");
        std::fs::create_dir(&draft).unwrap();
        let config = Config { state_dir: directory.path().into(), ..crate::testing::config() };
        let mut allocation = Allocation::open(&config).unwrap();
        let edits = vec![
            Edit::UpsertPool(Pool::new("p", &["192.0.2.0/30"])),
            Edit::UpsertService(Request::new("default", "web")),
        ];
        let mut now = Timestamp::from_secs(1_000_000);
        assert!(allocation.handle_edits(edits, &[], now));
        assert_eq!(allocation.settle_first(true, now).grants[0].addresses, Some(Vec::new()));
        let counts = |allocation: &Allocation| {
            let counts = allocation.counts();
            (counts.held, counts.unsatisfied, allocation.lacking())
        };
        let (held, unsatisfied, said) = counts(&allocation);
        assert_eq!((held, unsatisfied), (0, 1));
        assert!(said.unwrap().message.contains("default/web (ledger_not_written)"));
        std::fs::remove_dir(&draft).unwrap();
        now = now + Duration::from_secs(60);
        assert_eq!(allocation.poll(now).unwrap().grants[0].addresses, Some(vec!["192.0.2.0".parse().unwrap()]));
        assert_eq!(counts(&allocation), (1, 0, None));
    }
}
