//! Objects that others may have changed: a watcher names them, and an inspection compares them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lb_core::drift::Inspection;
use lb_netlink::Pause;

use crate::{
    nftables::{
        host::{CommitError, Host},
        table::layout::Set,
    },
    routes::RouteKind,
};

/// Shared between a datapath and its watcher.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedSuspects {
    suspects: Arc<Mutex<Suspects>>,
    listeners: Arc<Mutex<Vec<Pause>>>,
}

/// For a transaction of more elements than this, the watchers leave their groups.
const MOST_HEARD: usize = 256;

impl SharedSuspects {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Suspects> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a listener that pauses while much is written.
    pub(crate) fn add_listener(&self, listener: Pause) {
        self.listeners().push(listener);
    }

    /// Sends a transaction with this many elements. If they are many, the watchers pause: the kernel would write a page
    /// about each element for them. Changes of others in the pause show in the kernel's number of transactions.
    pub(crate) fn write<T>(
        &self,
        host: &mut dyn Host,
        elements: usize,
        send: impl FnOnce(&mut dyn Host) -> Result<T, CommitError>,
    ) -> Result<T, CommitError> {
        let mut listeners = self.listeners();
        listeners.retain(Pause::has_listener);
        if elements <= MOST_HEARD || listeners.is_empty() {
            return send(host);
        }
        let before = host.transactions();
        listeners.iter().for_each(Pause::begin);
        let sent = send(host);
        listeners.iter().for_each(Pause::end);
        let alone = match (before, host.transactions()) {
            (Ok(before), Ok(after)) => after == before.wrapping_add(u32::from(sent.is_ok())),
            (Err(_), _) | (_, Err(_)) => false,
        };
        if !alone {
            listeners.iter().for_each(Pause::missed);
        }
        sent
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Pause>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The objects that `inspection` has to compare. They are not suspect any more.
    pub(crate) fn take(&self, inspection: Inspection) -> Suspects {
        let suspects = std::mem::take(&mut *self.lock());
        match inspection {
            Inspection::Suspects if !suspects.everything => suspects,
            Inspection::Suspects | Inspection::Everything => Suspects::everything(),
        }
    }
}

/// Objects that may have been changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Suspects {
    /// Everything.
    pub(crate) everything: bool,
    /// Sets, chains, rules, and the table itself.
    pub(crate) ruleset: bool,
    /// All elements of these.
    pub(crate) sets: BTreeSet<Set>,
    /// Single elements by the bytes of their keys.
    pub(crate) keys: BTreeMap<Set, BTreeSet<Vec<u8>>>,
    /// Routes with a notification, and whether they exist now as this datapath writes them.
    pub(crate) routes: BTreeMap<(RouteKind, IpAddr), bool>,
    /// The routing rules.
    pub(crate) routing_rules: bool,
    /// Whether addresses belong to somebody else.
    pub(crate) owners: bool,
}

/// With more suspects than this in one set, reading all of the set costs less than asking for each.
const MOST_KEYS: usize = 512;

impl Suspects {
    pub(crate) fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Adds an element.
    pub(crate) fn add_key(&mut self, set: Set, key: Vec<u8>) {
        // A bound means nothing without the others.
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

#[cfg(test)]
mod tests {

    use super::*;
    use crate::nftables::fake::World;
    use lb_netlink::{Delivery, Listener, Protocol};

    /// `RTNLGRP_LINK`, which takes no privilege.
    const LINKS: u32 = 1;

    #[test]
    fn what_others_write_while_nobody_listens_shows() {
        let (shared, world) = (SharedSuspects::default(), World::default());
        let listener = Listener::open(Protocol::Route, &[LINKS], None).unwrap();
        shared.add_listener(listener.pause());
        let write = |elements, transactions, takes: bool| {
            let sent = shared.write(&mut world.clone(), elements, |_| {
                world.lock().commits += transactions;
                if takes { Ok(()) } else { Err(CommitError::Refused(Vec::new())) }
            });
            assert_eq!(sent.is_ok(), takes);
            listener.read(|_| {}).unwrap()
        };
        assert_eq!(write(MOST_HEARD, 7, true), Delivery::Complete, "it listened");
        assert_eq!(write(MOST_HEARD + 1, 1, true), Delivery::Complete);
        assert_eq!(write(MOST_HEARD + 1, 0, false), Delivery::Complete);
        assert_eq!(write(MOST_HEARD + 1, 2, true), Delivery::Overrun);
        assert_eq!(write(MOST_HEARD + 1, 1, false), Delivery::Overrun);
        assert_eq!(write(MOST_HEARD + 1, 1, true), Delivery::Complete);
    }
}
