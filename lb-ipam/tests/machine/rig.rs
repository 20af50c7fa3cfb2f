//! The allocator, what is around it, and what must hold whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_ipam::{
    Allocator, Condition, Edit, Entry, Ledger, Outcome, Reason, Request, ServiceName, Settings, Status, Timestamp,
};

use crate::{
    checks::ensure,
    ledger::{Failure, Flaky},
    mutants::Mutant,
    ops::Op,
    reference::{Reference, compatible},
    tally::Tally,
};

/// What was found wrong.
pub(crate) type Checked = Result<(), String>;

pub(crate) type Held = BTreeMap<ServiceName, BTreeSet<IpAddr>>;

/// One cluster.
pub(crate) struct Rig {
    pub(crate) allocator: Allocator<Flaky>,
    pub(crate) reference: Reference,
    pub(crate) now: Timestamp,
    pub(crate) batch: Vec<Edit>,
    /// What everybody held when things were brought in order last.
    pub(crate) held: Held,
    /// What statuses said before they were written last.
    pub(crate) published: Held,
    /// Services that changed since.
    pub(crate) edited: BTreeSet<ServiceName>,
    /// Until when addresses rest, whatever the ledger says.
    pub(crate) resting: BTreeMap<IpAddr, (ServiceName, Timestamp)>,
    pub(crate) restarted: bool,
    /// Services that are no load balancers and whose status somebody else wrote.
    pub(crate) left_alone: BTreeSet<ServiceName>,
    pub(crate) tally: Tally,
    pub(crate) mutant: Option<Mutant>,
}

impl Rig {
    pub(crate) fn new(mutant: Option<Mutant>) -> Self {
        Self {
            allocator: Allocator::new(Settings::default(), Flaky::new(mutant)),
            reference: Reference::default(),
            now: Timestamp::from_secs(1_000_000),
            batch: Vec::new(),
            held: Held::new(),
            published: Held::new(),
            edited: BTreeSet::new(),
            resting: BTreeMap::new(),
            restarted: false,
            left_alone: BTreeSet::new(),
            tally: Tally::default(),
            mutant,
        }
    }

    pub(crate) fn run(&mut self, op: &Op) -> Checked {
        self.tally.operations += 1;
        match op {
            Op::Pool(pool) => {
                self.reference.insert((**pool).clone());
                self.batch.push(Edit::UpsertPool((**pool).clone()));
            }
            Op::NoPool(name) => {
                self.reference.remove(name);
                self.batch.push(Edit::RemovePool(name.clone()));
            }
            Op::Service(request) => self.upsert((**request).clone()),
            Op::NoService(name) => {
                self.reference.remove_service(name);
                self.left_alone.remove(name);
                self.edited.insert(name.clone());
                self.batch.retain(|edit| *edit != Edit::KeepService(name.clone()));
                self.batch.push(Edit::RemoveService(name.clone()));
            }
            Op::Garble(name) => {
                if self.reference.services.contains_key(name) || self.reference.unknown.contains_key(name) {
                    self.reference.garbled.insert(name.clone());
                    self.batch.push(Edit::KeepService(name.clone()));
                }
            }
            Op::Foreign(name, address, condition) => self.publish_foreign(name, *address, *condition),
            Op::Wait(time) => self.now = self.now + *time,
            Op::Settle => return self.settle(true),
            Op::Restart => self.restart(),
            Op::Lose => self.lose(),
            Op::Fail { nth, once, made } => self.fail(Failure { after: *nth, once: *once, made: *made }),
            Op::Crash { nth } => {
                self.fail(Failure { after: *nth, once: false, made: *nth % 2 == 0 });
                self.tally.crashes += 1;
                self.settle(false)?;
                self.restart();
            }
            Op::Rules(settings) => self.change_rules((**settings).clone()),
            Op::Claim(address, claimed) => return self.claim(*address, *claimed),
        }
        Ok(())
    }

    fn change_rules(&mut self, settings: Settings) {
        if self.reference.settings.when_sharing_breaks != settings.when_sharing_breaks {
            // Whoever stayed where it does not get along may have to leave now.
            self.edited.extend(self.reference.services.keys().cloned());
        }
        self.reference.set_rules(settings.clone());
        self.batch.push(Edit::SetSettings(settings));
    }

    /// Another controller writes the status of a service that is no load balancer and has been cleared.
    fn publish_foreign(&mut self, name: &ServiceName, address: IpAddr, condition: bool) {
        let is_settled = self.batch.is_empty() && !self.edited.contains(name);
        let Some(request) = self.reference.services.get_mut(name).filter(|it| !it.load_balancer && is_settled) else {
            return;
        };
        if !self.left_alone.contains(name) && request.published != Status::default() {
            return;
        }
        let satisfied = Condition { satisfied: true, reason: Reason::SATISFIED.into(), message: String::new() };
        request.published = Status { addresses: vec![address], condition: condition.then_some(satisfied) };
        self.left_alone.insert(name.clone());
        self.tally.foreign += 1;
        self.batch.push(Edit::UpsertService(request.clone()));
    }

    fn upsert(&mut self, mut request: Request) {
        let before = self.reference.services.get(&request.service);
        let before = before.or_else(|| self.reference.unknown.get(&request.service));
        if let Some(before) = before {
            request.published = before.published.clone();
            request.created = before.created;
        }
        let was_unknown = self.reference.unknown.contains_key(&request.service);
        if before != Some(&request) || was_unknown {
            self.edited.insert(request.service.clone());
        }
        if was_unknown {
            // What its status says counts again, for as much as that of others.
            self.expect_recorded(|service, address| {
                *service == request.service || !request.published.addresses.contains(&address)
            });
        }
        if request.load_balancer {
            self.left_alone.remove(&request.service);
        }
        self.reference.upsert_service(request.clone());
        self.batch.push(Edit::UpsertService(request));
    }

    fn fail(&self, failure: Failure) {
        self.allocator.ledger().failure.set(Some(failure));
    }

    fn restart(&mut self) {
        self.tally.restarts += 1;
        self.batch.clear();
        self.reference.restart();
        self.allocator = self.start(self.allocator.ledger().restarted(), false);
        // Of what cannot be read any more nobody sees what its status says.
        let unknown = self.reference.unknown.clone();
        self.expect_recorded(|service, _| !unknown.contains_key(service));
        self.restarted = true;
    }

    /// Expects nobody to keep what is in no ledger, but what `stays`.
    fn expect_recorded(&mut self, stays: impl Fn(&ServiceName, IpAddr) -> bool) {
        let ledger = held(&self.allocator.ledger().store);
        for (service, addresses) in &mut self.held {
            let is_recorded = |address: &IpAddr| ledger.get(service).is_some_and(|held| held.contains(address));
            addresses.retain(|address| stays(service, *address) || is_recorded(address));
        }
    }

    /// What nobody else has published stays with those that have.
    fn lose(&mut self) {
        self.tally.lost_ledgers += 1;
        self.batch.clear();
        self.reference.restart();
        self.allocator = self.start(Flaky::new(self.mutant), false);
        self.restarted = true;
        self.resting.clear();
        self.reference.claimed.clear();
        for (service, addresses) in &mut self.held {
            let publishers = |address: &IpAddr| {
                self.reference
                    .services
                    .values()
                    .filter(|request| request.published.addresses.contains(address))
                    .collect()
            };
            addresses.retain(|address| {
                let publishers: Vec<&Request> = publishers(address);
                let ours = publishers.iter().find(|request| request.service == *service);
                ours.is_some_and(|ours| {
                    publishers.iter().all(|other| other.service == *service || compatible(ours, other))
                })
            });
        }
    }

    /// A process over the ledger that was told everything there is.
    pub(crate) fn start(&self, ledger: Flaky, reversed: bool) -> Allocator<Flaky> {
        let mut allocator = Allocator::new(Settings::default(), ledger);
        let settings = Edit::SetSettings(self.reference.settings.clone());
        let pools = self.reference.pools.values().map(|set| Edit::UpsertPool(set.pool.clone()));
        let services = self.reference.services.values().cloned().map(Edit::UpsertService);
        let kept = self.reference.unknown.keys().cloned().map(Edit::KeepService);
        let mut edits: Vec<Edit> = [settings].into_iter().chain(pools).chain(services).chain(kept).collect();
        if reversed {
            edits.reverse();
        }
        edits
            .into_iter()
            .filter_map(|edit| Mutant::told(self.mutant, edit))
            .for_each(|edit| allocator.handle_edit(edit));
        allocator
    }

    fn claim(&mut self, address: IpAddr, claimed: bool) -> Checked {
        self.settle(true)?;
        if self.mutant == Some(Mutant::ClaimsAreIgnored) {
            self.reference.claimed.extend(claimed.then_some(address));
            return Ok(());
        }
        let done = if claimed { self.allocator.claim(address, "somebody") } else { self.allocator.clear(address) };
        // What could not be written did not happen, as far as this process knows; the store may know better.
        let known = self.allocator.ledger().store.get(address);
        if done.is_ok() || matches!(known, Some(Entry::Conflict(_))) == claimed {
            if claimed {
                self.reference.claimed.insert(address)
            } else {
                self.reference.claimed.remove(&address)
            };
        }
        Ok(())
    }

    /// Brings everything in order, in two orders of delivery, and looks at what came of it.
    fn settle(&mut self, publish: bool) -> Checked {
        self.tally.settled += 1;
        let batch = last_of_each(core::mem::take(&mut self.batch));
        let before: BTreeMap<IpAddr, Entry> = self.allocator.ledger().store.entries().collect();
        let mut other = self.allocator.clone();
        let now = Mutant::clock(self.mutant, self.now);
        let outcome = deliver(&mut self.allocator, batch.iter(), self.mutant, now);
        let [lost, unheard] = self.allocator.ledger().failed.take();
        self.tally.lost_writes += lost;
        self.tally.unheard_writes += unheard;
        let reversed = deliver(&mut other, batch.iter().rev(), self.mutant, now);
        ensure!(outcome == reversed, "order of delivery matters: {outcome:?} and {reversed:?}");
        ensure!(self.allocator.ledger().store == other.ledger().store, "order of delivery matters to the ledger");
        let services = self.reference.services.values();
        let published = services.map(|request| (request.service.clone(), request.published.addresses.clone()));
        self.published = published.map(|(service, addresses)| (service, addresses.into_iter().collect())).collect();
        if publish {
            self.publish(&outcome);
        }
        let checked = self.check(&before, &outcome, publish);
        self.held = held(&self.allocator.ledger().store);
        if outcome.failed.is_empty() && !outcome.unfinished && publish {
            self.edited.clear();
            self.restarted = false;
        }
        checked
    }

    fn publish(&mut self, outcome: &Outcome) {
        for (at, (service, status)) in outcome.writes.iter().enumerate() {
            if self.mutant == Some(Mutant::StatusIsLost) && at > 0 {
                continue;
            }
            if let Some(request) = self.reference.services.get_mut(service) {
                request.published = status.clone();
            }
        }
    }
}

/// The last edit of each pool and service: what a watch delivers.
fn last_of_each(batch: Vec<Edit>) -> Vec<Edit> {
    let mut last: BTreeMap<String, Edit> = BTreeMap::new();
    for edit in batch {
        let key = match &edit {
            Edit::UpsertPool(pool) => format!("pool {}", pool.name),
            Edit::RemovePool(name) => format!("pool {name}"),
            Edit::UpsertService(request) => format!("service {}", request.service),
            Edit::RemoveService(name) => format!("service {name}"),
            Edit::KeepService(name) => format!("unreadable service {name}"),
            Edit::SetSettings(_) => "settings".to_owned(),
        };
        last.insert(key, edit);
    }
    last.into_values().collect()
}

fn deliver<'a>(
    allocator: &mut Allocator<Flaky>,
    batch: impl Iterator<Item = &'a Edit>,
    mutant: Option<Mutant>,
    now: Timestamp,
) -> Outcome {
    batch.cloned().filter_map(|edit| Mutant::told(mutant, edit)).for_each(|edit| allocator.handle_edit(edit));
    allocator.reconcile(now)
}

pub(crate) fn held(ledger: &impl Ledger) -> Held {
    let mut held = Held::new();
    for (address, entry) in ledger.entries() {
        for holder in entry.holders() {
            held.entry(holder.clone()).or_default().insert(address);
        }
    }
    held
}
