//! Compares the entries of tables with the mirror.

use std::{collections::BTreeSet, fmt::Display, time::Duration};

use lb_core::{
    affinity::Affinity,
    drift::{Cause, Difference, Drift, DriftClass},
    id::{BackendId, SetId},
    state::{Lookup, Target},
};
use lb_datapath_ebpf_abi::{self as abi, Pod};

use super::{Finding, names::Names};
use crate::{
    state::{convert, lower::set_value, maps::Table, mirror::Mirror, write::Write},
    sys::Page,
};

/// Every entry of a table that differs.
pub(super) fn compare(table: Table, page: &Page, mirror: &Mirror) -> Vec<Finding> {
    let (state, names) = (&mirror.state, Names::new(mirror));
    match table {
        Table::Frontends => {
            let all =
                (state.frontends.len(), || state.frontends.keys().filter_map(|at| convert::frontend_key(at).ok()));
            entries(page, |key| frontend(mirror, key), all, |entry| frontend_finding(mirror, entry))
        }
        Table::Backends => {
            let all = (state.backends.len(), || state.backends.keys().map(|id| id.get()));
            entries(page, |key| backend(mirror, *key), all, backend_finding)
        }
        Table::Sets => {
            let all = (state.sets.len(), || state.sets.keys().map(|id| id.get()));
            entries(page, |key| set(mirror, *key), all, |entry| set_finding(&names, entry))
        }
        Table::Members => {
            let all = (mirror.members(), || members(mirror));
            entries(page, |key| member(mirror, key), all, |entry| member_finding(&names, entry))
        }
        Table::Turns => {
            let counting = |id: &u32| turn(mirror, *id).is_some();
            let all = (mirror.turns(), || state.sets.keys().map(|id| id.get()).filter(counting));
            entries(page, |key| turn(mirror, *key), all, |entry| turn_finding(&names, entry))
        }
    }
}

/// An entry that is not as expected.
pub(super) struct Entry<K, V> {
    pub(super) key: K,
    pub(super) expected: Option<V>,
    pub(super) found: Option<V>,
}

impl<K, V> Entry<K, V> {
    pub(super) fn finding(
        &self,
        class: DriftClass,
        object: impl Display,
        fix: Write,
        text: impl Fn(&V) -> String,
    ) -> Finding {
        let difference = match (&self.expected, &self.found) {
            (Some(expected), Some(found)) => Difference::Wrong { expected: text(expected), found: text(found) },
            (Some(_), None) => Difference::Missing,
            (None, _) => Difference::Extra,
        };
        Finding { drift: Drift::new(class, object, difference), fix: Some(fix) }
    }
}

/// Compares the entries of a table with what is `expected` of each; `all` says how many there should be, and under
/// which keys.
fn entries<K: Pod + Ord, V: Value, I: Iterator<Item = K>>(
    page: &Page,
    expected: impl Fn(&K) -> Option<V>,
    (count, all): (usize, impl Fn() -> I),
    finding: impl Fn(Entry<K, V>) -> Finding,
) -> Vec<Finding> {
    let (mut findings, mut seen, mut total) = (Vec::new(), 0, 0);
    for (key, value) in page.iter() {
        let Some((key, found)) = K::from_bytes(key).zip(V::read(value)) else { continue };
        let expected = expected(&key);
        total += 1;
        seen += usize::from(expected.is_some());
        if expected != Some(found) {
            findings.push(finding(Entry { key, expected, found: Some(found) }));
        }
    }
    if seen < count {
        let keys: BTreeSet<K> = page.iter().filter_map(|(key, _)| K::from_bytes(key)).collect();
        let missing = all().filter(|key| !keys.contains(key));
        findings.extend(missing.map(|key| finding(Entry { key, expected: expected(&key), found: None })));
    }
    if total == 0 && findings.len() > 1 {
        findings.iter_mut().for_each(|finding| finding.drift.cause = Cause::Flushed);
    }
    findings
}

/// A value as a map holds it.
trait Value: Copy + PartialEq {
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// A value that programs write. Every value is right.
#[derive(Clone, Copy)]
pub(super) struct Any;

impl PartialEq for Any {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Value for Any {
    fn read(_: &[u8]) -> Option<Self> {
        Some(Self)
    }
}

impl Value for u8 {
    fn read(bytes: &[u8]) -> Option<Self> {
        Pod::from_bytes(bytes)
    }
}

impl Value for abi::FrontendValue {
    fn read(bytes: &[u8]) -> Option<Self> {
        Pod::from_bytes(bytes)
    }
}

impl Value for abi::BackendValue {
    fn read(bytes: &[u8]) -> Option<Self> {
        Pod::from_bytes(bytes)
    }
}

impl Value for abi::SetValue {
    fn read(bytes: &[u8]) -> Option<Self> {
        Pod::from_bytes(bytes)
    }
}

pub(super) fn frontend(mirror: &Mirror, key: &abi::FrontendKey) -> Option<abi::FrontendValue> {
    let addr = convert::frontend_addr(key).ok()?;
    let frontend = mirror.state.frontends.get(&addr)?;
    let set = match frontend.target {
        Target::Set(id) => {
            let set = mirror.state.sets.get(&id)?;
            Some((mirror.extent(id)?, set.slots.len() as u32, set.lookup))
        }
        Target::Reject | Target::Drop => None,
    };
    convert::frontend_value(frontend, set).ok()
}

pub(super) fn backend(mirror: &Mirror, id: u32) -> Option<abi::BackendValue> {
    convert::backend_value(mirror.state.backends.get(&BackendId::new(id)?)?, &mirror.state.node).ok()
}

pub(super) fn set(mirror: &Mirror, id: u32) -> Option<abi::SetValue> {
    let id = SetId::new(id)?;
    Some(set_value(mirror.state.sets.get(&id)?, mirror.extent(id)?))
}

pub(super) fn member(mirror: &Mirror, key: &abi::MemberKey) -> Option<u8> {
    let listed = mirror.listed(SetId::new(key.set)?);
    let backend = BackendId::new(key.backend)?;
    listed.binary_search_by_key(&backend, |(backend, _)| *backend).ok().map(|at| listed[at].1)
}

fn members(mirror: &Mirror) -> impl Iterator<Item = abi::MemberKey> {
    mirror.lists().flat_map(|(set, members)| {
        members.iter().map(move |(backend, _)| abi::MemberKey { set: set.get(), backend: backend.get() })
    })
}

pub(super) fn turn(mirror: &Mirror, id: u32) -> Option<Any> {
    let set = mirror.state.sets.get(&SetId::new(id)?)?;
    (set.lookup == Lookup::RoundRobin).then_some(Any)
}

fn frontend_finding(mirror: &Mirror, entry: Entry<abi::FrontendKey, abi::FrontendValue>) -> Finding {
    let object = convert::frontend_addr(&entry.key).map_or_else(|corrupt| corrupt.to_string(), |addr| addr.to_string());
    let fix = match entry.expected {
        Some(value) => Write::Frontend(entry.key, value),
        None => Write::NoFrontend(entry.key),
    };
    entry.finding(DriftClass::Frontend, object, fix, |value| target_text(mirror, value))
}

/// A frontend's value for people.
fn target_text(mirror: &Mirror, value: &abi::FrontendValue) -> String {
    let target = match value.target {
        abi::TARGET_SET => {
            let known = SetId::new(value.set).and_then(|id| mirror.state.sets.get(&id)).is_some();
            let strange = if known { "" } else { ", which is unknown" };
            let lookup = ["random", "in turn", "by hash", "by least connections"]
                .get(value.lookup as usize)
                .unwrap_or(&"unknown");
            format!("set {}{strange}, {} slots from chunk {}, {lookup}", value.set, value.slots, value.first)
        }
        abi::TARGET_REJECT => "refused".into(),
        abi::TARGET_DROP => "dropped".into(),
        other => format!("target {other}"),
    };
    let affinity = if value.affinity == 0 {
        "no affinity".into()
    } else {
        let timeout = Duration::from_nanos(value.affinity_ns);
        Affinity { timeout, prefix_v4: value.prefix_v4, prefix_v6: value.prefix_v6 }.to_string()
    };
    let sockets = if value.leaves_sockets == 0 { "" } else { ", sockets left alone" };
    format!("id {}, {target}, {affinity}{sockets}", value.id)
}

fn backend_finding(entry: Entry<u32, abi::BackendValue>) -> Finding {
    let text = |value: &abi::BackendValue| match convert::backend(value) {
        Ok(backend) => format!("{}{}", backend.addr, if backend.local { ", on this node" } else { "" }),
        Err(corrupt) => corrupt.to_string(),
    };
    let object = match entry.expected.or(entry.found).map(|value| convert::backend(&value)) {
        Some(Ok(backend)) => backend.addr.to_string(),
        _ => format!("id {}", entry.key),
    };
    let fix = match entry.expected {
        Some(value) => Write::Backend(entry.key, value),
        None => Write::NoBackend(entry.key),
    };
    entry.finding(DriftClass::Backend, object, fix, text)
}

fn set_finding(names: &Names<'_>, entry: Entry<u32, abi::SetValue>) -> Finding {
    let text = |value: &abi::SetValue| format!("{} slots from chunk {}", value.slots, value.first);
    let fix = match entry.expected {
        Some(value) => Write::Set(entry.key, value),
        None => Write::NoSet(entry.key),
    };
    entry.finding(DriftClass::Set, names.set(entry.key), fix, text)
}

fn member_finding(names: &Names<'_>, entry: Entry<abi::MemberKey, u8>) -> Finding {
    let object = format!("MEMBERS {} of {}", names.backend(entry.key.backend), names.set(entry.key.set));
    let fix = match entry.expected {
        Some(value) => Write::Member(entry.key, value),
        None => Write::NoMember(entry.key),
    };
    let text = |value: &u8| match *value {
        abi::MEMBER_TAKES => "takes new flows".into(),
        abi::MEMBER_DRAINS => "draining".into(),
        other => format!("{other}, which is unknown"),
    };
    entry.finding(DriftClass::MapEntry, object, fix, text)
}

fn turn_finding(names: &Names<'_>, entry: Entry<u32, Any>) -> Finding {
    let fix = if entry.expected.is_some() { Write::Turns(entry.key) } else { Write::NoTurns(entry.key) };
    entry.finding(DriftClass::MapEntry, format!("TURNS {}", names.set(entry.key)), fix, |_| "a count".into())
}
