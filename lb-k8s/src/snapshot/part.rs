//! The content of one file.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry as Slot},
    sync::Arc,
};

use lb_core::{
    endpoint::EndpointSlice,
    name::{ServiceName, SliceName},
    service::Service,
};
use lb_ipam::{PoolName, Request};

use crate::{
    Finding, ObjectRef, Origin, ServiceTemplate, SnapshotError, Unlisted, limits::MAX_FINDINGS_PER_FILE,
    pools::ReadPool, snapshot::amounts::Amounts, workload::ReadWorkload,
};

/// The objects of one file, and what there is to say about them.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) entries: BTreeMap<Key, Entry>,
    /// Why the file, or documents of it, could not be read. The first one is always listed.
    pub(crate) unread: Vec<Arc<SnapshotError>>,
    /// How many entries are those that the file held before.
    pub(crate) held: usize,
    pub(crate) skipped: Vec<Arc<Finding>>,
    /// Workloads, for those who start no pods.
    pub(crate) workloads: Vec<Arc<Finding>>,
    /// Pods with host ports, for those who neither start pods nor serve host ports.
    pub(crate) host_workloads: Vec<Arc<Finding>>,
    pub(crate) unsupported: Vec<Noted>,
    /// Findings that count only where nobody allocates addresses.
    pub(crate) unallocated: Vec<Noted>,
    /// Refusals and the objects whose last good state they leave in force.
    pub(crate) refused: Vec<Noted>,
    /// Objects that stand in the file a second time.
    pub(crate) repeated: Vec<Arc<Finding>>,
    /// Findings beyond those that are listed without which more is let in: one of each object.
    pub(crate) exposing: Vec<Noted>,
    /// Refusals beyond those that are listed, of objects that have names.
    pub(crate) also_refused: Vec<Noted>,
    /// Pods whose manifests have host ports, refused ones included.
    pub(crate) host_pods: BTreeSet<Key>,
    /// How many more findings there are.
    pub(crate) unlisted: Unlisted,
    /// How many more there are where nobody starts pods, serves host ports, or allocates addresses.
    pub(crate) unlisted_workloads: usize,
    pub(crate) unlisted_host_workloads: usize,
    pub(crate) unlisted_unallocated: usize,
    /// Documents that have content, read or not.
    pub(crate) documents: usize,
    pub(crate) amounts: Amounts,
    /// The type of an entry that is not a regular file; then the part has no other content.
    pub(crate) irregular: Option<&'static str>,
}

/// A finding and the object of the file that it is about, if that has an entry.
pub(crate) type Noted = (Option<Key>, Arc<Finding>);

impl Part {
    /// Stands for a file that could not be read.
    pub(crate) fn unread(error: SnapshotError) -> Self {
        Self { unread: vec![Arc::new(error)], documents: 1, ..Self::default() }
    }

    /// Holds what the file held before and does not name now, with what there was to say about it.
    pub(crate) fn hold(&mut self, before: &Self) {
        for (key, entry) in &before.entries {
            if let Slot::Vacant(slot) = self.entries.entry(key.clone()) {
                slot.insert(Entry { is_held: true, ..entry.clone() });
                self.held += 1;
                self.amounts.objects += 1;
                self.amounts.pools += usize::from(matches!(key, Key::Pool(_)));
            }
        }
        let is_held =
            |(key, _): &&Noted| key.as_ref().and_then(|key| self.entries.get(key)).is_some_and(|entry| entry.is_held);
        let held = |findings: &[Noted]| findings.iter().filter(is_held).cloned().collect::<Vec<_>>();
        let (unsupported, unallocated, refused) =
            (held(&before.unsupported), held(&before.unallocated), held(&before.refused));
        let (exposing, also_refused) = (held(&before.exposing), held(&before.also_refused));
        self.host_pods.extend(before.host_pods.iter().cloned());
        self.unsupported.extend(unsupported);
        self.unallocated.extend(unallocated);
        self.refused.extend(refused);
        self.unlisted.unsupported += exposing.len();
        self.unlisted.refused += also_refused.len();
        self.exposing.extend(exposing);
        self.also_refused.extend(also_refused);
        self.list_at_most(MAX_FINDINGS_PER_FILE);
    }

    /// Stands for an entry that is no file.
    pub(crate) fn irregular(kind: &'static str) -> Self {
        Self { irregular: Some(kind), ..Self::default() }
    }

    /// How many findings are listed.
    pub(crate) fn findings(&self) -> usize {
        let about_objects = self.unsupported.len() + self.unallocated.len() + self.refused.len() + self.repeated.len();
        let workloads = self.workloads.len() + self.host_workloads.len();
        self.unread.len() + self.skipped.len() + workloads + about_objects
    }

    /// Lists no more than `limit` findings, invalid objects before others; the rest is counted, and kept as far as
    /// objects have conditions by it.
    pub(crate) fn list_at_most(&mut self, mut limit: usize) {
        fn cut<T>(findings: &mut Vec<T>, limit: &mut usize) -> Vec<T> {
            let rest = findings.split_off(findings.len().min(*limit));
            *limit -= findings.len();
            rest
        }
        if self.findings() <= limit {
            return;
        }
        // The first one says that something of the file is missing, which must not get lost.
        let unread = self.unread.len();
        self.unread.truncate(limit.max(1));
        self.unlisted.unread += unread - self.unread.len();
        limit = limit.saturating_sub(self.unread.len());
        for (key, finding) in cut(&mut self.refused, &mut limit) {
            self.leave_out_refused(key, || finding);
        }
        self.unlisted.refused += cut(&mut self.repeated, &mut limit).len();
        for (key, finding) in cut(&mut self.unsupported, &mut limit) {
            self.unlisted.unsupported += 1;
            self.keep_exposing(key, finding.exposes, || finding);
        }
        self.unlisted_unallocated += cut(&mut self.unallocated, &mut limit).len();
        for finding in cut(&mut self.skipped, &mut limit) {
            self.unlisted.skipped += 1;
            self.keep_exposing(None, finding.exposes, || finding);
        }
        self.unlisted_workloads += cut(&mut self.workloads, &mut limit).len();
        self.unlisted_host_workloads += cut(&mut self.host_workloads, &mut limit).len();
    }

    /// Whether no further finding is listed.
    pub(crate) fn is_full(&self) -> bool {
        self.findings() >= MAX_FINDINGS_PER_FILE
    }

    /// Keeps a finding that is not listed if more is let in without it and its object has none yet.
    pub(crate) fn keep_exposing(&mut self, key: Option<Key>, exposes: bool, finding: impl FnOnce() -> Arc<Finding>) {
        if exposes {
            let finding = finding();
            let is_of_it = |(_, last): &Noted| last.object.origin == finding.object.origin;
            if !self.exposing.last().is_some_and(is_of_it) {
                self.exposing.push((key, finding));
            }
        }
    }

    /// Counts a refusal that is not listed, and keeps that of an object that has a name.
    pub(crate) fn leave_out_refused(&mut self, key: Option<Key>, finding: impl FnOnce() -> Arc<Finding>) {
        self.unlisted.refused += 1;
        if key.is_some() {
            self.also_refused.push((key, finding()));
        }
    }

    /// Whether there is anything to say about the file.
    pub(crate) fn is_noted(&self) -> bool {
        let unlisted =
            self.unlisted.sum() + self.unlisted_workloads + self.unlisted_host_workloads + self.unlisted_unallocated;
        self.findings() + unlisted > 0 || self.irregular.is_some()
    }
}

/// Identity of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Service(ServiceName),
    Slice(SliceName),
    Namespace(Box<str>),
    /// In a box since there are few: keys are kept for every object several times.
    Workload(Box<WorkloadKey>),
    /// Of whatever kind: pools of all kinds are known by name.
    Pool(PoolName),
}

/// Identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WorkloadKey {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// An object and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) origin: Origin,
    /// `None` for an object that is refused.
    pub(crate) body: Option<Body>,
    /// Whether the file held it before, and cannot be read now.
    pub(crate) is_held: bool,
}

/// The content of an object. It is small, since a map has room for eleven where a file has one.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Service {
        service: Arc<Service>,
        aside: Option<Box<Aside>>,
    },
    Slice(Arc<EndpointSlice>),
    /// With its labels.
    Namespace(Arc<BTreeMap<String, String>>),
    Workload(Box<ReadWorkload>),
    Pool(Box<ReadPool>),
}

/// Further content of a service, if there is any.
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    pub(crate) template: Option<ServiceTemplate>,
    pub(crate) request: Option<Arc<Request>>,
}

impl Entry {
    /// The object as messages name it.
    pub(crate) fn object(&self, key: &Key) -> ObjectRef {
        let (api_version, kind, namespace, name) = match key {
            Key::Service(service) => ("v1", "Service", service.namespace(), service.name()),
            Key::Slice(slice) => ("discovery.k8s.io/v1", "EndpointSlice", &*slice.namespace, &*slice.name),
            Key::Namespace(name) => ("v1", "Namespace", "", &**name),
            Key::Workload(key) => (key.api_version, key.kind, key.namespace.as_str(), key.name.as_str()),
            Key::Pool(name) => {
                let (api_version, kind) =
                    self.pool().map_or(("", "pool"), |pool| (pool.kind.api_version, pool.kind.kind));
                (api_version, kind, "", name.as_str())
            }
        };
        let service = match &self.body {
            Some(Body::Slice(slice)) => slice.service.name(),
            Some(Body::Service { .. } | Body::Namespace(_) | Body::Workload(_) | Body::Pool(_)) | None => "",
        };
        let [api_version, kind, namespace, name, service] =
            [api_version, kind, namespace, name, service].map(str::to_owned);
        ObjectRef { api_version, kind, namespace, name, service, origin: self.origin.clone() }
    }

    /// The pool that it is, refused or not.
    pub(crate) fn pool(&self) -> Option<&ReadPool> {
        if let Some(Body::Pool(pool)) = &self.body { Some(pool) } else { None }
    }
}
