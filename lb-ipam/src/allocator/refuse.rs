//! Why no pool allocates an address to a service.

use alloc::vec::Vec;

use lb_core::addr::Family;

use crate::{
    Allocator, Cause, Ledger, PoolChoice, PoolName, PoolRefusal, RefusingPools, Request, pool::catalog::PoolIndex,
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
            reasons.add(self.name_of(index), why);
        }
        let out_of_service = self.catalog.out_of_service(family);
        for &index in out_of_service.iter().take(LOOKED_AT) {
            let why = self.catalog.pools[index].out_of_service();
            why.into_iter().for_each(|why| reasons.add(self.name_of(index), why));
        }
        reasons.more += out_of_service.len().saturating_sub(LOOKED_AT);
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
        Cause::NoneGives { pools: [RefusingPools::one(pool.clone(), why)].into(), more: 0 }
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
    more: usize,
}

impl Reasons {
    /// Whether another reason fits, beside that of those that do not select the service.
    fn has_room(&self) -> bool {
        self.groups.len() + 1 < Cause::MAX_REASONS
    }

    fn add(&mut self, pool: PoolName, why: PoolRefusal) {
        let has_room = self.has_room();
        match self.groups.iter_mut().find(|group| group.why == why) {
            Some(group) => group.add(&pool),
            None if has_room => self.groups.push(RefusingPools::one(pool, why)),
            None => self.more += 1,
        }
    }
}
