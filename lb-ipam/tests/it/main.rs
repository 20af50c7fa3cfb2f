//! What holds beyond the scenarios: bands, limits, bad input, several allocators over one ledger.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod cluster_ip;
mod cost;
mod failures;
mod node_port;
mod sentences;
mod several;
