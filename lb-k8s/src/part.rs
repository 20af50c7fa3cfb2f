//! What one file says.

use std::{collections::BTreeMap, sync::Arc};

use lb_core::{EndpointSlice, Service, ServiceName, SliceName};

use crate::{Finding, ObjectRef, Origin, ServiceTemplate, Workload};

/// The objects of one file, and what there is to say about them.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) entries: BTreeMap<Key, Entry>,
    pub(crate) skipped: Vec<Arc<Finding>>,
    pub(crate) unsupported: Vec<Arc<Finding>>,
    /// Refusals and the objects whose last good state they leave in force.
    pub(crate) refused: Vec<(Option<Key>, Arc<Finding>)>,
    /// How many more findings there are.
    pub(crate) unlisted: usize,
    /// How many objects there are, of every kind.
    pub(crate) objects: usize,
    /// Bytes of the file.
    pub(crate) bytes: u64,
}

impl Part {
    /// How many findings are listed.
    pub(crate) fn findings(&self) -> usize {
        self.skipped.len() + self.unsupported.len() + self.refused.len()
    }

    /// Lists no more than `limit` findings, invalid objects before others; the rest is only counted.
    pub(crate) fn list_at_most(&mut self, mut limit: usize) {
        let before = self.findings();
        self.refused.truncate(limit);
        limit -= self.refused.len();
        self.unsupported.truncate(limit);
        limit -= self.unsupported.len();
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

/// What an object says. Small, since a map has room for eleven where a file has one.
#[derive(Debug)]
pub(crate) enum Body {
    Service { service: Arc<Service>, template: Option<Box<ServiceTemplate>> },
    Slice(Arc<EndpointSlice>),
    Namespace,
    Workload(Box<Workload>),
}

impl Key {
    /// The object as messages name it.
    pub(crate) fn object(&self, origin: Origin) -> ObjectRef {
        let (api_version, kind, namespace, name) = match self {
            Self::Service(service) => ("v1", "Service", service.namespace(), service.name()),
            Self::Slice(slice) => ("discovery.k8s.io/v1", "EndpointSlice", &*slice.namespace, &*slice.name),
            Self::Namespace(name) => ("v1", "Namespace", "", &**name),
            Self::Workload(key) => (key.api_version, key.kind, key.namespace.as_str(), key.name.as_str()),
        };
        let [api_version, kind, namespace, name] = [api_version, kind, namespace, name].map(str::to_owned);
        ObjectRef { api_version, kind, namespace, name, origin }
    }
}
