//! Clusters out of network namespaces, traffic, and the Datapath conformance suite.
//!
//! Everything real: namespaces, veths, servers, sockets. It needs Linux, and root with cgroup2 or else user namespaces
//! ([`lab::enter_user_namespace`]); it uses no container runtime and starts no program but its own executable.
//!
//! ```no_run
//! # fn main() -> Result<(), lb_testkit::LabError> {
//! use lb_core::Family;
//! use lb_testkit::{lab::{Lab, Origin}, traffic::{Load, LoadKind}};
//!
//! lb_testkit::run_if_worker();
//! let lab = Lab::builder().nodes(2).pods_per_node(1).build()?;
//! let server = lab.pod("pod-1-0").expect("two nodes have a second one").socket(Family::V4, 8080);
//! let report = lab.client(Origin::Pod(0)).load(&Load::new(LoadKind::NewConnections, server).requests(1000))?;
//! println!("{} answers, p99 {:?}", report.answered(), report.latencies.p99());
//! # Ok(())
//! # }
//! ```

pub mod conformance;
mod error;
pub mod lab;
pub mod traffic;
mod worker;
pub mod worlds;

pub use error::{LabError, report};
pub use worker::run_if_worker;
