//! Selectors, class, type: A32 to A42.

use lb_ipam::{PoolProblem, SelectorProblem};

use crate::world::{World, classes};

#[test]
fn a32_a_selector_chooses_by_label() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:red").service("d/red lbl=color:red").service("d/blue lbl=color:blue");
    w.shows(&[("d/red", "10.0.10.0 satisfied"), ("d/blue", "- no_pool")]);
}

#[test]
fn a33_the_namespace_of_a_service_cannot_be_forged() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=io.kubernetes.service.namespace:tenant-one");
    w.service("tenant-one/x").service("tenant-two/y lbl=io.kubernetes.service.namespace:tenant-one");
    w.shows(&[("tenant-one/x", "10.0.10.0 satisfied"), ("tenant-two/y", "- no_pool")]);
}

#[test]
fn a34_a_selector_chooses_by_name() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=io.kubernetes.service.name:In:x").service("any/x").service("any/z");
    w.shows(&[("any/x", "10.0.10.0 satisfied"), ("any/z", "- no_pool")]);
}

/// Expression, and whether it selects a service with `color: red` and one without labels.
#[test]
fn operators_of_expressions() {
    for (selector, red, plain) in [
        ("color:In:red,blue", true, false),
        ("color:In:blue", false, false),
        ("color:NotIn:red", false, true),
        ("color:NotIn:blue", true, true),
        ("color:Exists:", true, false),
        ("color:DoesNotExist:", false, true),
    ] {
        let mut w = World::new("v4");
        w.pool(&format!("a [10.0.10.0/24] sel={selector}")).service("d/red lbl=color:red").service("d/plain");
        let selected = |service: &str| !w.addresses(service).is_empty();
        assert_eq!((selected("d/red"), selected("d/plain")), (red, plain), "{selector}");
    }
}

/// Any of several selectors, everything in it.
#[test]
fn a_pool_is_for_services_that_any_of_its_selectors_selects() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:red+tier:In:web,db sel=color:blue+tier:NotIn:web sel=team:Exists:");
    for (labels, selected) in [
        ("color:red,tier:web", true),
        ("color:red,tier:db", true),
        ("color:red,tier:other", false),
        ("color:red", false),
        ("color:blue", true),
        ("color:blue,tier:db", true),
        ("color:blue,tier:web", false),
        ("color:blue,tier:web,team:a", true),
        ("color:green,tier:db", false),
    ] {
        w.service(&format!("d/a lbl={labels}"));
        assert_eq!(!w.addresses("d/a").is_empty(), selected, "{labels}");
    }
}

#[test]
fn who_changes_from_one_selector_to_another_stays() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:red sel=color:blue").service("d/a lbl=color:red");
    w.service("d/a lbl=color:blue").wrote(0).shows(&[("d/a", "10.0.10.0 satisfied")]);
    w.pool("a [10.0.10.0/24] sel=color:blue").wrote(0).pool("a [10.0.10.0/24] sel=color:red").wrote(1);
    w.shows(&[("d/a", "- no_pool")]);
}

#[test]
fn one_wrong_selector_of_several_puts_the_pool_out_of_service() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:red").service("d/a lbl=color:red");
    w.pool("a [10.0.10.0/24] sel=color:blue sel=color:In:").wrote(0).shows(&[("d/a", "10.0.10.0 satisfied")]);
    assert_eq!(w.status("a").problem, Some(PoolProblem::Selector(SelectorProblem::NoValues { key: "color".into() })));
}

#[test]
fn a35_a_service_that_is_not_selected_any_more_loses_its_address() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:blue").service("d/a lbl=color:blue").shows(&[("d/a", "10.0.10.0 satisfied")]);
    w.service("d/a lbl=color:green").shows(&[("d/a", "- no_pool")]).wrote(1);
    assert_eq!(w.status("a").counts.used, 0);
}

#[test]
fn a36_a_pool_that_selects_others_takes_its_address_back() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:red").service("d/a lbl=color:red");
    w.pool("a [10.0.10.0/24] sel=color:green").shows(&[("d/a", "- no_pool")]).wrote(1);
}

#[test]
fn a37_a_service_moves_to_the_other_pool_with_one_write() {
    let mut w = World::new("v4");
    w.tell_pool("a [10.0.10.0/24] sel=color:red").tell_pool("b [10.0.20.0/24]").run();
    w.service("d/a lbl=color:red").shows(&[("d/a", "10.0.10.0 satisfied")]);
    w.pool("a [10.0.10.0/24] sel=color:green").shows(&[("d/a", "10.0.20.0 satisfied")]).wrote(1);
}

#[test]
fn a38_services_of_other_classes_are_left_alone() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a class=net.example/other").shows(&[("d/a", "untouched")]).wrote(0);
    w.service("d/b class=net.example/other st=192.0.2.1").shows(&[("d/b", "192.0.2.1 without condition")]).wrote(0);
}

#[test]
fn a39_services_of_a_class_that_is_ours_are_served() {
    let mut w = World::new("v4");
    w.rules(|rules| rules.classes = classes(true, &["io.cilium/l2-announcer"]));
    w.pool("a [10.0.10.0/24]").service("d/a class=io.cilium/l2-announcer").shows(&[("d/a", "10.0.10.0 satisfied")]);
}

#[test]
fn a40_services_without_class_may_be_somebody_elses() {
    let mut w = World::new("v4");
    w.rules(|rules| rules.classes = classes(false, &[]));
    w.pool("a [10.0.10.0/24]").service("d/a").shows(&[("d/a", "untouched")]).wrote(0);
}

#[test]
fn a41_a_service_becomes_a_load_balancer_and_stops_being_one() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a type=ClusterIP").shows(&[("d/a", "untouched")]).wrote(0);
    w.service("d/a type=LoadBalancer").shows(&[("d/a", "10.0.10.0 satisfied")]);
    w.service("d/a type=NodePort").shows(&[("d/a", "untouched")]).wrote(1);
    assert_eq!(w.status("a").counts.used, 0);
}

/// Another controller writes its own addresses, with or without a condition of the same type, in one process or the
/// next.
#[test]
fn a_service_that_became_somebody_elses_is_cleared_once_and_left_alone() {
    for gone in ["class=io.cilium/l2-announcer", "type=NodePort"] {
        for restarts in [false, true] {
            let mut w = World::new("v4");
            w.pool("a [10.0.10.0/24]").service("d/a").tell_service(&format!("d/a {gone}"));
            if restarts { w.restart() } else { w.run() }.wrote(1).shows(&[("d/a", "untouched")]);
            let why = match gone {
                "type=NodePort" => "the service is not of type LoadBalancer",
                _ => "load-balancer class io.cilium/l2-announcer is not served here",
            };
            assert_eq!(w.released[0].to_string(), format!("service d/a no longer has 10.0.10.0: {why}"));
            for theirs in ["10.0.10.0", "192.0.2.7", "192.0.2.8"] {
                w.service(&format!("d/a {gone} st={theirs}")).wrote(0);
                assert_eq!(w.got("d/a"), format!("{theirs} without condition"), "{gone}");
            }
            w.tell_condition("d/a").run().wrote(0).service("d/other").gone("d/other");
            assert_eq!(w.got("d/a"), "192.0.2.8 satisfied", "{gone}");
            w.service("d/a").shows(&[("d/a", "10.0.10.0 satisfied")]);
        }
    }
}

/// The other controller was faster than the clearing write.
#[test]
fn what_others_wrote_meanwhile_is_not_cleared() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a").tell_service("d/a class=other st=10.0.10.0,192.0.2.7").run();
    w.wrote(1).shows(&[("d/a", "192.0.2.7 without condition")]);
    w.service("d/b").tell_service("d/b type=ClusterIP st=192.0.2.8").run().wrote(0);
}

/// The process ended after it wrote the ledger and before it wrote the status.
#[test]
fn a_status_that_a_crash_left_on_a_service_of_another_type_is_cleared() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24]").service("d/a");
    let mut crashed = w.clone();
    w.service("d/a type=NodePort");
    crashed.tell_service("d/a type=NodePort").take_ledger(&w).restart().wrote(1).shows(&[("d/a", "untouched")]);
    assert_eq!(crashed.ledger_writes, 0);
}

#[test]
fn a42_a_selector_that_cannot_be_understood_concerns_its_pool_only() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:Near:red prio=1").pool("b [10.0.20.0/24]");
    w.service("d/a").shows(&[("d/a", "10.0.20.0 satisfied")]);
    let problem = SelectorProblem::UnknownOperator { key: "color".into(), operator: "Near".into() };
    assert_eq!(w.status("a").problem, Some(PoolProblem::Selector(problem)));
    assert_eq!(w.status("b").problem, None);
}

#[test]
fn a_selector_that_breaks_takes_nothing_from_anybody() {
    let mut w = World::new("v4");
    w.pool("a [10.0.10.0/24] sel=color:red").service("d/a lbl=color:red");
    w.pool("a [10.0.10.0/24] sel=color:Near:red").wrote(0).service("d/b lbl=color:red");
    w.shows(&[("d/a", "10.0.10.0 satisfied"), ("d/b", "- no_pool")]);
}
