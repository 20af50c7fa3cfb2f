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
fn addresses() {
    let ip = |n: usize| format!("11.0.{}.{}", n / 250, n % 250 + 1);
    let external = |n| {
        let ips = list(n, |n| format!("\"{}\"", ip(n)));
        service("web", "", 1).replace(r#""spec": {"#, &format!(r#""spec": {{"externalIPs": [{ips}], "#))
    };
    let ingress = |n| {
        let ips = list(n, |n| format!(r#"{{"ip": "{}"}}"#, ip(n)));
        let status =
            format!(r#""status": {{"loadBalancer": {{"ingress": [{ips}]}}}}, "spec": {{"type": "LoadBalancer", "#);
        service("web", "", 1).replace(r#""spec": {"#, &status)
    };
    let (at, above) = (limits::MAX_ADDRESSES, limits::MAX_ADDRESSES + 1);
    check(&external(at), &external(above), "field `spec.externalIPs`: more than 1000 addresses");
    check(&ingress(at), &ingress(above), "field `status.loadBalancer.ingress`: more than 1000 addresses");
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
    assert!(error.contains("aliases repeat more than 10000 values; "), "{error}");
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
        assert_eq!((report.skipped.len(), report.unlisted.skipped), (listed, unlisted));
    }
}

/// A file whose list of findings is full, and then these objects.
fn after_many_findings(objects: &str) -> String {
    let service = |n| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "s{n}"}}, "bogus": 1, "spec": {{"clusterIP": "None"}}}}"#
        )
    };
    (0..limits::MAX_FINDINGS_PER_FILE).map(service).collect::<String>() + objects
}

#[test]
fn what_lets_more_in_is_kept_beyond_the_findings_that_are_listed() {
    let text = after_many_findings(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "zz"}, "spec": {"clusterIP": "None", "bogus": 1,
            "loadBalancerSourcesRanges": ["10.0.0.0/8"], "loadBalancerSourceRange": ["10.0.0.0/8"]}}
           {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"}}"#,
    );
    let report = Snapshot::parse("x.json", &text).unwrap().report();
    let kept: Vec<String> = report.exposing.iter().map(ToString::to_string).collect();
    assert_eq!(kept.len(), 2, "one of each object: {kept:?}");
    assert!(kept[0].contains("Service default/zz, field `spec.loadBalancerSourceRange"), "{kept:?}");
    assert!(kept[1].contains("NetworkPolicy deny: policies are not enforced"), "{kept:?}");
    assert_eq!(report.unsupported.len() + report.unlisted.unsupported, limits::MAX_FINDINGS_PER_FILE + 3);
    assert_eq!(report.unlisted.skipped, 1);
}

#[test]
fn what_lets_more_in_is_kept_beyond_the_findings_of_all_files() {
    let directory = tempfile::tempdir().unwrap();
    let files = limits::MAX_FINDINGS / limits::MAX_FINDINGS_PER_FILE;
    let skipped = r#"{"apiVersion": "x", "kind": "X"}"#.repeat(limits::MAX_FINDINGS_PER_FILE);
    (0..files).for_each(|n| fs::write(directory.path().join(format!("{n}.json")), &skipped).unwrap());
    let open = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "zz"},
                   "spec": {"clusterIP": "None", "loadBalancerSourceRange": ["10.0.0.0/8"]}}"#;
    fs::write(directory.path().join("z.json"), open).unwrap();
    let report = Snapshot::read(&[directory.path()]).unwrap().report();
    assert_eq!((report.exposing.len(), report.unlisted.unsupported), (1, 1));
    assert_eq!(report.exposing[0].object.name, "zz");
}

#[test]
fn objects_that_are_refused_are_kept_beyond_the_findings_that_are_listed() {
    let text = after_many_findings(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "zz"}, "spec": {"clusterIP": "nonsense"}}
           {"apiVersion": "v1", "kind": "Service", "metadata": {}}"#,
    );
    let report = Snapshot::parse("x.json", &text).unwrap().report();
    assert_eq!((report.refused.len(), report.unlisted.refused), (0, 2));
    assert_eq!(report.also_refused.len(), 1);
    assert_eq!(report.also_refused[0].finding.object.name, "zz");
}

/// A pool of which these are the kind's lines and the spec.
fn pool(kind: &str, spec: &str) -> String {
    format!(r#"{{{kind}, "metadata": {{"name": "a"}}, "spec": {{{spec}}}}}"#)
}

const CILIUM: &str = r#""apiVersion": "cilium.io/v2", "kind": "CiliumLoadBalancerIPPool""#;
const METALLB: &str = r#""apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool""#;
const OURS: &str = r#""apiVersion": "lb/v1", "kind": "IPPool""#;

fn list(length: usize, item: impl Fn(usize) -> String) -> String {
    (0..length).map(item).collect::<Vec<_>>().join(", ")
}

#[test]
fn blocks() {
    let address = |n: usize| format!("10.0.{}.{}", n / 256, n % 256);
    let quoted = |n: usize| format!("\"{}\"", address(n));
    let says = "more than 4096 entries: make several pools";
    let (at, above) = (lb_ipam::Pool::MAX_BLOCKS, lb_ipam::Pool::MAX_BLOCKS + 1);
    for (kind, spec) in [
        (
            CILIUM,
            &(|n| format!(r#""blocks": [{}]"#, list(n, |n| format!(r#"{{"start": "{}"}}"#, address(n)))))
                as &dyn Fn(_) -> _,
        ),
        (METALLB, &|n| format!(r#""addresses": [{}]"#, list(n, quoted))),
        (OURS, &|n| format!(r#""blocks": [{}]"#, list(n, quoted))),
        (OURS, &|n| format!(r#""blocks": ["11.0.0.0/8"], "avoid": [{}]"#, list(n, quoted))),
    ] {
        check(&pool(kind, &spec(at)), &pool(kind, &spec(above)), says);
    }
}

#[test]
fn selectors_of_pools() {
    let labels = |n| list(n, |n| format!(r#""l{n}": "v""#));
    let values = |n| format!(r#"{{"key": "k", "operator": "In", "values": [{}]}}"#, list(n, |n| format!("\"v{n}\"")));
    let (at, above) = (limits::MAX_SELECTOR_TERMS, limits::MAX_SELECTOR_TERMS + 1);
    let says = "more than 1000 labels, expressions and values: make several pools";
    let spec = |labels: String, expressions: String| {
        let selector = format!(r#"{{"matchLabels": {{{labels}}}, "matchExpressions": [{expressions}]}}"#);
        pool(CILIUM, &format!(r#""blocks": [{{"cidr": "10.0.0.0/8"}}], "serviceSelector": {selector}"#))
    };
    check(&spec(labels(at), String::new()), &spec(labels(above), String::new()), says);
    check(&spec(String::new(), values(at - 1)), &spec(String::new(), values(at)), says);
    check(&spec(labels(1), values(at - 2)), &spec(labels(2), values(at - 2)), says);

    let allocation =
        |rest: String| pool(METALLB, &format!(r#""addresses": ["10.0.0.0/8"], "serviceAllocation": {{{rest}}}"#));
    let namespaces = |n| allocation(format!(r#""namespaces": [{}]"#, list(n, |n| format!("\"n{n}\""))));
    check(&namespaces(at), &namespaces(above), "more than 1000 namespaces: select them by label");
    let (at, above) = (limits::MAX_SELECTORS, limits::MAX_SELECTORS + 1);
    for name in ["namespaceSelectors", "serviceSelectors"] {
        let selector = |n| format!(r#"{{"matchLabels": {{"a": "v{n}"}}}}"#);
        let many = |n| allocation(format!(r#""{name}": [{}]"#, list(n, selector)));
        check(&many(at), &many(above), "more than 100 selectors: make several pools");
    }
}

#[test]
fn rest_of_addresses() {
    let (at, above) = (limits::MAX_REST_SECONDS, limits::MAX_REST_SECONDS + 1);
    for field in ["quarantineSeconds", "drainSeconds"] {
        let spec = |seconds| pool(OURS, &format!(r#""blocks": ["10.0.0.0/8"], "{field}": {seconds}"#));
        check(&spec(at), &spec(above), "2592001 is not a number from 0 to 2592000");
    }
}

/// What services ask for is cut, not refused: they are served whatever they ask.
#[test]
fn wishes_of_services() {
    let read = |annotations: &str| {
        let service = service("web", &format!(r#", "annotations": {{{annotations}}}"#), 1);
        let text = service.replace(r#""spec": {"#, r#""spec": {"type": "LoadBalancer", "#);
        let text = text + &pool(OURS, r#""blocks": ["10.0.0.0/8"]"#);
        let snapshot = Snapshot::parse("x.json", &text).unwrap();
        let request = snapshot.requests().next().unwrap().clone();
        (request, snapshot.allocating_report().unsupported.first().map(|finding| finding.message.clone()))
    };
    let ips = |n| read(&format!(r#""lb/ips": "{}""#, list(n, |n| format!("10.0.{}.{}", n / 256, n % 256))));
    let at = lb_ipam::Request::MAX_ADDRESSES;
    assert_eq!((ips(at).0.addresses.len(), ips(at).1), (at, None));
    let said = "only the first 256 addresses are looked at".to_owned();
    // The allocator is told that there are more.
    assert_eq!((ips(at + 9).0.addresses.len(), ips(at + 9).1), (at + 1, Some(said)));

    let namespaces = |n| {
        let list = list(n, |n| format!("n{n}"));
        let (request, said) = read(&format!(r#""lb/sharing-key": "k", "lb/sharing-namespaces": "{list}""#));
        let lb_ipam::Namespaces::Listed(listed) = request.sharing.unwrap().namespaces else { panic!("{said:?}") };
        (listed.len(), said)
    };
    let at = limits::MAX_SHARING_NAMESPACES;
    assert_eq!(namespaces(at), (at, None));
    assert_eq!(namespaces(at + 1), (at, Some("only the first 1000 namespaces are looked at".into())));
}

#[test]
fn pools_of_every_size() {
    for block in ["0.0.0.0/0", "::/0", "10.0.0.1", "0.0.0.0-255.255.255.255"] {
        assert_eq!(refused(&pool(OURS, &format!(r#""blocks": ["{block}"]"#))), None);
    }
}

#[test]
fn pools_together() {
    let many =
        |n| (0..n).map(|n| pool(OURS, r#""blocks": []"#).replace(r#""a""#, &format!(r#""p{n}""#))).collect::<String>();
    assert_eq!(Snapshot::parse("x.json", &many(limits::MAX_POOLS)).unwrap().pools().count(), limits::MAX_POOLS);
    let error = Snapshot::parse("x.json", &many(limits::MAX_POOLS + 1)).unwrap_err().to_string();
    assert!(error.starts_with("x.json: there are more than 10000 pools in it and the other files"), "{error}");
}

#[test]
fn namespaces_that_pools_select_among() {
    let namespaces = limits::MAX_NAMESPACE_COMPARISONS / (2 * limits::MAX_SELECTORS);
    let text = |namespaces, selectors| {
        let namespace = |n| format!(r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "n{n}"}}}}"#);
        let selector = |n| format!(r#"{{"matchLabels": {{"kubernetes.io/metadata.name": "n{n}"}}}}"#);
        let selectors = list(selectors, selector);
        let allocation = format!(r#""serviceAllocation": {{"namespaceSelectors": [{selectors}]}}"#);
        let pool = pool(METALLB, &format!(r#""addresses": ["10.0.0.0/8"], {allocation}"#));
        (0..namespaces).map(namespace).chain([pool]).collect::<String>()
    };
    check(
        &text(namespaces, limits::MAX_SELECTORS),
        &text(namespaces + 1, limits::MAX_SELECTORS),
        "it and the pools before it take more than 1000000 comparisons with namespaces: name these instead; it allocates nothing \
         until that is corrected",
    );
    let snapshot = Snapshot::parse("x.json", &text(namespaces + 1, limits::MAX_SELECTORS)).unwrap();
    assert!(snapshot.pools().all(|pool| pool.disabled));
}
