//! Service load balancing in eBPF.
//!
//! Sockets of a cgroup are sent to a backend where they state their destination (`connect`, `sendmsg`). Other packets
//! are translated at the ingress of the devices that they come in through. One map write moves a frontend. Everything
//! is pinned, so that services outlive the process that programmed them.
//!
//! The crate embeds the programs, built from `programs/` by `cargo xtask build-ebpf`: it needs no BPF toolchain. It
//! runs on Linux 5.15 and later, with `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`.
//!
//! The process holds every pinned object open and keeps a mirror of the maps. So it finds and repairs what other tools
//! unpin, detach or edit ([`inspect`](lb_core::datapath::Datapath::inspect),
//! [`repair`](lb_core::datapath::Datapath::repair), [`watcher`](lb_core::datapath::Datapath::watcher)). Pins of other
//! programs are never adopted. A process that dies at any moment leaves every frontend either in its old or in its new
//! state.
//!
//! Flows of a backend that left end when they are [asked to](lb_core::datapath::Datapath::evict): sockets are destroyed,
//! and translations are removed. [`DestroySockets`] says in which network namespaces.
//!
//! The programs count the packets and socket calls that they stop, by [`Reason`]: see
//! [`reason_counters`](EbpfDatapath::reason_counters).
//!
//! [`discovery`] finds the devices and the cgroup to attach to, and devices that come later are attached to through
//! [`Devices`](lb_core::datapath::Devices). The crate does not watch devices, mount file systems, add routes or change kernel settings. `docs/ebpf.md` lists what the
//! programs do not do.
//!
//! ```no_run
//! use lb_core::{datapath::Datapath, plan::{Labels, diff}, state::State};
//! use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath};
//!
//! let config = EbpfConfig::new("/sys/fs/cgroup").with_uplink_devices(["eth0"]);
//! let mut datapath = EbpfDatapath::open(config)?;
//! let installed = datapath.observe()?;
//! datapath.apply(&diff(&installed, &State::default(), &Labels::default()))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ask;
mod config;
mod counters;
mod crash;
mod datapath;
pub mod discovery;
mod drift;
mod error;
mod evict;
mod features;
mod left_alone;
mod object;
mod pins;
mod privileges;
mod programs;
mod reasons;
mod state;
mod sys;

pub use config::{Capacities, DestroySockets, EbpfConfig, SocketBalancing};
pub use datapath::EbpfDatapath;
pub use features::{DeviceHook, KernelFeatures};
pub use lb_datapath_ebpf_abi::{Errno, Reason, Verdict};
pub use left_alone::LeftAlone;
pub use pins::{missing::MissingPins, sizes::KeptSize};
pub use reasons::ReasonCounters;
pub use state::dry::map_writes;

/// What the tests of crashes count with.
#[cfg(feature = "crash-points")]
#[doc(hidden)]
pub mod crash_points {
    pub use crate::crash::armed::{arm, passed};
}

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
