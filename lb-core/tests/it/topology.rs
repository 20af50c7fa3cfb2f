//! Which backends topology keeps flows to: the rules of kube-proxy, case by case.

use lb_core::{
    addr::Protocol,
    decision::{Decision, Entry, FlowView, Packet, Verdict, decide},
    endpoint::{Conditions, Endpoint},
    health::{Health, HealthReport},
    model::{Change, Model},
    name::{NodeName, ZoneName},
    node::NodeFacts,
    service::{Service, TrafficPolicy},
    time::Instant,
    topology::{Hints, TrafficDistribution},
};

use crate::worlds::{ip, ready, slice, source, web};

const SERVING: Conditions = Conditions { ready: false, serving: true, terminating: true };

/// Endpoint 10.244.0.`n`, meant for `zones` and `nodes`.
fn hinted(n: u8, zones: &[&str], nodes: &[&str]) -> Endpoint {
    let hints = Hints {
        zones: zones.iter().map(|zone| ZoneName::new(zone)).collect(),
        nodes: nodes.iter().map(|node| NodeName::new(node)).collect(),
    };
    Endpoint { hints, ..ready(&format!("10.244.0.{n}")) }
}

/// Endpoint 10.244.0.`n`, running on `node` in `zone`, meant for nobody in particular.
fn placed(n: u8, node: &str, zone: &str) -> Endpoint {
    Endpoint { node: Some(NodeName::new(node)), zone: Some(ZoneName::new(zone)), ..hinted(n, &[], &[]) }
}

/// Service `a` as node `here` in zone `x` sees it.
fn world(service: Service, endpoints: impl IntoIterator<Item = Endpoint>) -> Model {
    let mut model = Model::default();
    let node = NodeFacts { name: Some(NodeName::new("here")), ..NodeFacts::default() };
    model.apply(Change::SetNode(node)).unwrap();
    model.apply(Change::SetZone(Some(ZoneName::new("x")))).unwrap();
    model.apply(Change::UpsertService(service)).unwrap();
    model.apply(Change::ReplaceEndpoints(slice("a", endpoints))).unwrap();
    model
}

fn decision(model: &Model) -> Decision {
    let packet = Packet {
        entry: Entry::PodDevice,
        protocol: Protocol::Tcp,
        source: ip("10.244.0.99"),
        source_port: 40_000,
        destination: ip("10.96.0.1"),
        destination_port: 80,
    };
    decide(model, &packet, &FlowView::default(), Instant::default())
}

/// Last numbers of the backends that take new flows.
fn usable(model: &Model) -> Vec<u8> {
    match decision(model).verdict {
        Verdict::Forward(forward) => {
            (1..=9).filter(|n| forward.choice.allows(&crate::worlds::backend(&format!("10.244.0.{n}")))).collect()
        }
        Verdict::Pass | Verdict::Reject | Verdict::Drop => Vec::new(),
    }
}

fn plain(endpoints: impl IntoIterator<Item = Endpoint>) -> Vec<u8> {
    usable(&world(web("a", "10.96.0.1"), endpoints))
}

#[test]
fn flows_stay_in_the_zone_if_every_ready_endpoint_has_a_hint_and_one_is_for_it() {
    assert_eq!(plain([hinted(1, &["x"], &[]), hinted(2, &["y"], &[]), hinted(3, &["y", "x"], &[])]), [1, 3]);
    assert_eq!(plain([hinted(1, &["x"], &[]), hinted(2, &["y"], &[]), hinted(3, &[], &[])]), [1, 2, 3], "one unhinted");
    assert_eq!(plain([hinted(1, &["y"], &[]), hinted(2, &["z"], &[])]), [1, 2], "none for this zone");
    let unhinted_and_gone = Endpoint { conditions: SERVING, ..hinted(3, &[], &[]) };
    assert_eq!(plain([hinted(1, &["x"], &[]), hinted(2, &["y"], &[]), unhinted_and_gone]), [1], "not ready, no say");
}

#[test]
fn node_hints_come_before_zone_hints() {
    let all = [hinted(1, &["x"], &["here"]), hinted(2, &["x"], &["there"]), hinted(3, &["y"], &["far"])];
    assert_eq!(plain(all.clone()), [1]);
    assert_eq!(plain(all[1..].to_vec()), [2], "none for this node");
    assert_eq!(
        plain([all[0].clone(), hinted(2, &["x"], &[]), hinted(3, &["y"], &["far"])]),
        [1, 2],
        "one without a node"
    );
}

#[test]
fn a_node_in_no_zone_is_kept_to_none() {
    let mut model = world(web("a", "10.96.0.1"), [hinted(1, &["x"], &[]), hinted(2, &["y"], &[])]);
    assert_eq!(usable(&model), [1]);
    let touched = model.apply(Change::SetZone(Some(ZoneName::new("y")))).unwrap();
    assert_eq!((touched.len(), usable(&model)), (1, vec![2]));
    model.apply(Change::SetZone(None)).unwrap();
    assert_eq!(usable(&model), [1, 2]);
    assert!(model.apply(Change::SetZone(None)).unwrap().is_empty());
}

#[test]
fn terminating_endpoints_and_policy_local_know_no_topology() {
    let terminating = [("x", 1), ("y", 2)].map(|(zone, n)| Endpoint { conditions: SERVING, ..hinted(n, &[zone], &[]) });
    assert_eq!(plain(terminating), [1, 2]);
    let local = Service { internal_traffic_policy: TrafficPolicy::Local, ..web("a", "10.96.0.1") };
    let here = |endpoint| Endpoint { node: Some(NodeName::new("here")), ..endpoint };
    let endpoints = [here(hinted(1, &["x"], &[])), here(hinted(2, &["y"], &[]))];
    assert_eq!(usable(&world(local, endpoints)), [1, 2]);
}

#[test]
fn traffic_distribution_stands_in_for_hints_that_are_not_there() {
    let service = |distribution| Service { traffic_distribution: Some(distribution), ..web("a", "10.96.0.1") };
    let (zone, node) = (TrafficDistribution::PreferSameZone, TrafficDistribution::PreferSameNode);
    let all = [placed(1, "here", "x"), placed(2, "there", "x"), placed(3, "far", "y")];
    assert_eq!(plain(all.clone()), [1, 2, 3], "nobody asked");
    assert_eq!(usable(&world(service(zone), all.clone())), [1, 2]);
    assert_eq!(usable(&world(service(node), all.clone())), [1]);
    assert_eq!(usable(&world(service(node), all[1..].to_vec())), [2], "none on the node: the zone");
    assert_eq!(usable(&world(service(node), all[2..].to_vec())), [3], "none in the zone: any");
    let mut with_hints = all.to_vec();
    with_hints[2].hints.zones = vec![ZoneName::new("x")];
    assert_eq!(usable(&world(service(zone), with_hints)), [1, 2, 3], "a hint says more than a place");
    let nowhere = [all.to_vec(), vec![ready("10.244.0.4")]].concat();
    assert_eq!(usable(&world(service(zone), nowhere)), [1, 2, 3, 4], "one in no zone");
}

#[test]
fn a_zone_whose_backends_are_all_unhealthy_is_left() {
    let mut model = world(web("a", "10.96.0.1"), [hinted(1, &["x"], &[]), hinted(2, &["y"], &[])]);
    let backend = crate::worlds::backend("10.244.0.1");
    let report = HealthReport { source: source("probe"), backend, health: Health::Unhealthy };
    model.apply(Change::SetHealth(report)).unwrap();
    assert_eq!(usable(&model), [2]);
}

#[test]
fn the_oracle_says_which_zone_and_why_each_other_backend_is_left_out() {
    let service = Service { traffic_distribution: Some(TrafficDistribution::PreferSameNode), ..web("a", "10.96.0.1") };
    let model = world(service, [hinted(1, &["x"], &[]), hinted(2, &["y", "z"], &[])]);
    let decision = decision(&model);
    let step = decision.steps.iter().find(|step| step.field == "traffic distribution").unwrap();
    assert_eq!((&*step.object, &*step.says), ("service default/a", "PreferSameNode: those meant for zone x"));
    let reasons: Vec<String> = decision.rejected.iter().map(|(_, reason)| reason.to_string()).collect();
    assert_eq!(reasons, ["hinted for zone y, z, this node is in x"]);
    let model = world(web("a", "10.96.0.1"), [hinted(1, &[], &["here"]), hinted(2, &[], &["there"])]);
    let decision = self::decision(&model);
    let step = decision.steps.iter().find(|step| step.field == "hints").unwrap();
    assert_eq!(step.says, "those meant for node here");
    assert_eq!(decision.rejected[0].1.to_string(), "hinted for node there, this is here");
}
