//! Addresses that were written into the status of a service by hand.
//!
//! A manifest without a cluster behind it may say which address a service has, and that works without any pool. Such
//! addresses stay what they are when a pool for others comes: only those that lie in a pool are the pool's business.

use std::{collections::BTreeMap, net::IpAddr};

use lb_core::name::ServiceName;
use lb_ipam::{AddressRange, Edit, Pool, PoolName, Request};

/// Services whose status names addresses, and where the pools are.
#[derive(Clone, Debug, Default)]
pub(super) struct ByHand {
    requests: BTreeMap<ServiceName, Request>,
    pools: BTreeMap<PoolName, Vec<AddressRange>>,
    /// Those of all pools, in order, none overlapping another.
    ranges: Vec<AddressRange>,
}

impl ByHand {
    /// The edits as the allocator should take them: a service none of whose addresses lies in a pool is left alone.
    /// While there is no pool at all, so are those whose addresses came from an allocator, unless it is this one:
    /// `is_ours` is whether the ledger remembers that a service had an address.
    pub(super) fn translate(&mut self, edits: Vec<Edit>, is_ours: impl Fn(&ServiceName, IpAddr) -> bool) -> Vec<Edit> {
        let touches_pools = edits.iter().any(|edit| matches!(edit, Edit::UpsertPool(_) | Edit::RemovePool(_)));
        edits.iter().for_each(|edit| self.note(edit));
        if touches_pools {
            self.ranges = merge(self.pools.values().flatten().copied().collect());
        }
        let mut translated: Vec<Edit> = edits.into_iter().map(|edit| self.translated(edit, &is_ours)).collect();
        if touches_pools {
            let again = self.requests.values().map(|request| self.asked(request.clone(), &is_ours));
            translated.extend(again.map(Edit::UpsertService));
        }
        translated
    }

    /// Addresses that the service has beside those of pools.
    pub(super) fn outside(&self, service: &ServiceName) -> impl Iterator<Item = IpAddr> {
        let request = self.requests.get(service).filter(|request| is_by_hand(request));
        let addresses = request.map(|request| &*request.published.addresses).unwrap_or_default();
        addresses.iter().copied().filter(|address| !self.is_in_a_pool(*address))
    }

    fn note(&mut self, edit: &Edit) {
        match edit {
            Edit::UpsertPool(pool) => drop(self.pools.insert(pool.name.clone(), ranges(pool))),
            Edit::RemovePool(name) => drop(self.pools.remove(name)),
            Edit::UpsertService(request) if has_addresses(request) => {
                self.requests.insert(request.service.clone(), request.clone());
            }
            Edit::UpsertService(request) => drop(self.requests.remove(&request.service)),
            Edit::RemoveService(name) => drop(self.requests.remove(name)),
            Edit::KeepService(_) | Edit::SetSettings(_) => {}
        }
    }

    fn translated(&self, edit: Edit, is_ours: impl Fn(&ServiceName, IpAddr) -> bool) -> Edit {
        match edit {
            Edit::UpsertService(request) => Edit::UpsertService(self.asked(request, is_ours)),
            other => other,
        }
    }

    fn asked(&self, request: Request, is_ours: impl Fn(&ServiceName, IpAddr) -> bool) -> Request {
        let published = &request.published.addresses;
        let is_anothers = || self.pools.is_empty() && !published.iter().any(|ip| is_ours(&request.service, *ip));
        let is_foreign = has_addresses(&request)
            && (is_by_hand(&request) || is_anothers())
            && !published.iter().any(|ip| self.is_in_a_pool(*ip));
        Request { load_balancer: request.load_balancer && !is_foreign, ..request }
    }

    pub(super) fn is_in_a_pool(&self, address: IpAddr) -> bool {
        let after = self.ranges.partition_point(|range| range.first() <= address);
        self.ranges[..after].last().is_some_and(|range| range.contains(address))
    }
}

fn has_addresses(request: &Request) -> bool {
    request.load_balancer && !request.published.addresses.is_empty()
}

/// An allocator would have left its condition beside the addresses.
fn is_by_hand(request: &Request) -> bool {
    request.published.condition.is_none()
}

/// Of the blocks that can be read; the others have no addresses.
fn ranges(pool: &Pool) -> Vec<AddressRange> {
    pool.blocks.iter().filter_map(|block| block.range().ok()).collect()
}

fn merge(mut ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    ranges.sort_unstable_by_key(|range| (range.first(), range.last()));
    let mut merged: Vec<AddressRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.overlaps(&range) => {
                *last = AddressRange::new(last.first(), last.last().max(range.last())).unwrap_or(*last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use lb_ipam::{Condition, Status};

    use super::*;

    fn service(name: &str, addresses: &[&str]) -> Request {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Request { published: Status::of(&addresses), ..Request::new("default", name) }
    }

    /// The ledger is empty.
    fn nobody(_: &ServiceName, _: IpAddr) -> bool {
        false
    }

    /// Names of services in the order of the edits; a `-` marks those that are left alone.
    fn told(edits: &[Edit]) -> Vec<String> {
        let told = |edit: &Edit| match edit {
            Edit::UpsertService(request) => {
                Some(format!("{}{}", if request.load_balancer { "" } else { "-" }, request.service.name()))
            }
            _ => None,
        };
        edits.iter().filter_map(told).collect()
    }

    #[test]
    fn only_what_lies_in_a_pool_is_the_pools_business() {
        let mut by_hand = ByHand::default();
        let services = [
            service("none", &[]),
            service("in", &["192.0.2.7"]),
            service("out", &["198.51.100.7"]),
            service("both", &["192.0.2.8", "2001:db8::8"]),
        ];
        let edits = by_hand.translate(services.into_iter().map(Edit::UpsertService).collect(), nobody);
        assert_eq!(told(&edits), ["none", "-in", "-out", "-both"]);
        let pool = Pool::new("p", &["192.0.2.0/25", "192.0.2.0-192.0.2.3", "192.0.2.64/26", "not a block"]);
        let edits = by_hand.translate(vec![Edit::UpsertPool(pool.clone())], nobody);
        assert_eq!(told(&edits), ["both", "in", "-out"]);
        let both: Vec<_> = by_hand.outside(&ServiceName::new("default", "both")).collect();
        assert_eq!(both, ["2001:db8::8".parse::<IpAddr>().unwrap()]);
        let gone = vec![Edit::RemovePool(pool.name), Edit::RemoveService(ServiceName::new("default", "in"))];
        let edits = by_hand.translate(gone, nobody);
        assert_eq!(told(&edits), ["-both", "-out"]);
    }

    #[test]
    fn an_address_beside_an_allocators_condition_was_not_written_by_hand() {
        let mut by_hand = ByHand::default();
        let mut request = service("web", &["198.51.100.7"]);
        request.published.condition =
            Some(Condition { satisfied: true, reason: "satisfied".into(), message: String::new() });
        assert_eq!(told(&by_hand.translate(vec![Edit::UpsertService(request)], nobody)), ["-web"]);
        let pool = Edit::UpsertPool(Pool::new("p", &["192.0.2.0/24"]));
        assert_eq!(told(&by_hand.translate(vec![pool], nobody)), ["web"]);
        // The last pool goes. If the address was one of this agent's, the service asks for another one.
        let gone = || vec![Edit::RemovePool("p".into())];
        assert_eq!(told(&by_hand.clone().translate(gone(), |_, ip| ip.to_string() == "198.51.100.7")), ["web"]);
        assert_eq!(told(&by_hand.translate(gone(), nobody)), ["-web"]);
        assert_eq!(by_hand.outside(&ServiceName::new("default", "web")).count(), 0);
    }

    #[test]
    fn pools_at_both_ends_of_a_family_are_found() {
        let mut by_hand = ByHand::default();
        by_hand.translate(vec![Edit::UpsertPool(Pool::new("p", &["::/0", "0.0.0.0/1", "255.0.0.0/8"]))], nobody);
        for (address, expected) in
            [("::", true), ("ffff::", true), ("0.0.0.0", true), ("128.0.0.0", false), ("255.255.255.255", true)]
        {
            assert_eq!(by_hand.is_in_a_pool(address.parse().unwrap()), expected, "{address}");
        }
    }
}
