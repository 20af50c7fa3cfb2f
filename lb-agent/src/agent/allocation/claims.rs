//! Addresses of pools that services have in another way: cluster addresses, external ones, those of load balancers of
//! another class. No service may be given what another one answers for already.

use std::{collections::BTreeMap, net::IpAddr};

use lb_core::{Change, Service, ServiceName};
use lb_ipam::{Entry, Ledger};

use super::Allocation;

/// Who has which.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(BTreeMap<ServiceName, Vec<IpAddr>>);

impl Claims {
    /// What a service has as of now, and whether that is news; `is_ours` is whether its load-balancer addresses come from
    /// pools.
    pub(super) fn note(&mut self, service: &Service, is_ours: bool, is_in_a_pool: impl Fn(IpAddr) -> bool) -> bool {
        let load_balancer = if is_ours { &[][..] } else { &service.load_balancer_ips };
        let all = [&service.cluster_ips, &service.external_ips, load_balancer].into_iter().flatten().copied();
        let claimed: Vec<IpAddr> = all.filter(|ip| is_in_a_pool(*ip)).collect();
        if claimed.is_empty() {
            return self.forget(&service.name);
        }
        let before = self.0.insert(service.name.clone(), claimed);
        before.as_ref() != self.0.get(&service.name)
    }

    /// The service is gone; whether that is news.
    pub(super) fn forget(&mut self, service: &ServiceName) -> bool {
        self.0.remove(service).is_some()
    }

    /// Every such address and whose it is; of several services, the first by name.
    pub(super) fn all(&self) -> BTreeMap<IpAddr, &ServiceName> {
        let mut all = BTreeMap::new();
        for (service, addresses) in &self.0 {
            for address in addresses {
                all.entry(*address).or_insert(service);
            }
        }
        all
    }
}

impl Allocation {
    /// Whether a change of services changes what is claimed.
    pub(super) fn note_change(&mut self, change: &Change) -> bool {
        match change {
            Change::UpsertService(service) => self.note_claims(service),
            Change::RemoveService(name) => self.claims.forget(name),
            _ => false,
        }
    }

    pub(super) fn note_claims(&mut self, service: &Service) -> bool {
        let is_ours = self.load_balancers.get(&service.name).copied().unwrap_or_default();
        self.claims.note(service, is_ours, |address| self.by_hand.is_in_a_pool(address))
    }

    /// Keeps addresses back that services have in another way, unless somebody holds them by now: who came first stays.
    pub(super) fn reserve_claimed(&mut self) {
        let claimed = self.claims.all();
        for address in self.reserved.iter().filter(|address| !claimed.contains_key(address)) {
            if self.allocator.clear(*address).is_ok() {
                self.writer.note_change();
            }
        }
        self.reserved.retain(|address| claimed.contains_key(address));
        for (address, service) in claimed {
            let is_held = matches!(self.allocator.ledger().get(address), Some(Entry::Held(_)));
            let why = format!("an address that service {service} has already");
            if !is_held && self.reserved.insert(address) && self.allocator.reserve(address, &why).is_ok() {
                self.writer.note_change();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_a_pool_and_did_not_come_from_there_is_a_claim() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut service = Service::new(ServiceName::new("default", "web"));
        service.cluster_ips = vec![ip("10.96.0.1")];
        service.external_ips = vec![ip("20.0.20.1"), ip("198.51.100.1")];
        service.load_balancer_ips = vec![ip("20.0.20.2")];
        let in_pool = |address: IpAddr| address.to_string().starts_with("20.");
        let mut claims = Claims::default();
        assert!(claims.note(&service, true, in_pool) && !claims.note(&service, true, in_pool));
        assert_eq!(claims.all().into_keys().collect::<Vec<_>>(), [ip("20.0.20.1")]);
        assert!(claims.note(&service, false, in_pool));
        assert_eq!(claims.all().into_keys().collect::<Vec<_>>(), [ip("20.0.20.1"), ip("20.0.20.2")]);
        let other = Service { name: ServiceName::new("default", "api"), ..service.clone() };
        assert!(claims.note(&other, false, in_pool));
        assert!(claims.all().values().all(|owner| owner.name() == "api"));
        assert!(claims.forget(&other.name) && !claims.forget(&other.name));
        assert!(claims.note(&service, false, |_| false));
        assert!(claims.all().is_empty());
    }
}
