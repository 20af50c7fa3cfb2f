//! Whether the fate of a flow is what `decide` says.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    datapath::{SocketCapability, SocketOwners},
    decision::{Choice, Entry, FlowView, Forward, Packet, SourceRewrite, Verdict as Decided, decide},
    state::{Answer, Lookup, OtherPorts, State, Target},
};

use super::{
    Fault, Stage, ensure,
    probe::Probe,
    service::{BACK_PORT, OTHER_BACK_PORT, pod_at, pod_ip},
};
use crate::traffic::{DEFAULT_TIMEOUT, FailureKind, Outcome, Response};

/// How long the flows of one case are waited for.
///
/// As long as every flow fared as it should, a slow machine gets all the time that it may need. The first flow that did
/// not has failed the case. Further flows only show how far the failure reaches, so they are not waited for as long: a
/// datapath that carries nothing loses every flow.
///
/// Silence is listened to for a second in all, and then for a moment each, and a flow that the datapath leaves alone is
/// sent once: of a datapath that promises little, hundreds of flows are expected to stay unanswered. Less time makes no
/// flow fail that is silent.
#[derive(Debug, Default)]
pub(super) struct Patience {
    lost: bool,
    listened: Duration,
    left_alone: BTreeSet<String>,
}

/// Longest wait for a refusal, which is expected at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long silence is listened to, by each flow at first.
const SILENCE: Duration = Duration::from_millis(300);
/// How long silence is listened to in all, until a moment is enough.
const SILENCE_IN_ALL: Duration = Duration::from_secs(1);
/// That moment: in a lab, an answer takes a few milliseconds at most.
const MOMENT: Duration = Duration::from_millis(10);
/// Longest wait for any flow after the case has failed.
const AFTER_A_LOSS: Duration = Duration::from_millis(20);

impl Patience {
    /// How long to wait for a flow of which this is expected.
    fn with(&mut self, expected: &Decided) -> Duration {
        let full = match expected {
            Decided::Forward(_) => DEFAULT_TIMEOUT,
            Decided::Reject => AT_ONCE,
            Decided::Drop | Decided::Pass if self.listened >= SILENCE_IN_ALL => MOMENT,
            Decided::Drop | Decided::Pass => {
                self.listened += SILENCE;
                SILENCE
            }
        };
        if self.lost { full.min(AFTER_A_LOSS) } else { full }
    }

    /// Whether such a flow was left alone before, and is to be left alone again.
    fn knows(&mut self, probe: Probe, expected: &Decided) -> bool {
        match expected {
            Decided::Pass => !self.left_alone.insert(probe.to_string()),
            Decided::Forward(_) | Decided::Reject | Decided::Drop => {
                self.left_alone.remove(&probe.to_string());
                false
            }
        }
    }

    /// A flow did not fare as it should.
    fn lose(&mut self) {
        self.lost = true;
    }
}

impl Stage {
    /// Sends a new flow, without an affinity record, and compares. The backend that took it, if one did.
    pub(super) fn probe(&mut self, probe: Probe) -> Result<Option<BackendAddr>, Fault> {
        self.probe_as(probe, &FlowView::default())
    }

    /// The same for a flow that the datapath remembers something about.
    pub(super) fn probe_as(&mut self, probe: Probe, view: &FlowView) -> Result<Option<BackendAddr>, Fault> {
        let found = if self.carries_packets() { self.send(probe, view) } else { self.ask(probe, view) };
        found.map_err(|fault| match fault {
            Fault::Failed(reason) => {
                self.patience.lose();
                Fault::Failed(format!("{probe}: {reason}"))
            }
            excluded @ Fault::Excluded(_) => excluded,
        })
    }

    /// Whether the datapath is to forward this flow. What its capabilities leave out is not sent in bulk.
    pub(super) fn forwards(&self, probe: Probe) -> bool {
        let packet = probe.packet(probe.source());
        matches!(decide(self.model(), &packet, &FlowView::default(), self.now()).verdict, Decided::Forward(_))
    }

    /// Probes everything in turn and reports all that fails.
    pub(super) fn probe_all(&mut self, probes: impl IntoIterator<Item = Probe>) -> Result<(), Fault> {
        let (mut sent, mut failures) = (0, Vec::new());
        for probe in probes {
            sent += 1;
            match self.probe(probe) {
                Ok(_) => {}
                Err(Fault::Failed(reason)) => failures.push(reason),
                Err(excluded @ Fault::Excluded(_)) => return Err(excluded),
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        let number = failures.len();
        let hurried = match number {
            2.. if self.carries_packets() => format!(" (each after the first was waited for {AFTER_A_LOSS:?} at most)"),
            _ => String::new(),
        };
        Err(Fault::Failed(format!("{number} of {sent} flows failed{hurried}:\n  {}", failures.join("\n  "))))
    }

    fn send(&mut self, probe: Probe, view: &FlowView) -> Result<Option<BackendAddr>, Fault> {
        let before = decide(self.model(), &probe.packet(probe.source()), view, self.now()).verdict;
        if self.patience.knows(probe, &before) {
            return Ok(None);
        }
        let timeout = self.patience.with(&before);
        let outcome = self.lab()?.client(probe.origin).request(&probe.request(timeout))?;
        // Now the source port is known.
        let source = outcome.as_ref().map_or(probe.source(), |response| probe.sent_from(response));
        let decided = decide(self.model(), &probe.packet(source), view, self.now()).verdict;
        self.compare(probe, &decided, &outcome)
    }

    fn compare(&mut self, probe: Probe, decided: &Decided, outcome: &Outcome) -> Result<Option<BackendAddr>, Fault> {
        match (decided, outcome) {
            (Decided::Forward(forward), Ok(response)) => {
                let backend = self.compare_forward(probe, forward, response)?;
                if probe.protocol() == Protocol::Udp {
                    let way = (probe.origin, probe.to);
                    self.datagrams.entry((probe.sent_from(response), backend)).or_default().push(way);
                }
                Ok(Some(backend))
            }
            (Decided::Reject | Decided::Drop, Err(failure)) if probe.stopped_at_home(failure) => Ok(None),
            (Decided::Reject, Err(failure)) if failure.kind == FailureKind::Refused && failure.after < AT_ONCE => {
                Ok(None)
            }
            (Decided::Drop, Err(failure)) if failure.kind == FailureKind::Timeout => Ok(None),
            (Decided::Drop, Err(failure)) if probe.unroutable_at_home(failure) => Ok(None),
            (Decided::Drop, Err(failure)) if self.at_socket(probe) && failure.kind == FailureKind::Unreachable => {
                Ok(None)
            }
            (Decided::Pass, Err(_)) => Ok(None),
            (_, Ok(response)) => Err(Fault::Failed(format!("expected {decided:?}, but `{}` answered", response.pod))),
            (_, Err(failure)) => Err(Fault::Failed(format!("expected {decided:?}, got {failure}"))),
        }
    }

    /// Whether the datapath decides when the socket states its destination. It cannot be silent then: a dropped flow is
    /// one that has no route.
    pub(super) fn at_socket(&self, probe: Probe) -> bool {
        let SocketCapability::Connect { whose, .. } = self.capabilities().sockets else { return false };
        probe.entry() == Entry::Socket && (whose == SocketOwners::All || probe.is_of_node())
    }

    /// Whether sockets are translated where they state their destination, and packets of theirs are not.
    pub(super) fn translates_sockets(&self) -> bool {
        matches!(self.capabilities().sockets, SocketCapability::Connect { .. })
    }

    /// Whether it ends the flows of sockets that it has translated for good.
    pub(super) fn ends_sockets(&self) -> bool {
        let capabilities = self.capabilities();
        self.translates_sockets() && capabilities.evicts && capabilities.drain
    }

    fn compare_forward(&self, probe: Probe, forward: &Forward, response: &Response) -> Result<BackendAddr, Fault> {
        let backend = self.backend(probe, &response.pod, &forward.choice)?;
        ensure!(
            forward.choice.allows(&backend),
            "`{}` ({backend}) answered {}, expected {:?}",
            response.pod,
            response.local,
            forward.choice
        );
        ensure!(response.peer == probe.to, "the peer is {}, expected {}", response.peer, probe.to);
        let (seen, local) = (response.client, probe.sent_from(response));
        match forward.source_rewrite(local.ip(), backend) {
            // Two flows that differ in their VIP alone need different ports or addresses behind it.
            SourceRewrite::Kept => {
                let kept = seen.ip() == local.ip();
                let translated = || self.model().node().ips.contains(&seen.ip());
                let may_be_translated = self.is_taken(probe, local, backend) || self.goes_on(probe, local, backend);
                ensure!(
                    kept || (may_be_translated && translated()),
                    "`{}` sees {seen}, expected the client itself, {local}",
                    response.pod
                );
            }
            SourceRewrite::Translated { addr, ports } => {
                let is_translated = addr.is_none_or(|addr| addr == seen.ip()) && ports.contains(&seen.port());
                let may_be_kept = self.goes_on(probe, local, backend);
                ensure!(
                    is_translated || (may_be_kept && seen == local),
                    "`{}` sees {seen}, expected {addr:?} with a port out of {ports:?}",
                    response.pod
                );
            }
        }
        Ok(backend)
    }

    /// Whether a datagram from this very address has come to this backend in another way, through another frontend or as
    /// that of another socket of the pod: then the backend cannot tell a kept source from that one.
    fn is_taken(&self, probe: Probe, local: SocketAddr, backend: BackendAddr) -> bool {
        let ways = self.datagrams.get(&(local, backend));
        ways.is_some_and(|ways| ways.iter().any(|way| *way != (probe.origin, probe.to)))
    }

    /// Whether a datagram from this very address has come to this backend in the same way before, since the kernel gave its
    /// port to a socket again: then the flow goes on as it began, whatever a new one gets.
    fn goes_on(&self, probe: Probe, local: SocketAddr, backend: BackendAddr) -> bool {
        self.datagrams.get(&(local, backend)).is_some_and(|ways| ways.contains(&(probe.origin, probe.to)))
    }

    /// The address that a pod serves as in this choice; pods serve on several ports.
    fn backend(&self, probe: Probe, pod: &str, choice: &Choice) -> Result<BackendAddr, Fault> {
        let ports = [BACK_PORT, OTHER_BACK_PORT];
        let candidates = ports.map(|port| BackendAddr::new(pod_ip(pod, probe.family()), port, probe.protocol()));
        Ok(candidates.into_iter().find(|backend| choice.allows(backend)).unwrap_or(candidates[0]))
    }

    /// What the observed state answers, compared with what the model decides.
    fn ask(&mut self, probe: Probe, view: &FlowView) -> Result<Option<BackendAddr>, Fault> {
        let state = self.observe()?;
        let packet = probe.packet(probe.source());
        let decision = decide(self.model(), &packet, view, self.now());
        let addr = decision.frontend.unwrap_or(FrontendAddr::new(probe.to.ip(), probe.to.port(), probe.protocol()));
        let answer = state.answer(&addr, hash(&state, &addr, &packet));
        let guard = state.frontends.get(&addr).and_then(|frontend| frontend.guard.as_ref());
        let is_kept_out = guard.is_some_and(|guard| !guard.admits(&packet, &state.node));
        let other_ports = state.other_ports(packet.destination).unwrap_or_default();
        match (&decision.verdict, answer) {
            (decided, _) if is_kept_out => {
                ensure!(*decided == Decided::Drop, "the state keeps the source out, expected {decided:?}");
                Ok(None)
            }
            (decided, Answer::NotAFrontend) => {
                let fate = match other_ports {
                    OtherPorts::Drop => Decided::Drop,
                    OtherPorts::Reject => Decided::Reject,
                    OtherPorts::Pass => Decided::Pass,
                };
                ensure!(*decided == fate, "the state answers {fate:?} for another port, expected {decided:?}");
                Ok(None)
            }
            (Decided::Reject, Answer::Reject) | (Decided::Drop, Answer::Drop) => Ok(None),
            (Decided::Forward(forward), Answer::Backends(backends)) => {
                let same = match &forward.choice {
                    Choice::Exactly(backend) => backends.keys().eq([backend]),
                    Choice::OneOf(weights) => backends == *weights,
                };
                ensure!(same, "the state answers {backends:?}, expected {:?}", forward.choice);
                Ok(backends.into_keys().next())
            }
            (decided, answer) => Err(Fault::Failed(format!("the state answers {answer:?}, expected {decided:?}"))),
        }
    }
}

/// What a hashed choice of this frontend is made by.
fn hash(state: &State, addr: &FrontendAddr, packet: &Packet) -> u32 {
    let Some(frontend) = state.frontends.get(addr) else { return 0 };
    let hashed = matches!(frontend.target, Target::Set(set)
        if state.sets.get(&set).is_some_and(|set| set.lookup == Lookup::Hash));
    match frontend.affinity {
        Some(affinity) if hashed => affinity.client_hash(packet.source),
        _ => packet.flow_hash(),
    }
}

/// Name of the pod behind a backend.
pub(super) fn pod_of(backend: BackendAddr) -> &'static str {
    pod_at(backend.ip).unwrap_or("?")
}
