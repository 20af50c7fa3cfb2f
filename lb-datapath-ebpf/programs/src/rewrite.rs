//! Gives a packet another tuple and sends it on.
//!
//! A translated packet does not go through the node's own routing input: there, a packet that comes in from outside with a
//! source address of the node is a martian (`fib_validate_source`), and a reply that comes in from a pod with a virtual
//! address as its source fails the reverse path filter. The routing table is asked here, and the packet leaves through
//! the device that it names.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_FIB_LOOKUP_SKIP_NEIGH,
        bpf_fib_lookup as FibParams, bpf_redir_neigh,
    },
    helpers::{bpf_csum_diff, bpf_fib_lookup, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect_neigh},
};
use lb_datapath_ebpf_abi::{Addr, CtValue, Port, unmap_v4};
use lb_datapath_ebpf_programs::tc::header::ETHERNET;

use crate::{
    ingress::{DROP, PASS, Packet},
    skb::{Refused, check, store},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `BPF_F_IPV6`, since 6.16: addresses of IPv6 are not covered by a checksum of their own header.
const BPF_F_IPV6: u64 = 1 << 7;

/// Translates `packet` to the tuple of `to` and sends it on.
#[inline(never)]
pub(crate) fn forward(skb: *mut __sk_buff, packet: &Packet, to: &CtValue) -> i32 {
    // The kernel answers with "time exceeded", from the packet as the client knows it.
    if packet.ttl <= 1 {
        return PASS;
    }
    let hop = route(skb, packet, to);
    let ttl = if hop.is_some() { packet.ttl - 1 } else { packet.ttl };
    let rewritten = if packet.is_v4 { rewrite_v4(skb, packet, to, ttl) } else { rewrite_v6(skb, packet, to, ttl) };
    match (rewritten, hop) {
        (Err(Refused), _) => DROP,
        (Ok(()), None) => PASS,
        (Ok(()), Some(hop)) => hop.redirect(),
    }
}

/// Where a packet goes next.
struct Hop {
    device: u32,
    neighbour: bpf_redir_neigh,
}

impl Hop {
    #[inline(always)]
    fn redirect(mut self) -> i32 {
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: the neighbour is that long.
        unsafe { bpf_redirect_neigh(self.device, &raw mut self.neighbour, size, 0) as i32 }
    }
}

/// The next hop of the translated packet; `None` if it is for this node itself, or has no route: then it is the node's
/// own routing that deals with it.
#[inline(always)]
fn route(skb: *mut __sk_buff, packet: &Packet, to: &CtValue) -> Option<Hop> {
    // SAFETY: integers and unions of integers; zero is a value.
    let mut fib: FibParams = unsafe { MaybeUninit::zeroed().assume_init() };
    fib.l4_protocol = packet.key.protocol;
    fib.sport = to.sport.0;
    fib.dport = to.dport.0;
    // SAFETY: `skb` is the program's context, and it may read the field.
    fib.ifindex = unsafe { (*skb).ifindex };
    if packet.is_v4 {
        fib.family = AF_INET;
        fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(unmap_v4(to.src)?);
        fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(unmap_v4(to.dst)?);
    } else {
        fib.family = AF_INET6;
        fib.__bindgen_anon_3.ipv6_src = to.src;
        fib.__bindgen_anon_4.ipv6_dst = to.dst;
    }
    let size = size_of::<FibParams>() as i32;
    // SAFETY: the parameters are that long.
    let found = unsafe { bpf_fib_lookup(skb.cast(), &raw mut fib, size, BPF_FIB_LOOKUP_SKIP_NEIGH) };
    if found != 0 {
        return None;
    }
    // SAFETY: zero is a value.
    let mut neighbour: bpf_redir_neigh = unsafe { MaybeUninit::zeroed().assume_init() };
    neighbour.nh_family = fib.family as u32;
    // SAFETY: both are unions of integers; an IPv4 next hop is in the first word.
    neighbour.__bindgen_anon_1.ipv6_nh = unsafe { fib.__bindgen_anon_4.ipv6_dst };
    Some(Hop { device: fib.ifindex, neighbour })
}

#[inline(always)]
fn rewrite_v4(skb: *mut __sk_buff, packet: &Packet, to: &CtValue, ttl: u8) -> Result<(), Refused> {
    const TTL: u32 = ETHERNET + 8;
    const CHECK: u32 = ETHERNET + 10;
    const ADDRESSES: u32 = ETHERNET + 12;
    let (old, new) = (v4_words(packet.ttl, packet.key.src, packet.key.dst)?, v4_words(ttl, to.src, to.dst)?);
    let [_, src, dst] = new;
    // SAFETY: helpers on the program's context; offsets are inside the packet, whose headers have been read.
    unsafe {
        check(bpf_l3_csum_replace(skb, CHECK, 0, difference(&old, &new)? as u64, 0))?;
        let [_, old @ ..] = old;
        transport(skb, packet, to, difference(&old, &[src, dst])? as u64, 0)?;
    }
    store(skb, ADDRESSES, &[src, dst], 0)?;
    store(skb, TTL, &ttl, 0)
}

#[inline(always)]
fn rewrite_v6(skb: *mut __sk_buff, packet: &Packet, to: &CtValue, ttl: u8) -> Result<(), Refused> {
    const HOP_LIMIT: u32 = ETHERNET + 7;
    const ADDRESSES: u32 = ETHERNET + 8;
    let old = v6_words(packet.key.src, packet.key.dst);
    let new = v6_words(to.src, to.dst);
    let diff = difference(&old, &new)? as u64;
    // SAFETY: helpers on the program's context, as for IPv4.
    unsafe {
        if transport(skb, packet, to, diff, BPF_F_IPV6).is_err() {
            transport(skb, packet, to, diff, 0)?;
        }
    }
    store(skb, ADDRESSES, &new, 0)?;
    // No checksum of the packet covers it, but one of the device's may.
    store(skb, HOP_LIMIT, &ttl, BPF_F_RECOMPUTE_CSUM as u64)
}

/// Ports, and the checksum over them and the pseudo header, whose addresses differ by `diff`.
///
/// # Safety
/// The packet's transport header has been read.
#[inline(always)]
unsafe fn transport(skb: *mut __sk_buff, packet: &Packet, to: &CtValue, diff: u64, family: u64) -> Result<(), Refused> {
    let (at, zero) = if packet.is_udp() { (6, BPF_F_MARK_MANGLED_0 as u64) } else { (16, 0) };
    let at = packet.transport.wrapping_add(at);
    let old = ports(packet.key.sport, packet.key.dport);
    let new = ports(to.sport, to.dport);
    let pseudo = BPF_F_PSEUDO_HDR as u64 | zero | family;
    // SAFETY: the caller's.
    unsafe {
        check(bpf_l4_csum_replace(skb, at, 0, diff, pseudo))?;
        check(bpf_l4_csum_replace(skb, at, 0, difference(&[old], &[new])? as u64, zero))?;
    }
    store(skb, packet.transport, &new, 0)
}

/// What a checksum has to change by when `old` becomes `new`.
#[inline(always)]
fn difference<const N: usize>(old: &[u32; N], new: &[u32; N]) -> Result<i64, Refused> {
    let size = size_of::<[u32; N]>() as u32;
    // SAFETY: both are that long, and the helper only reads them.
    let diff = unsafe { bpf_csum_diff(old.as_ptr().cast_mut(), size, new.as_ptr().cast_mut(), size, 0) };
    if diff < 0 { Err(Refused) } else { Ok(diff) }
}

#[inline(always)]
const fn ports(sport: Port, dport: Port) -> u32 {
    ((sport.number() as u32) << 16 | dport.number() as u32).to_be()
}

/// Time to live, source and destination, as they lie in the header.
#[inline(always)]
fn v4_words(ttl: u8, src: Addr, dst: Addr) -> Result<[u32; 3], Refused> {
    let (src, dst) = (unmap_v4(src).ok_or(Refused)?, unmap_v4(dst).ok_or(Refused)?);
    Ok([u32::from_ne_bytes([ttl, 0, 0, 0]), u32::from_ne_bytes(src), u32::from_ne_bytes(dst)])
}

#[inline(always)]
const fn v6_words(src: Addr, dst: Addr) -> [u32; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (src, dst);
    [a, b, c, d, e, f, g, h]
}
