//! Routes for virtual addresses that no device owns.
//!
//! A packet has to pass a route look-up before the hooks can translate it, and must go nowhere when nothing translates
//! it. So each address gets two routes: in a table that only the node's own packets see (rule `iif lo`), one to the
//! loopback device, which lets a local packet reach the output hook; in the main table, a blackhole for forwarded ones.
//!
//! With the rules gone for a moment, packets end there in silence, with one exception: the kernel makes an IPv6 route to
//! the loopback device a reject route. A local packet still reaches the output hook, but one that nothing translates is
//! answered with an ICMP error, so that a new local TCP connection fails with ENETUNREACH when its first packet is
//! repeated, after a second. Established connections survive either.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use lb_core::Family;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Parseable};
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use crate::netlink::{Refusal, Socket, Writer, errno};

pub(crate) const NEW_ROUTE: u16 = 24;
pub(crate) const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
pub(crate) const NEW_RULE: u16 = 32;
pub(crate) const DELETE_RULE: u16 = 33;

/// Index of the loopback device in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;
const MAIN: u32 = 254;
/// Above every metric that people use, so that a route of the operator's own to the same address wins. The lower half
/// is the table's number, which tells two users of the main table apart.
const METRIC: u32 = 0x6c62_0000;

/// The routes of one backend, told apart from all others by their protocol number (`RTPROT_*`) and metric.
#[derive(Debug)]
pub(crate) struct Routes {
    socket: Socket,
    table: u32,
    priority: u32,
    protocol: u8,
    ruled: BTreeSet<Family>,
}

impl Routes {
    /// Routes in the network namespace of the calling thread. `table` and `priority` are those of the rule for local
    /// packets; `protocol` marks everything written here and must be nobody else's.
    pub(crate) fn open(table: u32, priority: u32, protocol: u8) -> io::Result<Self> {
        let socket = Socket::open(NETLINK_ROUTE)?;
        socket.filter_dumps()?;
        Ok(Self { socket, table, priority, protocol, ruled: BTreeSet::new() })
    }

    /// Addresses that have both routes.
    pub(crate) fn observe(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let (local, forwarded) = (self.installed(self.table)?, self.installed(MAIN)?);
        Ok(local.intersection(&forwarded).copied().collect())
    }

    /// Adds the routes of `vips`; those that are there already stay. Returns the addresses that failed.
    pub(crate) fn add(&mut self, vips: &[IpAddr]) -> io::Result<BTreeMap<IpAddr, io::Error>> {
        if vips.is_empty() {
            return Ok(BTreeMap::new());
        }
        let families: BTreeSet<Family> = vips.iter().map(|&vip| Family::of(vip)).collect();
        let missing: Vec<Family> = families.difference(&self.ruled).copied().collect();
        let mut writer = Writer::default();
        for &family in &missing {
            writer.raw(NEW_RULE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &self.rule(family));
        }
        for &vip in vips {
            writer.raw(NEW_ROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &self.local(vip));
            writer.raw(NEW_ROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &self.forwarded(vip));
        }
        let refused = self.socket.burst(writer)?;
        let failed = self.blame(refused, &missing, vips, &[libc::EEXIST]);
        self.ruled.extend(missing.iter().filter(|family| !failed.keys().any(|&vip| Family::of(vip) == **family)));
        Ok(failed)
    }

    /// Removes the routes of `vips`, as far as they are ours.
    pub(crate) fn remove(&mut self, vips: &[IpAddr]) -> io::Result<BTreeMap<IpAddr, io::Error>> {
        if vips.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut writer = Writer::default();
        for &vip in vips {
            writer.raw(DELETE_ROUTE, NLM_F_REQUEST, &self.local(vip));
            writer.raw(DELETE_ROUTE, NLM_F_REQUEST, &self.forwarded(vip));
        }
        let refused = self.socket.burst(writer)?;
        Ok(self.blame(refused, &[], vips, &[libc::ESRCH, libc::ENOENT]))
    }

    /// Removes every route of this protocol number and metric, and the rules.
    pub(crate) fn cleanup(&mut self) -> io::Result<()> {
        let vips: BTreeSet<IpAddr> = self.installed(self.table)?.union(&self.installed(MAIN)?).copied().collect();
        let failed = self.remove(&vips.into_iter().collect::<Vec<_>>())?;
        if let Some((_, error)) = failed.into_iter().next() {
            return Err(error);
        }
        self.ruled.clear();
        for family in [Family::V4, Family::V6] {
            self.remove_rule(family)?;
        }
        Ok(())
    }

    /// Addresses with a route of ours in `table`.
    fn installed(&mut self, table: u32) -> io::Result<BTreeSet<IpAddr>> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let filter = self.route(family, table);
            match self.dump(&filter) {
                Ok(routes) => found.extend(routes.iter().filter(|route| self.is_ours(route, table)).filter_map(vip_of)),
                Err(error) if missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn dump(&mut self, filter: &RouteMessage) -> io::Result<Vec<RouteMessage>> {
        let mut fixed = vec![0; netlink_packet_core::Emitable::buffer_len(filter)];
        netlink_packet_core::Emitable::emit(filter, &mut fixed);
        self.socket.dump(
            GET_ROUTE,
            &fixed,
            |_| {},
            |found: &mut Vec<RouteMessage>, message| {
                if message.kind == NEW_ROUTE {
                    found.extend(RouteMessage::parse(message.payload));
                }
            },
        )
    }

    /// The kernel may filter less than it was asked to.
    fn is_ours(&self, route: &RouteMessage, table: u32) -> bool {
        let has = |attribute| route.attributes.contains(&attribute);
        has(RouteAttribute::Table(table))
            && has(RouteAttribute::Priority(self.metric()))
            && u8::from(route.header.protocol) == self.protocol
    }

    const fn metric(&self) -> u32 {
        METRIC | self.table & 0xffff
    }

    /// The error for each address, from refused messages: `rules` first, then two for each address.
    fn blame(
        &self,
        refused: Vec<Refusal>,
        rules: &[Family],
        vips: &[IpAddr],
        harmless: &[i32],
    ) -> BTreeMap<IpAddr, io::Error> {
        let mut failed = BTreeMap::new();
        for Refusal { index, error } in refused {
            if errno(&error).is_some_and(|code| harmless.contains(&code)) {
                continue;
            }
            let index = index as usize;
            let one = index.checked_sub(rules.len()).and_then(|at| vips.get(at / 2)).copied();
            let all =
                rules.get(index).map(|&family| vips.iter().copied().filter(move |&vip| Family::of(vip) == family));
            for vip in one.into_iter().chain(all.into_iter().flatten()) {
                failed.entry(vip).or_insert_with(|| io::Error::new(error.kind(), error.to_string()));
            }
        }
        failed
    }

    fn remove_rule(&mut self, family: Family) -> io::Result<()> {
        let mut writer = Writer::default();
        writer.raw(DELETE_RULE, NLM_F_REQUEST, &self.rule(family));
        match self.socket.burst(writer)?.into_iter().next() {
            Some(refusal) if !missing(&refusal.error) => Err(refusal.error),
            _ => Ok(()),
        }
    }

    fn rule(&self, family: Family) -> RuleMessage {
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

    fn local(&self, vip: IpAddr) -> RouteMessage {
        let mut route = self.route_to(vip, self.table);
        route.header.kind = RouteType::Unicast;
        route.header.scope = if vip.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
        route.attributes.push(RouteAttribute::Oif(LOOPBACK));
        route
    }

    fn forwarded(&self, vip: IpAddr) -> RouteMessage {
        let mut route = self.route_to(vip, MAIN);
        route.header.kind = RouteType::BlackHole;
        route.header.scope = RouteScope::Universe;
        route
    }

    fn route_to(&self, vip: IpAddr, table: u32) -> RouteMessage {
        let mut route = self.route(address_family(Family::of(vip)), table);
        route.header.destination_prefix_length = if vip.is_ipv4() { 32 } else { 128 };
        route.attributes.push(RouteAttribute::Destination(RouteAddress::from(vip)));
        route.attributes.push(RouteAttribute::Priority(self.metric()));
        route
    }

    fn route(&self, family: AddressFamily, table: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        route.header.protocol = RouteProtocol::from(self.protocol);
        route.attributes = vec![RouteAttribute::Table(table)];
        route
    }
}

pub(crate) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn vip_of(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

/// Whether what was asked for, or the table or the family that it would be in, is not there.
fn missing(error: &io::Error) -> bool {
    matches!(errno(error), Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}
