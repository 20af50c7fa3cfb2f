//! What is logged about addresses: every change with the old addresses, the new ones and the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::name::ServiceName;
use lb_ipam::{Ledger, Outcome};

use super::assignments::Assignments;

/// Most services whose first addresses, refusals or removals are logged one by one.
const MAX_LOGGED: usize = 10;

type Addresses = BTreeSet<IpAddr>;

/// The addresses that services had when that was logged last.
#[derive(Debug)]
pub(super) struct Journal {
    known: BTreeMap<ServiceName, Addresses>,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A service has addresses, and those that it had before.
    Assigned { service: ServiceName, old: Addresses, new: Addresses },
    /// So many services have addresses, and so many of all services lack some.
    ManyAssigned { services: usize, unsatisfied: usize },
    /// A service that is still there lost an address.
    Changed { service: ServiceName, old: Addresses, new: Addresses, why: String },
    /// A request is refused.
    Refused { service: ServiceName, addresses: Addresses, reason: String, message: String },
    /// The requests of so many more services are refused.
    ManyRefused { services: usize },
    /// A service that gets no addresses here any more lets go of them.
    Released { service: ServiceName, old: Addresses, why: String },
    /// So many more services do so.
    ManyReleased { services: usize },
}

impl Journal {
    /// Begins with what services held in an earlier process.
    pub(super) fn new(ledger: &impl Ledger) -> Self {
        let mut known: BTreeMap<ServiceName, Addresses> = BTreeMap::new();
        for (address, entry) in ledger.entries() {
            for holder in entry.holders() {
                known.entry(holder.clone()).or_default().insert(address);
            }
        }
        Self { known }
    }

    /// What is new since the last call. Of the services other than those that the outcome names, only those that are
    /// `touched` can have changed. At a start, that a service has the addresses that it had is no news.
    pub(super) fn lines(
        &mut self,
        assignments: &Assignments,
        outcome: &Outcome,
        touched: &BTreeSet<ServiceName>,
        is_start: bool,
    ) -> Vec<Line> {
        let written: BTreeSet<&ServiceName> = outcome.writes.iter().map(|(service, _)| service).collect();
        let mut names: BTreeSet<ServiceName> = touched.clone();
        names.extend(written.iter().map(|service| (*service).clone()));
        names.extend(outcome.released.iter().map(|it| it.service.clone()));
        if is_start {
            names.extend(self.known.keys().cloned());
            names.extend(assignments.load_balancers().map(|(service, _)| service.clone()));
        }
        let mut lines = Vec::new();
        for service in names {
            let new = addresses(assignments, &service);
            let old = if new.is_empty() {
                self.known.remove(&service).unwrap_or_default()
            } else {
                self.known.insert(service.clone(), new.clone()).unwrap_or_default()
            };
            let says_refusal = is_start || written.contains(&service);
            lines.extend(line(assignments, outcome, service, old, new, says_refusal));
        }
        folded(lines, assignments, is_start)
    }
}

/// The addresses that a service has here.
fn addresses(assignments: &Assignments, service: &ServiceName) -> Addresses {
    match assignments.class_of(service) {
        Some(Some(_)) => Addresses::new(),
        Some(None) | None => assignments.addresses(service).into_iter().collect(),
    }
}

fn line(
    assignments: &Assignments,
    outcome: &Outcome,
    service: ServiceName,
    old: Addresses,
    new: Addresses,
    says_refusal: bool,
) -> Option<Line> {
    let answer = assignments.answer(&service);
    let condition = answer.and_then(|answer| answer.status().condition).filter(|condition| !condition.satisfied);
    if !old.is_subset(&new) {
        let released = outcome.released.iter().filter(|it| it.service == service && !new.contains(&it.address));
        let mut why: Vec<String> = released.map(|it| format!("{}: {}", it.address, it.why)).collect();
        if assignments.class_of(&service) != Some(None) && new.is_empty() {
            return Some(Line::Released { service, old, why: why.join("; ") });
        }
        if answer.is_none() {
            let by_hand = "its status names other addresses, which are in no pool and are served as they are";
            why = vec![by_hand.into()];
        }
        why.extend(condition.map(|condition| condition.message));
        return Some(Line::Changed { service, old, new, why: why.join("; ") });
    }
    if let Some(condition) = condition {
        let reason = condition.reason.into_owned();
        let refused = Line::Refused { service, addresses: new, reason, message: condition.message };
        return says_refusal.then_some(refused);
    }
    (old != new && answer.is_some()).then_some(Line::Assigned { service, old, new })
}

/// The lines with one in place of many that an operator expects.
fn folded(lines: Vec<Line>, assignments: &Assignments, is_start: bool) -> Vec<Line> {
    let count = |is: fn(&Line) -> bool| lines.iter().filter(|line| is(line)).count();
    let assigned = count(|line| matches!(line, Line::Assigned { .. }));
    let folds_assigned = is_start || assigned > MAX_LOGGED;
    let unsatisfied = assignments.unsatisfied().count();
    let services = if is_start { assignments.answered().count() } else { assigned };
    let [refused, released] =
        [count(|line| matches!(line, Line::Refused { .. })), count(|line| matches!(line, Line::Released { .. }))];
    let [mut first_refused, mut first_released] = [MAX_LOGGED; 2];
    let takes = |left: &mut usize| std::mem::replace(left, left.saturating_sub(1)) > 0;
    let mut folded: Vec<Line> = lines
        .into_iter()
        .filter(|line| match line {
            Line::Assigned { .. } => !folds_assigned,
            Line::Refused { .. } => takes(&mut first_refused),
            Line::Released { .. } => takes(&mut first_released),
            Line::Changed { .. } | Line::ManyAssigned { .. } | Line::ManyRefused { .. } | Line::ManyReleased { .. } => {
                true
            }
        })
        .collect();
    if folds_assigned && services > 0 {
        folded.push(Line::ManyAssigned { services, unsatisfied });
    }
    let more = |all: usize| all.checked_sub(MAX_LOGGED).filter(|more| *more > 0);
    folded.extend(more(refused).map(|services| Line::ManyRefused { services }));
    folded.extend(more(released).map(|services| Line::ManyReleased { services }));
    folded
}

impl Line {
    pub(super) fn log(&self) {
        let text = |addresses: &Addresses| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        match self {
            Self::Assigned { service, old, new } if old.is_empty() => {
                tracing::info!(%service, addresses = ?text(new), "addresses assigned");
            }
            Self::Assigned { service, old, new } => {
                tracing::info!(%service, old = ?text(old), new = ?text(new), "more addresses assigned");
            }
            Self::ManyAssigned { services, unsatisfied } => {
                tracing::info!(services, unsatisfied, "addresses assigned");
            }
            Self::Changed { service, old, new, why } if new.is_empty() => {
                tracing::warn!(%service, old = ?text(old), new = ?text(new), why, "a service lost its addresses");
            }
            Self::Changed { service, old, new, why } => {
                tracing::warn!(%service, old = ?text(old), new = ?text(new), why, "the addresses of a service changed");
            }
            Self::Refused { service, addresses, reason, message } => {
                tracing::warn!(
                    %service, addresses = ?text(addresses), reason, why = message, "a request for addresses is refused"
                );
            }
            Self::ManyRefused { services } => {
                tracing::warn!(services, "the requests of more services are refused; see `lb service list`");
            }
            Self::Released { service, old, why } => {
                tracing::info!(%service, old = ?text(old), why, "addresses released");
            }
            Self::ManyReleased { services } => tracing::info!(services, "more services released their addresses"),
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_ipam::{Edit, MemoryLedger, Pool, PoolChoice, Request, Settings, Status, Timestamp};

    use super::{super::stored::Remembered, *};

    /// An agent that has been told something.
    struct Agent {
        assignments: Assignments,
        journal: Journal,
        now: Timestamp,
    }

    impl Agent {
        fn over(ledger: MemoryLedger) -> Self {
            let journal = Journal::new(&ledger);
            let remembered = Remembered { ledger, ..Remembered::default() };
            Self {
                assignments: Assignments::new(Settings::default(), remembered),
                journal,
                now: Timestamp::from_secs(1_000_000),
            }
        }

        fn takes(&mut self, edits: Vec<Edit>, is_start: bool) -> Vec<Line> {
            let touched = self.assignments.take(edits, &[], self.now).touched;
            let outcome = self.assignments.settle(self.now);
            self.journal.lines(&self.assignments, &outcome, &touched, is_start)
        }

        fn ledger(&self) -> MemoryLedger {
            self.assignments.allocator().ledger().clone()
        }
    }

    fn pool() -> Edit {
        Edit::UpsertPool(Pool::new("p", &["192.0.2.0/30"]))
    }

    fn service(name: &str) -> Edit {
        Edit::UpsertService(Request::new("default", name))
    }

    fn named(name: &str) -> ServiceName {
        ServiceName::new("default", name)
    }

    fn ips(all: &[&str]) -> Addresses {
        all.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    const NONE: &str = "no IPv4 address: there is no pool; create one";

    fn lost(name: &str, ip: &str) -> Line {
        let why = format!("{ip}: no pool has a block with the address; {NONE}");
        Line::Changed { service: named(name), old: ips(&[ip]), new: ips(&[]), why }
    }

    #[test]
    fn the_last_pool_takes_no_address_away_without_a_word() {
        let mut agent = Agent::over(MemoryLedger::default());
        let first = agent.takes(vec![pool(), service("a"), service("b")], true);
        assert_eq!(first, [Line::ManyAssigned { services: 2, unsatisfied: 0 }]);
        let ledger = agent.ledger();
        let lines = agent.takes(vec![Edit::RemovePool("p".into())], false);
        assert_eq!(lines, [lost("a", "192.0.2.0"), lost("b", "192.0.2.1")]);
        assert_eq!(agent.takes(Vec::new(), false), []);
        // The pool went while no agent was there.
        let mut agent = Agent::over(ledger);
        let lines = agent.takes(vec![service("a"), service("b"), service("c")], true);
        let refused =
            Line::Refused { service: named("c"), addresses: ips(&[]), reason: "no_pool".into(), message: NONE.into() };
        let all = Line::ManyAssigned { services: 3, unsatisfied: 3 };
        assert_eq!(lines, [lost("a", "192.0.2.0"), lost("b", "192.0.2.1"), refused, all]);
    }

    #[test]
    fn a_service_that_never_had_a_pool_says_why_it_waits() {
        let mut agent = Agent::over(MemoryLedger::default());
        let _ = agent.takes(Vec::new(), true);
        let lines = agent.takes(vec![service("a")], false);
        assert!(
            matches!(&lines[..], [Line::Refused { reason, message, .. }] if reason == "no_pool" && message == NONE)
        );
        assert_eq!(agent.assignments.unsatisfied().count(), 1);
        let lines = agent.takes(vec![pool()], false);
        assert_eq!(lines, [Line::Assigned { service: named("a"), old: ips(&[]), new: ips(&["192.0.2.0"]) }]);
    }

    #[test]
    fn every_change_has_the_old_address_the_new_one_and_the_reason() {
        let mut agent = Agent::over(MemoryLedger::default());
        let other = Edit::UpsertPool(Pool::new("other", &["198.51.100.7"]));
        let _ = agent.takes(vec![pool(), other, service("a"), service("b")], true);
        let only = |pool: &str| Request { pool: PoolChoice::Only(pool.into()), ..Request::new("default", "a") };
        let lines = agent.takes(vec![Edit::UpsertService(only("p"))], false);
        let (old, new) = (ips(&["198.51.100.7"]), ips(&["192.0.2.1"]));
        let why = "198.51.100.7: pool `other` is not the one that the service asks for".to_owned();
        assert_eq!(lines, [Line::Changed { service: named("a"), old, new: new.clone(), why }]);
        // Somebody writes another address into the status, which no pool has.
        let by_hand = Request { published: Status::of(&["203.0.113.5".parse().unwrap()]), ..only("p") };
        let lines = agent.takes(vec![Edit::UpsertService(by_hand)], false);
        let why = "its status names other addresses, which are in no pool and are served as they are";
        let (old, new) = (new, ips(&["203.0.113.5"]));
        assert_eq!(lines, [Line::Changed { service: named("a"), old, new, why: why.into() }]);
        let instead: Addresses = agent.assignments.by_hand_instead(&named("a")).into_iter().collect();
        assert_eq!(instead, ips(&["192.0.2.1", "198.51.100.7"]));
        let lines = agent.takes(vec![Edit::RemoveService(named("b"))], false);
        let why = "192.0.2.0: the service is gone".to_owned();
        assert_eq!(lines, [Line::Released { service: named("b"), old: ips(&["192.0.2.0"]), why }]);
    }

    #[test]
    fn many_first_addresses_are_one_line_that_counts_all_that_wait() {
        let mut agent = Agent::over(MemoryLedger::default());
        let _ = agent.takes(vec![Edit::UpsertPool(Pool::new("p", &["192.0.2.0/28"]))], true);
        let v6 = Request { families: vec![lb_ipam::Family::V6], ..Request::new("default", "waits") };
        let _ = agent.takes(vec![Edit::UpsertService(v6)], false);
        let lines = agent.takes((0..12).map(|n| service(&format!("s{n}"))).collect(), false);
        assert_eq!(lines, [Line::ManyAssigned { services: 12, unsatisfied: 1 }]);
        let lines = agent.takes((0..12).map(|n| service(&format!("t{n}"))).collect(), false);
        assert_eq!(lines.len(), 4 + 8, "4 get an address and 8 do not");
        let lines = agent.takes((0..12).map(|n| service(&format!("u{n}"))).collect(), false);
        assert_eq!((lines.len(), lines.last()), (MAX_LOGGED + 1, Some(&Line::ManyRefused { services: 2 })));
    }
}
