//! The end of established flows.

use alloc::{collections::BTreeSet, vec::Vec};
use core::fmt;

use super::DatapathError;
use crate::addr::{BackendAddr, FrontendAddr};

/// Established flows that are to end: those of one frontend, except to some backends.
///
/// It names the backends that keep their flows and not those that lose them, since nobody may know those any more: they
/// left while no process ran, or before their service asked for a drain policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The frontend, by address, port and protocol. Flows of either scope are meant, whatever the scope here says.
    pub frontend: FrontendAddr,
    /// Backends whose flows stay. Flows to any other one end.
    pub keeps: BTreeSet<BackendAddr>,
}

/// The flows that [evictions](Eviction) ended.
#[derive(Debug, Default)]
pub struct Evicted {
    /// Sockets of this machine that were ended: they were connected to a backend itself.
    pub sockets: u64,
    /// Flows of packets that were ended.
    pub flows: u64,
    /// Flows that go on although they should end. They are not tried again.
    pub remaining: Vec<Remaining>,
}

/// Flows that could not be ended.
#[derive(Debug)]
pub struct Remaining {
    /// Their frontend.
    pub frontend: FrontendAddr,
    /// How many: at most, if the datapath cannot tell flows that are there from such as were.
    pub flows: u64,
    /// Why, and what would help.
    pub cause: DatapathError,
}

impl Evicted {
    /// Number of flows that could not be ended.
    #[must_use]
    pub fn count_remaining(&self) -> u64 {
        self.remaining.iter().map(|remaining| remaining.flows).sum()
    }
}

impl fmt::Display for Evicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended: sockets {}, flows of packets {}", self.sockets, self.flows)?;
        let Some(first) = self.remaining.first() else { return Ok(()) };
        let count = self.count_remaining();
        write!(f, "; going on: up to {count}, the first to {}: {}", first.frontend, first.cause.report())
    }
}
