//! Which established flows end, and when.

use std::collections::BTreeSet;

use core::time::Duration;

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol, Scope},
    datapath::{ApplyError, Capabilities, Datapath, DatapathError, ErrorKind, Evicted, Eviction, Role},
    decision::{Choice, Entry, FlowView, Packet, Verdict, decide},
    endpoint::{Conditions, Endpoint},
    memory::MemoryDatapath,
    model::{Change, Model},
    name::NodeName,
    node::NodeFacts,
    plan::Plan,
    reconciler::Reconciler,
    service::{DrainPolicy, Service, TrafficPolicy},
    state::{State, Target},
    time::Instant,
};
use proptest::{prelude::*, sample::select};

use crate::worlds::{backend, history, ip, port, ready, settings, slice, web};

const VIP: &str = "10.96.0.1";
const B1: &str = "10.244.0.1";
const B2: &str = "10.244.0.2";
const B3: &str = "10.244.0.3";

fn at(seconds: u64) -> Instant {
    Instant::new(Duration::from_secs(seconds))
}

/// Memory with the flows that clients have.
struct WithFlows {
    inner: MemoryDatapath,
    flows: BTreeSet<(FrontendAddr, BackendAddr)>,
    evictions: usize,
    fails: Option<ErrorKind>,
}

impl WithFlows {
    fn new() -> Self {
        Self { inner: MemoryDatapath::default(), flows: BTreeSet::new(), evictions: 0, fails: None }
    }

    /// A flow through every frontend to each backend that takes new ones.
    fn open_flows(&mut self) {
        let state = self.inner.state();
        for (addr, frontend) in &state.frontends {
            let Target::Set(set) = frontend.target else { continue };
            let backends = state.sets[&set].slots.iter().map(|id| state.backends[id].addr);
            self.flows.extend(backends.map(|backend| (*addr, backend)));
        }
    }

    /// Backends of the flows to [`VIP`].
    fn of_vip(&self) -> Vec<BackendAddr> {
        self.flows.iter().map(|(_, backend)| *backend).collect()
    }
}

impl Datapath for WithFlows {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.inner.observe()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        self.inner.apply(plan)
    }

    fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
        self.evictions += 1;
        if let Some(kind) = self.fails {
            return Err(DatapathError::new(kind, "as intended"));
        }
        for Eviction { frontend, keeps } in evictions {
            let meant = |addr: &FrontendAddr| FrontendAddr { scope: frontend.scope, ..*addr } == *frontend;
            self.flows.retain(|(addr, backend)| !meant(addr) || keeps.contains(backend));
        }
        Ok(Evicted::default())
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        self.inner.set_role(role)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.inner.cleanup()
    }
}

/// Plans, and then evictions, until nothing is due.
fn run(reconciler: &mut Reconciler, datapath: &mut WithFlows, now: Instant) {
    loop {
        if reconciler.wants_observation(now) {
            reconciler.handle_observed(datapath.observe().unwrap());
        }
        if let Some(plan) = reconciler.poll_plan(now).unwrap() {
            assert_eq!(reconciler.poll_evictions(now), None, "a plan is under way");
            let outcome = datapath.apply(&plan);
            reconciler.handle_applied(plan.id, outcome, now);
        } else if let Some(evictions) = reconciler.poll_evictions(now) {
            assert_eq!(reconciler.poll_evictions(now).as_ref(), Some(&evictions), "until their outcome is known");
            let outcome = datapath.evict(&evictions);
            reconciler.handle_evicted(outcome.as_ref(), now);
        } else {
            return;
        }
    }
}

fn reconciler() -> Reconciler {
    let mut reconciler = Reconciler::new(Model::new(settings(), Capabilities::all("memory")));
    reconciler.handle_change(Change::SetNode(NodeFacts::default())).unwrap();
    reconciler
}

fn draining(policy: DrainPolicy) -> Service {
    Service { drain: policy, ..web("a", VIP) }
}

/// One service with flows to B1 and B2.
struct World {
    reconciler: Reconciler,
    datapath: WithFlows,
}

impl World {
    fn new(service: Service) -> Self {
        let mut world = Self { reconciler: reconciler(), datapath: WithFlows::new() };
        world.take(Change::UpsertService(service), 0);
        world.endpoints([ready(B1), ready(B2)], 0);
        world.datapath.open_flows();
        world
    }

    fn take(&mut self, change: Change, seconds: u64) {
        self.reconciler.handle_change(change).unwrap();
        self.pass(seconds);
    }

    fn pass(&mut self, seconds: u64) {
        run(&mut self.reconciler, &mut self.datapath, at(seconds));
    }

    fn endpoints(&mut self, endpoints: impl IntoIterator<Item = Endpoint>, seconds: u64) {
        let mut slice = slice("a", endpoints);
        let name = slice.service.clone();
        let service = self.reconciler.model().service(&name);
        slice.ports[0].protocol = service.map_or(Protocol::Tcp, |service| service.ports[0].protocol);
        self.take(Change::ReplaceEndpoints(slice), seconds);
    }

    /// The last parts of the addresses of the backends that have flows.
    fn flows(&self) -> Vec<String> {
        let last = |backend: &BackendAddr| backend.ip.to_string().trim_start_matches("10.244.0.").to_owned();
        self.datapath.of_vip().iter().map(last).collect()
    }

    fn timeout(&self) -> Option<u64> {
        self.reconciler.poll_timeout().map(|(at, _)| at.since_origin().as_secs())
    }
}

fn terminating(address: &str, serving: bool) -> Endpoint {
    Endpoint { conditions: Conditions { ready: false, serving, terminating: true }, ..ready(address) }
}

#[test]
fn flows_that_are_cut_end_with_the_plan_that_keeps_new_ones_off() {
    let mut world = World::new(draining(DrainPolicy::Cut));
    world.endpoints([terminating(B1, true), ready(B2)], 5);
    assert_eq!((world.flows(), world.timeout()), (vec!["2".to_owned()], None));
}

#[test]
fn flows_that_are_kept_are_not_asked_about() {
    let mut world = World::new(draining(DrainPolicy::Keep));
    world.endpoints([ready(B2)], 5);
    assert_eq!((world.flows().len(), world.datapath.evictions, world.timeout()), (2, 0, None));
}

#[test]
fn flows_drain_for_the_time_that_the_policy_says_and_no_longer() {
    let mut world = World::new(draining(DrainPolicy::For(Duration::from_secs(30))));
    world.endpoints([ready(B2)], 100);
    world.endpoints([ready(B3)], 120);
    world.datapath.open_flows();
    assert_eq!((world.flows().len(), world.timeout()), (3, Some(130)));
    world.pass(129);
    assert_eq!(world.flows(), ["1", "2", "3"]);
    world.pass(130);
    assert_eq!((world.flows(), world.timeout()), (vec!["2".into(), "3".into()], Some(150)));
    world.pass(150);
    assert_eq!((world.flows(), world.timeout()), (vec!["3".into()], None));
}

#[test]
fn a_backend_that_comes_back_in_time_keeps_its_flows() {
    let mut world = World::new(draining(DrainPolicy::For(Duration::from_secs(30))));
    world.endpoints([ready(B2)], 100);
    world.endpoints([ready(B1), ready(B2)], 129);
    world.pass(130);
    world.pass(1000);
    assert_eq!((world.flows().len(), world.timeout()), (2, None));
    // The next time counts from the beginning.
    world.endpoints([ready(B2)], 1010);
    world.pass(1039);
    assert_eq!(world.flows().len(), 2);
    world.pass(1040);
    assert_eq!(world.flows(), ["2"]);
}

#[test]
fn a_policy_that_becomes_stricter_reaches_flows_whose_backend_left_before() {
    let mut world = World::new(draining(DrainPolicy::Keep));
    world.endpoints([ready(B2)], 5);
    assert_eq!(world.flows().len(), 2);
    world.take(Change::UpsertService(draining(DrainPolicy::For(Duration::from_secs(10)))), 50);
    world.pass(59);
    assert_eq!(world.flows().len(), 2, "its time begins with the policy");
    world.take(Change::UpsertService(draining(DrainPolicy::Cut)), 59);
    assert_eq!(world.flows(), ["2"]);
}

#[test]
fn a_policy_that_becomes_milder_ends_nothing_that_it_would_keep() {
    let mut world = World::new(draining(DrainPolicy::For(Duration::from_secs(10))));
    world.endpoints([ready(B2)], 100);
    world.take(Change::UpsertService(draining(DrainPolicy::Keep)), 105);
    world.pass(200);
    assert_eq!(world.flows().len(), 2);
}

#[test]
fn a_backend_that_is_well_but_elsewhere_keeps_its_flows_until_it_is_not_well() {
    let on = |address: &str, node: &str| Endpoint { node: Some(NodeName::new(node)), ..ready(address) };
    let node = NodeFacts { name: Some(NodeName::new("here")), ..NodeFacts::default() };
    let mut world = World::new(draining(DrainPolicy::Cut));
    world.take(Change::SetNode(node), 1);
    world.endpoints([on(B1, "there"), on(B2, "here")], 1);
    let local = Service { internal_traffic_policy: TrafficPolicy::Local, ..draining(DrainPolicy::Cut) };
    world.take(Change::UpsertService(local), 2);
    assert_eq!(world.flows().len(), 2);
    // The set of the frontend is the same, so that there is no plan.
    world.endpoints([on(B2, "here")], 3);
    assert_eq!(world.flows(), ["2"]);
}

#[test]
fn datagrams_leave_a_backend_when_it_serves_no_longer() {
    let udp = Service { ports: vec![port("http", Protocol::Udp, 80)], ..web("a", VIP) };
    let mut world = World::new(udp);
    world.endpoints([terminating(B1, true), ready(B2)], 1);
    assert_eq!(world.flows().len(), 2);
    world.endpoints([terminating(B1, false), ready(B2)], 2);
    assert_eq!(world.flows(), ["2"]);
    let name = slice("a", []).service;
    world.take(Change::RemoveService(name), 3);
    assert!(world.flows().is_empty(), "and when the service goes");
}

#[test]
fn the_connections_of_a_service_that_goes_stay() {
    let mut world = World::new(draining(DrainPolicy::Cut));
    world.take(Change::RemoveService(slice("a", []).service), 3);
    world.pass(1000);
    assert_eq!(world.flows().len(), 2);
}

#[test]
fn a_new_process_ends_what_left_while_none_ran_and_gives_the_rest_its_time() {
    for (policy, ends_at) in [(DrainPolicy::Cut, 0), (DrainPolicy::For(Duration::from_secs(30)), 30)] {
        let World { datapath, .. } = World::new(draining(policy));
        let mut world = World { reconciler: reconciler(), datapath };
        world.reconciler.handle_change(Change::UpsertService(draining(policy))).unwrap();
        world.endpoints([ready(B2)], 0);
        if ends_at > 0 {
            world.pass(ends_at - 1);
            assert_eq!(world.flows().len(), 2);
        }
        world.pass(ends_at);
        assert_eq!(world.flows(), ["2"], "{policy}");
    }
}

#[test]
fn connections_of_an_earlier_frontend_are_those_of_the_next_and_datagrams_are_not() {
    let mut world = World::new(draining(DrainPolicy::Keep));
    world.take(Change::RemoveService(slice("a", []).service), 1);
    world.endpoints([ready(B2)], 2);
    world.take(Change::UpsertService(draining(DrainPolicy::Cut)), 3);
    assert_eq!(world.flows(), ["2"]);

    let udp = Service { ports: vec![port("http", Protocol::Udp, 80)], ..web("a", VIP) };
    assert_eq!(World::new(udp).datapath.evictions, 0, "a new frontend has none");
}

#[test]
fn evictions_that_fail_come_again_unless_that_is_pointless() {
    let mut world = World::new(draining(DrainPolicy::Cut));
    world.datapath.fails = Some(ErrorKind::Busy);
    world.endpoints([ready(B2)], 5);
    let tried = world.datapath.evictions;
    assert_eq!(world.flows().len(), 2);
    let (again, why) = world.reconciler.poll_timeout().unwrap();
    assert_eq!((again, why), (at(5) + Reconciler::MIN_RETRY_DELAY, "end flows that have drained"));
    world.datapath.fails = None;
    run(&mut world.reconciler, &mut world.datapath, again);
    assert_eq!((world.flows(), world.timeout()), (vec!["2".to_owned()], None));
    assert_eq!(world.datapath.evictions, tried + 1);

    let mut world = World::new(draining(DrainPolicy::Cut));
    let tried = world.datapath.evictions;
    world.datapath.fails = Some(ErrorKind::Unsupported);
    world.endpoints([ready(B2)], 5);
    assert_eq!((world.datapath.evictions, world.timeout()), (tried + 1, None));
}

#[test]
fn a_datapath_that_needs_long_is_left_to_its_plans_meanwhile() {
    let mut world = World::new(draining(DrainPolicy::Cut));
    let slow = |world: &mut World, endpoints: Vec<Endpoint>, from: u64, to: u64| {
        world.reconciler.handle_change(Change::ReplaceEndpoints(slice("a", endpoints))).unwrap();
        let plan = world.reconciler.poll_plan(at(from)).unwrap().unwrap();
        world.reconciler.handle_applied(plan.id, Ok(()), at(from));
        let evictions = world.reconciler.poll_evictions(at(from))?;
        world.reconciler.handle_evicted(world.datapath.evict(&evictions).as_ref(), at(to));
        Some(evictions)
    };
    assert!(slow(&mut world, vec![ready(B2)], 100, 102).is_some());
    assert_eq!(world.reconciler.evictions_wait_until(), None, "nothing is due");
    // Plans go on, and what they make due comes at once later.
    assert_eq!(slow(&mut world, vec![ready(B3)], 103, 103), None);
    assert_eq!(slow(&mut world, vec![ready(B1)], 104, 104), None);
    assert_eq!((world.reconciler.evictions_wait_until(), world.timeout()), (Some(at(120)), Some(120)));
    assert_eq!(world.reconciler.poll_evictions(at(119)), None);
    let evictions = world.reconciler.poll_evictions(at(120)).unwrap();
    assert_eq!(evictions.iter().map(|eviction| eviction.keeps.clone()).collect::<Vec<_>>(), [[backend(B1)].into()]);
}

#[test]
fn a_datapath_that_ends_no_flows_is_not_asked_to() {
    let capabilities = Capabilities::all("memory").with_evicts(false).with_drain(false);
    let mut reconciler = Reconciler::new(Model::new(settings(), capabilities));
    reconciler.handle_change(Change::SetNode(NodeFacts::default())).unwrap();
    let mut world = World { reconciler, datapath: WithFlows::new() };
    let udp = Service { ports: vec![port("http", Protocol::Udp, 80)], ..draining(DrainPolicy::Cut) };
    world.take(Change::UpsertService(udp), 0);
    world.endpoints([ready(B1)], 0);
    world.endpoints([], 1);
    world.take(Change::RemoveService(slice("a", []).service), 2);
    assert_eq!((world.datapath.evictions, world.timeout()), (0, None));
}

#[test]
fn an_eviction_says_who_keeps_its_flows() {
    let mut world = World::new(draining(DrainPolicy::For(Duration::from_secs(10))));
    world.endpoints([ready(B2)], 0);
    world.endpoints([ready(B3)], 5);
    world.reconciler.poll_plan(at(10)).unwrap();
    let evictions = world.reconciler.poll_evictions(at(10)).unwrap();
    let frontend = FrontendAddr::new(ip(VIP), 80, Protocol::Tcp);
    assert_eq!(evictions, [Eviction { frontend, keeps: [backend(B2), backend(B3)].into() }]);
}

/// What the oracle says of a flow: whether its next packet goes to the same backend.
fn stays(model: &Model, (addr, backend): &(FrontendAddr, BackendAddr)) -> bool {
    let is_v4 = addr.ip.is_ipv4();
    let packet = Packet {
        entry: if addr.scope == Scope::Internal { Entry::PodDevice } else { Entry::Uplink },
        protocol: addr.protocol,
        source: if is_v4 { ip("192.0.2.9") } else { ip("2001:db8::9") },
        source_port: 4000,
        destination: addr.ip,
        destination_port: addr.port,
    };
    let flow = FlowView { established: Some(*backend), ..FlowView::default() };
    let decision = decide(model, &packet, &flow, Instant::default());
    match decision.verdict {
        Verdict::Forward(forward) => forward.choice == Choice::Exactly(*backend),
        // It is no service's any more: a connection goes on as it is, and datagrams are not translated.
        Verdict::Pass => addr.protocol != Protocol::Udp,
        Verdict::Reject | Verdict::Drop => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Flows that stay according to the oracle stay, and those that do not end.
    #[test]
    fn what_ends_is_what_the_oracle_says(
        history in history(),
        policies in proptest::collection::vec(select(vec![DrainPolicy::Keep, DrainPolicy::Cut]), 25),
    ) {
        let (mut reconciler, mut datapath) = (reconciler(), WithFlows::new());
        for (change, drain) in history.into_iter().zip(policies) {
            let change = match change {
                Change::UpsertService(service) => Change::UpsertService(Service { drain, ..service }),
                other => other,
            };
            let _refused_by_the_model = reconciler.handle_change(change);
            let before = datapath.flows.clone();
            run(&mut reconciler, &mut datapath, Instant::default());
            for flow in &before {
                let other = match flow.0.scope { Scope::External => Scope::Internal, Scope::Internal => Scope::External };
                // A datapath may not know by which scope a flow came, so that one of them keeps it for both.
                let either = [flow.0.scope, other].map(|scope| {
                    stays(reconciler.model(), &(FrontendAddr { scope, ..flow.0 }, flow.1))
                });
                let remains = datapath.flows.contains(flow);
                prop_assert!(remains || !either[0], "{flow:?} stays, and was ended");
                prop_assert!(!remains || either.contains(&true), "{flow:?} goes on, and should end");
            }
            datapath.open_flows();
        }
    }
}
