//! `cargo xtask nightly`: random tests that run for longer than CI lets them.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Instant, SystemTime},
};

use crate::test::Failed;

/// Plays random operations against the naive reference of lb-ipam, longer than CI does, restarts, lost ledgers and
/// failing writes among them, and finds every planted fault. Prints a line of progress for every 50,000 operations.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many operations at least. CI plays 100,000; a million takes about a minute.
    #[arg(long, default_value_t = 1_000_000)]
    operations: u64,
    /// Which ones: the same number, the same operations. Without it they are others every time, and the number is
    /// printed.
    #[arg(long)]
    seed: Option<u64>,
}

/// Builds the tests in release, runs them, and believes what they say they did, not that they passed.
pub(crate) fn nightly(args: &Args) -> Result<(), Failed> {
    let seed = args.seed.unwrap_or_else(seed_of_the_day);
    let replay = format!("cargo xtask nightly --operations {} --seed {seed}", args.operations);
    eprintln!("==> lb-ipam: {} operations, seed {seed}, {}", args.operations, machine());
    let start = Instant::now();
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--package", "lb-ipam", "--test", "machine"]);
    command.args(["--", "--nocapture", "--test-threads", "1"]);
    command.env("LB_IPAM_OPERATIONS", args.operations.to_string()).env("LB_IPAM_SEED", seed.to_string());
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| Failed(format!("{command:?}: {e}")))?;
    let stdout = child.stdout.take().ok_or_else(|| Failed("no output of cargo test".into()))?;
    let mut last = None;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        println!("{line}");
        last = progress(&line).or(last);
    }
    let status = child.wait().map_err(|e| Failed(format!("{command:?}: {e}")))?;
    if !status.success() {
        return Err(Failed(format!("lb-ipam: {status}; once more: {replay}")));
    }
    let (played, what) = last.ok_or_else(|| Failed("lb-ipam: the tests do not say what they played".into()))?;
    if played < args.operations {
        return Err(Failed(format!("lb-ipam: {played} operations were played, expected {}", args.operations)));
    }
    eprintln!("==> lb-ipam: passed in {:.0} s, seed {seed}: {what}", start.elapsed().as_secs_f64());
    eprintln!("==> once more: {replay}");
    Ok(())
}

/// Operations so far and everything that was counted, of a line such as `seed 1, 2.5 s: 100590 operations, 39223 …`.
fn progress(line: &str) -> Option<(u64, String)> {
    let (_, counts) = line.strip_prefix("seed ")?.split_once(" s: ")?;
    let (operations, _) = counts.split_once(" operations, ")?;
    Some((operations.parse().ok()?, counts.to_owned()))
}

fn seed_of_the_day() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What figures depend on: the kernel, the processor, how many of them there are, and what else they do.
pub(crate) fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let models = cpuinfo.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let models: Vec<&str> = models.map(|(_, model)| model).collect();
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    let cpu = models.first().unwrap_or(&"unknown processor");
    let load = load.split(' ').next().unwrap_or_default();
    format!("kernel {}, {} x {cpu}, load {load}", kernel.trim(), models.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_played_is_read_from_lines_of_progress_only() {
        let line = "seed 7, 2.5 s: 100590 operations, 39223 reconciles checked";
        assert_eq!(progress(line), Some((100_590, "100590 operations, 39223 reconciles checked".into())));
        for line in ["", "test result: ok. 2 passed", "seed 7, round 1, after 0 operations, 0 restarts: x", "seed 7"] {
            assert_eq!(progress(line), None, "{line}");
        }
    }
}
