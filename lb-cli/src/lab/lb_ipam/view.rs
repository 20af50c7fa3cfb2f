//! What an agent says about pools and services.

use std::net::IpAddr;

use lb_agent::api::{FrontendStatus, Pool, Service, ServiceKind};
use lb_testkit::lab::Node;

use super::super::{error::RunError, fleet::Fleet};

/// What the agent of one node says at one moment.
#[derive(Debug)]
pub(in crate::lab) struct View {
    pub(super) node: String,
    pub(super) pools: Vec<Pool>,
    pub(super) services: Vec<Service>,
}

impl View {
    pub(in crate::lab) fn of(fleet: &Fleet, node: Node<'_>) -> Result<Self, RunError> {
        let agent = fleet.ask(node.index())?;
        let silent = |source| RunError::Agent { node: node.name().into(), source };
        Ok(Self {
            node: node.name().into(),
            pools: agent.pools().map_err(silent)?,
            services: agent.services().map_err(silent)?,
        })
    }

    pub(super) fn pool(&self, name: &str) -> Result<&Pool, String> {
        let found = self.pools.iter().find(|pool| pool.name == name);
        found.ok_or_else(|| format!("there is no pool {name}"))
    }

    /// A service of the namespace `default`.
    pub(super) fn service(&self, name: &str) -> Result<&Service, String> {
        let found = self.services.iter().find(|service| service.name.strip_prefix("default/") == Some(name));
        found.ok_or_else(|| format!("there is no service {name}"))
    }

    /// The addresses that a service got, if it got all that it asked for and each leads to its backends.
    pub(super) fn addresses(&self, name: &str) -> Result<&[IpAddr], String> {
        let service = self.service(name)?;
        let is_active = |ip: &IpAddr| {
            let mut frontends = service.frontends.iter().filter(|frontend| frontend.ip == *ip);
            frontends.any(|frontend| frontend.status == FrontendStatus::Active && frontend.backends.active > 0)
        };
        let is_satisfied = service.ipam.as_ref().is_some_and(|ipam| ipam.satisfied);
        if !is_satisfied || service.external_ips.is_empty() || !service.external_ips.iter().all(is_active) {
            return Err(format!("{} ({})", service_line(service), refusal(service)));
        }
        Ok(&service.external_ips)
    }

    /// Why a service has no address.
    pub(super) fn refused(&self, name: &str, reason: &str) -> Result<String, String> {
        let service = self.service(name)?;
        let is_refused = service.ipam.as_ref().is_some_and(|ipam| !ipam.satisfied && ipam.reason == reason);
        let line = format!("{} ({})", service_line(service), refusal(service));
        if is_refused && service.external_ips.is_empty() { Ok(line) } else { Err(line) }
    }

    /// Where the addresses of a service come from.
    pub(super) fn pools_of(&self, name: &str) -> Result<Vec<&str>, String> {
        let ipam = self.service(name)?.ipam.as_ref().ok_or_else(|| format!("{name} got nothing from pools"))?;
        Ok(ipam.granted.iter().filter_map(|granted| granted.pool.as_deref()).collect())
    }
}

/// As `kubectl get ippools` has it.
pub(super) fn pool_line(pool: &Pool) -> String {
    let conflicting = if pool.conflicting { "True" } else { "False" };
    let Pool { name, disabled, counts, .. } = pool;
    format!("{name}: DISABLED {disabled}, CONFLICTING {conflicting}, IPS AVAILABLE {}", counts.available)
}

/// As `kubectl get services` has it.
pub(super) fn service_line(service: &Service) -> String {
    let name = service.name.strip_prefix("default/").unwrap_or(&service.name);
    let outside = if service.external_ips.is_empty() {
        if service.kind == ServiceKind::LoadBalancer { "<pending>".into() } else { "<none>".into() }
    } else {
        join(&service.external_ips)
    };
    format!("{name} {} {} {outside} {}", service.kind, join(&service.cluster_ips), service.ports.join(","))
}

fn refusal(service: &Service) -> String {
    let ipam = service.ipam.as_ref();
    ipam.map_or_else(|| "nothing from pools".into(), |ipam| format!("{}: {}", ipam.reason, ipam.message))
}

pub(super) fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_agent::api::{Algorithm, BackendCount, Frontend, FrontendKind, Granted, Ipam, Protocol, TrafficPolicy};

    fn echo(status: FrontendStatus, ipam: Option<Ipam>) -> Service {
        let external = ipam.iter().flat_map(|ipam| &ipam.granted).map(|granted| granted.address).collect::<Vec<_>>();
        let frontend = |&ip: &IpAddr| Frontend {
            ip,
            port: 8080,
            protocol: Protocol::Tcp,
            kind: FrontendKind::LoadBalancer,
            port_name: String::new(),
            backends: BackendCount { active: 2, total: 2 },
            status: status.clone(),
            cause: None,
        };
        Service {
            name: "default/echo-1".into(),
            kind: ServiceKind::LoadBalancer,
            cluster_ips: vec!["10.96.79.72".parse().unwrap()],
            headless: false,
            frontends: external.iter().map(frontend).collect(),
            external_ips: external,
            ipam,
            ports: vec!["8080/TCP".into()],
            health_check: None,
            algorithm: Algorithm::Random,
            affinity: None,
            external_traffic_policy: TrafficPolicy::default(),
            internal_traffic_policy: TrafficPolicy::default(),
            source_ranges: None,
            drain: "keep".into(),
            conditions: Vec::new(),
        }
    }

    fn satisfied() -> Ipam {
        let granted = Granted { address: "20.0.20.100".parse().unwrap(), pool: Some("blue-pool".into()) };
        Ipam { satisfied: true, reason: "satisfied".into(), message: String::new(), granted: vec![granted] }
    }

    fn refused() -> Ipam {
        let message = "no IPv4 address: pool `blue-pool` is full".into();
        Ipam { satisfied: false, reason: "out_of_ips".into(), message, granted: Vec::new() }
    }

    fn view(service: Service) -> View {
        View { node: "node-0".into(), pools: Vec::new(), services: vec![service] }
    }

    #[test]
    fn an_address_counts_once_it_leads_somewhere() {
        let given = view(echo(FrontendStatus::Active, Some(satisfied())));
        assert_eq!(given.addresses("echo-1").unwrap(), ["20.0.20.100".parse::<IpAddr>().unwrap()]);
        assert_eq!(given.pools_of("echo-1").unwrap(), ["blue-pool"]);
        assert!(given.addresses("echo-2").is_err() && given.refused("echo-1", "out_of_ips").is_err());
        for other in [
            echo(FrontendStatus::Pending, Some(satisfied())),
            echo(FrontendStatus::Active, Some(refused())),
            echo(FrontendStatus::Active, None),
        ] {
            assert!(view(other).addresses("echo-1").is_err());
        }
        let mut nowhere = echo(FrontendStatus::Active, Some(satisfied()));
        nowhere.frontends[0].backends.active = 0;
        assert!(view(nowhere).addresses("echo-1").is_err());
    }

    #[test]
    fn a_refusal_counts_with_its_reason_and_without_an_address() {
        let view = view(echo(FrontendStatus::Active, Some(refused())));
        assert_eq!(
            view.refused("echo-1", "out_of_ips").unwrap(),
            "echo-1 LoadBalancer 10.96.79.72 <pending> 8080/TCP (out_of_ips: no IPv4 address: pool `blue-pool` is full)"
        );
        assert!(view.refused("echo-1", "no_pool").is_err());
    }

    #[test]
    fn lines_are_those_of_kubectl() {
        let line = service_line(&echo(FrontendStatus::Active, Some(satisfied())));
        assert_eq!(line, "echo-1 LoadBalancer 10.96.79.72 20.0.20.100 8080/TCP");
        let internal = Service { kind: ServiceKind::ClusterIp, ..echo(FrontendStatus::Active, None) };
        assert_eq!(service_line(&internal), "echo-1 ClusterIP 10.96.79.72 <none> 8080/TCP");
    }
}
