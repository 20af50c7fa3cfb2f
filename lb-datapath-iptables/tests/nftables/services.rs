//! The datapath under test and states for it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol, Scope},
    affinity::Affinity,
    datapath::Datapath,
    id::{BackendId, FrontendId, SetId},
    name::NodeName,
    node::NodeFacts,
    plan::{Labels, diff},
    state::{Backend, BackendSet, Frontend, Lookup, OtherPorts, State, Target},
};
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};

use crate::net::{Net, PORT};

pub(crate) const VIP4: &str = "10.96.0.1";
pub(crate) const VIP6: &str = "fd96::1";

/// The datapath under test, and what it holds.
pub(crate) struct Node {
    pub(crate) datapath: NftablesDatapath,
    pub(crate) state: State,
}

impl Node {
    pub(crate) fn open(net: &Net) -> Self {
        Self::open_with(net, &NftablesConfig::default())
    }

    pub(crate) fn open_with(net: &Net, config: &NftablesConfig) -> Self {
        let datapath = net.node.run(|| NftablesDatapath::open(config)).unwrap();
        Self { datapath, state: State::default() }
    }

    pub(crate) fn become_state(&mut self, state: State) {
        let labels: Labels = state.frontends.keys().map(|&addr| (addr, "team/web:http".into())).collect();
        let plan = diff(&self.state, &state, &labels);
        self.datapath.apply(&plan).unwrap();
        self.state = state;
    }
}

pub(crate) fn facts(cidrs: &[&str]) -> NodeFacts {
    let cluster_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    NodeFacts { name: Some(NodeName::new("node-1")), ips: vec!["10.2.1.1".parse().unwrap()], cluster_cidrs }
}

/// One frontend with one backend.
pub(crate) fn only(backend: u8, protocol: Protocol, lookup: Lookup) -> State {
    let mut services = Services { next: u32::from(backend) * 10, ..Services::default() };
    services.add(VIP4, protocol, Some((lookup, &[backend])), None);
    services.state
}

/// Something of everything.
pub(crate) fn varied() -> State {
    let mut services = Services { state: both_backends(), next: 100 };
    let affinity = Some(Affinity { timeout: Duration::from_millis(1_500), prefix_v4: 24, prefix_v6: 56 });
    services.add("10.96.0.3", Protocol::Tcp, Some((Lookup::RoundRobin, &[1, 2, 2])), Some(Affinity::default()));
    services.add("fd96::3", Protocol::Udp, Some((Lookup::Hash, &[2; 251])), None);
    services.add("fd96::4", Protocol::Udp, Some((Lookup::Hash, &[1; 509])), affinity);
    services.add("10.96.0.5", Protocol::Udp, None, affinity);
    services.add("10.96.0.6", Protocol::Tcp, None, None);
    let dropped = FrontendAddr::new("10.96.0.6".parse().unwrap(), 80, Protocol::Tcp);
    services.state.frontends.get_mut(&dropped).unwrap().target = Target::Drop;
    let shared = services.state.frontends[&FrontendAddr::new(VIP4.parse().unwrap(), 80, Protocol::Tcp)].target;
    services.add("10.96.0.7", Protocol::Tcp, None, None);
    let sharing = FrontendAddr::new("10.96.0.7".parse().unwrap(), 80, Protocol::Tcp);
    services.state.frontends.get_mut(&sharing).unwrap().target = shared;
    for (vip, protocol, id) in
        [("10.96.0.3", Protocol::Tcp, 901), ("fd96::3", Protocol::Udp, 902), ("fd96::4", Protocol::Udp, 903)]
    {
        let external = FrontendAddr::new(vip.parse().unwrap(), 80, protocol);
        let twin = Frontend { id: FrontendId::new(id).unwrap(), ..services.state.frontends[&external].clone() };
        services.state.frontends.insert(FrontendAddr { scope: Scope::Internal, ..external }, twin);
    }
    // Two frontends of one address disagree about its other ports.
    for (addr, frontend) in &mut services.state.frontends {
        frontend.other_ports = match (addr.ip.to_string().as_str(), addr.protocol) {
            (VIP6, Protocol::Tcp) | ("10.96.0.5", _) => OtherPorts::Reject,
            (VIP6, Protocol::Udp) | ("10.96.0.6", _) => OtherPorts::Drop,
            _ => OtherPorts::Pass,
        };
    }
    let external = services.state.frontends.iter_mut().filter(|(addr, _)| addr.scope == Scope::External);
    for (_, frontend) in external {
        (frontend.keeps_source, frontend.translates_pods) = (frontend.id.get() % 3 == 0, frontend.id.get() % 3 == 1);
    }
    services.state.node = facts(&["10.2.0.0/16", "10.3.0.0/16", "fd02::/16", "0.0.0.0/4"]);
    for (n, backend) in (0..).zip(services.state.backends.values_mut()) {
        backend.local = n % 2 == 0;
    }
    services.state
}

/// Every combination of family and protocol on port 80, with both backends.
pub(crate) fn both_backends() -> State {
    let mut services = Services::default();
    for vip in [VIP4, VIP6] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            services.add(vip, protocol, Some((Lookup::Random, &[1, 2])), None);
        }
    }
    services.state
}

/// Builds states with ids that are never used twice.
#[derive(Default)]
pub(crate) struct Services {
    pub(crate) state: State,
    pub(crate) next: u32,
}

impl Services {
    pub(crate) fn add(
        &mut self,
        vip: &str,
        protocol: Protocol,
        to: Option<(Lookup, &[u8])>,
        affinity: Option<Affinity>,
    ) {
        let addr = FrontendAddr::new(vip.parse().unwrap(), 80, protocol);
        let target = match to {
            None => Target::Reject,
            Some((lookup, backends)) => {
                let slots: Arc<[BackendId]> = backends.iter().map(|&n| self.backend(&addr, n)).collect();
                let id = SetId::new(self.fresh()).unwrap();
                self.state.sets.insert(id, Arc::new(BackendSet::new(lookup, slots)));
                Target::Set(id)
            }
        };
        let id = FrontendId::new(self.fresh()).unwrap();
        self.state.frontends.insert(addr, Frontend { affinity, ..Frontend::new(id, target) });
    }

    /// Gives a frontend a set of other backends.
    pub(crate) fn retarget(&mut self, vip: &str, protocol: Protocol, backends: &[u8]) {
        let addr = FrontendAddr::new(vip.parse().unwrap(), 80, protocol);
        let Target::Set(old) = self.state.frontends[&addr].target else { panic!("{addr} has no set") };
        let lookup = self.state.sets.remove(&old).unwrap().lookup;
        let slots: Arc<[BackendId]> = backends.iter().map(|&n| self.backend(&addr, n)).collect();
        let id = SetId::new(self.fresh()).unwrap();
        self.state.sets.insert(id, Arc::new(BackendSet::new(lookup, slots)));
        self.state.frontends.get_mut(&addr).unwrap().target = Target::Set(id);
    }

    /// A frontend with four backends elsewhere, numbers `first` and up.
    pub(crate) fn add_remote(&mut self, vip: &str, first: u32) {
        let addr = FrontendAddr::new(vip.parse().unwrap(), 80, Protocol::Tcp);
        let slots: Arc<[BackendId]> = (first..first + 4).map(|n| self.remote(n)).collect();
        let set = SetId::new(self.fresh()).unwrap();
        self.state.sets.insert(set, Arc::new(BackendSet::new(Lookup::Random, slots)));
        let id = FrontendId::new(self.fresh()).unwrap();
        self.state.frontends.insert(addr, Frontend::new(id, Target::Set(set)));
    }

    /// One endpoint more for a frontend.
    pub(crate) fn add_endpoint(&mut self, vip: &str, n: u32) {
        let addr = FrontendAddr::new(vip.parse().unwrap(), 80, Protocol::Tcp);
        let Target::Set(old) = self.state.frontends[&addr].target else { panic!("{addr} has no set") };
        let old = self.state.sets.remove(&old).unwrap();
        let slots: Vec<_> = old.slots.iter().copied().chain([self.remote(n)]).collect();
        let id = SetId::new(self.fresh()).unwrap();
        self.state.sets.insert(id, Arc::new(BackendSet::new(Lookup::Random, slots)));
        self.state.frontends.get_mut(&addr).unwrap().target = Target::Set(id);
    }

    pub(crate) fn remote(&mut self, n: u32) -> BackendId {
        let id = BackendId::new(self.fresh()).unwrap();
        let addr = BackendAddr::new(IpAddr::from((0x0b00_0000 + n).to_be_bytes()), PORT, Protocol::Tcp);
        self.state.backends.insert(id, Backend { addr, local: false });
        id
    }

    pub(crate) fn backend(&mut self, frontend: &FrontendAddr, n: u8) -> BackendId {
        let ip: IpAddr = match frontend.ip {
            IpAddr::V4(_) => [10, 2, n, 2].into(),
            IpAddr::V6(_) => format!("fd02:{n}::2").parse().unwrap(),
        };
        let addr = BackendAddr::new(ip, PORT, frontend.protocol);
        let known = self.state.backends.iter().find(|(_, backend)| backend.addr == addr).map(|(&id, _)| id);
        known.unwrap_or_else(|| {
            let id = BackendId::new(self.fresh()).unwrap();
            self.state.backends.insert(id, Backend { addr, local: true });
            id
        })
    }

    pub(crate) fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next
    }
}

pub(crate) fn at(ip: &str) -> SocketAddr {
    at_port(ip, 80)
}

pub(crate) fn at_port(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

pub(crate) fn name(answer: &str) -> String {
    answer.split(' ').next().unwrap().to_owned()
}
