//! The machine that the agent runs on: its devices, mounts, state directory, and who may use what.

pub(crate) mod clock;
pub(crate) mod mounts;
pub(crate) mod netlink;
pub mod owner;
pub mod state_dir;
