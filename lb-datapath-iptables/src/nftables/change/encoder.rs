//! From one transaction to the messages of nf_tables that make it up.

use std::collections::BTreeMap;

use lb_core::addr::FrontendAddr;
use lb_netlink::Writer;

use crate::nftables::{
    change::lower::{Action, Origin, Step},
    host::{Rebuild, TableRepair},
    table::{
        decode::DecodedElement,
        layout::{Key, Set},
        messages::{self, Item, Verb},
        rules,
    },
};

/// Writes a batch and remembers the origin of each message.
pub(crate) struct Encoder {
    table: String,
    pub(crate) writer: Writer,
    pub(crate) origins: Vec<Origin>,
}

impl Encoder {
    pub(crate) fn new(table: &str) -> Self {
        let mut encoder = Self { table: table.to_owned(), writer: Writer::default(), origins: Vec::new() };
        encoder.add(Origin::Shared, |w, _| messages::begin(w));
        encoder
    }

    pub(crate) fn base(&mut self, rebuild: Rebuild, affinity_records: u32) {
        self.add(Origin::Generation, |w, table| {
            if let Rebuild::Replace(handle) = rebuild {
                messages::remove_table(w, handle);
            }
            messages::add_table(w, table);
        });
        self.add(Origin::Shared, |w, table| {
            for (id, set) in (1..).zip(Set::ALL) {
                messages::add_set(w, table, set, id, affinity_records);
            }
            if rules::has_timeouts() {
                messages::add_timeouts(w, table);
            }
            for chain in rules::chains() {
                messages::add_chain(w, table, &chain);
                for rule in &chain.rules {
                    messages::add_rule(w, table, chain.name, rule);
                }
            }
        });
    }

    /// Neighbouring elements of one set for one frontend share a message.
    pub(crate) fn steps(&mut self, steps: &[Step]) {
        for run in steps.chunk_by(together) {
            let [first, ..] = run else { continue };
            self.add(first.origin, |w, table| match &first.action {
                Action::AddPick(pick) => messages::add_pick(w, table, pick),
                Action::RemovePick(pick) => messages::remove_pick(w, table, pick),
                Action::Add(element) => {
                    messages::elements(w, table, Verb::Add, element.key.set(), run.iter().filter_map(item))
                }
                Action::Remove(key) => {
                    messages::elements(w, table, Verb::Remove, key.set(), run.iter().filter_map(item))
                }
            });
        }
    }

    /// Chains, then the elements set by set.
    pub(crate) fn merged(&mut self, steps: &[Step]) {
        self.add(Origin::Shared, |w, table| {
            let mut sets: BTreeMap<Set, Vec<Item<'_>>> = BTreeMap::new();
            for step in steps {
                match &step.action {
                    Action::AddPick(pick) => messages::add_pick(w, table, pick),
                    Action::Add(element) => sets.entry(element.key.set()).or_default().extend(item(step)),
                    // Not in a batch that only adds.
                    Action::RemovePick(_) | Action::Remove(_) => {}
                }
            }
            for (set, items) in sets {
                messages::elements(w, table, Verb::Add, set, items);
            }
        });
    }

    pub(crate) fn forget(&mut self, records: &[(FrontendAddr, Key)]) {
        for run in records.chunk_by(|a, b| a.0 == b.0) {
            let [(addr, key), ..] = run else { continue };
            let items = run.iter().map(|(_, key)| Item::Key(key));
            self.add(Origin::Frontend(*addr), |w, table| messages::elements(w, table, Verb::Destroy, key.set(), items));
        }
    }

    pub(crate) fn records(&mut self, records: &[DecodedElement]) {
        for run in records.chunk_by(|(a, _), (b, _)| a.key.set() == b.key.set()) {
            let [(first, _), ..] = run else { continue };
            let items = run.iter().map(|(element, life)| Item::Whole(element, *life));
            self.add(Origin::Shared, |w, table| messages::elements(w, table, Verb::Add, first.key.set(), items));
        }
    }

    /// Removes rules before the chains and sets that they lead to, and adds them after; the same holds for values that
    /// lead to chains.
    pub(crate) fn repair(&mut self, repair: &TableRepair) {
        self.add(Origin::Shared, |w, table| {
            let there = repair.chains.iter().filter(|chain| chain.there).map(|chain| &chain.name);
            there.chain(&repair.chains_gone).for_each(|chain| messages::flush_chain(w, table, chain));
            repair.emptied.iter().for_each(|&set| messages::flush_set(w, table, set));
            repair.gone.iter().for_each(|(set, key)| messages::destroy_raw(w, table, *set, key));
            let wrong = repair.chains.iter().filter(|chain| chain.there && chain.wrong).map(|chain| &chain.name);
            repair.chains_gone.iter().chain(wrong).for_each(|chain| messages::remove_chain(w, table, chain));
            repair.sets_gone.iter().for_each(|set| messages::remove_set(w, table, set));
            for chain in repair.chains.iter().filter(|chain| !chain.there || chain.wrong) {
                messages::add_named_chain(w, table, &chain.name, chain.hook);
            }
            for chain in &repair.chains {
                chain.rules.iter().for_each(|rule| messages::add_rule(w, table, &chain.name, rule));
            }
            for run in repair.added.chunk_by(|a, b| a.key.set() == b.key.set()) {
                let [first, ..] = run else { continue };
                let items = run.iter().map(|element| Item::Whole(element, None));
                messages::elements(w, table, Verb::Add, first.key.set(), items);
            }
        });
    }

    pub(crate) fn add(&mut self, origin: Origin, write: impl FnOnce(&mut Writer, &str)) {
        write(&mut self.writer, &self.table);
        self.origins.resize(self.writer.messages() as usize, origin);
    }
}

fn together(a: &Step, b: &Step) -> bool {
    a.origin == b.origin
        && match (&a.action, &b.action) {
            (Action::Add(a), Action::Add(b)) => a.key.set() == b.key.set(),
            (Action::Remove(a), Action::Remove(b)) => a.set() == b.set(),
            _ => false,
        }
}

fn item(step: &Step) -> Option<Item<'_>> {
    match &step.action {
        Action::Add(element) => Some(Item::Whole(element, None)),
        Action::Remove(key) => Some(Item::Key(key)),
        Action::AddPick(_) | Action::RemovePick(_) => None,
    }
}
