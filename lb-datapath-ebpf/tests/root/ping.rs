//! Pings of virtual addresses, from the kernel's own ping sockets.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{FromRawFd, OwnedFd},
};

use lb_core::state::{Lookup, OtherPorts};
use lb_datapath_ebpf::Reason;

use crate::{
    common::{Namespace, PATIENCE, POD_DEVICES, World, no_offload, turn},
    packets::{Cluster, VIPS, addr, services},
};

/// Longer than the MTU of every device.
const IN_FRAGMENTS: usize = 4000;

/// Sends one echo request with this many bytes of payload; returns the payload of the reply, whose checksum the kernel
/// has looked at. A ping socket hears replies to its own requests alone.
fn ping(to: IpAddr, payload: usize) -> io::Result<Vec<u8>> {
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8, 0),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129),
    };
    // SAFETY: the call takes numbers.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has made the descriptor.
    let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(SocketAddr::new(to, 0))?;
    let data: Vec<u8> = (0..payload).map(|i| (i % 251) as u8).collect();
    socket.send(&[&[request, 0, 0, 0, 0, 0, 0, 7], &data[..]].concat())?;
    let mut room = vec![0; payload + 64];
    let len = socket.recv(&mut room)?;
    assert_eq!((room[0], room[1], &room[6..8]), (reply, 0, &[0, 7][..]), "{to}");
    assert_eq!(&room[8..len], &data[..], "{to}");
    Ok(data)
}

/// Ping sockets are for everybody.
fn allow_pings(spaces: &[&Namespace]) {
    spaces.iter().for_each(|space| space.sysctl("ipv4/ping_group_range", "0 2147483647"));
}

fn ping_all(space: &Namespace) {
    for vip in VIPS {
        for payload in [0, 1, 56, IN_FRAGMENTS] {
            let answered = space.run(|| ping(addr(vip).ip(), payload));
            assert_eq!(answered.map(|data| data.len()).map_err(|error| error.to_string()), Ok(payload), "{vip}");
        }
    }
}

/// A cluster whose frontends answer pings or do not, and say this of other ports.
fn cluster(answers_ping: bool, other_ports: OtherPorts) -> Cluster {
    let mut cluster = Cluster::new();
    let mut desired = services(Lookup::Random, None);
    for frontend in desired.frontends.values_mut() {
        (frontend.answers_ping, frontend.other_ports) = (answers_ping, other_ports);
    }
    cluster.apply(desired);
    let World { node, pods, client } = &cluster.world;
    allow_pings(&[node, &pods[0], &pods[1], client]);
    node.ip("route add default via 192.0.2.2");
    node.ip("-6 route add default via 2001:db8::2");
    cluster
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_virtual_address_answers_pings_of_clients_pods_and_the_node() {
    let _turn = turn();
    let cluster = cluster(true, OtherPorts::Reject);
    let World { node, pods, client } = &cluster.world;
    for space in [client, &pods[0], node] {
        ping_all(space);
    }
    [client, &pods[0]].into_iter().for_each(|space| space.run(|| no_offload("eth0")));
    node.run(|| POD_DEVICES.into_iter().chain([crate::common::UPLINK]).for_each(no_offload));
    for space in [client, &pods[0], node] {
        ping_all(space);
    }
    assert_eq!(cluster.stopped(), BTreeMap::new());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn pings_that_nobody_asked_to_be_answered_are_refused_at_a_cluster_address() {
    let _turn = turn();
    let cluster = cluster(false, OtherPorts::Reject);
    let World { node, pods, client } = &cluster.world;
    for space in [client, &pods[0], node] {
        for vip in VIPS {
            let error = space.run(|| ping(addr(vip).ip(), 56)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{vip}: {error}");
        }
    }
    assert_eq!(cluster.stopped(), [(Reason::PacketOtherPort, 6)].into());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_node_answers_pings_of_its_own_address_itself() {
    let _turn = turn();
    let cluster = cluster(true, OtherPorts::Drop);
    for own in ["192.0.2.1", "2001:db8::1"] {
        assert!(cluster.world.client.run(|| ping(own.parse().unwrap(), IN_FRAGMENTS)).is_ok(), "{own}");
    }
    assert_eq!(cluster.stopped(), BTreeMap::new());
}
