//! Compares routes and routing rules with those that the frontends need.

use std::{collections::BTreeSet, net::IpAddr};

use lb_core::{
    addr::Family,
    drift::{Cause, Difference, Drift, DriftClass},
};

use crate::{
    nftables::{
        check::{
            expected::ExpectedTable,
            inspect::{Finding, Object},
            suspects::Suspects,
        },
        host::Host,
        table::layout::FAMILIES,
    },
    routes::{self, RouteKind},
};

/// Adds the differences to `findings`.
pub(crate) fn inspect_routes(
    host: &mut dyn Host,
    wanted: &ExpectedTable<'_>,
    suspects: &Suspects,
    findings: &mut Vec<Finding>,
) -> lb_netlink::Result<()> {
    let rules = suspects.everything || suspects.routing_rules;
    if !rules && suspects.routes.is_empty() && !suspects.owners {
        return Ok(());
    }
    let mut vips = wanted.vips();
    let foreign = host.foreign(&vips)?;
    vips.retain(|vip| !foreign.now.contains(vip));
    let before = findings.len();
    if rules {
        let there = host.routing_rules()?;
        let missing = FAMILIES.into_iter().filter(|&family| vips.iter().any(|&vip| Family::of(vip) == family));
        for family in missing.filter(|family| !there.contains(family)) {
            let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
            let drift = Drift::new(DriftClass::Route, format_args!("rule iif lo, {name}"), Difference::Missing);
            findings.push(Finding { object: Object::RoutingRule(family), drift });
        }
    }
    let mut route = |place, vip, difference| {
        let table = if place == RouteKind::Local { "table for the node's own packets" } else { "main table" };
        let drift = Drift::new(DriftClass::Route, format_args!("{vip} in the {table}"), difference);
        findings.push(Finding { object: Object::Route(place, vip), drift });
    };
    if suspects.everything {
        let found = host.routes()?.routes;
        let wanted: BTreeSet<(RouteKind, IpAddr)> =
            vips.iter().flat_map(|&vip| [(RouteKind::Local, vip), (RouteKind::Forwarded, vip)]).collect();
        wanted.difference(&found).for_each(|&(place, vip)| route(place, vip, Difference::Missing));
        found.difference(&wanted).for_each(|&(place, vip)| route(place, vip, Difference::Extra));
    } else {
        for (&(place, vip), &there) in &suspects.routes {
            match (vips.contains(&vip), there) {
                (true, false) => route(place, vip, Difference::Missing),
                (false, true) => route(place, vip, Difference::Extra),
                (true, true) | (false, false) => {}
            }
        }
        for (vip, place) in
            foreign.changed.iter().flat_map(|&vip| [(vip, RouteKind::Local), (vip, RouteKind::Forwarded)])
        {
            let difference = if foreign.now.contains(&vip) { Difference::Extra } else { Difference::Missing };
            if !suspects.routes.contains_key(&(place, vip)) {
                route(place, vip, difference);
            }
        }
    }
    name_flushes(&vips, &mut findings[before..]);
    Ok(())
}

/// Routes of which none is left were flushed.
fn name_flushes(vips: &BTreeSet<IpAddr>, findings: &mut [Finding]) {
    let missing = |finding: &Finding| match finding.object {
        Object::Route(place, vip) if finding.drift.difference == Difference::Missing => Some((place, vip)),
        _ => None,
    };
    let flushed = routes::flushed(findings.iter().filter_map(missing), vips);
    for finding in findings {
        if missing(finding).is_some_and(|(place, vip)| flushed.contains(&(place, Family::of(vip)))) {
            finding.drift.cause = Cause::Flushed;
        }
    }
}
