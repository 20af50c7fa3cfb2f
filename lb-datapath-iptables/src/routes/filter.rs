//! Notifications about routes, as far as they concern one datapath.

use std::net::IpAddr;

use lb_netlink::Message;
use netlink_packet_core::Parseable as _;
use netlink_packet_route::{
    route::RouteMessage,
    rule::{RuleAttribute, RuleMessage},
};
use nix::libc;

use super::{
    LOOPBACK, RouteKind,
    identity::{RouteIdentity, vip_of},
    owners::{OwnerChange, SharedVips},
};

/// The multicast groups with notifications about routes, routing rules and devices.
pub(crate) const GROUPS: [u32; 5] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

/// Distinguishes notifications about the routes of one datapath from others.
#[derive(Clone, Debug)]
pub(crate) struct RouteFilter {
    pub(crate) identity: RouteIdentity,
    /// Address of the socket that makes the datapath's own changes.
    pub(crate) port: u32,
    /// Address of a second socket of the datapath, if it has one.
    pub(crate) second_port: Option<u32>,
    pub(crate) vips: SharedVips,
}

/// A change that concerns the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteChange {
    /// Of a route: whether it exists now, as this datapath writes it.
    Route(RouteKind, IpAddr, bool),
    /// Of routing rules.
    Rules,
    /// A virtual address may belong to somebody else now, or not any more.
    Owners,
    /// Of the loopback device: when it goes down, the kernel removes the routes that lead to it.
    Loopback,
}

impl RouteFilter {
    /// The change that a notification is about, if it concerns the datapath.
    pub(crate) fn change(&self, message: &Message<'_>) -> Option<RouteChange> {
        if Some(message.port) == self.second_port {
            return None;
        }
        let owners = || OwnerChange::of(message).filter(|&change| self.vips.concerns(change));
        match message.kind {
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                self.route(message).or_else(|| owners().map(|_| RouteChange::Owners))
            }
            libc::RTM_NEWRULE | libc::RTM_DELRULE => {
                let RouteIdentity { table, priority, .. } = self.identity;
                let rule = RuleMessage::parse(message.payload).ok()?;
                let has = |attribute| rule.attributes.contains(&attribute);
                let ours = has(RuleAttribute::Priority(priority)) || has(RuleAttribute::Table(table));
                ours.then_some(RouteChange::Rules)
            }
            libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                let index = message.payload.get(4..8)?;
                match index == LOOPBACK.to_ne_bytes() {
                    true => Some(RouteChange::Loopback),
                    false => owners().map(|_| RouteChange::Owners),
                }
            }
            _ => None,
        }
    }

    fn route(&self, message: &Message<'_>) -> Option<RouteChange> {
        // A busy router has many routes, and nearly all have another prefix length: those need not be parsed.
        let [_, length, ..] = *message.payload else { return None };
        matches!(length, 32 | 128).then_some(())?;
        let route = RouteMessage::parse(message.payload).ok()?;
        let vip = vip_of(&route)?;
        let kind = self.identity.kind_at(&route)?;
        let there = message.kind == libc::RTM_NEWROUTE && self.identity.is_written(&route, kind);
        Some(RouteChange::Route(kind, vip, there))
    }
}
