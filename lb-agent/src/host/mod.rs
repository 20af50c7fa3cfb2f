//! The machine that the agent runs on: its devices, mounts, state directory, and who may use what.

pub(crate) mod bridges;
pub mod cleanup;
pub(crate) mod clock;
pub(crate) mod conntrack;
pub(crate) mod forwarding;
pub(crate) mod mounts;
pub(crate) mod netfilter;
pub(crate) mod netlink;
pub mod owner;
pub mod place;
pub(crate) mod settings;
pub mod state_dir;
