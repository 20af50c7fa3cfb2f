//! Reads the maps that an earlier process left, and finds the writes that put them right.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::Arc,
};

use lb_core::{
    addr::FrontendAddr,
    drift::{Difference, Drift, DriftClass},
    id::{BackendId, SetId},
    state::{BackendSet, Frontend, Target},
};
use lb_datapath_ebpf_abi::{self as abi, Pod};

use ipnet::IpNet;

use crate::state::{
    convert::{self, Corrupt},
    heap::Extent,
    lower::set_value,
    mirror::{Mirror, chunks},
    write::{Limits, Snapshot, Write},
};

/// The content of maps that were found.
pub(crate) struct Restored {
    pub(crate) mirror: Mirror,
    /// Writes that finish or remove what a process left half done, and remove what cannot be read.
    pub(crate) fixes: Vec<Write>,
    /// Entries that no version with this layout writes.
    pub(crate) unreadable: Vec<Drift>,
}

/// A frontend that can be read.
struct Readable {
    addr: FrontendAddr,
    frontend: Frontend,
    key: abi::FrontendKey,
    value: abi::FrontendValue,
}

impl Restored {
    pub(crate) fn new(snapshot: &Snapshot, limits: Limits) -> Self {
        let mut restored = Self { mirror: Mirror::new(limits), fixes: Vec::new(), unreadable: Vec::new() };
        let frontends = restored.readable(snapshot);
        restored.backends(snapshot);
        restored.sets(snapshot, &frontends);
        restored.frontends(frontends);
        restored.node(snapshot);
        restored.moved(snapshot);
        restored.fixes.extend(restored.mirror.restore_rest(snapshot));
        restored.fixes.extend(restored.mirror.restore_addresses(snapshot));
        restored
    }

    fn extra(&mut self, class: DriftClass, object: impl Display) {
        self.unreadable.push(Drift::new(class, object, Difference::Extra));
    }

    fn wrong(&mut self, class: DriftClass, object: impl Display, value: &impl Pod) {
        let found = Corrupt::of(value).to_string();
        let difference = Difference::Wrong { expected: "an entry that is in use".into(), found };
        self.unreadable.push(Drift::new(class, object, difference));
    }

    fn readable(&mut self, snapshot: &Snapshot) -> Vec<Readable> {
        let mut readable = Vec::with_capacity(snapshot.frontends.len());
        let sources = sources(snapshot);
        for &(key, value) in &snapshot.frontends {
            match (convert::frontend_addr(&key), convert::frontend(&value, &sources)) {
                (Ok(addr), Ok(frontend)) => {
                    readable.push(Readable { addr, frontend, key, value });
                    continue;
                }
                (Ok(addr), Err(_)) => self.wrong(DriftClass::Frontend, addr, &value),
                (Err(key), _) => self.extra(DriftClass::Frontend, key),
            }
            self.fixes.push(Write::NoFrontend(key));
        }
        readable
    }

    fn backends(&mut self, snapshot: &Snapshot) {
        for (number, value) in &snapshot.backends {
            match (BackendId::new(*number), convert::backend(value)) {
                (Some(id), Ok(backend)) => {
                    self.mirror.state.backends.insert(id, backend);
                    continue;
                }
                (Some(id), Err(_)) => self.wrong(DriftClass::Backend, format_args!("id {id}"), value),
                (None, _) => self.extra(DriftClass::Backend, "id 0"),
            }
            self.fixes.push(Write::NoBackend(*number));
        }
    }

    /// Adopts sets as the frontends use them, whatever `SETS` says: their slots must not be assigned to other sets.
    /// Sets that no frontend uses come after those.
    fn sets(&mut self, snapshot: &Snapshot, frontends: &[Readable]) {
        let used: BTreeSet<_> = frontends.iter().filter_map(|frontend| claim(&frontend.value)).map(order).collect();
        let is_used = |(id, value, _): &&(u32, abi::SetValue, Vec<u32>)| used.contains(&order((*id, *value)));
        let agreed = snapshot.sets.iter().filter(is_used);
        let claimed = snapshot.claims.iter().filter(is_used);
        let draining = draining(snapshot);
        for (id, value, slots) in agreed.chain(claimed).chain(&snapshot.sets) {
            self.set(*id, value, slots, draining.get(id));
        }
        let mut listed = BTreeSet::new();
        for (id, value, _) in &snapshot.sets {
            listed.insert(*id);
            let right = self.set_value(*id);
            if right == Some(*value) {
                continue;
            }
            self.wrong(DriftClass::Set, format_args!("set {id}"), value);
            self.fixes.push(right.map_or(Write::NoSet(*id), |right| Write::Set(*id, right)));
        }
        let unlisted: Vec<u32> =
            self.mirror.state.sets.keys().map(|id| id.get()).filter(|id| !listed.contains(id)).collect();
        let missing = unlisted.into_iter().filter_map(|id| Some(Write::Set(id, self.set_value(id)?)));
        let missing: Vec<_> = missing.collect();
        self.fixes.extend(missing);
    }

    /// Takes over a set that can be read and whose room is free.
    fn set(&mut self, id: u32, value: &abi::SetValue, slots: &[u32], draining: Option<&BTreeSet<BackendId>>) {
        let ids: Option<Arc<[BackendId]>> = slots.iter().copied().map(BackendId::new).collect();
        let (Some(id), Some(slots), Ok(lookup)) = (SetId::new(id), ids, convert::model_lookup(value)) else { return };
        let extent = Extent { first: value.first, chunks: chunks(value.slots) };
        let whole = slots.len() == value.slots as usize && !slots.is_empty();
        if whole && !self.mirror.state.sets.contains_key(&id) && self.mirror.heap.take(extent) {
            let known = |id: &&BackendId| self.mirror.state.backends.contains_key(id) && !slots.contains(id);
            let draining = draining.into_iter().flatten().filter(known).copied().collect();
            self.mirror.insert_set(id, &Arc::new(BackendSet { lookup, slots, draining }), extent);
        }
    }

    fn set_value(&self, id: u32) -> Option<abi::SetValue> {
        let id = SetId::new(id)?;
        Some(set_value(self.mirror.state.sets.get(&id)?, self.mirror.extent(id)?))
    }

    /// A frontend whose set is lost is removed as well. The next plan writes it again, with a new set.
    fn frontends(&mut self, frontends: Vec<Readable>) {
        for Readable { addr, frontend, key, value } in frontends {
            let right = match frontend.target {
                Target::Set(id) => {
                    self.mirror.state.sets.get(&id).zip(self.mirror.extent(id)).and_then(|(set, extent)| {
                        let place = (extent, set.slots.len() as u32, set.lookup);
                        convert::frontend_value(&frontend, Some(place)).ok()
                    })
                }
                Target::Reject | Target::Drop => convert::frontend_value(&frontend, None).ok(),
            };
            if right.is_some() {
                self.mirror.insert_frontend(addr, frontend);
            }
            if right != Some(value) {
                self.wrong(DriftClass::Frontend, addr, &value);
                self.fixes.push(right.map_or(Write::NoFrontend(key), |right| Write::Frontend(key, right)));
            }
        }
    }

    /// Completes values of backends that a version wrote which did not know about the node's addresses.
    fn moved(&mut self, snapshot: &Snapshot) {
        let Mirror { state, .. } = &self.mirror;
        let right = |number| convert::backend_value(state.backends.get(&BackendId::new(number)?)?, &state.node).ok();
        let found = snapshot.backends.iter().map(|(number, value)| (*number, *value, right(*number)));
        let wrong = found.filter(|(_, value, right)| right.is_some_and(|right| right.host != value.host));
        let fixes: Vec<_> = wrong.filter_map(|(number, _, right)| Some(Write::Backend(number, right?))).collect();
        self.fixes.extend(fixes);
    }

    fn node(&mut self, snapshot: &Snapshot) {
        match snapshot.node.as_ref().map(|value| (value, convert::node(value))) {
            None => {}
            Some((value, Ok(node))) => {
                // Another process may have found other ports free.
                let right = convert::node_value(&node, self.mirror.limits.ports).ok();
                self.fixes.extend(right.filter(|right| right != value).map(|right| Write::Node(Box::new(right))));
                self.mirror.state.node = node;
            }
            Some((value, Err(_))) => self.wrong(DriftClass::Node, "facts", value),
        }
    }
}

/// The prefixes of frontends with source ranges, by the number in their keys. One that cannot be read is left out, so that
/// it is removed.
fn sources(snapshot: &Snapshot) -> BTreeMap<u32, Vec<IpNet>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for key in &snapshot.sources {
        found.entry(key.frontend).or_default().extend(convert::source(key).ok());
    }
    found
}

/// The backends that are draining, by set.
fn draining(snapshot: &Snapshot) -> BTreeMap<u32, BTreeSet<BackendId>> {
    let mut sets: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (key, _) in snapshot.members.iter().filter(|(_, value)| *value == abi::MEMBER_DRAINS) {
        sets.entry(key.set).or_default().extend(BackendId::new(key.backend));
    }
    sets
}

/// The set that a frontend's value points to, and where it says that its slots lie.
pub(crate) fn claim(value: &abi::FrontendValue) -> Option<(u32, abi::SetValue)> {
    let abi::FrontendValue { set, first, slots, lookup, target, .. } = *value;
    (target == abi::TARGET_SET).then_some((set, abi::SetValue { first, slots, lookup, pad: [0; 3] }))
}

const fn order((id, value): (u32, abi::SetValue)) -> (u32, u32, u32, u8) {
    (id, value.first, value.slots, value.lookup)
}
