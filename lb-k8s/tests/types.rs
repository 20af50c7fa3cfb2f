//! A field of another type than its kind's refuses its object alone, which stays as it last was.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use lb_core::{model::Change, name::SourceName};
use lb_ipam::{Allocator, Edit, MemoryLedger, Settings, Timestamp};
use lb_k8s::{Batch, Instead, Manifests, Snapshot, SnapshotError, write};
use serde_json::{Value, json};

const GOOD: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: good}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";

fn manifests() -> Manifests {
    Manifests::new(SourceName("manifests".into())).allocating()
}

fn update(manifests: &mut Manifests, text: &str) -> Batch {
    manifests.update(Snapshot::parse("x.yaml", text))
}

/// What is said about an object that stands behind a good one.
fn refused(text: &str) -> String {
    let mut manifests = manifests();
    let batch = update(&mut manifests, &format!("{GOOD}---\n{text}"));
    assert!(batch.report.rejected.is_none(), "{text}: {:?}", batch.report.rejected);
    assert_eq!(manifests.services().count(), 1, "the other object is taken over");
    assert_eq!(batch.report.refused.len(), 1, "{text}: {:?}", batch.report);
    batch.report.refused[0].to_string()
}

const CILIUM: &str = "apiVersion: cilium.io/v2\nkind: CiliumLoadBalancerIPPool";
const METALLB: &str = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool";
const OURS: &str = "apiVersion: lb/v1\nkind: IPPool";

#[test]
fn the_field_what_was_found_and_what_was_expected_are_named() {
    for (kind, spec, says) in [
        (
            METALLB,
            "{addresses: 10.0.0.0/24}",
            "x.yaml:9:19: document 2, IPAddressPool default/blue, field `spec.addresses`: invalid type: string \"10.0.0.0/24\", \
             expected a sequence",
        ),
        (
            METALLB,
            "{addresses: [10.0.0.0/24], serviceAllocation: {namespaces: red}}",
            "x.yaml:9:66: document 2, IPAddressPool default/blue, field `spec.serviceAllocation.namespaces`: invalid type: \
             string \"red\", expected a sequence",
        ),
        (
            CILIUM,
            "{blocks: [10.0.0.0/24]}",
            "x.yaml:9:17: document 2, CiliumLoadBalancerIPPool blue, field `spec.blocks[0]`: invalid type: string \
             \"10.0.0.0/24\", expected a mapping with `cidr`, or `start` and maybe `stop`",
        ),
        (
            CILIUM,
            "{serviceSelector: {matchLabels: {a.b/x: y, c.d/e: z}}}",
            "x.yaml:9:47: document 2, CiliumLoadBalancerIPPool blue, field `spec.serviceSelector.matchLabels[a.b/x]`: invalid \
             type: boolean `true`, expected a string",
        ),
        (
            OURS,
            "{blocks: [10], priority: 1}",
            "x.yaml:9:17: document 2, IPPool blue, field `spec.blocks[0]`: invalid type: integer `10`, expected a string",
        ),
        (
            OURS,
            "{allowFirstLastIPs: 7}",
            "x.yaml:9:27: document 2, IPPool blue, field `spec.allowFirstLastIPs`: invalid type: integer `7`, expected Yes, \
             No, true or false",
        ),
        (
            OURS,
            "{priority: '7'}",
            "x.yaml:9:18: document 2, IPPool blue, field `spec.priority`: invalid type: string \"7\", expected a whole number",
        ),
        (OURS, "7", "x.yaml:9:7: document 2, IPPool blue, field `spec`: invalid type: integer `7`, expected a mapping"),
    ] {
        let pool = format!("{kind}\nmetadata: {{name: blue}}\nspec: {spec}\n");
        assert_eq!(refused(&pool), format!("{says}; it allocates nothing until that is corrected"), "{spec}");
    }
}

#[test]
fn metadata_may_be_wrong_too() {
    for (rest, says) in [
        (
            "labels: {x: y}",
            "x.yaml:8:36: document 2, IPPool blue, field `metadata.labels.x`: invalid type: boolean `true`, expected a string",
        ),
        (
            "labels: [x]",
            "x.yaml:8:32: document 2, IPPool blue, field `metadata.labels`: invalid type: sequence, expected a map",
        ),
        (
            "creationTimestamp: yesterday",
            "x.yaml:8:43: document 2, IPPool blue, field `metadata.creationTimestamp`: \"yesterday\" cannot be read: failed to \
             parse four digit integer as year: invalid digit, expected 0-9 but got y",
        ),
        (
            "annotations: {lb/x: {a: b}}",
            "x.yaml:8:44: document 2, IPPool blue, field `metadata.annotations[lb/x]`: invalid type: map, expected a string",
        ),
    ] {
        let pool = format!("{OURS}\nmetadata: {{name: blue, {rest}}}\nspec: {{blocks: [10.0.0.0/24]}}\n");
        assert_eq!(refused(&pool), format!("{says}; it allocates nothing until that is corrected"));
    }
}

#[test]
fn what_was_found_does_not_hide_what_was_expected() {
    let found = "\\e[2J".repeat(1000);
    let message = refused(&format!("{OURS}\nmetadata: {{name: blue}}\nspec: {{disabled: \"{found}\"}}\n"));
    assert!(message.ends_with("…, expected a boolean; it allocates nothing until that is corrected"), "{message}");
    assert!(message.len() < 1000 && message.chars().all(|c| !c.is_control()), "{message:?}");
}

#[test]
fn without_a_name_to_read_nobody_knows_what_stays_so_all_is_rejected() {
    let rejected = |metadata: &str| {
        let mut manifests = manifests();
        update(&mut manifests, GOOD);
        let text = GOOD.replace("{name: good}", metadata);
        let batch = update(&mut manifests, &text);
        assert_eq!(manifests.services().count(), 1, "the last good state stays");
        let rejected = batch.report.rejected.clone().unwrap();
        assert!(matches!(&*rejected, SnapshotError::Type(_)), "{rejected}");
        rejected.to_string()
    };
    assert_eq!(
        rejected("{name: 7}"),
        "x.yaml:3:18: document 1, Service without a name, field `metadata.name`: invalid type: integer `7`, expected a string"
    );
    for metadata in ["7", "[]", "{name: good, namespace: 7}", "{name: [good]}"] {
        rejected(metadata);
    }
    let nameless = refused("apiVersion: lb/v1\nkind: IPPool\nspec: 7\n");
    assert!(nameless.ends_with("IPPool without a name, field `metadata.name`: an object needs a name; it is left out"));
}

#[test]
fn what_is_none_of_our_business_is_skipped_whatever_its_types() {
    let slice = |labels: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: {labels}}}\nendpoints: 7\n"
        )
    };
    let service =
        format!("{}---\n", GOOD.replace("good}", "x, labels: {service.kubernetes.io/service-proxy-name: x, y: 1}}"));
    for text in [
        service,
        slice("{}"),
        slice("{a: 1}"),
        slice("{kubernetes.io/service-name: web, service.kubernetes.io/headless: true}"),
    ] {
        let report = Snapshot::parse("x.yaml", &text).unwrap().report();
        assert_eq!((report.skipped.len(), report.refused.len()), (1, 0), "{text}");
    }
    for labels in ["{kubernetes.io/service-name: 7}", "{kubernetes.io/service-name: web, a: 1}", "[a]", "7"] {
        let report = Snapshot::parse("x.yaml", &slice(labels)).unwrap().report();
        assert_eq!((report.skipped.len(), report.refused.len()), (0, 1), "{labels}");
    }
}

#[test]
fn a_pool_stays_as_it_last_was_or_comes_disabled() {
    let text = |blocks: &str| format!("{OURS}\nmetadata: {{name: blue}}\nspec: {{blocks: {blocks}}}\n");
    let (good, wrong) = (text("[10.0.0.0/24]"), text("10.0.0.0/24"));
    let mut there = manifests();
    update(&mut there, &good);
    let batch = update(&mut there, &wrong);
    assert!(batch.edits.is_empty(), "{:?}", batch.edits);
    assert_eq!(batch.report.refused[0].instead, Instead::LastGood);
    assert_eq!(there.pools().next().unwrap().blocks[0].to_string(), "10.0.0.0/24");

    let mut new = manifests();
    let batch = update(&mut new, &wrong);
    assert!(matches!(batch.edits.as_slice(), [Edit::UpsertPool(pool)] if pool.disabled), "{:?}", batch.edits);
    assert_eq!(batch.report.refused[0].instead, Instead::Disabled);
    let batch = update(&mut new, &good);
    assert!(matches!(batch.edits.as_slice(), [Edit::UpsertPool(pool)] if !pool.disabled), "{:?}", batch.edits);
}

#[test]
fn the_status_of_a_pool_says_what_is_wrong() {
    let (blocks, labels) =
        ("{name: blue}\nspec: {blocks: 10.0.0.0/24}", "{name: blue, labels: [a]}\nspec: {blocks: [10.0.0.0/24]}");
    for (rest, total, says) in [
        (blocks, 0, "field `spec.blocks`: invalid type: string \"10.0.0.0/24\", expected a sequence"),
        (labels, 256, "field `metadata.labels`: invalid type: sequence, expected a map"),
    ] {
        let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
        let batch = update(&mut manifests(), &format!("{OURS}\nmetadata: {rest}\n"));
        batch.edits.into_iter().for_each(|edit| allocator.handle_edit(edit));
        assert!(allocator.reconcile(Timestamp::default()).writes.is_empty());
        let status = allocator.pool(&"blue".into()).unwrap();
        assert_eq!(status.problem.as_ref().map(ToString::to_string).as_deref(), Some(says));
        assert_eq!(status.counts.total, total, "what can be read of it is there");
        let conditions = format!("{:?}", write::pool_status(&status, Timestamp::default()));
        assert!(conditions.contains("lb/PoolInvalid"), "{conditions}");
    }
}

#[test]
fn with_too_many_annotations_it_stays_as_well() {
    let good =
        [GOOD.to_owned(), format!("{OURS}\nmetadata: {{name: blue}}\nspec: {{blocks: [10.0.0.0/24]}}\n")].join("---\n");
    let annotations = format!("annotations: {{a: '{}'}}}}", "x".repeat(lb_k8s::limits::MAX_ANNOTATION_BYTES));
    let wrong =
        good.replace("good}", &format!("good, {annotations}")).replace("blue}", &format!("blue, {annotations}"));
    let mut there = manifests();
    update(&mut there, &good);
    let batch = update(&mut there, &wrong);
    assert!(batch.changes.is_empty() && batch.edits.is_empty(), "{:?} {:?}", batch.changes, batch.edits);
    assert!(batch.report.refused.iter().all(|refusal| refusal.instead == Instead::LastGood), "{:?}", batch.report);
    let edits = update(&mut manifests(), &wrong).edits;
    let [Edit::UpsertPool(pool), Edit::KeepService(_)] = edits.as_slice() else { panic!("{edits:?}") };
    assert!(pool.disabled && pool.refused.is_some() && pool.blocks.len() == 1);
}

/// Objects of every kind.
fn objects() -> Vec<Value> {
    let pod =
        json!({ "nodeName": "n", "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 80 }] }] });
    let template = json!({ "metadata": { "labels": { "app": "web" } }, "spec": pod });
    let workload = json!({ "replicas": 1, "selector": { "matchLabels": { "app": "web" } }, "template": template });
    let selector = json!({
        "matchLabels": { "a": "b" }, "matchExpressions": [{ "key": "c", "operator": "In", "values": ["d"] }],
    });
    let port = json!({ "name": "http", "protocol": "TCP", "port": 80, "targetPort": "http" });
    let endpoint = json!({
        "addresses": ["10.0.0.1"], "conditions": { "ready": true }, "hints": { "forZones": [{ "name": "z" }] },
    });
    let object = |api_version: &str, kind: &str, rest: Value| {
        let mut object = json!({ "apiVersion": api_version, "kind": kind });
        let metadata = json!({
            "name": "web", "labels": { "kubernetes.io/service-name": "web" }, "annotations": { "a": "b" },
            "creationTimestamp": "2026-11-21T14:49:00Z",
        });
        object.as_object_mut().unwrap().insert("metadata".into(), metadata);
        object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        object
    };
    vec![
        object(
            "v1",
            "Service",
            json!({
                "spec": {
                    "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [port],
                    "selector": { "app": "web" }, "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10 } },
                },
                "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1", "ipMode": "VIP" }] } },
            }),
        ),
        object(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({ "addressType": "IPv4", "ports": [port], "endpoints": [endpoint] }),
        ),
        object("v1", "Namespace", json!({})),
        object("v1", "Pod", json!({ "spec": pod })),
        object("apps/v1", "Deployment", json!({ "spec": workload })),
        object("apps/v1", "StatefulSet", json!({ "spec": workload })),
        object(
            "cilium.io/v2",
            "CiliumLoadBalancerIPPool",
            json!({
                "spec": { "blocks": [{ "cidr": "10.0.0.0/24" }], "serviceSelector": selector, "allowFirstLastIPs": "Yes", "disabled": false },
            }),
        ),
        object(
            "metallb.io/v1beta1",
            "IPAddressPool",
            json!({
                "spec": {
                    "addresses": ["10.0.0.0/24"], "autoAssign": true, "avoidBuggyIPs": true,
                    "serviceAllocation": {
                        "priority": 1, "namespaces": ["web"], "serviceSelectors": [selector], "namespaceSelectors": [selector],
                    },
                },
            }),
        ),
        object(
            "lb/v1",
            "IPPool",
            json!({ "spec": { "blocks": ["10.0.0.0/24"], "avoid": ["10.0.0.1"], "serviceSelectors": [selector], "priority": 1 } }),
        ),
    ]
}

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                places(value, &format!("{at}/{}", key.replace('/', "~1")), found);
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| places(item, &format!("{at}/{index}"), found))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Whatever stands in whatever place of whatever object: the other object is taken over, and the object is still there.
#[test]
fn any_value_in_any_place_refuses_one_object_at_most() {
    let others = [
        json!(null),
        json!(true),
        json!(7),
        json!(-1.5),
        json!("x y"),
        json!([]),
        json!({}),
        json!([[7]]),
        json!({"x": 1}),
    ];
    let good = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "good" }, "spec": { "clusterIP": "10.96.0.9", "ports": [{ "port": 80 }] } });
    let (mut taken, mut refused) = (0, 0);
    for object in objects() {
        let mut all = Vec::new();
        places(&object, "", &mut all);
        let is_known = |at: &&String| !["", "/apiVersion", "/kind"].contains(&at.as_str());
        for (at, other) in all.iter().filter(is_known).flat_map(|at| others.iter().map(move |other| (at, other))) {
            let mut changed = object.clone();
            *changed.pointer_mut(at).unwrap() = other.clone();
            let case = format!("{} {at} = {other}", object["kind"]);
            let mut manifests = manifests();
            let first = manifests.update(Snapshot::parse("x.json", &format!("{good}{object}")));
            let is_used =
                !["Namespace", "Pod", "Deployment", "StatefulSet"].contains(&object["kind"].as_str().unwrap());
            let is_skipped = !first.report.skipped.is_empty();
            assert!(first.report.refused.is_empty() && !(is_used && is_skipped), "{:?}", first.report);
            let before = (manifests.services().count(), manifests.endpoint_slices().count(), manifests.pools().count());
            let batch = manifests.update(Snapshot::parse("x.json", &format!("{good}{changed}")));
            assert!(manifests.services().any(|service| service.name.name() == "good"), "{case}");
            let names_itself = !["/metadata", "/metadata/name", "/metadata/namespace"].contains(&at.as_str());
            if !names_itself {
                continue;
            }
            assert!(batch.report.rejected.is_none(), "{case}: {:?}", batch.report.rejected);
            assert!(batch.report.refused.len() <= 1, "{case}: {:?}", batch.report.refused);
            if batch.report.refused.is_empty() {
                taken += 1;
                continue;
            }
            refused += 1;
            assert!(
                batch.changes.is_empty() && batch.edits.is_empty(),
                "{case}: {:?} {:?}",
                batch.changes,
                batch.edits
            );
            let after = (manifests.services().count(), manifests.endpoint_slices().count(), manifests.pools().count());
            assert_eq!(before, after, "{case}");
        }
    }
    assert!(taken > 200 && refused > 1000, "{taken} taken, {refused} refused");
}

#[test]
fn of_two_the_first_one_counts_even_if_it_is_wrong() {
    let (wrong, right) = (GOOD.replace("port: 80", "port: http"), GOOD.replace("10.96.0.9", "10.96.0.1"));
    let mut manifests = manifests();
    update(&mut manifests, GOOD);
    let batch = update(&mut manifests, &format!("{wrong}---\n{right}"));
    assert_eq!(batch.report.refused.len(), 2, "{:?}", batch.report);
    assert!(!batch.changes.iter().any(|change| matches!(change, Change::UpsertService(_))), "{:?}", batch.changes);
}
