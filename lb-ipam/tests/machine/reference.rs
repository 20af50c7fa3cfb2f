//! The naive reference: pools are sets of addresses, and every rule is looked up where it applies.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_ipam::{
    Block, Entry, Family, FamilyPolicy, IpNet, Namespaces, Pool, PoolChoice, PoolName, Request, RequestedAddress,
    Selector, ServiceName, Settings, TrafficPolicy, WhenSharingBreaks,
};

/// Pools and services as they were told last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    pub(crate) pools: BTreeMap<PoolName, Set>,
    pub(crate) services: BTreeMap<ServiceName, Request>,
    /// Services that cannot be read, and are known because they could be before the last restart, or are not.
    pub(crate) garbled: BTreeSet<ServiceName>,
    /// Those of them that are not known, as they were when they were.
    pub(crate) unknown: BTreeMap<ServiceName, Request>,
    pub(crate) claimed: BTreeSet<IpAddr>,
    pub(crate) settings: Settings,
}

/// A pool as sets.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) pool: Pool,
    /// Every address of its blocks.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Those that can be given out.
    pub(crate) usable: BTreeSet<IpAddr>,
    avoided: BTreeSet<IpAddr>,
    pub(crate) in_service: bool,
}

fn members(block: &Block) -> BTreeSet<IpAddr> {
    let Ok(range) = block.range() else { return BTreeSet::new() };
    match (range.first(), range.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (first.to_bits()..=last.to_bits()).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))).collect()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            (first.to_bits()..=last.to_bits()).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))).collect()
        }
        _ => unreachable!("a range has one family"),
    }
}

fn addresses(pool: &Pool) -> BTreeSet<IpAddr> {
    pool.blocks.iter().flat_map(members).collect()
}

fn usable(pool: &Pool, settings: &Settings) -> BTreeSet<IpAddr> {
    let mut usable = addresses(pool);
    for block in pool.blocks.iter().filter(|_| !pool.allow_first_last) {
        let Block::Cidr(net) = block else { continue };
        if !matches!(net, IpNet::V4(net) if net.prefix_len() >= 31)
            && !matches!(net, IpNet::V6(net) if net.prefix_len() >= 127)
        {
            usable.remove(&net.network());
            usable.remove(&net.broadcast());
        }
    }
    for avoided in pool.avoid.iter().flat_map(members) {
        usable.remove(&avoided);
    }
    usable.retain(|address| !is_reserved(settings, *address));
    usable
}

fn is_reserved(settings: &Settings, address: IpAddr) -> bool {
    settings.reserved.iter().any(|reservation| reservation.range.contains(address))
}

fn is_unreadable(pool: &Pool) -> bool {
    pool.blocks.iter().any(|block| block.range().is_err())
}

impl Reference {
    pub(crate) fn insert(&mut self, pool: Pool) {
        let avoided = pool.avoid.iter().flat_map(members).collect();
        let (addresses, usable) = (addresses(&pool), usable(&pool, &self.settings));
        self.pools.insert(pool.name.clone(), Set { pool, addresses, usable, avoided, in_service: false });
        self.find_conflicts();
    }

    /// Whoever starts knows nothing of services that cannot be read.
    pub(crate) fn restart(&mut self) {
        for name in &self.garbled {
            self.unknown.extend(self.services.remove_entry(name));
        }
    }

    pub(crate) fn upsert_service(&mut self, request: Request) {
        self.garbled.remove(&request.service);
        self.unknown.remove(&request.service);
        self.services.insert(request.service.clone(), request);
    }

    pub(crate) fn remove_service(&mut self, name: &ServiceName) {
        self.garbled.remove(name);
        self.unknown.remove(name);
        self.services.remove(name);
    }

    pub(crate) fn remove(&mut self, name: &PoolName) {
        self.pools.remove(name);
        self.find_conflicts();
    }

    pub(crate) fn set_rules(&mut self, settings: Settings) {
        self.settings = settings;
        for set in self.pools.values_mut() {
            set.usable = usable(&set.pool, &self.settings);
        }
    }

    /// Whether a service that does not get along with others any more stays.
    pub(crate) fn keeps_quarrels(&self) -> bool {
        self.settings.when_sharing_breaks == WhenSharingBreaks::Keep
    }

    /// The older one of two that have an address in common is in service, if it has none in common with an older one.
    fn find_conflicts(&mut self) {
        let mut by_age: Vec<&mut Set> = self.pools.values_mut().collect();
        by_age.sort_by_key(|set| (set.pool.created, set.pool.name.clone()));
        let mut accepted: BTreeSet<IpAddr> = BTreeSet::new();
        for set in by_age {
            let count: usize = set.pool.blocks.iter().map(|block| members(block).len()).sum();
            let with_itself = count != set.addresses.len();
            let is_wrong = is_unreadable(&set.pool) || set.pool.refused.is_some();
            set.in_service = !is_wrong && !with_itself && accepted.is_disjoint(&set.addresses);
            if set.in_service {
                accepted.extend(&set.addresses);
            }
        }
    }

    /// Whether the service may keep the address if it has it.
    pub(crate) fn may_keep(&self, request: &Request, address: IpAddr) -> bool {
        let admits = |set: &Set| {
            let selects = if set.pool.refused.is_some() && !is_unreadable(&set.pool) { chosen } else { selects };
            set.addresses.contains(&address) && selects(&set.pool, request) && !set.avoided.contains(&address)
        };
        let in_none = || !self.pools.values().any(|set| set.addresses.contains(&address));
        let lost_and_found = || in_none() && self.pools.values().any(|set| is_unreadable(&set.pool));
        request.load_balancer
            && wants(request, Family::of(address))
            && !self.claimed.contains(&address)
            && !is_reserved(&self.settings, address)
            && (self.pools.values().any(admits) || lost_and_found())
    }

    /// The pool that would give the service the address, if it were free.
    pub(crate) fn gives(&self, request: &Request, address: IpAddr) -> Option<&Set> {
        let gives = |set: &&Set| {
            set.in_service && !set.pool.disabled && selects(&set.pool, request) && set.usable.contains(&address)
        };
        let allowed = request.load_balancer && wants(request, Family::of(address)) && !self.claimed.contains(&address);
        self.pools.values().filter(|_| allowed).find(gives)
    }
}

/// Whether the service asks for the pool by name.
pub(crate) fn chooses(request: &Request, pool: &Pool) -> bool {
    matches!(&request.pool, PoolChoice::Prefer(name) | PoolChoice::Only(name) if *name == pool.name)
}

/// Whether the service may have addresses of the pool, as far as both say.
pub(crate) fn selects(pool: &Pool, request: &Request) -> bool {
    let selects =
        |selector: &Selector| selector.match_labels.iter().all(|(key, value)| request.labels.get(key) == Some(value));
    chosen(pool, request) && (pool.selectors.is_empty() || pool.selectors.iter().any(selects))
}

/// Whether the service may have addresses of the pool, as far as the service says.
fn chosen(pool: &Pool, request: &Request) -> bool {
    !matches!(request.pool, PoolChoice::Only(_)) || chooses(request, pool)
}

impl Set {
    /// Whether the pool gives the service addresses that it does not ask for.
    pub(crate) fn gives_unasked(&self, request: &Request) -> bool {
        let gives = self.in_service && !self.pool.disabled && selects(&self.pool, request);
        gives && (self.pool.auto_assign || chooses(request, &self.pool))
    }

    /// How many addresses of the pool the namespace has.
    pub(crate) fn used_by(&self, namespace: &str, entries: &BTreeMap<IpAddr, Entry>) -> u64 {
        let ours = |address: &&IpAddr| {
            let holders = entries.get(*address).map_or(&[][..], Entry::holders);
            holders.iter().any(|holder| holder.namespace() == namespace)
        };
        self.addresses.iter().filter(ours).count() as u64
    }

    /// Whether the namespace has as many as it may.
    pub(crate) fn is_spent(&self, namespace: &str, entries: &BTreeMap<IpAddr, Entry>) -> bool {
        self.pool.namespace_quota.is_some_and(|quota| self.used_by(namespace, entries) >= quota)
    }
}

/// Whether the service may have an address of the family, in a cluster of both.
pub(crate) fn wants(request: &Request, family: Family) -> bool {
    let listed = request.families.contains(&family);
    if !request.addresses.is_empty() {
        return request.families.is_empty() || listed;
    }
    match request.family_policy {
        FamilyPolicy::SingleStack => *request.families.first().unwrap_or(&Family::V4) == family,
        FamilyPolicy::PreferDualStack => request.families.is_empty() || listed,
        FamilyPolicy::RequireDualStack => true,
    }
}

/// Whether the service asks for the address by name.
pub(crate) fn names(request: &Request, address: IpAddr) -> bool {
    request.addresses.contains(&RequestedAddress::Address(address))
}

/// Whether the first one names the namespace of the other.
fn lets_in(a: &Request, b: &Request) -> bool {
    match a.sharing.as_ref().map(|sharing| &sharing.namespaces) {
        Some(Namespaces::All) => true,
        Some(Namespaces::Listed(listed)) => listed.contains(b.service.namespace()),
        None => false,
    }
}

pub(crate) fn compatible(a: &Request, b: &Request) -> bool {
    let key = |request: &Request| request.sharing.as_ref().map(|sharing| sharing.key.clone());
    let local = |request: &Request| request.external_traffic_policy == TrafficPolicy::Local;
    key(a).is_some()
        && key(a) == key(b)
        && (a.service.namespace() == b.service.namespace() || (lets_in(a, b) && lets_in(b, a)))
        && a.ports.is_disjoint(&b.ports)
        && local(a) == local(b)
}
