//! What is said of an address, and of pools that cannot be read.

use lb_ipam::{AddressState, Block, BlockProblem, KeptFor, PoolName, PoolProblem, PoolWarning, Reservation};

use crate::world::{World, name};

fn explained(w: &World, address: &str) -> String {
    w.allocator.explain(address.parse().expect("an address")).to_string()
}

fn warnings(w: &World, pool: &str) -> Vec<String> {
    w.status(pool).warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn what_stays_because_a_pool_cannot_be_read_is_told() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a").service("d/b").service("d/c lbl=app:x");
    w.tell_pool("rev [10.0.10.0-10.0.1]").pool("a [10.0.10.2/31]").wrote(0);
    let report = w.allocator.explain("10.0.10.1".parse().unwrap());
    assert_eq!(report.state, AddressState::Held(vec![name("d/b")]));
    assert_eq!(report.kept_for, Some(KeptFor::Pool("rev".into())));
    let kept = "10.0.10.1 held by d/b; in no pool, and kept because pool `rev`, which may have it, cannot be read; \
                correct the pool";
    assert_eq!(report.to_string(), kept);
    assert_eq!(explained(&w, "10.0.10.2"), "10.0.10.2 of pool `a`: held by d/c");
    assert_eq!(w.status("rev").warnings, [PoolWarning::KeepsOthers { addresses: 2 }]);
    assert_eq!(w.status("a").warnings, []);
    w.gone("d/a");
    assert_eq!(w.status("rev").warnings, [PoolWarning::KeepsOthers { addresses: 1 }]);
    let last = "10.0.10.0 is in no pool; service d/a had it last, and gets it back if a pool has it again";
    assert_eq!(explained(&w, "10.0.10.0"), last);
    assert_eq!(explained(&w, "10.0.9.9"), "10.0.9.9 is in no pool");
    // A plan shows why nobody moves.
    let plan = w.allocator.plan([lb_ipam::Edit::RemovePool("a".into())], w.now);
    assert_eq!(plan.moves, []);
    assert_eq!(plan.pools[0].warnings, [PoolWarning::KeepsOthers { addresses: 2 }]);
    w.pool("rev [10.0.11.0/24]").shows(&[("d/b", "10.0.10.3 satisfied")]);
    assert_eq!(w.status("rev").warnings, []);
}

#[test]
fn what_stays_because_a_service_cannot_be_read_is_told() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a").garbled("d/a").restart().run();
    let kept = "10.0.10.0 of pool `a`: held by d/a; kept because service d/a cannot be read; correct the service";
    assert_eq!(explained(&w, "10.0.10.0"), kept);
    // No pool keeps it.
    w.tell_no_pool("a").pool("rev [oops]");
    assert_eq!(explained(&w, "10.0.10.0"), kept.replace(" of pool `a`:", ""));
    assert_eq!(w.status("rev").warnings, []);
}

fn reserve(w: &mut World, reserved: &[(&str, &str)]) {
    let reservation = |(range, why): &(&str, &str)| Reservation {
        range: Block::parse(range).range().expect("a range"),
        why: (*why).to_owned(),
    };
    w.rules(|rules| rules.reserved = reserved.iter().map(reservation).collect());
}

/// Addresses of nodes, of the service CIDR, and of another service.
#[test]
fn a_pool_names_the_addresses_that_belong_to_somebody_else() {
    let mut w = World::new("v4+v6");
    reserve(
        &mut w,
        &[("10.0.10.4", "an address of this node"), ("10.0.0.0/21", "part of the service CIDR 10.0.0.0/21")],
    );
    w.pool("far [10.0.20.0/24]").pool("a [10.0.10.4-10.0.10.6, 10.0.7.254-10.0.8.0]");
    assert_eq!(warnings(&w, "far"), [""; 0]);
    assert_eq!(
        warnings(&w, "a"),
        ["has addresses that are never assigned: 10.0.10.4 (an address of this node), 10.0.7.254-10.0.7.255 (part of \
          the service CIDR 10.0.0.0/21); take them out of its blocks"]
    );
    w.allocator.reserve("10.0.10.5".parse().unwrap(), "an address of service d/old").unwrap();
    w.allocator.claim("10.0.10.6".parse().unwrap(), "02:00:00:00:00:01").unwrap();
    w.run();
    let warned = &warnings(&w, "a")[0];
    assert!(warned.contains(", 10.0.10.5 (an address of service d/old) and 1 more; take"), "{warned}");
    // Whoever waits is told what is left of the pool, and hears of it when that changes.
    w.service("d/a only=a").service("d/b only=a").shows(&[("d/a", "10.0.8.0 satisfied"), ("d/b", "- out_of_ips")]);
    let message = "no IPv4 address: pool `a` is full: 1 used of 6, 5 reserved: 10.0.10.4 (an address of this node), \
                   10.0.7.254-10.0.7.255 (part of the service CIDR 10.0.0.0/21), 10.0.10.5 (an address of service d/old) \
                   and 1 more; add a block or remove a service";
    assert_eq!(w.message("d/b"), message);
    w.allocator.clear("10.0.10.6".parse().unwrap()).unwrap();
    w.run().shows(&[("d/b", "10.0.10.6 satisfied")]).service("d/c only=a").shows(&[("d/c", "- out_of_ips")]);
    assert!(w.message("d/c").contains("is full: 2 used of 6, 4 reserved: "), "{}", w.message("d/c"));
    reserve(&mut w, &[]);
    w.run().shows(&[("d/c", "10.0.7.254 satisfied")]);
}

#[test]
fn a_pool_in_reserved_space_says_that_it_has_nothing_to_give() {
    let mut w = World::new("v4");
    reserve(&mut w, &[("10.0.0.0/20", "part of the service CIDR 10.0.0.0/20")]);
    w.pool("a [10.0.10.0/24]").service("d/a").shows(&[("d/a", "- out_of_ips")]);
    let said = "has no address to give: all 256 are reserved: 10.0.10.0-10.0.10.255 (part of the service CIDR \
                10.0.0.0/20); choose another block";
    assert_eq!(w.message("d/a"), format!("no IPv4 address: pool `a` {said}"));
    assert_eq!(warnings(&w, "a"), [said]);
    let reserved: Vec<String> =
        w.allocator.reserved(&PoolName::new("a")).iter().map(|(range, why)| format!("{range} {why}")).collect();
    assert_eq!(reserved, ["10.0.10.0-10.0.10.255 part of the service CIDR 10.0.0.0/20"]);
    let several = "no IPv4 address: 2 pools have no address to give: all 257 are reserved (`a` and `b`); choose another \
                   block";
    w.pool("b [10.0.11.7]").service("d/b");
    assert_eq!(w.message("d/b"), several);
    // One address more, and a service has it.
    w.pool("b [10.0.11.7, 10.0.30.1]").shows(&[("d/a", "10.0.30.1 satisfied"), ("d/b", "- out_of_ips")]);
    assert!(w.message("d/b").contains("2 pools are full: 1 used of 258, 257 reserved"), "{}", w.message("d/b"));
}

/// An address of the pool may be claimed by something else, one by one.
#[test]
fn a_pool_whose_last_address_is_set_aside_has_nothing_to_give() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.4]");
    w.allocator.reserve("10.0.10.4".parse().unwrap(), "an address of service d/old").unwrap();
    w.run();
    let said = "has no address to give: the only one is reserved: 10.0.10.4 (an address of service d/old); choose another block";
    assert_eq!(warnings(&w, "a"), [said]);
}

#[test]
fn a_pool_that_cannot_be_read_is_named_by_who_waits() {
    let mut w = World::new("v4");
    w.pool("rev [10.0.10.0-10.0.1]").service("d/a").shows(&[("d/a", "- no_pool")]);
    let message = w.message("d/a");
    let named = "no IPv4 address: pool `rev` is out of service until it is corrected: block `10.0.10.0-10.0.1` ";
    assert!(message.starts_with(named), "{message}");
}

#[test]
fn what_a_pool_keeps_back_itself_counts_as_reserved() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/30] afl=No avoid=10.0.10.2").service("d/a").service("d/b");
    let message = "no IPv4 address: pool `a` is full: 1 used of 4, 3 reserved: the first and last addresses of its \
                   blocks, addresses that it avoids; add a block or remove a service";
    assert_eq!(w.message("d/b"), message);
    assert_eq!(warnings(&w, "a"), [""; 0], "that is as its owner wrote it");
    w.pool("b [10.0.20.0/30] afl=No").service("d/c");
    let message = "no IPv4 address: 2 pools are full: 3 used of 8, 5 reserved (`a` and `b`); add a block or remove a \
                   service";
    w.service("d/d").shows(&[("d/d", "- out_of_ips")]);
    assert_eq!(w.message("d/d"), message);
}

/// However many other pools are out of service.
#[test]
fn the_pool_that_would_give_if_it_were_in_service_is_named() {
    let mut w = World::new("v4");
    w.tell_pool("old [10.0.10.0/24] t=1 sel=color:red");
    for n in 0..100 {
        w.tell_pool(&format!("a{n:02} [10.0.10.{n}] t={n}2 sel=color:green"));
    }
    w.pool("mine [10.0.10.0/25] t=500 sel=color:blue").service("d/a lbl=color:blue");
    let message = w.message("d/a");
    let first = "no IPv4 address: pool `mine` is out of service, because it overlaps pool `old` (remove the overlap); ";
    assert!(message.starts_with(first), "{message}");
    let counts = w.status("mine").counts;
    assert_eq!((counts.total, counts.free, counts.available), (128, 128, 0));
    assert_eq!(w.pool("old [10.0.10.0/24] t=1 sel=color:red off").status("old").counts.available, 0);
    assert_eq!(w.pool("old [10.0.10.0/24] t=1 sel=color:red").status("old").counts.available, 256);
}

#[test]
fn what_nobody_can_get_is_not_free() {
    let mut w = World::new("v4");
    w.pool("off [10.0.1.0/24] off").pool("wrong [10.0.2.0/24, oops]").pool("old [10.0.3.0/24] t=1");
    w.pool("new [10.0.3.0/25, 10.0.4.0/24] t=2").pool("why [10.0.5.0/24] refused=spec.priority_is_no_number");
    for (address, expected) in [
        (
            "10.0.1.1",
            "of pool `off`: not assigned, because pool `off` is disabled (enable it, or ask for an address of another pool)",
        ),
        (
            "10.0.2.1",
            "of pool `wrong`: not assigned, because pool `wrong` is out of service until it is corrected: block `oops` is not a block; write a network (10.0.0.0/24), a range (10.0.0.1-10.0.0.9) or an address",
        ),
        ("10.0.3.1", "of pool `old`: free"),
        (
            "10.0.4.1",
            "of pool `new`: not assigned, because pool `new` is out of service, because it overlaps pool `old` (remove the overlap)",
        ),
        (
            "10.0.5.1",
            "of pool `why`: not assigned, because pool `why` is out of service until it is corrected: spec.priority is no number",
        ),
    ] {
        assert_eq!(explained(&w, address), format!("{address} {expected}"));
        let is_free = w.allocator.explain(address.parse().unwrap()).state == AddressState::Free;
        assert_eq!(is_free, address == "10.0.3.1");
    }
}

/// Edit of the pool after an address was released, and the report on the address.
#[test]
fn what_is_reserved_does_not_rest() {
    for (edit, expected) in [
        ("", "quarantined after d/a released it; assigned if the pool is otherwise full"),
        ("avoid=10.0.10.0", "pool `a` avoids it; take it from the pool's list of avoided addresses"),
        (
            "odd",
            "ends in .0 or .255, which pool `a` does not assign; set avoidZeroAnd255 (MetalLB: avoidBuggyIPs) to false",
        ),
        (
            "afl=No",
            "first or last address of 10.0.10.0/30 in pool `a`, which are not assigned; set allowFirstLastIPs to Yes",
        ),
    ] {
        let mut w = World::new("v4");
        w.pool("a [10.0.10.0/30]").service("d/a").gone("d/a").pool(&format!("a [10.0.10.0/30] {edit}"));
        assert_eq!(explained(&w, "10.0.10.0"), format!("10.0.10.0 of pool `a`: {expected}"));
        let counts = w.status("a").counts;
        assert_eq!((counts.quarantined == 0, counts.reserved > 0), (!edit.is_empty(), !edit.is_empty()), "{edit}");
    }
}

#[test]
fn an_address_that_ends_in_zero_is_refused_as_what_it_is() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] odd").service("d/a req=10.0.10.255").shows(&[("d/a", "- reserved_address")]);
    assert!(w.message("d/a").starts_with("10.0.10.255: ends in .0 or .255, which pool `a`"), "{}", w.message("d/a"));
}

#[test]
fn every_wrong_block_is_named() {
    let mut w = World::new("v4");
    w.pool("a [x, 10.0.0.9-10.0.0.1, y]");
    let unreadable = |text: &str| (Block::parse(text), BlockProblem::Unreadable);
    let reversed = (Block::parse("10.0.0.9-10.0.0.1"), BlockProblem::Reversed);
    let wrong = vec![unreadable("x"), reversed, unreadable("y")];
    assert_eq!(w.status("a").problem, Some(PoolProblem::Blocks { wrong, more: 0 }));
    let why = "is not a block; write a network (10.0.0.0/24), a range (10.0.0.1-10.0.0.9) or an address";
    w.pool("a [x, 10.0.0.0/24, y, z, v, w]");
    let named = format!("block `x` {why}; block `y` {why}; block `z` {why}; and 2 more");
    assert_eq!(w.status("a").problem.unwrap().to_string(), named);
    // That there is nothing to give is because of the blocks.
    w.pool("a [x]");
    assert_eq!(warnings(&w, "a"), [""; 0]);
}
