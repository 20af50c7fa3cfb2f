//! What the threads of the agent share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_core::{Change, Counters, Instant, PlanId, Reconciler, SliceName, decide};
use lb_k8s::{Batch, Report};

use super::view;
use crate::{
    api::{Backend, Condition, Datapath, Explanation, Manifests, Node, Service, Status, Usage},
    config::Config,
    flow::{self, FlowError},
    kind::DatapathKind,
};

/// The reconciler, and what else there is to say about the agent.
pub(super) struct Shared {
    origin: std::time::Instant,
    kind: DatapathKind,
    directory: String,
    counters: Option<Arc<dyn Counters>>,
    reconciler: Mutex<Reconciler>,
    notes: Mutex<Notes>,
}

/// What the reconciler does not know.
#[derive(Default)]
struct Notes {
    ready: bool,
    reads: u64,
    report: Arc<Report>,
    /// Slices that the model refused, and why.
    refused_slices: BTreeMap<SliceName, String>,
    /// By type of condition.
    problems: BTreeMap<&'static str, String>,
    devices: Vec<String>,
    plan: PlanId,
    took: Duration,
}

impl Shared {
    pub(super) fn new(reconciler: Reconciler, config: &Config, counters: Option<Arc<dyn Counters>>) -> Self {
        Self {
            origin: std::time::Instant::now(),
            kind: config.datapath,
            directory: config.manifests.display().to_string(),
            counters,
            reconciler: Mutex::new(reconciler),
            notes: Mutex::default(),
        }
    }

    /// The time, since the start.
    pub(super) fn now(&self) -> Instant {
        Instant::new(self.origin.elapsed())
    }

    /// The reconciler. Not to be held while the datapath works.
    pub(super) fn reconciler(&self) -> MutexGuard<'_, Reconciler> {
        self.reconciler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_manifests(&self, batch: Batch) {
        log_report(&batch.report);
        let mut reconciler = self.reconciler();
        let mut notes = self.notes();
        notes.reads += 1;
        notes.report = batch.report;
        for change in batch.changes {
            let slice = match &change {
                Change::ReplaceEndpoints(slice) => Some(slice.name.clone()),
                Change::RemoveEndpoints(name) => Some(name.clone()),
                Change::UpsertService(_)
                | Change::RemoveService(_)
                | Change::SetNode(_)
                | Change::InitStart(_)
                | Change::InitDone(_) => None,
            };
            let refused = reconciler.handle_change(change).err();
            if let Some(error) = &refused {
                tracing::warn!(%error, "a change is refused, the last good state stays");
            }
            match (slice, refused) {
                (Some(name), Some(error)) => drop(notes.refused_slices.insert(name, error.to_string())),
                (Some(name), None) => drop(notes.refused_slices.remove(&name)),
                (None, _) => {}
            }
        }
    }

    /// A condition of the whole agent: `None` when it is over.
    pub(super) fn set_problem(&self, kind: &'static str, problem: Option<String>) {
        let problems = &mut self.notes().problems;
        match problem {
            Some(problem) => drop(problems.insert(kind, problem)),
            None => drop(problems.remove(kind)),
        }
    }

    pub(super) fn set_devices(&self, devices: Vec<String>) {
        self.notes().devices = devices;
    }

    pub(super) fn note_plan(&self, plan: PlanId, took: Duration) {
        let mut notes = self.notes();
        notes.plan = plan;
        notes.took = took;
    }

    /// Whether this is the moment at which the first listing is complete and carried out.
    pub(super) fn become_ready(&self) -> bool {
        let here = {
            let reconciler = self.reconciler();
            !reconciler.is_listing() && reconciler.installed().is_some()
        };
        here && !std::mem::replace(&mut self.notes().ready, here)
    }

    /// Whether there has been that moment.
    pub(super) fn is_ready(&self) -> bool {
        self.notes().ready
    }

    pub(super) fn services(&self) -> Vec<Service> {
        let reconciler = self.reconciler();
        let report = Arc::clone(&self.notes().report);
        view::services(&reconciler, &report)
    }

    pub(super) fn backends(&self) -> Vec<Backend> {
        view::backends(self.reconciler().model(), self.now())
    }

    pub(super) fn explain(
        &self,
        protocol: &str,
        source: &str,
        destination: &str,
        entry: Option<&str>,
    ) -> Result<Explanation, FlowError> {
        let reconciler = self.reconciler();
        let model = reconciler.model();
        let packet = flow::parse(protocol, source, destination, entry, model.node())?;
        let decision = decide(model, &packet, &lb_core::FlowView::default(), self.now());
        Ok(view::explanation(model, &packet, &decision))
    }

    pub(super) fn status(&self) -> Status {
        let (usage, usage_problem) = self.usage();
        let reconciler = self.reconciler();
        let notes = self.notes();
        let counts = view::counts(&reconciler);
        let mut conditions: Vec<Condition> =
            notes.problems.iter().map(|(kind, message)| Condition::new(kind, message)).collect();
        conditions.extend(usage_problem.map(|problem| Condition::new("UsageUnknown", &problem)));
        conditions.extend(view::conditions(&reconciler, &notes.report, &notes.refused_slices));
        conditions.sort();
        let node = reconciler.model().node();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: self.origin.elapsed().as_secs(),
            ready: notes.ready,
            settled: reconciler.is_settled(),
            node: Node {
                name: node.name.as_ref().map(ToString::to_string),
                ips: node.ips.clone(),
                cluster_cidrs: node.cluster_cidrs.iter().map(ToString::to_string).collect(),
            },
            datapath: Datapath {
                kind: self.kind.to_string(),
                plan: notes.plan.0,
                apply_us: u64::try_from(notes.took.as_micros()).unwrap_or(u64::MAX),
                devices: notes.devices.clone(),
                usage,
            },
            manifests: manifests(&notes, &self.directory, !reconciler.is_listing()),
            counts,
            conditions,
        }
    }

    /// Asked without any lock: the kernel may take its time.
    fn usage(&self) -> (Option<Usage>, Option<String>) {
        match self.counters.as_ref().map(|counters| counters.usage()) {
            None => (None, None),
            Some(Ok(usage)) => (Some(Usage { rules: usage.rules, elements: usage.elements, bytes: usage.bytes }), None),
            Some(Err(error)) => (None, Some(error.report())),
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn manifests(notes: &Notes, directory: &str, listed: bool) -> Manifests {
    fn lines(of: &[impl ToString]) -> Vec<String> {
        of.iter().map(ToString::to_string).collect()
    }
    let report = &notes.report;
    Manifests {
        directory: directory.into(),
        reads: notes.reads,
        listed,
        rejected: report.rejected.as_ref().map(ToString::to_string),
        skipped: lines(&report.skipped),
        unsupported: lines(&report.unsupported),
        refused: lines(&report.refused),
        ignored_files: report.ignored_files.clone(),
    }
}

fn log_report(report: &Report) {
    if let Some(error) = &report.rejected {
        tracing::warn!(%error, "the manifests are rejected, the last good state stays");
        return;
    }
    for refusal in &report.refused {
        tracing::warn!(%refusal, "an object is refused");
    }
    for finding in &report.unsupported {
        tracing::info!(%finding, "a field is not carried out");
    }
    tracing::debug!(skipped = report.skipped.len(), "the manifests are read");
}
