//! The elements that stand for a state. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use lb_core::{
    addr::{Family, FrontendAddr, Scope},
    affinity::Affinity,
    id::SetId,
    node::NodeFacts,
    state::{Frontend, OtherPorts},
};

use crate::nftables::table::{
    choice::Choice,
    layout::{Bound, Device, Element, FAMILIES, Key, Note, Value},
    ranges,
    slots::{self, Backends},
};

/// The elements of a frontend's backends.
pub(crate) fn elements(addr: FrontendAddr, choice: Option<Choice>, backends: &Backends) -> Vec<Element> {
    match choice.and_then(Choice::pick) {
        Some(pick) => slots::elements(addr, pick.is_packed(), backends),
        None => Vec::new(),
    }
}

/// A choice as an element of [`Set::Picks`](crate::nftables::table::layout::Set).
pub(crate) fn verdict_element(family: Family, choice: Choice) -> Element {
    Element::new(Key::Verdict(family, choice), Value::Choice(choice))
}

/// The verdicts that every table has.
pub(crate) fn fixed_verdicts() -> impl Iterator<Item = Element> {
    FAMILIES.into_iter().flat_map(|family| Choice::FIXED.map(|choice| verdict_element(family, choice)))
}

/// A frontend as an element of [`Set::Frontends`](crate::nftables::table::layout::Set). Its comment carries what a
/// restart needs and packets do not, `frontend ID [set ID] [affinity …] [other-ports …]`, and for people the label, `[for LABEL]`.
pub(crate) fn frontend_element(addr: FrontendAddr, frontend: &Frontend, choice: Choice, label: &str) -> Element {
    Element::new(Key::Frontend(addr), Value::Choice(choice)).comment(comment(frontend, label))
}

fn comment(frontend: &Frontend, label: &str) -> String {
    let mut text = format!("frontend {}", frontend.id);
    if let Some(set) = set_of(frontend) {
        text.push_str(&format!(" set {set}"));
    }
    if let Some(Affinity { timeout, prefix_v4, prefix_v6 }) = frontend.affinity {
        text.push_str(&format!(" affinity {}/{prefix_v4}/{prefix_v6}", timeout.as_nanos()));
    }
    if frontend.other_ports != OtherPorts::Pass {
        text.push_str(&format!(" other-ports {}", frontend.other_ports.as_str()));
    }
    if !label.is_empty() {
        text.push_str(" for ");
        text.push_str(label);
    }
    text
}

/// The facts about the node as elements of [`Set::Notes`](crate::nftables::table::layout::Set).
pub(crate) fn notes(node: &NodeFacts) -> Vec<Element> {
    let note = |note, number, text: String| Element::new(Key::Note(note, number), Value::None).comment(text);
    let name = node.name.iter().map(|name| note(Note::NodeName, 0, name.as_str().to_owned()));
    let ips = (0..).zip(&node.ips).map(|(n, ip)| note(Note::NodeIp, n, ip.to_string()));
    let cidrs = (0..).zip(&node.cluster_cidrs).map(|(n, cidr)| note(Note::ClusterCidr, n, cidr.to_string()));
    name.chain(ips).chain(cidrs).collect()
}

/// The prefixes of pods as elements of [`Set::Cluster`](crate::nftables::table::layout::Set).
pub(crate) fn cluster(node: &NodeFacts, family: Family) -> Vec<Element> {
    let bound = |ip, bound| Element::new(Key::Bound(ip, bound), Value::None);
    ranges::merged(&node.cluster_cidrs, family)
        .into_iter()
        .flat_map(|(first, behind)| {
            std::iter::once(bound(first, Bound::Start)).chain(behind.map(|ip| bound(ip, Bound::End)))
        })
        .collect()
}

/// What happens to packets to `ip` at ports that none of its frontends has, as an element of
/// [`Set::Addresses`](crate::nftables::table::layout::Set); none for an address whose frontends leave them alone.
pub(crate) fn other_ports(ip: IpAddr, says: Option<OtherPorts>) -> Option<Element> {
    let choice = match says? {
        OtherPorts::Reject => Choice::Refuse,
        OtherPorts::Drop => Choice::Drop,
        OtherPorts::Pass => return None,
    };
    Some(Element::new(Key::Address(ip), Value::Choice(choice)))
}

/// Devices that lead out of the node as elements of [`Set::Uplinks`](crate::nftables::table::layout::Set).
pub(crate) fn uplinks(devices: &BTreeSet<Device>) -> Vec<Element> {
    devices.iter().map(|&device| Element::new(Key::Uplink(device), Value::None)).collect()
}

/// What a frontend says about sources that come in through an uplink, as elements of
/// [`Set::KeptSources`](crate::nftables::table::layout::Set) and
/// [`Set::TranslatedPods`](crate::nftables::table::layout::Set).
pub(crate) fn sources(addr: FrontendAddr, frontend: Option<&Frontend>) -> impl Iterator<Item = Element> {
    // Nothing comes in through an uplink for scope internal.
    let frontend = frontend.filter(|_| addr.scope == Scope::External);
    let keeps = frontend.is_some_and(|frontend| frontend.keeps_source);
    let pods = frontend.is_some_and(|frontend| frontend.translates_pods);
    let keys = [keeps.then_some(Key::KeptSource(addr)), pods.then_some(Key::TranslatedPods(addr))];
    keys.into_iter().flatten().map(|key| Element::new(key, Value::None))
}

/// The set that a frontend points to.
pub(crate) fn set_of(frontend: &Frontend) -> Option<SetId> {
    match frontend.target {
        lb_core::state::Target::Set(id) => Some(id),
        lb_core::state::Target::Reject | lb_core::state::Target::Drop => None,
    }
}
