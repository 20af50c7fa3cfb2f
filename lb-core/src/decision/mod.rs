//! Decisions: the fate of a packet, the steps that lead to it, and why other backends do not receive it.
//!
//! [`decide`] determines the fate of a packet as every datapath has to. [`why_not`] explains the decision for one
//! backend. All of them have a `Display` that says it in the words of `lb explain`.

mod decide;
mod display;
mod packet;
mod why_not;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::{net::IpAddr, ops::RangeInclusive};

pub use decide::decide;
pub(crate) use display::{Shares, Socket};
pub use packet::{Entry, FlowView, Packet};
pub use why_not::{BackendQuery, Because, Slots, WhyNot, why_not};

use crate::{
    addr::{BackendAddr, FrontendAddr},
    selection::Reason,
};

/// The fate of a packet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The fate of the packet.
    pub verdict: Verdict,
    /// The frontend that it is for.
    pub frontend: Option<FrontendAddr>,
    /// Every step on the way, in order.
    pub steps: Vec<Step>,
    /// Backends that may not take it, and why.
    pub rejected: Vec<(BackendAddr, Reason)>,
}

/// The fate of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet is for no frontend and passes untouched.
    Pass,
    /// The packet goes to a backend.
    Forward(Forward),
    /// The packet is refused at once.
    Reject,
    /// The packet is dropped silently.
    Drop,
}

/// How a packet is forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// To whom.
    pub choice: Choice,
    /// The rewrite of its source, unless the backend is the sender itself.
    pub source: SourceRewrite,
    /// The rewrite of its source if the backend is the sender itself.
    pub hairpin_source: SourceRewrite,
    /// Backends of the choice that listen on an address of this node, if a source would be translated otherwise.
    /// Whatever the other fields say, the source is kept for them: the packet does not leave the node.
    pub here: BTreeSet<BackendAddr>,
}

impl Forward {
    /// The rewrite of the source of a packet from `source` to `backend`.
    #[must_use]
    pub fn source_rewrite(&self, source: IpAddr, backend: BackendAddr) -> &SourceRewrite {
        match backend {
            here if self.here.contains(&here) => &SourceRewrite::Kept,
            sender if sender.ip == source => &self.hairpin_source,
            _ => &self.source,
        }
    }
}

/// The backend of a flow, as far as it is determined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one: hashed, remembered, or the only one.
    Exactly(BackendAddr),
    /// One of these, in proportion to weight.
    OneOf(BTreeMap<BackendAddr, u32>),
}

impl Choice {
    /// Whether `backend` may be taken.
    #[must_use]
    pub fn allows(&self, backend: &BackendAddr) -> bool {
        match self {
            Self::Exactly(only) => only == backend,
            Self::OneOf(weights) => weights.contains_key(backend),
        }
    }
}

/// The rewrite of a packet's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceRewrite {
    /// Nothing: the backend sees the client.
    Kept,
    /// It becomes one of the node's addresses, or, for a process of the node that a backend on the node takes for the
    /// frontend, the address of the frontend.
    Translated {
        /// That address, if it is known: of the node, the first one of the family.
        addr: Option<IpAddr>,
        /// A port out of this range.
        ports: RangeInclusive<u16>,
    },
}

/// One step of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The object behind it, such as `service default/web`.
    pub object: String,
    /// Its field.
    pub field: &'static str,
    /// The value of the field, and its consequence.
    pub says: String,
}

impl Decision {
    fn step(&mut self, object: String, field: &'static str, says: String) {
        self.steps.push(Step { object, field, says });
    }
}
