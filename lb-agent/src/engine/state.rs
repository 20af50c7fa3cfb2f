//! What the threads of the agent share.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use lb_core::{
    datapath::Counters,
    decision::{BackendQuery, FlowView, Packet, decide, why_not},
    model::Change,
    name::SourceName,
    plan::PlanId,
    reconciler::Reconciler,
    time::Instant,
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    api::{
        Addresses, Backend, Condition, Datapath, DriftReport, DriftStatus, Explanation, Node, Pool, Service, Status,
        Usage, view,
    },
    config::{Config, maglev::MaglevHash},
    driver::DatapathKind,
    engine::{
        drift::{Drifts, Inspected, Subscription},
        inspection::Verified,
        notes::{self, Notes, SourceNotes},
    },
    host::clock,
    source::Delivery,
};

/// The reconciler, and what else there is to say about the agent.
pub(crate) struct AgentState {
    start: std::time::Instant,
    kind: DatapathKind,
    counters: Option<Arc<dyn Counters>>,
    /// Written by the thread of the datapath alone.
    reconciler: RwLock<Reconciler>,
    drifts: Mutex<Drifts>,
    notes: Mutex<Notes>,
}

impl AgentState {
    /// `sources` are names and places, in the order of precedence.
    pub(crate) fn new(
        reconciler: Reconciler,
        config: &Config,
        sources: &[(SourceName, String)],
        counters: Option<Arc<dyn Counters>>,
    ) -> Self {
        let unread = |(name, place): &(SourceName, String)| SourceNotes {
            name: name.clone(),
            place: place.clone(),
            reads: 0,
            listed: false,
            report: Arc::default(),
        };
        let notes = Notes { sources: sources.iter().map(unread).collect(), ..Notes::default() };
        Self {
            start: std::time::Instant::now(),
            kind: config.datapath,
            counters,
            reconciler: RwLock::new(reconciler),
            drifts: Mutex::new(Drifts::new(config.drift, config.drift_interval)),
            notes: Mutex::new(notes),
        }
    }

    /// The time on the clock that eBPF programs use, so that their records compare with it.
    pub(crate) fn now(&self) -> Instant {
        // It fails only for clocks that a kernel may lack.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        Instant::new(now.unwrap_or_else(|_| self.start.elapsed()))
    }

    /// The reconciler, to read.
    pub(crate) fn reconciler(&self) -> RwLockReadGuard<'_, Reconciler> {
        self.reconciler.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reconciler, for the thread of the datapath. Not to be held while the datapath works.
    pub(crate) fn reconciler_mut(&self) -> RwLockWriteGuard<'_, Reconciler> {
        self.reconciler.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known about drift. Not to be held while the datapath works.
    pub(crate) fn drifts(&self) -> MutexGuard<'_, Drifts> {
        self.drifts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an inspection in, and reports about it if somebody wants that.
    pub(crate) fn note_inspection(&self, inspected: &Inspected, wants_report: bool) -> Option<DriftReport> {
        let (now, wall) = (self.now(), clock::since_1970());
        let mut drifts = self.drifts();
        let unlisted = drifts.handle_inspected(inspected, now, wall);
        wants_report.then(|| {
            let (is_now, before) = drifts.listed(&inspected.found, now, wall);
            DriftReport {
                datapath: self.kind.to_string(),
                mode: drifts.mode().into(),
                found: inspected.found.len() as u64,
                inspection_us: u64::try_from(inspected.took.as_micros()).unwrap_or(u64::MAX),
                now: is_now,
                before,
                unlisted: unlisted as u64,
            }
        })
    }

    pub(crate) fn kind(&self) -> DatapathKind {
        self.kind
    }

    /// Follows drift from now on, unless too many do.
    pub(crate) fn watch_drift(&self) -> Option<Subscription> {
        self.drifts().subscribe()
    }

    /// Takes in what a source says.
    pub(crate) fn take_news(&self, news: Delivery) {
        let Delivery { source, changes, report, conditions, .. } = news;
        {
            let mut notes = self.notes();
            conditions.into_iter().for_each(|(source, kind, problem)| notes.set_source_problem(source, kind, problem));
            notes.take_report(&source, report, &changes);
        }
        self.take_changes(changes);
    }

    pub(crate) fn take_changes(&self, changes: Vec<Change>) {
        let mut reconciler = self.reconciler_mut();
        let mut notes = self.notes();
        for change in changes {
            let slice = match &change {
                Change::ReplaceEndpoints(slice) => Some(slice.name.clone()),
                Change::RemoveEndpoints(name) => Some(name.clone()),
                // Of the others only services can be refused, and the model remembers those itself.
                _ => None,
            };
            let refused = reconciler.handle_change(change).err();
            if let Some(error) = &refused {
                tracing::warn!(%error, "a change is refused; the last good state stays in force");
            }
            match (slice, refused) {
                (Some(name), Some(error)) => drop(notes.refused_slices.insert(name, error.to_string())),
                (Some(name), None) => drop(notes.refused_slices.remove(&name)),
                (None, _) => {}
            }
        }
    }

    /// A condition of the whole agent: `None` when it is over.
    pub(crate) fn set_problem(&self, kind: &'static str, problem: Option<String>) {
        let problems = &mut self.notes().problems;
        match problem {
            Some(problem) => drop(problems.insert(kind, problem)),
            None => drop(problems.remove(kind)),
        }
    }

    pub(crate) fn set_devices(&self, devices: Vec<String>) {
        self.notes().devices = devices;
    }

    pub(crate) fn note_plan(&self, plan: PlanId, took: Duration) {
        let mut notes = self.notes();
        notes.plan = plan;
        notes.took = took;
    }

    /// Whether this is the moment at which the first listing is complete and carried out.
    pub(crate) fn become_ready(&self) -> bool {
        let here = {
            let reconciler = self.reconciler();
            !reconciler.is_listing() && reconciler.installed().is_some()
        };
        here && !std::mem::replace(&mut self.notes().ready, here)
    }

    /// Whether there has been that moment.
    pub(crate) fn is_ready(&self) -> bool {
        self.notes().ready
    }

    pub(crate) fn services(&self) -> Vec<Service> {
        let reconciler = self.reconciler();
        let report = Arc::clone(&self.notes().report);
        view::services(&reconciler, &report)
    }

    /// Adds to pools what of their manifests was refused.
    pub(crate) fn describe_pools(&self, pools: &mut [Pool]) {
        let report = Arc::clone(&self.notes().report);
        for pool in pools {
            pool.conditions.extend(view::refusals_of_pool(&report, &pool.name));
        }
    }

    pub(crate) fn backends(&self) -> Vec<Backend> {
        view::backends(self.reconciler().model(), self.now())
    }

    /// What would become of a packet: of the first one of a flow from a client that nothing is known of, or as
    /// verified.
    pub(crate) fn explain(
        &self,
        packet: &Packet,
        verified: Option<&Verified>,
        wanted: Option<BackendQuery>,
    ) -> Explanation {
        let reconciler = self.reconciler();
        let (model, now) = (reconciler.model(), self.now());
        let flow = verified.map_or_else(FlowView::default, |verified| verified.answer.flow);
        let decision = match verified {
            Some(verified) => verified.decision.clone(),
            None => decide(model, packet, &flow, now),
        };
        let answer = wanted.map(|wanted| {
            let why_not = why_not(reconciler.desired(), packet, &flow, &decision, wanted, now);
            view::why_not(wanted, &why_not)
        });
        Explanation {
            verification: verified.map(|verified| view::verification(packet, verified)),
            why_not: answer,
            ..view::explanation(model, packet, &decision)
        }
    }

    pub(crate) fn status(&self) -> Status {
        let (usage, usage_problem) = self.usage();
        let reconciler = self.reconciler();
        let notes = self.notes();
        let counts = view::counts(&reconciler);
        let mut conditions: Vec<Condition> =
            notes.problems.iter().map(|(kind, message)| Condition::new(kind, message)).collect();
        let of_sources = notes.source_problems.iter();
        conditions.extend(of_sources.map(|((_, kind), message)| Condition::new(kind, message)));
        conditions.extend(notes.rejections().map(|error| Condition::new("ManifestsRejected", &error)));
        conditions.extend(usage_problem.map(|problem| Condition::new("UsageUnknown", &problem)));
        let (drift, drift_conditions) = self.drift_status();
        conditions.extend(drift_conditions);
        conditions.extend(view::conditions(&reconciler, &notes.report, &notes.refused_slices));
        conditions.sort();
        let node = reconciler.model().node();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: self.start.elapsed().as_secs(),
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
            manifests: notes.sources.first().map(notes::manifests).unwrap_or_default(),
            sources: notes.sources.iter().map(notes::source).collect(),
            maglev_hash: MaglevHash::of(&reconciler.model().settings().maglev).as_str().into(),
            counts,
            addresses: Addresses::default(),
            drift,
            conditions,
        }
    }

    fn drift_status(&self) -> (DriftStatus, Vec<Condition>) {
        let drifts = self.drifts();
        let conditions = drifts.conditions(self.now());
        (drifts.status(), conditions.iter().map(|(kind, message)| Condition::new(kind, message)).collect())
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
