//! Pools and addresses, in the words of the API.

use std::collections::{BTreeMap, BTreeSet};

use lb_ipam::{
    AddressReport, AddressState, Answer, Counts, EditPlan, Expression, Ledger, Operator, Pool, PoolName, PoolProblem,
    PoolStatus, Selector, ServiceName, Timestamp,
};

use super::Allocation;
use crate::api;

/// Most services that a condition names.
const MAX_NAMED: usize = 3;

impl Allocation {
    /// Every pool, in the order in which they are asked.
    pub(in crate::agent) fn pools(&self) -> Vec<api::Pool> {
        let pools = self.allocator.pools().filter_map(|status| Some((self.pools.get(&status.name)?, status)));
        pools.map(|(pool, status)| listed(pool, &status)).collect()
    }

    /// One pool and what is known of its addresses.
    pub(in crate::agent) fn pool(&self, name: &str) -> Option<api::PoolDetail> {
        let name = PoolName::new(name);
        let pool = listed(self.pools.get(&name)?, &self.allocator.pool(&name)?);
        let reports = self.allocator.ledger().entries().map(|(address, _)| self.allocator.explain(address));
        let ours = reports.filter(|report| report.pools.first() == Some(&name) && report.state != AddressState::Free);
        Some(api::PoolDetail { pool, addresses: ours.map(|report| address(&report)).collect() })
    }

    /// What an address is.
    pub(in crate::agent) fn explain(&self, ip: std::net::IpAddr) -> api::PoolAddress {
        address(&self.allocator.explain(ip))
    }

    /// A plan, with the pools as they would be.
    pub(in crate::agent) fn planned(
        &self,
        plan: EditPlan,
        pools: &BTreeMap<PoolName, Pool>,
        problems: Vec<String>,
    ) -> api::PoolPlan {
        let pool = |status: &PoolStatus| {
            let pool = pools.get(&status.name).or_else(|| self.pools.get(&status.name))?;
            Some(listed(pool, status))
        };
        let moves = plan.moves.into_iter().map(|planned| api::PoolMove {
            service: planned.service.to_string(),
            before: planned.before,
            after: planned.after.addresses().collect(),
            refused: planned.after.refused.iter().map(ToString::to_string).collect(),
        });
        api::PoolPlan { moves: moves.collect(), pools: plan.pools.iter().filter_map(pool).collect(), problems }
    }

    /// Adds to services what they have of pools.
    pub(in crate::agent) fn describe(&self, services: &mut [api::Service]) {
        let answers: BTreeMap<String, Option<&Answer>> =
            self.load_balancers().map(|(name, answer)| (name.to_string(), answer)).collect();
        let held_back: BTreeSet<String> = self.held_back.iter().map(ToString::to_string).collect();
        for service in services {
            let Some(answer) = answers.get(&service.name) else { continue };
            service.kind = "LoadBalancer".into();
            service.ipam = answer.map(ipam);
            if let Some(ipam) = service.ipam.as_ref().filter(|ipam| !ipam.satisfied) {
                let message = format!("{}: {}", ipam.reason, ipam.message);
                service.conditions.push(api::Condition { kind: "Unsatisfied".into(), message });
            }
            if held_back.contains(&service.name) {
                let message = "what it gets waits until the ledger of addresses can be written; see `lb status`".into();
                service.conditions.push(api::Condition { kind: "Unsatisfied".into(), message });
            }
        }
    }

    /// Adds to the state of the agent how its pools are doing.
    pub(in crate::agent) fn describe_status(&self, status: &mut api::Status) {
        let mut conditions: Vec<api::Condition> = self
            .pools()
            .into_iter()
            .flat_map(|pool| pool.conditions.into_iter().map(move |said| named(&pool.name, said)))
            .collect();
        if let Some(problem) = self.writer.problem() {
            conditions.push(api::Condition { kind: "LedgerNotWritten".into(), message: problem.into() });
        }
        let waiting: Vec<(&ServiceName, &Answer)> = self
            .load_balancers()
            .filter_map(|(name, answer)| Some((name, answer.filter(|answer| !answer.is_satisfied())?)))
            .collect();
        conditions.extend(unsatisfied(&waiting));
        let entries = self.allocator.ledger().entries();
        status.addresses = api::Addresses {
            pools: self.pools.len(),
            held: entries.filter(|(_, entry)| !entry.holders().is_empty()).count(),
            unsatisfied: waiting.len(),
        };
        status.conditions.extend(conditions);
        status.conditions.sort();
    }

    /// Services of type LoadBalancer, with the answers to those that get their addresses from pools.
    fn load_balancers(&self) -> impl Iterator<Item = (&ServiceName, Option<&Answer>)> {
        let answer = |service| self.allocator.answer(service).filter(|_| !self.pools.is_empty());
        self.load_balancers.keys().map(move |service| (service, answer(service)))
    }
}

fn named(pool: &str, condition: api::Condition) -> api::Condition {
    api::Condition { message: format!("pool {pool}: {}", condition.message), ..condition }
}

/// One condition, however many services wait.
fn unsatisfied(waiting: &[(&ServiceName, &Answer)]) -> Option<api::Condition> {
    let named: Vec<String> = waiting
        .iter()
        .take(MAX_NAMED)
        .map(|(name, answer)| {
            format!("{name} ({})", answer.refused.first().map_or("", |first| first.reason().as_str()))
        })
        .collect();
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
    let problem = status.problem.iter().map(|problem| {
        let kind = if matches!(problem, PoolProblem::Conflict(_)) { "PoolConflict" } else { "PoolInvalid" };
        api::Condition { kind: kind.into(), message: problem.to_string() }
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
        created_s: (pool.created != Timestamp::default()).then(|| pool.created.as_millis() / 1000),
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
        available: counts.free.saturating_add(counts.quarantined),
        free: counts.free,
        quarantined: counts.quarantined,
        draining: counts.draining,
        conflict: counts.conflict,
        reserved: counts.reserved,
    }
}

fn address(report: &AddressReport) -> api::PoolAddress {
    let (state, services, until) = match &report.state {
        AddressState::Outside => (api::AddressState::Outside, Vec::new(), None),
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
