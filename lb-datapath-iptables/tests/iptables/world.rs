//! The shared network, seen as places that flows start from.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::net::{Net, Netns, udp_socket_from};

/// How long silence must last to be silence.
pub(crate) const PATIENCE: Duration = Duration::from_millis(600);

/// A namespace of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Client,
    Node,
    Backend(u8),
}

/// What a server says: who it is and whom it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) server: String,
    pub(crate) source: IpAddr,
}

pub(crate) fn client_ip(v6: bool) -> IpAddr {
    if v6 { "fd01::2" } else { "10.1.0.2" }.parse().unwrap()
}

/// A second address of the client, in the same /24 and /64.
pub(crate) fn other_client_ip(v6: bool) -> IpAddr {
    if v6 { "fd01::3" } else { "10.1.0.3" }.parse().unwrap()
}

pub(crate) fn backend_ip(n: u8, v6: bool) -> IpAddr {
    if v6 { format!("fd02:{n}::2") } else { format!("10.2.{n}.2") }.parse().unwrap()
}

/// The node's address towards a backend.
pub(crate) fn node_ip(n: u8, v6: bool) -> IpAddr {
    if v6 { format!("fd02:{n}::1") } else { format!("10.2.{n}.1") }.parse().unwrap()
}

pub(crate) struct World(Net);

impl World {
    pub(crate) fn new() -> Self {
        let net = Net::new();
        // Nodes of the same second: without this the node's first question for the address can go unanswered.
        net.client.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=0
             ip addr add 10.1.0.3/24 dev eth0
             ip addr add fd01::3/64 dev eth0 nodad preferred_lft 0");
        Self(net)
    }

    fn netns(&self, place: Place) -> &Netns {
        match place {
            Place::Client => &self.0.client,
            Place::Node => &self.0.node,
            Place::Backend(n) => &self.0.backends[usize::from(n) - 1],
        }
    }

    /// Runs `work` on a thread of its own in the namespace of `place`.
    pub(crate) fn at<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> T {
        self.netns(place).run(work)
    }

    /// Runs a command there and returns what it printed.
    pub(crate) fn sh(&self, place: Place, command: &str) -> String {
        self.netns(place).sh(command)
    }

    /// Asks `to` over TCP, from a given source address or any.
    pub(crate) fn tcp(&self, place: Place, from: Option<IpAddr>, to: SocketAddr) -> io::Result<Reply> {
        self.at(place, || connect(from, to)).map(|(_, reply)| reply)
    }

    /// Asks `to` once over a new UDP socket.
    pub(crate) fn udp(&self, place: Place, from: Option<IpAddr>, to: SocketAddr) -> io::Result<Reply> {
        self.at(place, || udp(&udp_socket(from, to)?))
    }
}

fn reply(text: &str) -> io::Result<Reply> {
    let (server, source) = text.split_once(' ').ok_or_else(|| io::Error::other(text.to_owned()))?;
    Ok(Reply { server: server.to_owned(), source: source.parse().map_err(io::Error::other)? })
}

/// An open TCP connection that was greeted.
pub(crate) struct Connection(TcpStream);

impl Connection {
    /// Whether the server still answers.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut echo = [0];
        self.0.write_all(b"?").is_ok() && self.0.read_exact(&mut echo).is_ok() && echo == *b"?"
    }
}

pub(crate) fn connect(from: Option<IpAddr>, to: SocketAddr) -> io::Result<(Connection, Reply)> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    let reply = reply(&crate::net::say(&mut stream)?)?;
    Ok((Connection(stream), reply))
}

pub(crate) fn udp_socket(from: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    udp_socket_from(SocketAddr::new(from.unwrap_or(any), 0), to)
}

pub(crate) fn udp(socket: &UdpSocket) -> io::Result<Reply> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    reply(&String::from_utf8_lossy(&buffer[..length]))
}
