//! Inspection and repair.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{
    addr::Family,
    datapath::{ApplyError, DatapathError},
    drift::{Cause, Difference, Drift, DriftClass, Expected, Inspection},
    plan::diff,
};

use crate::{
    conntrack::Allowed,
    iptables::{
        IptablesDatapath, Variant,
        change::{attempt::backends, lower::Job},
        check::{
            compare::{Compared, compare},
            sizes::{Size, Sizes},
            watch::{IptablesWatcher, Rules, SharedSuspects, TABLES},
        },
    },
    routes::{RouteKind, flushed},
};

/// The findings of an inspection, in the form that a repair needs.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    families: Vec<(Family, Compared)>,
    routes: RouteDrift,
}

/// Differences of routes and routing rules.
#[derive(Debug, Default)]
pub(crate) struct RouteDrift {
    pub(crate) drifts: Vec<Drift>,
    pub(crate) missing: Vec<(RouteKind, IpAddr)>,
    pub(crate) extra: Vec<(RouteKind, IpAddr)>,
    pub(crate) rules: Vec<Family>,
    /// Whether the path of refused packets is missing.
    pub(crate) reject_path: bool,
}

impl Findings {
    fn drifts(&self) -> impl Iterator<Item = &Drift> {
        self.families.iter().flat_map(|(_, compared)| &compared.drifts).chain(&self.routes.drifts)
    }
}

impl IptablesDatapath {
    pub(crate) fn look(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        self.note_sizes();
        let (families, routes) = self.what_to_look_at(inspection);
        // From before the rules are read: what changes afterwards is noticed.
        let sizes = self.sizes_now();
        match self.look_at(expected, &families, routes) {
            Ok(found) => {
                let drifts = found.drifts().cloned().collect();
                self.found = found;
                let read = sizes.into_iter().filter(|((family, _), _)| families.contains(family));
                self.shared.lock().sizes.extend(read);
                Ok(drifts)
            }
            Err(error) => {
                self.suspect_everything();
                Err(error)
            }
        }
    }

    pub(crate) fn put_right(&mut self, expected: Expected<'_>, drifts: &[Drift]) -> Result<(), ApplyError> {
        let known: BTreeSet<&Drift> = self.found.drifts().collect();
        if !drifts.iter().all(|drift| known.contains(drift)) {
            self.look(expected, Inspection::Everything).map_err(ApplyError::unknown)?;
        }
        let found = std::mem::take(&mut self.found);
        self.begin_change();
        let outcome = self.put_back(expected, &found);
        self.remember_sizes();
        if let Err(error) = outcome {
            self.installed = None;
            self.suspect_everything();
            return Err(ApplyError::unknown(error));
        }
        match &self.installed {
            Some(installed) if installed.state == *expected.state => Ok(()),
            Some(_) | None => {
                let observed = lb_core::datapath::Datapath::observe(self).map_err(ApplyError::unknown)?;
                lb_core::datapath::Datapath::apply(self, &diff(&observed, expected.state, expected.labels))
            }
        }
    }

    /// Makes everything suspect.
    pub(crate) fn suspect_everything(&self) {
        let mut suspects = self.shared.lock();
        suspects.families.extend(&self.config.families);
        suspects.routes = true;
    }

    /// Before a change by lb: the changes of other programs until now are noted, and the watcher looks away.
    pub(crate) fn begin_change(&self) {
        self.note_sizes();
        self.shared.lock().sizes.clear();
    }

    /// After a change by lb: this is what the tables look like from outside.
    pub(crate) fn remember_sizes(&self) {
        let sizes = self.sizes_now();
        self.shared.lock().sizes = sizes;
    }

    /// Makes families suspect whose tables do not look as they did after the last change by lb.
    fn note_sizes(&self) {
        let now = self.sizes_now();
        let mut suspects = self.shared.lock();
        let changed = now.iter().filter(|(table, size)| suspects.sizes.get(table).is_some_and(|known| known != *size));
        let families: BTreeSet<Family> = changed.map(|((family, _), _)| *family).collect();
        suspects.families.extend(families);
    }

    /// The sizes of the tables of iptables-legacy, as far as they can be asked for.
    fn sizes_now(&self) -> BTreeMap<(Family, &'static str), Size> {
        let tables = self.config.families.iter().flat_map(|&family| TABLES.map(|table| (family, table)));
        let sized = |(family, table)| Some(((family, table), self.sizes.as_ref()?.of(family, table).ok()?));
        tables.filter_map(sized).collect()
    }

    pub(crate) fn open_watcher(&self) -> std::io::Result<IptablesWatcher> {
        let route_filter = self.host.route_filter()?;
        let (looks, families, shared) =
            (self.config.variant == Variant::Legacy, &self.config.families, SharedSuspects::clone(&self.shared));
        let open = || {
            let rules = if looks { Rules::Polled(Sizes::open(families)?) } else { IptablesWatcher::notified()? };
            IptablesWatcher::open(rules, route_filter, families, shared)
        };
        self.namespace.within(open).flatten()
    }

    /// The families to compare, and whether to compare routes. Findings that were not repaired are compared again.
    fn what_to_look_at(&self, inspection: Inspection) -> (BTreeSet<Family>, bool) {
        let mut suspects = self.shared.lock();
        let (mut families, mut routes) = (std::mem::take(&mut suspects.families), std::mem::take(&mut suspects.routes));
        let unrepaired = self.found.families.iter().filter(|(_, compared)| !compared.drifts.is_empty());
        families.extend(unrepaired.map(|(family, _)| *family));
        routes |= !self.found.routes.drifts.is_empty();
        if inspection == Inspection::Everything {
            families.extend(&self.config.families);
            routes = true;
        }
        (families, routes)
    }

    fn look_at(
        &mut self,
        expected: Expected<'_>,
        families: &BTreeSet<Family>,
        routes: bool,
    ) -> Result<Findings, DatapathError> {
        let mut found = Findings::default();
        for &family in families {
            found.families.push((family, compare(expected, self.style, &self.tables(family)?)));
        }
        if routes {
            found.routes = self.look_at_routes(expected)?;
        }
        Ok(found)
    }

    fn look_at_routes(&mut self, expected: Expected<'_>) -> Result<RouteDrift, DatapathError> {
        let mut vips: BTreeSet<IpAddr> = expected.state.frontends.keys().map(|addr| addr.ip).collect();
        let foreign = self.host.foreign(&vips)?.now;
        vips.retain(|vip| !foreign.contains(vip));
        let found = self.host.routes()?;
        let wanted: BTreeSet<(RouteKind, IpAddr)> =
            vips.iter().flat_map(|&vip| [(RouteKind::Local, vip), (RouteKind::Forwarded, vip)]).collect();
        let mut routes = RouteDrift {
            missing: wanted.difference(&found.routes).copied().collect(),
            extra: found.routes.difference(&wanted).copied().collect(),
            ..RouteDrift::default()
        };
        let used = |family: &Family| vips.iter().any(|&vip| Family::of(vip) == *family);
        routes.rules = self.config.families.iter().copied().filter(used).collect();
        routes.rules.retain(|family| !found.rules.contains(family));
        routes.reject_path = !vips.is_empty() && !self.host.has_reject_path()?;
        routes.name(&vips);
        Ok(routes)
    }

    fn put_back(&mut self, expected: Expected<'_>, found: &Findings) -> Result<(), DatapathError> {
        self.host.mend(&found.routes)?;
        for (family, compared) in found.families.iter().filter(|(_, compared)| !compared.drifts.is_empty()) {
            let job = Job {
                family: *family,
                style: self.style,
                before: expected.state,
                after: expected.state,
                labels: expected.labels,
                dirty: &compared.dirty,
                stray: &compared.stray,
                base: compared.base,
                missing: &compared.missing,
                behind: &compared.behind,
            };
            self.tools.restore(*family, job.restore().text())?;
        }
        self.host.forget_stale(&flows(expected, found))
    }
}

/// The frontends of families that differed, whose packets may have gone elsewhere, or nowhere, and where their
/// flows may go.
fn flows(expected: Expected<'_>, found: &Findings) -> Allowed {
    let differed = found.families.iter().filter(|(_, compared)| !compared.drifts.is_empty());
    let families: BTreeSet<Family> = differed.map(|(family, _)| *family).collect();
    let concerned = expected.state.frontends.keys().filter(|addr| families.contains(&addr.family()));
    concerned.map(|&addr| (addr, backends(expected.state, addr).unwrap_or_default())).collect()
}

impl RouteDrift {
    /// The findings as reports.
    fn name(&mut self, vips: &BTreeSet<IpAddr>) {
        let flushed = flushed(self.missing.iter().copied(), vips);
        let route = |(place, vip): &(RouteKind, IpAddr), difference| {
            let table = if *place == RouteKind::Local { "table for the node's own packets" } else { "main table" };
            Drift::new(DriftClass::Route, format_args!("{vip} in the {table}"), difference)
        };
        let missing = self.missing.iter().map(|at| {
            let drift = route(at, Difference::Missing);
            if flushed.contains(&(at.0, Family::of(at.1))) { drift.because(Cause::Flushed) } else { drift }
        });
        let extra = self.extra.iter().map(|at| route(at, Difference::Extra));
        let rules = self.rules.iter().map(|family| {
            let name = if *family == Family::V4 { "IPv4" } else { "IPv6" };
            Drift::new(DriftClass::Route, format_args!("rule iif lo, {name}"), Difference::Missing)
        });
        let reject =
            self.reject_path.then(|| Drift::new(DriftClass::Route, "rules for refused packets", Difference::Missing));
        self.drifts = missing.chain(extra).chain(rules).chain(reject).collect();
    }
}
