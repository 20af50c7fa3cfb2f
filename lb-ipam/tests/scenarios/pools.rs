//! Pools, blocks, counts: A01 to A18.

use std::net::IpAddr;

use lb_ipam::{Block, BlockProblem, PoolProblem, PoolWarning};

use crate::world::World;

#[test]
fn a01_any_address() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a").shows(&[("d/a", "10.0.10.0 satisfied")]);
}

/// Pool, and what each of some services in turn gets.
#[test]
fn a02_a05_a06_a07_a08_a09_small_pools_fill_up() {
    let rows: [(&str, &str, &str, &[&str]); 6] = [
        ("A02", "v4", "a [10.0.10.16/30] afl=No", &["10.0.10.17", "10.0.10.18", "-"]),
        ("A05", "v4", "a [10.0.10.20/31] afl=No", &["10.0.10.20", "10.0.10.21", "-"]),
        ("A06", "v4", "a [10.0.10.123/32, ff::123/128] afl=No", &["10.0.10.123", "-"]),
        ("A07", "v6", "a [2001:db8::/126] afl=No", &["2001:db8::1", "2001:db8::2", "-"]),
        ("A08", "v4", "a [10.0.0.100-10.0.0.102] afl=No", &["10.0.0.100", "10.0.0.101", "10.0.0.102", "-"]),
        ("A09", "v4", "a [1.2.3.4]", &["1.2.3.4", "-"]),
    ];
    for (id, families, pool, expected) in rows {
        let mut w = World::new(families);
        w.pool(pool);
        for (number, address) in expected.iter().enumerate() {
            let service = format!("d/s{number}");
            let reason = if *address == "-" { "out_of_ips" } else { "satisfied" };
            w.service(&service);
            assert_eq!(w.got(&service), format!("{address} {reason}"), "{id}");
        }
    }
}

#[test]
fn a03_the_first_address_can_be_asked_for() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.16/30] afl=Yes").service("d/a req=10.0.10.16").shows(&[("d/a", "10.0.10.16 satisfied")]);
}

#[test]
fn a04_the_first_address_is_given_once_it_is_allowed() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.16/30] afl=No").service("d/a req=10.0.10.16").shows(&[("d/a", "- reserved_address")]);
    w.pool("a [10.0.10.16/30] afl=Yes").shows(&[("d/a", "10.0.10.16 satisfied")]);
}

#[test]
fn a06_one_address_of_each_family() {
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.123/32, ff::123/128] afl=No").service("d/four fam=Single:v4").service("d/six fam=Single:v6");
    w.shows(&[("d/four", "10.0.10.123 satisfied"), ("d/six", "ff::123 satisfied")]);
}

#[test]
fn a10_host_bits_are_ignored_with_a_warning() {
    let mut w = World::new("v4");
    w.pool("a [192.168.100.200/28]").service("d/a").shows(&[("d/a", "192.168.100.192 satisfied")]);
    let expected = PoolWarning::HostBits {
        block: Block::parse("192.168.100.200/28"),
        network: "192.168.100.192/28".parse().unwrap(),
    };
    assert_eq!(w.status("a").warnings, [expected]);
}

#[test]
fn a11_a12_a_wrong_block_puts_the_whole_pool_out_of_service() {
    for (id, block, problem) in [
        ("A11", "10.0.0.20-10.0.0.10", BlockProblem::Reversed),
        ("A12", "10.0.0.1-::5", BlockProblem::MixedFamilies),
        ("unreadable", "10.0.0.0/33", BlockProblem::Unreadable),
    ] {
        let mut w = World::new("v4");
        w.pool(&format!("a [10.0.1.0/24, {block}]")).service("d/a").shows(&[("d/a", "- no_pool")]);
        let expected = PoolProblem::Blocks { wrong: vec![(Block::parse(block), problem)], more: 0 };
        assert_eq!(w.status("a").problem, Some(expected), "{id}");
        assert!(w.message("d/a").contains(block), "{id}: {}", w.message("d/a"));
        w.pool("b [10.0.2.0/24]").shows(&[("d/a", "10.0.2.0 satisfied")]);
    }
}

#[test]
fn a13_reserved_addresses_are_beside_the_total() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] afl=No");
    assert_eq!(w.counts("a"), (254, 0, 254, 2));
}

#[test]
fn a14_large_pools_are_counted_and_cost_nothing() {
    let mut w = World::new("v6");
    w.pool("a [2004::/64]");
    assert_eq!(w.counts("a"), (1 << 64, 0, 1 << 64, 0));
    w.pool("a [::/0] afl=No").service("d/a").shows(&[("d/a", "::1 satisfied")]);
    assert_eq!(w.counts("a"), (u128::MAX - 1, 1, u128::MAX - 2, 1));
    w.pool("a [::/0]");
    assert_eq!(w.counts("a"), (u128::MAX, 1, u128::MAX - 1, 0));
}

#[test]
fn a15_addresses_that_end_in_zero_or_255_are_not_counted() {
    for (blocks, total) in [("1.2.3.0/24", 254), ("1.2.3.0/24, 2.3.4.128/25", 381), ("1.2.3.0/31", 1)] {
        let mut w = World::new("v4");
        w.pool(&format!("a [{blocks}] odd"));
        assert_eq!(w.counts("a").0, total, "{blocks}");
    }
}

#[test]
fn a16_addresses_that_end_in_zero_or_255_are_not_given() {
    let mut w = World::new("v4");
    w.pool("a [1.2.4.0/31] odd").pool("b [1.2.4.254/31] odd").service("d/a").service("d/b").service("d/c");
    w.shows(&[("d/a", "1.2.4.1 satisfied"), ("d/b", "1.2.4.254 satisfied"), ("d/c", "- out_of_ips")]);
}

#[test]
fn a17_the_last_address_is_never_given() {
    let mut w = World::new("v4");
    w.pool("a [10.0.0.0/29] afl=No");
    for number in 1..=6 {
        let service = format!("d/s{number}");
        w.service(&service);
        assert_eq!(w.addresses(&service), [format!("10.0.0.{number}").parse::<IpAddr>().unwrap()]);
    }
    w.service("d/s7").shows(&[("d/s7", "- out_of_ips")]);
}

#[test]
fn a18_a_disabled_pool_gives_nothing() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] off").service("d/a").shows(&[("d/a", "- no_pool")]);
    assert!(w.message("d/a").contains("pool `a` is disabled"), "{}", w.message("d/a"));
}
