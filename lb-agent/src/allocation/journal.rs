//! What is logged about addresses: every change with the old addresses, the new ones and the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::name::ServiceName;
use lb_ipam::{Answer, Ledger, Outcome};

use super::assignments::Assignments;

/// Most services whose first addresses, refusals or removals are logged one by one.
const MAX_LOGGED: usize = 10;

pub(super) type Addresses = BTreeSet<IpAddr>;

/// Addresses that services were granted and do not have, because the ledger on the disk does not say so yet.
pub(super) type Withheld = BTreeMap<ServiceName, Addresses>;

/// The addresses that services had when that was logged last.
#[derive(Debug)]
pub(super) struct Journal {
    known: BTreeMap<ServiceName, Addresses>,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A service has addresses, and those that it had before. Its status may be where they come from.
    Assigned { service: ServiceName, old: Addresses, new: Addresses, by_hand: bool },
    /// So many services have addresses, and so many of all services wait for some.
    ManyAssigned { services: usize, waiting: usize },
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

/// The reason of a service that waits for the ledger.
pub(super) const NOT_WRITTEN: &str = "ledger_not_written";

/// The sentence for it.
pub(super) const NOT_WRITTEN_MESSAGE: &str =
    "what it gets waits until the ledger of addresses can be written; see `lb status`";

/// Services that wait for addresses, and the code of the reason.
pub(super) fn waiting<'a>(assignments: &'a Assignments, withheld: &'a Withheld) -> BTreeMap<&'a ServiceName, &'a str> {
    let reason = |answer: &'a Answer| answer.refused.first().map_or("", |first| first.reason().as_str());
    let unsatisfied = assignments.unsatisfied().map(|(name, answer)| (name, reason(answer)));
    unsatisfied.chain(withheld.keys().map(|name| (name, NOT_WRITTEN))).collect()
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
        withheld: &Withheld,
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
            let new = addresses(assignments, withheld, &service);
            let old = if new.is_empty() {
                self.known.remove(&service).unwrap_or_default()
            } else {
                self.known.insert(service.clone(), new.clone()).unwrap_or_default()
            };
            let says_refusal = is_start || written.contains(&service);
            lines.extend(line(assignments, outcome, withheld, service, old, new, says_refusal));
        }
        folded(lines, assignments, withheld, is_start)
    }
}

/// The addresses that a service has here.
fn addresses(assignments: &Assignments, withheld: &Withheld, service: &ServiceName) -> Addresses {
    match assignments.class_of(service) {
        Some(Some(_)) => Addresses::new(),
        Some(None) | None => {
            let is_withheld = |ip: &IpAddr| withheld.get(service).is_some_and(|withheld| withheld.contains(ip));
            assignments.addresses(service).into_iter().filter(|ip| !is_withheld(ip)).collect()
        }
    }
}

fn line(
    assignments: &Assignments,
    outcome: &Outcome,
    withheld: &Withheld,
    service: ServiceName,
    old: Addresses,
    new: Addresses,
    says_refusal: bool,
) -> Option<Line> {
    let lack = lack(assignments, withheld, &service);
    if !old.is_subset(&new) {
        let mut why = losses(assignments, outcome, withheld, &service, old.difference(&new));
        if assignments.class_of(&service) != Some(None) && new.is_empty() {
            return Some(Line::Released { service, old, why: why.join("; ") });
        }
        why.extend(lack.map(|(_, message)| message));
        return Some(Line::Changed { service, old, new, why: why.join("; ") });
    }
    if let Some((reason, message)) = lack {
        return says_refusal.then_some(Line::Refused { service, addresses: new, reason, message });
    }
    let by_hand = assignments.answer(&service).is_none();
    (old != new).then_some(Line::Assigned { service, old, new, by_hand })
}

/// Why a service has not all that it asks for: the code and the sentence.
fn lack(assignments: &Assignments, withheld: &Withheld, service: &ServiceName) -> Option<(String, String)> {
    if withheld.contains_key(service) {
        return Some((NOT_WRITTEN.into(), NOT_WRITTEN_MESSAGE.into()));
    }
    let condition = assignments.answer(service)?.status().condition.filter(|condition| !condition.satisfied)?;
    Some((condition.reason.into_owned(), condition.message))
}

/// Why a service no longer has these addresses.
fn losses<'a>(
    assignments: &Assignments,
    outcome: &Outcome,
    withheld: &Withheld,
    service: &ServiceName,
    lost: impl Iterator<Item = &'a IpAddr>,
) -> Vec<String> {
    let class = assignments.class_of(service);
    if class == Some(None) && assignments.answer(service).is_none() {
        return vec!["its status names other addresses, which are in no pool and are served as they are".into()];
    }
    let cause = |ip: &IpAddr| outcome.released.iter().find(|it| it.service == *service && it.address == *ip);
    let is_withheld = |ip: &IpAddr| withheld.get(service).is_some_and(|withheld| withheld.contains(ip));
    let why = |ip: &IpAddr| match (cause(ip), class) {
        (Some(released), _) => format!("{ip}: {}", released.why),
        (None, None) => {
            format!("{ip}: it came from the status of the service, which is gone or not of type LoadBalancer any more")
        }
        (None, Some(Some(class))) => format!("{ip}: load-balancer class {class} is not served here"),
        (None, Some(None)) => format!("{ip}: the status of the service does not name it any more"),
    };
    lost.filter(|ip| !is_withheld(ip)).map(why).collect()
}

/// The lines with one in place of many that an operator expects.
fn folded(lines: Vec<Line>, assignments: &Assignments, withheld: &Withheld, is_start: bool) -> Vec<Line> {
    let count = |is: fn(&Line) -> bool| lines.iter().filter(|line| is(line)).count();
    let assigned = count(|line| matches!(line, Line::Assigned { .. }));
    let folds_assigned = is_start || assigned > MAX_LOGGED;
    let waiting = waiting(assignments, withheld).len();
    let has_some = |service: &ServiceName| !addresses(assignments, withheld, service).is_empty();
    let all = || assignments.answered().filter(|(service, _)| has_some(service)).count();
    let services = if is_start { all() } else { assigned };
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
    if folds_assigned && services + waiting > 0 {
        folded.push(Line::ManyAssigned { services, waiting });
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
            Self::Assigned { service, old, new, by_hand: true } => {
                tracing::info!(
                    %service, old = ?text(old), new = ?text(new), "the service has the addresses that its status names"
                );
            }
            Self::Assigned { service, old, new, .. } if old.is_empty() => {
                tracing::info!(%service, addresses = ?text(new), "addresses assigned");
            }
            Self::Assigned { service, old, new, .. } => {
                tracing::info!(%service, old = ?text(old), new = ?text(new), "more addresses assigned");
            }
            Self::ManyAssigned { services: 0, waiting } => {
                tracing::info!(waiting, "no service has addresses from pools, and services wait for some");
            }
            Self::ManyAssigned { services, waiting } => {
                tracing::info!(services, waiting, "addresses assigned");
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
            self.journal.lines(&self.assignments, &outcome, &Withheld::new(), &touched, is_start)
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
        assert_eq!(first, [Line::ManyAssigned { services: 2, waiting: 0 }]);
        let ledger = agent.ledger();
        let lines = agent.takes(vec![Edit::RemovePool("p".into())], false);
        assert_eq!(lines, [lost("a", "192.0.2.0"), lost("b", "192.0.2.1")]);
        assert_eq!(agent.takes(Vec::new(), false), []);
        // The pool went while no agent was there.
        let mut agent = Agent::over(ledger);
        let lines = agent.takes(vec![service("a"), service("b"), service("c")], true);
        let refused =
            Line::Refused { service: named("c"), addresses: ips(&[]), reason: "no_pool".into(), message: NONE.into() };
        let all = Line::ManyAssigned { services: 0, waiting: 3 };
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
        let new = ips(&["192.0.2.0"]);
        assert_eq!(lines, [Line::Assigned { service: named("a"), old: ips(&[]), new, by_hand: false }]);
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
        assert_eq!(instead, ips(&["192.0.2.1"]), "the other one was lost for another reason");
        let lines = agent.takes(vec![Edit::RemoveService(named("b"))], false);
        let why = "192.0.2.0: the service is gone".to_owned();
        assert_eq!(lines, [Line::Released { service: named("b"), old: ips(&["192.0.2.0"]), why }]);
    }

    fn with_status(name: &str, ip: &str) -> Edit {
        let published = Status::of(&[ip.parse().unwrap()]);
        Edit::UpsertService(Request { published, ..Request::new("default", name) })
    }

    fn of_class(request: Edit) -> Edit {
        match request {
            Edit::UpsertService(it) => Edit::UpsertService(Request { class: Some("other/x".into()), ..it }),
            other => other,
        }
    }

    #[test]
    fn addresses_of_a_status_come_and_go_with_a_reason() {
        let mut agent = Agent::over(MemoryLedger::default());
        let _ = agent.takes(vec![pool()], true);
        let by_hand = ips(&["203.0.113.5"]);
        let came = agent.takes(vec![with_status("a", "203.0.113.5")], false);
        let assigned = Line::Assigned { service: named("a"), old: ips(&[]), new: by_hand.clone(), by_hand: true };
        assert_eq!(came, std::slice::from_ref(&assigned));
        let lines = agent.takes(vec![service("a")], false);
        let why = "203.0.113.5: the status of the service does not name it any more".to_owned();
        let new = ips(&["192.0.2.0"]);
        assert_eq!(lines, [Line::Changed { service: named("a"), old: by_hand.clone(), new, why }]);
        let _ = agent.takes(vec![Edit::RemoveService(named("a"))], false);
        assert_eq!(agent.takes(vec![with_status("a", "203.0.113.5")], false), [assigned]);
        let lines = agent.takes(vec![of_class(with_status("a", "203.0.113.5"))], false);
        let why = "203.0.113.5: load-balancer class other/x is not served here".to_owned();
        assert_eq!(lines, [Line::Released { service: named("a"), old: by_hand.clone(), why }]);
        let _ = agent.takes(vec![with_status("a", "203.0.113.5")], false);
        let lines = agent.takes(vec![Edit::RemoveService(named("a"))], false);
        let why = "203.0.113.5: it came from the status of the service, which is gone or not of type LoadBalancer any \
                   more"
            .to_owned();
        assert_eq!(lines, [Line::Released { service: named("a"), old: by_hand, why }]);
    }

    #[test]
    fn a_status_replaces_only_an_address_that_it_took_away() {
        let instead = |agent: &Agent| agent.assignments.by_hand_instead(&named("a"));
        // The service had to leave its address before a status named another one.
        let mut agent = Agent::over(MemoryLedger::default());
        let _ = agent.takes(vec![pool(), service("a")], true);
        let _ = agent.takes(vec![of_class(service("a"))], false);
        let _ = agent.takes(vec![of_class(with_status("a", "203.0.113.5"))], false);
        assert_eq!(instead(&agent), Vec::<IpAddr>::new(), "another controller wrote the status");
        let _ = agent.takes(vec![with_status("a", "203.0.113.5")], false);
        assert_eq!(instead(&agent), Vec::<IpAddr>::new());
        // The status came while no agent was there.
        let mut agent = Agent::over(MemoryLedger::default());
        let _ = agent.takes(vec![pool(), service("a")], true);
        let mut agent = Agent::over(agent.ledger());
        let _ = agent.takes(vec![pool(), with_status("a", "203.0.113.5")], true);
        assert_eq!(instead(&agent), ["192.0.2.0".parse::<IpAddr>().unwrap()]);
        let _ = agent.takes(vec![of_class(with_status("a", "203.0.113.5"))], false);
        assert_eq!(instead(&agent), Vec::<IpAddr>::new());
    }

    #[test]
    fn what_waits_for_the_ledger_is_not_assigned_yet() {
        let mut agent = Agent::over(MemoryLedger::default());
        let touched = agent.assignments.take(vec![pool(), service("a")], &[], agent.now).touched;
        let outcome = agent.assignments.settle(agent.now);
        let withheld = Withheld::from([(named("a"), ips(&["192.0.2.0"]))]);
        let lines = agent.journal.lines(&agent.assignments, &outcome, &withheld, &touched, true);
        let (reason, message) = ("ledger_not_written".to_owned(), NOT_WRITTEN_MESSAGE.to_owned());
        let refused = Line::Refused { service: named("a"), addresses: ips(&[]), reason, message };
        assert_eq!(lines, [refused, Line::ManyAssigned { services: 0, waiting: 1 }]);
        let lines = agent.journal.lines(&agent.assignments, &Outcome::default(), &Withheld::new(), &touched, false);
        let new = ips(&["192.0.2.0"]);
        assert_eq!(lines, [Line::Assigned { service: named("a"), old: ips(&[]), new, by_hand: false }]);
    }

    #[test]
    fn many_first_addresses_are_one_line_that_counts_all_that_wait() {
        let mut agent = Agent::over(MemoryLedger::default());
        let _ = agent.takes(vec![Edit::UpsertPool(Pool::new("p", &["192.0.2.0/28"]))], true);
        let v6 = Request { families: vec![lb_ipam::Family::V6], ..Request::new("default", "waits") };
        let _ = agent.takes(vec![Edit::UpsertService(v6)], false);
        let lines = agent.takes((0..12).map(|n| service(&format!("s{n}"))).collect(), false);
        assert_eq!(lines, [Line::ManyAssigned { services: 12, waiting: 1 }]);
        let lines = agent.takes((0..12).map(|n| service(&format!("t{n}"))).collect(), false);
        assert_eq!(lines.len(), 4 + 8, "4 get an address and 8 do not");
        let lines = agent.takes((0..12).map(|n| service(&format!("u{n}"))).collect(), false);
        assert_eq!((lines.len(), lines.last()), (MAX_LOGGED + 1, Some(&Line::ManyRefused { services: 2 })));
    }
}
