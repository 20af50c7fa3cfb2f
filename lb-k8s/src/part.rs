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

/// Identity of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Service(ServiceName),
    Slice(SliceName),
    Namespace(String),
    Workload { api_version: &'static str, kind: &'static str, namespace: String, name: String },
}

/// An object and where it stands.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) origin: Origin,
    /// `None` for an object that is refused.
    pub(crate) body: Option<Body>,
}

/// What an object says.
#[derive(Debug)]
pub(crate) enum Body {
    Service { service: Arc<Service>, template: Option<ServiceTemplate> },
    Slice(Arc<EndpointSlice>),
    Namespace,
    Workload(Workload),
}

impl Key {
    /// The object as messages name it.
    pub(crate) fn object(&self, origin: Origin) -> ObjectRef {
        let (api_version, kind, namespace, name) = match self {
            Self::Service(service) => ("v1", "Service", service.namespace(), service.name()),
            Self::Slice(slice) => ("discovery.k8s.io/v1", "EndpointSlice", &*slice.namespace, &*slice.name),
            Self::Namespace(name) => ("v1", "Namespace", "", name.as_str()),
            Self::Workload { api_version, kind, namespace, name } => {
                (*api_version, *kind, namespace.as_str(), name.as_str())
            }
        };
        let [api_version, kind, namespace, name] = [api_version, kind, namespace, name].map(str::to_owned);
        ObjectRef { api_version, kind, namespace, name, origin }
    }
}
