//! Random services: every way of choosing a backend, both families, with and without backends.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::{Family, Protocol},
    affinity::Affinity,
    endpoint::{Conditions, Endpoint, EndpointSlice, SlicePort},
    model::Change,
    name::{NodeName, ServiceName, SliceName},
    node::NodeFacts,
    service::{Algorithm, Service, ServicePort, TrafficPolicy},
    sources::{RangePolicy, SourceRanges},
    table::TableSize,
};

use crate::dice::Dice;

/// How many services there are.
pub(crate) const SERVICES: usize = 14;
/// Port of every frontend but those of the node's own addresses.
pub(crate) const PORT: u16 = 80;
/// Port of backends.
pub(crate) const BACKEND_PORT: u16 = 8080;
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

/// Port of a service on the node's own addresses.
pub(crate) fn node_address_port(number: usize) -> u16 {
    9_000 + number as u16
}

/// All services, in random states.
pub(crate) fn all(dice: &mut Dice, facts: &NodeFacts) -> Vec<Change> {
    let mut changes = Vec::new();
    for number in 0..SERVICES {
        changes.push(Change::UpsertService(service(dice, facts, number)));
        changes.extend(FAMILIES.map(|family| endpoints(dice, facts, number, family)));
    }
    changes
}

/// A change of one service: of its backends, or its end.
pub(crate) fn change(dice: &mut Dice, facts: &NodeFacts) -> Change {
    let (number, family) = (dice.below(SERVICES), dice.pick(&FAMILIES));
    if dice.chance(5) {
        return Change::RemoveService(name(number));
    }
    endpoints(dice, facts, number, family)
}

fn service(dice: &mut Dice, facts: &NodeFacts, number: usize) -> Service {
    let port = |protocol, port| ServicePort { name: port_name(protocol, port), protocol, port, node_port: None };
    let mut ports = vec![port(Protocol::Tcp, PORT), port(Protocol::Udp, PORT)];
    // An external address is the node's own: such a service has a port that no other one has there.
    let of_node = number < 2;
    if of_node {
        let own = node_address_port(number);
        ports = vec![port(Protocol::Tcp, own), port(Protocol::Udp, own)];
    }
    let sticky = Affinity {
        timeout: Duration::from_secs(86_400),
        prefix_v4: dice.pick(&[32, 24]),
        prefix_v6: dice.pick(&[128, 64]),
    };
    let source_ranges = dice.chance(25).then(|| ranges(dice).into());
    let policy = dice.pick(&[TrafficPolicy::Cluster, TrafficPolicy::Cluster, TrafficPolicy::Local]);
    Service {
        cluster_ips: FAMILIES.map(|family| cluster_ip(number, family)).to_vec(),
        external_ips: if of_node { facts.ips.clone() } else { Vec::new() },
        load_balancer_ips: FAMILIES.map(|family| ingress_ip(number, family)).to_vec(),
        ports,
        affinity: dice.chance(35).then_some(sticky),
        algorithm: Some(dice.pick(&[Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev])),
        table_size: TableSize::new(251).ok(),
        source_ranges,
        internal_traffic_policy: policy,
        ..Service::new(name(number))
    }
}

/// Some of the clients.
fn ranges(dice: &mut Dice) -> SourceRanges {
    let prefixes = ["10.244.0.0/24", "172.18.0.100/32", "198.51.100.0/24", "fd00:10:244::/64", "fd00:172:18::/64"];
    let policy = dice.pick(&[RangePolicy::Allow, RangePolicy::Deny]);
    let chosen: Vec<&str> = prefixes.into_iter().filter(|_| dice.chance(50)).collect();
    SourceRanges::new(policy, chosen.into_iter().map(|prefix| prefix.parse().unwrap()))
}

fn endpoints(dice: &mut Dice, facts: &NodeFacts, number: usize, family: Family) -> Change {
    let port = |protocol, port| SlicePort { name: port_name(protocol, port), protocol, port: BACKEND_PORT };
    let service_port = if number < 2 { node_address_port(number) } else { PORT };
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
    Change::ReplaceEndpoints(EndpointSlice {
        name: SliceName::new("test", &format!("s{number}-{family}")),
        service: name(number),
        ports: vec![port(Protocol::Tcp, service_port), port(Protocol::Udp, service_port)],
        endpoints,
    })
}

fn name(number: usize) -> ServiceName {
    ServiceName::new("test", &format!("s{number}"))
}

fn port_name(protocol: Protocol, port: u16) -> Arc<str> {
    format!("{protocol}-{port}").into()
}
