//! Requests, from the bytes on the socket to those of the answer.

use std::{
    cell::OnceCell,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, mpsc::channel},
};

pub(crate) use crate::allocation::read_any as ledger;
use crate::{
    api::{
        Problem, Reply,
        answers::Answers,
        server::{Request, converse},
    },
    engine::state::AgentState,
    source::Sources,
    testing::{Kernel, agent, config, sources},
};

/// See [`crate::fuzzing::requests`].
pub(crate) fn requests(data: &[u8]) {
    thread_local! {
        static READY: OnceCell<(Arc<AgentState>, Arc<Sources>)> = const { OnceCell::new() };
    }
    let (shared, sources) = READY.with(|it| it.get_or_init(ready).clone());
    // Nobody owns the datapath: a question that only it can answer is answered with an error.
    let answers = Answers::new(shared, sources, channel().0);
    let answered = converse_once(data, move |request| match request.uri().path() {
        // Its lines come for as long as the client stays.
        path @ "/v1/drift/watch" => Reply::ok(&path),
        _ => answers.answer(request),
    });
    let Some((status, body)) = answered else { return };
    if body.is_empty() {
        // hyper's own answer to a head that is no HTTP, or too long. A `HEAD` is a 405 without a body.
        return assert!(matches!(status, 400 | 405 | 414 | 431), "status {status} without a body");
    }
    assert!(matches!(status, 200 | 400 | 404 | 405 | 413 | 503), "status {status}");
    assert!(body.iter().all(|byte| *byte >= b' '), "{}", body.escape_ascii());
    if status == 200 {
        let value = serde_json::from_slice::<serde_json::Value>(&body);
        return assert!(value.is_ok(), "{}", body.escape_ascii());
    }
    let problem = serde_json::from_slice::<Problem>(&body);
    let told = problem.unwrap_or_else(|error| panic!("{error}: {}", body.escape_ascii())).error;
    // A byte that is not UTF-8 becomes three.
    assert!(!told.is_empty() && told.len() <= 300 + 3 * data.len(), "{told}");
}

/// The answer to a client that sends `data` and no more. `None` if that is no whole request.
fn converse_once(data: &[u8], answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Option<(u16, Vec<u8>)> {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    }
    let talk = || -> io::Result<_> {
        let (mut client, agent) = UnixStream::pair()?;
        // More does not fit between them, and is more than a head may have.
        client.write_all(data.get(..64 * 1024).unwrap_or(data))?;
        client.shutdown(Shutdown::Write)?;
        agent.set_nonblocking(true)?;
        let ended = RUNTIME.with(|runtime| {
            let _runtime = runtime.enter();
            let agent = tokio::net::UnixStream::from_std(agent)?;
            Ok::<_, io::Error>(runtime.block_on(converse(agent, Some(Arc::new(answer)))))
        })?;
        let mut answer = Vec::new();
        match client.read_to_end(&mut answer) {
            // The agent resets a connection on which it left something unread.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok((ended, answer)),
        }
    };
    let (ended, answer) = talk().unwrap_or_else(|error| panic!("{error}: {}", data.escape_ascii()));
    if answer.is_empty() {
        let is_cut = match &ended {
            Ok(()) => data.iter().all(|byte| b"\r\n".contains(byte)),
            Err(error) => error
                .downcast_ref::<hyper::Error>()
                .is_some_and(|error| error.is_incomplete_message() || error.is_parse()),
        };
        assert!(is_cut, "no answer to {}: {ended:?}", data.escape_ascii());
        return None;
    }
    Some(taken_apart(&answer).unwrap_or_else(|| panic!("{}", answer.escape_ascii())))
}

/// Status and body of one whole answer.
fn taken_apart(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    // What hyper says to a client that asks before it sends a body.
    let answer = answer.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?.to_ascii_lowercase();
    let body = &answer[end + 4..];
    let status = head.strip_prefix("http/1.")?.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse::<usize>().ok()?;
    (body.is_empty() || body.len() == length).then(|| (status, body.to_vec()))
}

fn ready() -> (Arc<AgentState>, Arc<Sources>) {
    let mut agent = agent(&config(), Kernel::default());
    assert!(agent.settle().is_ok(), "the agent is ready");
    (agent.shared(), sources(&config()))
}
