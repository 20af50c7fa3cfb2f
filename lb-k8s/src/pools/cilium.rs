//! Cilium's `CiliumLoadBalancerIPPool`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use lb_ipam::{Block, IpNet};
use serde::Deserialize;

use super::{
    PoolSpec,
    draft::{self, Draft},
    short::Flag,
};
use crate::{
    check::Invalid,
    fields::{
        self,
        Rule::{self, Known, List, Object},
        SELECTOR,
    },
    text::quoted,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a mapping")]
pub(crate) struct Spec {
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

const SPEC: Rule = Object(&[
    ("allowFirstLastIPs", Known),
    ("blocks", List(&BLOCK)),
    // The older name of blocks.
    ("cidrs", List(&BLOCK)),
    ("disabled", Known),
    ("serviceSelector", SELECTOR),
]);

const BLOCK: Rule = Object(&[("cidr", Known), ("start", Known), ("stop", Known)]);

impl PoolSpec for Spec {
    const KIND: &'static str = "CiliumLoadBalancerIPPool";
    /// The older version has the same fields.
    const API_VERSIONS: &'static [&'static str] = &["cilium.io/v2", "cilium.io/v2alpha1"];
    const FIELDS: &'static Rule = &Object(&fields::pool(SPEC));

    /// First and last addresses of networks are assigned unless the pool says otherwise, as by Cilium since 1.16. Only
    /// older releases read the field `cidrs`, and those reserve first and last addresses unless the pool says
    /// otherwise.
    fn read(&self, draft: &mut Draft) {
        let cidrs = self.cidrs.as_deref().unwrap_or_default();
        let blocks = self.blocks.as_deref().unwrap_or_default();
        let (field, blocks) = match (blocks, cidrs) {
            (blocks, []) => ("spec.blocks", blocks),
            ([], cidrs) => ("spec.cidrs", cidrs),
            (blocks, _) => {
                draft.refuse(Invalid::new("spec.cidrs", "it is the older name of `spec.blocks`: keep one of them"));
                ("spec.blocks", blocks)
            }
        };
        let flag = draft.take(Flag::read(self.allow_first_last_ips.as_ref(), "spec.allowFirstLastIPs"));
        draft.pool.allow_first_last = flag.unwrap_or(field == "spec.blocks");
        let read = |(index, object): (usize, &BlockObject)| block(object, &format!("{field}[{index}]"), draft);
        let blocks = blocks.iter().enumerate().map(read).collect();
        draft.blocks(field, blocks);
        draft.selector("spec.serviceSelector", self.service_selector.as_ref());
        draft.pool.disabled = self.disabled == Some(true);
    }
}

fn block(object: &BlockObject, field: &str, draft: &mut Draft) -> Block {
    let text = |text: &Option<String>| text.as_deref().map(str::trim).unwrap_or_default().to_owned();
    let (cidr, start, stop) = (text(&object.cidr), text(&object.start), text(&object.stop));
    let is_range = !start.is_empty() || !stop.is_empty();
    if !cidr.is_empty() && is_range {
        let part = if start.is_empty() { "stop" } else { "start" };
        draft.note(format!("{field}.{part}"), "`cidr` is set as well and takes precedence");
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
