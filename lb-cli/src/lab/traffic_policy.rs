//! The use case `traffic-policy`: traffic that stays on the node.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
};

use lb_agent::{
    api::{Entry, ExplainQuery, Protocol},
    driver::DatapathKind,
};
use lb_core::addr::Family;
use lb_testkit::{
    lab::{Held, Origin},
    traffic::Transport,
};

use super::{
    cluster::FAMILIES,
    error::RunError,
    expectation::{Checks, Seen},
    fleet::Fleet,
    flow::{self, Flow},
    stage::Stage,
    use_case::UseCase,
    wait::{self, PATIENCE},
};

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];
/// Port of both services.
const PORT: u16 = 80;
/// Node port of the external one.
const NODE_PORT: u16 = 30_090;
/// Port at which a load balancer asks a node for endpoints.
const HEALTH_PORT: u16 = 32_090;
/// The manifest whose policy changes.
const EXTERNAL: &str = "external-service.yaml";
const LOCAL: &str = "externalTrafficPolicy: Local";
const CLUSTER: &str = "externalTrafficPolicy: Cluster";
/// Connections of each client that live while the policy changes.
const CONNECTIONS: usize = 8;

pub(super) fn run(use_case: UseCase, datapath: DatapathKind, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let stage = Stage::start(use_case, datapath, &[])?;
    if stage.is_left_out(checks)? {
        return Ok(());
    }
    external_traffic(&stage, checks)?;
    traffic_from_inside(stage.fleet(), checks)?;
    health(stage.fleet(), checks, [Some(200), Some(200), Some(503)])?;
    internal_traffic(&stage, checks)?;
    the_policy_changes(&stage, checks)
}

/// From outside through each node: its own backend, which sees the client, or nobody.
fn external_traffic(stage: &Stage, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let fleet = stage.fleet();
    for node in 0..fleet.lab().nodes().len() {
        stage.announce(node)?;
        for family in FAMILIES {
            for transport in TRANSPORTS {
                for to in [ingress(family), node_port(fleet, node, family)] {
                    let from = format!("outside through node-{node}");
                    flow::check(fleet, &Flow::new(from, Origin::Beyond, transport, to, node), checks)?;
                }
            }
        }
    }
    Ok(())
}

/// Pods and nodes have every backend, wherever they are.
fn traffic_from_inside(fleet: &Fleet, checks: &mut Checks<'_>) -> Result<(), RunError> {
    for family in FAMILIES {
        for (from, origin, node) in [
            ("a pod of node-0", Origin::Pod(fleet.pod("client-0")?), 0),
            ("a pod of node-2", Origin::Pod(fleet.pod("client-2")?), 2),
            ("a pod of node-2, by packets,", Origin::PodPackets(fleet.pod("client-2")?), 2),
            ("node-2", Origin::Node(2), 2),
        ] {
            for to in [ingress(family), node_port(fleet, node, family), cluster_address(40, family)] {
                flow::check(fleet, &Flow::new(from, origin, Transport::Tcp, to, node), checks)?;
            }
        }
    }
    Ok(())
}

/// Pods, nodes and clients outside have the backend of the node that the traffic is on, or nobody.
fn internal_traffic(stage: &Stage, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let fleet = stage.fleet();
    let (near, far) = (fleet.pod("client-0")?, fleet.pod("client-2")?);
    for family in FAMILIES {
        let to = cluster_address(41, family);
        for transport in TRANSPORTS {
            for (from, origin, node) in [
                ("a pod of node-0", Origin::Pod(near), 0),
                ("a pod of node-0, by packets,", Origin::PodPackets(near), 0),
                ("node-1", Origin::Node(1), 1),
                ("a pod of node-2", Origin::Pod(far), 2),
                ("a pod of node-2, by packets,", Origin::PodPackets(far), 2),
                ("node-2", Origin::Node(2), 2),
            ] {
                flow::check(fleet, &Flow::new(from, origin, transport, to, node), checks)?;
            }
        }
        for node in [1, 2] {
            stage.announce(node)?;
            let from = format!("outside through node-{node}");
            flow::check(fleet, &Flow::new(from, Origin::Beyond, Transport::Tcp, to, node), checks)?;
        }
    }
    Ok(())
}

/// Local, Cluster and Local again, while connections live that began before each change.
fn the_policy_changes(stage: &Stage, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let fleet = stage.fleet();
    stage.announce(0)?;
    let mut held = hold(fleet)?;
    stage.publish_with(EXTERNAL, LOCAL, CLUSTER)?;
    the_policy_is(fleet, checks, CLUSTER, 2, [None; 3], &held)?;
    held.extend(hold(fleet)?);
    stage.publish()?;
    the_policy_is(fleet, checks, LOCAL, 1, [Some(200), Some(200), Some(503)], &held)
}

fn the_policy_is(
    fleet: &Fleet,
    checks: &mut Checks<'_>,
    policy: &str,
    backends: usize,
    answers: [Option<u16>; 3],
    held: &[Connections<'_>],
) -> Result<(), RunError> {
    checks.check(format!("every agent follows a change to {policy}"), || follow(fleet, backends))?;
    checks.check(format!("connections that began before go on under {policy}"), || go_on(held))?;
    health(fleet, checks, answers)?;
    for family in FAMILIES {
        let from = format!("outside under {policy}");
        flow::check(fleet, &Flow::new(from, Origin::Beyond, Transport::Tcp, ingress(family), 0), checks)?;
    }
    Ok(())
}

/// Connections of one client, and who answered them at first.
struct Connections<'lab> {
    held: Held<'lab>,
    pods: Vec<String>,
}

/// Connections from outside and from a pod to the address of the load balancer.
fn hold(fleet: &Fleet) -> Result<Vec<Connections<'_>>, RunError> {
    let mut all = Vec::new();
    for origin in [Origin::Beyond, Origin::PodPackets(fleet.pod("client-0")?)] {
        for family in FAMILIES {
            let held = fleet.lab().client(origin).hold(Transport::Tcp, ingress(family), CONNECTIONS)?;
            let pods = held.opened().iter().map(|opened| match opened {
                Ok(answer) => answer.pod.clone(),
                Err(failure) => failure.to_string(),
            });
            all.push(Connections { pods: pods.collect(), held });
        }
    }
    Ok(all)
}

/// Whether each of them is answered by the pod that it began with.
fn go_on(all: &[Connections<'_>]) -> Result<Seen, RunError> {
    let (mut count, mut of_pods) = (0, BTreeSet::new());
    for Connections { held, pods } in all {
        for (first, now) in pods.iter().zip(held.exchange()?) {
            match now {
                Ok(answer) if answer.pod == *first => count += 1,
                Ok(answer) => return Ok(Err(format!("a connection to {first} is answered by {}", answer.pod))),
                Err(failure) => return Ok(Err(format!("a connection to {first}: {failure}"))),
            }
            of_pods.insert(first);
        }
    }
    Ok(Ok(format!("{count} connections to {of_pods:?}")))
}

/// Waits until every agent has so many backends for clients outside, at the most, and everything is in its datapath.
fn follow(fleet: &Fleet, backends: usize) -> Result<Seen, RunError> {
    let source = SocketAddr::new(fleet.lab().client(Origin::Beyond).ip(Family::V4), 40_000);
    for node in fleet.lab().nodes() {
        let silent = |source| RunError::Agent { node: node.name().into(), source };
        let question = ExplainQuery::new(Protocol::Tcp, source, ingress(Family::V4))
            .map_err(|error| RunError::Question { node: node.name().into(), why: error.to_string() })?;
        let question = ExplainQuery { entry: Some(Entry::Uplink), ..question };
        // Without a backend of its own, a node has none under Local.
        let wanted =
            if backends == 1 && node.pods().all(|pod| !pod.name().starts_with("httpd")) { 0 } else { backends };
        let followed = wait::until(|| {
            let agent = fleet.ask(node.index())?;
            let has = agent.explain(&question).map_err(silent)?.choice.map_or(0, |choice| choice.backends.len());
            let follows = has == wanted && agent.status().map_err(silent)?.settled;
            let lacks = || format!("{}: {has} backends, expected {wanted}", node.name());
            Ok(if follows { Ok(()) } else { Err(lacks()) })
        })?;
        if let Err(lacks) = followed {
            return Ok(Err(lacks));
        }
    }
    Ok(Ok(format!("{} agents", fleet.lab().nodes().len())))
}

/// What each node tells a load balancer; `None` if nobody listens.
fn health(fleet: &Fleet, checks: &mut Checks<'_>, expected: [Option<u16>; 3]) -> Result<(), RunError> {
    for (node, wanted) in fleet.lab().nodes().zip(expected) {
        for family in FAMILIES {
            let at = SocketAddr::new(node.ip(family), HEALTH_PORT);
            let says = |status: Option<u16>| status.map_or("refused".into(), |status| status.to_string());
            checks.check(format!("a load balancer that asks http://{at}/healthz is told {}", says(wanted)), || {
                wait::until(|| {
                    Ok(match fleet.lab().router().run(|| health_status(at))? {
                        Ok(status) if status == wanted => Ok(says(status)),
                        Ok(status) => Err(says(status)),
                        Err(error) => Err(error.to_string()),
                    })
                })
            })?;
        }
    }
    Ok(())
}

fn health_status(at: SocketAddr) -> io::Result<Option<u16>> {
    let mut stream = match TcpStream::connect_timeout(&at, PATIENCE) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    status_in(&answer).map(Some).ok_or_else(|| io::Error::other(format!("not an answer in HTTP: {answer:?}")))
}

fn status_in(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()
}

fn ingress(family: Family) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => [20, 0, 20, 40].into(),
        Family::V6 => [0xfd00, 0x20, 0, 0x20, 0, 0, 0, 0x40].into(),
    };
    SocketAddr::new(ip, PORT)
}

/// Cluster address `number` of IPv4, and the one of IPv6 with these digits.
fn cluster_address(number: u8, family: Family) -> SocketAddr {
    let digits = u16::from(number / 10) << 4 | u16::from(number % 10);
    let ip: IpAddr = match family {
        Family::V4 => [10, 96, 0, number].into(),
        Family::V6 => [0xfd00, 0x10, 0x96, 0, 0, 0, 0, digits].into(),
    };
    SocketAddr::new(ip, PORT)
}

fn node_port(fleet: &Fleet, node: usize, family: Family) -> SocketAddr {
    SocketAddr::new(fleet.lab().node(node).ip(family), NODE_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_manifests() {
        let snapshot = UseCase::TrafficPolicy.snapshot().unwrap();
        let ips: Vec<IpAddr> = snapshot
            .services()
            .flat_map(|service| service.cluster_ips.iter().chain(&service.load_balancer_ips).copied())
            .collect();
        for family in FAMILIES {
            for at in [ingress(family), cluster_address(40, family), cluster_address(41, family)] {
                assert!(ips.contains(&at.ip()), "{at} is not in {ips:?}");
            }
        }
    }

    #[test]
    fn a_status_is_the_number_of_the_first_line() {
        assert_eq!(status_in("HTTP/1.1 503 Service Unavailable\r\n"), Some(503));
        assert_eq!(status_in("SSH-2.0\r\n"), None);
    }
}
