//! What happens to a packet.

use aya_ebpf::bindings::tcx_action_base::{TCX_DROP, TCX_NEXT};
use lb_datapath_ebpf_abi::{CtValue, ROLE_ACTIVE, ROLE_STANDBY, Reason, TARGET_DROP, Verdict};

use super::{
    flow::{self, Direct, FlowMaps, Found},
    packet::{Head, Packet},
    reject::reject,
    rewrite::forward,
    skb::Skb,
};
use crate::{
    maps::Maps,
    select::{Answer, choose},
};

/// Verdict for the kernel: as if this program were not there.
pub const PASS: i32 = TCX_NEXT;
/// Verdict for the kernel: dropped.
pub const DROP: i32 = TCX_DROP;

/// Decides on a packet; returns the verdict for the kernel.
///
/// Most packets of a host are none of ours: they end at the filter, before any table is looked at.
///
/// The steps are functions of their own in the kernel, too: their variables would not fit on one stack frame of 512
/// bytes (`MAX_BPF_STACK` in <https://elixir.bootlin.com/linux/v6.18/source/include/linux/filter.h>).
#[inline(always)]
pub fn ingress<M: FlowMaps, S: Skb>(maps: M, skb: S) -> i32 {
    let Some(head) = Head::read(skb) else { return PASS };
    if !maps.knows(head.ip.dst) && !maps.knows(head.ip.src) {
        return PASS;
    }
    let role = maps.role();
    if role == ROLE_STANDBY {
        return PASS;
    }
    let Some(packet) = head.packet(skb) else { return PASS };
    let mut to = CtValue::EMPTY;
    let decision = match flow::lookup(maps, &packet, &mut to) {
        Found::Flow => return forward(maps, skb, &packet, &to),
        Found::Direct => return PASS,
        Found::Stop(reason) => Decision::Stop(reason),
        Found::Nothing if role != ROLE_ACTIVE || is_own_answer(maps, skb, &packet) => return PASS,
        Found::Nothing => answer(maps, &packet, &mut to),
    };
    let reason = match decision {
        Decision::NoFrontend if matches!(flow::record_direct(maps, &packet, &mut to), Direct::Recorded) => return PASS,
        Decision::NoFrontend | Decision::Open => match flow::open(maps, &packet, &mut to) {
            None => return forward(maps, skb, &packet, &to),
            Some(reason) => reason,
        },
        Decision::Stop(reason) => reason,
    };
    stop(maps, skb, &packet, reason)
}

/// The decision on the first packet of a flow.
#[derive(Clone, Copy)]
enum Decision {
    /// The packet is for no frontend.
    NoFrontend,
    /// The packet starts a flow.
    Open,
    /// The packet ends here.
    Stop(Reason),
}

/// Decides on the first packet of a flow, and writes its backend to `to`.
#[inline(never)]
fn answer<M: FlowMaps>(maps: M, packet: &Packet, to: &mut CtValue) -> Decision {
    // Nobody answers a reset, and it must neither start a flow nor take a turn or a record of affinity.
    if packet.is_reset() {
        return stray_reset(maps, packet);
    }
    let chosen = match choose(maps, &packet.frontend_key(), packet) {
        Answer::NotAFrontend => return Decision::NoFrontend,
        Answer::Excluded => return Decision::Stop(Reason::PacketExcluded),
        Answer::NoBackends => return Decision::Stop(Reason::PacketNoBackends),
        Answer::BackendMissing => return Decision::Stop(Reason::PacketBackendMissing),
        Answer::Backend(chosen) => chosen,
    };
    (to.dst, to.dport) = (chosen.addr, chosen.port);
    (to.backend, to.set) = (chosen.id, chosen.set);
    Decision::Open
}

/// Whether a packet to an address of the node answers one that the node, or a pod behind its address, has sent: it is no
/// new traffic of a frontend that has the same port. Of a TCP connection that is ours, every packet but a SYN has a flow.
#[inline(never)]
fn is_own_answer<M: FlowMaps, S: Skb>(maps: M, skb: S, packet: &Packet) -> bool {
    if packet.is_syn() || (packet.is_udp() && maps.frontend(&packet.frontend_key()).is_none()) {
        return false;
    }
    maps.is_node(packet.key.dst) && (!packet.is_udp() || skb.has_socket(packet))
}

/// Decides on a reset of no flow.
#[inline(always)]
fn stray_reset<M: FlowMaps>(maps: M, packet: &Packet) -> Decision {
    match maps.frontend(&packet.frontend_key()) {
        None => Decision::NoFrontend,
        Some(frontend) if frontend.target == TARGET_DROP => Decision::Stop(Reason::PacketExcluded),
        Some(_) => Decision::Stop(Reason::PacketStrayReset),
    }
}

/// Counts `reason` and carries out its verdict.
#[inline(always)]
fn stop<M: Maps, S: Skb>(maps: M, skb: S, packet: &Packet, reason: Reason) -> i32 {
    match reason.verdict() {
        Verdict::Answer => {
            if !reject(skb, packet.is_v4, packet.is_udp(), packet.transport) {
                return give_up(maps, Reason::PacketNotAnswered);
            }
            maps.count(reason);
            skb.send_back()
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
    use lb_datapath_ebpf_abi::{LOOKUP_HASH, LOOKUP_ROUND_ROBIN, ROLE_DRAINING, TARGET_REJECT};

    use super::*;
    use crate::{
        fake::{Fake, FakeSkb, REDIRECTED, SENT_BACK, VIP, VIP_V6, backend},
        tc::{
            header::{ACK, RST, SYN},
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

    #[test]
    fn every_reason_of_a_packet_is_counted_once_with_its_verdict() {
        type Case = (Reason, fn(&Fake, &FakeSkb), FakeSkb, i32);
        let cases: [Case; 13] = [
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
            (Reason::PacketStrayReset, |_, _| {}, FakeSkb::tcp_v4(RST), DROP),
            (Reason::PacketNoSourcePort, |f, _| f.take_every_port(), FakeSkb::tcp_v4(SYN), DROP),
            (Reason::PacketFlowNotRecorded, |f, _| f.room.set(Some(1)), FakeSkb::tcp_v4(SYN), DROP),
            (Reason::PacketNotRewritten, |_, skb| skb.refuse_stores.set(true), FakeSkb::tcp_v4(SYN), DROP),
            (
                Reason::PacketNotAnswered,
                |f, skb| {
                    f.change_frontend(VIP, |v| v.target = TARGET_REJECT);
                    skb.add_ip_option();
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
            assert_eq!(ingress(&fake, skb), *verdict, "{reason:?}");
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
    fn a_packet_for_a_backend_on_the_node_itself_is_passed_translated_and_uncounted() {
        let (fake, skb) = (Fake::serving(LOOKUP_HASH, &[1]), FakeSkb::tcp_v4(SYN));
        skb.routes.set(Err(Unrouted::Local));
        assert_eq!(ingress(&fake, &skb), PASS);
        let out = skb.packet();
        assert_eq!(((out.key.dst, out.key.dport), out.ttl), (backend(1), 64));
        skb.assert_checksums();
        assert!(fake.counts.borrow().is_empty());
    }
}
