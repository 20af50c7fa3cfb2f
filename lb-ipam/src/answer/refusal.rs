//! Refusals: requests of a service that are not granted, and why.

use alloc::{string::String, vec::Vec};
use core::{fmt, net::IpAddr};

use lb_core::{addr::Family, name::ServiceName};

use crate::{
    PoolName, Reason, RefusingPools, SharingRule,
    answer::refusing_pools::{self, Sentence},
    range::family_name,
};

/// One request of a service that is not granted. Displays as a sentence for the operator, which stays the same as long
/// as the cause does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The request.
    pub asked: Requested,
    /// Why it is not granted.
    pub cause: Cause,
}

impl Refusal {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.cause.reason()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.asked, self.cause)
    }
}

/// A single request of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requested {
    /// This address.
    Address(IpAddr),
    /// Any address of this family.
    Family(Family),
    /// A text that is no address.
    Text(String),
    /// More addresses than are looked at.
    More,
}

impl Requested {
    /// Characters of a text that a sentence repeats.
    const SHOWN: usize = 128;
}

impl fmt::Display for Requested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Family(family) => write!(f, "no {} address", family_name(*family)),
            Self::Text(text) => match text.char_indices().nth(Self::SHOWN) {
                Some((end, _)) => write!(f, "`{}\u{2026}`", &text[..end]),
                None => write!(f, "`{text}`"),
            },
            Self::More => f.write_str("further addresses"),
        }
    }
}

/// Why something is refused, with the rule and the holder behind it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// There is no pool at all.
    #[error("there is no pool; create one")]
    NoPools,
    /// No block of any pool contains the address.
    #[error("no pool has a block containing it; add one, or ask for another address")]
    InNoPool,
    /// No pool allocates an address of the family.
    #[error("{}", Sentence(pools, *more))]
    NoneGives {
        /// The pools that have a block of the family, by the reason of their refusal: at most
        /// [`MAX_REASONS`](Self::MAX_REASONS) reasons, those that say most first. That pools are full comes first, then
        /// quotas, and that they do not select the service last. If the service wants one pool and no other, that one
        /// alone.
        pools: Vec<RefusingPools>,
        /// How many other pools refuse.
        more: usize,
    },
    /// The service wants a pool that there is not.
    #[error("there is no pool `{pool}`; create one of that name, or ask for another pool or for none")]
    NoSuchPool {
        /// Which it wants.
        pool: PoolName,
    },
    /// The pool of the address does not allocate it.
    #[error("pool `{pool}` {why}")]
    NotFromPool {
        /// The pool.
        pool: PoolName,
        /// Why it does not.
        why: PoolRefusal,
    },
    /// Another service holds it and they do not share.
    #[error(
        "held by service {holder}; ask for another address, or give both services the same sharing key and different ports"
    )]
    Held {
        /// Its holder.
        holder: ServiceName,
    },
    /// Another service holds it and they may not share.
    #[error("held by service {holder}, with which it cannot be shared: {rule}")]
    Incompatible {
        /// Its holder.
        holder: ServiceName,
        /// The rule that forbids sharing.
        rule: SharingRule,
    },
    /// It belongs to nobody.
    #[error("{0}")]
    Reserved(ReservedBy),
    /// A service had to leave it a moment ago and its connections may not have ended.
    #[error("it drains after service {last} had to leave it; wait until that is over, or ask for another address")]
    Draining {
        /// The service that left it.
        last: ServiceName,
    },
    /// Something else on the network answers for it.
    #[error("{by} answers for it too; give one of them another address, then clear the conflict")]
    Claimed {
        /// The claimant, such as a hardware address.
        by: String,
    },
    /// The cluster does not have the family.
    #[error("the cluster has no {}; enable it, or leave it out of ipFamilies", family_name(*.0))]
    FamilyDisabled(Family),
    /// The service lists families, and this is none of them.
    #[error("the service does not list {} in ipFamilies; add it, or ask for an address of a listed family", family_name(*.0))]
    FamilyNotListed(Family),
    /// Not an address.
    #[error("is not an IP address; write IPv4 or IPv6 addresses separated by commas")]
    Unreadable,
    /// More than are looked at.
    #[error("only the first {limit} of a service are looked at; ask for fewer")]
    TooMany {
        /// How many are.
        limit: usize,
    },
    /// The second address of a family where one is all there may be.
    #[error("a service gets one address per family here; ask for one")]
    SecondOfFamily,
    /// Other processes kept taking the address that was about to be assigned.
    #[error("other allocators were faster {tries} times in a row; it is tried again")]
    Outrun {
        /// How often it was tried.
        tries: usize,
    },
}

impl Cause {
    /// Most reasons that one refusal names, each with at most [`RefusingPools::MAX_NAMED`] pools.
    pub const MAX_REASONS: usize = 8;

    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoPools | Self::InNoPool | Self::NoSuchPool { .. } => Reason::NoPool,
            Self::NoneGives { pools, .. } => refusing_pools::reason(pools),
            Self::NotFromPool { why, .. } => why.reason(),
            Self::Held { .. } | Self::Outrun { .. } => Reason::AlreadyAllocated,
            Self::Incompatible { .. } => Reason::AlreadyAllocatedIncompatibleService,
            Self::Reserved(_) => Reason::ReservedAddress,
            Self::Draining { .. } => Reason::AddressDraining,
            Self::Claimed { .. } => Reason::AddressConflict,
            Self::FamilyDisabled(_) => Reason::FamilyDisabled,
            Self::FamilyNotListed(_) => Reason::FamilyMismatch,
            Self::Unreadable | Self::TooMany { .. } | Self::SecondOfFamily => Reason::InvalidRequest,
        }
    }
}

/// Why a pool refuses a service an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolRefusal {
    /// It has none left.
    #[error("{}{}", if is_all_reserved(*total, *reserved) { "has no address to give" } else { "is full" }, Reserved(*used, *total, *reserved, by))]
    Full {
        /// Addresses of the family that it cannot allocate because services hold them, or left them a moment ago.
        used: u128,
        /// Addresses of the family in its blocks.
        total: u128,
        /// Those of them that are never allocated.
        reserved: u128,
        /// Why they are not, empty if there are none.
        by: String,
    },
    /// It is disabled.
    #[error("is disabled (enable it, or ask for an address of another pool)")]
    Disabled,
    /// It overlaps an older pool, or itself.
    #[error("is out of service, because it overlaps pool `{with}` (remove the overlap)")]
    Conflict {
        /// The pool that stays in service, or its own name.
        with: PoolName,
    },
    /// Something is wrong with it.
    #[error("is out of service until it is corrected: {problem}")]
    Invalid {
        /// What.
        problem: String,
    },
    /// Its selector does not match.
    #[error("does not select the service (change its selector or the labels of the service)")]
    Selector,
    /// The service wants another pool.
    #[error("is not the pool that the service asks for (ask for this one, or for none)")]
    NotAskedFor,
    /// It only allocates addresses that are asked for by name.
    #[error("gives only addresses that are asked for by name (ask for one)")]
    NotAutomatic,
    /// It has no block of the family.
    #[error("has no block of this family (add one)")]
    NoFamily,
    /// The namespace has as many as it may.
    #[error("gives namespace `{namespace}` no more than {quota} (remove a service there or raise the quota)")]
    Quota {
        /// The namespace.
        namespace: String,
        /// How many it may have.
        quota: u64,
    },
}

/// Whether a pool is full because all its addresses are reserved.
pub(crate) const fn is_all_reserved(total: u128, reserved: u128) -> bool {
    total > 0 && reserved == total
}

/// That all of so many addresses are reserved.
pub(crate) struct AllReserved(pub(crate) u128);

impl fmt::Display for AllReserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("the only one is reserved"),
            total => write!(f, "all {total} are reserved"),
        }
    }
}

/// How a full pool has become full, if services do not hold all of it.
pub(crate) struct Reserved<'a>(pub(crate) u128, pub(crate) u128, pub(crate) u128, pub(crate) &'a str);

impl fmt::Display for Reserved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(used, total, reserved, by) = self;
        match (reserved, by.is_empty()) {
            (0, _) => Ok(()),
            (_, true) if is_all_reserved(*total, *reserved) => write!(f, ": {}", AllReserved(*total)),
            (_, false) if is_all_reserved(*total, *reserved) => write!(f, ": {}: {by}", AllReserved(*total)),
            (_, true) => write!(f, ": {used} used of {total}, {reserved} reserved"),
            (_, false) => write!(f, ": {used} used of {total}, {reserved} reserved: {by}"),
        }
    }
}

impl PoolRefusal {
    /// Of a pool that was not looked at in detail.
    pub(crate) const FULL: Self = Self::Full { used: 0, total: 0, reserved: 0, by: String::new() };

    /// The most telling reasons come first.
    pub(crate) const fn rank(&self) -> u8 {
        match self {
            Self::Full { .. } => 0,
            Self::Quota { .. } => 1,
            Self::Disabled | Self::Conflict { .. } | Self::Invalid { .. } | Self::NotAutomatic | Self::NoFamily => 2,
            Self::Selector | Self::NotAskedFor => 3,
        }
    }

    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Full { .. } => Reason::OutOfIps,
            Self::Disabled => Reason::PoolDisabled,
            Self::Conflict { .. } => Reason::PoolConflict,
            Self::Invalid { .. } => Reason::PoolInvalid,
            Self::Selector | Self::NotAskedFor => Reason::PoolSelectorMismatch,
            Self::NotAutomatic | Self::NoFamily => Reason::NoPool,
            Self::Quota { .. } => Reason::QuotaExceeded,
        }
    }
}

/// Why an address belongs to nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReservedBy {
    /// It is the first or last of a block whose pool keeps those.
    #[error("first or last address of {block} in pool `{pool}`, which are not assigned; set allowFirstLastIPs to Yes")]
    FirstOrLast {
        /// The pool.
        pool: PoolName,
        /// The block, as it is written.
        block: String,
    },
    /// The pool avoids it.
    #[error("pool `{pool}` avoids it; take it from the pool's list of avoided addresses")]
    Avoided {
        /// The pool.
        pool: PoolName,
    },
    /// The pool avoids addresses that end so.
    #[error(
        "ends in .0 or .255, which pool `{pool}` does not assign; set avoidZeroAnd255 (MetalLB: avoidBuggyIPs) to false"
    )]
    ZeroOr255 {
        /// The pool.
        pool: PoolName,
    },
    /// The pool allocates nothing. Said of an address that nobody asks for: see
    /// [`AddressState`](crate::AddressState).
    #[error("not assigned, because pool `{pool}` {why}")]
    OutOfService {
        /// The pool.
        pool: PoolName,
        /// Why it does not.
        why: PoolRefusal,
    },
    /// The settings or a reservation name it.
    #[error("reserved: {why}; ask for another address")]
    Named {
        /// For whom.
        why: String,
    },
}
