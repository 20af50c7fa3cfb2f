//! A cluster of three nodes that runs the manifests of a use case, with a real agent on every node.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use lb_core::{Family, NodeName, Protocol, Service};
use lb_k8s::{
    Snapshot,
    lab::{PlacedPod, endpoint_slices, pods},
    write,
};
use lb_testkit::lab::{Lab, Node, Origin, Pod, PodSpec, Program};

use super::{error::RunError, interrupt, use_case::UseCase};
use crate::{api::Client, kind::DatapathKind};

/// Nodes of a cluster.
const NODES: usize = 3;
/// How long an agent may take to be ready. Loading programs is what takes longest.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many clients there are outside of the cluster.
pub(super) const OUTSIDE_CLIENTS: usize = 16;

/// A running cluster. Dropping it ends the agents and removes it.
pub(super) struct Cluster {
    pub(super) service: Service,
    /// Names of the pods behind the service.
    pub(super) backends: Vec<String>,
    /// Port that they listen on.
    pub(super) port: u16,
    /// Longest time that an agent took from its start until its services were in the datapath.
    pub(super) ready: Duration,
    /// Ended before the lab goes: fields are dropped in this order.
    agents: Vec<Program>,
    lab: Lab,
}

impl Cluster {
    /// Builds the cluster, starts pods and agents, and waits until every agent is ready.
    pub(super) fn start(use_case: UseCase, datapath: DatapathKind) -> Result<Self, RunError> {
        let manifests = use_case.manifests();
        let text: Vec<&str> = manifests.iter().map(|(_, text)| *text).collect();
        let snapshot = Snapshot::parse("manifests.yaml", &text.join("\n---\n"))
            .map_err(|source| RunError::Manifests { use_case: use_case.name(), source })?;
        let lacks = |what| RunError::Lacks { use_case: use_case.name(), what };
        let service = snapshot.services().next().ok_or_else(|| lacks("a service"))?.clone();
        let specs = place(&snapshot)?;
        let lab = specs.iter().cloned().fold(Lab::builder().nodes(NODES), |lab, pod| lab.pod(pod));
        let lab = lab.client_addresses(OUTSIDE_CLIENTS).build()?;
        lab.route_services_via(0)?;
        let port = specs.iter().find_map(|pod| pod.http.first().copied()).ok_or_else(|| lacks("a server"))?;
        let backends = specs.into_iter().filter(|pod| !pod.http.is_empty()).map(|pod| pod.name).collect();
        let directory = write_manifests(&lab, &snapshot, &manifests)?;
        let start = Instant::now();
        let agents: Vec<Program> =
            lab.nodes().map(|node| start_agent(node, datapath, &directory)).collect::<Result<_, _>>()?;
        for (agent, node) in agents.iter().zip(lab.nodes()) {
            await_ready(agent, node)?;
        }
        Ok(Self { service, backends, port, ready: start.elapsed(), agents, lab })
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The pod that only sends.
    pub(super) fn client_pod(&self) -> Option<Pod<'_>> {
        self.lab.pods().find(|pod| !self.backends.iter().any(|backend| backend == pod.name()))
    }

    /// Where a process of the sending pod sends from.
    pub(super) fn client_origin(&self) -> Origin {
        self.client_pod().map_or(Origin::Pod(0), |pod| Origin::Pod(pod.index()))
    }

    /// Asks the agent of a node.
    pub(super) fn ask(&self, node: usize) -> Result<Client, RunError> {
        Ok(Client::new(&self.lab.node(node).run_dir()?.join("lb.sock")))
    }

    /// What the agents have written so far.
    pub(super) fn agents(&self) -> impl Iterator<Item = &Program> {
        self.agents.iter()
    }
}

/// The pods of a snapshot, spread over the nodes in turn unless they ask for one.
fn place(snapshot: &Snapshot) -> Result<Vec<PodSpec>, RunError> {
    let mut specs = Vec::new();
    for (index, pod) in pods(snapshot.workloads())?.into_iter().enumerate() {
        let node = match &pod.template.node {
            None => index % NODES,
            Some(name) => (0..NODES)
                .find(|node| name.as_str() == format!("node-{node}"))
                .ok_or_else(|| RunError::NoNode { pod: pod.name.clone(), node: name.to_string() })?,
        };
        let listens = |protocol| {
            let ports = pod.template.ports.iter().filter(move |port| port.protocol == protocol);
            ports.map(|port| port.port).collect::<Vec<_>>()
        };
        let (http, udp) = (listens(Protocol::Tcp), listens(Protocol::Udp));
        specs.push(PodSpec { http, udp, ..PodSpec::new(pod.name.clone(), node).namespace(pod.namespace.clone()) });
    }
    Ok(specs)
}

/// The manifests as they are, and the endpoint slices that a cluster's controller would add.
fn write_manifests(lab: &Lab, snapshot: &Snapshot, manifests: &[(&str, &str)]) -> Result<PathBuf, RunError> {
    let directory = lab.run_dir()?.join("manifests");
    let mut placed = Vec::new();
    for (pod, built) in pods(snapshot.workloads())?.into_iter().zip(lab.pods()) {
        placed.push(PlacedPod { pod, node: NodeName::new(built.node().name()), ips: built.ips().into() });
    }
    let slices = endpoint_slices(snapshot.templates(), &placed);
    let slices: Vec<String> = slices.iter().map(write::endpoint_slice).collect::<Result<_, _>>()?;
    let slices = slices.concat();
    let save = |path: PathBuf, text: &str| fs::write(&path, text).map_err(|source| RunError::File { path, source });
    fs::create_dir_all(&directory).map_err(|source| RunError::File { path: directory.clone(), source })?;
    manifests.iter().try_for_each(|(name, text)| save(directory.join(name), text))?;
    save(directory.join("endpoint-slices.yaml"), &slices)?;
    Ok(directory)
}

pub(super) fn start_agent(
    node: Node<'_>,
    datapath: DatapathKind,
    manifests: &std::path::Path,
) -> Result<Program, RunError> {
    let run_dir = node.run_dir()?;
    let facts = node.facts();
    let mut command = Command::new("/proc/self/exe");
    command.args(["agent", "--datapath", datapath.as_str(), "--node", node.name(), "--log-level", "info"]);
    command.arg("--manifests").arg(manifests).arg("--socket").arg(run_dir.join("lb.sock"));
    command.arg("--state-dir").arg(run_dir.join("state"));
    command.args(facts.ips.iter().map(|ip| format!("--node-ip={ip}")));
    command.args(facts.cluster_cidrs.iter().map(|cidr| format!("--cluster-cidr={cidr}")));
    if datapath == DatapathKind::Ebpf {
        command.args(["--device", node.uplink()]);
        command.args(node.pod_devices().iter().map(|device| format!("--pod-device={device}")));
        command.arg("--cgroup").arg(node.cgroup()).arg("--pin-dir").arg(node.pin_dir()?);
    }
    Ok(node.spawn(command)?)
}

pub(super) fn await_ready(agent: &Program, node: Node<'_>) -> Result<(), RunError> {
    interrupt::check()?;
    match agent.wait_for_line(PATIENCE, |line| line == "ready") {
        Some(_) => Ok(()),
        None => Err(RunError::NotReady { node: node.name().into(), waited: PATIENCE, said: agent.output() }),
    }
}

/// Both families.
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
