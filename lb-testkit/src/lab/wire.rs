//! Devices, addresses, routes and neighbours as netlink messages.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo},
    link::{InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};

use super::Netns;

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// Index of the loopback device in every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// One end of a veth pair. Its index is chosen, not looked up, so that a whole namespace is one batch.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    /// Where it lives; `None` for the namespace that the request is sent in.
    pub(crate) netns: Option<&'a Netns>,
}

/// A veth pair; the near end is up and can be a port of a bridge. The kernel refuses to make the far end up at once.
pub(crate) fn veth(near: &VethEnd<'_>, far: &VethEnd<'_>, bridge: Option<u32>) -> LinkMessage {
    let mut message = end(near, up(near.index));
    message.attributes.extend(bridge.map(LinkAttribute::Controller));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(far, link(far.index))))),
    ]));
    message
}

fn end(end: &VethEnd<'_>, mut message: LinkMessage) -> LinkMessage {
    message.attributes.push(LinkAttribute::IfName(end.name.clone()));
    message.attributes.push(LinkAttribute::Address(end.mac.to_vec()));
    message.attributes.extend(end.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())));
    message
}

/// A bridge, up, that floods multicast: a snooping bridge without a querier loses the first neighbour solicitations.
pub(crate) fn bridge(name: &str, index: u32) -> LinkMessage {
    let mut message = up(index);
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
    ]));
    message
}

/// The device with this index, up.
pub(crate) fn up(index: u32) -> LinkMessage {
    let mut message = link(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// The device with this index.
pub(crate) fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// An address on a device, usable at once (no duplicate address detection).
pub(crate) fn address(device: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.flags = AddressHeaderFlags::Nodad;
    message.header.scope = AddressScope::Universe;
    message.header.index = device;
    message.attributes = vec![
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    message
}

/// An address on a device that is used only when it is asked for.
pub(crate) fn second_address(device: u32, ip: IpNet) -> AddressMessage {
    let mut message = address(device, ip);
    // Deprecated for IPv6; IPv4 takes the first one of a prefix anyway.
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_preferred = 0;
    lifetime.ifa_valid = u32::MAX;
    message.attributes.push(AddressAttribute::CacheInfo(lifetime));
    message
}

/// A route out of a device, through `gateway` if there is one. The gateway need not be in a prefix of the device.
pub(crate) fn route(to: IpNet, gateway: Option<IpAddr>, device: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.attributes = vec![RouteAttribute::Destination(to.network().into()), RouteAttribute::Oif(device)];
    if let Some(gateway) = gateway {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    }
    message
}

/// Asks for the route to `ip`.
pub(crate) fn query(ip: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = IpNet::from(ip).prefix_len();
    message.attributes = vec![RouteAttribute::Destination(ip.into())];
    message
}

/// A neighbour that needs no asking for.
pub(crate) fn neighbour(device: u32, ip: IpAddr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    let destination = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes =
        vec![NeighbourAttribute::Destination(destination), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
