//! The services: from the model to map writes, and from the maps back to the model.

pub(crate) mod cells;
pub(crate) mod convert;
pub(crate) mod dry;
pub(crate) mod filter;
pub(crate) mod heap;
pub(crate) mod ids;
pub(crate) mod layout;
pub(crate) mod loads;
pub(crate) mod lower;
pub(crate) mod maps;
pub(crate) mod mirror;
pub(crate) mod ports;
pub(crate) mod restore;
pub(crate) mod sockets;
pub(crate) mod sweep;
pub(crate) mod write;
