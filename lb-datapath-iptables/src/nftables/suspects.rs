//! What deserves a look: named by what the kernel tells of others' changes, looked at by an inspection.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lb_core::Inspection;

use super::layout::Set;
use crate::routes::Place;

/// Shared between a datapath and its watcher.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(Arc<Mutex<Suspects>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Suspects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `inspection` has to look at. From now on it is not suspect any more.
    pub(super) fn take(&self, inspection: Inspection) -> Suspects {
        let suspects = std::mem::take(&mut *self.lock());
        match inspection {
            Inspection::Suspects if !suspects.everything => suspects,
            Inspection::Suspects | Inspection::Everything => Suspects::everything(),
        }
    }
}

/// Objects that may have been changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Suspects {
    /// Everything there is.
    pub(super) everything: bool,
    /// Sets, chains, rules, and the table itself.
    pub(super) ruleset: bool,
    /// All elements of these.
    pub(super) sets: BTreeSet<Set>,
    /// Single elements by the bytes of their keys.
    pub(super) keys: BTreeMap<Set, BTreeSet<Vec<u8>>>,
    /// Routes that were told of, and whether they are there and ours.
    pub(super) routes: BTreeMap<(Place, IpAddr), bool>,
    /// The routing rules.
    pub(super) routing_rules: bool,
}

/// With more suspects than this in one set, reading all of the set costs less than asking for each.
const MOST_KEYS: usize = 512;

impl Suspects {
    pub(super) fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Adds an element.
    pub(super) fn add_key(&mut self, set: Set, key: Vec<u8>) {
        // What lies between two bounds says nothing without the others.
        if self.everything || self.sets.contains(&set) {
            return;
        }
        let keys = self.keys.entry(set).or_default();
        keys.insert(key);
        if keys.len() > MOST_KEYS || matches!(set, Set::Cluster(_)) {
            self.keys.remove(&set);
            self.sets.insert(set);
        }
    }
}
