//! Services, and what each has.

use alloc::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::Arc,
    vec::Vec,
};
use core::net::IpAddr;

use lb_core::ServiceName;

use crate::{Answer, Entry, Request, Status, Timestamp, names::Names};

/// Place of a service in the book.
pub(crate) type Slot = usize;

/// Why a service is looked at in the next reconcile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dirt {
    /// It is not.
    #[default]
    Clean,
    /// Something around it changed.
    Touched,
    /// It changed itself.
    Changed,
}

/// Everything about one service.
#[derive(Clone, Debug)]
pub(crate) struct Tracked {
    pub(crate) name: ServiceName,
    /// `None` for a service that is in the ledger only.
    pub(crate) request: Option<Arc<Request>>,
    /// Addresses that it holds according to the ledger, in order.
    pub(crate) held: Vec<IpAddr>,
    /// Addresses that it was the last to hold, in order.
    pub(crate) left: Vec<IpAddr>,
    pub(crate) answer: Answer,
    /// What its status says, as far as known.
    pub(crate) told: Status,
    /// Whether its status is ours to write.
    pub(crate) managed: bool,
    /// Whether it was, and what it says has to go.
    pub(crate) withdrawn: bool,
    pub(crate) dirt: Dirt,
    /// Why the reconcile under way looks at it.
    pub(crate) was: Dirt,
    /// Place among the dirty services of the reconcile under way.
    pub(crate) rank: Option<usize>,
    /// Whether the reconcile under way took something from it.
    pub(crate) lost: bool,
}

impl Tracked {
    fn new(name: ServiceName) -> Self {
        Self {
            name,
            request: None,
            held: Vec::new(),
            left: Vec::new(),
            answer: Answer::default(),
            told: Status::default(),
            managed: false,
            withdrawn: false,
            dirt: Dirt::Clean,
            was: Dirt::Clean,
            rank: None,
            lost: false,
        }
    }

    /// When the service was made; services that are gone come first.
    pub(crate) fn created(&self) -> Timestamp {
        self.request.as_ref().map_or_else(Timestamp::default, |request| request.created)
    }
}

/// All services. Those that the ledger names are in it, known or not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    names: Names,
    slots: Vec<Tracked>,
    unused: Vec<Slot>,
    dirty: Vec<Slot>,
    waiting: BTreeSet<(Timestamp, ServiceName)>,
    orphans: BTreeSet<Slot>,
    keys: BTreeMap<Arc<str>, BTreeSet<(Timestamp, ServiceName)>>,
}

impl Book {
    pub(crate) fn get(&self, slot: Slot) -> &Tracked {
        &self.slots[slot]
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> &mut Tracked {
        &mut self.slots[slot]
    }

    pub(crate) fn find(&self, name: &ServiceName) -> Option<Slot> {
        self.names.find(name)
    }

    pub(crate) fn request(&self, name: &ServiceName) -> Option<&Arc<Request>> {
        self.slots[self.find(name)?].request.as_ref()
    }

    /// Every service that is known, in no order.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Tracked> {
        self.names.places().map(|slot| &self.slots[slot]).filter(|tracked| tracked.request.is_some())
    }

    fn intern(&mut self, name: &ServiceName) -> Slot {
        let entry = match self.names.entry(name) {
            btree_map::Entry::Occupied(known) => return *known.get(),
            btree_map::Entry::Vacant(entry) => entry,
        };
        let tracked = Tracked::new(name.clone());
        match self.unused.pop() {
            Some(slot) => {
                self.slots[slot] = tracked;
                *entry.insert(slot)
            }
            None => {
                self.slots.push(tracked);
                *entry.insert(self.slots.len() - 1)
            }
        }
    }

    /// Takes a request in, and apart from it what its status says. Returns its place if it asks for anything new that those with whom
    /// it shares have to know.
    pub(crate) fn upsert(&mut self, mut request: Request) -> Option<Slot> {
        let slot = self.intern(&request.service);
        let published = core::mem::take(&mut request.published);
        let tracked = &mut self.slots[slot];
        if tracked.request.as_deref() == Some(&request) {
            // An echo of what was written here says nothing new.
            if !tracked.told.says(&published) {
                tracked.told = published;
                self.mark(slot, Dirt::Touched);
            }
            return None;
        }
        let shared = self.forget_request(slot).is_some_and(|before| before.sharing.is_some());
        let concerns_others = shared || request.sharing.is_some();
        self.orphans.remove(&slot);
        if let Some(sharing) = &request.sharing {
            let member = (request.created, request.service.clone());
            self.keys.entry(Arc::clone(&sharing.key)).or_default().insert(member);
        }
        let tracked = &mut self.slots[slot];
        tracked.told = published;
        tracked.request = Some(Arc::new(request));
        self.mark(slot, Dirt::Changed);
        concerns_others.then_some(slot)
    }

    /// The service is gone; what it holds is given back by the next reconcile.
    pub(crate) fn remove(&mut self, name: &ServiceName) {
        let Some(slot) = self.find(name) else { return };
        self.forget_request(slot);
        let tracked = &mut self.slots[slot];
        (tracked.answer, tracked.told, tracked.managed) = (Answer::default(), Status::default(), false);
        // Its place in the list of dirty ones is left; it is passed over there.
        tracked.dirt = Dirt::Clean;
        if !tracked.held.is_empty() {
            self.orphans.insert(slot);
        }
        self.drop_if_unused(slot);
    }

    fn forget_request(&mut self, slot: Slot) -> Option<Arc<Request>> {
        let request = self.slots[slot].request.take()?;
        if self.waiting.is_empty() && request.sharing.is_none() {
            return Some(request);
        }
        let member = (request.created, request.service.clone());
        self.waiting.remove(&member);
        let members = request.sharing.as_ref().and_then(|sharing| self.keys.get_mut(&sharing.key));
        let was_last = members.is_some_and(|members| {
            members.remove(&member);
            members.is_empty()
        });
        if let Some(sharing) = request.sharing.as_ref().filter(|_| was_last) {
            self.keys.remove(&sharing.key);
        }
        Some(request)
    }

    fn drop_if_unused(&mut self, slot: Slot) {
        let tracked = &self.slots[slot];
        if tracked.request.is_none() && tracked.held.is_empty() && tracked.left.is_empty() {
            self.names.remove(&tracked.name);
            self.orphans.remove(&slot);
            self.unused.push(slot);
        }
    }

    pub(crate) fn mark(&mut self, slot: Slot, dirt: Dirt) {
        let tracked = &mut self.slots[slot];
        if tracked.request.is_none() {
            return;
        }
        if tracked.dirt == Dirt::Clean {
            self.dirty.push(slot);
        }
        tracked.dirt = tracked.dirt.max(dirt);
    }

    /// Of those that turn out to share an address, who came last has to get along with the others, whatever it asked for
    /// meanwhile.
    pub(crate) fn mark_newcomers(&mut self, before: &[ServiceName], after: &[ServiceName]) {
        let newcomers = after.iter().filter(|name| !before.contains(name));
        let slots: Vec<Slot> = newcomers.filter_map(|name| self.find(name)).collect();
        slots.into_iter().for_each(|slot| self.mark(slot, Dirt::Changed));
    }

    pub(crate) fn mark_all(&mut self) {
        for slot in 0..self.slots.len() {
            self.mark(slot, Dirt::Touched);
        }
    }

    /// The dirty services, which are clean from now on: those that did not change themselves first, then the older one.
    pub(crate) fn take_dirty(&mut self) -> Vec<Slot> {
        let mut dirty = core::mem::take(&mut self.dirty);
        dirty.retain(|&slot| self.slots[slot].request.is_some());
        self.sort_by_key(&mut dirty, |tracked| tracked.dirt);
        dirty.dedup();
        for (rank, &slot) in dirty.iter().enumerate() {
            let tracked = &mut self.slots[slot];
            (tracked.rank, tracked.lost) = (Some(rank), false);
            tracked.was = core::mem::take(&mut tracked.dirt);
        }
        dirty
    }

    /// Sorts by a key, then the older service, then by name.
    pub(crate) fn sort_by_key<K: Ord>(&self, slots: &mut [Slot], key: impl Fn(&Tracked) -> K) {
        slots.sort_unstable_by(|&a, &b| {
            let (a, b) = (&self.slots[a], &self.slots[b]);
            key(a).cmp(&key(b)).then_with(|| a.created().cmp(&b.created())).then_with(|| a.name.cmp(&b.name))
        });
    }

    /// Whoever holds something and is not known is gone.
    pub(crate) fn abandon_all_unknown(&mut self) {
        let unknown: Vec<Slot> = self.names.places().filter(|&slot| self.is_unknown_holder(slot)).collect();
        self.orphans.extend(unknown);
    }

    /// Those of `names` that hold something and are not known are gone.
    pub(crate) fn abandon_unknown(&mut self, names: &[ServiceName]) {
        let slots = names.iter().filter_map(|name| self.find(name)).filter(|&slot| self.is_unknown_holder(slot));
        let slots: Vec<Slot> = slots.collect();
        self.orphans.extend(slots);
    }

    fn is_unknown_holder(&self, slot: Slot) -> bool {
        self.slots[slot].request.is_none() && !self.slots[slot].held.is_empty()
    }

    /// Services that are gone and hold something, in order of name.
    pub(crate) fn orphans(&self) -> Vec<Slot> {
        let mut orphans: Vec<Slot> = self.orphans.iter().copied().collect();
        orphans.sort_unstable_by(|&a, &b| self.slots[a].name.cmp(&self.slots[b].name));
        orphans
    }

    /// Those that do not have all that they want, in the order in which they are served.
    pub(crate) fn waiting(&self) -> Vec<Slot> {
        self.waiting.iter().filter_map(|(_, name)| self.find(name)).collect()
    }

    pub(crate) fn someone_waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Services with this sharing key, the oldest first.
    pub(crate) fn with_key(&self, key: &str) -> impl Iterator<Item = Slot> {
        self.keys.get(key).into_iter().flatten().filter_map(|(_, name)| self.find(name))
    }

    pub(crate) fn set_answer(&mut self, slot: Slot, answer: Answer) {
        let tracked = &mut self.slots[slot];
        let waits = (tracked.created(), tracked.name.clone());
        if answer.is_satisfied() {
            self.waiting.remove(&waits)
        } else {
            self.waiting.insert(waits)
        };
        tracked.answer = answer;
        (tracked.managed, tracked.withdrawn) = (true, false);
    }

    /// Forgets that a service that is not ours ever was.
    pub(crate) fn disown(&mut self, slot: Slot) {
        let tracked = &mut self.slots[slot];
        (tracked.answer, tracked.managed, tracked.withdrawn) = (Answer::default(), false, true);
        let waits = (tracked.created(), tracked.name.clone());
        self.waiting.remove(&waits);
    }

    pub(crate) fn add_held(&mut self, slot: Slot, address: IpAddr) {
        let tracked = &mut self.slots[slot];
        insert(&mut tracked.held, address);
    }

    pub(crate) fn remove_held(&mut self, slot: Slot, address: IpAddr) {
        let tracked = &mut self.slots[slot];
        tracked.held.retain(|held| *held != address);
        if tracked.held.is_empty() {
            self.orphans.remove(&slot);
        }
        self.drop_if_unused(slot);
    }

    pub(crate) fn add_left(&mut self, name: &ServiceName, address: IpAddr) {
        let slot = self.intern(name);
        insert(&mut self.slots[slot].left, address);
    }

    pub(crate) fn remove_left(&mut self, name: &ServiceName, address: IpAddr) {
        let Some(slot) = self.find(name) else { return };
        self.slots[slot].left.retain(|left| *left != address);
        self.drop_if_unused(slot);
    }

    /// Follows a change of the ledger that nobody here made.
    pub(crate) fn note(&mut self, address: IpAddr, before: Option<&Entry>, after: Option<&Entry>) {
        let gone: Vec<ServiceName> = self.orphans.iter().map(|&slot| self.slots[slot].name.clone()).collect();
        for name in before.map_or(&[][..], Entry::holders) {
            if let Some(slot) = self.find(name) {
                self.mark(slot, Dirt::Touched);
                self.remove_held(slot, address);
            }
        }
        if let Some(Entry::Freed(freed)) = before {
            self.remove_left(&freed.last, address);
        }
        for name in after.map_or(&[][..], Entry::holders) {
            let slot = self.intern(name);
            self.mark(slot, Dirt::Touched);
            self.add_held(slot, address);
        }
        if let Some(Entry::Freed(freed)) = after {
            self.add_left(&freed.last, address);
        }
        // Who is gone stays gone, whoever else changed the entry.
        self.abandon_unknown(&gone);
    }

    /// Forgets what everybody has, before the ledger is read anew. Says who is gone and held something.
    pub(crate) fn clear_entries(&mut self) -> Vec<ServiceName> {
        let gone = self.orphans.iter().map(|&slot| self.slots[slot].name.clone()).collect();
        for tracked in &mut self.slots {
            (tracked.held, tracked.left) = (Vec::new(), Vec::new());
        }
        self.orphans.clear();
        let slots: Vec<Slot> = self.names.places().collect();
        slots.into_iter().for_each(|slot| self.drop_if_unused(slot));
        gone
    }
}

fn insert(sorted: &mut Vec<IpAddr>, address: IpAddr) {
    if let Err(at) = sorted.binary_search(&address) {
        sorted.insert(at, address);
    }
}
