//! What services ask of pools, annotation by annotation.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use lb_core::{
    addr::{Family, Protocol},
    name::ServiceName,
    service::TrafficPolicy,
};
use lb_ipam::{
    Condition, FamilyPolicy, Namespaces, PoolChoice, PoolName, Request, RequestedAddress, Sharing, Status, Timestamp,
};
use lb_k8s::{Report, Snapshot, annotations};

const POOL: &str = "---\napiVersion: lb/v1\nkind: IPPool\nmetadata: {name: a}\nspec: {blocks: [10.0.0.0/24]}\n";

/// A service of type LoadBalancer with these annotations and this in its spec, in flow style, beside a pool.
fn text(annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, annotations: {{{annotations}}}}}\nspec: {{clusterIP: \
         10.96.0.1, ports: [{{port: 80}}], type: LoadBalancer, {spec}}}\n{POOL}"
    )
}

fn parse(text: &str) -> (Option<Request>, Vec<String>) {
    let snapshot = Snapshot::parse("web.yaml", text).unwrap();
    let report = snapshot.allocating_report();
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    (snapshot.requests().next().cloned(), found(&report))
}

fn found(report: &Report) -> Vec<String> {
    report.unsupported.iter().map(|finding| format!("{}: {}", finding.field, finding.message)).collect()
}

/// What is asked for, and nothing to report.
fn read(annotations: &str, spec: &str) -> Request {
    let (request, found) = parse(&text(annotations, spec));
    assert_eq!(found, [""; 0], "{annotations} {spec}");
    request.unwrap()
}

fn wanted(texts: &[&str]) -> Vec<RequestedAddress> {
    texts.iter().flat_map(|text| RequestedAddress::parse_list(text)).collect()
}

fn listed(names: &[&str]) -> Namespaces {
    Namespaces::Listed(names.iter().map(|name| (*name).to_owned()).collect())
}

/// The request of the shortest service.
fn plain() -> Request {
    Request { families: vec![Family::V4], ports: [(Protocol::Tcp, 80)].into(), ..Request::new("default", "web") }
}

#[test]
fn everything_that_is_asked_for() {
    let text = format!(
        r#"
apiVersion: v1
kind: Service
metadata:
  namespace: shop
  name: web
  creationTimestamp: "2026-11-21T14:49:00Z"
  labels: {{color: red, io.kubernetes.service.name: forged}}
  annotations:
    lbipam.cilium.io/ips: " 10.0.0.5 , 2001:db8::5,"
    lbipam.cilium.io/sharing-key: k
    lbipam.cilium.io/sharing-cross-namespace: "red, blue"
    metallb.io/address-pool: blue-pool
    metallb.io/ip-allocated-from-pool: blue-pool
spec:
  type: LoadBalancer
  loadBalancerClass: io.cilium/l2-announcer
  loadBalancerIP: 10.0.0.4
  clusterIP: fd00::10
  clusterIPs: ["fd00::10", 10.96.0.10]
  ipFamilies: [IPv6, IPv4]
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  selector: {{app: web}}
  ports:
  - {{name: http, port: 80}}
  - {{name: dns, port: 53, protocol: UDP}}
status:
  loadBalancer:
    ingress: [{{ip: 10.0.0.5, ipMode: VIP}}, {{ip: 10.0.0.6, ipMode: Proxy}}]
  conditions:
  - {{type: example.com/Other, status: "True", reason: x, message: "", lastTransitionTime: "2026-11-21T14:49:00Z"}}
  - type: cilium.io/IPAMRequestSatisfied
    status: "False"
    reason: no_pool
    message: why
    lastTransitionTime: "2026-11-21T14:49:00Z"
{POOL}"#
    );
    let (request, found) = parse(&text);
    assert_eq!(found, [""; 0]);
    let condition = Condition { satisfied: false, reason: "no_pool".into(), message: "why".into() };
    assert_eq!(
        request.unwrap(),
        Request {
            service: ServiceName::new("shop", "web"),
            created: Timestamp::from_secs(1_795_272_540),
            labels: [("color".into(), "red".into()), ("io.kubernetes.service.name".into(), "forged".into())].into(),
            load_balancer: true,
            class: Some("io.cilium/l2-announcer".into()),
            family_policy: FamilyPolicy::RequireDualStack,
            families: vec![Family::V6, Family::V4],
            addresses: wanted(&["10.0.0.4", "10.0.0.5", "2001:db8::5"]),
            pool: PoolChoice::Only(PoolName::new("blue-pool")),
            sharing: Some(Sharing { namespaces: listed(&["red", "blue"]), ..Sharing::new("k") }),
            ports: [(Protocol::Tcp, 80), (Protocol::Udp, 53)].into(),
            external_traffic_policy: TrafficPolicy::Local,
            pod_selector: [("app".into(), "web".into())].into(),
            published: Status {
                addresses: vec!["10.0.0.5".parse().unwrap(), "10.0.0.6".parse().unwrap()],
                condition: Some(condition),
            },
        }
    );
}

#[test]
fn every_annotation_by_every_name() {
    assert_eq!(read("", ""), plain());
    for key in [
        annotations::IPS,
        annotations::CILIUM_IPS,
        annotations::CILIUM_IPS_OLD,
        annotations::METALLB_IPS,
        annotations::METALLB_IPS_OLD,
    ] {
        let request = read(&format!("{key}: '10.0.0.5,10.0.0.6'"), "");
        assert_eq!(request, Request { addresses: wanted(&["10.0.0.5,10.0.0.6"]), ..plain() }, "{key}");
    }
    for key in [annotations::SHARING_KEY, annotations::CILIUM_SHARING_KEY, annotations::CILIUM_SHARING_KEY_OLD] {
        assert_eq!(read(&format!("{key}: k"), "").sharing, Some(Sharing::new("k")), "{key}");
    }
    // MetalLB knows no namespaces.
    for key in [annotations::METALLB_SHARING_KEY, annotations::METALLB_SHARING_KEY_OLD] {
        let sharing = read(&format!("{key}: k"), "").sharing;
        assert_eq!(sharing, Some(Sharing { namespaces: Namespaces::All, ..Sharing::new("k") }), "{key}");
    }
    for key in [
        annotations::SHARING_NAMESPACES,
        annotations::CILIUM_SHARING_NAMESPACES,
        annotations::CILIUM_SHARING_NAMESPACES_OLD,
    ] {
        for (list, namespaces) in
            [("a, b", listed(&["a", "b"])), ("'*'", Namespaces::All), ("'a,*'", Namespaces::All), ("a", listed(&["a"]))]
        {
            for name in [annotations::CILIUM_SHARING_KEY, annotations::METALLB_SHARING_KEY] {
                let sharing = read(&format!("{key}: '{}', {name}: k", list.trim_matches('\'')), "").sharing.unwrap();
                assert_eq!(sharing.namespaces, namespaces, "{key} {list}");
            }
        }
    }
    for key in [annotations::POOL, annotations::METALLB_POOL, annotations::METALLB_POOL_OLD] {
        let pool = read(&format!("{key}: blue"), "").pool;
        assert_eq!(pool, PoolChoice::Only(PoolName::new("blue")), "{key}");
    }
    let pool = read(&format!("{}: blue", annotations::PREFERRED_POOL), "").pool;
    assert_eq!(pool, PoolChoice::Prefer(PoolName::new("blue")));
}

#[test]
fn annotations_that_say_nothing_do_not_count() {
    assert_eq!(read("lb/ips: '', lbipam.cilium.io/ips: 10.0.0.5", "").addresses, wanted(&["10.0.0.5"]));
    assert_eq!(read("lbipam.cilium.io/ips: ' '", ""), plain());
    assert_eq!(read("lbipam.cilium.io/ips: ', ,'", "").addresses, []);
    assert_eq!(read("lbipam.cilium.io/sharing-key: '', metallb.io/address-pool: ''", ""), plain());
}

#[test]
fn the_first_of_several_annotations_counts_and_the_others_are_reported() {
    let request = |annotations: &str, spec: &str| {
        let (request, found) = parse(&text(annotations, spec));
        (request.unwrap(), found)
    };
    let says =
        |key: &str, first: &str| format!("metadata.annotations[{key}]: {first} has another value and takes precedence");
    let all = [
        annotations::IPS,
        annotations::CILIUM_IPS,
        annotations::CILIUM_IPS_OLD,
        annotations::METALLB_IPS,
        annotations::METALLB_IPS_OLD,
    ];
    for (index, first) in all.iter().enumerate() {
        let later = &all[index + 1..];
        let others: String = later.iter().map(|key| format!(", {key}: 10.0.0.9")).collect();
        let (request, found) = request(&format!("{first}: 10.0.0.5{others}"), "");
        assert_eq!(request.addresses, wanted(&["10.0.0.5"]));
        assert_eq!(found, later.iter().map(|key| says(key, first)).collect::<Vec<_>>());
    }
    // The same thing said twice is no contradiction.
    assert_eq!(
        read("lbipam.cilium.io/ips: '10.0.0.5, ::1', metallb.io/loadBalancerIPs: '10.0.0.5,::1'", "").addresses.len(),
        2
    );

    let (shared, found) =
        request("lb/sharing-key: a, metallb.io/allow-shared-ip: b, io.cilium/lb-ipam-sharing-key: a", "");
    assert_eq!(shared.sharing, Some(Sharing::new("a")));
    assert_eq!(found, [says("metallb.io/allow-shared-ip", "lb/sharing-key")]);

    let (pool, found) =
        request("metallb.io/address-pool: a, metallb.universe.tf/address-pool: b, lb/preferred-pool: c", "");
    assert_eq!(pool.pool, PoolChoice::Only(PoolName::new("a")));
    assert_eq!(
        found,
        [
            says("metallb.universe.tf/address-pool", "metallb.io/address-pool"),
            "metadata.annotations[lb/preferred-pool]: metallb.io/address-pool admits one pool and takes precedence"
                .into(),
        ]
    );

    let (alone, found) = request("lbipam.cilium.io/sharing-cross-namespace: a", "");
    assert_eq!(alone, plain());
    assert_eq!(
        found,
        [
            "metadata.annotations[lbipam.cilium.io/sharing-cross-namespace]: it needs lb/sharing-key, or what that is called \
          elsewhere"
        ]
    );
}

#[test]
fn the_older_field_for_an_address_comes_first() {
    for (annotations, addresses) in [
        ("", &["10.0.0.4"][..]),
        ("lbipam.cilium.io/ips: '10.0.0.5,10.0.0.6'", &["10.0.0.4", "10.0.0.5", "10.0.0.6"]),
        ("lbipam.cilium.io/ips: '10.0.0.5,10.0.0.4'", &["10.0.0.5", "10.0.0.4"]),
        ("metallb.io/loadBalancerIPs: 10.0.0.4", &["10.0.0.4"]),
    ] {
        assert_eq!(read(annotations, "loadBalancerIP: 10.0.0.4").addresses, wanted(addresses), "{annotations}");
    }
    let (request, found) = parse(&text("metallb.io/loadBalancerIPs: 10.0.0.5", "loadBalancerIP: 10.0.0.4"));
    assert_eq!(request.unwrap().addresses, wanted(&["10.0.0.5"]));
    assert_eq!(found, ["spec.loadBalancerIP: metallb.io/loadBalancerIPs names other addresses and takes precedence"]);
}

#[test]
fn what_is_no_address_is_reported_and_handed_on() {
    let key = annotations::CILIUM_IPS;
    for (annotations, spec, addresses, found) in [
        (
            "lbipam.cilium.io/ips: ' 10.0.0.5 , garbage'",
            "",
            wanted(&["10.0.0.5,garbage"]),
            [format!("metadata.annotations[{key}]: \"garbage\" is not an IP address")],
        ),
        (
            "lbipam.cilium.io/ips: \"\\e[2J\"",
            "",
            vec![RequestedAddress::Unreadable("\\u{1b}[2J".into())],
            [format!("metadata.annotations[{key}]: \"\\\\u{{1b}}[2J\" is not an IP address")],
        ),
        (
            "",
            "loadBalancerIP: 10.0.0",
            wanted(&["10.0.0"]),
            ["spec.loadBalancerIP: \"10.0.0\" is not an IP address".into()],
        ),
    ] {
        let (request, said) = parse(&text(annotations, spec));
        assert_eq!(request.unwrap().addresses, addresses);
        assert_eq!(said, found);
    }
}

#[test]
fn families_are_filled_in_as_the_api_server_does() {
    for (spec, policy, families) in [
        ("ipFamilyPolicy: SingleStack", FamilyPolicy::SingleStack, &[Family::V4][..]),
        ("ipFamilyPolicy: PreferDualStack", FamilyPolicy::PreferDualStack, &[Family::V4, Family::V6]),
        ("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4]", FamilyPolicy::PreferDualStack, &[Family::V4]),
        ("ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6]", FamilyPolicy::SingleStack, &[Family::V4]),
        ("ipFamilies: [IPv4, IPv6]", FamilyPolicy::RequireDualStack, &[Family::V4, Family::V6]),
        ("ipFamilies: [IPv4]", FamilyPolicy::SingleStack, &[Family::V4]),
    ] {
        let request = read("", spec);
        assert_eq!((request.family_policy, request.families.as_slice()), (policy, families), "{spec}");
    }
    let v6 = text("", "").replace("10.96.0.1", "'fd00::1'");
    assert_eq!(parse(&v6).0.unwrap().families, [Family::V6]);
    let without = |spec: &str| {
        let request = parse(&text("", spec).replace("clusterIP: 10.96.0.1,", "")).0.unwrap();
        (request.family_policy, request.families)
    };
    assert_eq!(without("").1, []);
    for policy in ["PreferDualStack", "RequireDualStack"] {
        let spec = format!("ipFamilyPolicy: {policy}, ipFamilies: [IPv6]");
        assert_eq!(without(&spec).1, [Family::V6, Family::V4], "{policy}");
    }
    let both = (FamilyPolicy::RequireDualStack, vec![Family::V6, Family::V4]);
    assert_eq!(without("ipFamilies: [IPv6, IPv4]"), both);
    assert_eq!(without("clusterIPs: ['fd00::1', 10.96.0.1]"), both);
    let inferred = without("clusterIPs: ['fd00::1', 10.96.0.1], ipFamilies: [IPv6], ipFamilyPolicy: PreferDualStack");
    assert_eq!(inferred, (FamilyPolicy::PreferDualStack, vec![Family::V6, Family::V4]));
}

#[test]
fn services_that_are_no_load_balancers_ask_for_nothing() {
    let message = "only a service of type LoadBalancer with frontends asks for addresses";
    for spec in ["type: ClusterIP, clusterIP: 10.96.0.1", "type: LoadBalancer, clusterIP: None"] {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, annotations: {{lbipam.cilium.io/ips: 10.0.0.5, \
             metallb.io/address-pool: x}}}}\nspec: {{{spec}, ports: [{{port: 80}}], loadBalancerIP: 10.0.0.5}}\n{POOL}"
        );
        let (request, found) = parse(&text);
        assert_eq!(request, None);
        assert_eq!(
            found,
            [
                format!("metadata.annotations[lbipam.cilium.io/ips]: {message}"),
                format!("metadata.annotations[metallb.io/address-pool]: {message}"),
                format!("spec.loadBalancerIP: {message}"),
            ]
        );
    }
}

#[test]
fn what_a_service_has_left_is_handed_on() {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: \
         80}}]}}\nstatus: {{loadBalancer: {{ingress: [{{ip: 10.0.0.5}}]}}}}\n{POOL}"
    );
    let request = Snapshot::parse("web.yaml", &text).unwrap().requests().next().unwrap().clone();
    let published = Status::of(&["10.0.0.5".parse().unwrap()]);
    assert_eq!(request, Request { load_balancer: false, published, ..Request::new("default", "web") });
}

#[test]
fn the_status_is_read_as_others_left_it() {
    let request = |status: &str| {
        let (before, after) = text("", "").split_once("---").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let snapshot = Snapshot::parse("web.yaml", &format!("{before}status: {status}\n---{after}")).unwrap();
        assert!(snapshot.report().refused.is_empty(), "{:?}", snapshot.report());
        snapshot.requests().next().unwrap().published.clone()
    };
    let one = Status::of(&["10.0.0.5".parse().unwrap()]);
    assert_eq!(request("{}"), Status::default());
    assert_eq!(request("{loadBalancer: {ingress: [{ip: 10.0.0.5}, {ip: 10.0.0.5}]}}"), one);
    assert_eq!(request("{loadBalancer: {ingress: [{hostname: lb.example.com}, {ip: 10.0.0.5}]}}"), one);
    for (kind, satisfied) in [("cilium.io/IPAMRequestSatisfied", true), ("io.cilium/lb-ipam-request-satisfied", true)] {
        let status = format!(
            "{{conditions: [{{type: {kind}, status: 'True', reason: satisfied, message: '', lastTransitionTime: \
                      '2026-11-21T14:49:00Z'}}]}}"
        );
        let condition = Condition { satisfied, reason: "satisfied".into(), message: String::new() };
        assert_eq!(request(&status), Status { condition: Some(condition), ..Status::default() });
    }
}

#[test]
fn where_nobody_allocates_every_wish_is_reported() {
    let asks = text("lbipam.cilium.io/ips: 10.0.0.5, metallb.io/address-pool: x", "loadBalancerIP: 10.0.0.5");
    let snapshot = Snapshot::parse("web.yaml", &asks).unwrap();
    let wishes = [
        "spec.loadBalancerIP: addresses are not allocated: put it into `status.loadBalancer.ingress`",
        "metadata.annotations[lbipam.cilium.io/ips]: addresses are not allocated",
        "metadata.annotations[metallb.io/address-pool]: addresses are not allocated",
    ];
    assert_eq!(found(&snapshot.report())[..3], wishes);
    assert!(snapshot.allocating_report().is_clean());
    let without_pools = asks.split_once("---").unwrap().0;
    let report = Snapshot::parse("web.yaml", without_pools).unwrap().allocating_report();
    assert_eq!(found(&report), wishes, "there is nothing to allocate from");
}

#[test]
fn annotations_that_nobody_knows_are_reported() {
    for key in
        ["lbipam.cilium.io/pool", "io.cilium/lb-ipam-pool", "metallb.io/speaker", "metallb.universe.tf/x", "lb/ip"]
    {
        let (_, found) = parse(&text(&format!("{key}: x"), ""));
        assert_eq!(found.len(), 1, "{key}");
        assert!(found[0].starts_with(&format!("metadata.annotations[{key}]: ")), "{found:?}");
    }
}
