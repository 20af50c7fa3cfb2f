//! Devices and addresses of this network namespace, as the kernel lists them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;

pub(crate) use lb_datapath_ebpf::discovery::{devices, uplinks};
#[cfg(any(test, fuzzing))]
use lb_netlink::Answer;
use lb_netlink::{Listener, Protocol, Socket};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

/// Multicast group of link messages (`RTNLGRP_LINK`).
const LINK_GROUP: u32 = 1;
/// Multicast groups of addresses (`RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR`).
const ADDRESS_GROUPS: [u32; 2] = [5, 9];
/// Multicast groups of settings of devices, such as `forwarding` and `rp_filter` (`RTNLGRP_IPV4_NETCONF` and
/// `RTNLGRP_IPV6_NETCONF`).
const NETCONF_GROUPS: [u32; 2] = [24, 25];

/// A bridge that other devices are ports of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bridge {
    pub(crate) name: String,
    /// How many devices are ports of it.
    pub(crate) ports: usize,
    /// Its own addresses, of both families.
    pub(crate) ips: Vec<IpAddr>,
    /// Whether it hands its packets to netfilter whatever the sysctls say: IPv4 and IPv6.
    pub(crate) filtered: [bool; 2],
}

/// Bridges that have ports.
pub(crate) fn bridges() -> io::Result<Vec<Bridge>> {
    let links: Vec<LinkMessage> = dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?
        .into_iter()
        .filter_map(|answer| if let RouteNetlinkMessage::NewLink(link) = answer { Some(link) } else { None })
        .collect();
    let mut found = Vec::new();
    for link in &links {
        let Some((name, filtered)) = as_bridge(link) else { continue };
        let is_port = |port: &&LinkMessage| port.attributes.contains(&LinkAttribute::Controller(link.header.index));
        let ports = links.iter().filter(is_port).count();
        if ports > 0 {
            found.push(Bridge { ips: addresses(std::slice::from_ref(&name))?, name, ports, filtered });
        }
    }
    Ok(found)
}

/// Name of a bridge, and whether it hands its packets to netfilter by itself.
fn as_bridge(link: &LinkMessage) -> Option<(String, [bool; 2])> {
    let (mut name, mut is_bridge, mut filtered) = (None, false, [false; 2]);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(is) => name = Some(is.clone()),
            LinkAttribute::LinkInfo(infos) => {
                is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                for info in infos {
                    let LinkInfo::Data(InfoData::Bridge(settings)) = info else { continue };
                    filtered = [
                        settings.contains(&InfoBridge::NfCallIpTables(true)),
                        settings.contains(&InfoBridge::NfCallIp6Tables(true)),
                    ];
                }
            }
            _ => {}
        }
    }
    is_bridge.then_some((name?, filtered))
}

/// Global addresses of these devices, in the order of the kernel, IPv4 first.
pub(crate) fn addresses(of: &[String]) -> io::Result<Vec<IpAddr>> {
    let devices = devices()?;
    let answers = dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let mut ips: Vec<IpAddr> = answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        })
        .filter(|address| address.header.scope == AddressScope::Universe)
        .filter(|address| devices.get(&address.header.index).is_some_and(|name| of.contains(name)))
        .filter_map(|address| local(&address))
        .collect();
    ips.sort_by_key(IpAddr::is_ipv6);
    ips.dedup();
    Ok(ips)
}

/// What the addresses of all devices say about this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Networks {
    /// Networks that devices connect this host to, its own addresses among them. In order, none twice.
    pub(crate) connected: Vec<IpNet>,
    /// Addresses of this host on any device and of any scope, without loopback and link-local ones.
    pub(crate) local: BTreeSet<IpAddr>,
}

pub(crate) fn networks() -> io::Result<Networks> {
    let answers = dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(Networks { connected: networks_in(&answers), local: local_in(&answers) })
}

/// No service can have a loopback or link-local address.
fn local_in(answers: &[RouteNetlinkMessage]) -> BTreeSet<IpAddr> {
    let found = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(address) => local(address),
        _ => None,
    });
    let is_link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    found.filter(|ip| !ip.is_loopback() && !is_link_local(ip)).collect()
}

/// The address of a point-to-point device is that of its peer, and so is the network.
fn networks_in(answers: &[RouteNetlinkMessage]) -> Vec<IpNet> {
    let mut found = BTreeSet::new();
    for answer in answers {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if message.header.scope != AddressScope::Universe {
            continue;
        }
        let connected = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => IpNet::new(*ip, message.header.prefix_len).ok(),
            _ => None,
        });
        found.extend(connected.or_else(|| local(message).map(IpNet::from)).map(|net| net.trunc()));
        found.extend(local(message).map(IpNet::from).filter(|own| !found.iter().any(|net| net.contains(own))));
    }
    found.into_iter().collect()
}

/// Another host on a network of this one, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) ip: IpAddr,
    /// Link-layer address, in hexadecimal.
    pub(crate) link: String,
    /// Index of the device that leads there.
    pub(crate) device: u32,
}

/// Hosts that have answered for their addresses.
pub(crate) fn neighbours() -> io::Result<Vec<Neighbour>> {
    let answers = dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
    Ok(answers.iter().filter_map(neighbour).collect())
}

fn neighbour(answer: &RouteNetlinkMessage) -> Option<Neighbour> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    let RouteNetlinkMessage::NewNeighbour(neighbour) = answer else { return None };
    let answered = matches!(neighbour.header.state, Reachable | Stale | Delay | Probe | Permanent);
    let is_proxy = neighbour.header.flags.contains(NeighbourFlags::Proxy);
    (answered && !is_proxy).then_some(())?;
    let ip = neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    let link = neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => Some(octets),
        _ => None,
    })?;
    let link: Vec<String> = link.iter().map(|octet| format!("{octet:02x}")).collect();
    Some(Neighbour { ip, link: link.join(":"), device: neighbour.header.ifindex })
}

/// MTU of every device that has one, by name.
pub(crate) fn mtus() -> io::Result<BTreeMap<String, u32>> {
    let answers = dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(answers.iter().filter_map(mtu).collect())
}

fn mtu(answer: &RouteNetlinkMessage) -> Option<(String, u32)> {
    let RouteNetlinkMessage::NewLink(link) = answer else { return None };
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })?;
    Some((name, mtu))
}

/// Waits for devices, and addresses and settings of devices, that come, go or change.
pub(crate) struct LinkMonitor {
    listener: Listener,
}

impl LinkMonitor {
    pub(crate) fn new() -> io::Result<Self> {
        let groups = [&[LINK_GROUP][..], &ADDRESS_GROUPS, &NETCONF_GROUPS].concat();
        Ok(Self { listener: Listener::open(Protocol::Route, &groups, None)? })
    }

    /// Blocks until a device, or an address or a setting of one, came, went or changed; the caller has to look up which
    /// one. A notification that the kernel had to drop counts too.
    pub(crate) fn wait(&self) -> io::Result<()> {
        while !lb_netlink::wait(&[&self.listener], Duration::MAX)? {}
        self.listener.read(|_| {})?;
        Ok(())
    }
}

/// On a point-to-point device the address is the peer's and `Local` is that of the node; IPv6 has `Address` alone.
fn local(address: &AddressMessage) -> Option<IpAddr> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| address.attributes.iter().find_map(wanted);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

fn dump(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    Ok(Socket::open(Protocol::Route)?.dump_all(&request)?)
}

/// See [`crate::fuzzing::netlink`].
#[cfg(any(test, fuzzing))]
pub(crate) fn take_any(datagram: &[u8]) {
    let mut answers = Vec::new();
    let _ = take_answers(datagram, &mut answers);
    assert!(answers.len() <= datagram.len() / 16, "{} messages in {} bytes", answers.len(), datagram.len());
    for answer in &answers {
        match answer {
            RouteNetlinkMessage::NewAddress(address) => drop(local(address)),
            RouteNetlinkMessage::NewNeighbour(_) => drop(neighbour(answer)),
            _ => {}
        }
    }
}

/// Whether the dump ends with this datagram.
#[cfg(any(test, fuzzing))]
fn take_answers(datagram: &[u8], answers: &mut Vec<RouteNetlinkMessage>) -> Result<bool, lb_netlink::Error> {
    for message in lb_netlink::messages(datagram) {
        match message.answer() {
            Answer::Done => return Ok(true),
            Answer::Refused(refused) => return Err(refused.into()),
            Answer::Message(message) => answers.push(message.decode()?),
            Answer::Acknowledged | Answer::Overrun => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// What is read of a file of the fuzz target's corpus, and whether the dump ends with it.
    fn read(name: &str) -> (Vec<RouteNetlinkMessage>, io::Result<bool>) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/netlink");
        let mut answers = Vec::new();
        let ended = take_answers(&fs::read(corpus.join(name)).unwrap(), &mut answers);
        (answers, ended.map_err(io::Error::from))
    }

    #[test]
    fn only_hosts_that_answered_are_neighbours() {
        let entry = |state, attributes: &[NeighbourAttribute]| {
            let mut message = NeighbourMessage::default();
            (message.header.state, message.header.ifindex) = (state, 7);
            message.attributes = attributes.to_vec();
            neighbour(&RouteNetlinkMessage::NewNeighbour(message))
        };
        let ip = NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 200, 2, 11].into()));
        let link = NeighbourAttribute::LinkLayerAddress(vec![2, 0x1b, 0, 0, 0, 0xa]);
        let found = Neighbour { ip: [10, 200, 2, 11].into(), link: "02:1b:00:00:00:0a".into(), device: 7 };
        let all = [ip.clone(), link.clone()];
        for state in [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Permanent] {
            assert_eq!(entry(state, &all), Some(found.clone()), "{state:?}");
        }
        for state in [NeighbourState::Failed, NeighbourState::Incomplete, NeighbourState::Noarp] {
            assert_eq!(entry(state, &all), None, "{state:?}");
        }
        assert_eq!(entry(NeighbourState::Reachable, &[ip]), None);
        assert_eq!(entry(NeighbourState::Reachable, &[link]), None);
    }

    #[test]
    fn addresses_of_both_families_are_found() {
        let (answers, _) = read("addresses");
        let ips = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => local(address),
            _ => None,
        });
        let wanted = ["127.0.0.1", "192.0.2.1", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(ips.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn networks_are_those_of_addresses_and_of_peers() {
        let address = |scope, prefix_len, attributes: &[AddressAttribute]| {
            let mut message = AddressMessage::default();
            (message.header.scope, message.header.prefix_len) = (scope, prefix_len);
            message.attributes = attributes.to_vec();
            RouteNetlinkMessage::NewAddress(message)
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (own, at) = (|text| AddressAttribute::Local(ip(text)), |text| AddressAttribute::Address(ip(text)));
        let answers = [
            address(AddressScope::Universe, 24, &[own("192.0.2.7"), at("192.0.2.7")]),
            address(AddressScope::Universe, 24, &[own("192.0.2.9"), at("192.0.2.9")]),
            address(AddressScope::Universe, 32, &[own("198.51.100.1"), at("198.51.100.2")]),
            address(AddressScope::Universe, 64, &[at("2001:db8::1")]),
            address(AddressScope::Link, 64, &[at("fe80::1")]),
            address(AddressScope::Host, 8, &[own("127.0.0.1"), at("127.0.0.1")]),
            address(AddressScope::Host, 32, &[own("203.0.113.1"), at("203.0.113.1")]),
        ];
        let found: Vec<String> = networks_in(&answers).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.0/24", "198.51.100.1/32", "198.51.100.2/32", "2001:db8::/64"]);
        let own: Vec<String> = local_in(&answers).iter().map(ToString::to_string).collect();
        assert_eq!(own, ["192.0.2.7", "192.0.2.9", "198.51.100.1", "203.0.113.1", "2001:db8::1"]);
    }

    #[test]
    fn a_dump_ends_when_the_kernel_says_so_and_an_error_is_one() {
        assert!(read("multipath").1.unwrap());
        assert!(!read("routes").1.unwrap());
        assert_eq!(read("error").1.unwrap_err().raw_os_error(), Some(1));
    }
}
