//! Addresses that services have, but not from pools: cluster addresses, external ones, those of load balancers of
//! another class. No service gets an address that another one answers for already.

use std::{collections::BTreeMap, net::IpAddr};

use lb_core::{name::ServiceName, service::Service};

/// Who has which.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// Cluster and external addresses of every service that has any.
    declared: BTreeMap<ServiceName, Vec<IpAddr>>,
    /// Those that lie in a pool.
    fixed: BTreeMap<ServiceName, Vec<IpAddr>>,
    /// What the status of services of another class names.
    published: BTreeMap<ServiceName, Vec<IpAddr>>,
}

impl Claims {
    /// A service as it is now: what of its cluster and external addresses lies in a pool. Whether that is news.
    pub(super) fn note_service(&mut self, service: &Service, is_in_a_pool: impl Fn(IpAddr) -> bool) -> bool {
        let addresses: Vec<IpAddr> = service.cluster_ips.iter().chain(&service.external_ips).copied().collect();
        let is_news = note(&mut self.fixed, &service.name, addresses.iter(), is_in_a_pool);
        if addresses.is_empty() {
            self.declared.remove(&service.name);
        } else {
            self.declared.insert(service.name.clone(), addresses);
        }
        is_news
    }

    /// Pools came, changed or went: what of each service's addresses lies in one now.
    pub(super) fn note_pools(&mut self, is_in_a_pool: impl Fn(IpAddr) -> bool) {
        for (service, addresses) in &self.declared {
            note(&mut self.fixed, service, addresses.iter(), &is_in_a_pool);
        }
    }

    /// Remembers what the status of a service names, if another program assigned it. Returns whether that is news.
    pub(super) fn note_status(
        &mut self,
        service: &ServiceName,
        addresses: &[IpAddr],
        is_in_a_pool: impl Fn(IpAddr) -> bool,
    ) -> bool {
        note(&mut self.published, service, addresses.iter(), is_in_a_pool)
    }

    /// The service is gone; whether that is news.
    pub(super) fn forget(&mut self, service: &ServiceName) -> bool {
        self.declared.remove(service);
        self.published.remove(service).is_some() | self.fixed.remove(service).is_some()
    }

    /// Every such address and whose it is; of several services, the first by name.
    pub(super) fn all(&self) -> BTreeMap<IpAddr, &ServiceName> {
        let mut all = BTreeMap::new();
        for (service, addresses) in self.fixed.iter().chain(&self.published) {
            for address in addresses {
                all.entry(*address).or_insert(service);
            }
        }
        all
    }
}

fn note<'a>(
    claims: &mut BTreeMap<ServiceName, Vec<IpAddr>>,
    service: &ServiceName,
    addresses: impl Iterator<Item = &'a IpAddr>,
    is_in_a_pool: impl Fn(IpAddr) -> bool,
) -> bool {
    let claimed: Vec<IpAddr> = addresses.copied().filter(|address| is_in_a_pool(*address)).collect();
    if claimed.is_empty() {
        return claims.remove(service).is_some();
    }
    let before = claims.insert(service.clone(), claimed);
    before.as_ref() != claims.get(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_a_pool_is_a_claim() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut service = Service::new(ServiceName::new("default", "web"));
        service.cluster_ips = vec![ip("10.96.0.1")];
        service.external_ips = vec![ip("20.0.20.1"), ip("198.51.100.1")];
        // Out of a pool, or of a status: that is said apart.
        service.load_balancer_ips = vec![ip("20.0.20.2")];
        let in_pool = |address: IpAddr| address.to_string().starts_with("20.");
        let mut claims = Claims::default();
        assert!(claims.note_service(&service, in_pool) && !claims.note_service(&service, in_pool));
        assert_eq!(claims.all().into_keys().collect::<Vec<_>>(), [ip("20.0.20.1")]);
        assert!(claims.note_status(&service.name, &service.load_balancer_ips, in_pool));
        assert_eq!(claims.all().into_keys().collect::<Vec<_>>(), [ip("20.0.20.1"), ip("20.0.20.2")]);
        let other = Service { name: ServiceName::new("default", "api"), ..service.clone() };
        assert!(claims.note_service(&other, in_pool));
        assert_eq!(claims.all()[&ip("20.0.20.1")].name(), "api");
        claims.note_pools(|address| address == ip("198.51.100.1"));
        assert_eq!(claims.all()[&ip("198.51.100.1")].name(), "api", "a pool came, and nobody named the services again");
        claims.note_pools(in_pool);
        assert!(claims.forget(&other.name) && !claims.forget(&other.name));
        assert!(claims.note_status(&service.name, &[], in_pool) && claims.note_service(&service, |_| false));
        assert!(claims.all().is_empty());
    }
}
