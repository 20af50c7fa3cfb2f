//! The reference agent of lb, to be embedded: sources of services on one side, a datapath on the other, a reconciler,
//! an allocator of addresses and an API between them.
//!
//! [`agent::Agent`] runs until it is stopped. [`api::Client`] asks a running agent; the types that it returns are also
//! the JSON of the API.
//!
//! What it refuses to do: decide anything about packets (that is `lb-core`), know how a datapath works (that is behind
//! [`lb_core::datapath::Datapath`]), parse manifests (that is `lb-k8s`), or talk to people (that is `lb-cli`).
//!
//! ```no_run
//! use lb_agent::{api::Client, config::DEFAULT_SOCKET};
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
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod agent;
pub mod allocation;
pub mod api;
pub mod check;
pub mod config;
pub mod driver;
mod engine;
pub mod flow;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod health_check;
pub mod host;
pub mod source;
#[cfg(any(test, fuzzing))]
mod testing;

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
