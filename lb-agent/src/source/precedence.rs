//! Which of several sources an object comes from.
//!
//! Names are the identity of objects: the model and the allocator know one service, one slice and one pool of a name.
//! Of those that several sources have, the one of the first source counts, and the next one's takes over when it goes.

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

/// A service and what it asks of pools, which go together: addresses for one source's service must not reach the
/// other's.
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

/// What an object is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Service(ServiceName),
    Slice(SliceName),
    Pool(PoolName),
}

impl Key {
    fn of_change(change: &Change) -> Option<Self> {
        match change {
            Change::UpsertService(service) => Some(Self::Service(service.name.clone())),
            Change::RemoveService(name) => Some(Self::Service(name.clone())),
            Change::ReplaceEndpoints(slice) => Some(Self::Slice(slice.name.clone())),
            Change::RemoveEndpoints(name) => Some(Self::Slice(name.clone())),
            _ => None,
        }
    }

    fn of_edit(edit: &Edit) -> Option<Self> {
        match edit {
            Edit::UpsertPool(pool) => Some(Self::Pool(pool.name.clone())),
            Edit::RemovePool(name) => Some(Self::Pool(name.clone())),
            Edit::UpsertService(request) => Some(Self::Service(request.service.clone())),
            Edit::KeepService(name) | Edit::RemoveService(name) => Some(Self::Service(name.clone())),
            _ => None,
        }
    }
}

impl Precedence {
    /// Takes what one source says, and returns what follows for the model and the allocator.
    ///
    /// What a source says of its own objects passes unchanged and in order. An object that changes its source by this
    /// is said once, as the new source has it: with its request, since addresses have to be granted to another source
    /// now.
    pub(super) fn take(&mut self, source: usize, changes: Vec<Change>, edits: Vec<Edit>) -> Effective {
        let keys = changes.iter().filter_map(Key::of_change).chain(edits.iter().filter_map(Key::of_edit));
        let mut before: BTreeMap<Key, Option<usize>> = keys.map(|key| (key, None)).collect();
        before.iter_mut().for_each(|(key, owner)| *owner = self.owner(key));
        changes.iter().for_each(|change| self.note_change(source, change));
        edits.iter().for_each(|edit| self.note_edit(source, edit));

        let moved = before.iter().filter(|(key, owner)| self.owner(key) != **owner).map(|(key, _)| key);
        // What goes makes room for what comes.
        let (gone, come): (Vec<&Key>, Vec<&Key>) = moved.partition(|key| self.owner(key).is_none());
        let passes = |key: Option<Key>| match key {
            Some(key) => before.get(&key) == Some(&Some(source)) && self.owner(&key) == Some(source),
            None => true,
        };
        let mut effective = Effective::default();
        gone.into_iter().for_each(|key| self.say(key, true, &mut effective));
        effective.edits.extend(edits.into_iter().filter(|edit| passes(Key::of_edit(edit))));
        effective.changes.extend(changes.into_iter().filter(|change| passes(Key::of_change(change))));
        come.into_iter().for_each(|key| self.say(key, before[key].is_some(), &mut effective));
        effective
    }

    /// The source whose object of this name counts.
    fn owner(&self, key: &Key) -> Option<usize> {
        match key {
            Key::Service(name) => self.services.owner(name),
            Key::Slice(name) => self.slices.owner(name),
            Key::Pool(name) => self.pools.owner(name),
        }
    }

    /// The source whose service of this name counts: the one that is to be granted its addresses.
    pub(super) fn owner_of_service(&self, name: &ServiceName) -> Option<usize> {
        self.services.owner(name)
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

    fn note_change(&mut self, source: usize, change: &Change) {
        match change {
            Change::UpsertService(service) => {
                self.declare(source, &service.name, |declared| declared.service = Some(service.clone()));
            }
            Change::RemoveService(name) => self.declare(source, name, |declared| declared.service = None),
            Change::ReplaceEndpoints(slice) => self.slices.set(source, &slice.name, Some(slice.clone())),
            Change::RemoveEndpoints(name) => self.slices.set(source, name, None),
            _ => {}
        }
    }

    fn note_edit(&mut self, source: usize, edit: &Edit) {
        match edit {
            Edit::UpsertPool(pool) => self.pools.set(source, &pool.name, Some(pool.clone())),
            Edit::RemovePool(name) => self.pools.set(source, name, None),
            Edit::UpsertService(request) => {
                self.declare(source, &request.service, |declared| declared.request = Some(edit.clone()));
            }
            Edit::KeepService(name) => self.declare(source, name, |declared| declared.request = Some(edit.clone())),
            Edit::RemoveService(name) => self.declare(source, name, |declared| declared.request = None),
            _ => {}
        }
    }

    fn declare(&mut self, source: usize, name: &ServiceName, change: impl FnOnce(&mut Declared)) {
        let mut declared = self.services.of(source, name).cloned().unwrap_or_default();
        change(&mut declared);
        self.services.set(source, name, Some(declared).filter(|declared| *declared != Declared::default()));
    }

    /// Says what an object is now that another source has it, or none. `was_there` is false for a new one.
    fn say(&self, key: &Key, was_there: bool, effective: &mut Effective) {
        match key {
            Key::Service(name) => {
                let Declared { service, request } = self.services.effective(name).cloned().unwrap_or_default();
                let withdrawn = was_there.then(|| Edit::RemoveService(name.clone()));
                effective.edits.extend(request.or(withdrawn));
                effective.changes.push(service.map_or(Change::RemoveService(name.clone()), Change::UpsertService));
            }
            Key::Slice(name) => {
                let slice = self.slices.effective(name).cloned();
                effective.changes.push(slice.map_or(Change::RemoveEndpoints(name.clone()), Change::ReplaceEndpoints));
            }
            Key::Pool(name) => {
                let pool = self.pools.effective(name).cloned();
                effective.edits.push(pool.map_or(Edit::RemovePool(name.clone()), Edit::UpsertPool));
            }
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

impl<K: Clone + Ord, V> Table<K, V> {
    fn of(&self, source: usize, name: &K) -> Option<&V> {
        self.objects.get(name)?.get(&source)
    }

    fn owner(&self, name: &K) -> Option<usize> {
        self.objects.get(name)?.keys().next().copied()
    }

    fn effective(&self, name: &K) -> Option<&V> {
        self.objects.get(name)?.values().next()
    }

    /// Sets or removes what a source has.
    fn set(&mut self, source: usize, name: &K, value: Option<V>) {
        let of_name = self.objects.entry(name.clone()).or_default();
        match value {
            Some(value) => drop(of_name.insert(source, value)),
            None => drop(of_name.remove(&source)),
        }
        if of_name.len() > 1 {
            self.several.insert(name.clone());
        } else {
            self.several.remove(name);
            if of_name.is_empty() {
                self.objects.remove(name);
            }
        }
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
        assert_eq!(taken_over, Effective { changes: vec![service("10.96.0.2")], edits: vec![request.clone()] });
        let equal = all.take(0, vec![service("10.96.0.1")], vec![request.clone()]);
        let again = Effective { changes: vec![service("10.96.0.1")], edits: vec![request] };
        assert_eq!(equal, again, "the other source has to be granted the addresses, though the request is the same");
        assert_eq!(all.owner_of_service(&ServiceName::new("default", "web")), Some(0));
    }

    #[test]
    fn what_a_source_says_of_its_own_objects_passes_in_order() {
        let mut all = Precedence::default();
        let swap = vec![service("10.96.0.1"), gone(), service("10.96.0.2")];
        assert_eq!(all.take(0, swap, Vec::new()).changes, [service("10.96.0.2")], "a new object is said once");
        let swap = vec![service("10.96.0.3"), service("10.96.0.1")];
        assert_eq!(all.take(0, swap.clone(), Vec::new()).changes, swap, "such as two that swap their addresses");
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
