//! What would become of a packet.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The answer of `/v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// `address:port` of the sender.
    pub source: String,
    /// `address:port` that it sends to.
    pub destination: String,
    /// Where the packet enters the node: `socket`, `pod` or `uplink`.
    pub entry: String,
    /// `forward`, `reject` (refused at once), `drop` (silently) or `pass` (for no frontend: passed on).
    pub verdict: String,
    /// The frontend, as `address:port/protocol`.
    pub frontend: Option<String>,
    /// `namespace/name:port` of the service.
    pub service: Option<String>,
    /// Where it goes.
    pub choice: Option<Choice>,
    /// What happens to its source.
    pub source_rewrite: Option<Rewrite>,
    /// What happens to its source if the backend is the sender itself.
    pub hairpin_rewrite: Option<Rewrite>,
    /// How this came about.
    pub steps: Vec<Step>,
    /// Backends that may not take it.
    pub rejected: Vec<Rejected>,
}

/// The backends that may take a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Whether there is only one; otherwise one is drawn in proportion to weight.
    pub exact: bool,
    /// The backends.
    pub backends: Vec<Weighted>,
}

/// A backend and its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weighted {
    /// `address:port`.
    pub address: String,
    /// Share relative to the others.
    pub weight: u32,
}

/// What happens to the source of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rewrite", rename_all = "lowercase")]
pub enum Rewrite {
    /// Nothing.
    Kept,
    /// It becomes one of the node's.
    Translated {
        /// Address, if it is known.
        address: Option<IpAddr>,
        /// First and last of the ports that it may get.
        ports: (u16, u16),
    },
}

/// One step of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The object behind it.
    pub object: String,
    /// Its field.
    pub field: String,
    /// What it says, and what follows.
    pub says: String,
}

/// A backend that may not take a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// `address:port`.
    pub backend: String,
    /// Why.
    pub reason: String,
}
