//! Services that wait for addresses.

use alloc::collections::{BTreeMap, BTreeSet};
use core::net::IpAddr;

use lb_core::{addr::Family, name::ServiceName};

use crate::{Answer, Requested, Timestamp, range::slot};

/// When a service has its turn: the older one first, and of two of the same age the name decides.
pub(crate) type Turn = (Timestamp, ServiceName);

/// Everybody who waits, and for what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting {
    all: BTreeSet<Turn>,
    for_family: [BTreeSet<Turn>; 2],
    for_address: BTreeMap<IpAddr, BTreeSet<Turn>>,
}

impl Waiting {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn contains(&self, turn: &Turn) -> bool {
        self.all.contains(turn)
    }

    /// Notes what a service waits for, if its answer refuses anything.
    pub(crate) fn insert(&mut self, turn: &Turn, answer: &Answer) {
        for refusal in &answer.refused {
            match refusal.asked {
                Requested::Family(family) => _ = self.for_family[slot(family)].insert(turn.clone()),
                Requested::Address(address) => _ = self.for_address.entry(address).or_default().insert(turn.clone()),
                Requested::Text(_) | Requested::More => {}
            }
            self.all.insert(turn.clone());
        }
    }

    /// Forgets a service that got this answer.
    pub(crate) fn remove(&mut self, turn: &Turn, answer: &Answer) {
        if !self.all.remove(turn) {
            return;
        }
        for refusal in &answer.refused {
            match &refusal.asked {
                Requested::Family(family) => _ = self.for_family[slot(*family)].remove(turn),
                Requested::Address(address) => self.remove_for(*address, turn),
                Requested::Text(_) | Requested::More => {}
            }
        }
    }

    fn remove_for(&mut self, address: IpAddr, turn: &Turn) {
        let Some(turns) = self.for_address.get_mut(&address) else { return };
        turns.remove(turn);
        if turns.is_empty() {
            self.for_address.remove(&address);
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Turn> {
        self.all.iter()
    }

    /// Services that would take any address of the family.
    pub(crate) fn for_family(&self, family: Family) -> impl Iterator<Item = &Turn> {
        self.for_family[slot(family)].iter()
    }

    /// Services that want this address, or share it although they may not.
    pub(crate) fn for_address(&self, address: IpAddr) -> impl Iterator<Item = &Turn> {
        self.for_address.get(&address).into_iter().flatten()
    }
}
