//! Binding: a port of the node that is a frontend is nobody else's.

use lb_datapath_ebpf_abi::{Addr, FrontendKey, Port, Reason, SCOPE_ANY, is_loopback, map_v4, unmap_v4};

use crate::sock::{ALLOW, REFUSE, SockMaps, fail, node, protocol};

/// A socket that was just bound.
pub trait Bound: super::Failing {
    /// `type` and `protocol` of the socket.
    fn kind(self) -> (u32, u32);
    /// The cookie of its network namespace.
    fn netns_cookie(self) -> u64;
    /// What it is bound to: an IPv4 address as IPv4-mapped address.
    fn bound_to(self) -> (Addr, Port);
}

/// `bind`, after the kernel has chosen the port: fails for a port of the node that is a frontend.
///
/// A socket of the node that had such a port would hear nobody from outside, or answers to its own packets would be
/// taken for new flows. Other network namespaces have ports of their own. A frontend at an address that the node does
/// not have is passed over: something on the node may serve it, as a local cache of DNS does.
#[inline(always)]
pub fn bind<M: SockMaps, S: Bound>(maps: M, sock: S) -> i32 {
    let settings = maps.settings();
    let Some(protocol) = protocol(sock.kind()) else { return ALLOW };
    if settings.guards_ports == 0 || sock.netns_cookie() != settings.host_netns {
        return ALLOW;
    }
    let (addr, port) = sock.bound_to();
    let key = FrontendKey { addr, port, protocol, scope: SCOPE_ANY, pad: 0 };
    let in_range = settings.is_node_port(port);
    let is_taken = if addr == map_v4([0; 4]) {
        in_range && node::serving(maps, &key, true).is_some()
    } else if addr == [0; 4] {
        // Whether the socket is one of IPv6 alone is not to be seen here.
        in_range && (node::serving(maps, &key, true).is_some() || node::serving(maps, &key, false).is_some())
    } else if is_loopback(addr) {
        settings.loopback != 0 && in_range && node::serving(maps, &key, unmap_v4(addr).is_some()).is_some()
    } else {
        maps.frontend(&key).is_some() && node::has(maps, addr)
    };
    if is_taken {
        fail(maps, sock, Reason::SocketPortTaken);
        return REFUSE;
    }
    ALLOW
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, vec::Vec};

    use lb_datapath_ebpf_abi::{Errno, LOOKUP_HASH, SockSettings, from_octets};

    use super::*;
    use crate::{
        fake::{Fake, FakeSock, HOST_NETNS, NODE, NODE_V6, VIP, addr_of},
        protocol::{TCP, UDP},
        sock::Hook,
    };

    const PORT: Port = Port::new(30080);
    const GUARDED: SockSettings = SockSettings {
        host_netns: HOST_NETNS,
        guards_ports: 1,
        loopback: 1,
        first_node_port: 30000,
        last_node_port: 32767,
        ..SockSettings::NONE
    };
    const V6_ANY: Addr = [0; 4];
    const V4_ANY: Addr = map_v4([0; 4]);

    /// A node with node port 30080 at its IPv4 address, over TCP, and port 80 as a load balancer's.
    fn guarded() -> Fake {
        let fake = Fake::serving(LOOKUP_HASH, &[1]);
        let value = fake.frontend_at(VIP);
        for port in [PORT, Port::new(80)] {
            let key = FrontendKey { addr: map_v4(NODE), port, protocol: TCP, scope: SCOPE_ANY, pad: 0 };
            fake.frontends.borrow_mut().insert(key, value);
        }
        fake.have_ips(&[from_octets(NODE_V6), map_v4(NODE)]);
        fake.settings.set(GUARDED);
        fake
    }

    fn bound(fake: &Fake, protocol: u8, addr: Addr, port: Port) -> Option<Errno> {
        let sock = FakeSock::new(Hook::V6, VIP);
        sock.kind.set((if protocol == UDP { 2 } else { 1 }, protocol.into()));
        sock.peer.set((addr, port));
        assert_eq!(bind(fake, &sock) == REFUSE, sock.failed.get().is_some());
        sock.failed.get()
    }

    const IN_USE: Option<Errno> = Some(Errno::AddressInUse);

    #[test]
    fn a_node_port_is_refused_at_each_address_that_it_has() {
        let fake = guarded();
        let (node, loopback) = (map_v4(NODE), map_v4([127, 0, 0, 1]));
        for addr in [node, V4_ANY, V6_ANY, loopback] {
            assert_eq!(bound(&fake, TCP, addr, PORT), IN_USE, "{addr:?}");
        }
        assert_eq!(*fake.counts.borrow(), [(Reason::SocketPortTaken, 4)].into());
        let sixth = addr_of(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16]));
        for addr in [from_octets(NODE_V6), sixth, map_v4([192, 0, 2, 77])] {
            assert_eq!(bound(&fake, TCP, addr, PORT), None, "{addr:?}");
        }
        assert_eq!(bound(&fake, UDP, node, PORT), None);
        assert_eq!(bound(&fake, TCP, node, Port::new(30081)), None);
    }

    #[test]
    fn a_port_outside_of_the_range_is_refused_at_its_own_address_only() {
        let fake = guarded();
        let addrs = [map_v4(NODE), V4_ANY, V6_ANY, map_v4([127, 0, 0, 1])];
        let refused: Vec<_> = addrs.map(|addr| bound(&fake, TCP, addr, Port::new(80))).into();
        assert_eq!(refused, [IN_USE, None, None, None]);
    }

    #[test]
    fn an_address_that_the_node_does_not_have_is_free_though_it_is_a_frontend() {
        assert_eq!(bound(&guarded(), TCP, addr_of(VIP), Port::new(80)), None);
    }

    #[test]
    fn other_namespaces_and_nodes_without_the_guard_bind_what_they_like() {
        let fake = guarded();
        fake.settings.set(SockSettings { host_netns: HOST_NETNS + 1, ..GUARDED });
        assert_eq!(bound(&fake, TCP, map_v4(NODE), PORT), None);
        fake.settings.set(SockSettings { guards_ports: 0, ..GUARDED });
        assert_eq!(bound(&fake, TCP, map_v4(NODE), PORT), None);
        // Nothing is served at loopback addresses then.
        fake.settings.set(SockSettings { loopback: 0, ..GUARDED });
        assert_eq!(bound(&fake, TCP, map_v4([127, 0, 0, 1]), PORT), None);
    }
}
