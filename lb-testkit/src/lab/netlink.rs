//! Route netlink requests, many in one send.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_netlink::{Protocol, Refusal, Socket, Writer};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::LinkMessage,
    neighbour::NeighbourMessage,
    route::{RouteMessage, RouteType},
};

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

    pub(crate) fn delete_address(&mut self, what: impl Into<String>, address: AddressMessage) {
        self.push(what, RouteNetlinkMessage::DelAddress(address), 0);
    }

    pub(crate) fn route(&mut self, what: impl Into<String>, route: RouteMessage) {
        self.push(what, RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE);
    }

    pub(crate) fn neighbour(&mut self, what: impl Into<String>, neighbour: NeighbourMessage) {
        self.push(what, RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE | NLM_F_REPLACE);
    }

    /// Makes the kernel act on a change of carrier now. It does so whenever it is asked about a device; otherwise it
    /// may take its time, and until then a device loses packets, and a port of a bridge is closed.
    pub(crate) fn settle(&mut self, device: u32) {
        let what = format!("looking at device {device}");
        self.push(what, RouteNetlinkMessage::GetLink(super::wire::link(device)), 0);
    }

    /// Sends everything and waits for the answers.
    pub(crate) fn send(self, namespace: &Netns) -> Result<(), LabError> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let failure = namespace
            .run(|| exchange(&self.requests))?
            .map_err(system(format!("talking to netlink in namespace `{}`", namespace.name())))?;
        failure.map_or(Ok(()), |(index, source)| {
            let request = self.requests.get(index).map(|(what, ..)| what.clone()).unwrap_or_default();
            Err(LabError::Netlink { request, namespace: namespace.name().into(), source })
        })
    }

    fn push(&mut self, what: impl Into<String>, message: RouteNetlinkMessage, flags: u16) {
        self.requests.push((what.into(), message, flags | NLM_F_REQUEST));
    }
}

/// Waits until the kernel takes these addresses for its own. It announces an IPv6 address at once, but makes the local
/// route to it on a work queue.
pub(crate) fn wait_until_local(namespace: &Netns, ips: &[IpAddr]) -> Result<(), LabError> {
    let deadline = Instant::now() + LOCAL;
    let all_local = || {
        let mut socket = Socket::open(Protocol::Route)?;
        for &ip in ips {
            while !is_local(&mut socket, ip)? {
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

fn is_local(socket: &mut Socket, ip: IpAddr) -> io::Result<bool> {
    let mut request = Writer::default();
    request.push(NLM_F_REQUEST, &RouteNetlinkMessage::GetRoute(super::wire::query(ip)));
    let mut local = Ok(false);
    socket.look_up(request, |_, answer| {
        // As long as there is no route at all, the kernel refuses.
        let Ok(message) = answer else { return };
        local = message.decode().map(|route| match route {
            RouteNetlinkMessage::NewRoute(route) => route.header.kind == RouteType::Local,
            _ => false,
        });
    })?;
    Ok(local?)
}

/// The first request that the kernel refused, by index.
fn exchange(requests: &[Request]) -> io::Result<Option<(usize, io::Error)>> {
    let mut socket = Socket::open(Protocol::Route)?;
    let mut first = None;
    for (some, start) in requests.chunks(AT_ONCE).zip((0..).step_by(AT_ONCE)) {
        let mut datagram = Writer::default();
        some.iter().for_each(|(_, message, flags)| datagram.push(*flags, message));
        let refused = socket.request(datagram)?.into_iter().min_by_key(|refusal| refusal.index);
        let absolute = |Refusal { index, error }| (start + index as usize, lb_netlink::Error::from(error).into());
        first = first.or(refused.map(absolute));
    }
    Ok(first)
}
