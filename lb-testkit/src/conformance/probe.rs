//! A flow to be sent.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_core::{
    addr::{Family, Protocol},
    decision::{Entry, Packet},
};

use super::service::{CLIENT_POD, FRONT_PORT, Vip, pod, pod_ip};
use crate::{
    lab::{Origin, topology},
    traffic::{Failure, FailureKind, Request, Response, Transport},
};

/// Vantage points that every datapath has to serve.
pub(super) const ORIGINS: [Origin; 5] =
    [Origin::Pod(CLIENT_POD), Origin::PodPackets(CLIENT_POD), Origin::Node(0), Origin::Client, Origin::Beyond];

/// Those whose packets, not sockets, a datapath sees, whatever it is.
pub(super) const PACKET_ORIGINS: [Origin; 3] = [Origin::PodPackets(CLIENT_POD), Origin::Client, Origin::Beyond];

pub(super) const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected];

/// A flow to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) origin: Origin,
    pub(super) to: SocketAddr,
    pub(super) transport: Transport,
    /// Address to send from; port 0 for any. Default: the kernel's choice.
    pub(super) from: Option<SocketAddr>,
    /// The node whose datapath decides: the one that it begins on, or comes to. Default: node 0.
    pub(super) at: usize,
}

impl Probe {
    pub(super) fn new(origin: Origin, vip: Vip, family: Family, transport: Transport) -> Self {
        Self { origin, to: (vip.ip(family), FRONT_PORT).into(), transport, from: None, at: 0 }
    }

    /// From every vantage point, in both families, over every transport.
    pub(super) fn everywhere(vip: Vip) -> impl Iterator<Item = Self> + use<> {
        Self::from_origins(&ORIGINS, vip)
    }

    pub(super) fn from_origins(origins: &[Origin], vip: Vip) -> impl Iterator<Item = Self> {
        origins.iter().copied().flat_map(move |origin| {
            topology::FAMILIES.into_iter().flat_map(move |family| {
                TRANSPORTS.into_iter().map(move |transport| Self::new(origin, vip, family, transport))
            })
        })
    }

    pub(super) fn from(mut self, from: SocketAddr) -> Self {
        self.from = Some(from);
        self
    }

    pub(super) fn at(mut self, node: usize) -> Self {
        self.at = node;
        self
    }

    pub(super) fn family(&self) -> Family {
        Family::of(self.to.ip())
    }

    pub(super) fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp | Transport::UdpUnconnected => Protocol::Udp,
        }
    }

    pub(super) fn entry(&self) -> Entry {
        match self.origin {
            Origin::Pod(index) if pod(index).1 == self.at => Entry::Socket,
            Origin::PodPackets(index) if pod(index).1 == self.at => Entry::PodDevice,
            Origin::Node(node) | Origin::NodePackets(node) if node == self.at => Entry::Socket,
            Origin::Pod(_) | Origin::PodPackets(_) | Origin::Node(_) | Origin::NodePackets(_) => Entry::Uplink,
            Origin::Client | Origin::Beyond => Entry::Uplink,
        }
    }

    /// The packet that enters the node, from `source`.
    pub(super) fn packet(&self, source: SocketAddr) -> Packet {
        Packet {
            entry: self.entry(),
            protocol: self.protocol(),
            source: source.ip(),
            source_port: source.port(),
            destination: self.to.ip(),
            destination_port: self.to.port(),
        }
    }

    /// Where the answered flow was sent from; a socket that is not connected does not know its address.
    pub(super) fn sent_from(&self, response: &Response) -> SocketAddr {
        let ip = Some(response.local.ip()).filter(|ip| !ip.is_unspecified());
        SocketAddr::new(ip.unwrap_or(self.sender()), response.local.port())
    }

    /// Whether a failure is how this sender learns that its datagram was stopped on its own host: at the output hook, and
    /// at the device if the socket asked for errors, the system call itself fails.
    pub(super) fn stopped_at_home(&self, failure: &Failure) -> bool {
        self.is_datagram_of_node() && matches!(failure.kind, FailureKind::Denied | FailureKind::NotTaken)
    }

    /// The same by a route: only a socket that asked for errors learns of it.
    pub(super) fn unroutable_at_home(&self, failure: &Failure) -> bool {
        self.is_datagram_of_node() && failure.kind == FailureKind::Unreachable
    }

    fn is_datagram_of_node(&self) -> bool {
        self.is_of_node() && self.protocol() == Protocol::Udp
    }

    /// Whether a process of the node sends it.
    pub(super) fn is_of_node(&self) -> bool {
        matches!(self.origin, Origin::Node(node) | Origin::NodePackets(node) if node == self.at)
    }

    /// Its source address.
    pub(super) fn sender(&self) -> IpAddr {
        self.source().ip()
    }

    /// Where it is sent from, as far as that is known before.
    pub(super) fn source(&self) -> SocketAddr {
        let ip = match self.origin {
            Origin::Pod(index) | Origin::PodPackets(index) => pod_ip(pod(index).0, self.family()),
            Origin::Node(node) | Origin::NodePackets(node) => topology::node_ip(node, self.family()),
            Origin::Client => topology::client_ip(topology::segment(self.family()), 0),
            Origin::Beyond => topology::client_ip(topology::beyond(self.family()), 0),
        };
        self.from.unwrap_or((ip, 0).into())
    }

    pub(super) fn request(&self, timeout: Duration) -> Request {
        let request = Request::over(self.transport, self.to).timeout(timeout);
        match self.from {
            Some(from) => request.from(from),
            None => request,
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} from {:?}", self.transport, self.origin)?;
        if let Some(from) = self.from {
            write!(f, " ({from})")?;
        }
        write!(f, " to {}", self.to)
    }
}
