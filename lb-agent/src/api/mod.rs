//! What the agent says about itself, as JSON over HTTP on a Unix socket.
//!
//! `GET /v1/services`, `/v1/backends`, `/v1/status`, `/v1/drift`,
//! `/v1/explain?protocol=…&source=…&destination=…[&entry=…][&verify=true][&why-not=…]`, `/v1/pools`, `/v1/pools/get?name=…`,
//! `/v1/pools/explain?address=…` and `POST /v1/pools/plan?[remove=…]…` with manifests as its body answer with the types of
//! this module; errors with [`Problem`]. `/v1/drift/watch` answers with a [`DriftNews`] per line until one of the two ends
//! goes. Keys are only ever added.

pub(crate) mod answers;
mod client;
mod drift;
mod explain;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod pool;
mod query;
mod server;
mod service;
mod socket;
mod status;
pub(crate) mod view;
mod words;

pub use client::{Client, ClientError, DriftWatch};
pub use drift::{DriftNews, DriftRecord, DriftReport, DriftStatus};
pub use explain::{Choice, Explanation, Rejected, Rewrite, Step, Verification, Weighted, WhyNot};
pub(crate) use http::Request;
pub use pool::{Pool, PoolAddress, PoolCounts, PoolDetail, PoolMove, PoolPlan};
pub use query::Question;
#[cfg(any(test, fuzzing))]
pub(crate) use server::converse_once;
pub(crate) use server::{Lines, Reply};
pub use service::{Affinity, Backend, BackendCount, Condition, Frontend, Granted, Ipam, Service};
pub use socket::ListenError;
pub(crate) use socket::Listener;
pub use status::{Addresses, Counts, Datapath, Manifests, Node, Source, Status, Usage};
pub use words::{
    AddressState, Algorithm, BackendState, Difference, DriftCause, DriftClass, DriftMode, DriftOutcome, Entry,
    FrontendKind, FrontendStatus, Protocol, ServiceKind, Verdict, WhyNotAnswer,
};

use serde::{Deserialize, Serialize};

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, for people.
    pub error: String,
}
