//! Three nodes with the pods of some manifests, and a real agent on every node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lb_agent::{
    api::Client,
    driver::{DatapathKind, Setting},
};
use lb_core::{addr::Protocol, name::NodeName};
use lb_k8s::{
    Snapshot,
    lab::{PlacedPod, Pod as PodToBe, endpoint_slices, pods},
    write,
};
use lb_testkit::{
    LabError,
    lab::{Lab, Node, Origin, PodSpec, Program},
};
use nix::sys::signal::Signal;

use super::{error::RunError, interrupt};

/// Nodes of a fleet.
const NODES: usize = 3;
/// How long an agent may take to be ready. Loading programs is what takes longest.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an agent may take to end.
const END: Duration = Duration::from_secs(10);
/// How many clients there are outside of the cluster.
const OUTSIDE_CLIENTS: usize = 16;

/// Nodes, pods and agents. Dropping it ends the agents and removes it.
pub(super) struct Fleet {
    /// Ended before the lab goes: fields are dropped in this order.
    agents: Vec<Program>,
    site: Site,
    pods: Vec<PodToBe>,
}

/// The nodes without the agents.
struct Site {
    lab: Lab,
    datapath: DatapathKind,
    /// What every agent reads.
    manifests: PathBuf,
}

impl Fleet {
    /// Builds nodes and the pods of `snapshot`. There are no manifests and no agents yet.
    pub(super) fn build(snapshot: &Snapshot, datapath: DatapathKind) -> Result<Self, RunError> {
        let pods = pods(snapshot.workloads())?;
        let specs = place(&pods)?;
        let lab = specs.into_iter().fold(Lab::builder().nodes(NODES), |lab, pod| lab.pod(pod));
        let lab = lab.client_addresses(OUTSIDE_CLIENTS).build()?;
        lab.route_services_via(0)?;
        let manifests = lab.run_dir()?.join("manifests");
        fs::create_dir_all(&manifests).map_err(|source| RunError::File { path: manifests.clone(), source })?;
        Ok(Self { agents: Vec::new(), site: Site { lab, datapath, manifests }, pods })
    }

    /// Writes a manifest for all agents, whole at any moment.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), RunError> {
        let path = self.site.manifests.join(name);
        let draft = self.site.manifests.join(format!(".{name}"));
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
        written.map_err(|source| RunError::File { path, source })
    }

    /// The endpoint slices that a cluster's controller would add to the services of `snapshot`.
    pub(super) fn endpoint_slices(&self, snapshot: &Snapshot) -> Result<String, RunError> {
        let placed: Vec<PlacedPod> = self.pods.iter().zip(self.lab().pods()).map(placed).collect();
        let slices = endpoint_slices(snapshot.templates(), &placed);
        let texts: Vec<String> = slices.iter().map(write::endpoint_slice).collect::<Result<_, _>>()?;
        Ok(texts.concat())
    }

    /// Starts all agents, and waits until the last one is ready; how long that took.
    pub(super) fn start_agents(&mut self) -> Result<Duration, RunError> {
        let start = Instant::now();
        let site = &self.site;
        let agents: Result<_, RunError> = site.lab.nodes().map(|node| site.start_agent(node)).collect();
        self.agents = agents?;
        for (agent, node) in self.agents.iter().zip(site.lab.nodes()) {
            await_ready(agent, node)?;
        }
        Ok(start.elapsed())
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.site.lab
    }

    /// Where a process of the pod that only sends sends from.
    pub(super) fn client_origin(&self) -> Origin {
        Origin::Pod(self.pods.iter().position(|pod| !pod.is_server()).unwrap_or(0))
    }

    /// The place of a pod among all pods of the lab.
    pub(super) fn pod(&self, name: &'static str) -> Result<usize, RunError> {
        self.lab().pod(name).map(|pod| pod.index()).ok_or(RunError::NoPod { pod: name })
    }

    /// Names of the pods that serve.
    pub(super) fn servers(&self) -> Vec<String> {
        self.pods.iter().filter(|pod| pod.is_server()).map(|pod| pod.name.clone()).collect()
    }

    /// Asks the agent of a node.
    pub(super) fn ask(&self, node: usize) -> Result<Client, RunError> {
        Ok(Client::new(&self.site.lab.node(node).run_dir()?.join("lb.sock")))
    }

    /// Ends the agent of a node with a signal, while traffic goes on that `meanwhile` starts on the lab, and starts it
    /// again; both once for each signal. Returns the value of `meanwhile` when the last one is ready.
    pub(super) fn restart<'a, T>(
        &'a mut self,
        node: usize,
        signals: &[Signal],
        meanwhile: impl FnOnce(&'a Lab) -> Result<T, RunError>,
    ) -> Result<T, RunError> {
        let Self { agents, site, .. } = self;
        let result = meanwhile(&site.lab)?;
        let agent = &mut agents[node];
        let node = site.lab.node(node);
        for &signal in signals {
            agent.signal(signal)?;
            if agent.wait(END)?.is_none() {
                return Err(RunError::NotEnded { waited: END, said: agent.output() });
            }
            *agent = site.start_agent(node)?;
            await_ready(agent, node)?;
        }
        Ok(result)
    }
}

impl Site {
    fn start_agent(&self, node: Node<'_>) -> Result<Program, RunError> {
        start_agent(node, self.datapath, &self.manifests)
    }
}

/// Pods, spread over the nodes in turn unless they ask for one.
fn place(pods: &[PodToBe]) -> Result<Vec<PodSpec>, RunError> {
    let mut specs = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let node = match &pod.template.node {
            None => index % NODES,
            Some(name) => (0..NODES)
                .find(|node| name.as_str() == format!("node-{node}"))
                .ok_or_else(|| RunError::NoNode { pod: pod.name.clone(), node: name.to_string() })?,
        };
        let (http, udp) = (listens(pod, Protocol::Tcp), listens(pod, Protocol::Udp));
        specs.push(PodSpec { http, udp, ..PodSpec::new(pod.name.clone(), node).namespace(pod.namespace.clone()) });
    }
    Ok(specs)
}

/// Ports of a pod.
pub(super) fn listens(pod: &PodToBe, protocol: Protocol) -> Vec<u16> {
    pod.template.ports.iter().filter(|port| port.protocol == protocol).map(|port| port.port).collect()
}

fn placed((pod, built): (&PodToBe, lb_testkit::lab::Pod<'_>)) -> PlacedPod {
    PlacedPod { pod: pod.clone(), node: NodeName::new(built.node().name()), ips: built.ips().into() }
}

pub(super) fn start_agent(node: Node<'_>, datapath: DatapathKind, manifests: &Path) -> Result<Program, RunError> {
    let run_dir = node.run_dir()?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["agent", "--datapath", datapath.name(), "--node", node.name(), "--log-level", "info"]);
    command.arg("--manifests").arg(manifests).arg("--socket").arg(run_dir.join("lb.sock"));
    command.arg("--state-dir").arg(run_dir.join("state"));
    command.args(node.facts().cluster_cidrs.iter().map(|cidr| format!("--cluster-cidr={cidr}")));
    command.args(attachments(node, datapath, node.pod_devices().iter().map(String::as_str))?);
    Ok(node.spawn(command)?)
}

/// Flags for what the datapath attaches to on this node.
pub(super) fn attachments<'a>(
    node: Node<'_>,
    kind: DatapathKind,
    pod_devices: impl Iterator<Item = &'a str>,
) -> Result<Vec<String>, LabError> {
    let mut flags = Vec::new();
    if kind.takes_devices() {
        flags.push(format!("--device={}", node.uplink()));
    }
    if kind.reads(Setting::PodDevice) {
        flags.extend(pod_devices.map(|device| format!("--pod-device={device}")));
    }
    if kind.reads(Setting::Cgroup) {
        flags.push(format!("--cgroup={}", node.cgroup().display()));
    }
    if kind.reads(Setting::PinDir) {
        flags.push(format!("--pin-dir={}", node.pin_dir()?.display()));
    }
    Ok(flags)
}

pub(super) fn await_ready(agent: &Program, node: Node<'_>) -> Result<(), RunError> {
    interrupt::check()?;
    match agent.wait_for_line(PATIENCE, |line| line == "ready") {
        Some(_) => Ok(()),
        None => Err(RunError::NotReady { node: node.name().into(), waited: PATIENCE, said: agent.output() }),
    }
}
