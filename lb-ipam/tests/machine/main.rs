//! Everything that may happen, at random, against a naive reference: no address has two holders that do not share it,
//! nobody moves unasked, nothing leaks, numbers add up, the order of delivery does not matter, restarts write nothing.
//!
//! `LB_IPAM_OPERATIONS` says how many operations, 100,000 if it is not set, and `LB_IPAM_SEED` which ones, always the
//! same if it is not set. `cargo xtask nightly` sets both, and shows what this prints.

mod checks;
mod gains;
mod ledger;
mod mutants;
mod ops;
mod reference;
mod rig;
mod tally;

use std::{cell::RefCell, env, time::Instant};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::{mutants::Mutant, ops::op, rig::Rig, tally::Tally};

/// Most operations of one cluster.
const LENGTH: usize = 200;
/// Operations between two lines of progress.
const ROUND: u64 = 50_000;
const OPERATIONS: u64 = 100_000;
const SEED: u64 = 0x6c62_2026;

/// Plays at least `operations` operations in clusters that start empty. What fails is repeated with less, up to
/// `shrink` times.
fn run(operations: u64, seed: [u64; 2], mutant: Option<Mutant>, shrink: u32) -> Result<Tally, String> {
    let config = Config { cases: 50, max_shrink_iters: shrink, failure_persistence: None, ..Config::default() };
    let tally = RefCell::new(Tally::default());
    for batch in 0.. {
        if tally.borrow().operations >= operations {
            break;
        }
        let mut runner = TestRunner::new_with_rng(config.clone(), random([seed[0], seed[1], batch]));
        let outcome = runner.run(&vec(op(), 1..LENGTH + 1), |ops| {
            let mut rig = Rig::new(mutant);
            let checked = ops.iter().try_for_each(|op| rig.run(op));
            tally.borrow_mut().add(&rig.tally);
            checked.map_err(TestCaseError::fail)
        });
        outcome.map_err(|error| error.to_string())?;
    }
    Ok(tally.into_inner())
}

fn random(seed: [u64; 3]) -> TestRng {
    let mut bytes = [0; 32];
    for (bytes, number) in bytes.chunks_exact_mut(8).zip(seed) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is {text}, expected a number"))
}

#[test]
fn whatever_happens_the_promises_hold() {
    let (operations, seed) = (setting("LB_IPAM_OPERATIONS", OPERATIONS), setting("LB_IPAM_SEED", SEED));
    let (start, mut tally) = (Instant::now(), Tally::default());
    for round in 0.. {
        let left = operations.saturating_sub(tally.operations);
        if left == 0 {
            break;
        }
        match run(left.min(ROUND), [seed, round], None, 4000) {
            Ok(of_round) => tally.add(&of_round),
            Err(error) => panic!("seed {seed}, round {round}, after {tally}: {error}"),
        }
        println!("seed {seed}, {:.1} s: {tally}", start.elapsed().as_secs_f64());
    }
    assert!(operations < ROUND || tally.is_complete(), "something never happened: {tally}");
}

#[test]
fn every_planted_fault_is_found() {
    let is_missed = |mutant: &Mutant| run(20_000, [SEED, 0], Some(*mutant), 0).is_ok();
    let missed: Vec<Mutant> = Mutant::ALL.into_iter().filter(is_missed).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
    println!("{} planted faults, each found within 20,000 operations", Mutant::ALL.len());
}
