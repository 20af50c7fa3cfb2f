//! Why a comparison cannot go on.

use std::{io, path::PathBuf, time::Duration};

use lb_agent::driver::DatapathKind;
use lb_testkit::LabError;

pub(super) type Result<T> = std::result::Result<T, CompareError>;

/// Why a comparison cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum CompareError {
    #[error("the lab failed")]
    Lab(#[from] LabError),
    #[error("{datapath}: {action} failed: {cause}")]
    Datapath { datapath: DatapathKind, action: &'static str, cause: String },
    #[error("{action} failed")]
    System {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed: {message}")]
    Program { program: &'static str, message: String },
    #[error(
        "{datapath}: no connection landed on a new endpoint within {waited:?} of a change; the last outcome: {said}"
    )]
    NoEffect { datapath: DatapathKind, waited: Duration, said: String },
    #[error("the manifests of {services} services cannot be written to {directory}: {message}")]
    Manifests { services: u32, directory: PathBuf, message: String },
}

/// Turns an error of the system into one that names the action.
pub(super) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> CompareError {
    let action = action.into();
    move |source| CompareError::System { action, source }
}
