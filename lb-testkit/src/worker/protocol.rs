//! What a lab and its workers say to each other.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::traffic::{Latencies, Load, Outcome, Report, Request, Transport};

/// A command with the number that its answer carries.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) number: u64,
    pub(crate) command: Command,
}

/// The answer to the command of the same number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) number: u64,
    pub(crate) answer: Result<Answer, String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Answered with `Done` as soon as the ports are open.
    Serve(Serve),
    /// Closes the server of this name and its connections.
    StopServing(String),
    Request {
        netns: String,
        request: Request,
    },
    Hold {
        netns: String,
        hold: Hold,
    },
    Exchange(u64),
    Release(u64),
    Load {
        netns: String,
        load: Load,
    },
    /// Ends the load that the command of this number began.
    StopLoad(u64),
    /// Answered with the requests of that load that were answered so far.
    CountLoad(u64),
    Connect {
        netns: String,
        race: ConnectRace,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Outcome(Outcome),
    Held { id: u64, outcomes: Vec<Outcome> },
    Outcomes(Vec<Outcome>),
    Report(Report),
    Count(u64),
    Connects(Vec<Latencies>, Vec<String>),
}

/// A server to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Serve {
    pub(crate) netns: String,
    pub(crate) who: Who,
    /// Ports of HTTP.
    pub(crate) http: Vec<u16>,
    /// Ports of UDP echo.
    pub(crate) udp: Vec<u16>,
}

/// What a server says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Who {
    pub(crate) node: String,
    pub(crate) pod: String,
    pub(crate) namespace: String,
    pub(crate) ips: Vec<IpAddr>,
}

/// Sockets to be opened and kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hold {
    pub(crate) transport: Transport,
    pub(crate) to: SocketAddr,
    pub(crate) sockets: usize,
    pub(crate) timeout: std::time::Duration,
}

/// Connections to several places in turn, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConnectRace {
    pub(crate) to: Vec<SocketAddr>,
    pub(crate) rounds: u32,
    pub(crate) timeout: std::time::Duration,
}
