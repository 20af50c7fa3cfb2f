//! Settings of the kernel that the datapath depends on, or does not: which of them break which packets.

use std::net::SocketAddr;

use lb_core::{
    addr::Protocol,
    datapath::Datapath,
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_ebpf::EbpfDatapath;

use crate::common::{Cgroup, POD_DEVICES, PinDir, UPLINK, World, ask_tcp, config, first_answer, serve, state, turn};

/// A node with two uplinks to one client. The client's packets to `VIP` come in through the second one, and the node
/// sends its own to the client through the first one.
///
/// ```text
/// client 192.0.2.2    -- uplink 192.0.2.1    node
///        198.51.100.2 -- second 198.51.100.1
/// ```
struct Asymmetric {
    world: World,
    datapath: EbpfDatapath,
    _pins: PinDir,
    _cgroup: Cgroup,
}

const VIP: &str = "10.96.0.1:80";
const SECOND: &str = "second";

impl Asymmetric {
    fn new(backend: &str) -> Self {
        let world = World::new();
        world.node.join(SECOND, &world.client, "eth1");
        world.node.ip("addr add 198.51.100.1/24 dev second");
        world.client.ip("addr add 198.51.100.2/24 dev eth1");
        for network in ["10.96.0.0/24", "10.244.0.0/16"] {
            world.client.ip(&format!("route add {network} via 198.51.100.1 src 192.0.2.2"));
        }
        for device in ["all", "eth0", "eth1"] {
            world.client.sysctl(&format!("ipv4/conf/{device}/rp_filter"), "0");
        }
        let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
        let config = config(&pins, &cgroup).with_pod_devices(POD_DEVICES).with_uplink_devices([UPLINK, SECOND]);
        let mut datapath = world.node.run(|| EbpfDatapath::open(config)).unwrap();
        let backends = [addr(backend)];
        let services = [(addr(VIP), Protocol::Tcp, &backends[..])];
        let desired = State { node: World::facts(), ..state(&services, Lookup::Random, None) };
        let observed = datapath.observe().unwrap();
        datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
        let host = match backend.rsplit_once(':').unwrap().0 {
            "10.244.0.2" => &world.pods[0],
            "192.0.2.2" => &world.client,
            _ => &world.node,
        };
        let job = host.run(|| serve(addr(backend), "server"));
        host.spawn(job);
        Self { world, datapath, _pins: pins, _cgroup: cgroup }
    }

    /// Of every device, as the kernel takes the greater of this one's and that of all.
    fn set_rp_filter(&self, value: &str) {
        for device in ["all", POD_DEVICES[0], POD_DEVICES[1], UPLINK, SECOND] {
            self.world.node.sysctl(&format!("ipv4/conf/{device}/rp_filter"), value);
        }
    }

    fn stopped(&self) -> u64 {
        self.datapath.reason_counters().unwrap().unwrap().read().unwrap().values().sum()
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn strict_reverse_paths_do_not_matter_to_packets_that_are_sent_on() {
    let _turn = turn();
    // A client's packets come in by another device than the way back to it, and so do a backend's answers.
    for (backend, from_pod) in [("10.244.0.2:8080", false), ("192.0.2.2:8080", true)] {
        let asymmetric = Asymmetric::new(backend);
        let from = if from_pod { &asymmetric.world.pods[1] } else { &asymmetric.world.client };
        for value in ["0", "1", "2"] {
            asymmetric.set_rp_filter(value);
            let answer = from.run(|| ask_tcp(addr(VIP)));
            assert!(answer.is_ok(), "{backend} with rp_filter {value}: {answer:?}");
        }
        assert_eq!(asymmetric.stopped(), 0);
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn strict_reverse_paths_keep_clients_of_another_uplink_from_a_backend_on_an_address_of_the_node() {
    let _turn = turn();
    let asymmetric = Asymmetric::new("192.0.2.1:8080");
    for (value, arrives) in [("0", true), ("2", true), ("1", false)] {
        asymmetric.set_rp_filter(value);
        let connected = asymmetric.world.client.run(|| first_answer(addr(VIP)));
        assert_eq!(connected.is_ok(), arrives, "rp_filter {value}: {connected:?}");
    }
    assert_eq!(asymmetric.stopped(), 0, "it is the kernel that drops them");
}
