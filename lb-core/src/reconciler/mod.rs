//! The machine between sources and a datapath.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::time::Duration;

use crate::{
    addr::FrontendAddr,
    datapath::ApplyError,
    desired::Desired,
    drift::Expected,
    model::{Change, Model, ModelError},
    name::{ServiceName, SourceName},
    plan::{Op, Plan, PlanId, Touched},
    state::State,
    time::{Backoff, Instant},
};

mod events;
mod in_use;

use events::Events;
use in_use::in_use;

/// Turns changes into plans and outcomes into retries. No I/O: the caller carries the plans out and tells the time.
///
/// 1. [`handle_observed`](Self::handle_observed) once, with what the datapath holds; again when
///    [`wants_observation`](Self::wants_observation) says so.
/// 2. [`handle_change`](Self::handle_change) for each change.
/// 3. [`poll_plan`](Self::poll_plan), apply, [`handle_applied`](Self::handle_applied), until there is no plan.
/// 4. [`poll_event`](Self::poll_event), to tell whoever wants to know what became of frontends.
/// 5. Again at [`poll_timeout`](Self::poll_timeout).
///
/// While a source is in its first listing there are no plans: what an earlier process installed keeps serving, and
/// nothing is pruned because it has not been listed yet.
#[derive(Clone, Debug)]
pub struct Reconciler {
    model: Model,
    desired: Desired,
    installed: Option<State>,
    listing: BTreeMap<SourceName, bool>,
    dirty: BTreeSet<ServiceName>,
    touched: Touched,
    in_flight: Option<(Plan, Touched)>,
    last_plan: PlanId,
    retries: BTreeMap<FrontendAddr, Retry>,
    observe_at: Option<Instant>,
    observation: Backoff,
    adopted: bool,
    events: Events,
}

#[derive(Clone, Debug)]
struct Retry {
    backoff: Backoff,
    cause: String,
}

impl Retry {
    fn is_due(&self, now: Instant) -> bool {
        self.backoff.is_over(now)
    }
}

/// Whether a frontend is in the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrontendStatus {
    /// As desired.
    Done,
    /// A plan is due or under way.
    Pending,
    /// The datapath refused it; it is tried again.
    Failed {
        /// What the datapath said.
        cause: String,
        /// When it is tried again.
        retry_at: Instant,
    },
}

impl Reconciler {
    /// First wait before a refused frontend is tried again; it doubles up to
    /// [`MAX_RETRY_DELAY`](Self::MAX_RETRY_DELAY).
    pub const MIN_RETRY_DELAY: Duration = Duration::from_millis(200);
    /// Longest wait before a refused frontend is tried again.
    pub const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
    /// The back-off of refused frontends and failed observations.
    pub const BACKOFF: Backoff = Backoff::new(Self::MIN_RETRY_DELAY, Self::MAX_RETRY_DELAY);

    /// A reconciler for `model`, which knows the datapath's capabilities.
    #[must_use]
    pub fn new(model: Model) -> Self {
        Self {
            model,
            desired: Desired::default(),
            installed: None,
            listing: BTreeMap::new(),
            dirty: BTreeSet::new(),
            touched: Touched::default(),
            in_flight: None,
            last_plan: PlanId::default(),
            retries: BTreeMap::new(),
            observe_at: None,
            observation: Self::BACKOFF,
            adopted: false,
            events: Events::default(),
        }
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// What the datapath should hold, as of the last plan.
    #[must_use]
    pub const fn desired(&self) -> &State {
        self.desired.state()
    }

    /// What the datapath is believed to hold; `None` before it was observed.
    #[must_use]
    pub const fn installed(&self) -> Option<&State> {
        self.installed.as_ref()
    }

    /// What an [inspection](crate::datapath::Datapath::inspect) has to compare with; `None` before the datapath was
    /// observed and while a plan is under way.
    #[must_use]
    pub fn expected(&self) -> Option<Expected<'_>> {
        let state = self.installed.as_ref().filter(|_| self.in_flight.is_none())?;
        Some(Expected { state, labels: self.desired.labels() })
    }

    /// Takes in what became of a [repair](crate::datapath::Datapath::repair): a frontend that could not be repaired is
    /// tried again as if a plan had failed for it.
    pub fn handle_repaired(&mut self, outcome: Result<(), ApplyError>, now: Instant) {
        let Err(error) = outcome else { return };
        if error.unknown.is_some() {
            self.forget_installed(now);
            return;
        }
        let failed: Vec<_> = error.failed.iter().map(|(addr, _)| *addr).collect();
        for (addr, cause) in error.failed {
            if let Some(installed) = &mut self.installed {
                installed.frontends.remove(&addr);
            }
            self.touched.frontends.insert(addr);
            self.retry_later(addr, cause.report(), now);
        }
        self.touch_events(failed);
    }

    /// What the datapath holds is unknown from now on.
    fn forget_installed(&mut self, now: Instant) {
        self.touch_all_events();
        self.installed = None;
        self.observe_at = Some(now);
    }

    /// Whether the datapath has to be observed before there can be a plan.
    #[must_use]
    pub fn wants_observation(&self, now: Instant) -> bool {
        self.installed.is_none() && self.observe_at.is_none_or(|at| now >= at)
    }

    /// Takes in what the datapath holds; the first time, its ids are adopted.
    pub fn handle_observed(&mut self, state: State) {
        if !self.adopted {
            self.desired.adopt(&state);
            self.adopted = true;
        }
        self.touched.merge(Touched::all(&state, self.desired.state()));
        self.installed = Some(state);
        self.observe_at = None;
        self.observation.reset();
        self.touch_all_events();
    }

    /// The datapath could not be observed: asks again later.
    pub fn handle_observe_failed(&mut self, now: Instant) {
        self.observation.fail(now);
        self.observe_at = self.observation.until();
    }

    /// Takes a change in.
    ///
    /// # Errors
    /// When the model refuses it; see [`Model::apply`]. What the datapath makes of a change is never an error here.
    pub fn handle_change(&mut self, change: Change) -> Result<(), ModelError> {
        match &change {
            Change::InitStart(source) => {
                self.listing.insert(source.clone(), false);
            }
            Change::InitDone(source) => {
                self.listing.insert(source.clone(), true);
            }
            Change::SetNode(_) => self.touched.node = true,
            Change::UpsertService(_)
            | Change::RemoveService(_)
            | Change::ReplaceEndpoints(_)
            | Change::RemoveEndpoints(_)
            | Change::SetZone(_)
            | Change::SetHealth(_)
            | Change::RestoreHealth(_)
            | Change::ForgetHealth(_) => {}
        }
        self.dirty.extend(self.model.apply(change)?);
        Ok(())
    }

    /// Whether a source is still in its first listing.
    #[must_use]
    pub fn is_listing(&self) -> bool {
        self.listing.values().any(|done| !done)
    }

    /// The next plan, if there is something to do and no plan is under way. Changes since the last one coalesce.
    pub fn poll_plan(&mut self, now: Instant) -> Option<Plan> {
        if self.is_listing() || self.in_flight.is_some() {
            return None;
        }
        self.update_desired();
        let mut touched = core::mem::take(&mut self.touched);
        self.touch_events(touched.frontends.iter().copied());
        let deferred = self.defer(&mut touched, now);
        let Some(installed) = &self.installed else {
            touched.merge(deferred);
            self.touched = touched;
            return None;
        };
        let mut plan = self.desired.plan(installed, &touched);
        if !deferred.is_empty() {
            let kept = in_use(installed, deferred.frontends.iter());
            plan.ops.retain(|op| !kept.needs(op));
        }
        self.touched = deferred;
        let planned: BTreeSet<_> = plan.ops.iter().filter_map(Op::frontend).collect();
        self.retries.retain(|addr, retry| !retry.is_due(now) || planned.contains(addr));
        if plan.is_empty() {
            return None;
        }
        self.last_plan.0 += 1;
        plan.id = self.last_plan;
        self.in_flight = Some((plan.clone(), touched));
        Some(plan)
    }

    /// Takes in what became of a plan. Outcomes of other plans than the one under way are ignored.
    pub fn handle_applied(&mut self, id: PlanId, outcome: Result<(), ApplyError>, now: Instant) {
        let Some((plan, touched)) = self.in_flight.take_if(|(plan, _)| plan.id == id) else { return };
        let failed = match outcome {
            Ok(()) => BTreeMap::new(),
            Err(error) => {
                self.touched.merge(touched.clone());
                if error.unknown.is_some() {
                    self.forget_installed(now);
                    return;
                }
                error.failed.into_iter().map(|(addr, cause)| (addr, cause.report())).collect()
            }
        };
        self.note_applied(&plan, &failed);
        for (addr, cause) in failed {
            self.retry_later(addr, cause, now);
        }
        self.touch_events(touched.frontends);
    }

    /// The next frontend whose status is another one than was told before, and that status; `None` if it is gone.
    /// However often a status changes between two polls, only the last one is told.
    pub fn poll_event(&mut self) -> Option<(FrontendAddr, Option<FrontendStatus>)> {
        let mut events = core::mem::take(&mut self.events);
        let event = events.poll(|addr| self.knows(addr).then(|| self.status(addr)));
        self.events = events;
        event
    }

    fn touch_events(&mut self, frontends: impl IntoIterator<Item = FrontendAddr>) {
        let mut events = core::mem::take(&mut self.events);
        events.touch(frontends, |addr| self.knows(addr));
        self.events = events;
    }

    fn touch_all_events(&mut self) {
        let desired = self.desired().frontends.keys();
        let installed = self.installed.iter().flat_map(|state| state.frontends.keys());
        let all: Vec<_> = desired.chain(installed).copied().collect();
        self.touch_events(all);
    }

    /// Whether there is such a frontend, or still is in the datapath.
    fn knows(&self, addr: &FrontendAddr) -> bool {
        let is_installed = |state: &State| state.frontends.contains_key(addr);
        self.desired().frontends.contains_key(addr) || self.installed.as_ref().is_some_and(is_installed)
    }

    fn retry_later(&mut self, addr: FrontendAddr, cause: String, now: Instant) {
        let mut backoff = self.retries.get(&addr).map_or(Self::BACKOFF, |retry| retry.backoff);
        backoff.fail(now);
        self.retries.insert(addr, Retry { backoff, cause });
    }

    fn note_applied(&mut self, plan: &Plan, failed: &BTreeMap<FrontendAddr, String>) {
        let Some(installed) = &mut self.installed else { return };
        if failed.is_empty() {
            for op in &plan.ops {
                installed.apply_op(op);
            }
        } else {
            let took = plan.ops.iter().filter(|op| op.frontend().is_none_or(|addr| !failed.contains_key(&addr)));
            installed.apply_guarded(took);
        }
        for addr in plan.ops.iter().filter_map(Op::frontend).filter(|addr| !failed.contains_key(addr)) {
            self.retries.remove(&addr);
        }
    }

    /// When to poll again, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.installed.is_none() {
            return self.observe_at.map(|at| (at, "observe the datapath"));
        }
        let retry_at = self.retries.values().filter_map(|retry| retry.backoff.until()).min();
        retry_at.map(|at| (at, "retry a refused frontend"))
    }

    /// Whether `addr` is in the datapath.
    #[must_use]
    pub fn status(&self, addr: &FrontendAddr) -> FrontendStatus {
        if let Some(Retry { backoff, cause }) = self.retries.get(addr)
            && let Some(retry_at) = backoff.until()
        {
            return FrontendStatus::Failed { cause: cause.clone(), retry_at };
        }
        let here = self.installed.as_ref().and_then(|state| state.frontends.get(addr));
        let in_flight = self.in_flight.as_ref().is_some_and(|(_, touched)| touched.frontends.contains(addr));
        let settled = !in_flight && here.is_some() && here == self.desired().frontends.get(addr);
        if settled { FrontendStatus::Done } else { FrontendStatus::Pending }
    }

    /// Whether everything is in the datapath, as far as known.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.is_listing()
            && self.dirty.is_empty()
            && self.in_flight.is_none()
            && self.retries.is_empty()
            && self.installed.is_some()
            && self.touched.is_empty()
    }

    /// Ids run out only after four billion live objects; the services left over stay dirty and are tried again.
    fn update_desired(&mut self) {
        let dirty = core::mem::take(&mut self.dirty);
        match self.desired.update(&self.model, &dirty) {
            Ok(touched) => self.touched.merge(touched),
            Err(_) => {
                self.dirty = dirty;
                if let Some(installed) = &self.installed {
                    self.touched.merge(Touched::all(installed, self.desired.state()));
                }
            }
        }
    }

    /// Takes the frontends out of `touched` whose time to be tried again has not come, with the sets and backends
    /// that may go only after them.
    fn defer(&mut self, touched: &mut Touched, now: Instant) -> Touched {
        let waiting: BTreeSet<FrontendAddr> =
            self.retries.iter().filter(|(_, retry)| !retry.is_due(now)).map(|(&addr, _)| addr).collect();
        if waiting.is_empty() {
            return Touched::default();
        }
        let (later, now): (BTreeSet<_>, BTreeSet<_>) =
            touched.frontends.iter().copied().partition(|addr| waiting.contains(addr));
        touched.frontends = now;
        if later.is_empty() {
            return Touched::default();
        }
        Touched { node: false, backends: touched.backends.clone(), sets: touched.sets.clone(), frontends: later }
    }
}
