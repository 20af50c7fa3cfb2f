//! Verdicts on health, the panic threshold, and what becomes of established flows.

use core::time::Duration;

use lb_core::{
    addr::Protocol,
    datapath::Capabilities,
    decision::{Decision, Entry, FlowView, Packet, Verdict, decide},
    endpoint::Endpoint,
    health::{Health, HealthReport},
    model::{Change, Degraded, Model, Settings},
    name::NodeName,
    node::NodeFacts,
    selection::Reason,
    service::{DrainPolicy, Service, TrafficPolicy},
    time::Instant,
};

use crate::worlds::{backend, ip, ready, slice, source, web};

fn report(from: &str, n: u8, health: Health) -> HealthReport {
    HealthReport { source: source(from), backend: backend(&format!("10.244.0.{n}")), health }
}

/// Service `a` with endpoints 10.244.0.1 to 4, and `b` with 10.244.0.4 and 5.
fn world(settings: Settings, service: Service) -> Model {
    let mut model = Model::new(settings, Capabilities::all("test"));
    let at = |n: u8| ready(&format!("10.244.0.{n}"));
    for (service, endpoints) in [(service, vec![1, 2, 3, 4]), (web("b", "10.96.0.2"), vec![4, 5])] {
        let name = service.name.name().to_owned();
        model.apply(Change::UpsertService(service)).unwrap();
        model.apply(Change::ReplaceEndpoints(slice(&name, endpoints.into_iter().map(at)))).unwrap();
    }
    model
}

fn plain() -> Model {
    world(Settings::default(), web("a", "10.96.0.1"))
}

fn decision(model: &Model, flow: FlowView, now: u64) -> Decision {
    let packet = Packet {
        entry: Entry::PodDevice,
        protocol: Protocol::Tcp,
        source: ip("10.244.0.99"),
        source_port: 40_000,
        destination: ip("10.96.0.1"),
        destination_port: 80,
    };
    decide(model, &packet, &flow, Instant::new(Duration::from_secs(now)))
}

/// Last numbers of the backends of `a` that take new flows.
fn usable(model: &Model) -> Vec<u8> {
    match decision(model, FlowView::default(), 0).verdict {
        Verdict::Forward(forward) => {
            (1..=9).filter(|n| forward.choice.allows(&backend(&format!("10.244.0.{n}")))).collect()
        }
        Verdict::Pass | Verdict::Reject | Verdict::Drop => Vec::new(),
    }
}

fn set(model: &mut Model, report: HealthReport) -> Vec<String> {
    let touched = model.apply(Change::SetHealth(report)).unwrap();
    touched.iter().map(|name| name.name().to_owned()).collect()
}

#[test]
fn an_unhealthy_backend_takes_no_new_flows_in_any_service() {
    let mut model = plain();
    assert_eq!(set(&mut model, report("probe", 4, Health::Unhealthy)), ["a", "b"]);
    assert_eq!(usable(&model), [1, 2, 3]);
    let rejected = decision(&model, FlowView::default(), 0).rejected;
    assert_eq!(rejected, [(backend("10.244.0.4"), Reason::Unhealthy)]);
    assert_eq!(set(&mut model, report("probe", 4, Health::Unhealthy)), [""; 0], "nothing new");
    assert_eq!(set(&mut model, report("probe", 4, Health::Healthy)), ["a", "b"]);
    assert_eq!(usable(&model), [1, 2, 3, 4]);
    assert_eq!(set(&mut model, report("probe", 9, Health::Unhealthy)), [""; 0], "a backend of nobody");
}

#[test]
fn a_verdict_waits_for_its_endpoint() {
    let mut model = plain();
    set(&mut model, report("probe", 6, Health::Unhealthy));
    let endpoints = [1, 6].map(|n| ready(&format!("10.244.0.{n}")));
    model.apply(Change::ReplaceEndpoints(slice("a", endpoints))).unwrap();
    assert_eq!(usable(&model), [1]);
    assert_eq!(set(&mut model, report("probe", 6, Health::Healthy)), ["a"]);
    assert_eq!(set(&mut model, report("probe", 2, Health::Unhealthy)), [""; 0], "it has left the service");
}

#[test]
fn one_source_is_enough_to_be_unhealthy() {
    let mut model = plain();
    set(&mut model, report("one", 1, Health::Healthy));
    assert_eq!(set(&mut model, report("other", 1, Health::Unhealthy)), ["a"]);
    assert_eq!(model.health().health(&backend("10.244.0.1")), Health::Unhealthy);
    let touched = model.apply(Change::ForgetHealth(source("other"))).unwrap();
    assert_eq!((touched.len(), model.health().health(&backend("10.244.0.1"))), (1, Health::Healthy));
    assert_eq!(set(&mut model, report("one", 1, Health::Unknown)), ["a"], "from healthy to unknown");
    assert_eq!(model.health().reports().count(), 0);
}

#[test]
fn verdicts_survive_a_restart_until_their_source_speaks_again() {
    let mut before = plain();
    for (n, health) in [(1, Health::Unhealthy), (2, Health::Unhealthy), (3, Health::Unhealthy), (4, Health::Healthy)] {
        set(&mut before, report("probe", n, health));
    }
    let kept: Vec<HealthReport> = before.health().reports().collect();
    assert_eq!(kept.len(), 4);

    let mut after = plain();
    after.apply(Change::InitStart(source("probe"))).unwrap();
    set(&mut after, report("probe", 1, Health::Healthy));
    for report in kept {
        after.apply(Change::RestoreHealth(report)).unwrap();
    }
    assert_eq!(usable(&after), [1, 4], "what is known by now is newer than what was kept");
    set(&mut after, report("probe", 2, Health::Unhealthy));
    after.apply(Change::InitDone(source("manifests"))).unwrap();
    assert_eq!(usable(&after), [1, 4], "another source is none of its business");
    let touched = after.apply(Change::InitDone(source("probe"))).unwrap();
    assert_eq!((usable(&after), touched.len()), (vec![1, 3, 4], 2), "3 was not confirmed, nor was 4, which b has, too");
}

#[test]
fn below_the_panic_threshold_health_is_not_looked_at() {
    let panicky = |percent| world(Settings::default().with_panic_threshold(percent), web("a", "10.96.0.1"));
    let mut model = panicky(50);
    set(&mut model, report("probe", 1, Health::Unhealthy));
    set(&mut model, report("probe", 2, Health::Unhealthy));
    assert_eq!(usable(&model), [3, 4], "exactly half is enough");
    set(&mut model, report("probe", 3, Health::Unhealthy));
    assert_eq!(usable(&model), [1, 2, 3, 4]);
    let steps = decision(&model, FlowView::default(), 0).steps;
    let step = steps.iter().find(|step| step.field == "panic threshold").unwrap();
    assert_eq!(step.says, "less than 50 % of backends are well: health is not looked at");
    let off = Service { panic_threshold: Some(0), ..web("a", "10.96.0.1") };
    model.apply(Change::UpsertService(off)).unwrap();
    assert_eq!(usable(&model), [4], "the service says otherwise");
}

#[test]
fn without_a_threshold_nobody_healthy_is_nobody() {
    let mut model = plain();
    for n in 1..=4 {
        set(&mut model, report("probe", n, Health::Unhealthy));
    }
    assert_eq!(decision(&model, FlowView::default(), 0).verdict, Verdict::Reject);
    let serving = lb_core::endpoint::Conditions { ready: false, serving: true, terminating: true };
    let going = Endpoint { conditions: serving, ..ready("10.244.0.5") };
    model.apply(Change::ReplaceEndpoints(slice("a", [ready("10.244.0.1"), going]))).unwrap();
    assert_eq!(usable(&model), [5], "one that still serves is better than an unhealthy one");
}

#[test]
fn the_threshold_is_a_percentage() {
    let service = Service { panic_threshold: Some(101), ..web("a", "10.96.0.1") };
    let error = Model::default().apply(Change::UpsertService(service)).unwrap_err();
    assert_eq!(error.to_string(), "service default/a: panic threshold in per cent is 101, expected 0..=100");
}

fn of(n: u8, left: Option<u64>) -> FlowView {
    FlowView {
        established: Some(backend(&format!("10.244.0.{n}"))),
        left: left.map(|seconds| Instant::new(Duration::from_secs(seconds))),
        ..FlowView::default()
    }
}

fn stays(decision: &Decision) -> bool {
    match &decision.verdict {
        Verdict::Forward(_) => true,
        Verdict::Reject => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_drain_policy_decides_about_flows_of_a_backend_that_is_gone_or_going() {
    let half_minute = DrainPolicy::For(Duration::from_secs(30));
    for (drain, at_29, at_30) in
        [(DrainPolicy::Keep, true, true), (half_minute, true, false), (DrainPolicy::Cut, false, false)]
    {
        let mut model = world(Settings::default(), Service { drain, ..web("a", "10.96.0.1") });
        set(&mut model, report("probe", 1, Health::Unhealthy));
        for n in [1, 9] {
            assert_eq!(stays(&decision(&model, of(n, Some(100)), 129)), at_29, "{drain}, backend {n}");
            assert_eq!(stays(&decision(&model, of(n, Some(100)), 130)), at_30, "{drain}, backend {n}");
        }
        assert!(stays(&decision(&model, of(2, None), 1000)), "{drain}: a usable backend keeps its flows");
    }
    let mut model = world(Settings::default(), Service { drain: DrainPolicy::Cut, ..web("a", "10.96.0.1") });
    set(&mut model, report("probe", 1, Health::Unhealthy));
    let steps = decision(&model, of(1, None), 0).steps;
    assert_eq!(steps.last().unwrap().says, "cut: is cut from 10.244.0.1:8080/tcp, which is unhealthy");
}

#[test]
fn a_backend_that_is_only_elsewhere_keeps_its_flows() {
    let service =
        Service { drain: DrainPolicy::Cut, internal_traffic_policy: TrafficPolicy::Local, ..web("a", "10.96.0.1") };
    let mut model = world(Settings::default(), service);
    let node = NodeFacts { name: Some(NodeName::new("here")), ..NodeFacts::default() };
    model.apply(Change::SetNode(node)).unwrap();
    let there = Endpoint { node: Some(NodeName::new("there")), ..ready("10.244.0.1") };
    model.apply(Change::ReplaceEndpoints(slice("a", [there]))).unwrap();
    assert!(stays(&decision(&model, of(1, Some(0)), 1000)));
}

#[test]
fn a_datapath_that_cannot_cut_keeps_and_says_so() {
    let capabilities = Capabilities::all("test").with_drain(false);
    let mut model = Model::new(Settings::default(), capabilities);
    let service = Service { drain: DrainPolicy::For(Duration::from_secs(30)), ..web("a", "10.96.0.1") };
    model.apply(Change::UpsertService(service.clone())).unwrap();
    let degraded: Vec<String> = model.degraded(&service).iter().map(Degraded::to_string).collect();
    assert_eq!(
        degraded,
        ["drain policy 30 s is not supported by this datapath as it is set up, established flows keep their backend; \
          eBPF ends them with the setting `destroy-sockets: all`"]
    );
    assert!(stays(&decision(&model, of(1, Some(0)), 1000)));
    assert!(model.degraded(&web("b", "10.96.0.2")).is_empty());
    let never = Service { drain: DrainPolicy::For(Duration::ZERO), ..service };
    let error = model.apply(Change::UpsertService(never)).unwrap_err();
    assert_eq!(error.to_string(), "service default/a: time to drain in seconds is 0, expected at least 1");
}
