//! Pools of three kinds, read into a [`Pool`] of the allocator.

mod cilium;
mod draft;
mod metallb;
mod namespaces;
mod selector;
mod short;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_ipam::{Pool, PoolName, Selector};
use serde::{Deserialize, de::DeserializeOwned};

pub(crate) use draft::{Draft, created};
pub(crate) use namespaces::{DeclaredNamespace, NamespaceChoice};

use crate::{
    check::Invalid,
    document::object::Object,
    fields::{Rule, Unsupported},
    kinds::{Identity, Kind, Notes, Reading},
    snapshot::part::{Body, Key},
};

/// Cilium's `CiliumLoadBalancerIPPool`.
pub(crate) type CiliumPool = PoolManifest<cilium::Spec>;
/// MetalLB's `IPAddressPool`.
pub(crate) type AddressPool = PoolManifest<metallb::Spec>;
/// The short form of lb, `IPPool`.
pub(crate) type ShortPool = PoolManifest<short::Spec>;

/// Kinds of objects that are read as pools, whatever their group and version.
pub(crate) const KINDS: [&str; 3] =
    [<cilium::Spec as PoolSpec>::KIND, <metallb::Spec as PoolSpec>::KIND, <short::Spec as PoolSpec>::KIND];

/// A pool as it was read.
#[derive(Clone, Debug)]
pub(crate) struct ReadPool {
    /// Group, version and kind of the object.
    pub(crate) kind: PoolKind,
    /// The pool, before the namespaces that it is for are known. One that is refused is disabled.
    pub(crate) pool: Pool,
    /// The namespaces that it is for, if it names any.
    pub(crate) namespaces: Option<NamespaceChoice>,
    /// Whether nothing is wrong with it.
    pub(crate) is_valid: bool,
}

impl ReadPool {
    /// The cost of comparing a namespace with its selectors.
    pub(crate) fn namespace_terms(&self) -> usize {
        self.namespaces.as_ref().map_or(0, |namespaces| namespaces.selected.iter().map(selector::terms).sum())
    }

    /// The pool, given the namespaces that there are.
    pub(crate) fn resolve<'a>(&self, declared: impl IntoIterator<Item = DeclaredNamespace<'a>>) -> Pool {
        let mut pool = self.pool.clone();
        if let Some(namespaces) = &self.namespaces {
            let only = namespaces.among(declared);
            if pool.selectors.is_empty() {
                pool.selectors.push(Selector::default());
            }
            for selector in &mut pool.selectors {
                selector.match_expressions.push(only.clone());
            }
        }
        pool
    }
}

/// A pool that is disabled for this reason; no service loses an address over it.
pub(crate) fn refused(pool: Pool, why: String) -> Pool {
    Pool { disabled: true, refused: Some(why), ..pool }
}

/// A pool as an object of one kind.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "S: Deserialize<'de>"))]
pub(crate) struct PoolManifest<S> {
    api_version: Option<String>,
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<S>,
}

/// Everything that tells one kind of pool from another.
pub(crate) trait PoolSpec: DeserializeOwned {
    /// The kind.
    const KIND: &'static str;
    /// Groups and versions that are read, the one of manifests that name none first.
    const API_VERSIONS: &'static [&'static str];
    /// Fields of the object.
    const FIELDS: &'static Rule;

    /// Fills in the pool.
    fn read(&self, draft: &mut Draft);
}

impl<S: PoolSpec> PoolManifest<S> {
    /// Whether objects of this version and kind are read as this kind of pool.
    pub(crate) fn is(api_version: &str, kind: &str) -> bool {
        kind == S::KIND && S::API_VERSIONS.contains(&api_version)
    }

    fn kind(api_version: &str) -> PoolKind {
        let known = S::API_VERSIONS.iter().find(|known| **known == api_version);
        PoolKind { api_version: known.unwrap_or(&S::API_VERSIONS[0]), kind: S::KIND }
    }

    fn read_named(&self, name: &str) -> PoolReading {
        let kind = Self::kind(self.api_version.as_deref().unwrap_or_default());
        let mut draft = Draft::new(kind, name, &self.metadata);
        let Some(spec) = &self.spec else {
            return draft.unread(Invalid::new("spec", "a pool needs a spec"));
        };
        spec.read(&mut draft);
        draft.finish()
    }

    /// Reads a pool that is refused for its metadata: its spec counts, if that is right.
    fn refused_named(object: &Object<'_>, name: &str, invalid: Invalid) -> PoolReading {
        let mut value = object.value.clone();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("metadata");
        }
        match Self::deserialize(value) {
            Ok(pool) => pool.read_named(name).refused(invalid),
            Err(_) => PoolReading::unread(Self::kind(object.header.api_version), name, invalid),
        }
    }
}

impl<S: PoolSpec> Kind for PoolManifest<S> {
    const FIELDS: &'static Rule = S::FIELDS;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn key((_, name): Identity<'_>) -> Key {
        Key::Pool(PoolName::new(name))
    }

    fn read(&self, (_, name): Identity<'_>) -> Result<Reading, Invalid> {
        Ok(self.read_named(name).into())
    }

    fn refused(object: &Object<'_>, (_, name): Identity<'_>, invalid: Invalid) -> Result<Reading, Invalid> {
        Ok(Self::refused_named(object, name, invalid).into())
    }
}

/// Which kind of object a pool comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolKind {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
}

/// The result of reading a pool.
#[derive(Debug)]
pub(crate) struct PoolReading {
    pub(crate) pool: ReadPool,
    /// Its error, if it has one.
    pub(crate) invalid: Option<Invalid>,
    /// Settings that may not have the intended effect, or are not supported.
    pub(crate) notes: Vec<Unsupported>,
}

impl PoolReading {
    /// A pool of which nothing but the name can be read.
    pub(crate) fn unread(kind: PoolKind, name: &str, invalid: Invalid) -> Self {
        Draft::new(kind, name, &ObjectMeta::default()).unread(invalid)
    }

    /// The pool, refused for this reason.
    pub(crate) fn refused(self, invalid: Invalid) -> Self {
        let pool = ReadPool { pool: refused(self.pool.pool, invalid.to_string()), is_valid: false, ..self.pool };
        Self { pool, invalid: Some(invalid), notes: self.notes }
    }
}

impl From<PoolReading> for Reading {
    fn from(PoolReading { pool, invalid, notes }: PoolReading) -> Self {
        let unallocated = Unsupported::new("", "addresses are not allocated");
        let notes = Notes { always: notes, unallocated: vec![unallocated] };
        Self { body: Body::Pool(Box::new(pool)), invalid, notes }
    }
}
