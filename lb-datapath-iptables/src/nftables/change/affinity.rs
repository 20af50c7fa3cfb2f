//! Clients' records that a change contradicts.
//!
//! Packets write the records, so that they are read when they matter and not mirrored: only for a frontend with
//! affinity whose backends, id or affinity change.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::addr::FrontendAddr;

use crate::nftables::{
    host::{Batch, Host},
    table::layout::{Element, Endpoint, Key, Set, Value},
};

/// Which records of a frontend may stay: those that lead to one of these backends.
pub(crate) type Sweeps = BTreeMap<FrontendAddr, BTreeSet<Endpoint>>;

/// The records that may not stay.
pub(crate) fn stale(host: &mut dyn Host, sweeps: &Sweeps) -> lb_netlink::Result<Vec<(FrontendAddr, Key)>> {
    let mut found = Vec::new();
    let sets: BTreeSet<Set> = sweeps.keys().map(|addr| Set::Affinity(addr.scope, addr.family())).collect();
    for set in sets {
        let records = host.elements(set)?.into_iter().flatten();
        found.extend(records.filter_map(|(record, _)| doomed(sweeps, &record)));
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes records that packets wrote before the transaction was committed.
pub(crate) fn sweep(host: &mut dyn Host, sweeps: &Sweeps) -> lb_netlink::Result<()> {
    let records = stale(host, sweeps)?;
    if records.is_empty() {
        return Ok(());
    }
    Ok(host.commit(&Batch { forget: &records, ..Batch::default() })?)
}

fn doomed(sweeps: &Sweeps, record: &Element) -> Option<(FrontendAddr, Key)> {
    let (Key::Record(_, addr), &Value::Backend(ip, port)) = (record.key, &record.value) else { return None };
    let keep = sweeps.get(&addr)?;
    (!keep.contains(&(ip, port))).then_some((addr, record.key))
}
