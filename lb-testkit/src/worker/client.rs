//! Sockets of a client.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::{
    error::{failure, other},
    http,
};
use crate::traffic::{Failure, FailureKind, Outcome, Request, Response, Transport};

/// Carries out one request.
pub(super) fn request(request: &Request) -> Outcome {
    let start = Instant::now();
    let mut asker = Asker::open(request.transport, request.to, request.from, request.timeout)?;
    asker.send(&request.path)?;
    let mut response = asker.receive(start + request.timeout)?;
    response.latency = start.elapsed();
    Ok(response)
}

/// Connects and resets; how long `connect` took.
pub(super) fn connect_only(to: SocketAddr, from: Option<SocketAddr>, timeout: Duration) -> Result<Duration, Failure> {
    let start = Instant::now();
    let socket = prepared(Type::STREAM, to, from, timeout).map_err(|error| failure("socket", &error, start))?;
    let to = SockAddr::from(to);
    let before = Instant::now();
    socket.connect(&to).map_err(|error| failure("connect", &error, start))?;
    Ok(before.elapsed())
}

/// A socket that asks an echo server, again and again.
pub(super) enum Asker {
    Http(Http),
    Udp(Udp),
}

impl Asker {
    pub(super) fn open(
        transport: Transport,
        to: SocketAddr,
        from: Option<SocketAddr>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        match transport {
            Transport::Tcp => Http::open(to, from, timeout).map(Self::Http),
            Transport::Udp => Udp::open(to, from, timeout, true).map(Self::Udp),
            Transport::UdpUnconnected => Udp::open(to, from, timeout, false).map(Self::Udp),
        }
    }

    pub(super) fn send(&mut self, path: &str) -> Result<(), Failure> {
        match self {
            Self::Http(http) => http.send(path),
            Self::Udp(udp) => udp.send(),
        }
    }

    pub(super) fn receive(&mut self, deadline: Instant) -> Outcome {
        match self {
            Self::Http(http) => http.receive(deadline),
            Self::Udp(udp) => udp.receive(deadline),
        }
    }
}

impl AsFd for Asker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Http(http) => http.stream.as_fd(),
            Self::Udp(udp) => udp.socket.as_fd(),
        }
    }
}

pub(super) struct Http {
    stream: TcpStream,
    to: SocketAddr,
    peer: SocketAddr,
    local: SocketAddr,
    sent: Instant,
}

impl Http {
    fn open(to: SocketAddr, from: Option<SocketAddr>, timeout: Duration) -> Result<Self, Failure> {
        let start = Instant::now();
        let socket = prepared(Type::STREAM, to, from, timeout).map_err(|error| failure("socket", &error, start))?;
        socket.connect(&to.into()).map_err(|error| failure("connect", &error, start))?;
        let stream = TcpStream::from(socket);
        let named = |error: io::Error| failure("getpeername", &error, start);
        let peer = stream.peer_addr().map_err(named)?;
        let local = stream.local_addr().map_err(named)?;
        Ok(Self { stream, to, peer, local, sent: start })
    }

    fn send(&mut self, path: &str) -> Result<(), Failure> {
        self.sent = Instant::now();
        let head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: lb-testkit\r\n\r\n", self.to);
        self.stream.write_all(head.as_bytes()).map_err(|error| failure("write", &error, self.sent))
    }

    fn receive(&mut self, deadline: Instant) -> Outcome {
        let start = self.sent;
        let mut input = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            self.stream
                .set_read_timeout(Some(left(deadline, start)?))
                .map_err(|error| failure("setsockopt", &error, start))?;
            match self.stream.read(&mut buffer).map_err(|error| failure("read", &error, start))? {
                0 => return Err(other(FailureKind::Closed, "closed before the end of the answer", start)),
                length => input.extend_from_slice(&buffer[..length]),
            }
            let body = http::body(&input).map_err(|detail| other(FailureKind::Other, detail, start))?;
            if let Some(body) = body {
                // An acknowledgement that is delayed would go whichever way the next step of a test has led it.
                SockRef::from(&self.stream)
                    .set_tcp_quickack(true)
                    .map_err(|error| failure("setsockopt", &error, start))?;
                return answer(body, self.peer, self.local, start);
            }
        }
    }
}

pub(super) struct Udp {
    socket: UdpSocket,
    to: SocketAddr,
    connected: bool,
    /// Whether somebody ended it.
    ended: bool,
    payload: String,
    sent: Instant,
}

impl Udp {
    fn open(to: SocketAddr, from: Option<SocketAddr>, timeout: Duration, connected: bool) -> Result<Self, Failure> {
        let start = Instant::now();
        let socket = prepared(Type::DGRAM, to, from, timeout).map_err(|error| failure("socket", &error, start))?;
        if connected {
            socket.connect(&to.into()).map_err(|error| failure("connect", &error, start))?;
        } else {
            report_errors(&socket, to).map_err(|error| failure("setsockopt", &error, start))?;
        }
        Ok(Self { socket: socket.into(), to, connected, ended: false, payload: String::new(), sent: start })
    }

    /// A socket that was ended connects again, as a resolver does.
    fn send(&mut self) -> Result<(), Failure> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.payload = format!("datagram {}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.sent = Instant::now();
        if self.ended {
            // The kernel still has the error if nobody was told of it.
            let again = self.socket.take_error().and_then(|_| self.socket.connect(self.to));
            again.map_err(|error| failure("connect", &error, self.sent))?;
            self.ended = false;
        }
        let sent = self.send_payload();
        self.note(sent).map(drop).map_err(|error| failure("send", &error, self.sent))
    }

    fn send_payload(&self) -> io::Result<usize> {
        let bytes = self.payload.as_bytes();
        if self.connected { self.socket.send(bytes) } else { self.socket.send_to(bytes, self.to) }
    }

    /// Notes that somebody ended the socket: the kernel says so once, and has forgotten the peer.
    fn note<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        let number = outcome.as_ref().err().and_then(io::Error::raw_os_error);
        self.ended |= matches!(number, Some(libc::ECONNABORTED | libc::EDESTADDRREQ));
        outcome
    }

    /// The answer to the last datagram; late ones to earlier datagrams are passed over.
    fn receive(&mut self, deadline: Instant) -> Outcome {
        let start = self.sent;
        let wrong = |error: io::Error| failure("receive", &error, start);
        let expected = format!("payload={}\n", self.payload);
        let mut buffer = [0; 4096];
        loop {
            self.socket.set_read_timeout(Some(left(deadline, start)?)).map_err(wrong)?;
            let received = if self.connected {
                self.socket.recv(&mut buffer).map(|length| (length, None))
            } else {
                self.socket.recv_from(&mut buffer).map(|(length, from)| (length, Some(from)))
            };
            let (length, from) = self.note(received).map_err(wrong)?;
            let body = String::from_utf8_lossy(&buffer[..length]);
            if body.ends_with(&expected) {
                let peer = from.map_or_else(|| self.socket.peer_addr(), Ok).map_err(wrong)?;
                return answer(body.into_owned(), peer, self.socket.local_addr().map_err(wrong)?, start);
            }
        }
    }
}

/// A blocking socket whose close is a reset, bound if asked.
fn prepared(kind: Type, to: SocketAddr, from: Option<SocketAddr>, timeout: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    socket.set_write_timeout(Some(timeout))?;
    if kind == Type::STREAM {
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
    }
    if let Some(from) = from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    Ok(socket)
}

/// Makes an unconnected socket learn of ICMP errors as well.
fn report_errors(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    let socket = socket.as_fd();
    match to {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
    }
    Ok(())
}

fn left(deadline: Instant, start: Instant) -> Result<Duration, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(other(FailureKind::Timeout, "no answer in time", start)) } else { Ok(left) }
}

fn answer(body: String, peer: SocketAddr, local: SocketAddr, start: Instant) -> Outcome {
    let field = |name: &str| body.lines().find_map(|line| line.trim_start().strip_prefix(name)).map(str::trim);
    let client = field("client_address=")
        .zip(field("client_port="))
        .and_then(|(ip, port)| Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?)));
    let (Some(pod), Some(client)) = (field("Hostname:"), client) else {
        return Err(other(FailureKind::Other, format!("not an echo server's answer: {body:?}"), start));
    };
    Ok(Response { pod: pod.into(), client, peer, local, latency: start.elapsed(), body })
}
