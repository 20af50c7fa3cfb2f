//! The ledger: which service holds which address.

pub(crate) mod index;
mod memory;

use alloc::{boxed::Box, string::String, sync::Arc};
use core::net::IpAddr;

use lb_core::name::ServiceName;
pub use memory::MemoryLedger;

use crate::Timestamp;

/// The entry of one address. An address that is not in the ledger is free.
///
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Services have it.
    Held(Holders),
    /// Services had it.
    Freed(Arc<Freed>),
    /// The address is never allocated, for this reason.
    Reserved(Arc<str>),
    /// Something else on the network, named here, answers for the address. It is never allocated.
    Conflict(Arc<str>),
}

impl Entry {
    /// Its holders; none unless it is [`Entry::Held`].
    #[must_use]
    pub fn holders(&self) -> &[ServiceName] {
        match self {
            Self::Held(holders) => holders.names(),
            Self::Freed(_) | Self::Reserved(_) | Self::Conflict(_) => &[],
        }
    }
}

/// The services that hold an address, at least one, in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holders(Arc<[ServiceName]>);

impl Holders {
    /// One service.
    #[must_use]
    pub fn one(service: ServiceName) -> Self {
        Self(Arc::new([service]))
    }

    /// These services, `None` if there are none: how an owner of a ledger restores it.
    #[must_use]
    pub fn of(services: impl IntoIterator<Item = ServiceName>) -> Option<Self> {
        let names: Arc<[ServiceName]> = services.into_iter().collect();
        (!names.is_empty()).then_some(Self(names))
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> &[ServiceName] {
        &self.0
    }

    /// The same with `service` as well.
    #[must_use]
    pub fn with(&self, service: &ServiceName) -> Self {
        if self.0.contains(service) {
            return self.clone();
        }
        Self(self.0.iter().chain([service]).cloned().collect())
    }

    /// The same without `service`, `None` if nobody is left.
    #[must_use]
    pub fn without(&self, service: &ServiceName) -> Option<Self> {
        Self::of(self.0.iter().filter(|name| *name != service).cloned())
    }
}

/// An address that was held, and how long that has consequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Its last holder.
    pub last: ServiceName,
    /// When it was released.
    pub at: Timestamp,
    /// Until then only its last holder can get it.
    pub drained: Timestamp,
    /// From `drained` until this time it is allocated only by name, or when its pool is otherwise full.
    pub rested: Timestamp,
    /// Until then its last holder can get it back.
    pub forgotten: Timestamp,
}

/// The store of entries. One ledger may serve several allocators in several processes. No address ever has two holders
/// that did not agree, because every change names the entry that it replaces.
///
/// [`get`](Self::get) and [`entries`](Self::entries) show a view. It changes by this process's own successful
/// writes, by the entry that a [`LedgerError::Changed`] brings, and by nothing else, until the allocator is asked to
/// [`refresh`](crate::Allocator::refresh).
pub trait Ledger {
    /// The entry of `address`, `None` if it is free.
    fn get(&self, address: IpAddr) -> Option<Entry>;

    /// All entries, in order of address.
    fn entries(&self) -> Box<dyn Iterator<Item = (IpAddr, Entry)> + '_>;

    /// Puts `new` in place of `expected`, or does nothing. Returns when the change would survive a crash.
    ///
    /// # Errors
    /// [`LedgerError::Changed`] if another entry is there; [`LedgerError::Failed`] if the outcome is unknown; the view
    /// then shows the old entry. To find out, the allocator replaces the old entry by itself.
    fn compare_and_set(
        &mut self,
        address: IpAddr,
        expected: Option<&Entry>,
        new: Option<Entry>,
    ) -> Result<(), LedgerError>;
}

/// Why an entry was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// Another process changed it before.
    #[error("the ledger has another entry for the address")]
    Changed {
        /// The entry that is there, and in the view from now on.
        found: Option<Entry>,
    },
    /// The ledger could not be written.
    #[error("the ledger was not written: {0}")]
    Failed(String),
}
