//! The reference agent of lb and the command line `lb`.
//!
//! [`main`] is the whole program. What else is public is what a program needs that talks to a running agent:
//! [`api::Client`] and the types that it answers with, which are also the JSON of `-o json`.
//!
//! What it refuses to do: decide anything about packets (that is `lb-core`), know how a datapath works (that is behind
//! [`lb_core::Datapath`]), or parse manifests (that is `lb-k8s`).
//!
//! ```no_run
//! use lb_agent::{DEFAULT_SOCKET, api::Client};
//!
//! let client = Client::new(DEFAULT_SOCKET.as_ref());
//! for service in client.services()? {
//!     for frontend in service.frontends {
//!         println!("{} {}:{}: {}", service.name, frontend.ip, frontend.port, frontend.status);
//!     }
//! }
//! # Ok::<(), lb_agent::api::ClientError>(())
//! ```
#![forbid(unsafe_code)]
// They panic where nobody reads standard error; `output::say` does not.
#![deny(clippy::print_stderr)]

mod agent;
pub mod api;
mod cli;
mod commands;
mod config;
mod datapath;
mod exit;
mod flow;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod kind;
#[cfg(feature = "lab")]
mod lab;
mod maglev;
mod mounts;
mod netlink;
mod output;
mod owner;
mod pattern;
mod period;
mod signals;

use std::process::ExitCode;

use clap::Parser;

pub use config::{DEFAULT_PIN_DIR, DEFAULT_SOCKET, DEFAULT_STATE_DIR};
pub use kind::DatapathKind;

/// Runs the command that the process was started with.
///
/// Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 difference found.
#[must_use]
pub fn main() -> ExitCode {
    #[cfg(feature = "lab")]
    lb_testkit::run_if_worker();
    #[cfg(feature = "lab")]
    if let Some(code) = lab::run_if_probe() {
        return code;
    }
    exit::report(commands::run(cli::Cli::parse().command))
}
