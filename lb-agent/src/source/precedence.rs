//! Which of several sources an object comes from.
//!
//! Names are the identity of objects: the model and the allocator know one service, one slice and one pool of a name. Of
//! those that several sources have, the one of the first source counts, and the next one's takes over when it goes.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{
    endpoint::EndpointSlice,
    model::Change,
    name::{ServiceName, SliceName},
    service::Service,
};
use lb_ipam::{Edit, Pool, PoolName};

/// What every source has, by name. Sources are numbers: the lower one comes first.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    services: Table<ServiceName, Declared>,
    slices: Table<SliceName, EndpointSlice>,
    pools: Table<PoolName, Pool>,
}

/// A service and what it asks of pools, which go together: addresses for one source's service must not reach the other's.
#[derive(Clone, Debug, Default, PartialEq)]
struct Declared {
    service: Option<Service>,
    request: Option<Edit>,
}

/// What counts of the objects that sources have.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Effective {
    pub(super) changes: Vec<Change>,
    pub(super) edits: Vec<Edit>,
}

impl Precedence {
    /// Takes what one source says, and returns what follows for the model and the allocator, in the same order.
    pub(super) fn take(&mut self, source: usize, changes: Vec<Change>, edits: Vec<Edit>) -> Effective {
        let mut effective = Effective::default();
        edits.into_iter().for_each(|edit| self.take_edit(source, edit, &mut effective));
        changes.into_iter().for_each(|change| self.take_change(source, change, &mut effective));
        effective
    }

    /// Objects that are not served because an earlier source has one of the same name, by source.
    pub(super) fn shadowed(&self) -> BTreeMap<usize, Vec<String>> {
        let mut shadowed: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let services = self.services.shadowed().map(|(name, source)| (source, format!("service {name}")));
        let slices = self.slices.shadowed().map(|(name, source)| (source, format!("endpoint slice {name}")));
        let pools = self.pools.shadowed().map(|(name, source)| (source, format!("pool {name}")));
        for (source, object) in services.chain(slices).chain(pools) {
            shadowed.entry(source).or_default().push(object);
        }
        shadowed
    }

    fn take_change(&mut self, source: usize, change: Change, effective: &mut Effective) {
        match change {
            Change::UpsertService(service) => {
                let name = service.name.clone();
                self.declare(source, name, effective, |declared| declared.service = Some(service));
            }
            Change::RemoveService(name) => {
                self.declare(source, name, effective, |declared| declared.service = None);
            }
            Change::ReplaceEndpoints(slice) => {
                let name = slice.name.clone();
                if let Some((_, Some(slice))) = self.slices.set(source, name, Some(slice)) {
                    effective.changes.push(Change::ReplaceEndpoints(slice));
                }
            }
            Change::RemoveEndpoints(name) => match self.slices.set(source, name.clone(), None) {
                Some((_, Some(slice))) => effective.changes.push(Change::ReplaceEndpoints(slice)),
                Some((_, None)) => effective.changes.push(Change::RemoveEndpoints(name)),
                None => {}
            },
            other => effective.changes.push(other),
        }
    }

    fn take_edit(&mut self, source: usize, edit: Edit, effective: &mut Effective) {
        match edit {
            Edit::UpsertPool(pool) => {
                let name = pool.name.clone();
                if let Some((_, Some(pool))) = self.pools.set(source, name, Some(pool)) {
                    effective.edits.push(Edit::UpsertPool(pool));
                }
            }
            Edit::RemovePool(name) => match self.pools.set(source, name.clone(), None) {
                Some((_, Some(pool))) => effective.edits.push(Edit::UpsertPool(pool)),
                Some((_, None)) => effective.edits.push(Edit::RemovePool(name)),
                None => {}
            },
            Edit::UpsertService(ref request) => {
                let name = request.service.clone();
                self.declare(source, name, effective, |declared| declared.request = Some(edit));
            }
            Edit::KeepService(ref name) => {
                let name = name.clone();
                self.declare(source, name, effective, |declared| declared.request = Some(edit));
            }
            Edit::RemoveService(name) => {
                self.declare(source, name, effective, |declared| declared.request = None);
            }
            other => effective.edits.push(other),
        }
    }

    /// Changes what a source has of a service. Says only what differs from before.
    fn declare(
        &mut self,
        source: usize,
        name: ServiceName,
        effective: &mut Effective,
        change: impl FnOnce(&mut Declared),
    ) {
        let mut declared = self.services.of(source, &name).cloned().unwrap_or_default();
        change(&mut declared);
        let declared = Some(declared).filter(|declared| *declared != Declared::default());
        let Some((before, after)) = self.services.set(source, name.clone(), declared) else { return };
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        if before.request != after.request {
            effective.edits.push(after.request.unwrap_or_else(|| Edit::RemoveService(name.clone())));
        }
        if before.service != after.service {
            effective.changes.push(after.service.map_or(Change::RemoveService(name), Change::UpsertService));
        }
    }
}

/// Objects by name, and within a name by source.
#[derive(Debug)]
struct Table<K, V> {
    objects: BTreeMap<K, BTreeMap<usize, V>>,
    /// Names that several sources have.
    several: BTreeSet<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), several: BTreeSet::new() }
    }
}

impl<K: Clone + Ord, V: Clone + PartialEq> Table<K, V> {
    fn of(&self, source: usize, name: &K) -> Option<&V> {
        self.objects.get(name)?.get(&source)
    }

    /// Sets or removes what a source has. What counted before and what counts now, unless that is the same.
    fn set(&mut self, source: usize, name: K, value: Option<V>) -> Option<(Option<V>, Option<V>)> {
        let of_name = self.objects.entry(name.clone()).or_default();
        let before = of_name.values().next().cloned();
        match value {
            Some(value) => drop(of_name.insert(source, value)),
            None => drop(of_name.remove(&source)),
        }
        let after = of_name.values().next().cloned();
        if of_name.len() > 1 {
            self.several.insert(name);
        } else {
            self.several.remove(&name);
            if of_name.is_empty() {
                self.objects.remove(&name);
            }
        }
        (before != after).then_some((before, after))
    }

    /// Names and sources that do not count.
    fn shadowed(&self) -> impl Iterator<Item = (&K, usize)> {
        let of_names = self.several.iter().filter_map(|name| Some((name, self.objects.get(name)?)));
        of_names.flat_map(|(name, of_name)| of_name.keys().skip(1).map(move |source| (name, *source)))
    }
}

#[cfg(test)]
mod tests {
    use lb_ipam::Request;

    use super::*;

    fn service(ip: &str) -> Change {
        let name = ServiceName::new("default", "web");
        Change::UpsertService(Service { cluster_ips: vec![ip.parse().unwrap()], ..Service::new(name) })
    }

    fn gone() -> Change {
        Change::RemoveService(ServiceName::new("default", "web"))
    }

    fn changes(precedence: &mut Precedence, source: usize, change: Change) -> Vec<Change> {
        precedence.take(source, vec![change], Vec::new()).changes
    }

    #[test]
    fn the_first_source_wins_and_the_next_takes_over() {
        let mut all = Precedence::default();
        assert_eq!(changes(&mut all, 1, service("10.96.0.2")), [service("10.96.0.2")]);
        assert_eq!(changes(&mut all, 0, service("10.96.0.1")), [service("10.96.0.1")]);
        assert_eq!(all.shadowed(), [(1, vec!["service default/web".to_owned()])].into());
        assert_eq!(changes(&mut all, 1, service("10.96.0.3")), [], "it is shadowed");
        assert_eq!(changes(&mut all, 0, gone()), [service("10.96.0.3")], "what it is by now");
        assert_eq!(changes(&mut all, 1, gone()), [gone()]);
        assert_eq!((all.shadowed().len(), changes(&mut all, 1, gone())), (0, vec![]));
    }

    #[test]
    fn requests_go_with_their_service() {
        let mut all = Precedence::default();
        let request = Edit::UpsertService(Request::new("default", "web"));
        all.take(0, vec![service("10.96.0.1")], Vec::new());
        let of_other = all.take(1, vec![service("10.96.0.2")], vec![request.clone()]);
        assert_eq!(of_other, Effective::default(), "addresses would reach the other source's service");
        let taken_over = all.take(0, vec![gone()], Vec::new());
        assert_eq!(taken_over, Effective { changes: vec![service("10.96.0.2")], edits: vec![request] });
    }

    #[test]
    fn pools_and_slices_are_told_apart_by_name() {
        let mut all = Precedence::default();
        let pool = |block: &str| Edit::UpsertPool(Pool::new("p", &[block]));
        let edits = |all: &mut Precedence, source, edit| all.take(source, Vec::new(), vec![edit]).edits;
        assert_eq!(edits(&mut all, 0, pool("192.0.2.0/28")), [pool("192.0.2.0/28")]);
        assert_eq!(edits(&mut all, 1, pool("192.0.2.16/28")), []);
        assert_eq!(edits(&mut all, 1, Edit::RemovePool(PoolName::new("p"))), [], "the first one stays");
        assert_eq!(edits(&mut all, 0, Edit::RemovePool(PoolName::new("p"))), [Edit::RemovePool(PoolName::new("p"))]);
        let slice = |service: &str| {
            Change::ReplaceEndpoints(EndpointSlice {
                name: SliceName::new("default", "web-1"),
                service: ServiceName::new("default", service),
                ports: Vec::new(),
                endpoints: Vec::new(),
            })
        };
        assert_eq!(changes(&mut all, 1, slice("b")), [slice("b")]);
        assert_eq!(changes(&mut all, 0, slice("a")), [slice("a")]);
        let removed = Change::RemoveEndpoints(SliceName::new("default", "web-1"));
        assert_eq!(changes(&mut all, 0, removed.clone()), [slice("b")]);
        assert_eq!(changes(&mut all, 1, removed.clone()), [removed]);
    }
}
