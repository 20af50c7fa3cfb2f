//! What the threads of the agent share.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use lb_core::{
    datapath::Counters,
    decision::{BackendQuery, FlowView, Packet, WhyNot, decide, why_not},
    model::{Change, Claim, Model},
    name::{ServiceName, SourceName, ZoneName},
    plan::PlanId,
    runner::{Inspected, Runner},
    time::Instant,
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    api::{
        Addresses, Backend, Condition, Datapath, DriftReport, Explanation, MapUsage, Network, Node, Pool, Service,
        Status, Usage, remarks, view,
    },
    config::{Config, DriftMode, maglev::MaglevHash},
    driver::DatapathKind,
    engine::{
        drift::{self, Feed, Subscription, words},
        inspection::Verified,
        notes::{self, Notes, SourceNotes},
        surroundings::{ADDRESS_SHARED, ServicesAt},
    },
    health_check::{self, Board},
    host::{clock, settings},
    source::Delivery,
};

/// The runner, and what else there is to say about the agent.
pub(crate) struct AgentState {
    start: std::time::Instant,
    kind: DatapathKind,
    counters: Option<Arc<dyn Counters>>,
    facts: Vec<String>,
    /// Written by the thread of the datapath alone.
    runner: RwLock<Runner>,
    drift_mode: DriftMode,
    feed: Mutex<Feed>,
    notes: Mutex<Notes>,
    health_checks: Board,
}

impl AgentState {
    /// `sources` are names and places, in the order of precedence.
    pub(crate) fn new(
        runner: Runner,
        config: &Config,
        sources: &[(SourceName, String)],
        counters: Option<Arc<dyn Counters>>,
        facts: Vec<String>,
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
            facts,
            runner: RwLock::new(runner),
            drift_mode: config.drift,
            feed: Mutex::default(),
            notes: Mutex::new(notes),
            health_checks: Board::default(),
        }
    }

    /// The time on the clock that eBPF programs use, so that their records compare with it.
    pub(crate) fn now(&self) -> Instant {
        // It fails only for clocks that a kernel may lack.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        Instant::new(now.unwrap_or_else(|_| self.start.elapsed()))
    }

    /// The runner, to read: by the thread of the datapath also while the datapath works.
    pub(crate) fn runner(&self) -> RwLockReadGuard<'_, Runner> {
        self.runner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runner, for the thread of the datapath. Not to be held while the datapath works.
    pub(crate) fn runner_mut(&self) -> RwLockWriteGuard<'_, Runner> {
        self.runner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs an inspection, tells those who follow drift, and reports to who asked for it.
    pub(crate) fn note_inspection(&self, inspected: &Inspected) -> Option<DriftReport> {
        let (now, wall) = (self.now(), clock::since_1970());
        drift::log(inspected);
        self.feed().tell(inspected, now, wall);
        inspected.asked.then(|| {
            let runner = self.runner();
            let (is_now, before) = runner.drifts().listed(&inspected.found);
            let told = |records: Vec<_>| records.into_iter().map(|record| words::told(record, now, wall)).collect();
            DriftReport {
                datapath: self.kind.to_string(),
                mode: self.drift_mode.into(),
                found: inspected.found.len() as u64,
                inspection_us: u64::try_from(inspected.took.as_micros()).unwrap_or(u64::MAX),
                now: told(is_now),
                before: told(before),
                unlisted: inspected.unlisted as u64,
            }
        })
    }

    /// What health checks are answered.
    pub(crate) const fn health_checks(&self) -> &Board {
        &self.health_checks
    }

    pub(crate) fn drift_mode(&self) -> DriftMode {
        self.drift_mode
    }

    pub(crate) fn kind(&self) -> DatapathKind {
        self.kind
    }

    /// Follows drift from now on, unless too many do.
    pub(crate) fn watch_drift(&self) -> Option<Subscription> {
        self.feed().subscribe()
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
        let mut runner = self.runner_mut();
        let mut notes = self.notes();
        let mut touched = BTreeSet::new();
        for change in changes {
            touched.extend(services_of(runner.reconciler().model(), &change));
            if concerns_all(&change) {
                self.health_checks.touch_all();
            }
            let slice = match &change {
                Change::ReplaceEndpoints(slice) => Some(slice.name.clone()),
                Change::RemoveEndpoints(name) => Some(name.clone()),
                // Of the others only services can be refused, and the model remembers those itself.
                _ => None,
            };
            if let Change::SetZone(zone) = &change {
                log_zone(runner.reconciler().model().zone(), zone.as_ref());
            }
            let instead = instead_of(runner.reconciler().model(), &change);
            let refused = runner.handle_change(change).err();
            if let Some(error) = &refused {
                tracing::warn!(%error, "a change is refused; {instead}");
            }
            match (slice, refused) {
                (Some(name), Some(error)) => drop(notes.refused_slices.insert(name, error.to_string())),
                (Some(name), None) => drop(notes.refused_slices.remove(&name)),
                (None, _) => {}
            }
        }
        self.health_checks.touch(touched.iter().cloned());
        notes.note_endpoints(runner.reconciler().model(), touched);
        while let Some((service, claim)) = runner.poll_claim() {
            note_claim(&service, &claim);
            self.health_checks.touch([service]);
        }
    }

    /// Logs which frontends are kept without a service, if that changed.
    pub(crate) fn note_kept(&self) {
        let runner = self.runner();
        self.notes().note_kept(runner.reconciler());
    }

    /// A condition of the whole agent: `None` when it is over.
    pub(crate) fn set_problem(&self, kind: &'static str, problem: Option<String>) {
        let problems = &mut self.notes().problems;
        match problem {
            Some(problem) => drop(problems.insert(kind, problem)),
            None => drop(problems.remove(kind)),
        }
    }

    /// The services at these addresses, or `None` if there are no services at all.
    pub(crate) fn services_at(&self, ips: &BTreeSet<IpAddr>) -> Option<ServicesAt> {
        let runner = self.runner();
        let mut owners = runner.reconciler().model().owners().peekable();
        owners.peek()?;
        let mut found = ServicesAt::new();
        for (addr, owner) in owners.filter(|(addr, _)| ips.contains(&addr.ip)) {
            found.entry(addr.ip).or_default().insert(owner.port.service.clone());
        }
        Some(found)
    }

    /// What there is to say of each service with an address that another host answers for.
    pub(crate) fn set_addresses_shared(&self, of_services: BTreeMap<String, String>) {
        self.notes().addresses_shared = of_services;
    }

    pub(crate) fn set_devices(&self, devices: Vec<String>) {
        self.notes().devices = devices;
    }

    /// Settings of the kernel, as they are now; returns those before.
    pub(crate) fn set_network(&self, network: Network) -> Network {
        std::mem::replace(&mut self.notes().network, network)
    }

    pub(crate) fn note_plan(&self, plan: PlanId, took: Duration) {
        let mut notes = self.notes();
        notes.plan = plan;
        notes.took = took;
    }

    /// Whether this is the moment at which the first listing is complete and carried out.
    pub(crate) fn become_ready(&self) -> bool {
        let here = self.runner().is_ready();
        here && !std::mem::replace(&mut self.notes().ready, here)
    }

    /// Whether there has been that moment.
    pub(crate) fn is_ready(&self) -> bool {
        self.notes().ready
    }

    pub(crate) fn services(&self) -> Vec<Service> {
        let runner = self.runner();
        let (reports, shared) = {
            let notes = self.notes();
            (notes.reports(), notes.addresses_shared.clone())
        };
        let mut services = view::services(runner.reconciler(), &reports);
        for service in &mut services {
            let message = shared.get(&service.name);
            service.conditions.extend(message.map(|message| Condition::new(ADDRESS_SHARED, message)));
        }
        let (board, now) = (&self.health_checks, self.now());
        let listed = |service| health_check::view::listed(board, service, now).map(|it| (service.name.to_string(), it));
        let mut checks: BTreeMap<_, _> = runner.reconciler().model().services().filter_map(listed).collect();
        for service in &mut services {
            service.health_check = checks.remove(&service.name);
            service.conditions.extend(service.health_check.as_ref().and_then(health_check::view::condition_of));
        }
        services
    }

    /// Adds to pools what of their manifests was refused.
    pub(crate) fn describe_pools(&self, pools: &mut [Pool]) {
        let report = Arc::clone(&self.notes().report);
        for pool in pools {
            pool.conditions.extend(view::refusals_of_pool(&report, &pool.name));
        }
    }

    pub(crate) fn backends(&self) -> Vec<Backend> {
        view::backends(self.runner().reconciler().model(), self.now())
    }

    /// What would become of a packet: of the first one of a flow from a client that nothing is known of, or as
    /// verified.
    pub(crate) fn explain(
        &self,
        packet: &Packet,
        verified: Option<&Verified>,
        wanted: Option<BackendQuery>,
    ) -> Explanation {
        let runner = self.runner();
        let reconciler = runner.reconciler();
        let (model, now) = (reconciler.model(), self.now());
        let flow = verified.map_or_else(FlowView::default, |verified| verified.answer.flow);
        let decision = match verified {
            Some(verified) => verified.decision.clone(),
            None => decide(model, packet, &flow, now),
        };
        let owner = view::owner(model, packet);
        let answer = wanted.map(|wanted| {
            let why_not = why_not(reconciler.desired(), packet, &flow, &decision, wanted, now);
            let mut answer = view::why_not(wanted, &why_not);
            if let (WhyNot::NotABackend, Some(port)) = (&why_not, owner)
                && let Some(why) = remarks::why_absent(model, port, &wanted)
            {
                answer.says = format!("{}: {why}", answer.says);
            }
            answer
        });
        let mut explanation = view::explanation(model, packet, &decision);
        if let Some(port) = owner {
            let reports = self.notes().reports();
            explanation.steps.extend(remarks::steps(model, &reports, &port.service));
            explanation.degraded.extend(remarks::degraded(model, &reports, &port.service));
        } else {
            explanation.steps.extend(view::kept_step(reconciler, packet));
            explanation.steps.extend(health_check::view::step(&self.health_checks, model, packet, now));
        }
        Explanation {
            verification: verified.map(|verified| view::verification(packet, verified)),
            why_not: answer,
            ..explanation
        }
    }

    pub(crate) fn status(&self) -> Status {
        let (usage, usage_problem) = self.usage();
        let (maps, maps_problem) = self.maps();
        let (now, watchers) = (self.now(), self.feed().watchers());
        let runner = self.runner();
        let reconciler = runner.reconciler();
        let notes = self.notes();
        let counts = view::counts(reconciler);
        let mut conditions: Vec<Condition> =
            notes.problems.iter().map(|(kind, message)| Condition::new(kind, message)).collect();
        let of_sources = notes.source_problems.iter();
        conditions.extend(of_sources.map(|((_, kind), message)| Condition::new(kind, message)));
        conditions.extend(notes.rejections().map(|error| Condition::new("ManifestsRejected", &error)));
        let unknown = usage_problem.or(maps_problem);
        conditions.extend(unknown.map(|problem| Condition::new("UsageUnknown", &problem)));
        conditions.extend(maps.iter().filter_map(pressure));
        let drift_conditions = words::conditions(runner.drifts(), now);
        conditions.extend(drift_conditions.iter().map(|(kind, message)| Condition::new(kind, message)));
        conditions.extend(view::kept(reconciler));
        conditions.extend(health_check::view::condition(&self.health_checks));
        conditions.extend(view::conditions(reconciler, &notes.report, &notes.refused_slices));
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
                facts: self.facts.clone(),
                maps,
            },
            network: Network {
                reverse_path_drops: self.kind.carries_packets().then(settings::reverse_path_drops).flatten(),
                ..notes.network.clone()
            },
            manifests: notes.sources.first().map(notes::manifests).unwrap_or_default(),
            sources: notes.sources.iter().map(notes::source).collect(),
            maglev_hash: MaglevHash::of(&reconciler.model().settings().maglev).as_str().into(),
            counts,
            addresses: Addresses::default(),
            drift: words::status(runner.drifts(), self.drift_mode, watchers),
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

    /// As [`usage`](Self::usage), of single maps.
    fn maps(&self) -> (Vec<MapUsage>, Option<String>) {
        match self.counters.as_ref().map(|counters| counters.maps()) {
            None => (Vec::new(), None),
            Some(Ok(maps)) => (maps.into_iter().map(MapUsage::from).collect(), None),
            Some(Err(error)) => (Vec::new(), Some(error.report())),
        }
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<lb_core::datapath::MapUsage> for MapUsage {
    fn from(usage: lb_core::datapath::MapUsage) -> Self {
        let lb_core::datapath::MapUsage { name, entries, capacity, evicts } = usage;
        Self { name, entries, capacity, evicts }
    }
}

/// The condition of a map that is nearly full.
fn pressure(map: &MapUsage) -> Option<Condition> {
    /// Percent from which people are told.
    const HIGH: u64 = 90;
    let MapUsage { name, entries, capacity, evicts } = map;
    if entries.saturating_mul(100) < capacity.saturating_mul(HIGH) {
        return None;
    }
    let (about, full) =
        if *evicts { ("about ", "drops those that were used least recently") } else { ("", "takes no more") };
    let message = format!("map {name} has {about}{entries} of {capacity} elements; a full one {full}");
    Some(Condition::new("MapPressure", &message))
}

/// Services whose endpoints a change may touch.
fn services_of(model: &Model, change: &Change) -> Vec<ServiceName> {
    let before = |name| model.endpoint_slice(name).map(|slice| slice.service.clone());
    match change {
        Change::UpsertService(service) => vec![service.name.clone()],
        Change::RemoveService(name) => vec![name.clone()],
        Change::ReplaceEndpoints(slice) => before(&slice.name).into_iter().chain([slice.service.clone()]).collect(),
        Change::RemoveEndpoints(name) => before(name).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Whether a change may touch endpoints of every service.
const fn concerns_all(change: &Change) -> bool {
    match change {
        Change::UpsertService(_)
        | Change::RemoveService(_)
        | Change::ReplaceEndpoints(_)
        | Change::RemoveEndpoints(_)
        | Change::InitStart(_)
        | Change::KeepUnclaimed(_) => false,
        // Where endpoints are, and how they are.
        _ => true,
    }
}

/// Says that the zone of the node is another one from now on.
fn log_zone(old: Option<&ZoneName>, new: Option<&ZoneName>) {
    let named = |zone: Option<&ZoneName>| zone.map_or_else(|| "none".to_owned(), ToString::to_string);
    if old != new {
        let (old, new) = (named(old), named(new));
        tracing::info!(old, new, why = "the settings were given anew", "the zone of this node is changed");
    }
}

/// What is in force instead of a change that is refused.
fn instead_of(model: &Model, change: &Change) -> &'static str {
    let (has_state, without) = match change {
        Change::UpsertService(service) => (model.service(&service.name).is_some(), "the service is not served"),
        Change::ReplaceEndpoints(slice) => {
            (model.endpoint_slice(&slice.name).is_some(), "the endpoints of the slice get nothing")
        }
        _ => (true, ""),
    };
    if has_state { "the last good state stays in force" } else { without }
}

/// Says that a service got its addresses after all, or lost one; its condition `Refused` follows from the model.
fn note_claim(service: &ServiceName, claim: &Claim) {
    match claim {
        Claim::Served => tracing::info!(%service, "a service that was refused is served now"),
        Claim::Refused(error) => tracing::warn!(%service, %error, "a service that was served is refused from now on"),
    }
}

#[cfg(test)]
mod tests {
    use lb_core::{endpoint::EndpointSlice, name::SliceName, service::Service};

    use super::*;

    #[test]
    fn a_map_is_told_from_nine_tenths_on_with_what_becomes_of_the_rest() {
        let map = |entries, evicts| MapUsage { name: "CT".into(), entries, capacity: 1000, evicts };
        assert_eq!(pressure(&map(899, false)), None);
        let told = |map| pressure(&map).map(|condition| (condition.kind, condition.message));
        let text = |text: &str| Some(("MapPressure".to_owned(), text.to_owned()));
        assert_eq!(told(map(900, false)), text("map CT has 900 of 1000 elements; a full one takes no more"));
        let evicting = "map CT has about 1000 of 1000 elements; a full one drops those that were used least recently";
        assert_eq!(told(map(1000, true)), text(evicting));
    }

    #[test]
    fn a_last_good_state_is_said_to_stay_only_where_there_is_one() {
        let mut model = Model::default();
        let name = ServiceName::new("default", "web");
        let slice = EndpointSlice {
            name: SliceName::new("default", "web-1"),
            service: name.clone(),
            ports: Vec::new(),
            endpoints: Vec::new(),
        };
        let changes = || [Change::UpsertService(Service::new(name.clone())), Change::ReplaceEndpoints(slice.clone())];
        let said = changes().map(|change| instead_of(&model, &change));
        assert_eq!(said, ["the service is not served", "the endpoints of the slice get nothing"]);
        changes().into_iter().for_each(|change| drop(model.apply(change).unwrap()));
        assert_eq!(changes().map(|change| instead_of(&model, &change)), ["the last good state stays in force"; 2]);
    }
}
