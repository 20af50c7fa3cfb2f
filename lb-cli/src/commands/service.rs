//! `lb service`.

use std::collections::{BTreeMap, BTreeSet};

use lb_agent::api::{Client, Condition, Frontend, FrontendStatus, Service, ServiceKind};

use crate::{
    cli::ServiceListArgs,
    exit::{Failure, Outcome, Verdict},
    output::{self, Table},
};

pub(super) fn list(args: &ServiceListArgs) -> Outcome {
    let mut services = Client::new(&args.ask.socket).services()?;
    if let Some(name) = &args.name {
        let name = super::full_name(name);
        services.retain(|service| service.name == name);
        if services.is_empty() {
            return Err(Failure::NotFound(format!("the agent knows no service {name}")));
        }
    }
    output::write(args.ask.output, &services, || if args.frontends { frontends(&services) } else { table(&services) })?;
    Ok(Verdict::Fine)
}

fn table(services: &[Service]) -> String {
    let heading =
        ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "ALGORITHM", "BACKENDS", "STATUS", "CONDITIONS"];
    let mut table = Table::new(heading);
    for service in services {
        table.row([
            service.name.clone(),
            service.kind.to_string(),
            joined(&service.cluster_ips, if service.headless { "None" } else { "<none>" }),
            joined(
                &service.external_ips,
                if service.kind == ServiceKind::LoadBalancer { "<pending>" } else { "<none>" },
            ),
            joined(&service.ports, "<none>"),
            algorithm(service),
            distinct(service.frontends.iter().map(backends)),
            statuses(service),
            conditions(service, service.frontends.iter().find(|frontend| frontend.cause.is_some())),
        ]);
    }
    if table.is_empty() { "no services\n".into() } else { table.to_string() }
}

/// With commas and without spaces, so that a column is one word.
fn joined(items: &[impl ToString], none: &str) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() { none.into() } else { items.join(",") }
}

fn distinct(items: impl Iterator<Item = String>) -> String {
    items.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

/// `active`, or how many frontends are what.
fn statuses(service: &Service) -> String {
    let mut counts: BTreeMap<&FrontendStatus, usize> = BTreeMap::new();
    service.frontends.iter().for_each(|frontend| *counts.entry(&frontend.status).or_default() += 1);
    match counts.len() {
        1 => distinct(counts.keys().map(ToString::to_string)),
        _ => distinct(counts.iter().map(|(status, count)| format!("{count} {status}"))),
    }
}

fn frontends(services: &[Service]) -> String {
    let mut table = Table::new(["NAME", "FRONTEND", "TYPE", "ALGORITHM", "BACKENDS", "STATUS", "CONDITIONS"]);
    for service in services {
        if service.frontends.is_empty() {
            let none = String::new;
            table.row([service.name.clone(), none(), none(), none(), none(), none(), conditions(service, None)]);
        }
        for frontend in &service.frontends {
            table.row(row(service, frontend));
        }
    }
    if table.is_empty() { "no services\n".into() } else { table.to_string() }
}

fn row(service: &Service, frontend: &Frontend) -> [String; 7] {
    let name = if frontend.port_name.is_empty() {
        service.name.clone()
    } else {
        format!("{}:{}", service.name, frontend.port_name)
    };
    let address = std::net::SocketAddr::new(frontend.ip, frontend.port);
    [
        name,
        format!("{address}/{}", frontend.protocol),
        frontend.kind.to_string(),
        algorithm(service),
        backends(frontend),
        frontend.status.to_string(),
        conditions(service, Some(frontend)),
    ]
}

fn algorithm(service: &Service) -> String {
    match &service.affinity {
        Some(_) => format!("{}, affinity", service.algorithm),
        None => service.algorithm.to_string(),
    }
}

fn backends(frontend: &Frontend) -> String {
    format!("{} ({} active)", frontend.backends.total, frontend.backends.active)
}

fn conditions(service: &Service, frontend: Option<&Frontend>) -> String {
    let said = |condition: &Condition| format!("{}({})", condition.kind, condition.message);
    let mut all: Vec<String> = service.conditions.iter().map(said).collect();
    all.extend(frontend.and_then(|frontend| frontend.cause.as_ref()).map(|cause| format!("Failed({cause})")));
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use lb_agent::api::{Affinity, Algorithm, BackendCount, FrontendKind, Protocol};

    use super::*;

    fn service() -> Service {
        let frontend = Frontend {
            ip: "10.96.0.10".parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            kind: FrontendKind::ClusterIp,
            port_name: "http".into(),
            backends: BackendCount { active: 1, total: 2 },
            status: FrontendStatus::Active,
            cause: None,
        };
        Service {
            name: "default/web".into(),
            kind: ServiceKind::ClusterIp,
            cluster_ips: vec!["10.96.0.10".parse().unwrap()],
            external_ips: Vec::new(),
            ipam: None,
            ports: vec!["80:30080/TCP".into(), "53/UDP".into()],
            frontends: vec![frontend],
            algorithm: Algorithm::Random,
            affinity: None,
            headless: false,
            conditions: Vec::new(),
        }
    }

    fn words(text: &str) -> Vec<&str> {
        text.lines().nth(1).unwrap().split_whitespace().collect()
    }

    #[test]
    fn a_service_is_a_line() {
        let mut service = service();
        let line = table(&[service.clone()]);
        let expected = [
            "default/web",
            "ClusterIP",
            "10.96.0.10",
            "<none>",
            "80:30080/TCP,53/UDP",
            "random",
            "2",
            "(1",
            "active)",
            "active",
            "-",
        ];
        assert_eq!(words(&line), expected);
        service.kind = ServiceKind::LoadBalancer;
        assert_eq!(words(&table(&[service.clone()]))[3], "<pending>");
        service.external_ips = vec!["20.0.20.100".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(words(&table(&[service.clone()]))[3], "20.0.20.100,2001:db8::1");
        let mut failed = service.frontends[0].clone();
        (failed.status, failed.cause) = (FrontendStatus::Failed, Some("table full".into()));
        service.frontends.push(failed);
        let text = table(&[service]);
        assert!(text.ends_with("2 (1 active)   1 active, 1 failed   Failed(table full)\n"), "{text}");
        assert_eq!(table(&[]), "no services\n");
    }

    #[test]
    fn a_frontend_is_a_line() {
        let text = frontends(&[service()]);
        let expected =
            ["default/web:http", "10.96.0.10:80/tcp", "ClusterIP", "random", "2", "(1", "active)", "active", "-"];
        assert_eq!(words(&text), expected);
    }

    #[test]
    fn every_shortcoming_is_in_its_line() {
        let mut service = service();
        service.affinity = Some(Affinity { timeout_s: 10, prefix_v4: 32, prefix_v6: 128 });
        service.conditions = vec![Condition { kind: "Degraded".into(), message: "no maglev".into() }];
        service.frontends[0].cause = Some("table full".into());
        for text in [table(&[service.clone()]), frontends(&[service.clone()])] {
            assert!(text.ends_with("Degraded(no maglev), Failed(table full)\n"), "{text}");
            assert!(text.contains("random, affinity"));
        }
        service.frontends.clear();
        assert!(frontends(&[service]).ends_with("Degraded(no maglev)\n"));
        assert_eq!(frontends(&[]), "no services\n");
    }
}
