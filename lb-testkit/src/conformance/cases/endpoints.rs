//! Endpoints that come and go while flows live.

use std::{collections::BTreeSet, time::Duration};

use lb_core::{
    addr::{Family, Protocol},
    endpoint::SlicePort,
    model::Change,
    name::SliceName,
    service::ServicePort,
};

use super::{Case, cases};
use crate::{
    conformance::{
        Fault, Stage, Verdict, ensure,
        fate::pod_of,
        probe::{ORIGINS, PACKET_ORIGINS, Probe},
        service::{BACK_PORT, CLIENT_POD, FRONT_PORT, OTHER_BACK_PORT, Vip, WEB, endpoints, named, service, web},
    },
    lab::{Held, Origin, topology},
    traffic::{FailureKind, Load, LoadKind, Outcome, Transport, Until},
};

pub(super) const CASES: [Case; 9] = cases![
    established_connections_survive_scaling_up_and_down,
    new_flows_avoid_a_backend_that_left,
    udp_flows_leave_a_backend_that_left,
    connected_sockets_of_the_node_leave_a_backend_that_left,
    unconnected_sockets_leave_a_backend_that_left,
    all_endpoints_are_replaced_at_once,
    a_deleted_service_answers_no_more_and_others_do,
    no_request_fails_while_endpoints_change,
    ports_of_a_live_service_come_and_go,
];

pub(super) const SOCKETS: usize = 8;
const FLOWS: usize = 6;

fn established_connections_survive_scaling_up_and_down(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    with_held(stage, &ORIGINS, Transport::Tcp, |stage, held| {
        for pods in [&["a", "b", "c", "d"][..], &["b", "d"], &["e"], &[]] {
            stage.change([Change::ReplaceEndpoints(endpoints("web", pods))])?;
            held.iter().try_for_each(|held| held.same_pods())?;
        }
        Ok(())
    })
}

fn new_flows_avoid_a_backend_that_left(stage: &mut Stage) -> Verdict {
    stage.change([Change::UpsertService(web())])?;
    for pods in [&["a", "b", "c", "d"][..], &["b", "d"], &["a", "b", "d", "e"], &["c"]] {
        stage.change([Change::ReplaceEndpoints(endpoints("web", pods))])?;
        for _ in 0..FLOWS {
            for probe in Probe::everywhere(WEB) {
                // Nobody takes a flow that the capabilities leave out.
                let Some(backend) = stage.probe(probe)?.map(pod_of) else { continue };
                ensure!(pods.contains(&backend), "{probe:?} reached {backend}, endpoints are {pods:?}");
            }
        }
    }
    Ok(())
}

/// Sockets that stay connected, as a resolver's do.
fn udp_flows_leave_a_backend_that_left(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    moves_on(stage, &PACKET_ORIGINS, Transport::Udp)
}

fn connected_sockets_of_the_node_leave_a_backend_that_left(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    if stage.translates_sockets() && !stage.ends_sockets() {
        return Err(Fault::lacks("re-selection for connected datagram sockets: they are translated once"));
    }
    moves_on(stage, &[Origin::Pod(CLIENT_POD), Origin::Node(0)], Transport::Udp)
}

fn unconnected_sockets_leave_a_backend_that_left(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    moves_on(stage, &ORIGINS, Transport::UdpUnconnected)
}

fn moves_on(stage: &mut Stage, origins: &[Origin], transport: Transport) -> Verdict {
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    with_held(stage, origins, transport, |stage, held| {
        for pods in [&["b", "d"][..], &["d"], &["a"]] {
            stage.change([Change::ReplaceEndpoints(endpoints("web", pods))])?;
            held.iter().try_for_each(|held| held.only_pods(pods))?;
        }
        Ok(())
    })
}

fn all_endpoints_are_replaced_at_once(stage: &mut Stage) -> Verdict {
    stage.change([Change::UpsertService(web())])?;
    for pods in [&["a", "c"][..], &["b", "d"], &["e", "client"], &["a", "c"]] {
        stage.change([Change::ReplaceEndpoints(endpoints("web", pods))])?;
        (0..FLOWS).try_for_each(|_| stage.probe_all(Probe::everywhere(WEB)))?;
    }
    Ok(())
}

fn a_deleted_service_answers_no_more_and_others_do(stage: &mut Stage) -> Verdict {
    const OTHER: Vip = Vip::cluster(12);
    stage.change([
        Change::UpsertService(web()),
        Change::ReplaceEndpoints(endpoints("web", &["a", "c"])),
        Change::UpsertService(service("other", OTHER)),
        Change::ReplaceEndpoints(endpoints("other", &["a", "d"])),
    ])?;
    stage.probe_all(Probe::everywhere(WEB).chain(Probe::everywhere(OTHER)))?;
    stage.change([Change::RemoveService(named("web"))])?;
    stage.probe_all(Probe::everywhere(WEB).chain(Probe::everywhere(OTHER)))?;
    stage.change([Change::UpsertService(web())])?;
    stage.probe_all(Probe::everywhere(WEB).chain(Probe::everywhere(OTHER)))
}

fn no_request_fails_while_endpoints_change(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    let rounds = [&["a", "b", "c"][..], &["a", "c"], &["c", "d", "e"], &["c", "a"]];
    let slices: Vec<_> = rounds.iter().cycle().take(12).map(|pods| endpoints("web", pods)).collect();
    stage.with_lab(|stage, lab| {
        let mut running = Vec::new();
        for origin in ORIGINS {
            for (kind, transport, family) in [
                (LoadKind::NewConnections, Transport::Tcp, Family::V4),
                (LoadKind::Datagrams, Transport::Udp, Family::V6),
            ] {
                if !stage.forwards(Probe::new(origin, WEB, family, transport)) {
                    continue;
                }
                let to = (WEB.ip(family), FRONT_PORT).into();
                let load = Load::new(kind, to).until(Until::Stopped).interval(Duration::from_millis(2));
                let load = if kind == LoadKind::Datagrams { from_ports(load, origin) } else { load };
                running.push((origin, kind, lab.client(origin).start_load(&load)?));
            }
        }
        for slice in slices {
            stage.change([Change::ReplaceEndpoints(slice)])?;
            stage.probe_all(ORIGINS.map(|origin| Probe::new(origin, WEB, Family::V4, Transport::Tcp)))?;
        }
        for (origin, kind, load) in running {
            let report = load.stop()?;
            ensure!(
                report.failed() == 0 && report.answered() > 0,
                "{kind:?} from {origin:?}: {} of {} failed, such as {:?}",
                report.failed(),
                report.failed() + report.answered(),
                report.example
            );
        }
        Ok(())
    })
}

/// From half of the ports for each of the two that have an address in common. A port is not used twice: conntrack knows
/// an answered flow whose port has come round from one at rest by nothing, and may forget it while an answer is under
/// way.
fn from_ports(load: Load, origin: Origin) -> Load {
    match origin {
        Origin::PodPackets(_) => load.ports(20_000, 42_499),
        _ => load.ports(42_500, 64_999),
    }
}

/// Held sockets of one vantage point and family, and what they got at first.
pub(super) struct Flows<'lab> {
    what: String,
    held: Held<'lab>,
    first: Vec<String>,
    /// Whether a socket fails once when its backend leaves, and gets another one when it connects again.
    recovers: bool,
}

impl Flows<'_> {
    pub(super) fn same_pods(&self) -> Verdict {
        let now = self.pods()?;
        ensure!(now == self.first, "{}: {:?} became {now:?}", self.what, self.first);
        Ok(())
    }

    pub(super) fn only_pods(&self, allowed: &[&str]) -> Verdict {
        if self.recovers {
            // Those that fail do so at once, and not by a time-out.
            let failures = self.held.exchange()?.into_iter().filter_map(Result::err);
            let other = failures.into_iter().find(|failure| failure.kind != FailureKind::Reset);
            ensure!(other.is_none(), "{}: {other:?}, expected the end of the socket", self.what);
        }
        let now: BTreeSet<String> = self.pods()?.into_iter().collect();
        let wrong = now.iter().find(|pod| !allowed.contains(&pod.as_str()));
        ensure!(wrong.is_none(), "{}: answered by {now:?}, endpoints are {allowed:?}", self.what);
        Ok(())
    }

    /// Connections to these pods are cut, and the client notices at once; the others go on.
    pub(super) fn only_cut(&self, gone: &[&str]) -> Verdict {
        for (first, now) in self.first.iter().zip(self.held.exchange()?) {
            let is_right = match &now {
                Err(failure) => gone.contains(&&**first) && failure.kind == FailureKind::Reset,
                Ok(response) => !gone.contains(&&**first) && response.pod == *first,
            };
            ensure!(is_right, "{}: a connection to {first} while {gone:?} are cut: {now:?}", self.what);
        }
        Ok(())
    }

    /// Nobody answers.
    pub(super) fn no_pods(&self) -> Verdict {
        let answered: Vec<String> = self.held.exchange()?.into_iter().flatten().map(|response| response.pod).collect();
        ensure!(answered.is_empty(), "{}: answered by {answered:?}", self.what);
        Ok(())
    }

    fn pods(&self) -> Result<Vec<String>, Fault> {
        pods(&self.what, &self.held.exchange()?)
    }
}

/// Opens sockets to [`WEB`] from each vantage point in each family, and keeps them while `play` runs.
pub(super) fn with_held(
    stage: &mut Stage,
    origins: &[Origin],
    transport: Transport,
    play: impl FnOnce(&mut Stage, &[Flows<'_>]) -> Verdict,
) -> Verdict {
    stage.with_lab(|stage, lab| {
        let mut flows = Vec::new();
        for &origin in origins {
            for family in topology::FAMILIES {
                if !stage.forwards(Probe::new(origin, WEB, family, transport)) {
                    continue;
                }
                let what = format!("{transport:?} from {origin:?} {family:?}");
                let held = lab.client(origin).hold(transport, (WEB.ip(family), FRONT_PORT).into(), SOCKETS)?;
                let first = pods(&what, held.opened())?;
                let recovers =
                    transport == Transport::Udp && stage.at_socket(Probe::new(origin, WEB, family, transport));
                flows.push(Flows { what, held, first, recovers });
            }
        }
        play(stage, &flows)
    })
}

fn pods(what: &str, outcomes: &[Outcome]) -> Result<Vec<String>, Fault> {
    let pods = outcomes.iter().map(|outcome| match outcome {
        Ok(response) => Ok(response.pod.clone()),
        Err(failure) => Err(Fault::Failed(format!("{what}: {failure}"))),
    });
    pods.collect()
}

/// Each port has a target of its own. A port that is added works, and one that is removed or renumbered stops.
fn ports_of_a_live_service_come_and_go(stage: &mut Stage) -> Verdict {
    let second = |number| ServicePort { name: "second".into(), protocol: Protocol::Tcp, port: number, node_port: None };
    let serves = |port| {
        let mut slice = endpoints("web", &["d"]);
        slice.name = SliceName::new("default", "web-second");
        slice.ports = vec![SlicePort { name: "second".into(), protocol: Protocol::Tcp, port }];
        Change::ReplaceEndpoints(slice)
    };
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    for (number, target) in
        [(Some(81), BACK_PORT), (Some(82), BACK_PORT), (Some(82), OTHER_BACK_PORT), (None, BACK_PORT)]
    {
        let mut changed = web();
        changed.ports.extend(number.map(second));
        stage.change([Change::UpsertService(changed), serves(target)])?;
        for to in [FRONT_PORT, 81, 82] {
            let tcp = Probe::everywhere(WEB).filter(|probe| probe.transport == Transport::Tcp);
            stage.probe_all(tcp.map(|probe| Probe { to: (probe.to.ip(), to).into(), ..probe }))?;
        }
    }
    Ok(())
}
