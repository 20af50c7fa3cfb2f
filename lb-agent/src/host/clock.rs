//! The wall clock, for what outlives the process. Everything else goes by a monotonic clock.

use std::time::{Duration, SystemTime};

use lb_ipam::Timestamp;

/// Time since 1970; zero on a machine that believes to be before that.
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Now, for the ledger.
pub(crate) fn timestamp() -> Timestamp {
    Timestamp::from_millis(u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX))
}
