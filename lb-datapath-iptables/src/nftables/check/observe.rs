//! From the elements of a table back to the state that they stand for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::FrontendAddr,
    affinity::Affinity,
    id::{FrontendId, SetId},
    name::NodeName,
    node::NodeFacts,
    state::{BackendSet, Frontend, OtherPorts, State, Target},
};

use crate::nftables::{
    change::mirror::{Counts, Mirror, connected, hairpin},
    host::{Host, Table},
    table::{
        choice::{Choice, Pick},
        elements::{cluster, fixed_verdicts, other_ports},
        layout::{Device, Element, Endpoint, FAMILIES, Key, Note, Set, VERSION, Value},
        rules,
        slots::{self, Backends, DRAINING, ListedSlot},
    },
};

/// The contents of the table.
#[derive(Debug)]
pub(crate) enum TableContents {
    /// No table.
    Absent,
    /// A foreign table.
    Foreign,
    /// A table of this datapath that is of another layout or was damaged, with the part of the state that makes sense.
    /// The next plan has to make it anew.
    Damaged { state: State, handle: u64 },
    /// The table of this datapath.
    Ours { mirror: Box<Mirror>, generation: u32 },
}

/// Reads the table.
pub(crate) fn observe(host: &mut dyn Host) -> lb_netlink::Result<TableContents> {
    let handle = match host.table()? {
        Table::Absent => return Ok(TableContents::Absent),
        Table::Foreign => return Ok(TableContents::Foreign),
        Table::Ours(handle) => handle,
    };
    let mut found = read(host, handle)?;
    // While the kernel moves a set to a larger hash table, a dump leaves elements out ([`rhashtable`]), so only damage
    // that is read twice is real.
    //
    // [`rhashtable`]: https://elixir.bootlin.com/linux/v6.18/source/lib/rhashtable.c
    for _ in 1..READINGS {
        let TableContents::Damaged { state, .. } = &found else { break };
        match read(host, handle)? {
            TableContents::Damaged { state: again, .. } if again == *state => break,
            other => found = other,
        }
    }
    Ok(found)
}

/// How often a table is read at most.
const READINGS: usize = 8;

fn read(host: &mut dyn Host, handle: u64) -> lb_netlink::Result<TableContents> {
    let mut reading = Reading::default();
    for set in Set::ALL.into_iter().filter(|set| !matches!(set, Set::Affinity(..))) {
        match host.elements(set) {
            Ok(elements) => elements.into_iter().for_each(|element| reading.take(element.map(|(element, _)| element))),
            Err(error) if error.errno() == Some(nix::libc::ENOENT) => reading.damaged = true,
            Err(error) => return Err(error),
        }
    }
    reading.rules = host.rule_count()?;
    Ok(reading.finish(handle))
}

#[derive(Debug, Default)]
struct Reading {
    damaged: bool,
    rules: u64,
    layout: Option<u32>,
    generation: Option<u32>,
    node_name: Option<NodeName>,
    node_ips: BTreeMap<u32, IpAddr>,
    cidrs: BTreeMap<u32, ipnet::IpNet>,
    frontends: BTreeMap<FrontendAddr, (Choice, String)>,
    ways: BTreeSet<Key>,
    hairpins: BTreeSet<IpAddr>,
    backends: BTreeSet<Endpoint>,
    bounds: BTreeSet<Key>,
    uplinks: BTreeSet<Device>,
    addresses: BTreeMap<Key, Value>,
    /// What frontends say about sources.
    sources: BTreeSet<Key>,
    /// Slots in elements of their own, and in blocks.
    slots: [BTreeMap<FrontendAddr, Vec<ListedSlot>>; 2],
    draining: BTreeMap<FrontendAddr, Vec<ListedSlot>>,
}

impl Reading {
    fn take(&mut self, element: Option<Element>) {
        let taken = element.and_then(|element| self.place(element));
        self.damaged |= taken.is_none();
    }

    /// Puts an element where it belongs; `None` for one that makes no sense.
    fn place(&mut self, element: Element) -> Option<()> {
        match (element.key, &element.value) {
            (Key::Frontend(addr), &Value::Choice(choice)) => {
                drop(self.frontends.insert(addr, (choice, element.comment)))
            }
            (key @ Key::Verdict(_, choice), Value::Choice(to)) if choice == *to => drop(self.ways.insert(key)),
            (Key::Slot(addr, DRAINING..), _) => {
                self.draining.entry(addr).or_default().extend(slots::read(&element)?);
            }
            (Key::Slot(addr, _), _) => self.slots[0].entry(addr).or_default().extend(slots::read(&element)?),
            (Key::Block(addr, _), _) => self.slots[1].entry(addr).or_default().extend(slots::read(&element)?),
            (Key::Note(note, number), _) => return self.note(note, number, &element.comment),
            (Key::Hairpin(ip), _) => drop(self.hairpins.insert(ip)),
            (Key::Backend(ip, port), _) => drop(self.backends.insert((ip, port))),
            (key @ Key::Bound(..), _) => drop(self.bounds.insert(key)),
            (key @ Key::Address(_), _) => drop(self.addresses.insert(key, element.value)),
            (Key::Uplink(device), _) => drop(self.uplinks.insert(device)),
            (key @ (Key::KeptSource(_) | Key::TranslatedPods(_)), _) => drop(self.sources.insert(key)),
            _ => return None,
        }
        Some(())
    }

    fn note(&mut self, note: Note, number: u32, text: &str) -> Option<()> {
        match note {
            Note::Layout => self.layout = Some(number),
            Note::Generation => self.generation = Some(number),
            Note::NodeName => self.node_name = Some(NodeName::new(text)),
            Note::NodeIp => drop(self.node_ips.insert(number, text.parse().ok()?)),
            Note::ClusterCidr => drop(self.cidrs.insert(number, text.parse().ok()?)),
        }
        Some(())
    }

    fn finish(mut self, handle: u64) -> TableContents {
        let state = self.state();
        let mut picks = Counts::default();
        for (choice, _) in self.frontends.values() {
            picks.swap(None, choice.pick());
        }
        self.damaged |= self.rules != rules_of(&picks) || self.ways != verdicts_of(&picks);
        match (self.damaged, self.layout, self.generation) {
            (false, Some(VERSION), Some(generation)) => {
                TableContents::Ours { mirror: Box::new(Mirror::new(state, picks, self.uplinks)), generation }
            }
            _ => TableContents::Damaged { state, handle },
        }
    }

    fn state(&mut self) -> State {
        self.damaged |= !counted(&self.node_ips) || !counted(&self.cidrs);
        let node = NodeFacts {
            name: self.node_name.take(),
            ips: self.node_ips.values().copied().collect(),
            cluster_cidrs: self.cidrs.values().copied().collect(),
        };
        let mut state = State { node, ..State::default() };
        let mut found = std::mem::take(&mut self.slots);
        for (&addr, (choice, comment)) in &self.frontends {
            let [single, packed] = &mut found;
            let [single, packed, draining] =
                [single, packed, &mut self.draining].map(|slots| slots.remove(&addr).unwrap_or_default());
            let slots = FoundSlots { single, packed, draining };
            if frontend(&mut state, addr, *choice, comment, slots).is_none() {
                self.damaged = true;
            }
        }
        for key in std::mem::take(&mut self.sources) {
            let known = match key {
                Key::KeptSource(addr) => state.frontends.get_mut(&addr).map(|frontend| frontend.keeps_source = true),
                Key::TranslatedPods(addr) => {
                    state.frontends.get_mut(&addr).map(|frontend| frontend.translates_pods = true)
                }
                _ => None,
            };
            self.damaged |= known.is_none();
        }
        self.damaged |= found.iter().any(|slots| !slots.is_empty()) || !self.draining.is_empty();
        let says = state.frontends.keys().filter_map(|addr| other_ports(addr.ip, state.other_ports(addr.ip)));
        let says: BTreeMap<Key, Value> = says.map(|element| (element.key, element.value)).collect();
        self.damaged |= self.addresses != says;
        let hairpins: BTreeSet<IpAddr> = state.backends.values().filter_map(|b| hairpin(Some(b))).collect();
        let bounds = FAMILIES.into_iter().flat_map(|family| cluster(&state.node, family));
        let backends: BTreeSet<Endpoint> = state.backends.values().filter_map(|b| connected(Some(b))).collect();
        self.damaged |= self.backends != backends;
        self.damaged |= self.hairpins != hairpins || self.bounds != bounds.map(|element| element.key).collect();
        state
    }
}

/// The elements for the slots of one frontend.
struct FoundSlots {
    single: Vec<ListedSlot>,
    packed: Vec<ListedSlot>,
    draining: Vec<ListedSlot>,
}

impl FoundSlots {
    fn is_empty(&self) -> bool {
        self.single.is_empty() && self.packed.is_empty() && self.draining.is_empty()
    }
}

/// Adds a frontend with its set and backends to `state`, if its elements make sense.
fn frontend(state: &mut State, addr: FrontendAddr, choice: Choice, comment: &str, slots: FoundSlots) -> Option<()> {
    let Comment { id, set, affinity, other_ports } = parse(comment)?;
    let target = match (choice, set) {
        (Choice::Refuse, None) if slots.is_empty() => Target::Reject,
        (Choice::Drop, None) if slots.is_empty() => Target::Drop,
        (Choice::Pick(pick), Some(set)) if Choice::Pick(Pick { affinity, ..pick }).words() == choice.words() => {
            let FoundSlots { single, packed, draining } = slots;
            let (found, others) = if pick.is_packed() { (packed, single) } else { (single, packed) };
            others.is_empty().then_some(())?;
            let slots = slots::resolve(&addr, pick.is_packed(), pick.slots, found)?;
            let draining = slots::resolve_draining(&addr, draining)?;
            content(state, set, &pick, Backends { slots, draining })?;
            Target::Set(set)
        }
        _ => return None,
    };
    state.frontends.insert(addr, Frontend { affinity, other_ports, ..Frontend::new(id, target) });
    Some(())
}

/// Adds a set and its backends, unless one of them is known as something else.
fn content(state: &mut State, id: SetId, pick: &Pick, backends: Backends) -> Option<()> {
    let ids = |slots: &[slots::Slot]| slots.iter().map(|&(id, _)| id).collect();
    let Backends { slots, draining } = backends;
    let content = BackendSet { lookup: pick.lookup(), slots: ids(&slots), draining: ids(&draining) };
    if slots.iter().chain(&draining).any(|(id, backend)| state.backends.get(id).is_some_and(|known| known != backend)) {
        return None;
    }
    match state.sets.get(&id) {
        Some(known) if **known != content => return None,
        Some(_) => {}
        None => drop(state.sets.insert(id, Arc::new(content))),
    }
    state.backends.extend(slots.into_iter().chain(draining));
    Some(())
}

/// The elements of [`Set::Picks`] in a table with these picks.
fn verdicts_of(picks: &Counts<Pick>) -> BTreeSet<Key> {
    let picks = picks.keys().map(|pick| Key::Verdict(pick.family, Choice::Pick(pick)));
    picks.chain(fixed_verdicts().map(|way| way.key)).collect()
}

/// Whether no number is missing.
fn counted<T>(notes: &BTreeMap<u32, T>) -> bool {
    notes.keys().copied().eq((0..).take(notes.len()))
}

/// Number of rules that a table with these picks has.
fn rules_of(picks: &Counts<Pick>) -> u64 {
    let fixed = rules::chains().iter().map(|chain| chain.rules.len()).sum::<usize>();
    let picking = picks.keys().map(|pick| rules::pick(&pick).len()).sum::<usize>();
    (fixed + picking) as u64
}

/// The comment of a frontend, without its label.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Comment {
    id: FrontendId,
    set: Option<SetId>,
    affinity: Option<Affinity>,
    other_ports: OtherPorts,
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frontend {}", self.id)?;
        if let Some(set) = self.set {
            write!(f, " set {set}")?;
        }
        if let Some(Affinity { timeout, prefix_v4, prefix_v6 }) = self.affinity {
            write!(f, " affinity {timeout:?}/{prefix_v4}/{prefix_v6}")?;
        }
        if self.other_ports != OtherPorts::Pass {
            write!(f, " other-ports {}", self.other_ports.as_str())?;
        }
        Ok(())
    }
}

/// Reads the comment of a [`frontend_element`](crate::nftables::table::elements::frontend_element).
pub(crate) fn parse(text: &str) -> Option<Comment> {
    let rest = text.strip_prefix("frontend ")?;
    let (id, mut rest) = word(rest);
    let id = FrontendId::new(id.parse().ok()?)?;
    let mut comment = Comment { id, set: None, affinity: None, other_ports: OtherPorts::Pass };
    if let Some(tail) = rest.strip_prefix("set ") {
        let (set, tail) = word(tail);
        comment.set = Some(SetId::new(set.parse().ok()?)?);
        rest = tail;
    }
    if let Some(tail) = rest.strip_prefix("affinity ") {
        let (text, tail) = word(tail);
        comment.affinity = Some(affinity(text)?);
        rest = tail;
    }
    if let Some(tail) = rest.strip_prefix("other-ports ") {
        let (text, tail) = word(tail);
        comment.other_ports = [OtherPorts::Reject, OtherPorts::Drop].into_iter().find(|says| says.as_str() == text)?;
        rest = tail;
    }
    (rest.is_empty() || rest.starts_with("for ")).then_some(comment)
}

fn affinity(text: &str) -> Option<Affinity> {
    let mut parts = text.split('/');
    let nanos: u128 = parts.next()?.parse().ok()?;
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    let timeout = Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).ok()?);
    Some(Affinity { timeout, prefix_v4: parts.next()?.parse().ok()?, prefix_v6: parts.next()?.parse().ok()? })
}

fn word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}
