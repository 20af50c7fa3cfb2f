//! Clients that stick to their backend.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use lb_core::{
    addr::{BackendAddr, Family},
    affinity::{Affinity, AffinityRecord},
    decision::FlowView,
    model::Change,
    service::Algorithm,
};

use super::{Case, cases};
use crate::{
    conformance::{
        Fault, Stage, Verdict, ensure,
        fate::pod_of,
        probe::{ORIGINS, Probe},
        service::{WEB, With, endpoints, web, weighted},
    },
    lab::{Origin, topology},
    traffic::Transport,
};

pub(super) const CASES: [Case; 8] = cases![
    a_client_sticks_to_its_backend,
    clients_stick_independently,
    affinity_ends_with_its_time_out,
    every_new_flow_renews_affinity,
    affinity_leaves_a_backend_that_left,
    affinity_of_a_prefix_covers_its_addresses,
    maglev_under_affinity_hashes_the_client,
    affinity_is_switched_on_and_off_while_its_service_lives,
];

/// Long enough for slow machines, short enough to wait for.
const TIMEOUT: Duration = Duration::from_secs(4);
const FLOWS: usize = 8;
/// A weight that hides the other backend: of a thousand choices without a record, one would fall on it.
const HEAVY: u16 = 1000;

fn sticky() -> Affinity {
    Affinity { timeout: Duration::from_secs(600), ..Affinity::default() }
}

fn a_client_sticks_to_its_backend(stage: &mut Stage) -> Verdict {
    requires(stage)?;
    let pods = endpoints("web", &["a", "b", "c", "d"]);
    stage.change([Change::UpsertService(web().affinity(sticky())), Change::ReplaceEndpoints(pods)])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    stage.lab()?;
    for transport in [Transport::Tcp, Transport::Udp] {
        for (origin, family) in every_origin() {
            let probe = Probe::new(origin, WEB, family, transport);
            let backend = stick(stage, probe)?;
            (0..FLOWS).try_for_each(|_| expect(stage, probe, backend))?;
        }
    }
    Ok(())
}

/// Eight clients on four backends: more than one backend, or they are not independent.
fn clients_stick_independently(stage: &mut Stage) -> Verdict {
    requires(stage)?;
    stage.lab()?;
    let pods = endpoints("web", &["a", "b", "c", "d"]);
    stage.change([Change::UpsertService(web().affinity(sticky())), Change::ReplaceEndpoints(pods)])?;
    for family in topology::FAMILIES {
        if !stage.forwards(Probe::new(Origin::Client, WEB, family, Transport::Tcp)) {
            continue;
        }
        let mut stuck = Vec::new();
        for (origin, ip) in outside_clients(stage, family)? {
            let probe = Probe::new(origin, WEB, family, Transport::Tcp).from((ip, 0).into());
            stuck.push((probe, stick(stage, probe)?));
        }
        let first = stuck[0].1;
        ensure!(stuck.iter().any(|(_, backend)| *backend != first), "{family:?}: all clients share {first}");
        for _ in 0..3 {
            stuck.iter().try_for_each(|&(probe, backend)| expect(stage, probe, backend))?;
        }
    }
    Ok(())
}

/// The first backend gets a heavy companion: only a record leads to it any more.
fn affinity_ends_with_its_time_out(stage: &mut Stage) -> Verdict {
    requires(stage)?;
    stage.lab()?;
    let (probes, backend) = stuck_with_light_backend(stage)?;
    probes.iter().try_for_each(|&probe| expect(stage, probe, backend))?;
    stage.pass_time(TIMEOUT + Duration::from_millis(500));
    // One client that falls on it without a record is chance, two are not.
    let (mut clients, mut still) = (BTreeSet::new(), Vec::new());
    for &probe in &probes {
        if stick(stage, probe)? == backend && clients.insert(client_of(probe)) {
            still.push(probe);
        }
    }
    ensure!(still.len() < 2, "{still:?} still stick to {backend}, which one in {HEAVY} would choose");
    Ok(())
}

/// Which client a datapath may take a probe for: sockets and packets of one namespace have the same address, so that the
/// second one follows the record that the first has just made.
fn client_of(probe: Probe) -> String {
    let origin = match probe.origin {
        Origin::PodPackets(pod) => Origin::Pod(pod),
        Origin::NodePackets(node) => Origin::Node(node),
        origin @ (Origin::Pod(_) | Origin::Node(_) | Origin::Client | Origin::Beyond) => origin,
    };
    format!("{origin:?} {} {:?} {:?}", probe.to, probe.transport, probe.from)
}

fn every_new_flow_renews_affinity(stage: &mut Stage) -> Verdict {
    requires(stage)?;
    stage.lab()?;
    let (probes, backend) = stuck_with_light_backend(stage)?;
    for _ in 0..3 {
        probes.iter().try_for_each(|&probe| expect(stage, probe, backend))?;
        stage.pass_time(TIMEOUT * 5 / 8);
    }
    probes.iter().try_for_each(|&probe| expect(stage, probe, backend))
}

/// A record for every vantage point at `a`, which then takes one new client in a thousand.
fn stuck_with_light_backend(stage: &mut Stage) -> Result<(Vec<Probe>, &'static str), Fault> {
    let affinity = Affinity { timeout: TIMEOUT, ..Affinity::default() };
    stage.change([
        Change::UpsertService(web().affinity(affinity)),
        Change::ReplaceEndpoints(endpoints("web", &["a"])),
    ])?;
    let probes: Vec<Probe> =
        every_origin().map(|(origin, family)| Probe::new(origin, WEB, family, Transport::Tcp)).collect();
    stage.probe_all(probes.iter().copied())?;
    let heavy = weighted("web", &[("a", 1), ("c", HEAVY)], 8080);
    stage.change([Change::ReplaceEndpoints(heavy)])?;
    Ok((probes, "a"))
}

fn affinity_leaves_a_backend_that_left(stage: &mut Stage) -> Verdict {
    requires(stage)?;
    stage.lab()?;
    stage.change([
        Change::UpsertService(web().affinity(sticky())),
        Change::ReplaceEndpoints(endpoints("web", &["a"])),
    ])?;
    let probes: Vec<Probe> = [Transport::Tcp, Transport::Udp]
        .into_iter()
        .flat_map(|transport| every_origin().map(move |(origin, family)| Probe::new(origin, WEB, family, transport)))
        .collect();
    stage.probe_all(probes.iter().copied())?;
    stage.change([Change::ReplaceEndpoints(endpoints("web", &["b", "c", "d"]))])?;
    let mut stuck = Vec::new();
    for &probe in &probes {
        stuck.push((probe, stick(stage, probe)?));
    }
    for _ in 0..3 {
        stuck.iter().try_for_each(|&(probe, backend)| expect(stage, probe, backend))?;
    }
    Ok(())
}

fn affinity_of_a_prefix_covers_its_addresses(stage: &mut Stage) -> Verdict {
    requires(stage)?;
    if !stage.capabilities().affinity.is_some_and(|affinity| affinity.prefixes) {
        return Err(Fault::lacks("affinity by prefix"));
    }
    let affinity = Affinity { prefix_v4: 24, prefix_v6: 64, ..sticky() };
    let pods = endpoints("web", &["a", "b", "c", "d"]);
    stage.change([Change::UpsertService(web().affinity(affinity)), Change::ReplaceEndpoints(pods)])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    stage.lab()?;
    for (origin, family) in [Origin::Client, Origin::Beyond].into_iter().zip(topology::FAMILIES) {
        let ips = stage.lab()?.client(origin).ips(family);
        let probe = |ip: &IpAddr| Probe::new(origin, WEB, family, Transport::Udp).from((*ip, 0).into());
        let backend = stick(stage, probe(&ips[0]))?;
        ips.iter().try_for_each(|ip| expect(stage, probe(ip), backend))?;
    }
    Ok(())
}

fn maglev_under_affinity_hashes_the_client(stage: &mut Stage) -> Verdict {
    requires(stage)?;
    if !stage.capabilities().algorithms.contains(&Algorithm::Maglev) {
        return Err(Fault::lacks("algorithm maglev"));
    }
    let service = web().affinity(sticky()).algorithm(Algorithm::Maglev);
    stage.change([Change::UpsertService(service), Change::ReplaceEndpoints(endpoints("web", &["a", "b", "c"]))])?;
    stage.probe_all(Probe::everywhere(WEB))?;
    for family in topology::FAMILIES {
        for (origin, ip) in outside_clients(stage, family)? {
            let probe = Probe::new(origin, WEB, family, Transport::Udp).from((ip, 0).into());
            // Without a record, then with one; the hash says the same.
            (0..2).try_for_each(|_| stage.probe(probe).map(drop))?;
        }
    }
    Ok(())
}

/// The backend of a flow that finds no record, or one that is unknown here.
fn stick(stage: &mut Stage, probe: Probe) -> Result<&'static str, Fault> {
    Ok(stage.probe(probe)?.map_or("none", pod_of))
}

/// The next flow must go where the record says.
fn expect(stage: &mut Stage, probe: Probe, pod: &str) -> Verdict {
    let record = AffinityRecord { backend: backend(probe, pod), last_use: stage.now() };
    stage.probe_as(probe, &FlowView { affinity: Some(record), ..FlowView::default() }).map(drop)
}

fn backend(probe: Probe, pod: &str) -> BackendAddr {
    BackendAddr::new(crate::conformance::service::pod_ip(pod, probe.family()), 8080, probe.protocol())
}

fn every_origin() -> impl Iterator<Item = (Origin, Family)> {
    // The pod inside and outside of the cgroup is one address, but not one client to a socket hook.
    ORIGINS.into_iter().flat_map(|origin| topology::FAMILIES.map(|family| (origin, family)))
}

fn outside_clients(stage: &Stage, family: Family) -> Result<Vec<(Origin, IpAddr)>, Fault> {
    let lab = stage.lab()?;
    let of = |origin| lab.client(origin).ips(family).into_iter().map(move |ip| (origin, ip));
    Ok(of(Origin::Client).chain(of(Origin::Beyond)).collect())
}

fn requires(stage: &Stage) -> Verdict {
    match stage.capabilities().affinity {
        Some(_) => Ok(()),
        None => Err(Fault::lacks("affinity")),
    }
}

fn affinity_is_switched_on_and_off_while_its_service_lives(stage: &mut Stage) -> Verdict {
    /// Without affinity, that many flows meet one of four backends alone once in 4^19.
    const MANY: usize = 20;
    requires(stage)?;
    stage.lab()?;
    stage.change([Change::ReplaceEndpoints(endpoints("web", &["a", "b", "c", "d"]))])?;
    for is_on in [true, false, true] {
        stage.change([Change::UpsertService(if is_on { web().affinity(sticky()) } else { web() })])?;
        for (origin, family) in every_origin() {
            let probe = Probe::new(origin, WEB, family, Transport::Tcp);
            if is_on {
                let backend = stick(stage, probe)?;
                (0..FLOWS).try_for_each(|_| expect(stage, probe, backend))?;
            } else {
                let seen: BTreeSet<_> = (0..MANY).map(|_| stage.probe(probe)).collect::<Result<_, _>>()?;
                ensure!(seen.len() > 1, "{probe}: all of {MANY} flows reached {seen:?} without affinity");
            }
        }
    }
    Ok(())
}
