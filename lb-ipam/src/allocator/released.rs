//! Addresses that services no longer have, and why.

use alloc::string::String;
use core::{fmt, net::IpAddr};

use lb_core::{addr::Family, name::ServiceName};

use crate::{PoolName, ReservedBy, SharingRule, range::family_name};

/// An address that a service no longer holds. Displays as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The service that held it.
    pub service: ServiceName,
    /// The address.
    pub address: IpAddr,
    /// Why the service no longer holds it.
    pub why: ReleaseCause,
}

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {} no longer has {}: {}", self.service, self.address, self.why)
    }
}

/// Why a service no longer holds an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseCause {
    /// There is no such service any more.
    #[error("the service is gone")]
    ServiceGone,
    /// The service is of another type.
    #[error("the service is not of type LoadBalancer")]
    NotLoadBalancer,
    /// The class of the service is not served here.
    #[error("load-balancer class {} is not served here", class_name(.0.as_deref()))]
    Class(Option<String>),
    /// No pool has the address.
    #[error("no pool has a block with the address")]
    InNoPool,
    /// The pool of the address is not for the service.
    #[error("pool `{0}` does not select the service")]
    NotSelected(PoolName),
    /// The service asks for another pool.
    #[error("pool `{0}` is not the one that the service asks for")]
    OtherPool(PoolName),
    /// The address is never allocated.
    #[error("{0}")]
    Reserved(ReservedBy),
    /// The service does not want the family.
    #[error("the service does not ask for an {} address", family_name(*.0))]
    Family(Family),
    /// The service may not share the address with one that has held it for longer.
    #[error("it cannot be shared with service {holder}, which held it first: {rule}")]
    Sharing {
        /// The service that keeps the address.
        holder: ServiceName,
        /// The rule that forbids sharing.
        rule: SharingRule,
    },
    /// The service has others: one that it asks for by name, or one of the same family.
    #[error("the service has another address in its place")]
    Replaced,
    /// Something else on the network answers for the address.
    #[error("{0} answers for it too")]
    Claimed(String),
    /// Something else than this allocator changed the ledger.
    #[error("another program took it out of the ledger of addresses")]
    Overwritten,
}

fn class_name(class: Option<&str>) -> &str {
    class.unwrap_or("(none)")
}
