//! A datapath that fails on purpose.

use alloc::{boxed::Box, collections::BTreeSet, format, sync::Arc, vec::Vec};

use crate::{
    addr::FrontendAddr,
    datapath::{
        ApplyError, Capabilities, Counters, Datapath, DatapathError, Devices, ErrorKind, Evicted, Eviction, Role,
        Watcher,
    },
    decision::Packet,
    drift::{Drift, Expected, Inspection},
    id::HeldIds,
    kernel::KernelAnswer,
    plan::{Op, Plan},
    state::State,
};

/// How often a [`Faulty`] datapath fails, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of frontend operations that are refused, each on its own.
    pub refused_frontends: u16,
    /// Of plans that stop at a random operation, with the outcome unknown.
    pub interrupted_plans: u16,
    /// Of observations that fail.
    pub failed_observations: u16,
    /// Of operations that are said to have taken and have not: drift.
    pub lost_operations: u16,
    /// Of evictions that fail as a whole.
    pub failed_evictions: u16,
}

/// Wraps a datapath and injects faults, drawn from a seed: the same seed and calls give the same faults.
#[derive(Clone, Debug)]
pub struct Faulty<D> {
    inner: D,
    faults: Faults,
    draw: u64,
    injected: u64,
}

impl<D: Datapath> Faulty<D> {
    /// Wraps `inner`.
    #[must_use]
    pub const fn new(inner: D, faults: Faults, seed: u64) -> Self {
        Self { inner, faults, draw: seed, injected: 0 }
    }

    /// The wrapped datapath.
    #[must_use]
    pub const fn inner(&self) -> &D {
        &self.inner
    }

    /// Faults injected so far.
    #[must_use]
    pub const fn injected(&self) -> u64 {
        self.injected
    }

    /// From now on fails as `faults` says.
    pub const fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// splitmix64 (Steele et al., *Fast Splittable Pseudorandom Number Generators*, 2014).
    fn next(&mut self) -> u64 {
        self.draw = self.draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.draw;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn strikes(&mut self, per_mille: u16) -> bool {
        let strikes = self.next() % 1000 < u64::from(per_mille);
        self.injected += u64::from(strikes);
        strikes
    }

    /// `plan` without the operations that get lost.
    fn lose(&mut self, plan: &Plan) -> Plan {
        let per_mille = self.faults.lost_operations;
        Plan { id: plan.id, ops: plan.ops.iter().filter(|_| !self.strikes(per_mille)).cloned().collect() }
    }

    /// The frontends of `plan` whose operations are refused.
    fn refusals(&mut self, plan: &Plan) -> BTreeSet<FrontendAddr> {
        let per_mille = self.faults.refused_frontends;
        plan.ops.iter().filter_map(Op::frontend).filter(|_| self.strikes(per_mille)).collect()
    }
}

impl<D: Datapath> Datapath for Faulty<D> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        if self.strikes(self.faults.failed_observations) {
            return Err(DatapathError::new(ErrorKind::System, "injected fault: observation failed"));
        }
        self.inner.observe()
    }

    fn held_ids(&mut self) -> Result<HeldIds, DatapathError> {
        self.inner.held_ids()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        let plan = &self.lose(plan);
        if self.strikes(self.faults.interrupted_plans) {
            let stop = self.next() as usize % (plan.ops.len() + 1);
            let prefix = Plan { id: plan.id, ops: plan.ops[..stop].to_vec() };
            self.inner.apply(&prefix)?;
            let cause = format!("injected fault: stopped after {stop} of {} operations", plan.ops.len());
            return Err(ApplyError::unknown(DatapathError::new(ErrorKind::System, cause)));
        }
        let refused = self.refusals(plan);
        if refused.is_empty() {
            return self.inner.apply(plan);
        }
        let ops = plan.ops.iter().filter(|op| op.frontend().is_none_or(|addr| !refused.contains(&addr)));
        let rest = Plan { id: plan.id, ops: ops.cloned().collect() };
        self.inner.apply(&rest)?;
        let cause = || DatapathError::new(ErrorKind::Capacity, "injected fault: frontend refused");
        let failed: Vec<_> = refused.into_iter().map(|addr| (addr, cause())).collect();
        Err(ApplyError { applied: rest.ops.len(), failed, unknown: None })
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        self.inner.set_role(role)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.inner.cleanup()
    }

    fn inspect(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        self.inner.inspect(expected, inspection)
    }

    fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        self.inner.repair(expected, found)
    }

    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        self.inner.watcher()
    }

    fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
        if self.strikes(self.faults.failed_evictions) {
            return Err(DatapathError::new(ErrorKind::System, "injected fault: eviction failed"));
        }
        self.inner.evict(evictions)
    }

    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        self.inner.ask(packet)
    }

    fn on_devices(&mut self) -> Option<&mut dyn Devices> {
        self.inner.on_devices()
    }

    fn counters(&self) -> Option<Arc<dyn Counters>> {
        self.inner.counters()
    }
}
