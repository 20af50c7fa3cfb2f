//! Our own short form: `IPPool`.

use std::{fmt, time::Duration};

use k8s_openapi::{
    Resource,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use lb_ipam::{Block, Pool, PoolWarning};
use serde::{Deserialize, Deserializer, de::Visitor};

use super::{
    PoolKind, PoolReading,
    draft::{Draft, number},
    selector,
};
use crate::{check::Invalid, limits::MAX_REST_SECONDS, text::quoted};

/// The object, lb/v1.
#[derive(Deserialize)]
pub(crate) struct ShortPool {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping")]
struct Spec {
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

resource!(ShortPool, "lb", "v1", "IPPool", "ippools", ClusterResourceScope);

impl ShortPool {
    /// The kind.
    pub(crate) const POOL: PoolKind = PoolKind { api_version: Self::API_VERSION, kind: Self::KIND };

    /// Reads the pool.
    pub(crate) fn read(&self, name: &str) -> PoolReading {
        let mut draft = Draft::new(Self::POOL, name, &self.metadata);
        let Some(spec) = &self.spec else {
            return draft.unread(Invalid::new("spec", "a pool needs a spec"));
        };
        let parse = |texts: &Option<Vec<String>>| texts.iter().flatten().map(|text| Block::parse(text)).collect();
        draft.blocks("spec.blocks", parse(&spec.blocks));
        draft.avoid("spec.avoid", parse(&spec.avoid));
        draft.pool.avoid_zero_and_255 = spec.avoid_zero_and_255 == Some(true);
        let flag = draft.take(Flag::read(spec.allow_first_last_ips.as_ref(), "spec.allowFirstLastIPs"));
        draft.pool.allow_first_last = flag.unwrap_or(true);
        read_selectors(spec, &mut draft);
        draft.pool.disabled = spec.disabled == Some(true);
        draft.pool.auto_assign = spec.auto_assign != Some(false);
        draft.pool.priority = draft.take(number(spec.priority, u32::MAX, "spec.priority"));
        let quarantine = draft.take(seconds(spec.quarantine_seconds, "spec.quarantineSeconds"));
        draft.pool.quarantine = quarantine.unwrap_or(Pool::DEFAULT_QUARANTINE);
        draft.pool.drain = draft.take(seconds(spec.drain_seconds, "spec.drainSeconds")).unwrap_or_default();
        let quota = draft.take(number(spec.namespace_quota, i64::MAX as u64, "spec.namespaceQuota"));
        if quota == Some(0) {
            draft.note("spec.namespaceQuota", format!("the pool {}", PoolWarning::QuotaZero));
        }
        draft.pool.namespace_quota = quota;
        draft.finish()
    }
}

/// One selector or a list of them.
fn read_selectors(spec: &Spec, draft: &mut Draft) {
    let field = "spec.serviceSelectors";
    match (spec.service_selector.as_ref(), spec.service_selectors.as_deref().unwrap_or_default()) {
        (one, []) => draft.selector("spec.serviceSelector", one),
        (None, several) => draft.pool.selectors = draft.take(selector::read_all(several, field)),
        (Some(_), _) => draft.refuse(Invalid::new(field, "`spec.serviceSelector` stands beside it: keep one of them")),
    }
}

fn seconds(seconds: Option<i64>, field: &str) -> Result<Option<Duration>, Invalid> {
    let seconds = number(seconds, MAX_REST_SECONDS, field)?;
    Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
}
