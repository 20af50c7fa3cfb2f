//! Maps that have another size than was asked for.

use std::fmt;

/// A map that keeps the size that an earlier process gave it, although a smaller one is asked for now: it holds too much.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptSize {
    /// Name of the map.
    pub map: &'static str,
    /// Most elements that it can have.
    pub found: u64,
    /// Most elements that were asked for.
    pub wanted: u64,
    /// Elements that it has, those left out that are over. Of `SLOTS`, the end of the last table.
    pub in_use: u64,
}

impl fmt::Display for KeptSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map, found, wanted, in_use } = self;
        write!(
            f,
            "map {map} keeps room for {found} elements, though {wanted} are asked for: {in_use} are in use. The next start \
             tries again"
        )
    }
}
