//! From the elements of a table back to the state that they stand for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_core::{
    Affinity, Backend, BackendAddr, BackendId, BackendSet, Family, Frontend, FrontendAddr, FrontendId, Lookup,
    NodeFacts, NodeName, Protocol, SetId, State, Target,
};

use super::{
    draft::Endpoint,
    kernel::{Kernel, Table},
    layout::{Choice, Element, Key, Note, Pick, Set, VERSION, Value},
    lower::{LOCAL, cluster},
    mirror::{Counts, Mirror, hairpin},
    rules,
};
use crate::netlink::errno;

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// No table.
    Nothing,
    /// A table of somebody else's.
    Foreign,
    /// A table of ours that is of another layout, or that somebody damaged: what of it makes sense. It has to be made
    /// anew.
    Damaged { state: State, handle: u64 },
    /// Our table.
    Ours { mirror: Box<Mirror>, generation: u32 },
}

/// Reads the table.
pub(super) fn observe(kernel: &mut dyn Kernel) -> io::Result<Found> {
    let handle = match kernel.table()? {
        Table::Absent => return Ok(Found::Nothing),
        Table::Foreign => return Ok(Found::Foreign),
        Table::Ours(handle) => handle,
    };
    let mut reading = Reading::default();
    for set in Set::ALL.into_iter().filter(|set| !matches!(set, Set::Affinity(_))) {
        match kernel.elements(set) {
            Ok(elements) => elements.into_iter().for_each(|element| reading.take(element.map(|(element, _)| element))),
            Err(error) if errno(&error) == Some(nix::libc::ENOENT) => reading.damaged = true,
            Err(error) => return Err(error),
        }
    }
    reading.rules = kernel.rules()?;
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
    backends: BTreeMap<BackendId, Backend>,
    frontends: BTreeMap<FrontendAddr, Choice>,
    services: BTreeMap<FrontendAddr, String>,
    hairpins: BTreeSet<IpAddr>,
    bounds: BTreeSet<Key>,
    slots: BTreeMap<FrontendAddr, BTreeMap<u32, Endpoint>>,
}

impl Reading {
    fn take(&mut self, element: Option<Element>) {
        let taken = element.and_then(|element| self.place(element));
        self.damaged |= taken.is_none();
    }

    /// Puts an element where it belongs; `None` for one that makes no sense.
    fn place(&mut self, element: Element) -> Option<()> {
        match (element.key, element.value) {
            (Key::Frontend(addr), Value::Go(choice)) => drop(self.frontends.insert(addr, choice)),
            (Key::Service(addr), _) => drop(self.services.insert(addr, element.comment)),
            (Key::Slot(addr, slot), Value::Backend(ip, port)) => {
                self.slots.entry(addr).or_default().insert(slot, (ip, port));
            }
            (Key::Backend(_, id, protocol), Value::Backend(ip, port)) => {
                let addr = BackendAddr::new(ip, port, protocol);
                self.backends.insert(id, Backend { addr, local: element.comment == LOCAL });
            }
            (Key::Note(note, number), _) => return self.note(note, number, &element.comment),
            (Key::Hairpin(ip), _) => drop(self.hairpins.insert(ip)),
            (key @ Key::Bound(..), _) => drop(self.bounds.insert(key)),
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

    fn finish(mut self, handle: u64) -> Found {
        let state = self.state();
        let mut picks = Counts::default();
        for choice in self.frontends.values() {
            picks.swap(None, choice.pick());
        }
        self.damaged |= self.rules != rules_of(&picks);
        match (self.damaged, self.layout, self.generation) {
            (false, Some(VERSION), Some(generation)) => {
                Found::Ours { mirror: Box::new(Mirror::new(state, picks)), generation }
            }
            _ => Found::Damaged { state, handle },
        }
    }

    fn state(&mut self) -> State {
        self.damaged |= !counted(&self.node_ips) || !counted(&self.cidrs);
        let node = NodeFacts {
            name: self.node_name.take(),
            ips: self.node_ips.values().copied().collect(),
            cluster_cidrs: self.cidrs.values().copied().collect(),
        };
        let mut state = State { node, backends: self.backends.clone(), ..State::default() };
        let ids: BTreeMap<(Endpoint, Protocol), BackendId> =
            self.backends.iter().rev().map(|(&id, b)| (((b.addr.ip, b.addr.port), b.addr.protocol), id)).collect();
        let frontends = std::mem::take(&mut self.frontends);
        for (&addr, &choice) in &frontends {
            if self.frontend(&mut state, &ids, addr, choice).is_none() {
                self.damaged = true;
            }
        }
        self.damaged |= self.slots.keys().any(|addr| !frontends.contains_key(addr));
        self.damaged |= !self.services.keys().eq(frontends.keys());
        let hairpins: BTreeSet<IpAddr> = self.backends.values().filter_map(|b| hairpin(Some(b))).collect();
        let bounds = FAMILIES.into_iter().flat_map(|family| cluster(&state.node, family));
        self.damaged |= self.hairpins != hairpins || self.bounds != bounds.map(|element| element.key).collect();
        self.frontends = frontends;
        state
    }

    fn frontend(
        &self,
        state: &mut State,
        ids: &BTreeMap<(Endpoint, Protocol), BackendId>,
        addr: FrontendAddr,
        choice: Choice,
    ) -> Option<()> {
        let Comment { id, set, affinity } = parse(self.services.get(&addr)?)?;
        let slots = self.slots.get(&addr);
        let target = match (choice, set) {
            (Choice::Refuse, None) if slots.is_none() => Target::Reject,
            (Choice::Drop, None) if slots.is_none() => Target::Drop,
            (Choice::Pick(pick), Some(set)) if pick.family == addr.family() && pick.affinity == affinity => {
                let content = content(pick.lookup(), pick.slots, slots?, |at| ids.get(&(at, addr.protocol)).copied())?;
                match state.sets.get(&set) {
                    Some(known) if **known != content => return None,
                    Some(_) => {}
                    None => drop(state.sets.insert(set, Arc::new(content))),
                }
                Target::Set(set)
            }
            _ => return None,
        };
        state.frontends.insert(addr, Frontend { id, target, affinity });
        Some(())
    }
}

/// The set in a frontend's slots, if none is missing and none too many.
fn content(
    lookup: Lookup,
    slots: u32,
    found: &BTreeMap<u32, Endpoint>,
    id: impl Fn(Endpoint) -> Option<BackendId>,
) -> Option<BackendSet> {
    let whole = found.len() == slots as usize && found.keys().copied().eq(0..slots);
    let slots: Option<Vec<BackendId>> = found.values().map(|&endpoint| id(endpoint)).collect();
    whole.then_some(BackendSet { lookup, slots: slots?.into() })
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

/// What a frontend's comment says beside its label.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Comment {
    id: FrontendId,
    set: Option<SetId>,
    affinity: Option<Affinity>,
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
        Ok(())
    }
}

/// Reads what [`comment`](super::lower::comment) wrote.
pub(super) fn parse(text: &str) -> Option<Comment> {
    let rest = text.strip_prefix("frontend ")?;
    let (id, mut rest) = word(rest);
    let id = FrontendId::new(id.parse().ok()?)?;
    let mut comment = Comment { id, set: None, affinity: None };
    if let Some(tail) = rest.strip_prefix("set ") {
        let (set, tail) = word(tail);
        comment.set = Some(SetId::new(set.parse().ok()?)?);
        rest = tail;
    }
    if let Some(tail) = rest.strip_prefix("affinity ") {
        comment.affinity = Some(affinity(word(tail).0)?);
    }
    Some(comment)
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

/// IPv4 and IPv6, for what exists once per family.
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
