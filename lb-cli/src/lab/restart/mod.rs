//! `lb lab restart`: the agent is restarted and killed again and again, and traffic does not notice.

mod bed;
mod result;
mod traffic;

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use lb_agent::driver::{self, DatapathKind};

use self::{
    bed::Bed,
    result::{RestartReport, Row},
    traffic::Traffic,
};
use super::{Progress, error::RunError, interrupt, kernel, report, rights::Rights};
use crate::{
    exit::{Failure, Outcome, Verdict},
    output::{self, Format},
};

/// Restart and kill the agent under load and count what is lost.
///
/// The lab has a node with the agent, two nodes with servers, and clients in pods and outside. Long-lived connections
/// exchange numbered messages, datagrams go back and forth, and new connections are opened all the time. Meanwhile the
/// agent receives SIGTERM and SIGKILL in turns, SIGKILL at a random moment. Exit code 1 if a connection, a datagram, a
/// segment or a new connection is lost.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb lab restart\n  \
    lb lab restart --datapaths nftables --restarts 50\n  \
    lb lab restart --connections 20000 --packets 1000000 --restarts 100 --report /tmp/report")]
pub(crate) struct RestartArgs {
    /// Number of long-lived connections.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(3..=50_000))]
    connections: u32,
    /// Least number of packets with data, in both directions together, before the run ends.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    packets: u64,
    /// Number of times that the agent gets SIGTERM, and again that it gets SIGKILL.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    restarts: u32,
    /// Datapaths to run on, one after the other [default: ebpf and nftables, as far as this machine can run them].
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = driver::parser())]
    pub(super) datapaths: Vec<DatapathKind>,
    /// Seed of the random moments.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Directory for report.json.
    #[arg(long, value_name = "DIR")]
    pub(super) report: Option<std::path::PathBuf>,
    /// Format of the result.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
}

impl RestartArgs {
    /// Refuses arguments that make no sense together.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.datapaths.contains(&driver::MEMORY) {
            return Err(Failure::Usage("datapath memory carries no packets: there is nothing to lose".into()));
        }
        Ok(())
    }
}

/// How long an agent may take to end.
const END: Duration = Duration::from_secs(10);
/// Longest rest between the end of one interruption and the next.
const REST: Duration = Duration::from_millis(50);

pub(super) fn run(args: &RestartArgs, rights: Rights) -> Outcome {
    let datapaths = rights.choose(&args.datapaths, &[driver::EBPF, driver::NFTABLES])?;
    args.report.as_deref().map(report::prepare).transpose()?;
    interrupt::arm()?;
    let progress = Progress::new();
    let start = Instant::now();
    let mut rows = Vec::new();
    for kind in datapaths {
        let row = interrupted(args, kind, &progress);
        rows.push(row.map_err(|error| Failure::Error(format!("{kind}: {}", kernel::because(kind, &error))))?);
    }
    progress.finish();
    let report = RestartReport::new(args.seed, start.elapsed(), rows);
    output::write(args.output, &report, || report.table())?;
    if let Some(directory) = &args.report {
        report::save(directory, &report)?;
    }
    Ok(if report.passed { Verdict::Fine } else { Verdict::Failed })
}

/// Everything on one datapath.
fn interrupted(args: &RestartArgs, kind: DatapathKind, progress: &Progress) -> Result<Row, RunError> {
    progress.show(&format!("{kind}: building a cluster"));
    let bed = Bed::build(kind)?;
    let mut agent = bed.start()?;
    let mut slowest = bed.await_ready(&agent)?;
    progress.show(&format!("{kind}: opening {} connections", args.connections));
    let traffic = Traffic::start(bed.lab(), args.connections)?;
    let mut moments = Moments(args.seed);
    for round in 1..=args.restarts {
        progress.show(&format!("{kind}: interruption {round} of {}, twice", args.restarts));
        interrupt::check()?;
        thread::sleep(moments.up_to(REST));
        if agent.terminate(END)?.is_none() {
            return Err(RunError::NotEnded { waited: END, said: agent.output() });
        }
        agent = bed.start()?;
        // At any moment of its start, or a little after.
        thread::sleep(moments.up_to(slowest + REST));
        agent.signal(nix::sys::signal::Signal::SIGKILL)?;
        agent.wait(END)?;
        agent = bed.start()?;
        slowest = slowest.max(bed.await_ready(&agent)?);
    }
    while traffic.packets()? < args.packets {
        progress.show(&format!("{kind}: {} of {} packets", traffic.packets()?, args.packets));
        interrupt::check()?;
        // The pace of looking, not a wait for something to happen.
        thread::sleep(Duration::from_millis(100));
    }
    let counted = traffic.stop()?;
    Ok(Row::new(kind, args.connections, args.restarts, slowest, counted))
}

/// Random moments that a seed decides (Steele, Lea and Flood's generator).
struct Moments(u64);

impl Moments {
    fn up_to(&mut self, longest: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        longest.mul_f64((z ^ (z >> 31)) as f64 / u64::MAX as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_within_their_bounds_and_repeat() {
        let draw = |seed| {
            let mut moments = Moments(seed);
            (0..100).map(|_| moments.up_to(REST)).collect::<Vec<_>>()
        };
        assert!(draw(1).iter().all(|moment| *moment <= REST));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
