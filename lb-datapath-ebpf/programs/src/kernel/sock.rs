//! Sockets, and the maps that only the programs of sockets use.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, bpf_sock, bpf_sock_addr},
    btf_maps::{Array, HashMap, LruHashMap},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::btf_map,
};
use lb_datapath_ebpf_abi::{
    Addr, Errno, NODE_KEY, Port, SETTINGS_KEY, SOCK_CELLS as CELLS, SockCell, SockFlow, SockKey, SockPeer,
    SockSettings, map_v4,
};
use lb_datapath_ebpf_programs::sock::{Bound, Cell, Closing, Entry, Failing, Hook, Sock, SockMaps};

use super::{Kernel, maps::LAZY, skb::NODE};

const AF_INET: u32 = 2;

/// The virtual address behind a socket's peer.
#[btf_map]
static SOCK_PEERS: LruHashMap<SockKey, SockPeer, 65536> = LruHashMap::new();

/// The same for TCP sockets, as far as each has an element of its own. User space reads it through a memory mapping.
#[btf_map]
static SOCK_CELLS: Array<SockCell, { CELLS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The backend of an unconnected UDP socket.
#[btf_map]
static SOCK_FLOWS: LruHashMap<SockKey, SockFlow, 65536> = LruHashMap::new();

/// What user space sets.
#[btf_map]
static SOCK_SETTINGS: Array<SockSettings, 1> = Array::new();

/// Network namespaces whose sockets are left alone, by their cookies.
#[btf_map]
static SOCK_SKIPS: HashMap<u64, u8, 4096, LAZY> = HashMap::new();

/// The backend of which a connected socket counts as a connection, by the socket's cookie. The end of the socket removes
/// the entry.
#[btf_map]
static SOCK_COUNTS: HashMap<u64, u32, 65536, LAZY> = HashMap::new();

impl SockMaps for Kernel {
    type Entry = FlowEntry;
    type Cell = KernelCell;

    #[inline(always)]
    fn settings(self) -> SockSettings {
        SOCK_SETTINGS.get(SETTINGS_KEY).copied().unwrap_or(SockSettings::NONE)
    }

    #[inline(always)]
    fn skips(self, netns: u64) -> bool {
        // SAFETY: the value is not read.
        unsafe { SOCK_SKIPS.get(netns) }.is_some()
    }

    #[inline(always)]
    fn node_ip(self, index: u32) -> Option<Addr> {
        // SAFETY: copied out at once; user space replaces the element as a whole.
        let facts = unsafe { &NODE.get(NODE_KEY)?.facts };
        if index >= facts.ips_len { None } else { facts.ips.get(index as usize).copied() }
    }

    #[inline(always)]
    fn cell(self, cookie: u64) -> Option<KernelCell> {
        SOCK_CELLS.get_ptr_mut(SockCell::index(cookie)).map(KernelCell)
    }

    #[inline(always)]
    fn peer(self, key: &SockKey) -> Option<SockPeer> {
        // SAFETY: copied out at once; an entry belongs to one socket and address, and is replaced only by its like.
        unsafe { SOCK_PEERS.get(key) }.copied()
    }

    #[inline(always)]
    fn put_peer(self, key: &SockKey, peer: &SockPeer) {
        let _ = SOCK_PEERS.insert(key, peer, 0);
    }

    #[inline(always)]
    fn remove_peer(self, key: &SockKey) {
        let _ = SOCK_PEERS.remove(key);
    }

    #[inline(always)]
    fn counted(self, cookie: u64) -> Option<u32> {
        // SAFETY: copied out at once; an entry belongs to one socket.
        unsafe { SOCK_COUNTS.get(cookie) }.copied()
    }

    #[inline(always)]
    fn put_counted(self, cookie: u64, backend: u32) -> bool {
        SOCK_COUNTS.insert(cookie, backend, 0).is_ok()
    }

    #[inline(always)]
    fn remove_counted(self, cookie: u64) {
        let _ = SOCK_COUNTS.remove(cookie);
    }

    #[inline(always)]
    fn flow(self, key: &SockKey) -> Option<FlowEntry> {
        SOCK_FLOWS.get_ptr_mut(key).map(FlowEntry)
    }

    #[inline(always)]
    fn remove_flow(self, key: &SockKey) {
        let _ = SOCK_FLOWS.remove(key);
    }

    #[inline(always)]
    fn put_flow(self, key: &SockKey, flow: &SockFlow) {
        let _ = SOCK_FLOWS.insert(key, flow, 0);
    }
}

/// An element of `SOCK_CELLS`.
#[derive(Clone, Copy)]
pub(crate) struct KernelCell(*mut SockCell);

impl KernelCell {
    /// The cookie of its owner, which is where it begins.
    #[inline(always)]
    const fn cookie(self) -> *mut u64 {
        self.0.cast()
    }

    /// Says whether the rest is there.
    #[inline(always)]
    unsafe fn set_protocol(self, protocol: u8) {
        // SAFETY: the caller's: the element is its own.
        unsafe { (&raw mut (*self.0).key.protocol).write_volatile(protocol) };
    }
}

impl Cell for KernelCell {
    #[inline(always)]
    fn take(self, cookie: u64) -> bool {
        // SAFETY: an element of an array, which lives as long as the map.
        let owner = unsafe { exchange(self.cookie(), 0, cookie) };
        owner == 0 || owner == cookie
    }

    #[inline(always)]
    fn give_up(self, cookie: u64) -> bool {
        // SAFETY: as above. Nobody takes or writes it between the two exchanges. Most sockets that are closed have none,
        // so that it is read first.
        unsafe {
            if self.cookie().read_volatile() != cookie || exchange(self.cookie(), cookie, SockCell::LEFT) != cookie {
                return false;
            }
            self.set_protocol(0);
            exchange(self.cookie(), SockCell::LEFT, 0);
        }
        true
    }

    #[inline(always)]
    fn peer(self, key: &SockKey) -> Option<SockPeer> {
        // SAFETY: as above. Whoever finds its own cookie is the owner, so that nobody else writes.
        let cell = unsafe { &*self.0 };
        (cell.key.cookie == key.cookie
            && cell.key.addr == key.addr
            && cell.key.port == key.port
            && cell.key.protocol == key.protocol)
            .then_some(cell.peer)
    }

    #[inline(always)]
    fn put_peer(self, key: &SockKey, peer: &SockPeer) {
        // SAFETY: as above. User space reads nothing else while the protocol is zero.
        unsafe {
            self.set_protocol(0);
            (*self.0).key.addr = key.addr;
            (*self.0).key.port = key.port;
            (*self.0).peer = *peer;
            self.set_protocol(key.protocol);
        }
    }
}

/// Writes `new` where `expected` is, as one access; returns what was there.
///
/// User space makes it an instruction that returns `u64::MAX` and writes nothing, before it loads the programs, if the
/// kernel has no such exchange.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn exchange(at: *mut u64, expected: u64, new: u64) -> u64 {
    let mut value = expected;
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inout("r0") value,
        );
    }
    value
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn exchange(at: *mut u64, expected: u64, new: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's.
    let value = unsafe { AtomicU64::from_ptr(at) };
    value.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|found| found)
}

/// A live element of `SOCK_FLOWS`.
pub(crate) struct FlowEntry(*mut SockFlow);

impl Entry for FlowEntry {
    #[inline(always)]
    fn value(&self) -> SockFlow {
        // SAFETY: a live element, of integers.
        unsafe { *self.0 }
    }

    #[inline(always)]
    fn touch(&self, now: u64, set: u32) {
        // SAFETY: as above.
        unsafe { ((*self.0).last_ns, (*self.0).set) = (now, set) };
    }
}

/// The program's context, and the family of its hook.
#[derive(Clone, Copy)]
pub(crate) struct KernelSock {
    pub(crate) ctx: *mut bpf_sock_addr,
    pub(crate) hook: Hook,
}

impl KernelSock {
    #[inline(always)]
    fn set_port(self, port: Port) {
        // SAFETY: the program's context; the field is 32 bits wide and holds a 16-bit port in network byte order.
        unsafe { (&raw mut (*self.ctx).user_port).write_volatile(port.0 as u32) };
    }
}

impl Sock for KernelSock {
    #[inline(always)]
    fn hook(self) -> Hook {
        self.hook
    }

    #[inline(always)]
    fn kind(self) -> (u32, u32) {
        // SAFETY: the program's context; these are fields that every sock_addr program may read.
        unsafe { ((*self.ctx).type_, (*self.ctx).protocol) }
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_socket_cookie(self.ctx.cast()) }
    }

    #[inline(always)]
    fn netns_cookie(self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }

    #[inline(always)]
    fn peer(self) -> (Addr, Port) {
        let addr = match self.hook {
            // SAFETY: the program's context; IPv4 hooks may read the field.
            Hook::V4 => map_v4(unsafe { (&raw const (*self.ctx).user_ip4).read_volatile() }.to_ne_bytes()),
            Hook::V6 => {
                // SAFETY: as above, for IPv6 hooks. Volatile, because the context takes 32-bit reads.
                let word = |i: usize| unsafe { (&raw const (*self.ctx).user_ip6[i]).read_volatile() };
                [word(0), word(1), word(2), word(3)]
            }
        };
        // SAFETY: as above; every sock_addr program may read the field.
        let port = unsafe { (*self.ctx).user_port };
        (addr, Port(port as u16))
    }

    #[inline(always)]
    fn connected_to(self) -> Option<(Addr, Port)> {
        // SAFETY: the program's context, whose socket is there.
        peer_of(unsafe { (*self.ctx).__bindgen_anon_1.sk })
    }

    #[inline(always)]
    fn set_peer_v4(self, addr: [u8; 4], port: Port) {
        // SAFETY: the program's context; hooks of this family may write the address.
        unsafe { (&raw mut (*self.ctx).user_ip4).write_volatile(u32::from_ne_bytes(addr)) };
        self.set_port(port);
    }

    #[inline(always)]
    fn set_peer_v6(self, addr: Addr, port: Port) {
        for (i, word) in addr.into_iter().enumerate() {
            // SAFETY: as above; `i` is 0..4. Volatile, because the context takes 32-bit writes.
            unsafe { (&raw mut (*self.ctx).user_ip6[i]).write_volatile(word) };
        }
        self.set_port(port);
    }
}

impl Failing for KernelSock {
    #[inline(always)]
    fn fail(self, errno: Errno) {
        fail(errno);
    }
}

/// Makes the call fail with this error number.
#[inline(always)]
fn fail(errno: Errno) {
    // SAFETY: the helper is allowed in these program types since Linux 5.18.
    unsafe { bpf_set_retval(-(errno as i32)) };
}

/// The context of a program that runs for a socket rather than for an address.
#[derive(Clone, Copy)]
pub(crate) struct PlainSock(pub(crate) *mut bpf_sock);

impl Closing for PlainSock {
    #[inline(always)]
    fn kind(self) -> (u32, u32) {
        // SAFETY: the program's context; these are fields that every program of sockets may read.
        unsafe { ((*self.0).type_, (*self.0).protocol) }
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn connected_to(self) -> Option<(Addr, Port)> {
        peer_of(self.0)
    }
}

/// The context of a program that runs after `bind`, and the family of its hook.
#[derive(Clone, Copy)]
pub(crate) struct BoundSock {
    pub(crate) ctx: *mut bpf_sock,
    pub(crate) hook: Hook,
}

impl Failing for BoundSock {
    #[inline(always)]
    fn fail(self, errno: Errno) {
        fail(errno);
    }
}

impl Bound for BoundSock {
    #[inline(always)]
    fn kind(self) -> (u32, u32) {
        Closing::kind(PlainSock(self.ctx))
    }

    #[inline(always)]
    fn netns_cookie(self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }

    #[inline(always)]
    fn bound_to(self) -> (Addr, Port) {
        let addr = match self.hook {
            // SAFETY: the program's context; hooks of IPv4 may read the field.
            Hook::V4 => map_v4(unsafe { (&raw const (*self.ctx).src_ip4).read_volatile() }.to_ne_bytes()),
            Hook::V6 => {
                // SAFETY: as above, for hooks of IPv6. Volatile, because the context takes 32-bit reads.
                let word = |i: usize| unsafe { (&raw const (*self.ctx).src_ip6[i]).read_volatile() };
                [word(0), word(1), word(2), word(3)]
            }
        };
        // SAFETY: as above, for both. The field is in host byte order.
        (addr, Port::new(unsafe { (&raw const (*self.ctx).src_port).read_volatile() } as u16))
    }
}

/// The peer that a socket is connected to.
#[inline(always)]
fn peer_of(sock: *const bpf_sock) -> Option<(Addr, Port)> {
    // SAFETY: a socket of the kernel, whose fields the verifier lets programs read. Volatile, and all of them in any
    // case: the verifier wants each field to be read with its own width and at a constant place.
    let (family, v4, port) = unsafe {
        let family = (&raw const (*sock).family).read_volatile();
        (family, (&raw const (*sock).dst_ip4).read_volatile(), (&raw const (*sock).dst_port).read_volatile())
    };
    // SAFETY: as above.
    let word = |i: usize| unsafe { (&raw const (*sock).dst_ip6[i]).read_volatile() };
    // An IPv6 socket has an IPv4 peer as IPv4-mapped address.
    let v6 = [word(0), word(1), word(2), word(3)];
    let addr = if family == AF_INET { map_v4(v4.to_ne_bytes()) } else { v6 };
    (port != 0).then_some((addr, Port(port)))
}
