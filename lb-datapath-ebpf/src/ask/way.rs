//! The way that a packet comes: the device, the hardware address that it is sent to, and what waits for it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use lb_core::{addr::Protocol, decision::Packet};
use lb_netlink::{InetFamily, InetProtocol, InetSocket, Query, SockDiag, Socket, States, Writer};
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};

/// A device as a packet meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) name: String,
    pub(super) index: u32,
    /// The hardware address that the sender knows: of a port of a bridge, that of the bridge.
    pub(super) to: [u8; 6],
    /// The longest IP packet that comes through the device.
    pub(super) mtu: u32,
    /// The bridge that the device is a port of.
    pub(super) bridge: Option<String>,
}

impl Way {
    /// The one of `devices` that packets of `source` come in through: that of the route to it, or a port of the bridge of
    /// that route, or else the first.
    pub(super) fn of(source: IpAddr, devices: &[u32]) -> io::Result<Option<Self>> {
        let links = links()?;
        let route = route(source)?.device;
        let find = |index: u32| links.iter().find(|link| link.index == index);
        let is_port =
            |index: &&u32| find(**index).is_some_and(|link| link.controller.is_some() && link.controller == route);
        let chosen = devices.iter().find(|index| Some(**index) == route);
        let chosen = chosen.or_else(|| devices.iter().find(is_port)).or(devices.first());
        let Some(link) = chosen.and_then(|index| find(*index)) else { return Ok(None) };
        let bridge = link.controller.and_then(find);
        Ok(Some(Self {
            name: link.name.clone(),
            index: link.index,
            to: bridge.unwrap_or(link).hardware,
            mtu: link.mtu,
            bridge: bridge.map(|bridge| bridge.name.clone()),
        }))
    }
}

/// MTU of a device.
pub(super) fn mtu(device: u32) -> io::Result<Option<u32>> {
    Ok(links()?.into_iter().find(|link| link.index == device).map(|link| link.mtu))
}

struct Link {
    index: u32,
    name: String,
    hardware: [u8; 6],
    controller: Option<u32>,
    mtu: u32,
}

fn links() -> io::Result<Vec<Link>> {
    let answers =
        Socket::open(lb_netlink::Protocol::Route)?.dump_all(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(answers.iter().filter_map(link).collect())
}

fn link(answer: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let index = message.header.index;
    let mut link = Link { index, name: String::new(), hardware: [0; 6], controller: None, mtu: 0 };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            // That of a tunnel is shorter.
            LinkAttribute::Address(address) => {
                link.hardware.iter_mut().zip(address).for_each(|(byte, found)| *byte = *found);
            }
            LinkAttribute::Controller(controller) => link.controller = Some(*controller),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    Some(link)
}

/// What the routing table says about an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) device: Option<u32>,
    /// The source that the node itself would have.
    pub(super) source: Option<IpAddr>,
}

/// The route to `ip`; empty if there is none.
pub(super) fn route(ip: IpAddr) -> io::Result<Route> {
    let mut request = RouteMessage::default();
    request.header.address_family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    request.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    request.attributes = vec![RouteAttribute::Destination(ip.into())];
    let mut datagram = Writer::default();
    datagram.push(NLM_F_REQUEST, &RouteNetlinkMessage::GetRoute(request));
    let mut found = Ok(Route::default());
    Socket::open(lb_netlink::Protocol::Route)?.look_up(datagram, |_, answer| {
        // As long as there is no route at all, the kernel refuses.
        let Ok(message) = answer else { return };
        found = message.decode().map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => read(&route),
            _ => Route::default(),
        });
    })?;
    Ok(found?)
}

fn read(message: &RouteMessage) -> Route {
    let mut route = Route::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(device) => route.device = Some(*device),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.source = Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => route.source = Some((*ip).into()),
            _ => {}
        }
    }
    route
}

/// Whether a socket of this network namespace is connected to the sender of `packet` from where the packet goes to: then
/// it is an answer, and no new connection. `None` if the kernel cannot list sockets.
pub(super) fn awaits(packet: &Packet) -> Option<bool> {
    let protocol = match packet.protocol {
        Protocol::Tcp => InetProtocol::Tcp,
        Protocol::Udp => InetProtocol::Udp,
        Protocol::Sctp => return Some(false),
    };
    let peer = SocketAddr::new(packet.source, packet.source_port);
    let own = SocketAddr::new(packet.destination, packet.destination_port);
    let mut sockets = SockDiag::open().ok()?;
    for family in [InetFamily::V4, InetFamily::V6] {
        let peers = [peer];
        let query = Query::new(protocol, family).with_states(States::CONNECTED).with_peers(&peers);
        let is_it = |local: SocketAddr| SocketAddr::new(local.ip().to_canonical(), local.port()) == own;
        if sockets.list(&query).ok()?.iter().any(|socket| is_it(socket.local())) {
            return Some(true);
        }
    }
    Some(false)
}

/// The cookie of the UDP socket of this network namespace that sends from where `packet` comes from.
pub(super) fn datagram_socket(packet: &Packet) -> Option<u64> {
    let mut sockets = SockDiag::open().ok()?;
    let sends = |local: SocketAddr| {
        let ip = local.ip().to_canonical();
        local.port() == packet.source_port && (ip.is_unspecified() || ip == packet.source)
    };
    [InetFamily::V4, InetFamily::V6].into_iter().find_map(|family| {
        let found = sockets.list(&Query::new(InetProtocol::Udp, family)).ok()?;
        found.iter().find(|socket| sends(socket.local())).map(InetSocket::cookie)
    })
}
