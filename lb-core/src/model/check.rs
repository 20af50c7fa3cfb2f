//! Checks of single objects.

use core::net::IpAddr;

use super::ModelError;
use crate::{
    endpoint::EndpointSlice,
    service::{DrainPolicy, Service},
};

pub(super) fn check_fields(service: &Service) -> Result<(), ModelError> {
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
    if service.health_check_node_port == Some(0) {
        return out_of_range("health-check node port", 0, "1..=65535");
    }
    if let Some(percent) = service.panic_threshold.filter(|percent| *percent > 100) {
        return out_of_range("panic threshold in per cent", percent.into(), "0..=100");
    }
    if let DrainPolicy::For(time) = service.drain
        && time.as_secs() == 0
    {
        return out_of_range("time to drain in seconds", 0, "at least 1");
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

pub(super) fn check_slice(slice: &EndpointSlice) -> Result<(), ModelError> {
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
