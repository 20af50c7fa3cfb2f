//! The rules of the agent's allocator.

use lb_ipam::{AddressRange, IpNet, Reservation, Settings};

use crate::config::Config;

/// Both families always: that a node has no address of one for a moment must not take it from services.
pub(super) fn settings(config: &Config) -> Settings {
    let mut reserved = lb_k8s::unservable();
    let node = &config.node;
    reserved.extend(
        node.ips
            .iter()
            .map(|&ip| Reservation { range: AddressRange::single(ip), why: "an address of this node".into() }),
    );
    let part = |cidr: IpNet, what: &str| Reservation {
        range: AddressRange::of_net(cidr),
        why: format!("part of the {what} CIDR {cidr}"),
    };
    reserved.extend(node.cluster_cidrs.iter().map(|&cidr| part(cidr, "cluster")));
    reserved.extend(config.service_cidrs.iter().map(|&cidr| part(cidr, "service")));
    let mut settings = Settings::default().with_reserved(reserved);
    settings.classes.named.extend(config.load_balancer_classes.iter().cloned());
    settings
}
