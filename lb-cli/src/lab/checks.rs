//! The promises of each use case.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_agent::driver::DatapathKind;
use lb_core::addr::Family;
use lb_testkit::{
    lab::Origin,
    traffic::{Load, LoadKind, Request},
};

use super::{
    cluster::{Cluster, FAMILIES},
    error::RunError,
    expectation::{Checks, Seen},
    reach::{PER_BACKEND, every_backend},
    rules,
    use_case::UseCase,
};

/// Connections of one client under affinity.
const PER_CLIENT: u64 = 40;

/// The services work, and are rules as those of kube-proxy are.
pub(super) fn iptables_without_cilium(
    cluster: &Cluster,
    datapath: DatapathKind,
    checks: &mut Checks<'_>,
) -> Result<(), RunError> {
    every_node_is_settled(cluster, checks)?;
    traffic(cluster, checks)?;
    rules_are_there(cluster, datapath, checks)
}

/// The services work, and no rule of iptables is theirs.
pub(super) fn kube_proxy_replacement(
    cluster: &Cluster,
    datapath: DatapathKind,
    checks: &mut Checks<'_>,
) -> Result<(), RunError> {
    every_node_is_settled(cluster, checks)?;
    traffic(cluster, checks)?;
    if datapath.lab().translates_sockets {
        the_socket_names_the_service(cluster, checks)?;
    }
    no_iptables_rules(cluster, datapath, checks)
}

/// Clients stay with their backends.
pub(super) fn session_affinity(cluster: &Cluster, checks: &mut Checks<'_>) -> Result<(), RunError> {
    every_node_is_settled(cluster, checks)?;
    affinity(cluster, checks)
}

/// The traffic that every use case and every datapath carries.
pub(super) fn traffic(cluster: &Cluster, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let origins = [("a pod", cluster.client_origin()), ("a node", Origin::Node(1)), ("outside", Origin::Beyond)];
    for (name, origin) in origins {
        checks.check(format!("every backend is reached from {name}"), || {
            every_backend(cluster.lab(), origin, &targets(cluster), &cluster.backends)
        })?;
    }
    checks.check("the server sees the address of a client pod", || client_is_seen(cluster, cluster.client_origin()))?;
    checks.check("the server sees the address of a client node", || client_is_seen(cluster, Origin::Node(1)))?;
    checks.check("a pod reaches itself through its service", || hairpin(cluster))
}

fn every_node_is_settled(cluster: &Cluster, checks: &mut Checks<'_>) -> Result<(), RunError> {
    checks.check("every agent carries every service", || {
        for node in cluster.lab().nodes() {
            let status = cluster.ask(node.index())?.status();
            let status = status.map_err(|source| RunError::Agent { node: node.name().into(), source })?;
            if !status.settled || !status.conditions.is_empty() {
                return Ok(Err(format!(
                    "{}: settled {}, conditions {:?}",
                    node.name(),
                    status.settled,
                    status.conditions
                )));
            }
        }
        Ok(Ok(format!("{} agents, ready after {} ms", cluster.lab().nodes().len(), cluster.ready.as_millis())))
    })
}

fn client_is_seen(cluster: &Cluster, origin: Origin) -> Result<Seen, RunError> {
    let client = cluster.lab().client(origin);
    let mut details = Vec::new();
    for to in targets(cluster) {
        let expected = client.ip(Family::of(to.ip()));
        for outcome in client.requests(&Request::http(to), 2 * cluster.backends.len())? {
            match outcome {
                Ok(answer) if answer.client.ip() == expected => {}
                Ok(answer) => {
                    let (pod, seen) = (answer.pod, answer.client.ip());
                    return Ok(Err(format!("{pod} sees {seen} for {expected}, which connected to {to}")));
                }
                Err(failure) => return Ok(Err(format!("{expected} to {to}: {failure}"))),
            }
        }
        details.push(expected.to_string());
    }
    Ok(Ok(format!("client_address={}", details.join(", client_address="))))
}

/// A backend asks its own service until it has answered itself.
fn hairpin(cluster: &Cluster) -> Result<Seen, RunError> {
    let Some(pod) = cluster.backends.first().and_then(|name| cluster.lab().pod(name)) else {
        return Ok(Err("the service has no backend".into()));
    };
    let mut details = Vec::new();
    for to in targets(cluster) {
        let load = Load::new(LoadKind::NewConnections, to).requests(PER_BACKEND * cluster.backends.len() as u64);
        let report = cluster.lab().client(Origin::Pod(pod.index())).load(&load)?;
        let own = report.backends.get(pod.name()).copied().unwrap_or(0);
        if own == 0 || report.failed() > 0 {
            let example = report.example.as_ref().map(ToString::to_string).unwrap_or_default();
            return Ok(Err(format!("{} reached itself {own} times, {} failed {example}", pod.name(), report.failed())));
        }
        details.push(format!("{to}: {own} of {}", report.answered()));
    }
    Ok(Ok(format!("{} through {}", pod.name(), details.join("; "))))
}

fn the_socket_names_the_service(cluster: &Cluster, checks: &mut Checks<'_>) -> Result<(), RunError> {
    checks.check("getpeername names the service, not the backend", || {
        for to in targets(cluster) {
            match cluster.lab().client(cluster.client_origin()).request(&Request::http(to))? {
                Ok(answer) if answer.peer == to => {}
                Ok(answer) => return Ok(Err(format!("connected to {to}, getpeername says {}", answer.peer))),
                Err(failure) => return Ok(Err(format!("{to}: {failure}"))),
            }
        }
        Ok(Ok(join(targets(cluster))))
    })
}

/// Every cluster address and every backend is named by what lists the rules of the datapath.
fn rules_are_there(cluster: &Cluster, datapath: DatapathKind, checks: &mut Checks<'_>) -> Result<(), RunError> {
    // On a datapath without rules this use case is about those that are missing.
    let listers = match datapath.lab().rule_listers {
        [] => UseCase::IptablesWithoutCilium.datapath().lab().rule_listers,
        own => own,
    };
    let backends = cluster.backends.iter().filter_map(|name| cluster.lab().pod(name)).flat_map(|pod| pod.ips());
    let expected: Vec<IpAddr> = cluster.service.cluster_ips.iter().copied().chain(backends).collect();
    checks.check("every node has rules for the service and each of its backends", || {
        let mut details = Vec::new();
        for node in cluster.lab().nodes() {
            let mut lines = 0;
            for ip in &expected {
                let found = rules::about(node, &[*ip], listers)?;
                let of_ip: usize = found.iter().map(|found| found.lines).sum();
                if of_ip == 0 {
                    return Ok(Err(format!("{}: {} lists nothing about {ip}", node.name(), listers.join(" or "))));
                }
                lines += of_ip;
            }
            details.push(format!("{}: {lines} lines", node.name()));
        }
        Ok(Ok(format!("{} of {}", details.join(", "), listers.join(" and "))))
    })
}

/// On nftables the elements of the one ruleset name the service, so only what iptables lists counts there.
fn no_iptables_rules(cluster: &Cluster, datapath: DatapathKind, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let (name, listers) = if datapath.lab().rule_listers.is_empty() {
        ("no node has an iptables or nftables rule for the service", &rules::LISTERS[..])
    } else {
        ("no node has an iptables rule for the service", &rules::LISTERS[..4])
    };
    checks.check(name, || {
        for node in cluster.lab().nodes() {
            let found = rules::about(node, &cluster.service.cluster_ips, listers)?;
            if let Some(rule) = found.iter().find(|found| found.lines > 0) {
                let (node, vips) = (node.name(), vips(cluster));
                return Ok(Err(format!("{node}: {} lists {} lines about {vips}", rule.lister, rule.lines)));
            }
        }
        Ok(Ok(format!("{} is in no listing of {} nodes", vips(cluster), cluster.lab().nodes().len())))
    })
}

fn affinity(cluster: &Cluster, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let inside = [("a pod", cluster.client_origin()), ("a node", Origin::Node(1))];
    for (name, origin) in inside {
        checks.check(format!("{name} stays with one backend"), || one_backend(cluster, origin))?;
    }
    checks.check("every client from outside stays with one backend", || {
        let chosen = outside(cluster)?;
        Ok(chosen.map(|chosen| format!("{} clients, one backend each", chosen.len())))
    })?;
    checks.check("several clients reach several backends", || {
        let chosen = match outside(cluster)? {
            Ok(chosen) => chosen,
            Err(seen) => return Ok(Err(seen)),
        };
        let backends: BTreeSet<&String> = chosen.values().collect();
        let detail = format!("{} clients, {} of {} backends", chosen.len(), backends.len(), cluster.backends.len());
        Ok(if backends.len() > 1 { Ok(detail) } else { Err(detail) })
    })?;
    checks.check("the next connections go to the same backend", || {
        Ok(match (outside(cluster)?, outside(cluster)?) {
            (Ok(first), Ok(second)) if first == second => Ok(format!("{} clients, twice the same", first.len())),
            (Ok(first), Ok(second)) => Err(format!("first {first:?}, then {second:?}")),
            (Err(seen), _) | (_, Err(seen)) => Err(seen),
        })
    })
}

fn one_backend(cluster: &Cluster, origin: Origin) -> Result<Seen, RunError> {
    let mut details = Vec::new();
    for to in targets(cluster) {
        let load = Load::new(LoadKind::NewConnections, to).requests(PER_CLIENT);
        let report = cluster.lab().client(origin).load(&load)?;
        let pods: Vec<&String> = report.backends.keys().collect();
        let ([pod], 0) = (pods.as_slice(), report.failed()) else {
            return Ok(Err(format!("{to}: answers from {:?}, {} failed", report.backends, report.failed())));
        };
        details.push(format!("{to}: {} times {pod}", report.answered()));
    }
    Ok(Ok(details.join("; ")))
}

/// The backend of each client from outside, or the first client that had several.
fn outside(cluster: &Cluster) -> Result<Result<BTreeMap<IpAddr, String>, String>, RunError> {
    let client = cluster.lab().client(Origin::Beyond);
    let mut chosen = BTreeMap::new();
    for to in targets(cluster) {
        for ip in client.ips(Family::of(to.ip())) {
            let request = Request::http(to).from(SocketAddr::new(ip, 0));
            let mut pods = BTreeSet::new();
            for outcome in client.requests(&request, 3)? {
                match outcome {
                    Ok(answer) => pods.insert(answer.pod),
                    Err(failure) => return Ok(Err(format!("{ip} to {to}: {failure}"))),
                };
            }
            if pods.len() > 1 {
                return Ok(Err(format!("{ip} was sent to {pods:?}")));
            }
            chosen.extend(pods.pop_first().map(|pod| (ip, pod)));
        }
    }
    Ok(Ok(chosen))
}

/// The service's first port at each of its cluster addresses, IPv4 first.
pub(super) fn targets(cluster: &Cluster) -> Vec<SocketAddr> {
    let port = cluster.service.ports.first().map_or(0, |port| port.port);
    let of = |family| cluster.service.cluster_ips.iter().filter(move |ip| Family::of(**ip) == family);
    FAMILIES.into_iter().flat_map(of).map(|&ip| SocketAddr::new(ip, port)).collect()
}

fn vips(cluster: &Cluster) -> String {
    join(&cluster.service.cluster_ips)
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
