//! The status of services and pools as their users know it.

use std::net::IpAddr;

use k8s_openapi::jiff;
use lb_ipam::{PoolProblem, Status, Timestamp};
use serde::Serialize;

use crate::{conditions, limits::MAX_MESSAGE_BYTES};

/// The part of `status` of a `Service` that whoever allocates addresses writes. Serialises as Kubernetes has it.
///
/// ```
/// use lb_ipam::{Status, Timestamp};
/// use lb_k8s::write;
///
/// let status = write::service_status(&Status::of(&["20.0.20.100".parse()?]), Timestamp::default());
/// assert_eq!(
///     serde_json::to_string(&status)?,
///     r#"{"loadBalancer":{"ingress":[{"ip":"20.0.20.100","ipMode":"VIP"}]},"conditions":[]}"#,
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its addresses.
    pub load_balancer: LoadBalancerStatus,
    /// At most one; those of others are theirs to keep.
    pub conditions: Vec<Condition>,
}

/// Addresses of a service of type LoadBalancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadBalancerStatus {
    /// One entry for each.
    pub ingress: Vec<Ingress>,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// The address.
    pub ip: IpAddr,
    /// `VIP`: nodes carry the address themselves.
    pub ip_mode: &'static str,
}

/// The `status` of a pool. Serialises as Cilium has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// The four of Cilium, and further ones about errors and warnings.
    pub conditions: Vec<Condition>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// One of [`conditions`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// When `status` last changed, RFC 3339.
    pub last_transition_time: String,
    /// A code.
    pub reason: String,
    /// A sentence, or a number; cut after [`MAX_MESSAGE_BYTES`].
    pub message: String,
}

/// The status to write for a service. Its condition has held since `since`; only the caller knows what was written
/// before.
#[must_use]
pub fn service_status(status: &Status, since: Timestamp) -> ServiceStatus {
    let ingress = status.addresses.iter().map(|&ip| Ingress { ip, ip_mode: "VIP" }).collect();
    let condition = status.condition.as_ref().map(|condition| {
        let satisfied = if condition.satisfied { "True" } else { "False" };
        build(conditions::REQUEST_SATISFIED, satisfied, &condition.reason, &condition.message, since)
    });
    ServiceStatus { load_balancer: LoadBalancerStatus { ingress }, conditions: condition.into_iter().collect() }
}

/// The status to write for a pool.
///
/// Quarantined addresses count as available, since they are allocated when there are no others. Addresses that are
/// reserved, draining or in conflict do not. Of a pool that is disabled or out of service, none are available.
#[must_use]
pub fn pool_status(status: &lb_ipam::PoolStatus, since: Timestamp) -> PoolStatus {
    let count = |kind, number: u128| build(kind, "Unknown", "noreason", &number.to_string(), since);
    let mut all = vec![
        conflict(status.problem.as_ref(), since),
        count(conditions::IPS_TOTAL, status.counts.total),
        count(conditions::IPS_AVAILABLE, status.counts.available),
        count(conditions::IPS_USED, status.counts.used),
    ];
    if let Some(problem) = status.problem.as_ref().filter(|problem| !matches!(problem, PoolProblem::Conflict(_))) {
        all.push(build(conditions::POOL_INVALID, "True", problem.reason(), &problem.to_string(), since));
    }
    if !status.warnings.is_empty() {
        let warnings: Vec<_> = status.warnings.iter().map(ToString::to_string).collect();
        all.push(build(conditions::POOL_WARNING, "True", "warning", &warnings.join("; "), since));
    }
    PoolStatus { conditions: all }
}

fn conflict(problem: Option<&PoolProblem>, since: Timestamp) -> Condition {
    match problem {
        Some(problem @ PoolProblem::Conflict(conflict)) => build(
            conditions::POOL_CONFLICT,
            "True",
            problem.reason(),
            &format!("Pool conflicts since {conflict}"),
            since,
        ),
        Some(_) | None => build(conditions::POOL_CONFLICT, "False", "resolved", "", since),
    }
}

fn build(kind: &'static str, status: &'static str, reason: &str, message: &str, since: Timestamp) -> Condition {
    let message = message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)].to_owned();
    Condition { kind, status, last_transition_time: time(since), reason: reason.to_owned(), message }
}

/// Whole seconds, as Kubernetes writes them.
pub(super) fn time(since: Timestamp) -> String {
    let seconds = i64::try_from(since.as_millis() / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}
