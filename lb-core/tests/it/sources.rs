//! Source ranges: no source that a service keeps out reaches a backend.

use core::net::IpAddr;
use std::sync::Arc;

use lb_core::{
    addr::{Family, FrontendAddr, FrontendKind, Protocol, Scope},
    datapath::{Capabilities, Datapath as _, SocketCapability, SocketHash, SocketOwners},
    decision::{BackendQuery, Entry, FlowView, Packet, SourceRewrite, Verdict, WhyNot, decide, why_not},
    memory::MemoryDatapath,
    model::{Change, Degraded, Model, Settings},
    name::{NodeName, SourceName},
    node::NodeFacts,
    plan::diff,
    reconciler::Reconciler,
    service::{Algorithm, HostIps, Service, ServicePort, TrafficPolicy},
    sources::{RangePolicy, SourceRanges},
    state::{GuardedTraffic, State},
    time::Instant,
};
use proptest::{prelude::*, sample::select};

use crate::worlds::{backend, ip, port, ready, slice, web};

fn node() -> NodeFacts {
    NodeFacts {
        name: Some(NodeName::new("here")),
        ips: vec![ip("172.18.0.2"), ip("fd00:172::2")],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
    }
}

fn ranges(policy: RangePolicy, prefixes: &[&str]) -> Option<Arc<SourceRanges>> {
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap());
    Some(Arc::new(SourceRanges::new(policy, prefixes)))
}

/// Every kind of frontend in both families, on 80; and node port 30080.
fn everywhere(source_ranges: Option<Arc<SourceRanges>>) -> Service {
    Service {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        load_balancer_ips: vec![ip("20.0.0.1"), ip("fd00:20::1")],
        external_ips: vec![ip("192.0.2.1"), ip("2001:db8::1")],
        ports: vec![ServicePort { node_port: Some(30080), ..port("http", Protocol::Tcp, 80) }],
        host_ips: Some(HostIps::Every),
        source_ranges,
        ..web("a", "10.96.0.1")
    }
}

fn model(service: Service, capabilities: Capabilities) -> Model {
    let mut model = Model::new(Settings::default(), capabilities);
    model.apply(Change::SetNode(node())).unwrap();
    model.apply(Change::UpsertService(service)).unwrap();
    model.apply(Change::ReplaceEndpoints(slice("a", ["10.244.0.1", "10.244.1.1", "fd00:244::1"].map(ready)))).unwrap();
    model
}

fn allowing(prefixes: &[&str]) -> Model {
    model(everywhere(ranges(RangePolicy::Allow, prefixes)), Capabilities::all("model"))
}

fn packet(entry: Entry, source: &str, destination: &str) -> Packet {
    Packet {
        entry,
        protocol: Protocol::Tcp,
        source: ip(source),
        source_port: 40_000,
        destination: ip(destination),
        destination_port: 80,
    }
}

fn verdict(model: &Model, packet: &Packet) -> Verdict {
    decide(model, packet, &FlowView::default(), Instant::default()).verdict
}

fn is_forwarded(model: &Model, entry: Entry, source: &str, destination: &str) -> bool {
    match verdict(model, &packet(entry, source, destination)) {
        Verdict::Forward(_) => true,
        Verdict::Drop => false,
        other => panic!("{source} to {destination}: {other}"),
    }
}

/// Load balancer, external address, and host port.
const OUTER: [&str; 3] = ["20.0.0.1", "192.0.2.1", "172.18.0.2"];

#[test]
fn scenario_39_and_40_a_source_in_range_is_accepted_and_one_outside_is_dropped() {
    let model = allowing(&["203.0.113.0/24", "10.244.5.0/24"]);
    for to in OUTER {
        assert!(is_forwarded(&model, Entry::Uplink, "203.0.113.7", to));
        assert!(!is_forwarded(&model, Entry::Uplink, "198.51.100.7", to));
        assert!(is_forwarded(&model, Entry::PodDevice, "10.244.5.7", to));
        assert!(!is_forwarded(&model, Entry::PodDevice, "10.244.0.9", to), "a pod outside");
        assert!(!is_forwarded(&model, Entry::Socket, "10.244.0.9", to), "its socket");
    }
    let node_port = Packet { destination_port: 30080, ..packet(Entry::Uplink, "198.51.100.7", "172.18.0.2") };
    assert_eq!(verdict(&model, &node_port), Verdict::Drop);
}

#[test]
fn scenario_42_the_node_itself_and_the_address_itself_are_accepted() {
    let model = allowing(&["203.0.113.0/24"]);
    for to in OUTER {
        assert!(is_forwarded(&model, Entry::Socket, "172.18.0.2", to));
        assert!(is_forwarded(&model, Entry::Socket, to, to));
        assert!(!is_forwarded(&model, Entry::Uplink, "172.18.0.2", to), "somebody outside who says so");
    }
}

#[test]
fn scenario_43_a_whole_family_is_no_restriction_of_it() {
    let model = allowing(&["0.0.0.0/0", "10.0.0.0/8"]);
    assert!(is_forwarded(&model, Entry::Uplink, "198.51.100.7", "20.0.0.1"));
    assert!(!is_forwarded(&model, Entry::Uplink, "2001:db8::7", "fd00:20::1"), "the other family is not listed");
    let state = desired(&model);
    let guarded = |ip: &str| state.frontends[&FrontendAddr::new(self::ip(ip), 80, Protocol::Tcp)].guard.is_some();
    assert!(!guarded("20.0.0.1") && guarded("fd00:20::1"));
}

#[test]
fn a_deny_list_keeps_those_in_it_out() {
    let model = model(everywhere(ranges(RangePolicy::Deny, &["203.0.113.0/24"])), Capabilities::all("model"));
    for to in OUTER {
        assert!(!is_forwarded(&model, Entry::Uplink, "203.0.113.7", to));
        assert!(is_forwarded(&model, Entry::Uplink, "198.51.100.7", to));
    }
}

#[test]
fn ranges_of_one_service_leave_another_one_at_the_same_address_open() {
    let mut model = allowing(&["203.0.113.0/24"]);
    let other = Service {
        load_balancer_ips: vec![ip("20.0.0.1")],
        ports: vec![port("http", Protocol::Tcp, 8001)],
        ..web("b", "10.96.0.2")
    };
    model.apply(Change::UpsertService(other)).unwrap();
    model.apply(Change::ReplaceEndpoints(slice("b", [ready("10.244.0.1")]))).unwrap();
    for (entry, source) in [(Entry::Uplink, "198.51.100.7"), (Entry::PodDevice, "10.244.0.9")] {
        assert!(!is_forwarded(&model, entry, source, "20.0.0.1"));
        let open = Packet { destination_port: 8001, ..packet(entry, source, "20.0.0.1") };
        assert!(matches!(verdict(&model, &open), Verdict::Forward(_)), "{open}");
    }
}

#[test]
fn a_cluster_address_is_guarded_against_the_outside_only() {
    let model = allowing(&["203.0.113.0/24"]);
    assert!(is_forwarded(&model, Entry::Uplink, "203.0.113.7", "10.96.0.1"));
    assert!(!is_forwarded(&model, Entry::Uplink, "198.51.100.7", "10.96.0.1"));
    assert!(is_forwarded(&model, Entry::Uplink, "10.244.7.7", "10.96.0.1"), "a pod of another node");
    for (entry, source) in
        [(Entry::PodDevice, "10.244.0.9"), (Entry::Socket, "10.244.0.9"), (Entry::Socket, "172.18.0.2")]
    {
        assert!(is_forwarded(&model, entry, source, "10.96.0.1"));
    }
}

#[test]
fn an_established_flow_outlives_a_change_of_the_ranges() {
    let model = allowing(&["203.0.113.0/24"]);
    let flow = FlowView { established: Some(backend("10.244.0.1")), ..FlowView::default() };
    let packet = packet(Entry::Uplink, "198.51.100.7", "20.0.0.1");
    assert!(matches!(decide(&model, &packet, &flow, Instant::default()).verdict, Verdict::Forward(_)));
    let gone = FlowView { established: Some(backend("10.244.9.9")), ..FlowView::default() };
    let udp = Service {
        ports: vec![port("http", Protocol::Udp, 80)],
        ..everywhere(ranges(RangePolicy::Allow, &["203.0.113.0/24"]))
    };
    let model = self::model(udp, Capabilities::all("model"));
    let packet = Packet { protocol: Protocol::Udp, ..packet };
    assert_eq!(decide(&model, &packet, &gone, Instant::default()).verdict, Verdict::Drop, "it would have to move");
}

#[test]
fn a_pods_socket_that_must_be_checked_is_left_to_its_packets() {
    let capabilities = Capabilities::all("test")
        .with_sockets(SocketCapability::Connect { hashes: SocketHash::SocketCookie, whose: SocketOwners::All });
    let service =
        Service { algorithm: Some(Algorithm::Maglev), ..everywhere(ranges(RangePolicy::Allow, &["198.18.0.0/15"])) };
    let mut model = model(service, capabilities);
    // Outside of the cluster's prefixes, where a packet's source is translated and a socket's is not.
    let source = |entry, source, to| match verdict(&model, &packet(entry, source, to)) {
        Verdict::Forward(forward) => forward.source,
        other => panic!("{other}"),
    };
    assert!(matches!(source(Entry::Socket, "198.18.0.7", "20.0.0.1"), SourceRewrite::Translated { .. }));
    assert_eq!(source(Entry::Socket, "198.18.0.7", "10.96.0.1"), SourceRewrite::Kept);
    assert_eq!(source(Entry::Socket, "172.18.0.2", "20.0.0.1"), SourceRewrite::Kept);
    model.apply(Change::UpsertService(everywhere(None))).unwrap();
    let open = verdict(&model, &packet(Entry::Socket, "198.18.0.7", "20.0.0.1"));
    assert!(matches!(open, Verdict::Forward(forward) if forward.source == SourceRewrite::Kept));
}

#[test]
fn a_pods_socket_is_left_to_its_packets_where_sockets_of_the_node_alone_are_translated() {
    let hairpin = |whose| {
        let sockets = SocketCapability::Connect { hashes: SocketHash::SocketCookie, whose };
        let model = model(everywhere(None), Capabilities::all("test").with_sockets(sockets));
        ["10.244.0.7", "172.18.0.2"].map(|source| match verdict(&model, &packet(Entry::Socket, source, "20.0.0.1")) {
            Verdict::Forward(forward) => forward.hairpin_source == SourceRewrite::Kept,
            other => panic!("{other}"),
        })
    };
    assert_eq!(hairpin(SocketOwners::All), [true, true]);
    assert_eq!(hairpin(SocketOwners::Node), [false, true]);
}

#[test]
fn sockets_are_left_to_packets_where_the_source_says_which_backend_a_client_has() {
    let connect = SocketCapability::Connect { hashes: SocketHash::SocketCookie, whose: SocketOwners::All };
    let asks = |affinity_by_source, affinity| Service {
        algorithm: Some(Algorithm::Maglev),
        affinity,
        affinity_by_source,
        ..everywhere(None)
    };
    let sticky = Some(lb_core::affinity::Affinity::default());
    let leaves = |service: &Service, sockets| {
        let model = model(service.clone(), Capabilities::all("test").with_sockets(sockets));
        let leaves = desired(&model).frontends.values().map(|frontend| frontend.leaves_sockets).collect::<Vec<_>>();
        assert!(leaves.windows(2).all(|pair| pair[0] == pair[1]));
        leaves[0]
    };
    assert!(leaves(&asks(true, sticky), connect));
    assert!(!leaves(&asks(false, sticky), connect) && !leaves(&asks(true, None), connect));
    assert!(!leaves(&asks(true, sticky), SocketCapability::Packets), "it leaves them alone anyway");
    // The hash of a client is known where its packets are balanced, and is the same at every hook.
    let model = model(asks(true, sticky), Capabilities::all("test").with_sockets(connect));
    let choice = |entry, source: &str, to: &str| match verdict(&model, &packet(entry, source, to)) {
        Verdict::Forward(forward) => forward.choice,
        other => panic!("{other}"),
    };
    for source in ["10.244.0.7", "10.244.0.9"] {
        assert_eq!(choice(Entry::Socket, source, "20.0.0.1"), choice(Entry::PodDevice, source, "20.0.0.1"));
    }
    let own = model.node().ips[0].to_string();
    assert!(matches!(choice(Entry::Socket, &own, "20.0.0.1"), lb_core::decision::Choice::Exactly(_)));
}

#[test]
fn a_datapath_that_cannot_check_sources_lets_everybody_in_and_says_so() {
    let service = everywhere(ranges(RangePolicy::Allow, &["203.0.113.0/24"]));
    let model = model(service.clone(), Capabilities::all("test").with_source_ranges(false));
    assert!(is_forwarded(&model, Entry::Uplink, "198.51.100.7", "20.0.0.1"));
    assert!(model.degraded(&service).contains(&Degraded::SourceRanges));
    assert!(desired(&model).frontends.values().all(|frontend| frontend.guard.is_none()));
    let open = everywhere(ranges(RangePolicy::Allow, &["0.0.0.0/0", "::/0"]));
    assert!(!model.degraded(&open).contains(&Degraded::SourceRanges), "nothing is restricted");
}

#[test]
fn explain_names_the_range_and_the_sender() {
    let model = allowing(&["203.0.113.0/24"]);
    let says = |packet: &Packet| {
        let decision = decide(&model, packet, &FlowView::default(), Instant::default());
        let step = decision.steps.iter().find(|step| step.field == "source ranges").map(ToString::to_string);
        step.expect("a step about the ranges")
    };
    let out = packet(Entry::Uplink, "198.51.100.7", "20.0.0.1");
    assert_eq!(
        says(&out),
        "service default/a, source ranges: allow 203.0.113.0/24: 198.51.100.7 is in none of them: dropped"
    );
    let inside = packet(Entry::Uplink, "203.0.113.7", "20.0.0.1");
    assert_eq!(
        says(&inside),
        "service default/a, source ranges: allow 203.0.113.0/24: 203.0.113.7 is in 203.0.113.0/24"
    );
    let own = packet(Entry::Socket, "172.18.0.2", "20.0.0.1");
    assert_eq!(
        says(&own),
        "service default/a, source ranges: allow 203.0.113.0/24: 172.18.0.2 comes from a process of the node: let in whatever they say"
    );
    let of_a_pod = packet(Entry::PodDevice, "10.244.0.8", "10.96.0.1");
    let ranges = "service default/a, source ranges: allow 203.0.113.0/24: ";
    let own = says(&of_a_pod);
    assert_eq!(own.strip_prefix(ranges), Some("10.244.0.8 comes from inside of the cluster: let in whatever they say"));

    let decision = decide(&model, &out, &FlowView::default(), Instant::default());
    let query = BackendQuery { ip: ip("10.244.0.1"), port: None };
    let why = why_not(&desired(&model), &out, &FlowView::default(), &decision, query, Instant::default());
    assert_eq!(why, WhyNot::KeptOut { source: ip("198.51.100.7") });
    assert_eq!(
        why.to_string(),
        "the source ranges of the service keep 198.51.100.7 out, so no backend gets the packet"
    );
}

#[test]
fn both_scopes_of_a_frontend_are_guarded() {
    let local = Service {
        external_traffic_policy: TrafficPolicy::Local,
        ..everywhere(ranges(RangePolicy::Allow, &["203.0.113.0/24"]))
    };
    let state = desired(&model(local, Capabilities::all("model")));
    for scope in [Scope::External, Scope::Internal] {
        let addr = FrontendAddr { scope, ..FrontendAddr::new(ip("20.0.0.1"), 80, Protocol::Tcp) };
        let guard = state.frontends[&addr].guard.as_ref().unwrap();
        assert_eq!(guard.traffic, GuardedTraffic::All);
    }
}

/// The state that a datapath is given.
fn desired(model: &Model) -> State {
    datapath(model).observe().unwrap()
}

/// A datapath that carries what `model` wants.
fn datapath(model: &Model) -> MemoryDatapath {
    let mut reconciler = Reconciler::new(model.clone());
    let source = SourceName("test".into());
    reconciler.handle_change(Change::InitStart(source.clone())).unwrap();
    reconciler.handle_change(Change::SetNode(model.node().clone())).unwrap();
    let services: Vec<Service> = model.services().cloned().collect();
    services.into_iter().for_each(|service| reconciler.handle_change(Change::UpsertService(service)).unwrap());
    reconciler.handle_change(Change::InitDone(source)).unwrap();
    let mut datapath = MemoryDatapath::with_capabilities(model.capabilities().clone());
    reconciler.handle_observed(datapath.observe().unwrap());
    while let Some(plan) = reconciler.poll_plan(Instant::default()).unwrap() {
        datapath.apply(&plan).unwrap();
        reconciler.handle_applied(plan.id, Ok(()), Instant::default());
    }
    let empty = diff(datapath.state(), reconciler.desired(), &Default::default());
    assert!(empty.is_empty(), "what was written is what is read: {}", empty.summary());
    datapath
}

fn networks() -> impl Strategy<Value = ipnet::IpNet> {
    let v4 = (select(vec!["203.0.113.7", "198.51.100.0", "10.244.0.0", "172.18.0.2", "0.0.0.0"]), 0u8..=32);
    let v6 = (select(vec!["2001:db8::7", "fd00:244::", "::"]), 0u8..=128);
    prop_oneof![v4, v6].prop_map(|(ip, bits)| ipnet::IpNet::new(self::ip(ip), bits).unwrap())
}

fn services() -> impl Strategy<Value = Service> {
    let policy = || select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let ranges = (select(vec![RangePolicy::Allow, RangePolicy::Deny]), proptest::collection::vec(networks(), 0..4));
    (ranges, policy(), policy(), any::<bool>()).prop_map(|((range_policy, networks), external, internal, sticky)| {
        Service {
            external_traffic_policy: external,
            internal_traffic_policy: internal,
            affinity: sticky.then(Default::default),
            ..everywhere(Some(Arc::new(SourceRanges::new(range_policy, networks))))
        }
    })
}

/// Whether nobody but the ranges' own words may let this source in.
fn is_bound(kind: FrontendKind, packet: &Packet) -> bool {
    let node = node();
    let own =
        packet.entry == Entry::Socket && (node.ips.contains(&packet.source) || packet.source == packet.destination);
    let inside = packet.entry != Entry::Uplink || node.is_pod(packet.source);
    if kind == FrontendKind::ClusterIp { !inside } else { !own }
}

proptest! {
    /// Every frontend of a service, every way in, every source: whoever is not let in reaches no backend, and whoever is
    /// let in fares as if there were no ranges. The datapath in memory, which reads nothing but its state, says the same.
    #[test]
    fn no_source_escapes_the_ranges(
        service in services(),
        sources in proptest::collection::vec(
            select(vec![
                "203.0.113.7", "198.51.100.7", "10.244.0.9", "10.244.1.1", "172.18.0.2", "20.0.0.1", "127.0.0.1",
                "2001:db8::7", "fd00:244::1", "fd00:172::2", "2001:db9::1", "fd00:20::1",
            ]),
            1..6,
        ),
        entry in select(vec![Entry::Socket, Entry::PodDevice, Entry::Uplink]),
        record in any::<bool>(),
    ) {
        let guarded = model(service.clone(), Capabilities::all("model"));
        let open = model(Service { source_ranges: None, ..service.clone() }, Capabilities::all("model"));
        let mut datapath = datapath(&guarded);
        let ranges = service.source_ranges.clone().unwrap();
        let frontends: Vec<_> = guarded.frontends(&service).map(|frontend| (frontend.addr, frontend.kind)).collect();
        prop_assert_eq!(frontends.len(), 10, "of every kind, in both families");
        for (addr, kind) in frontends {
            let sources = sources.iter().map(|source| ip(source));
            for source in sources.filter(|source: &IpAddr| Family::of(*source) == addr.family()) {
                let packet = Packet {
                    entry,
                    protocol: addr.protocol,
                    source,
                    source_port: 40_000,
                    destination: addr.ip,
                    destination_port: addr.port,
                };
                let affinity = record.then(|| lb_core::affinity::AffinityRecord {
                    backend: backend("10.244.0.1"),
                    last_use: Instant::default(),
                });
                let flow = FlowView { affinity, ..FlowView::default() };
                let decide = |model| decide(model, &packet, &flow, Instant::default()).verdict;
                let expected = if is_bound(kind, &packet) && !ranges.admit(source) { Verdict::Drop } else { decide(&open) };
                prop_assert_eq!(decide(&guarded), expected.clone(), "{} {}", kind, packet);
                let asked = datapath.ask(&packet).unwrap().unwrap().verdict;
                let is_dropped = asked == lb_core::kernel::KernelVerdict::Drop;
                prop_assert_eq!(is_dropped, expected == Verdict::Drop, "{} {}: {}", kind, packet, asked);
            }
        }
    }
}
