//! Three nodes with the datapath. Two have backends, and the third one has none.
//!
//! Cases are named after scenarios of kube-proxy's own tests and of the end-to-end tests of Kubernetes, and of Cilium's
//! tests, where they are about packets and more than one node.

use std::sync::Arc;

use ipnet::IpNet;
use lb_core::{
    addr::{Family, FrontendKind, Protocol},
    affinity::Affinity,
    endpoint::Conditions,
    model::Change,
    node::NodeFacts,
    service::{DrainPolicy, HostIps, Service, ServiceType, TrafficPolicy},
    sources::{RangePolicy, SourceRanges},
};

use super::{Case, cases, reach::requires};
use crate::{
    conformance::{
        Fault, Stage, Verdict,
        cluster::Cluster,
        ensure,
        fate::pod_of,
        probe::Probe,
        service::{CLIENTS, FRONT_PORT, Vip, WEB, With, endpoints, named, rolling, service, web, weighted},
    },
    lab::{Held, Lab, Origin, topology},
    traffic::{FailureKind, Transport},
};

pub(super) const CASES: [Case; 17] = cases![3 nodes:
    a_cluster_address_is_reached_from_every_node,
    a_pod_reaches_itself_through_every_frontend,
    no_endpoints_are_a_refusal_until_there_is_one,
    a_node_port_is_at_every_node,
    other_ports_and_protocols_of_external_addresses,
    node_ports_follow_the_addresses_of_a_node,
    a_service_that_loses_its_backends_leaves_others_alone,
    one_port_has_two_protocols_with_backends_of_their_own,
    a_host_port_goes_from_one_pod_to_the_next,
    external_policy_local_on_every_kind_of_frontend,
    internal_policy_local_is_about_cluster_addresses,
    source_ranges_on_every_node,
    an_external_address_that_no_node_has,
    affinity_at_a_node_port_and_within_the_local_backends,
    terminating_endpoints_under_both_policies,
    flows_of_an_endpoint_that_left,
    services_and_agents_that_come_back,
];

const INGRESS: Vip = Vip::ingress(100);
const EXTERNAL: Vip = Vip::ingress(200);
const NODE_PORT: u16 = 30_080;
/// A port of no service.
const OTHER_PORT: u16 = 30_081;
/// Backends on nodes 0 and 1.
const PODS: [&str; 2] = ["a", "c"];
/// Connections of each client that are held while things change.
const HELD: usize = 4;

/// A service of every kind of frontend that the datapath has, at these addresses.
fn everything(stage: &Stage) -> Service {
    let has = |kind| stage.capabilities().frontends.contains(&kind);
    let mut service = web();
    if has(FrontendKind::LoadBalancer) {
        service = service.load_balancer_ips(INGRESS);
    }
    if has(FrontendKind::ExternalIp) {
        service = service.external_ips(EXTERNAL);
    }
    if has(FrontendKind::NodePort) {
        service.ports.iter_mut().for_each(|port| port.node_port = Some(NODE_PORT));
    }
    service
}

/// New flows to each frontend of [`everything`], and to its cluster address.
fn reach_everything(cluster: &mut Cluster<'_>) -> Verdict {
    [WEB, INGRESS, EXTERNAL].into_iter().try_for_each(|vip| cluster.reach(vip))?;
    if cluster.stage(0).capabilities().frontends.contains(&FrontendKind::NodePort) {
        cluster.reach_node_port(NODE_PORT)?;
    }
    Ok(())
}

fn a_cluster_address_is_reached_from_every_node(stage: &mut Stage) -> Verdict {
    Cluster::play(stage, |cluster| {
        let pods = endpoints("web", &["a", "b", "c", "d"]);
        cluster.change([Change::UpsertService(web()), Change::ReplaceEndpoints(pods)])?;
        cluster.reach(WEB)
    })
}

fn a_pod_reaches_itself_through_every_frontend(stage: &mut Stage) -> Verdict {
    let everything = everything(stage);
    Cluster::play(stage, |cluster| {
        for node in cluster.nodes() {
            let client = ["client", "e", "f"][node];
            let only_itself = endpoints("web", &[client]);
            cluster.change([Change::UpsertService(everything.clone()), Change::ReplaceEndpoints(only_itself)])?;
            for vip in [WEB, INGRESS, EXTERNAL] {
                cluster.reach_from(node, vip)?;
            }
        }
        if cluster.stage(0).capabilities().frontends.contains(&FrontendKind::NodePort) {
            cluster.reach_node_port(NODE_PORT)?;
        }
        Ok(())
    })
}

fn no_endpoints_are_a_refusal_until_there_is_one(stage: &mut Stage) -> Verdict {
    let everything = everything(stage);
    Cluster::play(stage, |cluster| {
        cluster.change([Change::UpsertService(everything)])?;
        reach_everything(cluster)?;
        cluster.change([Change::ReplaceEndpoints(endpoints("web", &["c"]))])?;
        reach_everything(cluster)?;
        // An evicted pod is one that is neither ready nor on its way out.
        let mut evicted = endpoints("web", &["c"]);
        evicted.endpoints.iter_mut().for_each(|endpoint| {
            endpoint.conditions = Conditions { ready: false, serving: false, terminating: false };
        });
        cluster.change([Change::ReplaceEndpoints(evicted)])?;
        reach_everything(cluster)
    })
}

fn a_node_port_is_at_every_node(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::NodePort)?;
    let everything = everything(stage);
    Cluster::play(stage, |cluster| {
        cluster.change([Change::UpsertService(everything), Change::ReplaceEndpoints(endpoints("web", &PODS))])?;
        cluster.reach_node_port(NODE_PORT)?;
        cluster.reach_node_port(OTHER_PORT)
    })
}

fn other_ports_and_protocols_of_external_addresses(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::LoadBalancer)?;
    if !stage.capabilities().other_ports {
        return Err(Fault::lacks("a say in other ports"));
    }
    let mut tcp_only = everything(stage);
    tcp_only.ports.retain(|port| port.protocol == Protocol::Tcp);
    Cluster::play(stage, |cluster| {
        cluster.change([Change::UpsertService(tcp_only), Change::ReplaceEndpoints(endpoints("web", &PODS))])?;
        // UDP at a port of TCP is another port.
        [INGRESS, EXTERNAL].into_iter().try_for_each(|vip| cluster.reach(vip))?;
        for node in cluster.nodes() {
            cluster.route_via(node)?;
            for probe in Probe::from_origins(&[Origin::Beyond, Origin::PodPackets(CLIENTS[node])], INGRESS) {
                let to = (probe.to.ip(), OTHER_PORT).into();
                cluster.stage(node).probe(Probe { to, ..probe }.at(node))?;
            }
        }
        // The port is known and has no backend: that is a refusal.
        cluster.change([Change::ReplaceEndpoints(endpoints("web", &[]))])?;
        cluster.reach(INGRESS)
    })
}

fn node_ports_follow_the_addresses_of_a_node(stage: &mut Stage) -> Verdict {
    const NODE: usize = 2;
    const LATER: Vip = Vip { v4: [172, 18, 0, 200], v6: [0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x200] };
    requires(stage, FrontendKind::NodePort)?;
    let everything = everything(stage);
    Cluster::play(stage, |cluster| {
        let lab = cluster.lab()?;
        cluster.change([Change::UpsertService(everything), Change::ReplaceEndpoints(endpoints("web", &PODS))])?;
        let before = lab.node(NODE).facts();
        let both = topology::FAMILIES.map(|family| LATER.ip(family));
        both.iter().try_for_each(|&ip| lab.node(NODE).add_address(ip))?;
        let more = NodeFacts { ips: before.ips.iter().copied().chain(both).collect(), ..before.clone() };
        cluster.stage(NODE).change([Change::SetNode(more)])?;
        let outside: Vec<Probe> = Probe::from_origins(&[Origin::Beyond, Origin::Client, Origin::Node(0)], LATER)
            .map(|probe| Probe { to: (probe.to.ip(), NODE_PORT).into(), ..probe }.at(NODE))
            .collect();
        cluster.stage(NODE).probe_all(outside.iter().copied())?;
        both.iter().try_for_each(|&ip| lab.node(NODE).remove_address(ip))?;
        cluster.stage(NODE).change([Change::SetNode(before)])?;
        cluster.stage(NODE).probe_all(outside)?;
        cluster.reach_node_port(NODE_PORT)
    })
}

fn a_service_that_loses_its_backends_leaves_others_alone(stage: &mut Stage) -> Verdict {
    const OTHER: Vip = Vip::cluster(12);
    Cluster::play(stage, |cluster| {
        cluster.change([
            Change::UpsertService(web()),
            Change::ReplaceEndpoints(endpoints("web", &PODS)),
            Change::UpsertService(service("other", OTHER)),
            Change::ReplaceEndpoints(endpoints("other", &PODS)),
        ])?;
        [WEB, OTHER].into_iter().try_for_each(|vip| cluster.reach(vip))?;
        cluster.change([Change::ReplaceEndpoints(endpoints("other", &[]))])?;
        [WEB, OTHER].into_iter().try_for_each(|vip| cluster.reach(vip))
    })
}

fn one_port_has_two_protocols_with_backends_of_their_own(stage: &mut Stage) -> Verdict {
    let everything = everything(stage);
    Cluster::play(stage, |cluster| {
        let of = |pod, protocol: Protocol, name: &str| {
            let mut slice = weighted("web", &[(pod, 100)], 8080);
            slice.ports.retain(|port| port.protocol == protocol);
            slice.name = lb_core::name::SliceName::new("default", name);
            Change::ReplaceEndpoints(slice)
        };
        let changes =
            [Change::UpsertService(everything), of("a", Protocol::Tcp, "web-tcp"), of("d", Protocol::Udp, "web-udp")];
        cluster.change(changes)?;
        reach_everything(cluster)
    })
}

fn a_host_port_goes_from_one_pod_to_the_next(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::HostPort)?;
    let host_port = |number: u16| {
        let mut service = Service {
            kind: ServiceType::HostPort,
            ports: web().ports,
            host_ips: Some(HostIps::Every),
            ..Service::new(named("web"))
        };
        service.ports.iter_mut().for_each(|port| port.port = number);
        service
    };
    Cluster::play(stage, |cluster| {
        // A pod of node 0 has the port of that node; the port moves to another pod, then to another number, then it ends.
        for (number, pods) in [(4444, &["a"][..]), (4444, &["b"]), (5555, &["b"]), (5555, &[])] {
            let changes = [Change::UpsertService(host_port(number)), Change::ReplaceEndpoints(endpoints("web", pods))];
            cluster.stage(0).change(changes)?;
            for port in [4444, 5555] {
                let origins =
                    [Origin::Beyond, Origin::Pod(CLIENTS[0]), Origin::PodPackets(CLIENTS[0]), Origin::Node(0)];
                for origin in origins.into_iter().chain([Origin::PodPackets(CLIENTS[2]), Origin::Node(2)]) {
                    for probe in Probe::from_origins(&[origin], WEB) {
                        let to = (topology::node_ip(0, probe.family()), port).into();
                        cluster.stage(0).probe(Probe { to, ..probe })?;
                    }
                }
            }
        }
        Ok(())
    })
}

fn external_policy_local_on_every_kind_of_frontend(stage: &mut Stage) -> Verdict {
    if !stage.capabilities().external_traffic_policy_local {
        return Err(Fault::lacks("external traffic policy Local"));
    }
    let with = |policy, everything: &Service| {
        let mut service = everything.clone();
        service.external_traffic_policy = policy;
        Change::UpsertService(service)
    };
    let everything = everything(stage);
    Cluster::play(stage, |cluster| {
        cluster.change([
            with(TrafficPolicy::Local, &everything),
            Change::ReplaceEndpoints(endpoints("web", &["a", "c", "d"])),
        ])?;
        reach_everything(cluster)?;
        let lab = cluster.lab()?;
        let held = hold(&lab, INGRESS, &[Origin::Beyond, Origin::PodPackets(CLIENTS[0])])?;
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            cluster.change([with(policy, &everything)])?;
            held.iter().try_for_each(goes_on)?;
            cluster.reach(INGRESS)?;
        }
        held.iter().try_for_each(goes_on)
    })
}

fn internal_policy_local_is_about_cluster_addresses(stage: &mut Stage) -> Verdict {
    let mut local = everything(stage);
    local.internal_traffic_policy = TrafficPolicy::Local;
    Cluster::play(stage, |cluster| {
        cluster.change([Change::UpsertService(local), Change::ReplaceEndpoints(endpoints("web", &["a", "c", "d"]))])?;
        reach_everything(cluster)
    })
}

fn source_ranges_on_every_node(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::LoadBalancer)?;
    if !stage.capabilities().source_ranges {
        return Err(Fault::lacks("source ranges"));
    }
    let beyond: [IpNet; 2] = topology::FAMILIES.map(topology::beyond);
    let everything = everything(stage);
    Cluster::play(stage, |cluster| {
        for policy in [RangePolicy::Allow, RangePolicy::Deny] {
            let guarded =
                Service { source_ranges: Some(Arc::new(SourceRanges::new(policy, beyond))), ..everything.clone() };
            cluster.change([Change::UpsertService(guarded), Change::ReplaceEndpoints(endpoints("web", &PODS))])?;
            reach_everything(cluster)?;
        }
        Ok(())
    })
}

fn an_external_address_that_no_node_has(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::ExternalIp)?;
    let external = web().external_ips(EXTERNAL);
    Cluster::play(stage, |cluster| {
        cluster.change([Change::UpsertService(external), Change::ReplaceEndpoints(endpoints("web", &PODS))])?;
        cluster.reach(EXTERNAL)
    })
}

fn affinity_at_a_node_port_and_within_the_local_backends(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::NodePort)?;
    if stage.capabilities().affinity.is_none() {
        return Err(Fault::lacks("affinity"));
    }
    let sticky = everything(stage).affinity(Affinity::default());
    let knows_local = stage.capabilities().external_traffic_policy_local;
    let policies = [Some(TrafficPolicy::Cluster), knows_local.then_some(TrafficPolicy::Local)];
    Cluster::play(stage, |cluster| {
        for policy in policies.into_iter().flatten() {
            let service = Service { external_traffic_policy: policy, ..sticky.clone() };
            let pods = endpoints("web", &["a", "b", "c", "d"]);
            cluster.change([Change::UpsertService(service), Change::ReplaceEndpoints(pods)])?;
            for (node, family) in [(0, Family::V4), (1, Family::V6)] {
                for origin in [Origin::Beyond, Origin::Client] {
                    sticks(cluster, node, origin, family, policy)?;
                }
            }
        }
        Ok(())
    })
}

/// One client has one backend at the node port of a node, and under policy Local it is one of that node.
fn sticks(cluster: &mut Cluster<'_>, node: usize, origin: Origin, family: Family, policy: TrafficPolicy) -> Verdict {
    let lab = cluster.lab()?;
    let to = (topology::node_ip(node, family), NODE_PORT).into();
    let held = lab.client(origin).hold(Transport::Tcp, to, 20)?;
    let pods: Vec<String> = answered(&held)?;
    let one = pods.iter().all(|pod| *pod == pods[0]);
    ensure!(one, "{origin:?} to {to} under {policy:?}: {pods:?}");
    let here = lab.pod(&pods[0]).is_some_and(|pod| pod.node().index() == node);
    ensure!(here || policy == TrafficPolicy::Cluster, "{origin:?} to {to}: {} is not on node {node}", pods[0]);
    Ok(())
}

fn terminating_endpoints_under_both_policies(stage: &mut Stage) -> Verdict {
    let everything = everything(stage);
    let has_local = stage.capabilities().external_traffic_policy_local;
    let policies = [TrafficPolicy::Cluster, TrafficPolicy::Local];
    Cluster::play(stage, |cluster| {
        for policy in policies.into_iter().filter(|policy| has_local || *policy == TrafficPolicy::Cluster) {
            let service =
                Service { external_traffic_policy: policy, internal_traffic_policy: policy, ..everything.clone() };
            cluster.change([Change::UpsertService(service)])?;
            // One that terminates beside one that is ready, on one node; only one elsewhere; all of them.
            for (out, ready) in [(&["b"][..], &["a", "c"][..]), (&["c"], &[]), (&["a", "d"], &[])] {
                cluster.change([Change::ReplaceEndpoints(rolling("web", out, true, ready))])?;
                cluster.reach(WEB)?;
                cluster.reach(INGRESS)?;
            }
        }
        Ok(())
    })
}

fn flows_of_an_endpoint_that_left(stage: &mut Stage) -> Verdict {
    requires(stage, FrontendKind::LoadBalancer)?;
    let drain = stage.capabilities().drain;
    let service = web().load_balancer_ips(INGRESS);
    Cluster::play(stage, |cluster| {
        cluster.change([Change::UpsertService(service.clone()), Change::ReplaceEndpoints(endpoints("web", &PODS))])?;
        // Through the node that has no backend: each of these is translated there.
        cluster.route_via(2)?;
        let lab = cluster.lab()?;
        let connections = hold(&lab, INGRESS, &[Origin::Beyond, Origin::PodPackets(CLIENTS[2])])?;
        let datagrams = hold_over(&lab, Transport::UdpUnconnected, INGRESS, &[Origin::Beyond])?;
        cluster.change([Change::ReplaceEndpoints(endpoints("web", &["b", "d"]))])?;
        connections.iter().try_for_each(goes_on)?;
        for (held, _) in &datagrams {
            let pods = answered_now(held)?;
            ensure!(pods.iter().all(|pod| ["b", "d"].contains(&pod.as_str())), "datagrams are answered by {pods:?}");
        }
        if drain {
            // The backends that left are no longer known; those that leave now are cut.
            let cut = Service { drain: DrainPolicy::Cut, ..service };
            cluster.change([Change::UpsertService(cut)])?;
            let cut = hold(&lab, INGRESS, &[Origin::Beyond])?;
            cluster.change([Change::ReplaceEndpoints(endpoints("web", &PODS))])?;
            for (held, _) in &cut {
                let ends = held.exchange()?;
                let reset = |outcome: &_| matches!(outcome, Err(crate::traffic::Failure { kind, .. }) if *kind == FailureKind::Reset);
                ensure!(ends.iter().all(reset), "connections that are to be cut: {ends:?}");
            }
        }
        Ok(())
    })
}

fn services_and_agents_that_come_back(stage: &mut Stage) -> Verdict {
    let everything = everything(stage);
    Cluster::play(stage, |cluster| {
        cluster
            .change([Change::UpsertService(everything.clone()), Change::ReplaceEndpoints(endpoints("web", &PODS))])?;
        let lab = cluster.lab()?;
        let held = hold(&lab, WEB, &[Origin::Beyond, Origin::Pod(CLIENTS[0]), Origin::PodPackets(CLIENTS[2])])?;
        for node in cluster.nodes() {
            cluster.stage(node).restart()?;
            held.iter().try_for_each(goes_on)?;
        }
        cluster
            .change([Change::RemoveService(named("web")), Change::ReplaceEndpoints(endpoints("web", &["b", "d"]))])?;
        cluster.change([Change::UpsertService(everything)])?;
        cluster.reach(WEB)?;
        let probe = Probe::new(Origin::Node(2), WEB, Family::V4, Transport::Tcp).at(2);
        let pod = cluster.stage(2).probe(probe)?.map_or("none", pod_of);
        ensure!(["b", "d"].contains(&pod), "{pod} answers, which is no endpoint of the new service");
        held.iter().try_for_each(goes_on)
    })
}

/// Connections of one client in one family, and who answered at first.
type Connections<'lab> = (Held<'lab>, Vec<String>);

fn hold<'lab>(lab: &'lab Lab, vip: Vip, origins: &[Origin]) -> Result<Vec<Connections<'lab>>, Fault> {
    hold_over(lab, Transport::Tcp, vip, origins)
}

fn hold_over<'lab>(
    lab: &'lab Lab,
    transport: Transport,
    vip: Vip,
    origins: &[Origin],
) -> Result<Vec<Connections<'lab>>, Fault> {
    let mut all = Vec::new();
    for &origin in origins {
        for family in topology::FAMILIES {
            let held = lab.client(origin).hold(transport, (vip.ip(family), FRONT_PORT).into(), HELD)?;
            let pods = answered(&held)?;
            all.push((held, pods));
        }
    }
    Ok(all)
}

/// Who answered when the sockets were opened.
fn answered(held: &Held<'_>) -> Result<Vec<String>, Fault> {
    let pods = held.opened().iter().map(|opened| opened.as_ref().map(|answer| answer.pod.clone()));
    pods.collect::<Result<_, _>>().map_err(|failure| Fault::Failed(format!("opening a socket: {failure}")))
}

/// Who answers now.
fn answered_now(held: &Held<'_>) -> Result<Vec<String>, Fault> {
    let pods = held.exchange()?.into_iter().map(|outcome| outcome.map(|answer| answer.pod));
    pods.collect::<Result<_, _>>().map_err(|failure| Fault::Failed(format!("a socket that is held: {failure}")))
}

/// Every connection is answered by whom it began with.
fn goes_on((held, first): &Connections<'_>) -> Verdict {
    let now = answered_now(held)?;
    ensure!(now == *first, "connections to {first:?} are answered by {now:?}");
    Ok(())
}
