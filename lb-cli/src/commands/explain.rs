//! `lb explain`.

use std::net::SocketAddr;

use lb_agent::{
    api::{self, Client, ExplainQuery, Explanation, Rewrite, Verification, WhyNot, WhyNotAnswer},
    flow::{self, FlowError},
};

use crate::{
    cli::ExplainArgs,
    exit::{Failure, Outcome, Verdict},
    output::{self, printable},
};

pub(super) fn run(args: &ExplainArgs) -> Outcome {
    let question = question(args).map_err(Failure::Usage)?;
    let explanation = Client::new(&args.ask.socket).explain(&question)?;
    output::write(args.ask.output, &explanation, || text(&explanation))?;
    Ok(end(&explanation))
}

/// The error names the argument that is wrong.
fn question(args: &ExplainArgs) -> Result<ExplainQuery, String> {
    let named = |name: &'static str| move |error: FlowError| format!("{name} {error}");
    let end = |name, text: &str| -> Result<SocketAddr, String> { flow::parse_end(text).map_err(named(name)) };
    let protocol = args.protocol.parse().map_err(named("protocol"))?;
    let packet = ExplainQuery::new(protocol, end("source", &args.source)?, end("destination", &args.destination)?);
    let packet = packet.map_err(|error| error.to_string())?;
    let why_not = args.why_not.as_deref().map(flow::parse_backend).transpose();
    Ok(ExplainQuery { entry: args.entry, verify: args.verify, why_not: why_not.map_err(named("backend"))?, ..packet })
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
            api::Verdict::Reject => "refused at once".into(),
            api::Verdict::Drop => "dropped silently".into(),
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
    match rewrite {
        Rewrite::Kept => "kept".into(),
        Rewrite::Translated { address, ports: (first, last) } => {
            let address = address.map_or_else(|| "an address of the node".into(), |address| address.to_string());
            format!("translated to {address}, port {first}-{last}")
        }
    }
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
