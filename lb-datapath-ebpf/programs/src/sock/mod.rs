//! Hooks of sockets: a destination is translated once, where the socket states it.
//!
//! The kernel calls `sendmsg` hooks only for datagrams that state an address, and calls `recvmsg` hooks for connected
//! sockets as well ([`udp_sendmsg`, `udp_recvmsg`]).
//!
//! [`udp_sendmsg`, `udp_recvmsg`]: https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/udp.c

mod bind;
pub mod hash;
mod node;
mod peers;

use lb_datapath_ebpf_abi::{
    ADDRESS_DROPS, ADDRESS_REJECTS, Addr, AffinityKey, BALANCE_HOST, BALANCE_OFF, CLIENT_NETNS, Errno,
    FRONTEND_GUARDS_OUTSIDE, FrontendKey, FrontendValue, LISTS_COUNTS, LISTS_SKIPS, Port, ROLE_ACTIVE, ROLE_STANDBY,
    Reason, SCOPE_ANY, SockFlow, SockKey, SockPeer, SockSettings, TARGET_SET, UDP_IDLE_NS, Verdict, is_loopback,
    unmap_v4,
};

use crate::{
    maps::{Change, Maps},
    protocol::{TCP, UDP},
    select::{Admission, Answer, Chosen, Flow, choose, find, frontend_for},
    sock::hash::cookie_hash,
};

pub use bind::{Bound, bind};

/// Verdict for the kernel: the call goes on.
pub const ALLOW: i32 = 1;
/// Verdict for the kernel: the call fails.
pub const REFUSE: i32 = 0;

/// A multipath TCP socket's protocol; on the wire it is TCP.
const IPPROTO_MPTCP: u32 = 262;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// Family of the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `…4`: the address is in `user_ip4`.
    V4,
    /// `…6`: the address is in `user_ip6`, IPv4-mapped for an IPv6 socket with an IPv4 peer.
    V6,
}

/// A call that a program can make fail.
pub trait Failing: Copy {
    /// Makes the call fail with this error number.
    fn fail(self, errno: Errno);
}

/// The socket that called, as the kernel's helpers see it.
pub trait Sock: Failing {
    /// Family of the hook.
    fn hook(self) -> Hook;
    /// `type` and `protocol` of the socket.
    fn kind(self) -> (u32, u32);
    /// The socket's cookie.
    fn cookie(self) -> u64;
    /// The cookie of its network namespace.
    fn netns_cookie(self) -> u64;
    /// The peer that the socket states.
    fn peer(self) -> (Addr, Port);
    /// The peer that the socket is connected to.
    fn connected_to(self) -> Option<(Addr, Port)>;
    /// Sets an IPv4 peer of the socket, in a hook of that family.
    fn set_peer_v4(self, addr: [u8; 4], port: Port);
    /// Sets a peer of the socket, in a hook of IPv6.
    fn set_peer_v6(self, addr: Addr, port: Port);
}

/// A socket whose last descriptor was closed.
pub trait Closing: Copy {
    /// `type` and `protocol` of the socket.
    fn kind(self) -> (u32, u32);
    /// The socket's cookie.
    fn cookie(self) -> u64;
    /// The peer that the socket is connected to.
    fn connected_to(self) -> Option<(Addr, Port)>;
}

/// The maps of sockets.
pub trait SockMaps: Maps {
    /// An entry of `SOCK_FLOWS` that is there.
    type Entry: Entry;
    /// An element of `SOCK_CELLS`.
    type Cell: Cell;

    /// What the programs of sockets do besides their own.
    fn settings(self) -> SockSettings;
    /// Whether sockets of the network namespace with this cookie are left alone.
    fn skips(self, netns: u64) -> bool;
    /// Address `index` of the node.
    fn node_ip(self, index: u32) -> Option<Addr>;
    /// The element of `SOCK_CELLS` that a socket may take, by its cookie.
    fn cell(self, cookie: u64) -> Option<Self::Cell>;
    /// The virtual address behind a peer of a socket, in `SOCK_PEERS`.
    fn peer(self, key: &SockKey) -> Option<SockPeer>;
    /// Writes the virtual address behind a peer of a socket into `SOCK_PEERS`. A full map evicts its least recently used
    /// entry; that socket may then see a backend's address.
    fn put_peer(self, key: &SockKey, peer: &SockPeer);
    /// Removes an entry of `SOCK_PEERS` if it is there.
    fn remove_peer(self, key: &SockKey);
    /// The backend of which the socket with this cookie counts as a connection.
    fn counted(self, cookie: u64) -> Option<u32>;
    /// Lets the socket with this cookie count as a connection of `backend`; `false` if there is no memory.
    fn put_counted(self, cookie: u64, backend: u32) -> bool;
    /// Removes an entry if it is there.
    fn remove_counted(self, cookie: u64);
    /// The backend of a socket's datagrams to a virtual address.
    fn flow(self, key: &SockKey) -> Option<Self::Entry>;
    /// Removes an entry if it is there.
    fn remove_flow(self, key: &SockKey);
    /// Writes the backend of a socket's datagrams. A full map evicts its least recently used entry; that socket may
    /// then get another backend.
    fn put_flow(self, key: &SockKey, flow: &SockFlow);
}

/// An element of `SOCK_CELLS`. It is exchanged with other sockets by its cookie, and written by its owner alone.
pub trait Cell: Copy {
    /// Makes it the socket's with this cookie; false if it is another one's, or if the kernel has no atomic exchange.
    fn take(self, cookie: u64) -> bool;
    /// Gives it up; false if it is not the socket's with this cookie.
    fn give_up(self, cookie: u64) -> bool;
    /// The virtual address behind the peer of its owner, if that peer is this one.
    fn peer(self, key: &SockKey) -> Option<SockPeer>;
    /// Writes the virtual address behind the peer of its owner.
    fn put_peer(self, key: &SockKey, peer: &SockPeer);
}

/// An entry of `SOCK_FLOWS`. It belongs to one socket; its fields are read and written one by one.
pub trait Entry {
    /// A copy of the whole.
    fn value(&self) -> SockFlow;
    /// Writes [`SockFlow::last_ns`] and [`SockFlow::set`].
    fn touch(&self, now: u64, set: u32);
}

/// `connect`: sends the socket to a backend, for TCP and connected UDP.
#[inline(always)]
pub fn connect<M: SockMaps, S: Sock>(maps: M, sock: S) -> i32 {
    let settings = maps.settings();
    let Some(socket) = Socket::new(sock, &settings) else { return ALLOW };
    if maps.role() != ROLE_ACTIVE || !socket.is_balanced(maps, &settings) {
        return ALLOW;
    }
    let key = socket.frontend_key(maps, &settings);
    match decide(maps, &key, &socket) {
        Decision::NoFrontend => {
            socket.leave(maps);
            socket.forget(maps);
            ALLOW
        }
        Decision::Stopped => REFUSE,
        // A TCP socket has one peer.
        Decision::Backend(chosen) if socket.protocol == TCP => {
            socket.count(maps, &chosen);
            socket.redirect(maps, &chosen)
        }
        Decision::Backend(chosen) => match socket.unambiguous(maps, &key, chosen, None) {
            Some(chosen) => {
                socket.leave(maps);
                socket.count(maps, &chosen);
                socket.redirect(maps, &chosen)
            }
            None => socket.stop(maps, Reason::SocketAmbiguous),
        },
    }
}

/// `sendmsg` with an address, of UDP sockets: a socket's datagrams to one frontend keep their backend as long as
/// the set has it, in a slot or draining.
///
/// A datagram to the peer that the socket is connected to is left alone: `connect` has decided on it. The kernel states
/// that peer itself for an IPv6 socket that is connected to an IPv4-mapped address (`udpv6_sendmsg`).
#[inline(always)]
pub fn sendmsg<M: SockMaps, S: Sock>(maps: M, sock: S) -> i32 {
    let settings = maps.settings();
    let Some(socket) = Socket::new(sock, &settings) else { return ALLOW };
    let (connected, role) = (socket.sock.connected_to(), maps.role());
    let is_peer = connected == Some((socket.addr, socket.port));
    if is_peer || role == ROLE_STANDBY || !socket.is_balanced(maps, &settings) {
        return ALLOW;
    }
    let key = socket.frontend_key(maps, &settings);
    let chosen = match socket.kept(maps, &key) {
        Some(chosen) => chosen,
        None if role != ROLE_ACTIVE => return ALLOW,
        None => match decide(maps, &key, &socket) {
            Decision::NoFrontend => {
                socket.forget(maps);
                return ALLOW;
            }
            Decision::Stopped => return REFUSE,
            Decision::Backend(chosen) => chosen,
        },
    };
    let Some(chosen) = socket.unambiguous(maps, &key, chosen, connected) else {
        return socket.stop(maps, Reason::SocketAmbiguous);
    };
    socket.keep(maps, &chosen);
    socket.redirect(maps, &chosen)
}

/// `recvmsg` and `getpeername`: shows the virtual address where the kernel knows a backend's.
#[inline(always)]
pub fn restore<M: SockMaps, S: Sock>(maps: M, sock: S) -> i32 {
    let Some(socket) = Socket::new(sock, &SockSettings::NONE) else { return ALLOW };
    if let Some(peer) = peers::get(maps, &socket.key()) {
        socket.write(peer.addr, peer.port);
    }
    ALLOW
}

/// Entries of a socket that [`release`] removes; it leaves more to the eviction of the least recently used.
const RELEASED: usize = 32;

/// The end of a socket: its entries are removed, so that they push out none of other sockets.
#[inline(always)]
pub fn release<M: SockMaps, S: Closing>(maps: M, sock: S) -> i32 {
    let Some(protocol) = protocol(sock.kind()) else { return ALLOW };
    let cookie = sock.cookie();
    let key = |(addr, port)| SockKey { cookie, addr, port, protocol, pad: [0; 5] };
    if maps.settings().lists & LISTS_COUNTS != 0 {
        uncount(maps, cookie);
    }
    if protocol != UDP {
        peers::release(maps, cookie, || sock.connected_to().map(key));
        return ALLOW;
    }
    if let Some(peer) = sock.connected_to() {
        remove_peer(maps, &key(peer));
    }
    let mut at = SockKey::head(cookie, protocol);
    for _ in 0..RELEASED {
        let Some(flow) = maps.flow(&at) else { return ALLOW };
        let flow = flow.value();
        maps.remove_flow(&at);
        uncount_flow(maps, &flow);
        maps.remove_peer(&key((flow.backend_addr, flow.backend_port)));
        at = key((flow.next, flow.next_port));
    }
    ALLOW
}

/// A look-up takes no lock, and most sockets have no entry.
#[inline(always)]
fn remove_peer<M: SockMaps>(maps: M, key: &SockKey) {
    if maps.peer(key).is_some() {
        maps.remove_peer(key);
    }
}

/// The socket with this cookie counts as a connection no longer, if it did.
#[inline(always)]
fn uncount<M: SockMaps>(maps: M, cookie: u64) {
    if let Some(backend) = maps.counted(cookie) {
        maps.remove_counted(cookie);
        maps.change_load(backend, Change::Ends);
    }
}

/// The datagrams of an entry count as a connection no longer, if they did. Of those that were silent for long, user space
/// has said so already.
#[inline(always)]
fn uncount_flow<M: SockMaps>(maps: M, flow: &SockFlow) {
    if flow.counted != 0 && maps.now().saturating_sub(flow.last_ns) < UDP_IDLE_NS {
        maps.change_load(flow.backend, Change::Ends);
    }
}

/// Counts `reason` and fails the call as its verdict says.
#[inline(always)]
fn fail<M: Maps, S: Failing>(maps: M, sock: S, reason: Reason) {
    maps.count(reason);
    match reason.verdict() {
        Verdict::Fail(errno) => sock.fail(errno),
        // Reasons of packets do not come here.
        Verdict::Pass | Verdict::Drop | Verdict::Answer => {}
    }
}

/// The protocol on the wire, if it is one that is served.
#[inline(always)]
const fn protocol(kind: (u32, u32)) -> Option<u8> {
    match kind {
        (SOCK_STREAM, IPPROTO_MPTCP) => Some(TCP),
        (SOCK_STREAM, protocol) if protocol == TCP as u32 => Some(TCP),
        (SOCK_DGRAM, protocol) if protocol == UDP as u32 => Some(UDP),
        _ => None,
    }
}

/// The decision on a call that no earlier one has decided.
enum Decision {
    NoFrontend,
    /// The call has failed.
    Stopped,
    Backend(Chosen),
}

#[inline(always)]
fn decide<M: SockMaps, S: Sock>(maps: M, key: &FrontendKey, socket: &Socket<S>) -> Decision {
    // Once for each reason: one `match` over a reason that is not constant would become a table.
    let stopped = |reason| {
        socket.stop(maps, reason);
        Decision::Stopped
    };
    match choose(maps, key, socket) {
        Answer::NotAFrontend => other_port(maps, key, socket),
        Answer::Undecided => Decision::NoFrontend,
        Answer::NoBackends => stopped(Reason::SocketNoBackends),
        Answer::Excluded | Answer::KeptOut => stopped(Reason::SocketExcluded),
        Answer::BackendMissing => stopped(Reason::SocketBackendMissing),
        Answer::Backend(chosen) => Decision::Backend(chosen),
    }
}

/// Decides on a peer that is no frontend, though its address may have others.
#[inline(always)]
fn other_port<M: SockMaps, S: Sock>(maps: M, key: &FrontendKey, socket: &Socket<S>) -> Decision {
    let says = if maps.knows(key.addr) { maps.address(key.addr).unwrap_or(0) } else { 0 };
    if says & ADDRESS_REJECTS != 0 {
        socket.stop(maps, Reason::SocketOtherPort);
        return Decision::Stopped;
    }
    if says & ADDRESS_DROPS != 0 {
        socket.stop(maps, Reason::SocketOtherPortDropped);
        return Decision::Stopped;
    }
    Decision::NoFrontend
}

/// A socket and the peer that it states.
struct Socket<S> {
    sock: S,
    cookie: u64,
    protocol: u8,
    addr: Addr,
    port: Port,
    /// The cookie of the node's network namespace.
    host_netns: u64,
    /// [`SockSettings::lists`].
    lists: u8,
}

impl<S: Sock> Socket<S> {
    #[inline(always)]
    fn new(sock: S, settings: &SockSettings) -> Option<Self> {
        let protocol = protocol(sock.kind())?;
        let (addr, port) = sock.peer();
        let &SockSettings { host_netns, lists, .. } = settings;
        Some(Self { sock, cookie: sock.cookie(), protocol, addr, port, host_netns, lists })
    }

    /// Whether the socket's network namespace is one whose sockets are sent to backends.
    #[inline(always)]
    fn is_balanced<M: SockMaps>(&self, maps: M, settings: &SockSettings) -> bool {
        match settings.balance {
            BALANCE_OFF => return false,
            BALANCE_HOST if self.sock.netns_cookie() != settings.host_netns => return false,
            _ => {}
        }
        settings.lists & LISTS_SKIPS == 0 || !maps.skips(self.sock.netns_cookie())
    }

    /// The key of the frontend that the socket states. A loopback address stands for every address of the node, for
    /// sockets of the node and ports in the range of node ports.
    #[inline(always)]
    fn frontend_key<M: SockMaps>(&self, maps: M, settings: &SockSettings) -> FrontendKey {
        let key = FrontendKey { addr: self.addr, port: self.port, protocol: self.protocol, scope: SCOPE_ANY, pad: 0 };
        let may_stand = settings.loopback != 0 && is_loopback(self.addr) && settings.is_node_port(self.port);
        if may_stand
            && self.sock.netns_cookie() == settings.host_netns
            && let Some(addr) = node::serving(maps, &key, unmap_v4(self.addr).is_some())
        {
            return FrontendKey { addr, ..key };
        }
        key
    }

    #[inline(always)]
    fn key(&self) -> SockKey {
        self.key_of(self.addr, self.port)
    }

    #[inline(always)]
    fn key_of(&self, addr: Addr, port: Port) -> SockKey {
        SockKey { cookie: self.cookie, addr, port, protocol: self.protocol, pad: [0; 5] }
    }

    #[inline(always)]
    fn stop<M: Maps>(&self, maps: M, reason: Reason) -> i32 {
        fail(maps, self.sock, reason);
        REFUSE
    }

    /// The backend that the socket's datagrams to the frontend at `key` went to, if that may still take them.
    #[inline(always)]
    fn kept<M: SockMaps>(&self, maps: M, key: &FrontendKey) -> Option<Chosen> {
        let flow = maps.flow(&self.key())?;
        let frontend = frontend_for(maps, key, true)?;
        let SockFlow { backend: id, set, .. } = flow.value();
        if frontend.target != TARGET_SET || (frontend.set != set && !maps.keeps_flows(frontend.set, id)) {
            return None;
        }
        let backend = maps.backend(id)?;
        Some(Chosen::new(id, &frontend, &backend))
    }

    /// The socket's next datagrams to the same address go to this backend as well.
    #[inline(always)]
    fn keep<M: SockMaps>(&self, maps: M, chosen: &Chosen) {
        let (key, now) = (self.key(), maps.now());
        let (next, next_port) = match maps.flow(&key) {
            Some(flow) if flow.value().backend == chosen.id => return flow.touch(now, chosen.set),
            Some(flow) => {
                uncount_flow(maps, &flow.value());
                (flow.value().next, flow.value().next_port)
            }
            None => self.begin_list(maps),
        };
        let (backend_addr, backend_port) = (chosen.addr, chosen.port);
        let (last_ns, backend, set, counted) = (now, chosen.id, chosen.set, chosen.is_counted as u32);
        if chosen.is_counted {
            maps.change_load(backend, Change::Begins);
        }
        let flow = SockFlow { last_ns, backend_addr, next, backend, set, backend_port, next_port, counted };
        maps.put_flow(&key, &flow);
    }

    /// The socket counts as a connection of the backend, and of no other, if the frontend asks for it.
    #[inline(always)]
    fn count<M: SockMaps>(&self, maps: M, chosen: &Chosen) {
        if !chosen.is_counted {
            return;
        }
        match maps.counted(self.cookie) {
            Some(before) if before == chosen.id => return,
            Some(before) => maps.change_load(before, Change::Ends),
            None => {}
        }
        if maps.put_counted(self.cookie, chosen.id) {
            maps.change_load(chosen.id, Change::Begins);
        }
    }

    /// Puts the entry of this virtual address at the beginning of the socket's list; returns the one that was there.
    #[inline(always)]
    fn begin_list<M: SockMaps>(&self, maps: M) -> (Addr, Port) {
        let head = SockKey::head(self.cookie, self.protocol);
        let (mut next, mut next_port) = ([0; 4], Port(0));
        if let Some(flow) = maps.flow(&head) {
            (next, next_port) = (flow.value().next, flow.value().next_port);
        }
        maps.put_flow(&head, &SockFlow::head(self.addr, self.port));
        (next, next_port)
    }

    /// The backend that was chosen, or another one of the frontend if the socket uses that one under another virtual
    /// address: it could not tell their answers apart.
    #[inline(always)]
    fn unambiguous<M: SockMaps>(
        &self,
        maps: M,
        key: &FrontendKey,
        chosen: Chosen,
        connected: Option<(Addr, Port)>,
    ) -> Option<Chosen> {
        if self.may_use(maps, &chosen, connected) {
            return Some(chosen);
        }
        let frontend = frontend_for(maps, key, true)?;
        find(maps, &frontend, |other| self.may_use(maps, other, connected))
    }

    /// Whether no other virtual address is the one under which the socket knows this backend.
    #[inline(always)]
    fn may_use<M: SockMaps>(&self, maps: M, chosen: &Chosen, connected: Option<(Addr, Port)>) -> bool {
        let (addr, port) = (chosen.addr, chosen.port);
        let Some(peer) = maps.peer(&self.key_of(addr, port)) else { return true };
        if (peer.addr, peer.port) == (self.addr, self.port) {
            return true;
        }
        if connected == Some((addr, port)) {
            return false;
        }
        let Some(flow) = maps.flow(&self.key_of(peer.addr, peer.port)) else { return true };
        let flow = flow.value();
        (flow.backend_addr, flow.backend_port) != (addr, port) || maps.now().saturating_sub(flow.last_ns) > UDP_IDLE_NS
    }

    /// Sends the socket to a backend, and remembers under which address it believes to reach it.
    #[inline(always)]
    fn redirect<M: SockMaps>(&self, maps: M, chosen: &Chosen) -> i32 {
        let (addr, port) = (chosen.addr, chosen.port);
        if matches!(self.sock.hook(), Hook::V4) && unmap_v4(addr).is_none() {
            return self.stop(maps, Reason::SocketFamily);
        }
        let (key, peer) = (self.key_of(addr, port), SockPeer { addr: self.addr, port: self.port, pad: 0 });
        // Each datagram of a UDP socket comes here, and writing costs more than reading.
        if self.protocol == TCP {
            peers::put_stream(maps, &key, &peer);
        } else if maps.peer(&key) != Some(peer) {
            maps.put_peer(&key, &peer);
        }
        self.write(addr, port);
        ALLOW
    }

    /// The socket means this very address: replies from it are no backend's. A TCP socket connects once, so that it
    /// has nothing to forget.
    #[inline(always)]
    fn forget<M: SockMaps>(&self, maps: M) {
        if self.protocol == UDP {
            remove_peer(maps, &self.key());
        }
    }

    /// A UDP socket that connects anew hears its old peer no more.
    #[inline(always)]
    fn leave<M: SockMaps>(&self, maps: M) {
        if self.protocol == UDP
            && let Some((addr, port)) = self.sock.connected_to()
        {
            remove_peer(maps, &self.key_of(addr, port));
            if self.lists & LISTS_COUNTS != 0 {
                uncount(maps, self.cookie);
            }
        }
    }

    #[inline(always)]
    fn write(&self, addr: Addr, port: Port) {
        match self.sock.hook() {
            Hook::V4 => {
                if let Some(ip) = unmap_v4(addr) {
                    self.sock.set_peer_v4(ip, port);
                }
            }
            Hook::V6 => self.sock.set_peer_v6(addr, port),
        }
    }
}

/// Whether what the node sends to `addr` stays on the node.
#[inline(never)]
fn is_here<M: Maps>(maps: M, addr: Addr) -> bool {
    is_loopback(addr) || maps.is_node(addr)
}

impl<S: Sock> Flow for Socket<S> {
    #[inline(always)]
    fn is_inside(&self) -> bool {
        true
    }

    /// A socket that states its peer may have no source yet, so that packets have to say who the client is. The node's
    /// own processes are let in.
    #[inline(always)]
    fn admission<M: Maps>(&self, _: M, frontend: &FrontendValue) -> Admission {
        if frontend.flags & FRONTEND_GUARDS_OUTSIDE != 0 || self.sock.netns_cookie() == self.host_netns {
            return Admission::Admitted;
        }
        Admission::Unknown
    }

    /// Nobody but the socket hooks sees what a process of the node sends to the node.
    #[inline(always)]
    fn waits<M: Maps>(&self, maps: M) -> bool {
        self.sock.netns_cookie() != self.host_netns || !is_here(maps, self.addr)
    }

    #[inline(always)]
    fn client(&self, frontend: &FrontendValue) -> AffinityKey {
        let cookie = self.sock.netns_cookie();
        let client = [cookie as u32, (cookie >> 32) as u32, 0, 0];
        AffinityKey { client, frontend: frontend.id, kind: CLIENT_NETNS, pad: [0; 3] }
    }

    #[inline(always)]
    fn hash(&self, frontend: &FrontendValue) -> u32 {
        let sticky = frontend.affinity != 0;
        cookie_hash(if sticky { self.sock.netns_cookie() } else { self.cookie })
    }
}

#[cfg(test)]
mod tests {
    use lb_datapath_ebpf_abi::{
        FRONTEND_SOURCES, LOOKUP_HASH, LOOKUP_LEAST, ROLE_DRAINING, TARGET_DROP, TARGET_REJECT, from_octets, map_v4,
    };

    use std::{
        net::{IpAddr, Ipv4Addr},
        vec::Vec,
    };

    use super::*;
    use crate::fake::{Fake, FakeSock, HOST_NETNS, NODE, NODE_V6, VIP, VIP_V6, addr_of, backend, backend_v6};

    const PORT_80: Port = Port::new(80);
    const SECOND_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 2));

    #[test]
    fn a_connection_goes_to_a_backend_and_its_peer_is_the_frontend() {
        for kind in [(1, 6), (1, 262), (2, 17)] {
            let (fake, sock) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSock::new(Hook::V4, VIP));
            sock.kind.set(kind);
            assert_eq!(connect(&fake, &sock), ALLOW);
            assert_eq!(sock.peer.get(), backend(1));
            assert_eq!(restore(&fake, &sock), ALLOW);
            assert_eq!(sock.peer.get(), (addr_of(VIP), PORT_80));
        }
    }

    #[test]
    fn an_ipv6_socket_reaches_backends_of_both_families() {
        for (vip, expected) in [(VIP, backend(1).0), (VIP_V6, backend_v6(1))] {
            let (fake, sock) = (Fake::serving_at(vip, LOOKUP_HASH, &[1]), FakeSock::new(Hook::V6, vip));
            assert_eq!(connect(&fake, &sock), ALLOW);
            assert_eq!(sock.peer.get().0, expected);
        }
    }

    #[test]
    fn sockets_of_other_protocols_and_addresses_are_left_alone() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let stated = (addr_of(VIP), PORT_80);
        for kind in [(3, 6), (1, 132), (2, 136), (1, 17)] {
            let sock = FakeSock::new(Hook::V4, VIP);
            sock.kind.set(kind);
            assert_eq!((connect(&fake, &sock), sock.peer.get()), (ALLOW, stated), "{kind:?}");
        }
        let other = FakeSock::new(Hook::V4, [192, 0, 2, 9].into());
        assert_eq!((connect(&fake, &other), other.peer.get().0), (ALLOW, map_v4([192, 0, 2, 9])));
        assert!(fake.counts.borrow().is_empty());
    }

    #[test]
    fn every_reason_of_a_socket_is_counted_once_with_its_error() {
        type Case<'a> = (Reason, &'a dyn Fn(&Fake), Errno);
        let only_other_ports = |says| {
            move |fake: &Fake| {
                fake.addresses.borrow_mut().insert(addr_of(VIP), says);
                fake.frontends.borrow_mut().clear();
            }
        };
        let cases: [Case<'_>; 7] = [
            (Reason::SocketOtherPort, &only_other_ports(ADDRESS_REJECTS), Errno::ConnectionRefused),
            (Reason::SocketOtherPortDropped, &only_other_ports(ADDRESS_DROPS), Errno::HostUnreachable),
            (
                Reason::SocketNoBackends,
                &|fake| fake.change_frontend(VIP, |frontend| frontend.target = TARGET_REJECT),
                Errno::ConnectionRefused,
            ),
            (
                Reason::SocketExcluded,
                &|fake| fake.change_frontend(VIP, |frontend| frontend.target = TARGET_DROP),
                Errno::HostUnreachable,
            ),
            (Reason::SocketBackendMissing, &|fake| fake.backends.borrow_mut().clear(), Errno::ConnectionRefused),
            (
                Reason::SocketFamily,
                &|fake| fake.backends.borrow_mut().values_mut().for_each(|backend| backend.addr = backend_v6(1)),
                Errno::HostUnreachable,
            ),
            (
                Reason::SocketAmbiguous,
                &|fake| {
                    fake.alias(SECOND_VIP);
                    let sock = FakeSock::new(Hook::V4, SECOND_VIP);
                    sock.kind.set((2, 17));
                    assert_eq!(sendmsg(fake, &sock), ALLOW);
                },
                Errno::AddressInUse,
            ),
        ];
        type Call = fn(&Fake, &FakeSock) -> i32;
        let calls: [Call; 2] = [|fake, sock| connect(fake, sock), |fake, sock| sendmsg(fake, sock)];
        for (reason, arrange, errno) in cases {
            for call in calls {
                let (fake, sock) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSock::new(Hook::V4, VIP));
                sock.kind.set((2, 17));
                arrange(&fake);
                assert_eq!((call(&fake, &sock), sock.failed.get()), (REFUSE, Some(errno)), "{reason:?}");
                assert_eq!(*fake.counts.borrow(), [(reason, 1)].into(), "{reason:?}");
                assert_eq!(sock.peer.get(), (addr_of(VIP), PORT_80));
            }
        }
        let of_sockets = Reason::ALL.iter().filter(|reason| matches!(reason.verdict(), Verdict::Fail(_))).count();
        // The one of `bind` has tests of its own.
        assert_eq!(of_sockets, cases.len() + 1);
    }

    /// A UDP socket and a fake that serves backends 1 and 2.
    fn udp() -> (Fake, FakeSock) {
        let (fake, sock) = (Fake::serving(LOOKUP_HASH, &[1, 2]), FakeSock::new(Hook::V4, VIP));
        sock.kind.set((2, 17));
        (fake, sock)
    }

    /// Where the next datagram to the frontend goes.
    fn send(fake: &Fake, sock: &FakeSock) -> (Addr, Port) {
        send_to(fake, sock, VIP).unwrap()
    }

    /// Where the next datagram to this address goes; why it does not.
    fn send_to(fake: &Fake, sock: &FakeSock, vip: IpAddr) -> Result<(Addr, Port), Errno> {
        sock.peer.set((addr_of(vip), PORT_80));
        sock.failed.set(None);
        let verdict = sendmsg(fake, sock);
        assert_eq!(verdict == REFUSE, sock.failed.get().is_some());
        sock.failed.get().map_or(Ok(sock.peer.get()), Err)
    }

    /// The source of an answer from `backend`.
    fn heard(fake: &Fake, sock: &FakeSock, backend: (Addr, Port)) -> Addr {
        sock.peer.set(backend);
        assert_eq!(restore(fake, sock), ALLOW);
        sock.peer.get().0
    }

    #[test]
    fn datagrams_keep_their_backend_while_it_is_in_the_set() {
        let (fake, sock) = udp();
        let first = send(&fake, &sock);
        // Both backends change places, in another set.
        fake.add_set(2, &[2, 1]);
        fake.point(VIP, 2, 2);
        fake.list(2, &[1, 2]);
        assert_eq!(send(&fake, &sock), first);
        // From now on the socket belongs to set 2, and no list is needed for it.
        fake.members.borrow_mut().clear();
        assert_eq!(send(&fake, &sock), first);
        // It takes no new flows any more, but still serves.
        let others: Vec<u32> = [1, 2].into_iter().filter(|&number| backend(number) != first).collect();
        fake.add_set(4, &others);
        fake.point(VIP, 4, 1);
        fake.list(4, &others);
        fake.drain(4, 3 - others[0]);
        assert_eq!(send(&fake, &sock), first);
        let new = FakeSock::new(Hook::V4, VIP);
        new.kind.set((2, 17));
        new.cookie.set(99);
        assert_eq!(send(&fake, &new), backend(others[0]));
        fake.add_set(3, &[3]);
        fake.point(VIP, 3, 1);
        assert_eq!(send(&fake, &sock), backend(3));
        assert_eq!(send(&fake, &sock), backend(3));
    }

    #[test]
    fn datagrams_of_a_draining_datapath_go_on_and_new_ones_do_not() {
        let (fake, sock) = udp();
        let first = send(&fake, &sock);
        fake.role.set(ROLE_DRAINING);
        assert_eq!(send(&fake, &sock), first);
        let new = FakeSock::new(Hook::V4, VIP);
        new.kind.set((2, 17));
        new.cookie.set(99);
        assert_eq!(send(&fake, &new), (addr_of(VIP), PORT_80));
        fake.role.set(ROLE_STANDBY);
        assert_eq!(send(&fake, &sock), (addr_of(VIP), PORT_80));
        assert_eq!((connect(&fake, &new), new.peer.get().0), (ALLOW, addr_of(VIP)));
    }

    #[test]
    fn a_socket_that_means_the_backend_itself_sees_its_address() {
        let (fake, sock) = udp();
        let (addr, port) = send(&fake, &sock);
        sock.peer.set((addr, port));
        assert_eq!(sendmsg(&fake, &sock), ALLOW);
        assert_eq!(restore(&fake, &sock), ALLOW);
        assert_eq!(sock.peer.get(), (addr, port));
    }

    #[test]
    fn a_datagram_to_the_peer_of_a_connection_changes_nothing() {
        let (fake, sock) = udp();
        assert_eq!(connect(&fake, &sock), ALLOW);
        let peer = sock.peer.get();
        sock.connected.set(Some(peer));
        assert_eq!((sendmsg(&fake, &sock), sock.peer.get()), (ALLOW, peer));
        assert_eq!(restore(&fake, &sock), ALLOW);
        assert_eq!(sock.peer.get(), (addr_of(VIP), PORT_80));
        // Another address than the peer's is translated.
        assert_ne!(send(&fake, &sock), (addr_of(VIP), PORT_80));
    }

    #[test]
    fn a_second_address_of_the_same_backends_gets_another_one() {
        let (fake, sock) = udp();
        fake.alias(SECOND_VIP);
        for _ in 0..4 {
            let [first, second] = [VIP, SECOND_VIP].map(|vip| send_to(&fake, &sock, vip).unwrap());
            assert_ne!(first, second);
            assert_eq!([first, second].map(|peer| heard(&fake, &sock, peer)), [VIP, SECOND_VIP].map(addr_of));
        }
    }

    #[test]
    fn a_socket_knows_a_backend_under_one_address_until_it_has_been_silent() {
        let (fake, sock) = udp();
        fake.add_set(5, &[1]);
        fake.point(VIP, 5, 1);
        fake.alias(SECOND_VIP);
        assert_eq!(send_to(&fake, &sock, VIP), Ok(backend(1)));
        fake.now.set(UDP_IDLE_NS);
        assert_eq!(send_to(&fake, &sock, SECOND_VIP), Err(Errno::AddressInUse));
        // Another socket has its own answers.
        let other = FakeSock::new(Hook::V4, VIP);
        other.kind.set((2, 17));
        other.cookie.set(18);
        assert_eq!(send_to(&fake, &other, SECOND_VIP), Ok(backend(1)));
        assert_eq!(send_to(&fake, &sock, VIP), Ok(backend(1)));
        fake.now.set(2 * UDP_IDLE_NS + 1);
        assert_eq!(send_to(&fake, &sock, SECOND_VIP), Ok(backend(1)));
        assert_eq!(heard(&fake, &sock, backend(1)), addr_of(SECOND_VIP));
        assert_eq!(send_to(&fake, &sock, VIP), Err(Errno::AddressInUse));
        assert_eq!(fake.counts.borrow()[&Reason::SocketAmbiguous], 2);
    }

    #[test]
    fn a_connected_socket_keeps_the_address_of_its_peer_until_it_connects_anew() {
        let (fake, sock) = udp();
        fake.add_set(5, &[1]);
        fake.point(VIP, 5, 1);
        fake.alias(SECOND_VIP);
        assert_eq!(connect(&fake, &sock), ALLOW);
        sock.connected.set(Some(backend(1)));
        fake.now.set(9 * UDP_IDLE_NS);
        assert_eq!(send_to(&fake, &sock, SECOND_VIP), Err(Errno::AddressInUse));
        assert_eq!(heard(&fake, &sock, backend(1)), addr_of(VIP));
        // It connects through the other address, as a look-up of addresses does to sort them.
        sock.peer.set((addr_of(SECOND_VIP), PORT_80));
        assert_eq!((connect(&fake, &sock), sock.peer.get()), (ALLOW, backend(1)));
        assert_eq!(heard(&fake, &sock, backend(1)), addr_of(SECOND_VIP));
        // It connects to an address that is none of the frontends.
        sock.peer.set((map_v4([192, 0, 2, 9]), PORT_80));
        assert_eq!(connect(&fake, &sock), ALLOW);
        assert!(fake.peers.borrow().is_empty());
        // It is not connected any more.
        sock.connected.set(None);
        assert_eq!(send_to(&fake, &sock, SECOND_VIP), Ok(backend(1)));
    }

    #[test]
    fn a_socket_takes_all_of_its_entries_along() {
        let (fake, sock) = udp();
        let others: Vec<IpAddr> = (10..30).map(|host| IpAddr::V4(Ipv4Addr::new(10, 96, 0, host))).collect();
        let backends: Vec<u32> = (1..=21).collect();
        fake.add_set(6, &backends);
        fake.point(VIP, 6, 21);
        let bystander = FakeSock::new(Hook::V4, VIP);
        bystander.kind.set((2, 17));
        bystander.cookie.set(18);
        send(&fake, &bystander);
        let kept = (fake.peers.borrow().len(), fake.sock_flows.borrow().len());
        send(&fake, &sock);
        for vip in others {
            fake.alias(vip);
            // Some find no backend among the slots that are looked at.
            let _ = send_to(&fake, &sock, vip);
        }
        assert!(fake.peers.borrow().len() > 10);
        assert_eq!(release(&fake, &sock), ALLOW);
        assert_eq!((fake.peers.borrow().len(), fake.sock_flows.borrow().len()), kept);
        // A TCP socket.
        let stream = FakeSock::new(Hook::V4, VIP);
        stream.cookie.set(19);
        assert_eq!(connect(&fake, &stream), ALLOW);
        stream.connected.set(Some(stream.peer.get()));
        assert_eq!(release(&fake, &stream), ALLOW);
        assert_eq!((fake.peers.borrow().len(), fake.sock_flows.borrow().len()), kept);
    }

    #[test]
    fn a_socket_counts_as_a_connection_of_one_backend_until_it_ends() {
        let fake = Fake::serving(LOOKUP_LEAST, &[1, 2]);
        fake.settings.set(SockSettings { lists: LISTS_COUNTS, ..SockSettings::NONE });
        let loads = || -> Vec<i64> { [1, 2].map(|id| fake.loads.borrow().get(&id).copied().unwrap_or(0)).into() };
        for kind in [(1, 6), (1, IPPROTO_MPTCP), (2, 17)] {
            fake.loads.borrow_mut().clear();
            let sock = FakeSock::new(Hook::V4, VIP);
            sock.kind.set(kind);
            for _ in 0..3 {
                // A socket that has failed tries again.
                sock.peer.set((addr_of(VIP), PORT_80));
                assert_eq!(connect(&fake, &sock), ALLOW);
                let chosen = sock.peer.get();
                let expected: Vec<i64> = [1, 2].map(|id| i64::from(chosen == backend(id))).into();
                assert_eq!(loads(), expected);
            }
            assert_eq!(release(&fake, &sock), ALLOW);
            assert_eq!((loads(), fake.sock_counts.borrow().len()), (Vec::from([0, 0]), 0));
        }
    }

    #[test]
    fn datagrams_count_as_a_connection_until_the_socket_ends_or_has_been_silent() {
        let fake = Fake::serving(LOOKUP_LEAST, &[1]);
        let load = || fake.loads.borrow().get(&1).copied();
        let sock = FakeSock::new(Hook::V4, VIP);
        sock.kind.set((2, 17));
        assert_eq!((send(&fake, &sock), send(&fake, &sock)), (backend(1), backend(1)));
        assert_eq!(load(), Some(1));
        release(&fake, &sock);
        assert_eq!(load(), Some(0));
        send(&fake, &sock);
        // User space has seen to it.
        fake.now.set(UDP_IDLE_NS);
        fake.loads.borrow_mut().clear();
        release(&fake, &sock);
        assert_eq!(load(), None);
        // Its backend leaves: it counts for the other one.
        send(&fake, &sock);
        fake.add_set(2, &[2]);
        fake.point(VIP, 2, 1);
        fake.list(2, &[2]);
        assert_eq!(send(&fake, &sock), backend(2));
        assert_eq!((load(), fake.loads.borrow()[&2]), (Some(0), 1));
    }

    #[test]
    fn a_udp_socket_that_goes_elsewhere_counts_no_longer_and_one_without_memory_never() {
        let fake = Fake::serving(LOOKUP_LEAST, &[1]);
        fake.settings.set(SockSettings { lists: LISTS_COUNTS, ..SockSettings::NONE });
        let sock = FakeSock::new(Hook::V4, VIP);
        sock.kind.set((2, 17));
        assert_eq!(connect(&fake, &sock), ALLOW);
        sock.connected.set(Some(sock.peer.get()));
        sock.peer.set((map_v4([192, 0, 2, 9]), PORT_80));
        assert_eq!(connect(&fake, &sock), ALLOW);
        assert_eq!((fake.loads.borrow()[&1], fake.sock_counts.borrow().len()), (0, 0));
        fake.full.set(true);
        sock.peer.set((addr_of(VIP), PORT_80));
        assert_eq!(connect(&fake, &sock), ALLOW);
        assert_eq!(fake.loads.borrow()[&1], 0);
    }

    #[test]
    fn a_list_that_lost_an_entry_ends() {
        let (fake, sock) = udp();
        send(&fake, &sock);
        fake.sock_flows.borrow_mut().retain(|key, _| key.port == Port(0));
        send(&fake, &sock);
        assert_eq!(release(&fake, &sock), ALLOW);
        assert!(fake.sock_flows.borrow().is_empty() && fake.peers.borrow().is_empty());
    }

    const BOTH: SockSettings =
        SockSettings { host_netns: HOST_NETNS, first_node_port: 80, last_node_port: 80, ..SockSettings::NONE };

    /// Where sockets of the node's namespace and of another one go by `connect` and by `sendmsg`.
    fn goals(settings: SockSettings, vip: IpAddr) -> [[Addr; 2]; 2] {
        let fake = Fake::serving_at(IpAddr::from(NODE), LOOKUP_HASH, &[1]);
        fake.settings.set(settings);
        fake.have_ips(&[from_octets(NODE_V6), map_v4(NODE)]);
        fake.skips.borrow_mut().insert(HOST_NETNS + 1);
        [HOST_NETNS, HOST_NETNS + 1].map(|netns| {
            type Call = fn(&Fake, &FakeSock) -> i32;
            let calls: [Call; 2] = [|fake, sock| connect(fake, sock), |fake, sock| sendmsg(fake, sock)];
            calls.map(|call| {
                let sock = FakeSock::new(Hook::V4, vip);
                sock.kind.set((2, 17));
                sock.netns.set(netns);
                assert_eq!(call(&fake, &sock), ALLOW);
                sock.peer.get().0
            })
        })
    }

    #[test]
    fn balancing_can_be_limited_to_namespaces() {
        let (vip, to) = (IpAddr::from(NODE), backend(1).0);
        let (yes, no) = ([to; 2], [map_v4(NODE); 2]);
        assert_eq!(goals(BOTH, vip), [yes, yes]);
        assert_eq!(goals(SockSettings { balance: BALANCE_HOST, ..BOTH }, vip), [yes, no]);
        assert_eq!(goals(SockSettings { balance: BALANCE_OFF, ..BOTH }, vip), [no, no]);
        assert_eq!(goals(SockSettings { lists: LISTS_SKIPS, ..BOTH }, vip), [yes, no]);
    }

    #[test]
    fn source_ranges_let_the_nodes_own_sockets_in_and_leave_those_of_pods_to_packets() {
        assert_eq!(translated(0), [true, true]);
        assert_eq!(translated(FRONTEND_SOURCES), [true, false]);
        assert_eq!(translated(FRONTEND_SOURCES | FRONTEND_GUARDS_OUTSIDE), [true, true]);
    }

    /// Whether a socket of the node and one of another namespace are sent to a backend of a frontend with these flags.
    fn translated(flags: u8) -> [bool; 2] {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        fake.settings.set(BOTH);
        fake.change_frontend(VIP, |frontend| frontend.flags = flags);
        [HOST_NETNS, HOST_NETNS + 1].map(|netns| {
            let sock = FakeSock::new(Hook::V4, VIP);
            sock.netns.set(netns);
            assert_eq!(connect(&fake, &sock), ALLOW);
            sock.peer.get() == backend(1)
        })
    }

    #[test]
    fn sockets_are_left_to_packets_that_say_who_the_client_is() {
        for (vip, own, refused, expected) in [
            (VIP, true, false, addr_of(VIP)),
            (VIP, false, false, addr_of(VIP)),
            (IpAddr::from(NODE), true, false, backend(1).0),
            (IpAddr::from(NODE), false, false, map_v4(NODE)),
            (VIP, true, true, addr_of(VIP)),
        ] {
            let fake = Fake::serving_at(vip, LOOKUP_HASH, &[1]);
            fake.settings.set(BOTH);
            fake.have_ips(&[map_v4(NODE)]);
            fake.change_frontend(vip, |frontend| {
                frontend.leaves_sockets = 1;
                if refused {
                    frontend.target = TARGET_REJECT;
                }
            });
            type Call = fn(&Fake, &FakeSock) -> i32;
            let calls: [Call; 2] = [|fake, sock| connect(fake, sock), |fake, sock| sendmsg(fake, sock)];
            for call in calls {
                let sock = FakeSock::new(Hook::V4, vip);
                sock.kind.set((2, 17));
                sock.netns.set(if own { HOST_NETNS } else { HOST_NETNS + 1 });
                assert_eq!(call(&fake, &sock), if refused { REFUSE } else { ALLOW }, "{vip} {own}");
                assert_eq!(sock.peer.get().0, expected, "{vip} {own}");
            }
        }
    }

    #[test]
    fn the_node_reaches_its_node_ports_at_loopback_addresses() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let (to, stays) = ([backend(1).0; 2], [addr_of(loopback); 2]);
        let settings = SockSettings { loopback: 1, ..BOTH };
        assert_eq!(goals(settings, loopback), [to, stays]);
        assert_eq!(goals(BOTH, loopback), [stays, stays]);
        let outside = SockSettings { first_node_port: 81, last_node_port: 90, ..settings };
        assert_eq!(goals(outside, loopback), [stays, stays]);
    }

    #[test]
    fn datagrams_to_a_loopback_address_keep_their_backend_and_hear_that_address() {
        let fake = Fake::serving_at(IpAddr::from(NODE), LOOKUP_HASH, &[1, 2]);
        fake.settings.set(SockSettings { loopback: 1, ..BOTH });
        fake.have_ips(&[map_v4(NODE)]);
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let sock = FakeSock::new(Hook::V4, loopback);
        sock.kind.set((2, 17));
        let first = send_to(&fake, &sock, loopback).unwrap();
        assert_eq!(heard(&fake, &sock, first), addr_of(loopback));
        fake.add_set(2, &[2, 1]);
        fake.point(IpAddr::from(NODE), 2, 2);
        fake.list(2, &[1, 2]);
        assert_eq!(send_to(&fake, &sock, loopback), Ok(first));
    }

    #[test]
    fn a_full_map_stops_no_socket() {
        let (fake, sock) = udp();
        fake.full.set(true);
        let first = send(&fake, &sock);
        assert!(first == backend(1) || first == backend(2));
        assert_eq!(restore(&fake, &sock), ALLOW);
        assert_eq!(sock.peer.get(), first);
    }

    #[test]
    fn the_client_of_affinity_is_the_network_namespace() {
        let (fake, sock) = udp();
        fake.change_frontend(VIP, |frontend| (frontend.affinity, frontend.affinity_ns) = (1, 100));
        fake.list(1, &[1, 2]);
        let first = send(&fake, &sock);
        for cookie in 100..120 {
            let other = FakeSock::new(Hook::V4, VIP);
            other.kind.set((2, 17));
            other.cookie.set(cookie);
            assert_eq!(send(&fake, &other), first);
        }
        assert_eq!(fake.affinity.borrow().len(), 1);
    }

    #[test]
    fn the_hash_under_affinity_is_that_of_the_network_namespace() {
        let (fake, _) = udp();
        let sent = |cookie| {
            let sock = FakeSock::new(Hook::V4, VIP);
            sock.cookie.set(cookie);
            assert_eq!(connect(&fake, &sock), ALLOW);
            sock.peer.get()
        };
        assert!((0..20).any(|cookie| sent(cookie) != sent(0)));
        // No record holds without a list of members, so the hash decides every time.
        fake.change_frontend(VIP, |frontend| (frontend.affinity, frontend.affinity_ns) = (1, 100));
        assert!((0..20).all(|cookie| sent(cookie) == sent(0)));
    }
}
