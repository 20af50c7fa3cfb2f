//! MetalLB's `IPAddressPool`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use lb_ipam::{Block, Selector};
use serde::Deserialize;

use super::{
    NamespaceChoice, PoolSpec,
    draft::{Draft, number},
    selector,
};
use crate::{
    check::{self, At, Invalid},
    fields::{
        self,
        Rule::{self, Known, List, Object},
        SELECTOR,
    },
    limits::MAX_SELECTOR_TERMS,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping")]
pub(crate) struct Spec {
    addresses: Option<Vec<String>>,
    auto_assign: Option<bool>,
    #[serde(rename = "avoidBuggyIPs")]
    avoid_buggy_ips: Option<bool>,
    service_allocation: Option<Allocation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping")]
struct Allocation {
    priority: Option<i64>,
    namespaces: Option<Vec<String>>,
    namespace_selectors: Option<Vec<LabelSelector>>,
    service_selectors: Option<Vec<LabelSelector>>,
}

const SPEC: Rule = Object(&[
    ("addresses", Known),
    ("autoAssign", Known),
    ("avoidBuggyIPs", Known),
    ("serviceAllocation", SERVICE_ALLOCATION),
]);

const SERVICE_ALLOCATION: Rule = Object(&[
    ("namespaceSelectors", List(&SELECTOR)),
    ("namespaces", Known),
    ("priority", Known),
    ("serviceSelectors", List(&SELECTOR)),
]);

impl PoolSpec for Spec {
    const KIND: &'static str = "IPAddressPool";
    const API_VERSIONS: &'static [&'static str] = &["metallb.io/v1beta1"];
    const FIELDS: &'static Rule = &Object(&fields::pool(SPEC));

    /// The namespace of the pool is not looked at, since MetalLB reads the pools of one namespace only.
    fn read(&self, draft: &mut Draft) {
        let blocks = self.addresses.iter().flatten().map(|text| Block::parse(text)).collect();
        draft.blocks("spec.addresses", blocks);
        draft.pool.auto_assign = self.auto_assign != Some(false);
        draft.pool.avoid_zero_and_255 = self.avoid_buggy_ips == Some(true);
        if let Some(allocation) = &self.service_allocation {
            draft.pool.priority = draft.take(priority(allocation));
            draft.namespaces = draft.take(namespaces(allocation));
            draft.pool.selectors = draft.take(selectors(allocation.service_selectors.as_deref(), "serviceSelectors"));
        }
    }
}

/// A lower number comes first, 0 is none. A pool for some services comes before those for all of them even without one.
fn priority(allocation: &Allocation) -> Result<Option<u32>, Invalid> {
    let priority = number(allocation.priority, u32::MAX, "spec.serviceAllocation.priority")?;
    let lists = [&allocation.namespace_selectors, &allocation.service_selectors];
    let is_for_some = allocation.namespaces.iter().any(|names| !names.is_empty())
        || lists.into_iter().flatten().any(|selectors| !selectors.is_empty());
    Ok(priority.filter(|&priority| priority > 0).or(is_for_some.then_some(u32::MAX)))
}

fn namespaces(allocation: &Allocation) -> Result<Option<NamespaceChoice>, Invalid> {
    let field = "spec.serviceAllocation.namespaces";
    let named = allocation.namespaces.as_deref().unwrap_or_default();
    if named.len() > MAX_SELECTOR_TERMS {
        return Err(Invalid::new(field, format!("more than {MAX_SELECTOR_TERMS} namespaces: select them by label")));
    }
    for (index, name) in named.iter().enumerate() {
        check::label(name).at(|| format!("{field}[{index}]"))?;
    }
    let selected = selectors(allocation.namespace_selectors.as_deref(), "namespaceSelectors")?;
    let named = named.iter().cloned().collect();
    let choice = NamespaceChoice { named, selected };
    Ok((!choice.named.is_empty() || !choice.selected.is_empty()).then_some(choice))
}

fn selectors(objects: Option<&[LabelSelector]>, name: &str) -> Result<Vec<Selector>, Invalid> {
    selector::read_all(objects.unwrap_or_default(), &format!("spec.serviceAllocation.{name}"))
}
