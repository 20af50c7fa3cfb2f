//! The content of one file.

use std::{collections::BTreeMap, sync::Arc};

use lb_core::{
    endpoint::EndpointSlice,
    name::{ServiceName, SliceName},
    service::Service,
};
use lb_ipam::{PoolName, Request};

use crate::{Finding, ObjectRef, Origin, ServiceTemplate, Workload, pools::ReadPool, snapshot::amounts::Amounts};

/// The objects of one file, and what there is to say about them.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) entries: BTreeMap<Key, Entry>,
    pub(crate) skipped: Vec<Arc<Finding>>,
    pub(crate) unsupported: Vec<Arc<Finding>>,
    /// Findings that count only where nobody allocates addresses.
    pub(crate) unallocated: Vec<Arc<Finding>>,
    /// Refusals and the objects whose last good state they leave in force.
    pub(crate) refused: Vec<(Option<Key>, Arc<Finding>)>,
    /// How many more findings there are.
    pub(crate) unlisted: usize,
    pub(crate) amounts: Amounts,
    /// The type of an entry that is not a regular file; then the part has no other content.
    pub(crate) irregular: Option<&'static str>,
}

impl Part {
    /// Stands for an entry that is no file.
    pub(crate) fn irregular(kind: &'static str) -> Self {
        Self { irregular: Some(kind), ..Self::default() }
    }

    /// How many findings are listed.
    pub(crate) fn findings(&self) -> usize {
        self.skipped.len() + self.unsupported.len() + self.unallocated.len() + self.refused.len()
    }

    /// Lists no more than `limit` findings, invalid objects before others; the rest is only counted.
    pub(crate) fn list_at_most(&mut self, mut limit: usize) {
        let before = self.findings();
        self.refused.truncate(limit);
        limit -= self.refused.len();
        self.unsupported.truncate(limit);
        limit -= self.unsupported.len();
        self.unallocated.truncate(limit);
        limit -= self.unallocated.len();
        self.skipped.truncate(limit);
        self.unlisted += before - self.findings();
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
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) origin: Origin,
    /// `None` for an object that is refused.
    pub(crate) body: Option<Body>,
}

/// The content of an object. It is small, since a map has room for eleven where a file has one.
#[derive(Debug)]
pub(crate) enum Body {
    Service {
        service: Arc<Service>,
        aside: Option<Box<Aside>>,
    },
    Slice(Arc<EndpointSlice>),
    /// With its labels.
    Namespace(Arc<BTreeMap<String, String>>),
    Workload(Box<Workload>),
    Pool(Box<ReadPool>),
}

/// Further content of a service, if there is any.
#[derive(Debug)]
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
        let [api_version, kind, namespace, name] = [api_version, kind, namespace, name].map(str::to_owned);
        ObjectRef { api_version, kind, namespace, name, origin: self.origin.clone() }
    }

    /// The pool that it is, refused or not.
    pub(crate) fn pool(&self) -> Option<&ReadPool> {
        if let Some(Body::Pool(pool)) = &self.body { Some(pool) } else { None }
    }
}
