//! Bad input: a sentence with the reason, and everything else goes on. Every limit, at it and above it.

use std::{net::IpAddr, time::Instant};

use lb_ipam::{
    Allocator, Block, Edit, MemoryLedger, Namespaces, Pool, PoolName, PoolProblem, PoolWarning, Protocol, Request,
    RequestedAddress, Selector, ServiceName, Settings, Sharing, Status, Timestamp,
};

const NOW: Timestamp = Timestamp::from_secs(1_000_000);

fn allocator(pools: impl IntoIterator<Item = Pool>) -> Allocator {
    let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
    pools.into_iter().for_each(|pool| allocator.handle_edit(Edit::UpsertPool(pool)));
    allocator
}

fn serve(allocator: &mut Allocator, request: Request) -> Status {
    allocator.handle_edit(Edit::UpsertService(request));
    let mut outcome = allocator.reconcile(NOW);
    outcome.writes.pop().map_or_else(Status::default, |(_, status)| status)
}

fn reason(status: &Status) -> &str {
    &status.condition.as_ref().unwrap().reason
}

#[test]
fn a_pool_of_so_many_blocks_and_no_more() {
    let blocks =
        |count: u32| (0..count).map(|n| Block::Address(IpAddr::from((10 << 24 | n << 1).to_be_bytes()))).collect();
    for (count, problem) in [
        (Pool::MAX_BLOCKS, None),
        (Pool::MAX_BLOCKS + 1, Some(PoolProblem::TooManyBlocks { found: Pool::MAX_BLOCKS + 1 })),
    ] {
        let blocks: Vec<Block> = blocks(u32::try_from(count).unwrap());
        let mut ipam = allocator([Pool { blocks, ..Pool::new("a", &[]) }]);
        let status = serve(&mut ipam, Request::new("d", "a"));
        assert_eq!(ipam.pool(&PoolName::new("a")).unwrap().problem, problem);
        assert_eq!(reason(&status), if problem.is_some() { "no_pool" } else { "satisfied" });
    }
}

#[test]
fn so_many_addresses_for_a_service_and_no_more() {
    let most = Request::MAX_ADDRESSES;
    for (count, expected) in [(most, "satisfied"), (most + 1, "invalid_request")] {
        let addresses = (0..u32::try_from(count).unwrap()).map(|n| IpAddr::from((10 << 24 | n).to_be_bytes()).into());
        let mut ipam = allocator([Pool::new("a", &["10.0.0.0/8"])]);
        let status = serve(&mut ipam, Request { addresses: addresses.collect(), ..Request::new("d", "a") });
        assert_eq!((status.addresses.len(), reason(&status)), (most, expected));
    }
}

#[test]
fn so_many_of_a_group_are_looked_at_and_no_more() {
    let most = Allocator::<MemoryLedger>::MAX_SHARING_CANDIDATES as u64;
    for (strangers, shares) in [(most - 1, true), (most, false)] {
        let mut ipam = allocator([Pool::new("a", &["10.0.0.0/8"])]);
        let member = |name: String, created: u64, ports: &[u16]| Request {
            created: Timestamp::from_secs(created),
            sharing: Some(Sharing::new("k")),
            ports: ports.iter().map(|port| (Protocol::Tcp, *port)).collect(),
            ..Request::new("d", &name)
        };
        // Strangers clash with everybody; the last one, a friend, with them, but not with the one that comes late.
        (0..strangers).for_each(|n| ipam.handle_edit(Edit::UpsertService(member(format!("s{n:05}"), n, &[80, 81]))));
        ipam.handle_edit(Edit::UpsertService(member("friend".into(), 9_000, &[80])));
        let _ = ipam.reconcile(NOW);
        let friend = ipam.answer(&ServiceName::new("d", "friend")).unwrap().addresses().next();
        let status = serve(&mut ipam, member("late".into(), 9_999, &[81]));
        assert_eq!(status.addresses.first().copied() == friend, shares);
    }
}

#[test]
fn an_address_is_looked_up_in_so_many_pools_and_no_more() {
    let most = Pool::MAX_OVERLAPPING;
    for (at, kept) in [(most - 1, true), (most, false)] {
        let colour = |number: usize| Selector::label("colour", if number == at { "blue" } else { "red" });
        let pools = (0..=most).map(|number| Pool {
            selectors: vec![colour(number)],
            ..Pool::new(&format!("p{number:02}"), &["10.0.0.0/24"])
        });
        let mut ipam = allocator(pools);
        let labels = [("colour".to_owned(), "blue".to_owned())].into();
        let published = Status::of(&["10.0.0.5".parse().unwrap()]);
        let status = serve(&mut ipam, Request { labels, published, ..Request::new("d", "a") });
        assert_eq!(!status.addresses.is_empty(), kept);
    }
}

#[test]
fn garbled_blocks_and_lists_are_reported() {
    for text in
        ["", "-", "10.0.0.0-", "-10.0.0.1", "10.0.0.0/-1", "::/129", "fe80::1%eth0", "10.0.0.1-10.0.0.2-10.0.0.3", "ü"]
    {
        let mut ipam = allocator([Pool::new("bad", &[text]), Pool::new("good", &["10.0.0.0/24"])]);
        let status = serve(&mut ipam, Request::new("d", "a"));
        assert_eq!(reason(&status), "satisfied", "{text}");
        assert!(
            matches!(ipam.pool(&PoolName::new("bad")).unwrap().problem, Some(PoolProblem::Blocks { .. })),
            "{text}"
        );
    }
    assert_eq!(RequestedAddress::parse_list(" , ,"), []);
    assert_eq!(Namespaces::parse("a, *"), Namespaces::All);
}

#[test]
fn pools_that_give_nothing_warn() {
    for (pool, warning) in [
        (Pool::new("a", &[]), PoolWarning::NoBlocks),
        (
            Pool { avoid: vec![Block::parse("10.0.0.1")], ..Pool::new("a", &["10.0.0.1"]) },
            PoolWarning::NothingUsable { total: 1, by: "addresses that it avoids".into() },
        ),
        (Pool { namespace_quota: Some(0), ..Pool::new("a", &["10.0.0.1"]) }, PoolWarning::QuotaZero),
    ] {
        let mut ipam = allocator([pool]);
        let status = serve(&mut ipam, Request::new("d", "a"));
        assert!(status.addresses.is_empty());
        assert_eq!(ipam.pool(&PoolName::new("a")).unwrap().warnings, [warning]);
    }
}

#[test]
fn an_avoided_block_that_is_wrong_warns_and_the_pool_goes_on() {
    let mut ipam = allocator([Pool { avoid: vec![Block::parse("nonsense")], ..Pool::new("a", &["10.0.0.1"]) }]);
    assert_eq!(reason(&serve(&mut ipam, Request::new("d", "a"))), "satisfied");
    let warning = ipam.pool(&PoolName::new("a")).unwrap().warnings.remove(0).to_string();
    assert!(warning.starts_with("avoided block `nonsense` is not a block"), "{warning}");
}

#[test]
fn the_ends_of_the_address_space_are_addresses() {
    let mut ipam = allocator([Pool::new("a", &["0.0.0.0/0", "::/0"])]);
    for wanted in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
        let addresses = RequestedAddress::parse_list(wanted);
        let status = serve(&mut ipam, Request { addresses, ..Request::new("d", wanted) });
        assert_eq!(status.addresses, [wanted.parse::<IpAddr>().unwrap()]);
    }
}

#[test]
fn a_hundred_thousand_wait_and_the_oldest_is_served() {
    let mut ipam = allocator([Pool::new("a", &["10.0.0.1"])]);
    for number in (0..100_000_u64).rev() {
        let created = Timestamp::from_secs(number);
        ipam.handle_edit(Edit::UpsertService(Request { created, ..Request::new("d", &format!("s{number}")) }));
    }
    let start = Instant::now();
    assert_eq!(ipam.reconcile(NOW).writes.len(), 100_000);
    for number in 0..2_u64 {
        let service = ServiceName::new("d", &format!("s{number}"));
        assert_eq!(ipam.answer(&service).unwrap().granted.len(), 1, "{number}");
        ipam.handle_edit(Edit::RemoveService(service));
        assert_eq!(ipam.reconcile(NOW).writes.len(), 1);
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

/// Each asks for the address that the next one has, and gives its own up only for that.
#[test]
fn one_reconcile_goes_so_often_over_those_that_wait_and_no_more() {
    let most = Allocator::<MemoryLedger>::MAX_PASSES;
    for (length, unfinished) in [(most, false), (most + 1, true)] {
        let mut ipam = allocator([Pool::new("a", &["10.0.0.0/24"])]);
        let member = |number: usize, last: usize| Request {
            created: Timestamp::from_secs(number as u64),
            addresses: RequestedAddress::parse_list(&format!("10.0.0.{last}")),
            ..Request::new("d", &format!("s{number:02}"))
        };
        (0..length).for_each(|number| ipam.handle_edit(Edit::UpsertService(member(number, number))));
        let _ = ipam.reconcile(NOW);
        (0..length).for_each(|number| ipam.handle_edit(Edit::UpsertService(member(number, number + 1))));
        assert_eq!(ipam.reconcile(NOW).unfinished, unfinished);
        assert!(!ipam.reconcile(NOW).unfinished);
        let first = ipam.answer(&ServiceName::new("d", "s00")).unwrap().addresses().next();
        assert_eq!(first, Some("10.0.0.1".parse().unwrap()));
    }
}
