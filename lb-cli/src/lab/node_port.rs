//! The use case `node-port`: a service at a port of every node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_agent::driver::DatapathKind;
use lb_core::addr::Family;
use lb_testkit::{
    lab::Origin,
    traffic::{Outcome, Request, Transport},
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

const NODE_PORT: u16 = 30_080;
/// One that no service has.
const UNKNOWN_PORT: u16 = 30_081;
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];
/// A node with a backend, and the one without.
const WITH_BACKEND: usize = 0;
const WITHOUT_BACKEND: usize = 2;

pub(super) fn run(use_case: UseCase, datapath: DatapathKind, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let stage = Stage::start(use_case, datapath, &[])?;
    if stage.is_left_out(checks)? {
        return Ok(());
    }
    let fleet = stage.fleet();
    for flow in flows(fleet)? {
        flow::check(fleet, &flow, checks)?;
    }
    // No packet is sent there, and no port is bound: only a datapath that sees sockets can do it.
    if datapath.lab().translates_sockets {
        for flow in flows_to_loopback(fleet) {
            flow::check(fleet, &flow, checks)?;
        }
        nobody_else_binds_it(fleet, checks)?;
    }
    it_follows_addresses(fleet, checks)
}

/// From everywhere to the node port, and to one that is none.
fn flows(fleet: &Fleet) -> Result<Vec<Flow>, RunError> {
    let (near, far) = (fleet.pod("client-0")?, fleet.pod("client-2")?);
    let mut flows = Vec::new();
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let at = |node: usize, port| SocketAddr::new(fleet.lab().node(node).ip(family), port);
            let mut flow = |from: &str, origin, node, port| {
                flows.push(Flow::new(from, origin, transport, at(node, port), node));
            };
            for node in 0..fleet.lab().nodes().len() {
                flow("outside", Origin::Beyond, node, NODE_PORT);
            }
            flow("another node, node-1,", Origin::Node(1), WITH_BACKEND, NODE_PORT);
            flow("the node itself", Origin::Node(WITH_BACKEND), WITH_BACKEND, NODE_PORT);
            flow("the node itself", Origin::Node(WITHOUT_BACKEND), WITHOUT_BACKEND, NODE_PORT);
            flow("a pod of the node", Origin::Pod(near), WITH_BACKEND, NODE_PORT);
            flow("a pod by packets", Origin::PodPackets(near), WITH_BACKEND, NODE_PORT);
            flow("a pod of another node, node-0,", Origin::Pod(near), WITHOUT_BACKEND, NODE_PORT);
            flow("a pod of the node", Origin::Pod(far), WITHOUT_BACKEND, NODE_PORT);
            flow("outside", Origin::Beyond, WITH_BACKEND, UNKNOWN_PORT);
            flow("the node itself", Origin::Node(WITH_BACKEND), WITH_BACKEND, UNKNOWN_PORT);
            flow("a pod of the node", Origin::Pod(near), WITH_BACKEND, UNKNOWN_PORT);
        }
    }
    Ok(flows)
}

/// From the node itself to its node port at loopback addresses.
fn flows_to_loopback(fleet: &Fleet) -> Vec<Flow> {
    let flow = |family, transport| {
        let to = SocketAddr::new(loopback(family), NODE_PORT);
        let stands_for = SocketAddr::new(fleet.lab().node(WITH_BACKEND).ip(family), NODE_PORT);
        Flow { stands_for, ..Flow::new("node-0", Origin::Node(WITH_BACKEND), transport, to, WITH_BACKEND) }
    };
    FAMILIES.into_iter().flat_map(|family| TRANSPORTS.map(|transport| flow(family, transport))).collect()
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// A process of the node that binds the port gets `EADDRINUSE`.
fn nobody_else_binds_it(fleet: &Fleet, checks: &mut Checks<'_>) -> Result<(), RunError> {
    for transport in TRANSPORTS {
        let protocol = if transport == Transport::Tcp { "TCP" } else { "UDP" };
        checks.check(format!("no process of node-0 binds {protocol} port {NODE_PORT} of the node"), || {
            let mut details = Vec::new();
            for family in FAMILIES {
                let node = fleet.lab().node(WITH_BACKEND);
                let from = SocketAddr::new(node.ip(family), NODE_PORT);
                // Nobody listens there: what matters is that the socket does not get as far.
                let to = SocketAddr::new(fleet.lab().node(1).ip(family), UNKNOWN_PORT);
                let client = fleet.lab().client(Origin::Node(WITH_BACKEND));
                let outcome = client.request(&Request::over(transport, to).from(from).timeout(PATIENCE))?;
                match is_taken(&outcome) {
                    Ok(detail) => details.push(format!("{from}: {detail}")),
                    Err(detail) => return Ok(Err(format!("{from}: {detail}"))),
                }
            }
            Ok(Ok(details.join("; ")))
        })?;
    }
    Ok(())
}

/// `EADDRINUSE` in the words of the system.
fn is_taken(outcome: &Outcome) -> Seen {
    let taken = std::io::Error::from_raw_os_error(nix::libc::EADDRINUSE).to_string();
    match outcome {
        Err(failure) if failure.detail.contains(&taken) => Ok(taken),
        Err(failure) => Err(format!("expected {taken}, got {failure}")),
        Ok(answer) => Err(format!("expected {taken}, but {} answered", answer.pod)),
    }
}

/// An address that a node gets has the node port, and one that it loses has not.
fn it_follows_addresses(fleet: &Fleet, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let node = fleet.lab().node(WITHOUT_BACKEND);
    let later = [IpAddr::from([172, 18, 0, 200]), [0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x200].into()];
    let at_later = |ip| {
        let to = SocketAddr::new(ip, NODE_PORT);
        Flow::new("outside", Origin::Beyond, Transport::Tcp, to, WITHOUT_BACKEND)
    };
    later.iter().try_for_each(|&ip| node.add_address(ip))?;
    checks.check("the agent of node-2 follows an address that is added", || knows(fleet, &later, true))?;
    for ip in later {
        flow::check(fleet, &Flow { from: "outside, later,".into(), ..at_later(ip) }, checks)?;
    }
    later.iter().try_for_each(|&ip| node.remove_address(ip))?;
    checks.check("the agent of node-2 follows an address that is removed", || knows(fleet, &later, false))?;
    for ip in later {
        flow::check(fleet, &Flow { from: "outside, after that,".into(), ..at_later(ip) }, checks)?;
    }
    for family in FAMILIES {
        let to = SocketAddr::new(node.ip(family), NODE_PORT);
        let still = Flow::new("outside, as before,", Origin::Beyond, Transport::Tcp, to, WITHOUT_BACKEND);
        flow::check(fleet, &still, checks)?;
    }
    Ok(())
}

/// Waits until the agent has, or no longer has, these addresses, and everything that follows is in its datapath.
fn knows(fleet: &Fleet, ips: &[IpAddr], wanted: bool) -> Result<Seen, RunError> {
    let node = fleet.lab().node(WITHOUT_BACKEND);
    wait::until(|| {
        let status = fleet.ask(node.index())?.status();
        let status = status.map_err(|source| RunError::Agent { node: node.name().into(), source })?;
        let known: Vec<String> = status.node.ips.iter().map(ToString::to_string).collect();
        let follows = status.settled && ips.iter().all(|ip| status.node.ips.contains(ip) == wanted);
        Ok(if follows { Ok(known.join(", ")) } else { Err(known.join(", ")) })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_testkit::traffic::{Failure, FailureKind};

    use super::*;

    #[test]
    fn only_an_address_in_use_is_one() {
        let failed = |errno| {
            let detail = format!("socket: {}", std::io::Error::from_raw_os_error(errno));
            Err(Failure { kind: FailureKind::Other, detail, after: Duration::ZERO })
        };
        assert!(is_taken(&failed(nix::libc::EADDRINUSE)).is_ok());
        assert!(is_taken(&failed(nix::libc::ECONNREFUSED)).is_err());
    }
}
