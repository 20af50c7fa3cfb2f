//! Descriptions of labs.

use std::time::Instant;

use super::{Lab, Offload, PodSpec, owner::sweep, topology as plan};
use crate::{error::LabError, worker::can_be_worker};

/// A description of a lab. Made by [`Lab::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: Vec<String>,
    pods: Vec<PodSpec>,
    client_addresses: usize,
    offload: Offload,
}

impl Default for Builder {
    fn default() -> Self {
        Self { nodes: Vec::new(), pods: Vec::new(), client_addresses: 1, offload: Offload::On }
    }
}

impl Builder {
    /// Port of the servers of [`pods_per_node`](Self::pods_per_node), HTTP and UDP.
    pub const POD_PORT: u16 = 8080;

    /// Adds `nodes` nodes, named `node-<index>`.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        let first = self.nodes.len();
        self.nodes.extend((first..first + nodes).map(|index| format!("node-{index}")));
        self
    }

    /// Adds a node of this name.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.nodes.push(name.into());
        self
    }

    /// Adds `pods` pods to every node that there is so far, named `pod-<node>-<index>`, that serve HTTP and UDP echo
    /// on [`POD_PORT`](Self::POD_PORT).
    #[must_use]
    pub fn pods_per_node(mut self, pods: usize) -> Self {
        for node in 0..self.nodes.len() {
            self.pods.extend((0..pods).map(|index| {
                PodSpec::new(format!("pod-{node}-{index}"), node).http(Self::POD_PORT).udp(Self::POD_PORT)
            }));
        }
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// How many addresses each outside client has, to be several clients with. Default 1.
    #[must_use]
    pub fn client_addresses(mut self, addresses: usize) -> Self {
        self.client_addresses = addresses.max(1);
        self
    }

    /// What devices do instead of the stack. Default [`Offload::On`].
    #[must_use]
    pub fn offload(mut self, offload: Offload) -> Self {
        self.offload = offload;
        self
    }

    /// Sweeps what dead owners left, then builds the lab; its servers answer when this returns.
    ///
    /// # Errors
    /// Without root (of the machine, and then without cgroup2, or of a user namespace), without
    /// [`run_if_worker`](crate::run_if_worker), or when the kernel refuses something; nothing of the lab stays then.
    pub fn build(self) -> Result<Lab, LabError> {
        let start = Instant::now();
        if !can_be_worker() {
            return Err(LabError::NoWorkers);
        }
        let pods_on = |node| self.pods.iter().filter(|pod| pod.node == node).count();
        plan::check(self.nodes.len(), (0..self.nodes.len()).map(pods_on).max().unwrap_or(0), self.client_addresses)?;
        sweep()?;
        let mut lab = Lab::bare(self.offload, self.client_addresses)?;
        for name in self.nodes {
            lab.start_node(name)?;
        }
        lab.wire_segment()?;
        lab.wire_nodes()?;
        lab.wire_outside()?;
        lab.settle_segment()?;
        lab.add_pods(self.pods)?;
        lab.build_time = start.elapsed();
        Ok(lab)
    }
}
