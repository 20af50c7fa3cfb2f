//! Families: A19 to A31.

use crate::world::World;

/// Cluster, service, what it gets from pools of both families: v4 is 10.0.10.0, v6 is ff::.
#[test]
fn a19_to_a28_what_a_policy_gets() {
    let rows = [
        ("A19", "v4", "d/a", "10.0.10.0 satisfied"),
        ("A20", "v6", "d/a", "ff:: satisfied"),
        ("A21", "v4+v6", "d/a", "10.0.10.0 satisfied"),
        ("A22", "v4", "d/a fam=Single:v6", "ff:: satisfied"),
        ("A23", "v6", "d/a fam=Single:v4", "10.0.10.0 satisfied"),
        ("A24", "none", "d/a fam=Single:v4,v6", "10.0.10.0 satisfied"),
        ("A25", "v4+v6", "d/a fam=Single", "10.0.10.0 satisfied"),
        ("A26", "v4+v6", "d/a fam=Prefer", "10.0.10.0 ff:: satisfied"),
        ("A26 listed", "v4+v6", "d/a fam=Prefer:v6,v4", "ff:: 10.0.10.0 satisfied"),
        ("A27", "v6", "d/a fam=Prefer:v4", "- family_disabled"),
        ("A28", "v6", "d/a fam=Require:v4", "ff:: family_disabled"),
        ("A28 both", "v4+v6", "d/a fam=Require:v4", "10.0.10.0 ff:: satisfied"),
        ("none at all", "none", "d/a", "- family_disabled"),
    ];
    for (id, cluster, service, expected) in rows {
        let mut w = World::new(cluster);
        w.pool("a [10.0.10.0/24, ff::/48]").service(service);
        assert_eq!(w.got("d/a"), expected, "{id}");
    }
}

#[test]
fn a22_a_family_that_is_not_enabled_waits_for_a_pool_of_it() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a fam=Single:v6").shows(&[("d/a", "- no_pool")]);
    w.pool("b [ff::/48]").shows(&[("d/a", "ff:: satisfied")]);
}

#[test]
fn a29_a_service_changes_its_family() {
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.0/24, ff::/48]").service("d/a fam=Single:v4").shows(&[("d/a", "10.0.10.0 satisfied")]);
    w.service("d/a fam=Single:v6").shows(&[("d/a", "ff:: satisfied")]).wrote(1);
    assert_eq!(w.status("a").counts.used, 1);
    w.service("d/a fam=Single:v4").shows(&[("d/a", "10.0.10.0 satisfied")]);
    assert_eq!(w.status("a").counts.used, 1);
}

#[test]
fn a30_a_required_family_without_pool_is_named() {
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.0/24]").service("d/a fam=Require").shows(&[("d/a", "10.0.10.0 no_pool")]);
    assert!(w.message("d/a").contains("IPv6"), "{}", w.message("d/a"));
}

#[test]
fn a31_the_second_family_comes_when_it_can_be_had() {
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.0/24]").service("d/a fam=Prefer").shows(&[("d/a", "10.0.10.0 no_pool")]);
    assert!(w.message("d/a").contains("IPv6"), "{}", w.message("d/a"));
    w.pool("b [ff::/48]").shows(&[("d/a", "10.0.10.0 ff:: satisfied")]).wrote(1);
}

#[test]
fn counts_of_one_family_do_not_hide_those_of_the_other() {
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.0/31, 2001:db8::/64] quarantine=300").services(3).service("d/six fam=Single:v6");
    let status = w.gone("d/s1").status("a");
    let counts = |counts: lb_ipam::Counts| (counts.total, counts.used, counts.quarantined, counts.free);
    assert_eq!(counts(status.ipv4), (2, 2, 0, 0));
    assert_eq!(counts(status.ipv6), (1 << 64, 1, 0, (1 << 64) - 1));
    assert_eq!(counts(status.counts), ((1 << 64) + 2, 3, 0, (1 << 64) - 1));
    let status = w.gone("d/s0").gone("d/six").status("a");
    assert_eq!((counts(status.ipv4), status.ipv6.quarantined), ((2, 1, 1, 0), 1));
}
