//! What the kernel says about devices, addresses and routes of this network namespace.

use std::{collections::BTreeMap, io, net::IpAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::MsgFlags;

/// Multicast group of link messages (`RTNLGRP_LINK`).
const LINK_GROUP: u32 = 1;

/// Index and name of every device.
pub(crate) fn devices() -> io::Result<BTreeMap<u32, String>> {
    let answers = dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let named = answers.into_iter().filter_map(|answer| {
        let RouteNetlinkMessage::NewLink(link) = answer else { return None };
        let name = link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })?;
        Some((link.header.index, name))
    });
    Ok(named.collect())
}

/// Names of the devices that have a default route, in order of name.
pub(crate) fn uplinks() -> io::Result<Vec<String>> {
    let devices = devices()?;
    let answers = dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) if is_default(&route) => Some(route),
        _ => None,
    });
    let mut names: Vec<String> =
        routes.flat_map(|route| outputs(&route)).filter_map(|index| devices.get(&index).cloned()).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
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

/// Tells when devices come, go or change.
pub(crate) struct LinkMonitor {
    socket: Socket,
}

impl LinkMonitor {
    pub(crate) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(LINK_GROUP)?;
        Ok(Self { socket })
    }

    /// Blocks until something changed; what it was has to be looked up.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.take(0)?;
        while self.take(MsgFlags::MSG_DONTWAIT.bits())? {}
        Ok(())
    }

    /// Whether there was a message. One that was lost for want of room (`ENOBUFS`) counts.
    fn take(&self, flags: i32) -> io::Result<bool> {
        match self.socket.recv(&mut Vec::with_capacity(1), flags) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

fn outputs(route: &RouteMessage) -> Vec<u32> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    route.attributes.iter().flat_map(of).collect()
}

/// On a point-to-point device the address is the peer's and `Local` is ours; IPv6 has `Address` alone.
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
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if take_answers(&datagram, &mut answers)? {
            return Ok(answers);
        }
    }
}

/// Whether the dump ends with this datagram.
fn take_answers(mut datagram: &[u8], answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    while !datagram.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram).map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4).clamp(4, datagram.len().max(4));
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            _ => {}
        }
        datagram = datagram.get(length..).unwrap_or_default();
    }
    Ok(false)
}
