//! How commands end.

use std::{fmt, process::ExitCode};

use lb_agent::api::ClientError;

use crate::output;

/// Result of a command that was understood.
pub(crate) type Outcome = Result<Verdict, Failure>;

/// End of a command that did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Exit code 0.
    Fine,
    /// Exit code 1: an expectation was not met; what it was has been printed.
    Failed,
    /// Exit code 3: what was asked about is not there; that has been printed.
    Absent,
    /// Exit code 4: a difference was found and has been printed.
    Different,
}

/// End of a command that could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit code 1.
    Error(String),
    /// Exit code 2.
    Usage(String),
    /// Exit code 3.
    NotFound(String),
}

impl Failure {
    pub(crate) fn error(error: impl fmt::Display) -> Self {
        Self::Error(error.to_string())
    }

    /// The error with every cause below it, in one line.
    pub(crate) fn chain(error: &dyn std::error::Error) -> Self {
        Self::Error(lb_core::error::report(error))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotFound(what) => Self::NotFound(what),
            error => Self::chain(&error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::error(error)
    }
}

/// The exit code, after saying on standard error what went wrong.
pub(crate) fn report(outcome: Outcome) -> ExitCode {
    let (code, message) = match outcome {
        Ok(Verdict::Fine) => return ExitCode::SUCCESS,
        Ok(Verdict::Failed) => return ExitCode::from(1),
        Ok(Verdict::Absent) => return ExitCode::from(3),
        Ok(Verdict::Different) => return ExitCode::from(4),
        Err(Failure::Error(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::NotFound(message)) => (3, message),
    };
    // It may name what others wrote: objects, files, devices.
    output::say(format_args!("lb: {}", output::printable_lines(&message)));
    ExitCode::from(code)
}
