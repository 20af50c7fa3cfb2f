//! How the routes of one datapath look, and how they are told apart from all others.

use std::net::IpAddr;

use lb_core::addr::Family;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{LOOPBACK, RouteKind};

/// The main table (`RT_TABLE_MAIN`).
const MAIN: u32 = 254;
/// Above every metric that people use, so that a route of the operator's own to the same address wins. The lower half
/// is the table's number, which tells two users of the main table apart.
const METRIC: u32 = 0x6c62_0000;

/// The marks of the routes and routing rules of one datapath.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteIdentity {
    /// Table for the node's own packets.
    pub(crate) table: u32,
    /// Priority of the rule that leads there.
    pub(crate) priority: u32,
    /// `RTPROT_*`.
    pub(crate) protocol: u8,
}

impl RouteIdentity {
    /// The table that routes of a kind are in.
    pub(crate) const fn table_of(&self, kind: RouteKind) -> u32 {
        match kind {
            RouteKind::Local => self.table,
            RouteKind::Forwarded => MAIN,
        }
    }

    /// The rule that leads the node's own packets to the table.
    pub(crate) fn rule(&self, family: Family) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = address_family(family);
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Iifname("lo".into()),
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ];
        rule
    }

    /// The route of a kind to an address.
    pub(crate) fn route(&self, kind: RouteKind, vip: IpAddr) -> RouteMessage {
        let mut route = self.any_route(address_family(Family::of(vip)), self.table_of(kind));
        route.header.destination_prefix_length = if vip.is_ipv4() { 32 } else { 128 };
        route.attributes.push(RouteAttribute::Destination(RouteAddress::from(vip)));
        route.attributes.push(RouteAttribute::Priority(self.metric()));
        (route.header.kind, route.header.scope) = match kind {
            RouteKind::Local if vip.is_ipv4() => (RouteType::Unicast, RouteScope::Link),
            RouteKind::Local => (RouteType::Unicast, RouteScope::Universe),
            RouteKind::Forwarded => (RouteType::BlackHole, RouteScope::Universe),
        };
        if kind == RouteKind::Local {
            route.attributes.push(RouteAttribute::Oif(LOOPBACK));
        }
        route
    }

    /// The fields that all routes of the datapath in `table` share, as the filter of a dump.
    pub(crate) fn any_route(&self, family: AddressFamily, table: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        route.header.protocol = RouteProtocol::from(self.protocol);
        route.attributes = vec![RouteAttribute::Table(table)];
        route
    }

    /// Whether a route is of this datapath and of this kind. The kernel may filter a dump less than it was asked to.
    pub(crate) fn is_ours(&self, route: &RouteMessage, kind: RouteKind) -> bool {
        self.kind_at(route) == Some(kind) && self.is_written(route, kind)
    }

    /// The kind of route that belongs where `route` is, whoever wrote it.
    pub(crate) fn kind_at(&self, route: &RouteMessage) -> Option<RouteKind> {
        let has = |attribute| route.attributes.contains(&attribute);
        let at = |kind: &RouteKind| has(RouteAttribute::Table(self.table_of(*kind)));
        has(RouteAttribute::Priority(self.metric())).then_some(())?;
        [RouteKind::Local, RouteKind::Forwarded].into_iter().find(at)
    }

    /// Whether a route of this kind is as this datapath writes it.
    pub(crate) fn is_written(&self, route: &RouteMessage, kind: RouteKind) -> bool {
        let blackhole = route.header.kind == RouteType::BlackHole;
        u8::from(route.header.protocol) == self.protocol && blackhole == (kind == RouteKind::Forwarded)
    }

    const fn metric(&self) -> u32 {
        METRIC | self.table & 0xffff
    }
}

/// The address that a route leads to.
pub(crate) fn vip_of(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

/// `AF_*` of a family.
pub(crate) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
