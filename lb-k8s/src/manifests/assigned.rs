//! Services of the last good state, with the addresses that an allocator assigns to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use lb_core::{
    endpoint::EndpointSlice,
    model::Change,
    name::{ServiceName, SliceName},
    service::Service,
};

use crate::{
    Snapshot,
    manifests::{
        differences::{self, Differences},
        handover::service_changes,
        host_ports::{HostPortDifferences, HostPorts},
    },
    snapshot::part::Key,
};

type Services = BTreeMap<ServiceName, Arc<Service>>;

/// Services as their manifests declare them, some with other addresses than those in their status.
#[derive(Debug, Default)]
pub(crate) struct AssignedServices {
    said: Services,
    /// Only of services that are in `said`.
    grants: BTreeMap<ServiceName, Assignment>,
}

#[derive(Debug)]
struct Assignment {
    addresses: Vec<IpAddr>,
    /// The service with these addresses.
    service: Arc<Service>,
}

impl AssignedServices {
    /// Services with what they were granted, in order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.said.iter().map(|(name, said)| &**self.effective(name, said))
    }

    pub(crate) fn contains(&self, name: &ServiceName) -> bool {
        self.said.contains_key(name)
    }

    /// Takes the services of a newer snapshot that may have changed, and those of host ports. A grant stays as long as its
    /// service does. Returns the changes of services, and how slices of host ports differ.
    pub(crate) fn take(
        &mut self,
        touched: &BTreeSet<Key>,
        snapshot: &Snapshot,
        host_ports: &mut HostPorts,
    ) -> (Vec<Change>, Differences<SliceName, EndpointSlice>) {
        let said = Differences::of(touched, &self.said, |key| match key {
            Key::Service(name) => Some((name, differences::service(snapshot.entry(key)))),
            Key::Slice(_) | Key::Namespace(_) | Key::Workload(_) | Key::Pool(_) => None,
        });
        let names: BTreeSet<_> = said.before.keys().chain(said.after.keys()).cloned().collect();
        let mut before = self.current(&names);
        said.apply(&mut self.said);
        for name in &names {
            if let Some(grant) = self.grants.remove(name) {
                self.give(name, Some(grant.addresses));
            }
        }
        let mut after = self.current(&names);
        let HostPortDifferences { services, slices } = host_ports.take(touched, snapshot, &before, &after);
        before.extend(services.before);
        after.extend(services.after);
        (service_changes(&before, &after), slices)
    }

    /// Sets addresses of services in place of those of their status; `None` restores those.
    pub(crate) fn grant(
        &mut self,
        answers: impl IntoIterator<Item = (ServiceName, Option<Vec<IpAddr>>)>,
    ) -> Vec<Change> {
        let answers: BTreeMap<_, _> = answers.into_iter().filter(|(name, _)| self.contains(name)).collect();
        let before = self.current(answers.keys());
        let names: Vec<_> = before.keys().cloned().collect();
        for (name, addresses) in answers {
            self.give(&name, addresses);
        }
        service_changes(&before, &self.current(&names))
    }

    fn give(&mut self, name: &ServiceName, addresses: Option<Vec<IpAddr>>) {
        let (Some(said), Some(addresses)) = (self.said.get(name), addresses) else {
            self.grants.remove(name);
            return;
        };
        let service = if said.load_balancer_ips == addresses {
            Arc::clone(said)
        } else {
            Arc::new(Service { load_balancer_ips: addresses.clone(), ..Service::clone(said) })
        };
        self.grants.insert(name.clone(), Assignment { addresses, service });
    }

    fn effective<'a>(&'a self, name: &ServiceName, said: &'a Arc<Service>) -> &'a Arc<Service> {
        self.grants.get(name).map_or(said, |grant| &grant.service)
    }

    /// The present state of these services; missing ones are left out.
    fn current<'a>(&self, names: impl IntoIterator<Item = &'a ServiceName>) -> Services {
        let found = names.into_iter().filter_map(|name| Some((name, self.said.get(name)?)));
        found.map(|(name, said)| (name.clone(), Arc::clone(self.effective(name, said)))).collect()
    }
}
