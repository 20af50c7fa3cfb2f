//! What operators read, word for word, and that the documentation says the same.

use lb_ipam::{
    AddressRange, Allocator, Cause, ClusterIpAllocator, Condition, Edit, MemoryLedger, Pool, PoolChoice, PoolProblem,
    Protocol, Reason, RefusingPools, Request, RequestedAddress, Reservation, Selector, ServiceName, Settings, Sharing,
    Timestamp,
};

const PAGE: &str = include_str!("../../../docs/ipam.md");

/// The page breaks long sentences and indents their continuation.
fn assert_documented(message: &str) {
    assert!(PAGE.replace("\n  ", " ").lines().any(|line| line == message), "not documented: {message}");
}

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
    Request { addresses: RequestedAddress::parse_list(address), ..Request::new("default", name) }
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
    let odd = Pool { avoid_zero_and_255: true, ..blue(&["10.0.10.0/24"]) };
    let net = blue(&["10.0.10.0/24"]);
    let nowhere = Request { pool: PoolChoice::Only("nopool".into()), ..Request::new("default", "a") };
    let (x, b) = (|name| sharing(named(name, "10.0.10.9")), named("b", "10.0.10.9"));
    let elsewhere = Request { ports: [(Protocol::Tcp, 81)].into(), ..x("b") };
    let elsewhere = Request { service: ServiceName::new("other", "b"), ..elsewhere };
    let other_key = Request { sharing: Some(Sharing::new("l")), ..x("b") };
    for message in [
        message(vec![net.clone()], vec![named("web", "10.0.10.21"), named("b", "10.0.10.21")]),
        message(vec![net.clone()], vec![x("a"), x("b")]),
        message(vec![net.clone()], vec![x("a"), other_key]),
        message(vec![net.clone()], vec![Request { service: ServiceName::new("default", "a"), ..b }, x("b")]),
        message(vec![net.clone()], vec![x("a"), elsewhere]),
        message(vec![blue(&["2001:db8::1"]), off], vec![v6("a"), v6("b")]),
        message(vec![net.clone()], vec![nowhere]),
        message(Vec::new(), vec![Request::new("default", "a")]),
        message(vec![edges], vec![named("a", "10.0.10.16")]),
        message(vec![odd], vec![named("a", "10.0.10.255")]),
        message(vec![net], vec![named("a", "garbage")]),
    ] {
        assert_documented(&message);
    }
}

#[test]
fn a_reserved_address_reads_as_it_is_documented() {
    let range = AddressRange::new([10, 0, 10, 1].into(), [10, 0, 10, 1].into()).unwrap();
    let reserved = vec![Reservation { range, why: "address of node n1".into() }];
    let mut ipam = Allocator::new(Settings::default().with_reserved(reserved), MemoryLedger::default());
    ipam.handle_edit(Edit::UpsertPool(Pool::new("blue", &["10.0.10.0/24"])));
    ipam.handle_edit(Edit::UpsertService(named("a", "10.0.10.1")));
    let outcome = ipam.reconcile(Timestamp::from_secs(1));
    let message = &outcome.writes[0].1.condition.as_ref().unwrap().message;
    assert_documented(message);
    ipam.handle_edit(Edit::UpsertPool(Pool::new("blue", &["10.0.10.0/31"])));
    for name in ["b", "c"] {
        ipam.handle_edit(Edit::UpsertService(Request::new("default", name)));
    }
    let _ = ipam.reconcile(Timestamp::from_secs(1));
    let full = ipam.answer(&ServiceName::new("default", "c")).unwrap().status().condition.unwrap().message;
    assert!(full.contains(": 1 used of 2, 1 reserved: 10.0.10.1 (address of node n1)"), "{full}");
    assert_documented(&full);
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
        ("Cause::MAX_REASONS", Cause::MAX_REASONS),
        ("RefusingPools::MAX_NAMED", RefusingPools::MAX_NAMED),
        ("PoolProblem::MAX_NAMED", PoolProblem::MAX_NAMED),
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
        ..Pool::new(&format!("p{number:02}"), &[&format!("10.0.{number}.0/32")])
    };
    let member = |name: &str| Request { labels: [("team".into(), "t30".into())].into(), ..Request::new("d", name) };
    let told = message((0..=30).map(team).collect(), vec![member("a"), member("b")]);
    assert_documented(&told);
    let few = message((29..=30).map(team).collect(), vec![member("a"), member("b")]);
    let one = "pool `p29` does not select the service (change its selector or the labels of the service)";
    assert_eq!(few, format!("no IPv4 address: pool `p30` is full; {one}; add a block or remove a service"));
    // The only one that will do is the only one that is named.
    let only = |name: &str| Request { pool: PoolChoice::Only("p30".into()), ..member(name) };
    let told = message((0..=30).map(team).collect(), vec![only("a"), only("b")]);
    assert_eq!(told, "no IPv4 address: pool `p30` is full; add a block or remove a service");
    let six = Request { families: vec![lb_ipam::Family::V6], ..only("a") };
    assert_eq!(message(vec![team(30)], vec![six]), "no IPv6 address: pool `p30` has no block of this family (add one)");
}

/// Pools that are all out of service for one reason are one group, and those that are for many are counted.
#[test]
fn a_refusal_groups_pools_by_reason() {
    let block = |number: usize| format!("10.0.{number}.0/24");
    let off = |number| Pool { disabled: true, ..Pool::new(&format!("p{number:02}"), &[&block(number)]) };
    let told = message((0..5).map(off).collect(), vec![Request::new("d", "a")]);
    assert_eq!(told, "no IPv4 address: 5 pools are disabled (`p00`, `p01`, `p02` and 2 more; enable one)");
    let told = message((0..2).map(off).collect(), vec![Request::new("d", "a")]);
    assert_eq!(told, "no IPv4 address: 2 pools are disabled (`p00` and `p01`; enable one)");
    for (wrong, more) in [(8, "; and 1 more pool gives nothing"), (50, "; and 43 more pools give nothing")] {
        let refused = |number| Pool { refused: Some(format!("is no good: {number}")), disabled: false, ..off(number) };
        let told = message((0..wrong).map(refused).collect(), vec![Request::new("d", "a")]);
        let first = "no IPv4 address: pool `p00` is out of service until it is corrected: is no good: 0; pool `p01`";
        assert!(told.starts_with(first) && told.ends_with(more), "{told}");
    }
}
