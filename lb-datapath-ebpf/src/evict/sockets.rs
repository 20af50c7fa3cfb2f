//! Sockets that were connected to a backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
};

use lb_core::{
    addr::FrontendAddr,
    datapath::{DatapathError, ErrorKind, Remaining},
    error::report,
};
use lb_datapath_ebpf_abi::{Pod, Port, SockKey, SockPeer};
use lb_netlink::{InetFamily, InetProtocol, InetSocket, Query, SockDiag, SockDiagError, States};

use super::{
    Wanted,
    namespaces::{self, Namespaces, Tasks},
};
use crate::{
    config::{DestroySockets, EbpfConfig},
    error::EbpfError,
    state::{convert, maps::Maps},
};

/// What keeps this process from ending sockets in every network namespace, if anything does.
pub(crate) fn hindrance() -> Option<DatapathError> {
    if let Err(error) = namespaces::may_enter() {
        let why = format!("network namespaces of pods cannot be entered, which needs CAP_SYS_ADMIN: {error}");
        return Some(DatapathError::new(ErrorKind::Permission, why));
    }
    let probe = || {
        let mut diag = SockDiag::open()?;
        diag.probe(InetProtocol::Tcp)?;
        diag.probe(InetProtocol::Udp)
    };
    probe().err().map(|error| DatapathError::new(kind(&error), report(&error)))
}

fn kind(error: &SockDiagError) -> ErrorKind {
    match error {
        SockDiagError::Unsupported { .. } => ErrorKind::Unsupported,
        SockDiagError::NotPermitted => ErrorKind::Permission,
        _ => ErrorKind::System,
    }
}

/// Ends sockets; returns how many, and those that go on.
pub(super) fn end(maps: &Maps, wanted: &Wanted, config: &EbpfConfig) -> Result<(u64, Vec<Remaining>), EbpfError> {
    let mut search = Search::new(candidates(maps, wanted)?);
    if search.left.is_empty() {
        return Ok((0, Vec::new()));
    }
    match config.destroy_sockets {
        DestroySockets::Off => {
            search.give_up(ErrorKind::Unsupported, "sockets are not ended: `--destroy-sockets` is off")
        }
        DestroySockets::Host => {
            search.look_here();
            search.give_up(
                ErrorKind::Unsupported,
                "they are in other network namespaces, or were closed: `--destroy-sockets all` ends them there, which \
                 needs CAP_SYS_ADMIN",
            );
        }
        DestroySockets::All => {
            search.look_here();
            search.look_everywhere(config);
        }
    }
    for key in &search.ended {
        maps.sock_cells().remove(key.cookie);
        maps.sock_peers().remove(key.bytes()).map_err(map_failed("SOCK_PEERS"))?;
    }
    let ended = search.ended.len() as u64;
    Ok((ended, search.remaining(maps)?))
}

/// The sockets that connected through a frontend to a backend that does not keep its flows, by the keys of
/// `SOCK_PEERS` and `SOCK_CELLS`. Some of them were closed long ago: the map forgets the least recently used.
fn candidates(maps: &Maps, wanted: &Wanted) -> Result<BTreeMap<Key, Candidate>, EbpfError> {
    let mut found = BTreeMap::new();
    let mut look = |key: SockKey, peer: SockPeer| {
        let vip = (peer.addr, peer.port);
        if let Some(frontend) = wanted.ends(vip, key.protocol, (key.addr, key.port)) {
            let flow = SockKey { addr: peer.addr, port: peer.port, ..key };
            found.extend(Key::of(&key).map(|known| (known, Candidate { key, flow, frontend })));
        }
    };
    maps.sock_cells().entries().for_each(|(key, peer)| look(key, peer));
    let mut read = |key: &[u8], value: &[u8]| {
        SockKey::from_bytes(key).zip(SockPeer::from_bytes(value)).into_iter().for_each(|(key, peer)| look(key, peer));
        Ok(())
    };
    maps.sock_peers().each(&mut read).map_err(map_failed("SOCK_PEERS"))?;
    Ok(found)
}

fn map_failed(name: &'static str) -> impl FnOnce(io::Error) -> EbpfError {
    move |source| EbpfError::Map { name, what: "reading", source }
}

/// What identifies a socket and its peer, in the map as in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    protocol: InetProtocol,
    cookie: u64,
    peer: SocketAddr,
}

impl Key {
    fn of(key: &SockKey) -> Option<Self> {
        let protocol = match i32::from(key.protocol) {
            libc::IPPROTO_TCP => InetProtocol::Tcp,
            libc::IPPROTO_UDP => InetProtocol::Udp,
            _ => return None,
        };
        let peer = SocketAddr::new(convert::ip(key.addr), Port::number(key.port));
        Some(Self { protocol, cookie: key.cookie, peer })
    }

    /// The key of a socket of the kernel, whose IPv6 socket may have an IPv4-mapped peer.
    fn of_socket(socket: &InetSocket) -> Self {
        let peer = SocketAddr::new(socket.peer().ip().to_canonical(), socket.peer().port());
        Self { protocol: socket.protocol(), cookie: socket.cookie(), peer }
    }
}

/// A socket that is to be ended, if it is still there.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Its key in `SOCK_PEERS`.
    key: SockKey,
    /// Its key in `SOCK_FLOWS`, where it is if it sends without being connected.
    flow: SockKey,
    frontend: FrontendAddr,
}

/// A search for sockets in one network namespace after the other.
struct Search {
    left: BTreeMap<Key, Candidate>,
    ended: Vec<SockKey>,
    /// Sockets that were found, and why they were not ended.
    failed: Vec<(FrontendAddr, ErrorKind, String)>,
    /// Why sockets that were not found may be there nevertheless.
    unseen: Option<(ErrorKind, String)>,
}

impl Search {
    fn new(left: BTreeMap<Key, Candidate>) -> Self {
        Self { left, ended: Vec::new(), failed: Vec::new(), unseen: None }
    }

    /// Not every socket is looked for, for this reason.
    fn give_up(&mut self, kind: ErrorKind, why: impl Into<String>) {
        self.unseen.get_or_insert_with(|| (kind, why.into()));
    }

    /// Ends the sockets in the network namespace of the calling thread.
    fn look_here(&mut self) {
        for protocol in [InetProtocol::Tcp, InetProtocol::Udp] {
            if let Err(error) = self.look(protocol) {
                self.give_up(kind(&error), report(&error));
            }
        }
    }

    fn look(&mut self, protocol: InetProtocol) -> Result<(), SockDiagError> {
        let peers = self.left.keys().filter(|key| key.protocol == protocol).map(|key| key.peer);
        let peers: Vec<SocketAddr> = peers.collect::<BTreeSet<_>>().into_iter().collect();
        if peers.is_empty() {
            return Ok(());
        }
        let mut diag = SockDiag::open()?;
        let v4: Vec<SocketAddr> = peers.iter().copied().filter(SocketAddr::is_ipv4).collect();
        for (family, peers) in [(InetFamily::V4, v4), (InetFamily::V6, peers)] {
            let query = Query::new(protocol, family).with_states(States::CONNECTED).with_peers(&peers);
            let ours = |socket: &InetSocket| self.left.contains_key(&Key::of_socket(socket));
            let sockets: Vec<InetSocket> = diag.list(&query)?.into_iter().filter(ours).collect();
            let not_ended: BTreeMap<usize, String> =
                diag.end(&sockets)?.into_iter().map(|left| (left.index, left.error.to_string())).collect();
            for (index, socket) in sockets.iter().enumerate() {
                let Some(candidate) = self.left.remove(&Key::of_socket(socket)) else { continue };
                match not_ended.get(&index) {
                    Some(why) => self.failed.push((candidate.frontend, ErrorKind::System, why.clone())),
                    None => self.ended.push(candidate.key),
                }
            }
        }
        Ok(())
    }

    /// Ends the sockets in the other network namespaces of the cgroup's tasks: first in those of processes, and then, if
    /// some are still missing, in those of single threads.
    fn look_everywhere(&mut self, config: &EbpfConfig) {
        let mut namespaces = match Namespaces::new() {
            Ok(namespaces) => namespaces,
            Err(error) => return self.give_up(ErrorKind::System, format!("reading /proc failed: {error}")),
        };
        for tasks in [Tasks::Processes, Tasks::Threads] {
            if self.left.is_empty() {
                return;
            }
            namespaces.find(&config.cgroup, tasks);
            let found = namespaces.take();
            if let Some((count, error)) = namespaces::inside(&found, || self.look_here()) {
                let why =
                    format!("{count} network namespaces could not be entered, which needs CAP_SYS_ADMIN: {error}");
                self.give_up(ErrorKind::Permission, why);
            }
        }
        if let Some((count, error)) = &namespaces.hidden {
            let why = format!(
                "the network namespaces of {count} processes could not be looked at, which needs CAP_SYS_PTRACE and the \
                 PID namespace of the host: {error}"
            );
            self.give_up(ErrorKind::Permission, why);
        }
    }

    /// The sockets that go on.
    fn remaining(self, maps: &Maps) -> Result<Vec<Remaining>, EbpfError> {
        let mut counts: BTreeMap<(FrontendAddr, String), (u64, ErrorKind)> = BTreeMap::new();
        for (frontend, kind, why) in self.failed {
            counts.entry((frontend, why)).or_insert((0, kind)).0 += 1;
        }
        if let Some((kind, why)) = self.unseen {
            for candidate in self.left.values() {
                // One that is not connected gets another backend with its next datagram.
                let unconnected = maps.sock_flows().lookup(candidate.flow.bytes()).map_err(map_failed("SOCK_FLOWS"))?;
                if unconnected.is_none() {
                    counts.entry((candidate.frontend, why.clone())).or_insert((0, kind)).0 += 1;
                }
            }
        }
        let remaining = counts.into_iter().map(|((frontend, why), (flows, kind))| Remaining {
            frontend,
            flows,
            cause: DatapathError::new(kind, why),
        });
        Ok(remaining.collect())
    }
}
