//! UDP flows whose backend takes no new ones: they stay with it as long as it serves.

use std::collections::BTreeSet;

use core::time::Duration;

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    affinity::{Affinity, AffinityRecord},
    datapath::Capabilities,
    decision::{Choice, Decision, Entry, FlowView, Packet, Verdict, decide},
    desired::Desired,
    endpoint::{AdminState, Conditions, Endpoint, EndpointSlice},
    health::{Health, HealthReport},
    model::{Change, Model},
    service::{DrainPolicy, Service},
    state::{State, Target},
    time::Instant,
};
use proptest::prelude::*;

use crate::worlds::{history, ip, port, ready, settings, slice, source, web};

const VIP: &str = "10.96.0.1";
const B1: &str = "10.244.0.1";
const B2: &str = "10.244.0.2";

/// A UDP service and its endpoints, as a datapath gets them.
struct World {
    model: Model,
    desired: Desired,
}

impl World {
    fn new(change: impl FnOnce(&mut Service), endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut service = Service { ports: vec![port("http", Protocol::Udp, 80)], ..web("a", VIP) };
        change(&mut service);
        let model = Model::new(settings(), Capabilities::all("memory"));
        let mut world = Self { model, desired: Desired::default() };
        world.apply(Change::UpsertService(service));
        world.endpoints(endpoints);
        world
    }

    fn apply(&mut self, change: Change) {
        let touched = self.model.apply(change).unwrap();
        self.desired.update(&self.model, &touched).unwrap();
    }

    fn endpoints(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) {
        let mut slice: EndpointSlice = slice("a", endpoints);
        slice.ports[0].protocol = Protocol::Udp;
        self.apply(Change::ReplaceEndpoints(slice));
    }

    fn decide(&self, flow: FlowView) -> Decision {
        decide(&self.model, &packet(), &flow, Instant::default())
    }

    /// Where the next datagram of a flow to a backend goes.
    fn next(&self, backend: &str) -> Verdict {
        self.decide(FlowView { established: Some(udp(backend)), ..FlowView::default() }).verdict
    }

    /// Backends whose flows a datapath keeps, and those that it gives new flows to.
    fn held(&self) -> (BTreeSet<BackendAddr>, BTreeSet<BackendAddr>) {
        let addr = FrontendAddr::new(ip(VIP), 80, Protocol::Udp);
        held(self.desired.state(), &addr)
    }
}

fn held(state: &State, addr: &FrontendAddr) -> (BTreeSet<BackendAddr>, BTreeSet<BackendAddr>) {
    let Target::Set(id) = state.frontends[addr].target else { return Default::default() };
    let set = &state.sets[&id];
    let named = |ids: BTreeSet<_>| ids.into_iter().map(|id| state.backends[&id].addr).collect();
    (named(set.backends()), named(set.slots.iter().copied().collect()))
}

fn packet() -> Packet {
    Packet {
        entry: Entry::PodDevice,
        protocol: Protocol::Udp,
        source: ip("10.244.0.9"),
        source_port: 4000,
        destination: ip(VIP),
        destination_port: 80,
    }
}

fn udp(address: &str) -> BackendAddr {
    BackendAddr::new(ip(address), 8080, Protocol::Udp)
}

fn to(verdict: &Verdict) -> Choice {
    match verdict {
        Verdict::Forward(forward) => forward.choice.clone(),
        other => panic!("not forwarded: {other:?}"),
    }
}

fn terminating(address: &str, serving: bool) -> Endpoint {
    Endpoint { conditions: Conditions { ready: false, serving, terminating: true }, ..ready(address) }
}

#[test]
fn a_rolling_update_keeps_udp_flows_until_their_backend_stops_serving() {
    let mut world = World::new(|_| {}, [ready(B1)]);
    world.endpoints([terminating(B1, true), ready(B2)]);
    assert_eq!(to(&world.next(B1)), Choice::Exactly(udp(B1)));
    assert_eq!(to(&world.decide(FlowView::default()).verdict), Choice::Exactly(udp(B2)), "new flows");
    assert_eq!(world.held(), ([udp(B1), udp(B2)].into(), [udp(B2)].into()));
    for gone in [vec![terminating(B1, false), ready(B2)], vec![ready(B2)]] {
        world.endpoints([terminating(B1, true), ready(B2)]);
        world.endpoints(gone);
        assert_eq!(to(&world.next(B1)), Choice::Exactly(udp(B2)));
        assert_eq!(world.held(), ([udp(B2)].into(), [udp(B2)].into()));
        assert_eq!(world.desired.state().backends.len(), 1);
    }
}

#[test]
fn a_step_says_why_a_udp_flow_stays_or_leaves() {
    let says = |endpoints: Vec<Endpoint>| {
        let world = World::new(|_| {}, endpoints);
        let decision = world.decide(FlowView { established: Some(udp(B1)), ..FlowView::default() });
        let object = format!("flow to {VIP}:80/udp");
        decision.steps.into_iter().find(|step| step.object == object).unwrap().says
    };
    assert_eq!(
        says(vec![terminating(B1, true), ready(B2)]),
        "keeps 10.244.0.1:8080/udp, which still serves: it is terminating while others are ready"
    );
    assert_eq!(
        says(vec![terminating(B1, false), ready(B2)]),
        "leaves 10.244.0.1:8080/udp, which is terminating and not serving: chosen anew"
    );
    assert_eq!(says(vec![ready(B2)]), "leaves 10.244.0.1:8080/udp, which is no longer there: chosen anew");
}

#[test]
fn a_quarantined_backend_does_not_serve_and_one_that_is_drained_by_hand_does() {
    let draining = Endpoint { admin: AdminState::Draining { until: None }, ..ready(B1) };
    let weightless = Endpoint { weight: 0, ..ready(B1) };
    for endpoint in [draining, weightless, terminating(B1, true)] {
        let mut world = World::new(|_| {}, [endpoint, ready(B2)]);
        assert_eq!(to(&world.next(B1)), Choice::Exactly(udp(B1)));
        let unhealthy = HealthReport { source: source("probe"), backend: udp(B1), health: Health::Unhealthy };
        world.apply(Change::SetHealth(unhealthy));
        assert_eq!(to(&world.next(B1)), Choice::Exactly(udp(B2)));
        assert_eq!(world.held().0, [udp(B2)].into());
    }
    let maintenance = Endpoint { admin: AdminState::Maintenance, ..ready(B1) };
    assert_eq!(to(&World::new(|_| {}, [maintenance, ready(B2)]).next(B1)), Choice::Exactly(udp(B2)));
}

#[test]
fn a_client_with_affinity_takes_new_flows_elsewhere_and_keeps_the_old_one() {
    let world = World::new(|service| service.affinity = Some(Affinity::default()), [terminating(B1, true), ready(B2)]);
    let record = Some(AffinityRecord { backend: udp(B1), last_use: Instant::default() });
    let flow = FlowView { affinity: record, ..FlowView::default() };
    assert_eq!(to(&world.decide(flow).verdict), Choice::Exactly(udp(B2)));
    let flow = FlowView { established: Some(udp(B1)), ..flow };
    assert_eq!(to(&world.decide(flow).verdict), Choice::Exactly(udp(B1)));
}

#[test]
fn without_a_backend_for_new_flows_old_ones_are_refused_too() {
    let world = World::new(|_| {}, [Endpoint { weight: 0, ..ready(B1) }]);
    assert_eq!(world.next(B1), Verdict::Reject);
}

#[test]
fn the_drain_policy_is_about_connections() {
    for policy in [DrainPolicy::Cut, DrainPolicy::For(Duration::from_secs(1)), DrainPolicy::Keep] {
        let world = World::new(|service| service.drain = policy, [terminating(B1, true), ready(B2)]);
        assert_eq!(to(&world.next(B1)), Choice::Exactly(udp(B1)), "{policy}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// The state says of every backend what the oracle says of a flow that it has.
    #[test]
    fn a_state_holds_the_backends_whose_flows_stay(history in history()) {
        let mut model = Model::new(settings(), Capabilities::all("memory"));
        let mut desired = Desired::default();
        for change in history {
            if let Ok(touched) = model.apply(change) {
                desired.update(&model, &touched).unwrap();
            }
        }
        let state = desired.state();
        for addr in state.frontends.keys() {
            let (held, new) = held(state, addr);
            if addr.protocol != Protocol::Udp {
                prop_assert_eq!(held, new);
                continue;
            }
            let packet = Packet {
                entry: if addr.scope == lb_core::addr::Scope::Internal { Entry::PodDevice } else { Entry::Uplink },
                destination: addr.ip,
                destination_port: addr.port,
                source: if addr.ip.is_ipv4() { ip("192.0.2.9") } else { ip("2001:db8::9") },
                ..packet()
            };
            let first = decide(&model, &packet, &FlowView::default(), Instant::default());
            let takes = match &first.verdict {
                Verdict::Forward(forward) => Some(forward.choice.clone()),
                _ => None,
            };
            let all = first.rejected.iter().map(|(backend, _)| *backend).chain(new);
            for backend in all {
                let flow = FlowView { established: Some(backend), ..FlowView::default() };
                let verdict = decide(&model, &packet, &flow, Instant::default()).verdict;
                let stays = matches!(&verdict, Verdict::Forward(forward) if forward.choice == Choice::Exactly(backend));
                let chosen = takes.as_ref().is_some_and(|choice| *choice == Choice::Exactly(backend));
                prop_assert_eq!(stays, held.contains(&backend) || chosen, "{} of {}: {:?}", backend, addr, verdict);
            }
        }
    }
}
