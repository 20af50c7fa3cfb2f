//! Flows of packets: two entries each, one per direction, each saying what a packet's tuple becomes.
//!
//! There are two tables. A new flow is in `CT`, which evicts the least recently used entry when it is full: a flood of
//! SYNs evicts what was never answered. A flow that was answered, and whose client answered in turn, moves to `CT_LIVE`,
//! which evicts nothing. A flow that is closed goes back to `CT`. So does a flow for which `CT_LIVE` has no room: it
//! stays in `CT`.
//!
//! The entry for replies knows the state of the flow. Packets of both directions write it: about once a second, and
//! whenever they change the state.

use lb_datapath_ebpf_abi::{
    Addr, CT_CLOSED, CT_COUNTED, CT_CUT, CT_DIRECT, CT_INSIDE, CT_OWN, CT_REPLY, CtKey, CtValue, FAMILY_V4, FAMILY_V6,
    FragmentKey, FragmentValue, FrontendKey, NodeValue, Port, Reason, SCOPE_ANY, SIDE_FIN, SIDE_FIRST, SIDE_SEEN,
    TARGET_SET,
};

use super::{
    header::{FIN, RST, SYN},
    packet::Packet,
    skb::Skb,
    work::Work,
};
use crate::{
    maps::{Change, Maps},
    select::frontend_for,
};

/// Attempts to find a free port. Every one is a fresh random pick: with three quarters of the ports to one backend in
/// use, one flow in 10,000 finds none.
const PORT_ATTEMPTS: u32 = 32;
/// Packets that change no state leave the entries of a flow in `CT_LIVE` alone for this long.
const REFRESH_NS: u64 = 1_000_000_000;
/// What a flow is ahead of others in giving its port away, if it leaves no socket of the backend in TIME-WAIT.
const NO_TIME_WAIT: u64 = 1 << 62;

/// The maps of flows and of the node.
pub trait FlowMaps: Maps {
    /// An entry that is there. Another flow may take its memory at any time, since `CT` evicts the least recently used
    /// entry when it is full: a program that still holds it may then change that flow's entry, once.
    type Entry: Entry;

    /// This processor's room for what its program is at. A program asks for it once.
    fn work<'a>(self) -> Option<&'a mut Work>;
    /// The entry of a table.
    fn flow(self, table: Table, key: &CtKey) -> Option<Self::Entry>;
    /// Makes an entry; `false` if there is one, or if there is no memory.
    fn add_flow(self, table: Table, key: &CtKey, value: &CtValue) -> bool;
    /// Makes an entry or replaces the one that is there; `false` if there is no memory.
    fn put_flow(self, table: Table, key: &CtKey, value: &CtValue) -> bool;
    /// Removes an entry if it is there.
    fn remove_flow(self, table: Table, key: &CtKey);
    /// What the first fragment of a datagram told.
    fn fragment(self, key: &FragmentKey) -> Option<FragmentValue>;
    /// Notes what the first fragment of a datagram tells. A full map evicts its least recently used entry instead of
    /// failing.
    fn put_fragment(self, key: &FragmentKey, value: &FragmentValue);
    /// What translated sources of this family are made of; `None` if the node has no address of it.
    fn source(self, is_v4: bool) -> Option<Source>;
    /// `DEVICE_…` of the device with this number; 0 if it has none.
    fn kind_of_device(self, device: u32) -> u8;
    /// The family of the longest prefix in `CIDRS` that contains `addr`.
    fn pod_family(self, addr: Addr) -> Option<u8>;
}

/// A table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `CT_LIVE`: flows that are established.
    Live,
    /// `CT`: new flows, closed flows, direct flows, and those that the other one has no room for.
    Lru,
}

/// An entry of a flow, whose fields are read and written one by one.
pub trait Entry {
    /// A copy of the whole.
    fn value(&self) -> CtValue;
    /// Whether its packets get the source and the destination of `key`, each in the place of the other.
    fn is_reply_to(&self, key: &CtKey) -> bool;
    /// Writes [`CtValue::last_ns`].
    fn touch(&self, now: u64);
    /// Adds to [`CtValue::flags`].
    fn add_flags(&self, flags: u8);
    /// Adds to [`CtValue::client`].
    fn add_client(&self, sent: u8);
    /// Adds to [`CtValue::server`].
    fn add_server(&self, sent: u8);
}

/// What the tables of flows say about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The packet belongs to no flow, or to one that is over.
    Nothing,
    /// The packet belongs to a flow.
    Flow,
    /// The packet is a reply of a flow that is not ours.
    Direct,
    /// The packet is an ICMP echo request, or a fragment of one, which belongs to no flow.
    Echo,
    /// The packet ends here.
    Stop(Reason),
}

/// Writes to `to` what `packet` becomes, if it belongs to a flow that is not over.
#[inline(never)]
pub fn lookup<M: FlowMaps>(maps: M, packet: &Packet, to: &mut CtValue) -> Found {
    let Some((entry, table)) = find(maps, &packet.key) else { return Found::Nothing };
    *to = entry.value();
    let now = maps.now();
    if to.flags & (CT_DIRECT | CT_CUT) != 0 {
        if to.flags & CT_DIRECT != 0 {
            return direct_reply(maps, packet, &entry, to, now);
        }
        // A reset is no answer to a reset, which goes to the other end instead.
        if !packet.is_reset() {
            return cut(packet, to.flags & CT_REPLY != 0);
        }
    }
    let is_reply = to.flags & CT_REPLY != 0;
    if !is_reply && may_start(packet) && !is_kept(maps, packet, to) {
        return Found::Nothing;
    }
    // What the node itself sends does not come in, and whoever forges it does not end its flow.
    if !packet.is_own && to.flags & (CT_OWN | CT_REPLY) == CT_OWN {
        return Found::Stop(Reason::PacketForgedSource);
    }
    if matches!(table, Table::Live) && !changes_state(packet) && now.saturating_sub(to.last_ns) < REFRESH_NS {
        return Found::Flow;
    }
    let alive =
        if is_reply { reply_came(maps, packet, entry, table, to) } else { client_came(maps, packet, entry, table, to) };
    if alive { Found::Flow } else { Found::Nothing }
}

/// The entry of the table that has one.
#[inline(always)]
pub(super) fn find<M: FlowMaps>(maps: M, key: &CtKey) -> Option<(M::Entry, Table)> {
    match maps.flow(Table::Live, key) {
        Some(entry) => Some((entry, Table::Live)),
        None => maps.flow(Table::Lru, key).map(|entry| (entry, Table::Lru)),
    }
}

/// What becomes of a packet of a flow that user space has ended. The client may start another flow from the same port.
#[inline(always)]
fn cut(packet: &Packet, is_reply: bool) -> Found {
    match (is_reply, packet.is_udp()) {
        (true, true) => Found::Stop(Reason::PacketReplyCut),
        (false, true) => Found::Nothing,
        (false, false) if packet.is_syn() => Found::Nothing,
        (_, false) => Found::Stop(Reason::PacketFlowCut),
    }
}

/// Whether the frontend lets a flow go on whose packet could start another one.
#[inline(always)]
fn is_kept<M: FlowMaps>(maps: M, packet: &Packet, to: &CtValue) -> bool {
    // A direct flow whose source had to be translated has no frontend.
    if to.set == 0 {
        return true;
    }
    let inside = to.flags & CT_INSIDE != 0;
    let Some(frontend) = frontend_for(maps, &packet.frontend_key(), inside) else { return false };
    let kept = frontend.set == to.set || (packet.is_udp() && maps.keeps_flows(frontend.set, to.backend));
    frontend.target == TARGET_SET && kept
}

/// A packet of the client: keeps both entries alive, and brings the one for replies back if it was evicted. `false` if
/// the flow is over.
#[inline(never)]
fn client_came<M: FlowMaps>(maps: M, packet: &Packet, own: M::Entry, table: Table, to: &CtValue) -> bool {
    let (key, now) = (to.mirror(packet.key.protocol), maps.now());
    let Some((entry, _)) = find(maps, &key) else {
        own.touch(now);
        return maps.add_flow(table, &key, &reply(packet, to, now));
    };
    let mut back = entry.value();
    if !entry.is_reply_to(&packet.key) || is_over(packet, &back, now) {
        return false;
    }
    own.touch(now);
    entry.touch(now);
    let fin = if is_fin(packet) { SIDE_FIN } else { 0 };
    let answer = if !packet.is_syn() && back.server & SIDE_SEEN != 0 { SIDE_SEEN } else { 0 };
    if back.client | fin | answer != back.client {
        back.client |= fin | answer;
        entry.add_client(fin | answer);
    }
    back.last_ns = now;
    close(maps, packet, &entry, &mut back);
    if belongs(&back) != table {
        relocate(maps, table, (&packet.key, to), &key, &back);
    }
    true
}

/// Whether the client starts another flow with this packet, given the state of the one that it has.
#[inline(always)]
fn is_over(packet: &Packet, back: &CtValue, now: u64) -> bool {
    if packet.is_udp() {
        return now.saturating_sub(back.last_ns) >= back.lifetime(packet.key.protocol);
    }
    packet.is_syn() && back.is_closed()
}

/// A packet of the backend: keeps both entries alive, and brings the client's back if it was evicted. `false` if the flow
/// is over. `to` follows what becomes of the entry.
#[inline(never)]
fn reply_came<M: FlowMaps>(maps: M, packet: &Packet, own: M::Entry, table: Table, to: &mut CtValue) -> bool {
    let now = maps.now();
    // A UDP flow that was silent for long does not know its port any more.
    if packet.is_udp() && now.saturating_sub(to.last_ns) >= to.lifetime(packet.key.protocol) {
        return false;
    }
    own.touch(now);
    to.last_ns = now;
    server_sent(maps, packet, &own, to);
    let (key, forth) = (to.mirror(packet.key.protocol), forth(packet, to, now));
    match find(maps, &key) {
        Some((client, _)) if client.is_reply_to(&packet.key) => client.touch(now),
        // The client has started another flow from the same port: this one's last packets still find their way.
        Some(_) => return true,
        None => {
            maps.add_flow(table, &key, &forth);
        }
    }
    if belongs(to) != table {
        relocate(maps, table, (&key, &forth), &packet.key, to);
    }
    true
}

/// Takes down what a backend has sent.
#[inline(always)]
fn server_sent<M: Maps>(maps: M, packet: &Packet, entry: &impl Entry, back: &mut CtValue) {
    let fin = match (is_fin(packet), back.client & SIDE_FIN) {
        (false, _) => 0,
        (true, 0) if back.server & SIDE_FIN == 0 => SIDE_FIN | SIDE_FIRST,
        (true, _) => SIDE_FIN,
    };
    if back.server | fin | SIDE_SEEN != back.server {
        back.server |= fin | SIDE_SEEN;
        entry.add_server(fin | SIDE_SEEN);
    }
    close(maps, packet, entry, back);
}

/// Closes a flow that has come to its end: both sides have sent a FIN, or one has sent a reset.
#[inline(always)]
fn close<M: Maps>(maps: M, packet: &Packet, entry: &impl Entry, back: &mut CtValue) {
    let ended = packet.is_reset() || back.client & back.server & SIDE_FIN != 0;
    if ended && !back.is_closed() {
        back.flags |= CT_CLOSED;
        entry.add_flags(CT_CLOSED);
        if back.flags & CT_COUNTED != 0 {
            maps.change_load(back.backend, Change::Ends);
        }
    }
}

/// The table of a flow with this state.
#[inline(always)]
const fn belongs(back: &CtValue) -> Table {
    if back.is_established() && !back.is_closed() { Table::Live } else { Table::Lru }
}

/// Moves a flow from one table to the other. Without room there, it stays where it is.
#[inline(always)]
fn relocate<M: FlowMaps>(maps: M, from: Table, client: (&CtKey, &CtValue), key: &CtKey, back: &CtValue) {
    match from {
        Table::Live => change_table::<M, false>(maps, client.0, client.1, key, back),
        Table::Lru => change_table::<M, true>(maps, client.0, client.1, key, back),
    }
}

#[inline(never)]
fn change_table<M: FlowMaps, const TO_LIVE: bool>(
    maps: M,
    client_key: &CtKey,
    client: &CtValue,
    key: &CtKey,
    back: &CtValue,
) {
    let (from, to) = if TO_LIVE { (Table::Lru, Table::Live) } else { (Table::Live, Table::Lru) };
    if !maps.put_flow(to, key, back) {
        return;
    }
    if !maps.put_flow(to, client_key, client) {
        maps.remove_flow(to, key);
        return;
    }
    maps.remove_flow(from, client_key);
    maps.remove_flow(from, key);
}

/// A reply of a flow that is not ours.
#[inline(always)]
fn direct_reply<M: Maps>(maps: M, packet: &Packet, entry: &impl Entry, to: &CtValue, now: u64) -> Found {
    if packet.is_udp() && now.saturating_sub(to.last_ns) >= to.lifetime(packet.key.protocol) {
        return Found::Nothing;
    }
    let mut back = *to;
    entry.touch(now);
    server_sent(maps, packet, entry, &mut back);
    Found::Direct
}

/// Whether a packet of the node itself is one that was translated: its answer has an entry of a flow of the node.
#[inline(never)]
pub fn was_sent<M: FlowMaps>(maps: M, packet: &Packet) -> bool {
    const ANSWER: u8 = CT_REPLY | CT_OWN;
    find(maps, &packet.key.mirror()).is_some_and(|(entry, _)| entry.value().flags & ANSWER == ANSWER)
}

/// What became of the tuple of a packet that is for no frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// It is the packet's own, and no flow of a frontend gets it.
    Recorded,
    /// A flow of a frontend has it. The packet can be translated instead, to its destination out of another source.
    Taken,
}

/// Records the flow of a packet that is for no frontend and goes to its destination directly, so that no flow of a
/// frontend gets the same tuple. Of TCP, only SYN, FIN and RST are looked at, and of SCTP the chunks that stand for
/// them. Writes to `to` what [`open`] translates, if a flow of a frontend has the tuple already.
#[inline(never)]
pub fn record_direct<M: FlowMaps>(maps: M, packet: &Packet, to: &mut CtValue) -> Direct {
    if !packet.is_udp() && !changes_state(packet) {
        return Direct::Recorded;
    }
    let (key, now) = (packet.key.mirror(), maps.now());
    let Some((entry, table)) = find(maps, &key) else {
        if may_start(packet) && is_worth_recording(maps, packet, &key, to.flags & CT_OWN != 0) {
            maps.add_flow(Table::Lru, &key, &direct(packet, now));
        }
        return Direct::Recorded;
    };
    let mut back = entry.value();
    let over = is_over(packet, &back, now);
    if back.flags & CT_DIRECT != 0 && !over {
        entry.touch(now);
        if is_fin(packet) && back.client & SIDE_FIN == 0 {
            back.client |= SIDE_FIN;
            entry.add_client(SIDE_FIN);
        }
        close(maps, packet, &entry, &mut back);
        return Direct::Recorded;
    }
    // An entry of a client's direction is no reply's.
    if back.flags & (CT_DIRECT | CT_REPLY) == 0 || !may_start(packet) {
        return Direct::Recorded;
    }
    if !over && now.saturating_sub(back.last_ns) < back.lifetime(packet.key.protocol) {
        (to.dst, to.dport) = (packet.key.dst, packet.key.dport);
        (to.backend, to.set) = (0, 0);
        return Direct::Taken;
    }
    maps.remove_flow(table, &key);
    // What is no more is forgotten. A forged packet of a frontend starts nothing in its place.
    if to.flags & CT_OWN != 0 || !is_frontend(maps, &key) {
        maps.add_flow(Table::Lru, &key, &direct(packet, now));
    }
    Direct::Recorded
}

/// Whether answers to a packet, whose tuple is `key`, could be taken for packets of a flow of a frontend.
///
/// A socket of the node may have the port of a frontend on the node's address: then the answers to what it sends are not
/// new traffic of that frontend. Of packets that come in, only a forged one comes from a frontend, and its answers would
/// be packets of a client of that frontend.
#[inline(always)]
fn is_worth_recording<M: FlowMaps>(maps: M, packet: &Packet, key: &CtKey, own: bool) -> bool {
    if is_frontend(maps, key) {
        return own;
    }
    maps.knows(packet.key.dst) && !maps.is_node(packet.key.dst)
}

/// The entry for replies to a packet that goes to its destination directly.
#[inline(always)]
fn direct(packet: &Packet, now: u64) -> CtValue {
    let CtKey { src, dst, sport, dport, .. } = packet.key.mirror();
    CtValue { last_ns: now, src, dst, sport, dport, backend: 0, set: 0, flags: CT_DIRECT, client: 0, server: 0, pad: 0 }
}

/// Whether a packet may be the first one of a flow.
#[inline(always)]
const fn may_start(packet: &Packet) -> bool {
    packet.is_udp() || packet.is_syn()
}

/// Whether it changes the state of a connection.
#[inline(always)]
const fn changes_state(packet: &Packet) -> bool {
    packet.flags & (SYN | FIN | RST) != 0
}

/// Whether it is the last one of its side.
#[inline(always)]
const fn is_fin(packet: &Packet) -> bool {
    packet.flags & FIN != 0
}

/// Starts a flow to the backend that `to` names, and completes `to`, whose flags say where the client is. The backend
/// sees the client as it is, if that `keeps` its source. Returns why it could not.
///
/// A packet that goes to its destination directly names no set: its source is translated, because a flow of a frontend
/// has its tuple.
#[inline(never)]
pub fn open<M: FlowMaps, S: Skb>(maps: M, skb: S, packet: &Packet, to: &mut CtValue, keeps: bool) -> Option<Reason> {
    (to.src, to.sport, to.last_ns) = (packet.key.src, packet.key.sport, maps.now());
    (to.client, to.server) = (0, 0);
    let foreign = to.dst == packet.key.src || !keeps;
    // A client that talks to this backend through another frontend already, from the same port, gets another source. The
    // node itself would not take a packet with an address of its own as the source (`fib_validate_source`).
    let claimed = (!foreign && to.set != 0 && keep_source(maps, packet, to))
        || match maps.source(packet.is_v4) {
            Some(_) if (keeps || to.set == 0) && maps.is_node(to.dst) => false,
            Some(source) => {
                assign_address(maps, skb, packet, to, &source);
                translate_source(maps, packet, to, &source)
            }
            // Without an address of the node, replies may or may not come back through here.
            None => foreign && keep_source(maps, packet, to),
        };
    if claimed { record(maps, packet, to) } else { Some(Reason::PacketNoSourcePort) }
}

/// Starts a flow of SCTP as [`open`] does, with the port that it has: no program can give an SCTP packet another one. A
/// function of its own has fewer ways for the verifier to follow.
#[inline(never)]
pub fn open_sctp<M: FlowMaps, S: Skb>(
    maps: M,
    skb: S,
    packet: &Packet,
    to: &mut CtValue,
    keeps: bool,
) -> Option<Reason> {
    (to.src, to.sport, to.last_ns) = (packet.key.src, packet.key.sport, maps.now());
    (to.client, to.server) = (0, 0);
    let foreign = to.dst == packet.key.src || !keeps;
    if !foreign && to.set != 0 && keep_port(maps, packet, to) {
        return record(maps, packet, to);
    }
    match maps.source(packet.is_v4) {
        Some(_) if (keeps || to.set == 0) && maps.is_node(to.dst) => return Some(Reason::PacketSctpPortTaken),
        Some(source) => assign_address(maps, skb, packet, to, &source),
        None if foreign => {}
        None => return Some(Reason::PacketSctpPortTaken),
    }
    // A backend that talks to a frontend on the node's address would get answers of this flow instead.
    if is_frontend(maps, &to.mirror(packet.key.protocol)) || !keep_port(maps, packet, to) {
        return Some(Reason::PacketSctpPortTaken);
    }
    record(maps, packet, to)
}

/// [`keep_source`], in one place.
#[inline(never)]
fn keep_port<M: FlowMaps>(maps: M, packet: &Packet, to: &CtValue) -> bool {
    keep_source(maps, packet, to)
}

/// Makes the client's entry of a flow whose tuple for replies is claimed.
#[inline(never)]
fn record<M: FlowMaps>(maps: M, packet: &Packet, to: &CtValue) -> Option<Reason> {
    // An earlier flow from the same port would be found before this one.
    maps.remove_flow(Table::Live, &packet.key);
    if maps.put_flow(Table::Lru, &packet.key, to) {
        if to.flags & CT_COUNTED != 0 {
            maps.change_load(to.backend, Change::Begins);
        }
        return None;
    }
    maps.remove_flow(Table::Lru, &to.mirror(packet.key.protocol));
    Some(Reason::PacketFlowNotRecorded)
}

/// Assigns the flow the source that it has, if its tuple is free. A connection that is closed leaves its tuple to the
/// client, who knows when to use it again.
#[inline(always)]
fn keep_source<M: FlowMaps>(maps: M, packet: &Packet, to: &CtValue) -> bool {
    let key = to.mirror(packet.key.protocol);
    match claim(maps, packet, &key, to) {
        Claim::Made => true,
        Claim::Over | Claim::Closed(_) => take_over(maps, packet, &key, to),
        Claim::Refused | Claim::Unanswered(_) => false,
    }
}

/// Assigns the flow an address of the node: that of `usual`. Of several, the routing table says which one, so that
/// answers come back the way that the packets go.
///
/// The node itself is the frontend to a backend on the node, which answers to there: between two addresses of the node,
/// no packet leaves.
#[inline(never)]
fn assign_address<M: FlowMaps, S: Skb>(maps: M, skb: S, packet: &Packet, to: &mut CtValue, usual: &Source) {
    to.src = usual.addr;
    if to.flags & CT_OWN != 0 && maps.is_node(to.dst) {
        to.src = packet.key.dst;
        return;
    }
    if !usual.is_one_of_many {
        return;
    }
    // Whole from the start, as the next hop of a packet is.
    let mut addr = usual.addr;
    if skb.preferred_source(packet, to, &mut addr) && maps.is_node(addr) {
        to.src = addr;
    }
}

/// Assigns the flow a source of the node, with a port that no other flow to the same backend has.
///
/// If every pick has a flow, one that is closed or was never answered gives its port away: the one that is so for the
/// longest time, and first one whose backend has no socket in TIME-WAIT, which could refuse the newcomer.
#[inline(always)]
fn translate_source<M: FlowMaps>(maps: M, packet: &Packet, to: &mut CtValue, source: &Source) -> bool {
    let mut key = to.mirror(packet.key.protocol);
    let (mut longest, mut spare) = (0, Port(0));
    for _ in 0..PORT_ATTEMPTS {
        let pick = (maps.random() as u64).wrapping_mul(source.ports as u64) >> 32;
        key.dport = Port::new(source.first.wrapping_add(pick as u16));
        // A backend that talks to a frontend on the node's address would get answers of this flow instead.
        if is_frontend(maps, &key) {
            continue;
        }
        match claim(maps, packet, &key, to) {
            Claim::Made => {
                to.sport = key.dport;
                return true;
            }
            Claim::Over => {
                spare = key.dport;
                break;
            }
            Claim::Closed(idle) | Claim::Unanswered(idle) if idle >= longest => (longest, spare) = (idle, key.dport),
            Claim::Closed(_) | Claim::Unanswered(_) | Claim::Refused => {}
        }
    }
    (to.sport, key.dport) = (spare, spare);
    spare != Port(0) && take_over(maps, packet, &key, to)
}

/// What became of the claim to a tuple for replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// The entry was made.
    Made,
    /// The flow of the tuple is over, or is the client's own.
    Over,
    /// The flow of the tuple is closed, for so long in nanoseconds, with [`NO_TIME_WAIT`] added if its backend has no
    /// socket in TIME-WAIT.
    Closed(u64),
    /// The flow of the tuple was not established for so long.
    Unanswered(u64),
    /// Another flow needs the tuple, or there is no memory.
    Refused,
}

/// Whether packets with the tuple of `key` are for a frontend.
#[inline(always)]
fn is_frontend<M: FlowMaps>(maps: M, key: &CtKey) -> bool {
    let &CtKey { dst: addr, dport: port, protocol, .. } = key;
    maps.frontend(&FrontendKey { addr, port, protocol, scope: SCOPE_ANY, pad: 0 }).is_some()
}

/// Makes the entry for replies, unless another flow has the tuple.
#[inline(never)]
fn claim<M: FlowMaps>(maps: M, packet: &Packet, key: &CtKey, to: &CtValue) -> Claim {
    let entry = if maps.add_flow(Table::Lru, key, &reply(packet, to, to.last_ns)) {
        let Some(entry) = maps.flow(Table::Live, key) else { return Claim::Made };
        maps.remove_flow(Table::Lru, key);
        entry
    } else {
        let Some((entry, _)) = find(maps, key) else { return Claim::Refused };
        entry
    };
    let found = entry.value();
    let idle = to.last_ns.saturating_sub(found.last_ns);
    if entry.is_reply_to(&packet.key) || idle >= found.lifetime(packet.key.protocol) {
        return Claim::Over;
    }
    match (found.is_closed(), found.server & SIDE_FIRST) {
        (true, 0) => Claim::Closed(idle | NO_TIME_WAIT),
        (true, _) => Claim::Closed(idle),
        (false, _) if found.is_established() => Claim::Refused,
        (false, _) => Claim::Unanswered(idle),
    }
}

/// The flow with this entry for replies is about to give its tuple away: it counts as a connection no longer, if it did. Of
/// one that was silent for too long, user space has said so already.
#[inline(never)]
fn uncount<M: FlowMaps>(maps: M, key: &CtKey, now: u64) {
    let Some((entry, _)) = find(maps, key) else { return };
    let old = entry.value();
    let over = now.saturating_sub(old.last_ns) >= old.lifetime(key.protocol);
    if old.flags & CT_COUNTED != 0 && !old.is_closed() && !over {
        maps.change_load(old.backend, Change::Ends);
    }
}

/// Makes the entry for replies in the place of another flow's.
#[inline(always)]
fn take_over<M: FlowMaps>(maps: M, packet: &Packet, key: &CtKey, to: &CtValue) -> bool {
    uncount(maps, key, to.last_ns);
    replace(maps, packet, key, to)
}

/// Makes the entry for replies in the place of another flow's, and removes that flow's other half.
#[inline(never)]
fn replace<M: FlowMaps>(maps: M, packet: &Packet, key: &CtKey, to: &CtValue) -> bool {
    if let Some((old, _)) = find(maps, key) {
        let client = old.value().mirror(key.protocol);
        if client != packet.key
            && let Some((half, table)) = find(maps, &client)
            && half.is_reply_to(key)
        {
            maps.remove_flow(table, &client);
        }
    }
    maps.remove_flow(Table::Live, key);
    maps.put_flow(Table::Lru, key, &reply(packet, to, to.last_ns))
}

/// What both entries of a flow say about its client, and whether it counts.
const CLIENT: u8 = CT_INSIDE | CT_OWN | CT_COUNTED;

/// The entry for replies to the client that sent `packet`.
#[inline(always)]
fn reply(packet: &Packet, to: &CtValue, now: u64) -> CtValue {
    CtValue {
        last_ns: now,
        src: packet.key.dst,
        dst: packet.key.src,
        sport: packet.key.dport,
        dport: packet.key.sport,
        backend: to.backend,
        set: to.set,
        flags: CT_REPLY | (to.flags & CLIENT),
        client: 0,
        server: 0,
        pad: 0,
    }
}

/// The entry for packets of the client that the backend answers with `packet`.
#[inline(always)]
fn forth(packet: &Packet, to: &CtValue, now: u64) -> CtValue {
    CtValue { flags: to.flags & CLIENT, ..reply(packet, to, now) }
}

/// What translated sources are made of: an address of the node, and ports that its own sockets do not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub addr: Addr,
    /// First port.
    pub first: u16,
    /// Number of ports.
    pub ports: u16,
    /// Whether the node has other addresses of the family, too.
    pub is_one_of_many: bool,
}

impl Source {
    /// The node's source for this family.
    #[inline(always)]
    #[must_use]
    pub fn of(node: &NodeValue, is_v4: bool) -> Option<Self> {
        let (has, many, addr) =
            if is_v4 { (node.has_v4, node.many_v4, node.snat_v4) } else { (node.has_v6, node.many_v6, node.snat_v6) };
        let is_one_of_many = many != 0;
        (has != 0).then_some(Self { addr, first: node.nat_first, ports: node.nat_ports, is_one_of_many })
    }
}

/// Whether the packet comes from a pod of the cluster.
#[inline(always)]
pub fn is_pod<M: FlowMaps>(maps: M, packet: &Packet) -> bool {
    let family = if packet.is_v4 { FAMILY_V4 } else { FAMILY_V6 };
    // A prefix of the other family can match only by being shorter than any that tells them apart.
    maps.pod_family(packet.key.src).is_some_and(|found| found == family)
}

#[cfg(test)]
mod tests {
    use lb_datapath_ebpf_abi::{
        LOOKUP_HASH, TARGET_REJECT, TCP_HALF_CLOSED_NS, TCP_IDLE_NS, UDP_IDLE_NS, UDP_NEW_NS, map_v4,
    };

    use super::*;
    use crate::{
        fake::{Fake, FakeSkb, NODE, VIP, backend},
        tc::header::{ACK, FIN, RST, SYN},
    };

    const SECOND: u64 = 1_000_000_000;

    /// Starts the flow of `packet` to backend 1 of set 1.
    fn open_to(fake: &Fake, packet: &Packet, number: u32) -> Result<CtValue, Reason> {
        let (dst, dport) = backend(number);
        let mut to = CtValue { dst, dport, backend: number, set: 1, ..CtValue::EMPTY };
        match open(fake, &FakeSkb::tcp_v4(SYN), packet, &mut to, is_pod(fake, packet)) {
            None => Ok(to),
            Some(reason) => Err(reason),
        }
    }

    fn found(fake: &Fake, packet: &Packet) -> Option<CtValue> {
        let mut to = CtValue::EMPTY;
        (lookup(fake, packet, &mut to) == Found::Flow).then_some(to)
    }

    fn verdict(fake: &Fake, packet: &Packet) -> Found {
        lookup(fake, packet, &mut CtValue { ..CtValue::EMPTY })
    }

    fn tcp(flags: u8) -> Packet {
        FakeSkb::tcp_v4(flags).packet()
    }

    fn udp() -> Packet {
        FakeSkb::udp_v4().packet()
    }

    fn reply_of(to: &CtValue, packet: &Packet, flags: u8) -> Packet {
        Packet { key: to.mirror(packet.key.protocol), flags, ..*packet }
    }

    fn serving() -> Fake {
        Fake::serving(LOOKUP_HASH, &[1, 2])
    }

    #[test]
    fn a_flow_is_found_in_both_directions() {
        let fake = serving();
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        assert_eq!((to.src, to.dst), (map_v4(NODE), backend(1).0));
        assert_eq!(found(&fake, &tcp(ACK)).map(|found| found.mirror(6)), Some(to.mirror(6)));
        let back = found(&fake, &reply_of(&to, &tcp(ACK), ACK)).unwrap();
        assert_eq!(back.mirror(6), tcp(ACK).key);
        let mut other = tcp(ACK);
        other.key.sport = Port::new(40_001);
        assert_eq!(found(&fake, &other), None);
    }

    #[test]
    fn a_pod_keeps_its_source_unless_it_is_its_own_backend() {
        let fake = serving();
        fake.pods.borrow_mut().push((map_v4([192, 0, 2, 2]), FAMILY_V4));
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        assert_eq!((to.src, to.sport), (tcp(SYN).key.src, tcp(SYN).key.sport));
        let mut own = tcp(SYN);
        own.key.src = backend(1).0;
        fake.pods.borrow_mut().push((own.key.src, FAMILY_V4));
        assert_eq!(open_to(&fake, &own, 1).unwrap().src, map_v4(NODE));
    }

    #[test]
    fn a_prefix_of_the_other_family_makes_no_pod() {
        let fake = serving();
        fake.pods.borrow_mut().push((map_v4([192, 0, 2, 2]), FAMILY_V6));
        assert_eq!(open_to(&fake, &tcp(SYN), 1).unwrap().src, map_v4(NODE));
    }

    #[test]
    fn a_pod_with_two_frontends_of_one_backend_gets_another_source_for_the_second() {
        let fake = serving();
        fake.pods.borrow_mut().push((map_v4([192, 0, 2, 2]), FAMILY_V4));
        open_to(&fake, &tcp(SYN), 1).unwrap();
        let mut second = tcp(SYN);
        second.key.dst = map_v4([10, 96, 0, 2]);
        assert_eq!(open_to(&fake, &second, 1).unwrap().src, map_v4(NODE));
    }

    #[test]
    fn a_port_that_another_flow_has_is_not_given_again() {
        let fake = serving();
        fake.dice([0, 0, 1 << 31]);
        let first = open_to(&fake, &tcp(SYN), 1).unwrap();
        let mut other = tcp(SYN);
        other.key.sport = Port::new(40_001);
        let second = open_to(&fake, &other, 1).unwrap();
        assert_eq!((first.sport.number(), second.sport.number()), (1024, 1026));
        // To another backend the port is free.
        fake.dice([0]);
        let mut third = tcp(SYN);
        third.key.sport = Port::new(40_002);
        assert_eq!(open_to(&fake, &third, 2).unwrap().sport.number(), 1024);
    }

    #[test]
    fn a_client_whose_entry_was_evicted_gets_its_port_again() {
        let fake = serving();
        fake.ports.set(1);
        let first = open_to(&fake, &tcp(SYN), 1).unwrap();
        fake.flows.borrow_mut().remove(&tcp(SYN).key);
        let second = open_to(&fake, &tcp(SYN), 1).unwrap();
        assert_eq!((first.src, first.sport), (second.src, second.sport));
    }

    #[test]
    fn without_a_free_port_there_is_no_flow() {
        let fake = serving();
        fake.take_every_port();
        assert_eq!(open_to(&fake, &tcp(SYN), 1), Err(Reason::PacketNoSourcePort));
        assert_eq!(fake.rolls.get(), 32);
        assert_eq!(found(&fake, &tcp(ACK)), None);
    }

    #[test]
    fn a_node_without_an_address_translates_no_source() {
        let fake = serving();
        fake.node.set(None);
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        assert_eq!(to.src, tcp(SYN).key.src);
        // A pod whose tuple is taken has no other source then.
        let mut second = tcp(SYN);
        second.key.dst = map_v4([10, 96, 0, 2]);
        assert_eq!(open_to(&fake, &second, 1), Err(Reason::PacketNoSourcePort));
    }

    #[test]
    fn a_flow_that_cannot_be_recorded_is_refused_and_leaves_nothing() {
        let fake = serving();
        // The entry for replies is made, the other one is not.
        fake.room.set(Some(1));
        assert_eq!(open_to(&fake, &tcp(SYN), 1), Err(Reason::PacketFlowNotRecorded));
        assert!(fake.flows.borrow().is_empty());
    }

    /// Opens a connection from `port`, and completes the handshake.
    fn connect(fake: &Fake, port: u16) -> Result<Connection, Reason> {
        let mut syn = tcp(SYN);
        syn.key.sport = Port::new(port);
        let to = open_to(fake, &syn, 1)?;
        let connection = Connection { syn, to };
        assert!(connection.server(fake, SYN | ACK).is_some());
        assert!(connection.client(fake, ACK).is_some());
        Ok(connection)
    }

    struct Connection {
        syn: Packet,
        to: CtValue,
    }

    impl Connection {
        fn client(&self, fake: &Fake, flags: u8) -> Option<CtValue> {
            found(fake, &Packet { flags, ..self.syn })
        }

        fn server(&self, fake: &Fake, flags: u8) -> Option<CtValue> {
            found(fake, &reply_of(&self.to, &self.syn, flags))
        }

        /// Ends it; the server closes first, or the client.
        fn close(&self, fake: &Fake, server_first: bool) {
            let client = |flags| assert!(self.client(fake, flags).is_some());
            let server = |flags| assert!(self.server(fake, flags).is_some());
            if server_first {
                server(FIN | ACK);
                client(FIN | ACK);
                server(ACK);
            } else {
                client(FIN | ACK);
                server(FIN | ACK);
                client(ACK);
            }
        }
    }

    /// After this, is the port of such a flow given to a newcomer?
    fn given_after(idle: u64, arrange: impl Fn(&Fake)) -> bool {
        let fake = serving();
        fake.ports.set(1);
        arrange(&fake);
        fake.now.set(fake.now.get() + idle);
        let mut other = tcp(SYN);
        other.key.sport = Port::new(50_000);
        open_to(&fake, &other, 1).is_ok()
    }

    #[test]
    fn a_connection_keeps_its_port_for_as_long_as_its_state_says() {
        type Arrange = fn(&Fake);
        let cases: [(Arrange, u64); 3] = [
            (|f| assert!(connect(f, 40_000).is_ok()), TCP_IDLE_NS),
            (|f| assert!(connect(f, 40_000).unwrap().client(f, FIN | ACK).is_some()), TCP_HALF_CLOSED_NS),
            (|f| assert!(connect(f, 40_000).unwrap().server(f, FIN | ACK).is_some()), TCP_HALF_CLOSED_NS),
        ];
        for (number, (arrange, lifetime)) in cases.into_iter().enumerate() {
            assert!(!given_after(lifetime - 1, arrange), "{number}");
            assert!(given_after(lifetime, arrange), "{number}");
        }
    }

    #[test]
    fn a_half_closed_connection_goes_on() {
        let fake = serving();
        let connection = connect(&fake, 40_000).unwrap();
        assert!(connection.client(&fake, FIN | ACK).is_some());
        fake.now.set(TCP_HALF_CLOSED_NS - 1);
        assert!(connection.server(&fake, ACK).is_some());
        fake.now.set(2 * TCP_HALF_CLOSED_NS - 2);
        assert!(connection.client(&fake, ACK).is_some());
    }

    #[test]
    fn the_longest_closed_port_is_used_again_first_and_only_if_none_is_fresh() {
        let fake = serving();
        fake.ports.set(3);
        fake.dice([0, 1 << 31]);
        for port in [40_000, 40_001] {
            connect(&fake, port).unwrap().close(&fake, true);
            fake.now.set(fake.now.get() + SECOND);
        }
        fake.dice([0, 1 << 31, u32::MAX]);
        let fresh = connect(&fake, 40_002).unwrap();
        assert_eq!(fresh.to.sport.number(), 1026);
        let again = connect(&fake, 40_003).unwrap();
        assert_eq!(again.to.sport.number(), 1024);
        // The connection that gave it away has no half left.
        let mut old = tcp(ACK);
        old.key.sport = Port::new(40_000);
        assert_eq!(found(&fake, &old), None);
    }

    #[test]
    fn a_port_whose_backend_has_no_socket_in_time_wait_is_used_again_first() {
        let fake = serving();
        fake.ports.set(2);
        fake.dice([0, u32::MAX]);
        connect(&fake, 40_000).unwrap().close(&fake, true);
        fake.now.set(fake.now.get() + SECOND);
        connect(&fake, 40_001).unwrap().close(&fake, false);
        assert_eq!(connect(&fake, 40_002).unwrap().to.sport.number(), 1025);
    }

    #[test]
    fn a_port_of_a_connection_that_was_never_answered_is_given_to_a_newcomer_when_none_is_left() {
        let fake = serving();
        fake.ports.set(1);
        open_to(&fake, &tcp(SYN), 1).unwrap();
        assert!(connect(&fake, 40_001).is_ok());
        assert_eq!(connect(&fake, 40_002).err(), Some(Reason::PacketNoSourcePort));
    }

    /// Ports of one backend in the simulations.
    const POOL: u16 = 1024;
    /// Simulations of each load.
    const RUNS: u32 = 3;

    /// Random numbers, the same ones every time (Marsaglia, *Xorshift RNGs*, 2003).
    fn random(seed: u32) -> impl FnMut() -> u32 {
        let mut x = seed;
        move || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x
        }
    }

    /// How many of so many newcomers find no port, when nobody leaves.
    fn without_a_port(newcomers: u16, mut roll: impl FnMut() -> u32) -> usize {
        let fake = serving();
        fake.ports.set(POOL);
        let failed = (0..newcomers).filter(|number| {
            let mut syn = tcp(SYN);
            syn.key.sport = Port::new(10_000 + number);
            fake.dice(core::iter::repeat_with(&mut roll).take(PORT_ATTEMPTS as usize));
            let opened = open_to(&fake, &syn, 1);
            if let Ok(to) = &opened {
                let entry = fake.flows.borrow()[&to.mirror(6)].clone();
                entry.add_server(SIDE_SEEN);
                entry.add_client(SIDE_SEEN);
            }
            opened.is_err()
        });
        failed.count()
    }

    /// The same for one random pick that `next` makes another one of, as often as the program picks.
    fn by_rule(newcomers: u16, mut roll: impl FnMut() -> u32, next: impl Fn(u16) -> u16) -> usize {
        let mut taken = [false; POOL as usize];
        let failed = (0..newcomers).filter(|_| {
            let mut pick = (roll() >> 16) as u16 % POOL;
            for _ in 0..PORT_ATTEMPTS {
                if !core::mem::replace(&mut taken[usize::from(pick)], true) {
                    return false;
                }
                pick = next(pick);
            }
            true
        });
        failed.count()
    }

    #[test]
    fn fewer_newcomers_go_without_a_port_than_with_neighbours_as_candidates() {
        for percent in [50, 75, 90, 100_u16] {
            let newcomers = (u32::from(POOL) * u32::from(percent) / 100) as u16;
            // The next number, after the last one the first; and the next number scaled into the pool as if it were any
            // number of 16 bits, which halves the distance to the end of a pool that is the upper half of all ports.
            let wrapping = |pick: u16| (pick + 1) % POOL;
            let scaled = |pick: u16| (POOL + pick).div_ceil(2).min(POOL - 1);
            let runs = 1..=RUNS;
            let ours: usize = runs.clone().map(|seed| without_a_port(newcomers, random(seed))).sum();
            let wrapped: usize = runs.clone().map(|seed| by_rule(newcomers, random(seed), wrapping)).sum();
            let crowded: usize = runs.map(|seed| by_rule(newcomers, random(seed), scaled)).sum();
            let all = RUNS as usize * usize::from(newcomers);
            std::println!(
                "{percent} %: of {all} newcomers {ours} without a port; next port {wrapped}, scaled {crowded}"
            );
            assert!(ours <= wrapped && ours <= crowded, "{percent} %");
            assert!(percent > 75 || ours == 0, "{percent} %: {ours}");
        }
    }

    #[test]
    fn a_port_of_a_frontend_on_the_nodes_address_is_no_source() {
        let fake = serving();
        fake.ports.set(1);
        let frontend = fake.frontend_at(VIP);
        let key = FrontendKey { addr: map_v4(NODE), port: Port::new(1024), protocol: 6, scope: 0, pad: 0 };
        fake.frontends.borrow_mut().insert(key, frontend);
        assert_eq!(open_to(&fake, &tcp(SYN), 1), Err(Reason::PacketNoSourcePort));
    }

    #[test]
    fn a_flow_moves_to_the_table_of_its_state() {
        let fake = serving();
        let sizes = || (fake.flows.borrow().len(), fake.live.borrow().len());
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        let connection = Connection { syn: tcp(SYN), to };
        assert!(connection.server(&fake, SYN | ACK).is_some());
        assert_eq!(sizes(), (2, 0), "a flood of SYNs is answered, too");
        assert!(connection.client(&fake, ACK).is_some());
        assert_eq!(sizes(), (0, 2));
        connection.close(&fake, true);
        assert_eq!(sizes(), (2, 0));
        assert!(connection.server(&fake, ACK).is_some());
        assert_eq!(sizes(), (2, 0));
    }

    #[test]
    fn a_flow_without_room_among_the_established_ones_stays_where_it_is() {
        let fake = serving();
        for room in [0, 1] {
            fake.live_room.set(room);
            let connection = connect(&fake, 40_000 + room as u16).unwrap();
            assert!(fake.live.borrow().is_empty(), "{room}");
            assert!(connection.client(&fake, ACK).is_some());
            assert!(connection.server(&fake, ACK).is_some());
        }
        fake.live_room.set(2);
        let connection = connect(&fake, 40_002).unwrap();
        assert_eq!(fake.live.borrow().len(), 2);
        // An established flow loses nothing to newcomers.
        fake.flows.borrow_mut().clear();
        assert!(connection.client(&fake, ACK).is_some() && connection.server(&fake, ACK).is_some());
    }

    #[test]
    fn either_half_brings_the_other_one_back() {
        for room in [0, usize::MAX] {
            let fake = serving();
            fake.live_room.set(room);
            let connection = connect(&fake, 40_000).unwrap();
            let lose = |key| {
                for table in [&fake.flows, &fake.live] {
                    table.borrow_mut().remove(&key);
                }
                fake.now.set(fake.now.get() + SECOND);
            };
            lose(connection.to.mirror(6));
            assert!(connection.client(&fake, ACK).is_some());
            assert!(connection.server(&fake, ACK).is_some());
            lose(connection.syn.key);
            assert!(connection.server(&fake, ACK).is_some());
            assert_eq!(connection.client(&fake, ACK).map(|to| to.mirror(6)), Some(connection.to.mirror(6)));
        }
    }

    #[test]
    fn a_tcp_flow_keeps_its_backend_whatever_becomes_of_the_frontend() {
        let fake = serving();
        open_to(&fake, &tcp(SYN), 1).unwrap();
        fake.frontends.borrow_mut().clear();
        assert!(found(&fake, &tcp(ACK)).is_some());
    }

    #[test]
    fn a_syn_starts_a_new_flow_when_the_old_one_is_closed_or_the_set_is_another() {
        let fake = serving();
        open_to(&fake, &tcp(SYN), 1).unwrap();
        assert!(found(&fake, &tcp(SYN)).is_some(), "sent again");
        fake.point(VIP, 2, 1);
        assert_eq!(found(&fake, &tcp(SYN)), None);
        assert!(found(&fake, &tcp(ACK)).is_some());
        fake.point(VIP, 1, 2);
        open_to(&fake, &tcp(SYN), 1).unwrap();
        assert!(found(&fake, &tcp(RST)).is_some());
        assert_eq!(found(&fake, &tcp(SYN)), None, "reset");
        let connection = connect(&fake, 40_001).unwrap();
        connection.close(&fake, true);
        assert_eq!(connection.client(&fake, SYN), None, "closed");
    }

    #[test]
    fn a_reset_of_either_side_closes_the_connection() {
        let fake = serving();
        for (port, by_server) in [(40_000, true), (40_001, false)] {
            let connection = connect(&fake, port).unwrap();
            let reset = if by_server { connection.server(&fake, RST) } else { connection.client(&fake, RST) };
            assert!(reset.is_some());
            assert_eq!(connection.client(&fake, SYN), None);
        }
    }

    #[test]
    fn both_ends_of_a_connection_that_was_cut_are_told() {
        let fake = serving();
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        fake.cut_all();
        for packet in [tcp(ACK), tcp(FIN | ACK), reply_of(&to, &tcp(0), ACK), reply_of(&to, &tcp(0), SYN | ACK)] {
            assert_eq!(verdict(&fake, &packet), Found::Stop(Reason::PacketFlowCut));
        }
        assert_eq!(verdict(&fake, &tcp(SYN)), Found::Nothing, "another connection");
        for packet in [tcp(RST), reply_of(&to, &tcp(0), RST)] {
            assert_eq!(verdict(&fake, &packet), Found::Flow, "the end itself is passed on");
        }
    }

    #[test]
    fn a_udp_flow_that_was_cut_starts_again_and_hears_no_more_of_its_old_backend() {
        let fake = serving();
        let to = open_to(&fake, &udp(), 1).unwrap();
        fake.cut_all();
        assert_eq!(verdict(&fake, &reply_of(&to, &udp(), 0)), Found::Stop(Reason::PacketReplyCut));
        assert_eq!(verdict(&fake, &udp()), Found::Nothing);
        let to = open_to(&fake, &udp(), 2).unwrap();
        assert_eq!(verdict(&fake, &udp()), Found::Flow);
        assert_eq!(verdict(&fake, &reply_of(&to, &udp(), 0)), Found::Flow);
    }

    #[test]
    fn a_udp_flow_asks_for_another_backend_once_its_own_has_left_the_set() {
        let fake = serving();
        open_to(&fake, &udp(), 1).unwrap();
        fake.point(VIP, 2, 1);
        fake.list(2, &[1]);
        assert!(found(&fake, &udp()).is_some(), "still a member");
        fake.drain(2, 1);
        assert!(found(&fake, &udp()).is_some(), "draining");
        fake.members.borrow_mut().clear();
        assert_eq!(found(&fake, &udp()), None);
    }

    #[test]
    fn a_udp_flow_of_a_frontend_without_backends_is_over() {
        let fake = serving();
        open_to(&fake, &udp(), 1).unwrap();
        fake.change_frontend(VIP, |frontend| frontend.target = TARGET_REJECT);
        assert_eq!(found(&fake, &udp()), None);
    }

    #[test]
    fn a_udp_flow_is_over_after_two_minutes_of_silence_or_half_a_minute_without_an_answer() {
        let fake = serving();
        let to = open_to(&fake, &udp(), 1).unwrap();
        fake.now.set(UDP_NEW_NS - 1);
        assert!(found(&fake, &udp()).is_some());
        fake.now.set(2 * UDP_NEW_NS - 1);
        assert_eq!(found(&fake, &udp()), None, "never answered");
        assert_eq!(found(&fake, &reply_of(&to, &udp(), 0)), None);
        let to = open_to(&fake, &udp(), 1).unwrap();
        assert!(found(&fake, &reply_of(&to, &udp(), 0)).is_some());
        let start = fake.now.get();
        fake.now.set(start + UDP_IDLE_NS - 1);
        assert!(found(&fake, &udp()).is_some());
        fake.now.set(start + 2 * UDP_IDLE_NS - 2);
        assert!(found(&fake, &reply_of(&to, &udp(), 0)).is_some(), "the client was heard of since");
        fake.now.set(start + 3 * UDP_IDLE_NS);
        assert_eq!(found(&fake, &reply_of(&to, &udp(), 0)), None);
        assert_eq!(found(&fake, &udp()), None);
    }

    #[test]
    fn a_flow_whose_port_belongs_to_another_one_is_over() {
        let fake = serving();
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        let mut other = tcp(SYN);
        other.key.sport = Port::new(40_001);
        fake.put_flow(Table::Lru, &to.mirror(6), &reply(&other, &to, 0));
        assert_eq!(found(&fake, &tcp(ACK)), None);
    }

    #[test]
    fn packets_of_either_side_keep_both_entries_fresh() {
        let fake = serving();
        let connection = connect(&fake, 40_000).unwrap();
        for second in 1..5 {
            fake.now.set(second * SECOND);
            let sent = if second % 2 == 0 { connection.client(&fake, ACK) } else { connection.server(&fake, ACK) };
            assert!(sent.is_some());
            assert!(fake.live.borrow().values().all(|entry| entry.get().last_ns == second * SECOND), "{second}");
        }
    }

    fn pod_world() -> Fake {
        let fake = serving();
        fake.pods.borrow_mut().push((map_v4([192, 0, 2, 2]), FAMILY_V4));
        fake
    }

    fn record(fake: &Fake, packet: &Packet) -> Direct {
        record_direct(fake, packet, &mut CtValue { ..CtValue::EMPTY })
    }

    /// A packet of the client to backend 1 itself, from the port that the flow of `packet` keeps.
    fn to_backend(packet: &Packet, flags: u8) -> Packet {
        let (dst, dport) = backend(1);
        Packet { key: CtKey { dst, dport, ..packet.key }, flags, ..*packet }
    }

    #[test]
    fn a_kept_source_does_not_get_the_tuple_of_a_direct_connection() {
        for packet in [tcp(SYN), udp()] {
            let fake = pod_world();
            let direct = to_backend(&packet, packet.flags);
            assert_eq!(record(&fake, &direct), Direct::Recorded);
            let answer =
                Packet { key: direct.key.mirror(), flags: if packet.is_udp() { 0 } else { SYN | ACK }, ..packet };
            assert_eq!(verdict(&fake, &answer), Found::Direct);
            let to = open_to(&fake, &packet, 1).unwrap();
            assert_eq!(to.src, map_v4(NODE));
            assert_eq!(verdict(&fake, &answer), Found::Direct, "the older connection lives");
            assert_eq!(verdict(&fake, &reply_of(&to, &packet, answer.flags)), Found::Flow);
        }
    }

    #[test]
    fn a_packet_to_the_node_itself_never_comes_from_it() {
        let fake = pod_world();
        let mut node = crate::fake::node();
        (node.facts.ips_len, node.facts.ips[0]) = (1, map_v4(NODE));
        fake.node.set(Some(node));
        let listener = |set| CtValue { dst: map_v4(NODE), dport: Port::new(8080), backend: 1, set, ..CtValue::EMPTY };
        assert_eq!(open(&fake, &FakeSkb::tcp_v4(SYN), &tcp(SYN), &mut listener(1), true), None);
        let mut second = tcp(SYN);
        second.key.dst = map_v4([10, 96, 0, 2]);
        assert_eq!(
            open(&fake, &FakeSkb::tcp_v4(SYN), &second, &mut listener(1), true),
            Some(Reason::PacketNoSourcePort)
        );
        assert_eq!(
            open(&fake, &FakeSkb::tcp_v4(SYN), &second, &mut listener(0), false),
            Some(Reason::PacketNoSourcePort),
            "a direct one"
        );
    }

    #[test]
    fn a_forged_packet_of_a_frontend_takes_no_client_away() {
        let fake = serving();
        let mut client = tcp(SYN);
        client.key.src = backend(2).0;
        let forged = Packet { key: client.key.mirror(), ..client };
        assert_eq!(record(&fake, &forged), Direct::Recorded);
        assert_eq!(verdict(&fake, &client), Found::Nothing, "it opens a flow");
        // Nor does it do so in the place of a flow that is over.
        let over = CtValue { flags: CT_REPLY | CT_CLOSED, ..CtValue::EMPTY };
        assert!(fake.put_flow(Table::Lru, &client.key, &over));
        assert_eq!(record(&fake, &forged), Direct::Recorded);
        assert_eq!(verdict(&fake, &client), Found::Nothing, "it opens a flow");
        assert!(fake.flows.borrow().is_empty());
    }

    #[test]
    fn answers_to_a_socket_of_the_node_that_has_the_port_of_a_frontend_are_its_own() {
        for packet in [tcp(SYN), udp()] {
            let fake = serving();
            let sent = Packet { key: packet.key.mirror(), ..packet };
            fake.strangers.borrow_mut().push(sent.key.dst);
            let mut own = CtValue { flags: CT_OWN, ..CtValue::EMPTY };
            assert_eq!(record_direct(&fake, &sent, &mut own), Direct::Recorded);
            assert_eq!(verdict(&fake, &packet), Found::Direct);
        }
    }

    /// What `LOADS` says of backends 1 and 2.
    fn loads(fake: &Fake) -> [i64; 2] {
        [1, 2].map(|id| fake.loads.borrow().get(&id).copied().unwrap_or(0))
    }

    /// Opens a flow that counts to backend `number`.
    fn open_counted(fake: &Fake, packet: &Packet, number: u32) -> Result<CtValue, Reason> {
        let (dst, dport) = backend(number);
        let mut to = CtValue { dst, dport, backend: number, set: 1, flags: CT_COUNTED, ..CtValue::EMPTY };
        open(fake, &FakeSkb::tcp_v4(SYN), packet, &mut to, false).map_or(Ok(to), Err)
    }

    #[test]
    fn a_flow_counts_from_its_first_packet_until_it_is_closed() {
        for (client, server) in [(FIN | ACK, FIN | ACK), (RST, 0), (0, RST)] {
            let fake = serving();
            let to = open_counted(&fake, &tcp(SYN), 1).unwrap();
            let connection = Connection { syn: tcp(SYN), to };
            assert!(connection.server(&fake, SYN | ACK).is_some() && connection.client(&fake, ACK).is_some());
            assert_eq!(loads(&fake), [1, 0]);
            if client & FIN != 0 {
                connection.client(&fake, client);
                assert_eq!(loads(&fake), [1, 0], "it is half closed");
            } else if client != 0 {
                connection.client(&fake, client);
            }
            if server != 0 {
                connection.server(&fake, server);
            }
            assert_eq!(loads(&fake), [0, 0]);
            // What comes afterwards ends it no second time.
            connection.client(&fake, RST);
            connection.server(&fake, RST);
            assert_eq!(loads(&fake), [0, 0]);
        }
    }

    #[test]
    fn a_flow_that_does_not_count_or_is_not_recorded_changes_no_counter() {
        let fake = serving();
        connect(&fake, 40_000).unwrap().close(&fake, true);
        fake.full.set(true);
        assert!(open_counted(&fake, &tcp(SYN), 1).is_err());
        assert!(fake.loads.borrow().is_empty());
    }

    #[test]
    fn a_flow_whose_tuple_is_taken_counts_no_longer() {
        let fake = serving();
        fake.ports.set(1);
        open_counted(&fake, &tcp(SYN), 1).unwrap();
        assert_eq!(loads(&fake), [1, 0]);
        // It was never answered, and there is one port.
        let mut other = tcp(SYN);
        other.key.sport = Port::new(40_001);
        open_counted(&fake, &other, 1).unwrap();
        assert_eq!(loads(&fake), [1, 0]);
        // User space has seen to those that were silent for too long.
        fake.now.set(lb_datapath_ebpf_abi::TCP_NEW_NS);
        fake.loads.borrow_mut().clear();
        open_counted(&fake, &tcp(SYN), 1).unwrap();
        assert_eq!(loads(&fake), [1, 0]);
        // One that user space has cut, too.
        fake.cut_all();
        fake.loads.borrow_mut().clear();
        open_counted(&fake, &other, 1).unwrap();
        assert_eq!(loads(&fake), [1, 0]);
    }

    #[test]
    fn a_direct_connection_that_has_ended_leaves_its_tuple() {
        let fake = pod_world();
        for flags in [SYN, FIN | ACK] {
            record(&fake, &to_backend(&tcp(SYN), flags));
        }
        let answer = |flags| Packet { key: to_backend(&tcp(SYN), 0).key.mirror(), ..tcp(flags) };
        assert_eq!(verdict(&fake, &answer(SYN | ACK)), Found::Direct);
        assert_eq!(open_to(&fake, &tcp(SYN), 1).unwrap().src, map_v4(NODE), "one FIN is not the end");
        assert_eq!(verdict(&fake, &answer(FIN | ACK)), Found::Direct);
        let mut second = tcp(SYN);
        second.key.dst = map_v4([10, 96, 0, 2]);
        assert_eq!(open_to(&fake, &second, 1).unwrap().src, second.key.src);
    }

    #[test]
    fn a_direct_connection_whose_tuple_is_taken_is_translated() {
        let fake = pod_world();
        let ours = open_to(&fake, &tcp(SYN), 1).unwrap();
        let direct = to_backend(&tcp(SYN), SYN);
        assert_eq!(record(&fake, &to_backend(&tcp(SYN), ACK)), Direct::Recorded, "only a new one says so");
        assert_eq!(record(&fake, &direct), Direct::Taken);
        let mut to = CtValue::EMPTY;
        record_direct(&fake, &direct, &mut to);
        assert_eq!(open(&fake, &FakeSkb::tcp_v4(SYN), &direct, &mut to, is_pod(&fake, &direct)), None);
        assert_eq!((to.src, to.dst), (map_v4(NODE), direct.key.dst));
        assert!(found(&fake, &direct).is_some(), "sent again");
        assert!(found(&fake, &reply_of(&ours, &tcp(0), ACK)).is_some());
        let back = found(&fake, &reply_of(&to, &tcp(0), ACK)).unwrap();
        assert_eq!(back.mirror(6), direct.key);
    }

    #[test]
    fn a_direct_connection_replaces_a_finished_flow_of_the_same_tuple() {
        let fake = pod_world();
        let connection = connect(&fake, 40_000).unwrap();
        assert_eq!(connection.to.src, connection.syn.key.src);
        connection.close(&fake, false);
        let direct = to_backend(&tcp(SYN), SYN);
        assert_eq!(record(&fake, &direct), Direct::Recorded);
        assert_eq!(verdict(&fake, &reply_of(&connection.to, &tcp(0), SYN | ACK)), Found::Direct);
    }

    #[test]
    fn only_what_goes_to_a_known_address_other_than_the_nodes_is_recorded() {
        let fake = pod_world();
        let direct = to_backend(&tcp(SYN), SYN);
        fake.strangers.borrow_mut().push(direct.key.dst);
        record(&fake, &direct);
        fake.strangers.borrow_mut().clear();
        let mut node = crate::fake::node();
        (node.facts.ips_len, node.facts.ips[0]) = (1, direct.key.dst);
        fake.node.set(Some(node));
        record(&fake, &direct);
        assert!(fake.flows.borrow().is_empty());
    }

    #[test]
    fn the_route_chooses_among_the_addresses_that_are_the_nodes() {
        let (other, foreign) = (map_v4([198, 51, 100, 1]), map_v4([10, 244, 0, 1]));
        for (many, preferred, expected) in [
            (1, Some(other), other),
            (1, Some(foreign), map_v4(NODE)),
            (1, None, map_v4(NODE)),
            (0, Some(other), map_v4(NODE)),
        ] {
            let (fake, skb) = (serving(), FakeSkb::tcp_v4(SYN));
            let mut node = crate::fake::node();
            (node.many_v4, node.facts.ips_len, node.facts.ips[1]) = (many, 2, other);
            fake.node.set(Some(node));
            skb.preferred.set(preferred);
            let (dst, dport) = backend(1);
            let mut to = CtValue { dst, dport, backend: 1, set: 1, ..CtValue::EMPTY };
            assert_eq!(open(&fake, &skb, &tcp(SYN), &mut to, false), None);
            assert_eq!(to.src, expected);
        }
    }

    #[test]
    fn a_source_is_the_nodes_address_of_the_family() {
        let mut node = crate::fake::node();
        assert_eq!(Source::of(&node, true).map(|source| source.addr), Some(map_v4(NODE)));
        assert_eq!(Source::of(&node, false).map(|source| source.addr), Some(node.snat_v6));
        (node.has_v4, node.has_v6) = (0, 0);
        assert_eq!((Source::of(&node, true), Source::of(&node, false)), (None, None));
    }
}
