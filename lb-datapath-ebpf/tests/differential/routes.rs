//! Where the routes of the node lead.

use std::net::IpAddr;

use ipnet::IpNet;

/// Where an address is, for the routing table of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Behind a next hop, or on a link.
    Hop,
    /// On the node itself.
    Local,
    /// Nowhere: a route says so.
    Nowhere,
    /// An address that no host has, such as a broadcast or loopback address: the table may say anything.
    Odd,
}

/// The routes of a node with a default route.
pub(crate) struct Routes {
    pub(crate) local: Vec<IpAddr>,
    pub(crate) nowhere: Vec<IpNet>,
    /// Prefixes on links, whose first and last address are those of nobody.
    pub(crate) on_link: Vec<IpNet>,
    /// Pods of the node, each behind a device of its own.
    pub(crate) pods: Vec<IpNet>,
}

impl Routes {
    pub(crate) fn of(&self, ip: IpAddr) -> Route {
        let is_edge = |net: &IpNet| ip == net.network() || ip == net.broadcast();
        if self.local.contains(&ip) {
            Route::Local
        } else if is_odd(ip) || self.on_link.iter().any(is_edge) {
            Route::Odd
        } else if self.nowhere.iter().any(|net| net.contains(&ip)) {
            Route::Nowhere
        } else {
            Route::Hop
        }
    }

    /// Where a packet from `source` goes; the table may refuse a source that no host has.
    pub(crate) fn between(&self, source: IpAddr, destination: IpAddr) -> Route {
        match self.of(destination) {
            Route::Hop if is_odd(source) => Route::Odd,
            route => route,
        }
    }

    /// Whether the next hop of an address is behind the uplink.
    pub(crate) fn is_uplink(&self, ip: IpAddr) -> bool {
        !self.pods.iter().any(|net| net.contains(&ip))
    }
}

/// Whether no host can have the address, or only on one link.
fn is_odd(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_loopback() || ip.octets()[0] >= 224,
        IpAddr::V6(ip) => {
            let low = ip.to_bits() >> 32 == 0;
            low || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some()
        }
    }
}
