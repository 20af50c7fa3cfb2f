//! The iptables backend with real packets, on both variants.
#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test")]

mod drift;
#[expect(dead_code, reason = "shared with the tests of the nftables backend")]
#[path = "../net/mod.rs"]
mod net;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Write as _},
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use drift::{
    a_flush_of_everything_is_named_as_one, every_edit_is_found_and_repaired, rules_that_are_not_ours_are_named_by_ask,
    the_kernel_is_asked_about_a_packet, the_watcher_sleeps_through_what_does_not_concern_us,
};
use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, Protocol},
    affinity::Affinity,
    datapath::Datapath as _,
    id::{BackendId, FrontendId, SetId},
    name::NodeName,
    node::NodeFacts,
    plan::{Labels, Op, Plan, diff},
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};
use lb_datapath_iptables::iptables::{IptablesConfig, IptablesDatapath, Variant, restore_input};
use net::PORT;
use world::{Place, Reply, World, backend_ip, client_ip, node_ip, other_client_ip};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

macro_rules! on_both_variants {
    ($($name:ident),* $(,)?) => {
        mod nft {
            $(#[test]
            #[ignore = "needs root: network namespaces and iptables-nft"]
            fn $name() {
                super::$name(super::Variant::Nft);
            })*
        }
        mod legacy {
            $(#[test]
            #[ignore = "needs root: network namespaces and iptables-legacy"]
            fn $name() {
                super::$name(super::Variant::Legacy);
            })*
        }
    };
}

on_both_variants! {
    every_protocol_and_family_reaches_every_backend,
    pods_keep_their_source,
    no_backend_means_refused_at_once,
    refusal_passes_strict_reverse_paths,
    a_policy_without_backends_means_silence,
    a_backend_reaches_itself_through_its_service,
    a_client_sticks_until_it_was_away_for_long,
    a_prefix_is_one_client,
    shares_follow_slots,
    a_fresh_instance_observes_what_was_applied,
    a_frontend_that_shrinks_leaves_no_chains,
    calls_from_elsewhere_go_to_the_namespace_that_it_was_opened_in,
    an_open_connection_survives_the_removal_of_its_backend,
    a_udp_flow_moves_when_its_backend_leaves,
    a_flush_by_others_is_noticed_and_repaired,
    a_killed_restore_leaves_all_or_nothing,
    a_hostile_label_changes_no_rule,
    what_cannot_be_carried_fails_alone,
    cleanup_leaves_nothing,
    every_edit_is_found_and_repaired,
    the_watcher_sleeps_through_what_does_not_concern_us,
    a_flush_of_everything_is_named_as_one,
    the_kernel_is_asked_about_a_packet,
    rules_that_are_not_ours_are_named_by_ask,
}

/// A world with a datapath on its node, and what the datapath should hold.
struct Bench {
    world: World,
    datapath: IptablesDatapath,
    variant: Variant,
    state: State,
}

impl Bench {
    fn new(variant: Variant) -> Self {
        let world = World::new();
        let datapath = world.at(Place::Node, || open(variant));
        Self { world, datapath, variant, state: State::default() }
    }

    /// Brings the datapath to what `edit` makes of the state.
    fn change(&mut self, edit: impl FnOnce(&mut State)) {
        let before = self.state.clone();
        edit(&mut self.state);
        self.state = whole(&self.state);
        let plan = diff(&before, &self.state, &labels(&self.state));
        let datapath = &mut self.datapath;
        self.world.at(Place::Node, || datapath.apply(&plan)).unwrap();
    }

    fn observe(&self) -> State {
        let variant = self.variant;
        self.world.at(Place::Node, || open(variant).observe()).unwrap()
    }

    /// All rules of both families.
    fn save(&self) -> String {
        let save = |name| self.world.sh(Place::Node, &format!("{}-save", program(name, self.variant)));
        save("iptables") + &save("ip6tables")
    }

    fn ask(&self, protocol: Protocol, place: Place, from: Option<IpAddr>, to: SocketAddr) -> std::io::Result<Reply> {
        match protocol {
            Protocol::Tcp => self.world.tcp(place, from, to),
            Protocol::Udp => self.world.udp(place, from, to),
            Protocol::Sctp => unreachable!("not carried"),
        }
    }

    /// Asks until both backends have answered; the sources that they saw.
    fn reaches_both(&self, protocol: Protocol, place: Place, from: Option<IpAddr>, to: SocketAddr) -> BTreeSet<IpAddr> {
        let mut seen = BTreeMap::new();
        for _ in 0..64 {
            let reply =
                self.ask(protocol, place, from, to).unwrap_or_else(|e| panic!("{protocol} {place:?} {to}: {e}"));
            seen.insert(reply.server, reply.source);
            if seen.len() == 2 {
                return seen.into_values().collect();
            }
        }
        panic!("{protocol} {place:?} {to}: only {seen:?}");
    }
}

fn open(variant: Variant) -> IptablesDatapath {
    IptablesDatapath::open(&IptablesConfig::default().with_variant(variant)).unwrap()
}

fn program(name: &str, variant: Variant) -> String {
    let suffix = match variant {
        Variant::Nft => "nft",
        Variant::Legacy => "legacy",
    };
    format!("{name}-{suffix}")
}

fn vip(v6: bool) -> IpAddr {
    if v6 { "fd96::1" } else { "10.96.0.1" }.parse().unwrap()
}

fn frontend(v6: bool, protocol: Protocol) -> FrontendAddr {
    FrontendAddr::new(vip(v6), 80, protocol)
}

fn socket(addr: FrontendAddr) -> SocketAddr {
    SocketAddr::new(addr.ip, addr.port)
}

/// All four: both families, both protocols.
fn frontends() -> impl Iterator<Item = FrontendAddr> {
    [false, true].into_iter().flat_map(|v6| PROTOCOLS.map(|protocol| frontend(v6, protocol)))
}

fn frontend_id(addr: FrontendAddr) -> FrontendId {
    FrontendId::new(u32::from(addr.protocol.number()) + if addr.ip.is_ipv4() { 100 } else { 200 }).unwrap()
}

fn backend(n: u8, addr: FrontendAddr) -> (BackendId, Backend) {
    let v6 = addr.ip.is_ipv6();
    let id = u32::from(n) + 10 * u32::from(addr.protocol.number()) + if v6 { 1000 } else { 0 };
    let addr = BackendAddr::new(backend_ip(n, v6), PORT, addr.protocol);
    (BackendId::new(id).unwrap(), Backend { addr, local: n == 1 })
}

/// Points `addr` at these backends, a slot per mention.
fn point(state: &mut State, addr: FrontendAddr, backends: &[u8], affinity: Option<Affinity>) {
    let slots: Arc<[BackendId]> = backends.iter().map(|&n| backend(n, addr).0).collect();
    for &n in backends {
        let (id, backend) = backend(n, addr);
        state.backends.insert(id, backend);
    }
    let set = BackendSet::new(Lookup::Random, slots);
    let known = state.sets.iter().find(|(_, known)| ***known == set).map(|(&id, _)| id);
    let next = state.sets.keys().next_back().map_or(1, |id| id.get() + 1);
    let id = known.unwrap_or_else(|| SetId::new(next).unwrap());
    state.sets.insert(id, Arc::new(set));
    state.frontends.insert(addr, Frontend { affinity, ..Frontend::new(frontend_id(addr), Target::Set(id)) });
}

fn point_nowhere(state: &mut State, addr: FrontendAddr, target: Target) {
    state.frontends.insert(addr, Frontend::new(frontend_id(addr), target));
}

/// `state` without what nothing refers to.
fn whole(state: &State) -> State {
    let mut state = state.clone();
    let used: BTreeSet<SetId> = state
        .frontends
        .values()
        .filter_map(|frontend| match frontend.target {
            Target::Set(id) => Some(id),
            Target::Reject | Target::Drop => None,
        })
        .collect();
    state.sets.retain(|id, _| used.contains(id));
    let used: BTreeSet<BackendId> = state.sets.values().flat_map(|set| set.slots.iter().copied()).collect();
    state.backends.retain(|id, _| used.contains(id));
    state
}

fn labels(state: &State) -> Labels {
    state.frontends.keys().map(|&addr| (addr, Arc::from("default/web:http"))).collect()
}

fn sticky(timeout: Duration) -> Option<Affinity> {
    Some(Affinity { timeout, ..Affinity::default() })
}

fn every_protocol_and_family_reaches_every_backend(variant: Variant) {
    let mut bench = Bench::new(variant);
    bench.change(|state| frontends().for_each(|addr| point(state, addr, &[1, 2], None)));
    for addr in frontends() {
        for place in [Place::Client, Place::Node] {
            let sources = bench.reaches_both(addr.protocol, place, None, socket(addr));
            let v6 = addr.ip.is_ipv6();
            assert_eq!(sources, BTreeSet::from([node_ip(1, v6), node_ip(2, v6)]), "{addr} from {place:?}");
        }
    }
}

fn pods_keep_their_source(variant: Variant) {
    let mut bench = Bench::new(variant);
    bench.change(|state| frontends().for_each(|addr| point(state, addr, &[1, 2], None)));
    let cidrs = ["192.0.2.0/24", "10.1.0.2/31", "2001:db8::/32", "fd01::2/127"];
    bench.change(|state| state.node.cluster_cidrs = cidrs.map(|cidr| cidr.parse().unwrap()).to_vec());
    for addr in frontends() {
        let v6 = addr.ip.is_ipv6();
        let sources = bench.reaches_both(addr.protocol, Place::Client, Some(client_ip(v6)), socket(addr));
        assert_eq!(sources, BTreeSet::from([client_ip(v6)]), "{addr}");
        let sources = bench.reaches_both(addr.protocol, Place::Node, None, socket(addr));
        assert_eq!(sources, BTreeSet::from([node_ip(1, v6), node_ip(2, v6)]), "{addr} from the node");
    }
}

fn no_backend_means_refused_at_once(variant: Variant) {
    let mut bench = Bench::new(variant);
    bench.change(|state| frontends().for_each(|addr| point_nowhere(state, addr, Target::Reject)));
    for addr in frontends() {
        for place in [Place::Client, Place::Node] {
            let start = Instant::now();
            let error = bench.ask(addr.protocol, place, None, socket(addr)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{addr} from {place:?}: {error}");
            assert!(start.elapsed() < world::PATIENCE, "{addr} from {place:?}");
        }
    }
    let addr = frontend(false, Protocol::Tcp);
    for _ in 0..50 {
        // Unlike ICMP errors, resets have no rate.
        let error = bench.world.tcp(Place::Client, None, socket(addr)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    bench.change(|state| frontends().for_each(|addr| point(state, addr, &[1], None)));
    for addr in frontends() {
        for place in [Place::Client, Place::Node] {
            assert_eq!(bench.ask(addr.protocol, place, None, socket(addr)).unwrap().server, "b1", "{addr}");
        }
    }
}

fn refusal_passes_strict_reverse_paths(variant: Variant) {
    let mut bench = Bench::new(variant);
    let command =
        "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.src_valid_mark=1 net.ipv4.fwmark_reflect=1";
    bench.world.sh(Place::Node, command);
    let addrs = PROTOCOLS.map(|protocol| frontend(false, protocol));
    bench.change(|state| addrs.iter().for_each(|&addr| point_nowhere(state, addr, Target::Reject)));
    for addr in addrs {
        let error = bench.ask(addr.protocol, Place::Client, None, socket(addr)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{addr}: {error}");
    }
}

fn a_policy_without_backends_means_silence(variant: Variant) {
    let mut bench = Bench::new(variant);
    bench.change(|state| frontends().for_each(|addr| point_nowhere(state, addr, Target::Drop)));
    for addr in frontends() {
        for place in [Place::Client, Place::Node] {
            let error = bench.ask(addr.protocol, place, None, socket(addr)).unwrap_err();
            let silence = match (addr.protocol, addr.family(), place) {
                // The call that sends a datagram says so.
                (Protocol::Udp, Family::V6, Place::Node) => [ErrorKind::PermissionDenied; 2],
                _ => [ErrorKind::TimedOut, ErrorKind::WouldBlock],
            };
            assert!(silence.contains(&error.kind()), "{addr} from {place:?}: {error}");
        }
    }
}

fn a_backend_reaches_itself_through_its_service(variant: Variant) {
    let mut bench = Bench::new(variant);
    bench.change(|state| {
        frontends().for_each(|addr| point(state, addr, &[1], None));
        state.node.cluster_cidrs = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    });
    for addr in frontends() {
        let reply = bench.ask(addr.protocol, Place::Backend(1), None, socket(addr)).unwrap();
        assert_eq!(reply, Reply { server: "b1".into(), source: node_ip(1, addr.ip.is_ipv6()) }, "{addr}");
        let reply = bench.ask(addr.protocol, Place::Backend(2), None, socket(addr)).unwrap();
        assert_eq!(reply, Reply { server: "b1".into(), source: backend_ip(2, addr.ip.is_ipv6()) }, "{addr}");
    }
}

fn a_client_sticks_until_it_was_away_for_long(variant: Variant) {
    let timeout = Duration::from_secs(2);
    let mut bench = Bench::new(variant);
    bench.change(|state| frontends().for_each(|addr| point(state, addr, &[1, 2], sticky(timeout))));
    for addr in frontends() {
        for place in [Place::Client, Place::Node] {
            let first = bench.ask(addr.protocol, place, None, socket(addr)).unwrap().server;
            for _ in 0..16 {
                assert_eq!(bench.ask(addr.protocol, place, None, socket(addr)).unwrap().server, first, "{addr}");
            }
        }
    }
    let addr = frontend(false, Protocol::Tcp);
    let before = bench.ask(addr.protocol, Place::Client, None, socket(addr)).unwrap().server;
    let other = |server: &str| if server == "b1" { 2 } else { 1 };
    bench.change(|state| point(state, addr, &[other(&before)], sticky(timeout)));
    let after = bench.ask(addr.protocol, Place::Client, None, socket(addr)).unwrap().server;
    assert_ne!(after, before, "the record of a backend that left is ignored");
    bench.change(|state| point(state, addr, &[1, 2], sticky(timeout)));
    for _ in 0..16 {
        let reply = bench.ask(addr.protocol, Place::Client, None, socket(addr)).unwrap();
        assert_eq!(reply.server, after, "and does not come back with the backend");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let away = Instant::now() + timeout + Duration::from_millis(50);
        while Instant::now() < away {
            std::thread::park_timeout(away - Instant::now());
        }
        if bench.ask(addr.protocol, Place::Client, None, socket(addr)).unwrap().server != after {
            break;
        }
        assert!(Instant::now() < deadline, "the record never ends");
    }
}

fn a_prefix_is_one_client(variant: Variant) {
    let mut bench = Bench::new(variant);
    let affinity = Some(Affinity { timeout: Duration::from_secs(600), prefix_v4: 24, prefix_v6: 64 });
    bench.change(|state| frontends().for_each(|addr| point(state, addr, &[1, 2], affinity)));
    for addr in frontends() {
        let v6 = addr.ip.is_ipv6();
        let first = bench.ask(addr.protocol, Place::Client, Some(client_ip(v6)), socket(addr)).unwrap().server;
        for _ in 0..12 {
            let reply = bench.ask(addr.protocol, Place::Client, Some(other_client_ip(v6)), socket(addr)).unwrap();
            assert_eq!(reply.server, first, "{addr}");
        }
    }
}

fn shares_follow_slots(variant: Variant) {
    let mut bench = Bench::new(variant);
    let addr = frontend(false, Protocol::Tcp);
    bench.change(|state| point(state, addr, &[1, 1, 1, 2], None));
    let draws = 400;
    let to_first = bench.world.at(Place::Client, || {
        let draw = |_: &i32| world::connect(None, socket(addr)).unwrap().1.server == "b1";
        (0..draws).filter(draw).count()
    });
    // Three quarters, five standard deviations either way: one failure in two million runs.
    assert!((257..=343).contains(&to_first), "{to_first} of {draws}");
}

fn a_fresh_instance_observes_what_was_applied(variant: Variant) {
    let mut bench = Bench::new(variant);
    assert_eq!(bench.observe(), State::default());
    bench.change(|state| {
        state.node = NodeFacts {
            name: Some(NodeName::new("node-1.example")),
            ips: ["10.2.1.1", "fd02:1::1", "10.2.2.1"].map(|ip| ip.parse().unwrap()).to_vec(),
            cluster_cidrs: ["fd01::/64", "10.1.0.7/24", "0.0.0.0/0"].map(|cidr| cidr.parse().unwrap()).to_vec(),
        };
        point(state, frontend(false, Protocol::Tcp), &[1, 2, 2, 1], None);
        point(state, frontend(true, Protocol::Tcp), &[1, 1, 2], sticky(Duration::from_millis(1500)));
        let affinity = Affinity { timeout: Duration::from_secs(10_800), prefix_v4: 0, prefix_v6: 56 };
        point(state, frontend(false, Protocol::Udp), &[2], Some(affinity));
        point_nowhere(state, frontend(true, Protocol::Udp), Target::Reject);
        point_nowhere(state, FrontendAddr::new(vip(true), 81, Protocol::Udp), Target::Drop);
    });
    assert_eq!(bench.observe(), bench.state);
    bench.datapath = bench.world.at(Place::Node, || open(variant));
    bench.change(|state| {
        point(state, frontend(false, Protocol::Tcp), &[1], None);
        point(state, frontend(true, Protocol::Udp), &[1, 2], None);
        state.frontends.remove(&frontend(false, Protocol::Udp));
    });
    assert_eq!(bench.observe(), bench.state);
    bench.change(|state| *state = State::default());
    assert_eq!(bench.observe(), State::default());
}

fn a_frontend_that_shrinks_leaves_no_chains(variant: Variant) {
    let mut bench = Bench::new(variant);
    let chains = |bench: &Bench, prefix: &str| bench.save().lines().filter(|line| line.starts_with(prefix)).count();
    bench.change(|state| frontends().for_each(|addr| point(state, addr, &[1, 2], sticky(Duration::from_secs(60)))));
    assert_eq!((chains(&bench, ":LB-SVC-"), chains(&bench, ":LB-SEP-")), (4, 8));
    bench.change(|state| frontends().for_each(|addr| point(state, addr, &[2], sticky(Duration::from_secs(60)))));
    assert_eq!((chains(&bench, ":LB-SVC-"), chains(&bench, ":LB-SEP-")), (4, 4));
    bench.change(|state| point_nowhere(state, frontend(false, Protocol::Tcp), Target::Reject));
    assert_eq!((chains(&bench, ":LB-SVC-"), chains(&bench, ":LB-SEP-")), (3, 3));
    bench.change(|state| state.frontends.clear());
    assert_eq!((chains(&bench, ":LB-SVC-"), chains(&bench, ":LB-SEP-")), (0, 0));
    assert_eq!(bench.world.at(Place::Node, recent_lists), 0);
}

fn calls_from_elsewhere_go_to_the_namespace_that_it_was_opened_in(variant: Variant) {
    let mut bench = Bench::new(variant);
    let addr = frontend(false, Protocol::Tcp);
    let mut wanted = State::default();
    point(&mut wanted, addr, &[1], None);
    bench.datapath.apply(&diff(&State::default(), &wanted, &labels(&wanted))).unwrap();
    assert_eq!(bench.datapath.observe().unwrap(), wanted);
    assert_eq!(bench.observe(), wanted);
    assert_eq!(bench.ask(Protocol::Tcp, Place::Client, None, socket(addr)).unwrap().server, "b1");
    assert!(bench.datapath.counters().unwrap().usage().unwrap().rules > 0);
    bench.datapath.cleanup().unwrap();
    assert!(!bench.save().contains("LB-"));
}

fn an_open_connection_survives_the_removal_of_its_backend(variant: Variant) {
    let mut bench = Bench::new(variant);
    let addr = frontend(false, Protocol::Tcp);
    bench.change(|state| point(state, addr, &[1], None));
    let (mut connection, _) = bench.world.at(Place::Client, || world::connect(None, socket(addr))).unwrap();
    bench.change(|state| point(state, addr, &[2], None));
    assert!(connection.is_alive());
    bench.change(|state| state.frontends.clear());
    assert!(connection.is_alive());
}

fn a_udp_flow_moves_when_its_backend_leaves(variant: Variant) {
    let mut bench = Bench::new(variant);
    for addr in [frontend(false, Protocol::Udp), frontend(true, Protocol::Udp)] {
        for place in [Place::Client, Place::Node] {
            let flow = bench.world.at(place, || world::udp_socket(None, socket(addr))).unwrap();
            for nowhere in [Target::Drop, Target::Reject] {
                bench.change(|state| point_nowhere(state, addr, nowhere));
                assert!(world::udp(&flow).is_err(), "nothing answers yet");
            }
            for n in [1, 2, 1] {
                bench.change(|state| point(state, addr, &[n], None));
                let reply = world::udp(&flow).unwrap_or_else(|e| panic!("{addr} from {place:?} to {n}: {e}"));
                assert_eq!(reply.server, format!("b{n}"), "{addr} from {place:?}");
            }
        }
    }
}

fn a_flush_by_others_is_noticed_and_repaired(variant: Variant) {
    let mut bench = Bench::new(variant);
    let addr = frontend(false, Protocol::Tcp);
    bench.change(|state| frontends().for_each(|addr| point(state, addr, &[1], None)));
    let program = program("iptables", variant);
    let wanted = bench.state.clone();
    let svc_of_tcp = |text: String| {
        let rule =
            text.lines().find(|line| line.starts_with("-A LB-SERVICES -d 10.96.0.1/32 -p tcp")).map(str::to_owned);
        rule.and_then(|rule| rule.split(' ').next_back().map(str::to_owned)).unwrap()
    };
    let svc = svc_of_tcp(bench.save());
    let cases = [
        &format!("{program} -t nat -F {svc}"),
        &format!("{program} -t nat -F PREROUTING"),
        &format!("{program} -F"),
        "ip route del blackhole 10.96.0.1",
    ];
    for case in cases {
        bench.world.sh(Place::Node, case);
        let mut datapath = bench.world.at(Place::Node, || open(variant));
        let observed = bench.world.at(Place::Node, || datapath.observe()).unwrap();
        assert!(!observed.frontends.contains_key(&addr), "{case}");
        assert!(observed.frontends.contains_key(&frontend(true, Protocol::Tcp)), "{case}");
        let plan = diff(&observed, &wanted, &labels(&wanted));
        bench.world.at(Place::Node, || datapath.apply(&plan)).unwrap();
        assert_eq!(bench.observe(), wanted, "{case}");
        assert_eq!(bench.ask(Protocol::Tcp, Place::Client, None, socket(addr)).unwrap().server, "b1", "{case}");
    }
}

fn a_killed_restore_leaves_all_or_nothing(variant: Variant) {
    let mut bench = Bench::new(variant);
    let frontends = 300;
    let mut state = State::default();
    for port in 1..=frontends {
        point(&mut state, FrontendAddr { port, ..frontend(false, Protocol::Tcp) }, &[1, 2], None);
    }
    let input = restore_input(&IptablesConfig::default(), Family::V4, &state, &Labels::new());
    let restore = |kill_after: Option<Duration>| {
        bench.world.at(Place::Node, || {
            let mut child = Command::new(program("iptables", variant) + "-restore")
                .args(["-w", "60", "--noflush"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let start = Instant::now();
            // A killed child reads no further.
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
            while kill_after.is_some_and(|limit| start.elapsed() < limit) && child.try_wait().unwrap().is_none() {
                std::thread::park_timeout(Duration::from_micros(200));
            }
            if kill_after.is_some() {
                child.kill().unwrap();
            }
            (child.wait().unwrap().success(), start.elapsed())
        })
    };
    let (done, whole) = restore(None);
    assert!(done);
    let mut killed = 0;
    for step in 1..=24 {
        let datapath = &mut bench.datapath;
        bench.world.at(Place::Node, || datapath.cleanup()).unwrap();
        killed += u32::from(!restore(Some(whole * step / 24)).0);
        let text = bench.world.sh(Place::Node, &format!("{}-save -t nat", program("iptables", variant)));
        let rules = text.lines().filter(|line| line.starts_with("-A LB-SERVICES ")).count();
        assert!([0, usize::from(frontends)].contains(&rules), "{rules} of {frontends} after {step}/24 of {whole:?}");
    }
    assert!(killed > 0, "no restore was killed in time");
}

fn a_hostile_label_changes_no_rule(variant: Variant) {
    let mut bench = Bench::new(variant);
    let addr = frontend(false, Protocol::Tcp);
    let mut wanted = State::default();
    point(&mut wanted, addr, &[1], None);
    let hostile: Labels = [(addr, Arc::from("x\" -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n*filter\n\""))].into();
    let plan = diff(&State::default(), &wanted, &hostile);
    let datapath = &mut bench.datapath;
    bench.world.at(Place::Node, || datapath.apply(&plan)).unwrap();
    assert_eq!(bench.observe(), wanted);
    assert!(!bench.save().contains("ACCEPT\n"), "{}", bench.save());
}

fn what_cannot_be_carried_fails_alone(variant: Variant) {
    let mut bench = Bench::new(variant);
    let good = frontend(false, Protocol::Tcp);
    let sctp = FrontendAddr::new(vip(false), 80, Protocol::Sctp);
    let mut wanted = State::default();
    point(&mut wanted, good, &[1], None);
    let only_good = wanted.clone();
    point_nowhere(&mut wanted, sctp, Target::Reject);
    let plan = diff(&State::default(), &wanted, &labels(&wanted));
    let datapath = &mut bench.datapath;
    let error = bench.world.at(Place::Node, || datapath.apply(&plan)).unwrap_err();
    let failed: Vec<_> = error.failed.iter().map(|(addr, cause)| (*addr, cause.kind())).collect();
    assert_eq!(failed, [(sctp, lb_core::datapath::ErrorKind::Unsupported)]);
    assert!(error.unknown.is_none());
    assert_eq!(error.applied, plan.ops.len() - 1);
    assert_eq!(bench.observe(), only_good);
    let again = Plan { ops: vec![Op::RemoveFrontend(sctp)], ..Plan::default() };
    let datapath = &mut bench.datapath;
    bench.world.at(Place::Node, || datapath.apply(&again)).unwrap();
}

fn cleanup_leaves_nothing(variant: Variant) {
    let mut bench = Bench::new(variant);
    bench.change(|state| {
        frontends().for_each(|addr| point(state, addr, &[1, 2], sticky(Duration::from_secs(60))));
        point_nowhere(state, FrontendAddr::new(vip(false), 81, Protocol::Tcp), Target::Reject);
    });
    let usage = bench.datapath.counters().unwrap();
    let rules = bench.world.at(Place::Node, || usage.usage()).unwrap().rules;
    // Per frontend: its own rule, the mark, two known clients and two draws, two rules for each backend.
    assert!(rules > 4 * 10, "{rules}");
    let datapath = &mut bench.datapath;
    bench.world.at(Place::Node, || datapath.cleanup()).unwrap();
    assert!(!bench.save().contains("LB-"), "{}", bench.save());
    assert_eq!(bench.world.at(Place::Node, || usage.usage()).unwrap().rules, 0);
    assert_eq!(bench.world.at(Place::Node, recent_lists), 0);
    for command in ["ip -4 rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all"] {
        let text = bench.world.sh(Place::Node, command);
        assert!(!text.contains("2697") && !text.contains("blackhole"), "{command}: {text}");
    }
    let datapath = &mut bench.datapath;
    bench.world.at(Place::Node, || datapath.cleanup()).expect("nothing to clean is no error");
    assert_eq!(bench.observe(), State::default());
}

fn recent_lists() -> usize {
    std::fs::read_dir("/proc/thread-self/net/xt_recent").map_or(0, |lists| lists.count())
}
