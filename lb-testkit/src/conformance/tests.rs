//! That the suite fails what should fail.

use std::sync::Arc;

use lb_core::{
    datapath::{ApplyError, Capabilities, Datapath, DatapathError, Evicted, Eviction, Role},
    memory::MemoryDatapath,
    plan::{Op, Plan},
    state::{BackendSet, State, Target},
};

use super::{Fault, Stage, Subject, cases};
use crate::lab::Offload;

/// Memory with something wrong: each operation goes through `spoil` first, which may swallow it.
struct Spoiled {
    inner: MemoryDatapath,
    spoil: fn(Op) -> Option<Op>,
}

impl Datapath for Spoiled {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.inner.observe()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        let ops = plan.ops.iter().cloned().filter_map(self.spoil).collect();
        self.inner.apply(&Plan { id: plan.id, ops })
    }

    fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
        self.inner.evict(evictions)
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        self.inner.set_role(role)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.inner.cleanup()
    }
}

/// Names of the cases that such a datapath fails.
fn failed(spoil: fn(Op) -> Option<Op>) -> Vec<&'static str> {
    let open = move || Box::new(Spoiled { inner: MemoryDatapath::default(), spoil }) as Box<dyn Datapath>;
    let subject = Subject::state_only("spoiled", open);
    let fails = |case: &super::Case| {
        let verdict = Stage::new(&subject, Offload::On, case.nodes).and_then(|mut stage| (case.play)(&mut stage));
        matches!(verdict, Err(Fault::Failed(_)))
    };
    cases().iter().filter(|case| fails(case)).map(|case| case.name).collect()
}

#[test]
fn an_honest_datapath_passes() {
    assert_eq!(failed(Some), Vec::<&str>::new());
}

#[test]
fn a_datapath_that_keeps_deleted_frontends_fails() {
    let failed = failed(|op| (!matches!(op, Op::RemoveFrontend(_))).then_some(op));
    assert!(failed.contains(&"a_deleted_service_answers_no_more_and_others_do"), "{failed:?}");
    assert!(failed.contains(&"a_new_process_finds_what_was_applied"), "{failed:?}");
}

#[test]
fn a_datapath_that_drops_instead_of_refusing_fails() {
    let failed = failed(|mut op| {
        if let Op::UpsertFrontend { frontend, .. } = &mut op
            && frontend.target == Target::Reject
        {
            frontend.target = Target::Drop;
        }
        Some(op)
    });
    assert!(failed.contains(&"a_service_without_endpoints_refuses_at_once"), "{failed:?}");
}

#[test]
fn a_datapath_that_forgets_a_slot_fails() {
    let failed = failed(|op| match op {
        Op::AddSet(id, set) if set.slots.len() > 1 => {
            Some(Op::AddSet(id, Arc::new(BackendSet::new(set.lookup, &set.slots[1..]))))
        }
        op => Some(op),
    });
    assert!(failed.contains(&"random_choices_follow_weights"), "{failed:?}");
    assert!(failed.contains(&"maglev_takes_the_very_slot"), "{failed:?}");
}
