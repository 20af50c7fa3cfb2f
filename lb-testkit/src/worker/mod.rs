//! Processes that serve and send on behalf of the lab.
//!
//! Cgroup hooks see processes, so servers and clients cannot be threads of the lab's owner. A worker is the owner's own
//! executable, started again; it takes commands as JSON lines on standard input and ends with it.

pub(crate) mod protocol;

mod client;
mod crowd;
mod error;
mod held;
mod http;
mod load;
mod remote;
mod serve;
mod server;

use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use remote::{Remote, Token};

/// What a worker process is called.
pub(crate) const MARK: &str = "lb-lab-worker";

static ASKED: AtomicBool = AtomicBool::new(false);

/// Turns this process into a worker if a lab started it as one, and does not return then.
///
/// Must be the first thing in `main` of every executable that builds a lab; building one fails otherwise.
pub fn run_if_worker() {
    ASKED.store(true, Ordering::Relaxed);
    if std::env::args_os().next().is_some_and(|name| name == MARK) {
        serve::run()
    }
}

/// Whether this executable, started again, becomes a worker.
pub(crate) fn can_be_worker() -> bool {
    ASKED.load(Ordering::Relaxed)
}
