//! What frontends say about packets beside the choice of a backend.

use alloc::sync::Arc;
use core::net::IpAddr;

use super::{ExternalIpRefusal, Model, ServiceFrontend};
use crate::{
    addr::{Family, FrontendAddr, FrontendKind, Protocol},
    datapath::SocketCapability,
    service::{Service, ServicePort, TrafficPolicy},
    state::{Guard, GuardedTraffic, OtherPorts},
};

impl Model {
    /// Who may use the frontends of `service` of this kind and family; `None` for everybody, and for a datapath that
    /// cannot check sources.
    #[must_use]
    pub fn guard(&self, service: &Service, kind: FrontendKind, family: Family) -> Option<Guard> {
        let ranges = service.source_ranges.as_ref().filter(|ranges| ranges.restrict(family))?;
        let traffic = if kind.is_external() { GuardedTraffic::All } else { GuardedTraffic::Outside };
        self.capabilities.source_ranges.then(|| Guard { ranges: Arc::clone(ranges), traffic })
    }

    /// What a frontend of this kind at `ip` says about other ports of the address.
    ///
    /// An address of a host is the host's: packets to its other ports are passed on. A host has each address of this
    /// node, and may have any address of a [network](Self::networks) that the node is connected to. Other addresses are
    /// virtual: a cluster address refuses its other ports, and one for clients outside drops them.
    #[must_use]
    pub fn says_of_other_ports(&self, kind: FrontendKind, ip: IpAddr) -> OtherPorts {
        let is_of_a_host = self.node.ips.contains(&ip) || self.networks().iter().any(|net| net.contains(&ip));
        match kind {
            _ if is_of_a_host || !self.capabilities.other_ports => OtherPorts::Pass,
            FrontendKind::NodePort | FrontendKind::HostPort => OtherPorts::Pass,
            FrontendKind::ClusterIp => OtherPorts::Reject,
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp => OtherPorts::Drop,
        }
    }

    /// The fate of packets to `ip` at ports and protocols without a frontend, if `ip` has a frontend that the datapath
    /// carries. If frontends disagree, the greatest counts.
    #[must_use]
    pub fn other_ports(&self, ip: IpAddr) -> Option<OtherPorts> {
        self.carried_kinds_at(ip).map(|kind| self.says_of_other_ports(kind, ip)).max()
    }

    /// Whether the node answers ICMP echo requests to `ip`: if the [setting](super::Settings::answer_ping) says so, to
    /// each address of a service that is not one of a host. Those are the node's own, and external addresses in a
    /// [network](Self::networks) that the node is connected to: another host there may have them. An ingress address in
    /// such a network is answered, since announcers take it from there.
    #[must_use]
    pub fn answers_ping(&self, ip: IpAddr) -> bool {
        self.carried_kinds_at(ip).any(|kind| self.says_of_ping(kind, ip))
    }

    pub(crate) fn says_of_ping(&self, kind: FrontendKind, ip: IpAddr) -> bool {
        let is_asked = self.settings.answer_ping && self.capabilities.ping;
        let may_be_a_hosts =
            || kind == FrontendKind::ExternalIp && self.networks().iter().any(|network| network.contains(&ip));
        is_asked && !is_of_node(kind) && !self.node.ips.contains(&ip) && !may_be_a_hosts()
    }

    /// Whether sockets that use `service` are left alone, so that their packets say who the client is.
    pub(crate) fn leaves_sockets(&self, service: &Service) -> bool {
        let connect = matches!(self.capabilities.sockets, SocketCapability::Connect { .. });
        connect && service.affinity_by_source && service.affinity.is_some() && self.capabilities.affinity.is_some()
    }

    /// Whether pods that come in through an uplink are translated.
    pub(crate) fn translates_pods(&self, kind: FrontendKind, policy: TrafficPolicy) -> bool {
        self.capabilities.uplinks && kind.is_external() && policy == TrafficPolicy::Cluster
    }

    fn carried_kinds_at(&self, ip: IpAddr) -> impl Iterator<Item = FrontendKind> {
        self.owners.range(FrontendAddr::all_at(ip)).filter_map(|(addr, owner)| {
            let service = self.service(&owner.port.service)?;
            let is_port = |port: &&ServicePort| port.name == owner.port.port && port.protocol == addr.protocol;
            let port = service.ports.iter().find(is_port)?;
            let frontend = ServiceFrontend { addr: *addr, kind: owner.kind, port };
            self.carries(service, &frontend).then_some(owner.kind)
        })
    }

    /// Whether the datapath would have to rewrite the port of SCTP packets to this frontend, and cannot.
    pub(super) fn needs_another_sctp_port(&self, service: &Service, frontend: &ServiceFrontend<'_>) -> bool {
        let addr = frontend.addr;
        let is_fixed = addr.protocol == Protocol::Sctp && !self.capabilities.sctp_ports;
        let has_another = || {
            let candidates = self.candidates(&service.name, frontend.port, addr.family());
            candidates.iter().any(|candidate| candidate.addr.port != addr.port)
        };
        is_fixed && has_another()
    }

    /// Why `ip` cannot be an external address of a service, if it cannot.
    pub(super) fn refusal_of_external_ip(&self, ip: IpAddr) -> Option<ExternalIpRefusal> {
        if self.node.is_pod(ip) {
            return Some(ExternalIpRefusal::OfPods);
        }
        let is_of_node = self.node.ips.contains(&ip) || self.local_addresses.contains(&ip);
        let is_refused = is_of_node && !self.settings.external_ips_of_node;
        is_refused.then_some(ExternalIpRefusal::OfNode)
    }

    /// External addresses of `service` that have no frontends, and why: whoever may write a service would take traffic
    /// that is meant for others (CVE-2020-8554).
    pub fn refused_external_ips(&self, service: &Service) -> impl Iterator<Item = (IpAddr, ExternalIpRefusal)> {
        service.external_ips.iter().filter_map(|&ip| Some((ip, self.refusal_of_external_ip(ip)?)))
    }
}

const fn is_of_node(kind: FrontendKind) -> bool {
    matches!(kind, FrontendKind::NodePort | FrontendKind::HostPort)
}
