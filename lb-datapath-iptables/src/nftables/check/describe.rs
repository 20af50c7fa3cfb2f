//! Differences of elements and rules in words, as an inspection reports them.

use std::{fmt, net::SocketAddr};

use lb_core::{
    addr::{Family, FrontendAddr},
    drift::{Difference, Drift, DriftClass},
};

use crate::nftables::{
    check::observe,
    table::{
        layout::{Bound, Element, Endpoint, Key, Note, Value, nowhere},
        ruleset::ListedRule,
        slots::DRAINING,
    },
};

/// Where two lists of rules differ, by position from 1: those between their common beginning and their common end.
pub(crate) fn differing(wanted: &[ListedRule], found: &[ListedRule]) -> Vec<(usize, Difference)> {
    let same = |(a, b): &(&ListedRule, &ListedRule)| a == b;
    let head = wanted.iter().zip(found).take_while(same).count();
    let tail = wanted[head..].iter().rev().zip(found[head..].iter().rev()).take_while(same).count();
    let (wanted, found) = (&wanted[head..wanted.len() - tail], &found[head..found.len() - tail]);
    (0..wanted.len().max(found.len()))
        .filter_map(|at| {
            let difference = match (wanted.get(at), found.get(at)) {
                (Some(wanted), Some(found)) => Difference::between(wanted, found, ToString::to_string)?,
                (Some(_), None) => Difference::Missing,
                (None, _) => Difference::Extra,
            };
            Some((head + at + 1, difference))
        })
        .collect()
}

/// The differences between two elements with the same key, one of which may be missing: slot by slot in a block.
pub(crate) fn drifts(wanted: Option<&Element>, found: Option<&Element>) -> Vec<Drift> {
    let Some(element) = wanted.or(found) else { return Vec::new() };
    if let Key::Block(addr, first) = element.key
        && wanted.map(|wanted| &wanted.value) != found.map(|found| &found.value)
    {
        let (wanted, found) = (backends_of(wanted), backends_of(found));
        let slot = |n| (wanted.get(n).copied(), found.get(n).copied());
        let slots = (first..).zip((0..wanted.len().max(found.len())).map(slot));
        let slots = slots.filter_map(|(n, (wanted, found))| Some((n, difference(wanted, found, endpoint_text)?)));
        let drifts: Vec<Drift> = slots.map(|(n, difference)| slot_drift(&addr, n, difference)).collect();
        if !drifts.is_empty() {
            return drifts;
        }
    }
    let text = |element: &Element| match (wanted, found) {
        (Some(wanted), Some(found)) if wanted.value == found.value => comment_text(element),
        _ => value_text(&element.value),
    };
    let difference = match (wanted, found) {
        (Some(wanted), Some(found)) => Some(Difference::Wrong { expected: text(wanted), found: text(found) }),
        (Some(_), None) => Some(Difference::Missing),
        (None, _) => Some(Difference::Extra),
    };
    difference.into_iter().map(|difference| drift_of(element, difference)).collect()
}

/// The backends in a block, up to the last slot.
fn backends_of(element: Option<&Element>) -> Vec<Endpoint> {
    let Some(Element { value: Value::Backends(backends), .. }) = element else { return Vec::new() };
    let there = |&&(ip, port): &&Endpoint| (ip, port) != nowhere(Family::of(ip));
    let last = backends.iter().rposition(|backend| there(&backend)).map_or(0, |last| last + 1);
    backends[..last].to_vec()
}

fn difference<T: PartialEq>(wanted: Option<T>, found: Option<T>, text: impl Fn(&T) -> String) -> Option<Difference> {
    match (wanted, found) {
        (Some(wanted), Some(found)) => Difference::between(&wanted, &found, text),
        (Some(_), None) => Some(Difference::Missing),
        (None, Some(_)) => Some(Difference::Extra),
        (None, None) => None,
    }
}

fn slot_drift(addr: &FrontendAddr, slot: u32, difference: Difference) -> Drift {
    match slot.checked_sub(DRAINING) {
        Some(n) => Drift::new(DriftClass::Slot, format_args!("{addr} draining backend {n}"), difference),
        None => Drift::new(DriftClass::Slot, format_args!("{addr} slot {slot}"), difference),
    }
}

pub(crate) fn drift_of(element: &Element, difference: Difference) -> Drift {
    let set = element.key.set().name();
    match element.key {
        Key::Frontend(addr) => Drift::new(DriftClass::Frontend, addr, difference),
        Key::Verdict(_, choice) => Drift::new(DriftClass::Element, format_args!("{set} {choice}"), difference),
        Key::Slot(addr, slot) | Key::Block(addr, slot) => slot_drift(&addr, slot, difference),
        Key::Record(client, addr) => Drift::new(DriftClass::Element, format_args!("{set} {client} {addr}"), difference),
        Key::Bound(ip, Bound::Start) => Drift::new(DriftClass::Element, format_args!("{set} from {ip}"), difference),
        Key::Bound(ip, Bound::End) => Drift::new(DriftClass::Element, format_args!("{set} up to {ip}"), difference),
        Key::Address(ip) => Drift::new(DriftClass::Element, format_args!("{set} {ip}"), difference),
        Key::Uplink(device) => Drift::new(DriftClass::Element, format_args!("{set} {device}"), difference),
        Key::KeptSource(addr) | Key::TranslatedPods(addr) => {
            Drift::new(DriftClass::Element, format_args!("{set} {addr}"), difference)
        }
        Key::Hairpin(ip) => Drift::new(DriftClass::Element, format_args!("{set} {ip}"), difference),
        Key::Backend(ip, port) => {
            Drift::new(DriftClass::Element, format_args!("{set} {}", SocketAddr::new(ip, port)), difference)
        }
        Key::Note(Note::Layout, n) => Drift::new(DriftClass::Element, format_args!("{set} layout {n}"), difference),
        Key::Note(Note::Generation, _) => Drift::new(DriftClass::Element, format_args!("{set} generation"), difference),
        Key::Note(Note::NodeName, _) => Drift::new(DriftClass::Node, "name", difference),
        Key::Note(Note::NodeIp, n) => Drift::new(DriftClass::Node, format_args!("address {n}"), difference),
        Key::Note(Note::ClusterCidr, n) => Drift::new(DriftClass::Node, format_args!("cluster CIDR {n}"), difference),
    }
}

/// An element's comment, as far as it matters.
fn comment_text(element: &Element) -> String {
    match (observe::parse(&element.comment), element.comment.as_str()) {
        (Some(known), _) => known.to_string(),
        (None, "") => "no comment".to_owned(),
        (None, comment) => comment.to_owned(),
    }
}

pub(crate) fn value_text(value: &Value) -> String {
    match value {
        Value::None => String::new(),
        &Value::Backend(ip, port) => endpoint_text(&(ip, port)),
        Value::Backends(backends) => backends.iter().map(endpoint_text).collect::<Vec<_>>().join(", "),
        Value::Choice(choice) => choice.to_string(),
    }
}

fn endpoint_text(&(ip, port): &Endpoint) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// Bytes as hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
