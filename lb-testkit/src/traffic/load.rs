//! Much traffic, as clients are asked to send it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::DEFAULT_TIMEOUT;

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
