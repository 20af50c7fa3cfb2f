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
    /// What the oracle decides, if the promise is that it comes true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decided: Option<String>,
}

impl Expectation {
    /// The promise that is broken when nothing else could be looked into.
    pub(super) fn cannot_run(datapath: DatapathKind, error: &RunError) -> Self {
        Self { name: "it runs".into(), passed: false, detail: kernel::because(datapath, error), decided: None }
    }
}

/// What was seen, as it should be (`Ok`) or not (`Err`).
pub(super) type Seen = Result<String, String>;

/// Promises as they are looked into, one after the other.
pub(super) struct Checks<'a> {
    progress: &'a dyn Fn(&str),
    pub(super) all: Vec<Expectation>,
    /// What the datapath lacks, if that leaves nothing to look into.
    pub(super) left_out: Option<String>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(progress: &'a dyn Fn(&str)) -> Self {
        Self { progress, all: Vec::new(), left_out: None }
    }

    /// Looks into one.
    pub(super) fn check(
        &mut self,
        name: impl Display,
        look: impl FnOnce() -> Result<Seen, RunError>,
    ) -> Result<(), RunError> {
        self.look(name.to_string(), || Ok((look()?, None)))
    }

    /// Looks into one that is about what the oracle decides: what is seen, and the decision in words.
    pub(super) fn check_decided(
        &mut self,
        name: impl Display,
        look: impl FnOnce() -> Result<(Seen, String), RunError>,
    ) -> Result<(), RunError> {
        self.look(name.to_string(), || look().map(|(seen, decided)| (seen, Some(decided))))
    }

    /// The datapath lacks what all of them are about.
    pub(super) fn leave_out(&mut self, lacks: String) {
        self.left_out = Some(lacks);
    }

    fn look(
        &mut self,
        name: String,
        look: impl FnOnce() -> Result<(Seen, Option<String>), RunError>,
    ) -> Result<(), RunError> {
        interrupt::check()?;
        (self.progress)(&name);
        let (seen, decided) = look()?;
        let passed = seen.is_ok();
        let detail = seen.unwrap_or_else(|detail| detail);
        self.all.push(Expectation { name, passed, detail, decided });
        Ok(())
    }
}
