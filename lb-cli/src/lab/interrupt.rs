//! An orderly end when the user has seen enough: whatever was built is removed first.

use std::sync::atomic::{AtomicBool, Ordering};

use super::error::RunError;
use crate::{output, signals};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first SIGINT or SIGTERM only makes [`check`] fail; the second one ends the process.
pub(super) fn arm() -> std::io::Result<()> {
    signals::block();
    signals::watch(|signal| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            output::say(format_args!("lb: {signal} again: the next lab removes what is left"));
            std::process::exit(1);
        }
    })
}

/// Fails after a signal.
pub(super) fn check() -> Result<(), RunError> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(RunError::Interrupted) } else { Ok(()) }
}
