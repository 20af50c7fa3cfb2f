//! From one good state to the next.

use std::{collections::BTreeMap, fs};

use lb_core::{
    datapath::Capabilities,
    model::{Change, Model, Settings},
    name::{ServiceName, SourceName},
    node::NodeFacts,
};
use lb_k8s::{Batch, Manifests, Snapshot, SnapshotError};

fn manifests() -> Manifests {
    Manifests::new(SourceName("manifests".into()))
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn slice(name: &str, service: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: \
         [{{addresses: [{ip}]}}]\n"
    )
}

fn parse(text: &str) -> Result<Snapshot, SnapshotError> {
    Snapshot::parse("x.yaml", text)
}

/// The changes, one word each.
fn told(batch: &Batch) -> Vec<String> {
    let told = |change: &Change| match change {
        Change::InitStart(source) => format!("start {source}"),
        Change::InitDone(source) => format!("done {source}"),
        Change::UpsertService(service) => format!("+{}", service.name),
        Change::RemoveService(name) => format!("-{name}"),
        Change::ReplaceEndpoints(slice) => format!("+{}", slice.name),
        Change::RemoveEndpoints(name) => format!("-{name}"),
        other => format!("{other:?}"),
    };
    batch.changes.iter().map(told).collect()
}

#[test]
fn the_first_listing_is_framed() {
    let mut manifests = manifests();
    let batch = manifests.update(parse(&(service("web", "10.96.0.1") + &slice("web-1", "web", "10.0.0.1"))));
    assert_eq!(told(&batch), ["start manifests", "+default/web", "+default/web-1", "done manifests"]);
    assert!(batch.report.is_clean());
    let batch = manifests.update(parse(&(service("web", "10.96.0.1") + &slice("web-1", "web", "10.0.0.1"))));
    assert_eq!(told(&batch), [""; 0]);
}

#[test]
fn a_first_listing_that_fails_is_not_done() {
    let mut manifests = manifests();
    let batch = manifests.update(parse("x: ["));
    assert_eq!(told(&batch), ["start manifests"]);
    assert!(batch.report.rejected.is_some());
    assert_eq!(told(&manifests.update(parse("x: ["))), [""; 0]);
    let batch = manifests.update(parse(""));
    assert_eq!(told(&batch), ["done manifests"]);
    assert!(batch.report.is_clean());
}

#[test]
fn only_what_changed_is_told() {
    let mut manifests = manifests();
    let all = [
        service("a", "10.96.0.1"),
        service("b", "10.96.0.2"),
        slice("a-1", "a", "10.0.0.1"),
        slice("b-1", "b", "10.0.0.2"),
    ];
    manifests.update(parse(&all.concat()));
    let batch = manifests
        .update(parse(&(service("b", "10.96.0.9") + &slice("b-1", "b", "10.0.0.3") + &slice("b-2", "b", "10.0.0.4"))));
    assert_eq!(told(&batch), ["-default/a", "+default/b", "+default/b-1", "+default/b-2", "-default/a-1"]);
}

#[test]
fn a_rejected_snapshot_changes_nothing() {
    let mut manifests = manifests();
    manifests.update(parse(&service("web", "10.96.0.1")));
    let batch = manifests.update(parse("a: 1\na: 2\n"));
    assert_eq!(told(&batch), [""; 0]);
    assert!(batch.report.rejected.as_ref().unwrap().to_string().starts_with("x.yaml:2:1: document 1: "));
    assert_eq!(manifests.services().count(), 1);
    assert!(manifests.update(parse(&service("web", "10.96.0.1"))).report.rejected.is_none());
}

#[test]
fn a_refused_object_keeps_its_last_good_state() {
    let mut manifests = manifests();
    let good = service("a", "10.96.0.1") + &service("b", "10.96.0.2") + &slice("a-1", "a", "10.0.0.1");
    let bad =
        service("a", "10.96.0.300") + &service("b", "10.96.0.3") + &slice("a-1", "a", "127.0.0.1") + &service("c", "x");
    manifests.update(parse(&good));
    let batch = manifests.update(parse(&bad));
    assert_eq!(told(&batch), ["+default/b"]);
    let messages: Vec<_> = batch.report.refused.iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "x.yaml:5:19: document 1, Service default/a, field `spec.clusterIP`: \"10.96.0.300\" is not an IP address; its \
             last good state stays",
            "x.yaml:17:26: document 3, EndpointSlice default/a-1, field `endpoints[0].addresses[0]`: 127.0.0.1 is a \
             loopback address and cannot be served; its last good state stays",
            "x.yaml:22:19: document 4, Service default/c, field `spec.clusterIP`: \"x\" is not an IP address; it is left \
             out",
        ]
    );
    assert_eq!(told(&manifests.update(parse(&bad))), [""; 0], "refused again, kept again");
    assert_eq!(manifests.services().next().unwrap().cluster_ips[0].to_string(), "10.96.0.1");
    assert_eq!(told(&manifests.update(parse(&service("b", "10.96.0.3")))), ["-default/a", "-default/a-1"]);
}

#[test]
fn directories_are_reloaded() {
    let directory = tempfile::tempdir().unwrap();
    let mut manifests = manifests();
    fs::write(directory.path().join("a.yaml"), service("a", "10.96.0.1")).unwrap();
    assert_eq!(told(&manifests.reload(&[directory.path()])).len(), 3);
    fs::write(directory.path().join("b.yaml"), service("b", "10.96.0.2")).unwrap();
    assert_eq!(told(&manifests.reload(&[directory.path()])), ["+default/b"]);
    fs::write(directory.path().join("b.yaml"), service("b", "10.96.0.3")).unwrap();
    assert_eq!(told(&manifests.reload(&[directory.path()])), ["+default/b"]);
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    assert_eq!(told(&manifests.reload(&[directory.path()])), ["-default/a"]);
    fs::write(directory.path().join("b.yaml"), "x: [").unwrap();
    let batch = manifests.reload(&[directory.path()]);
    assert_eq!((told(&batch).len(), batch.report.unread.len()), (0, 1), "what the file held stays");
    fs::remove_dir_all(directory.path()).unwrap();
    let batch = manifests.reload(&[directory.path()]);
    assert_eq!((told(&batch).len(), batch.report.rejected.is_some()), (0, true), "a missing directory is no empty one");
    assert_eq!(manifests.services().count(), 1);
}

#[test]
fn addresses_change_hands_in_one_batch() {
    let mut manifests = manifests();
    let mut model = Model::new(Settings::default(), Capabilities::all("memory"));
    let snapshots: [&[(&str, &str)]; 4] = [
        &[("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")],
        &[("a", "10.96.0.2"), ("b", "10.96.0.3"), ("c", "10.96.0.1")],
        &[("a", "10.96.0.3"), ("d", "10.96.0.2"), ("c", "10.96.0.9")],
        &[("d", "10.96.0.3"), ("a", "10.96.0.2")],
    ];
    for services in snapshots {
        let text: String = services.iter().map(|(name, ip)| service(name, ip)).collect();
        for change in manifests.update(parse(&text)).changes {
            model.apply(change).unwrap();
        }
        let owners: BTreeMap<_, _> =
            model.owners().map(|(addr, owner)| (addr.ip.to_string(), owner.port.service.clone())).collect();
        let wanted = services.iter().map(|(name, ip)| ((*ip).to_owned(), ServiceName::new("default", name)));
        assert_eq!(owners, wanted.collect());
    }
}

#[test]
fn a_service_is_served_no_more_and_again_as_its_type_and_labels_say() {
    let shapes = [
        "metadata: {name: web}\nspec: {type: ExternalName, externalName: example.com}",
        "metadata: {name: web}\nspec: {clusterIP: None, ports: [{port: 80}]}",
        "metadata: {name: web, labels: {service.kubernetes.io/headless: ''}}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}",
        "metadata: {name: web, labels: {service.kubernetes.io/service-proxy-name: mesh}}\nspec: {clusterIP: 10.96.0.1, ports: \
         [{port: 80}]}",
    ];
    let served =
        "metadata: {name: web}\nspec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}";
    let (mut manifests, mut model) = (manifests(), Model::new(Settings::default(), Capabilities::all("test")));
    let node = NodeFacts { ips: vec!["172.18.0.2".parse().unwrap()], ..NodeFacts::default() };
    model.apply(Change::SetNode(node)).unwrap();
    let mut frontends = |shape: &str| {
        let text = format!("apiVersion: v1\nkind: Service\n{shape}\n{}", slice("web-1", "web", "10.0.0.1"));
        for change in manifests.update(parse(&text)).changes {
            model.apply(change).unwrap();
        }
        let services: Vec<_> = model.services().cloned().collect();
        services.iter().map(|service| model.frontends(service).count()).sum::<usize>()
    };
    for shape in shapes {
        assert_eq!(frontends(served), 2);
        assert_eq!(frontends(shape), 0, "{shape}");
    }
    assert_eq!(frontends(served), 2);
}
