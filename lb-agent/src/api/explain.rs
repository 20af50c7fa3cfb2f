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
    /// How the datapath falls short of what the service asks for.
    #[serde(default)]
    pub degraded: Vec<String>,
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
    /// What the kernel says about the same packet, if that was asked for.
    #[serde(default)]
    pub verification: Option<Verification>,
    /// Why a backend is, or is not, the choice, if that was asked for.
    #[serde(default)]
    pub why_not: Option<WhyNot>,
}

/// What the kernel says about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether that is what must become of it.
    pub agrees: bool,
    /// How the kernel was asked.
    pub method: String,
    /// What was found on the way.
    pub steps: Vec<String>,
    /// What becomes of the packet, in words.
    pub kernel: String,
    /// Where the kernel and the model differ; empty when they agree.
    pub disagreements: Vec<String>,
    /// Backend of the established flow that the packet belongs to, as the kernel remembers it.
    pub established: Option<String>,
    /// Backend that the kernel remembers for the client.
    pub affinity: Option<String>,
    /// Whether all changes had been carried out; otherwise a difference may be one that is about to go.
    pub settled: bool,
}

/// Why a backend is, or is not, the choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyNot {
    /// The backend: `address:port`, or as it was asked about if there is none.
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
