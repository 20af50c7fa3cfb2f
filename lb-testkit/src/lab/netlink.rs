//! Route netlink requests, many in one send.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::LinkMessage,
    neighbour::NeighbourMessage,
    route::{RouteMessage, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::Netns;
use crate::error::{LabError, system};

/// Requests in one datagram: as many as their longest answers surely fit a socket's default buffer.
const AT_ONCE: usize = 24;

/// How long an address may take to become local.
const LOCAL: Duration = Duration::from_secs(10);

/// What it is in words, itself, and its flags.
type Request = (String, RouteNetlinkMessage, u16);

/// Requests for one namespace. The kernel carries them out in order; one that fails does not stop the others, but the
/// first failure is what [`Batch::send`] reports.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    requests: Vec<Request>,
}

impl Batch {
    pub(crate) fn new_link(&mut self, what: impl Into<String>, link: LinkMessage) {
        self.push(what, RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL);
    }

    pub(crate) fn set_link(&mut self, what: impl Into<String>, link: LinkMessage) {
        self.push(what, RouteNetlinkMessage::SetLink(link), 0);
    }

    pub(crate) fn delete_link(&mut self, what: impl Into<String>, link: LinkMessage) {
        self.push(what, RouteNetlinkMessage::DelLink(link), 0);
    }

    pub(crate) fn address(&mut self, what: impl Into<String>, address: AddressMessage) {
        self.push(what, RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_EXCL);
    }

    pub(crate) fn route(&mut self, what: impl Into<String>, route: RouteMessage) {
        self.push(what, RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE);
    }

    pub(crate) fn neighbour(&mut self, what: impl Into<String>, neighbour: NeighbourMessage) {
        self.push(what, RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE | NLM_F_REPLACE);
    }

    /// Makes the kernel act on a change of carrier now. It does so whenever it is asked about a device; otherwise it may
    /// take its time, and until then a device loses what it is given, and a port of a bridge is closed.
    pub(crate) fn settle(&mut self, device: u32) {
        let what = format!("looking at device {device}");
        self.push(what, RouteNetlinkMessage::GetLink(super::wire::link(device)), 0);
    }

    /// Sends everything and waits for the answers.
    pub(crate) fn send(self, namespace: &Netns) -> Result<(), LabError> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self.requests.iter().map(|(what, ..)| what.clone()).collect();
        let failure = namespace
            .run(|| exchange(self.requests))?
            .map_err(system(format!("talking to netlink in namespace `{}`", namespace.name())))?;
        failure.map_or(Ok(()), |(index, source)| {
            let request = names.get(index).cloned().unwrap_or_default();
            Err(LabError::Netlink { request, namespace: namespace.name().into(), source })
        })
    }

    fn push(&mut self, what: impl Into<String>, message: RouteNetlinkMessage, flags: u16) {
        self.requests.push((what.into(), message, flags | NLM_F_REQUEST | NLM_F_ACK));
    }
}

/// Waits until the kernel takes these addresses for its own. It announces an IPv6 address at once, but makes the local
/// route to it on a work queue.
pub(crate) fn wait_until_local(namespace: &Netns, ips: &[IpAddr]) -> Result<(), LabError> {
    let deadline = Instant::now() + LOCAL;
    let all_local = || {
        let socket = connected()?;
        for &ip in ips {
            while !is_local(&socket, ip)? {
                if Instant::now() > deadline {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{ip} is not local after {LOCAL:?}")));
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    };
    namespace.run(all_local)?.map_err(system(format!("waiting for addresses of namespace `{}`", namespace.name())))
}

fn is_local(socket: &Socket, ip: IpAddr) -> io::Result<bool> {
    let query = RouteNetlinkMessage::GetRoute(super::wire::query(ip));
    socket.send(&encode(vec![(0, (String::new(), query, NLM_F_REQUEST))]), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram).map_err(io::Error::other)?;
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(route.header.kind == RouteType::Local),
        // No route at all yet.
        _ => Ok(false),
    }
}

fn connected() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_cap_ack(true)?;
    Ok(socket)
}

/// The first request that the kernel refused, by index.
fn exchange(requests: Vec<Request>) -> io::Result<Option<(usize, io::Error)>> {
    let socket = connected()?;
    let mut first = None;
    let mut requests = requests.into_iter().enumerate().peekable();
    while requests.peek().is_some() {
        let some: Vec<_> = requests.by_ref().take(AT_ONCE).collect();
        let mut awaited = some.len();
        socket.send(&encode(some), 0)?;
        while awaited > 0 {
            let (datagram, _) = socket.recv_from_full()?;
            for (index, error) in answers(&datagram)? {
                awaited = awaited.saturating_sub(1);
                if let (Some(error), None) = (error, &first) {
                    first = Some((index, error));
                }
            }
        }
    }
    Ok(first)
}

fn encode(requests: Vec<(usize, Request)>) -> Vec<u8> {
    let mut buffer = Vec::new();
    for (index, (_, message, flags)) in requests {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = buffer.len();
        buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..start + message.buffer_len()]);
    }
    buffer
}

/// Index of the request and its error, for every answer in a datagram.
fn answers(mut datagram: &[u8]) -> io::Result<Vec<(usize, Option<io::Error>)>> {
    let mut found = Vec::new();
    while !datagram.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram).map_err(io::Error::other)?;
        let index = (message.header.sequence_number as usize).saturating_sub(1);
        if let NetlinkPayload::Error(answer) = &message.payload {
            found.push((index, answer.code.map(|_| answer.to_io())));
        }
        let length = (message.header.length as usize).next_multiple_of(4).min(datagram.len());
        datagram = &datagram[length.max(4).min(datagram.len())..];
    }
    Ok(found)
}
