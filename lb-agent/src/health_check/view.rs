//! Health checks in the words of the API. Pure.

use std::collections::BTreeSet;

use lb_core::{addr::Protocol, decision::Packet, model::Model, service::Service, time::Instant};

use super::{Board, UNANSWERED};
use crate::api::{Condition, HealthCheck, Step};

/// Most problems that the condition of the agent names.
const MAX_NAMED: usize = 3;

/// What a load balancer is told of `service`, if it asks.
pub(crate) fn listed(board: &Board, service: &Service, now: Instant) -> Option<HealthCheck> {
    let port = service.health_check()?;
    let (answer, problem) = board.of(&service.name, port, now);
    Some(HealthCheck {
        port,
        status: answer.as_ref().map(|answer| answer.status()),
        local_endpoints: answer.as_ref().map(|answer| answer.local_endpoints),
        healthy: answer.map(|answer| answer.service_proxy_healthy),
        problem,
    })
}

/// The condition of a service with this health check.
pub(crate) fn condition_of(check: &HealthCheck) -> Option<Condition> {
    Some(Condition::new(UNANSWERED, check.problem.as_deref()?))
}

/// The condition of the agent.
pub(crate) fn condition(board: &Board) -> Option<Condition> {
    let problems = board.problems();
    // Two services with one number have the same problem.
    let distinct: BTreeSet<&String> = problems.values().collect();
    if distinct.is_empty() {
        return None;
    }
    let more = match distinct.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!("; and {more} more; see `lb service list`"),
    };
    let named: Vec<&str> = distinct.into_iter().take(MAX_NAMED).map(String::as_str).collect();
    Some(Condition::new(UNANSWERED, &(named.join("; ") + &more)))
}

/// The step of a decision about a packet to the port of a health check.
pub(crate) fn step(board: &Board, model: &Model, packet: &Packet, now: Instant) -> Option<Step> {
    let port = packet.destination_port;
    let is_ours = packet.protocol == Protocol::Tcp && model.node().ips.contains(&packet.destination);
    let service = board.service_at(port).filter(|_| is_ours)?;
    let answer = board.answer(port, now)?;
    let says = format!(
        "{port}: this agent answers here with {} and {} ready local endpoints",
        answer.status(),
        answer.local_endpoints
    );
    Some(Step { object: format!("service {service}"), field: "health-check node port".into(), says })
}
