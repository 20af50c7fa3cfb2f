//! `lb service`.

use crate::{
    api::{Client, Condition, Frontend, Service},
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
    output::write(args.ask.output, &services, || table(&services))?;
    Ok(Verdict::Fine)
}

fn table(services: &[Service]) -> String {
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
    let algorithm = match &service.affinity {
        Some(_) => format!("{}, affinity", service.algorithm),
        None => service.algorithm.clone(),
    };
    [
        name,
        format!("{address}/{}", frontend.protocol),
        frontend.kind.clone(),
        algorithm,
        format!("{} ({} active)", frontend.backends.total, frontend.backends.active),
        frontend.status.clone(),
        conditions(service, Some(frontend)),
    ]
}

fn conditions(service: &Service, frontend: Option<&Frontend>) -> String {
    let said = |condition: &Condition| format!("{}({})", condition.kind, condition.message);
    let mut all: Vec<String> = service.conditions.iter().map(said).collect();
    all.extend(frontend.and_then(|frontend| frontend.cause.as_ref()).map(|cause| format!("Failed({cause})")));
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Affinity, BackendCount};

    fn service() -> Service {
        let frontend = Frontend {
            ip: "10.96.0.10".parse().unwrap(),
            port: 80,
            protocol: "tcp".into(),
            kind: "ClusterIP".into(),
            port_name: "http".into(),
            backends: BackendCount { active: 1, total: 2 },
            status: "active".into(),
            cause: None,
        };
        Service {
            name: "default/web".into(),
            frontends: vec![frontend],
            algorithm: "random".into(),
            affinity: None,
            conditions: Vec::new(),
        }
    }

    #[test]
    fn a_frontend_is_a_line() {
        let text = table(&[service()]);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected =
            ["default/web:http", "10.96.0.10:80/tcp", "ClusterIP", "random", "2", "(1", "active)", "active", "-"];
        assert_eq!(words, expected);
    }

    #[test]
    fn every_shortcoming_is_in_its_line() {
        let mut service = service();
        service.affinity = Some(Affinity { timeout_s: 10, prefix_v4: 32, prefix_v6: 128 });
        service.conditions = vec![Condition { kind: "Degraded".into(), message: "no maglev".into() }];
        service.frontends[0].cause = Some("table full".into());
        let text = table(&[service.clone()]);
        assert!(text.ends_with("Degraded(no maglev), Failed(table full)\n"), "{text}");
        assert!(text.contains("random, affinity"));
        service.frontends.clear();
        assert!(table(&[service]).ends_with("Degraded(no maglev)\n"));
        assert_eq!(table(&[]), "no services\n");
    }
}
