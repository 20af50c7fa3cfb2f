//! What users of MetalLB know: A93 to A101.

use lb_ipam::WhenSharingBreaks;

use crate::world::World;

#[test]
fn a93_a_service_whose_new_wish_is_refused_keeps_what_it_has() {
    let mut w = World::new("v4");
    w.pool("a [1.2.3.4/31]").service("d/s1 req=1.2.3.4").service("d/s1 req=1.2.3.4").wrote(0);
    w.service("d/s2 req=1.2.3.4").shows(&[("d/s2", "- already_allocated")]);
    w.service("d/s2 req=1.2.3.5").shows(&[("d/s2", "1.2.3.5 satisfied")]);
    w.service("d/s1 req=1.2.3.5").shows(&[("d/s1", "1.2.3.4 already_allocated")]);
    w.gone("d/s2").shows(&[("d/s1", "1.2.3.5 satisfied")]).wrote(1);
    assert_eq!(w.status("a").counts.used, 1);
}

#[test]
fn a94_who_is_alone_may_change_its_key() {
    let mut w = World::new("v4");
    w.pool("a [1.2.3.0/30]").service("d/s4 req=1.2.3.3 key=sharing").service("d/s4 req=1.2.3.3 key=share");
    w.shows(&[("d/s4", "1.2.3.3 satisfied")]).wrote(0);
    assert_eq!(w.ledger_writes, 0);
}

#[test]
fn a95_what_becomes_of_broken_sharing_is_a_rule() {
    for rule in [WhenSharingBreaks::Keep, WhenSharingBreaks::Move] {
        let mut w = World::new("v4");
        w.rules(|rules| rules.when_sharing_breaks = rule);
        w.pool("a [1.2.3.0/30]").service("d/s3 req=1.2.3.3 key=k ports=udp/53").service("d/s3 key=k ports=udp/53");
        w.service("d/s4 key=k").shows(&[("d/s4", "1.2.3.3 satisfied")]).service("d/s3 key=other ports=udp/53");
        match rule {
            WhenSharingBreaks::Keep => {
                w.shows(&[
                    ("d/s3", "1.2.3.3 already_allocated_incompatible_service"),
                    ("d/s4", "1.2.3.3 already_allocated_incompatible_service"),
                ]);
                w.service("d/s3 key=k ports=udp/53");
            }
            WhenSharingBreaks::Move => {
                w.shows(&[("d/s3", "1.2.3.3 satisfied"), ("d/s4", "1.2.3.0 satisfied")]);
                continue;
            }
        }
        w.shows(&[("d/s4", "1.2.3.3 satisfied")]);
    }
}

#[test]
fn a96_edits_that_keep_the_addresses_move_nobody() {
    let mut w = World::new("v4+v6");
    w.pool("a [1.2.3.0/30, 1000::/126]").service("d/a fam=Require").shows(&[("d/a", "1.2.3.0 1000:: satisfied")]);
    let owner = |w: &World| {
        let answer = w.allocator.answer(&crate::world::name("d/a")).unwrap();
        answer.granted.iter().map(|granted| granted.pool.as_ref().unwrap().to_string()).collect::<Vec<_>>()
    };
    for (edit, pools) in [
        ("same", &["a [1.2.3.0/30, 1000::/126]"][..]),
        ("expanded", &["a [1.2.3.0/24, 1000::/64]"]),
        ("shrunk", &["a [1.2.3.0/31, 1000::/127]"]),
        ("reordered", &["a [1000::/127, 1.2.3.0/31]"]),
        ("renamed", &["b [1.2.3.0/31, 1000::/127]"]),
        ("split", &["c [1.2.3.0/31]", "d [1000::/127]"]),
        ("split within", &["c [1.2.3.0/32, 1.2.3.1/32]", "d [1000::/127]"]),
        ("merged", &["a [1.2.3.0/31, 1000::/127]"]),
    ] {
        for gone in ["a", "b", "c", "d"] {
            w.tell_no_pool(gone);
        }
        for pool in pools {
            w.tell_pool(pool);
        }
        w.run();
        assert_eq!((w.writes, w.ledger_writes), (0, 0), "{edit}");
        assert_eq!(w.got("d/a"), "1.2.3.0 1000:: satisfied", "{edit}");
        let names: Vec<String> = pools.iter().map(|pool| pool[..1].to_owned()).collect();
        assert!(owner(&w).iter().all(|owner| names.contains(owner)), "{edit}");
    }
}

#[test]
fn a97_only_the_address_that_left_is_released() {
    for (edit, expected) in [
        ("a [1.2.3.2/31, 1000::/126]", "1.2.3.2 1000:: satisfied"),
        ("a [1.2.3.0/30, 1000::/126] odd", "1.2.3.1 1000:: satisfied"),
        ("a [1.2.3.0/30, 1000::/126] avoid=1.2.3.0-1.2.3.1", "1.2.3.2 1000:: satisfied"),
    ] {
        let mut w = World::new("v4+v6");
        w.pool("a [1.2.3.0/30, 1000::/126]").service("d/a fam=Require").pool(edit);
        assert_eq!(w.got("d/a"), expected, "{edit}");
    }
}

#[test]
fn a98_a_pool_that_is_not_automatic_is_asked_by_name_only() {
    let mut w = World::new("v4");
    w.pool("p1 [1.2.3.0/31] noauto").pool("p2 [1.2.4.0/31]").service("d/a").service("d/b").service("d/c");
    w.shows(&[("d/a", "1.2.4.0 satisfied"), ("d/b", "1.2.4.1 satisfied"), ("d/c", "- out_of_ips")]);
    w.service("d/d req=1.2.3.1").service("d/e only=p1");
    w.shows(&[("d/d", "1.2.3.1 satisfied"), ("d/e", "1.2.3.0 satisfied")]);
}

#[test]
fn a99_pools_are_asked_by_priority() {
    let mut w = World::new("v4");
    w.pool("u [1.0.0.4]").pool("t [1.0.0.2] prio=20").pool("s [1.0.0.3] prio=20").pool("r [1.0.0.1] prio=10");
    w.service("d/a").service("d/b").service("d/c").service("d/d");
    w.shows(&[("d/a", "1.0.0.1 satisfied"), ("d/b", "1.0.0.3 satisfied")]);
    w.shows(&[("d/c", "1.0.0.2 satisfied"), ("d/d", "1.0.0.4 satisfied")]);
}

/// Whatever their names and ages are.
#[test]
fn a_pool_that_selects_comes_before_one_for_everybody() {
    let mut w = World::new("v4");
    w.pool("all [1.0.1.0/24] t=1").pool("by-name [1.0.2.0/24] sel=color:red t=2");
    w.service("d/a").service("d/b lbl=color:red");
    w.shows(&[("d/a", "1.0.1.0 satisfied"), ("d/b", "1.0.2.0 satisfied")]);
    // A priority says more.
    w.pool("all [1.0.1.0/24] t=1 prio=0").service("d/c lbl=color:red").shows(&[("d/c", "1.0.1.1 satisfied")]);
}

#[test]
fn a100_a_pool_of_both_families_is_preferred_for_both() {
    let mut w = World::new("v4+v6");
    w.pool("four [1.2.3.0/31]")
        .pool("dual [1.2.4.0/32, 1000::/128]")
        .service("d/a fam=Prefer")
        .service("d/b fam=Prefer");
    w.shows(&[("d/a", "1.2.4.0 1000:: satisfied"), ("d/b", "1.2.3.0 out_of_ips")]);
}

#[test]
fn a101_the_second_family_is_added_and_the_first_stays() {
    let mut w = World::new("v4+v6");
    w.pool("a [1.2.3.0/30]").service("d/a fam=Prefer").shows(&[("d/a", "1.2.3.0 no_pool")]);
    w.pool("a [1.2.3.0/30, 1000::/126]").shows(&[("d/a", "1.2.3.0 1000:: satisfied")]).wrote(1);
}
