//! Pins that were missing at a start.

use std::{fmt, path::PathBuf};

/// Pins that were missing when a datapath was opened over those of an earlier process. `Display` says which, and what
/// became of the connections of that process.
///
/// A first start finds no pins at all, and misses none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingPins {
    paths: Vec<PathBuf>,
    made_anew: bool,
}

impl MissingPins {
    pub(crate) const fn new(paths: Vec<PathBuf>, made_anew: bool) -> Self {
        Self { paths, made_anew }
    }

    /// Where the pins should have been.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether a map was missing without which the others are of no use, so that every map was made anew, empty. If
    /// not, only programs were attached again.
    #[must_use]
    pub const fn made_anew(&self) -> bool {
        self.made_anew
    }
}

impl fmt::Display for MissingPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, path) in self.paths.iter().enumerate() {
            write!(f, "{}{}", if n == 0 { "" } else { ", " }, path.display())?;
        }
        f.write_str(if self.paths.len() == 1 { " was missing: " } else { " were missing: " })?;
        f.write_str(if self.made_anew {
            "every map is made anew. Connections whose packets come in through a device are reset, and clients with \
             affinity and UDP flows may get another backend. TCP connections of sockets on this node go on."
        } else {
            "their programs are attached again. Sockets that connected meanwhile were not translated. Established \
             connections go on."
        })
    }
}
