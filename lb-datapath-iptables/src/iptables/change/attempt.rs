//! One plan on its way into the kernel. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{
    addr::{Family, FrontendAddr, Protocol},
    datapath::{ApplyError, DatapathError},
    plan::{Op, Plan},
    state::{State, Target},
};

use crate::{
    conntrack::Allowed,
    iptables::{
        change::{
            effect::{Change, Refused, frontend_of, refused},
            lower::{Job, Style},
        },
        check::installed::{Frame, Installed},
    },
};

/// A plan, what it starts from, and which of its frontends are refused so far.
pub(crate) struct Attempt<'a> {
    installed: &'a Installed,
    plan: &'a Plan,
    refused: Refused,
    /// Families of which a restore was refused, which may have changed the table filter by then.
    torn: BTreeSet<Family>,
    pub(crate) change: Change,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(installed: &'a Installed, plan: &'a Plan, families: &[Family]) -> Self {
        let refused = refused(&installed.state, plan, families);
        let change = Change::new(&installed.state, &installed.labels, plan, &refused);
        Self { installed, plan, refused, torn: BTreeSet::new(), change }
    }

    /// Leaves `addr`, which a restore refused, as it was.
    pub(crate) fn refuse(&mut self, addr: FrontendAddr, cause: DatapathError) {
        self.torn.insert(addr.family());
        self.refused.insert(addr, cause);
        self.recompute();
    }

    /// Whether something of `family` is to be written.
    pub(crate) fn touches(&self, family: Family) -> bool {
        self.change.touches(family) || self.is_torn(family)
    }

    fn is_torn(&self, family: Family) -> bool {
        self.installed.frame(family).torn || self.torn.contains(&family)
    }

    fn recompute(&mut self) {
        self.change = Change::new(&self.installed.state, &self.installed.labels, self.plan, &self.refused);
    }

    /// The restore for `family`.
    pub(crate) fn job(&self, family: Family, style: Style) -> Job<'_> {
        let frame = self.installed.frame(family);
        Job {
            family,
            style,
            before: &self.installed.state,
            after: &self.change.after,
            labels: &self.change.labels,
            dirty: &self.change.dirty,
            stray: &frame.stray,
            base: !frame.base || self.change.node || self.is_torn(family),
            missing: &frame.missing,
            behind: const { &BTreeSet::new() },
        }
    }

    /// Leaves the frontends of VIPs that cannot be routed as they were.
    pub(crate) fn refuse_vips(&mut self, unroutable: BTreeMap<IpAddr, DatapathError>) {
        if unroutable.is_empty() {
            return;
        }
        for &addr in &self.change.dirty {
            if let Some(cause) = unroutable.get(&addr.ip) {
                self.refused.insert(addr, DatapathError::new(cause.kind(), cause.report()));
            }
        }
        self.recompute();
    }

    /// VIPs that must be routed before the rules come.
    pub(crate) fn vips_needed(&self) -> Vec<IpAddr> {
        self.vips().difference(&self.installed.routed).copied().collect()
    }

    /// VIPs that nothing needs any more.
    pub(crate) fn vips_left(&self) -> Vec<IpAddr> {
        self.installed.routed.difference(&self.vips()).copied().collect()
    }

    fn vips(&self) -> BTreeSet<IpAddr> {
        self.change.after.frontends.keys().map(|addr| addr.ip).collect()
    }

    /// Frontends that came or went, and those of UDP whose backends changed, with the backends that they have now; none
    /// for one that is gone.
    pub(crate) fn stale_flows(&self) -> Allowed {
        let both = |&addr| (addr, backends(&self.installed.state, addr), backends(&self.change.after, addr));
        let stale = self.change.dirty.iter().map(both).filter(|(addr, before, after)| {
            let comes_or_goes = before.is_some() != after.is_some();
            comes_or_goes || addr.protocol == Protocol::Udp && before != after
        });
        stale.map(|(addr, _, after)| (addr, after.unwrap_or_default())).collect()
    }

    /// The report on a plan of which nothing took.
    pub(crate) fn nothing_took(&self, cause: &DatapathError) -> ApplyError {
        let frontends: BTreeSet<FrontendAddr> = self.plan.ops.iter().filter_map(frontend_of).collect();
        let failed = frontends.into_iter().map(|addr| (addr, DatapathError::new(cause.kind(), cause.report())));
        ApplyError { applied: 0, failed: failed.collect(), unknown: None }
    }

    /// The kernel's new state, and the report.
    pub(crate) fn finish(self) -> (Installed, Result<(), ApplyError>) {
        let frame = |family| match self.touches(family) {
            true => Frame { base: true, ..Frame::default() },
            false => self.installed.frame(family).clone(),
        };
        let (v4, v6, routed) = (frame(Family::V4), frame(Family::V6), self.vips());
        let refused_op = |op: &&Op| frontend_of(op).is_some_and(|addr| self.refused.contains_key(&addr));
        let applied = self.plan.ops.len() - self.plan.ops.iter().filter(refused_op).count();
        let failed: Vec<_> = self.refused.into_iter().collect();
        let report = if failed.is_empty() { Ok(()) } else { Err(ApplyError { applied, failed, unknown: None }) };
        (Installed { state: self.change.after, labels: self.change.labels, routed, v4, v6 }, report)
    }
}

/// The backends that may have flows of `addr` in `state`; `None` if it is no frontend.
pub(crate) fn backends(state: &State, addr: FrontendAddr) -> Option<BTreeSet<(IpAddr, u16)>> {
    let backends = match state.frontends.get(&addr)?.target {
        Target::Set(id) => state.sets.get(&id)?.backends(),
        Target::Reject | Target::Drop => BTreeSet::new(),
    };
    Some(
        backends
            .iter()
            .filter_map(|id| state.backends.get(id))
            .map(|backend| (backend.addr.ip, backend.addr.port))
            .collect(),
    )
}
