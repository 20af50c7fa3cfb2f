//! Input of `iptables-restore`.

use std::fmt::{self, Write as _};

use lb_core::addr::FrontendAddr;

/// Input of `iptables-restore`, and which lines belong to which frontend.
#[derive(Debug, Default)]
pub(crate) struct Restore {
    text: String,
    lines: usize,
    owners: Vec<(usize, FrontendAddr)>,
}

impl Restore {
    /// Empty, with room for `bytes`.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ..Self::default() }
    }

    /// All lines.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// All lines, without the memory of whom they belong to.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    /// The frontend that line `line` (counted from 1) was written for.
    pub(crate) fn owner(&self, line: usize) -> Option<FrontendAddr> {
        let index = self.owners.binary_search_by_key(&line, |&(line, _)| line).ok()?;
        Some(self.owners[index].1)
    }

    /// Writes a line of nobody's.
    pub(crate) fn line(&mut self, text: fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a string takes every text");
        self.text.push('\n');
        self.lines += 1;
    }

    /// Writes a line of `owner`'s.
    pub(crate) fn owned(&mut self, owner: FrontendAddr, text: fmt::Arguments<'_>) {
        self.owners.push((self.lines + 1, owner));
        self.line(text);
    }
}
