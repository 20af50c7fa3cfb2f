//! Rules that hold for all pools.

use alloc::{collections::BTreeSet, string::String, vec::Vec};
use core::time::Duration;

use lb_core::addr::Family;

use crate::AddressRange;

/// Rules of an [`Allocator`](crate::Allocator).
///
/// ```
/// use core::time::Duration;
/// use lb_ipam::{Family, Settings};
///
/// let settings = Settings::default().with_families([Family::V4]).with_sticky(Duration::from_secs(60));
/// assert!(settings.enables(Family::V4) && !settings.enables(Family::V6));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Whether the cluster has IPv4. Default: yes.
    pub ipv4: bool,
    /// Whether the cluster has IPv6. Default: yes.
    pub ipv6: bool,
    /// Classes of the services that are served.
    pub classes: Classes,
    /// Addresses that are never allocated, such as those of nodes, gateways, pods and cluster services. A service that
    /// holds one moves. Default: none.
    pub reserved: Vec<Reservation>,
    /// How long a service is remembered that went away or had to leave an address. Until then it gets the address back
    /// if no other service needed it. Default: [`DEFAULT_STICKY`](Self::DEFAULT_STICKY).
    pub sticky: Duration,
    /// Whether TCP 53 and UDP 53 of two services may share an address: whether datapaths tell protocols apart. Default:
    /// yes.
    pub protocols_differ: bool,
    /// What happens to services that may no longer share the address that they hold.
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

    /// The same for a cluster that has these families and no others.
    #[must_use]
    pub fn with_families(mut self, families: impl IntoIterator<Item = Family>) -> Self {
        (self.ipv4, self.ipv6) = (false, false);
        for family in families {
            match family {
                Family::V4 => self.ipv4 = true,
                Family::V6 => self.ipv6 = true,
            }
        }
        self
    }

    /// The same with these addresses [reserved](Self::reserved).
    #[must_use]
    pub fn with_reserved(mut self, reserved: impl IntoIterator<Item = Reservation>) -> Self {
        self.reserved = reserved.into_iter().collect();
        self
    }

    /// The same for services of these [`classes`](Self::classes).
    #[must_use]
    pub fn with_classes(mut self, classes: Classes) -> Self {
        self.classes = classes;
        self
    }

    /// The same with another [`sticky`](Self::sticky) time.
    #[must_use]
    pub const fn with_sticky(mut self, sticky: Duration) -> Self {
        self.sticky = sticky;
        self
    }

    /// The same with datapaths that [tell protocols apart](Self::protocols_differ), or not.
    #[must_use]
    pub const fn with_protocols_differ(mut self, differ: bool) -> Self {
        self.protocols_differ = differ;
        self
    }

    /// The same with another rule for [services that no longer may share](Self::when_sharing_breaks).
    #[must_use]
    pub const fn with_when_sharing_breaks(mut self, rule: WhenSharingBreaks) -> Self {
        self.when_sharing_breaks = rule;
        self
    }

    /// The same with or without [`one_address_per_family`](Self::one_address_per_family).
    #[must_use]
    pub const fn with_one_address_per_family(mut self, only_one: bool) -> Self {
        self.one_address_per_family = only_one;
        self
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

/// The load-balancer classes that are served. Services of other classes are not touched.
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

/// Addresses that are used for something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Which.
    pub range: AddressRange,
    /// Their use, in words that complete "reserved: ".
    pub why: String,
}

/// What becomes of services that may no longer share the address that they hold, because a key, port or policy changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenSharingBreaks {
    /// Those that joined the address later get another one; the owner, who held it first, stays.
    #[default]
    Move,
    /// All of them stay, and their statuses say so.
    Keep,
}
