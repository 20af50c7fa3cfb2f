//! Who may use a service, and what else there is about its addresses.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_core::{
    addr::{BackendAddr, Family, FrontendKind, Protocol},
    decision::{FlowView, SourceRewrite, Verdict as Decided, decide},
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    model::Change,
    name::{NodeName, SliceName},
    service::{HostIps, Service, ServiceType},
    sources::{RangePolicy, SourceRanges},
};

use super::{Case, cases, reach::requires};
use crate::{
    conformance::{
        Fault, Stage, Verdict, ensure,
        probe::{ORIGINS, Probe, TRANSPORTS},
        service::{BACK_PORT, Vip, WEB, With, endpoints, named, web},
    },
    lab::{Lab, Node, Origin, topology},
    traffic::{Request, Transport},
};

pub(super) const CASES: [Case; 4] = cases![
    source_ranges_guard_every_frontend,
    other_ports_of_an_ingress_address_are_dropped,
    a_host_port_leads_to_the_pod_of_this_node,
    a_backend_on_the_node_itself_sees_its_clients,
];

const INGRESS: Vip = Vip::ingress(100);
/// Port of a server that is on the node itself.
const NODE_SERVER: u16 = 7070;
/// How long a client waits for an answer that does not come: its connection counts, and no more.
const CONNECTED: Duration = Duration::from_millis(300);

/// Clients beyond the router are in the ranges, and those on the segment are not; then the other way round.
fn source_ranges_guard_every_frontend(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::LoadBalancer)?;
    if !stage.capabilities().source_ranges {
        return Err(Fault::lacks("source ranges"));
    }
    for policy in [RangePolicy::Allow, RangePolicy::Deny] {
        let beyond: [IpNet; 2] = topology::FAMILIES.map(topology::beyond);
        let mut guarded = web().load_balancer_ips(INGRESS);
        guarded.source_ranges = Some(Arc::new(SourceRanges::new(policy, beyond)));
        stage.change([Change::UpsertService(guarded), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
        stage.probe_all(Probe::everywhere(INGRESS).chain(Probe::everywhere(WEB)))?;
    }
    stage.change([Change::UpsertService(web().load_balancer_ips(INGRESS))])?;
    stage.probe_all(Probe::everywhere(INGRESS))
}

fn other_ports_of_an_ingress_address_are_dropped(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::LoadBalancer)?;
    if !stage.capabilities().other_ports {
        return Err(Fault::lacks("a say in other ports"));
    }
    let pods = endpoints("web", &["a", "c"]);
    stage.change([Change::UpsertService(web().load_balancer_ips(INGRESS)), Change::ReplaceEndpoints(pods)])?;
    for probe in Probe::everywhere(INGRESS) {
        stage.probe(Probe { to: (probe.to.ip(), BACK_PORT).into(), ..probe })?;
    }
    Ok(())
}

fn a_host_port_leads_to_the_pod_of_this_node(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::HostPort)?;
    for (pod, host_ips) in [("a", HostIps::Every), ("c", HostIps::Every)] {
        let service = Service {
            kind: ServiceType::HostPort,
            ports: web().ports,
            host_ips: Some(host_ips),
            ..Service::new(named("web"))
        };
        stage.change([Change::UpsertService(service), Change::ReplaceEndpoints(endpoints("web", &[pod]))])?;
        for (origin, family) in everybody() {
            for transport in TRANSPORTS {
                let probe = Probe::new(origin, WEB, family, transport);
                stage.probe(Probe { to: (topology::node_ip(0, family), probe.to.port()).into(), ..probe })?;
            }
        }
    }
    Ok(())
}

/// A server of the node's own is reached through every frontend, and learns who calls as the oracle says.
fn a_backend_on_the_node_itself_sees_its_clients(stage: &mut Stage) -> Verdict {
    let slice = EndpointSlice {
        name: SliceName::new("default", "web"),
        service: named("web"),
        ports: vec![SlicePort { name: Protocol::Tcp.as_str().into(), protocol: Protocol::Tcp, port: NODE_SERVER }],
        endpoints: topology::FAMILIES
            .map(|family| Endpoint {
                node: Some(NodeName::new("node-0")),
                ..Endpoint::new(topology::node_ip(0, family))
            })
            .into(),
    };
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(slice)])?;
    stage.lab()?;
    for (origin, family) in everybody() {
        let probe = Probe::new(origin, WEB, family, Transport::Tcp);
        stage.with_lab(|stage, lab| called_as_decided(stage, lab, probe))?;
    }
    Ok(())
}

fn everybody() -> impl Iterator<Item = (Origin, Family)> {
    ORIGINS.into_iter().flat_map(|origin| topology::FAMILIES.map(|family| (origin, family)))
}

/// Sends a request to a server that accepts and never answers, and compares who it says called.
fn called_as_decided(stage: &Stage, lab: &Lab, probe: Probe) -> Verdict {
    let source = probe.source();
    let decided = decide(stage.model(), &probe.packet(source), &FlowView::default(), stage.now()).verdict;
    let Decided::Forward(forward) = decided else {
        return Err(Fault::Failed(format!("{probe}: expected to be forwarded, decided {decided:?}")));
    };
    let server = listen(lab.node(0), probe.family())?;
    let outcome = lab.client(probe.origin).request(&Request::over(probe.transport, probe.to).timeout(CONNECTED))?;
    let caller = match server.accept() {
        Ok((_, caller)) => caller.ip(),
        Err(error) => {
            return Err(Fault::Failed(format!("{probe}: nobody called: {error}; the client got {outcome:?}")));
        }
    };
    let backend = BackendAddr::new(topology::node_ip(0, probe.family()), NODE_SERVER, Protocol::Tcp);
    let expected = match forward.source_rewrite(source.ip(), backend) {
        SourceRewrite::Kept => Some(source.ip()),
        SourceRewrite::Translated { addr, .. } => *addr,
    };
    ensure!(expected.is_none_or(|ip| ip == caller), "{probe}: {caller} called, expected {expected:?}");
    Ok(())
}

/// A listener on an address of the node, which never blocks.
fn listen(node: Node<'_>, family: Family) -> Result<TcpListener, Fault> {
    let at = SocketAddr::new(topology::node_ip(node.index(), family), NODE_SERVER);
    let open = || -> io::Result<TcpListener> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    node.run(open)?.map_err(|error| Fault::Failed(format!("listening on {at}: {error}")))
}
