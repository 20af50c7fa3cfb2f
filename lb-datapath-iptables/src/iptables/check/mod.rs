//! What the kernel holds: read, compared with what it should hold, repaired, watched over, asked.

pub(crate) mod ask;
pub(crate) mod compare;
pub(crate) mod drift;
pub(crate) mod installed;
pub(crate) mod sizes;
pub(crate) mod watch;
