//! The ports and the HTTP on them.
//!
//! One thread speaks with all clients of all ports. Clients are strangers: how long one may take and how many there are
//! is bounded, and the oldest ones give way to new ones, so that nobody keeps a load balancer from asking.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit},
        socket::{setsockopt, sockopt},
    },
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{self, Handle},
    sync::Notify,
    task::{AbortHandle, JoinHandle},
    time,
};

use super::{Answer, Door, Ports};

/// How long a client may stay, from the first byte of its request to the last one of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most clients at a time, on all ports together. A further one takes the place of the one that came first.
const MAX_CLIENTS: usize = 256;
/// Most bytes of the head of a request: the least that hyper can be told.
const MAX_HEAD: usize = 8 * 1024;
/// How many clients may wait until they are accepted.
const BACKLOG: u32 = 128;

/// How many endpoints a node has, for load balancers that send in proportion: as kube-proxy calls it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is to be said on a port.
type Answers = dyn Fn(u16) -> Option<Answer> + Send + Sync;

/// Answers health checks by HTTP.
pub(crate) struct Server {
    answers: Arc<Answers>,
    /// Started with the first port.
    thread: Option<Thread>,
    /// Held by each socket that listens.
    listening: Arc<()>,
    /// Most sockets that listen: half of the files that the agent may open, so that the datapath and the API have theirs.
    max_sockets: usize,
}

/// The thread that speaks with clients. It ends when this is dropped.
struct Thread {
    runtime: Handle,
    ended: Arc<Notify>,
    crowd: Arc<Crowd>,
}

impl Server {
    pub(crate) fn new(answers: impl Fn(u16) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let max_sockets = usize::try_from(files / 2).unwrap_or(usize::MAX);
        Self { answers: Arc::new(answers), thread: None, listening: Arc::default(), max_sockets }
    }
}

impl Ports for Server {
    fn open(&mut self, ips: &[IpAddr], port: u16) -> Result<Door, String> {
        if Arc::strong_count(&self.listening) - 1 + ips.len() > self.max_sockets {
            return Err(format!(
                "health checks have {} sockets, half of the files that the agent may open: raise that limit (`ulimit -n`, \
                 `LimitNOFILE=` of systemd) and start it again",
                self.max_sockets
            ));
        }
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => Thread::start().map_err(|error| format!("starting a thread for it failed: {error}"))?,
        };
        let opened = thread.open(ips, port, &self.answers, &self.listening);
        self.thread = Some(thread);
        Ok(Box::new(opened?))
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (handle, ended) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let end = Arc::clone(&ended);
        let serve = move || runtime.block_on(end.notified());
        thread::Builder::new().name("health-checks".into()).spawn(serve)?;
        Ok(Self { runtime: handle, ended, crowd: Arc::default() })
    }

    fn open(
        &self,
        ips: &[IpAddr],
        port: u16,
        answers: &Arc<Answers>,
        listening: &Arc<()>,
    ) -> Result<Vec<Listening>, String> {
        let mut sockets = Vec::new();
        for &ip in ips {
            let address = SocketAddr::new(ip, port);
            let _runtime = self.runtime.enter();
            match listen(address) {
                Ok(socket) => sockets.push(socket),
                // A kernel without the family has nobody who could ask by it.
                Err(error) if ip.is_unspecified() && error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {}
                Err(error) => return Err(refused(address, &error)),
            }
        }
        let open = |socket| {
            let (closes, closed) = channel();
            let socket = Socket { socket, _closes: closes };
            let task = self.runtime.spawn(accept(socket, port, Arc::clone(answers), Arc::clone(&self.crowd)));
            Listening { task, closed, _counted: Arc::clone(listening) }
        };
        Ok(sockets.into_iter().map(open).collect())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

/// A socket that accepts clients until this is dropped. Then its port is free at once.
struct Listening {
    task: JoinHandle<()>,
    closed: Receiver<()>,
    _counted: Arc<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        // It ends with an error: nothing is ever sent.
        let _ = self.closed.recv();
    }
}

/// What a listening task owns. Whoever waits for its end learns of it when the socket is closed.
struct Socket {
    socket: TcpListener,
    _closes: Sender<()>,
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Why a port cannot be opened, and what to do.
fn refused(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program has it, kube-proxy for example: `ss -ltnp sport = :{port}` names it; end it, or give the \
             service another number"
        ),
        io::ErrorKind::PermissionDenied => {
            "a port below 1024 needs CAP_NET_BIND_SERVICE; another one may be a frontend of a datapath".to_owned()
        }
        _ => "it is tried again".to_owned(),
    };
    format!("listening on {address} failed: {error}: {remedy}")
}

async fn accept(socket: Socket, port: u16, answers: Arc<Answers>, crowd: Arc<Crowd>) {
    loop {
        match socket.socket.accept().await {
            Ok((client, _)) => {
                let task = tokio::spawn(converse(client, port, Arc::clone(&answers)));
                crowd.admit(task.abort_handle());
            }
            Err(error) => {
                tracing::warn!(port, %error, "accepting a client of a health check failed");
                // Out of file descriptors: the next accept would fail at once, too.
                time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Hears one request and answers it, whatever its method and path are.
async fn converse(client: TcpStream, port: u16, answers: Arc<Answers>) {
    let service = service_fn(|_| {
        let answer = answers(port);
        async move { Ok::<_, Infallible>(response(answer)) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).max_buf_size(MAX_HEAD).keep_alive(false).half_close(true);
    match time::timeout(PATIENCE, http.serve_connection(TokioIo::new(client), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(port, %error, "a client of a health check went away"),
        Err(_) => tracing::debug!(port, "a client of a health check took too long and is disconnected"),
    }
}

fn response(answer: Option<Answer>) -> Response<Full<Bytes>> {
    // Without a service, its port is about to be closed.
    let Some(answer) = answer else {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return response;
    };
    // A text and two numbers can always be written.
    let body = serde_json::to_vec(&answer).unwrap_or_default();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = if answer.is_positive() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(answer.local_endpoints));
    response
}

/// The clients of all ports, in the order in which they came.
#[derive(Default)]
struct Crowd(Mutex<VecDeque<AbortHandle>>);

impl Crowd {
    /// Lets a client in. If there are too many, the first one has to go: one that asks is answered at once, and only
    /// one that does not stays for long.
    fn admit(&self, client: AbortHandle) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS {
            clients.retain(|client| !client.is_finished());
        }
        if clients.len() >= MAX_CLIENTS
            && let Some(first) = clients.pop_front()
        {
            first.abort();
            tracing::debug!(
                MAX_CLIENTS,
                "too many clients of health checks: the one that waited longest is disconnected"
            );
        }
        clients.push_back(client);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener as StdListener, TcpStream as StdStream},
    };

    use lb_core::{name::ServiceName, time::Instant};

    use super::*;
    use crate::health_check::{Board, Check};

    /// An open port where service `shop/web` has `endpoints`, and what it is open with.
    fn served(endpoints: usize) -> (Server, u16, Door) {
        let board = Arc::new(Board::default());
        let says = Arc::clone(&board);
        let mut server = Server::new(move |port| says.answer(port, Instant::default()));
        let (port, door) = opened(&mut server);
        let service = ServiceName::new("shop", "web");
        board.set(port, Check { service, endpoints, behind_since: None });
        (server, port, door)
    }

    fn every() -> [IpAddr; 2] {
        ["0.0.0.0", "::"].map(|ip| ip.parse().unwrap())
    }

    /// Opens a port that nobody has.
    fn opened(server: &mut Server) -> (u16, Door) {
        loop {
            let free = StdListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
            if let Ok(door) = server.open(&every(), free) {
                return (free, door);
            }
        }
    }

    fn connected(address: &str, port: u16) -> StdStream {
        let stream = StdStream::connect((address, port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// The answer to `request`: its head in lower case, and its body.
    fn ask(address: &str, port: u16, request: &str) -> (String, String) {
        let mut stream = connected(address, port);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        (head.to_ascii_lowercase(), body.to_owned())
    }

    const GET: &str = "GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n";

    #[test]
    fn the_answer_is_that_of_kube_proxy_in_both_families() {
        let (_server, port, _door) = served(3);
        for address in ["127.0.0.1", "::1"] {
            let (head, body) = ask(address, port, GET);
            assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
            for header in [
                "x-load-balancing-endpoint-weight: 3",
                "x-content-type-options: nosniff",
                "content-type: application/json",
            ] {
                assert!(head.lines().any(|line| line == header), "{head}");
            }
            let expected =
                r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":3,"serviceProxyHealthy":true}"#;
            assert_eq!(body, expected);
        }
    }

    #[test]
    fn a_node_without_endpoints_says_503_whatever_is_asked() {
        let (_server, port, _door) = served(0);
        for request in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /any/path?at=all HTTP/1.0\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\n\r\n",
            "POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi",
        ] {
            let (head, body) = ask("127.0.0.1", port, request);
            let said = (head.split(' ').nth(1), body.contains(r#""localEndpoints":0"#));
            assert_eq!(said, (Some("503"), true), "{request}");
            assert!(head.contains("\r\nx-load-balancing-endpoint-weight: 0"), "{head}");
        }
        let (head, body) = ask("127.0.0.1", port, "HEAD / HTTP/1.1\r\n\r\n");
        assert_eq!((head.split(' ').nth(1), body.as_str()), (Some("503"), ""));
    }

    #[test]
    fn what_is_no_request_gets_no_endpoints() {
        let (_server, port, _door) = served(3);
        assert!(ask("127.0.0.1", port, "\u{1}\r\n\r\n").0.starts_with("http/1.1 400"));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * MAX_HEAD));
        let mut stream = connected("127.0.0.1", port);
        // What is not read any more may be reset.
        let (_, mut answer) = (stream.write_all(long.as_bytes()), Vec::new());
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert!(answer.is_empty() || answer.starts_with("http/1.1 4"), "{answer}");
        assert!(ask("127.0.0.1", port, GET).0.starts_with("http/1.1 200"));
    }

    #[test]
    fn clients_that_say_nothing_give_way_to_those_who_ask() {
        let (_server, port, _door) = served(1);
        // Each of them stays until it has to go.
        let _silent: Vec<StdStream> = (0..2 * MAX_CLIENTS).map(|_| connected("127.0.0.1", port)).collect();
        assert!(ask("127.0.0.1", port, GET).0.starts_with("http/1.1 200"));
    }

    #[test]
    fn of_too_many_clients_the_first_one_goes() {
        let runtime = runtime::Builder::new_current_thread().build().unwrap();
        let crowd = Crowd::default();
        let is_gone: Vec<bool> = runtime.block_on(async {
            let stays = || tokio::spawn(std::future::pending::<()>());
            let clients: Vec<JoinHandle<()>> = (0..MAX_CLIENTS + 2).map(|_| stays()).collect();
            clients.iter().for_each(|client| crowd.admit(client.abort_handle()));
            tokio::task::yield_now().await;
            clients.iter().map(JoinHandle::is_finished).collect()
        });
        assert_eq!((is_gone[0], is_gone[1]), (true, true));
        assert!(is_gone[2..].iter().all(|is_gone| !is_gone));
    }

    #[test]
    fn a_client_that_never_asks_is_disconnected() {
        let mut runtime = runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        for begun in ["", "GET / HTTP/1.1\r\nHost: no"] {
            let listener = StdListener::bind("127.0.0.1:0").unwrap();
            let mut client = StdStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(begun.as_bytes()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            // Time passes by itself while nobody has anything to do.
            let took = runtime.block_on(async {
                let began = time::Instant::now();
                converse(TcpStream::from_std(stream).unwrap(), 1, Arc::new(|_| None)).await;
                began.elapsed()
            });
            assert!(took >= PATIENCE && took < 2 * PATIENCE, "{took:?} of virtual time");
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        }
    }

    #[test]
    fn a_port_is_free_as_soon_as_it_is_closed() {
        let mut server = Server::new(|_| None);
        let (port, door) = opened(&mut server);
        let mut door = Some(door);
        for _ in 0..50 {
            drop(door.take());
            StdStream::connect(("127.0.0.1", port)).unwrap_err();
            door = Some(server.open(&every(), port).unwrap());
            connected("127.0.0.1", port);
        }
        drop((door, server));
        StdListener::bind(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn a_port_is_open_at_the_addresses_that_are_named_and_at_no_other() {
        let mut server = Server::new(|_| None);
        let port = StdListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
        let _door = server.open(&["127.0.0.2".parse().unwrap()], port).unwrap();
        connected("127.0.0.2", port);
        StdStream::connect(("127.0.0.1", port)).unwrap_err();
        let Err(error) = server.open(&["192.0.2.1".parse().unwrap()], port) else { panic!("nobody has that address") };
        assert!(error.contains(&format!("listening on 192.0.2.1:{port} failed")), "{error}");
    }

    #[test]
    fn health_checks_leave_files_to_the_rest_of_the_agent() {
        let mut server = Server::new(|_| None);
        assert!(server.max_sockets > 2, "the limit of this process is read");
        server.max_sockets = 2;
        let (first, door) = opened(&mut server);
        let Err(error) = server.open(&every(), first + 1) else { panic!("there are four sockets") };
        assert!(error.contains("2 sockets") && error.contains("LimitNOFILE"), "{error}");
        drop(door);
        server.open(&every(), first).unwrap();
    }

    #[test]
    fn who_has_a_port_is_to_be_found_by_what_the_error_says() {
        let taken = StdListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let Err(error) = Server::new(|_| None).open(&every(), port) else { panic!("two listeners have port {port}") };
        assert!(error.contains(&format!("listening on 0.0.0.0:{port} failed")), "{error}");
        assert!(error.contains(&format!("`ss -ltnp sport = :{port}`")), "{error}");
    }
}
