//! Pools and addresses, in the words of the API.

use std::{collections::BTreeMap, net::IpAddr};

use lb_ipam::{
    AddressReport, AddressState, Answer, Counts, Expression, Ledger, Operator, Pool, PoolName, PoolProblem, PoolStatus,
    ReservedBy, Selector, ServiceName, Timestamp,
};

use super::{
    Allocation,
    assignments::Assignments,
    journal::{NOT_WRITTEN, NOT_WRITTEN_MESSAGE, waiting},
};
use crate::api;

/// Condition: the service waits for another controller.
pub(crate) const OTHER_CLASS: &str = "OtherClass";
/// Most services that a condition names.
const MAX_NAMED: usize = 3;

/// Every pool, in the order in which they are asked.
pub(crate) fn pools(assignments: &Assignments) -> Vec<api::Pool> {
    let described = |status: PoolStatus| Some(listed(assignments.pools().get(&status.name)?, &status));
    assignments.allocator().pools().filter_map(described).collect()
}

impl Allocation {
    /// Every pool, in the order in which they are asked.
    pub(crate) fn pools(&self) -> Vec<api::Pool> {
        pools(&self.assignments)
    }

    /// One pool and what is known of its addresses.
    pub(crate) fn pool(&self, name: &str) -> Option<api::PoolDetail> {
        let name = PoolName::new(name);
        let allocator = self.assignments.allocator();
        let pool = listed(self.assignments.pools().get(&name)?, &allocator.pool(&name)?);
        let reports = allocator.ledger().entries().map(|(address, _)| allocator.explain(address));
        let ours = reports.filter(|report| report.pools.contains(&name) && !is_at_nobodys(&report.state));
        let addresses = ours.map(|report| address(&report)).collect();
        let reserved = allocator.reserved(&name).into_iter();
        let mut reserved: Vec<api::PoolReservation> = reserved
            .map(|(range, why)| api::PoolReservation { first: range.first(), last: range.last(), why })
            .collect();
        reserved.sort_by_key(|it| (it.first, it.last));
        Some(api::PoolDetail { pool, addresses, reserved })
    }

    /// What an address is.
    pub(crate) fn explain(&self, ip: std::net::IpAddr) -> api::PoolAddress {
        address(&self.assignments.allocator().explain(ip))
    }

    /// Adds to services what they have of pools.
    pub(crate) fn describe(&self, services: &mut [api::Service]) {
        let load_balancers: BTreeMap<String, (&ServiceName, Option<&str>)> =
            self.assignments.load_balancers().map(|(name, foreign)| (name.to_string(), (name, foreign))).collect();
        for service in services {
            let Some((name, foreign)) = load_balancers.get(&service.name) else { continue };
            service.kind = api::ServiceKind::LoadBalancer;
            service.ipam = self.assignments.answer(name).map(|answer| self.ipam(answer, service));
            let unsatisfied = service.ipam.as_ref().filter(|ipam| !ipam.satisfied);
            let refused = unsatisfied.map(|ipam| ("Unsatisfied", format!("{}: {}", ipam.reason, ipam.message)));
            let left = foreign.filter(|_| service.external_ips.is_empty()).map(|class| {
                let why = "is not one of this agent's, so the service waits for the controller of that class; see \
                           --load-balancer-class";
                (OTHER_CLASS, format!("load-balancer class {class} {why}"))
            });
            let instead = instead_of_pools(self.assignments.by_hand_instead(name));
            let conditions = refused.into_iter().chain(left).chain(instead);
            service.conditions.extend(conditions.map(|(kind, message)| api::Condition { kind: kind.into(), message }));
        }
    }

    /// What a service has of what it was granted.
    fn ipam(&self, answer: &Answer, service: &api::Service) -> api::Ipam {
        let mut ipam = ipam(answer);
        let granted = ipam.granted.len();
        ipam.granted.retain(|granted| service.external_ips.contains(&granted.address));
        if ipam.granted.len() < granted && self.writer.problem().is_some() {
            ipam.satisfied = false;
            ipam.reason = NOT_WRITTEN.into();
            ipam.message = NOT_WRITTEN_MESSAGE.into();
        }
        ipam
    }

    /// That services lack addresses.
    pub(super) fn lacking(&self) -> Option<api::Condition> {
        unsatisfied(&waiting(&self.assignments, &self.withheld))
    }

    /// How many addresses services have, and how many services wait for some.
    pub(super) fn counts(&self) -> api::Addresses {
        let has = |holder: &ServiceName, ip: &IpAddr| !self.withheld.get(holder).is_some_and(|it| it.contains(ip));
        let entries = self.assignments.allocator().ledger().entries();
        api::Addresses {
            pools: self.assignments.pools().len(),
            held: entries.filter(|(ip, entry)| entry.holders().iter().any(|holder| has(holder, ip))).count(),
            unsatisfied: waiting(&self.assignments, &self.withheld).len(),
        }
    }

    /// Adds to the state of the agent how its pools are doing.
    pub(crate) fn describe_status(&self, status: &mut api::Status) {
        let mut conditions: Vec<api::Condition> = self
            .pools()
            .into_iter()
            .flat_map(|pool| pool.conditions.into_iter().map(move |said| named(&pool.name, said)))
            .collect();
        if let Some(problem) = self.writer.problem() {
            conditions.push(api::Condition { kind: "LedgerNotWritten".into(), message: problem.into() });
        }
        conditions.extend(self.lacking());
        status.addresses = self.counts();
        status.conditions.extend(conditions);
        status.conditions.sort();
    }
}

/// That a service has the addresses of its status in place of one that it had from a pool a short time ago.
fn instead_of_pools(left: Vec<IpAddr>) -> Option<(&'static str, String)> {
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    let message = format!(
        "its status names addresses that are in no pool, so they are served as they are, in place of {} from a pool; \
         to get an address from a pool, take the others out of the status",
        left.join(", ")
    );
    (!left.is_empty()).then_some(("AddressReplaced", message))
}

/// Whether nobody has it or had it a short time ago.
fn is_at_nobodys(state: &AddressState) -> bool {
    matches!(state, AddressState::Free | AddressState::Reserved(ReservedBy::OutOfService { .. }))
}

fn named(pool: &str, condition: api::Condition) -> api::Condition {
    api::Condition { message: format!("pool {pool}: {}", condition.message), ..condition }
}

/// One condition, however many services wait.
fn unsatisfied(waiting: &BTreeMap<&ServiceName, &str>) -> Option<api::Condition> {
    let named: Vec<String> =
        waiting.iter().take(MAX_NAMED).map(|(name, reason)| format!("{name} ({reason})")).collect();
    let more = match waiting.len().checked_sub(MAX_NAMED) {
        None | Some(0) => String::new(),
        Some(more) => format!(" and {more} more"),
    };
    let message = format!("services lack addresses: {}{more}; see `lb service list`", named.join(", "));
    (!waiting.is_empty()).then(|| api::Condition { kind: "Unsatisfied".into(), message })
}

fn ipam(answer: &Answer) -> api::Ipam {
    let condition = answer.status().condition;
    let (satisfied, reason, message) = condition.map_or_else(Default::default, |condition| {
        (condition.satisfied, condition.reason.into_owned(), condition.message)
    });
    let granted = answer
        .granted
        .iter()
        .map(|granted| api::Granted { address: granted.address, pool: granted.pool.as_ref().map(ToString::to_string) });
    api::Ipam { satisfied, reason, message, granted: granted.collect() }
}

fn listed(pool: &Pool, status: &PoolStatus) -> api::Pool {
    let problem = status.problem.iter().filter_map(|problem| {
        let kind = match problem {
            PoolProblem::Conflict(_) => "PoolConflict",
            // Its refusal is a condition of its own.
            PoolProblem::Refused(_) => return None,
            _ => "PoolInvalid",
        };
        Some(api::Condition { kind: kind.into(), message: problem.to_string() })
    });
    let warning = |warning: &_| api::Condition { kind: "PoolWarning".into(), message: ToString::to_string(warning) };
    api::Pool {
        name: pool.name.to_string(),
        blocks: pool.blocks.iter().map(ToString::to_string).collect(),
        selectors: pool.selectors.iter().map(selector).collect(),
        disabled: pool.disabled,
        conflicting: matches!(status.problem, Some(PoolProblem::Conflict(_))),
        auto_assign: pool.auto_assign,
        priority: pool.priority,
        allow_first_last: pool.allow_first_last,
        namespace_quota: pool.namespace_quota,
        quarantine_s: pool.quarantine.as_secs(),
        created_s: pool.created.as_millis() / 1000,
        counts: counts(&status.counts),
        ipv4: counts(&status.ipv4),
        ipv6: counts(&status.ipv6),
        conditions: problem.chain(status.warnings.iter().map(warning)).collect(),
    }
}

fn counts(counts: &Counts) -> api::PoolCounts {
    api::PoolCounts {
        total: counts.total,
        used: counts.used,
        available: counts.available,
        free: counts.free,
        quarantined: counts.quarantined,
        draining: counts.draining,
        conflict: counts.conflict,
        reserved: counts.reserved,
    }
}

fn address(report: &AddressReport) -> api::PoolAddress {
    let (state, services, until) = match &report.state {
        AddressState::Outside { last } => (api::AddressState::Outside, last.iter().cloned().collect(), None),
        AddressState::Free => (api::AddressState::Free, Vec::new(), None),
        AddressState::Reserved(_) => (api::AddressState::Reserved, Vec::new(), None),
        AddressState::Held(services) => (api::AddressState::Held, services.clone(), None),
        AddressState::Draining { last, until } => (api::AddressState::Draining, vec![last.clone()], Some(*until)),
        AddressState::Quarantined { last, until } => (api::AddressState::Quarantined, vec![last.clone()], Some(*until)),
        AddressState::Conflict { .. } => (api::AddressState::Conflict, Vec::new(), None),
    };
    api::PoolAddress {
        address: report.address,
        pools: report.pools.iter().map(ToString::to_string).collect(),
        state,
        services: services.iter().map(ToString::to_string).collect(),
        until_ms: until.map(Timestamp::as_millis),
        message: report.to_string(),
    }
}

/// As `kubectl get -l` takes it.
fn selector(selector: &Selector) -> String {
    let labels = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
    let terms: Vec<String> = labels.chain(selector.match_expressions.iter().map(expression)).collect();
    if terms.is_empty() { "everything".into() } else { terms.join(",") }
}

fn expression(expression: &Expression) -> String {
    let key = &expression.key;
    let values = || expression.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    match &expression.operator {
        Operator::In => format!("{key} in ({})", values()),
        Operator::NotIn => format!("{key} notin ({})", values()),
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
        Operator::Unknown(word) => format!("{key} {word} ({})", values()),
    }
}
