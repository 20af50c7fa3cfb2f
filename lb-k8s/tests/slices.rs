//! What of an `EndpointSlice` is carried out, refused and reported.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use lb_core::{
    addr::Protocol,
    endpoint::{AdminState, Conditions, Endpoint, EndpointSlice},
    name::{NodeName, ZoneName},
    topology::Hints,
};
use lb_k8s::{
    Report, Snapshot,
    limits::{MAX_ENDPOINTS, MAX_HINTS},
};

fn snapshot(metadata: &str, rest: &str) -> Snapshot {
    let text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-abc, labels: \
         {{kubernetes.io/service-name: web}}{metadata}}}\n{rest}\n"
    );
    Snapshot::parse("web.yaml", &text).unwrap()
}

fn read(metadata: &str, rest: &str) -> EndpointSlice {
    let snapshot = snapshot(metadata, rest);
    assert!(snapshot.report().is_clean(), "{:?}", snapshot.report());
    snapshot.endpoint_slices().next().unwrap().clone()
}

fn refused(metadata: &str, rest: &str) -> String {
    let report = snapshot(metadata, rest).report();
    assert_eq!(report.refused.len(), 1, "{metadata} {rest}");
    format!("{}: {}", report.refused[0].finding.field, report.refused[0].finding.message)
}

fn unsupported(report: &Report) -> Vec<String> {
    report.unsupported.iter().map(|finding| format!("{}: {}", finding.field, finding.message)).collect()
}

#[test]
fn everything_that_is_honoured() {
    let slice = read(
        "",
        r#"
addressType: IPv4
ports:
- {name: http, port: 8080}
- {name: dns, protocol: UDP, port: 53, appProtocol: dns}
endpoints:
- addresses: [10.0.0.1]
  nodeName: node-1
  zone: a
  hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: node-1}]}
  hostname: web-0
  targetRef: {kind: Pod, name: web-0}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.3], conditions: {ready: true}}
- {addresses: [10.0.0.4], conditions: {ready: false}}
"#,
    );
    assert_eq!((slice.name.to_string(), slice.service.to_string()), ("default/web-abc".into(), "default/web".into()));
    let ports: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.protocol, port.port)).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 53)]);
    assert_eq!(
        slice.endpoints[0],
        Endpoint {
            ip: [10, 0, 0, 1].into(),
            node: Some(NodeName::new("node-1")),
            zone: Some(ZoneName::new("a")),
            hints: Hints { zones: ["a", "b"].map(ZoneName::new).into(), nodes: [NodeName::new("node-1")].into() },
            conditions: Conditions::READY,
            admin: AdminState::InService,
            weight: Endpoint::DEFAULT_WEIGHT,
        }
    );
    let conditions: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.conditions).collect();
    let not_ready = Conditions { ready: false, ..Conditions::READY };
    let terminating = Conditions { ready: false, serving: true, terminating: true };
    assert_eq!(conditions, [Conditions::READY, terminating, Conditions::READY, not_ready]);
}

#[test]
fn a_slice_may_be_empty_and_its_port_nameless() {
    let slice = read("", "addressType: IPv6\nports: [{port: 80}]\nendpoints: []");
    assert_eq!((&*slice.ports[0].name, slice.endpoints.len()), ("", 0));
    let slice = read("", "addressType: IPv6\nports: null\nendpoints: null");
    assert_eq!(slice.ports, []);
}

#[test]
fn weights_have_two_annotations() {
    let rest = "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]";
    for (annotations, weight) in [
        ("service.cilium.io/weight: '0'", 0),
        ("lb/weight: '65535'", 65535),
        ("lb/weight: '7', service.cilium.io/weight: '7'", 7),
    ] {
        let slice = read(&format!(", annotations: {{{annotations}}}"), rest);
        assert_eq!(slice.endpoints[0].weight, weight);
    }
}

#[test]
fn invalid_slices_are_refused_with_the_field() {
    let v4 = |rest: &str| format!("addressType: IPv4\n{rest}");
    let many: Vec<_> = (0..=MAX_ENDPOINTS).map(|n| format!("{{addresses: [10.0.{}.{}]}}", n / 250, n % 250)).collect();
    for (metadata, rest, reason) in [
        ("", "addressType: FQDN".to_owned(), "addressType: names are not resolved, expected IPv4 or IPv6"),
        ("", "addressType: ipv4".into(), "addressType: \"ipv4\" is not a type of address, expected IPv4 or IPv6"),
        ("", v4("ports: [{port: 0}]"), "ports[0].port: 0 is not a port, expected 1 to 65535"),
        (
            "",
            v4("ports: [{port: 1, protocol: X}]"),
            "ports[0].protocol: \"X\" is not a protocol, expected TCP, UDP or SCTP",
        ),
        ("", v4("ports: [{name: a, port: 1}, {name: a, port: 2}]"), "ports[1].name: \"a\" appears twice for tcp"),
        (
            "",
            v4("endpoints: [{addresses: ['fd00::1']}]"),
            "endpoints[0].addresses[0]: fd00::1 is not of the slice's address type",
        ),
        ("", v4("endpoints: [{addresses: []}]"), "endpoints[0].addresses[0]: an endpoint needs an address"),
        (
            "",
            v4("endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.1]}]"),
            "endpoints[1].addresses: 10.0.0.1 appears twice",
        ),
        (
            "",
            v4("endpoints: [{addresses: [169.254.0.1]}]"),
            "endpoints[0].addresses[0]: 169.254.0.1 is a link-local address and cannot be served",
        ),
        (
            "",
            v4("endpoints: [{addresses: [10.0.0.1], nodeName: A}]"),
            "endpoints[0].nodeName: \"A\" is not a DNS name (DNS labels joined by dots)",
        ),
        (
            "",
            v4("endpoints: [{addresses: [10.0.0.1], zone: a/b}]"),
            "endpoints[0].zone: \"a/b\" is not the value of a label (up to 63 of A-Z, a-z, 0-9, -, _ and .)",
        ),
        (
            "",
            v4("endpoints: [{addresses: [10.0.0.1], hints: {forZones: [{name: a}, {name: ''}]}}]"),
            "endpoints[0].hints.forZones[1].name: a zone needs a name",
        ),
        (
            "",
            v4("endpoints: [{addresses: [10.0.0.1], hints: {forNodes: [{name: A}]}}]"),
            "endpoints[0].hints.forNodes[0].name: \"A\" is not a DNS name (DNS labels joined by dots)",
        ),
        ("", v4(&hinted_for(MAX_HINTS + 1)), "endpoints[0].hints.forZones[8].name: more than 8 hints"),
        ("", v4(&format!("endpoints: [{}]", many.join(", "))), "endpoints: more than 1000 endpoints"),
        (
            ", annotations: {lb/weight: '65536'}",
            v4(""),
            "metadata.annotations[lb/weight]: \"65536\" is not a number from 0 to 65535",
        ),
        (
            ", annotations: {lb/weight: '1', service.cilium.io/weight: '2'}",
            v4(""),
            "metadata.annotations[lb/weight]: 1 contradicts service.cilium.io/weight: 2",
        ),
    ] {
        assert_eq!(refused(metadata, &rest), reason);
    }
}

fn hinted_for(zones: usize) -> String {
    let zones = vec!["{name: a}"; zones].join(", ");
    format!("endpoints: [{{addresses: [10.0.0.1], hints: {{forZones: [{zones}]}}}}]")
}

#[test]
fn an_endpoint_may_be_hinted_for_eight_zones() {
    let slice = read("", &format!("addressType: IPv4\n{}", hinted_for(MAX_HINTS)));
    assert_eq!(slice.endpoints[0].hints.zones.len(), MAX_HINTS);
}

#[test]
fn what_is_not_carried_out_is_reported() {
    let rest = "addressType: IPv4\nports: [{name: a}, {name: b, port: 80}]\nendpoints: [{addresses: [10.0.0.1, \
                10.0.0.2], hints: {forZones: [{name: a, weight: 1}], forRacks: [{name: r}]}}]";
    let snapshot = snapshot("", rest);
    assert_eq!(
        unsupported(&snapshot.report()),
        [
            "endpoints[0].hints.forRacks: there is no such field",
            "endpoints[0].hints.forZones[0].weight: there is no such field",
            "ports[0].port: every port at once is not supported: name a number",
            "endpoints[0].addresses: only the first address is used: write an endpoint for each address",
        ]
    );
    let slice = snapshot.endpoint_slices().next().unwrap();
    assert_eq!((slice.ports.len(), slice.endpoints.len()), (1, 1));
}

#[test]
fn slices_that_are_not_ours_are_skipped() {
    let slice = |labels: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: {{{labels}}}}}\naddressType: IPv4\n"
        )
    };
    for (labels, why) in [
        ("", "it belongs to no service (label kubernetes.io/service-name)"),
        (
            "kubernetes.io/service-name: web, service.kubernetes.io/service-proxy-name: x",
            "another proxy serves it (label service.kubernetes.io/service-proxy-name)",
        ),
        (
            "kubernetes.io/service-name: web, service.kubernetes.io/headless: ''",
            "its service is headless (label service.kubernetes.io/headless)",
        ),
    ] {
        let snapshot = Snapshot::parse("web.yaml", &slice(labels)).unwrap();
        assert_eq!(snapshot.endpoint_slices().count(), 0);
        assert_eq!(snapshot.report().skipped[0].message, why);
    }
}
