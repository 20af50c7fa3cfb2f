//! Pools of three kinds to a [`Pool`] of the allocator.

/// Makes a type with a field `metadata` an object of a kind.
macro_rules! resource {
    ($type:ty, $group:literal, $version:literal, $kind:literal, $plural:literal, $scope:ident) => {
        impl k8s_openapi::Resource for $type {
            const API_VERSION: &'static str = concat!($group, "/", $version);
            const GROUP: &'static str = $group;
            const KIND: &'static str = $kind;
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::$scope;
        }

        impl k8s_openapi::Metadata for $type {
            type Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }
    };
}

mod cilium;
mod draft;
mod metallb;
mod namespaces;
mod selector;
mod short;

use draft::Draft;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_ipam::{Pool, Selector};

pub(crate) use cilium::CiliumPool;
pub(crate) use draft::created;
pub(crate) use metallb::AddressPool;
pub(crate) use namespaces::{DeclaredNamespace, NamespaceChoice};
pub(crate) use short::ShortPool;

use crate::{check::Invalid, fields::Unsupported};

/// A pool as it was read.
#[derive(Debug)]
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
    /// What comparing a namespace with its selectors costs.
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

/// A pool that gives nothing out for this reason; nobody loses an address over it.
pub(crate) fn refused(pool: Pool, why: String) -> Pool {
    Pool { disabled: true, refused: Some(why), ..pool }
}

/// Which kind of object a pool comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolKind {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
}

/// What reading a pool comes to.
#[derive(Debug)]
pub(crate) struct PoolReading {
    pub(crate) pool: ReadPool,
    /// What is wrong with it, if something is.
    pub(crate) invalid: Option<Invalid>,
    /// What may be other than meant, or is not carried out.
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
