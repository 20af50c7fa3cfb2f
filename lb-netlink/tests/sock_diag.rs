//! Real sockets in a network namespace of their own, on a kernel with `CONFIG_INET_DIAG_DESTROY`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd as _},
    thread,
    time::Duration,
};

use lb_netlink::{InetFamily, InetProtocol, InetSocket, Query, SockDiag, SockDiagError, States};
use nix::{
    libc,
    sched::{CloneFlags, unshare},
};
use socket2::{Domain, Socket, Type};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const MAPPED: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1));

/// Runs `test` in a network namespace with nothing but a loopback device.
fn in_namespace(test: fn(&mut SockDiag)) {
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root makes a network namespace");
        loopback_up();
        let mut diag = SockDiag::open().unwrap();
        for protocol in [InetProtocol::Udp, InetProtocol::Tcp] {
            diag.probe(protocol).expect("the kernel ends sockets");
        }
        test(&mut diag);
    })
    .join()
    .unwrap();
}

fn loopback_up() {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // SAFETY: all zero is a value of every field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is a `struct ifreq` that lives through the call.
    assert_eq!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }, 0);
}

fn cookie(socket: &impl AsFd) -> u64 {
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let failed =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &raw mut length) };
    assert_eq!(failed, 0);
    cookie
}

/// A UDP socket of the family of `ip`, connected to `port` there, and the server that it talks to.
fn udp(ip: IpAddr) -> (UdpSocket, UdpSocket) {
    let server = UdpSocket::bind((if ip == MAPPED { V4 } else { ip }, 0)).unwrap();
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let client = UdpSocket::bind((any, 0)).unwrap();
    client.connect((ip, server.local_addr().unwrap().port())).unwrap();
    (client, server)
}

fn tcp(ip: IpAddr) -> (TcpStream, TcpStream) {
    let server = TcpListener::bind((if ip == MAPPED { V4 } else { ip }, 0)).unwrap();
    let to = SocketAddr::new(ip, server.local_addr().unwrap().port());
    let client = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    client.connect(&to.into()).unwrap();
    (client.into(), server.accept().unwrap().0)
}

fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

fn listed(diag: &mut SockDiag, protocol: InetProtocol, family: InetFamily, peers: &[SocketAddr]) -> Vec<InetSocket> {
    let query = Query::new(protocol, family).with_states(States::ESTABLISHED).with_peers(peers);
    diag.list(&query).unwrap()
}

const KINDS: [(IpAddr, InetFamily); 3] = [(V4, InetFamily::V4), (V6, InetFamily::V6), (MAPPED, InetFamily::V6)];

#[test]
#[ignore = "makes a network namespace, which needs root"]
fn a_connected_datagram_socket_is_found_by_its_peer_and_ended() {
    in_namespace(|diag| {
        for (ip, family) in KINDS {
            let (client, server) = udp(ip);
            let (other, _other_server) = udp(ip);
            let peer = plain(client.peer_addr().unwrap());
            let found = listed(diag, InetProtocol::Udp, family, &[peer]);
            let [socket] = found[..] else { panic!("{ip}: {found:?}") };
            assert_eq!(
                (socket.cookie(), socket.local().port()),
                (cookie(&client), client.local_addr().unwrap().port())
            );
            assert_eq!(plain(socket.peer()), peer);
            assert!(diag.end(&found).unwrap().is_empty());
            let aborted = client.recv(&mut [0]).unwrap_err();
            assert_eq!(aborted.kind(), io::ErrorKind::ConnectionAborted, "{ip}");
            // The socket can be connected again, and the other one has never noticed.
            client.connect((ip, server.local_addr().unwrap().port())).unwrap();
            client.send(b"again").unwrap();
            server.recv(&mut [0; 8]).unwrap();
            other.send(b"still").unwrap();
        }
    });
}

#[test]
#[ignore = "makes a network namespace, which needs root"]
fn an_established_connection_is_ended_at_both_ends() {
    in_namespace(|diag| {
        for (ip, family) in KINDS {
            let (mut client, mut server) = tcp(ip);
            let peer = plain(client.peer_addr().unwrap());
            let found = listed(diag, InetProtocol::Tcp, family, &[peer]);
            let [socket] = found[..] else { panic!("{ip}: {found:?}") };
            assert_eq!(socket.cookie(), cookie(&client));
            assert!(diag.end(&found).unwrap().is_empty());
            assert_eq!(client.write(b"x").unwrap_err().kind(), io::ErrorKind::ConnectionAborted, "{ip}");
            server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{ip}");
        }
    });
}

#[test]
#[ignore = "makes a network namespace, which needs root"]
fn a_datagram_socket_that_is_not_connected_is_not_found() {
    in_namespace(|diag| {
        let server = UdpSocket::bind((V4, 0)).unwrap();
        let client = UdpSocket::bind((V4, 0)).unwrap();
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        assert!(listed(diag, InetProtocol::Udp, InetFamily::V4, &[server.local_addr().unwrap()]).is_empty());
    });
}

#[test]
#[ignore = "makes a network namespace, which needs root"]
fn one_of_many_peers_is_found_by_one_filter() {
    in_namespace(|diag| {
        let (client, _server) = udp(V4);
        let decoys = (0..3000_u16).map(|n| SocketAddr::new([10, 0, (n >> 8) as u8, n as u8].into(), 53));
        for at in [0, 1, 1023, 1024, 2999] {
            let mut peers: Vec<SocketAddr> = decoys.clone().collect();
            peers.insert(at, client.peer_addr().unwrap());
            let found = listed(diag, InetProtocol::Udp, InetFamily::V4, &peers);
            assert_eq!(found.iter().map(InetSocket::cookie).collect::<Vec<_>>(), [cookie(&client)], "{at}");
        }
        assert!(listed(diag, InetProtocol::Udp, InetFamily::V4, &[]).is_empty());
    });
}

#[test]
#[ignore = "makes a network namespace, which needs root"]
fn a_socket_that_has_gone_or_has_another_peer_is_left_alone() {
    in_namespace(|diag| {
        let (client, _server) = udp(V4);
        let (_, second) = udp(V4);
        let before = listed(diag, InetProtocol::Udp, InetFamily::V4, &[client.peer_addr().unwrap()]);
        assert_eq!(before.len(), 1);
        client.connect(second.local_addr().unwrap()).unwrap();
        assert!(diag.end(&before).unwrap().is_empty());
        client.send(b"x").unwrap();
        second.recv(&mut [0]).unwrap();
        drop(client);
        assert!(diag.end(&before).unwrap().is_empty());
    });
}

#[test]
#[ignore = "makes a network namespace, which needs root"]
fn hundreds_of_sockets_are_ended_at_once() {
    in_namespace(|diag| {
        let server = UdpSocket::bind((V4, 0)).unwrap();
        let to = server.local_addr().unwrap();
        let connect = |_| {
            let client = UdpSocket::bind((V4, 0)).unwrap();
            client.connect(to).unwrap();
            client
        };
        let clients: Vec<UdpSocket> = (0..700).map(connect).collect();
        let found = listed(diag, InetProtocol::Udp, InetFamily::V4, &[to]);
        assert_eq!(found.len(), clients.len());
        assert!(diag.end(&found).unwrap().is_empty());
        assert!(listed(diag, InetProtocol::Udp, InetFamily::V4, &[to]).is_empty());
    });
}

#[test]
#[ignore = "makes a network namespace, which needs root"]
fn ending_a_socket_without_the_privilege_is_refused_by_name() {
    in_namespace(|diag| {
        let (client, _server) = udp(V4);
        let found = listed(diag, InetProtocol::Udp, InetFamily::V4, &[client.peer_addr().unwrap()]);
        let refused = thread::spawn(move || {
            let mut diag = SockDiag::open().unwrap();
            // SAFETY: the call changes the user of this thread alone.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            diag.end(&found)
        });
        assert!(matches!(refused.join().unwrap(), Err(SockDiagError::NotPermitted)));
        client.send(b"x").unwrap();
    });
}
