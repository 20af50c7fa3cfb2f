//! `lb lab drift`: other tools change a datapath, and its agent puts it right.

mod bed;
mod edits;
mod result;

use std::fs;

use clap::Args;
use lb_agent::driver::{self, DatapathKind};

use self::{
    bed::Bed,
    edits::edits,
    result::{DriftLabReport, Row},
};
use super::{
    Progress, cluster::Cluster, error::RunError, interrupt, kernel, report, rights::Rights, use_case::UseCase,
};
use crate::{
    exit::{Failure, Outcome, Verdict},
    output::{self, Format},
};

/// Measure how long the agent takes to repair what other tools change.
///
/// The lab builds a cluster of three nodes with real servers and agents. On one node, `nft`, `iptables`, `rm` and
/// `bpftool` flush, delete and add objects repeatedly. Each time runs from the start of the tool until the agent has
/// repaired the change. Afterwards a listing must be the same as before, and established connections must still work.
/// Exit code 1 if one does not, or if a change is not repaired within a minute; that edit is then not made again.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb lab drift\n  \
    lb lab drift --datapaths nftables --edits 100\n  \
    lb lab drift --datapaths nftables --services 1000\n\n\
    At most two edits are made in a second. The agent takes more for a quarrel with another tool, and repairs ever \
    more slowly.")]
pub(crate) struct DriftLabArgs {
    /// Datapaths to run on, one after the other [default: all that this machine can run].
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = driver::parser())]
    pub(super) datapaths: Vec<DatapathKind>,
    /// Number of times that each edit is made.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    edits: u32,
    /// Number of further services, with four backends each, beside the one that carries traffic.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    services: u32,
    /// Directory for report.json.
    #[arg(long, value_name = "DIR")]
    pub(super) report: Option<std::path::PathBuf>,
    /// Format of the result.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
}

impl DriftLabArgs {
    /// Refuses arguments that make no sense together.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.datapaths.contains(&driver::MEMORY) {
            return Err(Failure::Usage(
                "datapath memory is nobody else's to change: there is nothing to repair".into(),
            ));
        }
        Ok(())
    }
}

/// Agents and tools run before everything else on the machine; they inherit it from this thread.
const HIGHEST_PRIORITY: i32 = -20;
pub(super) fn run(args: &DriftLabArgs, rights: Rights) -> Outcome {
    let datapaths = rights.choose(&args.datapaths, &driver::carrying())?;
    args.report.as_deref().map(report::prepare).transpose()?;
    interrupt::arm()?;
    let mut notes = Vec::new();
    if let Err(error) = rustix::process::setpriority_process(None, HIGHEST_PRIORITY) {
        notes.push(format!("raising the priority failed, so other processes disturb the measurement more: {error}"));
    }
    let load = load_average();
    let progress = Progress::new();
    let (mut rows, mut left_out, mut late) = (Vec::new(), Vec::new(), false);
    for kind in datapaths {
        match disturbed(args, kind, &progress) {
            Ok((more, without)) => {
                rows.extend(more);
                left_out.extend(without);
            }
            // The results of the other datapaths still stand.
            Err(error @ RunError::TooMany { .. }) => {
                late = true;
                left_out.push(format!("{kind}: left out, {}", lb_core::error::report(&error)));
            }
            Err(error) => return Err(Failure::Error(format!("{kind}: {}", kernel::because(kind, &error)))),
        }
    }
    progress.finish();
    let passed = !late && rows.iter().all(|row| row.passed);
    notes.push(format!("load average {load} at the start, {} at the end", load_average()));
    let report = DriftLabReport { passed, services: args.services as usize + 1, rows, left_out, notes };
    output::write(args.output, &report, || report.table())?;
    if let Some(directory) = &args.report {
        report::save(directory, &report)?;
    }
    Ok(if passed { Verdict::Fine } else { Verdict::Failed })
}

/// Of the last minute, as the kernel writes it.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().into()
}

/// Every edit on one datapath.
fn disturbed(
    args: &DriftLabArgs,
    kind: DatapathKind,
    progress: &Progress,
) -> Result<(Vec<Row>, Vec<String>), RunError> {
    progress.show(&format!("{kind}: building a cluster"));
    let cluster = Cluster::start(UseCase::KubeProxyReplacement, kind)?;
    let bed = Bed::new(&cluster, kind)?;
    bed.add_services(args.services)?;
    let (edits, left_out) = edits(kind);
    let rows = edits.iter().map(|edit| {
        progress.show(&format!("{kind}: {}, {} times", edit.name, args.edits));
        let held = bed.hold()?;
        let times = bed.repeat(edit, args.edits)?;
        let fate = bed.fate(&held)?;
        Ok(Row::new(kind, edit.name, &times, fate))
    });
    Ok((rows.collect::<Result<_, RunError>>()?, left_out))
}
