//! The API of the agent: JSON over HTTP on a Unix socket.
//!
//! `GET` on `/v1/services`, `/v1/backends`, `/v1/status`, `/v1/drift`,
//! `/v1/explain?protocol=…&source=…&destination=…[&entry=…][&verify=true][&why-not=…]`, `/v1/pools`,
//! `/v1/pools/get?name=…`, `/v1/pools/explain?address=…`, and `POST` on `/v1/pools/plan?[file=…][&remove=…]…` with
//! manifests as its body, answer with the types of this module. `/v1/drift/watch` answers with a [`DriftNews`] on each
//! line until one of the two ends goes.
//!
//! An answer that is not a success is a [`Problem`]; only a request that is not HTTP gets a status alone. Keys and
//! words are only ever added.

pub(crate) mod answers;
mod client;
mod drift;
mod explain;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod pool;
mod query;
pub(crate) mod remarks;
mod server;
mod service;
mod socket;
mod status;
pub(crate) mod view;
mod words;

pub use client::{Client, ClientError, DriftWatch};
pub use drift::{DriftNews, DriftRecord, DriftReport, DriftStatus};
pub use explain::{Choice, Explanation, Rejected, Rewrite, Step, Verification, Weighted, WhyNot};
pub use pool::{Pool, PoolAddress, PoolCounts, PoolDetail, PoolMove, PoolPlan, PoolReservation};
pub use query::ExplainQuery;
pub(crate) use server::{Lines, Reply, Request};
pub use service::{
    Affinity, Backend, BackendCount, Condition, Frontend, Granted, HealthCheck, Ipam, Service, SourceRanges,
};
pub use socket::ListenError;
pub(crate) use socket::Listener;
pub use status::{
    Addresses, Counts, Datapath, Manifests, MapUsage, Network, NetworkDevice, Node, Source, Status, Unlisted, Usage,
};
pub use words::{
    AddressState, Algorithm, BackendState, Difference, DriftCause, DriftClass, DriftMode, DriftOutcome, Entry,
    FrontendKind, FrontendStatus, Protocol, RangePolicy, ServiceKind, TrafficPolicy, Verdict, WhyNotAnswer,
};

use serde::{Deserialize, Serialize};

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The error, for people.
    pub error: String,
}
