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
    net::IpAddr,
};

use lb_core::Family;
use lb_netlink::{Message, Protocol, Refusal, Socket, Writer};
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, Parseable};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::libc;

use crate::crash;

/// Index of the loopback device in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;
const MAIN: u32 = 254;
/// Above every metric that people use, so that a route of the operator's own to the same address wins. The lower half
/// is the table's number, which tells two users of the main table apart.
const METRIC: u32 = 0x6c62_0000;

/// Where a route of an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteKind {
    /// In the table for the node's own packets, to the loopback device.
    Local,
    /// In the main table, a blackhole.
    Forwarded,
}

/// Everything that is there of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InstalledRoutes {
    /// Routes.
    pub(crate) routes: BTreeSet<(RouteKind, IpAddr)>,
    /// Families whose rule is there.
    pub(crate) rules: BTreeSet<Family>,
}

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
    pub(crate) fn open(table: u32, priority: u32, protocol: u8) -> lb_netlink::Result<Self> {
        let socket = Socket::open(Protocol::Route)?;
        socket.filter_dumps()?;
        Ok(Self { socket, table, priority, protocol, ruled: BTreeSet::new() })
    }

    /// Addresses that have both routes.
    pub(crate) fn observe(&mut self) -> lb_netlink::Result<BTreeSet<IpAddr>> {
        let (local, forwarded) = (self.installed(self.table)?, self.installed(MAIN)?);
        Ok(local.intersection(&forwarded).copied().collect())
    }

    /// Adds the routes of `vips`; those that are there already stay. Returns the addresses that failed.
    pub(crate) fn add(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        if vips.is_empty() {
            return Ok(BTreeMap::new());
        }
        let families: BTreeSet<Family> = vips.iter().map(|&vip| Family::of(vip)).collect();
        let missing: Vec<Family> = families.difference(&self.ruled).copied().collect();
        let mut writer = Writer::default();
        for &family in &missing {
            writer.push(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewRule(self.rule(family)));
        }
        let vips = &scattered(vips);
        for &vip in vips {
            writer.push(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewRoute(self.local(vip)));
            writer.push(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewRoute(self.forwarded(vip)));
        }
        let refused = crash::around(|| self.socket.request(writer))?;
        let failed = self.blame(refused, &missing, vips, &[libc::EEXIST]);
        self.ruled.extend(missing.iter().filter(|family| !failed.keys().any(|&vip| Family::of(vip) == **family)));
        Ok(failed)
    }

    /// Removes the routes of `vips`, as far as they are ours.
    pub(crate) fn remove(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        if vips.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut writer = Writer::default();
        for &vip in vips {
            writer.push(NLM_F_REQUEST, &RouteNetlinkMessage::DelRoute(self.local(vip)));
            writer.push(NLM_F_REQUEST, &RouteNetlinkMessage::DelRoute(self.forwarded(vip)));
        }
        let refused = crash::around(|| self.socket.request(writer))?;
        Ok(self.blame(refused, &[], vips, &[libc::ESRCH, libc::ENOENT]))
    }

    /// Removes every route of this protocol number and metric, and the rules.
    pub(crate) fn cleanup(&mut self) -> lb_netlink::Result<()> {
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

    /// Everything that is there of ours, route by route.
    pub(crate) fn everything(&mut self) -> lb_netlink::Result<InstalledRoutes> {
        let mut found = InstalledRoutes::default();
        for (place, table) in [(RouteKind::Local, self.table), (RouteKind::Forwarded, MAIN)] {
            found.routes.extend(self.installed(table)?.into_iter().map(|vip| (place, vip)));
        }
        found.rules = self.rules()?;
        Ok(found)
    }

    /// Families whose rule is there.
    pub(crate) fn rules(&mut self) -> lb_netlink::Result<BTreeSet<Family>> {
        let mut found = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            let wanted = self.rule(family);
            if has_rule(&mut self.socket, &wanted)? {
                found.insert(family);
            }
        }
        Ok(found)
    }

    /// Writes routes and rules that others removed or changed, and removes routes that nothing needs.
    pub(crate) fn repair(
        &mut self,
        missing: &[(RouteKind, IpAddr)],
        extra: &[(RouteKind, IpAddr)],
        rules: &[Family],
    ) -> lb_netlink::Result<()> {
        let mut writer = Writer::default();
        for &family in rules {
            writer.push(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewRule(self.rule(family)));
        }
        for &(place, vip) in extra {
            writer.push(NLM_F_REQUEST, &RouteNetlinkMessage::DelRoute(self.at(place, vip)));
        }
        for &(place, vip) in missing {
            writer.push(
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE,
                &RouteNetlinkMessage::NewRoute(self.at(place, vip)),
            );
        }
        if writer.messages() == 0 {
            return Ok(());
        }
        let harmless = [libc::EEXIST, libc::ESRCH, libc::ENOENT];
        first_serious(crash::around(|| self.socket.request(writer))?, &harmless)
    }

    /// How to tell what is ours, for one who listens.
    pub(crate) fn filter(&self) -> lb_netlink::Result<RouteFilter> {
        let (table, metric, priority, protocol) = (self.table, self.metric(), self.priority, self.protocol);
        Ok(RouteFilter { table, metric, priority, protocol, port: self.socket.port()?, second_port: None })
    }

    /// Addresses with a route of ours in `table`.
    fn installed(&mut self, table: u32) -> lb_netlink::Result<BTreeSet<IpAddr>> {
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

    fn dump(&mut self, filter: &RouteMessage) -> lb_netlink::Result<Vec<RouteMessage>> {
        self.socket.dump(
            libc::RTM_GETROUTE,
            &bytes(filter),
            |_| {},
            |found: &mut Vec<RouteMessage>, message| {
                if message.kind == libc::RTM_NEWROUTE {
                    found.extend(RouteMessage::parse(message.payload));
                }
            },
        )
    }

    /// The kernel may filter less than it was asked to.
    fn is_ours(&self, route: &RouteMessage, table: u32) -> bool {
        is_at(route, table, self.metric()) && is_written_by(route, table, self.protocol)
    }

    fn at(&self, place: RouteKind, vip: IpAddr) -> RouteMessage {
        match place {
            RouteKind::Local => self.local(vip),
            RouteKind::Forwarded => self.forwarded(vip),
        }
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
    ) -> BTreeMap<IpAddr, lb_netlink::Error> {
        let mut failed = BTreeMap::new();
        for Refusal { index, error } in refused {
            if harmless.contains(&error.errno()) {
                continue;
            }
            let index = index as usize;
            let one = index.checked_sub(rules.len()).and_then(|at| vips.get(at / 2)).copied();
            let all =
                rules.get(index).map(|&family| vips.iter().copied().filter(move |&vip| Family::of(vip) == family));
            for vip in one.into_iter().chain(all.into_iter().flatten()) {
                failed.entry(vip).or_insert_with(|| error.clone().into());
            }
        }
        failed
    }

    fn remove_rule(&mut self, family: Family) -> lb_netlink::Result<()> {
        let mut writer = Writer::default();
        writer.push(NLM_F_REQUEST, &RouteNetlinkMessage::DelRule(self.rule(family)));
        match crash::around(|| self.socket.request(writer))?.into_iter().next() {
            Some(refusal) => {
                Some(lb_netlink::Error::from(refusal.error)).filter(|error| !missing(error)).map_or(Ok(()), Err)
            }
            None => Ok(()),
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

/// Addresses in an order in which neighbours come late. In ascending order the kernel's tree of IPv4 routes is rebuilt all
/// the time, and it waits for all processors whenever it has 512 KiB of old nodes to free (`net.ipv4.fib_sync_mem`): with
/// 10,000 addresses for longer than it takes to add them.
fn scattered(vips: &[IpAddr]) -> Vec<IpAddr> {
    let mut vips = vips.to_vec();
    vips.sort_unstable_by_key(|vip| match vip {
        IpAddr::V4(ip) => u128::from(ip.to_bits().reverse_bits()),
        IpAddr::V6(ip) => ip.to_bits().reverse_bits(),
    });
    vips
}

/// How to tell from what the kernel says of changes which ones concern us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteFilter {
    table: u32,
    metric: u32,
    priority: u32,
    protocol: u8,
    /// Address of the socket that makes our own changes.
    pub(crate) port: u32,
    /// Address of another one, if there is one.
    pub(crate) second_port: Option<u32>,
}

/// A change that concerns us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteChange {
    /// Of a route: whether it is there now, as we write it.
    Route(RouteKind, IpAddr, bool),
    /// Of routing rules.
    Rules,
    /// Of the loopback device, which takes along the routes that lead there when it goes down.
    Loopback,
}

/// The multicast groups that tell of all that (`RTNLGRP_*`).
pub(crate) const GROUPS: [u32; 5] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

impl RouteFilter {
    /// What a message means for us, if it means something.
    pub(crate) fn change(&self, message: &Message<'_>) -> Option<RouteChange> {
        if Some(message.port) == self.second_port {
            return None;
        }
        match message.kind {
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => self.route(message),
            libc::RTM_NEWRULE | libc::RTM_DELRULE => {
                let rule = RuleMessage::parse(message.payload).ok()?;
                let has = |attribute| rule.attributes.contains(&attribute);
                let ours = has(RuleAttribute::Priority(self.priority)) || has(RuleAttribute::Table(self.table));
                ours.then_some(RouteChange::Rules)
            }
            libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                let index = message.payload.get(4..8)?;
                (index == LOOPBACK.to_ne_bytes()).then_some(RouteChange::Loopback)
            }
            _ => None,
        }
    }

    fn route(&self, message: &Message<'_>) -> Option<RouteChange> {
        // Most routes of a busy router can be told from ours by their length alone.
        let [_, length, ..] = *message.payload else { return None };
        matches!(length, 32 | 128).then_some(())?;
        let route = RouteMessage::parse(message.payload).ok()?;
        let vip = vip_of(&route)?;
        let places = [(RouteKind::Local, self.table), (RouteKind::Forwarded, MAIN)];
        let (place, table) = places.into_iter().find(|(_, table)| is_at(&route, *table, self.metric))?;
        let there = message.kind == libc::RTM_NEWROUTE && is_written_by(&route, table, self.protocol);
        Some(RouteChange::Route(place, vip, there))
    }
}

/// Whether a rule is there, as it is written.
pub(crate) fn has_rule(socket: &mut Socket, wanted: &RuleMessage) -> lb_netlink::Result<bool> {
    let mut all = RuleMessage::default();
    all.header.family = wanted.header.family;
    let found = socket.dump(
        libc::RTM_GETRULE,
        &bytes(&all),
        |_| {},
        |found: &mut Vec<RuleMessage>, message| {
            found.extend(RuleMessage::parse(message.payload));
        },
    );
    let is_it = |rule: &RuleMessage| {
        rule.header.action == wanted.header.action
            && wanted.attributes.iter().all(|attribute| rule.attributes.contains(attribute))
    };
    match found {
        Ok(rules) => Ok(rules.iter().any(is_it)),
        Err(error) if missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a route without a destination is there, as it is written.
pub(crate) fn has_route(socket: &mut Socket, wanted: &RouteMessage) -> lb_netlink::Result<bool> {
    let mut all = RouteMessage::default();
    all.header.address_family = wanted.header.address_family;
    let found = socket.dump(
        libc::RTM_GETROUTE,
        &bytes(&all),
        |_| {},
        |found: &mut Vec<RouteMessage>, message| {
            found.extend(RouteMessage::parse(message.payload));
        },
    );
    let is_it = |route: &RouteMessage| {
        route.header.kind == wanted.header.kind
            && route.header.protocol == wanted.header.protocol
            && wanted.attributes.iter().all(|attribute| route.attributes.contains(attribute))
    };
    match found {
        Ok(routes) => Ok(routes.iter().any(is_it)),
        Err(error) if missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_at(route: &RouteMessage, table: u32, metric: u32) -> bool {
    let has = |attribute| route.attributes.contains(&attribute);
    has(RouteAttribute::Table(table)) && has(RouteAttribute::Priority(metric))
}

/// Whether a route is as one with `protocol` is written here.
fn is_written_by(route: &RouteMessage, table: u32, protocol: u8) -> bool {
    let blackhole = route.header.kind == RouteType::BlackHole;
    u8::from(route.header.protocol) == protocol && blackhole == (table == MAIN)
}

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
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

/// The places of which no route of a family is left of those to `vips`.
pub(crate) fn flushed(
    missing: impl Iterator<Item = (RouteKind, IpAddr)>,
    vips: &BTreeSet<IpAddr>,
) -> BTreeSet<(RouteKind, Family)> {
    let mut lost: BTreeMap<(RouteKind, Family), usize> = BTreeMap::new();
    missing.for_each(|(place, vip)| *lost.entry((place, Family::of(vip))).or_default() += 1);
    let all = |family| vips.iter().filter(|&&vip| Family::of(vip) == family).count();
    lost.into_iter().filter(|&((_, family), lost)| lost == all(family)).map(|(at, _)| at).collect()
}

/// The first refusal that is none of these errors.
pub(crate) fn first_serious(refused: Vec<Refusal>, harmless: &[i32]) -> lb_netlink::Result<()> {
    let mut serious = refused.into_iter().filter(|refusal| !harmless.contains(&refusal.error.errno()));
    serious.next().map_or(Ok(()), |refusal| Err(refusal.error.into()))
}

/// Whether what was asked for, or the table or the family that it would be in, is not there.
fn missing(error: &lb_netlink::Error) -> bool {
    matches!(error.errno(), Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}
