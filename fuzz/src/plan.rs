//! Plans.

use lb_core::{
    plan::{Labels, diff},
    state::{Answer, State},
};

use crate::world::{Node, manifests};

/// Makes a state out of each half of the bytes, one after the other.
///
/// The plan between them leads from one to the other; no beginning of it leaves a frontend that both have without its
/// backends, or anything that points to what is not there; and the difference of the two states, applied to the one,
/// is the other.
///
/// # Panics
/// When one of this does not hold.
pub fn plan(data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 2);
    let mut node = Node::new();
    if let Some(plan) = node.read(&manifests(first)) {
        node.carry_out(&plan);
    }
    let before = node.state.clone();
    let Some(plan) = node.read(&manifests(second)) else { return };
    node.carry_out(&plan);
    let after = &node.state;
    check(&before, after, &plan.ops);
    let difference = diff(&before, after, &Labels::default());
    check(&before, after, &difference.ops);
}

fn check(before: &State, after: &State, ops: &[lb_core::plan::Op]) {
    let mut state = before.clone();
    for op in ops {
        state.apply_op(op);
        assert_eq!(state.dangling(), None, "after {op:?}");
        for addr in before.frontends.keys().filter(|addr| after.frontends.contains_key(addr)) {
            let answer = state.answer(addr, 0);
            assert!(!matches!(answer, Answer::NotAFrontend | Answer::Broken), "{addr}: {answer:?} after {op:?}");
        }
    }
    assert_eq!(&state, after);
}
