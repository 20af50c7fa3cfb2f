//! `lb lab`: the main job on real input, in network namespaces of its own.
//!
//! The manifests of a use case become a cluster of three nodes with real servers and clients; every node runs this very
//! program as its agent; then every promise of the use case is checked.

mod checks;
mod cluster;
mod compare;
mod drift;
mod error;
mod expectation;
mod fleet;
mod flow;
mod interrupt;
mod kernel;
mod lb_ipam;
mod node_port;
mod reach;
mod report;
mod restart;
mod rights;
mod rules;
mod side_by_side;
mod stage;
mod traffic_policy;
mod use_case;
mod wait;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lb_agent::driver::{self, DatapathKind};

use self::{
    cluster::Cluster,
    error::RunError,
    expectation::Checks,
    report::{CaseReport, FullReport},
    rights::Rights,
};
pub(crate) use self::{
    compare::{CompareArgs, run_if_probe},
    drift::DriftLabArgs,
    restart::RestartArgs,
    use_case::UseCase,
};
use crate::{
    cli::{LabArgs, LabCommand},
    exit::{Failure, Outcome, Verdict},
    output,
};

pub(crate) fn run(args: &LabArgs) -> Outcome {
    match &args.command {
        Some(LabCommand::Compare(args)) => return compare_what_fits(args),
        Some(LabCommand::Restart(args)) => return restart(args),
        Some(LabCommand::Drift(args)) => return disturb(args),
        None => {}
    }
    if args.datapath == Some(driver::MEMORY) {
        return Err(Failure::Usage("datapath memory carries no packets: choose one that does".into()));
    }
    let rights = rights::obtain()?;
    rights.check(args.datapath)?;
    rights.say();
    rights.check_report(args.report.as_deref())?;
    args.report.as_deref().map(report::prepare).transpose()?;
    interrupt::arm()?;
    let progress = Progress::new();
    match args.use_case {
        Some(use_case) => {
            let report = run_case(use_case, rights.datapath(args.datapath, use_case), &progress)?;
            progress.finish();
            publish(args, &report, report.passed, || report.table())
        }
        None => {
            let report = run_all(args.datapath, rights, &progress)?;
            progress.finish();
            publish(args, &report, report.passed, || report.table())
        }
    }
}

fn restart(args: &RestartArgs) -> Outcome {
    args.check()?;
    let rights = rights::obtain()?;
    rights.say();
    rights.check_report(args.report.as_deref())?;
    restart::run(args, rights)
}

fn disturb(args: &DriftLabArgs) -> Outcome {
    args.check()?;
    let rights = rights::obtain()?;
    rights.say();
    rights.check_report(args.report.as_deref())?;
    drift::run(args, rights)
}

/// Refuses arguments that make no sense before it asks for rights.
fn compare_what_fits(args: &CompareArgs) -> Outcome {
    args.check()?;
    let rights = rights::obtain()?;
    rights.say();
    rights.check_report(args.report.as_deref())?;
    let mut args = args.clone();
    let left_out = rights.fit(&mut args.datapaths, &mut args.services);
    left_out.iter().for_each(|line| output::say(format_args!("lb: {line}")));
    if args.datapaths.is_empty() || args.services.is_empty() {
        return Err(Failure::Error(
            "nothing is left to compare: run the command with sudo, or name other datapaths or fewer services".into(),
        ));
    }
    args.left_out = left_out;
    compare::run(&args)
}

fn run_all(datapath: Option<DatapathKind>, rights: Rights, progress: &Progress) -> Result<FullReport, Failure> {
    // A use case that cannot run fails without the others.
    let case = |use_case: UseCase| {
        let kind = rights.datapath(datapath, use_case);
        match try_case(use_case, kind, progress) {
            Err(error) if !matches!(error, RunError::Interrupted) => Ok(CaseReport::cannot_run(use_case, kind, &error)),
            done => done.map_err(|error| failure(&format!("{} on {kind}", use_case.name()), &error)),
        }
    };
    let use_cases: Vec<CaseReport> = UseCase::ALL.into_iter().map(case).collect::<Result<_, _>>()?;
    let side = |kind: DatapathKind| match side_by_side::run(kind, &|doing| {
        progress.show(&format!("side by side on {kind}: {doing}"))
    }) {
        Err(error) if !matches!(error, RunError::Interrupted) => Ok(side_by_side::Row::cannot_run(kind, &error)),
        done => done.map_err(|error| failure(&format!("side by side on {kind}"), &error)),
    };
    let kinds = datapath.map_or_else(|| rights.datapaths(), |kind| vec![kind]);
    let datapaths: Vec<_> = kinds.into_iter().map(side).collect::<Result<_, _>>()?;
    // What a datapath lacks is no promise of its own; whoever asks for it by name gets exit code 1.
    let kept = |case: &CaseReport| case.passed || case.left_out.is_some();
    let passed = use_cases.iter().all(kept) && datapaths.iter().all(|row| row.passed);
    Ok(FullReport { passed, use_cases, datapaths })
}

fn run_case(use_case: UseCase, datapath: DatapathKind, progress: &Progress) -> Result<CaseReport, Failure> {
    let name = format!("{} on {datapath}", use_case.name());
    try_case(use_case, datapath, progress)
        .map_err(|error| Failure::Error(format!("{name}: {}", kernel::because(datapath, &error))))
}

fn try_case(use_case: UseCase, datapath: DatapathKind, progress: &Progress) -> Result<CaseReport, RunError> {
    let name = format!("{} on {datapath}", use_case.name());
    progress.show(&format!("{name}: building a cluster"));
    let tell = |doing: &str| progress.show(&format!("{name}: {doing}"));
    let mut checks = Checks::new(&tell);
    look_into(use_case, datapath, &mut checks)?;
    let Checks { all: expectations, left_out, .. } = checks;
    let passed = left_out.is_none() && expectations.iter().all(|expectation| expectation.passed);
    Ok(CaseReport { use_case, datapath, passed, left_out, expectations })
}

fn look_into(use_case: UseCase, datapath: DatapathKind, checks: &mut Checks<'_>) -> Result<(), RunError> {
    let cluster = || Cluster::start(use_case, datapath);
    match use_case {
        UseCase::IptablesWithoutCilium => checks::iptables_without_cilium(&cluster()?, datapath, checks),
        UseCase::KubeProxyReplacement => checks::kube_proxy_replacement(&cluster()?, datapath, checks),
        UseCase::SessionAffinity => checks::session_affinity(&cluster()?, checks),
        UseCase::NodePort => node_port::run(use_case, datapath, checks),
        UseCase::TrafficPolicy => traffic_policy::run(use_case, datapath, checks),
        UseCase::IpamBasic => lb_ipam::basic(use_case, datapath, checks),
        UseCase::IpamImportantPool => lb_ipam::important_pool(use_case, datapath, checks),
        UseCase::IpamStartStopRange => lb_ipam::start_stop_range(use_case, datapath, checks),
        UseCase::IpamNoFirstLast => lb_ipam::no_first_last(use_case, datapath, checks),
        UseCase::IpamBluePool => lb_ipam::blue_pool(use_case, datapath, checks),
    }
}

fn failure(what: &str, error: &RunError) -> Failure {
    Failure::Error(format!("{what}: {}", lb_core::error::report(error)))
}

fn publish(args: &LabArgs, report: &impl serde::Serialize, passed: bool, table: impl FnOnce() -> String) -> Outcome {
    output::write(args.output, report, table)?;
    if let Some(directory) = &args.report {
        report::save(directory, report)?;
    }
    Ok(if passed { Verdict::Fine } else { Verdict::Failed })
}

/// The current step, as one line on standard error if that is a terminal.
struct Progress(ProgressBar);

impl Progress {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::default_spinner());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    fn show(&self, doing: &str) {
        self.0.set_message(doing.to_owned());
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
