//! Routes for virtual addresses that no device owns.
//!
//! A packet has to pass a route look-up before the hooks can translate it, and must go nowhere when nothing translates
//! it. So each address gets two routes: in a table that only the node's own packets see (rule `iif lo`), one to the
//! loopback device, which lets a local packet reach the output hook; in the main table, a blackhole for forwarded ones.
//!
//! While the rules are gone, packets end there in silence, with one exception: the kernel makes an IPv6 route to the
//! loopback device a reject route ([`fib6_is_reject`]). A local packet still reaches the output hook, but one that
//! nothing translates is answered with an ICMP error, so that a new local TCP connection fails with ENETUNREACH when
//! its first packet is repeated, after a second. Established connections survive either.
//!
//! An address that belongs to somebody else has neither route: see [`owners`].
//!
//! [`fib6_is_reject`]: https://elixir.bootlin.com/linux/v6.18/source/net/ipv6/route.c

mod filter;
mod identity;
mod owners;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::addr::Family;
use lb_netlink::{Delivery, Listener, Protocol, Refusal, Socket, Writer};
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, Parseable};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteMessage, RouteType},
    rule::RuleMessage,
};
use nix::libc;

pub(crate) use self::{
    filter::{GROUPS, RouteChange, RouteFilter},
    identity::address_family,
    owners::Foreign,
};

use self::{
    identity::{RouteIdentity, vip_of},
    owners::{OwnerChange, Owners, SharedVips, owned_prefix},
};
use crate::crash;

/// Index of the loopback device in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// The two routes of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteKind {
    /// In the table for the node's own packets, to the loopback device.
    Local,
    /// In the main table, a blackhole.
    Forwarded,
}

const KINDS: [RouteKind; 2] = [RouteKind::Local, RouteKind::Forwarded];

/// The routes and routing rules of one datapath that exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InstalledRoutes {
    /// Routes.
    pub(crate) routes: BTreeSet<(RouteKind, IpAddr)>,
    /// Families whose rule exists.
    pub(crate) rules: BTreeSet<Family>,
}

/// The routes of one datapath, told apart from all others by their protocol number (`RTPROT_*`) and metric.
#[derive(Debug)]
pub(crate) struct Routes {
    socket: Socket,
    identity: RouteIdentity,
    /// Families whose rule this process has added.
    ruled: BTreeSet<Family>,
    /// Tells of changes of `owners`.
    news: Listener,
    /// Addresses of others; `None` until they are read.
    owners: Option<Owners>,
    vips: SharedVips,
}

impl Routes {
    /// Routes in the network namespace of the calling thread. `table` and `priority` are those of the rule for local
    /// packets; `protocol` marks every route and rule, and no other program may use it.
    pub(crate) fn open(table: u32, priority: u32, protocol: u8) -> lb_netlink::Result<Self> {
        let socket = Socket::open(Protocol::Route)?;
        socket.filter_dumps()?;
        let groups = [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE];
        let news = Listener::open(Protocol::Route, &groups, Some(socket.port()?))?;
        Ok(Self {
            socket,
            identity: RouteIdentity { table, priority, protocol },
            ruled: BTreeSet::new(),
            news,
            owners: None,
            vips: SharedVips::default(),
        })
    }

    /// Addresses that have both routes.
    pub(crate) fn observe(&mut self) -> lb_netlink::Result<BTreeSet<IpAddr>> {
        let (local, forwarded) = (self.installed(RouteKind::Local)?, self.installed(RouteKind::Forwarded)?);
        Ok(local.intersection(&forwarded).copied().collect())
    }

    /// Adds the routes of `vips`; routes that exist already stay. An address that belongs to somebody else has none
    /// afterwards. Returns the addresses that failed.
    pub(crate) fn add(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        if vips.is_empty() {
            return Ok(BTreeMap::new());
        }
        let owners = self.owners()?;
        let (foreign, vips): (Vec<IpAddr>, Vec<IpAddr>) = vips.iter().partition(|&&vip| owners.has(vip));
        let mut known = self.vips.lock();
        known.all.extend(foreign.iter().chain(&vips));
        known.foreign.extend(&foreign);
        known.foreign.retain(|vip| !vips.contains(vip));
        drop(known);
        let mut failed = self.delete(&foreign)?;
        failed.extend(self.write(&vips)?);
        Ok(failed)
    }

    /// Adds routes, whoever the addresses belong to.
    fn write(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        if vips.is_empty() {
            return Ok(BTreeMap::new());
        }
        let families: BTreeSet<Family> = vips.iter().map(|&vip| Family::of(vip)).collect();
        let missing: Vec<Family> = families.difference(&self.ruled).copied().collect();
        let mut writer = Writer::default();
        for &family in &missing {
            writer.push(
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL,
                &RouteNetlinkMessage::NewRule(self.identity.rule(family)),
            );
        }
        let vips = &scattered(vips);
        for &vip in vips {
            writer.push(
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL,
                &RouteNetlinkMessage::NewRoute(self.identity.route(RouteKind::Local, vip)),
            );
            writer.push(
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL,
                &RouteNetlinkMessage::NewRoute(self.identity.route(RouteKind::Forwarded, vip)),
            );
        }
        let refused = crash::around(|| self.socket.request(writer))?;
        let failed = self.blame(refused, &missing, vips, &[libc::EEXIST]);
        self.ruled.extend(missing.iter().filter(|family| !failed.keys().any(|&vip| Family::of(vip) == **family)));
        Ok(failed)
    }

    /// Removes the routes of `vips` that this datapath wrote.
    pub(crate) fn remove(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        let mut known = self.vips.lock();
        for vip in vips {
            known.all.remove(vip);
            known.foreign.remove(vip);
        }
        drop(known);
        self.delete(vips)
    }

    fn delete(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        if vips.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut writer = Writer::default();
        for &vip in vips {
            writer.push(NLM_F_REQUEST, &RouteNetlinkMessage::DelRoute(self.identity.route(RouteKind::Local, vip)));
            writer.push(NLM_F_REQUEST, &RouteNetlinkMessage::DelRoute(self.identity.route(RouteKind::Forwarded, vip)));
        }
        let refused = crash::around(|| self.socket.request(writer))?;
        Ok(self.blame(refused, &[], vips, &[libc::ESRCH, libc::ENOENT]))
    }

    /// Says which of `vips`, all addresses of the datapath, belong to somebody else.
    pub(crate) fn foreign(&mut self, vips: &BTreeSet<IpAddr>) -> lb_netlink::Result<Foreign> {
        let owners = self.owners()?;
        let now: BTreeSet<IpAddr> = vips.iter().copied().filter(|&vip| owners.has(vip)).collect();
        let mut known = self.vips.lock();
        let before = vips.iter().filter(|vip| known.all.contains(vip));
        let changed = before.copied().filter(|vip| known.foreign.contains(vip) != now.contains(vip)).collect();
        (known.all, known.foreign) = (vips.clone(), now.clone());
        Ok(Foreign { now, changed })
    }

    /// Addresses of others, as they are now.
    fn owners(&mut self) -> lb_netlink::Result<&Owners> {
        let mut changed = false;
        let delivery = self.news.read(|message| changed |= OwnerChange::of(&message).is_some())?;
        if changed || delivery == Delivery::Overrun {
            self.owners = None;
        }
        let owners = match self.owners.take() {
            Some(owners) => owners,
            None => self.read_owners()?,
        };
        Ok(self.owners.insert(owners))
    }

    fn read_owners(&mut self) -> lb_netlink::Result<Owners> {
        let mut owners = Owners::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for kind in [RouteType::Unicast, RouteType::Local] {
                let mut filter = RouteMessage::default();
                (filter.header.address_family, filter.header.kind) = (family, kind);
                match self.dump(&filter) {
                    Ok(routes) => routes.iter().filter_map(owned_prefix).for_each(|prefix| owners.insert(prefix)),
                    Err(error) if missing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(owners)
    }

    /// Removes every route of this protocol number and metric, and the rules.
    pub(crate) fn cleanup(&mut self) -> lb_netlink::Result<()> {
        let vips: BTreeSet<IpAddr> =
            self.installed(RouteKind::Local)?.union(&self.installed(RouteKind::Forwarded)?).copied().collect();
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

    /// Every route and routing rule of this datapath.
    pub(crate) fn everything(&mut self) -> lb_netlink::Result<InstalledRoutes> {
        let mut found = InstalledRoutes::default();
        for kind in KINDS {
            found.routes.extend(self.installed(kind)?.into_iter().map(|vip| (kind, vip)));
        }
        found.rules = self.rules()?;
        Ok(found)
    }

    /// Families whose rule exists.
    pub(crate) fn rules(&mut self) -> lb_netlink::Result<BTreeSet<Family>> {
        let mut found = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            let wanted = self.identity.rule(family);
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
            writer.push(
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL,
                &RouteNetlinkMessage::NewRule(self.identity.rule(family)),
            );
        }
        for &(kind, vip) in extra {
            writer.push(NLM_F_REQUEST, &RouteNetlinkMessage::DelRoute(self.identity.route(kind, vip)));
        }
        for &(kind, vip) in missing {
            writer.push(
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE,
                &RouteNetlinkMessage::NewRoute(self.identity.route(kind, vip)),
            );
        }
        if writer.messages() == 0 {
            return Ok(());
        }
        let harmless = [libc::EEXIST, libc::ESRCH, libc::ENOENT];
        first_serious(crash::around(|| self.socket.request(writer))?, &harmless)
    }

    /// Distinguishes notifications about these routes from others.
    pub(crate) fn filter(&self) -> lb_netlink::Result<RouteFilter> {
        let (identity, vips) = (self.identity, self.vips.clone());
        Ok(RouteFilter { identity, port: self.socket.port()?, second_port: None, vips })
    }

    /// Addresses with a route of a kind.
    fn installed(&mut self, kind: RouteKind) -> lb_netlink::Result<BTreeSet<IpAddr>> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let filter = self.identity.any_route(family, self.identity.table_of(kind));
            match self.dump(&filter) {
                Ok(routes) => {
                    found.extend(routes.iter().filter(|route| self.identity.is_ours(route, kind)).filter_map(vip_of))
                }
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
        writer.push(NLM_F_REQUEST, &RouteNetlinkMessage::DelRule(self.identity.rule(family)));
        match crash::around(|| self.socket.request(writer))?.into_iter().next() {
            Some(refusal) => {
                Some(lb_netlink::Error::from(refusal.error)).filter(|error| !missing(error)).map_or(Ok(()), Err)
            }
            None => Ok(()),
        }
    }
}

/// Addresses in an order in which neighbours come late. In ascending order the kernel rebuilds its tree of IPv4 routes
/// all the time. Whenever it has 512 KiB of old nodes to free (`net.ipv4.fib_sync_mem`) it waits for all processors
/// ([`tnode_free`]), which takes longer for 10,000 addresses than adding them.
///
/// [`tnode_free`]: https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/fib_trie.c
fn scattered(vips: &[IpAddr]) -> Vec<IpAddr> {
    let mut vips = vips.to_vec();
    vips.sort_unstable_by_key(|vip| match vip {
        IpAddr::V4(ip) => u128::from(ip.to_bits().reverse_bits()),
        IpAddr::V6(ip) => ip.to_bits().reverse_bits(),
    });
    vips
}

/// Whether a rule exists as it is written.
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

/// Whether a route without a destination exists as it is written.
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

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
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

/// Whether the object, or the table or the family that it would be in, does not exist.
fn missing(error: &lb_netlink::Error) -> bool {
    matches!(error.errno(), Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}
