//! The order in which services change, so that no address has two owners on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use lb_core::{
    addr::{Family, Protocol},
    model::Change,
    name::ServiceName,
    service::{HostIps, Service, ServicePort},
};

/// A property that only one service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Address(IpAddr, u16, Protocol),
    NodePort(u16, Protocol, Family),
}

/// The changes that make `after` out of `before`: removals; then services that release an address which another one
/// takes over, without anything new; then services that come or change.
pub(crate) fn service_changes(
    before: &BTreeMap<ServiceName, Arc<Service>>,
    after: &BTreeMap<ServiceName, Arc<Service>>,
) -> Vec<Change> {
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    let mut changes: Vec<_> = removed.cloned().map(Change::RemoveService).collect();
    let changed: Vec<_> = after.iter().filter(|(name, service)| before.get(*name) != Some(*service)).collect();
    let given_up = given_up(before, after);
    let taken = changed.iter().flat_map(|(_, service)| claims(service));
    let givers: BTreeSet<_> = taken.filter_map(|claim| given_up.get(&claim)).copied().collect();
    let mut last = Vec::new();
    for (name, service) in changed {
        let kept = before.get(name).filter(|_| givers.contains(name)).map(|before| kept(before, service));
        // A service that only releases addresses needs no second change.
        if kept.as_ref() != Some(&**service) {
            last.push(Change::UpsertService(Service::clone(service)));
        }
        changes.extend(kept.map(Change::UpsertService));
    }
    changes.append(&mut last);
    changes
}

/// Properties that services no longer claim, with their former owners.
fn given_up<'a>(
    before: &'a BTreeMap<ServiceName, Arc<Service>>,
    after: &BTreeMap<ServiceName, Arc<Service>>,
) -> BTreeMap<Claim, &'a ServiceName> {
    let mut given_up = BTreeMap::new();
    for (name, old) in before {
        let new = after.get(name);
        if new == Some(old) {
            continue;
        }
        let still: BTreeSet<_> = new.into_iter().flat_map(|new| claims(new)).collect();
        given_up.extend(claims(old).filter(|claim| !still.contains(claim)).map(|claim| (claim, name)));
    }
    given_up
}

fn claims(service: &Service) -> impl Iterator<Item = Claim> {
    let addresses =
        ips(service).flat_map(|ip| service.ports.iter().map(move |port| Claim::Address(ip, port.port, port.protocol)));
    let families =
        [Family::V4, Family::V6].into_iter().filter(|it| service.node_port_family.is_none_or(|of| of == *it));
    let node_ports = families.flat_map(|family| {
        let claim = move |port: &ServicePort| port.node_port.map(|it| Claim::NodePort(it, port.protocol, family));
        service.ports.iter().filter_map(claim)
    });
    // Host ports are on the addresses of nodes as well.
    let host_families =
        [Family::V4, Family::V6].into_iter().filter(|it| host_family(service).is_none_or(|of| of == *it));
    let host_ports = host_families
        .filter(|_| service.host_ips.is_some())
        .flat_map(|family| service.ports.iter().map(move |port| Claim::NodePort(port.port, port.protocol, family)));
    addresses.chain(node_ports).chain(host_ports)
}

fn host_family(service: &Service) -> Option<Family> {
    match service.host_ips {
        Some(HostIps::One(ip)) => Some(Family::of(ip)),
        Some(HostIps::Every) | None => service.node_port_family,
    }
}

fn ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips].into_iter().flatten().copied()
}

/// `after` without anything that `before` did not have.
fn kept(before: &Service, after: &Service) -> Service {
    let had: BTreeSet<_> = ips(before).collect();
    let mut kept = after.clone();
    for ips in [&mut kept.cluster_ips, &mut kept.external_ips, &mut kept.load_balancer_ips] {
        ips.retain(|ip| had.contains(ip));
    }
    let is_same_family = match (before.node_port_family, after.node_port_family) {
        (Some(before), Some(after)) => before == after,
        (None, _) | (_, None) => true,
    };
    kept.node_port_family = after.node_port_family.or(before.node_port_family);
    kept.ports.retain_mut(|port| {
        let same = |old: &&ServicePort| (old.protocol, old.port) == (port.protocol, port.port);
        let Some(old) = before.ports.iter().find(same) else { return false };
        port.node_port = port.node_port.filter(|_| port.node_port == old.node_port && is_same_family);
        true
    });
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ips: &[&str], ports: &[u16]) -> Service {
        let mut service = Service::new(ServiceName::new("default", name));
        service.cluster_ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let port =
            |&port: &u16| ServicePort { name: port.to_string().into(), protocol: Protocol::Tcp, port, node_port: None };
        service.ports = ports.iter().map(port).collect();
        service
    }

    fn map(services: &[Service]) -> BTreeMap<ServiceName, Arc<Service>> {
        services.iter().map(|service| (service.name.clone(), Arc::new(service.clone()))).collect()
    }

    /// The changes in one word each, with the addresses of upserts.
    fn told(before: &[Service], after: &[Service]) -> Vec<String> {
        let told = |change| match change {
            Change::UpsertService(service) => {
                let ips: Vec<_> = ips(&service).map(|ip| ip.to_string()).collect();
                format!("{} {}", service.name.name(), ips.join(","))
            }
            Change::RemoveService(name) => format!("-{}", name.name()),
            other => panic!("{other:?}"),
        };
        service_changes(&map(before), &map(after)).into_iter().map(told).collect()
    }

    #[test]
    fn only_differences_are_told() {
        let (a, b) = (service("a", &["10.0.0.1"], &[80]), service("b", &["10.0.0.2"], &[80]));
        assert_eq!(told(&[], &[a.clone(), b.clone()]), ["a 10.0.0.1", "b 10.0.0.2"]);
        assert_eq!(told(&[a.clone(), b.clone()], &[a.clone(), b.clone()]), [""; 0]);
        assert_eq!(told(&[a.clone(), b.clone()], &[service("a", &["10.0.0.3"], &[80]), b]), ["a 10.0.0.3"]);
    }

    #[test]
    fn an_address_of_a_removed_service_is_free_before_it_is_claimed() {
        let before = [service("z", &["10.0.0.1"], &[80])];
        assert_eq!(told(&before, &[service("a", &["10.0.0.1"], &[80])]), ["-z", "a 10.0.0.1"]);
    }

    #[test]
    fn an_address_that_moves_is_given_up_first() {
        let before = [service("a", &["10.0.0.9"], &[80]), service("b", &["10.0.0.1"], &[80])];
        let after = [service("a", &["10.0.0.1"], &[80]), service("b", &["10.0.0.2"], &[80])];
        assert_eq!(told(&before, &after), ["b ", "a 10.0.0.1", "b 10.0.0.2"]);
    }

    #[test]
    fn who_only_gives_something_up_is_told_once() {
        let before = [service("a", &[], &[80]), service("b", &["10.0.0.1"], &[80])];
        let after = [service("a", &["10.0.0.1"], &[80]), service("b", &[], &[80])];
        assert_eq!(told(&before, &after), ["b ", "a 10.0.0.1"]);
    }

    #[test]
    fn two_services_can_swap_addresses() {
        let before = [service("a", &["10.0.0.1"], &[80, 81]), service("b", &["10.0.0.2"], &[80])];
        let after = [service("a", &["10.0.0.2"], &[80]), service("b", &["10.0.0.1"], &[80])];
        assert_eq!(told(&before, &after), ["a ", "b ", "a 10.0.0.2", "b 10.0.0.1"]);
    }

    #[test]
    fn a_port_that_moves_leaves_the_others_alone() {
        let before = [service("a", &["10.0.0.1"], &[80]), service("b", &["10.0.0.1"], &[81, 82])];
        let after = [service("a", &["10.0.0.1"], &[80, 81]), service("b", &["10.0.0.1"], &[82, 83])];
        let changes = service_changes(&map(&before), &map(&after));
        let ports: Vec<Vec<u16>> = changes
            .iter()
            .map(|change| match change {
                Change::UpsertService(service) => service.ports.iter().map(|port| port.port).collect(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ports, [vec![82], vec![80, 81], vec![82, 83]]);
    }

    #[test]
    fn node_ports_are_handed_over_too() {
        let with = |name: &str, ip: &str, node_port| {
            let mut service = service(name, &[ip], &[80]);
            service.ports[0].node_port = Some(node_port);
            service
        };
        let before = [with("a", "10.0.0.1", 30001), with("b", "10.0.0.2", 30002)];
        let after = [with("a", "10.0.0.1", 30002), with("b", "10.0.0.2", 30003)];
        let changes = service_changes(&map(&before), &map(&after));
        let Change::UpsertService(first) = &changes[0] else { panic!("{changes:?}") };
        assert_eq!((first.name.name(), first.ports[0].node_port), ("b", None));
        assert_eq!(changes.len(), 3);
    }

    #[test]
    fn node_ports_of_two_families_are_two() {
        let of = |name: &str, ip: &str, family| {
            let mut service = service(name, &[ip], &[80]);
            service.ports[0].node_port = Some(30001);
            service.node_port_family = Some(family);
            service
        };
        let before = [of("a", "10.0.0.1", Family::V4), of("b", "10.0.0.2", Family::V6)];
        let after = [of("a", "10.0.0.1", Family::V6), of("b", "10.0.0.2", Family::V4)];
        let changes = service_changes(&map(&before), &map(&after));
        assert_eq!(changes.len(), 4, "both release their port before the other one claims it: {changes:?}");
        let same = service_changes(&map(&before[..1]), &map(&before));
        assert_eq!(same.len(), 1, "the port of another family is nobody's: {same:?}");
    }
}
