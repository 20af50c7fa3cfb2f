//! Entries about sockets, which programs write.

use crate::{Addr, Pod, Port};

/// Key of `SOCK_PEERS` (with a backend's address) and of `SOCK_FLOWS` (with a virtual address).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockKey {
    /// The socket's cookie: no other socket ever gets the same, until the machine starts anew.
    pub cookie: u64,
    /// Peer.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// Value of `SOCK_PEERS`: the virtual address under which a socket knows a backend.
///
/// A socket and a backend have one entry, so that each answer of the backend has one source. A second virtual address
/// does not get the backend while the first one [uses it](SockFlow::last_ns).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockPeer {
    /// Virtual address.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
    /// Zero.
    pub pad: u16,
}

/// Value of `SOCK_FLOWS`: where an unconnected UDP socket's datagrams to a virtual address go.
///
/// The entries of a socket are a list, so that they can be removed with the socket. It begins in the entry at
/// [`SockKey::head`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockFlow {
    /// When the socket last sent to the virtual address, monotonic clock. The backend is the virtual address's for
    /// [`UDP_IDLE_NS`](crate::UDP_IDLE_NS) from then on.
    pub last_ns: u64,
    /// The backend's address.
    pub backend_addr: Addr,
    /// The virtual address of the next entry in the list.
    pub next: Addr,
    /// The backend's id.
    pub backend: u32,
    /// The set that it was last seen in.
    pub set: u32,
    /// The backend's port.
    pub backend_port: Port,
    /// The port of the next entry in the list; 0: there is none.
    pub next_port: Port,
    /// Zero.
    pub pad: u32,
}

impl SockKey {
    /// The key of an entry that begins the list of a UDP socket. No virtual address is all zero.
    #[inline(always)]
    #[must_use]
    pub const fn head(cookie: u64, protocol: u8) -> Self {
        Self { cookie, addr: [0; 4], port: Port(0), protocol, pad: [0; 5] }
    }
}

impl SockFlow {
    /// The entry that begins the list of a socket.
    #[inline(always)]
    #[must_use]
    pub const fn head(next: Addr, next_port: Port) -> Self {
        let (backend_addr, backend_port) = ([0; 4], Port(0));
        Self { last_ns: 0, backend_addr, next, backend: 0, set: 0, backend_port, next_port, pad: 0 }
    }
}

const _: () = assert!(size_of::<SockKey>() == 32);
const _: () = assert!(size_of::<SockPeer>() == 20);
const _: () = assert!(size_of::<SockFlow>() == 56);

// SAFETY: integers and arrays of them, the sum of whose sizes is the asserted size.
unsafe impl Pod for SockKey {}
// SAFETY: as above.
unsafe impl Pod for SockPeer {}
// SAFETY: as above.
unsafe impl Pod for SockFlow {}
