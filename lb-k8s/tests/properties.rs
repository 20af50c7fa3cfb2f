//! Random valid services and slices survive the way into a manifest and back, and differences lead to their target.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::{Family, Protocol},
    affinity::Affinity,
    datapath::Capabilities,
    endpoint::{Conditions, Endpoint, EndpointSlice, SlicePort},
    model::{Change, Model, Settings},
    name::{NodeName, ServiceName, SliceName, SourceName, ZoneName},
    service::{Algorithm, DrainPolicy, Service, ServicePort, ServiceType, TrafficPolicy},
    sources::{RangePolicy, SourceRanges},
    table::TableSize,
    topology::{Hints, TrafficDistribution},
};
use lb_ipam::IpNet;
use lb_k8s::{Manifests, Snapshot, write};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
    sample::{select, subsequence},
};

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn label() -> impl Strategy<Value = String> {
    // Names that YAML would take for something else without quotes are among them.
    prop_oneof![
        "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?",
        select(vec!["null", "true", "no", "1e3", "0x1"]).prop_map(Into::into)
    ]
}

fn affinity() -> impl Strategy<Value = Affinity> {
    (1..=86_400u64, 0..=32u8, 0..=128u8).prop_map(|(seconds, prefix_v4, prefix_v6)| Affinity {
        timeout: Duration::from_secs(seconds),
        prefix_v4,
        prefix_v6,
    })
}

fn tuning() -> impl Strategy<Value = (Option<Algorithm>, Option<TableSize>)> {
    let size = select(TableSize::PRIMES.to_vec()).prop_map(|slots| TableSize::new(slots).unwrap());
    prop_oneof![
        select(vec![None, Some(Algorithm::Random), Some(Algorithm::RoundRobin), Some(Algorithm::LeastConnections)])
            .prop_map(|algorithm| (algorithm, None)),
        (select(vec![None, Some(Algorithm::Maglev)]), option::of(size)),
    ]
}

/// Ports with unique names, numbers and node ports.
fn ports(node_ports: bool) -> impl Strategy<Value = Vec<ServicePort>> {
    let port = (protocol(), 1..=u16::MAX, option::of(1..=u16::MAX));
    btree_map(label(), port, 1..4).prop_map(move |ports| {
        let (mut numbers, mut node_numbers) = (BTreeSet::new(), BTreeSet::new());
        let ports = ports.into_iter().map(|(name, (protocol, port, node_port))| {
            let node_port = node_port.filter(|&number| node_ports && node_numbers.insert(number));
            ServicePort { name: Arc::from(name), protocol, port, node_port }
        });
        ports.filter(|port| numbers.insert((port.protocol, port.port))).collect()
    })
}

/// Addresses of one /24 and one /112 each, so that the kinds never meet.
fn addresses(network: u8, count: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    let v4 = move |host: u8| IpAddr::from([10, network, 0, host]);
    let v6 = move |host: u8| IpAddr::from([0xfd00, network.into(), 0, 0, 0, 0, 0, host.into()]);
    btree_set((any::<bool>(), 1..255u8), 0..=count)
        .prop_map(move |hosts| hosts.into_iter().map(|(is_v4, host)| if is_v4 { v4(host) } else { v6(host) }).collect())
}

fn cluster_ips() -> impl Strategy<Value = Vec<IpAddr>> {
    let all = vec![IpAddr::from([10, 96, 0, 1]), IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, 1])];
    subsequence(all, 0..=2).prop_shuffle()
}

prop_compose! {
    fn service()(
        (namespace, name) in (label(), label()),
        (cluster_ips, external_ips, load_balancer_ips) in (cluster_ips(), addresses(1, 2), addresses(2, 2)),
        affinity in option::of(affinity()),
        (algorithm, table_size) in tuning(),
        (external, internal) in (policy(), policy()),
        (traffic_distribution, drain, panic_threshold) in (distribution(), drain(), option::of(0..=100u8)),
        source_ranges in option::of(source_ranges()),
    )(
        ports in ports(!cluster_ips.is_empty()),
        (namespace, name, cluster_ips, external_ips, load_balancer_ips) in
            Just((namespace, name, cluster_ips, external_ips, load_balancer_ips)),
        (affinity, algorithm, table_size, external, internal) in
            Just((affinity, algorithm, table_size, external, internal)),
        (traffic_distribution, drain, panic_threshold) in Just((traffic_distribution, drain, panic_threshold)),
        health_check_node_port in option::of(1..=u16::MAX),
        by_source in proptest::bool::ANY,
        source_ranges in Just(source_ranges),
    ) -> Service {
        let kind = kind(&cluster_ips, &external_ips, &load_balancer_ips, &ports);
        Service {
            kind, traffic_distribution, drain, panic_threshold,
            cluster_ips, external_ips, load_balancer_ips, ports, affinity, algorithm, table_size, source_ranges,
            external_traffic_policy: external,
            internal_traffic_policy: internal,
            health_check_node_port,
            affinity_by_source: by_source && affinity.is_some(),
            ..Service::new(ServiceName::new(&namespace, &name))
        }
    }
}

/// The type that a manifest of these addresses has.
fn kind(cluster: &[IpAddr], external: &[IpAddr], balanced: &[IpAddr], ports: &[ServicePort]) -> ServiceType {
    if ports.is_empty() {
        ServiceType::Headless
    } else if !balanced.is_empty() {
        ServiceType::LoadBalancer
    } else if ports.iter().any(|port| port.node_port.is_some()) {
        ServiceType::NodePort
    } else if cluster.is_empty() && external.is_empty() {
        ServiceType::Headless
    } else {
        ServiceType::ClusterIp
    }
}

fn distribution() -> impl Strategy<Value = Option<TrafficDistribution>> {
    option::of(select(vec![TrafficDistribution::PreferSameZone, TrafficDistribution::PreferSameNode]))
}

fn source_ranges() -> impl Strategy<Value = Arc<SourceRanges>> {
    let v4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(ip, bits)| IpNet::new(ip.into(), bits).unwrap());
    let v6 = (1..=u16::MAX, any::<[u16; 7]>(), 0..=128u8).prop_map(|(first, rest, bits)| {
        let mut segments = [first; 8];
        segments[1..].copy_from_slice(&rest);
        IpNet::new(IpAddr::from(segments), bits).unwrap()
    });
    let policy = select(vec![RangePolicy::Allow, RangePolicy::Deny]);
    (policy, vec(prop_oneof![v4, v6], 1..5))
        .prop_map(|(policy, prefixes)| Arc::new(SourceRanges::new(policy, prefixes)))
}

fn drain() -> impl Strategy<Value = DrainPolicy> {
    let time = (1..=86_400u64).prop_map(|seconds| DrainPolicy::For(Duration::from_secs(seconds)));
    prop_oneof![Just(DrainPolicy::Keep), Just(DrainPolicy::Cut), time]
}

fn zone() -> impl Strategy<Value = ZoneName> {
    label().prop_map(|name| ZoneName::new(&name))
}

fn hints() -> impl Strategy<Value = Hints> {
    let node = label().prop_map(|name| NodeName::new(&name));
    (vec(zone(), 0..3), vec(node, 0..3)).prop_map(|(zones, nodes)| Hints { zones, nodes })
}

fn conditions() -> impl Strategy<Value = Conditions> {
    any::<(bool, bool, bool)>().prop_map(|(ready, serving, terminating)| Conditions { ready, serving, terminating })
}

prop_compose! {
    fn slice()(
        (namespace, name, service) in (label(), label(), label()),
        ips in addresses(3, 20),
        family in select(vec![Family::V4, Family::V6]),
        details in vec((option::of(label()), conditions(), option::of(zone()), hints()), 20),
        weight in any::<u16>(),
        ports in btree_map((label(), 0..3usize), 1..=u16::MAX, 0..3),
    ) -> EndpointSlice {
        let weight = if ips.iter().any(|&ip| Family::of(ip) == family) { weight } else { Endpoint::DEFAULT_WEIGHT };
        let of_family = ips.into_iter().filter(|&ip| Family::of(ip) == family);
        let endpoints = of_family.zip(details).map(|(ip, (node, conditions, zone, hints))| Endpoint {
            conditions, weight, zone, hints, node: node.as_deref().map(NodeName::new), ..Endpoint::new(ip)
        });
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let ports = ports.into_iter().map(|((name, protocol), port)| SlicePort {
            name: name.into(), protocol: protocols[protocol], port,
        });
        EndpointSlice {
            name: SliceName::new(&namespace, &name),
            service: ServiceName::new(&namespace, &service),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        }
    }
}

/// Services that share a few addresses without ever claiming one together: which service has which address.
fn owners() -> impl Strategy<Value = BTreeMap<u8, (u8, Vec<u16>)>> {
    btree_map(0..5u8, (0..4u8, subsequence(vec![80, 81, 82], 1..=3)), 0..5)
}

/// One service per owner, with the addresses that it owns.
fn manifests(owners: &BTreeMap<u8, (u8, Vec<u16>)>) -> String {
    let mut services: BTreeMap<u8, Service> = BTreeMap::new();
    for (address, (owner, ports)) in owners {
        let name = ServiceName::new("default", &format!("service-{owner}"));
        let service = services.entry(*owner).or_insert_with(|| Service::new(name));
        service.external_ips.push([192, 0, 2, *address + 1].into());
        service.ports = ports
            .iter()
            .map(|&port| ServicePort { name: port.to_string().into(), protocol: Protocol::Tcp, port, node_port: None })
            .collect();
    }
    let endpoints = [Endpoint::new([10, 0, 0, 1].into())];
    let write = |service| write::service_with_endpoints(service, &endpoints, |port| port.port).unwrap();
    services.values().map(write).collect()
}

fn parse(text: &str) -> Snapshot {
    let snapshot = Snapshot::parse("x.yaml", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert!(snapshot.report().refused.is_empty(), "{:?}\n{text}", snapshot.report());
    snapshot
}

proptest! {
    #[test]
    fn services_survive_the_way_through_a_manifest(service in service()) {
        let text = write::service(&service).unwrap();
        let snapshot = parse(&text);
        prop_assert_eq!(snapshot.services().collect::<Vec<_>>(), [&service], "{}", text);
    }

    #[test]
    fn slices_survive_the_way_through_a_manifest(slice in slice()) {
        let text = write::endpoint_slice(&slice).unwrap();
        let snapshot = parse(&text);
        prop_assert_eq!(snapshot.endpoint_slices().collect::<Vec<_>>(), [&slice], "{}", text);
    }

    #[test]
    fn differences_lead_to_their_target_without_a_conflict(history in vec(owners(), 1..6)) {
        let mut source = Manifests::new(SourceName("manifests".into()));
        let mut model = Model::new(Settings::default(), Capabilities::all("memory"));
        let mut slices: BTreeMap<SliceName, EndpointSlice> = BTreeMap::new();
        for owners in history {
            let text = manifests(&owners);
            for change in source.update(Ok(parse(&text))).changes {
                match &change {
                    Change::ReplaceEndpoints(slice) => drop(slices.insert(slice.name.clone(), slice.clone())),
                    Change::RemoveEndpoints(name) => drop(slices.remove(name)),
                    _ => {}
                }
                prop_assert!(model.apply(change.clone()).is_ok(), "{:?} was refused", change);
            }
            let target = parse(&text);
            prop_assert!(slices.values().eq(target.endpoint_slices()));
            let frontends: usize =
                target.services().map(|service| service.external_ips.len() * service.ports.len()).sum();
            prop_assert_eq!(model.owners().count(), frontends);
            for (addr, owner) in model.owners() {
                let IpAddr::V4(ip) = addr.ip else { panic!("{addr}") };
                let (number, _) = &owners[&(ip.octets()[3] - 1)];
                prop_assert_eq!(owner.port.service.name(), format!("service-{number}"));
            }
        }
    }

    #[test]
    fn noise_never_panics(text in "(?s)[-a-z0-9: \\[\\]{},&*!|>'\"#%\n\u{1b}]{0,200}") {
        let _ = Snapshot::parse("x.yaml", &text);
        let _ = Snapshot::parse("x.json", &text);
    }

    #[test]
    fn a_valid_manifest_with_noise_in_it_never_panics(service in service(), at in any::<prop::sample::Index>(), noise in ".{1,4}") {
        let mut text = write::service(&service).unwrap();
        let at = (0..=at.index(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap();
        text.insert_str(at, &noise);
        if let Err(error) = Snapshot::parse("x.yaml", &text) {
            prop_assert!(error.to_string().starts_with("x.yaml"));
        }
    }
}
