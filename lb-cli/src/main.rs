//! The program `lb`: the reference agent, and the commands that ask it.
//!
//! It refuses to decide anything about packets (that is `lb-core`), to know how a datapath works (that is behind
//! [`lb_core::datapath::Datapath`]) and to serve (that is `lb-agent`): it parses what people write and prints what they
//! read.
//!
//! Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 difference found.
#![forbid(unsafe_code)]
// They panic where nobody reads standard error; `output::say` does not.
#![deny(clippy::print_stderr)]

mod cli;
mod commands;
mod completions;
mod exit;
#[cfg(feature = "lab")]
mod lab;
mod names;
mod output;
mod reach;
mod signals;

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::CompleteEnv;

fn main() -> ExitCode {
    #[cfg(feature = "lab")]
    lb_testkit::run_if_worker();
    #[cfg(feature = "lab")]
    if let Some(code) = lab::run_if_probe() {
        return code;
    }
    // Answers a shell that completes, and ends.
    CompleteEnv::with_factory(cli::Cli::command).complete();
    exit::report(commands::run(cli::parse().command))
}
