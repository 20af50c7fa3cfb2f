//! Services that get less from a datapath than they ask for.

use alloc::collections::BTreeSet;

use super::{Degraded, Model};
use crate::{
    addr::FrontendKind,
    datapath::SocketCapability,
    service::{Algorithm, DrainPolicy, Service, TrafficPolicy},
    sources::SourceRanges,
};

impl Model {
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
            if caps.protocols.contains(&frontend.addr.protocol) && self.needs_another_sctp_port(service, &frontend) {
                found.insert(Degraded::SctpPort(frontend.addr));
            }
            let restricts = |ranges: &SourceRanges| ranges.restrict(frontend.addr.family());
            if !caps.source_ranges && service.source_ranges.as_deref().is_some_and(restricts) {
                found.insert(Degraded::SourceRanges);
            }
            if caps.sockets_of(frontend.addr.protocol) == SocketCapability::Egress
                && self.node.ips.contains(&frontend.addr.ip)
                && self.carries(service, &frontend)
            {
                let (protocol, has_cluster_ip) = (frontend.addr.protocol, !service.cluster_ips.is_empty());
                found.insert(Degraded::OwnAddress { protocol, has_cluster_ip });
            }
            let wants_local = service.external_traffic_policy == TrafficPolicy::Local;
            if wants_local && follows_external_policy(frontend.kind) && !caps.external_traffic_policy_local {
                found.insert(Degraded::ExternalTrafficPolicyLocal);
            }
        }
        found.extend(self.refused_external_ips(service).map(|(ip, refusal)| Degraded::ExternalIp { ip, refusal }));
        if self.drain(service) != service.drain {
            found.insert(Degraded::Drain(service.drain));
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

    /// The drain policy of `service` with this datapath.
    #[must_use]
    pub fn drain(&self, service: &Service) -> DrainPolicy {
        if self.capabilities.drain { service.drain } else { DrainPolicy::Keep }
    }
}

/// A host port has its own backend whatever the policy says.
fn follows_external_policy(kind: FrontendKind) -> bool {
    kind.is_external() && kind != FrontendKind::HostPort
}
