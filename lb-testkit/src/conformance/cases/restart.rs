//! What a datapath holds, reports and keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_core::{
    addr::{BackendAddr, FrontendAddr},
    affinity::Affinity,
    datapath::Role,
    model::Change,
    node::NodeFacts,
    plan::Op,
    service::Algorithm,
    state::{Lookup, State, Target},
};

use super::{Case, cases};
use crate::{
    conformance::{
        Fault, Stage, Verdict, ensure,
        probe::{ORIGINS, Probe},
        service::{FRONT_PORT, Vip, WEB, With, endpoints, named, service, web, weighted},
    },
    lab::topology,
    traffic::{Request, Transport},
};

pub(super) const CASES: [Case; 6] = cases![
    a_new_process_finds_what_was_applied,
    a_restart_changes_nothing_and_breaks_nothing,
    applying_twice_is_applying_once,
    cleanup_removes_everything,
    hundreds_of_services_are_told_apart,
    roles_take_the_traffic_that_they_say,
];

const OTHER: Vip = Vip::cluster(13);
const EMPTY: Vip = Vip::cluster(14);

/// A bit of everything.
fn mixture(stage: &Stage) -> Vec<Change> {
    let capabilities = stage.capabilities();
    let algorithms = &capabilities.algorithms;
    let best = [Algorithm::Maglev, Algorithm::RoundRobin].into_iter().find(|wanted| algorithms.contains(wanted));
    let mut other = service("other", OTHER).algorithm(best.unwrap_or_default());
    if capabilities.affinity.is_some() {
        other = other.affinity(Affinity::default());
    }
    vec![
        Change::UpsertService(web().load_balancer_ips(Vip::ingress(100))),
        Change::ReplaceEndpoints(weighted("web", &[("a", 10), ("b", 20), ("c", 30)], 8080)),
        Change::UpsertService(other),
        Change::ReplaceEndpoints(endpoints("other", &["a", "d", "e"])),
        Change::UpsertService(service("empty", EMPTY)),
    ]
}

fn a_new_process_finds_what_was_applied(stage: &mut Stage) -> Verdict {
    stage.change(mixture(stage))?;
    stage.reopen()?;
    same_up_to_ids(&stage.observe()?, stage.desired())?;
    stage.change([
        Change::RemoveService(named("empty")),
        Change::ReplaceEndpoints(endpoints("web", &["b", "e"])),
        Change::ReplaceEndpoints(endpoints("other", &[])),
    ])?;
    stage.reopen()?;
    same_up_to_ids(&stage.observe()?, stage.desired())
}

fn a_restart_changes_nothing_and_breaks_nothing(stage: &mut Stage) -> Verdict {
    stage.change(mixture(stage))?;
    let before = stage.plans().len();
    if stage.carries_packets() {
        with_connections(stage, Stage::restart)?;
    } else {
        stage.restart()?;
    }
    // A kernel has no place for a node's name, so that its facts may have to be set again.
    let ops = stage.plans()[before..].iter().flat_map(|plan| &plan.ops);
    let moved: Vec<_> = ops.filter(|op| !matches!(op, Op::SetNode(_))).collect();
    ensure!(moved.is_empty() || !stage.carries_packets(), "the restart led to {moved:?}");
    stage.probe_all([WEB, OTHER, EMPTY].into_iter().flat_map(Probe::everywhere))?;
    stage.change([Change::ReplaceEndpoints(endpoints("web", &["e"]))])?;
    stage.probe_all(Probe::everywhere(WEB))
}

/// Connections from everywhere that must outlive `play`.
fn with_connections(stage: &mut Stage, play: impl FnOnce(&mut Stage) -> Verdict) -> Verdict {
    stage.with_lab(|stage, lab| {
        let mut connections = Vec::new();
        for (origin, family) in ORIGINS.into_iter().flat_map(|origin| topology::FAMILIES.map(|family| (origin, family)))
        {
            if !stage.forwards(Probe::new(origin, WEB, family, Transport::Tcp)) {
                continue;
            }
            let to = (WEB.ip(family), FRONT_PORT).into();
            let held = lab.client(origin).hold(Transport::Tcp, to, 4)?;
            let failed = held.opened().iter().find_map(|opened| opened.as_ref().err());
            ensure!(failed.is_none(), "{origin:?} {family:?}: {failed:?}");
            connections.push((origin, family, held));
        }
        play(stage)?;
        for (origin, family, held) in &connections {
            let broken = held.exchange()?.into_iter().find_map(Result::err);
            ensure!(broken.is_none(), "{origin:?} {family:?}: {broken:?}");
        }
        Ok(())
    })
}

fn applying_twice_is_applying_once(stage: &mut Stage) -> Verdict {
    stage.change(mixture(stage))?;
    stage.change([
        Change::ReplaceEndpoints(endpoints("web", &["b", "c", "d"])),
        Change::RemoveService(named("empty")),
    ])?;
    if let Some(last) = stage.plans().last().cloned() {
        for _ in 0..2 {
            let outcome = stage.apply(&last)?;
            ensure!(outcome.is_ok() || !stage.carries_packets(), "applying again: {outcome:?}");
        }
    }
    same_up_to_ids(&stage.observe()?, stage.desired())?;
    stage.probe_all([WEB, OTHER].into_iter().flat_map(Probe::everywhere))
}

fn cleanup_removes_everything(stage: &mut Stage) -> Verdict {
    stage.change(mixture(stage))?;
    stage.cleanup()?;
    stage.reopen()?;
    let left = stage.observe()?;
    let empty = left.frontends.is_empty() && left.sets.is_empty() && left.backends.is_empty();
    ensure!(empty, "after the cleanup it holds {left:?}");
    stage.restart()?;
    stage.probe_all([WEB, OTHER, EMPTY].into_iter().flat_map(Probe::everywhere))
}

fn hundreds_of_services_are_told_apart(stage: &mut Stage) -> Verdict {
    let pods = ["a", "b", "c", "d", "e"];
    let vip = |index: u8| Vip { v4: [10, 97, 0, index], v6: [0xfd00, 0x10, 0x96, 0, 0, 0, 1, u16::from(index)] };
    let mut changes = Vec::new();
    for index in 1..=200 {
        let name = format!("service-{index}");
        changes.push(Change::UpsertService(service(&name, vip(index))));
        changes.push(Change::ReplaceEndpoints(endpoints(&name, &[pods[usize::from(index) % pods.len()]])));
    }
    stage.change(changes)?;
    for (index, origin) in (1..=200).step_by(7).zip(ORIGINS.into_iter().cycle()) {
        stage.probe_all(Probe::from_origins(&[origin], vip(index)))?;
    }
    same_up_to_ids(&stage.observe()?, stage.desired())
}

fn roles_take_the_traffic_that_they_say(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    let roles = stage.capabilities().roles.clone();
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    for role in [Role::Standby, Role::Draining] {
        if !roles.contains(&role) {
            ensure!(stage.set_role(role).is_err(), "{role:?} is taken, but not in the capabilities");
            continue;
        }
        let keep = |stage: &mut Stage| {
            stage.set_role(role)?;
            new_flows_pass(stage)
        };
        match role {
            Role::Draining => with_connections(stage, keep)?,
            Role::Standby | Role::Active => keep(stage)?,
        }
        stage.set_role(Role::Active)?;
        stage.probe_all(Probe::everywhere(WEB))?;
    }
    if roles == [Role::Active] { Err(Fault::lacks("roles other than active")) } else { Ok(()) }
}

/// Nobody is served: the datapath leaves new flows to whoever stands beside it.
fn new_flows_pass(stage: &Stage) -> Verdict {
    for (origin, family) in ORIGINS.into_iter().flat_map(|origin| topology::FAMILIES.map(|family| (origin, family))) {
        let request = Request::http((WEB.ip(family), FRONT_PORT).into()).timeout(Duration::from_millis(200));
        let outcome = stage.lab()?.client(origin).request(&request)?;
        ensure!(outcome.is_err(), "{origin:?} {family:?} is served: {outcome:?}");
    }
    Ok(())
}

/// A state with addresses in the place of ids.
#[derive(Debug, PartialEq)]
struct Named {
    node: NodeFacts,
    frontends: BTreeMap<FrontendAddr, (Option<Affinity>, NamedTarget)>,
}

#[derive(Debug, PartialEq)]
enum NamedTarget {
    /// Lookup and backend of each slot, with whether it is local; and those that are draining, in order.
    Set(Lookup, Vec<(BackendAddr, bool)>, BTreeSet<(BackendAddr, bool)>),
    Reject,
    Drop,
    Dangling,
}

fn same_up_to_ids(observed: &State, desired: &State) -> Verdict {
    ensure!(observed.dangling().is_none(), "the observed state has {:?}", observed.dangling());
    let (mut observed, desired) = (by_name(observed), by_name(desired));
    // A kernel has no place for a node's name.
    if observed.node.name.is_none() {
        observed.node.name.clone_from(&desired.node.name);
    }
    ensure!(observed.node == desired.node, "observed {:?}, expected {:?}", observed.node, desired.node);
    for (addr, wanted) in &desired.frontends {
        let found = observed.frontends.get(addr);
        ensure!(found == Some(wanted), "{addr}: observed {}, expected {}", brief(found), brief(Some(wanted)));
    }
    let extra = observed.frontends.keys().find(|addr| !desired.frontends.contains_key(addr));
    ensure!(extra.is_none(), "{extra:?} should not be there");
    Ok(())
}

/// The first thousand characters: tables are long.
fn brief(what: Option<&(Option<Affinity>, NamedTarget)>) -> String {
    format!("{what:?}").chars().take(1000).collect()
}

fn by_name(state: &State) -> Named {
    let backend = |id| state.backends.get(id).map(|backend| (backend.addr, backend.local));
    let target = |target| match target {
        Target::Reject => NamedTarget::Reject,
        Target::Drop => NamedTarget::Drop,
        Target::Set(id) => state
            .sets
            .get(&id)
            .and_then(|set| {
                let slots = set.slots.iter().map(backend).collect::<Option<_>>()?;
                let draining = set.draining.iter().map(backend).collect::<Option<_>>()?;
                Some(NamedTarget::Set(set.lookup, slots, draining))
            })
            .unwrap_or(NamedTarget::Dangling),
    };
    let frontends =
        state.frontends.iter().map(|(&addr, frontend)| (addr, (frontend.affinity, target(frontend.target))));
    Named { node: state.node.clone(), frontends: frontends.collect() }
}
