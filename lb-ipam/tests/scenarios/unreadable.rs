//! Services that are there and cannot be read.

use lb_ipam::{Answer, Edit};

use crate::world::{World, name};

/// A cluster with a pool of four, in which `d/a` holds the first address and whoever starts cannot read it.
fn garbled() -> World {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/30]").service("d/a lbl=team:red key=k").service("d/b").garbled("d/a").restart();
    w.run().wrote(0);
    w
}

/// What the service is answered: its addresses, or nothing at all.
fn answered(w: &World, service: &str) -> Option<Vec<String>> {
    let addresses = |answer: &Answer| answer.addresses().map(|address| address.to_string()).collect();
    w.allocator.answer(&name(service)).map(addresses)
}

#[test]
fn a_service_that_cannot_be_read_keeps_what_the_ledger_says_it_has() {
    let mut w = garbled();
    assert_eq!(answered(&w, "d/a"), Some(vec!["10.0.10.0".to_owned()]));
    w.service("d/c").shows(&[("d/b", "10.0.10.1 satisfied"), ("d/c", "10.0.10.2 satisfied")]);
    assert_eq!(w.counts("a"), (4, 3, 1, 0));
}

#[test]
fn one_that_is_known_stays_what_it_was() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/30]").service("d/a").garbled("d/a").wrote(0);
    // As long as the process lives, a change of the pools finds what it asks for.
    w.pool("a [10.0.11.0/30]").wrote(1).shows(&[("d/a", "10.0.11.0 satisfied")]);
}

#[test]
fn neither_pools_nor_rules_move_one_that_cannot_be_read() {
    let mut w = garbled();
    let kept = Some(vec!["10.0.10.0".to_owned()]);
    for pool in ["a [10.0.10.0/30] sel=team:blue", "a [10.0.10.0/30] avoid=10.0.10.0", "a [10.0.11.0/30]", "a [oops]"] {
        w.pool(pool);
        assert_eq!(answered(&w, "d/a"), kept, "{pool}");
    }
    w.no_pool("a").rules(|rules| rules.ipv4 = false).run();
    assert_eq!(answered(&w, "d/a"), kept);
}

#[test]
fn once_it_can_be_read_it_keeps_its_address_if_it_may() {
    let mut w = garbled();
    w.service("d/a lbl=team:red").wrote(0).shows(&[("d/a", "10.0.10.0 satisfied")]);
    let mut w = garbled();
    w.pool("a [10.0.10.0/30] sel=team:blue").pool("b [10.0.11.0/30] sel=team:red").service("d/a lbl=team:red");
    w.shows(&[("d/a", "10.0.11.0 satisfied")]);
    let mut w = garbled();
    w.service("d/a req=10.0.10.3").shows(&[("d/a", "10.0.10.3 satisfied")]);
}

#[test]
fn once_it_is_gone_others_get_its_address() {
    let mut w = garbled();
    w.pool("a [10.0.10.0/31]").service("d/c").shows(&[("d/c", "- out_of_ips")]);
    w.gone("d/a").shows(&[("d/c", "10.0.10.0 satisfied")]);
    assert_eq!(answered(&w, "d/a"), None);
}

#[test]
fn nobody_joins_it_before_it_can_be_read() {
    let mut w = garbled();
    w.service("d/c key=k ports=tcp/81 req=10.0.10.0").shows(&[("d/c", "- already_allocated_incompatible_service")]);
    assert!(
        w.message("d/c").contains("d/a, with which it cannot be shared: it cannot be read"),
        "{}",
        w.message("d/c")
    );
    w.service("d/a key=k").shows(&[("d/a", "10.0.10.0 satisfied"), ("d/c", "10.0.10.0 satisfied")]);
}

#[test]
fn those_that_share_with_it_go_on_sharing() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/30]").service("d/a key=k").service("d/b key=k ports=tcp/81").garbled("d/a").restart().wrote(0);
    w.service("d/b key=k ports=tcp/82").wrote(0).shows(&[("d/b", "10.0.10.0 satisfied")]);
    // Of the two the one that joined has to leave.
    w.service("d/a key=k ports=tcp/82").shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "10.0.10.1 satisfied")]);
}

#[test]
fn one_that_has_nothing_gets_nothing() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/30]").tell_service("d/a").tell_garbled("d/a").restart().wrote(0);
    assert_eq!(answered(&w, "d/a"), None);
    // Its status may be somebody else's.
    w.service("d/a class=other st=10.0.10.1").wrote(0);
}

#[test]
fn a_plan_says_what_becomes_of_it() {
    let w = garbled();
    let moves =
        |edit: Edit| -> Vec<String> { w.allocator.plan([edit], w.now).moves.iter().map(ToString::to_string).collect() };
    assert_eq!(moves(Edit::KeepService(name("d/a"))), [""; 0]);
    assert_eq!(
        moves(Edit::RemovePool("a".into())),
        ["d/b: 10.0.10.1 -> nothing; no IPv4 address: there is no pool; create one"]
    );
    assert_eq!(moves(Edit::RemoveService(name("d/a"))), ["d/a: 10.0.10.0 -> nothing"]);
}
