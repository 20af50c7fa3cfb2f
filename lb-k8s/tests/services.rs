//! What of a `Service` is carried out, refused and reported.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::IpAddr, time::Duration};

use lb_core::{
    addr::Protocol,
    affinity::Affinity,
    service::{Algorithm, DrainPolicy, Service, TrafficPolicy},
    topology::TrafficDistribution,
};
use lb_k8s::{Snapshot, annotations};

/// A service of which `metadata` and `spec` are the fields, in flow style.
fn text(metadata: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, {metadata}}}\nspec: {{{spec}}}\n")
}

fn snapshot(metadata: &str, spec: &str) -> Snapshot {
    Snapshot::parse("web.yaml", &text(metadata, spec)).unwrap()
}

fn read(metadata: &str, spec: &str) -> Service {
    let snapshot = snapshot(metadata, spec);
    assert!(snapshot.report().refused.is_empty(), "{:?}", snapshot.report().refused);
    snapshot.services().next().unwrap().clone()
}

/// The field that is refused, and why.
fn refused(metadata: &str, spec: &str) -> String {
    let report = snapshot(metadata, spec).report();
    assert_eq!(report.refused.len(), 1, "{metadata} {spec}");
    let finding = &report.refused[0].finding;
    format!("{}: {}", finding.field, finding.message)
}

fn unsupported(metadata: &str, spec: &str) -> Vec<String> {
    let report = snapshot(metadata, spec).report();
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    report.unsupported.iter().map(|finding| format!("{}: {}", finding.field, finding.message)).collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

const PORTS: &str = "ports: [{port: 80}]";

#[test]
fn everything_that_is_honoured() {
    let text = r#"
apiVersion: v1
kind: Service
metadata:
  namespace: shop
  name: web
  labels: {team: a}
  annotations:
    lb/algorithm: maglev
    lb/maglev-table-size: "1021"
    lb/affinity-prefix-v4: "24"
    lb/affinity-prefix-v6: "64"
    lb/affinity-by-source: "true"
    example.com/owner: a
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00::10"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  externalIPs: [192.0.2.1]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  allocateLoadBalancerNodePorts: false
  loadBalancerClass: example.com/class
  loadBalancerIP: 203.0.113.1
  publishNotReadyAddresses: true
  selector: {app: web}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30080, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP}
  - {name: sig, port: 80, protocol: SCTP}
status:
  conditions: []
  loadBalancer:
    ingress:
    - {ip: 203.0.113.1, ipMode: VIP}
    - {ip: 203.0.113.2, ipMode: Proxy}
    - {ip: "2001:db8::1", ports: []}
"#;
    let snapshot = Snapshot::parse("web.yaml", text).unwrap();
    assert!(snapshot.report().is_clean(), "{:?}", snapshot.report());
    let service = snapshot.services().next().unwrap();
    assert_eq!(service.name.to_string(), "shop/web");
    assert_eq!(service.cluster_ips, ips(&["10.96.0.10", "fd00::10"]));
    assert_eq!(service.external_ips, ips(&["192.0.2.1"]));
    assert_eq!(service.load_balancer_ips, ips(&["203.0.113.1", "2001:db8::1"]));
    let ports: Vec<_> =
        service.ports.iter().map(|port| (&*port.name, port.port, port.protocol, port.node_port)).collect();
    assert_eq!(
        ports,
        [("http", 80, Protocol::Tcp, Some(30080)), ("dns", 53, Protocol::Udp, None), ("sig", 80, Protocol::Sctp, None)]
    );
    let affinity = Affinity { timeout: Duration::from_secs(60), prefix_v4: 24, prefix_v6: 64 };
    assert_eq!((service.affinity, service.affinity_by_source), (Some(affinity), true));
    assert_eq!(service.algorithm, Some(Algorithm::Maglev));
    assert_eq!(service.table_size.map(|size| size.get()), Some(1021));
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Local);
}

#[test]
fn the_shortest_service_has_defaults() {
    let service = read("", &format!("clusterIP: 10.96.0.10, {PORTS}"));
    assert_eq!(service.name.to_string(), "default/web");
    assert_eq!(service.cluster_ips, ips(&["10.96.0.10"]));
    assert_eq!((&*service.ports[0].name, service.ports[0].protocol), ("", Protocol::Tcp));
    assert_eq!((service.affinity, service.algorithm, service.table_size), (None, None, None));
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Cluster);
}

#[test]
fn headless_and_external_name_services_have_no_frontends() {
    for (metadata, spec) in [
        ("", "clusterIP: None, ports: [{port: 80}]"),
        ("", "clusterIP: None"),
        ("", "clusterIPs: [None], ports: [{port: 80}]"),
        ("labels: {service.kubernetes.io/headless: ''}", "clusterIP: 10.96.0.10, ports: [{port: 80}]"),
        ("", "type: ExternalName, externalName: example.com"),
    ] {
        let service = read(metadata, spec);
        assert!(service.cluster_ips.is_empty() && service.external_ips.is_empty(), "{metadata} {spec}");
    }
    let spec = "clusterIP: None, externalIPs: [192.0.2.1], ports: [{port: 80}]";
    assert!(read("", spec).external_ips.is_empty());
    assert_eq!(unsupported("", spec), ["spec.externalIPs: a headless or ExternalName service has no frontends"]);
}

#[test]
fn affinity_has_the_time_out_of_kubernetes_by_default() {
    let service = read("", &format!("clusterIP: 10.96.0.10, sessionAffinity: ClientIP, {PORTS}"));
    assert_eq!(service.affinity, Some(Affinity::default()));
    for seconds in [1, 86_400] {
        let config = format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}");
        let spec = format!("clusterIP: 10.96.0.10, sessionAffinity: ClientIP, {config}, {PORTS}");
        assert_eq!(read("", &spec).affinity.unwrap().timeout.as_secs(), seconds);
    }
}

#[test]
fn algorithms_have_two_annotations() {
    for (key, value, algorithm) in [
        (annotations::CILIUM_ALGORITHM, "random", Algorithm::Random),
        (annotations::CILIUM_ALGORITHM, "maglev", Algorithm::Maglev),
        (annotations::ALGORITHM, "random", Algorithm::Random),
        (annotations::ALGORITHM, "round-robin", Algorithm::RoundRobin),
        (annotations::ALGORITHM, "maglev", Algorithm::Maglev),
        (annotations::ALGORITHM, "least-connections", Algorithm::LeastConnections),
    ] {
        let service = read(&format!("annotations: {{{key}: {value}}}"), &format!("clusterIP: 10.96.0.10, {PORTS}"));
        assert_eq!(service.algorithm, Some(algorithm), "{key}: {value}");
    }
    let both =
        format!("annotations: {{{}: maglev, {}: maglev}}", annotations::ALGORITHM, annotations::CILIUM_ALGORITHM);
    assert_eq!(read(&both, &format!("clusterIP: 10.96.0.10, {PORTS}")).algorithm, Some(Algorithm::Maglev));
}

#[test]
fn traffic_distribution_has_the_names_of_kubernetes() {
    for (name, distribution) in [
        ("PreferClose", TrafficDistribution::PreferSameZone),
        ("PreferSameZone", TrafficDistribution::PreferSameZone),
        ("PreferSameNode", TrafficDistribution::PreferSameNode),
    ] {
        let spec = format!("clusterIP: 10.96.0.10, trafficDistribution: {name}, {PORTS}");
        assert_eq!(read("", &spec).traffic_distribution, Some(distribution));
        assert_eq!(unsupported("annotations: {service.kubernetes.io/topology-mode: Auto}", &spec), [""; 0]);
    }
    let spec = format!("clusterIP: 10.96.0.10, trafficDistribution: near, {PORTS}");
    assert_eq!(
        refused("", &spec),
        "spec.trafficDistribution: \"near\" is not a distribution, expected PreferSameZone, PreferSameNode or PreferClose"
    );
}

#[test]
fn draining_and_panic_have_annotations() {
    let spec = format!("clusterIP: 10.96.0.10, {PORTS}");
    for (annotations, drain, panic_threshold) in [
        ("", DrainPolicy::Keep, None),
        ("lb/drain: keep, lb/panic-threshold: '0'", DrainPolicy::Keep, Some(0)),
        ("lb/drain: cut, lb/panic-threshold: '100'", DrainPolicy::Cut, Some(100)),
        ("lb/drain: '30'", DrainPolicy::For(Duration::from_secs(30)), None),
        ("lb/drain: '86400'", DrainPolicy::For(Duration::from_secs(86_400)), None),
    ] {
        let service = read(&format!("annotations: {{{annotations}}}"), &spec);
        assert_eq!((service.drain, service.panic_threshold), (drain, panic_threshold), "{annotations}");
    }
    for bad in ["0", "86401", "30s", "-1", "Cut"] {
        let reason = refused(&format!("annotations: {{lb/drain: '{bad}'}}"), &spec);
        let expected =
            format!("metadata.annotations[lb/drain]: \"{bad}\" is not `keep`, `cut` or a number from 1 to 86400");
        assert_eq!(reason, expected);
    }
    assert_eq!(
        refused("annotations: {lb/panic-threshold: '101'}", &spec),
        "metadata.annotations[lb/panic-threshold]: \"101\" is not a number from 0 to 100"
    );
}

#[test]
fn addresses_are_canonical() {
    let service = read("", &format!("clusterIP: 010.096.000.010, externalIPs: ['2001:DB8:0::1'], {PORTS}"));
    assert_eq!(service.cluster_ips, ips(&["10.96.0.10"]));
    assert_eq!(service.external_ips, ips(&["2001:db8::1"]));
}

#[test]
fn an_external_address_that_is_an_ingress_address_counts_once() {
    let text = text("", &format!("type: LoadBalancer, clusterIP: 10.96.0.10, externalIPs: [192.0.2.1], {PORTS}"))
        + "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
    let snapshot = Snapshot::parse("web.yaml", &text).unwrap();
    let service = snapshot.services().next().unwrap();
    assert_eq!((service.external_ips.len(), service.load_balancer_ips.len()), (0, 1));
}

#[test]
fn invalid_services_are_refused_with_the_field() {
    let with = |rest: &str| format!("clusterIP: 10.96.0.10, {rest}");
    let ports = |ports: &str| with(&format!("ports: [{ports}]"));
    let more = |rest: &str| with(&format!("{rest}, {PORTS}"));
    for (spec, reason) in [
        (with("selector: {}"), "spec.ports: a service needs at least one port"),
        (ports("{port: 0}"), "spec.ports[0].port: 0 is not a port, expected 1 to 65535"),
        (
            ports("{name: a, port: 1}, {name: b, port: 65536}"),
            "spec.ports[1].port: 65536 is not a port, expected 1 to 65535",
        ),
        (ports("{name: a}"), "spec.ports[0].port: 0 is not a port, expected 1 to 65535"),
        (
            ports("{port: 80, protocol: ICMP}"),
            "spec.ports[0].protocol: \"ICMP\" is not a protocol, expected TCP, UDP or SCTP",
        ),
        (
            ports("{port: 80, protocol: tcp}"),
            "spec.ports[0].protocol: \"tcp\" is not a protocol, expected TCP, UDP or SCTP",
        ),
        (ports("{name: a, port: 80}, {name: a, port: 81}"), "spec.ports[1].name: \"a\" appears twice"),
        (ports("{name: a, port: 80}, {port: 81}"), "spec.ports[1].name: a port of several needs a name"),
        (ports("{name: a, port: 80}, {name: b, port: 80}"), "spec.ports[1].port: 80/tcp appears twice"),
        (
            ports("{port: 80, nodePort: 30080}"),
            "spec.ports[0].nodePort: a node port needs type NodePort or LoadBalancer",
        ),
        (
            format!("type: NodePort, {}", ports("{port: 80, nodePort: 70000}")),
            "spec.ports[0].nodePort: 70000 is not a port, expected 1 to 65535",
        ),
        (
            format!(
                "type: NodePort, {}",
                ports("{name: a, port: 80, nodePort: 30000}, {name: b, port: 81, nodePort: 30000}")
            ),
            "spec.ports[1].nodePort: 30000/tcp appears twice",
        ),
        (format!("clusterIP: 10.96.0.300, {PORTS}"), "spec.clusterIP: \"10.96.0.300\" is not an IP address"),
        (
            format!("clusterIP: 127.0.0.1, {PORTS}"),
            "spec.clusterIP: 127.0.0.1 is a loopback address and cannot be served",
        ),
        (
            format!("clusterIPs: [10.96.0.1, 10.96.0.2], {PORTS}"),
            "spec.clusterIPs: expected at most one address of each family",
        ),
        (
            format!("clusterIP: 10.96.0.1, clusterIPs: [10.96.0.2], {PORTS}"),
            "spec.clusterIP: 10.96.0.1 is not the first of `spec.clusterIPs`, which is 10.96.0.2",
        ),
        (
            format!("clusterIP: 10.96.0.1, clusterIPs: [None], {PORTS}"),
            "spec.clusterIPs: `None` and addresses exclude each other",
        ),
        (more("externalIPs: [192.0.2.1, 192.0.2.1]"), "spec.externalIPs[1]: 192.0.2.1 appears twice"),
        (more("externalIPs: [10.96.0.10]"), "spec.externalIPs[0]: it is the cluster address of the same service"),
        (more("ipFamilies: [IPv6]"), "spec.ipFamilies[0]: expected the family of cluster address 10.96.0.10"),
        (more("ipFamilies: [IPv5]"), "spec.ipFamilies[0]: \"IPv5\" is not a family, expected IPv4 or IPv6"),
        (
            more("ipFamilyPolicy: RequireDualStack"),
            "spec.ipFamilyPolicy: RequireDualStack needs a cluster address of each family",
        ),
        (
            more("type: Ingress"),
            "spec.type: \"Ingress\" is not a type, expected ClusterIP, NodePort, LoadBalancer or ExternalName",
        ),
        (more("type: ExternalName"), "spec.clusterIP: a service of type ExternalName has no cluster address"),
        (
            more("externalTrafficPolicy: local"),
            "spec.externalTrafficPolicy: \"local\" is not a traffic policy, expected Cluster or Local",
        ),
        (
            more("sessionAffinity: Cookie"),
            "spec.sessionAffinity: \"Cookie\" is not an affinity, expected None or ClientIP",
        ),
        (
            more("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}"),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not a time-out, expected 1 to 86400 seconds",
        ),
        (
            more("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}"),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not a time-out, expected 1 to 86400 seconds",
        ),
        (
            more("sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}"),
            "spec.sessionAffinityConfig.clientIP: it needs `sessionAffinity: ClientIP`",
        ),
        (ports("{port: 80, targetPort: '8080!'}, {port: 81}"), "spec.ports[0].name: a port of several needs a name"),
    ] {
        assert_eq!(refused("", &spec), reason, "{spec}");
    }
}

#[test]
fn invalid_annotations_are_refused() {
    let spec = format!("clusterIP: 10.96.0.10, {PORTS}");
    for (annotations, reason) in [
        (
            "service.cilium.io/lb-algorithm: round-robin",
            "metadata.annotations[service.cilium.io/lb-algorithm]: \"round-robin\" is not an algorithm, expected random \
             or maglev",
        ),
        (
            "lb/algorithm: fastest",
            "metadata.annotations[lb/algorithm]: \"fastest\" is not an algorithm, expected random, round-robin, maglev or least-connections",
        ),
        (
            "lb/algorithm: random, service.cilium.io/lb-algorithm: maglev",
            "metadata.annotations[lb/algorithm]: random contradicts service.cilium.io/lb-algorithm: maglev",
        ),
        (
            "lb/maglev-table-size: '1000'",
            "metadata.annotations[lb/maglev-table-size]: table size 1000 is not one of [251, 509, 1021, 2039, 4093, \
             8191, 16381, 32749, 65521, 131071]",
        ),
        (
            "lb/algorithm: random, lb/maglev-table-size: '251'",
            "metadata.annotations[lb/maglev-table-size]: only Maglev has a table",
        ),
        (
            "lb/affinity-prefix-v4: '33'",
            "metadata.annotations[lb/affinity-prefix-v4]: \"33\" is not a number from 0 to 32",
        ),
        (
            "lb/affinity-prefix-v6: '64'",
            "metadata.annotations[lb/affinity-prefix-v6]: it needs `sessionAffinity: ClientIP`",
        ),
        (
            "lb/affinity-by-source: 'true'",
            "metadata.annotations[lb/affinity-by-source]: it needs `sessionAffinity: ClientIP`",
        ),
        (
            "lb/affinity-by-source: 'yes'",
            "metadata.annotations[lb/affinity-by-source]: \"yes\" is neither true nor false",
        ),
    ] {
        assert_eq!(refused(&format!("annotations: {{{annotations}}}"), &spec), reason);
    }
}

#[test]
fn invalid_ingress_is_refused() {
    for (ingress, reason) in [
        ("{ip: 1.2.3}", "status.loadBalancer.ingress[0].ip: \"1.2.3\" is not an IP address"),
        (
            "{ip: 192.0.2.1, ipMode: DNS}",
            "status.loadBalancer.ingress[0].ipMode: \"DNS\" is not a mode, expected VIP or Proxy",
        ),
        ("{ip: 10.96.0.10}", "status.loadBalancer.ingress[0].ip: it is the cluster address of the same service"),
    ] {
        let text = text("", &format!("type: LoadBalancer, clusterIP: 10.96.0.10, {PORTS}"))
            + &format!("status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n");
        let report = Snapshot::parse("web.yaml", &text).unwrap().report();
        let finding = &report.refused[0].finding;
        assert_eq!(format!("{}: {}", finding.field, finding.message), reason);
    }
}

/// The ranges of a service, as the model shows them.
fn ranges(annotations: &str, spec: &str) -> Result<Option<String>, String> {
    let text = text(&format!("annotations: {{{annotations}}}"), &format!("clusterIP: 10.96.0.10, {spec}{PORTS}"));
    let snapshot = Snapshot::parse("web.yaml", &text).unwrap();
    match &snapshot.report().refused[..] {
        [] => Ok(snapshot.services().next().unwrap().source_ranges.as_ref().map(ToString::to_string)),
        [refusal, ..] => Err(format!("{}: {}", refusal.finding.field, refusal.finding.message)),
    }
}

#[test]
fn source_ranges_are_read_with_their_policy() {
    let listed = "loadBalancerSourceRanges: [' 192.0.2.0/24 ', 10.1.2.3/8, '2001:db8::/32'], ";
    assert_eq!(ranges("", listed).unwrap().as_deref(), Some("allow 10.0.0.0/8, 192.0.2.0/24, 2001:db8::/32"));
    for (policy, says) in [("allow", "allow 10.0.0.0/8"), ("deny", "deny 10.0.0.0/8"), ("Deny", "deny 10.0.0.0/8")] {
        let policy = format!("{}: {policy}", annotations::CILIUM_RANGES_POLICY);
        let read = ranges(&policy, "loadBalancerSourceRanges: [10.0.0.0/8], ").unwrap();
        assert_eq!(read.as_deref(), Some(says));
    }
    let older = format!("{}: '10.0.0.0/8, 192.0.2.0/24'", annotations::SOURCE_RANGES);
    assert_eq!(ranges(&older, "").unwrap().as_deref(), Some("allow 10.0.0.0/8, 192.0.2.0/24"));
    assert_eq!(ranges(&older, "loadBalancerSourceRanges: ['::/0'], ").unwrap().as_deref(), Some("allow ::/0"));
    assert_eq!(ranges("", "loadBalancerSourceRanges: [], ").unwrap(), None);
}

#[test]
fn a_source_range_that_is_none_is_refused_by_its_place() {
    let error = ranges("", "loadBalancerSourceRanges: [10.0.0.0/8, 10.0.0.1], ").unwrap_err();
    assert_eq!(
        error,
        "spec.loadBalancerSourceRanges[1]: \"10.0.0.1\" is not a range, expected an address, a slash and a number of bits, \
         such as 10.0.0.0/8"
    );
    let policy = format!("{}: forbid", annotations::CILIUM_RANGES_POLICY);
    let error = ranges(&policy, "loadBalancerSourceRanges: [10.0.0.0/8], ").unwrap_err();
    assert!(error.ends_with("\"forbid\" is not a policy, expected allow or deny"), "{error}");
    let older = format!("{}: '10.0.0.0/8,nonsense'", annotations::SOURCE_RANGES);
    assert!(ranges(&older, "").unwrap_err().contains("\"nonsense\" is not a range"));
    let many = vec!["10.0.0.0/8"; lb_k8s::limits::MAX_SOURCE_RANGES + 1];
    let at = |count: usize| ranges("", &format!("loadBalancerSourceRanges: [{}], ", many[..count].join(", ")));
    assert!(at(many.len() - 1).is_ok());
    assert!(at(many.len()).unwrap_err().ends_with("more than 1000 source ranges"));
}

#[test]
fn a_policy_without_ranges_and_ranges_that_do_not_count_are_reported() {
    let reported = |annotations: &str, spec: &str| -> Vec<String> {
        let text = text(&format!("annotations: {{{annotations}}}"), &format!("clusterIP: 10.96.0.10, {spec}{PORTS}"));
        let report = Snapshot::parse("web.yaml", &text).unwrap().report();
        report.unsupported.iter().map(|finding| finding.message.clone()).collect()
    };
    let policy = format!("{}: deny", annotations::CILIUM_RANGES_POLICY);
    assert_eq!(reported(&policy, ""), ["it has no effect without `spec.loadBalancerSourceRanges`"]);
    let older = format!("{}: 10.0.0.0/8", annotations::SOURCE_RANGES);
    let listed = "loadBalancerSourceRanges: [10.0.0.0/8], ";
    assert_eq!(reported(&older, listed), ["`spec.loadBalancerSourceRanges` takes precedence"]);
    assert_eq!(reported(&older, ""), [""; 0]);
}

#[test]
fn health_check_node_ports_are_for_load_balancers_with_policy_local() {
    let read = |spec: &str| {
        let snapshot = Snapshot::parse("web.yaml", &text("", &format!("{spec}, {PORTS}"))).unwrap();
        let found: Vec<String> = snapshot.report().unsupported.iter().map(|found| found.field.clone()).collect();
        let service = snapshot.services().next().unwrap();
        (service.health_check_node_port, service.health_check(), found)
    };
    let balancer = "clusterIP: 10.96.0.10, type: LoadBalancer";
    let field = "spec.healthCheckNodePort".to_owned();
    let local = read(&format!("{balancer}, externalTrafficPolicy: Local, healthCheckNodePort: 32000"));
    assert_eq!(local, (Some(32_000), Some(32_000), vec![]));
    let cluster = read(&format!("{balancer}, externalTrafficPolicy: Cluster, healthCheckNodePort: 32000"));
    assert_eq!(cluster, (Some(32_000), None, vec![field.clone()]));
    let headless =
        read("clusterIP: None, type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32000");
    assert_eq!(headless, (Some(32_000), None, vec![field]));
    assert_eq!(
        read(&format!("{balancer}, externalTrafficPolicy: Local, healthCheckNodePort: 0")),
        (None, None, vec![])
    );
    for number in ["-1", "65536"] {
        let spec = format!("{balancer}, externalTrafficPolicy: Local, healthCheckNodePort: {number}, {PORTS}");
        let snapshot = Snapshot::parse("web.yaml", &text("", &spec)).unwrap();
        let refused = &snapshot.report().refused[0].finding;
        assert_eq!(refused.field, "spec.healthCheckNodePort", "{refused}");
    }
}

#[test]
fn what_is_not_carried_out_is_reported() {
    let with = |rest: &str| format!("clusterIP: 10.96.0.10, {rest}, {PORTS}");
    for (metadata, spec, found) in [
        (
            "",
            with("loadBalancerSourceRange: [10.0.0.0/8]"),
            "spec.loadBalancerSourceRange: there is no such field, so that every source is let in: write \
             `loadBalancerSourceRanges`",
        ),
        (
            "",
            with("healthCheckNodePort: 32000"),
            "spec.healthCheckNodePort: no health check is answered on this port: that needs type LoadBalancer, \
             frontends, and `externalTrafficPolicy: Local`",
        ),
        ("", with("sesionAffinity: ClientIP"), "spec.sesionAffinity: there is no such field"),
        (
            "annotations: {lb/speed: '9'}",
            with("type: ClusterIP"),
            "metadata.annotations[lb/speed]: there is no such annotation for this kind",
        ),
        (
            "annotations: {service.cilium.io/forwarding-mode: dsr}",
            with("type: ClusterIP"),
            "metadata.annotations[service.cilium.io/forwarding-mode]: this annotation is not supported",
        ),
        (
            "",
            "type: ExternalName, externalName: example.com".to_owned(),
            "spec.externalName: names are not resolved: such a service has no frontends",
        ),
        ("", PORTS.to_owned(), "spec.clusterIP: addresses are not allocated: name one, or `None`"),
        ("", with("type: NodePort"), "spec.ports[0].nodePort: node ports are not allocated: name one"),
        (
            "",
            with("type: LoadBalancer, loadBalancerIP: 192.0.2.1"),
            "spec.loadBalancerIP: addresses are not allocated: put it into `status.loadBalancer.ingress`",
        ),
    ] {
        assert_eq!(unsupported(metadata, &spec), [found]);
    }
}

#[test]
fn ingress_that_stands_twice_counts_once() {
    let text = text("", &format!("type: LoadBalancer, clusterIP: 10.96.0.10, {PORTS}"))
        + "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 192.0.2.2}, {ip: 192.0.2.1}]}}\n";
    let snapshot = Snapshot::parse("web.yaml", &text).unwrap();
    assert_eq!(snapshot.services().next().unwrap().load_balancer_ips, ips(&["192.0.2.1", "192.0.2.2"]));
    let found = &snapshot.report().unsupported[0];
    assert_eq!(found.field, "status.loadBalancer.ingress[2].ip");
    assert_eq!(found.message, "192.0.2.1 appears twice");
}

#[test]
fn ingress_that_gives_no_frontend_is_reported() {
    let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: lb.example.com}]}}\n";
    let text = text("", &format!("clusterIP: 10.96.0.10, {PORTS}")) + status;
    let report = Snapshot::parse("web.yaml", &text).unwrap().report();
    let found: Vec<_> = report.unsupported.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "web.yaml:5:63: document 1, Service default/web, field `status.loadBalancer.ingress[1].hostname`: names are \
             not resolved: only addresses have frontends",
            "web.yaml:5:34: document 1, Service default/web, field `status.loadBalancer.ingress`: only a service of type \
             LoadBalancer has such addresses",
        ]
    );
}

#[test]
fn node_ports_are_of_the_families_of_the_service() {
    use lb_core::addr::Family;
    for (spec, family) in [
        ("ipFamilies: [IPv4]", Some(Family::V4)),
        ("ipFamilies: [IPv6]", Some(Family::V6)),
        ("clusterIP: 'fd00::1'", Some(Family::V6)),
        ("clusterIP: 'fd00::1', ipFamilyPolicy: PreferDualStack", None),
        ("clusterIPs: [10.96.0.1, 'fd00::1']", None),
        ("ipFamilies: [IPv4], ipFamilyPolicy: RequireDualStack", None),
        ("externalIPs: [192.0.2.1]", None),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{type: NodePort, {spec}, ports: [{{port: 80, \
             nodePort: 30080}}]}}\n"
        );
        let snapshot = lb_k8s::Snapshot::parse("x.yaml", &text).unwrap();
        let service = snapshot.services().next().unwrap_or_else(|| panic!("{spec}: {:?}", snapshot.report()));
        assert_eq!(service.node_port_family, family, "{spec}");
        let again = lb_k8s::Snapshot::parse("x.yaml", &lb_k8s::write::service(service).unwrap()).unwrap();
        assert_eq!(again.services().next(), Some(service), "{spec}");
    }
}

#[test]
fn a_service_without_addresses_is_written_with_its_type() {
    for spec in [
        "ports: [{port: 80}]",
        "clusterIP: None, ports: [{port: 80}]",
        "type: LoadBalancer, clusterIP: None, ports: [{port: 80}]",
        "type: LoadBalancer, ports: [{port: 80}]",
        "type: NodePort, ports: [{port: 80}]",
        "type: NodePort, ports: [{port: 80, nodePort: 30080}]",
        "type: ExternalName, externalName: db.example.com, ports: [{port: 80}]",
        "type: ExternalName, externalName: db.example.com",
    ] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}\n");
        let snapshot = lb_k8s::Snapshot::parse("x.yaml", &text).unwrap();
        let service = snapshot.services().next().unwrap_or_else(|| panic!("{spec}: {:?}", snapshot.report()));
        let again = lb_k8s::Snapshot::parse("x.yaml", &lb_k8s::write::service(service).unwrap()).unwrap();
        assert_eq!(again.services().next(), Some(service), "{spec}");
    }
}
