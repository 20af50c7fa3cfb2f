//! Flows while their backend goes: those of UDP stay as long as it serves, and those of TCP as drain policies say.

use std::time::Duration;

use lb_core::{
    addr::{BackendAddr, Protocol},
    affinity::Affinity,
    endpoint::AdminState,
    health::{Health, HealthReport},
    model::Change,
    name::SourceName,
    service::{DrainPolicy, Service},
};

use super::{
    Case, cases,
    endpoints::{Flows, with_held},
};
use crate::{
    conformance::{
        Fault, Stage, Verdict, ensure,
        fate::pod_of,
        probe::{ORIGINS, PACKET_ORIGINS, Probe},
        service::{BACK_PORT, CLIENT_POD, WEB, With, endpoints, named, pod_ip, rolling, web, weighted},
    },
    lab::{Origin, topology},
    traffic::Transport,
};

pub(super) const CASES: [Case; 17] = cases![
    udp_flows_stay_while_their_backend_terminates_and_serves,
    udp_flows_leave_a_terminating_backend_that_stops_serving,
    udp_flows_leave_a_terminating_backend_that_is_gone,
    udp_flows_stay_when_their_backend_comes_back,
    new_udp_flows_avoid_a_terminating_backend,
    a_client_that_sticks_takes_new_udp_flows_off_a_terminating_backend,
    udp_flows_stay_with_a_backend_that_an_operator_drains,
    udp_flows_leave_a_draining_backend_that_turns_unhealthy,
    a_restart_keeps_udp_flows_of_a_terminating_backend,
    udp_flows_leave_a_backend_that_left_while_no_process_ran,
    udp_flows_outlive_a_time_without_backends,
    udp_flows_outlive_a_time_without_their_service,
    connections_are_cut_when_their_backend_leaves,
    connections_are_cut_when_every_backend_leaves,
    connections_drain_for_as_long_as_their_service_says,
    connections_that_drain_stay_when_their_backend_comes_back,
    connections_have_their_time_after_a_restart,
];

const FLOWS: usize = 4;
/// Backends at the beginning, and those that take over.
const OLD: [&str; 2] = ["a", "c"];
const NEW: [&str; 2] = ["b", "d"];

/// A service with the old backends, and sockets that asked them. `leave` says whether flows are to leave a backend: a
/// datapath that has translated connected sockets for good has to end them.
fn with_flows(stage: &mut Stage, leave: bool, play: impl FnOnce(&mut Stage, &[&[Flows<'_>]]) -> Verdict) -> Verdict {
    stage.lab()?;
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &OLD))])?;
    let pinned = stage.translates_sockets() && !stage.ends_sockets();
    let connected: &[Origin] = if leave && pinned { &PACKET_ORIGINS } else { &ORIGINS };
    with_held(stage, connected, Transport::Udp, |stage, connected| {
        with_held(stage, &ORIGINS, Transport::UdpUnconnected, |stage, unconnected| {
            play(stage, &[connected, unconnected])
        })
    })
}

fn each<'lab>(flows: &[&[Flows<'lab>]], check: impl FnMut(&Flows<'lab>) -> Verdict) -> Verdict {
    flows.iter().copied().flatten().try_for_each(check)
}

/// New flows reach these pods, from everywhere.
fn new_flows_reach(stage: &mut Stage, pods: &[&str]) -> Verdict {
    for _ in 0..FLOWS {
        for probe in Probe::everywhere(WEB) {
            let pod = stage.probe(probe)?.map_or("none", pod_of);
            ensure!(pods.contains(&pod), "{probe} reached {pod}, new flows belong to {pods:?}");
        }
    }
    Ok(())
}

fn udp_flows_stay_while_their_backend_terminates_and_serves(stage: &mut Stage) -> Verdict {
    with_flows(stage, false, |stage, flows| {
        for ready in [&["b"][..], &["b", "d"], &["d", "e"]] {
            stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, ready))])?;
            for _ in 0..2 {
                each(flows, Flows::same_pods)?;
            }
        }
        Ok(())
    })
}

fn udp_flows_leave_a_terminating_backend_that_stops_serving(stage: &mut Stage) -> Verdict {
    with_flows(stage, true, |stage, flows| {
        for serving in [true, false] {
            stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, serving, &NEW))])?;
            each(flows, |flows| if serving { flows.same_pods() } else { flows.only_pods(&NEW) })?;
        }
        Ok(())
    })
}

fn udp_flows_leave_a_terminating_backend_that_is_gone(stage: &mut Stage) -> Verdict {
    with_flows(stage, true, |stage, flows| {
        stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, &NEW))])?;
        each(flows, Flows::same_pods)?;
        // One after the other, as pods end.
        stage.change([Change::ReplaceEndpoints(rolling("web", &["c"], true, &NEW))])?;
        each(flows, |flows| flows.only_pods(&["b", "c", "d"]))?;
        stage.change([Change::ReplaceEndpoints(endpoints("web", &NEW))])?;
        each(flows, |flows| flows.only_pods(&NEW))
    })
}

fn udp_flows_stay_when_their_backend_comes_back(stage: &mut Stage) -> Verdict {
    with_flows(stage, false, |stage, flows| {
        stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, &NEW))])?;
        stage.change([Change::ReplaceEndpoints(endpoints("web", &["a", "b", "c", "d"]))])?;
        each(flows, Flows::same_pods)
    })
}

fn new_udp_flows_avoid_a_terminating_backend(stage: &mut Stage) -> Verdict {
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &OLD))])?;
    stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, &NEW))])?;
    new_flows_reach(stage, &NEW)?;
    // While nobody is ready, those that still serve take new flows, too.
    stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, &[]))])?;
    new_flows_reach(stage, &OLD)
}

fn a_client_that_sticks_takes_new_udp_flows_off_a_terminating_backend(stage: &mut Stage) -> Verdict {
    if stage.capabilities().affinity.is_none() {
        return Err(Fault::lacks("affinity"));
    }
    let sticky = web().affinity(Affinity::default());
    stage.change([Change::UpsertService(sticky), Change::ReplaceEndpoints(endpoints("web", &["a"]))])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    stage.lab()?;
    with_held(stage, &ORIGINS, Transport::Udp, |stage, flows| {
        stage.change([Change::ReplaceEndpoints(rolling("web", &["a"], true, &["b"]))])?;
        flows.iter().try_for_each(Flows::same_pods)?;
        new_flows_reach(stage, &["b"])?;
        flows.iter().try_for_each(Flows::same_pods)
    })
}

fn udp_flows_stay_with_a_backend_that_an_operator_drains(stage: &mut Stage) -> Verdict {
    with_flows(stage, false, |stage, flows| {
        let mut drained = endpoints("web", &["a", "b", "c", "d"]);
        let is_old = |ip| OLD.iter().any(|pod| topology::FAMILIES.iter().any(|&family| pod_ip(pod, family) == ip));
        for endpoint in drained.endpoints.iter_mut().filter(|endpoint| is_old(endpoint.ip)) {
            endpoint.admin = AdminState::Draining { until: None };
        }
        stage.change([Change::ReplaceEndpoints(drained)])?;
        each(flows, Flows::same_pods)?;
        new_flows_reach(stage, &NEW)?;
        stage.change([Change::ReplaceEndpoints(weighted("web", &[("a", 0), ("b", 1), ("c", 0)], BACK_PORT))])?;
        each(flows, Flows::same_pods)?;
        new_flows_reach(stage, &["b"])
    })
}

fn udp_flows_leave_a_draining_backend_that_turns_unhealthy(stage: &mut Stage) -> Verdict {
    with_flows(stage, true, |stage, flows| {
        stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, &NEW))])?;
        each(flows, Flows::same_pods)?;
        let verdict = |pod, family| {
            let backend = BackendAddr::new(pod_ip(pod, family), BACK_PORT, Protocol::Udp);
            let source = SourceName("probe".into());
            Change::SetHealth(HealthReport { source, backend, health: Health::Unhealthy })
        };
        let verdicts = OLD.into_iter().flat_map(|pod| topology::FAMILIES.map(|family| verdict(pod, family)));
        stage.change(verdicts)?;
        each(flows, |flows| flows.only_pods(&NEW))
    })
}

fn a_restart_keeps_udp_flows_of_a_terminating_backend(stage: &mut Stage) -> Verdict {
    with_flows(stage, false, |stage, flows| {
        stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, &NEW))])?;
        stage.restart()?;
        each(flows, Flows::same_pods)?;
        new_flows_reach(stage, &NEW)
    })
}

fn udp_flows_leave_a_backend_that_left_while_no_process_ran(stage: &mut Stage) -> Verdict {
    with_flows(stage, true, |stage, flows| {
        stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, &NEW))])?;
        stage.miss(rolling("web", &OLD, false, &NEW));
        stage.restart()?;
        each(flows, |flows| flows.only_pods(&NEW))
    })
}

/// The same sockets, whose flows a datapath may remember as refused.
fn udp_flows_outlive_a_time_without_backends(stage: &mut Stage) -> Verdict {
    with_flows(stage, true, |stage, flows| {
        stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, false, &[]))])?;
        each(flows, Flows::no_pods)?;
        stage.change([Change::ReplaceEndpoints(endpoints("web", &NEW))])?;
        each(flows, |flows| flows.only_pods(&NEW))
    })
}

/// The same sockets, whose flows the kernel may remember as those of a plain address.
fn udp_flows_outlive_a_time_without_their_service(stage: &mut Stage) -> Verdict {
    // Without a service nobody refuses, so that each of these is waited for.
    const ORIGINS: [Origin; 2] = [Origin::PodPackets(CLIENT_POD), Origin::Client];
    stage.lab()?;
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &OLD))])?;
    with_held(stage, &ORIGINS, Transport::UdpUnconnected, |stage, flows| {
        stage.change([Change::RemoveService(named("web"))])?;
        flows.iter().try_for_each(Flows::no_pods)?;
        stage.change([Change::ReplaceEndpoints(endpoints("web", &NEW)), Change::UpsertService(web())])?;
        flows.iter().try_for_each(|flows| flows.only_pods(&NEW))
    })
}

/// Time to drain in these cases. It passes only where a case lets it.
const DRAIN: Duration = Duration::from_secs(2);

/// Connections to a service with this policy, whose old backends then leave.
fn with_connections(
    stage: &mut Stage,
    policy: DrainPolicy,
    play: impl FnOnce(&mut Stage, &[Flows<'_>]) -> Verdict,
) -> Verdict {
    stage.lab()?;
    if !stage.capabilities().drain {
        return Err(Fault::lacks("drain policies"));
    }
    let service = Service { drain: policy, ..web() };
    stage.change([Change::UpsertService(service), Change::ReplaceEndpoints(endpoints("web", &["a", "b", "c"]))])?;
    with_held(stage, &ORIGINS, Transport::Tcp, play)
}

fn connections_are_cut_when_their_backend_leaves(stage: &mut Stage) -> Verdict {
    with_connections(stage, DrainPolicy::Cut, |stage, connections| {
        stage.change([Change::ReplaceEndpoints(rolling("web", &OLD, true, &NEW))])?;
        connections.iter().try_for_each(|connections| connections.only_cut(&OLD))?;
        new_flows_reach(stage, &NEW)
    })
}

fn connections_are_cut_when_every_backend_leaves(stage: &mut Stage) -> Verdict {
    with_connections(stage, DrainPolicy::Cut, |stage, connections| {
        stage.change([Change::ReplaceEndpoints(endpoints("web", &[]))])?;
        connections.iter().try_for_each(|connections| connections.only_cut(&["a", "b", "c"]))
    })
}

fn connections_drain_for_as_long_as_their_service_says(stage: &mut Stage) -> Verdict {
    with_connections(stage, DrainPolicy::For(DRAIN), |stage, connections| {
        stage.change([Change::ReplaceEndpoints(endpoints("web", &NEW))])?;
        connections.iter().try_for_each(Flows::same_pods)?;
        new_flows_reach(stage, &NEW)?;
        stage.pass_time(DRAIN);
        stage.settle()?;
        connections.iter().try_for_each(|connections| connections.only_cut(&OLD))
    })
}

fn connections_that_drain_stay_when_their_backend_comes_back(stage: &mut Stage) -> Verdict {
    with_connections(stage, DrainPolicy::For(DRAIN), |stage, connections| {
        // What was there before the policy has its time first.
        stage.pass_time(DRAIN);
        stage.settle()?;
        stage.change([Change::ReplaceEndpoints(endpoints("web", &NEW))])?;
        stage.change([Change::ReplaceEndpoints(endpoints("web", &["a", "b", "c"]))])?;
        stage.pass_time(DRAIN);
        stage.settle()?;
        connections.iter().try_for_each(Flows::same_pods)
    })
}

fn connections_have_their_time_after_a_restart(stage: &mut Stage) -> Verdict {
    with_connections(stage, DrainPolicy::For(DRAIN), |stage, connections| {
        stage.miss(endpoints("web", &NEW));
        stage.restart()?;
        connections.iter().try_for_each(Flows::same_pods)?;
        stage.pass_time(DRAIN);
        stage.settle()?;
        connections.iter().try_for_each(|connections| connections.only_cut(&OLD))
    })
}
