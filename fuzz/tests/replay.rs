//! Every target with its corpus, then with mutations of it: the same ones each time.
//!
//! `LB_FUZZ_SEED` and `LB_FUZZ_RUNS` change which and how many.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{env, fs, panic, path::Path};

use lb_fuzz::{
    TARGETS, Target,
    mutate::{Numbers, mutated},
};

/// Mutations of each target, in the order of [`TARGETS`]: one or two seconds each without optimisation.
const RUNS: [usize; 5] = [2000, 600, 200, 400, 200];

const SEED: u64 = 3;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap())
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Runs a target, and says what it was given if it fails.
fn run(name: &str, target: Target, data: &[u8]) {
    let outcome = panic::catch_unwind(|| target(data));
    assert!(outcome.is_ok(), "{name} failed: add this to corpus/{name}: {}", data.escape_ascii());
}

fn replay(index: usize) {
    let (name, target) = TARGETS[index];
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for data in &corpus {
        run(name, target, data);
    }
    let seed = number("LB_FUZZ_SEED").unwrap_or(SEED);
    let runs = number("LB_FUZZ_RUNS").map_or(RUNS[index], |runs| runs as usize);
    println!("{name}: {} files, then {runs} mutations from seed {seed}", corpus.len());
    let mut numbers = Numbers::new(seed);
    for _ in 0..runs {
        run(name, target, &mutated(&corpus, &mut numbers));
    }
}

#[test]
fn manifests() {
    replay(0);
}

#[test]
fn history() {
    replay(1);
}

#[test]
fn plan() {
    replay(2);
}

#[test]
fn decide() {
    replay(3);
}

#[test]
fn maglev() {
    replay(4);
}

#[test]
fn every_target_is_one_of_cargo_fuzz_too() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("cargo-fuzz");
    let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let text = fs::read_to_string(package.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(text.contains(&format!("lb_fuzz::{name}(data)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
