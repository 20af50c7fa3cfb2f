//! `lb service`.

use std::collections::{BTreeMap, BTreeSet};

use lb_agent::api::{
    Affinity, Backend, Client, ClientError, Condition, Frontend, FrontendStatus, HealthCheck, Service, ServiceKind,
    SourceRanges,
};
use serde::Serialize;

use crate::{
    cli::{ServiceDescribeArgs, ServiceGetArgs, ServiceListArgs, ServiceName},
    commands::{
        backend,
        watch::{self, Watched},
    },
    exit::{Failure, Outcome, Verdict},
    names::{Selection, full_name},
    output::{self, ListFormat, Table, printable},
};

pub(super) fn list(args: &ServiceListArgs) -> Outcome {
    let selection = Selection::new(args.name.as_deref(), &args.namespace, args.all_namespaces)?;
    let client = args.ask.reach.client()?;
    let services = selected(&client, &selection)?;
    if args.watch {
        return watch::follow(&client, args.ask.output, services, |client| matching(client, &selection));
    }
    output::write_list(args.ask.output, &services, named, |wide| {
        if services.is_empty() {
            selection.none("services")
        } else if args.frontends {
            frontends(&services, wide)
        } else {
            table(&services, wide)
        }
    })?;
    Ok(Verdict::Fine)
}

pub(super) fn get(args: &ServiceGetArgs) -> Outcome {
    let client = args.ask.reach.client()?;
    let selection = Selection::One(args.service.full()?);
    let services = selected(&client, &selection)?;
    if args.watch {
        return watch::follow(&client, args.ask.output, services, |client| matching(client, &selection));
    }
    let service = &services[0];
    match args.ask.output.whole() {
        // One object rather than a list of one, as for a pool.
        Some(format) => output::write(format, service, || with_conditions(service, args.ask.output))?,
        None => output::write_list(ListFormat::Name, &services, named, |_| String::new())?,
    }
    Ok(Verdict::Fine)
}

/// A service with everything that the agent knows of it.
#[derive(Debug, Serialize)]
struct Described {
    service: Service,
    backends: Vec<Backend>,
}

pub(super) fn describe(args: &ServiceDescribeArgs) -> Outcome {
    let client = args.ask.reach.client()?;
    let name = args.service.full()?;
    let mut services = selected(&client, &Selection::One(name.clone()))?;
    let mut backends = client.backends()?;
    backends.retain(|backend| backend.service == name);
    let described = Described { service: services.swap_remove(0), backends };
    output::write(args.ask.output, &described, || description(&described))?;
    Ok(Verdict::Fine)
}

impl ServiceName {
    fn full(&self) -> Result<String, Failure> {
        full_name(&self.name, self.namespace.namespace.as_deref())
    }
}

/// The services that are meant; an error if one is named that is not there.
pub(super) fn selected(client: &Client, selection: &Selection) -> Result<Vec<Service>, Failure> {
    let mut services = client.services()?;
    let checked = selection.check(services.iter().map(|service| &*service.name));
    services.retain(|service| selection.has(&service.name));
    match (services.is_empty().then(|| super::unready(client)).flatten(), checked) {
        (Some(unready), Err(Failure::NotFound(why))) => Err(Failure::NotFound(format!("{why}: {unready}"))),
        (_, Err(error)) => Err(error),
        (unready, Ok(())) => {
            unready.into_iter().for_each(|unready| output::say(format_args!("lb: {unready}")));
            Ok(services)
        }
    }
}

fn matching(client: &Client, selection: &Selection) -> Result<Vec<Service>, ClientError> {
    let mut services = client.services()?;
    services.retain(|service| selection.has(&service.name));
    Ok(services)
}

fn named(service: &Service) -> String {
    service.name.clone()
}

impl Watched for Service {
    fn key(&self) -> String {
        named(self)
    }

    fn name(&self) -> String {
        named(self)
    }

    fn table(rows: &[(&Self, bool)], wide: bool) -> Table {
        let mut table = heading(wide);
        rows.iter().for_each(|&(service, is_gone)| add(&mut table, service, is_gone, wide));
        table
    }
}

fn table(services: &[Service], wide: bool) -> String {
    let rows: Vec<(&Service, bool)> = services.iter().map(|service| (service, false)).collect();
    Service::table(&rows, wide).fit(output::terminal_width().filter(|_| !wide)).to_string()
}

fn heading(wide: bool) -> Table {
    if wide {
        return Table::new([
            "NAME",
            "TYPE",
            "CLUSTER-IP",
            "EXTERNAL-IP",
            "PORT(S)",
            "ALGORITHM",
            "AFFINITY",
            "POOL",
            "BACKENDS",
            "STATUS",
            "CONDITIONS",
        ]);
    }
    Table::new([
        "NAME",
        "TYPE",
        "CLUSTER-IP",
        "EXTERNAL-IP",
        "PORT(S)",
        "ALGORITHM",
        "BACKENDS",
        "STATUS",
        "CONDITIONS",
    ])
    .give_way(
        &["CLUSTER-IP", "EXTERNAL-IP", "PORT(S)"],
        &["ALGORITHM", "TYPE", "PORT(S)", "CLUSTER-IP", "EXTERNAL-IP", "BACKENDS"],
    )
}

fn add(table: &mut Table, service: &Service, is_gone: bool, wide: bool) {
    let name = service.name.clone();
    let kind = service.kind.to_string();
    let (cluster_ips, external_ips) = (cluster_ips(service), external_ips(service));
    let ports = joined(&service.ports, "<none>");
    let backends = distinct(service.frontends.iter().map(backends));
    let status = if is_gone { "removed".into() } else { statuses(service) };
    let conditions = conditions(service, service.frontends.iter().find(|frontend| frontend.cause.is_some()), wide);
    if wide {
        let affinity = service.affinity.as_ref().map(affinity).unwrap_or_default();
        let algorithm = service.algorithm.to_string();
        table.row([
            name,
            kind,
            cluster_ips,
            external_ips,
            ports,
            algorithm,
            affinity,
            pools(service),
            backends,
            status,
            conditions,
        ]);
    } else {
        table.row([name, kind, cluster_ips, external_ips, ports, algorithm(service), backends, status, conditions]);
    }
}

/// `None` only for a service that asks for no address: as `kubectl` writes a headless one.
pub(super) fn cluster_ips(service: &Service) -> String {
    joined(&service.cluster_ips, if service.headless { "None" } else { "<none>" })
}

pub(super) fn external_ips(service: &Service) -> String {
    joined(&service.external_ips, if service.kind == ServiceKind::LoadBalancer { "<pending>" } else { "<none>" })
}

fn pools(service: &Service) -> String {
    let granted = service.ipam.iter().flat_map(|ipam| &ipam.granted);
    let pools: BTreeSet<String> = granted.filter_map(|granted| granted.pool.clone()).collect();
    pools.into_iter().collect::<Vec<_>>().join(",")
}

/// `60s`, how many bits of an address make a client unless all of them do, and whether that is so for sockets as well.
fn affinity(Affinity { timeout_s, prefix_v4, prefix_v6, by_source }: &Affinity) -> String {
    let whole = (*prefix_v4, *prefix_v6) == (32, 128);
    let prefixes = if whole { String::new() } else { format!(",/{prefix_v4},/{prefix_v6}") };
    format!("{timeout_s}s{prefixes}{}", if *by_source { ",source" } else { "" })
}

/// The line of a list, and below it every condition in a line of its own.
fn with_conditions(service: &Service, format: ListFormat) -> String {
    let table = Service::table(&[(service, false)], format == ListFormat::Wide).without_last_column();
    table.to_string() + &whole_conditions(service)
}

fn whole_conditions(service: &Service) -> String {
    let mut lines: Vec<String> =
        service.conditions.iter().map(|said| format!("{}: {}", said.kind, said.message)).collect();
    for frontend in &service.frontends {
        let address = std::net::SocketAddr::new(frontend.ip, frontend.port);
        lines.extend(frontend.cause.as_ref().map(|cause| format!("Failed: {address}/{}: {cause}", frontend.protocol)));
    }
    if lines.is_empty() {
        return String::new();
    }
    "\nConditions:\n".to_owned() + &lines.iter().map(|line| format!("  {}\n", printable(line))).collect::<String>()
}

fn description(Described { service, backends }: &Described) -> String {
    let addresses = match &service.ipam {
        None => "not from pools".into(),
        Some(ipam) if ipam.satisfied => format!("from {}", pools(service)),
        Some(ipam) => format!("{}: {}", ipam.reason, ipam.message),
    };
    let affinity = service.affinity.as_ref().map_or_else(
        || "none".into(),
        |it| {
            let whose = if it.by_source { ", by source at every hook" } else { "" };
            format!("{} s, clients are /{} and /{}{whose}", it.timeout_s, it.prefix_v4, it.prefix_v6)
        },
    );
    let mut facts = vec![
        ("Name", service.name.clone()),
        ("Type", service.kind.to_string()),
        ("Cluster IPs", cluster_ips(service)),
        ("External IPs", external_ips(service)),
        ("Ports", joined(&service.ports, "<none>")),
        ("Algorithm", service.algorithm.to_string()),
        ("Affinity", affinity),
        (
            "Traffic policy",
            format!("external {}, internal {}", service.external_traffic_policy, service.internal_traffic_policy),
        ),
        ("Source ranges", service.source_ranges.as_ref().map_or_else(|| "everybody".into(), source_ranges)),
        ("Drain", drain(&service.drain)),
    ];
    if service.kind == ServiceKind::LoadBalancer {
        facts.push(("Addresses", addresses));
    }
    facts.extend(service.health_check.as_ref().map(|check| ("Health check", health_check(check))));
    let mut text: String = facts.iter().map(|(name, fact)| format!("{name:<15} {}\n", printable(fact))).collect();
    let tables = [
        ("Frontends", "none", (!service.frontends.is_empty()).then(|| frontend_table(service))),
        ("Backends", "none", (!backends.is_empty()).then(|| backend::table(backends, true))),
    ];
    for (what, none, table) in tables {
        match table {
            None => text.push_str(&format!("\n{what}: {none}\n")),
            Some(table) => {
                text.push_str(&format!("\n{what}:\n"));
                text.extend(table.lines().map(|line| format!("  {line}\n")));
            }
        }
    }
    text + &whole_conditions(service)
}

/// `allow 10.0.0.0/8,192.0.2.0/24`.
fn source_ranges(ranges: &SourceRanges) -> String {
    format!("{} {}", ranges.policy, joined(&ranges.prefixes, "nobody"))
}

/// What becomes of connections whose backend takes no new ones.
fn drain(policy: &str) -> String {
    match policy {
        "keep" => "connections stay until they end".into(),
        "cut" => "connections are cut at once".into(),
        "" => "unknown".into(),
        after => format!("connections are cut after {after}"),
    }
}

/// `port 32000: 200, 2 local endpoints`, or why not.
fn health_check(check: &HealthCheck) -> String {
    let endpoints = match check.local_endpoints {
        None | Some(0) => "no local endpoint is ready".to_owned(),
        Some(1) => "1 local endpoint".to_owned(),
        Some(several) => format!("{several} local endpoints"),
    };
    let says = match (check.status, check.healthy) {
        (None, _) => "not answered".to_owned(),
        (Some(status), Some(false)) => format!("{status}, the datapath does not follow changes; {endpoints}"),
        (Some(status), _) => format!("{status}, {endpoints}"),
    };
    format!("port {}: {says}", check.port)
}

fn frontend_table(service: &Service) -> String {
    let mut table = Table::new(["FRONTEND", "PORT", "TYPE", "BACKENDS", "STATUS"]);
    for frontend in &service.frontends {
        let address = std::net::SocketAddr::new(frontend.ip, frontend.port);
        table.row([
            format!("{address}/{}", frontend.protocol),
            frontend.port_name.clone(),
            frontend.kind.to_string(),
            self::backends(frontend),
            frontend.status.to_string(),
        ]);
    }
    table.to_string()
}

/// With commas and without spaces, so that a column is one word.
pub(super) fn joined(items: &[impl ToString], none: &str) -> String {
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

fn frontends(services: &[Service], wide: bool) -> String {
    frontends_table(services, wide).fit(output::terminal_width().filter(|_| !wide)).to_string()
}

fn frontends_table(services: &[Service], wide: bool) -> Table {
    let mut table = Table::new(["NAME", "FRONTEND", "TYPE", "ALGORITHM", "BACKENDS", "STATUS", "CONDITIONS"])
        .give_way(&[], &["ALGORITHM", "TYPE", "BACKENDS", "STATUS"]);
    for service in services {
        if service.frontends.is_empty() {
            let none = String::new;
            table.row([service.name.clone(), none(), none(), none(), none(), none(), conditions(service, None, wide)]);
        }
        for frontend in &service.frontends {
            table.row(row(service, frontend, wide));
        }
    }
    table
}

fn row(service: &Service, frontend: &Frontend, wide: bool) -> [String; 7] {
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
        conditions(service, Some(frontend), wide),
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

/// With their text only in a wide list.
fn conditions(service: &Service, frontend: Option<&Frontend>, wide: bool) -> String {
    let failed = frontend.and_then(|frontend| frontend.cause.as_ref());
    let failed = failed.map(|cause| Condition { kind: "Failed".into(), message: cause.clone() });
    let all = service.conditions.iter().chain(&failed);
    if wide { with_text(all) } else { kinds(all) }
}

/// The type of each condition with its text.
pub(super) fn with_text<'a>(conditions: impl IntoIterator<Item = &'a Condition>) -> String {
    let said = conditions.into_iter().map(|condition| format!("{}({})", condition.kind, condition.message));
    said.collect::<Vec<_>>().join(", ")
}

/// The types of conditions, each once, as one word.
pub(super) fn kinds<'a>(conditions: impl IntoIterator<Item = &'a Condition>) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    for condition in conditions {
        if !kinds.contains(&&*condition.kind) {
            kinds.push(&condition.kind);
        }
    }
    kinds.join(",")
}

#[cfg(test)]
mod tests {
    use lb_agent::api::{Affinity, Algorithm, BackendCount, FrontendKind, Protocol, TrafficPolicy};

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
            health_check: None,
            algorithm: Algorithm::Random,
            affinity: None,
            external_traffic_policy: TrafficPolicy::default(),
            internal_traffic_policy: TrafficPolicy::default(),
            source_ranges: None,
            drain: "keep".into(),
            headless: false,
            conditions: Vec::new(),
        }
    }

    fn table(services: &[Service]) -> String {
        super::table(services, false)
    }

    fn frontends(services: &[Service]) -> String {
        super::frontends(services, false)
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
        assert!(text.ends_with("2 (1 active)   1 active, 1 failed   Failed\n"), "{text}");
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
        service.affinity = Some(Affinity { timeout_s: 10, prefix_v4: 32, prefix_v6: 128, by_source: false });
        let condition = |kind: &str, message: &str| Condition { kind: kind.into(), message: message.into() };
        service.conditions =
            vec![condition("Degraded", "no maglev"), condition("NoEndpoints", "none"), condition("Degraded", "a, b")];
        service.frontends[0].cause = Some("table full".into());
        let services = [service.clone()];
        for text in [table(&services), frontends(&services)] {
            assert!(text.ends_with("   Degraded,NoEndpoints,Failed\n"), "{text}");
            assert!(text.contains("random, affinity"));
        }
        let whole = "Degraded(no maglev), NoEndpoints(none), Degraded(a, b)";
        for text in [super::table(&services, true), super::frontends(&services, true)] {
            assert!(text.ends_with(&format!("   {whole}, Failed(table full)\n")), "{text}");
        }
        service.frontends.clear();
        assert!(frontends(&[service.clone()]).ends_with("   Degraded,NoEndpoints\n"));
        assert!(super::frontends(&[service], true).ends_with(&format!("   {whole}\n")));
    }

    #[test]
    fn a_list_fits_a_terminal_of_80_columns_and_names_every_condition() {
        let mut service = service();
        service.name = "kube-system/ingress-controller".into();
        service.kind = ServiceKind::LoadBalancer;
        service.cluster_ips.push("fd00:10:96::a".parse().unwrap());
        service.external_ips = (0..5).map(|n| format!("192.0.2.{n}").parse().unwrap()).collect();
        let condition = |kind: &str| Condition { kind: kind.into(), message: "a long text of why".into() };
        service.conditions = vec![condition("Degraded"), condition("NoEndpoints")];
        let text = Service::table(&[(&service, false)], false).fit(Some(80)).to_string();
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.contains(&service.name) && text.ends_with("   Degraded,NoEndpoints\n"), "{text}");
        let wider = Service::table(&[(&service, false)], false).fit(Some(150)).to_string();
        let frontend = row(&service, &service.frontends[0], false);
        assert_eq!(frontend[6], "Degraded,NoEndpoints");
        let text = frontends_table(&[service], false).fit(Some(80)).to_string();
        assert!(text.lines().all(|line| line.len() <= 80) && text.ends_with("   Degraded,NoEndpoints\n"), "{text}");
        assert!(wider.contains("   192.0.2.0,…+4   ") && wider.contains("   10.96.0.10,…+1   "), "{wider}");
    }
}
