//! From a plan to one transaction.

pub(crate) mod affinity;
pub(crate) mod draft;
pub(crate) mod encoder;
pub(crate) mod engine;
pub(crate) mod errors;
pub(crate) mod installed;
pub(crate) mod lower;
pub(crate) mod mirror;
