//! Changes for the allocator of addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::name::ServiceName;
use lb_ipam::{Edit, Pool, PoolName, Request};

use crate::{
    Snapshot,
    manifests::differences::{self, Differences},
    snapshot::{Declared, part::Key},
};

/// The part of the last good state that concerns an allocator: pools, and requests of services.
#[derive(Debug, Default)]
pub(crate) struct Allocatable {
    pools: Pools,
    requests: BTreeMap<ServiceName, Arc<Request>>,
    /// Services that are refused and never were good: they keep their addresses until they can be read.
    unread: BTreeSet<ServiceName>,
}

impl Allocatable {
    /// In order of their names.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.0.values().map(|taken| &taken.pool)
    }

    /// In order of the names of services.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &Request> {
        self.requests.values().map(|request| &**request)
    }

    /// Whether there is a pool of this name in a good state.
    pub(crate) fn has_pool(&self, name: &PoolName) -> bool {
        self.pools.0.get(name).is_some_and(|taken| taken.is_valid)
    }

    /// Takes what a newer snapshot says of the touched objects. `has_state` says which services have a good state.
    pub(crate) fn take(
        &mut self,
        touched: &BTreeSet<Key>,
        snapshot: &Snapshot,
        has_state: impl Fn(&ServiceName) -> bool,
    ) -> Vec<Edit> {
        let mut edits = Vec::new();
        // Pools are few, and what one is for depends on namespaces.
        if touched.iter().any(|key| matches!(key, Key::Pool(_) | Key::Namespace(_))) {
            edits = self.pools.take(&snapshot.declared());
        }
        let requests = self.request_differences(touched, snapshot);
        let unread = self.unread_differences(touched, snapshot, has_state);
        edits.extend(service_edits(&requests, &unread));
        requests.apply(&mut self.requests);
        unread.apply(&mut self.unread);
        edits
    }

    /// The edits that [`take`](Self::take) would return if the objects of `snapshot` joined those that are `declared`.
    pub(crate) fn preview(
        &self,
        snapshot: &Snapshot,
        declared: &Declared<'_>,
        has_state: impl Fn(&ServiceName) -> bool,
    ) -> Vec<Edit> {
        let mut edits = self.pools.clone().take(declared);
        let touched = snapshot.keys().cloned().collect();
        let requests = self.request_differences(&touched, snapshot);
        edits.extend(service_edits(&requests, &self.unread_differences(&touched, snapshot, has_state)));
        edits
    }

    fn request_differences(&self, touched: &BTreeSet<Key>, snapshot: &Snapshot) -> Differences<ServiceName, Request> {
        Differences::of(touched, &self.requests, |key| match key {
            Key::Service(name) => Some((name, differences::request(snapshot.entry(key)))),
            Key::Slice(_) | Key::Namespace(_) | Key::Workload(_) | Key::Pool(_) => None,
        })
    }

    fn unread_differences(
        &self,
        touched: &BTreeSet<Key>,
        snapshot: &Snapshot,
        has_state: impl Fn(&ServiceName) -> bool,
    ) -> UnreadDifferences {
        let mut differences = UnreadDifferences::default();
        for key in touched {
            let Key::Service(name) = key else { continue };
            let is_refused = snapshot.entry(key).is_some_and(|entry| entry.body.is_none());
            match (self.unread.contains(name), is_refused && !has_state(name)) {
                (false, true) => differences.came.insert(name.clone()),
                (true, false) => differences.went.insert(name.clone()),
                (false, false) | (true, true) => continue,
            };
        }
        differences
    }
}

/// Services that cannot be read now, and those that could not be read before.
#[derive(Debug, Default)]
struct UnreadDifferences {
    came: BTreeSet<ServiceName>,
    went: BTreeSet<ServiceName>,
}

impl UnreadDifferences {
    fn apply(self, all: &mut BTreeSet<ServiceName>) {
        all.retain(|name| !self.went.contains(name));
        all.extend(self.came);
    }
}

#[derive(Clone, Debug, Default)]
struct Pools(BTreeMap<PoolName, LastGoodPool>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct LastGoodPool {
    pool: Pool,
    is_valid: bool,
}

impl Pools {
    /// Takes the pools that there are now, removals first. One that is refused stays as it last was; if it never was
    /// good, it comes as it is, disabled.
    fn take(&mut self, declared: &Declared<'_>) -> Vec<Edit> {
        let mut before = std::mem::take(&mut self.0);
        let mut changed = Vec::new();
        for (pool, is_valid) in declared.resolved_pools() {
            let name = pool.name.clone();
            let taken = match before.remove(&name) {
                Some(good) if good.is_valid && !is_valid => good,
                Some(same) if same.pool == pool => LastGoodPool { pool, is_valid },
                Some(_) | None => {
                    changed.push(Edit::UpsertPool(pool.clone()));
                    LastGoodPool { pool, is_valid }
                }
            };
            self.0.insert(name, taken);
        }
        before.into_keys().map(Edit::RemovePool).chain(changed).collect()
    }
}

/// The edits that services make: those that go or ask for nothing any more, those that cannot be read, then those that
/// come or change.
fn service_edits(
    Differences { before, after }: &Differences<ServiceName, Request>,
    UnreadDifferences { came, went }: &UnreadDifferences,
) -> impl Iterator<Item = Edit> {
    let removed: BTreeSet<_> = before.keys().chain(went).filter(|name| !after.contains_key(*name)).cloned().collect();
    let kept = came.iter().cloned().map(Edit::KeepService);
    let changed = after.iter().filter(|(name, request)| before.get(*name) != Some(*request));
    let changed = changed.map(|(_, request)| Edit::UpsertService(Request::clone(request)));
    removed.into_iter().map(Edit::RemoveService).chain(kept).chain(changed)
}
