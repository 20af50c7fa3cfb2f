//! What other tools change: noticed, found and put right.

pub(crate) mod repair;
pub(crate) mod scan;
pub(crate) mod watch;
