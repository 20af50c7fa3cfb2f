//! Why a use case could not be run.

use std::{io, path::PathBuf, time::Duration};

use lb_testkit::LabError;

/// Why a use case could not be run. A promise that is not kept is a failed expectation instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("interrupted; everything has been removed")]
    Interrupted,
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("the manifests of {use_case} cannot be read: {source}")]
    Manifests { use_case: &'static str, source: lb_k8s::SnapshotError },
    #[error("the manifests of {use_case} lack {what}")]
    Lacks { use_case: &'static str, what: &'static str },
    #[error("reading the pods of the manifests failed")]
    Pods(#[from] lb_k8s::lab::PodTwice),
    #[error("pod {pod} asks for node {node}, which the lab does not have")]
    NoNode { pod: String, node: String },
    #[error("the manifests have no pod {pod}")]
    NoPod { pod: &'static str },
    #[error("asking the agent on {node} about a packet failed: {why}")]
    Question { node: String, why: String },
    #[error("writing the endpoint slices failed")]
    Write(#[from] lb_k8s::write::WriteError),
    #[error("writing {path} failed")]
    File { path: PathBuf, source: io::Error },
    #[error("the agent on {node} did not become ready within {waited:?}; its output was:\n{said}")]
    NotReady { node: String, waited: Duration, said: String },
    #[error("the agent on {node} did not carry out {services} services within {waited:?}: ask for fewer")]
    TooMany { node: String, services: usize, waited: Duration },
    #[error("the agent did not end within {waited:?}; its output was:\n{said}")]
    NotEnded { waited: Duration, said: String },
    #[error(
        "only only {answered} messages on {connections} connections were answered within {waited:?}: ask for fewer connections"
    )]
    NotOpened { connections: u32, answered: u64, waited: Duration },
    #[error("asking the agent on {node} failed")]
    Agent { node: String, source: lb_agent::api::ClientError },
    #[error("{action} failed")]
    Rules { action: String, source: io::Error },
}
