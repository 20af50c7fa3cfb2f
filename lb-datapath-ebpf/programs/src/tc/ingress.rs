//! What happens to a packet.

use aya_ebpf::bindings::tcx_action_base::{TCX_DROP, TCX_NEXT};
use lb_datapath_ebpf_abi::{
    ADDRESS_ANSWERS_PING, ADDRESS_DROPS, ADDRESS_REJECTS, CT_COUNTED, CT_INSIDE, CT_OWN, CT_REPLY, CtValue,
    DEVICE_BARE, DEVICE_INSIDE, DEVICE_PORT, ROLE_ACTIVE, ROLE_STANDBY, Reason, TARGET_DROP, Verdict, is_martian,
};

use super::{
    echo,
    flow::{self, Direct, FlowMaps, Found},
    header::ETHERNET,
    limit,
    packet::{Arrival, ETH_P_IP, ETH_P_IPV6, Head, Packet},
    quote::{self, Translation},
    reject::{reject, too_big, turn},
    rewrite::{Forwarded, forward, send, translate},
    skb::Skb,
    unfold::{Kind, unfold},
    work::Work,
};
use crate::{
    maps::Maps,
    select::{Chosen, Outcome, choose_apart, frontend_for},
};

/// Verdict for the kernel: as if this program were not there.
pub const PASS: i32 = TCX_NEXT;
/// Verdict for the kernel: dropped.
pub const DROP: i32 = TCX_DROP;

/// Decides on a packet that came in through a device; returns the verdict for the kernel.
///
/// Most packets of a host are none of ours: they end at the filter, before any table is looked at.
///
/// The steps are functions of their own in the kernel, too: their variables would not fit on one stack frame of 512
/// bytes (`MAX_BPF_STACK` in <https://elixir.bootlin.com/linux/v6.18/source/include/linux/filter.h>).
#[inline(always)]
pub fn ingress<M: FlowMaps, S: Skb>(maps: M, skb: S) -> i32 {
    if !is_for_us(maps, skb) {
        return PASS;
    }
    let Some((work, found)) = meet(maps, skb, false) else { return PASS };
    match found {
        Found::Flow => match forward(maps, skb, &work.packet, &work.to) {
            Forwarded::Verdict(verdict) => verdict,
            Forwarded::TooBig(mtu) => refuse_size(maps, skb, work, mtu, false),
        },
        Found::Direct => PASS,
        Found::Echo => echo(maps, skb, work, false),
        Found::Stop(reason) => stop(maps, skb, work, reason, false),
        Found::Nothing if is_own(maps, skb, &work.packet) => PASS,
        Found::Nothing => begin(maps, skb, work, false),
    }
}

/// Decides on a packet that leaves through a device; returns the verdict for the kernel.
///
/// Packets that came in have met [`ingress`], so that only those of the node itself are looked at: of a process whose
/// socket no hook has translated, and answers of a backend that listens on an address of the node.
#[inline(always)]
pub fn egress<M: FlowMaps, S: Skb>(maps: M, skb: S) -> i32 {
    if skb.came_in() || skb.is_tagged() {
        return PASS;
    }
    let Some((work, found)) = meet(maps, skb, true) else { return PASS };
    match found {
        Found::Flow if work.to.flags & CT_REPLY != 0 => translate(maps, skb, &work.packet, &work.to),
        Found::Flow => match send(maps, skb, &work.packet, &work.to) {
            Forwarded::Verdict(verdict) => verdict,
            Forwarded::TooBig(mtu) => refuse_size(maps, skb, work, mtu, true),
        },
        Found::Direct => PASS,
        Found::Echo => echo(maps, skb, work, true),
        Found::Stop(reason) => stop(maps, skb, work, reason, true),
        // It has been here already: a packet that was sent on leaves through a device once more.
        Found::Nothing if flow::was_sent(maps, &work.packet) => PASS,
        Found::Nothing => begin(maps, skb, work, true),
    }
}

/// Whether a packet that came in is for this host to receive or to route. A port of a bridge takes packets to the
/// hardware address of the bridge and of other ports as well.
#[inline(always)]
fn is_for_us<M: FlowMaps, S: Skb>(maps: M, skb: S) -> bool {
    const PACKET_HOST: u32 = 0;
    const PACKET_OTHERHOST: u32 = 3;
    match skb.kind().0 {
        _ if skb.is_tagged() => false,
        PACKET_HOST => true,
        PACKET_OTHERHOST => maps.kind_of_device(skb.device()) & DEVICE_PORT != 0,
        _ => false,
    }
}

/// Whether the packet has no Ethernet header. It begins with the version of IP then, as few hardware addresses do: for
/// nearly all others, nobody has to look their device up.
#[inline(always)]
fn is_bare<M: FlowMaps, S: Skb>(maps: M, skb: S) -> bool {
    let version = match u16::from_be(skb.kind().1) {
        ETH_P_IP => 4,
        ETH_P_IPV6 => 6,
        _ => return false,
    };
    let begins_so = skb.load::<u32>(0).is_some_and(|word| u32::from_be(word) >> 28 == version);
    begins_so && maps.kind_of_device(skb.device()) & DEVICE_BARE != 0
}

/// What the tables of flows say about a packet that the datapath may have something to do with; `own` says that it is of the
/// node itself.
#[inline(always)]
fn meet<'a, M: FlowMaps, S: Skb>(maps: M, skb: S, own: bool) -> Option<(&'a mut Work, Found)> {
    skb.prepare();
    let start = if is_bare(maps, skb) { 0 } else { ETHERNET };
    let is_plain = if start == 0 { admit_bare(maps, skb)? } else { admit(maps, skb, ETHERNET)? };
    let work = maps.work()?;
    let kind = if is_plain { plain(skb, start, &mut work.packet) } else { unfold(maps, skb, start, work) };
    let found = match kind {
        Kind::Foreign => return None,
        Kind::Packet => {
            work.packet.is_own = own;
            flow::lookup(maps, &work.packet, &mut work.to)
        }
        // The network stack drops it.
        Kind::Icmp if is_martian(work.packet.key.src) => return None,
        Kind::Icmp => match quote::translate(maps, skb, work) {
            Translation::Foreign => return None,
            Translation::Done => Found::Flow,
            Translation::Broken => Found::Stop(Reason::PacketNotRewritten),
        },
        Kind::Echo => Found::Echo,
    };
    // A fragment after the first starts no flow.
    if work.packet.is_later && matches!(found, Found::Nothing) { None } else { Some((work, found)) }
}

/// Whether the packet is plain; `None` if the datapath is on standby, or has nothing to do with it.
#[inline(always)]
fn admit<M: FlowMaps, S: Skb>(maps: M, skb: S, start: u32) -> Option<bool> {
    let head = Head::read(skb, start)?;
    if !maps.knows(head.ip.dst) && !maps.knows(head.ip.src) && !head.may_be_error() {
        return None;
    }
    if maps.role() == ROLE_STANDBY { None } else { Some(head.ip.is_plain()) }
}

/// The same for a packet without Ethernet header, apart: the caller's stack frame has no room for both.
#[inline(never)]
fn admit_bare<M: FlowMaps, S: Skb>(maps: M, skb: S) -> Option<bool> {
    admit(maps, skb, 0)
}

/// Decides on a packet of no flow; `own` says that it is of the node itself.
#[inline(always)]
fn begin<M: FlowMaps, S: Skb>(maps: M, skb: S, work: &mut Work, own: bool) -> i32 {
    if maps.role() != ROLE_ACTIVE {
        return PASS;
    }
    let Work { packet, to, .. } = &mut *work;
    let inside = own || maps.kind_of_device(skb.device()) & DEVICE_INSIDE != 0;
    to.flags = if own { CT_OWN | CT_INSIDE } else { inside as u8 * CT_INSIDE };
    let keeps_source = match answer(maps, packet, to) {
        Decision::Passed => return PASS,
        Decision::NoFrontend if matches!(flow::record_direct(maps, packet, to), Direct::Recorded) => return PASS,
        Decision::NoFrontend => false,
        Decision::Open { keeps_source } => keeps_source,
        Decision::Stop(reason) => return stop(maps, skb, work, reason, own),
    };
    let stopped = match packet.is_sctp() {
        true => flow::open_sctp(maps, skb, packet, to, keeps_source),
        false => flow::open(maps, skb, packet, to, keeps_source),
    };
    if let Some(reason) = stopped {
        return stop(maps, skb, work, reason, own);
    }
    match if own { send(maps, skb, packet, to) } else { forward(maps, skb, packet, to) } {
        Forwarded::Verdict(verdict) => verdict,
        Forwarded::TooBig(mtu) => refuse_size(maps, skb, work, mtu, own),
    }
}

/// Decides on an echo request: an address that has frontends may answer it. One that does not treats it like a packet
/// to a port that it does not have, so that nobody gets it back whom it was routed from.
#[inline(never)]
fn echo<M: FlowMaps, S: Skb>(maps: M, skb: S, work: &mut Work, own: bool) -> i32 {
    if maps.role() != ROLE_ACTIVE {
        return PASS;
    }
    if !own && has_forged_source(maps, &work.packet) {
        const OURS: u8 = ADDRESS_REJECTS | ADDRESS_DROPS | ADDRESS_ANSWERS_PING;
        let is_ours = maps.address(work.packet.key.dst).is_some_and(|says| says & OURS != 0);
        return if is_ours { give_up(maps, Reason::PacketForgedSource) } else { PASS };
    }
    let answers = maps.address(work.packet.key.dst).is_some_and(|says| says & ADDRESS_ANSWERS_PING != 0);
    if !answers || !echo::is_answerable(&work.packet, work.piece) {
        return match other_port(maps, &work.packet) {
            Decision::Stop(reason) => stop(maps, skb, work, reason, own),
            Decision::NoFrontend | Decision::Passed | Decision::Open { .. } => PASS,
        };
    }
    if echo::answer(skb, work).and_then(|()| turn(skb, &work.packet)).is_err() {
        return give_up(maps, Reason::PacketNotAnswered);
    }
    if own { skb.turn_in() } else { skb.send_back() }
}

/// Tells the sender of a packet what length fits. Nobody answers a fragment after the first: the first one was as long,
/// or nearly. Nor does anybody answer an error.
#[inline(always)]
fn refuse_size<M: Maps, S: Skb>(maps: M, skb: S, work: &mut Work, mtu: u16, own: bool) -> i32 {
    if work.packet.is_later {
        maps.count(Reason::PacketTooBig);
        return DROP;
    }
    if !work.limits.allow(limit::Answer::TooBig, maps.now()) {
        return give_up(maps, Reason::PacketAnswerLimit);
    }
    if !too_big(skb, &work.packet, mtu) {
        return give_up(maps, Reason::PacketNotAnswered);
    }
    maps.count(Reason::PacketTooBig);
    if own { skb.turn_in() } else { skb.send_back() }
}

/// Reads a plain packet, its header once more: the stack has no room for its words beside those of the steps.
#[inline(never)]
fn plain<S: Skb>(skb: S, start: u32, packet: &mut Packet) -> Kind {
    if packet.read_plain(skb, start).is_some() { Kind::Packet } else { Kind::Foreign }
}

/// The decision on the first packet of a flow.
#[derive(Clone, Copy)]
enum Decision {
    /// The packet is for no frontend.
    NoFrontend,
    /// The same, and nothing is remembered of it.
    Passed,
    /// The packet starts a flow.
    Open {
        /// Whether the backend sees the client as it is.
        keeps_source: bool,
    },
    /// The packet ends here.
    Stop(Reason),
}

/// Decides on the first packet of a flow, whose client `to` describes, and writes its backend to `to`.
#[inline(never)]
fn answer<M: FlowMaps>(maps: M, packet: &Packet, to: &mut CtValue) -> Decision {
    let (inside, own) = (to.flags & CT_INSIDE != 0, to.flags & CT_OWN != 0);
    if !own && has_forged_source(maps, packet) {
        return forged(maps, packet);
    }
    // Nobody answers a reset, and it must neither start a flow nor take a turn or a record of affinity. Nor does an SCTP
    // packet start one in the middle of an association, which may be that of another address of the client.
    if packet.is_stray() {
        return stray(maps, packet, inside);
    }
    let pod = flow::is_pod(maps, packet);
    let mut chosen = Chosen::EMPTY;
    match choose_apart(maps, &packet.frontend_key(), &Arrival { packet, inside, own, pod }, &mut chosen) {
        Outcome::NotAFrontend | Outcome::Undecided => return other_port(maps, packet),
        Outcome::Excluded => return Decision::Stop(Reason::PacketExcluded),
        Outcome::KeptOut => return Decision::Stop(Reason::PacketSourceRange),
        Outcome::NoBackends => return Decision::Stop(Reason::PacketNoBackends),
        Outcome::BackendMissing => return Decision::Stop(Reason::PacketBackendMissing),
        Outcome::Backend => {}
    }
    (to.dst, to.dport) = (chosen.addr, chosen.port);
    (to.backend, to.set) = (chosen.id, chosen.set);
    if chosen.is_counted {
        to.flags |= CT_COUNTED;
    }
    // A pod of another node is answered past this one, unless its backend answers through it.
    let keeps_pod = pod && (inside || !chosen.translates_pods);
    let keeps_source = keeps_pod || chosen.on_node || (chosen.keeps_source && !inside);
    Decision::Open { keeps_source: keeps_source && !(own && chosen.on_node) }
}

/// Whether a packet to an address of the node is no new traffic of a frontend that has the same port: it answers one that
/// the node, or a pod behind its address, has sent; or it is one of the node itself, on its way to a backend on the node.
/// Of a TCP connection that is ours, every packet but a SYN has a flow.
#[inline(never)]
fn is_own<M: FlowMaps, S: Skb>(maps: M, skb: S, packet: &Packet) -> bool {
    if !maps.is_node(packet.key.dst) {
        return false;
    }
    let answers = match (packet.is_udp(), packet.is_syn()) {
        (true, _) => maps.frontend(&packet.frontend_key()).is_some() && skb.has_socket(packet),
        (false, is_syn) => !is_syn,
    };
    answers || flow::was_sent(maps, packet)
}

/// Whether a packet that came in has a source that nobody outside can have. A translated packet goes past the checks that
/// the network stack makes of sources, and an answer to it would go to somebody who has not asked.
#[inline(never)]
fn has_forged_source<M: FlowMaps>(maps: M, packet: &Packet) -> bool {
    let key = &packet.key;
    key.src == key.dst || is_martian(key.src) || maps.is_node(key.src)
}

/// Decides on a packet of no flow whose source is forged: the network stack gets it, unless a frontend would.
#[inline(never)]
fn forged<M: FlowMaps>(maps: M, packet: &Packet) -> Decision {
    if maps.frontend(&packet.frontend_key()).is_some() {
        return Decision::Stop(Reason::PacketForgedSource);
    }
    match other_port(maps, packet) {
        Decision::Stop(_) => Decision::Stop(Reason::PacketForgedSource),
        _ => Decision::Passed,
    }
}

/// Decides on a reset of no flow, or on an SCTP packet that begins none.
#[inline(never)]
fn stray<M: FlowMaps>(maps: M, packet: &Packet, inside: bool) -> Decision {
    match frontend_for(maps, &packet.frontend_key(), inside) {
        None => other_port(maps, packet),
        Some(frontend) if frontend.target == TARGET_DROP => Decision::Stop(Reason::PacketExcluded),
        Some(_) => Decision::Stop(why_stray(packet)),
    }
}

#[inline(always)]
const fn why_stray(packet: &Packet) -> Reason {
    if packet.is_sctp() { Reason::PacketStraySctp } else { Reason::PacketStrayReset }
}

/// Decides on a packet that is for no frontend, though its address may have others.
#[inline(never)]
fn other_port<M: FlowMaps>(maps: M, packet: &Packet) -> Decision {
    match maps.address(packet.key.dst) {
        Some(flags) if flags & ADDRESS_DROPS != 0 => Decision::Stop(Reason::PacketOtherPortDropped),
        Some(flags) if flags & ADDRESS_REJECTS != 0 && packet.is_stray() => Decision::Stop(why_stray(packet)),
        Some(flags) if flags & ADDRESS_REJECTS != 0 => Decision::Stop(Reason::PacketOtherPort),
        _ => Decision::NoFrontend,
    }
}

/// Counts `reason` and carries out its verdict.
#[inline(always)]
fn stop<M: Maps, S: Skb>(maps: M, skb: S, work: &mut Work, reason: Reason, own: bool) -> i32 {
    // Nobody answers a fragment after the first.
    if work.packet.is_later {
        maps.count(reason);
        return DROP;
    }
    match reason.verdict() {
        Verdict::Answer => {
            if !work.limits.allow(limit::Answer::Refusal, maps.now()) {
                return give_up(maps, Reason::PacketAnswerLimit);
            }
            if !reject(skb, &work.packet) {
                return give_up(maps, Reason::PacketNotAnswered);
            }
            maps.count(reason);
            if own { skb.turn_in() } else { skb.send_back() }
        }
        Verdict::Pass | Verdict::Drop | Verdict::Fail(_) => give_up(maps, reason),
    }
}

/// Counts a `reason` whose verdict needs no work on the packet; returns the verdict for the kernel.
#[inline(always)]
pub(super) fn give_up<M: Maps>(maps: M, reason: Reason) -> i32 {
    maps.count(reason);
    match reason.verdict() {
        Verdict::Pass => PASS,
        // The other two belong to `stop` and to sockets.
        Verdict::Drop | Verdict::Answer | Verdict::Fail(_) => DROP,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, vec::Vec};

    use lb_datapath_ebpf_abi::{
        FRONTEND_DENIES, FRONTEND_GUARDS_OUTSIDE, FRONTEND_KEEPS_SOURCE, FRONTEND_SOURCES, FRONTEND_TRANSLATES_PODS,
        FrontendKey, FrontendValue, LOOKUP_HASH, LOOKUP_ROUND_ROBIN, ROLE_DRAINING, SCOPE_INTERNAL, SOURCES_DENIED,
        TARGET_REJECT,
    };

    use super::*;
    use crate::{
        fake::{
            Fake, FakeSkb, NODE, RECEIVED, REDIRECTED, SENT_BACK, TURNED_IN, VIP, VIP_V6, addr_of, backend,
            frontend_key,
        },
        tc::{
            header::{ACK, FIN, RST, SYN},
            skb::Unrouted,
        },
    };

    #[test]
    fn a_new_flow_reaches_its_backend_and_its_answer_comes_back_from_the_frontend() {
        for (skb, vip) in [
            (FakeSkb::tcp_v4(SYN), VIP),
            (FakeSkb::udp_v4(), VIP),
            (FakeSkb::tcp_v6(SYN), VIP_V6),
            (FakeSkb::udp_v6(), VIP_V6),
        ] {
            let fake = Fake::serving_at(vip, LOOKUP_HASH, &[1]);
            let before = skb.packet();
            assert_eq!(ingress(&fake, &skb), REDIRECTED);
            let out = skb.packet();
            assert_eq!((out.key.dst, out.key.dport), backend_of(&out));
            assert_eq!(out.ttl, 63);
            skb.assert_checksums();
            skb.answer();
            assert_eq!(ingress(&fake, &skb), REDIRECTED);
            assert_eq!(skb.packet().key, before.key.mirror());
            skb.assert_checksums();
            assert!(fake.counts.borrow().is_empty());
        }
    }

    fn backend_of(packet: &Packet) -> (lb_datapath_ebpf_abi::Addr, lb_datapath_ebpf_abi::Port) {
        let (v4, port) = backend(1);
        if packet.is_v4 { (v4, port) } else { (crate::fake::backend_v6(1), port) }
    }

    #[test]
    fn nothing_of_the_packet_before_gets_into_a_flow() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        let asked = skb.packet();
        assert_eq!(ingress(&fake, &skb), REDIRECTED);
        let flow = fake.flows.borrow()[&asked.key].get();
        assert_eq!((flow.client, flow.server, flow.set, flow.backend), (0, 0, 1, 1));
    }

    #[test]
    fn a_packet_for_no_frontend_is_passed_untouched_and_uncounted() {
        let fake = Fake::new();
        for skb in [FakeSkb::tcp_v4(SYN), FakeSkb::udp_v6()] {
            let before = skb.bytes();
            assert_eq!(ingress(&fake, &skb), PASS);
            assert_eq!(skb.bytes(), before);
        }
        assert!(fake.counts.borrow().is_empty());
    }

    #[test]
    fn only_a_packet_between_two_unknown_addresses_ends_at_the_filter() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let skb = FakeSkb::tcp_v4(SYN);
        let (src, dst) = (skb.packet().key.src, skb.packet().key.dst);
        fake.strangers.borrow_mut().extend([src, dst]);
        assert_eq!((ingress(&fake, &skb), fake.frontend_reads.get()), (PASS, 0));
        for known in [src, dst] {
            fake.strangers.borrow_mut().retain(|addr| *addr != known);
            assert_eq!(ingress(&fake, &FakeSkb::tcp_v4(SYN)), REDIRECTED);
            fake.strangers.borrow_mut().push(known);
        }
    }

    #[test]
    fn the_role_decides_which_flows_are_served() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let established = FakeSkb::tcp_v4(SYN);
        assert_eq!(ingress(&fake, &established), REDIRECTED);
        fake.role.set(ROLE_DRAINING);
        assert_eq!(ingress(&fake, &FakeSkb::tcp_v4(ACK)), REDIRECTED);
        let new = FakeSkb::tcp_v4(SYN);
        new.set_source_port(40_001);
        assert_eq!(ingress(&fake, &new), PASS);
        fake.role.set(ROLE_STANDBY);
        assert_eq!(ingress(&fake, &FakeSkb::tcp_v4(ACK)), PASS);
    }

    /// A packet, and what is to be changed for it.
    type Sort = (fn() -> FakeSkb, fn(&Fake, &FakeSkb));

    #[test]
    fn a_packet_without_an_ethernet_header_ends_as_the_one_with_a_header_does() {
        let nothing: fn(&Fake, &FakeSkb) = |_, _| {};
        let refused: fn(&Fake, &FakeSkb) = |fake, _| {
            let refuse = |value: &mut FrontendValue| value.target = TARGET_REJECT;
            fake.frontends.borrow_mut().values_mut().for_each(refuse);
        };
        let too_big: fn(&Fake, &FakeSkb) = |_, skb| skb.routes.set(Err(Unrouted::TooBig(1400)));
        let local: fn(&Fake, &FakeSkb) = |_, skb| skb.routes.set(Err(Unrouted::Local));
        let hopless: fn(&Fake, &FakeSkb) = |_, skb| skb.set_ttl(1);
        let pinged: fn(&Fake, &FakeSkb) = |fake, _| {
            fake.addresses.borrow_mut().extend([VIP, VIP_V6].map(|vip| (addr_of(vip), ADDRESS_ANSWERS_PING)));
        };
        let makes: [fn() -> FakeSkb; 8] = [
            || FakeSkb::tcp_v4(SYN),
            || FakeSkb::tcp_v6(SYN),
            FakeSkb::udp_v4,
            FakeSkb::udp_v6,
            || FakeSkb::ping_v4(56),
            || FakeSkb::ping_v6(56),
            || {
                let skb = FakeSkb::tcp_v4(SYN);
                skb.add_ip_option();
                skb
            },
            || {
                let skb = FakeSkb::udp_v6();
                skb.add_extension(60, 0);
                skb
            },
        ];
        for make in makes {
            for change in [nothing, refused, too_big, local, hopless, pinged] {
                for comes in [true, false] {
                    let sort: Sort = (make, change);
                    let [(verdict, whole, counts), (bare_verdict, bare, bare_counts)] =
                        [false, true].map(|is_bare| run(sort, comes, is_bare));
                    assert_eq!((bare_verdict, bare_counts), (verdict, counts));
                    let start = if bare_verdict == REDIRECTED { 14 } else { 0 };
                    assert_eq!(bare[start..], whole[14..]);
                }
            }
        }
    }

    /// What becomes of a packet that comes in or leaves, and what is counted.
    fn run((make, change): Sort, comes: bool, is_bare: bool) -> (i32, Vec<u8>, HashMap<Reason, u64>) {
        let skb = make();
        let vip = if skb.bytes()[12..14] == [0x08, 0] { VIP } else { VIP_V6 };
        let fake = Fake::serving_at(vip, LOOKUP_HASH, &[1]);
        change(&fake, &skb);
        let skb = if is_bare { skb.bare() } else { skb };
        skb.came_in.set(comes);
        fake.device.set(DEVICE_INSIDE | if is_bare { DEVICE_BARE } else { 0 });
        let verdict = if comes { ingress(&fake, &skb) } else { egress(&fake, &skb) };
        let counts = fake.counts.borrow().iter().map(|(reason, count)| (*reason, *count)).collect();
        (verdict, skb.bytes(), counts)
    }

    #[test]
    fn a_hardware_address_that_begins_like_an_ip_header_is_one_all_the_same() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        skb.set_byte(0, 0x46);
        fake.device.set(DEVICE_INSIDE);
        assert_eq!(ingress(&fake, &skb), REDIRECTED);
        // A dry run of the kernel has a header whatever the device is. It is for the address 0.
        let skb = FakeSkb::tcp_v4(SYN);
        (0..6).for_each(|at| skb.set_byte(at, 0));
        fake.device.set(DEVICE_INSIDE | DEVICE_BARE);
        assert_eq!(ingress(&fake, &skb), REDIRECTED);
        assert_eq!(skb.bytes()[..6], [0; 6], "nothing was put before it");
    }

    #[test]
    fn every_reason_of_a_packet_is_counted_once_with_its_verdict() {
        type Case = (Reason, fn(&Fake, &FakeSkb), FakeSkb, i32);
        let cases: [Case; 21] = [
            (
                Reason::PacketNoBackends,
                |f, _| f.change_frontend(VIP, |v| v.target = TARGET_REJECT),
                FakeSkb::tcp_v4(SYN),
                SENT_BACK,
            ),
            (
                Reason::PacketExcluded,
                |f, _| f.change_frontend(VIP, |v| v.target = TARGET_DROP),
                FakeSkb::tcp_v4(SYN),
                DROP,
            ),
            (Reason::PacketBackendMissing, |f, _| f.backends.borrow_mut().clear(), FakeSkb::tcp_v4(SYN), SENT_BACK),
            (
                Reason::PacketSourceRange,
                |f, _| f.change_frontend(VIP, |v| v.flags = FRONTEND_SOURCES),
                FakeSkb::tcp_v4(SYN),
                DROP,
            ),
            (
                Reason::PacketOtherPort,
                |f, skb| f.only_other_ports(skb, ADDRESS_REJECTS),
                FakeSkb::tcp_v4(SYN),
                SENT_BACK,
            ),
            (
                Reason::PacketOtherPortDropped,
                |f, skb| f.only_other_ports(skb, ADDRESS_DROPS),
                FakeSkb::tcp_v4(SYN),
                DROP,
            ),
            (Reason::PacketStrayReset, |_, _| {}, FakeSkb::tcp_v4(RST), DROP),
            (
                Reason::PacketStraySctp,
                |f, _| *f.frontends.borrow_mut() = Fake::serving_sctp(VIP, &[1]).frontends.take(),
                FakeSkb::sctp_v4(0),
                DROP,
            ),
            (
                Reason::PacketSctpPortTaken,
                |f, _| {
                    let sctp = Fake::serving_sctp(VIP, &[1]);
                    let other = FakeSkb::sctp_v4(1);
                    other.set_last_of_source(99);
                    assert_eq!(ingress(&sctp, &other), REDIRECTED);
                    f.frontends.swap(&sctp.frontends);
                    f.backends.swap(&sctp.backends);
                    f.flows.swap(&sctp.flows);
                },
                FakeSkb::sctp_v4(1),
                DROP,
            ),
            (Reason::PacketForgedSource, |f, skb| f.have_ips(&[skb.packet().key.src]), FakeSkb::tcp_v4(SYN), DROP),
            (Reason::PacketNoSourcePort, |f, _| f.take_every_port(), FakeSkb::tcp_v4(SYN), DROP),
            (Reason::PacketFlowNotRecorded, |f, _| f.room.set(Some(1)), FakeSkb::tcp_v4(SYN), DROP),
            (Reason::PacketNotRewritten, |_, skb| skb.refuse_stores.set(true), FakeSkb::tcp_v4(SYN), DROP),
            (
                Reason::PacketNotAnswered,
                |f, skb| {
                    f.change_frontend(VIP, |v| v.target = TARGET_REJECT);
                    skb.refuse_stores.set(true);
                },
                FakeSkb::tcp_v4(SYN),
                DROP,
            ),
            (
                Reason::PacketTooBig,
                |_, skb| skb.routes.set(Err(Unrouted::TooBig(1400))),
                FakeSkb::tcp_v4(SYN),
                SENT_BACK,
            ),
            (
                Reason::PacketAnswerLimit,
                |f, _| {
                    f.change_frontend(VIP, |v| v.target = TARGET_REJECT);
                    f.use_up_answers();
                },
                FakeSkb::tcp_v4(SYN),
                DROP,
            ),
            (Reason::PacketHopLimit, |_, skb| skb.set_byte(14 + 8, 1), FakeSkb::tcp_v4(SYN), PASS),
            (Reason::PacketNoRoute, |_, skb| skb.routes.set(Err(Unrouted::NoRoute)), FakeSkb::tcp_v4(SYN), PASS),
            (Reason::PacketFlowCut, |f, skb| cut_flow_of(f, skb, |_| {}), FakeSkb::tcp_v4(ACK), SENT_BACK),
            (Reason::PacketReplyCut, |f, skb| cut_flow_of(f, skb, FakeSkb::answer), FakeSkb::udp_v4(), DROP),
            (
                Reason::PacketForwardingOff,
                |_, skb| skb.routes.set(Err(Unrouted::ForwardingOff)),
                FakeSkb::tcp_v4(SYN),
                PASS,
            ),
        ];
        for (reason, arrange, skb, verdict) in &cases {
            let fake = Fake::serving(LOOKUP_HASH, &[1]);
            arrange(&fake, skb);
            let hook = if skb.came_in.get() { ingress } else { egress };
            assert_eq!(hook(&fake, skb), *verdict, "{reason:?}");
            assert_eq!(*fake.counts.borrow(), [(*reason, 1)].into(), "{reason:?}");
        }
        let of_packets = Reason::ALL.iter().filter(|reason| !matches!(reason.verdict(), Verdict::Fail(_))).count();
        assert_eq!(of_packets, cases.len());
    }

    /// Starts a flow and cuts it; `next` makes `skb` a later packet of it.
    fn cut_flow_of(fake: &Fake, skb: &FakeSkb, next: fn(&FakeSkb)) {
        let syn = FakeSkb::tcp_v4(SYN);
        assert_eq!(ingress(fake, if skb.packet().is_udp() { skb } else { &syn }), REDIRECTED);
        fake.cut_all();
        next(skb);
    }

    #[test]
    fn a_packet_with_a_source_that_nobody_outside_has_is_dropped_at_a_frontend_and_passed_elsewhere() {
        let forge = |skb: &FakeSkb, own: bool, at: usize, source: &[u8]| {
            let fake = Fake::serving_at(if skb.packet().is_v4 { VIP } else { VIP_V6 }, LOOKUP_HASH, &[1]);
            source.iter().enumerate().for_each(|(index, byte)| skb.set_byte(at + index, *byte));
            if own {
                fake.have_ips(&[skb.packet().key.src]);
            }
            fake
        };
        let (v4, v6) = (14 + 12, 14 + 8);
        let std::net::IpAddr::V6(vip_v6) = VIP_V6 else { panic!() };
        let vip_v6 = vip_v6.octets();
        let own = lb_datapath_ebpf_abi::octets(FakeSkb::tcp_v6(SYN).packet().key.src);
        let cases: [(FakeSkb, bool, usize, &[u8]); 8] = [
            (FakeSkb::tcp_v4(SYN), true, v4, &[203, 0, 113, 9]),
            (FakeSkb::udp_v6(), true, v6, &own),
            (FakeSkb::udp_v4(), false, v4, &[127, 0, 0, 1]),
            (FakeSkb::tcp_v4(SYN), false, v4, &[224, 0, 0, 1]),
            (FakeSkb::tcp_v4(ACK), false, v4, &[0, 0, 0, 0]),
            (FakeSkb::tcp_v4(RST), false, v4, &[255, 255, 255, 255]),
            (FakeSkb::tcp_v6(SYN), false, v6, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            (FakeSkb::tcp_v6(SYN), false, v6, &vip_v6),
        ];
        for (skb, own, at, source) in cases {
            let fake = forge(&skb, own, at, source);
            assert_eq!(ingress(&fake, &skb), DROP, "{source:?}");
            assert_eq!(*fake.counts.borrow(), [(Reason::PacketForgedSource, 1)].into(), "{source:?}");
            assert!(fake.flows.borrow().is_empty());
            // Without the frontend, the network stack decides.
            fake.frontends.borrow_mut().clear();
            assert_eq!(ingress(&fake, &skb), PASS, "{source:?}");
        }
    }

    #[test]
    fn nobody_outside_sends_on_a_flow_of_the_node() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        skb.came_in.set(false);
        assert_eq!(egress(&fake, &skb), REDIRECTED);
        let flows = fake.flows.borrow().clone();
        for (times, flags) in (1..).zip([ACK, FIN | ACK, RST]) {
            let forged = FakeSkb::tcp_v4(flags);
            let before = forged.bytes();
            assert_eq!((ingress(&fake, &forged), forged.bytes()), (DROP, before));
            assert_eq!(*fake.counts.borrow(), [(Reason::PacketForgedSource, times)].into());
            assert_eq!(*fake.flows.borrow(), flows, "it does not end");
        }
    }

    #[test]
    fn a_stray_reset_leaves_no_trace() {
        let fake = Fake::serving(LOOKUP_ROUND_ROBIN, &[1, 2]);
        fake.change_frontend(VIP, |frontend| (frontend.affinity, frontend.affinity_ns) = (1, 100));
        assert_eq!(ingress(&fake, &FakeSkb::tcp_v4(RST)), DROP);
        assert!(fake.affinity.borrow().is_empty() && fake.flows.borrow().is_empty());
        assert!(fake.turns.borrow().values().all(|turn| *turn == 0));
        assert_eq!(ingress(&fake, &FakeSkb::tcp_v4(SYN)), REDIRECTED);
        assert_eq!(fake.affinity.borrow().len(), 1);
    }

    #[test]
    fn every_fragment_of_a_datagram_is_translated_in_both_directions() {
        for (pieces, vip) in [(FakeSkb::fragments_v4(40), VIP), (FakeSkb::fragments_v6(40), VIP_V6)] {
            let fake = Fake::serving_at(vip, LOOKUP_HASH, &[1]);
            let [first, second] = &pieces;
            let before = FakeSkb::join(first, second).packet();
            for piece in &pieces {
                assert_eq!(ingress(&fake, piece), REDIRECTED);
            }
            let out = FakeSkb::join(first, second);
            assert_eq!((out.packet().key.dst, out.packet().key.dport), backend_of(&out.packet()));
            out.assert_checksums();
            for piece in &pieces {
                piece.answer_fragment(out.packet().key);
                assert_eq!(ingress(&fake, piece), REDIRECTED);
            }
            let back = FakeSkb::join(first, second);
            assert_eq!(back.packet().key, before.key.mirror());
            back.assert_checksums();
            assert!(fake.counts.borrow().is_empty());
        }
    }

    #[test]
    fn a_fragment_without_its_first_passes_untouched() {
        for ([_, second], vip) in [(FakeSkb::fragments_v4(40), VIP), (FakeSkb::fragments_v6(40), VIP_V6)] {
            let (fake, before) = (Fake::serving_at(vip, LOOKUP_HASH, &[1]), second.bytes());
            assert_eq!(ingress(&fake, &second), PASS);
            assert_eq!(second.bytes(), before);
        }
    }

    #[test]
    fn a_later_fragment_starts_no_flow() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let [first, second] = FakeSkb::fragments_v4(40);
        assert_eq!(ingress(&fake, &first), REDIRECTED);
        fake.flows.borrow_mut().clear();
        assert_eq!(ingress(&fake, &second), PASS);
        assert!(fake.flows.borrow().is_empty());
    }

    #[test]
    fn a_later_fragment_or_an_error_that_is_too_big_is_dropped_without_an_answer() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let [first, second] = FakeSkb::fragments_v4(40);
        assert_eq!(ingress(&fake, &first), REDIRECTED);
        let error = first.error(lb_datapath_ebpf_abi::map_v4([203, 0, 113, 7]), 3, 28);
        for skb in [&second, &error] {
            skb.routes.set(Err(Unrouted::TooBig(1400)));
            assert_eq!(ingress(&fake, skb), DROP);
        }
        assert_eq!(*fake.counts.borrow(), [(Reason::PacketTooBig, 2)].into());
    }

    #[test]
    fn a_limit_of_refusals_leaves_the_path_mtu_its_own() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        fake.use_up_answers();
        skb.routes.set(Err(Unrouted::TooBig(1400)));
        assert_eq!(ingress(&fake, &skb), SENT_BACK);
    }

    #[test]
    fn packets_with_extension_headers_are_translated_behind_them() {
        for skb in [FakeSkb::tcp_v6(SYN), FakeSkb::udp_v6()] {
            let fake = Fake::serving_at(VIP_V6, LOOKUP_HASH, &[1]);
            skb.add_extension(60, 0);
            skb.add_extension(0, 0);
            assert_eq!(ingress(&fake, &skb), REDIRECTED);
            assert_eq!((skb.packet().key.dst, skb.packet().key.dport), backend_of(&skb.packet()));
            skb.assert_checksums();
        }
    }

    #[test]
    fn a_packet_for_a_backend_on_the_node_itself_keeps_its_source_and_the_answer_leaves_translated() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        let asked = skb.packet();
        skb.routes.set(Err(Unrouted::Local));
        fake.backends.borrow_mut().values_mut().for_each(|backend| backend.host = 1);
        assert_eq!(ingress(&fake, &skb), PASS);
        let out = skb.packet();
        assert_eq!(((out.key.dst, out.key.dport), out.ttl), (backend(1), 64));
        assert_eq!((out.key.src, out.key.sport), (asked.key.src, asked.key.sport));
        skb.assert_checksums();
        skb.answer();
        skb.came_in.set(false);
        assert_eq!(egress(&fake, &skb), PASS);
        assert_eq!((skb.packet().key, skb.packet().ttl), (asked.key.mirror(), 64));
        skb.assert_checksums();
        assert!(fake.counts.borrow().is_empty());
    }

    #[test]
    fn a_process_of_the_node_reaches_a_backend_by_packets() {
        for (skb, vip) in [(FakeSkb::tcp_v4(SYN), VIP), (FakeSkb::udp_v6(), VIP_V6)] {
            let (fake, asked) = (Fake::serving_at(vip, LOOKUP_HASH, &[1]), skb.packet());
            skb.came_in.set(false);
            assert_eq!(egress(&fake, &skb), REDIRECTED);
            assert_eq!((skb.packet().key.dst, skb.packet().ttl), (backend_of(&skb.packet()).0, 64));
            let sent = skb.bytes();
            assert_eq!((egress(&fake, &skb), skb.bytes()), (PASS, sent), "it leaves through the device of the backend");
            skb.answer();
            skb.came_in.set(true);
            skb.routes.set(Err(Unrouted::Local));
            assert_eq!(ingress(&fake, &skb), RECEIVED);
            assert_eq!(skb.packet().key, asked.key.mirror());
            skb.assert_checksums();
        }
    }

    #[test]
    fn a_process_of_the_node_reaches_a_backend_on_the_node_as_if_it_were_the_frontend() {
        for (skb, vip) in [(FakeSkb::tcp_v4(SYN), VIP), (FakeSkb::udp_v6(), VIP_V6)] {
            let (fake, asked) = (Fake::serving_at(vip, LOOKUP_HASH, &[1]), skb.packet());
            fake.backends.borrow_mut().values_mut().for_each(|backend| backend.host = 1);
            let (on_node, port) = backend_of(&asked);
            fake.have_ips(&[on_node]);
            skb.routes.set(Err(Unrouted::Local));
            skb.came_in.set(false);
            assert_eq!(egress(&fake, &skb), TURNED_IN);
            let sent = skb.packet();
            assert_eq!((sent.key.dst, sent.key.dport, sent.ttl), (on_node, port, 64));
            assert_eq!(sent.key.src, asked.key.dst);
            assert_eq!(skb.bytes()[..6], skb.bytes()[6..12], "the device takes it");
            skb.assert_checksums();
            skb.came_in.set(true);
            let bytes = skb.bytes();
            assert_eq!((ingress(&fake, &skb), skb.bytes()), (PASS, bytes));
            skb.answer();
            skb.came_in.set(false);
            assert_eq!(egress(&fake, &skb), TURNED_IN);
            assert_eq!(skb.packet().key, asked.key.mirror());
            skb.assert_checksums();
            skb.came_in.set(true);
            let bytes = skb.bytes();
            assert_eq!((ingress(&fake, &skb), skb.bytes()), (PASS, bytes));
            assert!(fake.counts.borrow().is_empty());
        }
    }

    #[test]
    fn a_packet_that_leaves_is_looked_at_only_if_the_node_made_it() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        assert_eq!((egress(&fake, &skb), fake.frontend_reads.get()), (PASS, 0));
    }

    #[test]
    fn a_refusal_of_the_nodes_own_packet_comes_in_through_its_device() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        fake.change_frontend(VIP, |frontend| frontend.target = TARGET_REJECT);
        skb.came_in.set(false);
        assert_eq!(egress(&fake, &skb), TURNED_IN);
    }

    #[test]
    fn a_packet_to_another_host_is_left_alone_except_at_a_port_of_a_bridge() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        let protocol = skb.kind.get().1;
        for (kind, device, verdict) in [(3, 0, PASS), (3, DEVICE_INSIDE, PASS), (1, DEVICE_PORT, PASS)] {
            skb.kind.set((kind, protocol));
            fake.device.set(device);
            assert_eq!(ingress(&fake, &skb), verdict);
        }
        skb.kind.set((3, protocol));
        assert_eq!(ingress(&fake, &skb), REDIRECTED);
    }

    #[test]
    fn a_packet_of_a_vlan_is_left_to_the_device_of_the_vlan() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        skb.tagged.set(true);
        assert_eq!(ingress(&fake, &skb), PASS);
        skb.came_in.set(false);
        assert_eq!(egress(&fake, &skb), PASS);
    }

    #[test]
    fn traffic_from_inside_has_a_frontend_of_its_own_if_there_is_one() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let twin = FrontendKey { scope: SCOPE_INTERNAL, ..frontend_key(VIP) };
        let value = FrontendValue { target: TARGET_DROP, ..fake.frontend_at(VIP) };
        fake.frontends.borrow_mut().insert(twin, value);
        assert_eq!(ingress(&fake, &FakeSkb::tcp_v4(SYN)), REDIRECTED);
        let other = |port| {
            let skb = FakeSkb::tcp_v4(SYN);
            skb.set_source_port(port);
            skb
        };
        fake.device.set(DEVICE_INSIDE);
        assert_eq!(ingress(&fake, &other(40_001)), DROP);
        fake.device.set(0);
        let own = other(40_002);
        own.came_in.set(false);
        assert_eq!(egress(&fake, &own), DROP);
        assert_eq!(*fake.counts.borrow(), [(Reason::PacketExcluded, 2)].into());
    }

    #[test]
    fn a_frontend_that_keeps_the_source_does_so_for_traffic_from_outside() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        fake.change_frontend(VIP, |frontend| frontend.flags = FRONTEND_KEEPS_SOURCE);
        let skb = FakeSkb::tcp_v4(SYN);
        let before = skb.packet().key;
        assert_eq!(ingress(&fake, &skb), REDIRECTED);
        assert_eq!((skb.packet().key.src, skb.packet().key.sport), (before.src, before.sport));
        fake.device.set(DEVICE_INSIDE);
        let skb = FakeSkb::tcp_v4(SYN);
        skb.set_source_port(40_001);
        assert_eq!(ingress(&fake, &skb), REDIRECTED);
        assert_eq!(skb.packet().key.src, lb_datapath_ebpf_abi::map_v4(NODE));
    }

    #[test]
    fn a_pod_of_another_node_is_translated_as_the_frontend_says_and_one_of_this_node_is_not() {
        for (flags, device, kept) in [
            (FRONTEND_TRANSLATES_PODS, 0, false),
            (FRONTEND_TRANSLATES_PODS, DEVICE_INSIDE, true),
            (0, 0, true),
            (0, DEVICE_INSIDE, true),
        ] {
            let fake = Fake::serving(LOOKUP_HASH, &[1]);
            fake.change_frontend(VIP, |frontend| frontend.flags = flags);
            let skb = FakeSkb::tcp_v4(SYN);
            let before = skb.packet().key;
            fake.pods.borrow_mut().push((before.src, lb_datapath_ebpf_abi::FAMILY_V4));
            fake.device.set(device);
            assert_eq!(ingress(&fake, &skb), REDIRECTED);
            let source = if kept { before.src } else { lb_datapath_ebpf_abi::map_v4(NODE) };
            assert_eq!(skb.packet().key.src, source, "flags {flags}, device {device}");
        }
    }

    #[test]
    fn source_ranges_admit_the_listed_or_all_others() {
        let source = FakeSkb::tcp_v4(SYN).packet().key.src;
        for (flags, bits, verdict) in [
            (FRONTEND_SOURCES, 120, REDIRECTED),
            (FRONTEND_SOURCES, 128, REDIRECTED),
            (FRONTEND_SOURCES | FRONTEND_DENIES, 120, DROP),
        ] {
            let fake = Fake::serving(LOOKUP_HASH, &[1]);
            fake.change_frontend(VIP, |frontend| frontend.flags = flags);
            let list = if flags & FRONTEND_DENIES == 0 { 1 } else { 1 | SOURCES_DENIED };
            fake.sources.borrow_mut().push((list, source, bits));
            assert_eq!(ingress(&fake, &FakeSkb::tcp_v4(SYN)), verdict, "{flags} {bits}");
            // The list of another frontend says nothing.
            fake.sources.borrow_mut()[0].0 ^= 3;
            let skb = FakeSkb::tcp_v4(SYN);
            skb.set_source_port(40_001);
            assert_eq!(ingress(&fake, &skb), if verdict == DROP { REDIRECTED } else { DROP }, "{flags} {bits}");
        }
    }

    #[test]
    fn the_nodes_own_processes_are_let_in_and_pods_where_only_outside_is_guarded() {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let new = |port| {
            let skb = FakeSkb::tcp_v4(SYN);
            skb.set_source_port(port);
            skb
        };
        fake.change_frontend(VIP, |frontend| frontend.flags = FRONTEND_SOURCES);
        fake.device.set(DEVICE_INSIDE);
        assert_eq!(ingress(&fake, &new(40_001)), DROP);
        let own = new(40_002);
        own.came_in.set(false);
        assert_eq!(egress(&fake, &own), REDIRECTED);
        fake.change_frontend(VIP, |frontend| frontend.flags = FRONTEND_SOURCES | FRONTEND_GUARDS_OUTSIDE);
        assert_eq!(ingress(&fake, &new(40_003)), REDIRECTED);
        fake.device.set(0);
        assert_eq!(ingress(&fake, &new(40_004)), DROP);
        fake.pods.borrow_mut().push((new(40_005).packet().key.src, lb_datapath_ebpf_abi::FAMILY_V4));
        assert_eq!(ingress(&fake, &new(40_005)), REDIRECTED, "a pod of another node");
    }

    #[test]
    fn another_port_of_an_address_is_refused_dropped_or_passed_as_the_address_says() {
        for (flags, verdict, reason) in [
            (ADDRESS_REJECTS, SENT_BACK, Some(Reason::PacketOtherPort)),
            (ADDRESS_DROPS, DROP, Some(Reason::PacketOtherPortDropped)),
            (0, PASS, None),
        ] {
            let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
            fake.only_other_ports(&skb, flags);
            assert_eq!(ingress(&fake, &skb), verdict);
            assert_eq!(fake.counts.borrow().keys().copied().next(), reason);
        }
    }
}
