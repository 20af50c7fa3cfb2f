//! Which services claim which ports for their health checks. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::name::ServiceName;

/// Ports and ready endpoints of services, in both directions.
#[derive(Default)]
pub(super) struct Claims {
    of_service: BTreeMap<ServiceName, Claim>,
    of_port: BTreeMap<u16, BTreeSet<ServiceName>>,
}

struct Claim {
    port: u16,
    endpoints: usize,
}

impl Claims {
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.of_service.keys()
    }

    /// The port that `service` claims.
    pub(super) fn port_of(&self, service: &ServiceName) -> Option<u16> {
        Some(self.of_service.get(service)?.port)
    }

    /// The services that claim `port`, in order of their names.
    pub(super) fn of(&self, port: u16) -> impl Iterator<Item = &ServiceName> {
        self.of_port.get(&port).into_iter().flatten()
    }

    /// Sets what `service` claims; returns the port that it claimed before, if that was another one.
    pub(super) fn set(&mut self, service: &ServiceName, port: u16, endpoints: usize) -> Option<u16> {
        let before = self.of_service.get(service).map(|claim| claim.port).filter(|before| *before != port);
        if before.is_some() {
            self.remove(service);
        }
        self.of_service.insert(service.clone(), Claim { port, endpoints });
        self.of_port.entry(port).or_default().insert(service.clone());
        before
    }

    /// Forgets what `service` claims; returns the port.
    pub(super) fn remove(&mut self, service: &ServiceName) -> Option<u16> {
        let port = self.of_service.remove(service)?.port;
        if let Some(services) = self.of_port.get_mut(&port) {
            services.remove(service);
            if services.is_empty() {
                self.of_port.remove(&port);
            }
        }
        Some(port)
    }

    /// Who gets `port`, and how many endpoints it has: `holder` if it still claims the port, else the first by name.
    pub(super) fn owner(&self, port: u16, holder: Option<&ServiceName>) -> Option<(ServiceName, usize)> {
        let services = self.of_port.get(&port)?;
        let owner = holder.filter(|holder| services.contains(holder)).or(services.first())?;
        Some((owner.clone(), self.of_service.get(owner)?.endpoints))
    }
}
