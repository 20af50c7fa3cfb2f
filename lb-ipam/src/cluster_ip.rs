//! Cluster addresses.

use alloc::{collections::BTreeMap, vec::Vec};
use core::net::IpAddr;

use ipnet::IpNet;
use lb_core::{addr::Family, name::ServiceName};

use crate::{
    AddressRange,
    range::{address, bands::Bands, family_name, intervals::Intervals, number, slot},
};

/// Allocates cluster addresses from service CIDRs, as Kubernetes does. Network addresses and IPv4 broadcast addresses
/// are never allocated. The first part of each CIDR is kept for services that ask for an address by name, until the
/// rest is taken (KEP-3070). CIDRs may overlap. Memory grows with what is allocated.
///
/// At a restart, pass every address that a service holds to [`allocate_at`](Self::allocate_at) before anything is
/// allocated.
#[derive(Clone, Debug, Default)]
pub struct ClusterIpAllocator {
    cidrs: Vec<Cidr>,
    held: BTreeMap<IpAddr, ServiceName>,
    taken: [Intervals; 2],
}

#[derive(Clone, Debug)]
struct Cidr {
    net: IpNet,
    /// `None` if it is too small to have an address.
    bands: Option<Bands>,
    closed: bool,
}

impl ClusterIpAllocator {
    /// Shortest prefix of an IPv6 CIDR, the bound that Kubernetes sets.
    pub const MIN_PREFIX_V6: u8 = 64;
    /// Smallest number of addresses that are kept for services that ask by name, in a CIDR of more than this many.
    pub const MIN_KEPT: u128 = 16;
    /// Largest number of addresses that are kept.
    pub const MAX_KEPT: u128 = 256;

    /// An allocator without CIDRs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a CIDR, or opens it again.
    ///
    /// # Errors
    /// When an IPv6 CIDR is larger than a /64.
    pub fn add_cidr(&mut self, net: IpNet) -> Result<(), ClusterIpError> {
        let net = net.trunc();
        if matches!(net, IpNet::V6(_)) && net.prefix_len() < Self::MIN_PREFIX_V6 {
            return Err(ClusterIpError::PrefixTooShort { net });
        }
        match self.cidrs.iter_mut().find(|cidr| cidr.net == net) {
            Some(cidr) => cidr.closed = false,
            None => self.cidrs.push(Cidr { net, bands: bands(net), closed: false }),
        }
        Ok(())
    }

    /// Closes a CIDR: none of its addresses is allocated any more.
    pub fn close_cidr(&mut self, net: IpNet) {
        if let Some(cidr) = self.cidrs.iter_mut().find(|cidr| cidr.net == net.trunc()) {
            cidr.closed = true;
        }
    }

    /// Removes a CIDR.
    ///
    /// # Errors
    /// When a service has an address of it that is in no other CIDR.
    pub fn remove_cidr(&mut self, net: IpNet) -> Result<(), ClusterIpError> {
        let net = net.trunc();
        let others = |address: &IpAddr| self.cidrs.iter().any(|cidr| cidr.net != net && cidr.net.contains(address));
        let range = AddressRange::of_net(net);
        let mut inside = self.held.range(range.first()..=range.last());
        if let Some((address, holder)) = inside.find(|(address, _)| !others(address)) {
            return Err(ClusterIpError::CidrInUse { net, address: *address, holder: holder.clone() });
        }
        self.cidrs.retain(|cidr| cidr.net != net);
        Ok(())
    }

    /// Allocates an address of the family to the service: the next one behind the last allocation, in the first CIDR
    /// that has one.
    ///
    /// # Errors
    /// When no address is left.
    pub fn allocate(&mut self, service: &ServiceName, family: Family) -> Result<IpAddr, ClusterIpError> {
        let taken = &self.taken[slot(family)];
        let mut ready =
            self.cidrs.iter_mut().filter(|cidr| !cidr.closed && Family::of(cidr.net.addr()) == family).peekable();
        if ready.peek().is_none() {
            return Err(ClusterIpError::NotReady { family });
        }
        let given = ready.filter_map(|cidr| cidr.bands.as_mut()).find_map(|bands| {
            let number = bands.next(taken)?;
            bands.note_allocated(number);
            Some(address(family, number))
        });
        let address = given.ok_or(ClusterIpError::Full { family })?;
        self.take(address, service);
        Ok(address)
    }

    /// Allocates this address to the service. It is not an error if the service holds it already.
    ///
    /// # Errors
    /// When another service holds it, or when it cannot be allocated.
    pub fn allocate_at(&mut self, service: &ServiceName, address: IpAddr) -> Result<(), ClusterIpError> {
        match self.held.get(&address) {
            Some(holder) if holder == service => return Ok(()),
            Some(holder) => return Err(ClusterIpError::AlreadyAllocated { address, holder: holder.clone() }),
            None => {}
        }
        let gives = |cidr: &Cidr| {
            let usable = cidr.bands.as_ref().is_some_and(|bands| bands.contains(number(address)));
            !cidr.closed && cidr.net.contains(&address) && usable
        };
        if !self.cidrs.iter().any(gives) {
            return Err(ClusterIpError::NotInRange { address });
        }
        self.take(address, service);
        Ok(())
    }

    /// Releases the address. Returns `false`, without effect, if the service does not hold it.
    pub fn release(&mut self, service: &ServiceName, address: IpAddr) -> bool {
        if self.held.get(&address) != Some(service) {
            return false;
        }
        self.held.remove(&address);
        self.taken[slot(Family::of(address))].remove(number(address))
    }

    /// The holder of the address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&ServiceName> {
        self.held.get(&address)
    }

    /// Every address that is held, in order.
    pub fn held(&self) -> impl Iterator<Item = (IpAddr, &ServiceName)> {
        self.held.iter().map(|(address, holder)| (*address, holder))
    }

    fn take(&mut self, address: IpAddr, service: &ServiceName) {
        self.taken[slot(Family::of(address))].insert(number(address));
        self.held.insert(address, service.clone());
    }
}

/// The allocatable addresses of a CIDR. Of all its addresses a sixteenth is kept, at least 16 and at most 256; of one
/// with 16 or fewer, none.
fn bands(net: IpNet) -> Option<Bands> {
    let (first, last) = AddressRange::of_net(net).bounds();
    let size = (last - first).saturating_add(1);
    let most = ClusterIpAllocator::MAX_KEPT;
    let least = ClusterIpAllocator::MIN_KEPT;
    let kept = if size <= least { 0 } else { (size / 16).clamp(least, most) };
    let last = if net.addr().is_ipv4() { last.checked_sub(1)? } else { last };
    Bands::new(first.checked_add(1)?, last, kept)
}

/// Why there is no cluster address. The first words are those of Kubernetes, which its users match on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterIpError {
    /// Every address is taken.
    #[error("range is full: no {} address is left; add a service CIDR", family_name(*family))]
    Full {
        /// Of this family.
        family: Family,
    },
    /// There is no open CIDR.
    #[error("allocator not ready: there is no open service CIDR for {}; add one", family_name(*family))]
    NotReady {
        /// Of this family.
        family: Family,
    },
    /// Another service has it.
    #[error("provided IP is already allocated: service {holder} has {address}; ask for another one")]
    AlreadyAllocated {
        /// The address.
        address: IpAddr,
        /// Its holder.
        holder: ServiceName,
    },
    /// It is in no open CIDR, or is a network or broadcast address.
    #[error("provided IP {address} is not in the valid range: no open service CIDR can give it out")]
    NotInRange {
        /// The address.
        address: IpAddr,
    },
    /// The CIDR is too large.
    #[error(
        "shortest allowed prefix length for service CIDR is {shortest}, got {} in {net}", net.prefix_len(),
        shortest = ClusterIpAllocator::MIN_PREFIX_V6
    )]
    PrefixTooShort {
        /// The CIDR.
        net: IpNet,
    },
    /// A service has an address of it.
    #[error("service CIDR {net} is in use: service {holder} has {address}; remove the service, or close the CIDR")]
    CidrInUse {
        /// The CIDR.
        net: IpNet,
        /// An address.
        address: IpAddr,
        /// Its holder.
        holder: ServiceName,
    },
}
