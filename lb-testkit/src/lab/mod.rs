//! Clusters made of network namespaces.
//!
//! Nodes on a segment, pods behind nodes, a client on the segment and one beyond a router, in both families. Every pod
//! runs a real HTTP and UDP echo server; every vantage point can send. Nothing outlives the process that built it: the
//! namespaces are held by descriptors alone, the workers die with their owner, and what is left in file systems after a
//! `kill -9` is removed by the next lab's start.

mod build;
mod builder;
mod cgroup;
mod child;
mod client;
mod netlink;
mod netns;
mod node;
mod offload;
mod owner;
mod pods;
mod spawn;
mod sysctl;
pub mod topology;
mod user_namespace;
mod wire;
mod wiring;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use lb_core::addr::Family;

pub use self::{
    builder::Builder,
    cgroup::mount_point as cgroup_mount_point,
    child::Program,
    client::{Client, Held, Origin, Running},
    netns::Netns,
    node::{Node, Pod},
    offload::Offload,
    owner::{LabId, leftovers, sweep},
    pods::PodSpec,
    user_namespace::{Privilege, enter_user_namespace},
};
use self::{
    netlink::Batch, owner::Directories, pods::PodState, spawn::Spawner, topology::FAMILIES, wiring::UPLINK_INDEX,
};
use crate::{
    error::{LabError, system},
    worker::Remote,
};

/// How long a worker may take for what needs no traffic.
const PROMPT: Duration = Duration::from_secs(20);

/// A running cluster. Dropping it removes it; [`close`](Self::close) also says what could not be removed.
///
/// ```no_run
/// # fn main() -> Result<(), lb_testkit::LabError> {
/// use lb_testkit::{lab::{Lab, Origin}, traffic::Request};
///
/// lb_testkit::run_if_worker();
/// let lab = Lab::builder().nodes(3).pods_per_node(4).build()?;
/// let server = lab.pod("pod-2-0").expect("three nodes have a third one");
/// let answer = lab.client(Origin::Client).request(&Request::http(server.socket(lb_core::addr::Family::V4, 8080)))?;
/// assert_eq!(answer.expect("pods are reachable").pod, "pod-2-0");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lab {
    id: LabId,
    nodes: Vec<NodeState>,
    pods: Vec<PodState>,
    outside: Option<Remote>,
    spawner: Option<Spawner>,
    segment: Netns,
    router: Netns,
    client: Netns,
    beyond: Netns,
    directories: Directories,
    offload: Offload,
    client_addresses: usize,
    build_time: Duration,
}

#[derive(Debug)]
struct NodeState {
    name: String,
    netns: Netns,
    cgroup: PathBuf,
    /// Serves and sends for the node and its pods, in the node's cgroup.
    inside: Remote,
    /// Sends for the node and its pods without being in its cgroup.
    packets: Remote,
    /// Pods that there ever were: their numbers are not used again.
    pods_made: usize,
}

impl Lab {
    /// An empty description.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Its identity, unique on this machine.
    #[must_use]
    pub fn id(&self) -> LabId {
        self.id
    }

    /// How long the building took.
    #[must_use]
    pub fn build_time(&self) -> Duration {
        self.build_time
    }

    /// What its devices do instead of the stack.
    #[must_use]
    pub fn offload_mode(&self) -> Offload {
        self.offload
    }

    /// Node `index`, in the order of the builder.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn node(&self, index: usize) -> Node<'_> {
        assert!(index < self.nodes.len(), "the lab has {} nodes, there is no node {index}", self.nodes.len());
        Node { lab: self, index }
    }

    /// All nodes.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = Node<'_>> {
        (0..self.nodes.len()).map(|index| Node { lab: self, index })
    }

    /// The pod of this name.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<Pod<'_>> {
        self.pods().find(|pod| pod.name() == name)
    }

    /// All pods, in the order of their making.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = Pod<'_>> {
        (0..self.pods.len()).map(|index| Pod { lab: self, index })
    }

    /// The pod that has this address.
    #[must_use]
    pub fn pod_of(&self, ip: IpAddr) -> Option<Pod<'_>> {
        self.pods().find(|pod| pod.ips().contains(&ip))
    }

    /// Makes the clients outside send packets for `prefix` to a node, as an announcement would: through the segment
    /// from the client there, through the router from beyond. A later call for the same prefix replaces the route.
    ///
    /// # Errors
    /// When the kernel refuses the route.
    pub fn route_via(&self, prefix: IpNet, node: usize) -> Result<(), LabError> {
        let family = if prefix.addr().is_ipv4() { Family::V4 } else { Family::V6 };
        let via = self.node(node).ip(family);
        for netns in [&self.client, &self.router] {
            let mut batch = Batch::default();
            batch.route(format!("route to {prefix} via {via}"), wire::route(prefix, Some(via), UPLINK_INDEX));
            batch.send(netns)?;
        }
        Ok(())
    }

    /// Routes the usual prefixes of services, cluster addresses and ingress addresses of both families, to a node.
    ///
    /// # Errors
    /// When the kernel refuses a route.
    pub fn route_services_via(&self, node: usize) -> Result<(), LabError> {
        FAMILIES.into_iter().try_for_each(|family| {
            self.route_via(topology::service_cidr(family), node)?;
            self.route_via(topology::ingress_cidr(family), node)
        })
    }

    /// What sends from `origin`.
    ///
    /// # Panics
    /// When there is no such node or pod.
    #[must_use]
    pub fn client(&self, origin: Origin) -> Client<'_> {
        Client::new(self, origin)
    }

    /// The namespace of the router.
    #[must_use]
    pub fn router(&self) -> &Netns {
        &self.router
    }

    /// The namespace of the segment's bridge.
    #[must_use]
    pub fn segment(&self) -> &Netns {
        &self.segment
    }

    /// A directory for sockets and files of this lab, removed with it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn run_dir(&self) -> Result<&Path, LabError> {
        let path = &self.directories.run;
        fs::create_dir_all(path).map_err(system(format!("creating {}", path.display())))?;
        Ok(path)
    }

    /// Removes it, as dropping it does, and says what could not be removed.
    ///
    /// # Errors
    /// When something stays.
    pub fn close(mut self) -> Result<(), LabError> {
        self.remove()
    }

    /// Processes first: they hold the cgroups, and servers must not see their devices go.
    fn remove(&mut self) -> Result<(), LabError> {
        self.outside = None;
        self.pods.clear();
        self.nodes.clear();
        self.spawner = None;
        self.directories.remove()
    }

    fn spawner(&self) -> &Spawner {
        self.spawner.as_ref().expect("only `remove` takes it, at the end of the lab")
    }

    fn outside(&self) -> &Remote {
        self.outside.as_ref().expect("only `remove` takes it, at the end of the lab")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.spawner.is_some() {
            // `close` is for who wants to know what stays. The start of the next lab removes it.
            let _ = self.remove();
        }
    }
}
