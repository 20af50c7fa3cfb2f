//! Small worlds of services for property tests.

use core::{net::IpAddr, time::Duration};
use std::sync::Arc;

use lb_core::{
    addr::{BackendAddr, Family, Protocol},
    affinity::Affinity,
    endpoint::{AdminState, Conditions, Endpoint, EndpointSlice, SlicePort},
    health::{Health, HealthReport},
    model::{Change, Settings},
    name::{NodeName, ServiceName, SliceName, SourceName, ZoneName},
    node::NodeFacts,
    service::{Algorithm, HostIps, Service, ServicePort, TrafficPolicy},
    sources::{RangePolicy, SourceRanges},
    topology::{Hints, TrafficDistribution},
};
use proptest::{prelude::*, sample::select};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port: None }
}

/// A TCP service `default/NAME` on `address`:80, port name `http`.
pub(crate) fn web(name: &str, address: &str) -> Service {
    Service {
        cluster_ips: vec![ip(address)],
        ports: vec![port("http", Protocol::Tcp, 80)],
        ..Service::new(ServiceName::new("default", name))
    }
}

/// Ready endpoints of `default/NAME`, port name `http`, on 8080.
pub(crate) fn slice(name: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> EndpointSlice {
    EndpointSlice {
        name: SliceName::new("default", name),
        service: ServiceName::new("default", name),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.into_iter().collect(),
    }
}

pub(crate) fn ready(address: &str) -> Endpoint {
    Endpoint::new(ip(address))
}

/// The backend that [`slice`] makes of an address.
pub(crate) fn backend(address: &str) -> BackendAddr {
    BackendAddr::new(ip(address), 8080, Protocol::Tcp)
}

fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    let pool = ["10.96.0.1", "10.96.0.2", "fd00:96::1", "20.0.0.1", "172.18.0.1"].map(ip).to_vec();
    proptest::sample::subsequence(pool, 0..=2)
}

fn services() -> impl Strategy<Value = Service> {
    let name = select(vec!["a", "b", "c"]);
    let algorithm = select(vec![
        None,
        Some(Algorithm::Random),
        Some(Algorithm::RoundRobin),
        Some(Algorithm::Maglev),
        Some(Algorithm::LeastConnections),
    ]);
    let policies = (select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]), any::<bool>());
    let affinity = proptest::option::of((1u64..100, 0u8..=32));
    let ports = proptest::sample::subsequence(
        vec![
            port("http", Protocol::Tcp, 80),
            port("dns", Protocol::Udp, 53),
            port("dns-tcp", Protocol::Tcp, 53),
            port("sig", Protocol::Sctp, 8080),
        ],
        1..=3,
    );
    let node_port =
        proptest::option::of((30_000u16..30_002, proptest::option::of(select(vec![Family::V4, Family::V6]))));
    (name, addresses(), addresses(), ports, algorithm, policies, affinity, node_port, preferences()).prop_map(
        |(
            name,
            cluster_ips,
            external,
            mut ports,
            algorithm,
            (policy, external_is_lb),
            affinity,
            node_port,
            preferences,
        )| {
            let (traffic_distribution, panic_threshold, source, access) = preferences;
            let (host_ips, source_ranges) = access;
            let (node_port, node_port_family) = node_port.unzip();
            ports[0].node_port = node_port;
            let (load_balancer_ips, external_ips) =
                if external_is_lb { (external, vec![]) } else { (vec![], external) };
            let affinity = affinity.map(|(seconds, prefix_v4)| Affinity {
                timeout: Duration::from_secs(seconds),
                prefix_v4,
                ..Affinity::default()
            });
            Service {
                cluster_ips,
                external_ips,
                load_balancer_ips,
                ports,
                node_port_family: node_port_family.flatten(),
                host_ips,
                source_ranges: source_ranges.map(Arc::new),
                affinity,
                algorithm,
                internal_traffic_policy: policy,
                external_traffic_policy: policy,
                traffic_distribution,
                panic_threshold,
                source,
                ..Service::new(ServiceName::new("default", name))
            }
        },
    )
}

type Access = (Option<HostIps>, Option<SourceRanges>);

fn preferences() -> impl Strategy<Value = (Option<TrafficDistribution>, Option<u8>, Option<SourceName>, Access)> {
    let distributions =
        vec![None, Some(TrafficDistribution::PreferSameZone), Some(TrafficDistribution::PreferSameNode)];
    let sources = select(vec![None, Some(source("high")), Some(source("low"))]);
    (select(distributions), select(vec![None, Some(60)]), sources, access())
}

fn access() -> impl Strategy<Value = Access> {
    let host_ips = select(vec![None, None, Some(HostIps::Every), Some(HostIps::One(ip("172.18.0.1")))]);
    let prefixes = ["10.244.0.0/16", "203.0.113.0/24", "fd00::/8", "0.0.0.0/0"].map(|net| net.parse().unwrap());
    let ranges =
        (select(vec![RangePolicy::Allow, RangePolicy::Deny]), proptest::sample::subsequence(prefixes.to_vec(), 0..=3));
    (host_ips, proptest::option::of(ranges.prop_map(|(policy, prefixes)| SourceRanges::new(policy, prefixes))))
}

pub(crate) fn source(name: &str) -> SourceName {
    SourceName(name.into())
}

/// Settings under which the source `high` wins over others.
pub(crate) fn settings() -> Settings {
    Settings::default().with_priorities([(source("high"), 10), (source("low"), -10)])
}

fn health() -> impl Strategy<Value = HealthReport> {
    let health = select(vec![Health::Unknown, Health::Healthy, Health::Unhealthy, Health::Unhealthy]);
    (select(vec!["probe", "other"]), 1u8..=6, any::<bool>(), health).prop_map(|(name, n, is_dns, health)| {
        let (port, protocol) = if is_dns { (5353, Protocol::Udp) } else { (8080, Protocol::Tcp) };
        let backend = BackendAddr::new(ip(&format!("10.244.0.{n}")), port, protocol);
        HealthReport { source: source(name), backend, health }
    })
}

fn endpoints() -> impl Strategy<Value = Endpoint> {
    let address = (1u8..=6, any::<bool>())
        .prop_map(|(n, v6)| if v6 { ip(&format!("fd00:244::{n}")) } else { ip(&format!("10.244.0.{n}")) });
    let node = select(vec![None, Some("here"), Some("there")]);
    let admin = select(vec![
        AdminState::InService,
        AdminState::InService,
        AdminState::Draining { until: None },
        AdminState::Maintenance,
    ]);
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    let zone = || select(vec![None, Some("a"), Some("b")]).prop_map(|zone| zone.map(ZoneName::new));
    let hints = (zone(), select(vec![None, None, Some("here"), Some("there")])).prop_map(|(zone, node)| Hints {
        zones: zone.into_iter().collect(),
        nodes: node.map(NodeName::new).into_iter().collect(),
    });
    (address, node, zone(), hints, admin, conditions, 0u16..4).prop_map(
        |(ip, node, zone, hints, admin, (ready, serving, terminating), weight)| Endpoint {
            ip,
            node: node.map(NodeName::new),
            zone,
            hints,
            conditions: Conditions { ready, serving, terminating },
            admin,
            weight,
        },
    )
}

fn slices() -> impl Strategy<Value = EndpointSlice> {
    let names = (select(vec!["a", "b", "c"]), 0u8..2);
    (names, proptest::collection::vec(endpoints(), 0..4), 8080u16..8082).prop_map(
        |((service, n), endpoints, target)| {
            let port = |name: &str, protocol, port| SlicePort { name: name.into(), protocol, port };
            EndpointSlice {
                name: SliceName::new("default", &format!("{service}-{n}")),
                service: ServiceName::new("default", service),
                ports: vec![
                    port("http", Protocol::Tcp, target),
                    port("dns", Protocol::Udp, 5353),
                    port("dns-tcp", Protocol::Tcp, 5353),
                    port("sig", Protocol::Sctp, target),
                ],
                endpoints,
            }
        },
    )
}

fn nodes() -> impl Strategy<Value = NodeFacts> {
    (select(vec!["here", "there"]), any::<bool>()).prop_map(|(name, dual)| NodeFacts {
        name: Some(NodeName::new(name)),
        ips: if dual { vec![ip("172.18.0.1"), ip("fd00:172::1")] } else { vec![ip("172.18.0.1")] },
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
    })
}

/// One change of a small world in which services fight over a few addresses.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    let name = || select(vec!["a", "b", "c"]);
    prop_oneof![
        4 => services().prop_map(Change::UpsertService),
        1 => name().prop_map(|name| Change::RemoveService(ServiceName::new("default", name))),
        5 => slices().prop_map(Change::ReplaceEndpoints),
        1 => (name(), 0u8..2).prop_map(|(name, n)| Change::RemoveEndpoints(SliceName::new("default", &format!("{name}-{n}")))),
        1 => nodes().prop_map(Change::SetNode),
        1 => select(vec![None, Some("a"), Some("b")]).prop_map(|zone| Change::SetZone(zone.map(ZoneName::new))),
        1 => select(vec![vec![], vec!["20.0.0.0/24"], vec!["10.96.0.0/16"]])
            .prop_map(|nets| Change::SetNetworks(nets.into_iter().map(|net| net.parse().unwrap()).collect())),
        1 => select(vec![vec![], vec!["192.0.2.1"], vec!["20.0.0.1", "192.0.2.2"]])
            .prop_map(|ips| Change::SetLocalAddresses(ips.into_iter().map(|ip| ip.parse().unwrap()).collect())),
        2 => health().prop_map(Change::SetHealth),
        1 => health().prop_map(Change::RestoreHealth),
        1 => select(vec![Change::ForgetHealth(source("probe")), Change::InitDone(source("probe"))]),
    ]
}

pub(crate) fn history() -> impl Strategy<Value = Vec<Change>> {
    proptest::collection::vec(change(), 1..25)
}
