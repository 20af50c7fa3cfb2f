//! `cargo xtask figures NAME`: measures every figure that the README claims, again.

mod compare;
mod core;
mod datapaths;
mod drift;
mod ebpf;
mod ipam;
mod netfilter;
mod restart;
mod scale;

use std::{
    fmt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use serde::{Serialize, de::DeserializeOwned};

/// Measures claimed figures again, each beside a baseline of the same run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which figures.
    name: Name,
    /// How to print them.
    #[arg(short, long, default_value = "table")]
    output: Output,
    /// Another eBPF object to measure beside the committed one, for `ebpf` alone.
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Name {
    /// Decisions, Maglev tables and plans of lb-core. No privilege needed; a minute.
    Core,
    /// One service more or less among 100,000, a restart with 50,000, memory, many pools and many that wait, of
    /// lb-ipam. No privilege needed; two minutes.
    Ipam,
    /// `lb lab compare` at 10 and 5,000 services on every datapath. Needs root; several minutes.
    Datapaths,
    /// `lb lab compare` at 10,000 services on eBPF and nftables. Needs root; several minutes.
    Scale,
    /// nftables at 10 and 10,000 services against a ruleset of one rule, and how iptables grows up to 5,000. Needs root;
    /// several minutes.
    Netfilter,
    /// `lb lab restart` with 20,000 connections, 100 SIGTERM and 100 SIGKILL on eBPF and nftables. Needs root; a
    /// quarter of an hour.
    Restart,
    /// Instructions that the verifier looks at, and the time of a packet and of `connect()`, in the committed eBPF object;
    /// `--baseline` measures another object in the same run. Needs root and cgroup2; three minutes.
    Ebpf,
    /// `lb lab drift` at 10 and 1,000 services on every datapath. Needs root; a quarter of an hour.
    Drift,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    /// What is claimed.
    pub(crate) figure: String,
    /// What it should be, `None` for a figure that is only reported.
    pub(crate) goal: Option<Goal>,
    /// What it is.
    pub(crate) measured: f64,
    /// Unit of measured and goal.
    pub(crate) unit: &'static str,
    /// What was measured beside it in the same run.
    pub(crate) baseline: String,
    /// Number of measurements behind it.
    pub(crate) n: u64,
    /// Whether the goal is met.
    pub(crate) met: Option<bool>,
}

/// A bound.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
        }
    }
}

impl Figure {
    pub(crate) fn new(
        figure: impl Into<String>,
        goal: Option<Goal>,
        measured: f64,
        unit: &'static str,
        baseline: impl Into<String>,
        n: u64,
    ) -> Self {
        let met = goal.map(|goal| match goal {
            Goal::AtMost(bound) => measured <= bound,
            Goal::AtLeast(bound) => measured >= bound,
        });
        Self { figure: figure.into(), goal, measured, unit, baseline: baseline.into(), n, met }
    }
}

/// Measures and prints; an error if a goal is missed.
pub(crate) fn figures(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    if args.baseline.is_some() && !matches!(args.name, Name::Ebpf) {
        return Err("--baseline is for the figures called ebpf alone".into());
    }
    if cfg!(debug_assertions) {
        return optimised();
    }
    let figures = match args.name {
        Name::Core => core::measure(),
        Name::Ipam => ipam::measure()?,
        Name::Datapaths => datapaths::measure()?,
        Name::Scale => scale::measure()?,
        Name::Netfilter => netfilter::measure()?,
        Name::Restart => restart::measure()?,
        Name::Ebpf => ebpf::measure(args.baseline.as_deref())?,
        Name::Drift => drift::measure()?,
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&figures)?),
        Output::Table => print(&figures),
    }
    let missed = figures.iter().filter(|figure| figure.met == Some(false)).count();
    if missed > 0 { Err(format!("{missed} of {} figures miss their goal", figures.len()).into()) } else { Ok(()) }
}

/// Runs the same command from an optimised build: figures of a debug build mean nothing.
fn optimised() -> Result<(), Box<dyn std::error::Error>> {
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--release", "--package", "xtask", "--"]).args(std::env::args_os().skip(1));
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1))
}

fn print(figures: &[Figure]) {
    println!("{}", crate::nightly::machine());
    let width = figures.iter().map(|figure| figure.figure.len()).max().unwrap_or(0);
    println!(
        "{:width$}  {:>10}  {:>10}  {:9}  {:>7}  {:4}  BASELINE OF THE SAME RUN",
        "FIGURE", "GOAL", "MEASURED", "UNIT", "N", "MET"
    );
    for f in figures {
        let goal = f.goal.map_or_else(|| "-".to_owned(), |goal| goal.to_string());
        let met = match f.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        println!(
            "{:width$}  {goal:>10}  {:>10.3}  {:9}  {:>7}  {met:4}  {}",
            f.figure, f.measured, f.unit, f.n, f.baseline
        );
    }
}

/// What `lb lab ARGS -o json` says; that an expectation is not met is for the figures to tell.
pub(crate) fn lab<T: DeserializeOwned>(args: &[&str]) -> Result<T, Box<dyn std::error::Error>> {
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--release", "--package", "lb-cli", "--bin", "lb", "--", "lab"]);
    let output = command.args(args).args(["-o", "json"]).stdout(Stdio::piped()).spawn()?.wait_with_output()?;
    if output.stdout.is_empty() {
        return Err(format!("lb lab {}: {}", args.join(" "), output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Median seconds of `rounds` runs.
pub(crate) fn median(rounds: usize, mut run: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
