//! Addresses asked for by name: A43 to A55.

use crate::world::World;

#[test]
fn a43_one_address() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a req=10.0.10.20").shows(&[("d/a", "10.0.10.20 satisfied")]);
}

#[test]
fn a44_several_addresses() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a req=10.0.10.21,10.0.10.22,10.0.10.23");
    w.shows(&[("d/a", "10.0.10.21 10.0.10.22 10.0.10.23 satisfied")]);
}

#[test]
fn a45_an_address_that_another_service_holds() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a req=10.0.10.21,10.0.10.22").service("d/c req=10.0.10.21");
    w.shows(&[("d/c", "- already_allocated")]);
    assert!(w.message("d/c").contains("10.0.10.21: held by service d/a"), "{}", w.message("d/c"));
}

#[test]
fn a46_a47_the_pool_or_block_comes_later() {
    for (id, later) in [("A46", "b [10.0.20.0/24]"), ("A47", "a [10.0.10.0/24, 10.0.20.0/24]")] {
        let mut w = World::new("v4");
        w.pool("a [10.0.10.0/24]").service("d/a req=10.0.20.10").shows(&[("d/a", "- no_pool")]);
        w.pool(later);
        assert_eq!(w.got("d/a"), "10.0.20.10 satisfied", "{id}");
    }
}

#[test]
fn a48_the_pool_of_the_address_is_for_others() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:blue").service("d/a lbl=color:red req=10.0.10.123");
    w.shows(&[("d/a", "- pool_selector_mismatch")]);
}

#[test]
fn a49_one_of_several_is_not_wanted_any_more() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a req=10.0.10.123,10.0.10.124,10.0.10.125");
    w.service("d/a req=10.0.10.123,10.0.10.124").shows(&[("d/a", "10.0.10.123 10.0.10.124 satisfied")]).wrote(1);
    assert_eq!(w.status("a").counts.used, 2);
    w.service("d/b req=10.0.10.125").shows(&[("d/b", "10.0.10.125 satisfied")]);
}

#[test]
fn a50_the_rest_of_a_list_with_garbage_is_given() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a req=10.0.10.5,garbage").shows(&[("d/a", "10.0.10.5 invalid_request")]);
    assert!(w.message("d/a").contains("`garbage`"), "{}", w.message("d/a"));
}

#[test]
fn a51_garbage_alone_gets_nothing() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a req=garbage").shows(&[("d/a", "- invalid_request")]);
}

#[test]
fn a52_an_address_that_is_listed_twice_is_given_once() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a req=10.0.10.5,10.0.10.6,10.0.10.5");
    w.shows(&[("d/a", "10.0.10.5 10.0.10.6 satisfied")]);
}

#[test]
fn a53_every_refusal_is_told() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/b req=10.0.10.6").service("d/a req=10.0.10.5,10.0.10.6,10.9.9.9");
    w.shows(&[("d/a", "10.0.10.5 already_allocated")]);
    let message = w.message("d/a");
    assert!(message.contains("10.0.10.6: held by service d/b"), "{message}");
    assert!(message.contains("10.9.9.9: no pool has a block containing it"), "{message}");
}

#[test]
fn a54_the_pool_of_the_address_is_disabled() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] off").service("d/a req=10.0.10.9").shows(&[("d/a", "- pool_disabled")]);
}

#[test]
fn a55_how_many_of_a_family_may_be_asked_for_is_a_rule() {
    let many = "d/a fam=Require req=10.0.10.5,10.0.20.5,ff::5";
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.0/24, ff::/48]").pool("b [10.0.20.0/24]").service(many);
    w.shows(&[("d/a", "10.0.10.5 10.0.20.5 ff::5 satisfied")]);
    let mut w = World::new("v4+v6");
    w.rules(|rules| rules.one_address_per_family = true);
    w.pool("a [10.0.10.0/24, ff::/48]").pool("b [10.0.20.0/24]").service(many);
    w.shows(&[("d/a", "10.0.10.5 ff::5 invalid_request")]);
}

#[test]
fn an_address_of_a_family_that_is_not_listed_is_refused() {
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.0/24, ff::/48]").service("d/a fam=Single:v4 req=ff::5").shows(&[("d/a", "- family_mismatch")]);
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24, ff::/48]").service("d/a req=ff::5").shows(&[("d/a", "- family_disabled")]);
}

#[test]
fn a_pool_may_be_asked_for() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/31]").pool("b [10.0.20.0/32]");
    w.service("d/a prefer=b").service("d/b prefer=b").service("d/c only=b");
    w.shows(&[("d/a", "10.0.20.0 satisfied"), ("d/b", "10.0.10.0 satisfied"), ("d/c", "- out_of_ips")]);
    w.service("d/d only=none").shows(&[("d/d", "- no_pool")]);
}

#[test]
fn a_namespace_gets_as_many_as_its_quota() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] quota=2").service("x/a").service("x/b key=k").service("x/c").service("y/a");
    w.shows(&[("x/b", "10.0.10.1 satisfied"), ("x/c", "- quota_exceeded"), ("y/a", "10.0.10.2 satisfied")]);
    w.service("x/d req=10.0.10.9").shows(&[("x/d", "- quota_exceeded")]);
    w.service("x/e key=k ports=tcp/81").shows(&[("x/e", "10.0.10.1 satisfied")]);
    w.pool("a [10.0.10.0/24] quota=0").shows(&[("x/a", "10.0.10.0 satisfied")]);
    w.gone("x/a").shows(&[("x/c", "- quota_exceeded")]);
    w.pool("a [10.0.10.0/24] quota=2").shows(&[("x/c", "10.0.10.3 satisfied"), ("x/d", "- quota_exceeded")]);
}
