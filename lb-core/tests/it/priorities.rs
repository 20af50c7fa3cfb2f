//! Sources that claim one address, by priority.

use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::{Capabilities, Datapath},
    memory::MemoryDatapath,
    model::{Change, Model},
    name::{ServiceName, SourceName},
    service::Service,
    time::Instant,
};

use crate::worlds::{ip, settings, slice, source, web};

/// Service `name` on `addresses`, said by `from`.
fn service(name: &str, from: &str, addresses: &[&str]) -> Service {
    Service {
        cluster_ips: addresses.iter().map(|address| ip(address)).collect(),
        source: Some(source(from)),
        ..web(name, addresses[0])
    }
}

fn model() -> Model {
    Model::new(settings(), Capabilities::all("test"))
}

fn upsert(model: &mut Model, service: Service) -> Result<Vec<String>, String> {
    let touched = model.apply(Change::UpsertService(service)).map_err(|error| error.to_string())?;
    Ok(touched.iter().map(|name| name.name().to_owned()).collect())
}

fn remove(model: &mut Model, name: &str) -> Vec<String> {
    let touched = model.apply(Change::RemoveService(ServiceName::new("default", name))).unwrap();
    touched.iter().map(|name| name.name().to_owned()).collect()
}

fn owner(model: &Model, address: &str) -> String {
    let owner = model.owner(&FrontendAddr::new(ip(address), 80, Protocol::Tcp));
    owner.map_or_else(String::new, |owner| owner.port.service.name().to_owned())
}

fn refused(model: &Model) -> Vec<String> {
    model.refused().map(|(_, error)| error.to_string()).collect()
}

#[test]
fn a_higher_source_takes_an_address_and_gives_it_back() {
    let mut model = model();
    upsert(&mut model, service("l", "low", &["10.96.0.1", "10.96.0.2"])).unwrap();
    assert_eq!(upsert(&mut model, service("h", "high", &["10.96.0.1"])).unwrap(), ["h", "l"]);
    assert_eq!((owner(&model, "10.96.0.1"), owner(&model, "10.96.0.2")), ("h".into(), "l".into()));
    let says = "service default/l claims frontend 10.96.0.1:80/tcp, which belongs to service default/h; give one of them \
                another address or port; until then, the claim waits for service default/h to give the frontend up";
    assert_eq!(refused(&model), [says]);
    let again = upsert(&mut model, service("l", "low", &["10.96.0.1", "10.96.0.3"])).unwrap_err();
    assert_eq!((&*again, owner(&model, "10.96.0.2")), (says, "l".into()), "the last good version stays");
    assert_eq!(remove(&mut model, "h"), ["h", "l"]);
    assert_eq!(["10.96.0.1", "10.96.0.2", "10.96.0.3"].map(|a| owner(&model, a)), ["l", "", "l"]);
    assert!(refused(&model).is_empty());
}

#[test]
fn among_equals_the_first_one_keeps_it() {
    for (first, second) in [("x", "y"), ("low", "low"), ("high", "high"), ("high", "low"), ("x", "low")] {
        let mut model = model();
        upsert(&mut model, service("first", first, &["10.96.0.1"])).unwrap();
        upsert(&mut model, service("second", second, &["10.96.0.1"])).unwrap_err();
        assert_eq!(owner(&model, "10.96.0.1"), "first", "{first} before {second}");
    }
}

#[test]
fn one_address_that_cannot_be_had_leaves_all_others_where_they_are() {
    let mut model = model();
    upsert(&mut model, service("l", "low", &["10.96.0.1"])).unwrap();
    upsert(&mut model, service("h", "high", &["10.96.0.2"])).unwrap();
    upsert(&mut model, service("m", "middle", &["10.96.0.1", "10.96.0.2"])).unwrap_err();
    assert_eq!(owner(&model, "10.96.0.1"), "l");
    assert_eq!(remove(&mut model, "h"), ["h", "l", "m"]);
    assert_eq!((owner(&model, "10.96.0.1"), owner(&model, "10.96.0.2")), ("m".into(), "m".into()));
}

#[test]
fn the_highest_of_those_who_wait_gets_what_becomes_free() {
    let mut model = model();
    upsert(&mut model, service("h", "high", &["10.96.0.1"])).unwrap();
    upsert(&mut model, service("a", "low", &["10.96.0.1"])).unwrap_err();
    upsert(&mut model, service("z", "middle", &["10.96.0.1"])).unwrap_err();
    remove(&mut model, "h");
    assert_eq!(owner(&model, "10.96.0.1"), "z");
    remove(&mut model, "z");
    assert_eq!(owner(&model, "10.96.0.1"), "a");
}

#[test]
fn a_loser_whose_new_version_is_refused_gets_the_addresses_of_its_old_one_back() {
    let mut model = model();
    upsert(&mut model, service("l", "low", &["10.96.0.1", "10.96.0.2"])).unwrap();
    upsert(&mut model, service("h", "high", &["10.96.0.1"])).unwrap();
    upsert(&mut model, service("k", "high", &["10.96.0.9"])).unwrap();
    upsert(&mut model, service("l", "low", &["10.96.0.2", "10.96.0.9"])).unwrap_err();
    assert_eq!(remove(&mut model, "h"), ["h", "l"]);
    assert_eq!((owner(&model, "10.96.0.1"), owner(&model, "10.96.0.9")), ("l".into(), "k".into()));
}

#[test]
fn a_new_node_address_does_not_turn_priorities_round() {
    let mut model = model();
    upsert(&mut model, service("a", "low", &["10.96.0.1", "10.96.0.2"])).unwrap();
    upsert(&mut model, service("b", "high", &["10.96.0.1"])).unwrap();
    let node = lb_core::node::NodeFacts { ips: vec![ip("172.18.0.2")], ..Default::default() };
    model.apply(Change::SetNode(node)).unwrap();
    assert_eq!((owner(&model, "10.96.0.1"), owner(&model, "10.96.0.2")), ("b".into(), "a".into()));
    assert_eq!(refused(&model).len(), 1);
}

/// The address has an answer at every step of the take-over, the winner's affinity records are new, and one plan does
/// it.
#[test]
fn a_take_over_is_one_write_to_the_datapath() {
    let mut datapath = MemoryDatapath::default();
    let mut reconciler = crate::reconciler::reconciler(&datapath);
    reconciler.handle_observed(datapath.observe().unwrap());
    let addr = FrontendAddr::new(ip("10.96.0.1"), 80, Protocol::Tcp);
    let mut ids = Vec::new();
    for (name, from, backend) in [("l", "low", "10.244.0.1"), ("h", "high", "10.244.0.2")] {
        let endpoints = slice(name, [crate::worlds::ready(backend)]);
        reconciler.handle_change(Change::ReplaceEndpoints(endpoints)).unwrap();
        reconciler.handle_change(Change::UpsertService(service(name, from, &["10.96.0.1"]))).unwrap();
        let plan = reconciler.poll_plan(Instant::default()).unwrap().unwrap();
        assert_eq!(plan.ops.iter().filter(|op| op.frontend() == Some(addr)).count(), 1, "{}", plan.summary());
        let outcome = datapath.apply(&plan);
        reconciler.handle_applied(plan.id, outcome, Instant::default());
        assert_eq!(reconciler.poll_plan(Instant::default()), Ok(None));
        ids.push(datapath.state().frontends[&addr].id);
        let answer = datapath.state().answer(&addr, 0);
        assert_eq!(answer, lb_core::state::Answer::Backends([(crate::worlds::backend(backend), 1)].into()));
    }
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_source_without_a_priority_has_zero() {
    let mut model = model();
    upsert(&mut model, web("nobody", "10.96.0.1")).unwrap();
    upsert(&mut model, Service { source: Some(SourceName("x".into())), ..web("x", "10.96.0.1") }).unwrap_err();
    upsert(&mut model, service("low", "low", &["10.96.0.1"])).unwrap_err();
    upsert(&mut model, service("high", "high", &["10.96.0.1"])).unwrap();
}

#[test]
fn a_claim_that_is_met_or_lost_later_is_told_once() {
    let mut model = model();
    let told = |model: &mut Model| -> Vec<String> {
        std::iter::from_fn(|| model.poll_claim()).map(|(name, claim)| format!("{} {claim}", name.name())).collect()
    };
    upsert(&mut model, service("owner", "low", &["10.96.0.1"])).unwrap();
    upsert(&mut model, service("waiting", "low", &["10.96.0.1"])).unwrap_err();
    assert_eq!(told(&mut model), [""; 0], "the error says it");
    remove(&mut model, "owner");
    assert_eq!(told(&mut model), ["waiting was refused and is served now"]);
    assert_eq!(told(&mut model), [""; 0]);
    upsert(&mut model, service("high", "high", &["10.96.0.1"])).unwrap();
    let lost = "waiting is refused from now on: service default/waiting claims frontend 10.96.0.1:80/tcp, which belongs \
                to service default/high; give one of them another address or port; until then, the claim waits for \
                service default/high to give the frontend up";
    assert_eq!(told(&mut model), [lost]);
    remove(&mut model, "high");
    remove(&mut model, "waiting");
    assert_eq!(told(&mut model), [""; 0], "nobody waits for a service that is gone");
}
