//! What every use case of `lb-ipam` promises.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_testkit::{lab::Origin, traffic::Request};
use nix::sys::signal::Signal;

use super::{
    super::{
        error::RunError,
        expectation::{Checks, Seen},
        reach::every_backend,
        stage::{ENTRY, Kept, LANES, Stage},
    },
    view::{View, join},
};

/// Addresses of services by name.
pub(super) type Given = BTreeMap<String, Vec<IpAddr>>;

/// Every agent assigns each of these services the same addresses.
pub(super) fn every_agent_gives(stage: &Stage, checks: &mut Checks<'_>, services: &[&str]) -> Result<(), RunError> {
    checks.check("every agent gives every service the same address", || {
        let views = stage.until(|view| services.iter().try_for_each(|name| view.addresses(name).map(drop)))?;
        Ok(views.and_then(|views| {
            let given: Vec<Given> = views.iter().map(|view| given_by(view, services)).collect::<Result<_, _>>()?;
            let lines: Vec<String> = given[0].iter().map(|(name, ips)| format!("{name} {}", join(ips))).collect();
            match given.iter().zip(&views).find(|(other, _)| **other != given[0]) {
                Some((other, view)) => Err(format!("{}: {:?}; {}: {other:?}", views[0].node, given[0], view.node)),
                None => Ok(format!("{} agents: {}", views.len(), lines.join(", "))),
            }
        }))
    })
}

fn given_by(view: &View, services: &[&str]) -> Result<Given, String> {
    services.iter().map(|name| Ok(((*name).to_owned(), view.addresses(name)?.to_vec()))).collect()
}

/// No two services have an address together.
pub(super) fn nobody_shares(view: &View) -> Result<(), String> {
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for service in &view.services {
        for ip in &service.external_ips {
            if let Some(other) = owners.insert(*ip, &service.name) {
                return Err(format!("{ip} is given to {other} and to {}", service.name));
            }
        }
    }
    Ok(())
}

/// Every backend is reached at every address of these services, from everywhere; from outside through every node, since
/// an announcement may lead to any.
pub(super) fn is_reached(stage: &Stage, checks: &mut Checks<'_>, services: &[&str]) -> Result<(), RunError> {
    let a_pod = vec![Vantage::inside("a pod", stage.fleet().client_origin())];
    let nodes = stage.nodes().map(|node| Vantage::inside(node.name(), Origin::Node(node.index()))).collect();
    let outside = stage.nodes().flat_map(|node| {
        [("a neighbour", Origin::Client), ("beyond a router", Origin::Beyond)].map(|(name, origin)| Vantage {
            name: format!("{name} through {}", node.name()),
            origin,
            entry: node.index(),
        })
    });
    for (name, vantages) in
        [("a pod", a_pod), ("every node", nodes), ("outside of the cluster, through every node", outside.collect())]
    {
        checks.check(format!("every backend is reached at the external addresses from {name}"), || {
            let targets = match targets(stage, services)? {
                Ok(targets) => targets,
                Err(lack) => return Ok(Err(lack)),
            };
            let seen = reach(stage, &vantages, &targets)?;
            stage.announce(ENTRY)?;
            Ok(seen)
        })?;
    }
    Ok(())
}

/// Somebody who talks to services.
struct Vantage {
    name: String,
    origin: Origin,
    /// The node that addresses of services lead to.
    entry: usize,
}

impl Vantage {
    fn inside(name: &str, origin: Origin) -> Self {
        Self { name: name.into(), origin, entry: ENTRY }
    }
}

fn reach(stage: &Stage, vantages: &[Vantage], targets: &[SocketAddr]) -> Result<Seen, RunError> {
    let mut first = None;
    for Vantage { name, origin, entry } in vantages {
        stage.announce(*entry)?;
        match every_backend(stage.fleet().lab(), *origin, targets, &stage.fleet().servers())? {
            Ok(detail) => first = first.or(Some(format!("{name}: {detail}"))),
            Err(detail) => return Ok(Err(format!("{name}: {detail}"))),
        }
    }
    let others: Vec<&str> = vantages.iter().skip(1).map(|vantage| vantage.name.as_str()).collect();
    let others = if others.is_empty() { String::new() } else { format!("; likewise {}", others.join(", ")) };
    Ok(first.map(|first| first + &others).ok_or("nobody is there to try".into()))
}

/// Where these services are to be reached from outside.
fn targets(stage: &Stage, services: &[&str]) -> Result<Result<Vec<SocketAddr>, String>, RunError> {
    let views = stage.until(|view| services.iter().try_for_each(|name| view.addresses(name).map(drop)))?;
    Ok(views.and_then(|views| {
        let mut targets = Vec::new();
        for name in services {
            let external = views[0].addresses(name)?;
            let frontends = views[0].service(name)?.frontends.iter();
            let external = frontends.filter(|frontend| external.contains(&frontend.ip));
            targets.extend(external.map(|frontend| SocketAddr::new(frontend.ip, frontend.port)));
        }
        Ok(targets)
    }))
}

fn first_target(stage: &Stage, services: &[&str]) -> Result<Result<SocketAddr, String>, RunError> {
    let first = |targets: Vec<SocketAddr>| targets.first().copied().ok_or("there is no address to talk to".into());
    Ok(targets(stage, services)?.and_then(first))
}

/// `curl` on every node answers as in the walk-through.
pub(super) fn curl(stage: &Stage, checks: &mut Checks<'_>, service: &str) -> Result<(), RunError> {
    checks.check(format!("curl http://EXTERNAL-IP:PORT/ of {service} on every node"), || {
        let to = match first_target(stage, &[service])? {
            Ok(to) => to,
            Err(lack) => return Ok(Err(lack)),
        };
        let mut details = vec![format!("http://{to}/")];
        for node in stage.nodes() {
            let answer = match stage.fleet().lab().client(Origin::Node(node.index())).request(&Request::http(to))? {
                Ok(answer) => answer,
                Err(failure) => return Ok(Err(format!("{}: {failure}", node.name()))),
            };
            let line = |start: &str| answer.body.lines().map(str::trim).find(|line| line.starts_with(start));
            let (Some(host), Some(client), Some(uri)) =
                (line("Hostname: "), line("client_address="), line("request_uri="))
            else {
                return Ok(Err(format!("{}: {}", node.name(), answer.body)));
            };
            if uri != format!("request_uri=http://{to}/") {
                return Ok(Err(format!("{}: {uri}", node.name())));
            }
            details.push(format!("{}: {host}, {client}", node.name()));
        }
        Ok(Ok(details.join("; ")))
    })
}

/// An agent that ends and one that is killed leave addresses and connections alone. The manifests say nothing of
/// either.
pub(super) fn outlives_the_agent(
    stage: &mut Stage,
    checks: &mut Checks<'_>,
    services: &[&str],
) -> Result<(), RunError> {
    let signals = [Signal::SIGTERM, Signal::SIGKILL];
    checks.check("an agent that ends and one that is killed leave every address and connection as it was", || {
        let before = match given(stage, services)? {
            Ok(before) => before,
            Err(lack) => return Ok(Err(lack)),
        };
        let to = match first_target(stage, services)? {
            Ok(to) => to,
            Err(lack) => return Ok(Err(lack)),
        };
        let kept = stage.interrupt(to, &signals)?;
        let now = given(stage, services)?;
        Ok(now.and_then(|now| same(&before, &now)).and_then(|addresses| lost_nothing(&kept, &addresses)))
    })
}

/// The addresses that the agent of the restarted node assigns.
pub(super) fn given(stage: &Stage, services: &[&str]) -> Result<Result<Given, String>, RunError> {
    let views = stage.until(|view| given_by(view, services).map(drop))?;
    Ok(views.and_then(|views| given_by(&views[ENTRY], services)))
}

pub(super) fn same(before: &Given, now: &Given) -> Seen {
    if before != now {
        return Err(format!("{before:?} before, {now:?} after"));
    }
    Ok(now.iter().map(|(name, ips)| format!("{name} {}", join(ips))).collect::<Vec<_>>().join(", "))
}

fn lost_nothing(kept: &Kept, addresses: &str) -> Seen {
    let Kept { messages, connections, failed, example } = kept;
    let detail = format!("{messages} messages on {} connections, {connections} new connections", 2 * LANES);
    if *failed > 0 {
        return Err(format!("{detail}, {failed} failed: {}", example.as_deref().unwrap_or_default()));
    }
    if *messages == 0 || *connections == 0 {
        return Err(format!("{detail}: nothing was tried"));
    }
    Ok(format!("{addresses}; {detail}, none lost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(messages: u64, connections: u64, failed: u64) -> Seen {
        lost_nothing(&Kept { messages, connections, failed, example: Some("reset".into()) }, "echo-1 20.0.20.100")
    }

    #[test]
    fn what_was_lost_or_not_tried_is_no_promise_kept() {
        assert_eq!(
            kept(5, 7, 0).unwrap(),
            "echo-1 20.0.20.100; 5 messages on 8 connections, 7 new connections, none lost"
        );
        assert!(kept(5, 7, 1).unwrap_err().ends_with("1 failed: reset"));
        assert!(kept(0, 7, 0).is_err() && kept(5, 0, 0).is_err());
    }

    #[test]
    fn an_address_that_is_another_one_than_before_is_told() {
        let given = |ip: [u8; 4]| Given::from([("echo-1".to_owned(), vec![IpAddr::from(ip)])]);
        assert_eq!(same(&given([20, 0, 20, 100]), &given([20, 0, 20, 100])).unwrap(), "echo-1 20.0.20.100");
        assert!(same(&given([20, 0, 20, 100]), &given([20, 0, 20, 101])).unwrap_err().contains("20.0.20.101]} after"));
    }
}
