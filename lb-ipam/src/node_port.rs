//! Node ports.

use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::RangeInclusive;

use lb_core::{addr::Protocol, name::ServiceName};

use crate::range::{bands::Bands, intervals::Intervals};

/// Allocates node ports and health-check node ports from one range, as Kubernetes does. A number belongs to one
/// service, which may use it once for each protocol. The first part of the range is kept for services that ask by
/// number, until the rest is taken (KEP-3668). Memory grows with what is allocated.
///
/// At a restart, pass every port that a service holds to [`allocate_at`](Self::allocate_at) before anything is
/// allocated.
#[derive(Clone, Debug)]
pub struct NodePortAllocator {
    bands: Bands,
    held: BTreeMap<u16, (ServiceName, BTreeSet<PortUse>)>,
    taken: Intervals,
}

/// The purpose for which a service uses a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortUse {
    /// A port of the service with this protocol.
    Port(Protocol),
    /// The health check of external traffic policy Local, which is TCP.
    HealthCheck,
}

impl PortUse {
    const fn protocol(self) -> Protocol {
        match self {
            Self::Port(protocol) => protocol,
            Self::HealthCheck => Protocol::Tcp,
        }
    }
}

impl NodePortAllocator {
    /// Kubernetes' range.
    pub const DEFAULT_RANGE: RangeInclusive<u16> = 30_000..=32_767;
    /// Smallest number of ports that are kept for services that ask by number, in a range of at least this many.
    pub const MIN_KEPT: u16 = 16;
    /// Largest number of ports that are kept.
    pub const MAX_KEPT: u16 = 128;

    /// An allocator of the ports of `range`, of which a thirty-second is kept, at least 16 and at most 128; of a range
    /// of fewer than 16, none.
    ///
    /// # Errors
    /// When the range is empty or starts with port 0.
    pub fn new(range: RangeInclusive<u16>) -> Result<Self, NodePortError> {
        let (first, last) = range.into_inner();
        let invalid = NodePortError::BadRange { first, last };
        let size = last.checked_sub(first).filter(|_| first > 0).ok_or(invalid.clone())?.saturating_add(1);
        let kept = if size < Self::MIN_KEPT { 0 } else { (size / 32).clamp(Self::MIN_KEPT, Self::MAX_KEPT) };
        let bands = Bands::new(first.into(), last.into(), kept.into()).ok_or(invalid)?;
        Ok(Self { bands, held: BTreeMap::new(), taken: Intervals::default() })
    }

    /// Allocates a port to the service: the next one behind the last allocation.
    ///
    /// # Errors
    /// When all are taken.
    pub fn allocate(&mut self, service: &ServiceName, usage: PortUse) -> Result<u16, NodePortError> {
        let next = self.bands.next(&self.taken).and_then(|number| u16::try_from(number).ok());
        let port = next.ok_or(NodePortError::Full)?;
        self.bands.note_allocated(port.into());
        self.take(service, usage, port);
        Ok(port)
    }

    /// Allocates this port to the service.
    ///
    /// # Errors
    /// When another service has it, or this one for the same protocol, or when it is outside the range.
    pub fn allocate_at(&mut self, service: &ServiceName, usage: PortUse, port: u16) -> Result<(), NodePortError> {
        if !self.bands.contains(port.into()) {
            let [first, last] = [self.bands.first, self.bands.last].map(|end| u16::try_from(end).unwrap_or(u16::MAX));
            return Err(NodePortError::NotInRange { port, first, last });
        }
        if let Some((holder, uses)) = self.held.get(&port) {
            let clash = uses.iter().any(|used| used.protocol() == usage.protocol());
            if holder != service || clash {
                let (holder, protocol) = (holder.clone(), usage.protocol());
                return Err(NodePortError::AlreadyAllocated { port, protocol, holder });
            }
        }
        self.take(service, usage, port);
        Ok(())
    }

    /// Releases the port. Returns `false`, without effect, if the service does not use it for this purpose.
    pub fn release(&mut self, service: &ServiceName, usage: PortUse, port: u16) -> bool {
        let Some((holder, uses)) = self.held.get_mut(&port) else { return false };
        if holder != service || !uses.remove(&usage) {
            return false;
        }
        if uses.is_empty() {
            self.held.remove(&port);
            self.taken.remove(port.into());
        }
        true
    }

    /// The holder of the port.
    #[must_use]
    pub fn holder(&self, port: u16) -> Option<&ServiceName> {
        self.held.get(&port).map(|(holder, _)| holder)
    }

    /// Every port that is held, in order, with its uses.
    pub fn held(&self) -> impl Iterator<Item = (u16, &ServiceName, &BTreeSet<PortUse>)> {
        self.held.iter().map(|(port, (holder, uses))| (*port, holder, uses))
    }

    fn take(&mut self, service: &ServiceName, usage: PortUse, port: u16) {
        self.taken.insert(port.into());
        self.held.entry(port).or_insert_with(|| (service.clone(), BTreeSet::new())).1.insert(usage);
    }
}

/// Why there is no node port. The first words are those of Kubernetes, which its users match on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodePortError {
    /// Every port is taken.
    #[error("range is full: no node port is left; widen the range or remove a service")]
    Full,
    /// Somebody has it.
    #[error("provided port is already allocated: service {holder} has {port}/{protocol}; ask for another one")]
    AlreadyAllocated {
        /// The port.
        port: u16,
        /// The protocol that was asked for.
        protocol: Protocol,
        /// Its holder.
        holder: ServiceName,
    },
    /// It is outside the range.
    #[error("provided port is not in the valid range. The range of valid ports is {first}-{last}")]
    NotInRange {
        /// The port.
        port: u16,
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// The range cannot be used.
    #[error("{first}-{last} is no range of ports; write the lower one first, and at least 1")]
    BadRange {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
}
