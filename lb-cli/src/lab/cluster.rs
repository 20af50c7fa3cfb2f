//! A cluster that runs the manifests of a use case.

use std::time::Duration;

use lb_agent::{api::Client, driver::DatapathKind};
use lb_core::{
    addr::{Family, Protocol},
    service::Service,
};
use lb_k8s::lab::pods;
use lb_testkit::lab::{Lab, Origin};

use super::{
    error::RunError,
    fleet::{Fleet, listens},
    use_case::UseCase,
};

/// A running cluster with one service. Dropping it removes it.
pub(super) struct Cluster {
    pub(super) service: Service,
    /// Names of the pods behind the service.
    pub(super) backends: Vec<String>,
    /// Port that they listen on.
    pub(super) port: u16,
    /// Longest time that an agent took from its start until its services were in the datapath.
    pub(super) ready: Duration,
    fleet: Fleet,
}

impl Cluster {
    /// Builds the cluster, starts pods and agents, and waits until every agent is ready.
    pub(super) fn start(use_case: UseCase, datapath: DatapathKind) -> Result<Self, RunError> {
        let snapshot = use_case.snapshot()?;
        let lacks = |what| RunError::Lacks { use_case: use_case.name(), what };
        let service = snapshot.services().next().ok_or_else(|| lacks("a service"))?.clone();
        let servers: Vec<_> = pods(snapshot.workloads())?.into_iter().filter(|pod| pod.is_server()).collect();
        let port = servers.iter().find_map(|pod| listens(pod, Protocol::Tcp).first().copied());
        let port = port.ok_or_else(|| lacks("a server"))?;
        let mut fleet = Fleet::build(&snapshot, datapath)?;
        use_case.manifests().into_iter().try_for_each(|(name, text)| fleet.write(name, text))?;
        fleet.write("endpoint-slices.yaml", &fleet.endpoint_slices(&snapshot)?)?;
        let ready = fleet.start_agents()?;
        Ok(Self { service, backends: servers.into_iter().map(|pod| pod.name).collect(), port, ready, fleet })
    }

    pub(super) fn lab(&self) -> &Lab {
        self.fleet.lab()
    }

    /// Where a process of the pod that only sends sends from.
    pub(super) fn client_origin(&self) -> Origin {
        self.fleet.client_origin()
    }

    /// Asks the agent of a node.
    pub(super) fn ask(&self, node: usize) -> Result<Client, RunError> {
        self.fleet.ask(node)
    }
}

/// Both families.
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
