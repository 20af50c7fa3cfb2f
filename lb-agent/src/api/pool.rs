//! Pools of addresses as the agent lists them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{AddressState, Condition};

/// One pool: an element of `/v1/pools`, in the order in which pools are asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its blocks: networks, ranges `first-last`, single addresses.
    pub blocks: Vec<String>,
    /// Which services it is for, as label selectors: one of them has to match. None: all services.
    pub selectors: Vec<String>,
    /// Whether it gives nothing new.
    pub disabled: bool,
    /// Whether it overlaps an older pool, or itself, and gives nothing new for that.
    pub conflicting: bool,
    /// Whether services that ask for nothing particular get addresses from it.
    pub auto_assign: bool,
    /// Pools with a lower number are asked first, those without one last.
    pub priority: Option<u32>,
    /// Whether the first and last address of a network are given.
    pub allow_first_last: bool,
    /// How many addresses the services of one namespace may hold together.
    pub namespace_quota: Option<u64>,
    /// Seconds that an address rests after it was given back.
    pub quarantine_s: u64,
    /// When it was made, in seconds since 1970; if its manifest does not say so, when it was seen first.
    pub created_s: u64,
    /// How many addresses are what.
    pub counts: PoolCounts,
    /// The same of its IPv4 addresses.
    pub ipv4: PoolCounts,
    /// The same of its IPv6 addresses.
    pub ipv6: PoolCounts,
    /// `PoolConflict`, `PoolInvalid`: it is out of service; who holds an address keeps it. `PoolWarning`: something may be
    /// other than meant. `Refused`: its newest manifest was not taken over.
    pub conditions: Vec<Condition>,
}

/// How many addresses of a pool are what: `total = used + free + quarantined + draining + conflict`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCounts {
    /// Addresses that services can have.
    pub total: u128,
    /// Held by services.
    pub used: u128,
    /// To be had: `free` and `quarantined` together.
    pub available: u128,
    /// To be had at once.
    pub free: u128,
    /// Given back a short time ago, to be had when the pool is otherwise full.
    pub quarantined: u128,
    /// Left by a living service a short time ago, not to be had.
    pub draining: u128,
    /// In use by something else.
    pub conflict: u128,
    /// Addresses of its blocks that nobody gets, beside the total.
    pub reserved: u128,
}

/// One pool and its addresses: the answer of `/v1/pools/get`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDetail {
    /// The pool.
    pub pool: Pool,
    /// Its addresses that are not simply free, in order.
    pub addresses: Vec<PoolAddress>,
}

/// What an address is: the answer of `/v1/pools/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddress {
    /// The address.
    pub address: IpAddr,
    /// Pools that have it; the first is the one whose it is.
    pub pools: Vec<String>,
    /// What it is.
    pub state: AddressState,
    /// Services that hold it, or the one that held it last.
    pub services: Vec<String>,
    /// When its state ends by itself, in milliseconds since 1970, if it does.
    pub until_ms: Option<u64>,
    /// A sentence that says all of it.
    pub message: String,
}

/// What an edit would do: the answer of `/v1/pools/plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolPlan {
    /// Services whose addresses would change, and those of the manifests that would be refused something, in order of name.
    pub moves: Vec<PoolMove>,
    /// How pools would be doing, in the order in which they would be asked.
    pub pools: Vec<Pool>,
    /// What of the manifests would not be taken over, and why.
    pub refused: Vec<String>,
    /// What of them would not be carried out.
    pub unsupported: Vec<String>,
}

/// A service whose addresses would change, or that would be refused something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMove {
    /// `namespace/name`.
    pub service: String,
    /// Its addresses now.
    pub before: Vec<IpAddr>,
    /// Its addresses then.
    pub after: Vec<IpAddr>,
    /// What it would be refused.
    pub refused: Vec<String>,
}

impl PoolMove {
    /// Whether it would lose an address that it has.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        self.before.iter().any(|address| !self.after.contains(address))
    }
}
