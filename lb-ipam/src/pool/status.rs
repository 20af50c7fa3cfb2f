//! The status of pools.

use alloc::{string::String, vec::Vec};
use core::fmt;

use ipnet::IpNet;

use crate::{AddressRange, Block, BlockProblem, Pool, PoolName, SelectorProblem, answer::refusal::AllReserved};

/// The status of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Name of the pool.
    pub name: PoolName,
    /// Why the pool is out of service, if it is. Holders keep their addresses, and no new ones are allocated.
    pub problem: Option<PoolProblem>,
    /// Settings that may not have the intended effect.
    pub warnings: Vec<PoolWarning>,
    /// Counts of the addresses of both families.
    pub counts: Counts,
    /// Counts of the IPv4 addresses. They may be used up in a pool that has any number of IPv6 addresses left.
    pub ipv4: Counts,
    /// Counts of the IPv6 addresses.
    pub ipv6: Counts,
}

/// Counts of the addresses of a pool by state.
///
/// `total = used + free + quarantined + draining + conflict`, and `reserved` is not part of the total. A pool of all
/// IPv6 addresses is counted one too low, because 128 bits cannot hold its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Addresses that services can hold, including those that they hold.
    pub total: u128,
    /// Held by services; a shared address counts once.
    pub used: u128,
    /// Allocatable at once.
    pub free: u128,
    /// Released a short time ago; allocatable when the pool is otherwise full.
    pub quarantined: u128,
    /// Left by a living service a short time ago; not allocatable.
    pub draining: u128,
    /// Something else on the network answers for them; not allocatable.
    pub conflict: u128,
    /// Addresses of the blocks that are never allocated.
    pub reserved: u128,
    /// Addresses that a service can get: `free` and `quarantined` together, or none if the pool is disabled or out of
    /// service.
    pub available: u128,
}

impl Counts {
    /// The counts of two disjoint sets of addresses together.
    pub(crate) fn with(&self, other: &Self) -> Self {
        let (used, conflict) = (self.used + other.used, self.conflict + other.conflict);
        let (quarantined, draining) = (self.quarantined + other.quarantined, self.draining + other.draining);
        let total = self.total.saturating_add(other.total);
        let free = total.saturating_sub(used + conflict + quarantined + draining);
        Self {
            total,
            used,
            free,
            quarantined,
            draining,
            conflict,
            reserved: self.reserved.saturating_add(other.reserved),
            available: self.available.saturating_add(other.available),
        }
    }
}

/// Why a pool is out of service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolProblem {
    /// Some blocks are invalid.
    #[error("{}", BlockList(wrong, *more))]
    Blocks {
        /// The first of them, at least one and at most [`MAX_NAMED`](Self::MAX_NAMED), and what is wrong with each.
        wrong: Vec<(Block, BlockProblem)>,
        /// How many others there are.
        more: usize,
    },
    /// Its source refused it: [`Pool::refused`].
    #[error("{0}")]
    Refused(String),
    /// The selector is wrong.
    #[error("selector: {0}")]
    Selector(SelectorProblem),
    /// There are too many blocks.
    #[error("has {found} blocks, and at most {max} are read; split it", max = Pool::MAX_BLOCKS)]
    TooManyBlocks {
        /// How many.
        found: usize,
    },
    /// It overlaps an older pool, or itself.
    #[error("{0}")]
    Conflict(Conflict),
}

impl PoolProblem {
    /// Most blocks that one problem names.
    pub const MAX_NAMED: usize = 3;

    /// `cidr_overlap` for a conflict, as Cilium's condition `cilium.io/PoolConflict` has it, and `invalid` otherwise.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Conflict(_) => "cidr_overlap",
            Self::Blocks { .. } | Self::Refused(_) | Self::Selector(_) | Self::TooManyBlocks { .. } => "invalid",
        }
    }
}

/// A sentence about blocks, and how many more there are.
struct BlockList<'a>(&'a [(Block, BlockProblem)], usize);

impl fmt::Display for BlockList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (block, problem)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "; " };
            write!(f, "{comma}block `{block}` {problem}")?;
        }
        match self.1 {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Two blocks that have an address in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The block that puts its pool out of service.
    pub block: AddressRange,
    /// The block that it overlaps.
    pub with: AddressRange,
    /// The pool of that block: the older one, or the same one.
    pub pool: PoolName,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block, with, pool } = self;
        write!(f, "range {block} overlaps range {with} of pool `{pool}`; remove one of them")
    }
}

/// A setting that may not have the intended effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolWarning {
    /// A network is written with host bits.
    #[error("block {block} has host bits set and is taken for {network}; write that, or a range")]
    HostBits {
        /// As it is written.
        block: Block,
        /// As it is taken.
        network: IpNet,
    },
    /// There is no block at all.
    #[error("has no block and gives nothing; add one")]
    NoBlocks,
    /// Every address is reserved or avoided.
    #[error("has no address to give: {}: {by}; choose another block", AllReserved(*total))]
    NothingUsable {
        /// How many addresses its blocks have.
        total: u128,
        /// Why they are not assigned.
        by: String,
    },
    /// The quota is zero.
    #[error("has a namespace quota of 0 and gives nothing; raise it, or disable the pool")]
    QuotaZero,
    /// The pool cannot be read, and services have addresses that are in no pool.
    #[error(
        "until it is corrected, services keep their addresses that are in no pool, which may be in this one: {addresses}"
    )]
    KeepsOthers {
        /// How many addresses services keep for its sake.
        addresses: usize,
    },
    /// Some of its addresses belong to nodes, pods or somebody else.
    #[error("has addresses that are never assigned: {}; take them out of its blocks", Covered(covered, *more))]
    Covers {
        /// The first of them, at least one and at most [`MAX_NAMED`](Self::MAX_NAMED), and whose they are.
        covered: Vec<(AddressRange, String)>,
        /// How many other ranges there are.
        more: usize,
    },
    /// An entry of the list of avoided addresses is wrong and avoids nothing.
    #[error("avoided block `{block}` {problem}")]
    Avoid {
        /// The entry.
        block: Block,
        /// Its error.
        problem: BlockProblem,
    },
}

impl PoolWarning {
    /// Most addresses or ranges that one warning names.
    pub const MAX_NAMED: usize = 3;
}

/// Addresses that nobody gets, each with the reason, and how many more there are.
pub(crate) struct Covered<'a>(pub(crate) &'a [(AddressRange, String)], pub(crate) usize);

impl fmt::Display for Covered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (range, why)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{range} ({why})")?;
        }
        match self.1 {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
