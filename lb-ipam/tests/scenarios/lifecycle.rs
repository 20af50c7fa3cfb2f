//! Coming and going, order, reuse: A56 to A62.

use crate::world::World;

#[test]
fn a56_a_service_that_goes_gives_its_address_back() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] quarantine=0").service("d/a");
    assert_eq!(w.counts("a"), (256, 1, 255, 0));
    w.gone("d/a");
    assert_eq!(w.counts("a"), (256, 0, 256, 0));
}

#[test]
fn a57_disabling_a_pool_touches_nobody() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a");
    w.pool("a [10.0.10.0/24] off").wrote(0);
    assert_eq!(w.ledger_writes, 0);
    w.service("d/b").shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "- no_pool")]);
    w.pool("a [10.0.10.0/24]").shows(&[("d/b", "10.0.10.1 satisfied")]).wrote(1);
}

#[test]
fn a58_services_of_a_pool_that_goes_move_with_one_write() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").pool("b [10.0.20.0/24]").service("d/a").shows(&[("d/a", "10.0.10.0 satisfied")]);
    w.no_pool("a").shows(&[("d/a", "10.0.20.0 satisfied")]).wrote(1);
}

#[test]
fn a59_a_block_that_comes_moves_nobody_and_one_that_goes_its_own() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a");
    w.pool("a [10.0.10.0/24, 10.0.20.0/24]").wrote(0);
    w.pool("a [10.0.20.0/24]").shows(&[("d/a", "10.0.20.0 satisfied")]).wrote(1);
}

#[test]
fn a60_an_address_that_was_given_back_rests() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0-10.0.10.11]");
    w.services(10);
    w.gone("d/s4").service("d/new").shows(&[("d/new", "10.0.10.10 satisfied")]);
    assert_eq!(w.status("a").counts.quarantined, 1);
    w.service("d/last").shows(&[("d/last", "10.0.10.11 satisfied")]);
    // The pool is otherwise full: the quarantine yields.
    w.service("d/more").shows(&[("d/more", "10.0.10.4 satisfied")]);
}

#[test]
fn of_addresses_that_were_given_back_the_one_that_rested_longest_is_next() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/30]");
    w.services(4);
    w.gone("d/s2").later(1).gone("d/s0").later(1).gone("d/s3").service("d/x").service("d/y").service("d/z");
    w.shows(&[("d/x", "10.0.10.2 satisfied"), ("d/y", "10.0.10.0 satisfied"), ("d/z", "10.0.10.3 satisfied")]);
}

#[test]
fn a61_the_lowest_address_that_was_never_used_is_next() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] afl=No").service("d/a").service("d/b").service("d/c req=10.0.10.200").service("d/d");
    w.shows(&[("d/a", "10.0.10.1 satisfied"), ("d/b", "10.0.10.2 satisfied"), ("d/d", "10.0.10.3 satisfied")]);
}

#[test]
fn a62_the_oldest_of_those_that_wait_is_first() {
    let mut w = World::new("v4");
    w.tell_service("d/a t=3").tell_service("d/b t=1").tell_service("d/c t=2").run();
    w.pool("a [10.0.10.1]");
    w.shows(&[("d/a", "- out_of_ips"), ("d/b", "10.0.10.1 satisfied"), ("d/c", "- out_of_ips")]);
    w.gone("d/b").shows(&[("d/a", "- out_of_ips"), ("d/c", "10.0.10.1 satisfied")]);
}

#[test]
fn a_service_that_comes_back_gets_its_address_back() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a").service("d/b").gone("d/a").later(3599);
    w.service("d/a").shows(&[("d/a", "10.0.10.0 satisfied")]);
    // After an hour it is forgotten, and the lowest address is the next.
    w.gone("d/b").gone("d/a").later(3600).service("d/b").shows(&[("d/b", "10.0.10.0 satisfied")]);
}

#[test]
fn a_forgotten_address_costs_nothing() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a").gone("d/a");
    assert_eq!(lb_ipam::Ledger::entries(w.allocator.ledger()).count(), 1);
    let (at, why) = w.allocator.poll_timeout().unwrap();
    assert_eq!((at.as_millis() - w.now.as_millis(), why), (3_600_000, "an address is forgotten"));
    w.later(3600);
    assert_eq!(lb_ipam::Ledger::entries(w.allocator.ledger()).count(), 0);
    assert_eq!(w.allocator.poll_timeout(), None);
}

#[test]
fn an_address_that_a_living_service_left_drains_before_anybody_gets_it() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/31] sel=color:red drain=60").pool("b [10.0.20.0/24]");
    w.service("d/a lbl=color:red").service("d/b lbl=color:red").service("d/a").shows(&[("d/a", "10.0.20.0 satisfied")]);
    assert_eq!(w.status("a").counts.draining, 1);
    w.service("d/c lbl=color:red only=a").shows(&[("d/c", "- out_of_ips")]);
    w.service("d/d lbl=color:red req=10.0.10.0").shows(&[("d/d", "- address_draining")]);
    assert!(w.message("d/d").contains("service d/a"), "{}", w.message("d/d"));
    assert_eq!(w.allocator.poll_timeout().unwrap().1, "an address is drained");
    w.later(59).shows(&[("d/c", "- out_of_ips")]);
    w.later(1).shows(&[("d/c", "10.0.10.0 satisfied"), ("d/d", "- already_allocated")]);
}

#[test]
fn an_address_that_something_else_answers_for_is_left_to_it() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/any").service("d/named req=10.0.10.7");
    for address in ["10.0.10.0", "10.0.10.7"] {
        w.allocator.claim(address.parse().unwrap(), "52:54:00:12:34:56").unwrap();
    }
    w.run().shows(&[("d/any", "10.0.10.1 satisfied"), ("d/named", "- address_conflict")]).wrote(2);
    assert!(w.message("d/named").contains("52:54:00:12:34:56 answers for it too"), "{}", w.message("d/named"));
    assert_eq!(w.status("a").counts.conflict, 2);
    w.allocator.clear("10.0.10.7".parse().unwrap()).unwrap();
    w.run().shows(&[("d/any", "10.0.10.1 satisfied"), ("d/named", "10.0.10.7 satisfied")]).wrote(1);
}

#[test]
fn a_reserved_address_is_nobodys() {
    let mut w = World::new("v4");
    w.allocator.reserve("10.0.10.0".parse().unwrap(), "the printer").unwrap();
    w.pool("a [10.0.10.0/24]").service("d/a").service("d/b req=10.0.10.0");
    w.shows(&[("d/a", "10.0.10.1 satisfied"), ("d/b", "- reserved_address")]);
    assert!(w.message("d/b").contains("the printer"), "{}", w.message("d/b"));
    assert_eq!(w.counts("a"), (255, 1, 254, 1));
    w.rules(|rules| {
        let range = lb_ipam::AddressRange::single("10.0.10.1".parse().unwrap());
        rules.reserved = vec![lb_ipam::Reservation { range, why: "node one".into() }];
    });
    w.run().shows(&[("d/a", "10.0.10.2 satisfied")]).wrote(1);
}

#[test]
fn what_an_edit_would_move_is_said_before() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0-10.0.10.9]");
    w.services(10);
    let edit = lb_ipam::Edit::UpsertPool(lb_ipam::Pool::new("a", &["10.0.10.0-10.0.10.8"]));
    let plan = w.allocator.plan([edit], w.now);
    let moves: Vec<String> = plan.moves.iter().map(ToString::to_string).collect();
    assert_eq!(
        moves,
        ["d/s9: 10.0.10.9 -> nothing; no IPv4 address: pool `a` is full; add a block or remove a service"]
    );
    assert_eq!(plan.pools[0].counts.total, 9);
    assert_eq!(w.run().got("d/s9"), "10.0.10.9 satisfied");
    let nothing = lb_ipam::Edit::UpsertPool(lb_ipam::Pool::new("a", &["10.0.10.5-10.0.10.9", "10.0.10.0-10.0.10.4"]));
    assert_eq!(w.allocator.plan([nothing], w.now).moves, []);
}

/// The first of them would take either, and takes the one that comes first.
#[test]
fn whoever_is_left_gets_what_the_first_did_not_take() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0] sel=color:red prio=1").pool("b [10.0.20.0] sel=color:red");
    for service in ["d/x", "d/y", "d/first", "d/second", "d/third"] {
        w.service(&format!("{service} lbl=color:red"));
    }
    w.shows(&[("d/first", "- out_of_ips"), ("d/second", "- out_of_ips")]);
    w.tell_gone("d/x").tell_gone("d/y").run().wrote(2);
    w.shows(&[("d/first", "10.0.10.0 satisfied"), ("d/second", "10.0.20.0 satisfied"), ("d/third", "- out_of_ips")]);
}
