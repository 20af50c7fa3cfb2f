//! `lb status`.

use std::{
    collections::BTreeMap,
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use lb_agent::api::{
    Client, ClientError, Condition, DriftClass, DriftStatus, Manifests, MapUsage, Network, NetworkDevice, Node, Source,
    Status,
};

use crate::{
    cli::StatusArgs,
    exit::{Failure, Outcome, Verdict},
    output::{self, Table, count, printable, span},
};

/// Time between two looks at an agent that is waited for.
const PACE: Duration = Duration::from_millis(200);

pub(super) fn run(args: &StatusArgs) -> Outcome {
    let client = args.ask.reach.client()?;
    let status = match args.wait {
        Some(timeout) => await_ready(&client, timeout.0)?,
        None => client.status()?,
    };
    output::write(args.ask.output, &status, || table(&status, args.verbose))?;
    Ok(if status.ready { Verdict::Fine } else { Verdict::Failed })
}

/// The state of the agent once it is ready, or when time is up; an error if it does not answer then.
fn await_ready(client: &Client, timeout: Duration) -> Result<Status, Failure> {
    let deadline = Instant::now() + timeout;
    loop {
        let asked = client.clone().with_patience(deadline.saturating_duration_since(Instant::now()).max(PACE)).status();
        let is_over = Instant::now() >= deadline;
        match asked {
            Ok(status) if status.ready || is_over => return Ok(status),
            // The agent may be about to start, or to answer.
            Err(ClientError::NoAgent { .. } | ClientError::Silent { .. } | ClientError::Io { .. }) if !is_over => {}
            Err(ClientError::Refused(_)) if !is_over => {}
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        thread::sleep(PACE.min(deadline.saturating_duration_since(Instant::now())));
    }
}

/// How full maps are, the fullest first; those that are nearly empty are counted.
fn maps(maps: &[MapUsage]) -> String {
    let percent = |map: &MapUsage| map.entries.saturating_mul(100).checked_div(map.capacity).unwrap_or(100);
    let mut used: Vec<_> = maps.iter().map(|map| (percent(map), map.name.as_str())).collect();
    used.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let empty = used.iter().filter(|(percent, _)| *percent == 0).count();
    let mut told: Vec<_> =
        used.iter().filter(|(percent, _)| *percent > 0).map(|(p, name)| format!("{name} {p} %")).collect();
    if empty > 0 {
        told.push(format!("{empty} below 1 %"));
    }
    told.join(", ")
}

fn table(status: &Status, verbose: bool) -> String {
    let mut table = Table::new(["WHAT", "STATE"]);
    let mut line = |what: &str, state: String| table.row([what.into(), state]);
    let settled = if status.settled { "settled" } else { "work is due" };
    let ready = if status.ready { "ready".into() } else { not_ready(&status.sources) };
    line(
        "agent",
        format!("{ready}, {settled}, version {}, pid {}, up {}", status.version, status.pid, span(status.uptime_s)),
    );
    let datapath = &status.datapath;
    line("datapath", format!("{}, plan {}, applied in {} us", datapath.kind, datapath.plan, datapath.apply_us));
    if !datapath.devices.is_empty() {
        line("devices", datapath.devices.join(", "));
    }
    datapath.facts.iter().for_each(|fact| line("kernel", fact.clone()));
    if !datapath.maps.is_empty() {
        line("maps", maps(&datapath.maps));
    }
    if let Some(usage) = datapath.usage {
        let bytes = usage.bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        line("kernel", format!("{}, {}{bytes}", count(usage.rules, "rule"), count(usage.elements, "element")));
    }
    network(&status.network).into_iter().for_each(|setting| line("network", setting));
    line("node", node(&status.node));
    let manifests = &status.manifests;
    line(
        "manifests",
        format!("{}, read {}{}", manifests.directory, count(manifests.reads, "time"), left_out(manifests)),
    );
    // The line above is about the only one.
    if let sources @ [_, _, ..] = &*status.sources {
        sources.iter().for_each(|source| line("source", described(source)));
    }
    let counts = &status.counts;
    let failed =
        if counts.failed > 0 { format!(", {} failed", count(counts.failed, "frontend")) } else { String::new() };
    line(
        "held",
        format!(
            "{}, {}, {}, {}{failed}",
            count(counts.services, "service"),
            count(counts.frontends, "frontend"),
            count(counts.sets, "backend set"),
            count(counts.backends, "backend")
        ),
    );
    let addresses = &status.addresses;
    if addresses.pools > 0 || addresses.unsatisfied > 0 {
        let lacking = match addresses.unsatisfied {
            0 => String::new(),
            lacking => format!(", {} without an address", count(lacking, "service")),
        };
        line("addresses", format!("{}, {} held{lacking}", count(addresses.pools, "pool"), addresses.held));
    }
    line("maglev", format!("tables of {}", status.maglev_hash));
    line("drift", drift(&status.drift));
    let limit = if verbose { usize::MAX } else { MAX_LISTED };
    // The first ones are conditions.
    let unread = if verbose { unread(&status.manifests, limit) } else { String::new() };
    table.to_string() + &conditions(&status.conditions) + &unread + &details(&status.manifests, limit)
}

/// Most lines of each kind of finding in a text that is not to be complete.
const MAX_LISTED: usize = 3;

fn unread(manifests: &Manifests, limit: usize) -> String {
    section("Manifests not read", &manifests.unread, manifests.unlisted.unread, limit)
}

/// What the manifests say and the agent does not do, at most `limit` of each kind.
fn details(manifests: &Manifests, limit: usize) -> String {
    let sections = [
        // Objects that are refused are conditions.
        ("Fields not supported", &manifests.unsupported, manifests.unlisted.unsupported),
        ("Objects skipped", &manifests.skipped, manifests.unlisted.skipped),
        ("Files ignored", &manifests.ignored_files, 0),
    ];
    sections.into_iter().map(|(what, lines, unlisted)| section(what, lines, unlisted, limit)).collect()
}

/// `unlisted` is how many more there are than the agent names.
fn section(what: &str, lines: &[String], unlisted: usize, limit: usize) -> String {
    if lines.len() + unlisted == 0 {
        return String::new();
    }
    let mut text = format!("\n{what}:\n");
    text.extend(lines.iter().take(limit).map(|line| format!("  {}\n", printable(line))));
    if lines.len() > limit {
        text.push_str(&format!("  and {} more: see `lb status --verbose`\n", lines.len() - limit + unlisted));
    } else if unlisted > 0 {
        text.push_str(&format!("  and {unlisted} more, which are not listed\n"));
    }
    text
}

/// Names the sources that delay the first plan. If there are none, the plan is under way or failed.
fn not_ready(sources: &[Source]) -> String {
    let missing: Vec<&str> = sources.iter().filter(|source| !source.listed).map(|source| &*source.name).collect();
    let awaited =
        if missing.is_empty() { String::new() } else { format!(" (no first listing from {})", missing.join(", ")) };
    format!("not ready: the first listing is not applied yet{awaited}")
}

fn described(source: &Source) -> String {
    let place = if source.place.is_empty() { String::new() } else { format!(" at {}", source.place) };
    let listed = if source.listed { "" } else { ", no first listing" };
    let rejected = if source.rejected.is_some() { ", newest state rejected" } else { "" };
    let parts = [
        (source.unread, "manifest", "not read"),
        (source.refused, "object", "refused"),
        (source.unsupported, "field", "not supported"),
        (source.skipped, "object", "skipped"),
    ];
    let reads = count(source.reads, "time");
    format!("{}{place}, read {reads}{listed}{rejected}{}", source.name, fates(parts))
}

fn drift(drift: &DriftStatus) -> String {
    let sum = |counts: &BTreeMap<DriftClass, u64>| counts.values().sum::<u64>();
    let (found, repaired) = (count(sum(&drift.found), "difference"), sum(&drift.repaired));
    let watched = if drift.watched { ", watched" } else { "" };
    let took = Duration::from_micros(drift.inspection_us);
    format!(
        "{}{watched}, {found} found, {repaired} repaired, {} open, {}, the last in {}",
        drift.mode,
        drift.open,
        count(drift.inspections, "full inspection"),
        output::time(took)
    )
}

/// Settings of the kernel for devices, each value with the devices that have it.
fn network(network: &Network) -> Vec<String> {
    let on = |value: Option<bool>| match value {
        Some(true) => "on",
        Some(false) => "off",
        None => "not known",
    };
    let devices = &network.devices;
    if devices.is_empty() && network.ip_forward.is_none() && network.ipv6_forwarding.is_none() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "forwarding {} for IPv4{}, {} for IPv6{}",
        on(network.ip_forward),
        except(devices, |device| device.ip_forward, network.ip_forward),
        on(network.ipv6_forwarding),
        except(devices, |device| device.ipv6_forwarding, network.ipv6_forwarding),
    )];
    if !devices.is_empty() {
        lines.push(format!("MTU {}", grouped(devices, |device| device.mtu)));
        let drops = network.reverse_path_drops.filter(|drops| *drops > 0);
        let drops = drops.map(|drops| format!("; {} dropped since the start of the node", count(drops, "packet")));
        let words = |device: &NetworkDevice| match device.rp_filter {
            Some(0) => "off".to_owned(),
            Some(1) => "strict".to_owned(),
            Some(2) => "loose".to_owned(),
            Some(other) => other.to_string(),
            None => "not known".to_owned(),
        };
        lines.push(format!("rp_filter {}{}", grouped(devices, words), drops.unwrap_or_default()));
    }
    lines
}

/// Devices whose setting differs from the general one.
fn except(devices: &[NetworkDevice], of: impl Fn(&NetworkDevice) -> Option<bool>, general: Option<bool>) -> String {
    let others = devices.iter().filter(|device| of(device).is_some_and(|value| Some(value) != general));
    let names: Vec<&str> = others.map(|device| &*device.name).collect();
    if names.is_empty() { String::new() } else { format!(" (not so on {})", some_of(&names)) }
}

/// Values, the greatest first, and who has them.
fn grouped<T: Ord + Display>(devices: &[NetworkDevice], value: impl Fn(&NetworkDevice) -> T) -> String {
    let mut groups: BTreeMap<T, Vec<&str>> = BTreeMap::new();
    for device in devices {
        groups.entry(value(device)).or_default().push(&device.name);
    }
    let told: Vec<String> =
        groups.iter().rev().map(|(value, names)| format!("{value} on {}", some_of(names))).collect();
    told.join(", ")
}

fn some_of(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MAX_LISTED);
    let named = names.iter().take(MAX_LISTED).copied().collect::<Vec<_>>().join(" ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

fn node(node: &Node) -> String {
    let ips: Vec<String> = node.ips.iter().map(ToString::to_string).collect();
    let cidrs = if node.cluster_cidrs.is_empty() {
        "no cluster CIDRs".into()
    } else {
        format!("cluster CIDRs {}", node.cluster_cidrs.join(", "))
    };
    let ips = if ips.is_empty() { "no address".into() } else { ips.join(", ") };
    format!("{}, {ips}, {cidrs}", node.name.as_deref().unwrap_or("without a name"))
}

fn left_out(manifests: &Manifests) -> String {
    let unlisted = manifests.unlisted;
    let parts = [
        (manifests.unread.len() + unlisted.unread, "manifest", "not read"),
        (manifests.refused.len() + unlisted.refused, "object", "refused"),
        (manifests.unsupported.len() + unlisted.unsupported, "field", "not supported"),
        (manifests.skipped.len() + unlisted.skipped, "object", "skipped"),
        (manifests.ignored_files.len(), "file", "ignored"),
    ];
    fates(parts)
}

fn fates<const N: usize>(parts: [(usize, &str, &str); N]) -> String {
    parts.into_iter().filter(|part| part.0 > 0).map(|(n, what, fate)| format!(", {} {fate}", count(n, what))).collect()
}

fn conditions(conditions: &[Condition]) -> String {
    if conditions.is_empty() {
        return String::new();
    }
    let line = |condition: &Condition| format!("  {}: {}\n", condition.kind, printable(&condition.message));
    "\nConditions:\n".to_owned() + &conditions.iter().map(line).collect::<String>()
}

#[cfg(test)]
mod tests {
    use lb_agent::api::Unlisted;

    use super::*;

    #[test]
    fn settings_are_told_by_value_and_exceptions_by_name() {
        let device = |name: &str, mtu, rp_filter, ip_forward| NetworkDevice {
            name: name.into(),
            mtu,
            rp_filter: Some(rp_filter),
            ip_forward: Some(ip_forward),
            ipv6_forwarding: None,
        };
        let mut devices = vec![device("eth0", 1500, 1, true), device("eth1", 9000, 2, false)];
        devices.extend((0..5).map(|n| device(&format!("veth{n}"), 1500, 0, true)));
        let told = network(&Network {
            ip_forward: Some(true),
            ipv6_forwarding: Some(false),
            reverse_path_drops: Some(7),
            devices,
        });
        assert_eq!(
            told,
            [
                "forwarding on for IPv4 (not so on eth1), off for IPv6",
                "MTU 9000 on eth1, 1500 on eth0 veth0 veth1 and 3 more",
                "rp_filter strict on eth0, off on veth0 veth1 veth2 and 2 more, loose on eth1; 7 packets dropped since \
                 the start of the node",
            ]
        );
        assert_eq!(network(&Network::default()), [""; 0]);
    }

    fn source(name: &str, listed: bool) -> Source {
        Source { name: name.into(), listed, ..Source::default() }
    }

    #[test]
    fn the_fullest_maps_come_first_and_empty_ones_are_counted() {
        let map = |name: &str, entries| MapUsage { name: name.into(), entries, capacity: 200, evicts: false };
        assert_eq!(maps(&[map("A", 1), map("B", 2), map("C", 200), map("D", 0)]), "C 100 %, B 1 %, 2 below 1 %");
        assert_eq!(maps(&[map("A", 100)]), "A 50 %");
    }

    #[test]
    fn an_agent_that_is_not_ready_names_the_sources_that_have_not_listed() {
        let sources = [source("manifests", true), source("queue", false), source("api", false)];
        assert_eq!(
            not_ready(&sources),
            "not ready: the first listing is not applied yet (no first listing from queue, api)"
        );
        assert_eq!(not_ready(&sources[..1]), "not ready: the first listing is not applied yet");
    }

    #[test]
    fn a_node_without_an_address_says_so() {
        let named = Node { name: Some("n1".into()), ips: Vec::new(), cluster_cidrs: Vec::new() };
        assert_eq!(node(&named), "n1, no address, no cluster CIDRs");
        let whole = Node { ips: vec!["192.0.2.1".parse().unwrap()], cluster_cidrs: vec!["10.0.0.0/8".into()], ..named };
        assert_eq!(node(&whole), "n1, 192.0.2.1, cluster CIDRs 10.0.0.0/8");
    }

    #[test]
    fn a_source_shows_its_place_and_what_it_rejects() {
        let manifests = Source {
            place: "/etc/lb".into(),
            reads: 3,
            refused: 1,
            unsupported: 2,
            rejected: Some("broken".into()),
            ..source("manifests", true)
        };
        let expected =
            "manifests at /etc/lb, read 3 times, newest state rejected, 1 object refused, 2 fields not supported";
        assert_eq!(described(&manifests), expected);
        assert_eq!(described(&source("queue", false)), "queue, read 0 times, no first listing");
    }

    #[test]
    fn what_is_not_carried_out_is_named_or_it_is_said_how_to_see_it() {
        let unsupported = (1..=5).map(|n| format!("web.yaml:{n}:1: field {n}")).collect();
        let manifests = Manifests { unsupported, skipped: vec!["a.yaml: Deployment a".into()], ..Manifests::default() };
        assert_eq!(
            details(&manifests, MAX_LISTED),
            "\nFields not supported:\n  web.yaml:1:1: field 1\n  web.yaml:2:1: field 2\n  web.yaml:3:1: field 3\n  \
             and 2 more: see `lb status --verbose`\n\nObjects skipped:\n  a.yaml: Deployment a\n"
        );
        let all = details(&manifests, usize::MAX);
        assert!(all.contains("field 5\n") && !all.contains("more"), "{all}");
        assert_eq!(details(&Manifests::default(), MAX_LISTED), "");
    }

    #[test]
    fn what_the_agent_does_not_list_is_counted() {
        let unlisted = Unlisted { unsupported: 5000, skipped: 7, ..Unlisted::default() };
        let unsupported = (1..=5).map(|n| format!("web.yaml:{n}:1: field {n}")).collect();
        let manifests = Manifests { unsupported, unlisted, ..Manifests::default() };
        assert_eq!(left_out(&manifests), ", 5005 fields not supported, 7 objects skipped");
        assert!(details(&manifests, MAX_LISTED).contains("  and 5002 more: see `lb status --verbose`\n"));
        let all = details(&manifests, usize::MAX);
        assert!(all.contains("field 5\n  and 5000 more, which are not listed\n"), "{all}");
        assert!(all.ends_with("\nObjects skipped:\n  and 7 more, which are not listed\n"));
    }
}
