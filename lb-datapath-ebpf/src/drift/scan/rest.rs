//! Slots, and the node's facts and prefixes.

use std::{
    collections::BTreeSet,
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
