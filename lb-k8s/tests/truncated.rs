//! A file that is cut anywhere is an error or a valid beginning, never a panic.

use lb_core::{model::Change, name::SourceName};
use lb_k8s::{Manifests, Snapshot, SnapshotError};

const YAML: &str = r#"# A comment
---
apiVersion: v1
kind: Service
metadata:
  name: "web"
  annotations: {lb/algorithm: maglev, "lb/maglev-table-size": '251'}
spec:
  clusterIPs: [10.96.0.10, "fd00::10"]
  sessionAffinity: ClientIP
  ports:
  - {name: http, port: 80, protocol: TCP}
  - name: größe
    port: 81
--- # another
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: &labels
    kubernetes.io/service-name: web
  annotations: *labels
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [10.0.0.1]
  conditions: {ready: true}
- addresses:
  - 10.0.0.2
  nodeName: >-
    node-1
...
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {spec: {containers: [{name: c}]}}}
"#;

const JSON: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wéb\n"}, "spec": {"clusterIP": "10.96.0.10",
   "ports": [{"port": 80, "targetPort": "http"}], "publishNotReadyAddresses": true, "sessionAffinityConfig": null}},
  {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}, "x": -1.5e3}
]}
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}"#;

/// Every beginning of `text`, as far as it is text.
fn beginnings(text: &str) -> impl Iterator<Item = &str> {
    (0..text.len()).filter_map(|end| text.get(..end))
}

fn check(file: &str, text: &str) -> (usize, usize) {
    let (mut errors, mut prefixes) = (0, 0);
    for beginning in beginnings(text) {
        match Snapshot::parse(file, beginning) {
            Ok(snapshot) => {
                prefixes += 1;
                assert!(snapshot.services().count() <= 1 && snapshot.workloads().count() <= 1);
            }
            Err(error) => {
                errors += 1;
                assert!(error.to_string().starts_with(file), "{error}");
            }
        }
    }
    (errors, prefixes)
}

#[test]
fn yaml_that_is_cut_is_an_error_or_a_beginning() {
    assert!(Snapshot::parse("web.yaml", &YAML.replace("größe", "size")).unwrap().report().is_clean());
    let (errors, prefixes) = check("web.yaml", YAML);
    assert!(errors > 100 && prefixes > 100, "{errors} errors, {prefixes} beginnings");
}

#[test]
fn json_that_is_cut_is_an_error() {
    let whole = JSON.find("\n{").unwrap();
    let accepted: Vec<_> =
        beginnings(JSON).filter(|text| Snapshot::parse("x.json", text).is_ok()).map(str::len).collect();
    assert_eq!(accepted, [0, whole, whole + 1]);
    check("x.json", JSON);
}

#[test]
fn bytes_that_are_cut_inside_of_a_character_are_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.yaml");
    let middle = YAML.find('ö').unwrap() + 1;
    std::fs::write(&path, &YAML.as_bytes()[..middle]).unwrap();
    assert!(matches!(Snapshot::read(&[&path]), Err(SnapshotError::NotUtf8 { .. })));
}

#[test]
fn the_last_good_state_survives_every_cut_that_is_an_error() {
    let mut manifests = Manifests::new(SourceName("manifests".into()));
    let good = YAML.replace("größe", "size");
    manifests.update(Snapshot::parse("web.yaml", &good));
    for beginning in beginnings(&good) {
        let snapshot = Snapshot::parse("web.yaml", beginning);
        let is_error = snapshot.is_err();
        let batch = manifests.update(snapshot);
        assert!(!is_error || batch.changes.is_empty());
        assert!(!batch.changes.iter().any(|change| matches!(change, Change::InitStart(_) | Change::InitDone(_))));
        manifests.update(Snapshot::parse("web.yaml", &good));
        assert_eq!(manifests.endpoint_slices().next().map(|slice| slice.endpoints.len()), Some(2));
    }
}
