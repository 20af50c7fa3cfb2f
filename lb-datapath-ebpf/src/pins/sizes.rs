//! Maps that have another size than was asked for.

use std::fmt;

/// A map that keeps the size that an earlier process gave it, although another one is asked for now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptSize {
    /// Name of the map.
    pub map: &'static str,
    /// Most elements that it can have.
    pub found: u64,
    /// Most elements that were asked for.
    pub wanted: u64,
}

impl fmt::Display for KeptSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map, found, wanted } = self;
        write!(f, "map {map} keeps room for {found} elements until a cleanup, though {wanted} are asked for")
    }
}
