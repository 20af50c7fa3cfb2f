//! How the rules look: names, comments, jumps, and the text of iptables-save and iptables-restore.

pub(crate) mod choice;
pub(crate) mod hooks;
pub(crate) mod invalid;
pub(crate) mod names;
pub(crate) mod notes;
pub(crate) mod restore;
pub(crate) mod saved;
