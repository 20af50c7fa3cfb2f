//! Nodes and pods of a lab.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use ipnet::IpNet;
use lb_core::{addr::Family, name::NodeName, node::NodeFacts};

use super::{
    Lab, Netns, NodeState, PodState, Privilege, Program,
    netlink::{Batch, wait_until_local},
    offload,
    owner::mount_bpf,
    topology, wire,
    wiring::{UPLINK, UPLINK_INDEX},
};
use crate::error::{LabError, system};

/// A node: a namespace on the segment, and a cgroup.
#[derive(Clone, Copy, Debug)]
pub struct Node<'lab> {
    pub(super) lab: &'lab Lab,
    pub(super) index: usize,
}

impl<'lab> Node<'lab> {
    /// Its place among the nodes.
    #[must_use]
    pub fn index(self) -> usize {
        self.index
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'lab str {
        &self.state().name
    }

    /// Its address.
    #[must_use]
    pub fn ip(self, family: Family) -> IpAddr {
        topology::node_ip(self.index, family)
    }

    /// What a model needs to know about it.
    #[must_use]
    pub fn facts(self) -> NodeFacts {
        NodeFacts {
            name: Some(NodeName::new(self.name())),
            ips: topology::FAMILIES.map(|family| self.ip(family)).into(),
            cluster_cidrs: topology::FAMILIES.map(topology::cluster_cidr).into(),
        }
    }

    /// Its device on the segment.
    #[must_use]
    pub fn uplink(self) -> &'static str {
        UPLINK
    }

    /// Gives its uplink one more address, in the prefix of the segment. It can be used when this returns.
    ///
    /// # Errors
    /// When the kernel refuses it, or the uplink has it already.
    pub fn add_address(self, ip: IpAddr) -> Result<(), LabError> {
        let mut batch = Batch::default();
        batch.address(format!("address {ip}"), wire::second_address(UPLINK_INDEX, on_segment(ip)));
        batch.send(self.netns())?;
        wait_until_local(self.netns(), &[ip])
    }

    /// Takes such an address away again.
    ///
    /// # Errors
    /// When the uplink does not have it.
    pub fn remove_address(self, ip: IpAddr) -> Result<(), LabError> {
        let mut batch = Batch::default();
        batch.delete_address(format!("removal of address {ip}"), wire::address(UPLINK_INDEX, on_segment(ip)));
        batch.send(self.netns())
    }

    /// Its ends of its pods' veths, in the order of the pods' making.
    #[must_use]
    pub fn pod_devices(self) -> Vec<String> {
        self.pods().map(|pod| pod.state().device.clone()).collect()
    }

    /// Names of the offloads of one of its devices that are on, as `ethtool` has them in short.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn active_offloads(self, device: &str) -> Result<Vec<&'static str>, LabError> {
        offload::active(&self.state().netns, device)
    }

    /// Its pods.
    pub fn pods(self) -> impl Iterator<Item = Pod<'lab>> {
        self.lab.pods().filter(move |pod| pod.state().spec.node == self.index)
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(self) -> &'lab Netns {
        &self.state().netns
    }

    /// Its cgroup, in which its pods' processes and its own are. In a user namespace ([`Privilege::UserNamespace`])
    /// there is none, and nothing at this path.
    #[must_use]
    pub fn cgroup(self) -> &'lab Path {
        &self.state().cgroup
    }

    /// A directory of the BPF file system for what this node's datapath pins, removed with the lab. Its last component
    /// is not created. In a user namespace it is a directory that takes no pins.
    ///
    /// # Errors
    /// When there is no BPF file system and none can be mounted.
    pub fn pin_dir(self) -> Result<PathBuf, LabError> {
        mount_bpf()?;
        let parent = &self.lab.directories.pins;
        fs::create_dir_all(parent).map_err(system(format!("creating {}", parent.display())))?;
        Ok(parent.join(format!("node-{}", self.index)))
    }

    /// A directory for sockets and state of this node, removed with the lab.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn run_dir(self) -> Result<PathBuf, LabError> {
        let path = self.lab.run_dir()?.join(format!("node-{}", self.index));
        fs::create_dir_all(&path).map_err(system(format!("creating {}", path.display())))?;
        Ok(path)
    }

    /// Runs `f` in its namespace, on a thread of this process. The thread is not in the node's cgroup. A panic of `f`
    /// is passed on.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(self, f: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.state().netns.run(f)
    }

    /// Starts a program in its namespace and cgroup. Its output is captured; it dies with the lab at the latest.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(self, command: Command) -> Result<Program, LabError> {
        let cgroup = Some(self.cgroup()).filter(|_| Privilege::current() != Privilege::UserNamespace);
        Program::start(self.lab.spawner(), command, &self.state().netns, cgroup)
    }

    /// Process ids of its two workers: the one in its cgroup, and the one outside of it.
    #[must_use]
    pub fn worker_pids(self) -> [u32; 2] {
        [self.state().inside.pid(), self.state().packets.pid()]
    }

    pub(super) fn state(self) -> &'lab NodeState {
        &self.lab.nodes[self.index]
    }
}

/// An address with the length of the prefix of the segment.
fn on_segment(ip: IpAddr) -> IpNet {
    IpNet::new_assert(ip, topology::segment(Family::of(ip)).prefix_len())
}

/// A pod: a namespace behind a node.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'lab> {
    pub(super) lab: &'lab Lab,
    pub(super) index: usize,
}

impl<'lab> Pod<'lab> {
    /// Its place among all pods.
    #[must_use]
    pub fn index(self) -> usize {
        self.index
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'lab str {
        &self.state().spec.name
    }

    /// Its Kubernetes namespace.
    #[must_use]
    pub fn namespace(self) -> &'lab str {
        &self.state().spec.namespace
    }

    /// Its node.
    #[must_use]
    pub fn node(self) -> Node<'lab> {
        Node { lab: self.lab, index: self.state().spec.node }
    }

    /// Its address.
    #[must_use]
    pub fn ip(self, family: Family) -> IpAddr {
        let [v4, v6] = self.state().ips;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// Its addresses, IPv4 first.
    #[must_use]
    pub fn ips(self) -> [IpAddr; 2] {
        self.state().ips
    }

    /// Its address with a port.
    #[must_use]
    pub fn socket(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// The node's end of its veth.
    #[must_use]
    pub fn device(self) -> &'lab str {
        &self.state().device
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(self) -> &'lab Netns {
        &self.state().netns
    }

    pub(super) fn state(self) -> &'lab PodState {
        &self.lab.pods[self.index]
    }
}
