//! The machine between sources of changes and a datapath.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};
use core::{fmt, time::Duration};

use crate::{
    addr::{Family, FrontendAddr, Protocol},
    datapath::{ApplyError, DatapathError, Evicted, Eviction},
    desired::Desired,
    drift::Expected,
    id::HeldIds,
    model::{Change, Claim, Model, ModelError},
    name::{ServiceName, SourceName},
    plan::{Op, Plan, PlanId, Touched},
    state::State,
    time::{Backoff, Instant},
};

mod drains;
mod error;
mod events;
mod in_use;

use drains::Drains;
pub use error::PlanError;
use events::Events;
use in_use::in_use;

/// Turns changes into plans and outcomes into retries, without I/O: the caller carries the plans out and passes the
/// time.
///
/// A [`Runner`](crate::runner::Runner) is that caller, and most programs use it instead. Whoever calls the reconciler
/// goes through these steps:
///
/// 1. [`handle_change`](Self::handle_change) with [`Change::SetNode`], once: translated flows come from an address of
///    the node.
/// 2. [`handle_observed_with`](Self::handle_observed_with), with the state of the datapath and the ids that its flows
///    hold, whenever [`wants_observation`](Self::wants_observation) returns `true`: at first, and when the state became
///    unknown.
/// 3. [`handle_change`](Self::handle_change) for each change.
/// 4. [`poll_plan`](Self::poll_plan), apply, [`handle_applied`](Self::handle_applied), until there is no plan.
/// 5. [`poll_evictions`](Self::poll_evictions), evict, [`handle_evicted`](Self::handle_evicted), until there are none, if
///    the datapath [ends flows](crate::datapath::Capabilities::evicts).
/// 6. [`poll_event`](Self::poll_event), for the changes in the status of frontends, and
///    [`poll_claim`](Self::poll_claim), for services whose addresses changed hands.
/// 7. Again at [`poll_timeout`](Self::poll_timeout).
///
/// If one of the steps 1, 2 and 4 was left out, `poll_plan` says so.
///
/// There are no plans while a source is in its first listing. The state of an earlier process keeps serving meanwhile,
/// and nothing is pruned merely because it has not been listed yet.
#[derive(Clone, Debug)]
pub struct Reconciler {
    model: Model,
    desired: Desired,
    installed: Option<State>,
    listing: BTreeMap<SourceName, bool>,
    has_node: bool,
    dirty: BTreeSet<ServiceName>,
    touched: Touched,
    in_flight: Option<(Plan, Touched)>,
    last_plan: PlanId,
    retries: BTreeMap<FrontendAddr, Retry>,
    observe_at: Option<Instant>,
    observation: Backoff,
    adopted: bool,
    unclaimed: Unclaimed,
    events: Events,
    drains: Drains,
}

/// What becomes of installed frontends that no service claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Unclaimed {
    /// They are removed.
    #[default]
    Go,
    /// The first plan keeps those that it finds.
    ToKeep,
    /// They were kept, or taken over by services.
    Kept,
    /// They were kept, and the next plan removes them.
    ToLetGo,
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
    /// The frontend is as desired.
    Done,
    /// A plan for the frontend is due or under way.
    Pending,
    /// The datapath refused the frontend, and it is tried again.
    Failed {
        /// The cause that the datapath reported.
        cause: String,
        /// When the frontend is tried again.
        retry_at: Instant,
    },
}

impl fmt::Display for FrontendStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Pending => f.write_str("pending"),
            Self::Failed { cause, .. } => write!(f, "refused, and tried again later: {cause}"),
        }
    }
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
            has_node: false,
            dirty: BTreeSet::new(),
            touched: Touched::default(),
            in_flight: None,
            last_plan: PlanId::default(),
            retries: BTreeMap::new(),
            observe_at: None,
            observation: Self::BACKOFF,
            adopted: false,
            unclaimed: Unclaimed::default(),
            events: Events::default(),
            drains: Drains::default(),
        }
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// The desired state, as of the last plan.
    #[must_use]
    pub const fn desired(&self) -> &State {
        self.desired.state()
    }

    /// The state that the datapath is believed to hold; `None` before it was observed.
    #[must_use]
    pub const fn installed(&self) -> Option<&State> {
        self.installed.as_ref()
    }

    /// What an [inspection](crate::datapath::Datapath::inspect) compares the datapath with; `None` before the datapath
    /// was observed and while a plan is under way.
    #[must_use]
    pub fn expected(&self) -> Option<Expected<'_>> {
        let state = self.installed.as_ref().filter(|_| self.in_flight.is_none())?;
        Some(Expected { state, labels: self.desired.labels() })
    }

    /// Handles the outcome of a [repair](crate::datapath::Datapath::repair): a frontend that could not be repaired is
    /// tried again as if a plan had failed for it.
    pub fn handle_repaired(&mut self, outcome: Result<(), ApplyError>, now: Instant) {
        self.note_repaired(outcome.as_ref(), now);
    }

    pub(crate) fn note_repaired(&mut self, outcome: Result<&(), &ApplyError>, now: Instant) {
        let Err(error) = outcome else { return };
        if error.unknown.is_some() {
            self.forget_installed(now);
            return;
        }
        let failed: Vec<_> = error.failed.iter().map(|(addr, _)| *addr).collect();
        for (addr, cause) in &error.failed {
            if let Some(installed) = &mut self.installed {
                installed.frontends.remove(addr);
            }
            self.touched.frontends.insert(*addr);
            self.retry_later(*addr, cause.report(), now);
        }
        self.touch_events(failed);
    }

    /// From now on the state of the datapath is unknown; it is to be observed at `at`.
    fn forget_installed(&mut self, at: Instant) {
        self.touch_all_events();
        self.installed = None;
        self.observe_at = Some(at);
    }

    /// Whether the datapath has to be observed before there can be a plan.
    #[must_use]
    pub fn wants_observation(&self, now: Instant) -> bool {
        self.installed.is_none() && self.observe_at.is_none_or(|at| now >= at)
    }

    /// Handles the observed state of a datapath whose flows hold no ids. The first time, its ids are adopted.
    pub fn handle_observed(&mut self, state: State) {
        self.handle_observed_with(state, HeldIds::default());
    }

    /// Handles the observed state of the datapath and, as of that moment or later, the ids that
    /// [its flows hold](crate::datapath::Datapath::held_ids). The first time, the ids of the state are adopted.
    pub fn handle_observed_with(&mut self, state: State, mut held: HeldIds) {
        if !self.adopted {
            self.desired.adopt(&state);
            self.adopted = true;
        }
        // Flows can be made with these as long as they are installed.
        held.add(&state);
        self.desired.hold(held);
        self.touched.merge(Touched::all(&state, self.desired.state()));
        self.installed = Some(state);
        self.observe_at = None;
        self.touch_all_events();
    }

    /// Handles an observation that failed: the datapath is observed again after a back-off.
    pub fn handle_observe_failed(&mut self, now: Instant) {
        self.observation.fail(now);
        self.observe_at = self.observation.until();
    }

    /// Handles that others changed what the datapath holds. What kept it from being observed may be over, so that the wait
    /// lasts for [`MIN_RETRY_DELAY`](Self::MIN_RETRY_DELAY) from `now` at most, however often it failed.
    pub(crate) fn handle_suspicion(&mut self, now: Instant) {
        let soon = now + Self::MIN_RETRY_DELAY;
        self.observe_at = self.observe_at.map(|at| at.min(soon));
    }

    /// Handles a change.
    ///
    /// # Errors
    /// When the model refuses the change; see [`Model::apply`]. Also when [`Change::InitDone`] names a source without
    /// [`Change::InitStart`]. A service that is refused may be served later, and
    /// [`poll_claim`](Self::poll_claim) then says so. A failure of the datapath is never an error here.
    pub fn handle_change(&mut self, change: Change) -> Result<(), ModelError> {
        match &change {
            Change::InitStart(source) => {
                self.listing.insert(source.clone(), false);
            }
            Change::InitDone(source) => match self.listing.get_mut(source) {
                Some(done) => *done = true,
                None => return Err(self.unknown_source(source.clone())),
            },
            Change::SetNode(_) => {
                self.has_node = true;
                self.touched.node = true;
            }
            Change::KeepUnclaimed(keeps) => {
                self.unclaimed = match (keeps, self.unclaimed) {
                    (true, Unclaimed::Go) if self.last_plan == PlanId::default() => Unclaimed::ToKeep,
                    (true, Unclaimed::ToLetGo) => Unclaimed::Kept,
                    (false, Unclaimed::ToKeep) => Unclaimed::Go,
                    (false, Unclaimed::Kept) => Unclaimed::ToLetGo,
                    (_, as_before) => as_before,
                };
            }
            Change::UpsertService(_)
            | Change::RemoveService(_)
            | Change::ReplaceEndpoints(_)
            | Change::RemoveEndpoints(_)
            | Change::SetZone(_)
            | Change::SetNetworks(_)
            | Change::SetLocalAddresses(_)
            | Change::SetHealth(_)
            | Change::RestoreHealth(_)
            | Change::ForgetHealth(_) => {}
        }
        self.dirty.extend(self.model.apply(change)?);
        Ok(())
    }

    /// The next service that is served after all, or is refused from now on, without a change of its own; see
    /// [`Model::poll_claim`].
    pub fn poll_claim(&mut self) -> Option<(ServiceName, Claim)> {
        self.model.poll_claim()
    }

    /// The families of frontends of which the node has no address. A source cannot be translated to one, so flows are
    /// lost whose backend would answer past the node.
    #[must_use]
    pub fn families_without_node_address(&self) -> Vec<Family> {
        let frontends = &self.desired().frontends;
        // They are in the order of their addresses, IPv4 first.
        let ends = [frontends.first_key_value(), frontends.last_key_value()];
        let mut families: Vec<Family> = ends.into_iter().flatten().map(|(addr, _)| Family::of(addr.ip)).collect();
        families.dedup();
        families.retain(|&family| !self.model.node().ips.iter().any(|&ip| Family::of(ip) == family));
        families
    }

    fn unknown_source(&self, source_name: SourceName) -> ModelError {
        let known: Vec<String> = self.listing.keys().map(|name| format!("`{name}`")).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        ModelError::UnknownSource { source_name, known }
    }

    /// The plan whose outcome is not known yet.
    pub(crate) fn in_flight(&self) -> Option<&Plan> {
        self.in_flight.as_ref().map(|(plan, _)| plan)
    }

    /// Frontends that are kept as they were found, because [`Change::KeepUnclaimed`] says so and no service claims them.
    #[must_use]
    pub const fn kept(&self) -> &BTreeSet<FrontendAddr> {
        self.desired.kept()
    }

    /// Sources that are still in their first listing.
    pub fn listing(&self) -> impl Iterator<Item = &SourceName> {
        self.listing.iter().filter(|(_, done)| !**done).map(|(source, _)| source)
    }

    /// Whether a source is still in its first listing.
    #[must_use]
    pub fn is_listing(&self) -> bool {
        self.listing.values().any(|done| !done)
    }

    /// The next plan, if there is something to do. It covers all changes since the last one.
    ///
    /// # Errors
    /// When the caller left out what has to come first, so that there would never be a plan. The reconciler is as
    /// before: do what the error says, and call again.
    pub fn poll_plan(&mut self, now: Instant) -> Result<Option<Plan>, PlanError> {
        if let Some((plan, _)) = &self.in_flight {
            return Err(PlanError::NotApplied(plan.id));
        }
        if self.wants_observation(now) {
            return Err(PlanError::NotObserved);
        }
        if self.is_listing() {
            return Ok(None);
        }
        if !self.has_node {
            return Err(PlanError::NoNode);
        }
        Ok(self.next_plan(now))
    }

    fn next_plan(&mut self, now: Instant) -> Option<Plan> {
        if !self.adopted {
            // What gets an id now would take it from what is found later.
            return None;
        }
        self.update_desired(now);
        let mut touched = core::mem::take(&mut self.touched);
        self.touch_events(touched.frontends.iter().copied());
        let deferred = self.defer(&mut touched, now);
        let Some(installed) = &self.installed else {
            // Without an installed state there is nothing to compare with; the keys wait for the observation.
            touched.merge(deferred);
            self.touched = touched;
            return None;
        };
        let mut plan = self.desired.plan(installed, &touched);
        // A refused frontend still points to its old set in the datapath, although nothing desired does.
        if !deferred.is_empty() {
            let kept = in_use(installed, deferred.frontends.iter());
            plan.ops.retain(|op| !kept.needs(op));
        }
        self.touched = deferred;
        let planned: BTreeSet<_> = plan.ops.iter().filter_map(Op::frontend).collect();
        // A retry that is due and needs no operation has become pointless: the frontend is as desired, or gone.
        self.retries.retain(|addr, retry| !retry.is_due(now) || planned.contains(addr));
        if plan.is_empty() {
            self.observation.reset();
            return None;
        }
        self.last_plan.0 += 1;
        plan.id = self.last_plan;
        self.in_flight = Some((plan.clone(), touched));
        Some(plan)
    }

    /// Handles the outcome of a plan. The outcome of any plan but the one under way is ignored.
    pub fn handle_applied(&mut self, id: PlanId, outcome: Result<(), ApplyError>, now: Instant) {
        self.note_applied(id, outcome.as_ref(), now);
    }

    pub(crate) fn note_applied(&mut self, id: PlanId, outcome: Result<&(), &ApplyError>, now: Instant) {
        let Some((plan, touched)) = self.in_flight.take_if(|(plan, _)| plan.id == id) else { return };
        let failed = match outcome {
            Ok(_) => BTreeMap::new(),
            Err(error) => {
                // The next plan compares everything again: what failed, and removals that the datapath withheld because
                // of it.
                self.touched.merge(touched.clone());
                if error.unknown.is_some() {
                    // A datapath that loses its state with each plan gets ever more time.
                    self.observation.fail(now);
                    self.forget_installed(self.observation.until().unwrap_or(now));
                    return;
                }
                error.failed.iter().map(|(addr, cause)| (*addr, cause.report())).collect()
            }
        };
        self.observation.reset();
        self.take_over(&plan, &failed);
        if self.model.capabilities().evicts {
            self.drains.note_removed(plan.ops.iter().filter_map(|op| match op {
                Op::RemoveFrontend(addr) if !failed.contains_key(addr) => Some(*addr),
                _ => None,
            }));
        }
        for (addr, cause) in failed {
            self.retry_later(addr, cause, now);
        }
        self.touch_events(touched.frontends);
    }

    /// The flows that are to end now, if there are any and no plan has to come first. Until their outcome is
    /// [handled](Self::handle_evicted), the same come again.
    ///
    /// - A UDP flow ends when its backend serves its frontend no longer, or when the frontend goes.
    /// - A flow of another protocol ends as the [drain policy](crate::service::DrainPolicy) of its service says. Time
    ///   counts from the plan that kept new flows off the backend. It starts anew with another policy and with another
    ///   reconciler, which does not know since when an installed frontend has left a backend.
    pub fn poll_evictions(&mut self, now: Instant) -> Option<Vec<Eviction>> {
        if self.in_flight.is_some() || self.installed.is_none() || self.is_listing() {
            return None;
        }
        let (touched, retries) = (&self.touched.frontends, &self.retries);
        self.drains.poll(now, |addr| !touched.contains(addr) && !retries.contains_key(addr))
    }

    /// Until when evictions that are due wait: after one that failed, or for nine times as long as the last one took, so
    /// that plans are not held up.
    #[must_use]
    pub fn evictions_wait_until(&self) -> Option<Instant> {
        self.drains.waits_until()
    }

    /// Handles the outcome of the last evictions: if nothing is known of them, they come again after a back-off.
    pub fn handle_evicted(&mut self, outcome: Result<&Evicted, &DatapathError>, now: Instant) {
        self.drains.handle(outcome.err(), now);
    }

    /// The next frontend whose status has changed since the last poll, with its status; `None` for a frontend that is
    /// gone. Of several changes between two polls only the last one is reported.
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

    /// Whether the frontend is desired or still in the datapath.
    fn knows(&self, addr: &FrontendAddr) -> bool {
        let is_installed = |state: &State| state.frontends.contains_key(addr);
        self.desired().frontends.contains_key(addr) || self.installed.as_ref().is_some_and(is_installed)
    }

    fn retry_later(&mut self, addr: FrontendAddr, cause: String, now: Instant) {
        let mut backoff = self.retries.get(&addr).map_or(Self::BACKOFF, |retry| retry.backoff);
        backoff.fail(now);
        self.retries.insert(addr, Retry { backoff, cause });
    }

    fn take_over(&mut self, plan: &Plan, failed: &BTreeMap<FrontendAddr, String>) {
        let Some(installed) = &mut self.installed else { return };
        if failed.is_empty() {
            for op in &plan.ops {
                installed.apply_op(op);
            }
        } else {
            // As the datapath does: an object that a refused frontend still needs is not removed.
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
        let retry = retry_at.map(|at| (at, "retry a refused frontend"));
        let drained = self.drains.poll_timeout().map(|at| (at, "end flows that have drained"));
        retry.into_iter().chain(drained).min()
    }

    /// The status of the frontend `addr`.
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

    /// Whether the datapath is believed to hold the whole desired state.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.is_listing()
            && self.has_node
            && self.dirty.is_empty()
            && !matches!(self.unclaimed, Unclaimed::ToKeep | Unclaimed::ToLetGo)
            && self.in_flight.is_none()
            && self.retries.is_empty()
            && self.installed.is_some()
            && self.touched.is_empty()
    }

    /// Ids run out after two billion changes. Then the datapath is asked which ones its flows still hold, and the services
    /// left over are tried again.
    fn update_desired(&mut self, now: Instant) {
        let dirty = core::mem::take(&mut self.dirty);
        match self.desired.update(&self.model, &dirty) {
            Ok(touched) => self.touched.merge(touched),
            Err(_) => {
                self.dirty = dirty;
                self.observation.fail(now);
                self.forget_installed(self.observation.until().unwrap_or(now));
            }
        }
        for addr in self.desired.take_staying_touched() {
            // A connection outlives its frontend, and datagrams do not.
            let is_installed = self.installed.as_ref().is_none_or(|state| state.frontends.contains_key(&addr));
            let inherits = is_installed || addr.protocol != Protocol::Udp;
            self.drains.update(addr, self.desired.staying(&addr), inherits, now);
        }
        self.drains.advance(now);
        match (self.unclaimed, &self.installed) {
            (Unclaimed::ToKeep, Some(installed)) => {
                self.touched.merge(self.desired.keep(installed));
                self.unclaimed = Unclaimed::Kept;
            }
            (Unclaimed::ToLetGo, _) => {
                self.touched.merge(self.desired.let_go());
                self.unclaimed = Unclaimed::Go;
            }
            _ => {}
        }
    }

    /// Moves the frontends out of `touched` that are still in their back-off.
    ///
    /// Sets and backends stay in `touched` and are deferred too: this plan may have to add them, while their removal
    /// may have to wait for a later plan, after the deferred frontends have moved.
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
