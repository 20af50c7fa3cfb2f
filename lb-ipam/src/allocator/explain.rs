//! Explanations of single addresses.

use alloc::{string::String, string::ToString, vec::Vec};
use core::{fmt, net::IpAddr};

use lb_core::name::ServiceName;

use crate::{Allocator, Entry, Freed, Ledger, PoolName, ReservedBy, Timestamp};

/// The explanation of an address. Displays as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressReport {
    /// The address.
    pub address: IpAddr,
    /// Its state.
    pub state: AddressState,
    /// The pools that have a block with it, the one whose it is in front.
    pub pools: Vec<PoolName>,
    /// The pool or service that cannot be read, if that is why the holder keeps the address.
    pub kept_for: Option<KeptFor>,
}

/// Why an address stays where it is whatever pools and rules say. Displays as the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeptFor {
    /// It is in no pool, and may be in this one, which cannot be read.
    #[error("in no pool, and kept because pool `{0}`, which may have it, cannot be read; correct the pool")]
    Pool(PoolName),
    /// This service [cannot be read](crate::Edit::KeepService).
    #[error("kept because service {0} cannot be read; correct the service")]
    Service(ServiceName),
}

/// The state of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressState {
    /// In no pool, and nobody has it.
    Outside {
        /// The service that had it, for as long as that is remembered.
        last: Option<ServiceName>,
    },
    /// Allocatable.
    Free,
    /// For nobody, as it is or as its pool is.
    Reserved(ReservedBy),
    /// With these services.
    Held(Vec<ServiceName>),
    /// Left by a living service.
    Draining {
        /// Which.
        last: ServiceName,
        /// Until then no other service gets it.
        until: Timestamp,
    },
    /// Released, and left alone unless its pool is otherwise full.
    Quarantined {
        /// By whom.
        last: ServiceName,
        /// Until then.
        until: Timestamp,
    },
    /// In use by something else on the network.
    Conflict {
        /// By what.
        by: String,
    },
}

impl<L: Ledger> Allocator<L> {
    /// The state of an address, as of the last reconcile.
    #[must_use]
    pub fn explain(&self, address: IpAddr) -> AddressReport {
        let containing = self.catalog.containing(address);
        let pools = containing.iter().map(|&index| self.catalog.pools[index].pool.name.clone()).collect();
        AddressReport { address, state: self.state(address), pools, kept_for: self.kept_for(address) }
    }

    fn state(&self, address: IpAddr) -> AddressState {
        match self.ledger.get(address) {
            Some(Entry::Held(holders)) => AddressState::Held(holders.names().to_vec()),
            Some(Entry::Conflict(by)) => AddressState::Conflict { by: by.to_string() },
            Some(Entry::Reserved(why)) => AddressState::Reserved(ReservedBy::Named { why: why.to_string() }),
            Some(Entry::Freed(freed)) => self.state_in_pool(address, Some(&freed)),
            None => self.state_in_pool(address, None),
        }
    }

    /// The state of an address without a holder. An address that cannot be allocated is reserved, even if its
    /// quarantine has not ended.
    fn state_in_pool(&self, address: IpAddr, freed: Option<&Freed>) -> AddressState {
        let Some(owner) = self.catalog.owner(address) else {
            return AddressState::Outside { last: freed.map(|freed| freed.last.clone()) };
        };
        let reserved = owner.usable.reserved_by(address, &owner.pool, &self.settings);
        let out_of_service = || {
            let why = owner.out_of_service()?;
            Some(ReservedBy::OutOfService { pool: owner.pool.name.clone(), why })
        };
        if let Some(reserved) = reserved.or_else(out_of_service) {
            return AddressState::Reserved(reserved);
        }
        match freed {
            Some(freed) if freed.drained > self.now => {
                AddressState::Draining { last: freed.last.clone(), until: freed.drained }
            }
            Some(freed) if freed.rested > self.now => {
                AddressState::Quarantined { last: freed.last.clone(), until: freed.rested }
            }
            Some(_) | None => AddressState::Free,
        }
    }

    /// The pool or service that cannot be read, if that is why the holder keeps the address.
    pub(super) fn kept_for(&self, address: IpAddr) -> Option<KeptFor> {
        let entry = self.ledger.get(address)?;
        let mut holders = entry.holders().iter();
        let is_known = holders.clone().any(|holder| self.book.request(holder).is_some());
        if is_known && self.catalog.containing(address).is_empty() {
            return self.catalog.unreadable().map(|compiled| KeptFor::Pool(compiled.pool.name.clone()));
        }
        holders.find(|holder| self.book.is_unreadable(holder)).cloned().map(KeptFor::Service)
    }
}

impl fmt::Display for AddressReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.address)?;
        match self.pools.first() {
            Some(pool) => write!(f, "of pool `{pool}`: {}", self.state)?,
            None => self.state.fmt(f)?,
        }
        self.kept_for.iter().try_for_each(|kept| write!(f, "; {kept}"))
    }
}

impl fmt::Display for AddressState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside { last: None } => f.write_str("is in no pool"),
            Self::Outside { last: Some(last) } => {
                write!(f, "is in no pool; service {last} had it last, and gets it back if a pool has it again")
            }
            Self::Free => f.write_str("free"),
            Self::Reserved(by) => by.fmt(f),
            Self::Held(holders) => {
                let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
                write!(f, "held by {}", names.join(", "))
            }
            Self::Draining { last, .. } => write!(f, "draining after {last} had to leave it"),
            Self::Quarantined { last, .. } => {
                write!(f, "quarantined after {last} released it; assigned if the pool is otherwise full")
            }
            Self::Conflict { by } => write!(f, "in use by {by}, which is not a service here"),
        }
    }
}
