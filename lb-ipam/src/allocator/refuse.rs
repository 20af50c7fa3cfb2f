//! Why no pool allocates an address to a service.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};

use lb_core::addr::Family;

use crate::{
    Allocator, Cause, Ledger, PoolChoice, PoolName, PoolRefusal, PoolWarning, RefusingPools, Request,
    pool::{Covered, catalog::PoolIndex},
};

/// How many pools that are out of service a refusal tells apart: each takes a sentence.
const LOOKED_AT: usize = 32;

impl<L: Ledger> Allocator<L> {
    /// Whether there is a pool, and the one that the service wants, if it takes no other.
    pub(super) fn check_choice(&self, request: &Request) -> Result<(), Cause> {
        match &request.pool {
            PoolChoice::Only(pool) if self.catalog.named(pool).is_none() => {
                Err(Cause::NoSuchPool { pool: pool.clone() })
            }
            PoolChoice::Prefer(_) | PoolChoice::Any if self.catalog.pools.is_empty() => Err(Cause::NoPools),
            PoolChoice::Only(_) | PoolChoice::Prefer(_) | PoolChoice::Any => Ok(()),
        }
    }

    /// Why all pools refuse: the pools that were asked, `refusing`, for their own reasons, and all others for their
    /// state.
    pub(super) fn all_refuse(
        &self,
        request: &Request,
        family: Family,
        mut refusing: Vec<(PoolIndex, PoolRefusal)>,
    ) -> Cause {
        if let PoolChoice::Only(pool) = &request.pool {
            return self.only_pool_refuses(pool, request, family, refusing);
        }
        if self.catalog.pools.is_empty() {
            return Cause::NoPools;
        }
        refusing.retain(|(_, why)| *why != PoolRefusal::Selector);
        refusing.sort_by_key(|(_, why)| why.rank());
        let unselecting = self.unselecting(family, &refusing);
        let mut reasons = Reasons::default();
        for (index, why) in refusing {
            reasons.add(self.name_of(index), self.in_detail(index, family, why));
        }
        for (out_of_service, count) in self.catalog.out_of_service(request, family, LOOKED_AT) {
            // What keeps a pool from the service that is for it says more than what keeps the others out of service.
            reasons.begin_group();
            reasons.more += count - out_of_service.len();
            for index in out_of_service {
                let why = self.catalog.pools[index].out_of_service();
                why.into_iter().for_each(|why| reasons.add(self.name_of(index), why));
            }
        }
        reasons.groups.extend(unselecting);
        Cause::NoneGives { pools: reasons.groups, more: reasons.more }
    }

    /// Why the only pool that the service accepts refuses.
    fn only_pool_refuses(
        &self,
        pool: &PoolName,
        request: &Request,
        family: Family,
        mut refusing: Vec<(PoolIndex, PoolRefusal)>,
    ) -> Cause {
        let Some(index) = self.catalog.named(pool) else { return Cause::NoSuchPool { pool: pool.clone() } };
        let compiled = &self.catalog.pools[index];
        let by_itself = || compiled.refusal_for(request).unwrap_or(PoolRefusal::NoFamily);
        let has_none = (compiled.problem.is_none() && !compiled.has(family)).then_some(PoolRefusal::NoFamily);
        let why = has_none.or_else(|| refusing.pop().map(|(_, why)| why)).unwrap_or_else(by_itself);
        let why = self.in_detail(index, family, why);
        Cause::NoneGives { pools: [RefusingPools::one(pool.clone(), why)].into(), more: 0 }
    }

    /// The same refusal, with what keeps a full pool from having more addresses.
    ///
    /// Only numbers that are the same for everybody who waits: a released address concerns the first of them, and the
    /// sentences of the others stay.
    fn in_detail(&self, index: PoolIndex, family: Family, why: PoolRefusal) -> PoolRefusal {
        let PoolRefusal::Full { .. } = why else { return why };
        let compiled = &self.catalog.pools[index];
        let (open, total) = compiled.usable.sizes(family);
        let set_aside = self.index.set_aside(index, family).len() as u128;
        let used = open.saturating_sub(set_aside);
        let reserved = total.saturating_sub(used);
        if reserved == 0 {
            return PoolRefusal::Full { used, total, reserved, by: String::new() };
        }
        PoolRefusal::Full { used, total, reserved, by: self.reserved_by(index, core::slice::from_ref(&family)) }
    }

    /// What keeps addresses of these families in the pool from being assigned.
    pub(super) fn reserved_by(&self, index: PoolIndex, families: &[Family]) -> String {
        let mut covered = self.covered(index, families);
        let named: Vec<_> = covered.by_ref().take(PoolWarning::MAX_NAMED).collect();
        let usable = &self.catalog.pools[index].usable;
        let mut by: Vec<String> = Vec::new();
        for what in families.iter().flat_map(|family| usable.kept_back(*family)) {
            if !by.iter().any(|said| said == what) {
                by.push(what.to_string());
            }
        }
        if !named.is_empty() {
            by.push(Covered(&named, covered.count()).to_string());
        }
        by.join(", ")
    }

    /// The pools in service of which none of `refusing` is one: they do not select the service.
    fn unselecting(&self, family: Family, refusing: &[(PoolIndex, PoolRefusal)]) -> Option<RefusingPools> {
        let mut selecting: Vec<PoolIndex> = refusing.iter().map(|(index, _)| *index).collect();
        selecting.sort_unstable();
        let in_service = self.catalog.in_service(family);
        let others = in_service.iter().filter(|index| selecting.binary_search(index).is_err());
        let pools: Vec<_> = others.take(RefusingPools::MAX_NAMED).map(|index| self.name_of(*index)).collect();
        let more = in_service.len() - selecting.len() - pools.len();
        (!pools.is_empty()).then_some(RefusingPools { why: PoolRefusal::Selector, pools, more })
    }

    fn name_of(&self, index: PoolIndex) -> PoolName {
        self.catalog.pools[index].pool.name.clone()
    }
}

/// Pools by the reason of their refusal.
#[derive(Default)]
struct Reasons {
    groups: Vec<RefusingPools>,
    /// The groups before this one take no more pools.
    open: usize,
    more: usize,
}

impl Reasons {
    /// Whether another reason fits, beside that of those that do not select the service.
    fn has_room(&self) -> bool {
        self.groups.len() + 1 < Cause::MAX_REASONS
    }

    /// From now on, no pool joins those that were added before.
    fn begin_group(&mut self) {
        self.open = self.groups.len();
    }

    fn add(&mut self, pool: PoolName, why: PoolRefusal) {
        let has_room = self.has_room();
        match self.groups[self.open..].iter_mut().find(|group| group.takes(&why)) {
            Some(group) => group.add(&pool, why),
            None if has_room => self.groups.push(RefusingPools::one(pool, why)),
            None => self.more += 1,
        }
    }
}
