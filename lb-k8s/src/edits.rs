//! What changes for whoever allocates addresses.

use std::collections::BTreeMap;

use lb_core::ServiceName;
use lb_ipam::{Edit, Pool, PoolName, Request};

use crate::{Snapshot, differences::Differences};

/// The pools of the last good state.
#[derive(Debug, Default)]
pub(crate) struct Pools(BTreeMap<PoolName, Taken>);

#[derive(Debug, PartialEq, Eq)]
struct Taken {
    pool: Pool,
    is_valid: bool,
}

impl Pools {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.0.values().map(|taken| &taken.pool)
    }

    /// Whether there is a pool of this name in a good state.
    pub(crate) fn has(&self, name: &PoolName) -> bool {
        self.0.get(name).is_some_and(|taken| taken.is_valid)
    }

    /// Takes the pools of a newer snapshot, removals first. One that is refused stays as it last was; if it never was
    /// good, it comes as it is, disabled.
    pub(crate) fn take(&mut self, snapshot: &Snapshot) -> Vec<Edit> {
        let mut before = std::mem::take(&mut self.0);
        let mut changed = Vec::new();
        for (pool, is_valid) in snapshot.resolved_pools() {
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
pub(crate) fn request_edits(
    Differences { before, after }: &Differences<ServiceName, Request>,
) -> impl Iterator<Item = Edit> {
    let removed = before.keys().filter(|name| !after.contains_key(*name)).cloned().map(Edit::RemoveService);
    let changed = after.iter().filter(|(name, request)| before.get(*name) != Some(*request));
    removed.chain(changed.map(|(_, request)| Edit::UpsertService(Request::clone(request))))
}
