//! The suite that every [`Datapath`] has to pass.
//!
//! Each case drives a datapath through [`lb_core::reconciler::Reconciler`], sends real traffic from every vantage point
//! of a lab, and compares the fate of each flow with [`lb_core::decision::decide`]. A datapath that carries no packets
//! is asked what its state answers instead.
//!
//! # How to run it
//!
//! The suite is a test binary of your own crate, without the usual harness:
//!
//! ```toml
//! [dev-dependencies]
//! lb-core = "0.1"
//! lb-testkit = "0.1"
//! libtest-mimic = "0.8"
//!
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! Its `main` names the datapaths. [`run_if_worker`](crate::run_if_worker) comes first: the lab starts this binary
//! again for its servers and clients.
//!
//! ```no_run
//! // tests/conformance.rs
//! use std::process::ExitCode;
//!
//! use lb_testkit::conformance::{Subject, Tally, trials};
//! # use lb_core::{datapath::DatapathError, memory::MemoryDatapath};
//! # struct Mine;
//! # impl Mine {
//! #     fn open(_: &std::path::Path, _: &[String]) -> Result<MemoryDatapath, DatapathError> {
//! #         Ok(MemoryDatapath::default())
//! #     }
//! # }
//!
//! fn main() -> ExitCode {
//!     lb_testkit::run_if_worker();
//!     let tally = Tally::default();
//!     // Called on a node of a fresh lab, in its network namespace.
//!     let mine = Subject::packets("mine", |node| Ok(Box::new(Mine::open(&node.pin_dir, &node.pod_devices)?)));
//!     let arguments = libtest_mimic::Arguments::from_args();
//!     let conclusion = libtest_mimic::run(&arguments, trials([mine], &tally));
//!     print!("{tally}");
//!     conclusion.exit_code()
//! }
//! ```
//!
//! ```console
//! # cargo test --test conformance -- --include-ignored
//! # cargo test --test conformance -- --include-ignored mine::offload_on::maglev
//! ```
//!
//! A datapath that carries packets needs root, Linux 5.14 or later and a cgroup2 mount. Root of a user namespace is
//! enough if [`enter_user_namespace`](crate::lab::enter_user_namespace) is called after `run_if_worker`, except for a
//! subject that is [`root_only`](Subject::root_only). Without the privileges, the trials are marked as ignored. A
//! [`state_only`](Subject::state_only) subject needs nothing.
//!
//! Most cases have the datapath on one node of two. Some have it on each of three nodes of one lab, where what a node does
//! depends on the others.
//!
//! Each trial has a lab of its own, so `--test-threads` may be as high as there are processors. A case takes about a
//! second. One whose first flow is lost has failed, and waits for its further flows no longer than 20 ms each. Silence is
//! listened to for a second in all, so a datapath that carries nothing takes no longer than a few seconds for any case.
//!
//! # How excluded cases are counted
//!
//! A case that a datapath's [`Capabilities`](lb_core::datapath::Capabilities) leave out is neither passed nor failed:
//! its trial is reported as ignored, with the reason. Since an ignored trial looks like success, the [`Tally`] counts
//! those cases on their own, and names each of them:
//!
//! ```text
//! conformance: mine: run 35, failed 0, excluded 1
//!   excluded: mine::offload_on::roles_take_the_traffic_that_they_say: not in capabilities: roles other than active
//! ```
//!
//! CI should compare that line with the expected numbers, so that a capability that disappears does not pass unnoticed.

mod cases;
mod chi_square;
mod cluster;
mod fate;
mod probe;
mod service;
mod stage;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use lb_core::{
    datapath::{Datapath, DatapathError},
    model::ModelError,
    node::NodeFacts,
};
use libtest_mimic::{Completion, Failed, Trial};

use crate::{
    error::{LabError, report},
    lab::{Offload, Privilege},
};

pub use self::stage::Stage;

/// Opens a datapath on a node.
type Opener = dyn Fn(&NodeContext) -> Result<Box<dyn Datapath>, DatapathError> + Send + Sync;

/// A datapath under test.
#[derive(Clone)]
pub struct Subject {
    name: String,
    kind: Kind,
    root_only: bool,
}

#[derive(Clone)]
enum Kind {
    /// Carries packets, on a node of a lab.
    Packets(Arc<Opener>),
    /// Holds state only.
    State(Arc<dyn Fn() -> Box<dyn Datapath> + Send + Sync>),
}

impl Subject {
    /// A datapath that carries packets.
    ///
    /// `open` is called in the network namespace of a fresh node, in some cases on several nodes of one lab, and all of
    /// them are open at once. It is called again on the same node, after the datapath was dropped, to see what a new
    /// process would find. All methods of the datapath are called in that namespace too. `name` begins the names of its
    /// trials.
    pub fn packets(
        name: impl Into<String>,
        open: impl Fn(&NodeContext) -> Result<Box<dyn Datapath>, DatapathError> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), kind: Kind::Packets(Arc::new(open)), root_only: false }
    }

    /// A datapath that holds state only and carries no packets. It needs no root. It may fail now and then, as one does
    /// that is wrapped in [`lb_core::faulty::Faulty`]: what fails is tried again.
    pub fn state_only(name: impl Into<String>, open: impl Fn() -> Box<dyn Datapath> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), kind: Kind::State(Arc::new(open)), root_only: false }
    }

    /// Marks a datapath for which root of a user namespace is not enough. Default: it is enough.
    #[must_use]
    pub fn root_only(mut self) -> Self {
        self.root_only = true;
        self
    }

    fn needs_root(&self) -> bool {
        let enough = Privilege::current() == Privilege::UserNamespace && !self.root_only;
        matches!(self.kind, Kind::Packets(_)) && !enough
    }

    /// Its name, as trials show it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What a datapath may need to know when it is opened on a node of a lab.
#[derive(Clone, Debug)]
pub struct NodeContext {
    /// Directory of the node's own in the BPF file system, for pins. It does not exist yet; its parent does.
    pub pin_dir: PathBuf,
    /// The node's cgroup (version 2), in which the processes of its pods are.
    pub cgroup: PathBuf,
    /// Devices of the node's pods.
    pub pod_devices: Vec<String>,
    /// Devices that lead out of the node.
    pub uplink_devices: Vec<String>,
    /// A directory of the node's own, for lock files and the like.
    pub run_dir: PathBuf,
    /// Its name and addresses.
    pub facts: NodeFacts,
}

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The capabilities leave it out, or the datapath has nothing that the case could test.
    Excluded(String),
    /// The capabilities promise it, and it did not work.
    Failed(String),
}

impl Fault {
    /// Excluded by the capabilities.
    fn lacks(what: impl fmt::Display) -> Self {
        Self::Excluded(format!("not in capabilities: {what}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Excluded(reason) | Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl From<LabError> for Fault {
    fn from(error: LabError) -> Self {
        Self::Failed(report(&error))
    }
}

impl From<DatapathError> for Fault {
    fn from(error: DatapathError) -> Self {
        Self::Failed(error.report())
    }
}

impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What a case comes to.
pub type Verdict = Result<(), Fault>;

/// One case: a name and a story played on a stage.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, a statement that is true of a datapath that passes.
    pub name: &'static str,
    /// Nodes of its lab.
    pub nodes: usize,
    /// Plays it.
    pub play: fn(&mut Stage) -> Verdict,
}

/// Every case of the suite.
#[must_use]
pub fn cases() -> Vec<Case> {
    cases::all()
}

/// How many cases ran, failed and were excluded, by subject.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<BTreeMap<String, Counts>>>);

/// Numbers of a [`Tally`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Cases that were excluded, with the reason.
    pub excluded: BTreeMap<String, String>,
}

impl Tally {
    fn note(&self, subject: &str, trial: &str, verdict: &Verdict) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.entry(subject.into()).or_default();
        match verdict {
            Ok(()) => counts.passed += 1,
            Err(Fault::Failed(_)) => counts.failed += 1,
            Err(Fault::Excluded(reason)) => drop(counts.excluded.insert(trial.into(), reason.clone())),
        }
    }

    /// The numbers so far, by name of the subject.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One line per subject, such as `conformance: memory: run 22, failed 0, excluded 16`, and below it each excluded case
/// with its reason.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (subject, Counts { passed, failed, excluded }) in self.counts() {
            let run = passed + failed;
            writeln!(f, "conformance: {subject}: run {run}, failed {failed}, excluded {}", excluded.len())?;
            for (trial, reason) in excluded {
                writeln!(f, "  excluded: {trial}: {reason}")?;
            }
        }
        Ok(())
    }
}

/// A trial for every case with every subject, and with offloads on and off for subjects that carry packets; those are
/// marked as ignored because they need root, unless this is a user namespace and that is enough for them. Names are
/// `subject::offload::case`.
pub fn trials(subjects: impl IntoIterator<Item = Subject>, tally: &Tally) -> Vec<Trial> {
    let mut trials = Vec::new();
    for subject in subjects {
        let offloads: &[_] = match subject.kind {
            Kind::Packets(_) => &[Offload::On, Offload::Off],
            Kind::State(_) => &[Offload::On],
        };
        let needs_root = subject.needs_root();
        for &offload in offloads {
            trials.extend(cases().into_iter().map(|case| {
                let (subject, tally) = (subject.clone(), tally.clone());
                let name = trial_name(&subject, offload, case);
                let trial = name.clone();
                let play = move || play(&subject, offload, case, &trial, &tally);
                Trial::ignorable_test(name, play).with_ignored_flag(needs_root)
            }));
        }
    }
    trials
}

fn trial_name(subject: &Subject, offload: Offload, case: Case) -> String {
    let offload = match (&subject.kind, offload) {
        (Kind::State(_), _) => "",
        (Kind::Packets(_), Offload::On) => "offload_on::",
        (Kind::Packets(_), Offload::Off) => "offload_off::",
    };
    format!("{}::{offload}{}", subject.name, case.name)
}

fn play(subject: &Subject, offload: Offload, case: Case, trial: &str, tally: &Tally) -> Result<Completion, Failed> {
    let verdict = Stage::new(subject, offload, case.nodes).and_then(|mut stage| {
        let verdict = (case.play)(&mut stage);
        verdict.and(stage.close())
    });
    tally.note(&subject.name, trial, &verdict);
    match verdict {
        Ok(()) => Ok(Completion::Completed),
        Err(Fault::Excluded(reason)) => Ok(Completion::ignored_with(reason)),
        Err(Fault::Failed(reason)) => Err(reason.into()),
    }
}

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err($crate::conformance::Fault::Failed(format!($($message)+)));
        }
    };
}
use ensure;
