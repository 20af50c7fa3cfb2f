//! Who reaches a service, and what a service leaves alone.

use lb_core::{
    addr::{Family, FrontendKind, Protocol},
    model::{Change, Degraded},
    service::{Algorithm, TrafficPolicy},
};

use super::{Case, cases};
use crate::{
    conformance::{
        Fault, Stage, Verdict, ensure,
        probe::{ORIGINS, Probe},
        service::{BACK_PORT, CLIENT_POD, POD_ELSEWHERE, Vip, WEB, With, endpoints, pod_ip, service, web, weighted},
    },
    lab::{Origin, topology},
    traffic::{FailureKind, Request, Transport},
};

pub(super) const CASES: [Case; 12] = cases![
    everybody_reaches_a_cluster_address,
    everybody_reaches_ingress_and_external_addresses,
    everybody_reaches_node_ports,
    a_pod_of_another_node_is_answered_through_this_one,
    policy_local_keeps_outside_traffic_on_the_node,
    a_pod_reaches_itself_through_its_service,
    a_service_without_endpoints_refuses_at_once,
    a_service_without_local_endpoints_is_silent_under_policy_local,
    other_ports_and_plain_addresses_are_left_alone,
    services_that_share_backends_keep_their_ports_apart,
    large_requests_arrive_whole,
    an_algorithm_that_is_not_there_is_replaced_and_reported,
];

/// Ingress and external addresses.
const INGRESS: Vip = Vip::ingress(100);
const EXTERNAL: Vip = Vip::ingress(200);

/// Several flows from each vantage point, so that near and far backends get their share.
const FLOWS: usize = 4;

fn everybody_reaches_a_cluster_address(stage: &mut Stage) -> Verdict {
    let pods = endpoints("web", &["a", "b", "c", "d"]);
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(pods)])?;
    (0..FLOWS).try_for_each(|_| stage.probe_all(Probe::everywhere(WEB)))
}

fn everybody_reaches_ingress_and_external_addresses(stage: &mut Stage) -> Verdict {
    for (kind, vip) in [(FrontendKind::LoadBalancer, INGRESS), (FrontendKind::ExternalIp, EXTERNAL)] {
        requires(stage, kind)?;
        let web = match kind {
            FrontendKind::LoadBalancer => web().load_balancer_ips(vip),
            _ => web().external_ips(vip),
        };
        let pods = endpoints("web", &["a", "c"]);
        stage.change([Change::UpsertService(web), Change::ReplaceEndpoints(pods)])?;
        (0..FLOWS).try_for_each(|_| stage.probe_all(Probe::everywhere(vip)))?;
    }
    Ok(())
}

fn everybody_reaches_node_ports(stage: &mut Stage) -> Verdict {
    const NODE_PORT: u16 = 30_080;
    requires(stage, FrontendKind::NodePort)?;
    let mut exposed = web();
    exposed.ports.iter_mut().for_each(|port| port.node_port = Some(NODE_PORT));
    stage.change([Change::UpsertService(exposed), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    for probe in Probe::everywhere(WEB) {
        let to = (topology::node_ip(0, probe.family()), NODE_PORT).into();
        (0..FLOWS).try_for_each(|_| stage.probe(Probe { to, ..probe }).map(drop))?;
    }
    Ok(())
}

/// Its node sends the packets here. A backend that saw the pod would answer it past this node, from an address of its own.
fn a_pod_of_another_node_is_answered_through_this_one(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::LoadBalancer)?;
    if !stage.capabilities().uplinks {
        return Err(Fault::lacks("pods of other nodes told from its own"));
    }
    let exposed = web().load_balancer_ips(INGRESS);
    // One backend is the client itself, and one shares its node.
    for pods in [&["a", "c"][..], &["e"]] {
        stage.change([Change::UpsertService(exposed.clone()), Change::ReplaceEndpoints(endpoints("web", pods))])?;
        (0..FLOWS)
            .try_for_each(|_| stage.probe_all(Probe::from_origins(&[Origin::PodPackets(POD_ELSEWHERE)], INGRESS)))?;
    }
    Ok(())
}

fn policy_local_keeps_outside_traffic_on_the_node(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::LoadBalancer)?;
    if !stage.capabilities().external_traffic_policy_local {
        return Err(Fault::lacks("external traffic policy Local"));
    }
    let mut local = web().load_balancer_ips(INGRESS);
    local.external_traffic_policy = TrafficPolicy::Local;
    stage.change([Change::UpsertService(local), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    (0..FLOWS).try_for_each(|_| stage.probe_all(Probe::everywhere(INGRESS)))?;
    stage.change([Change::ReplaceEndpoints(endpoints("web", &["c"]))])?;
    stage.probe_all(Probe::everywhere(INGRESS))
}

fn a_pod_reaches_itself_through_its_service(stage: &mut Stage) -> Verdict {
    let only_the_client = endpoints("web", &["client"]);
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(only_the_client)])?;
    let origins = [Origin::Pod(CLIENT_POD), Origin::PodPackets(CLIENT_POD)];
    stage.probe_all(Probe::from_origins(&origins, WEB))?;
    let mut on_no_node = endpoints("web", &["client"]);
    on_no_node.endpoints.iter_mut().for_each(|endpoint| endpoint.node = None);
    stage.change([Change::ReplaceEndpoints(on_no_node)])?;
    stage.probe_all(Probe::from_origins(&origins, WEB))?;
    let among_others = endpoints("web", &["client", "a"]);
    stage.change([Change::ReplaceEndpoints(among_others)])?;
    (0..FLOWS).try_for_each(|_| stage.probe_all(Probe::from_origins(&origins, WEB)))
}

fn a_service_without_endpoints_refuses_at_once(stage: &mut Stage) -> Verdict {
    let with_ingress = web().load_balancer_ips(INGRESS);
    stage.change([Change::UpsertService(with_ingress)])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    if stage.capabilities().frontends.contains(&FrontendKind::LoadBalancer) {
        stage.probe_all(Probe::everywhere(INGRESS))?;
    }
    stage.change([Change::ReplaceEndpoints(endpoints("web", &["a"]))])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    stage.change([Change::ReplaceEndpoints(endpoints("web", &[]))])?;
    stage.probe_all(Probe::everywhere(WEB))
}

fn a_service_without_local_endpoints_is_silent_under_policy_local(stage: &mut Stage) -> Verdict {
    let mut local = web();
    local.internal_traffic_policy = TrafficPolicy::Local;
    let elsewhere = endpoints("web", &["c", "d"]);
    stage.change([Change::UpsertService(local), Change::ReplaceEndpoints(elsewhere)])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    stage.change([Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    (0..FLOWS).try_for_each(|_| stage.probe_all(Probe::everywhere(WEB)))
}

fn other_ports_and_plain_addresses_are_left_alone(stage: &mut Stage) -> Verdict {
    let mut tcp_only = web();
    tcp_only.ports.retain(|port| port.protocol == Protocol::Tcp);
    stage.change([Change::UpsertService(tcp_only), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    // Neither UDP at the port of TCP, nor the servers' port at the VIP.
    stage.probe_all(Probe::everywhere(WEB))?;
    for probe in Probe::everywhere(WEB).filter(|probe| probe.transport == Transport::Tcp) {
        let to = (probe.to.ip(), BACK_PORT).into();
        stage.probe(Probe { to, ..probe })?;
    }
    stage.lab()?;
    for (origin, family) in ORIGINS.into_iter().flat_map(|origin| topology::FAMILIES.map(|family| (origin, family))) {
        pods_answer_for_themselves(stage, origin, family)?;
        closed_ports_refuse(stage, origin, family)?;
    }
    Ok(())
}

fn pods_answer_for_themselves(stage: &Stage, origin: Origin, family: Family) -> Verdict {
    for pod in ["a", "c"] {
        let to = (pod_ip(pod, family), BACK_PORT).into();
        let outcome = stage.lab()?.client(origin).request(&Request::http(to))?;
        let answer = outcome.map_err(|failure| Fault::Failed(format!("{origin:?} to {to}: {failure}")))?;
        ensure!(answer.pod == pod && answer.client == answer.local, "{origin:?} to {to}: {answer:?}");
    }
    Ok(())
}

fn closed_ports_refuse(stage: &Stage, origin: Origin, family: Family) -> Verdict {
    let to = (topology::node_ip(0, family), 9).into();
    let outcome = stage.lab()?.client(origin).request(&Request::http(to))?;
    let kind = outcome.as_ref().err().map(|failure| failure.kind);
    ensure!(kind == Some(FailureKind::Refused), "{origin:?} to {to}: {outcome:?}");
    Ok(())
}

fn services_that_share_backends_keep_their_ports_apart(stage: &mut Stage) -> Verdict {
    const TWIN: Vip = Vip::cluster(11);
    let other_port = weighted("twin", &[("a", 100), ("c", 100)], 9090);
    stage.change([
        Change::UpsertService(web()),
        Change::ReplaceEndpoints(endpoints("web", &["a", "c"])),
        Change::UpsertService(service("twin", TWIN)),
        Change::ReplaceEndpoints(other_port),
    ])?;
    stage.probe_all(Probe::everywhere(WEB).chain(Probe::everywhere(TWIN)))?;
    if stage.carries_packets() {
        for (vip, port) in [(WEB, 8080), (TWIN, 9090)] {
            served_on_port(stage, vip, port)?;
        }
    }
    Ok(())
}

fn served_on_port(stage: &Stage, vip: Vip, port: u16) -> Verdict {
    let to = (vip.ip(Family::V4), 80).into();
    for origin in ORIGINS {
        if !stage.forwards(Probe::new(origin, vip, Family::V4, Transport::Tcp)) {
            continue;
        }
        let outcome = stage.lab()?.client(origin).request(&Request::http(to))?;
        let answer = outcome.map_err(|failure| Fault::Failed(format!("{origin:?} to {to}: {failure}")))?;
        let line = answer.body.lines().find(|line| line.contains("server_address="));
        let right = line.is_some_and(|line| line.ends_with(&format!(":{port}")));
        ensure!(right, "{origin:?} to {to} is served at {line:?}, expected port {port}");
    }
    Ok(())
}

/// Requests and answers of many segments: checksums, segmentation offload and the MTU all matter.
fn large_requests_arrive_whole(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    let pods = endpoints("web", &["a", "c"]);
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(pods)])?;
    let path = format!("/{}", "0123456789abcdef".repeat(2_000));
    for (origin, family) in ORIGINS.into_iter().flat_map(|origin| topology::FAMILIES.map(|family| (origin, family))) {
        if !stage.forwards(Probe::new(origin, WEB, family, Transport::Tcp)) {
            continue;
        }
        for _ in 0..FLOWS {
            let mut request = Request::http((WEB.ip(family), 80).into());
            request.path.clone_from(&path);
            let outcome = stage.lab()?.client(origin).request(&request)?;
            let answer = outcome.map_err(|failure| Fault::Failed(format!("{origin:?} {family:?}: {failure}")))?;
            let whole = answer.body.lines().any(|line| line.strip_prefix("\treal path=") == Some(&path));
            ensure!(whole, "{origin:?} {family:?}: the path came back changed");
        }
    }
    Ok(())
}

fn an_algorithm_that_is_not_there_is_replaced_and_reported(stage: &mut Stage) -> Verdict {
    let all = [Algorithm::RoundRobin, Algorithm::Maglev];
    let missing = all.into_iter().find(|algorithm| !stage.capabilities().algorithms.contains(algorithm));
    let Some(missing) = missing else { return Err(Fault::Excluded("it has every algorithm".into())) };
    let web = web().algorithm(missing);
    let degraded = stage.model().degraded(&web);
    let expected = Degraded::Algorithm { asked: missing, used: Algorithm::Random };
    ensure!(degraded.contains(&expected), "{degraded:?} lacks {expected:?}");
    stage.change([Change::UpsertService(web), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    stage.probe_all(Probe::everywhere(WEB))
}

pub(super) fn requires(stage: &Stage, kind: FrontendKind) -> Verdict {
    if stage.capabilities().frontends.contains(&kind) { Ok(()) } else { Err(Fault::lacks(format!("{kind} frontends"))) }
}
