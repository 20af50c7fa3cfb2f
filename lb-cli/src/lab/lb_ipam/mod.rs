//! The use cases of `lb-ipam`: agents assign services addresses from pools, and these addresses work.

mod promises;
mod view;

use std::net::IpAddr;

use ipnet::IpNet;
use lb_agent::{api::AddressState, driver::DatapathKind};

pub(super) use self::view::View;
use self::{
    promises::{every_agent_gives, given, is_reached, outlives_the_agent, same},
    view::{pool_line, service_line},
};
use super::{
    error::RunError,
    expectation::{Checks, Seen},
    stage::Stage,
    use_case::UseCase,
};

/// One pool and several services: each gets an address out of it, and nobody gets one twice.
pub(super) fn basic(use_case: UseCase, datapath: DatapathKind, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let mut stage = Stage::start(use_case, datapath, &["apache-service.yaml"])?;
    let (services, blocks) = (["httpd", "httpd-dual-stack"], ["20.0.10.0/24", "fd00:20:0:10::/64"]);
    every_agent_gives(&stage, checks, &services)?;
    checks.check("every address is out of the pool, and nobody else has it", || {
        out_of_one_pool(&stage, "basic-pool", &blocks, &services)
    })?;
    checks.check("a service of type ClusterIP gets none", || {
        let views = stage.until(|view| match view.service("httpd-internal")? {
            internal if internal.external_ips.is_empty() && internal.ipam.is_none() => Ok(()),
            internal => Err(service_line(internal)),
        })?;
        Ok(views.and_then(|views| Ok(service_line(views[0].service("httpd-internal")?))))
    })?;
    let all = ["apache", "httpd", "httpd-dual-stack"];
    checks.check("a service that comes later moves nobody", || {
        let before = given(&stage, &services)?;
        stage.apply(&["apache-service.yaml"])?;
        let seen = out_of_one_pool(&stage, "basic-pool", &blocks, &all)?;
        let after = given(&stage, &services)?;
        Ok(before.and_then(|before| same(&before, &after?)).and(seen))
    })?;
    is_reached(&stage, checks, &all)?;
    outlives_the_agent(&mut stage, checks, &all)
}

/// Two pools: one for services with a label, the other one for all.
pub(super) fn important_pool(
    use_case: UseCase,
    datapath: DatapathKind,
    checks: &mut Checks<'_>,
) -> Result<(), RunError> {
    let mut stage = Stage::start(use_case, datapath, &[])?;
    every_agent_gives(&stage, checks, &["httpd", "payments"])?;
    checks.check("a service with the label gets an address of the important pool", || {
        out_of_one_pool(&stage, "important-pool", &["20.0.50.0/28"], &["payments"])
    })?;
    checks.check("a service without it gets one of the other pool", || {
        out_of_one_pool(&stage, "ordinary-pool", &["20.0.51.0/28"], &["httpd"])
    })?;
    checks.check("a service without it gets none of the important pool, not even one that it asks for", || {
        refused(&stage, "pretender", "pool_selector_mismatch")
    })?;
    is_reached(&stage, checks, &["httpd", "payments"])?;
    let unlabelled = "metadata:\n  name: pretender\n";
    stage.edit("pretender-service.yaml", unlabelled, &format!("{unlabelled}  labels:\n    importance: high\n"))?;
    checks.check("who gets the label gets the address", || gets(&stage, "pretender", &["20.0.50.9"]))?;
    stage.edit("payments-service.yaml", "importance: high", "importance: low")?;
    checks.check("who loses the label loses the address, and gets one of the other pool", || {
        out_of_one_pool(&stage, "ordinary-pool", &["20.0.51.0/28"], &["httpd", "payments"])
    })
}

/// A pool of three addresses and four services.
pub(super) fn start_stop_range(
    use_case: UseCase,
    datapath: DatapathKind,
    checks: &mut Checks<'_>,
) -> Result<(), RunError> {
    let mut stage = Stage::start(use_case, datapath, &[])?;
    every_agent_gives(&stage, checks, &["httpd-1", "httpd-2", "httpd-3"])?;
    checks.check("the addresses from start to stop are given, both included, and no other", || {
        gets_each(&stage, &[("httpd-1", "20.0.30.10"), ("httpd-2", "20.0.30.11"), ("httpd-3", "20.0.30.12")])
    })?;
    checks.check("the pool is full", || counts(&stage, "start-stop-pool", 3, 0))?;
    checks.check("one service more waits and says why", || refused(&stage, "httpd-4", "out_of_ips"))?;
    stage.delete("httpd-2-service.yaml")?;
    checks.check("it gets the address of a service that goes, and the others keep theirs", || {
        gets_each(&stage, &[("httpd-1", "20.0.30.10"), ("httpd-4", "20.0.30.11"), ("httpd-3", "20.0.30.12")])
    })?;
    is_reached(&stage, checks, &["httpd-1", "httpd-3", "httpd-4"])?;
    outlives_the_agent(&mut stage, checks, &["httpd-1", "httpd-3", "httpd-4"])?;
    stage.delete("ippool.yaml")?;
    checks.check("without the pool every service says why it waits", || {
        let waits = ["httpd-1", "httpd-3", "httpd-4"].map(|service| refused(&stage, service, "no_pool"));
        let mut seen = Vec::new();
        for waits in waits {
            match waits? {
                Ok(wait) => seen.push(wait),
                Err(problem) => return Ok(Err(problem)),
            }
        }
        Ok(Ok(seen.join("; ")))
    })?;
    stage.apply(&["ippool.yaml"])?;
    checks.check("once the pool is back, so are the addresses", || {
        gets_each(&stage, &[("httpd-1", "20.0.30.10"), ("httpd-4", "20.0.30.11"), ("httpd-3", "20.0.30.12")])
    })
}

/// A network of four addresses of which two are assigned.
pub(super) fn no_first_last(
    use_case: UseCase,
    datapath: DatapathKind,
    checks: &mut Checks<'_>,
) -> Result<(), RunError> {
    let mut stage = Stage::start(use_case, datapath, &[])?;
    every_agent_gives(&stage, checks, &["httpd-1", "httpd-2"])?;
    checks.check("the addresses in between are given", || {
        gets_each(&stage, &[("httpd-1", "20.0.40.1"), ("httpd-2", "20.0.40.2")])
    })?;
    checks.check("first and last are not, although a service waits", || {
        let waits = refused(&stage, "httpd-3", "out_of_ips")?;
        let mut details = Vec::new();
        for text in ["20.0.40.0", "20.0.40.3"] {
            let Ok(address) = text.parse::<IpAddr>() else { continue };
            for (node, said) in stage.ask_all(|agent| agent.explain_address(address))? {
                if said.state != AddressState::Reserved {
                    return Ok(Err(format!("{node}: {}", said.message)));
                }
                details.push(said.message);
            }
        }
        details.dedup();
        Ok(waits.map(|waits| format!("{waits}; {}", details.join("; "))))
    })?;
    checks.check("the pool does not count them", || counts(&stage, "no-first-last-pool", 2, 0))?;
    is_reached(&stage, checks, &["httpd-1", "httpd-2"])?;
    stage.edit("ippool.yaml", "\"No\"", "\"Yes\"")?;
    checks.check("with Yes the service that waits gets the first one", || gets(&stage, "httpd-3", &["20.0.40.0"]))
}

/// The walk-through: a hundred addresses, a service, and `curl` on every node.
pub(super) fn blue_pool(use_case: UseCase, datapath: DatapathKind, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let mut stage = Stage::start(use_case, datapath, &["echo-1.yaml"])?;
    checks.check("100 addresses are available before there is a service", || counts(&stage, "blue-pool", 100, 100))?;
    stage.apply(&["echo-1.yaml"])?;
    checks.check("echo-1 gets the external address 20.0.20.100", || gets(&stage, "echo-1", &["20.0.20.100"]))?;
    every_agent_gives(&stage, checks, &["echo-1"])?;
    checks.check("99 are available then", || counts(&stage, "blue-pool", 100, 99))?;
    promises::curl(&stage, checks, "echo-1")?;
    is_reached(&stage, checks, &["echo-1"])?;
    outlives_the_agent(&mut stage, checks, &["echo-1"])
}

/// A service gets exactly these addresses.
fn gets(stage: &Stage, service: &str, wanted: &[&str]) -> Result<Seen, RunError> {
    let views = stage.until(|view| {
        let addresses: Vec<String> = view.addresses(service)?.iter().map(ToString::to_string).collect();
        if addresses == wanted { Ok(()) } else { Err(service_line(view.service(service)?)) }
    })?;
    Ok(views.and_then(|views| Ok(service_line(views[0].service(service)?))))
}

/// Services get exactly one address each.
fn gets_each(stage: &Stage, wanted: &[(&str, &str)]) -> Result<Seen, RunError> {
    let mut lines = Vec::new();
    for (service, address) in wanted {
        match gets(stage, service, &[address])? {
            Ok(line) => lines.push(line),
            Err(line) => return Ok(Err(line)),
        }
    }
    Ok(Ok(lines.join("; ")))
}

/// A service has no address, for this reason.
fn refused(stage: &Stage, service: &str, reason: &str) -> Result<Seen, RunError> {
    let views = stage.until(|view| view.refused(service, reason).map(drop))?;
    Ok(views.and_then(|views| views[0].refused(service, reason)))
}

/// A pool in service has so many addresses, of which so many can be had.
fn counts(stage: &Stage, pool: &str, total: u128, available: u128) -> Result<Seen, RunError> {
    let views = stage.until(|view| {
        let found = view.pool(pool)?;
        let counts = &found.counts;
        let is_right = counts.total == total && counts.available == available && counts.used == total - available;
        if is_right && !found.disabled && !found.conflicting { Ok(()) } else { Err(pool_line(found)) }
    })?;
    Ok(views.and_then(|views| Ok(format!("{}; {total} in all", pool_line(views[0].pool(pool)?)))))
}

/// Every address of these services is from this pool, in its blocks, and belongs to one service only.
fn out_of_one_pool(stage: &Stage, pool: &str, blocks: &[&str], services: &[&str]) -> Result<Seen, RunError> {
    let views = stage.until(|view| {
        for service in services {
            let addresses = view.addresses(service)?;
            let is_inside = |ip: &IpAddr| blocks.iter().any(|block| contains(block, *ip));
            let pools = view.pools_of(service)?;
            if pools != vec![pool; addresses.len()] || !addresses.iter().all(is_inside) {
                return Err(format!("{} out of {pools:?}", service_line(view.service(service)?)));
            }
        }
        promises::nobody_shares(view)
    })?;
    Ok(views.and_then(|views| {
        let lines = services.iter().map(|name| Ok(service_line(views[0].service(name)?)));
        Ok(lines.collect::<Result<Vec<_>, String>>()?.join("; "))
    }))
}

fn contains(block: &str, ip: IpAddr) -> bool {
    block.parse::<IpNet>().is_ok_and(|block| block.contains(&ip))
}
