//! Names, for reports, of what the maps know by number.

use std::{cell::OnceCell, collections::BTreeMap};

use lb_core::{
    addr::FrontendAddr,
    id::{BackendId, SetId},
    state::Target,
};

use crate::state::mirror::Mirror;

/// Names, for reports, of what the maps know by number.
pub(super) struct Names<'a> {
    mirror: &'a Mirror,
    owners: OnceCell<BTreeMap<SetId, Vec<FrontendAddr>>>,
}

impl<'a> Names<'a> {
    pub(super) const fn new(mirror: &'a Mirror) -> Self {
        Self { mirror, owners: OnceCell::new() }
    }

    fn frontends(&self, set: SetId) -> Option<&Vec<FrontendAddr>> {
        let owners = self.owners.get_or_init(|| {
            let mut owners: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for (addr, frontend) in &self.mirror.state.frontends {
                if let Target::Set(set) = frontend.target {
                    owners.entry(set).or_default().push(*addr);
                }
            }
            owners
        });
        owners.get(&set)
    }

    /// The frontends that a set belongs to, or the set if it belongs to none.
    pub(super) fn owners(&self, set: SetId) -> Vec<String> {
        match self.frontends(set) {
            Some(owners) => owners.iter().map(ToString::to_string).collect(),
            None => vec![format!("set {set}")],
        }
    }

    pub(super) fn set(&self, id: u32) -> String {
        let owner = SetId::new(id).and_then(|set| self.frontends(set)).and_then(|owners| owners.first());
        owner.map_or_else(|| format!("set {id}"), |owner| format!("set {id} of {owner}"))
    }

    pub(super) fn backend(&self, id: u32) -> String {
        let backend = BackendId::new(id).and_then(|id| self.mirror.state.backends.get(&id));
        backend.map_or_else(|| format!("backend {id}, which is unknown"), |backend| backend.addr.to_string())
    }
}
