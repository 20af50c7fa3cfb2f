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
        let is_one = self.paths.len() == 1;
        f.write_str(if is_one { " was missing: " } else { " were missing: " })?;
        if self.made_anew {
            return f.write_str(
                "every map is made anew. Connections whose packets come in through a device are reset, and clients with \
                 affinity and UDP flows may get another backend. TCP connections of sockets on this node go on.",
            );
        }
        f.write_str(if is_one { "its program is attached again" } else { "their programs are attached again" })?;
        f.write_str(". Sockets that connected meanwhile were not translated. Established connections go on.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pin_and_several_are_told_in_the_right_number() {
        let told = |paths: &[&str]| MissingPins::new(paths.iter().map(PathBuf::from).collect(), false).to_string();
        let one = told(&["/p/a"]);
        assert!(one.starts_with("/p/a was missing: its program is attached again. "), "{one}");
        let two = told(&["/p/a", "/p/b"]);
        assert!(two.starts_with("/p/a, /p/b were missing: their programs are attached again. "), "{two}");
    }
}
