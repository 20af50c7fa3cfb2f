//! Workloads to pods, pods to endpoint slices.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use lb_core::{
    addr::Protocol,
    endpoint::{Conditions, EndpointSlice},
    name::NodeName,
};
use lb_k8s::{
    Replicas, Snapshot,
    lab::{self, PlacedPod},
};

fn parse(text: &str) -> Snapshot {
    let snapshot = Snapshot::parse("lab.yaml", text).unwrap();
    assert!(snapshot.report().is_clean(), "{:?}", snapshot.report());
    snapshot
}

fn refused(text: &str) -> String {
    let report = Snapshot::parse("lab.yaml", text).unwrap().report();
    format!("{}: {}", report.refused[0].finding.field, report.refused[0].finding.message)
}

fn deployment(name: &str, replicas: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  {replicas}\n  selector: \
         {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web, tier: {name}}}}}\n    spec: \
         {{containers: [{{name: c, image: httpd, ports: [{ports}]}}]}}\n"
    )
}

fn service(spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{selector: {{app: web}}, {spec}}}\n")
}

/// Each pod on the node of its number, at `10.0.0.n` and `fd00::n`.
fn place(snapshot: &Snapshot) -> Vec<PlacedPod> {
    let place = |(pod, number): (lab::Pod, u8)| {
        let ips: [IpAddr; 2] = [[10, 0, 0, number].into(), [0xfd00, 0, 0, 0, 0, 0, 0, number.into()].into()];
        PlacedPod { pod, node: NodeName::new(&format!("node-{number}")), ips: ips.into() }
    };
    lab::pods(snapshot.workloads()).unwrap().into_iter().zip(1..).map(place).collect()
}

/// A slice in one line: name, ports, addresses.
fn line(slice: &EndpointSlice) -> String {
    let ports: Vec<_> =
        slice.ports.iter().map(|port| format!("{}={}/{}", port.name, port.port, port.protocol)).collect();
    let ips: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.ip.to_string()).collect();
    format!("{} [{}] {}", slice.name, ports.join(" "), ips.join(" "))
}

fn lines(snapshot: &Snapshot) -> Vec<String> {
    lab::endpoint_slices(snapshot.templates(), &place(snapshot)).iter().map(line).collect()
}

#[test]
fn workloads_give_pods_with_fixed_names() {
    let stateful = "---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db, namespace: data}\nspec: {replicas: \
                    2, serviceName: db, ordinals: {start: 5}, selector: {matchLabels: {app: db}}, template: {metadata: \
                    {labels: {app: db}}, spec: {containers: []}}}\n";
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: netshoot}\nspec: {nodeName: node-2, containers: [{name: \
               c, image: nicolaka/netshoot, command: [sleep, infinity]}]}\n";
    let text = deployment("httpd", "replicas: 2", "{containerPort: 80, name: http}") + stateful + pod;
    let snapshot = parse(&text);
    assert_eq!(snapshot.workloads().nth(1).unwrap().replicas, Replicas::Numbered { first: 5, count: 2 });
    let pods = lab::pods(snapshot.workloads()).unwrap();
    let names: Vec<_> = pods.iter().map(|pod| format!("{}/{} {}", pod.namespace, pod.name, pod.is_server())).collect();
    assert_eq!(
        names,
        [
            "default/httpd-0 true",
            "default/httpd-1 true",
            "data/db-5 false",
            "data/db-6 false",
            "default/netshoot false"
        ]
    );
    assert_eq!(pods[4].template.node, Some(NodeName::new("node-2")));
    let port = &pods[0].template.ports[0];
    assert_eq!((port.name.as_str(), port.protocol, port.port), ("http", Protocol::Tcp, 80));
}

#[test]
fn replicas_are_one_by_default_and_may_be_none() {
    assert_eq!(lab::pods(parse(&deployment("a", "paused: false", "")).workloads()).unwrap().len(), 1);
    assert_eq!(lab::pods(parse(&deployment("a", "replicas: 0", "")).workloads()).unwrap().len(), 0);
}

#[test]
fn two_pods_of_one_name_are_an_error() {
    let stateful = deployment("web", "replicas: 2", "").replace("kind: Deployment", "kind: StatefulSet");
    let snapshot = parse(&(deployment("web", "replicas: 1", "") + &stateful));
    let error = lab::pods(snapshot.workloads()).unwrap_err();
    assert_eq!(error.to_string(), "two workloads want pod default/web-0: rename one of them");
}

#[test]
fn a_service_has_a_slice_per_family() {
    let pods = deployment("httpd", "replicas: 2", "{containerPort: 8080, name: http}");
    for (spec, slices) in [
        (
            "clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80, targetPort: http}]",
            vec!["default/web-ipv4 [=8080/tcp] 10.0.0.1 10.0.0.2", "default/web-ipv6 [=8080/tcp] fd00::1 fd00::2"],
        ),
        (
            "clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 9090}]",
            vec!["default/web-ipv4 [=9090/tcp] 10.0.0.1 10.0.0.2"],
        ),
        ("clusterIP: 'fd00:96::1', ports: [{port: 80}]", vec!["default/web-ipv6 [=80/tcp] fd00::1 fd00::2"]),
        (
            "clusterIP: None, ipFamilies: [IPv4], ports: [{port: 80}]",
            vec!["default/web-ipv4 [=80/tcp] 10.0.0.1 10.0.0.2"],
        ),
        (
            "clusterIP: 10.96.0.1, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 53, protocol: UDP}]",
            vec!["default/web-ipv4 [a=8080/tcp b=53/udp] 10.0.0.1 10.0.0.2"],
        ),
    ] {
        assert_eq!(lines(&parse(&(pods.clone() + &service(spec)))), slices);
    }
}

#[test]
fn named_ports_are_resolved_per_pod() {
    let pods = deployment("new", "replicas: 2", "{containerPort: 8081, name: http}")
        + &deployment("old", "replicas: 1", "{containerPort: 8080, name: http}")
        + &deployment("odd", "replicas: 1", "{containerPort: 8080, name: http, protocol: UDP}");
    let snapshot = parse(&(pods + &service("clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: http}]")));
    assert_eq!(
        lines(&snapshot),
        ["default/web-ipv4 [=8080/tcp] 10.0.0.4", "default/web-ipv4-1 [=8081/tcp] 10.0.0.1 10.0.0.2"]
    );
}

#[test]
fn selectors_match_labels_and_namespace() {
    let pods = deployment("a", "replicas: 1", "") + &deployment("b", "replicas: 1", "");
    let elsewhere = deployment("c", "replicas: 1", "").replace("{name: c}", "{name: c, namespace: other}");
    let text = pods + &elsewhere + &service("clusterIP: 10.96.0.1, ports: [{port: 80}]");
    assert_eq!(lines(&parse(&text)), ["default/web-ipv4 [=80/tcp] 10.0.0.1 10.0.0.2"]);
    let narrow = text.replace("{app: web}, clusterIP", "{app: web, tier: b}, clusterIP");
    assert_eq!(lines(&parse(&narrow)), ["default/web-ipv4 [=80/tcp] 10.0.0.2"]);
    let nobody = text.replace("{app: web}, clusterIP", "{app: nobody}, clusterIP");
    assert_eq!(lines(&parse(&nobody)), [""; 0]);
    let without = text.replace("selector: {app: web}, clusterIP", "clusterIP");
    assert!(parse(&without).templates().next().is_none());
}

#[test]
fn conditions_follow_the_pod() {
    let pod = |status: &str, deleted: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{app: web}}{deleted}}}\nspec: {{containers: \
             []}}\nstatus: {{conditions: [{{type: Ready, status: '{status}'}}]}}\n"
        )
    };
    let deleted = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let spec = "clusterIP: 10.96.0.1, ports: [{port: 80}]";
    let published = format!("{spec}, publishNotReadyAddresses: true");
    let conditions = |ready, serving, terminating| Conditions { ready, serving, terminating };
    for (pod, spec, wanted) in [
        (pod("True", ""), spec, conditions(true, true, false)),
        (pod("False", ""), spec, conditions(false, false, false)),
        (pod("True", deleted), spec, conditions(false, true, true)),
        (pod("False", deleted), spec, conditions(false, false, true)),
        (pod("False", ""), &published, conditions(true, false, false)),
        (pod("True", deleted), &published, conditions(true, true, true)),
    ] {
        let snapshot = parse(&(pod + &service(spec)));
        let slices = lab::endpoint_slices(snapshot.templates(), &place(&snapshot));
        assert_eq!(slices[0].endpoints[0].conditions, wanted);
        assert_eq!(slices[0].endpoints[0].node, Some(NodeName::new("node-1")));
    }
}

#[test]
fn invalid_workloads_are_refused_with_the_field() {
    for (text, reason) in [
        (
            deployment("a", "replicas: -1", ""),
            "spec.replicas: -1 is not a number of replicas, expected 0 to 10000".to_owned(),
        ),
        (deployment("a", "replicas: 10001", ""), "spec.replicas: 10001 is not a number of replicas, expected 0 to 10000".into()),
        (
            deployment("a", "replicas: 1", "").replace("{matchLabels: {app: web}}", "{matchLabels: {app: x}}"),
            "spec.selector.matchLabels: the template's labels do not have \"app\" = \"x\"".into(),
        ),
        (
            deployment("a", "replicas: 1", "{containerPort: 0}"),
            "spec.template.spec.containers[0].ports[0].containerPort: 0 is not a port, expected 1 to 65535".into(),
        ),
        (
            deployment("a", "replicas: 1", "{containerPort: 1, name: x}, {containerPort: 2, name: x}"),
            "spec.template.spec.containers[0].ports[1].name: \"x\" appears twice".into(),
        ),
        (
            deployment("a", "replicas: 1", "{containerPort: 1, name: '1'}"),
            "spec.template.spec.containers[0].ports[0].name: \"1\" is not the name of a port (1 to 15 of a-z, 0-9 and -, \
             with a letter among them)"
                .into(),
        ),
        (
            deployment("a", "replicas: 1", "").replace("tier: a", "tier: 'a b'"),
            "spec.template.metadata.labels[tier]: \"a b\" is not the value of a label (up to 63 of A-Z, a-z, 0-9, -, _ \
             and .)"
                .into(),
        ),
        (
            service("clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 'http!'}]"),
            "spec.ports[0].targetPort: \"http!\" is not the name of a port (1 to 15 of a-z, 0-9 and -, with a letter \
             among them)"
                .into(),
        ),
    ] {
        assert_eq!(refused(&text), reason);
    }
}

#[test]
fn what_the_lab_does_not_play_is_reported() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  hostNetwork: true\n  nodeSelector: {zone: a}\n  \
                containers: [{name: c, ports: [{containerPort: 80, hostPort: 80}], readinessProbe: {exec: {}}}]\n";
    let report = Snapshot::parse("lab.yaml", text).unwrap().report();
    let fields: Vec<_> = report.unsupported.iter().map(|finding| finding.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.containers[0].ports[0].hostPort",
            "spec.containers[0].readinessProbe",
            "spec.hostNetwork",
            "spec.nodeSelector"
        ]
    );
}
