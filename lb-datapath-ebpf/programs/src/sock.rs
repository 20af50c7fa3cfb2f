//! Hooks of sockets: a destination is translated once, where the socket states it.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
};
use lb_datapath_ebpf_abi::{
    Addr, AffinityKey, BackendValue, CLIENT_NETNS, FrontendKey, FrontendValue, Port, ROLE_ACTIVE, ROLE_STANDBY,
    SockFlow, SockKey, SockPeer, TARGET_SET, map_v4, unmap_v4,
};
use lb_datapath_ebpf_programs::tc::{
    client::cookie_hash,
    header::{TCP, UDP},
};

use crate::{
    maps::{BACKENDS, SOCK_FLOWS, SOCK_PEERS},
    select::{Answer, Chosen, Flow, choose, frontend, is_member, role},
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
/// A multipath TCP socket's protocol; on the wire it is TCP.
const IPPROTO_MPTCP: u32 = 262;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// Family of the hook.
#[derive(Clone, Copy)]
pub(crate) enum Hook {
    /// `…4`: the address is in `user_ip4`.
    V4,
    /// `…6`: the address is in `user_ip6`, IPv4-mapped for an IPv6 socket with an IPv4 peer.
    V6,
}

/// `connect`: sends the socket to a backend, for TCP and connected UDP.
#[inline(always)]
pub(crate) fn connect(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    let Some(socket) = Socket::new(ctx, hook) else { return ALLOW };
    if role() != ROLE_ACTIVE {
        return ALLOW;
    }
    match choose(&socket.frontend_key(), &socket) {
        Answer::NotAFrontend => socket.forget(),
        Answer::Reject => return refuse(ECONNREFUSED),
        Answer::Drop => return refuse(EHOSTUNREACH),
        Answer::Backend(chosen) => return socket.redirect(chosen.addr, chosen.port),
    }
    ALLOW
}

/// `sendmsg` with an address, of UDP sockets: a socket's datagrams to one frontend keep their backend as long as it is in
/// the set.
#[inline(always)]
pub(crate) fn sendmsg(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    let Some(socket) = Socket::new(ctx, hook) else { return ALLOW };
    let role = role();
    if role == ROLE_STANDBY {
        return ALLOW;
    }
    let key = socket.frontend_key();
    if let Some(backend) = socket.kept(&key) {
        return socket.redirect(backend.addr, backend.port);
    }
    if role != ROLE_ACTIVE {
        return ALLOW;
    }
    match choose(&key, &socket) {
        Answer::NotAFrontend => socket.forget(),
        Answer::Reject => return refuse(ECONNREFUSED),
        Answer::Drop => return refuse(EHOSTUNREACH),
        Answer::Backend(chosen) => return socket.keep(&chosen),
    }
    ALLOW
}

/// `recvmsg` and `getpeername`: shows the virtual address where the kernel knows a backend's.
#[inline(always)]
pub(crate) fn restore(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    let Some(socket) = Socket::new(ctx, hook) else { return ALLOW };
    // SAFETY: copied out at once; an entry belongs to one socket and address, and is replaced only by its like.
    if let Some(peer) = unsafe { SOCK_PEERS.get(socket.key()) }.copied() {
        socket.write(peer.addr, peer.port);
    }
    ALLOW
}

fn refuse(errno: i32) -> i32 {
    // SAFETY: the helper is allowed in these program types since 5.18.
    unsafe { bpf_set_retval(-errno) };
    REFUSE
}

/// A socket and the peer that it states.
struct Socket {
    ctx: *mut bpf_sock_addr,
    hook: Hook,
    cookie: u64,
    protocol: u8,
    addr: Addr,
    port: Port,
}

impl Socket {
    #[inline(always)]
    fn new(ctx: *mut bpf_sock_addr, hook: Hook) -> Option<Self> {
        // SAFETY: `ctx` is the program's context; these are fields that every sock_addr program may read.
        let (kind, protocol, port) = unsafe { ((*ctx).type_, (*ctx).protocol, (*ctx).user_port) };
        let protocol = match (kind, protocol) {
            (SOCK_STREAM, IPPROTO_MPTCP) => TCP,
            (SOCK_STREAM, protocol) if protocol == TCP as u32 => TCP,
            (SOCK_DGRAM, protocol) if protocol == UDP as u32 => UDP,
            _ => return None,
        };
        // SAFETY: the helper takes the context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
        Some(Self { ctx, hook, cookie, protocol, addr: read(ctx, hook), port: Port(port as u16) })
    }

    #[inline(always)]
    fn frontend_key(&self) -> FrontendKey {
        FrontendKey { addr: self.addr, port: self.port, protocol: self.protocol, scope: 0, pad: 0 }
    }

    #[inline(always)]
    fn key(&self) -> SockKey {
        SockKey { cookie: self.cookie, addr: self.addr, port: self.port, protocol: self.protocol, pad: [0; 5] }
    }

    /// The backend that the socket's datagrams to the frontend at `key` went to, if that may still take them.
    #[inline(always)]
    fn kept(&self, key: &FrontendKey) -> Option<BackendValue> {
        let flow = SOCK_FLOWS.get_ptr_mut(self.key())?;
        let frontend = frontend(key)?;
        // SAFETY: the element belongs to this socket; its two fields are read and written one by one.
        let SockFlow { backend, set } = unsafe { *flow };
        if frontend.target != TARGET_SET || (frontend.set != set && !is_member(frontend.set, backend)) {
            return None;
        }
        // SAFETY: as above.
        unsafe { (*flow).set = frontend.set };
        // SAFETY: copied out at once; backends do not change under an id.
        unsafe { BACKENDS.get(backend) }.copied()
    }

    #[inline(always)]
    fn keep(&self, chosen: &Chosen) -> i32 {
        // A full table evicts its oldest flow, which then may get another backend.
        let _ = SOCK_FLOWS.insert(self.key(), SockFlow { backend: chosen.id, set: chosen.set }, 0);
        self.redirect(chosen.addr, chosen.port)
    }

    /// Sends the socket to a backend, and remembers under which address it believes to reach it.
    #[inline(always)]
    fn redirect(&self, addr: Addr, port: Port) -> i32 {
        if matches!(self.hook, Hook::V4) && unmap_v4(addr).is_none() {
            return refuse(EHOSTUNREACH);
        }
        let key = SockKey { cookie: self.cookie, addr, port, protocol: self.protocol, pad: [0; 5] };
        let peer = SockPeer { addr: self.addr, port: self.port, pad: 0 };
        let _ = SOCK_PEERS.insert(key, peer, 0);
        self.write(addr, port);
        ALLOW
    }

    /// The socket means this very address: replies from it are no backend's. A TCP socket connects once, so that it
    /// has nothing to forget.
    #[inline(always)]
    fn forget(&self) {
        if self.protocol == UDP {
            let _ = SOCK_PEERS.remove(self.key());
        }
    }

    #[inline(always)]
    fn write(&self, addr: Addr, port: Port) {
        match self.hook {
            Hook::V4 => {
                let Some(ip) = unmap_v4(addr) else { return };
                // SAFETY: `ctx` is the program's context; these hooks may write the address.
                unsafe { (&raw mut (*self.ctx).user_ip4).write_volatile(u32::from_ne_bytes(ip)) };
            }
            Hook::V6 => {
                for (i, word) in addr.into_iter().enumerate() {
                    // SAFETY: as above; `i` is 0..4. Volatile, because the context takes 32-bit writes.
                    unsafe { (&raw mut (*self.ctx).user_ip6[i]).write_volatile(word) };
                }
            }
        }
        // SAFETY: as above; the field is 32 bits wide and holds a 16-bit port in network byte order.
        unsafe { (&raw mut (*self.ctx).user_port).write_volatile(port.0 as u32) };
    }
}

impl Flow for Socket {
    #[inline(always)]
    fn client(&self, frontend: &FrontendValue) -> AffinityKey {
        // SAFETY: the helper takes the context.
        let cookie = unsafe { bpf_get_netns_cookie(self.ctx.cast()) };
        let client = [cookie as u32, (cookie >> 32) as u32, 0, 0];
        AffinityKey { client, frontend: frontend.id, kind: CLIENT_NETNS, pad: [0; 3] }
    }

    #[inline(always)]
    fn hash(&self, frontend: &FrontendValue) -> u32 {
        if frontend.affinity == 0 {
            return cookie_hash(self.cookie);
        }
        // SAFETY: the helper takes the context.
        cookie_hash(unsafe { bpf_get_netns_cookie(self.ctx.cast()) })
    }
}

#[inline(always)]
fn read(ctx: *mut bpf_sock_addr, hook: Hook) -> Addr {
    match hook {
        // SAFETY: `ctx` is the program's context; IPv4 hooks may read the field.
        Hook::V4 => map_v4(unsafe { (&raw const (*ctx).user_ip4).read_volatile() }.to_ne_bytes()),
        Hook::V6 => {
            // SAFETY: as above, for IPv6 hooks. Volatile, because the context takes 32-bit reads.
            let word = |i: usize| unsafe { (&raw const (*ctx).user_ip6[i]).read_volatile() };
            [word(0), word(1), word(2), word(3)]
        }
    }
}
