//! Requests and answers as bytes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::libc;

use super::InetProtocol;

/// Size of `struct inet_diag_sockid`.
pub(super) const ID: usize = 48;
/// Size of `struct inet_diag_req_v2`.
const REQUEST: usize = 8 + ID;
/// Where an answer (`struct inet_diag_msg`) has its parts.
const ANSWER_ID: usize = 4;
/// Where an id has its parts.
const LOCAL_ADDRESS: usize = 4;
const PEER_ADDRESS: usize = 20;
const COOKIE: usize = 40;

/// A socket that the kernel listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InetSocket {
    protocol: InetProtocol,
    family: u8,
    state: u8,
    /// `struct inet_diag_sockid`, as the kernel wrote it.
    id: [u8; ID],
}

/// `struct inet_diag_req_v2`.
pub(super) fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[0] = family;
    bytes[1] = protocol;
    bytes[4..8].copy_from_slice(&states.to_ne_bytes());
    bytes[8..].copy_from_slice(id);
    bytes
}

impl InetSocket {
    /// Reads an answer; `None` if it is too short.
    pub(super) fn read(protocol: InetProtocol, answer: &[u8]) -> Option<Self> {
        let id = *answer.get(ANSWER_ID..)?.first_chunk()?;
        Some(Self { protocol, family: answer[0], state: answer[1], id })
    }

    /// A socket that does not exist: port 0, and a cookie that no socket gets before all others were used.
    pub(super) const fn nobody(protocol: InetProtocol) -> Self {
        let mut id = [0; ID];
        id[COOKIE] = 1;
        id[ID - 1] = 0x80;
        Self { protocol, family: libc::AF_INET as u8, state: 0, id }
    }

    pub(super) fn destroy_request(&self) -> [u8; REQUEST] {
        request(self.family, self.protocol.number(), u32::MAX, &self.id)
    }

    /// Its protocol.
    #[must_use]
    pub const fn protocol(&self) -> InetProtocol {
        self.protocol
    }

    /// Its state: the number of a `TCP_…` of the kernel. 1 is established.
    #[must_use]
    pub const fn state(&self) -> u8 {
        self.state
    }

    /// Its cookie, as `bpf_get_socket_cookie` and `SO_COOKIE` say it.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        let half = |at: usize| u32::from_ne_bytes([self.id[at], self.id[at + 1], self.id[at + 2], self.id[at + 3]]);
        u64::from(half(COOKIE)) | u64::from(half(COOKIE + 4)) << 32
    }

    /// Its own address; that of an IPv6 socket may be IPv4-mapped.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(self.address(LOCAL_ADDRESS), u16::from_be_bytes([self.id[0], self.id[1]]))
    }

    /// The address of its peer; that of an IPv6 socket may be IPv4-mapped. All zero if it has none.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.address(PEER_ADDRESS), u16::from_be_bytes([self.id[2], self.id[3]]))
    }

    fn address(&self, at: usize) -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.id[at..at + 16]);
        if i32::from(self.family) == libc::AF_INET6 {
            return Ipv6Addr::from(octets).into();
        }
        let [a, b, c, d, ..] = octets;
        [a, b, c, d].into()
    }
}
