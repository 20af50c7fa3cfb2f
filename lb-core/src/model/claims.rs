//! Owners of frontend addresses.

use alloc::{collections::BTreeSet, vec::Vec};
use core::cmp::Reverse;
use core::net::IpAddr;

use super::{Claim, Model, ModelError, Owner, ServiceFrontend, check::check_fields};
use crate::{
    addr::{FrontendAddr, FrontendKind},
    name::{ServiceName, ServicePortName},
    node::NodeFacts,
    service::Service,
};

impl Model {
    /// Whether `service` has this one of its frontends: another one may have taken it over.
    #[must_use]
    pub fn owns(&self, service: &Service, frontend: &ServiceFrontend<'_>) -> bool {
        self.owners.get(&frontend.addr).is_some_and(|owner| owner.port.service == service.name)
    }

    pub(super) fn upsert_service(&mut self, service: Service) -> Result<BTreeSet<ServiceName>, ModelError> {
        self.claims.remove(&service.name);
        if let Err(error) = self.check(&service) {
            self.refused.insert(service.name.clone(), (service, error.clone()));
            return Err(error);
        }
        self.refused.remove(&service.name);
        let mut touched = BTreeSet::from([service.name.clone()]);
        self.install(service, &mut touched);
        self.retry_refused(&mut touched);
        Ok(touched)
    }

    /// Assigns `service`, which was checked, all of its addresses. Services that lose one are refused from now on.
    fn install(&mut self, service: Service, touched: &mut BTreeSet<ServiceName>) {
        self.disown(&service.name);
        for (addr, owner) in self.claims(&service) {
            let Some(loser) = self.owners.insert(addr, owner).map(|loser| loser.port.service) else { continue };
            let error =
                ModelError::FrontendTaken { frontend: addr, owner: service.name.clone(), claimant: loser.clone() };
            if let Some(served) = self.services.get(&loser) {
                self.refused.entry(loser.clone()).or_insert_with(|| {
                    self.claims.insert(loser.clone(), Claim::Refused(error.clone()));
                    (served.clone(), error)
                });
            }
            touched.insert(loser);
        }
        self.services.insert(service.name.clone(), service);
    }

    /// Assigns a service those of its addresses that no other service has; returns whether there were any.
    fn install_rest(&mut self, service: &Service) -> bool {
        let mut free = self.claims(service);
        free.retain(|(addr, _)| !self.owners.contains_key(addr));
        let found = !free.is_empty();
        self.owners.extend(free);
        found
    }

    fn claims(&self, service: &Service) -> Vec<(FrontendAddr, Owner)> {
        let claim = |f: ServiceFrontend<'_>| {
            let port = ServicePortName { service: service.name.clone(), port: f.port.name.clone() };
            (f.addr, Owner { port, kind: f.kind })
        };
        self.frontends(service).map(claim).collect()
    }

    fn disown(&mut self, name: &ServiceName) {
        let Some(service) = self.services.get(name) else { return };
        let addrs: Vec<_> = self.frontends(service).map(|f| f.addr).collect();
        for addr in addrs {
            if self.owners.get(&addr).is_some_and(|owner| owner.port.service == *name) {
                self.owners.remove(&addr);
            }
        }
    }

    pub(super) fn remove_service(&mut self, name: &ServiceName) -> BTreeSet<ServiceName> {
        self.refused.remove(name);
        self.claims.remove(name);
        self.disown(name);
        let mut touched = BTreeSet::new();
        if self.services.remove(name).is_some() {
            touched.insert(name.clone());
            self.retry_refused(&mut touched);
        }
        touched
    }

    /// Assigns refused services the addresses that have become free, those of higher priority first, then in order of
    /// name; until nobody can be helped, since a service that changes may release addresses itself.
    fn retry_refused(&mut self, touched: &mut BTreeSet<ServiceName>) {
        loop {
            let mut helped = false;
            for name in self.waiting() {
                let Some((service, _)) = self.refused.get(&name) else { continue };
                if self.check(service).is_ok()
                    && let Some((service, _)) = self.refused.remove(&name)
                {
                    self.install(service, touched);
                    self.claims.insert(name.clone(), Claim::Served);
                    touched.insert(name);
                    helped = true;
                }
            }
            if !helped {
                break;
            }
        }
        for name in self.waiting() {
            if let Some(served) = self.services.get(&name).cloned()
                && self.install_rest(&served)
            {
                touched.insert(name);
            }
        }
    }

    fn waiting(&self) -> Vec<ServiceName> {
        let mut waiting: Vec<_> =
            self.refused.iter().map(|(name, (service, _))| (Reverse(self.priority(service)), name.clone())).collect();
        waiting.sort_unstable();
        waiting.into_iter().map(|(_, name)| name).collect()
    }

    /// Node facts change which endpoints are local or near and where node ports are, so every service is touched. One
    /// whose node-port frontends collide with an address that is taken is refused like any other claimant, and keeps
    /// its other addresses.
    pub(super) fn set_node(&mut self, node: NodeFacts) -> BTreeSet<ServiceName> {
        if node == self.node {
            return BTreeSet::new();
        }
        self.node = node;
        self.assign_anew()
    }

    /// Addresses of devices say which external addresses are refused: without a service that has one of
    /// those that came or went, nothing is touched.
    pub(super) fn set_local_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> BTreeSet<ServiceName> {
        let has_changed = |ip: &IpAddr| self.local_addresses.contains(ip) != addresses.contains(ip);
        let latest = self.refused.values().map(|(service, _)| service);
        let is_touched = self.services.values().chain(latest).any(|it| it.external_ips.iter().any(has_changed));
        self.local_addresses = addresses;
        if is_touched { self.assign_anew() } else { BTreeSet::new() }
    }

    /// Assigns every frontend address anew, those of higher priority first.
    fn assign_anew(&mut self) -> BTreeSet<ServiceName> {
        self.owners.clear();
        let services = core::mem::take(&mut self.services);
        let mut touched: BTreeSet<ServiceName> = services.keys().cloned().collect();
        let mut services: Vec<Service> = services.into_values().collect();
        services.sort_by_key(|service| Reverse(self.priority(service)));
        for service in services {
            let Err(error) = self.check(&service) else {
                self.install(service, &mut touched);
                continue;
            };
            if matches!(error, ModelError::FrontendTaken { .. }) {
                self.install_rest(&service);
                self.services.insert(service.name.clone(), service.clone());
            }
            self.refused.entry(service.name.clone()).or_insert_with(|| {
                self.claims.insert(service.name.clone(), Claim::Refused(error.clone()));
                (service, error)
            });
        }
        self.retry_refused(&mut touched);
        touched
    }

    fn priority(&self, service: &Service) -> i32 {
        service.source.as_ref().and_then(|source| self.settings.priorities.get(source)).copied().unwrap_or(0)
    }

    /// Whether `service` may take a frontend address from its owner: if its source has the higher priority, or the same
    /// one and the owner has the address as an external one while `service` has it as its own. Anybody may write any
    /// external address into a service, and must not keep those from their addresses who were assigned them.
    fn outranks(&self, service: &Service, kind: FrontendKind, owner: &Owner) -> bool {
        let other = self.services.get(&owner.port.service).map_or(i32::MIN, |owner| self.priority(owner));
        let is_assigned = |kind| kind != FrontendKind::ExternalIp;
        (self.priority(service), is_assigned(kind)) > (other, is_assigned(owner.kind))
    }

    fn check(&self, service: &Service) -> Result<(), ModelError> {
        check_fields(service)?;
        let mut seen = BTreeSet::new();
        for frontend in self.frontends(service) {
            if !seen.insert(frontend.addr) {
                return Err(ModelError::FrontendTwice { service: service.name.clone(), frontend: frontend.addr });
            }
            if let Some(owner) = self.owners.get(&frontend.addr)
                && owner.port.service != service.name
                && !self.outranks(service, frontend.kind, owner)
            {
                return Err(ModelError::FrontendTaken {
                    frontend: frontend.addr,
                    owner: owner.port.service.clone(),
                    claimant: service.name.clone(),
                });
            }
        }
        Ok(())
    }
}
