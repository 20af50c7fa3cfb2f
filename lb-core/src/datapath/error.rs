//! Why a datapath could not do something.

use alloc::{boxed::Box, string::String, vec::Vec};
use core::{error::Error, fmt};

use crate::{addr::FrontendAddr, error::report_from};

/// The part of a plan that failed.
#[derive(Debug)]
pub struct ApplyError {
    /// Number of operations that took effect.
    pub applied: usize,
    /// Frontends that are as they were before, and why.
    pub failed: Vec<(FrontendAddr, DatapathError)>,
    /// Set when the present state of the datapath is unknown: observe it before the next plan.
    pub unknown: Option<DatapathError>,
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count| if count == 1 { "" } else { "s" };
        write!(f, "{} operation{} took effect", self.applied, plural(self.applied))?;
        if let Some((addr, cause)) = self.failed.first() {
            let count = self.failed.len();
            write!(f, ", {count} frontend{} failed, the first {addr}: {}", plural(count), cause.report())?;
        }
        if let Some(cause) = &self.unknown {
            write!(f, ", the state of the datapath is unknown: {}", cause.report())?;
        }
        Ok(())
    }
}

impl Error for ApplyError {}

impl ApplyError {
    /// The state of the datapath is unknown, and so is whether any operation took effect.
    #[must_use]
    pub fn unknown(cause: DatapathError) -> Self {
        Self { applied: 0, failed: Vec::new(), unknown: Some(cause) }
    }
}

/// Why a datapath failed. Causes are open-ended: ask for the [`kind`](Self::kind).
#[derive(Debug)]
pub struct DatapathError {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Class of a [`DatapathError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The process lacks a privilege.
    Permission,
    /// The kernel or a tool lacks something.
    Unsupported,
    /// A table is full, or a limit is reached.
    Capacity,
    /// Another program holds it, or changed it at the same time.
    Busy,
    /// The request itself is wrong.
    Invalid,
    /// The kernel or a tool failed otherwise.
    System,
}

impl DatapathError {
    /// The message and every cause below it, in one line.
    #[must_use]
    pub fn report(&self) -> String {
        report_from(self.message.clone(), self.source())
    }

    /// An error with a message that says what failed, on what, and what would help.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same, caused by `source`.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Its class.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Busy | ErrorKind::Capacity | ErrorKind::System)
    }
}

/// The [report](DatapathError::report): whoever prints an error wants its cause.
impl fmt::Display for DatapathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report())
    }
}

impl Error for DatapathError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn what_is_printed_has_every_cause_once() {
        let cause = |text| DatapathError::new(ErrorKind::System, text);
        let middle = cause("pinning failed").with_source(cause("no space left"));
        let error = cause("opening failed").with_source(middle);
        assert_eq!(error.to_string(), "opening failed: pinning failed: no space left");
        assert_eq!((error.report(), crate::error::report(&error)), (error.to_string(), error.to_string()));
    }
}
