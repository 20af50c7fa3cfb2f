//! The model: everything that the sources want, in tables with one writer.

mod change;
mod check;
mod claims;
mod degraded;
mod error;
mod health;
mod health_check;
mod says;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::net::IpAddr;

use ipnet::IpNet;

pub use change::Change;
use check::check_slice;
pub use error::{Claim, Degraded, ExternalIpRefusal, ModelError};

use crate::{
    addr::{BackendAddr, Family, FrontendAddr, FrontendKind},
    datapath::Capabilities,
    endpoint::{Endpoint, EndpointSlice},
    health::{Health, HealthTable},
    maglev::HashFamily,
    name::{ServiceName, ServicePortName, SliceName, SourceName, ZoneName},
    node::NodeFacts,
    selection::{Rules, Selection, select},
    service::{Algorithm, Service, ServicePort, TrafficPolicy},
};

/// Settings that hold for every service of a model.
///
/// ```
/// use lb_core::{model::Settings, service::Algorithm};
///
/// let settings = Settings::default().with_algorithm(Algorithm::Maglev).with_panic_threshold(50);
/// assert_eq!(settings.panic_threshold, 50);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Algorithm of services that name none. Default [`Algorithm::Random`].
    pub algorithm: Algorithm,
    /// Hashes of Maglev tables. All nodes must have the same; default: SipHash under a fixed, public key.
    pub maglev: HashFamily,
    /// Per cent of the backends of a service that must not be unhealthy: when fewer are, health is not looked at, since
    /// then the probes are the more likely culprit and the few would be overrun. 0..=100; default 0, which is never.
    pub panic_threshold: u8,
    /// Which source wins when two claim one frontend address: the one of the higher number. One that is not listed has
    /// priority 0; among equals, who came first.
    pub priorities: BTreeMap<SourceName, i32>,
    /// Networks whose node addresses have node ports. Default: none listed, so every address of the node has them.
    pub node_port_addresses: Vec<IpNet>,
    /// Whether the node answers ICMP echo requests to addresses of services: cluster addresses, ingress of load
    /// balancers and external addresses, but [none of a host](Model::answers_ping). Source ranges do not matter to them.
    /// Default: no. Requests that nobody answers are treated like packets to
    /// [other ports](crate::state::OtherPorts) of the address.
    pub answer_ping: bool,
    /// Whether an external address of a service may be one of the node's own, which are those of its
    /// [facts](NodeFacts::ips) and those of [its devices](Change::SetLocalAddresses). Default: no, since the service
    /// would take the traffic of what the node itself serves there (CVE-2020-8554).
    pub external_ips_of_node: bool,
}

impl Settings {
    /// The same with another [`algorithm`](Self::algorithm).
    #[must_use]
    pub const fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// The same with other [hashes](Self::maglev) of Maglev tables.
    #[must_use]
    pub const fn with_maglev(mut self, maglev: HashFamily) -> Self {
        self.maglev = maglev;
        self
    }

    /// The same with another [`panic_threshold`](Self::panic_threshold), 0..=100 per cent.
    #[must_use]
    pub const fn with_panic_threshold(mut self, percent: u8) -> Self {
        self.panic_threshold = percent;
        self
    }

    /// The same with node ports on node addresses in [these networks](Self::node_port_addresses) only.
    #[must_use]
    pub fn with_node_port_addresses(mut self, networks: impl Into<Vec<IpNet>>) -> Self {
        self.node_port_addresses = networks.into();
        self
    }

    /// The same with or without [answers to pings](Self::answer_ping).
    #[must_use]
    pub const fn with_answer_ping(mut self, answer: bool) -> Self {
        self.answer_ping = answer;
        self
    }

    /// The same with or without external addresses that are [the node's own](Self::external_ips_of_node).
    #[must_use]
    pub const fn with_external_ips_of_node(mut self, allow: bool) -> Self {
        self.external_ips_of_node = allow;
        self
    }

    /// The same with other [`priorities`](Self::priorities).
    #[must_use]
    pub fn with_priorities(mut self, priorities: impl IntoIterator<Item = (SourceName, i32)>) -> Self {
        self.priorities = priorities.into_iter().collect();
        self
    }
}

/// Services, endpoints and node facts, with every cross-reference guarded.
///
/// One frontend address, which is an IP address, a port and a protocol, has one owner: services may have other ports of
/// one IP address. A service that claims a frontend address of another one is refused as a whole and keeps
/// its last good state; it is tried again as soon as the owner releases addresses. If the claimant's source has the
/// higher [priority](Settings::priorities), it is the other way round: the owner loses the address to it, is refused,
/// and keeps its other addresses.
#[derive(Clone, Debug)]
pub struct Model {
    settings: Settings,
    capabilities: Capabilities,
    node: NodeFacts,
    zone: Option<ZoneName>,
    /// Networks that a device of the node connects to.
    networks: Vec<IpNet>,
    /// Addresses that devices of the node have, beside those that the facts list.
    local_addresses: BTreeSet<IpAddr>,
    services: BTreeMap<ServiceName, Service>,
    refused: BTreeMap<ServiceName, (Service, ModelError)>,
    slices: BTreeMap<SliceName, EndpointSlice>,
    slices_of: BTreeMap<ServiceName, BTreeSet<SliceName>>,
    owners: BTreeMap<FrontendAddr, Owner>,
    health: HealthTable,
    /// Addresses of endpoints and the slices that have them; only once there are verdicts on health.
    slices_at: Option<BTreeSet<(IpAddr, SliceName)>>,
    /// News of claims that nobody has asked for yet.
    claims: BTreeMap<ServiceName, Claim>,
}

/// The owner of a frontend address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The service and its port.
    pub port: ServicePortName,
    /// Where the address comes from.
    pub kind: FrontendKind,
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
    /// The verdict of its probers.
    pub health: Health,
}

impl Default for Model {
    fn default() -> Self {
        Self::new(Settings::default(), Capabilities::all("model"))
    }
}

impl Model {
    /// An empty model for a datapath with `capabilities`. The model never asks for anything that the datapath lacks.
    #[must_use]
    pub fn new(settings: Settings, capabilities: Capabilities) -> Self {
        Self {
            settings,
            capabilities,
            node: NodeFacts::default(),
            zone: None,
            networks: Vec::new(),
            local_addresses: BTreeSet::new(),
            services: BTreeMap::new(),
            refused: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            owners: BTreeMap::new(),
            health: HealthTable::default(),
            slices_at: None,
            claims: BTreeMap::new(),
        }
    }

    /// Applies a change and returns the services that it touched.
    ///
    /// # Errors
    /// When the change is refused; nothing else is affected. A service that is refused waits in the model: see
    /// [`ModelError`].
    pub fn apply(&mut self, change: Change) -> Result<BTreeSet<ServiceName>, ModelError> {
        match change {
            Change::UpsertService(service) => self.upsert_service(service),
            Change::RemoveService(name) => Ok(self.remove_service(&name)),
            Change::ReplaceEndpoints(slice) => self.replace_endpoints(slice),
            Change::RemoveEndpoints(name) => Ok(self.remove_endpoints(&name)),
            Change::SetNode(node) => Ok(self.set_node(node)),
            Change::SetZone(zone) => Ok(self.set_zone(zone)),
            Change::SetNetworks(networks) => Ok(self.set_networks(networks)),
            Change::SetLocalAddresses(addresses) => Ok(self.set_local_addresses(addresses)),
            Change::SetHealth(report) => Ok(self.set_health(report)),
            Change::RestoreHealth(report) => Ok(self.restore_health(report)),
            Change::ForgetHealth(source) => Ok(self.forget_health(&source)),
            Change::InitStart(_) | Change::KeepUnclaimed(_) => Ok(BTreeSet::new()),
            Change::InitDone(source) => Ok(self.confirm_health(&source)),
        }
    }

    /// The settings.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Verdicts on backends' health: what an embedder keeps over a restart.
    #[must_use]
    pub const fn health(&self) -> &HealthTable {
        &self.health
    }

    /// The capabilities of the datapath of this model.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The node's facts.
    #[must_use]
    pub const fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// The node's zone, if it is known.
    #[must_use]
    pub const fn zone(&self) -> Option<&ZoneName> {
        self.zone.as_ref()
    }

    /// Networks that a device of the node connects to.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// Addresses that devices of the node have; those of the [facts](NodeFacts::ips) need not be among them.
    #[must_use]
    pub const fn local_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.local_addresses
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

    /// The next service whose claim on its addresses was [met or lost](Claim) since this was last called, without a
    /// change of its own. Of several such events only the last one is told, and none of a service that changed since.
    pub fn poll_claim(&mut self) -> Option<(ServiceName, Claim)> {
        self.claims.pop_first()
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

    /// Every frontend of `service`: cluster, load-balancer and external addresses with each port, and node addresses of
    /// its [family](Service::node_port_family) with each node port and host port. None without addresses (headless,
    /// `ExternalName`).
    ///
    /// Node ports are on the [chosen addresses](Settings::node_port_addresses) of the node. External addresses that
    /// [must not be](Self::refused_external_ips) are left out.
    pub fn frontends<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = ServiceFrontend<'a>> {
        let node_ips = &self.node.ips;
        let of_family = |ip: &&IpAddr| service.node_port_family.is_none_or(|family| family == Family::of(**ip));
        let chosen = &self.settings.node_port_addresses;
        let has_node_ports = move |ip: &&IpAddr| chosen.is_empty() || chosen.iter().any(|net| net.contains(*ip));
        let has_host_ports = |ip: &&IpAddr| service.host_ips.is_some_and(|host_ips| host_ips.contain(**ip));
        let is_allowed = |ip: &&IpAddr| self.refusal_of_external_ip(**ip).is_none();
        service.ports.iter().flat_map(move |port| {
            let at = move |kind, port_number| {
                move |&ip: &IpAddr| ServiceFrontend {
                    addr: FrontendAddr::new(ip, port_number, port.protocol),
                    kind,
                    port,
                }
            };
            let node_port = port.node_port.into_iter().flat_map(move |number| {
                let ips = node_ips.iter().filter(of_family).filter(has_node_ports);
                ips.map(at(FrontendKind::NodePort, number))
            });
            let host_ips = node_ips.iter().filter(of_family).filter(has_host_ports);
            service
                .cluster_ips
                .iter()
                .map(at(FrontendKind::ClusterIp, port.port))
                .chain(service.load_balancer_ips.iter().map(at(FrontendKind::LoadBalancer, port.port)))
                .chain(service.external_ips.iter().filter(is_allowed).map(at(FrontendKind::ExternalIp, port.port)))
                .chain(node_port)
                .chain(host_ips.map(at(FrontendKind::HostPort, port.port)))
        })
    }

    /// Endpoint slices, in order of name, whether their services are there or not.
    pub fn endpoint_slices(&self) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices.values()
    }

    /// An endpoint slice.
    #[must_use]
    pub fn endpoint_slice(&self, name: &SliceName) -> Option<&EndpointSlice> {
        self.slices.get(name)
    }

    /// Endpoint slices of a service, in order of name.
    pub fn endpoint_slices_of(&self, service: &ServiceName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// Endpoints of one port of a service, in order of address. An address in two slices counts once: one that is
    /// not terminating wins.
    #[must_use]
    pub fn candidates(&self, service: &ServiceName, port: &ServicePort, family: Family) -> Vec<Candidate<'_>> {
        let mut found: BTreeMap<BackendAddr, &Endpoint> = BTreeMap::new();
        for slice in self.endpoint_slices_of(service) {
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
        let candidate = |(addr, endpoint)| Candidate {
            addr,
            endpoint,
            local: self.is_local(endpoint),
            health: self.health.health(&addr),
        };
        found.into_iter().map(candidate).collect()
    }

    /// The rules of a selection for `service`, for traffic under `policy`.
    #[must_use]
    pub fn rules(&self, service: &Service, policy: TrafficPolicy) -> Rules<'_> {
        Rules {
            policy,
            distribution: service.traffic_distribution,
            panic_threshold: service.panic_threshold.unwrap_or(self.settings.panic_threshold),
            node: self.node.name.as_ref(),
            zone: self.zone.as_ref(),
        }
    }

    /// Backends of one port of `service` that take new flows under `policy`, and why each other one does not.
    #[must_use]
    pub fn selection(&self, service: &Service, port: &ServicePort, family: Family, policy: TrafficPolicy) -> Selection {
        select(&self.candidates(&service.name, port, family), &self.rules(service, policy))
    }

    /// Whether the datapath carries this frontend of `service` at all.
    #[must_use]
    pub fn carries(&self, service: &Service, frontend: &ServiceFrontend<'_>) -> bool {
        self.capabilities.frontends.contains(&frontend.kind)
            && self.capabilities.protocols.contains(&frontend.addr.protocol)
            && self.capabilities.families.contains(&frontend.addr.family())
            && !self.needs_another_sctp_port(service, frontend)
    }

    fn is_local(&self, endpoint: &Endpoint) -> bool {
        match (&self.node.name, &endpoint.node) {
            (Some(here), Some(there)) => here == there,
            _ => true,
        }
    }

    fn set_networks(&mut self, networks: Vec<IpNet>) -> BTreeSet<ServiceName> {
        if networks == self.networks {
            return BTreeSet::new();
        }
        self.networks = networks;
        self.services.keys().cloned().collect()
    }

    fn set_zone(&mut self, zone: Option<ZoneName>) -> BTreeSet<ServiceName> {
        if zone == self.zone {
            return BTreeSet::new();
        }
        self.zone = zone;
        self.services.keys().cloned().collect()
    }

    fn replace_endpoints(&mut self, slice: EndpointSlice) -> Result<BTreeSet<ServiceName>, ModelError> {
        check_slice(&slice)?;
        let mut touched = self.remove_endpoints(&slice.name);
        touched.insert(slice.service.clone());
        self.slices_of.entry(slice.service.clone()).or_default().insert(slice.name.clone());
        if let Some(slices_at) = &mut self.slices_at {
            slices_at.extend(slice.endpoints.iter().map(|endpoint| (endpoint.ip, slice.name.clone())));
        }
        self.slices.insert(slice.name.clone(), slice);
        Ok(touched)
    }

    fn remove_endpoints(&mut self, name: &SliceName) -> BTreeSet<ServiceName> {
        let Some(slice) = self.slices.remove(name) else { return BTreeSet::new() };
        if let Some(slices_at) = &mut self.slices_at {
            for endpoint in &slice.endpoints {
                slices_at.remove(&(endpoint.ip, name.clone()));
            }
        }
        if let Some(names) = self.slices_of.get_mut(&slice.service) {
            names.remove(name);
            if names.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
        BTreeSet::from([slice.service])
    }
}
