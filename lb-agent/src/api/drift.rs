//! Differences between the datapath and what it should hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Difference, DriftCause, DriftClass, DriftMode, DriftOutcome};

/// The answer of `/v1/drift`, which inspects everything first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftReport {
    /// `ebpf`, `nftables`, `iptables-nft`, `iptables-legacy` or `memory`.
    pub datapath: String,
    /// What the agent does about differences.
    pub mode: DriftMode,
    /// How many differences this inspection found, those included that were repaired right away.
    pub found: u64,
    /// Time that the inspection took, in microseconds.
    pub inspection_us: u64,
    /// What this inspection found.
    pub now: Vec<DriftRecord>,
    /// What was found within the last hour and is repaired or gone by now, the latest first.
    pub before: Vec<DriftRecord>,
    /// Differences of this inspection that are too many to be listed.
    pub unlisted: u64,
}

/// One difference between what the datapath should hold and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftRecord {
    /// Class of the object.
    pub class: DriftClass,
    /// The object within its class.
    pub object: String,
    /// How it differs.
    pub difference: Difference,
    /// The expected value, if it is `wrong`.
    pub expected: Option<String>,
    /// The value that was found, if it is `wrong`.
    pub found: Option<String>,
    /// The probable cause.
    pub cause: DriftCause,
    /// What became of it. `detail` says why it is not repaired.
    pub status: DriftOutcome,
    /// Why it was not repaired.
    pub detail: Option<String>,
    /// When it was found, in milliseconds since 1970.
    pub found_unix_ms: u64,
    /// Milliseconds since it was found.
    pub age_ms: u64,
    /// Microseconds from when it was found until it was repaired or gone, if it is.
    pub right_after_us: Option<u64>,
    /// How often it was found in a row, each time within a minute after it was repaired or gone.
    pub times: u32,
}

/// One line of `/v1/drift/watch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DriftNews {
    /// A difference was found or repaired, could not be repaired, or went.
    Difference(Box<DriftRecord>),
    /// More differences at the same time than are listed one by one.
    Unlisted {
        /// How many.
        unlisted: u64,
    },
}

/// What the agent does about drift: part of `/v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftStatus {
    /// What the agent does about differences.
    #[serde(default)]
    pub mode: DriftMode,
    /// Whether the datapath reports changes by other tools, so that the agent does not wait for the next full
    /// inspection.
    pub watched: bool,
    /// Milliseconds from one full inspection to the next, unless they take too long for that.
    pub interval_ms: u64,
    /// Full inspections since the start.
    pub inspections: u64,
    /// Time that the last full inspection took, in microseconds.
    pub inspection_us: u64,
    /// Differences that are known and neither repaired nor gone.
    pub open: u64,
    /// Clients that follow `/v1/drift/watch`.
    #[serde(default)]
    pub watchers: u64,
    /// Differences found since the start, by class.
    pub found: BTreeMap<DriftClass, u64>,
    /// Differences repaired since the start, by class.
    pub repaired: BTreeMap<DriftClass, u64>,
}
