//! The answering half.

use std::{
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::{
    Problem,
    http::{self, Request},
};

/// How long a client may take to ask and to read.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether a client that waits for news is still there.
const LOOK_UP: Duration = Duration::from_secs(1);
/// Most clients at a time; others are told to come back.
const MAX_CLIENTS: usize = 64;

/// What is answered.
pub(crate) struct Reply {
    status: u16,
    body: Body,
}

enum Body {
    Whole(Vec<u8>),
    Stream(Box<dyn Lines>),
}

/// Lines that come in the course of time.
pub(crate) trait Lines: Send {
    /// The next ones; none of them if there are none in time, `None` if there will never be any.
    fn next(&mut self, patience: Duration) -> Option<Arc<[Box<str>]>>;
}

impl Reply {
    pub(crate) fn ok(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status: 200, body: Body::Whole(body) },
            Err(error) => Self::problem(500, error.to_string()),
        }
    }

    pub(crate) fn problem(status: u16, error: impl Into<String>) -> Self {
        let body = serde_json::json!(Problem { error: error.into() });
        Self { status, body: Body::Whole(body.to_string().into_bytes()) }
    }

    pub(crate) fn stream(lines: impl Lines + 'static) -> Self {
        Self { status: 200, body: Body::Stream(Box::new(lines)) }
    }
}

/// Answers on threads of its own until the process ends.
pub(super) fn start(
    socket: UnixListener,
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> io::Result<()> {
    let answer = Arc::new(answer);
    thread::Builder::new().name("api".into()).spawn(move || accept(&socket, &answer))?;
    Ok(())
}

fn accept(socket: &UnixListener, answer: &Arc<impl Fn(&Request) -> Reply + Send + Sync + 'static>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match socket.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no client could be accepted");
                // Out of file descriptors: the next accept would fail at once, too.
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let place = Place::take(&clients);
        let answer = Arc::clone(answer);
        let spawned = thread::Builder::new().name("api-client".into()).spawn(move || {
            if let Err(error) = converse(&stream, place.number, &*answer) {
                tracing::debug!(%error, "a client of the socket went away");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a client of the socket");
        }
    }
}

fn converse(stream: &UnixStream, number: usize, answer: impl Fn(&Request) -> Reply) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let reply = match http::read_request(stream) {
        Ok(None) => return Ok(()),
        Ok(Some(_)) if number > MAX_CLIENTS => Reply::problem(503, "too many clients, try again"),
        Ok(Some(request)) => answer(&request),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Reply::problem(400, error.to_string()),
        Err(error) => return Err(error),
    };
    match reply.body {
        Body::Whole(body) => http::write_response(stream, reply.status, &body),
        Body::Stream(lines) => relay(stream, lines),
    }
}

/// What a client hears that sends `data` and no more; `None`: nothing.
///
/// # Panics
/// When the conversation fails.
#[cfg(any(test, fuzzing))]
pub(crate) fn converse_once(data: &[u8], answer: impl Fn(&Request) -> Reply) -> Option<(u16, Vec<u8>)> {
    use std::net::Shutdown;

    let talk = || -> io::Result<_> {
        let (client, agent) = UnixStream::pair()?;
        // More does not fit between them, and is more than a head may have.
        (&client).write_all(data.get(..64 * 1024).unwrap_or(data))?;
        client.shutdown(Shutdown::Write)?;
        converse(&agent, 1, answer)?;
        agent.shutdown(Shutdown::Write)?;
        if data.is_empty() { Ok(None) } else { http::read_response(&client).map(Some) }
    };
    talk().unwrap_or_else(|error| panic!("{error}: {}", data.escape_ascii()))
}

/// Writes lines as they come, as long as the client is there and reads.
fn relay(mut stream: &UnixStream, mut lines: Box<dyn Lines>) -> io::Result<()> {
    http::write_stream_head(stream)?;
    while let Some(lines) = lines.next(LOOK_UP) {
        let text: String = lines.iter().flat_map(|line| [&**line, "\n"]).collect();
        stream.write_all(text.as_bytes())?;
        if is_gone(stream)? {
            break;
        }
    }
    Ok(())
}

/// Whether the client closed its end: there is nothing else that it may send.
fn is_gone(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

/// A client's place among all clients, given back when it goes.
struct Place {
    clients: Arc<AtomicUsize>,
    number: usize,
}

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Self {
        Self { clients: Arc::clone(clients), number: clients.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Listener;

    #[test]
    fn noise_gets_an_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        let listener = Listener::bind(&path).unwrap();
        listener.serve(|request| Reply::ok(&request.path)).unwrap();
        let ask = |head: &str| {
            let stream = UnixStream::connect(&path).unwrap();
            io::Write::write_all(&mut &stream, head.as_bytes()).unwrap();
            http::read_response(&stream).unwrap()
        };
        assert_eq!(ask("GET /x HTTP/1.1\r\n\r\n"), (200, b"\"/x\"".to_vec()));
        assert_eq!(ask("\u{1}\r\n\r\n").0, 400);
    }
}
