//! One datapath at work on its node.

use std::time::{Duration, Instant};

use lb_agent::{
    config::pattern::Pattern,
    driver::{Attachments, DatapathKind, OpenDatapath, Setting},
};
use lb_core::{
    datapath::{DatapathError, KernelUsage},
    endpoint::EndpointSlice,
    model::{Change, Model, Settings as ModelSettings},
    plan::Plan,
    reconciler::Reconciler,
};
use lb_testkit::lab::Node;

use super::{
    error::{CompareError, Result},
    probe::monotonic,
    world::Compared,
};

/// Devices of the lab's pods on their nodes.
pub(super) const POD_DEVICES: &str = "pod*";

/// One datapath at work on its node, with what feeds it.
pub(super) struct Subject<'lab> {
    kind: DatapathKind,
    node: Node<'lab>,
    installed: Box<dyn OpenDatapath>,
    reconciler: Reconciler,
}

/// A change that was applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    /// When it came, on the clock of [`monotonic`].
    pub(super) event: Duration,
    /// From the event to the end of its last plan.
    pub(super) took: Duration,
}

impl<'lab> Subject<'lab> {
    /// A fresh datapath on a node.
    pub(super) fn open(kind: DatapathKind, node: Node<'lab>) -> Result<Self> {
        let attachments = attachments(kind, node)?;
        let failed = |error| failed(kind, "opening", &error);
        let (installed, observed) = node
            .run(|| {
                let mut installed = kind.open(&attachments)?;
                let followed = installed.follow_devices();
                followed.map_err(|why| DatapathError::new(lb_core::datapath::ErrorKind::System, why))?;
                let observed = installed.datapath_mut().observe()?;
                Ok((installed, observed))
            })?
            .map_err(failed)?;
        let capabilities = installed.datapath().capabilities();
        let mut reconciler = Reconciler::new(Model::new(ModelSettings::default(), capabilities));
        reconciler.handle_observed(observed);
        Ok(Self { kind, node, installed, reconciler })
    }

    pub(super) fn kind(&self) -> DatapathKind {
        self.kind
    }

    /// Carries out a whole world; how long that took from the first plan on.
    pub(super) fn sync(&mut self, world: &Compared) -> Result<Duration> {
        for change in world.changes(self.node.facts()) {
            self.handle(change)?;
        }
        let Self { kind, node, installed, reconciler, .. } = self;
        node.run(|| {
            let first = next_plan(*kind, reconciler)?;
            let start = Instant::now();
            settle(*kind, &mut **installed, reconciler, first, "the first sync").map(|()| start.elapsed())
        })?
    }

    /// Carries out one change of endpoints.
    pub(super) fn change(&mut self, slice: EndpointSlice) -> Result<Committed> {
        let Self { kind, node, installed, reconciler, .. } = self;
        node.run(|| {
            let event = monotonic();
            let change = reconciler.handle_change(Change::ReplaceEndpoints(slice));
            change.map_err(|error| refused(*kind, &error))?;
            let first = next_plan(*kind, reconciler)?;
            settle(*kind, &mut **installed, reconciler, first, "a change")?;
            Ok(Committed { event, took: monotonic().saturating_sub(event) })
        })?
    }

    /// What it holds in the kernel.
    pub(super) fn usage(&self) -> Result<KernelUsage> {
        let (kind, counters) = (self.kind, self.installed.datapath().counters());
        let counters = counters.ok_or(CompareError::Datapath {
            datapath: kind,
            action: "counting",
            cause: "it has no counters".into(),
        })?;
        self.node.run(|| counters.usage())?.map_err(|error| failed(kind, "counting", &error))
    }

    /// Removes everything and opens it again.
    pub(super) fn reopen(mut self) -> Result<Self> {
        let (kind, node) = (self.kind, self.node);
        let cleaned = node.run(|| self.installed.datapath_mut().cleanup())?;
        cleaned.map_err(|error| failed(kind, "cleanup", &error))?;
        drop(self);
        Self::open(kind, node)
    }

    fn handle(&mut self, change: Change) -> Result<()> {
        self.reconciler.handle_change(change).map_err(|error| refused(self.kind, &error)).map(drop)
    }
}

/// Carries out a plan and those that follow from it.
fn settle(
    kind: DatapathKind,
    installed: &mut dyn OpenDatapath,
    reconciler: &mut Reconciler,
    first: Option<Plan>,
    action: &'static str,
) -> Result<()> {
    let now = lb_core::time::Instant::default();
    let mut next = first;
    while let Some(plan) = next {
        let outcome = installed.datapath_mut().apply(&plan);
        if let Err(error) = &outcome {
            return Err(CompareError::Datapath { datapath: kind, action, cause: error.to_string() });
        }
        reconciler.handle_applied(plan.id, outcome, now);
        next = next_plan(kind, reconciler)?;
    }
    Ok(())
}

/// The next plan; time stands still, since nothing is tried again.
fn next_plan(kind: DatapathKind, reconciler: &mut Reconciler) -> Result<Option<Plan>> {
    let plan = reconciler.poll_plan(lb_core::time::Instant::default());
    plan.map_err(|error| CompareError::Datapath { datapath: kind, action: "a plan", cause: error.to_string() })
}

fn attachments(kind: DatapathKind, node: Node<'_>) -> Result<Attachments> {
    let attachments = Attachments::default()
        .with_devices([node.uplink()])
        .with_pod_devices([Pattern::new(POD_DEVICES)])
        .with_cgroup(node.cgroup());
    Ok(if kind.reads(Setting::PinDir) { attachments.with_pin_dir(node.pin_dir()?) } else { attachments })
}

fn failed(datapath: DatapathKind, action: &'static str, error: &DatapathError) -> CompareError {
    CompareError::Datapath { datapath, action, cause: error.report() }
}

fn refused(datapath: DatapathKind, error: &lb_core::model::ModelError) -> CompareError {
    CompareError::Datapath { datapath, action: "taking in a change", cause: error.to_string() }
}
