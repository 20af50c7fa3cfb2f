//! The part of snapshots that concerns the allocation of addresses.

use std::collections::{BTreeMap, BTreeSet};

use lb_ipam::{Pool, PoolName, Request};

use super::Snapshot;
use crate::{
    Finding,
    limits::MAX_NAMESPACE_COMPARISONS,
    pools::{DeclaredNamespace, ReadPool, refused},
    snapshot::part::{Body, Entry, Key},
};

impl Snapshot {
    /// Pools, in order of their names. One that is refused is among them and assigns nothing.
    pub fn pools(&self) -> impl Iterator<Item = Pool> {
        self.declared().resolved_pools().into_iter().map(|(pool, _)| pool)
    }

    /// Requests of services for addresses, in order of their names: of services of type LoadBalancer, and of those that
    /// only have addresses left from when they were.
    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.bodies().filter_map(|body| match body {
            Body::Service { aside, .. } => aside.as_ref()?.request.as_deref(),
            Body::Slice(_) | Body::Namespace(_) | Body::Workload(_) | Body::Pool(_) => None,
        })
    }

    /// The pools and namespaces that it declares.
    pub(crate) fn declared(&self) -> Declared<'_> {
        Declared { pools: BTreeMap::new(), snapshots: Vec::new() }.over(self)
    }
}

/// Pools, refused ones included, and the namespaces that they may be for, of one or several snapshots. Of an object
/// that stands in several the first one counts.
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
        let (namespaces, undecided) = (self.namespaces(), self.undecided());
        let resolve = |(name, read): (&PoolName, &ReadPool)| {
            if let Some(why) = undecided.get(name) {
                return (refused(read.pool.clone(), why.clone()), false);
            }
            (read.resolve(namespaces.iter().copied()), read.is_valid)
        };
        self.read_pools().map(resolve).collect()
    }

    /// One finding for each pool of which it cannot be said which namespaces it is for.
    pub(super) fn incomparable(&self) -> impl Iterator<Item = (Key, Finding)> {
        self.undecided().into_iter().filter_map(|(name, message)| self.about_namespaces(name, message))
    }

    /// One finding for each pool that is for namespaces with certain labels where no namespace says its labels.
    pub(super) fn selecting_in_vain(&self) -> impl Iterator<Item = (Key, Finding)> {
        let is_in_vain = self.namespace_entries().is_empty();
        let pools = self.selecting_pools().filter(move |_| is_in_vain);
        pools.filter_map(|(name, _)| self.about_namespaces(name, NO_NAMESPACES.to_owned()))
    }

    fn about_namespaces(&self, name: &PoolName, message: String) -> Option<(Key, Finding)> {
        let key = Key::Pool(name.clone());
        let object = self.pools.get(name)?.object(&key);
        let field = "spec.serviceAllocation.namespaceSelectors".to_owned();
        Some((key, Finding { object, field, position: None, message, exposes: false }))
    }

    /// Pools that cannot be compared with all namespaces, and why. Compared with some of them, they would be for others
    /// than they should.
    fn undecided(&self) -> BTreeMap<&'a PoolName, String> {
        let entries = self.namespace_entries();
        if let Some((refused, _)) = entries.iter().find(|(_, entry)| entry.body.is_none()) {
            let message = format!("namespace {refused} is refused, so that nobody knows whether it is selected");
            return self.selecting_pools().map(|(name, _)| (name, message.clone())).collect();
        }
        let message = format!(
            "it and the pools before it take more than {MAX_NAMESPACE_COMPARISONS} comparisons with namespaces: name \
             these instead"
        );
        self.beyond_comparison(entries.len()).into_iter().map(|name| (name, message.clone())).collect()
    }

    fn beyond_comparison(&self, namespaces: usize) -> BTreeSet<&'a PoolName> {
        let mut left = MAX_NAMESPACE_COMPARISONS;
        let too_many = self.selecting_pools().filter(|(_, pool)| {
            let after = left.checked_sub(pool.namespace_terms().saturating_mul(namespaces));
            left = after.unwrap_or(left);
            after.is_none()
        });
        too_many.map(|(name, _)| name).collect()
    }

    /// The namespaces that can be read and their labels, in order of their names; none if no pool asks for them.
    fn namespaces(&self) -> Vec<DeclaredNamespace<'a>> {
        let labels = |(name, entry): (&'a str, &'a Entry)| match entry.body.as_ref()? {
            Body::Namespace(labels) => Some((name, &**labels)),
            Body::Service { .. } | Body::Slice(_) | Body::Workload(_) | Body::Pool(_) => None,
        };
        self.namespace_entries().into_iter().filter_map(labels).collect()
    }

    /// The namespaces, refused ones included; none if no pool asks for them.
    fn namespace_entries(&self) -> BTreeMap<&'a str, &'a Entry> {
        let mut all = BTreeMap::new();
        if self.selecting_pools().next().is_none() {
            return all;
        }
        for &snapshot in &self.snapshots {
            for (key, _) in snapshot.files_of.range(Key::Namespace("".into())..) {
                let (Key::Namespace(name), Some(entry)) = (key, snapshot.entry(key)) else { break };
                all.entry(&**name).or_insert(entry);
            }
        }
        all
    }

    fn selecting_pools(&self) -> impl Iterator<Item = (&'a PoolName, &'a ReadPool)> {
        self.read_pools().filter(|(_, pool)| pool.namespace_terms() > 0)
    }

    fn read_pools(&self) -> impl Iterator<Item = (&'a PoolName, &'a ReadPool)> {
        self.pools.iter().filter_map(|(&name, &entry)| Some((name, entry.pool()?)))
    }
}

const NO_NAMESPACES: &str = "there is no Namespace object among the manifests, so that none is selected: add those that \
                             the pool is for, or name them in `namespaces`";
