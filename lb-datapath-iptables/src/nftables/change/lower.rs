//! From a draft to operations on elements and chains. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{
    addr::{Family, FrontendAddr, Protocol, Scope},
    datapath::DatapathError,
    id::BackendId,
    state::{Backend, BackendSet, Frontend, Lookup, OtherPorts, State, Target},
};

use crate::nftables::{
    change::{
        draft::Draft,
        mirror::{Counts, Mirror, connected, hairpin},
    },
    table::{
        choice::{Choice, How, Pick},
        elements::{
            cluster, elements, frontend_element, notes, other_ports, set_of, sources, uplinks, verdict_element,
        },
        layout::{Element, Endpoint, Key, Value, twin},
        slots::Backends,
    },
};

/// One operation, and the frontend that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The frontend that fails if the kernel refuses the operation.
    pub(crate) origin: Origin,
    /// The operation.
    pub(crate) action: Action,
}

/// The reason for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The table itself, or an object that frontends share.
    Shared,
    /// Guards the table: the kernel refuses the operation if another program wrote to the table.
    Generation,
    /// One frontend.
    Frontend(FrontendAddr),
}

/// An operation on the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Makes a pick chain.
    AddPick(Pick),
    /// Removes a pick chain.
    RemovePick(Pick),
    /// Adds an element that does not exist.
    Add(Element),
    /// Removes an element that exists.
    Remove(Key),
}

/// A draft as operations, and the work before and after them.
#[derive(Debug, Default)]
pub(crate) struct Lowered {
    /// In the order in which the kernel must take them.
    pub(crate) steps: Vec<Step>,
    /// Addresses that need a route before.
    pub(crate) new_vips: BTreeMap<IpAddr, Vec<FrontendAddr>>,
    /// Addresses that need no route afterwards.
    pub(crate) gone_vips: Vec<IpAddr>,
    /// Affinity records that must not outlive the operations.
    pub(crate) sweeps: BTreeMap<FrontendAddr, BTreeSet<Endpoint>>,
    /// Frontends whose flows must not outlive the operations, unless they go to one of these.
    pub(crate) flows: BTreeMap<FrontendAddr, BTreeSet<Endpoint>>,
    /// Frontends that cannot be carried.
    pub(crate) refused: Vec<(FrontendAddr, DatapathError)>,
    acquired: Vec<Pick>,
    released: Vec<Pick>,
    made: BTreeSet<Pick>,
}

/// Lowers `draft` over `mirror`.
pub(crate) fn lower(draft: &Draft, mirror: &Mirror) -> Lowered {
    let mut lowered = Lowered::default();
    lowered.node(draft, mirror);
    lowered.backends(draft, mirror);
    lowered.frontends(draft, mirror);
    lowered.other_ports(draft, mirror);
    lowered.vips(draft, mirror);
    lowered.unused_picks(mirror);
    lowered
}

impl Lowered {
    /// Takes the pick chains over into the mirror, once the operations took.
    pub(crate) fn settle(&self, mirror: &mut Mirror) {
        for pick in self.acquired.iter().copied() {
            mirror.picks.swap(None, Some(pick));
        }
        for pick in self.released.iter().copied() {
            mirror.picks.swap(Some(pick), None);
        }
    }

    /// Whether nothing is removed, so that the order of the operations matters little.
    pub(crate) fn only_adds(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.action, Action::AddPick(_) | Action::Add(_)))
    }

    fn push(&mut self, origin: Origin, action: Action) {
        self.steps.push(Step { origin, action });
    }

    fn node(&mut self, draft: &Draft, mirror: &Mirror) {
        if let Some(new) = &draft.uplinks {
            self.replace_all(Origin::Shared, uplinks(&mirror.uplinks), uplinks(new));
        }
        let Some(new) = &draft.node else { return };
        let old = &mirror.state.node;
        self.replace_all(Origin::Shared, notes(old), notes(new));
        for family in [Family::V4, Family::V6] {
            self.replace_all(Origin::Shared, cluster(old, family), cluster(new, family));
        }
    }

    /// Replaces `old` elements by `new` ones, those that are equal excepted.
    fn replace_all(&mut self, origin: Origin, old: Vec<Element>, new: Vec<Element>) {
        for element in old.iter().filter(|element| !new.contains(element)) {
            self.push(origin, Action::Remove(element.key));
        }
        for element in new.into_iter().filter(|element| !old.contains(element)) {
            self.push(origin, Action::Add(element));
        }
    }

    /// The sets that hold what backends have in common.
    fn backends(&mut self, draft: &Draft, mirror: &Mirror) {
        self.members(draft, mirror, &mirror.hairpins, hairpin, Key::Hairpin);
        self.members(draft, mirror, &mirror.connected, connected, |(ip, port)| Key::Backend(ip, port));
    }

    fn members<K: Ord + Copy>(
        &mut self,
        draft: &Draft,
        mirror: &Mirror,
        counts: &Counts<K>,
        of: fn(Option<&Backend>) -> Option<K>,
        key: fn(K) -> Key,
    ) {
        let (mut gained, mut lost) = (Counts::default(), Counts::default());
        for (id, new) in &draft.backends {
            gained.swap(None, of(new.as_ref()));
            lost.swap(None, of(mirror.state.backends.get(id)));
        }
        let members: BTreeSet<K> = gained.keys().chain(lost.keys()).collect();
        for member in members {
            let before = counts.get(member);
            match (before, before + gained.get(member) - lost.get(member)) {
                (0, 1..) => self.push(Origin::Shared, Action::Add(Element::new(key(member), Value::None))),
                (1.., 0) => self.push(Origin::Shared, Action::Remove(key(member))),
                _ => {}
            }
        }
    }

    fn frontends(&mut self, draft: &Draft, mirror: &Mirror) {
        for addr in draft.touched(mirror) {
            let old = mirror.state.frontends.get(&addr);
            let new = draft.frontends.get(&addr).map_or(old, Option::as_ref);
            let before = old.map_or_else(Backends::default, |old| before(mirror, old));
            match new.map(|new| draft.backends_of(mirror, &addr, new)).transpose() {
                Ok(after) => self.frontend(draft, mirror, addr, (old, &before), (new, &after.unwrap_or_default())),
                Err(error) => self.refused.push((addr, error)),
            }
        }
    }

    fn frontend(
        &mut self,
        draft: &Draft,
        mirror: &Mirror,
        addr: FrontendAddr,
        (old, before): (Option<&Frontend>, &Backends),
        (new, after): (Option<&Frontend>, &Backends),
    ) {
        let origin = Origin::Frontend(addr);
        let was = old.map(|old| choice(mirror, None, &addr, old, before.slots.len()));
        let is = new.map(|new| choice(mirror, Some(draft), &addr, new, after.slots.len()));
        if was != is {
            self.released.extend(was.and_then(Choice::pick));
            if let Some(choice) = is {
                self.acquire(mirror, origin, choice);
            }
        }
        if (was, old) != (is, new) {
            if old.is_some() {
                self.push(origin, Action::Remove(Key::Frontend(addr)));
            }
            if let Some((choice, new)) = is.zip(new) {
                let label = draft.labels.get(&addr).map_or("", |label| &**label);
                self.push(origin, Action::Add(frontend_element(addr, new, choice, label)));
            }
        }
        self.replace_all(origin, sources(addr, old).collect(), sources(addr, new).collect());
        self.slots(elements(addr, was, before), elements(addr, is, after));
        self.stale((draft, mirror), addr, (old, before), (new, after));
    }

    /// Replaces the elements of one frontend's slots, those that are equal excepted. Both are in order.
    fn slots(&mut self, before: Vec<Element>, after: Vec<Element>) {
        let Some(Key::Slot(addr, _) | Key::Block(addr, _)) =
            before.iter().chain(&after).map(|element| element.key).next()
        else {
            return;
        };
        let origin = Origin::Frontend(addr);
        let stays = |element: &Element, others: &[Element]| {
            others.binary_search_by_key(&element.key, |other| other.key).is_ok_and(|at| others[at] == *element)
        };
        for element in before.iter().filter(|element| !stays(element, &after)) {
            self.push(origin, Action::Remove(element.key));
        }
        for element in after.into_iter().filter(|element| !stays(element, &before)) {
            self.push(origin, Action::Add(element));
        }
    }

    /// Notes records and flows that the new form of a frontend contradicts.
    fn stale(
        &mut self,
        (draft, mirror): (&Draft, &Mirror),
        addr: FrontendAddr,
        (old, before): (Option<&Frontend>, &Backends),
        (new, after): (Option<&Frontend>, &Backends),
    ) {
        let sticky = old.is_some_and(|old| old.affinity.is_some());
        // A look at conntrack takes longer than the change of an endpoint: for TCP it has to be worth it.
        let comes_or_goes = old.is_none() || new.is_none();
        if !sticky && !comes_or_goes && addr.protocol != Protocol::Udp {
            return;
        }
        let (takers, holders) = (after.takers(), after.holders());
        if let Some(Frontend { affinity: Some(affinity), id, .. }) = old {
            let same = new.is_some_and(|new| new.id == *id && new.affinity == Some(*affinity));
            if !same {
                self.sweeps.insert(addr, BTreeSet::new());
            } else if !before.takers().is_subset(&takers) {
                self.sweeps.insert(addr, takers);
            }
        }
        let left = || before.slots.is_empty() || !before.holders().is_subset(&holders);
        if comes_or_goes || addr.protocol == Protocol::Udp && left() {
            // Nothing tells the flows of one scope from those of the other.
            let twin = twin(addr);
            let frontend = draft.frontends.get(&twin).map_or_else(|| mirror.state.frontends.get(&twin), Option::as_ref);
            let others = frontend.and_then(|frontend| draft.backends_of(mirror, &twin, frontend).ok());
            let allowed = self.flows.entry(FrontendAddr { scope: Scope::External, ..addr }).or_default();
            allowed.extend(holders);
            allowed.extend(others.unwrap_or_default().holders());
        }
    }

    /// What the addresses of changed frontends say about their other ports.
    fn other_ports(&mut self, draft: &Draft, mirror: &Mirror) {
        let (mut gained, mut lost) = (Counts::default(), Counts::default());
        for (addr, new) in &draft.frontends {
            gained.swap(None, new.as_ref().map(|new| (addr.ip, new.other_ports)));
            lost.swap(None, mirror.state.frontends.get(addr).map(|old| (addr.ip, old.other_ports)));
        }
        let ips: BTreeSet<IpAddr> = draft.frontends.keys().map(|addr| addr.ip).collect();
        for ip in ips {
            // The greatest counts.
            let greatest = |count: &dyn Fn((IpAddr, OtherPorts)) -> usize| {
                [OtherPorts::Pass, OtherPorts::Reject, OtherPorts::Drop].into_iter().find(|&says| count((ip, says)) > 0)
            };
            let before = greatest(&|key| mirror.says.get(key));
            let after = greatest(&|key| mirror.says.get(key) + gained.get(key) - lost.get(key));
            let [before, after] = [before, after].map(|says| other_ports(ip, says).into_iter().collect());
            self.replace_all(Origin::Shared, before, after);
        }
    }

    fn vips(&mut self, draft: &Draft, mirror: &Mirror) {
        let (mut gained, mut lost) = (Counts::default(), Counts::default());
        for (addr, new) in &draft.frontends {
            gained.swap(None, new.as_ref().map(|_| addr.ip));
            lost.swap(None, mirror.state.frontends.get(addr).map(|_| addr.ip));
        }
        for ip in gained.keys().filter(|&ip| mirror.vips.get(ip) == 0) {
            self.new_vips.insert(ip, Vec::new());
        }
        for (addr, _) in draft.frontends.iter().filter(|(_, new)| new.is_some()) {
            if let Some(users) = self.new_vips.get_mut(&addr.ip) {
                users.push(*addr);
            }
        }
        let gone = lost.keys().filter(|&ip| mirror.vips.get(ip) + gained.get(ip) == lost.get(ip));
        self.gone_vips = gone.collect();
    }

    /// Adds the chain that a frontend goes to, unless it exists.
    fn acquire(&mut self, mirror: &Mirror, origin: Origin, choice: Choice) {
        let Some(pick) = choice.pick() else { return };
        self.acquired.push(pick);
        if mirror.picks.get(pick) == 0 && self.made.insert(pick) {
            self.push(origin, Action::AddPick(pick));
            self.push(origin, Action::Add(verdict_element(pick.family, choice)));
        }
    }

    /// Removes the chains that nobody uses any more, after every frontend has left them.
    fn unused_picks(&mut self, mirror: &Mirror) {
        let (mut gained, mut lost) = (Counts::default(), Counts::default());
        self.acquired.iter().for_each(|&pick| gained.swap(None, Some(pick)));
        self.released.iter().for_each(|&pick| lost.swap(None, Some(pick)));
        for pick in lost.keys().filter(|&pick| mirror.picks.get(pick) + gained.get(pick) <= lost.get(pick)) {
            self.push(Origin::Shared, Action::Remove(Key::Verdict(pick.family, Choice::Pick(pick))));
            self.push(Origin::Shared, Action::RemovePick(pick));
        }
    }
}

/// The fate of a frontend's packets, with the sets as they are (`None`) or as the draft has them.
fn choice(mirror: &Mirror, draft: Option<&Draft>, addr: &FrontendAddr, frontend: &Frontend, slots: usize) -> Choice {
    let set = set_of(frontend).and_then(|id| match draft {
        Some(draft) => draft.set(mirror, id),
        None => mirror.state.sets.get(&id),
    });
    choice_of(addr, frontend, set.map(|set| &**set), slots)
}

/// The fate of a frontend's packets if `set` is its set.
pub(crate) fn choice_of(addr: &FrontendAddr, frontend: &Frontend, set: Option<&BackendSet>, slots: usize) -> Choice {
    match (frontend.target, set) {
        (Target::Reject, _) => Choice::Refuse,
        (Target::Drop, _) | (Target::Set(_), None) => Choice::Drop,
        (Target::Set(_), Some(set)) => Choice::Pick(Pick {
            family: addr.family(),
            scope: addr.scope,
            how: how(set, frontend),
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            affinity: frontend.affinity,
        }),
    }
}

fn how(set: &BackendSet, frontend: &Frontend) -> How {
    match set.lookup {
        // A frontend with such a set is refused before it is lowered.
        Lookup::Random | Lookup::LeastConnections => How::Random,
        Lookup::Hash => How::Hash,
        Lookup::RoundRobin => How::Turn(frontend.id),
    }
}

/// The backends of a frontend as they are in the table.
fn before(mirror: &Mirror, frontend: &Frontend) -> Backends {
    let set = set_of(frontend).and_then(|id| mirror.state.sets.get(&id));
    set.map(|set| backends_in(&mirror.state, set)).unwrap_or_default()
}

/// The backends of a set; those that do not exist are left out.
pub(crate) fn backends_in(state: &State, set: &BackendSet) -> Backends {
    let slots = |ids: &[BackendId]| ids.iter().filter_map(|id| Some((*id, *state.backends.get(id)?))).collect();
    Backends { slots: slots(&set.slots), draining: slots(&set.draining) }
}
