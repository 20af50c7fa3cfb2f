//! Random pools survive the way into a manifest and back; broken ones are harmless.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_core::name::SourceName;
use lb_ipam::{Block, Edit, Expression, IpNet, Operator, Pool, PoolName, Selector, Timestamp};
use lb_k8s::{Manifests, Snapshot, limits, write};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::{Index, select},
};

const KINDS: [&str; 3] = [
    "apiVersion: cilium.io/v2alpha1\nkind: CiliumLoadBalancerIPPool\nmetadata: {name: größe}\nspec:\n  blocks:\n  - cidr: \
     \"20.0.10.0/24\"\n  - {start: 10.0.0.1, stop: 10.0.0.9}\n  allowFirstLastIPs: \"No\"\n  serviceSelector:\n    \
     matchLabels: {color: red}\n    matchExpressions:\n    - {key: a, operator: In, values: [b, c]}\n  disabled: true\n",
    "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: a, namespace: metallb-system}\nspec:\n  \
     addresses: [10.0.0.0/24, \"10.0.1.1-10.0.1.9\"]\n  autoAssign: false\n  serviceAllocation:\n    priority: 10\n    \
     namespaces: [a]\n    namespaceSelectors: [{matchLabels: {team: a}}]\n    serviceSelectors: [{matchLabels: {a: b}}, \
     {matchExpressions: [{key: c, operator: Exists}]}]\n",
    "apiVersion: lb/v1\nkind: IPPool\nmetadata: {name: a, creationTimestamp: \"2026-11-21T14:49:00Z\"}\nspec:\n  blocks: \
     [\"2001:db8::/64\"]\n  avoid: [\"2001:db8::1\"]\n  quarantineSeconds: 60\n  drainSeconds: 5\n  namespaceQuota: 3\n  \
     priority: 1\n  allowFirstLastIPs: false\n  serviceSelectors: [{}, {matchLabels: {a: b}}]\n",
];

fn block() -> impl Strategy<Value = Block> {
    let v4 = any::<u32>().prop_map(Ipv4Addr::from_bits);
    let v6 = any::<u128>().prop_map(Ipv6Addr::from_bits);
    prop_oneof![
        (v4.clone(), 0..=32u8)
            .prop_map(|(ip, length)| IpNet::new(ip.into(), length).unwrap().trunc())
            .prop_map(Block::Cidr),
        (v6.clone(), 0..=128u8)
            .prop_map(|(ip, length)| IpNet::new(ip.into(), length).unwrap().trunc())
            .prop_map(Block::Cidr),
        (v4.clone(), v4.clone()).prop_map(|(a, b)| Block::Range { start: a.min(b).into(), stop: a.max(b).into() }),
        (v6.clone(), v6.clone()).prop_map(|(a, b)| Block::Range { start: a.min(b).into(), stop: a.max(b).into() }),
        v4.prop_map(|ip| Block::Address(ip.into())),
        v6.prop_map(|ip| Block::Address(ip.into())),
    ]
}

/// Words that YAML would take for something else without quotes are among them.
fn word() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", select(vec!["null", "y", "no", "1e3", "0x1"]).prop_map(Into::into)]
}

fn expression() -> impl Strategy<Value = Expression> {
    let with_values = (word(), select(vec![Operator::In, Operator::NotIn]), vec(word(), 1..4));
    let without = (word(), select(vec![Operator::Exists, Operator::DoesNotExist]), Just(Vec::new()));
    prop_oneof![with_values, without].prop_map(|(key, operator, values)| Expression::new(&key, operator, values))
}

fn selector() -> impl Strategy<Value = Selector> {
    (btree_map(word(), word(), 0..3), vec(expression(), 0..3))
        .prop_map(|(match_labels, match_expressions)| Selector { match_labels, match_expressions })
}

fn seconds() -> impl Strategy<Value = Duration> {
    (0..=u64::from(limits::MAX_REST_SECONDS)).prop_map(Duration::from_secs)
}

prop_compose! {
    fn pool()(
        (name, created) in (word(), 0..10_000_000_000u64),
        (blocks, avoid) in (vec(block(), 0..4), vec(block(), 0..3)),
        selectors in vec(selector(), 0..4),
        (allow_first_last, disabled, auto_assign, avoid_zero_and_255) in any::<(bool, bool, bool, bool)>(),
        (priority, namespace_quota) in (option::of(any::<u32>()), option::of(0..=i64::MAX as u64)),
        (quarantine, drain) in (seconds(), seconds()),
    ) -> Pool {
        Pool {
            name: PoolName::new(&name), created: Timestamp::from_secs(created),
            blocks, avoid, selectors, allow_first_last, disabled, auto_assign, avoid_zero_and_255, priority,
            namespace_quota, quarantine, drain, refused: None,
        }
    }
}

proptest! {
    #[test]
    fn pools_survive_the_way_through_a_manifest(pool in pool()) {
        let text = write::pool(&pool).unwrap();
        let snapshot = Snapshot::parse("pool.yaml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        prop_assert!(snapshot.allocating_report().refused.is_empty(), "{:?}", snapshot.report());
        prop_assert_eq!(snapshot.pools().collect::<Vec<_>>(), [pool], "{}", text);
    }

    /// Whatever stands there: it is rejected, refused or taken, and what is refused gives nothing out.
    #[test]
    fn a_pool_with_noise_in_it_is_harmless(
        kind in select(KINDS.to_vec()), at in any::<Index>(), cut in 0..20usize, noise in "(?s).{0,4}",
    ) {
        let mut text = kind.to_owned();
        let boundary = |text: &str, at: usize| (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap();
        let from = boundary(&text, at.index(text.len()));
        let to = boundary(&text, (from + cut).min(text.len())).max(from);
        text.replace_range(from..to, &noise);
        let parsed = Snapshot::parse("pool.yaml", &text);
        if let Ok(snapshot) = &parsed {
            let is_refused = !snapshot.report().refused.is_empty();
            prop_assert!(!is_refused || snapshot.pools().all(|pool| pool.disabled), "{}", text);
        }
        let mut manifests = Manifests::new(SourceName("manifests".into()));
        manifests.update(Snapshot::parse("pool.yaml", &write::pool(&Pool::new("a", &["10.0.0.0/8"])).unwrap()));
        let before: Vec<_> = manifests.pools().cloned().collect();
        let (is_rejected, batch) = (parsed.is_err(), manifests.update(parsed));
        prop_assert!(!is_rejected || batch.edits.is_empty() && manifests.pools().eq(&before));
        let taken = batch.edits.iter().filter_map(|edit| if let Edit::UpsertPool(pool) = edit { Some(pool) } else { None });
        for pool in taken {
            prop_assert!(manifests.pools().any(|other| other == pool));
        }
    }
}

#[test]
fn a_pool_that_is_cut_anywhere_is_an_error_or_a_valid_beginning() {
    for text in KINDS {
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            match Snapshot::parse("pool.yaml", &text[..end]) {
                Ok(snapshot) => assert!(snapshot.pools().count() <= 1),
                Err(error) => assert!(error.to_string().starts_with("pool.yaml"), "{error}"),
            }
        }
    }
}

#[test]
fn what_no_manifest_can_say_is_not_written() {
    let one = || Pool::new("a", &["10.0.0.0/8"]);
    let unknown = Expression::new("a", Operator::Unknown("b".into()), [""; 0]);
    for (pool, says) in [
        (Pool { name: PoolName::new("a b"), ..one() }, "is not a DNS name"),
        (Pool::new("a", &["10.0.0.9-10.0.0.1"]), "block 10.0.0.9-10.0.0.1 starts after it stops"),
        (Pool { avoid: vec![Block::parse("x")], ..one() }, "block x is not a block"),
        (Pool { quarantine: Duration::from_millis(1500), ..one() }, "its quarantine is 1.5s, expected whole seconds"),
        (Pool { drain: Duration::MAX, ..one() }, "its drain is "),
        (Pool { namespace_quota: Some(u64::MAX), ..one() }, "its quota is greater than a manifest can say"),
        (Pool { selectors: vec![Selector::label("a b", "c")], ..one() }, "is not the key of a label"),
        (
            Pool { selectors: vec![Selector::label("a", "c"), Selector::label("a", "c d")], ..one() },
            "is not the value of a label",
        ),
        (Pool { selectors: vec![Selector::default(); 101], ..one() }, "has more than 100 selectors"),
        (
            Pool { selectors: vec![Selector { match_expressions: vec![unknown], ..Selector::default() }], ..one() },
            "operator `b`",
        ),
    ] {
        let error = write::pool(&pool).unwrap_err().to_string();
        assert!(error.starts_with("pool a") && error.contains(says), "{error}");
    }
}
