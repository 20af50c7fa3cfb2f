//! Single segments of TCP, made and seen without the connection that they pretend to belong to.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
};

use nix::{
    errno::Errno,
    sys::socket::{SockaddrStorage, recvfrom},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::Netns;

/// Receives a copy of every segment that is delivered to a host itself.
pub(crate) struct Tap {
    socket: Socket,
    v6: bool,
}

impl Tap {
    pub(crate) fn open(netns: &Netns, v6: bool) -> Self {
        let socket = netns.run(|| raw(v6));
        socket.set_nonblocking(true).unwrap();
        Self { socket, v6 }
    }

    /// Source and destination port of each segment so far.
    pub(crate) fn drain(&self) -> Vec<(SocketAddr, u16)> {
        let mut seen = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => (length, from.unwrap()),
                Err(Errno::EAGAIN) => return seen,
                Err(error) => panic!("{error}"),
            };
            let (from, header): (IpAddr, usize) = match self.v6 {
                true => (from.as_sockaddr_in6().unwrap().ip().into(), 0),
                false => (from.as_sockaddr_in().unwrap().ip().into(), usize::from(buffer[0] & 0xf) * 4),
            };
            let port = |at: usize| u16::from_be_bytes([buffer[header + at], buffer[header + at + 1]]);
            assert!(length >= header + 20, "a segment of {length} bytes");
            seen.push((SocketAddr::new(from, port(0)), port(2)));
        }
    }
}

fn raw(v6: bool) -> Socket {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::RAW, Some(Protocol::TCP)).unwrap()
}

/// Sends two acknowledgements whose sequence numbers are half of the space apart: one at least is outside of whatever
/// window the connection has.
pub(crate) fn send_out_of_window(netns: &Netns, from: SocketAddr, to: SocketAddr) {
    netns.run(|| {
        let socket = raw(from.is_ipv6());
        for sequence in [0, 1 << 31] {
            // A raw socket takes no port.
            let host = SocketAddr::new(to.ip(), 0);
            match socket.send_to(&acknowledgement(from, to, sequence), &host.into()) {
                // The host's own output hook dropped it.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                sent => drop(sent.unwrap()),
            }
        }
    });
}

fn acknowledgement(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    const ACK: u8 = 0x10;
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend((sequence ^ 0x5555_5555).to_be_bytes());
    segment.extend([5 << 4, ACK, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(from.ip(), to.ip(), &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// That of TCP: the pseudo header has the same sum in both families.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    const TCP: u32 = 6;
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let bytes = [octets(from), octets(to), segment.to_vec()].concat();
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + TCP + u32::try_from(segment.len()).unwrap();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
