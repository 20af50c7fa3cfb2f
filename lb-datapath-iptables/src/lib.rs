//! Service load balancing in netfilter: one backend for nftables, one for iptables.
//!
//! Both carry out the plans of [`lb_core`] and read back what they installed, so that a new process takes over where an
//! old one ended. They translate packets on the node that they run on; they open no firewall, answer no ARP and accept
//! no traffic on anybody's behalf. `docs/nftables.md` and `docs/iptables.md` show each of them hook by hook.
//!
//! ```no_run
//! use lb_core::{datapath::Datapath, plan::{Labels, diff}, state::State};
//! use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut datapath: Box<dyn Datapath> = Box::new(NftablesDatapath::open(&NftablesConfig::default())?);
//! let installed = datapath.observe()?;
//! let desired = State { node: installed.node.clone(), ..State::default() };
//! datapath.apply(&diff(&installed, &desired, &Labels::new()))?;
//! # Ok(())
//! # }
//! ```

mod conntrack;
mod crash;
mod namespace;
mod netfilter;
pub mod nftables;
mod routes;

pub mod iptables;

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
