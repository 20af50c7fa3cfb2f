//! Packets as they enter a node, and what the datapath remembers about them.

use core::net::IpAddr;

use crate::{
    addr::{BackendAddr, Protocol},
    affinity::AffinityRecord,
    flow_hash::{self, FLOW_SEED},
    node::NodeFacts,
    time::Instant,
};

/// A packet where it enters the node, the first of its flow or a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it enters.
    pub entry: Entry,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source address.
    pub source: IpAddr,
    /// Source port; not known to a socket hook, which ignores it.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
}

/// Where a packet enters the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// A socket on this node, of the node itself or of a pod, that the datapath sees as a socket if it can.
    Socket,
    /// The device of a pod on this node.
    PodDevice,
    /// A device that leads out of the node.
    Uplink,
}

/// The memory of the datapath about the flow and the client of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowView {
    /// Backend of the established flow that the packet belongs to.
    pub established: Option<BackendAddr>,
    /// Since when that backend takes no new flows, if known.
    pub left: Option<Instant>,
    /// Record of the client at the packet's frontend.
    pub affinity: Option<AffinityRecord>,
    /// The packet belongs to a flow that is for no frontend, although a frontend may have its destination: it is an
    /// answer to a process of the node, or to a pod that talks to a backend directly.
    pub direct: bool,
}

impl Packet {
    /// Whether a process of the node itself sends it: on a socket, from one of the node's addresses, or from the very
    /// address that it is for, which a load balancer may have put on the node.
    #[must_use]
    pub fn is_of_node(&self, node: &NodeFacts) -> bool {
        let own = node.ips.contains(&self.source) || self.source == self.destination;
        self.entry == Entry::Socket && own
    }

    /// Why nobody outside can have the packet's source, if it came in through a device and that is so.
    #[must_use]
    pub fn forged(&self, node: &NodeFacts) -> Option<&'static str> {
        match self.source {
            _ if self.entry == Entry::Socket => None,
            source if node.ips.contains(&source) => {
                Some("it is an address of this node, which sends nothing to itself")
            }
            source if source == self.destination => Some("it is the packet's own destination"),
            source if is_martian(source) => Some("no host may have it (RFC 1812, 5.3.7; RFC 4291, 2.5)"),
            _ => None,
        }
    }

    /// The [flow hash](crate::flow_hash) of the packet.
    #[must_use]
    pub fn flow_hash(&self) -> u32 {
        match (self.source, self.destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let words = flow_hash::words_v4(s.octets(), self.source_port, d.octets(), self.destination_port);
                flow_hash::jhash(&words, FLOW_SEED)
            }
            (s, d) => {
                let (s, d) = (in_v6(s), in_v6(d));
                flow_hash::jhash(&flow_hash::words_v6(s, self.source_port, d, self.destination_port), FLOW_SEED)
            }
        }
    }
}

/// Whether no host may send with the source `ip`. The kernel drops such packets
/// (`ip_route_input_slow` in <https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/route.c>, `ip6_rcv_core` in
/// <https://elixir.bootlin.com/linux/v6.18/source/net/ipv6/ip6_input.c>).
fn is_martian(ip: IpAddr) -> bool {
    let is_broadcast_or_this_network = match ip {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.octets()[0] == 0,
        IpAddr::V6(_) => false,
    };
    is_broadcast_or_this_network || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified()
}

fn in_v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}
