//! The kernel behind the traits of the library: maps and helpers.

pub(crate) mod maps;
pub(crate) mod skb;
pub(crate) mod sock;

/// The kernel's maps. It has no fields: passing it costs nothing.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;
