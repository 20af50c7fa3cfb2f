//! Virtual addresses next to the addresses of others, and flows that conntrack knows better than a rule: on every
//! datapath of this crate, with real connections from a pod, from the node and from outside. Run as root:
//! `cargo test -p lb-datapath-iptables --test neighbours -- --ignored`.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test")]

#[expect(dead_code, reason = "shared with the tests of each datapath")]
#[path = "../net/mod.rs"]
mod net;
mod wire;
mod world;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use lb_core::drift::Inspection;
use net::{Netns, PATIENCE, PORT, SILENCE, say, serve_on, tcp, udp};
use socket2::{Domain, Socket, Type};
use wire::{Tap, send_out_of_window};
use world::{CLIENTS, Client, FRONT, Kind, World, at, server_ip};

macro_rules! on_every_datapath {
    ($($name:ident),* $(,)?) => {
        on_every_datapath!(nftables, Nftables, "needs root: network namespaces and nftables", $($name),*);
        on_every_datapath!(iptables_nft, IptablesNft, "needs root: network namespaces and iptables-nft", $($name),*);
        on_every_datapath!(iptables_legacy, IptablesLegacy, "needs root: network namespaces and iptables-legacy", $($name),*);
    };
    ($module:ident, $kind:ident, $why:literal, $($name:ident),*) => {
        mod $module {
            $(#[test]
            #[ignore = $why]
            fn $name() {
                super::$name(super::Kind::$kind);
            })*
        }
    };
}

on_every_datapath! {
    other_ports_of_a_neighbours_address_are_the_neighbours,
    an_address_of_the_subnet_that_nobody_has_is_served_and_nothing_else,
    other_ports_of_an_address_that_is_ours_alone_are_silent,
    a_service_without_backends_refuses_at_a_neighbours_address,
    an_address_is_given_back_when_its_network_comes_and_taken_when_it_goes,
    a_new_process_finds_a_service_at_a_neighbours_address,
    a_connection_that_began_before_its_service_reaches_it,
    a_connection_that_nobody_answered_reaches_the_owner_of_an_address_that_leaves,
    an_answer_outside_of_the_window_reaches_nobody_untranslated,
    a_segment_outside_of_the_window_does_not_reach_the_owner_of_the_address,
    segments_outside_of_the_window_pass_where_nothing_is_translated,
    a_half_closed_connection_waits_for_a_slow_answer,
}

/// `bN` of an answer.
fn name(answer: &str) -> &str {
    answer.split(' ').next().unwrap()
}

/// As k3s' ServiceLB publishes them: the addresses of all nodes, this one among them.
fn other_ports_of_a_neighbours_address_are_the_neighbours(kind: Kind) {
    let mut world = World::new(kind);
    world.serve(&["10.200.2.1", "10.200.2.11", "fd00:200:2::1", "fd00:200:2::11"], 12);
    for client in CLIENTS {
        let from = world.netns(client);
        for ask in [tcp, udp] {
            for vip in ["10.200.2.1", "10.200.2.11", "fd00:200:2::1", "fd00:200:2::11"] {
                let answer = from.run(|| ask(at(vip, FRONT)));
                assert_eq!(name(&answer.unwrap()), "b12", "{client:?}: the service at {vip}");
            }
            for neighbour in ["10.200.2.11", "fd00:200:2::11"] {
                let answer = from.run(|| ask(at(neighbour, PORT)));
                assert_eq!(name(&answer.unwrap()), "b11", "{client:?}: another port of {neighbour}");
            }
        }
    }
    assert_eq!(world.inspect(Inspection::Everything), []);
}

/// The usual pool of a cluster that announces addresses on its own segment.
fn an_address_of_the_subnet_that_nobody_has_is_served_and_nothing_else(kind: Kind) {
    let mut world = World::new(kind);
    world.serve(&["10.200.2.200", "fd00:200:2::200"], 12);
    for client in CLIENTS {
        let from = world.netns(client);
        for vip in ["10.200.2.200", "fd00:200:2::200"] {
            for ask in [tcp, udp] {
                assert_eq!(name(&from.run(|| ask(at(vip, FRONT))).unwrap()), "b12", "{client:?}: {vip}");
            }
            let other = from.run(|| connect(at(vip, FRONT + 1)));
            assert!(other.is_err(), "{client:?}: another port of {vip}");
        }
    }
}

fn other_ports_of_an_address_that_is_ours_alone_are_silent(kind: Kind) {
    let mut world = World::new(kind);
    // Where a packet without a blackhole would go.
    world.node.sh("ip route add default via 10.200.2.11; ip route add default via fd00:200:2::11");
    world.serve(&["10.96.0.1", "fd96::1"], 12);
    for server in &world.servers {
        server.sh("ip addr add 10.96.0.1/32 dev lo; ip addr add fd96::1/128 dev lo nodad");
    }
    for client in CLIENTS {
        for vip in ["10.96.0.1", "fd96::1"] {
            assert_eq!(name(&world.netns(client).run(|| tcp(at(vip, FRONT))).unwrap()), "b12", "{client:?}: {vip}");
            let other = world.netns(client).run(|| connect(at(vip, PORT)));
            assert_eq!(other.unwrap_err().kind(), ErrorKind::TimedOut, "{client:?}: another port of {vip}");
        }
    }
}

fn a_service_without_backends_refuses_at_a_neighbours_address(kind: Kind) {
    let mut world = World::new(kind);
    world.serve(&["10.200.2.11", "fd00:200:2::11"], 12);
    world.change(|_, state| {
        state.frontends.values_mut().for_each(|frontend| frontend.target = lb_core::state::Target::Reject);
        state.sets.clear();
        state.backends.clear();
    });
    for client in CLIENTS {
        for vip in ["10.200.2.11", "fd00:200:2::11"] {
            for ask in [tcp, udp] {
                let refused = world.netns(client).run(|| ask(at(vip, FRONT)));
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{client:?}: {vip}");
            }
        }
    }
}

fn an_address_is_given_back_when_its_network_comes_and_taken_when_it_goes(kind: Kind) {
    let mut world = World::new(kind);
    let vips = ["10.230.0.11", "fd00:230::11"];
    world.serve(&vips, 12);
    world.servers[0].sh("ip addr add 10.230.0.11/24 dev eth0; ip addr add fd00:230::11/64 dev eth0 nodad");
    let mut watcher = world.watcher();
    assert_eq!(world.inspect(Inspection::Suspects), []);
    let reached = |world: &World| {
        for (client, vip) in CLIENTS.into_iter().flat_map(|client| vips.map(|vip| (client, vip))) {
            assert_eq!(name(&world.netns(client).run(|| tcp(at(vip, FRONT))).unwrap()), "b12", "{client:?}: {vip}");
        }
        let owned = CLIENTS.into_iter().flat_map(|client| vips.map(|vip| (client, vip)));
        owned.filter(|&(client, vip)| world.netns(client).run(|| connect(at(vip, PORT))).is_ok()).count()
    };
    assert_eq!(reached(&world), 0, "nobody is known to have the addresses");
    world.node.sh("ip addr add 10.230.0.1/24 dev eth0; ip addr add fd00:230::1/64 dev eth0 nodad");
    until_silent(&mut world, &mut *watcher);
    assert_eq!(reached(&world), 6, "their owner answers");
    world.node.sh("ip addr del 10.230.0.1/24 dev eth0; ip addr del fd00:230::1/64 dev eth0");
    until_silent(&mut world, &mut *watcher);
    assert_eq!(reached(&world), 0, "no device leads to their network any more");
    world.node.sh("ip link add dummy type veth peer name dummy2; ip link set dummy up; ip link set dummy2 up
         ip addr add 10.230.0.11/32 dev dummy; ip addr add fd00:230::11/128 dev dummy nodad");
    until_silent(&mut world, &mut *watcher);
    let blackholes = "ip route show table main type blackhole; ip -6 route show table main type blackhole";
    assert_eq!(world.node.sh(blackholes), "", "the node itself has the addresses");
    // The kernel tells of no IPv4 route that goes with its device.
    world.node.sh("ip link del dummy");
    until_silent(&mut world, &mut *watcher);
    assert_eq!(world.node.sh(blackholes).lines().count(), 2);
    assert_eq!(reached(&world), 0);
}

/// Puts right what the watcher notices, until it notices nothing more.
fn until_silent(world: &mut World, watcher: &mut dyn lb_core::datapath::Watcher) {
    let found = world.follow(watcher);
    assert!(!found.is_empty(), "the change was not found");
    while watcher.wait(SILENCE).unwrap() {
        let found = world.inspect(Inspection::Suspects);
        world.repair(&found);
    }
    assert_eq!(world.inspect(Inspection::Everything), []);
}

fn a_new_process_finds_a_service_at_a_neighbours_address(kind: Kind) {
    let mut world = World::new(kind);
    world.serve(&["10.200.2.11", "fd00:200:2::11", "10.96.0.1"], 12);
    let before = world.state.clone();
    assert_eq!(world.observe().frontends, before.frontends);
    world.withdraw("10.200.2.11");
    world.withdraw("10.96.0.1");
    assert_eq!(world.inspect(Inspection::Everything), []);
    for client in CLIENTS {
        let answer = world.netns(client).run(|| tcp(at(&server_ip(11, false), PORT)));
        assert_eq!(name(&answer.unwrap()), "b11", "{client:?}");
    }
}

fn a_connection_that_began_before_its_service_reaches_it(kind: Kind) {
    let mut world = World::new(kind);
    // A host that forwards nothing: the first packets are lost there.
    world.node.sh("ip route add default via 10.200.2.11; ip route add default via fd00:200:2::11");
    let vips = ["10.96.0.1", "10.200.2.11", "fd96::1", "fd00:200:2::11"];
    drop_silently(&world.servers[0], FRONT);
    let began = begin_everywhere(&world, &vips);
    world.serve(&vips, 12);
    for (client, vip, mut stream) in began {
        assert_eq!(name(&say(&mut stream).unwrap()), "b12", "{client:?}: {vip}");
    }
}

fn a_connection_that_nobody_answered_reaches_the_owner_of_an_address_that_leaves(kind: Kind) {
    let mut world = World::new(kind);
    let vips = ["10.200.2.11", "fd00:200:2::11"];
    world.serve(&vips, 12);
    let kept = CLIENTS.map(|client| world.netns(client).run(|| TcpStream::connect(at(vips[0], FRONT))).unwrap());
    drop_silently(&world.servers[1], PORT);
    let began = begin_everywhere(&world, &vips);
    serve_on(&world.servers[0], 11, FRONT);
    vips.iter().for_each(|vip| world.withdraw(vip));
    for (client, vip, mut stream) in began {
        assert_eq!(name(&say(&mut stream).unwrap()), "b11", "{client:?}: {vip}");
    }
    world.servers[1].sh("nft delete table inet silence");
    for mut stream in kept {
        assert_eq!(name(&say(&mut stream).unwrap()), "b12", "an open connection is not cut");
    }
}

/// A connection from everywhere to each of `vips`, with both of its ends.
struct Open {
    client: Client,
    near: TcpStream,
    far: TcpStream,
}

impl Open {
    fn everywhere(world: &World, vips: &[&str], listener: &TcpListener) -> Vec<Self> {
        let places = CLIENTS.into_iter().flat_map(|client| vips.iter().map(move |&vip| (client, vip)));
        let open = |(client, vip)| {
            let near = world.netns(client).run(|| TcpStream::connect_timeout(&at(vip, FRONT), PATIENCE)).unwrap();
            let (far, _) = listener.accept().unwrap();
            [&near, &far].iter().for_each(|end| end.set_read_timeout(Some(PATIENCE)).unwrap());
            Self { client, near, far }
        };
        places.map(open).collect()
    }

    /// Both ends hear each other. What was sent before has arrived by then, if it arrives.
    fn talk(&mut self) {
        let say = |from: &mut TcpStream, to: &mut TcpStream| {
            from.write_all(b"still there").unwrap();
            let mut heard = [0; 11];
            to.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"still there");
        };
        say(&mut self.near, &mut self.far);
        say(&mut self.far, &mut self.near);
    }
}

/// A port of the servers on which tests answer themselves.
const SLOW: u16 = 9090;

fn listen(netns: &Netns, port: u16) -> TcpListener {
    netns.run(|| TcpListener::bind(("::", port))).unwrap()
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn an_answer_outside_of_the_window_reaches_nobody_untranslated(kind: Kind) {
    let mut world = World::new(kind);
    let vips = ["10.96.0.1", "10.200.2.1", "10.200.2.11", "fd96::1", "fd00:200:2::11"];
    world.serve_at(&vips, 12, SLOW);
    let listener = listen(&world.servers[1], SLOW);
    for mut open in Open::everywhere(&world, &vips, &listener) {
        let (server, seen) = (canonical(open.far.local_addr().unwrap()), canonical(open.far.peer_addr().unwrap()));
        let addressee = if open.client == Client::Pod { Client::Pod } else { Client::Node };
        let tap = Tap::open(world.netns(addressee), server.is_ipv6());
        let back = Tap::open(&world.servers[1], server.is_ipv6());
        send_out_of_window(&world.servers[1], server, seen);
        open.talk();
        let strays = tap.drain().into_iter().filter(|&(from, _)| from == server).count();
        assert_eq!(strays, 0, "{:?} {seen}: the backend's own address was seen", open.client);
        assert!(!back.drain().is_empty(), "the tap sees the connection");
        open.talk();
    }
}

fn a_segment_outside_of_the_window_does_not_reach_the_owner_of_the_address(kind: Kind) {
    let mut world = World::new(kind);
    let vips = ["10.200.2.11", "fd00:200:2::11"];
    world.serve_at(&vips, 12, SLOW);
    let listener = listen(&world.servers[1], SLOW);
    for mut open in Open::everywhere(&world, &vips, &listener) {
        let (client, vip) = (canonical(open.near.local_addr().unwrap()), canonical(open.near.peer_addr().unwrap()));
        let owner = Tap::open(&world.servers[0], client.is_ipv6());
        send_out_of_window(world.netns(open.client), client, vip);
        open.talk();
        let direct = world.netns(open.client).run(|| tcp(at(&vip.ip().to_string(), PORT)));
        assert_eq!(name(&direct.unwrap()), "b11", "what came before it has arrived");
        let strays = owner.drain().into_iter().filter(|&(_, port)| port == FRONT).count();
        assert_eq!(strays, 0, "{:?} {client}: the owner of {vip} was asked", open.client);
    }
}

/// A router that sees half of a connection makes nothing of its packets either, and lb has no business with them.
fn segments_outside_of_the_window_pass_where_nothing_is_translated(kind: Kind) {
    let mut world = World::new(kind);
    world.serve_at(&["10.96.0.1", "fd96::1"], 12, SLOW);
    let listener = listen(&world.servers[0], FRONT);
    for mut open in Open::everywhere(&world, &["10.200.2.11", "fd00:200:2::11"], &listener) {
        let (server, client) = (canonical(open.far.local_addr().unwrap()), canonical(open.far.peer_addr().unwrap()));
        let tap = Tap::open(world.netns(open.client), server.is_ipv6());
        send_out_of_window(&world.servers[0], server, client);
        open.talk();
        // Two that were made here, and what `talk` sends.
        let seen = tap.drain().into_iter().filter(|&(from, _)| from == server).count();
        assert!(seen >= 4, "{:?}: {seen} segments of {server}", open.client);
    }
}

/// The kernel's own time for half a connection is a minute; on this node it is a second, which lb's hour replaces.
fn a_half_closed_connection_waits_for_a_slow_answer(kind: Kind) {
    let mut world = World::new(kind);
    let vips = ["10.96.0.1", "10.200.2.11", "fd96::1"];
    world.serve_at(&vips, 12, SLOW);
    let listener = listen(&world.servers[1], SLOW);
    let mut all = Open::everywhere(&world, &vips, &listener);
    for open in &mut all {
        open.near.write_all(b"question").unwrap();
        open.near.shutdown(Shutdown::Write).unwrap();
        let mut question = String::new();
        open.far.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
    }
    // What is tested is what the passing of time does.
    std::thread::sleep(Duration::from_millis(2500));
    for open in &mut all {
        open.far.write_all(b"answer").unwrap();
        open.far.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        open.near.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer", "{:?}", open.client);
    }
}

/// Has a server drop what comes to a port of TCP.
fn drop_silently(server: &Netns, port: u16) {
    server.sh(&format!(
        "nft add table inet silence
         nft add chain inet silence input '{{ type filter hook input priority 0; }}'
         nft add rule inet silence input tcp dport {port} drop"
    ));
}

/// Connections from everywhere whose first packet is sent, and answered by nobody.
fn begin_everywhere<'a>(world: &World, vips: &[&'a str]) -> Vec<(Client, &'a str, TcpStream)> {
    let began = |client: Client, vip| {
        let socket = world.netns(client).run(|| {
            let socket = Socket::new(Domain::for_address(at(vip, FRONT)), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            match socket.connect(&at(vip, FRONT).into()) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(socket),
                Err(error) => Err(error),
                Ok(()) => panic!("{client:?}: {vip} answered at once"),
            }
        });
        let socket = socket.unwrap();
        assert_eq!(
            TcpStream::from(socket.try_clone().unwrap()).peer_addr().unwrap_err().kind(),
            ErrorKind::NotConnected
        );
        socket.set_nonblocking(false).unwrap();
        (client, vip, TcpStream::from(socket))
    };
    CLIENTS
        .into_iter()
        .flat_map(|client| vips.iter().map(move |&vip| (client, vip)))
        .map(|(c, v)| began(c, v))
        .collect()
}

/// A TCP connection within the time of a silence.
fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, SILENCE)
}
