//! Pools of addresses as the agent lists them.

use std::{fmt, net::IpAddr};

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
    /// What services can get: `free` and `quarantined` together, or 0 if the pool is disabled or out of service.
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
    /// Addresses of the pool that are somebody else's, so that no service gets them, in order.
    #[serde(default)]
    pub reserved: Vec<PoolReservation>,
}

/// Addresses of a pool that are somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReservation {
    /// The first of them.
    pub first: IpAddr,
    /// The last of them.
    pub last: IpAddr,
    /// Whose they are.
    pub why: String,
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

/// The state in a sentence, when it ends, and the other pools.
impl fmt::Display for PoolAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let until = self.until_ms.and_then(|ms| jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok());
        if let Some(until) = until {
            write!(f, "; until {until}")?;
        }
        match &*self.pools {
            [_, others @ ..] if !others.is_empty() => write!(f, "; also in pool {}", others.join(", ")),
            _ => Ok(()),
        }
    }
}

/// Effects of an edit that is not made: the answer of `/v1/pools/plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolPlan {
    /// Services whose addresses would change, and those of the manifests that would be refused something, in order of
    /// name.
    pub moves: Vec<PoolMove>,
    /// Pools after the edit, in the order in which the allocator would try them.
    pub pools: Vec<Pool>,
    /// Objects of the manifests that would be refused, documents that are no objects, and why.
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

/// The service, its addresses before and after the edit, and what would be refused.
impl fmt::Display for PoolMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = [&self.before, &self.after].map(|ips| listed(ips));
        write!(f, "{}: {before} -> {after}", self.service)?;
        self.refused.iter().try_for_each(|refusal| write!(f, "; {refusal}"))
    }
}

fn listed(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() { "nothing".into() } else { addresses.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_a_sentence() {
        let mut address = PoolAddress {
            address: "192.0.2.1".parse().unwrap(),
            pools: vec!["a".into()],
            state: AddressState::Held,
            services: vec!["default/web".into()],
            until_ms: None,
            message: "192.0.2.1 of pool `a`: held by default/web".into(),
        };
        assert_eq!(address.to_string(), address.message);
        (address.pools, address.until_ms) = (vec!["a".into(), "b".into(), "c".into()], Some(1_700_000_000_000));
        let expected = "192.0.2.1 of pool `a`: held by default/web; until 2023-11-14T22:13:20Z; also in pool b, c";
        assert_eq!(address.to_string(), expected);
        address.until_ms = Some(u64::MAX);
        assert!(!address.to_string().contains("until"), "{address}");
    }

    #[test]
    fn a_move_reads_as_a_sentence() {
        let before = vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let refused = vec!["no IPv4 address: there is no pool; create one".into()];
        let moved = PoolMove { service: "default/web".into(), before, after: Vec::new(), refused };
        let expected = "default/web: 192.0.2.1, 192.0.2.2 -> nothing; no IPv4 address: there is no pool; create one";
        assert_eq!(moved.to_string(), expected);
    }
}
