//! Cilium's `CiliumLoadBalancerIPPool`.

use k8s_openapi::{
    Resource,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use lb_ipam::{Block, IpNet};
use serde::Deserialize;

use super::{
    PoolKind, PoolReading,
    draft::{self, Draft},
    short::Flag,
};
use crate::{check::Invalid, text::quoted};

/// The object, cilium.io/v2alpha1 and v2.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CiliumPool {
    api_version: Option<String>,
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping")]
struct Spec {
    blocks: Option<Vec<BlockObject>>,
    cidrs: Option<Vec<BlockObject>>,
    #[serde(rename = "allowFirstLastIPs")]
    allow_first_last_ips: Option<Flag>,
    service_selector: Option<LabelSelector>,
    disabled: Option<bool>,
}

#[derive(Deserialize)]
#[serde(expecting = "a mapping with `cidr`, or `start` and maybe `stop`")]
struct BlockObject {
    cidr: Option<String>,
    start: Option<String>,
    stop: Option<String>,
}

resource!(CiliumPool, "cilium.io", "v2", "CiliumLoadBalancerIPPool", "ciliumloadbalancerippools", ClusterResourceScope);

impl CiliumPool {
    /// The older version, which has the same fields.
    pub(crate) const ALPHA: &'static str = "cilium.io/v2alpha1";

    /// The kind in this version, one of the two.
    pub(crate) fn version(api_version: &str) -> PoolKind {
        let api_version = if api_version == Self::ALPHA { Self::ALPHA } else { Self::API_VERSION };
        PoolKind { api_version, kind: Self::KIND }
    }

    /// Reads the pool.
    ///
    /// First and last addresses of networks are given out unless it says otherwise, as by Cilium since 1.16. The field
    /// `cidrs` is read only by older releases, which keep them back unless it says otherwise.
    pub(crate) fn read(&self, name: &str) -> PoolReading {
        let kind = Self::version(self.api_version.as_deref().unwrap_or(Self::API_VERSION));
        let mut draft = Draft::new(kind, name, &self.metadata);
        let Some(spec) = &self.spec else {
            return draft.unread(Invalid::new("spec", "a pool needs a spec"));
        };
        let cidrs = spec.cidrs.as_deref().unwrap_or_default();
        let blocks = spec.blocks.as_deref().unwrap_or_default();
        let (field, blocks) = match (blocks, cidrs) {
            (blocks, []) => ("spec.blocks", blocks),
            ([], cidrs) => ("spec.cidrs", cidrs),
            (blocks, _) => {
                draft.refuse(Invalid::new("spec.cidrs", "it is the older name of `spec.blocks`: keep one of them"));
                ("spec.blocks", blocks)
            }
        };
        let flag = draft.take(Flag::read(spec.allow_first_last_ips.as_ref(), "spec.allowFirstLastIPs"));
        draft.pool.allow_first_last = flag.unwrap_or(field == "spec.blocks");
        let read = |(index, object): (usize, &BlockObject)| block(object, &format!("{field}[{index}]"), &mut draft);
        let blocks = blocks.iter().enumerate().map(read).collect();
        draft.blocks(field, blocks);
        draft.selector("spec.serviceSelector", spec.service_selector.as_ref());
        draft.pool.disabled = spec.disabled == Some(true);
        draft.finish()
    }
}

fn block(object: &BlockObject, field: &str, draft: &mut Draft) -> Block {
    let text = |text: &Option<String>| text.as_deref().map(str::trim).unwrap_or_default().to_owned();
    let (cidr, start, stop) = (text(&object.cidr), text(&object.start), text(&object.stop));
    let is_range = !start.is_empty() || !stop.is_empty();
    if !cidr.is_empty() && is_range {
        let part = if start.is_empty() { "stop" } else { "start" };
        draft.note(format!("{field}.{part}"), "`cidr` stands beside it and counts alone");
    }
    read_block(&cidr, &start, &stop, field).unwrap_or_else(|invalid| {
        draft.refuse(invalid);
        Block::Unreadable(if cidr.is_empty() { format!("{start}-{stop}") } else { cidr })
    })
}

fn read_block(cidr: &str, start: &str, stop: &str, field: &str) -> Result<Block, Invalid> {
    let part = |name: &str| format!("{field}.{name}");
    match (cidr, start, stop) {
        ("", "", "") => Err(Invalid::new(field, "a block needs `cidr`, or `start` and maybe `stop`")),
        ("", "", _) => Err(Invalid::new(field, "`stop` needs a `start`")),
        ("", start, "") => Ok(Block::Address(draft::address(start, || part("start"))?)),
        ("", start, stop) => Ok(Block::Range {
            start: draft::address(start, || part("start"))?,
            stop: draft::address(stop, || part("stop"))?,
        }),
        (cidr, _, _) => cidr.parse::<IpNet>().map(Block::Cidr).map_err(|_| {
            let message = format!("{} is not a network such as 10.0.0.0/24 or 2001:db8::/64", quoted(cidr));
            Invalid::new(part("cidr"), message)
        }),
    }
}
