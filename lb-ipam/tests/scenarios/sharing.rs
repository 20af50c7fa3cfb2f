//! Sharing: A63 to A80.

use lb_ipam::Allocator;

use crate::world::World;

const POOL: &str = "a [10.0.10.0/24]";

/// Two services in turn, and whether they share.
#[test]
fn a63_to_a75_who_shares() {
    let rows = [
        ("A63", "d/a key=k", "d/b key=k ports=tcp/81", true),
        ("A64 from the start", "d/a key=k", "d/b key=k2 ports=tcp/81", false),
        ("A65 from the start", "d/a key=k", "d/b key=k", false),
        ("A68", "ns1/a key=k", "ns2/b key=k ports=tcp/81", false),
        ("A69", "ns1/a key=k xns=ns2", "ns2/b key=k ports=tcp/81", false),
        ("A70", "ns1/a key=k xns=ns2", "ns2/b key=k xns=ns1 ports=tcp/81", true),
        ("A70 all", "ns1/a key=k xns=*", "ns2/b key=k xns=* ports=tcp/81", true),
        ("A71", "ns1/a key=k xns=ns3,ns2", "ns2/b key=k xns=ns1 ports=tcp/81", true),
        ("A72", "d/a key=k ports=tcp/53", "d/b key=k ports=udp/53", true),
        ("A73", "d/a key=k", "d/b key=k etp=Local ports=tcp/81", false),
        ("A74", "d/a key=k etp=Local podsel=app:x", "d/b key=k etp=Local podsel=app:x ports=tcp/81", true),
        ("A75", "d/a key=k etp=Local podsel=app:x", "d/b key=k etp=Local podsel=app:y ports=tcp/81", false),
        ("A75 empty", "d/a key=k etp=Local", "d/b key=k etp=Local ports=tcp/81", false),
        ("no key", "d/a", "d/b ports=tcp/81", false),
        ("empty key", "d/a key=", "d/b key= ports=tcp/81", false),
    ];
    for (id, first, second, share) in rows {
        let mut w = World::new("v4");
        w.pool(POOL).service(first).service(second);
        let name = |text: &str| text.split(' ').next().unwrap().to_owned();
        assert_eq!(w.addresses(&name(first)) == w.addresses(&name(second)), share, "{id}");
        assert_eq!(w.status("a").counts.used, if share { 1 } else { 2 }, "{id}");
    }
}

#[test]
fn a64_a65_a_service_that_may_not_share_any_more_leaves() {
    for (id, changed) in [("A64", "d/b key=k2 ports=tcp/81"), ("A65", "d/b key=k ports=tcp/80")] {
        let mut w = World::new("v4");
        w.pool(POOL).service("d/a key=k").service("d/b key=k ports=tcp/81").service(changed);
        assert_eq!((w.got("d/a"), w.got("d/b")), ("10.0.10.0 satisfied".into(), "10.0.10.1 satisfied".into()), "{id}");
        w.wrote(1);
    }
}

/// Whichever of the two changes, and whether an agent sees it or starts afterwards.
#[test]
fn the_service_that_joined_leaves_and_the_owner_is_not_written_to() {
    let rows = [
        ("another key", "d/a key=k2", "d/b key=k ports=tcp/81"),
        ("no key", "d/a", "d/b key=k ports=tcp/81"),
        ("the owner takes the port", "d/a key=k ports=tcp/81", "d/b key=k ports=tcp/81"),
        ("the one that joined takes the port", "d/a key=k", "d/b key=k ports=tcp/80"),
        ("a policy", "d/a key=k etp=Local podsel=app:x", "d/b key=k ports=tcp/81"),
    ];
    for (what, owner, joined) in rows {
        // The one that joined is the older one, and comes first by name too.
        for (older, name) in [("t=1", "b"), ("t=900", "0")] {
            let joined = joined.replace("d/b", &format!("d/{name}"));
            for restarts in [false, true] {
                let mut w = World::new("v4");
                w.pool(POOL).service("d/a key=k").service(&format!("d/{name} key=k ports=tcp/81 {older}"));
                w.shows(&[(&format!("d/{name}"), "10.0.10.0 satisfied")]);
                w.tell_service(owner).tell_service(&format!("{joined} {older}"));
                if restarts { w.restart() } else { w.run() }.wrote(1);
                w.shows(&[("d/a", "10.0.10.0 satisfied"), (&format!("d/{name}"), "10.0.10.1 satisfied")]);
                assert_eq!(w.ledger_writes, 2, "{what}");
                w.run().wrote(0);
            }
        }
    }
}

#[test]
fn a_permission_that_is_taken_back_moves_who_was_let_in() {
    for restarts in [false, true] {
        let mut w = World::new("v4");
        w.pool(POOL).service("ns1/a key=k xns=ns2 req=10.0.10.5").service("ns2/b key=k xns=ns1 ports=tcp/81");
        w.service("ns2/c key=k xns=ns1 ports=tcp/82 req=10.0.10.5");
        w.shows(&[("ns2/b", "10.0.10.5 satisfied"), ("ns2/c", "10.0.10.5 satisfied")]);
        w.tell_service("ns1/a key=k req=10.0.10.5");
        if restarts { w.restart() } else { w.run() }.wrote(2);
        w.shows(&[("ns1/a", "10.0.10.5 satisfied"), ("ns2/b", "10.0.10.0 satisfied")]);
        w.shows(&[("ns2/c", "- already_allocated_incompatible_service")]);
        let message = w.message("ns2/c");
        assert!(message.contains("held by service ns1/a") && message.contains("`ns2` and `ns1`"), "{message}");
        let told: Vec<String> = w.released.iter().map(ToString::to_string).collect();
        assert_eq!(
            told[0],
            "service ns2/b no longer has 10.0.10.5: it cannot be shared with service ns1/a, which held it first: \
             namespaces `ns2` and `ns1` do not both allow each other; set lb/sharing-namespaces of each service to the \
             namespace of the other"
        );
        // Once the owner is gone, the next one in order of arrival owns it.
        w.tell_service("ns2/b key=k xns=ns1 ports=tcp/81 req=10.0.10.5").gone("ns1/a");
        w.shows(&[("ns2/b", "10.0.10.5 satisfied"), ("ns2/c", "10.0.10.5 satisfied")]);
    }
}

/// The second leaves because of the first, so the third, which only the second does not get along with, stays.
#[test]
fn only_those_that_stay_make_others_leave() {
    for restarts in [false, true] {
        let mut w = World::new("v4");
        w.pool(POOL).service("d/a key=k").service("d/z key=k ports=tcp/81").service("d/b key=k ports=tcp/82");
        w.tell_service("d/z key=k ports=tcp/80,tcp/82");
        if restarts { w.restart() } else { w.run() }.wrote(1);
        w.shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "10.0.10.0 satisfied"), ("d/z", "10.0.10.1 satisfied")]);
    }
}

#[test]
fn a66_a_shared_address_is_free_when_the_last_one_goes() {
    let mut w = World::new("v4");
    w.pool(POOL).service("d/a key=k").service("d/b key=k ports=tcp/81").gone("d/a").wrote(0);
    w.shows(&[("d/b", "10.0.10.0 satisfied")]);
    w.gone("d/b");
    assert_eq!(w.status("a").counts.used, 0);
}

#[test]
fn a67_a_service_that_comes_back_shares_again() {
    let mut w = World::new("v4");
    w.pool(POOL).service("d/a key=k").service("d/b key=k ports=tcp/81").gone("d/b").service("d/b key=k ports=tcp/81");
    w.shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "10.0.10.0 satisfied")]);
}

#[test]
fn a72_whether_protocols_differ_is_a_rule() {
    let mut w = World::new("v4");
    w.rules(|rules| rules.protocols_differ = false);
    w.pool(POOL).service("d/a key=k ports=tcp/53").service("d/b key=k ports=udp/53");
    w.shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "10.0.10.1 satisfied")]);
}

#[test]
fn a76_both_ask_for_the_same_address() {
    let mut w = World::new("v4");
    w.pool(POOL).service("d/a req=10.0.10.9 key=k").service("d/b req=10.0.10.9 key=k ports=tcp/81");
    w.shows(&[("d/a", "10.0.10.9 satisfied"), ("d/b", "10.0.10.9 satisfied")]);
}

#[test]
fn a77_the_holder_does_not_share() {
    let mut w = World::new("v4");
    w.pool(POOL).service("d/a req=10.0.10.9").service("d/b req=10.0.10.9 key=k ports=tcp/81");
    w.shows(&[("d/b", "- already_allocated_incompatible_service")]);
    let message = w.message("d/b");
    assert!(message.contains("held by service d/a") && message.contains("service d/a has no sharing key"), "{message}");
}

#[test]
fn a78_a_group_shares_all_its_addresses() {
    let mut w = World::new("v4");
    w.pool(POOL).service("d/a req=10.0.10.105,10.0.10.227 key=k").service("d/b key=k ports=tcp/81");
    w.shows(&[("d/b", "10.0.10.105 10.0.10.227 satisfied")]);
}

#[test]
fn a79_a_reserved_address_is_not_shared_either() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.16/30] afl=No").service("d/a req=10.0.10.16 key=k").shows(&[("d/a", "- reserved_address")]);
    assert!(w.message("d/a").contains("first or last address of 10.0.10.16/30"), "{}", w.message("d/a"));
}

#[test]
fn a80_a_key_opens_no_pool() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:red").pool("b [10.0.20.0/24]");
    w.service("d/a lbl=color:red key=k").service("d/b lbl=color:blue key=k ports=tcp/81");
    w.shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "10.0.20.0 satisfied")]);
}

#[test]
fn a_group_of_both_families_shares_both() {
    let mut w = World::new("v4+v6");
    w.pool("a [10.0.10.0/24, ff::/48]").service("d/a key=k fam=Require").service("d/b key=k fam=Require ports=tcp/81");
    w.shows(&[("d/b", "10.0.10.0 ff:: satisfied")]);
    w.service("d/c key=k fam=Single:v6 ports=tcp/82").shows(&[("d/c", "ff:: satisfied")]);
}

#[test]
fn one_that_waits_shares_as_soon_as_somebody_lets_it() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0] ").service("d/a key=k2").service("d/b key=k ports=tcp/81").shows(&[("d/b", "- out_of_ips")]);
    w.service("d/a key=k").shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "10.0.10.0 satisfied")]);
}

#[test]
fn so_many_share_an_address_and_no_more() {
    let most = Allocator::<lb_ipam::MemoryLedger>::MAX_SHARERS;
    let mut w = World::new("v4");
    w.tell_pool(POOL);
    for number in 0..=most {
        w.tell_service(&format!("d/s{number:04} key=k ports=tcp/{} t=1", number + 1));
    }
    w.run();
    assert_eq!(w.got(&format!("d/s{:04}", most - 1)), "10.0.10.0 satisfied");
    assert_eq!(w.got(&format!("d/s{most:04}")), "10.0.10.1 satisfied");
}
