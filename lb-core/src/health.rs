//! The verdicts of those who probe backends.

use alloc::{collections::BTreeMap, vec::Vec};

use crate::{addr::BackendAddr, name::SourceName};

/// The health of a backend, apart from the conditions of its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Nothing: counts as healthy.
    #[default]
    Unknown,
    /// It answers.
    Healthy,
    /// It does not: it takes no new flows, unless too few are healthy.
    Unhealthy,
}

/// One source's verdict on a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HealthReport {
    /// The source of the verdict.
    pub source: SourceName,
    /// The backend.
    pub backend: BackendAddr,
    /// The verdict; [`Health::Unknown`] withdraws it.
    pub health: Health,
}

/// The verdicts of all sources. A backend is unhealthy if any source says so; otherwise healthy if any source says so.
///
/// Verdicts outlive the process: keep the [`reports`](Self::reports) and hand them back, each as a
/// [`Change::RestoreHealth`](crate::model::Change::RestoreHealth). Restored verdicts hold from the first plan on, so
/// that a restart changes the state of no backend. A newer verdict of the same source replaces a restored one, never
/// the other way round, and [`Change::InitDone`](crate::model::Change::InitDone) of the source drops those that the
/// source did not confirm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthTable {
    verdicts: BTreeMap<BackendAddr, BTreeMap<SourceName, Entry>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    health: Health,
    restored: bool,
}

impl HealthTable {
    /// The health of `backend` according to all sources together.
    #[must_use]
    pub fn health(&self, backend: &BackendAddr) -> Health {
        let said = self.verdicts.get(backend).into_iter().flat_map(BTreeMap::values).map(|entry| entry.health);
        said.max().unwrap_or_default()
    }

    /// Every verdict, in order of backend and source.
    pub fn reports(&self) -> impl Iterator<Item = HealthReport> {
        self.verdicts.iter().flat_map(|(&backend, said)| {
            said.iter().map(move |(source, entry)| HealthReport {
                source: source.clone(),
                backend,
                health: entry.health,
            })
        })
    }

    /// Takes a new verdict in; says whether the backend's health changed.
    pub(crate) fn set(&mut self, report: HealthReport) -> bool {
        self.change(report.backend, |said| {
            said.insert(report.source, Entry { health: report.health, restored: false });
        })
    }

    /// Takes a verdict of an earlier run in, if its source has none; says whether the backend's health changed.
    pub(crate) fn restore(&mut self, report: HealthReport) -> bool {
        self.change(report.backend, |said| {
            said.entry(report.source).or_insert(Entry { health: report.health, restored: true });
        })
    }

    /// Drops the restored verdicts of `source`, which has listed everything; returns the backends whose health changed.
    pub(crate) fn confirm(&mut self, source: &SourceName) -> Vec<BackendAddr> {
        self.drop_verdicts(source, |entry| entry.restored)
    }

    /// Drops all verdicts of `source`; returns the backends whose health changed.
    pub(crate) fn forget(&mut self, source: &SourceName) -> Vec<BackendAddr> {
        self.drop_verdicts(source, |_| true)
    }

    fn drop_verdicts(&mut self, source: &SourceName, which: impl Fn(&Entry) -> bool) -> Vec<BackendAddr> {
        let has = |said: &BTreeMap<SourceName, Entry>| said.get(source).is_some_and(&which);
        let backends: Vec<_> = self.verdicts.iter().filter(|(_, said)| has(said)).map(|(&addr, _)| addr).collect();
        let mut changed = backends;
        changed.retain(|&backend| {
            self.change(backend, |said| {
                said.remove(source);
            })
        });
        changed
    }

    /// Changes what is said of `backend`; says whether its health changed.
    fn change(&mut self, backend: BackendAddr, change: impl FnOnce(&mut BTreeMap<SourceName, Entry>)) -> bool {
        let before = self.health(&backend);
        let said = self.verdicts.entry(backend).or_default();
        change(said);
        said.retain(|_, entry| entry.health != Health::Unknown);
        if said.is_empty() {
            self.verdicts.remove(&backend);
        }
        before != self.health(&backend)
    }
}
