//! Which backends may take new flows, and why each other one may not.

use alloc::vec::Vec;
use core::fmt;

use crate::{AdminState, BackendAddr, Candidate, TrafficPolicy};

/// Outcome of a selection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Backends that may take new flows, in order of address, with their weights (never 0).
    pub usable: Vec<Usable>,
    /// Every other backend, with the reason.
    pub rejected: Vec<(BackendAddr, Reason)>,
    /// Whether a backend would be usable if the policy did not exclude it: then flows are dropped, not refused.
    pub excluded_by_policy: bool,
}

/// A backend that may take new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usable {
    /// Its address.
    pub addr: BackendAddr,
    /// Its share relative to the others, 1..=65535.
    pub weight: u16,
    /// Whether it runs on this node.
    pub local: bool,
}

/// Why a backend takes no new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Not ready and not terminating.
    NotReady,
    /// Terminating and no longer serving.
    NotServing,
    /// Terminating while others are ready.
    Terminating,
    /// Its weight is 0.
    WeightZero,
    /// An operator drains it.
    Draining,
    /// An operator took it out.
    Maintenance,
    /// It runs on another node and the traffic policy is Local.
    NotLocal,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "not ready",
            Self::NotServing => "terminating and not serving",
            Self::Terminating => "terminating while others are ready",
            Self::WeightZero => "weight is 0",
            Self::Draining => "draining",
            Self::Maintenance => "in maintenance",
            Self::NotLocal => "on another node, traffic policy is Local",
        })
    }
}

/// Backends that may receive new flows under `policy`.
///
/// Ready ones if there are any; otherwise those terminating but still serving (KEP-1669). Under policy Local both
/// steps look at this node's backends only. Draining, maintenance and weight 0 exclude a backend from both steps.
#[must_use]
pub fn select(candidates: &[Candidate<'_>], policy: TrafficPolicy) -> Selection {
    let in_scope = |c: &Candidate<'_>| policy == TrafficPolicy::Cluster || c.local;
    let any_ready = candidates.iter().any(|c| in_scope(c) && grade(c) == Ok(Grade::Ready));
    let mut selection = Selection::default();
    for candidate in candidates {
        let reason = match grade(candidate) {
            Err(reason) => Some(reason),
            Ok(_) if !in_scope(candidate) => {
                selection.excluded_by_policy = true;
                Some(Reason::NotLocal)
            }
            Ok(Grade::Terminating) if any_ready => Some(Reason::Terminating),
            Ok(Grade::Ready | Grade::Terminating) => None,
        };
        match reason {
            Some(reason) => selection.rejected.push((candidate.addr, reason)),
            None => selection.usable.push(Usable {
                addr: candidate.addr,
                weight: candidate.endpoint.weight,
                local: candidate.local,
            }),
        }
    }
    selection
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Grade {
    Ready,
    Terminating,
}

fn grade(candidate: &Candidate<'_>) -> Result<Grade, Reason> {
    let endpoint = candidate.endpoint;
    match endpoint.admin {
        AdminState::Draining { .. } => return Err(Reason::Draining),
        AdminState::Maintenance => return Err(Reason::Maintenance),
        AdminState::InService => {}
    }
    if endpoint.weight == 0 {
        return Err(Reason::WeightZero);
    }
    let conditions = endpoint.conditions;
    match (conditions.ready, conditions.serving, conditions.terminating) {
        (true, _, _) => Ok(Grade::Ready),
        (false, true, true) => Ok(Grade::Terminating),
        (false, false, true) => Err(Reason::NotServing),
        (false, _, false) => Err(Reason::NotReady),
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::{Conditions, Endpoint, Protocol};

    const READY: Conditions = Conditions::READY;
    const SERVING: Conditions = Conditions { ready: false, serving: true, terminating: true };
    const GONE: Conditions = Conditions { ready: false, serving: false, terminating: true };
    const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };

    fn endpoint(conditions: Conditions) -> Endpoint {
        Endpoint { conditions, ..Endpoint::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))) }
    }

    /// Selects among endpoints of ascending port; answers with ports.
    fn run(endpoints: &[(Endpoint, bool)], policy: TrafficPolicy) -> (Vec<u16>, Vec<(u16, Reason)>, bool) {
        let candidates: Vec<_> = (1..)
            .zip(endpoints)
            .map(|(port, (endpoint, local))| Candidate {
                addr: BackendAddr::new(endpoint.ip, port, Protocol::Tcp),
                endpoint,
                local: *local,
            })
            .collect();
        let selection = select(&candidates, policy);
        (
            selection.usable.iter().map(|u| u.addr.port).collect(),
            selection.rejected.iter().map(|(addr, reason)| (addr.port, *reason)).collect(),
            selection.excluded_by_policy,
        )
    }

    #[test]
    fn terminating_backends_serve_only_while_none_is_ready() {
        let all =
            [(endpoint(READY), true), (endpoint(SERVING), true), (endpoint(GONE), true), (endpoint(UNREADY), true)];
        let rejected = [(2, Reason::Terminating), (3, Reason::NotServing), (4, Reason::NotReady)].to_vec();
        assert_eq!(run(&all, TrafficPolicy::Cluster), ([1].to_vec(), rejected, false));
        let rejected = [(2, Reason::NotServing), (3, Reason::NotReady)].to_vec();
        assert_eq!(run(&all[1..], TrafficPolicy::Cluster), ([1].to_vec(), rejected, false));
    }

    #[test]
    fn a_ready_backend_elsewhere_does_not_end_local_termination() {
        let all = [(endpoint(READY), false), (endpoint(SERVING), true)];
        assert_eq!(run(&all, TrafficPolicy::Local), ([2].to_vec(), [(1, Reason::NotLocal)].to_vec(), true));
    }

    #[test]
    fn policy_excludes_but_an_unready_backend_elsewhere_is_not_excluded_by_policy() {
        let all = [(endpoint(UNREADY), false)];
        assert_eq!(run(&all, TrafficPolicy::Local), ([].to_vec(), [(1, Reason::NotReady)].to_vec(), false));
    }

    #[test]
    fn operators_and_weight_zero_take_a_ready_backend_out() {
        let draining = Endpoint { admin: AdminState::Draining { until: None }, ..endpoint(READY) };
        let maintenance = Endpoint { admin: AdminState::Maintenance, ..endpoint(READY) };
        let weightless = Endpoint { weight: 0, ..endpoint(READY) };
        let all = [(draining, true), (maintenance, true), (weightless, true), (endpoint(SERVING), true)];
        let rejected = [(1, Reason::Draining), (2, Reason::Maintenance), (3, Reason::WeightZero)].to_vec();
        assert_eq!(run(&all, TrafficPolicy::Cluster), ([4].to_vec(), rejected, false));
    }
}
