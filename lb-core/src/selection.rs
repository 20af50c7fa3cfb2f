//! Which backends may take new flows, and why each other one may not.

use alloc::vec::Vec;
use core::fmt;

use crate::{
    addr::BackendAddr,
    endpoint::{AdminState, Conditions},
    health::Health,
    model::Candidate,
    name::{NodeName, ZoneName},
    service::TrafficPolicy,
    topology::{Near, TrafficDistribution, near},
};

/// The rules of a selection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Which backends may be used.
    pub policy: TrafficPolicy,
    /// Which ones the service prefers.
    pub distribution: Option<TrafficDistribution>,
    /// Health is not looked at when less than this per cent is not unhealthy. 0: it always is.
    pub panic_threshold: u8,
    /// The node that the selection is for, if it is known.
    pub node: Option<&'a NodeName>,
    /// Its zone, if it is known.
    pub zone: Option<&'a ZoneName>,
}

/// Outcome of a selection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Backends that may take new flows, in order of address, with their weights (never 0).
    pub usable: Vec<Usable>,
    /// Every other backend, with the reason.
    pub rejected: Vec<(BackendAddr, Reason)>,
    /// Those of the rejected ones that still serve, in order of address: a UDP flow that one of them has stays with it.
    pub draining: Vec<Draining>,
    /// Whether a backend would be usable if the policy did not exclude it: then flows are dropped, not refused.
    pub excluded_by_policy: bool,
    /// The part that topology narrowed the choice to, if it did.
    pub near: Option<Near>,
    /// Whether so many backends are unhealthy that all of them are used.
    pub panic: bool,
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

/// A backend that takes no new flows and still answers those that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Draining {
    /// Its address.
    pub addr: BackendAddr,
    /// Whether it runs on this node.
    pub local: bool,
}

/// Why a backend takes no new flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
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
    /// Somebody who probed it says that it does not answer.
    Unhealthy,
    /// It runs on another node and the traffic policy is Local.
    NotLocal,
    /// It is meant for other nodes, and others are meant for this one.
    OtherNode {
        /// Nodes that it is meant for.
        hinted: Vec<NodeName>,
        /// This node.
        here: NodeName,
    },
    /// It is meant for other zones, and others are meant for this one.
    OtherZone {
        /// Zones that it is meant for.
        hinted: Vec<ZoneName>,
        /// The zone of this node.
        here: ZoneName,
    },
}

impl Reason {
    /// Whether the backend is well and only not for this node.
    #[must_use]
    pub const fn is_about_place(&self) -> bool {
        match self {
            Self::NotLocal | Self::OtherNode { .. } | Self::OtherZone { .. } => true,
            Self::NotReady
            | Self::NotServing
            | Self::Terminating
            | Self::WeightZero
            | Self::Draining
            | Self::Maintenance
            | Self::Unhealthy => false,
        }
    }
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
            Self::Unhealthy => "unhealthy",
            Self::NotLocal => "on another node, traffic policy is Local",
            Self::OtherNode { hinted, here } => return write!(f, "hinted for node {}, this is {here}", List(hinted)),
            Self::OtherZone { hinted, here } => {
                return write!(f, "hinted for zone {}, this node is in {here}", List(hinted));
            }
        })
    }
}

struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(n, item)| write!(f, "{}{item}", if n == 0 { "" } else { ", " }))
    }
}

/// Backends that may receive new flows under `rules`.
///
/// 1. Draining, maintenance and weight 0 exclude a backend from all that follows, and so does being on another node
///    under policy Local.
/// 2. Ready ones if there are any; otherwise those terminating but still serving (KEP-1669).
/// 3. Of either, those that are not unhealthy; but all of them when less than the panic threshold is not unhealthy. If
///    none is left of the ready ones, those terminating get their turn.
/// 4. Of the ready ones, under policy Cluster, those that are meant for this node or zone, if topology says so. An
///    endpoint that is unhealthy or out of service has no say in that.
///
/// A backend that is left out still serves if it is ready, or terminating and serving, and neither unhealthy nor in
/// maintenance. UDP flows that it has stay with it, as kube-proxy keeps them.
#[must_use]
pub fn select(candidates: &[Candidate<'_>], rules: &Rules<'_>) -> Selection {
    let is_local_policy = rules.policy == TrafficPolicy::Local;
    let in_scope = |c: &Candidate<'_>| !is_local_policy || c.local;
    let taken = takers(candidates.iter().filter(|c| in_scope(c)), rules);
    let near = match taken {
        Some(Takers { grade: Grade::Ready, .. }) if !is_local_policy => {
            let ready = candidates.iter().filter(|c| taken.is_some_and(|taken| taken.includes(c)));
            near(ready.map(|c| c.endpoint), rules)
        }
        _ => None,
    };
    let mut selection = Selection {
        excluded_by_policy: is_local_policy && takers(candidates.iter().filter(|c| !in_scope(c)), rules).is_some(),
        panic: taken.is_some_and(|taken| taken.panic),
        ..Selection::default()
    };
    for candidate in candidates {
        let reason = match grade(candidate) {
            Err(reason) => Some(reason),
            Ok(_) if !in_scope(candidate) => Some(Reason::NotLocal),
            Ok(_) if taken.is_some_and(|taken| taken.includes(candidate)) => {
                near.as_ref().and_then(|near| near.reason_against(candidate.endpoint, rules.distribution))
            }
            Ok(_) if candidate.health == Health::Unhealthy => Some(Reason::Unhealthy),
            Ok(Grade::Ready | Grade::Terminating) => Some(Reason::Terminating),
        };
        match reason {
            Some(reason) => {
                selection.rejected.push((candidate.addr, reason));
                if serves(candidate) {
                    selection.draining.push(Draining { addr: candidate.addr, local: candidate.local });
                }
            }
            None => selection.usable.push(Usable {
                addr: candidate.addr,
                weight: candidate.endpoint.weight,
                local: candidate.local,
            }),
        }
    }
    selection.near = near;
    selection
}

/// The backends that take new flows, before topology.
#[derive(Clone, Copy)]
struct Takers {
    grade: Grade,
    panic: bool,
}

impl Takers {
    fn includes(self, candidate: &Candidate<'_>) -> bool {
        grade(candidate) == Ok(self.grade) && (self.panic || candidate.health != Health::Unhealthy)
    }
}

fn takers<'a, 'c: 'a>(
    candidates: impl Iterator<Item = &'a Candidate<'c>> + Clone,
    rules: &Rules<'_>,
) -> Option<Takers> {
    [Grade::Ready, Grade::Terminating].into_iter().find_map(|wanted| {
        let graded = candidates.clone().filter(|c| grade(c) == Ok(wanted));
        let (all, well) =
            graded.fold((0_u64, 0_u64), |(all, well), c| (all + 1, well + u64::from(c.health != Health::Unhealthy)));
        let panic = well * 100 < all * u64::from(rules.panic_threshold);
        (panic || well > 0).then_some(Takers { grade: wanted, panic })
    })
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
    condition(endpoint.conditions)
}

fn condition(conditions: Conditions) -> Result<Grade, Reason> {
    match (conditions.ready, conditions.serving, conditions.terminating) {
        (true, _, _) => Ok(Grade::Ready),
        (false, true, true) => Ok(Grade::Terminating),
        (false, false, true) => Err(Reason::NotServing),
        (false, _, false) => Err(Reason::NotReady),
    }
}

/// Whether a backend answers the flows that it has.
fn serves(candidate: &Candidate<'_>) -> bool {
    let in_service = candidate.endpoint.admin != AdminState::Maintenance;
    in_service && candidate.health != Health::Unhealthy && condition(candidate.endpoint.conditions).is_ok()
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::{addr::Protocol, endpoint::Endpoint};

    const READY: Conditions = Conditions::READY;
    const SERVING: Conditions = Conditions { ready: false, serving: true, terminating: true };
    const GONE: Conditions = Conditions { ready: false, serving: false, terminating: true };
    const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };

    fn endpoint(conditions: Conditions) -> Endpoint {
        Endpoint { conditions, ..Endpoint::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))) }
    }

    /// Selects among endpoints of ascending port; answers with ports.
    fn run(endpoints: &[(Endpoint, bool)], policy: TrafficPolicy) -> (Vec<u16>, Vec<(u16, Reason)>, bool) {
        let selection = selected(endpoints, policy, Health::Unknown);
        (
            selection.usable.iter().map(|u| u.addr.port).collect(),
            selection.rejected.iter().map(|(addr, reason)| (addr.port, reason.clone())).collect(),
            selection.excluded_by_policy,
        )
    }

    fn selected(endpoints: &[(Endpoint, bool)], policy: TrafficPolicy, health: Health) -> Selection {
        let candidates: Vec<_> = (1..)
            .zip(endpoints)
            .map(|(port, (endpoint, local))| Candidate {
                addr: BackendAddr::new(endpoint.ip, port, Protocol::Tcp),
                endpoint,
                local: *local,
                health: if port == 1 { Health::Unknown } else { health },
            })
            .collect();
        select(&candidates, &Rules { policy, ..Rules::default() })
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

    #[test]
    fn a_backend_that_is_left_out_drains_while_it_serves() {
        let admin = |admin, conditions| Endpoint { admin, ..endpoint(conditions) };
        let draining = AdminState::Draining { until: None };
        let all = [
            endpoint(READY),
            endpoint(SERVING),
            endpoint(GONE),
            endpoint(UNREADY),
            admin(draining, READY),
            admin(draining, GONE),
            admin(AdminState::Maintenance, READY),
            Endpoint { weight: 0, ..endpoint(READY) },
        ]
        .map(|endpoint| (endpoint, true));
        let draining = |all: &[_], policy, health| -> Vec<u16> {
            selected(all, policy, health).draining.iter().map(|draining| draining.addr.port).collect()
        };
        assert_eq!(draining(&all, TrafficPolicy::Cluster, Health::Unknown), [2, 5, 8]);
        assert_eq!(draining(&all, TrafficPolicy::Cluster, Health::Unhealthy), []);
        let elsewhere = [(endpoint(READY), true), (endpoint(READY), false), (endpoint(UNREADY), false)];
        assert_eq!(draining(&elsewhere, TrafficPolicy::Local, Health::Healthy), [2], "it is only not for this node");
    }
}
