//! Points at which a test can have the process killed, to check the state that it leaves in the kernel.
//!
//! With the feature `crash-points`, the process ends itself by `SIGKILL` when it passes the point whose number, counted
//! from 1 since the start of the process, is in the environment variable `LB_CRASH_AT`. Without the feature nothing
//! happens at a point.

/// A point. Every step that changes the kernel's state lies between two of them.
#[cfg(feature = "crash-points")]
pub(crate) fn point() {
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, raise};

    static PASSED: AtomicU32 = AtomicU32::new(0);
    let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    let last = std::env::var("LB_CRASH_AT").ok().and_then(|number| number.parse().ok());
    if last == Some(passed) {
        raise(Signal::SIGKILL).expect("a process can kill itself");
    }
}

#[cfg(not(feature = "crash-points"))]
pub(crate) const fn point() {}

/// Carries out a step that changes the kernel's state, with a point before it and one behind it.
pub(crate) fn around<T>(step: impl FnOnce() -> T) -> T {
    point();
    let done = step();
    point();
    done
}
