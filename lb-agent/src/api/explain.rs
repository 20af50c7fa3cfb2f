//! The way of a packet through the datapath.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Entry, Protocol, Verdict, WhyNotAnswer};

/// The answer of `/v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Transport protocol.
    pub protocol: Protocol,
    /// `address:port` of the sender.
    pub source: String,
    /// `address:port` of the receiver.
    pub destination: String,
    /// Where the packet enters the node.
    pub entry: Entry,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The frontend, as `address:port/protocol`.
    pub frontend: Option<String>,
    /// `namespace/name:port` of the service.
    pub service: Option<String>,
    /// What the datapath lacks of what the service asks for.
    #[serde(default)]
    pub degraded: Vec<String>,
    /// The backends that may take the packet.
    pub choice: Option<Choice>,
    /// What becomes of its source.
    pub source_rewrite: Option<Rewrite>,
    /// What becomes of its source if the backend is the sender itself.
    pub hairpin_rewrite: Option<Rewrite>,
    /// The steps of the decision.
    pub steps: Vec<Step>,
    /// Backends that may not take the packet.
    pub rejected: Vec<Rejected>,
    /// The answer of the kernel about the same packet, if requested.
    #[serde(default)]
    pub verification: Option<Verification>,
    /// Why a backend is, or is not, the choice, if requested.
    #[serde(default)]
    pub why_not: Option<WhyNot>,
}

/// The answer of the kernel about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether the kernel and the model agree.
    pub agrees: bool,
    /// How the kernel was queried.
    pub method: String,
    /// The steps of the query.
    pub steps: Vec<String>,
    /// What becomes of the packet, in words.
    pub kernel: String,
    /// Where the kernel and the model differ; empty when they agree.
    pub disagreements: Vec<String>,
    /// Backend of the established flow that the packet belongs to, as the kernel remembers it.
    pub established: Option<String>,
    /// Backend that the kernel remembers for the client.
    pub affinity: Option<String>,
    /// Whether every known change was in the datapath; otherwise a disagreement may be about to go.
    pub settled: bool,
}

/// Why a backend is, or is not, the choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyNot {
    /// The backend: `address:port`, or the text of the question if there is no such backend.
    pub backend: String,
    /// The answer in one word.
    pub answer: WhyNotAnswer,
    /// The answer in one sentence.
    pub says: String,
    /// The first of its slots in the table, from 0.
    pub slots: Vec<u32>,
    /// How many slots it has.
    pub slot_count: u32,
    /// Slots of the table.
    pub table: u32,
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
    /// It becomes an address of the node.
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
