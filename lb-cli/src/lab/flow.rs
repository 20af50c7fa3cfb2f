//! Flows that are sent, what comes of them, and whether that is what the oracle says.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_agent::api::{Entry, ExplainQuery, Explanation, Protocol, Rewrite, Verdict};
use lb_core::addr::Family;
use lb_testkit::{
    lab::{Lab, Origin},
    traffic::{DEFAULT_TIMEOUT, Failure, FailureKind, Outcome, Request, Transport},
};

use super::{
    error::RunError,
    expectation::{Checks, Seen},
    fleet::Fleet,
};

/// Flows to a frontend, so that a fair choice between two backends leaves none out: the odds are 1 in 2^31.
const FLOWS: usize = 32;
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(300);
/// Source port of the packets that the oracle is asked about, for which it does not matter.
const ANY_PORT: u16 = 40_000;

/// A flow to be sent, again and again.
pub(super) struct Flow {
    /// Who sends it, in words.
    pub(super) from: String,
    pub(super) origin: Origin,
    pub(super) transport: Transport,
    pub(super) to: SocketAddr,
    /// The node that traffic to `to` is led to from outside.
    pub(super) entry: usize,
    /// What the oracle is asked about: `to`, unless that is a loopback address, which stands for one of the node.
    pub(super) stands_for: SocketAddr,
}

impl Flow {
    pub(super) fn new(
        from: impl Into<String>,
        origin: Origin,
        transport: Transport,
        to: SocketAddr,
        entry: usize,
    ) -> Self {
        Self { from: from.into(), origin, transport, to, entry, stands_for: to }
    }

    fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp | Transport::UdpUnconnected => Protocol::Udp,
        }
    }

    fn name(&self) -> String {
        let transport = match self.transport {
            Transport::Tcp => "TCP",
            Transport::Udp | Transport::UdpUnconnected => "UDP",
        };
        format!("{transport} from {} to {}", self.from, self.to)
    }
}

/// Sends a flow many times and notes whether it fares as the agents decide.
pub(super) fn check(fleet: &Fleet, flow: &Flow, checks: &mut Checks<'_>) -> Result<(), RunError> {
    checks.check_decided(flow.name(), || {
        let decided = decide(fleet, flow)?;
        let forwarded = decided.explanation.verdict == Verdict::Forward;
        let (times, timeout) = if forwarded { (FLOWS, DEFAULT_TIMEOUT) } else { (1, SILENCE) };
        let request = Request::over(flow.transport, flow.to).timeout(timeout);
        let client = fleet.lab().client(flow.origin);
        let send = || -> Result<Vec<Outcome>, RunError> {
            let mut outcomes = Vec::new();
            for _ in 0..times {
                let outcome = client.request(&request)?;
                let failed = outcome.is_err();
                outcomes.push(outcome);
                if failed {
                    break;
                }
            }
            Ok(outcomes)
        };
        let family = Family::of(flow.to.ip());
        let sender = client.ip(family);
        let judge = Judge { lab: fleet.lab(), family, to: flow.to, sender };
        let mut seen = judge.compare(&decided.explanation, &send()?);
        // Now and then a client's datagrams to one backend use a port twice, on two ways. The later ones get a translated
        // source, since answers could not tell them apart. Other ports show what is usual.
        if seen.is_err() && forwarded && flow.protocol() == Protocol::Udp {
            seen = judge.compare(&decided.explanation, &send()?);
        }
        Ok((seen, decided.sentence(fleet.lab(), sender)))
    })
}

/// What an agent decides about a flow.
struct Decided {
    node: String,
    explanation: Explanation,
}

/// Asks the agent of the node that the flow begins on, or comes to; and if that one leaves a flow of its own alone, the
/// next one on the way.
fn decide(fleet: &Fleet, flow: &Flow) -> Result<Decided, RunError> {
    let lab = fleet.lab();
    let (first, entry) = match flow.origin {
        Origin::Pod(pod) => (lab.pods().nth(pod).map_or(flow.entry, |pod| pod.node().index()), Entry::Socket),
        Origin::PodPackets(pod) => (lab.pods().nth(pod).map_or(flow.entry, |pod| pod.node().index()), Entry::Pod),
        Origin::Node(node) | Origin::NodePackets(node) => (node, Entry::Socket),
        Origin::Client | Origin::Beyond => (flow.entry, Entry::Uplink),
    };
    let decided = decide_on(fleet, flow, first, entry)?;
    if decided.explanation.verdict == Verdict::Pass && first != flow.entry {
        return decide_on(fleet, flow, flow.entry, Entry::Uplink);
    }
    Ok(decided)
}

fn decide_on(fleet: &Fleet, flow: &Flow, node: usize, entry: Entry) -> Result<Decided, RunError> {
    let name = fleet.lab().node(node).name().to_owned();
    let source = SocketAddr::new(fleet.lab().client(flow.origin).ip(Family::of(flow.to.ip())), ANY_PORT);
    let query = ExplainQuery::new(flow.protocol(), source, flow.stands_for)
        .map_err(|error| RunError::Question { node: name.clone(), why: error.to_string() })?;
    let explanation = fleet.ask(node)?.explain(&ExplainQuery { entry: Some(entry), ..query });
    let explanation = explanation.map_err(|source| RunError::Agent { node: name.clone(), source })?;
    Ok(Decided { node: name, explanation })
}

impl Decided {
    fn sentence(&self, lab: &Lab, sender: IpAddr) -> String {
        let Self { node, explanation } = self;
        let fate = match explanation.verdict {
            Verdict::Forward => {
                let pods: Vec<String> = backends(explanation).map(|ip| pod_name(lab, ip)).collect();
                let source = match &explanation.source_rewrite {
                    Some(Rewrite::Translated { address: Some(address), .. }) => format!("seen as {address}"),
                    Some(Rewrite::Translated { address: None, .. }) => format!("seen as {node}"),
                    Some(Rewrite::Kept) | None => format!("seen as {sender}"),
                };
                format!("{}, {source}", pods.join(" or "))
            }
            Verdict::Reject => "refused".into(),
            Verdict::Drop => "dropped".into(),
            Verdict::Pass => "no frontend".into(),
            ref other => format!("{other:?}"),
        };
        format!("{node}: {fate}")
    }
}

/// Addresses of the backends that may take a flow.
fn backends(explanation: &Explanation) -> impl Iterator<Item = IpAddr> {
    let backends = explanation.choice.iter().flat_map(|choice| &choice.backends);
    backends.filter_map(|backend| Some(backend.address.parse::<SocketAddr>().ok()?.ip()))
}

fn pod_name(lab: &Lab, ip: IpAddr) -> String {
    lab.pod_of(ip).map_or_else(|| ip.to_string(), |pod| pod.name().to_owned())
}

/// Compares outcomes with a decision.
struct Judge<'a> {
    lab: &'a Lab,
    family: Family,
    to: SocketAddr,
    sender: IpAddr,
}

impl Judge<'_> {
    fn compare(&self, decided: &Explanation, outcomes: &[Outcome]) -> Seen {
        match decided.verdict {
            Verdict::Forward => self.compare_forward(decided, outcomes),
            _ => {
                let outcome = outcomes.first().ok_or("nothing was sent")?;
                compare_end(&decided.verdict, decided.entry, outcome)
            }
        }
    }

    /// Every backend answers, nobody else does, and each of them sees the source that it is to see.
    fn compare_forward(&self, decided: &Explanation, outcomes: &[Outcome]) -> Seen {
        let allowed: Vec<IpAddr> = backends(decided).collect();
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        let mut sources: Vec<IpAddr> = Vec::new();
        for outcome in outcomes {
            let answer = outcome.as_ref().map_err(ToString::to_string)?;
            let backend = self.lab.pod(&answer.pod).map(|pod| pod.ip(self.family));
            let backend =
                backend.filter(|ip| allowed.contains(ip)).ok_or_else(|| format!("{} answered", answer.pod))?;
            if answer.peer != self.to {
                return Err(format!("{} answered as {}", answer.pod, answer.peer));
            }
            self.is_seen(decided, backend, answer.client)
                .map_err(|expected| format!("{} sees {}, expected {expected}", answer.pod, answer.client))?;
            *answers.entry(answer.pod.clone()).or_default() += 1;
            if !sources.contains(&answer.client.ip()) {
                sources.push(answer.client.ip());
            }
        }
        let counts: Vec<String> = answers.iter().map(|(pod, count)| format!("{pod} {count}")).collect();
        let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
        let seen = format!("{}, seen as {}", counts.join(", "), sources.join(" and "));
        if answers.len() == allowed.len() { Ok(seen) } else { Err(seen) }
    }

    /// Whether this is the source that a backend is to see.
    fn is_seen(&self, decided: &Explanation, backend: IpAddr, client: SocketAddr) -> Result<(), String> {
        let rewrite = if backend == self.sender { &decided.hairpin_rewrite } else { &decided.source_rewrite };
        match rewrite {
            Some(Rewrite::Kept) if client.ip() == self.sender => Ok(()),
            Some(Rewrite::Translated { address, ports: (first, last) })
                if address.is_none_or(|address| address == client.ip())
                    && (*first..=*last).contains(&client.port()) =>
            {
                Ok(())
            }
            Some(Rewrite::Translated { address: Some(address), ports: (first, last) }) => {
                Err(format!("{address} and a port out of {first} to {last}"))
            }
            Some(Rewrite::Translated { address: None, ports: (first, last) }) => {
                Err(format!("a port out of {first} to {last}"))
            }
            Some(Rewrite::Kept) | None => Err(self.sender.to_string()),
        }
    }
}

/// How a flow ends that no backend gets. A socket that is told so has no route, or may not send, since its packet ends in
/// the output hook of its own host; nothing answers where no frontend is.
fn compare_end(decided: &Verdict, entry: Entry, outcome: &Outcome) -> Seen {
    let failure = match outcome {
        Ok(answer) => return Err(format!("{} answered", answer.pod)),
        Err(failure) => failure,
    };
    let says = says(failure);
    let is_right = match (decided, failure.kind) {
        (Verdict::Reject, FailureKind::Refused) | (Verdict::Drop, FailureKind::Timeout) | (Verdict::Pass, _) => true,
        (Verdict::Drop, FailureKind::Unreachable | FailureKind::Denied) => entry == Entry::Socket,
        _ => false,
    };
    if is_right { Ok(says) } else { Err(says) }
}

fn says(failure: &Failure) -> String {
    match failure.kind {
        FailureKind::Timeout => "no answer".into(),
        FailureKind::Refused => "refused".into(),
        FailureKind::Unreachable => "unreachable".into(),
        _ => failure.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: FailureKind) -> Outcome {
        Err(Failure { kind, detail: "connect".into(), after: Duration::ZERO })
    }

    #[test]
    fn a_flow_that_no_backend_gets_ends_as_it_is_decided() {
        let ends = |decided: Verdict, entry, kind| compare_end(&decided, entry, &failed(kind)).is_ok();
        for entry in [Entry::Socket, Entry::Pod, Entry::Uplink] {
            assert!(ends(Verdict::Reject, entry, FailureKind::Refused));
            assert!(!ends(Verdict::Reject, entry, FailureKind::Timeout), "a refusal is heard");
            assert!(ends(Verdict::Drop, entry, FailureKind::Timeout));
            assert!(!ends(Verdict::Drop, entry, FailureKind::Refused), "silence is not a refusal");
            assert!(ends(Verdict::Pass, entry, FailureKind::Refused));
        }
        for kind in [FailureKind::Unreachable, FailureKind::Denied] {
            assert!(ends(Verdict::Drop, Entry::Socket, kind));
            assert!(!ends(Verdict::Drop, Entry::Uplink, kind));
        }
    }

    #[test]
    fn names_say_who_asks_whom() {
        let flow = Flow::new("outside", Origin::Beyond, Transport::Udp, "192.0.2.1:30080".parse().unwrap(), 0);
        assert_eq!(flow.name(), "UDP from outside to 192.0.2.1:30080");
    }
}
