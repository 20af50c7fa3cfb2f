//! What clients are told to send, and what they say came of it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// How long a client waits for an answer unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// Transport of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// HTTP/1.1 over TCP.
    Tcp,
    /// One datagram out of a connected socket, which learns of ICMP errors.
    Udp,
    /// One datagram out of a socket that is not connected (`sendto`, `recvfrom`); it asks for ICMP errors
    /// (`IP_RECVERR`).
    UdpUnconnected,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Where to.
    pub to: SocketAddr,
    /// Over what.
    pub transport: Transport,
    /// Address to send from. Default: the kernel's choice. Port 0: any port of that address.
    pub from: Option<SocketAddr>,
    /// Path of an HTTP request. Default `/`.
    pub path: String,
    /// How long to wait for each step. Default [`DEFAULT_TIMEOUT`].
    pub timeout: Duration,
}

impl Request {
    /// `GET /` over TCP.
    #[must_use]
    pub fn http(to: SocketAddr) -> Self {
        Self::over(Transport::Tcp, to)
    }

    /// A datagram out of a connected socket.
    #[must_use]
    pub fn udp(to: SocketAddr) -> Self {
        Self::over(Transport::Udp, to)
    }

    /// A request with everything else at its default.
    #[must_use]
    pub fn over(transport: Transport, to: SocketAddr) -> Self {
        Self { to, transport, from: None, path: "/".into(), timeout: DEFAULT_TIMEOUT }
    }

    /// Sends from this address and port.
    #[must_use]
    pub fn from(mut self, from: SocketAddr) -> Self {
        self.from = Some(from);
        self
    }

    /// Waits this long.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// What came of a request.
pub type Outcome = Result<Response, Failure>;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Name of the pod that answered.
    pub pod: String,
    /// The client's address as the server saw it.
    pub client: SocketAddr,
    /// The peer as the client's socket names it: `getpeername`, or where `recvfrom` says the datagram is from.
    pub peer: SocketAddr,
    /// The client's own end of the socket.
    pub local: SocketAddr,
    /// From `connect` (or `send`) to the end of the answer.
    pub latency: Duration,
    /// What the server wrote, headers of HTTP left out.
    pub body: String,
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind} after {after:?}: {detail}")]
pub struct Failure {
    /// Class.
    pub kind: FailureKind,
    /// What failed, and the system's words.
    pub detail: String,
    /// Time from the start of the request.
    pub after: Duration,
}

/// Class of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FailureKind {
    /// `ECONNREFUSED`: a reset, or ICMP port unreachable.
    Refused,
    /// Silence until the time-out.
    Timeout,
    /// No route, or an ICMP error that says so.
    Unreachable,
    /// An established connection was reset.
    Reset,
    /// The other side closed an established connection without an answer.
    Closed,
    /// A local policy said no: `EPERM` or `EACCES`.
    Denied,
    /// Anything else.
    Other,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Denied => "denied",
            Self::Other => "error",
        })
    }
}

/// Much traffic to one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub kind: LoadKind,
    /// How many lanes send, each waiting for its answer before it sends again. Default 1.
    pub lanes: usize,
    /// When it ends. Default: after 100 requests.
    pub until: Until,
    /// Address to send from. Default: the kernel's choice.
    pub from: Option<IpAddr>,
    /// Source ports of [`LoadKind::Datagrams`], first and last: each is used once, and the load ends with the last one.
    /// Default: the kernel's choice, which comes round.
    pub ports: Option<(u16, u16)>,
    /// Time between the requests of one lane. Default: none.
    pub interval: Duration,
    /// How long to wait for each step. Default [`DEFAULT_TIMEOUT`].
    pub timeout: Duration,
}

impl Load {
    /// A load with everything else at its default.
    #[must_use]
    pub fn new(kind: LoadKind, to: SocketAddr) -> Self {
        Self {
            to,
            kind,
            lanes: 1,
            until: Until::Requests(100),
            from: None,
            ports: None,
            interval: Duration::ZERO,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Ends after this many requests of all lanes together.
    #[must_use]
    pub fn requests(mut self, requests: u64) -> Self {
        self.until = Until::Requests(requests);
        self
    }

    /// Ends as `until` says.
    #[must_use]
    pub fn until(mut self, until: Until) -> Self {
        self.until = until;
        self
    }

    /// Sends on this many lanes.
    #[must_use]
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = lanes;
        self
    }

    /// Sends datagrams from these ports, each once.
    #[must_use]
    pub fn ports(mut self, first: u16, last: u16) -> Self {
        self.ports = Some((first, last));
        self
    }

    /// Pauses between the requests of a lane.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }
}

/// What a load consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadKind {
    /// One HTTP request per new connection, closed by a reset so that no port stays in TIME_WAIT. Latency covers
    /// all of it.
    NewConnections,
    /// `connect` and a reset; nothing is asked, so every answer counts for the backend `""`. Latency covers `connect`
    /// alone.
    ConnectOnly,
    /// One connection per lane, asked again and again; a lane whose connection breaks counts one failure and ends.
    LongLived,
    /// This many long-lived connections per lane, from one thread: all of them are asked, then all answers are read. A
    /// question has a number, and an answer has to repeat it. One that breaks counts one failure and is not opened
    /// again. [`Until::Requests`] counts rounds.
    Crowd(usize),
    /// One datagram per new connected socket.
    Datagrams,
    /// One connected socket per lane, asked again and again, whatever happens.
    DatagramStream,
}

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// After this many requests of all lanes together.
    Requests(u64),
    /// After this time.
    Elapsed(Duration),
    /// When it is [stopped](crate::lab::Running::stop).
    Stopped,
}

/// What came of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Answers by pod.
    pub backends: BTreeMap<String, u64>,
    /// Failures by kind.
    pub failures: BTreeMap<FailureKind, u64>,
    /// One failure in words.
    pub example: Option<Failure>,
    /// Latencies of the answers.
    pub latencies: Latencies,
    /// TCP segments that clients had to send again, on connections of [`LoadKind::Crowd`].
    pub retransmitted: u64,
    /// Those of them that had not arrived before: the others were late, or their acknowledgements were.
    pub lost_segments: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
}

impl Report {
    /// Answers of all pods.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.backends.values().sum()
    }

    /// Failures of all kinds.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Answers per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Counts one request.
    pub fn record(&mut self, outcome: Outcome) {
        match outcome {
            Ok(response) => {
                *self.backends.entry(response.pod).or_default() += 1;
                self.latencies.record(response.latency);
            }
            Err(failure) => {
                *self.failures.entry(failure.kind).or_default() += 1;
                self.example.get_or_insert(failure);
            }
        }
    }

    /// Adds another report, taken at the same time as this one.
    pub fn merge(&mut self, other: Self) {
        for (pod, count) in other.backends {
            *self.backends.entry(pod).or_default() += count;
        }
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        self.example = self.example.take().or(other.example);
        self.latencies.merge(&other.latencies);
        self.retransmitted += other.retransmitted;
        self.lost_segments += other.lost_segments;
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

/// Distribution of latencies, exact to a thousandth, in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    const DIGITS: u8 = 3;

    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        self.record_n(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX), 1);
    }

    /// Adds those of another distribution.
    pub fn merge(&mut self, other: &Self) {
        for value in other.0.iter_recorded() {
            self.record_n(value.value_iterated_to(), value.count_at_value());
        }
    }

    fn record_n(&mut self, nanoseconds: u64, count: u64) {
        self.0.record_n(nanoseconds, count).expect("the histogram grows to any value");
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share (0.0..=1.0) of all does not exceed. Zero if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// Median.
    #[must_use]
    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// Ninety-ninth percentile.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Mean.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.mean() / 1e9)
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(Self::DIGITS).expect("three digits are within the histogram's 0..=5"))
    }
}

impl From<Vec<(u64, u64)>> for Latencies {
    fn from(buckets: Vec<(u64, u64)>) -> Self {
        let mut latencies = Self::default();
        for (nanoseconds, count) in buckets {
            latencies.record_n(nanoseconds, count);
        }
        latencies
    }
}

impl From<Latencies> for Vec<(u64, u64)> {
    fn from(latencies: Latencies) -> Self {
        latencies.0.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_survive_the_way_through_json() {
        let mut latencies = Latencies::default();
        for micros in 1..=1000 {
            latencies.record(Duration::from_micros(micros));
        }
        let json = serde_json::to_string(&latencies).unwrap();
        let back: Latencies = serde_json::from_str(&json).unwrap();
        assert_eq!((back.count(), back.p50(), back.max()), (1000, latencies.p50(), latencies.max()));
        assert!((back.p99().as_micros() as i64 - 990).abs() <= 1, "{:?}", back.p99());
    }

    #[test]
    fn merged_reports_count_both() {
        let failure = Failure { kind: FailureKind::Refused, detail: String::new(), after: Duration::ZERO };
        let mut one = Report::default();
        one.record(Err(failure.clone()));
        let mut other = Report::default();
        other.record(Err(failure));
        one.merge(other);
        assert_eq!((one.answered(), one.failed()), (0, 2));
        assert_eq!(one.failures, BTreeMap::from([(FailureKind::Refused, 2)]));
    }
}
