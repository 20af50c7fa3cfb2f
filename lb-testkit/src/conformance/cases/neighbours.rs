//! Virtual addresses that other hosts have.

use ipnet::IpNet;
use lb_core::{
    addr::{Family, FrontendKind},
    model::Change,
};

use super::{Case, cases, reach::requires};
use crate::{
    conformance::{
        Stage, Verdict, ensure,
        probe::{ORIGINS, Probe},
        service::{Vip, endpoints, web},
    },
    lab::{Origin, topology},
    traffic::{FailureKind, Request},
};

pub(super) const CASES: [Case; 1] = cases![other_ports_of_another_hosts_address_are_that_hosts];

/// Addresses of nodes 0 and 1.
const NODES: [Vip; 2] = [
    Vip { v4: [172, 18, 0, 10], v6: [0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x10] },
    Vip { v4: [172, 18, 0, 11], v6: [0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x11] },
];

/// As k3s' ServiceLB publishes them: every node's addresses, this one's among them.
fn other_ports_of_another_hosts_address_are_that_hosts(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::LoadBalancer)?;
    let mut web = web();
    web.load_balancer_ips = NODES.into_iter().flat_map(|vip| topology::FAMILIES.map(|family| vip.ip(family))).collect();
    if stage.carries_packets() {
        for family in topology::FAMILIES {
            stage.lab()?.route_via(IpNet::from(NODES[1].ip(family)), 0)?;
        }
    }
    stage.change([Change::UpsertService(web), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    stage.probe_all(NODES.into_iter().flat_map(Probe::everywhere))?;
    stage.lab()?;
    for (origin, family) in ORIGINS.into_iter().flat_map(|origin| topology::FAMILIES.map(|family| (origin, family))) {
        for vip in NODES {
            its_closed_ports_refuse(stage, origin, vip, family)?;
        }
    }
    Ok(())
}

/// The host itself answers, and so it can be reached.
fn its_closed_ports_refuse(stage: &Stage, origin: Origin, vip: Vip, family: Family) -> Verdict {
    let to = (vip.ip(family), 9).into();
    let outcome = stage.lab()?.client(origin).request(&Request::http(to))?;
    let kind = outcome.as_ref().err().map(|failure| failure.kind);
    ensure!(kind == Some(FailureKind::Refused), "{origin:?} to {to}: {outcome:?}");
    Ok(())
}
