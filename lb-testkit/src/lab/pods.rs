//! Pods of a lab, and their servers.

use std::{net::IpAddr, ops::Range};

use super::{Lab, Netns, PROMPT, netlink::Batch, wire, wiring::FIRST_INDEX};
use crate::{
    error::LabError,
    worker::protocol::{Command, Serve, Who},
};

/// A pod to be: a namespace behind a node, with servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Name, unique in the lab.
    pub name: String,
    /// Kubernetes namespace, which its server names in every answer. Default `default`.
    pub namespace: String,
    /// Index of its node.
    pub node: usize,
    /// Ports of its HTTP server. Default: none.
    pub http: Vec<u16>,
    /// Ports of its UDP echo server. Default: none.
    pub udp: Vec<u16>,
}

impl PodSpec {
    /// A pod that serves nothing.
    #[must_use]
    pub fn new(name: impl Into<String>, node: usize) -> Self {
        Self { name: name.into(), namespace: "default".into(), node, http: Vec::new(), udp: Vec::new() }
    }

    /// Puts it into a Kubernetes namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Serves HTTP on `port` as well.
    #[must_use]
    pub fn http(mut self, port: u16) -> Self {
        self.http.push(port);
        self
    }

    /// Serves UDP echo on `port` as well.
    #[must_use]
    pub fn udp(mut self, port: u16) -> Self {
        self.udp.push(port);
        self
    }
}

#[derive(Debug)]
pub(super) struct PodState {
    pub(super) spec: PodSpec,
    pub(super) netns: Netns,
    /// Index among all pods that its node ever had.
    pub(super) index: usize,
    /// One per family, IPv4 first.
    pub(super) ips: [IpAddr; 2],
    /// The node's end of its veth.
    pub(super) device: String,
}

impl Lab {
    /// Makes one more pod; its servers answer when this returns.
    ///
    /// # Errors
    /// When its node does not exist or the kernel refuses something.
    pub fn add_pod(&mut self, pod: PodSpec) -> Result<(), LabError> {
        self.add_pods(vec![pod])
    }

    /// Ends a pod: its servers, connections, namespace and device. Indices of later pods shift.
    ///
    /// # Errors
    /// When there is none, or its server does not stop.
    pub fn remove_pod(&mut self, name: &str) -> Result<(), LabError> {
        let index = self.pod(name).ok_or_else(|| LabError::Unknown(format!("pod `{name}`")))?.index;
        self.stop_server(name)?;
        let pod = self.pods.remove(index);
        let mut batch = Batch::default();
        batch.delete_link(pod.device.clone(), wire::link(FIRST_INDEX + pod.index as u32));
        batch.send(&self.nodes[pod.spec.node].netns)
    }

    /// Closes the servers of a pod with all their connections; the pod itself stays.
    ///
    /// # Errors
    /// When nothing serves there.
    pub fn stop_server(&self, pod: &str) -> Result<(), LabError> {
        let state = self.pod(pod).ok_or_else(|| LabError::Unknown(format!("pod `{pod}`")))?.state();
        self.nodes[state.spec.node].inside.call(Command::StopServing(pod.into()), PROMPT).map(drop)
    }

    /// Opens the servers of a pod again.
    ///
    /// # Errors
    /// When the ports are taken.
    pub fn start_server(&self, pod: &str) -> Result<(), LabError> {
        let index = self.pod(pod).ok_or_else(|| LabError::Unknown(format!("pod `{pod}`")))?.index;
        self.serve(index..index + 1)
    }

    /// Starts the servers of these pods, all at once.
    pub(super) fn serve(&self, pods: Range<usize>) -> Result<(), LabError> {
        let mut started = Vec::new();
        for pod in &self.pods[pods] {
            let node = &self.nodes[pod.spec.node];
            let who = Who {
                node: node.name.clone(),
                pod: pod.spec.name.clone(),
                namespace: pod.spec.namespace.clone(),
                ips: pod.ips.into(),
            };
            let (http, udp) = (pod.spec.http.clone(), pod.spec.udp.clone());
            let serve = Serve { netns: pod.netns.path(), who, http, udp };
            started.push((&node.inside, node.inside.begin(Command::Serve(serve))?));
        }
        started.iter().try_for_each(|(worker, token)| worker.finish(token, PROMPT).map(drop))
    }
}
