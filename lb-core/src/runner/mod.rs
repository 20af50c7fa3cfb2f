//! The loop around a datapath: it observes, plans, applies, retries, ends flows, inspects and repairs.
//!
//! A [`Runner`] knows what is to be done next, and [`step`](Runner::step) does it. The runner reads no clock and starts
//! no thread: the caller passes the time, and calls again at [`poll_timeout`](Runner::poll_timeout). With the feature
//! `std`, `Runner::spawn` starts a thread that does so.
//!
//! ```
//! use lb_core::{
//!     datapath::Datapath,
//!     memory::MemoryDatapath,
//!     model::{Change, Model, Settings},
//!     name::SourceName,
//!     node::NodeFacts,
//!     runner::{Event, Runner},
//!     time::Instant,
//! };
//!
//! let mut datapath: Box<dyn Datapath> = Box::new(MemoryDatapath::default()); // or eBPF, nftables, iptables
//! let node = NodeFacts { ips: vec!["192.0.2.1".parse()?], ..NodeFacts::default() };
//! let files = SourceName("files".into());
//! let mut runner = Runner::new(Model::new(Settings::default(), datapath.capabilities()), node, [files.clone()]);
//!
//! // Everything that the source has at first, and then:
//! runner.handle_change(Change::InitDone(files))?;
//! let now = Instant::default();
//! let mut said = Vec::new();
//! while let Some(event) = runner.step(&mut *datapath, now) {
//!     said.push(event.to_string());
//! }
//! assert_eq!(said[0], "the datapath holds 0 frontends and 0 backends, which are adopted");
//! assert!(runner.is_ready());
//! // The next full inspection.
//! assert_eq!(runner.poll_timeout().unwrap().since(now).as_secs(), 60);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```

mod drifts;
mod event;
mod task;
#[cfg(test)]
mod tests;
#[cfg(feature = "std")]
mod thread;
#[cfg(feature = "std")]
mod watch;

use alloc::{collections::BTreeSet, string::ToString, vec::Vec};
use core::time::Duration;

pub use drifts::{DriftMode, DriftOutcome, DriftRecord, Drifts, Inspected};
pub use event::Event;
pub use task::{Done, Task};
#[cfg(feature = "std")]
pub use thread::{Handle, Stopped};
#[cfg(feature = "std")]
pub use watch::{Alarm, AlarmGuard, Watch};

use self::{
    drifts::{Look, Repair},
    task::{Outcome, Work},
};
use crate::{
    addr::Family,
    datapath::{ApplyError, Datapath, DatapathError, ErrorKind},
    drift::{Drift, Inspection},
    model::{Change, Claim, Model, ModelError},
    name::{ServiceName, SourceName},
    node::NodeFacts,
    reconciler::Reconciler,
    time::Instant,
};

/// Keeps a datapath as its model wants it.
///
/// A runner owns a [`Reconciler`] and what is known of drift, but not the datapath, so that both can be used by others
/// meanwhile.
///
/// - [`step`](Self::step) does what is due, for a program whose time stands still meanwhile. Repeat it until it returns
///   `None`.
/// - [`poll_task`](Self::poll_task) and [`handle_done`](Self::handle_done) are the two halves of a step, for a program
///   that measures time, or that reads the runner while the datapath works. Such a program does not get the events
///   [`Event::Frontend`], [`Event::Listing`], [`Event::NoNodeAddress`] and [`Event::Ready`].
#[derive(Debug)]
pub struct Runner {
    reconciler: Reconciler,
    drifts: Drifts,
    ready: bool,
    /// Somebody wants an inspection of everything.
    asked: bool,
    /// The rest of an inspection that found something.
    rest: Option<Rest>,
    told: Told,
}

/// The part of an inspection that is still to be done.
#[derive(Debug)]
enum Rest {
    Repair(Look),
    /// A repair was tried: look again.
    Again {
        look: Look,
        at: Instant,
        failed: Vec<(alloc::string::String, alloc::string::String)>,
        error: Option<ApplyError>,
    },
}

/// What comes next.
enum Next {
    Event(Event),
    Task(Task),
}

/// What the caller of [`Runner::step`] was told.
#[derive(Debug, Default)]
struct Told {
    ready: bool,
    /// Families without an address of the node are told once for each node.
    no_node_address: BTreeSet<Family>,
    /// When it is time to say that sources are in their first listing.
    listing_at: Option<Instant>,
}

/// The time from one full inspection to the next, unless it is set.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long a plan comes before an inspection that is due. Without an end to changes there is no end to plans.
const DEFERRED: Duration = Duration::from_millis(50);
/// How long a first listing may take until it is worth a word, and from one word to the next.
const LISTING: Duration = Duration::from_secs(10);

impl Runner {
    /// A runner for `model`, which knows the datapath's capabilities, on this node.
    ///
    /// Each of `sources` is in its first listing until [`Change::InitDone`] names it. There is no plan before: what an
    /// earlier process left in the datapath keeps serving until everything is known that replaces it. Without any
    /// source, the first step removes what is not in the model by then.
    #[must_use]
    pub fn new(model: Model, node: NodeFacts, sources: impl IntoIterator<Item = SourceName>) -> Self {
        let mut runner = Self {
            reconciler: Reconciler::new(model),
            drifts: Drifts::new(DriftMode::default(), INTERVAL),
            ready: false,
            asked: false,
            rest: None,
            told: Told::default(),
        };
        let listing = sources.into_iter().map(Change::InitStart);
        for change in core::iter::once(Change::SetNode(node)).chain(listing) {
            // There is no service yet that could claim an address of the node.
            let _ = runner.handle_change(change);
        }
        runner
    }

    /// The same with another reaction to drift, and another time from one full inspection to the next. Default:
    /// [`DriftMode::Repair`], one minute. Choose a short time for a datapath whose watcher cannot notice everything.
    #[must_use]
    pub fn with_drift(mut self, mode: DriftMode, interval: Duration) -> Self {
        self.drifts = Drifts::new(mode, interval);
        self
    }

    /// The reconciler: model, desired state, and the status of each frontend.
    #[must_use]
    pub const fn reconciler(&self) -> &Reconciler {
        &self.reconciler
    }

    /// What is known of drift.
    #[must_use]
    pub const fn drifts(&self) -> &Drifts {
        &self.drifts
    }

    /// Whether the first listing of every source was carried out once. Inspections begin then.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Handles a change. The next step carries it out.
    ///
    /// # Errors
    /// When the model refuses the change; see [`Model::apply`].
    pub fn handle_change(&mut self, change: Change) -> Result<(), ModelError> {
        if matches!(change, Change::SetNode(_)) {
            self.told.no_node_address.clear();
        }
        self.reconciler.handle_change(change)
    }

    /// Handles an alarm: a watcher noticed that others changed the datapath.
    pub fn handle_suspicion(&mut self, now: Instant) {
        self.drifts.handle_suspicion(now);
        self.reconciler.handle_suspicion(now);
    }

    /// Handles a watcher that cannot watch, or may have missed something: everything is inspected.
    pub fn handle_missed(&mut self, now: Instant) {
        self.drifts.handle_missed(now);
        self.drifts.set_watched(false);
    }

    /// Handles that a watcher watches, from now on or again. This shows in [`Drifts::is_watched`] alone.
    pub const fn handle_watching(&mut self) {
        self.drifts.set_watched(true);
    }

    /// As [`Reconciler::poll_claim`], for a program that works by [`poll_task`](Self::poll_task). A
    /// [`step`](Self::step) returns the same as [`Event::Claim`].
    pub fn poll_claim(&mut self) -> Option<(ServiceName, Claim)> {
        self.reconciler.poll_claim()
    }

    /// Inspects everything as soon as possible, in every [`DriftMode`]. [`Inspected::asked`] marks the answer.
    pub const fn inspect_now(&mut self) {
        self.asked = true;
    }

    /// Does what is due next, and returns what came of it; `None` if nothing is due before
    /// [`poll_timeout`](Self::poll_timeout).
    ///
    /// Time stands still during a step. An inspection therefore counts as one that costs nothing, and is repeated as
    /// often as it may be.
    pub fn step(&mut self, datapath: &mut dyn Datapath, now: Instant) -> Option<Event> {
        loop {
            let done = match self.poll_next(now)? {
                Next::Event(event) => return Some(event),
                Next::Task(task) => task.carry_out(self, datapath),
            };
            if let Some(event) = self.handle_done(done, Duration::ZERO, now) {
                return Some(event);
            }
        }
    }

    /// What is to be said or done next.
    fn poll_next(&mut self, now: Instant) -> Option<Next> {
        if let Some(event) = self.poll_notice(now) {
            return Some(Next::Event(event));
        }
        let task = self.poll_task(now);
        if self.ready && !core::mem::replace(&mut self.told.ready, true) {
            // Before the first inspection: that task comes again.
            return Some(Next::Event(Event::Ready));
        }
        task.map(Next::Task).or_else(|| self.poll_notice(now).map(Next::Event))
    }

    /// What is to be said although nothing is done.
    fn poll_notice(&mut self, now: Instant) -> Option<Event> {
        let mut families = self.reconciler.families_without_node_address().into_iter();
        if let Some(family) = families.find(|family| self.told.no_node_address.insert(*family)) {
            return Some(Event::NoNodeAddress(family));
        }
        if let Some((service, claim)) = self.reconciler.poll_claim() {
            return Some(Event::Claim(service, claim));
        }
        if let Some((addr, status)) = self.reconciler.poll_event() {
            return Some(Event::Frontend(addr, status));
        }
        if !self.reconciler.is_listing() {
            self.told.listing_at = None;
            return None;
        }
        let at = *self.told.listing_at.get_or_insert(now + LISTING);
        if now < at {
            return None;
        }
        self.told.listing_at = Some(now + LISTING);
        Some(Event::Listing(self.reconciler.listing().cloned().collect()))
    }

    /// What the datapath is to do next. Carry it out, and hand the outcome to [`handle_done`](Self::handle_done): until
    /// then, the same task comes again.
    pub fn poll_task(&mut self, now: Instant) -> Option<Task> {
        self.poll_work(now).map(|work| Task { work, began: now })
    }

    fn poll_work(&mut self, now: Instant) -> Option<Work> {
        match &self.rest {
            Some(Rest::Repair(look)) => return Some(Work::Repair(look.found.clone())),
            Some(Rest::Again { look, .. }) => return Some(Work::Inspect(look.inspection)),
            None => {}
        }
        let due = self.inspection_due();
        if due.is_some_and(|due| due + DEFERRED <= now) {
            return Some(Work::Inspect(self.next_inspection(now)));
        }
        if self.reconciler.wants_observation(now) {
            return Some(Work::Observe);
        }
        if let Some(plan) = self.reconciler.in_flight() {
            return Some(Work::Apply(plan.clone()));
        }
        // The node is set, and neither an observation nor an outcome is missing.
        if let Ok(Some(plan)) = self.reconciler.poll_plan(now) {
            return Some(Work::Apply(plan));
        }
        if let Some(evictions) = self.reconciler.poll_evictions(now) {
            return Some(Work::Evict(evictions));
        }
        self.become_ready(now);
        let is_due = self.inspection_due().is_some_and(|due| due <= now);
        is_due.then(|| Work::Inspect(self.next_inspection(now)))
    }

    fn become_ready(&mut self, now: Instant) {
        if !self.ready && !self.reconciler.is_listing() && self.reconciler.installed().is_some() {
            self.ready = true;
            self.drifts.begin(now);
        }
    }

    /// When an inspection is due, if the datapath can be inspected at all.
    fn inspection_due(&self) -> Option<Instant> {
        let can = self.ready && self.reconciler.expected().is_some();
        let at = if self.asked { Some(Instant::default()) } else { self.drifts.poll_timeout() };
        at.filter(|_| can)
    }

    fn next_inspection(&self, now: Instant) -> Inspection {
        match self.drifts.poll_inspection(now) {
            Some(inspection) if !self.asked => inspection,
            _ => Inspection::Everything,
        }
    }

    /// Handles the outcome of a task, which took `cpu` of a processor's time: less than the time that passed, if others
    /// were busy, too. Inspections come the less often the more they take.
    ///
    /// Returns what came of it; `None` if the task is part of something greater, such as the repair of what an
    /// inspection found.
    pub fn handle_done(&mut self, done: Done, cpu: Duration, now: Instant) -> Option<Event> {
        let Done { outcome, began } = done;
        let took = now.since(began);
        match outcome {
            Outcome::Observed(Ok((state, held))) => {
                let (frontends, backends) = (state.frontends.len(), state.backends.len());
                self.reconciler.handle_observed_with(state, held);
                Some(Event::Observed { frontends, backends })
            }
            Outcome::Observed(Err(error)) => {
                self.reconciler.handle_observe_failed(now);
                if self.is_hopeless(&error) {
                    return Some(Event::NotPermitted(error));
                }
                let again_in = self.reconciler.poll_timeout().map_or(Duration::ZERO, |(at, _)| at.since(now));
                Some(Event::NotObserved { error, again_in })
            }
            Outcome::Applied(plan, outcome) => {
                self.reconciler.note_applied(plan.id, outcome.as_ref(), now);
                let unknown = outcome.as_ref().err().and_then(|error| error.unknown.as_ref());
                if let Some(error) = unknown.filter(|error| self.is_hopeless(error)) {
                    return Some(Event::NotPermitted(DatapathError::new(error.kind(), error.report())));
                }
                self.drifts.handle_applied(now);
                Some(Event::Applied { plan, outcome, took })
            }
            Outcome::Evicted(evictions, outcome) => {
                self.reconciler.handle_evicted(outcome.as_ref(), now);
                let frontends = evictions.into_iter().map(|eviction| eviction.frontend).collect();
                Some(Event::Evicted { frontends, outcome, took })
            }
            Outcome::Inspected(inspection, found) => self.handle_look(inspection, found, took, cpu, now),
            Outcome::Repaired(outcome) => self.handle_repaired(outcome, now),
            Outcome::NothingExpected => {
                self.rest = None;
                None
            }
        }
    }

    /// Whether it makes no sense to try again: what was never permitted will not be.
    fn is_hopeless(&self, error: &DatapathError) -> bool {
        error.kind() == ErrorKind::Permission && !self.ready
    }

    fn handle_look(
        &mut self,
        inspection: Inspection,
        found: Result<Vec<Drift>, DatapathError>,
        took: Duration,
        cpu: Duration,
        now: Instant,
    ) -> Option<Event> {
        if let Some(Rest::Again { look, at, mut failed, error }) = self.rest.take() {
            let still = found.unwrap_or_else(|error| {
                failed.push(("".into(), alloc::format!("whether the repair helped is not known: {}", error.report())));
                Vec::new()
            });
            return Some(self.end_inspection(look, Repair::Tried { at, still, failed }, error, now));
        }
        let asked = core::mem::take(&mut self.asked);
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.drifts.handle_inspection_failed(now);
                return Some(Event::NotInspected { error, asked });
            }
        };
        let look = Look { inspection, asked, found, at: now, took, cpu };
        let repair = match self.drifts.take_repair(&look.found, now) {
            None => Repair::None,
            Some(Err(until)) => Repair::HeldBack { until },
            Some(Ok(())) => {
                self.rest = Some(Rest::Repair(look));
                return None;
            }
        };
        Some(self.end_inspection(look, repair, None, now))
    }

    fn handle_repaired(&mut self, outcome: Result<(), ApplyError>, now: Instant) -> Option<Event> {
        let Some(Rest::Repair(look)) = self.rest.take() else { return None };
        self.reconciler.note_repaired(outcome.as_ref(), now);
        let error = outcome.err();
        let mut failed = Vec::new();
        if let Some(error) = &error {
            failed.extend(error.failed.iter().map(|(addr, cause)| (addr.to_string(), cause.report())));
            failed.extend(error.unknown.iter().map(|cause| ("".into(), cause.report())));
        }
        if self.reconciler.expected().is_none() {
            let repair = Repair::Tried { at: now, still: Vec::new(), failed };
            return Some(self.end_inspection(look, repair, error, now));
        }
        self.rest = Some(Rest::Again { look, at: now, failed, error });
        None
    }

    fn end_inspection(&mut self, look: Look, repair: Repair, repair_error: Option<ApplyError>, now: Instant) -> Event {
        let inspected = self.drifts.handle_inspected(look, repair, now);
        Event::Inspected(Inspected { repair_error, ..inspected })
    }

    /// When to step again, unless something happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let retry = self.reconciler.poll_timeout().map(|(at, _)| at);
        [retry, self.inspection_due(), self.told.listing_at].into_iter().flatten().min()
    }
}
