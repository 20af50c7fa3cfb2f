//! What a snapshot says about the allocation of addresses.

use std::collections::BTreeSet;

use lb_ipam::{Pool, PoolName, Request};

use super::Snapshot;
use crate::{
    Finding,
    limits::MAX_NAMESPACE_COMPARISONS,
    part::{Body, Key},
    pools::{DeclaredNamespace, ReadPool},
};

impl Snapshot {
    /// Pools, in order of their names. One that is refused is among them and gives nothing out.
    pub fn pools(&self) -> impl Iterator<Item = Pool> {
        self.resolved_pools().map(|(pool, _)| pool)
    }

    /// What services ask of pools, in order of their names: those of type LoadBalancer, and those that only have addresses
    /// left from when they were.
    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.bodies().filter_map(|body| match body {
            Body::Service { aside, .. } => aside.as_ref()?.request.as_deref(),
            Body::Slice(_) | Body::Namespace(_) | Body::Workload(_) | Body::Pool(_) => None,
        })
    }

    /// Every pool, refused ones included, in order of their names.
    pub(crate) fn read_pools(&self) -> impl Iterator<Item = (&PoolName, &ReadPool)> {
        let pools = self.files_of.range(Key::Pool(PoolName::new(""))..);
        pools.filter_map(|(key, _)| match key {
            Key::Pool(name) => Some((name, self.entry(key)?.pool()?)),
            Key::Service(_) | Key::Slice(_) | Key::Namespace(_) | Key::Workload(_) => None,
        })
    }

    /// Every pool, given the namespaces that there are, and whether it is valid.
    pub(crate) fn resolved_pools(&self) -> impl Iterator<Item = (Pool, bool)> {
        let too_many = self.beyond_comparison();
        self.read_pools().map(move |(name, read)| {
            if too_many.contains(name) {
                return (Pool { disabled: true, ..read.pool.clone() }, false);
            }
            (read.resolve(self.declared_namespaces()), read.is_valid)
        })
    }

    /// Pools whose selectors cannot be compared with all the namespaces any more.
    fn beyond_comparison(&self) -> BTreeSet<&PoolName> {
        let selecting = self.read_pools().filter(|(_, pool)| pool.namespace_terms() > 0);
        let mut selecting = selecting.peekable();
        if selecting.peek().is_none() {
            return BTreeSet::new();
        }
        let namespaces = self.declared_namespaces().count();
        let mut left = MAX_NAMESPACE_COMPARISONS;
        let too_many = selecting.filter(|(_, pool)| {
            let after = left.checked_sub(pool.namespace_terms().saturating_mul(namespaces));
            left = after.unwrap_or(left);
            after.is_none()
        });
        too_many.map(|(name, _)| name).collect()
    }

    /// One finding for each of those.
    pub(super) fn incomparable(&self) -> impl Iterator<Item = (Key, Finding)> {
        self.beyond_comparison().into_iter().filter_map(|name| {
            let key = Key::Pool(name.clone());
            let finding = Finding {
                object: self.entry(&key)?.object(&key),
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

    /// The namespaces that are declared, and their labels.
    fn declared_namespaces(&self) -> impl Iterator<Item = DeclaredNamespace<'_>> {
        let keys = self.files_of.range(Key::Namespace("".into())..).map(|(key, _)| key);
        let named = keys.map_while(|key| if let Key::Namespace(name) = key { Some((key, &**name)) } else { None });
        named.filter_map(|(key, name)| match self.entry(key)?.body.as_ref()? {
            Body::Namespace(labels) => Some((name, &**labels)),
            Body::Service { .. } | Body::Slice(_) | Body::Workload(_) | Body::Pool(_) => None,
        })
    }
}
