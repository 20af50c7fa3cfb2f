//! Drift: differences between the expected state of a datapath and its actual state.

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use crate::{
    addr::FrontendAddr,
    node::NodeFacts,
    plan::Labels,
    state::{Backend, Frontend, Lookup, State, Target},
};

/// The state that a datapath should hold: the sum of the plans that it applied.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The state.
    pub state: &'a State,
    /// Labels of the frontends, for comments that people read.
    pub labels: &'a Labels,
}

/// How much an inspection looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// Objects that a [watcher](crate::datapath::Watcher) noticed, and objects that are cheap to inspect.
    Suspects,
    /// Everything that the datapath holds, entry by entry.
    Everything,
}

/// One difference between the expected and the actual state of a datapath.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// Class of the object.
    pub class: DriftClass,
    /// The object within its class, such as `10.96.0.1:80/TCP` or `lb_connect4`.
    pub object: String,
    /// The difference.
    pub difference: Difference,
    /// The probable cause.
    pub cause: Cause,
}

impl Drift {
    /// A difference of unknown cause.
    #[must_use]
    pub fn new(class: DriftClass, object: impl fmt::Display, difference: Difference) -> Self {
        Self { class, object: object.to_string(), difference, cause: Cause::Edited }
    }

    /// The same, with a cause.
    #[must_use]
    pub fn because(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ({})", self.class, self.object, self.difference, self.cause)
    }
}

/// Class of an object that can drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DriftClass {
    /// A frontend: its target, its affinity.
    Frontend,
    /// A slot of a frontend's backend set.
    Slot,
    /// A backend.
    Backend,
    /// A backend set.
    Set,
    /// Facts about the node.
    Node,
    /// A program in the kernel.
    Program,
    /// A link that keeps a program attached.
    Link,
    /// A pin that keeps a map or link alive without a process.
    Pin,
    /// An entry of a map that belongs to none of the above.
    MapEntry,
    /// A table of a ruleset.
    Table,
    /// A chain of a ruleset.
    Chain,
    /// A rule of a ruleset.
    Rule,
    /// A map or set of a ruleset.
    NamedSet,
    /// An element of a map or set of a ruleset.
    Element,
    /// A route or a routing rule.
    Route,
}

impl DriftClass {
    /// Its name, as printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Slot => "slot",
            Self::Backend => "backend",
            Self::Set => "set",
            Self::Node => "node",
            Self::Program => "program",
            Self::Link => "link",
            Self::Pin => "pin",
            Self::MapEntry => "map entry",
            Self::Table => "table",
            Self::Chain => "chain",
            Self::Rule => "rule",
            Self::NamedSet => "named set",
            Self::Element => "element",
            Self::Route => "route",
        }
    }
}

impl fmt::Display for DriftClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// The object should exist and does not.
    Missing,
    /// The object exists and should not.
    Extra,
    /// The object exists and differs from the expected one.
    Wrong {
        /// The expected value.
        expected: String,
        /// The actual value.
        found: String,
    },
}

impl Difference {
    /// `missing`, `extra` or `wrong`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Wrong { .. } => "wrong",
        }
    }

    /// The two values, if they differ.
    #[must_use]
    pub fn between<T: PartialEq>(expected: &T, found: &T, text: impl Fn(&T) -> String) -> Option<Self> {
        (expected != found).then(|| Self::Wrong { expected: text(expected), found: text(found) })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self {
            Self::Missing | Self::Extra => Ok(()),
            Self::Wrong { expected, found } => write!(f, ": expected {expected}, found {found}"),
        }
    }
}

/// The probable cause of a drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Another tool changed this one object.
    Edited,
    /// An earlier process had another configuration.
    Reconfigured,
    /// Another tool removed everything at once: `nft flush ruleset`, `iptables -F`, a restart of firewalld.
    Flushed,
    /// Another tool took a program off its hook.
    Detached,
    /// Another tool removed files of the pin directory.
    Unpinned,
    /// A network device was removed, with everything that was attached to it or led through it.
    DeviceGone,
    /// An earlier process ended in the middle of a change.
    Interrupted,
}

impl Cause {
    /// The cause in words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Edited => "changed by another tool",
            Self::Reconfigured => "an earlier process had another configuration",
            Self::Flushed => "flushed by another tool",
            Self::Detached => "detached by another tool",
            Self::Unpinned => "pin removed by another tool",
            Self::DeviceGone => "its device is gone",
            Self::Interrupted => "an earlier process ended in the middle of a change",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The differences between `found` and `expected`, by content: frontends by address, their slots by the backends in
/// them. Ids of sets and backends do not count, since a datapath may invent them when it observes.
#[must_use]
pub fn compare(expected: &State, found: &State) -> Vec<Drift> {
    let mut drifts = Vec::new();
    if let Some(difference) = Difference::between(&expected.node, &found.node, NodeFacts::to_string) {
        drifts.push(Drift::new(DriftClass::Node, "facts", difference));
    }
    for (addr, frontend) in &expected.frontends {
        match found.frontends.get(addr) {
            None => drifts.push(Drift::new(DriftClass::Frontend, addr, Difference::Missing)),
            Some(other) => of_frontend(addr, (expected, frontend), (found, other), &mut drifts),
        }
    }
    let extra = found.frontends.keys().filter(|addr| !expected.frontends.contains_key(addr));
    drifts.extend(extra.map(|addr| Drift::new(DriftClass::Frontend, addr, Difference::Extra)));
    of_unused(expected, found, &mut drifts);
    if drifts.len() > 1 && found.frontends.is_empty() {
        drifts.iter_mut().for_each(|drift| drift.cause = Cause::Flushed);
    }
    drifts
}

fn of_frontend(
    addr: &FrontendAddr,
    expected: (&State, &Frontend),
    found: (&State, &Frontend),
    drifts: &mut Vec<Drift>,
) {
    let difference = Difference::between(&expected.1.affinity, &found.1.affinity, |affinity| match affinity {
        Some(affinity) => affinity.to_string(),
        None => "no affinity".into(),
    });
    let guard = Difference::between(&expected.1.guard, &found.1.guard, |guard| match guard {
        Some(guard) => guard.to_string(),
        None => "no source ranges".into(),
    });
    let other_ports = Difference::between(&expected.1.other_ports, &found.1.other_ports, |fate| {
        alloc::format!("other ports: {}", fate.as_str())
    });
    let sources = Difference::between(
        &(expected.1.keeps_source, expected.1.translates_pods),
        &(found.1.keeps_source, found.1.translates_pods),
        |(keeps, translates)| match (keeps, translates) {
            (true, _) => "keeps sources".into(),
            (false, true) => "translates sources, those of pods elsewhere as well".into(),
            (false, false) => "translates sources".into(),
        },
    );
    let ping = Difference::between(&expected.1.answers_ping, &found.1.answers_ping, |answers| {
        if *answers { "answers pings".into() } else { "answers no pings".into() }
    });
    let sockets = Difference::between(&expected.1.leaves_sockets, &found.1.leaves_sockets, |leaves| {
        if *leaves { "leaves sockets alone".into() } else { "translates sockets".into() }
    });
    let differences = [difference, sockets, sources, guard, other_ports, ping].into_iter().flatten();
    drifts.extend(differences.map(|difference| Drift::new(DriftClass::Frontend, addr, difference)));
    let (wanted, has) = (Slots::of(expected.0, expected.1.target), Slots::of(found.0, found.1.target));
    if wanted.kind != has.kind || wanted.backends.len() != has.backends.len() {
        let difference = Difference::Wrong { expected: wanted.to_string(), found: has.to_string() };
        drifts.push(Drift::new(DriftClass::Frontend, addr, difference));
        return;
    }
    let name = |backend: &Option<Backend>| backend.map_or_else(|| "nothing".into(), |backend| backend.addr.to_string());
    for (slot, (wanted, has)) in wanted.backends.iter().zip(&has.backends).enumerate() {
        if let Some(difference) = Difference::between(wanted, has, name) {
            drifts.push(Drift::new(DriftClass::Slot, format_args!("{addr} slot {slot}"), difference));
        }
    }
}

/// Sets and backends that no frontend of `found` leads to, and that have no counterpart in `expected`.
fn of_unused(expected: &State, found: &State, drifts: &mut Vec<Drift>) {
    let mut counts: BTreeMap<_, isize> = BTreeMap::new();
    for backend in expected.backends.values() {
        *counts.entry(backend.addr).or_default() += 1;
    }
    for backend in found.backends.values() {
        *counts.entry(backend.addr).or_default() -= 1;
    }
    for (addr, count) in counts.into_iter().filter(|(_, count)| *count != 0) {
        let difference = if count > 0 { Difference::Missing } else { Difference::Extra };
        drifts.push(Drift::new(DriftClass::Backend, addr, difference));
    }
    let used = found.sets_in_use();
    let kept = expected.sets_in_use().len();
    let orphans = found.sets.keys().filter(|set| !used.contains(set));
    if expected.sets.len() == kept {
        drifts.extend(orphans.map(|set| Drift::new(DriftClass::Set, set, Difference::Extra)));
    }
}

/// A target, expanded.
#[derive(PartialEq, Eq)]
struct Slots {
    kind: Kind,
    backends: Vec<Option<Backend>>,
    /// In order.
    draining: Vec<Option<Backend>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reject,
    Drop,
    Dangling,
    Set(Lookup),
}

impl Slots {
    fn of(state: &State, target: Target) -> Self {
        let none = |kind| Self { kind, backends: Vec::new(), draining: Vec::new() };
        let backend = |id| state.backends.get(id).copied();
        match target {
            Target::Reject => none(Kind::Reject),
            Target::Drop => none(Kind::Drop),
            Target::Set(id) => match state.sets.get(&id) {
                None => none(Kind::Dangling),
                Some(set) => {
                    let mut draining: Vec<_> = set.draining.iter().map(backend).collect();
                    draining.sort_unstable();
                    Self { kind: Kind::Set(set.lookup), backends: set.slots.iter().map(backend).collect(), draining }
                }
            },
        }
    }
}

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Reject => f.write_str("refused"),
            Kind::Drop => f.write_str("dropped"),
            Kind::Dangling => f.write_str("a set that is not there"),
            Kind::Set(lookup) => {
                let lookup = match lookup {
                    Lookup::Random => "at random",
                    Lookup::RoundRobin => "in turn",
                    Lookup::Hash => "by hash",
                    Lookup::LeastConnections => "by least connections",
                };
                match self.backends.len() {
                    1 => write!(f, "1 slot, {lookup}")?,
                    slots => write!(f, "{slots} slots, {lookup}")?,
                }
                match self.draining.len() {
                    0 => Ok(()),
                    draining => write!(f, ", {draining} draining"),
                }
            }
        }
    }
}
