//! The address plan: who has which address, pure.
//!
//! ```text
//!  pod-0-0 … ─ node 0 ─┐                        pods     10.244.<node>.<10+pod>    fd00:10:244:<node>::<10+pod>
//!  pod-1-0 … ─ node 1 ─┼─ segment ─ router ─ beyond
//!  client ─────────────┘  172.18.0.0/24          198.51.100.0/24
//!                         fd00:172:18::/64       fd00:198:51::/64
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_core::addr::Family;

use super::wire::Mac;
use crate::error::LabError;

/// Both families, IPv4 first.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Prefix of the segment that nodes, the router and the near clients are on.
#[must_use]
pub fn segment(family: Family) -> IpNet {
    prefix(family, [172, 18, 0, 0], 24, [0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0], 64)
}

/// Prefix of the clients beyond the router.
#[must_use]
pub fn beyond(family: Family) -> IpNet {
    prefix(family, [198, 51, 100, 0], 24, [0xfd00, 0x198, 0x51, 0, 0, 0, 0, 0], 64)
}

/// Prefix of all pods.
#[must_use]
pub fn cluster_cidr(family: Family) -> IpNet {
    prefix(family, [10, 244, 0, 0], 16, [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 48)
}

/// Prefix of the pods of one node.
#[must_use]
pub fn pod_cidr(node: usize, family: Family) -> IpNet {
    let (byte, word) = (low_byte(node), low_word(node));
    prefix(family, [10, 244, byte, 0], 24, [0xfd00, 0x10, 0x244, word, 0, 0, 0, 0], 64)
}

/// Prefix that cluster addresses of services come from, as Kubernetes has it by default.
#[must_use]
pub fn service_cidr(family: Family) -> IpNet {
    prefix(family, [10, 96, 0, 0], 12, [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 108)
}

/// Prefix for ingress and external addresses of services.
#[must_use]
pub fn ingress_cidr(family: Family) -> IpNet {
    prefix(family, [20, 0, 20, 0], 24, [0xfd00, 0x20, 0, 0x20, 0, 0, 0, 0], 64)
}

/// Where pods send what is not their own. Nobody has it: each pod knows its MAC address beforehand.
pub(crate) fn pod_gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(169, 254, 1, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Sizes of a lab that its address plan can hold.
pub(crate) fn check(nodes: usize, pods_of_fullest_node: usize, clients: usize) -> Result<(), LabError> {
    let limits = [
        ("nodes", nodes, 80),
        ("pods on one node", pods_of_fullest_node, 200),
        ("addresses of a client", clients, 100),
    ];
    limits.into_iter().try_for_each(
        |(what, wanted, most)| {
            if wanted > most { Err(LabError::TooMany { what, wanted, most }) } else { Ok(()) }
        },
    )
}

pub(crate) fn router_ip(family: Family) -> IpAddr {
    host(segment(family), 1)
}

pub(crate) fn router_beyond_ip(family: Family) -> IpAddr {
    host(beyond(family), 1)
}

pub(crate) fn node_ip(node: usize, family: Family) -> IpAddr {
    host(segment(family), 10 + node)
}

pub(crate) fn pod_ip(node: usize, pod: usize, family: Family) -> IpAddr {
    host(pod_cidr(node, family), 10 + pod)
}

/// Address number `index` of the client in `net`.
pub(crate) fn client_ip(net: IpNet, index: usize) -> IpAddr {
    host(net, 100 + index)
}

/// A locally administered MAC address; `kind` and `index` tell devices apart.
pub(crate) fn mac(kind: u8, node: usize, index: usize) -> Mac {
    [0x02, 0x1b, kind, low_byte(node), (index >> 8) as u8, low_byte(index)]
}

/// Address `number` of a prefix. In IPv6 the decimal digits are what is written: 10 becomes `::10`.
fn host(net: IpNet, number: usize) -> IpAddr {
    match net {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits() | u32::from(low_byte(number))).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() | u128::from(low_word(number))).into(),
    }
}

fn low_byte(number: usize) -> u8 {
    (number & 0xff) as u8
}

/// The number whose hexadecimal digits are the decimal ones of `number`: 42 becomes 0x42.
fn low_word(number: usize) -> u16 {
    let digits = [1000, 100, 10, 1].map(|unit| (number / unit % 10) as u16);
    digits.into_iter().fold(0, |word, digit| word << 4 | digit)
}

fn prefix(family: Family, v4: [u8; 4], v4_len: u8, v6: [u16; 8], v6_len: u8) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert(v4.into(), v4_len).into(),
        Family::V6 => Ipv6Net::new_assert(v6.into(), v6_len).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_alike_in_both_families() {
        assert_eq!(node_ip(2, Family::V4).to_string(), "172.18.0.12");
        assert_eq!(node_ip(2, Family::V6).to_string(), "fd00:172:18::12");
        assert_eq!(pod_ip(1, 3, Family::V4).to_string(), "10.244.1.13");
        assert_eq!(pod_ip(1, 3, Family::V6).to_string(), "fd00:10:244:1::13");
        assert_eq!(client_ip(beyond(Family::V6), 0).to_string(), "fd00:198:51::100");
    }

    #[test]
    fn every_pod_is_in_its_nodes_prefix_and_in_the_clusters() {
        for family in FAMILIES {
            for node in [0, 9, 79] {
                let ip = pod_ip(node, 199, family);
                assert!(pod_cidr(node, family).contains(&ip), "{ip}");
                assert!(cluster_cidr(family).contains(&ip), "{ip}");
                assert!(!pod_cidr(node + 1, family).contains(&ip), "{ip}");
            }
        }
    }

    #[test]
    fn too_many_nodes_are_refused() {
        assert!(matches!(check(81, 0, 1), Err(LabError::TooMany { what: "nodes", wanted: 81, most: 80 })));
        assert!(check(3, 4, 1).is_ok());
    }
}
