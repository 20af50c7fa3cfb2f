//! Kinds of objects: the contract of a kind whose objects are read. Each kind implements it beside its reader.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use crate::{
    annotations,
    check::{self, Invalid},
    document::object::Object,
    fields::{Rule, Unsupported},
    snapshot::part::{Body, Key},
};

/// Namespace and name of an object, both valid.
pub(crate) type Identity<'a> = (&'a str, &'a str);

/// A kind of object.
pub(crate) trait Kind: DeserializeOwned {
    /// Its fields.
    const FIELDS: &'static Rule;

    /// The metadata of an object.
    fn metadata(&self) -> &ObjectMeta;

    /// Whether `name` can be the name of such an object.
    fn check_name(name: &str) -> Result<&str, String> {
        check::subdomain(name)
    }

    /// Why an object with this metadata is for another program, if it is.
    fn foreign(_: &ObjectMeta) -> Option<&'static str> {
        None
    }

    /// The object with this namespace and name.
    fn key(identity: Identity<'_>) -> Key;

    /// Reads an object, and notes which parts of it are not supported.
    fn read(&self, identity: Identity<'_>) -> Result<Reading, Invalid>;

    /// Reads what is left of an object that is refused before it is read.
    fn refused(_: &Object<'_>, _: Identity<'_>, invalid: Invalid) -> Result<Reading, Invalid> {
        Err(invalid)
    }
}

/// The result of reading an object.
pub(crate) struct Reading {
    pub(crate) body: Body,
    /// The error of an object that has a body nevertheless.
    pub(crate) invalid: Option<Invalid>,
    pub(crate) notes: Notes,
}

impl Reading {
    pub(crate) fn of(body: Body, notes: Notes) -> Self {
        Self { body, invalid: None, notes }
    }
}

/// Parts of an object that are not supported although each field for itself could be.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) always: Vec<Unsupported>,
    /// Only where nobody allocates addresses.
    pub(crate) unallocated: Vec<Unsupported>,
}

pub(crate) fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn other_proxy(metadata: &ObjectMeta) -> Option<&'static str> {
    let name = label(metadata, annotations::PROXY_NAME);
    name.map(|_| "another proxy serves it (label service.kubernetes.io/service-proxy-name)")
}
