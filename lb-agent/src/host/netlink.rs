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

/// See [`crate::fuzzing::netlink`].
#[cfg(any(test, fuzzing))]
pub(crate) fn take_any(datagram: &[u8]) {
    let mut answers = Vec::new();
    let _ = take_answers(datagram, &mut answers);
    assert!(answers.len() <= datagram.len() / 16, "{} messages in {} bytes", answers.len(), datagram.len());
    for answer in &answers {
        match answer {
            RouteNetlinkMessage::NewAddress(address) => drop(local(address)),
            RouteNetlinkMessage::NewRoute(route) if is_default(route) => drop(outputs(route)),
            _ => {}
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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// What is read of a file of the fuzz target's corpus, and whether the dump ends with it.
    fn read(name: &str) -> (Vec<RouteNetlinkMessage>, io::Result<bool>) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/netlink");
        let mut answers = Vec::new();
        let ended = take_answers(&fs::read(corpus.join(name)).unwrap(), &mut answers);
        (answers, ended)
    }

    #[test]
    fn uplinks_are_the_outputs_of_unicast_default_routes() {
        let outputs_of = |name| -> Vec<u32> {
            let (answers, _) = read(name);
            let routes = answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) if is_default(route) => Some(outputs(route)),
                _ => None,
            });
            routes.flatten().collect()
        };
        assert_eq!((outputs_of("routes"), outputs_of("multipath")), (vec![2], vec![2, 3]), "a blackhole is none");
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
    fn a_dump_ends_when_the_kernel_says_so_and_an_error_is_one() {
        assert!(read("multipath").1.unwrap());
        assert!(!read("routes").1.unwrap());
        assert_eq!(read("error").1.unwrap_err().raw_os_error(), Some(1));
    }
}
