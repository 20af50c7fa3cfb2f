//! What snapshots say about the allocation of addresses.

use std::collections::{BTreeMap, BTreeSet};

use lb_ipam::{Pool, PoolName, Request};

use super::Snapshot;
use crate::{
    Finding,
    limits::MAX_NAMESPACE_COMPARISONS,
    part::{Body, Entry, Key},
    pools::{DeclaredNamespace, ReadPool},
};

impl Snapshot {
    /// Pools, in order of their names. One that is refused is among them and gives nothing out.
    pub fn pools(&self) -> impl Iterator<Item = Pool> {
        self.declared().resolved_pools().into_iter().map(|(pool, _)| pool)
    }

    /// What services ask of pools, in order of their names: those of type LoadBalancer, and those that only have addresses
    /// left from when they were.
    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.bodies().filter_map(|body| match body {
            Body::Service { aside, .. } => aside.as_ref()?.request.as_deref(),
            Body::Slice(_) | Body::Namespace(_) | Body::Workload(_) | Body::Pool(_) => None,
        })
    }

    /// What it declares.
    pub(crate) fn declared(&self) -> Declared<'_> {
        Declared { pools: BTreeMap::new(), snapshots: Vec::new() }.over(self)
    }
}

/// Pools, refused ones included, and the namespaces that they may be for, of one or several snapshots. Of an object that
/// stands in several the first one counts.
pub(crate) struct Declared<'a> {
    pools: BTreeMap<&'a PoolName, &'a Entry>,
    /// For their namespaces, which are looked at only if a pool is for those with certain labels.
    snapshots: Vec<&'a Snapshot>,
}

impl<'a> Declared<'a> {
    /// With what `other` declares besides.
    pub(crate) fn over(mut self, other: &'a Snapshot) -> Self {
        for (key, _) in other.files_of.range(Key::Pool(PoolName::new(""))..) {
            if let (Key::Pool(name), Some(entry)) = (key, other.entry(key)) {
                self.pools.entry(name).or_insert(entry);
            }
        }
        self.snapshots.push(other);
        self
    }

    pub(crate) fn has_pools(&self) -> bool {
        self.read_pools().next().is_some()
    }

    /// Every pool, in order of their names, and whether it is valid.
    pub(crate) fn resolved_pools(&self) -> Vec<(Pool, bool)> {
        let (namespaces, too_many) = (self.namespaces(), self.beyond_comparison());
        let resolve = |(name, read): (&PoolName, &ReadPool)| {
            if too_many.contains(name) {
                return (Pool { disabled: true, ..read.pool.clone() }, false);
            }
            (read.resolve(namespaces.iter().copied()), read.is_valid)
        };
        self.read_pools().map(resolve).collect()
    }

    /// One finding for each pool whose selectors cannot be compared with all the namespaces any more.
    pub(super) fn incomparable(&self) -> impl Iterator<Item = (Key, Finding)> {
        self.beyond_comparison().into_iter().filter_map(|name| {
            let key = Key::Pool(name.clone());
            let finding = Finding {
                object: self.pools.get(name)?.object(&key),
                field: "spec.serviceAllocation.namespaceSelectors".into(),
                position: None,
                message: format!(
                    "it and the pools before it take more than {MAX_NAMESPACE_COMPARISONS} comparisons with \
                     namespaces: name these instead"
                ),
            };
            Some((key, finding))
        })
    }

    fn beyond_comparison(&self) -> BTreeSet<&'a PoolName> {
        let mut left = MAX_NAMESPACE_COMPARISONS;
        let namespaces = self.namespaces().len();
        let too_many = self.selecting_pools().filter(|(_, pool)| {
            let after = left.checked_sub(pool.namespace_terms().saturating_mul(namespaces));
            left = after.unwrap_or(left);
            after.is_none()
        });
        too_many.map(|(name, _)| name).collect()
    }

    /// The namespaces and their labels, in order of their names; none if no pool asks for them.
    fn namespaces(&self) -> Vec<DeclaredNamespace<'a>> {
        if self.selecting_pools().next().is_none() {
            return Vec::new();
        }
        let mut all: BTreeMap<&str, &Entry> = BTreeMap::new();
        for &snapshot in &self.snapshots {
            for (key, _) in snapshot.files_of.range(Key::Namespace("".into())..) {
                let (Key::Namespace(name), Some(entry)) = (key, snapshot.entry(key)) else { break };
                all.entry(name).or_insert(entry);
            }
        }
        let labels = |(name, entry): (&'a str, &'a Entry)| match entry.body.as_ref()? {
            Body::Namespace(labels) => Some((name, &**labels)),
            Body::Service { .. } | Body::Slice(_) | Body::Workload(_) | Body::Pool(_) => None,
        };
        all.into_iter().filter_map(labels).collect()
    }

    fn selecting_pools(&self) -> impl Iterator<Item = (&'a PoolName, &'a ReadPool)> {
        self.read_pools().filter(|(_, pool)| pool.namespace_terms() > 0)
    }

    fn read_pools(&self) -> impl Iterator<Item = (&'a PoolName, &'a ReadPool)> {
        self.pools.iter().filter_map(|(&name, &entry)| Some((name, entry.pool()?)))
    }
}
