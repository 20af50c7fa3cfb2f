//! What a datapath is to do next, and what came of it.

use alloc::vec::Vec;

use super::Runner;
use crate::{
    datapath::{ApplyError, Datapath, DatapathError, Evicted, Eviction},
    drift::{Drift, Inspection},
    id::HeldIds,
    plan::Plan,
    state::State,
    time::Instant,
};

/// What a datapath is to do next.
#[derive(Debug)]
#[must_use = "the datapath is as before until the task is carried out"]
pub struct Task {
    pub(super) work: Work,
    pub(super) began: Instant,
}

#[derive(Debug)]
pub(super) enum Work {
    Observe,
    Apply(Plan),
    Evict(Vec<Eviction>),
    Inspect(Inspection),
    Repair(Vec<Drift>),
}

/// What came of a [`Task`].
#[derive(Debug)]
#[must_use = "the runner waits for it: call `Runner::handle_done`"]
pub struct Done {
    pub(super) outcome: Outcome,
    pub(super) began: Instant,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Observed(Result<(State, HeldIds), DatapathError>),
    Applied(Plan, Result<(), ApplyError>),
    Evicted(Vec<Eviction>, Result<Evicted, DatapathError>),
    Inspected(Inspection, Result<Vec<Drift>, DatapathError>),
    Repaired(Result<(), ApplyError>),
    /// What the datapath should hold has become unknown.
    NothingExpected,
}

impl Task {
    /// Has the datapath do it. This blocks as long as the datapath works; others may read the runner meanwhile.
    pub fn carry_out(self, runner: &Runner, datapath: &mut dyn Datapath) -> Done {
        let expected = runner.reconciler.expected();
        let outcome = match (self.work, expected) {
            (Work::Observe, _) => {
                Outcome::Observed(datapath.observe().and_then(|state| Ok((state, datapath.held_ids()?))))
            }
            (Work::Apply(plan), _) => {
                let outcome = datapath.apply(&plan);
                Outcome::Applied(plan, outcome)
            }
            (Work::Evict(evictions), _) => {
                let outcome = datapath.evict(&evictions);
                Outcome::Evicted(evictions, outcome)
            }
            (Work::Inspect(inspection), Some(expected)) => {
                Outcome::Inspected(inspection, datapath.inspect(expected, inspection))
            }
            (Work::Repair(found), Some(expected)) => Outcome::Repaired(datapath.repair(expected, &found)),
            (Work::Inspect(_) | Work::Repair(_), None) => Outcome::NothingExpected,
        };
        Done { outcome, began: self.began }
    }
}
