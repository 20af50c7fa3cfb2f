//! `lb explain`.

use std::net::{IpAddr, SocketAddr};

use lb_agent::{
    api::{
        self, Client, Condition, ExplainQuery, Explanation, Frontend, Rewrite, Service, Verification, WhyNot,
        WhyNotAnswer,
    },
    flow::{self, FlowError},
};
use lb_core::decision::{self, SourceRewrite};
use serde::Serialize;

use crate::{
    cli::ExplainArgs,
    commands::service,
    exit::{Failure, Outcome, Verdict},
    names::{Selection, full_name},
    output::{self, count, printable},
};

pub(super) fn run(args: &ExplainArgs) -> Outcome {
    let (Some(source), Some(destination)) = (&args.source, &args.destination) else { return explain_service(args) };
    if args.namespace.namespace.is_some() {
        let why = "--namespace is for a service: leave it out, or name a service instead of a packet";
        return Err(Failure::Usage(why.into()));
    }
    let question = packet(args, source, destination).and_then(|packet| question(args, packet));
    let explanation = args.ask.reach.client()?.explain(&question.map_err(Failure::Usage)?)?;
    output::write(args.ask.output, &explanation, || text(&explanation))?;
    Ok(end(&explanation))
}

/// The error names the argument that is wrong.
fn packet(args: &ExplainArgs, source: &str, destination: &str) -> Result<ExplainQuery, String> {
    let end = |name, text: &str| -> Result<SocketAddr, String> { flow::parse_end(text).map_err(named(name)) };
    let protocol = args.protocol.parse().map_err(named("protocol"))?;
    let packet = ExplainQuery::new(protocol, end("source", source)?, end("destination", destination)?);
    packet.map_err(|error| error.to_string())
}

/// The packet, and how to look at it.
fn question(args: &ExplainArgs, packet: ExplainQuery) -> Result<ExplainQuery, String> {
    let why_not = args.why_not.as_deref().map(flow::parse_backend).transpose();
    Ok(ExplainQuery { entry: args.entry, verify: args.verify, why_not: why_not.map_err(named("backend"))?, ..packet })
}

fn named(name: &'static str) -> impl Fn(FlowError) -> String {
    move |error| format!("{name} {error}")
}

/// A new connection to each frontend of a service.
fn explain_service(args: &ExplainArgs) -> Outcome {
    if ["tcp", "udp", "sctp"].contains(&&*args.protocol.to_lowercase()) {
        let why = format!("a packet of {} needs SRC:PORT and DST:PORT", args.protocol);
        return Err(Failure::Usage(format!("{why}; for a service of that name, write default/{}", args.protocol)));
    }
    let (name, port) = match args.protocol.split_once(':') {
        Some((name, "")) => {
            let why =
                format!("`{}` names no port: write {name}, or {name}:PORT with a number or a name", args.protocol);
            return Err(Failure::Usage(why));
        }
        Some((name, port)) => (name, Some(port)),
        None => (&*args.protocol, None),
    };
    let from = args.from.as_deref().map(client_end).transpose().map_err(Failure::Usage)?;
    let client = args.ask.reach.client()?;
    let name = full_name(name, args.namespace.namespace.as_deref())?;
    let mut services = service::selected(&client, &Selection::One(name))?;
    let service = services.swap_remove(0);
    let frontends = frontends(&service, port)?;
    let clients = match from {
        Some(from) => vec![from],
        None => client.status()?.node.ips.into_iter().map(|ip| SocketAddr::new(ip, CLIENT_PORT)).collect(),
    };
    let explanations = ask(args, &client, &frontends, &clients)?;
    let explained = ServiceExplanation { service: &service.name, conditions: &service.conditions, explanations };
    output::write(args.ask.output, &explained, || service_text(&service, &explained.explanations))?;
    Ok(end_of_all(&explained.explanations))
}

/// What becomes of connections to a service.
#[derive(Debug, Serialize)]
struct ServiceExplanation<'a> {
    /// `namespace/name`.
    service: &'a str,
    /// Where the service falls short of its specification.
    conditions: &'a [Condition],
    /// One for each frontend that was asked about.
    explanations: Vec<Explanation>,
}

/// Port of a client whose port nobody named.
const CLIENT_PORT: u16 = 40000;

fn client_end(text: &str) -> Result<SocketAddr, String> {
    let end = flow::parse_backend(text).map_err(named("client"))?;
    match end.port {
        Some(0) => Err(named("client")(FlowError::PortZero(text.into()))),
        port => Ok(SocketAddr::new(end.ip, port.unwrap_or(CLIENT_PORT))),
    }
}

/// All of them, or those of a port by number or name.
fn frontends<'a>(service: &'a Service, port: Option<&str>) -> Result<Vec<&'a Frontend>, Failure> {
    let Some(port) = port else { return Ok(service.frontends.iter().collect()) };
    let is_it = |frontend: &&Frontend| {
        let number = frontend.port.to_string();
        [&*frontend.port_name, &*number].contains(&port)
            || port.to_lowercase() == format!("{number}/{}", frontend.protocol)
    };
    let found: Vec<&Frontend> = service.frontends.iter().filter(is_it).collect();
    if found.is_empty() {
        let problem =
            format!("service {} has no frontend with port {port}; its ports: {}", service.name, ports(service));
        return Err(Failure::NotFound(problem));
    }
    Ok(found)
}

/// Ports of the frontends with their names.
fn ports(service: &Service) -> String {
    let mut ports: Vec<String> = Vec::new();
    for Frontend { port_name, port, protocol, .. } in &service.frontends {
        let name = if port_name.is_empty() { String::new() } else { format!(" ({port_name})") };
        let said = format!("{port}/{protocol}{name}");
        if !ports.contains(&said) {
            ports.push(said);
        }
    }
    if ports.is_empty() { "none".into() } else { ports.join(", ") }
}

/// Asks about each frontend from the first client of its family.
fn ask(
    args: &ExplainArgs,
    client: &Client,
    frontends: &[&Frontend],
    clients: &[SocketAddr],
) -> Result<Vec<Explanation>, Failure> {
    let mut explanations = Vec::new();
    for frontend in frontends {
        let destination = SocketAddr::new(frontend.ip, frontend.port);
        let Some(&source) = clients.iter().find(|client| client.is_ipv4() == destination.is_ipv4()) else {
            let left_out = left_out(&destination, args.from.is_some());
            output::say(format_args!("lb: {left_out}"));
            continue;
        };
        let packet = ExplainQuery::new(frontend.protocol, source, destination);
        let question = packet.map_err(|error| error.to_string()).and_then(|packet| question(args, packet));
        explanations.push(client.explain(&question.map_err(Failure::Usage)?)?);
    }
    if explanations.is_empty() && !frontends.is_empty() {
        return Err(Failure::Error(
            "no frontend has the family of the client: name one of the other with --from".into(),
        ));
    }
    Ok(explanations)
}

fn left_out(frontend: &SocketAddr, is_client_given: bool) -> String {
    let family = match frontend.ip() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    let remedy = if is_client_given {
        format!("the client of --from is not; ask again with an {family} client")
    } else {
        format!("the node has no such address; name an {family} client with --from")
    };
    format!("frontend {frontend} is left out: it is {family}, and {remedy}")
}

fn service_text(service: &Service, explanations: &[Explanation]) -> String {
    let mut text = format!("service {}: {}\n", service.name, count(explanations.len() as u64, "frontend"));
    if explanations.is_empty() {
        text.push_str(&format!("no connection reaches it by an address: {}\n", why_none(service)));
    }
    for condition in &service.conditions {
        text.push_str(&printable(&format!("{}: {}", condition.kind, condition.message)));
        text.push('\n');
    }
    for explanation in explanations {
        text.push_str("\n---\n\n");
        text.push_str(&self::text(explanation));
    }
    text
}

fn why_none(service: &Service) -> &'static str {
    match service.kind {
        _ if service.headless => "it is headless, and clients look up its endpoints themselves",
        api::ServiceKind::ExternalName => "it is a name for something elsewhere (ExternalName)",
        api::ServiceKind::Unspecified => "no version of it was ever accepted",
        _ => "it has no address",
    }
}

/// A difference anywhere counts; a backend is absent only if it is so everywhere.
fn end_of_all(explanations: &[Explanation]) -> Verdict {
    let mut ends: Vec<Verdict> = explanations.iter().map(end).collect();
    ends.dedup();
    match &*ends {
        [only] => *only,
        _ if ends.contains(&Verdict::Different) => Verdict::Different,
        _ => Verdict::Fine,
    }
}

fn end(explanation: &Explanation) -> Verdict {
    let is_absent = |why_not: &WhyNot| matches!(why_not.answer, WhyNotAnswer::NotABackend | WhyNotAnswer::NoFrontend);
    if explanation.verification.as_ref().is_some_and(|verification| !verification.agrees) {
        return Verdict::Different;
    }
    if explanation.why_not.as_ref().is_some_and(is_absent) { Verdict::Absent } else { Verdict::Fine }
}

fn text(explanation: &Explanation) -> String {
    let Explanation { protocol, source, destination, entry, .. } = explanation;
    let mut text = format!("{protocol} {source} -> {destination}, entering at {entry}\n\n");
    for (number, step) in explanation.steps.iter().enumerate() {
        let said = format!("{}, {}: {}", step.object, step.field, step.says);
        text.push_str(&format!("  {}. {}\n", number + 1, printable(&said)));
    }
    text.push_str(&format!("\n{}\n", verdict(explanation)));
    text.extend(explanation.degraded.iter().map(|what| format!("degraded: {}\n", printable(what))));
    if !explanation.rejected.is_empty() {
        text.push_str("\nNot taken:\n");
        for rejected in &explanation.rejected {
            text.push_str(&format!("  {}: {}\n", rejected.backend, rejected.reason));
        }
    }
    text.extend(explanation.why_not.as_ref().map(why_not));
    text.extend(explanation.verification.as_ref().map(verification));
    text
}

fn why_not(answer: &WhyNot) -> String {
    let more = if answer.slot_count as usize > answer.slots.len() { ", …" } else { "" };
    let numbers: Vec<String> = answer.slots.iter().map(ToString::to_string).collect();
    let slots = if numbers.is_empty() { String::new() } else { format!(" ({}{more})", numbers.join(", ")) };
    format!("\nWhy not {}?\n  {}{slots}\n", answer.backend, printable(&answer.says))
}

fn verification(verification: &Verification) -> String {
    let Verification { method, steps, kernel, disagreements, .. } = verification;
    let verdict = if verification.agrees { "AGREE" } else { "DISAGREE" };
    let mut text = format!("\n{verdict}: the datapath answers: {} ({})\n", printable(kernel), printable(method));
    for disagreement in disagreements {
        text.push_str(&format!("  {}\n", printable(disagreement)));
    }
    if !verification.agrees && !verification.settled {
        text.push_str("  The datapath does not have all changes yet: see `lb status`, and try again.\n");
    }
    if !steps.is_empty() {
        text.push_str("\nOn the way:\n");
    }
    for (number, step) in steps.iter().enumerate() {
        text.push_str(&format!("  {}. {}\n", number + 1, printable(step)));
    }
    text
}

fn verdict(explanation: &Explanation) -> String {
    let Some(choice) = &explanation.choice else {
        return match &explanation.verdict {
            api::Verdict::Pass if explanation.frontend.is_some() => not_carried(explanation),
            api::Verdict::Pass => "passed on: it is for no service".into(),
            api::Verdict::Reject => decision::Verdict::Reject.to_string(),
            api::Verdict::Drop => decision::Verdict::Drop.to_string(),
            other => other.to_string(),
        };
    };
    let total: u32 = choice.backends.iter().map(|backend| backend.weight).sum();
    let share = |weight| if choice.exact { String::new() } else { format!(" ({weight}/{total})") };
    let backends: Vec<String> =
        choice.backends.iter().map(|backend| format!("{}{}", backend.address, share(backend.weight))).collect();
    let one = if choice.exact { "forwarded to" } else { "forwarded to one of" };
    let source = explanation.source_rewrite.as_ref().map(|rewrite| format!("\nsource: {}", said(rewrite)));
    let hairpin =
        explanation.hairpin_rewrite.as_ref().filter(|hairpin| explanation.source_rewrite.as_ref() != Some(hairpin));
    let hairpin = hairpin.map(|rewrite| format!("; if the backend is the sender: {}", said(rewrite)));
    format!("{one} {}{}{}", backends.join(", "), source.unwrap_or_default(), hairpin.unwrap_or_default())
}

fn not_carried(explanation: &Explanation) -> String {
    let frontend = explanation.frontend.as_deref().unwrap_or_default();
    let service = explanation.service.as_ref().map(|service| format!(" of service {service}"));
    format!("passed on: the datapath does not carry frontend {frontend}{}", service.unwrap_or_default())
}

fn said(rewrite: &Rewrite) -> String {
    let rewrite = match *rewrite {
        Rewrite::Kept => SourceRewrite::Kept,
        Rewrite::Translated { address, ports: (first, last) } => {
            SourceRewrite::Translated { addr: address, ports: first..=last }
        }
    };
    rewrite.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_agent::api::{Choice, Rejected, Step, Weighted};

    #[test]
    fn a_frontend_that_is_not_carried_is_not_for_no_service() {
        let explanation = Explanation {
            protocol: api::Protocol::Sctp,
            source: "10.0.0.1:1".into(),
            destination: "10.96.0.1:80".into(),
            entry: api::Entry::Pod,
            verdict: api::Verdict::Pass,
            frontend: Some("10.96.0.1:80/sctp".into()),
            service: Some("default/web:http".into()),
            degraded: Vec::new(),
            choice: None,
            source_rewrite: None,
            hairpin_rewrite: None,
            steps: Vec::new(),
            rejected: Vec::new(),
            verification: None,
            why_not: None,
        };
        let expected = "passed on: the datapath does not carry frontend 10.96.0.1:80/sctp of service default/web:http";
        assert_eq!(verdict(&explanation), expected);
        let none = Explanation { frontend: None, service: None, ..explanation };
        assert_eq!(verdict(&none), "passed on: it is for no service");
    }

    #[test]
    fn an_explanation_reads_from_top_to_bottom() {
        let backend = |address: &str, weight| Weighted { address: address.into(), weight };
        let explanation = Explanation {
            protocol: api::Protocol::Tcp,
            source: "10.0.0.1:1".into(),
            destination: "10.96.0.1:80".into(),
            entry: api::Entry::Pod,
            verdict: api::Verdict::Forward,
            frontend: Some("10.96.0.1:80/tcp".into()),
            service: Some("default/web".into()),
            degraded: vec!["session affinity is not supported by this datapath".into()],
            choice: Some(Choice { exact: false, backends: vec![backend("10.1.0.1:80", 3), backend("10.1.0.2:80", 1)] }),
            source_rewrite: Some(Rewrite::Kept),
            hairpin_rewrite: Some(Rewrite::Translated { address: None, ports: (1024, 65535) }),
            steps: vec![Step {
                object: "service default/web".into(),
                field: "algorithm".into(),
                says: "random".into(),
            }],
            rejected: vec![Rejected { backend: "10.1.0.3:80".into(), reason: "draining".into() }],
            verification: Some(Verification {
                agrees: false,
                method: "maps".into(),
                steps: vec!["frontend 10.96.0.1:80/tcp: set 3".into()],
                kernel: "refused at once".into(),
                disagreements: vec!["verdict: expected forward, the kernel has refuse".into()],
                established: None,
                affinity: None,
                settled: false,
            }),
            why_not: Some(WhyNot {
                backend: "10.1.0.2:80".into(),
                answer: WhyNotAnswer::Possible,
                says: "it may be the choice: 1 of 4 slots belong to it".into(),
                slots: vec![3],
                slot_count: 1,
                table: 4,
            }),
        };
        assert_eq!(end(&explanation), Verdict::Different);
        assert_eq!(
            text(&explanation),
            "tcp 10.0.0.1:1 -> 10.96.0.1:80, entering at pod\n\n  \
             1. service default/web, algorithm: random\n\n\
             forwarded to one of 10.1.0.1:80 (3/4), 10.1.0.2:80 (1/4)\n\
             source: kept; if the backend is the sender: translated to an address of the node, port 1024-65535\n\
             degraded: session affinity is not supported by this datapath\n\n\
             Not taken:\n  10.1.0.3:80: draining\n\n\
             Why not 10.1.0.2:80?\n  it may be the choice: 1 of 4 slots belong to it (3)\n\n\
             DISAGREE: the datapath answers: refused at once (maps)\n  \
             verdict: expected forward, the kernel has refuse\n  \
             The datapath does not have all changes yet: see `lb status`, and try again.\n\n\
             On the way:\n  1. frontend 10.96.0.1:80/tcp: set 3\n"
        );
    }
}
