//! Everything that may happen, at random, against a naive reference: no address has two holders that do not share it,
//! nobody moves unasked, nothing leaks, numbers add up, the order of delivery does not matter, restarts write nothing.
//!
//! `LB_IPAM_OPERATIONS` says how many operations; 100,000 if it is not set.

mod checks;
mod ledger;
mod mutants;
mod ops;
mod reference;
mod rig;

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{mutants::Mutant, ops::op, rig::Rig};

const LENGTH: usize = 200;

fn run(operations: usize, mutant: Option<Mutant>, shrink: u32) -> Result<(), String> {
    let cases = u32::try_from(operations.div_ceil(LENGTH / 2)).expect("at most some billions");
    let config = Config { cases, max_shrink_iters: shrink, failure_persistence: None, ..Config::default() };
    let mut runner =
        TestRunner::new_with_rng(config, proptest::test_runner::TestRng::deterministic_rng(Default::default()));
    let outcome = runner.run(&vec(op(), 1..LENGTH + 1), |ops| {
        let mut rig = Rig::new(mutant);
        for op in &ops {
            rig.run(op).map_err(TestCaseError::fail)?;
        }
        Ok(())
    });
    outcome.map_err(|error| error.to_string())
}

#[test]
fn whatever_happens_the_promises_hold() {
    let operations = std::env::var("LB_IPAM_OPERATIONS").ok().and_then(|number| number.parse().ok());
    if let Err(error) = run(operations.unwrap_or(100_000), None, 4000) {
        panic!("{error}");
    }
}

#[test]
fn every_planted_fault_is_found() {
    let missed: Vec<Mutant> = Mutant::ALL.into_iter().filter(|mutant| run(20_000, Some(*mutant), 0).is_ok()).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
