//! What a datapath holds of a service from its first endpoint to its end.

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol, Scope},
    affinity::Affinity,
    endpoint::{Conditions, Endpoint, EndpointSlice},
    id::BackendId,
    memory::MemoryDatapath,
    model::{Change, Settings},
    name::{NodeName, ServiceName, SliceName},
    node::NodeFacts,
    plan::Op,
    reconciler::Reconciler,
    service::{Algorithm, Service, ServicePort, TrafficPolicy},
    state::{Frontend, Lookup, State, Target},
    time::Instant,
};

use crate::{
    reconciler::{reconciler_with, settle},
    worlds::{backend, ip, port, ready, slice, web},
};

const SERVING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const GOING: Conditions = Conditions { ready: false, serving: false, terminating: true };
const IN_MAINTENANCE: Conditions = Conditions { ready: false, serving: false, terminating: false };

struct World {
    reconciler: Reconciler,
    datapath: MemoryDatapath,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let datapath = MemoryDatapath::default();
        let mut reconciler = reconciler_with(settings, &datapath);
        let node = NodeFacts { name: Some(NodeName::new("here")), ..NodeFacts::default() };
        reconciler.handle_change(Change::SetNode(node)).unwrap();
        Self { reconciler, datapath, now: Instant::default() }
    }

    /// Takes all changes in, and then carries them out.
    fn change(&mut self, changes: impl IntoIterator<Item = Change>) -> &State {
        for change in changes {
            self.reconciler.handle_change(change).unwrap();
        }
        self.now = settle(&mut self.reconciler, &mut self.datapath, self.now);
        self.datapath.state()
    }

    fn endpoints(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> &State {
        self.change([Change::ReplaceEndpoints(slice("a", endpoints))])
    }
}

fn sticky() -> Service {
    Service { affinity: Some(Affinity::default()), ..web("a", "10.96.0.1") }
}

fn with(conditions: Conditions, address: &str) -> Endpoint {
    Endpoint { conditions, ..ready(address) }
}

fn at(address: &str) -> FrontendAddr {
    FrontendAddr::new(ip(address), 80, Protocol::Tcp)
}

fn frontend<'a>(state: &'a State, address: &str) -> &'a Frontend {
    &state.frontends[&at(address)]
}

/// Backends of the slots of a frontend, and those that drain.
fn set(state: &State, frontend: &Frontend) -> (Vec<BackendAddr>, Vec<BackendAddr>) {
    let Target::Set(id) = frontend.target else { return (Vec::new(), Vec::new()) };
    let addr = |id: &BackendId| state.backends[id].addr;
    let set = &state.sets[&id];
    (set.slots.iter().map(addr).collect(), set.draining.iter().map(addr).collect())
}

fn slots(state: &State, address: &str) -> Vec<BackendAddr> {
    set(state, frontend(state, address)).0
}

fn ids(state: &State) -> Vec<(BackendId, BackendAddr)> {
    state.backends.iter().map(|(id, backend)| (*id, backend.addr)).collect()
}

#[test]
fn endpoints_that_come_before_their_service_give_the_same_state() {
    let parts = [Change::UpsertService(sticky()), Change::ReplaceEndpoints(slice("a", [ready("10.244.0.1")]))];
    let [service, endpoints] = parts.clone();
    let (mut in_order, mut the_other_way) = (World::new(), World::new());
    in_order.change([service.clone()]);
    the_other_way.change([endpoints.clone()]);
    let state = in_order.change([endpoints]).clone();
    assert_eq!((state.frontends.len(), state.sets.len(), state.backends.len()), (1, 1, 1));
    assert_eq!(frontend(&state, "10.96.0.1").affinity, Some(Affinity::default()));
    let other = the_other_way.change([service]);
    let held = |state: &State| (slots(state, "10.96.0.1"), frontend(state, "10.96.0.1").affinity);
    assert_eq!((held(&state), state.frontends.len()), (held(other), other.frontends.len()));
    assert_eq!(*World::new().change(parts), state);
}

#[test]
fn scaling_up_keeps_the_id_of_the_first_endpoint_and_orders_slots_by_address() {
    let mut world = World::new();
    world.change([Change::UpsertService(sticky())]);
    let first = ids(world.endpoints([ready("10.244.0.2")]));
    let state = world.endpoints(["10.244.0.3", "10.244.0.1", "10.244.0.2"].map(ready));
    assert!(ids(state).contains(&first[0]), "{:?} lacks {first:?}", ids(state));
    assert_eq!(slots(state, "10.96.0.1"), ["10.244.0.1", "10.244.0.2", "10.244.0.3"].map(backend));
}

#[test]
fn without_endpoints_a_frontend_stays_and_without_its_service_nothing_does() {
    let mut world = World::new();
    world.change([Change::UpsertService(sticky())]);
    let served = world.endpoints([ready("10.244.0.1"), ready("10.244.0.2")]);
    let id = frontend(served, "10.96.0.1").id;
    let state = world.endpoints([]);
    assert_eq!((frontend(state, "10.96.0.1").id, frontend(state, "10.96.0.1").target), (id, Target::Reject));
    assert!(state.backends.is_empty() && state.sets.is_empty());
    let state = world.change([
        Change::RemoveService(ServiceName::new("default", "a")),
        Change::RemoveEndpoints(SliceName::new("default", "a")),
    ]);
    assert!(state.frontends.is_empty() && state.backends.is_empty() && state.sets.is_empty());
}

#[test]
fn endpoints_that_terminate_take_new_flows_only_when_none_is_ready() {
    let udp = |name: &str, address| Service { ports: vec![port("http", Protocol::Udp, 80)], ..web(name, address) };
    let slice = |endpoints: [Endpoint; 2]| {
        let mut slice = slice("a", endpoints);
        slice.ports[0].protocol = Protocol::Udp;
        slice
    };
    let [one, two] = ["10.244.0.1", "10.244.0.2"];
    let cases: [([Endpoint; 2], &[&str], &[&str]); 4] = [
        ([with(SERVING, one), ready(two)], &[two], &[one]),
        ([with(SERVING, one), with(SERVING, two)], &[one, two], &[]),
        ([with(SERVING, one), with(GOING, two)], &[one], &[]),
        ([with(IN_MAINTENANCE, one), with(Conditions { ready: true, ..SERVING }, two)], &[two], &[]),
    ];
    let mut world = World::new();
    world.change([Change::UpsertService(udp("a", "10.96.0.1"))]);
    for (endpoints, takes, drains) in cases {
        let state = world.change([Change::ReplaceEndpoints(slice(endpoints.clone()))]);
        let addr = FrontendAddr::new(ip("10.96.0.1"), 80, Protocol::Udp);
        let (slots, draining) = set(state, &state.frontends[&addr]);
        let of = |addresses: &[&str]| -> Vec<BackendAddr> {
            addresses.iter().map(|address| BackendAddr::new(ip(address), 8080, Protocol::Udp)).collect()
        };
        assert_eq!((slots, draining), (of(takes), of(drains)), "{endpoints:?}");
    }
}

#[test]
fn a_cluster_address_has_one_scope_and_an_ingress_address_two_when_both_policies_are_local() {
    let on = |node: &str, address| Endpoint { node: Some(NodeName::new(node)), ..ready(address) };
    let service = |external, internal| Service {
        load_balancer_ips: vec![ip("20.0.0.1")],
        external_traffic_policy: external,
        internal_traffic_policy: internal,
        ..web("a", "10.96.0.1")
    };
    let (local, cluster) = (TrafficPolicy::Local, TrafficPolicy::Cluster);
    let mut world = World::new();
    world.endpoints([on("here", "10.244.0.1"), on("there", "10.244.1.1")]);
    let state = world.change([Change::UpsertService(service(local, local))]);
    for address in ["10.96.0.1", "20.0.0.1"] {
        assert_eq!(slots(state, address), [backend("10.244.0.1")], "{address}");
    }
    // Traffic from inside to an external frontend takes any endpoint, so that frontend has a twin of its own.
    let inside = FrontendAddr { scope: Scope::Internal, ..at("20.0.0.1") };
    assert_eq!(set(state, &state.frontends[&inside]).0, ["10.244.0.1", "10.244.1.1"].map(backend));
    assert!(!state.frontends.contains_key(&FrontendAddr { scope: Scope::Internal, ..at("10.96.0.1") }));
    let state = world.change([Change::UpsertService(service(cluster, cluster))]);
    assert!(!state.frontends.contains_key(&inside));
}

#[test]
fn an_endpoint_that_moves_between_slices_of_one_batch_is_never_missing() {
    let named = |name: &str, endpoints: &[&str]| EndpointSlice {
        name: SliceName::new("default", name),
        ..slice("a", endpoints.iter().copied().map(ready))
    };
    let (from, to) = (named("a-1", &["10.244.0.1", "10.244.0.2"]), named("a-2", &["10.244.0.3"]));
    let (left, joined) = (named("a-1", &["10.244.0.1"]), named("a-2", &["10.244.0.2", "10.244.0.3"]));
    for moves in [[left.clone(), joined.clone()], [joined, left]] {
        let mut world = World::new();
        world.change([Change::UpsertService(web("a", "10.96.0.1"))]);
        let before = world.change([from.clone(), to.clone()].map(Change::ReplaceEndpoints)).clone();
        for change in moves.map(Change::ReplaceEndpoints) {
            world.reconciler.handle_change(change).unwrap();
        }
        let plan = world.reconciler.poll_plan(world.now).unwrap();
        let ops: Vec<Op> = plan.into_iter().flat_map(|plan| plan.ops).collect();
        assert_eq!(ops, []);
        assert_eq!(*world.datapath.state(), before);
    }
}

#[test]
fn the_algorithm_of_a_service_comes_before_the_default() {
    for (default, own, lookup) in [
        (Algorithm::Random, Some(Algorithm::Maglev), Lookup::Hash),
        (Algorithm::Maglev, Some(Algorithm::Random), Lookup::Random),
        (Algorithm::Maglev, None, Lookup::Hash),
    ] {
        let mut world = World::with(Settings::default().with_algorithm(default));
        world.endpoints([ready("10.244.0.1"), ready("10.244.0.2")]);
        let service = Service { algorithm: own, ..web("a", "10.96.0.1") };
        let state = world.change([Change::UpsertService(service)]);
        let lookups: Vec<Lookup> = state.sets.values().map(|set| set.lookup).collect();
        assert_eq!(lookups, [lookup], "{default:?} {own:?}");
    }
}

#[test]
fn a_service_of_a_cluster_address_alone_has_no_external_policy() {
    let on = |node: &str, address| Endpoint { node: Some(NodeName::new(node)), ..ready(address) };
    let mut world = World::new();
    world.endpoints([on("here", "10.244.0.1"), on("there", "10.244.1.1")]);
    let service = Service { external_traffic_policy: TrafficPolicy::Local, ..web("a", "10.96.0.1") };
    let state = world.change([Change::UpsertService(service)]);
    assert_eq!(slots(state, "10.96.0.1"), ["10.244.0.1", "10.244.1.1"].map(backend));
    assert_eq!(state.frontends.len(), 1);
}

#[test]
fn services_share_an_external_address_with_their_backends_apart() {
    let at_port = |name: &str, number| Service {
        load_balancer_ips: vec![ip("20.0.0.1")],
        cluster_ips: Vec::new(),
        ports: vec![ServicePort { port: number, ..port("http", Protocol::Tcp, number) }],
        ..web(name, "10.96.0.1")
    };
    let mut world = World::new();
    let changes = [("a", 80, "10.244.0.1"), ("b", 443, "10.244.0.2"), ("c", 8080, "10.244.0.3")].map(
        |(name, number, endpoint)| {
            [Change::UpsertService(at_port(name, number)), Change::ReplaceEndpoints(slice(name, [ready(endpoint)]))]
        },
    );
    let state = world.change(changes.into_iter().flatten());
    for (number, endpoint) in [(80, "10.244.0.1"), (443, "10.244.0.2"), (8080, "10.244.0.3")] {
        let addr = FrontendAddr::new(ip("20.0.0.1"), number, Protocol::Tcp);
        assert_eq!(set(state, &state.frontends[&addr]).0, [backend(endpoint)], "{number}");
    }
    let state = world.change([Change::RemoveService(ServiceName::new("default", "b"))]);
    assert_eq!(state.frontends.keys().map(|addr| addr.port).collect::<Vec<_>>(), [80, 8080]);
}
