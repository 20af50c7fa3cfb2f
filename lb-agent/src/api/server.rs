//! The answering half: HTTP/1.1 with one request for each connection.
//!
//! One thread speaks with all clients. Answers block, so that each is made on a thread of a bounded pool.

use std::{
    convert::Infallible,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::{
    Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    net::{UnixListener, UnixStream},
    runtime,
    sync::{Notify, Semaphore, mpsc},
    task, time,
};
use tokio_io_timeout::TimeoutStream;

use super::Problem;
use lb_core::error::report;

/// How long a client may take for the head of its request, for its body, and to take a part of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most clients at a time. Others hear that they should try again.
const MAX_CLIENTS: usize = 64;
/// Most bytes of the head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// Most bytes of the body of a request: manifests of pools, of which each takes a few hundred.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// A whole request.
pub(crate) type Request = hyper::Request<Bytes>;

/// Lines of JSON, the same for every client.
pub(crate) type Lines = Arc<[Box<str>]>;

/// An answer.
pub(crate) struct Reply {
    status: StatusCode,
    body: Content,
}

enum Content {
    Whole(Vec<u8>),
    Stream(mpsc::Receiver<Lines>),
}

impl Reply {
    pub(crate) fn ok(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status: StatusCode::OK, body: Content::Whole(body) },
            Err(error) => Self::problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    pub(crate) fn problem(status: StatusCode, error: impl Into<String>) -> Self {
        let body = serde_json::json!(Problem { error: error.into() });
        Self { status, body: Content::Whole(body.to_string().into_bytes()) }
    }

    /// Lines as they come, until their sender goes or the client does.
    pub(crate) fn stream(lines: mpsc::Receiver<Lines>) -> Self {
        Self { status: StatusCode::OK, body: Content::Stream(lines) }
    }

    fn into_response(self, client: &OwnedFd) -> Response<Either<Full<Bytes>, LineBody>> {
        let (body, kind) = match self.body {
            Content::Whole(body) => (Either::Left(Full::from(body)), "application/json"),
            Content::Stream(lines) => (Either::Right(LineBody::new(lines, client)), "application/x-ndjson"),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// Answers on threads of its own until `ended`.
pub(super) fn start(
    socket: StdListener,
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ended: Arc<Notify>,
) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_CLIENTS)
        .thread_name("api-client")
        .build()?;
    socket.set_nonblocking(true)?;
    let socket = {
        let _runtime = runtime.enter();
        UnixListener::from_std(socket)?
    };
    let serve = move || {
        runtime.spawn(accept(socket, Arc::new(answer)));
        runtime.block_on(ended.notified());
        // Without waiting for answers that nobody will hear.
        runtime.shutdown_background();
    };
    thread::Builder::new().name("api".into()).spawn(serve)?;
    Ok(())
}

async fn accept<A: Fn(&Request) -> Reply + Send + Sync + 'static>(socket: UnixListener, answer: Arc<A>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a client failed");
                // Out of file descriptors: the next accept would fail at once, too.
                time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let place = Arc::clone(&places).try_acquire_owned().ok();
        let answer = Arc::clone(&answer);
        task::spawn(async move {
            if let Err(error) = converse(stream, place.is_some().then_some(answer)).await {
                tracing::debug!(error = report(&*error), "a client of the socket went away");
            }
        });
    }
}

/// Hears one request and answers it; without an `answer` there is no place for the client. hyper itself answers a head
/// that is no HTTP, or too long, with a status and no body.
pub(super) async fn converse<A: Fn(&Request) -> Reply + Send + Sync + 'static>(
    stream: UnixStream,
    answer: Option<Arc<A>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let client = Arc::new(stream.as_fd().try_clone_to_owned()?);
    let service = service_fn(|request| {
        let (answer, client) = (answer.clone(), Arc::clone(&client));
        async move { Ok::<_, Infallible>(reply_to(request, answer).await.into_response(&client)) }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(PATIENCE));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD).keep_alive(false);
    // A client may close its own half of the connection after the request, as socat does.
    http.half_close(true);
    Ok(http.serve_connection(TokioIo::new(Box::pin(stream)), service).await?)
}

async fn reply_to<A>(request: hyper::Request<Incoming>, answer: Option<Arc<A>>) -> Reply
where
    A: Fn(&Request) -> Reply + Send + Sync + 'static,
{
    let Some(answer) = answer else {
        return Reply::problem(StatusCode::SERVICE_UNAVAILABLE, "too many clients, try again");
    };
    let request = match whole(request).await {
        Ok(request) => request,
        Err(problem) => return problem,
    };
    let answered = task::spawn_blocking(move || answer(&request)).await;
    answered.unwrap_or_else(|error| Reply::problem(StatusCode::INTERNAL_SERVER_ERROR, format!("no answer: {error}")))
}

/// The request with its body, if that comes in time and is not too long.
async fn whole(request: hyper::Request<Incoming>) -> Result<Request, Reply> {
    let too_long =
        || Reply::problem(StatusCode::PAYLOAD_TOO_LARGE, format!("the agent reads at most {MAX_BODY} bytes"));
    let (head, body) = request.into_parts();
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_long());
    }
    match time::timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(Request::from_parts(head, body.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(error)) => {
            let problem = format!("the request ends before its body does: {}", report(&*error));
            Err(Reply::problem(StatusCode::BAD_REQUEST, problem))
        }
        Err(_) => {
            let problem = format!("the body of the request did not come within {} s", PATIENCE.as_secs());
            Err(Reply::problem(StatusCode::REQUEST_TIMEOUT, problem))
        }
    }
}

/// Lines as a body.
struct LineBody {
    lines: mpsc::Receiver<Lines>,
    gone: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl LineBody {
    fn new(lines: mpsc::Receiver<Lines>, client: &OwnedFd) -> Self {
        let client = client.try_clone();
        Self { lines, gone: Box::pin(async { gone(client).await.unwrap_or_default() }) }
    }
}

impl Body for LineBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        let text = |lines: Lines| lines.iter().flat_map(|line| [&**line, "\n"]).collect::<String>();
        self.lines.poll_recv(cx).map(|lines| lines.map(|lines| Ok(Frame::data(text(lines).into()))))
    }
}

/// Ends when the client closes its end. hyper, which lets a client close its half, notices that only when it writes.
async fn gone(client: io::Result<OwnedFd>) -> io::Result<()> {
    let client = UnixStream::from_std(client?.into())?;
    loop {
        client.readable().await?;
        match client.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // There is nothing that it may send.
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::Shutdown,
        os::unix::net::UnixStream,
        sync::{Barrier, mpsc as std_mpsc},
    };

    use super::*;
    use crate::api::{Client, Listener};

    /// A socket on which `answer` answers.
    struct Served {
        listener: Option<Listener>,
        directory: tempfile::TempDir,
    }

    impl Served {
        fn new(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let listener = Listener::bind(&directory.path().join("lb.sock")).unwrap();
            listener.serve(answer).unwrap();
            Self { listener: Some(listener), directory }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(self.directory.path().join("lb.sock")).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        }

        fn client(&self) -> Client {
            Client::new(&self.directory.path().join("lb.sock"))
        }

        /// Status and body of the answer to these bytes.
        fn ask(&self, bytes: &[u8]) -> (u16, String) {
            let mut stream = self.connect();
            stream.write_all(bytes).unwrap();
            heard(&mut stream)
        }
    }

    fn heard(stream: &mut UnixStream) -> (u16, String) {
        let mut answer = Vec::new();
        // The agent resets a connection on which it left something unread.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
    }

    fn echo(request: &Request) -> Reply {
        let target = request.uri().to_string();
        Reply::ok(&(request.method().as_str(), target, String::from_utf8_lossy(request.body())))
    }

    #[test]
    fn a_request_reaches_its_answer_whole() {
        let served = Served::new(echo);
        assert_eq!(served.ask(b"GET /x?a=%5B&b HTTP/1.1\r\n\r\n"), (200, r#"["GET","/x?a=%5B&b",""]"#.into()));
        assert_eq!(served.ask(b"GET /x HTTP/1.0\r\n\r\n").0, 200);
        let body = b"POST /x HTTP/1.1\r\nContent-Length: 4\r\n\r\nkindGET /y HTTP/1.1\r\n\r\n";
        assert_eq!(served.ask(body), (200, r#"["POST","/x","kind"]"#.into()));
        let chunks = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nki\r\n2\r\nnd\r\n0\r\n\r\n";
        assert_eq!(served.ask(chunks), (200, r#"["POST","/x","kind"]"#.into()));
    }

    #[test]
    fn a_client_that_closes_its_half_still_hears_the_answer() {
        let served = Served::new(echo);
        let mut stream = served.connect();
        stream.write_all(b"GET /x HTTP/1.1\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(heard(&mut stream).0, 200);
    }

    #[test]
    fn hostile_requests_are_refused() {
        let served = Served::new(echo);
        assert_eq!(served.ask(b"\x01\r\n\r\n").0, 400);
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * MAX_HEAD));
        assert!(matches!(served.ask(long.as_bytes()).0, 414 | 431));
        let said = |length: &str| served.ask(format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").as_bytes());
        for length in ["-1", "99999999999999999999"] {
            assert_eq!(said(length).0, 400, "{length}");
        }
        let (status, body) = said("8388609");
        assert!(status == 413 && body.contains("at most 8388608 bytes"), "{body}");
        let mut stream = served.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nki").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let (status, body) = heard(&mut stream);
        assert!(status == 400 && body.contains("ends before its body"), "{body}");
    }

    #[test]
    fn more_clients_than_there_are_places_hear_so_and_those_that_went_make_room() {
        let (asked, all_ask) = std_mpsc::channel();
        let gate = Arc::new(Barrier::new(MAX_CLIENTS + 1));
        let opened = Arc::clone(&gate);
        let served = Served::new(move |request| {
            if request.uri().path() == "/wait" {
                asked.send(()).unwrap();
                opened.wait();
            }
            echo(request)
        });
        let mut waiting: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| served.connect()).collect();
        waiting.iter_mut().for_each(|stream| stream.write_all(b"GET /wait HTTP/1.1\r\n\r\n").unwrap());
        all_ask.iter().take(MAX_CLIENTS).for_each(drop);
        let (status, body) = served.ask(b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!((status, body.as_str()), (503, r#"{"error":"too many clients, try again"}"#));
        gate.wait();
        assert!(waiting.iter_mut().all(|stream| heard(stream).0 == 200));
        drop(waiting);
        while served.ask(b"GET / HTTP/1.1\r\n\r\n").0 == 503 {}
    }

    /// How a conversation with a client ends that sends `bytes` and then neither reads nor closes its end, on a clock
    /// that jumps to the next time-out. The client's end comes back.
    fn stalled(bytes: &[u8], answer: fn(&Request) -> Reply) -> (Result<(), String>, UnixStream) {
        let (mut client, agent) = UnixStream::pair().unwrap();
        client.write_all(bytes).unwrap();
        agent.set_nonblocking(true).unwrap();
        let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let ended = runtime.block_on(async {
            let agent = super::UnixStream::from_std(agent).unwrap();
            converse(agent, Some(Arc::new(answer))).await.map_err(|error| report(&*error))
        });
        (ended, client)
    }

    #[test]
    fn a_client_that_stalls_is_not_waited_for() {
        let (ended, mut client) = stalled(b"GET /x HTT", echo);
        assert!(ended.is_err());
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "no answer");
        let (ended, mut client) = stalled(b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\nkind", echo);
        let (status, body) = heard(&mut client);
        assert!(
            ended.is_ok() && status == 408 && body.contains("did not come within 5 s"),
            "{ended:?} {status} {body}"
        );
        let (ended, _client) = stalled(b"GET /x HTTP/1.1\r\n\r\n", |_| Reply::ok(&vec![0; 4 * 1024 * 1024]));
        let ended = ended.unwrap_err();
        assert!(ended.contains("timed out"), "{ended}");
    }

    #[test]
    fn an_answer_that_panics_is_a_problem() {
        let served = Served::new(|_| panic!("on purpose"));
        let (status, body) = served.ask(b"GET / HTTP/1.1\r\n\r\n");
        assert!(status == 500 && body.contains("panicked"), "{body}");
    }

    #[test]
    fn lines_come_until_either_side_goes() {
        let (senders, opened) = std_mpsc::channel();
        let mut served = Served::new(move |_| {
            let (sender, lines) = mpsc::channel(1);
            senders.send(sender).unwrap();
            Reply::stream(lines)
        });
        let line = || Arc::from([Box::from(r#"{"unlisted":7}"#)]);
        let mut watch = served.client().watch_drift().unwrap();
        let sender = opened.recv().unwrap();
        sender.blocking_send(line()).unwrap();
        assert!(watch.next().unwrap().is_ok());
        drop(watch);
        // Nothing is written that would fail.
        while !sender.is_closed() {}
        let mut watch = served.client().watch_drift().unwrap();
        let sender = opened.recv().unwrap();
        sender.blocking_send(line()).unwrap();
        drop(sender);
        assert!(watch.next().unwrap().is_ok());
        assert!(watch.next().is_none());
        let mut watch = served.client().watch_drift().unwrap();
        let sender = opened.recv().unwrap();
        served.listener = None;
        assert!(watch.next().is_none());
        assert!(sender.is_closed());
    }
}
