//! A target with its corpus.

use std::{
    env, fs, io, panic,
    path::{Path, PathBuf},
};

use crate::{
    Target,
    mutate::{Numbers, mutated},
};

const SEED: u64 = 3;

/// Runs a target on each file of its corpus, then on so many mutations of them: the same ones each time, unless
/// `LB_FUZZ_SEED` and `LB_FUZZ_RUNS` say which and how many.
///
/// # Errors
/// When the corpus cannot be read.
///
/// # Panics
/// When the target fails, and says on which input; when there is no corpus or a variable is no number.
pub fn replay(name: &str, target: Target, runs: usize) -> io::Result<()> {
    let corpus = corpus(name)?;
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for data in &corpus {
        run(name, target, data);
    }
    let seed = number("LB_FUZZ_SEED").unwrap_or(SEED);
    let runs = number("LB_FUZZ_RUNS").map_or(runs, |runs| runs as usize);
    println!("{name}: {} files, then {runs} mutations from seed {seed}", corpus.len());
    let mut numbers = Numbers::new(seed);
    for _ in 0..runs {
        run(name, target, &mutated(&corpus, &mut numbers));
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, expected a number")))
}

/// In order of name.
fn corpus(name: &str) -> io::Result<Vec<Vec<u8>>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    files.iter().map(fs::read).collect()
}

fn run(name: &str, target: Target, data: &[u8]) {
    let outcome = panic::catch_unwind(|| target(data));
    assert!(outcome.is_ok(), "{name} failed: add this to corpus/{name}: {}", data.escape_ascii());
}
