//! The sets and maps of the table, and the keys and values of their elements.

use crate::nftables::table::choice::Choice;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_core::addr::{Family, FrontendAddr, Scope};

/// Version of the layout. A table with another one is replaced as a whole, in one batch.
pub(crate) const VERSION: u32 = 5;

/// IPv4 and IPv6, for objects that exist once per family.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Set {
    /// Frontend to [`Choice`], as a number. Were the values verdicts, the kernel would walk all of them whenever one
    /// changes ([`nft_table_validate`]).
    ///
    /// Those of scope internal are asked first, for traffic that does not come in through an uplink.
    ///
    /// [`nft_table_validate`]: https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_tables_api.c
    Frontends(Scope, Family),
    /// [`Choice`] to the chain that carries it out.
    Picks(Family),
    /// Address of frontends to [`Choice`] on packets to its other ports, as a number.
    Addresses(Family),
    /// Frontend and slot to backend.
    Slots(Family),
    /// Frontend and first slot of a block to the backends of all its slots.
    Tables(Family),
    /// Client and frontend to backend; grows from the packet path.
    Affinity(Scope, Family),
    /// Sources that are not translated.
    Cluster(Family),
    /// Devices that lead out of the node.
    Uplinks,
    /// Frontends whose backends see clients that come in through an uplink as they are.
    KeptSources(Family),
    /// Frontends at which pods that come in through an uplink are translated.
    TranslatedPods(Family),
    /// Backends that can be their own clients, twice in one key.
    Hairpin(Family),
    /// Backends that answer over TCP.
    Backends(Family),
    /// Facts that no packet needs and a restart does: layout, generation, node.
    Notes,
}

impl Set {
    /// Every one, in the order in which they are made.
    pub(crate) const ALL: [Self; 28] = [
        Self::Notes,
        Self::Picks(Family::V4),
        Self::Picks(Family::V6),
        Self::Frontends(Scope::External, Family::V4),
        Self::Frontends(Scope::External, Family::V6),
        Self::Frontends(Scope::Internal, Family::V4),
        Self::Frontends(Scope::Internal, Family::V6),
        Self::Addresses(Family::V4),
        Self::Addresses(Family::V6),
        Self::Slots(Family::V4),
        Self::Slots(Family::V6),
        Self::Tables(Family::V4),
        Self::Tables(Family::V6),
        Self::Affinity(Scope::External, Family::V4),
        Self::Affinity(Scope::External, Family::V6),
        Self::Affinity(Scope::Internal, Family::V4),
        Self::Affinity(Scope::Internal, Family::V6),
        Self::Cluster(Family::V4),
        Self::Cluster(Family::V6),
        Self::Uplinks,
        Self::KeptSources(Family::V4),
        Self::KeptSources(Family::V6),
        Self::TranslatedPods(Family::V4),
        Self::TranslatedPods(Family::V6),
        Self::Hairpin(Family::V4),
        Self::Hairpin(Family::V6),
        Self::Backends(Family::V4),
        Self::Backends(Family::V6),
    ];

    /// The set with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    /// Its name in the table.
    pub(crate) const fn name(self) -> &'static str {
        use Family::{V4, V6};
        use Scope::{External, Internal};
        match self {
            Self::Frontends(External, V4) => "frontends4",
            Self::Frontends(External, V6) => "frontends6",
            Self::Frontends(Internal, V4) => "internal4",
            Self::Frontends(Internal, V6) => "internal6",
            Self::Picks(V4) => "picks4",
            Self::Picks(V6) => "picks6",
            Self::Addresses(V4) => "addresses4",
            Self::Addresses(V6) => "addresses6",
            Self::Slots(V4) => "slots4",
            Self::Slots(V6) => "slots6",
            Self::Affinity(External, V4) => "affinity4",
            Self::Affinity(External, V6) => "affinity6",
            Self::Affinity(Internal, V4) => "internal-affinity4",
            Self::Affinity(Internal, V6) => "internal-affinity6",
            Self::Cluster(V4) => "cluster4",
            Self::Cluster(V6) => "cluster6",
            Self::Uplinks => "uplinks",
            Self::KeptSources(V4) => "kept-sources4",
            Self::KeptSources(V6) => "kept-sources6",
            Self::TranslatedPods(V4) => "translated-pods4",
            Self::TranslatedPods(V6) => "translated-pods6",
            Self::Hairpin(V4) => "hairpin4",
            Self::Hairpin(V6) => "hairpin6",
            Self::Backends(V4) => "backends4",
            Self::Backends(V6) => "backends6",
            Self::Tables(V4) => "tables4",
            Self::Tables(V6) => "tables6",
            Self::Notes => "notes",
        }
    }
}

/// Key of an element, and with it the set that the element is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// In [`Set::Frontends`].
    Frontend(FrontendAddr),
    /// In [`Set::Picks`].
    Verdict(Family, Choice),
    /// In [`Set::Addresses`].
    Address(IpAddr),
    /// In [`Set::Slots`], where those of scope internal have the bit [`INTERNAL`].
    Slot(FrontendAddr, u32),
    /// In [`Set::Tables`]: the first slot of the block, a multiple of [`block`].
    Block(FrontendAddr, u32),
    /// In [`Set::Affinity`]: the client, masked, and the frontend.
    Record(IpAddr, FrontendAddr),
    /// In [`Set::Cluster`]: the first address of a range, or the first one behind it.
    Bound(IpAddr, Bound),
    /// In [`Set::Uplinks`].
    Uplink(Device),
    /// In [`Set::KeptSources`].
    KeptSource(FrontendAddr),
    /// In [`Set::TranslatedPods`].
    TranslatedPods(FrontendAddr),
    /// In [`Set::Hairpin`].
    Hairpin(IpAddr),
    /// In [`Set::Backends`].
    Backend(IpAddr, u16),
    /// In [`Set::Notes`].
    Note(Note, u32),
}

/// Name of a device, as the kernel compares it: `IFNAMSIZ` bytes, zeros behind the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Device(pub(crate) [u8; Self::LENGTH]);

impl Device {
    /// `IFNAMSIZ`.
    pub(crate) const LENGTH: usize = 16;

    /// The device with this name; `None` if no device can have it.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; Self::LENGTH];
        // The last byte is a zero.
        let fits = !name.is_empty() && name.len() < Self::LENGTH && !name.contains(['/', ':', '\0']);
        bytes.get_mut(..name.len()).filter(|_| fits)?.copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(Self::LENGTH);
        f.write_str(&String::from_utf8_lossy(&self.0[..end]))
    }
}

/// Which end of a range an element stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Bound {
    /// Inclusive.
    Start,
    /// Exclusive.
    End,
}

/// The subject of a note; the number and the comment of the element are its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Note {
    /// The number is the [`VERSION`].
    Layout = 1,
    /// The number changes with every batch.
    Generation = 2,
    /// The comment is the node's name.
    NodeName = 3,
    /// The comment is an address of the node; the number counts.
    NodeIp = 4,
    /// The comment is a prefix of pods; the number counts.
    ClusterCidr = 5,
}

impl Note {
    /// The note with this number.
    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Layout),
            2 => Some(Self::Generation),
            3 => Some(Self::NodeName),
            4 => Some(Self::NodeIp),
            5 => Some(Self::ClusterCidr),
            _ => None,
        }
    }
}

impl Key {
    /// The set that it belongs to.
    pub(crate) const fn set(&self) -> Set {
        match self {
            Self::Frontend(addr) => Set::Frontends(addr.scope, addr.family()),
            Self::Verdict(family, _) => Set::Picks(*family),
            Self::Address(ip) => Set::Addresses(Family::of(*ip)),
            Self::Slot(addr, _) => Set::Slots(addr.family()),
            Self::Block(addr, _) => Set::Tables(addr.family()),
            Self::Record(_, addr) => Set::Affinity(addr.scope, addr.family()),
            Self::Bound(ip, _) => Set::Cluster(Family::of(*ip)),
            Self::Uplink(_) => Set::Uplinks,
            Self::KeptSource(addr) => Set::KeptSources(addr.family()),
            Self::TranslatedPods(addr) => Set::TranslatedPods(addr.family()),
            Self::Hairpin(ip) => Set::Hairpin(Family::of(*ip)),
            Self::Backend(ip, _) => Set::Backends(Family::of(*ip)),
            Self::Note(..) => Set::Notes,
        }
    }
}

/// The same address in the other scope.
pub(crate) const fn twin(addr: FrontendAddr) -> FrontendAddr {
    let scope = match addr.scope {
        Scope::External => Scope::Internal,
        Scope::Internal => Scope::External,
    };
    FrontendAddr { scope, ..addr }
}

/// What is added to the number of a slot of scope internal: both scopes of an address are in one map.
pub(crate) const INTERNAL: u32 = 1 << 30;

/// Most slots of a frontend: numbers from here on say more than which slot it is.
pub(crate) const MAX_SLOTS: u32 = INTERNAL - 1;

/// What is added to the number of a slot of this scope.
pub(crate) const fn first_slot(scope: Scope) -> u32 {
    match scope {
        Scope::External => 0,
        Scope::Internal => INTERNAL,
    }
}

/// Where a backend listens.
pub(crate) type Endpoint = (IpAddr, u16);

/// Value of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// The set is not a map.
    None,
    /// Of [`Set::Frontends`] and [`Set::Addresses`], as a number, and of [`Set::Picks`], as a verdict.
    Choice(Choice),
    /// Of [`Set::Slots`] and [`Set::Affinity`].
    Backend(IpAddr, u16),
    /// Of [`Set::Tables`]: [`block`] backends; those behind the last slot are [`nowhere`].
    Backends(Box<[Endpoint]>),
}

/// Slots in one element of [`Set::Tables`]: a power of two, and as many as fit into the registers.
pub(crate) const fn block(family: Family) -> u32 {
    match family {
        Family::V4 => 8,
        Family::V6 => 2,
    }
}

/// The content of a block behind the last slot.
pub(crate) const fn nowhere(family: Family) -> Endpoint {
    match family {
        Family::V4 => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        Family::V6 => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    }
}

/// An element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// Key.
    pub(crate) key: Key,
    /// Value.
    pub(crate) value: Value,
    /// What `nft list` shows behind it, empty for nothing.
    pub(crate) comment: String,
}

impl Element {
    /// An element without a comment.
    pub(crate) const fn new(key: Key, value: Value) -> Self {
        Self { key, value, comment: String::new() }
    }

    /// The same with a comment.
    pub(crate) fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = comment.into();
        self
    }
}

/// Longest affinity time-out that nf_tables takes: the kernel turns milliseconds into nanoseconds in 64 bits
/// ([`nf_msecs_to_jiffies64`]).
///
/// [`nf_msecs_to_jiffies64`]: https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_tables_api.c
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(18_446_744_072);

/// A time-out as the kernel takes it, part of a millisecond counted as a whole one.
pub(crate) fn millis(timeout: Duration) -> u64 {
    let ms = timeout.min(MAX_TIMEOUT).as_nanos().div_ceil(1_000_000);
    u64::try_from(ms).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs_round_up_and_stay_in_range() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_secs(10)), 10_000);
        assert!(millis(Duration::MAX) < u64::MAX / 1_000_000);
    }
}
