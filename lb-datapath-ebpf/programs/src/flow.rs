//! Flows of packets: two entries each, one per direction, each saying what a packet's tuple becomes.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use lb_datapath_ebpf_abi::{
    Addr, CT_CLOSING, CT_REPLY, CidrKey, CtKey, CtValue, FAMILY_V4, FAMILY_V6, NODE_KEY, Port, TARGET_SET, UDP_IDLE_NS,
};

use crate::{
    ingress::Packet,
    maps::{CIDRS, CT, NODE},
    select::{frontend, is_member, now, random},
};

/// Attempts to find a free port. Every one is a fresh random pick: with three quarters of the ports to one backend in
/// use, one flow in 10,000 finds none.
const PORT_ATTEMPTS: u32 = 32;
/// A closed connection's port is not given to another one for this long, so that its last packets find their way.
const CLOSED_NS: u64 = 10_000_000_000;
/// A connection that was silent for longer has lost its claim to a translated port.
const TCP_IDLE_NS: u64 = 21_600_000_000_000;

/// Writes to `to` what `packet` becomes, if it belongs to a flow that is not over.
#[inline(never)]
pub(crate) fn lookup(packet: &Packet, to: &mut CtValue) -> bool {
    let Some(entry) = CT.get_ptr_mut(packet.key) else { return false };
    // SAFETY: a live element; a value that is recycled meanwhile is at worst another flow's, once.
    *to = unsafe { *entry };
    let now = now();
    let alive = if to.flags & CT_REPLY != 0 { is_reply_alive(packet, to, now) } else { is_alive(packet, to, now) };
    if !alive {
        return false;
    }
    // SAFETY: as above; the fields are written one by one.
    unsafe {
        (*entry).last_ns = now;
        if packet.is_end() {
            (*entry).flags |= CT_CLOSING;
        }
    }
    if packet.is_end() && to.flags & CT_REPLY != 0 {
        close(&to.mirror(packet.key.protocol));
    }
    true
}

/// Whether a reply still belongs to a flow: a UDP flow that was silent for long does not know its port any more.
#[inline(always)]
fn is_reply_alive(packet: &Packet, to: &CtValue, now: u64) -> bool {
    !packet.is_udp() || now.saturating_sub(to.last_ns) < UDP_IDLE_NS
}

/// Whether a packet of a client still belongs to its flow, whose backend it then keeps.
#[inline(always)]
fn is_alive(packet: &Packet, to: &CtValue, now: u64) -> bool {
    if packet.is_udp() || packet.is_syn() {
        let Some(frontend) = frontend(&packet.frontend_key()) else { return false };
        let same = frontend.set == to.set;
        let kept = if packet.is_udp() { same || is_member(frontend.set, to.backend) } else { same };
        let over = packet.is_syn() && to.flags & CT_CLOSING != 0;
        if frontend.target != TARGET_SET || !kept || over {
            return false;
        }
    }
    touch_reply(packet, to, now)
}

/// Keeps the entry for replies alive, and brings it back if it was evicted. Without it the flow is over.
#[inline(always)]
fn touch_reply(packet: &Packet, to: &CtValue, now: u64) -> bool {
    let key = to.mirror(packet.key.protocol);
    let Some(entry) = CT.get_ptr_mut(key) else {
        return CT.insert(key, reply(packet, to.backend, to.set, now), BPF_NOEXIST as u64).is_ok();
    };
    // SAFETY: a live element, whose fields are read and written one by one.
    unsafe {
        if !is_reply_to(entry, packet) || (packet.is_udp() && now.saturating_sub((*entry).last_ns) >= UDP_IDLE_NS) {
            return false;
        }
        (*entry).last_ns = now;
        if packet.is_end() {
            (*entry).flags |= CT_CLOSING;
        }
    }
    true
}

#[inline(always)]
fn close(key: &CtKey) {
    if let Some(entry) = CT.get_ptr_mut(key) {
        // SAFETY: a live element.
        unsafe { (*entry).flags |= CT_CLOSING };
    }
}

/// A packet that is for no frontend goes to its destination directly: if a finished flow had the same tuple, replies are
/// not to be translated any more.
#[inline(always)]
pub(crate) fn forget_reply(packet: &Packet) {
    if !packet.is_udp() && !packet.is_syn() {
        return;
    }
    let key = packet.key.mirror();
    if let Some(entry) = CT.get_ptr_mut(key)
        // SAFETY: a live element.
        && unsafe { (*entry).flags } & CT_REPLY != 0
    {
        let _ = CT.remove(key);
    }
}

/// Starts a flow to the backend that `to` names, and completes `to`; `false` if no port is left for it.
#[inline(never)]
pub(crate) fn open(packet: &Packet, to: &mut CtValue) -> bool {
    let back = reply(packet, to.backend, to.set, now());
    (to.src, to.sport) = (packet.key.src, packet.key.sport);
    (to.last_ns, to.flags) = (back.last_ns, 0);
    let foreign = to.dst == packet.key.src || !is_pod(packet);
    // A client that talks to this backend through another frontend already, from the same port, gets another source.
    let claimed = (!foreign && claim(packet, &to.mirror(packet.key.protocol), &back, 0))
        || match source(packet.is_v4) {
            Some(source) => translate_source(packet, to, &back, &source),
            // Without an address of our own, replies may or may not come back through here.
            None => foreign && claim(packet, &to.mirror(packet.key.protocol), &back, 0),
        };
    claimed && CT.insert(packet.key, *to, BPF_ANY as u64).is_ok()
}

/// Gives the flow a source of ours, with a port that no other flow to the same backend has.
#[inline(always)]
fn translate_source(packet: &Packet, to: &mut CtValue, back: &CtValue, source: &Source) -> bool {
    to.src = source.addr;
    let mut key = to.mirror(packet.key.protocol);
    for _ in 0..PORT_ATTEMPTS {
        let pick = (random() as u64).wrapping_mul(source.ports as u64) >> 32;
        to.sport = Port::new(source.first.wrapping_add(pick as u16));
        key.dport = to.sport;
        if claim(packet, &key, back, CLOSED_NS) {
            return true;
        }
    }
    false
}

/// Makes the entry for replies, unless another flow needs it. One that has been closed for `closed_ns` does not.
#[inline(never)]
fn claim(packet: &Packet, key: &CtKey, back: &CtValue, closed_ns: u64) -> bool {
    if CT.insert(key, back, BPF_NOEXIST as u64).is_ok() {
        return true;
    }
    let Some(entry) = CT.get_ptr_mut(key) else { return false };
    // SAFETY: a live element, whose fields are read one by one.
    let (idle, flags, ours) =
        unsafe { (back.last_ns.saturating_sub((*entry).last_ns), (*entry).flags, is_reply_to(entry, packet)) };
    let over = if packet.is_udp() {
        idle >= UDP_IDLE_NS
    } else {
        idle >= TCP_IDLE_NS || (flags & CT_CLOSING != 0 && idle >= closed_ns)
    };
    (ours || over) && CT.insert(key, back, BPF_ANY as u64).is_ok()
}

/// Whether `entry` translates replies to the client that sent `packet`, as from where it sent it to.
///
/// # Safety
/// `entry` points to a live element.
#[inline(always)]
unsafe fn is_reply_to(entry: *const CtValue, packet: &Packet) -> bool {
    let key = &packet.key;
    // SAFETY: the caller's.
    let (src, dst, sport, dport) = unsafe { ((*entry).src, (*entry).dst, (*entry).sport, (*entry).dport) };
    src == key.dst && dst == key.src && sport == key.dport && dport == key.sport
}

#[inline(always)]
fn reply(packet: &Packet, backend: u32, set: u32, now: u64) -> CtValue {
    CtValue {
        last_ns: now,
        src: packet.key.dst,
        dst: packet.key.src,
        sport: packet.key.dport,
        dport: packet.key.sport,
        backend,
        set,
        flags: CT_REPLY,
        pad: [0; 3],
    }
}

/// What translated sources are made of.
struct Source {
    addr: Addr,
    first: u16,
    ports: u16,
}

/// The node's address of the packet's family, and ports that its own sockets do not get.
#[inline(always)]
fn source(is_v4: bool) -> Option<Source> {
    // SAFETY: copied out at once; user space replaces the element as a whole.
    let node = unsafe { NODE.get(NODE_KEY) }?;
    let (has, addr) = if is_v4 { (node.has_v4, node.snat_v4) } else { (node.has_v6, node.snat_v6) };
    (has != 0).then_some(Source { addr, first: node.nat_first, ports: node.nat_ports })
}

/// Whether the packet comes from a pod of the cluster.
#[inline(always)]
fn is_pod(packet: &Packet) -> bool {
    let key = CidrKey { bits: 128, addr: packet.key.src };
    let family = if packet.is_v4 { FAMILY_V4 } else { FAMILY_V6 };
    // A prefix of the other family can match only by being shorter than any that tells them apart.
    CIDRS.get(&aya_ebpf::btf_maps::lpm_trie::Key::new(key.bits, key.addr)).is_some_and(|found| *found == family)
}
