//! Which ports are open, and what is said there, while services, endpoints and the datapath change.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use lb_core::{
    datapath::Datapath,
    faulty::{Faults, Faulty},
    memory::MemoryDatapath,
    model::{Change, Model, Settings},
    name::NodeName,
    node::NodeFacts,
    runner::Runner,
    time::Instant,
};

use super::{Board, Door, HealthChecks, Ports, board::PATIENCE};
use crate::{
    config::Config,
    driver,
    engine::Engine,
    testing::{agent_of, changes, conditions},
};

/// Ports that are open, and those that somebody else has.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    open: BTreeSet<u16>,
    taken: BTreeSet<u16>,
    /// Where the last one was opened.
    ips: Vec<IpAddr>,
    /// How often each port was opened.
    opened: Vec<u16>,
}

impl Recorder {
    fn open_ports(&self) -> Vec<u16> {
        self.0.lock().unwrap().open.iter().copied().collect()
    }

    fn set_taken(&self, taken: &[u16]) {
        self.0.lock().unwrap().taken = taken.iter().copied().collect();
    }
}

impl Ports for Recorder {
    fn open(&mut self, ips: &[IpAddr], port: u16) -> Result<Door, String> {
        let mut recorded = self.0.lock().unwrap();
        recorded.ips = ips.to_vec();
        if recorded.taken.contains(&port) {
            return Err("somebody has it".into());
        }
        assert!(recorded.open.insert(port), "{port} is open already");
        recorded.opened.push(port);
        Ok(Box::new(Opened(port, self.clone())))
    }
}

struct Opened(u16, Recorder);

impl Drop for Opened {
    fn drop(&mut self) {
        self.1.0.lock().unwrap().open.remove(&self.0);
    }
}

/// An agent of node `here`, 192.0.2.1, whose health checks open no real port.
struct World {
    agent: Engine,
    ports: Recorder,
    now: Instant,
    manifests: lb_k8s::Manifests,
}

impl World {
    fn new(manifests: &str) -> Self {
        Self::on(MemoryDatapath::default(), manifests)
    }

    fn on(datapath: impl Datapath + 'static, manifests: &str) -> Self {
        let node = NodeFacts {
            name: Some(NodeName::new("here")),
            ips: vec!["192.0.2.1".parse().unwrap()],
            ..NodeFacts::default()
        };
        let mut agent = agent_of("", &Config::new(driver::MEMORY, node, "/socket", "/state"), datapath);
        let ports = Recorder::default();
        agent.health_checks = HealthChecks::new(ports.clone());
        let source = lb_core::name::SourceName("test".into());
        let now = agent.shared().now();
        let mut world = Self { agent, ports, now, manifests: lb_k8s::Manifests::new(source) };
        world.update(manifests);
        world
    }

    /// These are the manifests from now on, and the datapath does what is due.
    fn update(&mut self, manifests: &str) {
        let snapshot = lb_k8s::Snapshot::parse("x.yaml", manifests);
        let batch = self.manifests.update(snapshot);
        assert!(batch.report.rejected.is_none() && batch.report.refused.is_empty(), "{:?}", batch.report);
        self.change(batch.changes);
    }

    fn change(&mut self, changes: Vec<Change>) {
        self.agent.shared().take_changes(changes);
        self.agent.settle().unwrap();
    }

    /// Time passes, and ports that failed are tried again.
    fn wait(&mut self, time: Duration) {
        let shared = self.agent.shared();
        self.now = shared.now() + time;
        self.agent.health_checks.follow(shared.runner().reconciler(), shared.health_checks(), self.now);
    }

    /// Status, service and endpoints of the answer at a port.
    fn answer(&self, port: u16) -> Option<(u16, String, usize)> {
        let shared = self.agent.shared();
        let answer = shared.health_checks().answer(port, self.now)?;
        let service = shared.health_checks().service_at(port)?;
        Some((answer.status(), service.name().to_owned(), answer.local_endpoints))
    }

    /// What is wrong with the health check of a service.
    fn said_of(&self, name: &str) -> Vec<String> {
        let services = self.agent.shared().services();
        let service = services.iter().find(|service| service.name == format!("default/{name}")).unwrap();
        let said = service.conditions.iter().filter(|condition| condition.kind == super::UNANSWERED);
        said.map(|condition| condition.message.clone()).collect()
    }
}

/// A load balancer's service with traffic policy Local at 203.0.113.N, and what there is in `spec` besides.
fn balanced(name: &str, number: u8, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: LoadBalancer, clusterIP: \
         10.96.0.{number}, externalTrafficPolicy: Local, ports: [{{port: 80}}], {spec}}}, status: {{loadBalancer: \
         {{ingress: [{{ip: 203.0.113.{number}}}]}}}}}}\n---\n"
    )
}

/// Endpoints of a service, each with the node it is on and its conditions.
fn slice(name: &str, endpoints: &[(&str, &str)]) -> String {
    let endpoint = |(number, (node, conditions)): (usize, &(&str, &str))| {
        format!("{{addresses: [10.244.0.{}], nodeName: {node}, conditions: {{{conditions}}}}}", number + 1)
    };
    let endpoints: Vec<String> = endpoints.iter().enumerate().map(endpoint).collect();
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}-1, labels: \
         {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4, ports: [{{port: 8080}}], endpoints: [{}]}}\n---\n",
        endpoints.join(", ")
    )
}

const READY: (&str, &str) = ("here", "ready: true");
const ELSEWHERE: (&str, &str) = ("there", "ready: true");
const TERMINATING: (&str, &str) = ("here", "ready: false, serving: true, terminating: true");

fn answered(status: u16, service: &str, endpoints: usize) -> Option<(u16, String, usize)> {
    Some((status, service.to_owned(), endpoints))
}

#[test]
fn a_node_answers_with_its_ready_endpoints() {
    let service = balanced("web", 1, "healthCheckNodePort: 32000");
    let mut world = World::new(&service);
    assert_eq!(world.answer(32_000), answered(503, "web", 0), "no endpoints");
    world.update(&(service.clone() + &slice("web", &[READY, READY, ELSEWHERE])));
    assert_eq!(world.answer(32_000), answered(200, "web", 2));
    world.update(&(service.clone() + &slice("web", &[TERMINATING, ELSEWHERE])));
    assert_eq!(world.answer(32_000), answered(503, "web", 0), "it still serves, and is to get nothing new");
    world.update(&(service + &slice("web", &[ELSEWHERE])));
    assert_eq!(world.answer(32_000), answered(503, "web", 0));
    assert_eq!(world.ports.0.lock().unwrap().opened, [32_000], "it stayed open all the while");
}

#[test]
fn a_port_opens_and_closes_with_what_asks_for_it() {
    let local = balanced("web", 1, "healthCheckNodePort: 32000");
    let mut world = World::new(&local);
    for (manifests, open) in [
        (local.replace("externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster"), vec![]),
        (local.clone(), vec![32_000]),
        (local.replace("32000", "32001"), vec![32_001]),
        (balanced("web", 1, ""), vec![]),
        (local.clone(), vec![32_000]),
        (String::new(), vec![]),
    ] {
        world.update(&manifests);
        assert_eq!(world.ports.open_ports(), open, "{manifests}");
        assert_eq!(world.answer(32_000).is_some(), open == [32_000]);
    }
}

#[test]
fn services_that_swap_their_numbers_are_answered_at_the_other_ones_port() {
    let manifests = |a: u16, b: u16| {
        let of = |name, number, port| balanced(name, number, &format!("healthCheckNodePort: {port}"));
        of("a", 1, a) + &of("b", 2, b) + &slice("a", &[READY])
    };
    let mut world = World::new(&manifests(32_001, 32_002));
    world.update(&manifests(32_002, 32_001));
    assert_eq!(world.answer(32_002), answered(200, "a", 1));
    assert_eq!(world.answer(32_001), answered(503, "b", 0));
    assert_eq!(world.ports.0.lock().unwrap().opened.len(), 2, "neither was closed");
    assert_eq!(conditions(&world.agent).iter().filter(|kind| *kind == super::UNANSWERED).count(), 0);
}

#[test]
fn two_services_with_one_number_are_both_named_and_the_first_keeps_it() {
    let of = |name: &str, number| balanced(name, number, "healthCheckNodePort: 32000") + &slice(name, &[READY]);
    let mut world = World::new(&of("b", 2));
    world.update(&(of("b", 2) + &of("a", 1)));
    assert_eq!(world.answer(32_000), answered(200, "b", 1));
    for name in ["a", "b"] {
        let said = world.said_of(name);
        assert!(
            said[0].contains("default/a") && said[0].contains("default/b") && said[0].contains("32000"),
            "{said:?}"
        );
    }
    assert!(conditions(&world.agent).contains(&super::UNANSWERED.to_owned()));
    world.update(&of("a", 1));
    assert_eq!((world.answer(32_000), world.said_of("a")), (answered(200, "a", 1), vec![]));
    assert!(!conditions(&world.agent).contains(&super::UNANSWERED.to_owned()));
}

#[test]
fn a_port_that_somebody_else_has_is_a_condition_until_it_is_free() {
    let mut world = World::new("");
    world.ports.set_taken(&[32_000]);
    world.update(&(balanced("web", 1, "healthCheckNodePort: 32000") + &slice("web", &[READY])));
    assert_eq!((world.answer(32_000), world.said_of("web").len()), (None, 1));
    assert_eq!(world.said_of("web"), ["health-check node port 32000: somebody has it"]);
    assert!(conditions(&world.agent).contains(&super::UNANSWERED.to_owned()));
    assert!(world.agent.patience().is_some_and(|patience| patience <= super::MIN_RETRY));
    world.ports.set_taken(&[]);
    world.wait(super::MIN_RETRY);
    assert_eq!((world.answer(32_000), world.said_of("web").len()), (answered(200, "web", 1), 0));
    assert_eq!(world.agent.health_checks.due(), None);
}

#[test]
fn a_port_that_is_a_node_port_is_not_answered_and_the_other_service_is_named() {
    let web = balanced("web", 1, "healthCheckNodePort: 32000");
    let other = "{apiVersion: v1, kind: Service, metadata: {name: other}, spec: {type: NodePort, clusterIP: 10.96.0.9, \
                 ports: [{port: 80, nodePort: 32000}]}}\n";
    let mut world = World::new(&web);
    world.update(&(web.clone() + other));
    let said = world.said_of("web");
    assert!(said[0].contains("192.0.2.1:32000/tcp is a NodePort frontend of service default/other"), "{said:?}");
    assert_eq!((world.answer(32_000), world.ports.open_ports()), (None, vec![]));
    world.update(&web);
    world.wait(super::MIN_RETRY);
    assert_eq!((world.answer(32_000), world.said_of("web").len()), (answered(503, "web", 0), 0));
}

#[test]
fn endpoints_count_when_the_datapath_has_them() {
    let service = balanced("web", 1, "healthCheckNodePort: 32000");
    let refuses = Faults { refused_frontends: 1000, ..Faults::default() };
    let mut world =
        World::on(Faulty::new(MemoryDatapath::default(), refuses, 1), &(service.clone() + &slice("web", &[READY])));
    assert_eq!(world.answer(32_000), None, "no datapath has ever had it");
    world.agent.datapath = Box::new(MemoryDatapath::default());
    // The reconciler tries refused frontends again by its own clock.
    while world.answer(32_000).is_none() {
        world.agent.settle().unwrap();
    }
    assert_eq!(world.answer(32_000), answered(200, "web", 1));

    world.agent.datapath = Box::new(Faulty::new(MemoryDatapath::default(), refuses, 1));
    world.update(&(service + &slice("web", &[ELSEWHERE])));
    assert_eq!(world.answer(32_000), answered(200, "web", 1), "the datapath still sends to it");
    world.now = world.agent.shared().now() + PATIENCE + Duration::from_secs(1);
    assert_eq!(world.answer(32_000), answered(503, "web", 1), "it has been refused for too long");
}

#[test]
fn a_datapath_that_is_not_known_for_long_makes_the_node_unhealthy() {
    let manifests = balanced("web", 1, "healthCheckNodePort: 32000") + &slice("web", &[READY]);
    let mut world = World::new(&manifests);
    let lost = Faults { interrupted_plans: 1000, ..Faults::default() };
    world.agent.datapath = Box::new(Faulty::new(MemoryDatapath::default(), lost, 1));
    world.update(&(manifests + &balanced("other", 2, "")));
    assert_eq!(conditions(&world.agent)[0], "DatapathUnknown");
    assert_eq!(world.answer(32_000), answered(200, "web", 1), "for a moment");
    world.now = world.agent.shared().now() + PATIENCE + Duration::from_secs(1);
    assert_eq!(world.answer(32_000), answered(503, "web", 1));
    world.agent.datapath = Box::new(MemoryDatapath::default());
    while world.answer(32_000) != answered(200, "web", 1) {
        world.agent.settle().unwrap();
    }
}

#[test]
fn a_datapath_that_is_at_work_for_long_makes_the_node_unhealthy() {
    let mut world = World::new(&(balanced("web", 1, "healthCheckNodePort: 32000") + &slice("web", &[READY])));
    let shared = world.agent.shared();
    shared.health_checks().set_busy(true, world.now);
    shared.health_checks().set_busy(true, world.now + PATIENCE);
    world.now = world.now + PATIENCE + Duration::from_secs(1);
    let answer = shared.health_checks().answer(32_000, world.now).unwrap();
    assert_eq!((answer.status(), answer.service_proxy_healthy), (503, false));
    world.agent.settle().unwrap();
    assert_eq!(world.answer(32_000), answered(200, "web", 1));
}

#[test]
fn the_node_of_endpoints_counts_when_the_node_gets_its_name() {
    let mut world = World::new(&(balanced("web", 1, "healthCheckNodePort: 32000") + &slice("web", &[ELSEWHERE])));
    assert_eq!(world.answer(32_000), answered(503, "web", 0));
    let node = NodeFacts { name: Some(NodeName::new("there")), ..NodeFacts::default() };
    world.change(vec![Change::SetNode(node)]);
    assert_eq!(world.answer(32_000), answered(200, "web", 1));
}

#[test]
fn nothing_is_answered_before_the_first_listing_is_carried_out() {
    let config = Config::new(driver::MEMORY, NodeFacts::default(), "/socket", "/state");
    let manifests = balanced("web", 1, "healthCheckNodePort: 32000");
    let mut agent = agent_of("", &config, MemoryDatapath::default());
    let ports = Recorder::default();
    agent.health_checks = HealthChecks::new(ports.clone());
    let listing = changes(&manifests);
    let (done, rest) = listing.split_last().unwrap();
    agent.shared().take_changes(vec![Change::InitStart(lb_core::name::SourceName("test".into()))]);
    agent.shared().take_changes(rest.to_vec());
    agent.settle().unwrap();
    assert_eq!(ports.open_ports(), [0_u16; 0]);
    agent.shared().take_changes(vec![done.clone()]);
    agent.settle().unwrap();
    assert_eq!(ports.open_ports(), [32_000]);
}

#[test]
fn health_checks_are_at_the_addresses_of_node_ports_and_follow_them() {
    let node = |ips: &[&str]| {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        Change::SetNode(NodeFacts { ips, ..NodeFacts::default() })
    };
    let opened_at = |networks: &[&str], nodes: &[&[&str]]| {
        let networks: Vec<_> = networks.iter().map(|network| network.parse().unwrap()).collect();
        let settings = Settings::default().with_node_port_addresses(networks);
        let mut datapath = MemoryDatapath::default();
        let model = Model::new(settings, datapath.capabilities());
        let mut runner = Runner::new(model, NodeFacts::default(), []);
        let (ports, board) = (Recorder::default(), Board::default());
        let mut checks = HealthChecks::new(ports.clone());
        let first = changes(&balanced("web", 1, "healthCheckNodePort: 32000"));
        for change in first.into_iter().chain(nodes.iter().map(|ips| node(ips))) {
            runner.handle_change(change).unwrap();
            while runner.step(&mut datapath, Instant::default()).is_some() {}
            board.touch_all();
            checks.follow(runner.reconciler(), &board, Instant::default());
        }
        let recorded = ports.0.lock().unwrap();
        let ips: Vec<String> = recorded.ips.iter().map(ToString::to_string).collect();
        (ips, recorded.open.len(), board.problems().into_values().collect::<Vec<_>>())
    };
    let ips: &[&str] = &["192.0.2.1", "198.51.100.1", "2001:db8::1"];
    let every = vec!["0.0.0.0".to_owned(), "::".to_owned()];
    assert_eq!(opened_at(&[], &[ips]), (every, 1, vec![]));
    let chosen = |nodes: &[&[&str]]| opened_at(&["192.0.2.0/24", "2001:db8::/32"], nodes);
    assert_eq!(chosen(&[ips]), (vec!["192.0.2.1".into(), "2001:db8::1".into()], 1, vec![]));
    assert_eq!(chosen(&[ips, &["192.0.2.7"]]), (vec!["192.0.2.7".into()], 1, vec![]));
    let (_, open, problems) = chosen(&[ips, &["198.51.100.1"]]);
    assert_eq!((open, problems.len()), (0, 1), "{problems:?}");
    assert!(problems[0].contains("no address of the node is among those that are chosen"), "{problems:?}");
}
