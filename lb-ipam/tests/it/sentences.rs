//! What operators read, word for word, and that the documentation says the same.

use lb_ipam::{
    Allocator, Cause, ClusterIpAllocator, Condition, Edit, MemoryLedger, Pool, Protocol, Reason, Request, Selector,
    ServiceName, Settings, Sharing, Timestamp, Wanted,
};

const PAGE: &str = include_str!("../../../docs/ipam.md");

fn message(pools: Vec<Pool>, requests: Vec<Request>) -> String {
    let mut ipam = Allocator::new(Settings::default(), MemoryLedger::default());
    let last = requests.last().unwrap().service.clone();
    pools.into_iter().for_each(|pool| ipam.handle_edit(Edit::UpsertPool(pool)));
    for request in requests {
        ipam.handle_edit(Edit::UpsertService(request));
        let _ = ipam.reconcile(Timestamp::from_secs(1));
    }
    ipam.answer(&last).unwrap().status().condition.unwrap().message
}

fn named(name: &str, address: &str) -> Request {
    Request { addresses: Wanted::parse_list(address), ..Request::new("default", name) }
}

fn sharing(request: Request) -> Request {
    Request { sharing: Some(Sharing::new("k")), ports: [(Protocol::Tcp, 80)].into(), ..request }
}

#[test]
fn refusals_read_as_they_are_documented() {
    let blue = |blocks: &[&str]| Pool::new("blue", blocks);
    let v6 = |name: &str| Request { families: vec![lb_ipam::Family::V6], ..Request::new("default", name) };
    let off = Pool { disabled: true, ..Pool::new("green", &["2001:db8:1::/64"]) };
    let edges = Pool { allow_first_last: false, ..blue(&["10.0.10.16/30"]) };
    let net = blue(&["10.0.10.0/24"]);
    for message in [
        message(vec![net.clone()], vec![named("web", "10.0.10.21"), named("b", "10.0.10.21")]),
        message(vec![net.clone()], vec![sharing(named("a", "10.0.10.9")), sharing(named("b", "10.0.10.9"))]),
        message(vec![blue(&["2001:db8::1"]), off], vec![v6("a"), v6("b")]),
        message(vec![edges], vec![named("a", "10.0.10.16")]),
        message(vec![net], vec![named("a", "garbage")]),
    ] {
        assert!(PAGE.lines().any(|line| line == message), "not documented: {message}");
    }
}

#[test]
fn every_reason_is_documented() {
    for reason in Reason::ALL {
        assert!(PAGE.contains(&format!("| `{reason}` |")), "{reason}");
    }
}

#[test]
fn limits_are_documented_with_their_values() {
    let number = |number: usize| match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    };
    for (limit, value) in [
        ("Pool::MAX_BLOCKS", Pool::MAX_BLOCKS),
        ("Pool::MAX_OVERLAPPING", Pool::MAX_OVERLAPPING),
        ("Request::MAX_ADDRESSES", Request::MAX_ADDRESSES),
        ("Allocator::MAX_SHARERS", Allocator::<MemoryLedger>::MAX_SHARERS),
        ("Allocator::MAX_SHARING_CANDIDATES", Allocator::<MemoryLedger>::MAX_SHARING_CANDIDATES),
        ("Allocator::MAX_TRIES", Allocator::<MemoryLedger>::MAX_TRIES),
        ("Allocator::MAX_PASSES", Allocator::<MemoryLedger>::MAX_PASSES),
        ("Cause::MAX_NAMED", Cause::MAX_NAMED),
        ("Condition::MAX_MESSAGE", Condition::MAX_MESSAGE),
        ("ClusterIpAllocator::MIN_PREFIX_V6", ClusterIpAllocator::MIN_PREFIX_V6.into()),
    ] {
        let row = PAGE.lines().find(|line| line.starts_with(&format!("| `{limit}`"))).unwrap();
        assert!(row.contains(&number(value)), "{row}");
    }
}

#[test]
fn a_service_without_answer_is_not_ours() {
    let ipam = Allocator::new(Settings::default(), MemoryLedger::default());
    assert_eq!(ipam.answer(&ServiceName::new("default", "nobody")), None);
}

/// However many pools there are, those that a service was asked of come first, and the others are counted.
#[test]
fn a_refusal_names_the_pools_that_matter() {
    let team = |number: usize| Pool {
        selectors: vec![Selector::label("team", &format!("t{number}"))],
        ..Pool::new(&format!("team-{number:03}"), &[&format!("10.0.{number}.0/32")])
    };
    let member = |name: &str| Request { labels: [("team".into(), "t77".into())].into(), ..Request::new("d", name) };
    let told = message((0..100).map(team).collect(), vec![member("a"), member("b")]);
    let start = "no IPv4 address: pool `team-077` is full; pool `team-000` does not select the service";
    assert!(told.starts_with(start), "{told}");
    assert!(told.ends_with("; and so on for 92 more; add a block or remove a service"), "{told}");
    let few = message((76..78).map(team).collect(), vec![member("a"), member("b")]);
    assert!(few.starts_with(&start.replace("team-000", "team-076")) && !few.contains("and so on"), "{few}");
}
