//! Packets, and the maps that only the program of packets uses.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_ANY, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LOOKUP_SKIP_NEIGH,
        BPF_FIB_LOOKUP_SRC, BPF_NOEXIST, bpf_adj_room_mode::BPF_ADJ_ROOM_NET, bpf_fib_lookup as FibParams,
        bpf_redir_neigh, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    btf_maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::{
        bpf_csum_update, bpf_fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    macros::btf_map,
};
use lb_datapath_ebpf_abi::{
    Addr, CtKey, CtValue, DeviceValue, FragmentKey, FragmentValue, NODE_KEY, NodeValue, Pod, WORK_WORDS, map_v4,
    unmap_v4,
};
use lb_datapath_ebpf_programs::tc::{
    flow::{Entry, FlowMaps, Source, Table},
    header::ETHERNET,
    ingress::PASS,
    packet::Packet,
    skb::{Refused, Skb, Unrouted},
    work::Work,
};

use super::{Kernel, maps::LAZY};

/// Flows of packets, two entries each: new ones, and those that [`CT_LIVE`] does not hold.
#[btf_map]
static CT: LruHashMap<CtKey, CtValue, 131072> = LruHashMap::new();

/// Flows that are established. Nothing is evicted: user space removes what was silent for too long.
#[btf_map]
static CT_LIVE: HashMap<CtKey, CtValue, 131072, LAZY> = HashMap::new();

/// Room of each processor for what its program is at.
#[btf_map]
static WORK: PerCpuArray<[u64; WORK_WORDS], 1> = PerCpuArray::new();

const _: () = assert!(size_of::<Work>() <= 8 * WORK_WORDS);

/// Ports of datagrams that come in fragments.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue, 8192> = LruHashMap::new();

/// What is behind the devices that programs are attached to, by their number.
#[btf_map]
static DEVICES: HashMap<u32, DeviceValue, 4096, LAZY> = HashMap::new();

/// The node.
#[btf_map]
pub(super) static NODE: HashMap<u32, NodeValue, 1, LAZY> = HashMap::new();

/// Prefixes of the pods.
#[btf_map]
static CIDRS: LpmTrie<Addr, u8, 64> = LpmTrie::new();

impl FlowMaps for Kernel {
    type Entry = CtEntry;

    #[inline(always)]
    fn work<'a>(self) -> Option<&'a mut Work> {
        // SAFETY: an element of this processor, which no other program on it interrupts. It is large enough (see above)
        // and aligned to eight bytes; zero is a value, and nothing but values is written. Each program asks once.
        WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work.cast::<Work>() })
    }

    #[inline(always)]
    fn flow(self, table: Table, key: &CtKey) -> Option<CtEntry> {
        match table {
            Table::Live => CT_LIVE.get_ptr_mut(key),
            Table::Lru => CT.get_ptr_mut(key),
        }
        .map(CtEntry)
    }

    #[inline(always)]
    fn add_flow(self, table: Table, key: &CtKey, value: &CtValue) -> bool {
        insert(table, key, value, BPF_NOEXIST as u64)
    }

    #[inline(always)]
    fn put_flow(self, table: Table, key: &CtKey, value: &CtValue) -> bool {
        insert(table, key, value, BPF_ANY as u64)
    }

    #[inline(always)]
    fn remove_flow(self, table: Table, key: &CtKey) {
        let _ = match table {
            Table::Live => CT_LIVE.remove(key),
            Table::Lru => CT.remove(key),
        };
    }

    #[inline(always)]
    fn fragment(self, key: &FragmentKey) -> Option<FragmentValue> {
        // SAFETY: copied out at once; a value of two halves would send one datagram's fragment astray.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn put_fragment(self, key: &FragmentKey, value: &FragmentValue) {
        let _ = FRAGMENTS.insert(key, value, BPF_ANY as u64);
    }

    #[inline(always)]
    fn source(self, is_v4: bool) -> Option<Source> {
        // SAFETY: copied out at once; user space replaces the element as a whole.
        Source::of(unsafe { NODE.get(NODE_KEY) }?, is_v4)
    }

    #[inline(always)]
    fn kind_of_device(self, device: u32) -> u8 {
        // SAFETY: copied out at once; user space replaces the element as a whole.
        unsafe { DEVICES.get(device) }.map_or(0, |device| device.kind)
    }

    #[inline(always)]
    fn pod_family(self, addr: Addr) -> Option<u8> {
        CIDRS.get(&Key::new(128, addr)).copied()
    }
}

/// A function of its own: the compiler makes many instructions of the loop.
#[inline(never)]
pub(super) fn is_node(addr: &Addr) -> bool {
    // SAFETY: read at once; user space replaces the element as a whole.
    unsafe { NODE.get(NODE_KEY) }.is_some_and(|node| node.facts.has_ip(*addr))
}

#[inline(always)]
fn insert(table: Table, key: &CtKey, value: &CtValue, flags: u64) -> bool {
    match table {
        Table::Live => CT_LIVE.insert(key, value, flags),
        Table::Lru => CT.insert(key, value, flags),
    }
    .is_ok()
}

/// A live element of a table of flows. The kernel keeps its memory until the program ends (RCU), though it may give it to another
/// flow.
pub(crate) struct CtEntry(*mut CtValue);

impl Entry for CtEntry {
    #[inline(always)]
    fn value(&self) -> CtValue {
        // SAFETY: a live element, of integers.
        unsafe { *self.0 }
    }

    #[inline(always)]
    fn is_reply_to(&self, key: &CtKey) -> bool {
        // SAFETY: as above.
        let (src, dst, sport, dport) = unsafe { ((*self.0).src, (*self.0).dst, (*self.0).sport, (*self.0).dport) };
        src == key.dst && dst == key.src && sport == key.dport && dport == key.sport
    }

    #[inline(always)]
    fn touch(&self, now: u64) {
        // SAFETY: as above.
        unsafe { (*self.0).last_ns = now };
    }

    #[inline(always)]
    fn add_flags(&self, flags: u8) {
        // SAFETY: as above.
        unsafe { (*self.0).flags |= flags };
    }

    #[inline(always)]
    fn add_client(&self, sent: u8) {
        // SAFETY: as above.
        unsafe { (*self.0).client |= sent };
    }

    #[inline(always)]
    fn add_server(&self, sent: u8) {
        // SAFETY: as above.
        unsafe { (*self.0).server |= sent };
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `BPF_F_CURRENT_NETNS`: the network namespace of the device that the packet came in through.
const THIS_NETNS: u64 = -1_i64 as u64;

/// The program's context.
#[derive(Clone, Copy)]
pub(crate) struct KernelSkb(pub(crate) *mut __sk_buff);

/// The next hop of a packet: the question to the routing table, and its answer.
pub(crate) struct Hop([u64; Hop::WORDS]);

impl Hop {
    const WORDS: usize = size_of::<FibParams>() / size_of::<u64>();

    #[inline(always)]
    const fn params(&self) -> &FibParams {
        // SAFETY: integers and unions of integers, which are as long, and aligned to less.
        unsafe { &*self.0.as_ptr().cast() }
    }

    #[inline(always)]
    const fn params_mut(&mut self) -> &mut FibParams {
        // SAFETY: as above.
        unsafe { &mut *self.0.as_mut_ptr().cast() }
    }
}

impl Default for Hop {
    /// A zero that the compiler does not know: it would call `memset`, which writes byte by byte.
    #[inline(always)]
    fn default() -> Self {
        Self([core::hint::black_box(0); Self::WORDS])
    }
}

const _: () = assert!(size_of::<Hop>() == size_of::<FibParams>());

impl KernelSkb {
    /// Where a value lies, if it is in the linear part of the packet: reading it there needs no call.
    #[inline(always)]
    fn direct<T: Pod>(self, offset: u32) -> Option<*mut T> {
        /// Most bytes before a value. The verifier wants a bound.
        const FARTHEST: u32 = 0xfff;
        if offset > FARTHEST {
            return None;
        }
        // SAFETY: the program's context; the kernel turns these fields into pointers.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let at = data + offset as usize;
        (at + size_of::<T>() <= end).then_some(at as *mut T)
    }
}

impl Skb for KernelSkb {
    type Hop = Hop;

    #[inline(always)]
    fn dress(self) -> Result<(), Refused> {
        // SAFETY: the helper takes the context and numbers.
        check(unsafe { bpf_skb_change_head(self.0, ETHERNET, 0) })
    }

    #[inline(always)]
    fn kind(self) -> (u32, u16) {
        // SAFETY: the program's context; these are fields that it may read.
        let (kind, protocol) = unsafe { ((*self.0).pkt_type, (*self.0).protocol) };
        (kind, protocol as u16)
    }

    #[inline(always)]
    fn device(self) -> u32 {
        // SAFETY: the program's context, and it may read the field.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn came_in(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).ingress_ifindex != 0 }
    }

    #[inline(always)]
    fn is_tagged(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).vlan_present != 0 }
    }

    #[inline(always)]
    fn size(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn segment(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn prepare(self) {
        /// An Ethernet header, the longest IPv4 header, and the start of a TCP header.
        const HEADERS: u32 = 90;
        // SAFETY: as above; the kernel turns two of these fields into pointers.
        let (data, end, len) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize, (*self.0).len) };
        let wanted = if len < HEADERS { len } else { HEADERS };
        if data + wanted as usize > end {
            // SAFETY: the helper takes the context and a number.
            let _ = unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
    }

    #[inline(always)]
    fn load<T: Pod>(self, offset: u32) -> Option<T> {
        // SAFETY: the verifier has seen that the packet holds the value, and every pattern of bytes is one.
        self.direct::<T>(offset).map(|at| unsafe { at.read_unaligned() })
    }

    #[inline(always)]
    fn load_far<T: Pod>(self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let (to, len) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
        // SAFETY: `value` has room for as many bytes.
        let result = unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to, len) };
        // SAFETY: the helper has filled all of it, and every pattern of bytes is a value.
        (result == 0).then(|| unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn load_part<const N: usize>(self, offset: u32, words: &mut [u32; N], len: u32) -> Result<(), Refused> {
        let len = part::<N>(len)?;
        // SAFETY: `words` have room for as many bytes.
        check(unsafe { bpf_skb_load_bytes(self.0.cast(), offset, words.as_mut_ptr().cast(), len) })
    }

    #[inline(always)]
    fn store_part<const N: usize>(self, offset: u32, words: &[u32; N], len: u32) -> Result<(), Refused> {
        const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;
        let len = part::<N>(len)?;
        // SAFETY: `words` are at least that many bytes.
        check(unsafe { bpf_skb_store_bytes(self.0.cast(), offset, words.as_ptr().cast(), len, RECOMPUTE) })
    }

    #[inline(always)]
    fn store<T: Pod>(self, offset: u32, value: &T, flags: u64) -> Result<(), Refused> {
        let from = core::ptr::from_ref(value);
        // SAFETY: `value` is that many bytes long.
        check(unsafe { bpf_skb_store_bytes(self.0.cast(), offset, from.cast(), size_of::<T>() as u32, flags) })
    }

    #[inline(always)]
    fn replace_l4(self, offset: u32, difference: u32, flags: u64) -> Result<(), Refused> {
        // SAFETY: as above.
        check(unsafe { bpf_l4_csum_replace(self.0, offset, 0, difference as u64, flags) })
    }

    #[inline(always)]
    fn replace_whole(self, difference: u32) {
        // SAFETY: the helper takes the context and a number. It refuses if no device has computed that checksum.
        let _ = unsafe { bpf_csum_update(self.0, difference) };
    }

    /// A sender may have left the checksum to the device (`CHECKSUM_PARTIAL`), which would write one into the answer,
    /// at the place where the old packet had its own. Cutting out more than what lies before that place makes the
    /// kernel forget it ([`skb_postpull_rcsum`]).
    ///
    /// [`skb_postpull_rcsum`]: https://elixir.bootlin.com/linux/v6.18/source/include/linux/skbuff.h
    #[inline(always)]
    fn resize(self, len: u32) -> Result<(), Refused> {
        const CUT: u32 = 64;
        // SAFETY: helpers that take the context and numbers.
        unsafe {
            check(bpf_skb_change_tail(self.0, len + CUT, 0))?;
            check(bpf_skb_adjust_room(self.0, -(CUT as i32), BPF_ADJ_ROOM_NET, 0))
        }
    }

    #[inline(always)]
    fn preferred_source(self, packet: &Packet, to: &CtValue, source: &mut Addr) -> bool {
        let mut hop = Hop::default();
        let fib = hop.params_mut();
        fib.l4_protocol = packet.key.protocol;
        fib.ifindex = self.device();
        if packet.is_v4 {
            fib.family = AF_INET;
            let Some(dst) = unmap_v4(to.dst) else { return false };
            fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
        } else {
            fib.family = AF_INET6;
            fib.__bindgen_anon_4.ipv6_dst = to.dst;
        }
        let (size, flags) = (size_of::<FibParams>() as i32, BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC);
        // SAFETY: the parameters are that long.
        if unsafe { bpf_fib_lookup(self.0.cast(), core::ptr::from_mut(fib), size, flags) } != 0 {
            return false;
        }
        // SAFETY: unions of integers; the helper has filled the member of the family.
        *source = unsafe {
            if packet.is_v4 {
                map_v4(fib.__bindgen_anon_3.ipv4_src.to_ne_bytes())
            } else {
                fib.__bindgen_anon_3.ipv6_src
            }
        };
        true
    }

    #[inline(always)]
    fn route(self, packet: &Packet, to: &CtValue, hop: &mut Hop) -> Result<(), Unrouted> {
        let fib = hop.params_mut();
        // A route says how long a packet may be. No packet of IP is longer than the field can say.
        fib.__bindgen_anon_1.tot_len = packet.len as u16;
        fib.l4_protocol = packet.key.protocol;
        fib.sport = to.sport.0;
        fib.dport = to.dport.0;
        fib.ifindex = self.device();
        if packet.is_v4 {
            // The tuple of an IPv4 packet is IPv4; if it were not, rewriting it would fail as well.
            let (Some(src), Some(dst)) = (unmap_v4(to.src), unmap_v4(to.dst)) else { return Err(Unrouted::Local) };
            fib.family = AF_INET;
            fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
            fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
        } else {
            fib.family = AF_INET6;
            fib.__bindgen_anon_3.ipv6_src = to.src;
            fib.__bindgen_anon_4.ipv6_dst = to.dst;
        }
        match self.look_up(fib) {
            0 => Ok(()),
            // SAFETY: both are integers of this size.
            found => Err(Unrouted::of(found, unsafe { fib.__bindgen_anon_1.mtu_result })),
        }
    }

    #[inline(always)]
    fn has_socket(self, packet: &Packet) -> bool {
        // SAFETY: integers; zero is a value.
        let mut tuple: bpf_sock_tuple = unsafe { MaybeUninit::zeroed().assume_init() };
        let CtKey { src, dst, sport, dport, .. } = packet.key;
        let size = if packet.is_v4 {
            let (Some(src), Some(dst)) = (unmap_v4(src), unmap_v4(dst)) else { return false };
            let (saddr, daddr) = (u32::from_ne_bytes(src), u32::from_ne_bytes(dst));
            tuple.__bindgen_anon_1.ipv4 =
                bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 { saddr, daddr, sport: sport.0, dport: dport.0 };
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>()
        } else {
            tuple.__bindgen_anon_1.ipv6 =
                bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 { saddr: src, daddr: dst, sport: sport.0, dport: dport.0 };
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>()
        };
        // SAFETY: the tuple is that long.
        let socket = unsafe { bpf_sk_lookup_udp(self.0.cast(), &raw mut tuple, size as u32, THIS_NETNS, 0) };
        if socket.is_null() {
            return false;
        }
        // SAFETY: the helper's socket is alive until it is released, which happens once.
        unsafe {
            let peer = (*socket).dst_port;
            bpf_sk_release(socket.cast());
            peer != 0
        }
    }

    #[inline(always)]
    fn redirect(self, hop: &Hop) -> i32 {
        let fib = hop.params();
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: zero is a value.
        let mut neighbour: bpf_redir_neigh = unsafe { MaybeUninit::zeroed().assume_init() };
        neighbour.nh_family = fib.family as u32;
        // SAFETY: both are unions of integers; an IPv4 next hop is in the first word.
        neighbour.__bindgen_anon_1.ipv6_nh = unsafe { fib.__bindgen_anon_4.ipv6_dst };
        // SAFETY: the neighbour is that long.
        unsafe { bpf_redirect_neigh(fib.ifindex, &raw mut neighbour, size, 0) as i32 }
    }

    #[inline(always)]
    fn send_back(self) -> i32 {
        // SAFETY: the helper takes numbers.
        unsafe { bpf_redirect(self.device(), 0) as i32 }
    }

    #[inline(always)]
    fn turn_in(self) -> i32 {
        // SAFETY: as above.
        unsafe { bpf_redirect(self.device(), BPF_F_INGRESS as u64) as i32 }
    }

    #[inline(never)]
    fn receive(self, packet: &Packet, to: &CtValue) -> i32 {
        let back = CtValue { src: to.dst, dst: to.src, sport: to.dport, dport: to.sport, ..*to };
        let mut hop = Hop::default();
        if self.route(packet, &back, &mut hop).is_err() || hop.params().ifindex == self.device() {
            return PASS;
        }
        // A device takes only what has its hardware address (`eth_type_trans`).
        // SAFETY: copied out at once; user space replaces the element as a whole.
        let Some(device) = unsafe { DEVICES.get(hop.params().ifindex) }.copied() else { return PASS };
        let dressed = match packet.start {
            0 => self.dress().and_then(|()| self.store(12, &self.kind().1.to_ne_bytes(), 0)),
            _ => Ok(()),
        };
        if dressed.and_then(|()| self.store(0, &device.hardware, 0)).is_err() {
            return PASS;
        }
        // SAFETY: as above.
        unsafe { bpf_redirect(hop.params().ifindex, BPF_F_INGRESS as u64) as i32 }
    }
}

impl KernelSkb {
    /// The helper's result: 0 if the next hop and its device are in the parameters.
    ///
    /// Kernels before 6.3 refuse the flag that leaves the neighbour out. They fill in the next hop and the device before
    /// they look for the neighbour, and say so when there is none: <https://elixir.bootlin.com/linux/v5.15/source/net/core/filter.c>
    /// (`bpf_ipv4_fib_lookup`).
    #[inline(always)]
    fn look_up(self, fib: &mut FibParams) -> i64 {
        const EINVAL: i64 = 22;
        let size = size_of::<FibParams>() as i32;
        let fib = core::ptr::from_mut(fib);
        // SAFETY: the parameters are that long.
        let found = unsafe { bpf_fib_lookup(self.0.cast(), fib, size, BPF_FIB_LOOKUP_SKIP_NEIGH) };
        if found != -EINVAL {
            return found;
        }
        // SAFETY: as above; the kernel has refused the flags before it wrote anything.
        match unsafe { bpf_fib_lookup(self.0.cast(), fib, size, 0) } {
            found if found == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) => 0,
            found => found,
        }
    }
}

/// `len` bytes of `N` words, in the way that the verifier sees a bound in: before Linux 5.17 it forgets that a number is
/// not zero if a copy of it was compared. So what is compared is one less, and nobody can copy it before.
#[inline(always)]
fn part<const N: usize>(len: u32) -> Result<u32, Refused> {
    let more = core::hint::black_box(len.wrapping_sub(1) as u64) & 0x7f;
    if len == 0 || more as usize >= size_of::<[u32; N]>() { Err(Refused) } else { Ok(more as u32 + 1) }
}

/// A helper's result.
#[inline(always)]
fn check(result: i64) -> Result<(), Refused> {
    if result == 0 { Ok(()) } else { Err(Refused) }
}
