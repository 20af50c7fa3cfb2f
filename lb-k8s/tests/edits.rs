//! What changes for whoever allocates addresses, from one good state to the next.

use std::{fs, net::IpAddr};

use lb_core::{model::Change, name::SourceName};
use lb_ipam::{Allocator, Edit, MemoryLedger, Pool, Settings, Timestamp};
use lb_k8s::{Batch, Instead, Manifests, Snapshot};

fn manifests() -> Manifests {
    Manifests::new(SourceName("manifests".into())).allocating()
}

fn pool(name: &str, block: &str) -> String {
    format!("---\napiVersion: lb/v1\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{blocks: ['{block}']}}\n")
}

fn service(name: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{type: \
         LoadBalancer, clusterIP: None, ports: [{{port: 80}}]}}\n"
    )
    .replace("clusterIP: None", "clusterIP: 10.96.0.1")
}

fn update(manifests: &mut Manifests, text: &[String]) -> Batch {
    manifests.update(Snapshot::parse("x.yaml", &text.concat()))
}

/// The edits, a few words each.
fn told(batch: &Batch) -> Vec<String> {
    let told = |edit: &Edit| match edit {
        Edit::UpsertPool(pool) => {
            let blocks: Vec<_> = pool.blocks.iter().map(ToString::to_string).collect();
            let off = if pool.disabled { " off" } else { "" };
            format!("+{} {}{off}", pool.name, blocks.join(","))
        }
        Edit::RemovePool(name) => format!("-{name}"),
        Edit::UpsertService(request) => format!("+{}", request.service),
        Edit::RemoveService(name) => format!("-{name}"),
        Edit::KeepService(name) => format!("={name}"),
        Edit::SetSettings(_) => unreachable!("manifests have no settings"),
    };
    batch.edits.iter().map(told).collect()
}

#[test]
fn what_is_gone_goes_first_and_only_what_changed_is_told() {
    let mut manifests = manifests();
    let all = [pool("a", "10.0.0.0/24"), pool("b", "10.1.0.0/24"), service("x", ""), service("w", "")];
    let batch = update(&mut manifests, &all);
    assert_eq!(told(&batch), ["+a 10.0.0.0/24", "+b 10.1.0.0/24", "+default/w", "+default/x"]);
    assert!(batch.report.is_clean(), "{:?}", batch.report);
    assert_eq!(told(&update(&mut manifests, &all)), [""; 0]);
    let next = [pool("b", "10.2.0.0/24"), pool("c", "10.0.0.0/24"), service("w", "lb/ips: 10.2.0.9"), service("z", "")];
    let batch = update(&mut manifests, &next);
    assert_eq!(told(&batch), ["-a", "+b 10.2.0.0/24", "+c 10.0.0.0/24", "-default/x", "+default/w", "+default/z"]);
    assert_eq!(manifests.pools().count(), 2);
    assert_eq!(manifests.requests().map(|request| request.service.name()).collect::<Vec<_>>(), ["w", "z"]);
}

#[test]
fn a_service_that_is_no_load_balancer_any_more_asks_for_nothing() {
    let mut manifests = manifests();
    update(&mut manifests, &[pool("a", "10.0.0.0/24"), service("x", "")]);
    let batch =
        update(&mut manifests, &[pool("a", "10.0.0.0/24"), service("x", "").replace("LoadBalancer", "ClusterIP")]);
    assert_eq!(told(&batch), ["-default/x"]);
}

#[test]
fn a_refused_pool_stays_as_it_last_was() {
    let mut manifests = manifests();
    update(&mut manifests, &[pool("a", "10.0.0.0/24"), pool("b", "10.1.0.0/24")]);
    let wrong = [pool("a", "10.0.0.9-10.0.0.1"), pool("b", "10.2.0.0/24")];
    let batch = update(&mut manifests, &wrong);
    assert_eq!(told(&batch), ["+b 10.2.0.0/24"]);
    let refused: Vec<_> = batch.report.refused.iter().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [
            "x.yaml:5:17: document 1, IPPool a, field `spec.blocks[0]`: \"10.0.0.9-10.0.0.1\" starts after it stops; swap the \
          two addresses; its last good state stays"
        ]
    );
    assert_eq!(told(&update(&mut manifests, &wrong)), [""; 0], "refused again, kept again");
    assert_eq!(manifests.pools().next(), Some(&Pool::new("a", &["10.0.0.0/24"])));
    assert_eq!(told(&update(&mut manifests, &[])), ["-a", "-b"], "gone is gone");
}

#[test]
fn a_refused_pool_that_never_was_good_gives_nothing_out() {
    let mut manifests = manifests();
    let batch = update(&mut manifests, &[pool("a", "10.0.0.9-10.0.0.1")]);
    assert_eq!(told(&batch), ["+a 10.0.0.9-10.0.0.1 off"]);
    assert_eq!(batch.report.refused[0].instead, Instead::Disabled);
    assert!(batch.report.refused[0].to_string().ends_with("; it allocates nothing until that is corrected"));
    let batch = update(&mut manifests, &[pool("a", "10.0.0.9-garbage")]);
    assert_eq!(told(&batch), ["+a 10.0.0.9-garbage off"], "there is nothing good to keep");
    assert_eq!(told(&update(&mut manifests, &[pool("a", "10.0.0.0/24")])), ["+a 10.0.0.0/24"]);
    assert_eq!(told(&update(&mut manifests, &[pool("a", "garbage")])), [""; 0]);
}

/// The restart of an agent, while a manifest is wrong.
#[test]
fn nobody_loses_an_address_because_a_pool_is_refused() {
    let reconcile = |edits: Vec<Edit>, ledger: MemoryLedger| {
        let mut allocator = Allocator::new(Settings::default(), ledger);
        edits.into_iter().for_each(|edit| allocator.handle_edit(edit));
        let outcome = allocator.reconcile(Timestamp::from_secs(1));
        (outcome, allocator)
    };
    let good = update(&mut manifests(), &[pool("a", "10.0.0.0/24"), service("x", "")]);
    let (outcome, allocator) = reconcile(good.edits, MemoryLedger::default());
    assert_eq!(outcome.writes[0].1.addresses[0].to_string(), "10.0.0.0");
    let held = allocator.into_ledger();

    let told = "status: {loadBalancer: {ingress: [{ip: 10.0.0.0}]}, conditions: [{type: cilium.io/IPAMRequestSatisfied, \
                status: 'True', reason: satisfied, message: '', lastTransitionTime: '2026-11-21T14:49:00Z'}]}\n";
    for wrong in [
        pool("a", "10.0.0.9-10.0.0.1"),
        pool("a", "garbage"),
        pool("a", "10.0.0.0/24").replace("spec: {", "spec: {priority: -1, "),
        pool("a", "10.0.0.0/24").replace("spec: {", "spec: {priority: first, "),
        pool("a", "10.0.0.0/24").replace("['10.0.0.0/24']", "10.0.0.0/24"),
        pool("a", "10.0.0.0/24").replace("name: a", "name: a, labels: {x: y}"),
        pool("a", "10.0.0.0/24").replace("spec: ", "spec: 7 # "),
        pool("a", "10.0.0.0/24").replace("spec: ", "specs: "),
        pool("a", "10.0.0.0/24")
            .replace("spec: {", "spec: {serviceSelector: {matchExpressions: [{key: a, operator: b}]}, "),
    ] {
        let batch = update(&mut manifests(), &[wrong.clone(), service("x", "") + told, service("w", "")]);
        let (outcome, allocator) = reconcile(batch.edits, held.clone());
        let x = lb_core::name::ServiceName::new("default", "x");
        let held: Vec<_> = allocator.answer(&x).into_iter().flat_map(|answer| answer.addresses()).collect();
        assert_eq!(held, [IpAddr::from([10, 0, 0, 0])], "{wrong}");
        let written: Vec<_> = outcome.writes.iter().map(|(name, _)| name.name()).collect();
        assert_eq!(written, ["w"], "{wrong}: the holder is left alone, the other one is told why it gets nothing");
    }
}

#[test]
fn a_refused_service_asks_for_what_it_last_did() {
    let mut manifests = manifests();
    update(&mut manifests, &[pool("a", "10.0.0.0/24"), service("x", "lb/ips: 10.0.0.5")]);
    let wrong = service("x", "lb/ips: 10.0.0.6").replace("port: 80", "port: 0");
    assert_eq!(told(&update(&mut manifests, &[pool("a", "10.0.0.0/24"), wrong])), [""; 0]);
    assert_eq!(manifests.requests().next().unwrap().addresses[0].to_string(), "10.0.0.5");
}

#[test]
fn a_refused_service_that_never_was_good_keeps_what_it_has() {
    let mut manifests = manifests();
    let wrong = || service("x", "lb/algorithm: fastest");
    let untyped = || service("w", "").replace("port: 80", "port: http");
    assert_eq!(
        told(&update(&mut manifests, &[wrong(), untyped(), service("v", "")])),
        ["=default/w", "=default/x", "+default/v"]
    );
    assert_eq!(told(&update(&mut manifests, &[wrong(), untyped(), service("v", "")])), [""; 0], "still refused");
    let batch = update(&mut manifests, &[service("x", ""), untyped()]);
    assert_eq!(told(&batch), ["-default/v", "+default/x"], "one is right, one is gone");
    assert_eq!(told(&update(&mut manifests, &[wrong()])), ["-default/w"], "x stays as it last was");
    assert_eq!(told(&update(&mut manifests, &[])), ["-default/x"]);
    update(&mut manifests, &[wrong()]);
    let cluster_ip = service("x", "").replace("LoadBalancer", "ClusterIP");
    assert_eq!(told(&update(&mut manifests, std::slice::from_ref(&cluster_ip))), ["-default/x"], "it asks for nothing");
    let wrong = cluster_ip.replace("port: 80", "port: 0");
    assert_eq!(told(&update(&mut manifests, &[wrong])), [""; 0], "it is known to ask for nothing");
}

#[test]
fn services_that_are_none_of_our_business_keep_nothing() {
    let mut manifests = manifests();
    let other = service("x", "").replace("name: x", "name: x, labels: {service.kubernetes.io/service-proxy-name: x}");
    let headless = service("w", "").replace("10.96.0.1", "None");
    let external = service("v", "").replace("LoadBalancer, clusterIP: 10.96.0.1", "ExternalName, externalName: a.b");
    let batch = update(&mut manifests, &[other.replace("port: 80", "port: http"), headless, external]);
    assert_eq!(told(&batch), [""; 0]);
    assert!(batch.report.refused.is_empty(), "{:?}", batch.report.refused);
    update(&mut manifests, &[service("x", "").replace("port: 80", "port: 0")]);
    assert_eq!(told(&update(&mut manifests, &[other])), ["-default/x"]);
}

#[test]
fn a_refused_namespace_leaves_pools_as_they_were() {
    let namespace =
        |labels: &str| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: red, labels: {{{labels}}}}}\n");
    let pool = "---\napiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: a}\nspec: {addresses: \
                [10.0.0.0/24], serviceAllocation: {namespaceSelectors: [{matchLabels: {team: a}}]}}\n"
        .to_owned();
    let mut running = manifests();
    update(&mut running, &[pool.clone(), namespace("team: a")]);
    let wrong = [pool.clone(), namespace("team: a, on: true")];
    let batch = update(&mut running, &wrong);
    assert_eq!(told(&batch), [""; 0]);
    let refused: Vec<_> = batch.report.refused.iter().map(ToString::to_string).collect();
    let says = [
        "field `metadata.labels.on`: invalid type: boolean `true`, expected a string; it is left out",
        "field `spec.serviceAllocation.namespaceSelectors`: namespace red is refused, so that nobody knows whether it is \
         selected; its last good state stays",
    ];
    assert!(
        refused.len() == 2 && refused.iter().zip(says).all(|(refused, says)| refused.ends_with(says)),
        "{refused:?}"
    );
    assert_eq!(
        told(&update(&mut running, &[pool.clone(), namespace("team: b")])),
        ["+a 10.0.0.0/24"],
        "nobody is selected"
    );

    let mut new = manifests();
    assert_eq!(told(&update(&mut new, &wrong)), ["+a 10.0.0.0/24 off"]);
    assert!(new.pools().all(|pool| pool.refused.is_some()));
    assert_eq!(told(&update(&mut new, &[pool, namespace("team: a")])), ["+a 10.0.0.0/24"]);
}

#[test]
fn a_rejected_snapshot_edits_nothing() {
    let mut manifests = manifests();
    update(&mut manifests, &[pool("a", "10.0.0.0/24")]);
    let broken = pool("a", "10.0.0.0/24").replace("'10.0.0.0/24']", "10.0.0.0/24");
    let batch = update(&mut manifests, &[broken]);
    assert_eq!(told(&batch), [""; 0]);
    let rejected = batch.report.rejected.as_ref().unwrap().to_string();
    assert!(rejected.starts_with("x.yaml:5:"), "{rejected}");
    assert_eq!(manifests.pools().count(), 1);
}

#[test]
fn nothing_is_edited_before_the_first_good_snapshot() {
    let mut manifests = manifests();
    let batch = manifests.update(Snapshot::parse("x.yaml", "x: ["));
    assert_eq!((told(&batch).len(), batch.changes.len()), (0, 1));
    let batch = update(&mut manifests, &[pool("a", "10.0.0.0/24")]);
    assert_eq!(told(&batch), ["+a 10.0.0.0/24"]);
    assert!(matches!(batch.changes.last(), Some(Change::InitDone(_))));
}

#[test]
fn pools_follow_the_labels_of_namespaces() {
    let namespace =
        |labels: &str| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: red, labels: {{{labels}}}}}\n");
    let pool = "---\napiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: a}\nspec: {addresses: \
                [10.0.0.0/24], serviceAllocation: {namespaceSelectors: [{matchLabels: {team: a}}]}}\n"
        .to_owned();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("pool.yaml"), pool).unwrap();
    fs::write(file("namespace.yaml"), namespace("team: b")).unwrap();
    let mut manifests = manifests();
    let values = |batch: &Batch| match batch.edits.as_slice() {
        [Edit::UpsertPool(pool)] => pool.selectors[0].match_expressions[0].values.iter().cloned().collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(values(&manifests.reload(&[directory.path()])), [""; 0]);
    fs::write(file("namespace.yaml"), namespace("team: a")).unwrap();
    assert_eq!(values(&manifests.reload_files(&[file("namespace.yaml")])), ["red"]);
    fs::write(file("namespace.yaml"), namespace("team: a, more: b")).unwrap();
    assert_eq!(told(&manifests.reload_files(&[file("namespace.yaml")])), [""; 0]);
    fs::remove_file(file("namespace.yaml")).unwrap();
    assert_eq!(values(&manifests.reload_files(&[file("namespace.yaml")])), [""; 0]);
    fs::remove_file(file("pool.yaml")).unwrap();
    assert_eq!(told(&manifests.reload_files(&[file("pool.yaml")])), ["-a"]);
}

#[test]
fn whether_somebody_allocates_is_up_to_the_caller() {
    let all = [pool("a", "10.0.0.0/24"), service("x", "lb/ips: 10.0.0.5")];
    let mut nobody = Manifests::new(SourceName("manifests".into()));
    let batch = update(&mut nobody, &all);
    assert_eq!(batch.report.unsupported.len(), 2, "{:?}", batch.report);
    assert_eq!(told(&batch), ["+a 10.0.0.0/24", "+default/x"]);
    assert!(update(&mut manifests(), &all).report.is_clean());
    assert_eq!(update(&mut manifests(), &all[1..]).report.unsupported.len(), 1, "without a pool nothing is allocated");
}
