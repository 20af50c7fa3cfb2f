//! What a load balancer in front of the nodes asks each of them.

use alloc::{collections::BTreeSet, vec::Vec};
use core::net::IpAddr;

use super::Model;
use crate::{
    addr::Family,
    selection::select,
    service::{Service, ServicePort, TrafficPolicy},
};

impl Model {
    /// How many endpoints of this node take new flows of `service` because they are ready: the answer of its
    /// [health check](Service::health_check), as kube-proxy counts them.
    ///
    /// Terminating endpoints do not count, although they may still serve: the load balancer is to send new flows
    /// elsewhere. Ports are counted together, so that an endpoint of several ports is one. A pod of both families has
    /// an endpoint in each, so that the family that has more of them counts.
    #[must_use]
    pub fn ready_local_endpoints(&self, service: &Service) -> usize {
        let of_family = |family| {
            let ips = service.ports.iter().flat_map(|port| self.ready_local(service, port, family));
            ips.collect::<BTreeSet<IpAddr>>().len()
        };
        of_family(Family::V4).max(of_family(Family::V6))
    }

    fn ready_local(&self, service: &Service, port: &ServicePort, family: Family) -> Vec<IpAddr> {
        let candidates = self.candidates(&service.name, port, family);
        let usable = select(&candidates, &self.rules(service, TrafficPolicy::Local)).usable;
        let is_usable = |addr| usable.binary_search_by_key(&addr, |usable| usable.addr).is_ok();
        let ready = candidates.iter().filter(|candidate| candidate.endpoint.conditions.ready);
        ready.map(|candidate| candidate.addr).filter(|addr| is_usable(*addr)).map(|addr| addr.ip).collect()
    }
}
