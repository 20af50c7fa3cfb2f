//! Flows that are to end, and when.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::Reconciler;
use crate::{
    addr::{BackendAddr, FrontendAddr, Protocol, Scope},
    datapath::{DatapathError, Eviction},
    desired::Staying,
    service::DrainPolicy,
    time::{Backoff, Instant},
};

/// Decides when which flows end.
#[derive(Clone, Debug)]
pub(crate) struct Drains {
    frontends: BTreeMap<FrontendAddr, Drain>,
    /// When something may be due.
    deadlines: BTreeSet<(Instant, FrontendAddr)>,
    /// Frontends, without their scope, of which flows are to end now.
    due: BTreeSet<FrontendAddr>,
    in_flight: Vec<Eviction>,
    /// When those in flight were first asked for.
    began: Instant,
    retry: Backoff,
    /// No eviction comes before.
    paused_until: Instant,
    /// Whether that time has come: evictions that are still due wait for plans, and not for a time.
    is_over: bool,
}

/// How many times as long as an eviction took the datapath is left to other work: whoever ends flows may have to look at
/// every flow, however few of them end.
const PAUSE: u32 = 9;

/// The flows of one frontend.
#[derive(Clone, Debug)]
struct Drain {
    staying: Staying,
    /// Backends that have left, and until when their flows stay.
    leaving: BTreeMap<BackendAddr, Instant>,
    /// Until when flows stay to a backend of which nothing is known: it left before the frontend was known.
    unknown: Option<Instant>,
}

impl Default for Drains {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            due: BTreeSet::new(),
            in_flight: Vec::new(),
            began: Instant::default(),
            retry: Reconciler::BACKOFF,
            paused_until: Instant::default(),
            is_over: true,
        }
    }
}

impl Drains {
    /// Takes in which flows of a frontend stay from now on; `None`: all of them, or there is no such frontend.
    /// `inherits` says that the frontend may have flows that began before.
    pub(crate) fn update(&mut self, addr: FrontendAddr, new: Option<&Staying>, inherits: bool, now: Instant) {
        let Some(new) = new else {
            self.frontends.remove(&addr);
            return;
        };
        let until = end(new.policy, now);
        let known = self.frontends.get(&addr);
        let drain = match known {
            Some(drain) if drain.staying.policy == new.policy => drain.next(new, until),
            Some(drain) => drain.anew(new, until),
            None => Drain { staying: new.clone(), leaving: BTreeMap::new(), unknown: until.filter(|_| inherits) },
        };
        if drain.ends().any(|at| Some(at) == until) {
            self.deadlines.extend(until.map(|at| (at, addr)));
        }
        self.frontends.insert(addr, drain);
    }

    /// Frontends are gone: their connections go on, and their UDP flows end.
    pub(crate) fn note_removed(&mut self, frontends: impl Iterator<Item = FrontendAddr>) {
        self.due.extend(frontends.filter(|addr| addr.protocol == Protocol::Udp).map(|addr| scopes(addr)[0]));
    }

    /// The flows that are to end, of frontends that `settled` says are in the datapath as desired.
    pub(crate) fn poll(&mut self, now: Instant, settled: impl Fn(&FrontendAddr) -> bool) -> Option<Vec<Eviction>> {
        if self.in_flight.is_empty() && self.retry.is_over(now) && self.paused_until <= now {
            self.advance(now);
            self.is_over = true;
            self.began = now;
            let settled = |addr: &FrontendAddr| scopes(*addr).iter().all(&settled);
            let (now, later) = core::mem::take(&mut self.due).into_iter().partition(settled);
            self.due = later;
            let now: BTreeSet<FrontendAddr> = now;
            self.in_flight = now.into_iter().filter_map(|addr| self.eviction(addr)).collect();
        }
        (!self.in_flight.is_empty()).then(|| self.in_flight.clone())
    }

    /// Handles how the last evictions failed, if they did.
    pub(crate) fn handle(&mut self, error: Option<&DatapathError>, now: Instant) {
        let evictions = core::mem::take(&mut self.in_flight);
        self.paused_until = now + now.since(self.began).saturating_mul(PAUSE);
        self.is_over = false;
        match error {
            Some(error) if error.is_retryable() => {
                self.due.extend(evictions.into_iter().map(|eviction| eviction.frontend));
                self.retry.fail(now);
            }
            Some(_) | None => self.retry.reset(),
        }
    }

    /// When flows are next to end.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        first.into_iter().chain(self.waits_until()).min()
    }

    /// Until when evictions that are due wait, if some do.
    pub(crate) fn waits_until(&self) -> Option<Instant> {
        let until = self.retry.until().into_iter().chain([self.paused_until]).max();
        until.filter(|_| !self.due.is_empty() && !self.is_over)
    }

    /// Makes due what has drained by now.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some((at, addr)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, addr));
            let Some(drain) = self.frontends.get_mut(&addr) else { continue };
            if drain.ends().any(|end| end <= now) {
                drain.leaving.retain(|_, until| *until > now);
                drain.unknown = drain.unknown.filter(|until| *until > now);
                self.due.insert(scopes(addr)[0]);
            }
        }
    }

    /// What ends of a frontend that is due: the flows that stay in neither scope.
    fn eviction(&self, addr: FrontendAddr) -> Option<Eviction> {
        let drains: Vec<&Drain> = scopes(addr).iter().filter_map(|addr| self.frontends.get(addr)).collect();
        if drains.is_empty() && addr.protocol != Protocol::Udp {
            // All of them stay after all.
            return None;
        }
        let keeps = drains.iter().flat_map(|drain| drain.staying.backends.iter().chain(drain.leaving.keys()));
        Some(Eviction { frontend: addr, keeps: keeps.copied().collect() })
    }
}

impl Drain {
    /// The same after backends came or went; those that went keep their flows until `until`.
    fn next(&self, new: &Staying, until: Option<Instant>) -> Self {
        let gone = self.staying.backends.difference(&new.backends);
        let gone = gone.filter_map(|backend| Some((*backend, until?)));
        let mut leaving = self.leaving.clone();
        leaving.extend(gone);
        leaving.retain(|backend, _| !new.backends.contains(backend));
        Self { staying: new.clone(), leaving, unknown: self.unknown }
    }

    /// The same under another policy, whose time begins now.
    fn anew(&self, new: &Staying, until: Option<Instant>) -> Self {
        let mut drain = self.next(new, until);
        drain.leaving.values_mut().for_each(|end| *end = until.unwrap_or(*end));
        Self { unknown: until, ..drain }
    }

    /// When flows end.
    fn ends(&self) -> impl Iterator<Item = Instant> {
        self.leaving.values().copied().chain(self.unknown)
    }
}

/// The end of a flow whose backend leaves now; `None` if there is none.
fn end(policy: DrainPolicy, now: Instant) -> Option<Instant> {
    match policy {
        DrainPolicy::Keep => None,
        DrainPolicy::For(time) => Some(now + time),
        DrainPolicy::Cut => Some(now),
    }
}

/// A frontend in each scope.
fn scopes(addr: FrontendAddr) -> [FrontendAddr; 2] {
    [Scope::External, Scope::Internal].map(|scope| FrontendAddr { scope, ..addr })
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    #[test]
    fn evictions_that_wait_for_a_plan_are_no_time_out_that_has_passed() {
        let at = |seconds| Instant::new(Duration::from_secs(seconds));
        let frontend = FrontendAddr::new([10, 96, 0, 1].into(), 53, Protocol::Udp);
        let mut drains = Drains::default();
        drains.note_removed([frontend].into_iter());
        assert!(drains.poll(at(1), |_| true).is_some());
        drains.handle(None, at(2));
        drains.note_removed([frontend].into_iter());
        assert_eq!(drains.poll_timeout(), Some(at(11)), "nine times as long as it took");
        assert_eq!(drains.poll(at(11), |_| false), None, "the datapath has not removed it");
        assert_eq!(drains.poll_timeout(), None, "whoever waits for this time would not sleep");
        assert!(drains.poll(at(12), |_| true).is_some());
    }
}
