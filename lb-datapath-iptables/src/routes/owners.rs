//! Addresses that belong to somebody else: to a device of this host, or to a network that a device reaches without a
//! router. Whoever is in that network answers for an address of it, or nobody does: the kernel asks there, and a packet
//! to an address that nobody has ends there.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use lb_core::addr::Family;
use lb_netlink::Message;
use netlink_packet_core::Parseable as _;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use nix::libc;

use super::{LOOPBACK, identity::vip_of};

/// Prefixes whose addresses are somebody else's.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    prefixes: HashSet<IpNet>,
    /// Lengths of the prefixes.
    lengths: BTreeSet<(Family, u8)>,
}

impl Owners {
    pub(crate) fn insert(&mut self, prefix: IpNet) {
        self.lengths.insert((Family::of(prefix.addr()), prefix.prefix_len()));
        self.prefixes.insert(prefix);
    }

    /// Whether `ip` is in one of the prefixes.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        let lengths = self.lengths.iter().filter(|(family, _)| *family == Family::of(ip));
        lengths.filter_map(|&(_, length)| IpNet::new(ip, length).ok()).any(|net| self.prefixes.contains(&net.trunc()))
    }
}

/// The prefix whose addresses belong to somebody else because of `route`: one that leads to this host (`local`), or one
/// that leads out of a device and to no router. A default route says nothing about anybody's address, nor do the two
/// halves of one, as tunnels have them. The routes of virtual addresses lead to the loopback device.
pub(crate) fn owned_prefix(route: &RouteMessage) -> Option<IpNet> {
    let length = route.header.destination_prefix_length;
    let prefix = IpNet::new(vip_of(route)?, length).ok().filter(|_| length > 1)?;
    let through_router = |attribute: &RouteAttribute| {
        use RouteAttribute::{Gateway, MultiPath, Via};
        matches!(attribute, Gateway(_) | Via(_) | MultiPath(_) | RouteAttribute::Oif(LOOPBACK))
    };
    let owned = match route.header.kind {
        RouteType::Local => true,
        RouteType::Unicast => !route.attributes.iter().any(through_router),
        _ => false,
    };
    owned.then_some(prefix.trunc())
}

/// What a notification says about owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerChange {
    /// The addresses of a prefix may have got an owner, or lost theirs.
    Prefix(IpNet),
    /// A device went down or away. The kernel says nothing about the IPv4 routes that went with it.
    Device,
}

impl OwnerChange {
    /// The change that a notification about a route or a device tells of.
    pub(crate) fn of(message: &Message<'_>) -> Option<Self> {
        match message.kind {
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                // A busy router has many routes; those that neither lead here nor may lead to a network are not parsed.
                let [family, _, _, _, _, _, scope, kind, ..] = *message.payload else { return None };
                let near = i32::from(family) == libc::AF_INET6 || scope != libc::RT_SCOPE_UNIVERSE;
                let some = (kind == libc::RTN_UNICAST && near) || kind == libc::RTN_LOCAL;
                let route = some.then(|| RouteMessage::parse(message.payload).ok()).flatten()?;
                owned_prefix(&route).map(Self::Prefix)
            }
            libc::RTM_DELLINK => Some(Self::Device),
            libc::RTM_NEWLINK => {
                let flags =
                    message.payload.get(8..12).and_then(|flags| Some(u32::from_ne_bytes(flags.try_into().ok()?)))?;
                (flags & libc::IFF_UP.cast_unsigned() == 0).then_some(Self::Device)
            }
            _ => None,
        }
    }
}

/// Virtual addresses that a datapath and its watcher both know.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedVips(Arc<Mutex<Vips>>);

/// The virtual addresses of a datapath.
#[derive(Debug, Default)]
pub(crate) struct Vips {
    /// Every one.
    pub(crate) all: BTreeSet<IpAddr>,
    /// Those that belong to somebody else, and therefore have no routes.
    pub(crate) foreign: BTreeSet<IpAddr>,
}

impl SharedVips {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vips> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a change may concern one of the addresses.
    pub(crate) fn concerns(&self, change: OwnerChange) -> bool {
        let vips = self.lock();
        match change {
            OwnerChange::Prefix(prefix) => vips.all.range(prefix.network()..=prefix.broadcast()).next().is_some(),
            OwnerChange::Device => !vips.foreign.is_empty(),
        }
    }
}

/// Which virtual addresses belong to somebody else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// Those that do.
    pub(crate) now: BTreeSet<IpAddr>,
    /// Those of which the last answer said something else.
    pub(crate) changed: BTreeSet<IpAddr>,
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{AddressFamily, route::RouteAddress};

    use super::*;

    fn route(kind: RouteType, to: &str, attributes: &[RouteAttribute]) -> RouteMessage {
        let to: IpNet = to.parse().unwrap();
        let mut route = RouteMessage::default();
        route.header.address_family = if to.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        route.header.destination_prefix_length = to.prefix_len();
        route.header.kind = kind;
        route.attributes = attributes.to_vec();
        if to.prefix_len() > 0 {
            route.attributes.push(RouteAttribute::Destination(RouteAddress::from(to.addr())));
        }
        route
    }

    fn owned(kind: RouteType, to: &str, attributes: &[RouteAttribute]) -> Option<String> {
        owned_prefix(&route(kind, to, attributes)).map(|prefix| prefix.to_string())
    }

    #[test]
    fn networks_of_devices_and_addresses_of_this_host_belong_to_somebody() {
        let device = RouteAttribute::Oif(7);
        let router = RouteAttribute::Gateway(RouteAddress::from(IpAddr::from([10, 200, 2, 254])));
        let on_device = |to| owned(RouteType::Unicast, to, std::slice::from_ref(&device));
        assert_eq!(on_device("10.200.2.0/24").as_deref(), Some("10.200.2.0/24"));
        assert_eq!(on_device("fd00:200::/64").as_deref(), Some("fd00:200::/64"));
        assert_eq!(
            owned(RouteType::Local, "10.200.2.1/32", &[RouteAttribute::Oif(LOOPBACK)]).unwrap(),
            "10.200.2.1/32"
        );
        for everything in ["0.0.0.0/0", "128.0.0.0/1", "8000::/1"] {
            assert_eq!(on_device(everything), None, "a default route of a tunnel");
        }
        assert_eq!(owned(RouteType::Unicast, "10.0.0.0/8", &[device.clone(), router]), None);
        assert_eq!(owned(RouteType::Unicast, "10.96.0.1/32", &[RouteAttribute::Oif(LOOPBACK)]), None, "a route of lb");
        assert_eq!(owned(RouteType::BlackHole, "10.96.0.1/32", &[]), None);
    }

    #[test]
    fn an_address_is_looked_for_in_prefixes_of_every_length() {
        let mut owners = Owners::default();
        ["10.200.2.0/24", "10.1.2.3/32", "fd00:200::/64"].iter().for_each(|net| owners.insert(net.parse().unwrap()));
        let has = |ip: &str| owners.has(ip.parse().unwrap());
        assert!(has("10.200.2.77") && has("10.1.2.3") && has("fd00:200::77"));
        assert!(!has("10.200.3.1") && !has("10.1.2.4") && !has("fd00:201::1") && !has("::ffff:10.1.2.3"));
    }

    #[test]
    fn only_changes_that_may_concern_an_address_are_told() {
        let vips = SharedVips::default();
        vips.lock().all.insert([10, 200, 2, 11].into());
        let concerns = |net: &str| vips.concerns(OwnerChange::Prefix(net.parse().unwrap()));
        assert!(concerns("10.200.2.0/24") && concerns("10.200.2.11/32"));
        assert!(!concerns("10.200.2.12/32") && !concerns("10.200.3.0/24") && !concerns("fd00::/8"));
        assert!(!vips.concerns(OwnerChange::Device), "no address has an owner that could go");
        vips.lock().foreign.insert([10, 200, 2, 11].into());
        assert!(vips.concerns(OwnerChange::Device));
    }
}
