//! What changes for whoever allocates addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::ServiceName;
use lb_ipam::{Edit, Pool, PoolName, Request};

use crate::{
    Snapshot,
    differences::{self, Differences},
    part::Key,
    snapshot::Declared,
};

/// What the last good state says to an allocator: pools, and what services ask of them.
#[derive(Debug, Default)]
pub(crate) struct Allocatable {
    pools: Pools,
    requests: BTreeMap<ServiceName, Arc<Request>>,
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

    /// Takes what a newer snapshot says of the touched objects.
    pub(crate) fn take(&mut self, touched: &BTreeSet<Key>, snapshot: &Snapshot) -> Vec<Edit> {
        let mut edits = Vec::new();
        // Pools are few, and what one is for depends on namespaces.
        if touched.iter().any(|key| matches!(key, Key::Pool(_) | Key::Namespace(_))) {
            edits = self.pools.take(&snapshot.declared());
        }
        let requests = self.request_differences(touched, snapshot);
        edits.extend(request_edits(&requests));
        requests.apply(&mut self.requests);
        edits
    }

    /// What [`take`](Self::take) would give if the objects of `snapshot` came to those that are `declared` with them.
    pub(crate) fn preview(&self, snapshot: &Snapshot, declared: &Declared<'_>) -> Vec<Edit> {
        let mut edits = self.pools.clone().take(declared);
        let touched = snapshot.keys().cloned().collect();
        edits.extend(request_edits(&self.request_differences(&touched, snapshot)));
        edits
    }

    fn request_differences(&self, touched: &BTreeSet<Key>, snapshot: &Snapshot) -> Differences<ServiceName, Request> {
        Differences::of(touched, &self.requests, |key| match key {
            Key::Service(name) => Some((name, differences::request(snapshot.entry(key)))),
            Key::Slice(_) | Key::Namespace(_) | Key::Workload(_) | Key::Pool(_) => None,
        })
    }
}

#[derive(Clone, Debug, Default)]
struct Pools(BTreeMap<PoolName, Taken>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
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
                Some(same) if same.pool == pool => Taken { pool, is_valid },
                Some(_) | None => {
                    changed.push(Edit::UpsertPool(pool.clone()));
                    Taken { pool, is_valid }
                }
            };
            self.0.insert(name, taken);
        }
        before.into_keys().map(Edit::RemovePool).chain(changed).collect()
    }
}

/// The edits that requests make: those that go, then those that come or change.
fn request_edits(Differences { before, after }: &Differences<ServiceName, Request>) -> impl Iterator<Item = Edit> {
    let removed = before.keys().filter(|name| !after.contains_key(*name)).cloned().map(Edit::RemoveService);
    let changed = after.iter().filter(|(name, request)| before.get(*name) != Some(*request));
    removed.chain(changed.map(|(_, request)| Edit::UpsertService(Request::clone(request))))
}
