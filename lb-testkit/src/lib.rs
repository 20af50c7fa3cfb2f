//! What tests, benches and `lb lab` of this workspace stand on, for tests of other crates too.
//!
//! * [`lab`]: clusters made of network namespaces, built in milliseconds: nodes, pods with real servers, clients
//!   outside.
//! * [`traffic`]: what those clients send, and what came of it.
//! * [`conformance`]: the suite that every [`lb_core::datapath::Datapath`] has to pass, also one that you wrote. Its
//!   page shows how to run it.
//! * [`packets`]: packets written, read and translated, independently of every datapath.
//! * [`worlds`]: services by the thousand, for benches.
//!
//! Everything is real: namespaces, veths, servers, sockets. It needs Linux 5.14 or later, and root with cgroup2 or else
//! user namespaces ([`lab::enter_user_namespace`]).
//!
//! It refuses
//!
//! * to use a container runtime, or to start any program but its own executable. Every `main` that builds a lab
//!   therefore begins with [`run_if_worker`], and a test has `harness = false`;
//! * to touch anything outside of its own namespaces, cgroups and directories, or to leave something behind. What stays
//!   after a `kill -9` is removed by the next lab;
//! * to pass over what it cannot run: without the privileges, a lab is an error and a trial is marked as ignored;
//! * to write to standard output or standard error. A failure is in the [`LabError`] or in the report of a case.
//!
//! ```no_run
//! # fn main() -> Result<(), lb_testkit::LabError> {
//! use lb_core::addr::Family;
//! use lb_testkit::{lab::{Lab, Origin}, traffic::{Load, LoadKind}};
//!
//! lb_testkit::run_if_worker();
//! let lab = Lab::builder().nodes(2).pods_per_node(1).build()?;
//! let server = lab.pod("pod-1-0").expect("two nodes have a second one").socket(Family::V4, 8080);
//! let report = lab.client(Origin::Pod(0)).load(&Load::new(LoadKind::NewConnections, server).requests(1000))?;
//! assert_eq!((report.answered(), report.failed()), (1000, 0));
//! lab.close()
//! # }
//! ```

pub mod conformance;
mod error;
pub mod lab;
pub mod packets;
mod program;
pub mod traffic;
mod worker;
pub mod worlds;

pub use error::{LabError, report};
pub use program::copy_program;
pub use worker::run_if_worker;

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
