//! The server of a pod: HTTP and UDP echo on any number of ports, one thread, level-triggered epoll.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Arc, mpsc},
    thread,
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::EventFd,
};
use socket2::{Domain, Socket, Type};

use super::{
    http,
    protocol::{Serve, Who},
    serve::enter,
};

const BACKLOG: i32 = 4096;

/// A server's thread; it ends, with its sockets, when this is dropped.
pub(super) struct Running {
    stop: Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let stopped = self.stop.write(1).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| stopped) {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

/// Starts a server; returns when its ports are open.
pub(super) fn start(serve: Serve) -> Result<Running, String> {
    let stop = Arc::new(EventFd::new().map_err(|error| format!("making an eventfd failed: {error}"))?);
    let (opened, waiting) = mpsc::channel();
    let name = serve.who.pod.clone();
    let thread = thread::spawn({
        let stop = Arc::clone(&stop);
        move || match open(serve, &stop) {
            Ok(mut server) => {
                // The other end waits for this message alone.
                let _ = opened.send(Ok(()));
                server.run(&stop);
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        }
    });
    let running = Running { stop, thread: Some(thread) };
    waiting.recv().unwrap_or_else(|_| Err(format!("the server of pod `{name}` panicked")))?;
    Ok(running)
}

fn open(serve: Serve, stop: &EventFd) -> Result<Server, String> {
    enter(&serve.netns)?;
    let failed = |what: String, error: io::Error| format!("{what} in pod `{}` failed: {error}", serve.who.pod);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
        .and_then(|epoll| epoll.add(stop, event(stop.as_fd(), EpollFlags::EPOLLIN)).map(|()| epoll))
        .map_err(|error| failed("making an epoll".into(), error.into()))?;
    let mut server = Server { epoll, sources: HashMap::new(), who: serve.who.clone() };
    for (kind, ports) in [(Type::STREAM, &serve.http), (Type::DGRAM, &serve.udp)] {
        for &port in ports {
            for address in [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()] {
                let source = bind(kind, address).map_err(|error| failed(format!("listening on {address}"), error))?;
                server.add(source).map_err(|error| failed(format!("polling {address}"), error))?;
            }
        }
    }
    Ok(server)
}

fn bind(kind: Type, address: SocketAddr) -> io::Result<Source> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    if kind == Type::DGRAM {
        return Ok(Source::Datagrams(socket.into()));
    }
    socket.listen(BACKLOG)?;
    Ok(Source::Listener(socket.into()))
}

struct Server {
    epoll: Epoll,
    /// By file descriptor.
    sources: HashMap<u64, Source>,
    who: Who,
}

enum Source {
    Listener(TcpListener),
    Datagrams(UdpSocket),
    Connection(Connection),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(socket) => socket.as_fd(),
            Self::Datagrams(socket) => socket.as_fd(),
            Self::Connection(connection) => connection.stream.as_fd(),
        }
    }
}

impl Server {
    fn run(&mut self, stop: &EventFd) {
        let stop = key(stop.as_fd());
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => continue,
                Err(_) => return,
            };
            for event in &events[..ready] {
                if event.data() == stop {
                    return;
                }
                self.handle(event.data());
            }
        }
    }

    fn handle(&mut self, key: u64) {
        let accepted = match self.sources.get_mut(&key) {
            Some(Source::Listener(listener)) => accept_all(listener),
            Some(Source::Datagrams(socket)) => {
                echo_all(socket, &self.who);
                Vec::new()
            }
            Some(Source::Connection(_)) => {
                self.drive(key);
                Vec::new()
            }
            None => Vec::new(),
        };
        for connection in accepted {
            // Without room for the descriptor the client sees its connection close.
            let _ = self.add(Source::Connection(connection));
        }
    }

    /// Lets a connection go on; forgets it at its end.
    fn drive(&mut self, key: u64) {
        let Some(Source::Connection(connection)) = self.sources.get_mut(&key) else {
            return;
        };
        let wanted = connection.advance(&self.who);
        let modified = wanted.is_some_and(|flags| {
            let mut event = EpollEvent::new(flags, key);
            connection.interest == flags || self.epoll.modify(&connection.stream, &mut event).is_ok()
        });
        match wanted {
            Some(flags) if modified => connection.interest = flags,
            // Closing the descriptor takes it out of the epoll.
            _ => drop(self.sources.remove(&key)),
        }
    }

    fn add(&mut self, source: Source) -> io::Result<()> {
        self.epoll.add(&source, event(source.as_fd(), EpollFlags::EPOLLIN))?;
        self.sources.insert(key(source.as_fd()), source);
        Ok(())
    }
}

fn key(fd: BorrowedFd<'_>) -> u64 {
    u64::from(fd.as_raw_fd().unsigned_abs())
}

fn event(fd: BorrowedFd<'_>, flags: EpollFlags) -> EpollEvent {
    EpollEvent::new(flags, key(fd))
}

fn accept_all(listener: &TcpListener) -> Vec<Connection> {
    // An error other than "no more" concerns one connection that is gone already.
    std::iter::from_fn(|| listener.accept().ok())
        .filter_map(|(stream, client)| {
            stream.set_nonblocking(true).ok()?;
            stream.set_nodelay(true).ok()?;
            let server = stream.local_addr().ok()?;
            Some(Connection {
                stream,
                client,
                server,
                input: Vec::new(),
                output: Vec::new(),
                interest: EpollFlags::EPOLLIN,
                open: true,
            })
        })
        .collect()
}

fn echo_all(socket: &UdpSocket, who: &Who) {
    let mut buffer = [0; 2048];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // An ICMP error about an earlier answer.
            Err(_) => continue,
        };
        let payload = String::from_utf8_lossy(&buffer[..length]);
        let (pod, node) = (&who.pod, &who.node);
        let answer = format!(
            "Hostname: {pod}\nnode name={node}\nclient_address={}\nclient_port={}\npayload={payload}\n",
            client.ip(),
            client.port()
        );
        // A datagram may be lost; the client has a deadline.
        let _ = socket.send_to(answer.as_bytes(), client);
    }
}

struct Connection {
    stream: TcpStream,
    client: SocketAddr,
    server: SocketAddr,
    input: Vec<u8>,
    output: Vec<u8>,
    interest: EpollFlags,
    /// Whether it stays open when everything is written.
    open: bool,
}

impl Connection {
    /// Reads, answers and writes what it can. What to wait for; `None` at its end.
    fn advance(&mut self, who: &Who) -> Option<EpollFlags> {
        let more_to_come = self.fill()?;
        self.answer(who);
        self.flush()?;
        match (self.output.is_empty(), self.open && more_to_come) {
            (false, _) => Some(EpollFlags::EPOLLOUT),
            (true, true) => Some(EpollFlags::EPOLLIN),
            (true, false) => None,
        }
    }

    /// Whether the client may send more; `None` if the connection broke.
    fn fill(&mut self) -> Option<bool> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(false),
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(true),
                Err(_) => return None,
            }
        }
    }

    fn answer(&mut self, who: &Who) {
        while self.open {
            match http::parse(&self.input) {
                Ok(Some(ask)) => {
                    self.output.extend(http::echo(who, &ask, self.client, self.server));
                    self.open = ask.keep_alive;
                    self.input.drain(..ask.length);
                }
                Ok(None) => return,
                Err(status) => {
                    self.output.extend(http::refuse(status));
                    self.open = false;
                }
            }
        }
    }

    /// `None` if the connection broke.
    fn flush(&mut self) -> Option<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(()),
                Err(_) => return None,
            }
        }
        Some(())
    }
}
