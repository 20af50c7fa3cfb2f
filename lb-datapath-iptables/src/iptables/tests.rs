//! Plans through lowering, a fake iptables, and back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, Protocol, Scope},
    affinity::Affinity,
    datapath::{Datapath as _, ErrorKind},
    drift::{Expected, Inspection},
    id::{BackendId, FrontendId, SetId},
    name::NodeName,
    node::NodeFacts,
    plan::{Labels, Plan, diff},
    sources::{RangePolicy, SourceRanges},
    state::{Backend, BackendSet, Frontend, Guard, GuardedTraffic, Lookup, State, Target},
};
use proptest::prelude::*;

use crate::iptables::{
    IptablesConfig, IptablesDatapath,
    fake::{FakeHost, FakeTools},
    restore_input,
    rules::names::Chain,
};

#[test]
fn a_small_service_becomes_these_rules() {
    let addr = FrontendAddr::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
    let mut state = State::default();
    state.node.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let affinity = Some(Affinity { timeout: Duration::from_secs(90), prefix_v4: 24, prefix_v6: 128 });
    point(&mut state, addr, 7, &[1, 2, 2], affinity);
    let text = restore_input(&IptablesConfig::default(), Family::V4, &state, &labels(&state));
    let (svc, one, two) = (Chain::service(addr), endpoint(addr, 1), endpoint(addr, 2));
    let each = |write: &dyn Fn(&str, &str, u8) -> String| -> String {
        let ends = [("TO", "-d"), ("FROM", "-s")];
        ends.iter().flat_map(|(end, option)| (0..16).map(move |bits| write(end, option, bits))).collect()
    };
    let invalid = each(&|end, _, bits| format!(":LB-INVALID-{end}-{bits:x} - [0:0]\n"))
        + "-A LB-INVALID-TO-1 -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j DROP
-A LB-INVALID-FROM-1 -s 10.0.0.1/32 -p tcp -m tcp --sport 8080 -j DROP
-A LB-INVALID-FROM-2 -s 10.0.0.2/32 -p tcp -m tcp --sport 8080 -j DROP
:LB-INVALID - [0:0]
:LB-INVALID-FORWARD - [0:0]
:LB-INVALID-TO - [0:0]
:LB-INVALID-FROM - [0:0]
-A LB-INVALID -p tcp -j LB-INVALID-TO
-A LB-INVALID -p tcp -j LB-INVALID-FROM
-A LB-INVALID-FORWARD -p tcp -j LB-INVALID-TO
-A LB-INVALID-FORWARD -d 10.244.0.0/16 -p tcp -j LB-INVALID-FROM
" + &each(&|end, option, bits| {
        format!("-A LB-INVALID-{end} {option} 0.0.0.{bits}/0.0.0.15 -j LB-INVALID-{end}-{bits:x}\n")
    });
    let expected = format!(
        "*filter
:LB-FILTER - [0:0]
-A LB-FILTER -p tcp -m mark --mark 0x6c620001 -j REJECT --reject-with tcp-reset
-A LB-FILTER -m mark --mark 0x6c620001 -j REJECT --reject-with icmp-port-unreachable
-A LB-FILTER -p tcp -m mark --mark 0x6c620002 -j DROP
-A LB-FILTER ! -o lo -m mark --mark 0x6c620002 -j DROP
{invalid}\
-I INPUT 1 -m conntrack --ctstate NEW -j LB-FILTER
-I FORWARD 1 -m conntrack --ctstate NEW -j LB-FILTER
-I OUTPUT 1 -m conntrack --ctstate NEW -j LB-FILTER
-I INPUT 1 -m conntrack --ctstate INVALID -j LB-INVALID
-I FORWARD 1 -m conntrack --ctstate INVALID -j LB-INVALID-FORWARD
-I OUTPUT 1 -m conntrack --ctstate INVALID -j LB-INVALID
COMMIT
*nat
:LB-SERVICES - [0:0]
:LB-MARK-MASQ - [0:0]
:LB-MARK-SOURCE - [0:0]
:LB-MARK-REJECT - [0:0]
:LB-MARK-DROP - [0:0]
:LB-NODE - [0:0]
:LB-POSTROUTING - [0:0]
:{svc} - [0:0]
:{first} - [0:0]
:{second} - [0:0]
-A LB-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment \"f7 90/24/128 default/web\" -j {svc}
-A LB-MARK-MASQ -j MARK --or-mark 0x4000
-A LB-MARK-REJECT -p udp -m addrtype --src-type LOCAL -j REDIRECT --to-ports 0
-A LB-MARK-REJECT -j MARK --set-mark 0x6c620001
-A LB-MARK-DROP -j MARK --set-mark 0x6c620002
-A LB-MARK-SOURCE -s 10.244.0.0/16 -m comment --comment \"0 10.244.0.0/16\" -j RETURN
-A LB-MARK-SOURCE -j LB-MARK-MASQ
-A LB-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A LB-POSTROUTING -j MARK --xor-mark 0x4000
-A LB-POSTROUTING -j MASQUERADE --random-fully
-A {svc} -m comment --comment \"s1 1,2*2\" -j LB-MARK-SOURCE
-A {svc} -m recent --rcheck --seconds 90 --reap --name LB-7-1 --mask 255.255.255.0 --rsource -j {one}
-A {svc} -m recent --rcheck --seconds 90 --reap --name LB-7-2 --mask 255.255.255.0 --rsource -j {two}
-A {svc} -m statistic --mode random --probability 0.33333333349 -j {one}
-A {svc} -j {two}
-A {one} -s 10.0.0.1/32 -j LB-MARK-MASQ
-A {one} -p tcp -m recent --set --name LB-7-1 --mask 255.255.255.0 --rsource -j DNAT --to-destination 10.0.0.1:8080
-A {two} -s 10.0.0.2/32 -j LB-MARK-MASQ
-A {two} -p tcp -m recent --set --name LB-7-2 --mask 255.255.255.0 --rsource -j DNAT --to-destination 10.0.0.2:8080
-I PREROUTING 1 -j LB-SERVICES
-I OUTPUT 1 -j LB-SERVICES
-I POSTROUTING 1 -j LB-POSTROUTING
COMMIT
",
        first = one.min(two),
        second = one.max(two),
    );
    assert_eq!(text, expected);
    let other = restore_input(&IptablesConfig::default(), Family::V6, &state, &labels(&state));
    assert!(!other.contains("10.96.0.1") && other.contains("-s fd00::/8"), "{other}");
}

#[test]
fn a_change_writes_the_dispatch_and_the_changed_chains_only() {
    let mut bench = Bench::default();
    let (changed, kept) = (frontend(1, false), frontend(2, false));
    let mut state = State::default();
    point(&mut state, changed, 1, &[1, 2], None);
    point(&mut state, kept, 2, &[1], None);
    bench.bring(&state);
    point(&mut state, changed, 1, &[1, 3], None);
    bench.bring(&state);
    let (svc, one, three) = (Chain::service(changed), endpoint(changed, 1), endpoint(changed, 3));
    let gone = endpoint(changed, 2);
    let mut chains = [svc, one, three, gone].map(|chain| format!(":{chain} - [0:0]"));
    chains[1..3].sort();
    let text = format!(
        "*filter
:LB-INVALID-FROM-2 - [0:0]
:LB-INVALID-FROM-3 - [0:0]
-A LB-INVALID-FROM-3 -s 10.0.0.3/32 -p tcp -m tcp --sport 8080 -j DROP
COMMIT
*nat
:LB-SERVICES - [0:0]
{}
-A LB-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment \"f1 - default/web\" -j {svc}
-A LB-SERVICES -d 10.96.0.2/32 -p tcp -m tcp --dport 80 -m comment --comment \"f2 - default/web\" -j {}
-A {svc} -m comment --comment \"s3 1,3\" -j LB-MARK-SOURCE
-A {svc} -m statistic --mode random --probability 0.50000000000 -j {one}
-A {svc} -j {three}
-A {one} -s 10.0.0.1/32 -j LB-MARK-MASQ
-A {one} -p tcp -j DNAT --to-destination 10.0.0.1:8080
-A {three} -s 10.0.0.3/32 -j LB-MARK-MASQ
-A {three} -p tcp -j DNAT --to-destination 10.0.0.3:8080
-X {gone}
COMMIT
",
        chains.join("\n"),
        Chain::service(kept),
    );
    assert_eq!(bench.tools.inputs().last(), Some(&text));
    assert_eq!(bench.tools.inputs().len(), 2, "one restore per plan, none for the family without frontends");
}

#[test]
fn a_plan_that_changes_nothing_writes_nothing() {
    let mut bench = Bench::default();
    let mut state = State::default();
    point(&mut state, frontend(1, true), 1, &[1], None);
    bench.bring(&state);
    bench.bring(&state);
    assert_eq!(bench.tools.inputs().len(), 1);
}

#[test]
fn a_restore_that_ended_between_its_tables_is_finished_by_the_next_process() {
    let mut bench = Bench::default();
    let mut state = State::default();
    point(&mut state, frontend(1, false), 1, &[1], None);
    bench.bring(&state);
    let rules = |bench: &Bench, begin: &str| -> Vec<String> {
        let chains = bench.tools.chains(Family::V4, "filter");
        let own = chains.iter().filter(|chain| chain.starts_with(begin));
        own.flat_map(|chain| bench.tools.rules(Family::V4, "filter", chain)).collect()
    };
    let whole = rules(&bench, "LB-INVALID-");
    for begin in ["LB-INVALID-TO-", "LB-INVALID-FROM-"] {
        assert_eq!(rules(&bench, begin).len(), 1);
        let of = |(name, _): &(&String, &mut Vec<String>)| name.starts_with(begin);
        bench
            .tools
            .edit(Family::V4, "filter", |chains| chains.iter_mut().filter(of).for_each(|(_, rules)| rules.clear()));
        assert_eq!(rules(&bench, begin), Vec::<String>::new());
        let mut next = bench.reopened();
        let found = next.observe().unwrap();
        assert_eq!(found, state, "the table nat decides");
        next.apply(&diff(&found, &state, &labels(&state))).unwrap();
        assert_eq!(rules(&bench, "LB-INVALID-"), whole, "{begin}");
    }
}

#[test]
fn a_backend_that_turns_local_is_written_down() {
    let mut bench = Bench::default();
    let mut state = State::default();
    point(&mut state, frontend(1, false), 1, &[1], None);
    bench.bring(&state);
    state.backends.values_mut().for_each(|backend| backend.local = true);
    bench.bring(&state);
    assert_eq!(bench.reopened().observe().unwrap(), state);
}

#[test]
fn a_frontend_that_iptables_refuses_fails_alone_and_at_once() {
    let mut bench = Bench::default();
    let (good, bad) = (frontend(1, false), frontend(2, false));
    let mut state = State::default();
    point(&mut state, good, 1, &[1], None);
    let only_good = state.clone();
    point(&mut state, bad, 2, &[2], None);
    bench.tools.refuse("--to-destination 10.0.0.2:");
    let plan = diff(&State::default(), &state, &labels(&state));
    let error = bench.datapath.apply(&plan).unwrap_err();
    assert_eq!(error.failed.iter().map(|(addr, _)| *addr).collect::<Vec<_>>(), [bad]);
    assert!(error.unknown.is_none());
    assert_eq!(error.applied, plan.ops.len() - 1);
    let observed = bench.reopened().observe().unwrap();
    assert_eq!(observed.frontends, only_good.frontends);
}

#[test]
fn a_failure_without_a_culprit_leaves_it_to_the_next_observation() {
    let mut bench = Bench::default();
    let mut state = State::default();
    point(&mut state, frontend(1, false), 1, &[1], None);
    bench.tools.set_broken(true);
    let plan = diff(&State::default(), &state, &labels(&state));
    let error = bench.datapath.apply(&plan).unwrap_err();
    assert_eq!(error.unknown.map(|cause| cause.is_retryable()), Some(true));
    bench.tools.set_broken(false);
    assert_eq!(bench.datapath.observe().unwrap(), State::default());
    bench.datapath.apply(&plan).unwrap();
    assert_eq!(bench.datapath.observe().unwrap(), state);
}

#[test]
fn without_routes_no_rule_is_written() {
    let mut bench = Bench::default();
    let mut state = State::default();
    point(&mut state, frontend(1, false), 1, &[1], None);
    bench.datapath.observe().unwrap();
    bench.host.0.lock().unwrap().broken = true;
    let error = bench.datapath.apply(&diff(&State::default(), &state, &labels(&state))).unwrap_err();
    assert_eq!((error.applied, error.failed.len(), error.unknown.is_none()), (0, 1, true));
    assert!(bench.tools.inputs().is_empty());
}

#[test]
fn a_vip_that_cannot_be_routed_fails_alone() {
    let mut bench = Bench::default();
    let (good, bad) = (frontend(1, false), frontend(2, false));
    let mut state = State::default();
    reject(&mut state, good, 1);
    let only_good = state.clone();
    reject(&mut state, bad, 2);
    bench.host.0.lock().unwrap().unroutable.insert(bad.ip);
    let error = bench.datapath.apply(&diff(&State::default(), &state, &labels(&state))).unwrap_err();
    assert_eq!(error.failed.iter().map(|(addr, _)| *addr).collect::<Vec<_>>(), [bad]);
    assert_eq!(bench.reopened().observe().unwrap(), only_good);
}

#[test]
fn a_frontend_whose_route_is_gone_is_not_observed_and_comes_back() {
    let mut bench = Bench::default();
    let mut state = State::default();
    reject(&mut state, frontend(1, false), 1);
    reject(&mut state, frontend(2, false), 2);
    bench.bring(&state);
    bench.host.0.lock().unwrap().vips.remove(&frontend(1, false).ip);
    let mut datapath = bench.reopened();
    let observed = datapath.observe().unwrap();
    assert_eq!(observed.frontends.keys().copied().collect::<Vec<_>>(), [frontend(2, false)]);
    datapath.apply(&diff(&observed, &state, &labels(&state))).unwrap();
    assert_eq!(bench.reopened().observe().unwrap(), state);
}

#[test]
fn what_iptables_cannot_carry_is_unsupported() {
    let mut bench = Bench::default();
    let good = frontend(1, false);
    let mut state = State::default();
    point(&mut state, good, 1, &[1], None);
    let mut hashed = state.clone();
    hashed.sets.values_mut().for_each(|set| Arc::make_mut(set).lookup = Lookup::Hash);
    let mut least = state.clone();
    least.sets.values_mut().for_each(|set| Arc::make_mut(set).lookup = Lookup::LeastConnections);
    let mut guarded = state.clone();
    guarded.frontends.values_mut().for_each(|frontend| frontend.guard = Some(guard()));
    let mut pinged = state.clone();
    pinged.frontends.values_mut().for_each(|frontend| frontend.answers_ping = true);
    let mut sctp = State::default();
    reject(&mut sctp, FrontendAddr { protocol: Protocol::Sctp, ..good }, 1);
    let mut internal = State::default();
    reject(&mut internal, FrontendAddr { scope: Scope::Internal, ..good }, 1);
    for state in [hashed, least, guarded, pinged, sctp, internal] {
        let error = bench.datapath.apply(&diff(&State::default(), &state, &labels(&state))).unwrap_err();
        let kinds: Vec<ErrorKind> = error.failed.iter().map(|(_, cause)| cause.kind()).collect();
        assert_eq!(kinds, [ErrorKind::Unsupported]);
        assert!(bench.reopened().observe().unwrap().frontends.is_empty());
    }
}

#[test]
fn a_family_that_is_switched_off_is_left_alone() {
    let bench = Bench::default();
    let config = IptablesConfig { families: vec![Family::V4], ..IptablesConfig::default() };
    let mut datapath = bench.opened_with(config);
    assert_eq!(datapath.capabilities().families, [Family::V4]);
    let mut state = State::default();
    reject(&mut state, frontend(1, false), 1);
    let only_v4 = state.clone();
    reject(&mut state, frontend(1, true), 2);
    let error = datapath.apply(&diff(&State::default(), &state, &labels(&state))).unwrap_err();
    assert_eq!(error.failed.iter().map(|(addr, _)| *addr).collect::<Vec<_>>(), [frontend(1, true)]);
    assert_eq!(datapath.observe().unwrap(), only_v4);
    assert!(bench.tools.chains(Family::V6, "nat").is_empty());
}

#[test]
fn other_marks_after_a_restart_are_written_anew() {
    let mut bench = Bench::default();
    let mut state = State::default();
    point(&mut state, frontend(1, false), 1, &[1], None);
    bench.bring(&state);
    let config = IptablesConfig { masquerade_mark: 0x8000, reject_mark: 0x1234, ..IptablesConfig::default() };
    let mut datapath = bench.opened_with(config.clone());
    let observed = datapath.observe().unwrap();
    assert!(observed.frontends.is_empty());
    datapath.apply(&diff(&observed, &state, &labels(&state))).unwrap();
    assert_eq!(bench.opened_with(config).observe().unwrap(), state);
    assert_eq!(bench.tools.rules(Family::V4, "nat", "LB-MARK-MASQ"), ["-j MARK --or-mark 0x8000"]);
}

#[test]
fn a_backend_of_another_family_is_invalid() {
    let mut bench = Bench::default();
    let mut state = State::default();
    point(&mut state, frontend(1, false), 1, &[1], None);
    let (&id, _) = state.backends.first_key_value().unwrap();
    state.backends.insert(id, Backend { addr: backend(1, true).1.addr, local: false });
    let error = bench.datapath.apply(&diff(&State::default(), &state, &labels(&state))).unwrap_err();
    assert_eq!(error.failed[0].1.kind(), ErrorKind::Invalid);
}

#[test]
fn a_frontend_whose_chains_were_changed_is_not_observed_and_comes_back() {
    let (hit, spared) = (frontend(1, false), frontend(2, false));
    let (svc, sep) = (Chain::service(hit).to_string(), endpoint(hit, 1).to_string());
    type Edit = fn(&mut Vec<String>);
    let changes: [(&str, Edit); 6] = [
        (&svc, Vec::clear),
        (&svc, |rules| drop(rules.remove(0))),
        (&svc, |rules| drop(rules.remove(1))),
        (&svc, |rules| drop(rules.pop())),
        (&svc, |rules| rules[3] = rules[3].replace("0.5", "0.6")),
        (&sep, |rules| drop(rules.remove(0))),
    ];
    for (chain, change) in changes {
        let mut bench = Bench::default();
        let mut state = State::default();
        for (addr, id) in [(hit, 1), (spared, 2)] {
            point(&mut state, addr, id, &[1, 2], Some(Affinity::default()));
        }
        bench.bring(&state);
        let before = bench.tools.rules(Family::V4, "nat", chain);
        bench.tools.edit(Family::V4, "nat", |chains| change(chains.get_mut(chain).unwrap()));
        assert_ne!(bench.tools.rules(Family::V4, "nat", chain), before);
        let mut datapath = bench.reopened();
        let observed = datapath.observe().unwrap();
        assert_eq!(observed.frontends.keys().copied().collect::<Vec<_>>(), [spared]);
        datapath.apply(&diff(&observed, &state, &labels(&state))).unwrap();
        assert_eq!(bench.reopened().observe().unwrap(), state);
    }
}

#[test]
fn a_family_without_its_jumps_holds_nothing() {
    let mut bench = Bench::default();
    let mut state = State::default();
    point(&mut state, frontend(1, false), 1, &[1], None);
    point(&mut state, frontend(1, true), 2, &[1], None);
    bench.bring(&state);
    bench.tools.edit(Family::V4, "nat", |chains| chains.get_mut("PREROUTING").unwrap().clear());
    let mut datapath = bench.reopened();
    let observed = datapath.observe().unwrap();
    assert_eq!(observed.frontends.keys().copied().collect::<Vec<_>>(), [frontend(1, true)]);
    datapath.apply(&diff(&observed, &state, &labels(&state))).unwrap();
    assert_eq!(bench.tools.rules(Family::V4, "nat", "PREROUTING"), ["-j LB-SERVICES"]);
    assert_eq!(bench.tools.rules(Family::V4, "nat", "OUTPUT"), ["-j LB-SERVICES"], "and only once");
}

#[test]
fn vips_are_routed_while_they_have_a_frontend() {
    let mut bench = Bench::default();
    let (first, second) = (frontend(1, false), FrontendAddr { port: 81, ..frontend(1, false) });
    let vips = |bench: &Bench| bench.host.0.lock().unwrap().vips.clone();
    let mut state = State::default();
    reject(&mut state, first, 1);
    reject(&mut state, second, 2);
    bench.bring(&state);
    assert_eq!(vips(&bench), BTreeSet::from([first.ip]));
    state.frontends.remove(&first);
    bench.bring(&state);
    assert_eq!(vips(&bench), BTreeSet::from([first.ip]));
    bench.bring(&State::default());
    assert_eq!(vips(&bench), BTreeSet::new());
}

#[test]
fn udp_flows_are_forgotten_when_backends_change() {
    let mut bench = Bench::default();
    let addr = FrontendAddr { protocol: Protocol::Udp, ..frontend(1, false) };
    let udp = |n| {
        let backend = backend_for(n, addr).1.addr;
        (backend.ip, backend.port)
    };
    let mut state = State::default();
    point(&mut state, addr, 1, &[1, 2], None);
    bench.bring(&state);
    point(&mut state, addr, 1, &[2], None);
    bench.bring(&state);
    point(&mut state, addr, 1, &[2], Some(Affinity::default()));
    bench.bring(&state);
    reject(&mut state, addr, 1);
    bench.bring(&state);
    bench.bring(&State::default());
    let expected: [&[(IpAddr, u16)]; 4] = [&[udp(1), udp(2)], &[udp(2)], &[], &[]];
    let expected = expected.map(|backends| BTreeMap::from([(addr, backends.iter().copied().collect())]));
    assert_eq!(bench.host.0.lock().unwrap().forgotten, expected);
}

#[test]
fn flows_that_could_not_be_forgotten_are_forgotten_by_the_next_plan() {
    let mut bench = Bench::default();
    let addr = FrontendAddr { protocol: Protocol::Udp, ..frontend(1, false) };
    let mut state = State::default();
    reject(&mut state, addr, 1);
    bench.host.0.lock().unwrap().unforgettable = true;
    let error = bench.datapath.apply(&diff(&State::default(), &state, &labels(&state))).unwrap_err();
    assert!(error.unknown.is_some());
    bench.host.0.lock().unwrap().unforgettable = false;
    assert_eq!(bench.datapath.observe().unwrap(), state);
    bench.datapath.apply(&Plan::default()).unwrap();
    assert_eq!(bench.host.0.lock().unwrap().forgotten, [BTreeMap::from([(addr, BTreeSet::new())])]);
}

#[test]
fn cleanup_removes_all_of_ours() {
    let mut bench = Bench::default();
    let mut state = State::default();
    for v6 in [false, true] {
        point(&mut state, frontend(1, v6), 1 + u32::from(v6), &[1, 2], Some(Affinity::default()));
    }
    bench.bring(&state);
    bench.tools.edit(Family::V4, "nat", |chains| chains.get_mut("OUTPUT").unwrap().push("-j RETURN".to_owned()));
    assert!(bench.datapath.counters().unwrap().usage().unwrap().rules > 20);
    bench.datapath.cleanup().unwrap();
    for (family, table) in [(Family::V4, "nat"), (Family::V4, "filter"), (Family::V6, "nat"), (Family::V6, "filter")] {
        assert_eq!(bench.tools.chains(family, table), Vec::<String>::new());
    }
    assert_eq!(bench.tools.rules(Family::V4, "nat", "OUTPUT"), ["-j RETURN"]);
    assert!(bench.host.0.lock().unwrap().vips.is_empty());
    assert_eq!(bench.datapath.counters().unwrap().usage().unwrap().rules, 0);
    assert_eq!(bench.datapath.observe().unwrap(), State::default());
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let wrong = [
        IptablesConfig { families: Vec::new(), ..IptablesConfig::default() },
        IptablesConfig { masquerade_mark: 0x3, ..IptablesConfig::default() },
        IptablesConfig { reject_mark: 0x4001, ..IptablesConfig::default() },
        IptablesConfig { drop_mark: 0x6c62_0001, ..IptablesConfig::default() },
        IptablesConfig { reject_table: 26976, ..IptablesConfig::default() },
        IptablesConfig { route_table: 254, ..IptablesConfig::default() },
        IptablesConfig { rule_priority: 0, ..IptablesConfig::default() },
    ];
    for config in wrong {
        assert_eq!(IptablesDatapath::open(&config).unwrap_err().kind(), ErrorKind::Invalid, "{config:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// From any state to any other: what is observed afterwards is what was wanted, no chain is left over, every
    /// jump has a target (the fake checks), and the draws give each backend its share.
    #[test]
    fn states_are_read_back(first in any_state(), second in any_state()) {
        let mut bench = Bench::default();
        for state in [&first, &second] {
            bench.bring(state);
            prop_assert_eq!(&bench.reopened().observe().unwrap(), state);
            let expected: usize = state.frontends.keys().map(|&addr| crate::iptables::change::lower::chains_of(state, addr).len()).sum();
            let chains = [Family::V4, Family::V6].into_iter().flat_map(|family| bench.tools.chains(family, "nat"));
            prop_assert_eq!(chains.filter(|chain| Chain::parse(chain).is_some()).count(), expected);
            for (&addr, frontend) in &state.frontends {
                check_shares(&bench.tools, state, addr, frontend);
            }
        }
    }

    /// Whatever names hold, they add no line and no option.
    #[test]
    fn names_stay_inside_their_comments(label in any::<String>(), node in any::<String>()) {
        let lines = |label: &str, node: &str| -> Vec<String> {
            let mut state = State::default();
            point(&mut state, frontend(1, false), 1, &[1], None);
            state.node.name = Some(NodeName::new(node));
            let labels = [(frontend(1, false), Arc::from(label))].into();
            let text = restore_input(&IptablesConfig::default(), Family::V4, &state, &labels);
            text.lines().filter(|line| !line.starts_with("-A LB-NODE ")).map(str::to_owned).collect()
        };
        let (plain, hostile) = (lines("", ""), lines(&label, &node));
        prop_assert_eq!(plain.len(), hostile.len());
        for (plain, hostile) in plain.iter().zip(&hostile) {
            let comment = |line: &str| line.split('"').map(str::to_owned).collect::<Vec<_>>();
            let (plain, hostile) = (comment(plain), comment(hostile));
            prop_assert_eq!(plain.len(), hostile.len());
            prop_assert_eq!((plain.first(), plain.last()), (hostile.first(), hostile.last()));
        }
    }

    /// Rules and chains that others take away or add are found and put back.
    #[test]
    fn whatever_others_change_is_found_and_put_back(
        state in any_state(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0u8..3), 1..4),
    ) {
        let mut bench = Bench::default();
        bench.bring(&state);
        let labels = labels(&bench.state);
        let expected = Expected { state: &bench.state.clone(), labels: &labels };
        prop_assert_eq!(bench.datapath.inspect(expected, Inspection::Everything).unwrap(), []);
        let before = bench.tools.saved();
        for (which, v6, edit) in edits {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let chains = bench.tools.chains(family, "nat");
            if chains.is_empty() {
                continue;
            }
            let chain = which.get(&chains);
            bench.tools.edit(family, "nat", |chains| {
                let rules = chains.get_mut(chain).unwrap();
                match edit {
                    0 => rules.clear(),
                    1 => drop(rules.pop()),
                    _ => rules.insert(0, "-j RETURN".into()),
                }
            });
        }
        let changed = bench.tools.saved() != before;
        let found = bench.datapath.inspect(expected, Inspection::Everything).unwrap();
        prop_assert_eq!(found.is_empty(), !changed);
        bench.datapath.repair(expected, &found).unwrap();
        prop_assert_eq!(bench.tools.saved(), before);
        prop_assert_eq!(bench.datapath.inspect(expected, Inspection::Everything).unwrap(), []);
    }

    /// A restarted process goes on from what it observes.
    #[test]
    fn a_restart_changes_nothing(first in any_state(), second in any_state()) {
        let mut bench = Bench::default();
        bench.bring(&first);
        let mut datapath = bench.reopened();
        let observed = datapath.observe().unwrap();
        datapath.apply(&diff(&observed, &second, &labels(&second))).unwrap();
        prop_assert_eq!(&bench.reopened().observe().unwrap(), &second);
    }
}

/// Multiplies the draws out: each backend's probability is its share of the slots.
fn check_shares(tools: &FakeTools, state: &State, addr: FrontendAddr, frontend: &Frontend) {
    let Target::Set(id) = frontend.target else { return };
    let set = &state.sets[&id];
    let mut left = 1.0;
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    for rule in tools.rules(addr.family(), "nat", &Chain::service(addr).to_string()) {
        let chain = rule.split(' ').next_back().unwrap().to_owned();
        if !chain.starts_with("LB-SEP-") || rule.contains("--rcheck") {
            continue;
        }
        let probability = rule
            .split("--probability ")
            .nth(1)
            .map_or(1.0, |rest| rest.split(' ').next().unwrap().parse::<f64>().unwrap());
        *shares.entry(chain).or_default() += left * probability;
        left *= 1.0 - probability;
    }
    assert!(left.abs() < 1e-12, "{left} goes nowhere");
    for (id, slots) in set.members() {
        let chain = Chain::endpoint(addr, state.backends[&id].addr).to_string();
        let expected = f64::from(slots) / set.slots.len() as f64;
        assert!((shares[&chain] - expected).abs() < 1e-6, "{} instead of {expected}", shares[&chain]);
    }
}

struct Bench {
    tools: FakeTools,
    host: FakeHost,
    datapath: IptablesDatapath,
    state: State,
}

impl Default for Bench {
    fn default() -> Self {
        let (tools, host) = (FakeTools::default(), FakeHost::default());
        Self { datapath: open(IptablesConfig::default(), &tools, &host), tools, host, state: State::default() }
    }
}

impl Bench {
    fn bring(&mut self, state: &State) {
        let wanted = whole(state);
        self.datapath.apply(&diff(&self.state, &wanted, &labels(&wanted))).unwrap();
        self.state = wanted;
    }

    fn reopened(&self) -> IptablesDatapath {
        self.opened_with(IptablesConfig::default())
    }

    fn opened_with(&self, config: IptablesConfig) -> IptablesDatapath {
        open(config, &self.tools, &self.host)
    }
}

fn open(config: IptablesConfig, tools: &FakeTools, host: &FakeHost) -> IptablesDatapath {
    IptablesDatapath::with(
        config,
        true,
        Arc::new(tools.clone()),
        Box::new(host.clone()),
        crate::namespace::Namespace::current().unwrap(),
    )
}

fn guard() -> Guard {
    let ranges = SourceRanges::new(RangePolicy::Allow, ["192.0.2.0/24".parse().unwrap()]);
    Guard { ranges: Arc::new(ranges), traffic: GuardedTraffic::All }
}

fn labels(state: &State) -> Labels {
    state.frontends.keys().map(|&addr| (addr, Arc::from("default/web"))).collect()
}

fn frontend(n: u8, v6: bool) -> FrontendAddr {
    let ip: IpAddr = if v6 { format!("fd96::{n}") } else { format!("10.96.0.{n}") }.parse().unwrap();
    FrontendAddr::new(ip, 80, Protocol::Tcp)
}

fn backend(n: u8, v6: bool) -> (BackendId, Backend) {
    let ip: IpAddr = if v6 { format!("fd00::{n}") } else { format!("10.0.0.{n}") }.parse().unwrap();
    let id = BackendId::new(u32::from(n) + if v6 { 100 } else { 0 }).unwrap();
    (id, Backend { addr: BackendAddr::new(ip, 8080, Protocol::Tcp), local: false })
}

fn backend_for(n: u8, addr: FrontendAddr) -> (BackendId, Backend) {
    let (id, mut backend) = backend(n, addr.ip.is_ipv6());
    backend.addr.protocol = addr.protocol;
    (BackendId::new(id.get() + 1000 * u32::from(addr.protocol == Protocol::Udp)).unwrap(), backend)
}

fn endpoint(addr: FrontendAddr, n: u8) -> Chain {
    Chain::endpoint(addr, backend_for(n, addr).1.addr)
}

fn reject(state: &mut State, addr: FrontendAddr, id: u32) {
    let frontend = Frontend::new(FrontendId::new(id).unwrap(), Target::Reject);
    state.frontends.insert(addr, frontend);
}

/// The first backend that takes no new flows, only UDP flows that it has.
const DRAINS: u8 = 6;

fn point(state: &mut State, addr: FrontendAddr, id: u32, backends: &[u8], affinity: Option<Affinity>) {
    let (draining, slots): (Vec<u8>, Vec<u8>) = backends.iter().partition(|n| **n >= DRAINS);
    let draining = if addr.protocol == Protocol::Udp { draining } else { Vec::new() };
    for &n in slots.iter().chain(&draining) {
        let (id, backend) = backend_for(n, addr);
        state.backends.insert(id, backend);
    }
    let ids = |backends: Vec<u8>| backends.iter().map(|&n| backend_for(n, addr).0).collect();
    let set = BackendSet { lookup: Lookup::Random, slots: ids(slots), draining: ids(draining) };
    let known = state.sets.iter().find(|(_, known)| ***known == set).map(|(&id, _)| id);
    let next = state.sets.keys().next_back().map_or(1, |id| id.get() + 1);
    let set_id = known.unwrap_or_else(|| SetId::new(next).unwrap());
    state.sets.insert(set_id, Arc::new(set));
    let target = Target::Set(set_id);
    state.frontends.insert(addr, Frontend { affinity, ..Frontend::new(FrontendId::new(id).unwrap(), target) });
}

/// `state` without what nothing refers to.
fn whole(state: &State) -> State {
    let mut state = state.clone();
    let targets = state.frontends.values().map(|frontend| frontend.target);
    let used: BTreeSet<SetId> =
        targets.filter_map(|target| if let Target::Set(id) = target { Some(id) } else { None }).collect();
    state.sets.retain(|id, _| used.contains(id));
    let used: BTreeSet<BackendId> = state.sets.values().flat_map(|set| set.backends()).collect();
    state.backends.retain(|id, _| used.contains(id));
    state
}

fn any_state() -> impl Strategy<Value = State> {
    let affinity = (1u64..200_000, 0u8..=32, 0u8..=128).prop_map(|(seconds, prefix_v4, prefix_v6)| Affinity {
        timeout: Duration::from_secs(seconds),
        prefix_v4,
        prefix_v6,
    });
    let target = prop_oneof![
        1 => Just(None),
        4 => (prop::collection::vec(1u8..DRAINS, 1..40), prop::sample::subsequence(vec![DRAINS, DRAINS + 1], 0..=2))
            .prop_map(|(slots, draining)| Some([slots, draining].concat())),
    ];
    let one = (1u8..4, any::<bool>(), any::<bool>(), 79u16..82, target, prop::option::of(affinity), any::<bool>());
    let cidrs =
        prop::collection::vec(prop::sample::select(vec!["10.244.0.0/16", "fd00::/64", "10.0.0.7/8", "::/0"]), 0..4);
    let ips = prop::collection::vec(prop::sample::select(vec!["10.0.0.9", "fd00::9"]), 0..3);
    (prop::collection::vec(one, 0..8), cidrs, ips, any::<bool>()).prop_map(|(frontends, cidrs, ips, named)| {
        let mut state = State::default();
        for (n, v6, udp, port, target, affinity, dropped) in frontends {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let addr = FrontendAddr { port, protocol, ..frontend(n, v6) };
            let id = u32::from(port) * 1000 + u32::from(n) * 10 + u32::from(v6) * 2 + u32::from(udp);
            match target {
                Some(slots) => point(&mut state, addr, id, &slots, affinity),
                None => {
                    let target = if dropped { Target::Drop } else { Target::Reject };
                    let frontend = Frontend { affinity, ..Frontend::new(FrontendId::new(id).unwrap(), target) };
                    state.frontends.insert(addr, frontend);
                }
            }
        }
        let mut state = whole(&state);
        state.node = NodeFacts {
            name: named.then(|| NodeName::new("node-1")),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            cluster_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        };
        state
    })
}
