//! The kinds of objects that are read, and what becomes of each.

use std::sync::Arc;

use k8s_openapi::{
    Metadata, Resource,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_core::{ServiceName, SliceName};
use lb_ipam::PoolName;
use serde::de::DeserializeOwned;

use crate::{
    annotations,
    check::{self, Invalid},
    document::object::Object,
    fields::{self, Rule, Unsupported},
    pools::{AddressPool, CiliumPool, PoolKind, PoolReading, ShortPool},
    service, slice,
    snapshot::part::{Aside, Body, Key, WorkloadKey},
    workload::{self, Identity},
};

/// A kind of object.
pub(crate) trait Kind: DeserializeOwned + Resource + Metadata<Ty = ObjectMeta> {
    /// Its fields.
    const FIELDS: &'static Rule;

    /// Whether `name` can be the name of such an object.
    fn check_name(name: &str) -> Result<&str, String> {
        check::subdomain(name)
    }

    /// Why an object with this metadata is none of our business, if it is not.
    fn foreign(_: &ObjectMeta) -> Option<&'static str> {
        None
    }

    /// The object with this namespace and name.
    fn key((namespace, name): Identity<'_>) -> Key {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Key::Workload(Box::new(WorkloadKey { api_version: Self::API_VERSION, kind: Self::KIND, namespace, name }))
    }

    /// What it says, and what of that is not carried out.
    fn read(&self, identity: Identity<'_>) -> Result<Reading, Invalid>;

    /// What there is of an object that is refused before it is read.
    fn refused(_: &Object<'_>, _: Identity<'_>, invalid: Invalid) -> Result<Reading, Invalid> {
        Err(invalid)
    }
}

/// What reading an object comes to.
pub(crate) struct Reading {
    pub(crate) body: Body,
    /// What is wrong with it although it has a body.
    pub(crate) invalid: Option<Invalid>,
    pub(crate) notes: Notes,
}

impl Reading {
    fn of(body: Body, notes: Notes) -> Self {
        Self { body, invalid: None, notes }
    }
}

/// What of an object is not carried out although each field for itself could be.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) always: Vec<Unsupported>,
    /// Only where nobody allocates addresses.
    pub(crate) unallocated: Vec<Unsupported>,
}

impl Kind for Service {
    const FIELDS: &'static Rule = &fields::SERVICE;

    fn check_name(name: &str) -> Result<&str, String> {
        check::label(name)
    }

    fn foreign(metadata: &ObjectMeta) -> Option<&'static str> {
        other_proxy(metadata)
    }

    fn key((namespace, name): Identity<'_>) -> Key {
        Key::Service(ServiceName::new(namespace, name))
    }

    fn read(&self, (namespace, name): Identity<'_>) -> Result<Reading, Invalid> {
        let read = service::read(ServiceName::new(namespace, name), self)?;
        let has_aside = read.template.is_some() || read.request.is_some();
        let aside = has_aside.then(|| Box::new(Aside { template: read.template, request: read.request.map(Arc::new) }));
        Ok(Reading::of(Body::Service { service: Arc::new(read.service), aside }, read.notes))
    }
}

impl Kind for EndpointSlice {
    const FIELDS: &'static Rule = &fields::ENDPOINT_SLICE;

    fn foreign(metadata: &ObjectMeta) -> Option<&'static str> {
        if label(metadata, annotations::SERVICE_NAME).is_none() {
            return Some("it belongs to no service (label kubernetes.io/service-name)");
        }
        let headless = label(metadata, annotations::HEADLESS);
        let headless = headless.map(|_| "its service is headless (label service.kubernetes.io/headless)");
        other_proxy(metadata).or(headless)
    }

    fn key((namespace, name): Identity<'_>) -> Key {
        Key::Slice(SliceName::new(namespace, name))
    }

    fn read(&self, (namespace, name): Identity<'_>) -> Result<Reading, Invalid> {
        let service = label(&self.metadata, annotations::SERVICE_NAME).unwrap_or_default();
        let read = slice::read(SliceName::new(namespace, name), service, self)?;
        let notes = Notes { always: read.notes, ..Notes::default() };
        Ok(Reading::of(Body::Slice(Arc::new(read.slice)), notes))
    }
}

impl Kind for Namespace {
    const FIELDS: &'static Rule = &fields::NAMESPACE;

    fn check_name(name: &str) -> Result<&str, String> {
        check::label(name)
    }

    fn key((_, name): Identity<'_>) -> Key {
        Key::Namespace(name.into())
    }

    fn read(&self, (_, name): Identity<'_>) -> Result<Reading, Invalid> {
        let mut labels = self.metadata.labels.clone().unwrap_or_default();
        labels.insert(annotations::NAMESPACE_NAME.into(), name.into());
        Ok(Reading::of(Body::Namespace(Arc::new(labels)), Notes::default()))
    }
}

impl Kind for Pod {
    const FIELDS: &'static Rule = &fields::POD;

    fn read(&self, identity: Identity<'_>) -> Result<Reading, Invalid> {
        Ok(Reading::of(Body::Workload(Box::new(workload::read_pod(identity, self)?)), Notes::default()))
    }
}

impl Kind for Deployment {
    const FIELDS: &'static Rule = &fields::DEPLOYMENT;

    fn read(&self, identity: Identity<'_>) -> Result<Reading, Invalid> {
        Ok(Reading::of(Body::Workload(Box::new(workload::read_deployment(identity, self)?)), Notes::default()))
    }
}

impl Kind for StatefulSet {
    const FIELDS: &'static Rule = &fields::STATEFUL_SET;

    fn read(&self, identity: Identity<'_>) -> Result<Reading, Invalid> {
        Ok(Reading::of(Body::Workload(Box::new(workload::read_stateful_set(identity, self)?)), Notes::default()))
    }
}

impl Kind for CiliumPool {
    const FIELDS: &'static Rule = &fields::CILIUM_POOL;

    fn key((_, name): Identity<'_>) -> Key {
        Key::Pool(PoolName::new(name))
    }

    fn read(&self, (_, name): Identity<'_>) -> Result<Reading, Invalid> {
        Ok(pool(Self::read(self, name)))
    }

    fn refused(object: &Object<'_>, (_, name): Identity<'_>, invalid: Invalid) -> Result<Reading, Invalid> {
        Ok(pool(refused_pool(Self::version(object.header.api_version), object, name, invalid, Self::read)))
    }
}

impl Kind for AddressPool {
    const FIELDS: &'static Rule = &fields::ADDRESS_POOL;

    fn key((_, name): Identity<'_>) -> Key {
        Key::Pool(PoolName::new(name))
    }

    fn read(&self, (_, name): Identity<'_>) -> Result<Reading, Invalid> {
        Ok(pool(Self::read(self, name)))
    }

    fn refused(object: &Object<'_>, (_, name): Identity<'_>, invalid: Invalid) -> Result<Reading, Invalid> {
        Ok(pool(refused_pool(Self::POOL, object, name, invalid, Self::read)))
    }
}

impl Kind for ShortPool {
    const FIELDS: &'static Rule = &fields::POOL;

    fn key((_, name): Identity<'_>) -> Key {
        Key::Pool(PoolName::new(name))
    }

    fn read(&self, (_, name): Identity<'_>) -> Result<Reading, Invalid> {
        Ok(pool(Self::read(self, name)))
    }

    fn refused(object: &Object<'_>, (_, name): Identity<'_>, invalid: Invalid) -> Result<Reading, Invalid> {
        Ok(pool(refused_pool(Self::POOL, object, name, invalid, Self::read)))
    }
}

/// What can be read of a pool that is refused: what it says besides its metadata, if only these are wrong.
fn refused_pool<T: Kind>(
    kind: PoolKind,
    object: &Object<'_>,
    name: &str,
    invalid: Invalid,
    read: impl FnOnce(&T, &str) -> PoolReading,
) -> PoolReading {
    let mut value = object.value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("metadata");
    }
    match T::deserialize(value) {
        Ok(pool) => read(&pool, name).refused(invalid),
        Err(_) => PoolReading::unread(kind, name, invalid),
    }
}

fn pool(PoolReading { pool, invalid, notes }: PoolReading) -> Reading {
    let unallocated = Unsupported { field: String::new(), message: "addresses are not allocated".into() };
    let notes = Notes { always: notes, unallocated: vec![unallocated] };
    Reading { body: Body::Pool(Box::new(pool)), invalid, notes }
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn other_proxy(metadata: &ObjectMeta) -> Option<&'static str> {
    let name = label(metadata, annotations::PROXY_NAME);
    name.map(|_| "another proxy serves it (label service.kubernetes.io/service-proxy-name)")
}
