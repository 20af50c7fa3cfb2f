//! One flow, and whether its fate is what `decide` says.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_core::{
    Answer, BackendAddr, Choice, Entry, Family, FlowView, Forward, FrontendAddr, Lookup, Packet, Protocol,
    SocketCapability, SourceRewrite, State, Target, Verdict as Decided, decide,
};

use super::{
    Fault, Stage, ensure,
    service::{BACK_PORT, CLIENT_POD, FRONT_PORT, OTHER_BACK_PORT, Vip, pod_at, pod_ip},
};
use crate::{
    lab::{Origin, topology},
    traffic::{Failure, FailureKind, Outcome, Request, Response, Transport},
};

/// "At once", for a refusal.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(300);

/// Vantage points that every datapath has to serve.
pub(super) const ORIGINS: [Origin; 5] =
    [Origin::Pod(CLIENT_POD), Origin::PodPackets(CLIENT_POD), Origin::Node(0), Origin::Client, Origin::Beyond];

/// Those whose packets, not sockets, a datapath sees, whatever it is.
pub(super) const PACKET_ORIGINS: [Origin; 3] = [Origin::PodPackets(CLIENT_POD), Origin::Client, Origin::Beyond];

pub(super) const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected];

/// A flow to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) origin: Origin,
    pub(super) to: SocketAddr,
    pub(super) transport: Transport,
    /// Address to send from; port 0 for any. Default: the kernel's choice.
    pub(super) from: Option<SocketAddr>,
}

impl Probe {
    pub(super) fn new(origin: Origin, vip: Vip, family: Family, transport: Transport) -> Self {
        Self { origin, to: (vip.ip(family), FRONT_PORT).into(), transport, from: None }
    }

    /// From every vantage point, in both families, over every transport.
    pub(super) fn everywhere(vip: Vip) -> impl Iterator<Item = Self> {
        Self::from_origins(&ORIGINS, vip)
    }

    pub(super) fn from_origins(origins: &[Origin], vip: Vip) -> impl Iterator<Item = Self> {
        origins.iter().copied().flat_map(move |origin| {
            topology::FAMILIES.into_iter().flat_map(move |family| {
                TRANSPORTS.into_iter().map(move |transport| Self::new(origin, vip, family, transport))
            })
        })
    }

    pub(super) fn from(mut self, from: SocketAddr) -> Self {
        self.from = Some(from);
        self
    }

    pub(super) fn family(&self) -> Family {
        Family::of(self.to.ip())
    }

    pub(super) fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp | Transport::UdpUnconnected => Protocol::Udp,
        }
    }

    fn entry(&self) -> Entry {
        match self.origin {
            Origin::Pod(_) | Origin::Node(_) | Origin::NodePackets(_) => Entry::Socket,
            Origin::PodPackets(_) => Entry::PodDevice,
            Origin::Client | Origin::Beyond => Entry::Uplink,
        }
    }

    /// The packet that enters node 0, from `source`.
    fn packet(&self, source: SocketAddr) -> Packet {
        Packet {
            entry: self.entry(),
            protocol: self.protocol(),
            source: source.ip(),
            source_port: source.port(),
            destination: self.to.ip(),
            destination_port: self.to.port(),
        }
    }

    /// Where the answered flow was sent from; a socket that is not connected does not know its address.
    fn sent_from(&self, response: &Response) -> SocketAddr {
        let ip = Some(response.local.ip()).filter(|ip| !ip.is_unspecified());
        SocketAddr::new(ip.unwrap_or(self.sender()), response.local.port())
    }

    /// Whether a failure is how this sender learns that its datagram was stopped on its own host: at the output hook
    /// the system call itself fails.
    fn stopped_at_home(&self, failure: &Failure) -> bool {
        self.is_datagram_of_node() && failure.kind == FailureKind::Denied
    }

    /// The same by a route: only a socket that asked for errors learns of it.
    fn unroutable_at_home(&self, failure: &Failure) -> bool {
        self.is_datagram_of_node() && failure.kind == FailureKind::Unreachable
    }

    fn is_datagram_of_node(&self) -> bool {
        let at_home = matches!(self.origin, Origin::Node(_) | Origin::NodePackets(_));
        at_home && self.protocol() == Protocol::Udp
    }

    /// Its source address.
    pub(super) fn sender(&self) -> IpAddr {
        self.source().ip()
    }

    /// Where it is sent from, as far as that is known before.
    fn source(&self) -> SocketAddr {
        let ip = match self.origin {
            Origin::Pod(_) | Origin::PodPackets(_) => pod_ip("client", self.family()),
            Origin::Node(node) | Origin::NodePackets(node) => topology::node_ip(node, self.family()),
            Origin::Client => topology::client_ip(topology::segment(self.family()), 0),
            Origin::Beyond => topology::client_ip(topology::beyond(self.family()), 0),
        };
        self.from.unwrap_or((ip, 0).into())
    }

    fn request(&self, timeout: Duration) -> Request {
        let request = Request::over(self.transport, self.to).timeout(timeout);
        match self.from {
            Some(from) => request.from(from),
            None => request,
        }
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
            Fault::Failed(reason) => Fault::Failed(format!(
                "{:?} from {:?}{} to {}: {reason}",
                probe.transport,
                probe.origin,
                probe.from.map(|from| format!(" ({from})")).unwrap_or_default(),
                probe.to
            )),
            excluded @ Fault::Excluded(_) => excluded,
        })
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
        Err(Fault::Failed(format!("{} of {sent} flows failed:\n  {}", failures.len(), failures.join("\n  "))))
    }

    fn send(&self, probe: Probe, view: &FlowView) -> Result<Option<BackendAddr>, Fault> {
        let before = decide(self.model(), &probe.packet(probe.source()), view, self.now()).verdict;
        let patience = match before {
            Decided::Forward(_) => crate::traffic::DEFAULT_TIMEOUT,
            Decided::Reject => AT_ONCE,
            Decided::Drop | Decided::Pass => SILENCE,
        };
        let outcome = self.lab()?.client(probe.origin).request(&probe.request(patience))?;
        // Now the source port is known.
        let source = outcome.as_ref().map_or(probe.source(), |response| probe.sent_from(response));
        let decided = decide(self.model(), &probe.packet(source), view, self.now()).verdict;
        self.compare(probe, &decided, &outcome)
    }

    fn compare(&self, probe: Probe, decided: &Decided, outcome: &Outcome) -> Result<Option<BackendAddr>, Fault> {
        match (decided, outcome) {
            (Decided::Forward(forward), Ok(response)) => self.compare_forward(probe, forward, response).map(Some),
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
    fn at_socket(&self, probe: Probe) -> bool {
        probe.entry() == Entry::Socket && self.translates_sockets()
    }

    /// Whether sockets are translated where they state their destination, and packets of theirs are not.
    pub(super) fn translates_sockets(&self) -> bool {
        matches!(self.capabilities().sockets, SocketCapability::Connect { .. })
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
            // Two flows that differ in their VIP alone need different ports behind it.
            SourceRewrite::Kept => {
                ensure!(seen.ip() == local.ip(), "`{}` sees {seen}, expected the client itself, {local}", response.pod);
            }
            SourceRewrite::Translated { addr, ports } => {
                ensure!(
                    addr.is_none_or(|addr| addr == seen.ip()) && ports.contains(&seen.port()),
                    "`{}` sees {seen}, expected {addr:?} with a port out of {ports:?}",
                    response.pod
                );
            }
        }
        Ok(backend)
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
        match (&decision.verdict, answer) {
            (Decided::Pass, Answer::NotAFrontend)
            | (Decided::Reject, Answer::Reject)
            | (Decided::Drop, Answer::Drop) => Ok(None),
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
