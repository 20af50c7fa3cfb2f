//! The contents of the table in memory, so that a change need not read the table.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    id::{BackendId, SetId},
    state::{Backend, Frontend, OtherPorts, State},
};

use crate::nftables::table::{
    choice::Pick,
    elements::set_of,
    layout::{Device, Endpoint},
};

/// The state in the table, with the counts that say when something shared comes and goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirror {
    pub(crate) state: State,
    /// Frontends that point to a set.
    pub(crate) set_users: Counts<SetId>,
    /// Sets that contain a backend.
    pub(crate) backend_users: Counts<BackendId>,
    /// Local backends with an address.
    pub(crate) hairpins: Counts<IpAddr>,
    /// Backends that answer at an address and port over TCP.
    pub(crate) connected: Counts<Endpoint>,
    /// Frontends with an address.
    pub(crate) vips: Counts<IpAddr>,
    /// Frontends of an address that say the same about its other ports.
    pub(crate) says: Counts<(IpAddr, OtherPorts)>,
    /// Frontends that go to a pick chain. A chain without any is removed.
    pub(crate) picks: Counts<Pick>,
    /// Devices that lead out of the node.
    pub(crate) uplinks: BTreeSet<Device>,
}

impl Mirror {
    /// A mirror of `state`, of the pick chains that the frontends go to, and of the devices that lead out of the node.
    pub(crate) fn new(state: State, picks: Counts<Pick>, uplinks: BTreeSet<Device>) -> Self {
        let mut mirror = Self { picks, uplinks, ..Self::default() };
        mirror.state.node = state.node;
        for (id, backend) in state.backends {
            mirror.put_backend(id, Some(backend));
        }
        for (id, set) in state.sets {
            mirror.put_set(id, Some(set));
        }
        for (addr, frontend) in state.frontends {
            mirror.put_frontend(addr, Some(frontend));
        }
        mirror
    }

    /// Adds, changes or (`None`) removes a backend.
    pub(crate) fn put_backend(&mut self, id: BackendId, new: Option<Backend>) {
        let old = replace(&mut self.state.backends, id, new);
        self.hairpins.swap(hairpin(old.as_ref()), hairpin(new.as_ref()));
        self.connected.swap(connected(old.as_ref()), connected(new.as_ref()));
    }

    /// Adds, changes or removes a set.
    pub(crate) fn put_set(&mut self, id: SetId, new: Option<std::sync::Arc<lb_core::state::BackendSet>>) {
        let members = new.as_deref().map(members).unwrap_or_default();
        let old = replace(&mut self.state.sets, id, new);
        for backend in members {
            self.backend_users.swap(None, Some(backend));
        }
        for backend in old.as_deref().map(self::members).unwrap_or_default() {
            self.backend_users.swap(Some(backend), None);
        }
    }

    /// Adds, changes or removes a frontend.
    pub(crate) fn put_frontend(&mut self, addr: FrontendAddr, new: Option<Frontend>) {
        let (is_there, new_set) = (new.is_some(), new.as_ref().and_then(set_of));
        let says = new.as_ref().map(|new| (addr.ip, new.other_ports));
        let old = replace(&mut self.state.frontends, addr, new);
        self.set_users.swap(old.as_ref().and_then(set_of), new_set);
        self.says.swap(old.as_ref().map(|old| (addr.ip, old.other_ports)), says);
        self.vips.swap(old.map(|_| addr.ip), is_there.then_some(addr.ip));
    }
}

/// The address that a backend may see itself under.
pub(crate) fn hairpin(backend: Option<&Backend>) -> Option<IpAddr> {
    backend.filter(|backend| backend.local).map(|backend| backend.addr.ip)
}

/// Where a backend answers, if it does so over TCP.
pub(crate) fn connected(backend: Option<&Backend>) -> Option<Endpoint> {
    backend.filter(|backend| backend.addr.protocol == Protocol::Tcp).map(|backend| (backend.addr.ip, backend.addr.port))
}

/// The backends of a set, each once.
pub(crate) fn members(set: &lb_core::state::BackendSet) -> BTreeSet<BackendId> {
    set.backends()
}

fn replace<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, new: Option<V>) -> Option<V> {
    match new {
        Some(new) => map.insert(key, new),
        None => map.remove(&key),
    }
}

/// How many users each key has; a key without users is absent.
#[derive(Clone, Debug)]
pub(crate) struct Counts<K>(BTreeMap<K, usize>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy> Counts<K> {
    /// One user less for `old`, one more for `new`.
    pub(crate) fn swap(&mut self, old: Option<K>, new: Option<K>) {
        if let Some(key) = new {
            *self.0.entry(key).or_insert(0) += 1;
        }
        if let Some(key) = old
            && let Some(count) = self.0.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }

    /// Users of `key`.
    pub(crate) fn get(&self, key: K) -> usize {
        self.0.get(&key).copied().unwrap_or(0)
    }

    /// Keys that have users.
    pub(crate) fn keys(&self) -> impl Iterator<Item = K> + '_ {
        self.0.keys().copied()
    }
}
