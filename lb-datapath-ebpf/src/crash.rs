//! Points at which a test kills the process.
//!
//! With the feature `crash-points`, which only tests enable, the process kills itself after the change to the kernel
//! that `LB_CRASH_AT` numbers, counted from 1. Without it, a crash point is nothing.

/// Comes after every single change to the kernel, be it a call or a run of stores.
#[cfg(not(feature = "crash-points"))]
pub(crate) const fn point() {}

#[cfg(feature = "crash-points")]
pub(crate) use armed::point;

#[cfg(feature = "crash-points")]
pub(crate) mod armed {
    use std::sync::{Mutex, PoisonError};

    /// How many points were passed, and at which one the process ends; nothing before the first.
    static COUNT: Mutex<Option<(u64, Option<u64>)>> = Mutex::new(None);

    /// Comes after every single change to the kernel, be it a call or a run of stores.
    pub(crate) fn point() {
        let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
        let (passed, end) =
            count.get_or_insert_with(|| (0, std::env::var("LB_CRASH_AT").ok().and_then(|at| at.parse().ok())));
        *passed += 1;
        if *end == Some(*passed) {
            crate::sys::kill_self();
        }
    }

    /// Starts counting anew, up to the point `end` if there is one: what came before is not what is tested.
    pub fn arm(end: Option<u64>) {
        *COUNT.lock().unwrap_or_else(PoisonError::into_inner) = Some((0, end));
    }

    /// Crash points passed.
    pub fn passed() -> u64 {
        COUNT.lock().unwrap_or_else(PoisonError::into_inner).map_or(0, |(passed, _)| passed)
    }
}
