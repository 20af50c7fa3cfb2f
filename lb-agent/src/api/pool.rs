//! Pools of addresses as the agent lists them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{AddressState, Condition};

/// One pool: an element of `/v1/pools`, in the order in which the allocator tries the pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Name of the pool.
    pub name: String,
    /// Blocks of addresses: networks, ranges `first-last`, single addresses.
    pub blocks: Vec<String>,
    /// Label selectors of the services that the pool is for: one of them has to match. Without any it is for all
    /// services.
    pub selectors: Vec<String>,
    /// Whether it assigns no more addresses.
    pub disabled: bool,
    /// Whether it overlaps an older pool, or itself, and therefore assigns no more addresses.
    pub conflicting: bool,
    /// Whether services that ask for nothing particular get addresses from it.
    pub auto_assign: bool,
    /// The allocator tries pools with a lower number first, those without one last.
    pub priority: Option<u32>,
    /// Whether services can get the first and the last address of a network.
    pub allow_first_last: bool,
    /// How many addresses the services of one namespace may hold together.
    pub namespace_quota: Option<u64>,
    /// Seconds for which an address is quarantined after a service released it.
    pub quarantine_s: u64,
    /// When the pool was created, in seconds since 1970. Without that in its manifest: when the agent saw it first.
    pub created_s: u64,
    /// Addresses by state.
    pub counts: PoolCounts,
    /// IPv4 addresses by state.
    pub ipv4: PoolCounts,
    /// IPv6 addresses by state.
    pub ipv6: PoolCounts,
    /// `PoolConflict`, `PoolInvalid`: the pool is out of service; holders keep their addresses. `PoolWarning`:
    /// something about it may be a mistake. `Refused`: its newest manifest was refused.
    pub conditions: Vec<Condition>,
}

/// Addresses of a pool by state: `total = used + free + quarantined + draining + conflict`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCounts {
    /// Addresses that services can have.
    pub total: u128,
    /// Held by services.
    pub used: u128,
    /// `free` and `quarantined` together.
    pub available: u128,
    /// A service can get them at once.
    pub free: u128,
    /// Released a short time ago; a service can get them when the pool is otherwise full.
    pub quarantined: u128,
    /// Left by a living service a short time ago; no other service can get them yet.
    pub draining: u128,
    /// Used by something else.
    pub conflict: u128,
    /// Addresses of its blocks that no service can get. They do not count for `total`.
    pub reserved: u128,
}

/// One pool and its addresses: the answer of `/v1/pools/get`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDetail {
    /// The pool.
    pub pool: Pool,
    /// Addresses of the pool that are not free, in order.
    pub addresses: Vec<PoolAddress>,
}

/// State of an address: the answer of `/v1/pools/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddress {
    /// The address.
    pub address: IpAddr,
    /// Pools whose blocks contain it; the first one assigns it.
    pub pools: Vec<String>,
    /// State of the address.
    pub state: AddressState,
    /// Services that hold it, or the one that held it last.
    pub services: Vec<String>,
    /// When its state ends by itself, in milliseconds since 1970, if it does.
    pub until_ms: Option<u64>,
    /// The same in a sentence.
    pub message: String,
}

/// Effects of an edit that is not made: the answer of `/v1/pools/plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolPlan {
    /// Services whose addresses would change, and those of the manifests that would be refused something, in order of
    /// name.
    pub moves: Vec<PoolMove>,
    /// Pools after the edit, in the order in which the allocator would try them.
    pub pools: Vec<Pool>,
    /// Objects of the manifests that would be refused, and why.
    pub refused: Vec<String>,
    /// Fields of the manifests that would have no effect.
    pub unsupported: Vec<String>,
}

/// A service whose addresses would change, or that would be refused something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMove {
    /// `namespace/name`.
    pub service: String,
    /// Addresses before the edit.
    pub before: Vec<IpAddr>,
    /// Addresses after the edit.
    pub after: Vec<IpAddr>,
    /// Requests that would be refused, and why.
    pub refused: Vec<String>,
}

impl PoolMove {
    /// Whether it would lose an address that it has.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        self.before.iter().any(|address| !self.after.contains(address))
    }
}
