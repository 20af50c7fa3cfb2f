//! Pools of three kinds, field by field: what is taken over, refused and reported.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lb_ipam::{Block, Expression, Operator, Pool, SERVICE_NAMESPACE_LABEL, Selector, Timestamp};
use lb_k8s::{Instead, Snapshot};

const CILIUM: &str = "apiVersion: cilium.io/v2\nkind: CiliumLoadBalancerIPPool";
const CILIUM_ALPHA: &str = "apiVersion: cilium.io/v2alpha1\nkind: CiliumLoadBalancerIPPool";
const METALLB: &str = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool";
const OURS: &str = "apiVersion: lb/v1\nkind: IPPool";

/// A pool of which `spec` is the spec, in flow style.
fn text(kind: &str, spec: &str) -> String {
    format!("{kind}\nmetadata: {{name: blue}}\nspec: {spec}\n")
}

fn snapshot(kind: &str, spec: &str) -> Snapshot {
    Snapshot::parse("pool.yaml", &text(kind, spec)).unwrap()
}

fn read(kind: &str, spec: &str) -> Pool {
    let snapshot = snapshot(kind, spec);
    let report = snapshot.allocating_report();
    assert!(report.is_clean(), "{spec}: {report:?}");
    snapshot.pools().next().unwrap()
}

/// What is refused, and that the pool gives nothing out.
fn refused(kind: &str, spec: &str) -> String {
    let snapshot = snapshot(kind, spec);
    let report = snapshot.allocating_report();
    assert_eq!(report.refused.len(), 1, "{spec}: {report:?}");
    assert_eq!(report.refused[0].instead, Instead::Disabled);
    assert!(snapshot.pools().all(|pool| pool.disabled), "{spec}");
    let finding = &report.refused[0].finding;
    format!("{}: {}", finding.field, finding.message)
}

fn noted(kind: &str, spec: &str) -> Vec<String> {
    let report = snapshot(kind, spec).allocating_report();
    assert!(report.refused.is_empty(), "{spec}: {:?}", report.refused);
    report.unsupported.iter().map(|finding| format!("{}: {}", finding.field, finding.message)).collect()
}

fn blue(blocks: &[&str]) -> Pool {
    Pool::new("blue", blocks)
}

fn is_in(key: &str, values: &[&str]) -> Expression {
    Expression::new(key, Operator::In, values.iter().copied())
}

fn expressions(match_expressions: Vec<Expression>) -> Selector {
    Selector { match_expressions, ..Selector::default() }
}

fn labels(labels: &[(&str, &str)]) -> Selector {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Selector { match_labels: labels.collect(), ..Selector::default() }
}

#[test]
fn cilium_pools_field_by_field() {
    for kind in [CILIUM, CILIUM_ALPHA] {
        for (spec, expected) in [
            ("{blocks: [{cidr: 20.0.10.0/24}]}", blue(&["20.0.10.0/24"])),
            ("{blocks: [{cidr: '2001:db8::/64'}, {cidr: '::/0'}]}", blue(&["2001:db8::/64", "::/0"])),
            ("{blocks: [{start: 20.0.20.100, stop: 20.0.20.199}]}", blue(&["20.0.20.100-20.0.20.199"])),
            ("{blocks: [{start: 1.2.3.4}, {start: '::1', stop: '::1'}]}", blue(&["1.2.3.4", "::1-::1"])),
            ("{blocks: [{start: ' 1.2.3.4 ', cidr: ''}]}", blue(&["1.2.3.4"])),
            ("{blocks: [{cidr: 10.0.0.0/8}], disabled: true}", Pool { disabled: true, ..blue(&["10.0.0.0/8"]) }),
            ("{blocks: [{cidr: 10.0.0.0/8}], disabled: false, allowFirstLastIPs: 'Yes'}", blue(&["10.0.0.0/8"])),
            (
                "{blocks: [{cidr: 10.0.0.0/8}], allowFirstLastIPs: 'No'}",
                Pool { allow_first_last: false, ..blue(&["10.0.0.0/8"]) },
            ),
            (
                "{blocks: [{cidr: 10.0.0.0/8}], allowFirstLastIPs: No}",
                Pool { allow_first_last: false, ..blue(&["10.0.0.0/8"]) },
            ),
            // Releases that read this field keep first and last addresses back.
            ("{cidrs: [{cidr: 10.0.0.0/8}]}", Pool { allow_first_last: false, ..blue(&["10.0.0.0/8"]) }),
            ("{cidrs: [{cidr: 10.0.0.0/8}], blocks: [], allowFirstLastIPs: 'Yes'}", blue(&["10.0.0.0/8"])),
            (
                "{blocks: [{cidr: 10.0.0.0/8}], serviceSelector: {matchLabels: {color: red, a.b/c: ''}}}",
                Pool { selectors: vec![labels(&[("color", "red"), ("a.b/c", "")])], ..blue(&["10.0.0.0/8"]) },
            ),
            (
                "{blocks: [{cidr: 10.0.0.0/8}], serviceSelector: {matchExpressions: [{key: io.kubernetes.service.name, \
                 operator: In, values: [w, x]}, {key: b, operator: NotIn, values: [z]}, {key: c, operator: Exists}, \
                 {key: d, operator: DoesNotExist, values: []}]}}",
                Pool {
                    selectors: vec![expressions(vec![
                        is_in("io.kubernetes.service.name", &["w", "x"]),
                        Expression { operator: Operator::NotIn, ..is_in("b", &["z"]) },
                        Expression { operator: Operator::Exists, ..is_in("c", &[]) },
                        Expression { operator: Operator::DoesNotExist, ..is_in("d", &[]) },
                    ])],
                    ..blue(&["10.0.0.0/8"])
                },
            ),
            (
                "{blocks: [{cidr: 10.0.0.0/8}], serviceSelector: {}}",
                Pool { selectors: vec![Selector::default()], ..blue(&["10.0.0.0/8"]) },
            ),
        ] {
            assert_eq!(read(kind, spec), expected, "{spec}");
        }
    }
}

#[test]
fn metallb_pools_field_by_field() {
    let one = || blue(&["10.0.0.0/24"]);
    let namespaces = |names: &[&str]| is_in(SERVICE_NAMESPACE_LABEL, names);
    for (spec, expected) in [
        (
            "addresses: [10.0.0.0/24, 10.0.1.1-10.0.1.9, '2001:db8::/64']",
            blue(&["10.0.0.0/24", "10.0.1.1-10.0.1.9", "2001:db8::/64"]),
        ),
        ("addresses: [' 10.0.1.1 - 10.0.1.9 ', 10.0.0.5/32]", blue(&["10.0.1.1-10.0.1.9", "10.0.0.5/32"])),
        ("addresses: [10.0.0.0/24], autoAssign: false", Pool { auto_assign: false, ..one() }),
        ("addresses: [10.0.0.0/24], autoAssign: true, avoidBuggyIPs: false", one()),
        ("addresses: [10.0.0.0/24], avoidBuggyIPs: true", Pool { avoid_zero_and_255: true, ..one() }),
        ("addresses: [10.0.0.0/24], serviceAllocation: {}", one()),
        ("addresses: [10.0.0.0/24], serviceAllocation: {priority: 10}", Pool { priority: Some(10), ..one() }),
        ("addresses: [10.0.0.0/24], serviceAllocation: {priority: 0}", one()),
        // Pools for some services come before those for all.
        (
            "addresses: [10.0.0.0/24], serviceAllocation: {namespaces: [b, a]}",
            Pool { priority: Some(u32::MAX), selectors: vec![expressions(vec![namespaces(&["a", "b"])])], ..one() },
        ),
        (
            "addresses: [10.0.0.0/24], serviceAllocation: {priority: 7, serviceSelectors: [{matchLabels: {a: b}}]}",
            Pool { priority: Some(7), selectors: vec![Selector::label("a", "b")], ..one() },
        ),
        (
            "addresses: [10.0.0.0/24], serviceAllocation: {priority: 7, namespaces: [x], serviceSelectors: \
             [{matchLabels: {a: b}}]}",
            Pool {
                priority: Some(7),
                selectors: vec![Selector { match_expressions: vec![namespaces(&["x"])], ..Selector::label("a", "b") }],
                ..one()
            },
        ),
        // Any of several.
        (
            "addresses: [10.0.0.0/24], serviceAllocation: {priority: 7, serviceSelectors: [{matchLabels: {a: c}}, \
             {matchExpressions: [{key: a, operator: In, values: [d, b]}]}]}",
            Pool {
                priority: Some(7),
                selectors: vec![Selector::label("a", "c"), expressions(vec![is_in("a", &["b", "d"])])],
                ..one()
            },
        ),
        (
            "addresses: [10.0.0.0/24], serviceAllocation: {priority: 7, serviceSelectors: [{matchLabels: {a: c}}, {}]}",
            Pool { priority: Some(7), selectors: vec![Selector::label("a", "c"), Selector::default()], ..one() },
        ),
        (
            "addresses: [10.0.0.0/24], serviceAllocation: {namespaces: [x], serviceSelectors: [{matchLabels: {a: b, c: d}, \
             matchExpressions: [{key: e, operator: Exists}]}, {matchLabels: {f: g}}]}",
            Pool {
                priority: Some(u32::MAX),
                selectors: vec![
                    Selector {
                        match_expressions: vec![
                            Expression { operator: Operator::Exists, ..is_in("e", &[]) },
                            namespaces(&["x"]),
                        ],
                        ..labels(&[("a", "b"), ("c", "d")])
                    },
                    Selector { match_expressions: vec![namespaces(&["x"])], ..Selector::label("f", "g") },
                ],
                ..one()
            },
        ),
    ] {
        assert_eq!(read(METALLB, &format!("{{{spec}}}")), expected, "{spec}");
    }
}

#[test]
fn namespaces_are_selected_among_those_that_are_declared() {
    let namespaces = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: red, labels: {team: a}}\n---\napiVersion: \
                      v1\nkind: Namespace\nmetadata: {name: blue}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: \
                      green, labels: {team: a}}\n";
    let selected = |selectors: &str| {
        let spec = format!("{{addresses: [10.0.0.0/24], serviceAllocation: {{{selectors}}}}}");
        let text = format!("{}{namespaces}", text(METALLB, &spec));
        let snapshot = Snapshot::parse("pool.yaml", &text).unwrap();
        assert!(snapshot.allocating_report().is_clean(), "{:?}", snapshot.allocating_report());
        snapshot.pools().next().unwrap().selectors
    };
    let names = |names: &[&str]| vec![expressions(vec![is_in(SERVICE_NAMESPACE_LABEL, names)])];
    for (selectors, expected) in [
        ("namespaceSelectors: [{matchLabels: {team: a}}]", names(&["green", "red"])),
        ("namespaceSelectors: [{matchLabels: {team: a}}], namespaces: [other]", names(&["green", "other", "red"])),
        ("namespaceSelectors: [{matchLabels: {kubernetes.io/metadata.name: blue}}]", names(&["blue"])),
        ("namespaceSelectors: [{matchExpressions: [{key: team, operator: DoesNotExist}]}]", names(&["blue"])),
        ("namespaceSelectors: [{matchLabels: {team: a}}, {}]", names(&["blue", "green", "red"])),
    ] {
        assert_eq!(selected(selectors), expected, "{selectors}");
    }
    // Nobody is in a namespace that does not exist.
    let nobody = selected("namespaceSelectors: [{matchLabels: {team: none}}]");
    assert!(!nobody[0].matches(&lb_core::name::ServiceName::new("red", "web"), &[].into()));
}

/// Any of the selectors, everything in it, and in one of the namespaces.
#[test]
fn several_selectors_of_metallb_choose_services_as_metallb_does() {
    let spec = "{addresses: [10.0.0.0/24], serviceAllocation: {namespaces: [shop], namespaceSelectors: [{matchLabels: \
                {team: a}}], serviceSelectors: [{matchLabels: {tier: web, env: prod}, matchExpressions: [{key: canary, \
                operator: DoesNotExist}, {key: zone, operator: NotIn, values: [x]}]}, {matchLabels: {public: 'yes'}}]}}";
    let declared = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: red, labels: {team: a}}\n";
    let snapshot = Snapshot::parse("pool.yaml", &format!("{}{declared}", text(METALLB, spec))).unwrap();
    assert!(snapshot.allocating_report().is_clean(), "{:?}", snapshot.allocating_report());
    let pool = snapshot.pools().next().unwrap();
    for (namespace, of_service, selected) in [
        ("shop", &[("tier", "web"), ("env", "prod")][..], true),
        ("red", &[("tier", "web"), ("env", "prod")], true),
        ("blue", &[("tier", "web"), ("env", "prod")], false),
        ("shop", &[("tier", "web")], false),
        ("shop", &[("tier", "web"), ("env", "prod"), ("canary", "1")], false),
        ("shop", &[("tier", "web"), ("env", "prod"), ("zone", "x")], false),
        ("shop", &[("public", "yes"), ("canary", "1")], true),
        ("red", &[("public", "yes")], true),
        ("blue", &[("public", "yes")], false),
        ("shop", &[], false),
    ] {
        let service = lb_core::name::ServiceName::new(namespace, "web");
        assert_eq!(pool.selects(&service, &labels(of_service).match_labels), selected, "{namespace} {of_service:?}");
    }
}

/// The namespaces of a pool are part of each of its selectors, and stand in memory once.
#[test]
fn selectors_of_a_pool_share_its_namespaces() {
    let list = |one: &dyn Fn(usize) -> String| (0..100).map(one).collect::<Vec<_>>().join(", ");
    let namespaces = list(&|number| format!("n{number}"));
    let selectors = list(&|number| format!("{{matchLabels: {{a: b{number}}}}}"));
    let allocation = format!("{{namespaces: [{namespaces}], serviceSelectors: [{selectors}]}}");
    let pool = read(METALLB, &format!("{{addresses: [10.0.0.0/24], serviceAllocation: {allocation}}}"));
    let values = |selector: &Selector| selector.match_expressions.last().unwrap().values.clone();
    let first = values(&pool.selectors[0]);
    assert_eq!((pool.selectors.len(), first.len()), (100, 100));
    assert!(pool.selectors.iter().all(|selector| std::sync::Arc::ptr_eq(&values(selector), &first)));
}

#[test]
fn our_pools_field_by_field() {
    let one = || blue(&["10.0.0.0/24"]);
    for (spec, expected) in [
        ("blocks: [10.0.0.0/24]", one()),
        (
            "blocks: [10.0.0.1-10.0.0.9, 10.0.1.1, '2001:db8::/64']",
            blue(&["10.0.0.1-10.0.0.9", "10.0.1.1", "2001:db8::/64"]),
        ),
        (
            "blocks: [10.0.0.0/24], avoid: [10.0.0.1, 10.0.0.128/25]",
            Pool { avoid: vec![Block::parse("10.0.0.1"), Block::parse("10.0.0.128/25")], ..one() },
        ),
        ("blocks: [10.0.0.0/24], avoidZeroAnd255: true", Pool { avoid_zero_and_255: true, ..one() }),
        ("blocks: [10.0.0.0/24], allowFirstLastIPs: false", Pool { allow_first_last: false, ..one() }),
        ("blocks: [10.0.0.0/24], allowFirstLastIPs: 'No'", Pool { allow_first_last: false, ..one() }),
        ("blocks: [10.0.0.0/24], allowFirstLastIPs: true", one()),
        (
            "blocks: [10.0.0.0/24], serviceSelector: {matchLabels: {a: b}}",
            Pool { selectors: vec![Selector::label("a", "b")], ..one() },
        ),
        (
            "blocks: [10.0.0.0/24], serviceSelectors: [{matchLabels: {a: b}}, {matchExpressions: [{key: c, operator: In, \
             values: [d]}]}]",
            Pool { selectors: vec![Selector::label("a", "b"), expressions(vec![is_in("c", &["d"])])], ..one() },
        ),
        ("blocks: [10.0.0.0/24], serviceSelectors: []", one()),
        ("blocks: [10.0.0.0/24], disabled: true", Pool { disabled: true, ..one() }),
        ("blocks: [10.0.0.0/24], autoAssign: false", Pool { auto_assign: false, ..one() }),
        ("blocks: [10.0.0.0/24], priority: 0", Pool { priority: Some(0), ..one() }),
        ("blocks: [10.0.0.0/24], priority: 4294967295", Pool { priority: Some(u32::MAX), ..one() }),
        ("blocks: [10.0.0.0/24], quarantineSeconds: 0", Pool { quarantine: Duration::ZERO, ..one() }),
        ("blocks: [10.0.0.0/24], drainSeconds: 60", Pool { drain: Duration::from_secs(60), ..one() }),
        ("blocks: [10.0.0.0/24], namespaceQuota: 3", Pool { namespace_quota: Some(3), ..one() }),
    ] {
        assert_eq!(read(OURS, &format!("{{{spec}}}")), expected, "{spec}");
    }
}

#[test]
fn pools_are_as_old_as_they_say() {
    for (time, millis) in [
        ("'2026-11-21T14:49:00Z'", 1_795_272_540_000),
        ("'2026-11-21T15:49:00+01:00'", 1_795_272_540_000),
        ("'1969-12-31T23:59:59Z'", 0),
        ("null", 0),
    ] {
        let text = format!("{OURS}\nmetadata: {{name: a, creationTimestamp: {time}}}\nspec: {{blocks: [10.0.0.1]}}\n");
        let snapshot = Snapshot::parse("pool.yaml", &text).unwrap();
        assert_eq!(snapshot.pools().next().unwrap().created, Timestamp::from_millis(millis), "{time}");
    }
}

#[test]
fn the_pools_of_the_use_cases_are_what_they_say() {
    let pool = |name: &str, spec: &str| {
        let text = format!("{CILIUM_ALPHA}\nmetadata:\n  name: {name}\nspec:\n{spec}");
        let snapshot = Snapshot::parse("pool.yaml", &text).unwrap();
        assert!(snapshot.allocating_report().is_clean(), "{:?}", snapshot.allocating_report());
        snapshot.pools().next().unwrap()
    };
    assert_eq!(pool("basic", "  blocks:\n  - cidr: \"20.0.10.0/24\"\n"), Pool::new("basic", &["20.0.10.0/24"]));
    assert_eq!(
        pool(
            "important",
            "  blocks:\n  - cidr: \"20.0.30.0/24\"\n  serviceSelector:\n    matchLabels:\n      tier: important\n"
        ),
        Pool { selectors: vec![Selector::label("tier", "important")], ..Pool::new("important", &["20.0.30.0/24"]) }
    );
    assert_eq!(
        pool("range", "  blocks:\n  - start: \"20.0.20.100\"\n    stop: \"20.0.20.200\"\n"),
        Pool::new("range", &["20.0.20.100-20.0.20.200"])
    );
    assert_eq!(
        pool("no-first-last", "  allowFirstLastIPs: \"No\"\n  blocks:\n  - cidr: \"10.0.10.0/29\"\n"),
        Pool { allow_first_last: false, ..Pool::new("no-first-last", &["10.0.10.0/29"]) }
    );
    let blue = pool("blue-pool", "  blocks:\n  - start: \"20.0.20.100\"\n    stop: \"20.0.20.199\"\n");
    let mut allocator = lb_ipam::Allocator::new(lb_ipam::Settings::default(), lb_ipam::MemoryLedger::default());
    allocator.handle_edit(lb_ipam::Edit::UpsertPool(blue));
    let _ = allocator.reconcile(Timestamp::default());
    assert_eq!(allocator.pools().next().unwrap().counts.free, 100);
}

#[test]
fn wrong_pools_are_refused_by_field() {
    let selector = |selector: &str| format!("{{blocks: [{{cidr: 10.0.0.0/8}}], serviceSelector: {selector}}}");
    for (spec, reason) in [
        ("", "spec: a pool needs a spec".to_owned()),
        ("{blocks: [{}]}", "spec.blocks[0]: a block needs `cidr`, or `start` and maybe `stop`".into()),
        ("{blocks: [{stop: 10.0.0.1}]}", "spec.blocks[0]: `stop` needs a `start`".into()),
        (
            "{blocks: [{cidr: 10.0.0.0/24}, {start: 10.0.0.20, stop: 10.0.0.10}]}",
            "spec.blocks[1]: \"10.0.0.20-10.0.0.10\" starts after it stops; swap the two addresses".into(),
        ),
        (
            "{blocks: [{start: 10.0.0.1, stop: '::5'}]}",
            "spec.blocks[0]: \"10.0.0.1-::5\" mixes IPv4 and IPv6; write one block for each".into(),
        ),
        (
            "{blocks: [{cidr: 10.0.0.0/33}]}",
            "spec.blocks[0].cidr: \"10.0.0.0/33\" is not a network such as 10.0.0.0/24 or 2001:db8::/64".into(),
        ),
        (
            "{blocks: [{cidr: 10.0.0.1}]}",
            "spec.blocks[0].cidr: \"10.0.0.1\" is not a network such as 10.0.0.0/24 or 2001:db8::/64".into(),
        ),
        ("{blocks: [{start: x}]}", "spec.blocks[0].start: \"x\" is not an IP address".into()),
        (
            "{blocks: [{start: 10.0.0.1, stop: \"\\e[2J\"}]}",
            "spec.blocks[0].stop: \"\\u{1b}[2J\" is not an IP address".into(),
        ),
        (
            "{blocks: [{cidr: 10.0.0.0/8}], cidrs: [{cidr: 11.0.0.0/8}]}",
            "spec.cidrs: it is the older name of `spec.blocks`: keep one of them".into(),
        ),
        (
            "{blocks: [{cidr: 10.0.0.0/8}], allowFirstLastIPs: Maybe}",
            "spec.allowFirstLastIPs: \"Maybe\" is neither Yes nor No".into(),
        ),
        (
            &selector("{matchExpressions: [{key: a, operator: Equals, values: [b]}]}"),
            "spec.serviceSelector.matchExpressions[0].operator: operator `Equals` on label `a` is unknown; use In, NotIn, \
             Exists or DoesNotExist"
                .into(),
        ),
        (
            &selector("{matchExpressions: [{key: a, operator: In}]}"),
            "spec.serviceSelector.matchExpressions[0].values: label `a` is compared with no value; list at least one".into(),
        ),
        (
            &selector("{matchExpressions: [{key: a, operator: Exists, values: [b]}]}"),
            "spec.serviceSelector.matchExpressions[0].values: label `a` is only looked for, but has values; remove them, \
             or use In"
                .into(),
        ),
        (
            &selector("{matchExpressions: [{key: a b, operator: Exists}]}"),
            "spec.serviceSelector.matchExpressions[0].key: \"a b\" is not the key of a label".into(),
        ),
        (
            &selector("{matchLabels: {a: b c}}"),
            "spec.serviceSelector.matchLabels[a]: \"b c\" is not the value of a label (up to 63 of A-Z, a-z, 0-9, -, _ and .)"
                .into(),
        ),
    ] {
        assert_eq!(refused(CILIUM, spec), reason, "{spec}");
    }
}

#[test]
fn wrong_pools_of_metallb_and_ours_are_refused_by_field() {
    let allocation = |rest: &str| format!("{{addresses: [10.0.0.0/24], serviceAllocation: {{{rest}}}}}");
    let ours = |rest: &str| format!("{{blocks: [10.0.0.0/24], {rest}}}");
    for (kind, spec, reason) in [
        (
            METALLB,
            "{addresses: [10.0.0.0/24, 10.0.0.9-10.0.0.1]}".to_owned(),
            "spec.addresses[1]: \"10.0.0.9-10.0.0.1\" starts after it stops; swap the two addresses",
        ),
        (
            METALLB,
            "{addresses: [garbage]}".to_owned(),
            "spec.addresses[0]: \"garbage\" is not a block; write a network (10.0.0.0/24), a range (10.0.0.1-10.0.0.9) or an \
             address",
        ),
        (
            METALLB,
            allocation("priority: -1"),
            "spec.serviceAllocation.priority: -1 is not a number from 0 to 4294967295",
        ),
        (
            METALLB,
            allocation("namespaces: [Red]"),
            "spec.serviceAllocation.namespaces[0]: \"Red\" is not a DNS label (1 to 63 of a-z, 0-9 and -, with a letter or \
             digit at both ends)",
        ),
        (
            METALLB,
            allocation("serviceSelectors: [{matchLabels: {a: b}}, {matchExpressions: [{key: c, operator: In}]}]"),
            "spec.serviceAllocation.serviceSelectors[1].matchExpressions[0].values: label `c` is compared with no value; \
             list at least one",
        ),
        (
            OURS,
            ours("serviceSelector: {}, serviceSelectors: [{}]"),
            "spec.serviceSelectors: `spec.serviceSelector` is set as well: keep one of them",
        ),
        (
            OURS,
            ours("serviceSelectors: [{}, {matchLabels: {a b: c}}]"),
            "spec.serviceSelectors[1].matchLabels: \"a b\" is not the key of a label",
        ),
        (
            METALLB,
            allocation("namespaceSelectors: [{}, {matchExpressions: [{key: a, operator: is}]}]"),
            "spec.serviceAllocation.namespaceSelectors[1].matchExpressions[0].operator: operator `is` on label `a` is \
             unknown; use In, NotIn, Exists or DoesNotExist",
        ),
        (
            OURS,
            ours("avoid: [10.0.0.300]"),
            "spec.avoid[0]: \"10.0.0.300\" is not a block; write a network (10.0.0.0/24), a range \
             (10.0.0.1-10.0.0.9) or an address",
        ),
        (OURS, ours("priority: 4294967296"), "spec.priority: 4294967296 is not a number from 0 to 4294967295"),
        (OURS, ours("quarantineSeconds: -5"), "spec.quarantineSeconds: -5 is not a number from 0 to 2592000"),
        (OURS, ours("namespaceQuota: -1"), "spec.namespaceQuota: -1 is not a number from 0 to 9223372036854775807"),
    ] {
        assert_eq!(refused(kind, &spec), reason, "{spec}");
    }
}

#[test]
fn what_may_be_other_than_meant_is_reported() {
    for (kind, spec, found) in [
        (CILIUM, "{}", "spec.blocks: the pool has no block and gives nothing; add one"),
        (METALLB, "{addresses: []}", "spec.addresses: the pool has no block and gives nothing; add one"),
        (
            CILIUM,
            "{blocks: [{cidr: 192.168.100.200/28}]}",
            "spec.blocks[0]: \"192.168.100.200/28\" has host bits set and is taken for 192.168.100.192/28",
        ),
        (
            CILIUM,
            "{blocks: [{cidr: 10.0.0.0/24, start: 10.0.0.5}]}",
            "spec.blocks[0].start: `cidr` is set as well and takes precedence",
        ),
        (CILIUM, "{blocks: [{cidr: 10.0.0.0/24}], priority: 1}", "spec.priority: there is no such field"),
        (CILIUM, "{blocks: [{cidr: 10.0.0.0/24, size: 1}]}", "spec.blocks[0].size: there is no such field"),
        (METALLB, "{addresses: [10.0.0.0/24], protocol: bgp}", "spec.protocol: there is no such field"),
        (
            METALLB,
            "{addresses: [10.0.0.0/24], serviceAllocation: {serviceSelectors: [{labels: {a: b}}], priority: 1}}",
            "spec.serviceAllocation.serviceSelectors[0].labels: there is no such field",
        ),
        (OURS, "{blocks: [10.0.0.0/24], quota: 5}", "spec.quota: there is no such field"),
        (
            OURS,
            "{blocks: [10.0.0.0/24], namespaceQuota: 0}",
            "spec.namespaceQuota: the pool has a namespace quota of 0 and gives nothing; raise it, or disable the pool",
        ),
    ] {
        assert_eq!(noted(kind, spec), [found], "{spec}");
    }
}

#[test]
fn a_pool_of_a_name_is_one_whatever_its_kind() {
    let text = format!(
        "{CILIUM}\nmetadata: {{name: a}}\nspec: {{blocks: [{{cidr: 10.0.0.0/8}}]}}\n---\n{METALLB}\nmetadata: {{name: a, \
         namespace: metallb-system}}\nspec: {{addresses: [11.0.0.0/8]}}\n"
    );
    let snapshot = Snapshot::parse("pool.yaml", &text).unwrap();
    assert_eq!(snapshot.pools().collect::<Vec<_>>(), [Pool::new("a", &["10.0.0.0/8"])]);
    let refused: Vec<_> = snapshot.report().refused.iter().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [
            "pool.yaml:6:1: document 2, IPAddressPool metallb-system/a: it is already defined in pool.yaml: document 1; it is left \
          out"
        ]
    );
}

#[test]
fn files_repeat_a_pool_under_its_own_kind() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, kind: &str| {
        let text = format!("{kind}\nmetadata: {{name: a}}\nspec: {{blocks: [{{cidr: 10.0.0.0/8}}]}}\n");
        std::fs::write(directory.path().join(file), text).unwrap();
    };
    write("1.yaml", CILIUM);
    write("2.yaml", CILIUM_ALPHA);
    let snapshot = Snapshot::read(&[directory.path()]).unwrap();
    let refused = &snapshot.report().refused[0].finding;
    assert_eq!(refused.object.api_version, "cilium.io/v2alpha1");
    assert!(refused.to_string().contains("CiliumLoadBalancerIPPool a: it is already defined in "), "{refused}");
}

#[test]
fn where_nobody_allocates_pools_are_reported() {
    let snapshot = snapshot(OURS, "{blocks: [10.0.0.0/24]}");
    let found: Vec<_> = snapshot.report().unsupported.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["pool.yaml:1:1: document 1, IPPool blue: addresses are not allocated"]);
    assert!(snapshot.allocating_report().is_clean());
}

#[test]
fn pools_of_other_versions_are_skipped() {
    for (version, kind, used) in [
        ("cilium.io/v2beta1", "CiliumLoadBalancerIPPool", "; those in cilium.io/v2 and cilium.io/v2alpha1 are"),
        ("metallb.io/v1beta2", "IPAddressPool", "; those in metallb.io/v1beta1 are"),
        ("metallb.io/v1beta1", "AddressPool", "; those of kind IPAddressPool in metallb.io/v1beta1 are"),
        ("lb/v2", "IPPool", "; those in lb/v1 are"),
        ("example.com/v1", "AddressPool", ""),
    ] {
        let snapshot = snapshot(&format!("apiVersion: {version}\nkind: {kind}"), "{addresses: [10.0.0.0/24]}");
        let says = format!("objects of this kind in {version} are not used{used}");
        assert_eq!(snapshot.report().skipped[0].message, says);
        assert_eq!(snapshot.pools().count(), 0);
    }
}

#[test]
fn labels_of_namespaces_without_namespaces_are_reported() {
    let allocation = |allocation: &str| {
        let text = text(METALLB, &format!("{{addresses: [10.0.0.0/24], serviceAllocation: {{{allocation}}}}}"));
        let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: red}\n";
        let said = |text: &str| {
            let report = Snapshot::parse("pool.yaml", text).unwrap().allocating_report();
            report.unsupported.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(said(&(text.clone() + namespace)), [""; 0]);
        said(&text)
    };
    let says = "pool.yaml: document 1, IPAddressPool blue, field `spec.serviceAllocation.namespaceSelectors`: there is no \
                Namespace object among the manifests, so that none is selected: add those that the pool is for, or name them \
                in `namespaces`";
    assert_eq!(allocation("namespaceSelectors: [{matchLabels: {a: b}}]"), [says]);
    assert_eq!(allocation("namespaceSelectors: [{}], namespaces: [red]"), [says]);
    assert_eq!(allocation("namespaces: [red]"), [""; 0]);
}

#[test]
fn lists_of_pools_are_read() {
    let text = "apiVersion: cilium.io/v2\nkind: CiliumLoadBalancerIPPoolList\nitems:\n- metadata: {name: a}\n  spec: \
                {blocks: [{cidr: 10.0.0.0/8}]}\n- metadata: {name: b}\n  spec: {blocks: [{cidr: x}]}\n";
    let snapshot = Snapshot::parse("pool.yaml", text).unwrap();
    assert_eq!(snapshot.pools().count(), 2);
    let refused = snapshot.report().refused[0].to_string();
    let said = "pool.yaml:7:26: document 1, items[1], CiliumLoadBalancerIPPool b, field `spec.blocks[0].cidr`: ";
    assert!(refused.starts_with(said), "{refused}");
}
