//! Slots, and the node's facts and prefixes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use lb_core::{
    drift::{Difference, Drift, DriftClass},
    node::NodeFacts,
};
use lb_datapath_ebpf_abi as abi;

use super::{Finding, entries::Entry, names::Names};
use crate::{
    error::EbpfError,
    state::{
        convert,
        maps::Maps,
        mirror::Mirror,
        write::{Write, cidr_keys},
    },
};

/// Slots that differ, by the frontends that they belong to.
pub(super) fn slots(maps: &Maps, mirror: &Mirror, findings: &mut Vec<Finding>) {
    let names = Names::new(mirror);
    for (&id, set) in &mirror.state.sets {
        let Some(extent) = mirror.extent(id) else { continue };
        if maps.have_slots(extent.first, &set.slots) {
            continue;
        }
        let found = maps.slots(extent.first, set.slots.len() as u32);
        let mut fix = Some(Write::Slots(extent.first, Arc::clone(&set.slots)));
        let wrong: Vec<_> = set.slots.iter().map(|id| id.get()).zip(found).enumerate().collect();
        let wrong = wrong.into_iter().filter(|(_, (expected, found))| expected != found);
        let wrong: Vec<_> = wrong.map(|(slot, (expected, found))| (slot, expected, found)).collect();
        for owner in names.owners(id) {
            for drift in slot_drifts(&names, &owner, &wrong) {
                findings.push(Finding { drift, fix: fix.take() });
            }
        }
    }
}

/// One difference per slot, at most `MOST` for each table.
fn slot_drifts(names: &Names<'_>, owner: &str, wrong: &[(usize, u32, u32)]) -> Vec<Drift> {
    const MOST: usize = 16;
    let drift = |object, expected, found| Drift::new(DriftClass::Slot, object, Difference::Wrong { expected, found });
    let each = wrong.iter().take(MOST).map(|(slot, expected, found)| {
        drift(format!("{owner} slot {slot}"), names.backend(*expected), names.backend(*found))
    });
    let rest = wrong.len().saturating_sub(MOST);
    let more = (rest > 0).then(|| drift(format!("{owner} slots"), "as written".into(), format!("{rest} more differ")));
    each.chain(more).collect()
}

/// Addresses whose packets programs would pass by.
pub(super) fn filter(maps: &Maps, mirror: &Mirror, findings: &mut Vec<Finding>) {
    let unknown: BTreeSet<IpAddr> = mirror.addresses().filter(|ip| !maps.filter().has_ip(*ip)).collect();
    findings.extend(unknown.into_iter().filter_map(|ip| {
        let drift = Drift::new(DriftClass::MapEntry, format_args!("FILTER {ip}"), Difference::Missing);
        Some(Finding { drift, fix: Some(Write::Known(convert::addr(ip).ok()?)) })
    }));
}

/// Source ranges of frontends.
pub(super) fn sources(maps: &Maps, mirror: &Mirror, findings: &mut Vec<Finding>) -> Result<(), EbpfError> {
    let found: BTreeSet<_> = maps.sources()?.into_iter().collect();
    for key in found.symmetric_difference(&mirror.sources) {
        let expected = mirror.sources.contains(key);
        let entry = Entry { key, expected: expected.then_some(()), found: (!expected).then_some(()) };
        let prefix = convert::source(key).map_or_else(|corrupt| corrupt.to_string(), |prefix| prefix.to_string());
        let kind = if key.frontend & abi::SOURCES_DENIED == 0 { "allowed" } else { "denied" };
        let object = format!("SOURCES {prefix} {kind} at frontend id {}", key.frontend & !abi::SOURCES_DENIED);
        let fix = if expected { Write::Source(*key) } else { Write::NoSource(*key) };
        findings.push(entry.finding(DriftClass::MapEntry, object, fix, |()| String::new()));
    }
    Ok(())
}

/// What addresses with frontends say about the rest of their traffic.
pub(super) fn addresses(maps: &Maps, mirror: &Mirror, findings: &mut Vec<Finding>) -> Result<(), EbpfError> {
    let known = mirror.addresses_said.iter().filter_map(|(ip, says)| Some((convert::addr(*ip).ok()?, *says)));
    let differences = differences(&known.collect(), &maps.addresses()?);
    findings.extend(differences.into_iter().map(|entry| {
        let addr = entry.key;
        let fix = entry.expected.map_or(Write::NoAddress(addr), |says| Write::Address(addr, says));
        let text = |says: &u8| {
            let pings = if says & abi::ADDRESS_ANSWERS_PING == 0 { "" } else { ", and pings are answered" };
            match *says & !abi::ADDRESS_ANSWERS_PING {
                0 => format!("other ports are passed on{pings}"),
                abi::ADDRESS_REJECTS => format!("other ports are refused{pings}"),
                abi::ADDRESS_DROPS => format!("other ports are dropped{pings}"),
                _ => format!("flags {says}"),
            }
        };
        entry.finding(DriftClass::MapEntry, format!("ADDRESSES {}", convert::ip(addr)), fix, text)
    }));
    Ok(())
}

/// What is behind devices.
pub(super) fn devices(maps: &mut Maps, findings: &mut Vec<Finding>) -> Result<(), EbpfError> {
    let found = maps.devices()?;
    let differences = differences(maps.known_devices(), &found);
    findings.extend(differences.into_iter().map(|entry| {
        let device = entry.key;
        let fix = entry.expected.map_or(Write::NoDevice(device), |value| Write::Device(device, value));
        let text = |value: &abi::DeviceValue| {
            let kind = if value.kind & abi::DEVICE_INSIDE == 0 { "an uplink" } else { "pods" };
            format!("{kind}, {:02x?}", value.hardware)
        };
        entry.finding(DriftClass::MapEntry, format!("DEVICES {}", device.0), fix, text)
    }));
    Ok(())
}

/// Entries that are not as `expected`.
fn differences<K: Copy + Ord, V: Copy + PartialEq>(
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) -> Vec<Entry<K, V>> {
    let keys: BTreeSet<K> = expected.keys().chain(found.keys()).copied().collect();
    let entry = |key| Entry { key, expected: expected.get(&key).copied(), found: found.get(&key).copied() };
    keys.into_iter().map(entry).filter(|entry| entry.expected != entry.found).collect()
}

/// The node's facts and prefixes.
pub(super) fn node(maps: &Maps, mirror: &Mirror, findings: &mut Vec<Finding>) -> Result<(), EbpfError> {
    let facts = &mirror.state.node;
    let found = maps.node()?;
    // An empty map stands for the default facts.
    let unwritten = found.is_none() && *facts == NodeFacts::default();
    if let Some(expected) =
        convert::node_value(facts, mirror.limits.ports).ok().filter(|value| !unwritten && found != Some(*value))
    {
        let entry = Entry { key: (), expected: Some(expected), found };
        let text = |value: &abi::NodeValue| match convert::node(value) {
            Ok(facts) => facts.to_string(),
            Err(error) => error.to_string(),
        };
        findings.push(entry.finding(DriftClass::Node, "facts", Write::Node(Box::new(expected)), text));
    }
    let (wanted, found) = (cidr_keys(&facts.cluster_cidrs), maps.cidrs()?);
    let keys: BTreeSet<_> = wanted.keys().chain(found.keys()).copied().collect();
    for key in keys {
        let entry = Entry { key, expected: wanted.get(&key).copied(), found: found.get(&key).copied() };
        if entry.expected != entry.found {
            let fix = entry.expected.map_or(Write::NoCidr(key), |family| Write::Cidr(key, family));
            let family = |family: &u8| format!("family {family}");
            findings.push(entry.finding(DriftClass::Node, format!("prefix {}", cidr_text(&key)), fix, family));
        }
    }
    Ok(())
}

fn cidr_text(key: &abi::CidrKey) -> String {
    match (convert::ip(key.addr), key.bits.checked_sub(96)) {
        (IpAddr::V4(ip), Some(bits)) => format!("{ip}/{bits}"),
        _ => format!("{}/{}", Ipv6Addr::from(abi::octets(key.addr)), key.bits),
    }
}
