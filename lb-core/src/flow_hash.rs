//! The flow hash that every datapath shares: [`lb_flow_hash`], and the seed that every datapath gives it.

pub use lb_flow_hash::{address_words, jhash, slot, two_slots, words_v4, words_v6};

/// Seed of the [flow hash](self) in every datapath. Nodes that share it send a flow to the same backend.
pub const FLOW_SEED: u32 = 0x6c62_0001;
