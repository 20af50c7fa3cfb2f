//! The kernel's state: read, compared with the expected one, repaired, watched, and asked about one packet.

pub(crate) mod ask;
pub(crate) mod compare;
pub(crate) mod drift;
pub(crate) mod installed;
pub(crate) mod sizes;
pub(crate) mod watch;
