//! The contents of the table and the routes, kept between two plans.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{addr::FrontendAddr, datapath::DatapathError, plan::Plan, state::State};

use crate::nftables::{
    change::{draft::Draft, lower::Lowered, mirror::Mirror},
    host::Rebuild,
    table::layout::{Element, Key, Value},
};

/// The contents of the table, as far as this process knows.
pub(crate) struct Installed {
    pub(crate) mirror: Mirror,
    /// The table's generation; `None` if the table has to be made anew.
    pub(crate) generation: Option<u32>,
    /// Handle of a damaged table of this datapath, which has to be made anew.
    pub(crate) damaged: Option<u64>,
    /// The state that a damaged table stood for.
    pub(crate) salvaged: State,
    /// Addresses that had their routes when the table was read, until the first plan has evened them out.
    pub(crate) routed: Option<BTreeSet<IpAddr>>,
    /// Addresses that got routes for a transaction which may have failed.
    pub(crate) added: Vec<IpAddr>,
}

impl Installed {
    /// No table, and these routes.
    pub(crate) fn nothing(routed: BTreeSet<IpAddr>) -> Self {
        Self {
            mirror: Mirror::default(),
            generation: None,
            damaged: None,
            salvaged: State::default(),
            routed: Some(routed),
            added: Vec::new(),
        }
    }

    /// Whether a client's record stays valid in a new table.
    pub(crate) fn keeps(&self, draft: &Draft, record: &Element) -> bool {
        let (Key::Record(_, addr), &Value::Backend(ip, port)) = (record.key, &record.value) else { return false };
        let (Some(old), Some(Some(new))) = (self.salvaged.frontends.get(&addr), draft.frontends.get(&addr)) else {
            return false;
        };
        let same = old.id == new.id && new.affinity.is_some() && old.affinity == new.affinity;
        same && draft
            .backends_of(&self.mirror, &addr, new)
            .is_ok_and(|backends| backends.takers().contains(&(ip, port)))
    }

    pub(crate) fn draft(&self, plan: &Plan, refused: &BTreeMap<FrontendAddr, DatapathError>) -> Draft {
        let mut draft = Draft::default();
        if self.generation.is_none() {
            draft.add_state(&self.salvaged);
            draft.frontends.retain(|addr, _| !refused.contains_key(addr));
        }
        draft.add_plan(&self.mirror, plan, refused);
        draft
    }

    /// How the next transaction makes the table, if it has to.
    pub(crate) fn rebuild(&self) -> Option<Rebuild> {
        self.generation.is_none().then(|| self.damaged.map_or(Rebuild::Add, Rebuild::Replace))
    }

    /// Notes the addresses that need routes. The first time, addresses that lost theirs are among them.
    pub(crate) fn add_missing(&mut self, lowered: &Lowered) {
        self.added.extend(lowered.new_vips.keys());
        if let Some(routed) = &self.routed {
            self.added.extend(self.mirror.vips.keys());
            self.added.retain(|vip| !routed.contains(vip));
        }
        self.added.sort_unstable();
        self.added.dedup();
    }

    /// The addresses that have routes and need none.
    pub(crate) fn idle_routes(&mut self, gone: Vec<IpAddr>) -> Vec<IpAddr> {
        let mut idle = gone;
        idle.append(&mut self.added);
        idle.extend(self.routed.take().into_iter().flatten());
        idle.retain(|&vip| self.mirror.vips.get(vip) == 0);
        idle.sort_unstable();
        idle.dedup();
        idle
    }
}
