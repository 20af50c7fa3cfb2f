//! Affinity by source: a client has one backend, whether its process is in the cgroup or not.

use std::net::{SocketAddr, UdpSocket};

use lb_core::{
    addr::Protocol,
    affinity::Affinity,
    datapath::Datapath,
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_ebpf::EbpfDatapath;

use crate::common::{
    Cgroup, Namespace, POD_DEVICES, PinDir, UPLINK, World, ask_tcp, ask_udp, config, serve, state, turn,
};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Addresses of each family.
const VIPS: usize = 8;
/// A frontend at an address of the node.
const NODE_PORT: &str = "192.0.2.1:30080";

/// A node with servers in its second pod, and a cgroup that this process is in.
struct Cluster {
    datapath: EbpfDatapath,
    world: World,
    cgroup: Cgroup,
    _pins: PinDir,
}

fn backends() -> [Vec<SocketAddr>; 2] {
    let of = |host: &str| (8080..).take(NAMES.len()).map(|port| format!("{host}:{port}").parse().unwrap()).collect();
    [of("10.244.1.2"), of("[fd00:244:1::2]")]
}

fn vips() -> [Vec<SocketAddr>; 2] {
    let of = |net: &str, end: &str| (1..=VIPS).map(|n| format!("{net}{n}{end}").parse().unwrap()).collect();
    [of("10.96.0.", ":80"), of("[fd00:96::", "]:80")]
}

impl Cluster {
    fn new() -> Self {
        let world = World::new();
        let server = &world.pods[1];
        for family in backends() {
            for (addr, name) in family.into_iter().zip(NAMES) {
                let job = server.run(|| serve(addr, name));
                server.spawn(job);
            }
        }
        world.node.ip("route add default via 192.0.2.2");
        world.node.ip("-6 route add default via 2001:db8::2");
        let (pins, cgroup) = (PinDir::new(), Cgroup::joined());
        let config = config(&pins, &cgroup).with_pod_devices(POD_DEVICES).with_uplink_devices([UPLINK]);
        let datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        Self { datapath, world, cgroup, _pins: pins }
    }

    /// Serves with affinity, by the source or not. Records of clients outlive that, so that each call has its own.
    fn serve(&mut self, by_source: bool) {
        let (vips, backends) = (vips(), backends());
        let mut services: Vec<(SocketAddr, Protocol, &[SocketAddr])> = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (family, backends) in vips.iter().zip(&backends) {
                services.extend(family.iter().map(|vip| (*vip, protocol, &backends[..])));
            }
            services.push((NODE_PORT.parse().unwrap(), protocol, &backends[0]));
        }
        let mut desired = state(&services, Lookup::Random, Some(Affinity::default()));
        desired.frontends.values_mut().for_each(|frontend| frontend.leaves_sockets = by_source);
        let desired = State { node: World::facts(), ..desired };
        let observed = self.datapath.observe().unwrap();
        self.datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
        assert_eq!(self.datapath.observe().unwrap(), desired);
    }

    /// The backend of a client at each address, over TCP and UDP: of a process in the cgroup, and of one outside.
    fn taken(&self, client: &Namespace) -> [Vec<String>; 2] {
        let inside = ask_all(client);
        self.cgroup.leave();
        let outside = ask_all(client);
        self.cgroup.join();
        [inside, outside]
    }
}

fn ask_all(client: &Namespace) -> Vec<String> {
    client.run(|| {
        let udp = |vip: SocketAddr| {
            let socket = UdpSocket::bind(if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            let (answer, from) = ask_udp(&socket, vip).unwrap();
            assert_eq!(from, vip);
            answer
        };
        let name = |answer: String| answer.split(' ').next().unwrap().to_owned();
        vips().concat().into_iter().flat_map(|vip| [name(ask_tcp(vip).unwrap()), name(udp(vip))]).collect()
    })
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_client_has_one_backend_from_every_hook_if_its_source_says_which() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.serve(true);
    for client in [&cluster.world.pods[0], &cluster.world.node] {
        let [inside, outside] = cluster.taken(client);
        assert_eq!(inside, outside);
        assert_eq!(ask_all(client), inside, "once more");
    }
}

/// What the setting is for: a socket's client is its network namespace, and a packet's its source.
#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn without_it_a_client_has_a_backend_for_its_sockets_and_another_one_for_its_packets() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.serve(false);
    for client in [&cluster.world.pods[0], &cluster.world.node] {
        let [inside, outside] = cluster.taken(client);
        // They agree by chance at a sixth of the addresses.
        assert_ne!(inside, outside);
        assert_eq!(ask_all(client), inside);
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_node_still_reaches_its_own_addresses_by_sockets() {
    let _turn = turn();
    let mut cluster = Cluster::new();
    cluster.serve(true);
    for at in [NODE_PORT, "127.0.0.1:30080"] {
        assert!(cluster.world.node.run(|| ask_tcp(at.parse().unwrap())).is_ok(), "{at}");
    }
    // A pod's packets pass its device.
    assert!(cluster.world.pods[0].run(|| ask_tcp(NODE_PORT.parse().unwrap())).is_ok());
}
