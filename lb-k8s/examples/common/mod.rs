//! The services that the examples measure with.

use std::net::{IpAddr, Ipv4Addr};

use lb_core::{
    addr::Protocol,
    endpoint::Endpoint,
    name::{NodeName, ServiceName},
    service::{Service, ServicePort},
};
use lb_k8s::write;

const ENDPOINTS: u32 = 4;

/// Service number `index` and its slice, as YAML.
pub(crate) fn manifest(index: u32) -> Result<String, write::WriteError> {
    let address = |network: u32, host: u32| IpAddr::V4(Ipv4Addr::from((network << 24) + host));
    let mut service = Service::new(ServiceName::new("default", &format!("service-{index}")));
    service.cluster_ips = vec![address(11, index + 1)];
    service.ports = vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }];
    let endpoint = |number| {
        let node = Some(NodeName::new(&format!("node-{}", number % 3)));
        Endpoint { node, ..Endpoint::new(address(12, index * ENDPOINTS + number + 1)) }
    };
    let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
    write::service_with_endpoints(&service, &endpoints, |_| 8080)
}
