//! Entries about sockets.

use crate::{Addr, Pod, Port};

/// The only key of `SOCK_SETTINGS`.
pub const SETTINGS_KEY: u32 = 0;

/// [`SockSettings::balance`]: sockets of every network namespace.
pub const BALANCE_ALL: u8 = 0;
/// [`SockSettings::balance`]: sockets of the node's network namespace.
pub const BALANCE_HOST: u8 = 1;
/// [`SockSettings::balance`]: none.
pub const BALANCE_OFF: u8 = 2;

/// [`SockSettings::lists`]: `SOCK_SKIPS` has entries, cookies of network namespaces whose sockets are not sent to
/// backends.
pub const LISTS_SKIPS: u8 = 1;
/// [`SockSettings::lists`]: `SOCK_COUNTS` may have entries, so that the end of each socket is looked up there.
pub const LISTS_COUNTS: u8 = 2;

/// Value of `SOCK_SETTINGS`, which user space writes. All zero, every socket is balanced and nothing else done.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockSettings {
    /// The cookie of the node's network namespace; 0: not known.
    pub host_netns: u64,
    /// Which sockets are sent to backends: `BALANCE_…`.
    pub balance: u8,
    /// 1 if sockets of the node cannot be bound to an address and a port of the node that are a frontend.
    pub guards_ports: u8,
    /// 1 if sockets of the node reach node ports at loopback addresses as well.
    pub loopback: u8,
    /// Which maps of sockets have entries: `LISTS_…`.
    pub lists: u8,
    /// The first port that is looked for at every address of the node.
    pub first_node_port: u16,
    /// The last one.
    pub last_node_port: u16,
}

impl SockSettings {
    /// All zero.
    pub const NONE: Self = Self {
        host_netns: 0,
        balance: BALANCE_ALL,
        guards_ports: 0,
        loopback: 0,
        lists: 0,
        first_node_port: 0,
        last_node_port: 0,
    };

    /// Whether a port is in the range of node ports.
    #[inline(always)]
    #[must_use]
    pub const fn is_node_port(&self, port: Port) -> bool {
        self.first_node_port <= port.number() && port.number() <= self.last_node_port
    }
}

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

/// Elements of `SOCK_CELLS`, a power of two.
pub const SOCK_CELLS: u32 = 1 << 16;

/// Value of `SOCK_CELLS`: what `SOCK_PEERS` would have of a TCP socket, in the element that the socket's cookie leads to
/// ([`index`](Self::index)).
///
/// Cookies are counted up, so that sockets have elements of their own, one after the other, and finding one takes neither a
/// hash nor a lock. A socket whose element is another open socket's has its entry in `SOCK_PEERS`.
///
/// The element belongs to the socket whose cookie is in [`key`](Self::key); 0: to nobody. It is taken and given up by
/// atomic exchanges of the cookie, and only its owner writes the rest. The protocol of an element that is given up is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockCell {
    /// The socket and its peer. Protocol 0: the owner has not written them yet.
    pub key: SockKey,
    /// The virtual address under which the socket knows its peer.
    pub peer: SockPeer,
    /// Zero.
    pub pad: u32,
}

impl SockCell {
    /// Belongs to nobody.
    pub const FREE: Self = Self {
        key: SockKey { cookie: 0, addr: [0; 4], port: Port(0), protocol: 0, pad: [0; 5] },
        peer: SockPeer { addr: [0; 4], port: Port(0), pad: 0 },
        pad: 0,
    };

    /// In the place of a cookie: its owner gives it up, and nobody may take it yet.
    pub const LEFT: u64 = u64::MAX;

    /// The element of a socket.
    #[inline(always)]
    #[must_use]
    pub const fn index(cookie: u64) -> u32 {
        cookie as u32 & (SOCK_CELLS - 1)
    }
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
    /// 1 if it counts as a connection of the backend in `LOADS`, until it was silent for
    /// [`UDP_IDLE_NS`](crate::UDP_IDLE_NS) or the socket ends.
    pub counted: u32,
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
        Self { last_ns: 0, backend_addr, next, backend: 0, set: 0, backend_port, next_port, counted: 0 }
    }
}

const _: () = assert!(size_of::<SockSettings>() == 16);
const _: () = assert!(size_of::<SockKey>() == 32);
const _: () = assert!(size_of::<SockPeer>() == 20);
const _: () = assert!(size_of::<SockFlow>() == 56);
const _: () = assert!(size_of::<SockCell>() == 56);

// SAFETY: integers and arrays of them, the sum of whose sizes is the asserted size.
unsafe impl Pod for SockSettings {}
// SAFETY: as above.
unsafe impl Pod for SockKey {}
// SAFETY: as above.
unsafe impl Pod for SockPeer {}
// SAFETY: as above.
unsafe impl Pod for SockFlow {}
// SAFETY: as above.
unsafe impl Pod for SockCell {}
