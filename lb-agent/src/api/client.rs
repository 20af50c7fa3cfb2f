//! The asking half.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    net::UnixStream,
    runtime::{self, Runtime},
    task, time,
};

use super::{
    Backend, DriftNews, DriftReport, ExplainQuery, Explanation, Pool, PoolAddress, PoolDetail, PoolPlan, Problem,
    Service, Status,
    query::{AddressQuery, PlanQuery, PoolQuery, target},
};
use lb_core::error::report;

/// How long the agent may take to take the request and to answer, and for each part of a long answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer: a hundred thousand services have about a hundred million.
const MAX_ANSWER: usize = 1 << 30;
/// Most bytes of a line of `/v1/drift/watch`, whose longest texts have about a thousand.
const MAX_LINE: usize = 1 << 20;
/// The pace of trying again while the agent has no room for another connection.
const PACE: Duration = Duration::from_millis(20);

/// Asks an agent through its socket. Every call blocks.
///
/// # Panics
/// Calls panic on a thread of an asynchronous runtime: use its threads for blocking work.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No agent listens on the socket.
    #[error(
        "no agent answers on {socket}: start one (`lb agent --help` has examples), or name the socket of the one that \
         runs with --socket or LB_SOCKET, or its configuration file with --config"
    )]
    NoAgent {
        /// The socket.
        socket: PathBuf,
    },
    /// Another user owns the socket.
    #[error(
        "the agent's socket {socket} is not accessible (permission denied): run this as root, or as the user of the \
         agent"
    )]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// The agent does not answer in time.
    #[error(
        "the agent on {socket} did not answer within {} s: the agent hangs, is stopped, or is very busy",
        patience.as_secs_f32()
    )]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long the client waited.
        patience: Duration,
    },
    /// The connection broke off, or its other end does not speak HTTP.
    #[error("communication with the agent on {socket} failed: {source}")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// The error of the connection.
        source: io::Error,
    },
    /// The agent knows no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The agent refused the question, or could not answer it.
    #[error("the agent says: {0}")]
    Refused(String),
    /// The answer is not of the type that was expected.
    #[error("the answer of the agent on {socket} is not understood; its version may differ from this one: {source}")]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// Where the answer differs.
        source: serde_json::Error,
    },
}

impl Client {
    /// A client of the agent that listens on `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into(), patience: PATIENCE }
    }

    /// The same with another time that the agent may take to answer. Default: 10 s.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// All services.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn services(&self) -> Result<Vec<Service>, ClientError> {
        self.get("/v1/services")
    }

    /// All backends of all services.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn backends(&self) -> Result<Vec<Backend>, ClientError> {
        self.get("/v1/backends")
    }

    /// State of the agent itself.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status")
    }

    /// Inspects the whole datapath and reports where it does not hold what it should.
    ///
    /// # Errors
    /// When there is no answer, or when the datapath cannot be inspected.
    pub fn drift(&self) -> Result<DriftReport, ClientError> {
        self.get("/v1/drift")
    }

    /// Follows differences as the agent finds and repairs them from now on. The agent cuts off a reader that is too
    /// slow.
    ///
    /// # Errors
    /// When there is no answer, or when too many clients watch already.
    pub fn watch_drift(&self) -> Result<DriftWatch, ClientError> {
        let runtime = self.runtime()?;
        let answer = runtime.block_on(self.send(Method::GET, "/v1/drift/watch", Bytes::new()));
        let answer = answer.map_err(|error| self.explained(error))?;
        if answer.status() == StatusCode::OK {
            return Ok(DriftWatch { client: self.clone(), runtime, body: answer.into_body(), text: Vec::new() });
        }
        let status = answer.status();
        let body = runtime.block_on(self.whole(answer.into_body())).map_err(|error| self.explained(error))?;
        Err(self.refused(status, &body))
    }

    /// Explains the way of a packet, which is not sent.
    ///
    /// # Errors
    /// When there is no answer, when the agent does not understand the question, or when the kernel is to be asked and
    /// cannot be.
    pub fn explain(&self, question: &ExplainQuery) -> Result<Explanation, ClientError> {
        self.get(&target("/v1/explain", question))
    }

    /// All pools, in the order in which the agent asks them for addresses.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn pools(&self) -> Result<Vec<Pool>, ClientError> {
        self.get("/v1/pools")
    }

    /// One pool and its addresses.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] if there is no such pool; or when there is no answer.
    pub fn pool(&self, name: &str) -> Result<PoolDetail, ClientError> {
        self.get(&target("/v1/pools/get", &PoolQuery { name: name.into() }))
    }

    /// The pools of an address, its state and its holders.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn explain_address(&self, address: IpAddr) -> Result<PoolAddress, ClientError> {
        self.get(&target("/v1/pools/explain", &AddressQuery { address }))
    }

    /// The effects that an edit would have: the objects of `manifests` join the present ones or replace them, and the
    /// pools `removed` go. `file` is the name of the manifests in messages; they may have 8 MiB.
    ///
    /// # Errors
    /// When there is no answer, or when the manifests would be rejected.
    pub fn plan_pools(&self, file: &str, manifests: &str, removed: &[String]) -> Result<PoolPlan, ClientError> {
        let target = target("/v1/pools/plan", &PlanQuery { file: file.into(), remove: removed.into() });
        self.exchange(Method::POST, &target, Bytes::copy_from_slice(manifests.as_bytes()))
    }

    fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        self.exchange(Method::GET, target, Bytes::new())
    }

    fn exchange<T: DeserializeOwned>(&self, method: Method, target: &str, body: Bytes) -> Result<T, ClientError> {
        let answer = self.runtime()?.block_on(async {
            let answer = self.send(method, target, body).await?;
            Ok((answer.status(), self.whole(answer.into_body()).await?))
        });
        let (status, body) = answer.map_err(|error| self.explained(error))?;
        if status == StatusCode::OK { self.understand(&body) } else { Err(self.refused(status, &body)) }
    }

    fn runtime(&self) -> Result<Runtime, ClientError> {
        runtime::Builder::new_current_thread().enable_all().build().map_err(|error| self.explained(error))
    }

    /// Sends a request on a connection of its own; its answer follows as it comes.
    async fn send(&self, method: Method, target: &str, body: Bytes) -> io::Result<Response<Incoming>> {
        let exchange = async {
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(self.connect().await?)).await.map_err(broken)?;
            // Its error is the error of the request as well.
            task::spawn(connection);
            let request = Request::builder().method(method).uri(target).header(HOST, "lb").body(Full::new(body));
            sender.send_request(request.map_err(io::Error::other)?).await.map_err(broken)
        };
        time::timeout(self.patience, exchange).await?
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        loop {
            match UnixStream::connect(&self.socket).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => time::sleep(PACE).await,
                connected => return connected,
            }
        }
    }

    async fn whole(&self, body: Incoming) -> io::Result<Vec<u8>> {
        let mut body = Limited::new(body, MAX_ANSWER);
        let mut whole = Vec::new();
        while let Some(frame) = time::timeout(self.patience, body.frame()).await? {
            let frame = frame.map_err(|error| io::Error::other(report(&*error)))?;
            whole.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        }
        Ok(whole)
    }

    fn understand<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T, ClientError> {
        let not_understood = |source| ClientError::Answer { socket: self.socket.clone(), source };
        serde_json::from_slice(text).map_err(not_understood)
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match self.understand(body) {
            Ok(Problem { error }) if status == StatusCode::NOT_FOUND => ClientError::NotFound(error),
            Ok(Problem { error }) => ClientError::Refused(error),
            Err(error) => error,
        }
    }

    fn explained(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent { socket },
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            io::ErrorKind::TimedOut => ClientError::Silent { socket, patience: self.patience },
            _ => ClientError::Io { socket, source },
        }
    }
}

/// hyper says what it did, its causes why that failed.
fn broken(error: hyper::Error) -> io::Error {
    io::Error::other(report(&error))
}

/// Differences as the agent finds and repairs them. Ends when the agent does, or when this reader was too slow.
#[derive(Debug)]
pub struct DriftWatch {
    client: Client,
    /// Carries the connection while this waits for it.
    runtime: Runtime,
    body: Incoming,
    /// Text that came and is not a whole line yet.
    text: Vec<u8>,
}

impl Iterator for DriftWatch {
    type Item = Result<DriftNews, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(self.client.understand(&line));
            }
            if self.text.len() > MAX_LINE {
                let error = io::Error::other(format!("a line of more than {MAX_LINE} bytes"));
                return Some(Err(self.client.explained(error)));
            }
            // News may be a long time coming.
            match self.runtime.block_on(self.body.frame())? {
                Ok(frame) => self.text.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Err(error) if is_end(&error) => return None,
                Err(error) => return Some(Err(self.client.explained(broken(error)))),
            }
        }
    }
}

/// Whether the agent ended in the middle of the answer.
fn is_end(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    error.is_incomplete_message() || source.is_some_and(|source| source.kind() == io::ErrorKind::UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{Backlog, listen};

    use super::*;

    #[test]
    fn an_agent_that_is_stopped_is_named_and_not_the_systems_word_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("lb.sock");
        // The system accepts for it, as for a process that is stopped.
        let _agent = UnixListener::bind(&socket).unwrap();
        let client = Client { patience: Duration::from_millis(500), ..Client::new(&socket) };
        let expected = format!("the agent on {} did not answer within 0.5 s: ", socket.display());
        for error in [client.status().unwrap_err(), client.watch_drift().unwrap_err()] {
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn an_agent_whose_queue_is_full_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("lb.sock");
        let agent = UnixListener::bind(&socket).unwrap();
        // Again, with a shorter queue.
        listen(&agent, Backlog::new(0).unwrap()).unwrap();
        let _first = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let client = Client { patience: Duration::from_millis(200), ..Client::new(&socket) };
        assert!(matches!(client.status(), Err(ClientError::Silent { .. })));
    }
}
