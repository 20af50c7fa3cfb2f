//! Answers a packet for a frontend without backends, from the packet itself.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_NET},
    helpers::{bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail},
};
use lb_datapath_ebpf_programs::tc::{
    header::ETHERNET,
    icmp::{HEADERS_V4, HEADERS_V6, QUOTE_V4, QUOTE_V6, unreachable_v4, unreachable_v6},
    reset::{RESET_V4, RESET_V6, reset_v4, reset_v6},
};

use crate::{
    ingress::DROP,
    skb::{Refused, check, load, store},
};

const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;
const WORD: u32 = 4;
const QUOTE_AT_V4: u32 = ETHERNET + WORD * HEADERS_V4 as u32;
const QUOTE_AT_V6: u32 = ETHERNET + WORD * HEADERS_V6 as u32;

/// Sends a reset (TCP) or "port unreachable" (UDP) back out of the device that the packet came in through.
#[inline(never)]
pub(crate) fn reject(skb: *mut __sk_buff, is_v4: bool, is_udp: bool, transport: u32) -> i32 {
    let answered = match (is_v4, is_udp) {
        // An answer to a packet with options would have to be built around them.
        (true, _) if transport != ETHERNET + 20 => Err(Refused),
        (true, true) => unreachable_to_v4(skb),
        (true, false) => reset_to_v4(skb),
        (false, true) => unreachable_to_v6(skb),
        (false, false) => reset_to_v6(skb),
    };
    if answered.is_err() {
        return DROP;
    }
    // SAFETY: `skb` is the program's context, and the helper takes numbers.
    unsafe { bpf_redirect((*skb).ifindex, 0) as i32 }
}

#[inline(always)]
fn reset_to_v4(skb: *mut __sk_buff) -> Result<(), Refused> {
    let request: [u32; RESET_V4] = load(skb, ETHERNET).ok_or(Refused)?;
    let reply = reset_v4(&request).ok_or(Refused)?;
    resize(skb, ETHERNET + WORD * RESET_V4 as u32)?;
    store(skb, ETHERNET, &reply, RECOMPUTE)?;
    turn(skb)
}

#[inline(always)]
fn reset_to_v6(skb: *mut __sk_buff) -> Result<(), Refused> {
    let request: [u32; RESET_V6] = load(skb, ETHERNET).ok_or(Refused)?;
    let reply = reset_v6(&request).ok_or(Refused)?;
    resize(skb, ETHERNET + WORD * RESET_V6 as u32)?;
    store(skb, ETHERNET, &reply, RECOMPUTE)?;
    turn(skb)
}

#[inline(always)]
fn unreachable_to_v4(skb: *mut __sk_buff) -> Result<(), Refused> {
    let quote: [u32; QUOTE_V4] = load(skb, ETHERNET).ok_or(Refused)?;
    resize(skb, QUOTE_AT_V4 + WORD * QUOTE_V4 as u32)?;
    store(skb, ETHERNET, &unreachable_v4(&quote), RECOMPUTE)?;
    store(skb, QUOTE_AT_V4, &quote, RECOMPUTE)?;
    turn(skb)
}

#[inline(always)]
fn unreachable_to_v6(skb: *mut __sk_buff) -> Result<(), Refused> {
    let quote: [u32; QUOTE_V6] = load(skb, ETHERNET).ok_or(Refused)?;
    resize(skb, QUOTE_AT_V6 + WORD * QUOTE_V6 as u32)?;
    store(skb, ETHERNET, &unreachable_v6(&quote), RECOMPUTE)?;
    store(skb, QUOTE_AT_V6, &quote, RECOMPUTE)?;
    turn(skb)
}

/// Makes the packet `len` bytes long, of any content.
///
/// A sender may have left the checksum to the device (`CHECKSUM_PARTIAL`), which would write one into the answer, at the
/// place where the old packet had its own. Cutting out more than what lies before that place makes the kernel forget it
/// (`skb_postpull_rcsum`).
#[inline(always)]
fn resize(skb: *mut __sk_buff, len: u32) -> Result<(), Refused> {
    const CUT: u32 = 64;
    // SAFETY: helpers on the program's context, with numbers.
    unsafe {
        check(bpf_skb_change_tail(skb, len + CUT, 0))?;
        check(bpf_skb_adjust_room(skb, -(CUT as i32), BPF_ADJ_ROOM_NET, 0))
    }
}

/// Turns the Ethernet header around.
#[inline(always)]
fn turn(skb: *mut __sk_buff) -> Result<(), Refused> {
    let [a, b, c]: [u32; 3] = load(skb, 0).ok_or(Refused)?;
    let (to, from) = ((a as u64) | (b as u64 & 0xffff) << 32, (b as u64) >> 16 | (c as u64) << 16);
    store(skb, 0, &[from as u32, (from >> 32) as u32 | (to as u32) << 16, (to >> 16) as u32], 0)
}
