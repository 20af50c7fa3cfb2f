//! `cargo xtask nightly`: tests that run for longer than CI lets them.

use std::{
    fs,
    process::Command,
    time::{Instant, SystemTime},
};

use crate::{
    kernels,
    test::{Failed, each_line, passed_in},
};

/// Plays random operations against the naive reference of lb-ipam, longer than CI does, restarts, lost ledgers and
/// failing writes among them, and finds every planted fault. Then runs random packets through the eBPF program of
/// packets and a reference, the eBPF datapath under pressure, kills processes that write rules of nftables and iptables a
/// thousand times each, and, unless one of these is left out, the whole
/// conformance suite and all privileged tests of the eBPF datapath on older kernels, as `cargo xtask kernels --all` does;
/// all of them as root. Prints lines of progress.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many operations of lb-ipam at least; with 0 the test is left out. CI plays 100,000; a million takes about a
    /// minute.
    #[arg(long, default_value_t = 1_000_000)]
    operations: u64,
    /// How many packets at least; with 0 the test is left out. CI runs 100,000; ten million take some minutes.
    #[arg(long, default_value_t = 10_000_000)]
    packets: u64,
    /// Leave out full maps, floods of SYNs, backends that come and go, and kills. CI runs them at a tenth of their sizes; at
    /// their full sizes they take some minutes.
    #[arg(long)]
    no_pressure: bool,
    /// Which ones: the same number, the same operations and packets. Without it they are others every time, and the
    /// number is printed.
    #[arg(long)]
    seed: Option<u64>,
}

/// A random test of one package.
struct Test {
    package: &'static str,
    name: &'static str,
    /// What is counted, as the command line and the lines of progress have it.
    unit: &'static str,
    count: u64,
    /// Variables that the test reads: count and seed.
    variables: [&'static str; 2],
    arguments: &'static [&'static str],
}

/// Builds the tests in release, runs them, and believes what they say they did, not that they passed.
pub(crate) fn nightly(args: &Args) -> Result<(), Failed> {
    let seed = args.seed.unwrap_or_else(seed_of_the_day);
    let tests = [
        Test {
            package: "lb-ipam",
            name: "machine",
            unit: "operations",
            count: args.operations,
            variables: ["LB_IPAM_OPERATIONS", "LB_IPAM_SEED"],
            arguments: &["--nocapture", "--test-threads", "1"],
        },
        Test {
            package: "lb-datapath-ebpf",
            name: "differential",
            unit: "packets",
            count: args.packets,
            variables: ["LB_DIFFERENTIAL_PACKETS", "LB_DIFFERENTIAL_SEED"],
            arguments: &["--ignored", "--nocapture"],
        },
    ];
    tests.iter().filter(|test| test.count > 0).try_for_each(|test| test.run(seed))?;
    if args.no_pressure {
        return Ok(());
    }
    pressure()?;
    kills()?;
    if tests.iter().any(|test| test.count == 0) {
        return Ok(());
    }
    conformance()?;
    kernels::kernels(&kernels::Args::ALL)
}

/// Runs the tests of the eBPF datapath under pressure, at their full sizes.
fn pressure() -> Result<(), Failed> {
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--package", "lb-datapath-ebpf", "--test", "root", "pressure::", "--"]);
    command.args(["--ignored", "--nocapture", "--test-threads", "1"]).env("LB_FULL_SIZES", "1");
    counted("lb-datapath-ebpf under pressure", &mut command)
}

/// Kills processes that write nftables' and iptables' rules, a thousand times each. CI does so twenty times.
fn kills() -> Result<(), Failed> {
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--package", "lb-datapath-iptables", "--features", "crash-points"]);
    command.args(["--test", "crash", "at_random_times", "--", "--ignored", "--nocapture", "--test-threads", "1"]);
    counted("lb-datapath-iptables, killed a thousand times each", command.env("LB_CRASH_RANDOM", "1000"))
}

/// Runs every case of the conformance suite on every datapath in both ways, also those that CI leaves out.
fn conformance() -> Result<(), Failed> {
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--package", "lb-testkit", "--test", "conformance", "--"]);
    command.args(["--ignored", "--test-threads", "2"]).env("LB_TESTKIT_ALL", "1");
    counted("the whole conformance suite", &mut command)
}

/// Runs tests, of which at least one has to pass.
fn counted(what: &str, command: &mut Command) -> Result<(), Failed> {
    eprintln!("==> {what}, {}", machine());
    let start = Instant::now();
    let mut passed = 0;
    let status = each_line(command, |line| passed += passed_in(line))?;
    if !status.success() || passed == 0 {
        return Err(Failed(format!("{what}: {passed} tests passed ({status})")));
    }
    eprintln!("==> {what}: {passed} passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

impl Test {
    fn run(&self, seed: u64) -> Result<(), Failed> {
        let Self { package, name, unit, count, variables: [count_variable, seed_variable], arguments } = self;
        let other = if *unit == "packets" { "operations" } else { "packets" };
        let replay = format!("cargo xtask nightly --{unit} {count} --{other} 0 --no-pressure --seed {seed}");
        eprintln!("==> {package}: {count} {unit}, seed {seed}, {}", machine());
        let start = Instant::now();
        let mut command = Command::new("cargo");
        command.args(["test", "--release", "--package", package, "--test", name, "--"]).args(*arguments);
        command.env(count_variable, count.to_string()).env(seed_variable, seed.to_string());
        let mut last = None;
        let status = each_line(&mut command, |line| last = progress(line, unit).or(last.take()))?;
        if !status.success() {
            return Err(Failed(format!("{package}: {status}; once more: {replay}")));
        }
        let (played, what) = last.ok_or_else(|| Failed(format!("{package}: the tests do not say what they played")))?;
        if played < *count {
            return Err(Failed(format!("{package}: {played} {unit} were played, expected {count}")));
        }
        eprintln!("==> {package}: passed in {:.0} s, seed {seed}: {what}", start.elapsed().as_secs_f64());
        eprintln!("==> once more: {replay}");
        Ok(())
    }
}

/// How many of `unit` so far and everything that was counted, of a line such as `seed 1, 2.5 s: 100590 operations,
/// 39223 …`.
fn progress(line: &str, unit: &str) -> Option<(u64, String)> {
    let (_, counts) = line.strip_prefix("seed ")?.split_once(" s: ")?;
    let (count, _) = counts.split_once(&format!(" {unit}, "))?;
    Some((count.parse().ok()?, counts.to_owned()))
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
        let counted = Some((100_590, "100590 operations, 39223 reconciles checked".into()));
        assert_eq!((progress(line, "operations"), progress(line, "packets")), (counted, None));
        for line in ["", "test result: ok. 2 passed", "seed 7, round 1, after 0 operations, 0 restarts: x", "seed 7"] {
            assert_eq!(progress(line, "operations"), None, "{line}");
        }
    }
}
