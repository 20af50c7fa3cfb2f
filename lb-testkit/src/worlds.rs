//! Services by the thousand, for benches and comparisons.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use lb_core::{
    addr::{BackendAddr, Protocol},
    decision::{Entry, Packet},
    desired::Desired,
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    model::{Change, Model},
    name::{NodeName, ServiceName, SliceName},
    node::NodeFacts,
    service::{Algorithm, Service, ServicePort},
};

/// Port of every frontend of a generated world.
pub const FRONTEND_PORT: u16 = 80;
/// Port of every backend of a generated world.
pub const BACKEND_PORT: u16 = 8080;

/// A world of equal services: TCP, one ClusterIP each, `endpoints` backends that no other service has.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Number of services, at most 1,000,000.
    pub services: u32,
    /// Backends of each.
    pub endpoints: u32,
    /// How they choose.
    pub algorithm: Algorithm,
}

impl World {
    /// `services` services of four random backends each: the size that kube-proxy's figures are for.
    #[must_use]
    pub const fn of(services: u32) -> Self {
        Self { services, endpoints: 4, algorithm: Algorithm::Random }
    }

    /// Every change that makes the world, node facts first.
    pub fn changes(self) -> impl Iterator<Item = Change> {
        let services = (0..self.services).flat_map(move |n| {
            [Change::UpsertService(self.service(n)), Change::ReplaceEndpoints(self.slice(n, 0..self.endpoints))]
        });
        std::iter::once(Change::SetNode(node())).chain(services)
    }

    /// The world in a model, and the state that follows from it.
    #[must_use]
    pub fn build(self) -> (Model, Desired) {
        let (mut model, mut desired) = (Model::default(), Desired::default());
        for change in self.changes() {
            model.apply(change).expect("a world has no conflicts");
        }
        let all: BTreeSet<ServiceName> = (0..self.services).map(|n| self.name(n)).collect();
        desired.update(&model, &all).expect("a world has fewer objects than there are ids");
        (model, desired)
    }

    /// The name of service `n`.
    #[must_use]
    pub fn name(self, n: u32) -> ServiceName {
        ServiceName::new("world", &format!("svc-{n}"))
    }

    /// The virtual address of service `n`.
    #[must_use]
    pub fn vip(self, n: u32) -> IpAddr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 1).to_bits() + n).into()
    }

    /// Service `n`.
    #[must_use]
    pub fn service(self, n: u32) -> Service {
        let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: FRONTEND_PORT, node_port: None };
        Service {
            cluster_ips: vec![self.vip(n)],
            ports: vec![port],
            algorithm: Some(self.algorithm),
            ..Service::new(self.name(n))
        }
    }

    /// A packet from a pod on the node to service `n`.
    #[must_use]
    pub fn packet(self, n: u32) -> Packet {
        Packet {
            entry: Entry::PodDevice,
            protocol: Protocol::Tcp,
            source: Ipv4Addr::new(10, 244, 0, 7).into(),
            source_port: 40_000,
            destination: self.vip(n),
            destination_port: FRONTEND_PORT,
        }
    }

    /// The endpoints `which` of service `n`; numbers from `self.endpoints` on are spare ones for changes, up to 16.
    #[must_use]
    pub fn slice(self, n: u32, which: impl IntoIterator<Item = u32>) -> EndpointSlice {
        let first = Ipv4Addr::new(11, 0, 0, 1).to_bits() + n * (self.endpoints + 16);
        let endpoint =
            |k| Endpoint { node: Some(NodeName::new("there")), ..Endpoint::new(Ipv4Addr::from_bits(first + k).into()) };
        EndpointSlice {
            name: SliceName::new("world", &format!("svc-{n}-1")),
            service: self.name(n),
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: BACKEND_PORT }],
            endpoints: which.into_iter().map(endpoint).collect(),
        }
    }
}

/// `count` backends of equal weight, for tables without a world around them.
#[must_use]
pub fn backends(count: u32) -> Vec<(BackendAddr, u16)> {
    (0..count).map(|n| (backend(n), Endpoint::DEFAULT_WEIGHT)).collect()
}

/// Backend `n` of [`backends`].
#[must_use]
pub fn backend(n: u32) -> BackendAddr {
    BackendAddr::new(Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + n).into(), BACKEND_PORT, Protocol::Tcp)
}

/// The node of a generated world.
#[must_use]
pub fn node() -> NodeFacts {
    NodeFacts {
        name: Some(NodeName::new("here")),
        ips: vec![Ipv4Addr::new(172, 18, 0, 11).into()],
        cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a prefix")],
    }
}
