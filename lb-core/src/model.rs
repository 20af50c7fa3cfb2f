//! The model: what the sources want, in tables with one writer.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::net::IpAddr;

use crate::{
    Algorithm, BackendAddr, Capabilities, Change, Endpoint, EndpointSlice, Family, FrontendAddr, FrontendKind,
    NodeFacts, Protocol, Service, ServiceName, ServicePort, ServicePortName, SliceName,
};

/// Seed of the [flow hash](crate::flow_hash) in every datapath. Nodes that share it send a flow to the same backend.
pub const FLOW_SEED: u32 = 0x6c62_0001;

/// Settings that hold for every service of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Algorithm of services that name none. Default [`Algorithm::Random`].
    pub algorithm: Algorithm,
    /// Key of Maglev's SipHash. All nodes must have the same; default: a fixed, public one.
    pub maglev_key: [u8; 16],
}

impl Default for Settings {
    fn default() -> Self {
        Self { algorithm: Algorithm::Random, maglev_key: *b"lb-maglev-key-v1" }
    }
}

/// Services, endpoints and node facts, with every cross-reference guarded.
///
/// One frontend address has one owner. A service that claims an address of another one is refused as a whole and
/// keeps its last good state; it is tried again as soon as the owner gives something up.
#[derive(Clone, Debug)]
pub struct Model {
    settings: Settings,
    capabilities: Capabilities,
    node: NodeFacts,
    services: BTreeMap<ServiceName, Service>,
    refused: BTreeMap<ServiceName, (Service, ModelError)>,
    slices: BTreeMap<SliceName, EndpointSlice>,
    slices_of: BTreeMap<ServiceName, BTreeSet<SliceName>>,
    owners: BTreeMap<FrontendAddr, Owner>,
}

/// Who owns a frontend address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The service and its port.
    pub port: ServicePortName,
    /// Where the address comes from.
    pub kind: FrontendKind,
}

/// Why a change was refused. The model is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Another service owns the address.
    #[error(
        "service {claimant} claims frontend {frontend}, which belongs to service {owner}; give one of them another address or port"
    )]
    FrontendTaken {
        /// The address.
        frontend: FrontendAddr,
        /// Who has it.
        owner: ServiceName,
        /// Who wants it.
        claimant: ServiceName,
    },
    /// A service lists one address and port twice.
    #[error("service {service} has frontend {frontend} twice")]
    FrontendTwice {
        /// The service.
        service: ServiceName,
        /// The address.
        frontend: FrontendAddr,
    },
    /// A field is out of range.
    #[error("service {service}: {field} is {value}, expected {expected}")]
    OutOfRange {
        /// The service.
        service: ServiceName,
        /// The field.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What it may say.
        expected: &'static str,
    },
    /// An address cannot be one of a frontend or backend.
    #[error("{object}: {field} {ip} cannot be used: it is unspecified, loopback, multicast or link-local")]
    BadAddress {
        /// Service or slice.
        object: alloc::string::String,
        /// The field.
        field: &'static str,
        /// The address.
        ip: IpAddr,
    },
    /// A slice's port is 0.
    #[error("endpoint slice {slice}: port `{port}` is 0, expected 1..=65535")]
    SlicePortZero {
        /// The slice.
        slice: SliceName,
        /// Name of the port.
        port: alloc::string::String,
    },
}

/// How a served service falls short of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Degraded {
    /// The datapath cannot run the algorithm.
    #[error("algorithm {asked} is not in this datapath, {used} is used")]
    Algorithm {
        /// What the service asks for.
        asked: Algorithm,
        /// What it gets.
        used: Algorithm,
    },
    /// The datapath does not carry frontends of this kind.
    #[error("{0} frontends are not in this datapath")]
    Frontends(FrontendKind),
    /// The datapath does not forward this protocol.
    #[error("protocol {0} is not in this datapath")]
    Protocol(Protocol),
    /// The datapath does not forward this family.
    #[error("{0:?} is not in this datapath")]
    Family(Family),
    /// The datapath cannot keep external traffic on local backends.
    #[error("external traffic policy Local is not in this datapath, Cluster is used")]
    ExternalTrafficPolicyLocal,
    /// The datapath has no affinity.
    #[error("session affinity is not in this datapath")]
    Affinity,
    /// The datapath cannot take a prefix as a client.
    #[error("affinity by prefix is not in this datapath, the whole address is used")]
    AffinityPrefix,
    /// The datapath cannot hold so long a time-out.
    #[error("affinity time-out is cut to {0} s")]
    AffinityTimeout(u64),
}

/// One frontend that a service expands to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFrontend<'a> {
    /// Its address.
    pub addr: FrontendAddr,
    /// Where the address comes from.
    pub kind: FrontendKind,
    /// The port it belongs to.
    pub port: &'a ServicePort,
}

/// An endpoint seen from one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Address that the port maps to.
    pub addr: BackendAddr,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Whether it runs on this node.
    pub local: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self::new(Settings::default(), Capabilities::all("model"))
    }
}

impl Model {
    /// An empty model for a datapath with `capabilities`: what it lacks is never asked of it.
    #[must_use]
    pub fn new(settings: Settings, capabilities: Capabilities) -> Self {
        Self {
            settings,
            capabilities,
            node: NodeFacts::default(),
            services: BTreeMap::new(),
            refused: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    /// Takes a change in and returns the services that it touched.
    ///
    /// # Errors
    /// When the change is refused; nothing else is affected.
    pub fn apply(&mut self, change: Change) -> Result<BTreeSet<ServiceName>, ModelError> {
        match change {
            Change::UpsertService(service) => self.upsert_service(service),
            Change::RemoveService(name) => Ok(self.remove_service(&name)),
            Change::ReplaceEndpoints(slice) => self.replace_endpoints(slice),
            Change::RemoveEndpoints(name) => Ok(self.remove_endpoints(&name)),
            Change::SetNode(node) => Ok(self.set_node(node)),
            Change::InitStart(_) | Change::InitDone(_) => Ok(BTreeSet::new()),
        }
    }

    /// The settings.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the datapath of this model can do.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The node's facts.
    #[must_use]
    pub const fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// Services that are served, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The served version of a service.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Services whose latest version is refused, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&ServiceName, &ModelError)> {
        self.refused.iter().map(|(name, (_, error))| (name, error))
    }

    /// Who owns a frontend address.
    #[must_use]
    pub fn owner(&self, addr: &FrontendAddr) -> Option<&Owner> {
        self.owners.get(addr)
    }

    /// Frontends that exist, with their owners, those included that the datapath cannot carry.
    pub fn owners(&self) -> impl Iterator<Item = (&FrontendAddr, &Owner)> {
        self.owners.iter()
    }

    /// Every frontend of `service`: cluster, load-balancer and external addresses with each port, and each node
    /// address with each node port. None without addresses (headless, `ExternalName`).
    pub fn frontends<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = ServiceFrontend<'a>> {
        let node_ips = &self.node.ips;
        service.ports.iter().flat_map(move |port| {
            let at = move |kind, port_number| {
                move |&ip: &IpAddr| ServiceFrontend {
                    addr: FrontendAddr::new(ip, port_number, port.protocol),
                    kind,
                    port,
                }
            };
            let node_port = port
                .node_port
                .into_iter()
                .flat_map(move |number| node_ips.iter().map(at(FrontendKind::NodePort, number)));
            service
                .cluster_ips
                .iter()
                .map(at(FrontendKind::ClusterIp, port.port))
                .chain(service.load_balancer_ips.iter().map(at(FrontendKind::LoadBalancer, port.port)))
                .chain(service.external_ips.iter().map(at(FrontendKind::ExternalIp, port.port)))
                .chain(node_port)
        })
    }

    /// Endpoints of one port of a service, in order of address. An address in two slices counts once: one that is
    /// not terminating wins.
    #[must_use]
    pub fn candidates(&self, service: &ServiceName, port: &ServicePort, family: Family) -> Vec<Candidate<'_>> {
        let mut found: BTreeMap<BackendAddr, &Endpoint> = BTreeMap::new();
        let slices = self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name));
        for slice in slices {
            let joined = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for slice_port in joined {
                for endpoint in slice.endpoints.iter().filter(|e| Family::of(e.ip) == family) {
                    let addr = BackendAddr::new(endpoint.ip, slice_port.port, port.protocol);
                    let known = found.entry(addr).or_insert(endpoint);
                    if known.conditions.terminating && !endpoint.conditions.terminating {
                        *known = endpoint;
                    }
                }
            }
        }
        found.into_iter().map(|(addr, endpoint)| Candidate { addr, endpoint, local: self.is_local(endpoint) }).collect()
    }

    /// Whether the datapath carries this frontend at all.
    #[must_use]
    pub fn carries(&self, frontend: &ServiceFrontend<'_>) -> bool {
        self.capabilities.frontends.contains(&frontend.kind)
            && self.capabilities.protocols.contains(&frontend.addr.protocol)
            && self.capabilities.families.contains(&frontend.addr.family())
    }

    /// How `service` falls short of what it asks for; empty when it does not.
    #[must_use]
    pub fn degraded(&self, service: &Service) -> BTreeSet<Degraded> {
        let mut found = BTreeSet::new();
        let caps = &self.capabilities;
        let asked = service.algorithm.unwrap_or(self.settings.algorithm);
        let used = self.algorithm(service);
        if asked != used {
            found.insert(Degraded::Algorithm { asked, used });
        }
        for frontend in self.frontends(service) {
            if !caps.frontends.contains(&frontend.kind) {
                found.insert(Degraded::Frontends(frontend.kind));
            }
            if !caps.protocols.contains(&frontend.addr.protocol) {
                found.insert(Degraded::Protocol(frontend.addr.protocol));
            }
            if !caps.families.contains(&frontend.addr.family()) {
                found.insert(Degraded::Family(frontend.addr.family()));
            }
            let wants_local = service.external_traffic_policy == crate::TrafficPolicy::Local;
            if wants_local && frontend.kind.is_external() && !caps.external_traffic_policy_local {
                found.insert(Degraded::ExternalTrafficPolicyLocal);
            }
        }
        self.degraded_affinity(service, &mut found);
        found
    }

    fn degraded_affinity(&self, service: &Service, found: &mut BTreeSet<Degraded>) {
        let Some(affinity) = service.affinity else { return };
        let Some(capability) = self.capabilities.affinity else {
            found.insert(Degraded::Affinity);
            return;
        };
        if !capability.prefixes && (affinity.prefix_v4 != 32 || affinity.prefix_v6 != 128) {
            found.insert(Degraded::AffinityPrefix);
        }
        if affinity.timeout > capability.max_timeout {
            found.insert(Degraded::AffinityTimeout(capability.max_timeout.as_secs()));
        }
    }

    /// The algorithm that `service` gets from this datapath: the one that it asks for, or random.
    #[must_use]
    pub fn algorithm(&self, service: &Service) -> Algorithm {
        let asked = service.algorithm.unwrap_or(self.settings.algorithm);
        if self.capabilities.algorithms.contains(&asked) { asked } else { Algorithm::Random }
    }

    fn is_local(&self, endpoint: &Endpoint) -> bool {
        match (&self.node.name, &endpoint.node) {
            (Some(here), Some(there)) => here == there,
            _ => true,
        }
    }

    fn upsert_service(&mut self, service: Service) -> Result<BTreeSet<ServiceName>, ModelError> {
        if let Err(error) = self.check(&service) {
            self.refused.insert(service.name.clone(), (service, error.clone()));
            return Err(error);
        }
        self.refused.remove(&service.name);
        let mut touched = BTreeSet::from([service.name.clone()]);
        self.install(service);
        self.retry_refused(&mut touched);
        Ok(touched)
    }

    fn install(&mut self, service: Service) {
        self.disown(&service.name);
        let owned: Vec<_> = self
            .frontends(&service)
            .map(|f| {
                let port = ServicePortName { service: service.name.clone(), port: f.port.name.clone() };
                (f.addr, Owner { port, kind: f.kind })
            })
            .collect();
        self.owners.extend(owned);
        self.services.insert(service.name.clone(), service);
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

    fn remove_service(&mut self, name: &ServiceName) -> BTreeSet<ServiceName> {
        self.refused.remove(name);
        self.disown(name);
        let mut touched = BTreeSet::new();
        if self.services.remove(name).is_some() {
            touched.insert(name.clone());
            self.retry_refused(&mut touched);
        }
        touched
    }

    /// Gives refused services, in order of name, the addresses that have become free.
    fn retry_refused(&mut self, touched: &mut BTreeSet<ServiceName>) {
        let waiting: Vec<ServiceName> = self.refused.keys().cloned().collect();
        for name in waiting {
            let Some((service, _)) = self.refused.get(&name) else { continue };
            if self.check(service).is_ok()
                && let Some((service, _)) = self.refused.remove(&name)
            {
                self.install(service);
                touched.insert(name);
            }
        }
    }

    fn replace_endpoints(&mut self, slice: EndpointSlice) -> Result<BTreeSet<ServiceName>, ModelError> {
        check_slice(&slice)?;
        let mut touched = self.remove_endpoints(&slice.name);
        touched.insert(slice.service.clone());
        self.slices_of.entry(slice.service.clone()).or_default().insert(slice.name.clone());
        self.slices.insert(slice.name.clone(), slice);
        Ok(touched)
    }

    fn remove_endpoints(&mut self, name: &SliceName) -> BTreeSet<ServiceName> {
        let Some(slice) = self.slices.remove(name) else { return BTreeSet::new() };
        if let Some(names) = self.slices_of.get_mut(&slice.service) {
            names.remove(name);
            if names.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
        BTreeSet::from([slice.service])
    }

    /// Node facts change which endpoints are local and where node ports are, so every service is touched. A service
    /// whose node-port frontends collide with an address that is taken is refused like any other claimant.
    fn set_node(&mut self, node: NodeFacts) -> BTreeSet<ServiceName> {
        if node == self.node {
            return BTreeSet::new();
        }
        self.node = node;
        self.owners.clear();
        let services = core::mem::take(&mut self.services);
        let mut touched: BTreeSet<ServiceName> = services.keys().cloned().collect();
        for (name, service) in services {
            match self.check(&service) {
                Ok(()) => self.install(service),
                Err(error) => {
                    self.refused.entry(name).or_insert((service, error));
                }
            }
        }
        self.retry_refused(&mut touched);
        touched
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

fn check_fields(service: &Service) -> Result<(), ModelError> {
    let out_of_range =
        |field, value, expected| Err(ModelError::OutOfRange { service: service.name.clone(), field, value, expected });
    for port in &service.ports {
        if port.port == 0 {
            return out_of_range("port", 0, "1..=65535");
        }
        if port.node_port == Some(0) {
            return out_of_range("node port", 0, "1..=65535");
        }
    }
    if let Some(affinity) = service.affinity {
        if affinity.timeout.as_secs() == 0 {
            return out_of_range("affinity time-out in seconds", 0, "at least 1");
        }
        if affinity.prefix_v4 > 32 {
            return out_of_range("affinity prefix for IPv4", affinity.prefix_v4.into(), "0..=32");
        }
        if affinity.prefix_v6 > 128 {
            return out_of_range("affinity prefix for IPv6", affinity.prefix_v6.into(), "0..=128");
        }
    }
    let addresses = [
        ("cluster address", &service.cluster_ips),
        ("external address", &service.external_ips),
        ("load-balancer address", &service.load_balancer_ips),
    ];
    for (field, ips) in addresses {
        if let Some(&ip) = ips.iter().find(|ip| !is_usable(**ip)) {
            return Err(ModelError::BadAddress { object: alloc::format!("service {}", service.name), field, ip });
        }
    }
    Ok(())
}

fn check_slice(slice: &EndpointSlice) -> Result<(), ModelError> {
    if let Some(port) = slice.ports.iter().find(|port| port.port == 0) {
        return Err(ModelError::SlicePortZero { slice: slice.name.clone(), port: (*port.name).into() });
    }
    match slice.endpoints.iter().find(|endpoint| !is_usable(endpoint.ip)) {
        Some(endpoint) => Err(ModelError::BadAddress {
            object: alloc::format!("endpoint slice {}", slice.name),
            field: "endpoint address",
            ip: endpoint.ip,
        }),
        None => Ok(()),
    }
}

/// Addresses that Kubernetes refuses for endpoints, too; and an IPv4 address in IPv6 clothes, which would be the same
/// host under a second name.
fn is_usable(ip: IpAddr) -> bool {
    let special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    let other = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    !special && !other
}
