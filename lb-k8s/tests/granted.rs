//! Services get the addresses that an allocator gives them, in place of those of their status.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, net::IpAddr};

use lb_core::{
    model::Change,
    name::{ServiceName, SourceName},
    service::Service,
};
use lb_k8s::{Manifests, Snapshot};
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
};

fn name(service: &str) -> ServiceName {
    ServiceName::new("default", service)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A service and what its status says.
fn service(name: &str, port: u16, status: &[&str]) -> String {
    let ingress: Vec<_> = status.iter().map(|ip| format!("{{ip: {ip}}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, ports: [{{port: \
         {port}}}]}}\nstatus: {{loadBalancer: {{ingress: [{}]}}}}\n",
        ingress.join(", ")
    )
}

fn manifests(text: &[String]) -> Manifests {
    let mut manifests = Manifests::new(SourceName("manifests".into())).allocating();
    update(&mut manifests, text);
    manifests
}

fn update(manifests: &mut Manifests, text: &[String]) -> Vec<String> {
    told(&manifests.update(Snapshot::parse("x.yaml", &text.concat())).changes)
}

/// Changes of services: name, port, addresses of the load balancer.
fn told(changes: &[Change]) -> Vec<String> {
    let told = changes.iter().filter_map(|change| match change {
        Change::UpsertService(service) => Some(shown(service)),
        Change::RemoveService(name) => Some(format!("-{}", name.name())),
        _ => None,
    });
    told.collect()
}

fn shown(service: &Service) -> String {
    let port = service.ports.first().map_or(0, |port| port.port);
    let addresses: Vec<_> = service.load_balancer_ips.iter().map(ToString::to_string).collect();
    format!("{}:{port} {}", service.name.name(), addresses.join(","))
}

fn current(manifests: &Manifests) -> Vec<String> {
    manifests.services().map(shown).collect()
}

#[test]
fn a_service_gets_what_it_is_granted_and_that_of_its_status_again() {
    let mut manifests = manifests(&[service("a", 80, &["192.0.2.1"]), service("b", 80, &[])]);
    let changes = manifests
        .grant([(name("b"), Some(ips(&["192.0.2.9"]))), (name("a"), Some(ips(&["192.0.2.2", "2001:db8::2"])))]);
    assert_eq!(told(&changes), ["a:80 192.0.2.2,2001:db8::2", "b:80 192.0.2.9"]);
    let sources = changes.iter().map(|change| match change {
        Change::UpsertService(service) => service.source.clone(),
        other => panic!("{other:?}"),
    });
    assert!(sources.into_iter().all(|source| source == Some(SourceName("manifests".into()))));
    assert_eq!(current(&manifests), ["a:80 192.0.2.2,2001:db8::2", "b:80 192.0.2.9"]);
    assert_eq!(
        told(&manifests.grant([(name("a"), Some(vec![]))])),
        ["a:80 "],
        "nothing instead of what its status names"
    );
    assert_eq!(told(&manifests.grant([(name("a"), None), (name("b"), None)])), ["a:80 192.0.2.1", "b:80 "]);
}

#[test]
fn answers_that_change_nothing_give_no_change() {
    let mut manifests = manifests(&[service("a", 80, &["192.0.2.1"]), service("b", 80, &[])]);
    let answers =
        [(name("a"), Some(ips(&["192.0.2.1"]))), (name("b"), Some(vec![])), (name("c"), Some(ips(&["192.0.2.3"])))];
    assert_eq!(told(&manifests.grant(answers)), [""; 0]);
    let grant = [(name("b"), Some(ips(&["192.0.2.2"])))];
    assert_eq!(told(&manifests.grant(grant.clone())), ["b:80 192.0.2.2"]);
    assert_eq!(told(&manifests.grant(grant)), [""; 0]);
    assert_eq!(told(&manifests.grant([(name("c"), None)])), [""; 0]);
    assert_eq!(
        update(&mut manifests, &[service("a", 80, &["192.0.2.1"]), service("b", 80, &[]), service("c", 80, &[])]),
        ["c:80 "],
        "what was answered before a service came is forgotten"
    );
}

#[test]
fn a_grant_outlives_changes_of_the_manifest() {
    let mut manifests = manifests(&[service("a", 80, &[])]);
    manifests.grant([(name("a"), Some(ips(&["192.0.2.1"])))]);
    assert_eq!(update(&mut manifests, &[service("a", 81, &[])]), ["a:81 192.0.2.1"]);
    assert_eq!(update(&mut manifests, &[service("a", 81, &["192.0.2.7"])]), [""; 0], "the status has no say");
    assert_eq!(update(&mut manifests, &[service("a", 0, &[])]), [""; 0], "refused: as it last was");
    assert_eq!(update(&mut manifests, &[service("a", 82, &["192.0.2.8"])]), ["a:82 192.0.2.1"]);
    assert_eq!(told(&manifests.grant([(name("a"), None)])), ["a:82 192.0.2.8"]);
}

#[test]
fn a_grant_of_what_the_status_names_is_a_grant_nevertheless() {
    let mut manifests = manifests(&[service("a", 80, &["192.0.2.1"])]);
    assert_eq!(told(&manifests.grant([(name("a"), Some(ips(&["192.0.2.1"])))])), [""; 0]);
    assert_eq!(update(&mut manifests, &[service("a", 80, &[])]), [""; 0]);
    assert_eq!(told(&manifests.grant([(name("a"), None)])), ["a:80 "]);
}

#[test]
fn a_grant_goes_with_its_service() {
    let mut manifests = manifests(&[service("a", 80, &[])]);
    manifests.grant([(name("a"), Some(ips(&["192.0.2.1"])))]);
    assert_eq!(update(&mut manifests, &[]), ["-a"]);
    assert_eq!(update(&mut manifests, &[service("a", 80, &[])]), ["a:80 "]);
}

#[test]
fn an_address_that_moves_is_given_up_first() {
    let mut manifests = manifests(&[service("a", 80, &[]), service("b", 80, &[])]);
    manifests.grant([(name("a"), Some(ips(&["192.0.2.1"]))), (name("b"), Some(ips(&["192.0.2.2"])))]);
    let swap = [(name("a"), Some(ips(&["192.0.2.2"]))), (name("b"), Some(ips(&["192.0.2.1"])))];
    assert_eq!(told(&manifests.grant(swap)), ["a:80 ", "b:80 ", "a:80 192.0.2.2", "b:80 192.0.2.1"]);
}

#[test]
fn a_rejected_snapshot_leaves_grants_alone() {
    let mut manifests = manifests(&[service("a", 80, &[])]);
    manifests.grant([(name("a"), Some(ips(&["192.0.2.1"])))]);
    assert_eq!(update(&mut manifests, &["x: [".to_owned()]), [""; 0]);
    assert_eq!(current(&manifests), ["a:80 192.0.2.1"]);
}

/// What one service is like in the manifest: its port, 0 for one that is refused, and whether its status names an
/// address.
type Written = BTreeMap<u8, (u16, bool)>;

#[derive(Clone, Debug)]
enum Step {
    Update(Written),
    /// Which service has which of a few addresses; the others have none, or (`true`) what their status says.
    Grant(BTreeMap<u8, u8>, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let written = btree_map(0..4u8, (prop_oneof![4 => 80..83u16, 1 => Just(0)], any::<bool>()), 0..4);
    let grant = (btree_map(0..4u8, 0..5u8, 0..5), any::<bool>());
    let step = prop_oneof![written.prop_map(Step::Update), grant.prop_map(|(owners, rest)| Step::Grant(owners, rest))];
    vec(step, 1..12)
}

/// The naive reading of the rules.
#[derive(Default)]
struct Reference {
    said: Written,
    grants: BTreeMap<u8, Vec<IpAddr>>,
}

impl Reference {
    fn update(&mut self, written: &Written) {
        let kept = |(&name, &(port, status)): (&u8, &(u16, bool))| match (port, self.said.get(&name)) {
            (0, None) => None,
            (0, Some(&before)) => Some((name, before)),
            (port, _) => Some((name, (port, status))),
        };
        self.said = written.iter().filter_map(kept).collect();
        self.grants.retain(|name, _| self.said.contains_key(name));
    }

    fn services(&self) -> Vec<String> {
        let service = |(name, (port, status)): (&u8, &(u16, bool))| {
            let of_status = if *status { vec![status_of(*name)] } else { vec![] };
            let addresses = self.grants.get(name).unwrap_or(&of_status);
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            format!("service-{name}:{port} {}", addresses.join(","))
        };
        self.said.iter().map(service).collect()
    }
}

fn status_of(service: u8) -> IpAddr {
    [192, 0, 2, service].into()
}

fn answers(owners: &BTreeMap<u8, u8>, rest_of_status: bool) -> BTreeMap<u8, Option<Vec<IpAddr>>> {
    let owned = |service| -> Vec<IpAddr> {
        owners.iter().filter(|(_, owner)| **owner == service).map(|(last, _)| [198, 51, 100, *last].into()).collect()
    };
    let answer = |service| match owned(service) {
        none if none.is_empty() && rest_of_status => None,
        some => Some(some),
    };
    (0..5).map(|service| (service, answer(service))).collect()
}

/// Follows changes; no port of an address may have two owners in between.
fn follow(mirror: &mut BTreeMap<String, String>, changes: &[Change]) {
    for change in changes {
        match change {
            Change::UpsertService(service) => {
                let before = mirror.insert(service.name.name().to_owned(), shown(service));
                assert_ne!(before.as_deref(), Some(shown(service).as_str()), "a change that changes nothing");
            }
            Change::RemoveService(name) => assert!(mirror.remove(name.name()).is_some(), "{name}"),
            _ => {}
        }
        let mut all: Vec<_> = mirror.values().flat_map(|shown| claims(shown)).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "two owners: {mirror:?}");
    }
}

/// The port and every address of a service.
fn claims(shown: &str) -> impl Iterator<Item = (&str, &str)> {
    let (service, addresses) = shown.split_once(' ').unwrap();
    let port = service.split_once(':').unwrap().1;
    addresses.split(',').filter(|address| !address.is_empty()).map(move |address| (port, address))
}

proptest! {
    #[test]
    fn whatever_is_written_and_granted_services_have_what_the_rules_say(steps in steps()) {
        let mut manifests = Manifests::new(SourceName("manifests".into())).allocating();
        let (mut reference, mut mirror) = (Reference::default(), BTreeMap::new());
        for step in steps {
            let changes = match &step {
                Step::Update(written) => {
                    reference.update(written);
                    let text = written.iter().map(|(name, (port, status))| {
                        let status = status.then(|| status_of(*name).to_string());
                        service(&format!("service-{name}"), *port, status.as_deref().as_slice())
                    });
                    manifests.update(Snapshot::parse("x.yaml", &text.collect::<String>())).changes
                }
                Step::Grant(owners, rest) => {
                    let answers = answers(owners, *rest);
                    for (name, answer) in answers.iter().filter(|(name, _)| reference.said.contains_key(name)) {
                        match answer {
                            Some(addresses) => drop(reference.grants.insert(*name, addresses.clone())),
                            None => drop(reference.grants.remove(name)),
                        }
                    }
                    let named = |(number, answer)| (name(&format!("service-{number}")), answer);
                    let answers: Vec<_> = answers.into_iter().map(named).collect();
                    let changes = manifests.grant(answers.clone());
                    prop_assert!(manifests.grant(answers).is_empty());
                    changes
                }
            };
            follow(&mut mirror, &changes);
            prop_assert_eq!(current(&manifests), reference.services());
            prop_assert!(mirror.values().eq(&reference.services()), "{:?}", mirror);
        }
    }
}
