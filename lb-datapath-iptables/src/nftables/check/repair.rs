//! From the findings of an inspection to a repair: in one transaction and in place, or the whole table anew where that
//! is not enough.

use std::{collections::BTreeSet, net::IpAddr};

use lb_core::{
    addr::{Family, FrontendAddr, Scope},
    drift::{Difference, DriftClass},
};

use crate::{
    conntrack::Allowed,
    nftables::{
        check::{
            expected::ExpectedTable,
            inspect::{Finding, Object},
        },
        host::{ChainRepair, Host, TableRepair},
        table::{
            decode::DecodedElement,
            layout::{Element, Key, Set, twin},
            rules,
        },
    },
    routes::RouteKind,
};

/// The changes that put findings right.
#[derive(Debug, Default)]
pub(crate) struct RepairPlan {
    /// Whether the table has to be made anew.
    pub(crate) table: bool,
    /// The contents of the transaction otherwise.
    pub(crate) mend: TableRepair,
    /// Whether the notes are written anew, the generation with them.
    pub(crate) notes: bool,
    /// Routes to write.
    pub(crate) missing_routes: Vec<(RouteKind, IpAddr)>,
    /// Routes to remove.
    pub(crate) extra_routes: Vec<(RouteKind, IpAddr)>,
    /// Routing rules to write.
    pub(crate) routing_rules: Vec<Family>,
}

impl RepairPlan {
    /// The changes that put `findings` right.
    pub(crate) fn new(wanted: &ExpectedTable<'_>, findings: &[Finding]) -> Self {
        let mut remedy = Self::default();
        let objects: BTreeSet<&Object> = findings.iter().map(|finding| &finding.object).collect();
        let extra: BTreeSet<&Object> = findings
            .iter()
            .filter(|finding| finding.drift.difference == Difference::Extra)
            .map(|finding| &finding.object)
            .collect();
        let is_extra = |object| extra.contains(object);
        for object in objects {
            match object {
                Object::Table => remedy.table = true,
                Object::ForeignSet(name) => remedy.mend.sets_gone.push(name.clone()),
                Object::ForeignChain(name) => remedy.mend.chains_gone.push(name.clone()),
                Object::Chain(name) => remedy.mend.chains.extend(mended(name, findings)),
                Object::Element(set, key) => remedy.element(wanted, *set, key),
                Object::Route(place, vip) if is_extra(object) => remedy.extra_routes.push((*place, *vip)),
                Object::Route(place, vip) => remedy.missing_routes.push((*place, *vip)),
                Object::RoutingRule(family) => remedy.routing_rules.push(*family),
            }
        }
        if remedy.notes {
            remedy.mend.emptied.push(Set::Notes);
            remedy.mend.added.extend(wanted.notes());
        }
        remedy
    }

    /// The frontends whose packets may have gone elsewhere, or nowhere, and where their flows may go.
    pub(crate) fn flows(&self, wanted: &ExpectedTable<'_>) -> Allowed {
        let anywhere = !self.mend.chains.is_empty() || !self.mend.chains_gone.is_empty();
        let keys = self.mend.gone.iter().filter_map(|(set, key)| crate::nftables::table::keys::key_of(*set, key));
        let touched: BTreeSet<FrontendAddr> = keys
            .filter_map(|key| match key {
                Key::Frontend(addr) | Key::Slot(addr, _) | Key::Block(addr, _) => Some(addr),
                _ => None,
            })
            .collect();
        let all = anywhere.then(|| wanted.state.frontends.keys().copied()).into_iter().flatten();
        let mut allowed = Allowed::new();
        for addr in all.chain(touched) {
            // Nothing tells the flows of one scope from those of the other.
            let endpoints = [addr, twin(addr)].into_iter().flat_map(|addr| wanted.endpoints(&addr));
            allowed.entry(FrontendAddr { scope: Scope::External, ..addr }).or_default().extend(endpoints);
        }
        allowed
    }

    /// Whether the table has to change.
    pub(crate) fn writes(&self) -> bool {
        let TableRepair { first, chains, chains_gone, sets_gone, emptied, gone, added } = &self.mend;
        !(first.is_empty() && chains.is_empty() && chains_gone.is_empty() && sets_gone.is_empty())
            || !(emptied.is_empty() && gone.is_empty() && added.is_empty())
    }

    fn element(&mut self, wanted: &ExpectedTable<'_>, set: Set, key: &[u8]) {
        match set {
            Set::Notes => self.notes = true,
            // A bound means nothing without the others.
            Set::Cluster(family) => {
                if !self.mend.emptied.contains(&set) {
                    self.mend.emptied.push(set);
                    self.mend.added.extend(wanted.bounds(family));
                }
            }
            Set::Uplinks => {
                if !self.mend.emptied.contains(&set) {
                    self.mend.emptied.push(set);
                    self.mend.added.extend(wanted.uplinks().iter().cloned());
                }
            }
            _ => {
                self.mend.gone.push((set, key.to_vec()));
                self.mend
                    .added
                    .extend(crate::nftables::table::keys::key_of(set, key).and_then(|key| wanted.element(&key)));
            }
        }
    }
}

/// A chain as it should be, and whether it exists.
fn mended(name: &str, findings: &[Finding]) -> Option<ChainRepair> {
    let about = |class, missing| {
        findings.iter().any(|Finding { drift, .. }| {
            drift.class == class && drift.object == name && (drift.difference == Difference::Missing) == missing
        })
    };
    let (there, wrong) = (!about(DriftClass::Chain, true), about(DriftClass::Chain, false));
    let (hook, rules) = match rules::chains().into_iter().find(|chain| chain.name == name) {
        Some(chain) => (chain.hook, chain.rules),
        None => (None, rules::pick(&name.parse().ok()?)),
    };
    Some(ChainRepair { name: name.to_owned(), hook, rules, there, wrong })
}

/// Clients' records that stay valid in a new table.
pub(crate) fn records(
    host: &mut dyn Host,
    wanted: impl Fn(&Element) -> bool,
) -> lb_netlink::Result<Vec<DecodedElement>> {
    let mut kept = Vec::new();
    for set in Set::ALL.into_iter().filter(|set| matches!(set, Set::Affinity(..))) {
        match host.elements(set) {
            Ok(records) => kept.extend(records.into_iter().flatten().filter(|(record, _)| wanted(record))),
            Err(error) if error.errno() == Some(nix::libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(kept)
}
