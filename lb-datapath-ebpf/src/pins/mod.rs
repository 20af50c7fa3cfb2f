//! What is pinned: directories, maps and links, whom they belong to, and whether they are still there.

pub(crate) mod anchor;
pub(crate) mod anchors;
pub(crate) mod clsact;
pub(crate) mod directories;
pub(crate) mod links;
pub(crate) mod missing;
pub(crate) mod ownership;
pub(crate) mod resize;
pub(crate) mod sizes;
