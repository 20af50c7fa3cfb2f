//! Restarts and imports: A85 to A92. Every `run` of a [`World`] restarts it as well, and nothing may be written.

use crate::world::World;

#[test]
fn a85_what_statuses_say_is_kept() {
    let mut w = World::new("v4");
    w.tell_pool("a [10.0.10.0/24]")
        .tell_service("d/a st=10.0.10.123")
        .tell_service("d/b req=10.0.10.124 st=10.0.10.124");
    w.restart().shows(&[("d/a", "10.0.10.123 satisfied"), ("d/b", "10.0.10.124 satisfied")]);
    // With the ledger lost, too, and then nothing is written but the ledger.
    w.lose_ledger().restart().wrote(0);
    assert_eq!(w.ledger_writes, 2);
    w.restart().wrote(0);
    assert_eq!(w.ledger_writes, 0);
}

#[test]
fn a86_an_address_of_no_pool_is_replaced() {
    let mut w = World::new("v4");
    w.tell_pool("a [10.0.10.0/24]").tell_service("d/a st=192.168.1.12");
    w.restart().wrote(1).shows(&[("d/a", "10.0.10.0 satisfied")]);
}

#[test]
fn a87_those_that_wait_go_on_waiting() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/31]").service("d/x t=2").service("d/y t=3").service("d/older t=1").restart().wrote(0);
    w.shows(&[("d/x", "10.0.10.0 satisfied"), ("d/y", "10.0.10.1 satisfied"), ("d/older", "- out_of_ips")]);
    w.lose_ledger().restart().wrote(0);
}

#[test]
fn a88_who_shares_goes_on_sharing() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a key=k req=10.0.10.5").service("d/b key=k ports=tcp/81");
    w.service("d/c key=k req=10.0.10.6").service("d/d key=k ports=tcp/82");
    w.restart().wrote(0).lose_ledger().restart().wrote(0);
    w.shows(&[("d/a", "10.0.10.5 satisfied"), ("d/b", "10.0.10.5 satisfied"), ("d/c", "10.0.10.6 satisfied")]);
}

#[test]
fn a89_the_holder_in_a_disabled_pool_stays() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a req=10.0.10.7").service("d/a");
    w.pool("a [10.0.10.0/24] off").wrote(0).restart().wrote(0).lose_ledger().restart().wrote(0);
    w.shows(&[("d/a", "10.0.10.7 satisfied")]);
}

#[test]
fn a90_shrinking_moves_only_who_is_outside() {
    let mut w = World::new("v4");
    w.pool("a [10.0.0.9-10.0.0.50]").service("d/moves req=10.0.0.45").service("d/moves");
    for address in [9, 10, 11, 39, 49] {
        w.service(&format!("d/s{address} req=10.0.0.{address}")).service(&format!("d/s{address}"));
    }
    w.pool("a [10.0.0.9-10.0.0.39, 10.0.0.49-10.0.0.50]").wrote(1).shows(&[("d/moves", "10.0.0.12 satisfied")]);
}

#[test]
fn a91_widening_moves_nobody() {
    let mut w = World::new("v4");
    w.pool("a [10.0.0.120-10.0.0.127]").service("d/a").service("d/b").service("d/c").service("d/d");
    w.pool("a [10.0.0.117-10.0.0.127]").wrote(0);
    assert_eq!(w.ledger_writes, 0);
}

#[test]
fn a92_an_address_that_is_published_twice_is_published_once() {
    let mut w = World::new("v4");
    w.tell_pool("a [10.0.10.0/24]").tell_service("d/a st=10.0.10.5,10.0.10.5");
    w.run().shows(&[("d/a", "10.0.10.5 satisfied")]).wrote(1);
}

#[test]
fn of_two_that_publish_one_address_the_older_keeps_it() {
    let mut w = World::new("v4");
    w.tell_pool("a [10.0.10.0/24]").tell_service("d/a t=2 st=10.0.10.5").tell_service("d/b t=1 st=10.0.10.5");
    w.run().shows(&[("d/b", "10.0.10.5 satisfied"), ("d/a", "10.0.10.0 satisfied")]);
}

#[test]
fn a_block_that_breaks_takes_nothing_from_anybody() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a").pool("a [10.0.10.0/240]").wrote(0).restart().wrote(0);
    w.service("d/b").shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "- no_pool")]);
    w.pool("a [10.0.11.0/24]").shows(&[("d/a", "10.0.11.0 satisfied"), ("d/b", "10.0.11.1 satisfied")]);
}

#[test]
fn services_that_went_while_nobody_looked_give_back() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/31]").service("d/a").service("d/b").service("d/c").shows(&[("d/c", "- out_of_ips")]);
    let ledger = w.allocator.ledger().clone();
    w.gone("d/a");
    w.allocator = lb_ipam::Allocator::new(lb_ipam::Settings::default().with_families([lb_ipam::Family::V4]), ledger);
    w.restart().shows(&[("d/b", "10.0.10.1 satisfied"), ("d/c", "10.0.10.0 satisfied")]);
}

/// The status was not written before the process ended, and somebody who shares comes first.
#[test]
fn an_address_that_was_left_for_one_asked_for_by_name_is_not_taken_back() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a key=k req=10.0.10.7").tell_service("d/a key=k req=10.0.10.7 st=10.0.10.3");
    w.tell_service("d/b key=k ports=tcp/81 t=1").restart();
    w.shows(&[("d/a", "10.0.10.7 satisfied"), ("d/b", "10.0.10.7 satisfied")]);
    assert_eq!(w.ledger_writes, 1);
}

/// The same with an address of a family that it does not ask for any more.
#[test]
fn an_address_of_a_family_that_was_left_is_not_taken_back() {
    let mut w = World::new("v4+v6");
    w.pool("a [2001:db8::/125]").tell_service("d/a key=k req=10.0.10.7 st=2001:db8::1");
    w.tell_service("d/b key=k ports=tcp/81 t=1 fam=Single:v6").restart();
    w.shows(&[("d/a", "- no_pool"), ("d/b", "2001:db8:: satisfied")]);
}
