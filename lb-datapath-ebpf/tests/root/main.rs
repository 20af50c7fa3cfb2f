//! The datapath in the kernel: real sockets and packets, in namespaces and cgroups of their own.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod bpf;
mod by_source;
mod capacity;
mod clsact;
mod common;
mod drift;
mod evict;
mod flows;
mod foreign;
mod forged;
mod ids;
mod kernel;
mod least;
mod packets;
mod paths;
mod ping;
mod pressure;
mod privileges;
mod resize;
mod sctp;
mod settings;
mod sockets;
mod tun;
mod verify;
mod vlan;
