//! Signals that ask the process to end, or to read its input again.

use std::{io, thread};

use nix::sys::signal::{SigSet, Signal};

fn awaited() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

/// Keeps signals until somebody asks for them. Threads and programs that start later inherit this.
pub(crate) fn block() {
    // The kernel refuses only what it does not know, which these are not.
    let _ = awaited().thread_block();
}

/// Calls `tell` with each signal that comes. They must be [blocked](block).
pub(crate) fn watch(mut tell: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    let wait = move || {
        while let Ok(signal) = awaited().wait() {
            tell(signal);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}
