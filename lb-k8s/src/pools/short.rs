//! The short form of lb: `IPPool`.

use std::{fmt, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use lb_ipam::{Block, Pool, PoolWarning};
use serde::{Deserialize, Deserializer, de::Visitor};

use super::{
    PoolSpec,
    draft::{Draft, number},
    selector,
};
use crate::{
    check::Invalid,
    fields::{
        self,
        Rule::{self, Known, List, Object},
        SELECTOR,
    },
    limits::MAX_REST_SECONDS,
    text::quoted,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping")]
pub(crate) struct Spec {
    blocks: Option<Vec<String>>,
    avoid: Option<Vec<String>>,
    #[serde(rename = "avoidZeroAnd255")]
    avoid_zero_and_255: Option<bool>,
    #[serde(rename = "allowFirstLastIPs")]
    allow_first_last_ips: Option<Flag>,
    service_selector: Option<LabelSelector>,
    service_selectors: Option<Vec<LabelSelector>>,
    disabled: Option<bool>,
    auto_assign: Option<bool>,
    priority: Option<i64>,
    quarantine_seconds: Option<i64>,
    drain_seconds: Option<i64>,
    namespace_quota: Option<i64>,
}

/// Cilium's way to say yes or no, or the usual one.
pub(super) enum Flag {
    Bool(bool),
    Text(String),
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FlagVisitor)
    }
}

struct FlagVisitor;

impl Visitor<'_> for FlagVisitor {
    type Value = Flag;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Yes, No, true or false")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Flag, E> {
        Ok(Flag::Bool(flag))
    }

    fn visit_str<E>(self, text: &str) -> Result<Flag, E> {
        Ok(Flag::Text(text.to_owned()))
    }
}

impl Flag {
    /// `None` if nothing is said.
    pub(super) fn read(flag: Option<&Self>, field: &str) -> Result<Option<bool>, Invalid> {
        match flag {
            None => Ok(None),
            Some(Self::Bool(flag)) => Ok(Some(*flag)),
            Some(Self::Text(text)) => match text.as_str() {
                "" => Ok(None),
                "Yes" => Ok(Some(true)),
                "No" => Ok(Some(false)),
                other => Err(Invalid::new(field, format!("{} is neither Yes nor No", quoted(other)))),
            },
        }
    }
}

const SPEC: Rule = Object(&[
    ("allowFirstLastIPs", Known),
    ("autoAssign", Known),
    ("avoid", Known),
    ("avoidZeroAnd255", Known),
    ("blocks", Known),
    ("disabled", Known),
    ("drainSeconds", Known),
    ("namespaceQuota", Known),
    ("priority", Known),
    ("quarantineSeconds", Known),
    ("serviceSelector", SELECTOR),
    ("serviceSelectors", List(&SELECTOR)),
]);

impl PoolSpec for Spec {
    const KIND: &'static str = "IPPool";
    const API_VERSIONS: &'static [&'static str] = &["lb/v1"];
    const FIELDS: &'static Rule = &Object(&fields::pool(SPEC));

    fn read(&self, draft: &mut Draft) {
        let parse = |texts: &Option<Vec<String>>| texts.iter().flatten().map(|text| Block::parse(text)).collect();
        draft.blocks("spec.blocks", parse(&self.blocks));
        draft.avoid("spec.avoid", parse(&self.avoid));
        draft.pool.avoid_zero_and_255 = self.avoid_zero_and_255 == Some(true);
        let flag = draft.take(Flag::read(self.allow_first_last_ips.as_ref(), "spec.allowFirstLastIPs"));
        draft.pool.allow_first_last = flag.unwrap_or(true);
        read_selectors(self, draft);
        draft.pool.disabled = self.disabled == Some(true);
        draft.pool.auto_assign = self.auto_assign != Some(false);
        draft.pool.priority = draft.take(number(self.priority, u32::MAX, "spec.priority"));
        let quarantine = draft.take(seconds(self.quarantine_seconds, "spec.quarantineSeconds"));
        draft.pool.quarantine = quarantine.unwrap_or(Pool::DEFAULT_QUARANTINE);
        draft.pool.drain = draft.take(seconds(self.drain_seconds, "spec.drainSeconds")).unwrap_or_default();
        let quota = draft.take(number(self.namespace_quota, i64::MAX as u64, "spec.namespaceQuota"));
        if quota == Some(0) {
            draft.note("spec.namespaceQuota", format!("the pool {}", PoolWarning::QuotaZero));
        }
        draft.pool.namespace_quota = quota;
    }
}

/// One selector or a list of them.
fn read_selectors(spec: &Spec, draft: &mut Draft) {
    let field = "spec.serviceSelectors";
    match (spec.service_selector.as_ref(), spec.service_selectors.as_deref().unwrap_or_default()) {
        (one, []) => draft.selector("spec.serviceSelector", one),
        (None, several) => draft.pool.selectors = draft.take(selector::read_all(several, field)),
        (Some(_), _) => draft.refuse(Invalid::new(field, "`spec.serviceSelector` is set as well: keep one of them")),
    }
}

fn seconds(seconds: Option<i64>, field: &str) -> Result<Option<Duration>, Invalid> {
    let seconds = number(seconds, MAX_REST_SECONDS, field)?;
    Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
}
