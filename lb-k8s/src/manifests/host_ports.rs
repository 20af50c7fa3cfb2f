//! Host ports of the pods of one node, as services.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::{
    addr::{Family, Protocol},
    endpoint::EndpointSlice,
    name::{NodeName, ServiceName, SliceName},
    service::Service,
};

use crate::{
    Finding, Instead, Refusal, Snapshot,
    check::Invalid,
    host_ports::{HostPod, HostPort},
    manifests::differences::{self, Declaration, Differences},
    snapshot::part::Key,
};

type Services = BTreeMap<ServiceName, Arc<Service>>;
type Slices = BTreeMap<SliceName, Arc<EndpointSlice>>;

/// Pods of the last good state that run on this node and have host ports, and what follows from them.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    place: Place,
    pods: BTreeMap<Key, Arc<HostPod>>,
    node_ports: NodePorts,
    served: Served,
}

/// Where the pods run whose host ports are served.
#[derive(Debug, Default)]
pub(crate) enum Place {
    /// Nobody's are.
    #[default]
    Nowhere,
    /// On the node of this name.
    Node(NodeName),
    /// On a node that has no name: every pod runs here.
    Here,
}

/// Services and slices of host ports.
#[derive(Debug, Default)]
struct Served {
    services: Services,
    slices: Slices,
    /// The pods of the services.
    pods: BTreeMap<ServiceName, Key>,
    /// Host ports that are not served, and why.
    refused: Vec<(Key, Invalid)>,
}

/// What changed.
pub(crate) struct HostPortDifferences {
    pub(crate) services: Differences<ServiceName, Service>,
    pub(crate) slices: Differences<SliceName, EndpointSlice>,
}

impl HostPorts {
    pub(crate) fn set_place(&mut self, place: Place) {
        self.place = place;
    }

    /// Whether the host ports of anybody are served.
    pub(crate) const fn has_place(&self) -> bool {
        !matches!(self.place, Place::Nowhere)
    }

    /// In order of their names.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Service> {
        self.served.services.values().map(|service| &**service)
    }

    /// In order of their names.
    pub(crate) fn endpoint_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.served.slices.values().map(|slice| &**slice)
    }

    /// The pod of a service.
    pub(crate) fn pod_of(&self, service: &ServiceName) -> Option<&Key> {
        self.served.pods.get(service)
    }

    /// Whether this is a pod with a good state.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.pods.contains_key(key)
    }

    /// Takes the pods of a newer snapshot that may have changed, after services changed from `before` to `after`.
    pub(crate) fn take(
        &mut self,
        touched: &BTreeSet<Key>,
        snapshot: &Snapshot,
        before: &Services,
        after: &Services,
    ) -> HostPortDifferences {
        self.node_ports.take(before, after);
        let pods = Differences::of(touched, &self.pods, |key| match key {
            Key::Workload(_) => Some((key, self.said(key, snapshot))),
            Key::Service(_) | Key::Slice(_) | Key::Namespace(_) | Key::Pool(_) => None,
        });
        let is_unconcerned = self.pods.is_empty() && pods.after.is_empty();
        pods.apply(&mut self.pods);
        let served = if is_unconcerned { Served::default() } else { self.wanted() };
        let before = std::mem::replace(&mut self.served, served);
        HostPortDifferences {
            services: Differences { before: before.services, after: self.served.services.clone() },
            slices: Differences { before: before.slices, after: self.served.slices.clone() },
        }
    }

    /// What is not served although a pod of this node asks for it.
    pub(crate) fn refusals(&self, snapshot: &Snapshot) -> impl Iterator<Item = Refusal> {
        self.served.refused.iter().filter_map(|(key, Invalid { field, message })| {
            let object = snapshot.entry(key)?.object(key);
            let (field, message) = (field.clone(), message.clone());
            let finding = Finding { object, field, position: None, message, exposes: false };
            Some(Refusal { finding: Arc::new(finding), instead: Instead::Nothing })
        })
    }

    fn said(&self, key: &Key, snapshot: &Snapshot) -> Declaration<HostPod> {
        match differences::host_pod(snapshot.entry(key)) {
            Declaration::Valid(pod) if !self.place.has(&pod) => Declaration::Gone,
            said => said,
        }
    }

    /// What follows from the pods. Of two pods in each other's way, the one that is served already keeps its host port,
    /// then the one that was created first gets it.
    fn wanted(&self) -> Served {
        let mut served = Served::default();
        let mut claims = Vec::new();
        for (key, pod) in &self.pods {
            served.refused.extend(pod.refused.iter().map(|invalid| (key.clone(), invalid.clone())));
            claims.extend(pod.ports.iter().map(|port| Claim { key, pod, port, service: pod.service(port) }));
        }
        claims.sort_by_key(|claim| {
            let is_served = self.served.services.contains_key(&claim.service.name);
            (!is_served, claim.pod.created.unwrap_or(i64::MAX))
        });
        let mut granted: BTreeMap<(u16, Protocol), Vec<Claim<'_>>> = BTreeMap::new();
        for claim in claims {
            let granted = granted.entry((claim.port.port, claim.port.protocol)).or_default();
            let refusal = self.node_ports.taken(claim.pod, claim.port).or_else(|| claim.taken(granted));
            match refusal {
                Some(invalid) => served.refused.push((claim.key.clone(), invalid)),
                None => {
                    served.add(&claim);
                    granted.push(claim);
                }
            }
        }
        served
    }
}

/// A host port of a pod, and the service that it makes.
struct Claim<'a> {
    key: &'a Key,
    pod: &'a HostPod,
    port: &'a HostPort,
    service: Service,
}

impl Claim<'_> {
    /// Why the host port cannot be served beside those that are.
    fn taken(&self, granted: &[Claim<'_>]) -> Option<Invalid> {
        let other = granted.iter().find(|other| self.pod.meets(self.port, other.pod, other.port))?;
        let HostPort { port, protocol, .. } = self.port;
        let message = format!(
            "host port {port}/{protocol} is that of Pod {}, which had it first: give one of them another number",
            other.pod.full_name()
        );
        Some(Invalid::new(self.port.field.clone(), message))
    }
}

impl Served {
    fn add(&mut self, Claim { key, pod, port, service }: &Claim<'_>) {
        let slices = pod.endpoint_slices(port, &service.name).into_iter();
        self.slices.extend(slices.map(|slice| (slice.name.clone(), Arc::new(slice))));
        self.pods.insert(service.name.clone(), (*key).clone());
        self.services.insert(service.name.clone(), Arc::new(service.clone()));
    }
}

impl Place {
    fn has(&self, pod: &HostPod) -> bool {
        match self {
            Self::Nowhere => false,
            // As for endpoints: one whose node is unknown counts as local.
            Self::Node(node) => pod.node.as_ref().is_none_or(|of| of == node),
            Self::Here => true,
        }
    }
}

/// Node ports, the services that have them, and the family that they are limited to.
#[derive(Debug, Default)]
struct NodePorts(BTreeMap<(u16, Protocol), BTreeMap<ServiceName, Option<Family>>>);

impl NodePorts {
    fn take(&mut self, before: &Services, after: &Services) {
        for (key, service) in before.values().flat_map(|service| node_ports(service)) {
            if let Some(services) = self.0.get_mut(&key) {
                services.remove(&service.name);
                if services.is_empty() {
                    self.0.remove(&key);
                }
            }
        }
        for (key, service) in after.values().flat_map(|service| node_ports(service)) {
            self.0.entry(key).or_default().insert(service.name.clone(), service.node_port_family);
        }
    }

    /// Why a host port cannot be served, if it is a node port. The node port is served: all nodes have it.
    fn taken(&self, pod: &HostPod, port: &HostPort) -> Option<Invalid> {
        let HostPort { port: number, protocol, .. } = port;
        let services = self.0.get(&(*number, *protocol))?;
        let meets = |family: Option<Family>| match (family, pod.only_family()) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => true,
        };
        let (service, _) = services.iter().find(|(_, family)| meets(**family))?;
        let message = format!(
            "host port {number}/{protocol} is also the node port of Service {service}, which keeps it: give one of them \
             another number"
        );
        Some(Invalid::new(port.field.clone(), message))
    }
}

fn node_ports(service: &Service) -> impl Iterator<Item = ((u16, Protocol), &Service)> {
    service.ports.iter().filter_map(move |port| Some(((port.node_port?, port.protocol), service)))
}
