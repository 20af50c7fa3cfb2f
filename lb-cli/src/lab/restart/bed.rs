//! The cluster in which the agent is interrupted.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_agent::driver::DatapathKind;
use lb_core::addr::Family;
use lb_testkit::lab::{Lab, PodSpec, Program};

use super::super::{error::RunError, fleet};

/// Indices of the client pods, the only ones on the node whose agent is interrupted: one for sockets that are
/// translated, one for packets. A pod that had both would use a port twice, towards the service and towards a backend
/// of it.
pub(super) const CLIENTS: [usize; 2] = [0, 1];
/// Where clients connect to and send datagrams to.
pub(super) const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);
const SERVER_PORT: u16 = 8080;

/// A node with an agent and two client pods, and two nodes with two servers each.
pub(super) struct Bed {
    lab: Lab,
    kind: DatapathKind,
    manifests: PathBuf,
}

impl Bed {
    pub(super) fn build(kind: DatapathKind) -> Result<Self, RunError> {
        let server =
            |index: usize| PodSpec::new(format!("server-{index}"), 1 + index / 2).http(SERVER_PORT).udp(SERVER_PORT);
        let builder = Lab::builder().nodes(3).pod(PodSpec::new("sockets", 0)).pod(PodSpec::new("packets", 0));
        let lab = (0..4).map(server).fold(builder, |builder, pod| builder.pod(pod)).build()?;
        lab.route_services_via(0)?;
        let manifests = lab.run_dir()?.join("manifests");
        let path = manifests.join("service.yaml");
        fs::create_dir_all(&manifests)
            .and_then(|()| fs::write(&path, service(&lab)))
            .map_err(|source| RunError::File { path, source })?;
        Ok(Self { lab, kind, manifests })
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Starts the agent and does not wait for anything.
    pub(super) fn start(&self) -> Result<Program, RunError> {
        fleet::start_agent(self.lab.node(0), self.kind, &self.manifests)
    }

    /// Waits until the agent is ready; how long that took.
    pub(super) fn await_ready(&self, agent: &Program) -> Result<Duration, RunError> {
        let start = Instant::now();
        fleet::await_ready(agent, self.lab.node(0)).map(|()| start.elapsed())
    }
}

fn service(lab: &Lab) -> String {
    let servers = lab.pods().skip(CLIENTS.len());
    let endpoints: String = servers.map(|pod| format!("- addresses: [{}]\n", pod.ip(Family::V4))).collect();
    let (ip, port) = (SERVICE.ip(), SERVICE.port());
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  clusterIP: {ip}\n  ports:\n  \
         - {{name: http, port: {port}, targetPort: {SERVER_PORT}}}\n  \
         - {{name: echo, protocol: UDP, port: {port}, targetPort: {SERVER_PORT}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  \
         labels: {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports:\n\
         - {{name: http, port: {SERVER_PORT}, protocol: TCP}}\n\
         - {{name: echo, port: {SERVER_PORT}, protocol: UDP}}\nendpoints:\n{endpoints}"
    )
}
