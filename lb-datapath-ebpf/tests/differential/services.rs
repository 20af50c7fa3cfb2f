//! Random services: every way of choosing a backend, every kind of frontend, both families, with and without backends.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::{Family, Protocol},
    affinity::Affinity,
    endpoint::{Conditions, Endpoint, EndpointSlice, SlicePort},
    model::{Change, Model},
    name::{NodeName, ServiceName, SliceName},
    node::NodeFacts,
    service::{Algorithm, HostIps, Service, ServicePort, ServiceType, TrafficPolicy},
    sources::{RangePolicy, SourceRanges},
    table::TableSize,
};

use crate::dice::Dice;

/// How many services there are.
pub(crate) const SERVICES: usize = 14;
/// Services whose external addresses are those of the node.
pub(crate) const OF_NODE: usize = 2;
/// Port of every frontend but those of the node's own addresses.
pub(crate) const PORT: u16 = 80;
/// Port of backends.
pub(crate) const BACKEND_PORT: u16 = 8080;
/// Protocols of services.
pub(crate) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// Pods with a host port.
pub(crate) const PODS: usize = 2;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Addresses of backends: pods of the node and of another one, a server beyond the router, and a few that the node has
/// no way to.
pub(crate) fn backends(family: Family) -> Vec<IpAddr> {
    let texts = match family {
        Family::V4 => {
            ["10.244.0.10", "10.244.0.11", "10.244.1.10", "10.244.1.11", "198.51.100.100", "10.244.66.6", "10.244.67.7"]
        }
        Family::V6 => [
            "fd00:10:244::10",
            "fd00:10:244::11",
            "fd00:10:244:1::10",
            "fd00:10:244:1::11",
            "fd00:198:51::100",
            "fd00:10:244:66::6",
            "fd00:10:244:67::7",
        ],
    };
    texts.map(|text| text.parse().unwrap()).to_vec()
}

/// Cluster address of a service.
pub(crate) fn cluster_ip(number: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, number as u8 + 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number as u16 + 1).into(),
    }
}

/// Ingress address of a service.
pub(crate) fn ingress_ip(number: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(20, 0, 20, number as u8 + 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x20, 0, 0x20, 0, 0, 0, number as u16 + 1).into(),
    }
}

/// External address of a service.
pub(crate) fn external_ip(number: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(20, 0, 30, number as u8 + 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x20, 0, 0x30, 0, 0, 0, number as u16 + 1).into(),
    }
}

/// Port of a service at its cluster address.
pub(crate) fn port(number: usize, protocol: Protocol) -> u16 {
    match protocol {
        _ if number < OF_NODE => 9_000 + number as u16,
        // No program can give an SCTP packet another one.
        Protocol::Sctp => BACKEND_PORT,
        Protocol::Tcp | Protocol::Udp => PORT,
    }
}

/// Port of the backends of a service that has this one.
fn backend_port(service_port: u16, protocol: Protocol) -> u16 {
    if protocol == Protocol::Sctp { service_port } else { BACKEND_PORT }
}

/// Node port of a service.
pub(crate) fn node_port(number: usize) -> u16 {
    30_000 + number as u16
}

/// Host port of a pod.
pub(crate) fn host_port(number: usize) -> u16 {
    9_500 + number as u16
}

/// All services, in random states.
pub(crate) fn all(dice: &mut Dice, facts: &NodeFacts) -> Vec<Change> {
    // Addresses on a link of the node may be those of hosts.
    let networks = if dice.chance(30) { vec!["20.0.20.0/24".parse().unwrap()] } else { Vec::new() };
    let mut changes = vec![Change::SetNetworks(networks)];
    for number in 0..SERVICES {
        changes.push(Change::UpsertService(service(dice, facts, number)));
        changes.extend(FAMILIES.map(|family| endpoints(dice, facts, number, family)));
    }
    for number in 0..PODS {
        changes.push(Change::UpsertService(pod_with_host_port(dice, facts, number)));
        changes.extend(FAMILIES.map(|family| endpoint_of_pod(dice, facts, number, family)));
    }
    changes
}

/// A change of one service: of its backends, of who may use it and how, or its end.
pub(crate) fn change(dice: &mut Dice, facts: &NodeFacts, model: &Model) -> Change {
    let (number, family) = (dice.below(SERVICES), dice.pick(&FAMILIES));
    match dice.below(20) {
        0 => Change::RemoveService(name(number)),
        1..6 => match model.service(&name(number)) {
            Some(service) => Change::UpsertService(with_other_rules(dice, service.clone())),
            None => endpoints(dice, facts, number, family),
        },
        6 => endpoint_of_pod(dice, facts, number % PODS, family),
        _ => endpoints(dice, facts, number, family),
    }
}

fn service(dice: &mut Dice, facts: &NodeFacts, number: usize) -> Service {
    let port = |protocol| ServicePort {
        name: port_name(protocol, number),
        protocol,
        port: port(number, protocol),
        node_port: number.is_multiple_of(2).then(|| node_port(number)),
    };
    let external = FAMILIES.map(|family| external_ip(number, family)).to_vec();
    let sticky = Affinity {
        timeout: Duration::from_secs(86_400),
        prefix_v4: dice.pick(&[32, 24]),
        prefix_v6: dice.pick(&[128, 64]),
    };
    let service = Service {
        cluster_ips: FAMILIES.map(|family| cluster_ip(number, family)).to_vec(),
        // Such a service has a port that no other one has there.
        external_ips: if number < OF_NODE { facts.ips.clone() } else { external },
        load_balancer_ips: FAMILIES.map(|family| ingress_ip(number, family)).to_vec(),
        // A frontend of SCTP at an address of the node would be its own backend there.
        ports: PROTOCOLS[..if number < OF_NODE { 2 } else { 3 }].iter().copied().map(port).collect(),
        affinity: dice.chance(35).then_some(sticky),
        algorithm: Some(dice.pick(&[
            Algorithm::Random,
            Algorithm::RoundRobin,
            Algorithm::Maglev,
            Algorithm::LeastConnections,
        ])),
        table_size: TableSize::new(251).ok(),
        ..Service::new(name(number))
    };
    with_other_rules(dice, service)
}

/// The same with other source ranges and traffic policies.
fn with_other_rules(dice: &mut Dice, service: Service) -> Service {
    const POLICIES: [TrafficPolicy; 3] = [TrafficPolicy::Cluster, TrafficPolicy::Cluster, TrafficPolicy::Local];
    Service {
        source_ranges: dice.chance(30).then(|| ranges(dice).into()),
        external_traffic_policy: dice.pick(&POLICIES),
        internal_traffic_policy: dice.pick(&POLICIES),
        ..service
    }
}

/// A pod with a host port, at every address of the node or at one.
fn pod_with_host_port(dice: &mut Dice, facts: &NodeFacts, number: usize) -> Service {
    let port = |protocol| ServicePort {
        name: port_name(protocol, number),
        protocol,
        port: host_port(number),
        node_port: None,
    };
    Service {
        kind: ServiceType::HostPort,
        host_ips: Some(if dice.chance(50) { HostIps::Every } else { HostIps::One(dice.pick(&facts.ips)) }),
        ports: PROTOCOLS.map(port).to_vec(),
        ..Service::new(pod_name(number))
    }
}

/// The pod itself, which may be ready or not.
fn endpoint_of_pod(dice: &mut Dice, facts: &NodeFacts, number: usize, family: Family) -> Change {
    let conditions = Conditions { ready: dice.chance(80), ..Conditions::READY };
    let endpoint = Endpoint { node: facts.name.clone(), conditions, ..Endpoint::new(backends(family)[number]) };
    slice(pod_name(number), number, |_| host_port(number), family, vec![endpoint])
}

/// Some of the clients.
fn ranges(dice: &mut Dice) -> SourceRanges {
    // Some clients are the first or the last one inside of a prefix, or the first one outside.
    let prefixes = [
        "10.244.0.0/24",
        "172.18.0.100/32",
        "172.18.0.100/31",
        "198.51.100.0/24",
        "203.0.113.0/29",
        "fd00:10:244::/64",
        "fd00:172:18::/64",
        "fd00:172:18::100/128",
        "2001:db8::/125",
    ];
    let policy = dice.pick(&[RangePolicy::Allow, RangePolicy::Deny]);
    let chosen: Vec<&str> = prefixes.into_iter().filter(|_| dice.chance(40)).collect();
    SourceRanges::new(policy, chosen.into_iter().map(|prefix| prefix.parse().unwrap()))
}

fn endpoints(dice: &mut Dice, facts: &NodeFacts, number: usize, family: Family) -> Change {
    let mut addrs = backends(family);
    // One that listens on the node itself.
    addrs.extend(facts.ips.iter().find(|ip| Family::of(**ip) == family));
    let count = dice.pick(&[0, 1, 1, 2, 3, 4]);
    let mut endpoints = Vec::new();
    for _ in 0..count {
        let ip = addrs.swap_remove(dice.below(addrs.len()));
        let remote = NodeName::new("elsewhere");
        let node = if dice.chance(40) { Some(remote) } else { facts.name.clone() };
        let conditions = match dice.below(10) {
            0 => Conditions { ready: false, serving: true, terminating: true },
            1 => Conditions { ready: false, serving: false, terminating: false },
            _ => Conditions::READY,
        };
        endpoints.push(Endpoint { node, conditions, weight: dice.pick(&[100, 100, 200, 0]), ..Endpoint::new(ip) });
    }
    slice(name(number), number, |protocol| port(number, protocol), family, endpoints)
}

fn slice(
    service: ServiceName,
    number: usize,
    service_port: impl Fn(Protocol) -> u16,
    family: Family,
    endpoints: Vec<Endpoint>,
) -> Change {
    let port = |protocol| SlicePort {
        name: port_name(protocol, number),
        protocol,
        port: backend_port(service_port(protocol), protocol),
    };
    Change::ReplaceEndpoints(EndpointSlice {
        name: SliceName::new("test", &format!("{}-{family}", service.name())),
        service,
        ports: PROTOCOLS.map(port).to_vec(),
        endpoints,
    })
}

fn pod_name(number: usize) -> ServiceName {
    ServiceName::new("test", &format!("pod{number}"))
}

fn name(number: usize) -> ServiceName {
    ServiceName::new("test", &format!("s{number}"))
}

fn port_name(protocol: Protocol, number: usize) -> Arc<str> {
    format!("{protocol}-{number}").into()
}
