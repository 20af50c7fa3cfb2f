//! What clients are asked to send, and what came of it.

mod load;
mod report;

use std::{fmt, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    load::{Load, LoadKind, Until},
    report::{Latencies, Report},
};

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
#[non_exhaustive]
pub enum FailureKind {
    /// `ECONNREFUSED`: a reset, or ICMP port unreachable.
    Refused,
    /// Silence until the time-out.
    Timeout,
    /// No route, or an ICMP error that says so.
    Unreachable,
    /// An established connection was reset, or somebody ended a connected socket.
    Reset,
    /// The other side closed an established connection without an answer.
    Closed,
    /// A local policy said no: `EPERM` or `EACCES`.
    Denied,
    /// The device did not take it: `ENOBUFS`. A full queue says so, and whoever drops it on its way out.
    NotTaken,
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
            Self::NotTaken => "not taken by the device",
            Self::Other => "error",
        })
    }
}
