//! Blocking netlink sockets, for code that talks to the kernel from an ordinary thread.
//!
//! A [`Socket`] knows three conversations: requests that are acknowledged ([`Socket::request`] and, for the batches of
//! nfnetlink, [`Socket::transaction`]), requests that have one answer each ([`Socket::look_up`]), and dumps
//! ([`Socket::dump`]). A [`Listener`] joins multicast groups and says when the kernel dropped a notification. Both
//! belong to the network namespace of the thread that opened them; any thread may use them later.
//!
//! The crate knows headers, attributes and acknowledgements, and of all subsystems only one: [`SockDiag`] lists the
//! sockets of a network namespace and ends them. Other messages come from `netlink-packet-route`, or are written with a
//! [`Writer`]. It has no async interface, resolves no generic netlink
//! family, never splits a datagram, and never repeats a request that changes something.
//!
//! ```
//! use lb_netlink::{Protocol, Socket};
//! use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
//!
//! # fn main() -> Result<(), lb_netlink::Error> {
//! let mut socket = Socket::open(Protocol::Route)?;
//! let links = socket.dump_all(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
//! let loopback = |link: &RouteNetlinkMessage| matches!(link, RouteNetlinkMessage::NewLink(l) if l.header.index == 1);
//! assert!(links.iter().any(loopback), "every network namespace has a loopback device");
//! # Ok(())
//! # }
//! ```

mod codec;
mod dump;
mod error;
mod listen;
mod message;
mod sock_diag;
mod socket;

pub use self::{
    codec::{Attributes, Writer, attributes, string, u16_be, u32_be, u64_be},
    error::{Error, KernelError, Result},
    listen::{Delivery, Listener, Pause, wait},
    message::{Answer, HEADER, Message, messages},
    sock_diag::{InetFamily, InetProtocol, InetSocket, NotEnded, Query, SockDiag, SockDiagError, States},
    socket::{Protocol, Refusal, Socket},
};

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
