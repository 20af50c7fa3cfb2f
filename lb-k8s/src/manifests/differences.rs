//! Differences between the objects of a snapshot and those before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::{endpoint::EndpointSlice, model::Change, name::SliceName, service::Service};
use lb_ipam::Request;

use crate::{
    host_ports::HostPod,
    snapshot::part::{Body, Entry, Key},
};

/// The declaration of an object in a snapshot.
pub(crate) enum Declaration<V> {
    Gone,
    Refused,
    Valid(Arc<V>),
}

fn said<V>(entry: Option<&Entry>, of: fn(&Body) -> Option<&Arc<V>>) -> Declaration<V> {
    let Some(entry) = entry else { return Declaration::Gone };
    entry.body.as_ref().and_then(of).map_or(Declaration::Refused, |object| Declaration::Valid(Arc::clone(object)))
}

/// The declaration of a service.
pub(crate) fn service(entry: Option<&Entry>) -> Declaration<Service> {
    said(entry, service_of)
}

/// The declaration of a slice.
pub(crate) fn slice(entry: Option<&Entry>) -> Declaration<EndpointSlice> {
    said(entry, slice_of)
}

/// The declaration of a request; it is absent if a valid service asks for nothing.
pub(crate) fn request(entry: Option<&Entry>) -> Declaration<Request> {
    let Some(entry) = entry else { return Declaration::Gone };
    match &entry.body {
        Some(Body::Service { aside, .. }) => {
            let request = aside.as_ref().and_then(|aside| aside.request.as_ref());
            request.map_or(Declaration::Gone, |request| Declaration::Valid(Arc::clone(request)))
        }
        Some(_) | None => Declaration::Refused,
    }
}

/// The declaration of a pod with host ports; it is absent if a valid pod has none.
pub(crate) fn host_pod(entry: Option<&Entry>) -> Declaration<HostPod> {
    let Some(entry) = entry else { return Declaration::Gone };
    match &entry.body {
        Some(Body::Workload(read)) => {
            read.host_ports.as_ref().map_or(Declaration::Gone, |pod| Declaration::Valid(Arc::clone(pod)))
        }
        Some(_) => Declaration::Gone,
        None => Declaration::Refused,
    }
}

fn service_of(body: &Body) -> Option<&Arc<Service>> {
    if let Body::Service { service, .. } = body { Some(service) } else { None }
}

fn slice_of(body: &Body) -> Option<&Arc<EndpointSlice>> {
    if let Body::Slice(slice) = body { Some(slice) } else { None }
}

/// Objects that may have changed, before and after.
pub(crate) struct Differences<K, V> {
    pub(crate) before: BTreeMap<K, Arc<V>>,
    pub(crate) after: BTreeMap<K, Arc<V>>,
}

impl<K: Ord + Clone, V> Differences<K, V> {
    /// The differences of the touched objects, as `said` declares them; a refused object stays as it was.
    pub(crate) fn of<'a>(
        touched: &'a BTreeSet<Key>,
        all: &BTreeMap<K, Arc<V>>,
        said: impl Fn(&'a Key) -> Option<(&'a K, Declaration<V>)>,
    ) -> Self
    where
        K: 'a,
    {
        let mut differences = Self { before: BTreeMap::new(), after: BTreeMap::new() };
        for (key, said) in touched.iter().filter_map(said) {
            let before = all.get(key).cloned();
            let after = match said {
                Declaration::Gone => None,
                Declaration::Refused => before.clone(),
                Declaration::Valid(object) => Some(object),
            };
            differences.before.extend(before.map(|object| (key.clone(), object)));
            differences.after.extend(after.map(|object| (key.clone(), object)));
        }
        differences
    }

    pub(crate) fn apply(self, all: &mut BTreeMap<K, Arc<V>>) {
        for key in self.before.keys().filter(|key| !self.after.contains_key(key)) {
            all.remove(key);
        }
        all.extend(self.after);
    }
}

/// The changes that slices make: those that come or change, then those that go.
pub(crate) fn slice_changes(Differences { before, after }: &Differences<SliceName, EndpointSlice>) -> Vec<Change> {
    let changed = after.iter().filter(|(name, slice)| before.get(*name) != Some(*slice));
    let mut changes: Vec<_> = changed.map(|(_, slice)| Change::ReplaceEndpoints((**slice).clone())).collect();
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    changes.extend(removed.cloned().map(Change::RemoveEndpoints));
    changes
}
