//! How a backend is chosen for a new flow.

use std::collections::BTreeMap;

use lb_core::{
    addr::Family,
    model::Change,
    service::{Algorithm, Service},
};

use super::{Case, cases};
use crate::{
    conformance::{
        Fault, Stage, Verdict,
        chi_square::{limit, statistic},
        ensure,
        probe::{ORIGINS, PACKET_ORIGINS, Probe},
        service::{FRONT_PORT, WEB, With, endpoints, web, weighted},
    },
    lab::{Origin, topology},
    traffic::{Load, LoadKind, Transport},
};

pub(super) const CASES: [Case; 6] = cases![
    random_choices_are_even,
    random_choices_follow_weights,
    a_backend_of_weight_zero_takes_nothing,
    round_robin_takes_turns,
    maglev_takes_the_very_slot,
    maglev_follows_weights,
];

const FLOWS: u64 = 600;

fn random_choices_are_even(stage: &mut Stage) -> Verdict {
    let pods = ["a", "b", "c", "d", "e"].map(|pod| (pod, 100));
    spread(stage, web().algorithm(Algorithm::Random), &pods)
}

fn random_choices_follow_weights(stage: &mut Stage) -> Verdict {
    spread(stage, web().algorithm(Algorithm::Random), &[("a", 10), ("b", 30), ("c", 60)])
}

fn a_backend_of_weight_zero_takes_nothing(stage: &mut Stage) -> Verdict {
    spread(stage, web(), &[("a", 0), ("b", 7), ("c", 7)])
}

/// Compares the shares of many flows with weights, from each vantage point.
fn spread(stage: &mut Stage, service: Service, pods: &[(&str, u16)]) -> Verdict {
    let slice = weighted("web", pods, 8080);
    stage.change([Change::UpsertService(service), Change::ReplaceEndpoints(slice)])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    if !stage.carries_packets() {
        return Ok(());
    }
    for (origin, family) in ORIGINS.into_iter().zip(topology::FAMILIES.into_iter().cycle()) {
        for (kind, transport) in [(LoadKind::NewConnections, Transport::Tcp), (LoadKind::Datagrams, Transport::Udp)] {
            if !stage.forwards(Probe::new(origin, WEB, family, transport)) {
                continue;
            }
            let counts = counts(stage, origin, family, kind)?;
            fits(&format!("{kind:?} from {origin:?} {family:?}"), &counts, pods)?;
        }
    }
    Ok(())
}

/// Flows by pod.
fn counts(stage: &Stage, origin: Origin, family: Family, kind: LoadKind) -> Result<BTreeMap<String, u64>, Fault> {
    let load = Load::new(kind, (WEB.ip(family), FRONT_PORT).into()).requests(FLOWS);
    let report = stage.lab()?.client(origin).load(&load)?;
    ensure!(report.failed() == 0, "{kind:?} from {origin:?} {family:?}: {:?}", report.example);
    Ok(report.backends)
}

fn fits(what: &str, counts: &BTreeMap<String, u64>, pods: &[(&str, u16)]) -> Verdict {
    let of = |pod: &str| counts.get(pod).copied().unwrap_or(0);
    let strangers = counts.keys().find(|pod| !pods.iter().any(|(name, weight)| name == pod && *weight > 0));
    ensure!(strangers.is_none(), "{what}: {strangers:?} answered, weights are {pods:?}");
    let taken: Vec<_> = pods.iter().filter(|(_, weight)| *weight > 0).collect();
    let observed: Vec<u64> = taken.iter().map(|(pod, _)| of(pod)).collect();
    let weights: Vec<u32> = taken.iter().map(|(_, weight)| u32::from(*weight)).collect();
    let (statistic, limit) = (statistic(&observed, &weights), limit(weights.len()));
    ensure!(statistic <= limit, "{what}: {counts:?} for weights {pods:?}, chi-square {statistic:.2} > {limit:.2}");
    Ok(())
}

/// Turns may be counted per processor, so that many choices differ by no more than there are processors.
fn round_robin_takes_turns(stage: &mut Stage) -> Verdict {
    requires(stage, Algorithm::RoundRobin)?;
    let service = web().algorithm(Algorithm::RoundRobin);
    stage.change([Change::UpsertService(service), Change::ReplaceEndpoints(endpoints("web", &["a", "b", "c"]))])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    if !stage.carries_packets() {
        return Ok(());
    }
    let slack = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    for (origin, family) in ORIGINS.into_iter().zip(topology::FAMILIES.into_iter().cycle()) {
        if !stage.forwards(Probe::new(origin, WEB, family, Transport::Tcp)) {
            continue;
        }
        let counts = counts(stage, origin, family, LoadKind::NewConnections)?;
        let (least, most) = (counts.values().min().copied(), counts.values().max().copied());
        let even = counts.len() == 3 && most.zip(least).is_some_and(|(most, least)| most - least <= slack);
        ensure!(even, "{origin:?} {family:?}: {counts:?} are not turns");
    }
    Ok(())
}

/// `decide` names the backend of each packet; of a socket's choice it names the members.
fn maglev_takes_the_very_slot(stage: &mut Stage) -> Verdict {
    requires(stage, Algorithm::Maglev)?;
    let service = web().algorithm(Algorithm::Maglev);
    stage
        .change([Change::UpsertService(service), Change::ReplaceEndpoints(endpoints("web", &["a", "b", "c", "d"]))])?;
    exact_slots(stage)
}

fn maglev_follows_weights(stage: &mut Stage) -> Verdict {
    requires(stage, Algorithm::Maglev)?;
    let service = web().algorithm(Algorithm::Maglev);
    let slice = weighted("web", &[("a", 100), ("c", 300), ("d", 50)], 8080);
    stage.change([Change::UpsertService(service), Change::ReplaceEndpoints(slice)])?;
    exact_slots(stage)
}

fn exact_slots(stage: &mut Stage) -> Verdict {
    stage.probe_all(Probe::everywhere(WEB))?;
    for (index, origin) in PACKET_ORIGINS.into_iter().enumerate() {
        for (family, transport) in
            topology::FAMILIES.into_iter().zip([Transport::Tcp, Transport::Udp].into_iter().cycle())
        {
            for port in 0..24 {
                let probe = Probe::new(origin, WEB, family, transport);
                let number = 30_000 + 1000 * index as u16 + port * 7;
                let from = (probe.sender(), number).into();
                stage.probe(probe.from(from))?;
            }
        }
    }
    Ok(())
}

fn requires(stage: &Stage, algorithm: Algorithm) -> Verdict {
    if stage.capabilities().algorithms.contains(&algorithm) {
        Ok(())
    } else {
        Err(Fault::lacks(format!("algorithm {algorithm}")))
    }
}
