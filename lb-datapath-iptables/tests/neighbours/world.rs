//! A node between a subnet of servers, a pod and an outside client, with one of the datapaths on it.

use std::{net::SocketAddr, sync::Arc};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    datapath::{Datapath, Watcher},
    drift::{Drift, Expected, Inspection},
    id::{BackendId, FrontendId, SetId},
    node::NodeFacts,
    plan::{Labels, diff},
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};
use lb_datapath_iptables::{
    iptables::{IptablesConfig, IptablesDatapath, Variant},
    nftables::{NftablesConfig, NftablesDatapath},
};

use crate::net::{Netns, PATIENCE, PORT, serve};

/// A datapath of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Pod,
    Node,
    Outside,
}

pub(crate) const CLIENTS: [Client; 3] = [Client::Pod, Client::Node, Client::Outside];

/// The port of every frontend.
pub(crate) const FRONT: u16 = 80;

/// `node` has eth0 10.200.2.1 on a bridge with servers 10.200.2.11 and 10.200.2.12, pod0 10.201.0.1 and out0
/// 10.220.1.1; IPv6 has fd00:200:2::, fd00:201:: and fd00:220:1::.
pub(crate) struct World {
    pub(crate) node: Netns,
    /// Servers number 11 and 12.
    pub(crate) servers: [Netns; 2],
    pod: Netns,
    outside: Netns,
    _segment: Netns,
    datapath: Box<dyn Datapath>,
    pub(crate) state: State,
    next: u32,
}

impl World {
    pub(crate) fn new(kind: Kind) -> Self {
        let [node, segment, pod, outside] = std::array::from_fn(|_| Netns::create());
        let servers = [Netns::create(), Netns::create()];
        segment.sh("ip link add br0 type bridge mcast_snooping 0; ip link set br0 up");
        node.sh(&format!(
            "ip link set lo up
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0
             sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close_wait=1
             ip link add eth0 type veth peer name node netns {}
             ip link set eth0 up
             ip addr add 10.200.2.1/24 dev eth0
             ip addr add fd00:200:2::1/64 dev eth0 nodad",
            segment.path()
        ));
        segment.sh("ip link set node master br0 up");
        for (number, server) in (11..).zip(&servers) {
            segment.sh(&format!(
                "ip link add s{number} master br0 type veth peer name eth0 netns {}; ip link set s{number} up",
                server.path()
            ));
            server.sh(&format!(
                "ip link set lo up
                 ip link set eth0 up
                 ip addr add 10.200.2.{number}/24 dev eth0
                 ip addr add fd00:200:2::{number}/64 dev eth0 nodad
                 ip route add default via 10.200.2.1
                 ip route add default via fd00:200:2::1"
            ));
            serve(server, number);
        }
        for (far, device, v4, v6) in
            [(&pod, "pod0", "10.201.0", "fd00:201:"), (&outside, "out0", "10.220.1", "fd00:220:1:")]
        {
            node.sh(&format!(
                "ip link add {device} type veth peer name eth0 netns {}
                 ip link set {device} up
                 ip addr add {v4}.1/24 dev {device}
                 ip addr add {v6}:1/64 dev {device} nodad",
                far.path()
            ));
            far.sh(&format!(
                "ip link set lo up
                 ip link set eth0 up
                 ip addr add {v4}.2/24 dev eth0
                 ip addr add {v6}:2/64 dev eth0 nodad
                 ip route add default via {v4}.1
                 ip route add default via {v6}:1"
            ));
        }
        let datapath = node.run(|| open(kind));
        let mut world =
            Self { node, servers, pod, outside, _segment: segment, datapath, state: State::default(), next: 0 };
        let cidrs = ["10.201.0.0/16", "fd00:201::/32"].map(|cidr| cidr.parse().unwrap());
        let ips = ["10.200.2.1", "fd00:200:2::1"].map(|ip| ip.parse().unwrap());
        world.change(|_, state| {
            state.node = NodeFacts { name: None, ips: ips.into(), cluster_cidrs: cidrs.into() };
        });
        world
    }

    /// Brings the datapath to what `edit` makes of the state.
    pub(crate) fn change(&mut self, edit: impl FnOnce(&mut Ids, &mut State)) {
        let (before, mut ids) = (self.state.clone(), Ids(self.next));
        edit(&mut ids, &mut self.state);
        self.next = ids.0;
        let plan = diff(&before, &self.state, &Labels::new());
        let datapath = &mut self.datapath;
        self.node.run(|| datapath.apply(&plan)).unwrap();
    }

    /// Serves these addresses by one server, over TCP and UDP.
    pub(crate) fn serve(&mut self, vips: &[&str], server: u8) {
        self.serve_at(vips, server, PORT);
    }

    /// The same at another port of the server.
    pub(crate) fn serve_at(&mut self, vips: &[&str], server: u8, port: u16) {
        self.change(|ids, state| vips.iter().for_each(|vip| ids.serve(state, vip, server, port)));
    }

    /// Serves an address no more.
    pub(crate) fn withdraw(&mut self, vip: &str) {
        let ip: std::net::IpAddr = vip.parse().unwrap();
        self.change(|_, state| {
            state.frontends.retain(|addr, _| addr.ip != ip);
            let used: Vec<Target> = state.frontends.values().map(|frontend| frontend.target).collect();
            state.sets.retain(|&id, _| used.contains(&Target::Set(id)));
            let sets = state.sets.values();
            let members: Vec<BackendId> = sets.flat_map(|set| set.slots.iter().copied()).collect();
            state.backends.retain(|id, _| members.contains(id));
        });
    }

    pub(crate) fn inspect(&mut self, inspection: Inspection) -> Vec<Drift> {
        let (datapath, state, labels) = (&mut self.datapath, &self.state, Labels::new());
        self.node.run(|| datapath.inspect(Expected { state, labels: &labels }, inspection)).unwrap()
    }

    pub(crate) fn repair(&mut self, found: &[Drift]) {
        let (datapath, state, labels) = (&mut self.datapath, &self.state, Labels::new());
        self.node.run(|| datapath.repair(Expected { state, labels: &labels }, found)).unwrap();
    }

    pub(crate) fn watcher(&mut self) -> Box<dyn Watcher> {
        let datapath = &mut self.datapath;
        self.node.run(|| datapath.watcher()).unwrap().expect("every datapath of this crate can be watched")
    }

    /// Waits until the watcher notices something, and puts right what an inspection finds.
    pub(crate) fn follow(&mut self, watcher: &mut dyn Watcher) -> Vec<Drift> {
        assert!(watcher.wait(PATIENCE).unwrap(), "nothing was noticed");
        let found = self.inspect(Inspection::Suspects);
        self.repair(&found);
        found
    }

    pub(crate) fn observe(&mut self) -> State {
        let datapath = &mut self.datapath;
        self.node.run(|| datapath.observe()).unwrap()
    }

    pub(crate) fn netns(&self, client: Client) -> &Netns {
        match client {
            Client::Pod => &self.pod,
            Client::Node => &self.node,
            Client::Outside => &self.outside,
        }
    }
}

fn open(kind: Kind) -> Box<dyn Datapath> {
    let iptables = |variant| IptablesDatapath::open(&IptablesConfig::default().with_variant(variant)).unwrap();
    match kind {
        Kind::Nftables => Box::new(NftablesDatapath::open(&NftablesConfig::default()).unwrap()),
        Kind::IptablesNft => Box::new(iptables(Variant::Nft)),
        Kind::IptablesLegacy => Box::new(iptables(Variant::Legacy)),
    }
}

/// Gives out ids that are never used twice.
pub(crate) struct Ids(u32);

impl Ids {
    fn fresh(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }

    fn serve(&mut self, state: &mut State, vip: &str, server: u8, port: u16) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let addr = FrontendAddr::new(vip.parse().unwrap(), FRONT, protocol);
            let ip = server_ip(server, addr.ip.is_ipv6()).parse().unwrap();
            let backend = Backend { addr: BackendAddr::new(ip, port, protocol), local: false };
            let known = state.backends.iter().find(|(_, known)| **known == backend).map(|(&id, _)| id);
            let id = known.unwrap_or_else(|| BackendId::new(self.fresh()).unwrap());
            state.backends.insert(id, backend);
            let set = SetId::new(self.fresh()).unwrap();
            state.sets.insert(set, Arc::new(BackendSet::new(Lookup::Random, [id])));
            let id = FrontendId::new(self.fresh()).unwrap();
            state.frontends.insert(addr, Frontend::new(id, Target::Set(set)));
        }
    }
}

/// The address of a server.
pub(crate) fn server_ip(number: u8, v6: bool) -> String {
    if v6 { format!("fd00:200:2::{number}") } else { format!("10.200.2.{number}") }
}

pub(crate) fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}
