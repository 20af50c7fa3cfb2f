//! Pools that refuse a service an address, grouped by their reason.

use alloc::vec::Vec;
use core::fmt;

use crate::{
    PoolName, PoolRefusal, Reason,
    answer::refusal::{Reserved, is_all_reserved},
};

/// Pools that refuse a service an address for the same reason. Displays as a part of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusingPools {
    /// Why.
    pub why: PoolRefusal,
    /// The first of them, at least one and at most [`MAX_NAMED`](Self::MAX_NAMED), in the order in which pools are
    /// asked.
    pub pools: Vec<PoolName>,
    /// How many others there are.
    pub more: usize,
}

impl RefusingPools {
    /// Most pools that are named with one reason.
    pub const MAX_NAMED: usize = 3;

    pub(crate) fn one(pool: PoolName, why: PoolRefusal) -> Self {
        Self { why, pools: [pool].into(), more: 0 }
    }

    /// Whether a pool that refuses for this reason is one of them. How full a pool is makes no difference.
    pub(crate) fn takes(&self, why: &PoolRefusal) -> bool {
        self.why == *why || matches!((&self.why, why), (PoolRefusal::Full { .. }, PoolRefusal::Full { .. }))
    }

    pub(crate) fn add(&mut self, pool: &PoolName, why: PoolRefusal) {
        if let (
            PoolRefusal::Full { used, total, reserved, by },
            PoolRefusal::Full { used: u, total: t, reserved: r, .. },
        ) = (&mut self.why, why)
        {
            (*used, *total, *reserved) = (used.saturating_add(u), total.saturating_add(t), reserved.saturating_add(r));
            by.clear();
        }
        if self.pools.len() < Self::MAX_NAMED {
            self.pools.push(pool.clone());
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for RefusingPools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ([pool], 0) = (&*self.pools, self.more) {
            return write!(f, "pool `{pool}` {}", self.why);
        }
        let (what, advice) = of_several(&self.why);
        write!(f, "{} pools {what}", self.pools.len() + self.more)?;
        if let PoolRefusal::Full { used, total, reserved, .. } = self.why {
            Reserved(used, total, reserved, "").fmt(f)?;
        }
        f.write_str(" (")?;
        for (at, pool) in self.pools.iter().enumerate() {
            let is_last = at + 1 == self.pools.len() && self.more == 0;
            let between = if at == 0 { "" } else { between(is_last) };
            write!(f, "{between}`{pool}`")?;
        }
        if self.more > 0 {
            write!(f, " and {} more", self.more)?;
        }
        write!(f, "{advice})")
    }
}

const fn between(is_last: bool) -> &'static str {
    if is_last { " and " } else { ", " }
}

/// The text about several pools at once, and the remedy. A reason that belongs to one pool alone is reduced to its
/// kind.
const fn of_several(why: &PoolRefusal) -> (&'static str, &'static str) {
    match why {
        PoolRefusal::Full { total, reserved, .. } if is_all_reserved(*total, *reserved) => {
            ("have no address to give", "")
        }
        PoolRefusal::Full { .. } => ("are full", ""),
        PoolRefusal::Disabled => ("are disabled", "; enable one"),
        PoolRefusal::Conflict { .. } => ("are out of service, because they overlap others", "; remove the overlaps"),
        PoolRefusal::Invalid { .. } => ("are out of service until they are corrected", ""),
        PoolRefusal::Selector => ("do not select the service", "; change a selector or the labels of the service"),
        PoolRefusal::NotAskedFor => {
            ("are not the one that the service asks for", "; ask for another pool, or for none")
        }
        PoolRefusal::NotAutomatic => ("give only addresses that are asked for by name", "; ask for one"),
        PoolRefusal::NoFamily => ("have no block of the family", "; add one"),
        PoolRefusal::Quota { .. } => {
            ("give its namespace no more", "; remove a service of the namespace or raise a quota")
        }
    }
}

/// A sentence about all of them, and how many more pools there are.
pub(crate) struct Sentence<'a>(pub(crate) &'a [RefusingPools], pub(crate) usize);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no pool has a block of this family; add one");
        }
        for (at, group) in self.0.iter().enumerate() {
            let semicolon = if at == 0 { "" } else { "; " };
            write!(f, "{semicolon}{group}")?;
        }
        match self.1 {
            0 => {}
            1 => f.write_str("; and 1 more pool gives nothing")?,
            more => write!(f, "; and {more} more pools give nothing")?,
        }
        let is_reserved = |group: &RefusingPools| match group.why {
            PoolRefusal::Full { total, reserved, .. } => Some(is_all_reserved(total, reserved)),
            _ => None,
        };
        let full: Vec<bool> = self.0.iter().filter_map(is_reserved).collect();
        f.write_str(match (full.is_empty(), full.contains(&false)) {
            (true, _) => "",
            (false, true) => "; add a block or remove a service",
            (false, false) => "; choose another block",
        })
    }
}

/// A full pool says more than a quota, and a quota more than pools that are not for the service at all.
pub(crate) fn reason(groups: &[RefusingPools]) -> Reason {
    let has = |is: fn(&PoolRefusal) -> bool| groups.iter().any(|group| is(&group.why));
    if has(|why| matches!(why, PoolRefusal::Full { .. })) {
        Reason::OutOfIps
    } else if has(|why| matches!(why, PoolRefusal::Quota { .. })) {
        Reason::QuotaExceeded
    } else {
        Reason::NoPool
    }
}
