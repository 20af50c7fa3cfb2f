//! Services, and what each has.

mod groups;
mod holdings;
mod names;
mod tracked;
pub(crate) mod waiting;

use alloc::{collections::BTreeSet, sync::Arc, vec::Vec};
use core::{mem, net::IpAddr};

use groups::Groups;
use lb_core::name::ServiceName;
use names::Names;
pub(crate) use tracked::{Slot, Tracked};
use waiting::Waiting;

use crate::{Allocation, Answer, Request, Status};

/// All services. Those that the ledger names are in it, known or not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    names: Names,
    slots: Vec<Tracked>,
    unused: Vec<Slot>,
    dirty: Vec<Slot>,
    waiting: Waiting,
    orphans: BTreeSet<Slot>,
    /// Services that are there and cannot be read.
    unreadable: BTreeSet<Slot>,
    groups: Groups,
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

    /// Every service that is there, whether it can be read or not, in no order.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Tracked> {
        let known = |tracked: &&Tracked| tracked.request.is_some() || tracked.unreadable;
        self.names.places().map(|slot| &self.slots[slot]).filter(known)
    }

    /// Services that are there and cannot be read.
    pub(crate) fn unreadable(&self) -> impl Iterator<Item = Slot> + '_ {
        self.unreadable.iter().copied()
    }

    pub(crate) fn is_unreadable(&self, name: &ServiceName) -> bool {
        self.find(name).is_some_and(|slot| self.slots[slot].unreadable)
    }

    fn intern(&mut self, name: &ServiceName) -> Slot {
        let entry = match self.names.entry(name) {
            alloc::collections::btree_map::Entry::Occupied(known) => return *known.get(),
            alloc::collections::btree_map::Entry::Vacant(entry) => entry,
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

    /// Takes a request in, and apart from it what its status says. Returns its place and its sharing keys, before and
    /// after, if it asks for anything new that others have to know.
    pub(crate) fn upsert(&mut self, mut request: Request) -> Option<(Slot, [Option<Arc<str>>; 2])> {
        let slot = self.intern(&request.service);
        let published = mem::take(&mut request.published);
        let tracked = &mut self.slots[slot];
        if tracked.request.as_deref() == Some(&request) {
            // An echo of what was written here says nothing new.
            if !tracked.told.says(&published) {
                tracked.told = published;
                self.mark(slot);
            }
            return None;
        }
        let before = self.forget_request(slot);
        let is_new_holder = before.is_none() && !self.slots[slot].held.is_empty();
        let key = |request: &Request| request.sharing.as_ref().map(|sharing| Arc::clone(&sharing.key));
        let keys = [before.as_deref().and_then(key), key(&request)];
        self.orphans.remove(&slot);
        self.unreadable.remove(&slot);
        self.groups.insert(&request);
        let tracked = &mut self.slots[slot];
        (tracked.told, tracked.unreadable) = (published, false);
        tracked.request = Some(Arc::new(request));
        self.mark(slot);
        (is_new_holder || keys.iter().any(Option::is_some)).then_some((slot, keys))
    }

    /// The service is there and cannot be read: what it holds stays with it. Returns its place, unless it is known
    /// already.
    pub(crate) fn keep(&mut self, name: &ServiceName) -> Option<Slot> {
        let slot = self.intern(name);
        let tracked = &mut self.slots[slot];
        if tracked.request.is_some() || tracked.unreadable {
            return None;
        }
        tracked.unreadable = true;
        self.orphans.remove(&slot);
        self.unreadable.insert(slot);
        Some(slot)
    }

    /// The service is gone; the next reconcile releases its addresses.
    pub(crate) fn remove(&mut self, name: &ServiceName) {
        let Some(slot) = self.find(name) else { return };
        self.forget_request(slot);
        self.unreadable.remove(&slot);
        let tracked = &mut self.slots[slot];
        (tracked.answer, tracked.told) = (Answer::default(), Status::default());
        (tracked.managed, tracked.unreadable) = (false, false);
        // Its place in the list of dirty ones is left; it is passed over there.
        tracked.is_dirty = false;
        if !tracked.held.is_empty() {
            self.orphans.insert(slot);
        }
        self.drop_if_unused(slot);
    }

    fn forget_request(&mut self, slot: Slot) -> Option<Arc<Request>> {
        let request = self.slots[slot].request.take()?;
        if !self.waiting.is_empty() {
            self.waiting.remove(&(request.created, request.service.clone()), &self.slots[slot].answer);
        }
        self.groups.remove(&request);
        Some(request)
    }

    fn drop_if_unused(&mut self, slot: Slot) {
        let tracked = &self.slots[slot];
        let is_there = tracked.request.is_some() || tracked.unreadable;
        if !is_there && tracked.held.is_empty() && tracked.left.is_empty() {
            self.names.remove(&tracked.name);
            self.orphans.remove(&slot);
            self.unused.push(slot);
        }
    }

    /// Has the service looked at in the next reconcile.
    pub(crate) fn mark(&mut self, slot: Slot) {
        let tracked = &mut self.slots[slot];
        if tracked.request.is_none() {
            return;
        }
        if !core::mem::replace(&mut tracked.is_dirty, true) {
            self.dirty.push(slot);
        }
    }

    pub(crate) fn mark_all(&mut self) {
        for slot in 0..self.slots.len() {
            self.mark(slot);
        }
    }

    /// The dirty services, which are clean from now on, the older one first.
    pub(crate) fn take_dirty(&mut self) -> Vec<Slot> {
        let mut dirty = mem::take(&mut self.dirty);
        dirty.retain(|&slot| self.slots[slot].request.is_some());
        self.sort_by_key(&mut dirty, |_| ());
        dirty.dedup();
        for &slot in &dirty {
            let tracked = &mut self.slots[slot];
            (tracked.is_dirty, tracked.lost) = (false, false);
        }
        dirty
    }

    /// Takes a list back that was done with, for the next dirty services to be put into.
    pub(crate) fn take_back(&mut self, mut list: Vec<Slot>) {
        if self.dirty.is_empty() {
            list.clear();
            self.dirty = list;
        }
    }

    /// Sorts by a key, then the older service, then by name.
    pub(crate) fn sort_by_key<K: Ord>(&self, slots: &mut [Slot], key: impl Fn(&Tracked) -> K) {
        slots.sort_unstable_by(|&a, &b| {
            let (a, b) = (&self.slots[a], &self.slots[b]);
            key(a).cmp(&key(b)).then_with(|| a.created().cmp(&b.created())).then_with(|| a.name.cmp(&b.name))
        });
    }

    /// Services that wait for addresses.
    pub(crate) const fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    pub(crate) fn waits(&self, slot: Slot) -> bool {
        self.waiting.contains(&self.slots[slot].turn())
    }

    pub(crate) fn someone_waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Services with this sharing key, the oldest first.
    pub(crate) fn with_key(&self, key: &str) -> impl Iterator<Item = Slot> {
        self.groups.with_key(key).filter_map(|name| self.find(name))
    }

    pub(crate) fn set_answer(&mut self, slot: Slot, answer: Answer) {
        let tracked = &mut self.slots[slot];
        if !tracked.answer.is_satisfied() || !answer.is_satisfied() {
            let turn = tracked.turn();
            self.waiting.remove(&turn, &tracked.answer);
            self.waiting.insert(&turn, &answer);
        }
        tracked.answer = answer;
        (tracked.managed, tracked.withdrawal, tracked.left_alone) = (true, None, false);
    }

    /// Answers a service that cannot be read with the addresses that it holds. Without any, it may be a service of
    /// another program.
    pub(crate) fn answer_unreadable(&mut self, slot: Slot, granted: Vec<Allocation>) {
        let tracked = &mut self.slots[slot];
        tracked.managed = !granted.is_empty();
        tracked.answer = Answer { granted, refused: Vec::new() };
    }

    /// Forgets a service that this allocator no longer serves. Its status loses the condition and `ours`, once: what
    /// others write afterwards is theirs.
    pub(crate) fn disown(&mut self, slot: Slot, ours: &[IpAddr]) {
        let tracked = &mut self.slots[slot];
        let turn = tracked.turn();
        self.waiting.remove(&turn, &tracked.answer);
        (tracked.answer, tracked.managed) = (Answer::default(), false);
        let theirs = tracked.told.addresses.iter().copied().filter(|address| !ours.contains(address));
        tracked.withdrawal = Some(Status { addresses: theirs.collect(), condition: None });
    }
}
