//! What use cases promise.

use std::fmt::Display;

use lb_agent::driver::DatapathKind;
use serde::Serialize;

use super::{error::RunError, interrupt, kernel};

/// Something that is promised, and whether it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Expectation {
    /// The promise.
    pub(super) name: String,
    /// Whether it is kept.
    pub(super) passed: bool,
    /// What was seen.
    pub(super) detail: String,
}

impl Expectation {
    /// The promise that is broken when nothing else could be looked into.
    pub(super) fn cannot_run(datapath: DatapathKind, error: &RunError) -> Self {
        Self { name: "it runs".into(), passed: false, detail: kernel::because(datapath, error) }
    }
}

/// What was seen, as it should be (`Ok`) or not (`Err`).
pub(super) type Seen = Result<String, String>;

/// Promises as they are looked into, one after the other.
pub(super) struct Checks<'a> {
    progress: &'a dyn Fn(&str),
    pub(super) all: Vec<Expectation>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(progress: &'a dyn Fn(&str)) -> Self {
        Self { progress, all: Vec::new() }
    }

    /// Looks into one.
    pub(super) fn check(
        &mut self,
        name: impl Display,
        look: impl FnOnce() -> Result<Seen, RunError>,
    ) -> Result<(), RunError> {
        interrupt::check()?;
        let name = name.to_string();
        (self.progress)(&name);
        let seen = look()?;
        let passed = seen.is_ok();
        let detail = seen.unwrap_or_else(|detail| detail);
        self.all.push(Expectation { name, passed, detail });
        Ok(())
    }
}
