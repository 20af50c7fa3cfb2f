//! From a description to a running lab.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    Lab, Netns, NodeState, Offload, PodSpec, PodState, Privilege, cgroup,
    netlink::Batch,
    owner::{Directories, LabId},
    spawn::Spawner,
    sysctl,
    topology::{self as plan, FAMILIES},
    wiring::{UPLINK, host_side, pod_side},
};
use crate::{
    error::LabError,
    worker::{MARK, Remote},
};

impl Lab {
    /// A lab without nodes: namespaces of the segment and outside, and their worker.
    pub(super) fn bare(offload: Offload, client_addresses: usize) -> Result<Self, LabError> {
        let id = LabId::next()?;
        let directories = Directories::of(id)?;
        let spawner = Spawner::new();
        let outside = start_worker(&spawner, "outside", None)?;
        let netns = |name: &str, forwards| {
            let netns = Netns::create(name)?;
            sysctl::prepare(&netns, forwards).map(|()| netns)
        };
        Ok(Self {
            id,
            nodes: Vec::new(),
            pods: Vec::new(),
            outside: Some(outside),
            spawner: Some(spawner),
            segment: netns("segment", false)?,
            router: netns("router", true)?,
            client: netns("client", false)?,
            beyond: netns("beyond", false)?,
            directories,
            offload,
            client_addresses,
            build_time: Duration::ZERO,
        })
    }

    pub(super) fn start_node(&mut self, name: String) -> Result<(), LabError> {
        let index = self.nodes.len();
        let cgroup = self.directories.cgroup.join(format!("node-{index}"));
        let has_cgroup = Privilege::current() != Privilege::UserNamespace;
        if has_cgroup {
            cgroup::create(&cgroup)?;
        }
        let netns = Netns::create(&name)?;
        sysctl::prepare(&netns, true)?;
        let spawner = self.spawner();
        let inside = start_worker(spawner, &name, has_cgroup.then_some(&*cgroup))?;
        let packets = start_worker(spawner, &format!("{name} (outside of its cgroup)"), None)?;
        self.nodes.push(NodeState { name, netns, cgroup, inside, packets, pods_made: 0 });
        Ok(())
    }

    /// Makes pods and starts their servers; they answer when this returns.
    pub(super) fn add_pods(&mut self, specs: Vec<PodSpec>) -> Result<(), LabError> {
        let first = self.pods.len();
        for spec in specs {
            let pod = self.new_pod(spec)?;
            self.pods.push(pod);
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let mut batch = Batch::default();
            let pods: Vec<&PodState> = self.pods[first..].iter().filter(|pod| pod.spec.node == index).collect();
            pods.iter().for_each(|pod| host_side(&mut batch, pod));
            batch.send(&node.netns)?;
            let devices: Vec<String> = pods.iter().map(|pod| pod.device.clone()).collect();
            self.offload(&node.netns, &devices)?;
        }
        for pod in &self.pods[first..] {
            pod_side(pod)?;
            self.offload(&pod.netns, &[UPLINK.into()])?;
        }
        self.settle_pods(first)?;
        self.serve(first..self.pods.len())
    }

    fn new_pod(&mut self, spec: PodSpec) -> Result<PodState, LabError> {
        let unknown = LabError::Unknown(format!("node {} for pod `{}`", spec.node, spec.name));
        let node = self.nodes.get_mut(spec.node).ok_or(unknown)?;
        let index = node.pods_made;
        plan::check(0, index + 1, 0)?;
        node.pods_made += 1;
        let netns = Netns::create(&spec.name)?;
        sysctl::prepare(&netns, false)?;
        let ips = FAMILIES.map(|family| plan::pod_ip(spec.node, index, family));
        Ok(PodState { device: format!("pod{index}"), index, ips, netns, spec })
    }
}

fn start_worker(spawner: &Spawner, name: &str, cgroup: Option<&Path>) -> Result<Remote, LabError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(MARK).stdin(Stdio::piped()).stdout(Stdio::piped());
    // A group of its own: what a terminal sends to the owner is for the owner to handle.
    command.process_group(0);
    Remote::new(name.into(), spawner.spawn(command, None, cgroup)?)
}
