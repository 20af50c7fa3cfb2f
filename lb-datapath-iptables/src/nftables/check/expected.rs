//! The elements that the table should hold, from the expected state. Pure.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
};

use lb_core::{
    addr::{Family, FrontendAddr},
    drift::Expected,
    plan::Labels,
    state::{BackendSet, Frontend, State},
};

use crate::nftables::{
    change::{
        lower::{backends_in, choice_of},
        mirror::{connected, hairpin},
    },
    check::observe,
    table::{
        choice::{Choice, Pick},
        elements::{
            self, cluster, fixed_verdicts, frontend_element, notes, other_ports, set_of, sources, verdict_element,
        },
        layout::{Device, Element, Endpoint, FAMILIES, Key, Note, VERSION, Value},
        userdata,
    },
};

/// The elements that a state stands for.
pub(crate) struct ExpectedTable<'a> {
    pub(crate) state: &'a State,
    labels: &'a Labels,
    /// The table's generation, if this process knows it.
    generation: Option<u32>,
    hairpins: OnceCell<BTreeSet<IpAddr>>,
    backends: OnceCell<BTreeSet<Endpoint>>,
    notes: Vec<Element>,
    bounds: Vec<Element>,
    uplinks: Vec<Element>,
    picks: OnceCell<BTreeSet<Pick>>,
    /// The elements of the slots of frontends that were asked for, where they are many.
    slots: RefCell<BTreeMap<FrontendAddr, Rc<[Element]>>>,
}

impl<'a> ExpectedTable<'a> {
    pub(crate) fn new(expected: Expected<'a>, generation: Option<u32>, uplinks: &BTreeSet<Device>) -> Self {
        let Expected { state, labels } = expected;
        let bounds = FAMILIES.into_iter().flat_map(|family| cluster(&state.node, family)).collect();
        Self {
            state,
            labels,
            generation,
            hairpins: OnceCell::new(),
            backends: OnceCell::new(),
            notes: notes(&state.node),
            bounds,
            uplinks: elements::uplinks(uplinks),
            picks: OnceCell::new(),
            slots: RefCell::default(),
        }
    }

    /// Whether no table is needed.
    pub(crate) fn is_nothing(&self) -> bool {
        self.generation.is_none() && *self.state == State::default()
    }

    /// The element with `key`, if the table should have one.
    pub(crate) fn element(&self, key: &Key) -> Option<Element> {
        match key {
            Key::Frontend(addr) => self.frontend(addr),
            Key::Verdict(family, choice) => {
                let there = choice.pick().is_none_or(|pick| pick.family == *family && self.picks().contains(&pick));
                there.then(|| verdict_element(*family, *choice))
            }
            Key::Slot(addr, _) | Key::Block(addr, _) => {
                let slots = self.slots(addr);
                slots.binary_search_by_key(key, |element| element.key).ok().map(|at| slots[at].clone())
            }
            Key::Record(..) => None,
            Key::Address(ip) => other_ports(*ip, self.state.other_ports(*ip)),
            Key::Uplink(_) => self.uplinks.iter().find(|uplink| uplink.key == *key).cloned(),
            Key::KeptSource(addr) | Key::TranslatedPods(addr) => {
                sources(*addr, self.state.frontends.get(addr)).find(|element| element.key == *key)
            }
            Key::Bound(..) => self.bounds.iter().find(|bound| bound.key == *key).cloned(),
            Key::Hairpin(ip) => self.hairpins().contains(ip).then(|| Element::new(*key, Value::None)),
            Key::Backend(ip, port) => self.backends().contains(&(*ip, *port)).then(|| Element::new(*key, Value::None)),
            Key::Note(Note::Layout, number) => (*number == VERSION).then(|| Element::new(*key, Value::None)),
            Key::Note(Note::Generation, number) => {
                self.generation.is_none_or(|known| known == *number).then(|| Element::new(*key, Value::None))
            }
            Key::Note(Note::NodeName | Note::NodeIp | Note::ClusterCidr, _) => {
                self.notes.iter().find(|note| note.key == *key).cloned()
            }
        }
    }

    /// The keys of all elements, those that packets write excepted.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        let of_frontends = self.state.frontends.keys().flat_map(|&addr| {
            let slots = self.slots(&addr);
            let sources = sources(addr, self.state.frontends.get(&addr)).map(|element| element.key);
            std::iter::once(Key::Frontend(addr)).chain(sources).chain((0..slots.len()).map(move |at| slots[at].key))
        });
        let addresses = self.vips().into_iter().filter_map(|ip| other_ports(ip, self.state.other_ports(ip)));
        let of_picks = self.picks().iter().map(|&pick| Key::Verdict(pick.family, Choice::Pick(pick)));
        let of_node = self.notes.iter().chain(&self.bounds).chain(&self.uplinks).map(|element| element.key);
        let notes = [Some(Key::Note(Note::Layout, VERSION)), self.generation_key()].into_iter().flatten();
        let fixed = fixed_verdicts().map(|element| element.key).chain(notes);
        let hairpins = self.hairpins().iter().map(|&ip| Key::Hairpin(ip));
        let backends = self.backends().iter().map(|&(ip, port)| Key::Backend(ip, port));
        of_frontends
            .chain(addresses.map(|element| element.key))
            .chain(of_picks)
            .chain(of_node)
            .chain(hairpins)
            .chain(backends)
            .chain(fixed)
    }

    /// Key of the generation note, which no other writer leaves in place.
    pub(crate) fn generation_key(&self) -> Option<Key> {
        self.generation.map(|generation| Key::Note(Note::Generation, generation))
    }

    /// The notes about the table and the node, all but the generation.
    pub(crate) fn notes(&self) -> Vec<Element> {
        let layout = Element::new(Key::Note(Note::Layout, VERSION), Value::None).comment("layout");
        self.notes.iter().cloned().chain([layout]).collect()
    }

    /// The devices that lead out of the node.
    pub(crate) fn uplinks(&self) -> &[Element] {
        &self.uplinks
    }

    /// The prefixes of pods of a family.
    pub(crate) fn bounds(&self, family: Family) -> Vec<Element> {
        self.bounds
            .iter()
            .filter(|bound| matches!(bound.key, Key::Bound(ip, _) if Family::of(ip) == family))
            .cloned()
            .collect()
    }

    /// Every chain that picks for some frontend.
    pub(crate) fn picks(&self) -> &BTreeSet<Pick> {
        self.picks.get_or_init(|| {
            let choices = self.state.frontends.iter().map(|(addr, frontend)| self.choice(addr, frontend));
            choices.filter_map(Choice::pick).collect()
        })
    }

    /// The backends that may have flows of a frontend.
    pub(crate) fn endpoints(&self, addr: &FrontendAddr) -> BTreeSet<Endpoint> {
        let set = self.state.frontends.get(addr).and_then(|frontend| self.set(frontend));
        set.map(|set| backends_in(self.state, set).holders()).unwrap_or_default()
    }

    /// Addresses that need routes.
    pub(crate) fn vips(&self) -> BTreeSet<IpAddr> {
        self.state.frontends.keys().map(|addr| addr.ip).collect()
    }

    fn frontend(&self, addr: &FrontendAddr) -> Option<Element> {
        let frontend = self.state.frontends.get(addr)?;
        let label = self.labels.get(addr).map_or("", |label| &**label);
        Some(frontend_element(*addr, frontend, self.choice(addr, frontend), label))
    }

    fn slots(&self, addr: &FrontendAddr) -> Rc<[Element]> {
        if let Some(known) = self.slots.borrow().get(addr) {
            return Rc::clone(known);
        }
        let Some(frontend) = self.state.frontends.get(addr) else { return Rc::default() };
        let backends = self.set(frontend).map(|set| backends_in(self.state, set)).unwrap_or_default();
        let made: Rc<[Element]> = elements::elements(*addr, Some(self.choice(addr, frontend)), &backends).into();
        if made.len() > FEW_SLOTS {
            self.slots.borrow_mut().insert(*addr, Rc::clone(&made));
        }
        made
    }

    fn choice(&self, addr: &FrontendAddr, frontend: &Frontend) -> Choice {
        let set = self.set(frontend);
        choice_of(addr, frontend, set, set.map_or(0, |set| set.slots.len()))
    }

    fn set(&self, frontend: &Frontend) -> Option<&'a BackendSet> {
        self.state.sets.get(&set_of(frontend)?).map(|set| &**set)
    }

    fn hairpins(&self) -> &BTreeSet<IpAddr> {
        self.hairpins
            .get_or_init(|| self.state.backends.values().filter_map(|backend| hairpin(Some(backend))).collect())
    }

    fn backends(&self) -> &BTreeSet<Endpoint> {
        self.backends
            .get_or_init(|| self.state.backends.values().filter_map(|backend| connected(Some(backend))).collect())
    }
}

/// Elements that cost less to make again, for each of them, than to keep for all frontends.
const FEW_SLOTS: usize = 8;

/// Whether `found` is as `wanted` in all that matters. A frontend's label is for people: it may be an older one.
pub(crate) fn agrees(wanted: &Element, found: &Element) -> bool {
    let same = match wanted.key {
        Key::Frontend(_) => observe::parse(&wanted.comment) == observe::parse(&found.comment),
        Key::Slot(..) | Key::Block(..) => wanted.comment == found.comment,
        Key::Note(Note::NodeName | Note::NodeIp | Note::ClusterCidr, _) => {
            userdata::cut(&wanted.comment) == found.comment
        }
        Key::Verdict(..) | Key::Address(_) | Key::Record(..) | Key::Bound(..) => true,
        Key::Uplink(_) | Key::KeptSource(_) | Key::TranslatedPods(_) => true,
        Key::Hairpin(_) | Key::Backend(..) | Key::Note(..) => true,
    };
    same && wanted.value == found.value
}
