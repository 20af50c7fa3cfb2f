//! The asking half.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{Backend, Explanation, Problem, Service, Status, http};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks an agent through its socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
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
    #[error("the agent's socket {socket} is not ours to use: ask as the user that the agent runs as, usually root")]
    Denied {
        /// The socket.
        socket: PathBuf,
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
        Self { socket: socket.into() }
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

    /// What would become of a packet. Without `entry` the agent goes by the source's address.
    ///
    /// # Errors
    /// When there is no answer, or when the agent does not understand the packet.
    pub fn explain(
        &self,
        protocol: &str,
        source: &str,
        destination: &str,
        entry: Option<&str>,
    ) -> Result<Explanation, ClientError> {
        let [protocol, source, destination] = [protocol, source, destination].map(http::encode);
        let entry = entry.map(|entry| format!("&entry={}", http::encode(entry))).unwrap_or_default();
        self.ask(&format!("/v1/explain?protocol={protocol}&source={source}&destination={destination}{entry}"))
    }

    fn ask<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        let (status, body) = self.exchange(target).map_err(|error| self.explained(error))?;
        let not_understood = |source| ClientError::Answer { socket: self.socket.clone(), source };
        if status == 200 {
            return serde_json::from_slice(&body).map_err(not_understood);
        }
        let Problem { error } = serde_json::from_slice(&body).map_err(not_understood)?;
        Err(if status == 404 { ClientError::NotFound(error) } else { ClientError::Refused(error) })
    }

    fn exchange(&self, target: &str) -> io::Result<(u16, Vec<u8>)> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        http::write_request(&stream, target)?;
        http::read_response(&stream)
    }

    fn explained(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent { socket },
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            _ => ClientError::Io { socket, source },
        }
    }
}
