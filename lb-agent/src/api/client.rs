//! The asking half.

use std::{
    io::{self, BufRead, BufReader},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{
    Backend, DriftNews, DriftReport, Explanation, Pool, PoolAddress, PoolDetail, PoolPlan, Problem, Question, Service,
    Status, http,
    query::{AddressQuestion, PlanQuestion, PoolQuestion, target},
};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks an agent through its socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("no agent answers on {socket}: is it running? use --socket if it listens elsewhere")]
    NoAgent {
        /// Where somebody was expected.
        socket: PathBuf,
    },
    /// The socket is somebody else's.
    #[error(
        "the agent's socket {socket} cannot be looked at (permission denied): run this as root, or as the user that the \
         agent runs as"
    )]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// Somebody is there and says nothing.
    #[error(
        "the agent on {socket} did not answer in {} s: it hangs, is stopped, or is very busy",
        patience.as_secs_f32()
    )]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The conversation broke off.
    #[error("talking to the agent on {socket} failed: {source}")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The agent knows no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The agent could not answer.
    #[error("the agent says: {0}")]
    Refused(String),
    /// The answer is not what it should be.
    #[error("the answer of the agent on {socket} is not understood, its version may differ from this one: {source}")]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Client {
    /// A client of the agent that listens on `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into(), patience: PATIENCE }
    }

    /// All services.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn services(&self) -> Result<Vec<Service>, ClientError> {
        self.ask("/v1/services")
    }

    /// All backends of all services.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn backends(&self) -> Result<Vec<Backend>, ClientError> {
        self.ask("/v1/backends")
    }

    /// The agent's own state.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.ask("/v1/status")
    }

    /// Has the datapath inspected and says where it does not hold what it should.
    ///
    /// # Errors
    /// When there is no answer, or when the datapath cannot be inspected.
    pub fn drift(&self) -> Result<DriftReport, ClientError> {
        self.ask("/v1/drift")
    }

    /// Each difference as it is found and repaired from now on. A reader that is too slow is cut off.
    ///
    /// # Errors
    /// When there is no answer, or when too many clients watch already.
    pub fn watch_drift(&self) -> Result<DriftWatch, ClientError> {
        let watch = || -> io::Result<_> {
            let stream = self.connect("/v1/drift/watch", None)?;
            let mut lines = BufReader::new(stream);
            let status = http::read_response_head(&mut lines)?;
            Ok((status, lines))
        };
        let (status, mut lines) = watch().map_err(|error| self.explained(error))?;
        if status == 200 {
            // News may be a long time coming.
            let patient = lines.get_ref().set_read_timeout(None);
            patient.map_err(|error| self.explained(error))?;
            return Ok(DriftWatch { client: self.clone(), lines });
        }
        let mut body = Vec::new();
        io::Read::read_to_end(&mut lines, &mut body).map_err(|error| self.explained(error))?;
        Err(self.refused(status, &body))
    }

    /// What would become of a packet.
    ///
    /// # Errors
    /// When there is no answer, when the agent does not understand the question, or when the kernel is to be asked and
    /// cannot be.
    pub fn explain(&self, question: &Question) -> Result<Explanation, ClientError> {
        self.ask(&target("/v1/explain", question))
    }

    /// All pools, in the order in which they are asked.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn pools(&self) -> Result<Vec<Pool>, ClientError> {
        self.ask("/v1/pools")
    }

    /// One pool and its addresses.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] if there is no such pool; or when there is no answer.
    pub fn pool(&self, name: &str) -> Result<PoolDetail, ClientError> {
        self.ask(&target("/v1/pools/get", &PoolQuestion { name: name.into() }))
    }

    /// What an address is to the pools.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn explain_address(&self, address: IpAddr) -> Result<PoolAddress, ClientError> {
        self.ask(&target("/v1/pools/explain", &AddressQuestion { address }))
    }

    /// What would happen if the objects of `manifests` joined or replaced those that there are, and the pools `removed`
    /// went.
    ///
    /// # Errors
    /// When there is no answer, or when the manifests would be rejected.
    pub fn plan_pools(&self, file: &str, manifests: &str, removed: &[String]) -> Result<PoolPlan, ClientError> {
        let target = target("/v1/pools/plan", &PlanQuestion { file: file.into(), remove: removed.into() });
        self.exchange(&target, Some(manifests.as_bytes()))
    }

    fn ask<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        self.exchange(target, None)
    }

    fn exchange<T: DeserializeOwned>(&self, target: &str, body: Option<&[u8]>) -> Result<T, ClientError> {
        let answer = self.connect(target, body).and_then(http::read_response);
        let (status, body) = answer.map_err(|error| self.explained(error))?;
        if status == 200 { self.understand(&body) } else { Err(self.refused(status, &body)) }
    }

    /// A connection on which `target` was asked for.
    fn connect(&self, target: &str, body: Option<&[u8]>) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        http::write_request(&stream, target, body)?;
        Ok(stream)
    }

    fn understand<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T, ClientError> {
        let not_understood = |source| ClientError::Answer { socket: self.socket.clone(), source };
        serde_json::from_slice(text).map_err(not_understood)
    }

    fn refused(&self, status: u16, body: &[u8]) -> ClientError {
        match self.understand(body) {
            Ok(Problem { error }) if status == 404 => ClientError::NotFound(error),
            Ok(Problem { error }) => ClientError::Refused(error),
            Err(error) => error,
        }
    }

    fn explained(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent { socket },
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            // What a timeout of a socket is to the system.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Silent { socket, patience: self.patience }
            }
            _ => ClientError::Io { socket, source },
        }
    }
}

/// News of drift, as it comes. Ends when the agent does, or when this reader was too slow.
#[derive(Debug)]
pub struct DriftWatch {
    client: Client,
    lines: BufReader<UnixStream>,
}

impl Iterator for DriftWatch {
    type Item = Result<DriftNews, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        match self.lines.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(self.client.understand(&line)),
            Err(error) => Some(Err(self.client.explained(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_agent_that_is_stopped_is_named_and_not_the_systems_word_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("lb.sock");
        // The system accepts for it, as for a process that is stopped.
        let _agent = UnixListener::bind(&socket).unwrap();
        let client = Client { patience: Duration::from_millis(500), ..Client::new(&socket) };
        let expected = format!("the agent on {} did not answer in 0.5 s: ", socket.display());
        for error in [client.status().unwrap_err(), client.watch_drift().unwrap_err()] {
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }
}
