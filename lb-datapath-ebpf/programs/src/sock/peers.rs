//! Where the virtual address behind a peer is kept: a TCP socket has one peer, and an element of `SOCK_CELLS` for it.

use lb_datapath_ebpf_abi::{SockKey, SockPeer};

use crate::{
    protocol::TCP,
    sock::{Cell, SockMaps, remove_peer},
};

/// The virtual address behind a peer of a socket.
#[inline(always)]
pub(super) fn get<M: SockMaps>(maps: M, key: &SockKey) -> Option<SockPeer> {
    if key.protocol == TCP
        && let Some(cell) = maps.cell(key.cookie)
        && let Some(peer) = cell.peer(key)
    {
        return Some(peer);
    }
    maps.peer(key)
}

/// Writes the virtual address behind the peer of a TCP socket. An earlier peer is forgotten, as its connection failed.
#[inline(always)]
pub(super) fn put_stream<M: SockMaps>(maps: M, key: &SockKey, peer: &SockPeer) {
    match maps.cell(key.cookie) {
        Some(cell) if cell.take(key.cookie) => cell.put_peer(key, peer),
        _ => maps.put_peer(key, peer),
    }
}

/// Forgets a TCP socket. `key` says what it is connected to, if `SOCK_PEERS` may have that.
#[inline(always)]
pub(super) fn release<M: SockMaps>(maps: M, cookie: u64, key: impl FnOnce() -> Option<SockKey>) {
    let is_done = maps.cell(cookie).is_some_and(|cell| cell.give_up(cookie));
    if !is_done && let Some(key) = key() {
        remove_peer(maps, &key);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        net::{IpAddr, Ipv4Addr},
        vec::Vec,
    };

    use lb_datapath_ebpf_abi::{LOOKUP_HASH, Port, SOCK_CELLS};

    use super::*;
    use crate::{
        fake::{Fake, FakeSock, VIP, addr_of, backend},
        sock::{ALLOW, Hook, connect, release, restore, sendmsg},
    };

    const SECOND_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 2));

    /// A node with backends 1 to 20, where sockets have elements of their own.
    fn with_cells() -> Fake {
        let fake = Fake::serving(LOOKUP_HASH, &(1..=20).collect::<Vec<_>>());
        fake.alias(SECOND_VIP);
        *fake.cells.borrow_mut() = Some(HashMap::new());
        fake
    }

    /// A TCP socket with this cookie that connected to `vip`.
    fn connected(fake: &Fake, cookie: u64, vip: IpAddr) -> FakeSock {
        let sock = FakeSock::new(Hook::V4, vip);
        sock.cookie.set(cookie);
        again(fake, &sock, vip);
        sock
    }

    fn again(fake: &Fake, sock: &FakeSock, vip: IpAddr) {
        sock.peer.set((addr_of(vip), Port::new(80)));
        assert_eq!(connect(fake, sock), ALLOW);
        assert_ne!(sock.peer.get().0, addr_of(vip));
        sock.connected.set(Some(sock.peer.get()));
    }

    /// What `getpeername` says.
    fn peer_of(fake: &Fake, sock: &FakeSock) -> SockPeer {
        sock.peer.set(sock.connected.get().unwrap());
        assert_eq!(restore(fake, sock), ALLOW);
        let (addr, port) = sock.peer.get();
        SockPeer { addr, port, pad: 0 }
    }

    /// Elements and entries in use.
    fn used(fake: &Fake) -> (usize, usize) {
        (fake.cells.borrow().as_ref().unwrap().len(), fake.peers.borrow().len())
    }

    #[test]
    fn sockets_whose_cookies_lead_to_one_element_hear_their_own_addresses() {
        let fake = with_cells();
        let vips = [VIP, SECOND_VIP, VIP];
        let cookies = [17, 17 + u64::from(SOCK_CELLS), 17 + 5 * u64::from(SOCK_CELLS)];
        let socks: Vec<_> = cookies.into_iter().zip(vips).map(|(cookie, vip)| connected(&fake, cookie, vip)).collect();
        assert_eq!(used(&fake), (1, 2));
        for (sock, vip) in socks.iter().zip(vips) {
            assert_eq!(peer_of(&fake, sock).addr, addr_of(vip));
        }
        // The first one leaves: the element is the next newcomer's, and the others keep what they have.
        assert_eq!(release(&fake, &socks[0]), ALLOW);
        assert_eq!(used(&fake), (0, 2));
        let newcomer = connected(&fake, 17 + 2 * u64::from(SOCK_CELLS), SECOND_VIP);
        assert_eq!(used(&fake), (1, 2));
        for (sock, vip) in [(&socks[1], SECOND_VIP), (&socks[2], VIP), (&newcomer, SECOND_VIP)] {
            assert_eq!(peer_of(&fake, sock).addr, addr_of(vip));
        }
        for sock in [&socks[1], &socks[2], &newcomer] {
            assert_eq!(release(&fake, sock), ALLOW);
        }
        assert_eq!(used(&fake), (0, 0));
    }

    #[test]
    fn a_socket_that_connects_again_after_a_failure_hears_its_last_address() {
        let fake = with_cells();
        let sock = connected(&fake, 17, VIP);
        again(&fake, &sock, SECOND_VIP);
        assert_eq!(peer_of(&fake, &sock).addr, addr_of(SECOND_VIP));
        assert_eq!(used(&fake), (1, 0));
    }

    #[test]
    fn a_socket_that_closes_leaves_the_element_of_another_one() {
        let fake = with_cells();
        let sock = connected(&fake, 17, VIP);
        let stranger = FakeSock::new(Hook::V4, VIP);
        stranger.cookie.set(17 + u64::from(SOCK_CELLS));
        stranger.connected.set(Some(backend(1)));
        assert_eq!(release(&fake, &stranger), ALLOW);
        assert_eq!(peer_of(&fake, &sock).addr, addr_of(VIP));
    }

    #[test]
    fn datagram_sockets_have_no_elements() {
        let fake = with_cells();
        for connects in [true, false] {
            let sock = FakeSock::new(Hook::V4, VIP);
            sock.kind.set((2, 17));
            assert_eq!(if connects { connect(&fake, &sock) } else { sendmsg(&fake, &sock) }, ALLOW);
            sock.connected.set(Some(sock.peer.get()));
            assert_eq!(used(&fake), (0, 1));
            assert_eq!(release(&fake, &sock), ALLOW);
            assert_eq!(used(&fake), (0, 0));
        }
    }

    #[test]
    fn a_kernel_without_elements_keeps_all_in_the_table() {
        let fake = with_cells();
        *fake.cells.borrow_mut() = None;
        let sock = connected(&fake, 17, VIP);
        assert_eq!((fake.peers.borrow().len(), peer_of(&fake, &sock).addr), (1, addr_of(VIP)));
        assert_eq!(release(&fake, &sock), ALLOW);
        assert!(fake.peers.borrow().is_empty());
    }
}
