//! The services and pods that cases are about.

use std::net::IpAddr;

use lb_core::{
    addr::{Family, Protocol},
    affinity::Affinity,
    endpoint::{Conditions, Endpoint, EndpointSlice, SlicePort},
    name::{NodeName, ServiceName, SliceName},
    service::{Algorithm, Service, ServicePort},
};

use crate::lab::{PodSpec, topology};

/// Port of the frontends, TCP and UDP.
pub(super) const FRONT_PORT: u16 = 80;
/// Port of the servers, HTTP and UDP.
pub(super) const BACK_PORT: u16 = 8080;
/// A second port that they serve on.
pub(super) const OTHER_BACK_PORT: u16 = 9090;

/// The pods of every stage with their nodes. The datapath is on node 0; `client` is the pod that sends. A stage of two
/// nodes lacks the last one.
const PODS: [(&str, usize); 7] = [("client", 0), ("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 1), ("f", 2)];

/// Index of the pod that sends.
pub(super) const CLIENT_POD: usize = 0;
/// Index of a pod of another node.
pub(super) const POD_ELSEWHERE: usize = 5;
/// Index of a pod that sends, on each node of three.
pub(super) const CLIENTS: [usize; 3] = [CLIENT_POD, POD_ELSEWHERE, 6];

/// The pods of this many nodes.
pub(super) fn pod_specs(nodes: usize) -> impl Iterator<Item = PodSpec> {
    let serve = |pod: PodSpec, port| pod.http(port).udp(port);
    PODS.into_iter()
        .filter(move |(_, node)| *node < nodes)
        .map(move |(name, node)| [BACK_PORT, OTHER_BACK_PORT].into_iter().fold(PodSpec::new(name, node), serve))
}

/// Address of a pod of [`PODS`], with or without a lab.
pub(super) fn pod_ip(name: &str, family: Family) -> IpAddr {
    let (node, index) = place(name);
    topology::pod_ip(node, index, family)
}

/// The pod that has this address.
pub(super) fn pod_at(ip: IpAddr) -> Option<&'static str> {
    PODS.into_iter().map(|(name, _)| name).find(|name| pod_ip(name, Family::of(ip)) == ip)
}

/// Name and node of the pod with this index.
pub(super) fn pod(index: usize) -> (&'static str, usize) {
    PODS[index]
}

/// Node of a pod, and its place among that node's pods.
fn place(name: &str) -> (usize, usize) {
    let position = PODS.iter().position(|(pod, _)| *pod == name).expect("cases name pods of the stage");
    let node = PODS[position].1;
    (node, PODS[..position].iter().filter(|(_, other)| *other == node).count())
}

/// Addresses of a service: each family has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vip {
    pub(super) v4: [u8; 4],
    pub(super) v6: [u16; 8],
}

impl Vip {
    /// Cluster addresses that end in `number`.
    pub(super) const fn cluster(number: u8) -> Self {
        Self { v4: [10, 96, 0, number], v6: [0xfd00, 0x10, 0x96, 0, 0, 0, 0, number as u16] }
    }

    /// Ingress and external addresses that end in `number`.
    pub(super) const fn ingress(number: u8) -> Self {
        Self { v4: [20, 0, 20, number], v6: [0xfd00, 0x20, 0, 0x20, 0, 0, 0, number as u16] }
    }

    pub(super) fn ip(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    fn ips(self) -> Vec<IpAddr> {
        topology::FAMILIES.map(|family| self.ip(family)).into()
    }
}

/// The cluster address of most cases.
pub(super) const WEB: Vip = Vip::cluster(10);

/// A service in both families with one TCP and one UDP port.
pub(super) fn service(name: &str, vip: Vip) -> Service {
    Service {
        cluster_ips: vip.ips(),
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        ..Service::new(named(name))
    }
}

/// [`service`] at [`WEB`].
pub(super) fn web() -> Service {
    service("web", WEB)
}

pub(super) fn named(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn port(protocol: Protocol) -> ServicePort {
    ServicePort { name: protocol.as_str().into(), protocol, port: FRONT_PORT, node_port: None }
}

/// Chain setters for what cases vary.
pub(super) trait With: Sized {
    fn external_ips(self, vip: Vip) -> Self;
    fn load_balancer_ips(self, vip: Vip) -> Self;
    fn algorithm(self, algorithm: Algorithm) -> Self;
    fn affinity(self, affinity: Affinity) -> Self;
}

impl With for Service {
    fn external_ips(mut self, vip: Vip) -> Self {
        self.external_ips = vip.ips();
        self
    }

    fn load_balancer_ips(mut self, vip: Vip) -> Self {
        self.load_balancer_ips = vip.ips();
        self
    }

    fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = Some(algorithm);
        self
    }

    fn affinity(mut self, affinity: Affinity) -> Self {
        self.affinity = Some(affinity);
        self
    }
}

/// The endpoints of a service: these pods, in both families, on [`BACK_PORT`].
pub(super) fn endpoints(service: &str, pods: &[&str]) -> EndpointSlice {
    let pods: Vec<_> = pods.iter().map(|pod| (*pod, Endpoint::DEFAULT_WEIGHT)).collect();
    weighted(service, &pods, BACK_PORT)
}

/// The endpoints of a service in the middle of a rolling update: those that are on their way out, which may still
/// serve, and those that are ready.
pub(super) fn rolling(service: &str, out: &[&str], serving: bool, ready: &[&str]) -> EndpointSlice {
    let mut slice = endpoints(service, out);
    for endpoint in &mut slice.endpoints {
        endpoint.conditions = Conditions { ready: false, serving, terminating: true };
    }
    slice.endpoints.extend(endpoints(service, ready).endpoints);
    slice
}

/// The endpoints of a service with weights.
pub(super) fn weighted(service: &str, pods: &[(&str, u16)], back_port: u16) -> EndpointSlice {
    let slice_port = |protocol: Protocol| SlicePort { name: protocol.as_str().into(), protocol, port: back_port };
    let endpoints = topology::FAMILIES.into_iter().flat_map(|family| {
        pods.iter().map(move |&(pod, weight)| Endpoint {
            node: Some(NodeName::new(&format!("node-{}", place(pod).0))),
            weight,
            ..Endpoint::new(pod_ip(pod, family))
        })
    });
    EndpointSlice {
        name: SliceName::new("default", service),
        service: named(service),
        ports: vec![slice_port(Protocol::Tcp), slice_port(Protocol::Udp)],
        endpoints: endpoints.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_the_addresses_that_a_lab_gives_them() {
        assert_eq!(pod_ip("client", Family::V4).to_string(), "10.244.0.10");
        assert_eq!(pod_ip("d", Family::V6).to_string(), "fd00:10:244:1::11");
        assert_eq!(pod_at(pod_ip("e", Family::V4)), Some("e"));
        assert_eq!(CLIENTS.map(pod), [("client", 0), ("e", 1), ("f", 2)]);
    }
}
