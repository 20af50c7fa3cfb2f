//! All pools together: which is in service, and whose an address is.

use alloc::{collections::BTreeMap, string::String, sync::Arc, vec::Vec};
use core::net::IpAddr;

use lb_core::addr::Family;

use crate::{
    AddressRange, Block, Conflict, Pool, PoolChoice, PoolName, PoolProblem, PoolRefusal, PoolWarning, Request,
    Settings,
    pool::{directory::Directory, usable::Usable},
    range::{FAMILIES, number, slot},
};

/// A pool, looked through.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub(crate) pool: Arc<Pool>,
    pub(crate) usable: Usable,
    pub(crate) problem: Option<PoolProblem>,
    pub(crate) warnings: Vec<PoolWarning>,
    /// Its addresses that the rules reserve, and for what.
    pub(crate) covered: Vec<(AddressRange, String)>,
}

/// Place of a pool in the order in which pools are asked.
pub(crate) type PoolIndex = usize;

/// All pools, in the order in which they are asked: by priority, then those with selectors, then the older one, then by
/// name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) pools: Vec<Compiled>,
    /// First number of a stretch of addresses that are in the same pools, to the last number and those pools.
    stretches: [BTreeMap<u128, (u128, Vec<PoolIndex>)>; 2],
    names: BTreeMap<PoolName, PoolIndex>,
    /// Pools in service that have a block of the family.
    in_service: [Vec<PoolIndex>; 2],
    directories: [Directory; 2],
    /// The others that have one, or of which it is not known what they have.
    out_of_service: [Vec<PoolIndex>; 2],
    out_directories: [Directory; 2],
    /// Pools of which it is not known which addresses they have.
    unreadable: Vec<PoolIndex>,
}

impl Catalog {
    pub(crate) fn new(pools: &BTreeMap<PoolName, Arc<Pool>>, settings: &Settings) -> Self {
        let mut pools: Vec<_> = pools.values().map(|pool| Compiled::new(pool, settings)).collect();
        pools.sort_by(|a, b| asked_first(&a.pool).cmp(&asked_first(&b.pool)));
        find_conflicts(&mut pools);
        let unreadable = (0..pools.len()).filter(|&index| pools[index].is_unreadable()).collect();
        let stretches = FAMILIES.map(|family| stretches(&pools, family));
        let names = pools.iter().enumerate().map(|(index, compiled)| (compiled.pool.name.clone(), index)).collect();
        let having = |family, in_service| {
            let may_have = |pool: &Compiled| pool.has(family) || pool.is_unreadable();
            let is_one = |index: &PoolIndex| {
                let pool: &Compiled = &pools[*index];
                pool.problem.is_none() == in_service && may_have(pool)
            };
            (0..pools.len()).filter(is_one).collect::<Vec<_>>()
        };
        let in_service = FAMILIES.map(|family| having(family, true));
        let out_of_service = FAMILIES.map(|family| having(family, false));
        let directory =
            |indices: &Vec<PoolIndex>| Directory::new(indices.iter().map(|&index| (index, &*pools[index].pool)));
        let directories = in_service.each_ref().map(directory);
        let out_directories = out_of_service.each_ref().map(directory);
        Self { pools, stretches, names, in_service, directories, out_of_service, out_directories, unreadable }
    }

    /// The pools that contain the address, those in service first.
    pub(crate) fn containing(&self, address: IpAddr) -> &[PoolIndex] {
        let number = number(address);
        let before = self.stretches[slot(Family::of(address))].range(..=number).next_back();
        before.filter(|(_, (last, _))| *last >= number).map_or(&[], |(_, (_, pools))| pools)
    }

    /// The pool whose the address is.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&Compiled> {
        self.containing(address).first().map(|&index| &self.pools[index])
    }

    /// The first pool that cannot be read, so that it is not known which addresses it has.
    pub(crate) fn unreadable(&self) -> Option<&Compiled> {
        self.unreadable.first().map(|&index| &self.pools[index])
    }

    /// The pools that may have a block of the family and are not in service, in the order in which pools are asked: those
    /// that select the service, and the others. Of both the first `most`, and how many there are.
    pub(crate) fn out_of_service(
        &self,
        request: &Request,
        family: Family,
        most: usize,
    ) -> [(Vec<PoolIndex>, usize); 2] {
        let all = &self.out_of_service[slot(family)];
        let candidates = self.out_directories[slot(family)].candidates(request);
        let is_for = |index: &PoolIndex| self.pools[*index].pool.selects(&request.service, &request.labels);
        let selecting: Vec<PoolIndex> = candidates.iter().copied().filter(is_for).collect();
        let others = all.iter().copied().filter(|index| selecting.binary_search(index).is_err()).take(most).collect();
        let (selecting_count, count) = (selecting.len(), all.len() - selecting.len());
        [(selecting.into_iter().take(most).collect(), selecting_count), (others, count)]
    }

    /// The pools that are in service.
    pub(crate) fn in_service(&self, family: Family) -> &[PoolIndex] {
        &self.in_service[slot(family)]
    }

    /// The pool of this name.
    pub(crate) fn named(&self, name: &PoolName) -> Option<PoolIndex> {
        self.names.get(name).copied()
    }

    /// The pools that may allocate an address of the family to the service, in the order in which they are asked. All
    /// others are out of service, are not the one that it wants, or do not select it.
    pub(crate) fn asked(&self, request: &Request, family: Family) -> Arc<[PoolIndex]> {
        let candidates = self.directories[slot(family)].candidates(request);
        let chosen = |name| self.names.get(name).copied().filter(|index| candidates.binary_search(index).is_ok());
        match &request.pool {
            PoolChoice::Any => candidates,
            PoolChoice::Only(name) => chosen(name).into_iter().collect(),
            PoolChoice::Prefer(name) => match chosen(name) {
                Some(first) => {
                    let rest = candidates.iter().copied().filter(|index| *index != first);
                    [first].into_iter().chain(rest).collect()
                }
                None => candidates,
            },
        }
    }
}

impl Compiled {
    fn new(pool: &Arc<Pool>, settings: &Settings) -> Self {
        let usable = Usable::new(pool, settings);
        let problem = problem(pool);
        let warnings = warnings(pool, problem.is_some());
        let covered = usable.covered(settings);
        Self { pool: Arc::clone(pool), usable, problem, warnings, covered }
    }

    /// Whether it is not known which addresses it has.
    pub(crate) fn is_unreadable(&self) -> bool {
        match &self.problem {
            Some(PoolProblem::Blocks { .. } | PoolProblem::TooManyBlocks { .. }) => true,
            Some(PoolProblem::Refused(_)) => self.pool.blocks.is_empty(),
            Some(PoolProblem::Selector(_) | PoolProblem::Conflict(_)) | None => false,
        }
    }

    /// Whether the service may have addresses of this pool, however the pool is doing. A selector that cannot be
    /// understood takes nothing from anybody, and neither does one of a pool that was not read as a whole.
    pub(crate) fn is_for(&self, request: &Request) -> bool {
        let selector_is_wrong = matches!(self.problem, Some(PoolProblem::Selector(_) | PoolProblem::Refused(_)));
        request.pool.admits(&self.pool.name)
            && (selector_is_wrong || self.pool.selects(&request.service, &request.labels))
    }

    /// Why the pool allocates nothing new to the service, if it refuses.
    pub(crate) fn refusal_for(&self, request: &Request) -> Option<PoolRefusal> {
        let wrong = self.is_wrong();
        if wrong.is_some() {
            return wrong;
        }
        if !request.pool.admits(&self.pool.name) {
            return Some(PoolRefusal::NotAskedFor);
        }
        if !self.is_for(request) {
            return Some(PoolRefusal::Selector);
        }
        self.pool.disabled.then_some(PoolRefusal::Disabled)
    }

    /// Why the pool allocates nothing to any service, if it refuses.
    pub(crate) fn out_of_service(&self) -> Option<PoolRefusal> {
        self.is_wrong().or_else(|| self.pool.disabled.then_some(PoolRefusal::Disabled))
    }

    fn is_wrong(&self) -> Option<PoolRefusal> {
        match self.problem.as_ref()? {
            PoolProblem::Conflict(conflict) => Some(PoolRefusal::Conflict { with: conflict.pool.clone() }),
            problem => Some(PoolRefusal::Invalid { problem: alloc::format!("{problem}") }),
        }
    }

    pub(crate) fn has(&self, family: Family) -> bool {
        self.usable.blocks[slot(family)].iter().next().is_some()
    }
}

fn asked_first(pool: &Pool) -> impl Ord + '_ {
    (pool.priority.is_none(), pool.priority, pool.is_for_everybody(), pool.created, &pool.name)
}

fn problem(pool: &Pool) -> Option<PoolProblem> {
    if pool.blocks.len().max(pool.avoid.len()) > Pool::MAX_BLOCKS {
        return Some(PoolProblem::TooManyBlocks { found: pool.blocks.len().max(pool.avoid.len()) });
    }
    let mut wrong = pool.blocks.iter().filter_map(|block| Some((block.clone(), block.range().err()?)));
    let named: Vec<_> = wrong.by_ref().take(PoolProblem::MAX_NAMED).collect();
    if !named.is_empty() {
        return Some(PoolProblem::Blocks { wrong: named, more: wrong.count() });
    }
    let refused = || pool.refused.clone().map(PoolProblem::Refused);
    let selector = || pool.selectors.iter().find_map(|selector| selector.check().err().map(PoolProblem::Selector));
    refused().or_else(selector)
}

fn warnings(pool: &Pool, is_wrong: bool) -> Vec<PoolWarning> {
    let host_bits = |block: &Block| {
        let network = block.masked()?;
        Some(PoolWarning::HostBits { block: block.clone(), network })
    };
    let avoid = |block: &Block| {
        let problem = block.range().err()?;
        Some(PoolWarning::Avoid { block: block.clone(), problem })
    };
    let mut warnings: Vec<_> = pool.blocks.iter().chain(&pool.avoid).filter_map(host_bits).collect();
    warnings.extend(pool.avoid.iter().filter_map(avoid));
    // Of a pool that is wrong it is not known what it has.
    warnings.extend((pool.blocks.is_empty() && !is_wrong).then_some(PoolWarning::NoBlocks));
    warnings.extend((pool.namespace_quota == Some(0)).then_some(PoolWarning::QuotaZero));
    warnings
}

/// Puts pools out of service that overlap an older one in service, or themselves. The oldest is looked at first, so a
/// pool that is out of service, for whatever reason, takes no other with it; of two of the same age the name decides. A
/// pool that is only disabled is in service: it may be enabled again at any time, and its addresses are its own.
fn find_conflicts(pools: &mut [Compiled]) {
    let mut by_age: Vec<_> = (0..pools.len()).filter(|&index| pools[index].problem.is_none()).collect();
    by_age.sort_by(|&a, &b| {
        let age = |index: usize| (pools[index].pool.created, &pools[index].pool.name);
        age(a).cmp(&age(b))
    });
    let mut in_service = [BTreeMap::new(), BTreeMap::new()];
    for index in by_age {
        let pool = Arc::clone(&pools[index].pool);
        let ranges: Vec<_> = pool.blocks.iter().filter_map(|block| block.range().ok()).collect();
        let conflict = with_itself(&ranges).or_else(|| ranges.iter().find_map(|range| with_others(range, &in_service)));
        match conflict {
            Some((block, with, other)) => {
                let pool = other.unwrap_or_else(|| pool.name.clone());
                let conflict = PoolProblem::Conflict(Conflict { block, with, pool });
                pools[index].problem = Some(conflict);
            }
            None => {
                for range in ranges {
                    in_service[slot(range.family())].insert(range.bounds().0, (range, pool.name.clone()));
                }
            }
        }
    }
}

type Overlap = (AddressRange, AddressRange, Option<PoolName>);

fn with_itself(ranges: &[AddressRange]) -> Option<Overlap> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let pair = sorted.windows(2).find(|pair| pair[0].overlaps(&pair[1]))?;
    Some((pair[1], pair[0], None))
}

/// The pools in service do not overlap, so the one that starts last at or before the end of this one is the only
/// candidate.
fn with_others(range: &AddressRange, in_service: &[BTreeMap<u128, (AddressRange, PoolName)>; 2]) -> Option<Overlap> {
    let before = in_service[slot(range.family())].range(..=range.bounds().1).next_back();
    let (_, (with, pool)) = before.filter(|(_, (with, _))| with.overlaps(range))?;
    Some((*range, *with, Some(pool.clone())))
}

/// Cuts the addresses of a family where a block of some pool starts or ends.
fn stretches(pools: &[Compiled], family: Family) -> BTreeMap<u128, (u128, Vec<PoolIndex>)> {
    let mut edges: BTreeMap<u128, (Vec<PoolIndex>, Vec<PoolIndex>)> = BTreeMap::new();
    for (index, pool) in pools.iter().enumerate() {
        for (first, last) in pool.usable.blocks[slot(family)].iter() {
            edges.entry(first).or_default().0.push(index);
            if let Some(after) = last.checked_add(1) {
                edges.entry(after).or_default().1.push(index);
            }
        }
    }
    let starts: Vec<u128> = edges.keys().copied().collect();
    let mut inside: Vec<PoolIndex> = Vec::new();
    let mut stretches = BTreeMap::new();
    for (at, (first, (coming, going))) in edges.into_iter().enumerate() {
        inside.retain(|index| !going.contains(index));
        inside.extend(coming);
        inside.sort_unstable_by_key(|&index| (pools[index].problem.is_some(), index));
        if !inside.is_empty() {
            let last = starts.get(at + 1).map_or(u128::MAX, |next| next - 1);
            stretches.insert(first, (last, inside.iter().copied().take(Pool::MAX_OVERLAPPING).collect()));
        }
    }
    stretches
}
