//! The cluster that one size is compared in.

use std::net::{IpAddr, SocketAddr};

use lb_agent::driver::{self, DatapathKind};
use lb_core::{addr::Family, name::NodeName};
use lb_testkit::{
    lab::{Lab, Node, Origin, PodSpec},
    worlds::BACKEND_PORT,
};

use super::{
    error::Result,
    result::{DIRECT, EBPF_PACKETS, FLOOR},
    world::{Compared, Group},
};

const SERVERS: &str = "servers";

/// A cluster: a node with servers, and for every path a node with a client.
#[derive(Debug)]
pub(super) struct Bed {
    lab: Lab,
    /// Those on the lab's nodes behind the first three, in this order.
    datapaths: Vec<DatapathKind>,
}

/// A way from a client to the servers.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub(super) name: &'static str,
    pub(super) origin: Origin,
    /// The service, or the servers.
    pub(super) to: Vec<SocketAddr>,
}

impl Bed {
    /// Nodes: servers, direct, floor, one for each datapath; then one for each agent and one for an agent without a
    /// datapath.
    pub(super) fn build(datapaths: &[DatapathKind]) -> Result<Self> {
        let mut builder = Lab::builder().node(SERVERS).node(DIRECT).node(FLOOR);
        for kind in datapaths {
            builder = builder.node(kind.name());
        }
        for kind in datapaths.iter().chain(&[driver::MEMORY]) {
            builder = builder.node(format!("{kind}-agent"));
        }
        for group in Group::BOTH {
            for index in 0..Group::SERVERS {
                builder = builder.pod(PodSpec::new(server(group, index), 0).http(BACKEND_PORT));
            }
        }
        for node in 1..3 + datapaths.len() {
            builder = builder.pod(PodSpec::new(format!("client-{node}"), node));
        }
        Ok(Self { lab: builder.build()?, datapaths: datapaths.into() })
    }

    pub(super) fn world(&self, services: u32, maglev: u32) -> Compared {
        let groups = Group::BOTH.map(|group| self.servers(group));
        Compared::new(services, maglev, NodeName::new(SERVERS), groups)
    }

    /// The node whose clients `datapaths[index]` serves.
    pub(super) fn node(&self, index: usize) -> Node<'_> {
        self.lab.node(3 + index)
    }

    /// The node with the single rule.
    pub(super) fn floor(&self) -> Node<'_> {
        self.lab.node(2)
    }

    /// The node for the agent of `datapaths[index]`; the one behind the last is for an agent without a datapath.
    pub(super) fn agent_node(&self, index: usize) -> Node<'_> {
        self.lab.node(3 + self.datapaths.len() + index)
    }

    /// All paths: direct, floor, the datapaths in their order, and those that go through a datapath in another way.
    pub(super) fn paths(&self, world: &Compared) -> Vec<Path> {
        let servers = self.servers(Group::A).into_iter().map(|ip| SocketAddr::new(ip, BACKEND_PORT));
        let service = || vec![world.frontend()];
        let mut paths = vec![
            Path { name: DIRECT, origin: Origin::Pod(self.client(1)), to: servers.collect() },
            Path { name: FLOOR, origin: Origin::Pod(self.client(2)), to: service() },
        ];
        for (index, kind) in self.datapaths.iter().enumerate() {
            paths.push(Path { name: kind.name(), origin: self.origin(index), to: service() });
        }
        if let Some(index) = self.datapaths.iter().position(|kind| kind.lab().translates_sockets) {
            let origin = Origin::PodPackets(self.client(3 + index));
            paths.push(Path { name: EBPF_PACKETS, origin, to: service() });
        }
        paths
    }

    /// The client that `datapaths[index]` serves.
    pub(super) fn origin(&self, index: usize) -> Origin {
        Origin::Pod(self.client(3 + index))
    }

    /// The namespace of that client.
    pub(super) fn client_netns(&self, index: usize) -> &lb_testkit::lab::Netns {
        self.lab.pods().nth(self.client(3 + index)).expect("every path has a client").netns()
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Removes it and says what could not be removed.
    pub(super) fn close(self) -> Result<()> {
        Ok(self.lab.close()?)
    }

    pub(super) fn servers(&self, group: Group) -> Vec<IpAddr> {
        let names = (0..Group::SERVERS).map(|index| server(group, index));
        names.filter_map(|name| self.lab.pod(&name)).map(|pod| pod.ip(Family::V4)).collect()
    }

    /// Index of the client on a node. Clients were made in the order of nodes, behind the servers.
    fn client(&self, node: usize) -> usize {
        Group::BOTH.len() * Group::SERVERS + node - 1
    }
}

fn server(group: Group, index: usize) -> String {
    format!("{}-{index}", group.letter())
}
