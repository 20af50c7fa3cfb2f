//! What others do to the rules and the routes is found, named and put right.

use std::time::{Duration, Instant};

use lb_core::{
    addr::Protocol,
    datapath::Datapath as _,
    decision::{Entry, Packet},
    drift::{Cause, Drift, Expected, Inspection},
    kernel::{Backends, KernelVerdict},
    state::{Answer, Target},
};
use lb_datapath_iptables::iptables::Variant;

use crate::world::client_ip;
use crate::{Bench, Place, frontend, frontends, labels, point, point_nowhere, program, socket, sticky};

const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(1_200);

/// What somebody does, how what it changed is called, and whether the watcher of iptables-legacy can notice.
const EDITS: [(&str, &str, bool); 18] = [
    ("4 -t nat -F", "rule IPv4 nat PREROUTING jump to LB-SERVICES missing", true),
    ("4 -t nat -F LB-SERVICES", "rule IPv4 nat LB-SERVICES rule 1 missing", true),
    ("4 -t nat -D LB-SERVICES 1", "rule IPv4 nat LB-SERVICES rule 1 missing", true),
    ("4 -t nat -I LB-SERVICES -d 10.96.0.1 -j RETURN", "rule IPv4 nat LB-SERVICES rule 1 extra", true),
    ("4 -t nat -F SVC", "rule IPv4 nat SVC rule 1 missing", true),
    ("4 -t nat -R SVC 1 -j RETURN", "rule IPv4 nat SVC rule 1 wrong", true),
    ("4 -t nat -F LB-MARK-MASQ", "rule IPv4 nat LB-MARK-MASQ rule 1 missing", true),
    ("6 -t nat -D OUTPUT -j LB-SERVICES", "rule IPv6 nat OUTPUT jump to LB-SERVICES missing", true),
    ("6 -F LB-FILTER", "rule IPv6 filter LB-FILTER rule 1 missing", true),
    ("4 -t nat -I PREROUTING -j ACCEPT", "rule IPv4 nat PREROUTING jump to LB-SERVICES wrong", true),
    ("6 -t nat -I POSTROUTING -s fd09::/64 -j RETURN", "rule IPv6 nat POSTROUTING jump to LB-POSTROUTING wrong", true),
    ("4 -I FORWARD -s 10.9.9.9 -j DROP", "rule IPv4 filter FORWARD jump to LB-FILTER wrong", true),
    (
        "4 -D FORWARD -m conntrack --ctstate INVALID -j LB-INVALID-FORWARD",
        "rule IPv4 filter FORWARD jump to LB-INVALID-FORWARD missing",
        true,
    ),
    ("4 -F LB-INVALID-TO-1", "rule IPv4 filter LB-INVALID-TO-1 rule 1 missing", true),
    ("4 -t nat -N LB-SVC-AAAAAAAAAAAAAAAA", "chain IPv4 nat LB-SVC-AAAAAAAAAAAAAAAA extra", true),
    ("ip route del blackhole 10.96.0.1", "route 10.96.0.1 in the main table missing", true),
    ("ip -6 rule del fwmark 0x6c620001", "route rules for refused packets missing", true),
    ("ip rule del iif lo lookup 26976", "route rule iif lo, IPv4 missing", true),
];

pub(crate) fn every_edit_is_found_and_repaired(variant: Variant) {
    let mut bench = drifting(variant);
    let expected: Vec<Drift> = Vec::new();
    assert_eq!(bench.inspect(Inspection::Everything), expected, "{}", bench.save());
    let mut watcher = bench.world.at(Place::Node, || bench.datapath.watcher()).unwrap().unwrap();
    let svc = bench.service_chain();
    for (edit, drift, noticed) in EDITS {
        assert_eq!(bench.inspect(Inspection::Suspects), expected, "before {edit}");
        let command = bench.command(edit, &svc);
        bench.world.sh(Place::Node, &command);
        let drift = drift.replace("SVC rule", &format!("{svc} rule"));
        let mut found = Vec::new();
        if noticed {
            assert!(watcher.wait(PATIENCE).unwrap(), "{command}");
            found = bench.inspect(Inspection::Suspects);
            assert!(found.iter().any(|found| found.to_string().starts_with(&drift)), "{command}: {drift}\n{found:#?}");
        }
        assert_eq!(bench.inspect(Inspection::Everything).len().max(found.len()), found.len(), "{command}");
        bench.repair(&found);
        assert_eq!(bench.inspect(Inspection::Everything), expected, "after {command}");
        assert!(!watcher.wait(Duration::ZERO).unwrap(), "a repair of our own wakes nobody: {command}");
        for addr in frontends() {
            assert!(bench.ask(addr.protocol, Place::Client, None, socket(addr)).is_ok(), "{addr} after {command}");
        }
        assert_eq!(bench.observe().frontends, bench.state.frontends, "{command}");
    }
}

pub(crate) fn the_watcher_sleeps_through_what_does_not_concern_us(variant: Variant) {
    let mut bench = drifting(variant);
    let mut watcher = bench.world.at(Place::Node, || bench.datapath.watcher()).unwrap().unwrap();
    let none: Vec<Drift> = Vec::new();
    assert_eq!(bench.inspect(Inspection::Suspects), none);
    bench.change(|state| point_nowhere(state, frontend(false, Protocol::Tcp), Target::Reject));
    assert!(!watcher.wait(SILENCE).unwrap(), "a plan of our own");
    if variant == Variant::Nft {
        // iptables-legacy shows no more than sizes, so that this wakes it, for nothing.
        bench.world.sh(Place::Node, "iptables-nft -t nat -N MINE; iptables-nft -t nat -A MINE -j RETURN; iptables-nft -t mangle -N LB-X; nft add table inet other
             iptables-nft -t nat -A PREROUTING -s 10.9.9.9 -j ACCEPT");
        assert!(!watcher.wait(SILENCE).unwrap(), "others' chains, tables and rules behind our jumps");
    }
    assert_eq!(bench.inspect(Inspection::Suspects), none);
    assert_eq!(bench.inspect(Inspection::Everything), none, "{}", bench.save());
    let start = Instant::now();
    watcher.waker().unwrap().wake();
    assert!(!watcher.wait(PATIENCE).unwrap() && start.elapsed() < PATIENCE, "the wait was ended");
}

pub(crate) fn a_flush_of_everything_is_named_as_one(variant: Variant) {
    let mut bench = drifting(variant);
    let flush = match variant {
        Variant::Nft => "nft flush ruleset".to_owned(),
        Variant::Legacy => {
            "for t in nat filter; do iptables-legacy -t $t -F; iptables-legacy -t $t -X; ip6tables-legacy -t $t -F; \
                            ip6tables-legacy -t $t -X; done"
                .to_owned()
        }
    };
    bench.world.sh(Place::Node, &flush);
    let found = bench.inspect(Inspection::Everything);
    assert!(!found.is_empty() && found.iter().all(|drift| drift.cause == Cause::Flushed), "{found:#?}");
    bench.repair(&found);
    assert_eq!(bench.inspect(Inspection::Everything), []);
    for (edit, cause) in
        [("ip route flush table 26976", Cause::Flushed), ("ip route del 10.96.0.1/32 table 26976", Cause::Edited)]
    {
        bench.world.sh(Place::Node, edit);
        let found = bench.inspect(Inspection::Everything);
        let routes: Vec<&Drift> = found.iter().filter(|drift| drift.object.contains("10.96.0.")).collect();
        assert!(!routes.is_empty() && routes.iter().all(|drift| drift.cause == cause), "{edit}: {found:#?}");
        bench.repair(&found);
    }
    for addr in frontends() {
        assert!(bench.ask(addr.protocol, Place::Client, None, socket(addr)).is_ok(), "{addr}");
    }
}

pub(crate) fn the_kernel_is_asked_about_a_packet(variant: Variant) {
    let mut bench = drifting(variant);
    let verdict = |bench: &mut Bench, addr| bench.datapath.ask(&packet(addr)).unwrap().unwrap().verdict;
    let addrs: Vec<lb_core::addr::FrontendAddr> = bench.state.frontends.keys().copied().collect();
    for addr in addrs {
        let expected = match bench.state.answer(&addr, 0) {
            Answer::Reject => KernelVerdict::Reject,
            Answer::Drop => KernelVerdict::Drop,
            Answer::Backends(some) => KernelVerdict::Forward { backends: Backends::MayTake(some), translated: None },
            other => panic!("{other:?}"),
        };
        assert_eq!(verdict(&mut bench, addr), expected, "{addr}");
    }
    let tcp = frontend(false, Protocol::Tcp);
    assert_eq!(verdict(&mut bench, lb_core::addr::FrontendAddr { port: 99, ..tcp }), KernelVerdict::Pass);
    let right = verdict(&mut bench, tcp);
    let svc = bench.service_chain();
    for edit in ["4 -t nat -F SVC", "4 -t nat -D LB-SERVICES 1", "4 -t nat -D PREROUTING -j LB-SERVICES"] {
        let command = bench.command(edit, &svc);
        bench.world.sh(Place::Node, &command);
        assert_ne!(verdict(&mut bench, tcp), right, "{command}");
        let found = bench.inspect(Inspection::Everything);
        bench.repair(&found);
        assert_eq!(verdict(&mut bench, tcp), right, "after {command}");
    }
}

/// Packets of a service, and of one that is refused.
pub(crate) fn rules_that_are_not_ours_are_named_by_ask(variant: Variant) {
    let mut bench = drifting(variant);
    let (tcp, svc) = (frontend(false, Protocol::Tcp), bench.service_chain());
    let refused = lb_core::addr::FrontendAddr { ip: "10.96.0.4".parse().unwrap(), ..tcp };
    for (edit, addr, named) in [
        ("4 -t nat -I PREROUTING 1 -j ACCEPT", tcp, "PREROUTING: rule 1, in front of the jump to LB-SERVICES"),
        ("4 -t nat -I POSTROUTING 1 -s 10.1.0.0/24 -j ACCEPT", tcp, "POSTROUTING: rule 1, in front of"),
        ("4 -t nat -I LB-SERVICES -d 10.96.0.1 -j RETURN", tcp, "chain LB-SERVICES are no longer those of lb"),
        ("4 -t nat -I SVC -j ACCEPT", tcp, "are no longer those of lb"),
        ("4 -t nat -F LB-MARK-MASQ", tcp, "chain LB-MARK-MASQ are no longer those of lb"),
        ("4 -t nat -F LB-MARK-SOURCE", tcp, "chain LB-MARK-SOURCE are no longer those of lb"),
        ("4 -t nat -F LB-POSTROUTING", tcp, "chain LB-POSTROUTING are no longer those of lb"),
        ("4 -t nat -D POSTROUTING -j LB-POSTROUTING", tcp, "chain POSTROUTING are no longer those of lb"),
        ("4 -t nat -F LB-MARK-REJECT", refused, "chain LB-MARK-REJECT are no longer those of lb"),
        ("4 -F LB-FILTER", refused, "chain LB-FILTER are no longer those of lb"),
        ("4 -I FORWARD -j ACCEPT", refused, "FORWARD: rule 1, in front of"),
    ] {
        let command = bench.command(edit, &svc);
        bench.world.sh(Place::Node, &command);
        let error = bench.datapath.ask(&packet(addr)).unwrap_err().report();
        assert!(error.contains(named) && error.contains("`lb drift`"), "{command}: {error}");
        let found = bench.inspect(Inspection::Everything);
        assert!(!found.is_empty(), "{command}");
        bench.repair(&found);
        assert!(bench.datapath.ask(&packet(addr)).is_ok(), "after {command}");
    }
    // What only looks at packets takes none away.
    let command = bench.command("4 -t nat -I PREROUTING 1 -j MARK --set-xmark 0x1/0x1", &svc);
    bench.world.sh(Place::Node, &command);
    assert!(bench.datapath.ask(&packet(tcp)).is_ok());
    assert_eq!(bench.inspect(Inspection::Everything), []);
}

fn packet(addr: lb_core::addr::FrontendAddr) -> Packet {
    Packet {
        entry: Entry::Uplink,
        protocol: addr.protocol,
        source: client_ip(addr.ip.is_ipv6()),
        source_port: 40_000,
        destination: addr.ip,
        destination_port: addr.port,
    }
}

/// Something of everything.
fn drifting(variant: Variant) -> Bench {
    let mut bench = Bench::new(variant);
    bench.change(|state| {
        frontends().for_each(|addr| point(state, addr, &[1, 2, 2], None));
        point(state, frontend(true, Protocol::Tcp), &[1, 2], sticky(Duration::from_secs(60)));
        let elsewhere =
            |ip: &str| lb_core::addr::FrontendAddr { ip: ip.parse().unwrap(), ..frontend(false, Protocol::Tcp) };
        point_nowhere(state, elsewhere("10.96.0.3"), Target::Drop);
        point_nowhere(state, elsewhere("10.96.0.4"), Target::Reject);
        state.node.cluster_cidrs = ["10.2.0.9/16", "fd02::/16", "0.0.0.0/0"].map(|cidr| cidr.parse().unwrap()).into();
        state.node.ips = vec!["10.2.1.1".parse().unwrap(), "fd02:1::1".parse().unwrap()];
        state.node.name = Some(lb_core::name::NodeName::new("node-1"));
    });
    bench
}

impl Bench {
    fn inspect(&mut self, inspection: Inspection) -> Vec<Drift> {
        let labels = labels(&self.state);
        let expected = Expected { state: &self.state, labels: &labels };
        self.datapath.inspect(expected, inspection).unwrap()
    }

    fn repair(&mut self, found: &[Drift]) {
        let labels = labels(&self.state);
        self.datapath.repair(Expected { state: &self.state, labels: &labels }, found).unwrap();
    }

    /// The chain of the frontend that is TCP over IPv4.
    fn service_chain(&self) -> String {
        let saved = self.save();
        let rule = saved.lines().find(|line| line.starts_with("-A LB-SERVICES -d 10.96.0.1/32 -p tcp")).unwrap();
        rule.split(' ').next_back().unwrap().to_owned()
    }

    fn command(&self, edit: &str, svc: &str) -> String {
        let edit = edit.replace("SVC ", &format!("{svc} ")).replace(" -F SVC", &format!(" -F {svc}"));
        match edit.split_once(' ').unwrap() {
            ("4", rest) => format!("{} {rest}", program("iptables", self.variant)),
            ("6", rest) => format!("{} {rest}", program("ip6tables", self.variant)),
            _ => edit,
        }
    }
}
