//! Requests of services for addresses.

pub(crate) mod families;
mod sharing;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::{fmt, net::IpAddr};

pub use families::FamilyPolicy;
use lb_core::{
    addr::{Family, Protocol},
    name::ServiceName,
    service::TrafficPolicy,
};
pub use sharing::{SharingRule, may_share};

use crate::{PoolName, Status, Timestamp};

/// The request of a service, as its source describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Identity.
    pub service: ServiceName,
    /// When the service was created: of services that wait, the oldest is served first.
    pub created: Timestamp,
    /// Labels, for the pools' selectors.
    pub labels: BTreeMap<String, String>,
    /// Whether its type is LoadBalancer. Default: yes. A service that no longer is one releases its addresses.
    pub load_balancer: bool,
    /// Load-balancer class; see [`Settings::classes`](crate::Settings::classes). Default: none.
    pub class: Option<String>,
    /// How many families it wants.
    pub family_policy: FamilyPolicy,
    /// Families it lists, the main one first. Default: none listed.
    pub families: Vec<Family>,
    /// Addresses that it asks for by name, at most [`MAX_ADDRESSES`](Self::MAX_ADDRESSES). Default: none, any will do.
    pub addresses: Vec<RequestedAddress>,
    /// Which pool it wants. Default: any.
    pub pool: PoolChoice,
    /// With whom it shares addresses. Default: with nobody.
    pub sharing: Option<Sharing>,
    /// Ports; services on one address must not have one in common.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// Which backends traffic from outside may use; services on one address must agree.
    pub external_traffic_policy: TrafficPolicy,
    /// Labels of its pods; services with policy Local on one address must agree.
    pub pod_selector: BTreeMap<String, String>,
    /// Its present status. It is imported at a restart, so that nothing moves and nothing is written.
    pub published: Status,
}

impl Request {
    /// Most addresses that one service may ask for by name.
    pub const MAX_ADDRESSES: usize = 256;

    /// A service that wants any address, everything else at its default.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            service: ServiceName::new(namespace, name),
            created: Timestamp::default(),
            labels: BTreeMap::new(),
            load_balancer: true,
            class: None,
            family_policy: FamilyPolicy::default(),
            families: Vec::new(),
            addresses: Vec::new(),
            pool: PoolChoice::Any,
            sharing: None,
            ports: BTreeSet::new(),
            external_traffic_policy: TrafficPolicy::Cluster,
            pod_selector: BTreeMap::new(),
            published: Status::default(),
        }
    }

    /// Whether it asks for `address` by name; also when it asks for none.
    pub(crate) fn names(&self, address: IpAddr) -> bool {
        self.addresses.is_empty() || self.wanted().any(|wanted| *wanted == RequestedAddress::Address(address))
    }

    /// Whether it asks for an address of the family by name, or for something unreadable.
    pub(crate) fn names_any(&self, family: Family) -> bool {
        self.addresses.len() > Self::MAX_ADDRESSES
            || self.addresses.iter().any(|wanted| match wanted {
                RequestedAddress::Address(address) => Family::of(*address) == family,
                RequestedAddress::Unreadable(_) => true,
            })
    }

    /// The addresses that it asks for by name, up to the limit.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = &RequestedAddress> {
        self.addresses.iter().take(Self::MAX_ADDRESSES)
    }
}

/// One entry of a list of wanted addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestedAddress {
    /// This address.
    Address(IpAddr),
    /// A text that is no address; it is refused, and the others are assigned.
    Unreadable(String),
}

impl RequestedAddress {
    /// Reads a list such as `10.0.0.5, 2001:db8::5`, the form of the annotation `lbipam.cilium.io/ips`. Empty entries
    /// do not count.
    ///
    /// ```
    /// use lb_ipam::RequestedAddress;
    /// let list = RequestedAddress::parse_list("10.0.0.5, garbage,");
    /// assert_eq!(list, [RequestedAddress::Address("10.0.0.5".parse().unwrap()), RequestedAddress::Unreadable("garbage".into())]);
    /// ```
    #[must_use]
    pub fn parse_list(list: &str) -> Vec<Self> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(|entry| entry.parse().map_or_else(|_| Self::Unreadable(entry.to_string()), Self::Address)).collect()
    }
}

impl From<IpAddr> for RequestedAddress {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

impl fmt::Display for RequestedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Unreadable(text) => write!(f, "`{text}`"),
        }
    }
}

/// Which pool a service wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PoolChoice {
    /// Whichever comes first.
    #[default]
    Any,
    /// This one before the others.
    Prefer(PoolName),
    /// This one or none.
    Only(PoolName),
}

impl PoolChoice {
    /// Whether an address of `pool` will do.
    pub(crate) fn admits(&self, pool: &PoolName) -> bool {
        match self {
            Self::Any | Self::Prefer(_) => true,
            Self::Only(only) => only == pool,
        }
    }
}

/// With whom a service shares its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Services with the same key share.
    pub key: Arc<str>,
    /// Services of which other namespaces may share; theirs must name this one too.
    pub namespaces: Namespaces,
}

impl Sharing {
    /// Shares with services of the same namespace that have the same key.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self { key: key.into(), namespaces: Namespaces::default() }
    }
}

/// Some namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Every one.
    All,
    /// These.
    Listed(BTreeSet<String>),
}

impl Namespaces {
    /// Reads `*` or a list such as `blue, green`, the form of the annotation
    /// `lbipam.cilium.io/sharing-cross-namespace`.
    #[must_use]
    pub fn parse(list: &str) -> Self {
        let mut entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        if entries.clone().any(|entry| entry == "*") {
            return Self::All;
        }
        Self::Listed(entries.by_ref().map(ToString::to_string).collect())
    }

    pub(crate) fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(listed) => listed.contains(namespace),
        }
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        Self::Listed(BTreeSet::new())
    }
}
