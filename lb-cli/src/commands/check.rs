//! `lb check`.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::Path,
};

use lb_agent::{
    api::{FrontendStatus, Pool, Service, ServiceKind},
    check::{self, Checked, Finding},
    config::{Config, Settings},
    driver::{self, Attachments},
};
use lb_core::{name::NodeName, node::NodeFacts};

use crate::{
    cli::CheckArgs,
    commands::service::{cluster_ips, external_ips, joined},
    exit::{Failure, Outcome, Verdict},
    output::{self, Table, count, printable},
};

/// Most bytes of standard input: as many as a file may have that the agent reads.
const MAX_INPUT: u64 = 8 * 1024 * 1024;

pub(super) fn run(args: &CheckArgs) -> Outcome {
    let file = args.config.as_deref().map(Settings::read).transpose().map_err(|error| Failure::chain(&error))?;
    let settings = file.unwrap_or_default();
    let config = config(args, &settings)?;
    let path = match &args.path {
        Some(path) => path.clone(),
        None => settings.manifests.clone().ok_or_else(|| {
            let or = if args.config.is_some() { ": the configuration file has no key `manifests`" } else { "" };
            Failure::Usage(format!("say what to check: give DIR, or `-` for standard input{or}"))
        })?,
    };
    let checked = if path == Path::new("-") {
        check::check_text("standard input", &input()?, &config)
    } else {
        check::check(&path, &config)
    };
    let checked = checked.map_err(|error| Failure::chain(&error))?;
    output::write(args.output, &checked, || text(&checked))?;
    let passes = if args.strict { checked.is_clean() } else { checked.is_accepted() };
    Ok(if passes { Verdict::Fine } else { Verdict::Failed })
}

/// Nothing of this machine goes into it: the same manifests have the same answer everywhere.
fn config(args: &CheckArgs, settings: &Settings) -> Result<Config, Failure> {
    let node = NodeFacts {
        name: settings.node.as_deref().map(NodeName::new),
        ips: settings.node_ip.clone(),
        cluster_cidrs: settings.cluster_cidr.clone(),
    };
    let datapath = args.datapath.or(settings.datapath).unwrap_or(driver::MEMORY);
    let attachments = Attachments::default()
        .with_destroy_sockets(settings.destroy_sockets.unwrap_or_default())
        .with_sockets(settings.socket_service());
    let maglev = settings.maglev_hash.unwrap_or_default().family(settings.maglev_seed.as_deref());
    Ok(Config::new(datapath, node, "", "")
        .with_maglev(maglev.map_err(|error| Failure::chain(&error))?)
        .with_attachments(attachments)
        .with_algorithm(settings.algorithm.unwrap_or_default().into())
        .with_node_port_addresses(settings.node_port_addresses.clone())
        .with_answer_ping(settings.answer_ping.unwrap_or_default())
        .with_external_ips_of_node(settings.external_ips_of_node.unwrap_or_default())
        .with_service_cidrs(settings.service_cidr.clone())
        .with_load_balancer_classes(settings.load_balancer_class.clone()))
}

fn input() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().take(MAX_INPUT + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::Error(format!("reading standard input failed: {error}")))?;
    if text.len() as u64 > MAX_INPUT {
        return Err(Failure::Error(format!("standard input has more than {MAX_INPUT} bytes, which no agent reads")));
    }
    Ok(text)
}

fn text(checked: &Checked) -> String {
    let mut text = String::new();
    if !checked.services.is_empty() {
        text.push_str(&services(&checked.services));
    }
    if !checked.pools.is_empty() {
        text.push_str(&format!("\n{}", pools(&checked.pools)));
    }
    if let Some(rejected) = &checked.rejected {
        text.push_str(&format!("\nAll manifests rejected:\n  {}\n", printable(rejected)));
    }
    let of = |findings: &[Finding], exposes: bool| -> Vec<String> {
        findings.iter().filter(|finding| finding.exposes == exposes).map(|finding| finding.text.clone()).collect()
    };
    let texts = |findings: &[Finding]| of(findings, false);
    let exposing = [&checked.unsupported, &checked.skipped].into_iter().flat_map(|findings| of(findings, true));
    let said = |kind: &str, message: &str| format!("{kind}: {message}");
    let findings = messages(checked);
    let of_services = checked.services.iter().flat_map(|service| {
        let own = service.conditions.iter().filter(|it| !findings.contains(&it.message));
        own.map(|it| said(&it.kind, &format!("service {}: {}", service.name, it.message)))
    });
    let of_pools = checked.pools.iter().flat_map(|pool| {
        let own = pool.conditions.iter().filter(|it| !findings.contains(&it.message));
        own.map(|it| said(&it.kind, &format!("pool {}: {}", pool.name, it.message)))
    });
    let others = checked.conditions.iter().map(|it| said(&it.kind, &it.message));
    let totals = checked.totals;
    let more = |total: usize, listed: &[Finding]| total.saturating_sub(listed.len());
    let sections = [
        ("Not read", texts(&checked.unread), more(totals.unread, &checked.unread)),
        ("Refused", texts(&checked.refused), more(totals.refused, &checked.refused)),
        ("More is let in than asked for", exposing.collect(), 0),
        ("Without effect", texts(&checked.unsupported), more(totals.unsupported, &checked.unsupported)),
        ("Skipped", texts(&checked.skipped), more(totals.skipped, &checked.skipped)),
        ("Files ignored", checked.ignored_files.clone(), 0),
        ("Conditions", of_services.chain(of_pools).chain(others).collect(), 0),
    ];
    for (what, lines, more) in sections.iter().filter(|(_, lines, more)| lines.len() + more > 0) {
        text.push_str(&format!("\n{what}:\n"));
        text.extend(lines.iter().map(|line| format!("  {}\n", printable(line))));
        if *more > 0 {
            text.push_str(&format!("  and {more} more, which are not listed\n"));
        }
    }
    format!("{}\n{}\n", text.trim_start_matches('\n'), summary(checked)).trim_start_matches('\n').to_owned()
}

/// What a condition says that repeats a finding.
fn messages(checked: &Checked) -> BTreeSet<String> {
    let all = [&checked.refused, &checked.unsupported, &checked.skipped];
    let of = |finding: &Finding| {
        let parts = [&finding.field, &finding.message].into_iter().filter(|part| !part.is_empty());
        let own = parts.map(String::as_str).collect::<Vec<_>>().join(": ");
        [format!("{}: {own}", finding.object), own]
    };
    all.into_iter().flatten().flat_map(of).collect()
}

fn services(services: &[Service]) -> String {
    let mut table = Table::new(["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "BACKENDS", "RESULT"]);
    for service in services {
        let backends: BTreeSet<String> =
            service.frontends.iter().map(|frontend| frontend.backends.total.to_string()).collect();
        table.row([
            service.name.clone(),
            service.kind.to_string(),
            cluster_ips(service),
            external_ips(service),
            joined(&service.ports, "<none>"),
            backends.into_iter().collect::<Vec<_>>().join(","),
            result(service),
        ]);
    }
    table.to_string()
}

fn pools(pools: &[Pool]) -> String {
    let mut table = Table::new(["POOL", "BLOCKS", "IPS TOTAL", "IPS USED", "RESULT"]);
    for pool in pools {
        let kinds: BTreeSet<&str> = pool.conditions.iter().map(|condition| &*condition.kind).collect();
        let kinds: Vec<&str> = kinds.into_iter().collect();
        let fate = match (pool.conflicting, pool.disabled) {
            (true, _) => "conflicting: assigns nothing",
            (_, true) => "disabled: assigns nothing",
            (false, false) => "assigns",
        };
        table.row([
            pool.name.clone(),
            joined(&pool.blocks, "<none>"),
            pool.counts.total.to_string(),
            pool.counts.used.to_string(),
            if kinds.is_empty() { fate.into() } else { format!("{fate} ({})", kinds.join(", ")) },
        ]);
    }
    table.to_string()
}

fn is_served(service: &Service) -> bool {
    service.frontends.iter().any(|frontend| frontend.status == FrontendStatus::Active)
}

/// What would become of a service, and the types of its conditions.
fn result(service: &Service) -> String {
    let kinds: BTreeSet<&str> = service.conditions.iter().map(|condition| &*condition.kind).collect();
    let fate = if is_served(service) {
        "served"
    } else if kinds.contains("Refused") {
        return "refused".into();
    } else if service.headless {
        "headless: nothing to serve"
    } else if service.kind == ServiceKind::ExternalName {
        "a name for something elsewhere: nothing to serve"
    } else if service.frontends.is_empty() {
        "no address: nothing to serve"
    } else {
        "not carried"
    };
    let kinds: Vec<&str> = kinds.into_iter().collect();
    if kinds.is_empty() { fate.into() } else { format!("{fate} ({})", kinds.join(", ")) }
}

fn summary(checked: &Checked) -> String {
    let served = checked.services.iter().filter(|service| is_served(service)).count();
    let parts = [
        (checked.totals.unread, "manifest", "not read"),
        (checked.totals.refused, "object", "refused"),
        (checked.totals.unsupported, "field", "without effect"),
        (checked.totals.skipped, "object", "skipped"),
        (checked.ignored_files.len(), "file", "ignored"),
    ];
    let parts = parts.into_iter().filter(|part| part.0 > 0);
    let parts: String = parts.map(|(n, what, fate)| format!(", {} {fate}", count(n as u64, what))).collect();
    let rejected = if checked.rejected.is_some() { ", manifests rejected" } else { "" };
    format!("{} served{parts}{rejected}", count(served as u64, "service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Checked {
        let config = Config::new(driver::NFTABLES, NodeFacts::default(), "", "");
        check::check_text("a.yaml", text, &config).unwrap()
    }

    #[test]
    fn the_text_names_every_fate_and_ends_with_a_sum() {
        let object = |name: &str, spec: &str| {
            format!(
                "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: 80}}], {spec}}}}}\n"
            )
        };
        let manifests = object("web", "clusterIP: 10.96.0.1")
            + &object("bad", "clusterIP: nonsense")
            + &object("direct", "clusterIP: None")
            + &object("waits", "type: LoadBalancer")
            + &object("open", "clusterIP: 10.96.0.2, loadBalancerSourceRange: [10.0.0.0/8]")
            + "---\n{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: rs}}\n";
        let text = text(&checked(&manifests));
        let line = |begin: &str| text.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{text}"));
        assert!(line("default/web").ends_with(" 0          served (NoEndpoints)"), "{text}");
        assert!(line("default/bad").ends_with("   refused"), "{text}");
        assert!(line("default/direct").contains("   None   ") && line("default/direct").contains("headless"), "{text}");
        assert!(line("default/waits").contains("   <none>       <pending>   "), "{text}");
        assert!(line("default/open").contains("   served (Degraded, NoEndpoints)"), "{text}");
        for heading in [
            "\nRefused:\n  a.yaml:4:",
            "\nMore is let in than asked for:\n  a.yaml:",
            "\nWithout effect:\n  a.yaml:",
            "\nSkipped:\n  a.yaml",
        ] {
            assert!(text.contains(heading), "{heading} is not in {text}");
        }
        let sum = text.lines().last().unwrap();
        assert!(
            sum.starts_with("2 services served, 1 object refused, ") && sum.ends_with(", 1 object skipped"),
            "{sum}"
        );
    }

    #[test]
    fn findings_that_are_not_listed_are_counted_with_their_kind() {
        let many = lb_k8s::limits::MAX_FINDINGS_PER_FILE + 500;
        let sloppy = |n: usize| {
            format!(
                "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{n}}}, bogus: 1, spec: {{clusterIP: None, \
                 ports: [{{port: 80}}]}}}}\n"
            )
        };
        let open = "---\n{apiVersion: v1, kind: Service, metadata: {name: zz}, spec: {clusterIP: 10.96.0.1, \
                    loadBalancerSourceRange: [10.0.0.0/8], ports: [{port: 80}]}}\n";
        let text = text(&checked(&((0..many).map(sloppy).collect::<String>() + open)));
        let section = text.split_once("\nMore is let in than asked for:\n").map(|(_, rest)| rest);
        assert!(section.is_some_and(|it| it.starts_with("  a.yaml: document 1501, Service default/zz, field ")));
        assert!(text.contains("\n  and 500 more, which are not listed\n"));
        assert_eq!(text.lines().last().unwrap(), format!("1 service served, {} fields without effect", many + 1));
    }

    #[test]
    fn pools_are_listed_and_slices_of_a_service_that_is_not_there_are_told() {
        let pool = "{apiVersion: lb/v1, kind: IPPool, metadata: {name: edge}, spec: {blocks: [192.0.2.7/32]}}\n";
        let slice = "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: w, \
                     labels: {kubernetes.io/service-name: wbe}}, ports: [{port: 80}]}\n";
        let checked = checked(&(pool.to_owned() + slice));
        assert!(checked.is_accepted() && !checked.is_clean(), "{checked:?}");
        let text = text(&checked);
        let ends = |begin: &str, end: &str| text.lines().any(|it| it.starts_with(begin) && it.ends_with(end));
        assert!(ends("edge ", "  192.0.2.7/32   1           0          assigns"), "{text}");
        assert!(ends("  NoService: ", "") && text.contains("default/wbe"), "{text}");
    }
}
