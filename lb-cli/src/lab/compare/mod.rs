//! `lb lab compare`: the same services on every datapath, side by side.

mod bed;
mod chart;
mod charts;
mod drawing;
mod error;
mod figure;
mod floor;
mod footprint;
mod html;
mod iptables;
mod memory;
mod palette;
mod paths;
mod probe;
mod progress;
mod result;
mod size;
mod stats;
mod subject;
mod table;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use lb_agent::driver::{self, DatapathKind};

pub(crate) use self::probe::run_if_probe;
use self::{
    error::{Result, system},
    progress::Progress,
    result::{Comparison, Counts},
    size::Size,
};
use crate::{
    exit::{Failure, Outcome, Verdict},
    output::{self, Format},
};

/// Measure the same services on every datapath, side by side.
///
/// Every number of services gets a cluster of its own, made of network namespaces: a node per datapath, one without any
/// load balancing (direct), one with a single nftables rule (floor), and one with the servers. All are measured in
/// turns within one run. The command needs Linux, touches nothing outside of its own namespaces and leaves nothing
/// behind. Without root it leaves out eBPF and every number of services that does not fit, and reports both.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb lab compare\n  \
    lb lab compare --services 10,100 --datapaths ebpf,nftables --rounds 5\n  \
    lb lab compare --report /tmp/report\n\n\
    The default run takes a few minutes, most of them with 5,000 services. Ratios are taken within a round; absolute \
    times depend on the machine and its load.")]
pub(crate) struct CompareArgs {
    /// Numbers of services to measure at; each service has four backends.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "10,100,1000,5000",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) services: Vec<u32>,
    /// Datapaths to compare.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = driver::parser(),
        default_values = driver::carrying().iter().map(|kind| kind.name()).collect::<Vec<_>>())]
    pub(super) datapaths: Vec<DatapathKind>,
    /// Number of rounds; each measures connections over every path once.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Number of times that the endpoints of the last service change, per datapath and number of services.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Number of services that ask for Maglev with 251 slots. The others pick at random, and so do all on a datapath
    /// without Maglev.
    #[arg(long, value_name = "N", default_value_t = 0)]
    maglev: u32,
    /// Seed of the order in which a round measures the paths.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Directory for compare.json, compare.html (a page with charts) and comparison.svg (the main charts as one
    /// picture).
    #[arg(long, value_name = "DIR")]
    pub(super) report: Option<PathBuf>,
    /// Datapaths and numbers of services that were asked for and cannot run here, with the reason.
    #[arg(skip)]
    pub(super) left_out: Vec<String>,
    /// Format of the result.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
}

/// Connections, one after the other, per path and round.
const CONNECTS: u32 = 200;
/// Connections of each lane per path and round. Few, so that a round is short: what disturbs the machine for longer
/// disturbs every path of it.
const LANE_CONNECTS: u32 = 500;
/// Parallel clients, one per server: as many as two processors are busy with. With more of them, a machine with other
/// work to do hands packets to a kernel thread that has to wait for its turn, and then that is what is measured.
const LANES: usize = 4;
const SYNCS: u32 = 3;

/// Clients, servers and agents run before everything else on the machine; they inherit it from this thread.
const HIGHEST_PRIORITY: i32 = -20;

impl CompareArgs {
    /// Refuses arguments that make no sense together.
    pub(super) fn check(&self) -> std::result::Result<(), Failure> {
        if self.datapaths.contains(&driver::MEMORY) {
            return Err(Failure::Usage("datapath memory carries no packets: there is nothing to compare".into()));
        }
        Ok(())
    }
}

/// Measures, prints, and writes the report.
pub(crate) fn run(args: &CompareArgs) -> Outcome {
    let (services, datapaths) = (unique(&args.services), unique(&args.datapaths));
    if let Some(directory) = &args.report {
        fs::create_dir_all(directory).map_err(|error| Failure::error(format!("{}: {error}", directory.display())))?;
    }
    let n = Counts {
        rounds: args.rounds,
        connects: CONNECTS,
        lane_connects: LANE_CONNECTS,
        lanes: LANES,
        changes: args.changes,
        syncs: SYNCS,
        maglev: args.maglev,
    };
    let mut comparison = compare(&services, &datapaths, n, args.seed).map_err(|error| Failure::chain(&error))?;
    comparison.notes.extend(args.left_out.iter().cloned());
    output::write(args.output, &comparison, || table::table(&comparison))?;
    if let Some(directory) = &args.report {
        write_report(directory, &comparison).map_err(|error| Failure::chain(&error))?;
    }
    Ok(Verdict::Fine)
}

fn compare(services: &[u32], datapaths: &[DatapathKind], n: Counts, seed: u64) -> Result<Comparison> {
    let start = Instant::now();
    let mut comparison = Comparison {
        kernel: read_line("/proc/sys/kernel/osrelease")?,
        cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n,
        seed,
        seconds: 0.0,
        rows: Vec::new(),
        baselines: Vec::new(),
        extras: Vec::new(),
        notes: Vec::new(),
    };
    if let Err(error) = rustix::process::setpriority_process(None, HIGHEST_PRIORITY) {
        comparison
            .notes
            .push(format!("raising the priority failed, so other processes disturb the measurement more: {error}"));
    }
    let before = load_average()?;
    let progress = Progress::new(services.len() as u64 * Size::steps(datapaths.len(), &n));
    for &services in services {
        Size { services, datapaths, n, seed, progress: &progress }.measure(&mut comparison)?;
    }
    progress.finish();
    comparison.notes.push(format!("load average {before} at the start, {} at the end", load_average()?));
    comparison.seconds = stats::round(start.elapsed().as_secs_f64(), 1);
    Ok(comparison)
}

fn write_report(directory: &Path, comparison: &Comparison) -> Result<()> {
    let json = serde_json::to_string_pretty(comparison).map_err(|error| system("writing JSON")(error.into()))?;
    let files = [
        ("compare.json", json + "\n"),
        ("compare.html", html::page(comparison)),
        ("comparison.svg", figure::figure(comparison).standalone()),
    ];
    for (name, text) in files {
        let path = directory.join(name);
        fs::write(&path, text).map_err(system(format!("writing {}", path.display())))?;
        output::say(format_args!("lb: wrote {}", path.display()));
    }
    Ok(())
}

fn read_line(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).map_err(system(format!("reading {path}")))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Processes that ran or wanted to, over the last minute.
fn load_average() -> Result<String> {
    Ok(read_line("/proc/loadavg")?.split(' ').next().unwrap_or_default().to_owned())
}

/// Each once, in the order of their first appearance.
fn unique<T: Copy + PartialEq>(values: &[T]) -> Vec<T> {
    let mut unique = Vec::new();
    for &value in values {
        if !unique.contains(&value) {
            unique.push(value);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_a_page_and_its_numbers() {
        let directory = tempfile::tempdir().unwrap();
        write_report(directory.path(), &result::tests::example()).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(directory.path().join("compare.json")).unwrap()).unwrap();
        assert_eq!(json["rows"].as_array().map(Vec::len), Some(6));
        let page = fs::read_to_string(directory.path().join("compare.html")).unwrap();
        assert!(page.starts_with("<!doctype html>"));
        let figure = fs::read_to_string(directory.path().join("comparison.svg")).unwrap();
        assert!(figure.starts_with("<svg xmlns=") && figure.ends_with("</svg>\n"), "{figure}");
    }

    #[test]
    fn what_is_asked_for_twice_is_measured_once() {
        assert_eq!(unique(&[10, 100, 10]), [10, 100]);
    }
}
