//! First listings, which wait for each other.

use std::collections::BTreeSet;

use lb_core::{
    model::Change,
    name::{ServiceName, SliceName},
};

/// Changes that wait until every source has listed everything once. Nobody has seen them: of each object only the last
/// state counts, and what came and went was never there.
#[derive(Debug, Default)]
pub(super) struct FirstListings {
    changes: Vec<Change>,
    /// How many changes there were when they were folded last.
    folded: usize,
    /// How often changes were added since.
    added: usize,
}

/// How many changes are folded at the least, so that folding costs little for each.
const LEAST: usize = 1000;

impl FirstListings {
    pub(super) fn add(&mut self, changes: Vec<Change>) {
        if self.changes.is_empty() {
            self.changes = changes;
        } else {
            self.changes.extend(changes);
        }
        self.added += 1;
        // A source may change for as long as another one is silent.
        if self.changes.len() > 2 * self.folded + LEAST {
            self.fold();
        }
    }

    /// Services that are listed so far.
    pub(super) fn services(&self) -> BTreeSet<ServiceName> {
        let mut services = BTreeSet::new();
        for change in &self.changes {
            match change {
                Change::UpsertService(service) => drop(services.insert(service.name.clone())),
                Change::RemoveService(name) => drop(services.remove(name)),
                _ => {}
            }
        }
        services
    }

    /// All of them, those that addresses make before the others.
    ///
    /// At a start nobody has anything yet, and the first to name an address has it: that is who the ledger says holds
    /// it, and not who names it in a manifest.
    pub(super) fn finish(&mut self, granted: Vec<Change>) -> Vec<Change> {
        let names: BTreeSet<&ServiceName> = granted.iter().filter_map(service_of).collect();
        // A listing in one piece, such as that of a directory, says each object once.
        if self.added > 1 {
            self.fold();
        }
        self.changes.retain(|change| service_of(change).is_none_or(|name| !names.contains(name)));
        let mut changes = std::mem::take(self).changes;
        changes.splice(0..0, granted);
        changes
    }

    fn fold(&mut self) {
        let (mut services, mut slices) = (BTreeSet::new(), BTreeSet::new());
        let mut kept: Vec<Change> = Vec::with_capacity(self.changes.len());
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            let is_last = match (service_of(&change), slice_of(&change)) {
                (Some(name), _) => services.insert(name.clone()),
                (_, Some(name)) => slices.insert(name.clone()),
                (None, None) => true,
            };
            let is_removal = matches!(change, Change::RemoveService(_) | Change::RemoveEndpoints(_));
            if is_last && !is_removal {
                kept.push(change);
            }
        }
        kept.reverse();
        self.added = 1;
        self.folded = kept.len();
        self.changes = kept;
    }
}

fn service_of(change: &Change) -> Option<&ServiceName> {
    match change {
        Change::UpsertService(service) => Some(&service.name),
        Change::RemoveService(name) => Some(name),
        _ => None,
    }
}

fn slice_of(change: &Change) -> Option<&SliceName> {
    match change {
        Change::ReplaceEndpoints(slice) => Some(&slice.name),
        Change::RemoveEndpoints(name) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use lb_core::{name::SourceName, service::Service};

    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName::new("default", name)
    }

    fn service(text: &str, ip: &str) -> Change {
        Change::UpsertService(Service { cluster_ips: vec![ip.parse().unwrap()], ..Service::new(name(text)) })
    }

    #[test]
    fn of_each_object_the_last_state_counts() {
        let mut listings = FirstListings::default();
        let done = Change::InitDone(SourceName("a".into()));
        listings.add(vec![service("a", "10.96.0.1"), service("b", "10.96.0.2"), done.clone()]);
        listings.add(vec![Change::RemoveService(name("a")), Change::RemoveService(name("b"))]);
        listings.add(vec![service("b", "10.96.0.3")]);
        assert_eq!(listings.finish(Vec::new()), [done, service("b", "10.96.0.3")]);
    }

    #[test]
    fn who_was_granted_an_address_comes_first_and_once() {
        let mut listings = FirstListings::default();
        listings.add(vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")]);
        let granted = vec![service("b", "10.96.0.9")];
        assert_eq!(listings.finish(granted), [service("b", "10.96.0.9"), service("a", "10.96.0.1")]);
    }

    #[test]
    fn a_source_that_changes_while_another_is_silent_fills_no_memory() {
        let mut listings = FirstListings::default();
        for round in 0..5000 {
            listings.add(vec![service("a", if round % 2 == 0 { "10.96.0.1" } else { "10.96.0.2" })]);
            assert!(listings.changes.len() <= LEAST + 3);
        }
        assert_eq!(listings.finish(Vec::new()), [service("a", "10.96.0.2")]);
    }
}
