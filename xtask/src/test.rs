//! `cargo xtask test`: everything that has to hold, in one command.

use std::{
    fmt,
    io::{BufRead, BufReader},
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

use crate::{
    api, kernels,
    package::{self, package},
    packages::Workspace,
};

const TARGET_WITHOUT_STD: &str = "x86_64-unknown-none";

/// Checks and tests everything, privileged tests too.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the tests out that need root, and count them. CI never does.
    #[arg(long)]
    no_root: bool,
    /// Only steps whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

type Step = (&'static str, fn(&Args) -> Result<(), Failed>);

/// What fails soonest comes first.
const STEPS: [Step; 14] = [
    ("format", |_| cargo(&["fmt", "--all", "--check"])),
    ("clippy", |_| clippy()),
    ("docs", |_| run(Command::new("cargo").args(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))),
    ("without std", |_| without_std()),
    ("deny", |_| cargo(&["deny", "check", "bans", "licenses", "sources"])),
    ("api", |_| api::api(&api::Args::CHECK)),
    ("package", |_| package(&package::Args {})),
    ("eBPF object", |_| cargo(&["xtask", "build-ebpf", "--check"])),
    ("tests", |_| tests()),
    ("privileged tests", |args| privileged(args, &["--tests"])),
    ("crash points", |args| privileged(args, &CRASHES)),
    ("older kernels", |_| kernels::kernels(&kernels::Args::SHORT)),
    ("examples", |args| examples(args.no_root)),
    ("own datapath", own_datapath),
];

/// What failed.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// Runs the steps in order, up to the first that fails.
pub(crate) fn test(args: &Args) -> Result<(), Failed> {
    let start = Instant::now();
    let wanted = |name: &str| args.only.as_deref().is_none_or(|only| name.contains(only));
    for (name, step) in STEPS.iter().filter(|(name, _)| wanted(name)) {
        eprintln!("==> {name}");
        let start = Instant::now();
        step(args).map_err(|Failed(why)| Failed(format!("{name}: {why}")))?;
        eprintln!("==> {name}: passed in {:.0} s", start.elapsed().as_secs_f64());
    }
    eprintln!("==> all passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(args: &[&str]) -> Result<(), Failed> {
    run(Command::new("cargo").args(args))
}

pub(crate) fn run(command: &mut Command) -> Result<(), Failed> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failed(format!("{command:?}: {status}"))),
        Err(error) => Err(Failed(format!("{command:?} did not start: {error}"))),
    }
}

/// The packet logic of the eBPF programs is a library that the host can run, in a package that only the kernel's target
/// can build in full.
const PROGRAMS: [&str; 3] = ["--package", "lb-datapath-ebpf-programs", "--lib"];

/// Tests that kill the process at every point where it writes to the kernel, which only they compile in.
const CRASHES: [&str; 8] = [
    "--package",
    "lb-datapath-ebpf",
    "--package",
    "lb-datapath-iptables",
    "--features",
    "lb-datapath-ebpf/crash-points,lb-datapath-iptables/crash-points",
    "--test",
    "crash",
];

fn clippy() -> Result<(), Failed> {
    cargo(&["clippy", "--all-targets", "--", "-D", "warnings"])?;
    cargo(&[&["clippy"], &CRASHES[..6], &["--all-targets", "--", "-D", "warnings"]].concat())?;
    run(Command::new("cargo").arg("clippy").args(PROGRAMS).args(["--tests", "--", "-D", "warnings"]))
}

fn tests() -> Result<(), Failed> {
    cargo(&["test", "--quiet"])?;
    run(Command::new("cargo").args(["test", "--quiet"]).args(PROGRAMS))
}

/// Pure crates build without std, so neither I/O nor a clock nor the order of a hash map can creep in.
fn without_std() -> Result<(), Failed> {
    let workspace = Workspace::read()?;
    let packages = workspace.published();
    let pure: Vec<_> = packages.iter().filter(|package| package.is_without_std()).collect();
    eprintln!("pure: {}", pure.iter().map(|package| package.name.as_str()).collect::<Vec<_>>().join(", "));
    let packages = pure.iter().flat_map(|package| ["--package", &package.name]);
    run(Command::new("cargo").args(["build", "--target", TARGET_WITHOUT_STD]).args(packages))
}

/// Runs the tests that need root and fails unless each one that exists has passed or was excluded by what a datapath
/// says of itself, so that none can be left out unseen.
fn privileged(args: &Args, which: &[&str]) -> Result<(), Failed> {
    let list = ["--quiet", "--", "--ignored", "--list", "--format", "terse"];
    let list = output(Command::new("cargo").arg("test").args(which).args(list))?;
    let exist = list.lines().filter(|line| line.ends_with(": test")).count();
    if args.no_root {
        eprintln!("{exist} tests that need root were left out");
        return Ok(());
    }
    let mut command = Command::new("cargo");
    command.arg("test").args(which).args(["--no-fail-fast", "--", "--ignored", "--test-threads", "2"]);
    let (mut passed, mut excluded) = (0, 0);
    let status = each_line(&mut command, |line| {
        passed += passed_in(line);
        excluded += excluded_in(line);
    })?;
    let counts = format!("{exist} privileged tests: {passed} passed, {excluded} excluded by capabilities");
    eprintln!("{counts}");
    if !status.success() || passed == 0 || passed + excluded != exist {
        return Err(Failed(format!("{counts} ({status})")));
    }
    Ok(())
}

/// Runs `command`, and prints and reads each line of its output as it comes.
pub(crate) fn each_line(command: &mut Command, mut read: impl FnMut(&str)) -> Result<ExitStatus, Failed> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| Failed(format!("{command:?}: {e}")))?;
    let stdout = child.stdout.take().ok_or_else(|| Failed(format!("{command:?}: no output")))?;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        println!("{line}");
        read(&line);
    }
    child.wait().map_err(|e| Failed(format!("{command:?}: {e}")))
}

/// Tests passed according to a line such as `test result: ok. 3 passed; 0 failed; …`; 0 for every other line.
pub(crate) fn passed_in(line: &str) -> usize {
    let Some((_, rest)) = line.split_once("test result: ") else { return 0 };
    number_before(rest, "passed;").unwrap_or(0)
}

/// Trials excluded according to a line such as `conformance: ebpf: run 70, failed 0, excluded 8`; 0 for every other
/// line.
fn excluded_in(line: &str) -> usize {
    if !line.starts_with("conformance: ") {
        return 0;
    }
    line.rsplit_once(", excluded ").and_then(|(_, number)| number.trim().parse().ok()).unwrap_or(0)
}

fn number_before(text: &str, word: &str) -> Option<usize> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|found| *found == word)?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

fn examples(no_root: bool) -> Result<(), Failed> {
    let privileged = ["iptables_without_cilium", "kube_proxy_replacement", "session_affinity", "lb_ipam"];
    for name in ["embed", "tokio"].into_iter().chain(privileged.into_iter().filter(|_| !no_root)) {
        cargo(&["run", "--quiet", "--package", "lb-examples", "--example", name])?;
    }
    Ok(())
}

/// A datapath that lives outside of the workspace, in the agent and in the conformance suite. Its artifacts lie beside
/// those of the workspace, so that both share what they have in common.
fn own_datapath(args: &Args) -> Result<(), Failed> {
    let cargo = |arguments: &[&str]| {
        let manifest = ["test", "--quiet", "--locked", "--manifest-path", "examples/own-datapath/Cargo.toml"];
        run(Command::new("cargo").args(manifest).args(arguments).env("CARGO_TARGET_DIR", "target"))
    };
    cargo(&[])?;
    if args.no_root {
        return Ok(());
    }
    // Half of the cases, with checksums left to the device; the other half is the same datapath once more.
    let mut cases = Command::new("cargo");
    cases.args(["test", "--quiet", "--locked", "--manifest-path", "examples/own-datapath/Cargo.toml"]);
    cases.args(["--test", "conformance", "--", "--ignored", "--test-threads", "2", "offload_on"]);
    let said = output(cases.env("CARGO_TARGET_DIR", "target"))?;
    println!("{said}");
    match said.lines().map(passed_in).sum::<usize>() {
        0 => Err(Failed("no case of the conformance suite ran".into())),
        _ => Ok(()),
    }
}

pub(crate) fn output(command: &mut Command) -> Result<String, Failed> {
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| Failed(format!("{command:?}: {e}")))?;
    if !output.status.success() {
        return Err(Failed(format!("{command:?}: {}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_are_read_from_result_lines_only() {
        assert_eq!(passed_in("test result: ok. 13 passed; 0 failed; 2 ignored; finished in 0.1s"), 13);
        assert_eq!(passed_in("test result: FAILED. 2 passed; 1 failed;"), 2);
        assert_eq!(passed_in("test it_passed ... ok"), 0);
    }

    #[test]
    fn excluded_trials_are_read_from_the_tally_only() {
        assert_eq!(excluded_in("conformance: ebpf: run 70, failed 0, excluded 8"), 8);
        assert_eq!(excluded_in("conformance: ebpf: excluded: `node_port`: not in capabilities"), 0);
        assert_eq!(excluded_in("run 1, excluded 3"), 0);
    }
}
