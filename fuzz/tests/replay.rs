//! Every target with its corpus, then with mutations of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path};

use lb_fuzz::{TARGETS, replay};

/// Mutations of each target, in the order of [`TARGETS`]: one or two seconds each without optimisation.
const RUNS: [usize; 5] = [2000, 600, 200, 400, 200];

fn run(index: usize) {
    let (name, target) = TARGETS[index];
    replay(name, target, RUNS[index]).unwrap();
}

#[test]
fn manifests() {
    run(0);
}

#[test]
fn history() {
    run(1);
}

#[test]
fn plan() {
    run(2);
}

#[test]
fn decide() {
    run(3);
}

#[test]
fn maglev() {
    run(4);
}

#[test]
fn every_target_has_a_corpus_and_is_one_of_cargo_fuzz_too() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(here.join("cargo-fuzz/Cargo.toml")).unwrap();
    let corpora: BTreeSet<String> = fs::read_dir(here.join("corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in &corpora {
        let of = if TARGETS.iter().any(|(target, _)| target == name) { "lb_fuzz" } else { "lb_agent::fuzzing" };
        let text = fs::read_to_string(here.join(format!("cargo-fuzz/fuzz_targets/{name}.rs"))).unwrap();
        assert!(text.contains(&format!("{of}::{name}(data)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    let targets = fs::read_dir(here.join("cargo-fuzz/fuzz_targets")).unwrap();
    assert_eq!(targets.count(), corpora.len());
    assert!(TARGETS.iter().all(|(name, _)| corpora.contains(*name)));
}
