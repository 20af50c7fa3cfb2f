//! Flows of packets: two entries each, one per direction, each saying what a packet's tuple becomes.

use lb_datapath_ebpf_abi::{
    Addr, CT_CLOSING, CT_CUT, CT_REPLY, CtKey, CtValue, FAMILY_V4, FAMILY_V6, NodeValue, Port, Reason, TARGET_SET,
    UDP_IDLE_NS,
};

use super::packet::Packet;
use crate::maps::Maps;

/// Attempts to find a free port. Every one is a fresh random pick: with three quarters of the ports to one backend in
/// use, one flow in 10,000 finds none.
const PORT_ATTEMPTS: u32 = 32;
/// A closed connection's port is not given to another one for this long, so that its last packets find their way.
const CLOSED_NS: u64 = 10_000_000_000;
/// A connection that was silent for longer has lost its claim to a translated port.
const TCP_IDLE_NS: u64 = 21_600_000_000_000;

/// The maps of flows and of the node.
pub trait FlowMaps: Maps {
    /// An entry of `CT` that is there. Another flow may take its memory at any time, since `CT` evicts the least
    /// recently used entry when it is full: a program that still holds it may then change that flow's entry, once.
    type Entry: Entry;

    /// The entry at `key`.
    fn flow(self, key: &CtKey) -> Option<Self::Entry>;
    /// Makes an entry; `false` if there is one, or if there is no memory.
    fn add_flow(self, key: &CtKey, value: &CtValue) -> bool;
    /// Makes an entry or replaces the one that is there; `false` if there is no memory.
    fn put_flow(self, key: &CtKey, value: &CtValue) -> bool;
    /// Removes an entry if it is there.
    fn remove_flow(self, key: &CtKey);
    /// What translated sources of this family are made of; `None` if the node has no address of it.
    fn source(self, is_v4: bool) -> Option<Source>;
    /// Whether the bit of `addr` is set in `FILTER`; if it is not, no frontend, backend or flow has the address.
    fn knows(self, addr: Addr) -> bool;
    /// The family of the longest prefix in `CIDRS` that contains `addr`.
    fn pod_family(self, addr: Addr) -> Option<u8>;
}

/// An entry of `CT`, whose fields are read and written one by one.
pub trait Entry {
    /// A copy of the whole.
    fn value(&self) -> CtValue;
    /// [`CtValue::last_ns`].
    fn last_ns(&self) -> u64;
    /// [`CtValue::flags`].
    fn flags(&self) -> u8;
    /// Whether its packets get the source and the destination of `key`, each in the place of the other.
    fn is_reply_to(&self, key: &CtKey) -> bool;
    /// Writes [`CtValue::last_ns`].
    fn touch(&self, now: u64);
    /// Adds [`CT_CLOSING`] to the flags.
    fn close(&self);
}

/// What the table of flows says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The packet belongs to no flow, or to one that is over.
    Nothing,
    /// The packet belongs to a flow.
    Flow,
    /// The packet ends here.
    Stop(Reason),
}

/// Writes to `to` what `packet` becomes, if it belongs to a flow that is not over.
#[inline(never)]
pub fn lookup<M: FlowMaps>(maps: M, packet: &Packet, to: &mut CtValue) -> Found {
    let Some(entry) = maps.flow(&packet.key) else { return Found::Nothing };
    *to = entry.value();
    let now = maps.now();
    let is_reply = to.flags & CT_REPLY != 0;
    // A reset is no answer to a reset, which goes to the other end instead.
    if to.flags & CT_CUT != 0 && !packet.is_reset() {
        return cut(packet, is_reply);
    }
    let alive = if is_reply { is_reply_alive(packet, to, now) } else { is_alive(maps, packet, to, now) };
    if !alive {
        return Found::Nothing;
    }
    entry.touch(now);
    if packet.is_end() {
        entry.close();
    }
    if packet.is_end() && is_reply {
        close(maps, &to.mirror(packet.key.protocol));
    }
    Found::Flow
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

/// Whether a reply still belongs to a flow: a UDP flow that was silent for long does not know its port any more.
#[inline(always)]
fn is_reply_alive(packet: &Packet, to: &CtValue, now: u64) -> bool {
    !packet.is_udp() || now.saturating_sub(to.last_ns) < UDP_IDLE_NS
}

/// Whether a packet of a client still belongs to its flow, whose backend it then keeps.
#[inline(always)]
fn is_alive<M: FlowMaps>(maps: M, packet: &Packet, to: &CtValue, now: u64) -> bool {
    if packet.is_udp() || packet.is_syn() {
        let Some(frontend) = maps.frontend(&packet.frontend_key()) else { return false };
        let same = frontend.set == to.set;
        let kept = if packet.is_udp() { same || maps.keeps_flows(frontend.set, to.backend) } else { same };
        let over = packet.is_syn() && to.flags & CT_CLOSING != 0;
        if frontend.target != TARGET_SET || !kept || over {
            return false;
        }
    }
    touch_reply(maps, packet, to, now)
}

/// Keeps the entry for replies alive, and brings it back if it was evicted. Without it the flow is over.
#[inline(always)]
fn touch_reply<M: FlowMaps>(maps: M, packet: &Packet, to: &CtValue, now: u64) -> bool {
    let key = to.mirror(packet.key.protocol);
    let Some(entry) = maps.flow(&key) else {
        return maps.add_flow(&key, &reply(packet, to.backend, to.set, now));
    };
    if !entry.is_reply_to(&packet.key) || (packet.is_udp() && now.saturating_sub(entry.last_ns()) >= UDP_IDLE_NS) {
        return false;
    }
    entry.touch(now);
    if packet.is_end() {
        entry.close();
    }
    true
}

#[inline(always)]
fn close<M: FlowMaps>(maps: M, key: &CtKey) {
    if let Some(entry) = maps.flow(key) {
        entry.close();
    }
}

/// A packet that is for no frontend goes to its destination directly: if a finished flow had the same tuple, replies
/// are not to be translated any more.
#[inline(always)]
pub fn forget_reply<M: FlowMaps>(maps: M, packet: &Packet) {
    if !packet.is_udp() && !packet.is_syn() {
        return;
    }
    let key = packet.key.mirror();
    if let Some(entry) = maps.flow(&key)
        && entry.flags() & CT_REPLY != 0
    {
        maps.remove_flow(&key);
    }
}

/// Starts a flow to the backend that `to` names, and completes `to`. Returns why it could not.
#[inline(never)]
pub fn open<M: FlowMaps>(maps: M, packet: &Packet, to: &mut CtValue) -> Option<Reason> {
    let back = reply(packet, to.backend, to.set, maps.now());
    (to.src, to.sport) = (packet.key.src, packet.key.sport);
    (to.last_ns, to.flags) = (back.last_ns, 0);
    let foreign = to.dst == packet.key.src || !is_pod(maps, packet);
    // A client that talks to this backend through another frontend already, from the same port, gets another source.
    let claimed = (!foreign && claim(maps, packet, &to.mirror(packet.key.protocol), &back, 0))
        || match maps.source(packet.is_v4) {
            Some(source) => translate_source(maps, packet, to, &back, &source),
            // Without an address of the node, replies may or may not come back through here.
            None => foreign && claim(maps, packet, &to.mirror(packet.key.protocol), &back, 0),
        };
    if !claimed {
        return Some(Reason::PacketNoSourcePort);
    }
    if maps.put_flow(&packet.key, to) { None } else { Some(Reason::PacketFlowNotRecorded) }
}

/// Assigns the flow a source of the node, with a port that no other flow to the same backend has.
#[inline(always)]
fn translate_source<M: FlowMaps>(maps: M, packet: &Packet, to: &mut CtValue, back: &CtValue, source: &Source) -> bool {
    to.src = source.addr;
    let mut key = to.mirror(packet.key.protocol);
    for _ in 0..PORT_ATTEMPTS {
        let pick = (maps.random() as u64).wrapping_mul(source.ports as u64) >> 32;
        to.sport = Port::new(source.first.wrapping_add(pick as u16));
        key.dport = to.sport;
        if claim(maps, packet, &key, back, CLOSED_NS) {
            return true;
        }
    }
    false
}

/// Makes the entry for replies, unless another flow needs it. One that has been closed for `closed_ns` does not.
#[inline(never)]
fn claim<M: FlowMaps>(maps: M, packet: &Packet, key: &CtKey, back: &CtValue, closed_ns: u64) -> bool {
    if maps.add_flow(key, back) {
        return true;
    }
    let Some(entry) = maps.flow(key) else { return false };
    let idle = back.last_ns.saturating_sub(entry.last_ns());
    let over = if packet.is_udp() {
        idle >= UDP_IDLE_NS
    } else {
        idle >= TCP_IDLE_NS || (entry.flags() & CT_CLOSING != 0 && idle >= closed_ns)
    };
    (over || entry.is_reply_to(&packet.key)) && maps.put_flow(key, back)
}

/// The entry for replies to the client that sent `packet`.
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

/// What translated sources are made of: an address of the node, and ports that its own sockets do not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub addr: Addr,
    /// First port.
    pub first: u16,
    /// Number of ports.
    pub ports: u16,
}

impl Source {
    /// The node's source for this family.
    #[inline(always)]
    #[must_use]
    pub fn of(node: &NodeValue, is_v4: bool) -> Option<Self> {
        let (has, addr) = if is_v4 { (node.has_v4, node.snat_v4) } else { (node.has_v6, node.snat_v6) };
        (has != 0).then_some(Self { addr, first: node.nat_first, ports: node.nat_ports })
    }
}

/// Whether the packet comes from a pod of the cluster.
#[inline(always)]
fn is_pod<M: FlowMaps>(maps: M, packet: &Packet) -> bool {
    let family = if packet.is_v4 { FAMILY_V4 } else { FAMILY_V6 };
    // A prefix of the other family can match only by being shorter than any that tells them apart.
    maps.pod_family(packet.key.src).is_some_and(|found| found == family)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use lb_datapath_ebpf_abi::{LOOKUP_HASH, TARGET_REJECT, map_v4};

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
        match open(fake, packet, &mut to) {
            None => Ok(to),
            Some(reason) => Err(reason),
        }
    }

    fn found(fake: &Fake, packet: &Packet) -> Option<CtValue> {
        let mut to = CtValue::EMPTY;
        (lookup(fake, packet, &mut to) == Found::Flow).then_some(to)
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
    fn a_flow_that_cannot_be_recorded_is_refused() {
        let fake = serving();
        // The entry for replies is made, the other one is not.
        fake.room.set(Some(1));
        assert_eq!(open_to(&fake, &tcp(SYN), 1), Err(Reason::PacketFlowNotRecorded));
    }

    #[test]
    fn a_closed_connection_gives_its_port_back_after_ten_seconds() {
        for (idle, given) in [(CLOSED_NS - 1, false), (CLOSED_NS, true)] {
            let fake = serving();
            fake.ports.set(1);
            open_to(&fake, &tcp(SYN), 1).unwrap();
            found(&fake, &tcp(FIN | ACK)).unwrap();
            fake.now.set(fake.now.get() + idle);
            let mut other = tcp(SYN);
            other.key.sport = Port::new(40_001);
            assert_eq!(open_to(&fake, &other, 1).is_ok(), given, "{idle}");
        }
    }

    #[test]
    fn a_silent_connection_loses_its_port_after_six_hours() {
        for (idle, given) in [(TCP_IDLE_NS - 1, false), (TCP_IDLE_NS, true)] {
            let fake = serving();
            fake.ports.set(1);
            open_to(&fake, &tcp(SYN), 1).unwrap();
            fake.now.set(fake.now.get() + idle);
            let mut other = tcp(SYN);
            other.key.sport = Port::new(40_001);
            assert_eq!(open_to(&fake, &other, 1).is_ok(), given, "{idle}");
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
        for end in [FIN | ACK, RST] {
            open_to(&fake, &tcp(SYN), 1).unwrap();
            assert!(found(&fake, &tcp(end)).is_some());
            assert_eq!(found(&fake, &tcp(SYN)), None, "{end}");
        }
    }

    #[test]
    fn a_server_that_ends_the_connection_closes_both_entries() {
        let fake = serving();
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        assert!(found(&fake, &reply_of(&to, &tcp(0), RST)).is_some());
        let flags: Vec<u8> = fake.flows.borrow().values().map(|entry| entry.get().flags & CT_CLOSING).collect();
        assert_eq!(flags, [CT_CLOSING; 2]);
    }

    fn verdict(fake: &Fake, packet: &Packet) -> Found {
        lookup(fake, packet, &mut CtValue { ..CtValue::EMPTY })
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
    fn a_udp_flow_is_over_after_two_minutes_of_silence() {
        let fake = serving();
        let to = open_to(&fake, &udp(), 1).unwrap();
        fake.now.set(UDP_IDLE_NS - 1);
        assert!(found(&fake, &udp()).is_some());
        fake.now.set(2 * UDP_IDLE_NS - 2);
        assert!(found(&fake, &reply_of(&to, &udp(), 0)).is_some(), "the client was heard of since");
        fake.now.set(3 * UDP_IDLE_NS);
        assert_eq!(found(&fake, &reply_of(&to, &udp(), 0)), None);
        assert_eq!(found(&fake, &udp()), None);
    }

    #[test]
    fn an_evicted_entry_for_replies_comes_back_with_the_next_packet() {
        let fake = serving();
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        fake.flows.borrow_mut().remove(&to.mirror(6));
        assert!(found(&fake, &tcp(ACK)).is_some());
        assert!(found(&fake, &reply_of(&to, &tcp(0), ACK)).is_some());
    }

    #[test]
    fn a_flow_whose_port_belongs_to_another_one_is_over() {
        let fake = serving();
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        let mut other = tcp(SYN);
        other.key.sport = Port::new(40_001);
        fake.put_flow(&to.mirror(6), &reply(&other, 1, 1, 0));
        assert_eq!(found(&fake, &tcp(ACK)), None);
    }

    #[test]
    fn a_packet_of_an_established_flow_keeps_both_entries_fresh() {
        let fake = serving();
        open_to(&fake, &tcp(SYN), 1).unwrap();
        fake.now.set(5 * SECOND);
        assert!(found(&fake, &tcp(ACK)).is_some());
        assert!(fake.flows.borrow().values().all(|entry| entry.get().last_ns == 5 * SECOND));
    }

    #[test]
    fn a_direct_packet_ends_the_translation_of_replies_to_its_tuple() {
        let fake = serving();
        fake.pods.borrow_mut().push((map_v4([192, 0, 2, 2]), FAMILY_V4));
        let to = open_to(&fake, &tcp(SYN), 1).unwrap();
        let direct = |flags| Packet { key: to.mirror(6).mirror(), ..tcp(flags) };
        forget_reply(&fake, &direct(ACK));
        assert_eq!(fake.flows.borrow().len(), 2, "only a new connection says so");
        forget_reply(&fake, &direct(SYN));
        assert!(!fake.flows.borrow().contains_key(&to.mirror(6)));
        // The entry of the client's own direction is no reply's.
        let client = Packet { key: tcp(SYN).key.mirror(), ..tcp(SYN) };
        forget_reply(&fake, &client);
        assert_eq!(fake.flows.borrow().len(), 1);
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
