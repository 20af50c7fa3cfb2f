//! Sockets of a network namespace: listed by their peers, and ended.

mod filter;
mod wire;

use std::{fmt, net::SocketAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use nix::libc;

use crate::{Error, KernelError, Protocol, Socket, Writer};
use filter::{MAX_PEERS, bytecode};
pub use wire::InetSocket;
use wire::request;

/// Message types of `sock_diag`.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/sock_diag.h>
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Type of the attribute with a filter.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/inet_diag.h>
const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// Most sockets that are ended by one datagram.
const BATCH: usize = 256;

/// The TCP and UDP sockets of one network namespace.
///
/// ```
/// use std::net::{Ipv4Addr, UdpSocket};
///
/// use lb_netlink::{InetFamily, InetProtocol, Query, SockDiag, States};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
/// let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
/// client.connect(server.local_addr()?)?;
///
/// let peers = [server.local_addr()?];
/// let query = Query::new(InetProtocol::Udp, InetFamily::V4).with_states(States::ESTABLISHED).with_peers(&peers);
/// let found = SockDiag::open()?.list(&query)?;
/// assert_eq!(found.iter().map(|socket| socket.local()).collect::<Vec<_>>(), [client.local_addr()?]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
}

/// A transport protocol whose sockets can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InetProtocol {
    /// TCP, also below multipath TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl InetProtocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }

    /// The option of the kernel that lists sockets of this protocol.
    const fn option(self) -> &'static str {
        match self {
            Self::Tcp => "CONFIG_INET_TCP_DIAG",
            Self::Udp => "CONFIG_INET_UDP_DIAG",
        }
    }
}

impl fmt::Display for InetProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// The family of a socket, which is not always that of its peer: an IPv6 socket can have an IPv4-mapped one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InetFamily {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

impl InetFamily {
    const fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }
}

/// States of sockets: a bit for each `TCP_…` of [`tcp_states.h`]. A connected UDP socket is established, any other UDP
/// socket is closed.
///
/// [`tcp_states.h`]: https://elixir.bootlin.com/linux/v6.18/source/include/net/tcp_states.h
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(pub u32);

impl States {
    /// Every state.
    pub const ALL: Self = Self(u32::MAX);
    /// Established alone: of UDP, connected sockets.
    pub const ESTABLISHED: Self = Self(1 << 1);
    /// TCP connections that are being made, are there, or of which one side has closed its half.
    pub const CONNECTED: Self = Self(1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8);
}

/// Which sockets are listed.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    protocol: InetProtocol,
    family: InetFamily,
    states: States,
    peers: Option<&'a [SocketAddr]>,
}

impl<'a> Query<'a> {
    /// Sockets of this protocol and family, in every state, whatever their peer is.
    #[must_use]
    pub const fn new(protocol: InetProtocol, family: InetFamily) -> Self {
        Self { protocol, family, states: States::ALL, peers: None }
    }

    /// The same with these states alone.
    #[must_use]
    pub const fn with_states(mut self, states: States) -> Self {
        self.states = states;
        self
    }

    /// The same with one of these peers. The kernel leaves out the others, so that the cost is that of a walk through
    /// its table. An IPv4 peer also stands for the IPv4-mapped peer of an IPv6 socket. None at all: no socket.
    #[must_use]
    pub const fn with_peers(mut self, peers: &'a [SocketAddr]) -> Self {
        self.peers = Some(peers);
        self
    }
}

/// Why sockets could not be listed or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SockDiagError {
    /// The kernel was built without what it takes.
    #[error("this kernel cannot {what}: it was built without {option}")]
    Unsupported {
        /// What was wanted.
        what: &'static str,
        /// The option that is missing, such as `CONFIG_INET_DIAG_DESTROY`.
        option: &'static str,
    },
    /// The process lacks `CAP_NET_ADMIN` in the user namespace that owns the network namespace.
    #[error("ending a socket of another process needs CAP_NET_ADMIN")]
    NotPermitted,
    /// The conversation failed otherwise.
    #[error("listing or ending sockets failed")]
    Netlink(#[from] Error),
}

/// A socket that was not ended.
#[derive(Debug)]
pub struct NotEnded {
    /// Position of the socket in the list.
    pub index: usize,
    /// Why.
    pub error: KernelError,
}

impl SockDiag {
    /// Opens a conversation about the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`SockDiagError::Unsupported`] if the kernel knows no `sock_diag`, [`SockDiagError::Netlink`].
    pub fn open() -> Result<Self, SockDiagError> {
        match Socket::open(Protocol::SockDiag) {
            Ok(socket) => Ok(Self { socket }),
            Err(error) if error.errno() == Some(libc::EPROTONOSUPPORT) => {
                Err(SockDiagError::Unsupported { what: "list sockets", option: "CONFIG_NET" })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The sockets that `query` describes. Sockets that come and go meanwhile may be missing.
    ///
    /// # Errors
    /// [`SockDiagError::Unsupported`] if the kernel lists no sockets of the protocol, [`SockDiagError::Netlink`].
    pub fn list(&mut self, query: &Query<'_>) -> Result<Vec<InetSocket>, SockDiagError> {
        let Some(peers) = query.peers else { return self.dump(query, &[]) };
        let mut found = Vec::new();
        for peers in peers.chunks(MAX_PEERS) {
            found.extend(self.dump(query, &bytecode(peers))?);
        }
        Ok(found)
    }

    fn dump(&mut self, query: &Query<'_>, filter: &[u8]) -> Result<Vec<InetSocket>, SockDiagError> {
        let Query { protocol, family, states, .. } = *query;
        let fixed = request(family.number(), protocol.number(), states.0, &[0; wire::ID]);
        let attributes = |w: &mut Writer| {
            if !filter.is_empty() {
                w.put(INET_DIAG_REQ_BYTECODE, filter);
            }
        };
        let each = |found: &mut Vec<InetSocket>, message: crate::Message<'_>| {
            found.extend(InetSocket::read(protocol, message.payload));
        };
        self.socket.dump(SOCK_DIAG_BY_FAMILY, &fixed, attributes, each).map_err(|error| not_listed(protocol, error))
    }

    /// Ends sockets as the kernel does that loses its address: whoever waits for one gets `ECONNABORTED`, and its other
    /// end gets a reset if it is TCP. Returns those that were not ended; one that has gone meanwhile is not among them.
    ///
    /// A socket is ended only if it is still the same, with the same peer: the kernel compares the cookie.
    ///
    /// # Errors
    /// [`SockDiagError::Unsupported`] and [`SockDiagError::NotPermitted`]: then no socket was ended from the first one
    /// on to which this applies. [`SockDiagError::Netlink`].
    pub fn end(&mut self, sockets: &[InetSocket]) -> Result<Vec<NotEnded>, SockDiagError> {
        let mut not_ended = Vec::new();
        for (batch, sockets) in sockets.chunks(BATCH).enumerate() {
            let mut requests = Writer::default();
            for socket in sockets {
                requests.message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &socket.destroy_request(), |_| {});
            }
            for refusal in self.socket.request(requests)? {
                let index = batch * BATCH + refusal.index as usize;
                not_ended.extend(not_ended_at(index, refusal.error)?);
            }
        }
        Ok(not_ended)
    }

    /// Whether sockets of this protocol can be listed and ended, by asking for the end of one that nobody has.
    ///
    /// # Errors
    /// [`SockDiagError::Unsupported`] with the option that is missing, [`SockDiagError::Netlink`].
    pub fn probe(&mut self, protocol: InetProtocol) -> Result<(), SockDiagError> {
        // The kernel answers alike if it finds no socket and if it does not know the protocol.
        self.list(&Query::new(protocol, InetFamily::V4).with_states(States(0)))?;
        self.end(&[InetSocket::nobody(protocol)]).map(drop)
    }
}

/// Why sockets of a protocol are not listed. Without anything that handles the protocol, and without a module that could
/// be loaded, there is "no such file".
fn not_listed(protocol: InetProtocol, error: Error) -> SockDiagError {
    match error.errno() {
        Some(libc::ENOENT) => {
            SockDiagError::Unsupported { what: "list sockets of this protocol", option: protocol.option() }
        }
        _ => error.into(),
    }
}

/// Why one socket was not ended, if it is still there; an error if none is.
fn not_ended_at(index: usize, error: KernelError) -> Result<Option<NotEnded>, SockDiagError> {
    match error.errno() {
        // It was closed meanwhile, or it is another one by now.
        libc::ENOENT | libc::ESTALE => Ok(None),
        libc::EOPNOTSUPP => Err(SockDiagError::Unsupported { what: "end sockets", option: "CONFIG_INET_DIAG_DESTROY" }),
        libc::EPERM => Err(SockDiagError::NotPermitted),
        _ => Ok(Some(NotEnded { index, error })),
    }
}

#[cfg(test)]
mod tests;
