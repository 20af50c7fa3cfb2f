//! Sending from the vantage points of a lab.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_core::addr::Family;

use super::{Lab, PROMPT, topology};
use crate::{
    error::LabError,
    traffic::{DEFAULT_TIMEOUT, Latencies, Load, Outcome, Report, Request, Transport, Until},
    worker::{
        Remote, Token,
        protocol::{Answer, Command, ConnectRace, Hold},
    },
};

/// Where traffic comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A process of the pod with this index, in its node's cgroup: cgroup hooks see its sockets.
    Pod(usize),
    /// The same namespace, but a process outside of the cgroup: only packets are seen.
    PodPackets(usize),
    /// A process of the node with this index, in its cgroup.
    Node(usize),
    /// The node's namespace, but a process outside of its cgroup.
    NodePackets(usize),
    /// The client on the segment.
    Client,
    /// The client beyond the router.
    Beyond,
}

/// Something that sends from one vantage point, on behalf of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Client<'lab> {
    lab: &'lab Lab,
    origin: Origin,
}

impl<'lab> Client<'lab> {
    pub(super) fn new(lab: &'lab Lab, origin: Origin) -> Self {
        let there_is = match origin {
            Origin::Pod(pod) | Origin::PodPackets(pod) => pod < lab.pods.len(),
            Origin::Node(node) | Origin::NodePackets(node) => node < lab.nodes.len(),
            Origin::Client | Origin::Beyond => true,
        };
        assert!(there_is, "the lab has {} nodes and {} pods, not {origin:?}", lab.nodes.len(), lab.pods.len());
        Self { lab, origin }
    }

    /// Where it sends from.
    #[must_use]
    pub fn origin(self) -> Origin {
        self.origin
    }

    /// The address that it sends from unless told otherwise.
    #[must_use]
    pub fn ip(self, family: Family) -> IpAddr {
        match self.origin {
            Origin::Pod(pod) | Origin::PodPackets(pod) => super::Pod { lab: self.lab, index: pod }.ip(family),
            Origin::Node(node) | Origin::NodePackets(node) => topology::node_ip(node, family),
            Origin::Client => topology::client_ip(topology::segment(family), 0),
            Origin::Beyond => topology::client_ip(topology::beyond(family), 0),
        }
    }

    /// Every address that it can send from; more than one for outside clients of a lab that was built so.
    #[must_use]
    pub fn ips(self, family: Family) -> Vec<IpAddr> {
        let net = match self.origin {
            Origin::Client => topology::segment(family),
            Origin::Beyond => topology::beyond(family),
            Origin::Pod(_) | Origin::PodPackets(_) | Origin::Node(_) | Origin::NodePackets(_) => {
                return vec![self.ip(family)];
            }
        };
        (0..self.lab.client_addresses).map(|index| topology::client_ip(net, index)).collect()
    }

    /// Sends one request and waits for what comes of it.
    ///
    /// # Errors
    /// When the worker fails; a request that fails is an [`Outcome`].
    pub fn request(self, request: &Request) -> Result<Outcome, LabError> {
        let command = Command::Request { netns: self.netns(), request: request.clone() };
        match self.worker().call(command, PROMPT + request.timeout * 3)? {
            Answer::Outcome(outcome) => Ok(outcome),
            answer => Err(self.mismatch(&answer)),
        }
    }

    /// Sends the same request `times` times, one after the other.
    ///
    /// # Errors
    /// When the worker fails.
    pub fn requests(self, request: &Request, times: usize) -> Result<Vec<Outcome>, LabError> {
        (0..times).map(|_| self.request(request)).collect()
    }

    /// Opens sockets to one place, keeps them, and asks once on each. Once one cannot be opened, those after it are not
    /// tried and fail as it did.
    ///
    /// # Errors
    /// When the worker fails; sockets that fail are in [`Held::opened`].
    pub fn hold(self, transport: Transport, to: SocketAddr, sockets: usize) -> Result<Held<'lab>, LabError> {
        let timeout = DEFAULT_TIMEOUT;
        let hold = Hold { transport, to, sockets, timeout };
        let wait = PROMPT + timeout * u32::try_from(sockets).unwrap_or(u32::MAX);
        match self.worker().call(Command::Hold { netns: self.netns(), hold }, wait)? {
            Answer::Held { id, outcomes } => Ok(Held { worker: self.worker(), id, opened: outcomes, wait }),
            answer => Err(self.mismatch(&answer)),
        }
    }

    /// Carries out a load to its end.
    ///
    /// # Errors
    /// When the worker fails, or for a load that ends only when it is stopped.
    pub fn load(self, load: &Load) -> Result<Report, LabError> {
        let wait = match load.until {
            Until::Requests(requests) => {
                let each = load.timeout * 3 + load.interval;
                PROMPT.saturating_add(each.saturating_mul(u32::try_from(requests).unwrap_or(u32::MAX)))
            }
            Until::Elapsed(elapsed) => PROMPT + elapsed + load.timeout * 3 + load.interval,
            Until::Stopped => return Err(LabError::Unknown("end of a load that is to be stopped".into())),
        };
        self.start_load(load)?.finish(wait)
    }

    /// Begins a load and leaves it running.
    ///
    /// # Errors
    /// When the worker is gone.
    pub fn start_load(self, load: &Load) -> Result<Running<'lab>, LabError> {
        let token = self.worker().begin(Command::Load { netns: self.netns(), load: load.clone() })?;
        let wait = PROMPT + load.timeout * 3 + load.interval;
        Ok(Running { worker: self.worker(), token, wait })
    }

    /// Connects to each place in turn, `rounds` times, one connection after the other, and resets each at once. How
    /// long `connect` took, by place; what happens to the machine in between hits all places alike.
    ///
    /// # Errors
    /// When the worker fails or a connection does.
    pub fn connect_race(self, to: &[SocketAddr], rounds: u32) -> Result<Vec<Latencies>, LabError> {
        let race = ConnectRace { to: to.into(), rounds, timeout: DEFAULT_TIMEOUT };
        let wait = PROMPT + DEFAULT_TIMEOUT.saturating_mul(rounds);
        match self.worker().call(Command::Connect { netns: self.netns(), race }, wait)? {
            Answer::Connects(latencies, errors) => match errors.iter().position(|error| !error.is_empty()) {
                Some(place) => {
                    let message = format!("connecting to {} failed: {}", to[place], errors[place]);
                    Err(LabError::Worker { worker: format!("{:?}", self.origin), message })
                }
                None => Ok(latencies),
            },
            answer => Err(self.mismatch(&answer)),
        }
    }

    fn worker(self) -> &'lab Remote {
        let node_of = |pod: usize| &self.lab.nodes[self.lab.pods[pod].spec.node];
        match self.origin {
            Origin::Pod(pod) => &node_of(pod).inside,
            Origin::PodPackets(pod) => &node_of(pod).packets,
            Origin::Node(node) => &self.lab.nodes[node].inside,
            Origin::NodePackets(node) => &self.lab.nodes[node].packets,
            Origin::Client | Origin::Beyond => self.lab.outside(),
        }
    }

    fn netns(self) -> String {
        match self.origin {
            Origin::Pod(pod) | Origin::PodPackets(pod) => self.lab.pods[pod].netns.path(),
            Origin::Node(node) | Origin::NodePackets(node) => self.lab.nodes[node].netns.path(),
            Origin::Client => self.lab.client.path(),
            Origin::Beyond => self.lab.beyond.path(),
        }
    }

    fn mismatch(self, answer: &Answer) -> LabError {
        let message = format!("not an answer to the command: {answer:?}");
        LabError::Worker { worker: format!("{:?}", self.origin), message }
    }
}

/// Sockets that a worker keeps open; they close when this is dropped.
#[derive(Debug)]
pub struct Held<'lab> {
    worker: &'lab Remote,
    id: u64,
    opened: Vec<Outcome>,
    wait: Duration,
}

impl Held<'_> {
    /// What came of the first question on each socket.
    pub fn opened(&self) -> &[Outcome] {
        &self.opened
    }

    /// Asks once more on each socket, first all questions, then all answers. A TCP connection that broke stays broken
    /// ([`Closed`](crate::traffic::FailureKind::Closed)); a UDP socket goes
    /// on. One that somebody ended ([`Reset`](crate::traffic::FailureKind::Reset)) is connected again at the next question.
    ///
    /// # Errors
    /// When the worker fails.
    pub fn exchange(&self) -> Result<Vec<Outcome>, LabError> {
        match self.worker.call(Command::Exchange(self.id), self.wait)? {
            Answer::Outcomes(outcomes) => Ok(outcomes),
            answer => {
                let message = format!("not an answer to the command: {answer:?}");
                Err(LabError::Worker { worker: "of held sockets".into(), message })
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // A worker that is gone holds nothing.
        let _ = self.worker.begin(Command::Release(self.id));
    }
}

/// A load under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Running<'lab> {
    worker: &'lab Remote,
    token: Token,
    wait: Duration,
}

impl Running<'_> {
    /// Ends the load after the requests under way and says what came of it.
    ///
    /// # Errors
    /// When the worker fails.
    pub fn stop(self) -> Result<Report, LabError> {
        self.worker.begin(Command::StopLoad(self.token.number))?;
        let wait = self.wait;
        self.finish(wait)
    }

    /// How many requests were answered so far.
    ///
    /// # Errors
    /// When the worker fails, or the load has ended on its own.
    pub fn answered(&self) -> Result<u64, LabError> {
        match self.worker.call(Command::CountLoad(self.token.number), PROMPT)? {
            Answer::Count(count) => Ok(count),
            answer => {
                let message = format!("not an answer to the command: {answer:?}");
                Err(LabError::Worker { worker: "of a load".into(), message })
            }
        }
    }

    /// Waits for the load's own end.
    ///
    /// # Errors
    /// When it does not end within `wait`, or the worker fails.
    pub fn finish(self, wait: Duration) -> Result<Report, LabError> {
        match self.worker.finish(&self.token, wait)? {
            Answer::Report(report) => Ok(report),
            answer => {
                let message = format!("not an answer to the command: {answer:?}");
                Err(LabError::Worker { worker: "of a load".into(), message })
            }
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // A worker that is gone carries out nothing, and one that has finished ignores this.
        let _ = self.worker.begin(Command::StopLoad(self.token.number));
    }
}
