//! What others do to the table and the routes is found, named and put right.

use std::{
    collections::BTreeSet,
    io::Write,
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_core::{
    addr::Protocol,
    affinity::Affinity,
    datapath::{Datapath, Watcher},
    drift::{Cause, Difference, Drift, DriftClass, Expected, Inspection},
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_iptables::nftables::NftablesConfig;

use crate::{
    net::{Net, PATIENCE, SILENCE, ask, say, tcp, udp_socket},
    services::{Node, Services, VIP4, VIP6, at, both_backends, name, only, varied},
};

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn nothing_drifts_by_itself() {
    let net = Net::new();
    let mut node = Node::open(&net);
    assert_eq!(node.drift(), [], "before there is a table");
    for state in [varied(), both_backends(), State::default(), varied()] {
        node.become_state(state);
        assert_eq!(node.drift(), []);
        net.client.run(|| tcp(at("10.96.0.3"))).ok();
        assert_eq!(node.drift(), [], "a client's record is no drift");
    }
    let mut fresh = Node::open(&net);
    fresh.state = varied();
    assert_eq!(fresh.drift(), [], "another process finds the same");
}

/// What somebody does, and how what it changed is called.
const EDITS: [(&str, &str); 32] = [
    ("nft flush ruleset", "table inet lb missing"),
    ("nft delete table inet lb", "table inet lb missing"),
    ("nft add table inet lb '{ flags dormant; }'", "table inet lb wrong"),
    ("nft delete element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 }'", "frontend 10.96.0.1:80/tcp missing"),
    (
        "nft delete element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 }'; \
         nft add element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 : 0x0 . 0x20000000 . 0x0 . 0x0 . 0x0 }'",
        "frontend 10.96.0.1:80/tcp wrong: expected pick4-random-2, found drop",
    ),
    (
        "nft delete element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 }'; nft add element inet lb frontends4 \
         '{ 10.96.0.1 . tcp . 80 comment \"frontend 99 set 3\" : 0x0 . 0x60000000 . 0x2 . 0x0 . 0x0 }'",
        "frontend 10.96.0.1:80/tcp wrong: expected frontend 4 set 3, found frontend 99 set 3",
    ),
    (
        "nft add element inet lb frontends4 '{ 10.96.0.99 . tcp . 80 : 0x0 . 0x40000000 . 0x0 . 0x0 . 0x0 }'",
        "frontend 10.96.0.99:80/tcp extra",
    ),
    (
        "nft add element inet lb frontends4 '{ 10.96.0.98 . icmp . 80 : 0x0 . 0x9 . 0x0 . 0x0 . 0x0 }'",
        "element frontends4 0a60006201000000",
    ),
    ("nft delete element inet lb picks4 '{ 0x60000000 . 0x2 . 0x0 . 0x0 }'", "element picks4 pick4-random-2 missing"),
    (
        "nft add chain inet lb mine; nft add rule inet lb mine drop; \
         nft delete element inet lb picks4 '{ 0x60000000 . 0x2 . 0x0 . 0x0 }'; \
         nft add element inet lb picks4 '{ 0x60000000 . 0x2 . 0x0 . 0x0 : goto mine }'",
        "element picks4 pick4-random-2 wrong: expected pick4-random-2, found a value of another kind",
    ),
    (
        "nft add element inet lb picks6 '{ 0x60000000 . 0x9 . 0x0 . 0x0 : goto refuse }'",
        "element picks6 pick6-random-9 extra",
    ),
    ("nft flush map inet lb picks6", "element picks6 drop missing"),
    ("nft flush map inet lb tables6", "slot [fd96::3]:80/udp slot 0 missing"),
    ("nft delete element inet lb tables6 '{ fd96::3 . udp . 80 . 0xfa }'", "slot [fd96::3]:80/udp slot 250 missing"),
    (
        "nft delete element inet lb tables6 '{ fd96::3 . udp . 80 . 0x4 }'; \
         nft add element inet lb tables6 '{ fd96::3 . udp . 80 . 0x4 : 0x70000 }'",
        "slot [fd96::3]:80/udp slot 5 wrong: expected [fd02:2::2]:8080, found [::]:7",
    ),
    ("nft add element inet lb tables4 '{ 10.96.0.1 . tcp . 80 . 0x8 : 7 }'", "slot 10.96.0.1:80/tcp slot 8 extra"),
    ("nft delete element inet lb slots4 '{ 10.96.0.1 . tcp . 80 . 1 }'", "slot 10.96.0.1:80/tcp slot 1 missing"),
    (
        "nft delete element inet lb slots6 '{ fd96::1 . udp . 80 . 0 }'; \
         nft add element inet lb slots6 '{ fd96::1 . udp . 80 . 0 : fd00::bad . 1 }'",
        "slot [fd96::1]:80/udp slot 0 wrong: expected [fd02:1::2]:8080, found [fd00::bad]:1",
    ),
    (
        "nft add element inet lb slots4 '{ 10.96.0.1 . tcp . 80 . 2 : 10.9.9.9 . 9 }'",
        "slot 10.96.0.1:80/tcp slot 2 extra",
    ),
    ("nft flush map inet lb slots4", "slot 10.96.0.1:80/tcp slot 0 missing"),
    (
        "nft delete element inet lb slots4 '{ 10.96.0.1 . tcp . 80 . 1 }'; nft add element inet lb slots4 \
         '{ 10.96.0.1 . tcp . 80 . 1 comment \"backend 77\" : 10.2.2.2 . 8080 }'",
        "slot 10.96.0.1:80/tcp slot 1 wrong: expected backend 2, found backend 77",
    ),
    ("nft flush set inet lb cluster4", "element cluster4 from 0.0.0.0 missing"),
    ("nft add element inet lb cluster4 '{ 192.0.2.0/24 }'", "element cluster4 from 192.0.2.0 extra"),
    ("nft flush set inet lb hairpin6", "element hairpin6 fd02:1::2 missing"),
    ("nft flush set inet lb notes", "node address 0 missing"),
    ("nft delete set inet lb notes", "named set notes missing"),
    ("nft add set inet lb mine '{ type ipv4_addr; }'", "named set mine extra"),
    ("nft flush chain inet lb prerouting", "rule prerouting rule 1 missing"),
    ("nft insert rule inet lb prerouting ip daddr 10.96.0.1 drop", "rule prerouting rule 1 extra"),
    (
        "nft flush chain inet lb masquerade4; nft delete rule inet lb postrouting handle \
         $(nft -a list chain inet lb postrouting | sed -n 's/.*masquerade4 # handle //p'); \
         nft delete chain inet lb masquerade4",
        "chain masquerade4 missing",
    ),
    (
        "nft delete chain inet lb output; nft add chain inet lb output \
         '{ type filter hook output priority 5; policy drop; }'",
        "chain output wrong",
    ),
    ("nft add chain inet lb output '{ policy drop; }'", "chain output wrong"),
];

const ROUTES: [(&str, &str); 6] = [
    ("ip route flush table 27746", "route 10.96.0.1 in the table for the node's own packets missing"),
    ("ip route del blackhole 10.96.0.1/32 proto 108", "route 10.96.0.1 in the main table missing"),
    (
        "ip -6 route del fd96::1/128 table 27746 proto 108",
        "route fd96::1 in the table for the node's own packets missing",
    ),
    ("ip route add blackhole 10.96.9.9/32 proto 108 metric 1818389602", "route 10.96.9.9 in the main table extra"),
    ("ip rule del iif lo lookup 27746", "route rule iif lo, IPv4 missing"),
    ("ip link set lo down; ip link set lo up", "route 10.96.0.1 in the table for the node's own packets missing"),
];

fn edits() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    EDITS.iter().chain(&ROUTES)
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn every_edit_is_found_by_a_full_inspection_and_repaired() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(varied());
    for (edit, drift) in edits() {
        net.node.sh(edit);
        let found = node.drift();
        assert!(found.iter().any(|found| found.to_string().starts_with(drift)), "{edit}: {drift}\n{}", lines(&found));
        node.repair(&found);
        assert_eq!(lines(&node.drift()), "", "after {edit}");
        node.works(&net, edit);
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn every_edit_wakes_the_watcher_and_is_found_among_the_suspects() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(varied());
    let mut watcher = node.watcher();
    for (edit, drift) in edits() {
        assert_eq!(node.suspects(), [], "before {edit}");
        net.node.sh(edit);
        assert!(watcher.wait(PATIENCE).unwrap(), "{edit}");
        let found = node.suspects();
        assert!(found.iter().any(|found| found.to_string().starts_with(drift)), "{edit}: {drift}\n{}", lines(&found));
        assert_eq!(node.suspects(), found, "until it is repaired");
        node.repair(&found);
        assert_eq!(lines(&node.suspects()), "", "after {edit}");
        assert_eq!(lines(&node.drift()), "", "after {edit}");
        assert!(!watcher.wait(Duration::ZERO).unwrap(), "a repair of our own wakes nobody: {edit}");
        node.works(&net, edit);
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn the_watcher_sleeps_through_what_does_not_concern_us() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(both_backends());
    let mut watcher = node.watcher();
    let sticky = |timeout| {
        let mut services = Services::default();
        let affinity = Affinity { timeout, ..Affinity::default() };
        services.add(VIP4, Protocol::Tcp, Some((Lookup::Random, &[1, 2])), Some(affinity));
        services.state
    };
    node.become_state(sticky(Duration::from_millis(50)));
    // From another thread, as an agent may do it.
    std::thread::scope(|scope| scope.spawn(|| node.become_state(sticky(Duration::from_millis(100)))).join()).unwrap();
    for _ in 0..5 {
        net.client.run(|| tcp(at(VIP4))).unwrap();
    }
    net.node.sh(
        "nft add table inet other; nft add chain inet other lb; nft add rule inet other lb accept
         nft add table ip lb; nft add set ip lb frontends4 '{ type ipv4_addr; }'
         nft add element ip lb frontends4 '{ 10.0.0.1 }'
         nft flush table inet other; nft delete table ip lb; nft delete table inet other
         ip route add 10.200.0.1/32 dev lo; ip rule add to 10.200.0.1 lookup 99; ip route add 10.200.0.2/32 dev lo table 99
         ip link set vc mtu 1400",
    );
    assert!(!watcher.wait(SILENCE).unwrap(), "records that ran out, and others' tables and routes");
    assert_eq!(node.suspects(), []);
    net.node.sh("nft delete element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 }'");
    assert!(watcher.wait(PATIENCE).unwrap());
    let start = Instant::now();
    watcher.waker().unwrap().wake();
    assert!(!watcher.wait(PATIENCE).unwrap() && start.elapsed() < PATIENCE, "the wait was ended");
}

/// The kernel tells of every element of a transaction, unless nobody listens.
#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn after_a_large_plan_the_watcher_hears_again() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(both_backends());
    let mut watcher = node.watcher();
    let mut services = Services { state: both_backends(), next: 1_000 };
    for n in 0..250_u32 {
        services.add_remote(&format!("10.96.1.{n}"), 4 * n);
    }
    node.become_state(services.state);
    assert!(!watcher.wait(Duration::ZERO).unwrap(), "nobody else wrote");
    assert_eq!(node.suspects(), []);
    net.node.sh("nft delete element inet lb frontends4 '{ 10.96.1.7 . tcp . 80 }'");
    assert!(watcher.wait(PATIENCE).unwrap());
    let found = node.suspects();
    assert_eq!(lines(&found), "frontend 10.96.1.7:80/tcp missing (changed by another tool)\n");
    node.repair(&found);
    net.node.sh("nft flush map inet lb slots4");
    assert!(watcher.wait(PATIENCE).unwrap());
    let found = node.suspects();
    assert_eq!(found.len(), 1_004);
    node.repair(&found);
    assert!(!watcher.wait(Duration::ZERO).unwrap(), "nobody else wrote");
    assert_eq!(node.drift(), []);
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn what_a_second_process_writes_is_noticed() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(both_backends());
    let mut watcher = node.watcher();
    let mut other = Node::open(&net);
    other.state = other.datapath.observe().unwrap();
    other.become_state(only(1, Protocol::Tcp, Lookup::Random));
    assert!(watcher.wait(PATIENCE).unwrap());
    let found = node.suspects();
    assert!(found.iter().any(|drift| drift.to_string().starts_with("element notes generation")), "{}", lines(&found));
    node.repair(&found);
    assert_eq!(node.drift(), []);
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn when_notifications_are_lost_everything_is_looked_at() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(both_backends());
    let mut watcher = node.watcher();
    let elements: String = (0..60_000_u32).map(|n| format!("10.{}.{}.{}, ", n >> 16, n >> 8 & 255, n & 255)).collect();
    net.node.sh("nft add table inet other; nft 'add set inet other many { type ipv4_addr; }'");
    let script = net.node.run(|| {
        use std::process::{Command, Stdio};
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let text = format!("add element inet other many {{ {elements} }}\nflush set inet other many\n").repeat(4);
        nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        nft.wait().unwrap()
    });
    assert!(script.success());
    net.node.sh("nft delete element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 }'");
    assert!(watcher.wait(PATIENCE).unwrap());
    let found = node.suspects();
    assert_eq!(found.len(), 1, "{}", lines(&found));
    node.repair(&found);
    assert_eq!(node.drift(), []);
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_table_of_somebody_elses_is_named_and_never_repaired_away() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(both_backends());
    net.node.sh("nft delete table inet lb; nft add table inet lb; nft add chain inet lb mine");
    let found = node.drift();
    assert_eq!(found.len(), 1, "{}", lines(&found));
    assert!(found[0].class == DriftClass::Table && matches!(found[0].difference, Difference::Wrong { .. }));
    let labels = Labels::new();
    let error = node.datapath.repair(Expected { state: &node.state, labels: &labels }, &found).unwrap_err();
    let error = error.unknown.unwrap();
    assert_eq!(error.kind(), lb_core::datapath::ErrorKind::Busy);
    assert!(error.report().contains("remove it with `nft delete table inet lb`"), "{}", error.report());
    assert!(net.node.sh("nft list table inet lb").contains("chain mine"));
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn causes_tell_a_flush_from_an_edit() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(varied());
    for (edit, cause) in [
        ("ip route flush table 27746", Cause::Flushed),
        ("ip route del 10.96.0.1/32 table 27746", Cause::Edited),
        ("nft flush ruleset", Cause::Flushed),
        ("nft flush map inet lb slots4", Cause::Flushed),
        ("nft delete element inet lb slots4 '{ 10.96.0.1 . tcp . 80 . 1 }'", Cause::Edited),
        ("nft add element inet lb hairpin4 '{ 10.96.0.99 . 10.96.0.99 }'", Cause::Edited),
    ] {
        net.node.sh(edit);
        let found = node.drift();
        assert!(!found.is_empty() && found.iter().all(|drift| drift.cause == cause), "{edit}\n{}", lines(&found));
        node.repair(&found);
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn established_connections_and_records_survive_a_repair() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services::default();
    for vip in [VIP4, VIP6] {
        services.add(vip, Protocol::Tcp, Some((Lookup::Random, &[1, 2])), Some(Affinity::default()));
    }
    node.become_state(services.state);
    for (edit, kept) in [
        ("nft flush ruleset", false),
        ("nft flush map inet lb slots4", true),
        ("nft flush chain inet lb prerouting", true),
        ("nft delete set inet lb notes", true),
        ("ip route flush proto 108; ip -6 route flush proto 108; ip route flush table 27746", true),
    ] {
        let streams: Vec<(TcpStream, String)> = [(&net.client, VIP4), (&net.node, VIP4), (&net.client, VIP6)]
            .into_iter()
            .map(|(from, vip)| {
                let mut stream = from.run(|| TcpStream::connect(at(vip))).unwrap();
                let backend = name(&say(&mut stream).unwrap());
                (stream, backend)
            })
            .collect();
        net.node.sh(edit);
        let found = node.drift();
        node.repair(&found);
        for ((mut stream, backend), (from, vip)) in
            streams.into_iter().zip([(&net.client, VIP4), (&net.node, VIP4), (&net.client, VIP6)])
        {
            stream.write_all(b"through it").unwrap();
            assert_eq!(say(&mut stream).unwrap(), "through it", "{edit}");
            let again: BTreeSet<String> = (0..8).map(|_| name(&from.run(|| tcp(at(vip))).unwrap())).collect();
            assert_eq!(again.len(), 1, "{edit}");
            assert!(!kept || again.contains(&backend), "{edit}: the client's record is lost");
        }
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_udp_flow_that_began_untranslated_is_led_to_its_backend() {
    let net = Net::new();
    let mut node = Node::open(&net);
    for edit in
        ["nft delete element inet lb frontends4 '{ 10.96.0.1 . udp . 80 }'", "nft flush chain inet lb prerouting"]
    {
        node.become_state(only(1, Protocol::Udp, Lookup::Random));
        net.node.sh(edit);
        let socket = net.client.run(|| udp_socket(at(VIP4))).unwrap();
        assert!(ask(&socket, SILENCE).is_err(), "nothing translates it");
        let found = node.drift();
        node.repair(&found);
        assert_eq!(name(&ask(&socket, PATIENCE).unwrap()), "b1", "after {edit}");
        node.become_state(State::default());
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn repairs_are_quick() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services::default();
    for n in 0..100_u32 {
        services.add_remote(&format!("10.96.1.{n}"), 4 * n);
    }
    node.become_state(services.state);
    let mut watcher = node.watcher();
    for (edit, _) in edits().filter(|(edit, _)| edit.contains("flush ruleset") || edit.contains("prerouting")) {
        let edited = Instant::now();
        net.node.sh(edit);
        assert!(watcher.wait(PATIENCE).unwrap());
        let found = node.suspects();
        assert!(!found.is_empty(), "{edit}");
        node.repair(&found);
        println!("{edit}: {:?} with the time that sh and nft take", edited.elapsed());
        assert_eq!(node.drift(), []);
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn another_table_name_is_watched_under_its_own() {
    let net = Net::new();
    let other = NftablesConfig::default().with_table("lb-2").with_route_table(300).with_rule_priority(300);
    let (mut one, mut two) = (Node::open(&net), Node::open_with(&net, &other));
    one.become_state(only(1, Protocol::Tcp, Lookup::Random));
    let mut services = Services::default();
    services.add("10.97.0.1", Protocol::Tcp, Some((Lookup::Random, &[2])), None);
    two.become_state(services.state);
    let (mut first, mut second) = (one.watcher(), two.watcher());
    one.become_state(State::default());
    assert!(!second.wait(SILENCE).unwrap());
    net.node.sh("nft flush table inet lb-2");
    assert!(second.wait(PATIENCE).unwrap() && !first.wait(Duration::ZERO).unwrap());
    let found = two.suspects();
    two.repair(&found);
    assert_eq!(two.drift(), []);
    assert_eq!(name(&net.client.run(|| tcp(at("10.97.0.1"))).unwrap()), "b2");
}

impl Node {
    /// What a full inspection finds.
    pub(crate) fn drift(&mut self) -> Vec<Drift> {
        self.inspect(Inspection::Everything)
    }

    /// What an inspection of the suspects finds.
    fn suspects(&mut self) -> Vec<Drift> {
        self.inspect(Inspection::Suspects)
    }

    fn inspect(&mut self, inspection: Inspection) -> Vec<Drift> {
        let labels = Labels::new();
        let mut found = self.datapath.inspect(Expected { state: &self.state, labels: &labels }, inspection).unwrap();
        found.sort();
        found
    }

    pub(crate) fn repair(&mut self, found: &[Drift]) {
        let labels: Labels = self.state.frontends.keys().map(|&addr| (addr, Arc::from("team/web:http"))).collect();
        self.datapath.repair(Expected { state: &self.state, labels: &labels }, found).unwrap();
    }

    /// A watcher that has nothing to tell yet.
    fn watcher(&mut self) -> Box<dyn Watcher> {
        let watcher = self.datapath.watcher().unwrap().unwrap();
        assert_eq!(self.suspects(), []);
        watcher
    }

    /// Whether packets get through and plans take.
    fn works(&mut self, net: &Net, after: &str) {
        for from in [&net.client, &net.node] {
            for vip in [VIP4, VIP6] {
                assert!(from.run(|| tcp(at(vip))).is_ok(), "{vip} after {after}");
            }
        }
        let state = std::mem::take(&mut self.state);
        let mut smaller = state.clone();
        smaller.frontends.retain(|addr, _| addr.ip.to_string() != "10.96.0.7");
        self.datapath.apply(&diff(&state, &smaller, &Labels::new())).unwrap();
        self.datapath.apply(&diff(&smaller, &state, &Labels::new())).unwrap();
        self.state = state;
    }
}

fn lines(found: &[Drift]) -> String {
    found.iter().map(|drift| format!("{drift}\n")).collect()
}
