//! What holds for all pools.

use alloc::{collections::BTreeSet, string::String, vec::Vec};
use core::time::Duration;

use lb_core::Family;

use crate::AddressRange;

/// Rules of an [`Allocator`](crate::Allocator).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether the cluster has IPv4. Default: yes.
    pub ipv4: bool,
    /// Whether the cluster has IPv6. Default: yes.
    pub ipv6: bool,
    /// Which services are ours.
    pub classes: Classes,
    /// Addresses that no service ever gets, such as those of nodes, gateways, pods and cluster services; a service that
    /// holds one moves. Default: none.
    pub reserved: Vec<Reservation>,
    /// How long a service that went away, or had to leave an address, gets it back if nobody else needed it. Default:
    /// [`DEFAULT_STICKY`](Self::DEFAULT_STICKY).
    pub sticky: Duration,
    /// Whether TCP 53 and UDP 53 of two services may share an address: whether datapaths tell protocols apart. Default:
    /// yes.
    pub protocols_differ: bool,
    /// What becomes of a service that no longer gets along with those it shares an address with.
    pub when_sharing_breaks: WhenSharingBreaks,
    /// Refuses every wanted address but the first of each family. Default: no.
    pub one_address_per_family: bool,
}

impl Settings {
    /// How long a service is remembered by default.
    pub const DEFAULT_STICKY: Duration = Duration::from_secs(3600);

    /// Whether the cluster has `family`.
    #[must_use]
    pub const fn enables(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ipv4: true,
            ipv6: true,
            classes: Classes::default(),
            reserved: Vec::new(),
            sticky: Self::DEFAULT_STICKY,
            protocols_differ: true,
            when_sharing_breaks: WhenSharingBreaks::default(),
            one_address_per_family: false,
        }
    }
}

/// Which load-balancer classes are served. Services of others are left alone altogether.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Whether services without a class are. Default: yes.
    pub unset: bool,
    /// Classes that are. Default: none.
    pub named: BTreeSet<String>,
}

impl Classes {
    /// Whether services of `class` are served.
    #[must_use]
    pub fn include(&self, class: Option<&str>) -> bool {
        class.map_or(self.unset, |class| self.named.contains(class))
    }
}

impl Default for Classes {
    fn default() -> Self {
        Self { unset: true, named: BTreeSet::new() }
    }
}

/// Addresses that belong to somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Which.
    pub range: AddressRange,
    /// Whose, in words that complete "is reserved: ".
    pub why: String,
}

/// What becomes of a service whose key, ports or policy changed so that it no longer may share the address it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenSharingBreaks {
    /// It gets another address; the others stay.
    #[default]
    Move,
    /// It stays and is told so.
    Keep,
}
