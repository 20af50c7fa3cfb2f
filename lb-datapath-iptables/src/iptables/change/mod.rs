//! From a plan to what iptables-restore reads.

pub(crate) mod attempt;
pub(crate) mod cleanup;
pub(crate) mod effect;
pub(crate) mod lower;
