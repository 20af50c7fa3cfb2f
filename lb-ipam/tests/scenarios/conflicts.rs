//! Pools that overlap: A81 to A84.

use crate::world::World;

#[test]
fn a81_the_newer_pool_is_out_of_service_with_all_its_blocks() {
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.0/24] t=1").pool("b [10.0.10.0/24, ff::/48] t=2");
    assert_eq!(w.status("a").problem, None);
    assert_eq!(
        w.status("b").problem.unwrap().to_string(),
        "range 10.0.10.0-10.0.10.255 overlaps range 10.0.10.0-10.0.10.255 of pool `a`; remove one of them"
    );
    w.service("d/six fam=Single:v6").service("d/four fam=Single:v4");
    w.shows(&[("d/six", "- no_pool"), ("d/four", "10.0.10.0 satisfied")]);
    assert!(w.message("d/six").contains("pool `b` is out of service, because it overlaps pool `a`"));
    w.pool("b [ff::/48] t=2").shows(&[("d/six", "ff:: satisfied")]);
    assert_eq!(w.status("b").problem, None);
}

#[test]
fn a82_a_pool_conflicts_with_itself() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24, 10.0.10.64/28]").service("d/a").shows(&[("d/a", "- no_pool")]);
    assert_eq!(
        w.status("a").problem.unwrap().to_string(),
        "range 10.0.10.64-10.0.10.79 overlaps range 10.0.10.0-10.0.10.255 of pool `a`; remove one of them"
    );
    w.pool("a [10.0.10.0/24]").shows(&[("d/a", "10.0.10.0 satisfied")]);
}

#[test]
fn a83_of_two_of_the_same_age_the_name_decides() {
    for order in [["a", "b"], ["b", "a"]] {
        let mut w = World::new("v4");
        for name in order {
            w.pool(&format!("{name} [10.0.10.0/24]"));
        }
        assert_eq!(w.status("a").problem, None, "{order:?}");
        assert_eq!(w.status("b").problem.unwrap().reason(), "cidr_overlap", "{order:?}");
    }
}

#[test]
fn a84_a_pool_out_of_service_takes_no_other_with_it() {
    let pools = ["a [10.0.0.0-10.0.0.9] t=1", "b [10.0.0.5-10.0.0.15] t=2", "c [10.0.0.11-10.0.0.20] t=3"];
    for order in [[0_usize, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let mut w = World::new("v4");
        for index in order {
            w.pool(pools[index]);
        }
        let in_service = ["a", "b", "c"].map(|name| w.status(name).problem.is_none());
        assert_eq!(in_service, [true, false, true], "{order:?}");
    }
}

/// The older pool, and whether the newer one that overlaps it is in service.
#[test]
fn a_pool_that_is_wrong_by_itself_takes_no_other_with_it() {
    for (older, expected) in [
        ("a [10.0.10.0/24] t=1", false),
        ("a [10.0.10.0/24] t=1 off", false),
        ("a [10.0.10.0/24, oops] t=1", true),
        ("a [10.0.10.0/24] t=1 sel=color:Near:red", true),
        ("a [10.0.10.0/24] t=1 refused=no_good", true),
        ("a [10.0.10.0/24] t=1 off refused=no_good", true),
    ] {
        let mut w = World::new("v4");
        w.pool("b [10.0.10.0/25] t=2").pool(older);
        assert_eq!(w.status("b").problem.is_none(), expected, "{older}");
    }
}

#[test]
fn who_holds_an_address_of_a_pool_that_is_refused_keeps_it() {
    for refused in ["a [10.0.10.0/24] refused=no_good sel=color:blue", "a [] refused=no_good"] {
        let mut w = World::new("v4");
        w.pool("a [10.0.10.0/24]").service("d/a").pool(refused).wrote(0).service("d/b");
        w.shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "- no_pool")]);
        assert_eq!(w.status("a").problem.unwrap().to_string(), "no good", "{refused}");
        let warnings = usize::from(refused.contains("[]"));
        assert_eq!(w.status("a").warnings.len(), warnings, "{refused}");
    }
}

#[test]
fn holders_in_a_pool_that_comes_into_conflict_stay() {
    let mut w = World::new("v4");
    w.pool("b [10.0.10.0/24] t=2").service("d/a").service("d/b req=10.0.10.200");
    w.pool("a [10.0.10.128/25] t=1").wrote(0);
    assert_eq!(w.ledger_writes, 0);
    w.service("d/c").shows(&[("d/a", "10.0.10.0 satisfied"), ("d/c", "10.0.10.128 satisfied")]);
    w.service("d/d req=10.0.10.5").shows(&[("d/d", "- pool_conflict")]);
    w.no_pool("a").wrote(1).shows(&[("d/c", "10.0.10.128 satisfied"), ("d/d", "10.0.10.5 satisfied")]);
}
