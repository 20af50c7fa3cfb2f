//! Decisions.

use std::collections::BTreeSet;

use lb_core::{
    addr::{BackendAddr, Protocol},
    datapath::Capabilities,
    decision::{Entry, FlowView, Packet, Verdict, decide as decide_packet},
    model::{Model, Settings},
    name::{NodeName, SourceName},
    node::NodeFacts,
    state::{Answer, OtherPorts, State, Target},
    time::Instant,
};
use lb_k8s::{Manifests, Snapshot};

use crate::world::{Node, manifests};

/// Asks the model and the state that follows from it about one packet, which the first six bytes make; the others make
/// the world.
///
/// Both say the same: passed on, refused, dropped, or which backends may take it.
///
/// # Panics
/// When they do not.
pub fn decide(data: &[u8]) {
    let Some((packet, world)) = data.split_first_chunk::<6>() else { return };
    let packet = packet_of(*packet);
    let text = manifests(world);
    let mut node = Node::new();
    if let Some(plan) = node.read(&text) {
        node.carry_out(&plan);
    }
    let decision = decide_packet(&model(&text), &packet, &FlowView::default(), Instant::default());
    let addr = lb_core::addr::FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
    match (&decision.verdict, node.state.answer(&addr, packet.flow_hash())) {
        (verdict, Answer::NotAFrontend) => {
            let fate = match node.state.other_ports(packet.destination) {
                Some(OtherPorts::Drop) => Verdict::Drop,
                Some(OtherPorts::Reject) => Verdict::Reject,
                Some(OtherPorts::Pass) | None => Verdict::Pass,
            };
            assert_eq!(verdict, &fate, "{text}");
        }
        (Verdict::Reject, Answer::Reject) | (Verdict::Drop, Answer::Drop) => {}
        (Verdict::Forward(forward), Answer::Backends(answer)) => {
            let members = members(&node.state, &addr);
            let allowed: BTreeSet<_> = members.iter().copied().filter(|member| forward.choice.allows(member)).collect();
            assert!(!allowed.is_empty(), "{decision:?} and {members:?}\n{text}");
            if let lb_core::decision::Choice::OneOf(weights) = &forward.choice {
                // Least connections draw from two of them: the hash says which, that of a client under affinity.
                let drawn = match node.state.frontends.get(&addr).map(|frontend| frontend.affinity.is_some()) {
                    Some(false) => answer.keys().copied().collect(),
                    _ if weights.len() < members.len() => allowed,
                    _ => members,
                };
                assert!(weights.keys().eq(&drawn), "{decision:?} and {drawn:?}\n{text}");
            }
        }
        (_, answer) => panic!("{decision:?} but {answer:?}\n{text}"),
    }
}

fn packet_of([entry, protocol, source, source_port, destination, port]: [u8; 6]) -> Packet {
    Packet {
        entry: [Entry::Socket, Entry::PodDevice, Entry::Uplink][usize::from(entry % 3)],
        protocol: [Protocol::Tcp, Protocol::Udp][usize::from(protocol % 2)],
        source: [10, 244, 0, source].into(),
        source_port: 1024 + u16::from(source_port),
        destination: [10, 96, 0, destination % 16].into(),
        destination_port: 80 + u16::from(port % 3),
    }
}

fn model(text: &str) -> Model {
    let mut model = Model::new(Settings::default(), Capabilities::all("fuzz"));
    let node = NodeFacts { name: Some(NodeName::new("here")), ..NodeFacts::default() };
    let changes = Manifests::new(SourceName("manifests".into())).update(Snapshot::parse("x.yaml", text)).changes;
    for change in [lb_core::model::Change::SetNode(node)].into_iter().chain(changes) {
        // A service may claim what another one has.
        let _ = model.apply(change);
    }
    model
}

fn members(state: &State, addr: &lb_core::addr::FrontendAddr) -> BTreeSet<BackendAddr> {
    let Some(Target::Set(set)) = state.frontends.get(addr).map(|frontend| frontend.target) else {
        return BTreeSet::new();
    };
    let members = state.sets.get(&set).map(|set| set.members()).unwrap_or_default();
    members.keys().filter_map(|id| state.backends.get(id)).map(|backend| backend.addr).collect()
}
