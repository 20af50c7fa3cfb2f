//! Every limit, at it and above it. What needs the insides is tested there: `files`, `snapshot`, `open`, `document`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use lb_k8s::{Snapshot, limits};

/// What the report says about the one object of a text, or nothing.
fn refused(text: &str) -> Option<String> {
    let report = Snapshot::parse("x.json", text).unwrap().report();
    report.refused.first().map(ToString::to_string)
}

fn service(name: &str, metadata: &str, ports: usize) -> String {
    let ports: Vec<_> = (1..=ports).map(|port| format!(r#"{{"name": "p{port}", "port": {port}}}"#)).collect();
    format!(
        r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "{name}"{metadata}}},
            "spec": {{"clusterIP": "10.96.0.1", "ports": [{}]}}}}"#,
        ports.join(", ")
    )
}

fn slice(name: &str, ports: usize, endpoints: usize) -> String {
    let ports: Vec<_> = (1..=ports).map(|port| format!(r#"{{"name": "p{port}", "port": {port}}}"#)).collect();
    let endpoint = |n: usize| format!(r#"{{"addresses": ["10.{}.{}.1"]}}"#, n / 250, n % 250);
    let endpoints: Vec<_> = (0..endpoints).map(endpoint).collect();
    format!(
        r#"{{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {{"name": "{name}", "labels": {{"kubernetes.io/service-name": "web"}}}},
            "ports": [{}], "endpoints": [{}]}}"#,
        ports.join(", "),
        endpoints.join(", ")
    )
}

/// `at` is taken, `above` refused with a message that contains `says`.
fn check(at: &str, above: &str, says: &str) {
    assert_eq!(refused(at), None);
    let message = refused(above).unwrap();
    assert!(message.contains(says), "{message}");
}

#[test]
fn ports() {
    check(&service("web", "", limits::MAX_PORTS), &service("web", "", limits::MAX_PORTS + 1), "more than 20000 ports");
    check(&slice("web-1", limits::MAX_PORTS, 1), &slice("web-1", limits::MAX_PORTS + 1, 1), "more than 20000 ports");
}

#[test]
fn endpoints() {
    let (at, above) = (limits::MAX_ENDPOINTS, limits::MAX_ENDPOINTS + 1);
    check(&slice("web-1", 1, at), &slice("web-1", 1, above), "more than 1000 endpoints");
}

#[test]
fn names() {
    let label = |length| "a".repeat(length);
    let (at, above) = (limits::MAX_LABEL_LENGTH, limits::MAX_LABEL_LENGTH + 1);
    check(&service(&label(at), "", 1), &service(&label(above), "", 1), "is not a DNS label (1 to 63");
    // Labels of 63 bytes and dots, the last one shorter.
    let name = |length: usize| format!("{}{}", format!("{}.", label(63)).repeat(3), label(length - 3 * 64));
    let (at, above) = (limits::MAX_NAME_LENGTH, limits::MAX_NAME_LENGTH + 1);
    assert_eq!(name(at).len(), at);
    check(&slice(&name(at), 1, 1), &slice(&name(above), 1, 1), "is not a DNS name");
}

#[test]
fn annotations() {
    let metadata = |bytes: usize| format!(r#", "annotations": {{"key": "{}"}}"#, "x".repeat(bytes - "key".len()));
    let (at, above) = (limits::MAX_ANNOTATION_BYTES, limits::MAX_ANNOTATION_BYTES + 1);
    check(
        &service("web", &metadata(at), 1),
        &service("web", &metadata(above), 1),
        "field `metadata.annotations`: more than 262144 bytes of annotations",
    );
}

#[test]
fn nodes() {
    // The object, two texts, and a list beside its items.
    let text = |nodes: usize| format!(r#"{{"apiVersion":"x","kind":"X","a":[0{}]}}"#, ",0".repeat(nodes - 5));
    assert!(Snapshot::parse("x.json", &text(limits::MAX_NODES)).is_ok());
    let error = Snapshot::parse("x.json", &text(limits::MAX_NODES + 1)).unwrap_err().to_string();
    assert!(error.ends_with("document 1: more than 800000 values in one document"), "{error}");
}

#[test]
fn aliases() {
    // The parser has a limit of its own for how often one anchor is used.
    let anchors: String = (0..2000).map(|n| format!("&a{n} x, ")).collect();
    let text = |aliases: usize| {
        let aliases: String = (0..aliases).map(|n| format!("*a{}, ", n % 2000)).collect();
        format!("apiVersion: x\nkind: X\na: [{anchors}]\nb: [{aliases}]\n")
    };
    assert!(Snapshot::parse("x.yaml", &text(limits::MAX_ALIAS_NODES)).is_ok());
    let error = Snapshot::parse("x.yaml", &text(limits::MAX_ALIAS_NODES + 1)).unwrap_err().to_string();
    assert!(error.contains("10001 > 10000"), "{error}");
}

#[test]
fn documents() {
    assert!(Snapshot::parse("x.json", &"null ".repeat(limits::MAX_DOCUMENTS)).is_ok());
    for (file, document) in [("x.json", "null "), ("x.yaml", "null\n---\n")] {
        let error = Snapshot::parse(file, &document.repeat(limits::MAX_DOCUMENTS + 1)).unwrap_err();
        assert_eq!(error.to_string(), format!("{file}: there are more than 100000 documents in it: split it"));
    }
    let objects = r#"{"apiVersion": "x", "kind": "X"}"#.repeat(10);
    assert_eq!(Snapshot::parse("x.json", &objects).unwrap().report().skipped.len(), 10);
}

#[test]
fn findings_of_all_files() {
    let directory = tempfile::tempdir().unwrap();
    let text = r#"{"apiVersion": "x", "kind": "X"}"#.repeat(limits::MAX_FINDINGS_PER_FILE);
    let files = limits::MAX_FINDINGS / limits::MAX_FINDINGS_PER_FILE;
    for (more, listed, unlisted) in [(0, limits::MAX_FINDINGS, 0), (1, limits::MAX_FINDINGS, 1000)] {
        for number in 0..files + more {
            fs::write(directory.path().join(format!("{number}.json")), &text).unwrap();
        }
        let report = Snapshot::read(&[directory.path()]).unwrap().report();
        assert_eq!((report.skipped.len(), report.unlisted), (listed, unlisted));
    }
}
