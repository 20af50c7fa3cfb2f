//! The way of a packet to the rule that refuses it.
//!
//! `REJECT` works in filter's chains only, which come after the route look-up; and a forwarded packet to a VIP would
//! not survive that, since VIPs have a blackhole route. So nat marks what is to be refused, and a routing rule for
//! that mark leads around the blackhole:
//!
//! - IPv4: to the table of [`Routes`] for the node's own packets, where VIPs have a unicast route to the loopback
//!   device. The packet is forwarded as far as filter's `FORWARD`. A local route would not do: the ICMP error would be
//!   sent from the VIP, which no device has. Nor would a default route: the reverse path filter may look at marks
//!   (`src_valid_mark`), and must not find the client behind it.
//! - IPv6: to a table with a local default route. The packet is delivered as far as filter's `INPUT`. A unicast route
//!   to the loopback device would not do: the kernel turns it into an unreachable one.
//!
//! The node's own packets do not need it: their chain is `OUTPUT`, after the look-up that [`Routes`] serves.
//!
//! [`Routes`]: crate::routes::Routes

use lb_core::addr::Family;
use lb_netlink::{Protocol, Socket, Writer};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::libc;

use crate::{
    crash,
    routes::{LOOPBACK, address_family, first_serious, has_route, has_rule},
};

use super::IptablesConfig;

/// A routing rule for each family, and a default route for IPv6.
#[derive(Debug)]
pub(crate) struct RejectPath {
    socket: Socket,
    families: Vec<Family>,
    mark: u32,
    table_v4: u32,
    table_v6: u32,
    priority: u32,
    protocol: u8,
    added: bool,
}

impl RejectPath {
    pub(crate) fn open(config: &IptablesConfig) -> lb_netlink::Result<Self> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
            families: config.families.clone(),
            mark: config.reject_mark,
            table_v4: config.route_table,
            table_v6: config.reject_table,
            priority: config.rule_priority,
            protocol: config.route_protocol,
            added: false,
        })
    }

    /// Adds it unless this process has. A rule or route that an earlier process left counts.
    pub(crate) fn add(&mut self) -> lb_netlink::Result<()> {
        if self.added {
            return Ok(());
        }
        self.change(
            RouteNetlinkMessage::NewRoute,
            RouteNetlinkMessage::NewRule,
            NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL,
            &[libc::EEXIST],
        )?;
        self.added = true;
        Ok(())
    }

    /// Adds it once more.
    pub(crate) fn add_again(&mut self) -> lb_netlink::Result<()> {
        self.added = false;
        self.add()
    }

    /// Address of the socket that makes the changes.
    pub(crate) fn port(&self) -> lb_netlink::Result<u32> {
        self.socket.port()
    }

    /// Whether all of it exists.
    pub(crate) fn is_there(&mut self) -> lb_netlink::Result<bool> {
        for family in self.families.clone() {
            let (rule, route) = (self.rule(family), self.route());
            if !has_rule(&mut self.socket, &rule)? || family == Family::V6 && !has_route(&mut self.socket, &route)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn remove(&mut self) -> lb_netlink::Result<()> {
        self.added = false;
        let absent = [libc::ENOENT, libc::ESRCH, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
        self.change(RouteNetlinkMessage::DelRoute, RouteNetlinkMessage::DelRule, NLM_F_REQUEST, &absent)
    }

    fn change(
        &mut self,
        route: fn(RouteMessage) -> RouteNetlinkMessage,
        rule: fn(RuleMessage) -> RouteNetlinkMessage,
        flags: u16,
        harmless: &[i32],
    ) -> lb_netlink::Result<()> {
        let mut writer = Writer::default();
        for &family in &self.families {
            if family == Family::V6 {
                writer.push(flags, &route(self.route()));
            }
            writer.push(flags, &rule(self.rule(family)));
        }
        first_serious(crash::around(|| self.socket.request(writer))?, harmless)
    }

    fn route(&self) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.table = u8::try_from(self.table_v6).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        route.header.protocol = RouteProtocol::from(self.protocol);
        route.header.kind = RouteType::Local;
        route.header.scope = RouteScope::Universe;
        route.attributes = vec![RouteAttribute::Table(self.table_v6), RouteAttribute::Oif(LOOPBACK)];
        route
    }

    fn rule(&self, family: Family) -> RuleMessage {
        let table = match family {
            Family::V4 => self.table_v4,
            Family::V6 => self.table_v6,
        };
        let mut rule = RuleMessage::default();
        rule.header.family = address_family(family);
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(u32::MAX),
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(table),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ];
        rule
    }
}
