//! What is said on the ports of health checks, as long as nothing else is known. Shared by threads, and pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_core::{name::ServiceName, time::Instant};
use serde::Serialize;

/// How long changes may wait for the datapath until a node counts as unhealthy: twice the 30 s after which kube-proxy
/// tries a failed change again.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The answers of health checks, by port.
#[derive(Default)]
pub(crate) struct Board(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    checks: BTreeMap<u16, Check>,
    /// Since when the thread of the datapath has been at work, or the datapath unknown, without a break.
    busy_since: Option<Instant>,
    touched: Touched,
    problems: BTreeMap<ServiceName, String>,
}

/// Services whose answers may be old.
enum Touched {
    These(BTreeSet<ServiceName>),
    All,
}

impl Default for Touched {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

/// What is known of the health check of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) service: ServiceName,
    /// Ready endpoints on this node, as of when the datapath last had them.
    pub(crate) endpoints: usize,
    /// Since when the datapath has not had the service as it should be.
    pub(crate) behind_since: Option<Instant>,
}

/// An answer: the body as kube-proxy has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    service: Named,
    pub(crate) local_endpoints: usize,
    pub(crate) service_proxy_healthy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Named {
    namespace: String,
    name: String,
}

impl Answer {
    /// Whether a load balancer is to send traffic of the service to this node.
    pub(crate) fn is_positive(&self) -> bool {
        self.service_proxy_healthy && self.local_endpoints > 0
    }

    /// The status of HTTP.
    pub(crate) fn status(&self) -> u16 {
        if self.is_positive() { 200 } else { 503 }
    }
}

impl Board {
    /// What to say on `port` at `now`; `None` if nobody's health check is there.
    pub(crate) fn answer(&self, port: u16, now: Instant) -> Option<Answer> {
        let inner = self.inner();
        let check = inner.checks.get(&port)?;
        let is_late = |since: Option<Instant>| since.is_some_and(|since| now.since(since) > PATIENCE);
        Some(Answer {
            service: Named { namespace: check.service.namespace().into(), name: check.service.name().into() },
            local_endpoints: check.endpoints,
            service_proxy_healthy: !is_late(inner.busy_since) && !is_late(check.behind_since),
        })
    }

    /// The same for the health check of `service` at `port`, and why nobody answers there.
    pub(crate) fn of(&self, service: &ServiceName, port: u16, now: Instant) -> (Option<Answer>, Option<String>) {
        let (is_owner, problem) = {
            let inner = self.inner();
            (inner.checks.get(&port).is_some_and(|it| it.service == *service), inner.problems.get(service).cloned())
        };
        (self.answer(port, now).filter(|_| is_owner), problem)
    }

    /// The service whose health check is at `port`.
    pub(crate) fn service_at(&self, port: u16) -> Option<ServiceName> {
        self.inner().checks.get(&port).map(|check| check.service.clone())
    }

    /// Why health checks of services are not answered.
    pub(crate) fn problems(&self) -> BTreeMap<ServiceName, String> {
        self.inner().problems.clone()
    }

    /// The answers of these services may be old.
    pub(crate) fn touch(&self, services: impl IntoIterator<Item = ServiceName>) {
        if let Touched::These(touched) = &mut self.inner().touched {
            touched.extend(services);
        }
    }

    /// Every answer may be old.
    pub(crate) fn touch_all(&self) {
        self.inner().touched = Touched::All;
    }

    /// The datapath begins to work, and is known or not when it ends.
    pub(crate) fn set_busy(&self, is_busy: bool, now: Instant) {
        let busy_since = &mut self.inner().busy_since;
        *busy_since = is_busy.then(|| busy_since.unwrap_or(now));
    }

    /// The services that were touched since this was last called; `None` if all were.
    pub(super) fn take_touched(&self) -> Option<BTreeSet<ServiceName>> {
        match std::mem::take(&mut self.inner().touched) {
            Touched::These(services) => Some(services),
            Touched::All => None,
        }
    }

    /// Says this on `port` from now on.
    pub(super) fn set(&self, port: u16, check: Check) {
        let (service, endpoints) = (check.service.clone(), check.endpoints);
        let before = self.inner().checks.insert(port, check);
        let had = before.filter(|before| before.service == service).map(|before| before.endpoints);
        if had.is_none_or(|had| (had > 0) != (endpoints > 0)) {
            let says = if endpoints > 0 { 200 } else { 503 };
            tracing::info!(%service, port, before = had, endpoints, says, "the answer of a health check changed");
        }
    }

    /// The datapath has not had `service`, whose health check is at `port`, as it should be since then.
    pub(super) fn set_behind(&self, port: u16, service: &ServiceName, since: Instant) {
        let mut inner = self.inner();
        let check = inner.checks.get_mut(&port).filter(|check| check.service == *service);
        check.into_iter().for_each(|check| check.behind_since = Some(since));
    }

    pub(super) fn remove(&self, port: u16) {
        self.inner().checks.remove(&port);
    }

    pub(super) fn set_problems(&self, problems: BTreeMap<ServiceName, String>) {
        self.inner().problems = problems;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
